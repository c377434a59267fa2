//! Who asks.

use std::sync::Arc;

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::request::Parts;
use axum::serve::IncomingStream;
use controller_api::{AS_USER, Refusal, RefusalCode};
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use tokio::net::UnixListener;

use super::handlers::Refused;
use crate::Controller;
use crate::access::Caller;

/// The user at the other end of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(Option<(Uid, Gid)>);

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let credentials = stream.io().peer_cred().ok();
        Self(credentials.map(|peer| (Uid::from_raw(peer.uid()), Gid::from_raw(peer.gid()))))
    }
}

/// Who asks, of a request.
#[derive(Debug)]
pub(super) struct Asking(pub(super) Caller);

impl FromRequestParts<Arc<Controller>> for Asking {
    type Rejection = Refused;

    async fn from_request_parts(
        parts: &mut Parts,
        controller: &Arc<Controller>,
    ) -> Result<Self, Refused> {
        let peer = ConnectInfo::<Peer>::from_request_parts(parts, controller).await;
        let peer = peer.ok().and_then(|ConnectInfo(Peer(peer))| peer);
        let Some((uid, gid)) = peer else {
            return Err(Refused(unknown("the socket does not say who asks")));
        };
        let (name, groups) = names(uid, gid);
        // Who runs as the controller does could change its store as well.
        let caller = match uid.is_root() || uid == Uid::effective() {
            true => Caller::administrator(&name),
            false => controller.caller(&name, &groups),
        };
        let Some(other) = parts.headers.get(AS_USER) else {
            return Ok(Self(caller));
        };
        caller.may_administer().map_err(Refused)?;
        let other = other
            .to_str()
            .map_err(|_not_text| Refused(unknown("its name is no text")))?;
        Ok(Self(controller.caller(other, &[])))
    }
}

fn names(uid: Uid, gid: Gid) -> (String, Vec<String>) {
    let user = User::from_uid(uid).ok().flatten();
    let Some(user) = user else {
        return (uid.to_string(), Vec::new());
    };
    let name = std::ffi::CString::new(user.name.as_str()).unwrap_or_default();
    let groups = getgrouplist(&name, gid).unwrap_or_default();
    let groups = groups
        .into_iter()
        .filter_map(|group| Group::from_gid(group).ok().flatten());
    (user.name, groups.map(|group| group.name).collect())
}

fn unknown(problem: &str) -> Refusal {
    Refusal {
        code: RefusalCode::Forbidden,
        object: "user".to_owned(),
        problem: problem.to_owned(),
        next: "connect to the controller's own socket".to_owned(),
        command: None,
    }
}

//! A fabric link as a hop.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use fabric_transport::DeviceId;
use fabric_transport::endpoint::{Endpoint, now};
use fabric_transport::session::SwitchoverRefused;
use qos::{Decision, HopSnapshot, Trace};

use crate::hop::Hop;
use crate::monitor::not_there;
use crate::protocol::{LinkState, PathChanged, SessionPaths, SessionState};

type Present = Box<dyn Fn() -> Option<Arc<Endpoint>> + Send + Sync>;

/// What one end of a link sends, over all of its sessions.
pub struct LinkHop {
    name: String,
    devices: HashMap<DeviceId, String>,
    present: Present,
}

impl LinkHop {
    /// The hop that the link's budget calls `name`. `present` gives the end of the session that is
    /// up, if one is.
    #[must_use]
    pub fn new(
        name: &str,
        devices: HashMap<DeviceId, String>,
        present: impl Fn() -> Option<Arc<Endpoint>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: name.to_owned(),
            devices,
            present: Box::new(present),
        }
    }

    /// The session that is up, with its links.
    pub(crate) fn paths(&self) -> SessionPaths {
        let session = (self.present)().map(|endpoint| {
            let established = endpoint.established();
            let links = endpoint.paths().into_iter().map(|path| LinkState {
                link: path.path,
                priority: path.priority,
                carries: path.carries,
                round_trip_nanos: path.round_trip.map(nanos),
                sent_bytes: path.sent_bytes,
                underway_bytes: u64::try_from(path.underway_bytes).unwrap_or(u64::MAX),
            });
            SessionState {
                peer: established.peer,
                epoch: established.epoch,
                version: established.version,
                links: links.collect(),
            }
        });
        SessionPaths {
            hop: self.name.clone(),
            session,
        }
    }

    /// The last changes of path of the session that is up, oldest first.
    pub(crate) fn path_changes(&self) -> Vec<PathChanged> {
        let endpoint = (self.present)();
        let now = now();
        let changes = endpoint.iter().flat_map(|endpoint| endpoint.path_changes());
        let changes = changes.map(|change| PathChanged {
            hop: self.name.clone(),
            age_nanos: nanos(now.saturating_duration_since(change.at)),
            from: change.from,
            to: change.to,
            cause: change.cause.to_string(),
            gap_nanos: nanos(change.gap),
        });
        changes.collect()
    }

    /// Has the frames of both directions go by `link`.
    ///
    /// # Errors
    /// In one line: there is no session or no such link, or all of them carry frames.
    pub(crate) fn switchover(&self, link: u16) -> Result<(), String> {
        let endpoint = (self.present)();
        let endpoint = endpoint.ok_or_else(|| not_there(&self.name))?;
        endpoint.switchover(link).map_err(|refused| match refused {
            SwitchoverRefused::NoPath { path } => {
                let mut links: Vec<_> = endpoint.paths().iter().map(|it| it.path).collect();
                links.sort_unstable();
                let links: Vec<_> = links.iter().map(u16::to_string).collect();
                let links = links.join(", ");
                format!("{} has no link {path}: there are {links}", self.name)
            }
            SwitchoverRefused::Spread => {
                format!(
                    "{}: {refused}; take spread away from its host to choose",
                    self.name
                )
            }
        })
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl std::fmt::Debug for LinkHop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkHop")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Hop for LinkHop {
    fn name(&self) -> &str {
        &self.name
    }

    fn snapshot(&self) -> Option<HopSnapshot> {
        let name = |id| match self.devices.get(&id) {
            Some(name) => name.clone(),
            None => id.to_string(),
        };
        let mut snapshot = (self.present)()?.snapshot(name);
        snapshot
            .devices
            .sort_by(|one, other| one.name.cmp(&other.name));
        Some(snapshot)
    }

    fn decisions(&self) -> Vec<Decision> {
        (self.present)().map_or_else(Vec::new, |endpoint| endpoint.decisions())
    }

    fn start_trace(&self) -> bool {
        let endpoint = (self.present)();
        endpoint
            .inspect(|endpoint| endpoint.start_trace())
            .is_some()
    }

    fn take_trace(&self) -> Option<Trace> {
        (self.present)()?.take_trace()
    }

    fn link(&self) -> Option<&LinkHop> {
        Some(self)
    }
}

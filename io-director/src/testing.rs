//! A host of the tests: a session with a director, without a handshake.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use fabric_transport::endpoint::{Endpoint, NewPath, session_config};
use fabric_transport::link::in_process_pair;
use fabric_transport::session::{Established, Role};
use fabric_transport::{Directory, EndpointConfig};
use qos::LinkBudget;

use crate::Director;

/// The host's end of a new session of "host1"; both threads end with it.
pub(crate) fn session(director: &Director, host: Arc<dyn Directory>) -> Arc<Endpoint> {
    static EPOCH: AtomicU16 = AtomicU16::new(1);
    let epoch = EPOCH.fetch_add(1, Ordering::SeqCst);
    let (near, far) = in_process_pair("host1");
    let start = |role, name: &str, peer: &str, link, directory| {
        let config = EndpointConfig {
            role,
            session: session_config(name),
            budget: LinkBudget::new(format!("{name} link"), "10G".parse().unwrap()),
        };
        let established = Established::without_handshake(peer, epoch);
        let (endpoint, _detached) =
            Endpoint::start(config, established, NewPath::only(link), directory, name).unwrap();
        endpoint
    };
    start(Role::Director, "director1", "host1", far, director.books());
    start(Role::Host, "host1", "director1", near, host)
}

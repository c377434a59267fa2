//! A director in the same process: no socket is crossed.

use std::io;
use std::sync::Arc;

use fabric_transport::endpoint::Endpoint;
use fabric_transport::link::{Link, in_process_pair};
use fabric_transport::uplink::Connector;
use fabric_transport::{Directory, EndpointConfig};

/// Gives each session of the uplink an in-process link to `directory`.
pub(crate) struct EmbeddedDirector {
    pub(crate) host: String,
    pub(crate) config: EndpointConfig,
    pub(crate) directory: Arc<dyn Directory>,
}

impl Connector for EmbeddedDirector {
    fn connect(&self, _attempt: usize) -> io::Result<Link> {
        let (near, far) = in_process_pair(&self.host);
        // The thread ends with the session, which ends when the near half is dropped.
        let (_endpoint, _detached) = Endpoint::start(
            self.config.clone(),
            far,
            self.directory.clone(),
            "fabric-director",
        )?;
        Ok(near)
    }

    fn target(&self) -> String {
        "embedded director".to_owned()
    }
}

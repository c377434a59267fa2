//! A fabric link as a hop.

use std::collections::HashMap;
use std::sync::Arc;

use fabric_transport::DeviceId;
use fabric_transport::endpoint::Endpoint;
use qos::{Decision, HopSnapshot, Trace};

use crate::hop::Hop;

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
}

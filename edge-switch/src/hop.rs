//! The two schedulers of the switch as hops of the monitor.

use std::sync::Arc;

use fabric_transport::endpoint::now;
use fabric_transport::frame::{HEADER_BYTES, PAYLOAD_BYTES_MAX};
use qos::{Decision, HopSnapshot, Trace};
use qos_monitor::Hop;

use crate::port::lock;
use crate::relay::Relay;
use crate::switch::Shared;

/// One direction of the uplink. Its devices are the links of the hosts.
pub(crate) struct RelayHop {
    name: String,
    shared: Arc<Shared>,
    way: usize,
}

impl RelayHop {
    pub(crate) fn new(shared: &Arc<Shared>, way: usize) -> Self {
        let mut hop = Self {
            name: String::new(),
            shared: shared.clone(),
            way,
        };
        let name = hop.look(|relay| relay.scheduler().budget().hop().to_owned());
        hop.name = name.unwrap_or_default();
        hop
    }

    fn look<R>(&self, look: impl FnOnce(&mut Relay) -> R) -> Option<R> {
        let relay = self.shared.relays.get(self.way)?;
        Some(look(&mut lock(relay)))
    }
}

impl Hop for RelayHop {
    fn name(&self) -> &str {
        &self.name
    }

    fn snapshot(&self) -> Option<HopSnapshot> {
        let frame_bytes_max = u32::try_from(HEADER_BYTES + PAYLOAD_BYTES_MAX).unwrap_or(u32::MAX);
        self.look(|relay| {
            let ports = relay.ports().map(|(_, port)| {
                let name = format!("link{}.{}", port.link, port.host);
                (name, Some(port.host.clone()), port.handle)
            });
            let ports: Vec<_> = ports.collect();
            HopSnapshot::new(relay.scheduler(), now(), frame_bytes_max, ports)
        })
    }

    fn decisions(&self) -> Vec<Decision> {
        let decisions = self.look(|relay| relay.scheduler().decisions().copied().collect());
        decisions.unwrap_or_default()
    }

    fn start_trace(&self) -> bool {
        self.look(|relay| relay.scheduler_mut().start_trace(now()))
            .is_some()
    }

    fn take_trace(&self) -> Option<Trace> {
        self.look(|relay| relay.scheduler_mut().take_trace())
            .flatten()
    }
}

//! What a monitor asks of an endpoint: the state of its scheduler, and why it did what it did.

use qos::{BitRate, Decision, HopSnapshot, Trace};

use super::{Endpoint, now, piece_bytes};
use crate::frame::{DeviceId, HEADER_BYTES};

impl Endpoint {
    /// The scheduler of what this end sends, with its devices as `name` calls them.
    pub fn snapshot(&self, name: impl Fn(DeviceId) -> String) -> HopSnapshot {
        let core = self.lock();
        let link = core.scheduler.budget().rate();
        let frame_bytes = piece_bytes(link, BitRate::ZERO) + HEADER_BYTES;
        let frame_bytes_max = u32::try_from(frame_bytes).unwrap_or(u32::MAX);
        let devices = core.devices.iter().map(|(id, device)| {
            let vm = device.grant.vm.as_ref().map(|vm| vm.name.clone());
            (name(*id), vm, device.handle)
        });
        HopSnapshot::new(&core.scheduler, now(), frame_bytes_max, devices)
    }

    /// The decisions that the scheduler made last, oldest first.
    #[must_use]
    pub fn decisions(&self) -> Vec<Decision> {
        self.lock().scheduler.decisions().copied().collect()
    }

    /// Begins a trace of the scheduler, in the place of any other.
    pub fn start_trace(&self) {
        self.lock().scheduler.start_trace(now());
    }

    /// Ends it; `None` when none was begun.
    #[must_use]
    pub fn take_trace(&self) -> Option<Trace> {
        self.lock().scheduler.take_trace()
    }
}

//! A device under test, observed from its fabric side.

use std::sync::Arc;

use anyhow::Result;
use fabric_transport::{LaneClient, LaneSet, Receipt, VirtualLane};

use super::Shared;

#[derive(Debug, Default)]
struct Seen {
    ups: u64,
    downs: u64,
    /// Frames given to the device, in this batch and in finished ones.
    in_batch: u64,
    delivered: u64,
    writable: u64,
}

/// Passes every call on to a device and counts it afterwards.
pub struct Watched {
    device: Arc<dyn LaneClient>,
    seen: Shared<Seen>,
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Watched")
            .field("seen", &self.seen)
            .finish_non_exhaustive()
    }
}

impl Watched {
    /// Watches `device`.
    #[must_use]
    pub fn new(device: Arc<dyn LaneClient>) -> Arc<Self> {
        Arc::new(Self {
            device,
            seen: Shared::default(),
        })
    }

    /// Waits until the device has got lanes `ups` times in all.
    ///
    /// # Errors
    /// It does not happen in time.
    pub fn wait_up(&self, ups: u64) -> Result<()> {
        self.seen
            .wait("lanes", |seen| (seen.ups >= ups).then_some(()))
    }

    /// Frames that the device has dealt with, batch by batch.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.seen.lock().delivered
    }

    /// Waits until the device has dealt with `frames` frames in all.
    ///
    /// # Errors
    /// It does not happen in time.
    pub fn wait_delivered(&self, frames: u64) -> Result<()> {
        self.seen
            .wait("delivery", |seen| (seen.delivered >= frames).then_some(()))
    }

    /// Times that the device was told that it may send again.
    #[must_use]
    pub fn writable_calls(&self) -> u64 {
        self.seen.lock().writable
    }
}

impl LaneClient for Watched {
    fn up(&self, lanes: LaneSet) {
        self.device.up(lanes);
        self.seen.change(|seen| seen.ups += 1);
    }

    fn receive(&self, lane: VirtualLane, payload: &[u8]) -> Receipt {
        let receipt = self.device.receive(lane, payload);
        self.seen.change(|seen| seen.in_batch += 1);
        receipt
    }

    fn batch_end(&self) {
        self.device.batch_end();
        self.seen
            .change(|seen| seen.delivered += std::mem::take(&mut seen.in_batch));
    }

    fn writable(&self) {
        self.device.writable();
        self.seen.change(|seen| seen.writable += 1);
    }

    fn down(&self, epoch: u16) {
        self.device.down(epoch);
        self.seen.change(|seen| seen.downs += 1);
    }
}

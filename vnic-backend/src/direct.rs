//! Frames that go to a director in this process, and come from it, past the lanes
//! (`docs/adr/0022-frames-past-the-lanes.md`).
//!
//! A frame may overtake none of those that are on the lanes: each end counts what it sent there and what
//! it took from there, and a turn goes past them only if all has arrived.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fabric_bypass::{DirectPort, DirectVnic};
use fabric_payload::ethernet::HEADER_BYTES;
use fabric_transport::{FrameBuffer, LaneSet, SendRefused, VirtualLane, frame};
use vhost_user_session::{BatchChain, RingBatch};

use crate::statistics::Counters;

/// What goes past the lanes at once: little enough for the processor's nearest caches.
const BATCH_FRAMES_MAX: usize = 64;
const BATCH_BYTES: usize = 32 * 1024;
/// What goes past them before it is charged: half of what a device may have queued on a link.
const CHARGE_BYTES: u32 = 128 * 1024;

/// The session that a director serves the vNIC in.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) lanes: LaneSet,
    /// Frames sent by them.
    sent: AtomicU64,
    /// Frames that came by them, and are in the guest's buffers or dropped.
    pub(crate) received: AtomicU64,
    /// The director, if it is in this process.
    director: Option<Arc<dyn DirectPort>>,
}

impl Attached {
    pub(crate) fn new(lanes: LaneSet, director: Option<Arc<dyn DirectPort>>) -> Self {
        Self {
            lanes,
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            director,
        }
    }

    /// Puts a frame on the network lane, to be flushed.
    pub(crate) fn queue(
        &self,
        frame: &mut Vec<(VirtualLane, FrameBuffer)>,
    ) -> Result<(), SendRefused> {
        // Counted before it can arrive.
        self.sent.fetch_add(1, Ordering::AcqRel);
        let queued = self.lanes.queue(frame);
        if queued.is_err() {
            self.sent.fetch_sub(1, Ordering::AcqRel);
        }
        queued
    }

    /// Where frames go past the lanes, if they may now.
    pub(crate) fn past_lanes(&self) -> Option<Arc<dyn DirectVnic>> {
        let session = self.director.as_ref()?.session(self.lanes.epoch())?;
        let in_order = session.lane_frames() == self.sent.load(Ordering::Acquire);
        (in_order && self.lanes.is_clear()).then_some(session)
    }
}

/// Frames of one transmit ring that go past the lanes together, and what they owe to them.
#[derive(Debug, Default)]
pub(crate) struct DirectBatch {
    /// Kept as long as it ever was.
    bytes: Vec<u8>,
    filled_bytes: usize,
    payloads: Vec<Range<usize>>,
    /// Those of the payloads, and of frames that were dropped.
    chains: Vec<BatchChain>,
    owed_bytes: u32,
}

impl DirectBatch {
    /// Has `fill` write the next payload; whatever it is, `chain` is returned with the others.
    pub(crate) fn add<E>(
        &mut self,
        chain: BatchChain,
        payload_bytes: usize,
        fill: impl FnOnce(&BatchChain, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let room = self.filled_bytes..self.filled_bytes.saturating_add(payload_bytes);
        if self.bytes.len() < room.end {
            self.bytes.resize(room.end, 0);
        }
        let filled = fill(&chain, self.bytes.get_mut(room.clone()).unwrap_or_default());
        self.chains.push(chain);
        filled?;
        self.filled_bytes = room.end;
        self.payloads.push(room);
        Ok(())
    }

    /// `chain` has nothing to send.
    pub(crate) fn add_dropped(&mut self, chain: BatchChain) {
        self.chains.push(chain);
    }

    pub(crate) fn is_full(&self) -> bool {
        self.chains.len() >= BATCH_FRAMES_MAX || self.filled_bytes >= BATCH_BYTES
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    /// Sends and counts all, and returns the chains to `ring`.
    pub(crate) fn transmit(
        &mut self,
        session: &dyn DirectVnic,
        ring: &mut RingBatch<'_>,
        counters: &Counters,
    ) {
        let payloads = self.payloads.iter();
        let mut payloads = payloads.filter_map(|payload| self.bytes.get(payload.clone()));
        session.transmit(&mut payloads);
        let frames = self.payloads.len();
        let owed = self.filled_bytes + frames * frame::HEADER_BYTES;
        let owed = u32::try_from(owed).unwrap_or(u32::MAX);
        self.owed_bytes = self.owed_bytes.saturating_add(owed);
        // Before the driver sees that they are gone.
        let frame_bytes = self.filled_bytes - frames * HEADER_BYTES;
        counters.transmitted(u64::try_from(frames).unwrap_or(0), frame_bytes);
        self.payloads.clear();
        self.filled_bytes = 0;
        for chain in self.chains.drain(..) {
            ring.add_used(chain, 0);
        }
        let before = ring.publish();
        ring.signal_since(before);
    }

    /// Whether as much is owed as may be.
    pub(crate) fn owes(&self) -> bool {
        self.owed_bytes >= CHARGE_BYTES
    }

    /// Charges the link to the director.
    pub(crate) fn pay(&mut self, lanes: &LaneSet) {
        lanes.charge(VirtualLane::Network, std::mem::take(&mut self.owed_bytes));
    }
}

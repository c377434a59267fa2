//! Flow control of one lane: who may send how many blocks (InfiniBand vol. 1 section 7.9).
//!
//! Every count is modulo 2^32 and absolute, so that a grant that arrives twice grants nothing
//! twice. The receiver's invariant: *granted = released + window*, so whatever it granted it has
//! room for.

use crate::control::WINDOW_BLOCKS_MAX;
use crate::frame;

/// The sending side of a lane.
#[derive(Debug, Default)]
pub(super) struct SendLane {
    /// FCTBS: blocks sent (or queued to be sent) so far.
    sent: u32,
    /// FCCL: blocks that the peer allows.
    limit: u32,
    /// Packet sequence number of the next frame.
    sequence: u32,
}

/// The peer granted what it must not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadGrant;

impl SendLane {
    pub(super) fn new(window: u32) -> Self {
        Self {
            limit: window,
            ..Self::default()
        }
    }

    pub(super) fn available(&self) -> u32 {
        self.limit.wrapping_sub(self.sent)
    }

    /// Pays for a frame whose blocks [`Self::available`] covers; returns its sequence number.
    pub(super) fn take(&mut self, blocks: u32) -> u32 {
        debug_assert!(
            blocks <= self.available(),
            "frame was queued without credit"
        );
        self.sent = self.sent.wrapping_add(blocks);
        let sequence = self.sequence;
        self.sequence = sequence.wrapping_add(1);
        sequence
    }

    /// A new limit from the peer. True if it grants anything.
    pub(super) fn raise_limit(&mut self, limit: u32) -> Result<bool, BadGrant> {
        let ahead = limit.wrapping_sub(self.limit);
        // An older limit, from another link or one that was sent again: the newer one stands.
        if ahead == 0 || ahead > u32::MAX / 2 {
            return Ok(false);
        }
        if ahead > WINDOW_BLOCKS_MAX || limit.wrapping_sub(self.sent) > WINDOW_BLOCKS_MAX {
            return Err(BadGrant);
        }
        self.limit = limit;
        Ok(true)
    }
}

/// The receiving side of a lane.
#[derive(Debug, Default)]
pub(super) struct ReceiveLane {
    window: u32,
    /// Limit that the peer was told last.
    granted: u32,
    /// Blocks that arrived.
    received: u32,
    /// Blocks whose buffers are free again.
    released: u32,
    /// Sequence number of the next frame.
    expected: u32,
    /// A grant waits to be sent.
    pub(super) due: bool,
}

/// What is wrong with a frame that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadArrival {
    /// More than was granted.
    NoCredit,
    /// Not the next one.
    Sequence { expected: u32 },
}

/// What a good frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    /// The next one of its lane.
    Next,
    /// One that came before, by another link.
    Again,
}

impl ReceiveLane {
    pub(super) fn new(window: u32) -> Self {
        Self {
            window,
            granted: window,
            ..Self::default()
        }
    }

    pub(super) fn arrive(
        &mut self,
        payload_bytes: usize,
        sequence: u32,
    ) -> Result<Arrival, BadArrival> {
        if is_before(sequence, self.expected) {
            return Ok(Arrival::Again);
        }
        let blocks = frame::blocks(payload_bytes);
        if blocks > self.granted.wrapping_sub(self.received) {
            return Err(BadArrival::NoCredit);
        }
        if sequence != self.expected {
            return Err(BadArrival::Sequence {
                expected: self.expected,
            });
        }
        self.expected = sequence.wrapping_add(1);
        self.received = self.received.wrapping_add(blocks);
        Ok(Arrival::Next)
    }

    /// Sequence number of the next frame.
    pub(super) fn expected(&self) -> u32 {
        self.expected
    }

    /// Whether the peer has been granted anything since the lane was opened.
    pub(super) fn was_used(&self) -> bool {
        self.received != 0 || self.released != 0
    }

    /// The buffers of a frame are free. True once a grant is worth a message of its own: half of
    /// what is not held has not been granted. What is less is granted by the next heartbeat, so
    /// that no credit is stranded behind buffers that are held for long.
    pub(super) fn release(&mut self, blocks: u32) -> bool {
        let held = self.received.wrapping_sub(self.released);
        debug_assert!(blocks <= held, "more released than received");
        self.released = self.released.wrapping_add(blocks.min(held));
        let held = self.received.wrapping_sub(self.released);
        !self.due && self.ungranted() >= (self.window - held.min(self.window)).div_ceil(2)
    }

    /// Blocks that are free and not granted.
    pub(super) fn ungranted(&self) -> u32 {
        self.limit().wrapping_sub(self.granted)
    }

    /// The limit to tell the peer now.
    pub(super) fn grant(&mut self) -> u32 {
        self.due = false;
        self.granted = self.limit();
        self.granted
    }

    fn limit(&self) -> u32 {
        self.released.wrapping_add(self.window)
    }
}

/// Whether serial number `a` comes before `b` (RFC 1982, within half of the circle).
pub(super) fn is_before(a: u32, b: u32) -> bool {
    a != b && b.wrapping_sub(a) <= u32::MAX / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    #[test]
    fn counts_may_wrap() {
        let mut send = SendLane {
            sent: u32::MAX - 1,
            limit: 8,
            sequence: u32::MAX,
        };
        assert_eq!(send.available(), 10);
        assert_eq!(send.take(10), u32::MAX);
        assert_eq!((send.available(), send.sequence), (0, 0));
        assert_eq!(send.raise_limit(9), Ok(true));
    }

    #[test]
    fn credit_behind_held_buffers_is_granted() {
        let mut receive = ReceiveLane::new(64);
        for sequence in 0..64 {
            assert_eq!(receive.arrive(32, sequence), Ok(Arrival::Next));
        }
        // 40 of 64 stay held: half of the other 24 make a grant.
        let grants = (0..24).filter(|_| {
            let due = receive.release(1);
            receive.due |= due;
            due
        });
        assert_eq!(grants.count(), 1);
        assert_eq!(receive.grant(), 64 + 24);
        assert_eq!(receive.ungranted(), 0);
    }

    #[test]
    fn p06_limit_that_goes_back_is_ignored_and_one_far_ahead_refused() {
        let mut send = SendLane::new(100);
        for older in [99, 0, u32::MAX] {
            assert_eq!(send.raise_limit(older), Ok(false));
        }
        assert_eq!(send.raise_limit(100), Ok(false));
        assert_eq!(send.raise_limit(WINDOW_BLOCKS_MAX + 1), Err(BadGrant));
        assert_eq!(send.raise_limit(u32::MAX / 2), Err(BadGrant));
        assert_eq!(send.available(), 100);
    }

    #[test]
    fn p06_frame_without_credit_or_out_of_order_is_refused() {
        let mut receive = ReceiveLane::new(2);
        assert_eq!(
            receive.arrive(64, 1),
            Err(BadArrival::Sequence { expected: 0 })
        );
        assert_eq!(receive.arrive(64, 0), Ok(Arrival::Next));
        assert_eq!(receive.arrive(64, 0), Ok(Arrival::Again));
        assert_eq!(receive.arrive(0, 1), Err(BadArrival::NoCredit));
    }

    proptest! {
        /// F8's model: the sender never exceeds the grant, the receiver never holds more than its
        /// window, and once everything is released the whole window is available again.
        #[test]
        fn granted_is_never_exceeded(window in 1u32..200, steps in proptest::collection::vec((0usize..2, 0usize..4000), 1..400)) {
            let mut send = SendLane::new(window);
            let mut receive = ReceiveLane::new(window);
            let mut held = VecDeque::new();
            for (step, payload_bytes) in steps {
                let blocks = frame::blocks(payload_bytes);
                if step == 0 && blocks <= send.available() {
                    let sequence = send.take(blocks);
                    prop_assert_eq!(receive.arrive(payload_bytes, sequence), Ok(Arrival::Next));
                    held.push_back(payload_bytes);
                } else if let Some(payload_bytes) = held.pop_front()
                    && receive.release(frame::blocks(payload_bytes))
                {
                    prop_assert_eq!(send.raise_limit(receive.grant()), Ok(true));
                }
                let blocks_held: u32 = held.iter().map(|bytes| frame::blocks(*bytes)).sum();
                prop_assert!(blocks_held <= window);
            }
            for payload_bytes in held {
                receive.release(frame::blocks(payload_bytes));
            }
            let grant = receive.grant();
            prop_assert!(send.raise_limit(grant).is_ok());
            prop_assert_eq!(send.available(), window);
        }
    }
}

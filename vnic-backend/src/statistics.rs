//! What became of frames.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! drop_reasons {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $reason:ident = $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$doc])* $reason,)* }

        impl $name {
            /// Every reason, in the order of the counters.
            pub const ALL: [Self; [$(Self::$reason),*].len()] = [$(Self::$reason),*];

            /// The reason's name in metrics and tables.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$reason => $text,)* }
            }
        }
    };
}

drop_reasons! {
    /// Why a frame from the guest did not go on the fabric.
    TransmitDrop {
        /// No director serves the device now.
        NoSession = "no_session",
        /// Shorter than an Ethernet header, or than the virtio-net header in front of it.
        Runt = "runt",
        /// Longer than the MTU allows, or than any frame.
        Giant = "giant",
        /// The virtio-net header asks for what was not negotiated, or makes no sense.
        BadHeader = "bad_header",
        /// The chain could not be read.
        Unreadable = "unreadable",
    }
}

drop_reasons! {
    /// Why a frame from the fabric did not reach the guest.
    ReceiveDrop {
        /// No receive queue is running: no driver, or the link is down.
        NotRunning = "not_running",
        /// The guest has made no buffers available.
        NoBuffers = "no_rx_buffers",
        /// Without mergeable buffers: the next buffer is too small.
        BufferTooSmall = "buffer_too_small",
        /// A super-frame for a guest that did not agree to them.
        NotNegotiated = "offload_not_negotiated",
        /// The fabric delivered something that is no frame.
        Malformed = "malformed",
    }
}

/// Frames of one direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectionStatistics<Reason> {
    /// Frames passed on; a super-frame counts once.
    pub frames: u64,
    /// Bytes of those frames, from the destination MAC on, without FCS.
    pub bytes: u64,
    /// Frames dropped, by reason; every reason is there.
    pub drops: Vec<(Reason, u64)>,
}

impl<Reason: PartialEq> DirectionStatistics<Reason> {
    /// Frames dropped for `reason`.
    #[must_use]
    pub fn dropped(&self, reason: Reason) -> u64 {
        self.drops
            .iter()
            .find_map(|(known, count)| (*known == reason).then_some(*count))
            .unwrap_or(0)
    }
}

/// A snapshot of a vNIC's counters, which start at 0 with the device and never go back.
///
/// The counters are read one by one while frames pass: sums may be off by what is underway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VnicStatistics {
    /// Guest to fabric.
    pub transmit: DirectionStatistics<TransmitDrop>,
    /// Fabric to guest.
    pub receive: DirectionStatistics<ReceiveDrop>,
    /// Times a transmit ring was stopped because its lane was blocked.
    pub transmit_stalls: u64,
    /// Receive buffers returned empty because they cannot hold even a header.
    pub bad_receive_buffers: u64,
    /// Frames whose checksum was completed here for a guest that does not do it.
    pub checksums_completed: u64,
    /// Announcements sent for a guest that moved here; not among the transmitted frames.
    pub announcements: u64,
}

#[derive(Debug)]
struct Direction<const REASONS: usize> {
    frames: AtomicU64,
    bytes: AtomicU64,
    drops: [AtomicU64; REASONS],
}

impl<const REASONS: usize> Default for Direction<REASONS> {
    fn default() -> Self {
        Self {
            frames: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            drops: std::array::from_fn(|_reason| AtomicU64::new(0)),
        }
    }
}

impl<const REASONS: usize> Direction<REASONS> {
    fn passed(&self, frames: u64, frame_bytes: usize) {
        add(&self.frames, frames);
        add(&self.bytes, u64::try_from(frame_bytes).unwrap_or(u64::MAX));
    }

    fn snapshot<Reason: Copy>(&self, reasons: &[Reason; REASONS]) -> DirectionStatistics<Reason> {
        let counts = self
            .drops
            .iter()
            .map(|counter| counter.load(Ordering::Relaxed));
        DirectionStatistics {
            frames: self.frames.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            drops: reasons.iter().copied().zip(counts).collect(),
        }
    }
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

/// The live counters.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    transmit: Direction<{ TransmitDrop::ALL.len() }>,
    receive: Direction<{ ReceiveDrop::ALL.len() }>,
    transmit_stalls: AtomicU64,
    bad_receive_buffers: AtomicU64,
    checksums_completed: AtomicU64,
    announcements: AtomicU64,
}

impl Counters {
    pub(crate) fn transmitted(&self, frames: u64, frame_bytes: usize) {
        self.transmit.passed(frames, frame_bytes);
    }

    pub(crate) fn received(&self, frames: u64, frame_bytes: usize) {
        self.receive.passed(frames, frame_bytes);
    }

    pub(crate) fn transmit_dropped(&self, reason: TransmitDrop) {
        let drops = TransmitDrop::ALL.iter().zip(&self.transmit.drops);
        for (_, counter) in drops.filter(|(known, _)| **known == reason) {
            add(counter, 1);
        }
    }

    pub(crate) fn receive_dropped(&self, reason: ReceiveDrop) {
        let drops = ReceiveDrop::ALL.iter().zip(&self.receive.drops);
        for (_, counter) in drops.filter(|(known, _)| **known == reason) {
            add(counter, 1);
        }
    }

    pub(crate) fn transmit_stalled(&self) {
        add(&self.transmit_stalls, 1);
    }

    pub(crate) fn bad_receive_buffer(&self) {
        add(&self.bad_receive_buffers, 1);
    }

    pub(crate) fn checksum_completed(&self) {
        add(&self.checksums_completed, 1);
    }

    pub(crate) fn announced(&self) {
        add(&self.announcements, 1);
    }

    pub(crate) fn snapshot(&self) -> VnicStatistics {
        VnicStatistics {
            transmit: self.transmit.snapshot(&TransmitDrop::ALL),
            receive: self.receive.snapshot(&ReceiveDrop::ALL),
            transmit_stalls: self.transmit_stalls.load(Ordering::Relaxed),
            bad_receive_buffers: self.bad_receive_buffers.load(Ordering::Relaxed),
            checksums_completed: self.checksums_completed.load(Ordering::Relaxed),
            announcements: self.announcements.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_counter_and_a_name_of_its_own() {
        let counters = Counters::default();
        for (count, reason) in ReceiveDrop::ALL.into_iter().enumerate() {
            (0..=count).for_each(|_| counters.receive_dropped(reason));
        }
        for (count, reason) in TransmitDrop::ALL.into_iter().enumerate() {
            (0..=count).for_each(|_| counters.transmit_dropped(reason));
        }
        let snapshot = counters.snapshot();
        let receive: Vec<_> = snapshot
            .receive
            .drops
            .iter()
            .map(|(_, count)| *count)
            .collect();
        let transmit: Vec<_> = snapshot
            .transmit
            .drops
            .iter()
            .map(|(_, count)| *count)
            .collect();
        assert_eq!(
            (receive, transmit),
            (vec![1, 2, 3, 4, 5], vec![1, 2, 3, 4, 5])
        );
        assert_eq!(snapshot.receive.dropped(ReceiveDrop::BufferTooSmall), 3);
        assert_eq!(snapshot.transmit.dropped(TransmitDrop::NoSession), 1);
        let names: Vec<_> = ReceiveDrop::ALL
            .iter()
            .map(|reason| reason.name())
            .collect();
        assert_eq!(
            names.iter().collect::<std::collections::HashSet<_>>().len(),
            5
        );
    }
}

//! Why a frame left when it did: the record a scheduler keeps of its own decisions.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::scheduler::{DeviceHandle, GrantReason};
use crate::time::MonotonicTime;

/// What a frame waited for. The causes of one frame add up to the time from its arrival to its
/// start, but for [`WaitCause::Credit`], which lies before the arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WaitCause {
    /// The receiver had no buffers: the caller could not hand the frame over.
    Credit,
    /// Earlier frames of the same device.
    OwnQueue,
    /// The device's peak rate or its limit of operations.
    OwnLimit,
    /// The peak rate of the device's VM.
    VmLimit,
    /// Frames of others that left out of their reservations.
    OthersReserved,
    /// Frames of others that left as their share of what nobody reserved.
    OthersShare,
    /// The link: the frame being sent, a caller that came late, rounding of clocks.
    Link,
}

impl WaitCause {
    /// All causes, in the order of [`Waits`].
    pub const ALL: [Self; 7] = [
        Self::Credit,
        Self::OwnQueue,
        Self::OwnLimit,
        Self::VmLimit,
        Self::OthersReserved,
        Self::OthersShare,
        Self::Link,
    ];

    /// The name that reports and serde use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Credit => "credit",
            Self::OwnQueue => "own-queue",
            Self::OwnLimit => "own-limit",
            Self::VmLimit => "vm-limit",
            Self::OthersReserved => "others-reserved",
            Self::OthersShare => "others-share",
            Self::Link => "link",
        }
    }
}

/// Nanoseconds by cause, each at most 4.29 s: longer waits are written down as that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Waits([u32; WaitCause::ALL.len()]);

impl Waits {
    /// How long the frame waited for `cause`.
    #[must_use]
    pub fn of(&self, cause: WaitCause) -> Duration {
        let nanos = self.0.get(index(cause)).copied().unwrap_or_default();
        Duration::from_nanos(nanos.into())
    }

    /// Nanoseconds by cause, in the order of [`WaitCause::ALL`].
    pub(crate) fn new(nanos: [u64; WaitCause::ALL.len()]) -> Self {
        Self(nanos.map(|nanos| u32::try_from(nanos).unwrap_or(u32::MAX)))
    }
}

const fn index(cause: WaitCause) -> usize {
    match cause {
        WaitCause::Credit => 0,
        WaitCause::OwnQueue => 1,
        WaitCause::OwnLimit => 2,
        WaitCause::VmLimit => 3,
        WaitCause::OthersReserved => 4,
        WaitCause::OthersShare => 5,
        WaitCause::Link => 6,
    }
}

/// One frame that was let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Decision {
    /// Whose frame.
    pub device: DeviceHandle,
    /// What it was charged with.
    pub bytes: u32,
    /// Its class.
    pub class: u8,
    /// Out of which right it left.
    pub reason: GrantReason,
    /// When it was enqueued.
    pub arrived: MonotonicTime,
    /// From when it could have left as far as its own device and VM are concerned: it was the
    /// device's first frame, and no peak held it.
    pub eligible: MonotonicTime,
    /// When it was let go.
    pub started: MonotonicTime,
    /// What it waited for.
    pub waits: Waits,
}

/// Decisions that a scheduler remembers: 72 KiB, so that they stay in a core's second cache.
pub const DECISIONS_MAX: usize = 1_024;

/// The same as a number of decisions made.
#[expect(clippy::as_conversions, reason = "1,024 is 1,024 in any type")]
const LAP: u64 = DECISIONS_MAX as u64;

/// The decisions made last.
#[derive(Debug)]
pub(crate) struct DecisionRing {
    ring: Vec<Decision>,
    total: u64,
}

impl Default for DecisionRing {
    fn default() -> Self {
        Self {
            ring: Vec::with_capacity(DECISIONS_MAX),
            total: 0,
        }
    }
}

impl DecisionRing {
    /// Inlined into every grant: a call would copy the decision once more.
    #[inline]
    pub(crate) fn push(&mut self, decision: Decision) {
        let next = self.next();
        match self.ring.get_mut(next) {
            Some(oldest) => *oldest = decision,
            None => self.push_first_lap(decision),
        }
        self.total = self.total.saturating_add(1);
    }

    #[cold]
    fn push_first_lap(&mut self, decision: Decision) {
        self.ring.push(decision);
    }

    /// Where the next one goes.
    fn next(&self) -> usize {
        usize::try_from(self.total % LAP).unwrap_or(0)
    }

    /// Oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Decision> {
        let (newer, older) = self.ring.split_at(self.next().min(self.ring.len()));
        older.iter().chain(newer)
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_have_places_of_their_own() {
        let waits = Waits::new([1, 2, 3, 4, 5, 6, 7]);
        for (nanos, cause) in (1..).zip(WaitCause::ALL) {
            assert_eq!(
                waits.of(cause),
                Duration::from_nanos(nanos),
                "{}",
                cause.name()
            );
        }
        let waits = Waits::new([0, 0, 0, 0, 0, 0, u64::MAX]);
        assert_eq!(waits.of(WaitCause::Link).as_nanos(), u128::from(u32::MAX));
    }
}

//! The time stamp every call of this crate takes as an argument.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A point in time in nanoseconds since an origin the caller chooses once.
///
/// Unlike `std::time::Instant` it can be built from a number, so tests, simulations and replays of
/// recorded traces set the time themselves. 64 bits last for 584 years; arithmetic saturates.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct MonotonicTime(u64);

impl MonotonicTime {
    /// The origin.
    pub const ZERO: Self = Self(0);

    /// The point `nanos` nanoseconds after the origin.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the origin.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The point `duration` later, or the latest point there is.
    #[must_use]
    pub fn saturating_add(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }

    /// The time since `earlier`, or zero when `earlier` is in fact later.
    #[must_use]
    pub const fn saturating_duration_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_at_both_ends() {
        let late = MonotonicTime::from_nanos(u64::MAX - 1);
        assert_eq!(
            late.saturating_add(Duration::from_secs(1)).as_nanos(),
            u64::MAX
        );
        assert_eq!(late.saturating_add(Duration::MAX).as_nanos(), u64::MAX);
        assert_eq!(
            MonotonicTime::ZERO.saturating_duration_since(late),
            Duration::ZERO
        );
        assert_eq!(
            MonotonicTime::from_nanos(1_500)
                .saturating_duration_since(MonotonicTime::from_nanos(500)),
            Duration::from_micros(1)
        );
    }
}

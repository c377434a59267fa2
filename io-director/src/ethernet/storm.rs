//! Limits for frames to groups: a token bucket for broadcast and one for other groups.

use fabric_config::{MacAddress, StormLimits};
use qos::MonotonicTime;

use super::switch::DropReason;

const NANOS_PER_SECOND: u64 = 1_000_000_000;
/// Frames that pass at once at least, or those of a tenth of a second.
const BURST_FRAMES_MIN: u64 = 64;
const BURST_NANOS: u64 = NANOS_PER_SECOND / 10;

/// Both limits of one source.
#[derive(Debug, Clone)]
pub(super) struct Storm {
    broadcast: Bucket,
    multicast: Bucket,
}

impl Storm {
    pub(super) fn new(limits: StormLimits) -> Self {
        Self {
            broadcast: Bucket::new(limits.broadcast),
            multicast: Bucket::new(limits.multicast),
        }
    }

    /// Takes a frame to `group` into account.
    ///
    /// # Errors
    /// It is too many.
    pub(super) fn pass(&mut self, now: MonotonicTime, group: MacAddress) -> Result<(), DropReason> {
        let (bucket, reason) = match group {
            MacAddress::BROADCAST => (&mut self.broadcast, DropReason::Broadcast),
            _ => (&mut self.multicast, DropReason::Multicast),
        };
        bucket.take(now).then_some(()).ok_or(reason)
    }
}

/// A token bucket, kept as the time at which it will be full.
#[derive(Debug, Clone)]
struct Bucket {
    frame_nanos: u64,
    burst_nanos: u64,
    full_at: u64,
}

impl Bucket {
    /// A full one of `rate` frames a second, at least 1.
    fn new(rate: u32) -> Self {
        let frame_nanos = NANOS_PER_SECOND / u64::from(rate.max(1));
        Self {
            frame_nanos,
            burst_nanos: BURST_NANOS.max(BURST_FRAMES_MIN * frame_nanos),
            full_at: 0,
        }
    }

    fn take(&mut self, now: MonotonicTime) -> bool {
        let now = now.as_nanos();
        let full_at = self.full_at.max(now).saturating_add(self.frame_nanos);
        let passes = full_at - now <= self.burst_nanos;
        if passes {
            self.full_at = full_at;
        }
        passes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn burst_passes_and_then_the_rate() {
        let mut bucket = Bucket::new(1000);
        let at = MonotonicTime::from_nanos(5);
        assert_eq!((0..1000).filter(|_| bucket.take(at)).count(), 100);
        let mut passed = 0;
        for micros in 0..2_000_000_u64 {
            passed += u64::from(bucket.take(MonotonicTime::from_nanos(5 + micros * 1000)));
        }
        assert!((1999..=2000).contains(&passed), "{passed}");
        let mut slow = Bucket::new(1);
        assert_eq!((0..1000).filter(|_| slow.take(at)).count(), 64);
    }

    #[test]
    fn n09_flood_of_one_kind_leaves_the_other_alone() {
        let mut storm = Storm::new(StormLimits {
            broadcast: 10,
            multicast: 10,
        });
        let now = MonotonicTime::ZERO;
        while storm.pass(now, MacAddress::BROADCAST).is_ok() {}
        let group = MacAddress([1, 0, 0x5e, 0, 0, 1]);
        assert_eq!(storm.pass(now, group), Ok(()));
        assert_eq!(
            storm.pass(now, MacAddress::BROADCAST),
            Err(DropReason::Broadcast)
        );
    }

    proptest! {
        /// In no interval more than its length at the rate, and the burst.
        #[test]
        fn no_interval_has_more_than_rate_and_burst(
            rate in 1_u32..100_000,
            steps in prop::collection::vec(0_u64..5_000_000, 1..300),
        ) {
            let mut bucket = Bucket::new(rate);
            let (mut now, mut passed) = (0, 0_u64);
            for step in steps {
                now += step;
                passed += u64::from(bucket.take(MonotonicTime::from_nanos(now)));
                prop_assert!(passed <= (now + bucket.burst_nanos) / bucket.frame_nanos);
            }
        }
    }
}

//! Whether a device got what it was promised, interval by interval.
//!
//! ```text
//!           VIOLATIONS_TO_RAISE violated intervals in a row
//!   quiet -------------------------------------------------> alarmed
//!     ^                                                        |
//!     +--------------------------------------------------------+
//!           INTERVALS_TO_CLEAR others in a row
//! ```
//!
//! An interval is **violated** when the device had frames queued all the time and got less than its
//! committed rate times the interval, less [`TOLERANCE_PERCENT`] of that and one largest frame. So
//! that one frame is little beside what is promised, an interval lasts as long as
//! [`FRAMES_PROMISED_MIN`] of them take at the committed rate, but not above
//! [`INTERVAL_NANOS_MAX`]. A device that asked for less than it was promised is not wronged. One
//! that a peak of its own holds back is when that peak, with a burst of less than two frames, is
//! worth less than the promise: whoever gave it those words wants to know.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::rate::BitRate;
use crate::scheduler::DeviceStatistics;
use crate::time::MonotonicTime;

/// What of a promise may be missing in one interval: frames underway at its ends, and a scheduler
/// whose thread the machine let wait.
pub const TOLERANCE_PERCENT: u64 = 5;

/// Largest frames that an interval promises at least.
pub const FRAMES_PROMISED_MIN: u64 = 10;

/// An interval is not made longer than this, however little is promised: 10 s.
pub const INTERVAL_NANOS_MAX: u64 = 10_000_000_000;

/// What of an interval may be missing from the time with frames queued: a scheduler's clock stands
/// still between two calls.
const UNOBSERVED_PERCENT: u64 = 1;

/// Violated intervals in a row that raise the alarm.
pub const VIOLATIONS_TO_RAISE: u32 = 2;

/// Intervals in a row without a violation that clear it.
pub const INTERVALS_TO_CLEAR: u32 = 10;

/// Violated intervals that a report remembers, the last ones.
pub const VIOLATIONS_MAX: usize = 16;

/// What became of one device in one interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interval {
    /// Its end.
    pub end: MonotonicTime,
    /// Its length, nanoseconds.
    pub nanos: u64,
    /// The committed rate.
    pub promised: BitRate,
    /// What was queued meanwhile.
    pub offered: BitRate,
    /// What left.
    pub achieved: BitRate,
    /// Whether frames were queued all the time.
    pub backlogged: bool,
    /// Whether the promise was broken.
    pub violated: bool,
}

/// The alarm of a device changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum AlarmChange {
    /// The promise is being broken.
    Raised,
    /// It is kept again.
    Cleared,
}

/// All intervals of one device and direction so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlaReport {
    /// Intervals.
    pub intervals: u64,
    /// Those in which the device had frames queued all the time; the next two are about them.
    pub backlogged: u64,
    /// The least it got in one of them.
    pub achieved_min: Option<BitRate>,
    /// What it got over all of them.
    pub achieved_mean: Option<BitRate>,
    /// Violated intervals.
    pub violations: u64,
    /// How often the alarm was raised.
    pub alarms: u64,
    /// Whether it is raised now.
    pub alarmed: bool,
    /// The last interval.
    pub last: Option<Interval>,
    /// The last violated ones, oldest first: at most [`VIOLATIONS_MAX`].
    pub last_violations: VecDeque<Interval>,
}

/// Measures one device in one direction.
#[derive(Debug, Default)]
pub struct SlaMeter {
    before: Option<(MonotonicTime, BitRate, DeviceStatistics)>,
    report: SlaReport,
    backlogged_nanos: u64,
    backlogged_bytes: u64,
    /// Intervals in a row that speak against the present state of the alarm.
    contrary: u32,
}

impl SlaMeter {
    /// Ends an interval, if it has been long enough, and begins the next: `statistics` are the
    /// device's at `now`, `promised` its committed rate, `frame_bytes_max` the largest frame of the
    /// hop.
    ///
    /// The first call only begins one, as does a call whose counters are below those before: the
    /// device was removed and added again.
    pub fn end_interval(
        &mut self,
        now: MonotonicTime,
        promised: BitRate,
        frame_bytes_max: u32,
        statistics: &DeviceStatistics,
    ) -> Option<AlarmChange> {
        if let Some((began, promised_before, _)) = &mut self.before {
            let nanos = saturating_nanos(now.saturating_duration_since(*began));
            // A promise that changed meanwhile is held against the lower one.
            let least = promised.min(*promised_before);
            let enough_bits = 8 * FRAMES_PROMISED_MIN * u64::from(frame_bytes_max);
            if !least.is_zero() && nanos < INTERVAL_NANOS_MAX && least.bits_in(nanos) < enough_bits
            {
                *promised_before = least;
                return None;
            }
        }
        let before = self.before.replace((now, promised, *statistics));
        let (began, promised_before, before) = before?;
        let nanos = saturating_nanos(now.saturating_duration_since(began));
        let achieved = statistics
            .granted_bytes()
            .checked_sub(before.granted_bytes())?;
        let offered = statistics.offered.bytes.checked_sub(before.offered.bytes)?;
        let queued = statistics.backlogged.checked_sub(before.backlogged)?;
        if nanos == 0 {
            return None;
        }
        // Nothing but a grant empties a queue; and where nothing moves no clock may move either.
        let stuck = achieved == 0 && before.queued_frames > 0;
        let observed = u128::from(nanos) * u128::from(100 - UNOBSERVED_PERCENT) / 100;
        let backlogged = stuck || queued.as_nanos() >= observed;
        let promised = promised.min(promised_before);
        let promised_bits = promised.bits_in(nanos);
        let tolerated_bits = (promised_bits / 100)
            .saturating_mul(TOLERANCE_PERCENT)
            .saturating_add(8 * u64::from(frame_bytes_max));
        let violated =
            backlogged && achieved.saturating_mul(8).saturating_add(tolerated_bits) < promised_bits;
        let interval = Interval {
            end: now,
            nanos,
            promised,
            offered: BitRate::of_bytes(offered, nanos),
            achieved: BitRate::of_bytes(achieved, nanos),
            backlogged,
            violated,
        };
        self.count(interval, achieved);
        self.judge(violated)
    }

    /// All intervals so far.
    #[must_use]
    pub fn report(&self) -> &SlaReport {
        &self.report
    }

    fn count(&mut self, interval: Interval, achieved_bytes: u64) {
        let report = &mut self.report;
        report.intervals = report.intervals.saturating_add(1);
        report.last = Some(interval);
        if interval.backlogged {
            report.backlogged = report.backlogged.saturating_add(1);
            self.backlogged_nanos = self.backlogged_nanos.saturating_add(interval.nanos);
            self.backlogged_bytes = self.backlogged_bytes.saturating_add(achieved_bytes);
            let least = report.achieved_min.unwrap_or(interval.achieved);
            report.achieved_min = Some(least.min(interval.achieved));
            report.achieved_mean = Some(BitRate::of_bytes(
                self.backlogged_bytes,
                self.backlogged_nanos,
            ));
        }
        if interval.violated {
            report.violations = report.violations.saturating_add(1);
            if report.last_violations.len() >= VIOLATIONS_MAX {
                report.last_violations.pop_front();
            }
            report.last_violations.push_back(interval);
        }
    }

    fn judge(&mut self, violated: bool) -> Option<AlarmChange> {
        let report = &mut self.report;
        if violated == report.alarmed {
            self.contrary = 0;
            return None;
        }
        self.contrary += 1;
        let enough = if report.alarmed {
            INTERVALS_TO_CLEAR
        } else {
            VIOLATIONS_TO_RAISE
        };
        if self.contrary < enough {
            return None;
        }
        self.contrary = 0;
        report.alarmed = violated;
        if violated {
            report.alarms = report.alarms.saturating_add(1);
            return Some(AlarmChange::Raised);
        }
        Some(AlarmChange::Cleared)
    }
}

fn saturating_nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::Granted;

    const INTERVAL: Duration = Duration::from_millis(100);
    const FRAME_BYTES_MAX: u32 = 4096;

    /// A device with 80M committed: 1,000,000 bytes an interval.
    struct Fed {
        meter: SlaMeter,
        now: MonotonicTime,
        statistics: DeviceStatistics,
    }

    impl Fed {
        fn new() -> Self {
            let mut fed = Self {
                meter: SlaMeter::default(),
                now: MonotonicTime::ZERO,
                statistics: DeviceStatistics::default(),
            };
            assert_eq!(fed.end(), None);
            fed
        }

        fn end(&mut self) -> Option<AlarmChange> {
            let promised = "80M".parse().unwrap();
            self.meter
                .end_interval(self.now, promised, FRAME_BYTES_MAX, &self.statistics)
        }

        /// One interval in which `offered` bytes come and `achieved` leave.
        fn interval(
            &mut self,
            offered: u64,
            achieved: u64,
            backlogged: Duration,
        ) -> Option<AlarmChange> {
            self.now = self.now.saturating_add(INTERVAL);
            let statistics = &mut self.statistics;
            statistics.offered.bytes += offered;
            statistics.excess = Granted {
                bytes: statistics.excess.bytes + achieved,
                frames: statistics.excess.frames + 1,
            };
            statistics.backlogged += backlogged;
            self.end()
        }
    }

    #[test]
    fn tolerance_is_five_percent_and_one_frame() {
        let mut fed = Fed::new();
        // 1,000,000 less 50,000 less 4,096.
        assert_eq!(fed.interval(2_000_000, 945_904, INTERVAL), None);
        assert_eq!(fed.meter.report().violations, 0);
        assert_eq!(fed.interval(2_000_000, 945_903, INTERVAL), None);
        let report = fed.meter.report();
        assert_eq!((report.intervals, report.backlogged), (2, 2));
        assert_eq!(report.violations, 1);
        let last = report.last.unwrap();
        assert!(last.violated && last.backlogged);
        assert_eq!(last.promised.to_string(), "80M");
        assert_eq!(last.offered.to_string(), "160M");
        // 945,903 x 8 bits in 100 ms, and both intervals together.
        assert_eq!(report.achieved_min, Some(rate(75_672_240)));
        assert_eq!(report.achieved_mean, Some(rate(75_672_280)));
    }

    fn rate(bits_per_second: u64) -> BitRate {
        BitRate::from_bits_per_second(bits_per_second)
    }

    #[test]
    fn device_that_asks_for_less_is_not_wronged() {
        let mut fed = Fed::new();
        assert_eq!(
            fed.interval(500_000, 500_000, Duration::from_millis(98)),
            None
        );
        assert_eq!(fed.interval(0, 0, Duration::ZERO), None);
        let report = fed.meter.report();
        assert_eq!((report.intervals, report.backlogged), (2, 0));
        assert_eq!((report.violations, report.achieved_min), (0, None));
    }

    #[test]
    fn stuck_device_is_backlogged_though_no_clock_moves() {
        let mut fed = Fed::new();
        fed.statistics.queued_frames = 3;
        assert_eq!(fed.interval(4500, 0, Duration::ZERO), None);
        assert_eq!(fed.meter.report().violations, 0);
        assert_eq!(fed.interval(0, 0, Duration::ZERO), None);
        assert_eq!(fed.meter.report().violations, 1);
    }

    #[test]
    fn alarm_needs_two_violations_and_ten_quiet_intervals() {
        let mut fed = Fed::new();
        assert_eq!(fed.interval(2_000_000, 0, INTERVAL), None);
        assert_eq!(fed.interval(2_000_000, 1_000_000, INTERVAL), None);
        assert_eq!(fed.interval(2_000_000, 0, INTERVAL), None);
        assert_eq!(
            fed.interval(2_000_000, 0, INTERVAL),
            Some(AlarmChange::Raised)
        );
        for _ in 0..9 {
            assert_eq!(fed.interval(2_000_000, 1_000_000, INTERVAL), None);
        }
        assert!(fed.meter.report().alarmed);
        assert_eq!(
            fed.interval(0, 0, Duration::ZERO),
            Some(AlarmChange::Cleared)
        );
        let report = fed.meter.report();
        assert_eq!(
            (report.violations, report.alarms, report.alarmed),
            (3, 1, false)
        );
    }

    #[test]
    fn violations_are_remembered_up_to_a_limit() {
        let mut fed = Fed::new();
        for _ in 0..100 {
            let _change = fed.interval(2_000_000, 0, INTERVAL);
        }
        let report = fed.meter.report();
        assert_eq!(report.last_violations.len(), VIOLATIONS_MAX);
        assert_eq!(report.last_violations.back().unwrap().end, fed.now);
        assert_eq!(report.violations, 100);
    }

    #[test]
    fn device_that_comes_back_begins_anew() {
        let mut fed = Fed::new();
        assert_eq!(fed.interval(2_000_000, 1_000_000, INTERVAL), None);
        fed.statistics = DeviceStatistics::default();
        assert_eq!(fed.end(), None);
        assert_eq!(fed.meter.report().intervals, 1);
        assert_eq!(fed.interval(2_000_000, 1_000_000, INTERVAL), None);
        assert_eq!(fed.meter.report().intervals, 2);
    }

    /// A megabyte at 8 Mb/s takes 1 s: one of ten would be lost in the tolerance of a frame.
    #[test]
    fn interval_lasts_until_a_frame_is_little() {
        let mut meter = SlaMeter::default();
        let at = |millis: u64| MonotonicTime::from_nanos(millis * 1_000_000);
        let mut statistics = DeviceStatistics {
            queued_frames: 1,
            ..DeviceStatistics::default()
        };
        for millis in (0..=20_000).step_by(100) {
            let change = meter.end_interval(at(millis), rate(8_000_000), 1_000_000, &statistics);
            assert_eq!(change.is_some(), millis == 20_000, "at {millis} ms");
            statistics.backlogged += INTERVAL;
        }
        let report = meter.report();
        assert_eq!((report.intervals, report.violations), (2, 2));
        assert_eq!(report.last.unwrap().nanos, INTERVAL_NANOS_MAX);
    }

    #[test]
    fn promise_that_was_raised_meanwhile_counts_from_the_next_interval() {
        let mut meter = SlaMeter::default();
        let statistics = DeviceStatistics::default();
        let at = |millis: u64| MonotonicTime::from_nanos(millis * 1_000_000);
        let low = rate(8_000_000);
        let high = rate(80_000_000);
        assert_eq!(meter.end_interval(at(0), low, 1500, &statistics), None);
        assert_eq!(meter.end_interval(at(100), high, 1500, &statistics), None);
        assert_eq!(meter.report().last.unwrap().promised, low);
    }
}

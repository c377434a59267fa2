//! The pace of the link itself, and the time it lost.

use serde::{Deserialize, Serialize};

use crate::clock::RateClock;
use crate::rate::BitRate;
use crate::time::MonotonicTime;

/// What a late caller may catch up at least in bytes, and in time unless another is set.
const CATCH_UP_BYTES: u64 = 2 * 64 * 1024;
const CATCH_UP_NANOS: u64 = 1_000_000;
/// See [`Link::late_nanos`]: 34 ms.
const LATE_NANOS_MIN: u64 = 34_000_000;

/// A link that is busy until `busy_until` with the frames already granted.
///
/// Two times run here. *Time* is what the caller says. *Service time* is time without the spans in
/// which frames waited, the link was free, and the caller did not come for longer than
/// `catch_up_nanos`. What a stalled link did not carry cannot be made up for later: without this
/// every reservation would try, and best effort would starve for many times the length of the
/// stall.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Link {
    rate: BitRate,
    busy_until: RateClock,
    /// What is asked for, and what is in force at the present rate.
    catch_up_asked_nanos: u64,
    catch_up_nanos: u64,
    now: u64,
    lost_nanos: u64,
    /// The largest frame so far.
    bytes_max: u32,
    late_nanos: u64,
}

impl Link {
    pub(crate) fn new(rate: BitRate) -> Self {
        Self {
            rate,
            busy_until: RateClock::default(),
            catch_up_asked_nanos: CATCH_UP_NANOS,
            catch_up_nanos: catch_up_nanos(rate, CATCH_UP_NANOS),
            now: 0,
            lost_nanos: 0,
            bytes_max: 0,
            late_nanos: LATE_NANOS_MIN,
        }
    }

    pub(crate) fn rate(&self) -> BitRate {
        self.rate
    }

    /// The latest time any caller gave: time does not run backwards here.
    pub(crate) fn observe(&mut self, now: MonotonicTime) -> u64 {
        self.now = self.now.max(now.as_nanos());
        self.now
    }

    pub(crate) fn now(&self) -> u64 {
        self.now
    }

    pub(crate) fn service_time(&self) -> u64 {
        self.now.saturating_sub(self.lost_nanos)
    }

    /// The service time at `time`, which is not after now; not exact within a stall, where service
    /// time stands still.
    pub(crate) fn service_time_at(&self, time: u64) -> u64 {
        let latest = self.service_time();
        let earliest = latest.saturating_sub(self.catch_up_nanos);
        time.saturating_sub(self.lost_nanos).clamp(earliest, latest)
    }

    /// Frames wait since `time`, and none did before: idle time earns nothing.
    pub(crate) fn begin_backlog(&mut self, time: u64) {
        self.busy_until.catch_up(time);
    }

    /// Counts as lost what a caller with waiting frames cannot catch up any more.
    pub(crate) fn forget_stall(&mut self) {
        let earliest = self.now.saturating_sub(self.catch_up_nanos);
        let lost = earliest.saturating_sub(self.busy_until.time());
        if lost > 0 {
            self.lost_nanos = self.lost_nanos.saturating_add(lost);
            self.busy_until.catch_up(earliest);
        }
    }

    /// When the next frame may leave; `None` while the rate is zero.
    pub(crate) fn free_at(&self) -> Option<u64> {
        (!self.rate.is_zero()).then(|| self.busy_until.time())
    }

    /// How late a frame may be that will be out in time: by what a late caller catches up, and the
    /// largest frame before it. Twice that, deadlines are kept apart; what is later than that has
    /// missed a promise long ago, and leaves in the order it came.
    pub(crate) fn late_nanos(&self) -> u64 {
        self.late_nanos
    }

    fn follow_lateness(&mut self) {
        let frame_nanos = self.rate.transmission_nanos(self.bytes_max.into());
        let late = self.catch_up_nanos.saturating_add(frame_nanos);
        self.late_nanos = late.saturating_mul(2).max(LATE_NANOS_MIN);
    }

    /// Takes the time of one frame; returns it.
    pub(crate) fn send(&mut self, bytes: u32) -> u64 {
        if bytes > self.bytes_max {
            self.bytes_max = bytes;
            self.follow_lateness();
        }
        let before = self.busy_until.time();
        self.busy_until.advance(bytes, self.rate.bits_per_second());
        self.busy_until.time().saturating_sub(before)
    }

    /// When the frame sent last will be out, in service time.
    pub(crate) fn sent_at(&self) -> u64 {
        self.busy_until.time().saturating_sub(self.lost_nanos)
    }

    /// Changes the pace, also of the frame being sent.
    pub(crate) fn set_rate(&mut self, rate: BitRate) {
        let (old, new) = (self.rate.bits_per_second(), rate.bits_per_second());
        if self.busy_until.time() > self.now {
            self.busy_until.rescale(self.now, old, new);
        }
        self.rate = rate;
        self.catch_up_nanos = catch_up_nanos(rate, self.catch_up_asked_nanos);
        self.follow_lateness();
    }

    /// Sets what a late caller may catch up.
    pub(crate) fn set_catch_up(&mut self, nanos: u64) {
        self.catch_up_asked_nanos = nanos;
        self.catch_up_nanos = catch_up_nanos(self.rate, nanos);
        self.follow_lateness();
    }
}

fn catch_up_nanos(rate: BitRate, asked_nanos: u64) -> u64 {
    if rate.is_zero() {
        asked_nanos
    } else {
        asked_nanos.max(rate.transmission_nanos(CATCH_UP_BYTES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIGABIT: BitRate = BitRate::from_bits_per_second(1_000_000_000);

    #[test]
    fn a_late_caller_catches_up_a_little_and_loses_the_rest() {
        let mut link = Link::new(GIGABIT);
        assert_eq!(link.catch_up_nanos, 1_048_576, "two frames of 64 KiB");
        link.begin_backlog(0);
        link.send(1_250);
        assert_eq!(link.free_at(), Some(10_000));
        assert_eq!(link.observe(MonotonicTime::from_nanos(500_000)), 500_000);
        link.forget_stall();
        assert_eq!(
            (link.free_at(), link.service_time()),
            (Some(10_000), 500_000)
        );
        assert_eq!(
            link.observe(MonotonicTime::from_nanos(10_000_000_000)),
            10_000_000_000
        );
        link.forget_stall();
        assert_eq!(link.free_at(), Some(10_000_000_000 - 1_048_576));
        assert_eq!(link.service_time(), 10_000 + 1_048_576);
        assert_eq!(
            link.service_time_at(5_000_000_000),
            10_000,
            "within the stall"
        );
    }

    #[test]
    fn idle_time_earns_nothing() {
        let mut link = Link::new(GIGABIT);
        link.begin_backlog(5_000_000);
        link.send(1_250);
        assert_eq!(link.free_at(), Some(5_010_000));
    }

    #[test]
    fn a_new_rate_reaches_the_frame_being_sent() {
        let mut link = Link::new(BitRate::from_bits_per_second(8_000));
        link.send(1_000);
        assert_eq!(link.free_at(), Some(1_000_000_000));
        assert_eq!(
            link.observe(MonotonicTime::from_nanos(500_000_000)),
            500_000_000
        );
        link.set_rate(BitRate::from_bits_per_second(8_000_000));
        assert_eq!(link.free_at(), Some(500_500_000));
        link.set_rate(BitRate::ZERO);
        assert_eq!(link.free_at(), None);
    }
}

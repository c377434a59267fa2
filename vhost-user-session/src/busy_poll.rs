//! Whether to look at an empty ring for a while, or to sleep at once.
//!
//! A kick and the wake-up behind it cost tens of microseconds. A thread that looks at the ring
//! instead spares both, and burns its processor while nothing comes. So it looks only if the last
//! time that it had nothing to do was short: a driver that asks again as soon as it is answered is
//! polled, and one that thinks in between, or is idle, costs one look that was in vain.

use std::time::{Duration, Instant};

/// The habit of one ring. Pure; the caller has the clock.
#[derive(Debug, Clone, Copy)]
pub struct BusyPoll {
    longest: Duration,
    /// The last pause was no longer than `longest`.
    worth_it: bool,
    empty_since: Option<Instant>,
}

impl BusyPoll {
    /// Looks for up to `longest`; never, if that is zero.
    #[must_use]
    pub const fn new(longest: Duration) -> Self {
        Self {
            longest,
            worth_it: false,
            empty_since: None,
        }
    }

    /// The ring is empty since `now`: for how long to look at it.
    pub fn emptied(&mut self, now: Instant) -> Duration {
        self.empty_since.get_or_insert(now);
        if self.worth_it {
            self.longest
        } else {
            Duration::ZERO
        }
    }

    /// There is something in it, since `now`.
    pub fn filled(&mut self, now: Instant) {
        if let Some(since) = self.empty_since.take() {
            self.worth_it = now.saturating_duration_since(since) < self.longest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_micros(50);

    #[test]
    fn short_pauses_are_polled_and_one_long_pause_ends_that() {
        let mut poll = BusyPoll::new(LONGEST);
        let mut now = Instant::now();
        let mut pause = |length: u64| {
            let looks = poll.emptied(now);
            now += Duration::from_micros(length);
            poll.filled(now);
            looks
        };
        let pauses = [10, 10, 49, 50, 10, 1_000_000, 10];
        let zero = Duration::ZERO;
        let looks = [zero, LONGEST, LONGEST, LONGEST, zero, LONGEST, zero];
        assert_eq!(pauses.map(&mut pause), looks);
    }

    #[test]
    fn a_pause_begins_once() {
        let mut poll = BusyPoll::new(LONGEST);
        let start = Instant::now();
        poll.emptied(start);
        // A wake-up for something else than the ring.
        poll.emptied(start + Duration::from_micros(40));
        poll.filled(start + Duration::from_micros(60));
        assert_eq!(poll.emptied(start), Duration::ZERO);
    }

    #[test]
    fn without_a_time_nothing_is_polled() {
        let mut poll = BusyPoll::new(Duration::ZERO);
        let now = Instant::now();
        poll.emptied(now);
        poll.filled(now);
        assert_eq!(poll.emptied(now), Duration::ZERO);
    }
}

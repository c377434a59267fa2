//! A clock that advances by what bytes cost at a rate, exactly: what a division leaves over is
//! carried into the next one.

use serde::{Deserialize, Serialize};

/// What one byte costs on a clock that runs at one bit per second, in bit-nanoseconds.
const BIT_NANOS_PER_BYTE: u64 = 8_000_000_000;

/// A point in time of `whole + remainder / rate`.
///
/// The unit of `whole` is the nanosecond if `rate` is in bits per second, and the tick of
/// [`crate::order::TICK_NANOS`] if it is that many times the bits per second: clocks of the share
/// criterion run up to 80,000 times faster than time (a weight of 10 Mb/s alone on 800 Gb/s), and in
/// ticks 64 bits last for four years of that. All arithmetic saturates.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct RateClock {
    whole: u64,
    /// In units of `1 / rate`, below `rate`.
    remainder: u64,
    rate: u64,
}

impl RateClock {
    pub(crate) fn at(whole: u64) -> Self {
        Self {
            whole,
            remainder: 0,
            rate: 0,
        }
    }

    /// The same point on a clock that will run at `rate`.
    pub(crate) fn with_rate(whole: u64, rate: u64) -> Self {
        Self {
            rate,
            ..Self::at(whole)
        }
    }

    /// The rate it ran at last.
    pub(crate) fn rate(&self) -> u64 {
        self.rate
    }

    /// The time, rounded up: a clock is never read too early.
    pub(crate) fn time(&self) -> u64 {
        self.whole.saturating_add(u64::from(self.remainder > 0))
    }

    /// Sets the clock to `whole` when it shows less.
    pub(crate) fn catch_up(&mut self, whole: u64) {
        if self.whole < whole {
            self.whole = whole;
            self.remainder = 0;
        }
    }

    /// Advances by what `bytes` cost at `rate`.
    ///
    /// Exact as long as the rate stays; a change of rate costs less than one unit. At rate zero
    /// the clock runs to its end.
    pub(crate) fn advance(&mut self, bytes: u32, rate: u64) {
        if rate != self.rate {
            self.change_rate(rate);
        }
        // The narrow division is several times faster, and enough for a frame of 1 GiB.
        let narrow = u64::from(bytes)
            .checked_mul(BIT_NANOS_PER_BYTE)
            .and_then(|cost| cost.checked_add(self.remainder));
        let (whole, remainder) = match narrow {
            _ if rate == 0 => (u64::MAX, 0),
            Some(cost) => (cost / rate, cost % rate),
            None => {
                let cost =
                    u128::from(bytes) * u128::from(BIT_NANOS_PER_BYTE) + u128::from(self.remainder);
                let (whole, remainder) = (cost / u128::from(rate), cost % u128::from(rate));
                (
                    u64::try_from(whole).unwrap_or(u64::MAX),
                    u64::try_from(remainder).unwrap_or(0),
                )
            }
        };
        self.whole = self.whole.saturating_add(whole);
        self.remainder = remainder;
    }

    /// Keeps the remainder the same part of a unit.
    #[cold]
    fn change_rate(&mut self, rate: u64) {
        let scaled = (u128::from(self.remainder) * u128::from(rate))
            .checked_div(u128::from(self.rate))
            .unwrap_or(0);
        self.remainder = u64::try_from(scaled).unwrap_or(0);
        self.rate = rate;
    }

    /// Stretches the distance to `origin` by `old_rate / new_rate`: the bits between the two stay
    /// the same when the rate they are counted at changes. Zero on either side ends the distance.
    ///
    /// Exact for a clock ahead of `origin`; one behind comes less than a nanosecond too close.
    pub(crate) fn rescale(&mut self, origin: u64, old_rate: u64, new_rate: u64) {
        if old_rate == new_rate {
            return;
        }
        let wide = u128::from;
        let narrow = |value: u128| u64::try_from(value).unwrap_or(u64::MAX);
        *self = match (old_rate, new_rate) {
            (0, _) | (_, 0) => Self::with_rate(origin, new_rate),
            (old, new) if self.whole >= origin => {
                // A remainder of another rate, of a link too slow for what was promised, rounds up.
                let carried = if self.rate == old_rate {
                    self.remainder
                } else {
                    old
                };
                let cost = wide(self.whole - origin) * wide(old) + wide(carried);
                Self {
                    whole: origin.saturating_add(narrow(cost / wide(new))),
                    remainder: narrow(cost % wide(new)),
                    rate: new_rate,
                }
            }
            (old, new) => {
                let cost = wide(origin - self.whole) * wide(old);
                Self::with_rate(origin.saturating_sub(narrow(cost / wide(new))), new_rate)
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_rescaled_clock_keeps_its_bits() {
        let mut clock = RateClock::at(1_000);
        clock.advance(1_000, 8_000_000);
        assert_eq!(clock.time(), 1_001_000);
        clock.rescale(1_000, 8_000_000, 80_000_000);
        assert_eq!(clock.time(), 101_000);
        clock.rescale(201_000, 1, 2);
        assert_eq!(clock.time(), 151_000);
        clock.rescale(201_000, 0, 2);
        assert_eq!(clock.time(), 201_000);
    }

    #[test]
    fn the_widest_frame_at_the_slowest_rate_does_not_wrap() {
        let mut clock = RateClock::at(1);
        clock.advance(u32::MAX, 1);
        assert_eq!(clock.time(), u64::MAX);
        let mut clock = RateClock::at(1);
        clock.advance(u32::MAX, 2_000_000_000);
        assert_eq!(clock.time(), 1 + u64::from(u32::MAX) * 4);
        clock.advance(1, 0);
        assert_eq!(clock.time(), u64::MAX);
    }

    proptest! {
        #[test]
        fn a_change_of_rate_loses_no_bit(
            bytes in 1_u32..=u32::MAX,
            rates in prop::collection::vec(100_u64..=800_000_000_000, 2..20),
        ) {
            let mut clock = RateClock::at(50);
            clock.advance(bytes, rates[0]);
            for change in rates.windows(2) {
                clock.rescale(50, change[0], change[1]);
            }
            let mut direct = RateClock::at(50);
            direct.advance(bytes, rates[rates.len() - 1]);
            prop_assert_eq!(clock.time(), direct.time());
        }

        /// The oracle is the definition: the sum of the bits, divided once.
        #[test]
        fn many_small_steps_cost_exactly_what_one_large_step_costs(
            frames in prop::collection::vec(1_u32..=u32::MAX, 1..200),
            rate in 1_000_u64..=800_000_000_000,
        ) {
            let mut clock = RateClock::at(7);
            let mut bytes = 0_u128;
            for frame in frames {
                clock.advance(frame, rate);
                bytes += u128::from(frame);
            }
            let cost = bytes * u128::from(BIT_NANOS_PER_BYTE);
            prop_assert_eq!(u128::from(clock.time()), 7 + cost.div_ceil(u128::from(rate)));
        }
    }
}

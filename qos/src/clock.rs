//! A clock that advances by what bytes cost at a rate, exactly: what a division leaves over is
//! carried into the next one.

/// What one byte costs on a clock that runs at one bit per second, in bit-nanoseconds.
const BIT_NANOS_PER_BYTE: u64 = 8_000_000_000;

/// A point in time of `nanos + remainder / rate` nanoseconds.
///
/// For the share criterion the unit is the nanosecond of a link that runs at the device's weight.
/// Such a clock runs up to 800,000 times faster than time, hence the 128 bits.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RateClock {
    nanos: u128,
    /// Bit-nanoseconds, below `rate`.
    remainder: u64,
    rate: u64,
}

impl RateClock {
    pub(crate) fn at(nanos: u128) -> Self {
        Self {
            nanos,
            remainder: 0,
            rate: 0,
        }
    }

    /// The whole nanoseconds, rounded up: a clock is never read too early.
    pub(crate) fn nanos(&self) -> u128 {
        self.nanos.saturating_add(u128::from(self.remainder > 0))
    }

    /// The same for clocks that show real time.
    pub(crate) fn time(&self) -> u64 {
        u64::try_from(self.nanos()).unwrap_or(u64::MAX)
    }

    /// Sets the clock to `nanos` when it shows less.
    pub(crate) fn catch_up(&mut self, nanos: u128) {
        if self.nanos < nanos {
            *self = Self {
                nanos,
                remainder: 0,
                rate: self.rate,
            };
        }
    }

    /// Advances by what `bytes` cost at `rate` bits per second.
    ///
    /// Exact as long as the rate stays; a change of rate costs less than one nanosecond. At rate
    /// zero the clock runs to its end.
    pub(crate) fn advance(&mut self, bytes: u32, rate: u64) {
        if rate != self.rate {
            self.remainder = if self.rate == 0 {
                0
            } else {
                let scaled = u128::from(self.remainder) * u128::from(rate) / u128::from(self.rate);
                u64::try_from(scaled).unwrap_or(0)
            };
            self.rate = rate;
        }
        if rate == 0 {
            self.nanos = u128::MAX;
            return;
        }
        // The narrow division is several times faster, and enough for a frame of 1 GiB.
        let narrow = u64::from(bytes)
            .checked_mul(BIT_NANOS_PER_BYTE)
            .and_then(|cost| cost.checked_add(self.remainder));
        let (whole, remainder) = match narrow {
            Some(cost) => (u128::from(cost / rate), cost % rate),
            None => {
                let cost =
                    u128::from(bytes) * u128::from(BIT_NANOS_PER_BYTE) + u128::from(self.remainder);
                let remainder = cost % u128::from(rate);
                (
                    cost / u128::from(rate),
                    u64::try_from(remainder).unwrap_or(0),
                )
            }
        };
        self.nanos = self.nanos.saturating_add(whole);
        self.remainder = remainder;
    }

    /// Stretches the distance to `origin` by `old_rate / new_rate`: the bits between the two stay
    /// the same when the rate they are counted at changes. Zero on either side ends the distance.
    ///
    /// Exact for a clock ahead of `origin`; one behind comes less than a nanosecond too close.
    pub(crate) fn rescale(&mut self, origin: u128, old_rate: u64, new_rate: u64) {
        if old_rate == new_rate {
            return;
        }
        *self = match (u128::from(old_rate), u128::from(new_rate)) {
            (0, _) | (_, 0) => Self::at(origin),
            (old, new) if self.nanos >= origin => {
                // A remainder of another rate, of a link too slow for what was promised, rounds up.
                let carried = if self.rate == old_rate {
                    self.remainder.into()
                } else {
                    old
                };
                let bit_nanos = (self.nanos - origin)
                    .saturating_mul(old)
                    .saturating_add(carried);
                Self {
                    nanos: origin.saturating_add(bit_nanos / new),
                    remainder: u64::try_from(bit_nanos % new).unwrap_or(0),
                    rate: new_rate,
                }
            }
            (old, new) => {
                let bit_nanos = (origin - self.nanos).saturating_mul(old);
                Self::at(origin.saturating_sub(bit_nanos / new))
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
        assert_eq!(clock.nanos(), 1_001_000);
        clock.rescale(1_000, 8_000_000, 80_000_000);
        assert_eq!(clock.nanos(), 101_000);
        clock.rescale(201_000, 1, 2);
        assert_eq!(clock.nanos(), 151_000);
        clock.rescale(201_000, 0, 2);
        assert_eq!(clock.nanos(), 201_000);
    }

    #[test]
    fn the_widest_frame_at_the_slowest_rate_does_not_wrap() {
        let mut clock = RateClock::at(u128::from(u64::MAX));
        clock.advance(u32::MAX, 1);
        assert_eq!(
            clock.nanos(),
            u128::from(u64::MAX) + u128::from(u32::MAX) * u128::from(BIT_NANOS_PER_BYTE)
        );
        assert_eq!(clock.time(), u64::MAX);
        clock.advance(1, 0);
        assert_eq!(clock.nanos(), u128::MAX);
    }

    proptest! {
        #[test]
        fn a_change_of_rate_loses_no_bit(
            bytes in 1_u32..=u32::MAX,
            rates in prop::collection::vec(1_u64..=800_000_000_000, 2..20),
        ) {
            let mut clock = RateClock::at(50);
            clock.advance(bytes, rates[0]);
            for change in rates.windows(2) {
                clock.rescale(50, change[0], change[1]);
            }
            let mut direct = RateClock::at(50);
            direct.advance(bytes, rates[rates.len() - 1]);
            prop_assert_eq!(clock.nanos(), direct.nanos());
        }

        /// The oracle is the definition: the sum of the bits, divided once.
        #[test]
        fn many_small_steps_cost_exactly_what_one_large_step_costs(
            frames in prop::collection::vec(1_u32..=u32::MAX, 1..200),
            rate in 1_u64..=800_000_000_000,
        ) {
            let mut clock = RateClock::at(7);
            let mut bytes = 0_u128;
            for frame in frames {
                clock.advance(frame, rate);
                bytes += u128::from(frame);
            }
            let cost = bytes * u128::from(BIT_NANOS_PER_BYTE);
            prop_assert_eq!(clock.nanos(), 7 + cost.div_ceil(u128::from(rate)));
        }
    }
}

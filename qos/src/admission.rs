//! What a link may promise, and the refusal that names the hop and what is missing.

use crate::rate::{BitRate, InvalidRate};

/// The part of a link's rate that may be reserved unless said otherwise: the rest is for control
/// frames, headers that nobody charged, and the distance between a nominal rate and a real one.
const RESERVABLE_PERCENT: u64 = 95;

/// The rate of one hop and the part of it that devices may reserve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkBudget {
    hop: String,
    rate: BitRate,
    reservable: BitRate,
}

impl LinkBudget {
    /// A budget that lets devices reserve 95 % of `rate`.
    ///
    /// `hop` is the name the operator knows it by (`host1 uplink`); refusals begin with it. At
    /// rate zero nothing is sent and only best-effort devices are admitted.
    #[must_use]
    pub fn new(hop: impl Into<String>, rate: BitRate) -> Self {
        Self {
            hop: hop.into(),
            rate,
            reservable: rate.scaled(RESERVABLE_PERCENT, 100),
        }
    }

    /// A budget that lets devices reserve exactly `reservable`.
    ///
    /// # Errors
    /// [`InvalidBudget`] when `reservable` is more than the link carries.
    pub fn with_reservable(
        hop: impl Into<String>,
        rate: BitRate,
        reservable: BitRate,
    ) -> Result<Self, InvalidBudget> {
        let hop = hop.into();
        if reservable > rate {
            return Err(InvalidBudget {
                hop,
                rate,
                reservable,
            });
        }
        Ok(Self {
            hop,
            rate,
            reservable,
        })
    }

    /// The name refusals begin with.
    #[must_use]
    pub fn hop(&self) -> &str {
        &self.hop
    }

    /// The rate the link is paced at.
    #[must_use]
    pub const fn rate(&self) -> BitRate {
        self.rate
    }

    /// The highest sum of committed rates.
    #[must_use]
    pub const fn reservable(&self) -> BitRate {
        self.reservable
    }
}

/// More was to be reservable than the link carries.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{hop}: {} reservable is more than link rate {}",
    reservable.with_unit(),
    rate.with_unit()
)]
pub struct InvalidBudget {
    /// The hop.
    pub hop: String,
    /// The rate of the link.
    pub rate: BitRate,
    /// What was to be reservable.
    pub reservable: BitRate,
}

/// Why a device or a new rate of a device is refused. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AdmissionError {
    /// The committed rates would exceed what the hop can promise.
    #[error(
        "{hop}: {} asked, {} free of {} reservable; {} missing",
        asked.with_unit(),
        free.with_unit(),
        reservable.with_unit(),
        asked.saturating_sub(*free).in_megabits()
    )]
    Oversubscribed {
        /// The hop that cannot carry it.
        hop: String,
        /// The committed rate asked for.
        asked: BitRate,
        /// What is left for it; a device that changes its rate gives back its present one first.
        free: BitRate,
        /// The budget of the hop.
        reservable: BitRate,
    },
    /// The rate words do not fit together.
    #[error("{hop}: rate words do not fit together")]
    InvalidRate {
        /// The hop asked.
        hop: String,
        /// What does not fit.
        #[source]
        source: InvalidRate,
    },
    /// The hop has as many devices as it can hold.
    #[error("{hop}: {devices_max} devices are the most it can hold")]
    TooManyDevices {
        /// The hop.
        hop: String,
        /// The limit.
        devices_max: u32,
    },
    /// The device was removed.
    #[error("{hop}: device was removed")]
    StaleHandle {
        /// The hop.
        hop: String,
    },
}

impl AdmissionError {
    /// The rate that would have to be freed first, when that is what is in the way.
    #[must_use]
    pub fn missing(&self) -> Option<BitRate> {
        match self {
            Self::Oversubscribed { asked, free, .. } => Some(asked.saturating_sub(*free)),
            _ => None,
        }
    }
}

/// Whether the link still carries what was promised on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Commitment {
    /// All committed rates hold.
    Kept,
    /// The link became too slow: every committed rate is scaled by `reservable / reserved`.
    Degraded {
        /// The sum of the committed rates.
        reserved: BitRate,
        /// What the link can carry of them now.
        reservable: BitRate,
    },
}

/// The ledger of one hop: its budget at its present rate, and the sum of what is promised.
#[derive(Debug)]
pub(crate) struct Reservations {
    budget: LinkBudget,
    /// Follows the link's present rate; `budget` keeps the configured one, so that many changes
    /// of rate do not add up their rounding.
    reservable: BitRate,
    reserved: BitRate,
}

impl Reservations {
    pub(crate) fn new(budget: LinkBudget) -> Self {
        Self {
            reservable: budget.reservable,
            budget,
            reserved: BitRate::ZERO,
        }
    }

    pub(crate) fn budget(&self) -> &LinkBudget {
        &self.budget
    }

    pub(crate) fn hop(&self) -> String {
        self.budget.hop.clone()
    }

    pub(crate) fn reserved(&self) -> BitRate {
        self.reserved
    }

    /// Whether `asked` fits once a present reservation of `given_back` is gone.
    ///
    /// Asking for no more than before always fits, also on a link that became too slow.
    pub(crate) fn check(&self, asked: BitRate, given_back: BitRate) -> Result<(), AdmissionError> {
        let free = self
            .reservable
            .saturating_sub(self.reserved.saturating_sub(given_back));
        if asked > free && asked > given_back {
            let (hop, reservable) = (self.hop(), self.reservable);
            return Err(AdmissionError::Oversubscribed {
                hop,
                asked,
                free,
                reservable,
            });
        }
        Ok(())
    }

    /// Exchanges a reservation of `given_back` for one of `taken`.
    pub(crate) fn exchange(&mut self, given_back: BitRate, taken: BitRate) {
        self.reserved = self
            .reserved
            .saturating_sub(given_back)
            .saturating_add(taken);
    }

    /// Keeps the configured part of the new `rate` reservable.
    pub(crate) fn set_link_rate(&mut self, rate: BitRate) {
        let LinkBudget {
            rate: configured,
            reservable,
            ..
        } = self.budget;
        self.reservable = if configured.is_zero() {
            rate.scaled(RESERVABLE_PERCENT, 100)
        } else {
            rate.scaled(reservable.bits_per_second(), configured.bits_per_second())
        };
    }

    pub(crate) fn commitment(&self) -> Commitment {
        let Self {
            reserved,
            reservable,
            ..
        } = *self;
        if reserved > reservable {
            Commitment::Degraded {
                reserved,
                reservable,
            }
        } else {
            Commitment::Kept
        }
    }

    /// The committed rate that holds now: `cir`, or its part of a link that became too slow.
    ///
    /// One factor for all, because earliest-deadline-first without it would let whoever is late
    /// make everybody late. Never zero for a device that has a committed rate.
    pub(crate) fn rate_in_force(&self, cir: BitRate) -> BitRate {
        match self.commitment() {
            Commitment::Kept => cir,
            Commitment::Degraded { .. } if cir.is_zero() => cir,
            Commitment::Degraded {
                reserved,
                reservable,
            } => cir
                .scaled(reservable.bits_per_second(), reserved.bits_per_second())
                .max(BitRate::from_bits_per_second(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(text: &str) -> BitRate {
        text.parse().unwrap()
    }

    #[test]
    fn ninety_five_percent_is_reservable_unless_said_otherwise() {
        assert_eq!(
            LinkBudget::new("uplink", rate("10G")).reservable(),
            rate("9.5G")
        );
        let error = LinkBudget::with_reservable("uplink", rate("1G"), rate("1.5G")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "uplink: 1.5 Gb/s reservable is more than link rate 1 Gb/s"
        );
    }

    #[test]
    fn a_slower_link_scales_all_committed_rates_by_one_factor() {
        let budget = LinkBudget::with_reservable("uplink", rate("10G"), rate("9G")).unwrap();
        let mut reservations = Reservations::new(budget);
        reservations.exchange(BitRate::ZERO, rate("9G"));
        assert_eq!(reservations.commitment(), Commitment::Kept);
        reservations.set_link_rate(rate("5G"));
        assert_eq!(
            reservations.commitment(),
            Commitment::Degraded {
                reserved: rate("9G"),
                reservable: rate("4.5G")
            }
        );
        assert_eq!(reservations.rate_in_force(rate("2G")), rate("1G"));
        assert_eq!(reservations.rate_in_force(BitRate::ZERO), BitRate::ZERO);
        assert_eq!(reservations.rate_in_force(rate("1")), rate("1"));
        assert!(reservations.check(rate("1"), BitRate::ZERO).is_err());
        assert!(
            reservations.check(rate("1.9G"), rate("2G")).is_ok(),
            "less always fits"
        );
        reservations.set_link_rate(rate("10G"));
        assert_eq!(reservations.rate_in_force(rate("2G")), rate("2G"));
    }
}

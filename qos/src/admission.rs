//! What a link may promise, and the refusal that names the hop and what is missing.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::rate::{BitRate, DeviceRate, InvalidRate};

/// The part of a link's rate that may be reserved unless said otherwise: the rest is for control
/// frames, headers that nobody charged, and the distance between a nominal rate and a real one.
const RESERVABLE_PERCENT: u64 = 95;

/// The rate of one hop and the part of it that devices may reserve.
///
/// | rate | what it is |
/// | --- | --- |
/// | nominal | what the port or cable is sold as; only shown |
/// | payload (`rate`) | what it carries of the bytes frames are charged with; the pace of grants |
/// | reservable | the most that committed rates may add up to |
/// | protected | the most that protected ones may, so that they fit the link that survives |
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkBudget {
    hop: String,
    nominal: BitRate,
    rate: BitRate,
    reservable: BitRate,
    protected: Option<BitRate>,
    oversubscribed: bool,
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
            nominal: rate,
            rate,
            reservable: rate.scaled(RESERVABLE_PERCENT, 100),
            protected: None,
            oversubscribed: false,
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
            reservable,
            ..Self::new(hop, rate)
        })
    }

    /// The same for a hop of another name.
    #[must_use]
    pub fn named(self, hop: impl Into<String>) -> Self {
        let hop = hop.into();
        Self { hop, ..self }
    }

    /// The same for a link that is sold as `nominal`.
    #[must_use]
    pub fn sold_as(self, nominal: BitRate) -> Self {
        Self { nominal, ..self }
    }

    /// The same with room for no more than `protected` of protected reservations: what is
    /// reservable on the link that survives when another one fails.
    #[must_use]
    pub fn with_protected(self, protected: BitRate) -> Self {
        Self {
            protected: Some(protected),
            ..self
        }
    }

    /// The same, but reservations beyond the budget are taken. While they exceed it all of them
    /// are scaled down by one factor ([`Commitment::Degraded`]).
    #[must_use]
    pub fn oversubscribed(self) -> Self {
        Self {
            oversubscribed: true,
            ..self
        }
    }

    /// The name refusals begin with.
    #[must_use]
    pub fn hop(&self) -> &str {
        &self.hop
    }

    /// The rate the link is sold as.
    #[must_use]
    pub const fn nominal(&self) -> BitRate {
        self.nominal
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

    /// The highest sum of protected committed rates, where another link stands by.
    #[must_use]
    pub const fn protected(&self) -> Option<BitRate> {
        self.protected
    }

    /// Whether reservations beyond the budget are taken.
    #[must_use]
    pub const fn is_oversubscribed(&self) -> bool {
        self.oversubscribed
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
    /// The protected reservations would not fit on the link that survives a failure.
    #[error(
        "{hop}: {} asked, {} free of {} that survive the failure of a link; {} missing, or reserve \
         it unprotected",
        asked.with_unit(),
        free.with_unit(),
        protected.with_unit(),
        asked.saturating_sub(*free).in_megabits()
    )]
    Unprotectable {
        /// The hop.
        hop: String,
        /// The committed rate asked for.
        asked: BitRate,
        /// What is left for it.
        free: BitRate,
        /// What protected reservations may add up to.
        protected: BitRate,
    },
    /// The delay bounds could not all be kept.
    #[error(
        "{hop}: {} bytes may be due {} us after a burst, and {} bytes are carried by then; ask for \
         a longer delay or a smaller CBS",
        due_bytes,
        delay.as_micros(),
        carried_bytes
    )]
    DelayBound {
        /// The hop.
        hop: String,
        /// The bound that fails first: that of the device asked for, or a longer one of another.
        delay: Duration,
        /// What all devices may have to send within it.
        due_bytes: u64,
        /// What the reservable rate carries within it.
        carried_bytes: u64,
    },
    /// A delay bound holds on the link alone: in a VM a frame may have to wait for one of another
    /// device at the VM's rate.
    #[error(
        "{hop}: a device with a delay bound cannot be in a VM with rates of its own; take \
             either away"
    )]
    DelayInVm {
        /// The VM.
        hop: String,
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
    /// The refusal in one line, with what its source says.
    #[must_use]
    pub fn with_source(&self) -> String {
        match self {
            Self::InvalidRate { source, .. } => format!("{self}: {source}"),
            _ => self.to_string(),
        }
    }

    /// The rate that would have to be freed first, when that is what is in the way.
    #[must_use]
    pub fn missing(&self) -> Option<BitRate> {
        match self {
            Self::Oversubscribed { asked, free, .. } | Self::Unprotectable { asked, free, .. } => {
                Some(asked.saturating_sub(*free))
            }
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

/// What one device or VM takes of a hop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reservation {
    /// What the hop's sum of committed rates counts.
    pub(crate) cir: BitRate,
    /// The part of it that must survive a failure.
    pub(crate) protected: BitRate,
    /// With a delay bound: what may be due within it.
    pub(crate) burst: Option<Burst>,
}

/// A committed burst with a delay bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Burst {
    pub(crate) delay_nanos: u64,
    pub(crate) bytes: u64,
    pub(crate) cir: BitRate,
}

impl Reservation {
    /// What a VM that has a committed rate of its own takes.
    pub(crate) fn of_vm(cir: BitRate) -> Self {
        Self {
            cir,
            protected: cir,
            burst: None,
        }
    }

    /// What a device takes for itself.
    pub(crate) fn of_device(rate: &DeviceRate) -> Self {
        let cir = rate.cir;
        Self {
            cir,
            protected: if rate.unprotected { BitRate::ZERO } else { cir },
            burst: rate.delay_in_force().map(|delay_nanos| Burst {
                delay_nanos,
                bytes: rate.committed_burst_bytes(),
                cir,
            }),
        }
    }
}

/// Whether a burst asks for nothing that another one did not.
fn no_more(asked: Option<Burst>, before: Option<Burst>) -> bool {
    match (asked, before) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(asked), Some(before)) => {
            asked.delay_nanos >= before.delay_nanos && asked.bytes <= before.bytes
        }
    }
}

/// Sums over the devices whose delay bound is the same.
#[derive(Clone, Copy, Debug, Default)]
struct Bursts {
    count: u64,
    bytes: u64,
    cir: BitRate,
}

/// The ledger of one hop: its budget at its present rate, and the sum of what is promised.
#[derive(Clone, Debug)]
pub(crate) struct Reservations {
    budget: LinkBudget,
    /// Follows the link's present rate; `budget` keeps the configured one, so that many changes
    /// of rate do not add up their rounding.
    reservable: BitRate,
    reserved: BitRate,
    protected: BitRate,
    /// By delay bound, of which there are some hundred at most ([`DeviceRate::delay_in_force`]).
    bursts: BTreeMap<u64, Bursts>,
}

impl Reservations {
    pub(crate) fn new(budget: LinkBudget) -> Self {
        Self {
            reservable: budget.reservable,
            budget,
            reserved: BitRate::ZERO,
            protected: BitRate::ZERO,
            bursts: BTreeMap::new(),
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

    pub(crate) fn reservable(&self) -> BitRate {
        self.reservable
    }

    /// Whether `asked` fits once a present reservation of `given_back` is gone.
    ///
    /// Asking for no more than before always fits, also on a link that became too slow.
    pub(crate) fn check(
        &self,
        asked: Reservation,
        given_back: Reservation,
    ) -> Result<(), AdmissionError> {
        if self.budget.oversubscribed {
            return Ok(());
        }
        let others = self.reserved.saturating_sub(given_back.cir);
        let free = self.reservable.saturating_sub(others);
        if asked.cir > free && asked.cir > given_back.cir {
            let (hop, reservable) = (self.hop(), self.reservable);
            return Err(AdmissionError::Oversubscribed {
                hop,
                asked: asked.cir,
                free,
                reservable,
            });
        }
        if let Some(protected) = self.budget.protected {
            let others = self.protected.saturating_sub(given_back.protected);
            let free = protected.saturating_sub(others);
            if asked.protected > free && asked.protected > given_back.protected {
                let hop = self.hop();
                return Err(AdmissionError::Unprotectable {
                    hop,
                    asked: asked.protected,
                    free,
                    protected,
                });
            }
        }
        let less = asked.cir <= given_back.cir && no_more(asked.burst, given_back.burst);
        if less || (asked.burst.is_none() && self.bursts.is_empty()) {
            return Ok(());
        }
        let mut then = self.clone();
        then.exchange(given_back, asked);
        then.check_delays()
    }

    /// Whether at each delay bound what is due by then is carried by then: the condition under
    /// which earliest deadline first meets all of them (Liebeherr, Wrege, Ferrari, 1996). Curves
    /// are steepest at the bounds, so between them nothing is tighter.
    fn check_delays(&self) -> Result<(), AdmissionError> {
        for &delay_nanos in self.bursts.keys() {
            let mut linear = self.reserved;
            let mut bit_nanos = 0_u128;
            for (earlier, bursts) in self.bursts.range(..=delay_nanos) {
                linear = linear.saturating_sub(bursts.cir);
                bit_nanos += u128::from(bursts.bytes) * 8_000_000_000;
                bit_nanos += bits_nanos(bursts.cir, delay_nanos - earlier);
            }
            bit_nanos += bits_nanos(linear, delay_nanos);
            let carried = bits_nanos(self.reservable, delay_nanos);
            if bit_nanos > carried {
                let bytes =
                    |bit_nanos: u128| u64::try_from(bit_nanos / 8_000_000_000).unwrap_or(u64::MAX);
                return Err(AdmissionError::DelayBound {
                    hop: self.hop(),
                    delay: Duration::from_nanos(delay_nanos),
                    due_bytes: bytes(bit_nanos).saturating_add(1),
                    carried_bytes: bytes(carried),
                });
            }
        }
        Ok(())
    }

    /// Exchanges a reservation of `given_back` for one of `taken`.
    pub(crate) fn exchange(&mut self, given_back: Reservation, taken: Reservation) {
        let exchanged =
            |sum: BitRate, given_back, taken| sum.saturating_sub(given_back).saturating_add(taken);
        self.reserved = exchanged(self.reserved, given_back.cir, taken.cir);
        self.protected = exchanged(self.protected, given_back.protected, taken.protected);
        if let Some(burst) = given_back.burst
            && let Some(bursts) = self.bursts.get_mut(&burst.delay_nanos)
        {
            bursts.count = bursts.count.saturating_sub(1);
            bursts.bytes = bursts.bytes.saturating_sub(burst.bytes);
            bursts.cir = bursts.cir.saturating_sub(burst.cir);
            if bursts.count == 0 {
                self.bursts.remove(&burst.delay_nanos);
            }
        }
        if let Some(burst) = taken.burst {
            let bursts = self.bursts.entry(burst.delay_nanos).or_default();
            bursts.count = bursts.count.saturating_add(1);
            bursts.bytes = bursts.bytes.saturating_add(burst.bytes);
            bursts.cir = bursts.cir.saturating_add(burst.cir);
        }
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

fn bits_nanos(rate: BitRate, nanos: u64) -> u128 {
    u128::from(rate.bits_per_second()) * u128::from(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reservation(text: &str) -> Reservation {
        Reservation {
            cir: rate(text),
            protected: rate(text),
            burst: None,
        }
    }

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
        reservations.exchange(Reservation::default(), reservation("9G"));
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
        assert!(
            reservations
                .check(reservation("1"), Reservation::default())
                .is_err()
        );
        assert!(
            reservations
                .check(reservation("1.9G"), reservation("2G"))
                .is_ok(),
            "less always fits"
        );
        reservations.set_link_rate(rate("10G"));
        assert_eq!(reservations.rate_in_force(rate("2G")), rate("2G"));
    }
}

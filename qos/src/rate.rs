//! Bit rates in whole decimal bits per second, and the rate words of a device (RFC 2698).

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Nanoseconds x bits: what one byte costs on a clock that runs at one bit per second.
const BIT_NANOS_PER_BYTE: u128 = 8_000_000_000;

/// Units a rate is written in, largest first, with the decimal digits below the point.
const UNITS: [(char, u64, usize); 4] = [
    ('T', 1_000_000_000_000, 12),
    ('G', 1_000_000_000, 9),
    ('M', 1_000_000, 6),
    ('k', 1_000, 3),
];

/// A rate in bits per second. Prefixes are decimal: 1G is 10^9 bits per second.
///
/// Reads and writes as a decimal number with an optional prefix: `300M`, `2.5G`, `9600`. The
/// written form is the shortest exact one and reads back as the same rate.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct BitRate(u64);

impl BitRate {
    /// No bits at all.
    pub const ZERO: Self = Self(0);

    /// The rate of `bits_per_second`.
    #[must_use]
    pub const fn from_bits_per_second(bits_per_second: u64) -> Self {
        Self(bits_per_second)
    }

    /// Bits per second.
    #[must_use]
    pub const fn bits_per_second(self) -> u64 {
        self.0
    }

    /// Whether nothing may pass at this rate.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// Nanoseconds that `bytes` take at this rate, rounded up.
    ///
    /// `u64::MAX` when they take longer than that, as everything does at rate zero.
    #[must_use]
    pub fn transmission_nanos(self, bytes: u64) -> u64 {
        let bit_nanos = u128::from(bytes) * BIT_NANOS_PER_BYTE;
        if self.0 == 0 {
            return if bytes == 0 { 0 } else { u64::MAX };
        }
        u64::try_from(bit_nanos.div_ceil(u128::from(self.0))).unwrap_or(u64::MAX)
    }

    /// The rate at which `bytes` pass in `nanos` nanoseconds, rounded down; zero in no time.
    #[must_use]
    pub fn of_bytes(bytes: u64, nanos: u64) -> Self {
        let bit_nanos = u128::from(bytes) * BIT_NANOS_PER_BYTE;
        let bits = bit_nanos.checked_div(u128::from(nanos)).unwrap_or(0);
        Self(u64::try_from(bits).unwrap_or(u64::MAX))
    }

    /// Bits that pass in `nanos` nanoseconds, rounded up.
    pub(crate) fn bits_in(self, nanos: u64) -> u64 {
        let bit_nanos = u128::from(self.0) * u128::from(nanos);
        u64::try_from(bit_nanos.div_ceil(1_000_000_000)).unwrap_or(u64::MAX)
    }

    /// The sum, or the highest rate there is.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference, or zero when `other` is higher.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// This rate times `numerator / denominator`, rounded down; zero when `denominator` is zero.
    pub(crate) fn scaled(self, numerator: u64, denominator: u64) -> Self {
        let product = u128::from(self.0) * u128::from(numerator);
        let scaled = product.checked_div(u128::from(denominator)).unwrap_or(0);
        Self(u64::try_from(scaled).unwrap_or(u64::MAX))
    }

    /// Writes the rate for people, with its unit: `500 Mb/s`, `8.5 Gb/s`, `0 bit/s`.
    #[must_use]
    pub fn with_unit(self) -> impl fmt::Display + use<> {
        let unit = UNITS.into_iter().find(|(_, unit, _)| self.0 >= *unit);
        fmt::from_fn(move |f| match unit {
            Some((prefix, unit, digits)) => {
                write!(f, "{} {prefix}b/s", decimal(self.0, unit, digits))
            }
            None => write!(f, "{} bit/s", self.0),
        })
    }

    /// Writes the rate in Mb/s whatever its size: `500 Mb/s`, `0.0096 Mb/s`.
    #[must_use]
    pub fn in_megabits(self) -> impl fmt::Display + use<> {
        fmt::from_fn(move |f| write!(f, "{} Mb/s", decimal(self.0, 1_000_000, 6)))
    }
}

impl fmt::Display for BitRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shortest = self.0.to_string();
        // From small to large units, so that a tie keeps the smaller one: 9600 and not 9.6k.
        for (prefix, unit, digits) in UNITS.into_iter().rev() {
            if self.0 >= unit {
                let text = format!("{}{prefix}", decimal(self.0, unit, digits));
                if text.len() < shortest.len() {
                    shortest = text;
                }
            }
        }
        f.pad(&shortest)
    }
}

/// `value / unit` as an exact decimal number; `digits` is the number of zeros of `unit`.
fn decimal(value: u64, unit: u64, digits: usize) -> String {
    let fraction = format!("{:0digits$}", value % unit);
    match fraction.trim_end_matches('0') {
        "" => format!("{}", value / unit),
        fraction => format!("{}.{fraction}", value / unit),
    }
}

/// Why a text is not a [`BitRate`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseBitRateError {
    /// Not digits, at most one point between digits, and at most one of `k`, `M`, `G`, `T`.
    #[error(
        "rate {text:?} is not a decimal number with an optional k, M, G or T (bits per second)"
    )]
    Syntax {
        /// The text.
        text: String,
    },
    /// The smallest step is one bit per second.
    #[error("rate {text:?} is not a whole number of bits per second")]
    FractionOfBit {
        /// The text.
        text: String,
    },
    /// More than 64 bits can count.
    #[error("rate {text:?} is above {} bits per second", u64::MAX)]
    TooLarge {
        /// The text.
        text: String,
    },
}

impl FromStr for BitRate {
    type Err = ParseBitRateError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let syntax = || ParseBitRateError::Syntax {
            text: text.to_owned(),
        };
        let too_large = || ParseBitRateError::TooLarge {
            text: text.to_owned(),
        };
        let (number, unit) = match text.chars().last() {
            Some('K') => (text.strip_suffix('K').unwrap_or(text), 1_000),
            Some(last) => match UNITS.into_iter().find(|(prefix, ..)| *prefix == last) {
                Some((prefix, unit, _)) => (text.strip_suffix(prefix).unwrap_or(text), unit),
                None => (text, 1),
            },
            None => return Err(syntax()),
        };
        let (whole, fraction) = match number.split_once('.') {
            Some((whole, fraction)) if !fraction.is_empty() => (whole, fraction),
            Some(_) => return Err(syntax()),
            None => (number, ""),
        };
        let digits_only = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !digits_only(whole) || !digits_only(fraction) {
            return Err(syntax());
        }
        let whole: u64 = whole.parse().map_err(|_only_overflow| too_large())?;
        let mut bits = whole.checked_mul(unit).ok_or_else(too_large)?;
        let mut place = unit;
        for digit in fraction.bytes().map(|byte| u64::from(byte - b'0')) {
            if digit != 0 && place % 10 != 0 {
                return Err(ParseBitRateError::FractionOfBit {
                    text: text.to_owned(),
                });
            }
            place /= 10;
            bits = bits.checked_add(digit * place).ok_or_else(too_large)?;
        }
        Ok(Self(bits))
    }
}

/// What a device is promised and what it may not exceed, in the words of RFC 2698.
///
/// | field | unit | meaning | 0 or `None` |
/// | --- | --- | --- | --- |
/// | `cir` | bit/s | committed information rate: granted whatever others do | best effort |
/// | `cbs_bytes` | byte | committed burst size: what `delay_max` holds for | automatic |
/// | `pir` | bit/s | peak information rate: never exceeded beyond PBS and one frame | no peak |
/// | `pbs_bytes` | byte | peak burst size, without effect when there is no peak | automatic |
/// | `weight` | 1 | share of what nobody reserved, in Mb/s | automatic |
/// | `delay_max` | time | frames within CIR and CBS leave this long after they come | `bytes / CIR` |
/// | `operations` | 1/s | frames let go, whatever their size: the IOPS limit of a vHBA | no limit |
/// | `unprotected` | - | need not fit on the link that survives a failure | protected |
///
/// The automatic PBS is 128 KiB and 1 ms of PIR: a device whose frame waits for another one of
/// 64 KiB, and whose caller's timer is 1 ms late, still reaches the peak rate. A smaller PBS keeps
/// the peak more strictly and the device further below it, at worst below a CIR near the PIR. The
/// automatic CBS is 64 KiB and 1 ms of CIR. The automatic weight is the CIR in Mb/s, at least
/// [`DeviceRate::WEIGHT_MIN`]; so an explicit weight of 300 counts as much as a CIR of 300M.
///
/// Without `delay_max` the scheduler does not bring service forward by CBS: a burst that borrows
/// from the device's own future breaks the promises to others unless admission counts the bursts
/// of all. With it admission does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DeviceRate {
    /// Committed information rate.
    pub cir: BitRate,
    /// Committed burst size; 0 is automatic.
    pub cbs_bytes: u32,
    /// Peak information rate; `None` is as fast as the link allows.
    pub pir: Option<BitRate>,
    /// Peak burst size; 0 is automatic.
    pub pbs_bytes: u32,
    /// Weight in the division of what nobody reserved; 0 is automatic.
    pub weight: u32,
    /// Delay bound of what stays within CIR and CBS; needs a CIR.
    pub delay_max: Option<Duration>,
    /// Limit of frames per second.
    pub operations: Option<OperationLimit>,
    /// Whether the reservation may be lost with one of two redundant links.
    pub unprotected: bool,
}

/// At most so many frames per second, however short: what storage calls an IOPS limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OperationLimit {
    /// Frames per second; not zero.
    pub per_second: u32,
    /// Frames that may leave at once after a pause; 0 is automatic: 10 ms of the limit, at least 1.
    pub burst: u32,
}

/// What a server profile (a VM) is promised as a whole, above its devices.
///
/// Its devices' committed rates lie within `cir`; what they do not use of it the VM's other devices
/// get, still as a guarantee. Fields mean what they mean for a device ([`DeviceRate`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VmRate {
    /// Committed rate of all devices together; zero: what they reserve one by one.
    pub cir: BitRate,
    /// Peak rate of all devices together.
    pub pir: Option<BitRate>,
    /// Peak burst size; 0 is automatic.
    pub pbs_bytes: u32,
    /// Weight among VMs and devices without a VM; 0: the sum of the devices' weights.
    pub weight: u32,
}

/// Bits per second that one unit of weight stands for.
const WEIGHT_UNIT: u64 = 1_000_000;

/// The automatic PBS without its 1 ms of PIR: two of the frames a fabric link cuts data into.
const PBS_AUTOMATIC_BYTES_MIN: u64 = 2 * 64 * 1024;

/// The automatic CBS without its 1 ms of CIR: one such frame.
const CBS_AUTOMATIC_BYTES_MIN: u64 = 64 * 1024;

/// Binary digits that a delay bound is kept with.
const DELAY_DIGITS: u32 = 4;

impl DeviceRate {
    /// The least automatic weight, which best-effort devices get.
    pub const WEIGHT_MIN: u32 = 10;

    /// A rate with automatic bursts and weight.
    ///
    /// # Errors
    /// As [`DeviceRate::validate`].
    pub fn new(cir: BitRate, pir: Option<BitRate>) -> Result<Self, InvalidRate> {
        let rate = Self {
            cir,
            pir,
            ..Self::default()
        };
        rate.validate()?;
        Ok(rate)
    }

    /// No reservation and no peak: a share of what others leave.
    #[must_use]
    pub fn best_effort() -> Self {
        Self::default()
    }

    /// Whether the fields fit together (RFC 2698 section 2).
    ///
    /// # Errors
    /// [`InvalidRate`] when the peak is zero or below the committed rate, a delay bound has no
    /// committed rate it could hold for, or no operation is allowed at all.
    pub fn validate(&self) -> Result<(), InvalidRate> {
        validate_peak(self.cir, self.pir)?;
        match (self.delay_max, self.operations) {
            (Some(Duration::ZERO), _) => Err(InvalidRate::DelayIsZero),
            (Some(_), _) if self.cir.is_zero() => Err(InvalidRate::DelayWithoutCommitted),
            (_, Some(OperationLimit { per_second: 0, .. })) => Err(InvalidRate::NoOperations),
            _ => Ok(()),
        }
    }

    /// The weight in force, in bit/s so that automatic weights lose nothing.
    pub(crate) fn weight_bits_per_second(&self) -> u64 {
        if self.weight == 0 {
            self.cir
                .bits_per_second()
                .max(u64::from(Self::WEIGHT_MIN) * WEIGHT_UNIT)
        } else {
            u64::from(self.weight) * WEIGHT_UNIT
        }
    }

    /// The time of `pir` that the peak bucket holds, rounded down.
    pub(crate) fn peak_burst_nanos(&self, pir: BitRate) -> u64 {
        peak_burst_nanos(pir, self.pbs_bytes)
    }

    /// The committed burst, automatic or not.
    pub(crate) fn committed_burst_bytes(&self) -> u64 {
        match self.cbs_bytes {
            0 => CBS_AUTOMATIC_BYTES_MIN + self.cir.bits_per_second() / 8_000,
            bytes => bytes.into(),
        }
    }

    /// The time of CIR that the committed bucket holds, rounded down.
    pub(crate) fn committed_burst_nanos(&self) -> u64 {
        nanos_of(self.committed_burst_bytes(), self.cir)
    }

    /// The delay bound that is kept: the one asked for, or up to an eighth less. So there are few
    /// different ones, and admission need not look at every device.
    pub(crate) fn delay_in_force(&self) -> Option<u64> {
        let delay = u64::try_from(self.delay_max?.as_nanos()).unwrap_or(u64::MAX);
        let digits = u64::BITS - delay.leading_zeros();
        let rounded = digits.saturating_sub(DELAY_DIGITS);
        Some(delay >> rounded << rounded)
    }
}

impl VmRate {
    /// Whether the fields fit together, with devices that reserve `devices` in all.
    ///
    /// # Errors
    /// [`InvalidRate`] when the peak is zero, or below what is committed.
    pub fn validate(&self, devices: BitRate) -> Result<(), InvalidRate> {
        validate_peak(self.cir.max(devices), self.pir)
    }

    pub(crate) fn peak_burst_nanos(&self, pir: BitRate) -> u64 {
        peak_burst_nanos(pir, self.pbs_bytes)
    }

    /// The weight in force in bit/s, for devices whose weights add up to `devices`.
    pub(crate) fn weight_bits_per_second(&self, devices: u64) -> u64 {
        match self.weight {
            0 => devices,
            weight => u64::from(weight) * WEIGHT_UNIT,
        }
    }
}

impl OperationLimit {
    /// The burst that is kept, automatic or not.
    pub(crate) fn burst_in_force(&self) -> u32 {
        match self.burst {
            0 => (self.per_second / 100).max(1),
            burst => burst,
        }
    }
}

fn peak_burst_nanos(pir: BitRate, pbs_bytes: u32) -> u64 {
    let bytes = match pbs_bytes {
        0 => PBS_AUTOMATIC_BYTES_MIN + pir.bits_per_second() / 8_000,
        bytes => bytes.into(),
    };
    nanos_of(bytes, pir)
}

/// How long `bytes` take at `rate`, rounded down.
fn nanos_of(bytes: u64, rate: BitRate) -> u64 {
    let bit_nanos = u128::from(bytes) * BIT_NANOS_PER_BYTE;
    let nanos = bit_nanos
        .checked_div(u128::from(rate.bits_per_second()))
        .unwrap_or(u128::MAX);
    u64::try_from(nanos).unwrap_or(u64::MAX)
}

fn validate_peak(cir: BitRate, pir: Option<BitRate>) -> Result<(), InvalidRate> {
    match pir {
        Some(BitRate::ZERO) => Err(InvalidRate::PeakIsZero),
        Some(pir) if pir < cir => Err(InvalidRate::PeakBelowCommitted { cir, pir }),
        _ => Ok(()),
    }
}

/// Why the fields of a [`DeviceRate`] do not fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidRate {
    /// RFC 2698 section 2: PIR is at least CIR.
    #[error("peak rate {} is below committed rate {}", pir.with_unit(), cir.with_unit())]
    PeakBelowCommitted {
        /// Committed information rate.
        cir: BitRate,
        /// Peak information rate.
        pir: BitRate,
    },
    /// The device could never send.
    #[error("peak rate is zero")]
    PeakIsZero,
    /// No frame could leave in time.
    #[error("delay bound is zero")]
    DelayIsZero,
    /// A delay bound holds for what stays within CIR and CBS.
    #[error("delay bound needs a committed rate")]
    DelayWithoutCommitted,
    /// The device could never send.
    #[error("limit of operations is zero")]
    NoOperations,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rates_read_and_write_as_people_write_them() {
        for (text, bits) in [
            ("300M", 300_000_000),
            ("2.5G", 2_500_000_000),
            ("9600", 9_600),
            ("0", 0),
            ("64k", 64_000),
            ("800G", 800_000_000_000),
            ("1.6T", 1_600_000_000_000),
            ("1234567", 1_234_567),
        ] {
            assert_eq!(text.parse(), Ok(BitRate::from_bits_per_second(bits)));
            assert_eq!(BitRate::from_bits_per_second(bits).to_string(), text);
        }
        assert_eq!("0.3G".parse(), "300M".parse::<BitRate>());
        assert_eq!("10K".parse(), Ok(BitRate::from_bits_per_second(10_000)));
        assert_eq!(
            "1.50000000000000G".parse(),
            Ok(BitRate::from_bits_per_second(1_500_000_000))
        );
    }

    #[test]
    fn malformed_rates_are_named_by_kind() {
        for text in [
            "", "M", ".5G", "5.G", "1.2.3", "-1", "+1", "300m", "1 G", "1e9", "10KK", "٣", "5GG",
        ] {
            let error = text.parse::<BitRate>().unwrap_err();
            assert_eq!(error, ParseBitRateError::Syntax { text: text.into() });
        }
        for text in ["0.5", "1.0000000001G", "1.2345k"] {
            let error = text.parse::<BitRate>().unwrap_err();
            assert_eq!(
                error,
                ParseBitRateError::FractionOfBit { text: text.into() }
            );
        }
        for text in [
            "18446744073709551616",
            "18446745T",
            "99999999999999999999999999",
        ] {
            let error = text.parse::<BitRate>().unwrap_err();
            assert_eq!(error, ParseBitRateError::TooLarge { text: text.into() });
        }
    }

    #[test]
    fn people_read_rates_with_units() {
        let write = |bits| BitRate::from_bits_per_second(bits).with_unit().to_string();
        assert_eq!(write(500_000_000), "500 Mb/s");
        assert_eq!(write(8_500_000_000), "8.5 Gb/s");
        assert_eq!(write(9_600), "9.6 kb/s");
        assert_eq!(write(0), "0 bit/s");
        assert_eq!(write(1_000_000_001), "1.000000001 Gb/s");
        let megabits = |bits| {
            BitRate::from_bits_per_second(bits)
                .in_megabits()
                .to_string()
        };
        assert_eq!(megabits(1_500_000_000), "1500 Mb/s");
        assert_eq!(megabits(9_600), "0.0096 Mb/s");
    }

    #[test]
    fn transmission_time_rounds_up_and_saturates() {
        let gigabit = BitRate::from_bits_per_second(1_000_000_000);
        assert_eq!(gigabit.transmission_nanos(1_500), 12_000);
        assert_eq!(
            BitRate::from_bits_per_second(3_000_000_000).transmission_nanos(1),
            3
        );
        assert_eq!(
            BitRate::from_bits_per_second(1).transmission_nanos(u64::MAX),
            u64::MAX
        );
        assert_eq!(BitRate::ZERO.transmission_nanos(1), u64::MAX);
        assert_eq!(BitRate::ZERO.transmission_nanos(0), 0);
    }

    #[test]
    fn a_peak_below_the_committed_rate_is_refused() {
        let rate = |text: &str| text.parse::<BitRate>().unwrap();
        assert_eq!(
            DeviceRate::new(rate("300M"), Some(rate("200M")))
                .unwrap_err()
                .to_string(),
            "peak rate 200 Mb/s is below committed rate 300 Mb/s"
        );
        assert_eq!(
            DeviceRate::new(BitRate::ZERO, Some(BitRate::ZERO)),
            Err(InvalidRate::PeakIsZero)
        );
        assert!(DeviceRate::new(rate("300M"), Some(rate("300M"))).is_ok());
        assert!(DeviceRate::best_effort().validate().is_ok());
    }

    #[test]
    fn automatic_words_follow_the_rates() {
        let pir = BitRate::from_bits_per_second(8_000_000_000);
        let rate = DeviceRate::new(BitRate::from_bits_per_second(300_000_000), Some(pir)).unwrap();
        assert_eq!(rate.weight_bits_per_second(), 300_000_000);
        assert_eq!(rate.peak_burst_nanos(pir), 1_131_072, "128 KiB and 1 ms");
        let slow = BitRate::from_bits_per_second(8_000);
        let rate = DeviceRate::new(BitRate::ZERO, Some(slow)).unwrap();
        assert_eq!(rate.weight_bits_per_second(), 10_000_000);
        assert_eq!(
            rate.peak_burst_nanos(slow),
            131_073_000_000,
            "128 KiB and 1 ms"
        );
        let explicit = DeviceRate {
            weight: 300,
            pbs_bytes: 1_000,
            ..rate
        };
        assert_eq!(explicit.weight_bits_per_second(), 300_000_000);
        assert_eq!(explicit.peak_burst_nanos(slow), 1_000_000_000);
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(bits: u64) {
            let rate = BitRate::from_bits_per_second(bits);
            prop_assert_eq!(rate.to_string().parse(), Ok(rate));
        }

        #[test]
        fn any_text_is_read_or_refused_without_a_panic(text in ".{0,12}|[0-9.kMGT]{0,30}") {
            if let Ok(rate) = text.parse::<BitRate>() {
                prop_assert_eq!(rate.to_string().parse(), Ok(rate));
            }
        }
    }
}

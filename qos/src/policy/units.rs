//! Rates and bursts as the command language writes them.

use std::fmt;
use std::str::FromStr;

use crate::rate::BitRate;

/// A rate in the command language: a bare number is **kilobits** per second, and `k`, `m` or `g` of
/// either case is a decimal multiple of bits per second. `250` is 250 kb/s, `250m` is 250 Mb/s.
///
/// Not the form of the lab file, which is that of [`BitRate`]: there a bare number is bits per
/// second. Writes the shortest exact form with a suffix, which reads back as the same rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyRate(pub BitRate);

/// Why a text is no rate or burst of the command language.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParsePolicyUnitError {
    /// Not a number with at most one suffix, finer than one bit per second, or above 64 bits.
    #[error(
        "rate {text:?} is not usable; write a number in kilobits per second, or one with k, m or \
         g like 250m"
    )]
    Rate {
        /// The text.
        text: String,
    },
    /// Not a whole number with at most one suffix, or above 32 bits.
    #[error(
        "burst {text:?} is not usable; write a whole number of bytes below 4g, or one with k or m \
         like 64k"
    )]
    Burst {
        /// The text.
        text: String,
    },
}

impl FromStr for PolicyRate {
    type Err = ParsePolicyUnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || ParsePolicyUnitError::Rate {
            text: text.to_owned(),
        };
        let (number, unit) = match text.char_indices().next_back() {
            Some((at, 'k' | 'K')) => (text.get(..at), 'k'),
            Some((at, 'm' | 'M')) => (text.get(..at), 'M'),
            Some((at, 'g' | 'G')) => (text.get(..at), 'G'),
            Some((_, '0'..='9')) => (Some(text), 'k'),
            _ => return Err(refused()),
        };
        let number = number.unwrap_or_default();
        format!("{number}{unit}")
            .parse()
            .map(Self)
            .map_err(|_same_text| refused())
    }
}

impl fmt::Display for PolicyRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.0.bits_per_second();
        let units = [('g', 1_000_000_000), ('m', 1_000_000)];
        let unit = units
            .into_iter()
            .find(|(_, unit)| bits >= *unit && bits.is_multiple_of(*unit));
        match (unit, bits % 1_000) {
            (Some((suffix, unit)), _) => write!(f, "{}{suffix}", bits / unit),
            (None, 0) => write!(f, "{}k", bits / 1_000),
            (None, rest) => {
                let fraction = format!("{rest:03}");
                write!(f, "{}.{}k", bits / 1_000, fraction.trim_end_matches('0'))
            }
        }
    }
}

/// Reads a burst size in the command language: bytes, or with `k`, `m` or `g` of either case a
/// decimal multiple (`64k` is 64,000 bytes, as rates are decimal too). 0 is automatic.
///
/// # Errors
/// [`ParsePolicyUnitError::Burst`].
pub fn parse_burst_bytes(text: &str) -> Result<u32, ParsePolicyUnitError> {
    let refused = || ParsePolicyUnitError::Burst {
        text: text.to_owned(),
    };
    let (number, unit) = match text.char_indices().next_back() {
        Some((at, 'k' | 'K')) => (text.get(..at), 1_000),
        Some((at, 'm' | 'M')) => (text.get(..at), 1_000_000),
        Some((at, 'g' | 'G')) => (text.get(..at), 1_000_000_000),
        _ => (Some(text), 1),
    };
    // `u32::from_str` would take a sign too.
    let digits = number.filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()));
    digits
        .and_then(|digits| digits.parse::<u32>().ok())
        .and_then(|number| number.checked_mul(unit))
        .ok_or_else(refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_bare_rate_is_kilobits_and_a_bare_burst_is_bytes() {
        for (text, bits) in [
            ("250", 250_000),
            ("64k", 64_000),
            ("64K", 64_000),
            ("100m", 100_000_000),
            ("2.5G", 2_500_000_000),
            ("1.5", 1_500),
            ("0", 0),
        ] {
            let rate = PolicyRate(BitRate::from_bits_per_second(bits));
            assert_eq!(text.parse(), Ok(rate), "{text}");
        }
        for (text, bytes) in [
            ("0", 0),
            ("1500", 1_500),
            ("64k", 64_000),
            ("4G", 4_000_000_000),
        ] {
            assert_eq!(parse_burst_bytes(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn rates_are_written_with_the_largest_suffix_that_is_exact() {
        for (bits, text) in [
            (0, "0k"),
            (64_000, "64k"),
            (1_500_000, "1500k"),
            (2_000_000_000, "2g"),
            (9_600, "9.6k"),
            (1, "0.001k"),
        ] {
            let rate = PolicyRate(BitRate::from_bits_per_second(bits));
            assert_eq!(rate.to_string(), text);
        }
    }

    #[test]
    fn other_texts_are_refused_with_what_to_write() {
        for text in [
            "",
            "k",
            "1t",
            "1kk",
            "-1",
            "+1",
            "1 m",
            "0.0001k",
            "99999999999g",
            "٣",
            "1k5",
        ] {
            let error = text.parse::<PolicyRate>().unwrap_err();
            assert_eq!(error, ParsePolicyUnitError::Rate { text: text.into() });
        }
        for text in ["", "k", "1.5k", "-1", "+1", "5g", "1kk", "٣"] {
            let error = parse_burst_bytes(text).unwrap_err();
            assert_eq!(error, ParsePolicyUnitError::Burst { text: text.into() });
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(bits: u64) {
            let rate = PolicyRate(BitRate::from_bits_per_second(bits));
            prop_assert_eq!(rate.to_string().parse(), Ok(rate));
        }

        #[test]
        fn any_text_is_read_or_refused_without_a_panic(text in ".{0,12}|[0-9.kKmMgG]{0,30}") {
            if let Ok(rate) = text.parse::<PolicyRate>() {
                prop_assert_eq!(rate.to_string().parse(), Ok(rate));
            }
            if let Ok(bytes) = parse_burst_bytes(&text) {
                prop_assert_eq!(parse_burst_bytes(&bytes.to_string()), Ok(bytes));
            }
        }
    }
}

//! Logical unit numbers: the number, and its 8-byte form (SAM-5 4.7).
//!
//! ```text
//! byte 0 bits 7..6  method
//!   00  peripheral device: bits 5..0 bus (0 here), byte 1 number 0..=255
//!   01  flat space: bits 5..0 and byte 1 number 0..=16383
//!   11  extended: bits 5..4 length, bits 3..0 kind
//!       C1 01           REPORT LUNS well known logical unit
//!       D2 hh mm ll     extended flat space, 24 bits
//!       E2 b1 .. b5     long extended flat space, 40 bits
//! ```
//! The bytes behind are further levels and must be zero: there is one level here.

use std::fmt;

use crate::cdb::be_uint;

/// A logical unit number, 0 to 16383.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lun(u16);

impl Lun {
    /// The largest number the flat space form can carry.
    pub const MAX: u16 = 0x3FFF;

    /// Number 0, where initiators begin.
    pub const ZERO: Self = Self(0);

    /// A number; `None` beyond [`Self::MAX`].
    #[must_use]
    pub const fn new(number: u16) -> Option<Self> {
        if number <= Self::MAX {
            Some(Self(number))
        } else {
            None
        }
    }

    /// The plain number.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0
    }

    /// The 8-byte form used in REPORT LUNS: peripheral below 256, flat space from there on.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 8] {
        let [high, low] = self.0.to_be_bytes();
        let method = if high == 0 { 0 } else { 0x40 };
        [method | high, low, 0, 0, 0, 0, 0, 0]
    }
}

impl fmt::Display for Lun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What the eight bytes of a request address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LunAddress {
    /// A number, whichever form carried it. There may be no unit behind it.
    Unit(Lun),
    /// The REPORT LUNS well known logical unit, `C1 01`.
    ReportLunsWellKnown,
    /// A form, level, bus or number that nothing here can have.
    Absent,
}

impl LunAddress {
    /// The 8-byte form of the REPORT LUNS well known logical unit.
    pub const REPORT_LUNS_BYTES: [u8; 8] = [0xC1, 0x01, 0, 0, 0, 0, 0, 0];

    /// Reads the 8-byte form. Never fails: what cannot be is [`Self::Absent`].
    #[must_use]
    pub fn parse(bytes: [u8; 8]) -> Self {
        if bytes == Self::REPORT_LUNS_BYTES {
            return Self::ReportLunsWellKnown;
        }
        let [first, second, ..] = bytes;
        let (number, used) = match first {
            0x00 => (u64::from(second), 2),
            0x40..=0x7F => (u64::from(u16::from_be_bytes([first & 0x3F, second])), 2),
            0xD2 => (be_uint(&bytes, 1..4), 4),
            0xE2 => (be_uint(&bytes, 1..6), 6),
            _ => return Self::Absent,
        };
        if bytes.iter().skip(used).any(|&byte| byte != 0) {
            return Self::Absent;
        }
        match u16::try_from(number).ok().and_then(Lun::new) {
            Some(lun) => Self::Unit(lun),
            None => Self::Absent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(number: u16) -> LunAddress {
        LunAddress::Unit(Lun::new(number).unwrap())
    }

    #[test]
    fn every_form_of_a_number_names_the_same_unit() {
        // S-04
        assert_eq!(LunAddress::parse([0, 1, 0, 0, 0, 0, 0, 0]), unit(1));
        assert_eq!(LunAddress::parse([0x40, 1, 0, 0, 0, 0, 0, 0]), unit(1));
        assert_eq!(LunAddress::parse([0xD2, 0, 0, 1, 0, 0, 0, 0]), unit(1));
        assert_eq!(LunAddress::parse([0xE2, 0, 0, 0, 0, 1, 0, 0]), unit(1));
        assert_eq!(LunAddress::parse([0x40, 0, 0, 0, 0, 0, 0, 0]), unit(0));
        assert_eq!(LunAddress::parse([0x41, 0x2C, 0, 0, 0, 0, 0, 0]), unit(300));
        assert_eq!(
            LunAddress::parse([0x7F, 0xFF, 0, 0, 0, 0, 0, 0]),
            unit(16383)
        );
    }

    #[test]
    fn well_known_unit_is_exactly_c1_01() {
        let bytes = [0xC1, 1, 0, 0, 0, 0, 0, 0];
        assert_eq!(LunAddress::parse(bytes), LunAddress::ReportLunsWellKnown);
        assert_eq!(
            LunAddress::parse([0xC1, 2, 0, 0, 0, 0, 0, 0]),
            LunAddress::Absent
        );
        assert_eq!(
            LunAddress::parse([0xC1, 1, 0, 0, 0, 0, 0, 1]),
            LunAddress::Absent
        );
    }

    #[test]
    fn garbage_other_buses_and_further_levels_are_absent() {
        for bytes in [
            [0x01, 0, 0, 0, 0, 0, 0, 0],
            [0x00, 1, 0x40, 0, 0, 0, 0, 0],
            [0x40, 1, 0, 0, 0, 0, 0, 1],
            [0x80, 1, 0, 0, 0, 0, 0, 0],
            [0xD2, 0, 0x40, 0, 0, 0, 0, 0],
            [0xD2, 1, 0, 0, 0, 0, 0, 0],
            [0xE2, 1, 0, 0, 0, 0, 0, 0],
            [0xFF; 8],
        ] {
            assert_eq!(LunAddress::parse(bytes), LunAddress::Absent, "{bytes:02x?}");
        }
    }

    #[test]
    fn written_form_reads_back_for_every_number() {
        for number in 0..=Lun::MAX {
            let lun = Lun::new(number).unwrap();
            assert_eq!(LunAddress::parse(lun.to_bytes()), LunAddress::Unit(lun));
        }
        assert_eq!(Lun::new(16384), None);
        assert_eq!(Lun::new(255).unwrap().to_bytes()[..2], [0x00, 0xFF]);
        assert_eq!(Lun::new(256).unwrap().to_bytes()[..2], [0x41, 0x00]);
    }
}

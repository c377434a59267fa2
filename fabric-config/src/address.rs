//! Names with a structure: ports, MAC addresses, world wide port names.

use std::fmt;
use std::str::FromStr;

/// I/O modules of a director: slots 1 to 15.
const SLOT_MAX: u8 = 15;

/// A text that is not the address it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {kind}; write it like {example}")]
pub struct AddressError {
    /// What was given.
    pub text: String,
    /// What it should be.
    pub kind: &'static str,
    /// A valid one.
    pub example: &'static str,
}

/// LAGs of a module: 1 to 5.
const LAG_MAX: u8 = 5;

/// A port of an I/O module: `slot/port`, slot 1 to 15, port 1 to 255; or a LAG of several,
/// `slot.lag`, lag 1 to 5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortName {
    slot: u8,
    is_lag: bool,
    port: u8,
}

impl PortName {
    /// The I/O module's slot, 1 to 15.
    #[must_use]
    pub const fn slot(self) -> u8 {
        self.slot
    }

    /// The port of the module, or the LAG, from 1.
    #[must_use]
    pub const fn port(self) -> u8 {
        self.port
    }

    /// Whether it is a LAG.
    #[must_use]
    pub const fn is_lag(self) -> bool {
        self.is_lag
    }
}

impl FromStr for PortName {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let port = text.split_once('/').map(|parts| (parts, false, u8::MAX));
            let lag = || Some((text.split_once('.')?, true, LAG_MAX));
            let ((slot, port), is_lag, port_max) = port.or_else(lag)?;
            let (slot, port) = (decimal(slot)?, decimal(port)?);
            let name = Self { slot, is_lag, port };
            let exists = (1..=SLOT_MAX).contains(&slot) && (1..=port_max).contains(&port);
            exists.then_some(name)
        };
        parse().ok_or_else(|| AddressError {
            text: text.to_owned(),
            kind: "port (slot 1 to 15, port 1 to 255)",
            example: "10/1",
        })
    }
}

/// Digits only: `u8::from_str` would take a sign too.
fn decimal(text: &str) -> Option<u8> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = if self.is_lag { '.' } else { '/' };
        write!(f, "{}{separator}{}", self.slot, self.port)
    }
}

/// Reads `N` hexadecimal bytes with colons between.
fn colon_bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts.next()?;
        if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(bytes)
}

fn write_colon_bytes(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    for (at, byte) in bytes.iter().enumerate() {
        let colon = if at == 0 { "" } else { ":" };
        write!(f, "{colon}{byte:02x}")?;
    }
    Ok(())
}

/// An IEEE 802 MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// All stations.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether it names one station: the group bit is clear and it is not all zero.
    #[must_use]
    pub fn is_unicast(self) -> bool {
        let [first, ..] = self.0;
        first & 1 == 0 && self.0 != [0; 6]
    }
}

impl FromStr for MacAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        colon_bytes(text).map(Self).ok_or_else(|| AddressError {
            text: text.to_owned(),
            kind: "MAC address",
            example: "02:00:00:00:00:01",
        })
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_colon_bytes(f, &self.0)
    }
}

/// A Fibre Channel world wide port name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Wwpn(pub u64);

impl Wwpn {
    /// The name of the vHBA with this device id: NAA 5 with the original's company id 00:13:97.
    #[must_use]
    pub fn of_device(id: u32) -> Self {
        Self(0x5001_3971_0000_0000 | u64::from(id))
    }
}

impl FromStr for Wwpn {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = colon_bytes(text).ok_or_else(|| AddressError {
            text: text.to_owned(),
            kind: "WWPN",
            example: "50:01:39:71:00:00:00:01",
        })?;
        Ok(Self(u64::from_be_bytes(bytes)))
    }
}

impl fmt::Display for Wwpn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_colon_bytes(f, &self.0.to_be_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_read_as_they_are_written() {
        assert_eq!("10/1".parse::<PortName>().unwrap().to_string(), "10/1");
        let mac: MacAddress = "02:AB:00:00:00:01".parse().unwrap();
        assert_eq!(mac, MacAddress([2, 0xab, 0, 0, 0, 1]));
        assert_eq!(mac.to_string(), "02:ab:00:00:00:01");
        assert_eq!(Wwpn::of_device(11).to_string(), "50:01:39:71:00:00:00:0b");
        assert_eq!("50:01:39:71:00:00:00:0b".parse(), Ok(Wwpn::of_device(11)));
    }

    #[test]
    fn malformed_addresses_are_refused() {
        for text in [
            "", "/", "0/1", "16/1", "1/0", "1/256", "+1/1", "1/1/1", "1", "a/b",
        ] {
            assert!(text.parse::<PortName>().is_err(), "{text}");
        }
        for text in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "2:0:0:0:0:1",
            "0g:00:00:00:00:01",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
        assert!(!MacAddress::BROADCAST.is_unicast());
        assert!(!MacAddress([0; 6]).is_unicast());
        assert!(!MacAddress([1, 0, 0x5e, 0, 0, 1]).is_unicast());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_without_a_panic(text in "[0-9a-f:/+]{0,24}|.{0,12}") {
            if let Ok(port) = text.parse::<PortName>() {
                prop_assert_eq!(port.to_string().parse(), Ok(port));
            }
            if let Ok(mac) = text.parse::<MacAddress>() {
                prop_assert_eq!(mac.to_string().parse(), Ok(mac));
            }
        }
    }
}

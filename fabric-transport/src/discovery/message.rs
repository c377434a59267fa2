//! The two datagrams of discovery. Core: bytes in, values out.
//!
//! | offset | bytes | field | meaning |
//! | --- | --- | --- | --- |
//! | 0 | 4 | magic | 4f 4d 44 53 ("OMDS") |
//! | 4 | 1 | version | 1 |
//! | 5 | 1 | kind | 1 DISCOVER, 2 OFFER |
//! | 6 | 2 | | 0, not read |
//! | 8 | 8 | nonce | DISCOVER: random; OFFER: that of the DISCOVER it answers |
//! | 16 | 8 | instance | of the sender's process, as in HELLO and WELCOME |
//! | 24 | 2 | MTU | 0, not read: kept for what the control network carries |
//! | 26 | 2 | weight | 0, not read: kept for choosing among directors |
//! | 28 | 1 | name bytes | 1 to 63 |
//! | 29 | 1 | addresses | DISCOVER: 0; OFFER: 1 to 8 |
//! | 30 | 2 | | 0, not read |
//! | 32 | | name | of the host or director: printable ASCII |
//! | | | addresses | each: its bytes u8 (1 to 64), then a link address like `tcp:192.0.2.1:7471` |
//!
//! Little-endian. Nothing follows. docs/fabric-protocol.md says it too: change both.

use zerocopy::byteorder::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::control::NAME_BYTES_MAX;

/// Addresses of one offer at most.
pub const ADDRESSES_MAX: usize = 8;
/// Bytes of the text of an address at most.
pub const ADDRESS_BYTES_MAX: usize = 64;
/// Bytes of a datagram at most.
pub const DATAGRAM_BYTES_MAX: usize =
    HEADER_BYTES + NAME_BYTES_MAX + ADDRESSES_MAX * (1 + ADDRESS_BYTES_MAX);

const HEADER_BYTES: usize = size_of::<Header>();
const MAGIC: [u8; 4] = *b"OMDS";
const VERSION: u8 = 1;
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 4],
    version: u8,
    kind: u8,
    unused: U16,
    nonce: U64,
    instance: U64,
    mtu: U16,
    weight: U16,
    name_bytes: u8,
    addresses: u8,
    unused_too: U16,
}

/// What a datagram says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A host asks which directors there are.
    Discover,
    /// A director says where it listens.
    Offer,
}

/// A datagram of discovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What it says.
    pub kind: Kind,
    /// Random for each question; an answer repeats it.
    pub nonce: u64,
    /// Random for each start of the sender's process.
    pub instance: u64,
    /// The sender: a host or a director.
    pub name: String,
    /// Texts of link addresses, in the order of their priority; none in a question.
    pub addresses: Vec<String>,
}

/// Bytes that are no datagram of discovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// It ends too early, or goes on after its end.
    #[error("is shorter or longer than it says")]
    Length,
    /// Another protocol's.
    #[error("is not of discovery")]
    Magic,
    /// A later version.
    #[error("has version {0}, which is not known here")]
    Version(u8),
    /// Neither question nor answer.
    #[error("has kind {0}, which is not known here")]
    Kind(u8),
    /// The name is empty, too long or not printable ASCII.
    #[error("has a name that is none")]
    Name,
    /// Too many or too few addresses, or one that is empty, too long or not printable ASCII.
    #[error("has addresses that are none")]
    Addresses,
}

impl Message {
    /// The bytes to send. A name is cut after [`NAME_BYTES_MAX`] bytes; addresses that are longer
    /// than [`ADDRESS_BYTES_MAX`], or come after [`ADDRESSES_MAX`] others, are left out.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let name = self.name.as_bytes();
        let name = name.get(..NAME_BYTES_MAX).unwrap_or(name);
        let fits = |text: &&String| text.len() <= ADDRESS_BYTES_MAX;
        let addresses = self.addresses.iter().filter(fits).take(ADDRESSES_MAX);
        let short = |count: usize| u8::try_from(count).unwrap_or(u8::MAX);
        let header = Header {
            magic: MAGIC,
            version: VERSION,
            kind: match self.kind {
                Kind::Discover => DISCOVER,
                Kind::Offer => OFFER,
            },
            unused: U16::ZERO,
            nonce: self.nonce.into(),
            instance: self.instance.into(),
            mtu: U16::ZERO,
            weight: U16::ZERO,
            name_bytes: short(name.len()),
            addresses: short(addresses.clone().count()),
            unused_too: U16::ZERO,
        };
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(name);
        for address in addresses {
            bytes.push(short(address.len()));
            bytes.extend_from_slice(address.as_bytes());
        }
        bytes
    }

    /// Reads a whole datagram.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, MessageError> {
        let (header, rest) =
            Header::read_from_prefix(bytes).map_err(|_short| MessageError::Length)?;
        if header.magic != MAGIC {
            return Err(MessageError::Magic);
        }
        if header.version != VERSION {
            return Err(MessageError::Version(header.version));
        }
        let (kind, counts) = match header.kind {
            DISCOVER => (Kind::Discover, 0..=0),
            OFFER => (Kind::Offer, 1..=ADDRESSES_MAX),
            other => return Err(MessageError::Kind(other)),
        };
        if !counts.contains(&header.addresses.into()) {
            return Err(MessageError::Addresses);
        }
        let (name, mut rest) = take(rest, header.name_bytes)?;
        let name = text(name, NAME_BYTES_MAX).ok_or(MessageError::Name)?;
        let mut addresses = Vec::with_capacity(header.addresses.into());
        for _ in 0..header.addresses {
            let (count, others) = rest.split_first().ok_or(MessageError::Length)?;
            let (address, others) = take(others, *count)?;
            addresses.push(text(address, ADDRESS_BYTES_MAX).ok_or(MessageError::Addresses)?);
            rest = others;
        }
        if !rest.is_empty() {
            return Err(MessageError::Length);
        }
        Ok(Self {
            kind,
            nonce: header.nonce.get(),
            instance: header.instance.get(),
            name,
            addresses,
        })
    }
}

fn take(bytes: &[u8], count: u8) -> Result<(&[u8], &[u8]), MessageError> {
    bytes
        .split_at_checked(count.into())
        .ok_or(MessageError::Length)
}

fn text(bytes: &[u8], bytes_max: usize) -> Option<String> {
    let fits = (1..=bytes_max).contains(&bytes.len());
    let text = std::str::from_utf8(bytes).ok().filter(|_| fits)?;
    let printable = text.chars().all(|c| c.is_ascii_graphic());
    printable.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn offer() -> Message {
        Message {
            kind: Kind::Offer,
            nonce: 0x1122_3344_5566_7788,
            instance: 0x99aa_bbcc_ddee_ff00,
            name: "d1".to_owned(),
            addresses: vec!["tcp:192.0.2.1:7471".to_owned(), "tls:h:1".to_owned()],
        }
    }

    fn discover() -> Message {
        Message {
            kind: Kind::Discover,
            name: "host1".to_owned(),
            addresses: Vec::new(),
            ..offer()
        }
    }

    /// The same bytes stand in docs/fabric-protocol.md.
    #[test]
    fn datagrams_stand_where_the_table_says() {
        let mut golden = b"OMDS\x01\x01\0\0\x88\x77\x66\x55\x44\x33\x22\x11".to_vec();
        golden.extend(b"\x00\xff\xee\xdd\xcc\xbb\xaa\x99\0\0\0\0\x05\x00\0\0host1");
        assert_eq!(discover().to_bytes(), golden);
        let mut golden = b"OMDS\x01\x02\0\0\x88\x77\x66\x55\x44\x33\x22\x11".to_vec();
        golden.extend(b"\x00\xff\xee\xdd\xcc\xbb\xaa\x99\0\0\0\0\x02\x02\0\0d1");
        golden.extend(b"\x12tcp:192.0.2.1:7471\x07tls:h:1");
        assert_eq!(offer().to_bytes(), golden);
    }

    #[test]
    fn p02_every_truncation_and_every_longer_datagram_is_refused() {
        for message in [offer(), discover()] {
            let mut bytes = message.to_bytes();
            for end in 0..bytes.len() {
                assert_eq!(Message::parse(&bytes[..end]), Err(MessageError::Length));
            }
            assert_eq!(Message::parse(&bytes), Ok(message));
            bytes.push(0);
            assert_eq!(Message::parse(&bytes), Err(MessageError::Length));
        }
    }

    #[test]
    fn p03_what_is_wrong_is_told_apart() {
        let changed = |message: &Message, at: usize, value| {
            let mut bytes = message.to_bytes();
            bytes[at] = value;
            Message::parse(&bytes)
        };
        assert_eq!(changed(&offer(), 0, 0), Err(MessageError::Magic));
        assert_eq!(changed(&offer(), 4, 2), Err(MessageError::Version(2)));
        assert_eq!(changed(&offer(), 5, 0), Err(MessageError::Kind(0)));
        assert_eq!(changed(&offer(), 29, 0), Err(MessageError::Addresses));
        assert_eq!(changed(&offer(), 29, 9), Err(MessageError::Addresses));
        assert_eq!(changed(&discover(), 29, 1), Err(MessageError::Addresses));
        assert_eq!(changed(&offer(), 28, 0), Err(MessageError::Name));
        assert_eq!(changed(&offer(), 32, b' '), Err(MessageError::Name));
        assert_eq!(changed(&offer(), 40, 0xff), Err(MessageError::Addresses));
        // What is kept for later is not read.
        for at in [6, 7, 24, 25, 26, 27, 30, 31] {
            assert_eq!(changed(&offer(), at, 0xff), Ok(offer()), "{at}");
        }
    }

    #[test]
    fn the_largest_datagram_is_read_and_no_larger_one_is_written() {
        let mut largest = offer();
        largest.name = "n".repeat(NAME_BYTES_MAX);
        largest.addresses = vec!["a".repeat(ADDRESS_BYTES_MAX); ADDRESSES_MAX];
        let bytes = largest.to_bytes();
        assert_eq!(bytes.len(), DATAGRAM_BYTES_MAX);
        assert_eq!(Message::parse(&bytes), Ok(largest.clone()));
        let mut more = largest.clone();
        more.name.push('x');
        more.addresses.push("b".to_owned());
        more.addresses.insert(0, "c".repeat(ADDRESS_BYTES_MAX + 1));
        assert_eq!(more.to_bytes(), bytes);
    }

    proptest! {
        #[test]
        fn p01_any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..700)) {
            if let Ok(message) = Message::parse(&bytes) {
                prop_assert_eq!(Message::parse(&message.to_bytes()), Ok(message));
            }
        }

        #[test]
        fn p01_any_changed_datagram_is_answered(
            changes in prop::collection::vec((4_usize..80, any::<u8>()), 0..6),
            is_offer in any::<bool>(),
        ) {
            let mut bytes = if is_offer { offer() } else { discover() }.to_bytes();
            for (at, value) in changes {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            if let Ok(message) = Message::parse(&bytes) {
                prop_assert!(message.addresses.len() <= ADDRESSES_MAX);
                prop_assert_eq!(Message::parse(&message.to_bytes()), Ok(message));
            }
        }

        #[test]
        fn what_is_written_is_read(
            nonce: u64,
            instance: u64,
            name in "[!-~]{1,63}",
            addresses in prop::collection::vec("[!-~]{1,64}", 0..=8),
        ) {
            let kind = if addresses.is_empty() { Kind::Discover } else { Kind::Offer };
            let message = Message { kind, nonce, instance, name, addresses };
            prop_assert_eq!(Message::parse(&message.to_bytes()), Ok(message));
        }
    }
}

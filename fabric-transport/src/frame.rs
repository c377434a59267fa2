//! The frame: a 32-byte header and up to [`PAYLOAD_BYTES_MAX`] bytes of payload.
//!
//! | offset | bytes | field | meaning |
//! | --- | --- | --- | --- |
//! | 0 | 2 | magic | 0x4d4f ("OM") |
//! | 2 | 1 | version | 1 in HELLO, then the session's: 1 or 2 |
//! | 3 | 1 | kind | [`FrameKind`] |
//! | 4 | 1 | lane | [`VirtualLane`] |
//! | 5 | 1 | flags | bit 0: `crc32c` counts; bit 1, DATA: the payload goes on in the lane's next frame; the others are 0 |
//! | 6 | 2 | epoch | of the session; 0 until WELCOME |
//! | 8 | 4 | device | [`DeviceId`]; 0 for the session itself |
//! | 12 | 3 | payload bytes | |
//! | 15 | 1 | attachment | version 2, frames of a device: its attachment in this session, modulo 2^8; else 0 |
//! | 16 | 4 | sequence | DATA: packet sequence number in its lane, from 0, modulo 2^32; version 2: ATTACH, ATTACHED, REFUSED, DETACH: their number in the session |
//! | 20 | 4 | credit limit | DATA: FCCL, blocks that the *sender of this frame* allows on the same lane in the other direction |
//! | 24 | 4 | acknowledge | sequenced frames received on this link so far, modulo 2^32 |
//! | 28 | 4 | crc32c | of header (with this field 0) and payload |
//!
//! Little-endian. The hash of this file stands in docs/fabric-protocol.md: change both.

use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::frame_pool;

/// Bytes of the header.
pub const HEADER_BYTES: usize = 32;
/// Bytes of payload at most: 64 KiB of data and the headers of its payload format.
pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024 + 256;
/// Bytes of one block of credit (InfiniBand counts flow control in 64-byte blocks).
pub const BLOCK_BYTES: usize = 64;
/// The lowest protocol version that this code speaks: one link a session.
pub const VERSION_MIN: u8 = 1;
/// The highest: sessions over several links.
pub const VERSION: u8 = 2;

const MAGIC: u16 = 0x4d4f;
const FLAG_CRC32C: u8 = 1;
const FLAG_MORE: u8 = 2;

/// Names a device on the whole fabric, for as long as the device exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(pub u32);

impl std::fmt::Display for DeviceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "dev-{:08x}", self.0)
    }
}

/// A class of frames with buffers of its own, so that one class cannot starve another.
///
/// The order is the order of precedence inside a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum VirtualLane {
    /// SCSI task management and events.
    TaskManagement,
    /// SCSI commands.
    StorageCommand,
    /// SCSI data and status.
    StorageData,
    /// Ethernet frames.
    Network,
}

impl VirtualLane {
    /// Number of lanes of a device in one direction.
    pub const COUNT: usize = 4;
    /// All of them, by precedence.
    pub const ALL: [Self; Self::COUNT] = [
        Self::TaskManagement,
        Self::StorageCommand,
        Self::StorageData,
        Self::Network,
    ];

    /// Position in [`Self::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::TaskManagement => 0,
            Self::StorageCommand => 1,
            Self::StorageData => 2,
            Self::Network => 3,
        }
    }

    /// The byte of the frame header; 0 is kept for the session itself.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::TaskManagement => 1,
            Self::StorageCommand => 2,
            Self::StorageData => 3,
            Self::Network => 4,
        }
    }

    /// The lane of a header byte.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::TaskManagement),
            2 => Some(Self::StorageCommand),
            3 => Some(Self::StorageData),
            4 => Some(Self::Network),
            _ => None,
        }
    }
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FrameKind {
    /// Host to director: who is there, versions, features.
    Hello,
    /// Director to host: the session's epoch.
    Welcome,
    /// Host to director: a device with its receive windows.
    Attach,
    /// Director to host: the device is served; its receive windows.
    Attached,
    /// Director to host: the device is not served; the reason.
    Refused,
    /// Either way: the device is gone.
    Detach,
    /// Payload of a lane.
    Data,
    /// New credit limits of several lanes.
    Credit,
    /// Carries only the acknowledge field.
    Acknowledge,
    /// Asks for a PONG with the same payload.
    Ping,
    /// Answers a PING.
    Pong,
    /// The session ends; the reason.
    Close,
    /// What the sender says of a link of the session.
    Path,
}

impl FrameKind {
    const ALL: [(u8, Self); 13] = [
        (1, Self::Hello),
        (2, Self::Welcome),
        (3, Self::Attach),
        (4, Self::Attached),
        (5, Self::Refused),
        (6, Self::Detach),
        (7, Self::Data),
        (8, Self::Credit),
        (9, Self::Acknowledge),
        (10, Self::Ping),
        (11, Self::Pong),
        (12, Self::Close),
        (13, Self::Path),
    ];

    /// The byte of the frame header.
    #[must_use]
    pub fn number(self) -> u8 {
        Self::ALL
            .iter()
            .find(|(_, kind)| *kind == self)
            .map_or(0, |(number, _)| *number)
    }

    /// The kind of a header byte.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(known, _)| *known == number)
            .map(|(_, kind)| *kind)
    }

    /// Whether the peer acknowledges such a frame, and it goes out again when its link is lost
    /// before that. In version 1 only DATA is acknowledged.
    #[must_use]
    pub fn is_sequenced(self, version: u8) -> bool {
        match self {
            Self::Data => true,
            Self::Attach | Self::Attached | Self::Refused | Self::Detach => version > VERSION_MIN,
            _ => false,
        }
    }
}

/// A checked header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Protocol version.
    pub version: u8,
    /// What the frame is.
    pub kind: FrameKind,
    /// Its lane; `None` for the session itself.
    pub lane: Option<VirtualLane>,
    /// DATA: the payload goes on in the next frame of the lane.
    pub more: bool,
    /// Session epoch.
    pub epoch: u16,
    /// Device; 0 for the session itself.
    pub device: DeviceId,
    /// Bytes behind the header.
    pub payload_bytes: u32,
    /// Attachment of the device in this session, modulo 2^8.
    pub attachment: u8,
    /// Packet sequence number.
    pub sequence: u32,
    /// FCCL of the same lane in the other direction, blocks.
    pub credit_limit: u32,
    /// Sequenced frames received so far.
    pub acknowledge: u32,
}

/// Why bytes are not a frame. The stream is lost: the link must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than a header.
    #[error("frame of {frame_bytes} bytes is shorter than its header")]
    Short {
        /// What is there.
        frame_bytes: usize,
    },
    /// Not our magic number.
    #[error("frame starts with {magic:#06x}, not with the fabric's magic number")]
    Magic {
        /// What is there.
        magic: u16,
    },
    /// Another protocol version.
    #[error("peer speaks protocol version {version}, this side speaks {VERSION_MIN} to {VERSION}")]
    Version {
        /// The peer's.
        version: u8,
    },
    /// An unknown kind, lane or flag.
    #[error("frame field {field} holds unknown value {value}")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: u8,
    },
    /// Longer than [`PAYLOAD_BYTES_MAX`].
    #[error("frame announces {payload_bytes} bytes of payload, more than {PAYLOAD_BYTES_MAX}")]
    Long {
        /// What it announces.
        payload_bytes: u32,
    },
    /// The checksum is missing on a link that needs it, or wrong.
    #[error("frame checksum is wrong")]
    Checksum,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct WireHeader {
    magic: U16,
    version: u8,
    kind: u8,
    lane: u8,
    flags: u8,
    epoch: U16,
    device: U32,
    /// 24 bits of payload bytes, and the attachment above them.
    payload_and_attachment: U32,
    sequence: U32,
    credit_limit: U32,
    acknowledge: U32,
    crc32c: U32,
}

impl FrameHeader {
    /// Bytes of the whole frame that starts with `bytes`; `None` until a header is there.
    ///
    /// Checks what the length depends on and nothing else.
    ///
    /// # Errors
    /// [`FrameError::Magic`], [`FrameError::Version`], [`FrameError::Long`].
    pub fn frame_bytes(bytes: &[u8]) -> Result<Option<usize>, FrameError> {
        let Ok((wire, _)) = WireHeader::ref_from_prefix(bytes) else {
            return Ok(None);
        };
        wire.check()?;
        // Cannot be cut short: `check` bounds it.
        Ok(usize::try_from(wire.payload_bytes())
            .ok()
            .map(|payload| HEADER_BYTES + payload))
    }

    /// Splits one whole frame into header and payload.
    ///
    /// `checksummed` says that the link needs the CRC32C to be there and right.
    ///
    /// # Errors
    /// The first [`FrameError`] found.
    pub fn parse(frame: &[u8], checksummed: bool) -> Result<(Self, &[u8]), FrameError> {
        let short = FrameError::Short {
            frame_bytes: frame.len(),
        };
        let (wire, payload) = WireHeader::ref_from_prefix(frame).map_err(|_size| short)?;
        wire.check()?;
        if usize::try_from(wire.payload_bytes()) != Ok(payload.len()) {
            return Err(short);
        }
        let known = match FrameKind::from_number(wire.kind) {
            Some(FrameKind::Data) => FLAG_CRC32C | FLAG_MORE,
            _ => FLAG_CRC32C,
        };
        if wire.flags & !known != 0 {
            return Err(FrameError::Field {
                field: "flags",
                value: wire.flags,
            });
        }
        if checksummed
            && (wire.flags & FLAG_CRC32C == 0 || wire.checksum(payload) != wire.crc32c.get())
        {
            return Err(FrameError::Checksum);
        }
        let kind = FrameKind::from_number(wire.kind).ok_or(FrameError::Field {
            field: "kind",
            value: wire.kind,
        })?;
        let lane = match wire.lane {
            0 => None,
            number => Some(VirtualLane::from_number(number).ok_or(FrameError::Field {
                field: "lane",
                value: number,
            })?),
        };
        let [.., attachment] = wire.payload_and_attachment.to_bytes();
        let header = Self {
            version: wire.version,
            kind,
            lane,
            more: wire.flags & FLAG_MORE != 0,
            epoch: wire.epoch.get(),
            device: DeviceId(wire.device.get()),
            payload_bytes: wire.payload_bytes(),
            attachment,
            sequence: wire.sequence.get(),
            credit_limit: wire.credit_limit.get(),
            acknowledge: wire.acknowledge.get(),
        };
        Ok((header, payload))
    }
}

impl WireHeader {
    fn check(&self) -> Result<(), FrameError> {
        if self.magic.get() != MAGIC {
            return Err(FrameError::Magic {
                magic: self.magic.get(),
            });
        }
        if !(VERSION_MIN..=VERSION).contains(&self.version) {
            return Err(FrameError::Version {
                version: self.version,
            });
        }
        let payload_bytes = self.payload_bytes();
        match usize::try_from(payload_bytes) {
            Ok(bytes) if bytes <= PAYLOAD_BYTES_MAX => Ok(()),
            _ => Err(FrameError::Long { payload_bytes }),
        }
    }

    fn payload_bytes(&self) -> u32 {
        match self.version {
            // Version 1 has nothing above them.
            VERSION_MIN => self.payload_and_attachment.get(),
            _ => self.payload_and_attachment.get() & 0x00ff_ffff,
        }
    }

    fn checksum(&self, payload: &[u8]) -> u32 {
        let mut header = [0; HEADER_BYTES];
        header.copy_from_slice(self.as_bytes());
        if let Some(field) = header.last_chunk_mut::<{ size_of::<U32>() }>() {
            *field = [0; size_of::<U32>()];
        }
        crc32c(&[&header, payload])
    }
}

/// CRC32C (Castagnoli) of `parts`, one after the other.
#[must_use]
pub fn crc32c(parts: &[&[u8]]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    for part in parts {
        digest.update(part);
    }
    // The library's sums have up to 64 bits; these are the lower 32.
    let [.., a, b, c, d] = digest.finalize().to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

/// A frame under construction: room for the header, then the payload.
///
/// Its memory serves another frame when it is dropped.
#[derive(Debug, PartialEq, Eq)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
}

impl Drop for FrameBuffer {
    fn drop(&mut self) {
        frame_pool::give(std::mem::take(&mut self.bytes));
    }
}

impl Clone for FrameBuffer {
    fn clone(&self) -> Self {
        let mut bytes = frame_pool::take(self.bytes.len());
        bytes.extend_from_slice(&self.bytes);
        Self { bytes }
    }
}

impl FrameBuffer {
    /// An empty payload with room for `payload_bytes`.
    #[must_use]
    pub fn with_capacity(payload_bytes: usize) -> Self {
        let mut bytes = frame_pool::take(HEADER_BYTES + payload_bytes);
        bytes.extend_from_slice(&[0; HEADER_BYTES]);
        Self { bytes }
    }

    /// A payload of `payload_bytes` zeros, to be filled through [`Self::payload_mut`].
    #[must_use]
    pub fn zeroed(payload_bytes: usize) -> Self {
        let mut bytes = frame_pool::take(HEADER_BYTES + payload_bytes);
        bytes.resize(HEADER_BYTES + payload_bytes, 0);
        Self { bytes }
    }

    /// A copy of `payload`.
    #[must_use]
    pub fn from_payload(payload: &[u8]) -> Self {
        let mut buffer = Self::with_capacity(payload.len());
        buffer.extend_from_slice(payload);
        buffer
    }

    /// Appends to the payload.
    pub fn extend_from_slice(&mut self, payload: &[u8]) {
        self.bytes.extend_from_slice(payload);
    }

    /// The payload's bytes to append to, for encoders that write into a `Vec`.
    ///
    /// What stands in the vector before must stay: it is the header's room.
    pub fn append_with(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        encode(&mut self.bytes);
        debug_assert!(self.bytes.len() >= HEADER_BYTES, "the header's room stays");
    }

    /// The payload.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        self.bytes.get(HEADER_BYTES..).unwrap_or_default()
    }

    /// The payload, to be written.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(HEADER_BYTES..).unwrap_or_default()
    }

    /// Bytes of the payload.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        self.payload().len()
    }

    /// Bytes of header and payload.
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Header and payload, as they go on the link.
    #[must_use]
    pub fn frame(&self) -> &[u8] {
        &self.bytes
    }

    /// Writes `header` in front of the payload; `payload_bytes` is taken from the buffer.
    pub fn seal(&mut self, header: &FrameHeader, checksummed: bool) {
        // Payloads are checked against PAYLOAD_BYTES_MAX before they are queued.
        let payload_bytes = u32::try_from(self.payload_bytes()).unwrap_or(u32::MAX);
        let mut wire = WireHeader {
            magic: MAGIC.into(),
            version: header.version,
            kind: header.kind.number(),
            lane: header.lane.map_or(0, VirtualLane::number),
            flags: u8::from(checksummed) * FLAG_CRC32C + u8::from(header.more) * FLAG_MORE,
            epoch: header.epoch.into(),
            device: header.device.0.into(),
            payload_and_attachment: (payload_bytes | u32::from(header.attachment) << 24).into(),
            sequence: header.sequence.into(),
            credit_limit: header.credit_limit.into(),
            acknowledge: header.acknowledge.into(),
            crc32c: U32::ZERO,
        };
        if checksummed {
            wire.crc32c = wire.checksum(self.payload()).into();
        }
        if let Some(room) = self.bytes.get_mut(..HEADER_BYTES) {
            room.copy_from_slice(wire.as_bytes());
        }
    }
}

/// Blocks of credit that a frame with `payload_bytes` costs: header and payload, rounded up.
///
/// A frame costs at least one block, so a byte credit bounds the number of frames too.
#[must_use]
pub fn blocks(payload_bytes: usize) -> u32 {
    u32::try_from((HEADER_BYTES + payload_bytes).div_ceil(BLOCK_BYTES)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEADER: FrameHeader = FrameHeader {
        version: 1,
        kind: FrameKind::Data,
        lane: Some(VirtualLane::Network),
        more: false,
        epoch: 0x0102,
        device: DeviceId(0x2a),
        payload_bytes: 4,
        attachment: 0,
        sequence: 0x1112_1314,
        credit_limit: 0x2122_2324,
        acknowledge: 0x3132_3334,
    };

    /// The example of docs/fabric-protocol.md. The CRC was computed with the reflected Castagnoli
    /// polynomial 0x82f63b78 bit by bit, not with the crate that the code uses.
    #[rustfmt::skip]
    const GOLDEN: [u8; 36] = [
        0x4f, 0x4d, 1, 7, 4, 1, 0x02, 0x01,
        0x2a, 0, 0, 0, 4, 0, 0, 0,
        0x14, 0x13, 0x12, 0x11, 0x24, 0x23, 0x22, 0x21,
        0x34, 0x33, 0x32, 0x31, 0, 0, 0, 0,
        0xde, 0xad, 0xbe, 0xef,
    ];

    fn crc32c_by_definition(bytes: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (0x82f6_3b78 & 0u32.wrapping_sub(crc & 1));
            }
        }
        !crc
    }

    #[test]
    fn header_stands_where_the_table_says() {
        let mut golden = GOLDEN;
        let crc = crc32c_by_definition(&golden);
        golden[28..32].copy_from_slice(&crc.to_le_bytes());
        let mut buffer = FrameBuffer::from_payload(&[0xde, 0xad, 0xbe, 0xef]);
        buffer.seal(&HEADER, true);
        assert_eq!(buffer.frame(), golden);
        assert_eq!(
            FrameHeader::parse(&golden, true),
            Ok((HEADER, &golden[32..]))
        );
        assert_eq!(FrameHeader::frame_bytes(&golden), Ok(Some(36)));
    }

    #[test]
    fn version_2_has_the_attachment_above_the_length() {
        let mut buffer = FrameBuffer::from_payload(&[0xde, 0xad, 0xbe, 0xef]);
        let header = FrameHeader {
            version: 2,
            attachment: 0xa5,
            ..HEADER
        };
        buffer.seal(&header, false);
        let mut golden = GOLDEN;
        (golden[2], golden[5], golden[15]) = (2, 0, 0xa5);
        assert_eq!(buffer.frame(), golden);
        assert_eq!(
            FrameHeader::parse(&golden, false),
            Ok((header, &golden[32..]))
        );
    }

    #[test]
    fn p10_one_flipped_bit_is_caught() {
        let mut buffer = FrameBuffer::from_payload(&[0; 100]);
        buffer.seal(&HEADER, true);
        let frame = buffer.frame().to_vec();
        for bit in 0..frame.len() * 8 {
            let mut flipped = frame.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(FrameHeader::parse(&flipped, true).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn p01_length_is_bounded_before_anything_is_allocated() {
        let mut bytes = GOLDEN;
        for (payload_bytes, fits) in [
            (0, true),
            (65_792, true),
            (65_793, false),
            (u32::MAX, false),
        ] {
            bytes[12..16].copy_from_slice(&payload_bytes.to_le_bytes());
            let expected = if fits {
                Ok(Some(32 + usize::try_from(payload_bytes).unwrap()))
            } else {
                Err(FrameError::Long { payload_bytes })
            };
            assert_eq!(FrameHeader::frame_bytes(&bytes), expected);
        }
        assert_eq!(FrameHeader::frame_bytes(&bytes[..31]), Ok(None));
    }

    #[test]
    fn p03_other_version_is_named() {
        let mut bytes = GOLDEN;
        for version in [0, 3] {
            bytes[2] = version;
            assert_eq!(
                FrameHeader::frame_bytes(&bytes),
                Err(FrameError::Version { version })
            );
        }
    }

    #[test]
    fn a_block_is_64_bytes_and_every_frame_costs_one() {
        assert_eq!(blocks(0), 1);
        assert_eq!(blocks(32), 1);
        assert_eq!(blocks(33), 2);
        assert_eq!(blocks(PAYLOAD_BYTES_MAX), 1029);
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok((header, payload)) = FrameHeader::parse(&bytes, false) {
                prop_assert_eq!(payload.len() + HEADER_BYTES, bytes.len());
                prop_assert_eq!(usize::try_from(header.payload_bytes), Ok(payload.len()));
            }
        }
    }
}

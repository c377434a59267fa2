//! An Ethernet frame on a network lane: a [`VirtioNetHeader`] and the frame, without FCS.
//!
//! | offset | bytes | field | |
//! | --- | --- | --- | --- |
//! | 0 | 1 | flags | bit 0 `NEEDS_CSUM`, bit 1 `DATA_VALID` |
//! | 1 | 1 | gso_type | 0 none, 1 TCPv4, 4 TCPv6, 5 UDP_L4; 0x80 ECN |
//! | 2 | 2 | hdr_len | bytes of all headers of a GSO frame (a hint) |
//! | 4 | 2 | gso_size | payload bytes of each segment |
//! | 6 | 2 | csum_start | where the checksum is computed from |
//! | 8 | 2 | csum_offset | where it is stored, from `csum_start` |
//! | 10 | 2 | num_buffers | 0 on the fabric: a matter of the receiving ring |
//! | 12 | | frame | destination MAC first |
//!
//! Super-frames cross the fabric unsegmented; the header says how the last hop cuts them.
//!
//! On the task management lane, towards the host, a [`LinkState`]:
//!
//! | offset | bytes | field | |
//! | --- | --- | --- | --- |
//! | 0 | 1 | type | 8 |
//! | 1 | 1 | state | 0 down, 1 up |
//! | 2 | 6 | | 0, not read |

use zerocopy::byteorder::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of the header in front of every frame (`virtio_net_hdr_v1`).
pub const HEADER_BYTES: usize = 12;
/// Bytes of destination, source and EtherType: the shortest frame that is carried.
pub const ETHERNET_HEADER_BYTES: usize = 14;
/// The longest frame: a 64 KiB IP datagram behind an Ethernet header with two VLAN tags.
pub const FRAME_BYTES_MAX: usize = 65_535 + ETHERNET_HEADER_BYTES + 8;
/// Bytes of the longest payload of a network lane.
pub const PAYLOAD_BYTES_MAX: usize = HEADER_BYTES + FRAME_BYTES_MAX;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the sender left a partial checksum to be completed.
pub const FLAG_NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`: the checksum was verified.
pub const FLAG_DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Bytes of a [`LinkState`].
pub const LINK_STATE_BYTES: usize = 8;
const LINK_STATE: u8 = 8;

/// Whether the port of a vNIC has carrier and both are up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// Nothing passes.
    Down,
    /// Frames pass.
    Up,
}

impl LinkState {
    /// As it travels.
    #[must_use]
    pub const fn bytes(self) -> [u8; LINK_STATE_BYTES] {
        let state = match self {
            Self::Down => 0,
            Self::Up => 1,
        };
        [LINK_STATE, state, 0, 0, 0, 0, 0, 0]
    }

    /// Reads it; `None`: it is something else.
    #[must_use]
    pub fn read(unit: &[u8]) -> Option<Self> {
        let unit: &[u8; LINK_STATE_BYTES] = unit.try_into().ok()?;
        match unit {
            [LINK_STATE, 0, ..] => Some(Self::Down),
            [LINK_STATE, 1, ..] => Some(Self::Up),
            _ => None,
        }
    }
}

/// `virtio_net_hdr_v1` as it travels (virtio 1.2 section 5.1.6).
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub struct VirtioNetHeader {
    /// [`FLAG_NEEDS_CSUM`], [`FLAG_DATA_VALID`].
    pub flags: u8,
    /// Segmentation type, with the ECN bit 0x80.
    pub gso_type: u8,
    /// Bytes of headers of a super-frame.
    pub header_len: U16,
    /// Payload bytes of each segment of a super-frame.
    pub gso_size: U16,
    /// Offset where checksumming starts.
    pub csum_start: U16,
    /// Offset of the checksum field from `csum_start`.
    pub csum_offset: U16,
    /// Buffers of the receiving ring; 0 on the fabric.
    pub num_buffers: U16,
}

/// What the receiver of a frame agreed to, as bits of its virtio-net features.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Partial checksums (`CSUM` of the sender, `GUEST_CSUM` of the receiver).
    pub checksum: bool,
    /// TCP segmentation over IPv4.
    pub tso4: bool,
    /// TCP segmentation over IPv6.
    pub tso6: bool,
    /// ECN bits in super-frames.
    pub ecn: bool,
    /// UDP segmentation.
    pub uso: bool,
}

impl Offloads {
    /// Everything that the fabric can carry.
    pub const ALL: Self = Self {
        checksum: true,
        tso4: true,
        tso6: true,
        ecn: true,
        uso: true,
    };
}

/// Why a frame is not carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Shorter than an Ethernet header (behind the virtio-net header).
    #[error("frame of {frame_bytes} bytes is shorter than an Ethernet header")]
    Runt {
        /// Bytes behind the virtio-net header.
        frame_bytes: usize,
    },
    /// Longer than [`FRAME_BYTES_MAX`].
    #[error("frame of {frame_bytes} bytes is longer than {FRAME_BYTES_MAX}")]
    Giant {
        /// Bytes behind the virtio-net header.
        frame_bytes: usize,
    },
    /// A partial checksum that was not negotiated.
    #[error("partial checksum was not negotiated")]
    ChecksumNotNegotiated,
    /// The checksum field would lie outside of the frame.
    #[error(
        "checksum at {csum_start}+{csum_offset} lies outside of a frame of {frame_bytes} bytes"
    )]
    ChecksumOutside {
        /// Start of checksumming.
        csum_start: u16,
        /// Field offset from there.
        csum_offset: u16,
        /// Bytes behind the virtio-net header.
        frame_bytes: usize,
    },
    /// A segmentation type that does not exist or was not negotiated.
    #[error("segmentation type {gso_type:#04x} was not negotiated")]
    GsoType {
        /// The type byte.
        gso_type: u8,
    },
    /// A super-frame without a usable segment size or without a checksum request.
    #[error("super-frame with segment size {gso_size} is malformed")]
    GsoSize {
        /// The segment size.
        gso_size: u16,
    },
}

impl VirtioNetHeader {
    /// Splits a payload into header and frame; `None` if it is shorter than a header.
    #[must_use]
    pub fn split(payload: &[u8]) -> Option<(Self, &[u8])> {
        Self::read_from_prefix(payload).ok()
    }

    /// Checks the header against the frame it stands before and against what was negotiated.
    ///
    /// A header that passes can be handed to a TAP device or to a guest: every offset lies inside
    /// of the frame and every segmentation type is one that the other side knows.
    ///
    /// # Errors
    /// The first [`FrameError`] found.
    pub fn check(&self, frame_bytes: usize, offloads: Offloads) -> Result<(), FrameError> {
        if frame_bytes < ETHERNET_HEADER_BYTES {
            return Err(FrameError::Runt { frame_bytes });
        }
        if frame_bytes > FRAME_BYTES_MAX {
            return Err(FrameError::Giant { frame_bytes });
        }
        let needs_checksum = self.flags & FLAG_NEEDS_CSUM != 0;
        if needs_checksum {
            if !offloads.checksum {
                return Err(FrameError::ChecksumNotNegotiated);
            }
            let (csum_start, csum_offset) = (self.csum_start.get(), self.csum_offset.get());
            let field_end = usize::from(csum_start) + usize::from(csum_offset) + 2;
            if field_end > frame_bytes || usize::from(csum_start) < ETHERNET_HEADER_BYTES {
                return Err(FrameError::ChecksumOutside {
                    csum_start,
                    csum_offset,
                    frame_bytes,
                });
            }
        }
        let gso_type = self.gso_type & !GSO_ECN;
        let negotiated = match gso_type {
            GSO_NONE => self.gso_type == GSO_NONE,
            GSO_TCPV4 => offloads.tso4,
            GSO_TCPV6 => offloads.tso6,
            GSO_UDP_L4 => offloads.uso && self.gso_type & GSO_ECN == 0,
            _ => false,
        };
        if !negotiated || (self.gso_type & GSO_ECN != 0 && !offloads.ecn) {
            return Err(FrameError::GsoType {
                gso_type: self.gso_type,
            });
        }
        let gso_size = self.gso_size.get();
        // A super-frame is cut by the last hop, which must complete each segment's checksum.
        if gso_type != GSO_NONE && (gso_size == 0 || !needs_checksum) {
            return Err(FrameError::GsoSize { gso_size });
        }
        Ok(())
    }

    /// Bytes that the frame will take on an Ethernet wire once segmented, headers repeated.
    ///
    /// What a policer or a port would charge; preamble, gap and FCS are not counted.
    #[must_use]
    pub fn wire_bytes(&self, frame_bytes: usize) -> usize {
        let gso_size = usize::from(self.gso_size.get());
        let headers = usize::from(self.header_len.get());
        if self.gso_type & !GSO_ECN == GSO_NONE || gso_size == 0 || headers >= frame_bytes {
            return frame_bytes;
        }
        let segments = (frame_bytes - headers).div_ceil(gso_size);
        frame_bytes + segments.saturating_sub(1) * headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A TCPv4 super-frame header as the Linux driver writes it, from the layout table above.
    const TSO4: [u8; 12] = [1, 1, 54, 0, 0xb4, 0x05, 34, 0, 16, 0, 0, 0];

    fn header(bytes: [u8; 12]) -> VirtioNetHeader {
        VirtioNetHeader::split(&bytes).expect("twelve bytes").0
    }

    #[test]
    fn link_states_stand_as_the_table_says() {
        assert_eq!(LinkState::Up.bytes(), [8, 1, 0, 0, 0, 0, 0, 0]);
        for state in [LinkState::Down, LinkState::Up] {
            assert_eq!(LinkState::read(&state.bytes()), Some(state));
        }
        assert_eq!(
            LinkState::read(&[8, 1, 9, 9, 9, 9, 9, 9]),
            Some(LinkState::Up)
        );
        for wrong in [
            &[8, 2, 0, 0, 0, 0, 0, 0][..],
            &[7, 1, 0, 0, 0, 0, 0, 0],
            &[8, 1],
            &[0; 9],
        ] {
            assert_eq!(LinkState::read(wrong), None);
        }
    }

    #[test]
    fn fields_stand_where_the_table_says() {
        let header = header(TSO4);
        assert_eq!((header.flags, header.gso_type), (1, 1));
        assert_eq!((header.header_len.get(), header.gso_size.get()), (54, 1460));
        assert_eq!(
            (header.csum_start.get(), header.csum_offset.get()),
            (34, 16)
        );
        assert_eq!(header.as_bytes(), TSO4);
    }

    #[test]
    fn super_frame_needs_its_offload() {
        let header = header(TSO4);
        assert_eq!(header.check(60_000, Offloads::ALL), Ok(()));
        let offloads = Offloads {
            tso4: false,
            ..Offloads::ALL
        };
        assert_eq!(
            header.check(60_000, offloads),
            Err(FrameError::GsoType { gso_type: 1 })
        );
        let offloads = Offloads {
            checksum: false,
            ..Offloads::ALL
        };
        assert_eq!(
            header.check(60_000, offloads),
            Err(FrameError::ChecksumNotNegotiated)
        );
    }

    #[test]
    fn n02_unknown_or_lonely_gso_types_are_refused() {
        for gso_type in [0x80, 2, 3, 6, 0x7f, 0xff, 0x85] {
            let header = VirtioNetHeader {
                gso_type,
                ..header(TSO4)
            };
            assert_eq!(
                header.check(1514, Offloads::ALL),
                Err(FrameError::GsoType { gso_type })
            );
        }
    }

    #[test]
    fn n03_super_frame_without_segment_size_is_refused() {
        let header = VirtioNetHeader {
            gso_size: U16::new(0),
            ..header(TSO4)
        };
        assert_eq!(
            header.check(60_000, Offloads::ALL),
            Err(FrameError::GsoSize { gso_size: 0 })
        );
    }

    #[test]
    fn n06_runts_and_giants_are_refused() {
        let header = VirtioNetHeader::default();
        assert_eq!(
            header.check(13, Offloads::ALL),
            Err(FrameError::Runt { frame_bytes: 13 })
        );
        assert_eq!(header.check(14, Offloads::ALL), Ok(()));
        assert_eq!(header.check(FRAME_BYTES_MAX, Offloads::ALL), Ok(()));
        assert!(header.check(FRAME_BYTES_MAX + 1, Offloads::ALL).is_err());
    }

    #[test]
    fn wire_bytes_repeat_the_headers_of_each_segment() {
        // 54 + 3 * 1460: three segments, two more headers than the super-frame has.
        assert_eq!(header(TSO4).wire_bytes(54 + 3 * 1460), 3 * (54 + 1460));
        assert_eq!(VirtioNetHeader::default().wire_bytes(1514), 1514);
    }

    proptest! {
        /// N-04: the oracle is the definition, in arithmetic that cannot wrap.
        #[test]
        fn n04_accepted_checksum_field_lies_inside(start: u16, offset: u16, frame_bytes in 0usize..70_000) {
            let header = VirtioNetHeader {
                flags: FLAG_NEEDS_CSUM, csum_start: U16::new(start), csum_offset: U16::new(offset),
                ..VirtioNetHeader::default()
            };
            if header.check(frame_bytes, Offloads::ALL).is_ok() {
                prop_assert!(u64::from(start) + u64::from(offset) + 2 <= frame_bytes as u64);
            }
        }

        #[test]
        fn any_bytes_are_answered(bytes: [u8; 12], frame_bytes in 0usize..100_000) {
            let header = header(bytes);
            // Whatever the verdict, neither call may panic.
            let accepted = header.check(frame_bytes, Offloads::ALL).is_ok();
            prop_assert!(!accepted || header.wire_bytes(frame_bytes) >= frame_bytes);
        }
    }
}

//! A frame as it leaves: another head in front of bytes that are not copied for it.

use std::borrow::Cow;

use fabric_payload::ethernet::{HEADER_BYTES, PAYLOAD_BYTES_MAX, VirtioNetHeader};
use zerocopy::IntoBytes;
use zerocopy::byteorder::little_endian::U16;

use super::vlan::TAG_BYTES;

/// Bytes of destination and source address.
const ADDRESSES_BYTES: usize = 12;
/// As much of an IPv4 header as has its DSCP and its checksum.
const IPV4_BYTES: usize = 12;
/// As much of an IPv6 header as has its DSCP.
const IPV6_BYTES: usize = 2;
/// With a tag pushed in front of two.
const HEAD_BYTES_MAX: usize = HEADER_BYTES + ADDRESSES_BYTES + 3 * TAG_BYTES + 2 + IPV4_BYTES;

/// How a frame leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rewrite {
    pub(super) tag: TagEdit,
    pub(super) dscp: Option<DscpEdit>,
}

/// Another DSCP (RFC 2474).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DscpEdit {
    /// 0 to 63.
    pub(super) dscp: u8,
    /// Where the IP header begins in the frame as it came.
    pub(super) at: usize,
}

/// What becomes of a frame's first tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TagEdit {
    /// It stays as it is, if there is one.
    Keep,
    /// It goes.
    Pop,
    /// There is none, and it gets one with this control information.
    Push(u16),
    /// It gets other control information.
    Replace(u16),
}

/// Header and frame as they leave, in two pieces: the second is part of what came.
#[derive(Debug)]
pub(super) struct Outgoing<'a> {
    head: [u8; HEAD_BYTES_MAX],
    head_bytes: usize,
    tail: &'a [u8],
}

impl<'a> Outgoing<'a> {
    /// `payload`, header and frame, so rewritten; `None` if it would be too long for a lane, or is
    /// too short for it.
    pub(super) fn new(payload: &'a [u8], rewrite: Rewrite) -> Option<Self> {
        let mut outgoing = Self::unchanged(payload);
        let Rewrite { tag, dscp } = rewrite;
        if tag == TagEdit::Keep && dscp.is_none() {
            return Some(outgoing);
        }
        let (mut header, frame) = VirtioNetHeader::split(payload)?;
        match tag {
            TagEdit::Push(_) => shift(&mut header, |offset| offset.saturating_add(4)),
            TagEdit::Pop => shift(&mut header, |offset| offset.saturating_sub(4)),
            TagEdit::Keep | TagEdit::Replace(_) => {}
        }
        outgoing.put(header.as_bytes())?;
        outgoing.put(frame.get(..ADDRESSES_BYTES)?)?;
        let mut taken = ADDRESSES_BYTES;
        if matches!(tag, TagEdit::Pop | TagEdit::Replace(_)) {
            taken += TAG_BYTES;
        }
        if let TagEdit::Push(tci) | TagEdit::Replace(tci) = tag {
            outgoing.put(&[0x81, 0])?;
            outgoing.put(&tci.to_be_bytes())?;
        }
        if let Some(DscpEdit { dscp, at }) = dscp {
            let is_ipv4 = frame.get(at)? >> 4 == 4;
            let end = at + if is_ipv4 { IPV4_BYTES } else { IPV6_BYTES };
            outgoing.put(frame.get(taken..end)?)?;
            let ip_at = outgoing.head_bytes - (end - at);
            let ip = outgoing.head.get_mut(ip_at..outgoing.head_bytes)?;
            match is_ipv4 {
                true => mark_ipv4(ip.first_chunk_mut()?, dscp),
                false => mark_ipv6(ip.first_chunk_mut()?, dscp),
            }
            taken = end;
        }
        outgoing.tail = frame.get(taken..)?;
        (outgoing.bytes() <= PAYLOAD_BYTES_MAX).then_some(outgoing)
    }

    /// `payload` as it is, header and frame.
    pub(super) fn unchanged(payload: &'a [u8]) -> Self {
        Self {
            head: [0; HEAD_BYTES_MAX],
            head_bytes: 0,
            tail: payload,
        }
    }

    fn put(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.head_bytes + bytes.len();
        self.head
            .get_mut(self.head_bytes..end)?
            .copy_from_slice(bytes);
        self.head_bytes = end;
        Some(())
    }

    /// Bytes of both pieces.
    pub(super) fn bytes(&self) -> usize {
        self.head_bytes + self.tail.len()
    }

    /// Header and frame in one piece, which is what came if nothing has changed.
    pub(super) fn into_payload(self) -> Cow<'a, [u8]> {
        match self.pieces() {
            [[], _] => Cow::Borrowed(self.tail),
            pieces => Cow::Owned(pieces.concat()),
        }
    }

    /// Both pieces; the first is empty if nothing has changed.
    pub(super) fn pieces(&self) -> [&[u8]; 2] {
        [
            self.head.get(..self.head_bytes).unwrap_or_default(),
            self.tail,
        ]
    }
}

/// Moves what the header counts from the frame's start.
fn shift(header: &mut VirtioNetHeader, by: impl Fn(u16) -> u16) {
    // 0 is what a header says that speaks of neither.
    for offset in [&mut header.csum_start, &mut header.header_len] {
        if offset.get() != 0 {
            *offset = U16::new(by(offset.get()));
        }
    }
}

/// The header keeps its ECN bits, and its checksum is as right as it was (RFC 1624).
fn mark_ipv4(header: &mut [u8; IPV4_BYTES], dscp: u8) {
    let [version, service, .., high, low] = header;
    let word = |service: u8| u32::from(u16::from_be_bytes([*version, service]));
    let marked = dscp << 2 | *service & 3;
    let checksum = u32::from(u16::from_be_bytes([*high, *low]));
    let mut sum = (checksum ^ 0xffff) + (word(*service) ^ 0xffff) + word(marked);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    *service = marked;
    let [.., new_high, new_low] = (sum ^ 0xffff).to_be_bytes();
    (*high, *low) = (new_high, new_low);
}

fn mark_ipv6(header: &mut [u8; IPV6_BYTES], dscp: u8) {
    // Version, traffic class and flow label: 4, 8 and 20 bits.
    let word = u16::from_be_bytes(*header);
    *header = (word & 0xf03f | u16::from(dscp) << 6).to_be_bytes();
}

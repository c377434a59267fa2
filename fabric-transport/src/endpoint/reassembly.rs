//! Payloads that are longer than the frames of a slow link: cut at one end, joined at the other.
//!
//! A frame that is being sent delays everybody: on 1 Gb/s one of 64 KiB takes 524 us. So long
//! payloads go in pieces, between which frames of other devices may leave. And a device gets its
//! committed rate in steps of a frame: of 100 Mb/s one of 64 KiB is half of what is due in 10 ms.

use std::borrow::Cow;

use qos::{BitRate, DeviceHandle};
use rustc_hash::FxHashMap;

use crate::frame::{
    self, DeviceId, FrameBuffer, FrameHeader, HEADER_BYTES, PAYLOAD_BYTES_MAX, VirtualLane,
};
use crate::session::ProtocolError;

/// How long one frame may keep a link busy, where [`PIECE_BYTES_MIN`] allows it: 50 us, and the
/// five that 64 KiB take longer on 10 Gb/s.
const BUSY_NANOS_MAX: u64 = 55_000;
/// How long one frame may take at its device's committed rate, within the same bounds.
const COMMITTED_NANOS_MAX: u64 = 330_000;
/// Shorter pieces would cost more in headers and calls than they save in delay.
const PIECE_BYTES_MIN: usize = 4 * 1024;

/// Bytes of payload that one frame of a device carries that has `cir` committed on a `link`; the
/// header is a part of the power of two.
///
/// | link | piece | | CIR | piece at most |
/// | --- | --- | --- | --- | --- |
/// | up to 1 Gb/s | 4 KiB | | up to 100 Mb/s | 4 KiB |
/// | 2.5 Gb/s | 16 KiB | | 400 Mb/s | 16 KiB |
/// | from 10 Gb/s on | everything | | none, or 1.6 Gb/s and above | no limit |
#[must_use]
pub fn piece_bytes(link: BitRate, cir: BitRate) -> usize {
    let fits = |bytes: usize| {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        link.transmission_nanos(bytes) <= BUSY_NANOS_MAX
            && (cir.is_zero() || cir.transmission_nanos(bytes) <= COMMITTED_NANOS_MAX)
    };
    let mut frame_bytes = PIECE_BYTES_MIN;
    while frame_bytes < 64 * 1024 {
        if !fits(2 * frame_bytes) {
            return frame_bytes - HEADER_BYTES;
        }
        frame_bytes *= 2;
    }
    PAYLOAD_BYTES_MAX
}

/// Blocks of credit that a payload costs in pieces of `piece_bytes`.
pub(super) fn blocks(payload_bytes: usize, piece_bytes: usize) -> u32 {
    let whole = u32::try_from(payload_bytes / piece_bytes).unwrap_or(u32::MAX);
    match payload_bytes % piece_bytes {
        0 if whole > 0 => whole.saturating_mul(frame::blocks(piece_bytes)),
        rest => whole
            .saturating_mul(frame::blocks(piece_bytes))
            .saturating_add(frame::blocks(rest)),
    }
}

/// Cuts a payload that is longer than a piece; the flag says that it goes on.
pub(super) fn cut(
    buffer: &FrameBuffer,
    piece_bytes: usize,
) -> impl Iterator<Item = (FrameBuffer, bool)> {
    let pieces = buffer.payload().chunks(piece_bytes);
    let last = pieces.len().saturating_sub(1);
    pieces
        .enumerate()
        .map(move |(at, piece)| (FrameBuffer::from_payload(piece), at < last))
}

struct Partial {
    /// The attachment that it came in: a later one of the same device has lanes of its own.
    of: DeviceHandle,
    payload: Vec<u8>,
    /// What its frames cost.
    blocks: u32,
}

/// A payload whose last frame has come.
pub(super) struct Whole<'a> {
    pub(super) payload: Cow<'a, [u8]>,
    /// Credit that its pieces cost more than it costs as one, to be given back at once: who
    /// releases it knows only the whole.
    pub(super) spare_blocks: u32,
}

/// The payloads whose last frame has not come, one for each lane at most.
#[derive(Default)]
pub(super) struct Reassembly {
    partial: FxHashMap<(DeviceId, VirtualLane), Partial>,
}

impl Reassembly {
    /// Takes the next frame of a lane of the device attached as `of`. What an earlier attachment left
    /// unfinished is forgotten.
    ///
    /// # Errors
    /// [`ProtocolError::LongPayload`] when pieces add up to more than [`PAYLOAD_BYTES_MAX`].
    pub(super) fn join<'a>(
        &mut self,
        of: DeviceHandle,
        header: &FrameHeader,
        lane: VirtualLane,
        payload: &'a [u8],
    ) -> Result<Option<Whole<'a>>, ProtocolError> {
        let whole = Whole {
            payload: Cow::Borrowed(payload),
            spare_blocks: 0,
        };
        // Nearly always.
        if !header.more && self.partial.is_empty() {
            return Ok(Some(whole));
        }
        let key = (header.device, lane);
        if self
            .partial
            .get(&key)
            .is_some_and(|partial| partial.of != of)
        {
            self.partial.remove(&key);
        }
        if !header.more && !self.partial.contains_key(&key) {
            return Ok(Some(whole));
        }
        let partial = self.partial.entry(key).or_insert_with(|| Partial {
            of,
            payload: Vec::new(),
            blocks: 0,
        });
        if partial.payload.len() + payload.len() > PAYLOAD_BYTES_MAX {
            let device = header.device;
            return Err(ProtocolError::LongPayload { device, lane });
        }
        partial.payload.extend_from_slice(payload);
        partial.blocks = partial.blocks.saturating_add(frame::blocks(payload.len()));
        if header.more {
            return Ok(None);
        }
        let (payload, blocks) = (std::mem::take(&mut partial.payload), partial.blocks);
        self.partial.remove(&key);
        Ok(Some(Whole {
            spare_blocks: blocks.saturating_sub(frame::blocks(payload.len())),
            payload: Cow::Owned(payload),
        }))
    }

    /// Forgets what came of a device.
    pub(super) fn forget(&mut self, device: DeviceId) {
        self.partial.retain(|(known, _), _| *known != device);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FrameKind;
    use proptest::prelude::*;
    use qos::{DeviceRate, LinkBudget, MonotonicTime, Scheduler};

    fn header(more: bool) -> FrameHeader {
        FrameHeader {
            version: 2,
            attachment: 0,
            kind: FrameKind::Data,
            lane: Some(VirtualLane::Network),
            more,
            epoch: 1,
            device: DeviceId(7),
            payload_bytes: 0,
            sequence: 0,
            credit_limit: 0,
            acknowledge: 0,
        }
    }

    #[test]
    fn a_frame_keeps_the_link_busy_for_fifty_microseconds_where_it_can() {
        let rate = |text: &str| text.parse::<BitRate>().unwrap();
        for (text, frame_bytes) in [
            ("0", 4),
            ("100M", 4),
            ("1G", 4),
            ("2G", 8),
            ("2.5G", 16),
            ("4G", 16),
        ] {
            let expected = frame_bytes * 1024 - HEADER_BYTES;
            assert_eq!(piece_bytes(rate(text), BitRate::ZERO), expected, "{text}");
        }
        for text in ["10G", "400G"] {
            assert_eq!(piece_bytes(rate(text), BitRate::ZERO), PAYLOAD_BYTES_MAX);
        }
        for (text, frame_bytes) in [("10M", 4), ("100M", 4), ("400M", 16), ("1G", 32)] {
            let expected = frame_bytes * 1024 - HEADER_BYTES;
            assert_eq!(piece_bytes(rate("10G"), rate(text)), expected, "{text}");
        }
        assert_eq!(piece_bytes(rate("10G"), rate("2G")), PAYLOAD_BYTES_MAX);
        assert_eq!(piece_bytes(rate("1G"), rate("800M")), 4096 - HEADER_BYTES);
    }

    /// The handles of a device that was attached twice.
    fn handles() -> [DeviceHandle; 2] {
        let link = "1G".parse::<BitRate>().unwrap();
        let mut scheduler = Scheduler::<()>::new(LinkBudget::new("link", link));
        [(); 2].map(|()| {
            let added = scheduler.add_device(MonotonicTime::ZERO, DeviceRate::best_effort());
            added.unwrap()
        })
    }

    #[test]
    fn what_an_attachment_left_unfinished_is_no_part_of_the_next() {
        let mut reassembly = Reassembly::default();
        let [first, second] = handles();
        let mut join = |of, more, payload: &[u8]| {
            let lane = VirtualLane::Network;
            let whole = reassembly.join(of, &header(more), lane, payload).unwrap();
            whole.map(|whole| whole.payload.into_owned())
        };
        assert_eq!(join(first, true, b"old"), None);
        assert_eq!(join(second, false, b"new"), Some(b"new".to_vec()));
        assert_eq!(join(first, true, b"old"), None);
        assert_eq!(join(second, true, b"newer"), None);
        assert_eq!(
            join(second, false, b" still"),
            Some(b"newer still".to_vec())
        );
    }

    #[test]
    fn pieces_without_end_close_the_link() {
        let mut reassembly = Reassembly::default();
        let [of, _] = handles();
        let piece = [0; 4_096];
        let outcome = (0..).find_map(|_| {
            reassembly
                .join(of, &header(true), VirtualLane::Network, &piece)
                .err()
        });
        assert_eq!(
            outcome,
            Some(ProtocolError::LongPayload {
                device: DeviceId(7),
                lane: VirtualLane::Network
            })
        );
        reassembly.forget(DeviceId(7));
        assert!(reassembly.partial.is_empty());
    }

    proptest! {
        #[test]
        fn what_is_cut_is_joined_and_every_block_comes_back(
            payload in prop::collection::vec(any::<u8>(), 0..20_000),
            piece_bytes in 1_usize..9_000,
        ) {
            let buffer = FrameBuffer::from_payload(&payload);
            let mut reassembly = Reassembly::default();
            let [of, _] = handles();
            let mut paid = 0;
            let mut whole = None;
            // What fits is not cut at all.
            let pieces: Vec<_> = if payload.len() <= piece_bytes {
                vec![(buffer, false)]
            } else {
                cut(&buffer, piece_bytes).collect()
            };
            for (piece, more) in pieces {
                prop_assert!(whole.is_none());
                paid += frame::blocks(piece.payload_bytes());
                let joined = reassembly
                    .join(of, &header(more), VirtualLane::Network, piece.payload())
                    .unwrap();
                whole = joined.map(|whole| (whole.payload.into_owned(), whole.spare_blocks));
            }
            let (joined, spare_blocks) = whole.unwrap();
            prop_assert_eq!(paid, blocks(payload.len(), piece_bytes));
            prop_assert_eq!(paid, frame::blocks(joined.len()) + spare_blocks);
            prop_assert_eq!(joined, payload);
            prop_assert!(reassembly.partial.is_empty());
        }
    }
}

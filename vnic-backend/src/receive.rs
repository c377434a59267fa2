//! Fabric to guest: one receive ring.
//!
//! Frames are written into the guest's buffers as they come, which are returned at once, in order; the
//! signal follows when the batch ends. A frame without room is dropped and the buffers it had got go
//! back unused, so the guest never sees half a frame.

use std::borrow::Cow;

use fabric_payload::checksum;
use fabric_payload::ethernet::{
    FLAG_DATA_VALID, FLAG_NEEDS_CSUM, FrameError, HEADER_BYTES, Offloads, VirtioNetHeader,
};
use smallvec::SmallVec;
use vhost_user_session::{BatchChain, ChainError, Queue, RingBatch};
use zerocopy::IntoBytes;

use crate::features::Negotiated;
use crate::statistics::{Counters, ReceiveDrop};

/// Most frames fit into one buffer.
type Buffers = SmallVec<[BatchChain; 1]>;
type Lengths = SmallVec<[u32; 1]>;

/// A frame as the guest is to see it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Incoming<'a> {
    pub(crate) header: VirtioNetHeader,
    pub(crate) frame: Cow<'a, [u8]>,
    /// The checksum was completed here.
    pub(crate) completed: bool,
}

/// Fits a payload of the fabric to what the guest agreed to.
pub(crate) fn prepare(payload: &[u8], offloads: Offloads) -> Result<Incoming<'_>, ReceiveDrop> {
    let (mut header, frame) = VirtioNetHeader::split(payload).ok_or(ReceiveDrop::Malformed)?;
    header.flags &= FLAG_NEEDS_CSUM | FLAG_DATA_VALID;
    let mut incoming = Incoming {
        header,
        frame: Cow::Borrowed(frame),
        completed: false,
    };
    match header.check(frame.len(), offloads) {
        Ok(()) => {}
        Err(FrameError::GsoType { .. }) => return Err(ReceiveDrop::NotNegotiated),
        Err(FrameError::ChecksumNotNegotiated) => {
            let with_checksum = Offloads {
                checksum: true,
                ..offloads
            };
            header
                .check(frame.len(), with_checksum)
                .map_err(|error| match error {
                    FrameError::GsoType { .. } => ReceiveDrop::NotNegotiated,
                    _ => ReceiveDrop::Malformed,
                })?;
            if !checksum::complete(&mut incoming.header, incoming.frame.to_mut()) {
                return Err(ReceiveDrop::Malformed);
            }
            incoming.completed = true;
        }
        Err(_malformed) => return Err(ReceiveDrop::Malformed),
    }
    if !offloads.checksum {
        // Reserved without GUEST_CSUM (virtio 1.2 section 5.1.6.4.1).
        incoming.header.flags = 0;
    }
    Ok(incoming)
}

/// One receive ring; `None` in `queue` while it is stopped.
#[derive(Debug, Default)]
pub(crate) struct Receiver {
    queue: Option<Queue>,
    /// The used index that the driver was told of last, if it has moved since.
    told: Option<u16>,
}

impl Receiver {
    pub(crate) fn start(&mut self, queue: Queue) {
        // Kicks for new buffers are of no use: what comes without one is dropped, not kept.
        if let Some(mut ring) = queue.lock() {
            ring.disable_notification();
        }
        self.queue = Some(queue);
    }

    /// Tells the driver what is filled, and lets the ring go.
    pub(crate) fn stop(&mut self) {
        self.tell();
        self.queue = None;
        self.told = None;
    }

    pub(crate) fn is_usable(&self) -> bool {
        let ring = self.queue.as_ref().and_then(Queue::lock);
        ring.is_some_and(|ring| ring.can_pop())
    }

    /// Writes `incoming`, and what `next` has behind it, into the guest's buffers, or drops it.
    ///
    /// # Errors
    /// The ring cannot be used; `incoming` comes back, for another one.
    pub(crate) fn fill<'a>(
        &mut self,
        incoming: Incoming<'a>,
        next: &mut dyn FnMut() -> Option<Incoming<'a>>,
        negotiated: Negotiated,
        counters: &Counters,
    ) -> Result<(), Incoming<'a>> {
        let Some(queue) = &self.queue else {
            return Err(incoming);
        };
        let memory = queue.memory();
        let Some(mut ring) = queue.batch(&memory) else {
            return Err(incoming);
        };
        let (mut frames, mut frame_bytes) = (0, 0);
        let mut incoming = Some(incoming);
        while let Some(now) = incoming {
            match deliver(&mut ring, &now, negotiated, counters) {
                Ok(()) => {
                    frames += 1;
                    frame_bytes += now.frame.len();
                    if now.completed {
                        counters.checksum_completed();
                    }
                }
                Err(reason) => counters.receive_dropped(reason),
            }
            incoming = next();
        }
        counters.received(frames, frame_bytes);
        let before = ring.publish();
        self.told.get_or_insert(before);
        Ok(())
    }

    /// Signals what was filled since the last time.
    pub(crate) fn tell(&mut self) {
        if let Some(before) = self.told.take()
            && let Some(queue) = &self.queue
            && let Some(mut ring) = queue.batch(&queue.memory())
        {
            ring.signal_since(before);
        }
    }
}

/// Writes a frame into as many buffers as it needs, if there are as many.
fn deliver(
    ring: &mut RingBatch<'_>,
    incoming: &Incoming<'_>,
    negotiated: Negotiated,
    counters: &Counters,
) -> Result<(), ReceiveDrop> {
    let header_bytes = negotiated.header_bytes();
    let needed = bytes(header_bytes).saturating_add(bytes(incoming.frame.len()));
    let mut taken = Buffers::new();
    let mut position = ring.position();
    let mut room = 0_u64;
    let outcome = loop {
        let Some(buffer) = ring.pop() else {
            break Err(ReceiveDrop::NoBuffers);
        };
        let writable = buffer.writable_bytes();
        if taken.is_empty() && writable < bytes(header_bytes) {
            // Useless for any frame: returned empty, or it would block the ring for ever.
            counters.bad_receive_buffer();
            ring.add_used(buffer, 0);
            position = ring.position();
            continue;
        }
        room = room.saturating_add(writable);
        taken.push(buffer);
        if room >= needed {
            break Ok(());
        }
        if !negotiated.mergeable_buffers() {
            break Err(ReceiveDrop::BufferTooSmall);
        }
    };
    let written = outcome.and_then(|()| {
        write(ring, &taken, incoming, header_bytes).map_err(|_guest| ReceiveDrop::NoBuffers)
    });
    match written {
        Ok(lengths) => {
            for (buffer, length) in taken.into_iter().zip(lengths) {
                ring.add_used(buffer, length);
            }
            Ok(())
        }
        Err(reason) => {
            ring.put_back(position, taken);
            Err(reason)
        }
    }
}

/// Writes header and frame over `buffers`, whose room was checked; returns the bytes in each.
fn write(
    ring: &RingBatch<'_>,
    buffers: &[BatchChain],
    incoming: &Incoming<'_>,
    header_bytes: usize,
) -> Result<Lengths, ChainError> {
    let mut header = incoming.header;
    header.num_buffers = u16::try_from(buffers.len()).unwrap_or(u16::MAX).into();
    let header = header
        .as_bytes()
        .get(..header_bytes.min(HEADER_BYTES))
        .unwrap_or_default();
    let mut rest = &*incoming.frame;
    let mut lengths = Lengths::new();
    let mut offset = header.len();
    if let Some(first) = buffers.first() {
        ring.write(first, 0, header)?;
    }
    for buffer in buffers {
        let room = buffer.writable_bytes().saturating_sub(bytes(offset));
        let now = usize::try_from(room).unwrap_or(usize::MAX).min(rest.len());
        let (part, later) = rest.split_at_checked(now).unwrap_or((rest, &[]));
        ring.write(buffer, bytes(offset), part)?;
        lengths.push(u32::try_from(offset + part.len()).unwrap_or(u32::MAX));
        rest = later;
        offset = 0;
    }
    Ok(lengths)
}

fn bytes(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn payload(header: VirtioNetHeader, frame: &[u8]) -> Vec<u8> {
        [header.as_bytes(), frame].concat()
    }

    fn super_frame() -> VirtioNetHeader {
        VirtioNetHeader {
            flags: FLAG_NEEDS_CSUM,
            gso_type: 1,
            gso_size: 1460.into(),
            csum_start: 34.into(),
            csum_offset: 16.into(),
            ..VirtioNetHeader::default()
        }
    }

    #[test]
    fn n11_super_frame_for_a_guest_without_it_is_dropped() {
        let payload = payload(super_frame(), &[0; 3000]);
        for offloads in [
            Offloads::default(),
            Offloads {
                checksum: true,
                ..Offloads::default()
            },
        ] {
            assert_eq!(prepare(&payload, offloads), Err(ReceiveDrop::NotNegotiated));
        }
        let incoming = prepare(&payload, Offloads::ALL).unwrap();
        assert_eq!(
            (incoming.header, incoming.completed),
            (super_frame(), false)
        );
    }

    #[test]
    fn partial_checksum_is_completed_for_a_guest_without_it() {
        let header = VirtioNetHeader {
            gso_type: 0,
            gso_size: 0.into(),
            ..super_frame()
        };
        let payload = payload(header, &[7; 60]);
        let incoming = prepare(&payload, Offloads::default()).unwrap();
        assert_eq!(
            (incoming.header, incoming.completed),
            (VirtioNetHeader::default(), true)
        );
        assert_ne!(incoming.frame[50..52], [7, 7]);
        let incoming = prepare(&payload, Offloads::ALL).unwrap();
        assert_eq!((incoming.header, &*incoming.frame), (header, &[7; 60][..]));
    }

    #[test]
    fn verified_flag_is_only_shown_to_those_who_asked() {
        let header = VirtioNetHeader {
            flags: FLAG_DATA_VALID,
            ..VirtioNetHeader::default()
        };
        let payload = payload(header, &[0; 60]);
        assert_eq!(
            prepare(&payload, Offloads::default()).unwrap().header.flags,
            0
        );
        assert_eq!(
            prepare(&payload, Offloads::ALL).unwrap().header.flags,
            FLAG_DATA_VALID
        );
    }

    #[test]
    fn fabric_that_delivers_no_frame_is_counted() {
        assert_eq!(
            prepare(&[0; 11], Offloads::ALL),
            Err(ReceiveDrop::Malformed)
        );
        assert_eq!(
            prepare(&[0; 25], Offloads::ALL),
            Err(ReceiveDrop::Malformed)
        );
        assert!(prepare(&[0; 26], Offloads::ALL).is_ok());
    }

    proptest! {
        #[test]
        fn guest_only_gets_headers_it_agreed_to(
            header: [u8; 12], length in 0usize..300, checksum: bool, tso4: bool, tso6: bool,
        ) {
            let offloads = Offloads { checksum, tso4, tso6, ..Offloads::default() };
            let payload = [&header[..], &vec![0x5a; length]].concat();
            if let Ok(incoming) = prepare(&payload, offloads) {
                prop_assert_eq!(incoming.header.check(incoming.frame.len(), offloads), Ok(()));
                prop_assert_eq!(incoming.frame.len(), length);
            }
        }
    }

    /// What the fabric brings, for guests that chose some of the features: the first byte.
    #[test]
    fn p01_any_damaged_frame_is_fitted_or_dropped() {
        let frame = |offloads: u8, header: [u8; 12], ethertype: [u8; 2], rest: &[u8]| {
            [&[offloads], &header[..], &[2; 12], &ethertype, rest].concat()
        };
        let mut packet = [
            0x45, 0, 0, 60, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ]
        .to_vec();
        packet.extend([7; 40]);
        let mut packet6 = vec![0x60, 0, 0, 0, 0, 20, 17, 64];
        packet6.extend([3; 60]);
        let tagged = [&[0, 5, 8, 0], &packet[..]].concat();
        let good = [
            frame(0, [0; 12], [8, 0], &packet),
            frame(0, [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0], [8, 0], &packet),
            frame(3, [1, 1, 54, 0, 20, 0, 34, 0, 16, 0, 0, 0], [8, 0], &packet),
            // A driver that chose segmentation without the checksum: it gets no such frame.
            frame(2, [1, 1, 54, 0, 20, 0, 34, 0, 16, 0, 0, 0], [8, 0], &packet),
            frame(
                15,
                [1, 4, 74, 0, 20, 0, 54, 0, 16, 0, 0, 0],
                [0x86, 0xdd],
                &packet6,
            ),
            frame(1, [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [0x81, 0], &tagged),
        ];
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/receive");
        orimono_fuzz::fuzz(
            folder,
            &good,
            orimono_fuzz::inputs(100_000, 1_000_000),
            |bytes| {
                let Some((agreed, payload)) = bytes.split_first() else {
                    return;
                };
                // GUEST_CSUM; GUEST_TSO4, GUEST_TSO6 and GUEST_ECN.
                let features = u64::from(agreed & 1) << 1 | u64::from(agreed >> 1 & 7) << 7;
                let offloads = crate::features::Negotiated(features).receive_offloads();
                if let Ok(incoming) = prepare(payload, offloads) {
                    let length = incoming.frame.len();
                    assert_eq!(incoming.header.check(length, offloads), Ok(()));
                    assert_eq!(length + 12, payload.len());
                }
                crate::steering::flow_hash(payload);
            },
        );
    }
}

//! Guest to fabric: one transmit ring.
//!
//! ```text
//! Reading --lane blocked--> Stalled --writable, up, down--> Reading
//! ```
//!
//! A stalled ring holds one frame with its chain and takes no more from the guest; a ring that is
//! stopped meanwhile gives that chain back unread, so nothing is lost and nothing sent twice.

use fabric_payload::ethernet::{
    ETHERNET_HEADER_BYTES, FLAG_NEEDS_CSUM, FRAME_BYTES_MAX, FrameError, HEADER_BYTES, Offloads,
    VirtioNetHeader,
};
use fabric_transport::{FrameBuffer, LaneSet, SendRefused, VirtualLane};
use vhost_user_session::{Chain, Queue};
use zerocopy::IntoBytes;

use crate::features::Negotiated;
use crate::statistics::{Counters, TransmitDrop};

/// Frames taken in one turn, so that a flood cannot keep the thread from the pair's other work.
const FRAMES_PER_TURN_MAX: usize = 64;
/// Two VLAN tags, which the MTU does not count.
const TAG_BYTES_MAX: usize = 8;

/// What a turn leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// The ring is empty, stopped or stalled: somebody will call again.
    Done,
    /// The turn's limit ended it: call again.
    More,
}

/// What a turn needs besides the ring.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub(crate) counters: &'a Counters,
    pub(crate) lanes: Option<LaneSet>,
    pub(crate) negotiated: Negotiated,
    pub(crate) mtu: u16,
}

#[derive(Debug)]
struct Held {
    chain: Chain,
    frame_bytes: usize,
}

/// One transmit ring; `None` in `queue` while it is stopped.
#[derive(Debug, Default)]
pub(crate) struct Transmitter {
    queue: Option<Queue>,
    /// The chain of the frame in `outgoing`.
    held: Option<Held>,
    /// At most one frame; kept so that its allocation is reused.
    outgoing: Vec<(VirtualLane, FrameBuffer)>,
}

impl Transmitter {
    pub(crate) fn start(&mut self, queue: Queue) {
        self.queue = Some(queue);
    }

    /// Gives the held chain back to the ring and forgets it.
    pub(crate) fn stop(&mut self) {
        let queue = self.queue.take();
        self.outgoing.clear();
        if let Some(held) = self.held.take()
            && let Some(mut ring) = queue.as_ref().and_then(Queue::lock)
        {
            ring.unpop(held.chain);
        }
    }

    /// The guest kicked: a stalled ring stays so, to be woken by the lane.
    pub(crate) fn is_stalled(&self) -> bool {
        self.held.is_some()
    }

    /// Sends what is there, up to a turn's limit.
    pub(crate) fn run(&mut self, context: &Context<'_>) -> Turn {
        let Some(queue) = self.queue.clone() else {
            return Turn::Done;
        };
        let Some(mut ring) = queue.lock() else {
            return Turn::Done;
        };
        let mut turn = Turn::Done;
        let mut stalled = false;
        if let Some(held) = self.held.take() {
            match self.send(context, held) {
                Ok(chain) => ring.add_used(chain, 0),
                Err(held) => {
                    self.held = Some(held);
                    return Turn::Done;
                }
            }
        }
        ring.disable_notification();
        let mut left = FRAMES_PER_TURN_MAX;
        loop {
            if left == 0 {
                turn = Turn::More;
                break;
            }
            left -= 1;
            let Some(chain) = ring.pop() else {
                // `enable_notification` looks once more, for what came in between.
                if ring.can_pop() && ring.enable_notification() {
                    ring.disable_notification();
                    continue;
                }
                break;
            };
            match copy_frame(&chain, context) {
                Ok(frame) => {
                    let frame_bytes = frame.payload_bytes().saturating_sub(HEADER_BYTES);
                    self.outgoing.push((VirtualLane::Network, frame));
                    match self.send(context, Held { chain, frame_bytes }) {
                        Ok(chain) => ring.add_used(chain, 0),
                        Err(held) => {
                            self.held = Some(held);
                            stalled = true;
                            break;
                        }
                    }
                }
                Err(reason) => {
                    context.counters.transmit_dropped(reason);
                    ring.add_used(chain, 0);
                }
            }
        }
        drop(ring);
        if stalled {
            context.counters.transmit_stalled();
        } else if let Some(lanes) = &context.lanes {
            lanes.flush();
        }
        turn
    }

    /// Puts the frame in `outgoing` on the lane. The chain comes back to be completed, unless the
    /// lane is blocked.
    #[expect(
        clippy::result_large_err,
        reason = "moved once; a box would be an allocation for each"
    )]
    fn send(&mut self, context: &Context<'_>, held: Held) -> Result<Chain, Held> {
        let sent = match &context.lanes {
            None => Err(SendRefused::Down),
            Some(lanes) => match lanes.queue(&mut self.outgoing) {
                // The device's queue may be full of what this very turn put there.
                Err(SendRefused::Blocked) => {
                    lanes.flush();
                    lanes.queue(&mut self.outgoing)
                }
                other => other,
            },
        };
        match sent {
            Ok(()) => context.counters.transmitted(held.frame_bytes),
            Err(SendRefused::Blocked) => return Err(held),
            Err(SendRefused::Down) => context.counters.transmit_dropped(TransmitDrop::NoSession),
            Err(SendRefused::TooLarge) => context.counters.transmit_dropped(TransmitDrop::Giant),
        }
        self.outgoing.clear();
        Ok(held.chain)
    }
}

/// Copies header and frame out of guest memory, and checks the copy.
fn copy_frame(chain: &Chain, context: &Context<'_>) -> Result<FrameBuffer, TransmitDrop> {
    let header_bytes = context.negotiated.header_bytes();
    let frame_bytes = frame_bytes(chain.readable_bytes(), header_bytes)?;
    let mut buffer = FrameBuffer::zeroed(HEADER_BYTES + frame_bytes);
    let payload = buffer.payload_mut();
    if header_bytes == HEADER_BYTES {
        chain
            .read_at(0, payload)
            .map_err(|_unreadable| TransmitDrop::Unreadable)?;
    } else {
        let (header, frame) = payload
            .split_at_mut_checked(HEADER_BYTES)
            .ok_or(TransmitDrop::Unreadable)?;
        let header = header
            .get_mut(..header_bytes)
            .ok_or(TransmitDrop::Unreadable)?;
        let offset = u64::try_from(header_bytes).unwrap_or(u64::MAX);
        chain
            .read_at(0, header)
            .map_err(|_unreadable| TransmitDrop::Unreadable)?;
        chain
            .read_at(offset, frame)
            .map_err(|_unreadable| TransmitDrop::Unreadable)?;
    }
    let (header, frame) = VirtioNetHeader::split(payload).ok_or(TransmitDrop::Runt)?;
    let header = admit(
        header,
        frame.len(),
        context.negotiated.transmit_offloads(),
        context.mtu,
    )?;
    if let Some(room) = payload.get_mut(..HEADER_BYTES) {
        room.copy_from_slice(header.as_bytes());
    }
    Ok(buffer)
}

/// Bytes of the frame in a chain of `readable_bytes`; nothing is allocated before this.
fn frame_bytes(readable_bytes: u64, header_bytes: usize) -> Result<usize, TransmitDrop> {
    let readable_bytes = usize::try_from(readable_bytes).unwrap_or(usize::MAX);
    let frame_bytes = readable_bytes
        .checked_sub(header_bytes)
        .ok_or(TransmitDrop::Runt)?;
    match frame_bytes {
        0..ETHERNET_HEADER_BYTES => Err(TransmitDrop::Runt),
        ETHERNET_HEADER_BYTES..=FRAME_BYTES_MAX => Ok(frame_bytes),
        _ => Err(TransmitDrop::Giant),
    }
}

/// The header as it goes on the fabric, if the frame may go there.
fn admit(
    mut header: VirtioNetHeader,
    frame_bytes: usize,
    offloads: Offloads,
    mtu: u16,
) -> Result<VirtioNetHeader, TransmitDrop> {
    header.num_buffers = 0.into();
    // All a driver may set; it could pass a bad checksum off as verified otherwise.
    header.flags &= FLAG_NEEDS_CSUM;
    header
        .check(frame_bytes, offloads)
        .map_err(|error| match error {
            FrameError::Runt { .. } => TransmitDrop::Runt,
            FrameError::Giant { .. } => TransmitDrop::Giant,
            _ => TransmitDrop::BadHeader,
        })?;
    let whole = header.gso_type == 0;
    if whole && frame_bytes > usize::from(mtu) + ETHERNET_HEADER_BYTES + TAG_BYTES_MAX {
        return Err(TransmitDrop::Giant);
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fabric_payload::ethernet::FLAG_DATA_VALID;
    use proptest::prelude::*;

    #[test]
    fn n06_runts_and_giants_are_known_before_anything_is_copied() {
        assert_eq!(frame_bytes(0, 12), Err(TransmitDrop::Runt));
        assert_eq!(frame_bytes(12 + 13, 12), Err(TransmitDrop::Runt));
        assert_eq!(frame_bytes(10 + 14, 10), Ok(14));
        assert_eq!(frame_bytes(12 + 65_557, 12), Ok(65_557));
        assert_eq!(frame_bytes(12 + 65_558, 12), Err(TransmitDrop::Giant));
        assert_eq!(frame_bytes(1 << 32, 12), Err(TransmitDrop::Giant));
    }

    #[test]
    fn mtu_bounds_what_is_not_segmented_later() {
        let plain = VirtioNetHeader::default();
        assert!(admit(plain, 1522, Offloads::ALL, 1500).is_ok());
        assert_eq!(
            admit(plain, 1523, Offloads::ALL, 1500),
            Err(TransmitDrop::Giant)
        );
        let super_frame = VirtioNetHeader {
            flags: FLAG_NEEDS_CSUM,
            gso_type: 1,
            gso_size: 1460.into(),
            csum_start: 34.into(),
            csum_offset: 16.into(),
            ..plain
        };
        assert!(admit(super_frame, 60_000, Offloads::ALL, 1500).is_ok());
        let refused = admit(super_frame, 60_000, Offloads::default(), 1500);
        assert_eq!(refused, Err(TransmitDrop::BadHeader));
    }

    #[test]
    fn guest_cannot_vouch_for_a_checksum_nor_set_num_buffers() {
        let header = VirtioNetHeader {
            flags: FLAG_DATA_VALID | 0x40,
            num_buffers: 9.into(),
            ..Default::default()
        };
        assert_eq!(
            admit(header, 60, Offloads::ALL, 1500),
            Ok(VirtioNetHeader::default())
        );
    }

    proptest! {
        /// What is admitted is what any other guest or TAP can be given.
        #[test]
        fn admitted_headers_pass_the_check_again(bytes: [u8; 12], frame_bytes in 14usize..70_000) {
            let Some((header, _)) = VirtioNetHeader::split(&bytes) else { unreachable!() };
            if let Ok(admitted) = admit(header, frame_bytes, Offloads::ALL, 9000) {
                prop_assert_eq!(admitted.check(frame_bytes, Offloads::ALL), Ok(()));
                prop_assert_eq!(admitted.num_buffers.get(), 0);
            }
        }
    }
}

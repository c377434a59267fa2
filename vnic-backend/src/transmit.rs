//! Guest to fabric: one transmit ring.
//!
//! ```text
//! Reading --lane blocked--> Stalled --writable, up, down--> Reading
//! ```
//!
//! Past the lanes of a director in this process ([`crate::direct`]) it never stalls.
//!
//! A stalled ring holds one frame with its chain and takes no more from the guest; a ring that is
//! stopped meanwhile gives that chain back unread, so nothing is lost and nothing sent twice.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fabric_bypass::DirectVnic;
use fabric_payload::ethernet::{
    ETHERNET_HEADER_BYTES, FLAG_NEEDS_CSUM, FRAME_BYTES_MAX, FrameError, HEADER_BYTES, Offloads,
    VirtioNetHeader,
};
use fabric_transport::{FrameBuffer, SendRefused, VirtualLane};
use vhost_user_session::{BatchChain, BusyPoll, Chain, ChainError, Queue, QueueGuard, RingBatch};
use zerocopy::IntoBytes;

use crate::direct::{Attached, DirectBatch};

use crate::features::Negotiated;
use crate::statistics::{Counters, TransmitDrop};

/// Frames taken in one turn, so that a flood cannot keep the thread from the pair's other work.
const FRAMES_PER_TURN_MAX: usize = 256;
/// Two VLAN tags, which the MTU does not count.
const TAG_BYTES_MAX: usize = 8;

/// What a turn leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// The ring is empty or stopped.
    Empty,
    /// It waits for its lane, or is stopped: somebody will call again.
    Stalled,
    /// The turn's limit ended it: call again.
    More,
}

/// What a turn needs besides the ring.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub(crate) counters: &'a Counters,
    pub(crate) attached: Option<Arc<Attached>>,
    pub(crate) negotiated: Negotiated,
    pub(crate) mtu: u16,
}

#[derive(Debug)]
struct Held {
    chain: Chain,
    frame_bytes: usize,
}

/// One transmit ring; `None` in `queue` while it is stopped.
#[derive(Debug)]
pub(crate) struct Transmitter {
    queue: Option<Queue>,
    poll: BusyPoll,
    /// The chain of the frame in `outgoing`.
    held: Option<Held>,
    /// At most one frame; kept so that its allocation is reused.
    outgoing: Vec<(VirtualLane, FrameBuffer)>,
    /// Empty between two turns.
    batch: DirectBatch,
}

impl Transmitter {
    /// A stopped ring, which is looked at for `busy_poll` before its thread sleeps.
    pub(crate) fn new(busy_poll: Duration) -> Self {
        Self {
            queue: None,
            poll: BusyPoll::new(busy_poll),
            held: None,
            outgoing: Vec::new(),
            batch: DirectBatch::default(),
        }
    }

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
        self.poll.filled(Instant::now());
        let Some(queue) = self.queue.clone() else {
            return Turn::Stalled;
        };
        if let Some(held) = self.held.take() {
            match self.send(context, held) {
                Ok(chain) => chain.complete(0),
                Err(held) => {
                    self.held = Some(held);
                    return Turn::Stalled;
                }
            }
        }
        let attached = context.attached.as_deref();
        if let Some(attached) = attached
            && let Some(session) = attached.past_lanes()
        {
            return self.run_past_lanes(context, attached, &*session, &queue);
        }
        let Some(mut ring) = queue.lock() else {
            return Turn::Stalled;
        };
        ring.disable_notification();
        let mut turn = Turn::More;
        for _frame in 0..FRAMES_PER_TURN_MAX {
            let Some(chain) = next(&mut ring) else {
                turn = Turn::Empty;
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
                            turn = Turn::Stalled;
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
        if turn == Turn::Stalled {
            context.counters.transmit_stalled();
        } else if let Some(attached) = attached {
            attached.lanes.flush();
        }
        turn
    }

    /// The same past the lanes, until what is owed to them has to wait.
    fn run_past_lanes(
        &mut self,
        context: &Context<'_>,
        attached: &Attached,
        session: &dyn DirectVnic,
        queue: &Queue,
    ) -> Turn {
        let memory = queue.memory();
        let Some(mut ring) = queue.batch(&memory) else {
            return Turn::Stalled;
        };
        ring.disable_notification();
        let mut left = FRAMES_PER_TURN_MAX;
        while left > 0 {
            while left > 0 && !self.batch.is_full() {
                let Some(chain) = ring.pop() else { break };
                left -= 1;
                if let Err(reason) = self.add_to_batch(context, &ring, chain) {
                    context.counters.transmit_dropped(reason);
                }
            }
            if self.batch.is_empty() {
                // Malformed chains may have gone back all the same.
                let before = ring.publish();
                ring.signal_since(before);
                // Looks once more, for what came in between.
                if !ring.can_pop() || !ring.enable_notification() {
                    return Turn::Empty;
                }
                ring.disable_notification();
                // So that a driver that makes nothing but malformed chains ends the turn too.
                left -= 1;
                continue;
            }
            self.batch.transmit(session, &mut ring, context.counters);
            if self.batch.owes() {
                self.batch.pay(&attached.lanes);
                if !attached.lanes.is_clear() {
                    break;
                }
            }
        }
        Turn::More
    }

    fn add_to_batch(
        &mut self,
        context: &Context<'_>,
        ring: &RingBatch<'_>,
        chain: BatchChain,
    ) -> Result<(), TransmitDrop> {
        let header_bytes = context.negotiated.header_bytes();
        let frame_bytes = match frame_bytes(chain.readable_bytes(), header_bytes) {
            Ok(frame_bytes) => frame_bytes,
            Err(reason) => {
                self.batch.add_dropped(chain);
                return Err(reason);
            }
        };
        self.batch
            .add(chain, HEADER_BYTES + frame_bytes, |chain, payload| {
                read_frame(|offset, to| ring.read(chain, offset, to), context, payload)
            })
    }

    /// The ring is empty: for how long to look at it. If that is over, what is owed is to be paid.
    pub(crate) fn emptied(&mut self) -> Option<(Queue, Duration)> {
        let longest = self.poll.emptied(Instant::now());
        let queue = self.queue.clone().filter(|_| !longest.is_zero())?;
        Some((queue, longest))
    }

    /// Charges for what went past the lanes.
    pub(crate) fn pay(&mut self, attached: &Attached) {
        self.batch.pay(&attached.lanes);
    }

    /// Puts the frame in `outgoing` on the lane. The chain comes back to be completed, unless the
    /// lane is blocked.
    #[expect(
        clippy::result_large_err,
        reason = "moved once; a box would be an allocation for each"
    )]
    fn send(&mut self, context: &Context<'_>, held: Held) -> Result<Chain, Held> {
        let sent = match context.attached.as_deref() {
            None => Err(SendRefused::Down),
            Some(attached) => match attached.queue(&mut self.outgoing) {
                // The device's queue may be full of what this very turn put there.
                Err(SendRefused::Blocked) => {
                    attached.lanes.flush();
                    attached.queue(&mut self.outgoing)
                }
                other => other,
            },
        };
        match sent {
            Ok(()) => context.counters.transmitted(1, held.frame_bytes),
            Err(SendRefused::Blocked) => return Err(held),
            Err(SendRefused::Down) => context.counters.transmit_dropped(TransmitDrop::NoSession),
            Err(SendRefused::TooLarge) => context.counters.transmit_dropped(TransmitDrop::Giant),
        }
        self.outgoing.clear();
        Ok(held.chain)
    }
}

/// The next chain; if there is none, the driver was asked for a kick.
fn next(ring: &mut QueueGuard<'_>) -> Option<Chain> {
    loop {
        if let Some(chain) = ring.pop() {
            return Some(chain);
        }
        // `enable_notification` looks once more, for what came in between.
        if !ring.can_pop() || !ring.enable_notification() {
            return None;
        }
        ring.disable_notification();
    }
}

/// Header and frame, copied out of guest memory and checked.
fn copy_frame(chain: &Chain, context: &Context<'_>) -> Result<FrameBuffer, TransmitDrop> {
    let header_bytes = context.negotiated.header_bytes();
    let frame_bytes = frame_bytes(chain.readable_bytes(), header_bytes)?;
    let mut buffer = FrameBuffer::zeroed(HEADER_BYTES + frame_bytes);
    let read = |offset, to: &mut [u8]| chain.read_at(offset, to);
    read_frame(read, context, buffer.payload_mut())?;
    Ok(buffer)
}

/// Copies header and frame, which just fit into `payload`, out of guest memory with `read`, and checks
/// the copy.
fn read_frame(
    read: impl Fn(u64, &mut [u8]) -> Result<(), ChainError>,
    context: &Context<'_>,
    payload: &mut [u8],
) -> Result<(), TransmitDrop> {
    let header_bytes = context.negotiated.header_bytes();
    if header_bytes == HEADER_BYTES {
        read(0, payload).map_err(|_unreadable| TransmitDrop::Unreadable)?;
    } else {
        let (header, frame) = payload
            .split_at_mut_checked(HEADER_BYTES)
            .ok_or(TransmitDrop::Unreadable)?;
        header.fill(0);
        let header = header
            .get_mut(..header_bytes)
            .ok_or(TransmitDrop::Unreadable)?;
        let offset = u64::try_from(header_bytes).unwrap_or(u64::MAX);
        read(0, header).map_err(|_unreadable| TransmitDrop::Unreadable)?;
        read(offset, frame).map_err(|_unreadable| TransmitDrop::Unreadable)?;
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
    Ok(())
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

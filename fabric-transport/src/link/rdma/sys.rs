//! The verbs that the crate `sideway` leaves unsafe or leaves out: the only unsafe code here.
//!
//! What is posted names memory that the adapter reads or writes later. [`Queues`] owns both: the
//! queue pair goes before the memory does, and each slot has room for every length that is posted.
//! Bytes are copied in and out through volatile slices, so the adapter may write at any time.
//!
//! Read first: ibv_post_send(3), ibv_post_recv(3), ibv_req_notify_cq(3), ibv_get_cq_event(3).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::Arc;

use rdma_mummy_sys::{ibv_ack_cq_events, ibv_get_cq_event, ibv_req_notify_cq};
use sideway::ibverbs::AccessFlags;
use sideway::ibverbs::completion::{
    BasicCompletionQueue, CompletionChannel, CompletionQueue, GenericCompletionQueue,
    PollCompletionQueueError, WorkCompletionStatus,
};
use sideway::ibverbs::device_context::DeviceContext;
use sideway::ibverbs::memory_region::MemoryRegion;
use sideway::ibverbs::protection_domain::ProtectionDomain;
use sideway::ibverbs::queue_pair::{
    BasicQueuePair, PostSendError, PostSendGuard, QueuePair, QueuePairAttribute,
    SetScatterGatherEntry, WorkRequestFlags,
};
use sideway::rdmacm::communication_manager::EventChannel;
use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

use super::failed;

/// Marks the work of sends; the rest is the slot.
const SEND: u64 = 1 << 32;

/// Memory of equal slots that the adapter may read and write.
struct Slots {
    // Before the memory: the adapter's leave ends first.
    region: Arc<MemoryRegion>,
    memory: MmapRegion,
    slot_bytes: u32,
}

impl Slots {
    fn register(domain: &Arc<ProtectionDomain>, count: u32, slot_bytes: u32) -> io::Result<Self> {
        let bytes = count as usize * slot_bytes as usize;
        let memory = MmapRegion::new(bytes).map_err(io::Error::other)?;
        let address = memory.as_ptr() as usize;
        // SAFETY: `address` is the start of `bytes` mapped bytes, which stay mapped until the
        // region is gone: `Slots` drops the region first and gives out neither.
        let region = unsafe { domain.reg_mr(address, bytes, AccessFlags::LocalWrite) };
        let region = region.map_err(failed(
            "cannot register memory (is the limit of locked memory, ulimit -l, above 2 MiB a link?)",
        ))?;
        Ok(Self {
            region,
            memory,
            slot_bytes,
        })
    }

    /// The slot, or an error if there is none of that number and length.
    fn slot(&self, slot: u32, bytes: u32) -> io::Result<VolatileSlice<'_>> {
        if bytes > self.slot_bytes {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let start = slot as usize * self.slot_bytes as usize;
        self.memory
            .get_slice(start, bytes as usize)
            .map_err(io::Error::other)
    }

    /// Where the adapter finds the slot.
    fn address(&self, slot: u32, bytes: u32) -> io::Result<u64> {
        let start = self.slot(slot, bytes)?.ptr_guard().as_ptr();
        Ok(start as u64)
    }
}

/// What a piece of finished work was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    /// The peer has the message of this slot.
    Sent { slot: u32 },
    /// A message is in this slot.
    Received { slot: u32, bytes: u32 },
    /// The queue pair is in error; the status is that of ibv_poll_cq(3).
    Failed { status: u32 },
}

/// A queue pair with its completion queue and its memory.
pub(super) struct Queues {
    // In this order: the pair uses all the others.
    pair: BasicQueuePair,
    receives: Slots,
    sends: Slots,
    completions: Arc<BasicCompletionQueue>,
    channel: Arc<CompletionChannel>,
}

impl Queues {
    /// Makes `count` slots of `slot_bytes` for each direction and posts all receives.
    ///
    /// # Errors
    /// The adapter or the kernel has no room, or the limit of locked memory is too low.
    pub(super) fn new(
        device: &Arc<DeviceContext>,
        count: u32,
        slot_bytes: u32,
    ) -> io::Result<Self> {
        let domain = device.alloc_pd().map_err(failed("no protection domain"))?;
        let channel = device
            .create_comp_channel()
            .map_err(failed("no completion channel"))?;
        channel.set_nonblocking(true)?;
        // Twice what may be underway: adapters give room back a moment after they say so.
        let room = 2 * count;
        let completions = device
            .create_cq_builder()
            .setup_cqe(2 * room)
            .setup_comp_channel(&channel, 0)
            .build()
            .map_err(failed("no completion queue"))?;
        let queue = || GenericCompletionQueue::from(completions.clone());
        let pair = domain
            .create_qp_builder()
            .setup_max_send_wr(room)
            .setup_max_recv_wr(room)
            .setup_send_cq(queue())
            .setup_recv_cq(queue())
            .build()
            .map_err(failed("no queue pair"))?;
        Ok(Self {
            pair,
            receives: Slots::register(&domain, count, slot_bytes)?,
            sends: Slots::register(&domain, count, slot_bytes)?,
            completions,
            channel,
        })
    }

    /// The number of the queue pair, for the peer.
    pub(super) fn number(&self) -> u32 {
        self.pair.qp_number()
    }

    /// Moves the queue pair into another state.
    ///
    /// # Errors
    /// The adapter refuses.
    pub(super) fn modify(&mut self, state: &QueuePairAttribute) -> io::Result<()> {
        self.pair
            .modify(state)
            .map_err(failed("queue pair does not change its state"))
    }

    /// Copies `bytes` into a slot for sends, behind the first `at`. The slot must not be sent now.
    ///
    /// # Errors
    /// They do not fit.
    pub(super) fn write(&self, slot: u32, at: u32, bytes: &[u8]) -> io::Result<()> {
        let end = u32::try_from(bytes.len()).map_err(io::Error::other)? + at;
        let room = self.sends.slot(slot, end)?;
        room.offset(at as usize)
            .map_err(io::Error::other)?
            .copy_from(bytes);
        Ok(())
    }

    /// Copies bytes of a received message out, from `at` on.
    ///
    /// # Errors
    /// There are not so many.
    pub(super) fn read(&self, slot: u32, at: u32, bytes: &mut [u8]) -> io::Result<()> {
        let end = u32::try_from(bytes.len()).map_err(io::Error::other)? + at;
        let filled = self.receives.slot(slot, end)?;
        filled
            .offset(at as usize)
            .map_err(io::Error::other)?
            .copy_to(bytes);
        Ok(())
    }

    /// Lets the next message come into a slot.
    ///
    /// # Errors
    /// The adapter refuses.
    pub(super) fn post_receive(&mut self, slot: u32) -> io::Result<()> {
        let bytes = self.receives.slot_bytes;
        let address = self.receives.address(slot, bytes)?;
        let key = self.receives.region.lkey();
        let mut work = self.pair.start_post_recv();
        // SAFETY: `address` is that of `bytes` bytes of the memory whose key is `key`: `address`
        // checks it. They are mapped until this object goes, which drops the queue pair first.
        unsafe {
            work.construct_wr(slot.into())
                .setup_sge(key, address, bytes)
        };
        work.post().map_err(failed("receive cannot be posted"))
    }

    /// Sends the first `bytes` of a slot. An error of the kind `WouldBlock` when the
    /// adapter has no room now (ENOMEM, ENOSPC), but will once something is done.
    ///
    /// # Errors
    /// That, or the queue pair is of no use.
    pub(super) fn post_send(&mut self, slot: u32, bytes: u32) -> io::Result<()> {
        let address = self.sends.address(slot, bytes)?;
        let key = self.sends.region.lkey();
        let mut work = self.pair.start_post_send();
        let request = work.construct_wr(SEND | u64::from(slot), WorkRequestFlags::Signaled);
        let request = request.setup_send();
        // SAFETY: `address` is that of `bytes` bytes of the memory whose key is `key`: `address`
        // checks it. They are mapped until this object goes, which drops the queue pair first.
        unsafe { request.setup_sge(key, address, bytes) };
        work.post().map_err(|error| match error {
            PostSendError::NotEnoughResources(_) => io::ErrorKind::WouldBlock.into(),
            PostSendError::Ibverbs(source) if source.kind() == io::ErrorKind::StorageFull => {
                io::ErrorKind::WouldBlock.into()
            }
            error => failed("message cannot be sent")(error),
        })
    }

    /// What is done, in its order: no more than is posted.
    ///
    /// # Errors
    /// The completion queue is of no use.
    pub(super) fn done(&self) -> io::Result<Vec<Done>> {
        let poller = match self.completions.start_poll() {
            Ok(poller) => poller,
            Err(PollCompletionQueueError::CompletionQueueEmpty) => return Ok(Vec::new()),
            Err(error) => return Err(failed("completions cannot be read")(error)),
        };
        let done = poller.map(|work| {
            let status = work.status();
            let id = work.wr_id();
            // The low half is the slot.
            let slot = u32::try_from(id & u64::from(u32::MAX)).unwrap_or_default();
            if status != WorkCompletionStatus::Success as u32 {
                Done::Failed { status }
            } else if id & SEND != 0 {
                Done::Sent { slot }
            } else {
                Done::Received {
                    slot,
                    bytes: work.byte_len(),
                }
            }
        });
        Ok(done.collect())
    }

    /// Makes [`Self::fd`] readable with the next piece of work that is done, and not before.
    ///
    /// # Errors
    /// The completion channel is of no use.
    pub(super) fn ask_to_wake(&self) -> io::Result<()> {
        // SAFETY: the handle is used for the calls below only, and `completions` lives that long.
        let queue = unsafe { self.completions.cq() }.as_ptr();
        // SAFETY: as above, with `channel`.
        let channel = unsafe { self.channel.comp_channel() }.as_ptr();
        loop {
            let (mut of, mut context) = (ptr::null_mut(), ptr::null_mut());
            // SAFETY: `channel` is alive, and both pointers are to live places for a pointer.
            let got = unsafe { ibv_get_cq_event(channel, &raw mut of, &raw mut context) };
            if got != 0 {
                let error = io::Error::last_os_error();
                match error.kind() {
                    io::ErrorKind::WouldBlock => break,
                    io::ErrorKind::Interrupted => continue,
                    _ => return Err(error),
                }
            }
            // SAFETY: the channel has one queue, so the event is of `queue`, which is alive, and
            // each event is acknowledged once.
            unsafe { ibv_ack_cq_events(queue, 1) };
        }
        // SAFETY: `queue` is alive.
        match unsafe { ibv_req_notify_cq(queue, 0) } {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Readable when there is something of which [`Self::ask_to_wake`] was to tell.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the channel is, which `self` keeps.
        unsafe { BorrowedFd::borrow_raw(self.channel.as_raw_fd()) }
    }
}

/// Readable when the connection manager has an event.
pub(super) fn events_fd(events: &EventChannel) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as `events` is, which is borrowed.
    unsafe { BorrowedFd::borrow_raw(events.as_raw_fd()) }
}

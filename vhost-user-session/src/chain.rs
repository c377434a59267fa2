//! Descriptor chains: the driver's requests, copied out of the ring once.
//!
//! The ring is shared with a guest that may change it at any moment, so a chain is walked once
//! when it is popped, checked, and kept as a list of ranges. All later reads and writes go to
//! those ranges through `vm-memory`, which checks every access against the mapped regions.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, RwLockReadGuard};

use smallvec::SmallVec;
use thiserror::Error;
use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{
    Bytes, GuestAddress, GuestMemory as GuestMemoryAccess, GuestMemoryBackend, Permissions,
};

use crate::queue::QueueInner;
use crate::{GuestMemory, MemorySnapshot};

/// Most descriptors of one chain, as in QEMU (`VIRTQUEUE_MAX_SIZE`).
pub const DESCRIPTORS_MAX: usize = 1024;

/// Why a chain, or an access to it, is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ChainError {
    /// No descriptor could be read at all: bad head, bad or empty indirect table.
    #[error("chain has no readable descriptor")]
    Empty,
    /// The chain does not end: a loop, a `next` beyond the table, more than 4 GiB in total.
    #[error("chain does not end within its table")]
    Unterminated,
    /// More than [`DESCRIPTORS_MAX`] descriptors.
    #[error("chain has more than {DESCRIPTORS_MAX} descriptors")]
    TooLong,
    /// A device-readable descriptor follows a device-writable one (virtio 1.2, 2.7.4.2).
    #[error("readable descriptor after a writable one")]
    ReadableAfterWritable,
    /// A range is not (completely) in guest memory.
    #[error("range is not in guest memory")]
    OutsideMemory,
    /// An access beyond the chain's readable or writable bytes.
    #[error("access beyond the end of the chain")]
    OutOfBounds,
    /// The ring has ended: the guest may use the buffers for something else by now.
    #[error("ring of the chain has been stopped")]
    Stopped,
}

impl From<ChainError> for io::Error {
    fn from(error: ChainError) -> Self {
        let kind = match error {
            ChainError::OutOfBounds => io::ErrorKind::UnexpectedEof,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment {
    address: GuestAddress,
    bytes: u32,
}

/// Most requests have no more ranges; longer lists are elsewhere.
type Segments = SmallVec<[Segment; 4]>;

/// The ranges of a chain, checked.
#[derive(Debug)]
pub(crate) struct Ranges {
    /// The readable ones first.
    segments: Segments,
    readable_segments: usize,
    pub(crate) readable_bytes: u64,
    pub(crate) writable_bytes: u64,
}

impl Ranges {
    /// Walks and checks `descriptors`, which are those of a chain in their order.
    pub(crate) fn collect(
        memory: &GuestMemory,
        descriptors: impl Iterator<Item = Descriptor>,
    ) -> Result<Self, ChainError> {
        let mut ranges = Self {
            segments: Segments::new(),
            readable_segments: 0,
            readable_bytes: 0,
            writable_bytes: 0,
        };
        let mut unfinished = None;
        for (count, descriptor) in descriptors.enumerate() {
            if count >= DESCRIPTORS_MAX {
                return Err(ChainError::TooLong);
            }
            let segment = Segment {
                address: descriptor.addr(),
                bytes: descriptor.len(),
            };
            let bytes = u64::from(segment.bytes);
            let length = usize::try_from(bytes).map_err(|_overflow| ChainError::OutsideMemory)?;
            let (total, access) = if descriptor.is_write_only() {
                (&mut ranges.writable_bytes, Permissions::Write)
            } else {
                if ranges.readable_segments < ranges.segments.len() {
                    return Err(ChainError::ReadableAfterWritable);
                }
                ranges.readable_segments += 1;
                (&mut ranges.readable_bytes, Permissions::Read)
            };
            // Empty ranges touch no memory; drivers do send them with any address.
            if length > 0 && !in_memory(memory, segment.address, length, access) {
                return Err(ChainError::OutsideMemory);
            }
            *total = total.saturating_add(bytes);
            ranges.segments.push(segment);
            unfinished = Some(descriptor.has_next());
        }
        match unfinished {
            None => Err(ChainError::Empty),
            // The walk stops early on a bad `next`, a loop and on 4 GiB of data.
            Some(true) => Err(ChainError::Unterminated),
            Some(false) => Ok(ranges),
        }
    }

    pub(crate) fn readable(&self) -> &[Segment] {
        let readable = self.segments.get(..self.readable_segments);
        readable.unwrap_or_default()
    }

    pub(crate) fn writable(&self) -> &[Segment] {
        let writable = self.segments.get(self.readable_segments..);
        writable.unwrap_or_default()
    }
}

/// Copies what is from `offset` on in `segments`.
pub(crate) fn read(
    memory: &GuestMemory,
    segments: &[Segment],
    offset: u64,
    to: &mut [u8],
) -> Result<(), ChainError> {
    let mut rest = to;
    for (address, bytes) in Pieces::new(segments, offset, rest.len())? {
        let (now, later) = rest
            .split_at_mut_checked(bytes)
            .ok_or(ChainError::OutOfBounds)?;
        // Nearly always in one mapping, which takes less to find than an iterator over several.
        match memory.get_slice(address, bytes) {
            Ok(slice) => {
                slice.copy_to(now);
            }
            Err(_in_pieces) => memory
                .read_slice(now, address)
                .map_err(|_unmapped| ChainError::OutsideMemory)?,
        }
        rest = later;
    }
    Ok(())
}

/// Copies `from` to where `segments` are from `offset` on.
pub(crate) fn write(
    memory: &GuestMemory,
    segments: &[Segment],
    offset: u64,
    from: &[u8],
) -> Result<(), ChainError> {
    let mut rest = from;
    for (address, bytes) in Pieces::new(segments, offset, rest.len())? {
        let (now, later) = rest
            .split_at_checked(bytes)
            .ok_or(ChainError::OutOfBounds)?;
        match memory.get_slice(address, bytes) {
            Ok(slice) => slice.copy_from(now),
            Err(_in_pieces) => memory
                .write_slice(now, address)
                .map_err(|_unmapped| ChainError::OutsideMemory)?,
        }
        rest = later;
    }
    Ok(())
}

/// One request of the driver: device-readable ranges, then device-writable ranges.
///
/// It keeps the memory it points into mapped. Finish it with [`Chain::complete`] or
/// [`QueueGuard::add_used`](crate::QueueGuard::add_used); a chain that is dropped instead is lost
/// to the driver and counted in [`QueueCounters::chains_dropped`](crate::QueueCounters).
#[derive(Debug)]
pub struct Chain {
    queue: Arc<QueueInner>,
    memory: MemorySnapshot,
    head: u16,
    ranges: Ranges,
    finished: bool,
}

impl Chain {
    /// Walks and checks `raw`. On error the caller still owes the driver the head.
    pub(crate) fn parse(
        queue: &Arc<QueueInner>,
        memory: &MemorySnapshot,
        raw: DescriptorChain<MemorySnapshot>,
    ) -> Result<Self, ChainError> {
        let head = raw.head_index();
        let ranges = Ranges::collect(memory, raw)?;
        queue.in_flight.add_one();
        Ok(Self {
            queue: Arc::clone(queue),
            memory: Arc::clone(memory),
            head,
            ranges,
            finished: false,
        })
    }

    /// Index of the chain's head in the descriptor table.
    #[must_use]
    pub const fn head(&self) -> u16 {
        self.head
    }

    /// Bytes the device may read, at most 4 GiB.
    #[must_use]
    pub const fn readable_bytes(&self) -> u64 {
        self.ranges.readable_bytes
    }

    /// Bytes the device may write, at most 4 GiB.
    #[must_use]
    pub const fn writable_bytes(&self) -> u64 {
        self.ranges.writable_bytes
    }

    /// The memory snapshot this chain keeps mapped.
    #[must_use]
    pub const fn memory(&self) -> &MemorySnapshot {
        &self.memory
    }

    /// Copies `buffer.len()` readable bytes from `offset`.
    ///
    /// # Errors
    /// [`ChainError::OutOfBounds`] if the readable part is shorter; `buffer` is then unspecified.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ChainError> {
        read(&self.memory, self.ranges.readable(), offset, buffer)
    }

    /// Copies `data` into the writable part at `offset`.
    ///
    /// # Errors
    /// [`ChainError::OutOfBounds`] if the writable part is shorter, [`ChainError::Stopped`] if the
    /// ring has ended; nothing is written then.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), ChainError> {
        let _open = self.writing().ok_or(ChainError::Stopped)?;
        write(&self.memory, self.ranges.writable(), offset, data)
    }

    /// A cursor over the readable bytes; copies have their own position.
    #[must_use]
    pub const fn reader(&self) -> ChainReader<'_> {
        ChainReader {
            chain: self,
            offset: 0,
        }
    }

    /// A cursor over the writable bytes.
    #[must_use]
    pub const fn writer(&self) -> ChainWriter<'_> {
        ChainWriter {
            chain: self,
            offset: 0,
        }
    }

    /// Gives the chain back to the driver with `written` bytes used, and signals if it wants.
    ///
    /// Takes the queue's lock: not to be called while holding its [`QueueGuard`], use
    /// [`QueueGuard::add_used`] there. Does nothing if the queue has been stopped or is broken.
    ///
    /// [`QueueGuard`]: crate::QueueGuard
    /// [`QueueGuard::add_used`]: crate::QueueGuard::add_used
    pub fn complete(self, written: u32) {
        let queue = crate::Queue::from_inner(Arc::clone(&self.queue));
        if let Some(mut guard) = queue.lock() {
            guard.add_used(self, written);
        } else {
            self.discard();
        }
    }

    /// Finishes a chain that the driver gets back by other means.
    pub(crate) fn discard(mut self) {
        self.finished = true;
    }

    /// Held while the guest's memory is written; `None` once the guest has it back.
    pub(crate) fn writing(&self) -> Option<RwLockReadGuard<'_, ()>> {
        self.queue.writing()
    }

    pub(crate) fn readable_segments(&self) -> &[Segment] {
        self.ranges.readable()
    }

    pub(crate) fn writable_segments(&self) -> &[Segment] {
        self.ranges.writable()
    }

    pub(crate) fn belongs_to(&self, queue: &Arc<QueueInner>) -> bool {
        Arc::ptr_eq(&self.queue, queue)
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        if !self.finished && !self.queue.is_closed() {
            self.queue
                .counters
                .chains_dropped
                .fetch_add(1, Ordering::Relaxed);
        }
        self.queue.in_flight.remove_one();
    }
}

/// Whether a range is guest memory.
///
/// `vm-memory` has two traits with this method; the one of I/O virtual addresses is meant.
fn in_memory<M: GuestMemoryAccess>(
    memory: &M,
    address: GuestAddress,
    bytes: usize,
    access: Permissions,
) -> bool {
    memory.check_range(address, bytes, access)
}

/// The parts of `segments` that hold the `bytes` from `offset` on.
pub(crate) struct Pieces<'a> {
    segments: std::slice::Iter<'a, Segment>,
    skip: u64,
    rest: usize,
}

impl<'a> Pieces<'a> {
    pub(crate) fn new(
        segments: &'a [Segment],
        offset: u64,
        bytes: usize,
    ) -> Result<Self, ChainError> {
        let total: u64 = segments
            .iter()
            .map(|segment| u64::from(segment.bytes))
            .sum();
        let end = u64::try_from(bytes)
            .ok()
            .and_then(|bytes| offset.checked_add(bytes));
        if end.is_none_or(|end| end > total) {
            return Err(ChainError::OutOfBounds);
        }
        Ok(Self {
            segments: segments.iter(),
            skip: offset,
            rest: bytes,
        })
    }
}

impl Iterator for Pieces<'_> {
    type Item = (GuestAddress, usize);

    fn next(&mut self) -> Option<Self::Item> {
        while self.rest > 0 {
            let segment = self.segments.next()?;
            let bytes = u64::from(segment.bytes);
            if self.skip >= bytes {
                self.skip -= bytes;
                continue;
            }
            // Checked when the chain was parsed: the whole range lies in memory.
            let address = GuestAddress(segment.address.0.saturating_add(self.skip));
            let bytes = usize::try_from(bytes - self.skip)
                .unwrap_or(usize::MAX)
                .min(self.rest);
            self.skip = 0;
            self.rest -= bytes;
            return Some((address, bytes));
        }
        None
    }
}

/// Reads a chain's device-readable bytes in order.
#[derive(Debug, Clone)]
pub struct ChainReader<'a> {
    chain: &'a Chain,
    offset: u64,
}

impl ChainReader<'_> {
    /// Bytes not yet read.
    #[must_use]
    pub const fn remaining(&self) -> u64 {
        self.chain.readable_bytes().saturating_sub(self.offset)
    }

    /// Passes over `bytes`, stopping at the end.
    pub fn skip(&mut self, bytes: u64) {
        self.offset = self
            .offset
            .saturating_add(bytes)
            .min(self.chain.readable_bytes());
    }
}

impl io::Read for ChainReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = usize::try_from(self.remaining())
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let now = buffer.get_mut(..length).unwrap_or_default();
        self.chain.read_at(self.offset, now)?;
        self.offset = self
            .offset
            .saturating_add(u64::try_from(length).unwrap_or(0));
        Ok(length)
    }
}

/// Writes a chain's device-writable bytes in order.
#[derive(Debug)]
pub struct ChainWriter<'a> {
    chain: &'a Chain,
    offset: u64,
}

impl ChainWriter<'_> {
    /// Bytes not yet written.
    #[must_use]
    pub const fn remaining(&self) -> u64 {
        self.chain.writable_bytes().saturating_sub(self.offset)
    }

    /// Bytes written so far, as `written` of [`Chain::complete`] wants them.
    #[must_use]
    pub fn written(&self) -> u32 {
        u32::try_from(self.offset).unwrap_or(u32::MAX)
    }
}

impl io::Write for ChainWriter<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let length = usize::try_from(self.remaining())
            .unwrap_or(usize::MAX)
            .min(data.len());
        self.chain
            .write_at(self.offset, data.get(..length).unwrap_or_default())?;
        self.offset = self
            .offset
            .saturating_add(u64::try_from(length).unwrap_or(0));
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

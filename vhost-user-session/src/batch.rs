//! A ring while a batch of its chains is read or written in place.
//!
//! A [`Chain`](crate::Chain) may outlive the ring's lock and therefore keeps queue and memory alive, is
//! counted, and is returned by itself. For a device that copies a few dozen bytes and is done with a
//! chain that is more work than the copy. In a batch the ring's tables are looked up once, chains end
//! with the lock, and what is used is published together.
//!
//! The rules of chains are those of [`Chain`](crate::Chain), and the same code; how descriptors follow
//! each other (virtio 1.2, 2.7.5) is compared with `virtio-queue` in the tests.

use std::fmt;
use std::sync::MutexGuard;
use std::sync::atomic::{Ordering, fence};

use vhost_user_backend::VringState;
use virtio_queue::QueueT;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryAtomic, GuestMemoryBackend};

use crate::chain::{ChainError, Ranges, read, write};
use crate::queue::{AVAIL_NO_INTERRUPT, Queue, QueueError};
use crate::{DirtySlice, GuestMemory};

type Slice<'a> = vm_memory::VolatileSlice<'a, DirtySlice<'a>>;

const DESCRIPTOR_BYTES: usize = 16;
/// Flags and index in front of the entries of the available and the used ring.
const RING_HEADER_BYTES: usize = 4;
const INDEX_AT: usize = 2;
const AVAILABLE_BYTES: usize = 2;
const USED_BYTES: usize = 8;
/// `used_event`, and `avail_event`, behind the entries.
const EVENT_BYTES: usize = 2;

/// A chain of a batch, with the rules of [`Chain`](crate::Chain). It is returned by
/// [`RingBatch::add_used`]; if it is not, it is lost to the driver.
#[derive(Debug)]
pub struct BatchChain {
    head: u16,
    ranges: Ranges,
}

impl BatchChain {
    /// Bytes the device may read.
    #[must_use]
    pub const fn readable_bytes(&self) -> u64 {
        self.ranges.readable_bytes
    }

    /// Bytes the device may write.
    #[must_use]
    pub const fn writable_bytes(&self) -> u64 {
        self.ranges.writable_bytes
    }
}

/// The locked ring. What was used is published when it is dropped; signals are sent by
/// [`Self::signal_since`] only.
pub struct RingBatch<'a> {
    queue: &'a Queue,
    vring: MutexGuard<'a, VringState<GuestMemoryAtomic<GuestMemory>>>,
    memory: &'a GuestMemory,
    descriptors: Slice<'a>,
    available: Slice<'a>,
    used: Slice<'a>,
    size: u16,
    next_available: u16,
    /// The driver's index when it was looked at last.
    available_end: u16,
    next_used: u16,
    /// What the driver sees of it.
    published_used: u16,
    /// Of this batch, for the queue's counters.
    taken: u64,
    returned: u64,
    rejected: u64,
}

impl fmt::Debug for RingBatch<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("RingBatch")
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

impl Queue {
    /// Locks the ring for a batch in `memory`, which is [`Self::memory`]; `None` if chains may not be
    /// taken now: it was stopped, is broken or not enabled.
    #[must_use]
    pub fn batch<'a>(&'a self, memory: &'a GuestMemory) -> Option<RingBatch<'a>> {
        let vring = self.vring()?;
        let ring = vring.get_queue();
        if !vring.is_enabled() || !ring.ready() || !self.is_running() {
            return None;
        }
        let size = ring.size();
        let entries = usize::from(size);
        let slice = |address, bytes| memory.get_slice(GuestAddress(address), bytes);
        let ring_bytes = |entry_bytes| RING_HEADER_BYTES + entries * entry_bytes + EVENT_BYTES;
        let tables = slice(ring.desc_table(), entries * DESCRIPTOR_BYTES).and_then(|descriptors| {
            let available = slice(ring.avail_ring(), ring_bytes(AVAILABLE_BYTES))?;
            let used = slice(ring.used_ring(), ring_bytes(USED_BYTES))?;
            Ok((descriptors, available, used))
        });
        let Ok((descriptors, available, used)) = tables else {
            self.fail(&QueueError::RingInPieces);
            return None;
        };
        let (next_available, next_used) = (ring.next_avail(), ring.next_used());
        Some(RingBatch {
            queue: self,
            memory,
            descriptors,
            available,
            used,
            size,
            next_available,
            available_end: next_available,
            next_used,
            published_used: next_used,
            taken: 0,
            returned: 0,
            rejected: 0,
            vring,
        })
    }
}

impl RingBatch<'_> {
    /// Whether chains may still be taken: the ring was not stopped, and is not broken.
    #[must_use]
    pub fn can_pop(&self) -> bool {
        self.queue.is_running()
    }

    /// Takes the next chain. Malformed ones are returned unused, counted and passed over; a ring that
    /// makes no sense is marked broken. `None` if there is nothing to take.
    pub fn pop(&mut self) -> Option<BatchChain> {
        for _attempt in 0..=self.size {
            if self.next_available == self.available_end && !self.look() {
                return None;
            }
            let slot = usize::from(self.next_available % self.size);
            let at = RING_HEADER_BYTES + slot * AVAILABLE_BYTES;
            let head: u16 = match self.available.load(at, Ordering::Relaxed) {
                Ok(head) => u16::from_le(head),
                Err(_outside) => return None,
            };
            if head >= self.size {
                let size = self.size;
                self.queue.fail(&QueueError::HeadOutOfRange { head, size });
                return None;
            }
            self.next_available = self.next_available.wrapping_add(1);
            let walk = Walk {
                memory: self.memory,
                table: self.descriptors,
                entries: self.size,
                next: Some(head),
                left: self.size,
                is_indirect: false,
                bytes: 0,
            };
            match Ranges::collect(self.memory, walk) {
                Ok(ranges) => {
                    self.taken += 1;
                    return Some(BatchChain { head, ranges });
                }
                Err(error) => {
                    self.rejected += 1;
                    self.queue.log_malformed(head, error);
                    self.write_used(head, 0);
                }
            }
        }
        let size = self.size;
        self.queue.fail(&QueueError::OnlyMalformedChains { size });
        None
    }

    /// Looks how far the driver is; whether it has made something available.
    fn look(&mut self) -> bool {
        let Ok(index) = self.available.load(INDEX_AT, Ordering::Acquire) else {
            return false;
        };
        let index = u16::from_le(index);
        if index.wrapping_sub(self.next_available) > self.size {
            self.queue.fail(&QueueError::AvailableIndex);
            return false;
        }
        self.available_end = index;
        index != self.next_available
    }

    /// Where the driver's next chain is: see [`Self::put_back`].
    #[must_use]
    pub const fn position(&self) -> (u16, u64) {
        (self.next_available, self.rejected)
    }

    /// Puts `chains` back, which are all that were taken since `position`. If malformed ones were among
    /// them they are returned unused instead.
    pub fn put_back(&mut self, position: (u16, u64), chains: impl IntoIterator<Item = BatchChain>) {
        let (next_available, rejected) = position;
        if rejected == self.rejected {
            let count = self.next_available.wrapping_sub(next_available);
            self.taken = self.taken.saturating_sub(u64::from(count));
            self.next_available = next_available;
        } else {
            for chain in chains {
                self.add_used(chain, 0);
            }
        }
    }

    /// Copies readable bytes of `chain`, from `offset` on.
    ///
    /// # Errors
    /// [`ChainError::OutOfBounds`] if there are less; `to` is then unspecified.
    pub fn read(&self, chain: &BatchChain, offset: u64, to: &mut [u8]) -> Result<(), ChainError> {
        read(self.memory, chain.ranges.readable(), offset, to)
    }

    /// Copies `from` into the writable part of `chain`, from `offset` on.
    ///
    /// # Errors
    /// [`ChainError::OutOfBounds`] if there is less room; nothing is written then.
    pub fn write(&self, chain: &BatchChain, offset: u64, from: &[u8]) -> Result<(), ChainError> {
        write(self.memory, chain.ranges.writable(), offset, from)
    }

    /// Returns a chain with `written` bytes, with the next [`Self::publish`].
    pub fn add_used(&mut self, chain: BatchChain, written: u32) {
        self.returned += 1;
        let written = u64::from(written).min(chain.writable_bytes());
        self.write_used(chain.head, u32::try_from(written).unwrap_or(u32::MAX));
    }

    fn write_used(&mut self, head: u16, written: u32) {
        let slot = usize::from(self.next_used % self.size);
        let at = RING_HEADER_BYTES + slot * USED_BYTES;
        let entry = u64::from(head) | u64::from(written) << 32;
        // In the ring, which was looked up whole.
        let _inside = self.used.write_obj(entry.to_le(), at);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Shows the driver what was used. Returns what it saw before, for [`Self::signal_since`].
    pub fn publish(&mut self) -> u16 {
        let before = self.published_used;
        if self.next_used != before && !self.queue.is_broken() {
            let index = self.next_used.to_le();
            let _inside = self.used.store(index, INDEX_AT, Ordering::Release);
            self.published_used = self.next_used;
        }
        before
    }

    /// Signals the driver if it wants to know of what was published since the index was `before`.
    pub fn signal_since(&mut self, before: u16) {
        let now = self.published_used;
        if before == now || self.queue.is_broken() {
            return;
        }
        // What was published comes before the look at what the driver wants (virtio 1.2, 2.7.10).
        fence(Ordering::SeqCst);
        let load = |at| self.available.load(at, Ordering::Relaxed).map(u16::from_le);
        let wants = if self.vring.get_queue().event_idx_enabled() {
            load(RING_HEADER_BYTES + usize::from(self.size) * AVAILABLE_BYTES).is_ok_and(|event| {
                now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before)
            })
        } else {
            load(0).is_ok_and(|flags| flags & AVAIL_NO_INTERRUPT == 0)
        };
        if wants {
            let signals = &self.queue.counters().signals;
            signals.fetch_add(1, Ordering::Relaxed);
            // EAGAIN: the counter is full, so the event is pending already.
            drop(self.vring.signal_used_queue());
        }
    }

    /// Asks the driver for kicks; `true` if chains came meanwhile, for which none will be sent.
    pub fn enable_notification(&mut self) -> bool {
        self.keep_position();
        let memory = self.memory;
        match self.vring.get_queue_mut().enable_notification(memory) {
            Ok(more) => more,
            Err(error) => {
                self.queue.fail(&QueueError::UsedRing(error));
                false
            }
        }
    }

    /// Tells the driver that kicks are not needed for now; it may still send some.
    pub fn disable_notification(&mut self) {
        self.keep_position();
        let memory = self.memory;
        if let Err(error) = self.vring.get_queue_mut().disable_notification(memory) {
            self.queue.fail(&QueueError::UsedRing(error));
        }
    }

    fn keep_position(&mut self) {
        let ring = self.vring.get_queue_mut();
        ring.set_next_avail(self.next_available);
        ring.set_next_used(self.next_used);
    }
}

impl Drop for RingBatch<'_> {
    fn drop(&mut self) {
        self.publish();
        self.keep_position();
        let counters = self.queue.counters();
        for (counter, count) in [
            (&counters.chains_taken, self.taken),
            (&counters.chains_used, self.returned),
            (&counters.chains_rejected, self.rejected),
        ] {
            if count > 0 {
                counter.fetch_add(count, Ordering::Relaxed);
            }
        }
    }
}

/// The descriptors of a chain, in their order; it ends early where they make no sense.
struct Walk<'a> {
    memory: &'a GuestMemory,
    table: Slice<'a>,
    entries: u16,
    next: Option<u16>,
    /// Descriptors that may follow: a chain is no longer than its table.
    left: u16,
    is_indirect: bool,
    bytes: u32,
}

impl Walk<'_> {
    fn read(&self) -> Option<Descriptor> {
        let next = self
            .next
            .filter(|next| *next < self.entries && self.left > 0)?;
        self.table
            .read_obj(usize::from(next) * DESCRIPTOR_BYTES)
            .ok()
    }

    fn enter(&mut self, descriptor: &Descriptor) -> Option<()> {
        let bytes = usize::try_from(descriptor.len()).ok()?;
        if self.is_indirect || bytes % DESCRIPTOR_BYTES != 0 {
            return None;
        }
        self.table = self.memory.get_slice(descriptor.addr(), bytes).ok()?;
        self.entries = u16::try_from(bytes / DESCRIPTOR_BYTES).ok()?;
        self.next = Some(0);
        self.left = self.entries;
        self.is_indirect = true;
        Some(())
    }
}

impl Iterator for Walk<'_> {
    type Item = Descriptor;

    fn next(&mut self) -> Option<Descriptor> {
        let mut descriptor = self.read()?;
        if descriptor.refers_to_indirect_table() {
            self.enter(&descriptor)?;
            descriptor = self.read()?;
            if descriptor.refers_to_indirect_table() {
                return None;
            }
        }
        self.bytes = self.bytes.checked_add(descriptor.len())?;
        self.left -= 1;
        self.next = descriptor.has_next().then(|| descriptor.next());
        Some(descriptor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use virtio_queue::{Queue as VirtQueue, QueueT};

    const SIZE: u16 = 16;
    const TABLE: u64 = 0x1000;
    const AVAILABLE: u64 = 0x2000;
    const USED: u64 = 0x3000;
    const MEMORY_BYTES: usize = 0x1_0000;

    /// A descriptor that is seldom nonsense: it lies in memory, is short and names one of the table.
    fn descriptor() -> impl Strategy<Value = Descriptor> {
        let address = prop_oneof![9 => 0x4000_u64..0xf000, 1 => any::<u64>()];
        let bytes = prop_oneof![
            6 => 0_u32..0x400,
            2 => (0_u32..6).prop_map(|entries| entries * 16),
            1 => any::<u32>()
        ];
        let flags = prop_oneof![9 => 0_u16..4, 3 => 0_u16..8, 1 => any::<u16>()];
        let next = prop_oneof![9 => 0..SIZE, 1 => any::<u16>()];
        (address, bytes, flags, next).prop_map(|(address, bytes, flags, next)| {
            // Indirect tables are where some entries are.
            let address = if flags & 4 == 0 { address } else { 0x8000 };
            Descriptor::new(address, bytes, flags, next)
        })
    }

    fn memory(tables: &[Vec<Descriptor>; 2], head: u16) -> GuestMemory {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap();
        for (table, at) in tables.iter().zip([TABLE, 0x8000]) {
            for (entry, at) in table.iter().zip((at..).step_by(DESCRIPTOR_BYTES)) {
                memory.write_obj(*entry, GuestAddress(at)).unwrap();
            }
        }
        let available = [0, 1, head];
        for (word, at) in available.iter().zip((AVAILABLE..).step_by(2)) {
            memory.write_obj(*word, GuestAddress(at)).unwrap();
        }
        memory
    }

    proptest! {
        /// What `virtio-queue` makes of the same tables.
        #[test]
        fn chains_are_those_that_virtio_queue_finds(
            table in prop::collection::vec(descriptor(), usize::from(SIZE)),
            indirect in prop::collection::vec(descriptor(), 8),
            head in 0..SIZE,
        ) {
            let memory = memory(&[table, indirect], head);
            let mut queue = VirtQueue::new(SIZE).unwrap();
            queue.try_set_desc_table_address(GuestAddress(TABLE)).unwrap();
            queue.try_set_avail_ring_address(GuestAddress(AVAILABLE)).unwrap();
            queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
            queue.set_ready(true);
            let theirs = queue.pop_descriptor_chain(&memory).unwrap();
            let ours = Walk {
                memory: &memory,
                table: memory.get_slice(GuestAddress(TABLE), 16 * usize::from(SIZE)).unwrap(),
                entries: SIZE,
                next: Some(head),
                left: SIZE,
                is_indirect: false,
                bytes: 0,
            };
            let ranges = |ranges: Result<Ranges, ChainError>| {
                ranges.map(|it| format!("{:?} {:?}", it.readable(), it.writable()))
            };
            let theirs = ranges(Ranges::collect(&memory, theirs));
            prop_assert_eq!(ranges(Ranges::collect(&memory, ours)), theirs);
        }
    }
}

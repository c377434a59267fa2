//! The driver's side of a split virtqueue (virtio 1.2, section 2.7).
//!
//! ```text
//! descriptor table   size * 16 bytes: address u64, length u32, flags u16, next u16
//! available ring     flags u16, index u16, head u16 * size, used_event u16
//! used ring          flags u16, index u16, (head u32, length u32) * size, avail_event u16
//! ```

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{Ordering, fence};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{GuestRam, PATIENCE, wait_readable};

/// Descriptor flag: the chain goes on.
pub const DESC_NEXT: u16 = 1;
/// Descriptor flag: the device writes here.
pub const DESC_WRITE: u16 = 2;
/// Descriptor flag: the buffer is a table of descriptors.
pub const DESC_INDIRECT: u16 = 4;

/// One buffer of a request.
#[derive(Debug, Clone, Copy)]
pub struct Buffer {
    /// Guest physical address.
    pub address: u64,
    /// Size in bytes.
    pub bytes: u32,
    /// The device writes it.
    pub writable: bool,
}

impl Buffer {
    /// A buffer that the device reads.
    #[must_use]
    pub const fn readable(address: u64, bytes: u32) -> Self {
        Self {
            address,
            bytes,
            writable: false,
        }
    }

    /// A buffer that the device writes.
    #[must_use]
    pub const fn writable(address: u64, bytes: u32) -> Self {
        Self {
            address,
            bytes,
            writable: true,
        }
    }
}

/// A chain that came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Head of the chain.
    pub head: u16,
    /// Bytes the device wrote.
    pub bytes: u32,
}

/// The driver's side of one ring.
#[derive(Debug)]
pub struct DriverQueue {
    memory: GuestMemoryMmap,
    size: u16,
    descriptors: u64,
    available: u64,
    used: u64,
    event_idx: bool,
    free: Vec<u16>,
    /// Descriptors of each chain in flight, by head.
    chains: Vec<Vec<u16>>,
    next_available: u16,
    next_used: u16,
    /// Our end of SET_VRING_KICK.
    pub kick: EventFd,
    /// Our end of SET_VRING_CALL.
    pub call: EventFd,
    /// Our end of SET_VRING_ERR.
    pub error: EventFd,
}

impl DriverQueue {
    /// Lays a ring of `size` entries out in `ram`.
    ///
    /// # Errors
    /// If memory or eventfds cannot be had.
    pub fn new(ram: &mut GuestRam, size: u16, event_idx: bool) -> Result<Self> {
        let entries = u64::from(size);
        let descriptors = ram.allocate(entries * 16, 4096)?;
        let available = ram.allocate(6 + entries * 2, 2)?;
        let used = ram.allocate(6 + entries * 8, 4096)?;
        Ok(Self {
            memory: ram.memory().clone(),
            size,
            descriptors,
            available,
            used,
            event_idx,
            free: (0..size).rev().collect(),
            chains: vec![Vec::new(); usize::from(size)],
            next_available: 0,
            next_used: 0,
            kick: EventFd::new(EFD_NONBLOCK)?,
            call: EventFd::new(EFD_NONBLOCK)?,
            error: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// Entries of the ring.
    #[must_use]
    pub const fn size(&self) -> u16 {
        self.size
    }

    /// Guest physical addresses of descriptor table, available and used ring.
    #[must_use]
    pub const fn addresses(&self) -> [u64; 3] {
        [self.descriptors, self.available, self.used]
    }

    /// Index of the next entry of the available ring.
    #[must_use]
    pub const fn next_available(&self) -> u16 {
        self.next_available
    }

    /// Forgets everything in flight and clears the ring, as a driver does after a reset.
    ///
    /// # Errors
    /// If the ring is not in guest memory.
    pub fn reset(&mut self) -> Result<()> {
        let entries = usize::from(self.size);
        self.write(self.descriptors, &vec![0; entries * 16])?;
        self.write(self.available, &vec![0; 6 + entries * 2])?;
        self.write(self.used, &vec![0; 6 + entries * 8])?;
        self.free = (0..self.size).rev().collect();
        self.chains = vec![Vec::new(); entries];
        self.next_available = 0;
        self.next_used = 0;
        Ok(())
    }

    /// Writes one descriptor, whatever it says.
    ///
    /// # Errors
    /// If the table is not in guest memory.
    pub fn write_descriptor(
        &self,
        index: u16,
        address: u64,
        bytes: u32,
        flags: u16,
        next: u16,
    ) -> Result<()> {
        let at = self.descriptors + u64::from(index) * 16;
        self.write(at, &descriptor(address, bytes, flags, next))
    }

    /// Makes `buffers` available as one chain of descriptors in the table; does not kick.
    ///
    /// # Errors
    /// If there are not enough free descriptors.
    pub fn submit(&mut self, buffers: &[Buffer]) -> Result<u16> {
        let indexes = self.take(buffers.len())?;
        for (number, buffer) in buffers.iter().enumerate() {
            let index = *indexes.get(number).context("index")?;
            let next = indexes.get(number + 1).copied();
            self.write_descriptor(
                index,
                buffer.address,
                buffer.bytes,
                flags(*buffer, next.is_some()),
                next.unwrap_or(0),
            )?;
        }
        self.make_available(indexes)
    }

    /// Makes `buffers` available as one indirect table at `table`; does not kick.
    ///
    /// # Errors
    /// If there is no free descriptor.
    pub fn submit_indirect(&mut self, table: u64, buffers: &[Buffer]) -> Result<u16> {
        let indexes = self.take(1)?;
        for (number, buffer) in buffers.iter().enumerate() {
            let next = u16::try_from(number + 1)?;
            let more = usize::from(next) < buffers.len();
            let entry = descriptor(buffer.address, buffer.bytes, flags(*buffer, more), next);
            self.write(table + u64::try_from(number)? * 16, &entry)?;
        }
        let bytes = u32::try_from(buffers.len() * 16)?;
        let index = *indexes.first().context("index")?;
        self.write_descriptor(index, table, bytes, DESC_INDIRECT, 0)?;
        self.make_available(indexes)
    }

    /// Puts any head into the available ring and publishes it.
    ///
    /// # Errors
    /// If the ring is not in guest memory.
    pub fn publish(&mut self, head: u16) -> Result<()> {
        let slot = u64::from(self.next_available % self.size);
        self.write(self.available + 4 + slot * 2, &head.to_le_bytes())?;
        self.next_available = self.next_available.wrapping_add(1);
        self.set_available_index(self.next_available)
    }

    /// Puts `heads` into the available ring and publishes them at once.
    ///
    /// Returns whether the device asked for a kick; does not kick.
    ///
    /// # Errors
    /// If the ring is not in guest memory.
    pub fn publish_all(&mut self, heads: &[u16]) -> Result<bool> {
        let before = self.next_available;
        let mut left = heads;
        while !left.is_empty() {
            let slot = self.next_available % self.size;
            let room = usize::from(self.size - slot).min(left.len());
            let (now, later) = left.split_at(room);
            let entries: Vec<u8> = now.iter().flat_map(|head| head.to_le_bytes()).collect();
            self.write(self.available + 4 + u64::from(slot) * 2, &entries)?;
            self.next_available = self.next_available.wrapping_add(u16::try_from(room)?);
            left = later;
        }
        self.set_available_index(self.next_available)?;
        self.wants_kick_since(before)
    }

    /// Writes the available ring's index, whatever it says.
    ///
    /// # Errors
    /// If the ring is not in guest memory.
    pub fn set_available_index(&self, index: u16) -> Result<()> {
        Ok(self.memory.store(
            index.to_le(),
            GuestAddress(self.available + 2),
            Ordering::Release,
        )?)
    }

    /// Writes the available ring's flags (1: no interrupt wanted).
    ///
    /// # Errors
    /// If the ring is not in guest memory.
    pub fn set_flags(&self, flags: u16) -> Result<()> {
        Ok(self.memory.store(
            flags.to_le(),
            GuestAddress(self.available),
            Ordering::Release,
        )?)
    }

    /// Writes `used_event`: a signal is wanted when the used index passes it (EVENT_IDX).
    ///
    /// # Errors
    /// If the ring is not in guest memory.
    pub fn set_used_event(&self, index: u16) -> Result<()> {
        let at = self.available + 4 + u64::from(self.size) * 2;
        Ok(self
            .memory
            .store(index.to_le(), GuestAddress(at), Ordering::Release)?)
    }

    /// Kicks the device, whether or not it wants it.
    ///
    /// # Errors
    /// If the eventfd's counter is full.
    pub fn kick(&self) -> Result<()> {
        Ok(self.kick.write(1)?)
    }

    /// Whether the device asked for a kick after the last [`submit`](Self::submit).
    ///
    /// # Errors
    /// If the ring is not in guest memory.
    pub fn device_wants_kick(&self) -> Result<bool> {
        self.wants_kick_since(self.next_available.wrapping_sub(1))
    }

    /// Whether the device asked for a kick for what was published since the index was `before`
    /// (virtio 1.2 section 2.7.10).
    fn wants_kick_since(&self, before: u16) -> Result<bool> {
        fence(Ordering::SeqCst);
        if self.event_idx {
            let at = self.used + 4 + u64::from(self.size) * 8;
            let event: u16 = self.memory.load(GuestAddress(at), Ordering::Acquire)?;
            let passed = self.next_available.wrapping_sub(u16::from_le(event));
            return Ok(passed.wrapping_sub(1) < self.next_available.wrapping_sub(before));
        }
        let flags: u16 = self
            .memory
            .load(GuestAddress(self.used), Ordering::Acquire)?;
        Ok(u16::from_le(flags) & 1 == 0)
    }

    /// The used ring's index, as the device wrote it.
    ///
    /// # Errors
    /// If the ring is not in guest memory.
    pub fn used_index(&self) -> Result<u16> {
        let index: u16 = self
            .memory
            .load(GuestAddress(self.used + 2), Ordering::Acquire)?;
        Ok(u16::from_le(index))
    }

    /// The next chain that came back, if any.
    ///
    /// # Errors
    /// If the ring is not in guest memory, or the device returned nonsense.
    pub fn poll(&mut self) -> Result<Option<Used>> {
        if self.used_index()? == self.next_used {
            return Ok(None);
        }
        let at = self.used + 4 + u64::from(self.next_used % self.size) * 8;
        let mut entry = [0; 8];
        self.memory.read_slice(&mut entry, GuestAddress(at))?;
        self.returned(entry).map(Some)
    }

    /// Appends all chains that came back to `ended`.
    ///
    /// # Errors
    /// If the ring is not in guest memory, or the device returned nonsense.
    pub fn poll_all(&mut self, ended: &mut Vec<Used>) -> Result<()> {
        let mut left = self.used_index()?.wrapping_sub(self.next_used);
        ensure!(left <= self.size, "device returned {left} chains at once");
        while left > 0 {
            let slot = self.next_used % self.size;
            let now = left.min(self.size - slot);
            let mut entries = vec![0; usize::from(now) * 8];
            let at = self.used + 4 + u64::from(slot) * 8;
            self.memory.read_slice(&mut entries, GuestAddress(at))?;
            for entry in entries.as_chunks().0 {
                ended.push(self.returned(*entry)?);
            }
            left -= now;
        }
        Ok(())
    }

    /// Takes the next entry of the used ring, which says `entry`.
    fn returned(&mut self, entry: [u8; 8]) -> Result<Used> {
        let [h0, h1, h2, h3, b0, b1, b2, b3] = entry;
        let head = u16::try_from(u32::from_le_bytes([h0, h1, h2, h3]))?;
        ensure!(head < self.size, "device returned head {head}");
        self.next_used = self.next_used.wrapping_add(1);
        let chain = self.chains.get_mut(usize::from(head)).context("head")?;
        self.free.append(chain);
        let bytes = u32::from_le_bytes([b0, b1, b2, b3]);
        Ok(Used { head, bytes })
    }

    /// Waits for the next chain that comes back, sleeping on the call eventfd.
    ///
    /// # Errors
    /// If none comes within [`PATIENCE`].
    pub fn wait(&mut self) -> Result<Used> {
        let end = Instant::now() + PATIENCE;
        loop {
            // Ask for a signal first, look second, sleep third: nothing is missed.
            if self.event_idx {
                self.set_used_event(self.next_used)?;
                fence(Ordering::SeqCst);
            }
            if let Some(used) = self.poll()? {
                return Ok(used);
            }
            wait_readable(borrow(&self.call), end).context("no chain came back")?;
            drop(self.call.read());
        }
    }

    /// Submits a chain, kicks, and waits for its return.
    ///
    /// # Errors
    /// If it does not come back in time, or another one does.
    pub fn transact(&mut self, buffers: &[Buffer]) -> Result<Used> {
        let head = self.submit(buffers)?;
        self.kick()?;
        let used = self.wait()?;
        ensure!(
            used.head == head,
            "chain {} came back instead of {head}",
            used.head
        );
        Ok(used)
    }

    /// Waits until the device reports an error on the ring.
    ///
    /// # Errors
    /// If it does not within [`PATIENCE`].
    pub fn wait_error(&self) -> Result<()> {
        wait_readable(borrow(&self.error), Instant::now() + PATIENCE).context("no ring error")
    }

    fn take(&mut self, count: usize) -> Result<Vec<u16>> {
        ensure!(self.free.len() >= count, "ring is full");
        let mut indexes = self.free.split_off(self.free.len() - count);
        indexes.reverse();
        Ok(indexes)
    }

    fn make_available(&mut self, indexes: Vec<u16>) -> Result<u16> {
        let head = *indexes.first().context("a chain has at least one buffer")?;
        *self.chains.get_mut(usize::from(head)).context("head")? = indexes;
        self.publish(head)?;
        Ok(head)
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<()> {
        Ok(self.memory.write_slice(data, GuestAddress(address))?)
    }
}

fn flags(buffer: Buffer, more: bool) -> u16 {
    u16::from(more) * DESC_NEXT + u16::from(buffer.writable) * DESC_WRITE
}

fn descriptor(address: u64, bytes: u32, flags: u16, next: u16) -> [u8; 16] {
    let low = u128::from(address);
    let high = u128::from(bytes) | u128::from(flags) << 32 | u128::from(next) << 48;
    (low | high << 64).to_le_bytes()
}

/// An eventfd as something to wait on.
pub(super) fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    super::raw::borrow_raw(event, event.as_raw_fd())
}

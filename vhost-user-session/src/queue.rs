//! Rings as a device uses them.
//!
//! ```no_run
//! # use vhost_user_session::Queue;
//! # fn answer(_: &vhost_user_session::Chain) -> u32 { 0 }
//! fn kicked(queue: &Queue) {
//!     // At most 256 chains a turn; one signal at the end, if the driver wants one.
//!     let more = queue.process(256, |ring, chain| {
//!         let written = answer(&chain);
//!         ring.add_used(chain, written);
//!     });
//!     if more { /* wake yourself through the Waker, to let others have their turn */ }
//! }
//! ```

use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use thiserror::Error as ThisError;
use vhost_user_backend::VringState;
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic};

use crate::chain::{Chain, ChainError};
use crate::vring::SessionVring;
use crate::{GuestMemory, MemorySnapshot};

/// VIRTQ_AVAIL_F_NO_INTERRUPT (virtio 1.2, 2.7.6).
pub(crate) const AVAIL_NO_INTERRUPT: u16 = 1;

/// Looks at an empty ring between two looks at the clock.
const LOOKS_PER_CLOCK: u32 = 16;

/// How the driver broke a ring.
#[derive(Debug, ThisError)]
pub enum QueueError {
    /// The available index is further ahead than the ring is long.
    #[error("available index is beyond the ring")]
    AvailableIndex,
    /// A part of the ring lies in two mappings of guest memory.
    #[error("ring is not in one piece of guest memory")]
    RingInPieces,
    /// Descriptor table, available or used ring do not lie in guest memory.
    #[error("ring is not completely in guest memory")]
    RingOutsideMemory,
    /// The available index, or the ring's memory, makes no sense.
    #[error("available ring cannot be used")]
    AvailableRing(#[source] virtio_queue::Error),
    /// The used ring cannot be written.
    #[error("used ring cannot be written")]
    UsedRing(#[source] virtio_queue::Error),
    /// An entry of the available ring names no descriptor.
    #[error("head {head} is beyond the descriptor table of {size} entries")]
    HeadOutOfRange {
        /// The entry.
        head: u16,
        /// Size of the descriptor table.
        size: u16,
    },
    /// More chains were made available than there are descriptors, none having been returned.
    #[error("more than {size} chains in flight")]
    TooManyInFlight {
        /// Size of the descriptor table.
        size: u16,
    },
    /// A whole ring of malformed chains in a row.
    #[error("{size} malformed chains in a row")]
    OnlyMalformedChains {
        /// Size of the descriptor table.
        size: u16,
    },
}

/// What happened on a queue since the device was made; sessions come and go.
#[derive(Debug, Default)]
pub struct QueueCounters {
    /// Chains handed to the device.
    pub chains_taken: AtomicU64,
    /// Chains returned to the driver by the device.
    pub chains_used: AtomicU64,
    /// Malformed chains, returned to the driver unused.
    pub chains_rejected: AtomicU64,
    /// Chains the device dropped without returning them (a bug of the device).
    pub chains_dropped: AtomicU64,
    /// Times the ring was marked broken.
    pub failures: AtomicU64,
    /// Signals sent to the driver.
    pub signals: AtomicU64,
}

/// Where the ring stands, between the session and the holders of handles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    Running = 0,
    /// No more chains come out; those in flight may be completed.
    Stopping = 1,
    /// Handles are dead.
    Closed = 2,
}

/// Chains that the device holds. Counted for every chain, waited for once in the life of a ring.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    count: AtomicU32,
    /// Somebody waits until there are none.
    awaited: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

impl InFlight {
    pub(crate) fn add_one(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn remove_one(&self) {
        // Either this sees that somebody waits, or who waits sees that there are none.
        if self.count.fetch_sub(1, Ordering::SeqCst) == 1 && self.awaited.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    /// Has whoever waits look again.
    fn wake(&self) {
        drop(self.lock());
        self.changed.notify_all();
    }

    /// Waits until there are none, for `longest`, or until `give_up`; whether there are none.
    fn wait(&self, longest: Duration, give_up: &dyn Fn() -> bool) -> bool {
        let end = Instant::now() + longest;
        let mut lock = self.lock();
        self.awaited.store(true, Ordering::SeqCst);
        while self.count() > 0 {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || give_up() {
                return false;
            }
            let waited = self.changed.wait_timeout(lock, left);
            (lock, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self) -> u32 {
        self.count.load(Ordering::SeqCst)
    }
}

pub(crate) struct QueueInner {
    index: usize,
    device: Arc<str>,
    vring: SessionVring,
    memory: GuestMemoryAtomic<GuestMemory>,
    phase: AtomicU8,
    /// Held for reading while guest memory is written through a chain, for writing to close.
    writers: RwLock<()>,
    broken: AtomicBool,
    pub(crate) in_flight: InFlight,
    pub(crate) counters: Arc<QueueCounters>,
}

impl QueueInner {
    /// Permission to write to the guest's buffers, as long as it is held; `None` once closed.
    pub(crate) fn writing(&self) -> Option<RwLockReadGuard<'_, ()>> {
        let open = self.writers.read().unwrap_or_else(PoisonError::into_inner);
        (!self.is_closed()).then_some(open)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.phase.load(Ordering::Acquire) == Phase::Closed as u8
    }
}

impl fmt::Debug for QueueInner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Queue")
            .field("device", &self.device)
            .field("index", &self.index)
            .field("phase", &self.phase)
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}

/// A running ring: the ring itself, guest memory and health. Clones are the same ring.
///
/// May be used from any thread. Calls on a ring that was stopped or is broken do nothing.
#[derive(Debug, Clone)]
pub struct Queue {
    inner: Arc<QueueInner>,
}

impl Queue {
    pub(crate) fn new(
        index: usize,
        device: Arc<str>,
        vring: SessionVring,
        memory: GuestMemoryAtomic<GuestMemory>,
        counters: Arc<QueueCounters>,
    ) -> Self {
        let queue = Self {
            inner: Arc::new(QueueInner {
                index,
                device,
                vring,
                memory,
                phase: AtomicU8::new(Phase::Running as u8),
                writers: RwLock::default(),
                broken: AtomicBool::new(false),
                in_flight: InFlight::default(),
                counters,
            }),
        };
        let snapshot = queue.memory();
        let usable = queue
            .inner
            .vring
            .state()
            .map(|ring| ring.get_queue().is_valid(&*snapshot));
        if usable == Some(false) {
            queue.fail(&QueueError::RingOutsideMemory);
        }
        queue
    }

    pub(crate) const fn from_inner(inner: Arc<QueueInner>) -> Self {
        Self { inner }
    }

    /// The queue's index in the device.
    #[must_use]
    pub fn index(&self) -> usize {
        self.inner.index
    }

    /// Entries of the descriptor table.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.inner
            .vring
            .state()
            .map_or(0, |ring| ring.get_queue().size())
    }

    /// Counters of this queue, over all sessions.
    #[must_use]
    pub fn counters(&self) -> &QueueCounters {
        &self.inner.counters
    }

    /// A snapshot of guest memory, to be kept as long as it is touched.
    #[must_use]
    pub fn memory(&self) -> MemorySnapshot {
        self.inner.memory.memory().into_inner()
    }

    /// Whether the driver broke the ring and must reset it.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.inner.broken.load(Ordering::Acquire)
    }

    /// Chains taken from the ring that are neither completed nor dropped.
    #[must_use]
    pub fn chains_in_flight(&self) -> u32 {
        self.inner.in_flight.count()
    }

    /// Locks the ring for a batch of operations; `None` if it was stopped or is broken.
    ///
    /// Dropping the guard signals the driver if chains were returned and it wants to know.
    /// Hold it for a batch, not while waiting for anything; [`Chain::complete`] takes it too.
    #[must_use]
    pub fn lock(&self) -> Option<QueueGuard<'_>> {
        let vring = self.vring()?;
        let memory = self.memory();
        Some(QueueGuard {
            queue: self,
            vring,
            memory,
            returned: false,
        })
    }

    /// Handles up to `quota` chains with `handle`, which runs with the ring locked.
    ///
    /// Notifications from the driver are off meanwhile and on again afterwards. Returns `true`
    /// if the quota ended it: no kick will announce what is left, so come back.
    pub fn process(
        &self,
        quota: usize,
        mut handle: impl FnMut(&mut QueueGuard<'_>, Chain),
    ) -> bool {
        let Some(mut ring) = self.lock() else {
            return false;
        };
        let mut left = quota;
        loop {
            ring.disable_notification();
            loop {
                if left == 0 {
                    return true;
                }
                let Some(chain) = ring.pop() else { break };
                left -= 1;
                handle(&mut ring, chain);
            }
            if !ring.can_pop() || !ring.enable_notification() {
                return false;
            }
        }
    }

    /// Looks at an empty ring for up to `longest`, without asking for a kick; whether there is
    /// something. The lock is free in between. If there is nothing a kick was asked for.
    #[must_use]
    pub fn poll(&self, longest: Duration) -> bool {
        let end = Instant::now() + longest;
        let mut looks = 0_u32;
        loop {
            let Some(mut ring) = self.lock() else {
                return false;
            };
            if ring.has_available() {
                return true;
            }
            if looks == 0 {
                ring.disable_notification();
            }
            looks = looks.wrapping_add(1);
            if looks.is_multiple_of(LOOKS_PER_CLOCK) {
                if Instant::now() >= end {
                    return ring.can_pop() && ring.enable_notification();
                }
                drop(ring);
                // Whoever fills the ring may have to run on this processor.
                std::thread::yield_now();
            } else {
                drop(ring);
                std::hint::spin_loop();
            }
        }
    }

    /// Marks the ring broken: nothing is taken from it or written to it until it is restarted.
    ///
    /// Logged once and counted; the front-end is told through the ring's error event, if it gave
    /// one. For a driver that breaks the device's own rules so badly that going on makes no
    /// sense; a bad request is better answered with an error status.
    pub fn fail(&self, error: &dyn Error) {
        if self.inner.broken.swap(true, Ordering::AcqRel) {
            return;
        }
        self.inner.counters.failures.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(
            device = &*self.inner.device,
            queue = self.inner.index,
            error = %error,
            source = error.source().map(tracing::field::display),
            "queue stopped, driver must reset the device"
        );
        self.inner.vring.signal_error();
    }

    /// The locked ring; `None` if it was stopped or is broken.
    pub(crate) fn vring(
        &self,
    ) -> Option<MutexGuard<'_, VringState<GuestMemoryAtomic<GuestMemory>>>> {
        if self.is_broken() || self.inner.is_closed() {
            return None;
        }
        let vring = self.inner.vring.state()?;
        // Closing takes the lock as well, so this answer holds until the guard is dropped.
        (!self.inner.is_closed()).then_some(vring)
    }

    /// Whether chains may come out of it, if the front-end has enabled it.
    pub(crate) fn is_running(&self) -> bool {
        !self.is_broken() && self.inner.phase.load(Ordering::Acquire) == Phase::Running as u8
    }

    pub(crate) fn log_malformed(&self, head: u16, error: ChainError) {
        tracing::debug!(
            device = &*self.inner.device,
            queue = self.inner.index,
            head,
            error = &error as &dyn Error,
            "malformed chain returned unused"
        );
    }

    /// No more chains come out of the ring from now on.
    pub(crate) fn stop_popping(&self) {
        self.inner
            .phase
            .store(Phase::Stopping as u8, Ordering::Release);
    }

    /// Makes every handle dead; returns when nobody is inside the ring, or writes to the guest's
    /// buffers, any more.
    pub(crate) fn close(&self) {
        let _nobody_inside = self.inner.vring.state();
        let writers = &self.inner.writers;
        let _nobody_writes = writers.write().unwrap_or_else(PoisonError::into_inner);
        self.inner
            .phase
            .store(Phase::Closed as u8, Ordering::Release);
    }

    /// Waits until no chain is in flight; `false` if `give_up` said so or the time ran out.
    pub(crate) fn wait_drained(&self, longest: Duration, give_up: &dyn Fn() -> bool) -> bool {
        self.inner.in_flight.wait(longest, give_up)
    }

    /// Makes [`wait_drained`](Self::wait_drained) ask its `give_up` again.
    pub(crate) fn wake_drain(&self) {
        self.inner.in_flight.wake();
    }
}

/// The locked ring.
pub struct QueueGuard<'a> {
    queue: &'a Queue,
    vring: MutexGuard<'a, VringState<GuestMemoryAtomic<GuestMemory>>>,
    memory: MemorySnapshot,
    returned: bool,
}

impl fmt::Debug for QueueGuard<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("QueueGuard")
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

impl QueueGuard<'_> {
    /// The memory this guard works on.
    #[must_use]
    pub const fn memory(&self) -> &MemorySnapshot {
        &self.memory
    }

    /// Whether chains may be taken now: enabled by the front-end, not stopping, not broken.
    #[must_use]
    pub fn can_pop(&self) -> bool {
        self.vring.is_enabled() && self.vring.get_queue().ready() && self.queue.is_running()
    }

    /// Whether the driver has made something available; a look costs a load and asks nothing of the
    /// driver.
    #[must_use]
    pub fn has_available(&self) -> bool {
        let ring = self.vring.get_queue();
        let available = ring.avail_idx(&*self.memory, Ordering::Acquire);
        self.can_pop() && available.is_ok_and(|index| index.0 != ring.next_avail())
    }

    /// Takes the next chain.
    ///
    /// Malformed chains are returned to the driver unused, counted, and passed over. A ring that
    /// makes no sense is marked broken. `None` if there is nothing to take.
    pub fn pop(&mut self) -> Option<Chain> {
        if !self.can_pop() {
            return None;
        }
        let size = self.vring.get_queue().size();
        let full = self.queue.chains_in_flight() >= u32::from(size);
        for _attempt in 0..=size {
            let memory = MemorySnapshot::clone(&self.memory);
            let raw = match self.vring.get_queue_mut().iter(memory) {
                Ok(mut available) => available.next()?,
                Err(error) => {
                    self.queue.fail(&QueueError::AvailableRing(error));
                    return None;
                }
            };
            if full {
                self.queue.fail(&QueueError::TooManyInFlight { size });
                return None;
            }
            let head = raw.head_index();
            if head >= size {
                self.queue.fail(&QueueError::HeadOutOfRange { head, size });
                return None;
            }
            match Chain::parse(&self.queue.inner, &self.memory, raw) {
                Ok(chain) => {
                    self.queue
                        .inner
                        .counters
                        .chains_taken
                        .fetch_add(1, Ordering::Relaxed);
                    return Some(chain);
                }
                Err(error) => {
                    self.queue
                        .inner
                        .counters
                        .chains_rejected
                        .fetch_add(1, Ordering::Relaxed);
                    self.queue.log_malformed(head, error);
                    self.write_used(head, 0);
                }
            }
        }
        self.queue.fail(&QueueError::OnlyMalformedChains { size });
        None
    }

    /// Takes up to `most` chains into `chains`; returns how many.
    pub fn pop_batch(&mut self, chains: &mut Vec<Chain>, most: usize) -> usize {
        let before = chains.len();
        chains.extend(std::iter::from_fn(|| self.pop()).take(most));
        chains.len() - before
    }

    /// Puts the chain taken last back to the front of the available ring.
    ///
    /// Several are put back in the reverse order of taking; nothing else may be popped between.
    pub fn unpop(&mut self, chain: Chain) {
        if !chain.belongs_to(&self.queue.inner) {
            return;
        }
        self.vring.get_queue_mut().go_to_previous_position();
        self.queue
            .inner
            .counters
            .chains_taken
            .fetch_sub(1, Ordering::Relaxed);
        chain.discard();
    }

    /// Returns a chain to the driver, `written` bytes of its writable part having been written.
    ///
    /// The signal follows when the guard is dropped or [`signal`](Self::signal) is called.
    pub fn add_used(&mut self, chain: Chain, written: u32) {
        if !chain.belongs_to(&self.queue.inner) {
            // Of an earlier life of the ring: the driver has forgotten it.
            return;
        }
        let written = u64::from(written).min(chain.writable_bytes());
        self.write_used(chain.head(), u32::try_from(written).unwrap_or(u32::MAX));
        self.queue
            .inner
            .counters
            .chains_used
            .fetch_add(1, Ordering::Relaxed);
        chain.discard();
    }

    /// Signals the driver now, if chains were returned and it wants to know.
    pub fn signal(&mut self) {
        if !std::mem::take(&mut self.returned) || self.queue.is_broken() {
            return;
        }
        match self.wants_signal() {
            Ok(false) => {}
            Ok(true) => {
                self.queue
                    .inner
                    .counters
                    .signals
                    .fetch_add(1, Ordering::Relaxed);
                // EAGAIN: the counter is full, so the event is pending already.
                drop(self.vring.signal_used_queue());
            }
            Err(error) => self.queue.fail(&QueueError::AvailableRing(error)),
        }
    }

    /// Asks the driver for kicks; `true` if chains came meanwhile, for which none will be sent.
    pub fn enable_notification(&mut self) -> bool {
        match self
            .vring
            .get_queue_mut()
            .enable_notification(&*self.memory)
        {
            Ok(more) => more,
            Err(error) => {
                self.queue.fail(&QueueError::UsedRing(error));
                false
            }
        }
    }

    /// Tells the driver that kicks are not needed for now; it may still send some.
    pub fn disable_notification(&mut self) {
        if let Err(error) = self
            .vring
            .get_queue_mut()
            .disable_notification(&*self.memory)
        {
            self.queue.fail(&QueueError::UsedRing(error));
        }
    }

    fn wants_signal(&mut self) -> Result<bool, virtio_queue::Error> {
        let ring = self.vring.get_queue_mut();
        if !ring.needs_notification(&*self.memory)? {
            return Ok(false);
        }
        if ring.event_idx_enabled() {
            return Ok(true);
        }
        // virtio-queue does not look at the flag that is the only means without EVENT_IDX.
        let flags: u16 = self
            .memory
            .load(GuestAddress(ring.avail_ring()), Ordering::Relaxed)
            .map_err(virtio_queue::Error::GuestMemory)?;
        Ok(u16::from_le(flags) & AVAIL_NO_INTERRUPT == 0)
    }

    fn write_used(&mut self, head: u16, written: u32) {
        if self.queue.is_broken() {
            return;
        }
        match self
            .vring
            .get_queue_mut()
            .add_used(&*self.memory, head, written)
        {
            Ok(()) => self.returned = true,
            Err(error) => self.queue.fail(&QueueError::UsedRing(error)),
        }
    }
}

impl Drop for QueueGuard<'_> {
    fn drop(&mut self) {
        self.signal();
    }
}

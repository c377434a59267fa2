//! The ring type given to `vhost-user-backend`: its `VringMutex`, with three rules changed.
//!
//! * A kick event that is empty when it is read (the front-end shares it and may read it too) is
//!   no error; the stock ring's error would end the worker thread.
//! * A new call event of a running ring is signalled once, because completions since the ring
//!   started may have gone to the old one, or to none: QEMU sends SET_VRING_CALL after
//!   SET_VRING_KICK.
//! * The error event can be signalled.

use std::fs::File;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{Error as VirtQueueError, QueueT};
use vm_memory::GuestMemoryAtomic;

use crate::GuestMemory;

type Memory = GuestMemoryAtomic<GuestMemory>;

#[derive(Clone)]
pub(crate) struct SessionVring {
    ring: VringMutex<Memory>,
    error: Arc<Mutex<Option<File>>>,
}

impl SessionVring {
    /// The locked ring; `None` if a device panicked while it held the lock.
    ///
    /// The stock ring answers a poisoned lock with a panic, which must not spread to the thread
    /// of a link that merely came by.
    pub(crate) fn state(&self) -> Option<MutexGuard<'_, VringState<Memory>>> {
        catch_unwind(AssertUnwindSafe(|| self.ring.get_ref())).ok()
    }

    /// Signals the error event, if the front-end gave one.
    pub(crate) fn signal_error(&self) {
        let error = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut event) = error.as_ref() {
            // EAGAIN: the counter is full, so the event is pending already.
            drop(event.write(&1_u64.to_le_bytes()));
        }
    }
}

impl<'a> VringStateGuard<'a, Memory> for SessionVring {
    type G = MutexGuard<'a, VringState<Memory>>;
}

impl<'a> VringStateMutGuard<'a, Memory> for SessionVring {
    type G = MutexGuard<'a, VringState<Memory>>;
}

impl VringT<Memory> for SessionVring {
    fn new(mem: Memory, max_queue_size: u16) -> Result<Self, VirtQueueError> {
        Ok(Self {
            ring: VringMutex::new(mem, max_queue_size)?,
            error: Arc::default(),
        })
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, Memory>>::G {
        self.ring.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, Memory>>::G {
        self.ring.get_mut()
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), VirtQueueError> {
        self.ring.add_used(desc_index, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.ring.signal_used_queue()
    }

    fn enable_notification(&self) -> Result<bool, VirtQueueError> {
        self.ring.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), VirtQueueError> {
        self.ring.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, VirtQueueError> {
        self.ring.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.ring.set_enabled(enabled);
    }

    fn set_queue_info(
        &self,
        desc_table: u64,
        avail_ring: u64,
        used_ring: u64,
    ) -> Result<(), VirtQueueError> {
        self.ring.set_queue_info(desc_table, avail_ring, used_ring)
    }

    fn queue_next_avail(&self) -> u16 {
        self.ring.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.ring.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, idx: u16) {
        self.ring.set_queue_next_used(idx);
    }

    fn queue_used_idx(&self) -> Result<u16, VirtQueueError> {
        self.ring.queue_used_idx()
    }

    fn set_queue_size(&self, num: u16) {
        self.ring.set_queue_size(num);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.ring.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.ring.set_queue_ready(ready);
    }

    fn set_kick(&self, file: Option<File>) {
        self.ring.set_kick(file);
    }

    fn read_kick(&self) -> io::Result<bool> {
        match self.ring.read_kick() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Ok(self.ring.get_ref().is_enabled())
            }
            other => other,
        }
    }

    fn set_call(&self, file: Option<File>) {
        self.ring.set_call(file);
        let state = self.ring.get_ref();
        if state.get_queue().ready() {
            drop(state.signal_used_queue());
        }
    }

    fn set_err(&self, file: Option<File>) {
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = file;
    }
}

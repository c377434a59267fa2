//! What a device implements.
//!
//! Life of a queue, as the device sees it. The callbacks of one queue never overlap each other:
//!
//! ```text
//! queue_started ──> kicked, kicked, ... ──> queue_stopped ──> (queue_started ...)
//! ```
//!
//! A guest goes round this several times per boot: firmware, then the kernel, then each reset.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::queue::Queue;

/// Most virtqueues a device may have: `vhost-user-backend` keeps them in `u64` masks.
pub const QUEUES_MAX: usize = 64;

/// A virtio device behind a vhost-user socket.
///
/// The methods are called from the session's threads: `kicked`, `woken` and `queue_started` on
/// the worker thread of the queue, all others on the control thread. None of them may wait for
/// the guest. A panic ends the session with an error in the log; other devices go on.
pub trait VirtioDevice: Send + Sync + 'static {
    /// Name for logs, at most a few words: "vnic0".
    fn name(&self) -> String;

    /// Number of virtqueues, 1 to [`QUEUES_MAX`].
    fn queue_count(&self) -> usize;

    /// Largest ring size accepted, a power of two up to 32768 (virtio 1.2, 2.6).
    fn queue_size_max(&self) -> u16;

    /// Feature bits of the device type.
    ///
    /// The session adds VERSION_1, EVENT_IDX, INDIRECT_DESC, VHOST_F_LOG_ALL and
    /// VHOST_USER_F_PROTOCOL_FEATURES by itself.
    fn features(&self) -> u64;

    /// What GET_QUEUE_NUM answers; network devices count queue pairs, others virtqueues.
    fn queue_count_reported(&self) -> u64 {
        u64::try_from(self.queue_count()).unwrap_or(u64::MAX)
    }

    /// Largest MTU in bytes, for devices that take NET_SET_MTU; `None` does not offer it.
    fn mtu(&self) -> Option<u16> {
        None
    }

    /// Worker threads: one mask of queue indexes each. Every queue in exactly one mask.
    ///
    /// The default gives every queue a thread of its own.
    fn queues_per_thread(&self) -> Vec<u64> {
        (0..self.queue_count())
            .map(|index| 1_u64 << index)
            .collect()
    }

    /// Hands over one [`Waker`] per worker thread, in the order of `queues_per_thread`.
    ///
    /// Called once, from [`Session::start`](crate::Session::start), before anything else.
    fn attached(&self, wakers: Vec<Waker>) {
        drop(wakers);
    }

    /// The driver's choice of features (without LOG_ALL and PROTOCOL_FEATURES).
    ///
    /// May come again with the same bits while queues run (start and end of a live migration).
    fn features_acked(&self, features: u64) {
        let _ = features;
    }

    /// The MTU that the front-end set, at most [`mtu`](Self::mtu).
    fn mtu_set(&self, mtu: u16) {
        let _ = mtu;
    }

    /// Whether the device takes [`announce`](Self::announce).
    fn can_announce(&self) -> bool {
        false
    }

    /// SEND_RARP: the guest has moved here and does not say so itself.
    fn announce(&self) {}

    /// The ring of queue `index` is set up and enabled.
    ///
    /// `queue` may be cloned and used from any thread until the ring is stopped; a handle kept
    /// longer is harmless, its calls then do nothing. Descriptors may be waiting already: a
    /// call of [`kicked`](Self::kicked) follows at once.
    fn queue_started(&self, index: usize, queue: Queue);

    /// The ring of queue `index` ends; the device stops taking chains and drops its clones.
    ///
    /// From here on no more chains can be popped. With [`StopReason::Drain`] the session waits,
    /// after this returns, until every [`Chain`](crate::Chain) taken from the ring was completed
    /// or dropped, and only then answers GET_VRING_BASE (up to
    /// [`SessionConfig::drain_max`](crate::SessionConfig)); so the device need not wait itself,
    /// but must not sit on chains that nothing will complete. With [`StopReason::Abandon`]
    /// nobody waits: late completions are discarded.
    fn queue_stopped(&self, index: usize, reason: StopReason);

    /// The driver made descriptors available in queue `index` (or it has just started).
    fn kicked(&self, index: usize);

    /// Somebody called [`Waker::wake`] of worker `thread`; may also come without a cause.
    fn woken(&self, thread: usize) {
        let _ = thread;
    }

    /// VHOST_USER_RESET_DEVICE; all queues have been stopped before.
    fn reset(&self) {}

    /// The front-end has gone; all queues have been stopped before.
    fn disconnected(&self) {}
}

/// Why a queue stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// GET_VRING_BASE: requests in flight shall be finished first.
    Drain,
    /// The front-end has gone, was refused, or resets the device: nobody waits for requests.
    Abandon,
}

/// Makes [`VirtioDevice::woken`] run on a worker thread; cheap to clone, lives with the device.
///
/// Without a front-end connected a wake is remembered and delivered to the next connection.
#[derive(Debug, Clone)]
pub struct Waker {
    event: Arc<EventFd>,
}

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self {
            event: Arc::new(event),
        })
    }

    /// Wakes the worker thread. Calls before it runs are merged into one.
    pub fn wake(&self) {
        if let Err(error) = self.event.write(1) {
            // The counter is full, so the event is pending, which is all we want.
            tracing::trace!(%error, "wake is pending already");
        }
    }

    /// Takes the pending wake, if there is one.
    pub(crate) fn consume(&self) {
        if let Err(error) = self.event.read() {
            tracing::trace!(%error, "wakes were merged");
        }
    }
}

impl AsRawFd for Waker {
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_fd().as_raw_fd()
    }
}

//! One connection's stock daemon, and what its callbacks mean to the device.
//!
//! A ring starts, for the device, when its worker thread first finds it ready and enabled; that
//! is where the stock crate reports it. It stops in `stop_vring` (GET_VRING_BASE), on
//! RESET_DEVICE, or when the connection ends. A queue's lifecycle lock is held across each
//! callback of the device, so that they never overlap.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use thiserror::Error;
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon, VringT};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use crate::GuestMemory;
use crate::bitmap::{self, DirtyLog};
use crate::device::{StopReason, VirtioDevice};
use crate::queue::Queue;
use crate::session::{SessionState, Shared, thread_name};
use crate::vring::SessionVring;

/// Feature bits of the transport, not of a device.
pub(crate) const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
pub(crate) const LOG_ALL: u64 = VhostUserVirtioFeatures::LOG_ALL.bits();

/// Longest wait for the new worker threads to run for the first time.
const WORKERS_START_MAX: Duration = Duration::from_secs(10);

/// All feature bits offered for `device`.
pub(crate) fn offered_features(device: &dyn VirtioDevice) -> u64 {
    device.features()
        | 1 << VIRTIO_F_VERSION_1
        | 1 << VIRTIO_RING_F_EVENT_IDX
        | 1 << VIRTIO_RING_F_INDIRECT_DESC
        | LOG_ALL
        | PROTOCOL_FEATURES
}

/// Protocol features that the stock daemon needs to know of; the shim negotiates its own set.
pub(crate) fn daemon_protocol_features() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::RESET_DEVICE
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why no daemon could be set up for a connection.
#[derive(Debug, Error)]
pub(crate) enum OpenError {
    #[error("daemon: {0}")]
    Daemon(vhost_user_backend::Error),
    #[error("worker threads did not start")]
    WorkersMissing,
    #[error("{what}: {source}")]
    Io {
        what: &'static str,
        source: io::Error,
    },
}

/// A queue of one connection.
#[derive(Default)]
struct Slot {
    /// Held across the device's callbacks for this queue.
    lifecycle: Mutex<()>,
    /// Set while the device has the queue.
    queue: Mutex<Option<Queue>>,
    vring: OnceLock<SessionVring>,
}

/// The back end given to the stock daemon.
pub(crate) struct Backend {
    shared: Arc<Shared>,
    slots: Vec<Slot>,
    /// Masks of queues, by thread.
    masks: Vec<u64>,
    memory: GuestMemoryAtomic<GuestMemory>,
    log: Mutex<Option<Arc<DirtyLog>>>,
    /// The front-end has gone: nobody waits for anything any more, nothing is started.
    abandoned: AtomicBool,
    /// A callback of the device panicked.
    fault: AtomicBool,
    has_run: AtomicBool,
    /// Set while the shim sets features that the front-end did not send.
    features_are_ours: AtomicBool,
    workers: Mutex<u32>,
    workers_changed: Condvar,
    /// The exit events' consumers, which the stock worker leaks.
    exit_events: Mutex<Vec<RawFd>>,
}

impl Backend {
    fn new(shared: &Arc<Shared>, memory: GuestMemoryAtomic<GuestMemory>) -> Self {
        let device = &shared.device;
        Self {
            slots: (0..device.queue_count())
                .map(|_index| Slot::default())
                .collect(),
            masks: device.queues_per_thread(),
            shared: Arc::clone(shared),
            memory,
            log: Mutex::new(None),
            abandoned: AtomicBool::new(false),
            fault: AtomicBool::new(false),
            has_run: AtomicBool::new(false),
            features_are_ours: AtomicBool::new(false),
            workers: Mutex::new(0),
            workers_changed: Condvar::new(),
            exit_events: Mutex::default(),
        }
    }

    /// Whether a callback of the device panicked.
    pub(crate) fn has_fault(&self) -> bool {
        self.fault.load(Ordering::Acquire)
    }

    pub(crate) fn set_features_are_ours(&self, ours: bool) {
        self.features_are_ours.store(ours, Ordering::Release);
    }

    /// Logs writes to guest memory in `log`, or no longer; also in regions to come.
    pub(crate) fn set_log(&self, log: Option<Arc<DirtyLog>>) {
        let mut slot = lock(&self.log);
        *slot = log;
        bitmap::set_log(&self.memory.memory(), slot.as_ref());
    }

    /// Stops waiting for requests in flight, now and later.
    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
        for slot in &self.slots {
            if let Some(queue) = &*lock(&slot.queue) {
                queue.wake_drain();
            }
        }
    }

    /// Runs a callback of the device; a panic ends the session, not the thread.
    fn call(&self, what: &'static str, callback: impl FnOnce(&dyn VirtioDevice)) -> bool {
        let outcome = catch_unwind(AssertUnwindSafe(|| callback(&*self.shared.device)));
        if outcome.is_err() {
            tracing::error!(
                device = &*self.shared.name,
                callback = what,
                "device panicked"
            );
            self.fault.store(true, Ordering::Release);
            self.shared.interrupt();
        }
        outcome.is_ok()
    }

    /// Handles a kick, and the start, of queue `index` on its worker thread.
    fn serve_queue(&self, index: usize) {
        let Some(slot) = self.slots.get(index) else {
            return;
        };
        let Some(vring) = slot.vring.get() else {
            return;
        };
        let _lifecycle = lock(&slot.lifecycle);
        let known = lock(&slot.queue).clone();
        let queue = match known {
            Some(queue) => queue,
            None => {
                let starts = vring
                    .state()
                    .is_some_and(|ring| ring.is_enabled() && ring.get_queue().ready());
                if !starts || self.abandoned.load(Ordering::Acquire) || self.has_fault() {
                    return;
                }
                let Some(counters) = self.shared.counters.get(index) else {
                    return;
                };
                let queue = Queue::new(
                    index,
                    Arc::clone(&self.shared.name),
                    vring.clone(),
                    self.memory.clone(),
                    Arc::clone(counters),
                );
                *lock(&slot.queue) = Some(queue.clone());
                self.has_run.store(true, Ordering::Release);
                self.shared.set_state(SessionState::Running);
                tracing::debug!(device = &*self.shared.name, queue = index, "queue started");
                let given = queue.clone();
                if !self.call("queue_started", |device| device.queue_started(index, given)) {
                    return;
                }
                queue
            }
        };
        if !queue.is_broken() && !self.has_fault() {
            self.call("kicked", |device| device.kicked(index));
        }
    }

    /// Takes queue `index` away from the device.
    fn stop_queue(&self, index: usize, reason: StopReason) {
        let Some(slot) = self.slots.get(index) else {
            return;
        };
        // Ends a running `kicked` soon, which holds the lifecycle lock.
        if let Some(queue) = &*lock(&slot.queue) {
            queue.stop_popping();
        }
        let _lifecycle = lock(&slot.lifecycle);
        let Some(queue) = lock(&slot.queue).clone() else {
            return;
        };
        queue.stop_popping();
        self.call("queue_stopped", |device| {
            device.queue_stopped(index, reason)
        });
        if reason == StopReason::Drain {
            let abandoned = || self.abandoned.load(Ordering::Acquire);
            if !queue.wait_drained(self.shared.drain_max, &abandoned) && !abandoned() {
                tracing::warn!(
                    device = &*self.shared.name,
                    queue = index,
                    chains = queue.chains_in_flight(),
                    "requests in flight given up after the longest wait for them"
                );
            }
        }
        queue.close();
        *lock(&slot.queue) = None;
        tracing::debug!(
            device = &*self.shared.name,
            queue = index,
            ?reason,
            "queue stopped"
        );
    }

    /// First event of a worker thread: names it and takes its rings.
    fn greet(&self, thread: usize, vrings: &[SessionVring]) {
        let mask = self.masks.get(thread).copied().unwrap_or(0);
        let indexes = (0..self.slots.len()).filter(|index| mask >> index & 1 == 1);
        let mut new = false;
        for (index, vring) in indexes.zip(vrings) {
            if let Some(slot) = self.slots.get(index) {
                new |= slot.vring.set(vring.clone()).is_ok();
            }
        }
        if !new {
            return;
        }
        let name = thread_name(&self.shared.name, &format!("/q{thread}"));
        if let Ok(name) = std::ffi::CString::new(name)
            && let Err(error) = nix::sys::prctl::set_name(&name)
        {
            tracing::debug!(%error, "worker thread keeps its stock name");
        }
        *lock(&self.workers) += 1;
        self.workers_changed.notify_all();
    }

    fn wait_for_workers(&self) -> bool {
        let all = u32::try_from(self.masks.len()).unwrap_or(u32::MAX);
        let (workers, _) = self
            .workers_changed
            .wait_timeout_while(lock(&self.workers), WORKERS_START_MAX, |workers| {
                *workers < all
            })
            .unwrap_or_else(PoisonError::into_inner);
        *workers >= all
    }
}

impl VhostUserBackend for Backend {
    type Bitmap = crate::DirtyBitmap;
    type Vring = SessionVring;

    fn num_queues(&self) -> usize {
        self.slots.len()
    }

    fn max_queue_size(&self) -> usize {
        usize::from(self.shared.device.queue_size_max())
    }

    fn features(&self) -> u64 {
        offered_features(&*self.shared.device)
    }

    fn acked_features(&self, features: u64) {
        if self.features_are_ours.load(Ordering::Acquire) {
            return;
        }
        if features & LOG_ALL == 0 {
            // The stock handler would go on logging after a migration that was cancelled.
            self.set_log(None);
        }
        let features = features & !(LOG_ALL | PROTOCOL_FEATURES);
        self.call("features_acked", |device| device.features_acked(features));
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        daemon_protocol_features()
    }

    fn reset_device(&self) {
        for (index, slot) in self.slots.iter().enumerate() {
            self.stop_queue(index, StopReason::Abandon);
            if let Some(vring) = slot.vring.get() {
                // The stock handler leaves rings "ready", and would not start them again.
                vring.set_queue_ready(false);
            }
        }
        self.call("reset", VirtioDevice::reset);
    }

    fn set_event_idx(&self, _enabled: bool) {
        // The stock handler has set it on every ring.
    }

    fn update_memory(&self, _mem: GuestMemoryAtomic<GuestMemory>) -> io::Result<()> {
        // Regions that came after SET_LOG_BASE have to be logged as well.
        let log = lock(&self.log);
        if log.is_some() {
            bitmap::set_log(&self.memory.memory(), log.as_ref());
        }
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        self.masks.clone()
    }

    fn exit_event(&self, _thread_index: usize) -> Option<(EventConsumer, EventNotifier)> {
        // Without an event the worker threads could never be ended. When there are no
        // descriptors left for one, there are none for the rest of the connection either.
        match new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC) {
            Ok((consumer, notifier)) => {
                lock(&self.exit_events).push(consumer.as_raw_fd());
                Some((consumer, notifier))
            }
            Err(error) => {
                tracing::error!(device = &*self.shared.name, %error, "no exit event");
                None
            }
        }
    }

    fn stop_vring(&self, queue_index: u32) -> io::Result<()> {
        if let Ok(index) = usize::try_from(queue_index) {
            self.stop_queue(index, StopReason::Drain);
        }
        Ok(())
    }

    /// Always `Ok`: an error would end the worker thread without a word.
    fn handle_event(
        &self,
        device_event: u16,
        _evset: EventSet,
        vrings: &[SessionVring],
        thread_id: usize,
    ) -> io::Result<()> {
        let event = usize::from(device_event);
        if event == self.waker_event() {
            if let Some(waker) = self.shared.wakers.get(thread_id) {
                waker.consume();
            }
            self.greet(thread_id, vrings);
            if !self.has_fault() {
                self.call("woken", |device| device.woken(thread_id));
            }
            return Ok(());
        }
        // Events are numbered within the thread.
        let mask = self.masks.get(thread_id).copied().unwrap_or(0);
        let index = (0..self.slots.len())
            .filter(|index| mask >> index & 1 == 1)
            .nth(event);
        if let Some(index) = index {
            self.serve_queue(index);
        }
        Ok(())
    }
}

impl Backend {
    /// Event number of the wakers; the stock loop keeps those up to the number of queues.
    fn waker_event(&self) -> usize {
        self.slots.len() + 1
    }
}

/// The stock daemon of one connection, connected to the shim by a private socket.
pub(crate) struct Connection {
    backend: Arc<Backend>,
    daemon: Option<VhostUserDaemon<Arc<Backend>>>,
    stream: UnixStream,
}

impl fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl Connection {
    /// Starts worker threads and daemon for a new connection.
    pub(crate) fn open(shared: &Arc<Shared>) -> Result<Self, OpenError> {
        let memory = GuestMemoryAtomic::new(GuestMemory::new());
        let backend = Arc::new(Backend::new(shared, memory.clone()));
        let name = thread_name(&shared.name, "/ctl");
        let mut daemon =
            VhostUserDaemon::new(name, Arc::clone(&backend), memory).map_err(OpenError::Daemon)?;
        let started = start_daemon(&mut daemon, &backend);
        match started {
            Ok(stream) => Ok(Self {
                backend,
                daemon: Some(daemon),
                stream,
            }),
            Err(error) => {
                drop(daemon);
                close_exit_events(&backend);
                Err(error)
            }
        }
    }

    pub(crate) const fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// The private socket to the daemon.
    pub(crate) const fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether a ring was started in this connection.
    pub(crate) fn has_run(&self) -> bool {
        self.backend.has_run.load(Ordering::Acquire)
    }

    /// Takes all queues from the device, ends the threads and unmaps the memory.
    ///
    /// Returns the error that ended the daemon, if it was not us.
    pub(crate) fn close(mut self) -> Option<String> {
        self.backend.abandon();
        for index in 0..self.backend.slots.len() {
            self.backend.stop_queue(index, StopReason::Abandon);
        }
        let mut cause = None;
        if let Some(mut daemon) = self.daemon.take() {
            // `request_shutdown` would hide the error that ended the daemon before.
            drop(self.stream.shutdown(std::net::Shutdown::Both));
            cause = daemon.wait().err().map(|error| error.to_string());
            // Joins the worker threads.
            drop(daemon);
        }
        close_exit_events(&self.backend);
        self.backend
            .call("disconnected", VirtioDevice::disconnected);
        cause
    }
}

fn start_daemon(
    daemon: &mut VhostUserDaemon<Arc<Backend>>,
    backend: &Arc<Backend>,
) -> Result<UnixStream, OpenError> {
    let io_error = |what| move |source| OpenError::Io { what, source };
    let data = u64::try_from(backend.waker_event()).unwrap_or(u64::MAX);
    for (handler, waker) in daemon
        .get_epoll_handlers()
        .iter()
        .zip(&backend.shared.wakers)
    {
        handler
            .register_listener(waker.as_raw_fd(), EventSet::IN, data)
            .map_err(io_error("waker"))?;
        waker.wake();
    }
    if !backend.wait_for_workers() {
        return Err(OpenError::WorkersMissing);
    }
    // The daemon only takes listeners. A directory that nobody else can enter keeps strangers
    // off for the moment that the socket has a name.
    let template = std::env::temp_dir().join("vhost-user-session-XXXXXX");
    let folder = nix::unistd::mkdtemp(&template)
        .map_err(io::Error::from)
        .map_err(io_error("private directory"))?;
    let path = folder.join("s");
    let connected = UnixListener::bind(&path).and_then(|listener| {
        let stream = UnixStream::connect(&path)?;
        Ok((listener, stream))
    });
    // Both names served their purpose, or were never made.
    drop(std::fs::remove_file(&path));
    drop(std::fs::remove_dir(&folder));
    let (listener, stream) = connected.map_err(io_error("private socket"))?;
    daemon
        .start(&mut Listener::from(listener))
        .map_err(OpenError::Daemon)?;
    Ok(stream)
}

/// Closes what the stock worker threads, which have ended, took out of their owners.
fn close_exit_events(backend: &Backend) {
    for fd in std::mem::take(&mut *lock(&backend.exit_events)) {
        // SAFETY: `from_raw_fd` wants an open descriptor that nobody else owns. This one was
        // taken out of its `EventConsumer` with `into_raw_fd` by `VringEpollHandler::new`
        // (vhost-user-backend 0.24, event_loop.rs), which never closes it; the thread that
        // polled it has been joined, and each number is in the list once.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
}

/// Kept for its use in messages: queues by thread, as given by the device.
impl fmt::Debug for Backend {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let masks: BTreeMap<usize, u64> = self.masks.iter().copied().enumerate().collect();
        formatter
            .debug_struct("Backend")
            .field("masks", &masks)
            .finish_non_exhaustive()
    }
}

//! A device's session: accept a front-end, serve it, clean up, accept the next.
//!
//! ```text
//! Waiting ──accept──> Connected ──first ring started──> Running ──> Waiting ...
//!    └──────────────────── stop, or the end of an inherited connection ────────> Stopped
//! ```
//!
//! Each connection gets a new `VhostUserDaemon` with new worker threads and no memory, because
//! the stock daemon serves one connection in its life. The device stays.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use thiserror::Error;

use crate::backend::Connection;
use crate::device::{QUEUES_MAX, VirtioDevice, Waker};
use crate::queue::QueueCounters;
use crate::shim::{End, Shim};
use crate::socket::{self, BoundPath, SocketError, SocketSource};

/// Longest thread name the kernel keeps.
const THREAD_NAME_BYTES_MAX: usize = 15;

/// Connections refused in a row for the same reason after which accepting is slowed down: QEMU's
/// netdev retries without a delay of its own.
const REFUSALS_IN_A_ROW_MAX: u32 = 8;

/// Pause between accepts then, and after an accept that failed for want of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// How a device is served.
#[derive(Debug)]
#[non_exhaustive]
pub struct SessionConfig {
    /// Where front-ends come from.
    pub socket: SocketSource,
    /// Accept guest memory that the front-end could truncate under us, which kills the process
    /// with SIGBUS. Only for front-ends that are trusted as much as this process.
    pub allow_unsealed_memory: bool,
    /// Longest time from the connection to SET_OWNER, and from the first to the last byte of any
    /// message. An idle connection is not limited after SET_OWNER: a guest may sleep for ever.
    pub handshake_max: Duration,
    /// Longest wait for requests in flight when the front-end stops a ring. What is still in
    /// flight then is lost to the guest, so it should exceed every outage the device rides out.
    pub drain_max: Duration,
}

impl SessionConfig {
    /// Sealed memory required, 5 s for the handshake, 30 s to drain.
    #[must_use]
    pub const fn new(socket: SocketSource) -> Self {
        Self {
            socket,
            allow_unsealed_memory: false,
            handshake_max: Duration::from_secs(5),
            drain_max: Duration::from_secs(30),
        }
    }
}

/// Why a session cannot start.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The device describes itself in a way that cannot be served (a bug of the device).
    #[error("device {device}: {problem}")]
    Device {
        /// Name of the device.
        device: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// The socket cannot be had.
    #[error("device {device} has no socket")]
    Socket {
        /// Name of the device.
        device: String,
        /// The reason.
        #[source]
        source: SocketError,
    },
    /// Threads or events cannot be had.
    #[error("device {device}: cannot create {what}")]
    Resource {
        /// Name of the device.
        device: String,
        /// What was to be created.
        what: &'static str,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

/// Where a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionState {
    /// No front-end is connected.
    Waiting,
    /// A front-end is connected, no ring has been started yet.
    Connected,
    /// At least one ring has been started in this connection.
    Running,
    /// The session is over.
    Stopped,
}

/// What the session's threads and handles share.
pub(crate) struct Shared {
    pub(crate) name: Arc<str>,
    pub(crate) device: Arc<dyn VirtioDevice>,
    pub(crate) wakers: Vec<Waker>,
    pub(crate) counters: Vec<Arc<QueueCounters>>,
    pub(crate) allow_unsealed_memory: bool,
    pub(crate) handshake_max: Duration,
    pub(crate) drain_max: Duration,
    stopping: AtomicBool,
    /// Wakes the session thread to look at `stopping` and at the connection's fault.
    event: EventFd,
    state: Mutex<SessionState>,
    state_changed: Condvar,
    connections: AtomicU64,
    refusals: AtomicU64,
    last_refusal: Mutex<Option<String>>,
}

impl Shared {
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// The event that [`interrupt`](Self::interrupt) makes readable.
    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    pub(crate) fn interrupt(&self) {
        if let Err(error) = self.event.write(1) {
            // The counter is full, so the event is pending, which is all we want.
            tracing::trace!(%error, "interrupt is pending already");
        }
    }

    pub(crate) fn take_interrupt(&self) {
        if let Err(error) = self.event.read() {
            // Woken for another reason.
            tracing::trace!(%error, "no interrupt pending");
        }
    }

    pub(crate) fn set_state(&self, next: SessionState) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if *state != next {
            tracing::debug!(device = &*self.name, from = ?*state, to = ?next, "session state changed");
            *state = next;
            self.state_changed.notify_all();
        }
    }

    fn state(&self) -> SessionState {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Entry point: [`Session::start`].
#[derive(Debug, Clone, Copy)]
pub struct Session;

impl Session {
    /// Serves `device` on the socket of `config`, in threads of its own, until stopped.
    ///
    /// # Errors
    /// If the device's description is inconsistent, the socket cannot be had (also when somebody
    /// else listens on the path), or threads and events cannot be created.
    pub fn start(
        device: Arc<dyn VirtioDevice>,
        config: SessionConfig,
    ) -> Result<SessionHandle, SessionError> {
        let name = device.name();
        check_device(&*device, &name)?;
        let no = |what| {
            let device = name.clone();
            move |source| SessionError::Resource {
                device,
                what,
                source,
            }
        };
        let masks = device.queues_per_thread();
        let wakers = masks
            .iter()
            .map(|_mask| Waker::new())
            .collect::<io::Result<Vec<Waker>>>()
            .map_err(no("an eventfd"))?;
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .map_err(io::Error::from)
            .map_err(no("an eventfd"))?;
        let source = Source::open(config.socket).map_err(|source| SessionError::Socket {
            device: name.clone(),
            source,
        })?;
        let shared = Arc::new(Shared {
            name: name.as_str().into(),
            counters: (0..device.queue_count())
                .map(|_index| Arc::default())
                .collect(),
            wakers: wakers.clone(),
            allow_unsealed_memory: config.allow_unsealed_memory,
            handshake_max: config.handshake_max,
            drain_max: config.drain_max,
            stopping: AtomicBool::new(false),
            event,
            state: Mutex::new(SessionState::Waiting),
            state_changed: Condvar::new(),
            connections: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
            last_refusal: Mutex::new(None),
            device,
        });
        shared.device.attached(wakers);
        let loop_shared = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name(thread_name(&name, ""))
            .spawn(move || {
                SessionLoop {
                    shared: loop_shared,
                    source,
                    log: RefusalLog::default(),
                }
                .run()
            })
            .map_err(no("the session thread"))?;
        Ok(SessionHandle {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }
}

/// Controls a running session; dropping it stops the session.
pub struct SessionHandle {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for SessionHandle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("SessionHandle")
            .field("device", &self.shared.name)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

impl SessionHandle {
    /// Where the session stands now.
    #[must_use]
    pub fn state(&self) -> SessionState {
        self.shared.state()
    }

    /// Waits until the session is in `state`; `false` if that took longer than `longest`.
    #[must_use]
    pub fn wait_for(&self, state: SessionState, longest: Duration) -> bool {
        let end = Instant::now() + longest;
        let mut now = self
            .shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        while *now != state {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            (now, _) = self
                .shared
                .state_changed
                .wait_timeout(now, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    /// Front-ends served so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Sessions ended because the front-end broke a rule.
    #[must_use]
    pub fn refusals(&self) -> u64 {
        self.shared.refusals.load(Ordering::Relaxed)
    }

    /// The rule that was broken last, as logged.
    #[must_use]
    pub fn last_refusal(&self) -> Option<String> {
        self.shared
            .last_refusal
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Counters of queue `index`, over all connections.
    #[must_use]
    pub fn queue_counters(&self, index: usize) -> Option<Arc<QueueCounters>> {
        self.shared.counters.get(index).cloned()
    }

    /// Ends the session: disconnects the front-end, abandons requests in flight, removes the
    /// socket file, joins the threads. Later calls do nothing.
    ///
    /// Takes as long as the device's callbacks take to return, normally a few milliseconds.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.interrupt();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!(device = &*self.shared.name, "session thread panicked");
        }
        self.shared.set_state(SessionState::Stopped);
    }
}

impl Drop for SessionHandle {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Where the loop takes connections from.
enum Source {
    Listener {
        listener: UnixListener,
        _bound: Option<BoundPath>,
    },
    Once(Option<UnixStream>),
}

impl Source {
    fn open(source: SocketSource) -> Result<Self, SocketError> {
        let inherited = |action| move |source| SocketError::Inherited { action, source };
        let (listener, bound) = match source {
            SocketSource::Path {
                path,
                mode,
                owner,
                group,
            } => {
                let (listener, bound) = socket::bind(&path, mode, owner, group)?;
                (listener, Some(bound))
            }
            SocketSource::Listening(fd) => (UnixListener::from(fd), None),
            SocketSource::Connected(fd) => {
                let stream = UnixStream::from(fd);
                stream
                    .set_nonblocking(true)
                    .map_err(inherited("make non-blocking"))?;
                return Ok(Self::Once(Some(stream)));
            }
        };
        listener
            .set_nonblocking(true)
            .map_err(inherited("make non-blocking"))?;
        Ok(Self::Listener {
            listener,
            _bound: bound,
        })
    }
}

enum Event {
    Connection(UnixStream),
    Stop,
}

/// Logs a reason again only if it differs from the last one, counting the others.
#[derive(Default)]
struct RefusalLog {
    last: String,
    repeated: u64,
    in_a_row: u32,
}

struct SessionLoop {
    shared: Arc<Shared>,
    source: Source,
    log: RefusalLog,
}

impl SessionLoop {
    fn run(mut self) {
        loop {
            self.shared.set_state(SessionState::Waiting);
            if self.log.in_a_row > REFUSALS_IN_A_ROW_MAX {
                self.pause();
            }
            match self.select() {
                Event::Stop => break,
                Event::Connection(stream) => self.serve(stream),
            }
        }
        self.shared.set_state(SessionState::Stopped);
    }

    /// Waits for a connection or the order to stop.
    fn select(&mut self) -> Event {
        loop {
            if self.shared.is_stopping() {
                return Event::Stop;
            }
            let listener = match &mut self.source {
                Source::Once(stream) => {
                    return stream.take().map_or(Event::Stop, Event::Connection);
                }
                Source::Listener { listener, .. } => listener,
            };
            let mut waiting = [
                PollFd::new(self.shared.event(), PollFlags::POLLIN),
                PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            ];
            wait_for_events(&mut waiting, PollTimeout::NONE);
            self.shared.take_interrupt();
            match listener.accept() {
                Ok((stream, _anonymous)) => match stream.set_nonblocking(true) {
                    Ok(()) => return Event::Connection(stream),
                    Err(error) => self.log_accept(&error),
                },
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock
                            | io::ErrorKind::Interrupted
                            | io::ErrorKind::ConnectionAborted
                    ) => {}
                Err(error) => {
                    // Most likely EMFILE; the connection stays in the backlog meanwhile.
                    self.log_accept(&error);
                    self.pause();
                }
            }
        }
    }

    fn log_accept(&mut self, error: &io::Error) {
        let text = format!("accept failed: {error}; raise the limit of open files (LimitNOFILE)");
        self.log.report(&self.shared.name, text);
    }

    /// Sits out [`PAUSE`], or less if the session is to stop.
    fn pause(&self) {
        let end = Instant::now() + PAUSE;
        while !self.shared.is_stopping() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let mut waiting = [PollFd::new(self.shared.event(), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            wait_for_events(&mut waiting, timeout);
            self.shared.take_interrupt();
        }
    }

    fn serve(&mut self, stream: UnixStream) {
        self.shared.connections.fetch_add(1, Ordering::Relaxed);
        self.shared.set_state(SessionState::Connected);
        let connection = match Connection::open(&self.shared) {
            Ok(connection) => connection,
            Err(error) => {
                self.refused(format!("cannot serve a connection: {error}"));
                return;
            }
        };
        let end = Shim::new(&self.shared, &connection, stream).run();
        let ran = connection.has_run();
        let cause = connection.close();
        if ran {
            self.log.in_a_row = 0;
        }
        match end {
            End::Disconnected => tracing::info!(device = &*self.shared.name, "front-end left"),
            End::Stopped => {}
            End::Fault => {
                tracing::error!(
                    device = &*self.shared.name,
                    "session ended by a panic of the device"
                );
                self.refused("the device panicked".to_owned());
            }
            End::Refused(refusal) => {
                let mut text = refusal.to_string();
                let mut source = std::error::Error::source(&refusal);
                while let Some(error) = source {
                    text.push_str(": ");
                    text.push_str(&error.to_string());
                    source = error.source();
                }
                if let (crate::Refusal::BackEnd { .. }, Some(cause)) = (&refusal, cause) {
                    text.push_str(": ");
                    text.push_str(&cause);
                }
                self.refused(text);
            }
        }
    }

    fn refused(&mut self, text: String) {
        self.shared.refusals.fetch_add(1, Ordering::Relaxed);
        *self
            .shared
            .last_refusal
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(text.clone());
        self.log.report(&self.shared.name, text);
    }
}

impl RefusalLog {
    fn report(&mut self, device: &str, text: String) {
        if self.last == text {
            self.repeated += 1;
            self.in_a_row = self.in_a_row.saturating_add(1);
            tracing::debug!(device, reason = text, "session refused again");
            return;
        }
        tracing::warn!(
            device,
            reason = text,
            earlier_repeated = self.repeated,
            "session refused"
        );
        self.last = text;
        self.repeated = 0;
        self.in_a_row = 0;
    }
}

fn check_device(device: &dyn VirtioDevice, name: &str) -> Result<(), SessionError> {
    let problem = |problem| {
        Err(SessionError::Device {
            device: name.to_owned(),
            problem,
        })
    };
    let count = device.queue_count();
    let size = device.queue_size_max();
    if name.is_empty() || CString::new(name).is_err() {
        return problem("the name is empty or contains a zero byte");
    }
    if count == 0 || count > QUEUES_MAX {
        return problem("the number of queues is not between 1 and 64");
    }
    if !size.is_power_of_two() || size > virtio_queue_size_max() {
        return problem("the largest queue size is no power of two up to 32768");
    }
    let mut threads_of_queue = BTreeMap::<usize, u32>::new();
    for mask in device.queues_per_thread() {
        for index in (0..QUEUES_MAX).filter(|index| mask >> index & 1 == 1) {
            *threads_of_queue.entry(index).or_default() += 1;
        }
    }
    if !threads_of_queue
        .into_iter()
        .eq((0..count).map(|index| (index, 1)))
    {
        return problem("not every queue is in exactly one mask of queues_per_thread");
    }
    Ok(())
}

const fn virtio_queue_size_max() -> u16 {
    32768
}

/// Waits until one of `fds` has something; also returns, with nothing, when interrupted.
pub(crate) fn wait_for_events(fds: &mut [PollFd<'_>], timeout: PollTimeout) {
    match poll(fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => tracing::error!(%error, "poll failed"),
    }
}

/// `name` with `suffix`, cut to what the kernel keeps.
pub(crate) fn thread_name(name: &str, suffix: &str) -> String {
    let room = THREAD_NAME_BYTES_MAX.saturating_sub(suffix.len());
    let mut end = room.min(name.len());
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    let mut text = name.get(..end).unwrap_or_default().to_owned();
    text.push_str(suffix);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thread_names_keep_the_suffix_and_whole_characters() {
        assert_eq!(thread_name("vnic0", "/q1"), "vnic0/q1");
        assert_eq!(
            thread_name("a-very-long-device-name", "/q12"),
            "a-very-long/q12"
        );
        assert_eq!(thread_name("ぬのちぬのち", "/q1"), "ぬのちぬ/q1");
    }
}

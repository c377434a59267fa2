//! One session to one target, kept up by a thread.
//!
//! ```text
//! Connecting --login--> Up <--login again-- Down
//!      \__failed______________________________^   Up --lost--> Down
//! ```
//!
//! The thread waits for socket and owner; `submit` sends at once, on the caller's thread, what the
//! socket takes without waiting. Callbacks run on the session's thread without a lock: they may
//! submit, and must not wait for another command.

use std::fmt;
use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::connection::{Connection, ConnectionError, Inbox, connect_to, wait};
use crate::options::{Options, Target};
use crate::session::{
    Command, Event, Outcome, Parameters, Session, SubmitError, TaskFunction, TaskFunctionOutcome,
    TaskTag,
};

type Done = Box<dyn FnOnce(Outcome) + Send>;
type Managed = Box<dyn FnOnce(TaskFunctionOutcome) + Send>;
type Happening = Event<Done, Managed>;

/// Whether commands are taken.
#[derive(Clone, Debug)]
pub enum State {
    /// The first login is not through.
    Connecting,
    /// They are.
    Up(Parameters),
    /// Not now; another login is tried again and again.
    Down(Arc<ConnectionError>),
    /// Not any more.
    Closed,
}

/// What an owner may want to know.
#[derive(Debug)]
pub enum Notice<'a> {
    /// Commands are taken. Units may have to say that they were reset.
    Up(&'a Parameters),
    /// They are not; what was in flight was given back before.
    Down(&'a ConnectionError),
    /// Sense that no command asked for.
    Sense {
        /// Whose.
        lun: [u8; 8],
        /// What.
        sense: Vec<u8>,
    },
}

/// A command that was not taken, and why.
#[derive(Debug, thiserror::Error)]
#[error("iSCSI command was not taken")]
pub struct Refused {
    /// The command, unchanged.
    pub command: Command,
    /// Why.
    #[source]
    pub reason: SubmitError,
}

/// A session to a target. When it is lost it is made anew, with the same ISID, so that the target
/// knows that the old one is over. On drop it logs out, which takes two seconds at most.
#[derive(Debug)]
pub struct Initiator {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    inner: Mutex<Inner>,
    state_changed: Condvar,
    wake: EventFd,
    start: Instant,
}

impl fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = &self.lock().state;
        let mut shown = formatter.debug_struct("Shared");
        shown.field("state", state).finish_non_exhaustive()
    }
}

struct Inner {
    state: State,
    stopping: bool,
    connection: Option<Connection<Done, Managed>>,
}

impl Initiator {
    /// Starts a session and returns at once; the target need not be there yet.
    ///
    /// # Errors
    /// [`ConnectionError::SetUp`].
    pub fn start(
        target: Target,
        options: Options,
        notify: impl FnMut(&Notice<'_>) + Send + 'static,
    ) -> Result<Self, ConnectionError> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let wake = EventFd::from_value_and_flags(0, flags)
            .map_err(|error| ConnectionError::SetUp(error.into()))?;
        let isid = options
            .isid()
            .map_err(|error| ConnectionError::SetUp(error.into()))?;
        let shared = Arc::new(Shared {
            inner: Mutex::new(Inner {
                state: State::Connecting,
                stopping: false,
                connection: None,
            }),
            state_changed: Condvar::new(),
            wake,
            start: Instant::now(),
        });
        let worker = Worker {
            shared: Arc::clone(&shared),
            target,
            options,
            isid,
            number: 0,
            notify: Box::new(notify),
        };
        let thread = thread::Builder::new()
            .name("iscsi".to_owned())
            .spawn(move || worker.run())
            .map_err(ConnectionError::SetUp)?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Starts a session and waits until the first login is through.
    ///
    /// # Errors
    /// Why it failed; then nothing is left of it.
    pub fn connect(
        target: Target,
        options: Options,
        notify: impl FnMut(&Notice<'_>) + Send + 'static,
    ) -> Result<Self, Arc<ConnectionError>> {
        let initiator = Self::start(target, options, notify)?;
        let inner = initiator.shared.lock();
        let connecting = |inner: &mut Inner| matches!(inner.state, State::Connecting);
        let inner = initiator
            .shared
            .state_changed
            .wait_while(inner, connecting)
            .unwrap_or_else(PoisonError::into_inner);
        if let State::Down(error) = &inner.state {
            return Err(Arc::clone(error));
        }
        drop(inner);
        Ok(initiator)
    }

    /// Sends a command; `done` gets its outcome once, on the session's thread.
    ///
    /// # Errors
    /// [`Refused`] gives the command back; `done` is not called then.
    pub fn submit(
        &self,
        command: Command,
        done: impl FnOnce(Outcome) + Send + 'static,
    ) -> Result<TaskTag, Refused> {
        let mut inner = self.shared.lock();
        let Some(connection) = &mut inner.connection else {
            let reason = SubmitError::Down;
            return Err(Refused { command, reason });
        };
        let tag = connection
            .session
            .submit(command, Box::new(done))
            .map_err(|(reason, command, _)| Refused { command, reason })?;
        self.send(connection);
        Ok(tag)
    }

    /// Sends a task management function; `done` gets its outcome once, on the session's thread,
    /// after the outcomes of the commands that it ended.
    ///
    /// # Errors
    /// [`SubmitError::Down`]; [`SubmitError::Full`] if 16 others are not answered yet.
    pub fn manage(
        &self,
        function: TaskFunction,
        done: impl FnOnce(TaskFunctionOutcome) + Send + 'static,
    ) -> Result<(), SubmitError> {
        let mut inner = self.shared.lock();
        let connection = inner.connection.as_mut().ok_or(SubmitError::Down)?;
        connection
            .session
            .manage(function, Box::new(done))
            .map_err(|(reason, _)| reason)?;
        self.send(connection);
        // Some end at once, and events are told by the session's thread.
        self.shared.wake();
        Ok(())
    }

    /// Sends what the socket takes; the rest, and errors, are the session thread's. That thread
    /// itself, in a callback, sends when it is through with all of them.
    fn send(&self, connection: &mut Connection<Done, Managed>) {
        if !self.is_own_thread() && (connection.flush().is_err() || connection.has_more()) {
            self.shared.wake();
        }
    }

    fn is_own_thread(&self) -> bool {
        let own = self.thread.as_ref().map(|thread| thread.thread().id());
        own == Some(thread::current().id())
    }

    /// Whether commands are taken, and if not, why.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.lock().state.clone()
    }
}

impl Drop for Initiator {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.wake();
        // A callback may hold the last reference; the thread then ends by itself.
        if self.is_own_thread() {
            return;
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("thread of an iSCSI session ended with a panic");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn wake(&self) {
        // EAGAIN: it is full, and wakes anyway.
        if let Err(error) = self.wake.write(1)
            && error != Errno::EAGAIN
        {
            tracing::error!(%error, "iSCSI session cannot be woken");
        }
    }

    fn clear_wake(&self) {
        // EAGAIN: there is nothing to clear.
        if let Err(error) = self.wake.read()
            && error != Errno::EAGAIN
        {
            tracing::error!(%error, "iSCSI session cannot wait to be woken");
        }
    }

    fn set_state(&self, state: State) {
        self.lock().state = state;
        self.state_changed.notify_all();
    }
}

/// What the session's thread owns.
struct Worker {
    shared: Arc<Shared>,
    target: Target,
    options: Options,
    isid: [u8; 6],
    number: u64,
    notify: Box<dyn FnMut(&Notice<'_>) + Send>,
}

impl Worker {
    fn run(mut self) {
        let (shortest, longest) = self.options.pause;
        let mut pause = shortest;
        loop {
            let begin = self.shared.now();
            let Some((error, time_to_wait)) = self.session() else {
                break;
            };
            if self.shared.now() - begin > longest {
                pause = shortest;
            }
            tracing::warn!(
                target_name = %self.target.name,
                portal = %self.target.portal,
                error = &error as &dyn std::error::Error,
                "iSCSI session down"
            );
            let error = Arc::new(error);
            self.shared.set_state(State::Down(Arc::clone(&error)));
            (self.notify)(&Notice::Down(&error));
            if !self.pause(pause.max(time_to_wait)) {
                break;
            }
            pause = pause.saturating_mul(2).min(longest);
        }
        self.shared.set_state(State::Closed);
    }

    /// Waits; false if the owner is gone.
    fn pause(&self, pause: Duration) -> bool {
        let until = self.shared.now().saturating_add(pause);
        loop {
            if self.shared.lock().stopping {
                return false;
            }
            let left = until.saturating_sub(self.shared.now());
            if left.is_zero() {
                return true;
            }
            let timeout = PollTimeout::try_from(left.saturating_add(Duration::from_millis(1)));
            let mut wake = [PollFd::new(self.shared.wake.as_fd(), PollFlags::POLLIN)];
            match poll(&mut wake, timeout.unwrap_or(PollTimeout::MAX)) {
                Ok(_) | Err(Errno::EINTR) => self.shared.clear_wake(),
                // Without poll there is no session either.
                Err(error) => tracing::error!(%error, "iSCSI session cannot wait"),
            }
        }
    }

    /// One session from connect to loss: why, and how long the target wants to be left alone.
    /// `None` if the owner ended it.
    fn session(&mut self) -> Option<(ConnectionError, Duration)> {
        let portal = self.target.portal;
        let no_wait = Duration::ZERO;
        let stream = loop {
            if self.shared.lock().stopping {
                return None;
            }
            let wake = Some(self.shared.wake.as_fd());
            match connect_to(portal, self.options.connect_within, wake) {
                Ok(Some(stream)) => break Arc::new(stream),
                Ok(None) => self.shared.clear_wake(),
                Err(source) => {
                    return Some((ConnectionError::Connect { portal, source }, no_wait));
                }
            }
        };
        self.number += 1;
        let config = self.options.session(
            &self.target.initiator,
            Some(&self.target.name),
            &self.target.credentials,
            self.isid,
            self.number,
        );
        let config = match config {
            Ok(config) => config,
            Err(error) => return Some((ConnectionError::SetUp(error.into()), no_wait)),
        };
        let session = Session::new(config, self.shared.now());
        let mut inbox = Inbox::new(session.pdu_bytes_max());
        self.shared.lock().connection = Some(Connection::new(session, Arc::clone(&stream)));
        let result = self.serve(&stream, &mut inbox);
        let (events, time_to_wait) = {
            let mut inner = self.shared.lock();
            let mut connection = inner.connection.take()?;
            connection.session.end();
            let wait = connection.session.time_to_wait();
            (drained(&mut connection.session), wait)
        };
        self.tell(events);
        match result {
            Err(error) => Some((error, time_to_wait)),
            Ok(()) if self.shared.lock().stopping => None,
            Ok(()) => Some((ConnectionError::LoggedOut { portal }, time_to_wait)),
        }
    }

    /// Serves a session until it is logged out.
    fn serve(&mut self, stream: &TcpStream, inbox: &mut Inbox) -> Result<(), ConnectionError> {
        let portal = self.target.portal;
        let lost = |source: io::Error| ConnectionError::Lost { portal, source };
        let failed = |source| ConnectionError::Session { portal, source };
        let mut readable = false;
        loop {
            if readable {
                inbox.fill(stream).map_err(lost)?;
            }
            let now = self.shared.now();
            let (result, events) = {
                let mut inner = self.shared.lock();
                let stopping = inner.stopping;
                let Some(connection) = &mut inner.connection else {
                    return Ok(());
                };
                let session = &mut connection.session;
                let result = inbox
                    .feed(session, now)
                    .and_then(|()| session.handle_timeout(now));
                if stopping {
                    session.log_out(now);
                }
                let ended = session.has_ended() || stopping && session.is_logging_in();
                let events = drained(session);
                let result = match result {
                    Err(error) => Err(failed(error)),
                    Ok(()) => connection.flush().map(|()| ended).map_err(lost),
                };
                (result, events)
            };
            // Also when it is lost: what came before that counts.
            self.tell(events);
            if result? {
                return Ok(());
            }
            let (interest, timeout) = {
                let mut inner = self.shared.lock();
                let Some(connection) = &mut inner.connection else {
                    return Ok(());
                };
                // What the callbacks submitted goes out together.
                connection.flush().map_err(lost)?;
                (connection.interest(), connection.session.poll_timeout())
            };
            let pause = timeout.map_or(self.options.ping_after, |at| at.saturating_sub(now));
            let wake = Some(self.shared.wake.as_fd());
            let ready = wait(stream.as_fd(), interest, wake, pause).map_err(lost)?;
            if ready.woken {
                self.shared.clear_wake();
            }
            readable = ready.stream;
        }
    }

    /// Calls back, without a lock.
    fn tell(&mut self, events: Vec<Happening>) {
        for event in events {
            match event {
                Event::Up(parameters) => {
                    tracing::info!(
                        target_name = %self.target.name,
                        portal = %self.target.portal,
                        "iSCSI session up"
                    );
                    self.shared.set_state(State::Up(parameters));
                    (self.notify)(&Notice::Up(&parameters));
                }
                Event::Done(done, outcome) => done(outcome),
                Event::Managed(done, outcome) => done(outcome),
                Event::Sense { lun, sense } => (self.notify)(&Notice::Sense { lun, sense }),
                // Only a discovery asks for them.
                Event::Targets(_) => {}
            }
        }
    }
}

fn drained(session: &mut Session<Done, Managed>) -> Vec<Happening> {
    std::iter::from_fn(|| session.poll_event()).collect()
}

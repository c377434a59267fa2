//! A director's listening side: accepts links, reads who greets on them, and gives each to its
//! session.
//!
//! One thread does that for all addresses. A link is in its hands until HELLO is complete; then the
//! session's own thread has it. Which session that is: see [`crate::session::Greeting`].

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use qos::LinkBudget;

use crate::endpoint::{DeviceGrant, Directory, Endpoint, EndpointConfig, NewPath};
use crate::frame::{DeviceId, FrameBuffer, FrameHeader, VERSION_MIN};
use crate::link::{Filled, Link, LinkAddress, LinkOptions, Listener, SendQueue, ring};
use crate::session::{
    CloseReason, Established, Greeting, PATHS_MAX, PathCause, Role, SessionConfig, SessionState,
    greeting, refusal, welcome,
};
use crate::told::{Told, place};

/// Links that have not greeted yet at most. One more ends the oldest of them, so that silent
/// connections cannot keep a host out.
pub const GREETINGS_MAX: usize = 32;

/// Who may greet. Called on the acceptor's thread; must not wait.
pub trait Admission: Send + Sync + 'static {
    /// The rate of the link to `host`, which is known.
    ///
    /// # Errors
    /// Why the host is not let in; it is told.
    fn admit(&self, host: &str) -> Result<LinkBudget, String>;

    /// Whether a link whose certificate names `certified` may be `host`'s: a host has its own
    /// certificate, unless something that carries its links stands between.
    fn may_carry(&self, certified: &str, host: &str) -> bool {
        certified == host
    }
}

/// The last session of a host.
#[derive(Debug)]
struct HostSession {
    instance: u64,
    session: u16,
    epoch: u16,
    /// Number of its last link.
    path: u16,
    /// `None` once it is over.
    endpoint: Option<Arc<Endpoint>>,
}

/// A link that has not greeted yet.
#[derive(Debug)]
struct Silent {
    link: Link,
    since: Instant,
}

struct Shared {
    session: SessionConfig,
    admission: Arc<dyn Admission>,
    directory: Arc<dyn Directory>,
    /// By name: no more than the admission has ever known.
    hosts: Mutex<HashMap<String, HostSession>>,
    listeners: Mutex<Vec<Listener>>,
    arrived: Mutex<Vec<Link>>,
    stop: Mutex<bool>,
    /// Why links were turned away.
    told: Mutex<Told>,
    wake: EventFd,
}

/// The sessions of a director; dropped, it closes them.
pub struct Acceptor {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acceptor")
            .field("director", &self.shared.session.name)
            .finish_non_exhaustive()
    }
}

impl Acceptor {
    /// Starts without an address to listen on.
    ///
    /// # Errors
    /// The kernel has no descriptors or threads left.
    pub fn start(
        session: SessionConfig,
        admission: Arc<dyn Admission>,
        directory: Arc<dyn Directory>,
    ) -> io::Result<Self> {
        let wake =
            EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let shared = Arc::new(Shared {
            session,
            admission,
            directory,
            hosts: Mutex::default(),
            listeners: Mutex::default(),
            arrived: Mutex::default(),
            stop: Mutex::default(),
            told: Mutex::default(),
            wake,
        });
        let worker = shared.clone();
        let thread = std::thread::Builder::new()
            .name("acceptor".to_owned())
            .spawn(move || accept_loop(&worker))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Listens on `address` too. Returns it with the port that the kernel chose for port 0.
    ///
    /// # Errors
    /// The address is in use, not ours or refused ([`LinkOptions::check`]).
    pub fn listen(&self, address: &LinkAddress, options: &LinkOptions) -> io::Result<LinkAddress> {
        let listener = Listener::bind(address, options)?;
        let address = listener.address()?;
        lock(&self.shared.listeners).push(listener);
        ring(&self.shared.wake);
        Ok(address)
    }

    /// Serves a link that was made otherwise: of a host in the same process.
    pub fn receive(&self, link: Link) {
        self.shared.receive(link);
    }

    /// What [`Self::receive`] does, for whoever makes the links.
    #[must_use]
    pub fn receiver(&self) -> Box<dyn Fn(Link) + Send + Sync> {
        let shared = self.shared.clone();
        Box::new(move |link| shared.receive(link))
    }

    /// Ends the session of a host that is no longer known, with its devices.
    pub fn let_go(&self, host: &str) {
        // Its epoch stays known: should it come again, its next session is a later one.
        let mut hosts = lock(&self.shared.hosts);
        let endpoint = hosts.get_mut(host).and_then(|known| known.endpoint.take());
        drop(hosts);
        if let Some(endpoint) = endpoint {
            endpoint.close("the host is no longer in the lab file");
        }
    }

    /// This end of a host's session, if it has one.
    #[must_use]
    pub fn endpoint(&self, host: &str) -> Option<Arc<Endpoint>> {
        self.shared.endpoint(host)
    }

    /// What [`Self::endpoint`] does for one host, for whoever outlives the acceptor.
    pub fn endpoint_of(
        &self,
        host: &str,
    ) -> impl Fn() -> Option<Arc<Endpoint>> + Send + Sync + use<> {
        let (shared, host) = (Arc::downgrade(&self.shared), host.to_owned());
        move || shared.upgrade()?.endpoint(&host)
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        *lock(&self.shared.stop) = true;
        ring(&self.shared.wake);
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by the thread itself.
            drop(thread.join());
        }
        for host in lock(&self.shared.hosts).values() {
            if let Some(endpoint) = &host.endpoint {
                endpoint.close("director stops");
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whole between any two statements: going on is safe.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Tells the peer why its link is closed; one that does not take it is closed without.
    fn turn_away(&self, link: &mut Link, reason: &str) {
        self.report(link, reason);
        let mut queue = SendQueue::default();
        let words: FrameBuffer = refusal(reason, link.checksummed);
        queue.push(words, false);
        if let Err(error) = link.sender.send(&mut queue) {
            tracing::debug!(link = link.peer, %error, "peer was not told why its link is closed");
        }
    }

    fn report(&self, link: &Link, reason: &str) {
        let link = &link.peer;
        if lock(&self.told).is_news(Instant::now(), place(link), reason) {
            tracing::warn!(link, reason, "link is turned away");
        } else {
            tracing::debug!(link, reason, "link is turned away again");
        }
    }

    fn receive(&self, link: Link) {
        lock(&self.arrived).push(link);
        ring(&self.wake);
    }

    fn endpoint(&self, host: &str) -> Option<Arc<Endpoint>> {
        lock(&self.hosts).get(host)?.endpoint.clone()
    }

    /// Gives a link whose HELLO was read to its session.
    ///
    /// # Errors
    /// The link with the reason why there is none for it.
    fn join(self: &Arc<Self>, link: Link, greeting: &Greeting) -> Result<(), (Link, String)> {
        if usize::from(greeting.priority) >= PATHS_MAX {
            let reason = format!("a session has at most {PATHS_MAX} links");
            return Err((link, reason));
        }
        if let Some(certified) = link.receiver.peer_name()
            && !self.admission.may_carry(&certified, &greeting.host)
        {
            let host = &greeting.host;
            let reason = format!("the certificate is that of {certified}, not of {host}");
            return Err((link, reason));
        }
        let budget = match self.admission.admit(&greeting.host) {
            Ok(budget) => budget,
            Err(reason) => return Err((link, reason)),
        };
        let new_path = |link: Link, epoch, path| NewPath {
            first: Some(welcome(
                &self.session,
                greeting,
                epoch,
                path,
                link.checksummed,
            )),
            link,
            path,
            priority: greeting.priority,
            handled: 1,
        };
        lock(&self.told).forget(place(&link.peer));
        let mut hosts = lock(&self.hosts);
        let mut epoch = 0;
        if let Some(known) = hosts.get_mut(&greeting.host) {
            let same = (known.instance, known.session) == (greeting.instance, greeting.session);
            let living = known.endpoint.take();
            if let Some(endpoint) = living.filter(|it| it.state() != SessionState::Closed) {
                if same && greeting.version > VERSION_MIN {
                    known.path = known.path.wrapping_add(1);
                    endpoint.add_path(new_path(link, known.epoch, known.path));
                    known.endpoint = Some(endpoint);
                    return Ok(());
                }
                let (host, instance) = (&greeting.host, greeting.instance);
                tracing::warn!(
                    host,
                    instance,
                    "a newer session of the host replaces its older"
                );
                endpoint.close("replaced by a newer session of this host");
            }
            epoch = known.epoch;
        }
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let epoch = next_epoch(epoch, unix.as_secs());
        let established = Established {
            version: greeting.version,
            epoch,
            features: greeting.features,
            peer: greeting.host.clone(),
            peer_instance: greeting.instance,
        };
        let config = EndpointConfig {
            role: Role::Director,
            session: self.session.clone(),
            budget,
        };
        let path = 1;
        let first = new_path(link, epoch, path);
        let directory = Arc::new(AcceptorDirectory(self.clone()));
        match Endpoint::start(config, established, first, directory, "fabric-director") {
            Ok((endpoint, _detached)) => {
                tracing::info!(host = greeting.host, epoch, "session became active");
                let session = HostSession {
                    instance: greeting.instance,
                    session: greeting.session,
                    epoch,
                    path,
                    endpoint: Some(endpoint),
                };
                hosts.insert(greeting.host.clone(), session);
            }
            Err(error) => tracing::warn!(%error, "session cannot be started"),
        }
        Ok(())
    }
}

/// Forgets sessions that are over, and passes everything on.
struct AcceptorDirectory(Arc<Shared>);

impl Directory for AcceptorDirectory {
    fn attach(&self, host: &str, device: DeviceId, generation: u32) -> Result<DeviceGrant, String> {
        self.0.directory.attach(host, device, generation)
    }

    fn serves(&self, host: &str, device: DeviceId, generation: u32) -> bool {
        self.0.directory.serves(host, device, generation)
    }

    fn path_lost(&self, endpoint: &Arc<Endpoint>, path: u16, cause: &PathCause) {
        self.0.directory.path_lost(endpoint, path, cause);
    }

    fn closed(&self, endpoint: &Arc<Endpoint>, reason: &CloseReason) {
        if let Some(known) = lock(&self.0.hosts).get_mut(endpoint.peer()) {
            known.endpoint.take_if(|known| Arc::ptr_eq(known, endpoint));
        }
        self.0.directory.closed(endpoint, reason);
    }
}

fn accept_loop(shared: &Arc<Shared>) {
    let mut silent: Vec<Silent> = Vec::new();
    let mut listeners = Vec::new();
    while !*lock(&shared.stop) {
        listeners.append(&mut lock(&shared.listeners));
        let arrived = std::mem::take(&mut *lock(&shared.arrived));
        for link in arrived {
            greet(shared, &mut silent, link);
        }
        let patience = shared.session.greeting_max;
        silent.retain_mut(|waiting| {
            let late = waiting.since.elapsed() >= patience;
            if late {
                shared.turn_away(&mut waiting.link, "no greeting in time");
            }
            !late
        });
        let accepts = wait(shared, &listeners, &silent);
        for (listener, accepts) in listeners.iter().zip(accepts) {
            if accepts {
                accept(shared, &mut silent, listener);
            }
        }
        for waiting in std::mem::take(&mut silent) {
            read_greeting(shared, &mut silent, waiting);
        }
    }
    // Links that arrive from now on end with this object.
}

/// Waits until a listener, a silent link or the owner has something. Which listeners have.
fn wait(shared: &Shared, listeners: &[Listener], silent: &[Silent]) -> Vec<bool> {
    let fds = listeners.iter().map(AsFd::as_fd);
    let fds = fds.chain([shared.wake.as_fd()]);
    let fds = fds.chain(silent.iter().map(|waiting| waiting.link.receiver.poll_fd()));
    let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    let oldest = silent.iter().map(|waiting| waiting.since).min();
    let timeout = oldest.map_or(PollTimeout::NONE, |since| {
        let left = shared.session.greeting_max.saturating_sub(since.elapsed());
        let millis = u16::try_from(left.as_millis().saturating_add(1)).unwrap_or(u16::MAX);
        PollTimeout::from(millis)
    });
    if let Err(error) = poll(&mut fds, timeout)
        && error != nix::Error::EINTR
    {
        tracing::error!(%error, "acceptor cannot wait");
    }
    if let Err(error) = shared.wake.read()
        && error != nix::Error::EAGAIN
    {
        tracing::error!(%error, "eventfd cannot be read");
    }
    let rang = |fd: &PollFd| fd.revents().is_some_and(|events| !events.is_empty());
    fds.iter().take(listeners.len()).map(rang).collect()
}

fn accept(shared: &Arc<Shared>, silent: &mut Vec<Silent>, listener: &Listener) {
    loop {
        match listener.accept() {
            Ok(Some(link)) => greet(shared, silent, link),
            Ok(None) => return,
            Err(error) => {
                // Out of descriptors: the connection stays in the backlog. Waiting for the owner
                // with a time-out keeps the loop from spinning on it.
                tracing::warn!(%error, "connection cannot be accepted");
                let mut fds = [PollFd::new(shared.wake.as_fd(), PollFlags::POLLIN)];
                if let Err(error) = poll(&mut fds, PollTimeout::from(100_u8)) {
                    tracing::debug!(%error, "pause was cut short");
                }
                return;
            }
        }
    }
}

fn greet(shared: &Arc<Shared>, silent: &mut Vec<Silent>, link: Link) {
    if silent.len() >= GREETINGS_MAX
        && let Some(at) = (0..silent.len()).min_by_key(|at| silent.get(*at).map(|it| it.since))
    {
        let mut oldest = silent.swap_remove(at);
        shared.turn_away(&mut oldest.link, "too many connections have not greeted");
    }
    let since = Instant::now();
    read_greeting(shared, silent, Silent { link, since });
}

/// Reads what a silent link has. It is put back if that is no whole frame yet.
fn read_greeting(shared: &Arc<Shared>, silent: &mut Vec<Silent>, mut waiting: Silent) {
    let read = loop {
        match waiting.link.receiver.fill() {
            Ok(Filled::Blocked) => {
                silent.push(waiting);
                return;
            }
            Ok(Filled::End) => return,
            Err(error) => {
                shared.report(&waiting.link, &error.to_string());
                return;
            }
            Ok(Filled::Some) => {}
        }
        let checksummed = waiting.link.checksummed;
        match waiting.link.receiver.frames() {
            Ok(frames) => {
                if let Some(first) = frames.first() {
                    break FrameHeader::parse(first, checksummed)
                        .map_err(Into::into)
                        .and_then(|(header, payload)| greeting(&header, payload));
                }
            }
            Err(error) => break Err(error.into()),
        }
    };
    let refused = match read {
        Ok(greeting) => match shared.join(waiting.link, &greeting) {
            Ok(()) => return,
            Err((link, reason)) => {
                waiting.link = link;
                reason
            }
        },
        Err(error) => error.to_string(),
    };
    shared.turn_away(&mut waiting.link, &refused);
}

/// Whether `epoch` came after `other` (serial numbers, RFC 1982: within half of the circle).
#[must_use]
pub fn epoch_is_later(epoch: u16, other: u16) -> bool {
    (1..0x8000).contains(&epoch.wrapping_sub(other))
}

/// The epoch of the session after one with `last`.
///
/// Epochs are serial numbers: they go around, and order is that of [`epoch_is_later`]. Inside of a
/// process each is later than the one before. Nothing is kept over a restart; instead an epoch is
/// at least the seconds of the clock modulo 2^16, so the first one after a restart is later than
/// all before unless a host began more than one session each second, the clock was set back, or
/// the director was away for more than nine hours. Then nothing of the old sessions is left: each
/// had links of its own, which died with the process, and the instance number of WELCOME differs.
fn next_epoch(last: u16, unix_seconds: u64) -> u16 {
    // 0 is no epoch: it stands in frames before WELCOME.
    let next = last.wrapping_add(1).max(1);
    let [.., high, low] = unix_seconds.to_be_bytes();
    let clock = u16::from_be_bytes([high, low]).max(1);
    // Later than `next` alone could be half of the circle away from `last`, which is not later.
    let ahead = epoch_is_later(clock, next) && epoch_is_later(clock, last);
    if last == 0 || ahead { clock } else { next }
}

#[cfg(test)]
mod tests;

//! A host's standing connection to its director: makes the links, attaches the devices, and does so
//! again whenever a link or the session ends.
//!
//! ```text
//! each link:  Connecting ──made──> Greeting ──WELCOME──> in its session ──lost──> Waiting ──timer──┐
//!                 ^                                                                                │
//!                 └────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! A thread makes one link and makes it anew when it is lost. The first that is welcomed begins the
//! session, the others join it; a director that welcomes with another epoch, or another process,
//! has forgotten the session, which then ends and begins anew. Zero reachable directors is a valid
//! state: the devices are there, their lanes are down.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use qos::{AdmissionError, DeviceRate, LinkBudget, VmRate};

use crate::endpoint::{DeviceGrant, Directory, Endpoint, EndpointConfig, NewPath};
use crate::frame::{DeviceId, FrameHeader, VERSION_MIN};
use crate::link::{Filled, Link, LinkAddress, LinkOptions, SendQueue, connect};
use crate::session::{
    CloseReason, Established, PATHS_MAX, PathCause, ProtocolError, Role, SessionConfig,
    SessionState, hello, welcomed,
};
use crate::told::Told;

/// The first pause before a lost director is tried again; it doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(50);
/// The longest pause between two tries.
const RETRY_MAX: Duration = Duration::from_secs(1);
/// How often a director is asked again for a device that it refused, or let go.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// How long the end of an uplink waits for its session to be closed in good order. A connection
/// attempt that is under way is left to end by itself.
const FAREWELL_MAX: Duration = Duration::from_millis(100);
/// How long one connection attempt may take.
pub(crate) const CONNECT_MAX: Duration = Duration::from_secs(2);

/// Makes one link of the session.
pub trait Connector: Send + Sync + 'static {
    /// One attempt; called again after a failure or the end of the link.
    ///
    /// # Errors
    /// The director cannot be reached this way now.
    fn connect(&self) -> io::Result<Link>;

    /// Whether there is such a link at all now. One that is not there is not tried, and is no failure.
    /// Must not wait.
    fn is_there(&self) -> bool {
        true
    }

    /// What is connected to, for logs.
    fn target(&self) -> String;
}

struct ToAddress {
    address: LinkAddress,
    options: LinkOptions,
}

impl Connector for ToAddress {
    fn connect(&self) -> io::Result<Link> {
        connect(&self.address, CONNECT_MAX, &self.options)
    }

    fn target(&self) -> String {
        self.address.to_string()
    }
}

/// A connector for each address, in the order of their priority.
#[must_use]
pub fn connectors(addresses: &[LinkAddress], options: &LinkOptions) -> Vec<Box<dyn Connector>> {
    let connector = |address: &LinkAddress| -> Box<dyn Connector> {
        Box::new(ToAddress {
            address: address.clone(),
            options: options.clone(),
        })
    };
    addresses.iter().map(connector).collect()
}

/// What an uplink is.
#[derive(Debug, Clone)]
pub struct UplinkConfig {
    /// Names and times of its sessions.
    pub session: SessionConfig,
    /// Rate of the host's sending direction.
    pub budget: LinkBudget,
}

/// A device that the uplink attaches.
#[derive(Debug, Clone)]
pub struct UplinkDevice {
    /// Its number.
    pub id: DeviceId,
    /// Its generation.
    pub generation: u32,
    /// Its owner at this end, rate and windows.
    pub grant: DeviceGrant,
}

/// What the threads of an uplink share.
#[derive(Default)]
struct State {
    stopped: bool,
    /// Threads that have not ended.
    running: usize,
    devices: Vec<UplinkDevice>,
    /// The session, until it has ended.
    endpoint: Option<Arc<Endpoint>>,
    /// Its number: what ended is never joined again.
    session: u16,
    /// Numbers of the links that are in the session, by priority.
    paths: [Option<u16>; PATHS_MAX],
    /// A thread greets, and no session is there: the others wait whether it begins one.
    greeting: bool,
    /// Devices that the director refused, with its reason.
    refused: Vec<(DeviceId, String)>,
    /// When they were last asked for again.
    asked: Option<Instant>,
    /// Why links could not be made: each reason is reported once.
    told: Told,
}

struct Shared {
    config: UplinkConfig,
    state: Mutex<State>,
    changed: Condvar,
    /// Called after each change.
    watch: Box<dyn Fn() + Send + Sync>,
}

/// A running uplink; it ends when dropped.
pub struct Uplink {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Uplink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uplink")
            .field("host", &self.shared.config.session.name)
            .finish_non_exhaustive()
    }
}

impl Uplink {
    /// Starts connecting, in a thread for each of `connectors`; their order is the priority of
    /// their links.
    ///
    /// # Errors
    /// There are more than [`PATHS_MAX`] connectors, or the kernel has no threads left.
    pub fn start(
        config: UplinkConfig,
        connectors: Vec<Box<dyn Connector>>,
        devices: Vec<UplinkDevice>,
    ) -> io::Result<Self> {
        Self::start_watched(config, connectors, devices, Box::new(|| {}))
    }

    /// The same; `watch` is called after links and the session came and went.
    pub(crate) fn start_watched(
        config: UplinkConfig,
        connectors: Vec<Box<dyn Connector>>,
        devices: Vec<UplinkDevice>,
        watch: Box<dyn Fn() + Send + Sync>,
    ) -> io::Result<Self> {
        if connectors.len() > PATHS_MAX {
            let error = format!("a session has at most {PATHS_MAX} links");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
        }
        let state = Mutex::new(State {
            devices,
            running: connectors.len(),
            ..State::default()
        });
        let shared = Arc::new(Shared {
            config,
            state,
            changed: Condvar::new(),
            watch,
        });
        for (priority, connector) in connectors.into_iter().enumerate() {
            let worker = shared.clone();
            std::thread::Builder::new()
                .name(format!("uplink-{priority}"))
                .spawn(move || run(&worker, connector.as_ref(), priority))?;
        }
        Ok(Self { shared })
    }

    /// Adds a device; it is attached now, or as soon as a director is there.
    pub fn add(&self, device: UplinkDevice) {
        let mut state = self.shared.lock();
        state.devices.push(device.clone());
        let endpoint = state.endpoint.clone();
        drop(state);
        if let Some(endpoint) = endpoint {
            self.shared.attach(&endpoint, device);
        }
    }

    /// Takes a device away.
    pub fn remove(&self, id: DeviceId) {
        let mut state = self.shared.lock();
        state.devices.retain(|device| device.id != id);
        state.refused.retain(|(refused, _)| *refused != id);
        let endpoint = state.endpoint.clone();
        drop(state);
        if let Some(endpoint) = endpoint {
            endpoint.detach(id);
        }
    }

    /// Changes what a device may send, in this session and those to come.
    ///
    /// # Errors
    /// It does not fit the link; nothing has changed.
    pub fn set_rate(&self, id: DeviceId, rate: DeviceRate) -> Result<(), AdmissionError> {
        // Locked throughout, so that no session begins with the old words.
        let mut state = self.shared.lock();
        if let Some(endpoint) = &state.endpoint {
            endpoint.set_rate(id, rate)?;
        }
        for device in state.devices.iter_mut().filter(|device| device.id == id) {
            device.grant.rate = rate;
        }
        Ok(())
    }

    /// Changes what the devices of the VM called `vm` may send together, likewise.
    ///
    /// # Errors
    /// It does not fit the link; nothing has changed.
    pub fn set_vm_rate(&self, vm: &str, rate: VmRate) -> Result<(), AdmissionError> {
        let mut state = self.shared.lock();
        if let Some(endpoint) = &state.endpoint {
            endpoint.set_vm_rate(vm, rate)?;
        }
        let grants = state
            .devices
            .iter_mut()
            .filter_map(|it| it.grant.vm.as_mut());
        for grant in grants.filter(|grant| grant.name == vm) {
            grant.rate = rate;
        }
        Ok(())
    }

    /// This end of the session, if there is one.
    #[must_use]
    pub fn endpoint(&self) -> Option<Arc<Endpoint>> {
        self.shared.lock().endpoint.clone()
    }

    /// Whether there is a session and it has a link.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.shared.lock().is_active()
    }

    /// Waits until a session is active, at most `patience`. True if it is.
    #[must_use]
    pub fn wait_active(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut state = self.shared.lock();
        while !state.is_active() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.shared.wait(state, left);
        }
        true
    }

    /// Asks again for the devices that were refused.
    pub(crate) fn ask_again(&self) {
        self.shared.ask_again();
    }

    /// Devices that this end or the director refused, with the reason.
    #[must_use]
    pub fn refused(&self) -> Vec<(DeviceId, String)> {
        self.shared.lock().refused.clone()
    }
}

impl Drop for Uplink {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.stopped = true;
        let endpoint = state.endpoint.clone();
        drop(state);
        self.shared.tell();
        if let Some(endpoint) = endpoint {
            endpoint.close("host agent stops");
        }
        let deadline = Instant::now() + FAREWELL_MAX;
        let mut state = self.shared.lock();
        while (state.running > 0 || state.endpoint.is_some()) && Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            state = self.shared.wait(state, left);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something has changed. Not to be called with the state locked.
    fn tell(&self) {
        self.changed.notify_all();
        (self.watch)();
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, patience: Duration) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout(state, patience);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits before the next attempt; the one after waits longer.
    fn pause<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        pause: &mut Duration,
    ) -> MutexGuard<'a, State> {
        let deadline = Instant::now() + *pause;
        *pause = (2 * *pause).min(RETRY_MAX);
        while !state.stopped && Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            state = self.wait(state, left);
        }
        state
    }

    /// The devices to ask for again, with the session to ask in.
    fn refused_devices(&self) -> Option<(Arc<Endpoint>, Vec<UplinkDevice>)> {
        let mut state = self.lock();
        state.asked = Some(Instant::now());
        let refused = |id| state.refused.iter().any(|(known, _)| *known == id);
        let devices = state.devices.iter();
        let devices = devices.filter(|it| refused(it.id)).cloned().collect();
        Some((state.endpoint.clone()?, devices))
    }

    fn ask_again(&self) {
        if let Some((endpoint, devices)) = self.refused_devices() {
            for device in devices {
                self.attach(&endpoint, device);
            }
        }
    }

    /// Attaches a device, unless it was taken away or replaced meanwhile: whoever does that lets go what
    /// is attached by then, and this what came later.
    fn attach(&self, endpoint: &Endpoint, device: UplinkDevice) {
        let mut next = Some(device);
        while let Some(device) = next.take() {
            let (id, generation) = (device.id, device.generation);
            if let Err(error) = endpoint.attach(id, generation, device.grant) {
                return self.refuse(id, error.to_string());
            }
            let state = self.lock();
            let mut present = state.devices.iter();
            let present = present.find(|it| it.id == id).cloned();
            drop(state);
            if present.as_ref().map(|it| it.generation) != Some(generation) {
                endpoint.detach(id);
                next = present;
            }
        }
    }

    fn refuse(&self, id: DeviceId, reason: String) {
        let mut state = self.lock();
        if !state.devices.iter().any(|device| device.id == id) {
            return;
        }
        // Once for each reason, however often a standby is asked.
        if !state.refused.contains(&(id, reason.clone())) {
            tracing::error!(device = %id, reason, "device was refused");
        }
        state.refused.retain(|(refused, _)| *refused != id);
        state.refused.push((id, reason));
        drop(state);
        self.tell();
    }
}

impl State {
    /// Whether it is time to ask again for devices that were refused.
    fn asks_again(&self) -> bool {
        let asked = self.asked.is_some_and(|asked| asked.elapsed() < ASK_AGAIN);
        !asked && !self.refused.is_empty()
    }

    fn is_active(&self) -> bool {
        let endpoint = self.endpoint.as_ref();
        endpoint.is_some_and(|endpoint| endpoint.state() == SessionState::Active)
    }

    /// Whether the thread of `priority` should make its link now.
    fn wants_link(&self, priority: usize) -> bool {
        let there = self.paths.get(priority).is_some_and(Option::is_some);
        match &self.endpoint {
            None => !self.greeting,
            // A session of version 1 has one link.
            Some(endpoint) => !there && endpoint.established().version > VERSION_MIN,
        }
    }
}

/// Makes one link, and makes it anew, until the uplink stops.
fn run(shared: &Arc<Shared>, connector: &dyn Connector, priority: usize) {
    let mut pause = RETRY_MIN;
    // No link is made again at once: a director that turns sessions away must not be flooded.
    let mut was_made = false;
    let mut state = shared.lock();
    while !state.stopped {
        if !state.wants_link(priority) || !connector.is_there() {
            if state.asks_again() {
                drop(state);
                shared.ask_again();
                state = shared.lock();
            }
            state = shared.wait(state, ASK_AGAIN);
            continue;
        }
        if std::mem::take(&mut was_made) {
            pause = RETRY_MIN;
            state = shared.pause(state, &mut pause);
            continue;
        }
        let begins = state.endpoint.is_none();
        state.greeting |= begins;
        let session = state.session;
        drop(state);
        let made = connector
            .connect()
            .and_then(|link| greet(&shared.config.session, link, session, priority));
        let joined = made.and_then(|made| join(shared, made, session, priority));
        if begins {
            shared.lock().greeting = false;
        }
        shared.tell();
        state = shared.lock();
        was_made = joined.is_ok();
        if let Err(error) = joined {
            let (target, whom, error) = (connector.target(), whom(priority), error.to_string());
            if state.told.is_news(Instant::now(), &whom, &error) {
                tracing::warn!(target, error, "director cannot be reached, trying on");
            } else {
                tracing::debug!(target, error, "director cannot be reached yet");
            }
            state = shared.pause(state, &mut pause);
        }
    }
    state.running -= 1;
    drop(state);
    shared.tell();
}

/// A link that was welcomed.
struct Made {
    link: Link,
    established: Established,
    path: u16,
}

/// Sends HELLO and waits for the answer.
fn greet(
    config: &SessionConfig,
    mut link: Link,
    session: u16,
    priority: usize,
) -> io::Result<Made> {
    let deadline = Instant::now() + config.greeting_max;
    let mut queue = SendQueue::default();
    let rank = u8::try_from(priority).unwrap_or(u8::MAX);
    queue.push(hello(config, session, rank, link.checksummed), false);
    loop {
        link.sender.send(&mut queue)?;
        match link.receiver.fill()? {
            Filled::Some => {}
            Filled::End => return Err(io::ErrorKind::UnexpectedEof.into()),
            Filled::Blocked => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    let error = "director does not answer the greeting";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, error));
                }
                let mut flags = PollFlags::POLLIN;
                if !queue.is_sent() {
                    flags |= PollFlags::POLLOUT;
                }
                let mut fds = [PollFd::new(link.receiver.poll_fd(), flags)];
                let millis = left.as_millis().saturating_add(1);
                let timeout = PollTimeout::from(u16::try_from(millis).unwrap_or(u16::MAX));
                match poll(&mut fds, timeout) {
                    Ok(_) | Err(nix::Error::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
                continue;
            }
        }
        let answer = {
            let frames = link.receiver.frames().map_err(io::Error::other)?;
            let Some(frame) = frames.first() else {
                continue;
            };
            FrameHeader::parse(frame, link.checksummed)
                .map_err(ProtocolError::from)
                .and_then(|(header, payload)| welcomed(config, &header, payload))
        };
        let (established, path) = answer.map_err(io::Error::other)?;
        return Ok(Made {
            link,
            established,
            path,
        });
    }
}

/// Brings a link into the session that it was welcomed in, which may begin with it.
fn join(shared: &Arc<Shared>, made: Made, session: u16, priority: usize) -> io::Result<()> {
    let Made {
        link,
        established,
        path,
    } = made;
    let new_path = NewPath {
        link,
        path,
        priority: u8::try_from(priority).unwrap_or(u8::MAX),
        handled: 1,
        first: None,
    };
    let mut state = shared.lock();
    if state.stopped || state.session != session {
        return Err(io::Error::other("the session ended meanwhile"));
    }
    let forgotten = state.endpoint.clone();
    if let Some(forgotten) = forgotten.filter(|it| it.established() != established) {
        if forgotten.state() == SessionState::Active {
            let error = "the address is another director's than that of the session";
            return Err(io::Error::other(error));
        }
        drop(state);
        forgotten.close("the director began a new session");
        state = shared.lock();
        // Meanwhile no other link begins a session of its own.
        state.greeting = true;
        // Another link may take up the new one first.
        let lasts = |it: &Arc<Endpoint>| Arc::ptr_eq(it, &forgotten);
        while state.endpoint.as_ref().is_some_and(lasts) && !state.stopped {
            state = shared.wait(state, RETRY_MAX);
        }
        state.greeting = false;
        // The number is the new session's: the director knows it by that.
        state.session = session;
    }
    if let Some(endpoint) = &state.endpoint {
        endpoint.add_path(new_path);
    } else {
        let config = EndpointConfig {
            role: Role::Host,
            session: shared.config.session.clone(),
            budget: shared.config.budget.clone(),
        };
        let (director, epoch) = (established.peer.clone(), established.epoch);
        let directory = Arc::new(HostDirectory(shared.clone()));
        let (endpoint, _detached) =
            Endpoint::start(config, established, new_path, directory, "fabric-host")?;
        tracing::info!(director, epoch, "session became active");
        state.refused.clear();
        state.endpoint = Some(endpoint);
    }
    if let Some(slot) = state.paths.get_mut(priority) {
        *slot = Some(path);
    }
    state.told.forget(&whom(priority));
    Ok(())
}

fn whom(priority: usize) -> String {
    format!("link {priority}")
}

struct HostDirectory(Arc<Shared>);

impl Directory for HostDirectory {
    fn active(&self, endpoint: &Arc<Endpoint>) {
        let devices = self.0.lock().devices.clone();
        self.0.tell();
        for device in devices {
            self.0.attach(endpoint, device);
        }
    }

    fn attached(&self, device: DeviceId) {
        let mut state = self.0.lock();
        state.refused.retain(|(refused, _)| *refused != device);
    }

    fn refused(&self, device: DeviceId, reason: &str) {
        self.0.refuse(device, reason.to_owned());
    }

    fn path_lost(&self, _: &Arc<Endpoint>, path: u16, _: &PathCause) {
        let mut state = self.0.lock();
        for slot in &mut state.paths {
            slot.take_if(|known| *known == path);
        }
        drop(state);
        self.0.tell();
    }

    fn closed(&self, _: &Arc<Endpoint>, _: &CloseReason) {
        let mut state = self.0.lock();
        state.endpoint = None;
        state.paths = [None; PATHS_MAX];
        state.session = state.session.wrapping_add(1);
        drop(state);
        self.0.tell();
    }
}

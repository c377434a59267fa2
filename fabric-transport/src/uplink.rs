//! A host's standing connection to its director: connects, attaches the devices, and does so again
//! whenever the session ends.
//!
//! ```text
//! Connecting --link made--> Greeting --WELCOME--> Active --session ends--> Waiting --timer--> Connecting
//! ```
//!
//! The addresses are tried in turn. Zero reachable directors is a valid state: the devices are
//! there, their lanes are down.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use qos::LinkBudget;

use crate::endpoint::{DeviceGrant, Directory, Endpoint, EndpointConfig};
use crate::frame::DeviceId;
use crate::link::{Link, LinkAddress, connect};
use crate::session::{CloseReason, Role, SessionConfig};

/// The first pause before a lost director is tried again; it doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(50);
/// The longest pause between two tries.
const RETRY_MAX: Duration = Duration::from_secs(1);
/// How long the end of an uplink waits for its session to be closed in good order. A connection
/// attempt that is under way is left to end by itself.
const FAREWELL_MAX: Duration = Duration::from_millis(100);
/// How long one connection attempt may take.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// Makes links to a director.
pub trait Connector: Send + Sync + 'static {
    /// One attempt; called again after a failure or the end of the session.
    ///
    /// # Errors
    /// The director cannot be reached now.
    fn connect(&self, attempt: usize) -> io::Result<Link>;

    /// What is connected to, for logs.
    fn target(&self) -> String;
}

/// A director that listens on the network: its addresses are tried in turn.
#[derive(Debug, Clone)]
pub struct Addresses(pub Vec<LinkAddress>);

impl Connector for Addresses {
    fn connect(&self, attempt: usize) -> io::Result<Link> {
        let address = self.0.get(attempt % self.0.len().max(1)).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, "no director address is configured")
        })?;
        connect(address, CONNECT_MAX)
    }

    fn target(&self) -> String {
        let texts: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        texts.join(", ")
    }
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

#[derive(Default)]
struct State {
    stopped: bool,
    /// The thread has ended.
    finished: bool,
    devices: Vec<UplinkDevice>,
    endpoint: Option<Arc<Endpoint>>,
    active: bool,
    /// Devices that the director refused, with its reason.
    refused: Vec<(DeviceId, String)>,
    /// The last failure that was logged: an outage is reported once.
    reported: bool,
}

struct Shared {
    config: UplinkConfig,
    connector: Box<dyn Connector>,
    state: Mutex<State>,
    changed: Condvar,
}

/// A running uplink; it ends when dropped.
pub struct Uplink {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Uplink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uplink")
            .field("target", &self.shared.connector.target())
            .finish_non_exhaustive()
    }
}

impl Uplink {
    /// Starts connecting, in a thread of its own.
    ///
    /// # Errors
    /// The kernel has no threads left.
    pub fn start(
        config: UplinkConfig,
        connector: Box<dyn Connector>,
        devices: Vec<UplinkDevice>,
    ) -> io::Result<Self> {
        let state = Mutex::new(State {
            devices,
            ..State::default()
        });
        let shared = Arc::new(Shared {
            config,
            connector,
            state,
            changed: Condvar::new(),
        });
        let worker = shared.clone();
        std::thread::Builder::new()
            .name("uplink".to_owned())
            .spawn(move || run(&worker))?;
        Ok(Self { shared })
    }

    /// Adds a device; it is attached now, or as soon as a director is there.
    pub fn add(&self, device: UplinkDevice) {
        let mut state = self.shared.lock();
        state.devices.push(device.clone());
        let endpoint = state.endpoint.clone().filter(|_| state.active);
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

    /// This end of the session that is active, if one is.
    #[must_use]
    pub fn endpoint(&self) -> Option<Arc<Endpoint>> {
        let state = self.shared.lock();
        state.endpoint.clone().filter(|_| state.active)
    }

    /// Whether a session is active.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.shared.lock().active
    }

    /// Waits until a session is active, at most `patience`. True if it is.
    #[must_use]
    pub fn wait_active(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut state = self.shared.lock();
        while !state.active {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.shared.wait(state, left);
        }
        true
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
        self.shared.changed.notify_all();
        if let Some(endpoint) = endpoint {
            endpoint.close("host agent stops");
        }
        let deadline = Instant::now() + FAREWELL_MAX;
        let mut state = self.shared.lock();
        while !state.finished && Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            state = self.shared.wait(state, left);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, patience: Duration) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout(state, patience);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn attach(&self, endpoint: &Endpoint, device: UplinkDevice) {
        if let Err(error) = endpoint.attach(device.id, device.generation, device.grant) {
            self.refuse(device.id, error.to_string());
        }
    }

    fn refuse(&self, id: DeviceId, reason: String) {
        tracing::error!(device = %id, reason, "device was refused");
        let mut state = self.lock();
        state.refused.retain(|(refused, _)| *refused != id);
        state.refused.push((id, reason));
        drop(state);
        self.changed.notify_all();
    }
}

fn run(shared: &Arc<Shared>) {
    let mut attempt = 0;
    let mut pause = RETRY_MIN;
    while !shared.lock().stopped {
        match session(shared, attempt) {
            // A session that came up starts the patience anew.
            Ok(true) => pause = RETRY_MIN,
            Ok(false) => pause = (2 * pause).min(RETRY_MAX),
            Err(error) => {
                let mut state = shared.lock();
                if !std::mem::replace(&mut state.reported, true) {
                    let target = shared.connector.target();
                    tracing::warn!(target, %error, "director cannot be reached, trying on");
                }
                drop(state);
                pause = (2 * pause).min(RETRY_MAX);
            }
        }
        attempt += 1;
        let deadline = Instant::now() + pause;
        let mut state = shared.lock();
        while !state.stopped && Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            state = shared.wait(state, left);
        }
    }
    shared.lock().finished = true;
    shared.changed.notify_all();
}

/// One session from connecting to its end. True if it became active.
fn session(shared: &Arc<Shared>, attempt: usize) -> io::Result<bool> {
    let link = shared.connector.connect(attempt)?;
    let config = EndpointConfig {
        role: Role::Host,
        session: shared.config.session.clone(),
        budget: shared.config.budget.clone(),
    };
    let directory = Arc::new(HostDirectory(shared.clone()));
    let (endpoint, thread) = Endpoint::start(config, link, directory, "fabric-host")?;
    let mut state = shared.lock();
    if state.stopped {
        endpoint.close("host agent stops");
    }
    state.endpoint = Some(endpoint);
    drop(state);
    // A panic there was reported by the thread itself.
    drop(thread.join());
    let mut state = shared.lock();
    state.endpoint = None;
    Ok(std::mem::take(&mut state.active))
}

struct HostDirectory(Arc<Shared>);

impl Directory for HostDirectory {
    fn greeted(&self, _: &Arc<Endpoint>, _: &str, _: u64) -> Result<u16, String> {
        Err("this is a host agent, not a director".to_owned())
    }

    fn active(&self, endpoint: &Arc<Endpoint>, _director: &str) {
        let mut state = self.0.lock();
        state.active = true;
        state.endpoint = Some(endpoint.clone());
        state.reported = false;
        state.refused.clear();
        let devices = state.devices.clone();
        drop(state);
        self.0.changed.notify_all();
        for device in devices {
            self.0.attach(endpoint, device);
        }
    }

    fn attach(&self, _: &str, _: DeviceId, _: u32) -> Result<DeviceGrant, String> {
        Err("this is a host agent, not a director".to_owned())
    }

    fn refused(&self, device: DeviceId, reason: &str) {
        self.0.refuse(device, reason.to_owned());
    }

    fn closed(&self, _: &Arc<Endpoint>, _: &CloseReason) {
        self.0.changed.notify_all();
    }
}

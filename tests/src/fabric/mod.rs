//! A fabric without a director: one session in this process, whose far end the test plays.
//!
//! * [`TestFabric`]: two real endpoints over an in-process link, taken down and up at will.
//! * [`FarEnd`]: the client of a device at the other end; keeps what arrives, sends what it is told.
//! * [`Watched`]: passes everything on to the device under test, and lets the test wait for it.
//! * [`RawPeer`]: any bytes on a director's socket, with the frame codec at hand.
//!
//! Waiting is always on a condition and with a limit, [`PATIENCE`]; nothing sleeps.

mod far_end;
mod raw_peer;
pub mod target;
mod watched;

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use fabric_transport::endpoint::{DeviceGrant, Endpoint, NewPath, session_config};
use fabric_transport::link::{Link, in_process_pair};
use fabric_transport::session::{Established, Role, SessionConfig};
use fabric_transport::uplink::{Connector, Uplink, UplinkConfig, UplinkDevice};
use fabric_transport::{DeviceId, Directory, EndpointConfig, LaneClient};
use qos::{DeviceRate, LinkBudget};

pub use crate::front_end::PATIENCE;
pub use far_end::FarEnd;
pub use raw_peer::{RawPeer, RawStream};
pub use watched::Watched;

/// Name of the host end of a session made here.
const HOST: &str = "host1";

/// A value that threads wait for.
#[derive(Debug, Default)]
pub(crate) struct Shared<T> {
    value: Mutex<T>,
    changed: Condvar,
}

impl<T> Shared<T> {
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let result = change(&mut self.lock());
        self.changed.notify_all();
        result
    }

    /// Waits until `ready` finds what it looks for; `what` names it in the error.
    pub(crate) fn wait<R>(
        &self,
        what: &str,
        mut ready: impl FnMut(&mut T) -> Option<R>,
    ) -> Result<R> {
        let end = Instant::now() + PATIENCE;
        let mut value = self.lock();
        loop {
            if let Some(result) = ready(&mut value) {
                return Ok(result);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("{what}: nothing came for {PATIENCE:?}");
            }
            let waited = self.changed.wait_timeout(value, left);
            value = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// One device on a [`TestFabric`].
#[derive(Debug, Clone)]
pub struct FabricDevice {
    /// Its number.
    pub id: DeviceId,
    /// The device under test, with its rate and windows.
    pub near: DeviceGrant,
    /// What the test plays, with its windows.
    pub far: DeviceGrant,
}

impl FabricDevice {
    /// A device without a rate of its own at either end.
    #[must_use]
    pub fn new(id: DeviceId, near: (Arc<Watched>, [u32; 4]), far: (Arc<FarEnd>, [u32; 4])) -> Self {
        let rate = DeviceRate::best_effort();
        Self {
            id,
            near: DeviceGrant {
                vm: None,
                rate,
                windows: near.1,
                client: near.0,
            },
            far: DeviceGrant {
                vm: None,
                rate,
                windows: far.1,
                client: far.0,
            },
        }
    }
}

/// A host and a director joined by an in-process link, with the same devices at every session.
#[derive(Debug)]
pub struct TestFabric {
    rate: String,
    devices: Vec<FabricDevice>,
    watched: Vec<Arc<Watched>>,
    epoch: u16,
    sides: Option<[Side; 2]>,
}

impl TestFabric {
    /// A fabric whose link has `rate` ("10G") in each direction; it is down.
    #[must_use]
    pub fn new(rate: &str, devices: Vec<FabricDevice>, watched: Vec<Arc<Watched>>) -> Self {
        Self {
            rate: rate.to_owned(),
            devices,
            watched,
            epoch: 0,
            sides: None,
        }
    }

    /// Starts a session; returns when every device has its lanes.
    ///
    /// # Errors
    /// No threads, or a device is refused.
    pub fn up(&mut self) -> Result<()> {
        self.epoch += 1;
        let (near, far) = in_process_pair("test");
        let grants = |far: bool| {
            let devices = self.devices.iter();
            devices
                .map(|device| {
                    let grant = if far { &device.far } else { &device.near };
                    (device.id, grant.clone())
                })
                .collect()
        };
        let director = self.side(Role::Director, far, grants(true))?;
        let host = self.side(Role::Host, near, grants(false))?;
        self.sides = Some([host, director]);
        let ups = self.epoch.into();
        self.watched
            .iter()
            .try_for_each(|watched| watched.wait_up(ups))
    }

    /// Ends the session; returns when every device has lost its lanes.
    pub fn down(&mut self) {
        self.sides = None;
    }

    fn side(&self, role: Role, link: Link, devices: Vec<(DeviceId, DeviceGrant)>) -> Result<Side> {
        let directory = FixedDirectory { devices };
        let name = if role == Role::Host {
            HOST
        } else {
            "director1"
        };
        Side::start(role, name, &self.rate, link, directory, self.epoch)
    }
}

/// A host on a link to a real director: its devices are [`FarEnd`]s that the test plays.
#[derive(Debug)]
pub struct TestHost {
    // Held for its end: dropping it closes the session.
    _uplink: Uplink,
}

/// A link that is made already.
struct Once(Mutex<Option<Link>>);

impl Connector for Once {
    fn connect(&self) -> io::Result<Link> {
        let mut link = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        link.take()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn target(&self) -> String {
        "the link of a test".to_owned()
    }
}

impl TestHost {
    /// Greets as `name` over `link` and attaches `devices` once the session is active.
    ///
    /// # Errors
    /// No threads.
    pub fn start(name: &str, link: Link, devices: Vec<(DeviceId, DeviceGrant)>) -> Result<Self> {
        let device = |(id, grant)| UplinkDevice {
            id,
            generation: 0,
            grant,
        };
        let config = UplinkConfig {
            session: session_config(name),
            budget: LinkBudget::new("test uplink", "10G".parse()?),
        };
        let connector = Box::new(Once(Mutex::new(Some(link))));
        let devices = devices.into_iter().map(device).collect();
        let uplink = Uplink::start(config, vec![connector], devices)?;
        Ok(Self { _uplink: uplink })
    }
}

/// One end of a session; dropped, it closes it and waits for its thread.
#[derive(Debug)]
struct Side {
    endpoint: Arc<Endpoint>,
    thread: Option<JoinHandle<()>>,
}

impl Side {
    fn start(
        role: Role,
        name: &str,
        rate: &str,
        link: Link,
        directory: FixedDirectory,
        epoch: u16,
    ) -> Result<Self> {
        let config = EndpointConfig {
            role,
            session: SessionConfig {
                silence_max: PATIENCE,
                ..session_config(name)
            },
            budget: LinkBudget::new("test link", rate.parse()?),
        };
        let established = Established::without_handshake("peer", epoch);
        let path = NewPath::only(link);
        let (endpoint, thread) =
            Endpoint::start(config, established, path, Arc::new(directory), "test-link")
                .context("endpoint cannot be started")?;
        Ok(Self {
            endpoint,
            thread: Some(thread),
        })
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        self.endpoint.close("test is over");
        if let Some(thread) = self.thread.take() {
            // A panic there was printed by the thread itself, and the test waits in vain.
            drop(thread.join());
        }
    }
}

struct FixedDirectory {
    devices: Vec<(DeviceId, DeviceGrant)>,
}

impl Directory for FixedDirectory {
    fn active(&self, endpoint: &Arc<Endpoint>) {
        for (id, grant) in &self.devices {
            if let Err(error) = endpoint.attach(*id, 0, grant.clone()) {
                tracing::error!(device = %id, %error, "device was refused");
            }
        }
    }

    fn attach(&self, _: &str, device: DeviceId, _: u32) -> Result<DeviceGrant, String> {
        let mut known = self.devices.iter();
        let found = known.find(|(id, _)| *id == device);
        found
            .map(|(_, grant)| grant.clone())
            .ok_or_else(|| format!("{device} is unknown"))
    }

    fn refused(&self, device: DeviceId, reason: &str) {
        tracing::error!(%device, reason, "device was refused");
    }
}

/// The client as the trait object that grants hold.
#[must_use]
pub fn client<T: LaneClient + 'static>(client: &Arc<T>) -> Arc<dyn LaneClient> {
    client.clone()
}

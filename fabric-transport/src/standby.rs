//! Two directors for one host: the devices are at one of them, and move to the other when it is
//! gone.
//!
//! ```text
//!            ┌── session with the first director:  devices attached ──┐   lost
//!   host ────┤                                                        ├──────────> moved
//!            └── session with the standby: greeted, heard, no device ─┘
//! ```
//!
//! Both sessions stand beforehand, so that a failover costs an ATTACH and its answer. A device is
//! let go at the old director before it is asked for at the new one, and its owner hears
//! [`LaneClient::down`](crate::LaneClient::down) in between: what was underway is lost with the
//! session, as if the director had been restarted. That the old director does nothing more for the
//! device is the new one's to see to: it refuses a device whose storage the old one still holds, and
//! is asked again until it does not.
//!
//! Devices stay where they are when the other director comes back.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use qos::{AdmissionError, DeviceRate, VmRate};

use crate::frame::DeviceId;
use crate::uplink::{Connector, Uplink, UplinkConfig, UplinkDevice};

/// How often a director is asked again for a device that it refused.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// How long a director that was not reached yet is waited for before its standby has the devices.
const FIRST_WAIT: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
struct State {
    stopped: bool,
    changed: bool,
    devices: Vec<UplinkDevice>,
    /// Which uplink has them.
    active: usize,
    failovers: u64,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// Uplinks to a director and its standby; they end when this is dropped.
#[derive(Debug)]
pub struct StandbyUplink {
    shared: Arc<Shared>,
    uplinks: Arc<[Uplink; 2]>,
    thread: Option<JoinHandle<()>>,
}

impl StandbyUplink {
    /// Starts connecting to both. The devices are at the first.
    ///
    /// # Errors
    /// As [`Uplink::start`].
    pub fn start(
        config: &UplinkConfig,
        connectors: [Vec<Box<dyn Connector>>; 2],
        devices: Vec<UplinkDevice>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let [first, second] = connectors;
        let start = |connectors, devices| {
            let watched = shared.clone();
            let watch = Box::new(move || watched.wake());
            Uplink::start_watched(config.clone(), connectors, devices, watch)
        };
        let uplinks = Arc::new([start(first, devices.clone())?, start(second, Vec::new())?]);
        shared.lock().devices = devices;
        let worker = (shared.clone(), uplinks.clone());
        let thread = std::thread::Builder::new()
            .name("standby".to_owned())
            .spawn(move || run(&worker.0, &worker.1))?;
        Ok(Self {
            shared,
            uplinks,
            thread: Some(thread),
        })
    }

    /// The uplink that has the devices.
    #[must_use]
    pub fn active(&self) -> &Uplink {
        let [first, second] = &*self.uplinks;
        if self.shared.lock().active == 0 {
            first
        } else {
            second
        }
    }

    /// The uplink that has no devices.
    #[must_use]
    pub fn standby(&self) -> &Uplink {
        let [first, second] = &*self.uplinks;
        if self.shared.lock().active == 0 {
            second
        } else {
            first
        }
    }

    /// How often the devices have moved.
    #[must_use]
    pub fn failovers(&self) -> u64 {
        self.shared.lock().failovers
    }

    /// Adds a device.
    pub fn add(&self, device: UplinkDevice) {
        // Held, so that no failover comes between.
        let mut state = self.shared.lock();
        state.devices.push(device.clone());
        let active = state.active;
        if let Some(uplink) = self.uplinks.get(active) {
            uplink.add(device);
        }
    }

    /// Changes what a device may send.
    ///
    /// # Errors
    /// As [`Uplink::set_rate`].
    pub fn set_rate(&self, id: DeviceId, rate: DeviceRate) -> Result<(), AdmissionError> {
        let mut state = self.shared.lock();
        for uplink in &*self.uplinks {
            uplink.set_rate(id, rate)?;
        }
        for device in state.devices.iter_mut().filter(|device| device.id == id) {
            device.grant.rate = rate;
        }
        Ok(())
    }

    /// Changes what the devices of a VM may send together.
    ///
    /// # Errors
    /// As [`Uplink::set_vm_rate`].
    pub fn set_vm_rate(&self, vm: &str, rate: VmRate) -> Result<(), AdmissionError> {
        let mut state = self.shared.lock();
        for uplink in &*self.uplinks {
            uplink.set_vm_rate(vm, rate)?;
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

    /// Takes a device away.
    pub fn remove(&self, id: DeviceId) {
        let mut state = self.shared.lock();
        state.devices.retain(|device| device.id != id);
        for uplink in &*self.uplinks {
            uplink.remove(id);
        }
    }
}

impl Drop for StandbyUplink {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by the thread itself.
            drop(thread.join());
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.lock().changed = true;
        self.changed.notify_all();
    }
}

fn run(shared: &Shared, uplinks: &[Uplink; 2]) {
    // A director that has never been there is not lost, only late, for a while.
    let (mut began, mut was_there) = (Instant::now(), false);
    let mut state = shared.lock();
    while !state.stopped {
        if !std::mem::take(&mut state.changed) {
            let waited = shared.changed.wait_timeout(state, ASK_AGAIN);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let [first, second] = uplinks;
        let (here, there, other) = if state.active == 0 {
            (first, second, 1)
        } else {
            (second, first, 0)
        };
        let is_there = here.is_active();
        was_there |= is_there;
        let lost = !is_there && (was_there || began.elapsed() >= FIRST_WAIT);
        if lost && there.is_active() {
            tracing::warn!(
                devices = state.devices.len(),
                "director is lost, its devices move to the other"
            );
            // With the lock: whoever adds a device meanwhile adds it behind these.
            for device in &state.devices {
                here.remove(device.id);
            }
            for device in &state.devices {
                there.add(device.clone());
            }
            state.active = other;
            state.failovers += 1;
            (began, was_there) = (Instant::now(), false);
        } else if !state.changed {
            here.ask_again();
        }
    }
}

#[cfg(test)]
mod tests;

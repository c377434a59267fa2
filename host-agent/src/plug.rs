//! Devices come into running VMs and leave them, over the monitors of their QEMUs.
//!
//! ```text
//! lab file: wanted ──┐           ┌─> device_del, DEVICE_DELETED, netdev_del, chardev-remove
//!                    ├─ differ ──┤
//! qom-list: there ───┘           └─> chardev-add, netdev_add, device_add
//! ```
//!
//! A thread for each VM that has a `qmp` compares the two twice a second and after each change, so it
//! takes up a QEMU that starts later, and what an agent before it plugged in. Each device has the root
//! port that its `pci-slot` says: its PCI address stays. Every wait is bounded; a guest that does not
//! let a device go is asked again.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use fabric_config::{HostConfig, VmConfig};
use orimono_qemu::qmp::{Qmp, QmpError};
use orimono_qemu::{Accelerator, Plug, Vhba, Vnic};
use qos_monitor::GuestState;
use serde_json::{Value, json};

use crate::qemu_args::{vhba, vnic};

/// How often a VM is looked at.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long QEMU may take for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How long a guest may take to let a device go before others have their turn. Linux takes less than a
/// second.
const RELEASE_MAX: Duration = Duration::from_secs(5);

/// A device as it should be in its VM.
#[derive(Debug, Clone, PartialEq)]
struct Wanted {
    generation: u32,
    device: Device,
}

#[derive(Debug, Clone, PartialEq)]
enum Device {
    Vnic(Vnic),
    Vhba(Vhba),
}

#[derive(Debug, Default)]
struct State {
    /// Counts changes of `wanted`.
    revision: u64,
    /// By the device's name, which is its id in QEMU.
    wanted: BTreeMap<String, Wanted>,
    /// What became of each, also of those that are to go.
    guest: BTreeMap<String, GuestState>,
    /// The VM is in no lab file any more: the thread ends when nothing of it is plugged.
    gone: bool,
    stopped: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Whole between any two statements: going on is safe.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, patience: Duration) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout(state, patience);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn tell(&self, device: &str, guest: GuestState) {
        let mut state = self.lock();
        let old = state.guest.insert(device.to_owned(), guest.clone());
        drop(state);
        if old.as_ref() != Some(&guest) {
            match guest {
                GuestState::Plugged => tracing::info!(device, "device is in its guest"),
                GuestState::Failed(reason) => {
                    tracing::error!(device, reason, "device is not in its guest as it should be");
                }
                GuestState::NotRunning | GuestState::Waiting => {}
            }
        }
        self.changed.notify_all();
    }

    fn forget(&self, device: &str) {
        self.lock().guest.remove(device);
        self.changed.notify_all();
    }
}

/// The VMs of a host whose devices come and go. Dropped, it lets them be as they are.
#[derive(Debug, Default)]
pub(crate) struct Plugs {
    vms: Mutex<BTreeMap<String, (PathBuf, Arc<Shared>)>>,
}

impl Plugs {
    fn vms(&self) -> MutexGuard<'_, BTreeMap<String, (PathBuf, Arc<Shared>)>> {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the VMs of `host` have its devices. Those are served by now.
    pub(crate) fn set(&self, host: &HostConfig) {
        let mut vms = self.vms();
        let path = |name: &String| {
            let vm = host.vms.iter().find(|vm| vm.name == *name);
            vm.and_then(|vm| vm.qmp.as_ref())
        };
        vms.retain(|name, (known, shared)| {
            let stays = path(name) == Some(known);
            if !stays {
                change(shared, |state| {
                    state.wanted.clear();
                    state.gone = true;
                });
            }
            stays
        });
        for vm in &host.vms {
            let Some(path) = &vm.qmp else { continue };
            let wanted = wanted(host, vm);
            let (_, shared) = vms.entry(vm.name.clone()).or_insert_with(|| {
                let shared = Arc::new(Shared::default());
                start(&vm.name, path, &shared);
                (path.clone(), shared)
            });
            change(shared, |state| state.wanted = wanted);
        }
    }

    /// Has VMs let these devices go, as far as they run and do so within a few seconds: what a guest
    /// still writes while it does reaches its director.
    pub(crate) fn release<'a>(&self, devices: impl Iterator<Item = &'a str>) {
        let devices: BTreeSet<&str> = devices.collect();
        let vms: Vec<_> = self.vms().values().cloned().collect();
        let deadline = Instant::now() + RELEASE_MAX;
        for (_, shared) in &vms {
            change(shared, |state| {
                state.wanted.retain(|id, _| !devices.contains(id.as_str()));
            });
        }
        for (_, shared) in &vms {
            let mut state = shared.lock();
            let there = |state: &State| {
                let mut guest = state.guest.iter();
                guest.any(|(id, it)| {
                    devices.contains(id.as_str()) && !matches!(it, GuestState::NotRunning)
                })
            };
            while there(&state) && Instant::now() < deadline {
                let left = deadline.saturating_duration_since(Instant::now());
                state = shared.wait(state, left);
            }
        }
    }

    /// Where a device of `vm` is; `None` if nobody looks.
    pub(crate) fn guest(&self, vm: &str, device: &str) -> Option<GuestState> {
        let shared = self.vms().get(vm)?.1.clone();
        let state = shared.lock();
        let known = state.guest.get(device).cloned();
        Some(known.unwrap_or(GuestState::Waiting))
    }
}

impl Drop for Plugs {
    fn drop(&mut self) {
        for (_, shared) in self.vms().values() {
            change(shared, |state| state.stopped = true);
        }
    }
}

fn change(shared: &Shared, change: impl FnOnce(&mut State)) {
    let mut state = shared.lock();
    change(&mut state);
    state.revision += 1;
    drop(state);
    shared.changed.notify_all();
}

fn wanted(host: &HostConfig, vm: &VmConfig) -> BTreeMap<String, Wanted> {
    let vnics = vm.vnics.iter().filter_map(|config| {
        let device = Device::Vnic(vnic(host, config).ok()?);
        Some((config.name.clone(), config.generation, device))
    });
    let vhbas = vm.vhbas.iter().map(|config| {
        let device = Device::Vhba(vhba(host, config));
        (config.name.clone(), config.generation, device)
    });
    let devices = vnics.chain(vhbas);
    let wanted = devices.map(|(name, generation, device)| {
        let wanted = Wanted { generation, device };
        (name, wanted)
    });
    wanted.collect()
}

fn start(vm: &str, path: &Path, shared: &Arc<Shared>) {
    let (name, path, shared) = (vm.to_owned(), path.to_owned(), shared.clone());
    let thread = thread::Builder::new().name(format!("plug-{vm}"));
    let started = thread.spawn(move || Plugger::new(&name, &path, &shared).run());
    if let Err(error) = started {
        tracing::error!(vm, %error, "devices cannot come and go while it runs: no threads");
    }
}

/// The monitor of a QEMU that answers.
struct Monitor {
    qmp: Qmp,
    accelerator: Accelerator,
}

impl Monitor {
    fn connect(path: &Path) -> Result<Self, QmpError> {
        let stream = UnixStream::connect(path).map_err(QmpError::Socket)?;
        let mut qmp = Qmp::handshake(stream, ANSWER_MAX)?;
        let kvm = qmp.execute(&json!({"execute": "query-kvm"}), ANSWER_MAX)?;
        let accelerator = match kvm.get("enabled").and_then(Value::as_bool) {
            Some(true) => Accelerator::Kvm,
            _ => Accelerator::Tcg,
        };
        Ok(Self { qmp, accelerator })
    }

    fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let command = json!({"execute": command, "arguments": arguments});
        self.qmp.execute(&command, ANSWER_MAX)
    }

    /// Ids of the devices that are there and whose names end in `suffix`.
    fn devices(&mut self, suffix: &str) -> Result<BTreeSet<String>, QmpError> {
        let listed = self.execute("qom-list", json!({"path": "/machine/peripheral"}))?;
        let listed = listed.as_array().into_iter().flatten();
        let ours = listed.filter_map(|child| {
            let kind = child.get("type")?.as_str()?;
            let name = child.get("name")?.as_str()?;
            let ours = ["child<virtio-net-pci>", "child<vhost-user-scsi-pci>"].contains(&kind)
                && name.ends_with(suffix);
            ours.then(|| name.to_owned())
        });
        Ok(ours.collect())
    }

    /// Whether a device that somebody else plugged in is `wanted`.
    fn is(&mut self, id: &str, wanted: &Wanted) -> Result<bool, QmpError> {
        let Device::Vnic(vnic) = &wanted.device else {
            return Ok(true);
        };
        let path = format!("/machine/peripheral/{id}");
        let mac = self.execute("qom-get", json!({"path": path, "property": "mac"}))?;
        Ok(mac
            .as_str()
            .is_some_and(|mac| mac.eq_ignore_ascii_case(&vnic.mac.to_string())))
    }

    /// Takes away what a device stood on.
    fn clear(&mut self, id: &str) -> Result<(), QmpError> {
        for command in Plug::leftovers(id) {
            match self.qmp.execute(&command, ANSWER_MAX) {
                // It is not there.
                Ok(_) | Err(QmpError::Refused { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// One VM.
struct Plugger<'a> {
    path: &'a Path,
    /// What the names of its devices end in.
    suffix: String,
    shared: &'a Shared,
    /// What was plugged in, or found and taken for that.
    plugged: BTreeMap<String, Wanted>,
}

impl<'a> Plugger<'a> {
    fn new(vm: &str, path: &'a Path, shared: &'a Shared) -> Self {
        Self {
            path,
            suffix: format!(".{vm}"),
            shared,
            plugged: BTreeMap::new(),
        }
    }

    fn run(mut self) {
        let mut monitor = None;
        loop {
            let state = self.shared.lock();
            let (revision, wanted, gone) = (state.revision, state.wanted.clone(), state.gone);
            if state.stopped {
                return;
            }
            drop(state);
            if monitor.is_none() {
                monitor = Monitor::connect(self.path)
                    .inspect_err(|error| tracing::debug!(%error, "no monitor answers"))
                    .ok();
            }
            let told = match &mut monitor {
                Some(monitor) => self.reconcile(monitor, &wanted),
                None => Err(QmpError::Closed),
            };
            let mut done = true;
            match told {
                Ok(there) => done = there.is_empty(),
                Err(error) => {
                    if monitor.take().is_some() {
                        tracing::warn!(%error, vm = self.suffix, "monitor of the VM is lost");
                    }
                    self.not_running(&wanted);
                }
            }
            if gone && done {
                return;
            }
            let state = self.shared.lock();
            if state.revision == revision {
                drop(self.shared.wait(state, INTERVAL));
            }
        }
    }

    fn not_running(&mut self, wanted: &BTreeMap<String, Wanted>) {
        self.plugged.clear();
        let mut state = self.shared.lock();
        let ids = wanted.keys().cloned();
        state.guest = ids.map(|id| (id, GuestState::NotRunning)).collect();
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Makes the VM have what is wanted, as far as it goes now; returns what it has that is not.
    fn reconcile(
        &mut self,
        monitor: &mut Monitor,
        wanted: &BTreeMap<String, Wanted>,
    ) -> Result<BTreeSet<String>, QmpError> {
        let there = monitor.devices(&self.suffix)?;
        self.plugged.retain(|id, _| there.contains(id));
        let mut leaving = BTreeSet::new();
        for id in &there {
            let stays = match (wanted.get(id), self.plugged.get(id)) {
                (None, _) => false,
                (Some(wanted), Some(plugged)) => wanted == plugged,
                (Some(wanted), None) => monitor.is(id, wanted)?,
            };
            match wanted.get(id).filter(|_| stays) {
                Some(wanted) => {
                    self.plugged.insert(id.clone(), wanted.clone());
                    self.shared.tell(id, GuestState::Plugged);
                }
                None => {
                    leaving.insert(id.clone());
                }
            }
        }
        self.unplug(monitor, &mut leaving)?;
        for (id, wanted) in wanted {
            if !self.plugged.contains_key(id) && !leaving.contains(id) {
                self.plug(monitor, id, wanted)?;
            }
        }
        // Of what is neither wanted nor there nothing is said.
        let mut state = self.shared.lock();
        state
            .guest
            .retain(|id, _| wanted.contains_key(id) || leaving.contains(id));
        drop(state);
        self.shared.changed.notify_all();
        Ok(leaving)
    }

    fn plug(&mut self, monitor: &mut Monitor, id: &str, wanted: &Wanted) -> Result<(), QmpError> {
        let version = monitor.qmp.version();
        let (bus, plug) = match &wanted.device {
            Device::Vnic(vnic) => {
                let plug = Plug::vnic(vnic, version, monitor.accelerator);
                (&vnic.bus, plug)
            }
            Device::Vhba(vhba) => (&vhba.bus, Plug::vhba(vhba, version)),
        };
        if bus.is_none() {
            let reason = "it has no pci-slot, so it comes when the VM is started again";
            self.shared.tell(id, GuestState::Failed(reason.to_owned()));
            return Ok(());
        }
        // Of an attempt that ended half way.
        monitor.clear(id)?;
        for command in plug.commands() {
            match monitor.qmp.execute(&command, ANSWER_MAX) {
                Ok(_) => {}
                Err(QmpError::Refused { reason, .. }) => {
                    monitor.clear(id)?;
                    let reason = format!("QEMU refuses it: {reason}");
                    self.shared.tell(id, GuestState::Failed(reason));
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        self.plugged.insert(id.to_owned(), wanted.clone());
        self.shared.tell(id, GuestState::Plugged);
        Ok(())
    }

    /// Takes away all of `leaving`; those that the guest has not let go in time stay in it.
    fn unplug(
        &mut self,
        monitor: &mut Monitor,
        leaving: &mut BTreeSet<String>,
    ) -> Result<(), QmpError> {
        for id in leaving.iter() {
            self.plugged.remove(id);
            match monitor.execute("device_del", json!({"id": id})) {
                // It was asked before.
                Ok(_) | Err(QmpError::Refused { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let deadline = Instant::now() + RELEASE_MAX;
        while !leaving.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = match monitor.qmp.event("DEVICE_DELETED", left) {
                Ok(event) => event,
                Err(QmpError::DeadlinePassed { .. }) => break,
                Err(error) => return Err(error),
            };
            let device = event.pointer("/data/device").and_then(Value::as_str);
            let Some(id) = device.filter(|id| leaving.contains(*id)) else {
                continue;
            };
            monitor.clear(id)?;
            tracing::info!(device = id, "device has left its guest");
            self.shared.forget(id);
            leaving.remove(id);
        }
        for id in leaving.iter() {
            let reason = "the guest does not let it go; it is asked again";
            self.shared.tell(id, GuestState::Failed(reason.to_owned()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

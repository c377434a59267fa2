//! The shell of an Ethernet port: moves frames between its interfaces and the lanes of vNICs. Where
//! "the TAP" stands, it may be another interface, or the members of a LAG ([`super::uplink`]).
//!
//! Frames from guests are switched on their link's thread; one thread per port reads the TAP, and
//! hears of its state.
//!
//! **The link** of a vNIC is up while the port has an interface that is up, or needs none, and the
//! operator wants both. Its host is told when its session begins, and of every change.
//!
//! **A port without a rate** lets nothing wait: a TAP or lane that does not take a frame loses it,
//! counted by reason, so no guest can hold up another.
//!
//! **A port with a rate** has a scheduler ([`super::wire`]). A frame to the LAN waits there for its
//! turn and keeps its credit until it is written: a vNIC above its rate runs
//! out of credit, its ring is not read, and nothing is dropped. What waits is bounded by
//! [`WINDOWS`]. Frames of a vNIC to the LAN keep their order; a frame to another vNIC of the port
//! does not use the wire and may overtake them. From the LAN, frames are taken at the port's rate,
//! one by one: what is more waits in the TAP's own queue.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
};
use std::thread::JoinHandle;

use fabric_bypass::{DirectReceiver, DirectVnic};
use fabric_config::{EthernetPortConfig, PortName, VmConfig, VnicConfig};
use fabric_payload::announcement::announcement;
use fabric_payload::ethernet::{
    FRAME_BYTES_MAX, HEADER_BYTES, LinkState, Offloads, PAYLOAD_BYTES_MAX, VirtioNetHeader,
};
use fabric_transport::control::Windows;
use fabric_transport::endpoint::now;
use fabric_transport::frame::blocks;
use fabric_transport::{DeviceId, FrameBuffer, LaneClient, LaneSet, VirtualLane};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use qos::{AdmissionError, DeviceRate, MonotonicTime};
use qos_monitor::Hop;
use qos_monitor::frames::{Capture, FrameDirection};
use qos_monitor::network::FramesWanted;
use zerocopy::IntoBytes;

use super::address_service::{AddressService, BootThread};
use super::delivery::Batch;
use super::mirror::MirrorTarget;
use super::policy::Policy;
use super::probe::{Probe, Seen, Showing};
use super::rewrite::{Outgoing, Rewrite, TagEdit};
use super::switch::{Destination, DropReason, Forward, Source, Switch};
use super::tap::{OFFLOADING, TapError};
use super::uplink::{Member, Uplink};
use super::vlan::Membership;
use super::vnic_session::VnicSession;
use super::wire::{Direction, Wire};
use crate::counters::{PortCounters, Snapshot, VnicCounters};
use crate::credit;
use crate::port_direction::{PortDevice, PortVm};
use crate::port_hop::PortHop;
use crate::port_scheduler::{PortScheduler, WAKE_SLACK};

/// What the director can receive for a vNIC: 1 MiB of frames.
pub const WINDOWS: Windows = [0, 0, 0, 16 * 1024];

/// What is read from the TAP before it goes on: little enough for the processor's caches.
const BATCH_FRAMES_MAX: usize = 64;
const BATCH_BYTES: usize = 64 * 1024;
/// The most one frame is charged with: a header that claims tiny segments must not hold the wire
/// for seconds.
const CHARGE_BYTES_MAX: usize = 2 * FRAME_BYTES_MAX;

/// An open Ethernet port with its vNICs.
#[derive(Debug)]
pub struct EthernetPort {
    shared: Arc<PortShared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
pub(super) struct PortShared {
    config: EthernetPortConfig,
    /// `None`: the port is private.
    uplink: Option<Uplink>,
    /// The operator wants the port up, and whether its vNICs were told that it is. Locked while they
    /// are told.
    link: Mutex<PortLink>,
    switch: Mutex<Switch>,
    outside: Membership,
    /// Locked to write only when one is added or removed.
    vnics: RwLock<BTreeMap<DeviceId, Arc<Vnic>>>,
    counters: PortCounters,
    /// At its interface; of a private port at what its vNICs send.
    probe: Arc<Probe>,
    stop: EventFd,
    /// Of a port with a rate.
    pub(super) wire: Option<PortScheduler<Wire<HeldFrame>>>,
    /// Sessions of vNICs so far.
    sessions: AtomicU64,
    /// Reads boot files.
    boot: BootThread,
}

#[derive(Debug)]
struct PortLink {
    wanted: bool,
    is_up: bool,
}

/// A frame that waits for the wire, with its credit.
pub(super) struct HeldFrame {
    pub(super) device: DeviceId,
    pub(super) payload: Vec<u8>,
    pub(super) lanes: LaneSet,
    /// Its session is over, or replaced.
    pub(super) stale: Arc<AtomicBool>,
}

/// The newest session of a vNIC.
#[derive(Debug, Clone)]
pub(super) struct Current {
    pub(super) lanes: LaneSet,
    /// Tells its client when it no longer is the newest.
    pub(super) stale: Arc<AtomicBool>,
    /// Frames sent to the guest by its lanes.
    pub(super) sent: Arc<AtomicU64>,
    pub(super) client: Weak<VnicSession>,
}

#[derive(Debug)]
pub(super) struct Vnic {
    pub(super) config: VnicConfig,
    /// Replaced as a whole.
    policy: RwLock<Arc<Policy>>,
    /// Of the newest session of the host that it is at.
    pub(super) current: RwLock<Option<Current>>,
    /// Of the host that it moves to, or from. Locked with `current` locked.
    waiting: Mutex<Vec<Current>>,
    /// Its guest, if that is of this process, with the name of the host that this is.
    receiver: RwLock<Option<(String, Weak<dyn DirectReceiver>)>>,
    /// It was removed: no session begins. Set with `current` locked.
    pub(super) removed: AtomicBool,
    pub(super) counters: VnicCounters,
    link: Mutex<VnicLink>,
    pub(super) probe: Arc<Probe>,
    /// Of one with a static address.
    addresses: RwLock<Option<Arc<AddressService>>>,
}

/// What the host of a vNIC knows of its link.
#[derive(Debug, Default)]
struct VnicLink {
    port_is_up: bool,
    /// What it was told in this session; `None`: nothing.
    told: Option<LinkState>,
}

impl EthernetPort {
    /// Opens the interfaces of `config`, if it has any, and starts its thread, without vNICs.
    ///
    /// # Errors
    /// [`TapError`]; nothing is left behind.
    pub fn start(config: &EthernetPortConfig) -> Result<Self, TapError> {
        let name = match &config.interfaces[..] {
            [interface] => interface.name.clone(),
            _ => config.port.to_string(),
        };
        let step = |step, source| TapError::Step {
            name: name.clone(),
            step,
            source,
        };
        let uplink = Uplink::open(config)?;
        let stop = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .map_err(|error| step("make the stop event", error.into()))?;
        let wire = config.budget.as_ref();
        let wire = wire.map(|budget| PortScheduler::new(Wire::new(budget, now(), [])));
        let wire = wire
            .transpose()
            .map_err(|error| step("make the timer", error.into()))?;
        let shared = Arc::new(PortShared {
            config: config.clone(),
            link: Mutex::new(PortLink {
                wanted: config.up,
                is_up: config.up && uplink.as_ref().is_none_or(|uplink| uplink.look().is_up),
            }),
            uplink,
            switch: Mutex::new(Switch::new(config)),
            outside: Membership::uplink(config.native_vlan),
            vnics: RwLock::default(),
            counters: PortCounters::default(),
            probe: Arc::default(),
            stop,
            wire,
            sessions: AtomicU64::new(0),
            boot: BootThread::default(),
        });
        let thread = shared.uplink.as_ref().map(|_uplink| {
            let reader = shared.clone();
            let builder = std::thread::Builder::new().name(name.clone());
            builder.spawn(move || reader.serve())
        });
        let thread = thread.transpose();
        let thread = thread.map_err(|source| step("start the thread", source))?;
        Ok(Self { shared, thread })
    }

    /// Adds a vNIC of `vm`, which reserves with its first session.
    pub fn add(&self, vm: &VmConfig, vnic: &VnicConfig) {
        let shared = &self.shared;
        if let Some(wire) = &shared.wire {
            let words = PortDevice {
                device: vnic.id,
                vm: PortVm::new(vm),
                ingress: vnic.ingress,
                egress: vnic.egress,
            };
            wire.with(|wire, _| wire.insert(words));
        }
        let (current, waiting, removed, receiver, counters, probe) = Default::default();
        let policy = Arc::new(Policy::new(vnic, shared.config.native_vlan));
        let added = Arc::new(Vnic {
            config: vnic.clone(),
            policy: RwLock::new(policy.clone()),
            current,
            waiting,
            removed,
            receiver,
            addresses: RwLock::new(self.addresses_of(vnic)),
            link: Mutex::default(),
            counters,
            probe,
        });
        let link = shared.lock_link();
        added.tell_link(Some(link.is_up));
        shared.write_vnics().insert(vnic.id, added);
        drop(link);
        shared.lock_switch().insert(vnic.id, policy);
    }

    /// Has the port and its interfaces be up or down, as the states of `config` say.
    ///
    /// # Errors
    /// An interface does not do it; what else is wanted is in force.
    pub fn set_states(&self, config: &EthernetPortConfig) -> io::Result<()> {
        self.shared.lock_link().wanted = config.up;
        let uplink = self.shared.uplink.as_ref();
        let done = uplink.map_or(Ok(()), |uplink| uplink.set_states(config));
        self.shared.look_at_link();
        done
    }

    fn addresses_of(&self, vnic: &VnicConfig) -> Option<Arc<AddressService>> {
        let boot = || self.shared.boot.start(&self.shared);
        AddressService::new(vnic, boot).map(Arc::new)
    }

    /// Has a vNIC of the port told of another static address, or of none, from its next question on.
    pub fn set_addresses(&self, vnic: &VnicConfig) {
        if let Some(known) = self.shared.read_vnics().get(&vnic.id) {
            let addresses = self.addresses_of(vnic);
            let current = known.addresses.write();
            *current.unwrap_or_else(PoisonError::into_inner) = addresses;
        }
    }

    /// Has a vNIC of the port belong to other VLANs, or be watched otherwise, from the next frame on.
    /// The counters of its access lists begin again.
    pub fn set_policy(&self, vnic: &VnicConfig) {
        let shared = &self.shared;
        if let Some(known) = shared.read_vnics().get(&vnic.id) {
            let policy = Arc::new(Policy::new(vnic, shared.config.native_vlan));
            let mut current = known.policy.write().unwrap_or_else(PoisonError::into_inner);
            *current = policy.clone();
            drop(current);
            shared.lock_switch().insert(vnic.id, policy);
            known.tell_link(None);
        }
    }

    /// Removes a vNIC: its sessions carry nothing from now on, what it has waiting is dropped, and
    /// what it reserved is free.
    pub fn remove(&self, device: DeviceId) {
        let shared = &self.shared;
        shared.lock_switch().remove(device);
        let Some(vnic) = shared.write_vnics().remove(&device) else {
            return;
        };
        let mut current = vnic.current.write().unwrap_or_else(PoisonError::into_inner);
        vnic.removed.store(true, Ordering::Relaxed);
        if let Some(Current { stale, .. }) = current.take() {
            stale.store(true, Ordering::Relaxed);
        }
        vnic.waiting().clear();
        drop(current);
        if let Some(wire) = &shared.wire {
            let frames = wire.with(|wire, _| wire.remove(device));
            vnic.counters.dropped_session_ended.add_bytes(frames.len());
        }
    }

    /// Gives a VM other words, in force at once.
    ///
    /// # Errors
    /// They do not fit; nothing has changed.
    pub fn set_vm(&self, vm: &VmConfig) -> Result<(), AdmissionError> {
        if let Some(wire) = &self.shared.wire {
            let vm = PortVm::new(vm);
            wire.with(|wire, now| wire.set_vm(now, &vm))?;
            // The timer stands at what the old words allowed.
            self.shared.run_wire();
        }
        Ok(())
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> PortName {
        self.shared.config.port
    }

    /// The owner of `device` for one session, with what the vNIC reserved on the port until the
    /// session ends; `None` if it is no vNIC of this port.
    ///
    /// # Errors
    /// The port cannot carry what the vNIC reserves; nothing has changed.
    pub fn client(&self, device: DeviceId) -> Result<Option<Arc<dyn LaneClient>>, AdmissionError> {
        let Some(vnic) = self.shared.read_vnics().get(&device).cloned() else {
            return Ok(None);
        };
        let session = self.shared.sessions.fetch_add(1, Ordering::Relaxed);
        if let Some(wire) = &self.shared.wire {
            wire.with(|wire, now| wire.attach(now, device, session))?;
        }
        Ok(Some(VnicSession::new(self.shared.clone(), vnic, session)))
    }

    /// Has frames for a vNIC of the port go to `receiver`, as far as its session is of `host`, which is
    /// this process, and where that is in order.
    pub fn attach_receiver(
        &self,
        device: DeviceId,
        host: &str,
        receiver: Weak<dyn DirectReceiver>,
    ) {
        if let Some(vnic) = self.shared.read_vnics().get(&device) {
            let known = vnic.receiver.write();
            let attached = Some((host.to_owned(), receiver));
            *known.unwrap_or_else(PoisonError::into_inner) = attached;
        }
    }

    /// The session of `host` and that epoch, if it is the one that has the vNIC, for the agent of that
    /// host in this process. `None` as well on a port with a rate: there frames wait, with their credit.
    #[must_use]
    pub fn direct_vnic(
        &self,
        device: DeviceId,
        host: &str,
        epoch: u16,
    ) -> Option<Arc<dyn DirectVnic>> {
        if self.shared.wire.is_some() {
            return None;
        }
        let current = self.shared.read_vnics().get(&device)?.current()?;
        let session = current.client.upgrade()?;
        let is_own = (current.lanes.peer(), current.lanes.epoch()) == (host, epoch);
        is_own.then_some(session as Arc<dyn DirectVnic>)
    }

    /// Gives a vNIC other words at this port, in force at once and kept for later sessions. What
    /// waits stays in its order. A port without a rate has nothing to change.
    ///
    /// # Errors
    /// They do not fit; nothing has changed.
    pub fn set_rates(
        &self,
        device: DeviceId,
        ingress: DeviceRate,
        egress: DeviceRate,
    ) -> Result<(), AdmissionError> {
        if let Some(wire) = &self.shared.wire {
            wire.with(|wire, now| wire.set_rates(now, device, ingress, egress))?;
            // The timer stands at what the old words allowed.
            self.shared.run_wire();
        }
        Ok(())
    }

    /// The schedulers of a port with a rate: each way.
    #[must_use]
    pub fn hops(&self) -> Vec<Arc<dyn Hop>> {
        let Some(budget) = &self.shared.config.budget else {
            return Vec::new();
        };
        let frame_bytes_max = u32::try_from(CHARGE_BYTES_MAX).unwrap_or(u32::MAX);
        let directions = [
            (Direction::Ingress, "ingress"),
            (Direction::Egress, "egress"),
        ];
        let hops = directions.map(|(direction, name)| {
            let vnics = self.shared.read_vnics();
            let names = vnics
                .iter()
                .map(|(device, vnic)| (*device, vnic.config.name.clone()));
            // Not kept alive by whoever watches it.
            let shared = Arc::downgrade(&self.shared);
            let name = format!("{} {name}", budget.hop());
            let hop = PortHop::new(name, names.collect(), move |look| {
                if let Some(shared) = shared.upgrade()
                    && let Some(wire) = &shared.wire
                {
                    wire.with(|wire, now| look(wire.watch(direction, frame_bytes_max), now));
                }
            });
            Arc::new(hop) as Arc<dyn Hop>
        });
        hops.into()
    }

    /// Begins a capture of what is at the interface of the port, or, of a private one, of what its
    /// vNICs send.
    #[must_use]
    pub fn start_capture(&self, wanted: &FramesWanted) -> Box<dyn Capture> {
        let name = format!("ethernet-port {}", self.name());
        let interfaces = self.shared.config.interfaces.iter();
        let interfaces: Vec<_> = interfaces.map(|it| it.name.as_str()).collect();
        let description = match interfaces.join(", ") {
            none if none.is_empty() => format!("{name}: what its vNICs send"),
            some => format!("{name}, interface {some}: outbound goes to the LAN"),
        };
        self.shared.probe.start_capture(name, description, wanted)
    }

    /// Begins a capture of a vNIC of the port; `None` if none is called `name`.
    #[must_use]
    pub fn start_vnic_capture(
        &self,
        name: &str,
        wanted: &FramesWanted,
    ) -> Option<Box<dyn Capture>> {
        let vnics = self.shared.read_vnics();
        let vnic = vnics.values().find(|vnic| vnic.config.name == name)?;
        let probe = vnic.probe.clone();
        drop(vnics);
        let port = self.name();
        let description =
            format!("vnic {name} of ethernet-port {port}: outbound is what the guest sends");
        Some(probe.start_capture(name.to_owned(), description, wanted))
    }

    /// Where copies for its vNIC called `name` go; `None` if none is called so.
    #[must_use]
    pub fn mirror_target(&self, name: &str) -> Option<MirrorTarget> {
        let vnics = self.shared.read_vnics();
        let vnic = vnics.values().find(|vnic| vnic.config.name == name)?;
        Some(MirrorTarget(Arc::downgrade(vnic)))
    }

    /// Has copies of what is at the port, or at one of its vNICs, go to another vNIC, or to none.
    ///
    /// # Errors
    /// There is no thread for it; nothing has changed.
    pub fn set_mirror(
        &self,
        vnic: Option<DeviceId>,
        target: Option<&MirrorTarget>,
    ) -> io::Result<()> {
        let shared = &self.shared;
        // Its lock is not waited for with that of the vNICs, which whoever has it may want.
        let probe = match vnic {
            None => Some(shared.probe.clone()),
            Some(device) => shared.read_vnics().get(&device).map(|it| it.probe.clone()),
        };
        probe.map_or(Ok(()), |probe| probe.set_mirror(target))
    }

    /// The names of its vNICs.
    #[must_use]
    pub fn vnic_names(&self) -> Vec<String> {
        let vnics = self.shared.read_vnics();
        vnics
            .values()
            .map(|vnic| vnic.config.name.clone())
            .collect()
    }

    /// The counters of the port, of its vNICs, and of each rule of their access lists.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Snapshot> {
        let port = self
            .shared
            .counters
            .snapshot(format!("ethernet-port {}", self.name()));
        let vnics_now = self.shared.read_vnics();
        let lists = vnics_now.values();
        let lists = lists.flat_map(|vnic| vnic.policy().snapshots(&vnic.config.name));
        let vnics = vnics_now.values().map(|vnic| {
            let mut snapshot = vnic.counters.snapshot(format!("vnic {}", vnic.config.name));
            let link_up = u64::from(vnic.current().is_some());
            snapshot.counts.push(("link_up", link_up));
            if let Some(wire) = &self.shared.wire {
                let queued = wire.with(|wire, _| wire.queued(vnic.config.id));
                let micros = u64::try_from(queued.waited.as_micros()).unwrap_or(u64::MAX);
                snapshot.counts.extend([
                    ("port_queued_frames", queued.frames.into()),
                    ("port_queued_bytes", queued.bytes),
                    ("port_waited_us", micros),
                ]);
            }
            snapshot
        });
        let addresses = vnics_now.values();
        let addresses =
            addresses.filter_map(|vnic| Some(vnic.addresses()?.snapshot(&vnic.config.name)));
        let all = std::iter::once(port).chain(vnics);
        all.chain(addresses).chain(lists).collect()
    }
}

impl Drop for EthernetPort {
    fn drop(&mut self) {
        if let Err(error) = self.shared.stop.write(1) {
            // A counter at its maximum is a stop that is pending already.
            tracing::debug!(%error, "port's thread was told to stop before");
        }
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by the thread itself.
            drop(thread.join());
        }
    }
}

impl Vnic {
    /// If it has a static address.
    pub(super) fn addresses(&self) -> Option<Arc<AddressService>> {
        let addresses = self.addresses.read();
        addresses.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn waiting(&self) -> MutexGuard<'_, Vec<Current>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn policy(&self) -> Arc<Policy> {
        let policy = self.policy.read().unwrap_or_else(PoisonError::into_inner);
        policy.clone()
    }

    /// A session begins: its host knows nothing of the link.
    pub(super) fn tell_link_anew(&self) {
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        link.told = None;
        drop(link);
        self.tell_link(None);
    }

    /// Tells the host of the vNIC's link unless it knows. What its lane has no room for is told when
    /// it has ([`LaneClient::writable`]).
    pub(super) fn tell_link(&self, port_is_up: Option<bool>) {
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(is_up) = port_is_up {
            link.port_is_up = is_up;
        }
        let state = match link.port_is_up && self.policy().up {
            true => LinkState::Up,
            false => LinkState::Down,
        };
        if link.told == Some(state) {
            return;
        }
        let Some(Current { lanes, .. }) = self.current() else {
            return;
        };
        let unit = FrameBuffer::from_payload(&state.bytes());
        let queued = lanes.queue(&mut vec![(VirtualLane::TaskManagement, unit)]);
        if queued.is_ok() {
            link.told = Some(state);
            drop(link);
            lanes.flush();
        }
    }

    pub(super) fn current(&self) -> Option<Current> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.clone()
    }

    /// Its guest, if that is of this process and `lanes` are those of its host.
    pub(super) fn receiver(&self, lanes: &LaneSet) -> Option<Arc<dyn DirectReceiver>> {
        let receiver = self.receiver.read();
        let receiver = receiver.unwrap_or_else(PoisonError::into_inner);
        let (_, receiver) = receiver.as_ref().filter(|(host, _)| host == lanes.peer())?;
        receiver.upgrade()
    }

    /// Shows a frame to the guest that does not get there.
    pub(super) fn not_delivered(&self, payload: &[u8], dropped: &'static str) {
        let showing = self.probe.begin();
        self.show(showing, FrameDirection::Inbound, &[payload], Some(dropped));
    }

    /// Shows a frame from the guest, and why it goes nowhere.
    pub(super) fn outbound(&self, payload: &[u8], dropped: Option<&'static str>) {
        let showing = self.probe.begin();
        self.show(showing, FrameDirection::Outbound, &[payload], dropped);
    }

    pub(super) fn show(
        &self,
        showing: Showing<'_>,
        direction: FrameDirection,
        pieces: &[&[u8]],
        dropped: Option<&'static str>,
    ) {
        let seen = Seen {
            direction,
            pieces,
            dropped,
            copy: false,
        };
        showing.end(seen, || Some(self.config.name.clone()));
    }
}

impl PortShared {
    fn lock_switch(&self) -> MutexGuard<'_, Switch> {
        // Whole between any two statements: going on is safe.
        self.switch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_link(&self) -> MutexGuard<'_, PortLink> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has vNICs and the LAN told of what the interfaces are now.
    fn look_at_link(&self) {
        let mut link = self.lock_link();
        let shift = self.uplink.as_ref().map(Uplink::look);
        let is_up = link.wanted && shift.is_none_or(|shift| shift.is_up);
        if link.is_up != is_up {
            link.is_up = is_up;
            tracing::info!(port = %self.config.port, is_up, "link of ethernet port");
            for vnic in self.read_vnics().values() {
                vnic.tell_link(Some(is_up));
            }
        }
        drop(link);
        if shift.is_some_and(|shift| shift.moved) {
            tracing::info!(port = %self.config.port, uplink = ?self.uplink, "another port is active");
            self.announce();
        }
    }

    /// Has the LAN learn where the vNICs are now: a RARP request of each, as QEMU sends for a guest
    /// that has moved.
    fn announce(&self) {
        let vnics: Vec<_> = self.read_vnics().values().cloned().collect();
        for vnic in vnics {
            let policy = vnic.policy();
            let payload = announcement(policy.mac.0);
            for vlan in policy.membership.announced() {
                let forward = Forward {
                    to: Destination::Uplink,
                    vlan: Some(vlan),
                    dscp: None,
                    listeners: None,
                };
                if let Some(outgoing) = self.outgoing(&payload, &forward) {
                    self.write(outgoing.pieces());
                }
            }
        }
    }

    pub(super) fn read_vnics(&self) -> RwLockReadGuard<'_, BTreeMap<DeviceId, Arc<Vnic>>> {
        self.vnics.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_vnics(&self) -> RwLockWriteGuard<'_, BTreeMap<DeviceId, Arc<Vnic>>> {
        self.vnics.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn forward(
        &self,
        source: Source,
        header: &VirtioNetHeader,
        frame: &[u8],
    ) -> Result<Forward, DropReason> {
        let forward = self.lock_switch().forward(now(), source, header, frame);
        // What vNICs send to the LAN is seen where it leaves.
        if source == Source::Uplink || self.uplink.is_none() {
            let dropped = forward.as_ref().err().map(|reason| reason.name());
            let pieces = [header.as_bytes(), frame];
            let showing = self.probe.begin();
            self.show(showing, FrameDirection::Inbound, &pieces, dropped);
        }
        forward
    }

    /// Shows a frame at the port, and why it goes no further.
    fn show(
        &self,
        showing: Showing<'_>,
        direction: FrameDirection,
        pieces: &[&[u8]],
        dropped: Option<&'static str>,
    ) {
        let seen = Seen {
            direction,
            pieces,
            dropped,
            copy: false,
        };
        showing.end(seen, || self.vnic_of(direction, pieces));
    }

    /// Whose frame it is, by the address of the vNIC.
    fn vnic_of(&self, direction: FrameDirection, pieces: &[&[u8]]) -> Option<String> {
        let bytes = pieces.iter().copied().flatten().copied();
        let addresses: Vec<u8> = bytes.skip(HEADER_BYTES).take(12).collect();
        let (to, from) = addresses.split_at_checked(6)?;
        let from_vnic = direction == FrameDirection::Outbound || self.uplink.is_none();
        let own = if from_vnic { from } else { to };
        let vnics = self.read_vnics();
        let vnic = vnics.values().find(|vnic| vnic.config.mac.0 == own)?;
        Some(vnic.config.name.clone())
    }

    /// Those of `devices` that a frame to a group is for.
    pub(super) fn listeners(
        &self,
        forward: &Forward,
        devices: impl Iterator<Item = DeviceId>,
    ) -> Vec<DeviceId> {
        let Some(who) = forward.listeners else {
            return devices.collect();
        };
        let (switch, now) = (self.lock_switch(), now());
        devices.filter(|it| switch.hears(now, *it, who)).collect()
    }

    /// A frame as it goes to the TAP; `None`: it does not, and is counted.
    pub(super) fn outgoing<'a>(
        &self,
        payload: &'a [u8],
        forward: &Forward,
    ) -> Option<Outgoing<'a>> {
        self.uplink.as_ref()?;
        let tag = match forward.vlan {
            None => Ok(TagEdit::Keep),
            Some(vlan) => self.outside.egress(vlan)?,
        };
        let dscp = forward.dscp;
        let outgoing = tag.and_then(|tag| {
            Outgoing::new(payload, Rewrite { tag, dscp }).ok_or(DropReason::Oversize)
        });
        if let Err(reason) = &outgoing {
            self.counters.dropped_to_interface(*reason);
            let dropped = Some(reason.name());
            let showing = self.probe.begin();
            self.show(showing, FrameDirection::Outbound, &[payload], dropped);
        }
        outgoing.ok()
    }

    /// What frames of the port may leave unfinished.
    pub(super) fn offloads(&self) -> Offloads {
        self.uplink.as_ref().map_or(OFFLOADING, Uplink::offloads)
    }

    /// Writes header and frame to the TAP; without one nothing is written.
    pub(super) fn write(&self, pieces: [&[u8]; 2]) {
        let Some(uplink) = &self.uplink else { return };
        let showing = self.probe.begin();
        let dropped = match uplink.write(pieces) {
            Ok(()) => {
                self.counters.sent_frames.add(1);
                self.counters.sent_bytes.add_bytes(frame_bytes(&pieces));
                None
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.counters.dropped_full.add(1);
                Some("full")
            }
            Err(error) => {
                self.counters.dropped_refused.add(1);
                tracing::trace!(%error, ?uplink, "frame refused");
                Some("refused")
            }
        };
        self.show(showing, FrameDirection::Outbound, &pieces, dropped);
    }

    /// Writes what the scheduler lets go now, unless another thread is at it.
    pub(super) fn run_wire(&self) {
        if let Some(wire) = &self.wire {
            wire.run(|frames| self.write_held(frames));
        }
    }

    fn write_held(&self, frames: Vec<HeldFrame>) {
        let mut held: Vec<(LaneSet, u32)> = Vec::new();
        for frame in frames {
            let HeldFrame {
                device,
                payload,
                lanes,
                stale,
            } = frame;
            if stale.load(Ordering::Relaxed) {
                // Its credit went with its session.
                self.dropped_with_session(device, 1);
                continue;
            }
            self.write([&[], &payload]);
            let blocks = blocks(payload.len());
            let same = |known: &LaneSet| {
                known.device() == lanes.device() && known.epoch() == lanes.epoch()
            };
            match held.iter_mut().find(|(known, _)| same(known)) {
                Some((_, sum)) => *sum += blocks,
                None => held.push((lanes, blocks)),
            }
        }
        for (lanes, blocks) in held {
            credit::release(&lanes, VirtualLane::Network, blocks);
        }
    }

    pub(super) fn dropped_with_session(&self, device: DeviceId, frames: usize) {
        if let Some(vnic) = self.read_vnics().get(&device) {
            vnic.counters.dropped_session_ended.add_bytes(frames);
        }
    }

    /// The thread of a port with a TAP.
    fn serve(&self) {
        let Some(uplink) = &self.uplink else { return };
        let mut arrivals = Arrivals {
            bytes: vec![0; BATCH_BYTES + PAYLOAD_BYTES_MAX],
            passed: Vec::new(),
            waiting: None,
        };
        let mut again_at = None;
        loop {
            let members: Vec<_> = (0..).zip(uplink.members()).collect();
            let readable: Vec<_> = members.iter().filter(|(_, it)| it.is_readable()).collect();
            let mut fds = vec![PollFd::new(self.stop.as_fd(), PollFlags::POLLIN)];
            if let Some(wire) = &self.wire {
                fds.push(PollFd::new(wire.timer(), PollFlags::POLLIN));
            }
            let watches = fds.len();
            fds.extend(
                readable
                    .iter()
                    .map(|(_, it)| PollFd::new(it.watch_fd(), PollFlags::POLLIN)),
            );
            let media = fds.len();
            // Only this thread makes frames arrive: while one waits for the wire, none is read.
            if arrivals.waiting.is_none() {
                fds.extend(
                    readable
                        .iter()
                        .map(|(_, it)| PollFd::new(it.as_fd(), PollFlags::POLLIN)),
                );
            }
            let timeout = again_at.map(|time: MonotonicTime| {
                let wait = time.saturating_duration_since(now());
                TimeSpec::from_duration(wait.max(WAKE_SLACK))
            });
            match ppoll(&mut fds, timeout, None) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return self.failed(None, &error.into()),
            }
            let rang = |at: usize| {
                let events = fds.get(at).and_then(PollFd::revents);
                events.is_some_and(|events| !events.is_empty())
            };
            if rang(0) {
                return;
            }
            if let Some(wire) = &self.wire
                && rang(1)
            {
                wire.acknowledge_timer();
                self.run_wire();
            }
            let mut news = false;
            for (at, (_, member)) in (watches..).zip(&readable) {
                if !rang(at) {
                    continue;
                }
                news = true;
                if let Err(error) = uplink.take_news(member) {
                    self.failed(Some(member), &error);
                }
            }
            if news {
                self.look_at_link();
            }
            let waiting = arrivals.waiting.as_ref().map(|(member, _)| *member);
            for (at, (number, member)) in (media..).zip(&readable) {
                if !(rang(at) || waiting == Some(*number)) {
                    continue;
                }
                match self.take_arrivals(*number, member, &mut arrivals) {
                    Ok(again) => again_at = again,
                    Err(error) => {
                        // Frames that wait for the wire still have credit to give back.
                        self.failed(Some(member), &error);
                        self.look_at_link();
                        again_at = None;
                    }
                }
                if arrivals.waiting.is_some() {
                    break;
                }
            }
        }
    }

    /// An interface was deleted, or the kernel is out of resources: it is down, vNICs still reach
    /// each other.
    fn failed(&self, member: Option<&Member>, error: &io::Error) {
        if let (Some(member), Some(uplink)) = (member, &self.uplink) {
            uplink.fail(member);
        }
        let (port, interface) = (self.config.port, member.map(Member::name));
        tracing::error!(%port, interface, %error, "ethernet port failed, restart the director");
    }

    /// Takes frames from the LAN as long as the wire carries them; when to go on if it does not.
    fn take_arrivals(
        &self,
        number: usize,
        member: &Member,
        arrivals: &mut Arrivals,
    ) -> io::Result<Option<MonotonicTime>> {
        let again_at = self.read_arrivals(number, member, arrivals);
        let mut batch = Batch::new(self);
        for payload in &arrivals.passed {
            let payload = arrivals.bytes.get(payload.clone()).unwrap_or_default();
            self.receive_outside(payload, &mut batch);
        }
        drop(batch);
        arrivals.passed.clear();
        if let Some((_, waiting)) = &mut arrivals.waiting {
            arrivals.bytes.copy_within(waiting.clone(), 0);
            *waiting = 0..waiting.len();
        }
        again_at
    }

    /// Reads what there is into the room of a batch; when to go on if the wire is busy until then.
    fn read_arrivals(
        &self,
        number: usize,
        member: &Member,
        arrivals: &mut Arrivals,
    ) -> io::Result<Option<MonotonicTime>> {
        while arrivals.passed.len() < BATCH_FRAMES_MAX {
            let (is_new, payload) = match arrivals.waiting.take() {
                Some((_, waiting)) => (false, waiting),
                None => {
                    let begin = arrivals.passed.last().map_or(0, |last| last.end);
                    let room = arrivals.bytes.get_mut(begin..).unwrap_or_default();
                    if room.len() < PAYLOAD_BYTES_MAX {
                        break;
                    }
                    match member.read(room) {
                        Ok(bytes) => (true, begin..begin + bytes),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                        Err(error) => return Err(error),
                    }
                }
            };
            if let Some(uplink) = &self.uplink
                && !uplink.takes_from(number)
            {
                self.counters.dropped_backup.add(1);
                continue;
            }
            if let Some(wire) = &self.wire {
                let bytes = arrivals.bytes.get(payload.clone()).unwrap_or_default();
                let passes = wire.with(|wire, now| {
                    if is_new {
                        wire.arrive(now, charge_bytes(bytes));
                    }
                    wire.may_pass(now)
                });
                if let Err(time) = passes {
                    arrivals.waiting = Some((number, payload));
                    return Ok(Some(time));
                }
            }
            arrivals.passed.push(payload);
        }
        Ok(None)
    }

    fn receive_outside<'a>(&'a self, payload: &'a [u8], batch: &mut Batch<'a>) {
        let counters = &self.counters;
        counters.received_frames.add(1);
        counters.received_bytes.add_bytes(frame_bytes(&[payload]));
        let valid = VirtioNetHeader::split(payload)
            .filter(|(header, frame)| header.check(frame.len(), Offloads::ALL).is_ok());
        let Some((header, frame)) = valid else {
            counters.dropped_malformed.add(1);
            let showing = self.probe.begin();
            let dropped = Some("malformed");
            self.show(showing, FrameDirection::Inbound, &[payload], dropped);
            return;
        };
        match self.forward(Source::Uplink, &header, frame) {
            Ok(forward) => batch.send(Source::Uplink, &forward, payload),
            Err(reason) => counters.dropped(reason),
        }
    }
}

/// What the port's thread has read.
struct Arrivals {
    /// Room for the frames of a batch, and at least one of any length.
    bytes: Vec<u8>,
    /// Those that go on now, one behind the other.
    passed: Vec<Range<usize>>,
    /// The one that waits for the wire, with the number of the interface that it came from.
    waiting: Option<(usize, Range<usize>)>,
}

/// Bytes of a frame in pieces, without the header in front of it.
pub(super) fn frame_bytes(pieces: &[&[u8]]) -> usize {
    let bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
    bytes.saturating_sub(HEADER_BYTES)
}

/// What a header and frame are charged with on the wire.
pub(super) fn charge_bytes(payload: &[u8]) -> u32 {
    let bytes = VirtioNetHeader::split(payload).map_or(payload.len(), |(header, frame)| {
        header.wire_bytes(frame.len())
    });
    u32::try_from(bytes.min(CHARGE_BYTES_MAX)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;

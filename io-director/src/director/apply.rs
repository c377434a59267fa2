//! Another lab file for a running director.
//!
//! ```text
//! prepare:  differs? ─> may it change? ─> does it fit? ─> open what is new      (refused: nothing changed)
//! commit:   devices that end ─> hosts, ports ─> rates ─> LUN maps ─> devices that move or begin
//! ```
//!
//! What ends is fenced before anything begins: it leaves the books, so that no session is granted it,
//! then its sessions, then its port. A device that is replaced has no owner in between, and its next
//! one must know the higher generation.
//!
//! Rates fall before they rise, so that a reservation that moves from one device to another fits at
//! every moment.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use fabric_config::{
    ApplyRefused, Change, ChangeKind, Difference, EthernetPortConfig, LabConfig, Object, ObjectId,
    Outcome, PortName, Report, Side, VmConfig, VnicConfig, require_admitted_anew,
};
use fabric_transport::DeviceId;
use lab_program::Live;
use qos::{AdmissionError, DeviceRate, VmRate};
use qos_monitor::Watched;

use super::{Director, devices, san_port, vhbas, vnics};
use crate::ethernet::EthernetPort;
use crate::san::{Lun, Vhba};

/// A lab file that may be applied: everything that it needs is open. Dropped, that is closed again.
#[derive(Debug)]
pub struct Prepared<'a> {
    director: &'a Director,
    before: MutexGuard<'a, LabConfig>,
    after: LabConfig,
    difference: Difference,
    luns: BTreeMap<String, Arc<Lun>>,
    ethernet_ports: BTreeMap<PortName, Arc<EthernetPort>>,
}

/// How long the commands that run at a vHBA are waited for.
const END_MAX: Duration = Duration::from_secs(2);

/// What went wrong, by object.
type Failures = BTreeMap<ObjectId, String>;

/// A rate that is on its way to another: it has fallen, where it falls.
fn fallen(before: DeviceRate, after: DeviceRate) -> DeviceRate {
    if after.cir <= before.cir {
        after
    } else {
        before
    }
}

fn vm_fallen(before: VmRate, after: VmRate) -> VmRate {
    if after.cir <= before.cir {
        after
    } else {
        before
    }
}

/// An error and its causes, on one line.
fn line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        line = format!("{line}: {error}");
        source = error.source();
    }
    line
}

impl Director {
    /// Makes `after` the lab file in force. Whoever it says the same of notices nothing.
    ///
    /// # Errors
    /// [`ApplyRefused`]; nothing has changed.
    pub fn apply(&self, after: LabConfig) -> Result<Report, ApplyRefused> {
        Ok(self.prepare(after)?.commit())
    }

    /// The part of [`Self::apply`] that may refuse. Another lab file waits until this one is committed
    /// or dropped.
    ///
    /// # Errors
    /// [`ApplyRefused`]; nothing has changed.
    pub fn prepare(&self, after: LabConfig) -> Result<Prepared<'_>, ApplyRefused> {
        let before = self.lab.lock().unwrap_or_else(PoisonError::into_inner);
        let difference = Difference::between(&before, &after);
        let refusals = difference.cannot_change(Side::Director);
        if !refusals.is_empty() {
            return Err(ApplyRefused::CannotChange(refusals));
        }
        require_admitted_anew(&before, &after)?;
        let mut prepared = Prepared {
            director: self,
            before,
            after,
            difference,
            luns: BTreeMap::new(),
            ethernet_ports: BTreeMap::new(),
        };
        prepared.open()?;
        Ok(prepared)
    }
}

impl Live for Director {
    fn apply(&self, lab: LabConfig) -> Result<Report, ApplyRefused> {
        Self::apply(self, lab)
    }

    fn refused(&self, lab: &LabConfig, why: &ApplyRefused) -> Report {
        let before = self.lab.lock().unwrap_or_else(PoisonError::into_inner);
        Difference::between(&before, lab).refused(Side::Director, why)
    }

    fn watched(&self) -> Watched {
        Self::watched(self)
    }
}

impl Prepared<'_> {
    /// Opens the media and interfaces that are new.
    fn open(&mut self) -> Result<(), ApplyRefused> {
        for (_, change) in self.difference.changes() {
            let Change::Added(object) = change else {
                continue;
            };
            let unavailable = |error: &dyn Error| ApplyRefused::Unavailable {
                object: object.to_string(),
                reason: line(error),
            };
            match object {
                Object::Lun(lun) => {
                    let open = Lun::open(lun, &self.after.director);
                    let open = open.map_err(|error| unavailable(&error))?;
                    self.luns.insert(lun.name.clone(), Arc::new(open));
                }
                Object::EthernetPort(port) => {
                    let started = EthernetPort::start(port);
                    let started = started.map_err(|error| unavailable(&error))?;
                    self.ethernet_ports.insert(port.port, Arc::new(started));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Does it. What fails all the same is in the report, and the rest is done.
    #[must_use]
    pub fn commit(mut self) -> Report {
        let mut failures = Failures::new();
        self.end_devices();
        self.end_hosts_and_ports();
        self.set_rates(&mut failures);
        self.begin_hosts_and_ports();
        self.set_luns(&mut failures);
        self.move_devices();
        self.begin_devices(&mut failures);
        let changes = self.difference.changes();
        let objects = changes.map(|(id, change)| {
            let failed = failures.remove(id);
            change.report(failed.map_or(Outcome::Done, Outcome::Failed))
        });
        let report = Report {
            objects: objects.collect(),
            refused: None,
        };
        *self.before = self.after;
        report
    }

    fn end_devices(&self) {
        let director = self.director;
        let mut state = director.books.write();
        let ended = vnics(&self.before).map(|(host, _, vnic)| (host, vnic.id));
        let ended = ended.chain(vhbas(&self.before).map(|(host, _, vhba)| (host, vhba.id)));
        let ended: Vec<_> = ended.filter(|(_, id)| self.difference.ends(*id)).collect();
        for (_, id) in &ended {
            state.devices.remove(id);
        }
        drop(state);
        for (host, id) in &ended {
            if let Some(endpoint) = director.acceptor.endpoint(&host.name) {
                endpoint.detach(*id);
            }
        }
        let mut gone = Vec::new();
        let mut state = director.books.write();
        for (_, _, vnic) in vnics(&self.before).filter(|(.., it)| self.difference.ends(it.id)) {
            if let Some(port) = state.ethernet_ports.get(&vnic.port) {
                port.remove(vnic.id);
            }
        }
        for (_, _, vhba) in vhbas(&self.before).filter(|(.., it)| self.difference.ends(it.id)) {
            if let Some(port) = state.san_ports.get(&vhba.port) {
                port.remove(vhba.id);
            }
            gone.extend(state.vhbas.remove(&vhba.id));
        }
        drop(state);
        let_go(gone);
    }

    fn end_hosts_and_ports(&self) {
        let director = self.director;
        let mut state = director.books.write();
        let mut hosts = Vec::new();
        let mut ports = Vec::new();
        for (id, change) in self.difference.changes() {
            match (id, change.kind()) {
                (ObjectId::Host(name), ChangeKind::Removed) => {
                    state.downlinks.remove(name);
                    hosts.push(name);
                }
                (ObjectId::EthernetPort(port), ChangeKind::Removed) => {
                    ports.extend(state.ethernet_ports.remove(port));
                }
                _ => {}
            }
        }
        let staying = vhbas(&self.before).filter(|(.., it)| !self.difference.ends(it.id));
        let staying: Vec<_> = staying.map(|(.., vhba)| vhba.port).collect();
        // What is needed again begins with its present words.
        let idle = state
            .san_ports
            .extract_if(.., |port, _| !staying.contains(port));
        let idle: Vec<_> = idle.collect();
        drop(state);
        for host in hosts {
            director.acceptor.let_go(host);
        }
        drop((ports, idle));
    }

    fn begin_hosts_and_ports(&mut self) {
        let mut state = self.director.books.write();
        for host in &self.after.hosts {
            let downlink = host.downlink.clone();
            state.downlinks.insert(host.name.clone(), downlink);
        }
        state.edge_switches.clone_from(&self.after.edge_switches);
        state.ethernet_ports.append(&mut self.ethernet_ports);
        state.luns.append(&mut self.luns);
        drop(state);
        self.watch_luns();
    }

    fn watch_luns(&self) {
        let luns: Vec<_> = self.director.books.read().luns.values().cloned().collect();
        self.director.watch.set(luns.into_iter());
    }

    /// Rates of devices and VMs that stay.
    fn set_rates(&self, failures: &mut Failures) {
        let mut devices: Vec<(&ObjectId, DeviceId, [[DeviceRate; 2]; 2])> = Vec::new();
        let mut vms: Vec<(&ObjectId, &VmConfig, &VmConfig)> = Vec::new();
        for (id, change) in self.difference.changes() {
            let Change::Changed { before, after } = change else {
                continue;
            };
            if change.kind() == ChangeKind::Replaced {
                continue;
            }
            match (&**before, &**after) {
                (Object::Vnic(_, before), Object::Vnic(_, after)) => {
                    if before.static_address != after.static_address {
                        self.director.set_addresses(after);
                    }
                    if !before.has_policy_of(after) {
                        self.director.set_policy(after);
                    }
                    let before = [before.ingress, before.egress];
                    devices.push((id, after.id, [before, [after.ingress, after.egress]]));
                }
                (Object::Vhba(_, before), Object::Vhba(_, after)) => {
                    let before = [before.ingress, before.egress];
                    devices.push((id, after.id, [before, [after.ingress, after.egress]]));
                }
                (Object::Vm(_, before), Object::Vm(_, after)) => vms.push((id, before, after)),
                (Object::EthernetPort(_), Object::EthernetPort(after)) => {
                    if let Err(error) = self.director.set_states(after) {
                        failures.insert(id.clone(), line(&error));
                    }
                }
                _ => {}
            }
        }
        let mut note = |id: &ObjectId, done: Result<(), AdmissionError>| {
            if let Err(error) = done {
                failures.entry(id.clone()).or_insert(error.with_source());
            }
        };
        for (id, device, [before, after]) in &devices {
            let [[ingress, egress], [new_ingress, new_egress]] = [*before, *after];
            let (ingress, egress) = (fallen(ingress, new_ingress), fallen(egress, new_egress));
            note(id, self.director.set_device_rates(*device, ingress, egress));
        }
        for (id, before, after) in &vms {
            let mut between = (*after).clone();
            between.ingress = vm_fallen(before.ingress, after.ingress);
            between.egress = vm_fallen(before.egress, after.egress);
            note(id, self.director.set_vm(&between));
        }
        for (id, _, after) in &vms {
            note(id, self.director.set_vm(after));
        }
        for (id, device, [_, [ingress, egress]]) in &devices {
            note(
                id,
                self.director.set_device_rates(*device, *ingress, *egress),
            );
        }
    }

    fn set_luns(&self, failures: &mut Failures) {
        let staying = vhbas(&self.after).filter(|(.., it)| !self.difference.begins(it.id));
        for (.., vhba) in staying {
            // Also of those that do not differ: what failed the last time is tried again.
            let id = ObjectId::Vhba(vhba.id);
            let state = self.director.books.read();
            let (known, luns) = (state.vhbas.get(&vhba.id).cloned(), state.luns.clone());
            if let Some(port) = state.san_ports.get(&vhba.port) {
                port.name(vhba);
            }
            drop(state);
            if let Some(Err(error)) = known.map(|known| known.set_luns(vhba, &luns)) {
                failures.entry(id).or_insert(line(&error));
            }
        }
        let mut state = self.director.books.write();
        state.luns.retain(|name, _| self.after.lun(name).is_some());
        drop(state);
        self.watch_luns();
    }

    /// Devices that stay and are at other hosts. One that such a device has left lets it go.
    fn move_devices(&self) {
        let mut state = self.director.books.write();
        let mut left = Vec::new();
        for (id, device) in devices(&self.after) {
            let Some(known) = state.devices.get_mut(&id) else {
                continue;
            };
            let hosts = known.hosts().filter(|host| !device.is_of(host));
            left.extend(hosts.map(|host| (host.clone(), id)));
            (known.host, known.moves_to) = (device.host, device.moves_to);
        }
        drop(state);
        for (host, id) in left {
            if let Some(endpoint) = self.director.acceptor.endpoint(&host) {
                endpoint.detach(id);
            }
        }
    }

    fn begin_devices(&self, failures: &mut Failures) {
        let begins = |id: DeviceId| self.difference.begins(id);
        for (_, vm, vnic) in vnics(&self.after).filter(|(.., it)| begins(it.id)) {
            let port = self
                .director
                .books
                .read()
                .ethernet_ports
                .get(&vnic.port)
                .cloned();
            if let Some(port) = port {
                port.add(vm, vnic);
            }
        }
        for (_, vm, vhba) in vhbas(&self.after).filter(|(.., it)| begins(it.id)) {
            let mut state = self.director.books.write();
            let luns = state.luns.clone();
            let port = san_port(&self.after, vhba.port, &mut state.san_ports);
            drop(state);
            let started = port.and_then(|port| {
                port.add(vm, vhba);
                Vhba::start(vhba, &luns, &port)
            });
            match started {
                Ok(started) => {
                    let started = Arc::new(started);
                    self.director.books.write().vhbas.insert(vhba.id, started);
                }
                Err(error) => {
                    failures.insert(ObjectId::Vhba(vhba.id), line(&error));
                }
            }
        }
        let failed = self.director.books.read().set_mirrors(&self.after);
        failures.extend(failed.into_iter().map(|(id, error)| (id, line(&error))));
        let mut state = self.director.books.write();
        for (id, device) in devices(&self.after).filter(|(id, _)| begins(*id)) {
            state.devices.insert(id, device);
        }
    }
}

/// Ends vHBAs. A medium that does not answer is waited for by a thread of its own.
fn let_go(vhbas: Vec<Arc<Vhba>>) {
    if vhbas.is_empty() {
        return;
    }
    let (ended, waiting) = mpsc::channel::<()>();
    let ends = thread::Builder::new().name("vhba-end".to_owned());
    let ends = ends.spawn(move || {
        drop(vhbas);
        drop(ended);
    });
    match ends {
        Ok(_detached) => {
            if waiting.recv_timeout(END_MAX) == Err(RecvTimeoutError::Timeout) {
                tracing::warn!("commands of a removed vhba are still at their medium");
            }
        }
        // Dropped by now, and waited for.
        Err(error) => tracing::debug!(%error, "no thread waits for a vhba to end"),
    }
}

impl Director {
    fn set_addresses(&self, vnic: &VnicConfig) {
        if let Some(port) = self.books.read().ethernet_ports.get(&vnic.port) {
            port.set_addresses(vnic);
        }
    }

    fn set_states(&self, port: &EthernetPortConfig) -> io::Result<()> {
        match self.books.read().ethernet_ports.get(&port.port) {
            Some(started) => started.set_states(port),
            None => Ok(()),
        }
    }

    fn set_policy(&self, vnic: &VnicConfig) {
        if let Some(port) = self.books.read().ethernet_ports.get(&vnic.port) {
            port.set_policy(vnic);
        }
    }

    /// Gives a device other words at its port and at the link of its host.
    fn set_device_rates(
        &self,
        device: DeviceId,
        ingress: DeviceRate,
        egress: DeviceRate,
    ) -> Result<(), AdmissionError> {
        self.set_port_rates(device, ingress, egress)?;
        let mut state = self.books.write();
        let Some(known) = state.devices.get_mut(&device) else {
            return Ok(());
        };
        // Whoever attaches it from now on gets these.
        known.egress = egress;
        let hosts: Vec<_> = known.hosts().cloned().collect();
        drop(state);
        let mut endpoints = hosts.iter().filter_map(|host| self.acceptor.endpoint(host));
        endpoints.try_for_each(|endpoint| endpoint.set_rate(device, egress))
    }

    /// Gives a VM other words at its ports and at the link of its host.
    fn set_vm(&self, vm: &VmConfig) -> Result<(), AdmissionError> {
        let mut state = self.books.write();
        let mut hosts = BTreeSet::new();
        for device in state.devices.values_mut() {
            if device.vm.name == vm.name {
                device.vm.rate = vm.egress;
                hosts.extend(device.hosts().cloned());
            }
        }
        let ethernet_ports: Vec<_> = state.ethernet_ports.values().cloned().collect();
        let san_ports: Vec<_> = state.san_ports.values().cloned().collect();
        drop(state);
        for port in ethernet_ports {
            port.set_vm(vm)?;
        }
        for port in san_ports {
            port.set_vm(vm)?;
        }
        let mut endpoints = hosts.iter().filter_map(|host| self.acceptor.endpoint(host));
        endpoints.try_for_each(|endpoint| endpoint.set_vm_rate(&vm.name, vm.egress))
    }
}

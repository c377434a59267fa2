//! Another lab file for a running host agent.
//!
//! Like the director's (`io-director/src/director/apply.rs`): everything is checked before anything
//! changes, what ends does so before anything begins, and rates fall before they rise. A director in
//! this process takes the file in between.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;

use anyhow::Result;
use fabric_config::{
    ApplyRefused, Change, ChangeKind, Difference, HostConfig, LabConfig, Object, ObjectId, Outcome,
    Report, Side, VmConfig, require_admitted_anew,
};
use fabric_transport::DeviceId;
use fabric_transport::endpoint::VmGrant;
use io_director::Director;
use lab_program::Live;
use qos::{AdmissionError, BitRate, DeviceRate, VmRate};
use qos_monitor::Watched;

use super::{Device, HostAgent, names, vhba_device, vnic_device};

/// A device that is to be served.
struct New {
    id: ObjectId,
    device: Device,
}

impl HostAgent {
    /// Makes `after` the lab file in force, at a director in this process too. Whoever it says the
    /// same of notices nothing.
    ///
    /// # Errors
    /// [`ApplyRefused`]; nothing has changed.
    pub fn apply(&self, after: LabConfig) -> Result<Report, ApplyRefused> {
        let mut before = self.lab.lock().unwrap_or_else(PoisonError::into_inner);
        let difference = Difference::between(&before, &after);
        let side = Side::Host(&self.name);
        let refusals = difference.cannot_change(side);
        if !refusals.is_empty() {
            return Err(ApplyRefused::CannotChange(refusals));
        }
        require_admitted_anew(&before, &after)?;
        let hosts = (
            before.serving_host(&self.name),
            after.serving_host(&self.name),
        );
        let (Some(was), Some(host)) = hosts else {
            // Said above: a host of its own that goes is refused.
            return Ok(Report::default());
        };
        // One that arrives or leaves by a move goes on at the other host.
        let (ids_before, ids_after) = (ids(&was), ids(&host));
        let ended = ids_before.iter().copied();
        let ended: BTreeSet<_> = ended
            .filter(|id| !ids_after.contains(id) || difference.ends(*id))
            .collect();
        let begins = |id: DeviceId| !ids_before.contains(&id) || difference.begins(id);
        let new = new_devices(&after, &host, &begins)?;
        let director = self.director.as_ref();
        let director = director.map(|director: &Director| director.prepare(after.clone()));
        let director = director.transpose()?;
        let mut failures = BTreeMap::new();
        // What leaves by a move stays in its guest.
        let leaving = names(&was).into_iter();
        let leaving: Vec<_> = leaving.filter(|(id, _)| difference.ends(*id)).collect();
        self.plugs
            .release(leaving.iter().map(|(_, name)| name.as_str()));
        self.end_devices(&ended);
        let mut report = director.map_or_else(Report::default, |director| director.commit());
        self.set_rates(&difference, &mut failures);
        for New { id, device } in new {
            if let Err(error) = self.begin(&host, device) {
                failures.insert(id, format!("{error:#}"));
            }
        }
        self.set_moves(&host);
        self.link.set_devices(names(&host));
        self.view.set(&host);
        self.plugs.set(&host);
        for (id, change) in difference.changes().filter(|(_, it)| it.concerns(side)) {
            let failed = failures.remove(id);
            let own = change.report(failed.map_or(Outcome::Done, Outcome::Failed));
            // The director has told of the others.
            match report.objects.iter_mut().find(|it| it.object == own.object) {
                Some(known) if known.outcome == Outcome::Done => *known = own,
                Some(_) => {}
                None => report.objects.push(own),
            }
        }
        *before = after;
        Ok(report)
    }

    fn end_devices(&self, ended: &BTreeSet<DeviceId>) {
        let mut served = self.served();
        let devices = ended.iter().filter_map(|id| served.remove(id));
        let devices: Vec<_> = devices.collect();
        drop(served);
        // Guests lose their back ends first, so that nothing they still send is taken for lost.
        std::thread::scope(|scope| {
            for device in &devices {
                scope.spawn(|| device.session.stop());
            }
        });
        for id in ended {
            self.uplink.remove(*id);
        }
    }

    fn begin(&self, host: &HostConfig, device: Device) -> Result<()> {
        let director = self.director.as_ref();
        let (served, fabric) = device.serve(host, director, self.allow_unsealed_memory)?;
        self.served().insert(fabric.id, served);
        self.uplink.add(fabric);
        Ok(())
    }

    /// Tells each vNIC whether another host serves it too.
    fn set_moves(&self, host: &HostConfig) {
        let served = self.served();
        for vm in &host.vms {
            let known = vm.vnics.iter().filter_map(|vnic| served.get(&vnic.id));
            for (vnic, _) in known.filter_map(|known| known.vnic.as_ref()) {
                vnic.set_moves(vm.moves_to.is_some());
            }
        }
    }

    fn set_rates(&self, difference: &Difference, failures: &mut BTreeMap<ObjectId, String>) {
        let mut devices: Vec<(&ObjectId, DeviceId, DeviceRate, DeviceRate)> = Vec::new();
        let mut vms: Vec<(&ObjectId, &VmConfig, VmRate)> = Vec::new();
        for (id, change) in difference.changes() {
            let Change::Changed { before, after } = change else {
                continue;
            };
            if !change.concerns(Side::Host(&self.name)) || change.kind() == ChangeKind::Replaced {
                continue;
            }
            match (&**before, &**after) {
                (Object::Vnic(_, before), Object::Vnic(_, after)) => {
                    devices.push((id, after.id, before.ingress, after.ingress));
                }
                (Object::Vhba(_, before), Object::Vhba(_, after)) => {
                    devices.push((id, after.id, before.ingress, after.ingress));
                }
                (Object::Vm(_, before), Object::Vm(_, after)) => {
                    vms.push((id, after, before.ingress));
                }
                _ => {}
            }
        }
        let mut note = |id: &ObjectId, done: Result<(), AdmissionError>| {
            if let Err(error) = done {
                failures.entry(id.clone()).or_insert(error.with_source());
            }
        };
        let falls = |before: BitRate, after: BitRate| after <= before;
        for (id, device, before, after) in &devices {
            if falls(before.cir, after.cir) {
                note(id, self.uplink.set_rate(*device, *after));
            }
        }
        let (down, up): (Vec<_>, Vec<_>) = vms
            .into_iter()
            .partition(|(_, vm, before)| falls(before.cir, vm.ingress.cir));
        for (id, vm, _) in down.into_iter().chain(up) {
            note(id, self.uplink.set_vm_rate(&vm.name, vm.ingress));
        }
        for (id, device, before, after) in &devices {
            if !falls(before.cir, after.cir) {
                note(id, self.uplink.set_rate(*device, *after));
            }
        }
    }
}

impl Live for HostAgent {
    fn apply(&self, lab: LabConfig) -> Result<Report, ApplyRefused> {
        Self::apply(self, lab)
    }

    fn refused(&self, lab: &LabConfig, why: &ApplyRefused) -> Report {
        let before = self.lab.lock().unwrap_or_else(PoisonError::into_inner);
        // Of an embedded director's objects it speaks too.
        let side = match self.director {
            Some(_) => Side::Director,
            None => Side::Host(&self.name),
        };
        Difference::between(&before, lab).refused(side, why)
    }

    fn watched(&self) -> Watched {
        Self::watched(self)
    }
}

fn ids(host: &HostConfig) -> BTreeSet<DeviceId> {
    let vnics = host.vnics().map(|vnic| vnic.id);
    vnics.chain(host.vhbas().map(|vhba| vhba.id)).collect()
}

/// The devices of `host` that begin, made but not served yet.
fn new_devices(
    lab: &LabConfig,
    host: &HostConfig,
    begins: &dyn Fn(DeviceId) -> bool,
) -> Result<Vec<New>, ApplyRefused> {
    let mut new = Vec::new();
    let mut add = |id: ObjectId, object: String, device: Result<Device>| match device {
        Ok(device) => {
            new.push(New { id, device });
            Ok(())
        }
        Err(error) => Err(ApplyRefused::Unavailable {
            object,
            reason: format!("{error:#}"),
        }),
    };
    for vm in &host.vms {
        let grant = VmGrant {
            name: vm.name.clone(),
            rate: vm.ingress,
        };
        for vnic in vm.vnics.iter().filter(|it| begins(it.id)) {
            let object = format!("vnic {}", vnic.name);
            let device = vnic_device(lab, host, vnic, (vm, &grant));
            add(ObjectId::Vnic(vnic.id), object, device)?;
        }
        for vhba in vm.vhbas.iter().filter(|it| begins(it.id)) {
            let object = format!("vhba {}", vhba.name);
            let device = vhba_device(host, vhba, &grant);
            add(ObjectId::Vhba(vhba.id), object, device)?;
        }
    }
    Ok(new)
}

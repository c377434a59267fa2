//! Whether all reservations of a lab file fit, hop by hop, before anything is opened.
//!
//! | hop | direction | who reserves |
//! | --- | --- | --- |
//! | `host1 uplink` | ingress | the host's VMs and devices, and those that move to it |
//! | `host1 downlink` | egress | the same |
//! | `edge-switch switch1` | each | the VMs and devices of the hosts behind it |
//! | `ethernet-port 10/1` | each | the vNICs on the port, of all hosts |
//! | `san-port 12/1` | each | the vHBAs on the port, of all hosts |
//!
//! Each hop is asked the way it is asked at run time: a [`Scheduler`] without frames is the ledger.

use std::collections::BTreeSet;
use std::fmt;

use qos::{
    AdmissionError, BitRate, DeviceRate, LinkBudget, MonotonicTime, Scheduler, VmHandle, VmRate,
};

use crate::address::PortName;
use crate::{HostConfig, LabConfig, VmConfig};

/// Which way data goes, seen from the I/O director as in the original.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// What guests send.
    Ingress,
    /// What guests receive.
    Egress,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// What one hop has promised in one direction.
///
/// Written as one line for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// The hop, its rates and what of them may be reserved.
    pub budget: LinkBudget,
    /// The direction.
    pub direction: Direction,
    /// The sum of what is reserved, without what was refused.
    pub reserved: BitRate,
    /// Who does not fit, in the order of the file.
    pub refusals: Vec<Refusal>,
}

impl Admission {
    /// What may still be reserved.
    #[must_use]
    pub fn free(&self) -> BitRate {
        self.budget.reservable().saturating_sub(self.reserved)
    }

    /// How much more is reserved than there is to reserve; zero unless the hop is oversubscribed.
    #[must_use]
    pub fn over(&self) -> BitRate {
        self.reserved.saturating_sub(self.budget.reservable())
    }
}

impl fmt::Display for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let budget = &self.budget;
        write!(
            f,
            "{} {}: nominal {}, payload {}, reservable {}, reserved {}, free {}",
            budget.hop(),
            self.direction,
            budget.nominal().with_unit(),
            budget.rate().with_unit(),
            budget.reservable().with_unit(),
            self.reserved.with_unit(),
            self.free().with_unit(),
        )?;
        if let Some(protected) = budget.protected() {
            write!(f, ", protected at most {}", protected.with_unit())?;
        }
        if !self.over().is_zero() {
            write!(f, ", oversubscribed by {}", self.over().with_unit())?;
        } else if budget.is_oversubscribed() {
            f.write_str(", may be oversubscribed")?;
        }
        Ok(())
    }
}

/// Somebody whose reservation does not fit a hop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {direction}: {}", error.with_source())]
pub struct Refusal {
    /// The device or VM, as the operator knows it: `vnic vn01.vm1`.
    pub object: String,
    /// The direction.
    pub direction: Direction,
    /// The hop, what was asked and what is free.
    pub error: AdmissionError,
}

/// Reservations of a lab file do not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{}; ask for less, raise reservable, or oversubscribe the hop",
    listed(refusals)
)]
pub struct NotAdmitted {
    /// Who does not fit where; never empty.
    pub refusals: Vec<Refusal>,
}

fn listed(refusals: &[Refusal]) -> String {
    let texts: Vec<_> = refusals.iter().map(Refusal::to_string).collect();
    texts.join("; ")
}

/// Collects what was refused on any hop.
///
/// # Errors
/// [`NotAdmitted`] when there is something.
pub fn require_admitted(admissions: &[Admission]) -> Result<(), NotAdmitted> {
    let refusals: Vec<_> = admissions
        .iter()
        .flat_map(|admission| admission.refusals.iter().cloned())
        .collect();
    if refusals.is_empty() {
        Ok(())
    } else {
        Err(NotAdmitted { refusals })
    }
}

/// What admission knows of a vNIC or vHBA.
struct Device<'a> {
    kind: &'static str,
    name: &'a str,
    port: PortName,
    ingress: DeviceRate,
    egress: DeviceRate,
}

impl Device<'_> {
    fn rate(&self, direction: Direction) -> DeviceRate {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }
}

impl VmConfig {
    fn devices(&self) -> impl Iterator<Item = Device<'_>> {
        let vnics = self.vnics.iter().map(|vnic| Device {
            kind: "vnic",
            name: &vnic.name,
            port: vnic.port,
            ingress: vnic.ingress,
            egress: vnic.egress,
        });
        let vhbas = self.vhbas.iter().map(|vhba| Device {
            kind: "vhba",
            name: &vhba.name,
            port: vhba.port,
            ingress: vhba.ingress,
            egress: vhba.egress,
        });
        vnics.chain(vhbas)
    }

    fn rate(&self, direction: Direction) -> VmRate {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }

    /// The sum of its devices' committed rates.
    pub(crate) fn reserved(&self, direction: Direction) -> BitRate {
        self.devices().fold(BitRate::ZERO, |sum, device| {
            sum.saturating_add(device.rate(direction).cir)
        })
    }

    /// The sum of its devices' weights, automatic or not.
    fn weight(&self, direction: Direction) -> u32 {
        self.devices().fold(0, |sum: u32, device| {
            let rate = device.rate(direction);
            let automatic = u32::try_from(rate.cir.bits_per_second() / 1_000_000);
            let automatic = automatic.unwrap_or(u32::MAX).max(DeviceRate::WEIGHT_MIN);
            sum.saturating_add(match rate.weight {
                0 => automatic,
                weight => weight,
            })
        })
    }
}

impl HostConfig {
    /// What the host is on a hop that it shares with others: a reservation that is the sum of what
    /// its VMs and devices reserve, and a weight that is the sum of theirs.
    #[must_use]
    pub fn share(&self, direction: Direction) -> VmRate {
        let mut share = VmRate::default();
        for vm in &self.vms {
            let rate = vm.rate(direction);
            let reserved = match rate.cir {
                BitRate::ZERO => vm.reserved(direction),
                cir => cir,
            };
            let weight = match rate.weight {
                0 => vm.weight(direction),
                weight => weight,
            };
            share.cir = share.cir.saturating_add(reserved);
            share.weight = share.weight.saturating_add(weight);
        }
        share.weight = share.weight.max(DeviceRate::WEIGHT_MIN);
        share
    }
}

/// Nothing is ever sent, so it may always be the same moment.
const NOW: MonotonicTime = MonotonicTime::from_nanos(0);

/// One hop that is being asked.
struct Hop {
    scheduler: Scheduler<()>,
    direction: Direction,
    refusals: Vec<Refusal>,
}

impl Hop {
    fn new(budget: &LinkBudget, direction: Direction) -> Self {
        Self {
            scheduler: Scheduler::new(budget.clone()),
            direction,
            refusals: Vec::new(),
        }
    }

    fn add_vm(&mut self, vm: &VmConfig) {
        let rate = vm.rate(self.direction);
        // As in `qos::Profiles`: without words it is its devices.
        let handle = if rate == VmRate::default() {
            None
        } else {
            match self.scheduler.add_vm(NOW, &vm.name, rate) {
                Ok(handle) => Some(handle),
                // Its devices have nothing to be a part of.
                Err(error) => return self.refuse(format!("vm {}", vm.name), error),
            }
        };
        for device in vm.devices() {
            self.add_device(handle, &device);
        }
    }

    fn add_device(&mut self, vm: Option<VmHandle>, device: &Device<'_>) {
        let rate = device.rate(self.direction);
        let added = match vm {
            Some(vm) => self.scheduler.add_device_to(NOW, vm, rate),
            None => self.scheduler.add_device(NOW, rate),
        };
        if let Err(error) = added {
            self.refuse(format!("{} {}", device.kind, device.name), error);
        }
    }

    fn refuse(&mut self, object: String, error: AdmissionError) {
        self.refusals.push(Refusal {
            object,
            direction: self.direction,
            error,
        });
    }

    fn done(self) -> Admission {
        Admission {
            budget: self.scheduler.budget().clone(),
            direction: self.direction,
            reserved: self.scheduler.reserved(),
            refusals: self.refusals,
        }
    }
}

impl LabConfig {
    /// Reserves for every device and VM on every hop it crosses, in the order of the file: links of
    /// the hosts, then edge switches, Ethernet ports and SAN ports. Ports without a budget are no
    /// hops.
    #[must_use]
    pub fn admit(&self) -> Vec<Admission> {
        let mut admissions = Vec::new();
        for host in &self.hosts {
            for (budget, direction) in [
                (&host.budget, Direction::Ingress),
                (&host.downlink, Direction::Egress),
            ] {
                let mut hop = Hop::new(budget, direction);
                for vm in self.vms_at(&host.name) {
                    hop.add_vm(vm);
                }
                admissions.push(hop.done());
            }
        }
        for switch in &self.edge_switches {
            for direction in [Direction::Ingress, Direction::Egress] {
                let mut hop = Hop::new(&switch.budget, direction);
                // One that moves from behind the switch to behind it counts once.
                let mut known = BTreeSet::new();
                for vm in switch.hosts.iter().flat_map(|host| self.vms_at(host)) {
                    if known.insert(&vm.name) {
                        hop.add_vm(vm);
                    }
                }
                admissions.push(hop.done());
            }
        }
        let ethernet = self.ethernet_ports.iter();
        let ethernet = ethernet.map(|port| (port.port, port.budget.as_ref()));
        let san = self.san_ports.iter();
        let san = san.map(|port| (port.port, port.budget.as_ref()));
        for (port, budget) in ethernet.chain(san) {
            let Some(budget) = budget else { continue };
            for direction in [Direction::Ingress, Direction::Egress] {
                let mut hop = Hop::new(budget, direction);
                for device in self.devices().filter(|device| device.port == port) {
                    hop.add_device(None, &device);
                }
                admissions.push(hop.done());
            }
        }
        admissions
    }

    /// Lets every hop be promised more than it carries, whatever the file says.
    pub fn oversubscribe(&mut self) {
        let links = self
            .hosts
            .iter_mut()
            .flat_map(|host| [&mut host.budget, &mut host.downlink]);
        let switches = self.edge_switches.iter_mut();
        let links = links.chain(switches.map(|switch| &mut switch.budget));
        let ethernet = self.ethernet_ports.iter_mut();
        let ethernet = ethernet.filter_map(|port| port.budget.as_mut());
        let san = self.san_ports.iter_mut();
        let san = san.filter_map(|port| port.budget.as_mut());
        for budget in links.chain(ethernet).chain(san) {
            *budget = budget.clone().oversubscribed();
        }
    }

    fn devices(&self) -> impl Iterator<Item = Device<'_>> {
        let vms = self.hosts.iter().flat_map(|host| &host.vms);
        vms.flat_map(VmConfig::devices)
    }
}

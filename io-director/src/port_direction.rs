//! One direction of a port: a scheduler whose devices belong to VMs.
//!
//! A VM is known here by what its devices on this port need: its peak and weight hold for them
//! together, and they reserve one by one. What the VM reserves as a whole is a matter of its
//! host's links, which all of its devices cross; on a port it would be reserved once too often for
//! every other port that it uses.

use fabric_config::VmConfig;
use fabric_transport::DeviceId;
use qos::{
    AdmissionError, BitRate, DeviceHandle, DeviceRate, LinkBudget, MonotonicTime, Profiles,
    Scheduler, VmRate,
};

/// A device as its port knows it.
#[derive(Debug, Clone)]
pub(crate) struct PortDevice {
    pub(crate) device: DeviceId,
    pub(crate) vm: PortVm,
    pub(crate) ingress: DeviceRate,
    pub(crate) egress: DeviceRate,
}

/// The VM of a device.
#[derive(Debug, Clone)]
pub(crate) struct PortVm {
    name: String,
    pub(crate) ingress: VmRate,
    pub(crate) egress: VmRate,
}

impl PortVm {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn new(vm: &VmConfig) -> Self {
        let together = |rate: VmRate| VmRate {
            cir: BitRate::ZERO,
            ..rate
        };
        Self {
            name: vm.name.clone(),
            ingress: together(vm.ingress),
            egress: together(vm.egress),
        }
    }
}

/// See the module; `T` is whatever is queued.
pub(crate) struct PortDirection<T> {
    pub(crate) scheduler: Scheduler<T>,
    profiles: Profiles,
}

impl<T> PortDirection<T> {
    /// The direction called `name` of the port that `budget` describes; refusals name both.
    pub(crate) fn new(budget: &LinkBudget, name: &str) -> Self {
        Self {
            scheduler: Scheduler::new(of_direction(budget, name)),
            profiles: Profiles::default(),
        }
    }

    /// Adds a device of `vm`, which has `vm_rate` in this direction, and reserves what it was
    /// promised.
    ///
    /// # Errors
    /// It does not fit; nothing has changed.
    pub(crate) fn join(
        &mut self,
        now: MonotonicTime,
        (vm, vm_rate): (&PortVm, VmRate),
        rate: DeviceRate,
    ) -> Result<DeviceHandle, AdmissionError> {
        let vm = (vm.name.as_str(), vm_rate);
        self.profiles.join(&mut self.scheduler, now, vm, rate)
    }

    /// Gives a VM other words in this direction, in force at once.
    ///
    /// # Errors
    /// They do not fit; nothing has changed.
    pub(crate) fn set_vm_rate(
        &mut self,
        now: MonotonicTime,
        vm: &PortVm,
        rate: VmRate,
    ) -> Result<(), AdmissionError> {
        self.profiles
            .set_rate(&mut self.scheduler, now, &vm.name, rate)
    }

    /// Removes a device of `vm`; what it had queued comes back.
    pub(crate) fn leave(&mut self, vm: &PortVm, device: DeviceHandle) -> Vec<T> {
        self.profiles.leave(&mut self.scheduler, &vm.name, device)
    }
}

/// Adds a device of `vm` to both directions, with its ingress and egress words.
///
/// # Errors
/// It does not fit one of them; nothing has changed.
pub(crate) fn join_both<I, E>(
    (ingress, egress): (&mut PortDirection<I>, &mut PortDirection<E>),
    now: MonotonicTime,
    vm: &PortVm,
    (ingress_rate, egress_rate): (DeviceRate, DeviceRate),
) -> Result<(DeviceHandle, DeviceHandle), AdmissionError> {
    let sent = ingress.join(now, (vm, vm.ingress), ingress_rate)?;
    let received = egress.join(now, (vm, vm.egress), egress_rate);
    let received = received.inspect_err(|_| drop(ingress.leave(vm, sent)))?;
    Ok((sent, received))
}

/// Gives a VM other words in both directions, which were `before`.
///
/// # Errors
/// They do not fit one of them; nothing has changed.
pub(crate) fn set_vm_both<I, E>(
    (ingress, egress): (&mut PortDirection<I>, &mut PortDirection<E>),
    now: MonotonicTime,
    before: &PortVm,
    after: &PortVm,
) -> Result<(), AdmissionError> {
    ingress.set_vm_rate(now, after, after.ingress)?;
    egress
        .set_vm_rate(now, after, after.egress)
        .inspect_err(|_| {
            let back = ingress.set_vm_rate(now, before, before.ingress);
            debug_assert!(back.is_ok(), "nobody took what was free for a moment");
        })
}

fn of_direction(budget: &LinkBudget, name: &str) -> LinkBudget {
    let hop = format!("{} {name}", budget.hop());
    // A budget is never refused what it has already.
    let same = LinkBudget::with_reservable(hop.clone(), budget.rate(), budget.reservable())
        .unwrap_or_else(|_| LinkBudget::new(hop, budget.rate()))
        .sold_as(budget.nominal());
    let same = match budget.protected() {
        Some(protected) => same.with_protected(protected),
        None => same,
    };
    if budget.is_oversubscribed() {
        same.oversubscribed()
    } else {
        same
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    impl PortVm {
        /// A VM without words of its own.
        pub(crate) fn named(name: &str) -> Self {
            Self {
                name: name.into(),
                ingress: VmRate::default(),
                egress: VmRate::default(),
            }
        }
    }

    fn rate(text: &str) -> BitRate {
        text.parse().unwrap()
    }

    #[test]
    fn budget_of_a_direction_is_that_of_the_port() {
        let budget = LinkBudget::with_reservable("san-port 12/1", rate("8G"), rate("7G"))
            .unwrap()
            .sold_as(rate("10G"))
            .with_protected(rate("3G"))
            .oversubscribed();
        let ingress = of_direction(&budget, "ingress");
        assert_eq!(ingress.hop(), "san-port 12/1 ingress");
        assert_eq!(
            (ingress.rate(), ingress.reservable(), ingress.nominal()),
            (rate("8G"), rate("7G"), rate("10G"))
        );
        assert_eq!(ingress.protected(), Some(rate("3G")));
        assert!(ingress.is_oversubscribed());
    }

    /// The excess is divided among VMs, not among devices.
    #[test]
    fn devices_of_a_vm_share_as_one() {
        let budget = LinkBudget::new("ethernet-port 10/1", rate("1G"));
        let mut port = PortDirection::new(&budget, "ingress");
        let equal = VmRate {
            weight: 10,
            ..VmRate::default()
        };
        let (alone, pair) = (PortVm::named("vm1"), PortVm::named("vm2"));
        let now = MonotonicTime::ZERO;
        let devices = [&alone, &pair, &pair].map(|vm| {
            port.join(now, (vm, equal), DeviceRate::best_effort())
                .unwrap()
        });
        for device in devices {
            for _ in 0..300 {
                port.scheduler
                    .enqueue(now, device, 0, 1500, device)
                    .unwrap();
            }
        }
        let mut now = now;
        let mut granted = [0; 3];
        for _ in 0..300 {
            let grant = loop {
                match port.scheduler.dequeue(now) {
                    Some(grant) => break grant.item,
                    None => now = port.scheduler.next_wake(now).unwrap(),
                }
            };
            let at = devices.iter().position(|device| *device == grant).unwrap();
            granted[at] += 1;
        }
        assert!((148..=152).contains(&granted[0]), "{granted:?}");
        assert!((73..=77).contains(&granted[1]), "{granted:?}");
        assert_eq!(port.leave(&pair, devices[1]).len(), 300 - granted[1]);
    }
}

//! Server profiles (VMs) by name: each is known to a scheduler as long as it has devices there.

use std::collections::BTreeMap;

use crate::admission::AdmissionError;
use crate::rate::{DeviceRate, VmRate};
use crate::scheduler::{DeviceHandle, Scheduler, VmHandle};
use crate::time::MonotonicTime;

/// The VMs that have devices in one scheduler.
#[derive(Debug, Default)]
pub struct Profiles {
    vms: BTreeMap<String, VmHandle>,
}

impl Profiles {
    /// Adds a device of the VM called `vm` to `scheduler`, and the VM if this is its first one: the
    /// words that came with it count.
    ///
    /// A VM without words is no more than its devices. They stand for themselves, and need not
    /// wait for each other.
    ///
    /// # Errors
    /// As [`Scheduler::add_vm`] and [`Scheduler::add_device_to`]; nothing has changed then.
    pub fn join<T>(
        &mut self,
        scheduler: &mut Scheduler<T>,
        now: MonotonicTime,
        (vm, vm_rate): (&str, VmRate),
        rate: DeviceRate,
    ) -> Result<DeviceHandle, AdmissionError> {
        if vm_rate == VmRate::default() {
            return scheduler.add_device(now, rate);
        }
        let known = self.vms.get(vm).copied();
        let handle = match known {
            Some(known) => known,
            None => scheduler.add_vm(now, vm, vm_rate)?,
        };
        let added = scheduler.add_device_to(now, handle, rate);
        if added.is_ok() {
            self.vms.entry(vm.to_owned()).or_insert(handle);
        } else {
            // It stays if it has other devices.
            scheduler.remove_vm(handle);
        }
        added
    }

    /// Gives the VM called `vm` other words, in force at once. One that has no devices here, or none
    /// in its name because it had no words when they came, has nothing to change.
    ///
    /// # Errors
    /// As [`Scheduler::set_vm_rate`]; nothing has changed then.
    pub fn set_rate<T>(
        &mut self,
        scheduler: &mut Scheduler<T>,
        now: MonotonicTime,
        vm: &str,
        rate: VmRate,
    ) -> Result<(), AdmissionError> {
        match self.vms.get(vm) {
            Some(handle) => scheduler.set_vm_rate(now, *handle, rate),
            None => Ok(()),
        }
    }

    /// Removes a device of the VM called `vm`, and the VM with its last one. What the device had
    /// queued comes back.
    #[must_use = "frames that are dropped here are lost"]
    pub fn leave<T>(
        &mut self,
        scheduler: &mut Scheduler<T>,
        vm: &str,
        device: DeviceHandle,
    ) -> Vec<T> {
        let queued = scheduler.remove_device(device);
        if let Some(handle) = self.vms.get(vm)
            && scheduler.remove_vm(*handle)
        {
            self.vms.remove(vm);
        }
        queued
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::LinkBudget;

    #[test]
    fn a_vm_is_there_as_long_as_its_devices() {
        let mut scheduler = Scheduler::<()>::new(LinkBudget::new("link", "1G".parse().unwrap()));
        let mut profiles = Profiles::default();
        let now = MonotonicTime::ZERO;
        let words = VmRate {
            cir: "400M".parse().unwrap(),
            ..VmRate::default()
        };
        let cir = |text: &str| DeviceRate::new(text.parse().unwrap(), None).unwrap();
        let join = |profiles: &mut Profiles, scheduler: &mut _, words, rate| {
            profiles.join(scheduler, now, ("vm1", words), cir(rate))
        };
        let refused = join(&mut profiles, &mut scheduler, words, "500M").unwrap_err();
        assert!(refused.to_string().starts_with("vm vm1: "), "{refused}");
        assert!(scheduler.reserved().is_zero(), "the VM is gone again");
        let first = join(&mut profiles, &mut scheduler, words, "300M").unwrap();
        join(&mut profiles, &mut scheduler, words, "200M").unwrap_err();
        let second = join(&mut profiles, &mut scheduler, words, "100M").unwrap();
        assert_eq!(scheduler.reserved(), "400M".parse().unwrap());
        let more = VmRate {
            cir: "500M".parse().unwrap(),
            ..words
        };
        profiles.set_rate(&mut scheduler, now, "vm1", more).unwrap();
        assert_eq!(scheduler.reserved(), more.cir);
        let mut leave = |device| drop(profiles.leave(&mut scheduler, "vm1", device));
        leave(first);
        leave(second);
        assert!(scheduler.reserved().is_zero());
        assert!(profiles.vms.is_empty());
        let alone = join(&mut profiles, &mut scheduler, VmRate::default(), "300M").unwrap();
        assert!(profiles.vms.is_empty(), "without words it is its devices");
        assert_eq!(profiles.leave(&mut scheduler, "vm1", alone).len(), 0);
    }
}

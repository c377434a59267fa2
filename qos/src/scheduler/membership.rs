//! Devices and VMs that come, change and go, and what admission says to it.

use super::{
    DEVICES_MAX, DeviceHandle, Occupant, Scheduler, Slot, StaleHandle, VmHandle, device_at, vm_at,
};
use crate::admission::{AdmissionError, Reservation};
use crate::device::Device;
use crate::order::index;
use crate::rate::{BitRate, DeviceRate, VmRate};
use crate::time::MonotonicTime;
use crate::trace::Event;
use crate::vm::Vm;

impl<T> Scheduler<T> {
    /// Whether a device with this rate would be taken, in `vm` if there is one. Changes nothing.
    ///
    /// # Errors
    /// As [`Scheduler::add_device`].
    pub fn admit(&self, vm: Option<VmHandle>, rate: &DeviceRate) -> Result<(), AdmissionError> {
        self.validate(rate)?;
        self.check_room()?;
        let asked = Reservation::of_device(rate);
        match vm {
            None => self.reservations.check(asked, Reservation::default()),
            Some(vm) => {
                let vm = self.vm(vm).ok_or_else(|| self.stale())?;
                self.check_member(vm, asked, Reservation::default())
            }
        }
    }

    /// Adds a device and reserves its committed rate.
    ///
    /// # Errors
    /// [`AdmissionError`] when the committed rates would exceed the budget, the rate words do not
    /// fit together, delay bounds could not be kept, or there are [`DEVICES_MAX`] devices. Nothing
    /// is changed then.
    pub fn add_device(
        &mut self,
        now: MonotonicTime,
        rate: DeviceRate,
    ) -> Result<DeviceHandle, AdmissionError> {
        self.add(now, None, rate)
    }

    /// Adds a device to a VM. If the VM has a reservation of its own, the device's is a part of it.
    ///
    /// # Errors
    /// As [`Scheduler::add_device`]; the hop is the VM when that is what is full.
    pub fn add_device_to(
        &mut self,
        now: MonotonicTime,
        vm: VmHandle,
        rate: DeviceRate,
    ) -> Result<DeviceHandle, AdmissionError> {
        self.add(now, Some(vm), rate)
    }

    fn add(
        &mut self,
        now: MonotonicTime,
        vm: Option<VmHandle>,
        rate: DeviceRate,
    ) -> Result<DeviceHandle, AdmissionError> {
        self.admit(vm, &rate)?;
        self.write(|| Event::AddDevice(now, vm, Box::new(rate)));
        self.observe(now);
        let (slot, generation) = self.take_slot();
        let taken = Reservation::of_device(&rate);
        let place = vm.and_then(|vm| self.vm_place(vm));
        let mut virtual_time = self.virtual_time;
        let mut service_time = self.link.service_time();
        let mut member = None;
        if let Some(place) = place
            && let Some(vm) = vm_at(&mut self.vms, place)
        {
            virtual_time = vm.virtual_time;
            service_time = vm.time(service_time);
            member = Some((place, vm.join(slot)));
        }
        let device = Device::new(rate, member, service_time, virtual_time);
        self.occupy(slot, Occupant::Device(device));
        let weight = rate.weight_bits_per_second();
        self.exchange(member, (Reservation::default(), 0), (taken, weight));
        Ok(DeviceHandle { slot, generation })
    }

    /// Gives a device another rate. Its frames stay queued in their order; what it is behind or
    /// ahead of its rates is kept in bits, so the new rate is in force at once.
    ///
    /// # Errors
    /// [`AdmissionError`] as for [`Scheduler::add_device`], and for a stale handle. A committed
    /// rate not above the present one is never refused for the budget.
    pub fn set_rate(
        &mut self,
        now: MonotonicTime,
        handle: DeviceHandle,
        rate: DeviceRate,
    ) -> Result<(), AdmissionError> {
        self.validate(&rate)?;
        let device = self.device(handle).ok_or_else(|| self.stale())?;
        let (before, member) = (device.rate, device.vm);
        let given_back = Reservation::of_device(&before);
        let taken = Reservation::of_device(&rate);
        match member.and_then(|(place, _)| self.vms.get(index(place))?.as_deref()) {
            Some(vm) => self.check_member(vm, taken, given_back)?,
            None => self.reservations.check(taken, given_back)?,
        }
        self.write(|| Event::SetRate(now, handle, Box::new(rate)));
        self.observe(now);
        self.exchange(
            member,
            (given_back, before.weight_bits_per_second()),
            (taken, rate.weight_bits_per_second()),
        );
        let (mut service_time, now) = (self.link.service_time(), self.link.now());
        let mut virtual_time = self.virtual_time;
        if let Some(vm) = member.and_then(|(place, _)| vm_at(&mut self.vms, place)) {
            virtual_time = vm.virtual_time;
            service_time = vm.time(service_time);
        }
        if let Some(device) = device_at(&mut self.slots, handle.slot) {
            device.set_rate(rate, service_time, virtual_time, now);
            self.place(handle.slot, now);
        }
        Ok(())
    }

    /// Adds a VM without devices and reserves its committed rate. `name` is what refusals call it.
    ///
    /// # Errors
    /// As [`Scheduler::add_device`].
    pub fn add_vm(
        &mut self,
        now: MonotonicTime,
        name: &str,
        rate: VmRate,
    ) -> Result<VmHandle, AdmissionError> {
        self.check_room()?;
        let invalid = |source| AdmissionError::InvalidRate {
            hop: format!("vm {name}"),
            source,
        };
        rate.validate(BitRate::ZERO).map_err(invalid)?;
        let taken = Reservation::of_vm(rate.cir);
        self.reservations.check(taken, Reservation::default())?;
        self.write(|| Event::AddVm(now, Box::new((name.into(), rate))));
        self.observe(now);
        let (slot, generation) = self.take_slot();
        let end = u32::try_from(self.vms.len()).unwrap_or(u32::MAX);
        let place = self.vacant_vms.pop().unwrap_or(end);
        let vm = Vm::new(
            name,
            rate,
            slot,
            self.link.service_time(),
            self.virtual_time,
        );
        match self.vms.get_mut(index(place)) {
            Some(vacant) => *vacant = Some(Box::new(vm)),
            None => self.vms.push(Some(Box::new(vm))),
        }
        self.occupy(slot, Occupant::Vm(place));
        self.reservations.exchange(Reservation::default(), taken);
        Ok(VmHandle { slot, generation })
    }

    /// Gives a VM another rate; see [`Scheduler::set_rate`]. Costs a little for each of its
    /// devices.
    ///
    /// # Errors
    /// As [`Scheduler::set_rate`]; also when its devices reserve more than it would.
    pub fn set_vm_rate(
        &mut self,
        now: MonotonicTime,
        handle: VmHandle,
        rate: VmRate,
    ) -> Result<(), AdmissionError> {
        let vm = self.vm(handle).ok_or_else(|| self.stale())?;
        let hop = vm.hop();
        if !rate.cir.is_zero() && vm.reserved > rate.cir {
            return Err(AdmissionError::Oversubscribed {
                hop,
                asked: vm.reserved,
                free: rate.cir,
                reservable: rate.cir,
            });
        }
        rate.validate(vm.reserved)
            .map_err(|source| AdmissionError::InvalidRate { hop, source })?;
        let (given_back, taken) = (vm.reservation(), vm.reservation_with(&rate));
        self.reservations.check(taken, given_back)?;
        self.write(|| Event::SetVmRate(now, handle, Box::new(rate)));
        self.observe(now);
        self.reservations.exchange(given_back, taken);
        let (service_time, now) = (self.link.service_time(), self.link.now());
        if let Some(place) = self.vm_place(handle)
            && let Some(vm) = vm_at(&mut self.vms, place)
        {
            vm.set_rate(rate, service_time, self.virtual_time, now);
            // Whether the new peak holds it is seen anew.
            vm.unpark(now, service_time);
            self.refresh_vm(place, now);
        }
        Ok(())
    }

    /// Removes a VM and frees what it reserved. False, and nothing is changed, if it still has
    /// devices or the handle is stale.
    pub fn remove_vm(&mut self, handle: VmHandle) -> bool {
        let Some(place) = self.vm_place(handle) else {
            return false;
        };
        let vacant = self.vms.get_mut(index(place));
        let Some(vm) = vacant.and_then(|vm| vm.take_if(|vm| vm.is_empty())) else {
            return false;
        };
        self.write(|| Event::RemoveVm(handle));
        self.vacant_vms.push(place);
        self.tier.leave(handle.slot);
        self.reservations
            .exchange(vm.reservation(), Reservation::default());
        self.vacate(handle.slot);
        true
    }

    /// The rate words of a VM.
    ///
    /// # Errors
    /// [`StaleHandle`] when the VM was removed.
    pub fn vm_rate(&self, handle: VmHandle) -> Result<VmRate, StaleHandle> {
        self.vm(handle).map(|vm| vm.rate).ok_or(StaleHandle)
    }

    /// Removes a device, frees what it reserved, and gives back its frames in the order in which
    /// they would have left.
    ///
    /// A stale handle names no frames: the answer is empty, and no other device is touched.
    #[must_use = "frames that are dropped here are lost"]
    pub fn remove_device(&mut self, handle: DeviceHandle) -> Vec<T> {
        if self.device(handle).is_none() {
            return Vec::new();
        }
        self.write(|| Event::RemoveDevice(handle));
        let Some(device) = device_at(&mut self.slots, handle.slot) else {
            return Vec::new();
        };
        let (rate, member) = (device.rate, device.vm);
        let mut items = Vec::new();
        for queue in &mut device.classes {
            while let Some(frame) = self.frames.pop(queue) {
                items.push(frame.item);
            }
        }
        let vm = member.and_then(|(vm, place)| Some((vm_at(&mut self.vms, vm)?, place)));
        match vm {
            None => device.leave(handle.slot, &mut self.tier),
            Some((vm, place)) => {
                device.leave(place, &mut vm.tier);
                vm.part(place);
            }
        }
        let given_back = Reservation::of_device(&rate);
        let weight = rate.weight_bits_per_second();
        self.exchange(member, (given_back, weight), (Reservation::default(), 0));
        if let Some((vm, _)) = member {
            self.refresh_vm(vm, self.link.now());
        }
        self.vacate(handle.slot);
        items
    }

    fn validate(&self, rate: &DeviceRate) -> Result<(), AdmissionError> {
        rate.validate()
            .map_err(|source| AdmissionError::InvalidRate {
                hop: self.reservations.hop(),
                source,
            })
    }

    fn check_room(&self) -> Result<(), AdmissionError> {
        if self.vacant.is_empty() && self.slots.len() >= index(DEVICES_MAX) {
            return Err(AdmissionError::TooManyDevices {
                hop: self.reservations.hop(),
                devices_max: DEVICES_MAX,
            });
        }
        Ok(())
    }

    fn stale(&self) -> AdmissionError {
        AdmissionError::StaleHandle {
            hop: self.reservations.hop(),
        }
    }

    /// Whether a device's reservation fits into its VM, and on the link.
    fn check_member(
        &self,
        vm: &Vm,
        asked: Reservation,
        given_back: Reservation,
    ) -> Result<(), AdmissionError> {
        if asked.burst.is_some() {
            return Err(AdmissionError::DelayInVm { hop: vm.hop() });
        }
        let others = vm.reserved.saturating_sub(given_back.cir);
        let reservable = vm.rate.cir;
        let free = reservable.saturating_sub(others);
        if !reservable.is_zero() && asked.cir > free && asked.cir > given_back.cir {
            return Err(AdmissionError::Oversubscribed {
                hop: vm.hop(),
                asked: asked.cir,
                free,
                reservable,
            });
        }
        let together = others.saturating_add(asked.cir);
        vm.rate
            .validate(together)
            .map_err(|source| AdmissionError::InvalidRate {
                hop: vm.hop(),
                source,
            })?;
        if !reservable.is_zero() {
            return Ok(());
        }
        self.reservations.check(asked, given_back)
    }

    /// Exchanges what a device reserves and its weight, in its VM if it has one and on the link.
    fn exchange(
        &mut self,
        member: Option<(u32, u32)>,
        before: (Reservation, u64),
        after: (Reservation, u64),
    ) {
        let service_time = self.link.service_time();
        let (mut given_back, mut taken) = (before.0, after.0);
        if let Some(vm) = member.and_then(|(vm, _)| vm_at(&mut self.vms, vm)) {
            given_back = vm.reservation();
            vm.exchange(service_time, self.virtual_time, before, after);
            taken = vm.reservation();
        }
        self.reservations.exchange(given_back, taken);
    }

    /// An empty slot, and the generation of whoever moves in.
    fn take_slot(&mut self) -> (u32, u32) {
        // `check_room` keeps slots below `DEVICES_MAX`, so the number always fits.
        let end = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        let slot = self.vacant.pop().unwrap_or(end);
        if slot == end {
            self.slots.push(Slot::default());
            self.tier.reserve(slot);
        }
        let generation = self.slots.get(slot).map_or(0, |slot| slot.generation);
        (slot, generation)
    }

    fn occupy(&mut self, slot: u32, occupant: Occupant) {
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.occupant = occupant;
        }
    }

    fn vacate(&mut self, slot: u32) {
        let Some(place) = self.slots.get_mut(slot) else {
            return;
        };
        place.occupant = Occupant::Nobody;
        // A slot whose generations are used up stays empty rather than to repeat a handle.
        if let Some(generation) = place.generation.checked_add(1) {
            place.generation = generation;
            self.vacant.push(slot);
        }
    }
}

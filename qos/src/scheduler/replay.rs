//! Images of a scheduler: what a trace begins with.

use serde::{Deserialize, Serialize};

use super::{Occupant, Scheduler, Slot, device_at, vm_at};
use crate::admission::{LinkBudget, Reservation, Reservations};
use crate::calendar::Calendar;
use crate::decision::DecisionRing;
use crate::device::LinkUse;
use crate::frames::{Frame, FrameStore, Queue};
use crate::link::Link;
use crate::order::{Tier, index, tick_of};
use crate::scheduler::CLASSES_MAX;
use crate::time::MonotonicTime;
use crate::trace::{Event, Trace};
use crate::vm::Vm;

/// Everything a scheduler's decisions depend on, but for what its frames carry. To be written down
/// and read back; the fields are the scheduler's own and change with it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Image {
    budget: LinkBudget,
    link: Link,
    slots: Vec<Slot>,
    vacant: Vec<u32>,
    vms: Vec<Option<Box<Vm>>>,
    vacant_vms: Vec<u32>,
    /// Device, class, bytes and arrival, in the order of the queues.
    frames: Vec<(u32, u8, u32, u64)>,
    virtual_time: u64,
    used: LinkUse,
}

impl<T> Scheduler<T> {
    /// Begins a trace: from now on every call is written down, until [`Scheduler::take_trace`].
    /// Costs a little for each device and frame.
    pub fn start_trace(&mut self, now: MonotonicTime) {
        self.observe(now);
        // The order inside of a tick is not in an image: bring it into one that is.
        self.rebuild();
        self.trace = Some(Box::new(Trace::new(self.image())));
    }

    /// Ends the trace; `None` when none was begun.
    pub fn take_trace(&mut self) -> Option<Trace> {
        self.trace.take().map(|trace| *trace)
    }

    pub(super) fn write(&mut self, event: impl FnOnce() -> Event) {
        if let Some(trace) = &mut self.trace {
            trace.write(event());
        }
    }

    fn image(&self) -> Image {
        let mut frames = Vec::new();
        for (id, slot) in (0_u32..).zip(self.slots.iter()) {
            if let Occupant::Device(device) = &slot.occupant {
                for (class, queue) in (0_u8..).zip(device.classes) {
                    let queued = self.frames.iter(queue);
                    frames.extend(queued.map(|frame| (id, class, frame.bytes, frame.arrived)));
                }
            }
        }
        Image {
            budget: self.reservations.budget().clone(),
            link: self.link.clone(),
            slots: self.slots.iter().cloned().collect(),
            vacant: self.vacant.clone(),
            vms: self.vms.clone(),
            vacant_vms: self.vacant_vms.clone(),
            frames,
            virtual_time: self.virtual_time,
            used: self.used,
        }
    }

    /// Enters everybody into new orders, in the order of their numbers.
    fn rebuild(&mut self) {
        let mut tier = Tier::<Calendar>::default();
        if let Some(last) = u32::try_from(self.slots.len())
            .ok()
            .and_then(|n| n.checked_sub(1))
        {
            tier.reserve(last);
        }
        tier.share.advance(self.virtual_time);
        tier.limited.advance(tick_of(self.link.now()));
        self.tier = tier;
        for vm in self.vms.iter_mut().flatten() {
            vm.clear_tier();
        }
        let service_time = self.link.service_time();
        let slots = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        for slot in 0..slots {
            let Some(device) = device_at(&mut self.slots, slot) else {
                continue;
            };
            match device.vm {
                None => device.enter(slot, &mut self.tier, service_time),
                Some((at, place)) => {
                    // Always true but for an image that was tampered with.
                    if let Some(vm) = vm_at(&mut self.vms, at)
                        && vm.member(place) == Some(slot)
                    {
                        let time = vm.time(service_time);
                        device.enter(place, &mut vm.tier, time);
                    }
                }
            }
        }
        let now = self.link.now();
        for slot in 0..slots {
            if let Some(Occupant::Vm(place)) = self.slots.get(slot).map(|slot| &slot.occupant) {
                self.refresh_vm(*place, now);
            }
        }
    }
}

impl Scheduler<()> {
    /// The scheduler that `image` was made of. What does not fit together in it (a file that was
    /// changed) gives a scheduler that decides otherwise, which a replay finds.
    pub(crate) fn restore(image: &Image) -> Self {
        let mut reservations = Reservations::new(image.budget.clone());
        if image.link.rate() != image.budget.rate() {
            reservations.set_link_rate(image.link.rate());
        }
        let mut scheduler = Self {
            link: image.link.clone(),
            reservations,
            slots: image.slots.iter().cloned().collect(),
            vacant: image.vacant.clone(),
            vms: image.vms.clone(),
            vacant_vms: image.vacant_vms.clone(),
            frames: FrameStore::default(),
            tier: Tier::default(),
            virtual_time: image.virtual_time,
            used: image.used,
            decisions: Some(DecisionRing::default()),
            trace: None,
        };
        scheduler.restore_places();
        scheduler.restore_reservations();
        scheduler.restore_frames(&image.frames);
        scheduler.rebuild();
        scheduler
    }

    /// Who refers to whom, and to which place, has to be true of the image itself.
    fn restore_places(&mut self) {
        let mut ids = vec![None; self.vms.len()];
        for (id, slot) in (0_u32..).zip(self.slots.iter()) {
            if let Occupant::Vm(place) = slot.occupant
                && let Some(known) = ids.get_mut(index(place))
            {
                *known = Some(id);
            }
        }
        for (vm, id) in self.vms.iter_mut().zip(ids) {
            match (vm.as_deref_mut(), id) {
                (Some(vm), Some(id)) => vm.restore(id),
                _ => *vm = None,
            }
        }
        for (id, slot) in (0_u32..).zip(self.slots.iter_mut()) {
            if let Occupant::Device(device) = &mut slot.occupant {
                device.vm = device.vm.filter(|(at, place)| {
                    let vm = self.vms.get(index(*at)).and_then(Option::as_deref);
                    vm.is_some_and(|vm| vm.member(*place) == Some(id))
                });
            }
        }
        let (slots, vms) = (self.slots.len(), self.vms.len());
        self.vacant.retain(|slot| index(*slot) < slots);
        self.vacant_vms.retain(|place| index(*place) < vms);
    }

    fn restore_reservations(&mut self) {
        let none = Reservation::default();
        for vm in self.vms.iter().flatten() {
            self.reservations.exchange(none, vm.reservation());
        }
        for slot in self.slots.iter() {
            if let Occupant::Device(device) = &slot.occupant
                && device.vm.is_none()
            {
                let taken = Reservation::of_device(&device.rate);
                self.reservations.exchange(none, taken);
            }
        }
    }

    fn restore_frames(&mut self, frames: &[(u32, u8, u32, u64)]) {
        for slot in self.slots.iter_mut() {
            if let Occupant::Device(device) = &mut slot.occupant {
                device.classes = [Queue::default(); CLASSES_MAX];
            }
        }
        for &(device, class, bytes, arrived) in frames {
            let frame = Frame {
                bytes,
                credit_nanos: 0,
                arrived,
                item: (),
            };
            let device = device_at(&mut self.slots, device);
            if let Some(queue) =
                device.and_then(|device| device.classes.get_mut(usize::from(class)))
            {
                self.frames.push(queue, frame);
            }
        }
    }
}

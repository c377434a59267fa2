//! Who sends next on one shared link: every device gets what it reserved, what is left is shared
//! by weight, nobody exceeds its peak, and the link does not idle while somebody may send.
//!
//! # How
//! Two criteria, after the hierarchical fair service curve (Stoica, Zhang, Ng, SIGCOMM 1997), and
//! a limit. A device with frames has three clocks:
//!
//! | clock | advances | meaning |
//! | --- | --- | --- |
//! | `e` | by `bytes / CIR` on a *reserved* grant | from when the head may use the reservation |
//! | `v` | by `bytes / weight` on an *excess* grant | how much it had of what was left |
//! | `u` | by `bytes / PIR` on every grant | the peak rate (a GCRA with burst PBS) |
//!
//! ```text
//!            first frame                      e <= now
//!   empty ---------------> waiting (share) -------------> urgent (share, deadlines)
//!     ^                       ^   |                          |
//!     |        u - PBS <= now |   | u - PBS > now            | u - PBS > now
//!     +--- last frame ---- limited <-------------------------+
//! ```
//!
//! [`Scheduler::dequeue`] grants, when the link is free, the urgent device with the earliest
//! deadline `e + bytes / CIR` (*reserved*), and if none is urgent the one with the least `v` of
//! all that are not limited (*excess*). When a device gets its first frame, or its peak releases
//! it, `e` catches up to that moment and `v` to the virtual time of the link (the `v` last
//! granted): idle time is worth no share, and costs no guarantee.
//!
//! A server profile (a VM) stands in these orders as one device, with `e`, `v` and `u` of its own.
//! Its committed rate is its own, or the sum of its devices'; its head is the frame that is next
//! among its devices by the same two criteria: the urgent one with the earliest deadline, else the
//! one with the least `v`. A frame that leaves by the VM's reservation is charged to the VM, and to
//! the device's reservation if it was urgent there (*reserved*) or else to the device's share
//! (*VM reserved*). The time of its devices stands still while the VM's peak holds it.
//!
//! # What a device is promised
//! While the link carries all committed rates ([`Commitment::Kept`]), the device's peak is at
//! least its CIR (checked) with a PBS of two frames (as the automatic one has), and the caller
//! dequeues at every [`Scheduler::next_wake`]:
//!
//! 1. **Guarantee.** Let the device become backlogged at `A0`, and a frame of it be the one that
//!    completes `W` bytes since then. It has left the link by
//!    `A0 + (W + Lmax) / CIR + Lmax / C`, with `C` the link's rate, and `Lmax` the largest frame:
//!    of this device in the first place, of any device in the second. Why: `e` is at most
//!    `Lmax / CIR` after `A0` (what the last busy period left), and grows by `bytes / CIR`; so the
//!    deadline is at most `A0 + (W + Lmax) / CIR`. Between eligible time and deadline a device
//!    never asks for more than CIR, and all CIR together are at most `C`; then earliest deadline
//!    first meets every deadline, but for the one frame that was being sent. `e` also waits for
//!    the peak's release, or a device that used up its burst as excess would come back with
//!    deadlines in the past and push others over theirs; as PIR >= CIR this costs no more than the
//!    `Lmax / CIR` already counted.
//! 2. **Mixed classes.** When a shorter frame of a higher class takes the head from a longer one,
//!    it keeps at least the longer one's deadline, for the same reason: so a device that mixes
//!    classes has to add another `Lmax / CIR`. Frames of one class alone do not.
//! 3. **In a VM.** With `R` the VM's committed rate and `Lvm` the largest frame of its devices, the
//!    VM as a whole has promise 2, and each of its devices promise 1 with `2 Lvm / R` more: one for
//!    the frame that the VM had begun, one because a head that changes keeps the VM's deadline. So
//!    a VM that mixes long and short frames pays for it itself; whoever is outside of it notices
//!    nothing. (Were the devices' reservations and what the VM reserves beyond them scheduled side
//!    by side, a device that stops and goes would move deadlines that others were let go before.)
//!    While the VM's own peak holds it, the time of this promise stands still.
//! 4. **Delay.** A device with a delay bound that keeps to CIR and CBS has its frames out by that
//!    and `Lmax / C`; admission counts its burst (see [`crate::admission`]). Not in a VM, for the
//!    reason above: it is refused there.
//! 5. **Peak.** In any span of `t` a device, or a VM, gets at most `PIR t + PBS` and one frame.
//! 6. **No idling.** The link is free, a device has a frame and is not limited: it is granted.
//! 7. **Share.** Between two devices without a VM, two VMs, or two devices of a VM, that both stay
//!    backlogged and unlimited, excess divided by weight differs by at most one frame each.
//! 8. **Within a device** class 0 leaves before class 1 and so on; frames of a class keep their
//!    order, whatever happens to rates.
//!
//! All times are rounded up to ticks of 512 ns, so each bound has a microsecond or two more.
//! `qos/tests/promises.rs` holds every grant against these promises, `qos/tests/oracle.rs` every
//! decision against a plain model with lists and fractions.
//!
//! # The link
//! Grants are paced at the link's rate, so that the queue stands here and not in a socket. A
//! caller that comes late to a free link with frames waiting catches up: two frames of 64 KiB or
//! 1 ms of the rate, whichever is more, leave at once ([`Scheduler::set_catch_up`]). Idle time
//! earns no such burst, and a longer stall is forgotten (it stops the clock of the reservations as well: promise 1 then counts
//! service time).
//!
//! A link that became too slow for what was promised ([`Scheduler::set_link_rate`]) scales all
//! committed rates by one factor.
//!
//! # Cost
//! Calendar queues ([`crate::trace`] replays them exactly): a constant time for each call on a
//! device, amortized over the frames granted (one dequeue may have to release many devices whose
//! peak ended meanwhile); O(log n) in the n devices of a VM, and for what lies more than 134 ms
//! ahead. Nothing is allocated once a device is added and [`Scheduler::reserve_frames`] made room.
//!
//! # What is deliberately absent
//! Stopping a device that has no credit: the caller does not enqueue what may not leave. CBS as
//! priority without a delay bound: it would borrow from the next busy period of others.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::admission::{Commitment, LinkBudget, Reservations};
use crate::calendar::Calendar;
use crate::decision::{Decision, DecisionRing};
use crate::device::{Device, LinkUse, Moment};
pub use crate::device::{DeviceStatistics, Granted};
use crate::frames::{Frame, FrameStore};
use crate::link::Link;
use crate::order::{Order, Tier, index, tick_begin, tick_of};
use crate::rate::{BitRate, DeviceRate};
use crate::slots::Slots;
use crate::time::MonotonicTime;
use crate::trace::{Event, Trace};
use crate::vm::Vm;

mod dequeue;
mod membership;
mod replay;

pub use replay::Image;

/// Classes of a device; class 0 leaves first.
pub const CLASSES_MAX: usize = 4;

/// Frames one device may have queued, over all classes. More are refused and come back.
pub const QUEUE_FRAMES_MAX: u32 = 16_384;

/// Devices and VMs one scheduler may hold. More are refused.
pub const DEVICES_MAX: u32 = 131_072;

/// Names a device of the scheduler that gave it out, also after the device is gone: then every
/// call refuses it, and it never names a later device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DeviceHandle {
    slot: u32,
    generation: u32,
}

/// Names a VM of the scheduler that gave it out, as [`DeviceHandle`] does a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VmHandle {
    slot: u32,
    generation: u32,
}

/// The device or VM was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("device was removed")]
pub struct StaleHandle;

/// Why a frame was let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum GrantReason {
    /// Out of the device's committed rate.
    Reserved,
    /// Out of the committed rate of its VM that the VM's other devices do not use.
    VmReserved,
    /// Out of what others left.
    Excess,
}

/// A frame that may leave now.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Grant<T> {
    /// Whose frame.
    pub device: DeviceHandle,
    /// Its class.
    pub class: u8,
    /// What it was charged with.
    pub bytes: u32,
    /// What was enqueued.
    pub item: T,
    /// Why it may leave.
    pub reason: GrantReason,
    /// Why it was not sooner.
    pub decision: Decision,
}

/// Why a frame was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RefusalReason {
    /// The device was removed.
    #[error("device was removed")]
    StaleHandle,
    /// Classes are `0..CLASSES_MAX`.
    #[error("class {class} is not below {CLASSES_MAX}")]
    NoSuchClass {
        /// The class.
        class: u8,
    },
    /// A frame that costs nothing would pass without limit.
    #[error("frame has no bytes")]
    EmptyFrame,
    /// The device has [`QUEUE_FRAMES_MAX`] frames queued.
    #[error("queue of device is full at {QUEUE_FRAMES_MAX} frames")]
    QueueFull,
}

/// A frame that was not queued, and why.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Refused<T> {
    /// What was to be enqueued.
    pub item: T,
    /// Why not.
    pub reason: RefusalReason,
}

impl<T> fmt::Debug for Refused<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refused")
            .field("reason", &self.reason)
            .finish_non_exhaustive()
    }
}

impl<T> fmt::Display for Refused<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}

impl<T> std::error::Error for Refused<T> {}

/// A place for a device or VM. Handles of earlier occupants carry a lower generation.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Slot {
    generation: u32,
    occupant: Occupant,
}

/// What is in a slot.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all slots hold devices, and each grant reads one"
)]
enum Occupant {
    #[default]
    Nobody,
    Device(Device),
    /// Its place in the list of VMs.
    Vm(u32),
}

/// The scheduler of one link and direction; `T` is whatever the caller queues.
///
/// Every call takes the present time. A time before the latest one counts as the latest.
#[derive(Debug)]
pub struct Scheduler<T> {
    reservations: Reservations,
    link: Link,
    slots: Slots<Slot>,
    vacant: Vec<u32>,
    vms: Vec<Option<Box<Vm>>>,
    vacant_vms: Vec<u32>,
    frames: FrameStore<T>,
    /// The orders of devices without a VM, and of VMs.
    tier: Tier<Calendar>,
    /// The `v` of the excess grant last made. Never below it, but for one tick: any `v` in `share`.
    virtual_time: u64,
    used: LinkUse,
    decisions: Option<DecisionRing>,
    trace: Option<Box<Trace>>,
}

impl<T> Scheduler<T> {
    /// A scheduler without devices for the link that `budget` describes.
    #[must_use]
    pub fn new(budget: LinkBudget) -> Self {
        Self {
            link: Link::new(budget.rate()),
            reservations: Reservations::new(budget),
            slots: Slots::default(),
            vacant: Vec::new(),
            vms: Vec::new(),
            vacant_vms: Vec::new(),
            frames: FrameStore::default(),
            tier: Tier::default(),
            virtual_time: 0,
            used: LinkUse::default(),
            decisions: Some(DecisionRing::default()),
            trace: None,
        }
    }

    /// Makes room for `frames` in all queues together, so that queueing them allocates nothing.
    pub fn reserve_frames(&mut self, frames: usize) {
        self.frames.reserve(frames);
    }

    /// Lets a late caller catch up so much of the link's rate, instead of 1 ms. What leaves at once
    /// then queues behind the scheduler: more than that is for callers that bound it.
    pub fn set_catch_up(&mut self, span: Duration) {
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        self.link.set_catch_up(nanos);
    }

    /// The budget as configured, whatever the link's present rate is.
    #[must_use]
    pub fn budget(&self) -> &LinkBudget {
        self.reservations.budget()
    }

    /// The rate the link is paced at now.
    #[must_use]
    pub fn link_rate(&self) -> BitRate {
        self.link.rate()
    }

    /// The sum of all committed rates.
    #[must_use]
    pub fn reserved(&self) -> BitRate {
        self.reservations.reserved()
    }

    /// What of the link's present rate may be reserved.
    #[must_use]
    pub fn reservable(&self) -> BitRate {
        self.reservations.reservable()
    }

    /// Whether the link carries what was promised on it.
    pub fn commitment(&self) -> Commitment {
        self.reservations.commitment()
    }

    /// Paces the link at another rate from now on; the reservable part of it stays the same part.
    /// At rate zero nothing leaves. Returns whether what was promised still fits.
    pub fn set_link_rate(&mut self, now: MonotonicTime, rate: BitRate) -> Commitment {
        self.write(|| Event::SetLinkRate(now, rate));
        self.observe(now);
        self.link.set_rate(rate);
        self.reservations.set_link_rate(rate);
        self.reservations.commitment()
    }

    /// Says that the next frame of the device could not be handed over before, for `waited`:
    /// whoever receives it had no buffers. Only the record of decisions knows it.
    pub fn waited_for_credit(&mut self, handle: DeviceHandle, waited: Duration) {
        let nanos = u32::try_from(waited.as_nanos()).unwrap_or(u32::MAX);
        self.write(|| Event::WaitedForCredit(handle, nanos));
        if let Some(device) = self.device_mut(handle) {
            device.credit_nanos = device.credit_nanos.saturating_add(nanos);
        }
    }

    /// Queues a frame of `bytes` behind the others of its class.
    ///
    /// `bytes` is what the frame is charged with: whatever it takes on the link.
    ///
    /// # Errors
    /// [`Refused`] gives the item back: stale handle, class not below [`CLASSES_MAX`], no bytes,
    /// or [`QUEUE_FRAMES_MAX`] frames queued.
    pub fn enqueue(
        &mut self,
        now: MonotonicTime,
        handle: DeviceHandle,
        class: u8,
        bytes: u32,
        item: T,
    ) -> Result<(), Refused<T>> {
        self.write(|| Event::Enqueue(now, handle, class, bytes));
        self.observe(now);
        let now = self.link.now();
        let slot = self.slots.get_mut(handle.slot);
        let Some(Slot {
            occupant: Occupant::Device(device),
            ..
        }) = slot.filter(|slot| slot.generation == handle.generation)
        else {
            return Err(Refused {
                item,
                reason: RefusalReason::StaleHandle,
            });
        };
        let frame = Frame {
            bytes,
            credit_nanos: 0,
            arrived: now,
            item,
        };
        let mut service_time = self.link.service_time();
        if let Some(vm) = device.vm.and_then(|(vm, _)| vm_at(&mut self.vms, vm)) {
            service_time = vm.time(service_time);
            if device.makes_way(class) {
                device.vm_parked_before = vm.parked_nanos(now);
            }
        }
        match device.push(&mut self.frames, class, frame, service_time) {
            Err((reason, item)) => return Err(Refused { item, reason }),
            Ok(false) => {}
            Ok(true) => {
                // What others used before it was the head is nothing that it waited for.
                device.used_before = self.used;
                self.place(handle.slot, now);
            }
        }
        Ok(())
    }

    /// When [`Scheduler::dequeue`] will have a frame, if nothing else happens before.
    ///
    /// Not before `now`, and never too early: at that time dequeue does return a frame. `None`
    /// when nothing is queued, or the link's rate is zero.
    #[must_use]
    pub fn next_wake(&self, now: MonotonicTime) -> Option<MonotonicTime> {
        let may_send = if self.tier.share.is_empty() {
            tick_begin(self.tier.limited.least()?.0)
        } else {
            0
        };
        let nanos = self
            .link
            .free_at()?
            .max(may_send)
            .max(self.link.now())
            .max(now.as_nanos());
        Some(MonotonicTime::from_nanos(nanos))
    }

    /// Bytes the device has queued.
    ///
    /// # Errors
    /// [`StaleHandle`] when the device was removed.
    pub fn queued_bytes(&self, handle: DeviceHandle) -> Result<u64, StaleHandle> {
        let device = self.device(handle).ok_or(StaleHandle)?;
        Ok(device.counters.queued_bytes)
    }

    /// Frames the device has queued.
    ///
    /// # Errors
    /// [`StaleHandle`] when the device was removed.
    pub fn queued_frames(&self, handle: DeviceHandle) -> Result<u32, StaleHandle> {
        let device = self.device(handle).ok_or(StaleHandle)?;
        Ok(device.counters.queued_frames)
    }

    /// What the device asked for, got and waited.
    ///
    /// # Errors
    /// [`StaleHandle`] when the device was removed.
    pub fn statistics(&self, handle: DeviceHandle) -> Result<DeviceStatistics, StaleHandle> {
        let device = self.device(handle).ok_or(StaleHandle)?;
        Ok(device.statistics_at(self.link.now()))
    }

    /// The rate words of the device.
    ///
    /// # Errors
    /// [`StaleHandle`] when the device was removed.
    pub fn rate(&self, handle: DeviceHandle) -> Result<DeviceRate, StaleHandle> {
        self.device(handle)
            .map(|device| device.rate)
            .ok_or(StaleHandle)
    }

    /// Switches the record of decisions, which is on at first. Off, it is empty.
    pub fn set_recording(&mut self, on: bool) {
        if on != self.decisions.is_some() {
            self.decisions = on.then(DecisionRing::default);
        }
    }

    /// The decisions made last, oldest first: at most [`DECISIONS_MAX`].
    ///
    /// [`DECISIONS_MAX`]: crate::decision::DECISIONS_MAX
    pub fn decisions(&self) -> impl Iterator<Item = &Decision> {
        self.decisions.iter().flat_map(DecisionRing::iter)
    }

    /// How many decisions were made since the record was switched on.
    #[must_use]
    pub fn decisions_total(&self) -> u64 {
        self.decisions.as_ref().map_or(0, DecisionRing::total)
    }

    fn device(&self, handle: DeviceHandle) -> Option<&Device> {
        let slot = self.slots.get(handle.slot)?;
        match &slot.occupant {
            Occupant::Device(device) if slot.generation == handle.generation => Some(device),
            _ => None,
        }
    }

    fn device_mut(&mut self, handle: DeviceHandle) -> Option<&mut Device> {
        let slot = self.slots.get_mut(handle.slot)?;
        match &mut slot.occupant {
            Occupant::Device(device) if slot.generation == handle.generation => Some(device),
            _ => None,
        }
    }

    /// The place of a VM in the list of VMs.
    fn vm_place(&self, handle: VmHandle) -> Option<u32> {
        let slot = self.slots.get(handle.slot)?;
        match slot.occupant {
            Occupant::Vm(place) if slot.generation == handle.generation => Some(place),
            _ => None,
        }
    }

    fn vm(&self, handle: VmHandle) -> Option<&Vm> {
        self.vms.get(index(self.vm_place(handle)?))?.as_deref()
    }

    /// The present, for whoever is as it is since `since`.
    fn moment(&self, since: u64) -> Moment {
        Moment {
            now: self.link.now(),
            service_time: self.link.service_time(),
            service_since: self.link.service_time_at(since),
            used: self.used,
        }
    }

    /// Takes note of the time: lost link time, and devices whose limits let them go again.
    fn observe(&mut self, now: MonotonicTime) {
        let now = self.link.observe(now);
        let tick = tick_of(now);
        if self.tier.share.is_empty() {
            // The link was idle until the first of the limited ones was released.
            match self.tier.limited.least() {
                Some((released, _)) if released <= tick => {
                    self.link.begin_backlog(tick_begin(released));
                }
                _ => return,
            }
        }
        self.link.forget_stall();
        while let Some((released, slot)) = self.tier.limited.least()
            && released <= tick
        {
            let since = tick_begin(released).min(now);
            match self.slots.get(slot).map(|slot| &slot.occupant) {
                Some(Occupant::Vm(place)) => self.release_vm(*place, since),
                _ => self.place(slot, since),
            }
        }
        self.tier.limited.advance(tick);
    }

    /// Puts a device where its head, its clocks and the time say; it is like this since `since`.
    fn place(&mut self, slot: u32, since: u64) {
        let moment = self.moment(since);
        let Some(device) = device_at(&mut self.slots, slot) else {
            return;
        };
        let cir = self.reservations.rate_in_force(device.rate.cir);
        if let Some((at, place)) = device.vm {
            if let Some(vm) = vm_at(&mut self.vms, at) {
                vm.place(place, device, &moment, cir);
            }
            self.refresh_vm(at, since);
            return;
        }
        if !device.is_backlogged() {
            device.leave(slot, &mut self.tier);
            return;
        }
        let idle = self.tier.share.is_empty();
        device.place(slot, &mut self.tier, &moment, cir, self.virtual_time);
        if idle && !self.tier.share.is_empty() {
            self.link.begin_backlog(since);
        }
    }

    /// Puts a VM where its devices, its clocks and the time say; it is like this since `since`.
    fn refresh_vm(&mut self, place: u32, since: u64) {
        let moment = self.moment(since);
        let Some(vm) = vm_at(&mut self.vms, place) else {
            return;
        };
        vm.take_due(moment.service_time);
        let head_bytes = vm
            .next()
            .and_then(|(next, _)| device_at(&mut self.slots, vm.member(next)?))
            .map(|device| device.head_bytes());
        let cir = self.reservations.rate_in_force(vm.committed());
        let idle = self.tier.share.is_empty();
        vm.refresh(&mut self.tier, &moment, head_bytes, cir, self.virtual_time);
        if idle && !self.tier.share.is_empty() {
            self.link.begin_backlog(since);
        }
    }

    /// Time has come for a VM, since `since`: its peak, or that of one of its devices, lets go.
    fn release_vm(&mut self, place: u32, since: u64) {
        let moment = self.moment(since);
        if let Some(vm) = vm_at(&mut self.vms, place) {
            vm.unpark(since, moment.service_since);
        }
        let tick = tick_of(moment.now);
        while let Some(vm) = vm_at(&mut self.vms, place)
            && let Some((released, member)) = vm.tier.limited.least()
            && released <= tick
            && let Some(device) = vm
                .member(member)
                .and_then(|slot| device_at(&mut self.slots, slot))
        {
            let since = tick_begin(released).max(since).min(moment.now);
            let moment = Moment {
                service_since: self.link.service_time_at(since),
                ..moment
            };
            let cir = self.reservations.rate_in_force(device.rate.cir);
            vm.place(member, device, &moment, cir);
        }
        self.refresh_vm(place, since);
    }

    fn vm_at(&self, place: u32) -> Option<&Vm> {
        self.vms.get(index(place))?.as_deref()
    }
}

fn device_at(slots: &mut Slots<Slot>, slot: u32) -> Option<&mut Device> {
    match &mut slots.get_mut(slot)?.occupant {
        Occupant::Device(device) => Some(device),
        _ => None,
    }
}

fn vm_at(vms: &mut [Option<Box<Vm>>], place: u32) -> Option<&mut Vm> {
    vms.get_mut(index(place))?.as_deref_mut()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_device_is_small() {
        // With 72 bytes for its places in the four orders below 512.
        assert!(size_of::<Slot>() <= 432, "{}", size_of::<Slot>());
    }

    #[test]
    fn a_slot_whose_generations_are_used_up_is_not_used_again() {
        let rate = BitRate::from_bits_per_second(1_000_000_000);
        let mut scheduler = Scheduler::<()>::new(LinkBudget::new("link", rate));
        let now = MonotonicTime::ZERO;
        let first = scheduler
            .add_device(now, DeviceRate::best_effort())
            .unwrap();
        scheduler.slots.get_mut(0).unwrap().generation = u32::MAX;
        let last = DeviceHandle {
            generation: u32::MAX,
            ..first
        };
        assert!(scheduler.remove_device(last).is_empty());
        let next = scheduler
            .add_device(now, DeviceRate::best_effort())
            .unwrap();
        assert_eq!(
            next,
            DeviceHandle {
                slot: 1,
                generation: 0
            }
        );
        assert_eq!(scheduler.queued_frames(last), Err(StaleHandle));
    }
}

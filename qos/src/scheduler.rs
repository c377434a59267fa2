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
//! 3. **Peak.** In any span of `t` a device gets at most `PIR t + PBS` and one frame.
//! 4. **No idling.** The link is free, a device has a frame and is not limited: it is granted.
//! 5. **Share.** Between two devices that both stay backlogged and unlimited, excess divided by
//!    weight differs by at most one frame each.
//! 6. **Within a device** class 0 leaves before class 1 and so on; frames of a class keep their
//!    order, whatever happens to rates.
//!
//! # The link
//! Grants are paced at the link's rate, so that the queue stands here and not in a socket. A
//! caller that comes late to free link with frames waiting catches up: two frames of 64 KiB or
//! 1 ms of the rate, whichever is more, leave at once. Idle time earns no such burst, and a longer
//! stall is forgotten (it stops the clock of the reservations as well: promise 1 then counts
//! service time).
//!
//! A link that became too slow for what was promised ([`Scheduler::set_link_rate`]) scales all
//! committed rates by one factor.
//!
//! # Cost
//! Four heaps: O(log n) for each call, amortized over the frames granted (one dequeue may have to
//! release many devices whose peak ended meanwhile). Nothing is allocated once a device's queue
//! has grown to its depth.
//!
//! # What is deliberately absent
//! A level for the server profile above the device; deadlines closer than `bytes / CIR`, and CBS
//! as priority (both need their own admission); time buckets instead of heaps; stopping a device
//! that has no credit (the caller does not enqueue what may not leave); a record of the decisions.

use std::fmt;
use std::time::Duration;

use crate::admission::{AdmissionError, Commitment, LinkBudget, Reservations};
use crate::device::{Device, Frame};
pub use crate::device::{DeviceStatistics, Granted};
use crate::heap::SlotHeap;
use crate::link::Link;
use crate::rate::{BitRate, DeviceRate};
use crate::time::MonotonicTime;

/// Classes of a device; class 0 leaves first.
pub const CLASSES_MAX: usize = 4;

/// Frames one device may have queued, over all classes. More are refused and come back.
pub const QUEUE_FRAMES_MAX: u32 = 16_384;

/// Devices one scheduler may hold. More are refused.
pub const DEVICES_MAX: u32 = 131_072;

/// Names a device of the scheduler that gave it out, also after the device is gone: then every
/// call refuses it, and it never names a later device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceHandle {
    slot: u32,
    generation: u32,
}

/// The device was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("device was removed")]
pub struct StaleHandle;

/// Why a frame was let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GrantReason {
    /// Out of the device's committed rate.
    Reserved,
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

/// A place for a device. Handles of earlier occupants carry a lower generation.
#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    device: Option<Device<T>>,
}

/// The scheduler of one link and direction; `T` is whatever the caller queues.
///
/// Every call takes the present time. A time before the latest one counts as the latest.
#[derive(Debug)]
pub struct Scheduler<T> {
    reservations: Reservations,
    link: Link,
    slots: Vec<Slot<T>>,
    vacant: Vec<usize>,
    /// The `v` of the excess grant last made. Never below it: any `v` in `share`.
    virtual_time: u128,
    /// Devices that may send, by `v`.
    share: SlotHeap<u128>,
    /// Those of them with a reservation that is not due yet, by `e`.
    waiting: SlotHeap<u64>,
    /// Those of them with a reservation that is due, by deadline.
    urgent: SlotHeap<u64>,
    /// Devices that reached their peak rate, by the time it releases them.
    limited: SlotHeap<u64>,
}

impl<T> Scheduler<T> {
    /// A scheduler without devices for the link that `budget` describes.
    #[must_use]
    pub fn new(budget: LinkBudget) -> Self {
        Self {
            link: Link::new(budget.rate()),
            reservations: Reservations::new(budget),
            slots: Vec::new(),
            vacant: Vec::new(),
            virtual_time: 0,
            share: SlotHeap::default(),
            waiting: SlotHeap::default(),
            urgent: SlotHeap::default(),
            limited: SlotHeap::default(),
        }
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

    /// Whether the link carries what was promised on it.
    pub fn commitment(&self) -> Commitment {
        self.reservations.commitment()
    }

    /// Whether [`Scheduler::add_device`] would take a device with this rate. Changes nothing.
    ///
    /// # Errors
    /// As [`Scheduler::add_device`].
    pub fn admit(&self, rate: &DeviceRate) -> Result<(), AdmissionError> {
        self.validate(rate)?;
        if self.vacant.is_empty() && self.slots.len() >= devices_max() {
            let hop = self.reservations.hop();
            return Err(AdmissionError::TooManyDevices {
                hop,
                devices_max: DEVICES_MAX,
            });
        }
        self.reservations.check(rate.cir, BitRate::ZERO)
    }

    /// Adds a device and reserves its committed rate.
    ///
    /// # Errors
    /// [`AdmissionError`] when the committed rates would exceed the budget, the rate words do not
    /// fit together, or there are [`DEVICES_MAX`] devices. Nothing is changed then.
    pub fn add_device(
        &mut self,
        now: MonotonicTime,
        rate: DeviceRate,
    ) -> Result<DeviceHandle, AdmissionError> {
        self.admit(&rate)?;
        self.observe(now);
        let slot = self.vacant.pop().unwrap_or(self.slots.len());
        let generation = self.slots.get(slot).map_or(0, |slot| slot.generation);
        // `admit` keeps slots below `DEVICES_MAX`, so the number always fits.
        let handle = DeviceHandle {
            slot: u32::try_from(slot).unwrap_or(u32::MAX),
            generation,
        };
        let device = Device::new(handle, rate, self.link.service_time(), self.virtual_time);
        match self.slots.get_mut(slot) {
            Some(place) => place.device = Some(device),
            None => self.slots.push(Slot {
                generation,
                device: Some(device),
            }),
        }
        self.share.reserve(slot);
        self.waiting.reserve(slot);
        self.urgent.reserve(slot);
        self.limited.reserve(slot);
        self.reservations.exchange(BitRate::ZERO, rate.cir);
        Ok(handle)
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
        let Some(given_back) = self.device(handle).map(|device| device.rate.cir) else {
            return Err(AdmissionError::StaleHandle {
                hop: self.reservations.hop(),
            });
        };
        self.reservations.check(rate.cir, given_back)?;
        self.observe(now);
        let (service_time, now) = (self.link.service_time(), self.link.now());
        let virtual_time = self.virtual_time;
        self.reservations.exchange(given_back, rate.cir);
        if let Some(device) = self.device_mut(handle) {
            device.set_rate(rate, service_time, virtual_time, now);
            let slot = slot_of(handle);
            self.place(slot, now);
        }
        Ok(())
    }

    /// Paces the link at another rate from now on; the reservable part of it stays the same part.
    ///
    /// At rate zero nothing leaves. Returns whether what was promised still fits.
    pub fn set_link_rate(&mut self, now: MonotonicTime, rate: BitRate) -> Commitment {
        self.observe(now);
        self.link.set_rate(rate);
        self.reservations.set_link_rate(rate);
        self.reservations.commitment()
    }

    /// Removes a device, frees what it reserved, and gives back its frames in the order in which
    /// they would have left.
    ///
    /// A stale handle names no frames: the answer is empty, and no other device is touched.
    #[must_use = "frames that are dropped here are lost"]
    pub fn remove_device(&mut self, handle: DeviceHandle) -> Vec<T> {
        let slot = slot_of(handle);
        let Some(place) = self.slots.get_mut(slot) else {
            return Vec::new();
        };
        if place.generation != handle.generation {
            return Vec::new();
        }
        let Some(device) = place.device.take() else {
            return Vec::new();
        };
        // A slot whose generations are used up stays empty rather than to repeat a handle.
        if let Some(generation) = place.generation.checked_add(1) {
            place.generation = generation;
            self.vacant.push(slot);
        }
        self.leave(slot);
        self.reservations.exchange(device.rate.cir, BitRate::ZERO);
        device.into_items()
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
        self.observe(now);
        let now = self.link.now();
        let slot = slot_of(handle);
        let due = self.urgent.key(slot);
        let Some(device) = self.device_mut(handle) else {
            return Err(Refused {
                item,
                reason: RefusalReason::StaleHandle,
            });
        };
        let head = device.head().map(|(class, _)| class);
        let frame = Frame {
            bytes,
            arrived: now,
            item,
        };
        if let Err((reason, frame)) = device.push(class, frame) {
            return Err(Refused {
                item: frame.item,
                reason,
            });
        }
        match head {
            Some(head) if head <= class => {}
            Some(_) => {
                device.deadline_floor = device.deadline_floor.max(due.unwrap_or(0));
                self.place(slot, now);
            }
            None => self.place(slot, now),
        }
        Ok(())
    }

    /// The frame that may leave now; `None` when the link is busy or nobody may send.
    ///
    /// Call it until it returns `None`, then again at [`Scheduler::next_wake`] or after the next
    /// enqueue.
    pub fn dequeue(&mut self, now: MonotonicTime) -> Option<Grant<T>> {
        self.observe(now);
        let now = self.link.now();
        if self.link.free_at()? > now {
            return None;
        }
        let service_time = self.link.service_time();
        while let Some((due, slot)) = self.waiting.least()
            && due <= service_time
        {
            self.place(slot, now);
        }
        let (slot, deadline) = match self.urgent.least() {
            Some((deadline, slot)) => (slot, Some(deadline)),
            None => (self.share.least()?.1, None),
        };
        let device = self.slots.get_mut(slot)?.device.as_mut()?;
        let (class, frame) = device.pop()?;
        device.count(&frame, now);
        self.link.send(frame.bytes);
        let reason = match deadline {
            Some(deadline) => {
                let cir = self.reservations.rate_in_force(device.rate.cir);
                device
                    .reservation
                    .advance(frame.bytes, cir.bits_per_second());
                device.statistics.reserved.count(frame.bytes);
                let late = Duration::from_nanos(self.link.sent_at().saturating_sub(deadline));
                device.statistics.late_max = device.statistics.late_max.max(late);
                GrantReason::Reserved
            }
            None => {
                self.virtual_time = self.virtual_time.max(device.share.nanos());
                device
                    .share
                    .advance(frame.bytes, device.rate.weight_bits_per_second());
                device.statistics.excess.count(frame.bytes);
                GrantReason::Excess
            }
        };
        let device = device.handle;
        self.place(slot, now);
        Some(Grant {
            device,
            class,
            bytes: frame.bytes,
            item: frame.item,
            reason,
        })
    }

    /// When [`Scheduler::dequeue`] will have a frame, if nothing else happens before.
    ///
    /// Not before `now`, and never too early: at that time dequeue does return a frame. `None`
    /// when nothing is queued, or the link's rate is zero.
    #[must_use]
    pub fn next_wake(&self, now: MonotonicTime) -> Option<MonotonicTime> {
        let may_send = if self.share.is_empty() {
            self.limited.least()?.0
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
        Ok(self.statistics(handle)?.queued_bytes)
    }

    /// Frames the device has queued.
    ///
    /// # Errors
    /// [`StaleHandle`] when the device was removed.
    pub fn queued_frames(&self, handle: DeviceHandle) -> Result<u32, StaleHandle> {
        Ok(self.statistics(handle)?.queued_frames)
    }

    /// What the device got and waited.
    ///
    /// # Errors
    /// [`StaleHandle`] when the device was removed.
    pub fn statistics(&self, handle: DeviceHandle) -> Result<DeviceStatistics, StaleHandle> {
        self.device(handle)
            .map(|device| device.statistics)
            .ok_or(StaleHandle)
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

    fn validate(&self, rate: &DeviceRate) -> Result<(), AdmissionError> {
        rate.validate()
            .map_err(|source| AdmissionError::InvalidRate {
                hop: self.reservations.hop(),
                source,
            })
    }

    fn device(&self, handle: DeviceHandle) -> Option<&Device<T>> {
        let slot = self.slots.get(slot_of(handle))?;
        slot.device
            .as_ref()
            .filter(|_| slot.generation == handle.generation)
    }

    fn device_mut(&mut self, handle: DeviceHandle) -> Option<&mut Device<T>> {
        let slot = self.slots.get_mut(slot_of(handle))?;
        let generation = slot.generation;
        slot.device
            .as_mut()
            .filter(|_| generation == handle.generation)
    }

    /// Takes note of the time: lost link time, and devices whose peak lets them go again.
    fn observe(&mut self, now: MonotonicTime) {
        let now = self.link.observe(now);
        if self.share.is_empty() {
            // The link was idle until the first of the limited ones was released.
            match self.limited.least() {
                Some((released, _)) if released <= now => self.link.begin_backlog(released),
                _ => return,
            }
        }
        self.link.forget_stall();
        while let Some((released, slot)) = self.limited.least()
            && released <= now
        {
            self.place(slot, released);
        }
    }

    /// Puts a device where its head, its clocks and the time say; it is like this since `since`.
    fn place(&mut self, slot: usize, since: u64) {
        let now = self.link.now();
        let place = self
            .slots
            .get_mut(slot)
            .and_then(|slot| slot.device.as_mut());
        let Some(device) = place.filter(|device| device.head().is_some()) else {
            self.leave(slot);
            return;
        };
        let released = device.released_at();
        if released > now {
            if self.limited.key(slot).is_none() {
                device.statistics.limited_times = device.statistics.limited_times.saturating_add(1);
            }
            self.leave(slot);
            self.limited.set(slot, released);
            return;
        }
        self.limited.remove(slot);
        if self.share.key(slot).is_none() {
            if self.share.is_empty() {
                self.link.begin_backlog(since);
            }
            device
                .reservation
                .catch_up(self.link.service_time_at(since).into());
            device.share.catch_up(self.virtual_time);
        }
        self.share.set(slot, device.share.nanos());
        let cir = self.reservations.rate_in_force(device.rate.cir);
        let due = device.reservation.time();
        if cir.is_zero() {
            self.waiting.remove(slot);
            self.urgent.remove(slot);
        } else if due > self.link.service_time() {
            device.deadline_floor = 0;
            self.urgent.remove(slot);
            self.waiting.set(slot, due);
        } else {
            self.waiting.remove(slot);
            self.urgent.set(slot, device.deadline(cir));
        }
    }

    /// Takes a device out of every order.
    fn leave(&mut self, slot: usize) {
        self.share.remove(slot);
        self.waiting.remove(slot);
        self.urgent.remove(slot);
        self.limited.remove(slot);
    }
}

fn slot_of(handle: DeviceHandle) -> usize {
    usize::try_from(handle.slot).unwrap_or(usize::MAX)
}

fn devices_max() -> usize {
    usize::try_from(DEVICES_MAX).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_whose_generations_are_used_up_is_not_used_again() {
        let rate = BitRate::from_bits_per_second(1_000_000_000);
        let mut scheduler = Scheduler::<()>::new(LinkBudget::new("link", rate));
        let now = MonotonicTime::ZERO;
        let first = scheduler
            .add_device(now, DeviceRate::best_effort())
            .unwrap();
        scheduler.slots[0].generation = u32::MAX;
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

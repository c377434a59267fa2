//! What the scheduler keeps for one device: its queues, its clocks, its counters.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::RateClock;
use crate::frames::{Frame, FrameStore, Queue};
use crate::order::{Order, Station, TICK_NANOS, Tier, tick_after};
use crate::rate::{BitRate, DeviceRate, OperationLimit};
use crate::scheduler::{CLASSES_MAX, GrantReason, QUEUE_FRAMES_MAX, RefusalReason};

/// Frames and bytes granted for one reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// Bytes as charged by the caller.
    pub bytes: u64,
    /// Frames.
    pub frames: u64,
}

impl Granted {
    pub(crate) fn count(&mut self, bytes: u32) {
        self.bytes = self.bytes.saturating_add(bytes.into());
        self.frames = self.frames.saturating_add(1);
    }
}

/// What a device asked for, got, and waited, since it was added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatistics {
    /// Frames that were queued, with those that left.
    pub offered: Granted,
    /// Granted out of the device's own reservation.
    pub reserved: Granted,
    /// Granted out of what the device's VM reserved and its other devices do not use.
    pub vm_reserved: Granted,
    /// Granted out of what nobody had reserved or nobody used.
    pub excess: Granted,
    /// Bytes in the queues now.
    pub queued_bytes: u64,
    /// Frames in the queues now.
    pub queued_frames: u32,
    /// Frames refused because the queue was full.
    pub refused_frames: u64,
    /// How long frames were queued, altogether.
    pub backlogged: Duration,
    /// Sum of the times from enqueue to grant.
    pub waited_total: Duration,
    /// The longest time from enqueue to grant.
    pub waited_max: Duration,
    /// How often the device was parked because it had reached a limit of its own.
    pub limited_times: u64,
    /// The most a reserved frame left after its deadline, in service time (see
    /// [`crate::scheduler`]); while the committed rates hold at most the transmission time of one
    /// frame and two ticks, and in a VM two frames at the VM's committed rate more.
    pub late_max: Duration,
}

impl DeviceStatistics {
    /// Bytes that were granted, for whatever reason.
    #[must_use]
    pub const fn granted_bytes(&self) -> u64 {
        self.reserved
            .bytes
            .saturating_add(self.vm_reserved.bytes)
            .saturating_add(self.excess.bytes)
    }
}

/// A limit as a GCRA (ITU-T I.371): frames may leave from `due - tolerance` on.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Gcra {
    tolerance_nanos: u64,
    /// At rate zero where there is no limit.
    due: RateClock,
}

impl Gcra {
    /// The limit of `rate` bits per second, if there is one, in the place of `old`: what was used
    /// of the burst stays used, in bits.
    fn new(rate: Option<BitRate>, tolerance_nanos: u64, old: Option<&Self>, now: u64) -> Self {
        let rate = rate.map_or(0, BitRate::bits_per_second);
        let mut due = RateClock::with_rate(0, rate);
        if let Some(old) = old.filter(|old| rate > 0 && old.due.time() > now) {
            due = old.due;
            due.rescale(now, old.due.rate(), rate);
        }
        Self {
            tolerance_nanos,
            due,
        }
    }

    /// A peak rate with its burst.
    pub(crate) fn peak(
        pir: Option<BitRate>,
        burst_nanos: impl Fn(BitRate) -> u64,
        old: Option<&Self>,
        now: u64,
    ) -> Self {
        Self::new(pir, pir.map_or(0, burst_nanos), old, now)
    }

    /// A limit of operations: one of bytes, for frames that all have one byte.
    fn operations(
        limit: Option<OperationLimit>,
        old: Option<&Self>,
        now: u64,
    ) -> Option<Box<Self>> {
        let limit = limit?;
        let rate = BitRate::from_bits_per_second(8 * u64::from(limit.per_second));
        let burst = limit.burst_in_force().saturating_sub(1);
        let tolerance = rate.transmission_nanos(burst.into());
        Some(Box::new(Self::new(Some(rate), tolerance, old, now)))
    }

    /// The time from which the limit lets a frame go.
    pub(crate) fn released_at(&self) -> u64 {
        self.due.time().saturating_sub(self.tolerance_nanos)
    }

    pub(crate) fn charge(&mut self, bytes: u32, now: u64) {
        let rate = self.due.rate();
        if rate > 0 {
            self.due.catch_up(now);
            self.due.advance(bytes, rate);
        }
    }
}

/// The present as a device is placed by it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) now: u64,
    pub(crate) service_time: u64,
    /// The service time from which the device is as it is.
    pub(crate) service_since: u64,
    /// Link time that all grants took so far, by right.
    pub(crate) used: LinkUse,
}

/// Link time in nanoseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct LinkUse {
    pub(crate) reserved: u64,
    pub(crate) excess: u64,
}

impl LinkUse {
    /// The sum after a frame that took `nanos` by that right.
    pub(crate) fn plus(self, nanos: u64, reason: GrantReason) -> Self {
        let (reserved, excess) = match reason {
            GrantReason::Reserved | GrantReason::VmReserved => (nanos, 0),
            GrantReason::Excess => (0, nanos),
        };
        Self {
            reserved: self.reserved.saturating_add(reserved),
            excess: self.excess.saturating_add(excess),
        }
    }
}

/// The tick of a device that does not stand in the share order.
const NO_TICK: u64 = u64::MAX;

/// A device and the ends of its queues.
///
/// With many devices a grant costs what it reads from memory: in the order of the fields, what
/// each grant needs comes first.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[repr(C)]
pub(crate) struct Device {
    /// Where it stands in the share order.
    share_tick: u64,
    /// Where it stands beside the share order.
    station: Station,
    head_class: u8,
    /// A bit for each class that has frames.
    classes_used: u8,
    /// A head took the place of a longer one whose time had come: until the reservation is used
    /// up, deadlines are not before that one's.
    keeps_deadline: bool,
    /// Of the frame that leaves next; no bytes without a frame.
    head_bytes: u32,
    /// Index of its VM, and its number there.
    pub(crate) vm: Option<(u32, u32)>,
    pub(crate) classes: [Queue; CLASSES_MAX],
    peak: Gcra,
    /// `e`: the service time from which the head may use the reservation.
    reservation: RateClock,
    /// `e` once the head has used it.
    next_reservation: RateClock,
    /// From when the head may use the reservation, and by when it would be done if it had the
    /// committed rate for itself: the keys of waiting and urgent.
    eligible: u64,
    deadline: u64,
    /// When the head became it, and what the link had carried when nothing of the device's own
    /// held it any more.
    pub(crate) head_since: u64,
    pub(crate) used_before: LinkUse,
    pub(crate) rate: DeviceRate,
    operations: Option<Box<Gcra>>,
    pub(crate) counters: Counters,
    /// `v`: the virtual time of the share criterion, in ticks.
    pub(crate) share: RateClock,
    /// For the next frame that is queued.
    pub(crate) credit_nanos: u32,
    /// Service time from which it has frames and no limit of its own holds it.
    sendable_since: u64,
    backlogged_since: u64,
    /// How long the VM had been at its peak altogether when the head became it.
    pub(crate) vm_parked_before: u64,
}

/// What [`DeviceStatistics`] is made of.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[repr(C)]
pub(crate) struct Counters {
    pub(crate) queued_bytes: u64,
    pub(crate) queued_frames: u32,
    limited_times: u32,
    waited_nanos: u64,
    waited_nanos_max: u64,
    pub(crate) late_nanos_max: u64,
    pub(crate) reserved: Granted,
    pub(crate) excess: Granted,
    pub(crate) vm_reserved: Granted,
    backlogged_nanos: u64,
    refused_frames: u32,
}

impl Device {
    /// A device that may use its reservation from `service_time` on.
    pub(crate) fn new(
        rate: DeviceRate,
        vm: Option<(u32, u32)>,
        service_time: u64,
        virtual_time: u64,
    ) -> Self {
        Self {
            classes: Default::default(),
            classes_used: 0,
            head_class: 0,
            station: Station::Nowhere,
            head_bytes: 0,
            vm,
            share_tick: NO_TICK,
            reservation: RateClock::with_rate(service_time, rate.cir.bits_per_second()),
            next_reservation: RateClock::default(),
            eligible: 0,
            deadline: 0,
            share: RateClock::with_rate(virtual_time, share_rate(rate.weight_bits_per_second())),
            keeps_deadline: false,
            sendable_since: 0,
            peak: Gcra::peak(rate.pir, |pir| rate.peak_burst_nanos(pir), None, 0),
            backlogged_since: 0,
            head_since: 0,
            used_before: LinkUse::default(),
            vm_parked_before: 0,
            counters: Counters::default(),
            credit_nanos: 0,
            rate,
            operations: Gcra::operations(rate.operations, None, 0),
        }
    }

    pub(crate) fn is_backlogged(&self) -> bool {
        self.head_bytes > 0
    }

    /// Whether a frame of `class` would be the head.
    pub(crate) fn makes_way(&self, class: u8) -> bool {
        !self.is_backlogged() || class < self.head_class
    }

    pub(crate) fn head_bytes(&self) -> u32 {
        self.head_bytes
    }

    /// Whether it stands in the share order.
    fn is_sendable(&self) -> bool {
        self.share_tick != NO_TICK
    }

    /// Puts a frame at the end of its class, or gives it back with the reason. True if it became
    /// the head.
    pub(crate) fn push<T>(
        &mut self,
        store: &mut FrameStore<T>,
        class: u8,
        frame: Frame<T>,
        service_time: u64,
    ) -> Result<bool, (RefusalReason, T)> {
        let Some(queue) = self.classes.get_mut(usize::from(class)) else {
            return Err((RefusalReason::NoSuchClass { class }, frame.item));
        };
        if frame.bytes == 0 {
            return Err((RefusalReason::EmptyFrame, frame.item));
        }
        let counters = &mut self.counters;
        if counters.queued_frames >= QUEUE_FRAMES_MAX {
            counters.refused_frames = counters.refused_frames.saturating_add(1);
            return Err((RefusalReason::QueueFull, frame.item));
        }
        counters.queued_frames += 1;
        counters.queued_bytes += u64::from(frame.bytes);
        let (bytes, now) = (frame.bytes, frame.arrived);
        let credit_nanos = std::mem::take(&mut self.credit_nanos);
        store.push(
            queue,
            Frame {
                credit_nanos,
                ..frame
            },
        );
        self.classes_used |= 1 << class;
        let backlogged = self.is_backlogged();
        let becomes_head = self.makes_way(class);
        if !backlogged {
            self.backlogged_since = now;
            self.head_since = now;
        } else if becomes_head && self.station == Station::Reserved && self.eligible <= service_time
        {
            self.keeps_deadline = true;
        }
        if becomes_head {
            self.head_bytes = bytes;
            self.head_class = class;
        }
        Ok(becomes_head)
    }

    /// Takes the head.
    pub(crate) fn pop<T>(&mut self, store: &mut FrameStore<T>, now: u64) -> Option<(u8, Frame<T>)> {
        let class = self.head_class;
        let queue = self.classes.get_mut(usize::from(class))?;
        let frame = store.pop(queue)?;
        if queue.is_empty() {
            self.classes_used &= !(1 << class);
        }
        let counters = &mut self.counters;
        counters.queued_frames = counters.queued_frames.saturating_sub(1);
        counters.queued_bytes = counters.queued_bytes.saturating_sub(frame.bytes.into());
        self.find_head(store);
        if !self.is_backlogged() {
            let nanos = now.saturating_sub(self.backlogged_since);
            let total = &mut self.counters.backlogged_nanos;
            *total = total.saturating_add(nanos);
        }
        Some((class, frame))
    }

    /// Looks up the frame that leaves next.
    fn find_head<T>(&mut self, store: &FrameStore<T>) {
        let class = self.classes_used.trailing_zeros();
        self.head_class = u8::try_from(class).unwrap_or(0);
        let queue = self.classes.get(usize::from(self.head_class));
        let first = queue.and_then(|queue| store.first(*queue));
        self.head_bytes = first.map_or(0, |frame| frame.bytes);
    }

    /// Its counters at `now`.
    pub(crate) fn statistics_at(&self, now: u64) -> DeviceStatistics {
        let counters = &self.counters;
        let granted = [counters.reserved, counters.vm_reserved, counters.excess];
        let offered = Granted {
            bytes: counters.queued_bytes + granted.iter().map(|right| right.bytes).sum::<u64>(),
            frames: u64::from(counters.queued_frames)
                + granted.iter().map(|right| right.frames).sum::<u64>(),
        };
        let since = match self.is_backlogged() {
            true => now.saturating_sub(self.backlogged_since),
            false => 0,
        };
        DeviceStatistics {
            offered,
            reserved: counters.reserved,
            vm_reserved: counters.vm_reserved,
            excess: counters.excess,
            queued_bytes: counters.queued_bytes,
            queued_frames: counters.queued_frames,
            refused_frames: counters.refused_frames.into(),
            backlogged: Duration::from_nanos(counters.backlogged_nanos.saturating_add(since)),
            waited_total: Duration::from_nanos(counters.waited_nanos),
            waited_max: Duration::from_nanos(counters.waited_nanos_max),
            limited_times: counters.limited_times.into(),
            late_max: Duration::from_nanos(counters.late_nanos_max),
        }
    }

    /// The time from which its own limits let the head go.
    pub(crate) fn released_at(&self) -> u64 {
        let peak = self.peak.released_at();
        match &self.operations {
            None => peak,
            Some(operations) => peak.max(operations.released_at()),
        }
    }

    /// Puts the device, which has a head, where its clocks and the time say. `cir` is the
    /// committed rate in force.
    pub(crate) fn place<Q: Order>(
        &mut self,
        id: u32,
        tier: &mut Tier<Q>,
        moment: &Moment,
        cir: BitRate,
        virtual_time: u64,
    ) {
        let released = self.released_at();
        if released > moment.now {
            if self.station != Station::Limited {
                self.counters.limited_times = self.counters.limited_times.saturating_add(1);
            }
            self.leave_share(id, tier);
            self.stand(id, tier, Station::Limited);
            tier.limited.set(id, tick_after(released));
            return;
        }
        if !self.is_sendable() {
            self.sendable_since = moment.service_since;
            self.reservation.catch_up(moment.service_since);
            self.share.catch_up(virtual_time);
            self.used_before = moment.used;
        }
        let share_tick = self.share.time();
        if self.share_tick != share_tick {
            self.share_tick = share_tick;
            tier.share.set(id, share_tick);
        }
        if cir.is_zero() {
            self.keeps_deadline = false;
            self.stand(id, tier, Station::Nowhere);
            return;
        }
        self.next_reservation = self.reservation;
        self.next_reservation
            .advance(self.head_bytes, cir.bits_per_second());
        let done = self.next_reservation.time();
        let deadline_before = self.deadline;
        (self.eligible, self.deadline) = match self.rate.delay_in_force() {
            None => (self.reservation.time(), done),
            Some(delay) => {
                let conforms = done.saturating_sub(self.rate.committed_burst_nanos());
                let eligible = conforms.max(self.sendable_since);
                (eligible, eligible.saturating_add(delay))
            }
        };
        self.stand(id, tier, Station::Reserved);
        if self.eligible > moment.service_time {
            self.keeps_deadline = false;
            tier.urgent.remove(id);
            tier.wait(id, tick_after(self.eligible), tick_after(self.deadline));
        } else {
            if self.keeps_deadline {
                self.deadline = self.deadline.max(deadline_before);
            }
            tier.waiting.remove(id);
            tier.urgent.set(id, tick_after(self.deadline));
        }
    }

    /// Takes the device out of every order.
    pub(crate) fn leave<Q: Order>(&mut self, id: u32, tier: &mut Tier<Q>) {
        self.leave_share(id, tier);
        self.stand(id, tier, Station::Nowhere);
    }

    fn leave_share<Q: Order>(&mut self, id: u32, tier: &mut Tier<Q>) {
        if self.is_sendable() {
            self.share_tick = NO_TICK;
            tier.share.remove(id);
        }
    }

    /// Leaves the orders of another station.
    fn stand<Q: Order>(&mut self, id: u32, tier: &mut Tier<Q>, station: Station) {
        if self.station != station {
            match self.station {
                Station::Nowhere => {}
                Station::Limited => tier.limited.remove(id),
                Station::Reserved => {
                    tier.waiting.remove(id);
                    tier.urgent.remove(id);
                }
            }
            self.station = station;
        }
    }

    /// Enters new orders where it stood in old ones.
    pub(crate) fn enter<Q: Order>(&self, id: u32, tier: &mut Tier<Q>, service_time: u64) {
        if self.is_sendable() {
            tier.share.set(id, self.share_tick);
        }
        match self.station {
            Station::Nowhere => {}
            Station::Limited => tier.limited.set(id, tick_after(self.released_at())),
            Station::Reserved if self.eligible > service_time => {
                tier.wait(id, tick_after(self.eligible), tick_after(self.deadline));
            }
            Station::Reserved => tier.urgent.set(id, tick_after(self.deadline)),
        }
    }

    /// Charges a frame to the reservation. Returns its deadline.
    pub(crate) fn charge_reservation(&mut self) -> u64 {
        self.reservation = self.next_reservation;
        self.deadline
    }

    /// Charges a frame to the share.
    pub(crate) fn charge_share(&mut self, bytes: u32) {
        self.share.advance(bytes, self.share.rate());
    }

    /// Charges a granted frame to the limits and to the waiting times.
    pub(crate) fn charge_limits(&mut self, bytes: u32, waited_nanos: u64, now: u64) {
        self.peak.charge(bytes, now);
        if let Some(operations) = &mut self.operations {
            operations.charge(1, now);
        }
        let counters = &mut self.counters;
        counters.waited_nanos = counters.waited_nanos.saturating_add(waited_nanos);
        counters.waited_nanos_max = counters.waited_nanos_max.max(waited_nanos);
    }

    /// Takes new rate words. What the device owes or is owed stays the same number of bits.
    pub(crate) fn set_rate(
        &mut self,
        rate: DeviceRate,
        service_time: u64,
        virtual_time: u64,
        now: u64,
    ) {
        self.reservation.rescale(
            service_time,
            self.rate.cir.bits_per_second(),
            rate.cir.bits_per_second(),
        );
        let weight = share_rate(rate.weight_bits_per_second());
        self.share.rescale(virtual_time, self.share.rate(), weight);
        self.peak = Gcra::peak(
            rate.pir,
            |pir| rate.peak_burst_nanos(pir),
            Some(&self.peak),
            now,
        );
        self.operations = Gcra::operations(rate.operations, self.operations.as_deref(), now);
        self.keeps_deadline = false;
        self.rate = rate;
    }
}

/// The rate at which a share clock of `weight` bits per second counts ticks.
pub(crate) fn share_rate(weight: u64) -> u64 {
    weight.saturating_mul(TICK_NANOS)
}

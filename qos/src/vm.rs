//! What the scheduler keeps for one server profile (a VM): the orders of its devices, and what it
//! reserves and may not exceed as a whole.
//!
//! To the link a VM is one device: it has a reservation, a share and a peak, and its head is the
//! frame that is next among its devices. Among these the same two criteria hold, in a time that
//! stands still while the VM's peak holds it.

use serde::{Deserialize, Serialize};

use crate::admission::Reservation;
use crate::clock::RateClock;
use crate::device::{Device, Gcra, Moment, share_rate};
use crate::heap::SlotHeap;
use crate::order::{Order, Tier, index, tick_after, tick_of};
use crate::rate::{BitRate, VmRate};

/// A VM. Its devices are named by the number of their place in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Vm {
    pub(crate) name: String,
    pub(crate) rate: VmRate,
    /// Its own number among all devices and VMs.
    pub(crate) id: u32,
    /// The numbers of its devices among all; a place that is empty has none.
    members: Vec<Option<u32>>,
    vacant: Vec<u32>,
    #[serde(skip)]
    pub(crate) tier: Tier<SlotHeap>,
    /// The `v` of the grant last made to one of its devices out of a share.
    pub(crate) virtual_time: u64,
    /// `v` among VMs.
    share: RateClock,
    /// `e` of the VM.
    reservation: RateClock,
    /// By when its head would be out if the VM had its committed rate for itself. While the
    /// reservation is due it is not moved to an earlier time by a shorter head: others have been
    /// let go before it in view of the later one.
    deadline: u64,
    /// Whether it stands in the link's share order.
    sendable: bool,
    peak: Gcra,
    /// What its devices reserve, and their weights.
    pub(crate) reserved: BitRate,
    protected: BitRate,
    weights: u64,
    /// While the peak holds it: time and service time since when.
    parked_since: Option<(u64, u64)>,
    /// How long it did before, in time and in service time.
    parked_nanos: u64,
    parked_service_nanos: u64,
}

impl Vm {
    pub(crate) fn new(
        name: &str,
        rate: VmRate,
        id: u32,
        service_time: u64,
        virtual_time: u64,
    ) -> Self {
        Self {
            name: name.to_owned(),
            rate,
            id,
            members: Vec::new(),
            vacant: Vec::new(),
            tier: Tier::default(),
            virtual_time: 0,
            share: RateClock::at(virtual_time),
            reservation: RateClock::with_rate(service_time, rate.cir.bits_per_second()),
            deadline: 0,
            sendable: false,
            peak: Gcra::peak(rate.pir, |pir| rate.peak_burst_nanos(pir), None, 0),
            reserved: BitRate::ZERO,
            protected: BitRate::ZERO,
            weights: 0,
            parked_since: None,
            parked_nanos: 0,
            parked_service_nanos: 0,
        }
    }

    /// What refusals call it.
    pub(crate) fn hop(&self) -> String {
        format!("vm {}", self.name)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.members.len() == self.vacant.len()
    }

    /// The number of the device at `place`.
    pub(crate) fn member(&self, place: u32) -> Option<u32> {
        *self.members.get(index(place))?
    }

    /// Takes a device in; returns its place.
    pub(crate) fn join(&mut self, device: u32) -> u32 {
        // There are fewer devices than 2^32.
        let end = u32::try_from(self.members.len()).unwrap_or(u32::MAX);
        let place = self.vacant.pop().unwrap_or(end);
        match self.members.get_mut(index(place)) {
            Some(member) => *member = Some(device),
            None => self.members.push(Some(device)),
        }
        self.tier.reserve(place);
        place
    }

    /// Comes out of an image, as the occupant of the slot `id`.
    pub(crate) fn restore(&mut self, id: u32) {
        self.id = id;
        let places = self.members.len();
        self.vacant.retain(|place| index(*place) < places);
    }

    /// Lets a device go that stands in no order.
    pub(crate) fn part(&mut self, place: u32) {
        if let Some(member) = self.members.get_mut(index(place)) {
            *member = None;
            self.vacant.push(place);
        }
    }

    /// Forgets the orders of its devices, so that they can enter them anew.
    pub(crate) fn clear_tier(&mut self) {
        self.tier = Tier::default();
        if let Some(last) = self.members.len().checked_sub(1) {
            self.tier.reserve(u32::try_from(last).unwrap_or(u32::MAX));
        }
    }

    /// The committed rate as a whole: its own, or what its devices reserve.
    pub(crate) fn committed(&self) -> BitRate {
        committed(self.rate.cir, self.reserved)
    }

    /// What it takes of the link.
    pub(crate) fn reservation(&self) -> Reservation {
        self.reservation_with(&self.rate)
    }

    /// What it would take of the link with another rate.
    pub(crate) fn reservation_with(&self, rate: &VmRate) -> Reservation {
        Reservation {
            cir: committed(rate.cir, self.reserved),
            protected: committed(rate.cir, self.protected),
            burst: None,
        }
    }

    /// Counts what a device reserves and its weight in, and what it had before out.
    pub(crate) fn exchange(
        &mut self,
        service_time: u64,
        virtual_time: u64,
        before: (Reservation, u64),
        after: (Reservation, u64),
    ) {
        let (committed, weight) = (self.committed(), self.weight());
        let moved = |sum: BitRate, before, after| sum.saturating_sub(before).saturating_add(after);
        self.reserved = moved(self.reserved, before.0.cir, after.0.cir);
        self.protected = moved(self.protected, before.0.protected, after.0.protected);
        self.weights = self
            .weights
            .saturating_sub(before.1)
            .saturating_add(after.1);
        self.share.rescale(virtual_time, weight, self.weight());
        self.rescale_reservation(service_time, committed);
    }

    fn rescale_reservation(&mut self, service_time: u64, before: BitRate) {
        let (old, new) = (before.bits_per_second(), self.committed().bits_per_second());
        self.reservation.rescale(service_time, old, new);
        self.deadline = 0;
    }

    /// The weight among VMs, in the unit of the share clock.
    fn weight(&self) -> u64 {
        share_rate(self.rate.weight_bits_per_second(self.weights))
    }

    /// Service time as its devices have it: it stands still while the peak holds the VM.
    pub(crate) fn time(&self, service_time: u64) -> u64 {
        let service_time = match self.parked_since {
            Some((_, parked)) => service_time.min(parked),
            None => service_time,
        };
        service_time.saturating_sub(self.parked_service_nanos)
    }

    /// The present as its devices see it.
    pub(crate) fn moment(&self, moment: &Moment) -> Moment {
        Moment {
            service_time: self.time(moment.service_time),
            service_since: self.time(moment.service_since),
            ..*moment
        }
    }

    /// Puts one of its devices where its clocks say.
    pub(crate) fn place(&mut self, place: u32, device: &mut Device, moment: &Moment, cir: BitRate) {
        if device.is_backlogged() {
            let moment = self.moment(moment);
            device.place(place, &mut self.tier, &moment, cir, self.virtual_time);
        } else {
            device.leave(place, &mut self.tier);
        }
    }

    /// Moves its devices whose reservation is due from waiting to urgent.
    pub(crate) fn take_due(&mut self, service_time: u64) {
        let tick = tick_of(self.time(service_time));
        self.tier.take_due(tick);
    }

    /// The place of the device whose frame is next, and whether that is by its own reservation.
    pub(crate) fn next(&self) -> Option<(u32, bool)> {
        match self.tier.urgent.least() {
            Some((_, place)) => Some((place, true)),
            None => Some((self.tier.share.least()?.1, false)),
        }
    }

    /// Charges a frame that left by the VM's reservation, at the committed rate in force.
    pub(crate) fn charge_reservation(&mut self, bytes: u32, cir: BitRate) {
        self.reservation.advance(bytes, cir.bits_per_second());
        self.deadline = 0;
    }

    /// Charges a frame to the share among VMs; returns the virtual time it left at.
    pub(crate) fn charge_share(&mut self, bytes: u32) -> u64 {
        let virtual_time = self.share.time();
        self.share.advance(bytes, self.weight());
        virtual_time
    }

    pub(crate) fn charge_peak(&mut self, bytes: u32, now: u64) {
        self.peak.charge(bytes, now);
    }

    /// Takes new rate words. What it owes or is owed stays the same number of bits.
    pub(crate) fn set_rate(
        &mut self,
        rate: VmRate,
        service_time: u64,
        virtual_time: u64,
        now: u64,
    ) {
        let (weight, committed) = (self.weight(), self.committed());
        self.rate = rate;
        self.share.rescale(virtual_time, weight, self.weight());
        self.rescale_reservation(service_time, committed);
        let burst_nanos = |pir| rate.peak_burst_nanos(pir);
        self.peak = Gcra::peak(rate.pir, burst_nanos, Some(&self.peak), now);
    }

    /// How long the peak held it altogether, at `now`.
    pub(crate) fn parked_nanos(&self, now: u64) -> u64 {
        let since = self
            .parked_since
            .map_or(0, |(since, _)| now.saturating_sub(since));
        self.parked_nanos.saturating_add(since)
    }

    /// The peak lets it go at `since`, which was `service_since` in service time.
    pub(crate) fn unpark(&mut self, since: u64, service_since: u64) {
        if let Some((parked, parked_service)) = self.parked_since.take() {
            let add = |sum: u64, from: u64, to: u64| sum.saturating_add(to.saturating_sub(from));
            self.parked_nanos = add(self.parked_nanos, parked, since);
            self.parked_service_nanos =
                add(self.parked_service_nanos, parked_service, service_since);
        }
    }

    /// Puts the VM where its devices, its clocks and the time say. `head_bytes` is the frame that
    /// is next among its devices, and `cir` the committed rate in force.
    pub(crate) fn refresh<Q: Order>(
        &mut self,
        tier: &mut Tier<Q>,
        moment: &Moment,
        head_bytes: Option<u32>,
        cir: BitRate,
        virtual_time: u64,
    ) {
        let released = self.peak.released_at();
        let Some(head_bytes) = head_bytes else {
            self.unpark(moment.now, moment.service_time);
            self.sendable = false;
            tier.leave(self.id);
            // A device that is let go before the VM is would be let go for nothing.
            if let Some((tick, _)) = self.tier.limited.least() {
                tier.limited.set(self.id, tick.max(tick_after(released)));
            }
            return;
        };
        // Parked, it stays so until its tick begins, whatever its devices do meanwhile.
        if released > moment.now || self.parked_since.is_some() {
            self.parked_since
                .get_or_insert((moment.now, moment.service_time));
            self.sendable = false;
            tier.leave(self.id);
            tier.limited.set(self.id, tick_after(released));
            return;
        }
        match self.tier.limited.least() {
            Some((tick, _)) => tier.limited.set(self.id, tick),
            None => tier.limited.remove(self.id),
        }
        if !std::mem::replace(&mut self.sendable, true) {
            self.share.catch_up(virtual_time);
            self.reservation.catch_up(moment.service_since);
            self.deadline = 0;
        }
        tier.share.set(self.id, self.share.time());
        if cir.is_zero() {
            tier.waiting.remove(self.id);
            tier.urgent.remove(self.id);
            return;
        }
        let due = self.reservation.time();
        let mut done = self.reservation;
        done.advance(head_bytes, cir.bits_per_second());
        if due > moment.service_time {
            self.deadline = done.time();
            tier.urgent.remove(self.id);
            tier.wait(self.id, tick_after(due), tick_after(self.deadline));
        } else {
            self.deadline = self.deadline.max(done.time());
            tier.waiting.remove(self.id);
            tier.urgent.set(self.id, tick_after(self.deadline));
        }
    }
}

fn committed(own: BitRate, devices: BitRate) -> BitRate {
    if own.is_zero() { devices } else { own }
}

//! The choice of the frame that leaves, and the words for why.

use super::{Grant, GrantReason, Occupant, Scheduler, Slot, vm_at};
use crate::decision::{Decision, Waits};
use crate::device::{Device, LinkUse};
use crate::order::{Order, tick_of};
use crate::scheduler::DeviceHandle;
use crate::time::MonotonicTime;
use crate::trace::Event;
use crate::vm::Vm;

/// Whose turn it is: a device and the right it has to it.
#[derive(Clone, Copy)]
struct Turn {
    slot: u32,
    reason: GrantReason,
}

impl<T> Scheduler<T> {
    /// The frame that may leave now; `None` when the link is busy or nobody may send.
    ///
    /// Call it until it returns `None`, then again at [`Scheduler::next_wake`] or after the next
    /// enqueue.
    pub fn dequeue(&mut self, now: MonotonicTime) -> Option<Grant<T>> {
        let grant = self.choose(now);
        if let Some(trace) = &mut self.trace {
            trace.write(Event::Dequeue(now, grant.as_ref().map(Into::into)));
        }
        grant
    }

    fn choose(&mut self, now: MonotonicTime) -> Option<Grant<T>> {
        self.observe(now);
        let now = self.link.now();
        if self.tier.share.is_empty() || self.link.free_at()? > now {
            return None;
        }
        let service_time = self.link.service_time();
        let service_tick = tick_of(service_time);
        self.tier.take_due(service_tick);
        self.tier.waiting.advance(service_tick);
        self.tier
            .urgent
            .advance(tick_of(service_time.saturating_sub(self.link.late_nanos())));
        let turn = self.turn(now)?;
        self.grant(turn, now)
    }

    fn turn(&mut self, now: u64) -> Option<Turn> {
        while let Some((deadline, id)) = self.tier.urgent.least() {
            let Some(Occupant::Vm(place)) = self.slots.get(id).map(|slot| &slot.occupant) else {
                let reason = GrantReason::Reserved;
                return Some(Turn { slot: id, reason });
            };
            // The reservation of another of its devices may have come due since it was placed:
            // then another frame is its head, which may be longer and have a later deadline.
            let place = *place;
            self.refresh_vm(place, now);
            if self.tier.urgent.least() != Some((deadline, id)) {
                continue;
            }
            let vm = self.vm_at(place)?;
            let (next, own) = vm.next()?;
            let reason = match own {
                true => GrantReason::Reserved,
                false => GrantReason::VmReserved,
            };
            let slot = vm.member(next)?;
            return Some(Turn { slot, reason });
        }
        let (_, id) = self.tier.share.least()?;
        let slot = match self.vm_of(id) {
            None => id,
            Some(vm) => vm.member(vm.tier.share.least()?.1)?,
        };
        let reason = GrantReason::Excess;
        Some(Turn { slot, reason })
    }

    fn vm_of(&self, slot: u32) -> Option<&Vm> {
        match self.slots.get(slot)?.occupant {
            Occupant::Vm(place) => self.vm_at(place),
            _ => None,
        }
    }

    fn grant(&mut self, turn: Turn, now: u64) -> Option<Grant<T>> {
        let Turn { slot, reason } = turn;
        let handle = DeviceHandle {
            slot,
            generation: self.slots.get(slot)?.generation,
        };
        let Some(Slot {
            occupant: Occupant::Device(device),
            ..
        }) = self.slots.get_mut(slot)
        else {
            return None;
        };
        let (class, frame) = device.pop(&mut self.frames, now)?;
        let bytes = frame.bytes;
        let mut vm = device.vm.and_then(|(at, _)| vm_at(&mut self.vms, at));
        let (eligible, waits) = explain(
            device,
            vm.as_deref(),
            frame.arrived,
            frame.credit_nanos,
            self.used,
            now,
        );
        let sent_nanos = self.link.send(bytes);
        let used = self.used.plus(sent_nanos, reason);
        self.used = used;
        if reason != GrantReason::Excess
            && let Some(vm) = vm.as_deref_mut()
        {
            let cir = self.reservations.rate_in_force(vm.committed());
            vm.charge_reservation(bytes, cir);
        }
        if reason == GrantReason::Reserved {
            let sent_at = self.link.sent_at();
            let sent_at = vm.as_deref().map_or(sent_at, |vm| vm.time(sent_at));
            let late = sent_at.saturating_sub(device.charge_reservation());
            let counters = &mut device.counters;
            counters.late_nanos_max = counters.late_nanos_max.max(late);
            counters.reserved.count(bytes);
        } else {
            let virtual_time = device.share.time();
            device.charge_share(bytes);
            if let Some(vm) = vm.as_deref_mut() {
                vm.virtual_time = vm.virtual_time.max(virtual_time);
            }
            if reason == GrantReason::VmReserved {
                device.counters.vm_reserved.count(bytes);
            } else {
                device.counters.excess.count(bytes);
                let virtual_time = match vm.as_deref_mut() {
                    None => virtual_time,
                    Some(vm) => vm.charge_share(bytes),
                };
                self.virtual_time = self.virtual_time.max(virtual_time);
                self.tier.share.advance(self.virtual_time);
            }
        }
        device.charge_limits(bytes, now.saturating_sub(frame.arrived), now);
        device.head_since = now;
        device.used_before = used;
        if let Some(vm) = vm {
            vm.charge_peak(bytes, now);
            device.vm_parked_before = vm.parked_nanos(now);
        }
        let decision = Decision {
            device: handle,
            bytes,
            class,
            reason,
            arrived: MonotonicTime::from_nanos(frame.arrived),
            eligible: MonotonicTime::from_nanos(eligible),
            started: MonotonicTime::from_nanos(now),
            waits,
        };
        if let Some(decisions) = &mut self.decisions {
            decisions.push(decision);
        }
        self.place(slot, now);
        Some(Grant {
            device: handle,
            class,
            bytes,
            item: frame.item,
            reason,
            decision,
        })
    }
}

/// From when a frame that leaves at `now` was held by nothing of its own, and what it waited for.
///
/// Own causes count first, in the order in which they held the frame; then the link time that
/// others took, by right; what is left is the link's.
#[inline]
fn explain(
    device: &Device,
    vm: Option<&Vm>,
    arrived: u64,
    credit_nanos: u32,
    used: LinkUse,
    now: u64,
) -> (u64, Waits) {
    let first = device.head_since.max(arrived);
    let released = device.released_at().clamp(first, now.max(first));
    let mut left = now.saturating_sub(released);
    let mut take = |nanos: u64| {
        let nanos = nanos.min(left);
        left -= nanos;
        nanos
    };
    let parked = vm.map_or(0, |vm| {
        vm.parked_nanos(now).saturating_sub(device.vm_parked_before)
    });
    let before = device.used_before;
    let parked = take(parked);
    let others_reserved = take(used.reserved.saturating_sub(before.reserved));
    let others_share = take(used.excess.saturating_sub(before.excess));
    let waits = Waits::new([
        credit_nanos.into(),
        first.saturating_sub(arrived),
        released.saturating_sub(first),
        parked,
        others_reserved,
        others_share,
        take(u64::MAX),
    ]);
    (released.saturating_add(parked), waits)
}

//! The scheduler as plainly as it can be said: lists that are searched from end to end, and clocks
//! as fractions. It does not choose; it checks that every choice of the real one is allowed.
//!
//! What it leaves open is what the real one leaves open: the order inside of one tick of 512 ns,
//! and a reservation that is seen to be due up to a tick late. It needs a punctual caller (one that
//! dequeues at every wake), so that service time is time.

use std::collections::VecDeque;

use qos::{BitRate, DeviceRate, GrantReason, VmRate};

const TICK: u64 = 512;
const COST: u128 = 8_000_000_000;

/// The time `parts / rate`.
#[derive(Clone, Copy, Debug)]
struct Clock {
    parts: u128,
    rate: u128,
}

impl Clock {
    fn at(time: u64, rate: u64) -> Self {
        let rate = u128::from(rate);
        Self {
            parts: u128::from(time) * rate,
            rate,
        }
    }

    /// Rounded up; a clock without a rate is nobody's.
    fn time(&self) -> u64 {
        match self.rate {
            0 => 0,
            rate => u64::try_from(self.parts.div_ceil(rate)).unwrap(),
        }
    }

    fn catch_up(&mut self, time: u64) {
        if self.rate > 0 && self.parts / self.rate < u128::from(time) {
            self.parts = u128::from(time) * self.rate;
        }
    }

    fn spend(&mut self, bytes: u32) {
        self.parts += u128::from(bytes) * COST;
    }
}

/// A limit: released when the clock less the tolerance has come.
struct Limit {
    clock: Clock,
    tolerance: u64,
}

impl Limit {
    fn peak(pir: Option<BitRate>, pbs_bytes: u32) -> Option<Self> {
        let pir = pir?.bits_per_second();
        let tolerance = u128::from(pbs_bytes) * COST / u128::from(pir);
        Some(Self {
            clock: Clock::at(0, pir),
            tolerance: u64::try_from(tolerance).unwrap(),
        })
    }

    fn released(&self) -> u64 {
        self.clock.time().saturating_sub(self.tolerance)
    }

    fn spend(&mut self, bytes: u32, now: u64) {
        self.clock.catch_up(now);
        self.clock.spend(bytes);
    }
}

fn tick_after(time: u64) -> u64 {
    time.div_ceil(TICK)
}

struct Device {
    cir: u64,
    vm: Option<usize>,
    peak: Option<Limit>,
    reservation: Clock,
    share: Clock,
    queue: VecDeque<u32>,
    /// Limited until the begin of this tick.
    limited_until: Option<u64>,
    sendable: bool,
}

struct Vm {
    /// Its devices reserve one by one.
    sums: bool,
    peak: Option<Limit>,
    reservation: Clock,
    share: Clock,
    virtual_time: u64,
    parked_since: Option<u64>,
    parked_until: Option<u64>,
    /// How long it was parked before.
    parked: u64,
    sendable: bool,
    /// The latest deadline that its head may have been given since the reservation is due.
    deadline: u64,
}

impl Vm {
    /// Time as its devices have it.
    fn time(&self, time: u64) -> u64 {
        self.parked_since
            .map_or(time, |since| time.min(since))
            .saturating_sub(self.parked)
    }

    fn unpark(&mut self, at: u64) {
        if let Some(since) = self.parked_since.take() {
            self.parked += at - since;
        }
        self.parked_until = None;
    }

    fn released(&self) -> u64 {
        self.peak.as_ref().map_or(0, Limit::released)
    }
}

/// The model; devices and VMs are numbered in the order they are added.
pub(crate) struct Model {
    link: Clock,
    virtual_time: u64,
    devices: Vec<Device>,
    vms: Vec<Vm>,
}

/// What stands in the link's orders.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Entity {
    Device(usize),
    Vm(usize),
}

impl Model {
    pub(crate) fn new(link: BitRate) -> Self {
        Self {
            link: Clock::at(0, link.bits_per_second()),
            virtual_time: 0,
            devices: Vec::new(),
            vms: Vec::new(),
        }
    }

    /// Adds a VM at time zero; burst and weight must be explicit.
    pub(crate) fn add_vm(&mut self, rate: &VmRate) {
        assert!(rate.pir.is_none() || rate.pbs_bytes > 0);
        assert!(rate.weight > 0);
        let weight = u64::from(rate.weight) * 1_000_000;
        self.vms.push(Vm {
            sums: rate.cir.is_zero(),
            peak: Limit::peak(rate.pir, rate.pbs_bytes),
            reservation: Clock::at(0, rate.cir.bits_per_second()),
            share: Clock::at(0, weight * TICK),
            virtual_time: 0,
            parked_since: None,
            parked_until: None,
            parked: 0,
            sendable: false,
            deadline: 0,
        });
    }

    /// Adds a device at time zero; burst and weight must be explicit.
    pub(crate) fn add_device(&mut self, rate: &DeviceRate, vm: Option<usize>) {
        assert!(rate.pir.is_none() || rate.pbs_bytes > 0);
        assert!(rate.weight > 0 && rate.delay_max.is_none() && rate.operations.is_none());
        let weight = u64::from(rate.weight) * 1_000_000;
        self.devices.push(Device {
            cir: rate.cir.bits_per_second(),
            vm,
            peak: Limit::peak(rate.pir, rate.pbs_bytes),
            reservation: Clock::at(0, rate.cir.bits_per_second()),
            share: Clock::at(0, weight * TICK),
            queue: VecDeque::new(),
            limited_until: None,
            sendable: false,
        });
        if let Some(vm) = vm.map(|vm| &mut self.vms[vm])
            && vm.sums
        {
            vm.reservation.rate += u128::from(rate.cir.bits_per_second());
        }
    }

    pub(crate) fn enqueue(&mut self, now: u64, device: usize, bytes: u32) {
        self.observe(now);
        let was_empty = self.devices[device].queue.is_empty();
        self.devices[device].queue.push_back(bytes);
        if was_empty {
            self.settle(device, now, now);
        }
    }

    /// The real one granted the head of `device` for `reason`.
    pub(crate) fn granted(&mut self, now: u64, device: usize, bytes: u32, reason: GrantReason) {
        self.observe(now);
        assert!(self.link.time() <= now, "link is busy");
        self.note_deadlines(now, None);
        let limits = (
            self.devices[device].limited_until,
            self.devices[device].vm.map(|vm| self.vms[vm].parked_until),
        );
        assert!(
            self.may_send(device),
            "{now}: a limit holds device {device}: {limits:?}"
        );
        let head = self.devices[device].queue.pop_front();
        assert_eq!(head, Some(bytes), "another frame is the head");
        self.devices[device].queue.push_front(bytes);
        self.check_choice(now, device, reason);
        self.devices[device].queue.pop_front();
        self.charge(now, device, bytes, reason);
        self.settle(device, now, now);
    }

    /// The real one granted nothing and wants to be asked again at `wake`.
    pub(crate) fn idle(&mut self, now: u64, wake: Option<u64>) {
        self.observe(now);
        let backlogged = self.devices.iter().any(|device| !device.queue.is_empty());
        assert_eq!(wake.is_some(), backlogged, "wake {wake:?}");
        let Some(wake) = wake else { return };
        let sendable = (0..self.devices.len()).any(|device| self.may_send(device));
        let expected = if sendable {
            self.link.time()
        } else {
            let limits = (0..self.devices.len()).filter_map(|at| self.released(at));
            let parked = self.vms.iter().filter_map(|vm| vm.parked_until);
            limits.chain(parked).min().unwrap().max(self.link.time())
        };
        assert_eq!(wake, expected.max(now), "sendable: {sendable}");
        assert!(wake > now, "something could have left at {now}");
    }

    fn may_send(&self, device: usize) -> bool {
        let device = &self.devices[device];
        let parked = device
            .vm
            .is_some_and(|vm| self.vms[vm].parked_until.is_some());
        device.sendable && !parked
    }

    /// Devices and VMs whose limits let them go by `now`, in the order of time.
    fn observe(&mut self, now: u64) {
        loop {
            let devices = (0..self.devices.len())
                .filter_map(|at| Some((self.released(at)?, Entity::Device(at))));
            let vms = (0..self.vms.len())
                .filter_map(|at| Some((self.vms[at].parked_until?, Entity::Vm(at))));
            let next = devices.chain(vms).min_by_key(|(until, _)| *until);
            let Some((until, entity)) = next.filter(|(until, _)| *until <= now) else {
                return;
            };
            // Idle time before the first release earns nothing.
            if !(0..self.devices.len()).any(|device| self.may_send(device)) {
                self.link.catch_up(until);
            }
            match entity {
                Entity::Device(at) => self.settle(at, until, now),
                Entity::Vm(at) => {
                    self.vms[at].unpark(until);
                    self.settle_vm(at, until, now);
                    self.note_deadlines(now, Some(at));
                    for member in self.members(at) {
                        let limited = self.devices[member].limited_until;
                        if let Some(limited) = limited.filter(|limited| *limited <= now) {
                            self.settle(member, until.max(limited), now);
                        }
                    }
                }
            }
        }
    }

    /// When a device is let go that its own limit holds, if no VM is parked until later.
    fn released(&self, at: usize) -> Option<u64> {
        let device = &self.devices[at];
        let until = device.limited_until?;
        let Some(vm) = device.vm else {
            return Some(until);
        };
        let others = self.members(vm).iter().any(|at| self.devices[*at].sendable);
        let vm = &self.vms[vm];
        match vm.parked_until {
            Some(_) => None,
            None if others => Some(until),
            // Let go before its VM is, it would be let go for nothing.
            None => Some(until.max(tick_after(vm.released()) * TICK)),
        }
    }

    fn members(&self, vm: usize) -> Vec<usize> {
        let members = 0..self.devices.len();
        members
            .filter(|at| self.devices[*at].vm == Some(vm))
            .collect()
    }

    /// Puts a device where its head and its limit say; it is like this since `since`.
    fn settle(&mut self, at: usize, since: u64, now: u64) {
        let idle = !(0..self.devices.len()).any(|device| self.may_send(device));
        let (link_time, vm) = (self.virtual_time, self.devices[at].vm);
        let virtual_time = vm.map_or(link_time, |vm| self.vms[vm].virtual_time);
        let vm_since = vm.map_or(since, |vm| self.vms[vm].time(since));
        let device = &mut self.devices[at];
        device.limited_until = None;
        if device.queue.is_empty() {
            device.sendable = false;
        } else {
            let released = device.peak.as_ref().map_or(0, Limit::released);
            if released > now {
                device.sendable = false;
                device.limited_until = Some(tick_after(released) * TICK);
            } else if !std::mem::replace(&mut device.sendable, true) {
                device.reservation.catch_up(vm_since);
                device.share.catch_up(virtual_time);
            }
        }
        if let Some(vm) = vm {
            self.settle_vm(vm, since, now);
            self.note_deadlines(now, Some(vm));
        }
        if idle && (0..self.devices.len()).any(|device| self.may_send(device)) {
            self.link.catch_up(since);
        }
    }

    fn settle_vm(&mut self, at: usize, since: u64, now: u64) {
        let sendable = self.members(at).iter().any(|at| self.devices[*at].sendable);
        let virtual_time = self.virtual_time;
        let vm = &mut self.vms[at];
        let released = vm.released();
        if !sendable {
            vm.unpark(now);
            vm.sendable = false;
        } else if released > now || vm.parked_until.is_some() {
            vm.parked_since.get_or_insert(now);
            vm.parked_until = Some(tick_after(released) * TICK);
            vm.sendable = false;
        } else if !std::mem::replace(&mut vm.sendable, true) {
            vm.share.catch_up(virtual_time);
            vm.reservation.catch_up(since);
            vm.deadline = 0;
        }
    }

    /// Deadlines that VMs may have given to their heads, which may be any of several. The real one
    /// has looked at `placed` just now, at the others perhaps.
    fn note_deadlines(&mut self, now: u64, placed: Option<usize>) {
        for at in 0..self.vms.len() {
            let heads = self.heads(at, now);
            let latest = heads.iter().map(|head| self.vm_deadline(at, *head)).max();
            let vm = &mut self.vms[at];
            let keeps = vm.reservation.time() <= now || placed != Some(at);
            let before = if keeps { vm.deadline } else { 0 };
            vm.deadline = latest.map_or(0, |latest| latest.max(before));
        }
    }

    /// The deadline that a VM has with a device's frame as its head.
    fn vm_deadline(&self, at: usize, device: usize) -> u64 {
        let mut done = self.vms[at].reservation;
        done.spend(self.devices[device].queue[0]);
        done.time()
    }

    /// The devices of a VM that may be next.
    fn heads(&self, at: usize, now: u64) -> Vec<usize> {
        let members = self.members(at);
        let first = self.first_of(&members, now);
        let mut heads: Vec<usize> = members
            .into_iter()
            .filter(|at| {
                let deadline = self.deadline(*at, now, true);
                deadline.is_some_and(|deadline| tick_after(deadline) <= first)
            })
            .collect();
        if first == u64::MAX {
            heads.extend(self.turns(at));
        }
        heads
    }

    /// The earliest deadline of devices whose reservation is due for certain, in ticks.
    fn first_of(&self, devices: &[usize], now: u64) -> u64 {
        let due = devices
            .iter()
            .filter_map(|at| self.deadline(*at, now, false));
        due.map(tick_after).min().unwrap_or(u64::MAX)
    }

    /// Head's deadline of a device's own reservation, if that is due.
    fn deadline(&self, at: usize, now: u64, exact: bool) -> Option<u64> {
        let device = &self.devices[at];
        let now = device.vm.map_or(now, |vm| self.vms[vm].time(now));
        due(&device.reservation, *device.queue.front()?, now, exact)
            .filter(|_| device.cir > 0 && self.may_send(at))
    }

    /// Devices of a VM whose share says that it is their turn: all of the least tick.
    fn turns(&self, vm: usize) -> Vec<usize> {
        let sendable: Vec<usize> = self
            .members(vm)
            .into_iter()
            .filter(|at| self.may_send(*at))
            .collect();
        let least = sendable
            .iter()
            .map(|at| self.devices[*at].share.time())
            .min();
        sendable
            .into_iter()
            .filter(|at| Some(self.devices[*at].share.time()) == least)
            .collect()
    }

    fn check_choice(&self, now: u64, device: usize, reason: GrantReason) {
        let vm = self.devices[device].vm;
        // Everything that is due for certain, with the latest deadline it may have been given.
        let alone = (0..self.devices.len()).filter(|at| self.devices[*at].vm.is_none());
        let alone = alone.filter_map(|at| self.deadline(at, now, false));
        let vms = (0..self.vms.len()).filter(|at| Some(*at) != vm || reason == GrantReason::Excess);
        let vms = vms.filter(|at| {
            let reservation = &self.vms[*at].reservation;
            reservation.rate > 0
                && tick_after(reservation.time()) <= now / TICK
                && !self.turns(*at).is_empty()
        });
        let vms = vms.map(|at| self.vms[at].deadline);
        let first = alone.chain(vms).map(tick_after).min();
        if reason == GrantReason::Excess {
            assert_eq!(first, None, "something reserved is due");
            let entity = vm.map_or(Entity::Device(device), Entity::Vm);
            let shares = self.sendable().into_iter().map(|entity| self.share(entity));
            assert_eq!(Some(self.share(entity)), shares.min(), "not its turn");
            if let Some(vm) = vm {
                assert!(self.turns(vm).contains(&device), "not its turn in its VM");
            }
            return;
        }
        let deadline = match vm {
            None => self.deadline(device, now, true),
            Some(vm) => (self.vms[vm].reservation.rate > 0
                && self.vms[vm].reservation.time() <= now)
                .then(|| self.vm_deadline(vm, device)),
        };
        let deadline = deadline.expect("a reservation is due");
        let first = first.unwrap_or(u64::MAX);
        assert!(
            tick_after(deadline) <= first,
            "{now}: device {device} of {vm:?}, due by {deadline}, was not first"
        );
        let Some(vm) = vm else { return };
        let first = self.first_of(&self.members(vm), now);
        if reason == GrantReason::Reserved {
            let own = self.deadline(device, now, true).expect("its own is due");
            assert!(tick_after(own) <= first, "{now}: not first in its VM");
        } else {
            assert_eq!(first, u64::MAX, "{now}: an own reservation is due");
            assert!(self.turns(vm).contains(&device), "not its turn in its VM");
        }
    }

    fn sendable(&self) -> Vec<Entity> {
        let devices = (0..self.devices.len())
            .filter(|at| self.devices[*at].vm.is_none() && self.may_send(*at))
            .map(Entity::Device);
        let vms = (0..self.vms.len())
            .filter(|at| !self.turns(*at).is_empty())
            .map(Entity::Vm);
        devices.chain(vms).collect()
    }

    fn share(&self, entity: Entity) -> u64 {
        match entity {
            Entity::Device(at) => self.devices[at].share.time(),
            Entity::Vm(at) => self.vms[at].share.time(),
        }
    }

    fn charge(&mut self, now: u64, at: usize, bytes: u32, reason: GrantReason) {
        self.link.spend(bytes);
        let device = &mut self.devices[at];
        if let Some(peak) = &mut device.peak {
            peak.spend(bytes, now);
        }
        let shared = device.share.time();
        match reason {
            GrantReason::Reserved => device.reservation.spend(bytes),
            GrantReason::VmReserved | GrantReason::Excess => device.share.spend(bytes),
        }
        let Some(vm) = device.vm.map(|vm| &mut self.vms[vm]) else {
            if reason == GrantReason::Excess {
                self.virtual_time = self.virtual_time.max(shared);
            }
            return;
        };
        if let Some(peak) = &mut vm.peak {
            peak.spend(bytes, now);
        }
        if reason != GrantReason::Reserved {
            vm.virtual_time = vm.virtual_time.max(shared);
        }
        if reason == GrantReason::Excess {
            self.virtual_time = self.virtual_time.max(vm.share.time());
            vm.share.spend(bytes);
        } else {
            vm.reservation.spend(bytes);
            vm.deadline = 0;
        }
    }
}

/// The deadline of a frame if the clock is due. `exact`: as soon as it may be; otherwise once it
/// must have been seen.
fn due(clock: &Clock, bytes: u32, now: u64, exact: bool) -> Option<u64> {
    let from = clock.time();
    let is_due = match exact {
        true => from <= now,
        false => tick_after(from) <= now / TICK,
    };
    let mut done = *clock;
    done.spend(bytes);
    is_due.then(|| done.time())
}

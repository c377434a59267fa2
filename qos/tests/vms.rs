//! Server profiles: what a VM reserves and may not exceed as a whole, while its devices change.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a failed expectation is a failed test"
)]

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::{Random, at, budget, rate};
use proptest::prelude::*;
use qos::{
    AdmissionError, BitRate, DeviceHandle, DeviceRate, LinkBudget, MonotonicTime, Scheduler,
    VmHandle, VmRate,
};

const MILLISECOND: u64 = 1_000_000;

fn cir(text: &str) -> DeviceRate {
    DeviceRate {
        cir: rate(text),
        ..DeviceRate::default()
    }
}

fn vm(text: &str) -> VmRate {
    VmRate {
        cir: rate(text),
        ..VmRate::default()
    }
}

/// A link that is kept busy by devices that always have frames.
struct Busy {
    scheduler: Scheduler<()>,
    greedy: Vec<DeviceHandle>,
    now: u64,
}

impl Busy {
    fn new(link: &str) -> Self {
        Self {
            scheduler: Scheduler::new(budget(rate(link))),
            greedy: Vec::new(),
            now: 0,
        }
    }

    /// Runs for a while; megabits per second of each greedy device.
    fn run(&mut self, nanos: u64) -> Vec<u64> {
        let until = self.now + nanos;
        let mut bytes = vec![0; self.greedy.len()];
        while self.now < until {
            for device in &self.greedy {
                while self.scheduler.queued_frames(*device).unwrap() < 4 {
                    let now = at(self.now);
                    self.scheduler.enqueue(now, *device, 0, 1_500, ()).unwrap();
                }
            }
            while let Some(grant) = self.scheduler.dequeue(at(self.now)) {
                let place = self.greedy.iter().position(|known| *known == grant.device);
                bytes[place.unwrap()] += u64::from(grant.bytes);
            }
            let wake = self.scheduler.next_wake(at(self.now)).unwrap().as_nanos();
            self.now = wake.min(until);
        }
        let megabits = bytes
            .iter()
            .map(|bytes| (bytes * 8_000 + nanos / 2) / nanos);
        megabits.collect()
    }
}

#[track_caller]
fn assert_near(value: u64, expected: u64) {
    assert!(
        value.abs_diff(expected) * 100 <= expected,
        "{value} is not {expected}"
    );
}

#[test]
fn what_a_device_of_a_vm_leaves_is_the_vms() {
    let mut link = Busy::new("1G");
    let vm1 = link.scheduler.add_vm(at(0), "vm1", vm("400M")).unwrap();
    let other = link.scheduler.add_device(at(0), cir("600M")).unwrap();
    let without = link
        .scheduler
        .add_device_to(at(0), vm1, DeviceRate::best_effort())
        .unwrap();
    let with = link
        .scheduler
        .add_device_to(at(0), vm1, cir("300M"))
        .unwrap();
    link.greedy = vec![other, without];
    let alone = link.run(100 * MILLISECOND);
    assert_near(alone[0], 600);
    assert_near(alone[1], 400);
    link.greedy.push(with);
    let both = link.run(100 * MILLISECOND);
    assert_near(both[0], 600);
    assert_near(both[1] + both[2], 400);
    // Its own, and of the other 100M a share by weight: 300 to 10.
    assert_near(both[2], 397);
}

#[test]
fn the_peak_of_a_vm_holds_for_its_devices_together() {
    let mut link = Busy::new("1G");
    let words = VmRate {
        pir: Some(rate("200M")),
        pbs_bytes: 3_000,
        ..VmRate::default()
    };
    let vm1 = link.scheduler.add_vm(at(0), "vm1", words).unwrap();
    for committed in ["50M", "100M"] {
        let device = link.scheduler.add_device_to(at(0), vm1, cir(committed));
        link.greedy.push(device.unwrap());
    }
    let idle_link = link.run(100 * MILLISECOND);
    assert_near(idle_link[0] + idle_link[1], 200);
    assert!(idle_link[0] >= 50 && idle_link[1] >= 100, "{idle_link:?}");
    assert!(link.scheduler.statistics(link.greedy[0]).unwrap().late_max < Duration::from_millis(1));
}

#[test]
fn a_new_rate_of_a_vm_is_in_force_within_a_millisecond() {
    let mut link = Busy::new("1G");
    let vm1 = link.scheduler.add_vm(at(0), "vm1", vm("400M")).unwrap();
    let inside = link
        .scheduler
        .add_device_to(at(0), vm1, DeviceRate::best_effort());
    let outside = link.scheduler.add_device(at(0), cir("300M")).unwrap();
    link.greedy = vec![inside.unwrap(), outside];
    for (text, megabits) in [("700M", 700), ("50M", 50), ("400M", 400)] {
        let words = VmRate {
            pir: Some(rate(text)),
            pbs_bytes: 3_000,
            ..vm(text)
        };
        link.scheduler
            .set_vm_rate(at(link.now), vm1, words)
            .unwrap();
        link.run(MILLISECOND);
        let then = link.run(100 * MILLISECOND);
        assert_near(then[0], megabits);
    }
}

#[test]
fn a_vm_reserves_once_for_all_of_its_devices() {
    let mut scheduler = Scheduler::<()>::new(
        LinkBudget::with_reservable("host1 uplink", rate("1G"), rate("1G"))
            .unwrap()
            .with_protected(rate("600M")),
    );
    let vm1 = scheduler.add_vm(at(0), "vm1", vm("500M")).unwrap();
    assert_eq!(scheduler.reserved(), rate("500M"));
    scheduler.add_device_to(at(0), vm1, cir("300M")).unwrap();
    assert_eq!(scheduler.reserved(), rate("500M"));
    let refusal = scheduler.add_device_to(at(0), vm1, cir("300M"));
    assert_eq!(
        refusal.unwrap_err().to_string(),
        "vm vm1: 300 Mb/s asked, 200 Mb/s free of 500 Mb/s reservable; 100 Mb/s missing"
    );
    let bounded = DeviceRate {
        delay_max: Some(Duration::from_millis(1)),
        ..cir("10M")
    };
    let refusal = scheduler.add_device_to(at(0), vm1, bounded).unwrap_err();
    assert!(matches!(refusal, AdmissionError::DelayInVm { .. }));
    assert!(!scheduler.remove_vm(vm1), "it has a device");
    // Without a rate of its own it reserves what its devices do, protected or not.
    let unprotected = DeviceRate {
        unprotected: true,
        ..cir("200M")
    };
    scheduler.add_device_to(at(0), vm1, unprotected).unwrap();
    let weighty = VmRate {
        weight: 7,
        ..VmRate::default()
    };
    scheduler.set_vm_rate(at(0), vm1, weighty).unwrap();
    assert_eq!(scheduler.reserved(), rate("500M"));
    scheduler.add_device(at(0), cir("300M")).unwrap();
    let refusal = scheduler.add_device(at(0), cir("1M")).unwrap_err();
    assert!(
        matches!(refusal, AdmissionError::Unprotectable { .. }),
        "{refusal}"
    );
    let refusal = scheduler.set_vm_rate(at(0), vm1, vm("400M")).unwrap_err();
    assert_eq!(refusal.missing(), Some(rate("100M")), "{refusal}");
}

/// One long frame on a slow link, and everybody else is late by more than a second.
#[test]
fn vms_that_are_late_leave_by_deadline_all_the_same() {
    let mut scheduler = Scheduler::<&str>::new(budget(rate("8M")));
    let words = VmRate {
        weight: 1,
        ..VmRate::default()
    };
    let mut add = |name, committed| {
        let vm = scheduler.add_vm(at(0), name, words).unwrap();
        scheduler.add_device_to(at(0), vm, cir(committed)).unwrap()
    };
    let (slow, fast) = (add("slow", "1M"), add("fast", "4M"));
    let hog = scheduler
        .add_device(at(0), DeviceRate::best_effort())
        .unwrap();
    scheduler.enqueue(at(0), hog, 0, 2_000_000, "hog").unwrap();
    assert_eq!(scheduler.dequeue(at(0)).unwrap().item, "hog");
    for (device, name) in [(slow, "slow"), (fast, "fast")] {
        scheduler.enqueue(at(1), device, 0, 1_000, name).unwrap();
    }
    let mut next = || {
        let wake = scheduler.next_wake(at(1)).unwrap();
        scheduler.dequeue(wake).unwrap().item
    };
    assert_eq!((next(), next()), ("fast", "slow"));
}

/// A VM that is ahead of its share by bits stays so when a device joins, not by time.
#[test]
fn a_device_that_joins_does_not_wait_for_the_share_of_others() {
    let mut link = Busy::new("1G");
    let words = VmRate {
        cir: rate("1M"),
        ..VmRate::default()
    };
    let weight = |weight| DeviceRate {
        weight,
        ..DeviceRate::default()
    };
    let vm1 = link.scheduler.add_vm(at(0), "vm1", words).unwrap();
    let light = link.scheduler.add_device_to(at(0), vm1, weight(1)).unwrap();
    let other = link.scheduler.add_device(at(0), weight(1_000)).unwrap();
    link.greedy = vec![other, light];
    link.run(10 * MILLISECOND);
    let heavy = link
        .scheduler
        .add_device_to(at(link.now), vm1, weight(1_000));
    link.greedy.push(heavy.unwrap());
    link.run(MILLISECOND);
    let shared = link.run(20 * MILLISECOND);
    assert_near(shared[0], 500);
}

/// What a test of random calls knows of a scheduler: it follows its handles, and its frames.
struct Followed {
    scheduler: Scheduler<u64>,
    vms: Vec<VmHandle>,
    /// Frames by device, in the order in which they have to leave.
    queued: BTreeMap<DeviceHandle, Vec<u64>>,
    next: u64,
}

impl Followed {
    fn committed(random: &mut Random) -> BitRate {
        BitRate::from_bits_per_second(random.below(4) * 50_000_000)
    }

    fn device_rate(random: &mut Random) -> DeviceRate {
        let cir = Self::committed(random);
        let peak = cir.bits_per_second() + 1_000_000 + random.below(400_000_000);
        DeviceRate {
            cir,
            pir: (random.below(2) == 0).then(|| BitRate::from_bits_per_second(peak)),
            weight: u32::try_from(random.below(3)).unwrap(),
            ..DeviceRate::default()
        }
    }

    fn vm_rate(random: &mut Random) -> VmRate {
        let cir = Self::committed(random);
        let peak = cir.bits_per_second() + 1_000_000 + random.below(400_000_000);
        VmRate {
            cir,
            pir: (random.below(2) == 0).then(|| BitRate::from_bits_per_second(peak)),
            weight: u32::try_from(random.below(3)).unwrap(),
            ..VmRate::default()
        }
    }

    fn any<V: Copy>(random: &mut Random, of: impl Iterator<Item = V>) -> Option<V> {
        let all: Vec<V> = of.collect();
        let place = usize::try_from(random.below(all.len() as u64)).unwrap();
        all.get(place).copied()
    }

    /// One random call. Refusals are as good as successes.
    fn step(&mut self, random: &mut Random, now: MonotonicTime) {
        let device = Self::any(random, self.queued.keys().copied());
        let vm = Self::any(random, self.vms.iter().copied());
        let scheduler = &mut self.scheduler;
        match (random.below(24), device, vm) {
            (0, ..) => self
                .vms
                .extend(scheduler.add_vm(now, "vm", Self::vm_rate(random))),
            (1, _, Some(vm)) => drop(scheduler.set_vm_rate(now, vm, Self::vm_rate(random))),
            (2, _, Some(vm)) if scheduler.remove_vm(vm) => self.vms.retain(|known| *known != vm),
            (3, _, Some(vm)) => {
                let added = scheduler.add_device_to(now, vm, Self::device_rate(random));
                self.queued.extend(added.map(|device| (device, Vec::new())));
            }
            (4, ..) => {
                let added = scheduler.add_device(now, Self::device_rate(random));
                self.queued.extend(added.map(|device| (device, Vec::new())));
            }
            (5, Some(device), _) => {
                drop(scheduler.set_rate(now, device, Self::device_rate(random)));
            }
            (6, Some(device), _) => {
                let items = scheduler.remove_device(device);
                assert_eq!(self.queued.remove(&device), Some(items));
            }
            (7, ..) => {
                let link = BitRate::from_bits_per_second((1 + random.below(10)) * 100_000_000);
                let _commitment = scheduler.set_link_rate(now, link);
            }
            (8..16, Some(device), _) => {
                let bytes = 64 + u32::try_from(random.below(9_000)).unwrap();
                scheduler.enqueue(now, device, 0, bytes, self.next).unwrap();
                self.queued.get_mut(&device).unwrap().push(self.next);
                self.next += 1;
            }
            _ => {}
        }
    }

    fn dequeue(&mut self, now: MonotonicTime) -> bool {
        let Some(grant) = self.scheduler.dequeue(now) else {
            return false;
        };
        let queue = self.queued.get_mut(&grant.device).unwrap();
        assert_eq!(queue.remove(0), grant.item, "frames changed places");
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is added, changed and removed: no frame is lost or overtaken, nothing stays that
    /// could leave, the ledger comes out even, and a trace does it all again.
    #[test]
    fn changes_lose_nothing_and_replay(seed: u64, steps in 50_u64..800) {
        let mut random = Random::new(seed);
        let mut world = Followed {
            scheduler: Scheduler::new(budget(rate("1G"))),
            vms: Vec::new(),
            queued: BTreeMap::new(),
            next: 0,
        };
        let traced_from = random.below(steps);
        let mut now = 0;
        for step in 0..steps {
            if step == traced_from {
                world.scheduler.start_trace(at(now));
            }
            world.step(&mut random, at(now));
            now += random.below(60_000);
            while random.below(8) > 0 && world.dequeue(at(now)) {}
        }
        while let Some(wake) = world.scheduler.next_wake(at(now)) {
            now = wake.as_nanos();
            prop_assert!(world.dequeue(at(now)), "woke at {now} for nothing");
            while world.dequeue(at(now)) {}
        }
        prop_assert!(world.queued.values().all(Vec::is_empty));
        let trace = world.scheduler.take_trace().unwrap();
        prop_assert!(trace.replay().is_ok(), "{:?}", trace.replay());
        for device in world.queued.keys() {
            prop_assert!(world.scheduler.remove_device(*device).is_empty());
        }
        for vm in &world.vms {
            prop_assert!(world.scheduler.remove_vm(*vm));
        }
        prop_assert!(world.scheduler.reserved().is_zero());
    }
}

//! Random scenarios in which every grant is held against the promises of `qos::scheduler`.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

mod common;

use common::{Checked, Promises, Random, at, rate};
use proptest::prelude::*;
use qos::{BitRate, DeviceRate, LinkBudget, MonotonicTime, Scheduler};

const ON_TIME: Promises = Promises {
    guarantee: true,
    pace: true,
};

/// How a device's frames arrive.
#[derive(Clone, Copy, Debug)]
enum Pattern {
    /// More at the start than the link carries in the whole run.
    Greedy,
    /// Trains of frames with pauses.
    OnOff,
    /// Single frames at random times, about as fast as the committed rate.
    Steady,
    /// A frame now and then.
    Rare,
}

#[derive(Clone, Debug)]
struct DeviceSpec {
    pattern: Pattern,
    /// Part of the reservable rate; 0 is best effort.
    reserved_parts: u64,
    /// PIR as a multiple of CIR, in quarters from 1.0 on.
    peak_quarters: Option<u64>,
    pbs_frames: u32,
    weight: u32,
    bytes_max: u32,
    classes: u8,
}

#[derive(Clone, Debug)]
struct Scenario {
    link: u64,
    reserved_percent: u64,
    devices: Vec<DeviceSpec>,
    seed: u64,
}

fn device() -> impl Strategy<Value = DeviceSpec> {
    (
        prop_oneof![
            Just(Pattern::Greedy),
            Just(Pattern::OnOff),
            Just(Pattern::Steady),
            Just(Pattern::Rare)
        ],
        prop_oneof![1 => Just(0), 6 => 1_u64..100, 1 => Just(1)],
        prop::option::of(0_u64..8),
        2_u32..6,
        prop_oneof![Just(0), 1_u32..500],
        prop_oneof![Just(64), Just(1_500), 64_u32..9_000, Just(65_536)],
        prop_oneof![3 => Just(1_u8), 1 => 2_u8..=4],
    )
        .prop_map(
            |(pattern, reserved_parts, peak_quarters, pbs_frames, weight, bytes_max, classes)| {
                DeviceSpec {
                    pattern,
                    reserved_parts,
                    peak_quarters,
                    pbs_frames,
                    weight,
                    bytes_max,
                    classes,
                }
            },
        )
}

fn scenario() -> impl Strategy<Value = Scenario> {
    (
        prop_oneof![
            Just(100_000_000),
            Just(1_000_000_000),
            Just(10_000_000_000),
            50_000_000_u64..800_000_000_000
        ],
        prop_oneof![50_u64..=100, Just(100)],
        prop::collection::vec(device(), 2..14),
        any::<u64>(),
    )
        .prop_map(|(link, reserved_percent, devices, seed)| Scenario {
            link,
            reserved_percent,
            devices,
            seed,
        })
}

/// Time, device, class, bytes.
type Arrival = (u64, usize, u8, u32);

/// Builds the world and its arrivals, and says when to stop.
fn build(scenario: &Scenario, promises: Promises) -> (Checked, Vec<Arrival>, u64) {
    let link = BitRate::from_bits_per_second(scenario.link);
    let mut random = Random::new(scenario.seed);
    let mut world = Checked::new(link, promises);
    let bytes_max = scenario
        .devices
        .iter()
        .map(|device| device.bytes_max)
        .max()
        .unwrap_or(64);
    let parts: u64 = scenario
        .devices
        .iter()
        .map(|device| device.reserved_parts)
        .sum();
    let horizon = link.transmission_nanos(u64::from(bytes_max) * 60);
    let mut arrivals = Vec::new();
    for spec in &scenario.devices {
        let reservable = scenario.link / 100 * scenario.reserved_percent;
        let cir = reservable / parts.max(1) * spec.reserved_parts;
        let pir = spec.peak_quarters.map(|quarters| match cir {
            0 => scenario.link / (2 + quarters),
            cir => cir + cir / 4 * quarters,
        });
        let rate = DeviceRate {
            cir: BitRate::from_bits_per_second(cir),
            cbs_bytes: 0,
            pir: pir.map(BitRate::from_bits_per_second),
            // Room for the frame itself and for what passes while it waits for another one.
            pbs_bytes: spec.pbs_frames * bytes_max,
            weight: spec.weight,
            ..DeviceRate::default()
        };
        let index = world.add(rate, spec.bytes_max);
        let frame = |random: &mut Random| {
            let bytes = match random.below(3) {
                0 => spec.bytes_max,
                _ => 64 + u32::try_from(random.below(u64::from(spec.bytes_max) - 63)).unwrap(),
            };
            (
                u8::try_from(random.below(spec.classes.into())).unwrap(),
                bytes,
            )
        };
        let mut time = 0;
        let mut count = 0;
        while time < horizon && count < 1_000 {
            let (class, bytes) = frame(&mut random);
            let own = BitRate::from_bits_per_second(cir.max(scenario.link / 50));
            let pause = own.transmission_nanos(bytes.into());
            time += match spec.pattern {
                Pattern::Greedy => 0,
                Pattern::OnOff if random.below(8) == 0 => random.below(pause * 24),
                Pattern::OnOff => 0,
                Pattern::Steady => random.below(pause * 2),
                Pattern::Rare => random.below(horizon / 3),
            };
            arrivals.push((time, index, class, bytes));
            count += 1;
        }
    }
    arrivals.sort_by_key(|(time, ..)| *time);
    arrivals.retain(|(time, ..)| *time < horizon);
    (world, arrivals, horizon)
}

fn play(scenario: &Scenario, promises: Promises, mut lateness: impl FnMut() -> u64) -> Checked {
    let (mut world, arrivals, horizon) = build(scenario, promises);
    for (time, device, class, bytes) in arrivals {
        if time > world.now {
            world.run_until(time, &mut lateness);
        }
        world.enqueue(device, class, bytes);
    }
    world.run_until(horizon, &mut lateness);
    world
}

fn committed(cir: &str) -> DeviceRate {
    DeviceRate {
        cir: rate(cir),
        ..DeviceRate::default()
    }
}

/// Sends frames of 1500 bytes just as fast as the committed rate allows.
fn conform(world: &mut Checked, device: usize, pause: u64, until: u64) {
    while world.now < until {
        world.enqueue(device, 0, 1_500);
        world.run_until(world.now + pause, || 0);
    }
}

/// Urgent short frames overtake long ones that wait for their turn, in a hundred devices at once.
/// Were their deadlines counted from the long ones' time, they would all be in the past, and the
/// hundred would leave in one train.
#[test]
fn short_frames_that_overtake_long_ones_delay_no_other_device() {
    let mut world = Checked::new(rate("1G"), ON_TIME);
    let conforming = world.add(committed("100M"), 1_500);
    let hogs: Vec<usize> = (0..100)
        .map(|_| world.add(committed("9M"), 65_536))
        .collect();
    for hog in &hogs {
        world.enqueue(*hog, 1, 65_536);
    }
    conform(&mut world, conforming, 120_000, 30_000_000);
    for hog in &hogs {
        world.enqueue(*hog, 0, 9_000);
    }
    conform(&mut world, conforming, 120_000, 150_000_000);
    world.check_left();
}

/// A hundred devices use their peak's burst up as excess, and are released together, later than
/// their reservations were due: the time between must not come back as a train of late frames.
#[test]
fn devices_released_by_their_peak_delay_no_other_device() {
    let mut world = Checked::new(rate("40G"), ON_TIME);
    let conforming = world.add(committed("1G"), 1_500);
    let peak = Some(rate("9M"));
    let limited = DeviceRate {
        pir: peak,
        pbs_bytes: 65_536,
        ..committed("9M")
    };
    let hogs: Vec<usize> = (0..100).map(|_| world.add(limited, 65_536)).collect();
    for hog in &hogs {
        for bytes in [9_000, 56_000, 65_536, 36_000] {
            world.enqueue(*hog, 0, bytes);
        }
    }
    world.run_until(50_000_000, || 0);
    conform(&mut world, conforming, 12_000, 80_000_000);
    assert!(!world.peers[hogs[0]].backlogged());
}

/// Ten thousand devices, and a frame of a small reservation still waits for one frame only.
#[test]
fn ten_thousand_devices_share_a_link() {
    let link = rate("10G");
    let mut scheduler = Scheduler::new(LinkBudget::new("link", link));
    let devices: Vec<_> = (0..10_000_u32)
        .map(|_| scheduler.add_device(at(0), committed("900k")).unwrap())
        .collect();
    let probe = scheduler.add_device(at(0), committed("100M")).unwrap();
    for device in &devices {
        for _ in 0..6 {
            scheduler.enqueue(at(0), *device, 0, 1_500, false).unwrap();
        }
    }
    let mut now = 0;
    let mut grants = 0;
    for start in (0..60_000_000).step_by(100_000) {
        scheduler.enqueue(at(start), probe, 0, 64, true).unwrap();
        while now < start + 100_000 {
            grants += u64::from(scheduler.dequeue(at(now)).is_some());
            now = scheduler
                .next_wake(at(now))
                .map_or(u64::MAX, MonotonicTime::as_nanos);
        }
    }
    assert!(grants > 50_000 - 100, "{grants} grants");
    let probe = scheduler.statistics(probe).unwrap();
    assert_eq!(probe.queued_frames, 0);
    let frame_nanos = u128::from(link.transmission_nanos(1_500));
    assert!(
        probe.waited_max.as_nanos() <= frame_nanos + 10,
        "{:?}",
        probe.waited_max
    );
    let least = devices.iter().map(|device| {
        let statistics = scheduler.statistics(*device).unwrap();
        statistics.reserved.frames + statistics.excess.frames
    });
    assert!(least.min() >= Some(4), "all get the same, within a frame");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_promise_holds_while_the_caller_is_on_time(scenario in scenario()) {
        let world = play(&scenario, ON_TIME, || 0);
        world.check_left();
        prop_assert!(world.departures > 0);
    }

    /// Peak, order, and no idling do not depend on a punctual caller.
    #[test]
    fn a_late_caller_breaks_neither_peak_nor_order(scenario in scenario(), late_max in 1_u64..3_000_000) {
        let promises = Promises { guarantee: false, pace: false };
        let mut random = Random::new(scenario.seed ^ 0x5EED);
        let world = play(&scenario, promises, || random.below(late_max));
        prop_assert!(world.departures > 0);
    }

    /// New rates, in the middle of everything, lose nothing and change no order.
    #[test]
    fn live_rate_changes_lose_and_reorder_nothing(scenario in scenario()) {
        let promises = Promises { guarantee: false, pace: true };
        let (mut world, arrivals, horizon) = build(&scenario, promises);
        let mut random = Random::new(!scenario.seed);
        let arrived = u64::try_from(arrivals.len()).unwrap();
        for (time, device, class, bytes) in arrivals {
            if time > world.now {
                world.run_until(time, || 0);
            }
            world.enqueue(device, class, bytes);
            if random.below(4) == 0 {
                let index = usize::try_from(random.below(world.peers.len() as u64)).unwrap();
                let old = world.peers[index].rate;
                let cir = old.cir.bits_per_second() / (1 + random.below(3));
                let pir = old.pir.map(|pir| cir.max(pir.bits_per_second() / (1 + random.below(2))).max(1));
                world.set_rate(index, DeviceRate {
                    cir: BitRate::from_bits_per_second(cir),
                    pir: pir.map(BitRate::from_bits_per_second),
                    weight: u32::try_from(random.below(100)).unwrap(),
                    ..old
                });
            }
        }
        world.run_until(horizon, || 0);
        let queued: u64 = world
            .peers
            .iter()
            .map(|peer| u64::from(world.scheduler.queued_frames(peer.handle).unwrap()))
            .sum();
        prop_assert_eq!(world.departures + queued, arrived);
    }
}

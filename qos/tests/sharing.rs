//! Who gets how much of a link that everybody wants, over virtual seconds.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

mod common;

use common::{Checked, Promises, at, budget, rate};
use qos::{DeviceHandle, DeviceRate, Grant, GrantReason, LinkBudget, MonotonicTime, Scheduler};

const ON_TIME: Promises = Promises {
    guarantee: true,
    pace: true,
};
const SECOND: u64 = 1_000_000_000;

/// A device that always has frames.
struct Greedy {
    handle: DeviceHandle,
    bytes: u32,
}

/// Runs greedy devices on a punctual caller until `until`, and hands every grant to `seen`.
fn run(
    scheduler: &mut Scheduler<()>,
    greedy: &[Greedy],
    from: u64,
    until: u64,
    mut seen: impl FnMut(u64, &Grant<()>),
) {
    let mut now = from;
    loop {
        for Greedy { handle, bytes } in greedy {
            if scheduler.queued_frames(*handle).unwrap() < 2 {
                scheduler.enqueue(at(now), *handle, 0, *bytes, ()).unwrap();
                scheduler.enqueue(at(now), *handle, 0, *bytes, ()).unwrap();
            }
        }
        if let Some(grant) = scheduler.dequeue(at(now)) {
            seen(now, &grant);
            continue;
        }
        match scheduler.next_wake(at(now)).map(MonotonicTime::as_nanos) {
            Some(wake) if wake < until => now = wake,
            _ => break,
        }
    }
}

fn megabits(scheduler: &Scheduler<()>, handle: DeviceHandle, nanos: u64) -> u64 {
    let statistics = scheduler.statistics(handle).unwrap();
    (statistics.reserved.bytes + statistics.excess.bytes) * 8_000 / nanos
}

fn assert_within(value: u64, expected: u64, percent: u64) {
    let slack = expected * percent / 100;
    assert!(
        value.abs_diff(expected) <= slack,
        "{value} is not within {percent} % of {expected}"
    );
}

fn cir(text: &str) -> DeviceRate {
    DeviceRate::new(rate(text), None).unwrap()
}

#[test]
fn two_reservations_fill_the_link_and_both_get_theirs() {
    let mut scheduler = Scheduler::new(budget(rate("400M")));
    let large = scheduler.add_device(at(0), cir("300M")).unwrap();
    let small = scheduler.add_device(at(0), cir("100M")).unwrap();
    let greedy = [
        Greedy {
            handle: large,
            bytes: 1_500,
        },
        // As a storage device would: frames of 64 KiB.
        Greedy {
            handle: small,
            bytes: 65_536,
        },
    ];
    run(&mut scheduler, &greedy, 0, 5 * SECOND, |_, _| ());
    assert_within(megabits(&scheduler, large, 5 * SECOND), 300, 1);
    assert_within(megabits(&scheduler, small, 5 * SECOND), 100, 1);
}

/// The figures of four greedy devices on 1G: reservations first, then 100M shared 5:3:1:1.
#[test]
fn what_is_left_is_shared_by_weight_on_top_of_the_reservations() {
    for (bytes, percent) in [([1_500; 4], 1), ([65_536, 1_500, 65_536, 9_000], 1)] {
        let mut scheduler = Scheduler::new(budget(rate("1G")));
        let add = |scheduler: &mut Scheduler<()>, text, weight| {
            scheduler
                .add_device(
                    at(0),
                    DeviceRate {
                        weight,
                        ..cir(text)
                    },
                )
                .unwrap()
        };
        let handles = [
            add(&mut scheduler, "500M", 5),
            add(&mut scheduler, "300M", 3),
            add(&mut scheduler, "100M", 1),
            add(&mut scheduler, "0", 1),
        ];
        let greedy: Vec<Greedy> = handles
            .into_iter()
            .zip(bytes)
            .map(|(handle, bytes)| Greedy { handle, bytes })
            .collect();
        run(&mut scheduler, &greedy, 0, 4 * SECOND, |_, _| ());
        for (handle, expected) in handles.into_iter().zip([550_000, 330_000, 110_000, 10_000]) {
            let statistics = scheduler.statistics(handle).unwrap();
            let bytes = statistics.reserved.bytes + statistics.excess.bytes;
            assert_within(bytes * 8_000_000 / (4 * SECOND), expected, percent);
        }
        let best_effort = scheduler.statistics(handles[3]).unwrap();
        assert_eq!(best_effort.reserved.bytes, 0);
        let first = scheduler.statistics(handles[0]).unwrap();
        assert_within(first.reserved.bytes * 8_000 / (4 * SECOND), 500, 1);
        assert!(
            first.late_max.as_nanos() <= 524_288 + 10,
            "a frame of 64 KiB at 1G"
        );
    }
}

#[test]
fn what_a_peak_leaves_goes_to_the_others() {
    let mut scheduler = Scheduler::new(budget(rate("1G")));
    let held = DeviceRate {
        pir: Some(rate("150M")),
        weight: 100,
        ..cir("100M")
    };
    let held = scheduler.add_device(at(0), held).unwrap();
    let light = DeviceRate {
        weight: 1,
        ..DeviceRate::best_effort()
    };
    let light = scheduler.add_device(at(0), light).unwrap();
    let heavy = DeviceRate {
        weight: 4,
        ..DeviceRate::best_effort()
    };
    let heavy = scheduler.add_device(at(0), heavy).unwrap();
    let greedy = [held, light, heavy].map(|handle| Greedy {
        handle,
        bytes: 1_500,
    });
    run(&mut scheduler, &greedy, 0, 4 * SECOND, |_, _| ());
    assert_within(megabits(&scheduler, held, 4 * SECOND), 150, 1);
    assert_within(megabits(&scheduler, light, 4 * SECOND), 170, 1);
    assert_within(megabits(&scheduler, heavy, 4 * SECOND), 680, 1);
    assert!(scheduler.statistics(held).unwrap().limited_times > 0);
}

#[test]
fn a_peak_holds_on_an_otherwise_empty_link() {
    let mut scheduler = Scheduler::new(budget(rate("10G")));
    let limited = DeviceRate::new(rate("10M"), Some(rate("123456789"))).unwrap();
    let limited = scheduler.add_device(at(0), limited).unwrap();
    run(
        &mut scheduler,
        &[Greedy {
            handle: limited,
            bytes: 9_000,
        }],
        0,
        10 * SECOND,
        |_, _| (),
    );
    assert_within(megabits(&scheduler, limited, 10 * SECOND), 123, 1);
}

/// Eight seconds of silence buy no second of preference.
#[test]
fn idle_time_earns_no_share() {
    let mut scheduler = Scheduler::new(budget(rate("1G")));
    let steady = scheduler
        .add_device(at(0), DeviceRate::best_effort())
        .unwrap();
    let sleeper = scheduler
        .add_device(at(0), DeviceRate::best_effort())
        .unwrap();
    let busy = Greedy {
        handle: steady,
        bytes: 1_500,
    };
    run(
        &mut scheduler,
        std::slice::from_ref(&busy),
        0,
        8 * SECOND,
        |_, _| (),
    );
    let both = [
        busy,
        Greedy {
            handle: sleeper,
            bytes: 1_500,
        },
    ];
    let mut granted = [0_u64; 2];
    run(
        &mut scheduler,
        &both,
        8 * SECOND,
        8 * SECOND + 10_000_000,
        |_, grant| {
            granted[usize::from(grant.device == sleeper)] += u64::from(grant.bytes);
        },
    );
    assert!(granted[0].abs_diff(granted[1]) <= 2 * 1_500, "{granted:?}");
    assert!(granted[0] > 500_000);
}

/// A device that had all of an idle link does not pay for it later: the guarantee forgets excess.
#[test]
fn excess_taken_is_not_charged_to_the_reservation() {
    let mut world = Checked::new(rate("1G"), ON_TIME);
    let first = world.add(cir("500M"), 1_500);
    for _ in 0..10_000 {
        world.enqueue(first, 0, 1_500);
    }
    world.run_until(120_000_000, || 0);
    let second = world.add(cir("500M"), 65_536);
    for _ in 0..1_000 {
        world.enqueue(second, 0, 65_536);
        world.enqueue(first, 0, 1_500);
    }
    world.run_until(200_000_000, || 0);
    world.check_left();
    assert!(world.peers[first].granted_frames > 10_900);
}

/// The smallest frame of a small reservation waits for one frame of a hog, never for a queue.
#[test]
fn a_conforming_frame_waits_for_one_frame_of_the_others() {
    let mut scheduler = Scheduler::<()>::new(budget(rate("1G")));
    let probe = scheduler.add_device(at(0), cir("10M")).unwrap();
    let greedy: Vec<Greedy> = ["500M", "300M", "100M"]
        .into_iter()
        .map(|text| Greedy {
            handle: scheduler.add_device(at(0), cir(text)).unwrap(),
            bytes: 65_536,
        })
        .collect();
    let mut sent = 0;
    for start in (0..SECOND).step_by(977_777) {
        scheduler.enqueue(at(start), probe, 0, 64, ()).unwrap();
        sent += 1;
        run(&mut scheduler, &greedy, start, start + 977_777, |_, _| ());
    }
    let statistics = scheduler.statistics(probe).unwrap();
    assert_eq!(statistics.reserved.frames + statistics.excess.frames, sent);
    let frame_nanos = u128::from(rate("1G").transmission_nanos(65_536));
    assert!(
        statistics.waited_max.as_nanos() <= frame_nanos + 10,
        "{:?}",
        statistics.waited_max
    );
    assert!(statistics.waited_total <= statistics.waited_max * 1_100);
}

#[test]
fn nobody_starves_among_a_thousand_greedy_devices() {
    let mut scheduler = Scheduler::new(budget(rate("10G")));
    let greedy: Vec<Greedy> = (0..1_000)
        .map(|index| {
            let rate = if index % 2 == 0 {
                cir("10M")
            } else {
                DeviceRate::best_effort()
            };
            Greedy {
                handle: scheduler.add_device(at(0), rate).unwrap(),
                bytes: 1_500,
            }
        })
        .collect();
    run(&mut scheduler, &greedy[..], 0, 20_000_000, |_, _| ());
    for (index, Greedy { handle, .. }) in greedy.iter().enumerate() {
        let granted = megabits(&scheduler, *handle, 20_000_000);
        let least = if index % 2 == 0 { 14 } else { 4 };
        assert!(granted >= least, "device {index} got {granted} Mb/s");
    }
}

/// 1 ms of a late timer costs no throughput, 10 s of a stalled link are gone.
#[test]
fn a_late_caller_catches_up_and_a_stalled_one_starts_anew() {
    let mut scheduler = Scheduler::new(LinkBudget::new("link", rate("1G")));
    let committed = scheduler
        .add_device(
            at(0),
            DeviceRate {
                weight: 1,
                ..cir("900M")
            },
        )
        .unwrap();
    let best_effort = scheduler
        .add_device(
            at(0),
            DeviceRate {
                weight: 1,
                ..cir("0")
            },
        )
        .unwrap();
    let fill = |scheduler: &mut Scheduler<()>, now| {
        for handle in [committed, best_effort] {
            while scheduler.queued_frames(handle).unwrap() < 4_000 {
                scheduler.enqueue(at(now), handle, 0, 1_500, ()).unwrap();
            }
        }
    };
    fill(&mut scheduler, 0);
    for tick in 0..100 {
        let now = tick * 1_000_000;
        while scheduler.dequeue(at(now)).is_some() {}
        fill(&mut scheduler, now);
    }
    assert_within(megabits(&scheduler, committed, 99_000_000), 950, 1);
    assert_within(megabits(&scheduler, best_effort, 99_000_000), 50, 5);

    let resumed = 10 * SECOND;
    let before = scheduler.statistics(best_effort).unwrap().excess.bytes;
    let mut burst = 0;
    while let Some(grant) = scheduler.dequeue(at(resumed)) {
        burst += u64::from(grant.bytes);
    }
    assert!(
        burst <= 2 * 65_536 + 1_500,
        "{burst} bytes at once after a stall"
    );
    for tick in 1..=20 {
        let now = resumed + tick * 1_000_000;
        fill(&mut scheduler, now);
        while scheduler.dequeue(at(now)).is_some() {}
    }
    let best_effort = scheduler.statistics(best_effort).unwrap().excess.bytes - before;
    assert!(
        best_effort * 8_000 / 20_000_000 >= 40,
        "best effort starved after the stall"
    );
}

#[test]
fn grants_say_why() {
    let mut scheduler = Scheduler::new(budget(rate("1G")));
    let device = scheduler.add_device(at(0), cir("100M")).unwrap();
    scheduler.enqueue(at(0), device, 0, 1_250, ()).unwrap();
    scheduler.enqueue(at(0), device, 0, 1_250, ()).unwrap();
    let first = scheduler.dequeue(at(0)).unwrap();
    assert_eq!(first.reason, GrantReason::Reserved);
    assert!(
        scheduler.dequeue(at(9_999)).is_none(),
        "the link is busy for 10 us"
    );
    assert_eq!(scheduler.next_wake(at(9_999)), Some(at(10_000)));
    let second = scheduler.dequeue(at(10_000)).unwrap();
    assert_eq!(
        second.reason,
        GrantReason::Excess,
        "the reservation is due at 100 us"
    );
    assert_eq!(scheduler.next_wake(at(10_000)), None);
}

//! Devices that come, change, and go, and callers that ask for too much.
#![expect(clippy::expect_used, reason = "a failed expectation is a failed test")]

mod common;

use std::error::Error;

use common::{at, budget, rate};
use qos::{
    AdmissionError, BitRate, CLASSES_MAX, Commitment, DeviceRate, InvalidRate, LinkBudget,
    QUEUE_FRAMES_MAX, RefusalReason, Scheduler, StaleHandle,
};

fn cir(text: &str) -> DeviceRate {
    DeviceRate::new(rate(text), None).expect("tests use valid rates")
}

fn ten_gigabit(reservable: &str) -> Scheduler<u32> {
    let budget = LinkBudget::with_reservable("host1 uplink", rate("10G"), rate(reservable));
    Scheduler::new(budget.expect("less than the link"))
}

/// The set of the design card: 8.5G asked in all.
const CARD: [&str; 6] = ["2G", "500M", "1G", "2G", "2G", "1G"];

#[test]
fn a_set_that_fits_the_budget_is_admitted() {
    let mut scheduler = ten_gigabit("9G");
    for text in CARD {
        assert_eq!(scheduler.admit(None, &cir(text)), Ok(()));
        scheduler.add_device(at(0), cir(text)).unwrap();
    }
    assert_eq!(scheduler.reserved(), rate("8.5G"));
    assert_eq!(scheduler.commitment(), Commitment::Kept);
}

#[test]
fn a_set_that_does_not_fit_is_refused_with_what_is_missing() {
    let mut scheduler = ten_gigabit("8G");
    let refusals: Vec<AdmissionError> = CARD
        .into_iter()
        .filter_map(|text| scheduler.add_device(at(0), cir(text)).err())
        .collect();
    let [refusal] = &refusals[..] else {
        panic!("one of the set does not fit: {refusals:?}")
    };
    assert_eq!(
        refusal.to_string(),
        "host1 uplink: 1 Gb/s asked, 500 Mb/s free of 8 Gb/s reservable; 500 Mb/s missing"
    );
    assert_eq!(refusal.missing(), Some(rate("0.5G")));
    scheduler.add_device(at(0), cir("500M")).unwrap();
    let full = scheduler.admit(None, &cir("500M")).unwrap_err();
    assert_eq!(
        full.to_string(),
        "host1 uplink: 500 Mb/s asked, 0 bit/s free of 8 Gb/s reservable; 500 Mb/s missing"
    );
    assert_eq!(scheduler.admit(None, &DeviceRate::best_effort()), Ok(()));
}

#[test]
fn rate_words_that_do_not_fit_together_are_refused_with_their_reason() {
    let mut scheduler = ten_gigabit("8G");
    let wrong = DeviceRate {
        pir: Some(rate("1G")),
        ..cir("2G")
    };
    let refusal = scheduler.add_device(at(0), wrong).unwrap_err();
    assert_eq!(
        refusal.source().and_then(|source| source.downcast_ref()),
        Some(&InvalidRate::PeakBelowCommitted {
            cir: rate("2G"),
            pir: rate("1G")
        })
    );
    let device = scheduler.add_device(at(0), cir("2G")).unwrap();
    assert!(scheduler.set_rate(at(0), device, wrong).is_err());
    assert_eq!(scheduler.rate(device), Ok(cir("2G")));
}

#[test]
fn a_changed_rate_gives_its_old_reservation_back_first() {
    let mut scheduler = ten_gigabit("8G");
    let device = scheduler.add_device(at(0), cir("6G")).unwrap();
    scheduler.set_rate(at(0), device, cir("8G")).unwrap();
    let refusal = scheduler.set_rate(at(0), device, cir("8.5G")).unwrap_err();
    assert_eq!(refusal.missing(), Some(rate("500M")));
    assert_eq!(scheduler.reserved(), rate("8G"));
    assert!(scheduler.remove_device(device).is_empty());
    assert_eq!(scheduler.reserved(), BitRate::ZERO);
}

#[test]
fn a_removed_device_gives_its_frames_back_and_its_handle_reaches_nobody() {
    let mut scheduler = ten_gigabit("9G");
    let old = scheduler.add_device(at(0), cir("1G")).unwrap();
    for (class, item) in [(3, 30), (1, 10), (3, 31), (0, 0), (1, 11)] {
        scheduler.enqueue(at(0), old, class, 100, item).unwrap();
    }
    assert_eq!(scheduler.queued_bytes(old), Ok(500));
    assert_eq!(scheduler.remove_device(old), [0, 10, 11, 30, 31]);
    assert_eq!(scheduler.next_wake(at(0)), None);

    let new = scheduler.add_device(at(0), cir("1G")).unwrap();
    assert_ne!(old, new);
    scheduler.enqueue(at(0), new, 0, 100, 99).unwrap();
    let refused = scheduler.enqueue(at(0), old, 0, 100, 77).unwrap_err();
    assert_eq!(
        (refused.item, refused.reason),
        (77, RefusalReason::StaleHandle)
    );
    assert!(scheduler.remove_device(old).is_empty());
    assert_eq!(scheduler.statistics(old), Err(StaleHandle));
    assert_eq!(scheduler.queued_frames(old), Err(StaleHandle));
    assert_eq!(
        scheduler.set_rate(at(0), old, cir("2G")),
        Err(AdmissionError::StaleHandle {
            hop: "host1 uplink".into()
        })
    );
    assert_eq!(scheduler.queued_frames(new), Ok(1));
    assert_eq!(scheduler.rate(new), Ok(cir("1G")));
    assert_eq!(scheduler.dequeue(at(0)).map(|grant| grant.item), Some(99));

    let mut smaller = ten_gigabit("9G");
    assert!(
        smaller.remove_device(new).is_empty(),
        "a slot that was never there"
    );
}

#[test]
fn frames_nobody_can_take_come_back() {
    let mut scheduler = ten_gigabit("9G");
    let device = scheduler.add_device(at(0), cir("1G")).unwrap();
    let class = u8::try_from(CLASSES_MAX).unwrap();
    let refused = scheduler.enqueue(at(0), device, class, 100, 1).unwrap_err();
    assert_eq!(refused.reason, RefusalReason::NoSuchClass { class });
    assert_eq!(refused.to_string(), "class 4 is not below 4");
    let refused = scheduler.enqueue(at(0), device, 0, 0, 2).unwrap_err();
    assert_eq!(
        (refused.item, refused.reason),
        (2, RefusalReason::EmptyFrame)
    );
    assert_eq!(scheduler.next_wake(at(0)), None, "nothing was queued");
    for item in 0..QUEUE_FRAMES_MAX {
        scheduler.enqueue(at(0), device, 2, 100, item).unwrap();
    }
    let refused = scheduler.enqueue(at(0), device, 0, 100, 3).unwrap_err();
    assert_eq!(
        (refused.item, refused.reason),
        (3, RefusalReason::QueueFull)
    );
    assert_eq!(scheduler.statistics(device).unwrap().refused_frames, 1);
    assert_eq!(scheduler.dequeue(at(0)).map(|grant| grant.item), Some(0));
    scheduler.enqueue(at(0), device, 0, 100, 3).unwrap();
}

#[test]
fn the_widest_frames_at_the_slowest_rates_stop_nobody_else() {
    let mut scheduler = Scheduler::new(budget(rate("10G")));
    let slowest = DeviceRate {
        pir: Some(rate("1")),
        pbs_bytes: 1,
        ..cir("1")
    };
    let slowest = scheduler.add_device(at(0), slowest).unwrap();
    let other = scheduler.add_device(at(0), cir("1G")).unwrap();
    for item in 0..2 {
        scheduler
            .enqueue(at(u64::MAX - 8_000_000_000), slowest, 0, u32::MAX, item)
            .unwrap();
    }
    assert!(scheduler.dequeue(at(0)).is_some());
    scheduler.enqueue(at(0), other, 0, 1_500, 9).unwrap();
    let wake = scheduler.next_wake(at(0)).unwrap();
    assert_eq!(
        scheduler.dequeue(wake).map(|grant| grant.device),
        Some(other)
    );
    let centuries = scheduler.next_wake(wake).unwrap();
    assert!(centuries > at(u64::MAX / 2), "parked for some centuries");
    scheduler.set_rate(wake, slowest, cir("1G")).unwrap();
    let wake = scheduler.next_wake(wake).unwrap();
    assert_eq!(scheduler.dequeue(wake).map(|grant| grant.item), Some(1));
}

#[test]
fn time_that_runs_backwards_counts_as_the_latest() {
    let mut scheduler = Scheduler::new(budget(rate("1G")));
    let limited = DeviceRate {
        pbs_bytes: 1,
        ..DeviceRate::new(rate("1M"), Some(rate("1M"))).unwrap()
    };
    let device = scheduler.add_device(at(5_000_000), limited).unwrap();
    for item in 0..3 {
        scheduler.enqueue(at(0), device, 0, 125, item).unwrap();
    }
    assert_eq!(scheduler.dequeue(at(0)).map(|grant| grant.item), Some(0));
    // 1000 bits at 1M are 1 ms, less 8 us of burst.
    for backwards in [0, 1, 4_999_999, 5_000_000, 5_991_999] {
        assert!(scheduler.dequeue(at(backwards)).is_none());
        assert_eq!(scheduler.next_wake(at(backwards)), Some(at(5_992_448)));
    }
    assert_eq!(
        scheduler.dequeue(at(5_992_448)).map(|grant| grant.item),
        Some(1)
    );
    assert!(scheduler.dequeue(at(0)).is_none());
    assert!(scheduler.statistics(device).unwrap().waited_max.as_nanos() == 992_448);
}

#[test]
fn a_new_rate_is_in_force_at_once_and_old_debts_do_not_delay_it() {
    let mut scheduler = Scheduler::new(budget(rate("1G")));
    let slow = DeviceRate::new(rate("1k"), Some(rate("1k"))).unwrap();
    let device = scheduler
        .add_device(
            at(0),
            DeviceRate {
                pbs_bytes: 1_500,
                ..slow
            },
        )
        .unwrap();
    for item in 0..100 {
        scheduler.enqueue(at(0), device, 0, 1_500, item).unwrap();
    }
    let mut granted: Vec<u32> = Vec::new();
    while let Some(wake) = scheduler
        .next_wake(at(0))
        .filter(|wake| wake.as_nanos() < 1_000_000)
    {
        granted.extend(scheduler.dequeue(wake).map(|grant| grant.item));
    }
    assert_eq!(
        granted,
        [0, 1],
        "the burst and a frame, then 12 s for the next"
    );
    let start = at(1_000_000);
    scheduler.set_rate(start, device, cir("500M")).unwrap();
    let mut wake = scheduler.next_wake(start).unwrap();
    while let Some(grant) = scheduler.dequeue(wake) {
        granted.push(grant.item);
        wake = scheduler.next_wake(wake).unwrap_or(wake);
    }
    assert_eq!(granted, (0..100).collect::<Vec<_>>());
    assert_eq!(
        wake.as_nanos(),
        1_000_000 + 97 * 12_000,
        "at the link's rate, from at once"
    );
}

#[test]
fn a_slower_link_scales_every_reservation_and_says_so() {
    let mut scheduler = Scheduler::new(budget(rate("1G")));
    let large = scheduler.add_device(at(0), cir("600M")).unwrap();
    let small = scheduler.add_device(at(0), cir("300M")).unwrap();
    assert_eq!(
        scheduler.set_link_rate(at(0), rate("90M")),
        Commitment::Degraded {
            reserved: rate("900M"),
            reservable: rate("90M")
        }
    );
    assert_eq!(scheduler.link_rate(), rate("90M"));
    for _ in 0..5_000 {
        scheduler.enqueue(at(0), large, 0, 1_500, 0).unwrap();
        scheduler.enqueue(at(0), small, 0, 1_500, 0).unwrap();
    }
    let mut now = at(0);
    while now < at(500_000_000) {
        assert!(scheduler.dequeue(now).is_some());
        now = scheduler.next_wake(now).unwrap();
    }
    let frames = |handle| scheduler.statistics(handle).unwrap().reserved.frames;
    // 3750 frames in half a second, 2 : 1.
    assert!(frames(large).abs_diff(2_500) <= 3, "{}", frames(large));
    assert!(frames(small).abs_diff(1_250) <= 3, "{}", frames(small));
    assert_eq!(scheduler.set_link_rate(now, rate("1G")), Commitment::Kept);
}

#[test]
fn a_link_without_rate_sends_nothing_and_goes_on_afterwards() {
    let mut scheduler = Scheduler::new(budget(rate("1G")));
    let device = scheduler.add_device(at(0), cir("600M")).unwrap();
    scheduler.enqueue(at(0), device, 0, 1_500, 1).unwrap();
    let state = scheduler.set_link_rate(at(0), BitRate::ZERO);
    assert_eq!(
        state,
        Commitment::Degraded {
            reserved: rate("600M"),
            reservable: BitRate::ZERO
        }
    );
    assert_eq!(scheduler.next_wake(at(0)), None);
    assert!(scheduler.dequeue(at(1_000_000_000)).is_none());
    assert_eq!(
        scheduler.set_link_rate(at(2_000_000_000), rate("1G")),
        Commitment::Kept
    );
    assert_eq!(scheduler.next_wake(at(0)), Some(at(2_000_000_000)));
    assert_eq!(
        scheduler.dequeue(at(2_000_000_000)).map(|grant| grant.item),
        Some(1)
    );
}

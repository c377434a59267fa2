use super::*;
use crate::port_direction::PortVm;
use proptest::prelude::*;
use qos::OperationLimit;

const A: DeviceId = DeviceId(11);
const B: DeviceId = DeviceId(12);
const KIB: usize = 1024;

fn rate(text: &str) -> BitRate {
    text.parse().unwrap()
}

fn words(cir: &str, pir: Option<&str>) -> DeviceRate {
    DeviceRate {
        // Nothing but the rate: a burst would hide it.
        pbs_bytes: 1,
        ..DeviceRate::new(rate(cir), pir.map(rate)).unwrap()
    }
}

fn limited(per_second: u32) -> DeviceRate {
    DeviceRate {
        operations: Some(OperationLimit {
            per_second,
            burst: 1,
        }),
        ..DeviceRate::best_effort()
    }
}

fn at(micros: u64) -> MonotonicTime {
    MonotonicTime::from_nanos(micros * 1000)
}

fn queue(budget: Option<&str>, ingress: DeviceRate, egress: DeviceRate) -> CommandQueue<u32> {
    let budget = budget.map(|rate| LinkBudget::new("san-port 12/1", rate.parse().unwrap()));
    let vhbas = [A, B].map(|device| PortDevice {
        device,
        vm: PortVm::named("vm1"),
        ingress,
        egress,
    });
    let mut queue = CommandQueue::new("san-port 12/1", budget.as_ref(), vhbas);
    queue.attach(at(0), A, 1).unwrap();
    queue
}

fn read(key: u32, bytes: usize) -> Charged<u32> {
    Charged::new(key, 0, bytes)
}

fn write(key: u32, bytes: usize) -> Charged<u32> {
    Charged::new(key, bytes, 0)
}

/// Polls as the port's thread does and returns what left, with the time of each.
fn run(queue: &mut CommandQueue<u32>, from: u64, until: u64) -> Vec<(u64, u32)> {
    let mut left = Vec::new();
    let mut now = at(from);
    loop {
        while let Some(key) = queue.poll(now) {
            left.push((now.as_nanos() / 1000, key));
        }
        match queue.next_wake(now) {
            Some(next) if next <= at(until) => now = next,
            _ => return left,
        }
    }
}

fn keys(left: &[(u64, u32)]) -> Vec<u32> {
    left.iter().map(|(_, key)| *key).collect()
}

#[test]
fn commands_are_charged_with_the_data_they_move() {
    let cases = [
        (0, 0, Direction::Egress, 512),
        (0, 96, Direction::Egress, 512),
        (0, 8192, Direction::Egress, 8192),
        (8192, 0, Direction::Ingress, 8192),
        (4096, 65536, Direction::Ingress, 4096),
    ];
    for (data_out, data_in, direction, bytes) in cases {
        let charged = Charged::new(1, data_out, data_in);
        assert_eq!((charged.direction, charged.bytes), (direction, bytes));
    }
}

#[test]
fn commands_above_the_rate_are_held_in_order() {
    let slow = words("0", Some("80M"));
    let mut queue = queue(Some("8G"), slow, slow);
    assert!(queue.is_limited(A));
    for key in 0..50 {
        queue.submit(at(0), A, read(key, 64 * KIB));
    }
    assert_eq!(queue.held(A).commands, 50);
    let left = run(&mut queue, 0, 1_000_000);
    assert_eq!(keys(&left), (0..50).collect::<Vec<_>>());
    // 49 of 6,554 us each before the last.
    let last = left.last().unwrap().0;
    assert!((321_000..=321_200).contains(&last), "{last} us");
    assert_eq!(queue.held(A).commands, 0);
    assert!(queue.held(A).waited > Duration::from_secs(1));
}

#[test]
fn directions_do_not_hold_up_each_other() {
    let (stopped, free) = (words("0", Some("1k")), DeviceRate::best_effort());
    let mut queue = queue(Some("8G"), stopped, free);
    for key in 0..10 {
        queue.submit(at(0), A, write(key, 4 * KIB));
        queue.submit(at(0), A, read(100 + key, 4 * KIB));
    }
    let left = keys(&run(&mut queue, 0, 10_000));
    assert_eq!(left.iter().filter(|key| **key < 100).count(), 1);
    assert_eq!(left.iter().filter(|key| **key >= 100).count(), 10);
}

/// Reads and writes together, whatever they carry; a port without a rate limits them as well.
#[test]
fn operations_are_limited_once_for_both_directions() {
    for budget in [None, Some("8G")] {
        let mut queue = queue(budget, limited(1000), limited(1));
        assert!(queue.is_limited(A));
        for key in 0..40 {
            let command = if key % 2 == 0 { read } else { write };
            queue.submit(at(0), A, command(key, 64 * KIB));
        }
        let left = keys(&run(&mut queue, 0, 20_500));
        assert!((20..=22).contains(&left.len()), "{} in 20 ms", left.len());
        if budget.is_none() {
            assert!(left.is_sorted(), "{left:?}");
        }
    }
}

#[test]
fn limit_that_comes_and_goes_loses_and_reorders_nothing() {
    let free = DeviceRate::best_effort();
    let mut queue = queue(None, free, free);
    assert!(!queue.is_limited(A));
    queue.set_rates(at(0), A, limited(100), free).unwrap();
    assert!(queue.is_limited(A));
    for key in 0..100 {
        queue.submit(at(0), A, read(key, 512));
    }
    let mut left = run(&mut queue, 0, 50_000);
    assert!((5..=7).contains(&left.len()), "{}", left.len());
    queue
        .set_rates(at(50_000), A, limited(10_000), free)
        .unwrap();
    let faster = run(&mut queue, 50_000, 52_000);
    assert!((9..=22).contains(&faster.len()), "{}", faster.len());
    assert!(faster[0].0 <= 51_100, "in force within a millisecond");
    left.extend(faster);
    queue.set_rates(at(52_000), A, free, free).unwrap();
    left.extend(run(&mut queue, 52_000, 53_000));
    assert_eq!(keys(&left), (0..100).collect::<Vec<_>>());
    queue.submit(at(53_000), A, read(100, 512));
    assert_eq!(queue.poll(at(53_000)), Some(100));
}

#[test]
fn changed_rate_is_in_force_within_a_millisecond() {
    let (slow, fast) = (words("0", Some("8M")), words("0", Some("800M")));
    let mut queue = queue(Some("8G"), slow, slow);
    for key in 0..200 {
        queue.submit(at(0), A, read(key, 8 * KIB));
    }
    let mut left = run(&mut queue, 0, 50_000);
    assert!((5..=9).contains(&left.len()), "{}", left.len());
    queue.set_rates(at(50_000), A, slow, fast).unwrap();
    let after = run(&mut queue, 50_000, 60_000);
    assert!(after[0].0 <= 51_082, "first at {} us", after[0].0);
    assert!((108..=124).contains(&after.len()), "{}", after.len());
    left.extend(after);
    left.extend(run(&mut queue, 60_000, 1_000_000));
    assert_eq!(keys(&left), (0..200).collect::<Vec<_>>());
}

/// Who aborts and tries again waits no longer than who did not abort.
#[test]
fn aborted_commands_cost_nothing() {
    let slow = words("0", Some("80M"));
    let mut queue = queue(Some("8G"), slow, slow);
    let mut left = Vec::new();
    for round in 0..100 {
        for key in 0..10 {
            queue.submit(at(0), A, read(round * 10 + key, 64 * KIB));
        }
        left.extend(run(&mut queue, 0, 0));
        if round < 99 {
            queue.withdraw(A, |_| true);
        }
    }
    assert_eq!(queue.held(A).commands, 10);
    left.extend(run(&mut queue, 0, 1_000_000));
    let last = left.last().unwrap().0;
    assert!(
        (58_000..=66_000).contains(&last),
        "10 of 6,554 us: {last} us"
    );
}

#[test]
fn reservation_that_does_not_fit_is_refused_and_changes_nothing() {
    let mut queue = queue(Some("1G"), words("100M", None), words("600M", None));
    let refused = queue.attach(at(0), B, 2).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "san-port 12/1 egress: 600 Mb/s asked, 350 Mb/s free of 950 Mb/s reservable; \
         250 Mb/s missing"
    );
    let reserved = |queue: &CommandQueue<u32>| {
        let directions = queue.directions.as_ref().unwrap();
        (
            directions.ingress.scheduler.reserved(),
            directions.egress.scheduler.reserved(),
        )
    };
    assert_eq!(reserved(&queue), (rate("100M"), rate("600M")));
    let refused = queue.set_rates(at(0), A, words("900M", None), words("951M", None));
    assert!(refused.is_err());
    assert_eq!(reserved(&queue), (rate("100M"), rate("600M")));
    // A newer session of the same vHBA reserves nothing twice, and its end is not the last.
    queue.attach(at(0), A, 3).unwrap();
    queue.detach(A, 1);
    assert!(queue.attach(at(0), B, 2).is_err());
    queue.submit(at(0), A, read(1, 512));
    queue.detach(A, 3);
    assert_eq!(queue.poll(at(0)), None, "its commands are forgotten");
    assert!(queue.attach(at(0), B, 2).is_ok());
}

#[derive(Debug, Clone)]
enum Step {
    Submit(usize),
    Withdraw(u32),
    Run(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0usize..1024 * KIB).prop_map(Step::Submit),
        2 => (0u32..40).prop_map(Step::Withdraw),
        2 => (0u64..30_000).prop_map(Step::Run),
    ];
    proptest::collection::vec(step, 1..200)
}

proptest! {
    /// Every command that was not withdrawn leaves once, in order, and none that is not paid for.
    #[test]
    fn commands_leave_once_in_order_and_paid(steps in steps()) {
        let slow = words("0", Some("800M"));
        let mut queue = queue(Some("1G"), slow, slow);
        let (mut now, mut next, mut bytes_left) = (0_u64, 0_u32, 0_u64);
        let mut expected: VecDeque<(u32, u64)> = VecDeque::new();
        let steps = steps.into_iter().chain([Step::Run(60_000_000)]);
        for step in steps {
            match step {
                Step::Submit(bytes) => {
                    queue.submit(at(now), A, read(next, bytes));
                    expected.push_back((next, bytes.max(512) as u64));
                    next += 1;
                }
                Step::Withdraw(back) => {
                    let gone = next.saturating_sub(back);
                    queue.withdraw(A, |key| *key == gone);
                    expected.retain(|(key, _)| *key != gone);
                }
                Step::Run(micros) => {
                    for (time, key) in run(&mut queue, now, now + micros) {
                        let (first, bytes) = expected.pop_front().unwrap();
                        prop_assert_eq!(first, key);
                        bytes_left += bytes;
                        // 100 bytes a microsecond, a command in advance, another one paid ahead.
                        let most = time * 100 + 2 * 1024 * 1024 + 1000;
                        prop_assert!(bytes_left <= most, "{} bytes by {} us", bytes_left, time);
                    }
                    now += micros;
                }
            }
        }
        prop_assert!(expected.is_empty());
        prop_assert_eq!(queue.held(A).commands, 0);
        prop_assert_eq!(queue.next_wake(at(now)), None);
    }
}

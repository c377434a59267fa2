//! The core alone, with a clock that the tests set.

use super::*;
use proptest::prelude::*;

fn rate(text: &str) -> BitRate {
    text.parse().unwrap()
}

fn share(cir: &str, weight: u32) -> VmRate {
    VmRate {
        cir: rate(cir),
        weight,
        ..VmRate::default()
    }
}

/// A relay of 100 Mb/s; each host has one link, with its number as port.
fn relay(shares: &[VmRate]) -> Relay {
    let names: Vec<_> = (0..shares.len())
        .map(|host| format!("host{host}"))
        .collect();
    let hosts = names.iter().map(String::as_str).zip(shares.iter().copied());
    let budget = LinkBudget::new("edge-switch switch1 ingress", rate("100M"));
    let mut relay = Relay::new(budget, hosts).unwrap();
    for (port, host) in names.iter().enumerate() {
        relay.open(MonotonicTime::ZERO, port, host, 0).unwrap();
    }
    relay
}

fn numbered(number: u32, payload_bytes: usize) -> FrameBuffer {
    let mut payload = vec![0; payload_bytes.max(4)];
    payload[..4].copy_from_slice(&number.to_le_bytes());
    FrameBuffer::from_payload(&payload)
}

/// Lets time pass until `bytes` have left, with every port of `greedy` full all the time. Bytes of
/// each port.
fn run(relay: &mut Relay, greedy: &[usize], frame_bytes: usize, bytes: usize) -> Vec<usize> {
    let mut now = MonotonicTime::ZERO;
    let mut left = vec![0; relay.ports().len()];
    while left.iter().sum::<usize>() < bytes {
        for port in greedy {
            while relay.has_room(*port) {
                relay.push(now, *port, numbered(0, frame_bytes));
            }
        }
        while let Some((port, frame)) = relay.poll(now) {
            left[port] += frame.frame_bytes();
        }
        now = relay.next_wake(now).unwrap();
    }
    left
}

#[test]
fn reservations_hold_and_the_rest_is_shared_by_weight() {
    let mut shares = vec![share("40M", 10), share("20M", 10), share("0", 30)];
    shares.resize(20, share("0", 10));
    let mut relay = relay(&shares);
    let greedy: Vec<_> = (0..20).collect();
    let left = run(&mut relay, &greedy, 1500, 50_000_000);
    let total: usize = left.iter().sum();
    let percent = |port: usize| left[port] as f64 * 100.0 / total as f64;
    // 40 Mb/s are left for 20 hosts with weights of 220 in all.
    let unit = 40.0 / 22.0;
    for (port, expected) in [
        (0, 40.0 + unit),
        (1, 20.0 + unit),
        (2, 3.0 * unit),
        (3, unit),
    ] {
        let found = percent(port);
        assert!(
            (found - expected).abs() < 0.5,
            "port {port}: {found} %, not {expected} %"
        );
    }
}

#[test]
fn a_reservation_that_does_not_fit_names_host_hop_and_what_is_missing() {
    let budget = LinkBudget::new("edge-switch switch1 ingress", rate("100M"));
    let hosts = [("host1", share("60M", 0)), ("host2", share("50M", 0))];
    let (host, error) = Relay::new(budget.clone(), hosts).unwrap_err();
    assert_eq!(host, "host2");
    assert_eq!(
        error.to_string(),
        "edge-switch switch1 ingress: 50 Mb/s asked, 35 Mb/s free of 95 Mb/s reservable; 15 Mb/s \
         missing"
    );
    assert!(Relay::new(budget.oversubscribed(), hosts).is_ok());
}

#[test]
fn a_port_whose_far_end_is_blocked_stops_only_itself() {
    let mut relay = relay(&[share("50M", 10), share("0", 10), share("0", 10)]);
    relay.set_blocked(MonotonicTime::ZERO, 0, true);
    let left = run(&mut relay, &[0, 1, 2], 1500, 20_000_000);
    assert_eq!(left[0], 0);
    assert!(!relay.has_room(0), "it is not read any more");
    assert!(left[1].abs_diff(left[2]) < 10_000, "{left:?}");
    // What it was handed when it blocked is a window at most.
    relay.set_blocked(MonotonicTime::ZERO, 0, false);
    relay.set_blocked(MonotonicTime::ZERO, 0, true);
    let left = run(&mut relay, &[1, 2], 1500, 20_000_000);
    assert!((1..=WINDOW_BYTES + 1532).contains(&left[0]), "{left:?}");
}

#[test]
fn a_port_holds_a_bounded_amount_whatever_the_length_of_its_frames() {
    for payload_bytes in [4, 1500, 65_792] {
        let mut relay = relay(&[share("0", 10)]);
        let (mut frames, mut bytes) = (0, 0);
        while relay.has_room(0) {
            let frame = numbered(frames, payload_bytes);
            bytes += frame.frame_bytes();
            frames += 1;
            relay.push(MonotonicTime::ZERO, 0, frame);
        }
        assert!(frames as usize <= QUEUE_FRAMES_MAX);
        assert!(bytes < QUEUE_BYTES_MAX + 65_824);
        // It is read on when half has left, and not for every frame.
        let mut now = MonotonicTime::ZERO;
        let mut left = 0;
        while !relay.has_room(0) {
            if relay.poll(now).is_some() {
                left += 1;
            } else {
                now = relay.next_wake(now).unwrap();
            }
        }
        assert!(left >= frames / 2, "{left} of {frames}");
    }
}

#[test]
fn either_link_of_a_host_has_all_that_the_host_reserves() {
    for carrier in [0, 1] {
        let budget = LinkBudget::new("edge-switch switch1 ingress", rate("100M"));
        let hosts = [("host1", share("60M", 10)), ("host2", share("0", 10))];
        let mut relay = Relay::new(budget, hosts).unwrap();
        let now = MonotonicTime::ZERO;
        relay.open(now, 0, "host1", 0).unwrap();
        relay.open(now, 1, "host1", 1).unwrap();
        relay.open(now, 2, "host2", 0).unwrap();
        let left = run(&mut relay, &[carrier, 2], 1500, 20_000_000);
        let percent = left[carrier] * 100 / left.iter().sum::<usize>();
        assert!(
            (79..=81).contains(&percent),
            "{percent} % by link {carrier}"
        );
    }
}

#[test]
fn what_waits_goes_with_its_port() {
    let mut relay = relay(&[share("50M", 10), share("0", 10)]);
    let now = MonotonicTime::ZERO;
    while relay.has_room(0) {
        relay.push(now, 0, numbered(7, 1500));
    }
    relay.close(0);
    assert!(relay.is_empty(0) && !relay.has_room(0));
    relay.push(now, 0, numbered(7, 1500));
    assert_eq!(relay.poll(now), None);
    relay.open(now, 0, "host0", 0).unwrap();
    relay.push(now, 0, numbered(8, 1500));
    assert_eq!(relay.poll(now), Some((0, numbered(8, 1500))));
    assert_eq!(
        relay.open(now, 0, "host0", 0),
        Err(OpenError::InUse { port: 0 })
    );
    let stranger = relay.open(now, 5, "host9", 0).unwrap_err();
    assert_eq!(
        stranger.to_string(),
        "host \"host9\" is not behind this switch"
    );
}

proptest! {
    #[test]
    fn frames_of_a_port_leave_once_and_in_order(
        steps in prop::collection::vec((0_usize..4, 0_usize..70_000, any::<bool>(), 0_u64..3_000_000), 1..300),
    ) {
        let mut relay = relay(&[share("50M", 0), share("0", 1), share("0", 100), share("5M", 0)]);
        let (mut sent, mut arrived) = ([0_u32; 4], [0_u32; 4]);
        let mut now = MonotonicTime::ZERO;
        let mut take = |relay: &mut Relay, now| {
            while let Some((port, frame)) = relay.poll(now) {
                let number = u32::from_le_bytes(*frame.payload().first_chunk().unwrap());
                assert_eq!(number, arrived[port], "port {port}");
                arrived[port] += 1;
            }
            arrived
        };
        for (port, bytes, blocked, nanos) in steps {
            if relay.has_room(port) {
                relay.push(now, port, numbered(sent[port], bytes.min(65_792)));
                sent[port] += 1;
            }
            relay.set_blocked(now, port, blocked);
            take(&mut relay, now);
            now = MonotonicTime::from_nanos(now.as_nanos() + nanos);
        }
        for port in 0..4 {
            relay.set_blocked(now, port, false);
        }
        while let Some(wake) = relay.next_wake(now) {
            now = wake;
            take(&mut relay, now);
        }
        prop_assert_eq!(take(&mut relay, now), sent);
    }
}

/// Shares move between hosts whose links are open; what does not fit changes nothing.
#[test]
fn shares_change_while_links_are_open() {
    let mut relay = relay(&[share("60M", 10), share("20M", 10)]);
    let names: Vec<_> = relay.hosts.keys().cloned().collect();
    let reserved = |relay: &Relay| {
        let ports = relay.ports.values();
        let rates = ports.map(|port| relay.scheduler.rate(port.open.handle).unwrap().cir);
        let rates: Vec<_> = rates.collect();
        (relay.scheduler.reserved(), rates)
    };
    let rate = |text: &str| text.parse::<BitRate>().unwrap();
    let now = MonotonicTime::from_nanos(1);
    let mut set = |host: usize, cir: &str| relay.set_share(now, &names[host], share(cir, 5));
    set(0, "10M").unwrap();
    set(1, "70M").unwrap();
    set(0, "0").unwrap();
    set(0, "20M").unwrap();
    set(0, "900G").unwrap_err();
    relay.set_share(now, "nobody", share("1M", 1)).unwrap();
    assert_eq!(
        reserved(&relay),
        (rate("90M"), vec![rate("20M"), rate("70M")])
    );
}

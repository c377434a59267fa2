//! Messages as hosts and routers send them, and who gets what afterwards.

use fabric_payload::ethernet::VirtioNetHeader;
use proptest::prelude::*;

use super::super::policy::Policy;
use super::super::switch::Switch;
use super::*;

const A: Source = Source::Vnic(DeviceId(1));
const B: Source = Source::Vnic(DeviceId(2));
const START: MonotonicTime = MonotonicTime::ZERO;

fn group(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(239, 1, 1, last)
}

fn group6(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0, last)
}

/// An IPv4 frame to a group.
fn ipv4(source: [u8; 4], to: Ipv4Addr, protocol: u8, body: &[u8]) -> Vec<u8> {
    let mut header = etherparse::Ipv4Header::new(
        u16::try_from(body.len()).unwrap(),
        1,
        protocol.into(),
        source,
        to.octets(),
    )
    .unwrap();
    header.header_checksum = header.calc_header_checksum();
    let mut frame = vec![1, 0, 0x5e, 1, 1, 1, 2, 0, 0, 0, 0, 1, 8, 0];
    header.write(&mut frame).unwrap();
    frame.extend(body);
    frame
}

/// An IPv6 frame to a group, with the router alert that MLD has.
fn ipv6(source: Ipv6Addr, to: Ipv6Addr, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 1, 0x86, 0xdd];
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(u16::try_from(body.len() + 8).unwrap().to_be_bytes());
    frame.extend([0, 1]);
    frame.extend(source.octets());
    frame.extend(to.octets());
    frame.extend([ICMPV6, 0, 5, 2, 0, 0, 1, 0]);
    frame.extend(body);
    frame
}

fn igmp(kind: u8, code: u8, group: Ipv4Addr) -> Vec<u8> {
    let body = [&[kind, code, 0, 0][..], &group.octets()].concat();
    ipv4([10, 0, 0, 1], group, IGMP, &body)
}

fn query() -> Vec<u8> {
    let body = [0x11, 100, 0, 0, 0, 0, 0, 0];
    ipv4([10, 0, 0, 254], Ipv4Addr::new(224, 0, 0, 1), IGMP, &body)
}

fn igmp3(records: &[(u8, u16, Ipv4Addr)]) -> Vec<u8> {
    let mut body = vec![0x22, 0, 0, 0, 0, 0];
    body.extend(u16::try_from(records.len()).unwrap().to_be_bytes());
    for (kind, sources, group) in records {
        // With a word of auxiliary data, which is skipped.
        body.extend([*kind, 1]);
        body.extend(sources.to_be_bytes());
        body.extend(group.octets());
        body.extend(vec![9; 4 * usize::from(*sources) + 4]);
    }
    ipv4([10, 0, 0, 1], Ipv4Addr::new(224, 0, 0, 22), IGMP, &body)
}

const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

fn mld(kind: u8, group: Ipv6Addr) -> Vec<u8> {
    let body = [&[kind, 0, 0, 0, 0x27, 0x10, 0, 0][..], &group.octets()].concat();
    let to = if group.is_unspecified() {
        "ff02::1".parse().unwrap()
    } else {
        group
    };
    ipv6(LINK_LOCAL, to, &body)
}

fn mld2(records: &[(u8, Ipv6Addr)]) -> Vec<u8> {
    let mut body = vec![143, 0, 0, 0, 0, 0];
    body.extend(u16::try_from(records.len()).unwrap().to_be_bytes());
    for (kind, group) in records {
        body.extend([*kind, 0, 0, 0]);
        body.extend(group.octets());
    }
    ipv6(LINK_LOCAL, "ff02::16".parse().unwrap(), &body)
}

fn data(group: Ipv4Addr) -> Vec<u8> {
    ipv4([10, 0, 0, 9], group, 17, &[0, 1, 0, 2, 0, 8, 0, 0])
}

fn data6(group: Ipv6Addr) -> Vec<u8> {
    ipv6(LINK_LOCAL, group, &[128, 0, 0, 0, 0, 0, 0, 0])
}

fn after(seconds: u64) -> MonotonicTime {
    START.saturating_add(Duration::from_secs(seconds))
}

/// A switch in which a router has asked, and all had the time to answer; and the time.
fn asked() -> (Snooping, MonotonicTime) {
    let mut snooping = Snooping::default();
    assert_eq!(snooping.see(START, Source::Uplink, 0, &query()), None);
    let unspecified = mld(130, Ipv6Addr::UNSPECIFIED);
    assert_eq!(snooping.see(START, Source::Uplink, 0, &unspecified), None);
    (snooping, after(10))
}

impl Snooping {
    fn see(
        &mut self,
        now: MonotonicTime,
        source: Source,
        vlan: u16,
        frame: &[u8],
    ) -> Option<Listeners> {
        self.look(now, source, vlan, frame, true)
    }

    /// Which of A and B get this frame from outside.
    fn get(&mut self, now: MonotonicTime, vlan: u16, frame: &[u8]) -> [bool; 2] {
        match self.see(now, Source::Uplink, vlan, frame) {
            None => [true; 2],
            Some(who) => [1, 2].map(|device| self.hears(now, DeviceId(device), who)),
        }
    }
}

#[test]
fn every_version_joins_and_leaves() {
    let leave = igmp(0x17, 0, group(1));
    let joins = [
        igmp(0x12, 0, group(1)),
        igmp(0x16, 0, group(1)),
        igmp3(&[(4, 0, group(1))]),
        igmp3(&[(2, 1, group(9)), (6, 3, group(8)), (3, 1, group(1))]),
        igmp3(&[(5, 2, group(1))]),
    ];
    for join in joins {
        for leave in [&leave, &igmp3(&[(3, 0, group(1))])] {
            let (mut snooping, now) = asked();
            assert_eq!(snooping.get(now, 0, &data(group(1))), [true; 2]);
            snooping.see(now, A, 0, &join);
            snooping.see(now, B, 0, &igmp(0x16, 0, group(2)));
            assert_eq!(snooping.get(now, 0, &data(group(1))), [true, false]);
            assert_eq!(snooping.get(now, 0, &data(group(2))), [false, true]);
            // In another VLAN nobody asks, and nobody has joined.
            assert_eq!(snooping.get(now, 7, &data(group(1))), [true; 2]);
            snooping.see(now, B, 0, &join);
            assert_eq!(snooping.get(now, 0, &data(group(1))), [true; 2]);
            snooping.see(now, A, 0, leave);
            assert_eq!(snooping.get(now, 0, &data(group(1))), [true; 2]);
            let later = now.saturating_add(LEAVE_DELAY);
            assert_eq!(snooping.get(later, 0, &data(group(1))), [false, true]);
        }
    }
    for join in [mld(131, group6(1)), mld2(&[(1, group6(2)), (4, group6(1))])] {
        for leave in [mld(132, group6(1)), mld2(&[(3, group6(1))])] {
            let (mut snooping, now) = asked();
            snooping.see(now, A, 0, &join);
            assert_eq!(snooping.get(now, 0, &data6(group6(1))), [true, false]);
            assert_eq!(snooping.get(now, 0, &data6(group6(2))), [true; 2]);
            snooping.see(now, B, 0, &join);
            snooping.see(now, A, 0, &leave);
            let later = now.saturating_add(LEAVE_DELAY);
            assert_eq!(snooping.get(later, 0, &data6(group6(1))), [false, true]);
        }
    }
}

#[test]
fn nothing_is_held_back_before_all_could_answer_nor_after_nobody_asks() {
    let mut snooping = Snooping::default();
    snooping.see(START, A, 0, &igmp(0x16, 0, group(1)));
    assert_eq!(snooping.get(START, 0, &data(group(1))), [true; 2]);
    snooping.see(after(5), Source::Uplink, 0, &query());
    assert_eq!(snooping.get(after(14), 0, &data(group(1))), [true; 2]);
    assert_eq!(snooping.get(after(15), 0, &data(group(1))), [true, false]);
    assert_eq!(snooping.get(after(259), 0, &data(group(1))), [true, false]);
    assert_eq!(snooping.get(after(260), 0, &data(group(1))), [true; 2]);
    // A question that leaves an hour for answers counts for nothing.
    let slow = [0x11, 0xff, 0, 0, 0, 0, 0, 0, 2, 125, 0, 0];
    let slow = ipv4([10, 0, 0, 66], Ipv4Addr::new(224, 0, 0, 1), IGMP, &slow);
    for second in (300..600).step_by(20) {
        snooping.see(after(second), B, 0, &slow);
        snooping.see(after(second), A, 0, &igmp(0x16, 0, group(1)));
        assert_eq!(snooping.get(after(second), 0, &data(group(1))), [true; 2]);
    }
}

#[test]
fn reports_reach_who_asks_and_link_local_groups_everybody() {
    let (mut snooping, now) = asked();
    let report = igmp(0x16, 0, group(1));
    // Other members would keep silent if they heard it.
    snooping.see(now, B, 0, &report);
    assert_eq!(snooping.get(now, 0, &report), [false; 2]);
    snooping.see(now, A, 0, &query());
    assert_eq!(snooping.get(now, 0, &report), [true, false]);
    assert_eq!(snooping.get(now, 0, &data(group(1))), [true; 2]);
    for local in [[224, 0, 0, 251], [224, 0, 0, 5]].map(Ipv4Addr::from) {
        snooping.see(now, B, 0, &igmp(0x16, 0, local));
        assert_eq!(snooping.get(now, 0, &data(local)), [true; 2]);
    }
    let solicited = "ff02::1:ff00:1".parse().unwrap();
    snooping.see(now, B, 0, &mld(131, solicited));
    assert_eq!(snooping.get(now, 0, &data6(solicited)), [true; 2]);
    assert_eq!(snooping.get(now, 0, &[1; 60]), [true; 2]);
}

#[test]
fn who_joins_everything_gets_everything_and_harms_nobody() {
    let (mut snooping, now) = asked();
    snooping.see(now, B, 0, &igmp(0x16, 0, group(1)));
    for number in 0..4 * u16::try_from(GROUPS_MAX).unwrap() {
        let [high, low] = number.to_be_bytes();
        let wanted = Ipv4Addr::new(239, 2, high, low);
        snooping.see(now, A, 0, &igmp(0x16, 0, wanted));
        let member = &snooping.members[&DeviceId(1)];
        assert!(member.groups.len() <= GROUPS_MAX);
    }
    assert_eq!(snooping.get(now, 0, &data(group(1))), [true; 2]);
    let first = Ipv4Addr::new(239, 2, 0, 0);
    assert_eq!(snooping.get(now, 0, &data(first)), [true, false]);
    for vlan in 0..1000 {
        snooping.see(now, A, vlan, &query());
    }
    assert!(snooping.queriers.len() <= QUERIERS_MAX);
    assert!(snooping.members[&DeviceId(1)].asks.len() <= QUERIERS_MAX);
    snooping.remove(DeviceId(1));
    assert_eq!(snooping.get(now, 0, &data(group(1))), [false, true]);
}

#[test]
fn an_isolated_vnic_joins_and_does_not_ask() {
    let lab: fabric_config::LabConfig = "[director]\nname = \"d\"\n\
         [[ethernet-port]]\nport = \"10/1\"\ntap = \"t\"\n"
        .parse()
        .unwrap();
    let mut switch = Switch::new(&lab.ethernet_ports[0]);
    for (device, isolated) in [(1, true), (2, false)] {
        let mac = fabric_config::MacAddress([2, 0, 0, 0, 0, device]);
        let mut policy = Policy::plain(mac);
        policy.isolated = isolated;
        switch.insert(DeviceId(device.into()), std::sync::Arc::new(policy));
    }
    let mut go = |now, source, frame: &[u8]| {
        let mut frame = frame.to_vec();
        frame[11] = match source {
            Source::Uplink => 9,
            Source::Vnic(device) => u8::try_from(device.0).unwrap(),
        };
        let header = VirtioNetHeader::default();
        let forward = switch.forward(now, source, &header, &frame).unwrap();
        let who = forward.listeners;
        [1, 2].map(|device| who.is_none_or(|who| switch.hears(now, DeviceId(device), who)))
    };
    // What it asks nobody answers: nothing is held back from the other.
    go(START, A, &query());
    go(after(10), A, &igmp(0x16, 0, group(1)));
    assert_eq!(go(after(10), Source::Uplink, &data(group(1))), [true; 2]);
    go(after(10), Source::Uplink, &query());
    assert_eq!(
        go(after(20), Source::Uplink, &data(group(1))),
        [true, false]
    );
}

#[test]
fn times_are_as_the_standards_have_them() {
    assert_eq!(time(0x7f, 8, 4), 0x7f);
    assert_eq!(time(0x80, 8, 4), 0x10 << 3);
    assert_eq!(time(0xff, 8, 4), 31_744);
    assert_eq!(time(0x8000, 16, 12), 0x1000 << 3);
    assert_eq!(time(0xffff, 16, 12), 8_387_584);
}

#[test]
fn n12_damaged_messages_are_read_without_harm() {
    let good: Vec<Vec<u8>> = vec![
        query(),
        igmp(0x16, 0, group(1)),
        igmp3(&[(4, 2, group(1)), (3, 0, group(2))]),
        mld(130, Ipv6Addr::UNSPECIFIED),
        mld2(&[(4, group6(1)), (3, group6(2))]),
    ];
    for frame in good {
        for length in 0..frame.len() {
            let mut snooping = Snooping::default();
            snooping.see(START, A, 0, frame.get(..length).unwrap());
        }
        for at in 0..frame.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut damaged = frame.clone();
                damaged[at] = value;
                let mut snooping = Snooping::default();
                snooping.see(START, A, 0, &damaged);
                let known = snooping.members.values().map(|member| member.groups.len());
                assert!(known.sum::<usize>() <= 2);
            }
        }
    }
}

/// What a model remembers: each report, and when it was.
#[derive(Debug, Clone)]
enum Step {
    Wait(u64),
    Query,
    Join(bool, u8),
    Leave(bool, u8),
    Data(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..150_u64).prop_map(Step::Wait),
        Just(Step::Query),
        (any::<bool>(), 0..3_u8).prop_map(|(who, group)| Step::Join(who, group)),
        (any::<bool>(), 0..3_u8).prop_map(|(who, group)| Step::Leave(who, group)),
        (0..3_u8).prop_map(Step::Data),
    ]
}

proptest! {
    /// Against the whole history: a vNIC misses a frame only if somebody asks, another has joined, and
    /// it has not, or has left, or was silent for too long.
    #[test]
    fn who_gets_what_agrees_with_the_history(steps in prop::collection::vec(step(), 1..60)) {
        let mut snooping = Snooping::default();
        let mut now = 0;
        let mut history: Vec<(u64, Step)> = Vec::new();
        for step in steps {
            match &step {
                Step::Wait(seconds) => now += seconds,
                Step::Query => { snooping.see(after(now), Source::Uplink, 0, &query()); }
                Step::Join(second, wanted) => {
                    let who = if *second { B } else { A };
                    snooping.see(after(now), who, 0, &igmp(0x16, 0, group(*wanted)));
                }
                Step::Leave(second, wanted) => {
                    let who = if *second { B } else { A };
                    snooping.see(after(now), who, 0, &igmp(0x17, 0, group(*wanted)));
                }
                Step::Data(wanted) => {
                    let queries = history.iter().filter(|(_, step)| matches!(step, Step::Query));
                    let queries: Vec<u64> = queries.map(|(at, _)| *at).collect();
                    // The newest row of questions without a gap.
                    let mut since = None;
                    let mut last = None;
                    for at in queries {
                        if last.is_none_or(|last| at >= last + 255) {
                            since = Some(at);
                        }
                        last = Some(at);
                    }
                    let asked = since.is_some_and(|at| now >= at + 10)
                        && last.is_some_and(|at| now < at + 255);
                    let joined = [false, true].map(|second| {
                        let mut until = 0;
                        for (at, step) in &history {
                            match step {
                                Step::Join(who, group) if who == &second && group == wanted => {
                                    until = at + 260;
                                }
                                Step::Leave(who, group) if who == &second && group == wanted => {
                                    until = until.min(at + 2);
                                }
                                _ => {}
                            }
                        }
                        until > now
                    });
                    let expected = if asked && joined.contains(&true) { joined } else { [true; 2] };
                    prop_assert_eq!(snooping.get(after(now), 0, &data(group(*wanted))), expected);
                }
            }
            history.push((now, step));
        }
    }
}

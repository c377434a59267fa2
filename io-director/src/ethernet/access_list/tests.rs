//! Frames that are put together from their parts, judged by lists as the lab file writes them.

use etherparse::PacketBuilder;
use fabric_config::LabConfig;
use fabric_payload::ethernet::{FLAG_NEEDS_CSUM, HEADER_BYTES};
use proptest::prelude::*;
use zerocopy::IntoBytes;
use zerocopy::byteorder::little_endian::U16;

use super::*;
use crate::ethernet::rewrite::{Outgoing, Rewrite, TagEdit};

fn list(default: &str, rules: &str) -> AccessList {
    let text = format!(
        "[director]\nname = \"d\"\n[[access-list]]\nname = \"l\"\ndefault = \"{default}\"\n\
         rules = [{rules}]\n[[ethernet-port]]\nport = \"1/1\"\nprivate = true\n\
         [[host]]\nname = \"h\"\nembedded = true\nrun-dir = \"/x\"\nrate = \"1G\"\n\
         [[host.vm]]\nname = \"v\"\n[[host.vm.vnic]]\nname = \"n\"\nid = 1\nport = \"1/1\"\n\
         mac = \"02:00:00:00:00:01\"\naccess-in = \"l\"\n"
    );
    let lab: LabConfig = text
        .parse()
        .unwrap_or_else(|error| panic!("{error}: {rules}"));
    let vnic = lab.hosts[0].vnics().next().unwrap();
    AccessList::new(vnic.access_in.as_ref().unwrap())
}

/// What a frame says.
#[derive(Debug, Clone)]
struct Parts {
    from: u8,
    vlan: Option<u16>,
    address: IpAddr,
    protocol: u8,
    port: u16,
    fragment: bool,
}

impl Parts {
    fn frame(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, self.from], [2; 6]);
        let ip = match self.address {
            IpAddr::V4(to) => ethernet.ipv4([10, 0, 0, 1], to.octets(), 9),
            IpAddr::V6(to) => ethernet.ipv6([0xfd; 16], to.octets(), 9),
        };
        match self.protocol {
            6 => ip.tcp(1000, self.port, 1, 1).write(&mut frame, &[0; 8]),
            _ => ip.udp(1000, self.port).write(&mut frame, &[0; 8]),
        }
        .unwrap();
        if self.is_later_fragment() {
            frame[20..22].copy_from_slice(&[0, 1]);
        }
        if let Some(vlan) = self.vlan {
            let [high, low] = vlan.to_be_bytes();
            frame.splice(12..12, [0x81, 0, high, low]);
        }
        frame
    }

    fn is_later_fragment(&self) -> bool {
        self.fragment && self.address.is_ipv4()
    }
}

/// A rule's words, and whether a frame meets it.
type Words = (&'static str, fn(&Parts) -> Met);

const CONDITIONS: [Words; 8] = [
    ("protocol = \"tcp\"", |parts| Some(parts.protocol == 6)),
    ("protocol = \"ipv6\"", |parts| Some(parts.address.is_ipv6())),
    ("destination = \"10.1.0.0/16\"", |parts| {
        Some(parts.address.to_string().starts_with("10.1."))
    }),
    ("destination = \"fd01::/16\"", |parts| {
        Some(parts.address.to_string().starts_with("fd01"))
    }),
    ("vlan = 7", |parts| Some(parts.vlan == Some(7))),
    ("source-mac = \"02:00:00:00:00:03\"", |parts| {
        Some(parts.from == 3)
    }),
    (
        "protocol = \"udp\", destination-port = \"20-30\"",
        |parts| match (parts.protocol, parts.is_later_fragment()) {
            (17, true) => None,
            (17, false) => Some((20..=30).contains(&parts.port)),
            _ => Some(false),
        },
    ),
    ("protocol = \"arp\"", |_| Some(false)),
];

fn any_parts() -> impl Strategy<Value = Parts> {
    let addresses = ["10.1.2.3", "10.2.0.1", "fd01::1", "fe80::9"];
    let address = prop::sample::select(addresses.to_vec());
    (
        2_u8..4,
        prop::sample::select(vec![None, Some(7), Some(8)]),
        address.prop_map(|address| address.parse().unwrap()),
        prop::sample::select(vec![6_u8, 17]),
        prop::sample::select(vec![19_u16, 20, 30, 31]),
        any::<bool>(),
    )
        .prop_map(|(from, vlan, address, protocol, port, fragment)| Parts {
            from,
            vlan,
            address,
            protocol,
            port,
            fragment,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// The first rule that is met and decides, decides; each that is met counts.
    #[test]
    fn frames_are_judged_as_their_parts_say(
        rules in prop::collection::vec((0_usize..3, 0_usize..8), 0..5),
        passes: bool,
        parts in any_parts(),
    ) {
        let actions = ["allow", "deny", "count"];
        let words = rules.iter().map(|(action, condition)| {
            format!("{{ action = \"{}\", {} }}", actions[*action], CONDITIONS[*condition].0)
        });
        let words: Vec<_> = words.collect();
        let list = list(if passes { "allow" } else { "deny" }, &words.join(", "));
        let frame = parts.frame();
        let judged = list.judge(&VirtioNetHeader::default(), &frame, None).map(drop);
        let mut expected = None;
        let mut counts = vec![0; rules.len()];
        for (index, (action, condition)) in rules.iter().enumerate() {
            match (CONDITIONS[*condition].1(&parts), actions[*action]) {
                (Some(false), _) | (None, "count") => continue,
                (None, _) => expected = Some(Err(DropReason::Unreadable)),
                (Some(true), action) => {
                    counts[index] = 1;
                    expected = match action {
                        "allow" => Some(Ok(())),
                        "deny" => Some(Err(DropReason::Access)),
                        _ => continue,
                    };
                }
            }
            break;
        }
        let default = if passes { Ok(()) } else { Err(DropReason::Access) };
        prop_assert_eq!(judged, expected.unwrap_or(default));
        let frames: Vec<_> = list.rules.iter().map(|rule| rule.counters.frames.count()).collect();
        prop_assert_eq!(frames, counts);
        prop_assert_eq!(list.undecided.frames.count(), u64::from(expected.is_none()));
    }

    /// A marked frame is the same with another DSCP, and its header's checksum is right.
    #[test]
    fn marked_frames_are_valid(parts in any_parts(), dscp in 0_u8..64, push: bool) {
        let parts = Parts { fragment: false, ..parts };
        let list = list("allow", &format!("{{ action = \"mark\", dscp = {dscp} }}"));
        let frame = parts.frame();
        let mark = list.judge(&VirtioNetHeader::default(), &frame, None).unwrap();
        let tag = if push { TagEdit::Push(9) } else { TagEdit::Keep };
        let payload = [&[0; HEADER_BYTES][..], &frame].concat();
        let rewrite = Rewrite { tag, dscp: mark.dscp };
        let mut marked = Outgoing::new(&payload, rewrite).unwrap().pieces().concat();
        marked.drain(..HEADER_BYTES);
        if push {
            let tag: Vec<_> = marked.drain(12..16).collect();
            prop_assert_eq!(tag, [0x81, 0, 0, 9]);
        }
        let at = 14 + if parts.vlan.is_some() { 4 } else { 0 };
        if parts.address.is_ipv4() {
            let (header, _) = etherparse::Ipv4Header::from_slice(&marked[at..]).unwrap();
            prop_assert_eq!(header.dscp.value(), dscp);
            prop_assert_eq!(header.header_checksum, header.calc_header_checksum());
            marked[at + 1] = frame[at + 1];
            marked[at + 10..at + 12].copy_from_slice(&frame[at + 10..at + 12]);
        } else {
            let (header, _) = etherparse::Ipv6Header::from_slice(&marked[at..]).unwrap();
            prop_assert_eq!(header.traffic_class >> 2, dscp);
            marked[at..at + 2].copy_from_slice(&frame[at..at + 2]);
        }
        prop_assert_eq!(marked, frame);
    }
}

#[test]
fn n12_what_cannot_be_read_meets_no_rule_that_lets_it_pass() {
    let deny = list("allow", "{ action = \"deny\", destination = \"fd00::/8\" }");
    let by_mac = list(
        "allow",
        "{ action = \"deny\", source-mac = \"02:00:00:00:00:09\" }",
    );
    // To fd00::1 by way of another station.
    let mut routed = [&[2; 12][..], &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 28, 43, 9]].concat();
    routed.extend([0xfe; 32]);
    routed.extend([17, 0, 0, 1, 0, 0, 0, 0]);
    routed.extend([0; 20]);
    let header = VirtioNetHeader::default();
    let cut = &routed[..40];
    for frame in [&routed, cut] {
        let judged = deny.judge(&header, frame, None);
        assert_eq!(judged, Err(DropReason::Unreadable));
        assert_eq!(by_mac.judge(&header, frame, None), Ok(Mark::default()));
    }
    assert_eq!(deny.unreadable.frames.count(), 2);
}

#[test]
fn n04_checksum_does_not_write_what_was_judged() {
    let deny = list(
        "allow",
        "{ action = \"deny\", protocol = \"udp\", destination-port = \"53\" }",
    );
    let parts = Parts {
        from: 2,
        vlan: None,
        address: "10.1.2.3".parse().unwrap(),
        protocol: 17,
        port: 54,
        fragment: false,
    };
    let header = |csum_offset| VirtioNetHeader {
        flags: FLAG_NEEDS_CSUM,
        csum_start: U16::new(34),
        csum_offset: U16::new(csum_offset),
        ..VirtioNetHeader::default()
    };
    assert_eq!(header(6).as_bytes().len(), HEADER_BYTES);
    let dropped = Err(DropReason::ChecksumInHeader);
    assert_eq!(deny.judge(&header(2), &parts.frame(), None), dropped);
    assert!(deny.judge(&header(6), &parts.frame(), None).is_ok());
}

/// N-12: whatever stands behind two addresses is judged, by rules that ask for everything.
#[test]
fn n12_any_damaged_frame_is_judged() {
    let list = list(
        "deny",
        "{ action = \"mark\", dscp = 1, destination = \"10.0.0.0/8\" }, \
         { action = \"count\", protocol = \"udp\", source-port = \"1-70\" }, \
         { action = \"allow\", vlan = 5, protocol = \"tcp\", destination-port = \"1-70\" }, \
         { action = \"deny\", destination = \"fd00::/8\", protocol = \"icmp6\" }",
    );
    let own = ["10.0.0.5/32", "fd00::/64"].map(|text| text.parse().unwrap());
    let mac = MacAddress([2, 0, 0, 0, 0, 1]);
    let guards = [
        super::super::guard::Guard::of(mac, false, own.to_vec()),
        super::super::guard::Guard::of(mac, false, Vec::new()),
    ];
    let parts = |protocol, address: &str, vlan| Parts {
        from: 1,
        vlan,
        address: address.parse().unwrap(),
        protocol,
        port: 68,
        fragment: false,
    };
    let mut good: Vec<_> = [
        parts(6, "10.0.0.5", None),
        parts(17, "10.0.0.5", Some(5)),
        parts(17, "fd00::5", None),
        parts(6, "fd00::5", Some(5)),
    ]
    .map(|parts| parts.frame())
    .into();
    // A chain of extension headers, ARP, and an advertisement of a neighbour.
    let ipv6 = |next: u8, body: &[u8]| {
        let bytes = u8::try_from(body.len()).unwrap();
        let header = [0x86, 0xdd, 0x60, 0, 0, 0, 0, bytes, next, 255];
        let source = [&[0xfd][..], &[0; 15]].concat();
        [&[2; 12][..], &header, &source, &[0xff; 16], body].concat()
    };
    let chain = [
        [60, 0, 0, 0, 0, 0, 0, 0],
        [43, 0, 0, 0, 0, 0, 0, 0],
        [44, 0, 0, 1, 0, 0, 0, 0],
        [17, 0, 0, 1, 0, 0, 0, 9],
        [2, 34, 2, 35, 0, 8, 0, 0],
    ];
    good.push(ipv6(0, &chain.concat()));
    let neighbour = [&[136][..], &[0; 23], &[2, 1], &mac.0].concat();
    good.push(ipv6(58, &neighbour));
    let arp = [0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1];
    good.push([&[2; 12][..], &arp, &mac.0, &[10, 0, 0, 5], &[0; 10]].concat());
    let good: Vec<_> = good
        .iter()
        .map(|frame| [&[0; HEADER_BYTES][..], frame].concat())
        .collect();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/ethernet_frame");
    orimono_fuzz::fuzz(
        folder,
        &good,
        orimono_fuzz::inputs(50_000, 1_000_000),
        |payload| {
            let Some((header, frame)) = VirtioNetHeader::split(payload) else {
                return;
            };
            for guard in &guards {
                let _answer = guard.check(&header, frame);
            }
            if let Ok(mark) = list.judge(&header, frame, None)
                && mark.dscp.is_some()
            {
                for tag in [TagEdit::Keep, TagEdit::Push(7)] {
                    let dscp = mark.dscp;
                    let outgoing = Outgoing::new(payload, Rewrite { tag, dscp });
                    assert!(outgoing.is_some(), "what was read can be marked");
                }
            }
        },
    );
}

//! Frames that are put together from their parts, so that it is known what they say.

use etherparse::PacketBuilder;
use fabric_payload::ethernet::FLAG_NEEDS_CSUM;
use proptest::prelude::*;
use zerocopy::byteorder::little_endian::U16;

use super::*;

const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
const OTHER: MacAddress = MacAddress([2, 0, 0, 0, 0, 9]);
const LINK_LOCAL: &str = "fe80::ff:fe00:1";

fn guard(trusted: bool, own: &[&str]) -> Guard {
    let own = own.iter().map(|text| {
        let address = || text.parse::<IpAddr>().map(IpNet::from);
        text.parse().or_else(|_prefix| address()).unwrap()
    });
    Guard::of(MAC, trusted, own.collect())
}

fn listed() -> Guard {
    guard(false, &["10.0.0.5", "fd00::/64"])
}

fn check(guard: &Guard, frame: &[u8]) -> Result<(), DropReason> {
    guard.check(&VirtioNetHeader::default(), frame)
}

fn v4(text: &str) -> [u8; 4] {
    text.parse::<Ipv4Addr>().unwrap().octets()
}

fn v6(text: &str) -> [u8; 16] {
    text.parse::<Ipv6Addr>().unwrap().octets()
}

fn udp(from: &str, ports: (u16, u16)) -> Vec<u8> {
    let mut frame = Vec::new();
    let ethernet = PacketBuilder::ethernet2(MAC.0, [0xff; 6]);
    let packet = match from.parse().unwrap() {
        IpAddr::V4(from) => ethernet.ipv4(from.octets(), v4("10.0.0.1"), 64),
        IpAddr::V6(from) => ethernet.ipv6(from.octets(), v6("fd00::1"), 64),
    };
    let packet = packet.udp(ports.0, ports.1);
    packet.write(&mut frame, b"twelve bytes").unwrap();
    frame
}

fn icmpv6(from: &str, message: &[u8]) -> Vec<u8> {
    let mut frame = ethernet(IPV6);
    frame.extend([0x60, 0, 0, 0, 0]);
    frame.push(u8::try_from(message.len()).unwrap());
    frame.extend([58, 255]);
    frame.extend(v6(from));
    frame.extend(v6("ff02::1"));
    frame.extend(message);
    frame
}

fn ethernet(ether_type: u16) -> Vec<u8> {
    [&[0xff; 6][..], &MAC.0, &ether_type.to_be_bytes()].concat()
}

/// Type, checksum and body of a message of Neighbour Discovery with an option.
fn discovery(kind: u8, target: &str, option: u8, mac: MacAddress) -> Vec<u8> {
    let body = match kind {
        icmpv6::ROUTER_SOLICITATION => vec![0; 4],
        icmpv6::ROUTER_ADVERTISEMENT => vec![0; 12],
        _ => [&[0; 4][..], &v6(target)].concat(),
    };
    [&[kind, 0, 0, 0][..], &body, &[option, 1], &mac.0].concat()
}

fn arp(operation: u8, hardware: MacAddress, address: &str) -> Vec<u8> {
    let mut frame = ethernet(ARP);
    frame.extend([0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend(hardware.0);
    frame.extend(v4(address));
    frame.extend([0; 6]);
    frame.extend(v4("10.0.0.1"));
    frame
}

#[test]
fn own_addresses_pass_and_what_is_needed_to_get_them() {
    let guard = listed();
    let ns = icmpv6::NEIGHBOUR_SOLICITATION;
    let na = icmpv6::NEIGHBOUR_ADVERTISEMENT;
    for frame in [
        udp("10.0.0.5", (1000, 53)),
        udp("fd00::1234", (1000, 53)),
        udp(LINK_LOCAL, (546, 547)),
        udp("0.0.0.0", (68, 67)),
        arp(1, MAC, "10.0.0.5"),
        arp(2, MAC, "10.0.0.5"),
        arp(1, MAC, "0.0.0.0"),
        icmpv6("fd00::5", &discovery(ns, "fd00::99", 1, MAC)),
        icmpv6(LINK_LOCAL, &discovery(na, LINK_LOCAL, 2, MAC)),
        icmpv6("fd00::5", &discovery(na, "fd00::5", 2, MAC)),
        icmpv6("::", &discovery(ns, "fd00::5", 14, MAC)),
        icmpv6(LINK_LOCAL, &discovery(133, "::", 1, MAC)),
        icmpv6("::", &[143, 0, 0, 0, 0, 0, 0, 0]),
    ] {
        assert_eq!(check(&guard, &frame), Ok(()), "{frame:02x?}");
    }
    // A host that has moved says so with RARP, before it has said anything else.
    let mut rarp = arp(3, MAC, "0.0.0.0");
    rarp[12..14].copy_from_slice(&RARP.to_be_bytes());
    assert_eq!(check(&guard, &rarp), Ok(()));
}

#[test]
fn n09_addresses_of_others_are_dropped() {
    let guard = listed();
    let ns = icmpv6::NEIGHBOUR_SOLICITATION;
    let na = icmpv6::NEIGHBOUR_ADVERTISEMENT;
    for frame in [
        udp("10.0.0.6", (1000, 53)),
        udp("0.0.0.0", (68, 68 + 1)),
        udp("fd01::1", (1000, 53)),
        udp("fe80::1", (1000, 53)),
        udp("::", (1000, 53)),
        arp(1, MAC, "10.0.0.1"),
        arp(2, OTHER, "10.0.0.5"),
        arp(2, OTHER, "0.0.0.0"),
        icmpv6("fd00::5", &discovery(na, "fd01::1", 2, MAC)),
        icmpv6("fd00::5", &discovery(na, "fd00::5", 2, OTHER)),
        icmpv6("fd00::5", &discovery(ns, "fd00::99", 1, OTHER)),
        icmpv6("::", &discovery(ns, "fe80::1", 14, MAC)),
        icmpv6("::", &discovery(na, "fd00::5", 2, MAC)),
        ethernet(0x88cc),
        ethernet(0x0600),
    ] {
        assert_eq!(
            check(&guard, &frame),
            Err(DropReason::Address),
            "{frame:02x?}"
        );
    }
    // Without an address of IPv6 it says nothing of it.
    let v4_only = self::guard(false, &["10.0.0.5"]);
    let frame = udp(LINK_LOCAL, (546, 547));
    assert_eq!(check(&v4_only, &frame), Err(DropReason::Address));
}

#[test]
fn n09_servers_and_routers_are_trusted_ones() {
    let ra = icmpv6(LINK_LOCAL, &discovery(134, "::", 1, MAC));
    let redirect = icmpv6(LINK_LOCAL, &[137, 0, 0, 0, 0, 0, 0, 0]);
    let mut tagged = ra.clone();
    tagged.splice(12..12, [0x81, 0, 0, 0, 0x88, 0xa8, 0, 7]);
    let server = [
        udp("10.0.0.5", (67, 68)),
        udp("10.0.0.5", (4000, 68)),
        udp("fd00::5", (547, 546)),
        ra,
        redirect,
        tagged,
    ];
    for frame in &server {
        assert_eq!(check(&guard(false, &[]), frame), Err(DropReason::Server));
        assert_eq!(check(&listed(), frame), Err(DropReason::Server));
        assert_eq!(check(&guard(true, &[]), frame), Ok(()));
    }
    for frame in [
        udp("10.0.0.6", (68, 67)),
        udp("fd01::5", (546, 547)),
        arp(2, OTHER, "10.0.0.9"),
        icmpv6(LINK_LOCAL, &discovery(136, LINK_LOCAL, 2, OTHER)),
        ethernet(0x88b5),
        vec![0; 14],
    ] {
        assert_eq!(check(&guard(false, &[]), &frame), Ok(()), "{frame:02x?}");
    }
}

/// IP in LLC/SNAP and behind stacked tags, which filters of switches have let through
/// (CVE-2021-27853, -27854, -27861, -27862).
#[test]
fn n12_what_hides_from_the_checks_is_dropped() {
    let ra = icmpv6(LINK_LOCAL, &discovery(134, "::", 1, MAC));
    let mut stacked = ra.clone();
    stacked.splice(12..12, [0x81, 0, 0, 0].repeat(3));
    let mut snap = ethernet(u16::try_from(8 + ra.len() - 14).unwrap());
    snap.extend([0xaa, 0xaa, 3, 0, 0, 0]);
    snap.extend(&ra[12..]);
    for guard in [guard(false, &[]), listed()] {
        for frame in [&stacked, &snap] {
            assert_eq!(check(&guard, frame), Err(DropReason::Unreadable));
        }
    }
    // Nobody reads a cut header; where addresses are listed it is dropped all the same.
    for bytes in 14..ra.len() {
        let cut = &ra[..bytes];
        let Err(reason) = check(&listed(), cut) else {
            panic!("{bytes} bytes passed")
        };
        assert!(matches!(
            reason,
            DropReason::Unreadable | DropReason::Address | DropReason::Server
        ));
    }
}

/// What was looked at is not what arrives, if the checksum is written over it.
#[test]
fn n04_checksum_over_what_was_checked_is_dropped() {
    let check = |guard: &Guard, frame: &[u8], start: u16, offset: u16| {
        let header = VirtioNetHeader {
            flags: FLAG_NEEDS_CSUM,
            csum_start: U16::new(start),
            csum_offset: U16::new(offset),
            ..VirtioNetHeader::default()
        };
        guard.check(&header, frame)
    };
    let datagram = udp("10.0.0.5", (1000, 53));
    assert_eq!(check(&listed(), &datagram, 34, 6), Ok(()));
    for field in 14..38 {
        let dropped = Err(DropReason::ChecksumInHeader);
        assert_eq!(check(&listed(), &datagram, 14, field - 14), dropped);
        assert_eq!(
            check(&guard(false, &[]), &datagram, 14, field - 14),
            dropped
        );
    }
    // Not UDP yet.
    let mut other = datagram.clone();
    other[23] = 6;
    assert_eq!(
        check(&guard(false, &[]), &other, 14, 9),
        Err(DropReason::ChecksumInHeader)
    );
    let advertisement = icmpv6("fd00::5", &discovery(136, "fd00::5", 2, MAC));
    assert_eq!(check(&listed(), &advertisement, 54, 2), Ok(()));
    assert_eq!(
        check(&listed(), &advertisement, 54, 26),
        Err(DropReason::ChecksumInHeader)
    );
}

/// A packet of IPv6 in parts.
#[derive(Debug, Clone)]
struct Chain {
    extensions: Vec<Extension>,
    upper: (u8, Vec<u8>),
    keep: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Extension {
    Options(u8),
    Routing { left: u8 },
    Fragment { offset: u16, more: bool },
    Auth,
}

impl Chain {
    fn frame(&self) -> Vec<u8> {
        let number = |extension: &Extension| match extension {
            Extension::Options(number) => *number,
            Extension::Routing { .. } => 43,
            Extension::Fragment { .. } => 44,
            Extension::Auth => 51,
        };
        let numbers = self.extensions.iter().map(number);
        let mut numbers: Vec<_> = numbers.chain([self.upper.0]).collect();
        let first = numbers.remove(0);
        let mut body = Vec::new();
        for (extension, next) in self.extensions.iter().zip(numbers) {
            match extension {
                Extension::Options(_) => body.extend([next, 0, 1, 4, 0, 0, 0, 0]),
                Extension::Routing { left } => body.extend([next, 0, 0, *left, 0, 0, 0, 0]),
                Extension::Fragment { offset, more } => {
                    let [high, low] = (offset << 3 | u16::from(*more)).to_be_bytes();
                    body.extend([next, 0, high, low, 0, 0, 0, 1]);
                }
                Extension::Auth => body.extend([next, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]),
            }
        }
        body.extend(&self.upper.1);
        body.truncate(self.keep);
        let mut frame = ethernet(IPV6);
        frame.extend([0x60, 0, 0, 0]);
        frame.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        frame.extend([first, 64]);
        frame.extend(v6("fd00::5"));
        frame.extend(v6("ff02::1"));
        frame.extend(body);
        frame
    }

    /// Whether some receiver could take what is there, with other fragments of the sender's choice,
    /// for an answer of a server; `cut` is whether the frame ends before that is clear.
    fn may_be_of_server(&self) -> bool {
        let mut at = 0;
        let mut fragmented = false;
        for (index, extension) in self.extensions.iter().enumerate() {
            let bytes = if *extension == Extension::Auth { 12 } else { 8 };
            at += bytes;
            if at > self.keep {
                // The rest of the chain is in the next fragment, or nowhere.
                return fragmented;
            }
            match extension {
                Extension::Fragment { offset: 0, more } => fragmented |= more,
                Extension::Fragment { .. } => {
                    // A part of a packet whose first fragment is judged; a chain in it is suspect.
                    return index + 1 < self.extensions.len();
                }
                _ => {}
            }
        }
        let upper = self.upper.1.get(..self.keep - at).unwrap_or(&self.upper.1);
        if fragmented && upper.len() < 8 {
            return true;
        }
        match self.upper.0 {
            17 => upper.get(2..4) == Some(&546_u16.to_be_bytes()),
            58 => matches!(upper.first(), Some(134 | 137)),
            _ => false,
        }
    }
}

fn any_extension() -> impl Strategy<Value = Extension> {
    prop_oneof![
        prop::sample::select(vec![0, 60]).prop_map(Extension::Options),
        (0_u8..2).prop_map(|left| Extension::Routing { left }),
        (0_u16..2, any::<bool>()).prop_map(|(offset, more)| Extension::Fragment { offset, more }),
        Just(Extension::Auth),
    ]
}

fn any_upper() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let udp = prop::sample::select(vec![(547_u16, 546_u16), (546, 547), (1, 2)]);
    let udp = udp.prop_map(|(from, to)| {
        let ports = [from.to_be_bytes(), to.to_be_bytes()].concat();
        (17, [&ports[..], &[0, 12, 0, 0, 1, 2, 3, 4]].concat())
    });
    let icmp = prop::sample::select(vec![128_u8, 134, 137]);
    let icmp = icmp.prop_map(|kind| (58, [&[kind, 0, 0, 0][..], &[0; 12]].concat()));
    prop_oneof![udp, icmp, Just((6, vec![0; 20])), Just((59, Vec::new()))]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    /// N-12: chains of extension headers, cut and fragmented: what could be a server's answer does
    /// not pass, and what could not does.
    #[test]
    fn n12_chains_hide_nothing(
        extensions in prop::collection::vec(any_extension(), 0..8),
        upper in any_upper(),
        cut in prop::option::weighted(0.4, 0_usize..100),
    ) {
        let chain = Chain { extensions, upper, keep: cut.unwrap_or(usize::MAX) };
        let passes = check(&guard(false, &[]), &chain.frame()).is_ok();
        prop_assert_eq!(passes, !chain.may_be_of_server());
    }

    /// N-12: any bytes behind an EtherType that is looked into are answered.
    #[test]
    fn n12_any_bytes_are_answered(
        ether_type in prop::sample::select(vec![IPV4, IPV6, ARP, RARP, 0x8100, 40]),
        bytes in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let frame = [ethernet(ether_type), bytes].concat();
        let _answer = check(&listed(), &frame);
    }
}

#[test]
fn n12_nine_extension_headers_are_too_many() {
    let chain = |count| Chain {
        extensions: vec![Extension::Options(60); count],
        upper: (6, vec![0; 20]),
        keep: usize::MAX,
    };
    assert_eq!(check(&guard(false, &[]), &chain(8).frame()), Ok(()));
    let hidden = Err(DropReason::Unreadable);
    assert_eq!(check(&guard(false, &[]), &chain(9).frame()), hidden);
}

//! Questions of stock clients, as captured on a wire (`tests/frames`), and of hostile ones; answers are
//! read by the owned form of the codec.

use core::net::SocketAddr;

use dhcproto::v4::{Architecture, DhcpOption, MessageType, OptionCode};
use dhcproto::{Decodable, Encodable};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice, VlanId};
use fabric_config::LabConfig;

use super::*;

pub(super) const GUEST: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
const NOW: MonotonicTime = MonotonicTime::ZERO;
const UDHCPC_DISCOVER: &[u8] = include_bytes!("../../../tests/frames/udhcpc-discover");
const UDHCPC_REQUEST: &[u8] = include_bytes!("../../../tests/frames/udhcpc-request");
const DHCLIENT_DISCOVER: &[u8] = include_bytes!("../../../tests/frames/dhclient-discover");
const DHCLIENT_REQUEST: &[u8] = include_bytes!("../../../tests/frames/dhclient-request");
const DHCLIENT_SOLICIT: &[u8] = include_bytes!("../../../tests/frames/dhclient-solicit");
const LINUX_SOLICITATION: &[u8] = include_bytes!("../../../tests/frames/linux-router-solicitation");
pub(super) const ALL: &str = r#"
ip-addr = "192.168.10.201/24"
gateway = "192.168.10.1"
dns = ["192.168.10.2", "2001:db8::2"]
ip6-addr = "2001:db8::201/64"
domain = "example.com"
host-name = "web1"
boot-file = "other"
boot-files = { bios = "bios", efi-x64 = "efi", efi-arm64 = "arm", ipxe = "script" }
"#;

pub(super) fn vnic(words: &str) -> VnicConfig {
    let text = format!(
        r#"
        [director]
        name = "director1"
        boot-dir = "/srv/boot"
        [[ethernet-port]]
        port = "10/1"
        tap = "orimono0"
        [[host]]
        name = "host1"
        embedded = true
        run-dir = "/run"
        rate = "10G"
        [[host.vm]]
        name = "vm1"
        [[host.vm.vnic]]
        name = "vn01"
        id = 1
        port = "10/1"
        mac = "02:00:00:00:00:01"
        mtu = 1400
        addr-type = "static"
        {words}"#
    );
    let lab: LabConfig = text.parse().unwrap();
    lab.hosts[0].vnics().next().unwrap().clone()
}

fn responder(words: &str) -> Responder {
    Responder::new(&vnic(words)).unwrap()
}

fn answered(responder: &mut Responder, frame: &[u8]) -> (Event, Vec<u8>) {
    match responder.receive(NOW, frame) {
        Verdict::Taken(event, Some(answer)) => (event, answer),
        other => panic!("{other:?}"),
    }
}

fn silent(responder: &mut Responder, frame: &[u8]) -> Event {
    match responder.receive(NOW, frame) {
        Verdict::Taken(event, None) => event,
        other => panic!("{other:?}"),
    }
}

/// Ends and payload of an answer, whose checksums must be right.
pub(super) fn open(frame: &[u8]) -> (SocketAddr, SocketAddr, Vec<u8>) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(TransportSlice::Udp(udp)) = &packet.transport else {
        panic!("{packet:?}")
    };
    let (from, to, sum): (IpAddr, IpAddr, _) = match packet.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            let sum = udp.to_header().calc_checksum_ipv4(&header, udp.payload());
            (
                ip.header().source_addr().into(),
                ip.header().destination_addr().into(),
                sum,
            )
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            let sum = udp.to_header().calc_checksum_ipv6(&header, udp.payload());
            (
                ip.header().source_addr().into(),
                ip.header().destination_addr().into(),
                sum,
            )
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(sum.unwrap(), udp.checksum());
    let (from, to) = ((from, udp.source_port()), (to, udp.destination_port()));
    (from.into(), to.into(), udp.payload().to_vec())
}

fn message(frame: &[u8]) -> v4::Message {
    v4::Message::from_bytes(&open(frame).2).unwrap()
}

fn option(message: &v4::Message, code: OptionCode) -> Option<DhcpOption> {
    message.opts().get(code).cloned()
}

/// A datagram of the guest's.
pub(super) fn from_guest(from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
    let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let mac = if from.is_ipv4() {
        [0xff; 6]
    } else {
        [0x33, 0x33, 0, 1, 0, 2]
    };
    let ethernet = PacketBuilder::ethernet2(GUEST.0, mac);
    let ip = match (from, to) {
        (SocketAddr::V4(from), SocketAddr::V4(to)) => {
            ethernet.ipv4(from.ip().octets(), to.ip().octets(), 64)
        }
        (SocketAddr::V6(from), SocketAddr::V6(to)) => {
            ethernet.ipv6(from.ip().octets(), to.ip().octets(), 64)
        }
        _ => panic!("mixed"),
    };
    let mut frame = Vec::new();
    ip.udp(from.port(), to.port())
        .write_to_vec(&mut frame, payload)
        .unwrap();
    frame
}

fn query(kind: MessageType, change: impl FnOnce(&mut v4::Message)) -> Vec<u8> {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut message = v4::Message::new_with_id(7, none, none, none, none, &GUEST.0);
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    change(&mut message);
    from_guest(
        "0.0.0.0:68",
        "255.255.255.255:67",
        &message.to_vec().unwrap(),
    )
}

#[test]
fn stock_clients_are_told_what_the_lab_file_says() {
    let mut responder = responder(ALL);
    for (question, event, kind) in [
        (UDHCPC_DISCOVER, Event::Offered, MessageType::Offer),
        (UDHCPC_REQUEST, Event::Acknowledged, MessageType::Ack),
        (DHCLIENT_DISCOVER, Event::Offered, MessageType::Offer),
        (DHCLIENT_REQUEST, Event::Acknowledged, MessageType::Ack),
    ] {
        let (counted, answer) = answered(&mut responder, question);
        assert_eq!(counted, event);
        assert_eq!(answer[..12], [&GUEST.0[..], &SERVER_MAC.0].concat());
        let (from, to, _) = open(&answer);
        assert_eq!(from.to_string(), "192.168.10.1:67");
        assert_eq!(to.to_string(), "192.168.10.201:68");
        let message = message(&answer);
        assert_eq!(message.xid().to_be_bytes(), question[46..50]);
        assert_eq!(message.chaddr(), GUEST.0);
        assert_eq!(message.yiaddr().to_string(), "192.168.10.201");
        assert_eq!(message.siaddr().to_string(), "192.168.10.1");
        assert_eq!(message.opts().msg_type(), Some(kind));
        let has = |expected: DhcpOption| {
            let code = OptionCode::from(&expected);
            assert_eq!(option(&message, code), Some(expected));
        };
        has(DhcpOption::ServerIdentifier([192, 168, 10, 1].into()));
        has(DhcpOption::SubnetMask([255, 255, 255, 0].into()));
        has(DhcpOption::BroadcastAddr([192, 168, 10, 255].into()));
        has(DhcpOption::Router(vec![[192, 168, 10, 1].into()]));
        has(DhcpOption::DomainNameServer(vec![[192, 168, 10, 2].into()]));
        has(DhcpOption::Hostname("web1".to_owned()));
        has(DhcpOption::DomainName("example.com".to_owned()));
        has(DhcpOption::InterfaceMtu(1400));
        has(DhcpOption::AddressLeaseTime(3600));
        has(DhcpOption::Renewal(1800));
        has(DhcpOption::Rebinding(3150));
        assert_eq!(option(&message, OptionCode::ClasslessStaticRoute), None);
    }
}

#[test]
fn who_wants_another_address_is_refused() {
    let mut responder = responder("ip-addr = \"192.168.10.202/24\"\ngateway = \"192.168.10.1\"");
    let (event, answer) = answered(&mut responder, UDHCPC_REQUEST);
    assert_eq!(event, Event::Refused);
    assert_eq!(answer[..6], [0xff; 6]);
    assert_eq!(open(&answer).1.to_string(), "255.255.255.255:68");
    let refusal = message(&answer);
    assert_eq!(refusal.opts().msg_type(), Some(MessageType::Nak));
    assert!(refusal.yiaddr().is_unspecified());
    // Of a client that was here before the lab file changed.
    let renewal = query(MessageType::Request, |message| {
        message.set_ciaddr([192, 168, 10, 201]);
    });
    assert_eq!(answered(&mut responder, &renewal).0, Event::Refused);
    let nothing = query(MessageType::Request, |_| {});
    assert_eq!(answered(&mut responder, &nothing).0, Event::Refused);
}

#[test]
fn a_renewal_is_answered_where_it_came_from() {
    let mut responder = responder(ALL);
    let renewal = query(MessageType::Request, |message| {
        message.set_ciaddr([192, 168, 10, 201]);
    });
    let payload = open_payload(&renewal);
    let renewal = from_guest("192.168.10.201:68", "192.168.10.1:67", &payload);
    let (event, answer) = answered(&mut responder, &renewal);
    assert_eq!(event, Event::Acknowledged);
    assert_eq!(open(&answer).1.to_string(), "192.168.10.201:68");
    assert_eq!(message(&answer).ciaddr().to_string(), "192.168.10.201");
    // Who asked for a broadcast gets one.
    let discover = query(MessageType::Discover, |message| {
        message.set_flags(v4::Flags::default().set_broadcast());
    });
    let answer = answered(&mut responder, &discover).1;
    assert_eq!(
        (answer[0], open(&answer).1.to_string()),
        (0xff, "255.255.255.255:68".to_owned())
    );
}

fn open_payload(frame: &[u8]) -> Vec<u8> {
    frame[42..].to_vec()
}

#[test]
fn other_messages_are_answered_or_counted() {
    let mut responder = responder(ALL);
    let inform = query(MessageType::Inform, |message| {
        message.set_ciaddr([192, 168, 10, 201]);
    });
    let (event, answer) = answered(&mut responder, &inform);
    let informed = message(&answer);
    assert_eq!(
        (event, informed.yiaddr().is_unspecified()),
        (Event::Acknowledged, true)
    );
    assert_eq!(option(&informed, OptionCode::AddressLeaseTime), None);
    assert!(option(&informed, OptionCode::SubnetMask).is_some());
    let to = |kind, server: [u8; 4]| {
        query(kind, |message| {
            message
                .opts_mut()
                .insert(DhcpOption::ServerIdentifier(server.into()));
        })
    };
    let (ours, other) = ([192, 168, 10, 1], [192, 168, 10, 9]);
    for (question, event) in [
        (to(MessageType::Decline, ours), Event::Declined),
        (to(MessageType::Release, ours), Event::Released),
        (to(MessageType::Release, other), Event::Foreign),
        (to(MessageType::Request, other), Event::Foreign),
        (to(MessageType::Offer, ours), Event::Malformed),
    ] {
        assert_eq!(silent(&mut responder, &question), event);
    }
}

#[test]
fn n_broken_questions_are_counted_and_do_not_leave() {
    let mut responder = responder(ALL);
    let payload = open_payload(UDHCPC_DISCOVER);
    let mut sent = |payload: &[u8]| {
        silent(
            &mut responder,
            &from_guest("0.0.0.0:68", "255.255.255.255:67", payload),
        )
    };
    let with = |at: usize, byte| {
        let mut payload = payload.clone();
        payload[at] = byte;
        payload
    };
    assert_eq!(sent(&payload[..239]), Event::Malformed);
    // Reply, token ring, an address of 17 bytes, no cookie, no message type.
    for (at, byte) in [(0, 2), (1, 6), (2, 17), (236, 0), (240, 12)] {
        assert_eq!(sent(&with(at, byte)), Event::Malformed, "byte {at}");
    }
    // Another's address, and a relay.
    for (at, byte) in [(33, 9), (24, 9)] {
        assert_eq!(sent(&with(at, byte)), Event::Foreign, "byte {at}");
    }
    assert_eq!(sent(&[&payload[..], &[0; 1300]].concat()), Event::TooLong);
    let mut fragment = from_guest("0.0.0.0:68", "255.255.255.255:67", &payload);
    fragment[20] |= 0x20;
    assert_eq!(silent(&mut responder, &fragment), Event::TooLong);
    let tagged = [
        &UDHCPC_DISCOVER[..12],
        &[0x81, 0, 0, 5],
        &UDHCPC_DISCOVER[12..],
    ]
    .concat();
    assert_eq!(silent(&mut responder, &tagged), Event::Tagged);
}

#[test]
fn without_a_router_the_director_has_an_address_of_its_own() {
    let mut responder = responder("ip-addr = \"192.168.10.201/24\"");
    let discover = query(MessageType::Discover, |message| {
        let wanted = vec![OptionCode::Router, OptionCode::ClasslessStaticRoute];
        message
            .opts_mut()
            .insert(DhcpOption::ParameterRequestList(wanted));
    });
    let answer = answered(&mut responder, &discover).1;
    let offer = message(&answer);
    let server = DhcpOption::ServerIdentifier(SERVER_LINK_LOCAL);
    assert_eq!(option(&offer, OptionCode::ServerIdentifier), Some(server));
    assert_eq!(option(&offer, OptionCode::Router), None);
    let route = option(&offer, OptionCode::ClasslessStaticRoute);
    let Some(DhcpOption::ClasslessStaticRoute(route)) = route else {
        panic!("{route:?}")
    };
    assert_eq!(format!("{route:?}"), "[(169.254.0.67/32, 0.0.0.0)]");
    // udhcpc does not ask for routes, and is given none.
    let answer = answered(&mut responder, UDHCPC_DISCOVER).1;
    assert_eq!(
        option(&message(&answer), OptionCode::ClasslessStaticRoute),
        None
    );

    let arp = |target: [u8; 4]| {
        let request = etherparse::ArpPacket::from(etherparse::ArpEthIpv4Packet {
            operation: etherparse::ArpOperation::REQUEST,
            sender_mac: GUEST.0,
            sender_ipv4: [192, 168, 10, 201],
            target_mac: [0; 6],
            target_ipv4: target,
        });
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2(GUEST.0, [0xff; 6]).arp(request);
        builder.write_to_vec(&mut frame).unwrap();
        frame
    };
    let (event, reply) = answered(&mut responder, &arp(SERVER_LINK_LOCAL.octets()));
    assert_eq!(event, Event::Neighbour);
    // Typed from RFC 826.
    let expected = [
        &GUEST.0[..],
        &SERVER_MAC.0,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2],
        &SERVER_MAC.0,
        &[169, 254, 0, 67],
        &GUEST.0,
        &[192, 168, 10, 201],
    ];
    assert_eq!(reply, expected.concat());
    assert_eq!(
        responder.receive(NOW, &arp([192, 168, 10, 1])),
        Verdict::PassesOn
    );
    // A router answers for itself.
    let mut routed = self::responder(ALL);
    assert_eq!(
        routed.receive(NOW, &arp([192, 168, 10, 1])),
        Verdict::PassesOn
    );
    let mut own =
        self::responder("ip-addr = \"192.168.10.201/24\"\nserver-addr = \"192.168.10.9\"");
    assert_eq!(
        answered(&mut own, &arp([192, 168, 10, 9])).0,
        Event::Neighbour
    );
}

#[test]
fn an_answer_is_as_short_as_the_client_wants_it() {
    let label = "a".repeat(60);
    let long = format!("{label}.{label}.{label}.{label}");
    let words = ALL.replace("example.com", &long);
    let mut responder = responder(&words);
    let ask = |bytes| {
        query(MessageType::Discover, |message| {
            let options = message.opts_mut();
            options.insert(DhcpOption::ClientIdentifier(vec![9; 200]));
            options.insert(DhcpOption::MaxMessageSize(bytes));
        })
    };
    let answer = answered(&mut responder, &ask(576)).1;
    assert!(answer.len() <= 14 + 576, "{}", answer.len());
    let offer = message(&answer);
    assert_eq!(option(&offer, OptionCode::DomainName), None);
    assert!(option(&offer, OptionCode::BootfileName).is_some());
    let answer = answered(&mut responder, &ask(1400)).1;
    assert!(option(&message(&answer), OptionCode::DomainName).is_some());
    assert!(option(&message(&answer), OptionCode::ClientIdentifier).is_some());
}

#[test]
fn boot_files_are_by_architecture() {
    let mut responder = responder(ALL);
    let mut file = |change: &dyn Fn(&mut v4::DhcpOptions)| {
        let discover = query(MessageType::Discover, |message| change(message.opts_mut()));
        let offer = message(&answered(&mut responder, &discover).1);
        let name = offer
            .fname()
            .map(|name| String::from_utf8_lossy(name).into_owned());
        let name = name.map(|name| name.trim_end_matches('\0').to_owned());
        let same = option(&offer, OptionCode::BootfileName);
        let bytes = name
            .clone()
            .map(|name| DhcpOption::BootfileName(name.into_bytes()));
        assert_eq!(same, bytes);
        name
    };
    let architecture = |number| DhcpOption::ClientSystemArchitecture(Architecture(number));
    for (number, name) in [
        (0, "bios"),
        (7, "efi"),
        (9, "efi"),
        (11, "arm"),
        (6, "other"),
    ] {
        let found = file(&|options| {
            options.insert(architecture(number));
        });
        assert_eq!(found.as_deref(), Some(name));
    }
    assert_eq!(file(&|_| {}).as_deref(), Some("other"));
    let ipxe = file(&|options| {
        options.insert(architecture(7));
        options.insert(DhcpOption::UserClass(b"iPXE".to_vec()));
    });
    assert_eq!(ipxe.as_deref(), Some("script"));
    let http = file(&|options| {
        options.insert(DhcpOption::ClassIdentifier(
            b"HTTPClient:Arch:00016".to_vec(),
        ));
    });
    assert_eq!(http, None);
}

#[test]
fn nobody_else_tells_the_guest_its_address() {
    let four = from_guest("192.168.10.1:67", "192.168.10.201:68", b"offer");
    let six = from_guest("[fe80::9]:547", "[fe80::1]:546", b"advertise");
    let with = |at: usize, bytes: &[u8]| [&four[..at], bytes, &four[at..]].concat();
    let both = responder(ALL);
    assert!(both.refuses(&four) && both.refuses(&six));
    assert!(may_concern(&four) && may_concern(&six));
    assert!(both.refuses(&with(12, &[0x81, 0, 0, 5])));
    assert!(both.refuses(&with(12, &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6])));
    // The first fragment has the ports; what follows it is of no use without.
    let mut fragment = four.clone();
    fragment[20] |= 0x20;
    assert!(both.refuses(&fragment));
    fragment[21] = 1;
    assert!(!both.refuses(&fragment));
    // Lengths that lie.
    assert!(both.refuses(&four[..four.len() - 3]));
    let mut odd = four.clone();
    odd[38..40].copy_from_slice(&[0, 3]);
    assert!(both.refuses(&odd));
    // Behind an extension header.
    let mut extended = [&six[..54], &[17, 0, 1, 4, 0, 0, 0, 0], &six[54..]].concat();
    extended[20] = 0;
    extended[19] += 8;
    assert!(both.refuses(&extended));
    assert!(!both.refuses(&from_guest("192.168.10.1:67", "192.168.10.201:67", b"")));
    let only_four = responder("ip-addr = \"192.168.10.201/24\"");
    assert!(only_four.refuses(&four) && !only_four.refuses(&six));
    let only_six = responder("ip6-addr = \"2001:db8::201/64\"");
    assert!(!only_six.refuses(&four) && only_six.refuses(&six));
}

#[test]
fn what_is_not_for_the_director_passes_on() {
    let mut four = responder("ip-addr = \"192.168.10.201/24\"\ngateway = \"192.168.10.1\"");
    let mut tcp = Vec::new();
    let builder = PacketBuilder::ethernet2(GUEST.0, [2; 6]).ipv4([1; 4], [2; 4], 64);
    builder
        .tcp(67, 67, 1, 1)
        .write_to_vec(&mut tcp, b"x")
        .unwrap();
    let vlan = PacketBuilder::ethernet2(GUEST.0, [2; 6]).single_vlan(VlanId::try_new(5).unwrap());
    let mut tagged = Vec::new();
    vlan.ipv4([1; 4], [2; 4], 64)
        .udp(1, 2)
        .write_to_vec(&mut tagged, b"x")
        .unwrap();
    for frame in [
        &tcp[..],
        &tagged,
        DHCLIENT_SOLICIT,
        LINUX_SOLICITATION,
        // Its network has files of its own.
        &from_guest(
            "192.168.10.201:1000",
            "192.168.10.1:69",
            b"\0\x01a\0octet\0",
        ),
        &from_guest("192.168.10.201:68", "192.168.10.1:53", b"x"),
        &GUEST.0,
        &[],
    ] {
        assert_eq!(four.receive(NOW, frame), Verdict::PassesOn, "{frame:?}");
    }
    // Another's source address: the switch counts it.
    let mut foreign = UDHCPC_DISCOVER.to_vec();
    foreign[11] = 9;
    assert_eq!(four.receive(NOW, &foreign), Verdict::PassesOn);
    let to_server = [&SERVER_MAC.0[..], &GUEST.0, &[8, 0, 1]].concat();
    assert_eq!(silent(&mut four, &to_server), Event::NotServed);
    let boot = from_guest(
        "192.168.10.201:1000",
        "192.168.10.1:69",
        b"\0\x01a\0octet\0",
    );
    assert_eq!(responder(ALL).receive(NOW, &boot), Verdict::Tftp);
}

#[test]
fn a_flood_is_answered_at_a_rate() {
    let mut responder = responder(ALL);
    let mut answers = |now: u64, questions: usize| {
        let now = MonotonicTime::from_nanos(now);
        let verdicts = (0..questions).map(|_| responder.receive(now, UDHCPC_DISCOVER));
        verdicts
            .filter(|it| !matches!(it, Verdict::Taken(Event::TooMany, None)))
            .count()
    };
    assert_eq!(answers(0, 1000), 40);
    assert_eq!(answers(49_999_999, 1000), 0);
    assert_eq!(answers(100_000_000, 1000), 2);
    assert_eq!(answers(1_100_000_000, 1000), 20);
    assert_eq!(answers(u64::MAX, 1000), 40);
    // Routers still hear the guest.
    let now = MonotonicTime::from_nanos(u64::MAX);
    assert_eq!(
        responder.receive(now, LINUX_SOLICITATION),
        Verdict::PassesOn
    );
}

mod ipv6 {
    use dhcproto::v6::{
        DhcpOption, DhcpOptions, IAAddr, IANA, IAPD, Message, MessageType, OptionCode, Status,
    };

    use super::*;

    const OWN: &str = "2001:db8::201";

    fn reply(frame: &[u8]) -> Message {
        let (from, to, payload) = open(frame);
        assert_eq!(from, "[fe80::813:97ff:fe00:1]:547".parse().unwrap());
        assert_eq!(to.port(), 546);
        Message::from_bytes(&payload).unwrap()
    }

    fn query(kind: MessageType, named: &[&str], ours: bool, more: &[DhcpOption]) -> Vec<u8> {
        let addresses = named.iter().map(|addr| {
            DhcpOption::IAAddr(IAAddr {
                addr: addr.parse().unwrap(),
                preferred_life: 0,
                valid_life: 0,
                opts: DhcpOptions::new(),
            })
        });
        let opts = addresses.collect();
        let mut options = DhcpOptions::new();
        options.insert(DhcpOption::IANA(IANA {
            id: 5,
            t1: 0,
            t2: 0,
            opts,
        }));
        options.insert(DhcpOption::ClientId(vec![0, 3, 0, 1, 9]));
        if ours {
            let duid = vec![0, 3, 0, 1, 0x0a, 0x13, 0x97, 0, 0, 1];
            options.insert(DhcpOption::ServerId(duid));
        }
        more.iter()
            .for_each(|option| options.insert(option.clone()));
        let mut message = Message::new_with_id(kind, [1, 2, 3]);
        message.set_opts(options);
        from_guest(
            "[fe80::1]:546",
            "[ff02::1:2]:547",
            &message.to_vec().unwrap(),
        )
    }

    /// Address and lifetime of each in the first IA_NA, or its status.
    fn addresses(message: &Message) -> Vec<(String, u32)> {
        let Some(DhcpOption::IANA(association)) = message.opts().get(OptionCode::IANA) else {
            panic!("{message:?}")
        };
        let one = |option: &DhcpOption| match option {
            DhcpOption::IAAddr(it) => (it.addr.to_string(), it.valid_life),
            DhcpOption::StatusCode(it) => (format!("{:?}", it.status), 0),
            other => panic!("{other:?}"),
        };
        association.opts.iter().map(one).collect()
    }

    fn status(message: &Message) -> Option<Status> {
        match message.opts().get(OptionCode::StatusCode) {
            Some(DhcpOption::StatusCode(status)) => Some(status.status),
            _ => None,
        }
    }

    #[test]
    fn a_stock_client_gets_its_address() {
        let mut responder = responder(ALL);
        let (event, answer) = answered(&mut responder, DHCLIENT_SOLICIT);
        assert_eq!((event, &answer[..6]), (Event::Answered6, &GUEST.0[..]));
        let advertise = reply(&answer);
        assert_eq!(advertise.msg_type(), MessageType::Advertise);
        assert_eq!(advertise.xid(), DHCLIENT_SOLICIT[63..66]);
        assert_eq!(addresses(&advertise), [(OWN.to_owned(), 3600)]);
        let options = advertise.opts();
        let dns = DhcpOption::DomainNameServers(vec!["2001:db8::2".parse().unwrap()]);
        assert_eq!(options.get(OptionCode::DomainNameServers), Some(&dns));
        assert_eq!(
            options.get(OptionCode::Preference),
            Some(&DhcpOption::Preference(255))
        );
        let domain = format!("{:?}", options.get(OptionCode::DomainSearchList));
        assert!(domain.contains("example.com."), "{domain}");
        // The client's identifier comes back as it was (behind code and length).
        let duid = DHCLIENT_SOLICIT[70..84].to_vec();
        assert_eq!(
            options.get(OptionCode::ClientId),
            Some(&DhcpOption::ClientId(duid))
        );
    }

    #[test]
    fn a_lease_begins_goes_on_and_ends() {
        let mut responder = responder(ALL);
        let mut ask = |kind, named: &[&str], ours, more: &[DhcpOption]| {
            reply(&answered(&mut responder, &query(kind, named, ours, more)).1)
        };
        let rapid = ask(MessageType::Solicit, &[], false, &[DhcpOption::RapidCommit]);
        assert_eq!(rapid.msg_type(), MessageType::Reply);
        assert!(rapid.opts().get(OptionCode::RapidCommit).is_some());
        for (kind, ours) in [
            (MessageType::Request, true),
            (MessageType::Renew, true),
            (MessageType::Rebind, false),
        ] {
            let other = "2001:db8::9";
            let answer = ask(kind, &[OWN, other], ours, &[]);
            assert_eq!(answer.msg_type(), MessageType::Reply);
            let expected = [(OWN.to_owned(), 3600), (other.to_owned(), 0)];
            assert_eq!(addresses(&answer), expected, "{kind:?}");
        }
        let confirmed = |answer: Message| status(&answer);
        let confirm = MessageType::Confirm;
        assert_eq!(
            confirmed(ask(confirm, &[OWN], false, &[])),
            Some(Status::Success)
        );
        let both = ask(confirm, &[OWN, "2001:db8::9"], false, &[]);
        assert_eq!(confirmed(both), Some(Status::NotOnLink));
        let second = DhcpOption::IANA(IANA {
            id: 6,
            t1: 0,
            t2: 0,
            opts: DhcpOptions::new(),
        });
        let prefix = DhcpOption::IAPD(IAPD {
            id: 7,
            t1: 0,
            t2: 0,
            opts: DhcpOptions::new(),
        });
        let answer = ask(MessageType::Request, &[], true, &[second, prefix]);
        let text = format!("{:?}", answer.opts());
        assert!(
            text.contains("NoAddrsAvail") && text.contains("NoPrefixAvail"),
            "{text}"
        );
        let information = ask(MessageType::InformationRequest, &[], false, &[]);
        assert!(information.opts().get(OptionCode::IANA).is_none());
        assert!(
            information
                .opts()
                .get(OptionCode::DomainNameServers)
                .is_some()
        );
        for (kind, event) in [
            (MessageType::Release, Event::Released),
            (MessageType::Decline, Event::Declined),
        ] {
            let (counted, answer) = answered(&mut responder, &query(kind, &[OWN], true, &[]));
            assert_eq!(
                (counted, status(&reply(&answer))),
                (event, Some(Status::Success))
            );
        }
    }

    #[test]
    fn messages_that_break_the_rules_are_counted() {
        let mut responder = responder(ALL);
        let mut sent = |frame: Vec<u8>| silent(&mut responder, &frame);
        for (kind, ours) in [
            (MessageType::Solicit, true),
            (MessageType::Confirm, true),
            (MessageType::Rebind, true),
            (MessageType::Request, false),
            (MessageType::Renew, false),
            (MessageType::Release, false),
            (MessageType::Decline, false),
            (MessageType::Advertise, false),
        ] {
            assert_eq!(
                sent(query(kind, &[OWN], ours, &[])),
                Event::Malformed,
                "{kind:?}"
            );
        }
        assert_eq!(
            sent(query(MessageType::Confirm, &[], false, &[])),
            Event::Malformed
        );
        let other = DhcpOption::ServerId(vec![0, 3, 0, 1, 7]);
        assert_eq!(
            sent(query(MessageType::Request, &[], false, &[other])),
            Event::Foreign
        );
        let raw = |payload: &[u8]| from_guest("[fe80::1]:546", "[ff02::1:2]:547", payload);
        assert_eq!(sent(raw(&[1, 0, 0])), Event::Malformed);
        // No client; an association of three bytes.
        assert_eq!(sent(raw(&[1, 0, 0, 0])), Event::Malformed);
        assert_eq!(
            sent(raw(&[1, 0, 0, 0, 0, 3, 0, 3, 1, 2, 3])),
            Event::Malformed
        );
        // A vendor class of no length, which the codec subtracts four from.
        let solicit = [&[1, 0, 0, 0, 0, 1, 0, 2, 9, 9][..], &[0, 16, 0, 0]].concat();
        assert_eq!(answered(&mut responder, &raw(&solicit)).0, Event::Answered6);
    }

    #[test]
    fn a_router_solicitation_is_answered_and_passes_on() {
        let mut responder = responder(ALL);
        let Verdict::Both(Event::Neighbour, answer) = responder.receive(NOW, LINUX_SOLICITATION)
        else {
            panic!("no answer")
        };
        // Typed from RFC 4861 sections 4.2 and 4.6.
        let mut expected = vec![134, 0, 0, 0, 64, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        expected.extend([1, 1, 0x0a, 0x13, 0x97, 0, 0, 1]);
        expected.extend([5, 1, 0, 0, 0, 0, 5, 0x78]);
        expected.extend([
            3, 4, 64, 0x80, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0,
        ]);
        expected.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let packet = SlicedPacket::from_ethernet(&answer).unwrap();
        let Some(TransportSlice::Icmpv6(message)) = packet.transport else {
            panic!("{packet:?}")
        };
        let (from, to) = (
            SERVER_IPV6.octets(),
            LINUX_SOLICITATION[22..38].try_into().unwrap(),
        );
        assert!(message.is_checksum_valid(from, to));
        let mut body = message.slice().to_vec();
        body[2..4].fill(0);
        assert_eq!(body, expected);
        assert_eq!(answer[..6], GUEST.0);
        // Hop limit 255, and not from the guest's own checksum.
        assert_eq!(answer[21], 255);
        // Through a router, which does not pass such a message on.
        let mut far = LINUX_SOLICITATION.to_vec();
        far[21] = 254;
        assert_eq!(responder.receive(NOW, &far), Verdict::PassesOn);
    }

    #[test]
    fn the_director_is_found_by_its_link_local_address() {
        let mut responder = responder(ALL);
        let ask = |target: Ipv6Addr| {
            let mut frame = Vec::new();
            let builder = PacketBuilder::ethernet2(GUEST.0, [0x33, 0x33, 0xff, 0, 0, 1]);
            let builder = builder.ipv6([0xfe; 16], [0xff; 16], 255);
            let builder = builder.icmpv6(etherparse::Icmpv6Type::NeighborSolicitation);
            builder.write_to_vec(&mut frame, &target.octets()).unwrap();
            frame
        };
        let (event, answer) = answered(&mut responder, &ask(SERVER_IPV6));
        assert_eq!(
            (event, answer[54], answer[58]),
            (Event::Neighbour, 136, 0x60)
        );
        assert_eq!(answer[62..78], SERVER_IPV6.octets());
        assert_eq!(answer[78..], [2, 1, 0x0a, 0x13, 0x97, 0, 0, 1]);
        let other = ask("fe80::2".parse().unwrap());
        assert_eq!(responder.receive(NOW, &other), Verdict::PassesOn);
    }
}

/// What the fuzz target begins with.
fn good() -> Vec<Vec<u8>> {
    let captured = [
        UDHCPC_DISCOVER,
        UDHCPC_REQUEST,
        DHCLIENT_DISCOVER,
        DHCLIENT_REQUEST,
        DHCLIENT_SOLICIT,
        LINUX_SOLICITATION,
    ];
    let tftp = [
        &b"\0\x01/bios\0octet\0tsize\x000\0blksize\x001432\0windowsize\x004\0"[..],
        b"\0\x04\0\0",
        b"\0\x05\0\0stop\0",
    ];
    let tftp = tftp.map(|it| from_guest("192.168.10.201:1000", "192.168.10.1:69", it));
    captured
        .into_iter()
        .map(<[u8]>::to_vec)
        .chain(tftp)
        .collect()
}

#[test]
fn n09_any_damaged_question_is_answered_or_dropped() {
    let configs = [
        ALL,
        "ip-addr = \"10.0.0.1/8\"",
        "ip6-addr = \"2001:db8::201/64\"",
    ];
    let mut all: Vec<_> = configs.map(responder).into();
    let mut tftp = tftp::tests::server(ALL);
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/responder");
    let mut now = 0_u64;
    orimono_fuzz::fuzz(
        folder,
        &good(),
        orimono_fuzz::inputs(30_000, 1_000_000),
        |frame| {
            // Never short of answers.
            now += 10_000_000_000;
            let now = MonotonicTime::from_nanos(now);
            let mut answers = Vec::new();
            for responder in &mut all {
                responder.refuses(frame);
                match responder.receive(now, frame) {
                    Verdict::Both(_, answer) | Verdict::Taken(_, Some(answer)) => {
                        answers.push(answer)
                    }
                    Verdict::Tftp => answers.extend(tftp.receive(now, frame).1),
                    Verdict::PassesOn | Verdict::Taken(_, None) => {}
                }
            }
            for answer in answers {
                assert!(answer.len() <= 14 + 1400, "{}", answer.len());
                assert!(answer.starts_with(&GUEST.0) || answer.starts_with(&[0xff; 6]));
                SlicedPacket::from_ethernet(&answer).unwrap();
            }
        },
    );
}

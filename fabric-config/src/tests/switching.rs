//! What the switch of a port does: words of ports and vNICs.

use super::*;

const PORT: &str = "tap = \"orimono0\"";
const VNIC: &str = "queues = 2";

/// The lab with more words for port 10/1 and for vNIC vn01.vm1.
fn with(port: &str, vnic: &str) -> Result<LabConfig, String> {
    let text = LAB
        .replace(&format!("{PORT}\n"), &format!("{PORT}\n{port}\n"))
        .replace(VNIC, &format!("{VNIC}\n{vnic}"));
    text.parse::<LabConfig>().map_err(|error| error.to_string())
}

fn vnic(words: &str) -> VnicConfig {
    let lab = with("", words).unwrap_or_else(|error| panic!("{words}: {error}"));
    let host = lab.host("host1").unwrap();
    host.vnics().next().unwrap().clone()
}

/// The error without its line.
fn refused(port: &str, vnic: &str) -> String {
    let error = with(port, vnic).expect_err(vnic);
    error.split_once(": ").unwrap().1.to_owned()
}

fn vlan(number: u16) -> VlanId {
    VlanId::new(number).unwrap()
}

#[test]
fn vlans_are_one_or_a_list_of_ranges() {
    assert_eq!(vnic("").vlans, VlanMembership::Native);
    assert_eq!(
        vnic("vlan = 4094").vlans,
        VlanMembership::Access(vlan(4094))
    );
    let VlanMembership::Trunk { allowed, native } =
        vnic("vlans = [\"10\", \"20-22\"]\nnative-vlan = 5").vlans
    else {
        panic!("no trunk")
    };
    assert_eq!(native, Some(vlan(5)));
    let there = (1..=VlanId::MAX).filter(|number| allowed.contains(vlan(*number)));
    assert_eq!(there.collect::<Vec<_>>(), [5, 10, 20, 21, 22]);
    assert_eq!(
        format!("{allowed:?}"),
        "{VlanId(5), VlanId(10), VlanId(20), VlanId(21), VlanId(22)}"
    );
    let lab = with("native-vlan = 7", "").unwrap();
    assert_eq!(lab.ethernet_ports[0].native_vlan, Some(vlan(7)));
    assert_eq!(lab.ethernet_ports[1].native_vlan, None);
}

#[test]
fn vlans_that_cannot_be_are_refused_with_the_next_step() {
    for (words, problem) in [
        ("vlan = 0", "vlan 0 is no VLAN; use 1 to 4094"),
        ("vlan = 4095", "vlan 4095 is no VLAN; use 1 to 4094"),
        (
            "vlans = [\"10\", \"30-20\"]",
            "\"30-20\" is no VLAN; write one of 1 to 4094, or a range like 20-30",
        ),
        (
            "vlans = [\"+1\"]",
            "\"+1\" is no VLAN; write one of 1 to 4094, or a range like 20-30",
        ),
        (
            "vlans = []",
            "vlans is empty; name at least one VLAN, or leave it out",
        ),
        (
            "native-vlan = 5",
            "native-vlan belongs to a trunk; add vlans = [...], or write vlan = NUMBER",
        ),
        (
            "vlan = 5\nvlans = [\"6\"]",
            "vlan stands beside vlans or native-vlan; leave vlan out for a trunk",
        ),
        (
            "vlan = 5\nnative-vlan = 6",
            "vlan stands beside vlans or native-vlan; leave vlan out for a trunk",
        ),
    ] {
        assert_eq!(refused("", words), format!("vnic vn01.vm1: {problem}"));
    }
    assert_eq!(
        refused("native-vlan = 4095", ""),
        "ethernet-port 10/1: native-vlan 4095 is no VLAN; use 1 to 4094"
    );
}

#[test]
fn private_port_has_no_tap() {
    let private = LAB.replace("tap = \"orimono0\"", "private = true");
    let lab: LabConfig = private.parse().unwrap();
    assert_eq!(lab.ethernet_ports[0].interfaces, []);
    assert_eq!(lab.ethernet_ports[1].interfaces[0].name, "orimono1");
    for (words, problem) in [
        (
            "tap = \"x\"",
            "a private port has no tap; leave it out, or write tap = \"NAME\" in place of private",
        ),
        (
            "rate = \"1G\"",
            "a private port has no rate; leave it out, or write tap = \"NAME\" in place of private",
        ),
        (
            "offloads = true",
            "a private port has no offloads; leave it out, or write tap = \"NAME\" in place of private",
        ),
        (
            "broadcast-limit = 1",
            "a private port has no broadcast-limit; leave it out, or write tap = \"NAME\" in place of private",
        ),
    ] {
        let message = refusal(PORT, &format!("private = true\n{words}"));
        assert_eq!(message, format!("line 13: ethernet-port 10/1: {problem}"));
    }
    assert_eq!(
        refusal("tap = \"orimono0\"\n", ""),
        "line 11: ethernet-port 10/1: has no way out; write tap = \"NAME\", interface = \
         \"NAME\" for one that is there, or private = true for vNICs among themselves"
    );
    assert_eq!(
        refusal_of(&private, VNIC, "isolated = true"),
        "line 44: vnic vn01.vm1: isolated leaves nobody to reach on private port 10/1; leave it out"
    );
}

#[test]
fn isolation_is_what_the_vnic_says() {
    let plain = vnic("");
    assert!(!plain.isolated && !plain.trusted && plain.addresses.is_empty());
    assert_eq!(plain.storm, StormLimits::default());
    let guarded = vnic(
        "isolated = true\ntrusted = true\naddresses = [\"10.0.0.5\", \"fd00::/64\"]\n\
         broadcast-limit = 100\nmulticast-limit = 200",
    );
    assert!(guarded.isolated && guarded.trusted);
    let addresses = ["10.0.0.5/32", "fd00::/64"].map(|text| text.parse().unwrap());
    assert_eq!(guarded.addresses, addresses);
    let storm = StormLimits {
        broadcast: 100,
        multicast: 200,
    };
    assert_eq!(guarded.storm, storm);
    let lab = with("broadcast-limit = 300", "").unwrap();
    assert_eq!(lab.ethernet_ports[0].storm.broadcast, 300);
    for (words, problem) in [
        (
            "addresses = [\"10.0.0\"]",
            "\"10.0.0\" is no address; write it like 10.0.0.5, 10.0.0.0/24 or fd00::/64",
        ),
        (
            "addresses = [\"10.0.0.0/33\"]",
            "\"10.0.0.0/33\" is no address; write it like 10.0.0.5, 10.0.0.0/24 or fd00::/64",
        ),
        (
            "multicast-limit = 0",
            "multicast-limit is zero; write frames a second, 1 or above, or leave it out",
        ),
    ] {
        assert_eq!(refused("", words), format!("vnic vn01.vm1: {problem}"));
    }
}

const RULES: &str = "[[access-list]]\nname = \"web\"\ndefault = \"deny\"\nrules = [\n\
    { action = \"mark\", dscp = 46, priority = 5, protocol = \"udp\", destination-port = \"5-10\" },\n\
    { action = \"allow\", protocol = \"tcp\", source = \"10.0.0.0/8\", source-port = \"80\" },\n\
    { action = \"count\", source-mac = \"02:00:00:00:00:01\", vlan = 100 },\n\
    { action = \"deny\", protocol = \"89\" },\n]\n\n";

/// The lab with access lists, and a change of them.
fn with_lists(from: &str, to: &str, vnic: &str) -> Result<LabConfig, String> {
    let rules = if from.is_empty() {
        RULES.to_owned()
    } else {
        assert_eq!(RULES.matches(from).count(), 1, "{from}");
        RULES.replace(from, to)
    };
    let text = LAB
        .replacen("[[ethernet-port]]", &format!("{rules}[[ethernet-port]]"), 1)
        .replace(VNIC, &format!("{VNIC}\n{vnic}"));
    text.parse::<LabConfig>().map_err(|error| error.to_string())
}

#[test]
fn access_lists_are_rules_in_their_order() {
    let lab = with_lists("", "", "access-in = \"web\"").unwrap();
    let vnic = lab.host("host1").unwrap().vnics().next().unwrap().clone();
    assert_eq!(vnic.access_out, None);
    let list = vnic.access_in.unwrap();
    assert!(!list.passes && list.name == "web");
    let any = AccessRule {
        action: AccessAction::Count,
        source_mac: None,
        destination_mac: None,
        vlan: None,
        protocol: None,
        source: None,
        destination: None,
        source_port: None,
        destination_port: None,
    };
    let expected = [
        AccessRule {
            action: AccessAction::Mark {
                dscp: Some(46),
                priority: Some(5),
            },
            protocol: Some(AccessProtocol::Ip(17)),
            destination_port: Some(5..=10),
            ..any.clone()
        },
        AccessRule {
            action: AccessAction::Allow,
            protocol: Some(AccessProtocol::Ip(6)),
            source: Some("10.0.0.0/8".parse().unwrap()),
            source_port: Some(80..=80),
            ..any.clone()
        },
        AccessRule {
            source_mac: Some("02:00:00:00:00:01".parse().unwrap()),
            vlan: Some(vlan(100)),
            ..any.clone()
        },
        AccessRule {
            action: AccessAction::Deny,
            protocol: Some(AccessProtocol::Ip(89)),
            ..any
        },
    ];
    assert_eq!(list.rules, expected);
}

#[test]
fn access_lists_that_cannot_be_are_refused_with_the_next_step() {
    for (from, to, line, problem) in [
        (
            "default = \"deny\"",
            "default = \"drop\"",
            1,
            "default of an access list is allow or deny; write one of them",
        ),
        (
            "\"allow\"",
            "\"permit\"",
            4,
            "action of a rule is allow, deny, mark or count; write one of them",
        ),
        (
            "dscp = 46, priority = 5, ",
            "",
            3,
            "dscp and priority belong to action mark; write at least one there, and none elsewhere",
        ),
        (
            "\"89\"",
            "\"89\", dscp = 1",
            6,
            "dscp and priority belong to action mark; write at least one there, and none elsewhere",
        ),
        (
            "dscp = 46",
            "dscp = 64",
            3,
            "dscp is out of range; use 0 to 63",
        ),
        (
            "priority = 5",
            "priority = 8",
            3,
            "priority is out of range; use 0 to 7",
        ),
        (
            "\"tcp\"",
            "\"TCP\"",
            4,
            "protocol \"TCP\" is not known; write arp, ipv4, ipv6, icmp, icmp6, tcp, udp, sctp, a \
             number of IP, or an EtherType like 0x88cc",
        ),
        (
            "protocol = \"tcp\", ",
            "",
            4,
            "ports belong to tcp, udp or sctp; add protocol, or leave the port out",
        ),
        (
            "\"5-10\"",
            "\"10-5\"",
            3,
            "\"10-5\" is no port; write one of 0 to 65535, or a range like 22-80",
        ),
        (
            "source-port = \"80\"",
            "destination = \"fd00::/8\"",
            4,
            "source, destination and protocol are of different IP versions; write a rule for each",
        ),
        (
            "vlan = 100",
            "vlan = 0",
            5,
            "vlan 0 is no VLAN; use 1 to 4094",
        ),
    ] {
        let message = with_lists(from, to, "").expect_err(to);
        assert_eq!(
            message,
            format!("line {}: access-list web: {problem}", 11 + line)
        );
    }
    let twice = format!("{RULES}[[access-list]]\nname = \"web\"\ndefault = \"allow\"\n");
    let message = with_lists(RULES, &twice, "").unwrap_err();
    assert!(
        message.ends_with("access-list web: name web is taken by access-list web; choose another"),
        "{message}"
    );
    let message = with_lists("", "", "access-out = \"mail\"").unwrap_err();
    assert!(
        message.ends_with(
            "vnic vn01.vm1: there is no access-list \"mail\"; add an [[access-list]] with this name"
        ),
        "{message}"
    );
}

#[test]
fn filter_says_what_a_rule_says() {
    let rule = AccessRule::of_filter(
        "protocol=tcp destination-port=80-90 source=10.0.0.0/8 vlan=100 source-mac=02:00:00:00:00:01",
    );
    let rule = rule.unwrap();
    assert_eq!(rule.action, AccessAction::Count);
    assert_eq!(rule.protocol, Some(AccessProtocol::Ip(6)));
    assert_eq!(rule.destination_port, Some(80..=90));
    assert_eq!(rule.vlan, VlanId::new(100));
    let by_type = AccessRule::of_filter("protocol=0x88cc").unwrap();
    assert_eq!(by_type.protocol, Some(AccessProtocol::Ethernet(0x88cc)));
    assert_eq!(AccessRule::of_filter("").unwrap().protocol, None);
    for (wrong, word) in [
        ("tcp", "like protocol=tcp"),
        ("protocol=tpc", "is not known"),
        ("protocol=0x0100", "is not known"),
        ("destination-port=80", "add protocol"),
        ("vlan=no", "vlan"),
        ("vlan=5000", "5000"),
        ("port=80", "port"),
        ("source=\"x", "x"),
    ] {
        let refused = AccessRule::of_filter(wrong).unwrap_err();
        assert!(refused.contains(word), "{wrong}: {refused}");
        assert!(!refused.contains('\n'), "{refused}");
    }
}

#[test]
fn mirror_goes_to_another_vnic_that_is_there_and_changes_live() {
    let plain = with("", "").unwrap();
    let mirrored = with("mirror-to = \"vn01.vm1\"", "mirror-to = \"vn02.vm1\"").unwrap();
    let port = |lab: &LabConfig| lab.ethernet_ports[0].mirror_to.clone();
    assert_eq!(port(&mirrored).as_deref(), Some("vn01.vm1"));
    assert_eq!(port(&plain), None);
    let difference = Difference::between(&plain, &mirrored);
    let fields: Vec<_> = difference.changes().map(|(_, it)| it.fields()).collect();
    assert_eq!(fields, [["mirror-to"], ["mirror-to"]]);
    for side in [Side::Director, Side::Host("host1")] {
        assert!(difference.cannot_change(side).is_empty());
    }
    for (port, vnic, words) in [
        ("", "mirror-to = \"vn01.vm1\"", "names the vnic itself"),
        (
            "",
            "mirror-to = \"vn09.vm1\"",
            "no vnic is named \"vn09.vm1\"",
        ),
        (
            "mirror-to = \"vn01\"",
            "",
            "ethernet-port 10/1: no vnic is named \"vn01\"",
        ),
    ] {
        let refused = with(port, vnic).unwrap_err();
        assert!(refused.contains(words), "{refused}");
    }
}

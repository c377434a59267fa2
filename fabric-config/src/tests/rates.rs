//! The words of bandwidth: what a good file becomes, and what is refused.

use qos::{BitRate, OperationLimit, PolicyKind, PolicyName};

use super::*;

const QOS_LAB: &str = r#"
[director]
name = "director1"
[[director.link]]
host = "host1"
rate = "10G"
payload = "9G"
reservable = "8G"
protected = "4G"
oversubscribe = true

[[qos-policy]]
kind = "network"
set = "gold"
name = "web"
cir = "200M"
pir = "500M"
weight = 7
[[qos-policy]]
kind = "san"
set = "tape"
name = "slow"
cir = "50M"
cbs-bytes = 70000
pbs-bytes = 80000

[[ethernet-port]]
port = "10/1"
tap = "orimono0"
rate = "10G"
reservable = "9G"
[[ethernet-port]]
port = "10/2"
tap = "orimono1"
[[san-port]]
port = "12/1"
rate = "8G"
[[san-port]]
port = "12/3"
[[lun]]
name = "lun0"
port = "12/1"
file = "/tmp/lun0.img"

[[host]]
name = "host1"
embedded = true
run-dir = "/run/orimono/host1"
rate = "10G"
payload = "9.9G"
[[host.vm]]
name = "vm1"
ingress = { cir = "600M", pir = "2G", pbs-bytes = 90000, weight = 5 }
egress = { pir = "3G" }
[[host.vm.vnic]]
name = "vn01"
id = 1
port = "10/1"
mac = "02:00:00:00:00:01"
ingress = { policy = "gold/web" }
egress = { policy = "default/100m_250m", enabled = false }
[[host.vm.vhba]]
name = "vh01"
id = 11
port = "12/1"
ingress = { cir = "100M", delay-us = 500, iops = 2000, iops-burst = 20, unprotected = true }
egress = { policy = "tape/slow", enabled = true }
"#;

fn bits(text: &str) -> BitRate {
    text.parse().unwrap()
}

#[test]
fn words_of_bandwidth_become_typed_values() {
    let lab: LabConfig = QOS_LAB.parse().unwrap();
    let host = lab.host("host1").unwrap();
    assert_eq!(
        host.budget,
        LinkBudget::new("host1 uplink", bits("9.9G")).sold_as(bits("10G"))
    );
    let downlink = LinkBudget::with_reservable("host1 downlink", bits("9G"), bits("8G")).unwrap();
    let downlink = downlink.sold_as(bits("10G")).with_protected(bits("4G"));
    assert_eq!(host.downlink, downlink.oversubscribed());

    let ports = &lab.ethernet_ports;
    let budget = LinkBudget::with_reservable("ethernet-port 10/1", bits("10G"), bits("9G"));
    assert_eq!(ports[0].budget, Some(budget.unwrap()));
    assert_eq!(ports[1].budget, None);
    let san = |port: &str| lab.san_port(port.parse().unwrap());
    let budget = LinkBudget::new("san-port 12/1", bits("8G"));
    assert_eq!(san("12/1").unwrap().budget, Some(budget));
    assert_eq!(san("12/3").unwrap().budget, None);
    assert_eq!(san("12/2"), None);

    let [vm] = &host.vms[..] else {
        panic!("one VM")
    };
    let ingress = VmRate {
        cir: bits("600M"),
        pir: Some(bits("2G")),
        pbs_bytes: 90_000,
        weight: 5,
    };
    let egress = VmRate {
        pir: Some(bits("3G")),
        ..VmRate::default()
    };
    assert_eq!((vm.ingress, vm.egress), (ingress, egress));

    let web = DeviceRate {
        cir: bits("200M"),
        pir: Some(bits("500M")),
        weight: 7,
        ..DeviceRate::default()
    };
    let name = |text: &str| text.parse::<PolicyName>().unwrap();
    let (vnic, vhba) = (&vm.vnics[0], &vm.vhbas[0]);
    assert_eq!(
        (vnic.ingress, vnic.egress),
        (web, DeviceRate::best_effort())
    );
    assert_eq!(vnic.ingress_policy, Attachment::Enabled(name("gold/web")));
    assert_eq!(
        vnic.egress_policy,
        Attachment::Disabled(name("default/100m_250m"))
    );
    let ingress = DeviceRate {
        cir: bits("100M"),
        delay_max: Some(Duration::from_micros(500)),
        operations: Some(OperationLimit {
            per_second: 2_000,
            burst: 20,
        }),
        unprotected: true,
        ..DeviceRate::default()
    };
    let slow = DeviceRate {
        cir: bits("50M"),
        cbs_bytes: 70_000,
        pbs_bytes: 80_000,
        ..DeviceRate::default()
    };
    assert_eq!((vhba.ingress, vhba.egress), (ingress, slow));
    assert_eq!(vhba.ingress_policy, Attachment::None);
    assert_eq!(vhba.egress_policy, Attachment::Enabled(name("tape/slow")));
    assert_eq!(
        lab.policies.find(PolicyKind::Network, &name("gold/web")),
        Ok(web)
    );
}

#[test]
fn wrong_words_name_line_object_problem_and_next_step() {
    let ingress = "{ policy = \"gold/web\" }";
    let vhba =
        "{ cir = \"100M\", delay-us = 500, iops = 2000, iops-burst = 20, unprotected = true }";
    let vm = "{ cir = \"600M\", pir = \"2G\", pbs-bytes = 90000, weight = 5 }";
    let cases = [
        (
            "payload = \"9G\"",
            "payload = \"11G\"",
            "line 7: director link to host1: payload 11 Gb/s is more than rate 10 Gb/s; lower payload",
        ),
        (
            "payload = \"9.9G\"",
            "payload = \"0\"",
            "line 50: host host1: rate is zero; write what the link carries, like 10G",
        ),
        (
            "reservable = \"8G\"",
            "reservable = \"9.5G\"",
            "line 8: director link to host1: host1 downlink: 9.5 Gb/s reservable is more than link rate 9 Gb/s; lower reservable",
        ),
        (
            "protected = \"4G\"",
            "protected = \"8.5G\"",
            "line 9: director link to host1: 8.5 Gb/s protected is more than the 8 Gb/s reservable; lower protected",
        ),
        (
            "kind = \"san\"",
            "kind = \"SAN\"",
            "line 20: qos-policy: kind \"SAN\" is no kind of policy; write network or san",
        ),
        (
            "name = \"slow\"",
            "name = \"slow/er\"",
            "line 22: qos-policy: policy name \"slow/er\" is not usable; use 1 to 63 letters, digits, '-' and '_'",
        ),
        (
            "set = \"tape\"",
            "set = \"default\"",
            "line 22: qos-policy default/slow: SAN shaper default/slow: set default is predefined; use a set of your own",
        ),
        (
            "kind = \"san\"\nset = \"tape\"\nname = \"slow\"",
            "kind = \"network\"\nset = \"gold\"\nname = \"web\"",
            "line 22: qos-policy gold/web: network policer gold/web exists; choose another name",
        ),
        (
            "pir = \"500M\"",
            "pir = \"100M\"",
            "line 17: qos-policy gold/web: peak rate 100 Mb/s is below committed rate 200 Mb/s; raise pir, lower cir, or leave pir out",
        ),
        (
            "rate = \"10G\"\nreservable = \"9G\"",
            "reservable = \"9G\"",
            "line 30: ethernet-port 10/1: reservable is a part of rate; add rate = \"...\" or leave reservable out",
        ),
        (
            "rate = \"8G\"",
            "rate = \"0\"",
            "line 37: san-port 12/1: rate is zero; write what the link carries, like 10G",
        ),
        (
            "port = \"12/3\"",
            "port = \"12/1\"",
            "line 39: san-port 12/1: port 12/1 is taken by san-port 12/1; choose another",
        ),
        (
            "port = \"12/3\"",
            "port = \"10/2\"",
            "line 39: san-port 10/2: there is no SAN port 10/2; it is an Ethernet port, choose another",
        ),
        (
            ingress,
            "{ policy = \"gold/wen\" }",
            "line 60: vnic vn01.vm1: there is no network policer gold/wen; the nearest are gold/web, default/10m_1g, default/1g_10g",
        ),
        (
            ingress,
            "{ policy = \"gold\" }",
            "line 60: vnic vn01.vm1: policy \"gold\" is not written as set/policy; write it like default/100m_250m",
        ),
        (
            ingress,
            "{ policy = \"gold/web\", weight = 1 }",
            "line 60: vnic vn01.vm1: ingress: words of its own stand beside policy gold/web; leave one of them out",
        ),
        (
            ingress,
            "{ cir = \"1M\", enabled = true }",
            "line 60: vnic vn01.vm1: ingress: enabled belongs to a policy; add policy = \"set/name\" or leave it out",
        ),
        (
            ingress,
            "{ pir = \"1M\", delay-us = 500 }",
            "line 60: vnic vn01.vm1: ingress: delay-us bounds what is reserved; add cir or leave delay-us out",
        ),
        (
            ingress,
            "{ cir = \"1M\", delay-us = 0 }",
            "line 60: vnic vn01.vm1: ingress: delay-us is zero; use 1 or above, or leave it out",
        ),
        (
            ingress,
            "{ iops = 100 }",
            "line 60: vnic vn01.vm1: ingress: iops is for vHBAs; limit a vNIC with pir",
        ),
        (
            "\"tape/slow\", enabled = true",
            "\"default/100m_250m\"",
            "line 67: vhba vh01.vm1: there is no SAN shaper default/100m_250m; the nearest are default/125M_250M, default/250M_500M, default/50M_125M",
        ),
        (
            vhba,
            "{ iops = 0 }",
            "line 66: vhba vh01.vm1: ingress: iops is zero; use 1 or above, or leave it out",
        ),
        (
            vhba,
            "{ iops-burst = 5 }",
            "line 66: vhba vh01.vm1: ingress: iops-burst belongs to iops; add iops or leave it out",
        ),
        (
            vm,
            "{ cir = \"2M\", pir = \"1M\" }",
            "line 53: vm vm1: ingress: peak rate 1 Mb/s is below committed rate 2 Mb/s; raise pir, lower cir, or leave pir out",
        ),
        (
            vm,
            "{ cir = \"299M\" }",
            "line 53: vm vm1: ingress: cir 299 Mb/s is below 300 Mb/s, the sum of its devices' cir; raise it or lower theirs",
        ),
        (
            vm,
            "{ pir = \"200M\" }",
            "line 53: vm vm1: ingress: pir 200 Mb/s is below 300 Mb/s, the sum of its devices' cir; raise it or lower theirs",
        ),
        (
            vm,
            "{ cir = \"600m\" }",
            "line 53: vm vm1: rate \"600m\" is not a decimal number with an optional k, M, G or T (bits per second); write it like 300M or 2.5G",
        ),
    ];
    for (from, to, message) in cases {
        assert_eq!(refusal_of(QOS_LAB, from, to), message);
    }
    let message = refusal_of(QOS_LAB, vm, "{ cbs-bytes = 1 }");
    assert!(
        message.starts_with("line 53: unknown field `cbs-bytes`"),
        "{message}"
    );
}

#[test]
fn example_of_the_module_is_a_valid_file() {
    let source = include_str!("../lib.rs");
    let example = source.split("//! ```toml\n").nth(1).unwrap();
    let example = example.split("//! ```\n").next().unwrap();
    let lines = example
        .lines()
        .map(|line| line.strip_prefix("//!").unwrap());
    let text = lines.collect::<Vec<_>>().join("\n");
    let lab: LabConfig = text.parse().unwrap();
    assert!(
        lab.admit()
            .iter()
            .all(|admission| admission.refusals.is_empty())
    );
}

proptest::proptest! {
    /// Rate words of any kind are read or refused in one line.
    #[test]
    fn any_words_are_read_or_refused_in_one_line(
        word in "cir|cbs-bytes|pir|pbs-bytes|weight|delay-us|iops|iops-burst|unprotected|policy|enabled",
        value in "[0-9]{1,12}|true|false|\"[0-9kMGa-z/_.]{0,12}\"",
        second in "|, cir = \"1M\"|, policy = \"default/1m_10m\"|, iops = 5",
    ) {
        let words = format!("{{ {word} = {value}{second} }}");
        if let Err(error) = QOS_LAB.replace("{ policy = \"gold/web\" }", &words).parse::<LabConfig>() {
            proptest::prop_assert!(!error.to_string().contains('\n'), "{}", error);
        }
    }
}

//! Edge switches: the words, and the uplink as a hop.

use super::*;

/// Two hosts with reservations of 300M and 200M behind one switch, and one that is embedded.
const SWITCHED: &str = r#"insecure = true
[director]
name = "director1"
listen = ["tcp:10.0.0.1:7471"]
[[ethernet-port]]
port = "10/1"
tap = "orimono0"
[[host]]
name = "host1"
director = ["tcp:10.0.0.9:7481"]
run-dir = "/run/orimono/host1"
rate = "1G"
[[host.vm]]
name = "vm1"
ingress = { cir = "250M" }
[[host.vm.vnic]]
name = "vn01"
id = 1
port = "10/1"
mac = "02:00:00:00:00:01"
ingress = { cir = "100M" }
[[host.vm]]
name = "vm2"
[[host.vm.vnic]]
name = "vn01"
id = 2
port = "10/1"
mac = "02:00:00:00:00:02"
ingress = { cir = "50M" }
egress = { weight = 7 }
[[host]]
name = "host2"
director = ["tcp:10.0.0.9:7481", "tcp:10.0.0.1:7471"]
run-dir = "/run/orimono/host2"
rate = "1G"
[[host.vm]]
name = "vm3"
[[host.vm.vnic]]
name = "vn01"
id = 3
port = "10/1"
mac = "02:00:00:00:00:03"
ingress = { cir = "200M" }
[[host]]
name = "host3"
embedded = true
run-dir = "/run/orimono/host3"
rate = "1G"
[[edge-switch]]
name = "switch1"
listen = ["tcp:10.0.0.9:7481"]
director = ["tcp:10.0.0.1:7471"]
rate = "1G"
reservable = "600M"
hosts = ["host1", "host2"]
ports = 20
"#;

#[test]
fn edge_switch_knows_its_hosts_and_what_they_reserve_together() {
    let lab: LabConfig = SWITCHED.parse().unwrap();
    let switch = lab.edge_switch("switch1").unwrap();
    assert_eq!(switch.hosts, ["host1", "host2"]);
    assert_eq!((switch.ports, switch.listen.len()), (20, 1));
    assert_eq!(lab.edge_switch("switch2"), None);
    let host = lab.host("host1").unwrap();
    let ingress = host.share(Direction::Ingress);
    // The VM's own 250M in the place of its device's 100M.
    assert_eq!(ingress.cir, "300M".parse().unwrap());
    assert_eq!(ingress.weight, 150);
    let egress = host.share(Direction::Egress);
    assert_eq!((egress.cir, egress.weight), (qos::BitRate::ZERO, 17));
    let idle = lab.host("host3").unwrap().share(Direction::Egress);
    assert_eq!(idle.weight, DeviceRate::WEIGHT_MIN);
    let more: LabConfig = SWITCHED.replace("ports = 20\n", "").parse().unwrap();
    assert_eq!(more.edge_switches[0].ports, EDGE_SWITCH_PORTS_MAX);
}

#[test]
fn uplink_is_a_hop_of_both_directions_that_names_what_is_missing() {
    let lab: LabConfig = SWITCHED.parse().unwrap();
    let admissions = lab.admit();
    let lines: Vec<_> = admissions[6..].iter().map(Admission::to_string).collect();
    assert_eq!(
        lines,
        [
            "edge-switch switch1 ingress: nominal 1 Gb/s, payload 1 Gb/s, reservable 600 Mb/s, \
             reserved 500 Mb/s, free 100 Mb/s",
            "edge-switch switch1 egress: nominal 1 Gb/s, payload 1 Gb/s, reservable 600 Mb/s, \
             reserved 0 bit/s, free 600 Mb/s",
        ]
    );
    assert_eq!(require_admitted(&admissions), Ok(()));
    let small = SWITCHED.replace("reservable = \"600M\"", "reservable = \"400M\"");
    let mut small: LabConfig = small.parse().unwrap();
    let error = require_admitted(&small.admit()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "vnic vn01.vm3: ingress: edge-switch switch1: 200 Mb/s asked, 100 Mb/s free of 400 Mb/s \
         reservable; 100 Mb/s missing; ask for less, raise reservable, or oversubscribe the hop"
    );
    small.oversubscribe();
    assert_eq!(require_admitted(&small.admit()), Ok(()));
    assert!(
        small.admit()[6]
            .to_string()
            .ends_with("oversubscribed by 100 Mb/s")
    );
}

#[test]
fn wrong_values_of_an_edge_switch_name_line_problem_and_next_step() {
    let listen = "listen = [\"tcp:10.0.0.9:7481\"]\n";
    let cases = [
        (
            "hosts = [\"host1\", \"host2\"]",
            "hosts = [\"host1\", \"host9\"]",
            "line 55: edge-switch switch1: there is no host \"host9\"; add a [[host]] with this name",
        ),
        (
            "hosts = [\"host1\", \"host2\"]",
            "hosts = [\"host1\", \"host1\"]",
            "line 55: edge-switch switch1: name host1 is taken by edge-switch switch1; choose another",
        ),
        (
            "hosts = [\"host1\", \"host2\"]",
            "hosts = [\"host3\"]",
            "line 55: edge-switch switch1: host host3 is embedded and has no link; give it \
             director = [...] or leave it out",
        ),
        (
            "ports = 20",
            "ports = 25",
            "line 56: edge-switch switch1: 25 ports are out of range; use 1 to 24",
        ),
        (
            listen,
            "",
            "line 50: edge-switch switch1: listen is empty; write at least one listen address",
        ),
        (
            "name = \"switch1\"",
            "name = \"switch 1\"",
            "line 50: edge-switch: name \"switch 1\" is not usable; use 1 to 63 letters, digits, \
             '-' and '_'",
        ),
        (
            "reservable = \"600M\"",
            "reservable = \"2G\"",
            "line 54: edge-switch switch1: edge-switch switch1: 2 Gb/s reservable is more than \
             link rate 1 Gb/s; lower reservable",
        ),
    ];
    for (from, to, message) in cases {
        assert_eq!(refusal_of(SWITCHED, from, to), message);
    }
}

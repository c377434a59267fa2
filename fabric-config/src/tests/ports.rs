//! What is behind Ethernet ports, and LAGs.

use super::*;

/// A lab with these words for two ports and a LAG, and a vNIC on the LAG.
fn with(ports: [&str; 2], lag: &str) -> Result<LabConfig, String> {
    let [first, second] = ports;
    let text = format!(
        "[director]\nname = \"d\"\n\
         [[ethernet-port]]\nport = \"10/1\"\n{first}\n\
         [[ethernet-port]]\nport = \"10/2\"\n{second}\n\
         [[lag]]\nlag = \"10.1\"\n{lag}\n\
         [[host]]\nname = \"h\"\nembedded = true\nrun-dir = \"/x\"\nrate = \"10G\"\n\
         [[host.vm]]\nname = \"vm\"\n[[host.vm.vnic]]\nname = \"v\"\nid = 1\nport = \"10.1\"\n\
         mac = \"02:00:00:00:00:01\"\nstate = \"down\"\n"
    );
    text.parse::<LabConfig>().map_err(|error| error.to_string())
}

const BOTH: &str = "ports = [\"10/1\", \"10/2\"]";
const TAPS: [&str; 2] = [
    "tap = \"a\"\nrate = \"1G\"",
    "interface = \"b\"\nrate = \"1G\"",
];

#[test]
fn a_lag_takes_its_ports_and_their_rate() {
    for (mode, rate) in [("active-backup", "1G"), ("hash", "2G")] {
        let lab = with(TAPS, &format!("{BOTH}\nmode = \"{mode}\"")).unwrap();
        let [lag] = &lab.ethernet_ports[..] else {
            panic!("{:?}", lab.ethernet_ports)
        };
        assert_eq!(lag.port.to_string(), "10.1");
        let rate: qos::BitRate = rate.parse().unwrap();
        assert_eq!(lag.budget.as_ref().map(LinkBudget::rate), Some(rate));
        let [first, second] = &lag.interfaces[..] else {
            panic!("{lag:?}")
        };
        let kinds = [first.kind, second.kind];
        assert_eq!(kinds, [InterfaceKind::Tap, InterfaceKind::Present]);
        assert!(!lab.hosts[0].vms[0].vnics[0].up);
    }
}

#[test]
fn lags_that_cannot_be_are_refused_with_the_next_step() {
    let [first, _] = TAPS;
    for (second, lag, problem) in [
        (TAPS[1], "ports = []", "has 0 ports; use 1 to 8"),
        (TAPS[1], "ports = [\"10/3\"]", "port 10/3 is not there"),
        (
            TAPS[1],
            "ports = [\"10/1\", \"10/1\"]",
            "port 10/1 is not there or in a LAG already",
        ),
        (
            TAPS[1],
            "ports = [\"11/1\"]",
            "port 11/1 is not of the module of 10.1",
        ),
        (
            "tap = \"b\"\nrate = \"2G\"",
            BOTH,
            "port 10/2 has another mtu, offloads or rate",
        ),
        (
            "tap = \"b\"\nmtu = 9000",
            BOTH,
            "port 10/2 has another mtu, offloads or rate",
        ),
        ("private = true", BOTH, "private is not for a port of 10.1"),
        (
            "tap = \"b\"\nnative-vlan = 5",
            BOTH,
            "native-vlan is not for a port of 10.1",
        ),
    ] {
        let error = with([first, second], lag).expect_err(lag);
        assert!(error.contains(problem), "{error}");
    }
    let error = with(TAPS, &format!("{BOTH}\nmode = \"lacp\"")).unwrap_err();
    assert!(error.contains("use active-backup or hash"), "{error}");
}

#[test]
fn words_of_interfaces_fit_what_they_are() {
    let lag = "ports = [\"10/2\"]";
    for (words, problem) in [
        (
            "tap = \"b\"\ninterface = \"c\"",
            "has a tap; leave it or interface out",
        ),
        ("interface = \"c\"\nbridge = \"br0\"", "bridge is for a tap"),
        (
            "tap = \"b\"\nnamespace = \"../x\"",
            "is not usable; use a name that ip netns shows",
        ),
        (
            "tap = \"b\"\nstate = \"off\"",
            "state \"off\" is unknown; use up or down",
        ),
        (
            "private = true\nbridge = \"br0\"",
            "a private port has no bridge",
        ),
        ("", "has no way out"),
        ("tap = \"z\"", "is taken by ethernet-port 10/1"),
    ] {
        let error = with(["tap = \"z\"", words], lag).expect_err(words);
        assert!(error.contains(problem), "{error}");
    }
    // One name in two namespaces is two interfaces.
    let lab = with(
        [
            "tap = \"z\"",
            "tap = \"z\"\nnamespace = \"lan\"\nbridge = \"br0\"",
        ],
        lag,
    );
    let lab = lab.unwrap();
    let behind = &lab.ethernet_ports[1].interfaces[0];
    assert_eq!(behind.namespace.as_deref(), Some("lan"));
    assert_eq!(behind.bridge.as_deref(), Some("br0"));
}

#[test]
fn only_states_change_while_it_runs() {
    let before = with(TAPS, BOTH).unwrap();
    let down = [
        TAPS[0],
        "interface = \"b\"\nrate = \"1G\"\nstate = \"down\"",
    ];
    let after = with(down, &format!("{BOTH}\nstate = \"down\"")).unwrap();
    let difference = Difference::between(&before, &after);
    assert_eq!(difference.cannot_change(Side::Director), []);
    let [(_, change)] = &difference.changes().collect::<Vec<_>>()[..] else {
        panic!("{difference:?}")
    };
    assert_eq!(change.object().to_string(), "lag 10.1");
    assert_eq!(change.fields(), ["state"]);
    let after = with(TAPS, "ports = [\"10/1\"]").unwrap();
    let refused = Difference::between(&before, &after).cannot_change(Side::Director);
    assert_eq!(refused[0].field, "ports");
}

//! What hosts are told of the links of their vNICs.

use super::*;

/// Windows of a host that wants to know.
const TOLD: Windows = [2, 0, 0, 16 * 1024];

/// The next state that the host of `device` is told.
fn next(host: &Host, device: DeviceId) -> LinkState {
    loop {
        match host.seen.recv_timeout(PATIENCE).unwrap() {
            (told, Seen::Link(state)) if told == device => return state,
            _ => {}
        }
    }
}

/// Waits until both are told this and nothing else.
fn both(host: &Host, state: LinkState) {
    let mut told = BTreeMap::new();
    while told.len() < 2 {
        if let (device, Seen::Link(now)) = host.seen.recv_timeout(PATIENCE).unwrap() {
            assert_eq!(now, state);
            assert_eq!(told.insert(device, now), None);
        }
    }
}

/// As [`lab`], but the port and vn01 are in these states.
fn states(port: &str, vnic: &str) -> LabConfig {
    let mut lab = lab(true);
    lab.ethernet_ports[0].up = port == "up";
    lab.hosts[0].vms[0].vnics[0].up = vnic == "up";
    lab
}

#[test]
fn guests_have_the_carrier_of_the_interface() {
    in_namespace(|| {
        let host = Host::with_windows(&lab(true), TOLD);
        both(&host, LinkState::Up);
        // More changes than the lane has room for, had it not been read.
        for _ in 0..4 {
            ip(&["link", "set", "ori-test0", "down"]);
            both(&host, LinkState::Down);
            ip(&["link", "set", "ori-test0", "up"]);
            both(&host, LinkState::Up);
            ip(&["link", "set", "ori-test0", "carrier", "off"]);
            both(&host, LinkState::Down);
            ip(&["link", "set", "ori-test0", "carrier", "on"]);
            both(&host, LinkState::Up);
        }
        // Other interfaces are nobody's business.
        ip(&["link", "add", "other0", "type", "dummy"]);
        ip(&["link", "set", "other0", "up"]);
        ip(&["link", "del", "other0"]);
        ip(&["link", "del", "ori-test0"]);
        both(&host, LinkState::Down);
    });
}

#[test]
fn what_the_operator_wants_down_is_down() {
    in_namespace(|| {
        let host = Host::with_windows(&states("down", "up"), TOLD);
        both(&host, LinkState::Down);
        let shown = ip(&["link", "show", "ori-test0"]);
        assert!(!shown.contains(",UP"), "{shown}");
        let report = host.director.apply(states("up", "up")).unwrap();
        assert_eq!(report.objects[0].fields, ["state"]);
        both(&host, LinkState::Up);
        host.director.apply(states("up", "down")).unwrap();
        assert_eq!(next(&host, A), LinkState::Down);
        // It is as if it were not there.
        host.send(A, &payload(mac(B), mac(A), 60));
        host.send(B, &payload(mac(A), mac(B), 60));
        host.send(B, &payload(MacAddress::BROADCAST, mac(B), 60));
        let end = Instant::now() + PATIENCE;
        while host.counter("vnic vn01.vm1", "dropped_down") < 3 {
            assert!(Instant::now() < end);
            std::thread::yield_now();
        }
        host.director.apply(states("up", "up")).unwrap();
        assert_eq!(next(&host, A), LinkState::Up);
        host.send(A, &payload(mac(B), mac(A), 61));
        assert_eq!(host.receive(), (B, payload(mac(B), mac(A), 61)));
    });
}

#[test]
fn a_private_port_has_the_state_that_it_was_given() {
    let private = |state: &str| {
        let mut lab = states(state, "up");
        lab.ethernet_ports[0].interfaces.clear();
        lab
    };
    let host = Host::with_windows(&private("up"), TOLD);
    both(&host, LinkState::Up);
    host.director.apply(private("down")).unwrap();
    both(&host, LinkState::Down);
}

#[test]
fn a_host_that_does_not_know_link_states_is_told_nothing() {
    in_namespace(|| {
        let host = Host::new(true);
        ip(&["link", "set", "ori-test0", "down"]);
        ip(&["link", "set", "ori-test0", "up"]);
        host.send(A, &payload(mac(B), mac(A), 100));
        loop {
            match host.seen.recv_timeout(PATIENCE).unwrap() {
                (B, Seen::Frame(frame)) if frame == payload(mac(B), mac(A), 100) => break,
                (_, Seen::Link(state)) => panic!("{state:?}"),
                _ => {}
            }
        }
    });
}

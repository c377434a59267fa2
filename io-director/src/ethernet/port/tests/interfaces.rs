//! Interfaces that are there, bridges, namespaces and LAGs.

use super::super::super::netlink::{Interfaces, in_namespace as in_named};
use super::super::super::packet_socket::PacketSocket;
use super::*;

const TOLD: Windows = [16, 0, 0, 16 * 1024];

/// As [`super::lab`], with other words for the port.
fn lab(ports: &str, port: &str) -> LabConfig {
    let text = format!(
        r#"
        [director]
        name = "director1"
        {ports}
        [[host]]
        name = "host1"
        embedded = true
        run-dir = "/nonexistent"
        rate = "10G"
        [[host.vm]]
        name = "vm1"
        [[host.vm.vnic]]
        name = "vn01"
        id = 1
        port = "{port}"
        mac = "02:00:00:00:00:01"
        [[host.vm.vnic]]
        name = "vn02"
        id = 2
        port = "{port}"
        mac = "02:00:00:00:00:02"
        "#
    );
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

fn one(words: &str) -> LabConfig {
    lab(
        &format!("[[ethernet-port]]\nport = \"10/1\"\n{words}\n"),
        "10/1",
    )
}

/// A packet socket on one interface, with which a test is whoever is behind the port.
struct Outside(PacketSocket);

impl Outside {
    fn on(name: &str) -> Self {
        let index = Interfaces::open().unwrap().find(name).unwrap().index;
        Self(PacketSocket::open(index, true).unwrap())
    }

    fn send(&self, payload: &[u8]) {
        self.0.write([&[], payload]).unwrap();
    }

    /// The next frame with this EtherType behind its addresses, or its tag.
    fn receive(&self, ether_type: [u8; 2]) -> Vec<u8> {
        let end = Instant::now() + PATIENCE;
        let mut payload = vec![0; PAYLOAD_BYTES_MAX];
        loop {
            match self.0.read(&mut payload) {
                Ok(bytes) => {
                    let at = HEADER_BYTES + 12;
                    let found = [at, at + 4].map(|at| payload.get(at..at + 2));
                    if found.contains(&Some(&ether_type[..])) {
                        return payload[..bytes].to_vec();
                    }
                }
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    assert!(Instant::now() < end, "nothing came");
                    std::thread::yield_now();
                }
            }
        }
    }
}

fn wait_until(mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end);
        std::thread::yield_now();
    }
}

fn send_until_it_comes(host: &Host, frame: &[u8], outside: &Outside) {
    let mut payload = vec![0; PAYLOAD_BYTES_MAX];
    wait_until(|| {
        host.send(A, frame);
        let read = outside.0.read(&mut payload);
        read.is_ok_and(|bytes| payload[..bytes] == *frame)
    });
}

fn next_link(host: &Host) -> LinkState {
    loop {
        if let (A, Seen::Link(state)) = host.seen.recv_timeout(PATIENCE).unwrap() {
            return state;
        }
    }
}

#[test]
fn an_interface_that_is_there_carries_frames_with_tags_and_offloads() {
    in_namespace(|| {
        ip(&[
            "link", "add", "near0", "mtu", "1400", "type", "veth", "peer", "name", "far0",
        ]);
        ip(&["link", "set", "far0", "up"]);
        let host = Host::with_windows(&one("interface = \"near0\"\nmtu = 1600"), TOLD);
        assert_eq!(next_link(&host), LinkState::Up);
        let shown = ip(&["-d", "link", "show", "near0"]);
        assert!(
            shown.contains("mtu 1600") && shown.contains("promiscuity 1"),
            "{shown}"
        );
        let outside = Outside::on("far0");
        let tagged = |payload: Vec<u8>| {
            let mut tagged = payload;
            tagged.splice(HEADER_BYTES + 12..HEADER_BYTES + 12, [0x81, 0, 0x20, 7]);
            tagged
        };
        for frame in [
            payload(OUTSIDE, mac(A), 60),
            tagged(payload(OUTSIDE, mac(A), 70)),
        ] {
            host.send(A, &frame);
            assert_eq!(outside.receive(ETHERTYPE), frame);
        }
        let broadcast = |bytes| payload(MacAddress::BROADCAST, OUTSIDE, bytes);
        for frame in [broadcast(60), tagged(broadcast(70))] {
            outside.send(&frame);
            let mut received = [host.seen_frame(), host.seen_frame()];
            received.sort();
            assert_eq!(received, [(A, frame.clone()), (B, frame)]);
        }
        // A super-frame with a partial checksum passes as it is, both ways, but for the bytes of its
        // headers, which are a hint.
        let segments = super_frame(mac(A), OUTSIDE);
        outside.send(&segments);
        let (device, mut received) = host.seen_frame();
        received.splice(2..4, segments[2..4].iter().copied());
        assert!(device == A && received == segments);
        let segments = super_frame(OUTSIDE, mac(A));
        host.send(A, &segments);
        let mut received = outside.receive([8, 0]);
        received.splice(2..4, segments[2..4].iter().copied());
        assert!(received == segments);
        ip(&["link", "set", "far0", "down"]);
        assert_eq!(next_link(&host), LinkState::Down);
        ip(&["link", "set", "far0", "up"]);
        assert_eq!(next_link(&host), LinkState::Up);
        host.send(A, &payload(OUTSIDE, mac(A), 80));
        assert_eq!(outside.receive(ETHERTYPE), payload(OUTSIDE, mac(A), 80));
        host.end();
        // As it was before.
        wait_until(|| {
            let shown = ip(&["-d", "link", "show", "near0"]);
            let words = ["mtu 1400", "promiscuity 0"];
            words.iter().all(|word| shown.contains(word)) && !shown.contains(",UP")
        });
    });
}

/// 3,000 bytes of TCP in segments of 1,000, unfinished.
fn super_frame(to: MacAddress, from: MacAddress) -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ethernet2(from.0, to.0);
    let builder = builder.ipv4([10, 0, 0, 9], [10, 0, 0, 1], 64);
    let mut frame = Vec::new();
    let tcp = builder.tcp(1, 2, 3, 4);
    tcp.write(&mut frame, &[7; 3000]).unwrap();
    // NEEDS_CSUM, TCPv4; headers of 54 bytes; checksum at 16 of the TCP header.
    let mut payload = vec![1, 1, 54, 0, 0xe8, 3, 34, 0, 16, 0, 0, 0];
    payload.extend(frame);
    payload
}

#[test]
fn an_interface_that_goes_is_down_and_what_is_not_there_is_named() {
    in_namespace(|| {
        ip(&[
            "link", "add", "near0", "type", "veth", "peer", "name", "far0",
        ]);
        ip(&["link", "set", "far0", "up"]);
        let host = Host::with_windows(&one("interface = \"near0\""), TOLD);
        assert_eq!(next_link(&host), LinkState::Up);
        ip(&["link", "del", "near0"]);
        assert_eq!(next_link(&host), LinkState::Down);
        host.send(A, &payload(mac(B), mac(A), 60));
        assert_eq!(host.seen_frame(), (B, payload(mac(B), mac(A), 60)));
        for (words, problem) in [
            (
                "interface = \"near0\"",
                "interface near0 is not there; make it",
            ),
            (
                "tap = \"t0\"\nbridge = \"br9\"",
                "bridge br9 is not there; make it",
            ),
            (
                "tap = \"t0\"\nnamespace = \"no-such\"",
                "network namespace no-such cannot be entered; make it",
            ),
        ] {
            let error = Director::start(&one(words)).unwrap_err();
            let error = format!("{:#}", anyhow::Error::from(error));
            assert!(error.contains(problem), "{error}");
        }
        assert_eq!(ip(&["link", "show", "t0"]), "");
    });
}

#[test]
fn a_tap_joins_the_bridge_that_is_named() {
    in_namespace(|| {
        ip(&["link", "add", "br0", "type", "bridge"]);
        ip(&["link", "set", "br0", "up"]);
        ip(&[
            "link", "add", "near0", "type", "veth", "peer", "name", "far0",
        ]);
        ip(&["link", "set", "near0", "master", "br0", "up"]);
        ip(&["link", "set", "far0", "up"]);
        let outside = Outside::on("far0");
        let host = Host::of(&one("tap = \"ori-test0\"\nbridge = \"br0\""));
        let shown = ip(&["link", "show", "ori-test0"]);
        assert!(shown.contains("master br0"), "{shown}");
        // The bridge lets a port forward a moment after it has joined.
        send_until_it_comes(&host, &payload(OUTSIDE, mac(A), 60), &outside);
        host.end();
        wait_until(|| ip(&["link", "show", "ori-test0"]).is_empty());
    });
}

/// A network namespace with a name, removed at the end.
struct Named(&'static str);

impl Named {
    fn new(name: &'static str) -> Self {
        ip(&["netns", "add", name]);
        Self(name)
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        ip(&["netns", "del", self.0]);
    }
}

#[test]
fn a_tap_is_made_and_watched_in_the_namespace_that_is_named() {
    in_namespace(|| {
        let namespace = Named::new("ori-ports-test");
        let inside = |arguments: &[&str]| ip(&[&["-n", "ori-ports-test"], arguments].concat());
        let words = "tap = \"eth0\"\nnamespace = \"ori-ports-test\"\nmtu = 1600";
        let host = Host::with_windows(&one(words), TOLD);
        assert_eq!(next_link(&host), LinkState::Up);
        let shown = inside(&["link", "show", "eth0"]);
        assert!(shown.contains("mtu 1600"), "{shown}");
        assert_eq!(ip(&["link", "show", "eth0"]), "");
        inside(&["link", "set", "eth0", "down"]);
        assert_eq!(next_link(&host), LinkState::Down);
        inside(&["link", "set", "eth0", "up"]);
        assert_eq!(next_link(&host), LinkState::Up);
        let outside = in_named("ori-ports-test", || Outside::on("eth0")).unwrap();
        host.send(A, &payload(OUTSIDE, mac(A), 60));
        assert_eq!(outside.receive(ETHERTYPE), payload(OUTSIDE, mac(A), 60));
        host.end();
        wait_until(|| inside(&["link", "show", "eth0"]).is_empty());
        drop(namespace);
    });
}

/// Two veth pairs, whose far ends a LAG has behind it.
fn lag(mode: &str) -> (Host, [Outside; 2]) {
    for (near, far) in [("near1", "far1"), ("near2", "far2")] {
        ip(&["link", "add", near, "type", "veth", "peer", "name", far]);
        ip(&["link", "set", far, "up"]);
    }
    let ports = format!(
        "[[ethernet-port]]\nport = \"10/1\"\ninterface = \"near1\"\n\
         [[ethernet-port]]\nport = \"10/2\"\ninterface = \"near2\"\n\
         [[lag]]\nlag = \"10.1\"\nports = [\"10/1\", \"10/2\"]\nmode = \"{mode}\"\n"
    );
    let host = Host::with_windows(&lab(&ports, "10.1"), TOLD);
    (host, ["far1", "far2"].map(Outside::on))
}

#[test]
fn the_backup_of_a_lag_takes_over_and_the_lan_learns_of_it() {
    in_namespace(|| {
        let (host, [first, second]) = lag("active-backup");
        assert_eq!(next_link(&host), LinkState::Up);
        host.send(A, &payload(OUTSIDE, mac(A), 60));
        assert_eq!(first.receive(ETHERTYPE), payload(OUTSIDE, mac(A), 60));
        // A switch sends to all stations by both.
        let broadcast = payload(MacAddress::BROADCAST, OUTSIDE, 61);
        second.send(&broadcast);
        first.send(&payload(mac(A), OUTSIDE, 62));
        assert_eq!(host.seen_frame(), (A, payload(mac(A), OUTSIDE, 62)));
        ip(&["link", "set", "far1", "down"]);
        let mut announced = [second.receive([0x80, 0x35]), second.receive([0x80, 0x35])];
        announced.sort();
        let from = announced.map(|payload| payload[HEADER_BYTES + 6..HEADER_BYTES + 12].to_vec());
        assert_eq!(from, [mac(A).0, mac(B).0]);
        host.send(A, &payload(OUTSIDE, mac(A), 63));
        assert_eq!(second.receive(ETHERTYPE), payload(OUTSIDE, mac(A), 63));
        second.send(&payload(mac(A), OUTSIDE, 64));
        assert_eq!(host.seen_frame(), (A, payload(mac(A), OUTSIDE, 64)));
        // The first comes back: what runs stays where it is.
        ip(&["link", "set", "far1", "up"]);
        host.send(A, &payload(OUTSIDE, mac(A), 65));
        assert_eq!(second.receive(ETHERTYPE), payload(OUTSIDE, mac(A), 65));
        // Guests have lost their carrier only when nothing is left.
        ip(&["link", "set", "far2", "down"]);
        let _announced = first.receive([0x80, 0x35]);
        ip(&["link", "set", "far1", "down"]);
        assert_eq!(next_link(&host), LinkState::Down);
        assert!(host.counter("ethernet-port 10.1", "dropped_backup") > 0);
    });
}

#[test]
fn flows_of_a_lag_with_hash_keep_their_port_while_it_is_up() {
    in_namespace(|| {
        let (host, ports) = lag("hash");
        assert_eq!(next_link(&host), LinkState::Up);
        let flow = |port: u16| {
            let builder = etherparse::PacketBuilder::ethernet2(mac(A).0, OUTSIDE.0);
            let builder = builder.ipv4([10, 0, 0, 1], [10, 0, 0, 9], 64);
            let mut payload = vec![0; HEADER_BYTES];
            builder.udp(port, 9).write(&mut payload, &[0; 20]).unwrap();
            payload
        };
        // Each flow leaves by one of the ports, and by the same each time.
        let (mut by_port, mut first) = ([0, 0], None);
        for number in 0..16 {
            host.send(A, &flow(number));
            host.send(A, &flow(number));
            let port = which(&ports, &flow(number));
            assert_eq!(which(&ports, &flow(number)), port);
            by_port[port] += 1;
            if port == 0 {
                first = Some(flow(number));
            }
        }
        assert!(by_port.iter().all(|flows| *flows > 0), "{by_port:?}");
        // Both are heard.
        for (port, bytes) in ports.iter().zip(60..) {
            port.send(&payload(mac(A), OUTSIDE, bytes));
            assert_eq!(host.seen_frame(), (A, payload(mac(A), OUTSIDE, bytes)));
        }
        ip(&["link", "set", "far1", "down"]);
        // What leaves before the change has been heard of is lost.
        send_until_it_comes(&host, &first.unwrap(), &ports[1]);
    });
}

/// Which of `ports` this frame comes out of.
fn which(ports: &[Outside], wanted: &[u8]) -> usize {
    let end = Instant::now() + PATIENCE;
    let mut payload = vec![0; PAYLOAD_BYTES_MAX];
    loop {
        for (number, port) in ports.iter().enumerate() {
            if let Ok(bytes) = port.0.read(&mut payload)
                && payload[..bytes] == *wanted
            {
                return number;
            }
        }
        assert!(Instant::now() < end, "nothing came");
        std::thread::yield_now();
    }
}

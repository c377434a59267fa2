//! A director's acceptor and the uplinks of its hosts, over real sockets.

use super::*;
use crate::discovery::responder::{Responder, ResponderConfig};
use crate::discovery::seeker::{self, Seeker, SeekerConfig};
use crate::endpoint::{DeviceGrant, SendRefused, session_config};
use crate::frame::{DeviceId, FrameKind, VirtualLane};
use crate::link::{TlsLab, connect};
use crate::reporter::{Reporter, Seen};
use crate::uplink::{Connector, Uplink, UplinkConfig, UplinkDevice, connectors};
use proptest::prelude::*;
use qos::DeviceRate;
use std::io::Read;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

/// Knows one host, which has one device.
struct OneDevice(Arc<Reporter>);

impl Directory for OneDevice {
    fn attach(&self, _: &str, _: DeviceId, _: u32) -> Result<DeviceGrant, String> {
        Ok(grant(self.0.clone()))
    }
}

struct OneHost;

impl Admission for OneHost {
    fn admit(&self, host: &str) -> Result<LinkBudget, String> {
        if host == "host1" {
            Ok(budget())
        } else {
            Err(format!("no host is named {host}"))
        }
    }

    fn may_carry(&self, certified: &str, host: &str) -> bool {
        certified == host || (certified == "switch1" && host == "host1")
    }
}

fn budget() -> LinkBudget {
    LinkBudget::new("test", "1G".parse().unwrap())
}

fn grant(client: Arc<Reporter>) -> DeviceGrant {
    DeviceGrant {
        vm: None,
        rate: DeviceRate::best_effort(),
        windows: [64; 4],
        client,
    }
}

fn acceptor(address: &LinkAddress, client: &Arc<Reporter>) -> (Acceptor, LinkAddress) {
    let directory = Arc::new(OneDevice(client.clone()));
    let session = session_config("director1");
    let acceptor = Acceptor::start(session, Arc::new(OneHost), directory).unwrap();
    let address = acceptor.listen(address, &LinkOptions::default()).unwrap();
    (acceptor, address)
}

fn uplink(host: &str, addresses: &[LinkAddress], client: &Arc<Reporter>) -> Uplink {
    uplink_by(host, connectors(addresses, &LinkOptions::default()), client)
}

fn uplink_by(host: &str, connectors: Vec<Box<dyn Connector>>, client: &Arc<Reporter>) -> Uplink {
    let config = UplinkConfig {
        session: session_config(host),
        budget: budget(),
    };
    let device = UplinkDevice {
        id: DeviceId(1),
        generation: 0,
        grant: grant(client.clone()),
    };
    Uplink::start(config, connectors, vec![device]).unwrap()
}

/// An acceptor on TLS with the certificate of director1.
fn tls_acceptor(lab: &TlsLab, client: &Arc<Reporter>) -> (Acceptor, LinkAddress) {
    let (acceptor, _) = acceptor(&"tcp:127.0.0.1:0".parse().unwrap(), client);
    let address = "tls:127.0.0.1:0".parse().unwrap();
    let address = acceptor.listen(&address, &lab.options("director1"));
    (acceptor, address.unwrap())
}

/// What the director says to whoever shows the certificate of `certified` and greets as `host`.
fn answer(lab: &TlsLab, address: &LinkAddress, certified: &str, host: &str) -> (FrameKind, String) {
    let mut link = connect(address, PATIENCE, &lab.options(certified)).unwrap();
    let mut queue = SendQueue::default();
    let hello = crate::session::hello(&session_config(host), 0, 0, link.checksummed);
    queue.push(hello, false);
    let deadline = Instant::now() + PATIENCE;
    while link.receiver.frames().unwrap().is_empty() {
        assert!(Instant::now() < deadline, "no answer");
        link.sender.send(&mut queue).unwrap();
        link.receiver.fill().unwrap();
    }
    let frames = link.receiver.frames().unwrap();
    let (header, payload) = FrameHeader::parse(frames[0], link.checksummed).unwrap();
    (header.kind, String::from_utf8_lossy(payload).into_owned())
}

#[test]
fn p14_a_certificate_lets_in_whoever_it_names_and_an_edge_switch_its_hosts() {
    let lab = TlsLab::new();
    for name in ["host2", "switch1", "switch2"] {
        lab.issue(name, 30);
    }
    let (_acceptor, address) = tls_acceptor(&lab, &Reporter::new().0);
    for (certified, host) in [("host1", "host1"), ("switch1", "host1")] {
        let (kind, words) = answer(&lab, &address, certified, host);
        assert_eq!(kind, FrameKind::Welcome, "{certified} as {host}: {words}");
    }
    for (certified, host) in [
        ("host2", "host1"),
        ("host1", "host2"),
        ("switch1", "host2"),
        ("switch1", "switch2"),
        ("switch2", "host1"),
        ("director1", "host1"),
    ] {
        let (kind, words) = answer(&lab, &address, certified, host);
        assert_eq!(kind, FrameKind::Close, "{certified} as {host}");
        let expected = format!("the certificate is that of {certified}, not of {host}");
        assert!(words.contains(&expected), "{words}");
    }
}

#[test]
fn host_finds_its_director_and_greets_it_over_tls() {
    let lab = TlsLab::new();
    let (acceptor, address) = tls_acceptor(&lab, &Reporter::new().0);
    let meeting = crate::discovery::tests::meeting();
    let plain = "tcp:127.0.0.1:1".parse().unwrap();
    let responder = ResponderConfig {
        meeting,
        director: "director1".to_owned(),
        instance: 7,
        // The plain one first: it is not taken, though it is better.
        addresses: vec![plain, address],
    };
    let _responder = Responder::start(responder, Box::new(|_| true)).unwrap();
    let seeker = SeekerConfig {
        meeting,
        host: "host1".to_owned(),
        instance: 9,
        director: Some("director1".to_owned()),
        links: lab.options("host1"),
    };
    let seeker = Arc::new(Seeker::start(seeker).unwrap());
    let (client, seen) = Reporter::new();
    let uplink = uplink_by("host1", seeker::connectors(&seeker), &client);
    assert!(uplink.wait_active(PATIENCE));
    assert!(matches!(seen.recv_timeout(PATIENCE), Ok(Seen::Up(_))));
    assert_eq!(seeker.addresses().len(), 1);
    assert!(acceptor.endpoint("host1").is_some());
}

#[test]
fn uplink_attaches_its_devices_again_after_every_restart_of_the_director() {
    let directory = tempfile::tempdir().unwrap();
    let address = LinkAddress::Unix(directory.path().join("fabric"));
    let (host, host_seen) = Reporter::new();
    let (director, director_seen) = Reporter::new();
    let uplink = uplink("host1", std::slice::from_ref(&address), &host);
    assert!(!uplink.is_active());
    for round in 0..3 {
        let (acceptor, _) = acceptor(&address, &director);
        assert!(uplink.wait_active(PATIENCE));
        let Ok(Seen::Up(lanes)) = host_seen.recv_timeout(PATIENCE) else {
            panic!("not up")
        };
        let mut frames = vec![(VirtualLane::Network, FrameBuffer::from_payload(&[round]))];
        lanes.try_send(&mut frames).unwrap();
        let frame =
            std::iter::repeat_with(|| director_seen.recv_timeout(PATIENCE)).find_map(|seen| {
                if let Seen::Frame(frame) = seen.unwrap() {
                    Some(frame)
                } else {
                    None
                }
            });
        assert_eq!(frame, Some(vec![round]));
        drop(acceptor);
        assert!(matches!(host_seen.recv_timeout(PATIENCE), Ok(Seen::Down)));
        frames.push((VirtualLane::Network, FrameBuffer::from_payload(&[9])));
        assert_eq!(lanes.try_send(&mut frames), Err(SendRefused::Down));
    }
}

#[test]
fn p08_silent_connections_are_bounded_and_keep_nobody_out() {
    let loopback = "tcp:127.0.0.1:0".parse().unwrap();
    let (_acceptor, address) = acceptor(&loopback, &Reporter::new().0);
    let LinkAddress::Tcp(address) = address else {
        panic!("tcp")
    };
    let connect = || std::net::TcpStream::connect(address).unwrap();
    let mut silent: Vec<_> = std::iter::repeat_with(connect)
        .take(GREETINGS_MAX + 1)
        .collect();
    // The oldest makes room for the newest; it is told why before it is closed.
    let mut last_words = Vec::new();
    silent[0].set_read_timeout(Some(PATIENCE)).unwrap();
    silent[0].read_to_end(&mut last_words).unwrap();
    assert!(String::from_utf8_lossy(&last_words).contains("have not greeted"));
    drop(silent);
}

#[test]
fn links_of_one_host_are_one_session_and_each_is_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let unix = LinkAddress::Unix(directory.path().join("fabric"));
    let loopback = "tcp:127.0.0.1:0".parse().unwrap();
    let (host, host_seen) = Reporter::new();
    let (director, _director_seen) = Reporter::new();
    let (acceptor, tcp) = acceptor(&loopback, &director);
    let unix = acceptor.listen(&unix, &LinkOptions::default()).unwrap();
    let uplink = uplink("host1", &[unix, tcp], &host);
    assert!(uplink.wait_active(PATIENCE));
    assert!(matches!(host_seen.recv_timeout(PATIENCE), Ok(Seen::Up(_))));
    let endpoint = uplink.endpoint().unwrap();
    let numbers = || -> Vec<u16> {
        let mut paths = endpoint.paths();
        paths.sort_by_key(|path| path.priority);
        paths.iter().map(|path| path.path).collect()
    };
    let wait_for_two = || {
        let deadline = Instant::now() + PATIENCE;
        while numbers().len() < 2 {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
    };
    wait_for_two();
    let before = numbers();
    let director_end = acceptor.endpoint("host1").unwrap();
    director_end.fail_path(before[0], "cut by the test");
    let deadline = Instant::now() + PATIENCE;
    while numbers().len() < 2 || numbers()[0] == before[0] {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    assert!(host_seen.try_recv().is_err(), "no lane went down");
    assert!(Arc::ptr_eq(&endpoint, &uplink.endpoint().unwrap()));
}

#[test]
fn host_that_is_not_configured_is_turned_away_with_the_reason() {
    let loopback = "tcp:127.0.0.1:0".parse().unwrap();
    let (_acceptor, address) = acceptor(&loopback, &Reporter::new().0);
    let LinkAddress::Tcp(address) = address else {
        panic!("tcp")
    };
    let mut stranger = std::net::TcpStream::connect(address).unwrap();
    let hello = crate::session::hello(&session_config("stranger"), 0, 0, true);
    std::io::Write::write_all(&mut stranger, hello.frame()).unwrap();
    stranger.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut last_words = Vec::new();
    stranger.read_to_end(&mut last_words).unwrap();
    assert!(String::from_utf8_lossy(&last_words).contains("no host is named stranger"));
}

#[test]
fn newer_session_of_a_host_replaces_the_older() {
    let loopback = "tcp:127.0.0.1:0".parse().unwrap();
    let (acceptor, address) = acceptor(&loopback, &Reporter::new().0);
    let (first_client, first_seen) = Reporter::new();
    let first = uplink("host1", std::slice::from_ref(&address), &first_client);
    let Ok(Seen::Up(first_lanes)) = first_seen.recv_timeout(PATIENCE) else {
        panic!("not up")
    };
    let (second_client, second_seen) = Reporter::new();
    let second = uplink("host1", &[address], &second_client);
    let Ok(Seen::Up(second_lanes)) = second_seen.recv_timeout(PATIENCE) else {
        panic!("not up")
    };
    assert!(epoch_is_later(second_lanes.epoch(), first_lanes.epoch()));
    assert!(matches!(first_seen.recv_timeout(PATIENCE), Ok(Seen::Down)));
    assert!(acceptor.endpoint("host1").is_some());
    assert!(acceptor.endpoint("host2").is_none());
    drop((first, second));
}

proptest! {
    #[test]
    fn epoch_is_later_than_the_last_and_never_zero(last in 1u16.., seconds: u64) {
        let epoch = next_epoch(last, seconds);
        prop_assert!(epoch != 0);
        prop_assert!(epoch_is_later(epoch, last), "{} after {}", epoch, last);
    }

    #[test]
    fn first_epoch_after_a_restart_is_later_than_the_last_before(
        sessions in 1u64..100, uptime in 100u64..10_000, start: u32
    ) {
        let mut last = 0;
        for session in 0..sessions {
            last = next_epoch(last, u64::from(start) + session * uptime / 100);
        }
        let epoch = next_epoch(0, u64::from(start) + uptime + 2);
        prop_assert!(epoch_is_later(epoch, last), "{} after {}", epoch, last);
    }
}

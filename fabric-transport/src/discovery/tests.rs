//! Seekers and responders of one process, on the loopback interface.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::message::{Kind, Message};
use super::responder::{ANSWERS_PER_SECOND, Responder, ResponderConfig};
use super::seeker::{Seeker, SeekerConfig, connectors};
use super::*;
use crate::link::{LinkAddress, LinkOptions, Listener};

/// A guard, not a figure.
const PATIENCE: Duration = Duration::from_secs(30);

/// A meeting on loopback that no other test has: a free port.
pub(crate) fn meeting() -> Meeting {
    let free = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = free.local_addr().unwrap().port();
    // Kept to the end of the process, so that nobody else gets the port.
    std::mem::forget(free);
    Meeting {
        group: SocketAddrV4::new(*GROUP_DEFAULT.ip(), port),
        interface: Some(Ipv4Addr::LOCALHOST),
    }
}

fn responder(meeting: Meeting, director: &str, addresses: &[&str]) -> Responder {
    let config = ResponderConfig {
        meeting,
        director: director.to_owned(),
        instance: 7,
        addresses: addresses.iter().map(|it| it.parse().unwrap()).collect(),
    };
    Responder::start(config, Box::new(|host| host == "host1")).unwrap()
}

fn seeker(meeting: Meeting, host: &str, director: Option<&str>) -> Arc<Seeker> {
    seeker_with(meeting, host, director, LinkOptions::default())
}

fn seeker_with(
    meeting: Meeting,
    host: &str,
    director: Option<&str>,
    links: LinkOptions,
) -> Arc<Seeker> {
    let config = SeekerConfig {
        meeting,
        host: host.to_owned(),
        instance: 9,
        director: director.map(str::to_owned),
        links,
    };
    Arc::new(Seeker::start(config).unwrap())
}

fn wait_addresses(seeker: &Seeker, wanted: &[&str]) {
    let wanted: Vec<LinkAddress> = wanted.iter().map(|it| it.parse().unwrap()).collect();
    let deadline = Instant::now() + PATIENCE;
    while seeker.addresses() != wanted {
        assert!(Instant::now() < deadline, "{:?}", seeker.addresses());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A socket that asks as a host would, and waits for answers.
fn asker(meeting: Meeting) -> UdpSocket {
    let socket = meeting.ask().unwrap();
    socket.set_nonblocking(false).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn question(host: &str, nonce: u64) -> Vec<u8> {
    let kind = Kind::Discover;
    let (name, addresses) = (host.to_owned(), Vec::new());
    let instance = 1;
    Message {
        kind,
        nonce,
        instance,
        name,
        addresses,
    }
    .to_bytes()
}

fn answer(socket: &UdpSocket) -> Message {
    let mut bytes = [0; 2048];
    let count = socket.recv(&mut bytes).unwrap();
    Message::parse(&bytes[..count]).unwrap()
}

#[test]
fn host_finds_the_director_that_comes_later_and_links_to_it() {
    let meeting = meeting();
    let seeker = seeker(meeting, "host1", None);
    let links = connectors(&seeker);
    let error = links[0].connect().unwrap_err().to_string();
    assert_eq!(error, format!("no director has answered on {meeting} yet"));
    assert!(links[0].is_there() && !links[1].is_there());
    let listener =
        Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap(), &LinkOptions::default()).unwrap();
    let address = listener.address().unwrap().to_string();
    let director = responder(meeting, "d1", &["unix:/run/d1", &address]);
    wait_addresses(&seeker, &[&address]);
    links[0].connect().unwrap();
    assert!(listener.accept().unwrap().is_some());
    assert!(!links[1].is_there());
    // It comes back elsewhere: the link that cannot be made says so.
    drop((director, listener));
    let listener =
        Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap(), &LinkOptions::default()).unwrap();
    let moved = listener.address().unwrap().to_string();
    let _director = responder(meeting, "d1", &[&moved]);
    let error = links[0].connect().unwrap_err().to_string();
    assert!(error.starts_with(&address), "{error}");
    wait_addresses(&seeker, &[&moved]);
}

#[test]
fn host_takes_only_the_director_that_it_wants() {
    let meeting = meeting();
    let _other = responder(meeting, "d2", &["tcp:127.0.0.1:2"]);
    let seeker = seeker(meeting, "host1", Some("d1"));
    let _director = responder(meeting, "d1", &["tcp:127.0.0.1:1"]);
    wait_addresses(&seeker, &["tcp:127.0.0.1:1"]);
}

#[test]
fn p14_a_host_with_a_certificate_waits_for_a_director_that_offers_tls() {
    let meeting = meeting();
    let lab = crate::link::TlsLab::new();
    let links = LinkOptions {
        insecure: true,
        ..lab.options("host1")
    };
    let seeker = seeker_with(meeting, "host1", None, links);
    let _liar = responder(meeting, "d1", &["tcp:127.0.0.1:1"]);
    let links = connectors(&seeker);
    let error = || links[0].connect().unwrap_err().to_string();
    let refused = format!("no director has offered an address on {meeting} yet that may be used");
    let deadline = Instant::now() + PATIENCE;
    while error() != refused {
        assert!(Instant::now() < deadline, "{}", error());
        std::thread::sleep(Duration::from_millis(5));
    }
    let _director = responder(meeting, "d2", &["tls:127.0.0.1:2"]);
    wait_addresses(&seeker, &["tls:127.0.0.1:2"]);
}

#[test]
fn director_is_silent_to_strangers_and_garbage() {
    let meeting = meeting();
    let _director = responder(meeting, "d1", &["tcp:127.0.0.1:1"]);
    let socket = asker(meeting);
    let known = question("host1", 5);
    let mut offer = Message::parse(&known).unwrap();
    (offer.kind, offer.addresses) = (Kind::Offer, vec!["tcp:127.0.0.1:3".to_owned()]);
    let long = [known.clone(), vec![0; 9000]].concat();
    let mut garbage = vec![question("host2", 1), offer.to_bytes(), Vec::new(), long];
    garbage.extend((0..known.len()).map(|end| known[..end].to_vec()));
    for datagram in garbage {
        socket.send_to(&datagram, meeting.group).unwrap();
    }
    // Loopback keeps the order: the first answer is to the last question.
    socket.send_to(&known, meeting.group).unwrap();
    let answer = answer(&socket);
    assert_eq!(
        (answer.kind, answer.nonce, answer.instance),
        (Kind::Offer, 5, 7)
    );
    assert_eq!(answer.addresses, ["tcp:127.0.0.1:1"]);
}

#[test]
fn director_bounds_its_answers() {
    let meeting = meeting();
    let director = responder(meeting, "d1", &["tcp:127.0.0.1:1"]);
    let socket = asker(meeting);
    let began = Instant::now();
    for nonce in 0..500 {
        socket
            .send_to(&question("host1", nonce), meeting.group)
            .unwrap();
    }
    let first = answer(&socket);
    assert_eq!(first.nonce, 0);
    // Its last answer is sent when it has ended.
    drop(director);
    let seconds = began.elapsed().as_secs() + 1;
    socket.set_nonblocking(true).unwrap();
    let answers = 1 + received(&socket).0.len();
    let bound = u64::from(ANSWERS_PER_SECOND) * seconds;
    assert!(answers as u64 <= bound, "{answers} answers, {seconds} s");
}

#[test]
fn seeker_ignores_what_it_did_not_ask_for() {
    let meeting = meeting();
    // A director that answers wrong in every way before it answers right.
    let hostile = meeting.hear().unwrap();
    hostile.set_nonblocking(false).unwrap();
    hostile.set_read_timeout(Some(PATIENCE)).unwrap();
    let seeker = seeker(meeting, "host1", None);
    let mut bytes = [0; 2048];
    let (count, host) = hostile.recv_from(&mut bytes).unwrap();
    let asked = Message::parse(&bytes[..count]).unwrap();
    assert_eq!((asked.name.as_str(), asked.instance), ("host1", 9));
    let offer = |nonce, address: &str| {
        let addresses = vec![address.to_owned()];
        let (kind, name) = (Kind::Offer, "d1".to_owned());
        Message {
            kind,
            nonce,
            instance: 1,
            name,
            addresses,
        }
        .to_bytes()
    };
    let right = offer(asked.nonce, "tcp:127.0.0.1:1");
    let mut wrong = vec![
        bytes[..count].to_vec(),
        offer(asked.nonce.wrapping_add(1), "tcp:127.0.0.1:2"),
        offer(asked.nonce, "unix:/run/other"),
        [right.clone(), vec![0]].concat(),
    ];
    wrong.extend((0..right.len()).map(|end| right[..end].to_vec()));
    for datagram in wrong {
        hostile.send_to(&datagram, host).unwrap();
    }
    hostile.send_to(&right, host).unwrap();
    wait_addresses(&seeker, &["tcp:127.0.0.1:1"]);
}

#[test]
fn an_interface_that_is_not_there_is_an_error_for_directors_and_a_wait_for_hosts() {
    let nowhere = Meeting {
        // TEST-NET-1 (RFC 5737): nobody's.
        interface: Some(Ipv4Addr::new(192, 0, 2, 1)),
        ..meeting()
    };
    let config = ResponderConfig {
        meeting: nowhere,
        director: "d1".to_owned(),
        instance: 7,
        addresses: Vec::new(),
    };
    assert!(Responder::start(config, Box::new(|_| true)).is_err());
    let seeker = seeker(nowhere, "host1", None);
    assert_eq!(seeker.addresses(), []);
}

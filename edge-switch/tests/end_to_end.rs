//! A switch between real hosts and a real director, over Unix and TCP sockets on loopback.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]
#![expect(
    clippy::indexing_slicing,
    reason = "a failed expectation is a failed test"
)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use edge_switch::{EdgeSwitch, EdgeSwitchError};
use fabric_config::LabConfig;
use fabric_transport::acceptor::{Acceptor, Admission};
use fabric_transport::control::Windows;
use fabric_transport::endpoint::{DeviceGrant, SendRefused, session_config};
use fabric_transport::link::{LinkAddress, LinkOptions, SendQueue, connect};
use fabric_transport::uplink::{Uplink, UplinkConfig, UplinkDevice, connectors};
use fabric_transport::{
    DeviceId, Directory, FrameBuffer, LaneClient, LaneSet, Receipt, VirtualLane,
};
use qos::{DeviceRate, LinkBudget};

/// A guard, not a figure.
const PATIENCE: Duration = Duration::from_secs(60);
/// 512 KiB a lane.
const WINDOWS: Windows = [8192; 4];
const PAYLOAD_BYTES: usize = 2000;

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    wait_until_mut(what, condition);
}

fn wait_until_mut(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::yield_now();
    }
}

/// One end of a device: numbers what it sends, and checks the numbers that it receives.
#[derive(Default)]
struct End {
    lanes: Mutex<Option<LaneSet>>,
    changed: Condvar,
    writable: Mutex<u64>,
    /// The number that comes next, and what came instead.
    expected: AtomicU64,
    wrong: Mutex<Option<String>>,
    bytes: AtomicU64,
    ups: AtomicU64,
    stopped: AtomicBool,
}

impl LaneClient for End {
    fn up(&self, lanes: LaneSet) {
        *self.lanes.lock().unwrap() = Some(lanes);
        self.ups.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_all();
    }

    fn receive(&self, _: VirtualLane, payload: &[u8]) -> Receipt {
        let number = u64::from_le_bytes(*payload.first_chunk().unwrap());
        let expected = self.expected.fetch_add(1, Ordering::SeqCst);
        if number != expected {
            let mut wrong = self.wrong.lock().unwrap();
            wrong.get_or_insert(format!("frame {number} in the place of {expected}"));
        }
        self.bytes.fetch_add(payload.len() as u64, Ordering::SeqCst);
        Receipt::Consumed
    }

    fn writable(&self) {
        *self.writable.lock().unwrap() += 1;
        self.changed.notify_all();
    }

    fn down(&self, _: u16) {
        *self.lanes.lock().unwrap() = None;
    }
}

impl End {
    /// Sends numbered frames from `first` on, until `count` are sent or it is told to stop.
    fn send(&self, first: u64, count: u64) {
        let mut frames = Vec::new();
        let mut next = first;
        while !self.stopped.load(Ordering::SeqCst) {
            if frames.is_empty() {
                if next == first + count {
                    return;
                }
                let mut payload = vec![0; PAYLOAD_BYTES];
                payload[..8].copy_from_slice(&next.to_le_bytes());
                frames.push((VirtualLane::Network, FrameBuffer::from_payload(&payload)));
                next += 1;
            }
            let seen = *self.writable.lock().unwrap();
            let lanes = self.lanes.lock().unwrap().clone();
            let sent = lanes.map_or(Err(SendRefused::Down), |lanes| lanes.try_send(&mut frames));
            if sent.is_err() {
                let writable = self.writable.lock().unwrap();
                if *writable == seen {
                    let turn = Duration::from_millis(10);
                    drop(self.changed.wait_timeout(writable, turn).unwrap());
                }
            }
        }
    }

    fn received(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }

    fn assert_right(&self) {
        assert_eq!(*self.wrong.lock().unwrap(), None);
    }
}

/// The director: one device for each host, with the host's number.
struct Books {
    ends: BTreeMap<u32, Arc<End>>,
    downlink: String,
}

impl Admission for Books {
    fn admit(&self, host: &str) -> Result<LinkBudget, String> {
        if host == "host99" {
            return Err("the director knows no host99".to_owned());
        }
        let rate = self.downlink.parse().unwrap();
        Ok(LinkBudget::new(format!("{host} downlink"), rate))
    }

    fn may_carry(&self, certified: &str, host: &str) -> bool {
        certified == host || (certified == "switch1" && host != "host99")
    }
}

impl Directory for Books {
    fn attach(&self, _: &str, device: DeviceId, _: u32) -> Result<DeviceGrant, String> {
        Ok(grant(self.ends[&device.0].clone()))
    }
}

fn grant(client: Arc<End>) -> DeviceGrant {
    DeviceGrant {
        rate: DeviceRate::best_effort(),
        vm: None,
        windows: WINDOWS,
        client,
    }
}

struct Lab {
    folder: tempfile::TempDir,
    config: LabConfig,
    books: Arc<Books>,
    director: LinkAddress,
    acceptor: Option<Acceptor>,
}

const HOST_RATE: &str = "50M";

impl Lab {
    /// `hosts` hosts with links of 50M; the first of them reserve `cirs`. The switch is behind
    /// `listen`, in which `@DIR@` is the lab's folder.
    fn new(hosts: u32, cirs: &[&str], rate: &str, listen: &str) -> Self {
        Self::over(hosts, cirs, rate, listen, "unix:@DIR@/director")
    }

    /// The same, with a director that listens on `director`. All have certificates.
    fn over(hosts: u32, cirs: &[&str], rate: &str, listen: &str, director: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let certificates = folder.path().join("ca");
        pki::init(&certificates).unwrap();
        let mut certified = vec!["director1".to_owned(), "switch1".to_owned()];
        certified.extend((1..=hosts.min(2)).map(|host| format!("host{host}")));
        for name in certified {
            pki::issue(&certificates, &pki::Order::new(&name, 30)).unwrap();
        }
        let ends = (1..=hosts).map(|host| (host, Arc::default())).collect();
        let books = Arc::new(Books {
            ends,
            downlink: HOST_RATE.to_owned(),
        });
        let placed = |text: &str| text.replace("@DIR@", folder.path().to_str().unwrap());
        let mut text = placed(
            "[tls]\nca = \"@DIR@/ca/ca.pem\"\ncert = \"@DIR@/ca/{name}.pem\"\n\
             key = \"@DIR@/ca/{name}.key\"\n",
        );
        let security = text.clone() + "[director]\nname = \"director1\"\n";
        let security: LabConfig = security.parse().unwrap();
        let director = placed(director).parse().unwrap();
        let (acceptor, director) = start_director(&security, &books, &director);
        text += &String::from(
            "[director]\nname = \"director1\"\n[[ethernet-port]]\nport = \"10/1\"\ntap = \"x\"\n",
        );
        let mut names = Vec::new();
        for number in 1..=hosts {
            let cir = cirs.get(number as usize - 1).unwrap_or(&"0");
            text += &format!(
                "[[host]]\nname = \"host{number}\"\ndirector = [\"{listen}\"]\nrun-dir = \"/x\"\n\
                 rate = \"{HOST_RATE}\"\n[[host.vm]]\nname = \"vm{number}\"\n[[host.vm.vnic]]\n\
                 name = \"vn01\"\nid = {number}\nport = \"10/1\"\n\
                 mac = \"02:00:00:00:00:{number:02x}\"\n\
                 ingress = {{ cir = \"{cir}\" }}\negress = {{ cir = \"{cir}\" }}\n"
            );
            names.push(format!("\"host{number}\""));
        }
        text += &format!(
            "[[edge-switch]]\nname = \"switch1\"\nlisten = [\"{listen}\"]\n\
             director = [\"unix:@DIR@/nobody\", \"{director}\"]\nrate = \"{rate}\"\n\
             hosts = [{}, \"host99\"]\n\
             [[host]]\nname = \"host99\"\ndirector = [\"{listen}\"]\nrun-dir = \"/x\"\n\
             rate = \"{HOST_RATE}\"\n",
            names.join(", ")
        );
        let config = placed(&text).parse().unwrap();
        Self {
            folder,
            config,
            books,
            director,
            acceptor: Some(acceptor),
        }
    }

    fn start_director(&mut self) {
        let (acceptor, _) = start_director(&self.config, &self.books, &self.director);
        self.acceptor = Some(acceptor);
    }

    /// How whoever has the certificate of `name` reaches the switch at `address`.
    fn options(&self, name: &str, address: &LinkAddress) -> LinkOptions {
        let addresses = std::slice::from_ref(address);
        LinkOptions {
            director: Some("switch1".to_owned()),
            ..self.config.links.options(name, addresses).unwrap()
        }
    }

    fn unix(&self, name: &str) -> LinkAddress {
        LinkAddress::Unix(self.folder.path().join(name))
    }

    fn switch(&self) -> (EdgeSwitch, LinkAddress) {
        let switch = EdgeSwitch::start(&self.config, "switch1").unwrap();
        let address = switch.addresses().next().unwrap().clone();
        (switch, address)
    }

    fn director_end(&self, host: u32) -> &Arc<End> {
        &self.books.ends[&host]
    }
}

/// The director on `address`, and what that became.
fn start_director(
    security: &LabConfig,
    books: &Arc<Books>,
    address: &LinkAddress,
) -> (Acceptor, LinkAddress) {
    let session = session_config("director1");
    let acceptor = Acceptor::start(session, books.clone(), books.clone()).unwrap();
    let addresses = std::slice::from_ref(address);
    let options = security.links.options("director1", addresses).unwrap();
    let address = acceptor.listen(address, &options).unwrap();
    (acceptor, address)
}

/// A host with its device.
struct Host {
    end: Arc<End>,
    uplink: Uplink,
}

impl Host {
    fn new(number: u32, addresses: &[LinkAddress]) -> Self {
        Self::by(number, addresses, &LinkOptions::default())
    }

    fn by(number: u32, addresses: &[LinkAddress], options: &LinkOptions) -> Self {
        let end = Arc::new(End::default());
        let name = format!("host{number}");
        let budget = LinkBudget::new(format!("{name} uplink"), HOST_RATE.parse().unwrap());
        let device = UplinkDevice {
            id: DeviceId(number),
            generation: 0,
            grant: grant(end.clone()),
        };
        let session = session_config(&name);
        let config = UplinkConfig { session, budget };
        let uplink = Uplink::start(config, connectors(addresses, options), vec![device]).unwrap();
        Self { end, uplink }
    }

    fn wait_up(&self) {
        wait_until("a device is up", || {
            self.end.lanes.lock().unwrap().is_some()
        });
    }

    fn paths(&self) -> usize {
        let endpoint = self.uplink.endpoint();
        endpoint.map_or(0, |endpoint| endpoint.paths().len())
    }
}

/// What a peer says that greets as `host` on the link of `priority`, until it closes.
fn answer_to(address: &LinkAddress, host: &str, priority: u8) -> String {
    let LinkAddress::Tcp(address) = address else {
        panic!("tcp")
    };
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let hello = fabric_transport::session::hello(&session_config(host), 0, priority, true);
    stream.write_all(hello.frame()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut words = Vec::new();
    stream.read_to_end(&mut words).unwrap();
    String::from_utf8_lossy(&words).into_owned()
}

const LOOPBACK: &str = "tcp:127.0.0.1:0";

#[test]
fn carries_24_hosts_and_turns_the_25th_away_with_the_reason() {
    let lab = Lab::new(24, &[], "1G", LOOPBACK);
    let (switch, address) = lab.switch();
    let addresses = [address.clone()];
    let hosts: Vec<_> = (1..=24)
        .map(|number| Host::new(number, &addresses))
        .collect();
    for host in &hosts {
        host.wait_up();
    }
    assert_eq!(switch.links(), 24);
    let words = answer_to(&address, "host99", 0);
    assert!(
        words.contains("all 24 ports of edge switch switch1 are in use"),
        "{words}"
    );
    let words = answer_to(&address, "stranger", 0);
    assert!(
        words.contains("\"stranger\" is not behind edge switch switch1"),
        "{words}"
    );
    let words = answer_to(&address, "host1", 4);
    assert!(words.contains("at most 4 links"), "{words}");
    // Both ways, on all of them at once.
    std::thread::scope(|scope| {
        for (number, host) in (1..).zip(&hosts) {
            scope.spawn(move || host.end.send(0, 50));
            let director_end = lab.director_end(number);
            scope.spawn(move || {
                wait_until("up", || director_end.lanes.lock().unwrap().is_some());
                director_end.send(0, 50);
            });
        }
    });
    for (number, host) in (1..).zip(&hosts) {
        for end in [&host.end, lab.director_end(number)] {
            wait_until("all arrived", || end.expected.load(Ordering::SeqCst) == 50);
            end.assert_right();
        }
    }
    for (hop, direction) in switch.hops().iter().zip(["ingress", "egress"]) {
        assert_eq!(hop.name(), format!("edge-switch switch1 {direction}"));
        let snapshot = hop.snapshot().unwrap();
        assert_eq!(snapshot.devices.len(), 24);
        let link = snapshot.device("link0.host7").unwrap();
        let bytes = link.statistics.offered.bytes;
        assert!(bytes > 50 * PAYLOAD_BYTES as u64, "{bytes}");
    }
    // A port that is given up can be had by another host.
    drop(hosts);
    wait_until("ports are free", || switch.links() == 0);
}

/// Numbered frames both ways through a switch that listens on `listen` before a director on `director`.
fn carries(listen: &str, director: &str) -> (Lab, EdgeSwitch, LinkAddress, Host) {
    let lab = Lab::over(2, &[], "1G", listen, director);
    let (switch, address) = lab.switch();
    let options = lab.options("host1", &address);
    let host = Host::by(1, std::slice::from_ref(&address), &options);
    host.wait_up();
    let director_end = lab.director_end(1);
    wait_until("up", || director_end.lanes.lock().unwrap().is_some());
    std::thread::scope(|scope| {
        scope.spawn(|| host.end.send(0, 500));
        scope.spawn(|| director_end.send(0, 500));
    });
    for end in [&host.end, director_end] {
        wait_until("all arrived", || end.expected.load(Ordering::SeqCst) == 500);
        end.assert_right();
    }
    (lab, switch, address, host)
}

#[test]
fn carries_links_over_shared_memory() {
    carries("shm:@DIR@/switch", "shm:@DIR@/director");
    // Where only one of both sides has the CRC32C.
    carries("shm:@DIR@/switch", "tls:127.0.0.1:0");
    carries(LOOPBACK, "shm:@DIR@/director");
}

#[test]
fn p14_carries_links_over_tls_of_those_whose_certificate_it_is() {
    let (lab, switch, address, _host) = carries("tls:127.0.0.1:0", "tls:127.0.0.1:0");
    assert_eq!(switch.links(), 1);
    // Hosts of the switch, with a certificate of the CA that is another's.
    for (certified, host) in [
        ("host2", "host1"),
        ("switch1", "host2"),
        ("director1", "host2"),
    ] {
        let mut link = connect(&address, PATIENCE, &lab.options(certified, &address)).unwrap();
        let mut queue = SendQueue::default();
        let hello = fabric_transport::session::hello(&session_config(host), 0, 0, link.checksummed);
        queue.push(hello, false);
        wait_until_mut("an answer", || {
            link.sender.send(&mut queue).unwrap();
            link.receiver.fill().unwrap();
            !link.receiver.frames().unwrap().is_empty()
        });
        let words = String::from_utf8_lossy(link.receiver.frames().unwrap()[0]).into_owned();
        let expected = format!("the certificate is that of {certified}, not of {host}");
        assert!(words.contains(&expected), "{words}");
    }
    // The port of the host whose name was used is still its own.
    assert_eq!(switch.links(), 1);
    let other = Host::by(
        2,
        std::slice::from_ref(&address),
        &lab.options("host2", &address),
    );
    other.wait_up();
}

#[test]
fn reservations_hold_and_the_rest_is_shared_when_five_times_as_much_is_sent() {
    // 20 hosts of 50 Mb/s on 200 Mb/s, of which three reserve 120.
    let lab = Lab::new(20, &["50M", "40M", "30M"], "200M", LOOPBACK);
    let (_switch, address) = lab.switch();
    let addresses = [address];
    let hosts: Vec<_> = (1..=20)
        .map(|number| Host::new(number, &addresses))
        .collect();
    for host in &hosts {
        host.wait_up();
    }
    let received = |up: bool| -> Vec<u64> {
        let ends = (1..).zip(&hosts).map(|(number, host)| match up {
            true => lab.director_end(number).received(),
            false => host.end.received(),
        });
        ends.collect()
    };
    for up in [true, false] {
        let senders: Vec<_> = (1..)
            .zip(&hosts)
            .map(|(number, host)| match up {
                true => host.end.clone(),
                false => lab.director_end(number).clone(),
            })
            .collect();
        std::thread::scope(|scope| {
            for sender in &senders {
                scope.spawn(|| sender.send(0, u64::MAX));
            }
            // Once everybody is under way.
            let sum = |counts: &[u64]| counts.iter().sum::<u64>();
            wait_until("all send", || {
                received(up).iter().all(|bytes| *bytes > 40_000)
            });
            let before = received(up);
            let goal = sum(&before) + 60_000_000;
            wait_until("enough has arrived", || sum(&received(up)) >= goal);
            let after = received(up);
            for sender in &senders {
                sender.stopped.store(true, Ordering::SeqCst);
            }
            let counts: Vec<_> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
            let total = sum(&counts);
            println!("up: {up}, shares in per mille:");
            let shares: Vec<_> = counts.iter().map(|bytes| bytes * 1000 / total).collect();
            println!("{shares:?}");
            for (host, cir) in [(0, 50), (1, 40), (2, 30)] {
                let promised = cir * 1000 / 200;
                assert!(
                    shares[host] >= promised * 95 / 100,
                    "host {host}: {shares:?}"
                );
            }
            let (least, most) = (shares[3..].iter().min(), shares[3..].iter().max());
            assert!(least.unwrap() * 2 >= *most.unwrap(), "{shares:?}");
        });
    }
    for (number, host) in (1..).zip(&hosts) {
        host.end.assert_right();
        lab.director_end(number).assert_right();
        assert_eq!(
            host.end.ups.load(Ordering::SeqCst),
            1,
            "no session was lost"
        );
    }
}

#[test]
fn nothing_is_lost_when_the_switch_dies_beside_a_direct_path() {
    let lab = Lab::new(1, &[], "1G", "unix:@DIR@/switch");
    let (mut switch, address) = lab.switch();
    let host = Host::new(1, &[address, lab.unix("director")]);
    host.wait_up();
    wait_until("both paths are there", || host.paths() == 2);
    let director_end = lab.director_end(1);
    wait_until("up", || director_end.lanes.lock().unwrap().is_some());
    const FRAMES: u64 = 6000;
    std::thread::scope(|scope| {
        scope.spawn(|| host.end.send(0, FRAMES));
        scope.spawn(|| director_end.send(0, FRAMES));
        for quarter in 1..=3 {
            wait_until("some arrived", || {
                director_end.expected.load(Ordering::SeqCst) >= quarter * FRAMES / 4
            });
            let path = host.uplink.endpoint().unwrap().paths();
            let by_switch = path.iter().find(|path| path.priority == 0);
            // Back to the switch, so that it is the one that carries when it goes.
            let path = by_switch.unwrap().path;
            host.uplink.endpoint().unwrap().switchover(path).unwrap();
            wait_until("the switch carries", || {
                let paths = host.uplink.endpoint().unwrap().paths();
                paths.iter().any(|it| it.path == path && it.carries)
            });
            drop(switch);
            switch = lab.switch().0;
            wait_until("the path is made again", || host.paths() == 2);
        }
    });
    for end in [&host.end, director_end] {
        wait_until("all arrived", || {
            end.expected.load(Ordering::SeqCst) == FRAMES
        });
        end.assert_right();
    }
    assert_eq!(
        host.end.ups.load(Ordering::SeqCst),
        1,
        "the session went on"
    );
    assert!(
        !host
            .uplink
            .endpoint()
            .unwrap()
            .path_changes()
            .to_vec()
            .is_empty()
    );
}

#[test]
fn the_only_path_comes_back_with_the_switch_and_nothing_is_lost() {
    let lab = Lab::new(1, &[], "1G", "unix:@DIR@/switch");
    let (switch, address) = lab.switch();
    let host = Host::new(1, &[address]);
    host.wait_up();
    std::thread::scope(|scope| {
        scope.spawn(|| host.end.send(0, 2000));
        let arrived = || lab.director_end(1).expected.load(Ordering::SeqCst);
        wait_until("some arrived", || arrived() >= 500);
        drop(switch);
        let _again = lab.switch();
        wait_until("all arrived", || arrived() == 2000);
    });
    lab.director_end(1).assert_right();
    assert_eq!(
        host.end.ups.load(Ordering::SeqCst),
        1,
        "the session went on"
    );
}

#[test]
fn hosts_are_told_that_the_director_is_away_or_refuses_them() {
    let mut lab = Lab::new(1, &[], "1G", LOOPBACK);
    let (switch, address) = lab.switch();
    // The director's own words pass the switch, though it closes right behind them.
    let words = answer_to(&address, "host99", 0);
    assert!(words.contains("the director knows no host99"), "{words}");
    lab.acceptor = None;
    let words = answer_to(&address, "host1", 0);
    assert!(
        words.contains("edge switch switch1: director cannot be reached: unix:"),
        "{words}"
    );
    assert_eq!(switch.links(), 0);
    let host = Host::new(1, &[address]);
    lab.start_director();
    host.wait_up();
}

#[test]
fn bytes_that_are_no_greeting_are_turned_away() {
    let lab = Lab::new(1, &[], "1G", LOOPBACK);
    let (switch, address) = lab.switch();
    let LinkAddress::Tcp(address) = address else {
        panic!("tcp")
    };
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: fabric.example\r\n\r\n"[..],
        &[0; 64],
    ] {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(bytes).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut words = Vec::new();
        stream.read_to_end(&mut words).unwrap();
        let words = String::from_utf8_lossy(&words);
        assert!(
            words.contains("not with the fabric's magic number"),
            "{words}"
        );
    }
    // After a greeting that is one.
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let hello = fabric_transport::session::hello(&session_config("host1"), 0, 0, true);
    stream.write_all(hello.frame()).unwrap();
    wait_until("it has a port", || switch.links() == 1);
    stream.write_all(&[7; 64]).unwrap();
    wait_until("it is closed", || switch.links() == 0);
}

#[test]
fn what_cannot_be_promised_is_refused_at_the_start() {
    let lab = Lab::new(2, &["50M", "50M"], "80M", LOOPBACK);
    let error = EdgeSwitch::start(&lab.config, "switch1").expect_err("100M of 76M");
    let EdgeSwitchError::Admission { host, source } = error else {
        panic!("{error}")
    };
    assert_eq!(host, "host2");
    assert_eq!(
        source.to_string(),
        "edge-switch switch1 ingress: 50 Mb/s asked, 26 Mb/s free of 76 Mb/s reservable; 24 Mb/s \
         missing"
    );
    let mut config = lab.config.clone();
    config.oversubscribe();
    EdgeSwitch::check(&config, "switch1").unwrap();
    assert!(matches!(
        EdgeSwitch::check(&config, "switch2"),
        Err(EdgeSwitchError::NoSuchSwitch { .. })
    ));
}

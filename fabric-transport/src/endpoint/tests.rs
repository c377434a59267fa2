//! Two endpoints with real threads, over every kind of link.

use super::*;
use crate::link::tests::accepted;
use crate::link::{
    LinkAddress, LinkOptions, LinkSender, Listener, SendQueue, Sent, connect, in_process_pair,
    tls_pair,
};
use qos::{BitRate, WaitCause};
use std::collections::VecDeque;
use std::sync::Condvar;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);
const NETWORK: VirtualLane = VirtualLane::Network;

#[derive(Default)]
struct Log {
    lanes: Option<LaneSet>,
    received: VecDeque<Vec<u8>>,
    writable: usize,
    down: Vec<u16>,
    batches: usize,
}

/// A client that keeps what arrives, and holds its credit if told to.
struct Recorder {
    hold: bool,
    log: Mutex<Log>,
    changed: Condvar,
}

impl Recorder {
    fn new(hold: bool) -> Arc<Self> {
        Arc::new(Self {
            hold,
            log: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    fn change<R>(&self, change: impl FnOnce(&mut Log) -> R) -> R {
        let result = change(&mut self.log.lock().unwrap());
        self.changed.notify_all();
        result
    }

    /// Waits until `ready` finds what it looks for.
    fn wait<R>(&self, mut ready: impl FnMut(&mut Log) -> Option<R>) -> R {
        let mut log = self.log.lock().unwrap();
        let mut result = ready(&mut log);
        while result.is_none() {
            let (next, timeout) = self.changed.wait_timeout(log, PATIENCE).unwrap();
            assert!(!timeout.timed_out(), "nothing happened for {PATIENCE:?}");
            log = next;
            result = ready(&mut log);
        }
        result.unwrap()
    }

    fn lanes(&self) -> LaneSet {
        self.wait(|log| log.lanes.clone())
    }
}

impl LaneClient for Recorder {
    fn up(&self, lanes: LaneSet) {
        self.change(|log| log.lanes = Some(lanes));
    }
    fn receive(&self, _: VirtualLane, payload: &[u8]) -> Receipt {
        self.change(|log| log.received.push_back(payload.to_vec()));
        if self.hold {
            Receipt::Held
        } else {
            Receipt::Consumed
        }
    }
    fn batch_end(&self) {
        self.change(|log| log.batches += 1);
    }
    fn writable(&self) {
        self.change(|log| log.writable += 1);
    }
    fn down(&self, epoch: u16) {
        self.change(|log| {
            log.lanes = None;
            log.down.push(epoch);
        });
    }
}

/// A director with a fixed set of clients; the host side is driven by the test.
struct TestDirectory {
    role: Role,
    devices: Vec<(DeviceId, DeviceGrant)>,
}

impl Directory for TestDirectory {
    fn active(&self, endpoint: &Arc<Endpoint>) {
        for (id, grant) in &self.devices {
            endpoint.attach(*id, 0, grant.clone()).unwrap();
        }
    }
    fn attach(&self, _: &str, device: DeviceId, _: u32) -> Result<DeviceGrant, String> {
        assert_eq!(self.role, Role::Director);
        let found = self.devices.iter().find(|(id, _)| *id == device);
        found
            .map(|(_, grant)| grant.clone())
            .ok_or_else(|| format!("{device} is not configured"))
    }
}

fn config(role: Role, rate: &str) -> EndpointConfig {
    let usual = SessionConfig::new("somebody", 1);
    let (path_silence_min, silence_max) = if on_rdma() {
        // An emulated guest with all its processors busy is silent for longer than a link may be.
        (PATIENCE, PATIENCE)
    } else {
        (usual.path_silence_min, usual.silence_max)
    };
    EndpointConfig {
        role,
        session: SessionConfig {
            resume_max: Duration::from_millis(300),
            path_silence_min,
            silence_max,
            ..usual
        },
        budget: LinkBudget::new("test link", rate.parse().unwrap()),
    }
}

struct Side {
    endpoint: Arc<Endpoint>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Side {
    fn drop(&mut self) {
        self.endpoint.close("test is over");
        self.thread.take().unwrap().join().unwrap();
    }
}

/// The link as number `path` of its session.
fn new_path(link: Link, path: u16, priority: u8) -> NewPath {
    NewPath {
        link,
        path,
        priority,
        handled: 0,
        first: None,
    }
}

fn side<C: LaneClient + 'static>(role: Role, link: Link, rate: &str, clients: &[Arc<C>]) -> Side {
    spread_side(role, link, rate, clients, 0)
}

fn spread_side<C: LaneClient + 'static>(
    role: Role,
    link: Link,
    rate: &str,
    clients: &[Arc<C>],
    features: u64,
) -> Side {
    let devices = clients.iter().zip(1..).map(|(client, number)| {
        let rate = DeviceRate::new(BitRate::from_bits_per_second(1_000_000), None).unwrap();
        (
            DeviceId(number),
            DeviceGrant {
                vm: None,
                rate,
                windows: [16, 16, 4096, 2048],
                client: client.clone(),
            },
        )
    });
    let directory = Arc::new(TestDirectory {
        role,
        devices: devices.collect(),
    });
    let established = Established {
        version: 2,
        epoch: 5,
        features,
        peer: "peer".into(),
        peer_instance: 1,
    };
    let first = new_path(link, 1, 0);
    let (endpoint, thread) =
        Endpoint::start(config(role, rate), established, first, directory, "test").unwrap();
    Side {
        endpoint,
        thread: Some(thread),
    }
}

fn tcp_pair() -> (Link, Link) {
    stream_pair(&"tcp:127.0.0.1:0".parse().unwrap())
}

/// Whether the suites run over RDMA, in a guest.
fn on_rdma() -> bool {
    cfg!(feature = "rdma") && std::env::var_os("ORIMONO_TEST_RDMA").is_some()
}

/// A pair of a link that may leave the machine: TCP, or RDMA where `ORIMONO_TEST_RDMA` says that
/// there is a device, so that all suites here run over either.
fn network_pair() -> (Link, Link) {
    let (near, far, _cut) = cut_pair();
    (near, far)
}

/// The same, with what cuts it.
fn cut_pair() -> (Link, Link, Box<dyn Fn() + Send>) {
    #[cfg(feature = "rdma")]
    if let Some((near, far, cut)) = crate::link::rdma_pair() {
        return (near, far, Box::new(move || cut.cut()));
    }
    let (near, far) = tcp_pair();
    let socket = near.receiver.poll_fd().try_clone_to_owned().unwrap();
    let socket = std::net::TcpStream::from(socket);
    let cut = move || socket.shutdown(std::net::Shutdown::Both).unwrap();
    (near, far, Box::new(cut))
}

fn stream_pair(address: &LinkAddress) -> (Link, Link) {
    let listener = Listener::bind(address, &LinkOptions::default()).unwrap();
    let near = connect(
        &listener.address().unwrap(),
        PATIENCE,
        &LinkOptions::default(),
    )
    .unwrap();
    (near, accepted(&listener))
}

fn frame(payload: &[u8]) -> Vec<(VirtualLane, FrameBuffer)> {
    vec![(NETWORK, FrameBuffer::from_payload(payload))]
}

/// Sends, waiting for room as a back end does.
fn send_all(client: &Recorder, lanes: &LaneSet, mut frames: Vec<(VirtualLane, FrameBuffer)>) {
    loop {
        let writable = client.change(|log| log.writable);
        match lanes.try_send(&mut frames) {
            Ok(()) => return,
            Err(SendRefused::Blocked) => client.wait(|log| (log.writable > writable).then_some(())),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn frames_cross_every_link_both_ways_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let unix = LinkAddress::Unix(directory.path().join("fabric"));
    let shared = LinkAddress::SharedMemory(directory.path().join("shared"));
    for (near, far) in [
        in_process_pair("test"),
        stream_pair(&unix),
        stream_pair(&shared),
        tcp_pair(),
        tls_pair(),
        network_pair(),
    ] {
        let clients = [Recorder::new(false), Recorder::new(false)];
        let [host_client, director_client] = &clients;
        let _director = side(Role::Director, far, "100G", &clients[1..]);
        let _host = side(Role::Host, near, "100G", &clients[..1]);
        for (from, to) in [
            (host_client, director_client),
            (director_client, host_client),
        ] {
            let lanes = from.lanes();
            for number in 0..2000_u32 {
                let mut payload = number.to_le_bytes().to_vec();
                payload.resize(4 + (number as usize * 37) % 60_000, 0xa5);
                send_all(from, &lanes, frame(&payload));
                if number % 50 == 49 {
                    for expected in number - 49..=number {
                        let received = to.wait(|log| log.received.pop_front());
                        assert_eq!(received[..4], expected.to_le_bytes());
                        assert_eq!(received.len(), 4 + (expected as usize * 37) % 60_000);
                    }
                }
            }
            assert!(to.change(|log| log.batches) > 0);
        }
    }
}

#[test]
fn stalled_device_stalls_only_itself() {
    let (near, far) = network_pair();
    let host = [Recorder::new(false), Recorder::new(false)];
    let director = [Recorder::new(true), Recorder::new(false)];
    let _director = side(Role::Director, far, "100G", &director);
    let host_side = side(Role::Host, near, "100G", &host);
    let stalled = host[0].lanes();
    let mut frames = frame(&[0; 1500]);
    while stalled.try_send(&mut frames) == Ok(()) {
        frames = frame(&[0; 1500]);
    }
    // The window of 2048 blocks holds 85 frames of 24 blocks; not one more may be underway.
    director[0].wait(|log| (log.received.len() == 85).then_some(()));
    let lanes = host[1].lanes();
    for _ in 0..5000 {
        send_all(&host[1], &lanes, frame(&[1; 1500]));
        director[1].wait(|log| log.received.pop_front());
    }
    assert_eq!(stalled.try_send(&mut frames), Err(SendRefused::Blocked));
    assert_eq!(director[0].change(|log| log.received.len()), 85);
    let lanes = director[0].lanes();
    for _ in 0..85 {
        lanes.release(NETWORK, 1500);
    }
    send_all(&host[0], &stalled, frames);
    stalled.flush();
    director[0].wait(|log| (log.received.len() == 86).then_some(()));
    // Whoever asks why is told: it was not the link.
    let decisions = host_side.endpoint.decisions();
    let credit = decisions
        .iter()
        .map(|decision| decision.waits.of(WaitCause::Credit));
    assert!(!credit.max().unwrap().is_zero());
}

/// Answers every frame from its callback.
#[derive(Default)]
struct Echo {
    lanes: Mutex<Option<LaneSet>>,
    batches: AtomicUsize,
}

impl LaneClient for Echo {
    fn up(&self, lanes: LaneSet) {
        *self.lanes.lock().unwrap() = Some(lanes);
    }
    fn receive(&self, lane: VirtualLane, payload: &[u8]) -> Receipt {
        let lanes = self.lanes.lock().unwrap();
        let mut frames = vec![(lane, FrameBuffer::from_payload(payload))];
        lanes.as_ref().unwrap().try_send(&mut frames).unwrap();
        Receipt::Consumed
    }
    fn batch_end(&self) {
        self.batches.fetch_add(1, Ordering::Relaxed);
    }
    fn writable(&self) {}
    fn down(&self, _: u16) {}
}

/// Counts what goes out at once.
#[derive(Debug)]
struct CountWrites {
    sender: Box<dyn LinkSender>,
    writes: Arc<AtomicUsize>,
}

impl LinkSender for CountWrites {
    fn send(&mut self, queue: &mut SendQueue) -> io::Result<Sent> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.sender.send(queue)
    }
}

#[test]
fn answers_to_a_batch_go_out_as_a_batch() {
    const FRAMES: usize = 60;
    let (near, mut far) = in_process_pair("test");
    let writes = Arc::<AtomicUsize>::default();
    far.sender = Box::new(CountWrites {
        sender: far.sender,
        writes: writes.clone(),
    });
    let (asking, answering) = (Recorder::new(false), Arc::<Echo>::default());
    let _director = side(
        Role::Director,
        far,
        "100G",
        std::slice::from_ref(&answering),
    );
    let _host = side(Role::Host, near, "100G", std::slice::from_ref(&asking));
    let lanes = asking.lanes();
    let before = writes.load(Ordering::Relaxed);
    for _ in 0..FRAMES {
        lanes.queue(&mut frame(&[0; 64])).unwrap();
    }
    lanes.flush();
    asking.wait(|log| (log.received.len() == FRAMES).then_some(()));
    let writes = writes.load(Ordering::Relaxed) - before;
    let batches = answering.batches.load(Ordering::Relaxed);
    // One for the answers, one for what the session has to say.
    assert!(
        writes <= 2 * batches + 2,
        "{writes} writes, {batches} batches"
    );
}

/// A queue holds 5 ms of the peak rate, within bounds; a changed rate changes it.
#[test]
fn queue_of_a_slow_device_is_short() {
    let cases = [
        (None, 256 * 1024),
        (Some("10G"), 256 * 1024),
        (Some("200M"), 125_000),
        (Some("10M"), 64 * 1024),
    ];
    for (pir, expected) in cases {
        let pir = pir.map(|pir| pir.parse().unwrap());
        let rate = DeviceRate::new(BitRate::ZERO, pir).unwrap();
        assert_eq!(queue_bytes_max(&rate), expected, "{pir:?}");
    }
    let (near, far) = in_process_pair("test");
    let clients = [Recorder::new(false), Recorder::new(false)];
    let _director = side(Role::Director, far, "100G", &clients[1..]);
    let host = side(Role::Host, near, "100G", &clients[..1]);
    let lanes = clients[0].lanes();
    let stopped = DeviceRate {
        pbs_bytes: 1,
        ..DeviceRate::new(BitRate::ZERO, Some("1k".parse().unwrap())).unwrap()
    };
    host.endpoint.set_rate(DeviceId(1), stopped).unwrap();
    let mut sent = 0;
    let mut frames = frame(&[0; 1000]);
    while lanes.try_send(&mut frames) == Ok(()) {
        frames = frame(&[0; 1000]);
        sent += 1;
    }
    // One left at once; the others fill 64 KiB, the last of them overshoots.
    assert_eq!(sent, 1 + (64 * 1024_u64).div_ceil(1032));
}

/// Frames are no operations: a limit of those is not the link's.
#[test]
fn limit_of_operations_does_not_limit_frames() {
    let (near, far) = in_process_pair("test");
    let clients = [Recorder::new(false), Recorder::new(false)];
    let _director = side(Role::Director, far, "100G", &clients[1..]);
    let host = side(Role::Host, near, "100G", &clients[..1]);
    let lanes = clients[0].lanes();
    let limited = DeviceRate {
        operations: Some(qos::OperationLimit {
            per_second: 1,
            burst: 1,
        }),
        ..DeviceRate::best_effort()
    };
    host.endpoint.set_rate(DeviceId(1), limited).unwrap();
    for _ in 0..100 {
        send_all(&clients[0], &lanes, frame(&[1; 100]));
    }
    clients[1].wait(|log| (log.received.len() == 100).then_some(()));
}

#[test]
fn long_payload_is_cut_on_a_slow_link_and_its_credit_comes_back() {
    let (near, far) = network_pair();
    let host = [Recorder::new(false), Recorder::new(false)];
    let director = [Recorder::new(false), Recorder::new(true)];
    let _director = side(Role::Director, far, "1G", &director);
    let _host = side(Role::Host, near, "1G", &host);
    let lanes = [host[0].lanes(), host[1].lanes()];
    // The window of 2048 blocks holds two of them, cut: credit that leaked would end this soon.
    let payload: Vec<u8> = (0..60_000_u32).map(|at| at.to_le_bytes()[0]).collect();
    for _ in 0..100 {
        send_all(&host[0], &lanes[0], frame(&payload));
        assert_eq!(director[0].wait(|log| log.received.pop_front()), payload);
        // The same for one that the receiver holds for a while.
        send_all(&host[1], &lanes[1], frame(&payload));
        assert_eq!(director[1].wait(|log| log.received.pop_front()), payload);
        director[1].lanes().release(NETWORK, payload.len());
    }
    // Between the pieces there is room for others.
    let frames = || lanes[0].statistics().unwrap().offered.frames;
    let before = frames();
    lanes[0].queue(&mut frame(&payload)).unwrap();
    assert_eq!(frames() - before, 15, "4 KiB keep 1 Gb/s busy for 33 us");
    lanes[0].flush();
    assert_eq!(director[0].wait(|log| log.received.pop_front()), payload);
}

#[test]
fn send_larger_than_a_frame_is_refused_whole() {
    let (near, far) = in_process_pair("test");
    let (host, director) = (Recorder::new(false), Recorder::new(false));
    let _director = side(Role::Director, far, "1G", std::slice::from_ref(&director));
    let _host = side(Role::Host, near, "1G", std::slice::from_ref(&host));
    let mut frames = vec![
        (NETWORK, FrameBuffer::from_payload(&[1])),
        (NETWORK, FrameBuffer::zeroed(PAYLOAD_BYTES_MAX + 1)),
    ];
    assert_eq!(
        host.lanes().try_send(&mut frames),
        Err(SendRefused::TooLarge)
    );
    assert_eq!(frames.len(), 2);
}

#[test]
fn end_of_a_side_is_told_to_the_clients_of_both() {
    let (near, far) = network_pair();
    let (host, director) = (Recorder::new(false), Recorder::new(false));
    let director_side = side(Role::Director, far, "1G", std::slice::from_ref(&director));
    let _host = side(Role::Host, near, "1G", std::slice::from_ref(&host));
    let (host_lanes, director_lanes) = (host.lanes(), director.lanes());
    assert_eq!((host_lanes.epoch(), director_lanes.epoch()), (5, 5));
    drop(director_side);
    assert_eq!(host.wait(|log| log.down.pop()), 5);
    assert_eq!(director.wait(|log| log.down.pop()), 5);
    assert_eq!(
        host_lanes.try_send(&mut frame(&[1])),
        Err(SendRefused::Down)
    );
    assert_eq!(
        director_lanes.try_send(&mut frame(&[1])),
        Err(SendRefused::Down)
    );
}

#[test]
fn p05_device_that_is_not_configured_is_refused_and_the_others_served() {
    let (near, far) = network_pair();
    let host = [Recorder::new(false), Recorder::new(false)];
    let director = Recorder::new(false);
    let _director = side(Role::Director, far, "1G", std::slice::from_ref(&director));
    let _host = side(Role::Host, near, "1G", &host);
    send_all(&host[0], &host[0].lanes(), frame(&[42]));
    assert_eq!(director.wait(|log| log.received.pop_front()), [42]);
    assert!(host[1].change(|log| log.lanes.is_none()));
}

#[test]
fn p10_flipped_bit_on_the_wire_ends_the_link_and_is_never_delivered() {
    use std::io::{Read, Write};
    // A proxy in the middle flips one bit far behind the greeting.
    let listener =
        Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap(), &LinkOptions::default()).unwrap();
    let LinkAddress::Tcp(address) = listener.address().unwrap() else {
        panic!("tcp")
    };
    let proxy =
        Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap(), &LinkOptions::default()).unwrap();
    let near = connect(&proxy.address().unwrap(), PATIENCE, &LinkOptions::default()).unwrap();
    let Listener::Tcp(proxy) = &proxy else {
        panic!("tcp")
    };
    let (mut inward, _) = proxy.accept().unwrap();
    inward.set_nonblocking(false).unwrap();
    let mut outward = std::net::TcpStream::connect(address).unwrap();
    let far = listener.accept().unwrap().expect("a connection waits");
    let (mut back_in, mut back_out) = (outward.try_clone().unwrap(), inward.try_clone().unwrap());
    let forward = std::thread::spawn(move || {
        let (mut passed, mut buffer) = (0, [0; 4096]);
        while let Ok(bytes @ 1..) = inward.read(&mut buffer) {
            if passed < 20_000 && passed + bytes >= 20_000 {
                buffer[bytes - 1] ^= 4;
            }
            passed += bytes;
            if outward.write_all(&buffer[..bytes]).is_err() {
                return;
            }
        }
    });
    let backward = std::thread::spawn(move || {
        drop(std::io::copy(&mut back_in, &mut back_out));
        drop(back_out.shutdown(std::net::Shutdown::Both));
    });
    let (host, director) = (Recorder::new(false), Recorder::new(false));
    let director_side = side(Role::Director, far, "1G", std::slice::from_ref(&director));
    let host_side = side(Role::Host, near, "1G", std::slice::from_ref(&host));
    let lanes = host.lanes();
    let mut sent = 0_u32;
    while lanes.try_send(&mut frame(&[0x5a; 1000])) == Ok(()) && sent < 60 {
        sent += 1;
    }
    director.wait(|log| log.down.pop());
    assert!(director.change(|log| log.received.iter().all(|payload| payload == &[0x5a; 1000])));
    drop((director_side, host_side));
    forward.join().unwrap();
    backward.join().unwrap();
}

/// F7 on real sockets: 100 cuts under load, one of two links at a time, each made again at once.
fn frames_survive_cuts(features: u64) {
    const CUTS: u16 = 100;
    let host = [Recorder::new(false), Recorder::new(false)];
    let director = [Recorder::new(false), Recorder::new(false)];
    let (near, far, cut) = cut_pair();
    let mut links = vec![cut];
    let director_side = spread_side(Role::Director, far, "100G", &director, features);
    let host_side = spread_side(Role::Host, near, "100G", &host, features);
    let mut path = 1;
    let mut add = |priority: u8| {
        let (near, far, cut) = cut_pair();
        path += 1;
        director_side
            .endpoint
            .add_path(new_path(far, path, priority));
        host_side.endpoint.add_path(new_path(near, path, priority));
        cut
    };
    links.push(add(1));
    let paths = |side: &Side, count: usize| {
        let deadline = std::time::Instant::now() + PATIENCE;
        while side.endpoint.paths().len() != count {
            let changes = side.endpoint.path_changes();
            assert!(
                std::time::Instant::now() < deadline,
                "no {count} links: {changes:?}"
            );
            std::thread::yield_now();
        }
    };
    let stop = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let streams = [(&host[0], &director[0]), (&director[1], &host[1])].map(|(from, to)| {
            let lanes = from.lanes();
            let sender = scope.spawn({
                let stop = &stop;
                move || {
                    let mut number = 0_u32;
                    while !stop.load(Ordering::SeqCst) {
                        let mut payload = number.to_le_bytes().to_vec();
                        payload.resize(4 + number as usize * 37 % 3000, 0);
                        send_all(from, &lanes, frame(&payload));
                        number += 1;
                    }
                    number
                }
            });
            (sender, to)
        });
        for cut in 0..CUTS {
            paths(&host_side, 2);
            paths(&director_side, 2);
            let before = director[0].change(|log| log.received.len());
            director[0].wait(|log| (log.received.len() > before + 20).then_some(()));
            let priority = usize::from(cut % 2);
            links[priority]();
            paths(&host_side, 1);
            paths(&director_side, 1);
            links[priority] = add(u8::try_from(priority).unwrap());
        }
        stop.store(true, Ordering::SeqCst);
        streams.map(|(sender, to)| (sender.join().unwrap(), to))
    });
    for (count, to) in sent {
        assert!(count > 0);
        to.wait(|log| (log.received.len() == count as usize).then_some(()));
        let received = to.change(|log| std::mem::take(&mut log.received));
        for (number, payload) in (0_u32..).zip(received) {
            assert_eq!(payload[..4], number.to_le_bytes());
        }
        assert!(to.change(|log| log.down.is_empty()));
    }
    assert!(!host_side.endpoint.path_changes().to_vec().is_empty());
}

#[test]
fn frames_survive_100_cuts_of_links_in_active_standby() {
    frames_survive_cuts(0);
}

#[test]
fn frames_survive_100_cuts_of_links_that_share_them() {
    frames_survive_cuts(crate::control::features::SPREAD);
}

#[test]
fn session_without_a_link_waits_for_one_and_loses_nothing() {
    let (host, director) = (Recorder::new(false), Recorder::new(false));
    let (near, far, cut) = cut_pair();
    let director_side = side(Role::Director, far, "1G", std::slice::from_ref(&director));
    let host_side = side(Role::Host, near, "1G", std::slice::from_ref(&host));
    let lanes = host.lanes();
    cut();
    for number in 0..10 {
        send_all(&host, &lanes, frame(&[number]));
    }
    let (near, far) = network_pair();
    director_side.endpoint.add_path(new_path(far, 2, 0));
    host_side.endpoint.add_path(new_path(near, 2, 0));
    for number in 0..10 {
        assert_eq!(director.wait(|log| log.received.pop_front()), [number]);
    }
    assert!(host.change(|log| log.down.is_empty()));
}

#[test]
fn operator_moves_the_frames_of_both_directions() {
    let (host, director) = (Recorder::new(false), Recorder::new(false));
    let (near, far) = network_pair();
    let director_side = side(Role::Director, far, "1G", std::slice::from_ref(&director));
    let host_side = side(Role::Host, near, "1G", std::slice::from_ref(&host));
    let (near, far) = network_pair();
    director_side.endpoint.add_path(new_path(far, 2, 1));
    host_side.endpoint.add_path(new_path(near, 2, 1));
    while host_side.endpoint.switchover(2).is_err() {
        std::thread::yield_now();
    }
    for side in [&host_side, &director_side] {
        let carries = || {
            let mut paths = side.endpoint.paths().into_iter();
            paths.any(|path| path.carries && path.path == 2)
        };
        while !carries() {
            std::thread::yield_now();
        }
    }
    send_all(&host, &host.lanes(), frame(&[1]));
    assert_eq!(director.wait(|log| log.received.pop_front()), [1]);
    let change = host_side.endpoint.path_changes().to_vec().pop().unwrap();
    assert_eq!(
        (change.from, change.to, change.cause),
        (1, 2, PathCause::Operator)
    );
}

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Mutex;

use fabric_transport::Directory;
use fabric_transport::endpoint::{Endpoint, EndpointConfig, NewPath};
use fabric_transport::link::{Link, in_process_pair};
use fabric_transport::session::{Established, Role};
use qos::{
    Decision, DeviceHandle, DeviceRate, HopSnapshot, LinkBudget, MonotonicTime, Scheduler, Trace,
    VmRate,
};

use super::*;
use crate::client::{Client, ClientError};

pub(crate) mod storage;

/// A port with one device, in virtual time.
pub(crate) struct Port {
    name: String,
    state: Mutex<(Scheduler<()>, DeviceHandle, MonotonicTime)>,
}

impl Port {
    pub(crate) fn new(name: &str) -> Self {
        let budget = LinkBudget::new(name, "1G".parse().unwrap());
        let mut scheduler = Scheduler::new(budget);
        let now = MonotonicTime::from_nanos(1_000_000);
        let promised = DeviceRate::new("800M".parse().unwrap(), None).unwrap();
        let together = VmRate {
            weight: 1,
            ..VmRate::default()
        };
        let vm = scheduler.add_vm(now, "vm1", together).unwrap();
        let device = scheduler.add_device_to(now, vm, promised).unwrap();
        Self {
            name: name.to_owned(),
            state: Mutex::new((scheduler, device, now)),
        }
    }

    pub(crate) fn begin_trace(&self) {
        let mut state = self.state.lock().unwrap();
        let now = state.2;
        state.0.start_trace(now);
    }

    /// Sends so many frames of 1500 bytes.
    pub(crate) fn work(&self, frames: usize) {
        let mut state = self.state.lock().unwrap();
        let (scheduler, device, now) = &mut *state;
        for _ in 0..frames {
            scheduler.enqueue(*now, *device, 0, 1500, ()).unwrap();
        }
        loop {
            while scheduler.dequeue(*now).is_some() {}
            match scheduler.next_wake(*now) {
                Some(next) => *now = next,
                None => break,
            }
        }
    }

    /// Lets time pass with a frame in the queue.
    fn stand(&self, millis: u64) {
        let mut state = self.state.lock().unwrap();
        let (scheduler, device, now) = &mut *state;
        if scheduler.queued_frames(*device) == Ok(0) {
            scheduler.enqueue(*now, *device, 0, 1500, ()).unwrap();
        }
        *now = now.saturating_add(Duration::from_millis(millis));
    }

    pub(crate) fn recording(&self) -> Recording {
        Recording {
            hop: self.snapshot().unwrap(),
            trace: self.take_trace().unwrap(),
        }
    }
}

impl Hop for Port {
    fn name(&self) -> &str {
        &self.name
    }

    fn snapshot(&self) -> Option<HopSnapshot> {
        let state = self.state.lock().unwrap();
        let devices = [("vn01.vm1".to_owned(), Some("vm1".to_owned()), state.1)];
        Some(HopSnapshot::new(&state.0, state.2, 1500, devices))
    }

    fn decisions(&self) -> Vec<Decision> {
        self.state.lock().unwrap().0.decisions().copied().collect()
    }

    fn start_trace(&self) -> bool {
        self.begin_trace();
        true
    }

    fn take_trace(&self) -> Option<Trace> {
        self.state.lock().unwrap().0.take_trace()
    }
}

/// A link whose host is not connected.
struct Nowhere;

impl Hop for Nowhere {
    fn name(&self) -> &str {
        "host2 downlink"
    }
    fn snapshot(&self) -> Option<HopSnapshot> {
        None
    }
    fn decisions(&self) -> Vec<Decision> {
        Vec::new()
    }
    fn start_trace(&self) -> bool {
        false
    }
    fn take_trace(&self) -> Option<Trace> {
        None
    }
}

struct Site {
    // Dropped before the folder.
    _monitor: Monitor,
    port: Arc<Port>,
    folder: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = Arc::new(Port::new("host1 uplink"));
        let hops: Vec<Arc<dyn Hop>> = vec![port.clone(), Arc::new(Nowhere)];
        let storage: Option<Arc<dyn Storage>> = Some(Arc::new(storage::Disks::default()));
        let watched = Watched {
            hops,
            storage,
            ..Watched::default()
        };
        let monitor = Monitor::start(watched, Some(&folder.path().join("control"))).unwrap();
        Self {
            _monitor: monitor,
            port,
            folder,
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("control")
    }

    fn connect(&self) -> BufReader<UnixStream> {
        let stream = UnixStream::connect(self.path()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        BufReader::new(stream)
    }

    fn client(&self) -> Client {
        Client::connect(&self.path()).unwrap()
    }
}

fn answer(client: &mut BufReader<UnixStream>) -> String {
    let mut line = String::new();
    client.read_line(&mut line).unwrap();
    line
}

fn refusal(error: ClientError) -> String {
    match error {
        ClientError::Refused(reason) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn state_decisions_and_trace_are_told() {
    let site = Site::new();
    let mut client = site.client();
    let state = client.state().unwrap();
    assert_eq!(state.len(), 2);
    assert_eq!(state[0].snapshot, site.port.snapshot());
    assert_eq!(
        (state[1].name.as_str(), &state[1].snapshot),
        ("host2 downlink", &None)
    );
    client.start_trace("host1 uplink").unwrap();
    site.port.work(50);
    let bytes = client.take_trace("host1 uplink").unwrap();
    let recording = Recording::from_bytes(&bytes).unwrap();
    assert_eq!(recording.trace.replay().unwrap().departures, 50);
    let last = client.decisions("host1 uplink").unwrap();
    assert_eq!(last.decisions, site.port.decisions());
    // The connection is still in step after the bytes.
    assert_eq!(client.state().unwrap().len(), 2);
}

#[test]
fn what_is_not_there_is_refused_with_a_next_step() {
    let site = Site::new();
    let mut client = site.client();
    let reason = refusal(client.start_trace("host3 uplink").unwrap_err());
    assert_eq!(
        reason,
        "no hop is named \"host3 uplink\"; ask for state to see them"
    );
    let reason = refusal(client.start_trace("host2 downlink").unwrap_err());
    assert!(reason.contains("no session now"), "{reason}");
    let reason = refusal(client.take_trace("host1 uplink").unwrap_err());
    assert!(reason.contains("record again"), "{reason}");
}

#[test]
fn trace_belongs_to_one_client_and_ends_with_it() {
    let site = Site::new();
    let mut first = site.client();
    let mut second = site.client();
    first.start_trace("host1 uplink").unwrap();
    let reason = refusal(second.start_trace("host1 uplink").unwrap_err());
    assert!(reason.contains("another client"), "{reason}");
    let reason = refusal(second.take_trace("host1 uplink").unwrap_err());
    assert!(reason.contains("no trace of yours"), "{reason}");
    // The same for one that came before.
    first.take_trace("host1 uplink").unwrap();
    second.start_trace("host1 uplink").unwrap();
    assert!(first.start_trace("host1 uplink").is_err());
    assert!(first.take_trace("host1 uplink").is_err());
    second.take_trace("host1 uplink").unwrap();
    first.start_trace("host1 uplink").unwrap();
    drop(first);
    // The monitor sees the end on its next round, at the latest.
    while let Err(error) = second.start_trace("host1 uplink") {
        assert!(refusal(error).contains("another client"));
    }
}

#[test]
fn line_that_is_no_request_is_refused_and_the_next_one_served() {
    let site = Site::new();
    let mut client = site.connect();
    for line in [
        "\n".as_bytes(),
        b"hello\n",
        b"{\"command\":\"format-disk\"}\n",
        b"{\"command\":\"state\",\"of\":1}\n",
        b"{\"command\":\"decisions\"}\n",
        b"\xff\xfe\0\n",
        b"[[[[[[[[[[[[[[[[\n",
    ] {
        client.get_mut().write_all(line).unwrap();
        let answer = answer(&mut client);
        assert!(
            answer.starts_with("{\"error\":\"this is no request: "),
            "{answer}"
        );
    }
    // Two at once are answered in order.
    let two = b"{\"command\":\"sla\"}\n{\"command\":\"state\"}\n";
    client.get_mut().write_all(two).unwrap();
    assert!(answer(&mut client).starts_with("{\"ok\":["));
    assert!(answer(&mut client).contains("\"host2 downlink\""));
}

#[test]
fn line_that_is_too_long_ends_the_connection_with_the_reason() {
    let site = Site::new();
    let mut client = site.connect();
    client
        .get_mut()
        .write_all(&[b' '; REQUEST_BYTES_MAX])
        .unwrap();
    assert_eq!(
        answer(&mut client),
        "{\"error\":\"a request has at most 1024 bytes\"}\n"
    );
    let mut rest = Vec::new();
    assert_eq!(client.read_to_end(&mut rest).unwrap(), 0);
}

#[test]
fn half_a_line_and_silence_is_given_up_and_nobody_else_waits() {
    let site = Site::new();
    let mut silent = site.connect();
    silent.get_mut().write_all(b"{\"command\":").unwrap();
    assert_eq!(site.client().state().unwrap().len(), 2);
    let mut rest = Vec::new();
    assert_eq!(silent.read_to_end(&mut rest).unwrap(), 0);
}

#[test]
fn client_that_takes_no_answer_is_given_up_and_nobody_else_waits() {
    let site = Site::new();
    site.port.work(qos::DECISIONS_MAX);
    let mut greedy = site.connect();
    // An answer is about a megabyte, far more than a socket holds.
    let request = b"{\"command\":\"decisions\",\"hop\":\"host1 uplink\"}\n";
    greedy.get_mut().write_all(request).unwrap();
    assert_eq!(site.client().state().unwrap().len(), 2);
    // Once the next request cannot be written any more, the connection was closed.
    let mut rest = BufReader::new(greedy.get_ref().try_clone().unwrap());
    while greedy.get_mut().write_all(request).is_ok() {
        std::thread::yield_now();
    }
    let mut answer = Vec::new();
    // It ends in the middle of an answer; a reset is an end as well.
    drop(rest.read_to_end(&mut answer));
    assert!(answer.last() != Some(&b'\n'));
}

#[test]
fn one_client_too_many_is_told_so() {
    let site = Site::new();
    let mut clients: Vec<_> = (0..CLIENTS_MAX).map(|_| site.client()).collect();
    for client in &mut clients {
        client.state().unwrap();
    }
    let reason = refusal(site.client().state().unwrap_err());
    assert_eq!(reason, "8 clients are served already; try again later");
    drop(clients.pop());
    while let Err(error) = site.client().state() {
        drop(error);
    }
}

#[test]
fn socket_is_private_replaces_a_stale_one_and_goes_with_the_monitor() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    drop(UnixListener::bind(&path).unwrap());
    let monitor = Monitor::start(Watched::default(), Some(&path)).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let second = Monitor::start(Watched::default(), Some(&path)).unwrap_err();
    assert!(
        second.to_string().contains("another process listens on"),
        "{second}"
    );
    assert!(Client::connect(&path).unwrap().state().unwrap().is_empty());
    drop(monitor);
    assert!(!path.exists());
    std::fs::write(&path, "precious").unwrap();
    let refused = Monitor::start(Watched::default(), Some(&path)).unwrap_err();
    assert!(refused.to_string().contains("is not a socket"), "{refused}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn device_that_stands_raises_the_alarm() {
    let site = Site::new();
    let mut client = site.client();
    site.port.stand(1);
    // Its clock stands unless it is moved: each look at it makes another interval.
    let report = loop {
        site.port.stand(100);
        let sla = client.sla().unwrap();
        if let Some(device) = sla.first().filter(|device| device.report.alarmed) {
            break device.clone();
        }
    };
    assert_eq!(
        (report.hop.as_str(), report.device.as_str()),
        ("host1 uplink", "vn01.vm1")
    );
    assert_eq!(report.promised.to_string(), "800M");
    assert!(report.report.violations >= 2);
    assert_eq!(report.report.achieved_min.unwrap(), qos::BitRate::ZERO);
}

/// A session over two links of this process, and nothing attached.
struct TwoLinks {
    host: Arc<Endpoint>,
    threads: Vec<JoinHandle<()>>,
}

impl TwoLinks {
    fn new() -> Self {
        struct Nobody;
        impl Directory for Nobody {}
        let (first, second) = (in_process_pair("first"), in_process_pair("second"));
        let start = |role, name: &str, peer: &str, links: [Link; 2]| {
            let config = EndpointConfig {
                role,
                session: fabric_transport::session::SessionConfig::new(name, 1),
                budget: LinkBudget::new("link", "1G".parse().unwrap()),
            };
            let established = Established::without_handshake(peer, 7);
            let [first, second] = links;
            let directory = Arc::new(Nobody);
            let first = NewPath::only(first);
            let (endpoint, thread) =
                Endpoint::start(config, established, first, directory, name).unwrap();
            endpoint.add_path(NewPath {
                path: 2,
                priority: 1,
                ..NewPath::only(second)
            });
            (endpoint, thread)
        };
        let (host, host_thread) = start(Role::Host, "host1", "d1", [first.0, second.0]);
        let (_, director_thread) = start(Role::Director, "d1", "host1", [first.1, second.1]);
        let threads = vec![host_thread, director_thread];
        Self { host, threads }
    }

    fn end(self) {
        self.host.close("test ends it");
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

#[test]
fn links_are_listed_and_chosen_and_a_port_has_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    let session = TwoLinks::new();
    let present = Arc::new(Mutex::new(Some(session.host.clone())));
    let seen = present.clone();
    let link = LinkHop::new("host1 uplink", HashMap::new(), move || {
        seen.lock().unwrap().clone()
    });
    let port = Arc::new(Port::new("port"));
    let hops: Vec<Arc<dyn Hop>> = vec![port, Arc::new(link)];
    let monitor = Monitor::start(hops, Some(&path)).unwrap();
    let mut client = Client::connect(&path).unwrap();
    let links = |client: &mut Client| {
        let paths = client.paths().unwrap();
        let [paths] = paths.as_slice() else {
            panic!("one session: {paths:?}")
        };
        let session = paths.session.clone().unwrap();
        let known = (session.peer.as_str(), session.epoch, session.version);
        assert_eq!((paths.hop.as_str(), known), ("host1 uplink", ("d1", 7, 2)));
        let links = session.links.iter();
        let links = links.map(|link| (link.link, link.priority, link.carries));
        links.collect::<Vec<_>>()
    };
    while links(&mut client).len() < 2 {}
    assert_eq!(links(&mut client), [(1, 0, true), (2, 1, false)]);
    let reason = refusal(client.switchover("host1 uplink", 3).unwrap_err());
    assert_eq!(reason, "host1 uplink has no link 3: there are 1, 2");
    let reason = refusal(client.switchover("port", 1).unwrap_err());
    assert!(
        reason.contains("\"port\": those with sessions are [\"host1 uplink\"]"),
        "{reason}"
    );
    assert_eq!(client.path_changes().unwrap(), []);
    client.switchover("host1 uplink", 2).unwrap();
    while links(&mut client) != [(1, 0, false), (2, 1, true)] {}
    // A change is written down when the peer has answered on the new link, a moment later.
    let change = loop {
        match client.path_changes().unwrap().as_slice() {
            [] => {}
            [change] => break change.clone(),
            changes => panic!("one change: {changes:?}"),
        }
    };
    assert_eq!(
        (change.hop.as_str(), change.from, change.to),
        ("host1 uplink", 1, 2)
    );
    assert_eq!(change.cause, "switched over by the operator");
    present.lock().unwrap().take();
    assert_eq!(client.paths().unwrap()[0].session, None);
    // What happened is still there, and by whom.
    let [kept] = &client.path_changes().unwrap()[..] else {
        panic!("one change")
    };
    assert_eq!(
        (kept.peer.as_str(), kept.from, kept.to, kept.cause.as_str()),
        ("d1", 1, 2, change.cause.as_str())
    );
    let reason = refusal(client.switchover("host1 uplink", 1).unwrap_err());
    assert!(reason.contains("no session now"), "{reason}");
    drop(monitor);
    session.end();
}

#[test]
fn a_standby_is_listed_behind_the_session_with_the_devices() {
    let (one, other) = (TwoLinks::new(), TwoLinks::new());
    let present = Mutex::new(Some(one.host.clone()));
    let present = Arc::new(present);
    let (seen, standby) = (present.clone(), other.host.clone());
    let link = LinkHop::new("host1 uplink", HashMap::new(), move || {
        seen.lock().unwrap().clone()
    });
    let link = link.with_standby(move || Some(standby.clone()));
    let sessions = link.paths();
    assert_eq!(sessions.len(), 2);
    assert!(sessions.iter().all(|it| it.session.is_some()));
    present.lock().unwrap().take();
    assert_eq!(link.paths().len(), 1);
    // Sessions without a change are not kept: one that is over is gone.
    assert_eq!(link.path_changes(), []);
    for session in [one, other] {
        session.end();
    }
}

//! A director's listening side: accepts links and starts a session on each.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::endpoint::{DeviceGrant, Directory, Endpoint, EndpointConfig};
use crate::frame::DeviceId;
use crate::link::{Link, LinkAddress, Listener, ring};
use crate::session::CloseReason;

/// Sessions of one address at most, greeted or not: a peer that opens more is turned away.
pub const SESSIONS_MAX: usize = 256;
/// Sessions of one address that have not greeted yet at most. One more ends the oldest of them, so
/// that silent connections cannot keep a host out.
pub const GREETINGS_MAX: usize = 32;

/// Makes the configuration of an endpoint once a link is there.
///
/// The budget of the director's direction may depend on the host, which is known only when it has
/// greeted: [`Directory::greeted`] may change it through [`Endpoint::set_budget`].
pub type ConfigFactory = Box<dyn Fn() -> EndpointConfig + Send>;

struct Shared {
    directory: Arc<dyn Directory>,
    sessions: Mutex<Sessions>,
}

#[derive(Default)]
struct Sessions {
    /// By the address of the endpoint; with the number of its arrival until it has greeted.
    endpoints: HashMap<usize, (Arc<Endpoint>, Option<u64>)>,
    arrivals: u64,
    stopped: bool,
}

/// A listening address; dropped, it closes all its sessions.
pub struct Acceptor {
    shared: Arc<Shared>,
    address: LinkAddress,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acceptor")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Acceptor {
    /// Listens on `address` and serves every session that arrives there.
    ///
    /// # Errors
    /// The address is in use or not ours, or the kernel has no threads left.
    pub fn start(
        address: &LinkAddress,
        config: ConfigFactory,
        directory: Arc<dyn Directory>,
    ) -> io::Result<Self> {
        let listener = Listener::bind(address)?;
        let address = listener.address()?;
        let stop =
            EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let stop = Arc::new(stop);
        let shared = Arc::new(Shared {
            directory,
            sessions: Mutex::default(),
        });
        let worker = (shared.clone(), stop.clone());
        let thread = std::thread::Builder::new()
            .name("acceptor".to_owned())
            .spawn(move || accept_loop(&listener, &config, &worker.0, &worker.1))?;
        Ok(Self {
            shared,
            address,
            stop,
            thread: Some(thread),
        })
    }

    /// Where it listens, with the port that the kernel chose for port 0.
    #[must_use]
    pub fn address(&self) -> &LinkAddress {
        &self.address
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        ring(&self.stop);
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by the thread itself.
            drop(thread.join());
        }
        let mut sessions = self.shared.lock();
        sessions.stopped = true;
        let endpoints: Vec<_> = sessions
            .endpoints
            .values()
            .map(|(endpoint, _)| endpoint.clone())
            .collect();
        drop(sessions);
        for endpoint in endpoints {
            endpoint.close("director stops");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn accept_loop(listener: &Listener, config: &ConfigFactory, shared: &Arc<Shared>, stop: &EventFd) {
    loop {
        let mut fds = [
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(stop.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => {
                tracing::error!(%error, "acceptor stopped");
                return;
            }
        }
        let [_, stopped] = fds;
        if stopped.revents().is_some_and(|events| !events.is_empty()) {
            return;
        }
        match listener.accept() {
            Ok(Some(link)) => admit(shared, config(), link),
            Ok(None) => {}
            Err(error) => {
                // Out of descriptors: the connection stays in the backlog. Waiting for the stop
                // signal with a time-out keeps the loop from spinning on it.
                tracing::warn!(%error, "connection cannot be accepted");
                let mut fds = [PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
                if let Err(error) = poll(&mut fds, PollTimeout::from(100_u8)) {
                    tracing::debug!(%error, "pause was cut short");
                }
            }
        }
    }
}

fn admit(shared: &Arc<Shared>, config: EndpointConfig, link: Link) {
    let mut sessions = shared.lock();
    if sessions.endpoints.len() >= SESSIONS_MAX {
        drop(sessions);
        tracing::warn!(link = link.peer, "session turned away: too many are open");
        return;
    }
    let silent = sessions
        .endpoints
        .values()
        .filter(|(_, arrival)| arrival.is_some());
    let oldest = (silent.clone().count() >= GREETINGS_MAX)
        .then(|| silent.min_by_key(|(_, arrival)| *arrival))
        .flatten()
        .map(|(endpoint, _)| endpoint.clone());
    let directory = Arc::new(AcceptorDirectory(shared.clone()));
    match Endpoint::start(config, link, directory, "fabric-director") {
        Ok((endpoint, _detached)) => {
            let arrival = sessions.arrivals;
            sessions.arrivals += 1;
            sessions
                .endpoints
                .insert(key(&endpoint), (endpoint, Some(arrival)));
        }
        Err(error) => tracing::warn!(%error, "session cannot be started"),
    }
    drop(sessions);
    if let Some(oldest) = oldest {
        oldest.close("too many connections have not greeted");
    }
}

fn key(endpoint: &Arc<Endpoint>) -> usize {
    Arc::as_ptr(endpoint).addr()
}

/// Keeps the acceptor's books and passes everything on.
struct AcceptorDirectory(Arc<Shared>);

impl Directory for AcceptorDirectory {
    fn greeted(&self, endpoint: &Arc<Endpoint>, host: &str, instance: u64) -> Result<u16, String> {
        let mut sessions = self.0.lock();
        if sessions.stopped {
            return Err("director stops".to_owned());
        }
        if let Some((_, arrival)) = sessions.endpoints.get_mut(&key(endpoint)) {
            *arrival = None;
        }
        drop(sessions);
        self.0.directory.greeted(endpoint, host, instance)
    }

    fn active(&self, endpoint: &Arc<Endpoint>, director: &str) {
        self.0.directory.active(endpoint, director);
    }

    fn attach(&self, host: &str, device: DeviceId, generation: u32) -> Result<DeviceGrant, String> {
        self.0.directory.attach(host, device, generation)
    }

    fn refused(&self, device: DeviceId, reason: &str) {
        self.0.directory.refused(device, reason);
    }

    fn closed(&self, endpoint: &Arc<Endpoint>, reason: &CloseReason) {
        self.0.lock().endpoints.remove(&key(endpoint));
        self.0.directory.closed(endpoint, reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::{LaneClient, LaneSet, Receipt, SendRefused};
    use crate::frame::{FrameBuffer, VirtualLane};
    use crate::session::{Role, SessionConfig};
    use crate::uplink::{Addresses, Uplink, UplinkConfig, UplinkDevice};
    use qos::{DeviceRate, LinkBudget};
    use std::io::Read;
    use std::sync::mpsc;
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(20);

    enum Seen {
        Up(LaneSet),
        Down,
        Frame(Vec<u8>),
    }

    struct Reporter(Mutex<mpsc::Sender<Seen>>);

    impl Reporter {
        fn new() -> (Arc<Self>, mpsc::Receiver<Seen>) {
            let (sender, receiver) = mpsc::channel();
            (Arc::new(Self(Mutex::new(sender))), receiver)
        }

        fn report(&self, seen: Seen) {
            // The test may have ended before the last report.
            drop(self.0.lock().unwrap().send(seen));
        }
    }

    impl LaneClient for Reporter {
        fn up(&self, lanes: LaneSet) {
            self.report(Seen::Up(lanes));
        }
        fn receive(&self, _: VirtualLane, payload: &[u8]) -> Receipt {
            self.report(Seen::Frame(payload.to_vec()));
            Receipt::Consumed
        }
        fn writable(&self) {}
        fn down(&self, _: u16) {
            self.report(Seen::Down);
        }
    }

    struct OneDevice(Arc<Reporter>);

    impl Directory for OneDevice {
        fn greeted(&self, _: &Arc<Endpoint>, _: &str, _: u64) -> Result<u16, String> {
            Ok(1)
        }
        fn active(&self, _: &Arc<Endpoint>, _: &str) {}
        fn attach(&self, _: &str, _: DeviceId, _: u32) -> Result<DeviceGrant, String> {
            Ok(grant(self.0.clone()))
        }
        fn refused(&self, _: DeviceId, _: &str) {}
        fn closed(&self, _: &Arc<Endpoint>, _: &CloseReason) {}
    }

    fn grant(client: Arc<Reporter>) -> DeviceGrant {
        DeviceGrant {
            vm: None,
            rate: DeviceRate::best_effort(),
            windows: [64; 4],
            client,
        }
    }

    fn config(role: Role) -> EndpointConfig {
        let session = SessionConfig {
            name: "somebody".into(),
            instance: 1,
            heartbeat: Duration::from_millis(100),
            silence_max: PATIENCE,
            greeting_max: PATIENCE,
        };
        EndpointConfig {
            role,
            session,
            budget: LinkBudget::new("test", "1G".parse().unwrap()),
        }
    }

    fn acceptor(address: &LinkAddress, client: &Arc<Reporter>) -> Acceptor {
        let directory = Arc::new(OneDevice(client.clone()));
        Acceptor::start(address, Box::new(|| config(Role::Director)), directory).unwrap()
    }

    #[test]
    fn uplink_attaches_its_devices_again_after_every_restart_of_the_director() {
        let directory = tempfile::tempdir().unwrap();
        let address = LinkAddress::Unix(directory.path().join("fabric"));
        let (host, host_seen) = Reporter::new();
        let (director, director_seen) = Reporter::new();
        let EndpointConfig {
            session, budget, ..
        } = config(Role::Host);
        let device = UplinkDevice {
            id: DeviceId(1),
            generation: 0,
            grant: grant(host),
        };
        let connector = Box::new(Addresses(vec![address.clone()]));
        let uplink =
            Uplink::start(UplinkConfig { session, budget }, connector, vec![device]).unwrap();
        assert!(!uplink.is_active());
        for round in 0..3 {
            let acceptor = acceptor(&address, &director);
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
        let acceptor = acceptor(&"tcp:127.0.0.1:0".parse().unwrap(), &Reporter::new().0);
        let LinkAddress::Tcp(address) = acceptor.address() else {
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
}

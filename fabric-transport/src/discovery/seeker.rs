//! The host's side: keeps asking, and makes links to the director that answers.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::message::{Kind, Message};
use super::search::Search;
use super::{Meeting, received};
use crate::link::{Link, LinkAddress, LinkOptions, connect, ring};
use crate::session::PATHS_MAX;
use crate::uplink::{CONNECT_MAX, Connector};

/// Who asks, and for whom.
#[derive(Debug, Clone)]
pub struct SeekerConfig {
    /// Where directors answer.
    pub meeting: Meeting,
    /// The host's name.
    pub host: String,
    /// Random for each start of its process, as in HELLO.
    pub instance: u64,
    /// The only director that is wanted; `None`: the first that answers.
    pub director: Option<String>,
    /// How its links are made, and to which addresses ([`LinkOptions::check_discovered`]).
    pub links: LinkOptions,
}

impl SeekerConfig {
    fn search(&self) -> Search {
        Search::new(self.director.clone(), self.links.clone(), Instant::now())
    }
}

#[derive(Debug)]
struct Shared {
    config: SeekerConfig,
    search: Mutex<Search>,
    stopped: AtomicBool,
    wake: EventFd,
}

/// Asks for directors until it is dropped. That none answers is a valid state.
#[derive(Debug)]
pub struct Seeker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Seeker {
    /// Starts asking. The interface need not be there yet.
    ///
    /// # Errors
    /// The kernel has no descriptors or threads left.
    pub fn start(config: SeekerConfig) -> io::Result<Self> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let shared = Arc::new(Shared {
            search: Mutex::new(config.search()),
            config,
            stopped: AtomicBool::new(false),
            wake: EventFd::from_value_and_flags(0, flags)?,
        });
        let worker = shared.clone();
        let thread = std::thread::Builder::new()
            .name("discovery".to_owned())
            .spawn(move || worker.run())?;
        let thread = Some(thread);
        Ok(Self { shared, thread })
    }

    /// Where the director listens that is known now, by priority, at most
    /// [`PATHS_MAX`]; empty while none has answered.
    #[must_use]
    pub fn addresses(&self) -> Vec<LinkAddress> {
        let search = self.shared.lock();
        let chosen = search.chosen().map(|found| found.addresses.clone());
        chosen.unwrap_or_default()
    }

    /// Says that a link to one of the addresses could not be made: it asks again soon.
    pub fn doubt(&self) {
        self.shared.lock().doubt(Instant::now());
        ring(&self.shared.wake);
    }
}

impl Drop for Seeker {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        ring(&self.shared.wake);
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by the thread itself.
            drop(thread.join());
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Search> {
        self.search.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        // Made for the first question, and anew after it failed: interfaces come and go.
        let mut socket: Option<UdpSocket> = None;
        let mut reported = false;
        let mut known = None;
        while !self.stopped.load(Ordering::Acquire) {
            let due = self.lock().handle_timeout(Instant::now(), random());
            if let Some(nonce) = due {
                match self.ask(socket.take(), nonce) {
                    Ok(asked) => (socket, reported) = (Some(asked), false),
                    Err(error) if !reported => {
                        let meeting = self.config.meeting;
                        tracing::warn!(%meeting, %error, "directors cannot be asked, trying on");
                        reported = true;
                    }
                    Err(_reported) => {}
                }
            }
            let (until, chosen) = {
                let search = self.lock();
                (search.poll_timeout(), search.chosen().cloned())
            };
            if known != chosen {
                if let Some(found) = &chosen {
                    let addresses: Vec<_> =
                        found.addresses.iter().map(ToString::to_string).collect();
                    let (director, addresses) = (&found.director, addresses.join(", "));
                    tracing::info!(director, addresses, "director found");
                }
                known = chosen;
            }
            let wait = until.saturating_duration_since(Instant::now());
            // Whole milliseconds, up: not early.
            let wait = u16::try_from(wait.as_millis() + 1).unwrap_or(u16::MAX);
            let mut fds = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
            let answers = socket.as_ref().map(AsFd::as_fd);
            fds.extend(answers.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            match poll(&mut fds, PollTimeout::from(wait)) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => {
                    tracing::error!(%error, "discovery failed, restart the host agent");
                    return;
                }
            }
            // Empty unless it rang; it only cuts the waiting short.
            if let Err(error) = self.wake.read()
                && error != nix::Error::EAGAIN
            {
                tracing::error!(%error, "eventfd cannot be read");
            }
            for (sender, message) in socket.iter().flat_map(|socket| received(socket).0) {
                let refusals = self.lock().handle_message(Instant::now(), &message);
                let director = message.name;
                for refusal in refusals {
                    tracing::warn!(%sender, director, %refusal, "offered address is refused");
                }
            }
        }
    }

    /// Sends a question; gives back the socket that answers come to.
    fn ask(&self, socket: Option<UdpSocket>, nonce: u64) -> io::Result<UdpSocket> {
        let config = &self.config;
        let socket = socket.map_or_else(|| config.meeting.ask(), Ok)?;
        let question = Message {
            kind: Kind::Discover,
            nonce,
            instance: config.instance,
            name: config.host.clone(),
            addresses: Vec::new(),
        };
        socket.send_to(&question.to_bytes(), config.meeting.group)?;
        Ok(socket)
    }
}

/// A number that nobody guesses who did not see it.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // The standard library keys each state from the system's random numbers.
    std::hash::RandomState::new().build_hasher().finish()
}

/// Makes the link of one priority to whatever director is known then.
#[derive(Debug)]
pub struct DiscoveredConnector {
    seeker: Arc<Seeker>,
    index: usize,
}

/// A connector for each link that a session may have; those that the director has no address for
/// are not tried.
#[must_use]
pub fn connectors(seeker: &Arc<Seeker>) -> Vec<Box<dyn Connector>> {
    let connector = |index| {
        let seeker = seeker.clone();
        Box::new(DiscoveredConnector { seeker, index }) as Box<dyn Connector>
    };
    (0..PATHS_MAX).map(connector).collect()
}

impl Connector for DiscoveredConnector {
    fn connect(&self) -> io::Result<Link> {
        let addresses = self.seeker.addresses();
        let Some(address) = addresses.get(self.index) else {
            let meeting = self.seeker.shared.config.meeting;
            let error = if self.seeker.shared.lock().has_refused() {
                format!("no director has offered an address on {meeting} yet that may be used")
            } else {
                format!("no director has answered on {meeting} yet")
            };
            return Err(io::Error::new(io::ErrorKind::NotFound, error));
        };
        let made = connect(address, CONNECT_MAX, &self.seeker.shared.config.links);
        if made.is_err() {
            self.seeker.doubt();
        }
        made.map_err(|error| io::Error::new(error.kind(), format!("{address}: {error}")))
    }

    fn is_there(&self) -> bool {
        // The first is always tried: that there is no director is worth a line in the log.
        self.index == 0 || self.index < self.seeker.addresses().len()
    }

    fn target(&self) -> String {
        let config = &self.seeker.shared.config;
        let director = config.director.as_deref().unwrap_or("any director");
        format!("{director} on {}", config.meeting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_cannot_be_made_makes_the_seeker_ask() {
        let meeting = Meeting {
            group: super::super::GROUP_DEFAULT,
            interface: None,
        };
        // Without its thread: what is due is seen, not done.
        let config = SeekerConfig {
            meeting,
            host: "host1".to_owned(),
            instance: 1,
            director: None,
            links: LinkOptions::default(),
        };
        let shared = Shared {
            search: Mutex::new(config.search()),
            config,
            stopped: AtomicBool::new(false),
            wake: EventFd::new().unwrap(),
        };
        let seeker = Arc::new(Seeker {
            shared: Arc::new(shared),
            thread: None,
        });
        // Nobody listens on a port that is only held.
        let held = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = format!("tcp:{}", held.local_addr().unwrap());
        let offer = Message {
            kind: Kind::Offer,
            nonce: 5,
            instance: 7,
            name: "d1".to_owned(),
            addresses: vec![address],
        };
        let mut search = seeker.shared.lock();
        let now = Instant::now();
        assert_eq!(search.handle_timeout(now, 5), Some(5));
        search.handle_message(now, &offer);
        assert!(search.poll_timeout() > now);
        drop(search);
        let links = connectors(&seeker);
        assert!(links.first().unwrap().connect().is_err());
        assert!(seeker.shared.lock().poll_timeout() <= Instant::now());
    }
}

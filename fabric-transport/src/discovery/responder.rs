//! The director's side: answers hosts that it knows, and nobody else.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::message::{Kind, Message};
use super::{Meeting, received};
use crate::link::{LinkAddress, ring};

/// Answers to one host in a second at most; a host asks once. With the hosts that a director knows
/// this bounds all that it sends, whoever asks in their names.
pub const ANSWERS_PER_SECOND: u32 = 4;
/// How long nothing is read after a full burst, so that a flood takes no more than a little of one
/// core: 6,400 datagrams a second. The kernel drops the others.
const FLOOD_PAUSE: u8 = 10;

/// What a director offers.
#[derive(Debug, Clone)]
pub struct ResponderConfig {
    /// Where hosts ask.
    pub meeting: Meeting,
    /// The director's name.
    pub director: String,
    /// Random for each start of its process, as in WELCOME.
    pub instance: u64,
    /// Where it listens, in the order of priority. Only `tcp:` and `tls:` are offered; in the place of an
    /// unspecified address (`0.0.0.0`) stands the one that the asking host can reach.
    pub addresses: Vec<LinkAddress>,
}

/// Says which hosts are known, by name. Called on the responder's thread; must not wait.
pub type Knows = Box<dyn Fn(&str) -> bool + Send>;

/// Answers until it is dropped.
#[derive(Debug)]
pub struct Responder {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Responder {
    /// Joins the group and answers hosts for which `knows` says true.
    ///
    /// # Errors
    /// The interface is not there, there is no route to the group, or the port is in use by a
    /// program that does not share it.
    pub fn start(config: ResponderConfig, knows: Knows) -> io::Result<Self> {
        let socket = config.meeting.hear()?;
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let stop = Arc::new(EventFd::from_value_and_flags(0, flags)?);
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("discovery".to_owned())
            .spawn(move || run(&config, &knows, &socket, &stopped))?;
        let thread = Some(thread);
        Ok(Self { stop, thread })
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        ring(&self.stop);
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by the thread itself.
            drop(thread.join());
        }
    }
}

fn run(config: &ResponderConfig, knows: &Knows, socket: &UdpSocket, stop: &EventFd) {
    let mut throttle = Throttle::default();
    let mut flooded = false;
    loop {
        let stop = PollFd::new(stop.as_fd(), PollFlags::POLLIN);
        let mut fds = vec![stop];
        let mut patience = PollTimeout::from(FLOOD_PAUSE);
        if !flooded {
            fds.push(PollFd::new(socket.as_fd(), PollFlags::POLLIN));
            patience = PollTimeout::NONE;
        }
        match poll(&mut fds, patience) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => {
                tracing::error!(%error, "discovery failed, restart the director to be found");
                return;
            }
        }
        let stopped = fds.first().and_then(PollFd::any);
        if stopped.unwrap_or_default() {
            return;
        }
        let (messages, more) = received(socket);
        flooded = more;
        for (sender, message) in messages {
            let asks = message.kind == Kind::Discover && knows(&message.name);
            if asks && throttle.may_answer(&message.name, Instant::now()) {
                answer(config, socket, sender, &message);
            }
        }
    }
}

fn answer(config: &ResponderConfig, socket: &UdpSocket, sender: SocketAddr, asked: &Message) {
    let sent = local_address(sender).and_then(|local| {
        let addresses = config.addresses.iter();
        let addresses = addresses.filter_map(|address| offered(address, local));
        let offer = Message {
            kind: Kind::Offer,
            nonce: asked.nonce,
            instance: config.instance,
            name: config.director.clone(),
            addresses: addresses.collect(),
        };
        socket.send_to(&offer.to_bytes(), sender)
    });
    match sent {
        Ok(_) => tracing::debug!(host = asked.name, %sender, "host was told of this director"),
        Err(error) => tracing::debug!(host = asked.name, %sender, %error, "host was not answered"),
    }
}

/// This machine's address as `peer` sees it.
fn local_address(peer: SocketAddr) -> io::Result<IpAddr> {
    // Nothing is sent: a datagram socket that connects only asks for the route.
    let socket = UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(peer)?;
    Ok(socket.local_addr()?.ip())
}

/// The text of an address for a host that reaches this machine at `local`.
fn offered(address: &LinkAddress, local: IpAddr) -> Option<String> {
    match address {
        LinkAddress::Tcp(socket) if socket.ip().is_unspecified() => {
            Some(LinkAddress::Tcp(SocketAddr::new(local, socket.port())).to_string())
        }
        LinkAddress::Tls(socket) if socket.ip().is_unspecified() => {
            Some(LinkAddress::Tls(SocketAddr::new(local, socket.port())).to_string())
        }
        LinkAddress::Tcp(_) | LinkAddress::Tls(_) => Some(address.to_string()),
        LinkAddress::Unix(_) | LinkAddress::SharedMemory(_) | LinkAddress::Rdma(_) => None,
    }
}

/// Counts answers by host; has no more entries than there are known hosts.
#[derive(Debug, Default)]
struct Throttle(HashMap<String, (Instant, u32)>);

impl Throttle {
    /// Whether one more answer is allowed now; then it is counted.
    fn may_answer(&mut self, host: &str, now: Instant) -> bool {
        let Some((since, answers)) = self.0.get_mut(host) else {
            self.0.insert(host.to_owned(), (now, 1));
            return true;
        };
        if now.saturating_duration_since(*since) >= Duration::from_secs(1) {
            (*since, *answers) = (now, 0);
        }
        *answers += 1;
        *answers <= ANSWERS_PER_SECOND
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_to_a_host_are_bounded_and_do_not_count_for_others() {
        let mut throttle = Throttle::default();
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut answered = |host: &str, millis| {
            let asked = (0..100).filter(|_| throttle.may_answer(host, at(millis)));
            asked.count()
        };
        assert_eq!(answered("host1", 0), 4);
        assert_eq!(answered("host1", 999), 0);
        assert_eq!(answered("host2", 999), 4);
        assert_eq!(answered("host1", 1000), 4);
    }

    #[test]
    fn offers_are_addresses_that_the_host_can_use() {
        let local = IpAddr::from([192, 0, 2, 7]);
        let text = |address: &str| offered(&address.parse().unwrap(), local);
        assert_eq!(text("unix:/run/director"), None);
        for same in ["tcp:127.0.0.1:7471", "tcp:[2001:db8::1]:7471"] {
            assert_eq!(text(same).as_deref(), Some(same));
        }
        for any in ["tcp:0.0.0.0:7471", "tcp:[::]:7471"] {
            assert_eq!(text(any).as_deref(), Some("tcp:192.0.2.7:7471"));
        }
    }
}

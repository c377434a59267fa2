//! How a host finds its director: it asks a multicast group, and directors that know it answer.
//!
//! ```text
//! Seeker (host)                                            Responder (director)
//!   ── DISCOVER: nonce, host name ───────> group ───────────>  is the host known?
//!   <─ OFFER: nonce, director name, addresses ── unicast ────  yes: answers; no: silent
//!   └─ DiscoveredConnector 0, 1, ...: the links of the host's session
//! ```
//!
//! An offer is a hint where to connect, from whoever saw the question. Who the director is, the
//! link's handshake settles.
//!
//! - [`message`]: the datagrams. Core.
//! - [`responder`] and [`seeker`]: the director's and the host's side, a thread each.

pub mod message;
pub mod responder;
mod search;
pub mod seeker;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt,
};
use std::os::fd::AsRawFd;

use self::message::{DATAGRAM_BYTES_MAX, Message};

/// The group of a fabric, unless its operator chooses another. The port is that of the group.
pub const GROUP_DEFAULT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 255, 77, 71), 7470);

/// Datagrams that are read before anything else is looked at.
const BURST: usize = 64;

/// Where hosts and directors meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meeting {
    /// A multicast group and its port.
    pub group: SocketAddrV4,
    /// The interface, by an address of it; `None`: the one that the kernel's routes choose.
    pub interface: Option<Ipv4Addr>,
}

impl fmt::Display for Meeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.group)?;
        match self.interface {
            Some(interface) => write!(f, " on {interface}"),
            None => Ok(()),
        }
    }
}

impl Meeting {
    fn local(&self) -> Ipv4Addr {
        self.interface.unwrap_or(Ipv4Addr::UNSPECIFIED)
    }

    /// A socket that hears the group, beside others of this machine.
    fn hear(&self) -> io::Result<UdpSocket> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let made = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
        setsockopt(&made, sockopt::ReuseAddr, &true)?;
        // Bound to the group: what is sent to an address of this machine does not arrive.
        bind(made.as_raw_fd(), &SockaddrIn::from(self.group))?;
        let made = UdpSocket::from(made);
        made.join_multicast_v4(self.group.ip(), &self.local())?;
        Ok(made)
    }

    /// A socket that asks the group: datagrams leave by the interface whose address it has.
    fn ask(&self) -> io::Result<UdpSocket> {
        let made = UdpSocket::bind((self.local(), 0))?;
        made.set_nonblocking(true)?;
        Ok(made)
    }
}

/// The datagrams that wait at `socket`, at most [`BURST`]; others than those of discovery are left
/// out. Says also whether there may be more.
fn received(socket: &UdpSocket) -> (Vec<(std::net::SocketAddr, Message)>, bool) {
    let mut messages = Vec::new();
    // One byte more: a longer datagram is seen to be too long.
    let mut bytes = [0; DATAGRAM_BYTES_MAX + 1];
    for _ in 0..BURST {
        match socket.recv_from(&mut bytes) {
            Ok((count, sender)) => match Message::parse(bytes.get(..count).unwrap_or_default()) {
                Ok(message) => messages.push((sender, message)),
                Err(error) => tracing::trace!(%sender, %error, "datagram is ignored"),
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return (messages, false),
            // An answer that an earlier one caused, like "port unreachable": the next may be good.
            Err(error) => tracing::trace!(%error, "a datagram was not delivered"),
        }
    }
    (messages, true)
}

#[cfg(test)]
pub(crate) mod tests;

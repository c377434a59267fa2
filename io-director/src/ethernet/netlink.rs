//! Network interfaces as the kernel knows them: asked, changed and watched through rtnetlink(7).
//!
//! Plain sockets without a runtime: the kernel answers a request before `send` returns, and what it
//! tells by itself wakes the thread of a port, which polls anyway.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkHeader, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::sys;

/// The group of messages about links (linux/rtnetlink.h).
const RTNLGRP_LINK: u32 = 1;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
/// Bytes of the header of every message.
const HEADER_BYTES: usize = 16;

/// What an interface is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    /// Its number in its namespace.
    pub(super) index: u32,
    /// It has carrier and is administratively up.
    pub(super) is_up: bool,
    /// Its MTU, bytes.
    pub(super) mtu: u32,
    /// Whether it is administratively up.
    pub(super) wanted_up: bool,
}

/// What is to become of an interface; `None`: it stays.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wanted {
    /// Administratively up.
    pub(super) up: Option<bool>,
    /// Its MTU, bytes.
    pub(super) mtu: Option<u32>,
    /// The number of the bridge that it is a port of.
    pub(super) bridge: Option<u32>,
}

/// Asks and changes the interfaces of one network namespace: that of the thread that opened it.
/// Locked from a request to its answer.
pub(super) struct Interfaces(Mutex<Socket>);

impl Interfaces {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(Mutex::new(socket)))
    }

    /// The interface called `name`.
    ///
    /// # Errors
    /// `ENODEV`: there is none.
    pub(super) fn find(&self, name: &str) -> io::Result<Found> {
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let answer = self.request(RouteNetlinkMessage::GetLink(link), NLM_F_REQUEST)?;
        let Some(RouteNetlinkMessage::NewLink(link)) = answer else {
            return Err(io::Error::other("unexpected answer of the kernel"));
        };
        let mtu = link
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::Mtu(mtu) => Some(*mtu),
                _ => None,
            });
        Ok(Found {
            index: link.header.index,
            is_up: is_up(link.header.flags),
            mtu: mtu.unwrap_or_default(),
            wanted_up: link.header.flags.contains(LinkFlags::Up),
        })
    }

    /// Changes the interface with this number.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn set(&self, index: u32, wanted: Wanted) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        if let Some(up) = wanted.up {
            link.header.change_mask = LinkFlags::Up;
            link.header.flags.set(LinkFlags::Up, up);
        }
        let mtu = wanted.mtu.map(LinkAttribute::Mtu);
        let bridge = wanted.bridge.map(LinkAttribute::Controller);
        link.attributes.extend(mtu.into_iter().chain(bridge));
        let flags = NLM_F_REQUEST | NLM_F_ACK;
        self.request(RouteNetlinkMessage::SetLink(link), flags)
            .map(drop)
    }

    /// Sends a request and takes its answer; `None`: it was acknowledged.
    fn request(
        &self,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Option<RouteNetlinkMessage>> {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        socket.send(&bytes, 0)?;
        let (answer, _kernel) = socket.recv_from_full()?;
        drop(socket);
        let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer);
        match answer.map_err(io::Error::other)?.payload {
            NetlinkPayload::InnerMessage(answer) => Ok(Some(answer)),
            NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
            _ => Ok(None),
        }
    }
}

/// Whether frames can pass an interface with these flags.
fn is_up(flags: LinkFlags) -> bool {
    flags.contains(LinkFlags::Up | LinkFlags::LowerUp)
}

/// What became of an interface that is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// It is up and has carrier, or is not.
    Up(bool),
    /// It is not in the namespace any more.
    Gone,
    /// Messages were lost: ask.
    Lost,
}

/// Hears of the interfaces of one network namespace: that of the thread that opened it.
pub(super) struct Watch(Socket);

impl Watch {
    /// Hears of everything that happens from now on.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.add_membership(RTNLGRP_LINK)?;
        socket.set_non_blocking(true)?;
        Ok(Self(socket))
    }

    /// The newest of the interface with this number, if there is any; never waits.
    ///
    /// # Errors
    /// The socket is of no use.
    pub(super) fn news(&self, index: u32) -> io::Result<Option<News>> {
        let mut newest = None;
        loop {
            match self.0.recv_from_full() {
                Ok((bytes, _kernel)) => newest = newest_of(&bytes, index).or(newest),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(newest),
                    Some(libc::ENOBUFS) => newest = Some(News::Lost),
                    Some(libc::EINTR) => {}
                    _ => return Err(error),
                },
            }
        }
    }
}

/// Of a datagram of the kernel, which holds one message or more. Attributes are not read: those of
/// a newer kernel may be others.
fn newest_of(mut bytes: &[u8], index: u32) -> Option<News> {
    let mut newest = None;
    while let Ok(message) = NetlinkBuffer::new_checked(bytes) {
        let header = LinkHeader::parse(message.payload());
        // Bridges tell of their ports with a family of their own.
        let header = header.ok().filter(|header| {
            header.index == index && header.interface_family == AddressFamily::Unspec
        });
        match (message.message_type(), header) {
            (RTM_NEWLINK, Some(header)) => newest = Some(News::Up(is_up(header.flags))),
            (RTM_DELLINK, Some(_)) => newest = Some(News::Gone),
            _ => {}
        }
        let length = usize::try_from(message.length()).unwrap_or(usize::MAX);
        let aligned = length.max(HEADER_BYTES).next_multiple_of(4);
        match bytes.get(aligned..) {
            Some(rest) if !rest.is_empty() => bytes = rest,
            _ => break,
        }
    }
    newest
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        sys::socket_fd(&self.0)
    }
}

/// Runs `work` on a thread in the network namespace called `name`; sockets that it opens stay there.
///
/// # Errors
/// There is no such namespace, or it may not be entered.
pub(super) fn in_namespace<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let namespace = std::fs::File::open(format!("/run/netns/{name}"))?;
    let inside = || {
        nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    };
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name(format!("netns {name}"));
        let thread = builder.spawn_scoped(scope, inside)?;
        let panicked = |_panic| io::Error::other("the thread in the namespace has failed");
        thread.join().map_err(panicked)?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message of this type about an interface, cut as the kernel would not.
    #[expect(clippy::host_endian_bytes, reason = "the kernel writes them so")]
    fn message(kind: u16, family: u8, index: u32, flags: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(32_u32.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend([family, 0, 1, 0]);
        bytes.extend(index.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes
    }

    #[test]
    fn the_newest_message_about_the_interface_counts() {
        const UP: u32 = 0x1_0001;
        let up = message(RTM_NEWLINK, 0, 7, UP);
        let down = message(RTM_NEWLINK, 0, 7, 1);
        let other = message(RTM_NEWLINK, 0, 8, UP);
        let gone = message(RTM_DELLINK, 0, 7, 0);
        let of_bridge = message(RTM_DELLINK, 7, 7, UP);
        for (messages, news) in [
            (vec![&up], Some(News::Up(true))),
            (vec![&up, &down], Some(News::Up(false))),
            (vec![&down, &other, &of_bridge], Some(News::Up(false))),
            (vec![&up, &gone], Some(News::Gone)),
            (vec![&other], None),
            (vec![], None),
        ] {
            let bytes: Vec<u8> = messages.into_iter().flatten().copied().collect();
            assert_eq!(newest_of(&bytes, 7), news);
            // Cut anywhere it is no more than what is whole.
            for length in 0..bytes.len() {
                let _whole = newest_of(bytes.get(..length).unwrap(), 7);
            }
        }
    }
}

//! Where the proxy listens, or for a while does not.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use anyhow::{Context, Result};
use fabric_transport::link::LinkAddress;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, bind, connect,
    getsockname, setsockopt, socket, sockopt,
};

use crate::fabric::RawStream;

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

#[derive(Debug)]
pub(super) struct Door {
    pub(super) address: LinkAddress,
    /// Keeps the port ours while nobody listens on it.
    _port: Option<OwnedFd>,
    listener: Option<Listener>,
}

impl Door {
    /// Listens on the loopback address of the target's family, or on a Unix socket in `folder`.
    pub(super) fn open(target: &LinkAddress, folder: &Path) -> Result<Self> {
        let (address, port) = match target {
            LinkAddress::Tcp(target) => {
                let (address, port) = reserve(target).context("no port for the proxy")?;
                (LinkAddress::Tcp(address), Some(port))
            }
            LinkAddress::Unix(_) => (LinkAddress::Unix(folder.join("proxy")), None),
            other => return Err(no_stream(other)),
        };
        let mut door = Self {
            address,
            _port: port,
            listener: None,
        };
        door.reopen()?;
        Ok(door)
    }

    /// Listens, if it does not already.
    pub(super) fn reopen(&mut self) -> Result<()> {
        if self.listener.is_some() {
            return Ok(());
        }
        let listener = match &self.address {
            LinkAddress::Tcp(address) => {
                let listener = TcpListener::bind(address);
                let listener = listener.with_context(|| format!("cannot listen on {address}"))?;
                listener.set_nonblocking(true)?;
                Listener::Tcp(listener)
            }
            LinkAddress::Unix(path) => {
                // Left behind when it was shut, so that connecting is refused and not unknown.
                drop(std::fs::remove_file(path));
                let listener = UnixListener::bind(path);
                let listener =
                    listener.with_context(|| format!("cannot listen on {}", path.display()))?;
                listener.set_nonblocking(true)?;
                Listener::Unix(listener)
            }
            other => return Err(no_stream(other)),
        };
        self.listener = Some(listener);
        Ok(())
    }

    /// Refuses connections from now on, and those that wait.
    pub(super) fn shut(&mut self) {
        self.listener = None;
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(|listener| match listener {
            Listener::Tcp(listener) => listener.as_fd(),
            Listener::Unix(listener) => listener.as_fd(),
        })
    }

    pub(super) fn accept(&self) -> io::Result<Option<RawStream>> {
        let accepted = match &self.listener {
            None => return Ok(None),
            Some(Listener::Tcp(listener)) => listener.accept().and_then(|(stream, _)| {
                stream.set_nodelay(true)?;
                Ok(RawStream::Tcp(stream))
            }),
            Some(Listener::Unix(listener)) => {
                listener.accept().map(|(stream, _)| RawStream::Unix(stream))
            }
        };
        match accepted {
            Ok(stream) => {
                stream.set_nonblocking()?;
                Ok(Some(stream))
            }
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// A bound socket that does not listen: connecting there is refused, and another that shares the
/// port may listen beside it.
fn reserve(target: &SocketAddr) -> Result<(SocketAddr, OwnedFd)> {
    let ip = match target.ip() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    let wanted = SockaddrStorage::from(SocketAddr::new(ip, 0));
    let port = stream_socket(&wanted)?;
    setsockopt(&port, sockopt::ReuseAddr, &true)?;
    bind(port.as_raw_fd(), &wanted)?;
    let bound: SockaddrStorage = getsockname(port.as_raw_fd())?;
    let number = match (bound.as_sockaddr_in(), bound.as_sockaddr_in6()) {
        (Some(address), _) => address.port(),
        (_, Some(address)) => address.port(),
        _ => anyhow::bail!("the kernel names no port"),
    };
    Ok((SocketAddr::new(ip, number), port))
}

/// Begins to connect; the socket is written once it is connected, and read as broken if it fails.
pub(super) fn start_connect(target: &LinkAddress) -> Result<RawStream> {
    match target {
        LinkAddress::Tcp(target) => {
            let target = SockaddrStorage::from(*target);
            let stream = TcpStream::from(begin(&target)?);
            stream.set_nodelay(true)?;
            Ok(RawStream::Tcp(stream))
        }
        LinkAddress::Unix(path) => {
            let stream = begin(&UnixAddr::new(path)?)?;
            Ok(RawStream::Unix(UnixStream::from(stream)))
        }
        other => Err(no_stream(other)),
    }
}

fn no_stream(address: &LinkAddress) -> anyhow::Error {
    anyhow::anyhow!("a proxy stands between tcp: or unix: sockets, not at {address}")
}

fn begin(target: &dyn SockaddrLike) -> Result<OwnedFd> {
    let stream = stream_socket(target)?;
    match connect(stream.as_raw_fd(), target) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(stream),
        Err(error) => Err(error.into()),
    }
}

fn stream_socket(address: &dyn SockaddrLike) -> Result<OwnedFd> {
    let family = address.family().unwrap_or(AddressFamily::Unspec);
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    Ok(socket(family, SockType::Stream, flags, None)?)
}

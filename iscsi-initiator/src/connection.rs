//! A session on a TCP connection that never blocks.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};

use crate::session::{Session, SessionError};

/// Why there is no session. Each line ends with the next step.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// No TCP connection.
    #[error("cannot connect to iSCSI portal {portal}; is the target running, and its port open?")]
    Connect {
        /// The portal.
        portal: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection broke.
    #[error("lost the connection to iSCSI portal {portal}; look at the network and the target")]
    Lost {
        /// The portal.
        portal: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The session failed.
    #[error("iSCSI session with {portal} failed")]
    Session {
        /// The portal.
        portal: SocketAddr,
        /// Why.
        #[source]
        source: SessionError,
    },
    /// The target ended the session in order, as it had said.
    #[error("iSCSI target at {portal} wanted the session to end; it is made anew")]
    LoggedOut {
        /// The portal.
        portal: SocketAddr,
    },
    /// No random numbers, threads or descriptors.
    #[error("cannot set up an iSCSI session; look at the limits of this process")]
    SetUp(#[source] io::Error),
    /// Discovery took too long.
    #[error("iSCSI portal {portal} did not name its targets in time; is it overloaded?")]
    Slow {
        /// The portal.
        portal: SocketAddr,
    },
}

/// Connects within `patience`; `None` when `wake` became readable first.
pub(crate) fn connect_to(
    portal: SocketAddr,
    patience: Duration,
    wake: Option<BorrowedFd<'_>>,
) -> io::Result<Option<TcpStream>> {
    let family = if portal.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(family, SockType::Stream, flags, None)?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(portal)) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let stream = TcpStream::from(socket);
    let start = Instant::now();
    loop {
        let left = patience.saturating_sub(start.elapsed());
        let ready = wait(stream.as_fd(), PollFlags::POLLOUT, wake, left)?;
        if ready.woken {
            return Ok(None);
        }
        if ready.stream {
            break;
        }
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    stream.set_nodelay(true)?;
    Ok(Some(stream))
}

/// What a wait ended with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ready {
    pub(crate) stream: bool,
    pub(crate) woken: bool,
}

/// Waits for the stream or `wake`; may be early.
pub(crate) fn wait(
    stream: BorrowedFd<'_>,
    interest: PollFlags,
    wake: Option<BorrowedFd<'_>>,
    patience: Duration,
) -> io::Result<Ready> {
    // Rounded up, so that nobody asks again and again within the last millisecond.
    let timeout = PollTimeout::try_from(patience.saturating_add(Duration::from_millis(1)));
    let timeout = timeout.unwrap_or(PollTimeout::MAX);
    let mut descriptors = [
        PollFd::new(stream, interest),
        PollFd::new(wake.unwrap_or(stream), PollFlags::POLLIN),
    ];
    let count = if wake.is_some() { 2 } else { 1 };
    let (watched, _) = descriptors.split_at_mut(count);
    match nix::poll::poll(watched, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    let any = |descriptor: &PollFd<'_>| descriptor.any().unwrap_or(true);
    let [stream, waker] = &descriptors;
    Ok(Ready {
        stream: any(stream),
        woken: wake.is_some() && any(waker),
    })
}

/// A session, its socket, and bytes that wait for the socket.
#[derive(Debug)]
pub(crate) struct Connection<C, M> {
    pub(crate) session: Session<C, M>,
    pub(crate) stream: std::sync::Arc<TcpStream>,
    out: Vec<u8>,
    sent: usize,
}

impl<C, M> Connection<C, M> {
    pub(crate) fn new(session: Session<C, M>, stream: std::sync::Arc<TcpStream>) -> Self {
        Self {
            session,
            stream,
            out: Vec::new(),
            sent: 0,
        }
    }

    /// Sends what can be sent now.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        loop {
            if !self.has_more() {
                self.out.clear();
                self.sent = 0;
                self.session.poll_transmit(&mut self.out);
            }
            let rest = self.out.get(self.sent..).unwrap_or_default();
            if rest.is_empty() {
                return Ok(());
            }
            match self.stream.as_ref().write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => self.sent += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether bytes wait for the socket.
    pub(crate) const fn has_more(&self) -> bool {
        self.sent < self.out.len()
    }

    /// What to wait for.
    pub(crate) fn interest(&self) -> PollFlags {
        if self.has_more() {
            PollFlags::POLLIN | PollFlags::POLLOUT
        } else {
            PollFlags::POLLIN
        }
    }
}

/// Bytes that came and are no whole PDU yet. As long as twice the longest PDU.
#[derive(Debug)]
pub(crate) struct Inbox {
    buffer: Vec<u8>,
    filled: usize,
}

impl Inbox {
    pub(crate) fn new(pdu_bytes_max: usize) -> Self {
        Self {
            buffer: vec![0; 2 * pdu_bytes_max],
            filled: 0,
        }
    }

    /// Reads once.
    pub(crate) fn fill(&mut self, mut stream: &TcpStream) -> io::Result<()> {
        let room = self.buffer.get_mut(self.filled..).unwrap_or_default();
        match stream.read(room) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(bytes) => {
                self.filled += bytes;
                Ok(())
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Gives the session what is there and keeps what it does not take yet.
    pub(crate) fn feed<C, M>(
        &mut self,
        session: &mut Session<C, M>,
        now: Duration,
    ) -> Result<(), SessionError> {
        let input = self.buffer.get(..self.filled).unwrap_or_default();
        let used = session.handle_input(now, input)?;
        self.buffer.copy_within(used..self.filled, 0);
        self.filled -= used;
        Ok(())
    }
}

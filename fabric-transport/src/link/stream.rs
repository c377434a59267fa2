//! Links over streams of bytes: TCP and Unix sockets, and where all kinds are connected.

use std::io::{self, IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use super::{
    BATCH_FRAMES_MAX, Filled, Link, LinkAddress, LinkReceiver, LinkSender, SendQueue, Sent,
    shared_memory,
};
use crate::frame::{FrameError, FrameHeader, HEADER_BYTES, PAYLOAD_BYTES_MAX};

/// Bytes that one `fill` reads at most; room for several frames of any length.
const RECEIVE_BYTES: usize = 512 * 1024;
const _: () = assert!(RECEIVE_BYTES >= 2 * (HEADER_BYTES + PAYLOAD_BYTES_MAX));

/// Connects to a director; waits at most `patience`.
///
/// # Errors
/// Nobody listens there, or does not answer in time.
pub fn connect(address: &LinkAddress, patience: Duration) -> io::Result<Link> {
    match address {
        LinkAddress::Tcp(socket) => tcp_link(
            TcpStream::connect_timeout(socket, patience)?,
            address.to_string(),
        ),
        LinkAddress::Unix(path) => unix_link(UnixStream::connect(path)?, address.to_string()),
        LinkAddress::SharedMemory(path) => {
            shared_memory::connected(UnixStream::connect(path)?, path)
        }
    }
}

/// A director's listening socket.
#[derive(Debug)]
pub enum Listener {
    /// On TCP.
    Tcp(TcpListener),
    /// On a Unix socket; its file is removed on drop.
    Unix(UnixListener, UnixSocketFile),
    /// On the Unix socket where the sides of shared-memory links meet.
    SharedMemory(UnixListener, UnixSocketFile),
}

/// The file of a Unix socket, removed when dropped.
#[derive(Debug)]
pub struct UnixSocketFile(std::path::PathBuf);

impl Drop for UnixSocketFile {
    fn drop(&mut self) {
        // Somebody may have removed it before; then there is nothing to clean up.
        drop(std::fs::remove_file(&self.0));
    }
}

impl Listener {
    /// Listens on `address`. The file of a dead Unix listener is replaced.
    ///
    /// # Errors
    /// The address is in use or not ours.
    pub fn bind(address: &LinkAddress) -> io::Result<Self> {
        let listener = match address {
            LinkAddress::Tcp(socket) => {
                let listener = TcpListener::bind(socket)?;
                listener.set_nonblocking(true)?;
                Self::Tcp(listener)
            }
            LinkAddress::Unix(path) => {
                let (listener, file) = bind_unix(path)?;
                Self::Unix(listener, file)
            }
            LinkAddress::SharedMemory(path) => {
                let (listener, file) = bind_unix(path)?;
                Self::SharedMemory(listener, file)
            }
        };
        Ok(listener)
    }

    /// The address in use, with the port that the kernel chose for port 0.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn address(&self) -> io::Result<LinkAddress> {
        Ok(match self {
            Self::Tcp(listener) => LinkAddress::Tcp(listener.local_addr()?),
            Self::Unix(_, file) => LinkAddress::Unix(file.0.clone()),
            Self::SharedMemory(_, file) => LinkAddress::SharedMemory(file.0.clone()),
        })
    }

    /// The next connection, if one waits.
    ///
    /// # Errors
    /// The kernel has no descriptors or memory left.
    pub fn accept(&self) -> io::Result<Option<Link>> {
        let link = match self {
            Self::Tcp(listener) => listener
                .accept()
                .and_then(|(stream, peer)| tcp_link(stream, format!("tcp:{peer}"))),
            Self::Unix(listener, file) => listener
                .accept()
                .and_then(|(stream, _)| unix_link(stream, format!("unix:{}", file.0.display()))),
            Self::SharedMemory(listener, file) => listener
                .accept()
                .and_then(|(stream, _)| shared_memory::accepted(stream, &file.0)),
        };
        match link {
            Ok(link) => Ok(Some(link)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener, _) | Self::SharedMemory(listener, _) => listener.as_fd(),
        }
    }
}

fn bind_unix(path: &Path) -> io::Result<(UnixListener, UnixSocketFile)> {
    remove_stale(path)?;
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok((listener, UnixSocketFile(path.to_owned())))
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match UnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "somebody listens there already",
        )),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        Err(_) => Ok(()),
    }
}

fn tcp_link(stream: TcpStream, peer: String) -> io::Result<Link> {
    stream.set_nonblocking(true)?;
    // Every write is a batch already: waiting for more only adds delay.
    stream.set_nodelay(true)?;
    let sender = StreamSender::new(stream.try_clone()?);
    let receiver = StreamReceiver::new(stream);
    Ok(Link {
        sender: Box::new(sender),
        receiver: Box::new(receiver),
        checksummed: true,
        peer,
    })
}

fn unix_link(stream: UnixStream, peer: String) -> io::Result<Link> {
    stream.set_nonblocking(true)?;
    let sender = StreamSender::new(stream.try_clone()?);
    let receiver = StreamReceiver::new(stream);
    Ok(Link {
        sender: Box::new(sender),
        receiver: Box::new(receiver),
        checksummed: false,
        peer,
    })
}

/// A stream that a link receives from. Its reads do not block.
pub(super) trait Source: Read {
    /// As `read`, for a caller that looks again soon and need not be woken.
    fn read_awake(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read(buffer)
    }
}

impl Source for TcpStream {}
impl Source for UnixStream {}

#[derive(Debug)]
pub(super) struct StreamSender<S> {
    stream: S,
}

impl<S> StreamSender<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream }
    }
}

impl<S: Write + Send + std::fmt::Debug> LinkSender for StreamSender<S> {
    fn send(&mut self, queue: &mut SendQueue) -> io::Result<Sent> {
        while !queue.is_sent() {
            let mut slices = [IoSlice::new(&[]); BATCH_FRAMES_MAX];
            let count = queue.gather(&mut slices);
            let slices = slices.get(..count).unwrap_or_default();
            match self.stream.write_vectored(slices) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => queue.advance(bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Sent::Blocked);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Sent::All)
    }
}

#[derive(Debug)]
pub(super) struct StreamReceiver<S> {
    stream: S,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were read.
    filled: usize,
}

impl<S> StreamReceiver<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: vec![0; RECEIVE_BYTES],
            filled: 0,
        }
    }

    /// Bytes of the whole frames at the start of the buffer.
    fn whole_bytes(&self) -> usize {
        let mut whole = 0;
        let filled = self.buffer.get(..self.filled).unwrap_or_default();
        while let Some(rest) = filled.get(whole..)
            && let Ok(Some(bytes)) = FrameHeader::frame_bytes(rest)
            && bytes <= rest.len()
        {
            whole += bytes;
        }
        whole
    }
}

impl<S> StreamReceiver<S> {
    fn fill_with(
        &mut self,
        read: impl FnOnce(&mut S, &mut [u8]) -> io::Result<usize>,
    ) -> io::Result<Filled> {
        let consumed = self.whole_bytes();
        if consumed > 0 {
            self.buffer.copy_within(consumed..self.filled, 0);
            self.filled -= consumed;
        }
        let room = self.buffer.get_mut(self.filled..).unwrap_or_default();
        match read(&mut self.stream, room) {
            Ok(0) => Ok(Filled::End),
            Ok(bytes) => {
                self.filled += bytes;
                Ok(Filled::Some)
            }
            // There may be something the next time.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Filled::Some),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Filled::Blocked),
            Err(error) => Err(error),
        }
    }
}

impl<S: Source + AsFd + Send + std::fmt::Debug> LinkReceiver for StreamReceiver<S> {
    fn fill(&mut self) -> io::Result<Filled> {
        self.fill_with(S::read)
    }

    fn poll(&mut self) -> io::Result<Filled> {
        self.fill_with(S::read_awake)
    }

    fn frames(&self) -> Result<Vec<&[u8]>, FrameError> {
        let mut frames = Vec::new();
        let mut rest = self.buffer.get(..self.filled).unwrap_or_default();
        while let Some(bytes) = FrameHeader::frame_bytes(rest)?
            && let Some((frame, behind)) = rest.split_at_checked(bytes)
        {
            frames.push(frame);
            rest = behind;
        }
        Ok(frames)
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

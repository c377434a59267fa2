//! Links over streams of bytes: TCP and Unix sockets, and where all kinds are connected.

use std::io::{self, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::buffer::ReceiveBuffer;
#[cfg(feature = "rdma")]
use super::rdma::{self, RdmaListener};
use super::tls::{self, TlsConfig};
use super::{
    BATCH_FRAMES_MAX, Filled, Link, LinkAddress, LinkOptions, LinkReceiver, LinkRefused,
    LinkSender, SendQueue, Sent, shared_memory,
};
use crate::frame::FrameError;

/// Connects to a director; waits at most `patience`. A TLS handshake goes on by itself when the
/// link is used.
///
/// # Errors
/// Nobody listens there, or does not answer in time; [`LinkRefused`].
pub fn connect(
    address: &LinkAddress,
    patience: Duration,
    options: &LinkOptions,
) -> io::Result<Link> {
    options.check(address)?;
    let peer = address.to_string();
    match address {
        LinkAddress::Tcp(socket) => tcp_link(TcpStream::connect_timeout(socket, patience)?, peer),
        LinkAddress::Tls(socket) => {
            let config = tls_config(address, options)?;
            let stream = TcpStream::connect_timeout(socket, patience)?;
            tls::client(prepared(stream)?, config, options.director.as_deref(), peer)
        }
        LinkAddress::Unix(path) => unix_link(UnixStream::connect(path)?, peer),
        LinkAddress::SharedMemory(path) => {
            shared_memory::connected(UnixStream::connect(path)?, path)
        }
        #[cfg(feature = "rdma")]
        LinkAddress::Rdma(socket) => rdma::connect(*socket, patience),
        #[cfg(not(feature = "rdma"))]
        LinkAddress::Rdma(_) => Err(no_rdma(address)),
    }
}

fn tls_config<'a>(
    address: &LinkAddress,
    options: &'a LinkOptions,
) -> Result<&'a Arc<TlsConfig>, LinkRefused> {
    options
        .tls
        .as_ref()
        .ok_or_else(|| LinkRefused::NoCertificate {
            address: address.clone(),
        })
}

#[cfg(not(feature = "rdma"))]
fn no_rdma(address: &LinkAddress) -> io::Error {
    let address = address.clone();
    LinkRefused::NoRdma { address }.into()
}

/// A director's listening socket.
#[derive(Debug)]
pub enum Listener {
    /// On TCP.
    Tcp(TcpListener),
    /// On TCP, for TLS.
    Tls(TcpListener, Arc<TlsConfig>),
    /// On a Unix socket; its file is removed on drop.
    Unix(UnixListener, UnixSocketFile),
    /// On the Unix socket where the sides of shared-memory links meet.
    SharedMemory(UnixListener, UnixSocketFile),
    /// On RDMA devices.
    #[cfg(feature = "rdma")]
    Rdma(RdmaListener),
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
    /// The address is in use or not ours; [`LinkRefused`].
    pub fn bind(address: &LinkAddress, options: &LinkOptions) -> io::Result<Self> {
        options.check(address)?;
        let listener = match address {
            LinkAddress::Tcp(socket) => Self::Tcp(tcp_listener(socket)?),
            LinkAddress::Tls(socket) => {
                let config = tls_config(address, options)?.clone();
                Self::Tls(tcp_listener(socket)?, config)
            }
            LinkAddress::Unix(path) => {
                let (listener, file) = bind_unix(path)?;
                Self::Unix(listener, file)
            }
            LinkAddress::SharedMemory(path) => {
                let (listener, file) = bind_unix(path)?;
                Self::SharedMemory(listener, file)
            }
            #[cfg(feature = "rdma")]
            LinkAddress::Rdma(socket) => Self::Rdma(RdmaListener::bind(*socket)?),
            #[cfg(not(feature = "rdma"))]
            LinkAddress::Rdma(_) => return Err(no_rdma(address)),
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
            Self::Tls(listener, _) => LinkAddress::Tls(listener.local_addr()?),
            Self::Unix(_, file) => LinkAddress::Unix(file.0.clone()),
            Self::SharedMemory(_, file) => LinkAddress::SharedMemory(file.0.clone()),
            #[cfg(feature = "rdma")]
            Self::Rdma(listener) => LinkAddress::Rdma(listener.address()),
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
            Self::Tls(listener, config) => listener.accept().and_then(|(stream, peer)| {
                tls::server(prepared(stream)?, config, format!("tls:{peer}"))
            }),
            Self::Unix(listener, file) => listener
                .accept()
                .and_then(|(stream, _)| unix_link(stream, format!("unix:{}", file.0.display()))),
            Self::SharedMemory(listener, file) => listener
                .accept()
                .and_then(|(stream, _)| shared_memory::accepted(stream, &file.0)),
            #[cfg(feature = "rdma")]
            Self::Rdma(listener) => listener.accept(),
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
            Self::Tcp(listener) | Self::Tls(listener, _) => listener.as_fd(),
            Self::Unix(listener, _) | Self::SharedMemory(listener, _) => listener.as_fd(),
            #[cfg(feature = "rdma")]
            Self::Rdma(listener) => listener.as_fd(),
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

fn tcp_listener(socket: &SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(socket)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn prepared(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nonblocking(true)?;
    // Every write is a batch already: waiting for more only adds delay.
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn tcp_link(stream: TcpStream, peer: String) -> io::Result<Link> {
    let stream = prepared(stream)?;
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
    buffer: ReceiveBuffer,
}

impl<S> StreamReceiver<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: ReceiveBuffer::default(),
        }
    }
}

impl<S> StreamReceiver<S> {
    fn fill_with(
        &mut self,
        read: impl FnOnce(&mut S, &mut [u8]) -> io::Result<usize>,
    ) -> io::Result<Filled> {
        self.buffer.forget_frames();
        match read(&mut self.stream, self.buffer.room()) {
            Ok(0) => Ok(Filled::End),
            Ok(bytes) => {
                self.buffer.extend(bytes);
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
        self.buffer.frames()
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

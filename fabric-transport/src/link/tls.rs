//! Links over TLS 1.3 (RFC 8446), both ends with a certificate.
//!
//! Both halves share one `rustls` connection behind a mutex that is never held while anybody
//! waits: the socket does not block, and the receiver reads it without the mutex.
//!
//! ```text
//! queue ──encrypt──> rustls ──flush──> socket ──read──> wire ──decrypt──> frames
//!         (sender)           (either)          (receiver)      (receiver)
//! ```
//!
//! The receiver drives the handshake and flushes what it makes: alerts and key updates too. The
//! sender is blocked until the handshake is over. A peer that is silent in it, or slow, costs what
//! the messages may take at most (64 KiB in rustls) until the session gives it up.

mod config;
mod verify;

use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::pki_types::{DnsName, ServerName};
use rustls::{ClientConnection, Connection, ServerConnection};

use super::buffer::ReceiveBuffer;
use super::{BATCH_FRAMES_MAX, Filled, Link, LinkReceiver, LinkSender, SendQueue, Sent};
use crate::frame::FrameError;
pub use config::{TlsConfig, TlsError, TlsFiles};
use verify::{explained, name_of};

/// Encrypted bytes that wait for the socket at most.
const CIPHERTEXT_BYTES_MAX: usize = 512 * 1024;
/// Encrypted bytes that one `fill` reads at most.
const WIRE_BYTES: usize = 128 * 1024;

/// The end of a link that connected to a director on `stream`, which does not block.
pub(super) fn client(
    stream: TcpStream,
    config: &TlsConfig,
    director: Option<&str>,
    peer: String,
) -> io::Result<Link> {
    let name = match director {
        // Not one that could be an address: those are not compared.
        Some(name) => DnsName::try_from(name.to_owned())
            .map(ServerName::DnsName)
            .map_err(|_invalid| {
                let text =
                    format!("director name {name:?} can be in no certificate; choose another");
                io::Error::new(io::ErrorKind::InvalidInput, text)
            })?,
        None => ServerName::IpAddress(stream.peer_addr()?.ip().into()),
    };
    let connection =
        ClientConnection::new(config.current().client, name).map_err(|error| explained(&error))?;
    link(stream, connection.into(), peer)
}

/// The end of a link that a director accepted.
pub(super) fn server(stream: TcpStream, config: &TlsConfig, peer: String) -> io::Result<Link> {
    let connection =
        ServerConnection::new(config.current().server).map_err(|error| explained(&error))?;
    link(stream, connection.into(), peer)
}

fn link(stream: TcpStream, connection: Connection, peer: String) -> io::Result<Link> {
    let (sender, receiver) = halves(stream, connection)?;
    Ok(Link {
        sender: Box::new(sender),
        receiver: Box::new(receiver),
        // TLS finds every flipped bit.
        checksummed: false,
        peer,
    })
}

fn halves(stream: TcpStream, mut connection: Connection) -> io::Result<(TlsSender, TlsReceiver)> {
    connection.set_buffer_limit(Some(CIPHERTEXT_BYTES_MAX));
    let tls = Tls {
        stream: stream.try_clone()?,
        connection,
        deaf: false,
    };
    let shared = Arc::new(Mutex::new(tls));
    let receiver = TlsReceiver {
        shared: shared.clone(),
        stream,
        wire: Wire::default(),
        buffer: ReceiveBuffer::default(),
        last: Decrypted::All,
    };
    Ok((TlsSender(shared), receiver))
}

/// What both halves share.
#[derive(Debug)]
struct Tls {
    stream: TcpStream,
    connection: Connection,
    /// The peer reads no longer. Why, is for the receiver to find: an alert may wait there.
    deaf: bool,
}

fn lock(shared: &Mutex<Tls>) -> MutexGuard<'_, Tls> {
    // rustls is consistent between any two calls: a panic elsewhere changes nothing.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tls {
    /// Writes what waits in rustls.
    fn flush(&mut self) -> io::Result<Sent> {
        while self.connection.wants_write() {
            if self.deaf {
                return Ok(Sent::Blocked);
            }
            match self.connection.write_tls(&mut self.stream) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(Sent::Blocked),
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => self.deaf = true,
                    _ => return Err(error),
                },
            }
        }
        Ok(Sent::All)
    }

    /// Passes `wire` through rustls into `buffer`.
    fn decrypt(
        &mut self,
        wire: &mut Wire,
        buffer: &mut ReceiveBuffer,
    ) -> Result<Decrypted, rustls::Error> {
        loop {
            let room = buffer.room();
            if room.is_empty() {
                return Ok(Decrypted::NoRoom);
            }
            match self.connection.reader().read(room) {
                // rustls passes on nothing behind a closure.
                Ok(0) => return Ok(Decrypted::Closed),
                Ok(bytes) => {
                    buffer.extend(bytes);
                    continue;
                }
                // Nothing more that is decrypted.
                Err(_) => {}
            }
            if wire.bytes().is_empty() {
                return Ok(Decrypted::All);
            }
            let mut rest = wire.bytes();
            let before = rest.len();
            self.connection
                .read_tls(&mut rest)
                .map_err(|error| rustls::Error::General(error.to_string()))?;
            let taken = before - rest.len();
            wire.start += taken;
            self.connection.process_new_packets()?;
        }
    }
}

/// How a look at the received bytes ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decrypted {
    /// All of them are seen to; the socket may have more.
    All,
    /// The frames must be taken first.
    NoRoom,
    /// The peer closed the link behind them.
    Closed,
}

#[derive(Debug)]
struct TlsSender(Arc<Mutex<Tls>>);

impl LinkSender for TlsSender {
    fn send(&mut self, queue: &mut SendQueue) -> io::Result<Sent> {
        let mut tls = lock(&self.0);
        loop {
            if tls.flush()? == Sent::Blocked {
                return Ok(Sent::Blocked);
            }
            if queue.is_sent() {
                return Ok(Sent::All);
            }
            if tls.connection.is_handshaking() {
                return Ok(Sent::Blocked);
            }
            let mut slices = [IoSlice::new(&[]); BATCH_FRAMES_MAX];
            let count = queue.gather(&mut slices);
            let slices = slices.get(..count).unwrap_or_default();
            match tls.connection.writer().write_vectored(slices)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                bytes => queue.advance(bytes),
            }
        }
    }
}

impl Drop for TlsSender {
    fn drop(&mut self) {
        let mut tls = lock(&self.0);
        tls.connection.send_close_notify();
        // A socket that is full, or a peer that is gone, is closed without.
        drop(tls.flush());
    }
}

/// Encrypted bytes on their way from the socket to rustls, which would read 4 KiB a call.
#[derive(Debug)]
struct Wire {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Default for Wire {
    fn default() -> Self {
        Self {
            bytes: vec![0; WIRE_BYTES],
            start: 0,
            end: 0,
        }
    }
}

impl Wire {
    fn bytes(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }
}

#[derive(Debug)]
struct TlsReceiver {
    shared: Arc<Mutex<Tls>>,
    stream: TcpStream,
    wire: Wire,
    buffer: ReceiveBuffer,
    /// How the last look at `wire` ended.
    last: Decrypted,
}

impl TlsReceiver {
    /// Reads the socket. `None` if there is something.
    fn read(&mut self) -> io::Result<Option<Filled>> {
        let read = loop {
            match self.stream.read(&mut self.wire.bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        match read {
            Ok(0) => Err(self.cut(io::ErrorKind::UnexpectedEof)),
            Ok(bytes) => {
                (self.wire.start, self.wire.end) = (0, bytes);
                Ok(None)
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => {
                    lock(&self.shared).flush()?;
                    Ok(Some(Filled::Blocked))
                }
                kind @ io::ErrorKind::ConnectionReset => Err(self.cut(kind)),
                _ => Err(error),
            },
        }
    }

    /// TCP ended, and TLS did not.
    fn cut(&self, kind: io::ErrorKind) -> io::Error {
        let text = if lock(&self.shared).connection.is_handshaking() {
            "peer closed the link in the TLS handshake; see its log, it may not speak TLS"
        } else {
            "peer cut the link without closing TLS"
        };
        io::Error::new(kind, text)
    }
}

impl LinkReceiver for TlsReceiver {
    fn fill(&mut self) -> io::Result<Filled> {
        self.buffer.forget_frames();
        match self.last {
            Decrypted::Closed => return Ok(Filled::End),
            Decrypted::NoRoom => {}
            Decrypted::All => {
                if let Some(filled) = self.read()? {
                    return Ok(filled);
                }
            }
        }
        let mut tls = lock(&self.shared);
        let decrypted = tls.decrypt(&mut self.wire, &mut self.buffer);
        let flushed = tls.flush();
        self.last = decrypted.map_err(|error| explained(&error))?;
        flushed?;
        // Even without a frame: the handshake may be over, so that the sender can go on.
        Ok(Filled::Some)
    }

    fn frames(&self) -> Result<Vec<&[u8]>, FrameError> {
        self.buffer.frames()
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    fn peer_name(&self) -> Option<String> {
        let tls = lock(&self.shared);
        if tls.connection.is_handshaking() {
            return None;
        }
        let certificates = tls.connection.peer_certificates()?;
        certificates.first().and_then(name_of)
    }
}

#[cfg(test)]
pub(super) mod tests;

//! Links between two processes of one host: frames go through memory that both have mapped.
//!
//! A Unix socket is where the two meet. The side that connects makes the memory
//! (`memory.rs`: two rings of bytes, `ring.rs`) and sends it with a greeting; there is no answer.
//! From then on the socket carries one byte for each wake-up of a half that sleeps, and its
//! hang-up is the end of the link. docs/fabric-protocol.md has the bytes.
//!
//! Wake-ups go over the socket and not by eventfds: whether a write to an eventfd may block is a
//! property of the open file that both sides share, so a peer could stop this side's thread for
//! good. Nothing is read where the peer can still write: bytes are copied out before anybody
//! looks at them.

mod memory;
mod ring;
#[cfg(test)]
mod tests;

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::geteuid;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use zerocopy::byteorder::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use self::memory::{Direction, MappedRing, Mapping};
use self::ring::{Consumer, Producer};
use super::Link;
use super::stream::{Source, StreamReceiver, StreamSender};

/// Bytes of each ring that this side makes.
const RING_BYTES: u32 = 1024 * 1024;

/// Not that of a frame: a `unix:` link that is greeted so ends at once.
const MAGIC: [u8; 4] = *b"OSHM";
const VERSION: u16 = 1;

/// Says that there are bytes.
const BYTES: u8 = 0;
/// Says that there is room.
const ROOM: u8 = 1;
/// Stands in front of the reason for which a link is refused.
const REFUSED: u8 = 2;
/// Reads of the socket before the peer is taken for one that floods it. A socket holds fewer than
/// 300 messages of one byte.
const WAKES_READS_MAX: usize = 16;

/// What the connecting side sends, with the memfd. As long as the header of a frame.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Greeting {
    magic: [u8; 4],
    version: U16,
    reserved: U16,
    ring_bytes: U32,
    reserved_too: [U32; 5],
}

impl Greeting {
    fn new(ring_bytes: u32) -> Self {
        Self {
            magic: MAGIC,
            version: VERSION.into(),
            reserved: 0.into(),
            ring_bytes: ring_bytes.into(),
            reserved_too: [U32::ZERO; 5],
        }
    }
}

/// The link to whoever listens at the other end of `socket`; `path` stands in logs.
///
/// # Errors
/// The kernel has no memory or descriptors left, or the other end is gone.
pub(super) fn connected(socket: UnixStream, path: &Path) -> io::Result<Link> {
    connected_by(socket, path, RING_BYTES)
}

fn connected_by(socket: UnixStream, path: &Path, ring_bytes: u32) -> io::Result<Link> {
    socket.set_nonblocking(true)?;
    let mapping = Mapping::create(ring_bytes)?;
    let greeting = Greeting::new(mapping.ring_bytes());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [mapping.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    let bytes = [IoSlice::new(greeting.as_bytes())];
    let sent = sendmsg(&socket, &bytes, &mut control, SendFlags::NOSIGNAL)?;
    if sent != size_of::<Greeting>() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    let meeting = Meeting {
        socket,
        uid: geteuid().as_raw(),
        mapping: Mutex::new(Some(mapping)),
    };
    let peer = format!("shm:{}", path.display());
    link(meeting, Direction::FromConnector, peer)
}

/// The link to whoever has connected to `path` by `socket`. Its greeting may still be on its way:
/// until it is there, nothing can be sent or received.
///
/// # Errors
/// The kernel has no descriptors left.
pub(super) fn accepted(socket: UnixStream, path: &Path) -> io::Result<Link> {
    socket.set_nonblocking(true)?;
    let credentials = getsockopt(&socket, sockopt::PeerCredentials)?;
    let peer = format!("shm:{} (process {})", path.display(), credentials.pid());
    let meeting = Meeting {
        socket,
        uid: credentials.uid(),
        mapping: Mutex::new(None),
    };
    link(meeting, Direction::FromAcceptor, peer)
}

fn link(meeting: Meeting, outward: Direction, peer: String) -> io::Result<Link> {
    let inward = match outward {
        Direction::FromConnector => Direction::FromAcceptor,
        Direction::FromAcceptor => Direction::FromConnector,
    };
    // One of its own, because whoever waits asks for writability too, and the socket becomes
    // writable with every wake-up that the peer reads.
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let events = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
    epoll.add(&meeting.socket, EpollEvent::new(events, 0))?;
    let meeting = Arc::new(meeting);
    let outgoing = Outgoing {
        meeting: meeting.clone(),
        direction: outward,
        ring: None,
    };
    let incoming = Incoming {
        meeting,
        direction: inward,
        ring: None,
        epoll,
    };
    Ok(Link {
        sender: Box::new(StreamSender::new(outgoing)),
        receiver: Box::new(StreamReceiver::new(incoming)),
        checksummed: false,
        peer,
    })
}

/// Whether a peer may share memory with us: it could harm us in simpler ways already.
fn may_share(peer_uid: u32, own_uid: u32) -> bool {
    peer_uid == 0 || peer_uid == own_uid
}

/// What both halves of an end share. The last one to go hangs up.
#[derive(Debug)]
struct Meeting {
    socket: UnixStream,
    /// The peer's user.
    uid: u32,
    /// `None` until the greeting is there.
    mapping: Mutex<Option<Mapping>>,
}

impl Meeting {
    /// The memory; an error of the kind `WouldBlock` until the greeting is there.
    fn mapping(&self) -> io::Result<Mapping> {
        // It is set whole or not at all: a panic elsewhere changes nothing.
        let mut mapping = self.mapping.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mapping) = &*mapping {
            return Ok(mapping.clone());
        }
        match self.greeted() {
            Ok(adopted) => Ok(mapping.insert(adopted).clone()),
            Err(error) => {
                if !matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) {
                    self.refuse(&error);
                }
                Err(error)
            }
        }
    }

    fn greeted(&self) -> io::Result<Mapping> {
        let own_uid = geteuid().as_raw();
        if !may_share(self.uid, own_uid) {
            let problem = format!(
                "user {} may not share memory with user {own_uid}: run both as one user, or use unix:PATH",
                self.uid
            );
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, problem));
        }
        let invalid = |problem: String| io::Error::new(io::ErrorKind::InvalidData, problem);
        let mut greeting = Greeting::new_zeroed();
        // Room for one more than there may be. What is not taken out is closed.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut buffer = [IoSliceMut::new(greeting.as_mut_bytes())];
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(&self.socket, &mut buffer, &mut control, flags)?;
        let bytes = received.bytes;
        let mut descriptors: Vec<OwnedFd> = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(some) = message {
                descriptors.extend(some);
            }
        }
        if bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if bytes != size_of::<Greeting>() || greeting.magic != MAGIC {
            return Err(invalid(
                "peer does not greet like a shared-memory link".to_owned(),
            ));
        }
        let version = greeting.version.get();
        if version != VERSION || greeting.reserved != 0 || greeting.reserved_too != [U32::ZERO; 5] {
            return Err(invalid(format!(
                "peer speaks version {version} of the shared-memory link, this side {VERSION}"
            )));
        }
        if descriptors.len() > 1 || received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(invalid("greeting has more than one descriptor".to_owned()));
        }
        let descriptor = descriptors
            .pop()
            .ok_or_else(|| invalid("greeting has no descriptor".to_owned()))?;
        Mapping::adopt(descriptor.into(), greeting.ring_bytes.get())
    }

    /// Tells the peer why, as far as it can be told.
    fn refuse(&self, problem: &io::Error) {
        let mut message = vec![REFUSED];
        message.extend_from_slice(problem.to_string().as_bytes());
        self.write(&message);
    }

    fn wake(&self, news: u8) {
        self.write(&[news]);
    }

    /// Writes to the socket. Nobody needs to know of a failure: one that is full holds wake-ups
    /// that are pending already, and a hang-up is the receiving half's to find.
    fn write(&self, message: &[u8]) {
        drop((&self.socket).write(message));
    }

    /// Forgets the wake-ups that have arrived and says what else there is to know.
    fn forget_wakes(&self) -> io::Result<News> {
        let mut news = News::default();
        let mut wakes = [0; 512];
        for _ in 0..WAKES_READS_MAX {
            match (&self.socket).read(&mut wakes) {
                Ok(0) => {
                    news.ended = true;
                    return Ok(news);
                }
                Ok(bytes) => {
                    let wakes = wakes.get(..bytes).unwrap_or_default();
                    if let Some((&REFUSED, reason)) = wakes.split_first() {
                        let reason = String::from_utf8_lossy(reason);
                        let problem = format!("peer refused the shared-memory link: {reason:?}");
                        return Err(io::Error::new(io::ErrorKind::ConnectionRefused, problem));
                    }
                    if wakes.iter().any(|wake| *wake > ROOM) {
                        return Err(io::Error::new(
                            io::ErrorKind::InvalidData,
                            "peer does not speak the shared-memory link: write shm: at both sides, or unix:",
                        ));
                    }
                    news.room |= wakes.contains(&ROOM);
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(news),
                    io::ErrorKind::Interrupted => {}
                    // It went before it had read its own wake-ups.
                    io::ErrorKind::ConnectionReset => {
                        news.ended = true;
                        return Ok(news);
                    }
                    _ => return Err(error),
                },
            }
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "peer floods the socket of a shared-memory link",
        ))
    }
}

/// What the socket said, apart from that there are bytes.
#[derive(Debug, Default)]
struct News {
    /// There was room for the sending half.
    room: bool,
    /// The peer hung up.
    ended: bool,
}

/// What goes to the peer.
#[derive(Debug)]
struct Outgoing {
    meeting: Arc<Meeting>,
    direction: Direction,
    /// `None` until the greeting is there.
    ring: Option<Producer<MappedRing>>,
}

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let ring = match &mut self.ring {
            Some(ring) => ring,
            none => none.insert(Producer::new(self.meeting.mapping()?.ring(self.direction))),
        };
        let written = ring.push(slices)?;
        if written == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if ring.consumer_must_wake()? {
            self.meeting.wake(BYTES);
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What comes from the peer.
#[derive(Debug)]
struct Incoming {
    meeting: Arc<Meeting>,
    direction: Direction,
    /// `None` until the greeting is there.
    ring: Option<Consumer<MappedRing>>,
    /// Becomes readable with the socket.
    epoll: Epoll,
}

impl Incoming {
    fn ring(&mut self) -> io::Result<&mut Consumer<MappedRing>> {
        match &mut self.ring {
            Some(ring) => Ok(ring),
            none => Ok(none.insert(Consumer::new(self.meeting.mapping()?.ring(self.direction)))),
        }
    }
}

impl Read for Incoming {
    /// An error of the kind `Interrupted` when there is nothing to read, but room for the sending
    /// half: its wake-up is used up, so whoever reads must not sleep before it has sent.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let blocked = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
        match self.read_awake(buffer) {
            Err(error) if blocked(&error) => {}
            done => return done,
        }
        let ring = match &mut self.ring {
            Some(ring) => ring,
            // The greeting is to come; the socket says so by itself.
            None => return Err(io::ErrorKind::WouldBlock.into()),
        };
        let news = ring.ask_to_wake(|| self.meeting.forget_wakes())?;
        // What was written before the wake-up, or before the end, is there now.
        match self.read_awake(buffer) {
            Err(error) if blocked(&error) && news.ended => Ok(0),
            Err(error) if blocked(&error) && news.room => Err(io::ErrorKind::Interrupted.into()),
            done => done,
        }
    }
}

impl Source for Incoming {
    fn read_awake(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let ring = match self.ring() {
            // It left without a greeting.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
            ring => ring?,
        };
        let bytes = ring.pull(buffer)?;
        if bytes == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if ring.producer_must_wake()? {
            self.meeting.wake(ROOM);
        }
        Ok(bytes)
    }
}

impl AsFd for Incoming {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

//! Links over RDMA: a reliable connected queue pair (RC), made by the connection manager.
//!
//! The bytes of the frames are cut into messages, each one SEND of up to [`MESSAGE_BYTES`] that
//! begins with a word for the credit (`credit.rs`); docs/fabric-protocol.md has the bytes. Both directions copy: a send
//! into registered memory, a receive out of it. That is one copy more than the adapter needs, and
//! saves registering the memory of guests, which come and go.
//!
//! ```text
//! connect: resolve address, resolve route, post receives, REQ ─> Joining ─ REP ─────────> Up
//! accept:  post receives, REP ─────────────────────────────────> Joining ─ RTU, message ─> Up
//! Joining, Up ─ DREQ, device gone ─> Ended      Joining, Up ─ refused, bad work ─> Broken
//! ```
//!
//! Read first: rdma_cm(7); InfiniBand Architecture Specification volume 1 section 9.7 (reliable
//! connections) and 12.6 (messages of the connection manager).

mod credit;
mod manager;
#[expect(
    unsafe_code,
    reason = "verbs take addresses of memory, and sideway lacks three of them"
)]
mod sys;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::VecDeque;
use std::error::Error;
use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use sideway::ibverbs::queue_pair::QueuePairState;
use sideway::rdmacm::communication_manager::{ConnectionParameter, EventType, Identifier};

use self::credit::{Credit, RECEIVES};
use self::manager::{Mailbox, Manager, forget, give_mailbox, lock};
use self::sys::{Done, Queues};
use super::Link;
use super::stream::{Source, StreamReceiver, StreamSender};

/// Bytes of a message at most: what a receive has room for.
const MESSAGE_BYTES: u32 = 16 * 1024;
/// Bytes in front of those of the frames: the receives that the sender has posted so far, u32.
const WORD_BYTES: u32 = 4;
/// Messages that a link may have underway; each side registers memory for so many, and for
/// [`RECEIVES`].
const SENDS: u32 = RECEIVES;
/// Peers that the kernel lets wait.
const BACKLOG: i32 = 64;
/// How long a queue pair waits for an acknowledgement before it sends again: 4.096 us * 2^14 = 67 ms
/// (IBA volume 1, 9.7.6.1.3). Less than the 100 ms after which a session gives a link up. The
/// connection manager's own choice is seconds.
const ACKNOWLEDGE_TIMEOUT: u8 = 14;
/// How long a link that is closed waits for the peer to have what was sent.
const LINGER_MAX: Duration = Duration::from_millis(50);

/// The error of a step, with its causes in one line.
fn failed<E: Error>(what: &'static str) -> impl Fn(E) -> io::Error {
    move |error| {
        let mut text = format!("{what}: {error}");
        let mut source = error.source();
        while let Some(cause) = source {
            text.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        io::Error::other(text)
    }
}

/// Where peers connect by RDMA.
pub struct RdmaListener {
    /// Listens while it lives.
    _id: Arc<Identifier>,
    manager: Arc<Manager>,
    epoll: Epoll,
    address: SocketAddr,
}

impl fmt::Debug for RdmaListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RdmaListener")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl RdmaListener {
    /// Listens on `address`.
    ///
    /// # Errors
    /// Its port is 0, it is in use, or of no RDMA device.
    pub(super) fn bind(address: SocketAddr) -> io::Result<Self> {
        if address.port() == 0 {
            // The connection manager would choose one, and sideway cannot tell which.
            let problem = format!("rdma:{address} has no port: write one");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        let manager = Manager::new()?;
        let (id, _mailbox) = manager.identifier()?;
        id.bind_addr(address)
            .map_err(failed("no RDMA device takes the address"))?;
        id.listen(BACKLOG).map_err(failed("cannot listen"))?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for fd in [manager.fd(), manager.wake.as_fd()] {
            epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        }
        Ok(Self {
            _id: id,
            manager,
            epoll,
            address,
        })
    }

    /// The address in use.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next link; an error of the kind `WouldBlock` if nobody waits.
    ///
    /// # Errors
    /// That, or the adapter has no room; the peer is refused then.
    pub(super) fn accept(&self) -> io::Result<Link> {
        forget(&self.manager.wake);
        self.manager.dispatch()?;
        let id = self.manager.request().ok_or(io::ErrorKind::WouldBlock)?;
        let mailbox = give_mailbox(&id)?;
        let mut queues = queues(&id)?;
        for state in [QueuePairState::ReadyToReceive, QueuePairState::ReadyToSend] {
            enter(&id, &mut queues, state)?;
        }
        id.accept(parameters(&queues))
            .map_err(failed("cannot accept"))?;
        let peer = format!("rdma:{} (its peer)", self.address);
        link(id, queues, self.manager.clone(), mailbox, peer)
    }
}

impl Drop for RdmaListener {
    fn drop(&mut self) {
        self.manager.refuse_all();
    }
}

impl AsFd for RdmaListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

/// Asks whoever listens at `address` for a link. What it answers, the link finds out by itself.
///
/// # Errors
/// There is no RDMA device from which a way leads there, or none is found within `patience`.
pub(super) fn connect(address: SocketAddr, patience: Duration) -> io::Result<Link> {
    Resolved::find(address, patience)?.link()
}

/// A way to a listener.
struct Resolved {
    address: SocketAddr,
    manager: Arc<Manager>,
    id: Arc<Identifier>,
    mailbox: Arc<Mailbox>,
}

impl Resolved {
    fn find(address: SocketAddr, patience: Duration) -> io::Result<Self> {
        let manager = Manager::new()?;
        let (id, mailbox) = manager.identifier()?;
        let deadline = Instant::now() + patience;
        id.resolve_addr(None, address, patience)
            .map_err(failed("no RDMA device for the address"))?;
        wait_for(&manager, &mailbox, &EventType::AddressResolved, deadline)?;
        id.resolve_route(patience)
            .map_err(failed("no way to the address"))?;
        wait_for(&manager, &mailbox, &EventType::RouteResolved, deadline)?;
        Ok(Self {
            address,
            manager,
            id,
            mailbox,
        })
    }

    fn link(self) -> io::Result<Link> {
        let queues = queues(&self.id)?;
        self.id
            .connect(parameters(&queues))
            .map_err(failed("cannot connect"))?;
        let peer = format!("rdma:{}", self.address);
        link(self.id, queues, self.manager, self.mailbox, peer)
    }
}

fn wait_for(
    manager: &Manager,
    mailbox: &Mailbox,
    wanted: &EventType,
    deadline: Instant,
) -> io::Result<()> {
    loop {
        manager.dispatch()?;
        if let Some(news) = mailbox.take() {
            if news.0 == *wanted {
                return Ok(());
            }
            return Err(refused(&news));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        sleep_until_readable(manager.fd(), left)?;
    }
}

/// Waits for `fd`, at most `longest`, to the millisecond above.
fn sleep_until_readable(fd: BorrowedFd<'_>, longest: Duration) -> io::Result<()> {
    let millis = u16::try_from(longest.as_millis().saturating_add(1)).unwrap_or(u16::MAX);
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::from(millis)) {
        Ok(_) | Err(nix::Error::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What an event that ends a connection means.
fn refused((kind, status): &(EventType, i32)) -> io::Error {
    let (error, words) = match kind {
        EventType::Rejected => (
            io::ErrorKind::ConnectionRefused,
            "nobody listens there, or takes no more",
        ),
        EventType::Unreachable => (io::ErrorKind::TimedOut, "peer does not answer"),
        _ => (io::ErrorKind::HostUnreachable, "peer is not reached"),
    };
    io::Error::new(error, format!("{words} ({kind:?}, status {status})"))
}

/// Queues for a connection, with all receives posted.
fn queues(id: &Identifier) -> io::Result<Queues> {
    let device = id
        .get_device_context()
        .ok_or_else(|| io::Error::other("connection has no RDMA device"))?;
    let mut queues = Queues::new(&device, RECEIVES, MESSAGE_BYTES)?;
    enter(id, &mut queues, QueuePairState::Init)?;
    for slot in 0..RECEIVES {
        queues.post_receive(slot)?;
    }
    Ok(queues)
}

fn enter(id: &Identifier, queues: &mut Queues, state: QueuePairState) -> io::Result<()> {
    let last = state == QueuePairState::ReadyToSend;
    let mut attributes = id.get_qp_attr(state).map_err(failed(
        "connection does not say how its queue pair is set up",
    ))?;
    if last {
        attributes.setup_timeout(ACKNOWLEDGE_TIMEOUT);
    }
    queues.modify(&attributes)
}

/// Retries without an end when a receiver is not ready: it always is, by `credit.rs`.
fn parameters(queues: &Queues) -> ConnectionParameter {
    let mut parameters = ConnectionParameter::default();
    parameters.setup_qp_number(queues.number());
    parameters
}

fn link(
    id: Arc<Identifier>,
    queues: Queues,
    manager: Arc<Manager>,
    mailbox: Arc<Mailbox>,
    peer: String,
) -> io::Result<Link> {
    // One of its own, because whoever waits asks for writability too.
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for fd in [queues.fd(), manager.fd(), mailbox.wake.as_fd()] {
        epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    }
    let connection = Connection {
        queues,
        id,
        manager,
        mailbox,
        state: State::Joining,
        credit: Credit::new(),
        free: (0..SENDS).collect(),
        arrived: VecDeque::new(),
        sender_waits: false,
    };
    let connection = Arc::new(Mutex::new(connection));
    let outgoing = Outgoing(connection.clone());
    let incoming = Incoming { connection, epoll };
    Ok(Link {
        sender: Box::new(StreamSender::new(outgoing)),
        receiver: Box::new(StreamReceiver::new(incoming)),
        // Every packet has a CRC32 of its own (ICRC) that the adapters check.
        checksummed: false,
        peer,
    })
}

#[derive(Debug, Clone)]
enum State {
    /// The peer has not answered; nothing may be sent.
    Joining,
    Up,
    /// The peer hung up.
    Ended,
    Broken(io::ErrorKind, String),
}

/// A message that was received, from `at` on unread.
#[derive(Debug)]
struct Arrived {
    slot: u32,
    at: u32,
    bytes: u32,
}

/// What both halves of an end share. The last one to go hangs up.
struct Connection {
    // Before the identifier, whose device they use.
    queues: Queues,
    id: Arc<Identifier>,
    manager: Arc<Manager>,
    mailbox: Arc<Mailbox>,
    state: State,
    credit: Credit,
    /// Slots for sends that are not underway.
    free: Vec<u32>,
    /// At most [`RECEIVES`].
    arrived: VecDeque<Arrived>,
    /// The sending half found no room, and was not told since that there is.
    sender_waits: bool,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("state", &self.state)
            .field("credit", &self.credit)
            .finish_non_exhaustive()
    }
}

impl Connection {
    fn is_open(&self) -> bool {
        matches!(self.state, State::Joining | State::Up)
    }

    fn break_with(&mut self, error: &io::Error) {
        if self.is_open() {
            self.state = State::Broken(error.kind(), error.to_string());
        }
    }

    /// Takes in the work that is done, and gives the peer its credit.
    fn look(&mut self) {
        if let Err(error) = self.take_in() {
            self.break_with(&error);
        }
    }

    fn take_in(&mut self) -> io::Result<()> {
        let mut failure = None;
        for done in self.queues.done()? {
            match done {
                Done::Sent { slot } => self.free.push(slot),
                Done::Received { slot, bytes } => {
                    if !(WORD_BYTES..=MESSAGE_BYTES).contains(&bytes) {
                        let problem = format!("peer sent a message of {bytes} bytes");
                        return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
                    }
                    // Only a peer that is up sends; its RTU may come later.
                    if matches!(self.state, State::Joining) {
                        self.state = State::Up;
                    }
                    let mut word = [0; WORD_BYTES as usize];
                    self.queues.read(slot, 0, &mut word)?;
                    self.credit
                        .heard(u32::from_le_bytes(word))
                        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                    if bytes == WORD_BYTES {
                        self.post(slot)?;
                    } else {
                        let at = WORD_BYTES;
                        self.arrived.push_back(Arrived { slot, at, bytes });
                    }
                }
                Done::Failed { status } => {
                    let problem = format!(
                        "queue pair failed: peer is gone or does not answer (status {status})"
                    );
                    // What came before it may stand behind it.
                    failure.get_or_insert(io::Error::new(io::ErrorKind::ConnectionReset, problem));
                }
            }
        }
        failure.map_or_else(|| self.tell(), Err)
    }

    fn post(&mut self, slot: u32) -> io::Result<()> {
        self.queues.post_receive(slot)?;
        self.credit.posted();
        Ok(())
    }

    /// Sends an empty message if the peer must know of receives.
    fn tell(&mut self) -> io::Result<()> {
        if matches!(self.state, State::Up)
            && self.credit.must_tell()
            && let Some(slot) = self.free.pop()
        {
            self.send(slot, WORD_BYTES)?;
        }
        Ok(())
    }

    /// Sends a slot, whose first word it fills in. False if the adapter has no room for it now.
    fn send(&mut self, slot: u32, bytes: u32) -> io::Result<bool> {
        let word = self.credit.posted_receives().to_le_bytes();
        self.queues.write(slot, 0, &word)?;
        match self.queues.post_send(slot, bytes) {
            Ok(()) => {
                self.credit.sent();
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.free.push(slot);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn may_send(&self) -> bool {
        matches!(self.state, State::Up) && self.credit.may_send() && !self.free.is_empty()
    }

    /// Sends as much of `slices` as there is room for, one message. Returns the bytes.
    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        if !self.may_send() {
            self.look();
        }
        if !self.is_open() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if !self.may_send() {
            self.sender_waits = true;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let Some(slot) = self.free.pop() else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        let mut filled = WORD_BYTES;
        for slice in slices {
            let room = MESSAGE_BYTES - filled;
            let piece = slice.get(..room as usize).unwrap_or(slice);
            self.queues.write(slot, filled, piece)?;
            filled += u32::try_from(piece.len()).unwrap_or(room);
        }
        if self.send(slot, filled)? {
            Ok((filled - WORD_BYTES) as usize)
        } else {
            self.sender_waits = true;
            Err(io::ErrorKind::WouldBlock.into())
        }
    }

    /// Copies what has arrived into `buffer` and posts the receives that are empty.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(first) = self.arrived.front_mut()
            && let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty())
        {
            let left = (first.bytes - first.at) as usize;
            let count = left.min(room.len());
            let room = room.get_mut(..count).unwrap_or_default();
            self.queues.read(first.slot, first.at, room)?;
            filled += count;
            first.at += u32::try_from(count).unwrap_or(u32::MAX);
            if count == left {
                let slot = first.slot;
                self.arrived.pop_front();
                // A queue pair that has failed takes none; what has arrived counts all the same.
                if self.is_open()
                    && let Err(error) = self.post(slot)
                {
                    self.break_with(&error);
                }
            }
        }
        if filled > 0
            && let Err(error) = self.tell()
        {
            self.break_with(&error);
        }
        Ok(filled)
    }

    /// Takes in what the connection manager says.
    fn hear(&mut self) {
        forget(&self.mailbox.wake);
        if let Err(error) = self.manager.dispatch() {
            self.break_with(&error);
        }
        while let Some(news) = self.mailbox.take() {
            match news.0 {
                EventType::ConnectResponse => {
                    if let Err(error) = self.establish() {
                        self.break_with(&error);
                    }
                }
                EventType::Established if matches!(self.state, State::Joining) => {
                    self.state = State::Up;
                }
                EventType::Established | EventType::TimewaitExit | EventType::AddressChange => {}
                EventType::Disconnected | EventType::DeviceRemoval => {
                    // Also when the queue pair failed because of it.
                    self.state = State::Ended;
                }
                // The peer hung up before our RTU had reached it.
                EventType::Rejected if matches!(self.state, State::Up) => {
                    self.state = State::Ended;
                }
                _ => self.break_with(&refused(&news)),
            }
        }
    }

    fn establish(&mut self) -> io::Result<()> {
        for state in [QueuePairState::ReadyToReceive, QueuePairState::ReadyToSend] {
            enter(&self.id, &mut self.queues, state)?;
        }
        self.id
            .establish()
            .map_err(failed("cannot answer the peer"))?;
        self.state = State::Up;
        Ok(())
    }

    /// Waits until the peer has what was sent, but not long.
    fn linger(&mut self) {
        let deadline = Instant::now() + LINGER_MAX;
        loop {
            if let Err(error) = self.queues.ask_to_wake() {
                self.break_with(&error);
            }
            self.look();
            let left = deadline.saturating_duration_since(Instant::now());
            if !matches!(self.state, State::Up)
                || self.free.len() == SENDS as usize
                || left.is_zero()
            {
                return;
            }
            if let Err(error) = sleep_until_readable(self.queues.fd(), left) {
                self.break_with(&error);
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.hear();
        self.linger();
        if let Err(error) = self.id.disconnect() {
            tracing::debug!(%error, "connection was closed already");
        }
    }
}

/// What goes to the peer.
#[derive(Debug)]
struct Outgoing(Arc<Mutex<Connection>>);

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        lock(&self.0).write(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What comes from the peer.
#[derive(Debug)]
struct Incoming {
    connection: Arc<Mutex<Connection>>,
    epoll: Epoll,
}

impl Read for Incoming {
    /// An error of the kind `Interrupted` when there is nothing to read, but room for the sending
    /// half: its wake-up is used up, so whoever reads must not sleep before it has sent.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut connection = lock(&self.connection);
        connection.look();
        let bytes = connection.read(buffer)?;
        if bytes > 0 {
            return Ok(bytes);
        }
        connection.hear();
        if let Err(error) = connection.queues.ask_to_wake() {
            connection.break_with(&error);
        }
        // What was done before the queue was asked to wake, or before the end, is there now.
        connection.look();
        let bytes = connection.read(buffer)?;
        if bytes > 0 {
            return Ok(bytes);
        }
        match &connection.state {
            State::Ended => return Ok(0),
            State::Broken(kind, problem) => return Err(io::Error::new(*kind, problem.clone())),
            State::Joining | State::Up => {}
        }
        if connection.sender_waits && connection.may_send() {
            connection.sender_waits = false;
            return Err(io::ErrorKind::Interrupted.into());
        }
        Err(io::ErrorKind::WouldBlock.into())
    }
}

impl Source for Incoming {
    fn read_awake(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut connection = lock(&self.connection);
        connection.look();
        match connection.read(buffer)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            bytes => Ok(bytes),
        }
    }
}

impl AsFd for Incoming {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

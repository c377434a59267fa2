//! A bad link: a proxy between two ends, in this process, that a test spoils while it runs.
//!
//! [`Impairment::start`] listens beside a target, TCP or Unix, and joins each connection to one
//! of its own to the target. Every control acts at once, on connections that exist and on later
//! ones: it is in force when the call returns. The bytes of a direction keep their order
//! whatever is set. Flapping and the like are made of these controls by the test.
//!
//! A direction of a connection holds at most 4 MiB and 8,192 pieces; with a delay of 100 ms that
//! is about 40 MB/s. Then its sender waits, as on any link.

mod connection;
mod door;
mod way;

use std::os::fd::AsFd;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fabric_transport::link::LinkAddress;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::fabric::Shared;
use connection::{Connection, Fate};
use door::{Door, start_connect};
pub use way::Hole;
use way::{Flips, PIECE_BYTES_MAX, Pace, Way};

/// Connections at a time; more wait to be accepted.
const CONNECTIONS_MAX: usize = 256;

/// Which bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From whoever connected to the target.
    ToTarget,
    /// From the target to whoever connected.
    FromTarget,
    /// All.
    Both,
}

impl Direction {
    fn includes_to_target(self) -> bool {
        self != Self::FromTarget
    }

    fn includes_from_target(self) -> bool {
        self != Self::ToTarget
    }
}

/// What went through since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Connections accepted.
    pub connections: u64,
    /// Connections that exist; one that was closed does until its ends have closed theirs.
    pub open: usize,
    /// Bytes written to the target.
    pub to_target: u64,
    /// Bytes written to those who connected.
    pub from_target: u64,
    /// Bytes that are underway.
    pub held: usize,
    /// Bytes that were read, or underway, and thrown away.
    pub discarded: u64,
    /// Bits turned over.
    pub flipped_bits: u64,
}

/// What the thread is asked to do between two rounds.
type Order = Box<dyn FnOnce(&mut Proxy) + Send>;

/// The proxy. Dropped, it closes its sockets and ends its thread.
#[derive(Debug)]
pub struct Impairment {
    address: LinkAddress,
    orders: mpsc::Sender<Order>,
    wake: Arc<EventFd>,
    counters: Arc<Shared<Counters>>,
    thread: Option<JoinHandle<()>>,
    /// Of a Unix proxy's socket.
    _folder: tempfile::TempDir,
}

impl Impairment {
    /// Listens on a loopback port, or on a Unix socket in a new folder, as `target` is TCP or
    /// Unix. Nothing is wrong with the link yet.
    ///
    /// # Errors
    /// No port, folder, descriptors or thread.
    pub fn start(target: LinkAddress) -> Result<Self> {
        let folder = tempfile::tempdir().context("no folder for the proxy's socket")?;
        let door = Door::open(&target, folder.path())?;
        let address = door.address.clone();
        let wake = Arc::new(EventFd::from_flags(
            EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
        )?);
        let counters = Arc::<Shared<Counters>>::default();
        let (orders, incoming) = mpsc::channel();
        let proxy = Proxy {
            door,
            target,
            connections: Vec::new(),
            to_target: Way::default(),
            from_target: Way::default(),
            counters: Counters::default(),
            stopped: false,
        };
        let (waker, published) = (wake.clone(), counters.clone());
        let thread = std::thread::Builder::new()
            .name("impairment".to_owned())
            .spawn(move || proxy.run(&incoming, &waker, &published))
            .context("no thread for the proxy")?;
        Ok(Self {
            address,
            orders,
            wake,
            counters,
            thread: Some(thread),
            _folder: folder,
        })
    }

    /// Where to connect instead of to the target.
    #[must_use]
    pub fn address(&self) -> &LinkAddress {
        &self.address
    }

    /// Bytes stay for `delay`, and each piece for up to `jitter` longer.
    ///
    /// # Errors
    /// The proxy's thread has ended; so for all controls.
    pub fn delay(&self, direction: Direction, delay: Duration, jitter: Duration) -> Result<()> {
        self.change(direction, move |way| {
            (way.delay, way.jitter) = (delay, jitter);
        })
    }

    /// At most so many bytes per second are passed on, over all connections; `None` as many as
    /// come. What does not pass is held, up to the bound of the module.
    ///
    /// # Errors
    /// The proxy's thread has ended.
    pub fn rate(&self, direction: Direction, bytes_per_second: Option<u64>) -> Result<()> {
        self.change(direction, move |way| {
            way.rate = bytes_per_second.map(|rate| Pace::new(rate, Instant::now()));
        })
    }

    /// At most so many bytes per second are read, over all connections: the senders find their
    /// sockets full once the kernel's buffers are.
    ///
    /// # Errors
    /// The proxy's thread has ended.
    pub fn slow_reader(&self, direction: Direction, bytes_per_second: Option<u64>) -> Result<()> {
        self.change(direction, move |way| {
            way.reader = bytes_per_second.map(|rate| Pace::new(rate, Instant::now()));
        })
    }

    /// Lets bytes of `direction` disappear, and with them the news that an end has gone. While
    /// none get to the target, new connections wait to be accepted.
    ///
    /// # Errors
    /// The proxy's thread has ended.
    pub fn black_hole(&self, direction: Direction, hole: Hole) -> Result<()> {
        self.ask(move |proxy| {
            proxy.change(direction, |way| way.hole = hole);
            if hole == Hole::Discard {
                for connection in &mut proxy.connections {
                    proxy.counters.discarded += connection.discard(direction);
                }
            }
        })
    }

    /// Turns over one bit in `one_in` on average, of the bytes that come from now on; 0 ends it.
    /// The same bits of the stream for the same seed.
    ///
    /// # Errors
    /// The proxy's thread has ended.
    pub fn flip_bits(&self, direction: Direction, one_in: u64, seed: u64) -> Result<()> {
        self.change(direction, move |way| {
            way.flips = (one_in > 0).then(|| Flips::new(one_in, seed));
        })
    }

    /// Whether new connections are refused, with those that wait to be accepted. The address
    /// stays the proxy's.
    ///
    /// # Errors
    /// The proxy's thread has ended, or it cannot listen again.
    pub fn refuse(&self, refuse: bool) -> Result<()> {
        self.ask(move |proxy| {
            if refuse {
                proxy.door.shut();
                Ok(())
            } else {
                proxy.door.reopen()
            }
        })?
    }

    /// Resets all connections, to both ends; what is underway is lost. A Unix socket knows no
    /// reset: there it is a plain close.
    ///
    /// # Errors
    /// The proxy's thread has ended.
    pub fn reset(&self) -> Result<()> {
        self.ask(|proxy| {
            for connection in proxy.connections.drain(..) {
                connection.reset();
            }
        })
    }

    /// Ends all connections in an orderly way (FIN), to both ends; what is underway is lost, and
    /// so is what the ends still send.
    ///
    /// # Errors
    /// The proxy's thread has ended.
    pub fn close(&self) -> Result<()> {
        self.half_open(Direction::Both)
    }

    /// Ends all connections for those to whom the bytes of `direction` go, and for nobody else:
    /// the other end keeps its connection, and what it sends is thrown away. What is underway is
    /// lost.
    ///
    /// # Errors
    /// The proxy's thread has ended.
    pub fn half_open(&self, direction: Direction) -> Result<()> {
        self.ask(move |proxy| {
            for connection in &mut proxy.connections {
                connection.end(direction);
            }
        })
    }

    /// What has gone through. The proxy has looked at every socket after the call began; what
    /// the kernel had not delivered by then is not seen, so wait for what must come with
    /// [`wait`](Self::wait), and use this for what must not.
    ///
    /// # Errors
    /// The proxy's thread has ended.
    pub fn counters(&self) -> Result<Counters> {
        // Orders are taken before sockets: the second comes after a whole round.
        self.ask(|_| ())?;
        self.ask(|proxy| proxy.counters)
    }

    /// Waits until the counters are as wanted; `what` names it in the error.
    ///
    /// # Errors
    /// It does not happen within [`PATIENCE`](crate::front_end::PATIENCE).
    pub fn wait(&self, what: &str, wanted: impl Fn(&Counters) -> bool) -> Result<Counters> {
        self.counters
            .wait(what, |counters| wanted(counters).then_some(*counters))
    }

    fn change(
        &self,
        direction: Direction,
        change: impl Fn(&mut Way) + Send + 'static,
    ) -> Result<()> {
        self.ask(move |proxy| proxy.change(direction, change))
    }

    /// Has the thread do something, and waits until it is done.
    fn ask<R: Send + 'static>(
        &self,
        order: impl FnOnce(&mut Proxy) -> R + Send + 'static,
    ) -> Result<R> {
        let (answer, answered) = mpsc::sync_channel(1);
        let order = move |proxy: &mut Proxy| {
            // Whoever asked waits for the answer.
            drop(answer.send(order(proxy)));
        };
        let sent = self.orders.send(Box::new(order));
        sent.ok().context("the proxy's thread has ended")?;
        self.wake.write(1).context("the proxy cannot be woken")?;
        answered.recv().context("the proxy's thread has ended")
    }
}

impl Drop for Impairment {
    fn drop(&mut self) {
        // A thread that has ended needs no telling.
        drop(self.ask(|proxy| proxy.stopped = true));
        if let Some(thread) = self.thread.take() {
            // A panic there was printed by the thread itself.
            drop(thread.join());
        }
    }
}

/// All that the thread owns.
#[derive(Debug)]
struct Proxy {
    door: Door,
    target: LinkAddress,
    connections: Vec<Connection>,
    to_target: Way,
    from_target: Way,
    counters: Counters,
    stopped: bool,
}

impl Proxy {
    fn change(&mut self, direction: Direction, change: impl Fn(&mut Way)) {
        if direction.includes_to_target() {
            change(&mut self.to_target);
        }
        if direction.includes_from_target() {
            change(&mut self.from_target);
        }
    }

    fn run(mut self, orders: &mpsc::Receiver<Order>, wake: &EventFd, published: &Shared<Counters>) {
        let mut room = Box::new([0; PIECE_BYTES_MAX]);
        while !self.stopped {
            self.accept();
            self.pump(&mut room);
            self.counters.open = self.connections.len();
            self.counters.held = self.connections.iter().map(Connection::held).sum();
            if *published.lock() != self.counters {
                published.change(|counters| *counters = self.counters);
            }
            if let Err(error) = self.wait(wake) {
                tracing::error!(%error, "proxy cannot wait and ends");
                return;
            }
            // Nothing to read means that a socket or the time woke us.
            if let Err(error) = wake.read()
                && error != Errno::EAGAIN
            {
                tracing::error!(%error, "proxy cannot read its eventfd and ends");
                return;
            }
            while let Ok(order) = orders.try_recv() {
                order(&mut self);
            }
        }
    }

    fn accepts(&self) -> bool {
        self.connections.len() < CONNECTIONS_MAX && self.to_target.hole == Hole::Off
    }

    fn accept(&mut self) {
        while self.accepts() {
            let client = match self.door.accept() {
                Ok(Some(client)) => client,
                Ok(None) => return,
                Err(error) => {
                    tracing::error!(%error, "proxy cannot accept and refuses from now on");
                    self.door.shut();
                    return;
                }
            };
            self.counters.connections += 1;
            match start_connect(&self.target) {
                Ok(target) => self.connections.push(Connection::new(client, target)),
                Err(error) => {
                    tracing::info!(target = %self.target, %error, "proxy cannot connect");
                    drop(client.reset());
                }
            }
        }
    }

    fn pump(&mut self, room: &mut [u8; PIECE_BYTES_MAX]) {
        let now = Instant::now();
        let mut kept = Vec::with_capacity(self.connections.len());
        for mut connection in self.connections.drain(..) {
            let ways = (&mut self.to_target, &mut self.from_target);
            match connection.pump(ways, now, room, &mut self.counters) {
                Fate::Lives => kept.push(connection),
                Fate::Ended => {}
                Fate::Reset => connection.reset(),
            }
        }
        // Whoever comes first takes what a rate allows: each in its turn.
        if !kept.is_empty() {
            // Not by one: two rounds a piece would give the same one all.
            let first = fastrand::usize(..kept.len());
            kept.rotate_left(first);
        }
        self.connections = kept;
    }

    /// Waits for an order, a socket or the time when held bytes are due.
    fn wait(&self, wake: &EventFd) -> Result<()> {
        let now = Instant::now();
        let (to_target, from_target) = (&self.to_target, &self.from_target);
        let mut waiting = vec![PollFd::new(wake.as_fd(), PollFlags::POLLIN)];
        if let Some(door) = self.door.fd().filter(|_| self.accepts()) {
            waiting.push(PollFd::new(door, PollFlags::POLLIN));
        }
        for connection in &self.connections {
            for (socket, flags) in connection.interest(to_target, from_target, now) {
                // Even without flags poll tells that an end has gone, and would again and again.
                if !flags.is_empty() {
                    waiting.push(PollFd::new(socket.fd(), flags));
                }
            }
        }
        let connections = self.connections.iter();
        let next = connections.filter_map(|each| each.next(to_target, from_target, now));
        let timeout = match next.min() {
            None => PollTimeout::NONE,
            Some(next) => {
                // Up to a millisecond late, and never early: poll counts whole ones.
                let left = next.saturating_duration_since(now) + Duration::from_micros(999);
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            }
        };
        match poll(&mut waiting, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

//! The one thread of the switch: reads, greets, relays and closes.
//!
//! Nothing here waits but the wait for events: links and listeners do not block, and a thread of its
//! own makes each link to the director, which may take seconds.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fabric_transport::acceptor::GREETINGS_MAX;
use fabric_transport::endpoint::{now, session_config};
use fabric_transport::frame::FrameHeader;
use fabric_transport::link::{
    Filled, Link, LinkAddress, LinkOptions, Listener, SendQueue, connect,
};
use fabric_transport::session::{Greeting, PATHS_MAX, ProtocolError, greeting, refusal};
use fabric_transport::told::{Told, place};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use qos::MonotonicTime;

use crate::port::{DOWN, Port, UP, lock};
use crate::switch::Shared;

/// How long one attempt to reach the director at one address may take.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// How long nobody is let in after the kernel had no descriptor for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How much later than a scheduler asks it may be asked again; it makes up for that.
const WAKE_SLACK: Duration = Duration::from_micros(50);
/// Frames and bytes of one direction that leave before links are read again.
const BATCH_FRAMES_MAX: usize = 64;
const BATCH_BYTES_MAX: usize = 256 * 1024;

// Tokens of the epoll instance. A number that is used again may bring an event of its last owner;
// that costs one look at the new one.
const WAKE: u64 = 0;
const TIMER: u64 = 1;
const LISTENERS: u64 = 1 << 8;
const GREETINGS: u64 = 1 << 16;
const PORTS: u64 = 1 << 24;

/// What a token stands for, as places in lists.
enum Source {
    Wake,
    Timer,
    Listener(usize),
    Greeting(usize),
    Port(usize, usize),
}

fn source(token: u64) -> Source {
    let place = |base: u64| usize::try_from(token - base).unwrap_or(usize::MAX);
    match token {
        WAKE => Source::Wake,
        PORTS.. => Source::Port(place(PORTS) / 2, place(PORTS) % 2),
        GREETINGS.. => Source::Greeting(place(GREETINGS)),
        LISTENERS.. => Source::Listener(place(LISTENERS)),
        _ => Source::Timer,
    }
}

fn token(base: u64, place: usize) -> u64 {
    base + u64::try_from(place).unwrap_or_default()
}

/// Edges of a link, and the end of what its peer sends: a link that is not read shows it as well.
fn edges() -> EpollFlags {
    EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET
}

fn hang_up() -> EpollFlags {
    EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR
}

/// A link that has not greeted yet.
#[derive(Debug)]
struct Silent {
    link: Link,
    until: MonotonicTime,
    since: u64,
    readable: bool,
}

/// See the module.
pub(crate) struct EventLoop {
    shared: Arc<Shared>,
    epoll: Epoll,
    timer: TimerFd,
    /// When it rings, or rang last.
    timer_at: MonotonicTime,
    listeners: Vec<(Listener, bool)>,
    accept_after: Option<MonotonicTime>,
    silent: Vec<Option<Silent>>,
    ports: Vec<Option<Port>>,
    greeting_max: Duration,
    /// Links that came so far.
    count: u64,
    /// Attempts to reach the director that are underway.
    connecting: usize,
    /// An outage is reported once.
    outage: bool,
    /// Why host links were turned away.
    told: Told,
}

impl EventLoop {
    pub(crate) fn new(shared: Arc<Shared>, listeners: Vec<Listener>) -> nix::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let readable = EpollFlags::EPOLLIN;
        epoll.add(&shared.wake, EpollEvent::new(readable, WAKE))?;
        epoll.add(timer.as_fd(), EpollEvent::new(readable, TIMER))?;
        for (place, listener) in listeners.iter().enumerate() {
            let edge = EpollEvent::new(readable | EpollFlags::EPOLLET, token(LISTENERS, place));
            epoll.add(listener.as_fd(), edge)?;
        }
        Ok(Self {
            epoll,
            timer,
            timer_at: MonotonicTime::ZERO,
            listeners: listeners.into_iter().map(|it| (it, true)).collect(),
            accept_after: None,
            silent: std::iter::repeat_with(|| None)
                .take(GREETINGS_MAX)
                .collect(),
            ports: std::iter::repeat_with(|| None)
                .take(shared.config.ports)
                .collect(),
            greeting_max: session_config(&shared.config.name).greeting_max,
            count: 0,
            connecting: 0,
            outage: false,
            told: Told::default(),
            shared,
        })
    }

    pub(crate) fn run(mut self) {
        let mut busy = true;
        while !self.shared.stop.load(Ordering::Acquire) {
            self.wait(busy);
            let now = now();
            self.take_connected(now);
            self.accept(now);
            self.read_greetings(now);
            busy = self.relay(now);
            if !busy {
                self.set_timer(now);
            }
        }
    }

    /// Waits for events, or only looks.
    fn wait(&mut self, only_look: bool) {
        let timeout = if only_look {
            EpollTimeout::ZERO
        } else {
            EpollTimeout::NONE
        };
        let mut events = [EpollEvent::empty(); 64];
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(nix::Error::EINTR) => 0,
            Err(error) => {
                tracing::error!(%error, "edge switch cannot wait for events and stops");
                self.shared.stop.store(true, Ordering::Release);
                return;
            }
        };
        let now = now();
        for event in events.get(..count).unwrap_or_default() {
            match source(event.data()) {
                Source::Wake => ignore_again(self.shared.wake.read().map(drop), "eventfd"),
                Source::Timer => ignore_again(self.timer.wait(), "timer"),
                Source::Listener(place) => {
                    if let Some((_, ready)) = self.listeners.get_mut(place) {
                        *ready = true;
                    }
                }
                Source::Greeting(place) => {
                    if let Some(Some(silent)) = self.silent.get_mut(place) {
                        silent.readable = true;
                    }
                }
                Source::Port(number, side) => {
                    if let Some(Some(port)) = self.ports.get_mut(number) {
                        port.mark(now, side, event.events().intersects(hang_up()));
                    }
                }
            }
        }
    }

    /// Lets the timer ring when something is to be done without an event.
    fn set_timer(&mut self, now: MonotonicTime) {
        let relays = self.shared.relays.iter();
        let wakes = relays.filter_map(|relay| lock(relay).next_wake(now));
        let wakes = wakes.map(|wake| wake.max(now.saturating_add(WAKE_SLACK)));
        let silent = self.silent.iter().flatten().map(|silent| silent.until);
        let closes = self.ports.iter().flatten().filter_map(Port::deadline);
        let next = wakes.chain(silent).chain(closes).chain(self.accept_after);
        let Some(next) = next.min() else { return };
        // One that rings too early costs less than setting it each time.
        if self.timer_at > now && self.timer_at <= next {
            return;
        }
        self.timer_at = next;
        // Time zero would stop the timer; the clock of a running machine is beyond it.
        let time = Duration::from_nanos(next.as_nanos().max(1));
        let expiration = Expiration::OneShot(TimeSpec::from_duration(time));
        let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME;
        if let Err(error) = self.timer.set(expiration, flags) {
            tracing::error!(%error, "timer of the edge switch cannot be set");
        }
    }

    fn watch(&self, fd: BorrowedFd<'_>, token: u64) -> nix::Result<()> {
        self.epoll.add(fd, EpollEvent::new(edges(), token))
    }

    fn unwatch(&self, link: &Link) {
        // One that was never watched is not there.
        if let Err(error) = self.epoll.delete(link.receiver.poll_fd())
            && error != nix::Error::ENOENT
        {
            tracing::debug!(link = link.peer, %error, "link cannot be unwatched");
        }
    }

    fn accept(&mut self, now: MonotonicTime) {
        if self.accept_after.is_some_and(|after| now < after) {
            return;
        }
        self.accept_after = None;
        for place in 0..self.listeners.len() {
            while let Some((listener, ready)) = self.listeners.get_mut(place)
                && *ready
            {
                match listener.accept() {
                    Ok(Some(link)) => self.greet(now, link),
                    Ok(None) => *ready = false,
                    Err(error) => {
                        tracing::warn!(%error, "connection cannot be accepted");
                        self.accept_after = Some(now.saturating_add(ACCEPT_PAUSE));
                        return;
                    }
                }
            }
        }
    }

    fn greet(&mut self, now: MonotonicTime, link: Link) {
        let free = self.silent.iter().position(Option::is_none);
        let oldest = || {
            let since = |place: &usize| self.silent.get(*place)?.as_ref().map(|it| it.since);
            (0..self.silent.len()).min_by_key(since)
        };
        let Some(place) = free.or_else(oldest) else {
            return;
        };
        self.refuse_silent(place, "too many connections have not greeted");
        if let Err(error) = self.watch(link.receiver.poll_fd(), token(GREETINGS, place)) {
            tracing::warn!(link = link.peer, %error, "link cannot be watched");
            return;
        }
        self.count += 1;
        if let Some(slot) = self.silent.get_mut(place) {
            *slot = Some(Silent {
                link,
                until: now.saturating_add(self.greeting_max),
                since: self.count,
                readable: true,
            });
        }
    }

    /// Ends a link that has not greeted, if there is one.
    fn refuse_silent(&mut self, place: usize, reason: &str) {
        if let Some(silent) = self.silent.get_mut(place).and_then(Option::take) {
            self.turn_away(silent.link, reason);
        }
    }

    /// Each reason once; the peer tries on.
    fn report(&mut self, link: &Link, reason: &str) {
        let link = &link.peer;
        if self.told.is_news(Instant::now(), place(link), reason) {
            tracing::warn!(link, reason, "host link is turned away");
        } else {
            tracing::debug!(link, reason, "host link is turned away again");
        }
    }

    /// Tells the peer why its link is closed; one that does not take it is closed without.
    fn turn_away(&self, mut link: Link, reason: &str) {
        self.unwatch(&link);
        let mut queue = SendQueue::default();
        queue.push(refusal(reason, link.checksummed), false);
        if let Err(error) = link.sender.send(&mut queue) {
            tracing::debug!(link = link.peer, %error, "peer was not told why its link is closed");
        }
    }

    fn read_greetings(&mut self, now: MonotonicTime) {
        for place in 0..self.silent.len() {
            let Some(Some(silent)) = self.silent.get_mut(place) else {
                continue;
            };
            if silent.until <= now {
                self.refuse_silent(place, "no greeting in time");
                continue;
            }
            match read_greeting(silent) {
                Ok(None) => {}
                Ok(Some(greeting)) => {
                    if let Some(silent) = self.silent.get_mut(place).and_then(Option::take) {
                        self.admit(silent.link, &greeting);
                    }
                }
                Err(reason) => {
                    if let Some(silent) = self.silent.get_mut(place).and_then(Option::take) {
                        self.report(&silent.link, &reason);
                        self.turn_away(silent.link, &reason);
                    }
                }
            }
        }
    }

    /// Gives a link that greeted a port, and begins to make the one to the director.
    fn admit(&mut self, link: Link, greeting: &Greeting) {
        let whom = place(&link.peer).to_owned();
        match self.give_port(link, greeting) {
            Ok(()) => self.told.forget(&whom),
            Err((link, reason)) => {
                self.report(&link, &reason);
                self.turn_away(link, &reason);
            }
        }
    }

    fn give_port(&mut self, link: Link, greeting: &Greeting) -> Result<(), (Link, String)> {
        let (host, priority) = (&greeting.host, greeting.priority);
        let switch = &self.shared.config.name;
        if !self.shared.config.hosts.contains(host) {
            let reason = format!("host {host:?} is not behind edge switch {switch}");
            return Err((link, format!("{reason}; add it to its hosts")));
        }
        if let Some(certified) = link.receiver.peer_name()
            && certified != *host
        {
            let reason = format!("the certificate is that of {certified}, not of {host}");
            return Err((link, reason));
        }
        if usize::from(priority) >= PATHS_MAX {
            let reason = format!("a session has at most {PATHS_MAX} links");
            return Err((link, reason));
        }
        // The host makes this link anew; it knows that the old one is dead.
        let same = |port: &Option<Port>| {
            let port = port.as_ref();
            port.is_some_and(|port| port.host == *host && port.priority == priority)
        };
        if let Some(number) = self.ports.iter().position(same) {
            self.close(number, "the host made its link anew");
        }
        let ports = self.ports.len();
        let Some(number) = self.ports.iter().position(Option::is_none) else {
            let switch = &self.shared.config.name;
            let reason = format!("all {ports} ports of edge switch {switch} are in use");
            return Err((link, reason));
        };
        // Those of ports that were closed meanwhile count as well.
        if self.connecting >= 2 * ports {
            let reason = "the edge switch waits for the director; try again";
            return Err((link, reason.to_owned()));
        }
        self.count += 1;
        let ticket = self.count;
        let mut moved = EpollEvent::new(edges(), token(PORTS, 2 * number + UP));
        let moved = self.epoll.modify(link.receiver.poll_fd(), &mut moved);
        let started = moved.map_err(Into::into).and_then(|()| {
            let shared = self.shared.clone();
            std::thread::Builder::new()
                .name("connect".to_owned())
                .spawn(move || {
                    let made = connect_to(&shared.config.director, &shared.links);
                    lock(&shared.connected).push((ticket, made));
                    shared.ring();
                })
        });
        if let Err(error) = started {
            return Err((link, format!("the edge switch has no means left: {error}")));
        }
        self.connecting += 1;
        if let Some(slot) = self.ports.get_mut(number) {
            *slot = Some(Port::new(host.clone(), priority, ticket, link));
        }
        Ok(())
    }

    /// Joins links to the director with those that they were made for.
    fn take_connected(&mut self, now: MonotonicTime) {
        let connected = std::mem::take(&mut *lock(&self.shared.connected));
        for (ticket, made) in connected {
            self.connecting = self.connecting.saturating_sub(1);
            let wanted = |port: &Option<Port>| port.as_ref().is_some_and(|it| it.ticket == ticket);
            let Some(number) = self.ports.iter().position(wanted) else {
                continue;
            };
            let joined = made.and_then(|link| self.join(now, number, link));
            match joined {
                Ok(()) => self.outage = false,
                Err(reason) => {
                    if !std::mem::replace(&mut self.outage, true) {
                        tracing::warn!(reason, "director cannot be reached; hosts try on");
                    }
                    if let Some(port) = self.ports.get_mut(number).and_then(Option::take) {
                        let switch = &self.shared.config.name;
                        let reason = format!("edge switch {switch}: {reason}");
                        self.turn_away(port.host_side.link, &reason);
                    }
                }
            }
        }
    }

    fn join(&mut self, now: MonotonicTime, number: usize, link: Link) -> Result<(), String> {
        let Some(Some(port)) = self.ports.get(number) else {
            return Ok(());
        };
        let [up, down] = &self.shared.relays;
        for relay in [up, down] {
            let opened = lock(relay).open(now, number, &port.host, port.priority);
            if let Err(error) = opened {
                self.close_relays(number);
                return Err(error.to_string());
            }
        }
        let event = token(PORTS, 2 * number + DOWN);
        if let Err(error) = self.watch(link.receiver.poll_fd(), event) {
            self.close_relays(number);
            return Err(error.to_string());
        }
        tracing::info!(
            host = port.host,
            path = port.priority,
            port = number,
            link = port.host_side.link.peer,
            director = link.peer,
            "host link joined to the director"
        );
        if let Some(Some(port)) = self.ports.get_mut(number) {
            port.join(now, link);
        }
        Ok(())
    }

    /// Reads, grants and writes once. True if there may be more to do at once.
    fn relay(&mut self, now: MonotonicTime) -> bool {
        let mut busy = false;
        for number in 0..self.ports.len() {
            if let Some(Some(port)) = self.ports.get_mut(number) {
                match port.read(now, &self.shared.relays, number) {
                    Ok(more) => busy |= more,
                    Err(reason) => self.close(number, &reason),
                }
            }
        }
        for (way, relay) in self.shared.relays.iter().enumerate() {
            let mut relay = lock(relay);
            let (mut frames, mut bytes) = (0, 0);
            while frames < BATCH_FRAMES_MAX
                && bytes < BATCH_BYTES_MAX
                && let Some((number, frame)) = relay.poll(now)
            {
                (frames, bytes) = (frames + 1, bytes + frame.frame_bytes());
                if let Some(Some(port)) = self.ports.get_mut(number) {
                    port.grant(way, frame);
                }
            }
            busy |= frames > 0;
        }
        for number in 0..self.ports.len() {
            if let Some(Some(port)) = self.ports.get_mut(number) {
                let relays = &self.shared.relays;
                if let Err(reason) = port.flush(now, relays, number) {
                    self.close(number, &reason);
                } else if let Some(reason) = port.is_over(now, relays, number) {
                    self.close(number, reason);
                }
            }
        }
        busy
    }

    /// Closes both links of a port at once.
    fn close(&mut self, number: usize, reason: &str) {
        let Some(port) = self.ports.get_mut(number).and_then(Option::take) else {
            return;
        };
        self.unwatch(&port.host_side.link);
        if let Some(side) = &port.director_side {
            self.unwatch(&side.link);
        }
        self.close_relays(number);
        tracing::info!(
            host = port.host,
            path = port.priority,
            port = number,
            reason,
            "host link closed"
        );
    }

    fn close_relays(&self, number: usize) {
        for relay in &self.shared.relays {
            lock(relay).close(number);
        }
    }
}

/// The greeting of a link, once it is whole.
fn read_greeting(silent: &mut Silent) -> Result<Option<Greeting>, String> {
    while silent.readable {
        match silent.link.receiver.fill() {
            Ok(Filled::Some) => {}
            Ok(Filled::Blocked) => silent.readable = false,
            Ok(Filled::End) => return Err("link ended before it greeted".to_owned()),
            Err(error) => return Err(error.to_string()),
        }
        let frames = silent.link.receiver.frames().map_err(|e| e.to_string())?;
        if let Some(first) = frames.first() {
            let greeting = FrameHeader::parse(first, silent.link.checksummed)
                .map_err(ProtocolError::from)
                .and_then(|(header, payload)| greeting(&header, payload));
            return greeting.map(Some).map_err(|error| error.to_string());
        }
    }
    Ok(None)
}

/// Makes a link to the first address that answers.
fn connect_to(addresses: &[LinkAddress], links: &LinkOptions) -> Result<Link, String> {
    let mut reasons = Vec::new();
    for address in addresses {
        match connect(address, CONNECT_MAX, links) {
            Ok(link) => return Ok(link),
            Err(error) => reasons.push(format!("{address}: {error}")),
        }
    }
    Err(format!(
        "director cannot be reached: {}",
        reasons.join(", ")
    ))
}

fn ignore_again(result: nix::Result<()>, what: &str) {
    if let Err(error) = result
        && error != nix::Error::EAGAIN
    {
        tracing::error!(%error, what, "descriptor of the edge switch cannot be read");
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::port::passed_on;

    /// The first bytes of a host's link, and what is passed on of them.
    #[test]
    fn p01_any_first_bytes_are_answered() {
        let hello = |host| {
            let hello = fabric_transport::session::hello(&session_config(host), 3, 1, false);
            hello.frame().to_vec()
        };
        let good = [
            hello("host1"),
            [hello("host1"), hello("h")].concat(),
            refusal("a reason", false).frame().to_vec(),
        ];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("switch");
        let address = LinkAddress::Unix(path.clone());
        let listener = Listener::bind(&address, &LinkOptions::default()).unwrap();
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/greeting");
        orimono_fuzz::fuzz(
            corpus,
            &good,
            orimono_fuzz::inputs(5000, 200_000),
            |bytes| {
                let mut host = UnixStream::connect(&path).unwrap();
                host.write_all(bytes).unwrap();
                drop(host);
                let mut silent = Silent {
                    link: listener.accept().unwrap().unwrap(),
                    until: MonotonicTime::ZERO,
                    since: 0,
                    readable: true,
                };
                // All of it is there, and its end: there is an answer.
                if let Some(greeting) = read_greeting(&mut silent).ok().flatten() {
                    assert!(!greeting.host.is_empty());
                    let frames = silent.link.receiver.frames().unwrap();
                    for (frame, sealed) in frames.iter().flat_map(|it| [(it, false), (it, true)]) {
                        if let Ok(passed) = passed_on(frame, false, sealed) {
                            assert_eq!(passed.frame_bytes(), frame.len());
                            assert!(passed_on(passed.frame(), true, false).is_ok() || !sealed);
                        }
                    }
                } else {
                    assert!(!silent.readable || read_greeting(&mut silent).is_err());
                }
            },
        );
    }
}

//! A port: a host's link, and the one that was made to the director for it.
//!
//! ```text
//! (HELLO read) ──> Connecting ──director reached──> Relaying ──a side ended──> Draining ──> (closed)
//!                      └── not reached: the host is told why ──────────────────────────────────┘
//! ```
//!
//! Draining hands the last frames of the side that ended to the other one, a director's refusal for
//! instance, and takes [`DRAIN_MAX`] at most. A link that breaks closes its port at once.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fabric_transport::FrameBuffer;
use fabric_transport::frame::{FrameError, FrameHeader, HEADER_BYTES};
use fabric_transport::link::{Filled, Link, SendQueue, Sent};
use qos::MonotonicTime;

use crate::relay::Relay;

/// How long the last frames of a side that ended are passed on: no longer than a session waits
/// before it gives up a silent link.
pub(crate) const DRAIN_MAX: Duration = Duration::from_millis(100);

/// A port is closed when neither side says anything for this long. Both ends of a session say
/// something four times a second and give each other up far sooner: they are gone without a word.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(10);

/// From host to director; also the side that such frames come from.
pub(crate) const UP: usize = 0;
/// From director to host; also the side that such frames come from.
pub(crate) const DOWN: usize = 1;

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whole between any two statements: going on is safe.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One of the two links of a port.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) link: Link,
    /// What goes out by the link.
    out: SendQueue,
    readable: bool,
    writable: bool,
    /// The receiver holds frames that were not passed on; `handled` of them were.
    pending: bool,
    handled: usize,
    ended: bool,
}

impl Side {
    /// A link of which nothing was passed on. `pending`: its receiver has frames already.
    pub(crate) fn new(link: Link, pending: bool) -> Self {
        Self {
            link,
            out: SendQueue::default(),
            readable: true,
            writable: true,
            pending,
            handled: 0,
            ended: false,
        }
    }

    /// Passes on what the link has, as far as there is room; reads it once at most. True if there
    /// may be more.
    fn read(
        &mut self,
        now: MonotonicTime,
        relay: &mut Relay,
        port: usize,
        to_checksummed: bool,
    ) -> Result<bool, String> {
        if !relay.has_room(port) {
            return Ok(false);
        }
        if !self.pending {
            if !self.readable {
                return Ok(false);
            }
            match self.link.receiver.fill() {
                Ok(Filled::Some) => (self.pending, self.handled) = (true, 0),
                Ok(Filled::Blocked) => {
                    self.readable = false;
                    return Ok(false);
                }
                Ok(Filled::End) => {
                    self.ended = true;
                    return Ok(false);
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        let frames = self.link.receiver.frames().map_err(|e| e.to_string())?;
        let count = frames.len();
        for frame in frames.into_iter().skip(self.handled) {
            if !relay.has_room(port) {
                break;
            }
            let frame = passed_on(frame, self.link.checksummed, to_checksummed);
            relay.push(now, port, frame.map_err(|error| error.to_string())?);
            self.handled += 1;
        }
        self.pending = self.handled < count;
        Ok(true)
    }

    /// Hands what waits to the link. False if the link does not take it all.
    fn flush(&mut self) -> Result<bool, String> {
        match self.link.sender.send(&mut self.out) {
            Ok(Sent::All) => Ok(true),
            Ok(Sent::Blocked) => {
                self.writable = false;
                Ok(false)
            }
            Err(error) => Err(error.to_string()),
        }
    }
}

/// A frame as it goes out by the other link: unchanged, whenever that is possible.
///
/// Between two links that need the CRC32C it is neither checked nor computed anew, so it covers the
/// memory of the switch as well. Where only one of them needs it, it is checked before it is lost,
/// or added.
pub(crate) fn passed_on(
    frame: &[u8],
    from_checksummed: bool,
    to_checksummed: bool,
) -> Result<FrameBuffer, FrameError> {
    match (from_checksummed, to_checksummed) {
        (false, true) => {
            let (header, payload) = FrameHeader::parse(frame, false)?;
            let mut sealed = FrameBuffer::from_payload(payload);
            sealed.seal(&header, true);
            return Ok(sealed);
        }
        (true, false) => {
            FrameHeader::parse(frame, true)?;
        }
        (true, true) | (false, false) => {}
    }
    let mut same = FrameBuffer::with_capacity(frame.len().saturating_sub(HEADER_BYTES));
    same.append_with(|bytes| {
        // The room of the header is filled with the header that the frame has.
        bytes.clear();
        bytes.extend_from_slice(frame);
    });
    Ok(same)
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) host: String,
    /// Which of the host's links it is.
    pub(crate) priority: u8,
    /// Names the attempt to reach the director.
    pub(crate) ticket: u64,
    pub(crate) host_side: Side,
    /// `None` while it is being made.
    pub(crate) director_side: Option<Side>,
    /// When it is closed whatever is left.
    close_by: Option<MonotonicTime>,
    /// When a side was heard last, since they were joined.
    heard_at: MonotonicTime,
}

impl Port {
    /// The port of a link that greeted: number `priority` of `host`. `ticket` names the attempt to
    /// reach the director for it.
    pub(crate) fn new(host: String, priority: u8, ticket: u64, link: Link) -> Self {
        Self {
            host,
            priority,
            ticket,
            // The greeting is passed on as well.
            host_side: Side::new(link, true),
            director_side: None,
            close_by: None,
            heard_at: MonotonicTime::ZERO,
        }
    }

    /// Joins the link to the director with that of the host.
    pub(crate) fn join(&mut self, now: MonotonicTime, link: Link) {
        self.director_side = Some(Side::new(link, false));
        self.heard_at = now;
    }

    /// When [`Self::is_over`] may say something else, if nothing happens before.
    pub(crate) fn deadline(&self) -> Option<MonotonicTime> {
        let joined = self.director_side.is_some();
        let silent = joined.then(|| self.heard_at.saturating_add(SILENCE_MAX));
        self.close_by.into_iter().chain(silent).min()
    }

    pub(crate) fn side_mut(&mut self, side: usize) -> Option<&mut Side> {
        match side {
            UP => Some(&mut self.host_side),
            _ => self.director_side.as_mut(),
        }
    }

    /// Something happened at a side. `hung_up`: the peer sends nothing more, or the link is broken.
    pub(crate) fn mark(&mut self, now: MonotonicTime, side: usize, hung_up: bool) {
        if let Some(side) = self.side_mut(side) {
            (side.readable, side.writable) = (true, true);
        }
        if hung_up {
            self.end(now);
        }
    }

    fn end(&mut self, now: MonotonicTime) {
        self.close_by.get_or_insert(now.saturating_add(DRAIN_MAX));
    }

    /// Reads both links. True if there may be more to read.
    ///
    /// # Errors
    /// Why the port must be closed now.
    pub(crate) fn read(
        &mut self,
        now: MonotonicTime,
        relays: &[Mutex<Relay>; 2],
        number: usize,
    ) -> Result<bool, String> {
        let Some(director_side) = &mut self.director_side else {
            return Ok(false);
        };
        let host_side = &mut self.host_side;
        let mut more = false;
        let [up, down] = relays;
        // Nobody takes what comes for a side that ended, and that has nothing more itself.
        if !host_side.ended && !director_side.ended {
            let to_checksummed = director_side.link.checksummed;
            let read = host_side.read(now, &mut lock(up), number, to_checksummed);
            more |= read.map_err(|error| format!("link of the host: {error}"))?;
            let to_checksummed = host_side.link.checksummed;
            let read = director_side.read(now, &mut lock(down), number, to_checksummed);
            more |= read.map_err(|error| format!("link to the director: {error}"))?;
        }
        let ended = host_side.ended || director_side.ended;
        if more {
            self.heard_at = now;
        }
        if ended {
            self.end(now);
        }
        Ok(more)
    }

    /// Queues a frame that may leave.
    pub(crate) fn grant(&mut self, way: usize, frame: FrameBuffer) {
        if let Some(to) = self.side_mut(1 - way) {
            to.out.push(frame, false);
        }
    }

    /// Hands what may leave to the links.
    ///
    /// # Errors
    /// Why the port must be closed now.
    pub(crate) fn flush(
        &mut self,
        now: MonotonicTime,
        relays: &[Mutex<Relay>; 2],
        number: usize,
    ) -> Result<(), String> {
        for (way, relay) in relays.iter().enumerate() {
            // Who ended takes nothing more; trying would end the port before it is drained.
            if let Some(to) = self.side_mut(1 - way)
                && to.writable
                && !to.ended
                && !to.out.is_sent()
            {
                let all = to.flush()?;
                lock(relay).set_blocked(now, number, !all);
            }
        }
        Ok(())
    }

    /// Whether nothing is left to do for it, and why.
    pub(crate) fn is_over(
        &self,
        now: MonotonicTime,
        relays: &[Mutex<Relay>; 2],
        number: usize,
    ) -> Option<&'static str> {
        let late = self.close_by.is_some_and(|close_by| close_by <= now);
        let drained = |way: usize, from: &Side, to: &Side| {
            let relay = relays.get(way).map(lock);
            let empty = relay.is_none_or(|relay| relay.is_empty(number));
            from.ended && empty && to.out.is_sent()
        };
        match &self.director_side {
            Some(director_side) if director_side.ended => {
                let over = late || drained(DOWN, director_side, &self.host_side);
                over.then_some("the director closed its link")
            }
            Some(director_side) if self.host_side.ended => {
                let over = late || drained(UP, &self.host_side, director_side);
                over.then_some("the host closed its link")
            }
            _ if late => Some("a link broke"),
            Some(_) if self.heard_at.saturating_add(SILENCE_MAX) <= now => {
                Some("host and director are silent")
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fabric_transport::frame::{DeviceId, FrameKind, VirtualLane};
    use fabric_transport::link::in_process_pair;
    use qos::{LinkBudget, VmRate};

    fn sealed(checksummed: bool) -> FrameBuffer {
        let mut frame = FrameBuffer::from_payload(b"payload");
        let header = FrameHeader {
            version: 2,
            kind: FrameKind::Data,
            lane: Some(VirtualLane::Network),
            more: true,
            epoch: 7,
            device: DeviceId(3),
            payload_bytes: 0,
            attachment: 5,
            sequence: 11,
            credit_limit: 13,
            acknowledge: 17,
        };
        frame.seal(&header, checksummed);
        frame
    }

    #[test]
    fn frames_pass_unchanged_or_with_the_checksum_that_the_link_needs() {
        for checksummed in [false, true] {
            let frame = sealed(checksummed);
            let same = passed_on(frame.frame(), checksummed, checksummed).unwrap();
            assert_eq!(same, frame);
        }
        let added = passed_on(sealed(false).frame(), false, true).unwrap();
        assert_eq!(added, sealed(true));
        let kept = passed_on(sealed(true).frame(), true, false).unwrap();
        assert_eq!(kept, sealed(true));
    }

    #[test]
    fn p10_a_flipped_bit_is_not_passed_to_a_link_without_checksums() {
        let mut frame = sealed(true).frame().to_vec();
        frame[40 - 8] ^= 1;
        assert_eq!(passed_on(&frame, true, false), Err(FrameError::Checksum));
        // The far end of a link that has them finds it.
        let passed = passed_on(&frame, true, true).unwrap();
        assert!(FrameHeader::parse(passed.frame(), true).is_err());
    }

    const START: MonotonicTime = MonotonicTime::ZERO;

    /// Port 0 with its relays, of which each lets a frame leave in about 8 ms, and the far ends of
    /// its links: the host's and the director's.
    fn port() -> (Port, [Mutex<Relay>; 2], Link, Link) {
        let relays = [UP, DOWN].map(|_| {
            let budget = LinkBudget::new("test", "40K".parse().unwrap());
            let mut relay = Relay::new(budget, [("host1", VmRate::default())]).unwrap();
            relay.open(START, 0, "host1", 0).unwrap();
            Mutex::new(relay)
        });
        let (host_side, host) = in_process_pair("host");
        let (director_side, director) = in_process_pair("director");
        let mut port = Port::new("host1".to_owned(), 0, 1, host_side);
        port.join(START, director_side);
        (port, relays, host, director)
    }

    fn send(link: &mut Link, frames: usize) {
        let mut queue = SendQueue::default();
        for _ in 0..frames {
            queue.push(sealed(false), false);
        }
        assert_eq!(link.sender.send(&mut queue).unwrap(), Sent::All);
    }

    /// Reads until there is nothing more and lets go what may leave; how many frames did.
    fn turn(port: &mut Port, relays: &[Mutex<Relay>; 2], now: MonotonicTime) -> usize {
        while port.read(now, relays, 0).unwrap() {}
        let mut left = 0;
        for (way, relay) in relays.iter().enumerate() {
            while let Some((_, frame)) = lock(relay).poll(now) {
                port.grant(way, frame);
                left += 1;
            }
        }
        port.flush(now, relays, 0).unwrap();
        left
    }

    #[test]
    fn last_words_of_a_side_that_ended_arrive_before_the_port_is_closed() {
        let (mut port, relays, mut host, mut director) = port();
        send(&mut director, 2);
        drop(director);
        assert_eq!(turn(&mut port, &relays, START), 1);
        assert_eq!(port.is_over(START, &relays, 0), None, "one frame waits");
        let next = lock(&relays[DOWN]).next_wake(START).unwrap();
        assert_eq!(turn(&mut port, &relays, next), 1);
        let over = port.is_over(next, &relays, 0);
        assert_eq!(over, Some("the director closed its link"));
        assert_eq!(host.receiver.fill().unwrap(), Filled::Some);
        assert_eq!(host.receiver.frames().unwrap().len(), 2);
    }

    #[test]
    fn nobody_waits_long_for_a_side_that_ended_and_nothing_is_read_for_it() {
        let (mut port, relays, mut host, mut director) = port();
        send(&mut director, 100);
        drop(director);
        turn(&mut port, &relays, START);
        send(&mut host, 1);
        port.mark(START, UP, false);
        assert_eq!(turn(&mut port, &relays, START), 0, "for whom?");
        assert_eq!(port.is_over(START, &relays, 0), None);
        let late = START.saturating_add(DRAIN_MAX);
        assert!(port.is_over(late, &relays, 0).is_some());
    }

    #[test]
    fn a_link_that_hung_up_ends_its_port_though_it_is_not_read() {
        let (mut port, relays, _host, mut director) = port();
        port.mark(START, UP, true);
        send(&mut director, 1);
        turn(&mut port, &relays, START);
        assert_eq!(port.is_over(START, &relays, 0), None);
        let late = START.saturating_add(DRAIN_MAX);
        assert_eq!(port.is_over(late, &relays, 0), Some("a link broke"));
    }

    #[test]
    fn a_port_whose_ends_vanished_without_a_word_is_closed() {
        let (mut port, relays, mut host, _director) = port();
        let later = START.saturating_add(SILENCE_MAX / 2);
        send(&mut host, 1);
        port.mark(later, UP, false);
        turn(&mut port, &relays, later);
        let deadline = port.deadline().unwrap();
        assert_eq!(deadline, later.saturating_add(SILENCE_MAX));
        let before = MonotonicTime::from_nanos(deadline.as_nanos() - 1);
        assert_eq!(port.is_over(before, &relays, 0), None);
        let over = port.is_over(deadline, &relays, 0);
        assert_eq!(over, Some("host and director are silent"));
    }
}

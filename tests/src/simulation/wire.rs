//! The cables of a world and the connections over them: bytes in order, late, and not always.

use std::collections::VecDeque;
use std::time::Duration;

use qos::{BitRate, MonotonicTime};

/// A time that never comes.
pub(super) const NEVER: MonotonicTime = MonotonicTime::from_nanos(u64::MAX);

/// What joins a host to its director, whatever connections are made over it.
#[derive(Debug, Clone)]
pub(super) struct Cable {
    pub(super) rate: BitRate,
    pub(super) delay: Duration,
    pub(super) jitter: Duration,
    /// Bytes that a connection holds in one direction: both socket buffers.
    pub(super) buffer_bytes: usize,
    /// Nothing passes before, towards the director and towards the host.
    pub(super) blocked_until: [MonotonicTime; 2],
    /// A connection is refused before.
    pub(super) down_until: MonotonicTime,
    /// The rate is an eighth before.
    pub(super) slow_until: MonotonicTime,
}

/// One direction of a connection.
#[derive(Debug, Default)]
struct Pipe {
    segments: VecDeque<(MonotonicTime, Vec<u8>)>,
    bytes: usize,
    free_at: MonotonicTime,
    last_arrival: MonotonicTime,
    /// Held back until then, and for ever if the connection does not heal.
    blocked_until: MonotonicTime,
    /// The writer closed it.
    ends_at: Option<MonotonicTime>,
    /// Nobody reads any more.
    sink: bool,
    flip_next: bool,
}

/// One connection; side 0 is the host, side 1 the director.
#[derive(Debug)]
struct Wire {
    cable: usize,
    pipes: [Pipe; 2],
    closed: [bool; 2],
}

/// What a read found.
#[derive(Debug)]
pub(super) enum Read {
    Some(Vec<u8>),
    Blocked,
    End,
}

/// All cables and connections of a world.
#[derive(Debug, Default)]
pub(super) struct Wires {
    pub(super) cables: Vec<Cable>,
    wires: Vec<Wire>,
}

impl Wires {
    /// A new connection over `cable`.
    pub(super) fn connect(&mut self, cable: usize) -> usize {
        self.wires.push(Wire {
            cable,
            pipes: Default::default(),
            closed: [false; 2],
        });
        self.wires.len() - 1
    }

    /// Writes what fits; returns how much that was.
    pub(super) fn send(
        &mut self,
        now: MonotonicTime,
        (wire, side): (usize, usize),
        bytes: &[u8],
        random: &mut fastrand::Rng,
    ) -> usize {
        let Some(wire) = self.wires.get_mut(wire) else {
            return bytes.len();
        };
        let (Some(pipe), Some(cable)) = (wire.pipes.get_mut(side), self.cables.get(wire.cable))
        else {
            return bytes.len();
        };
        if pipe.sink {
            return bytes.len();
        }
        let taken = cable
            .buffer_bytes
            .saturating_sub(pipe.bytes)
            .min(bytes.len());
        if taken == 0 {
            return 0;
        }
        let mut segment = bytes.get(..taken).unwrap_or_default().to_vec();
        if std::mem::take(&mut pipe.flip_next) {
            flip(&mut segment, random);
        }
        let slow = if now < cable.slow_until { 8 } else { 1 };
        let nanos = cable.rate.transmission_nanos(taken as u64) * slow;
        pipe.free_at = pipe
            .free_at
            .max(now)
            .saturating_add(Duration::from_nanos(nanos));
        let jitter = u64::try_from(cable.jitter.as_nanos()).unwrap_or(0);
        let late = cable.delay + Duration::from_nanos(random.u64(0..=jitter));
        pipe.last_arrival = pipe.last_arrival.max(pipe.free_at.saturating_add(late));
        pipe.blocked_until = pipe
            .blocked_until
            .max(cable.blocked_until.get(side).copied().unwrap_or_default());
        pipe.bytes += taken;
        pipe.segments.push_back((pipe.last_arrival, segment));
        taken
    }

    /// Reads what has arrived at `side`.
    pub(super) fn read(&mut self, now: MonotonicTime, (wire, side): (usize, usize)) -> Read {
        let Some(pipe) = self
            .wires
            .get_mut(wire)
            .and_then(|wire| wire.pipes.get_mut(1 - side))
        else {
            return Read::End;
        };
        if now < pipe.blocked_until {
            return Read::Blocked;
        }
        if let Some((at, _)) = pipe.segments.front() {
            if *at > now {
                return Read::Blocked;
            }
            let segment = pipe.segments.pop_front().map(|(_, bytes)| bytes);
            let segment = segment.unwrap_or_default();
            pipe.bytes -= segment.len();
            return Read::Some(segment);
        }
        match pipe.ends_at {
            Some(at) if at <= now => Read::End,
            _ => Read::Blocked,
        }
    }

    /// When `side` has something to read.
    pub(super) fn readable_at(&self, (wire, side): (usize, usize)) -> MonotonicTime {
        let Some(pipe) = self
            .wires
            .get(wire)
            .and_then(|wire| wire.pipes.get(1 - side))
        else {
            return NEVER;
        };
        let first = pipe.segments.front().map(|(at, _)| *at).or(pipe.ends_at);
        first.map_or(NEVER, |at| at.max(pipe.blocked_until))
    }

    /// Whether `side` could write more.
    pub(super) fn has_room(&self, (wire, side): (usize, usize)) -> bool {
        self.wires.get(wire).is_some_and(|wire| {
            let buffer = self
                .cables
                .get(wire.cable)
                .map_or(0, |cable| cable.buffer_bytes);
            let pipe = wire.pipes.get(side);
            pipe.is_some_and(|pipe| pipe.sink || pipe.bytes < buffer)
        })
    }

    /// `side` closes the connection: a part of what it wrote may be lost, what was on its way to it
    /// is.
    pub(super) fn close(
        &mut self,
        now: MonotonicTime,
        (wire, side): (usize, usize),
        keep_percent: usize,
    ) {
        let Some(wire) = self.wires.get_mut(wire) else {
            return;
        };
        if wire
            .closed
            .get_mut(side)
            .is_none_or(|closed| std::mem::replace(closed, true))
        {
            return;
        }
        let delay = self
            .cables
            .get(wire.cable)
            .map_or(Duration::ZERO, |cable| cable.delay);
        if let Some(pipe) = wire.pipes.get_mut(side) {
            pipe.cut(keep_percent);
            pipe.ends_at = Some(pipe.last_arrival.max(now.saturating_add(delay)));
        }
        if let Some(pipe) = wire.pipes.get_mut(1 - side) {
            pipe.cut(0);
            pipe.sink = true;
        }
    }

    /// Both ends of every connection over `cable` see it end.
    pub(super) fn cut(&mut self, now: MonotonicTime, cable: usize, keep_percent: usize) {
        for wire in self.wires.iter_mut().filter(|wire| wire.cable == cable) {
            for pipe in &mut wire.pipes {
                pipe.cut(keep_percent);
                pipe.sink = true;
                pipe.ends_at
                    .get_or_insert(pipe.last_arrival.min(now).max(now));
                for (at, _) in &mut pipe.segments {
                    *at = (*at).min(now);
                }
            }
        }
    }

    /// Nothing passes in the `directions` of the connections over `cable` before `until`.
    pub(super) fn block(&mut self, cable: usize, directions: [bool; 2], until: MonotonicTime) {
        for wire in self.wires.iter_mut().filter(|wire| wire.cable == cable) {
            for (pipe, blocked) in wire.pipes.iter_mut().zip(directions) {
                if blocked {
                    pipe.blocked_until = pipe.blocked_until.max(until);
                }
            }
        }
    }

    /// Flips a bit of what is underway over `cable`, or of what goes next.
    pub(super) fn flip(&mut self, cable: usize, side: usize, random: &mut fastrand::Rng) {
        let wire = self.wires.iter_mut().rev().find(|wire| wire.cable == cable);
        if let Some(pipe) = wire.and_then(|wire| wire.pipes.get_mut(side)) {
            match pipe.segments.back_mut() {
                Some((_, segment)) => flip(segment, random),
                None => pipe.flip_next = true,
            }
        }
    }
}

impl Pipe {
    /// Keeps a part of what is underway.
    fn cut(&mut self, keep_percent: usize) {
        let mut left = self.bytes * keep_percent / 100;
        self.bytes = left;
        self.segments.retain_mut(|(_, segment)| {
            segment.truncate(left);
            left -= segment.len();
            !segment.is_empty()
        });
    }
}

fn flip(segment: &mut [u8], random: &mut fastrand::Rng) {
    let at = random.usize(0..segment.len().max(1));
    if let Some(byte) = segment.get_mut(at) {
        *byte ^= 1 << random.u32(0..8);
    }
}

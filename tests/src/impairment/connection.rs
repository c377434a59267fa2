//! One connection through the proxy: two sockets and a path each way between them.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::time::Instant;

use nix::poll::PollFlags;

use super::way::{self, Hole, PIECE_BYTES_MAX, Way};
use super::{Counters, Direction};
use crate::fabric::RawStream;

/// What one path holds at most.
const HELD_BYTES_MAX: usize = 4 * 1024 * 1024;
const HELD_CHUNKS_MAX: usize = 8 * 1024;

/// Bytes as they came, or the end of the stream when there are none.
#[derive(Debug)]
struct Chunk {
    bytes: Vec<u8>,
    passed: usize,
    arrived: Instant,
    /// Its part of the jitter.
    share: u16,
}

/// From one socket to the other.
#[derive(Debug, Default)]
struct Path {
    chunks: VecDeque<Chunk>,
    held: usize,
    /// The end of the stream has been read.
    ended: bool,
    /// Reading failed, or writing to the socket that this path reads from did.
    broken: bool,
    /// The end of the stream has been passed on.
    finished: bool,
    /// Nobody is at the other end: bytes are read and thrown away.
    drain: bool,
    /// The kernel takes no more for now.
    blocked: bool,
}

/// The far socket is gone.
struct OutputGone;

impl Path {
    fn discard(&mut self) -> u64 {
        self.chunks.retain(|chunk| chunk.bytes.is_empty());
        let held = std::mem::take(&mut self.held);
        u64::try_from(held).unwrap_or(u64::MAX)
    }

    fn abandon(&mut self) {
        self.chunks.clear();
        self.held = 0;
        self.drain = true;
        self.blocked = false;
    }

    /// Nothing will ever pass again.
    fn over(&self) -> bool {
        self.finished || (self.drain && (self.ended || self.broken))
    }

    /// Apart from its pace.
    fn reads(&self, way: &Way) -> bool {
        let room = self.held < HELD_BYTES_MAX && self.chunks.len() < HELD_CHUNKS_MAX;
        !self.ended && !self.broken && way.hole != Hole::Silent && (room || self.drain)
    }

    fn writes(&self, way: &Way) -> bool {
        way.hole == Hole::Off && !self.drain && !self.chunks.is_empty()
    }

    fn take_in(
        &mut self,
        from: &RawStream,
        way: &mut Way,
        now: Instant,
        room: &mut [u8; PIECE_BYTES_MAX],
        counters: &mut Counters,
    ) {
        let limit = way::allowed(way.reader.as_ref(), now);
        if limit == 0 || !self.reads(way) {
            return;
        }
        let room = room.get_mut(..limit).unwrap_or_default();
        match from.read(room) {
            Ok(0) => {
                self.ended = true;
                self.push(Vec::new(), now);
            }
            Ok(bytes) => {
                way::spend(way.reader.as_mut(), bytes, now);
                if self.drain || way.hole == Hole::Discard {
                    counters.discarded += u64::try_from(bytes).unwrap_or(u64::MAX);
                    return;
                }
                let mut bytes = room.get(..bytes).unwrap_or_default().to_vec();
                if let Some(flips) = &mut way.flips {
                    counters.flipped_bits += flips.apply(&mut bytes);
                }
                self.held += bytes.len();
                self.push(bytes, now);
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_reset) => self.broken = true,
        }
    }

    fn push(&mut self, bytes: Vec<u8>, arrived: Instant) {
        self.chunks.push_back(Chunk {
            bytes,
            passed: 0,
            arrived,
            share: fastrand::u16(..),
        });
    }

    /// Passes on what is due; `passed` counts it.
    fn give_out(
        &mut self,
        to: &RawStream,
        way: &mut Way,
        now: Instant,
        passed: &mut u64,
    ) -> Result<(), OutputGone> {
        self.blocked = false;
        if !self.writes(way) {
            return Ok(());
        }
        while let Some(chunk) = self.chunks.front_mut() {
            if chunk.arrived + way.stay(chunk.share) > now {
                break;
            }
            if chunk.bytes.is_empty() {
                to.finish();
                self.finished = true;
                self.chunks.clear();
                break;
            }
            let limit = way::allowed(way.rate.as_ref(), now);
            if limit == 0 {
                break;
            }
            let rest = chunk.bytes.get(chunk.passed..).unwrap_or_default();
            match to.write(rest.get(..limit).unwrap_or(rest)) {
                Ok(bytes) => {
                    way::spend(way.rate.as_mut(), bytes, now);
                    *passed += u64::try_from(bytes).unwrap_or(u64::MAX);
                    self.held -= bytes;
                    chunk.passed += bytes;
                    if chunk.passed == chunk.bytes.len() {
                        self.chunks.pop_front();
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.blocked = true;
                    break;
                }
                Err(_gone) => return Err(OutputGone),
            }
        }
        Ok(())
    }

    /// When time alone lets something happen.
    fn next(&self, way: &Way, now: Instant) -> Option<Instant> {
        let reader = way.reader.as_ref().map(way::Pace::next);
        let read = reader.filter(|next| *next > now && self.reads(way));
        let writes = self.writes(way) && !self.blocked;
        let front = self.chunks.front().filter(|_| writes);
        let write = front.map(|chunk| {
            let due = chunk.arrived + way.stay(chunk.share);
            way.rate.as_ref().map_or(due, |rate| due.max(rate.next()))
        });
        read.into_iter().chain(write).min()
    }
}

#[derive(Debug)]
pub(super) struct Connection {
    client: RawStream,
    target: RawStream,
    to_target: Path,
    from_target: Path,
}

/// What comes of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Lives,
    /// Both streams have ended.
    Ended,
    /// An end has reset it, and the other is to be told.
    Reset,
}

impl Connection {
    pub(super) fn new(client: RawStream, target: RawStream) -> Self {
        Self {
            client,
            target,
            to_target: Path::default(),
            from_target: Path::default(),
        }
    }

    /// Moves what can be moved now.
    pub(super) fn pump(
        &mut self,
        (to_target, from_target): (&mut Way, &mut Way),
        now: Instant,
        room: &mut [u8; PIECE_BYTES_MAX],
        counters: &mut Counters,
    ) -> Fate {
        let (up, down) = (&mut self.to_target, &mut self.from_target);
        up.take_in(&self.client, to_target, now, room, counters);
        down.take_in(&self.target, from_target, now, room, counters);
        let to = up.give_out(&self.target, to_target, now, &mut counters.to_target);
        if let Err(OutputGone) = to {
            up.abandon();
            down.broken = true;
        }
        let from = down.give_out(&self.client, from_target, now, &mut counters.from_target);
        if let Err(OutputGone) = from {
            down.abandon();
            up.broken = true;
        }
        // A reset travels the way of the bytes: a hole keeps it from the other end.
        let told = |path: &Path, way: &Way| path.broken && !path.drain && way.hole == Hole::Off;
        if told(up, to_target) || told(down, from_target) {
            Fate::Reset
        } else if up.over() && down.over() {
            Fate::Ended
        } else {
            Fate::Lives
        }
    }

    /// Ends the streams that arrive at the ends of `direction`; what still comes from either
    /// end is thrown away.
    pub(super) fn end(&mut self, direction: Direction) {
        if direction.includes_to_target() {
            self.target.finish();
        }
        if direction.includes_from_target() {
            self.client.finish();
        }
        self.to_target.abandon();
        self.from_target.abandon();
    }

    /// Throws away what is underway; how many bytes.
    pub(super) fn discard(&mut self, direction: Direction) -> u64 {
        let mut bytes = 0;
        if direction.includes_to_target() {
            bytes += self.to_target.discard();
        }
        if direction.includes_from_target() {
            bytes += self.from_target.discard();
        }
        bytes
    }

    pub(super) fn held(&self) -> usize {
        self.to_target.held + self.from_target.held
    }

    /// RST to both ends.
    pub(super) fn reset(self) {
        for socket in [self.client, self.target] {
            if let Err(error) = socket.reset() {
                tracing::warn!(%error, "proxy cannot reset a connection; it was closed");
            }
        }
    }

    /// What to wait for on the client's and on the target's socket.
    pub(super) fn interest(
        &self,
        to_target: &Way,
        from_target: &Way,
        now: Instant,
    ) -> [(&RawStream, PollFlags); 2] {
        let flags = |input: &Path, way: &Way, output: &Path| {
            let mut flags = PollFlags::empty();
            let reads = input.reads(way) && way::allowed(way.reader.as_ref(), now) > 0;
            flags.set(PollFlags::POLLIN, reads);
            flags.set(PollFlags::POLLOUT, output.blocked);
            flags
        };
        [
            (
                &self.client,
                flags(&self.to_target, to_target, &self.from_target),
            ),
            (
                &self.target,
                flags(&self.from_target, from_target, &self.to_target),
            ),
        ]
    }

    pub(super) fn next(&self, to_target: &Way, from_target: &Way, now: Instant) -> Option<Instant> {
        let up = self.to_target.next(to_target, now);
        let down = self.from_target.next(from_target, now);
        up.into_iter().chain(down).min()
    }
}

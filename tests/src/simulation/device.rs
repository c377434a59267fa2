//! A device at one end of a session: what it sends, what it makes of what arrives, and what of that
//! is wrong.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use fabric_transport::control::Windows;
use fabric_transport::frame::{self, FrameBuffer, HEADER_BYTES};
use fabric_transport::session::Role;
use fabric_transport::{DeviceId, VirtualLane};
use qos::{DeviceHandle, DeviceRate, MonotonicTime};

use super::record::{Checker, Record};
use super::wire::NEVER;

/// What a receiver does with its frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Consumer {
    /// Frees them at once.
    Prompt,
    /// Frees them this late.
    Late(Duration),
    /// Frees nothing until the world ends.
    Stalled,
}

/// What a device is at one end.
#[derive(Debug, Clone)]
pub(super) struct Side {
    pub(super) rate: DeviceRate,
    pub(super) windows: Windows,
    pub(super) consumer: Consumer,
    /// Between two payloads, or requests.
    pub(super) interval: Duration,
    /// Sends as much as it may before.
    pub(super) greedy_until: MonotonicTime,
    /// Payloads or requests of one attachment at most, after that.
    pub(super) payloads: u32,
}

/// What a device is.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) id: DeviceId,
    pub(super) storage: bool,
    /// The director does not serve it.
    pub(super) foreign: bool,
    pub(super) payload_bytes: std::ops::Range<usize>,
    pub(super) host: Side,
    pub(super) director: Side,
}

impl Plan {
    pub(super) fn side(&self, role: Role) -> &Side {
        match role {
            Role::Host => &self.host,
            Role::Director => &self.director,
        }
    }
}

/// Bytes of a stamp.
pub(super) const STAMP_BYTES: usize = 32;

/// What stands in front of each payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    epoch: u16,
    lane: u16,
    device: u32,
    generation: u32,
    number: u32,
    /// The request that it belongs to; 0 for a stream.
    tag: u64,
    /// Of a command: the payloads of data that belong to it. Of data: 0.
    rest: u32,
}

impl Stamp {
    fn put(&self, payload: &mut [u8]) {
        let mut bytes = Vec::with_capacity(STAMP_BYTES);
        bytes.extend(self.epoch.to_le_bytes());
        bytes.extend(self.lane.to_le_bytes());
        bytes.extend(self.device.to_le_bytes());
        bytes.extend(self.generation.to_le_bytes());
        bytes.extend(self.number.to_le_bytes());
        bytes.extend(self.tag.to_le_bytes());
        bytes.extend(self.rest.to_le_bytes());
        for (to, from) in payload.iter_mut().zip(bytes) {
            *to = from;
        }
    }

    fn parse(payload: &[u8]) -> Option<Self> {
        let (epoch, rest) = payload.split_first_chunk()?;
        let (lane, rest) = rest.split_first_chunk()?;
        let (device, rest) = rest.split_first_chunk()?;
        let (generation, rest) = rest.split_first_chunk()?;
        let (number, rest) = rest.split_first_chunk()?;
        let (tag, rest) = rest.split_first_chunk()?;
        let (more, _) = rest.split_first_chunk()?;
        Some(Self {
            epoch: u16::from_le_bytes(*epoch),
            lane: u16::from_le_bytes(*lane),
            device: u32::from_le_bytes(*device),
            generation: u32::from_le_bytes(*generation),
            number: u32::from_le_bytes(*number),
            tag: u64::from_le_bytes(*tag),
            rest: u32::from_le_bytes(*more),
        })
    }
}

/// A payload that is to be sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Payload {
    pub(super) lane: VirtualLane,
    pub(super) bytes: usize,
    tag: u64,
    rest: u32,
}

#[derive(Debug)]
struct Held {
    until: MonotonicTime,
    lane: VirtualLane,
    bytes: usize,
    tag: u64,
    rest: u32,
}

/// One attachment of a device at one end.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) plan: Plan,
    role: Role,
    pub(super) handle: DeviceHandle,
    pub(super) generation: u32,
    pub(super) attached: bool,
    /// A send was refused since it was last told to go on.
    pub(super) waits: bool,
    next_at: MonotonicTime,
    left: u32,
    /// What could not be sent yet.
    refused: Option<Vec<Payload>>,
    pub(super) sent: [u32; VirtualLane::COUNT],
    pub(super) received: [u32; VirtualLane::COUNT],
    pub(super) received_bytes: u64,
    held: VecDeque<Held>,
    held_blocks: [u32; VirtualLane::COUNT],
    /// Host: requests that are not answered.
    pub(super) requests: BTreeMap<u64, MonotonicTime>,
    tags: u64,
    /// Director: payloads of each request that have not come, and whether its command has.
    collecting: BTreeMap<u64, (i64, bool)>,
    answers: VecDeque<u64>,
}

/// Buffers that are free again.
pub(super) type Released = Vec<(VirtualLane, u32)>;

impl Attachment {
    pub(super) fn new(
        plan: Plan,
        role: Role,
        handle: DeviceHandle,
        generation: u32,
        now: MonotonicTime,
    ) -> Self {
        let left = plan.side(role).payloads;
        Self {
            role,
            handle,
            generation,
            attached: false,
            waits: false,
            next_at: now,
            left,
            refused: None,
            sent: [0; VirtualLane::COUNT],
            received: [0; VirtualLane::COUNT],
            received_bytes: 0,
            held: VecDeque::new(),
            held_blocks: [0; VirtualLane::COUNT],
            requests: BTreeMap::new(),
            tags: 0,
            collecting: BTreeMap::new(),
            answers: VecDeque::new(),
            plan,
        }
    }

    fn side(&self) -> &Side {
        self.plan.side(self.role)
    }

    /// Whether it holds nothing, and has nothing to send.
    pub(super) fn is_idle(&self) -> bool {
        self.held.is_empty() && self.answers.is_empty() && self.refused.is_none()
    }

    /// A payload of the session with `epoch` arrived.
    pub(super) fn receive(
        &mut self,
        epoch: u16,
        lane: VirtualLane,
        payload: &[u8],
        record: &mut Record,
    ) {
        let id = self.plan.id;
        let at = format!("{id} on {lane:?} at the {:?}", self.role);
        let Some(stamp) = Stamp::parse(payload) else {
            record.accuse(Checker::Order, || {
                format!("{at} got a payload that nobody sent")
            });
            return;
        };
        if stamp.epoch != epoch || stamp.generation != self.generation {
            let own = self.generation;
            record.accuse(Checker::Stale, || {
                format!("{at}, session {epoch} attachment {own}, got {stamp:?}")
            });
        }
        let right = (id.0, lane.index()) == (stamp.device, usize::from(stamp.lane));
        let expected = self.received.get_mut(lane.index());
        let expected = expected.map_or(0, |next| {
            std::mem::replace(next, stamp.number.wrapping_add(1))
        });
        if !right || stamp.number != expected {
            record.accuse(Checker::Order, || {
                format!("{at} got {stamp:?}, {expected} was next")
            });
        }
        self.received_bytes += (HEADER_BYTES + payload.len()) as u64;
        let window = self.side().windows.get(lane.index()).copied().unwrap_or(0);
        if let Some(held) = self.held_blocks.get_mut(lane.index()) {
            *held += frame::blocks(payload.len());
            let held = *held;
            if held > window {
                record.accuse(Checker::Window, || {
                    format!("{at} holds {held} of {window} blocks")
                });
            }
        }
        record.counters.delivered += 1;
        let until = match self.side().consumer {
            Consumer::Prompt => record.now,
            Consumer::Late(late) => record.now.saturating_add(late),
            Consumer::Stalled => NEVER,
        };
        self.held.push_back(Held {
            until,
            lane,
            bytes: payload.len(),
            tag: stamp.tag,
            rest: stamp.rest,
        });
    }

    /// Frees the buffers whose time has come.
    pub(super) fn release(&mut self, record: &mut Record) -> Released {
        let mut released = Vec::new();
        while let Some(held) = self
            .held
            .pop_front_if(|held| record.draining || held.until <= record.now)
        {
            let blocks = frame::blocks(held.bytes);
            if let Some(sum) = self.held_blocks.get_mut(held.lane.index()) {
                *sum = sum.saturating_sub(blocks);
            }
            released.push((held.lane, blocks));
            if held.tag != 0 {
                self.complete(&held, record);
            }
        }
        released
    }

    /// Whether a frame of so many blocks could be given back once more and nobody would notice here.
    pub(super) fn holds(&self, lane: VirtualLane, blocks: u32) -> bool {
        self.held_blocks
            .get(lane.index())
            .is_some_and(|held| *held >= blocks)
    }

    fn complete(&mut self, held: &Held, record: &mut Record) {
        if self.role == Role::Host {
            if self.requests.remove(&held.tag).is_some() {
                record.counters.answered += 1;
            } else {
                let (id, tag) = (self.plan.id, held.tag);
                record.accuse(Checker::Order, || {
                    format!("{id} got an answer to request {tag}, for which nobody waits")
                });
            }
            return;
        }
        let (missing, commanded) = self.collecting.entry(held.tag).or_default();
        if held.lane == VirtualLane::StorageCommand {
            *missing += i64::from(held.rest);
            *commanded = true;
        } else {
            *missing -= 1;
        }
        if *commanded && *missing == 0 {
            self.collecting.remove(&held.tag);
            self.answers.push_back(held.tag);
        }
    }

    /// What it would send now. What is not taken comes back by [`Self::put_back`].
    pub(super) fn next(&mut self, record: &mut Record) -> Option<Vec<Payload>> {
        if !self.attached || self.waits {
            return None;
        }
        if let Some(refused) = self.refused.take() {
            return Some(refused);
        }
        let range = self.plan.payload_bytes.clone();
        let one = |lane, bytes, tag, rest| Payload {
            lane,
            bytes,
            tag,
            rest,
        };
        if let Some(tag) = self.answers.pop_front() {
            let bytes = record.random.usize(range);
            return Some(vec![one(VirtualLane::StorageData, bytes, tag, 0)]);
        }
        let answers_only = self.plan.storage && self.role == Role::Director;
        if record.draining || answers_only || record.now < self.next_at {
            return None;
        }
        let (interval, greedy_until) = (self.side().interval, self.side().greedy_until);
        if record.now >= greedy_until {
            if self.left == 0 {
                return None;
            }
            self.left -= 1;
            let nanos = u64::try_from(interval.as_nanos()).unwrap_or(0);
            let pause = Duration::from_nanos(record.random.u64(nanos / 2..=nanos * 3 / 2));
            self.next_at = record.now.saturating_add(pause);
        }
        let bytes = record.random.usize(range.clone());
        if !self.plan.storage {
            return Some(vec![one(VirtualLane::Network, bytes, 0, 0)]);
        }
        self.tags += 1;
        self.requests.insert(self.tags, record.now);
        let rest = record.random.u32(0..3);
        let mut request = vec![one(VirtualLane::StorageCommand, 64, self.tags, rest)];
        for _ in 0..rest {
            let bytes = record.random.usize(range.clone());
            request.push(one(VirtualLane::StorageData, bytes, self.tags, 0));
        }
        Some(request)
    }

    pub(super) fn put_back(&mut self, refused: Vec<Payload>) {
        self.refused = Some(refused);
        self.waits = true;
    }

    /// The payload with its stamp.
    pub(super) fn stamped(&mut self, epoch: u16, payload: &Payload) -> FrameBuffer {
        let mut buffer = FrameBuffer::zeroed(payload.bytes.max(STAMP_BYTES));
        let number = self.sent.get_mut(payload.lane.index());
        let number = number.map_or(0, |next| {
            *next = next.wrapping_add(1);
            next.wrapping_sub(1)
        });
        let stamp = Stamp {
            epoch,
            lane: u16::try_from(payload.lane.index()).unwrap_or(u16::MAX),
            device: self.plan.id.0,
            generation: self.generation,
            number,
            tag: payload.tag,
            rest: payload.rest,
        };
        stamp.put(buffer.payload_mut());
        buffer
    }

    /// When it wants to be run.
    pub(super) fn due(&self, record: &Record) -> MonotonicTime {
        let release = self.held.front().map_or(NEVER, |held| {
            if record.draining {
                record.now
            } else {
                held.until
            }
        });
        let has_more = self.left > 0 || record.now < self.side().greedy_until;
        let answers_only = self.plan.storage && self.role == Role::Director;
        let send = if !self.attached || self.waits {
            NEVER
        } else if self.refused.is_some() || !self.answers.is_empty() {
            record.now
        } else if has_more && !answers_only && !record.draining {
            self.next_at
        } else {
            NEVER
        };
        release.min(send)
    }
}

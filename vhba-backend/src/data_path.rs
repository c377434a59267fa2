//! Commands: from a request ring onto the lanes, and back with data and status.
//!
//! ```text
//! (ring) --taken--> AtHand --sent--> Underway --STATUS--> (ring)
//!    ^----stopped----'  ^--refused-----'  `-----session lost, ended by a function--> (ring)
//! ```
//!
//! A command at hand stands in the table with no epoch: no reply can be for it. It is given one
//! before it is sent, so that a reply finds it however fast it comes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use fabric_payload::scsi::{
    self, DATA_BYTES_MAX, DATA_HEADER_BYTES, Data, InformationUnit, LunBytes, ServiceResponse,
    Status, Tag,
};
use fabric_transport::{FrameBuffer, LaneSet, SendRefused, VirtualLane};
use vhost_user_session::{BusyPoll, Chain, ChainError, Queue, StopReason};

use crate::device::{VhbaDevice, lock};
use crate::in_flight::InFlight;
use crate::request::{
    self, REQUEST_BYTES, RESPONSE_BYTES, Refusal, Request, Response, ResponseCode,
};
use crate::statistics::{add, count};

/// Requests taken in one turn of a ring.
const REQUESTS_PER_TURN_MAX: usize = 32;

/// A command that was taken from a ring and not completed.
#[derive(Debug)]
pub(crate) struct Command {
    queue: Queue,
    chain: Chain,
    pub(crate) lun: LunBytes,
    /// The guest's name for it.
    pub(crate) id: u64,
    /// Task attribute (virtio 1.2 section 5.6.6.1).
    pub(crate) attribute: u8,
    /// Order of taking.
    pub(crate) serial: u64,
    /// Of the session it was sent on; `None` while it is at hand.
    pub(crate) epoch: Option<u16>,
    data_out_bytes: u32,
    data_in_bytes: u32,
    /// Data-in that is in the guest's buffers.
    delivered_bytes: u32,
}

/// Commands in flight.
#[derive(Debug)]
pub(crate) struct Commands {
    pub(crate) in_flight: InFlight<Command>,
    /// Serial number of the next command.
    pub(crate) serial: u64,
}

/// A chain to be returned to its ring.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) queue: Queue,
    pub(crate) chain: Chain,
    pub(crate) written: u32,
}

impl Command {
    /// Bytes not transferred, of a command that was not carried out or only in part.
    pub(crate) fn residual_if_failed(&self) -> u32 {
        self.data_out_bytes.saturating_add(self.data_in_residual())
    }

    fn data_in_residual(&self) -> u32 {
        self.data_in_bytes.saturating_sub(self.delivered_bytes)
    }

    /// Writes the response; the chain is to be returned.
    pub(crate) fn finish(self, response: &Response) -> Done {
        let written = write_response(&self.chain, response).saturating_add(self.delivered_bytes);
        Done {
            queue: self.queue,
            chain: self.chain,
            written,
        }
    }

    /// Takes a piece of data-in. Pieces come in order and without gaps, or they are refused.
    fn deliver(&mut self, data: &Data<'_>) -> Result<(), ChainError> {
        let length = u32::try_from(data.data.len()).map_err(|_long| ChainError::OutOfBounds)?;
        let end = data
            .offset
            .checked_add(length)
            .filter(|end| *end <= self.data_in_bytes);
        let (Some(end), true) = (end, data.offset == self.delivered_bytes) else {
            return Err(ChainError::OutOfBounds);
        };
        let offset = bytes(RESPONSE_BYTES).saturating_add(u64::from(data.offset));
        self.chain.write_at(offset, data.data)?;
        self.delivered_bytes = end;
        Ok(())
    }
}

pub(crate) fn write_response(chain: &Chain, response: &Response) -> u32 {
    // Cannot fail: the room was checked when the chain was taken, and stays mapped.
    let written = chain
        .write_at(0, &response.encode())
        .map_or(0, |()| RESPONSE_BYTES);
    u32::try_from(written).unwrap_or(0)
}

pub(crate) fn bytes(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// The request that waits for credit.
#[derive(Debug)]
struct Held {
    tag: Tag,
    frames: Vec<(VirtualLane, FrameBuffer)>,
}

/// One request ring; `None` in `queue` while it is stopped.
#[derive(Debug)]
pub(crate) struct RequestQueue {
    queue: Option<Queue>,
    held: Option<Held>,
    poll: BusyPoll,
}

impl RequestQueue {
    pub(crate) fn new(busy_poll: Duration) -> Self {
        Self {
            queue: None,
            held: None,
            poll: BusyPoll::new(busy_poll),
        }
    }

    pub(crate) fn start(&mut self, queue: Queue) {
        self.queue = Some(queue);
    }
}

/// What a turn leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// The ring is empty or stopped.
    Empty,
    /// It waits for credit or for a session.
    Waits,
    /// The turn's limit ended it.
    More,
}

impl VhbaDevice {
    /// Sends what is in request ring `number`, up to a turn's limit, and what comes while it is
    /// polled; a ring that waits for credit goes on only when `woken`.
    pub(crate) fn serve_requests(&self, number: usize, woken: bool) {
        let Some(ring) = self.request_queues.get(number) else {
            return;
        };
        loop {
            let mut state = lock(ring);
            if state.held.is_some() && !woken {
                return;
            }
            state.poll.filled(Instant::now());
            match self.turn(&mut state) {
                Turn::Waits => return,
                // Worker 0 has the control and the event ring.
                Turn::More => return self.wake(number + 1),
                Turn::Empty => {}
            }
            let longest = state.poll.emptied(Instant::now());
            let queue = state.queue.clone().filter(|_| !longest.is_zero());
            drop(state);
            if !queue.is_some_and(|queue| queue.poll(longest)) {
                return;
            }
        }
    }

    /// Reads what the guest has made available up to now; `false` if a ring waits for credit.
    pub(crate) fn read_request_rings(&self) -> bool {
        let mut all = true;
        for ring in &self.request_queues {
            let mut ring = lock(ring);
            // No more than the ring holds: the guest may refill it for ever.
            let size = ring
                .queue
                .as_ref()
                .map_or(0, |queue| usize::from(queue.size()));
            for _turn in 0..=size / REQUESTS_PER_TURN_MAX {
                match self.turn(&mut ring) {
                    Turn::More => {}
                    Turn::Empty => break,
                    Turn::Waits => {
                        all = false;
                        break;
                    }
                }
            }
        }
        all
    }

    fn turn(&self, state: &mut RequestQueue) -> Turn {
        let Some(queue) = state.queue.clone() else {
            return Turn::Empty;
        };
        let Some(lanes) = self.lanes() else {
            return Turn::Waits;
        };
        if !self.send_nexus_reset_if_due(&lanes) {
            return Turn::Waits;
        }
        if let Some(held) = state.held.take() {
            state.held = self.send(&lanes, held);
            if state.held.is_some() {
                return Turn::Waits;
            }
        }
        let Some(mut ring) = queue.lock() else {
            return Turn::Empty;
        };
        ring.disable_notification();
        let mut direct = self.begin_direct_turn(&lanes);
        let mut turn = Turn::More;
        for _request in 0..REQUESTS_PER_TURN_MAX {
            let Some(chain) = ring.pop() else {
                // `enable_notification` looks once more, for what came in between.
                if ring.can_pop() && ring.enable_notification() {
                    ring.disable_notification();
                    continue;
                }
                turn = Turn::Empty;
                break;
            };
            let request = match read_request(&chain) {
                Ok(request) => request,
                Err(refusal) => {
                    let written = self.refuse(&chain, refusal);
                    ring.add_used(chain, written);
                    continue;
                }
            };
            if let Some(written) = self.execute_here(&mut direct, &request, &chain) {
                ring.add_used(chain, written);
                continue;
            }
            let held = match self.admit(&queue, chain, &request) {
                Ok(held) => held,
                Err((chain, refusal)) => {
                    let written = self.refuse(&chain, refusal);
                    ring.add_used(chain, written);
                    continue;
                }
            };
            state.held = self.send(&lanes, held);
            if state.held.is_some() {
                count(&self.counters.stalls);
                turn = Turn::Waits;
                break;
            }
        }
        drop(ring);
        drop(direct);
        lanes.flush();
        turn
    }

    /// Answers a request here, without the fabric; the bytes written.
    fn refuse(&self, chain: &Chain, refusal: Refusal) -> u32 {
        match refusal {
            Refusal::Unanswerable => {
                count(&self.counters.unanswerable_chains);
                0
            }
            Refusal::Answer(response) => {
                count(&self.counters.refused_requests);
                write_response(chain, &response)
            }
        }
    }

    /// Takes a request in, with its frames.
    #[expect(
        clippy::result_large_err,
        reason = "moved once; a box would be an allocation for each"
    )]
    fn admit(
        &self,
        queue: &Queue,
        chain: Chain,
        request: &Request,
    ) -> Result<Held, (Chain, Refusal)> {
        let data = match read_data(&chain, request) {
            Ok(data) => data,
            Err(refusal) => return Err((chain, refusal)),
        };
        let mut commands = lock(&self.commands);
        let serial = commands.serial;
        commands.serial += 1;
        let command = Command {
            queue: queue.clone(),
            chain,
            lun: request.lun,
            id: request.id,
            attribute: request.attribute,
            serial,
            epoch: None,
            data_out_bytes: request.data_out_bytes,
            data_in_bytes: request.data_in_bytes,
            delivered_bytes: 0,
        };
        let inserted = commands.in_flight.insert(command);
        drop(commands);
        // Each ring's chains in flight are bounded by its size, so the table is never full.
        let tag = inserted.map_err(|command| {
            let residual = request.data_out_bytes.max(request.data_in_bytes);
            let response = Response::new(ResponseCode::Busy, residual);
            (command.chain, Refusal::Answer(response))
        })?;
        Ok(Held {
            tag,
            frames: frames(tag, request, data),
        })
    }

    /// Sends a command with all its data; comes back if it must wait.
    fn send(&self, lanes: &LaneSet, mut held: Held) -> Option<Held> {
        let data_bytes: usize = held
            .frames
            .iter()
            .skip(1)
            .map(|(_, f)| f.payload_bytes())
            .sum();
        let data_bytes = data_bytes - held.frames.len().saturating_sub(1) * DATA_HEADER_BYTES;
        // A function may have ended it while it was at hand.
        self.set_epoch(held.tag, Some(lanes.epoch()))?;
        let sent = match lanes.queue(&mut held.frames) {
            // The device's queue may be full of what this very turn put there.
            Err(SendRefused::Blocked) => {
                lanes.flush();
                lanes.queue(&mut held.frames)
            }
            other => other,
        };
        match sent {
            Ok(()) => {
                count(&self.counters.commands);
                add(&self.counters.data_out_bytes, data_bytes);
                None
            }
            // Gone if the session ended between the two, which has answered it.
            Err(SendRefused::Blocked | SendRefused::Down) => {
                self.set_epoch(held.tag, None).map(|()| held)
            }
            Err(SendRefused::TooLarge) => {
                // Cannot be: every unit and their number are bounded by TRANSFER_BYTES_MAX.
                tracing::error!(
                    device = self.config.name,
                    "command does not fit on its lanes"
                );
                let command = lock(&self.commands).in_flight.remove(held.tag)?;
                let response =
                    Response::new(ResponseCode::TargetFailure, command.residual_if_failed());
                // The ring is locked by the caller: the link's next batch returns the chain.
                lock(&self.done).push(command.finish(&response));
                None
            }
        }
    }

    fn set_epoch(&self, tag: Tag, epoch: Option<u16>) -> Option<()> {
        lock(&self.commands).in_flight.get_mut(tag)?.epoch = epoch;
        Some(())
    }

    /// A piece of data-in arrived.
    pub(crate) fn data_in(&self, data: &Data<'_>) {
        let mut commands = lock(&self.commands);
        let command = commands.in_flight.get_mut(data.tag);
        let Some(command) = command.filter(|command| command.epoch.is_some()) else {
            count(&self.counters.unknown_replies);
            return;
        };
        // Under the table's lock: a ring that is abandoned meanwhile would be the guest's again.
        match command.deliver(data) {
            Ok(()) => add(&self.counters.data_in_bytes, data.data.len()),
            Err(_refused) => count(&self.counters.bad_replies),
        }
    }

    /// A command ended.
    pub(crate) fn status(&self, status: &Status<'_>) {
        let mut commands = lock(&self.commands);
        let known = commands.in_flight.get_mut(status.tag);
        let command = known.is_some_and(|command| command.epoch.is_some());
        let command = command
            .then(|| commands.in_flight.remove(status.tag))
            .flatten();
        let Some(command) = command else {
            count(&self.counters.unknown_replies);
            return;
        };
        let response = if status.response != ServiceResponse::TaskComplete {
            Response::new(status.response.into(), command.residual_if_failed())
        } else if status.data_in_bytes == command.delivered_bytes {
            Response::new(ResponseCode::Ok, command.data_in_residual())
                .with_status(status.status, status.sense)
        } else {
            count(&self.counters.incomplete_data);
            Response::new(ResponseCode::TargetFailure, command.residual_if_failed())
        };
        count(&self.counters.completions);
        // Still under the table's lock, for the same reason as the data.
        let done = command.finish(&response);
        drop(commands);
        lock(&self.done).push(done);
    }

    /// Ends everything that was underway on the lanes of `epoch`.
    pub(crate) fn lose(&self, epoch: u16) {
        let mut done = Vec::new();
        let mut commands = lock(&self.commands);
        let lost = commands
            .in_flight
            .remove_where(|command| command.epoch == Some(epoch));
        add(&self.counters.lost_commands, lost.len());
        for command in lost {
            let response =
                Response::new(ResponseCode::TransportFailure, command.residual_if_failed());
            done.push(command.finish(&response));
        }
        drop(commands);
        let functions = lock(&self.functions).remove_where(|function| function.epoch == epoch);
        done.extend(
            functions
                .into_iter()
                .filter_map(|one| one.answer(ResponseCode::Failure)),
        );
        self.complete(done);
    }

    /// Takes request ring `number` out of use.
    pub(crate) fn stop_requests(&self, number: usize, reason: StopReason) {
        let Some(state) = self.request_queues.get(number) else {
            return;
        };
        let mut state = lock(state);
        let Some(queue) = state.queue.take() else {
            return;
        };
        if let Some(held) = state.held.take()
            && let Some(command) = lock(&self.commands).in_flight.remove(held.tag)
            && let Some(mut ring) = queue.lock()
        {
            // Never sent: the guest keeps it, and offers it to whoever serves the ring next.
            ring.unpop(command.chain);
        }
        if reason == StopReason::Abandon {
            let mut commands = lock(&self.commands);
            let index = queue.index();
            let dropped = commands
                .in_flight
                .remove_where(|one| one.queue.index() == index);
            if dropped.iter().any(|command| command.epoch.is_some()) {
                self.set_nexus_reset_due();
            }
            add(&self.counters.abandoned_commands, dropped.len());
        }
    }

    /// Returns chains to their rings, with one signal for each run of the same ring.
    pub(crate) fn complete(&self, done: impl IntoIterator<Item = Done>) {
        let mut done: VecDeque<Done> = done.into_iter().collect();
        while let Some(first) = done.pop_front() {
            let queue = first.queue.clone();
            // A ring that is stopped takes nothing back: the chain is dropped.
            let Some(mut ring) = queue.lock() else {
                continue;
            };
            ring.add_used(first.chain, first.written);
            while let Some(next) = done.pop_front_if(|next| next.queue.index() == queue.index()) {
                ring.add_used(next.chain, next.written);
            }
        }
    }
}

fn failure(residual: u32) -> Refusal {
    Refusal::Answer(Response::new(ResponseCode::Failure, residual))
}

/// Reads the header of a request out of guest memory, once.
fn read_request(chain: &Chain) -> Result<Request, Refusal> {
    let (readable, writable) = (chain.readable_bytes(), chain.writable_bytes());
    request::check_sizes(readable, writable)?;
    let mut header = [0; REQUEST_BYTES];
    chain
        .read_at(0, &mut header)
        .map_err(|_unreadable| failure(0))?;
    request::parse(&header, readable, writable)
}

/// Reads its data-out into frames whose headers are still to be written.
fn read_data(chain: &Chain, request: &Request) -> Result<Vec<FrameBuffer>, Refusal> {
    let mut data = Vec::new();
    let mut left = usize::try_from(request.data_out_bytes).unwrap_or(0);
    let mut offset = bytes(REQUEST_BYTES);
    while left > 0 {
        let now = left.min(DATA_BYTES_MAX);
        let mut frame = FrameBuffer::zeroed(DATA_HEADER_BYTES + now);
        let room = frame
            .payload_mut()
            .get_mut(DATA_HEADER_BYTES..)
            .unwrap_or_default();
        chain
            .read_at(offset, room)
            .map_err(|_unreadable| failure(request.data_out_bytes))?;
        data.push(frame);
        offset = offset.saturating_add(bytes(now));
        left -= now;
    }
    Ok(data)
}

/// The command's frames: COMMAND, then its data in order.
fn frames(tag: Tag, request: &Request, data: Vec<FrameBuffer>) -> Vec<(VirtualLane, FrameBuffer)> {
    let mut command = FrameBuffer::with_capacity(64);
    let unit = InformationUnit::Command(scsi::Command {
        tag,
        lun: request.lun,
        attribute: request.attribute,
        cdb: &request.cdb,
        data_out_bytes: request.data_out_bytes,
        data_in_bytes: request.data_in_bytes,
    });
    command.append_with(|bytes| unit.encode(bytes));
    let mut frames = Vec::with_capacity(1 + data.len());
    frames.push((VirtualLane::StorageCommand, command));
    let mut offset = 0_u32;
    for mut frame in data {
        if let Some(room) = frame.payload_mut().first_chunk_mut() {
            *room = scsi::data_header(true, tag, offset);
        }
        let length = frame.payload_bytes().saturating_sub(DATA_HEADER_BYTES);
        offset = offset.saturating_add(u32::try_from(length).unwrap_or(u32::MAX));
        frames.push((VirtualLane::StorageData, frame));
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;
    use fabric_transport::frame::PAYLOAD_BYTES_MAX;

    #[test]
    fn write_is_cut_into_units_that_parse_and_add_up() {
        let request = Request {
            lun: [0x40, 1, 0, 0, 0, 0, 0, 0],
            id: 9,
            attribute: 0,
            cdb: [0x2a; 32],
            data_out_bytes: 65_536 * 2 + 512,
            data_in_bytes: 0,
        };
        let data =
            [65_536, 65_536, 512].map(|length| FrameBuffer::zeroed(DATA_HEADER_BYTES + length));
        let frames = frames(Tag(77), &request, data.into());
        let mut expected_offset = 0;
        for (position, (lane, frame)) in frames.iter().enumerate() {
            assert!(frame.payload_bytes() <= PAYLOAD_BYTES_MAX);
            match InformationUnit::parse(frame.payload()).unwrap() {
                InformationUnit::Command(command) => {
                    assert_eq!((position, *lane), (0, VirtualLane::StorageCommand));
                    assert_eq!((command.tag, command.data_out_bytes), (Tag(77), 131_584));
                    assert_eq!((command.cdb, command.lun), (&[0x2a; 32][..], request.lun));
                }
                InformationUnit::DataOut(data) => {
                    assert_eq!(*lane, VirtualLane::StorageData);
                    assert_eq!((data.tag, data.offset), (Tag(77), expected_offset));
                    expected_offset += u32::try_from(data.data.len()).unwrap();
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((frames.len(), expected_offset), (4, 131_584));
    }
}

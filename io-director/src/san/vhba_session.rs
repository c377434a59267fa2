//! A vHBA as one session sees it: units in, units out, credit held until a command has ended.
//!
//! Runs on the link's thread, except [`VhbaSession::complete`], which a nexus thread calls and
//! which alone may wait for credit. What the link's thread cannot send is kept in an outbox; each
//! of its units belongs to a command or function whose credit is still held, so it is bounded.
//!
//! Every command is answered by one STATUS, after all its data-out has arrived: only then may the
//! host use its tag again without old data being taken for new.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use fabric_payload::scsi::{
    Command, DATA_BYTES_MAX, DATA_HEADER_BYTES, Data, Event, InformationUnit, LunBytes,
    SENSE_BYTES_MAX, ServiceResponse, Status, Tag, TaskFunction, TaskResponse, data_header,
};
use fabric_transport::frame::blocks;
use fabric_transport::{FrameBuffer, LaneClient, LaneSet, Receipt, SendRefused, VirtualLane};
use scsi_target::{
    AdditionalSense, Lun, MediumError, MediumErrorKind, Sense, SenseFormat, SenseKey,
    TaskAttribute, TaskManagementFunction, TaskManagementResponse, UnitAttention,
};

use super::nexus::{Fate, Nexus, NotTaken};
use super::observe::{Observed, ObservedManagement};
use super::task_set::{Task, TaskKey};
use super::vhba::VhbaShared;
use crate::credit;
use fabric_transport::acceptor::epoch_is_later;

/// Data up to this size travels in one call with the status that ends it.
const JOINED_DATA_BYTES_MAX: usize = 16 * 1024;

/// A command that the host waits for.
#[derive(Debug)]
struct Open {
    nexus: Arc<Nexus>,
    received_bytes: usize,
    data_out_bytes: usize,
    /// Ended before its data was here: what ends it.
    ending: Option<Ending>,
    held: Held,
    observed: Observed,
}

/// The end of a command that was not executed.
#[derive(Debug, Clone, Copy)]
struct Ending {
    response: ServiceResponse,
    status: scsi_target::Status,
    sense: Option<Sense>,
}

impl Ending {
    const fn new(response: ServiceResponse, status: scsi_target::Status) -> Self {
        Self {
            response,
            status,
            sense: None,
        }
    }
}

/// Credit that is kept.
#[derive(Debug, Default, Clone, Copy)]
struct Held {
    command_blocks: u32,
    data_blocks: u32,
    task_management_blocks: u32,
}

impl Held {
    fn add(&mut self, other: Self) {
        self.command_blocks += other.command_blocks;
        self.data_blocks += other.data_blocks;
        self.task_management_blocks += other.task_management_blocks;
    }
}

/// A unit that waits for credit, and the credit that is given back when it is sent.
#[derive(Debug)]
struct Waiting {
    lane: VirtualLane,
    buffer: FrameBuffer,
    held: Held,
}

/// What happened to a LUN, in the order in which it is told. Each at most once, however often it
/// happened, so that a host that takes nothing costs nothing.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Untold {
    removed: bool,
    added: bool,
    resized: bool,
}

impl Untold {
    /// The next event, which is no longer to be told then.
    fn take(&mut self, lun: u16) -> Option<Event> {
        let lun = Lun::new(lun).map_or([0; 8], Lun::to_bytes);
        if std::mem::take(&mut self.removed) {
            Some(Event::LunRemoved(lun))
        } else if std::mem::take(&mut self.added) {
            Some(Event::LunAdded(lun))
        } else if std::mem::take(&mut self.resized) {
            let AdditionalSense { asc, ascq } = UnitAttention::CapacityChanged.additional();
            Some(Event::ParameterChanged { lun, asc, ascq })
        } else {
            None
        }
    }
}

#[derive(Debug, Default)]
struct SessionState {
    lanes: Option<LaneSet>,
    dead: bool,
    /// Calls of `writable` so far: tells a waiter that one came between its try and its wait.
    writable: u64,
    open: HashMap<Tag, Open>,
    outbox: VecDeque<Waiting>,
    /// By LUN, what the host is not told yet.
    untold: BTreeMap<u16, Untold>,
    /// Credit of commands whose answers [`VhbaSession::flush`] sends.
    settled: Held,
    /// Those that something arrived for in the link's batch.
    touched: Vec<Arc<Nexus>>,
}

impl SessionState {
    fn touch(&mut self, nexus: &Arc<Nexus>) {
        // One guest's commands go to few LUNs at a time, mostly to one.
        if !self.touched.iter().any(|known| Arc::ptr_eq(known, nexus)) {
            self.touched.push(nexus.clone());
        }
    }

    fn open_commands(&self) -> u64 {
        u64::try_from(self.open.len()).unwrap_or(u64::MAX)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct VhbaSession {
    vhba: Arc<VhbaShared>,
    /// Unique among the sessions of the port.
    number: u64,
    state: Mutex<SessionState>,
    changed: Condvar,
    me: std::sync::Weak<Self>,
}

/// A task management function that ends when the last task it took away has.
#[derive(Debug)]
pub(super) struct ManagementEnd {
    session: Arc<VhbaSession>,
    tag: Tag,
    observed: ObservedManagement,
    response: TaskResponse,
    rejected: AtomicBool,
    held: Held,
}

impl ManagementEnd {
    /// The function was not carried out where it had to be.
    pub(super) fn reject(&self) {
        self.rejected.store(true, Ordering::SeqCst);
    }

    /// One holder less; the last one sends the response.
    pub(super) fn finish(end: Arc<Self>) {
        if let Some(end) = Arc::into_inner(end) {
            let response = if end.rejected.into_inner() {
                TaskResponse::Rejected
            } else {
                end.response
            };
            let (tag, observed) = (end.tag, &end.observed);
            end.session.respond(tag, observed, response, end.held);
        }
    }
}

impl VhbaSession {
    pub(super) fn new(vhba: Arc<VhbaShared>, number: u64) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            vhba,
            number,
            state: Mutex::default(),
            changed: Condvar::new(),
            me: me.clone(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, SessionState> {
        // Whole between any two statements: going on is safe.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn key(&self, tag: Tag) -> TaskKey {
        TaskKey {
            session: self.number,
            tag,
        }
    }

    /// Commands without status.
    pub(super) fn open_commands(&self) -> u64 {
        self.lock().open_commands()
    }

    /// Nothing of this session counts any more.
    pub(super) fn kill(&self) {
        let mut state = self.lock();
        state.dead = true;
        state.lanes = None;
        state.outbox.clear();
        let open = std::mem::take(&mut state.open);
        drop(state);
        self.changed.notify_all();
        self.vhba.counters.lost.add_bytes(open.len());
        for nexus in self.vhba.all_nexuses() {
            drop(nexus.take(|key| key.session == self.number, &Fate::Lost));
        }
        self.vhba.leave(self.number);
    }

    /// A command of this session was taken away before it began.
    pub(super) fn withdraw(&self, key: TaskKey) {
        self.vhba.withdraw(key);
    }

    // From the nexus threads.

    /// The nexuses of all vHBAs that see the unit of `nexus`.
    pub(super) fn sharing(&self, nexus: &Nexus) -> Vec<Arc<Nexus>> {
        let unit = self.vhba.unit_of(nexus);
        unit.map_or_else(Vec::new, |unit| unit.nexuses())
    }

    /// The result of a command that nobody waits for.
    pub(super) fn lost(&self, tag: Tag) {
        self.lock().open.remove(&tag);
    }

    /// Ends a command without result.
    pub(super) fn end(&self, tag: Tag, response: ServiceResponse) {
        self.vhba.counters.aborted.add(1);
        self.end_with(tag, Ending::new(response, scsi_target::Status::Good));
    }

    /// Ends a command whose medium did not answer in time: NOT READY, as for one that comes
    /// while it does not.
    pub(super) fn unavailable(&self, tag: Tag) {
        let sense = Sense::from(MediumError {
            kind: MediumErrorKind::Unavailable,
            lba: None,
        });
        self.end_with_sense(tag, sense);
    }

    /// Ends a command to a LUN that is gone.
    pub(super) fn unsupported(&self, tag: Tag) {
        let gone = AdditionalSense::LOGICAL_UNIT_NOT_SUPPORTED;
        self.end_with_sense(tag, Sense::new(SenseKey::IllegalRequest, gone));
    }

    fn end_with_sense(&self, tag: Tag, sense: Sense) {
        let ending = Ending {
            sense: Some(sense),
            ..Ending::new(
                ServiceResponse::TaskComplete,
                scsi_target::Status::CheckCondition,
            )
        };
        self.end_with(tag, ending);
    }

    /// Tells the host that the capacity of a LUN changed.
    pub(super) fn capacity_changed(&self, lun: u16) {
        let mut state = self.lock();
        if state.dead {
            return;
        }
        state.untold.entry(lun).or_default().resized = true;
        drop(state);
        self.flush_outbox();
    }

    /// Tells the host which LUNs are gone and which are new; one that is both is another unit.
    pub(super) fn luns_changed(
        &self,
        removed: impl Iterator<Item = u16>,
        added: impl Iterator<Item = u16>,
    ) {
        let mut state = self.lock();
        if state.dead {
            return;
        }
        for lun in removed {
            let removed = true;
            state.untold.insert(
                lun,
                Untold {
                    removed,
                    ..Untold::default()
                },
            );
        }
        for lun in added {
            state.untold.entry(lun).or_default().added = true;
        }
        drop(state);
        self.flush_outbox();
    }

    /// Queues the result of a command, which [`Self::flush`] sends; waits for credit.
    pub(super) fn complete(
        &self,
        task: &Task<Arc<Self>>,
        status: u8,
        sense: &[u8],
        data_in: &[u8],
    ) {
        let tag = task.key.tag;
        let counters = &self.vhba.counters;
        counters.commands.add(1);
        // All of it was here, or it would not have been executed.
        counters.data_out_bytes.add_bytes(task.data_out_bytes);
        let answer = Status {
            tag,
            response: ServiceResponse::TaskComplete,
            status,
            data_in_bytes: u32::try_from(data_in.len()).unwrap_or(u32::MAX),
            sense: sense.get(..SENSE_BYTES_MAX).unwrap_or(sense),
        };
        let mut frames = Vec::with_capacity(2);
        let mut offset = 0;
        for data in data_in.chunks(DATA_BYTES_MAX) {
            let mut buffer = FrameBuffer::with_capacity(DATA_HEADER_BYTES + data.len());
            buffer.extend_from_slice(&data_header(false, tag, offset));
            buffer.extend_from_slice(data);
            frames.push((VirtualLane::StorageData, buffer));
            offset = offset.saturating_add(u32::try_from(data.len()).unwrap_or(u32::MAX));
            if data_in.len() > JOINED_DATA_BYTES_MAX && !self.send_all(&mut frames) {
                return;
            }
        }
        // The tag is free before the host can know that it is.
        let open = self.lock().open.remove(&tag);
        let (held, observed) = open.map(|open| (open.held, open.observed)).unzip();
        if let Some(observed) = &observed {
            observed.answering(&answer, data_in);
        }
        frames.push((
            VirtualLane::StorageData,
            encode(&InformationUnit::Status(answer)),
        ));
        // Before the host can know of them: who has its answer finds them counted.
        counters.data_in_bytes.add_bytes(data_in.len());
        if self.send_all(&mut frames) {
            self.lock().settled.add(held.unwrap_or_default());
            if let Some(observed) = observed {
                let moved = (data_in.len(), task.data_out_bytes);
                observed.answered(status, sense, moved);
            }
        }
    }

    /// Sends what [`Self::complete`] left, and gives the credit of those commands back.
    pub(super) fn flush(&self) {
        let mut state = self.lock();
        let settled = std::mem::take(&mut state.settled);
        let lanes = state.lanes.clone();
        drop(state);
        if let Some(lanes) = lanes {
            release(&lanes, settled);
            lanes.flush();
        }
    }

    /// Queues all frames, waiting for credit; whether the session is still there.
    fn send_all(&self, frames: &mut Vec<(VirtualLane, FrameBuffer)>) -> bool {
        loop {
            let state = self.lock();
            let (seen, lanes) = (state.writable, state.lanes.clone());
            drop(state);
            let Some(lanes) = lanes else { return false };
            let queued = match lanes.queue(frames) {
                // By what was queued before, perhaps.
                Err(SendRefused::Blocked) => {
                    self.flush();
                    lanes.try_send(frames)
                }
                other => other,
            };
            match queued {
                Ok(()) => return true,
                Err(SendRefused::Blocked) => {}
                Err(refused @ (SendRefused::Down | SendRefused::TooLarge)) => {
                    tracing::debug!(%refused, device = %lanes.device(), "result dropped");
                    self.vhba.counters.lost.add(1);
                    return false;
                }
            }
            let mut state = self.lock();
            while state.writable == seen && !state.dead {
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    // From any thread, never waiting.

    /// Sends now or as soon as there is credit.
    fn send_later(&self, waiting: Waiting) {
        let mut state = self.lock();
        if state.dead {
            return;
        }
        state.outbox.push_back(waiting);
        drop(state);
        self.flush_outbox();
    }

    /// Sends what can be sent; a lane that is blocked does not hold up the other.
    ///
    /// Under the lock throughout, so that a `writable` that comes now finds every unit in the
    /// outbox. The endpoint calls nobody of ours back from within `queue`.
    fn flush_outbox(&self) {
        let mut state = self.lock();
        let Some(lanes) = state.lanes.clone() else {
            return;
        };
        let mut blocked_lanes = Vec::new();
        let mut sent = Held::default();
        for waiting in std::mem::take(&mut state.outbox) {
            if blocked_lanes.contains(&waiting.lane) {
                state.outbox.push_back(waiting);
                continue;
            }
            let Waiting { lane, buffer, held } = waiting;
            let mut frames = vec![(lane, buffer)];
            match (lanes.queue(&mut frames), frames.pop()) {
                (Err(SendRefused::Blocked), Some((lane, buffer))) => {
                    blocked_lanes.push(lane);
                    state.outbox.push_back(Waiting { lane, buffer, held });
                }
                // Sent, or there is nobody to send it to.
                _ => sent.add(held),
            }
        }
        if !blocked_lanes.contains(&VirtualLane::TaskManagement) {
            tell(&lanes, &mut state.untold);
        }
        drop(state);
        lanes.flush();
        release(&lanes, sent);
    }

    /// Ends a command now, or when all its data-out has arrived.
    fn end_with(&self, tag: Tag, ending: Ending) {
        let mut state = self.lock();
        let Some(open) = state.open.get_mut(&tag) else {
            return;
        };
        open.ending = Some(ending);
        if open.received_bytes < open.data_out_bytes {
            return;
        }
        let open = state.open.remove(&tag);
        drop(state);
        let (held, observed) = open.map(|open| (open.held, open.observed)).unzip();
        let sense = ending.sense.map(|sense| sense.encode(SenseFormat::Fixed));
        let ended = Status {
            tag,
            response: ending.response,
            status: ending.status.code(),
            data_in_bytes: 0,
            sense: sense.as_deref().unwrap_or_default(),
        };
        if let Some(observed) = observed {
            if ending.response == ServiceResponse::TaskComplete {
                observed.answering(&ended, &[]);
            }
            observed.ended(ending.response, ending.status);
        }
        let unit = InformationUnit::Status(ended);
        let (lane, held) = (VirtualLane::StorageData, held.unwrap_or_default());
        self.send_later(Waiting {
            lane,
            buffer: encode(&unit),
            held,
        });
    }

    fn respond(&self, tag: Tag, observed: &ObservedManagement, response: TaskResponse, held: Held) {
        observed.answering(response);
        let unit = InformationUnit::TaskManagementResponse { response, tag };
        let lane = VirtualLane::TaskManagement;
        self.send_later(Waiting {
            lane,
            buffer: encode(&unit),
            held,
        });
    }

    // From the link's thread.

    fn command(&self, command: &Command<'_>, held_blocks: u32) -> Receipt {
        let Some(me) = self.me.upgrade() else {
            return Receipt::Consumed;
        };
        let tag = command.tag;
        let nexus = self.vhba.nexus(command.lun);
        let data_out_bytes = usize::try_from(command.data_out_bytes).unwrap_or(usize::MAX);
        let mut state = self.lock();
        if state.open.contains_key(&tag) {
            drop(state);
            self.vhba.counters.duplicate_tag.add(1);
            return Receipt::Consumed;
        }
        let held = Held {
            command_blocks: held_blocks,
            ..Held::default()
        };
        let (received_bytes, ending) = (0, None);
        let open = Open {
            nexus: nexus.clone(),
            received_bytes,
            data_out_bytes,
            ending,
            held,
            observed: Observed::begin(nexus.statistics(), &self.vhba.tap, command),
        };
        state.open.insert(tag, open);
        state.touch(&nexus);
        let commands = state.open_commands();
        drop(state);
        self.vhba.in_flight_max.reach(commands);
        let limited = self.vhba.is_limited();
        let data_in_bytes = usize::try_from(command.data_in_bytes).unwrap_or(usize::MAX);
        let key = self.key(tag);
        let task = Task {
            key,
            attribute: match command.attribute {
                0 => TaskAttribute::Simple,
                1 => TaskAttribute::Ordered,
                2 => TaskAttribute::HeadOfQueue,
                _ => TaskAttribute::Aca,
            },
            lun: command.lun,
            cdb: command.cdb.to_vec(),
            // Grows with what arrives: a length alone makes us allocate nothing.
            data_out: Vec::new(),
            data_out_bytes,
            data_in_bytes,
            granted: !limited,
            session: me,
        };
        // Task management that finds the command finds it in the queue of the port as well.
        let added = || {
            if limited {
                let command = (&nexus, key);
                self.vhba.submit(command, data_out_bytes, data_in_bytes);
            }
        };
        match nexus.push(task, added) {
            Ok(()) => {}
            Err(NotTaken::Full) => {
                self.vhba.counters.task_set_full.add(1);
                let status = scsi_target::Status::TaskSetFull;
                self.end_with(tag, Ending::new(ServiceResponse::TaskComplete, status));
            }
            Err(NotTaken::Retired) => self.unsupported(tag),
        }
        Receipt::Held
    }

    fn data_out(&self, data: &Data<'_>, held_blocks: u32) -> Receipt {
        let counters = &self.vhba.counters;
        let mut state = self.lock();
        let Some(open) = state.open.get_mut(&data.tag) else {
            drop(state);
            counters.unknown_tag.add(1);
            return Receipt::Consumed;
        };
        let missing_bytes = open.data_out_bytes.saturating_sub(open.received_bytes);
        if usize::try_from(data.offset) != Ok(open.received_bytes)
            || data.data.len() > missing_bytes
        {
            drop(state);
            counters.excess_data.add(1);
            return Receipt::Consumed;
        }
        open.received_bytes += data.data.len();
        open.observed.data_out(data);
        open.held.data_blocks += held_blocks;
        let complete = open.received_bytes == open.data_out_bytes;
        let (nexus, ending) = (open.nexus.clone(), open.ending);
        // Appending under the lock: an end that comes now finds all or nothing of it.
        if ending.is_none() {
            nexus.append(self.key(data.tag), data.data);
            state.touch(&nexus);
        }
        drop(state);
        if let (true, Some(ending)) = (complete, ending) {
            self.end_with(data.tag, ending);
        }
        Receipt::Held
    }

    fn task_management(
        &self,
        function: TaskFunction,
        (tag, managed): (Tag, Tag),
        lun: LunBytes,
        held_blocks: u32,
    ) -> Receipt {
        let Some(session) = self.me.upgrade() else {
            return Receipt::Consumed;
        };
        self.vhba.counters.task_management.add(1);
        let held = Held {
            task_management_blocks: held_blocks,
            ..Held::default()
        };
        let own = |key: TaskKey| key.session == self.number;
        let named = |key: TaskKey| key == self.key(managed);
        let mapped = self.vhba.mapped(lun);
        let mapped = mapped.as_ref();
        let statistics = mapped
            .map_or(&self.vhba.no_lun, |mapped| &mapped.nexus)
            .statistics();
        let state = self.lock();
        let managed = state.open.get(&managed).map(|open| &open.observed);
        let observed =
            ObservedManagement::begin(statistics, &self.vhba.tap, function, lun, managed);
        drop(state);
        if mapped.is_none() && function != TaskFunction::ItNexusReset {
            self.respond(tag, &observed, TaskResponse::IncorrectLun, held);
            return Receipt::Held;
        }
        let nexuses: Vec<_> = match function {
            TaskFunction::ItNexusReset => self.vhba.all_nexuses(),
            TaskFunction::LogicalUnitReset => mapped
                .map(|mapped| mapped.lun.nexuses())
                .unwrap_or_default(),
            _ => mapped
                .map(|mapped| mapped.nexus.clone())
                .into_iter()
                .collect(),
        };
        let there = |there| {
            if there {
                TaskResponse::Succeeded
            } else {
                TaskResponse::Complete
            }
        };
        let target = match function {
            TaskFunction::QueryTask => {
                let response = there(nexuses.iter().any(|nexus| nexus.contains(named)));
                self.respond(tag, &observed, response, held);
                return Receipt::Held;
            }
            TaskFunction::QueryTaskSet => {
                let response = there(nexuses.iter().any(|nexus| nexus.contains(own)));
                self.respond(tag, &observed, response, held);
                return Receipt::Held;
            }
            TaskFunction::AbortTask => TaskManagementFunction::AbortTask,
            TaskFunction::AbortTaskSet => TaskManagementFunction::AbortTaskSet,
            TaskFunction::ClearTaskSet => TaskManagementFunction::ClearTaskSet,
            TaskFunction::LogicalUnitReset => TaskManagementFunction::LogicalUnitReset,
            TaskFunction::ItNexusReset => TaskManagementFunction::ItNexusReset,
        };
        let response = match self.vhba.it_nexus.task_management(target, lun) {
            TaskManagementResponse::FunctionComplete => TaskResponse::Complete,
            TaskManagementResponse::FunctionSucceeded => TaskResponse::Succeeded,
            TaskManagementResponse::FunctionRejected => TaskResponse::Rejected,
            TaskManagementResponse::IncorrectLogicalUnitNumber => TaskResponse::IncorrectLun,
        };
        let ended = match function {
            TaskFunction::LogicalUnitReset | TaskFunction::ItNexusReset => ServiceResponse::Reset,
            _ => ServiceResponse::Aborted,
        };
        let end = Arc::new(ManagementEnd {
            session,
            tag,
            observed,
            response,
            rejected: AtomicBool::new(false),
            held,
        });
        let fate = Fate::Ended(ended, end);
        for nexus in nexuses {
            let wanted = |key| match function {
                TaskFunction::AbortTask => named(key),
                TaskFunction::LogicalUnitReset => true,
                _ => own(key),
            };
            for task in nexus.take(wanted, &fate) {
                task.session.end(task.key.tag, ended);
            }
        }
        if let Fate::Ended(_, end) = fate {
            if function == TaskFunction::LogicalUnitReset
                && let Some(pass_through) = mapped.and_then(|mapped| mapped.nexus.pass_through())
            {
                pass_through.reset(end.clone());
            }
            ManagementEnd::finish(end);
        }
        Receipt::Held
    }
}

fn release(lanes: &LaneSet, held: Held) {
    for (lane, blocks) in [
        (VirtualLane::StorageCommand, held.command_blocks),
        (VirtualLane::StorageData, held.data_blocks),
        (VirtualLane::TaskManagement, held.task_management_blocks),
    ] {
        credit::release(lanes, lane, blocks);
    }
}

/// Sends events as far as there is credit; what is left stays.
fn tell(lanes: &LaneSet, untold: &mut BTreeMap<u16, Untold>) {
    while let Some(mut first) = untold.first_entry() {
        let lun = *first.key();
        let before = *first.get();
        let Some(event) = first.get_mut().take(lun) else {
            first.remove();
            continue;
        };
        let event = encode(&InformationUnit::Event(event));
        let mut frames = vec![(VirtualLane::TaskManagement, event)];
        if matches!(lanes.queue(&mut frames), Err(SendRefused::Blocked)) {
            *first.get_mut() = before;
            return;
        }
    }
}

fn encode(unit: &InformationUnit<'_>) -> FrameBuffer {
    let mut buffer = FrameBuffer::with_capacity(128);
    buffer.append_with(|bytes| unit.encode(bytes));
    buffer
}

impl Drop for VhbaSession {
    fn drop(&mut self) {
        // A session that was granted the vHBA and never came up has reserved as well.
        self.vhba.leave(self.number);
    }
}

impl LaneClient for VhbaSession {
    fn up(&self, lanes: LaneSet) {
        let Some(me) = self.me.upgrade() else { return };
        let epoch = lanes.epoch();
        let mut current = self.vhba.lock_current();
        if self.vhba.removed.load(Ordering::Relaxed) {
            drop(current);
            self.kill();
            return;
        }
        let older = match &*current {
            Some(known)
                if known
                    .epoch()
                    .is_some_and(|known| epoch_is_later(known, epoch)) =>
            {
                drop(current);
                self.kill();
                return;
            }
            _ => current.take(),
        };
        let mut state = self.lock();
        state.lanes = Some(lanes);
        // The host may know sizes of an earlier session, and of media that changed since.
        for lun in self.vhba.luns().keys() {
            state.untold.entry(*lun).or_default().resized = true;
        }
        drop(state);
        *current = Some(me);
        drop(current);
        if let Some(older) = older {
            older.kill();
            self.vhba.nexus_lost();
        }
        self.flush_outbox();
    }

    fn receive(&self, lane: VirtualLane, payload: &[u8]) -> Receipt {
        let counters = &self.vhba.counters;
        if self.lock().lanes.is_none() {
            counters.stale.add(1);
            return Receipt::Consumed;
        }
        let held_blocks = blocks(payload.len());
        let unit = match InformationUnit::parse(payload) {
            Ok(unit) => unit,
            Err(error) => {
                tracing::debug!(%error, "unit is malformed");
                counters.malformed.add(1);
                return Receipt::Consumed;
            }
        };
        match (lane, unit) {
            (VirtualLane::StorageCommand, InformationUnit::Command(command)) => {
                self.command(&command, held_blocks)
            }
            (VirtualLane::StorageData, InformationUnit::DataOut(data)) => {
                self.data_out(&data, held_blocks)
            }
            (
                VirtualLane::TaskManagement,
                InformationUnit::TaskManagement {
                    function,
                    tag,
                    managed,
                    lun,
                },
            ) => self.task_management(function, (tag, managed), lun, held_blocks),
            (
                _,
                InformationUnit::Command(_)
                | InformationUnit::DataOut(_)
                | InformationUnit::TaskManagement { .. },
            ) => {
                counters.wrong_lane.add(1);
                Receipt::Consumed
            }
            (
                _,
                InformationUnit::DataIn(_)
                | InformationUnit::Status(_)
                | InformationUnit::TaskManagementResponse { .. }
                | InformationUnit::Event(_),
            ) => {
                counters.malformed.add(1);
                Receipt::Consumed
            }
        }
    }

    fn batch_end(&self) {
        let touched = std::mem::take(&mut self.lock().touched);
        for nexus in touched {
            nexus.go_on();
        }
        self.vhba.run_port();
    }

    fn writable(&self) {
        self.lock().writable += 1;
        self.changed.notify_all();
        self.flush_outbox();
    }

    fn down(&self, epoch: u16) {
        if self.epoch() != Some(epoch) {
            return;
        }
        self.kill();
        let mut current = self.vhba.lock_current();
        if current
            .as_ref()
            .is_some_and(|current| current.number == self.number)
        {
            *current = None;
            drop(current);
            self.vhba.nexus_lost();
        }
    }
}

impl VhbaSession {
    pub(super) fn me(&self) -> Option<Arc<Self>> {
        self.me.upgrade()
    }

    pub(super) fn vhba(&self) -> &VhbaShared {
        &self.vhba
    }

    pub(super) fn lanes(&self) -> Option<LaneSet> {
        self.lock().lanes.clone()
    }

    pub(super) fn epoch(&self) -> Option<u16> {
        self.lock().lanes.as_ref().map(LaneSet::epoch)
    }
}

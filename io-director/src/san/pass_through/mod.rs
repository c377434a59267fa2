//! Logical units of others: the commands of a nexus go to an iSCSI target or a SCSI disk of this
//! machine as they are, and its answers come back as they are.
//!
//! ```text
//! nexus thread:   task set ─> PassThrough::begin ─> Flights ─> Target::submit
//! any thread:     answer, loss, task management  ─> Flights ─> Nexus::poke
//! nexus thread:   ended ─> DATA_IN, STATUS ─> lanes
//! ```
//!
//! Each (vHBA, LUN) has its own, and with iSCSI its own session: to the target each vHBA is an
//! initiator port of its own. REPORT LUNS and the LUN map stay ours; so do unit attentions of what
//! befalls the nexus here, which a stand-in in the LUN map keeps. Everything else is the target's.

mod command;
mod flights;
mod iscsi;
#[cfg(test)]
mod outage;
mod sg;
mod unit;

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use iscsi_initiator::{Answer, Command, Outcome, Residual, TaskTag, Transfer};
use scsi_target::{
    AdditionalSense, FieldPointer, ItNexus, Sense, SenseFormat, SenseKey, Status, TaskAttribute,
};

use self::command::{Effect, Needs, Unfit};
use self::flights::{End, Flights, Taken};
use super::nexus::{Nexus, SessionTask, Wake};
use super::task_set::TaskKey;
use super::vhba::Lun;
use super::vhba_session::ManagementEnd;
use crate::counters::{PassThroughCounters, Snapshot};

pub use self::unit::PassThroughError;
pub(super) use self::unit::{PassThroughUnit, StandIn};

const TEST_UNIT_READY: u8 = 0x00;
const REQUEST_SENSE: u8 = 0x03;
const INQUIRY: u8 = 0x12;
const REPORT_LUNS: u8 = 0xa0;

type Done = Box<dyn FnOnce(Outcome) + Send>;

/// What carries commands to a unit. No call waits.
trait Target: fmt::Debug + Send + Sync {
    /// Begins a command. `done` is called once, later, on another thread; with iSCSI the command
    /// may come back.
    ///
    /// # Errors
    /// Not now: the command, unchanged.
    fn submit(&self, command: Command, done: Done) -> Result<Option<TaskTag>, Command>;

    /// Asks for the end of these commands; of all that the target has if `all`. They end by their
    /// `done`.
    fn abort(&self, handles: &[TaskTag], all: bool);

    /// LOGICAL UNIT RESET.
    fn reset(&self, resetting: Resetting);

    /// Whether no other vHBA comes to the unit under the same name.
    fn has_own_nexus(&self) -> bool;
}

/// A reset that somebody waits for. Dropped, it was not carried out.
#[derive(Debug)]
struct Resetting(Option<Arc<ManagementEnd>>);

impl Resetting {
    fn complete(mut self) {
        if let Some(end) = self.0.take() {
            ManagementEnd::finish(end);
        }
    }
}

impl Drop for Resetting {
    fn drop(&mut self) {
        if let Some(end) = self.0.take() {
            end.reject();
            ManagementEnd::finish(end);
        }
    }
}

#[derive(Debug)]
struct State {
    flights: Flights<SessionTask>,
    ended: VecDeque<(SessionTask, End)>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct PassThrough {
    object: String,
    nexus: Weak<Nexus>,
    lun: Weak<Lun>,
    target: OnceLock<Box<dyn Target>>,
    read_only: bool,
    /// A guest told the target that it shares the unit.
    shares: AtomicBool,
    state: Mutex<State>,
    counters: PassThroughCounters,
    me: Weak<Self>,
}

impl PassThrough {
    /// Commands of `nexus` go to `unit` from now on. `object` is what the operator calls it,
    /// `port` distinguishes it from all others that come to this unit.
    ///
    /// # Errors
    /// [`PassThroughError`].
    pub(super) fn start(
        object: String,
        unit: &PassThroughUnit,
        (lun, nexus): (&Arc<Lun>, &Arc<Nexus>),
        port: (u32, u16),
    ) -> Result<Arc<Self>, PassThroughError> {
        let timeout = unit.timeout();
        let pass_through = Arc::new_cyclic(|me| Self {
            object,
            nexus: Arc::downgrade(nexus),
            lun: Arc::downgrade(lun),
            target: OnceLock::new(),
            read_only: unit.read_only(),
            shares: AtomicBool::new(false),
            state: Mutex::new(State {
                flights: Flights::new(timeout, Instant::now()),
                ended: VecDeque::new(),
            }),
            counters: PassThroughCounters::default(),
            me: me.clone(),
        });
        let target = unit.connect(&pass_through, port)?;
        // It is set once, here.
        drop(pass_through.target.set(target));
        Ok(pass_through)
    }

    /// Of a new nexus the unit itself tells that: its stand-in in the map need not.
    pub(super) fn power_on_is_told(it_nexus: &ItNexus, lun: scsi_target::Lun) {
        while unit_attention(it_nexus, lun.to_bytes()).is_some() {}
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whole between any two statements: going on is safe.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poke(&self) {
        if let Some(nexus) = self.nexus.upgrade() {
            nexus.poke();
        }
    }

    // From the nexus' thread.

    /// Serves the nexus until it stops.
    pub(super) fn run(&self, nexus: &Nexus, it_nexus: &ItNexus) {
        loop {
            self.expire();
            self.settle(nexus);
            self.send();
            let deadline = self.lock().flights.deadline();
            match nexus.wait_for_task(deadline) {
                Wake::Task(task) => self.begin(nexus, it_nexus, task),
                Wake::Poked => {}
                Wake::Stopped => break,
            }
        }
        // They hold their session, which holds us.
        let mut state = self.lock();
        let left = (state.flights.clear(), std::mem::take(&mut state.ended));
        drop(state);
        drop(left);
    }

    /// Answers what ended; may wait for credit.
    fn settle(&self, nexus: &Nexus) {
        loop {
            let ended = self.lock().ended.pop_front();
            let Some((task, end)) = ended else { return };
            nexus.conclude(&task, || self.answer(&task, end));
        }
    }

    fn answer(&self, task: &SessionTask, end: End) {
        let counters = &self.counters;
        let communication = |ascq| {
            Sense::new(
                SenseKey::AbortedCommand,
                AdditionalSense { asc: 0x08, ascq },
            )
        };
        let sense = match end {
            End::Answered(mut answer) => {
                counters.answered.add(1);
                trim(&mut answer, task.data_in_bytes);
                let (status, sense) = (answer.status, &answer.sense);
                task.session.complete(task, status, sense, &answer.data_in);
                task.session.flush();
                return;
            }
            End::Unknown => {
                counters.unknown.add(1);
                // LOGICAL UNIT COMMUNICATION FAILURE.
                communication(0)
            }
            End::TimedOut => {
                counters.timed_out.add(1);
                // LOGICAL UNIT COMMUNICATION TIME-OUT.
                communication(1)
            }
            End::Unreachable => {
                counters.unreachable.add(1);
                Sense::new(SenseKey::NotReady, AdditionalSense::TARGET_PORT_UNAVAILABLE)
            }
            End::Failed => {
                counters.failed.add(1);
                Sense::new(
                    SenseKey::HardwareError,
                    AdditionalSense::INTERNAL_TARGET_FAILURE,
                )
            }
        };
        check_condition(task, &sense);
    }

    /// Sends what may go.
    fn send(&self) {
        let Some(target) = self.target.get() else {
            return;
        };
        // Locked throughout: what ends meanwhile waits until it is known to have begun.
        let mut state = self.lock();
        while let Some((number, command)) = state.flights.next_to_send(Instant::now()) {
            let me = self.me.clone();
            let done = move |outcome| {
                if let Some(me) = me.upgrade() {
                    me.outcome(number, outcome);
                }
            };
            match target.submit(command, Box::new(done)) {
                Ok(handle) => state.flights.sent(number, handle),
                Err(command) => {
                    // It is poked when there is room, or the target is back.
                    state.flights.not_sent(number, command);
                    return;
                }
            }
        }
    }

    fn expire(&self) {
        let mut state = self.lock();
        let (ended, late) = state.flights.expire(Instant::now());
        state.ended.extend(ended);
        drop(state);
        if let Some(target) = self.target.get()
            && !late.is_empty()
        {
            target.abort(&late, false);
        }
    }

    fn begin(&self, nexus: &Nexus, it_nexus: &ItNexus, mut task: SessionTask) {
        let opcode = task.cdb.first().copied().unwrap_or_default();
        if opcode == REPORT_LUNS {
            let mut data_in = Vec::new();
            let completion = nexus.execute(&task, &mut data_in);
            let (status, sense) = (completion.status.code(), completion.sense_bytes());
            nexus.conclude(&task, || {
                task.session.complete(&task, status, &sense, &data_in);
                task.session.flush();
            });
            return;
        }
        if !matches!(opcode, INQUIRY | REQUEST_SENSE)
            && let Some(sense) = unit_attention(it_nexus, task.lun)
        {
            nexus.conclude(&task, || check_condition(&task, &sense));
            return;
        }
        let (cdb, effect) = match self.admitted(&task) {
            Ok(admitted) => admitted,
            Err(sense) => {
                self.counters.refused.add(1);
                nexus.conclude(&task, || check_condition(&task, &sense));
                return;
            }
        };
        let transfer = if task.data_out_bytes > 0 {
            let mut data = std::mem::take(&mut task.data_out);
            data.truncate(task.data_out_bytes);
            Transfer::Out(data)
        } else if task.data_in_bytes > 0 {
            Transfer::In(u32::try_from(task.data_in_bytes).unwrap_or(u32::MAX))
        } else {
            Transfer::None
        };
        let command = Command {
            // The target's own, which it knows.
            lun: [0; 8],
            cdb,
            attribute: match task.attribute {
                TaskAttribute::Simple | TaskAttribute::Aca => {
                    iscsi_initiator::TaskAttribute::Simple
                }
                TaskAttribute::Ordered => iscsi_initiator::TaskAttribute::Ordered,
                TaskAttribute::HeadOfQueue => iscsi_initiator::TaskAttribute::HeadOfQueue,
            },
            transfer,
        };
        let mut state = self.lock();
        // Who takes it away from now on finds it in the flights.
        if nexus.is_taken(task.key) {
            drop(state);
            nexus.conclude(&task, || {});
            return;
        }
        state.flights.add(task, command, effect);
    }

    /// The CDB as it is passed on, or why it is not.
    fn admitted(&self, task: &SessionTask) -> Result<(Vec<u8>, Effect), Sense> {
        let unfit = |unfit| match unfit {
            Unfit::OperationCode => illegal(AdditionalSense::INVALID_OPERATION_CODE),
            Unfit::Field => illegal(AdditionalSense::INVALID_FIELD_IN_CDB),
        };
        let cdb = command::trimmed(&task.cdb).map_err(unfit)?;
        let class = command::classify(cdb).map_err(unfit)?;
        if task.attribute == TaskAttribute::Aca || task.data_in_bytes > 0 && task.data_out_bytes > 0
        {
            return Err(illegal(AdditionalSense::INVALID_FIELD_IN_CDB));
        }
        if self.read_only && class.effect != Effect::Reads {
            let protected = AdditionalSense::WRITE_PROTECTED;
            return Err(Sense::new(SenseKey::DataProtect, protected));
        }
        let own_nexus = self
            .target
            .get()
            .is_some_and(|target| target.has_own_nexus());
        let refused = match class.needs {
            Needs::Nothing => false,
            Needs::Alone => self.is_shared(),
            Needs::OwnNexus => !own_nexus && self.is_shared(),
        };
        if refused {
            return Err(illegal(AdditionalSense::INVALID_OPERATION_CODE));
        }
        if class.shares {
            // Whoever loses a command later sees it: the flights' lock comes in between.
            self.shares.store(true, Ordering::Relaxed);
        }
        Ok((cdb.to_vec(), class.effect))
    }

    // From the target's threads.

    fn outcome(&self, number: u64, outcome: Outcome) {
        let mut state = self.lock();
        let lost = matches!(outcome, Outcome::UnknownFate(_));
        let repeats_writes = !self.shares.load(Ordering::Relaxed) && !self.is_shared();
        match state.flights.outcome(number, outcome, repeats_writes) {
            Some(ended) => state.ended.push_back(ended),
            None if lost => self.counters.repeated.add(1),
            None => {}
        }
        drop(state);
        self.poke();
    }

    /// Whether other vHBAs have the unit.
    fn is_shared(&self) -> bool {
        let lun = self.lun.upgrade();
        lun.is_none_or(|lun| lun.nexuses().len() > 1)
    }

    fn reachable(&self) {
        self.lock().flights.reachable();
        self.poke();
    }

    fn unreachable(&self) {
        self.lock().flights.unreachable(Instant::now());
        self.counters.outages.add(1);
        self.poke();
    }

    // From any thread.

    /// The tasks of these keys were taken away: those that have not gone end now, the others are
    /// called back.
    pub(super) fn take(&self, keys: &[TaskKey]) {
        let mut state = self.lock();
        let Taken {
            unsent,
            handles,
            all,
        } = state.flights.take(|task| keys.contains(&task.key));
        // What they end with is what took them away.
        let unsent = unsent.into_iter().map(|task| (task, End::Unknown));
        state.ended.extend(unsent);
        drop(state);
        if let Some(target) = self.target.get()
            && !handles.is_empty()
        {
            target.abort(&handles, all);
        }
        self.poke();
    }

    /// Resets the unit at the target; `end` says whether that was done.
    pub(super) fn reset(&self, end: Arc<ManagementEnd>) {
        let Some(target) = self.target.get() else {
            return ManagementEnd::finish(end);
        };
        target.reset(Resetting(Some(end)));
    }

    /// Whether the target is away.
    pub(super) fn is_away(&self) -> bool {
        self.lock().flights.unreachable_since().is_some()
    }

    /// Its counters, and since when the target is away.
    pub(super) fn snapshot(&self) -> Snapshot {
        let since = self.lock().flights.unreachable_since();
        let away = since.map_or(Duration::ZERO, |since| since.elapsed());
        let millis = u64::try_from(away.as_millis()).unwrap_or(u64::MAX);
        let mut snapshot = self.counters.snapshot(self.object.clone());
        let state = [
            ("reachable", u64::from(since.is_none())),
            ("unreachable_ms", millis),
        ];
        snapshot.counts.extend(state);
        snapshot
    }
}

/// What this nexus has to be told of what happened here.
fn unit_attention(it_nexus: &ItNexus, lun: [u8; 8]) -> Option<Sense> {
    let cdb = [TEST_UNIT_READY, 0, 0, 0, 0, 0];
    let mut none = Vec::new();
    let simple = TaskAttribute::Simple;
    let completion = it_nexus.execute(lun, &cdb, simple, &[], &mut none, 0);
    completion
        .sense
        .filter(|sense| sense.key == SenseKey::UnitAttention)
}

/// Data-in is what the residual leaves of it, and no more than the guest has room for.
fn trim(answer: &mut Answer, bytes_max: usize) {
    let moved = match answer.residual {
        Residual::Underflow(bytes) => {
            bytes_max.saturating_sub(usize::try_from(bytes).unwrap_or(usize::MAX))
        }
        Residual::None | Residual::Overflow(_) => bytes_max,
    };
    answer.data_in.truncate(moved);
}

fn check_condition(task: &SessionTask, sense: &Sense) {
    let sense = sense.encode(SenseFormat::Fixed);
    let status = Status::CheckCondition.code();
    task.session.complete(task, status, &sense, &[]);
    task.session.flush();
}

fn illegal(additional: AdditionalSense) -> Sense {
    let field = (additional == AdditionalSense::INVALID_OPERATION_CODE).then_some(FieldPointer {
        in_cdb: true,
        byte: 0,
        bit: None,
    });
    Sense {
        field,
        ..Sense::new(SenseKey::IllegalRequest, additional)
    }
}

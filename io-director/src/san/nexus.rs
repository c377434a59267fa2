//! One I_T_L nexus: a queue and the threads that execute it.
//!
//! ```text
//! waiting --pick--> running --executed--> answered
//!    |                 └── longer than the timeout ──> answered NOT READY, overdue
//!    └── task management, end of session ──> taken out (waiting) or marked (running)
//! ```
//!
//! A task that runs cannot be called back from the medium: it is marked, its result is replaced
//! by what the mark says, and whoever wanted it gone is told only then. What a TASK MANAGEMENT
//! response promises, that the task changes nothing any more, is therefore true. So is what the
//! status of PREEMPT AND ABORT promises of the tasks of those it preempts.
//!
//! **One thread, or several.** A medium that answers from memory is fastest when one thread does
//! one command after the other; a second would cost more than it saves. When most commands take
//! [`SLOW`], or one has taken [`LATE`], up to [`EXECUTORS_MAX`] run at a time, so that
//! a slow medium has something to choose from (`docs/adr/0014-lun-back-ends.md`).
//!
//! **Overdue.** A command that is at the medium longer than the timeout is answered, and its
//! thread is written off: another takes its place, up to [`THREADS_MAX`]. Until it is back the
//! unit refuses every access (`backend::medium`), which is why the promise above holds for
//! overdue commands too.
//!
//! **A unit of others** has one thread, which passes on as many commands as it is given and waits
//! for none of them; what is late there is for `pass_through` to end.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fabric_payload::scsi::ServiceResponse;
use scsi_target::{Completion, ItNexus, LogicalUnit, TaskAttribute};

use super::backend::medium::Medium;
use super::observe::NexusStatistics;
use super::pass_through::PassThrough;
use super::task_set::{self, Task, TaskKey, TaskSet};
use super::vhba_session::{ManagementEnd, VhbaSession};

pub(super) type SessionTask = Task<Arc<VhbaSession>>;

/// Commands of one nexus that run at a time, at most.
pub(super) const EXECUTORS_MAX: usize = 8;
/// Threads of one nexus, those that wait for a dead medium included.
const THREADS_MAX: usize = 2 * EXECUTORS_MAX;
/// Commands that take this long are worth a thread each: more than to copy 128 KiB, less than any
/// disk.
const SLOW: Duration = Duration::from_micros(25);
/// Answers that go out together, at most.
const ANSWERS_MAX: usize = 16;
/// Commands in a row below [`SLOW`] after which an answer waits for the next one: on a medium that
/// is slow now and then it would wait for that.
const ALWAYS_FAST: u8 = 64;
/// So many more slow commands than fast ones make a slow medium; a thread that lost its processor
/// for a moment makes none.
const MOSTLY_SLOW: u8 = 4;
/// One that has taken this long is waited for by no other.
const LATE: Duration = Duration::from_millis(1);

/// What becomes of a task that is taken away.
#[derive(Debug, Clone)]
pub(super) enum Fate {
    /// Its command ends with this; the function that caused it ends then.
    Ended(ServiceResponse, Arc<ManagementEnd>),
    /// Its session is gone: nobody is answered.
    Lost,
    /// PREEMPT AND ABORT of another nexus ended it, and waits for its end.
    Preempted(Arc<Preemption>),
}

/// Shared by the tasks that a PREEMPT AND ABORT takes away; the last one wakes its nexus.
#[derive(Debug)]
pub(super) struct Preemption {
    by: Weak<Nexus>,
}

impl Drop for Preemption {
    fn drop(&mut self) {
        let Some(by) = self.by.upgrade() else { return };
        // With the lock taken in between, whoever saw a task left is waiting by now.
        drop(by.lock());
        by.taken.notify_all();
    }
}

/// The most that may wait and run at one nexus.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Share {
    pub(super) commands_max: usize,
    pub(super) data_out_bytes_max: usize,
}

#[derive(Debug, Default)]
struct NexusState {
    tasks: TaskSet<Arc<VhbaSession>>,
    share: Share,
    running: Vec<Running>,
    /// Names the next one that runs.
    number: u64,
    /// Up for each command that was slow and down for each that was not, up to twice
    /// [`MOSTLY_SLOW`].
    slow: u8,
    /// Commands since the last slow one.
    fast_in_a_row: u8,
    threads: Vec<JoinHandle<()>>,
    /// Of these, those that have not ended.
    alive: usize,
    /// Those that wait for work.
    idle: usize,
    /// Those that wait for the medium on behalf of nobody.
    overdue: usize,
    /// [`Nexus::poke`] was called.
    poked: bool,
    /// Its LUN is no longer mapped: nothing more begins.
    retired: bool,
    stopped: bool,
}

/// Why a nexus does not take a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotTaken {
    /// It has its share already: TASK SET FULL.
    Full,
    /// Its LUN was unmapped meanwhile: LOGICAL UNIT NOT SUPPORTED.
    Retired,
}

#[derive(Debug)]
struct Running {
    number: u64,
    key: TaskKey,
    attribute: TaskAttribute,
    data_out_bytes: usize,
    data_in_bytes: usize,
    session: Arc<VhbaSession>,
    fates: Vec<Fate>,
    /// When it got to the medium.
    since: Option<Instant>,
    /// Answered already.
    overdue: bool,
    /// So many were fast that the next one will be.
    next_is_fast: bool,
}

/// Answers that wait for the end of a run of fast commands, to go out together. They are queued at
/// the lane already: when the next command is unexpectedly slow, [`Nexus::expire`] sends them.
#[derive(Default)]
struct Answers {
    session: Option<Arc<VhbaSession>>,
    count: usize,
}

impl Answers {
    /// One more of `session`, which waits only for a next command that is as fast.
    fn add(&mut self, session: &Arc<VhbaSession>, next_is_fast: bool) {
        if let Some(other) = self.session.take_if(|known| !Arc::ptr_eq(known, session)) {
            other.flush();
            self.count = 0;
        }
        self.session.get_or_insert_with(|| session.clone());
        self.count += 1;
        if !next_is_fast || self.count >= ANSWERS_MAX {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if let Some(session) = self.session.take() {
            session.flush();
        }
        self.count = 0;
    }
}

impl NexusState {
    /// Those that somebody waits for.
    fn running(&self) -> impl Iterator<Item = &Running> {
        self.running.iter().filter(|running| !running.overdue)
    }

    /// Whether a task that runs was neither answered nor taken away.
    fn still_counts(&self, number: u64) -> bool {
        let mut running = self.running();
        running.any(|running| running.number == number && running.fates.is_empty())
    }

    /// Has the task run that may begin next beside what runs; `since` is when it gets to the
    /// medium, if it does at once.
    fn pick(
        &mut self,
        beside: task_set::Running,
        since: impl FnOnce() -> Option<Instant>,
    ) -> Option<(u64, SessionTask)> {
        let task = self.tasks.pick(beside)?;
        self.number += 1;
        self.running.push(Running {
            number: self.number,
            key: task.key,
            attribute: task.attribute,
            data_out_bytes: task.data_out_bytes,
            data_in_bytes: task.data_in_bytes,
            session: task.session.clone(),
            fates: Vec::new(),
            since: since(),
            overdue: false,
            next_is_fast: false,
        });
        Some((self.number, task))
    }

    /// Nothing is left to do, now or ever.
    fn is_over(&self) -> bool {
        self.stopped || (self.retired && self.tasks.is_empty())
    }

    /// Threads that execute or send.
    fn busy(&self) -> usize {
        self.alive.saturating_sub(self.idle + self.overdue)
    }
}

/// What the thread of a unit of others has to do.
#[derive(Debug)]
pub(super) enum Wake {
    /// Begin this.
    Task(SessionTask),
    /// Look what happened.
    Poked,
    /// End.
    Stopped,
}

/// The queue of one (vHBA, LUN).
#[derive(Debug)]
pub(super) struct Nexus {
    state: Mutex<NexusState>,
    /// There may be work for a thread that has none, or none ever again.
    changed: Condvar,
    /// A task that runs was taken away, or what one waits for. Apart from `changed`, which wakes
    /// one thread at a time: it must be one that looks for work.
    taken: Condvar,
    name: String,
    it_nexus: Arc<ItNexus>,
    /// What its commands are for; `None`: LUNs that are not there.
    unit: Option<Arc<LogicalUnit>>,
    /// Every command is answered this late.
    delay: Duration,
    /// What commands may wait for.
    medium: Option<Arc<Medium>>,
    /// Where they go, if it is a unit of others.
    pass_through: OnceLock<Arc<PassThrough>>,
    me: Weak<Self>,
    statistics: Arc<NexusStatistics>,
}

impl Nexus {
    /// `name` is that of its threads.
    pub(super) fn new(
        name: String,
        (it_nexus, unit): (Arc<ItNexus>, Option<Arc<LogicalUnit>>),
        share: Share,
        delay: Duration,
        medium: Option<Arc<Medium>>,
        statistics: Arc<NexusStatistics>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            statistics,
            state: Mutex::new(NexusState {
                share,
                ..NexusState::default()
            }),
            changed: Condvar::new(),
            taken: Condvar::new(),
            name,
            it_nexus,
            unit,
            delay,
            medium,
            pass_through: OnceLock::new(),
            me: me.clone(),
        })
    }

    /// Has all commands go to a unit of others; once, before [`Self::start`].
    pub(super) fn pass_to(&self, pass_through: Arc<PassThrough>) {
        drop(self.pass_through.set(pass_through));
    }

    pub(super) fn pass_through(&self) -> Option<&Arc<PassThrough>> {
        self.pass_through.get()
    }

    /// Has `run` execute a SIMPLE task of `session` on the caller's thread, beside those that run,
    /// if no other has to run before; `run` says whether it has. `None`: it is to be pushed.
    pub(super) fn run_now(
        &self,
        session: &Arc<VhbaSession>,
        key: TaskKey,
        run: impl FnOnce() -> bool,
    ) -> Option<ServiceResponse> {
        let mut state = self.lock();
        let barrier = state
            .running()
            .any(|one| one.attribute != TaskAttribute::Simple);
        if barrier
            || state.stopped
            || state.retired
            || state.tasks.has_barrier()
            || !self.delay.is_zero()
        {
            return None;
        }
        state.number += 1;
        let number = state.number;
        state.running.push(Running {
            number,
            key,
            attribute: TaskAttribute::Simple,
            data_out_bytes: 0,
            data_in_bytes: 0,
            session: session.clone(),
            fates: Vec::new(),
            // It does not wait, so it is never late.
            since: None,
            overdue: false,
            next_is_fast: false,
        });
        drop(state);
        let ran = run();
        let mut state = self.lock();
        let at = state.running.iter().position(|one| one.number == number)?;
        let Running { fates, .. } = state.running.swap_remove(at);
        // An ORDERED task may have waited for this one.
        self.wake(state);
        let response = match fates.first() {
            None => ran.then_some(ServiceResponse::TaskComplete),
            Some(Fate::Lost) => Some(ServiceResponse::TargetFailure),
            Some(Fate::Ended(response, _)) => Some(*response),
            Some(Fate::Preempted(_)) => Some(ServiceResponse::Aborted),
        };
        finish(fates);
        response
    }

    /// Starts the first thread.
    pub(super) fn start(&self) -> std::io::Result<()> {
        self.spawn(&mut self.lock())
    }

    fn spawn(&self, state: &mut NexusState) -> std::io::Result<()> {
        let Some(nexus) = self.me.upgrade() else {
            return Ok(());
        };
        let thread = std::thread::Builder::new().name(self.name.clone());
        let thread = thread.spawn(move || nexus.run())?;
        state.threads.retain(|thread| !thread.is_finished());
        state.threads.push(thread);
        state.alive += 1;
        Ok(())
    }

    pub(super) fn statistics(&self) -> &Arc<NexusStatistics> {
        &self.statistics
    }

    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
        self.taken.notify_all();
    }

    /// The LUN is no longer mapped: what waits ends with LOGICAL UNIT NOT SUPPORTED, what runs goes
    /// on to its end, and then so do the threads.
    pub(super) fn retire(&self) {
        let mut state = self.lock();
        state.retired = true;
        let waiting = state.tasks.remove(|_| true);
        drop(state);
        self.changed.notify_all();
        for task in waiting {
            task.session.withdraw(task.key);
            task.session.unsupported(task.key.tag);
        }
    }

    /// Whether it is retired and all that ran has ended.
    pub(super) fn is_over(&self) -> bool {
        let state = self.lock();
        state.is_over() && state.running.is_empty() && state.alive == 0
    }

    /// Has it take this much from now on.
    pub(super) fn set_share(&self, share: Share) {
        self.lock().share = share;
    }

    /// Waits for the threads of a nexus that is stopped.
    pub(super) fn join(&self) {
        let threads = std::mem::take(&mut self.lock().threads);
        for thread in threads {
            // A panic there was reported by the thread itself.
            drop(thread.join());
        }
    }

    /// Adds a task, unless this nexus has its share already or is retired. It begins with
    /// [`Self::go_on`]: a thread woken for each task of a batch would take the processor from whoever
    /// brings the next.
    ///
    /// `added` is called once it is in, before anybody can find it.
    pub(super) fn push(&self, task: SessionTask, added: impl FnOnce()) -> Result<(), NotTaken> {
        let mut state = self.lock();
        if state.retired {
            return Err(NotTaken::Retired);
        }
        // Those that run hold their credit as much as those that wait.
        let (mut commands, mut bytes) = state.tasks.load();
        for running in state.running() {
            commands += 1;
            bytes += running.data_out_bytes;
        }
        let busy = commands > 0;
        let full = commands >= state.share.commands_max
            || bytes + task.data_out_bytes > state.share.data_out_bytes_max;
        // An idle nexus takes any one command: the largest write may be more than a share.
        if busy && full {
            return Err(NotTaken::Full);
        }
        state.tasks.push(task);
        added();
        Ok(())
    }

    /// Has a thread look for work after [`Self::push`] and [`Self::append`].
    pub(super) fn go_on(&self) {
        self.wake(self.lock());
    }

    /// The port lets a task be executed; one that was taken away needs no leave.
    pub(super) fn grant(&self, key: TaskKey) {
        let mut state = self.lock();
        if state.tasks.grant(key) {
            self.wake(state);
        }
    }

    /// Appends write data to a waiting task, which may begin with [`Self::go_on`]; one that was
    /// taken away needs none.
    pub(super) fn append(&self, key: TaskKey, data: &[u8]) {
        self.lock().tasks.append(key, data);
    }

    /// Whether a task that `wanted` names waits or runs.
    pub(super) fn contains(&self, mut wanted: impl FnMut(TaskKey) -> bool) -> bool {
        let state = self.lock();
        let running = state.running().any(|running| wanted(running.key));
        running || state.tasks.contains(wanted)
    }

    /// Takes the tasks that `wanted` names out of the queue and marks those that run.
    pub(super) fn take(
        &self,
        mut wanted: impl FnMut(TaskKey) -> bool,
        fate: &Fate,
    ) -> Vec<SessionTask> {
        let mut state = self.lock();
        let mut marked = Vec::new();
        for running in &mut state.running {
            if !running.overdue && wanted(running.key) {
                running.fates.push(fate.clone());
                marked.push(running.key);
            }
        }
        let removed = state.tasks.remove(wanted);
        drop(state);
        // A delay that is underway for a marked task ends; tasks behind a removed one may run.
        self.taken.notify_all();
        self.changed.notify_all();
        for task in &removed {
            task.session.withdraw(task.key);
        }
        if let Some(pass_through) = self.pass_through()
            && !marked.is_empty()
        {
            pass_through.take(&marked);
        }
        removed
    }

    /// Answers what has been at the medium for `timeout`, and has another thread go on. Called
    /// now and then.
    pub(super) fn expire(&self, now: Instant, timeout: Duration) {
        let Some(medium) = &self.medium else { return };
        let mut state = self.lock();
        let (mut ended, mut late) = (Vec::new(), Vec::new());
        for running in &mut state.running {
            let Some(since) = running.since.filter(|_| !running.overdue) else {
                continue;
            };
            let took = now.saturating_duration_since(since);
            if took >= LATE {
                late.push(running.session.clone());
            }
            if took >= timeout {
                running.overdue = true;
                // Before anybody hears of it: what comes after must not reach the medium.
                medium.gave_up();
                let fates = std::mem::take(&mut running.fates);
                ended.push((running.session.clone(), running.key, fates));
            }
        }
        state.overdue += ended.len();
        // Only when threads wait that never got to the medium, which refuses by now.
        let mut waiting = Vec::new();
        if state.overdue >= THREADS_MAX {
            waiting = state.tasks.remove(|_| true);
        }
        self.wake(state);
        if !ended.is_empty() {
            self.taken.notify_all();
        }
        // Answers of fast commands may wait behind it.
        for session in late {
            session.flush();
        }
        for (session, key, fates) in ended {
            match fates.first() {
                Some(Fate::Lost) => session.lost(key.tag),
                Some(Fate::Ended(response, _)) => session.end(key.tag, *response),
                Some(Fate::Preempted(_)) => session.end(key.tag, ServiceResponse::Aborted),
                None => session.unavailable(key.tag),
            }
            finish(fates);
        }
        for task in waiting {
            task.session.withdraw(task.key);
            task.session.unavailable(task.key.tag);
        }
    }

    fn lock(&self) -> MutexGuard<'_, NexusState> {
        // Whole between any two statements: going on is safe.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one more thread may work.
    fn has_room(&self, state: &NexusState) -> bool {
        let busy = state.busy();
        if busy == 0 || !self.delay.is_zero() {
            return busy == 0;
        }
        let late = |running: &Running| running.since.is_some_and(|since| since.elapsed() >= LATE);
        busy < EXECUTORS_MAX && (state.slow >= MOSTLY_SLOW || state.running().any(late))
    }

    /// Has a thread look for work, if one more may.
    fn wake(&self, mut state: MutexGuard<'_, NexusState>) {
        if state.tasks.is_empty() || !self.has_room(&state) {
            return;
        }
        if state.idle > 0 {
            drop(state);
            self.changed.notify_one();
        } else if state.alive < THREADS_MAX
            && !state.stopped
            && let Err(error) = self.spawn(&mut state)
        {
            tracing::debug!(%error, nexus = self.name, "no thread");
        }
    }

    /// Waits for the next task, sending `answers` before; `None` when the thread is to end.
    fn next(&self, answers: &mut Answers) -> Option<(u64, SessionTask)> {
        let mut state = self.lock();
        loop {
            // Written-off threads that are back are too many.
            let surplus = state.busy() + state.idle > EXECUTORS_MAX;
            if state.is_over() || surplus {
                state.alive = state.alive.saturating_sub(1);
                // Whatever it would have begun is for another.
                self.wake(state);
                answers.flush();
                return None;
            }
            // It counts as busy itself.
            state.idle += 1;
            let has_room = self.has_room(&state);
            state.idle -= 1;
            let mut beside = task_set::Running::default();
            state.running().for_each(|each| beside.add(each.attribute));
            let since = || self.delay.is_zero().then(Instant::now);
            if has_room && let Some(picked) = state.pick(beside, since) {
                // Whoever was woken for this one is needed for the next.
                self.wake(state);
                return Some(picked);
            }
            if answers.session.is_some() {
                drop(state);
                answers.flush();
                state = self.lock();
                continue;
            }
            state.idle += 1;
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    /// Something happened at the unit of others.
    pub(super) fn poke(&self) {
        self.lock().poked = true;
        self.changed.notify_all();
    }

    /// Waits until there is something to do at the unit of others, or `deadline`. As long as the
    /// tasks that run want more data than a share, no other begins.
    pub(super) fn wait_for_task(&self, deadline: Option<Instant>) -> Wake {
        let mut state = self.lock();
        loop {
            if state.stopped || (state.is_over() && state.running.is_empty()) {
                state.alive = state.alive.saturating_sub(1);
                return Wake::Stopped;
            }
            if std::mem::take(&mut state.poked) {
                return Wake::Poked;
            }
            let data_in_bytes: usize = state.running.iter().map(|task| task.data_in_bytes).sum();
            // ORDERED and HEAD OF QUEUE keep their place in `pass_through::flights`.
            if data_in_bytes < state.share.data_out_bytes_max
                && let Some((_, task)) = state.pick(task_set::Running::default(), || None)
            {
                return Wake::Task(task);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Wake::Poked;
            }
            state.idle += 1;
            state = match left {
                None => {
                    let waited = self.changed.wait(state);
                    waited.unwrap_or_else(PoisonError::into_inner)
                }
                Some(left) => {
                    let waited = self.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
            state.idle -= 1;
        }
    }

    /// Whether a task that runs was taken away.
    pub(super) fn is_taken(&self, key: TaskKey) -> bool {
        let state = self.lock();
        let mut running = state.running();
        running.any(|running| running.key == key && !running.fates.is_empty())
    }

    /// Waits out the configured delay, unless the task is taken away; whether it still counts.
    fn pause(&self, number: u64) -> bool {
        let mut state = self.lock();
        let end = Instant::now() + self.delay;
        loop {
            let stopped = state.stopped;
            let running = state.running.iter_mut();
            let mut running = running.filter(|running| running.number == number);
            let Some(running) = running.next().filter(|running| running.fates.is_empty()) else {
                return false;
            };
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() && !stopped {
                running.since = Some(Instant::now());
                return true;
            }
            if stopped {
                return false;
            }
            let waited = self.taken.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes a task from those that run; `None` if it was answered in the meantime.
    fn ended(&self, is_it: impl Fn(&Running) -> bool) -> Option<Running> {
        let mut state = self.lock();
        let at = state.running.iter().position(is_it)?;
        let mut running = state.running.swap_remove(at);
        if running.overdue {
            state.overdue = state.overdue.saturating_sub(1);
            drop(state);
            if let Some(medium) = &self.medium {
                medium.came_back();
            }
            return None;
        }
        if let Some(since) = running.since {
            (state.slow, state.fast_in_a_row) = if since.elapsed() < SLOW {
                let fast_in_a_row = state.fast_in_a_row.saturating_add(1);
                (state.slow.saturating_sub(1), fast_in_a_row)
            } else {
                ((state.slow + 1).min(2 * MOSTLY_SLOW), 0)
            };
            // A configured delay is none of the medium's, and waited out before it.
            running.next_is_fast = self.delay.is_zero() && state.fast_in_a_row >= ALWAYS_FAST;
        }
        Some(running)
    }

    /// Ends the tasks that other nexuses with these initiator ports have on the unit, and waits
    /// until they change nothing any more. One that is taken away itself promises nothing and does
    /// not wait: two that preempt each other would never end.
    fn preempt(&self, number: u64, task: &SessionTask, ports: &[u64]) {
        let by = self.me.clone();
        let preemption = Arc::new(Preemption { by });
        let left = Arc::downgrade(&preemption);
        let fate = Fate::Preempted(preemption);
        for nexus in task.session.sharing(self) {
            let preempted = ports.contains(&nexus.it_nexus.initiator_port());
            if preempted && !std::ptr::eq(Arc::as_ptr(&nexus), self) {
                for task in nexus.take(|_| true, &fate) {
                    task.session.end(task.key.tag, ServiceResponse::Aborted);
                }
            }
        }
        drop(fate);
        let mut state = self.lock();
        while left.strong_count() > 0 && !state.stopped && state.still_counts(number) {
            let waited = self.taken.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A task of a unit of others is over: `answer` answers it, unless it was taken away.
    pub(super) fn conclude(&self, task: &SessionTask, answer: impl FnOnce()) {
        if let Some(running) = self.ended(|running| running.key == task.key) {
            settle(running, answer);
        }
    }

    /// Executes a task on the unit that it came for.
    pub(super) fn execute(&self, task: &SessionTask, data_in: &mut Vec<u8>) -> Completion {
        let command = (task.lun, task.cdb.as_slice(), task.attribute);
        let (unit, max) = (self.unit.as_ref(), task.data_in_bytes);
        self.it_nexus
            .execute_for(unit, command, &task.data_out, data_in, max)
    }

    fn run(&self) {
        if let Some(pass_through) = self.pass_through() {
            return pass_through.run(self, &self.it_nexus);
        }
        let mut data_in = Vec::new();
        let mut answers = Answers::default();
        while let Some((number, task)) = self.next(&mut answers) {
            let completion = (self.delay.is_zero() || self.pause(number))
                .then(|| self.execute(&task, &mut data_in));
            if let Some(completion) = &completion
                && !completion.preempted_ports.is_empty()
            {
                // It may wait, which nobody's answer does.
                answers.flush();
                self.preempt(number, &task, &completion.preempted_ports);
            }
            let Some(running) = self.ended(|running| running.number == number) else {
                continue;
            };
            let next_is_fast = running.next_is_fast;
            settle(running, || match completion {
                Some(completion) => {
                    let (status, sense) = (completion.status.code(), completion.sense_bytes());
                    task.session.complete(&task, status, &sense, &data_in);
                    answers.add(&task.session, next_is_fast);
                }
                // Stopped: the session ends too, which tells the host.
                None => task.session.lost(task.key.tag),
            });
        }
    }
}

/// Answers a task that ran by `answer`, unless it was taken away: the first that did decides, the
/// others only wait for its end.
fn settle(running: Running, answer: impl FnOnce()) {
    let Running {
        key,
        session,
        fates,
        ..
    } = running;
    match fates.first() {
        Some(Fate::Lost) => session.lost(key.tag),
        Some(Fate::Ended(response, _)) => session.end(key.tag, *response),
        Some(Fate::Preempted(_)) => session.end(key.tag, ServiceResponse::Aborted),
        None => answer(),
    }
    finish(fates);
}

/// Those who wanted a task gone need not wait for it any more.
fn finish(fates: Vec<Fate>) {
    for fate in fates {
        match fate {
            Fate::Ended(_, end) => ManagementEnd::finish(end),
            Fate::Preempted(preemption) => drop(preemption),
            Fate::Lost => {}
        }
    }
}

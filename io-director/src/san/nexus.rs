//! One I_T_L nexus: a queue and the thread that executes it.
//!
//! ```text
//! waiting --pick--> running --executed--> answered
//!    └── task management, end of session ──> taken out (waiting) or marked (running)
//! ```
//!
//! A task that runs cannot be called back from the medium: it is marked, its result is replaced
//! by what the mark says, and whoever wanted it gone is told only then. What a TASK MANAGEMENT
//! response promises, that the task changes nothing any more, is therefore true. So is what the
//! status of PREEMPT AND ABORT promises of the tasks of those it preempts.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fabric_payload::scsi::ServiceResponse;
use scsi_target::{Completion, ItNexus};

use super::task_set::{Task, TaskKey, TaskSet};
use super::vhba_session::{ManagementEnd, VhbaSession};

type SessionTask = Task<Arc<VhbaSession>>;

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
    by: Arc<Nexus>,
}

impl Drop for Preemption {
    fn drop(&mut self) {
        // With the lock taken in between, whoever saw a task left is waiting by now.
        drop(self.by.lock());
        self.by.changed.notify_all();
    }
}

/// The most that may wait and run at one nexus.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share {
    pub(super) commands_max: usize,
    pub(super) data_out_bytes_max: usize,
}

#[derive(Debug, Default)]
struct NexusState {
    tasks: TaskSet<Arc<VhbaSession>>,
    running: Option<Running>,
    stopped: bool,
}

impl NexusState {
    /// Whether the task that runs was taken away.
    fn is_marked(&self) -> bool {
        let running = self.running.as_ref();
        running.is_some_and(|running| !running.fates.is_empty())
    }
}

#[derive(Debug)]
struct Running {
    key: TaskKey,
    data_out_bytes: usize,
    fates: Vec<Fate>,
}

/// The queue of one (vHBA, LUN).
#[derive(Debug)]
pub(super) struct Nexus {
    state: Mutex<NexusState>,
    changed: Condvar,
    share: Share,
    /// Every command is answered this late.
    delay: Duration,
    /// Under which reservations know it.
    initiator_port: u64,
}

impl Nexus {
    pub(super) fn new(share: Share, delay: Duration, initiator_port: u64) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            share,
            delay,
            initiator_port,
        })
    }

    /// Starts the thread that executes on `it_nexus`.
    pub(super) fn start(
        self: &Arc<Self>,
        name: &str,
        it_nexus: Arc<ItNexus>,
    ) -> std::io::Result<JoinHandle<()>> {
        let nexus = self.clone();
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || nexus.run(&it_nexus))
    }

    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Adds a task, or gives it back when this nexus has its share already (TASK SET FULL).
    ///
    /// `added` is called once it is in, before anybody can find it.
    pub(super) fn push(&self, task: SessionTask, added: impl FnOnce()) -> Result<(), SessionTask> {
        let mut state = self.lock();
        // The one that runs holds its credit as much as those that wait.
        let (mut commands, mut bytes) = state.tasks.load();
        if let Some(running) = &state.running {
            commands += 1;
            bytes += running.data_out_bytes;
        }
        let busy = commands > 0;
        let full = commands >= self.share.commands_max
            || bytes + task.data_out_bytes > self.share.data_out_bytes_max;
        // An idle nexus takes any one command: the largest write may be more than a share.
        if busy && full {
            return Err(task);
        }
        state.tasks.push(task);
        added();
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// The port lets a task be executed; one that was taken away needs no leave.
    pub(super) fn grant(&self, key: TaskKey) {
        if self.lock().tasks.grant(key) {
            self.changed.notify_all();
        }
    }

    /// Appends write data to a waiting task; one that was taken away needs none.
    pub(super) fn append(&self, key: TaskKey, data: &[u8]) {
        if self.lock().tasks.append(key, data) {
            self.changed.notify_all();
        }
    }

    /// Whether a task that `wanted` names waits or runs.
    pub(super) fn contains(&self, mut wanted: impl FnMut(TaskKey) -> bool) -> bool {
        let state = self.lock();
        let running = state
            .running
            .as_ref()
            .is_some_and(|running| wanted(running.key));
        running || state.tasks.contains(wanted)
    }

    /// Takes the tasks that `wanted` names out of the queue and marks the one that runs.
    pub(super) fn take(
        &self,
        mut wanted: impl FnMut(TaskKey) -> bool,
        fate: &Fate,
    ) -> Vec<SessionTask> {
        let mut state = self.lock();
        if let Some(running) = state.running.as_mut().filter(|running| wanted(running.key)) {
            running.fates.push(fate.clone());
        }
        let removed = state.tasks.remove(wanted);
        drop(state);
        // A delay that is underway for a marked task ends; a task behind a removed one may run.
        self.changed.notify_all();
        for task in &removed {
            task.session.withdraw(task.key);
        }
        removed
    }

    fn lock(&self) -> MutexGuard<'_, NexusState> {
        // Whole between any two statements: going on is safe.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next task; `None` when the nexus stops.
    fn next(&self) -> Option<SessionTask> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return None;
            }
            if let Some(task) = state.tasks.pick() {
                state.running = Some(Running {
                    key: task.key,
                    data_out_bytes: task.data_out_bytes,
                    fates: Vec::new(),
                });
                return Some(task);
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits out the configured delay, unless the task is taken away; whether it still counts.
    fn pause(&self) -> bool {
        let mut state = self.lock();
        let end = Instant::now() + self.delay;
        loop {
            if state.stopped || state.is_marked() {
                return false;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            let waited = self.changed.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends the tasks that other nexuses with these initiator ports have on the unit, and waits
    /// until they change nothing any more. One that is taken away itself promises nothing and does
    /// not wait: two that preempt each other would never end.
    fn preempt(self: &Arc<Self>, task: &SessionTask, ports: &[u64]) {
        let preemption = Arc::new(Preemption { by: self.clone() });
        let left = Arc::downgrade(&preemption);
        let fate = Fate::Preempted(preemption);
        for nexus in task.session.sharing(task.lun) {
            if ports.contains(&nexus.initiator_port) && !Arc::ptr_eq(&nexus, self) {
                for task in nexus.take(|_| true, &fate) {
                    task.session.end(task.key.tag, ServiceResponse::Aborted);
                }
            }
        }
        drop(fate);
        let mut state = self.lock();
        while left.strong_count() > 0 && !state.stopped && !state.is_marked() {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn run(self: &Arc<Self>, it_nexus: &ItNexus) {
        let mut data_in = Vec::new();
        while let Some(task) = self.next() {
            let completion = (self.delay.is_zero() || self.pause())
                .then(|| execute(it_nexus, &task, &mut data_in));
            if let Some(completion) = &completion
                && !completion.preempted_ports.is_empty()
            {
                self.preempt(&task, &completion.preempted_ports);
            }
            let running = self.lock().running.take();
            let mut fates = running.map(|running| running.fates).unwrap_or_default();
            // The first that took it away decides; the others only wait for its end.
            match (fates.first(), completion) {
                (Some(Fate::Lost), _) => task.session.lost(task.key.tag),
                (Some(Fate::Ended(response, _)), _) => task.session.end(task.key.tag, *response),
                (Some(Fate::Preempted(_)), _) => {
                    task.session.end(task.key.tag, ServiceResponse::Aborted);
                }
                (None, Some(completion)) => task.session.complete(&task, &completion, &data_in),
                // Stopped: the session ends too, which tells the host.
                (None, None) => task.session.lost(task.key.tag),
            }
            for fate in fates.drain(..) {
                match fate {
                    Fate::Ended(_, end) => ManagementEnd::finish(end),
                    Fate::Preempted(preemption) => drop(preemption),
                    Fate::Lost => {}
                }
            }
        }
    }
}

fn execute(it_nexus: &ItNexus, task: &SessionTask, data_in: &mut Vec<u8>) -> Completion {
    let max = task.data_in_bytes;
    it_nexus.execute(
        task.lun,
        &task.cdb,
        task.attribute,
        &task.data_out,
        data_in,
        max,
    )
}

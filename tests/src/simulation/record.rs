//! What a run writes down: its trace, its counters, and the first thing that is wrong.

use qos::MonotonicTime;

/// What found that something is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Checker {
    /// A frame of a lane was lost, duplicated or reordered while its session lived.
    Order,
    /// A receiver holds more than its window.
    Window,
    /// After everything was released a sender's credit is not its whole window.
    Credit,
    /// The epoch of a session does not come after that of the one before.
    Epoch,
    /// A frame of an older session or attachment was delivered.
    Stale,
    /// A request was not answered, or a device not served, in time.
    Liveness,
    /// A prompt device got less than its reservation while others stalled.
    Promise,
    /// A session ended for no reason that the script gives.
    SessionEnd,
    /// Frames pile up.
    Memory,
    /// An assertion of the code itself.
    Assertion,
}

/// What is wrong with a world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guilt {
    /// What found it.
    pub checker: Checker,
    /// What it found.
    pub what: String,
}

/// What happened in a world, in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Steps of the virtual clock.
    pub steps: u64,
    /// Frames with payload that were sent and delivered.
    pub sent: u64,
    /// Frames that were delivered to devices.
    pub delivered: u64,
    /// Frames that went out again by another link.
    pub replayed: u64,
    /// Frames that arrived again or too late.
    pub ignored: u64,
    /// Requests that were answered.
    pub answered: u64,
    /// Requests that ended with their session or attachment.
    pub aborted: u64,
    /// Sessions that hosts began.
    pub sessions: u64,
    /// Links that were given up.
    pub paths_lost: u64,
    /// Changes of path.
    pub path_changes: u64,
    /// Attachments of devices.
    pub attached: u64,
    /// Faults that were made.
    pub faults: u64,
    /// Devices whose reservation was checked.
    pub promises: u64,
}

impl Counters {
    /// Adds those of another world.
    pub fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.sent += other.sent;
        self.delivered += other.delivered;
        self.replayed += other.replayed;
        self.ignored += other.ignored;
        self.answered += other.answered;
        self.aborted += other.aborted;
        self.sessions += other.sessions;
        self.paths_lost += other.paths_lost;
        self.path_changes += other.path_changes;
        self.attached += other.attached;
        self.faults += other.faults;
        self.promises += other.promises;
    }
}

/// The record of a run.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) now: MonotonicTime,
    pub(super) random: fastrand::Rng,
    pub(super) counters: Counters,
    pub(super) guilt: Option<Guilt>,
    /// Everybody gives back what it holds, and asks for nothing more.
    pub(super) draining: bool,
    trace: Option<String>,
}

impl Record {
    pub(super) fn new(random: fastrand::Rng, traced: bool) -> Self {
        Self {
            now: MonotonicTime::ZERO,
            random,
            counters: Counters::default(),
            guilt: None,
            draining: false,
            trace: traced.then(String::new),
        }
    }

    /// Writes a line of the trace.
    pub(super) fn say(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            let micros = self.now.as_nanos() / 1000;
            let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
            trace.push_str(&format!("{seconds:5}.{micros:06} {}\n", line()));
        }
    }

    /// The first finding counts: others may follow from it.
    pub(super) fn accuse(&mut self, checker: Checker, what: impl FnOnce() -> String) {
        if self.guilt.is_none() {
            let what = what();
            self.say(|| format!("GUILTY {checker:?}: {what}"));
            self.guilt = Some(Guilt { checker, what });
        }
    }

    pub(super) fn into_trace(self) -> String {
        self.trace.unwrap_or_default()
    }
}

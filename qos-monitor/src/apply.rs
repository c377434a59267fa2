//! A lab file that a running process takes because a client of the control socket asks for it.
//!
//! The monitor's thread never waits: it hands an [`ApplyJob`] to whoever applies, and answers its client
//! when that is done.

use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fabric_config::Report;
use nix::sys::eventfd::EventFd;

/// Lab files that may wait for their turn. They are the same file: one more would change nothing.
pub const APPLY_JOBS_MAX: usize = 8;

/// What whoever applies is told.
#[derive(Debug)]
pub enum ApplyJob {
    /// Read the lab file again and apply it.
    Apply(ApplyDone),
    /// The process stops.
    Stop,
}

/// Whom to tell what became of it. Dropped, it says that the process stops.
#[derive(Debug, Default)]
pub struct ApplyDone(Option<(u64, Arc<Answers>)>);

/// Results that the monitor has not passed on yet, by number of the client.
#[derive(Debug)]
pub(crate) struct Answers {
    done: Mutex<Vec<(u64, Result<Report, String>)>>,
    wake: Arc<EventFd>,
}

impl Answers {
    pub(crate) fn new(wake: Arc<EventFd>) -> Arc<Self> {
        let done = Mutex::default();
        Arc::new(Self { done, wake })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(u64, Result<Report, String>)>> {
        // Whole between any two statements: going on is safe.
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn take(&self) -> Vec<(u64, Result<Report, String>)> {
        std::mem::take(&mut *self.lock())
    }
}

impl ApplyDone {
    /// Nobody: a signal asked.
    #[must_use]
    pub fn nobody() -> Self {
        Self::default()
    }

    /// Tells what became of it: the report, or why nothing has changed.
    pub fn tell(mut self, result: Result<Report, String>) {
        self.send(result);
    }

    fn send(&mut self, result: Result<Report, String>) {
        let Some((client, answers)) = self.0.take() else {
            return;
        };
        answers.lock().push((client, result));
        if let Err(error) = answers.wake.write(1) {
            // A counter at its maximum is a wake-up that is pending already.
            tracing::debug!(%error, "monitor was woken before");
        }
    }
}

impl Drop for ApplyDone {
    fn drop(&mut self) {
        self.send(Err("the process stops; nothing was applied".to_owned()));
    }
}

/// Asks whoever applies, for `client`.
///
/// # Errors
/// Why not, and what to do.
pub(crate) fn ask(
    jobs: Option<&SyncSender<ApplyJob>>,
    client: u64,
    answers: &Arc<Answers>,
) -> Result<(), String> {
    let jobs = jobs.ok_or_else(|| {
        "this process takes no lab file while it runs; restart it with the new one".to_owned()
    })?;
    let done = ApplyDone(Some((client, answers.clone())));
    match jobs.try_send(ApplyJob::Apply(done)) {
        Ok(()) => Ok(()),
        // The refusal is the answer.
        Err(TrySendError::Full(ApplyJob::Apply(mut done))) => {
            done.0 = None;
            Err(format!(
                "{APPLY_JOBS_MAX} lab files wait to be applied; try again later"
            ))
        }
        Err(TrySendError::Full(ApplyJob::Stop) | TrySendError::Disconnected(_)) => {
            Err("the process stops".to_owned())
        }
    }
}

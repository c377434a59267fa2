//! Two threads that look at every LUN now and then: one answers what a medium does not, the other
//! asks media for their size. Apart, because asking for a size may take as long as anything else.
//!
//! A LUN that is removed is looked after until the last command of it has ended.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::vhba::Lun;

/// Commands are answered this much after their timeout at most.
const EXPIRE_EVERY: Duration = Duration::from_millis(50);
/// A change of size is seen after this; a guest has to hear of it within 2 s.
const MEASURE_EVERY: Duration = Duration::from_millis(500);

/// See the module. Ends its threads when dropped, waiting for a medium that is asked just then.
#[derive(Debug)]
pub struct LunWatch {
    stop: Arc<Stop>,
    luns: Arc<Mutex<Watched>>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Watched {
    luns: Vec<Arc<Lun>>,
    /// Those that were removed.
    removed: Vec<Arc<Lun>>,
}

fn lock(luns: &Mutex<Watched>) -> MutexGuard<'_, Watched> {
    // Whole between any two statements: going on is safe.
    luns.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Default)]
struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl LunWatch {
    /// Watches `luns`.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(luns: impl Iterator<Item = Arc<Lun>>) -> io::Result<Self> {
        let mut watch = Self {
            stop: Arc::default(),
            luns: Arc::default(),
            threads: Vec::new(),
        };
        watch.set(luns);
        watch.every("lun-timeout", EXPIRE_EVERY, Lun::expire)?;
        watch.every("lun-size", MEASURE_EVERY, Lun::measure)?;
        Ok(watch)
    }

    /// Watches `luns` from now on, and those before until nothing of them is left.
    pub fn set(&self, luns: impl Iterator<Item = Arc<Lun>>) {
        let mut watched = lock(&self.luns);
        let before = std::mem::replace(&mut watched.luns, luns.collect());
        let luns = &watched.luns;
        let stays = |lun: &Arc<Lun>| luns.iter().any(|it| Arc::ptr_eq(it, lun));
        let removed: Vec<_> = before.into_iter().filter(|lun| !stays(lun)).collect();
        watched.removed.extend(removed);
        watched.removed.retain(|lun| !lun.is_unused());
    }

    fn every(&mut self, name: &str, interval: Duration, look: fn(&Lun)) -> io::Result<()> {
        let (stop, luns) = (self.stop.clone(), self.luns.clone());
        let thread = std::thread::Builder::new().name(name.to_owned());
        let thread = thread.spawn(move || {
            while !stop.wait(interval) {
                let watched = lock(&luns);
                let both = watched.luns.iter().chain(&watched.removed);
                let both: Vec<_> = both.cloned().collect();
                drop(watched);
                both.iter().for_each(|lun| look(lun));
                drop(both);
                lock(&luns).removed.retain(|lun| !lun.is_unused());
            }
        })?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Stop {
    /// Waits for `interval`, or until it is stopped; whether it is.
    fn wait(&self, interval: Duration) -> bool {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .changed
            .wait_timeout_while(stopped, interval, |stopped| !*stopped);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Drop for LunWatch {
    fn drop(&mut self) {
        let mut stopped = self
            .stop
            .stopped
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *stopped = true;
        drop(stopped);
        self.stop.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A panic there was reported by the thread itself.
            drop(thread.join());
        }
    }
}

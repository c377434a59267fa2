//! Two threads that look at every LUN now and then: one answers what a medium does not, the other
//! asks media for their size. Apart, because asking for a size may take as long as anything else.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
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
    threads: Vec<JoinHandle<()>>,
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
        let luns: Arc<[_]> = luns.collect();
        let mut watch = Self {
            stop: Arc::default(),
            threads: Vec::new(),
        };
        watch.every("lun-timeout", EXPIRE_EVERY, luns.clone(), Lun::expire)?;
        watch.every("lun-size", MEASURE_EVERY, luns, Lun::measure)?;
        Ok(watch)
    }

    fn every(
        &mut self,
        name: &str,
        interval: Duration,
        luns: Arc<[Arc<Lun>]>,
        look: fn(&Lun),
    ) -> io::Result<()> {
        let stop = self.stop.clone();
        let thread = std::thread::Builder::new().name(name.to_owned());
        let thread = thread.spawn(move || {
            while !stop.wait(interval) {
                luns.iter().for_each(|lun| look(lun));
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

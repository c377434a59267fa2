//! Whole fabrics in one thread and in virtual time, from one seed.
//!
//! ```text
//!            ┌ host: uplink ─ End ┐  cables: rate, delay, jitter,  ┌ director: acceptor ─ Ends ┐
//!  devices ──┤  Session, Scheduler├── buffers, cuts, black holes ──┤  Session, Scheduler        ├── devices
//!            └────────────────────┘   bit flips                    └───────────────────────────┘
//! ```
//!
//! The sessions, schedulers, frames, send queues and handshakes are the real ones. What
//! `fabric_transport::endpoint`, `uplink` and `acceptor` do around them with threads and sockets is
//! done here step by step: `end.rs`, `host.rs` and `director.rs` follow them function by function.
//! Devices send numbered payloads; the checkers ([`Checker`]) look at each that is delivered and at
//! the whole world once the last fault is over.
//!
//! The same seed gives the same world, byte for byte. [`Bug`] is what a world can be given to see
//! that a checker finds it.

mod bug;
mod device;
mod director;
mod end;
mod host;
mod record;
mod script;
mod wire;
mod world;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

pub use bug::Bug;
use record::Record;
pub use record::{Checker, Counters, Guilt};
use world::World;

/// What came of a world.
#[derive(Debug)]
pub struct Outcome {
    /// The first thing that was wrong, if anything was.
    pub guilt: Option<Guilt>,
    /// What happened, in numbers.
    pub counters: Counters,
    /// What happened, line by line; empty unless it was asked for.
    pub trace: String,
}

/// Runs the world of `seed`, with a `bug` if it is to have one.
#[must_use]
pub fn run(seed: u64, bug: Option<Bug>, traced: bool) -> Outcome {
    let mut record = Record::new(fastrand::Rng::with_seed(seed), traced);
    // Of what panicked nothing but the record is looked at.
    let ran = catch_unwind(AssertUnwindSafe(|| World::run(&mut record, bug)));
    if let Err(panic) = ran {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        record.accuse(Checker::Assertion, || text.unwrap_or_default());
    }
    Outcome {
        guilt: record.guilt.clone(),
        counters: record.counters,
        trace: record.into_trace(),
    }
}

/// Runs the worlds of `seeds` in as many threads as the machine has cores. Returns what happened in
/// all of them, and the guilty ones by seed.
#[must_use]
pub fn run_all(seeds: Range<u64>) -> (Counters, Vec<(u64, Guilt)>) {
    let next = AtomicU64::new(seeds.start);
    let found = Mutex::new((Counters::default(), Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let outcome = run(seed, None, false);
                    // A thread that panicked left whole numbers behind.
                    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                    found.0.add(&outcome.counters);
                    found.1.extend(outcome.guilt.map(|guilt| (seed, guilt)));
                }
            });
        }
    });
    let (counters, mut guilty) = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    guilty.sort_by_key(|(seed, _)| *seed);
    (counters, guilty)
}

//! How near the two processors are to each other: hosts of virtual machines move them apart and
//! together again, and all that crosses becomes several times slower and faster.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::super::vhba::pin;

/// A cache line goes there and back in less when they are near (0.05 us; far: 0.3 us).
const NEAR: Duration = Duration::from_nanos(150);
const TRIPS: u32 = 100;
const BATCHES: u32 = 40;

/// Whether this thread's processor and `other` are near.
///
/// # Errors
/// There is no such processor.
pub(super) fn near(other: usize) -> Result<bool> {
    let line = AtomicU32::new(0);
    let end = TRIPS * BATCHES * 2;
    std::thread::scope(|scope| {
        let answers = scope.spawn(|| -> Result<()> {
            pin(other)?;
            // Odd numbers are questions.
            for question in (1..end).step_by(2) {
                while line.load(Ordering::Acquire) != question {
                    std::hint::spin_loop();
                }
                line.store(question + 1, Ordering::Release);
            }
            Ok(())
        });
        let mut best = Duration::MAX;
        let mut trips = (0..end).step_by(2);
        for _batch in 0..BATCHES {
            let started = Instant::now();
            for answered in trips.by_ref().take(TRIPS as usize) {
                line.store(answered + 1, Ordering::Release);
                while line.load(Ordering::Acquire) != answered + 2 {
                    if answers.is_finished() {
                        break;
                    }
                    std::hint::spin_loop();
                }
            }
            best = best.min(started.elapsed() / TRIPS);
        }
        answers
            .join()
            .unwrap_or_else(|_panic| anyhow::bail!("the other processor's thread panicked"))?;
        Ok(best < NEAR)
    })
}

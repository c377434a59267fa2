//! CPU time of the calling thread, which other load on the machine stretches least.

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};

/// Nanoseconds of CPU time that `work` takes.
pub(super) fn cpu_nanos(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begin = now()?;
    work()?;
    Ok(now()? - begin)
}

fn now() -> Result<f64> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .context("cannot read the CPU time of a thread")?;
    Ok(time.tv_sec() as f64 * 1e9 + time.tv_nsec() as f64)
}

/// The middle of `values`; of an even number of them the upper one.
pub(super) fn median(mut values: Vec<f64>) -> Result<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.get(values.len() / 2).copied();
    middle.context("no slice was measured")
}

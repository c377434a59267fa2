//! The same reads without any back end, from one thread: what the machine gives.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::sys::Reads;
use super::{LUN_BYTES, Work};

const CLOCK_EVERY: u64 = 64;

fn offset(work: Work, number: u64) -> u64 {
    let pieces = LUN_BYTES / work.bytes;
    let piece = if work.random {
        fastrand::u32(..pieces).into()
    } else {
        number % u64::from(pieces)
    };
    piece * u64::from(work.bytes)
}

/// Reads a second by `pread`.
///
/// # Errors
/// The file cannot be read.
pub(super) fn pread(path: &Path, work: Work, span: Duration) -> Result<f64> {
    let file = File::open(path)?;
    let mut buffer = vec![0; usize::try_from(work.bytes)?];
    let (started, mut reads) = (Instant::now(), 0);
    loop {
        file.read_exact_at(&mut buffer, offset(work, reads))?;
        reads += 1;
        if reads.is_multiple_of(CLOCK_EVERY) && started.elapsed() >= span {
            return Ok(reads as f64 / started.elapsed().as_secs_f64());
        }
    }
}

/// Reads a second by io_uring, `work.depth` underway.
///
/// # Errors
/// The kernel has no io_uring for us, or the file cannot be read.
pub(super) fn uring(path: &Path, work: Work, span: Duration) -> Result<f64> {
    let file = File::open(path)?;
    let mut ring = Reads::new(file, work.depth, work.bytes).context("no io_uring")?;
    let mut free: Vec<u16> = (0..work.depth).collect();
    let (started, mut reads) = (Instant::now(), 0);
    while started.elapsed() < span {
        for buffer in free.drain(..) {
            ring.queue(buffer, offset(work, reads))?;
            reads += 1;
        }
        ring.wait(|buffer| free.push(buffer))?;
    }
    let underway = u64::from(work.depth) - u64::try_from(free.len())?;
    Ok((reads - underway) as f64 / started.elapsed().as_secs_f64())
}

//! Bytes by device and time, counted where they arrive.

use std::io::{BufRead, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// The shortest window; longer ones are whole numbers of it.
pub(super) const TICK: Duration = Duration::from_millis(10);

/// What a run may count: a minute.
const TICKS_MAX: usize = 6_000;

/// The tick that runs now, on the clock that all processes of the machine share.
pub(super) fn tick() -> u64 {
    fabric_transport::endpoint::now().as_nanos()
        / u64::try_from(TICK.as_nanos()).unwrap_or(u64::MAX)
}

/// Counts from its first tick on.
#[derive(Debug, Clone)]
pub(super) struct Counts {
    first: u64,
    devices: usize,
    /// Bytes of all devices, tick by tick.
    bytes: Vec<u64>,
}

/// Counts that several threads add to.
#[derive(Debug, Clone)]
pub(super) struct Arrivals(Arc<Mutex<Counts>>);

impl Arrivals {
    pub(super) fn new(devices: usize) -> Self {
        Self(Arc::new(Mutex::new(Counts {
            first: tick(),
            devices,
            bytes: Vec::new(),
        })))
    }

    /// Counts what arrived now; devices count from 0. What no run should count is left out.
    pub(super) fn count(&self, arrived: impl IntoIterator<Item = (usize, usize)>) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let row = usize::try_from(tick().saturating_sub(counts.first)).unwrap_or(usize::MAX);
        if row >= TICKS_MAX {
            return;
        }
        let devices = counts.devices;
        if counts.bytes.len() <= row * devices {
            counts.bytes.resize((row + 1) * devices, 0);
        }
        for (device, bytes) in arrived {
            if let Some(sum) = counts.bytes.get_mut(row * devices + device) {
                *sum += bytes as u64;
            }
        }
    }

    /// Writes all counts, for [`Counts::read`].
    pub(super) fn write(&self, mut to: impl Write) -> Result<()> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(to, "{} {}", counts.first, counts.devices)?;
        for bytes in &counts.bytes {
            writeln!(to, "{bytes}")?;
        }
        Ok(())
    }
}

impl Counts {
    pub(super) fn read(from: impl BufRead) -> Result<Self> {
        let mut lines = from.lines();
        let first = lines.next().context("the far end counted nothing")??;
        let (first, devices) = first.split_once(' ').context("counts without a head")?;
        let bytes = lines.map(|line| Ok(line?.parse()?));
        Ok(Self {
            first: first.parse()?,
            devices: devices.parse()?,
            bytes: bytes.collect::<Result<_>>()?,
        })
    }

    /// Bytes by device of each of `count` ticks from `first` on.
    pub(super) fn rows(&self, first: u64, count: usize) -> Result<Vec<Vec<u64>>> {
        let skip = usize::try_from(first.checked_sub(self.first).context("counted too late")?)?;
        let rows: Vec<_> = self
            .bytes
            .chunks_exact(self.devices)
            .skip(skip)
            .take(count)
            .map(<[u64]>::to_vec)
            .collect();
        ensure!(
            rows.len() == count,
            "the far end saw {} ticks of {count}",
            rows.len()
        );
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_survive_the_way_to_the_other_process() {
        let text = "100 2\n1\n2\n3\n4\n5\n6\n";
        let counts = Counts::read(text.as_bytes()).unwrap();
        assert_eq!(counts.rows(101, 2).unwrap(), [[3, 4], [5, 6]]);
        assert!(counts.rows(102, 2).is_err(), "only one is left");
        assert!(counts.rows(99, 1).is_err(), "before the first");
        let mut written = Vec::new();
        Arrivals(Arc::new(Mutex::new(counts)))
            .write(&mut written)
            .unwrap();
        assert_eq!(written, text.as_bytes());
    }
}

//! Counters and times of the commands of one (vHBA, LUN).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fabric_payload::scsi::TaskFunction;
use histogram::{AtomicHistogram, Config, Histogram};
use qos_monitor::storage::{CommandCounts, Latency, LatencyBucket};

use crate::counters::Counter;

/// Each power of two of a time has 2^4 buckets: a time is known to 1/16.
const GROUPING_POWER: u8 = 4;
/// The longest time is 2^38 ns, 4.5 minutes; longer ones count as that.
const TIME_POWER: u8 = 38;
const TIMES: Config = match Config::new(GROUPING_POWER, TIME_POWER) {
    Ok(config) => config,
    Err(_) => panic!("powers are in range"),
};
const LONGEST_NANOS: u64 = (1 << TIME_POWER) - 1;
/// Sense keys have four bits (SPC-4 table 28).
const SENSE_KEYS: [&str; 16] = [
    "no-sense",
    "recovered-error",
    "not-ready",
    "medium-error",
    "hardware-error",
    "illegal-request",
    "unit-attention",
    "data-protect",
    "blank-check",
    "vendor-specific",
    "copy-aborted",
    "aborted-command",
    "reserved",
    "volume-overflow",
    "miscompare",
    "completed",
];
/// Status bytes of commands without an error (SAM-5 section 5.3.1).
pub(super) const GOOD: u8 = 0x00;
const CONDITION_MET: u8 = 0x04;
const FUNCTIONS: [(TaskFunction, &str); 7] = [
    (TaskFunction::AbortTask, "abort-task"),
    (TaskFunction::AbortTaskSet, "abort-task-set"),
    (TaskFunction::ClearTaskSet, "clear-task-set"),
    (TaskFunction::LogicalUnitReset, "logical-unit-reset"),
    (TaskFunction::ItNexusReset, "i-t-nexus-reset"),
    (TaskFunction::QueryTask, "query-task"),
    (TaskFunction::QueryTaskSet, "query-task-set"),
];

/// What a command does to the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Other,
}

impl Kind {
    pub(super) fn of(cdb: &[u8]) -> Self {
        match cdb {
            [0x08 | 0x28 | 0xa8 | 0x88, ..] => Self::Read,
            // WRITE, WRITE AND VERIFY, WRITE SAME, COMPARE AND WRITE, ORWRITE, WRITE ATOMIC.
            [
                0x0a | 0x2a | 0xaa | 0x8a | 0x2e | 0xae | 0x8e | 0x41 | 0x93 | 0x89 | 0x8b | 0x9c,
                ..,
            ] => Self::Write,
            _ => Self::Other,
        }
    }
}

/// The most that there ever were of something.
#[derive(Debug, Default)]
pub(in crate::san) struct Highest(AtomicU64);

impl Highest {
    /// There are so many.
    pub(in crate::san) fn reach(&self, now: u64) {
        // A new maximum is rare, and a look at the old one is cheaper than to set it.
        if self.0.load(Ordering::Relaxed) < now {
            self.0.fetch_max(now, Ordering::Relaxed);
        }
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The commands of a logical unit that have no status yet.
#[derive(Debug, Default)]
pub(in crate::san) struct InFlight {
    now: AtomicU64,
    highest: Highest,
}

impl InFlight {
    fn enter(&self) {
        self.highest
            .reach(self.now.fetch_add(1, Ordering::Relaxed) + 1);
    }

    fn leave(&self) {
        self.now.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    pub(super) fn highest(&self) -> u64 {
        self.highest.get()
    }
}

/// See the module. What a counter says orders nothing, so that all accesses are relaxed.
#[derive(Debug)]
pub(in crate::san) struct NexusStatistics {
    reads: AtomicHistogram,
    writes: AtomicHistogram,
    others: AtomicHistogram,
    data_in_bytes: Counter,
    data_out_bytes: Counter,
    errors: [Counter; SENSE_KEYS.len()],
    refused: Counter,
    aborted: Counter,
    lost: Counter,
    task_management: [Counter; FUNCTIONS.len()],
    /// Of the logical unit, if there is one.
    in_flight: Option<Arc<InFlight>>,
}

impl NexusStatistics {
    pub(in crate::san) fn new(in_flight: Option<Arc<InFlight>>) -> Arc<Self> {
        let histogram = || AtomicHistogram::with_config(&TIMES);
        Arc::new(Self {
            reads: histogram(),
            writes: histogram(),
            others: histogram(),
            data_in_bytes: Counter::default(),
            data_out_bytes: Counter::default(),
            errors: Default::default(),
            refused: Counter::default(),
            aborted: Counter::default(),
            lost: Counter::default(),
            task_management: Default::default(),
            in_flight,
        })
    }

    pub(super) fn begin(&self) {
        if let Some(in_flight) = &self.in_flight {
            in_flight.enter();
        }
    }

    pub(super) fn end(&self, counted: bool) {
        if let Some(in_flight) = &self.in_flight {
            in_flight.leave();
        }
        if !counted {
            self.lost.add(1);
        }
    }

    pub(super) fn answered(&self, kind: Kind, took: Duration, status: u8, sense_key: Option<u8>) {
        let histogram = match kind {
            Kind::Read => &self.reads,
            Kind::Write => &self.writes,
            Kind::Other => &self.others,
        };
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        // Every time up to the longest has a bucket.
        drop(histogram.increment(nanos.min(LONGEST_NANOS)));
        match (status, sense_key) {
            // CONDITION MET ends PRE-FETCH of a unit of others.
            (GOOD | CONDITION_MET, _) => {}
            (_, Some(key)) => {
                if let Some(count) = self.errors.get(usize::from(key)) {
                    count.add(1);
                }
            }
            (_, None) => self.refused.add(1),
        }
    }

    pub(super) fn moved(&self, data_in: usize, data_out: usize) {
        for (counter, bytes) in [
            (&self.data_in_bytes, data_in),
            (&self.data_out_bytes, data_out),
        ] {
            if bytes > 0 {
                counter.add_bytes(bytes);
            }
        }
    }

    pub(in crate::san) fn aborted(&self) {
        self.aborted.add(1);
    }

    pub(super) fn manage(&self, function: TaskFunction) {
        let counters = FUNCTIONS.iter().zip(&self.task_management);
        for (_, counter) in counters.filter(|((known, _), _)| *known == function) {
            counter.add(1);
        }
    }
}

/// What these nexuses did together. How many commands are in flight is not theirs to know.
pub(super) fn total<'a>(
    nexuses: impl Iterator<Item = &'a NexusStatistics> + Clone,
) -> CommandCounts {
    let sum = |counter: fn(&NexusStatistics) -> &Counter| {
        let counts = nexuses.clone().map(|nexus| counter(nexus).count());
        counts.fold(0, u64::wrapping_add)
    };
    let latency = |histogram: fn(&NexusStatistics) -> &AtomicHistogram| {
        latency(nexuses.clone().map(histogram))
    };
    let mut counts = CommandCounts {
        reads: latency(|nexus| &nexus.reads),
        writes: latency(|nexus| &nexus.writes),
        others: latency(|nexus| &nexus.others),
        data_in_bytes: sum(|nexus| &nexus.data_in_bytes),
        data_out_bytes: sum(|nexus| &nexus.data_out_bytes),
        refused: sum(|nexus| &nexus.refused),
        aborted: sum(|nexus| &nexus.aborted),
        lost: sum(|nexus| &nexus.lost),
        ..CommandCounts::default()
    };
    for nexus in nexuses {
        let errors = SENSE_KEYS.iter().zip(&nexus.errors);
        let functions = FUNCTIONS.iter().map(|(_, name)| name);
        let functions = functions.zip(&nexus.task_management);
        for (name, counter) in errors.filter(|(_, counter)| counter.count() > 0) {
            *counts.errors.entry((*name).to_owned()).or_default() += counter.count();
        }
        for (name, counter) in functions.filter(|(_, counter)| counter.count() > 0) {
            *counts
                .task_management
                .entry((*name).to_owned())
                .or_default() += counter.count();
        }
    }
    counts
}

fn latency<'a>(histograms: impl Iterator<Item = &'a AtomicHistogram>) -> Latency {
    let mut total = Histogram::with_config(&TIMES);
    for histogram in histograms {
        let loaded = histogram.load();
        for (sum, count) in total.as_mut_slice().iter_mut().zip(loaded.as_slice()) {
            *sum = sum.wrapping_add(*count);
        }
    }
    let buckets = total.iter().filter(|bucket| bucket.count() > 0);
    let buckets: Vec<_> = buckets
        .map(|bucket| LatencyBucket {
            up_to_nanos: bucket.end(),
            count: bucket.count(),
        })
        .collect();
    let quantile = |quantile| {
        let bucket = total.quantile_bucket(quantile).ok().flatten();
        bucket.map_or(0, |bucket| bucket.end())
    };
    Latency {
        count: buckets.iter().map(|bucket| bucket.count).sum(),
        p50_nanos: quantile(0.5),
        p99_nanos: quantile(0.99),
        max_nanos: buckets.last().map_or(0, |bucket| bucket.up_to_nanos),
        buckets,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use scsi_target::{SenseKey, Status};

    fn nexus() -> (Arc<NexusStatistics>, Arc<InFlight>) {
        let in_flight = Arc::new(InFlight::default());
        (NexusStatistics::new(Some(in_flight.clone())), in_flight)
    }

    #[test]
    fn two_nexuses_are_added_up() {
        let (one, in_flight) = nexus();
        let other = NexusStatistics::new(Some(in_flight.clone()));
        for nanos in [1000, 1000, 1000, 70_000] {
            one.begin();
            one.answered(Kind::Read, Duration::from_nanos(nanos), GOOD, None);
            one.moved(512, 0);
            one.end(true);
        }
        other.begin();
        other.begin();
        let key = Some(SenseKey::IllegalRequest.code());
        other.answered(
            Kind::Read,
            Duration::from_secs(1_000_000),
            Status::CheckCondition.code(),
            key,
        );
        other.end(true);
        other.end(false);
        other.answered(
            Kind::Write,
            Duration::ZERO,
            Status::TaskSetFull.code(),
            None,
        );
        other.manage(TaskFunction::QueryTask);
        other.begin();
        let counts = total([&*one, &*other].into_iter());
        let reads = &counts.reads;
        assert_eq!((reads.count, reads.buckets.len()), (5, 3));
        assert!((1000..1064).contains(&reads.p50_nanos), "{reads:?}");
        assert_eq!(reads.max_nanos, LONGEST_NANOS);
        assert_eq!(reads.buckets[0].count, 3);
        assert_eq!((counts.writes.count, counts.refused), (1, 1));
        assert_eq!((counts.data_in_bytes, counts.lost), (2048, 1));
        assert_eq!(counts.errors, [("illegal-request".to_owned(), 1)].into());
        assert_eq!(counts.failed(), 1);
        assert_eq!(
            counts.task_management,
            [("query-task".to_owned(), 1)].into()
        );
        assert_eq!((in_flight.now(), in_flight.highest()), (1, 2));
    }

    #[test]
    fn commands_that_touch_blocks_are_told_apart() {
        for (opcode, kind) in [
            (0x88, Kind::Read),
            (0x28, Kind::Read),
            (0x2a, Kind::Write),
            (0x93, Kind::Write),
            (0x42, Kind::Other),
            (0x35, Kind::Other),
        ] {
            assert_eq!(Kind::of(&[opcode, 0]), kind, "{opcode:#x}");
        }
        assert_eq!(Kind::of(&[]), Kind::Other);
    }
}

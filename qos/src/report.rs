//! What decisions say about one device: what it got, why it waited, and who used the rest.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::decision::{Decision, WaitCause, Waits};
use crate::device::Granted;
use crate::scheduler::{DeviceHandle, GrantReason};
use crate::trace::{Divergence, ReplaySummary, Trace};

/// Ranges of a [`DelayHistogram`].
pub const DELAY_RANGES: usize = 32;

/// How often delays of which length occurred: exact sum and maximum, lengths by powers of two.
///
/// Range 0 is no delay, range `n` is `2^(n-1)` to `2^n - 1` ns; the last one has no end (from
/// 1.07 s on).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DelayHistogram {
    counts: [u64; DELAY_RANGES],
    total_nanos: u64,
    nanos_max: u64,
}

impl DelayHistogram {
    fn count(&mut self, delay: Duration) {
        let nanos = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
        let digits = usize::try_from(u64::BITS - nanos.leading_zeros()).unwrap_or(DELAY_RANGES);
        if let Some(count) = self.counts.get_mut(digits.min(DELAY_RANGES - 1)) {
            *count = count.saturating_add(1);
        }
        self.total_nanos = self.total_nanos.saturating_add(nanos);
        self.nanos_max = self.nanos_max.max(nanos);
    }

    /// The longest delay that belongs to range `range`; the longest of all for the last.
    #[must_use]
    pub fn end_of(&self, range: usize) -> Duration {
        let digits = u32::try_from(range).unwrap_or(u32::MAX);
        let end = 1_u64.checked_shl(digits).map_or(u64::MAX, |end| end - 1);
        let nanos = if range + 1 < DELAY_RANGES {
            end
        } else {
            self.nanos_max
        };
        Duration::from_nanos(nanos)
    }

    /// Delays by range.
    #[must_use]
    pub const fn counts(&self) -> &[u64; DELAY_RANGES] {
        &self.counts
    }

    /// The sum of all delays.
    #[must_use]
    pub const fn total(&self) -> Duration {
        Duration::from_nanos(self.total_nanos)
    }

    /// The longest.
    #[must_use]
    pub const fn max(&self) -> Duration {
        Duration::from_nanos(self.nanos_max)
    }

    /// The mean of all, rounded down.
    #[must_use]
    pub fn mean(&self) -> Duration {
        let count: u64 = self.counts.iter().sum();
        Duration::from_nanos(self.total_nanos.checked_div(count).unwrap_or(0))
    }

    /// A delay that at least `percent` of all do not exceed: the end of their range.
    #[must_use]
    pub fn percentile(&self, percent: u8) -> Duration {
        let count: u64 = self.counts.iter().sum();
        let wanted = (u128::from(count) * u128::from(percent)).div_ceil(100);
        let mut seen = 0;
        let range = self.counts.iter().position(|count| {
            seen += u128::from(*count);
            seen >= wanted
        });
        self.end_of(range.unwrap_or(0)).min(self.max())
    }
}

/// What left, by right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rights {
    /// Out of the device's own reservation.
    pub reserved: Granted,
    /// Out of its VM's.
    pub vm_reserved: Granted,
    /// Out of what nobody reserved or used.
    pub excess: Granted,
}

impl Rights {
    fn count(&mut self, decision: &Decision) {
        let right = match decision.reason {
            GrantReason::Reserved => &mut self.reserved,
            GrantReason::VmReserved => &mut self.vm_reserved,
            GrantReason::Excess => &mut self.excess,
        };
        right.count(decision.bytes);
    }

    /// Bytes by whatever right.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.reserved
            .bytes
            .saturating_add(self.vm_reserved.bytes)
            .saturating_add(self.excess.bytes)
    }

    /// Frames by whatever right.
    #[must_use]
    pub const fn frames(&self) -> u64 {
        self.reserved
            .frames
            .saturating_add(self.vm_reserved.frames)
            .saturating_add(self.excess.frames)
    }
}

/// One device in a window of time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The device.
    pub device: DeviceHandle,
    /// Length of the window, nanoseconds.
    pub nanos: u64,
    /// What was queued in it.
    pub offered: Granted,
    /// What left in it.
    pub achieved: Rights,
    /// From arrival to start, of each frame that left.
    pub delays: DelayHistogram,
    /// The same split by cause, in the order of [`WaitCause::ALL`]. A frame counts for each cause,
    /// also with no delay.
    pub causes: [DelayHistogram; WaitCause::ALL.len()],
    /// What all others got meanwhile, who got most first.
    pub others: Vec<(DeviceHandle, Rights)>,
}

impl Report {
    fn new(device: DeviceHandle) -> Self {
        Self {
            device,
            nanos: 0,
            offered: Granted::default(),
            achieved: Rights::default(),
            delays: DelayHistogram::default(),
            causes: Default::default(),
            others: Vec::new(),
        }
    }

    /// What a scheduler's last decisions say, oldest first: the window is from the first to the
    /// last. What arrived in it and is still queued nobody decided on yet: `queued` is that.
    #[must_use]
    pub fn of_decisions(device: DeviceHandle, decisions: &[Decision], queued: Granted) -> Self {
        let mut report = Self::new(device);
        report.offered = queued;
        let mut others = BTreeMap::new();
        let first = decisions.first().map(|decision| decision.started);
        for decision in decisions {
            report.count(decision, &mut others);
            if decision.device == device && Some(decision.arrived) >= first {
                report.offered.count(decision.bytes);
            }
        }
        if let (Some(first), Some(last)) = (first, decisions.last()) {
            let window = last.started.saturating_duration_since(first);
            report.nanos = u64::try_from(window.as_nanos()).unwrap_or(u64::MAX);
        }
        report.rank(others);
        report
    }

    /// What a trace says, whose window is from its first to its last call. It is replayed for that.
    ///
    /// # Errors
    /// [`Divergence`] when the replay does otherwise than recorded.
    pub fn of_trace(
        device: DeviceHandle,
        trace: &Trace,
    ) -> Result<(Self, ReplaySummary), Divergence> {
        let mut report = Self::new(device);
        let mut others = BTreeMap::new();
        let summary = trace.replay_with(|_, grant| report.count(&grant.decision, &mut others))?;
        report.nanos = summary.nanos;
        for bytes in trace.arrivals_of(device) {
            report.offered.count(bytes);
        }
        report.rank(others);
        Ok((report, summary))
    }

    /// What held the device's frames longest, once those of its own before them were out of the
    /// way; `None` when nothing did.
    #[must_use]
    pub fn main_cause(&self) -> Option<WaitCause> {
        let totals = self.causes.iter().map(|delays| delays.total_nanos);
        main_cause(WaitCause::ALL.into_iter().zip(totals))
    }

    fn count(&mut self, decision: &Decision, others: &mut BTreeMap<DeviceHandle, Rights>) {
        if decision.device != self.device {
            return others.entry(decision.device).or_default().count(decision);
        }
        self.achieved.count(decision);
        let delay = decision.started.saturating_duration_since(decision.arrived);
        self.delays.count(delay);
        for (cause, delays) in WaitCause::ALL.into_iter().zip(&mut self.causes) {
            delays.count(decision.waits.of(cause));
        }
    }

    fn rank(&mut self, others: BTreeMap<DeviceHandle, Rights>) {
        self.others = others.into_iter().collect();
        self.others
            .sort_by_key(|(_, rights)| std::cmp::Reverse(rights.bytes()));
    }
}

/// For each device in `decisions`, what [`Report::main_cause`] would say.
#[must_use]
pub fn main_causes<'a>(
    decisions: impl IntoIterator<Item = &'a Decision>,
) -> BTreeMap<DeviceHandle, WaitCause> {
    let mut totals: BTreeMap<DeviceHandle, [u64; WaitCause::ALL.len()]> = BTreeMap::new();
    for Decision { device, waits, .. } in decisions {
        add(totals.entry(*device).or_default(), waits);
    }
    let mains = totals.into_iter().filter_map(|(device, totals)| {
        let main = main_cause(WaitCause::ALL.into_iter().zip(totals))?;
        Some((device, main))
    });
    mains.collect()
}

fn add(totals: &mut [u64; WaitCause::ALL.len()], waits: &Waits) {
    for (cause, total) in WaitCause::ALL.into_iter().zip(totals) {
        let nanos = u64::try_from(waits.of(cause).as_nanos()).unwrap_or(u64::MAX);
        *total = total.saturating_add(nanos);
    }
}

fn main_cause(totals: impl Iterator<Item = (WaitCause, u64)>) -> Option<WaitCause> {
    // A queue of its own is a consequence: what held its head is the cause.
    let causes = totals.filter(|(cause, nanos)| *cause != WaitCause::OwnQueue && *nanos > 0);
    causes
        .max_by_key(|(_, nanos)| *nanos)
        .map(|(cause, _)| cause)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BitRate, DeviceRate, LinkBudget, MonotonicTime, Scheduler};

    fn rate(text: &str) -> BitRate {
        text.parse().unwrap()
    }

    /// 1500 bytes take 12 us.
    fn scheduler() -> Scheduler<()> {
        Scheduler::new(LinkBudget::new("link", rate("1G")))
    }

    fn at(micros: u64) -> MonotonicTime {
        MonotonicTime::from_nanos(1000 * micros)
    }

    fn run(scheduler: &mut Scheduler<()>, until: MonotonicTime) {
        let mut now = at(0);
        while now <= until {
            while scheduler.dequeue(now).is_some() {}
            match scheduler.next_wake(now) {
                Some(next) => now = next,
                None => break,
            }
        }
    }

    #[test]
    fn histogram_counts_by_powers_of_two() {
        let mut histogram = DelayHistogram::default();
        for nanos in [0, 1, 2, 3, 1000, 1023, 1024] {
            histogram.count(Duration::from_nanos(nanos));
        }
        let counts = histogram.counts();
        assert_eq!((counts[0], counts[1], counts[2]), (1, 1, 2));
        assert_eq!((counts[10], counts[11]), (2, 1));
        assert_eq!(histogram.total(), Duration::from_nanos(3053));
        assert_eq!(histogram.mean(), Duration::from_nanos(436));
        // The fourth of seven is in range 2, whose end is 3 ns.
        assert_eq!(histogram.percentile(50), Duration::from_nanos(3));
        assert_eq!(histogram.percentile(86), Duration::from_nanos(1024));
        assert_eq!(histogram.percentile(100), Duration::from_nanos(1024));
        histogram.count(Duration::from_secs(5));
        assert_eq!(histogram.counts()[DELAY_RANGES - 1], 1);
        assert_eq!(histogram.percentile(100), Duration::from_secs(5));
    }

    #[test]
    fn device_beside_a_reservation_is_told_so() {
        let mut scheduler = scheduler();
        let promised = DeviceRate::new(rate("900M"), None).unwrap();
        let greedy = scheduler.add_device(at(0), promised).unwrap();
        // Half of what is left.
        let words = DeviceRate {
            weight: 900,
            ..DeviceRate::best_effort()
        };
        let best_effort = scheduler.add_device(at(0), words).unwrap();
        scheduler.start_trace(at(0));
        for _ in 0..400 {
            scheduler.enqueue(at(0), greedy, 0, 1500, ()).unwrap();
            scheduler.enqueue(at(0), best_effort, 0, 1500, ()).unwrap();
        }
        run(&mut scheduler, at(2400));
        let trace = scheduler.take_trace().unwrap();
        let (report, summary) = Report::of_trace(best_effort, &trace).unwrap();
        assert_eq!(report.main_cause(), Some(WaitCause::OthersReserved));
        assert_eq!(
            (report.offered.frames, report.offered.bytes),
            (400, 600_000)
        );
        // 5 % of 200 frames.
        let own = report.achieved.frames();
        assert!((9..=12).contains(&own), "{own}");
        assert_eq!(report.achieved.reserved, Granted::default());
        assert_eq!(report.achieved.excess.bytes, 1500 * own);
        let [(other, rights)] = report.others.as_slice() else {
            panic!("one other: {:?}", report.others);
        };
        assert_eq!(*other, greedy);
        assert_eq!(rights.frames() + own, summary.departures);
        assert!(rights.reserved.bytes > rights.excess.bytes);
        assert_eq!(report.nanos, summary.nanos);
        // The ring of decisions says the same of what left.
        let decisions: Vec<_> = scheduler.decisions().copied().collect();
        let queued = Granted {
            bytes: scheduler.queued_bytes(best_effort).unwrap(),
            frames: scheduler.queued_frames(best_effort).unwrap().into(),
        };
        let last = Report::of_decisions(best_effort, &decisions, queued);
        assert_eq!(last.offered, report.offered);
        assert_eq!(
            (last.achieved, last.causes),
            (report.achieved, report.causes)
        );
        assert_eq!(last.others, report.others);
        assert_eq!(
            main_causes(&decisions).get(&best_effort),
            Some(&WaitCause::OthersReserved)
        );
    }

    #[test]
    fn device_over_its_peak_waits_for_itself_alone() {
        let mut scheduler = scheduler();
        // 100 Mb/s: 1500 bytes take 120 us, after a burst of one frame.
        let limited = DeviceRate {
            pbs_bytes: 1500,
            ..DeviceRate::new(BitRate::ZERO, Some(rate("100M"))).unwrap()
        };
        let device = scheduler.add_device(at(0), limited).unwrap();
        scheduler.start_trace(at(0));
        for _ in 0..10 {
            scheduler.enqueue(at(0), device, 0, 1500, ()).unwrap();
        }
        run(&mut scheduler, at(10_000));
        let trace = scheduler.take_trace().unwrap();
        let (report, _) = Report::of_trace(device, &trace).unwrap();
        assert_eq!(report.main_cause(), Some(WaitCause::OwnLimit));
        assert_eq!(report.achieved.frames(), 10);
        assert!(report.others.is_empty());
        let sums = report.causes.iter().map(DelayHistogram::total);
        assert_eq!(sums.sum::<Duration>(), report.delays.total());
        // Frame n waits for the release of n - 1 times 120 us, to the next tick of about 1 us.
        let limit = report.causes[2].total();
        let expected = Duration::from_micros(8 * 120);
        assert!(
            limit >= expected - Duration::from_micros(30)
                && limit <= expected + Duration::from_micros(150),
            "{limit:?}"
        );
    }

    #[test]
    fn nothing_says_nothing() {
        let mut scheduler = scheduler();
        let device = scheduler
            .add_device(at(0), DeviceRate::best_effort())
            .unwrap();
        let report = Report::of_decisions(device, &[], Granted::default());
        assert_eq!((report.nanos, report.achieved.frames()), (0, 0));
        assert_eq!(report.main_cause(), None);
        assert_eq!(report.delays.percentile(99), Duration::ZERO);
    }
}

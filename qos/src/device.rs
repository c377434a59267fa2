//! What the scheduler keeps for one device: its queues, its clocks, its counters.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::RateClock;
use crate::rate::{BitRate, DeviceRate};
use crate::scheduler::{CLASSES_MAX, DeviceHandle, QUEUE_FRAMES_MAX, RefusalReason};

/// A frame in a queue.
#[derive(Debug)]
pub(crate) struct Frame<T> {
    pub(crate) bytes: u32,
    pub(crate) arrived: u64,
    pub(crate) item: T,
}

/// Frames and bytes granted for one reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Granted {
    /// Bytes as charged by the caller.
    pub bytes: u64,
    /// Frames.
    pub frames: u64,
}

impl Granted {
    pub(crate) fn count(&mut self, bytes: u32) {
        self.bytes = self.bytes.saturating_add(bytes.into());
        self.frames = self.frames.saturating_add(1);
    }
}

/// What a device asked for, got, and waited, since it was added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceStatistics {
    /// Granted out of the device's own reservation.
    pub reserved: Granted,
    /// Granted out of what nobody had reserved or nobody used.
    pub excess: Granted,
    /// Bytes in the queues now.
    pub queued_bytes: u64,
    /// Frames in the queues now.
    pub queued_frames: u32,
    /// Frames refused because the queue was full.
    pub refused_frames: u64,
    /// Sum of the times from enqueue to grant.
    pub waited_total: Duration,
    /// The longest time from enqueue to grant.
    pub waited_max: Duration,
    /// How often the device was parked because it had reached its peak rate.
    pub limited_times: u64,
    /// The most a reserved frame left after its deadline, in service time (see
    /// [`crate::scheduler`]); at most the transmission time of one frame while the committed
    /// rates hold.
    pub late_max: Duration,
}

/// The peak rate as a GCRA: frames may leave from `due - burst_nanos` on.
#[derive(Debug)]
struct Peak {
    rate: BitRate,
    burst_nanos: u64,
    due: RateClock,
}

/// A device and its frames.
#[derive(Debug)]
pub(crate) struct Device<T> {
    pub(crate) handle: DeviceHandle,
    pub(crate) rate: DeviceRate,
    classes: [VecDeque<Frame<T>>; CLASSES_MAX],
    /// `e`: the service time from which the head may use the reservation.
    pub(crate) reservation: RateClock,
    /// `v`: the virtual time of the share criterion.
    pub(crate) share: RateClock,
    /// A head that takes the place of a longer, already eligible one keeps at least its deadline.
    pub(crate) deadline_floor: u64,
    peak: Option<Peak>,
    pub(crate) statistics: DeviceStatistics,
}

impl<T> Device<T> {
    /// A device that may use its reservation from `service_time` on.
    pub(crate) fn new(
        handle: DeviceHandle,
        rate: DeviceRate,
        service_time: u64,
        virtual_time: u128,
    ) -> Self {
        Self {
            handle,
            rate,
            classes: std::array::from_fn(|_| VecDeque::new()),
            reservation: RateClock::at(service_time.into()),
            share: RateClock::at(virtual_time),
            deadline_floor: 0,
            peak: new_peak(&rate, RateClock::default()),
            statistics: DeviceStatistics::default(),
        }
    }

    /// Puts `frame` at the end of its class, or gives it back with the reason.
    pub(crate) fn push(
        &mut self,
        class: u8,
        frame: Frame<T>,
    ) -> Result<(), (RefusalReason, Frame<T>)> {
        let Some(queue) = self.classes.get_mut(usize::from(class)) else {
            return Err((RefusalReason::NoSuchClass { class }, frame));
        };
        if frame.bytes == 0 {
            return Err((RefusalReason::EmptyFrame, frame));
        }
        if self.statistics.queued_frames >= QUEUE_FRAMES_MAX {
            self.statistics.refused_frames = self.statistics.refused_frames.saturating_add(1);
            return Err((RefusalReason::QueueFull, frame));
        }
        self.statistics.queued_frames += 1;
        self.statistics.queued_bytes += u64::from(frame.bytes);
        queue.push_back(frame);
        Ok(())
    }

    /// The frame that leaves next, with its class.
    pub(crate) fn head(&self) -> Option<(u8, &Frame<T>)> {
        (0_u8..)
            .zip(&self.classes)
            .find_map(|(class, queue)| Some((class, queue.front()?)))
    }

    pub(crate) fn pop(&mut self) -> Option<(u8, Frame<T>)> {
        let (class, frame) = (0_u8..)
            .zip(&mut self.classes)
            .find_map(|(class, queue)| Some((class, queue.pop_front()?)))?;
        self.statistics.queued_frames = self.statistics.queued_frames.saturating_sub(1);
        self.statistics.queued_bytes = self
            .statistics
            .queued_bytes
            .saturating_sub(frame.bytes.into());
        Some((class, frame))
    }

    /// All frames, in the order they would have left.
    pub(crate) fn into_items(self) -> Vec<T> {
        self.classes
            .into_iter()
            .flatten()
            .map(|frame| frame.item)
            .collect()
    }

    /// The time from which the peak rate lets the head go.
    pub(crate) fn released_at(&self) -> u64 {
        let released = self.peak.as_ref().map_or(0, |peak| {
            peak.due.nanos().saturating_sub(peak.burst_nanos.into())
        });
        u64::try_from(released).unwrap_or(u64::MAX)
    }

    /// When the head would be done if it had `rate` for itself from its eligible time on.
    pub(crate) fn deadline(&self, rate: BitRate) -> u64 {
        let mut clock = self.reservation;
        clock.advance(
            self.head().map_or(0, |(_, frame)| frame.bytes),
            rate.bits_per_second(),
        );
        clock.time().max(self.deadline_floor)
    }

    /// Charges a granted frame to the peak rate and to the waiting times.
    pub(crate) fn count(&mut self, frame: &Frame<T>, now: u64) {
        if let Some(peak) = &mut self.peak {
            peak.due.catch_up(now.into());
            peak.due.advance(frame.bytes, peak.rate.bits_per_second());
        }
        let waited = Duration::from_nanos(now.saturating_sub(frame.arrived));
        self.statistics.waited_total = self.statistics.waited_total.saturating_add(waited);
        self.statistics.waited_max = self.statistics.waited_max.max(waited);
    }

    /// Takes new rate words. What the device owes or is owed stays the same number of bits.
    pub(crate) fn set_rate(
        &mut self,
        rate: DeviceRate,
        service_time: u64,
        virtual_time: u128,
        now: u64,
    ) {
        self.reservation.rescale(
            service_time.into(),
            self.rate.cir.bits_per_second(),
            rate.cir.bits_per_second(),
        );
        self.share.rescale(
            virtual_time,
            self.rate.weight_bits_per_second(),
            rate.weight_bits_per_second(),
        );
        let mut due = RateClock::default();
        if let (Some(old), Some(pir)) = (&self.peak, rate.pir)
            && old.due.time() > now
        {
            due = old.due;
            due.rescale(
                now.into(),
                old.rate.bits_per_second(),
                pir.bits_per_second(),
            );
        }
        self.peak = new_peak(&rate, due);
        self.deadline_floor = 0;
        self.rate = rate;
    }
}

fn new_peak(rate: &DeviceRate, due: RateClock) -> Option<Peak> {
    rate.pir.map(|pir| Peak {
        rate: pir,
        burst_nanos: rate.peak_burst_nanos(pir),
        due,
    })
}

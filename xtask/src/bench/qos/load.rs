//! A scheduler on which every device has frames: 100 Gb/s, 90 % of it reserved, frames of 64 and
//! 1500 bytes.
#![expect(
    clippy::indexing_slicing,
    reason = "callers number the devices that they asked for"
)]

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use qos::{BitRate, DeviceHandle, DeviceRate, LinkBudget, MonotonicTime, Scheduler};

use super::cpu_time::cpu_nanos;
use super::world::at;

const LINK: BitRate = BitRate::from_bits_per_second(100_000_000_000);
/// Per cent of the link that are reserved.
const RESERVED: u64 = 90;
/// PIR is this many times CIR.
const PEAK: u64 = 4;
/// Frames that each device has queued.
const QUEUED: u32 = 4;
/// Frames that are taken and queued again in one go.
const BURST: usize = 32;

pub(super) struct Load {
    pub(super) scheduler: Scheduler<u32>,
    pub(super) devices: Vec<DeviceHandle>,
    now: MonotonicTime,
    random: Rng,
    burst: Vec<(DeviceHandle, u32)>,
}

impl Load {
    pub(super) fn new(devices: u32) -> Result<Self> {
        let mut load = Self::idle(devices)?;
        for index in 0..load.devices.len() {
            load.fill(index)?;
        }
        Ok(load)
    }

    /// Devices without a frame.
    pub(super) fn idle(devices: u32) -> Result<Self> {
        let mut scheduler = Scheduler::new(LinkBudget::new("bench link", LINK));
        let rate = Self::rate(devices)?;
        let handles = (0..devices).map(|_| scheduler.add_device(at(0), rate));
        Ok(Self {
            devices: handles.collect::<Result<_, _>>()?,
            scheduler,
            now: at(0),
            random: Rng::with_seed(1),
            burst: Vec::with_capacity(BURST),
        })
    }

    /// What each of `devices` devices reserves.
    pub(super) fn rate(devices: u32) -> Result<DeviceRate> {
        let cir = LINK.bits_per_second() / 100 * RESERVED / u64::from(devices);
        let rate = BitRate::from_bits_per_second;
        Ok(DeviceRate::new(rate(cir), Some(rate(cir * PEAK)))?)
    }

    /// Queues the frames of a device.
    pub(super) fn fill(&mut self, index: usize) -> Result<()> {
        let device = self.devices[index];
        for _ in 0..QUEUED {
            let bytes = if self.random.bool() { 64 } else { 1_500 };
            self.scheduler.enqueue(self.now, device, 0, bytes, 0)?;
        }
        Ok(())
    }

    pub(super) fn set_rate(&mut self, index: usize, rate: DeviceRate) -> Result<()> {
        let device = self.devices[index];
        Ok(self.scheduler.set_rate(self.now, device, rate)?)
    }

    /// Removes a device; its place in `devices` is left to [`Load::add`].
    pub(super) fn remove(&mut self, index: usize) -> Result<()> {
        let frames = self.scheduler.remove_device(self.devices[index]);
        ensure!(!frames.is_empty(), "a device without frames was removed");
        Ok(())
    }

    pub(super) fn add(&mut self, index: usize, rate: DeviceRate) -> Result<()> {
        self.devices[index] = self.scheduler.add_device(self.now, rate)?;
        Ok(())
    }

    /// Lets frames go and queues the same again.
    pub(super) fn pass(&mut self, frames: usize) -> Result<()> {
        for _ in 0..frames / BURST {
            while self.burst.len() < BURST {
                let wake = self.scheduler.next_wake(self.now);
                self.now = wake.context("nothing is queued")?;
                let grant = self.scheduler.dequeue(self.now);
                let grant = grant.context("the scheduler woke its caller for nothing")?;
                self.burst.push((grant.device, grant.bytes));
            }
            for (device, bytes) in self.burst.drain(..) {
                self.scheduler.enqueue(self.now, device, 0, bytes, 0)?;
            }
        }
        Ok(())
    }

    /// Nanoseconds of CPU time that each of `frames` frames takes.
    pub(super) fn slice(&mut self, frames: usize) -> Result<f64> {
        let nanos = cpu_nanos(|| self.pass(frames))?;
        Ok(nanos / frames as f64)
    }
}

//! One link in virtual time: devices that always have frames, and devices that are fed.
#![expect(
    clippy::indexing_slicing,
    reason = "devices are numbered by the world that made them"
)]

use std::ops::RangeInclusive;

use anyhow::{Context, Result};
use fabric_transport::endpoint::piece_bytes;
use fabric_transport::frame::HEADER_BYTES;
use fastrand::Rng;
use qos::{BitRate, DeviceHandle, DeviceRate, GrantReason, LinkBudget, MonotonicTime, Scheduler};

/// Nanoseconds.
pub(super) const SECOND: u64 = 1_000_000_000;
/// Nanoseconds.
pub(super) const MILLISECOND: u64 = 1_000_000;

/// Frames a greedy device always has queued: the one that leaves next, and the one after it.
const GREEDY_FRAMES: usize = 2;

/// Frame sizes in bytes, all as likely.
pub(super) type Sizes = RangeInclusive<u32>;

/// Frames of one size.
pub(super) const fn only(bytes: u32) -> Sizes {
    bytes..=bytes
}

pub(super) const fn megabits(megabits: u64) -> BitRate {
    BitRate::from_bits_per_second(megabits * 1_000_000)
}

pub(super) const fn at(nanos: u64) -> MonotonicTime {
    MonotonicTime::from_nanos(nanos)
}

/// A rate with a reservation of `megabits` and nothing else.
pub(super) fn committed(cir_megabits: u64) -> DeviceRate {
    DeviceRate {
        cir: megabits(cir_megabits),
        ..DeviceRate::default()
    }
}

/// What there is to send at most: a super-frame of a NIC, or a piece of SCSI data.
const FRAME_BYTES_MAX: u32 = 64 * 1024;

/// The longest frame of a device with `cir` committed on such a link, whatever it has to send.
pub(super) fn frame_bytes_max(link: BitRate, cir: BitRate) -> u32 {
    let frame = piece_bytes(link, cir) + HEADER_BYTES;
    u32::try_from(frame).map_or(FRAME_BYTES_MAX, |frame| frame.min(FRAME_BYTES_MAX))
}

/// A frame that was let go.
#[derive(Debug)]
pub(super) struct Departure {
    pub(super) device: usize,
    /// Its place among the frames of the device, from 0.
    pub(super) number: u64,
    pub(super) bytes: u32,
    pub(super) reason: GrantReason,
    pub(super) arrived: u64,
    pub(super) started: u64,
    /// When its last bit is out.
    pub(super) done: u64,
}

#[derive(Debug)]
struct Member {
    handle: DeviceHandle,
    /// Of a greedy device.
    sizes: Option<Sizes>,
    /// Frames queued so far.
    fed: u64,
}

/// A link, its scheduler, and a caller who is never late.
#[derive(Debug)]
pub(super) struct World {
    /// A frame is its device and its number there.
    scheduler: Scheduler<(usize, u64)>,
    link: BitRate,
    members: Vec<Member>,
    random: Rng,
    now: u64,
}

impl World {
    /// A link of `rate` without devices, all of which may be reserved.
    pub(super) fn new(rate: BitRate, seed: u64) -> Result<Self> {
        let budget = LinkBudget::with_reservable("bench link", rate, rate)?;
        Ok(Self {
            scheduler: Scheduler::new(budget),
            link: rate,
            members: Vec::new(),
            random: Rng::with_seed(seed),
            now: 0,
        })
    }

    pub(super) fn now(&self) -> u64 {
        self.now
    }

    /// Adds a device that has frames when it is fed; devices are numbered from 0.
    pub(super) fn add(&mut self, rate: DeviceRate) -> Result<usize> {
        let handle = self.scheduler.add_device(at(self.now), rate)?;
        self.members.push(Member {
            handle,
            sizes: None,
            fed: 0,
        });
        Ok(self.members.len() - 1)
    }

    /// Adds a device that always has frames.
    pub(super) fn add_greedy(&mut self, rate: DeviceRate, sizes: Sizes) -> Result<usize> {
        let device = self.add(rate)?;
        self.members[device].sizes = Some(sizes);
        for _ in 0..GREEDY_FRAMES {
            self.refill(device)?;
        }
        Ok(device)
    }

    pub(super) fn set_rate(&mut self, device: usize, rate: DeviceRate) -> Result<()> {
        let handle = self.members[device].handle;
        Ok(self.scheduler.set_rate(at(self.now), handle, rate)?)
    }

    /// Queues a frame now.
    pub(super) fn feed(&mut self, device: usize, bytes: u32) -> Result<()> {
        let member = &mut self.members[device];
        let item = (device, member.fed);
        member.fed += 1;
        self.scheduler
            .enqueue(at(self.now), member.handle, 0, bytes, item)
            .context("bench feeds a device more than it may queue")
    }

    fn refill(&mut self, device: usize) -> Result<()> {
        let Some(sizes) = self.members[device].sizes.clone() else {
            return Ok(());
        };
        let bytes = self.random.u32(sizes);
        self.feed(device, bytes)
    }

    /// Runs the link until `until`, and shows every frame that leaves.
    pub(super) fn run(&mut self, until: u64, mut seen: impl FnMut(&Departure)) -> Result<()> {
        loop {
            while let Some(grant) = self.scheduler.dequeue(at(self.now)) {
                let (device, number) = grant.item;
                seen(&Departure {
                    device,
                    number,
                    bytes: grant.bytes,
                    reason: grant.reason,
                    arrived: grant.decision.arrived.as_nanos(),
                    started: self.now,
                    done: self.now + self.link.transmission_nanos(grant.bytes.into()),
                });
                self.refill(device)?;
            }
            let wake = self.scheduler.next_wake(at(self.now));
            match wake.map(MonotonicTime::as_nanos) {
                Some(wake) if wake <= until => self.now = wake,
                _ => break,
            }
        }
        self.now = self.now.max(until);
        Ok(())
    }
}

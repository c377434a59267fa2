//! Q2 and Q4: who gets how much of a link that everybody wants, and what peaks take from it.
#![expect(
    clippy::indexing_slicing,
    reason = "one account a device, both numbered from 0"
)]

use anyhow::Result;
use fastrand::Rng;
use qos::{BitRate, DeviceRate, GrantReason};

use super::super::Figure;
use super::world::{Departure, SECOND, Sizes, World, committed, frame_bytes_max, megabits, only};
use super::{at_most, never};

/// Q2: how long greedy devices are watched.
const WATCHED: u64 = 2 * SECOND;
/// Q4: consecutive windows of one second.
const WINDOWS: usize = 3;
/// A limit may hold a frame back until its calendar's next tick.
const TICK_NANOS: u64 = 512;
/// Random sets of devices with peaks.
const PEAK_WORLDS: u64 = 40;

/// Reservation in Mb/s, weight, and what both together are worth when all are greedy.
type Entitlement = (u64, u32, u64);
const SLOW: [Entitlement; 4] = [(500, 5, 550), (300, 3, 330), (100, 1, 110), (0, 1, 10)];
const FAST: [Entitlement; 4] = [
    (4_000, 5, 5_000),
    (3_000, 3, 3_600),
    (900, 1, 1_100),
    (100, 1, 300),
];

/// A device that always has frames.
struct Greedy {
    cir_megabits: u64,
    weight: u32,
    entitled_megabits: u64,
    sizes: Sizes,
}

pub(super) fn measure() -> Result<Vec<Figure>> {
    let (slow, fast) = (megabits(1_000), megabits(10_000));
    let equal = greedy(SLOW, [only(1_500), only(1_500), only(1_500), only(1_500)]);
    // SCSI data in the longest frames of the link, and whatever a NIC sends.
    let mixed = |table, link| {
        let (data, nic) = (only(frame_bytes_max(link, BitRate::ZERO)), 64..=1_500);
        greedy(table, [data.clone(), nic.clone(), data, nic])
    };
    let (slow_mixed, fast_mixed) = (mixed(SLOW, slow), mixed(FAST, fast));
    let [overshoot, idle] = peaks()?;
    Ok(vec![
        windows("Q2 500/300/100/0 on 1G, 1500 B", slow, &equal)?,
        windows("Q2 500/300/100/0 on 1G, mixed", slow, &slow_mixed)?,
        windows("Q2 4/3/0.9/0.1G on 10G, mixed", fast, &fast_mixed)?,
        overshoot,
        idle,
        excess("Q4 NIC and 4 KiB data on 1G", slow, &slow_mixed)?,
        excess("Q4 NIC and 64 KiB data on 10G", fast, &fast_mixed)?,
    ])
}

fn greedy(table: [Entitlement; 4], sizes: [Sizes; 4]) -> Vec<Greedy> {
    let devices = table.into_iter().zip(sizes);
    devices
        .map(
            |((cir_megabits, weight, entitled_megabits), sizes)| Greedy {
                cir_megabits,
                weight,
                entitled_megabits,
                sizes,
            },
        )
        .collect()
}

fn world(link: BitRate, greedy: &[Greedy]) -> Result<World> {
    let mut world = World::new(link, 1)?;
    for device in greedy {
        let rate = DeviceRate {
            weight: device.weight,
            ..committed(device.cir_megabits)
        };
        world.add_greedy(rate, device.sizes.clone())?;
    }
    Ok(world)
}

/// How far what was served ran ahead of what the device is entitled to, at the least and the most.
#[derive(Clone, Copy, Default)]
struct Lead {
    bytes: u64,
    least: f64,
    most: f64,
}

/// The worst of all devices and all windows, whether they begin and end with a frame or a gap.
fn windows(case: &str, link: BitRate, greedy: &[Greedy]) -> Result<Figure> {
    let mut world = world(link, greedy)?;
    let mut leads = vec![Lead::default(); greedy.len()];
    world.run(WATCHED, |departure| {
        let lead = &mut leads[departure.device];
        let entitled = greedy[departure.device].entitled_megabits as f64;
        let due = |time: u64| entitled / 8e3 * time as f64;
        lead.least = lead.least.min(lead.bytes as f64 - due(departure.started));
        lead.bytes += u64::from(departure.bytes);
        lead.most = lead.most.max(lead.bytes as f64 - due(departure.done));
    })?;
    let bytes_max = greedy.iter().map(|device| *device.sizes.end()).max();
    let off = leads.iter().map(|lead| lead.most - lead.least);
    let off = off.fold(0.0, f64::max) / f64::from(bytes_max.unwrap_or(1));
    Ok(at_most(case, off, 2.0, "Lmax"))
}

/// A peak by its definition: a bucket of bits that leaks at PIR.
struct Bucket {
    bits_per_nano: f64,
    burst_bits: f64,
    level: f64,
    seen: u64,
}

impl Bucket {
    /// When the next frame may leave, if the bucket is let alone: level and burst are equal.
    fn released_at(&self) -> f64 {
        let above = (self.level - self.burst_bits).max(0.0);
        self.seen as f64 + above / self.bits_per_nano
    }

    fn pour(&mut self, now: u64, bytes: u32) {
        let leaked = self.bits_per_nano * (now - self.seen) as f64;
        self.level = (self.level - leaked).max(0.0) + f64::from(bytes) * 8.0;
        self.seen = now;
    }
}

/// Peaks are not exceeded, and a link does not idle while one of them lets go.
fn peaks() -> Result<[Figure; 2]> {
    let (mut overshoot, mut idle, mut watched) = (0.0_f64, 0, 0);
    for seed in 0..PEAK_WORLDS {
        let mut random = Rng::with_seed(seed);
        let link = megabits([100, 1_000, 10_000, 100_000][random.usize(..4)]);
        let sizes = [
            only(64),
            64..=1_500,
            only(1_500),
            only(frame_bytes_max(link, BitRate::ZERO)),
        ];
        let mut world = World::new(link, seed)?;
        let mut buckets = Vec::new();
        let devices = random.u64(2..=8);
        for _ in 0..devices {
            // Together about as fast as the link: now it is full, now it is not.
            let pir = link.bits_per_second() / devices / 8 * random.u64(4..=12);
            let rate = DeviceRate {
                cir: BitRate::from_bits_per_second(pir / random.u64(2..5)),
                pir: Some(BitRate::from_bits_per_second(pir)),
                pbs_bytes: frame_bytes_max(link, BitRate::ZERO) * random.u32(2..=5),
                ..DeviceRate::default()
            };
            let sizes = sizes[random.usize(..sizes.len())].clone();
            let burst_bits = f64::from(rate.pbs_bytes) * 8.0;
            let bucket = Bucket {
                bits_per_nano: pir as f64 / 1e9,
                burst_bits,
                level: 0.0,
                seen: 0,
            };
            buckets.push((bucket, f64::from(*sizes.end()) * 8.0));
            world.add_greedy(rate, sizes)?;
        }
        let mut free_at = 0;
        world.run(link.transmission_nanos(20_000_000), |departure| {
            let released = buckets.iter().map(|(bucket, _)| bucket.released_at());
            let sendable = released.fold(f64::MAX, f64::min).max(free_at as f64);
            idle += u64::from(departure.started as f64 > sendable + TICK_NANOS as f64 + 1.0);
            watched += 1;
            free_at = departure.done;
            let (bucket, frame_bits) = &mut buckets[departure.device];
            bucket.pour(departure.started, departure.bytes);
            overshoot = overshoot.max((bucket.level - bucket.burst_bits) / *frame_bits);
        })?;
    }
    Ok([
        at_most("Q2 above PIR t + PBS", overshoot, 1.0, "Lmax"),
        never("Q2 idle beside a sendable frame", idle, watched, "times"),
    ])
}

/// The device that is farthest from its part of what nobody reserved, over whole seconds.
fn excess(case: &str, link: BitRate, greedy: &[Greedy]) -> Result<Figure> {
    let mut world = world(link, greedy)?;
    let mut worst = (1.0, 1.0);
    for window in 1..=WINDOWS {
        let mut bytes = vec![0_u64; greedy.len()];
        world.run(window as u64 * SECOND, |departure: &Departure| {
            if departure.reason == GrantReason::Excess {
                bytes[departure.device] += u64::from(departure.bytes);
            }
        })?;
        for (device, bytes) in greedy.iter().zip(bytes) {
            let got = bytes as f64 * 8.0 / 1e6;
            let part = (device.entitled_megabits - device.cir_megabits) as f64;
            if (got / part - 1.0_f64).abs() >= (worst.0 / worst.1 - 1.0_f64).abs() {
                worst = (got, part);
            }
        }
    }
    let (value, reference) = worst;
    Ok(Figure {
        goal: (0.99, 1.01),
        ..at_most(case, value, reference, "Mb/s")
    })
}

//! What a frame costs on its way from a guest's ring to a TAP interface, back, and to another guest:
//! our host agent with its director inside and reservations on, next to a bare TAP and memcpy.
//!
//! The driver has one processor and the back end another, whatever threads it has. Each slice of
//! [`SLICE`] is followed by the one that it is held against; a ratio is the median of the ratios of
//! such pairs. Pairs during which the two processors were not near each other are left out when
//! enough others remain. Only frames that arrived count: what the kernel counts as taken from the
//! TAP, or what is in a receive ring with the length of the frame that was sent. The driver does not
//! look into them. Guests send as fast as their rings take it, whether or not it arrives: every rate has
//! its share of lost frames beside it.
//!
//! What the kernel routes to a TAP (see [`taps`]) is sent by the driver's processor, to the bare TAP
//! and to the director's alike: both lose most of it.

mod frames;
mod placement;
mod port;
mod taps;

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use orimono_tests::lab::Lab;

use super::Figure;
use super::vhba::{idle, median, pin};
use crate::say;
use crate::test::build_programs;
use frames::{HEADER_BYTES, LARGE, burst, frame};
use port::{Port, Shape};
use taps::{BARE, NOBODY, PORT, ROUTER, Station, Taps, settled};

const SLICE: Duration = Duration::from_millis(200);
const ROUNDS: usize = 7;
/// Pairs of one placement that make a figure.
const ENOUGH: usize = 3;
/// The driver's processor and the back end's.
const PROCESSORS: [usize; 2] = [0, 1];
/// Frames between two looks at the other direction.
const BATCH: usize = 64;
/// Between two round trips from idle: busy polling has long ended.
const PAUSE: Duration = Duration::from_millis(1);
const SMALL_SHAPE: Shape = Shape {
    slot_bytes: 2048,
    slots: 256,
};
/// Few enough for the caches, as they are for memcpy.
const LARGE_SHAPE: Shape = Shape {
    slot_bytes: 68 * 1024,
    slots: 32,
};
const ANY: (f64, f64) = (0.0, f64::INFINITY);

/// Two guests with small buffers and two with buffers for super-frames.
const LAB: &str = r#"
[director]
name = "director1"
[[ethernet-port]]
port = "10/1"
tap = "orimono0"
[[host]]
name = "host1"
embedded = true
run-dir = "@DIR@/host1"
rate = "400G"
busy-poll-us = 50
[[host.vm]]
name = "vm"
[[host.vm.vnic]]
name = "vn1"
id = 1
port = "10/1"
mac = "02:15:97:00:00:01"
ingress = { cir = "45G" }
egress = { cir = "45G" }
[[host.vm.vnic]]
name = "vn2"
id = 2
port = "10/1"
mac = "02:15:97:00:00:02"
ingress = { cir = "45G" }
egress = { cir = "45G" }
[[host.vm.vnic]]
name = "vn3"
id = 3
port = "10/1"
mac = "02:15:97:00:00:03"
ingress = { cir = "45G" }
egress = { cir = "45G" }
[[host.vm.vnic]]
name = "vn4"
id = 4
port = "10/1"
mac = "02:15:97:00:00:04"
ingress = { cir = "45G" }
egress = { cir = "45G" }
"#;

/// The guest of vNIC `number` of [`LAB`].
const fn station(number: u8) -> Station {
    Station {
        mac: [2, 0x15, 0x97, 0, 0, number],
        address: [10, 9, 1, 10 + number],
    }
}

/// Bytes of a frame, and the goals: guest to TAP of the bare TAP, and guest to guest in Mpps, or for
/// super-frames of memcpy.
const SIZES: [(usize, f64, f64); 3] = [(64, 0.75, 3.5), (1500, 0.0, 1.8), (LARGE, 0.7, 0.5)];

/// One pair of slices.
#[derive(Debug, Clone, Copy)]
struct Sample {
    value: f64,
    reference: f64,
    near: bool,
}

/// The pairs of one figure.
#[derive(Debug)]
struct Series {
    case: String,
    unit: &'static str,
    goal: (f64, f64),
    samples: Vec<Sample>,
}

impl Series {
    fn figure(&self) -> Figure {
        let samples = one_placement(&self.samples);
        let value = median(samples.iter().map(|one| one.value));
        let ratio = median(samples.iter().map(|one| one.value / one.reference));
        let reference = if value == 0.0 {
            median(samples.iter().map(|one| one.reference))
        } else {
            value / ratio
        };
        Figure {
            bench: "vnic",
            case: self.case.clone(),
            value,
            unit: self.unit,
            reference,
            goal: self.goal,
        }
    }
}

/// Those of near processors, if they are enough; or else all.
fn one_placement(samples: &[Sample]) -> Vec<Sample> {
    let near = samples.iter().filter(|sample| sample.near);
    let near: Vec<_> = near.copied().collect();
    if near.len() < ENOUGH {
        samples.to_vec()
    } else {
        near
    }
}

/// What a slice came to.
#[derive(Debug, Clone, Copy)]
struct Flood {
    /// Frames that arrived, each second.
    rate: f64,
    /// Percent of what was sent that never arrived.
    dropped: f64,
}

impl Flood {
    fn new(arrived: u64, seconds: f64, sent: u64, settled: u64) -> Self {
        Self {
            rate: arrived as f64 / seconds,
            dropped: sent.saturating_sub(settled) as f64 * 100.0 / sent.max(1) as f64,
        }
    }
}

pub(super) fn measure() -> Result<Vec<Figure>> {
    build_programs()?;
    let [driver, back_end] = PROCESSORS;
    pin(back_end).context("this needs two processors")?;
    let lab = Lab::start(LAB)?;
    pin(driver)?;
    let agent = lab.agents.first().and_then(Option::as_ref);
    let agent = agent.context("no host agent")?;
    let connect = |number: u8, shape| {
        let path = lab.folder().join(format!("host1/vn{number}.vm.sock"));
        Port::connect(&path, shape).with_context(|| format!("vNIC {number}"))
    };
    let small = [connect(1, SMALL_SHAPE)?, connect(2, SMALL_SHAPE)?];
    let large = [connect(3, LARGE_SHAPE)?, connect(4, LARGE_SHAPE)?];
    let guests = [1, 2, 3, 4].map(station);
    let mut bench = Bench {
        taps: Taps::new(&lab.namespace, &guests)?,
        guests: Guests { small, large },
        series: Vec::new(),
    };
    for _round in 0..ROUNDS {
        for (bytes, of_tap, between) in SIZES {
            bench.guest_to_tap(bytes, of_tap)?;
            bench.tap_to_guest(bytes)?;
            if bytes == LARGE {
                bench.super_frames(between)?;
            } else {
                bench.each_way(bytes, between)?;
            }
        }
        bench.round_trips("busy", Duration::ZERO, 1.0)?;
        bench.round_trips("from idle", PAUSE, 40.0)?;
    }
    let near = bench.series.iter().all(|series| {
        let near = series.samples.iter().filter(|sample| sample.near);
        near.count() >= ENOUGH
    });
    if !near {
        say("the processors were seldom near each other: some figures are not of near placement");
    }
    let mut figures: Vec<_> = bench.series.iter().map(Series::figure).collect();
    figures.push(idle("vnic", agent, 0.5)?);
    Ok(figures)
}

/// Whether the processors are near each other now.
fn near() -> Result<bool> {
    let [_, back_end] = PROCESSORS;
    placement::near(back_end)
}

fn name(bytes: usize) -> String {
    if bytes == LARGE {
        "64 KiB super-frames".to_owned()
    } else {
        format!("{bytes} B")
    }
}

/// Unit of a rate and what makes it of frames a second.
fn unit(bytes: usize) -> (&'static str, f64) {
    if bytes == LARGE {
        ("Gb/s", LARGE as f64 * 8.0 / 1e9)
    } else {
        ("Mpps", 1e-6)
    }
}

/// Calls `step` for a slice; returns how long that was in seconds.
fn slice(mut step: impl FnMut() -> Result<()>) -> Result<f64> {
    let started = Instant::now();
    while started.elapsed() < SLICE {
        step()?;
    }
    Ok(started.elapsed().as_secs_f64())
}

/// Frames from a guest to a TAP, or into a bare one: `send` returns how many it has sent.
fn into_tap(taps: &Taps, name: &str, mut send: impl FnMut() -> Result<u64>) -> Result<Flood> {
    let (before, mut sent) = (taps.taken(name)?, 0);
    let seconds = slice(|| {
        sent += send()?;
        Ok(())
    })?;
    let arrived = taps.taken(name)? - before;
    let settled = taps.settled(name)? - before;
    ensure!(arrived > 0, "no frame arrives at {name}");
    Ok(Flood::new(arrived, seconds, sent, settled))
}

/// The front ends: for small frames vNICs 1 and 2, for super-frames 3 and 4.
struct Guests {
    small: [Port; 2],
    large: [Port; 2],
}

impl Guests {
    /// Those for frames of `bytes`, laid out to send to each other.
    fn facing(&mut self, bytes: usize) -> Result<(&mut Port, &mut Port, [Station; 2])> {
        let ([one, two], stations) = if bytes == LARGE {
            (&mut self.large, [station(3), station(4)])
        } else {
            (&mut self.small, [station(1), station(2)])
        };
        let [first, second] = stations;
        one.lay_out(&frame(second.mac, first.mac, bytes))?;
        two.lay_out(&frame(first.mac, second.mac, bytes))?;
        Ok((one, two, stations))
    }
}

struct Bench {
    taps: Taps,
    guests: Guests,
    series: Vec<Series>,
}

impl Bench {
    fn add(&mut self, case: String, unit: &'static str, goal: (f64, f64), sample: Sample) {
        let known = self.series.iter_mut().find(|series| series.case == case);
        if let Some(series) = known {
            series.samples.push(sample);
            return;
        }
        self.series.push(Series {
            case,
            unit,
            goal,
            samples: vec![sample],
        });
    }

    /// A rate of frames of `bytes`, to be `goal` of `reference` at least, and what was lost.
    fn add_flood(
        &mut self,
        (case, bytes): (&str, usize),
        flood: Flood,
        (reference, goal): (f64, f64),
        near: bool,
    ) {
        let (unit, scale) = unit(bytes);
        let case = format!("{case}, {}", name(bytes));
        let sample = Sample {
            value: flood.rate * scale,
            reference: reference * scale,
            near,
        };
        self.add(case.clone(), unit, (goal, f64::INFINITY), sample);
        let sample = Sample {
            value: flood.dropped,
            reference: 100.0,
            near,
        };
        self.add(format!("{case}, dropped"), "%", ANY, sample);
    }

    fn guest_to_tap(&mut self, bytes: usize, goal: f64) -> Result<()> {
        let (port, _, [from, _]) = self.guests.facing(bytes)?;
        let frame = frame(NOBODY.mac, from.mac, bytes);
        port.lay_out(&frame)?;
        let before = near()?;
        let ours = into_tap(&self.taps, PORT, || port.send(BATCH))?;
        port.drain()?;
        let bare = into_tap(&self.taps, BARE, || {
            let mut sent = 0;
            for _frame in 0..BATCH {
                sent += u64::from(self.taps.write(&frame)?);
            }
            Ok(sent)
        })?;
        let near = before && near()?;
        self.add_flood(("guest to TAP", bytes), ours, (bare.rate, goal), near);
        Ok(())
    }

    fn tap_to_guest(&mut self, bytes: usize) -> Result<()> {
        let (port, _, [to, _]) = self.guests.facing(bytes)?;
        let before = near()?;
        let (frames, each) = burst(ROUTER, to.address, bytes);
        let (mut sent, mut arrived) = (0, 0);
        let seconds = slice(|| {
            self.taps.route(&frames)?;
            sent += each;
            arrived += port.receive()?;
            Ok(())
        })?;
        let mut late = 0;
        let settled = settled(|| {
            late += port.receive()?;
            Ok(arrived + late)
        })?;
        ensure!(arrived > 0, "no frame arrives at the guest");
        let ours = Flood::new(arrived, seconds, sent, settled);
        let bare = self.bare_read(bytes)?;
        let near = before && near()?;
        self.add_flood(("TAP to guest", bytes), ours, (bare.rate, 0.0), near);
        let sample = Sample {
            value: bare.dropped,
            reference: 100.0,
            near,
        };
        let case = format!("bare TAP read, {}, dropped", name(bytes));
        self.add(case, "%", ANY, sample);
        Ok(())
    }

    /// The same by a thread on the back end's processor that reads the bare TAP.
    fn bare_read(&self, bytes: usize) -> Result<Flood> {
        let (frames, each) = burst(ROUTER, NOBODY.address, bytes);
        let (count, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let [_, back_end] = PROCESSORS;
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                pin(back_end)?;
                self.taps.read_all(HEADER_BYTES + bytes, &count, &stop)
            });
            let mut sent = 0;
            let seconds = slice(|| {
                sent += each;
                self.taps.route(&frames)
            });
            let arrived = count.load(Ordering::Acquire);
            stop.store(true, Ordering::Release);
            reader
                .join()
                .unwrap_or_else(|_panic| anyhow::bail!("the reader panicked"))?;
            ensure!(arrived > 0, "no frame arrives at the bare TAP");
            let settled = count.load(Ordering::Acquire);
            Ok(Flood::new(arrived, seconds?, sent, settled))
        })
    }

    /// Both guests send as fast as they may; the slower direction counts, `mpps` at least.
    fn each_way(&mut self, bytes: usize, mpps: f64) -> Result<()> {
        let (one, two, _) = self.guests.facing(bytes)?;
        let before = near()?;
        let (mut sent, mut of_one, mut of_two) = (0, 0, 0);
        let seconds = slice(|| {
            sent += one.send(BATCH)? + two.send(BATCH)?;
            of_one += one.receive()?;
            of_two += two.receive()?;
            Ok(())
        })?;
        let arrived = of_one.min(of_two);
        let settled = settled(|| {
            of_one += one.receive()?;
            of_two += two.receive()?;
            Ok(of_one + of_two)
        })?;
        let near = before && near()?;
        ensure!(arrived > 0, "no frame arrives at the other guest");
        let flood = Flood::new(arrived, seconds, sent, settled);
        let case = ("guest to guest, each way", bytes);
        self.add_flood(case, flood, (mpps * 1e6, 1.0), near);
        Ok(())
    }

    /// One guest sends super-frames to the other; next to copies of as many bytes among as many
    /// buffers.
    fn super_frames(&mut self, goal: f64) -> Result<()> {
        let (one, two, _) = self.guests.facing(LARGE)?;
        let before = near()?;
        let (mut sent, mut arrived) = (0, 0);
        let seconds = slice(|| {
            sent += one.send(BATCH)?;
            arrived += two.receive()?;
            Ok(())
        })?;
        let mut late = 0;
        let settled = settled(|| {
            late += two.receive()?;
            Ok(arrived + late)
        })?;
        ensure!(arrived > 0, "no super-frame arrives at the other guest");
        let copies = copies(LARGE_SHAPE)?;
        let near = before && near()?;
        let flood = Flood::new(arrived, seconds, sent, settled);
        self.add_flood(
            ("guest to guest, of memcpy", LARGE),
            flood,
            (copies, goal),
            near,
        );
        Ok(())
    }

    /// Frames of 64 B to the other guest and back, with a pause before each; at most `most`
    /// microseconds. What passes the back end only once, as in tables of others, is half of it.
    fn round_trips(&mut self, how: &str, pause: Duration, most: f64) -> Result<()> {
        let (one, two, _) = self.guests.facing(64)?;
        let before = near()?;
        let mut trips = Vec::new();
        slice(|| {
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
            let started = Instant::now();
            one.send(1)?;
            two.wait()?;
            two.send(1)?;
            one.wait()?;
            trips.push(started.elapsed().as_secs_f64() * 1e6);
            Ok(())
        })?;
        let near = before && near()?;
        trips.sort_by(f64::total_cmp);
        for (percent, goal) in [(50, (0.0, 1.0)), (99, ANY)] {
            let at = trips.len() * percent / 100;
            let sample = Sample {
                value: trips.get(at).copied().unwrap_or(f64::NAN),
                reference: most,
                near,
            };
            let case = format!("guest to guest and back, {how}, p{percent}");
            self.add(case, "us", goal, sample);
        }
        Ok(())
    }
}

/// Copies a second of super-frames, among buffers as two rings of `shape` have them.
fn copies(shape: Shape) -> Result<f64> {
    let buffer = vec![1_u8; HEADER_BYTES + LARGE];
    let mut pairs = vec![(buffer.clone(), buffer); usize::from(shape.slots)];
    let mut copied = 0_u64;
    let seconds = slice(|| {
        for (from, to) in &mut pairs {
            to.copy_from_slice(black_box(from));
            black_box(to);
            copied += 1;
        }
        Ok(())
    })?;
    Ok(copied as f64 / seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(value: f64, near: bool) -> Sample {
        Sample {
            value,
            reference: 10.0,
            near,
        }
    }

    fn ratio(samples: &[Sample]) -> f64 {
        let series = Series {
            case: String::new(),
            unit: "",
            goal: ANY,
            samples: samples.to_vec(),
        };
        series.figure().ratio()
    }

    #[test]
    fn far_placement_is_left_out_when_near_is_enough() {
        let near = [sample(9.0, true), sample(10.0, true), sample(11.0, true)];
        let far = [1.0, 2.0, 3.0, 4.0].map(|value| sample(value, false));
        assert!((ratio(&[&near[..], &far].concat()) - 1.0).abs() < 1e-9);
        assert!((ratio(&[&near[..1], &far].concat()) - 0.3).abs() < 1e-9);
    }

    #[test]
    fn a_figure_of_nothing_has_its_reference() {
        assert!(ratio(&[sample(0.0, true)]).abs() < 1e-9);
    }

    #[test]
    fn what_arrived_late_is_not_dropped_and_not_in_the_rate() {
        let flood = Flood::new(50, 2.0, 100, 75);
        assert!((flood.rate - 25.0).abs() < 1e-9);
        assert!((flood.dropped - 25.0).abs() < 1e-9);
    }
}

//! What devices get of a real link: two processes, loopback TCP, every device greedy, next to Linux
//! HTB with the same words in the same minute.
//!
//! Bytes are counted by device where they arrive, as they were charged, in ticks of 10 ms of the
//! clock that both processes share. A device is entitled to its CIR and to its share by weight of
//! what nobody reserved; an error is the distance to that, in either direction. Figures are of the
//! device that is worst off, over the windows of all rounds.
//!
//! Both systems run under `SCHED_FIFO`: whether other processes of the machine let us run is not
//! what is asked. Windows in which the link did not carry its rate all the same are set aside, by
//! the same rule for both, and counted.
//!
//! Needs root, iproute2 (`ip`, `tc`) and util-linux (`chrt`).

mod arrivals;
mod case;
mod far_end;
mod htb;
mod windows;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use fabric_transport::VirtualLane;
use fabric_transport::link::{LinkOptions, connect};

use super::Figure;
use super::lanes::{PATIENCE, SendingEnd};
use super::real_time::RealTime;
use crate::say;
use arrivals::{TICK, tick};
use case::{Case, Traffic, budget};
use far_end::{Kind, Running};
use windows::{LENGTHS, Length, Measured, Windows};

pub(crate) use far_end::FarEnd;

const WARM_UP: Duration = Duration::from_millis(500);
/// Ticks of one run: 3 s.
const TICKS: usize = 300;
/// Runs of each system, in turns.
const ROUNDS: usize = 5;
/// What a frame of the fabric has at most on this link (`fabric-transport` cuts longer payloads).
const FRAME_BYTES_MAX: f64 = 4_096.0;
/// The part of the windows that must count, or the machine was too busy to say anything.
const COUNTED_MIN: f64 = 0.5;
/// How exactly what is left over is divided.
const EXCESS_GOAL: f64 = 0.01;

pub(super) fn measure() -> Result<Vec<Figure>> {
    let _real_time = RealTime::start()?;
    let reservations = Rounds::measure(Case::Reservations)?;
    let excess = Rounds::measure(Case::Excess)?;
    let mut figures = Vec::new();
    for length in LENGTHS {
        figures.extend(reservations.of_length(length));
    }
    figures.extend(excess.of_division());
    Ok(figures)
}

/// The runs of a case.
struct Rounds {
    case: Case,
    lanes: Vec<Measured>,
    htb: Vec<Measured>,
}

impl Rounds {
    fn measure(case: Case) -> Result<Self> {
        let mut rounds = Self {
            case,
            lanes: Vec::new(),
            htb: Vec::new(),
        };
        for _ in 0..ROUNDS {
            rounds.lanes.push(through_lanes(case)?);
            rounds.htb.push(htb::run(case)?);
        }
        Ok(rounds)
    }

    /// Bytes that each device is entitled to in a tick.
    fn entitled(&self) -> Vec<f64> {
        self.case.entitled().into_iter().map(in_tick).collect()
    }

    /// Windows of all runs of a system, and what its runs say one by one.
    fn windows(&self, system: &str, runs: &[Measured], length: Length) -> Windows {
        let entitled = self.entitled();
        let mut all = Windows::default();
        let mut each = Vec::new();
        for run in runs {
            let windows = run.windows(length, &entitled);
            each.push(percent(worst(&windows.percentile_99())));
            all.extend(windows);
        }
        say(&format!(
            "{system}, {}: {} windows count, {} set aside; devices {}; worst one by round {}",
            length.name,
            all.counted(),
            all.set_aside,
            list(all.percentile_99().into_iter().map(percent)),
            list(each.into_iter()),
        ));
        all
    }

    fn of_length(&self, length: Length) -> Vec<Figure> {
        let lanes = self.windows("lanes", &self.lanes, length);
        let htb = self.windows("htb", &self.htb, length);
        let errors = lanes.percentile_99();
        let window_bytes = |entitled: f64| entitled * length.ticks as f64;
        // Nobody can be exact to less than a frame; that shows in short windows only.
        let allowed = self.entitled().into_iter().map(|entitled| {
            let frames = if length.ticks == 1 { 2.0 } else { 0.0 };
            length.goal + frames * FRAME_BYTES_MAX / window_bytes(entitled)
        });
        let pairs = errors.iter().copied().zip(allowed);
        let (error, allowed) = pairs
            .max_by(|one, two| (one.0 / one.1).total_cmp(&(two.0 / two.1)))
            .unwrap_or((f64::NAN, length.goal));
        let all = lanes.counted() + lanes.set_aside;
        let figure = |case: String, value, unit, reference, goal| Figure {
            bench: "qos-link",
            case,
            value,
            unit,
            reference,
            goal,
        };
        let name = length.name;
        vec![
            figure(
                format!("CIR error, {name}"),
                percent(error),
                "%",
                percent(allowed),
                (0.0, 1.0),
            ),
            figure(
                format!("CIR error, {name}, to HTB's"),
                percent(worst(&errors)),
                "%",
                percent(worst(&htb.percentile_99())),
                (0.0, length.of_htb_max),
            ),
            figure(
                format!("windows that count, {name}"),
                lanes.counted() as f64,
                "",
                all as f64,
                (COUNTED_MIN, f64::INFINITY),
            ),
        ]
    }

    /// How far the division of what nobody reserved is from the weights: the worst device, in the
    /// windows of a run that count, and of the runs the median.
    fn division_error(&self, system: &str, runs: &[Measured]) -> f64 {
        let [_, length, _] = LENGTHS;
        let (entitled, devices) = (self.entitled(), self.case.devices());
        let weights: f64 = devices.iter().map(|device| f64::from(device.weight)).sum();
        let of_run = |run: &Measured| {
            let distances = run.windows(length, &entitled).mean();
            let excess = distances.iter().zip(&entitled).zip(devices);
            let excess: Vec<f64> = excess
                .map(|((distance, entitled), device)| {
                    entitled * (1.0 + distance) - in_tick(device.cir_megabits as f64 * 1e6)
                })
                .collect();
            let left = excess.iter().sum::<f64>();
            let errors = excess.iter().zip(devices).map(|(excess, device)| {
                (excess / left / (f64::from(device.weight) / weights) - 1.0).abs()
            });
            worst(&errors.collect::<Vec<_>>())
        };
        let mut errors: Vec<f64> = runs.iter().map(of_run).collect();
        errors.sort_by(f64::total_cmp);
        say(&format!(
            "{system}, excess 5:3:1:1: worst device by round {}",
            list(errors.iter().copied().map(percent))
        ));
        errors.get(errors.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn of_division(&self) -> [Figure; 2] {
        let lanes = percent(self.division_error("lanes", &self.lanes));
        let htb = percent(self.division_error("htb", &self.htb));
        let figure = |case: &str, reference| Figure {
            bench: "qos-link",
            case: case.to_owned(),
            value: lanes,
            unit: "%",
            reference,
            goal: (0.0, 1.0),
        };
        [
            figure("excess 5:3:1:1, error", percent(EXCESS_GOAL)),
            figure("excess 5:3:1:1, to HTB's", htb),
        ]
    }
}

/// Bytes in a tick at a rate in bit/s.
fn in_tick(rate: f64) -> f64 {
    rate / 8.0 * TICK.as_secs_f64()
}

fn percent(part: f64) -> f64 {
    part * 100.0
}

fn worst(errors: &[f64]) -> f64 {
    errors.iter().copied().fold(f64::NAN, f64::max)
}

fn list(values: impl Iterator<Item = f64>) -> String {
    let values: Vec<_> = values.map(|value| format!("{value:.2}")).collect();
    format!("{} %", values.join(" "))
}

/// How long to measure for the ticks of a run, of which the first begins within a tick from now.
fn span() -> Duration {
    TICK * u32::try_from(TICKS + 2).unwrap_or(u32::MAX)
}

/// One run through lanes.
fn through_lanes(case: Case) -> Result<Measured> {
    let running = Running::start(Kind::Lanes, case)?;
    let link = connect(
        &running.addresses.parse()?,
        PATIENCE,
        &LinkOptions::default(),
    )?;
    let end = SendingEnd::start(link, &budget(), &case.rates()?)?;
    let stop = AtomicBool::new(false);
    let first = std::thread::scope(|scope| {
        for (sender, device) in end.senders.iter().zip(case.devices()) {
            // An Ethernet frame with its virtio-net header; a unit of SCSI data.
            let (lane, payload_bytes) = match device.traffic {
                Traffic::Ethernet => (VirtualLane::Network, 1_526),
                Traffic::Storage => (VirtualLane::StorageData, 65_552),
            };
            let stop = &stop;
            scope.spawn(move || sender.saturate(lane, payload_bytes, stop));
        }
        std::thread::sleep(WARM_UP);
        let first = tick() + 1;
        std::thread::sleep(span());
        stop.store(true, Ordering::Relaxed);
        first
    });
    drop(end);
    let rows = running.finish()?.rows(first, TICKS)?;
    Ok(Measured::new(&rows, &vec![1.0; case.devices().len()]))
}

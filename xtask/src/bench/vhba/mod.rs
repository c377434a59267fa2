//! What a command costs on its way from a guest's ring to a logical unit and back: our host agent
//! with its director inside and reservations on, next to vhost-device-scsi, `pread` and io_uring.
//!
//! The driver has one processor and the back end another, whatever threads it has. All sides take
//! turns in slices of [`SLICE`], and a ratio is the median of the ratios of neighbouring slices:
//! how near two processors are to each other changes while this runs.

mod disk;
mod local;
mod peer;
#[expect(unsafe_code, reason = "io_uring takes raw buffers")]
mod sys;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use orimono_tests::lab::{Lab, Process};

use super::Figure;
use crate::say;
use crate::test::build_programs;
use disk::{Disk, Notice, Slice};

const SLICE: Duration = Duration::from_millis(200);
const ROUNDS: usize = 7;
const BLOCK_BYTES: u32 = 512;
const LUN_BYTES: u32 = 256 << 20;
/// The driver's processor and the back end's.
const PROCESSORS: [usize; 2] = [0, 1];
const ANY: (f64, f64) = (0.0, f64::INFINITY);

const LAB: &str = r#"
[director]
name = "director1"
[[lun]]
name = "ram"
port = "12/1"
ram = "256M"
[[lun]]
name = "file"
port = "12/1"
file = "@FILE@"
[[host]]
name = "host1"
embedded = true
run-dir = "@DIR@/host1"
rate = "400G"
busy-poll-us = 200
[[host.vm]]
name = "vm"
[[host.vm.vhba]]
name = "ram"
id = 11
port = "12/1"
luns = [ { lun = 0, name = "ram" } ]
ingress = { cir = "90G" }
egress = { cir = "90G" }
[[host.vm.vhba]]
name = "file"
id = 12
port = "12/1"
luns = [ { lun = 0, name = "file" } ]
ingress = { cir = "90G" }
egress = { cir = "90G" }
"#;

/// What a driver asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Work {
    bytes: u32,
    write: bool,
    random: bool,
    depth: u16,
    notice: Notice,
}

impl Work {
    const fn small(write: bool, depth: u16) -> Self {
        Self {
            bytes: 4096,
            write,
            random: true,
            depth,
            notice: Notice::Polled,
        }
    }

    const fn large(write: bool) -> Self {
        Self {
            bytes: 128 * 1024,
            write,
            random: false,
            depth: 8,
            notice: Notice::Polled,
        }
    }

    const fn interrupting(self) -> Self {
        Self {
            notice: Notice::Interrupt,
            ..self
        }
    }

    fn name(self) -> String {
        let Self {
            bytes,
            write,
            depth,
            notice,
            ..
        } = self;
        let direction = if write { "write" } else { "read" };
        let interrupting = match notice {
            Notice::Polled => "",
            Notice::Interrupt => ", interrupts",
        };
        format!("{} KiB {direction} QD{depth}{interrupting}", bytes / 1024)
    }
}

/// In the order of the figures, with the goals of the memory LUN and of the file, both of what
/// vhost-device-scsi reaches on the file.
const WORKS: [(Work, f64, f64); 11] = [
    (Work::small(false, 1), 0.0, 0.0),
    (Work::small(true, 1), 0.0, 0.0),
    (Work::small(false, 1).interrupting(), 0.0, 3.0),
    (Work::small(false, 32), 3.0, 1.4),
    (Work::small(true, 32), 3.0, 1.4),
    (Work::small(false, 32).interrupting(), 0.0, 0.0),
    (Work::small(true, 32).interrupting(), 0.0, 0.0),
    (Work::small(false, 128), 0.0, 0.0),
    (Work::small(true, 128), 0.0, 0.0),
    (Work::large(false), 0.0, 1.3),
    (Work::large(true), 0.0, 1.3),
];

/// Who does the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    Ram,
    File,
    Peer,
}

/// A back end under test and its driver.
struct Served<'a> {
    disk: Disk,
    process: &'a Process,
}

/// Slices by work and side, in the order of the rounds.
type Slices = BTreeMap<(usize, Side), Vec<Measured>>;

#[derive(Debug)]
struct Measured {
    slice: Slice,
    /// Processor time of the back end's process.
    cpu: Duration,
}

impl Measured {
    fn rate(&self) -> f64 {
        self.slice.commands as f64 / self.slice.seconds
    }

    fn cpu_micros(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.slice.commands as f64
    }

    fn latency(&self, percent: usize) -> f64 {
        let mut latencies = self.slice.latencies.clone();
        latencies.sort_by(f64::total_cmp);
        let at = latencies.len() * percent / 100;
        latencies.get(at).copied().unwrap_or(f64::NAN)
    }
}

pub(super) fn measure() -> Result<Vec<Figure>> {
    build_programs()?;
    let peer = peer::install().inspect_err(|error| {
        say(&format!("{error:#}: figures have no reference"));
    });
    let file = tempfile::Builder::new().tempfile_in("/dev/shm")?;
    let peer_file = tempfile::Builder::new().tempfile_in("/dev/shm")?;
    for file in [&file, &peer_file] {
        file.as_file().set_len(LUN_BYTES.into())?;
    }
    let [driver, back_end] = PROCESSORS;
    pin(back_end).context("this needs two processors")?;
    let lab = Lab::start(&LAB.replace("@FILE@", &file.path().display().to_string()))?;
    let socket = lab.folder().join("peer.sock");
    let peer = peer.ok().map(|program| {
        peer::start(&program, &lab.namespace, &socket, peer_file.path()).context("peer")
    });
    let peer = peer.transpose()?;
    pin(driver)?;
    let agent = lab.agents.first().and_then(Option::as_ref);
    let agent = agent.context("no host agent")?;
    let mut sides = BTreeMap::new();
    for (side, name) in [(Side::Ram, "ram"), (Side::File, "file")] {
        let path = lab.folder().join("host1").join(format!("{name}.vm.sock"));
        let disk = Disk::connect(&path).with_context(|| format!("LUN {name}"))?;
        let process = agent;
        sides.insert(side, Served { disk, process });
    }
    if let Some(process) = &peer {
        let disk = Disk::connect(&socket).context("vhost-device-scsi")?;
        sides.insert(Side::Peer, Served { disk, process });
    }
    for served in sides.values_mut() {
        served.disk.fill()?;
    }
    let mut slices = Slices::new();
    let mut local = Local::default();
    for _round in 0..ROUNDS {
        for (number, (work, ..)) in WORKS.iter().enumerate() {
            for (side, served) in &mut sides {
                let measured = served.slice(*work);
                let measured = measured.with_context(|| format!("{side:?}, {}", work.name()))?;
                slices.entry((number, *side)).or_default().push(measured);
            }
        }
        local.round(file.path())?;
    }
    let mut figures = figures(&slices);
    figures.extend(local.figures(&slices));
    figures.push(idle("vhba", agent, 2.0)?);
    Ok(figures)
}

/// Keeps this thread, and what it starts, on one processor.
pub(super) fn pin(processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor)?;
    sched_setaffinity(Pid::from_raw(0), &set)?;
    Ok(())
}

impl Served<'_> {
    fn slice(&mut self, work: Work) -> Result<Measured> {
        let before = self.process.cpu_time()?;
        let slice = self.disk.run(work, SLICE)?;
        let cpu = self.process.cpu_time()?.saturating_sub(before);
        ensure!(slice.commands > 0, "no command of {work:?} ended");
        Ok(Measured { slice, cpu })
    }
}

pub(super) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A figure whose ratio is the median of the ratios of pairs.
fn figure(case: String, unit: &'static str, pairs: &[(f64, f64)], goal: (f64, f64)) -> Figure {
    let value = median(pairs.iter().map(|(value, _)| *value));
    let ratio = median(pairs.iter().map(|(value, reference)| value / reference));
    Figure {
        bench: "vhba",
        case,
        value,
        unit,
        reference: value / ratio,
        goal,
    }
}

fn figures(slices: &Slices) -> Vec<Figure> {
    let mut figures = Vec::new();
    let none = Vec::new();
    for (number, (work, ram, file)) in WORKS.iter().enumerate() {
        let of = |side| slices.get(&(number, side)).unwrap_or(&none);
        for (side, name, goal) in [(Side::Ram, "RAM", *ram), (Side::File, "file", *file)] {
            let case = |what: &str| format!("{name} {}{what}", work.name());
            // Without a peer every figure stands for itself.
            let peer = if of(Side::Peer).is_empty() {
                side
            } else {
                Side::Peer
            };
            let pairs = |of_one: &dyn Fn(&Measured) -> f64| -> Vec<_> {
                let both = of(side).iter().zip(of(peer));
                both.map(|(ours, peer)| (of_one(ours), of_one(peer)))
                    .collect()
            };
            let goal = if peer == side {
                ANY
            } else {
                (goal, f64::INFINITY)
            };
            if work.bytes > 4096 {
                let scale = f64::from(work.bytes) / 1e9;
                let rate = |one: &Measured| one.rate() * scale;
                figures.push(figure(case(""), "GB/s", &pairs(&rate), goal));
                continue;
            }
            let rate = |one: &Measured| one.rate() / 1e3;
            figures.push(figure(case(""), "kIOPS", &pairs(&rate), goal));
            if work.depth == 1 {
                for percent in [50, 99] {
                    let latency = |one: &Measured| one.latency(percent);
                    let case = case(&format!(", p{percent}"));
                    figures.push(figure(case, "us", &pairs(&latency), ANY));
                }
            }
            if work.depth == 32 && work.notice == Notice::Interrupt {
                let case_peer = case(", processor time, of the peer's");
                figures.push(figure(case_peer, "us", &pairs(&Measured::cpu_micros), ANY));
                let value = median(of(side).iter().map(Measured::cpu_micros));
                figures.push(Figure {
                    bench: "vhba",
                    case: case(", processor time"),
                    value,
                    unit: "us",
                    reference: 3.0,
                    goal: (0.0, 1.0),
                });
            }
        }
    }
    figures
}

/// What one thread reads without a back end.
#[derive(Debug, Default)]
struct Local {
    /// `pread`, io_uring and `pread` of 128 KiB, by round.
    rates: [Vec<f64>; 3],
}

impl Local {
    const WORKS: [(&str, Work); 3] = [
        ("pread", Work::small(false, 32)),
        ("io_uring", Work::small(false, 32)),
        ("pread", Work::large(false)),
    ];

    fn round(&mut self, file: &Path) -> Result<()> {
        let [small, ring, large] = &mut self.rates;
        let [(_, work), _, (_, large_work)] = Self::WORKS;
        small.push(local::pread(file, work, SLICE)?);
        ring.push(local::uring(file, work, SLICE)?);
        large.push(local::pread(file, large_work, SLICE)?);
        Ok(())
    }

    fn figures(&self, slices: &Slices) -> Vec<Figure> {
        let each = Self::WORKS.iter().zip(&self.rates);
        let figures = each.filter_map(|((name, work), rates)| {
            let number = WORKS.iter().position(|(known, ..)| known == work)?;
            let ours = slices.get(&(number, Side::File))?;
            let (unit, scale) = if work.bytes > 4096 {
                ("GB/s", f64::from(work.bytes) / 1e9)
            } else {
                ("kIOPS", 1e-3)
            };
            let both = ours.iter().zip(rates);
            let pairs: Vec<_> = both
                .map(|(ours, rate)| (ours.rate() * scale, rate * scale))
                .collect();
            let case = format!("file {}, of {name}", work.name());
            Some(figure(case, unit, &pairs, ANY))
        });
        figures.collect()
    }
}

/// Processor time of a host agent that has had nothing to do for a second; at most `most` percent.
pub(super) fn idle(bench: &'static str, agent: &Process, most: f64) -> Result<Figure> {
    const SECOND: Duration = Duration::from_secs(1);
    std::thread::sleep(SECOND);
    let before = agent.cpu_time()?;
    std::thread::sleep(SECOND);
    let used = agent.cpu_time()?.saturating_sub(before);
    Ok(Figure {
        bench,
        case: "idle agent, processor".to_owned(),
        value: used.as_secs_f64() * 100.0,
        unit: "%",
        reference: most,
        goal: (0.0, 1.0),
    })
}

//! A vHBA with a reservation beside a vNIC that floods the same link, both ways, through the real
//! host agent and director over TCP. The guests are vhost-user front ends in Rust.
//!
//! One vNIC sends to another of its host as fast as it may, so that the flood crosses the link in
//! both directions: it meets writes on the way to the director and what is read on the way back.
//! The flood has what is left of the reservable rate, and a weight that leaves the vHBA next to
//! nothing of the rest: more than its CIR is as wrong as less.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fabric_transport::frame::HEADER_BYTES;
use orimono_tests::devices::net::{NetGuest, frame};
use orimono_tests::devices::scsi::{Request, ScsiGuest, transfer};
use orimono_tests::lab::Lab;

use super::Figure;
use super::real_time::RealTime;
use crate::say;
use crate::test::build_programs;

const WARM_UP: Duration = Duration::from_secs(1);
const WINDOW: Duration = Duration::from_secs(1);
const WINDOWS: usize = 9;
const LINK_MEGABITS: f64 = 400.0;
const CIR_MEGABITS: f64 = 150.0;
const GOAL: (f64, f64) = (0.98, 1.02);
const FLOOD_GOAL: (f64, f64) = (0.9, 1.02);
const BLOCKS: u16 = 128;
const TRANSFER_BYTES: usize = 64 * 1024;
/// The lab makes LUNs of 32 MiB.
const LUN_BLOCKS: u32 = 65_536;
const COMMANDS: usize = 16;
const ETHERNET_BYTES: usize = 1_514;
/// What the link charges for a frame of the flood: with virtio-net header and frame header.
const FLOOD_BYTES: u64 = (ETHERNET_BYTES + 12 + HEADER_BYTES) as u64;
/// Frames in a ring of 256.
const RING_FRAMES: usize = 200;

const LAB: &str = r#"
[director]
name = "director1"
listen = ["tcp:127.0.0.1:7471"]
[[ethernet-port]]
port = "10/1"
tap = "orimono0"
[[lun]]
name = "lun"
port = "12/1"
file = "@DIR@/lun"
[[host]]
name = "host1"
director = ["tcp:127.0.0.1:7471"]
run-dir = "@DIR@/host1"
rate = "400M"
[[host.vm]]
name = "vm"
[[host.vm.vnic]]
name = "flood"
id = 1
port = "10/1"
mac = "02:15:97:00:00:01"
ingress = { cir = "230M", weight = 1000 }
[[host.vm.vnic]]
name = "sink"
id = 2
port = "10/1"
mac = "02:15:97:00:00:02"
egress = { cir = "230M", weight = 1000 }
[[host.vm.vhba]]
name = "disk"
id = 11
port = "12/1"
luns = [ { lun = 0, name = "lun" } ]
ingress = { cir = "150M", weight = 1 }
egress = { cir = "150M", weight = 1 }
"#;

pub(super) fn measure() -> Result<Vec<Figure>> {
    build_programs()?;
    let _real_time = RealTime::start()?;
    let lab = Lab::start(LAB)?;
    let mut disk = ScsiGuest::connect(&socket(&lab, "disk"), 1)?;
    ready(&mut disk)?;
    let mut sink = NetGuest::connect(&socket(&lab, "sink"), 1)?;
    let mut flood = NetGuest::connect(&socket(&lab, "flood"), 1)?;
    let (floods, takes) = (AtomicBool::new(true), AtomicBool::new(true));
    let taken = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let flooding = scope.spawn(|| send(&mut flood, &floods));
        let taking = scope.spawn(|| take(&mut sink, &taken, &takes));
        let measured = [Transfer::Read, Transfer::Write]
            .map(|direction| beside_flood(&mut disk, direction, &taken));
        // Whoever takes waits for the next frame: the flood ends last.
        takes.store(false, Ordering::Release);
        let taking = taking.join();
        floods.store(false, Ordering::Release);
        for ended in [taking, flooding.join()] {
            ended.unwrap_or_else(|_panic| anyhow::bail!("a guest panicked"))?;
        }
        let figures = measured.into_iter().collect::<Result<Vec<_>>>()?;
        Ok(figures.into_iter().flatten().collect())
    })
}

fn socket(lab: &Lab, device: &str) -> PathBuf {
    lab.folder().join("host1").join(format!("{device}.vm.sock"))
}

/// Sends frames as fast as the device takes them.
fn send(flood: &mut NetGuest, floods: &AtomicBool) -> Result<()> {
    let sent = frame(
        [2, 0x15, 0x97, 0, 0, 2],
        [2, 0x15, 0x97, 0, 0, 1],
        1,
        ETHERNET_BYTES,
    );
    while floods.load(Ordering::Acquire) {
        flood.send(0, &sent)?;
        while flood.unsent(0) >= RING_FRAMES {
            flood.wait_sent(0)?;
        }
    }
    Ok(())
}

/// Takes and counts frames.
fn take(sink: &mut NetGuest, taken: &AtomicU64, takes: &AtomicBool) -> Result<()> {
    sink.post(0, RING_FRAMES)?;
    while takes.load(Ordering::Acquire) {
        sink.receive(0)?;
        sink.post(0, 1)?;
        taken.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Gets the unit attentions of a new initiator out of the way.
fn ready(disk: &mut ScsiGuest) -> Result<()> {
    for _ in 0..8 {
        disk.submit(0, &Request::new(&[0; 6]))?;
        if disk.wait(0)?.status == 0 {
            return Ok(());
        }
    }
    anyhow::bail!("the disk does not become ready")
}

/// Throughput of the disk and of the flood, in bytes that the link charges: medians of windows.
fn beside_flood(
    disk: &mut ScsiGuest,
    direction: Transfer,
    taken: &AtomicU64,
) -> Result<[Figure; 2]> {
    let mut work = Work {
        disk,
        direction,
        data: vec![0x5a; TRANSFER_BYTES],
        submitted: 0,
    };
    for _ in 0..COMMANDS {
        work.submit()?;
    }
    work.run(WARM_UP)?;
    let (mut of_disk, mut of_flood) = (Vec::new(), Vec::new());
    for _ in 0..WINDOWS {
        let (before, started) = (taken.load(Ordering::Relaxed), Instant::now());
        let commands = work.run(WINDOW)?;
        let frames = taken.load(Ordering::Relaxed) - before;
        let seconds = started.elapsed().as_secs_f64();
        let megabits = |bytes: u64| bytes as f64 * 8.0 / 1e6 / seconds;
        of_disk.push(megabits(commands * direction.charged_bytes()));
        of_flood.push(megabits(frames * FLOOD_BYTES));
    }
    work.drain()?;
    let figure = |case: String, rates, reference, goal| Figure {
        bench: "qos-storage",
        value: median(&case, rates),
        case,
        unit: "Mb/s",
        reference,
        goal,
    };
    let name = format!("{direction:?}").to_lowercase();
    let disk = format!("64 KiB {name}s, of CIR");
    let flood = format!("flood beside {name}s");
    Ok([
        figure(disk, of_disk, CIR_MEGABITS, GOAL),
        // Without it the other would mean nothing.
        figure(flood, of_flood, LINK_MEGABITS - CIR_MEGABITS, FLOOD_GOAL),
    ])
}

fn median(case: &str, mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    let list: Vec<_> = rates.iter().map(|rate| format!("{rate:.1}")).collect();
    say(&format!("{case}, by window: {} Mb/s", list.join(" ")));
    rates.get(rates.len() / 2).copied().unwrap_or(f64::NAN)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transfer {
    Read,
    Write,
}

impl Transfer {
    /// What a command costs in the direction of its data: data with its unit's header, in frames of
    /// 4 KiB, and the COMMAND before a write or the STATUS behind a read.
    const fn charged_bytes(self) -> u64 {
        const UNIT_BYTES: usize = 16 + TRANSFER_BYTES;
        const FRAMES: usize = UNIT_BYTES.div_ceil(4096 - HEADER_BYTES);
        let beside = match self {
            Self::Read => 16,
            Self::Write => 64,
        };
        (UNIT_BYTES + FRAMES * HEADER_BYTES + beside + HEADER_BYTES) as u64
    }
}

/// [`COMMANDS`] are underway all the time, but for the moment between two.
struct Work<'a> {
    disk: &'a mut ScsiGuest,
    direction: Transfer,
    data: Vec<u8>,
    submitted: u32,
}

impl Work<'_> {
    fn submit(&mut self) -> Result<()> {
        let lba = self.submitted * u32::from(BLOCKS) % LUN_BLOCKS;
        self.submitted += 1;
        let cdb = transfer(self.direction == Transfer::Write, lba, BLOCKS);
        let request = Request::new(&cdb);
        let request = match self.direction {
            Transfer::Read => Request {
                data_in_bytes: u32::try_from(self.data.len())?,
                ..request
            },
            Transfer::Write => Request {
                data_out: &self.data,
                ..request
            },
        };
        self.disk.submit(0, &request)?;
        Ok(())
    }

    fn wait(&mut self) -> Result<()> {
        let response = self.disk.wait(0)?;
        ensure!(response.status == 0, "a command failed: {response:?}");
        Ok(())
    }

    /// How many end within `span`.
    fn run(&mut self, span: Duration) -> Result<u64> {
        let started = Instant::now();
        let mut ended = 0;
        while started.elapsed() < span {
            self.wait()?;
            self.submit()?;
            ended += 1;
        }
        Ok(ended)
    }

    fn drain(&mut self) -> Result<()> {
        while self.disk.in_flight() > 0 {
            self.wait()?;
        }
        Ok(())
    }
}

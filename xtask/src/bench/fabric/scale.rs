//! Many hosts and devices at one director: memory, the storm after a restart, and one device that
//! reads nothing beside many that do.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fabric_transport::acceptor::{Acceptor, Admission};
use fabric_transport::control::Windows;
use fabric_transport::endpoint::{DeviceGrant, session_config};
use fabric_transport::frame::FrameKind;
use fabric_transport::link::{LinkAddress, LinkOptions};
use fabric_transport::{DeviceId, Directory, LaneClient, LaneSet, Receipt, VirtualLane};
use orimono_tests::fabric::{RawPeer, RawStream};
use qos::{DeviceRate, LinkBudget};

use super::super::Figure;
use super::super::lanes::{Lanes, LinkKind};

const HOSTS: u32 = 1_000;
const DEVICES_EACH: u32 = 4;
const WINDOWS: Windows = [64, 64, 1024, 1024];

pub(in super::super) fn measure() -> Result<Vec<Figure>> {
    let mut figures = many_hosts()?;
    figures.push(idle_devices()?);
    figures.push(one_stalled()?);
    Ok(figures)
}

/// F5: what a device that does nothing adds to the memory of both ends.
fn idle_devices() -> Result<Figure> {
    // Both make the schedulers' calendars their largest, 2 MiB each, whoever is in them.
    const DEVICES: [usize; 2] = [1_000, 4_000];
    let budget = LinkBudget::new("bench link", "400G".parse()?);
    let resident = |devices: usize| -> Result<f64> {
        let rates = vec![DeviceRate::best_effort(); devices];
        let before = resident_kib()?;
        let lanes = Lanes::start(LinkKind::SharedMemory, &budget, &rates)?;
        lanes.wait_up()?;
        Ok(resident_kib()? as f64 - before as f64)
    };
    let [few, many] = DEVICES;
    // The memory of the last run may serve this one: the first counts.
    let (most, least) = (resident(many)?, resident(few)?);
    Ok(Figure {
        bench: "fabric",
        case: format!("F5 memory of one of {many} idle devices, both ends"),
        value: (most - least.max(0.0)) / (many - few) as f64,
        unit: "KiB",
        // A KiB for each end and direction.
        reference: 4.0,
        goal: (0.0, 1.0),
    })
}

/// A device that reads nothing beside 100 that do, and the 100 alone.
fn one_stalled() -> Result<Figure> {
    const OTHERS: usize = 100;
    const ROUNDS: usize = 5;
    const SETTLE: Duration = Duration::from_millis(200);
    const SLICE: Duration = Duration::from_millis(800);
    let budget = LinkBudget::new("bench link", "4G".parse()?);
    let rate = |stalled: bool| -> Result<f64> {
        let rates = vec![DeviceRate::best_effort(); OTHERS + usize::from(stalled)];
        let lanes = Lanes::start(LinkKind::Tcp { checksummed: true }, &budget, &rates)?;
        if stalled {
            lanes.stall_the_last();
        }
        for sender in lanes.senders() {
            sender.feed(Some(1_500));
        }
        std::thread::sleep(SETTLE);
        let of_others = || lanes.bytes().iter().take(OTHERS).sum::<u64>();
        let (before, started) = (of_others(), Instant::now());
        std::thread::sleep(SLICE);
        let bytes = of_others() - before;
        for sender in lanes.senders() {
            sender.feed(None);
        }
        Ok(bytes as f64 * 8.0 / 1e9 / started.elapsed().as_secs_f64())
    };
    let mut pairs = Vec::new();
    for _ in 0..ROUNDS {
        pairs.push((rate(true)?, rate(false)?));
    }
    let median = |of: fn(&(f64, f64)) -> f64| {
        let mut values: Vec<_> = pairs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(ROUNDS / 2).copied().unwrap_or(f64::NAN)
    };
    Ok(Figure {
        bench: "fabric",
        case: format!("{OTHERS} devices beside one that reads nothing"),
        value: median(|pair| pair.0),
        unit: "Gb/s",
        reference: median(|pair| pair.1),
        goal: (0.98, f64::INFINITY),
    })
}

fn many_hosts() -> Result<Vec<Figure>> {
    let folder = tempfile::tempdir()?;
    let address = LinkAddress::Unix(folder.path().join("fabric"));
    let before = resident_kib()?;
    let acceptor = Acceptor::start(
        session_config("director"),
        Arc::new(Anybody),
        Arc::new(Idle),
    )?;
    acceptor.listen(&address, &LinkOptions::default())?;
    let LinkAddress::Unix(path) = &address else {
        bail!("no Unix socket")
    };
    // As after a restart of the director: all at once.
    let started = Instant::now();
    let mut hosts = Vec::new();
    for number in 0..HOSTS {
        let mut host = RawPeer::new(RawStream::Unix(connect(path)?));
        host.control(DeviceId(0), &RawPeer::hello(&format!("host{number}")));
        hosts.push(host);
    }
    for host in &mut hosts {
        host.welcomed()?;
    }
    for (number, host) in (0..).zip(&mut hosts) {
        for device in 0..DEVICES_EACH {
            host.request(number * DEVICES_EACH + device, 0, WINDOWS);
        }
    }
    for host in &mut hosts {
        for _ in 0..DEVICES_EACH {
            host.expect(FrameKind::Attached)?;
        }
    }
    let settled = started.elapsed();
    let resident = resident_kib()?.saturating_sub(before) as f64;
    drop(hosts);
    drop(acceptor);
    Ok(vec![
        Figure {
            bench: "fabric",
            case: format!("{HOSTS} hosts x {DEVICES_EACH} devices attach after a restart"),
            value: settled.as_secs_f64(),
            unit: "s",
            reference: 5.0,
            goal: (0.0, 1.0),
        },
        Figure {
            bench: "fabric",
            case: format!("memory of an idle session with {DEVICES_EACH} devices"),
            value: resident / f64::from(HOSTS),
            unit: "KiB",
            // A stack that is used, the calendars of a scheduler, tables and a receive buffer.
            reference: 256.0,
            goal: (0.0, 1.0),
        },
    ])
}

/// A full backlog is no refusal: whoever listens takes one after the other.
fn connect(path: &std::path::Path) -> Result<UnixStream> {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > end => {
                return Err(error).context("director is not there");
            }
            Err(_full) => std::thread::yield_now(),
        }
    }
}

fn resident_kib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(number.context("no VmRSS")?.parse()?)
}

struct Anybody;

impl Admission for Anybody {
    fn admit(&self, _: &str) -> Result<LinkBudget, String> {
        let rate = "10G".parse().map_err(|_rate| "no rate".to_owned())?;
        Ok(LinkBudget::new("bench downlink", rate))
    }
}

struct Idle;

impl Directory for Idle {
    fn attach(&self, _: &str, _: DeviceId, _: u32) -> Result<DeviceGrant, String> {
        Ok(DeviceGrant {
            rate: DeviceRate::best_effort(),
            vm: None,
            windows: WINDOWS,
            client: Arc::new(Deaf),
        })
    }
}

struct Deaf;

impl LaneClient for Deaf {
    fn up(&self, _: LaneSet) {}
    fn receive(&self, _: VirtualLane, _: &[u8]) -> Receipt {
        Receipt::Consumed
    }
    fn writable(&self) {}
    fn down(&self, _: u16) {}
}

//! A guest that takes no frames, and a LUN that answers after 5 s, beside devices that go on: the
//! others' throughput before and during, through the real director and host agent over TCP. The
//! guests are vhost-user front ends in Rust: emulated ones would be measured instead.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use orimono_tests::devices::net::{NetGuest, frame};
use orimono_tests::devices::scsi::{Request, ScsiGuest, transfer};
use orimono_tests::lab::Lab;

use super::Figure;
use crate::test::build_programs;

const WINDOW: Duration = Duration::from_millis(500);
/// Windows before and during, in turns where the cause can be switched on and off.
const WINDOWS: usize = 6;
const GOAL: (f64, f64) = (0.9, f64::INFINITY);
/// Commands that wait for the slow LUN; more would be answered TASK SET FULL.
const SLOW_COMMANDS: usize = 24;
const BLOCKS: u16 = 8;
const LUN_0: [u8; 8] = [1, 0, 0x40, 0, 0, 0, 0, 0];

const LAB: &str = r#"
[director]
name = "director1"
listen = ["tcp:127.0.0.1:7471"]
[[ethernet-port]]
port = "10/1"
tap = "orimono0"
[[lun]]
name = "fast"
port = "12/1"
file = "@DIR@/fast"
[[lun]]
name = "slow"
port = "12/1"
file = "@DIR@/slow"
delay-ms = 5000
[[host]]
name = "host1"
director = ["tcp:127.0.0.1:7471"]
run-dir = "@DIR@/host1"
rate = "10G"
[[host.vm]]
name = "vm"
[[host.vm.vnic]]
name = "flood"
id = 1
port = "10/1"
mac = "02:15:97:00:00:01"
ingress = { pir = "50M" }
[[host.vm.vnic]]
name = "slow"
id = 2
port = "10/1"
mac = "02:15:97:00:00:02"
[[host.vm.vnic]]
name = "one"
id = 3
port = "10/1"
mac = "02:15:97:00:00:03"
[[host.vm.vnic]]
name = "two"
id = 4
port = "10/1"
mac = "02:15:97:00:00:04"
[[host.vm.vhba]]
name = "quick"
id = 11
port = "12/1"
luns = [ { lun = 0, name = "fast" } ]
[[host.vm.vhba]]
name = "late"
id = 12
port = "12/1"
luns = [ { lun = 0, name = "slow" } ]
"#;

pub(super) fn measure() -> Result<Vec<Figure>> {
    build_programs()?;
    let lab = Lab::start(LAB)?;
    let mut others = Others::connect(&lab)?;
    others.work(WINDOW)?;
    let mut figures = Vec::new();
    let by_guest = beside_a_guest_without_buffers(&lab, &mut others)?;
    let by_lun = beside_a_slow_lun(&lab, &mut others)?;
    for (cause, [before, during]) in [("no RX buffers", by_guest), ("LUN 5 s late", by_lun)] {
        for (index, what) in ["round trips", "4 KiB reads"].into_iter().enumerate() {
            figures.push(Figure {
                bench: "slow-consumer",
                case: format!("{what}, {cause}"),
                value: median(&during, index),
                unit: "1/s",
                reference: median(&before, index),
                goal: GOAL,
            });
        }
    }
    Ok(figures)
}

/// Round trips and reads a second of one window.
type Rates = [f64; 2];

fn median(rates: &[Rates], index: usize) -> f64 {
    let mut values: Vec<f64> = rates
        .iter()
        .filter_map(|rates| rates.get(index).copied())
        .collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

fn socket(lab: &Lab, device: &str) -> PathBuf {
    lab.folder().join("host1").join(format!("{device}.vm.sock"))
}

fn mac(vnic: u8) -> [u8; 6] {
    [2, 0x15, 0x97, 0, 0, vnic]
}

/// The devices that must not notice anything.
struct Others {
    one: NetGuest,
    two: NetGuest,
    disk: ScsiGuest,
}

impl Others {
    fn connect(lab: &Lab) -> Result<Self> {
        let mut one = NetGuest::connect(&socket(lab, "one"), 1)?;
        one.post(0, 64)?;
        let mut two = NetGuest::connect(&socket(lab, "two"), 1)?;
        two.post(0, 64)?;
        let mut disk = ScsiGuest::connect(&socket(lab, "quick"), 1)?;
        // Unit attentions of a new initiator come first.
        for _ in 0..8 {
            disk.submit(
                0,
                &Request {
                    lun: LUN_0,
                    ..Request::new(&[0; 6])
                },
            )?;
            if disk.wait(0)?.status == 0 {
                return Ok(Self { one, two, disk });
            }
        }
        anyhow::bail!("the disk does not become ready")
    }

    /// Both kinds of work at once, for `span`.
    fn work(&mut self, span: Duration) -> Result<Rates> {
        let Self { one, two, disk } = self;
        std::thread::scope(|scope| {
            let reads = scope.spawn(move || {
                rate(span, |count| {
                    let lba = u32::try_from(count % 1024)?;
                    let cdb = transfer(false, lba, BLOCKS);
                    let read = Request {
                        data_in_bytes: u32::from(BLOCKS) * 512,
                        ..Request::new(&cdb)
                    };
                    disk.submit(0, &read)?;
                    ensure!(disk.wait(0)?.status == 0, "a read failed");
                    Ok(())
                })
            });
            let trips = rate(span, |count| {
                let number = u32::try_from(count)?;
                carry(one, two, &frame(mac(4), mac(3), number, 200))?;
                carry(two, one, &frame(mac(3), mac(4), number, 200))
            });
            let reads = reads
                .join()
                .unwrap_or_else(|_panic| anyhow::bail!("reader panicked"));
            Ok([trips?, reads?])
        })
    }
}

fn carry(from: &mut NetGuest, to: &mut NetGuest, sent: &[u8]) -> Result<()> {
    from.send(0, sent)?;
    loop {
        let received = to.receive(0)?;
        to.post(0, 1)?;
        // The interface's own multicasts arrive too.
        if received.frame == sent {
            return Ok(());
        }
    }
}

/// How often a second `work` is done.
fn rate(span: Duration, mut work: impl FnMut(usize) -> Result<()>) -> Result<f64> {
    let started = Instant::now();
    let mut count = 0;
    while started.elapsed() < span {
        work(count)?;
        count += 1;
    }
    Ok(count as f64 / started.elapsed().as_secs_f64())
}

/// The same flood all the time; in every other window its receiver takes nothing.
fn beside_a_guest_without_buffers(lab: &Lab, others: &mut Others) -> Result<[Vec<Rates>; 2]> {
    const BUFFERS: usize = 128;
    let mut slow = NetGuest::connect(&socket(lab, "slow"), 1)?;
    slow.post(0, BUFFERS)?;
    let mut flood = NetGuest::connect(&socket(lab, "flood"), 1)?;
    let floods = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let flooding = scope.spawn(|| -> Result<()> {
            let sent = frame(mac(2), mac(1), 1, 1500);
            while floods.load(Ordering::Acquire) {
                flood.send(0, &sent)?;
                // The device takes them at its peak rate: this waits for it.
                while flood.unsent(0) > 128 {
                    flood.wait_sent(0)?;
                }
            }
            Ok(())
        });
        let mut measured = [Vec::new(), Vec::new()];
        for _ in 0..WINDOWS {
            let takes = AtomicBool::new(true);
            let before = std::thread::scope(|scope| -> Result<Rates> {
                let taker = scope.spawn(|| -> Result<()> {
                    while takes.load(Ordering::Acquire) {
                        slow.receive(0)?;
                        slow.post(0, 1)?;
                    }
                    Ok(())
                });
                let rates = others.work(WINDOW);
                takes.store(false, Ordering::Release);
                taker
                    .join()
                    .unwrap_or_else(|_panic| anyhow::bail!("taker panicked"))?;
                rates
            })?;
            let [takings, stops] = &mut measured;
            takings.push(before);
            stops.push(others.work(WINDOW)?);
        }
        floods.store(false, Ordering::Release);
        flooding
            .join()
            .unwrap_or_else(|_panic| anyhow::bail!("flood panicked"))?;
        Ok(measured)
    })
}

/// Windows before, then windows while the slow LUN's queue is full and nothing has come back.
fn beside_a_slow_lun(lab: &Lab, others: &mut Others) -> Result<[Vec<Rates>; 2]> {
    let mut slow = ScsiGuest::connect(&socket(lab, "late"), 1)?;
    let measure = |others: &mut Others| {
        (0..WINDOWS)
            .map(|_| others.work(WINDOW))
            .collect::<Result<Vec<_>>>()
    };
    let before = measure(others)?;
    for _ in 0..SLOW_COMMANDS {
        // INQUIRY: no unit attention stands in its way.
        let inquiry = [0x12, 0, 0, 0, 36, 0];
        slow.submit(
            0,
            &Request {
                lun: LUN_0,
                data_in_bytes: 36,
                ..Request::new(&inquiry)
            },
        )?;
    }
    let during = measure(others)?;
    ensure!(
        slow.poll(0)?.is_none(),
        "the slow LUN answered before the measurement was over"
    );
    Ok([before, during])
}

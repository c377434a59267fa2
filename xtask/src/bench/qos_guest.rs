//! Reservations as guests have them: fio reads from a vHBA in one stock guest while a datagram flood
//! fills the vNIC of another, over one link through the real host agent and director.
//!
//! Both have a reservation and are greedy; the flood's weight leaves it all that nobody reserved. Who
//! got how much is read from the director's own counters, as an operator would (`orimono-qos devices
//! --for`); that they are the guest's bytes is held against what fio counted. The guests are emulated:
//! the link is slow enough that they can fill it.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fabric_transport::frame::HEADER_BYTES;
use orimono_qemu::{GuestImage, image};
use orimono_tests::lab::{self, Lab, program};
use serde_json::Value;

use super::Figure;
use super::real_time::RealTime;
use crate::test::build_programs;
use crate::{say, setup};

const LINK_MEGABITS: f64 = 100.0;
const DISK_MEGABITS: f64 = 40.0;
/// What is left of the link, reserved or not.
const FLOOD_MEGABITS: f64 = LINK_MEGABITS - DISK_MEGABITS;
const DEVICES: [(&str, f64); 2] = [("disk.vm1", DISK_MEGABITS), ("flood.vm2", FLOOD_MEGABITS)];
/// Length and number of windows, and the error that is allowed in percent of the rate.
const WINDOWS: [(&str, usize, f64); 2] = [("1s", 9, 0.5), ("100ms", 40, 2.0)];
/// How long both may take until both get something.
const BEGINNING_MAX: Duration = Duration::from_secs(20);
const READ_BYTES: usize = 64 * 1024;

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
rate = "100M"
[[host.vm]]
name = "vm1"
[[host.vm.vhba]]
name = "disk"
id = 11
port = "12/1"
luns = [ { lun = 0, name = "lun" } ]
egress = { cir = "40M", weight = 1 }
[[host.vm]]
name = "vm2"
[[host.vm.vnic]]
name = "flood"
id = 1
port = "10/1"
mac = "02:15:97:00:00:01"
egress = { cir = "50M", weight = 1000 }
"#;

pub(super) fn measure() -> Result<Vec<Figure>> {
    setup::ensure_packages()?;
    GuestImage::ensure_telling(&image::default_cache(), &mut say)?;
    build_programs()?;
    // Director and host agent run before the guests, which are emulated, and get them all.
    let real_time = RealTime::start()?;
    let lab = Lab::start(LAB)?;
    drop(real_time);
    lab.namespace.ip("addr add 10.1.0.1/24 dev orimono0")?;
    let (vm1, vm2) = (lab.boot("vm1")?, lab.boot("vm2")?);
    lab::address(&vm2, 0, "10.1.0.11/24")?;
    let server = lab.serve(
        "iperf3",
        &["-s", "--forceflush", "--logfile", "/dev/stderr"],
    )?;
    server.wait_line("Server listening", 1, lab::PATIENCE)?;
    let flood = vm2.spawn("iperf3 -c 10.1.0.1 -u -R -b 120M -l 1400 -t 40")?;
    let disk = lab::disk(&vm1, "lun")?;
    let fio = format!(
        "fio --name=read --filename=/dev/{disk} --rw=read --bs=64k --direct=1 --ioengine=libaio \
         --iodepth=16 --time_based --ramp_time=3 --runtime=25 --output-format=json"
    );
    let reads = vm1.spawn(&fio)?;
    // Both have begun when both get something.
    let started = Instant::now();
    while window(&lab, "500ms")?.len() < DEVICES.len() {
        ensure!(
            started.elapsed() < BEGINNING_MAX,
            "fio and iperf3 do not both use the link"
        );
    }
    let mut figures = Vec::new();
    for (length, count, goal_percent) in WINDOWS {
        figures.extend(errors(&lab, length, count, goal_percent)?);
    }
    let report = lab::succeeded(&fio, &vm1.wait(reads, lab::PATIENCE)?)?;
    figures.push(counted_by_fio(&report)?);
    vm2.wait(flood, lab::PATIENCE)?;
    Ok(figures)
}

/// Mb/s that each device got from the director in the next window, if it got anything.
fn window(lab: &Lab, length: &str) -> Result<BTreeMap<String, f64>> {
    let socket = lab.control("director");
    let output = Command::new(program("orimono-qos")?)
        .arg("--socket")
        .arg(&socket)
        .args(["--json", "devices", "--for", length])
        .output()
        .context("cannot run orimono-qos")?;
    ensure!(
        output.status.success(),
        "orimono-qos: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    let number = |row: &Value, name: &str| row.get(name).and_then(Value::as_f64);
    let rates = rows.iter().filter_map(|row| {
        let hop = row.get("hop").and_then(Value::as_str)?;
        let device = row.get("device").and_then(Value::as_str)?;
        let bytes = number(row, "achieved_bytes").filter(|bytes| *bytes > 0.0)?;
        let nanos = number(row, "nanos").filter(|nanos| *nanos > 0.0)?;
        hop.contains("downlink")
            .then(|| (device.to_owned(), bytes * 8e3 / nanos))
    });
    Ok(rates.collect())
}

/// The error of each device over windows of `length`: the 99th percentile, which is the worst of so
/// few. A window counts if the link carried its rate within the error that is allowed; half must.
fn errors(lab: &Lab, length: &str, count: usize, goal_percent: f64) -> Result<Vec<Figure>> {
    let mut errors: [Vec<f64>; 2] = Default::default();
    for _ in 0..count {
        let rates = window(lab, length)?;
        let total: f64 = rates.values().sum();
        if (total - LINK_MEGABITS).abs() * 100.0 > goal_percent * LINK_MEGABITS {
            continue;
        }
        for ((device, megabits), errors) in DEVICES.iter().zip(&mut errors) {
            let rate = rates.get(*device).copied().unwrap_or(0.0);
            errors.push((rate - megabits).abs() * 100.0 / megabits);
        }
    }
    let mut figures = Vec::new();
    for ((device, _), mut errors) in DEVICES.into_iter().zip(errors) {
        ensure!(
            2 * errors.len() >= count,
            "the link was full in {} of {count} windows of {length}",
            errors.len()
        );
        errors.sort_by(f64::total_cmp);
        let counted = errors.len();
        let median = errors.get(counted / 2).copied().unwrap_or(f64::NAN);
        say(&format!(
            "{device} over {length}: {counted} of {count} windows count, median error {median:.2} %"
        ));
        figures.push(Figure {
            bench: "qos-guest",
            case: format!("{device}, error over {length}"),
            value: errors.last().copied().unwrap_or(f64::NAN),
            unit: "%",
            reference: goal_percent,
            goal: (0.0, 1.0),
        });
    }
    Ok(figures)
}

/// What fio read, with what the link charges for it beside the data.
fn counted_by_fio(report: &str) -> Result<Figure> {
    let json = report.get(report.find('{').unwrap_or(0)..);
    let report: Value = serde_json::from_str(json.unwrap_or_default())?;
    let bytes_a_second = report
        .pointer("/jobs/0/read/bw_bytes")
        .and_then(Value::as_f64);
    let megabits = bytes_a_second.context("fio reports no rate")? * 8.0 / 1e6;
    let pieces = (READ_BYTES + 16).div_ceil(4096 - HEADER_BYTES);
    let charged = READ_BYTES + 16 + pieces * HEADER_BYTES + 16 + HEADER_BYTES;
    Ok(Figure {
        bench: "qos-guest",
        case: "fio beside the flood, of CIR".into(),
        value: megabits * charged as f64 / READ_BYTES as f64,
        unit: "Mb/s",
        reference: DISK_MEGABITS,
        goal: (0.98, 1.02),
    })
}

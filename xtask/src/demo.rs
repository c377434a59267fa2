//! `cargo xtask demo`: the whole path, seen from two guests.
//!
//! An I/O director and a host agent in processes of their own, joined by one TCP link (or in one
//! process with `--embedded`); two stock guests with two vNICs and two vHBAs each; ping, iperf3
//! and fio with verification; and one device that keeps its reservation while another floods.

use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use orimono_qemu::{AcceleratorChoice, Guest, GuestImage, image};
use orimono_tests::lab::{self, Lab, Process};
use serde_json::Value;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::test::build_programs;
use crate::{say, setup};

/// Shows two guests at work over the fabric; everything it starts is gone afterwards.
#[derive(Debug, clap::Args)]
pub(crate) struct Demo {
    /// The host agent runs the director in its own process: no TCP link
    #[arg(long)]
    embedded: bool,
    /// Leaves the lab up until Ctrl-C and prints how to enter it
    #[arg(long)]
    keep: bool,
    /// What runs the guests' instructions: auto, kvm or tcg
    #[arg(long, default_value = "auto")]
    accel: AcceleratorChoice,
}

/// Rate of the fabric link, low enough that emulated guests can fill it.
const LINK: &str = "200M";
/// What the vNIC `vn02.vm1` is promised while `vn01.vm2` floods.
const RESERVED_MEGABITS: f64 = 60.0;
/// What it gets at most. Above the promise: an emulated guest on a busy machine pauses for longer
/// than a burst allows to make up for.
const PEAK_MEGABITS: f64 = 100.0;
/// Bytes that fio writes and verifies on each disk.
const FIO_BYTES: &str = "8m";
const VMS: [&str; 2] = ["vm1", "vm2"];

/// The lab file: `@DIR@` is the lab's folder.
fn lab_file(embedded: bool) -> String {
    let (listen, uplink) = if embedded {
        ("[]", "embedded = true")
    } else {
        (
            r#"["tcp:127.0.0.1:7471"]"#,
            r#"director = ["tcp:127.0.0.1:7471"]"#,
        )
    };
    let mut text = format!(
        r#"[director]
name = "director1"
listen = {listen}

[[ethernet-port]]
port = "10/1"
tap = "orimono0"
[[ethernet-port]]
port = "10/2"
tap = "orimono1"
offloads = false
"#
    );
    for vm in [1, 2] {
        for lun in ["a", "b"] {
            text += &format!(
                "[[lun]]\nname = \"lun{vm}{lun}\"\nport = \"12/1\"\nfile = \"@DIR@/lun{vm}{lun}.img\"\n"
            );
        }
    }
    text += &format!(
        "\n[[host]]\nname = \"host1\"\n{uplink}\nrun-dir = \"@DIR@/host1\"\nrate = \"{LINK}\"\n"
    );
    for vm in [1, 2] {
        let reserved = if vm == 1 {
            format!("ingress = {{ cir = \"{RESERVED_MEGABITS}M\", pir = \"{PEAK_MEGABITS}M\" }}\n")
        } else {
            String::new()
        };
        text += &format!(
            r#"
[[host.vm]]
name = "vm{vm}"
[[host.vm.vnic]]
name = "vn01"
id = {vm}01
port = "10/1"
mac = "02:15:97:00:0{vm}:01"
[[host.vm.vnic]]
name = "vn02"
id = {vm}02
port = "10/2"
mac = "02:15:97:00:0{vm}:02"
{reserved}[[host.vm.vhba]]
name = "vh01"
id = {vm}11
port = "12/1"
luns = [ {{ lun = 0, name = "lun{vm}a" }} ]
[[host.vm.vhba]]
name = "vh02"
id = {vm}12
port = "12/1"
luns = [ {{ lun = 0, name = "lun{vm}b" }} ]
"#
        );
    }
    text
}

pub(crate) fn run(demo: &Demo) -> Result<ExitCode> {
    let started = Instant::now();
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the demo makes network namespaces and TAP devices: run it as root"
    );
    ensure!(
        Path::new("/dev/net/tun").exists(),
        "/dev/net/tun is missing: the kernel has no TAP devices, load its module tun"
    );
    setup::ensure_packages()?;
    GuestImage::ensure_telling(&image::default_cache(), &mut say)?;
    build_programs()?;
    let built = Instant::now();
    say("starting I/O director and host agent");
    let mut lab = Lab::start(&lab_file(demo.embedded))?;
    lab.set_accelerator(demo.accel);
    prepare_ports(&lab)?;
    let where_ = if demo.embedded {
        "in-process"
    } else {
        "TCP 127.0.0.1:7471"
    };
    say(&format!(
        "fabric link up ({where_}, {LINK}b/s), ports 10/1 = orimono0, 10/2 = orimono1"
    ));
    say("booting two guests, each with two vNICs and two vHBAs");
    let guests = boot(&lab)?;
    let mut table = Vec::new();
    ping(&guests, &mut table)?;
    let _servers = servers(&lab)?;
    throughput(&guests, &mut table)?;
    disks(&guests, &mut table)?;
    reservation(&guests, &mut table)?;
    report(&table);
    let missed = table.iter().any(|[_, _, verdict]| verdict == "MISSED");
    say(&format!(
        "done in {:.0} s (after {:.0} s of preparing and building)",
        built.elapsed().as_secs_f64(),
        (built - started).as_secs_f64()
    ));
    if demo.keep {
        keep(&lab, &guests)?;
    }
    Ok(if missed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn prepare_ports(lab: &Lab) -> Result<()> {
    lab.namespace.ip("addr add 10.1.0.1/24 dev orimono0")?;
    lab.namespace.ip("addr add 10.2.0.1/24 dev orimono1")?;
    Ok(())
}

fn boot(lab: &Lab) -> Result<Vec<Guest>> {
    let boots = std::thread::scope(|scope| {
        let boots = VMS.map(|vm| scope.spawn(move || lab.boot(vm)));
        boots.map(|boot| {
            boot.join()
                .unwrap_or_else(|_panic| bail!("boot thread panicked"))
        })
    });
    let guests = boots.into_iter().collect::<Result<Vec<_>>>()?;
    for (guest, number) in guests.iter().zip(1..) {
        lab::address(guest, 0, &format!("10.1.0.{}/24", 10 + number))?;
        lab::address(guest, 1, &format!("10.2.0.{}/24", 10 + number))?;
    }
    Ok(guests)
}

/// What a lab that is kept waits for.
enum Event {
    Line(String),
    End,
}

/// A line of the closing table.
type Row = [String; 3];

fn row(what: &str, figure: String, verdict: &str) -> Row {
    [what.to_owned(), figure, verdict.to_owned()]
}

fn ping(guests: &[Guest], table: &mut Vec<Row>) -> Result<()> {
    say("ping: between the guests and to both ports");
    for (guest, number) in guests.iter().zip(1..) {
        for target in ["10.1.0.1", "10.2.0.1", &format!("10.1.0.{}", 13 - number)] {
            let output = lab::run(guest, &format!("ping -c 3 -i 0.2 -w 20 {target}"))?;
            let times = output
                .lines()
                .find_map(|line| line.split_once("min/avg/max = "));
            let times = times.map_or("answered", |(_, times)| times);
            table.push(row(
                &format!("ping vm{number} -> {target}"),
                times.to_owned(),
                "ok",
            ));
        }
    }
    Ok(())
}

fn servers(lab: &Lab) -> Result<Vec<Process>> {
    ["5201", "5202"]
        .iter()
        .map(|port| {
            let server = lab.serve(
                "iperf3",
                &["-s", "--forceflush", "-p", port, "--logfile", "/dev/stderr"],
            )?;
            server.wait_line("Server listening", 1, lab::PATIENCE)?;
            Ok(server)
        })
        .collect()
}

/// Mb/s that the receiver of an iperf3 run counted.
fn received_megabits(report: &str) -> Result<f64> {
    let report: Value = serde_json::from_str(report).context("iperf3 printed no report")?;
    let bits = report
        .pointer("/end/sum_received/bits_per_second")
        .and_then(Value::as_f64);
    Ok(bits.with_context(|| format!("iperf3 measured nothing: {report}"))? / 1e6)
}

fn throughput(guests: &[Guest], table: &mut Vec<Row>) -> Result<()> {
    let [vm1, vm2] = guests else {
        bail!("two guests")
    };
    say("iperf3: guest to port, port to guest, guest to guest");
    for (what, options) in [("vm1 -> port 10/1", ""), ("port 10/1 -> vm1", "-R")] {
        let report = lab::run(vm1, &format!("iperf3 -c 10.1.0.1 -t 3 -J {options}"))?;
        table.push(row(
            &format!("iperf3 {what}"),
            format!("{:.0} Mb/s", received_megabits(&report)?),
            "ok",
        ));
    }
    lab::run(
        vm2,
        "iperf3 -s -D -p 5203 && for i in 1 2 3 4 5 6 7 8 9; do \
        grep -q ':1453 ' /proc/net/tcp /proc/net/tcp6 && break; sleep 0.2; done",
    )?;
    let report = lab::run(vm1, "iperf3 -c 10.1.0.12 -p 5203 -t 3 -J")?;
    table.push(row(
        "iperf3 vm1 -> vm2",
        format!("{:.0} Mb/s", received_megabits(&report)?),
        "ok",
    ));
    Ok(())
}

fn disks(guests: &[Guest], table: &mut Vec<Row>) -> Result<()> {
    say("fio with verification on all four vHBAs at once");
    let mut running = Vec::new();
    for (guest, number) in guests.iter().zip(1..) {
        for lun in ["a", "b"] {
            let serial = format!("lun{number}{lun}");
            let disk = lab::disk(guest, &serial)?;
            let command = format!(
                "fio --name=verify --filename=/dev/{disk} --rw=randrw --bsrange=4k-64k --size={FIO_BYTES} \
                 --direct=1 --ioengine=libaio --iodepth=8 --verify=crc32c --verify_fatal=1 --output-format=json"
            );
            running.push((guest, serial, guest.spawn(&command)?, command));
        }
    }
    for (guest, serial, id, command) in running {
        let output = lab::succeeded(&command, &guest.wait(id, Duration::from_secs(100))?)?;
        let report: Value = serde_json::from_str(
            output
                .get(output.find('{').unwrap_or(0)..)
                .unwrap_or_default(),
        )
        .context("fio printed no report")?;
        let job = report.pointer("/jobs/0").context("fio reports no job")?;
        let figure = |pointer: &str| job.pointer(pointer).and_then(Value::as_f64).unwrap_or(0.0);
        ensure!(figure("/error") == 0.0, "fio found errors on {serial}");
        let commands = figure("/read/total_ios") + figure("/write/total_ios");
        table.push(row(
            &format!("fio verify {serial}"),
            format!("{commands:.0} commands"),
            "clean",
        ));
    }
    Ok(())
}

/// A reserved device and a greedy one share the link.
fn reservation(guests: &[Guest], table: &mut Vec<Row>) -> Result<()> {
    let [vm1, vm2] = guests else {
        bail!("two guests")
    };
    say(&format!(
        "vn02.vm1 holds its {RESERVED_MEGABITS} Mb/s while vn01.vm2 floods the {LINK}b/s link"
    ));
    let flood = vm2.spawn("iperf3 -c 10.1.0.1 -p 5201 -P 4 -t 12 -J")?;
    let reserved = vm1.spawn("iperf3 -c 10.2.0.1 -p 5202 -P 2 -O 2 -t 6 -J")?;
    let report = lab::succeeded("iperf3", &vm1.wait(reserved, lab::PATIENCE)?)?;
    let held = received_megabits(&report)?;
    let report = lab::succeeded("iperf3", &vm2.wait(flood, lab::PATIENCE)?)?;
    let flooded = received_megabits(&report)?;
    // TCP payload: 1,448 of the 1,558 bytes that a full frame is charged with on the fabric.
    let payload = |megabits: f64| megabits * 1448.0 / 1558.0;
    let (promised, peak) = (payload(RESERVED_MEGABITS), payload(PEAK_MEGABITS));
    let kept = (0.95 * promised..=1.05 * peak).contains(&held);
    let verdict = if kept { "held" } else { "MISSED" };
    table.push(row(
        "reserved vn02.vm1",
        format!("{held:.0} Mb/s, {promised:.0} promised, {peak:.0} at most"),
        verdict,
    ));
    table.push(row(
        "flooding vn01.vm2",
        format!("{flooded:.0} Mb/s"),
        "the rest",
    ));
    Ok(())
}

fn report(table: &[Row]) {
    let width = |column: usize| {
        table
            .iter()
            .filter_map(|row| row.get(column))
            .map(String::len)
            .max()
            .unwrap_or(0)
    };
    let (first, second) = (width(0), width(1));
    for [what, figure, verdict] in table {
        say(&format!("  {what:<first$}  {figure:>second$}  {verdict}"));
    }
}

fn keep(lab: &Lab, guests: &[Guest]) -> Result<()> {
    let pid = lab
        .agents
        .iter()
        .flatten()
        .next()
        .map(Process::pid)
        .context("no host agent runs")?;
    say(&format!(
        "the lab stays up; its files are in {}",
        lab.folder().display()
    ));
    say(&format!("  its network:   nsenter --target {pid} --net"));
    for (guest, vm) in guests.iter().zip(VMS) {
        say(&format!(
            "  {vm}: QEMU {}, console log {}",
            guest.qemu_pid(),
            guest.folder().join("serial.log").display()
        ));
    }
    say("type `vm1 COMMAND` or `vm2 COMMAND` to run it in a guest; press Ctrl-C to end the lab");
    let (sender, events) = mpsc::channel();
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("signals cannot be taken")?;
    let signalled = sender.clone();
    std::thread::spawn(move || {
        signals.forever().next();
        // Nobody listens any more if the lab is ending already.
        drop(signalled.send(Event::End));
    });
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.send(Event::Line(line)).is_err() {
                return;
            }
        }
    });
    while let Ok(Event::Line(line)) = events.recv() {
        let Some((vm, command)) = line.trim().split_once(' ') else {
            continue;
        };
        match VMS
            .iter()
            .position(|known| *known == vm)
            .and_then(|index| guests.get(index))
        {
            Some(guest) => match guest.run(command, lab::PATIENCE) {
                Ok(output) => say(&(output.stdout_text() + &output.stderr_text())),
                Err(error) => say(&format!("{vm}: {error}")),
            },
            None => say(&format!("{vm} is no guest of this lab: vm1, vm2")),
        }
    }
    Ok(())
}

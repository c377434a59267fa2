//! `cargo xtask bench`: figures as ratios to a reference that is measured, or promised, in the
//! same run.

mod controller;
mod fabric;
mod lanes;
mod qos;
mod qos_guest;
mod qos_link;
mod qos_storage;
mod real_time;
mod slow_consumer;
mod vhba;
mod vnic;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::json;

use crate::check::root;

/// Prints figures; exit code 1 if one misses its goal.
#[derive(Debug, clap::Args)]
pub(crate) struct Bench {
    /// What to measure; everything when nothing is named
    #[arg(value_enum)]
    benches: Vec<Name>,
    /// One JSON object a line: bench, case, value, unit, reference, ratio, goal, ok
    #[arg(long)]
    json: bool,
    /// Set by the task itself once it runs optimised
    #[arg(long, hide = true)]
    optimised: bool,
    #[command(flatten)]
    far_end: Option<qos_link::FarEnd>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Name {
    /// Everything about bandwidth: the four that follow
    Qos,
    /// What the scheduler promises, in virtual time, and what it costs
    QosScheduler,
    /// A 1 Gb/s link between two processes, every device greedy: reservations and shares, next to
    /// Linux HTB
    QosLink,
    /// A vHBA with a reservation beside a vNIC that floods the link, through host agent and director
    QosStorage,
    /// The same in stock guests: fio on a vHBA beside a vNIC that is flooded
    QosGuest,
    /// A guest without receive buffers and a LUN that answers after 5 s: what the others notice
    SlowConsumer,
    /// Everything about lanes, links and sessions: the three that follow
    Fabric,
    /// Frames a second and their processor time on every kind of link, next to the bare links
    FabricThroughput,
    /// Round trips, and a reader beside a flood
    FabricLatency,
    /// Thousands of devices and hosts at one director
    FabricScale,
    /// Links that close and fall silent under a guest at work: how long nothing gets through
    Failover,
    /// Commands of a vHBA from ring to logical unit and back, next to vhost-device-scsi, pread and
    /// io_uring
    Vhba,
    /// Frames of a vNIC to and from a TAP and another vNIC, next to a bare TAP and memcpy
    Vnic,
    /// A controller with 120 and 1,000 simulated hosts: until all is up, memory, answers
    Controller,
}

impl Name {
    /// What it measures, in this order.
    fn parts(self) -> &'static [fn() -> Result<Vec<Figure>>] {
        match self {
            Self::Qos => &[
                qos::measure,
                qos_link::measure,
                fabric::record,
                qos_storage::measure,
                qos_guest::measure,
            ],
            Self::QosScheduler => &[qos::measure],
            Self::QosLink => &[qos_link::measure, fabric::record],
            Self::QosStorage => &[qos_storage::measure],
            Self::QosGuest => &[qos_guest::measure],
            Self::SlowConsumer => &[slow_consumer::measure],
            Self::Fabric => &[
                fabric::lanes,
                fabric::beside_iperf,
                fabric::shared_memory,
                fabric::tls,
                fabric::many_devices,
                fabric::cost_of_a_frame,
                fabric::latency,
                fabric::scale,
            ],
            Self::FabricThroughput => &[
                fabric::lanes,
                fabric::beside_iperf,
                fabric::shared_memory,
                fabric::tls,
                fabric::many_devices,
                fabric::cost_of_a_frame,
            ],
            Self::FabricLatency => &[fabric::latency],
            Self::FabricScale => &[fabric::scale],
            Self::Failover => &[fabric::failover],
            Self::Vhba => &[vhba::measure],
            Self::Vnic => &[vnic::measure],
            Self::Controller => &[controller::measure],
        }
    }
}

/// One measured figure.
#[derive(Debug)]
pub(crate) struct Figure {
    bench: &'static str,
    case: String,
    value: f64,
    unit: &'static str,
    /// What `value` is held against, in the same unit.
    reference: f64,
    /// The range that `value / reference` must lie in; from 0.0 on it is an upper bound, up to
    /// infinity a lower one.
    goal: (f64, f64),
}

impl Figure {
    fn ratio(&self) -> f64 {
        self.value / self.reference
    }

    fn ok(&self) -> bool {
        (self.goal.0..=self.goal.1).contains(&self.ratio())
    }

    fn goal_text(&self) -> String {
        let (low, high) = self.goal;
        if high.is_infinite() {
            format!(">={low}")
        } else if low == 0.0 {
            format!("<={high}")
        } else {
            format!("{low}..{high}")
        }
    }
}

pub(crate) fn run(bench: &Bench) -> Result<ExitCode> {
    if let Some(far_end) = bench.far_end {
        return far_end.serve();
    }
    if !bench.optimised {
        return run_optimised(bench);
    }
    let all = [
        Name::Qos,
        Name::SlowConsumer,
        Name::Fabric,
        Name::Failover,
        Name::Vhba,
        Name::Vnic,
        Name::Controller,
    ];
    let benches = if bench.benches.is_empty() {
        all.to_vec()
    } else {
        bench.benches.clone()
    };
    let mut ok = true;
    let mut out = std::io::stdout().lock();
    for measure in benches.iter().flat_map(|name| name.parts()) {
        for figure in measure()? {
            ok &= figure.ok();
            let (ratio, goal) = (figure.ratio(), figure.goal_text());
            if bench.json {
                let object = json!({
                    "bench": figure.bench, "case": figure.case, "value": figure.value, "unit": figure.unit,
                    "reference": figure.reference, "ratio": ratio, "goal": goal, "ok": figure.ok(),
                });
                writeln!(out, "{object}")?;
            } else {
                let Figure {
                    bench,
                    case,
                    value,
                    unit,
                    reference,
                    ..
                } = &figure;
                let verdict = if figure.ok() { "ok" } else { "MISSED" };
                writeln!(
                    out,
                    "{bench:<13} {case:<44} {value:>10.2} of {reference:>10.2} {unit:<6} ratio {ratio:>6.3} goal {goal:<12} {verdict}"
                )?;
            }
        }
    }
    Ok(if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Chores are built fast, figures come from optimised code: builds and runs this task again.
fn run_optimised(bench: &Bench) -> Result<ExitCode> {
    let mut command = crate::cargo();
    command.current_dir(root()?);
    command.args([
        "run",
        "--quiet",
        "--release",
        "--locked",
        "--package",
        "xtask",
        "--",
        "bench",
        "--optimised",
    ]);
    if bench.json {
        command.arg("--json");
    }
    for name in &bench.benches {
        let value = clap::ValueEnum::to_possible_value(name).context("bench has no name")?;
        command.arg(value.get_name());
    }
    let status = command.status().context("cannot run cargo")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

//! Q6: what a frame costs in CPU time while every device has frames, with the record of decisions
//! on as it is in production; what the record is a part of that; and what is allocated.

use std::path::Path;

use anyhow::Result;
use qos::DECISIONS_MAX;

use super::super::Figure;
use super::cpu_time::median;
use super::load::Load;
use super::rte_sched::RteSched;
use super::{at_most, never};

/// Devices, and the nanoseconds that a frame may cost.
const GOALS: [(u32, f64); 3] = [(1_000, 60.0), (10_000, 80.0), (100_000, 150.0)];
/// What a frame may cost of what it costs with rte_sched.
const RTE_SCHED_GOAL: f64 = 1.3;
/// What the record of decisions may add.
const RECORD_GOAL: f64 = 1.03;

/// Frames between two looks at the clock, and how often.
const SLICE_FRAMES: usize = 100_000;
const SLICES: usize = 21;

pub(super) fn measure() -> Result<Vec<Figure>> {
    let rte_sched = RteSched::compile()?;
    let mut figures = Vec::new();
    for (devices, goal) in GOALS {
        let mut load = Load::new(devices)?;
        // The first one warms up.
        load.slice(SLICE_FRAMES)?;
        let alone: Result<_> = (0..SLICES).map(|_| load.slice(SLICE_FRAMES)).collect();
        let nanos = median(alone?)?;
        figures.push(at_most(format!("Q6 {devices} devices"), nanos, goal, "ns"));
        if let Some(program) = &rte_sched {
            figures.push(beside_rte_sched(&mut load, devices, program)?);
        }
        figures.push(record(&mut load, devices)?);
        figures.push(allocations(&mut load, devices)?);
    }
    Ok(figures)
}

/// What a frame costs to what it costs rte_sched. In turns with it caches are colder than alone.
fn beside_rte_sched(load: &mut Load, devices: u32, program: &Path) -> Result<Figure> {
    let mut peer = RteSched::start(program, devices, SLICE_FRAMES)?;
    peer.slice()?;
    let (mut ours, mut ratios) = (Vec::new(), Vec::new());
    for _ in 0..SLICES {
        let nanos = load.slice(SLICE_FRAMES)?;
        ours.push(nanos);
        ratios.push(nanos / peer.slice()?);
    }
    let nanos = median(ours)?;
    let case = format!("Q6 {devices} devices, rte_sched");
    Ok(Figure {
        goal: (0.0, RTE_SCHED_GOAL),
        ..at_most(case, nanos, nanos / median(ratios)?, "ns")
    })
}

/// What a frame costs with the record of decisions on, to what it costs with it off.
fn record(load: &mut Load, devices: u32) -> Result<Figure> {
    let (mut off, mut ratios) = (Vec::new(), Vec::new());
    for _ in 0..SLICES {
        let mut nanos = [0.0; 2];
        for (nanos, on) in nanos.iter_mut().zip([false, true]) {
            load.scheduler.set_recording(on);
            // The first lap of the ring touches its memory.
            load.pass(2 * DECISIONS_MAX)?;
            *nanos = load.slice(SLICE_FRAMES)?;
        }
        let [without, with] = nanos;
        off.push(without);
        ratios.push(with / without);
    }
    let off = median(off)?;
    Ok(Figure {
        goal: (0.0, RECORD_GOAL),
        ..at_most(
            format!("Q6 {devices} devices, record on"),
            off * median(ratios)?,
            off,
            "ns",
        )
    })
}

fn allocations(load: &mut Load, devices: u32) -> Result<Figure> {
    let mut outcome = Ok(());
    let info = allocation_counter::measure(|| outcome = load.pass(SLICE_FRAMES));
    outcome?;
    Ok(never(
        format!("Q6 {devices} devices, allocations"),
        info.count_total,
        SLICE_FRAMES as u64,
        "frames",
    ))
}

//! Q7: what it costs to add, change and remove a device beside many others that all have frames,
//! and the memory of one that has none.

use anyhow::Result;

use super::super::Figure;
use super::at_most;
use super::cpu_time::{cpu_nanos, median};
use super::load::Load;

/// Few devices, as many as a link is built for, and many.
const DEVICES: [u32; 3] = [1_000, 10_000, 100_000];
/// Nanoseconds that a call may take beside as many devices as a link is built for.
const CALL_NANOS: f64 = 2_000.0;
/// What a call beside many devices may cost of one beside few.
const GROWTH: f64 = 4.0;
/// Calls between two looks at the clock, and how often.
const CALLS: usize = 500;
const SLICES: usize = 21;
/// Bytes that an idle device may take.
const IDLE_BYTES: f64 = 512.0;

pub(super) fn measure() -> Result<Vec<Figure>> {
    let [few, some, many] = DEVICES;
    let costs = [
        Costs::measure(few)?,
        Costs::measure(some)?,
        Costs::measure(many)?,
    ];
    let call = |name: &str, nanos: fn(&Costs) -> f64| {
        let [at_few, at_some, at_many] = costs.each_ref().map(nanos);
        [
            at_most(format!("Q7 {name} at {some}"), at_some, CALL_NANOS, "ns"),
            Figure {
                goal: (0.0, GROWTH),
                ..at_most(
                    format!("Q7 {name} at {many} to {few}"),
                    at_many,
                    at_few,
                    "ns",
                )
            },
        ]
    };
    let mut figures = Vec::new();
    figures.extend(call("add_device", |costs| costs.add));
    figures.extend(call("add_device, growing", |costs| costs.grow));
    figures.extend(call("set_rate", |costs| costs.change));
    figures.extend(call("remove_device", |costs| costs.remove));
    figures.push(idle_bytes(many / 2)?);
    Ok(figures)
}

/// Nanoseconds of CPU time of one call.
#[derive(Debug)]
struct Costs {
    /// Into a place that another device has left.
    add: f64,
    /// Into a new place, in the mean from no device on.
    grow: f64,
    change: f64,
    remove: f64,
}

impl Costs {
    fn measure(devices: u32) -> Result<Self> {
        let grow = cpu_nanos(|| Load::idle(devices).map(drop))? / f64::from(devices);
        let mut load = Load::new(devices)?;
        let (rate, half) = (Load::rate(devices)?, Load::rate(2 * devices)?);
        let (mut add, mut change, mut remove) = (Vec::new(), Vec::new(), Vec::new());
        for slice in 0..SLICES {
            // Others every time, all over the table.
            let stride = load.devices.len() / CALLS;
            let chosen = move || (0..CALLS).map(move |call| call * stride + slice % stride);
            change.push(cpu_nanos(|| {
                chosen().try_for_each(|index| load.set_rate(index, half))
            })?);
            remove.push(cpu_nanos(|| {
                chosen().try_for_each(|index| load.remove(index))
            })?);
            add.push(cpu_nanos(|| {
                chosen().try_for_each(|index| load.add(index, rate))
            })?);
            chosen().try_for_each(|index| load.fill(index))?;
            // Time goes on, and clocks with it.
            load.pass(CALLS)?;
        }
        let one = |slices| Ok::<_, anyhow::Error>(median(slices)? / CALLS as f64);
        Ok(Self {
            add: one(add)?,
            grow,
            change: one(change)?,
            remove: one(remove)?,
        })
    }
}

/// What another idle device takes: the scheduler of twice as many less that of `devices`, which has
/// the same rings of ticks, whoever is in them.
fn idle_bytes(devices: u32) -> Result<Figure> {
    let [few, many] = [devices, 2 * devices].map(held_bytes);
    let bytes = (many? - few?) / f64::from(devices);
    Ok(at_most(
        format!("idle device beside {devices}"),
        bytes,
        IDLE_BYTES,
        "bytes",
    ))
}

/// Bytes that a scheduler with idle devices holds.
fn held_bytes(devices: u32) -> Result<f64> {
    let mut scheduler = None;
    let info = allocation_counter::measure(|| {
        scheduler = Some(Load::idle(devices).map(|load| load.scheduler));
    });
    scheduler.transpose()?;
    Ok(info.bytes_current as f64)
}

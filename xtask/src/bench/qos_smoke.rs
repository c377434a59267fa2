//! Two devices with CIR 300 and 100 Mb/s saturate a 400 Mb/s link of loopback TCP.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use qos::{BitRate, DeviceRate, LinkBudget};

use super::Figure;
use super::lanes::Lanes;

const WINDOW: Duration = Duration::from_secs(5);
const WARM_UP: Duration = Duration::from_secs(1);

/// Committed rate in Mb/s and payload of the frames: an Ethernet frame, and a piece of SCSI data.
const DEVICES: [(u64, usize); 2] = [(300, 1_526), (100, 65_552)];
const LINK_MEGABITS: u64 = 400;

pub(super) fn measure() -> Result<Vec<Figure>> {
    let rate = |megabits| BitRate::from_bits_per_second(megabits * 1_000_000);
    let budget =
        LinkBudget::with_reservable("bench link", rate(LINK_MEGABITS), rate(LINK_MEGABITS))?;
    let rates = DEVICES.map(|(cir, _)| DeviceRate::new(rate(cir), None));
    let lanes = Lanes::start(&budget, &rates.into_iter().collect::<Result<Vec<_>, _>>()?)?;
    let stop = AtomicBool::new(false);
    let (bytes, elapsed) = std::thread::scope(|scope| {
        for (sender, (_, payload_bytes)) in lanes.senders.iter().zip(DEVICES) {
            let stop = &stop;
            scope.spawn(move || sender.saturate(payload_bytes, stop));
        }
        std::thread::sleep(WARM_UP);
        let (before, started) = (lanes.bytes(), Instant::now());
        std::thread::sleep(WINDOW);
        let (after, elapsed) = (lanes.bytes(), started.elapsed());
        stop.store(true, Ordering::Relaxed);
        let bytes: Vec<u64> = after
            .iter()
            .zip(before)
            .map(|(after, before)| after - before)
            .collect();
        (bytes, elapsed)
    });
    let figures = DEVICES
        .iter()
        .zip(bytes)
        .map(|((cir, payload_bytes), bytes)| Figure {
            bench: "qos-smoke",
            case: format!("CIR {cir}M, {payload_bytes} B frames"),
            value: bytes as f64 * 8.0 / 1e6 / elapsed.as_secs_f64(),
            unit: "Mb/s",
            reference: *cir as f64,
            goal: (0.95, 1.05),
        });
    Ok(figures.collect())
}

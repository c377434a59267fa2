//! Q5: what a small frame of a small reservation waits for.

use std::time::Duration;

use anyhow::Result;
use fastrand::Rng;
use qos::{BitRate, DeviceRate};

use super::super::Figure;
use super::at_most;
use super::world::{SECOND, World, committed, frame_bytes_max, megabits, only};

const PROBE_BYTES: u32 = 64;
/// The shortest that admission takes beside 900 Mb/s of other reservations on 1 Gb/s.
const DELAY_MAX: Duration = Duration::from_nanos(6_000);
/// Rounding of clocks to ticks and nanoseconds.
const SLACK_NANOS: u64 = 2_000;

/// Each case is a link, what is reserved on it beside the probe, the frames of all others, and the
/// delay that is promised: until the last bit of a frame that conforms is out.
pub(super) fn measure() -> Result<Vec<Figure>> {
    let slow = megabits(1_000);
    let piece = frame_bytes_max(slow, BitRate::ZERO);
    let hogs = [500, 300, 100].map(committed);
    let fast = megabits(10_000);
    // 9.49 Gb/s in all.
    let many = vec![DeviceRate::new(BitRate::from_bits_per_second(949_000), None)?; 10_000];
    let bounded = DeviceRate {
        cbs_bytes: PROBE_BYTES,
        delay_max: Some(DELAY_MAX),
        ..committed(10)
    };
    let one_frame = |link: BitRate, bytes: u32| {
        link.transmission_nanos(u64::from(bytes) + u64::from(PROBE_BYTES)) + SLACK_NANOS
    };
    // Without a delay bound the deadline of a frame is its own time at CIR: hogs with frames as
    // short as these may have earlier ones.
    let own_time = committed(10).cir.transmission_nanos(PROBE_BYTES.into());
    let deadline = own_time + slow.transmission_nanos(piece.into()) + SLACK_NANOS;
    let figure = |case: &str, worst: u64, bound: u64| {
        at_most(case, worst as f64 / 1e3, bound as f64 / 1e3, "us")
    };
    Ok(vec![
        figure(
            "Q5 64 B with a delay bound, 1G, 4 KiB",
            worst_delay(slow, bounded, &hogs, piece)?,
            one_frame(slow, piece),
        ),
        figure(
            "Q5 64 B without one, 1G, 4 KiB",
            worst_delay(slow, committed(10), &hogs, piece)?,
            deadline,
        ),
        figure(
            "Q5 64 B beside 10,000, 10G, 1500 B",
            worst_delay(fast, committed(10), &many, 1_500)?,
            one_frame(fast, 1_500),
        ),
    ])
}

/// The longest time from the arrival of a conforming frame until its last bit is out.
fn worst_delay(link: BitRate, rate: DeviceRate, hogs: &[DeviceRate], bytes: u32) -> Result<u64> {
    let mut world = World::new(link, 1)?;
    let probe = world.add(rate)?;
    for rate in hogs {
        world.add_greedy(*rate, only(bytes))?;
    }
    let mut random = Rng::with_seed(1);
    let pause = rate.cir.transmission_nanos(PROBE_BYTES.into());
    let mut worst = 0;
    while world.now() < SECOND {
        world.feed(probe, PROBE_BYTES)?;
        let until = world.now() + random.u64(pause..4 * pause);
        world.run(until, |departure| {
            if departure.device == probe {
                worst = worst.max(departure.done - departure.arrived);
            }
        })?;
    }
    Ok(worst)
}

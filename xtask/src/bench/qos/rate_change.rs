//! Q8: how long a new rate takes to be the rate.
#![expect(
    clippy::indexing_slicing,
    reason = "one account a device, both numbered from 0"
)]

use anyhow::Result;
use qos::DeviceRate;

use super::super::Figure;
use super::world::{Departure, MILLISECOND, SECOND, World, committed, megabits, only};
use super::{at_most, never};

const LINK_MEGABITS: u64 = 1_000;
const FRAME_BYTES: u32 = 1_500;

/// A change and what comes of it: rates before and after, Mb/s that the device then gets.
struct Change {
    case: &'static str,
    before: DeviceRate,
    after: DeviceRate,
    megabits: u64,
}

pub(super) fn measure() -> Result<Vec<Figure>> {
    let peak = |cir, pir| DeviceRate {
        pir: Some(megabits(pir)),
        pbs_bytes: 2 * FRAME_BYTES,
        weight: 1_000,
        ..committed(cir)
    };
    let weight = |weight| DeviceRate {
        weight,
        ..DeviceRate::best_effort()
    };
    // The other device reserves 600M and has weight 100.
    let changes = [
        Change {
            case: "CIR up",
            before: peak(100, 100),
            after: peak(300, 300),
            megabits: 300,
        },
        Change {
            case: "CIR down",
            before: peak(300, 300),
            after: peak(100, 100),
            megabits: 100,
        },
        Change {
            case: "PIR up",
            before: peak(50, 100),
            after: peak(50, 350),
            megabits: 350,
        },
        Change {
            case: "PIR down",
            before: peak(50, 350),
            after: peak(50, 100),
            megabits: 100,
        },
        Change {
            case: "weight up",
            before: weight(100),
            after: weight(300),
            megabits: 300,
        },
        Change {
            case: "weight down",
            before: weight(300),
            after: weight(100),
            megabits: 200,
        },
    ];
    let mut figures = Vec::new();
    let (mut lost, mut offered) = (0, 0);
    for change in changes {
        let outcome = change.play()?;
        let frame_nanos = megabits(change.megabits).transmission_nanos(FRAME_BYTES.into());
        figures.push(at_most(
            format!("Q8 {} is in force after", change.case),
            outcome.behind_nanos / 1e3,
            (MILLISECOND + frame_nanos) as f64 / 1e3,
            "us",
        ));
        lost += outcome.lost;
        offered += outcome.offered;
    }
    figures.push(never("Q8 lost or out of order", lost, offered, "frames"));
    Ok(figures)
}

struct Outcome {
    /// The most that the device was behind the new rate, or ahead of it, in time at that rate.
    behind_nanos: f64,
    lost: u64,
    offered: u64,
}

impl Change {
    fn play(&self) -> Result<Outcome> {
        let mut world = World::new(megabits(LINK_MEGABITS), 1)?;
        let other = DeviceRate {
            weight: 100,
            ..committed(600)
        };
        world.add_greedy(other, only(FRAME_BYTES))?;
        let changed = world.add_greedy(self.before, only(FRAME_BYTES))?;
        let mut next = [0; 2];
        let mut outcome = Outcome {
            behind_nanos: 0.0,
            lost: 0,
            offered: 0,
        };
        let mut count = |departure: &Departure| {
            let next = &mut next[departure.device];
            outcome.lost += u64::from(departure.number != *next);
            *next = departure.number + 1;
            outcome.offered += 1;
        };
        world.run(SECOND / 2, &mut count)?;
        world.set_rate(changed, self.after)?;
        let mut served = 0.0;
        let nanos_per_frame = f64::from(FRAME_BYTES) * 8e3 / self.megabits as f64;
        let mut behind_nanos = 0.0_f64;
        world.run(SECOND, |departure| {
            count(departure);
            if departure.device == changed {
                let due = (departure.done - SECOND / 2) as f64;
                let behind = due - served;
                served += nanos_per_frame;
                behind_nanos = behind_nanos.max(behind).max(served - due);
            }
        })?;
        Ok(Outcome {
            behind_nanos,
            ..outcome
        })
    }
}

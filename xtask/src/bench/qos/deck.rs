//! Twelve devices of three VMs, all greedy: each VM on a link of its own, and all on one link of
//! which 95 % are reserved.
#![expect(
    clippy::indexing_slicing,
    reason = "one window a device, both numbered from 0"
)]

use std::collections::VecDeque;

use anyhow::{Context, Result};
use qos::BitRate;

use super::super::Figure;
use super::at_most;
use super::world::{MILLISECOND, SECOND, World, committed, frame_bytes_max, megabits};

/// Committed rates in Mb/s.
const VMS: [[u64; 4]; 3] = [
    [500, 300, 100, 1_000],
    [800, 500, 500, 1_000],
    [200, 200, 200, 3_000],
];
const WATCHED: u64 = 3 * SECOND;
const TEN: u64 = 10 * MILLISECOND;
/// The part of its reservation that each device must get in every second, and in every 10 ms.
const SECOND_GOAL: f64 = 0.999;
const TEN_GOAL: f64 = 0.98;

pub(super) fn measure() -> Result<Vec<Figure>> {
    let own = |span| -> Result<Worst> {
        let mut worst = Worst::NOBODY;
        for vm in &VMS {
            worst = worst.or(play(megabits(10_000), vm, span)?);
        }
        Ok(worst)
    };
    let all = VMS.concat();
    let link = BitRate::from_bits_per_second(all.iter().sum::<u64>() * 1_000_000 / 95 * 100);
    let one = |span| play(link, &all, span);
    Ok(vec![
        own(SECOND)?.figure("deck on three 10G links, 1 s", SECOND_GOAL),
        own(TEN)?.figure("deck on three 10G links, 10 ms", TEN_GOAL),
        one(SECOND)?.figure("deck at 95 %, 1 s", SECOND_GOAL),
        one(TEN)?.figure("deck at 95 %, 10 ms", TEN_GOAL),
    ])
}

/// The least that any device got, and what its reservation is worth in that time, in bytes.
#[derive(Clone, Copy, Debug)]
struct Worst {
    got: f64,
    promised: f64,
}

impl Worst {
    const NOBODY: Self = Self {
        got: f64::MAX,
        promised: 1.0,
    };

    fn or(self, other: Self) -> Self {
        if other.got / other.promised < self.got / self.promised {
            other
        } else {
            self
        }
    }

    fn figure(self, case: &str, goal: f64) -> Figure {
        Figure {
            goal: (goal, f64::INFINITY),
            ..at_most(case, self.got / 1e3, self.promised / 1e3, "KB")
        }
    }
}

/// The worst window of `span` that any device has, with frames of 64 bytes to the longest there are.
fn play(link: BitRate, reservations: &[u64], span: u64) -> Result<Worst> {
    let mut world = World::new(link, 1)?;
    let mut windows = Vec::new();
    for cir in reservations {
        let bytes_max = frame_bytes_max(link, megabits(*cir));
        world.add_greedy(committed(*cir), 64..=bytes_max)?;
        windows.push(Window::new(span));
    }
    world.run(WATCHED, |departure| {
        windows[departure.device].add(departure.done, departure.bytes);
    })?;
    let worst = windows.iter().zip(reservations).map(|(window, cir)| Worst {
        got: window.least as f64,
        promised: megabits(*cir).bits_per_second() as f64 / 8e9 * span as f64,
    });
    worst.reduce(Worst::or).context("the deck has devices")
}

/// The fewest bytes in any window of one length, wherever it begins.
#[derive(Debug)]
struct Window {
    span: u64,
    /// When a frame was out, and its bytes, of the last `span`.
    frames: VecDeque<(u64, u32)>,
    bytes: u64,
    least: u64,
}

impl Window {
    fn new(span: u64) -> Self {
        Self {
            span,
            frames: VecDeque::from([(0, 0)]),
            bytes: 0,
            least: u64::MAX,
        }
    }

    fn add(&mut self, done: u64, bytes: u32) {
        // The emptiest windows begin right after a frame and end right before one.
        while let Some((first, first_bytes)) = self.frames.front().copied()
            && first + self.span <= done
        {
            self.frames.pop_front();
            self.bytes -= u64::from(first_bytes);
            self.least = self.least.min(self.bytes);
        }
        self.frames.push_back((done, bytes));
        self.bytes += u64::from(bytes);
    }
}

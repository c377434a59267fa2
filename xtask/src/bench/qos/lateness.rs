//! Q1: random devices on random links; no reserved frame leaves later than promised.
#![expect(
    clippy::indexing_slicing,
    reason = "one source a device, both numbered by the scenario"
)]

use anyhow::Result;
use fastrand::Rng;
use qos::{BitRate, DeviceRate};

use super::super::Figure;
use super::world::{Departure, Sizes, World};
use super::{at_most, never};

/// Frames with a promise that are looked at, over all scenarios.
const DEPARTURES: u64 = 10_000_000;
/// Of one scenario at most, so that there are many.
const SCENARIO_DEPARTURES_MAX: u64 = 6_000;
/// Frames of the mean size that the link could carry in a scenario.
const SCENARIO_FRAMES: u64 = 3_000;
/// Frames that come to one device in a scenario.
const ARRIVALS_MAX: u64 = 2_000;
/// Rounding of clocks to ticks and nanoseconds.
const SLACK_NANOS: u64 = 2_000;

pub(super) fn measure() -> Result<Vec<Figure>> {
    let mut tally = Tally::default();
    for seed in 0.. {
        Scenario::new(seed)?.play(&mut tally)?;
        if tally.departures >= DEPARTURES {
            break;
        }
    }
    let micros = |nanos: u64| nanos as f64 / 1e3;
    Ok(vec![
        at_most(
            "Q1 worst lateness in its bound",
            micros(tally.worst.0),
            micros(tally.worst.1),
            "us",
        ),
        never("Q1 late frames", tally.late, tally.departures, "frames"),
    ])
}

#[derive(Debug)]
struct Tally {
    departures: u64,
    late: u64,
    /// Since the device became backlogged: when a frame was out, and when it had to be; of the
    /// frame that came nearest.
    worst: (u64, u64),
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            departures: 0,
            late: 0,
            worst: (0, 1),
        }
    }
}

impl Tally {
    fn count(&mut self, took: u64, bound: u64) {
        self.departures += 1;
        self.late += u64::from(took > bound);
        let products = u128::from(took) * u128::from(self.worst.1);
        if products > u128::from(self.worst.0) * u128::from(bound) {
            self.worst = (took, bound);
        }
    }
}

/// How frames of a device arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pattern {
    /// There is always one.
    Greedy,
    /// Trains with pauses.
    OnOff,
    /// At random times, as fast as the committed rate in the mean.
    Poisson,
    /// A frame now and then.
    Rare,
}

/// What the promise to a device is checked with.
#[derive(Debug)]
struct Source {
    pattern: Pattern,
    sizes: Sizes,
    cir: BitRate,
    queued: u64,
    backlogged_since: u64,
    bytes_since: u64,
}

#[derive(Debug)]
struct Scenario {
    world: World,
    sources: Vec<Source>,
    link: BitRate,
    bytes_max: u32,
    horizon: u64,
    random: Rng,
}

impl Scenario {
    fn new(seed: u64) -> Result<Self> {
        let mut random = Rng::with_seed(seed);
        let link = match random.u8(..5) {
            0 => 100_000_000,
            1 => 1_000_000_000,
            2 => 10_000_000_000,
            3 => 100_000_000_000,
            _ => 100_000_000 + random.u64(..99_900_000_000),
        };
        let reservable = link / 100 * random.u64(50..=98);
        let parts: Vec<u64> = (0..random.usize(2..=32))
            .map(|_| match random.u8(..8) {
                0 => 0,
                1 => 1,
                _ => random.u64(1..100),
            })
            .collect();
        let all_parts: u64 = parts.iter().sum::<u64>().max(1);
        let sources: Vec<Source> = parts
            .into_iter()
            .map(|parts| Source::new(&mut random, reservable / all_parts * parts))
            .collect();
        let bytes = sources.iter().map(|source| *source.sizes.end());
        let bytes_max = bytes.clone().max().unwrap_or(64);
        let mean = bytes.map(u64::from).sum::<u64>() / 2 / (sources.len() as u64);
        let link = BitRate::from_bits_per_second(link);
        let mut world = World::new(link, seed)?;
        for source in &sources {
            let rate = source.rate(&mut random, link, bytes_max);
            match source.pattern {
                Pattern::Greedy => world.add_greedy(rate, source.sizes.clone())?,
                _ => world.add(rate)?,
            };
        }
        Ok(Self {
            world,
            sources,
            link,
            bytes_max,
            horizon: link.transmission_nanos(mean * SCENARIO_FRAMES),
            random,
        })
    }

    fn play(mut self, tally: &mut Tally) -> Result<()> {
        let arrivals = self.arrivals();
        let enough = tally.departures + SCENARIO_DEPARTURES_MAX;
        let ends = (1..=100).map(|part| (self.horizon * part / 100, None));
        let mut events: Vec<_> = arrivals.into_iter().chain(ends).collect();
        events.sort_by_key(|(time, _)| *time);
        for (time, frame) in events {
            let Self {
                world,
                sources,
                link,
                bytes_max,
                ..
            } = &mut self;
            let frame_nanos = link.transmission_nanos(u64::from(*bytes_max));
            world.run(time, |departure| {
                sources[departure.device].check(departure, frame_nanos, tally);
            })?;
            if let Some((device, bytes)) = frame {
                sources[device].arrive(time);
                world.feed(device, bytes)?;
            }
            if tally.departures >= enough {
                break;
            }
        }
        Ok(())
    }

    /// What comes, and when: device and bytes.
    fn arrivals(&mut self) -> Vec<(u64, Option<(usize, u32)>)> {
        let mut arrivals = Vec::new();
        for (device, source) in self.sources.iter().enumerate() {
            let random = &mut self.random;
            // Best effort comes as fast as a fiftieth of the link.
            let least = self.link.bits_per_second() / 50;
            let rate = BitRate::from_bits_per_second(source.cir.bits_per_second().max(least));
            let mut time = 0;
            // A greedy one feeds itself.
            let frames = if source.pattern == Pattern::Greedy {
                0
            } else {
                ARRIVALS_MAX
            };
            for _ in 0..frames {
                let bytes = random.u32(source.sizes.clone());
                let pause = rate.transmission_nanos(bytes.into());
                time += match source.pattern {
                    Pattern::OnOff if random.u8(..8) == 0 => random.u64(..pause * 24),
                    Pattern::Greedy | Pattern::OnOff => 0,
                    Pattern::Poisson => exponential(random, pause),
                    Pattern::Rare => random.u64(..self.horizon / 3),
                };
                if time >= self.horizon {
                    break;
                }
                arrivals.push((time, Some((device, bytes))));
            }
        }
        arrivals
    }
}

/// A time between two events of a Poisson process.
fn exponential(random: &mut Rng, mean: u64) -> u64 {
    let nanos = -(1.0 - random.f64()).ln() * mean as f64;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a positive number of nanoseconds far below 2^53"
    )]
    let nanos = nanos as u64;
    nanos
}

impl Source {
    fn new(random: &mut Rng, cir: u64) -> Self {
        let patterns = [
            Pattern::Greedy,
            Pattern::OnOff,
            Pattern::Poisson,
            Pattern::Rare,
        ];
        let bytes_max = match random.u8(..4) {
            0 => 64,
            1 => 1_500,
            2 => random.u32(64..9_000),
            _ => 65_536,
        };
        Self {
            pattern: patterns[random.usize(..patterns.len())],
            sizes: 64..=bytes_max,
            cir: BitRate::from_bits_per_second(cir),
            queued: 0,
            backlogged_since: 0,
            bytes_since: 0,
        }
    }

    fn rate(&self, random: &mut Rng, link: BitRate, bytes_max: u32) -> DeviceRate {
        let quarters = random.u64(..8);
        let pir = match self.cir.bits_per_second() {
            0 => link.bits_per_second() / (2 + quarters),
            cir => cir + cir / 4 * quarters,
        };
        DeviceRate {
            cir: self.cir,
            pir: random.bool().then_some(BitRate::from_bits_per_second(pir)),
            // Room for the frame itself and for what passes while it waits for another one.
            pbs_bytes: random.u32(2..=5) * bytes_max,
            weight: if random.bool() { 0 } else { random.u32(1..500) },
            ..DeviceRate::default()
        }
    }

    fn arrive(&mut self, now: u64) {
        if self.queued == 0 {
            self.backlogged_since = now;
            self.bytes_since = 0;
        }
        self.queued += 1;
    }

    fn check(&mut self, departure: &Departure, frame_nanos: u64, tally: &mut Tally) {
        self.queued = self.queued.saturating_sub(1);
        self.bytes_since += u64::from(departure.bytes);
        if !self.cir.is_zero() {
            let bytes = self.bytes_since + u64::from(*self.sizes.end());
            let bound = self.cir.transmission_nanos(bytes) + frame_nanos + SLACK_NANOS;
            tally.count(departure.done - self.backlogged_since, bound);
        }
    }
}

//! `cargo xtask sim`: replays one simulated world, or looks for guilty ones in a range of seeds.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use orimono_tests::simulation;

use crate::say;

/// Runs simulated fabrics: one, and tells what happened in it, or many.
#[derive(Debug, clap::Args)]
pub(crate) struct Sim {
    /// The world to run
    #[arg(long, value_name = "N", required_unless_present = "seeds")]
    seed: Option<u64>,
    /// Tells everything that happens in it: frames lost, links, attachments, faults
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Worlds to run; prints a summary and the guilty ones
    #[arg(long, value_name = "A..B", value_parser = seeds, conflicts_with = "seed")]
    seeds: Option<std::ops::Range<u64>>,
}

fn seeds(text: &str) -> Result<std::ops::Range<u64>, String> {
    let range = text.split_once("..").and_then(|(from, to)| {
        let range = from.parse().ok()?..to.parse().ok()?;
        (range.start < range.end).then_some(range)
    });
    range.ok_or_else(|| format!("{text:?} is no range of seeds; write 0..1000"))
}

pub(crate) fn run(sim: &Sim) -> Result<ExitCode> {
    let mut out = io::stdout().lock();
    let innocent = if let Some(seed) = sim.seed {
        let outcome = simulation::run(seed, None, sim.trace);
        write!(out, "{}", outcome.trace).context("cannot print the trace")?;
        writeln!(out, "{:#?}", outcome.counters).context("cannot print the counters")?;
        match &outcome.guilt {
            Some(guilt) => writeln!(out, "seed {seed}: {:?}: {}", guilt.checker, guilt.what),
            None => writeln!(out, "seed {seed}: innocent"),
        }
        .context("cannot print the verdict")?;
        outcome.guilt.is_none()
    } else {
        let seeds = sim.seeds.clone().unwrap_or_default();
        let count = seeds.end - seeds.start;
        let started = Instant::now();
        let (counters, guilty) = simulation::run_all(seeds);
        say(&format!(
            "{count} worlds in {:.1} s",
            started.elapsed().as_secs_f64()
        ));
        writeln!(out, "{counters:#?}").context("cannot print the counters")?;
        for (seed, guilt) in &guilty {
            writeln!(out, "seed {seed}: {:?}: {}", guilt.checker, guilt.what)
                .context("cannot print the verdict")?;
        }
        writeln!(out, "{} of {count} worlds are guilty", guilty.len())
            .context("cannot print the verdict")?;
        guilty.is_empty()
    };
    Ok(if innocent {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

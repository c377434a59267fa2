//! The I/O director as a process.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use io_director::Director;
use lab_program::LabProgram;

/// Serves Ethernet and SAN ports to the hosts of a lab file.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    program: LabProgram,
}

fn main() -> ExitCode {
    lab_program::main(run)
}

fn run(arguments: &Arguments) -> Result<()> {
    let start = arguments.program.start()?;
    if arguments.program.only_checks() {
        return Director::check(&start.lab).context("director cannot start");
    }
    let mut director = Director::start(&start.lab).context("director cannot start")?;
    director.listen().context("director cannot start")?;
    start.serve("director", &director)?;
    for snapshot in director.snapshot() {
        let counts: Vec<_> = snapshot
            .counts
            .iter()
            .filter(|(_, count)| *count > 0)
            .collect();
        tracing::debug!(object = snapshot.object, ?counts, "final counters");
    }
    Ok(())
}

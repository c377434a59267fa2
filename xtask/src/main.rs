//! Every chore of this repository: `cargo xtask --help`.
//!
//! One file a task. Each says what it needs and fails with the command that repairs it.
//! Exit codes: 0 done, 1 failed, 2 wrong usage; `guest COMMAND` passes on the command's.

#![deny(unsafe_code)]

mod bench;
mod check;
mod demo;
mod fuzz;
mod guest;
mod model;
mod setup;
mod sim;
mod test;

use std::{
    io::{self, Write},
    process::{Command, ExitCode},
};

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    about = "Chores of Orimono",
    disable_version_flag = true
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Says which Debian packages are missing and installs them
    Setup(setup::Setup),
    /// Two guests send frames and SCSI commands over one fabric link, and what came of it
    Demo(demo::Demo),
    /// Runs the test suites
    Test(test::Test),
    /// Searches the models of the fabric protocol for states that must not be
    Model(model::Model),
    /// Formatting, lints, layering, tidy and documentation
    Check(check::Check),
    /// Replays simulated fabrics by their seed
    Sim(sim::Sim),
    /// Looks for new input of the parsers, guided by coverage
    Fuzz(fuzz::Fuzz),
    /// Prints figures as ratios to a reference of the same run
    Bench(bench::Bench),
    /// Boots one guest and runs a command in it, or hands over a shell
    Guest(guest::Guest),
}

/// The cargo that runs this.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env!("CARGO"));
    // Set for what `cargo run` starts. `ring` is built anew whenever it changes, and most crates with it.
    command.env_remove("CARGO_MANIFEST_DIR");
    command
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Setup(task) => setup::run(&task),
        Task::Demo(task) => demo::run(&task),
        Task::Test(task) => test::run(&task),
        Task::Model(task) => model::run(&task),
        Task::Check(task) => check::run(&task),
        Task::Sim(task) => sim::run(&task),
        Task::Fuzz(task) => fuzz::run(&task),
        Task::Bench(task) => bench::run(&task),
        Task::Guest(task) => guest::run(&task),
    };
    result.unwrap_or_else(|error| {
        say(&format!("error: {error:#}"));
        ExitCode::FAILURE
    })
}

/// Writes a line about what is being done, apart from what a task prints as its result.
fn say(line: &str) {
    // With standard error closed there is nobody to tell.
    drop(writeln!(io::stderr(), "{line}"));
}

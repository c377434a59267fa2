//! The I/O director as a process.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use fabric_config::{LabConfig, require_admitted};
use io_director::Director;
use qos_monitor::Monitor;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing_subscriber::EnvFilter;

/// Serves Ethernet and SAN ports to the hosts of a lab file.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The lab file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Prints what each hop has promised, opens all ports and files, closes them again and exits.
    /// Refuses reservations that do not fit.
    #[arg(long)]
    check: bool,
    /// Takes reservations beyond what a hop can keep, on every hop; then all of them are scaled down.
    #[arg(long)]
    oversubscribe: bool,
    /// A socket that orimono-qos asks why devices get what they get, and what LUNs do; default: none.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// What is logged to standard error, like info or io_director=debug; default: RUST_LOG, info.
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, whatever the log filter is.
            #[expect(
                clippy::print_stderr,
                reason = "the answer to whoever started the process"
            )]
            {
                eprintln!("io-director: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let filter = match &arguments.log {
        Some(filter) => EnvFilter::try_new(filter).context("--log is no log filter")?,
        None => EnvFilter::try_from_default_env().unwrap_or_else(|_unset| EnvFilter::new("info")),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    // Before anything is opened: a signal during the start ends in order too.
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("signals cannot be taken")?;
    let mut config = LabConfig::read(&arguments.config)
        .with_context(|| format!("lab file {}", arguments.config.display()))?;
    if arguments.oversubscribe {
        config.oversubscribe();
    }
    let admissions = config.admit();
    for over in admissions.iter().filter(|hop| !hop.over().is_zero()) {
        tracing::warn!(
            hop = over.budget.hop(),
            direction = %over.direction,
            reserved = %over.reserved.with_unit(),
            reservable = %over.budget.reservable().with_unit(),
            "hop is oversubscribed"
        );
    }
    if arguments.check {
        for admission in &admissions {
            writeln!(std::io::stdout(), "{admission}")?;
        }
        require_admitted(&admissions)?;
        return Director::check(&config).context("director cannot start");
    }
    let mut director = Director::start(&config).context("director cannot start")?;
    director.listen().context("director cannot start")?;
    let monitor = Monitor::start(director.watched(), arguments.control.as_deref())
        .context("director cannot start")?;
    if let Some(signal) = signals.forever().next() {
        tracing::info!(signal, "director stops");
    }
    for snapshot in director.snapshot() {
        let counts: Vec<_> = snapshot
            .counts
            .iter()
            .filter(|(_, count)| *count > 0)
            .collect();
        tracing::debug!(object = snapshot.object, ?counts, "final counters");
    }
    drop(monitor);
    drop(director);
    Ok(())
}

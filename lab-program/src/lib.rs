//! What the programs `host-agent`, `io-director` and `edge-switch` have in common: they serve their
//! part of a lab file until a signal ends them.
//!
//! Exit codes: 0 stopped by SIGTERM or SIGINT, or checked; 1 failed; 2 wrong usage.
#![forbid(unsafe_code)]

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser};
use fabric_config::{LabConfig, require_admitted};
use qos_monitor::{Monitor, Watched};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing_subscriber::EnvFilter;

/// Options of each of them.
#[derive(Debug, Args)]
pub struct LabProgram {
    /// The lab file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Print what each hop has promised, try to open whatever is to be opened, then stop; refuse
    /// reservations that do not fit
    #[arg(long)]
    check: bool,
    /// Take reservations beyond what a hop can keep, on every hop; then all of them are scaled down
    #[arg(long)]
    oversubscribe: bool,
    /// A socket that orimono-qos asks why devices get what they get, and what LUNs do; default: none
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// What to log: error, warn, info, debug, trace, or a filter as of RUST_LOG
    #[arg(long, value_name = "FILTER", env = "RUST_LOG", default_value = "info")]
    log: String,
}

/// A program that may start: its lab file was read, and signals end it in order.
#[derive(Debug)]
pub struct Start {
    /// The lab file.
    pub lab: LabConfig,
    signals: Signals,
    control: Option<PathBuf>,
}

/// Runs a program; an error is one line on standard error, whatever the log filter is.
pub fn main<Arguments: Parser>(run: impl FnOnce(&Arguments) -> Result<()>) -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let program = Arguments::command().get_name().to_owned();
            // With standard error closed there is nobody to tell.
            drop(writeln!(std::io::stderr(), "{program}: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

impl LabProgram {
    /// The lab file.
    ///
    /// # Errors
    /// It cannot be read, or something in it is wrong.
    pub fn lab(&self) -> Result<LabConfig> {
        let mut lab = LabConfig::read(&self.config)
            .with_context(|| format!("lab file {}", self.config.display()))?;
        if self.oversubscribe {
            lab.oversubscribe();
        }
        Ok(lab)
    }

    /// Whether the program only says whether it would start.
    #[must_use]
    pub fn only_checks(&self) -> bool {
        self.check
    }

    /// Begins: logs, signals, the lab file and what its hops have promised, which is printed if it
    /// is only to be checked.
    ///
    /// # Errors
    /// Of [`Self::lab`]; the log filter is none; with `--check`, reservations that do not fit.
    pub fn start(&self) -> Result<Start> {
        let filter = EnvFilter::try_new(&self.log)
            .with_context(|| format!("--log {} is no filter: try info", self.log))?;
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr)
            .init();
        // Before anything is opened: a signal during the start ends in order too.
        let signals = Signals::new([SIGTERM, SIGINT]).context("signals cannot be taken")?;
        let lab = self.lab()?;
        let admissions = lab.admit();
        for over in admissions.iter().filter(|hop| !hop.over().is_zero()) {
            tracing::warn!(
                hop = over.budget.hop(),
                direction = %over.direction,
                reserved = %over.reserved.with_unit(),
                reservable = %over.budget.reservable().with_unit(),
                "hop is oversubscribed"
            );
        }
        if self.check {
            for admission in &admissions {
                writeln!(std::io::stdout(), "{admission}")?;
            }
            require_admitted(&admissions)?;
        }
        let control = self.control.clone();
        Ok(Start {
            lab,
            signals,
            control,
        })
    }
}

impl Start {
    /// Answers orimono-qos about `watched` until a signal comes. `program` stands in logs.
    ///
    /// # Errors
    /// The control socket cannot be made.
    pub fn serve(mut self, program: &str, watched: impl Into<Watched>) -> Result<()> {
        let monitor = Monitor::start(watched, self.control.as_deref())
            .with_context(|| format!("{program} cannot start"))?;
        tracing::info!("{program} ready");
        let signal = self.signals.forever().next();
        tracing::info!(signal, "{program} stops");
        drop(monitor);
        Ok(())
    }
}

//! What the programs `host-agent`, `io-director` and `edge-switch` have in common: they serve their
//! part of a lab file until a signal ends them.
//!
//! SIGHUP has them read it again and take what differs ([`Live`]).
//!
//! Exit codes: 0 stopped by SIGTERM or SIGINT, or checked; 1 failed; 2 wrong usage.
#![forbid(unsafe_code)]

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result};
use clap::{Args, Parser};
use fabric_config::{ApplyRefused, LabConfig, Outcome, Report, require_admitted};
use qos_monitor::{APPLY_JOBS_MAX, ApplyDone, ApplyJob, Monitor, Watched};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing_subscriber::EnvFilter;

/// Options of each of them.
#[derive(Debug, Clone, Args)]
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
    program: LabProgram,
}

/// What takes another lab file while it runs.
pub trait Live: Sync {
    /// Makes `lab` the lab file in force.
    ///
    /// # Errors
    /// [`ApplyRefused`]; nothing has changed.
    fn apply(&self, lab: LabConfig) -> Result<Report, ApplyRefused>;

    /// What a refusal of `lab` leaves as it was ([`Difference::refused`](fabric_config::Difference)).
    fn refused(&self, lab: &LabConfig, why: &ApplyRefused) -> Report;

    /// What a monitor answers for now.
    fn watched(&self) -> Watched;
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
        let signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).context("signals cannot be taken")?;
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
        let program = self.clone();
        Ok(Start {
            lab,
            signals,
            program,
        })
    }
}

impl Start {
    /// Answers orimono-qos about `live` until a signal comes; SIGHUP and orimono-qos have the lab file
    /// read and applied again. `program` stands in logs.
    ///
    /// # Errors
    /// The control socket cannot be made, or the kernel has no threads left.
    pub fn serve(mut self, program: &str, live: &dyn Live) -> Result<()> {
        let (jobs, wanted) = mpsc::sync_channel(APPLY_JOBS_MAX);
        let watched = Watched {
            applies: Some(jobs.clone()),
            ..live.watched()
        };
        let cannot = || format!("{program} cannot start");
        let control = self.program.control.clone();
        let monitor = Monitor::start(watched, control.as_deref()).with_context(cannot)?;
        let applier = Applier {
            program: self.program.clone(),
            live,
            monitor: &monitor,
        };
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("apply".to_owned());
            thread
                .spawn_scoped(scope, move || applier.run(&wanted))
                .with_context(cannot)?;
            tracing::info!("{program} ready");
            for signal in self.signals.forever() {
                if signal != SIGHUP {
                    tracing::info!(signal, "{program} stops");
                    break;
                }
                let job = ApplyJob::Apply(ApplyDone::nobody());
                // With a full queue the file is read after this moment all the same.
                drop(jobs.try_send(job));
            }
            // It ends with this; if it has ended by a panic there is nobody to tell.
            drop(jobs.send(ApplyJob::Stop));
            Ok(())
        })
    }
}

/// The thread that applies lab files, one after the other.
struct Applier<'a> {
    program: LabProgram,
    live: &'a dyn Live,
    monitor: &'a Monitor,
}

impl Applier<'_> {
    fn run(&self, wanted: &mpsc::Receiver<ApplyJob>) {
        while let Ok(ApplyJob::Apply(done)) = wanted.recv() {
            let applied = self.apply();
            match &applied {
                Ok(Report {
                    refused: Some(reason),
                    ..
                })
                | Err(reason) => {
                    tracing::error!(reason, "lab file is not applied, nothing has changed")
                }
                Ok(report) => {
                    for object in &report.objects {
                        let (name, change) = (&object.object, object.change);
                        let fields = object.fields.join(", ");
                        match &object.outcome {
                            Outcome::Done => {
                                tracing::info!(object = name, %change, fields, "applied")
                            }
                            Outcome::Failed(reason) => {
                                tracing::error!(object = name, %change, fields, reason, "not applied");
                            }
                        }
                    }
                    tracing::info!(objects = report.objects.len(), "lab file is in force");
                }
            }
            done.tell(applied);
        }
    }

    fn apply(&self) -> Result<Report, String> {
        let lab = self.program.lab().map_err(|error| format!("{error:#}"))?;
        let report = match self.live.apply(lab.clone()) {
            Ok(report) => report,
            Err(why) => return Ok(self.live.refused(&lab, &why)),
        };
        self.monitor.replace(self.live.watched());
        Ok(report)
    }
}

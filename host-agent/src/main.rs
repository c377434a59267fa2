//! `host-agent`: serves the devices of one host until it is told to stop.
//!
//! Exit codes: 0 stopped by SIGTERM or SIGINT, 1 failed, 2 wrong usage.
#![forbid(unsafe_code)]

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use fabric_config::{LabConfig, require_admitted};
use host_agent::{HostAgent, qemu_args};
use orimono_qemu::{Accelerator, Qemu};
use qos_monitor::Monitor;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing_subscriber::EnvFilter;

/// Serves the vNICs and vHBAs of one host over one fabric session.
#[derive(Debug, Parser)]
#[command(name = "host-agent", version)]
struct Arguments {
    /// The lab file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Which host of the lab file this is; needed unless it has only one
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// Only read the lab file and print what each hop has promised, then stop; refuses
    /// reservations that do not fit
    #[arg(long)]
    check: bool,
    /// Take reservations beyond what a hop can keep, on every hop; then all of them are scaled down
    #[arg(long)]
    oversubscribe: bool,
    /// Print the QEMU arguments of this VM, then stop
    #[arg(long, value_name = "VM")]
    print_qemu_args: Option<String>,
    /// Memory of the printed VM, in QEMU's notation
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "1G",
        requires = "print_qemu_args"
    )]
    memory: String,
    /// What the printed VM runs on
    #[arg(long, value_enum, default_value = "kvm", requires = "print_qemu_args")]
    accel: Accel,
    /// Serve guests whose memory could be truncated under us (QEMU without `seal=on`): such a
    /// guest can end this process
    #[arg(long)]
    allow_unsealed_memory: bool,
    /// A socket that orimono-qos asks why devices get what they get; default: none
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// What to log: error, warn, info, debug, trace, or a filter as of RUST_LOG
    #[arg(long, value_name = "FILTER", env = "RUST_LOG", default_value = "info")]
    log: String,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Accel {
    Kvm,
    Tcg,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With standard error closed there is nobody to tell.
            drop(writeln!(std::io::stderr(), "host-agent: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let mut lab = LabConfig::read(&arguments.config)?;
    if let Some(vm) = &arguments.print_qemu_args {
        return print_qemu_args(&lab, vm, arguments);
    }
    let host = match (&arguments.host, lab.hosts.as_slice()) {
        (Some(host), _) => host.clone(),
        (None, [only]) => only.name.clone(),
        (None, _) => anyhow::bail!("the lab file has several hosts or none: name one with --host"),
    };
    let filter = EnvFilter::try_new(&arguments.log)
        .with_context(|| format!("--log {} is no filter: try info", arguments.log))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    if arguments.oversubscribe {
        lab.oversubscribe();
    }
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
    if arguments.check {
        for admission in &admissions {
            writeln!(std::io::stdout(), "{admission}")?;
        }
        return Ok(require_admitted(&admissions)?);
    }
    // Before any thread starts, so that an early signal is not lost.
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("signals cannot be taken")?;
    let agent = HostAgent::start(&lab, &host, arguments.allow_unsealed_memory)?;
    let monitor = Monitor::start(agent.watched(), arguments.control.as_deref())
        .context("host agent cannot start")?;
    tracing::info!(host, "host agent ready");
    let signal = signals.forever().next();
    tracing::info!(host, signal, "host agent stops");
    drop(monitor);
    drop(agent);
    Ok(())
}

fn print_qemu_args(lab: &LabConfig, vm: &str, arguments: &Arguments) -> Result<()> {
    let qemu = Qemu::find().context("the arguments depend on the version of QEMU")?;
    let accelerator = match arguments.accel {
        Accel::Kvm => Accelerator::Kvm,
        Accel::Tcg => Accelerator::Tcg,
    };
    let words = qemu_args::qemu_args(lab, vm, &arguments.memory, qemu.version(), accelerator)?;
    writeln!(std::io::stdout(), "{}", qemu_args::shell_line(&words))?;
    Ok(())
}

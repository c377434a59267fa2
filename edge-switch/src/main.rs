//! The edge switch as a process.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;
use edge_switch::EdgeSwitch;
use fabric_config::{LabConfig, require_admitted};
use qos_monitor::Monitor;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing_subscriber::EnvFilter;

/// Carries the links of hosts to the director, over an uplink that they share.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The lab file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Which edge switch of the lab file; default: the only one.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Prints what each hop has promised, opens all addresses, closes them again and exits. Refuses
    /// reservations that do not fit.
    #[arg(long)]
    check: bool,
    /// Takes reservations beyond what a hop can keep, on every hop; then all of them are scaled down.
    #[arg(long)]
    oversubscribe: bool,
    /// A socket that orimono-qos asks why hosts get what they get; default: none.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// What is logged to standard error, like info or edge_switch=debug; default: RUST_LOG, info.
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
                eprintln!("edge-switch: {error:#}");
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
    let name = name(arguments.name.as_deref(), &config)?;
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
        return EdgeSwitch::check(&config, &name).context("edge switch cannot start");
    }
    let switch = EdgeSwitch::start(&config, &name).context("edge switch cannot start")?;
    let monitor = Monitor::start(switch.hops(), arguments.control.as_deref())
        .context("edge switch cannot start")?;
    if let Some(signal) = signals.forever().next() {
        tracing::info!(signal, links = switch.links(), "edge switch stops");
    }
    drop(monitor);
    drop(switch);
    Ok(())
}

/// The name of the switch to be: the one asked for, or the only one.
fn name(asked: Option<&str>, config: &LabConfig) -> Result<String> {
    match (asked, &config.edge_switches[..]) {
        (Some(name), _) => Ok(name.to_owned()),
        (None, [only]) => Ok(only.name.clone()),
        (None, []) => bail!("the lab file has no edge switch; add an [[edge-switch]]"),
        (None, [..]) => bail!("the lab file has several edge switches; choose one with --name"),
    }
}

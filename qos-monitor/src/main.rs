//! `orimono-qos`: asks a running `io-director` or `host-agent` why devices get what they get, by
//! which links, what was counted, and what their logical units do; and has it apply a changed lab file.
//!
//! Exit codes: 0 done, 1 refused or failed (also a replay that differs), 2 wrong usage.
#![forbid(unsafe_code)]

mod apply_command;
mod capture;
mod counters_command;
mod devices;
mod explain;
mod luns;
mod paths;
mod record;
mod sla;
mod text;
mod top;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use qos_monitor::Client;
use serde::Serialize;

/// The longest window: a client may be silent for no longer.
const WINDOW_MAX: Duration = Duration::from_secs(300);

/// Says why the devices of an I/O director or a host agent get the bandwidth that they get.
#[derive(Debug, Parser)]
#[command(name = "orimono-qos", version)]
struct Arguments {
    /// The control socket: what the process was given as --control
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Print JSON: rates in bits per second, times in nanoseconds
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Each place where devices share something: its budget and what is promised of it
    Hops,
    /// Each device at each hop: what it is promised, asks for and gets
    Devices {
        /// Rates over this time, like 2s; default: bytes since the device was attached
        #[arg(long = "for", value_name = "TIME", value_parser = window)]
        window: Option<Duration>,
    },
    /// Why a device gets what it gets: records a trace, replays it, and says what frames waited for
    Explain(explain::Explain),
    /// Records what a hop does into a file
    Record(record::Record),
    /// Does again what a file recorded, and says whether the same frames left
    Replay(record::Replay),
    /// Whether promises were kept, interval by interval, since the process began
    Sla,
    /// The devices by rate, live; q quits
    Top,
    /// Each session between host and director, and the links it has
    Paths,
    /// When, why and for how long frames of these sessions went another way: the last 64 of each
    PathChanges,
    /// What was counted of each vNIC, port, access list and logical unit, as ethtool -S shows it
    Counters(counters_command::CountersOf),
    /// Each logical unit of a director: its state, what vHBAs did with it, and how long it took
    Luns,
    /// Each vHBA of a director: its state, what it did, and how long it took
    Vhbas,
    /// Writes the SCSI commands of a vHBA into a file that Wireshark opens
    CaptureScsi(capture::CaptureScsi),
    /// Writes the Ethernet frames of a vNIC or a port into a file, or a pipe, for Wireshark or tcpdump
    CaptureFrames(capture::CaptureFrames),
    /// Has the process read its lab file again and apply what differs; says what became of each object
    Apply,
    /// Has the frames of a session go by another of its links, both directions
    Switchover(paths::Switchover),
}

/// Time on the command line.
fn window(text: &str) -> Result<Duration, String> {
    let window = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if window.is_zero() || window > WINDOW_MAX {
        return Err(format!(
            "is not between 1ns and {}",
            humantime::format_duration(WINDOW_MAX)
        ));
    }
    Ok(window)
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With standard error closed there is nobody to tell.
            drop(writeln!(std::io::stderr(), "orimono-qos: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let json = arguments.json;
    match &arguments.command {
        Command::Hops => devices::hops(&mut arguments.connect()?, json),
        Command::Devices { window } => devices::devices(&mut arguments.connect()?, *window, json),
        Command::Explain(explain) => explain::run(&mut arguments.connect()?, explain, json),
        Command::Record(record) => record::record(&mut arguments.connect()?, record, json),
        Command::Replay(replay) => record::replay(replay, json),
        Command::Sla => sla::run(&mut arguments.connect()?, json),
        Command::Paths => paths::paths(&mut arguments.connect()?, json),
        Command::PathChanges => paths::changes(&mut arguments.connect()?, json),
        Command::Switchover(wanted) => paths::switchover(&mut arguments.connect()?, wanted, json),
        Command::Apply => apply_command::run(&mut arguments.connect()?, json),
        Command::Counters(wanted) => counters_command::run(&mut arguments.connect()?, wanted, json),
        Command::Luns => luns::luns(&mut arguments.connect()?, json),
        Command::Vhbas => luns::vhbas(&mut arguments.connect()?, json),
        Command::CaptureScsi(capture) => capture::scsi(&mut arguments.connect()?, capture, json),
        Command::CaptureFrames(capture) => {
            capture::frames(&mut arguments.connect()?, capture, json)
        }
        Command::Top => {
            arguments.require_terminal();
            top::run(&mut arguments.connect()?)
        }
    }
}

impl Arguments {
    fn require_terminal(&self) {
        if self.json || !std::io::stdout().is_terminal() {
            let message = "top needs a terminal: ask for devices --for 1s instead";
            Self::command()
                .error(ErrorKind::ArgumentConflict, message)
                .exit();
        }
    }

    fn connect(&self) -> Result<Client> {
        let Some(path) = &self.socket else {
            let message = "--socket PATH is needed: what io-director or host-agent was given as \
                --control";
            Self::command()
                .error(ErrorKind::MissingRequiredArgument, message)
                .exit();
        };
        Ok(Client::connect(path)?)
    }
}

/// Prints `text`, or `value` as JSON.
fn print(json: bool, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
    let text = if json {
        serde_json::to_string_pretty(value)? + "\n"
    } else {
        text()
    };
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .context("standard output cannot be written")
}

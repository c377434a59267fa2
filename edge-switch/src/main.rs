//! The edge switch as a process.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;
use edge_switch::EdgeSwitch;
use fabric_config::LabConfig;
use lab_program::LabProgram;

/// Carries the links of hosts to the director, over an uplink that they share.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    program: LabProgram,
    /// Which edge switch of the lab file; default: the only one
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

fn main() -> ExitCode {
    lab_program::main(run)
}

fn run(arguments: &Arguments) -> Result<()> {
    let start = arguments.program.start()?;
    let name = name(arguments.name.as_deref(), &start.lab)?;
    if arguments.program.only_checks() {
        return EdgeSwitch::check(&start.lab, &name).context("edge switch cannot start");
    }
    let switch = EdgeSwitch::start(&start.lab, &name).context("edge switch cannot start")?;
    start.serve("edge switch", &switch)
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

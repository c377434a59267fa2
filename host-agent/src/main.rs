//! `host-agent`: serves the devices of one host until it is told to stop.
#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;
use fabric_config::LabConfig;
use host_agent::{HostAgent, qemu_args};
use lab_program::LabProgram;
use orimono_qemu::{Accelerator, Qemu};

/// Serves the vNICs and vHBAs of one host over one fabric session.
#[derive(Debug, Parser)]
#[command(name = "host-agent", version)]
struct Arguments {
    #[command(flatten)]
    program: LabProgram,
    /// Which host of the lab file this is; needed unless it has only one. With --print-qemu-args of
    /// a VM that moves: where it is to run
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
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
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Accel {
    Kvm,
    Tcg,
}

fn main() -> ExitCode {
    lab_program::main(run)
}

fn run(arguments: &Arguments) -> Result<()> {
    if let Some(vm) = &arguments.print_qemu_args {
        return print_qemu_args(&arguments.program.lab()?, vm, arguments);
    }
    let start = arguments.program.start()?;
    let host = match (&arguments.host, start.lab.hosts.as_slice()) {
        (Some(host), _) => host.clone(),
        (None, [only]) => only.name.clone(),
        (None, _) => bail!("the lab file has several hosts or none: name one with --host"),
    };
    if arguments.program.only_checks() {
        return Ok(());
    }
    let agent = HostAgent::start(&start.lab, &host, arguments.allow_unsealed_memory)?;
    start.serve("host agent", &agent)
}

fn print_qemu_args(lab: &LabConfig, vm: &str, arguments: &Arguments) -> Result<()> {
    let qemu = Qemu::find().context("the arguments depend on the version of QEMU")?;
    let accelerator = match arguments.accel {
        Accel::Kvm => Accelerator::Kvm,
        Accel::Tcg => Accelerator::Tcg,
    };
    let (host, memory) = (arguments.host.as_deref(), &arguments.memory);
    let words = qemu_args::qemu_args(lab, host, vm, memory, qemu.version(), accelerator)?;
    writeln!(std::io::stdout(), "{}", qemu_args::shell_line(&words))?;
    Ok(())
}

//! `orimono-vhba`: one vHBA as a program of its own, by QEMU's conventions for back ends.

use std::process::ExitCode;

use anyhow::Result;
use backend_program::{Common, Device};
use clap::Parser;
use vhba_backend::{VhbaConfig, VhbaDevice, windows};

/// Serves one virtual HBA to QEMU over the fabric.
#[derive(Debug, Parser)]
#[command(name = "orimono-vhba", version)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Request queues; QEMU's num_queues must not be more
    #[arg(long, value_name = "QUEUES", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    queues: u8,
}

fn main() -> ExitCode {
    backend_program::main("scsi", |arguments: &Arguments| &arguments.common, device)
}

fn device(arguments: &Arguments) -> Result<Device> {
    let id = arguments.common.device();
    let device = VhbaDevice::new(VhbaConfig {
        request_queues: arguments.queues.into(),
        ..VhbaConfig::new(format!("vhba-{:x}", id.0), id)
    })?;
    Ok(Device {
        virtio: device.clone(),
        lanes: device,
        windows: windows(),
    })
}

//! `orimono-vnic`: one vNIC as a program of its own, by QEMU's conventions for back ends.

use std::process::ExitCode;

use anyhow::Result;
use backend_program::{Common, Device};
use clap::Parser;
use fabric_payload::ethernet::Offloads;
use vnic_backend::{VnicConfig, VnicDevice, windows};

/// Serves one virtual NIC to QEMU over the fabric.
#[derive(Debug, Parser)]
#[command(name = "orimono-vnic", version)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Queue pairs
    #[arg(long, value_name = "PAIRS", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    queues: u8,
    /// Station address
    #[arg(long, value_name = "xx:xx:xx:xx:xx:xx", value_parser = mac)]
    mac: [u8; 6],
    /// Bytes of the longest packet
    #[arg(long, value_name = "BYTES", default_value_t = 1500, value_parser = clap::value_parser!(u16).range(68..))]
    mtu: u16,
    /// Offer checksum and segmentation offloads: the director's port must be able to do them
    #[arg(long)]
    offloads: bool,
}

fn main() -> ExitCode {
    backend_program::main("net", |arguments: &Arguments| &arguments.common, device)
}

fn device(arguments: &Arguments) -> Result<Device> {
    let id = arguments.common.device();
    let config = VnicConfig::new(format!("vnic-{:x}", id.0), id, arguments.mac);
    let device = VnicDevice::new(VnicConfig {
        queue_pairs: arguments.queues.into(),
        mtu: arguments.mtu,
        offloads: if arguments.offloads {
            Offloads::ALL
        } else {
            Offloads::default()
        },
        ..config
    })?;
    Ok(Device {
        virtio: device.clone(),
        lanes: device,
        windows: windows(),
    })
}

fn mac(text: &str) -> Result<[u8; 6], String> {
    let wrong = || format!("{text:?} is no station address: write 02:00:00:00:00:01");
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts
            .next()
            .filter(|part| part.len() == 2)
            .ok_or_else(wrong)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_digits| wrong())?;
    }
    if parts.next().is_some() {
        return Err(wrong());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn station_addresses_are_read_strictly() {
        assert_eq!(
            mac("02:15:97:00:0a:ff"),
            Ok([0x02, 0x15, 0x97, 0, 0x0a, 0xff])
        );
        for wrong in [
            "",
            "02:15:97:00:0a",
            "02:15:97:00:0a:ff:00",
            "2:15:97:0:a:f",
            "02-15-97-00-0a-ff",
            "0x:15:97:00:0a:ff",
        ] {
            assert!(mac(wrong).is_err(), "{wrong}");
        }
    }
}

//! What both systems are asked to do: the same devices with the same words.

use anyhow::Result;
use qos::{BitRate, DeviceRate, LinkBudget};

/// The link's rate: what two shared cores carry twice over, so that the link is what is scarce.
pub(super) const LINK_MEGABITS: u64 = 1_000;

/// A device that always has something to send.
#[derive(Debug, Clone, Copy)]
pub(super) struct Device {
    pub(super) cir_megabits: u64,
    pub(super) weight: u32,
    pub(super) traffic: Traffic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Traffic {
    /// Frames of 1500 bytes.
    Ethernet,
    /// Data of 64 KiB.
    Storage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Case {
    /// 95 % of the link reserved, what is left in proportion
    Reservations,
    /// 40 % reserved, what is left as 5:3:1:1
    Excess,
}

const fn device(cir_megabits: u64, weight: u32, traffic: Traffic) -> Device {
    Device {
        cir_megabits,
        weight,
        traffic,
    }
}

const RESERVATIONS: [Device; 6] = [
    device(300, 300, Traffic::Storage),
    device(250, 250, Traffic::Ethernet),
    device(200, 200, Traffic::Storage),
    device(100, 100, Traffic::Ethernet),
    device(80, 80, Traffic::Storage),
    device(20, 20, Traffic::Ethernet),
];

const EXCESS: [Device; 4] = [
    device(100, 50, Traffic::Storage),
    device(100, 30, Traffic::Ethernet),
    device(100, 10, Traffic::Storage),
    device(100, 10, Traffic::Ethernet),
];

impl Case {
    pub(super) fn devices(self) -> &'static [Device] {
        match self {
            Self::Reservations => &RESERVATIONS,
            Self::Excess => &EXCESS,
        }
    }

    /// Bit/s that nobody reserved.
    pub(super) fn unreserved(self) -> f64 {
        let reserved: u64 = self
            .devices()
            .iter()
            .map(|device| device.cir_megabits)
            .sum();
        (LINK_MEGABITS - reserved) as f64 * 1e6
    }

    /// Bit/s that each device should get: what it reserved, and its share of the rest.
    pub(super) fn entitled(self) -> Vec<f64> {
        let devices = self.devices();
        let weights: u32 = devices.iter().map(|device| device.weight).sum();
        let entitled = devices.iter().map(|device| {
            let share = f64::from(device.weight) / f64::from(weights);
            device.cir_megabits as f64 * 1e6 + self.unreserved() * share
        });
        entitled.collect()
    }

    pub(super) fn rates(self) -> Result<Vec<DeviceRate>> {
        let rates = self.devices().iter().map(|device| {
            let rate = DeviceRate::new(megabits(device.cir_megabits), None)?;
            Ok(DeviceRate {
                weight: device.weight,
                ..rate
            })
        });
        rates.collect()
    }
}

fn megabits(megabits: u64) -> BitRate {
    BitRate::from_bits_per_second(megabits * 1_000_000)
}

pub(super) fn budget() -> LinkBudget {
    LinkBudget::new("bench link", megabits(LINK_MEGABITS))
}

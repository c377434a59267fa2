//! The schedulers of a SAN port as its monitor sees them.

use fabric_payload::scsi::TRANSFER_BYTES_MAX;

use super::{CHARGE_BYTES_MIN, CommandQueue, Direction, Line};
use crate::port_hop::Watch;

/// One of the schedulers of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::san) enum Limit {
    /// Of operations.
    Operations,
    /// Of bandwidth, one way.
    Bandwidth(Direction),
}

impl<K> CommandQueue<K> {
    /// The scheduler of `limit`; `None` on a port that has no rate.
    pub(in crate::san) fn watch(&mut self, limit: Limit) -> Option<Watch<'_>> {
        let vhbas = self.vhbas.iter().filter_map(|(device, vhba)| {
            let attached = vhba.attached.as_ref()?;
            let line: &Line<K> = match (limit, &attached.directions) {
                (Limit::Operations, _) => attached.operations.as_ref()?,
                (Limit::Bandwidth(Direction::Ingress), directions) => &directions.as_ref()?.0,
                (Limit::Bandwidth(Direction::Egress), directions) => &directions.as_ref()?.1,
            };
            Some((*device, vhba.words.vm.name(), line.handle))
        });
        let devices = vhbas.collect();
        Some(match limit {
            Limit::Operations => Watch {
                scheduler: &mut self.operations,
                frame_bytes_max: CHARGE_BYTES_MIN,
                devices,
            },
            Limit::Bandwidth(direction) => Watch {
                scheduler: self.directions.as_mut()?.of(direction),
                frame_bytes_max: u32::try_from(TRANSFER_BYTES_MAX).unwrap_or(u32::MAX),
                devices,
            },
        })
    }
}

//! The SLA meters of all devices at all hops.

use std::collections::BTreeMap;
use std::sync::Arc;

use qos::{AlarmChange, BitRate, DeviceSnapshot, HopSnapshot, SlaMeter};

use crate::hop::Hop;
use crate::protocol::DeviceSla;

/// What was promised last, and the meter of it.
#[derive(Debug, Default)]
struct Metered {
    promised: BitRate,
    meter: SlaMeter,
}

/// Holds a meter for each device that ever was at a hop: as many as the lab files name.
pub(crate) struct Sampler {
    hops: Vec<(Arc<dyn Hop>, BTreeMap<String, Metered>)>,
}

impl Sampler {
    pub(crate) fn new(hops: Vec<Arc<dyn Hop>>) -> Self {
        let hops = hops.into_iter().map(|hop| (hop, BTreeMap::new()));
        Self {
            hops: hops.collect(),
        }
    }

    /// Watches these from now on. A hop that was watched before under the same name keeps its meters.
    pub(crate) fn replace(&mut self, hops: Vec<Arc<dyn Hop>>) {
        let before = std::mem::take(&mut self.hops).into_iter();
        let mut before: BTreeMap<_, _> = before
            .map(|(hop, meters)| (hop.name().to_owned(), meters))
            .collect();
        let hops = hops.into_iter().map(|hop| {
            let meters = before.remove(hop.name()).unwrap_or_default();
            (hop, meters)
        });
        self.hops = hops.collect();
    }

    /// What is watched.
    pub(crate) fn hops(&self) -> impl Iterator<Item = &Arc<dyn Hop>> {
        self.hops.iter().map(|(hop, _)| hop)
    }

    /// Ends an interval at every hop that is there.
    pub(crate) fn sample(&mut self) {
        for (hop, meters) in &mut self.hops {
            let Some(snapshot) = hop.snapshot() else {
                continue;
            };
            for device in &snapshot.devices {
                if !meters.contains_key(&device.name) {
                    meters.insert(device.name.clone(), Metered::default());
                }
                if let Some(metered) = meters.get_mut(&device.name) {
                    metered.end_interval(&snapshot, device);
                }
            }
        }
    }

    pub(crate) fn report(&self) -> Vec<DeviceSla> {
        let hops = self.hops.iter().flat_map(|(hop, meters)| {
            meters.iter().map(move |(device, metered)| DeviceSla {
                hop: hop.name().to_owned(),
                device: device.clone(),
                promised: metered.promised,
                report: metered.meter.report().clone(),
            })
        });
        hops.collect()
    }
}

impl Metered {
    fn end_interval(&mut self, hop: &HopSnapshot, device: &DeviceSnapshot) {
        self.promised = device.rate.cir;
        let change = self.meter.end_interval(
            hop.at,
            device.rate.cir,
            hop.frame_bytes_max,
            &device.statistics,
        );
        let (name, device) = (&hop.hop, &device.name);
        match (change, self.meter.report().last) {
            (Some(AlarmChange::Raised), Some(last)) => tracing::warn!(
                hop = name,
                device,
                promised = %last.promised.with_unit(),
                achieved = %last.achieved.with_unit(),
                reserved = %hop.reserved.with_unit(),
                reservable = %hop.reservable.with_unit(),
                "device gets less than it was promised"
            ),
            (Some(AlarmChange::Cleared), _) => {
                tracing::info!(hop = name, device, "device gets what it was promised again");
            }
            _ => {}
        }
    }
}

//! What is told when the control socket asks for logical units and vHBAs.

use std::collections::BTreeMap;
use std::sync::Arc;

use qos_monitor::frames::Capture;
use qos_monitor::storage::{
    CaptureWanted, CommandCounts, LunState, Storage, StorageState, VhbaState,
};

use super::NexusStatistics;
use super::statistics::total;
use crate::san::vhba::{Lun, VhbaShared};

/// The logical units and vHBAs that a director has now.
#[derive(Debug, Default)]
pub(crate) struct SanObjects {
    luns: BTreeMap<String, Arc<Lun>>,
    vhbas: BTreeMap<String, Arc<VhbaShared>>,
}

/// What a director has at any time.
pub(crate) struct SanView {
    present: Box<dyn Fn() -> SanObjects + Send + Sync>,
}

impl SanView {
    pub(crate) fn new(present: impl Fn() -> SanObjects + Send + Sync + 'static) -> Self {
        let present = Box::new(present);
        Self { present }
    }
}

impl SanObjects {
    pub(crate) fn new<'a>(
        luns: BTreeMap<String, Arc<Lun>>,
        vhbas: impl Iterator<Item = &'a crate::san::Vhba>,
    ) -> Self {
        let vhbas = vhbas.map(|vhba| {
            let shared = vhba.shared();
            (shared.tap.vhba().to_owned(), shared)
        });
        Self {
            luns,
            vhbas: vhbas.collect(),
        }
    }

    fn lun_name(&self, lun: &Arc<Lun>) -> String {
        let mut luns = self.luns.iter();
        let found = luns.find(|(_, known)| Arc::ptr_eq(known, lun));
        found.map_or_else(String::new, |(name, _)| name.clone())
    }

    fn lun_state(&self, name: &str, lun: &Arc<Lun>) -> LunState {
        let mut seen_by = BTreeMap::new();
        let mut statistics: Vec<Arc<NexusStatistics>> = Vec::new();
        for (vhba, shared) in &self.vhbas {
            for (number, mapped) in &*shared.luns() {
                if Arc::ptr_eq(&mapped.lun, lun) {
                    seen_by.insert(vhba.clone(), *number);
                    statistics.push(mapped.nexus.statistics().clone());
                }
            }
        }
        LunState {
            name: name.to_owned(),
            state: lun.state(),
            bytes: lun.bytes(),
            seen_by,
            commands: CommandCounts {
                in_flight: lun.in_flight.now(),
                in_flight_max: lun.in_flight.highest(),
                ..total(statistics.iter().map(|it| &**it))
            },
        }
    }

    fn vhba_state(&self, name: &str, vhba: &VhbaShared) -> VhbaState {
        let map = vhba.luns();
        let states = map.values().map(|mapped| mapped.lun.state());
        let worst = states.reduce(|one, other| match (one, other) {
            (StorageState::Ready | StorageState::ReadOnly, StorageState::Ready)
            | (StorageState::Ready, StorageState::ReadOnly) => StorageState::Ready,
            _ => one.max(other),
        });
        let session = vhba.lock_current().clone();
        let state = if session.is_none() {
            StorageState::Standby
        } else {
            worst.unwrap_or(StorageState::Ready)
        };
        let luns = map
            .iter()
            .map(|(number, mapped)| (*number, self.lun_name(&mapped.lun)));
        let nexuses = vhba.all_nexuses();
        let statistics = nexuses.iter().map(|nexus| &**nexus.statistics());
        VhbaState {
            name: name.to_owned(),
            wwpn: vhba.tap.wwpn().to_string(),
            state,
            luns: luns.collect(),
            commands: CommandCounts {
                in_flight: session.map_or(0, |session| session.open_commands()),
                in_flight_max: vhba.in_flight_max.get(),
                ..total(statistics)
            },
        }
    }
}

impl Storage for SanView {
    fn luns(&self) -> Vec<LunState> {
        let present = (self.present)();
        let luns = present.luns.iter();
        luns.map(|(name, lun)| present.lun_state(name, lun))
            .collect()
    }

    fn vhbas(&self) -> Vec<VhbaState> {
        let present = (self.present)();
        let vhbas = present.vhbas.iter();
        vhbas
            .map(|(name, vhba)| present.vhba_state(name, vhba))
            .collect()
    }

    fn start_capture(&self, wanted: &CaptureWanted) -> Result<Box<dyn Capture>, String> {
        let present = (self.present)();
        let vhba = present.vhbas.get(&wanted.vhba).ok_or_else(|| {
            let known: Vec<_> = present.vhbas.keys().collect();
            format!("no vhba is named {:?}: there are {known:?}", wanted.vhba)
        })?;
        if let Some(lun) = wanted.lun
            && !vhba.luns().contains_key(&lun)
        {
            let map = vhba.luns();
            let known: Vec<_> = map.keys().collect();
            return Err(format!(
                "{} has no LUN {lun}: there are {known:?}",
                wanted.vhba
            ));
        }
        vhba.tap.start(wanted)
    }
}

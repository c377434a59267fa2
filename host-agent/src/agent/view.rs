//! What a host agent tells of its devices.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use fabric_config::HostConfig;
use fabric_transport::DeviceId;
use qos_monitor::{DeviceState, Devices};

use super::HostUplink;
use crate::plug::Plugs;

#[derive(Debug)]
struct Known {
    id: DeviceId,
    name: String,
    vm: String,
    generation: u32,
}

/// The devices of the lab file in force, and where each of them is.
#[derive(Debug)]
pub(super) struct View {
    uplink: Weak<HostUplink>,
    plugs: Arc<Plugs>,
    known: Mutex<Vec<Known>>,
}

impl View {
    pub(super) fn new(uplink: &Arc<HostUplink>, plugs: &Arc<Plugs>, host: &HostConfig) -> Self {
        let view = Self {
            uplink: Arc::downgrade(uplink),
            plugs: plugs.clone(),
            known: Mutex::default(),
        };
        view.set(host);
        view
    }

    pub(super) fn set(&self, host: &HostConfig) {
        let devices = host.vms.iter().flat_map(|vm| {
            let vnics = vm.vnics.iter().map(|it| (it.id, &it.name, it.generation));
            let vhbas = vm.vhbas.iter().map(|it| (it.id, &it.name, it.generation));
            let known = vnics.chain(vhbas).map(|(id, name, generation)| Known {
                id,
                name: name.clone(),
                vm: vm.name.clone(),
                generation,
            });
            known.collect::<Vec<_>>()
        });
        let mut known: Vec<_> = devices.collect();
        known.sort_by(|one, other| one.name.cmp(&other.name));
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = known;
    }
}

impl Devices for View {
    fn devices(&self) -> Vec<DeviceState> {
        let Some(uplink) = self.uplink.upgrade() else {
            return Vec::new();
        };
        let active = uplink.active();
        let (endpoint, refused) = (active.endpoint(), active.refused());
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let devices = known.iter().map(|known| {
            let reason = refused.iter().find(|(id, _)| *id == known.id);
            let endpoint = endpoint.as_ref();
            DeviceState {
                name: known.name.clone(),
                generation: known.generation,
                attached: endpoint.is_some_and(|endpoint| endpoint.is_attached(known.id)),
                refused: reason.map(|(_, reason)| reason.clone()),
                guest: self.plugs.guest(&known.vm, &known.name),
            }
        });
        devices.collect()
    }
}

//! Virtual HBAs.

use controller_api::objects::Vhba;
use fabric_config::{LUN_MAX, VHBA_QUEUES_MAX};
use qos::PolicyKind;

use super::item::Item;
use super::port::{PortRef, PortUse};
use super::{Model, Problem, device, names, policy, pool, storage, system};

impl Item for Vhba {
    const KEPT: &'static [&'static str] = &["id", "from-template", "pci-slot"];

    fn check_name(name: &str) -> Result<(), Problem> {
        names::device(name)
    }

    fn settle(
        &mut self,
        name: &str,
        before: Option<&Self>,
        model: &mut Model,
    ) -> Result<(), Problem> {
        policy::settle_attachment(&mut self.ingress_qos);
        policy::settle_attachment(&mut self.egress_qos);
        if self.id == 0 {
            self.id = system::take_id(model);
        }
        device::settle_slot(&mut self.pci_slot, name, model);
        self.wwpn = match (self.wwpn.as_str(), before) {
            ("", Some(before)) => before.wwpn.clone(),
            ("", None) => pool::take_wwpn(model)?.to_string(),
            (text, _) => pool::wwpn(text)?.to_string(),
        };
        for name in [&mut self.termination, &mut self.map, &mut self.lun_mask] {
            if name == "none" {
                name.clear();
            }
        }
        Ok(())
    }

    fn check(&self, name: &str, model: &Model) -> Result<(), Problem> {
        device::check_profile(name, model)?;
        if !self.termination.is_empty() {
            model.check_port(&self.termination.parse::<PortRef>()?, PortUse::San)?;
        }
        let wwpns = model
            .vhbas
            .iter()
            .map(|(other, vhba)| (other, vhba.wwpn.as_str()));
        device::check_unique(name, "wwpn", &self.wwpn, wwpns)?;
        let ids = model.vhbas_of(names::profile_of(name));
        device::check_local_id(
            name,
            self.local_id,
            ids.map(|(other, of)| (other, of.local_id)),
        )?;
        device::check_queues(self.queues, VHBA_QUEUES_MAX)?;
        device::check_slot(self.pci_slot, name, model)?;
        storage::check_luns(&self.luns, model)?;
        for (kind, name, there) in [
            (
                "lun-mask",
                &self.lun_mask,
                model.lun_masks.contains_key(&self.lun_mask),
            ),
            ("san map", &self.map, model.san_maps.contains_key(&self.map)),
        ] {
            if !name.is_empty() && !there {
                return Err(Problem::not_found(
                    format_args!("there is no {kind} {name}"),
                    format_args!("add {kind} {name} first"),
                ));
            }
        }
        policy::check_attachment(&self.ingress_qos, PolicyKind::San, model)?;
        policy::check_attachment(&self.egress_qos, PolicyKind::San, model)
    }
}

impl Model {
    /// What the guest sees of the LUNs behind the vHBA's port, by number.
    pub(crate) fn luns_seen(&self, vhba: &Vhba) -> Vec<(u16, String)> {
        let behind = |name: &String| {
            let lun = self.luns.get(name);
            lun.is_some_and(|lun| lun.port == vhba.termination)
        };
        if vhba.no_lun_masking {
            let all = self.luns.keys().filter(|name| behind(name)).cloned();
            return (0..=LUN_MAX).zip(all).collect();
        }
        let mask = self.lun_masks.get(&vhba.lun_mask);
        let mut luns = mask.map(|mask| mask.luns.clone()).unwrap_or_default();
        luns.extend(vhba.luns.clone());
        luns.into_iter().filter(|(_, name)| behind(name)).collect()
    }
}

//! Logical units, masks and maps.

use std::collections::BTreeMap;

use controller_api::objects::{Lun, LunMask, SanMap};
use fabric_config::LUN_MAX;

use super::item::Item;
use super::port::{PortRef, PortUse};
use super::{Model, Problem, pool};

/// Refuses numbers and names that are not there.
pub(super) fn check_luns(luns: &BTreeMap<u16, String>, model: &Model) -> Result<(), Problem> {
    for (number, name) in luns {
        if *number > LUN_MAX {
            return Err(Problem::invalid(
                format_args!("lun {number} is no number"),
                format_args!("use 0 to {LUN_MAX}"),
            ));
        }
        if !model.luns.contains_key(name) {
            return Err(Problem::not_found(
                format_args!("there is no lun {name}"),
                format_args!("add lun {name} SLOT/PORT -file=PATH first"),
            ));
        }
    }
    Ok(())
}

impl Item for Lun {
    fn check(&self, _: &str, model: &Model) -> Result<(), Problem> {
        let media = [
            &self.file,
            &self.block_device,
            &self.qcow2,
            &self.ram,
            &self.null,
            &self.iscsi,
            &self.sg,
        ];
        if media.iter().filter(|medium| !medium.is_empty()).count() != 1 {
            return Err(Problem::invalid(
                "it is not said what it keeps its blocks on",
                "say one of -file, -block-device, -qcow2, -ram, -null, -iscsi, -sg",
            ));
        }
        model.check_port(&self.port.parse::<PortRef>()?, PortUse::San)
    }

    fn user(name: &str, model: &Model) -> Option<String> {
        let has = |luns: &BTreeMap<u16, String>| luns.values().any(|lun| lun == name);
        let mut masks = model.lun_masks.iter();
        let mut vhbas = model.vhbas.iter();
        let mask = masks
            .find(|(_, mask)| has(&mask.luns))
            .map(|(of, _)| format!("lun-mask {of}"));
        mask.or_else(|| {
            vhbas
                .find(|(_, vhba)| has(&vhba.luns))
                .map(|(of, _)| format!("vhba {of}"))
        })
    }
}

impl Item for LunMask {
    fn check(&self, _: &str, model: &Model) -> Result<(), Problem> {
        check_luns(&self.luns, model)
    }

    fn user(name: &str, model: &Model) -> Option<String> {
        let mut vhbas = model.vhbas.iter();
        vhbas
            .find(|(_, vhba)| vhba.lun_mask == name)
            .map(|(of, _)| format!("vhba {of}"))
    }
}

impl Item for SanMap {
    fn settle(&mut self, _: &str, _: Option<&Self>, _: &mut Model) -> Result<(), Problem> {
        for target in self.entries.values_mut() {
            *target = pool::wwpn(target)?.to_string();
        }
        Ok(())
    }

    fn check(&self, _: &str, _: &Model) -> Result<(), Problem> {
        Ok(())
    }

    fn user(name: &str, model: &Model) -> Option<String> {
        let mut vhbas = model.vhbas.iter();
        vhbas
            .find(|(_, vhba)| vhba.map == name)
            .map(|(of, _)| format!("vhba {of}"))
    }
}

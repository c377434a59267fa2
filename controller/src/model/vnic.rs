//! Virtual NICs.

use core::net::Ipv4Addr;

use controller_api::objects::{AddrType, Vnic, VnicMode};
use fabric_config::{MTU_MAX, MTU_MIN, VNIC_QUEUES_MAX};
use qos::PolicyKind;

use super::item::Item;
use super::network::{VLAN_MAX, check_vlan};
use super::port::{self, PortRef, PortUse};
use super::{Model, Problem, device, names, policy, pool, ranges, system};

impl Item for Vnic {
    const KEPT: &'static [&'static str] = &["id", "from-template", "pci-slot", "switched"];

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
        self.mac = match (self.mac.as_str(), before) {
            ("", Some(before)) => before.mac.clone(),
            ("", None) => pool::take_mac(model)?.to_string(),
            (text, _) => pool::mac(text)?.to_string(),
        };
        for end in [&mut self.termination, &mut self.ha] {
            if end == "none" {
                end.clear();
            }
        }
        if !self.allowed_vlans.is_empty() {
            let vlans = ranges::parse(&self.allowed_vlans, 1, VLAN_MAX)?;
            self.allowed_vlans = ranges::text(&vlans);
        }
        if let Some((address, bits)) = self.ip_addr.clone().split_once('/') {
            self.netmask = mask(bits)?.to_string();
            self.ip_addr = address.to_owned();
        }
        Ok(())
    }

    fn check(&self, name: &str, model: &Model) -> Result<(), Problem> {
        device::check_profile(name, model)?;
        check_termination(&self.termination, model)?;
        check_ha(self, model)?;
        let macs = model
            .vnics
            .iter()
            .map(|(other, vnic)| (other, vnic.mac.as_str()));
        device::check_unique(name, "mac", &self.mac, macs)?;
        let ids = model.vnics_of(names::profile_of(name));
        device::check_local_id(
            name,
            self.local_id,
            ids.map(|(other, of)| (other, of.local_id)),
        )?;
        device::check_queues(self.queues, VNIC_QUEUES_MAX)?;
        device::check_slot(self.pci_slot, name, model)?;
        check_address(self)?;
        check_vlans(self)?;
        if let Some(mtu) = self.mtu.filter(|mtu| !(MTU_MIN..=MTU_MAX).contains(mtu)) {
            return Err(Problem::invalid(
                format_args!("mtu {mtu} is not possible"),
                format_args!("use {MTU_MIN} to {MTU_MAX}"),
            ));
        }
        policy::check_attachment(&self.ingress_qos, PolicyKind::Network, model)?;
        policy::check_attachment(&self.egress_qos, PolicyKind::Network, model)
    }
}

/// Refuses what a vNIC cannot end at. A port of a module that is not there yet is no mistake.
fn check_termination(text: &str, model: &Model) -> Result<(), Problem> {
    if text.is_empty() {
        return Ok(());
    }
    if text.contains('/') {
        return model.check_port(&text.parse::<PortRef>()?, PortUse::Ethernet);
    }
    if text.contains('.') {
        port::lag(text)?;
        return match model.lags.contains_key(text) {
            true => Ok(()),
            false => Err(Problem::not_found(
                format_args!("there is no lag {text}"),
                format_args!("add lag {text} -ports=FIRST-LAST first"),
            )),
        };
    }
    if model.public_networks.contains_key(text) || model.pvis.contains_key(text) {
        return Ok(());
    }
    Err(Problem::not_found(
        format_args!("{text:?} is no port, lag or network"),
        "write a port like 10/1, none, or add the network first",
    ))
}

fn check_ha(vnic: &Vnic, model: &Model) -> Result<(), Problem> {
    check_termination(&vnic.ha, model)?;
    if vnic.ha.is_empty() {
        return match vnic.auto_switchover || vnic.switched {
            true => Err(Problem::invalid(
                "it has no other port to switch to",
                "add -ha=SLOT/PORT, or leave -auto-switchover out",
            )),
            false => Ok(()),
        };
    }
    if vnic.ha == vnic.termination {
        return Err(Problem::invalid(
            format_args!("both its ports are {}", vnic.ha),
            "choose two",
        ));
    }
    Ok(())
}

fn check_address(vnic: &Vnic) -> Result<(), Problem> {
    if vnic.addr_type != AddrType::Static {
        return match vnic.ip_addr.is_empty() && vnic.netmask.is_empty() {
            true => Ok(()),
            false => Err(Problem::invalid(
                "an address stands beside an addr-type that is not static",
                "add -addr-type=static, or leave -ip-addr and -netmask out",
            )),
        };
    }
    let address = match vnic.ip_addr.as_str() {
        "" => Err(Problem::invalid(
            "addr-type static has no address",
            "add -ip-addr=ADDRESS",
        )),
        text => device::address(text),
    }?;
    if address.is_unspecified() || address.is_multicast() || address.is_broadcast() {
        return Err(Problem::invalid(
            format_args!("{address} is no station's address"),
            "use one like 192.168.10.201",
        ));
    }
    if !vnic.netmask.is_empty() {
        mask(&vnic.netmask)?;
    }
    Ok(())
}

fn check_vlans(vnic: &Vnic) -> Result<(), Problem> {
    check_vlan(vnic.access_vlan)?;
    match (vnic.mode, vnic.access_vlan, vnic.allowed_vlans.as_str()) {
        (VnicMode::Trunk, Some(_), _) => Err(Problem::invalid(
            "a trunk has no access VLAN",
            "use -mode=access, or -access-vlan=none",
        )),
        (VnicMode::Access, _, text) if !text.is_empty() => Err(Problem::invalid(
            "allowed VLANs belong to a trunk",
            "use -mode=trunk, or -allowed-vlans=none",
        )),
        _ => Ok(()),
    }
}

/// A netmask, written as an address or as a number of bits.
fn mask(text: &str) -> Result<Ipv4Addr, Problem> {
    let wrong = || {
        Problem::invalid(
            format_args!("{text:?} is no netmask"),
            "write it like 255.255.255.0 or 24",
        )
    };
    if let Ok(bits) = text.parse::<u32>() {
        let host = 32_u32.checked_sub(bits).ok_or_else(wrong)?;
        return Ok(Ipv4Addr::from(u32::MAX.checked_shl(host).unwrap_or(0)));
    }
    let mask = text.parse::<Ipv4Addr>().map_err(|_not_one| wrong())?;
    // Ones, then zeroes: the complement is one less than a power of two.
    let complement = !u32::from(mask);
    match complement.checked_add(1).is_none_or(u32::is_power_of_two) {
        true => Ok(mask),
        false => Err(wrong()),
    }
}

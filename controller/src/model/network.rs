//! Networks that vNICs join by name.

use controller_api::objects::{PublicNetwork, Pvi};

use super::item::Item;
use super::port::PortUse;
use super::{Model, Problem, names};

/// The largest VLAN (IEEE 802.1Q section 9.6).
pub(super) const VLAN_MAX: u16 = 4094;

/// Refuses a number that is no VLAN.
pub(super) fn check_vlan(vlan: Option<u16>) -> Result<(), Problem> {
    match vlan {
        Some(vlan) if !(1..=VLAN_MAX).contains(&vlan) => Err(Problem::invalid(
            format_args!("{vlan} is no VLAN"),
            format_args!("use 1 to {VLAN_MAX}"),
        )),
        _ => Ok(()),
    }
}

/// Both kinds share their names, and with them vNICs refer to either.
fn check_name(name: &str) -> Result<(), Problem> {
    names::plain(name)?;
    if name == "none" {
        return Err(Problem::invalid(
            "none means no network",
            "use another name",
        ));
    }
    Ok(())
}

fn user(name: &str, model: &Model) -> Option<String> {
    let mut vnics = model.vnics.iter();
    let user = vnics.find(|(_, vnic)| vnic.termination == name || vnic.ha == name);
    user.map(|(user, _)| format!("vnic {user}"))
}

fn taken(kind: &str, name: &str) -> Problem {
    Problem::conflict(
        format_args!("there is a {kind} {name}"),
        "use another name: vNICs name both alike",
    )
}

impl Item for PublicNetwork {
    fn check_name(name: &str) -> Result<(), Problem> {
        check_name(name)
    }

    fn check(&self, name: &str, model: &Model) -> Result<(), Problem> {
        if model.pvis.contains_key(name) {
            return Err(taken("pvi", name));
        }
        check_vlan(self.vlan)?;
        model.check_port(&self.port.parse()?, PortUse::Ethernet)
    }

    fn user(name: &str, model: &Model) -> Option<String> {
        user(name, model)
    }
}

impl Item for Pvi {
    fn check_name(name: &str) -> Result<(), Problem> {
        check_name(name)
    }

    fn check(&self, name: &str, model: &Model) -> Result<(), Problem> {
        match model.public_networks.contains_key(name) {
            true => Err(taken("public-network", name)),
            false => Ok(()),
        }
    }

    fn user(name: &str, model: &Model) -> Option<String> {
        user(name, model)
    }
}

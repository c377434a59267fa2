//! Where profiles and devices are.

use controller_api::AdminState;
use controller_api::objects::{Iocard, ServerProfile, Vhba, Vnic};
use fabric_config::PortName;

use super::Model;
use super::port::PortRef;

/// Where the devices of a profile are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place<'a> {
    /// No server is chosen.
    Unbound,
    /// The server that is chosen is on no known host.
    Unassigned(String),
    /// On a host.
    Host { host: &'a str, director: &'a str },
}

/// What a device ends at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Resolved {
    Port(PortName),
    /// It is wanted to end nowhere.
    Nowhere,
    /// What it should end at is not there, and why.
    Missing(String),
}

impl Model {
    /// Where the devices of `profile` are.
    pub(crate) fn place<'a>(&'a self, profile: &'a ServerProfile) -> Place<'a> {
        if profile.server.is_empty() {
            return Place::Unbound;
        }
        let said = self
            .physical_servers
            .get(&profile.server)
            .map(|server| server.host.as_str());
        let (_, behind) = profile.server.split_once('@').unwrap_or_default();
        let name = said.filter(|host| !host.is_empty()).unwrap_or(behind);
        let host = self.hosts.get_key_value(name);
        let placed = host.and_then(|(name, host)| Some((name, self.director_of(host)?)));
        match placed {
            Some((host, director)) => Place::Host { host, director },
            None => Place::Unassigned(format!("{} has not been seen", profile.server)),
        }
    }

    /// The port of `director` that a vNIC ends at.
    pub(crate) fn resolve_vnic(&self, director: &str, vnic: &Vnic) -> Resolved {
        let end = match vnic.switched {
            true => &vnic.ha,
            false => &vnic.termination,
        };
        if let Some(network) = self.public_networks.get(end) {
            return self.resolve_port(director, &network.port);
        }
        if self.pvis.contains_key(end) {
            return Resolved::Missing(format!("private network {end} is not served yet"));
        }
        if end.contains('.') && !end.contains('/') {
            return Resolved::Missing(format!("lag {end} is not served yet"));
        }
        self.resolve_port(director, end)
    }

    /// The port of `director` that a vHBA ends at.
    pub(crate) fn resolve_vhba(&self, director: &str, vhba: &Vhba) -> Resolved {
        let end = &vhba.termination;
        match self.resolve_port(director, end) {
            // A SAN port is there as soon as there is something behind it.
            Resolved::Port(_) if self.luns.values().all(|lun| lun.port != *end) => {
                Resolved::Missing(format!("no lun stands behind {end}"))
            }
            resolved => resolved,
        }
    }

    pub(crate) fn resolve_port(&self, director: &str, end: &str) -> Resolved {
        if end.is_empty() {
            return Resolved::Nowhere;
        }
        let Ok(port) = end.parse::<PortRef>() else {
            return Resolved::Missing(format!("{end} is not there"));
        };
        if let Some(other) = port.director.filter(|other| other != director) {
            return Resolved::Missing(format!("its host is served by {director}, not by {other}"));
        }
        let slot = port.port.slot();
        match self.iocard(Some(director), slot) {
            None => Resolved::Missing(format!("slot {slot} of {director} is empty")),
            Some(card) => match usable(card, port.port) {
                Ok(()) => Resolved::Port(port.port),
                Err(reason) => Resolved::Missing(reason),
            },
        }
    }
}

fn usable(card: &Iocard, port: PortName) -> Result<(), String> {
    if card.admin == AdminState::Down {
        return Err(format!("module {} is down", port.slot()));
    }
    if port.port() > card.kind.ports() {
        let kind = card.kind.text();
        return Err(format!(
            "module {} is {kind} and has no port {port}",
            port.slot()
        ));
    }
    Ok(())
}

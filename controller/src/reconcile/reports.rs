//! What directors and hosts are, by their own words.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use controller_api::Alarm;
use qos_monitor::Client;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::apply::Pending;

/// What is known of all nodes. Who does not answer is not in it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reports {
    nodes: BTreeMap<String, Node>,
}

#[derive(Debug, Clone)]
struct Node {
    /// Names of the devices that are there, or why nobody knows.
    devices: Result<BTreeSet<String>, String>,
    /// What is not in force of its lab file, or why all of that is not.
    told: Result<Pending, String>,
    /// Since when it is as it is (RFC 3339).
    since: String,
}

impl Reports {
    /// Asks the node whose files are in `folder`.
    pub(super) fn ask(
        &mut self,
        node: &str,
        folder: &Path,
        told: Result<Pending, String>,
        before: &Self,
    ) {
        let socket = folder.join("control.sock");
        let devices = match socket.exists() {
            true => devices(&socket),
            // Nobody ever listened there, or it was stopped in order.
            false if told.is_ok() => return,
            false => Err("it does not report".to_owned()),
        };
        let old = before.nodes.get(node);
        let old = old.filter(|old| old.devices.is_ok() == devices.is_ok() && old.told == told);
        let since = old.map(|old| old.since.clone()).unwrap_or_else(|| {
            OffsetDateTime::now_utc()
                .format(&Rfc3339)
                .unwrap_or_default()
        });
        let report = Node {
            devices,
            told,
            since,
        };
        self.nodes.insert(node.to_owned(), report);
    }

    /// Whether a device is there; `None` if its host does not report.
    pub(crate) fn has_device(&self, host: &str, device: &str) -> Option<bool> {
        let node = self.nodes.get(host)?;
        node.devices
            .as_ref()
            .ok()
            .map(|devices| devices.contains(device))
    }

    /// Whether a node works; `None` if it does not report.
    pub(crate) fn is_up(&self, node: &str) -> Option<Result<(), &str>> {
        let node = self.nodes.get(node)?;
        Some(
            node.devices
                .as_ref()
                .map(|_devices| ())
                .map_err(String::as_str),
        )
    }

    /// Whether a node answered.
    pub(super) fn knows(&self, node: &str) -> bool {
        self.nodes
            .get(node)
            .is_some_and(|node| node.devices.is_ok())
    }

    /// What became of the last lab file of a node.
    pub(super) fn told(&self, node: &str) -> Result<Pending, String> {
        self.nodes
            .get(node)
            .map_or_else(|| Ok(Pending::new()), |node| node.told.clone())
    }

    /// Fields of an object that are not in force somewhere, and why.
    pub(crate) fn pending(&self, object: &str) -> BTreeMap<String, String> {
        let mut fields = BTreeMap::new();
        for (name, node) in &self.nodes {
            let of = node
                .told
                .as_ref()
                .ok()
                .and_then(|pending| pending.get(object));
            for (field, reason) in of.into_iter().flatten() {
                fields.insert(field.clone(), format!("{name}: {reason}"));
            }
        }
        fields
    }

    /// What wants attention.
    pub(crate) fn alarms(&self) -> Vec<Alarm> {
        let mut alarms = Vec::new();
        for (name, node) in &self.nodes {
            let silent = node.devices.as_ref().err();
            let untold = node.told.as_ref().err();
            for problem in silent.into_iter().chain(untold).cloned() {
                alarms.push(Alarm {
                    object: format!("node {name}"),
                    problem,
                    since: node.since.clone(),
                });
            }
        }
        alarms
    }

    #[cfg(test)]
    pub(crate) fn of(host: &str, devices: &[&str]) -> Self {
        let node = Node {
            devices: Ok(devices.iter().map(|name| (*name).to_owned()).collect()),
            told: Ok(Pending::new()),
            since: String::new(),
        };
        Self {
            nodes: BTreeMap::from([(host.to_owned(), node)]),
        }
    }
}

/// The devices that a program has on any of its hops.
fn devices(socket: &Path) -> Result<BTreeSet<String>, String> {
    let hops = Client::connect(socket).and_then(|mut client| client.state());
    let hops = hops.map_err(|error| error.to_string())?;
    let snapshots = hops.into_iter().filter_map(|hop| hop.snapshot);
    let devices = snapshots.flat_map(|snapshot| snapshot.devices);
    Ok(devices.map(|device| device.name).collect())
}

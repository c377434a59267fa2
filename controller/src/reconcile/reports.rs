//! What directors and hosts are, by their own words.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use controller_api::Alarm;
use qos_monitor::Client;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// What is known of all nodes. Who does not answer is not in it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reports {
    nodes: BTreeMap<String, Node>,
}

#[derive(Debug, Clone)]
struct Node {
    /// Names of the devices that are there, or why nobody knows.
    devices: Result<BTreeSet<String>, String>,
    /// Why its lab file could not be written.
    untold: Option<String>,
    /// Since when it is as it is (RFC 3339).
    since: String,
}

impl Reports {
    /// Asks the node whose files are in `folder`.
    pub(super) fn ask(
        &mut self,
        node: &str,
        folder: &Path,
        untold: Option<io::Error>,
        before: &Self,
    ) {
        let socket = folder.join("control.sock");
        let devices = match socket.exists() {
            true => devices(&socket),
            // Nobody ever listened there, or it was stopped in order.
            false if untold.is_none() => return,
            false => Err("it does not report".to_owned()),
        };
        let untold = untold.map(|error| error.to_string());
        let old = before.nodes.get(node);
        let old = old.filter(|old| old.devices.is_ok() == devices.is_ok() && old.untold == untold);
        let since = old.map(|old| old.since.clone()).unwrap_or_else(|| {
            OffsetDateTime::now_utc()
                .format(&Rfc3339)
                .unwrap_or_default()
        });
        let report = Node {
            devices,
            untold,
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

    /// What wants attention.
    pub(crate) fn alarms(&self) -> Vec<Alarm> {
        let mut alarms = Vec::new();
        for (name, node) in &self.nodes {
            let silent = node.devices.as_ref().err();
            let untold = node
                .untold
                .as_ref()
                .map(|error| format!("its lab file cannot be written: {error}"));
            for problem in silent.cloned().into_iter().chain(untold) {
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
            untold: None,
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

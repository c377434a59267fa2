//! What directors and hosts are, by their own words.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use controller_api::Alarm;
use fabric_config::Outcome;
use qos_monitor::DeviceState;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::apply::{Connection, Pending, Told, hang_up, pending};
use super::{AGAIN, files};
use crate::model::NodeFile;

/// What is known of one node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Node {
    /// What it was told last, and has answered to.
    file: Option<Arc<NodeFile>>,
    /// Why it has taken nothing of that.
    refused: Option<String>,
    /// What is not in force of it.
    pending: Pending,
    /// Its devices by name, or why nobody knows; `None`: it does not report.
    devices: Option<Result<BTreeMap<String, DeviceState>, String>>,
    /// Its process.
    process: i32,
    told_at: Option<Instant>,
    /// Since when it is as it is (RFC 3339).
    since: String,
}

impl Node {
    /// What it was told last, and has answered to.
    pub(super) fn file(&self) -> Option<&Arc<NodeFile>> {
        self.file.as_ref()
    }

    /// Whether nothing is to be told to anyone.
    pub(crate) fn is_as(&self, other: &Self) -> bool {
        let file = |node: &Self| node.file.as_ref().map(Arc::as_ptr);
        self.devices == other.devices
            && self.refused == other.refused
            && self.pending == other.pending
            && file(self) == file(other)
    }

    /// Devices that it, or its file, has.
    pub(crate) fn devices(&self) -> impl Iterator<Item = &String> {
        let told = self.file.iter().flat_map(|file| file.devices.keys());
        let own = self.devices.iter().flatten().flat_map(BTreeMap::keys);
        told.chain(own)
    }

    /// What is known after it was given `file` in `place`, if that is new to it, and asked.
    pub(super) fn visited(mut self, node: &str, place: &Path, file: &Arc<NodeFile>) -> Self {
        let before = self.clone();
        match files::replace(place, &file.text) {
            Ok(false) => {}
            Ok(true) => tracing::info!(node, "has a new lab file"),
            Err(error) => {
                self.refused = Some(format!("its lab file cannot be written: {error}"));
                return self.since(&before);
            }
        }
        let opened = Connection::open(place);
        let mut connection = match opened {
            Ok(connection) => connection,
            Err(error) => {
                let listened = place.join("control.sock").exists();
                // It is not there, and reads the file when it starts.
                if self.file.as_ref().is_none_or(|known| **known != **file) {
                    hang_up(place);
                }
                self = Self {
                    // Nobody ever listened there, or it was stopped in order.
                    devices: listened.then(|| Err(format!("it does not answer: {error}"))),
                    ..Self::default()
                };
                return self.since(&before);
            }
        };
        let is_another = self.process != connection.process || self.devices.is_none();
        if is_another {
            self = Self::default();
            self.process = connection.process;
        }
        let is_news = self
            .file
            .as_ref()
            .is_none_or(|known| known.text != file.text);
        let is_due = || self.told_at.is_none_or(|at| at.elapsed() > AGAIN);
        // Who was told by a controller that then ended is told again: what is in force already is no
        // difference.
        if is_news || (self.refused.is_some() && is_due()) {
            self.take(connection.apply(place));
            self.told_at = Some(Instant::now());
            if let Some(reason) = &self.refused {
                tracing::error!(node, reason, "does not take its lab file");
            }
        }
        self.file = Some(file.clone());
        self.devices = Some(connection.devices().map(|devices| {
            let named = devices.into_iter().map(|it| (it.name.clone(), it));
            named.collect()
        }));
        self.since(&before)
    }

    fn take(&mut self, told: Told) {
        let was_refused = self.refused.take().is_some();
        match told {
            Told::Unknown => self.pending.clear(),
            Told::Refused(reason) => {
                self.pending.clear();
                self.refused = Some(reason);
            }
            Told::Report(report) => {
                self.refused = report.refused.clone();
                if was_refused || self.refused.is_some() {
                    self.pending.clear();
                }
                // What failed before and is not spoken of is as it was.
                for object in &report.objects {
                    if object.outcome == Outcome::Done {
                        self.pending.remove(&object.object);
                    }
                }
                self.pending.extend(pending(&report));
            }
        }
    }

    fn since(mut self, before: &Self) -> Self {
        let troubled = |node: &Self| {
            let silent = node
                .devices
                .as_ref()
                .and_then(|it| it.as_ref().err())
                .cloned();
            (silent, node.refused.clone(), node.pending.clone())
        };
        let same = troubled(&self) == troubled(before) && !before.since.is_empty();
        self.since = match same {
            true => before.since.clone(),
            false => OffsetDateTime::now_utc()
                .format(&Rfc3339)
                .unwrap_or_default(),
        };
        self
    }
}

/// What became of a device at one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Taken {
    /// What is wanted.
    Yes,
    /// Not yet, and which fields.
    NotYet(Vec<String>),
    /// The node does not report.
    Unknown,
}

/// What is known of all nodes. Who does not answer is not in it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reports {
    nodes: BTreeMap<String, Node>,
}

impl Reports {
    /// Takes what one node is now; returns what it was.
    pub(crate) fn set(&mut self, node: &str, report: Node) -> Option<Node> {
        self.nodes.insert(node.to_owned(), report)
    }

    /// There is no such node any more.
    pub(crate) fn forget(&mut self, node: &str) {
        self.nodes.remove(node);
    }

    /// A device at its host: `None` if that does not report, `Some(None)` if it is not there.
    pub(crate) fn device(&self, host: &str, device: &str) -> Option<Option<&DeviceState>> {
        let devices = self.nodes.get(host)?.devices.as_ref()?.as_ref().ok()?;
        Some(devices.get(device))
    }

    /// Whether a node works; `None` if it does not report.
    pub(crate) fn is_up(&self, node: &str) -> Option<Result<(), &str>> {
        let devices = self.nodes.get(node)?.devices.as_ref()?;
        Some(devices.as_ref().map(|_| ()).map_err(String::as_str))
    }

    /// Why a node has not taken its last file.
    pub(crate) fn refused(&self, node: &str) -> Option<&str> {
        self.nodes.get(node)?.refused.as_deref()
    }

    /// Whether a node that reports has answered to `file`.
    pub(crate) fn is_told(&self, node: &str, file: &Arc<NodeFile>) -> bool {
        let node = self
            .nodes
            .get(node)
            .filter(|node| matches!(node.devices, Some(Ok(_))));
        node.is_none_or(|node| node.file.as_ref().is_some_and(|it| it.text == file.text))
    }

    /// Whether a node has answered to the words of `device` as they are in `file`.
    pub(crate) fn taken(&self, node: &str, device: &str, file: &Arc<NodeFile>) -> Taken {
        let node = self
            .nodes
            .get(node)
            .filter(|node| matches!(node.devices, Some(Ok(_))));
        let Some(told) = node.and_then(|node| node.file.as_ref()) else {
            return Taken::Unknown;
        };
        if Arc::ptr_eq(told, file) {
            return Taken::Yes;
        }
        match (told.devices.get(device), file.devices.get(device)) {
            (told, wanted) if told == wanted => Taken::Yes,
            (Some(told), Some(wanted)) => {
                let fields = told.keys().chain(wanted.keys());
                let mut fields: Vec<_> = fields
                    .filter(|field| told.get(*field) != wanted.get(*field))
                    .cloned()
                    .collect();
                fields.sort();
                fields.dedup();
                Taken::NotYet(fields)
            }
            _ => Taken::NotYet(vec!["all".to_owned()]),
        }
    }

    /// Fields of an object that are not in force somewhere, and why.
    pub(crate) fn pending(&self, object: &str) -> BTreeMap<String, String> {
        let mut fields = BTreeMap::new();
        for (name, node) in &self.nodes {
            for (field, reason) in node.pending.get(object).into_iter().flatten() {
                fields.insert(field.clone(), format!("{name}: {reason}"));
            }
        }
        fields
    }

    /// What wants attention.
    pub(crate) fn alarms(&self) -> Vec<Alarm> {
        let mut alarms = Vec::new();
        for (name, node) in &self.nodes {
            let silent = node
                .devices
                .as_ref()
                .and_then(|it| it.as_ref().err())
                .cloned();
            let refused = node.refused.as_ref();
            let refused = refused.map(|why| format!("it does not take its lab file: {why}"));
            let node_itself = silent.into_iter().chain(refused);
            let node_itself = node_itself.map(|problem| (format!("node {name}"), problem));
            let objects = node.pending.iter().filter(|_| node.refused.is_none());
            let objects = objects.map(|(object, fields)| {
                let reasons: Vec<_> = fields.values().map(String::as_str).collect();
                (format!("{object} at {name}"), reasons.join("; "))
            });
            for (object, problem) in node_itself.chain(objects) {
                alarms.push(Alarm {
                    object,
                    problem,
                    since: node.since.clone(),
                });
            }
        }
        alarms
    }
}

#[cfg(test)]
impl Node {
    /// A node that has taken `file` and has these devices, all of them at their director.
    pub(crate) fn of(file: &Arc<NodeFile>, devices: &[&str]) -> Self {
        let devices = devices.iter().map(|name| {
            let state = DeviceState {
                name: (*name).to_owned(),
                generation: 0,
                attached: true,
                refused: None,
                guest: None,
            };
            ((*name).to_owned(), state)
        });
        Self {
            file: Some(file.clone()),
            devices: Some(Ok(devices.collect())),
            ..Self::default()
        }
    }
}

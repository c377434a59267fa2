//! Hands directors and hosts what they are to be, and reads what they are.
//!
//! Each of them has a folder below the controller's, called as it is:
//!
//! | file | written by | what |
//! | --- | --- | --- |
//! | `lab.toml` | controller | what its director and all its hosts are to be; replaced as a whole |
//! | `control.sock` | the program, by `--control` | takes the file anew, says which devices are there |
//! | `pid` | who starts the program, if it takes SIGHUP | is told in place of a socket that cannot |
//!
//! The programs go on without the controller, and nothing is taken from them but by a command: a node
//! that does not answer is not reported, and its file stays.

mod apply;
mod files;
mod reports;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::Controller;
use crate::model::Rendered;

pub(crate) use reports::Reports;

/// How often nodes are asked what they are.
const INTERVAL: Duration = Duration::from_secs(1);

/// What directors and hosts are to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// The model's.
    pub revision: u64,
    pub(crate) files: BTreeMap<String, Rendered>,
}

impl Desired {
    /// The lab file of a director or host; `None` if there is no such.
    #[must_use]
    pub fn lab_file(&self, node: &str) -> Option<&str> {
        self.nodes()
            .find(|(name, _)| *name == node)
            .map(|(_, text)| text)
    }

    /// The nodes and the lab file of each.
    fn nodes(&self) -> impl Iterator<Item = (&str, &str)> {
        let files = self.files.values();
        files.flat_map(|file| {
            file.nodes
                .iter()
                .map(|node| (node.as_str(), file.text.as_str()))
        })
    }
}

/// Keeps the nodes below `folder` what they are to be, until the controller is gone.
pub async fn run(controller: Arc<Controller>, folder: PathBuf) {
    let mut desired = controller.desired();
    let mut reports = Reports::default();
    loop {
        let wanted = desired.borrow_and_update().clone();
        let (folder, before) = (folder.clone(), reports.clone());
        let round = tokio::task::spawn_blocking(move || round(&wanted, &folder, &before)).await;
        match round {
            Ok(after) => reports = after,
            Err(error) => tracing::error!(%error, "a round of reconciling ended"),
        }
        let (controller, known) = (Arc::clone(&controller), reports.clone());
        let told = tokio::task::spawn_blocking(move || controller.report(known)).await;
        if let Err(error) = told {
            tracing::error!(%error, "reports were not taken");
        }
        tokio::select! {
            changed = desired.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

/// Writes what is new, and asks everyone.
fn round(desired: &Desired, folder: &Path, before: &Reports) -> Reports {
    let mut reports = Reports::default();
    for (node, text) in desired.nodes() {
        let place = folder.join(node);
        let written = files::replace(&place, text);
        let told = match written {
            // Who comes up, or was told by a controller that then ended, is told again: what is in
            // force already is no difference.
            Ok(false) if before.knows(node) => before.told(node),
            Ok(new) => {
                if new {
                    tracing::info!(node, revision = desired.revision, "has a new lab file");
                }
                apply::tell(&place)
            }
            Err(error) => Err(format!("its lab file cannot be written: {error}")),
        };
        if let Err(reason) = &told {
            tracing::error!(node, reason, "cannot be told");
        }
        reports.ask(node, &place, told, before);
    }
    reports
}

#[cfg(test)]
mod tests;

//! Hands directors and hosts what they are to be, and reads what they are.
//!
//! Each of them has a folder below the controller's, called as it is:
//!
//! | file | written by | what |
//! | --- | --- | --- |
//! | `lab.toml` | controller | what the node is to be; replaced as a whole |
//! | `control.sock` | the program, by `--control` | takes the file anew, says which devices are there |
//! | `pid` | who starts the program, if it takes SIGHUP | is told in place of a socket that cannot |
//!
//! The programs go on without the controller, and nothing is taken from them but by a command: a node
//! that does not answer is not reported, and its file stays. Each node has a task of its own, so that
//! one that is slow holds up no other.
//!
//! Where devices end, hosts are told before their director, so that guests let devices go that still
//! work; where devices only come, the director is first, so that it knows what it is asked for. The
//! order is a courtesy: whoever is away is not waited for, and the fabric sorts out the rest.

mod apply;
mod files;
mod reports;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::Controller;
use crate::model::{NodeFile, Rendered};

pub(crate) use reports::{Node, Reports, Taken};

/// How often nodes are asked what they are.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a file that was refused is left alone, unless it changes.
const AGAIN: Duration = Duration::from_secs(30);
/// Nodes that are told or asked at a time.
const AT_ONCE: usize = 16;
/// How long a director waits for its hosts to let go what ends: as long as a guest may take, and a bit.
const HOSTS_FIRST_MAX: Duration = Duration::from_secs(7);
/// How long a host waits for its director to know what comes.
const DIRECTOR_FIRST_MAX: Duration = Duration::from_secs(1);

/// What directors and hosts are to be.
#[derive(Debug, Clone, Default)]
pub struct Desired {
    /// The model's.
    pub revision: u64,
    /// By director.
    pub(crate) files: Arc<BTreeMap<String, Rendered>>,
}

impl Desired {
    /// The lab file of a director or host; `None` if there is no such.
    #[must_use]
    pub fn lab_file(&self, node: &str) -> Option<&str> {
        self.of(node).map(|file| file.text.as_str())
    }

    pub(crate) fn of(&self, node: &str) -> Option<&Arc<NodeFile>> {
        self.files.values().find_map(|files| files.get(node))
    }

    /// The nodes and the lab file of each.
    fn nodes(&self) -> impl Iterator<Item = (&String, &Arc<NodeFile>)> {
        self.files.values().flatten()
    }
}

/// Keeps the nodes below `folder` what they are to be, until the controller is gone.
pub async fn run(controller: Arc<Controller>, folder: PathBuf) {
    let mut desired = controller.desired();
    let mut tasks: HashMap<String, JoinHandle<()>> = HashMap::new();
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let wanted = desired.borrow_and_update().clone();
        tasks.retain(|_, task| !task.is_finished());
        for (node, _) in wanted.nodes() {
            if !tasks.contains_key(node) {
                let keeper = Keeper {
                    controller: Arc::clone(&controller),
                    node: node.clone(),
                    place: folder.join(node),
                    turns: Arc::clone(&turns),
                };
                tasks.insert(node.clone(), tokio::spawn(keeper.run()));
            }
        }
        if desired.changed().await.is_err() {
            return;
        }
    }
}

/// Looks after one node.
struct Keeper {
    controller: Arc<Controller>,
    node: String,
    place: PathBuf,
    turns: Arc<Semaphore>,
}

impl Keeper {
    /// Ends when there is to be no such node any more.
    async fn run(self) {
        let mut desired = self.controller.desired();
        let mut known = Node::default();
        loop {
            let wanted = desired.borrow_and_update().of(&self.node).cloned();
            let Some(file) = wanted else {
                self.controller.forget(&self.node);
                return;
            };
            if known.file().is_some_and(|known| **known != *file) {
                self.let_others_go_first(&known, &file).await;
            }
            // The semaphore is never closed.
            let turn = self.turns.acquire().await;
            let (place, node, told) = (self.place.clone(), self.node.clone(), file.clone());
            let before = known.clone();
            let visit =
                tokio::task::spawn_blocking(move || before.visited(&node, &place, &told)).await;
            drop(turn);
            match visit {
                Ok(after) => {
                    self.controller.report(&self.node, after.clone());
                    known = after;
                }
                Err(error) => tracing::error!(%error, node = self.node, "a visit ended"),
            }
            let pause = tokio::time::sleep(INTERVAL);
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    changed = desired.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        let same = |wanted: &Desired| {
                            let wanted = wanted.of(&self.node);
                            wanted.is_some_and(|wanted| Arc::ptr_eq(wanted, &file) || **wanted == *file)
                        };
                        let same = same(&desired.borrow_and_update());
                        if !same {
                            break;
                        }
                    }
                    () = &mut pause => break,
                }
            }
        }
    }

    async fn let_others_go_first(&self, known: &Node, file: &Arc<NodeFile>) {
        let ends = known.file().is_some_and(|known| known.ends_some(file));
        let is_director = self.node == file.director;
        let patience = match (ends, is_director) {
            (true, true) => HOSTS_FIRST_MAX,
            (false, false) => DIRECTOR_FIRST_MAX,
            _ => return,
        };
        let mut reported = self.controller.reported();
        let told = async {
            while !self.controller.others_are_told(&file.director, is_director) {
                if reported.changed().await.is_err() {
                    return;
                }
            }
        };
        if tokio::time::timeout(patience, told).await.is_err() {
            tracing::debug!(node = self.node, "goes on without the others");
        }
    }
}

#[cfg(test)]
mod tests;

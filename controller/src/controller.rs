//! The controller: one model, changed by one at a time, kept before it is answered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use controller_api::{
    Alarm, AuditEntry, Change, Command, Document, Done, Event, Import, Kind, Refusal, RefusalCode,
    SCHEMA, Status, SystemInfo, Transaction, Undo, View,
};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::{broadcast, watch};

use crate::access::Caller;
use crate::model::{Model, Problem, Rendered, Transacted, migrate};
use crate::reconcile::{Desired, Node, Reports};
use crate::states::{self, Known};
use crate::store::{Store, StoreError};

/// Events that a slow listener may be behind.
const EVENTS_MAX: usize = 1_024;
/// Entries of the log that one question is answered with.
const LOG_ENTRIES_MAX: usize = 1_000;

/// The controller.
#[derive(Debug)]
pub struct Controller {
    inner: Mutex<Inner>,
    events: broadcast::Sender<Event>,
    desired: watch::Sender<Desired>,
    /// Changes when a node has said something else than before.
    reported: watch::Sender<()>,
}

struct Inner {
    model: Model,
    revision: u64,
    store: Box<dyn Store>,
    reports: Reports,
    desired: Desired,
    transactions: u64,
    refusals: u64,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner")
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}

/// Why the controller cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is stored is no model.
    #[error("what is stored is wrong: {0}")]
    Model(Refusal),
    /// It was written by a newer program.
    #[error("the store is of schema {0} and this program knows {SCHEMA}; use the newer program")]
    Schema(u32),
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) revision: u64,
    pub(crate) transactions: u64,
    pub(crate) refusals: u64,
}

/// What there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Census {
    /// How many objects of each kind.
    pub(crate) objects: Vec<(Kind, usize)>,
    /// The state of each device.
    pub(crate) states: Vec<(Kind, String)>,
}

impl Controller {
    /// Takes up what is stored, or begins.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(mut store: Box<dyn Store>) -> Result<Self, StartError> {
        let (model, revision) = match store.load()? {
            None => {
                let model = Model::default();
                let changes = crate::model::diff(&Model::empty(), &model);
                let entry = entry(1, "controller", "begin", None, changes);
                store.commit(&entry)?;
                (model, 1)
            }
            Some(mut stored) => {
                let schema = stored.schema;
                migrate(schema, &mut stored.objects)
                    .map_err(|_newer| StartError::Schema(schema))?;
                if schema != SCHEMA {
                    store.migrate(SCHEMA, &stored.objects)?;
                }
                let model = Model::load(stored.objects).map_err(StartError::Model)?;
                (model, stored.revision)
            }
        };
        let files = model.render_all().map_err(StartError::Model)?;
        let files = Arc::new(files);
        let wanted = Desired { revision, files };
        let (desired, _) = watch::channel(wanted.clone());
        Ok(Self {
            inner: Mutex::new(Inner {
                model,
                revision,
                store,
                reports: Reports::default(),
                desired: wanted,
                transactions: 0,
                refusals: 0,
            }),
            events: broadcast::Sender::new(EVENTS_MAX),
            desired,
            reported: watch::Sender::new(()),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Whoever panicked had not yet put its new model in the place of the old one.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What happens from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// What directors and hosts are to be told.
    pub fn desired(&self) -> watch::Receiver<Desired> {
        self.desired.subscribe()
    }

    /// Who a user of the operating system is here.
    #[must_use]
    pub fn caller(&self, user: &str, groups: &[String]) -> Caller {
        Caller::of(&self.lock().model, user, groups)
    }

    /// Does all commands, or none.
    ///
    /// # Errors
    /// [`Refusal`] of the first command that cannot be done, or of all of them together.
    pub fn transact(&self, caller: &Caller, request: &Transaction) -> Result<Done, Refusal> {
        let mut inner = self.lock();
        let result = Self::check_commands(caller, &inner, request)
            .and_then(|()| inner.model.transact(&request.commands))
            .and_then(|done| {
                self.conclude(
                    &mut inner,
                    caller,
                    done,
                    &request.note,
                    None,
                    request.dry_run,
                )
            });
        inner.transactions += 1;
        inner.refusals += u64::from(result.is_err());
        result
    }

    fn check_commands(
        caller: &Caller,
        inner: &Inner,
        request: &Transaction,
    ) -> Result<(), Refusal> {
        for (index, command) in request.commands.iter().enumerate() {
            let (kind, _) = command.object();
            caller.may_change(kind).map_err(|refusal| Refusal {
                command: Some(index),
                ..refusal
            })?;
        }
        match request.if_revision {
            Some(wanted) if wanted != inner.revision => Err(Problem::conflict(
                format_args!("the model is at revision {}, not {wanted}", inner.revision),
                "look again and decide anew",
            )
            .of(Kind::System, "system")),
            _ => Ok(()),
        }
    }

    /// Keeps what came of a transaction, then shows it to everyone.
    fn conclude(
        &self,
        inner: &mut Inner,
        caller: &Caller,
        done: Transacted,
        note: &str,
        undoes: Option<u64>,
        dry_run: bool,
    ) -> Result<Done, Refusal> {
        let Transacted {
            model,
            files,
            outcomes,
            changes,
        } = done;
        if !dry_run && !changes.is_empty() {
            let revision = inner.revision + 1;
            let entry = entry(revision, &caller.user, note, undoes, changes.clone());
            inner.store.commit(&entry).map_err(unavailable)?;
            inner.model = model;
            inner.revision = revision;
            let files = Arc::new(with_known(&inner.desired, files));
            inner.desired = Desired { revision, files };
            self.desired.send_replace(inner.desired.clone());
            let event = Event::Changed {
                revision,
                user: caller.user.clone(),
                changes: changes.clone(),
            };
            // Without listeners there is nobody to tell.
            drop(self.events.send(event));
        }
        Ok(Done {
            revision: inner.revision,
            dry_run,
            outcomes,
            changes,
        })
    }

    /// Takes back the last change that was not taken back.
    ///
    /// # Errors
    /// [`Refusal`] if there is none, or if what it changed was changed again.
    pub fn undo(&self, caller: &Caller, request: &Undo) -> Result<Done, Refusal> {
        let mut inner = self.lock();
        let entry = last_not_undone(&mut *inner.store)?;
        for change in &entry.changes {
            // Counters of pools and the system go along with everybody's changes.
            if !matches!(change.kind, Kind::System | Kind::MacPool | Kind::WwnPool) {
                caller.may_change(change.kind)?;
            }
        }
        let done = inner.model.revert(&entry.changes)?;
        let note = format!("undo of revision {}", entry.revision);
        let undoes = Some(entry.revision);
        self.conclude(&mut inner, caller, done, &note, undoes, request.dry_run)
    }

    /// The log before revision `before`, newest first.
    ///
    /// # Errors
    /// [`Refusal`] if it cannot be read, or not by this caller.
    pub fn audit(&self, caller: &Caller, before: u64) -> Result<Vec<AuditEntry>, Refusal> {
        caller.may_read()?;
        self.lock()
            .store
            .log(before, LOG_ENTRIES_MAX)
            .map_err(unavailable)
    }

    /// The whole model.
    ///
    /// # Errors
    /// [`Refusal`] if this caller may not look.
    pub fn export(&self, caller: &Caller) -> Result<Document, Refusal> {
        caller.may_read()?;
        Ok(self.lock().model.export())
    }

    /// Makes the model what a document says.
    ///
    /// # Errors
    /// [`Refusal`] if it is wrong, or this caller may not.
    pub fn import(&self, caller: &Caller, request: &Import) -> Result<Done, Refusal> {
        caller.may_administer()?;
        let mut inner = self.lock();
        let done = inner.model.import(&request.document)?;
        self.conclude(&mut inner, caller, done, "import", None, request.dry_run)
    }

    /// Objects of a kind whose names match `pattern`.
    ///
    /// # Errors
    /// [`Refusal`] if this caller may not look.
    pub fn list(&self, caller: &Caller, kind: Kind, pattern: &str) -> Result<Vec<View>, Refusal> {
        caller.may_read()?;
        let inner = self.lock();
        let names = inner.model.names(kind);
        let wanted = names.into_iter().filter(|name| matches(pattern, name));
        Ok(wanted.filter_map(|name| inner.view(kind, name)).collect())
    }

    /// One object.
    ///
    /// # Errors
    /// [`Refusal`] if it is not there, or this caller may not look.
    pub fn get(&self, caller: &Caller, kind: Kind, name: &str) -> Result<View, Refusal> {
        caller.may_read()?;
        self.lock()
            .view(kind, name)
            .ok_or_else(|| crate::model::no_such(kind).of(kind, name))
    }

    /// What wants attention.
    ///
    /// # Errors
    /// [`Refusal`] if this caller may not look.
    pub fn alarms(&self, caller: &Caller) -> Result<Vec<Alarm>, Refusal> {
        caller.may_read()?;
        Ok(self.lock().reports.alarms())
    }

    /// The controller itself.
    #[must_use]
    pub fn system(&self, caller: &Caller) -> SystemInfo {
        SystemInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: self.lock().revision,
            schema: SCHEMA,
            user: caller.user.clone(),
            role: caller.role.text().to_owned(),
        }
    }

    /// Says when a node reports something else than before.
    pub(crate) fn reported(&self) -> watch::Receiver<()> {
        self.reported.subscribe()
    }

    /// Takes what a node reports, and tells of every device whose state is another by it.
    pub(crate) fn report(&self, node: &str, report: Node) {
        let mut inner = self.lock();
        let devices: BTreeSet<String> = report.devices().cloned().collect();
        let state =
            |inner: &Inner, devices: &BTreeSet<String>| -> BTreeMap<(Kind, String), Status> {
                let both = devices
                    .iter()
                    .flat_map(|name| [(Kind::Vnic, name), (Kind::Vhba, name)]);
                let there = both.filter(|(kind, name)| match kind {
                    Kind::Vnic => inner.model.vnics.contains_key(*name),
                    _ => inner.model.vhbas.contains_key(*name),
                });
                let states = there.map(|(kind, name)| {
                    let known = inner.known();
                    ((kind, name.clone()), states::status(&known, kind, name))
                });
                states.collect()
            };
        let before = state(&inner, &devices);
        let same = inner.reports.set(node, report.clone());
        if same.is_some_and(|before| before.is_as(&report)) {
            return;
        }
        for (object, status) in state(&inner, &devices) {
            if before
                .get(&object)
                .is_none_or(|before| before.state != status.state)
            {
                let (kind, name) = object;
                // Without listeners there is nobody to tell.
                drop(self.events.send(Event::State { kind, name, status }));
            }
        }
        drop(inner);
        self.reported.send_replace(());
    }

    /// A node is not wanted any more.
    pub(crate) fn forget(&self, node: &str) {
        self.lock().reports.forget(node);
        self.reported.send_replace(());
    }

    /// Whether the director has answered to its present file, or all its hosts have, as far as they
    /// report.
    pub(crate) fn others_are_told(&self, director: &str, hosts: bool) -> bool {
        let inner = self.lock();
        let Some(files) = inner.desired.files.get(director) else {
            return true;
        };
        let mut others = files
            .iter()
            .filter(|(node, _)| (*node != director) == hosts);
        others.all(|(node, file)| inner.reports.is_told(node, file))
    }

    pub(crate) fn counters(&self) -> Counters {
        let inner = self.lock();
        Counters {
            revision: inner.revision,
            transactions: inner.transactions,
            refusals: inner.refusals,
        }
    }

    /// How many objects of each kind there are, and how many devices are in each state.
    pub(crate) fn census(&self) -> Census {
        let inner = self.lock();
        let count = |kind: &Kind| (*kind, inner.model.count(*kind));
        let states = states::devices(&inner.known());
        let states = states
            .into_iter()
            .map(|((kind, _), status)| (kind, status.state));
        Census {
            objects: Kind::ALL.iter().map(count).collect(),
            states: states
                .filter_map(|(kind, state)| Some((kind, state?)))
                .collect(),
        }
    }
}

impl Inner {
    fn view(&self, kind: Kind, name: &str) -> Option<View> {
        Some(View {
            kind,
            name: name.to_owned(),
            fields: self.model.all_fields(kind, name)?,
            status: states::status(&self.known(), kind, name),
        })
    }

    fn known(&self) -> Known<'_> {
        Known {
            model: &self.model,
            reports: &self.reports,
            desired: &self.desired,
        }
    }
}

/// `files`, with those that are as before in the place of their copies: whoever compares them sees that
/// at once.
fn with_known(
    known: &Desired,
    mut files: BTreeMap<String, Rendered>,
) -> BTreeMap<String, Rendered> {
    for (node, file) in files.values_mut().flatten() {
        if let Some(known) = known.of(node).filter(|known| **known == *file) {
            *file = Arc::clone(known);
        }
    }
    files
}

fn entry(
    revision: u64,
    user: &str,
    note: &str,
    undoes: Option<u64>,
    changes: Vec<Change>,
) -> AuditEntry {
    let time = OffsetDateTime::now_utc()
        .format(&Rfc3339)
        .unwrap_or_default();
    AuditEntry {
        revision,
        time,
        user: user.to_owned(),
        note: note.to_owned(),
        undoes,
        changes,
    }
}

fn last_not_undone(store: &mut dyn Store) -> Result<AuditEntry, Refusal> {
    let mut undone = BTreeSet::new();
    let mut before = u64::MAX;
    loop {
        let entries = store.log(before, LOG_ENTRIES_MAX).map_err(unavailable)?;
        let Some(oldest) = entries.last() else { break };
        before = oldest.revision;
        for entry in entries {
            // The first entry is the begin itself.
            if entry.revision == 1 {
                break;
            }
            match entry.undoes {
                Some(revision) => drop(undone.insert(revision)),
                None if undone.contains(&entry.revision) => {}
                None => return Ok(entry),
            }
        }
    }
    Err(
        Problem::conflict("there is nothing to take back", "see show audit")
            .of(Kind::System, "system"),
    )
}

fn unavailable(error: StoreError) -> Refusal {
    Refusal {
        code: RefusalCode::Unavailable,
        ..Problem::from_text(&error).of(Kind::System, "store")
    }
}

/// Whether `name` is as `pattern` says, in which `*` stands for anything.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or_default()) else {
        return false;
    };
    let parts: Vec<_> = parts.collect();
    let Some((last, middle)) = parts.split_last() else {
        return rest.is_empty();
    };
    for part in middle {
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = rest.get(at + part.len()..).unwrap_or_default();
    }
    rest.ends_with(last)
}

/// A transaction of one command.
#[must_use]
pub fn one(command: Command, note: &str) -> Transaction {
    Transaction {
        commands: vec![command],
        note: note.to_owned(),
        ..Transaction::default()
    }
}

#[cfg(test)]
mod tests;

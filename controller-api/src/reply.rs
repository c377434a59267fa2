//! What is answered.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::{Fields, Kind, Status};

/// Why nothing was changed: object, problem, next step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
#[error("{object}: {problem}; {next}")]
pub struct Refusal {
    /// What sort of refusal.
    pub code: RefusalCode,
    /// The object, like `vnic vn01.server1`.
    pub object: String,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub next: String,
    /// Which command of the transaction, from 0; absent: all of them together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<usize>,
}

/// Sorts of refusals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalCode {
    /// Wrong in itself.
    Invalid,
    /// The object is not there.
    NotFound,
    /// Does not fit to what is there.
    Conflict,
    /// Bandwidth that a hop does not have.
    NotAdmitted,
    /// Not for this user.
    Forbidden,
    /// The controller cannot.
    Unavailable,
}

/// What came of a transaction.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Done {
    /// The revision of the model after it.
    pub revision: u64,
    /// Whether nothing was changed in truth.
    pub dry_run: bool,
    /// One for each command.
    pub outcomes: Vec<Outcome>,
    /// What is different, object by object.
    pub changes: Vec<Change>,
}

/// What came of one command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Outcome {
    /// The object's kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// What.
    pub verdict: Verdict,
}

/// What a command did to its object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Made it.
    Created,
    /// Changed it.
    Changed,
    /// It was so already.
    Unchanged,
    /// Removed it.
    Removed,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Created => "created",
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
            Self::Removed => "removed",
        })
    }
}

/// How one object differs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Change {
    /// The object's kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// Absent: it was not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub before: Option<Fields>,
    /// Absent: it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub after: Option<Fields>,
}

/// One field of a [`Change`].
#[derive(Debug, Clone, PartialEq)]
pub struct FieldChange<'a> {
    /// Its name.
    pub field: &'a str,
    /// Null: the default.
    pub before: &'a Value,
    /// Null: the default.
    pub after: &'a Value,
}

impl Change {
    /// The fields that differ, by name.
    #[must_use]
    pub fn fields(&self) -> Vec<FieldChange<'_>> {
        let sides = [&self.before, &self.after];
        let names: BTreeSet<&str> = sides
            .into_iter()
            .flatten()
            .flat_map(|fields| fields.keys().map(String::as_str))
            .collect();
        names
            .into_iter()
            .map(|field| FieldChange {
                field,
                before: value(self.before.as_ref(), field),
                after: value(self.after.as_ref(), field),
            })
            .filter(|change| change.before != change.after)
            .collect()
    }
}

fn value<'a>(fields: Option<&'a Fields>, name: &str) -> &'a Value {
    fields
        .and_then(|fields| fields.get(name))
        .unwrap_or(&Value::Null)
}

/// An object and its state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct View {
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// Its fields; see [`crate::objects`].
    #[schema(value_type = Object)]
    pub fields: Fields,
    /// What becomes of it.
    pub status: Status,
}

/// A change that was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct AuditEntry {
    /// The revision that it made.
    pub revision: u64,
    /// When (RFC 3339, UTC).
    pub time: String,
    /// Who.
    pub user: String,
    /// In the operator's own words.
    pub note: String,
    /// The revision that it took back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undoes: Option<u64>,
    /// What.
    pub changes: Vec<Change>,
}

/// Something that wants attention now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Alarm {
    /// The object, like `host host1`.
    pub object: String,
    /// What is wrong.
    pub problem: String,
    /// Since when (RFC 3339, UTC).
    pub since: String,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The model changed.
    Changed {
        /// To this revision.
        revision: u64,
        /// By whom.
        user: String,
        /// How.
        changes: Vec<Change>,
    },
    /// An object changed its state.
    State {
        /// The object's kind.
        kind: Kind,
        /// Its name.
        name: String,
        /// Now.
        status: Status,
    },
    /// Events were lost since the listener was too slow: look at everything again.
    Lost,
}

/// The controller itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct SystemInfo {
    /// Of the program.
    pub version: String,
    /// Of the model.
    pub revision: u64,
    /// Of the store.
    pub schema: u32,
    /// Who asks, as the controller sees it.
    pub user: String,
    /// What the user may.
    pub role: String,
}

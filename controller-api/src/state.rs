//! What becomes of an object.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What the operator wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AdminState {
    /// In use.
    #[default]
    Up,
    /// Not in use.
    Down,
}

impl fmt::Display for AdminState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Up => "up",
            Self::Down => "down",
        })
    }
}

/// What is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OperState {
    /// Works, as its host reported.
    Up,
    /// Wanted down, or reported down.
    Down,
    /// No server is chosen.
    Unbound,
    /// A server is chosen that has not been seen.
    Unassigned,
    /// Handed to its host, which has not answered.
    Busy,
    /// A module, port or network that it needs is not there.
    ResourceUnavailable,
    /// A director, host or guest refuses it, or a word of it; what it said stands beside.
    Refused,
    /// Its host takes the file but does not report.
    Indeterminate,
}

impl OperState {
    /// As it is written.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Unbound => "unbound",
            Self::Unassigned => "unassigned",
            Self::Busy => "busy",
            Self::ResourceUnavailable => "resource-unavailable",
            Self::Refused => "refused",
            Self::Indeterminate => "indeterminate",
        }
    }
}

impl fmt::Display for OperState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.text())
    }
}

/// The state of one object; empty for one that has none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", default)]
pub struct Status {
    /// `admin/oper`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Why it is not up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The state of the port it ends at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub if_state: Option<String>,
    /// Fields whose present value is not in force, and why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub pending: BTreeMap<String, String>,
    /// Fields that are no longer as the template says.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub drift: Vec<String>,
}

impl Status {
    /// Of an object that is wanted `admin` and is `oper`.
    #[must_use]
    pub fn new(admin: AdminState, oper: OperState) -> Self {
        Self {
            state: Some(format!("{admin}/{oper}")),
            ..Self::default()
        }
    }
}

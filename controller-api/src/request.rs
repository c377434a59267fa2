//! What can be asked for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Fields, Kind};

/// Commands that are all done, or none of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Transaction {
    /// In their order.
    pub commands: Vec<Command>,
    /// Say what would change, and change nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// Refuse unless this is the present revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_revision: Option<u64>,
    /// The operator's own words, for the audit log.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// Makes an object. One that is there already, with these fields as they are here, stays as it is;
    /// with other fields it is refused.
    Add {
        /// What it is.
        kind: Kind,
        /// Its name.
        name: String,
        /// What is not said is the default.
        #[serde(default)]
        #[schema(value_type = Object)]
        fields: Fields,
    },
    /// Changes fields of an object (RFC 7396: null takes the default, objects are merged).
    Set {
        /// What it is.
        kind: Kind,
        /// Its name.
        name: String,
        /// What is not said stays.
        #[schema(value_type = Object)]
        fields: Fields,
    },
    /// Makes or changes an object, whichever it takes.
    Put {
        /// What it is.
        kind: Kind,
        /// Its name.
        name: String,
        /// As for `set`.
        #[serde(default)]
        #[schema(value_type = Object)]
        fields: Fields,
    },
    /// Removes an object, and what belongs to it.
    Remove {
        /// What it is.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// Does something to an object that is no field.
    Act {
        /// What it is.
        kind: Kind,
        /// Its name.
        name: String,
        /// What.
        action: Action,
    },
}

impl Command {
    /// The object it is about.
    #[must_use]
    pub fn object(&self) -> (Kind, &str) {
        match self {
            Self::Add { kind, name, .. }
            | Self::Set { kind, name, .. }
            | Self::Put { kind, name, .. }
            | Self::Remove { kind, name }
            | Self::Act { kind, name, .. } => (*kind, name),
        }
    }
}

/// What can be done to an object beside changing its fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "action", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Action {
    /// Of a vNIC in trunk mode: takes these VLANs too.
    AddAllowedVlans {
        /// Like `100-199,300`.
        vlans: String,
    },
    /// Of a vNIC in trunk mode: no longer takes these VLANs.
    RemoveAllowedVlans {
        /// Like `100-199,300`.
        vlans: String,
    },
    /// Of a profile: has the devices of a template, and follows it.
    ApplyTemplate {
        /// Its name.
        template: String,
    },
    /// Of an HA vNIC: changes to its other port.
    Switchover,
}

/// Takes back a change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Undo {
    /// Say what would change, and change nothing.
    pub dry_run: bool,
}

/// A whole model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Document {
    /// [`crate::SCHEMA`] of who wrote it.
    pub schema: u32,
    /// All objects, by kind and name.
    #[schema(value_type = Object)]
    pub objects: BTreeMap<Kind, BTreeMap<String, Fields>>,
}

/// Makes the model what a document says: what it does not name goes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Import {
    /// The model.
    pub document: Document,
    /// Say what would change, and change nothing.
    #[serde(default)]
    pub dry_run: bool,
}

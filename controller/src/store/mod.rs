//! Where the model is kept, with the log of its changes.
//!
//! What is stored changes only by an [`AuditEntry`]: its changes, its place in the log and its revision
//! are written in one transaction, or not at all.

mod memory;
mod redb;

use std::collections::BTreeMap;

use controller_api::{AuditEntry, Fields, Kind};

pub use self::memory::MemoryStore;
pub use self::redb::RedbStore;

/// Entries of the log that are kept.
pub const AUDIT_ENTRIES_MAX: u64 = 10_000;

/// Keeps a model. One process writes to it.
pub trait Store: Send {
    /// All that is stored; `None` if that is nothing.
    ///
    /// # Errors
    /// [`StoreError`].
    fn load(&mut self) -> Result<Option<Stored>, StoreError>;

    /// Makes the changes of `entry`, whose revision follows the stored one, and adds it to the log.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing was stored.
    fn commit(&mut self, entry: &AuditEntry) -> Result<(), StoreError>;

    /// Replaces all objects, with those of another schema, at the same revision.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing was stored.
    fn migrate(&mut self, schema: u32, objects: &Objects) -> Result<(), StoreError>;

    /// The entries before revision `before`, newest first, at most `most`.
    ///
    /// # Errors
    /// [`StoreError`].
    fn log(&mut self, before: u64, most: usize) -> Result<Vec<AuditEntry>, StoreError>;
}

/// Objects by kind and name.
pub type Objects = BTreeMap<Kind, BTreeMap<String, Fields>>;

/// What is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// What the objects look like.
    pub schema: u32,
    /// Of the last entry.
    pub revision: u64,
    /// All objects.
    pub objects: Objects,
}

/// Why something cannot be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another one wrote.
    #[error(
        "the store is at revision {stored} and not before {wanted}; start the controller again"
    )]
    Revision {
        /// The stored revision.
        stored: u64,
        /// The revision that was to be stored.
        wanted: u64,
    },
    /// What is stored cannot be read.
    #[error("{key} in the store is damaged: {reason}; import a backup into a new one")]
    Damaged {
        /// What.
        key: String,
        /// Why.
        reason: String,
    },
    /// The file cannot be read or written.
    #[error("the store cannot be used: {0}; see that its folder exists and has room")]
    File(String),
}

/// The key of an object.
fn key(kind: Kind, name: &str) -> String {
    // No name begins with a slash, and kinds have none.
    format!("{kind}/{name}")
}

/// The object of a key.
fn object(key: &str) -> Result<(Kind, &str), StoreError> {
    let damaged = |reason: &str| StoreError::Damaged {
        key: key.to_owned(),
        reason: reason.to_owned(),
    };
    let (kind, name) = key
        .split_once('/')
        .ok_or_else(|| damaged("it names no object"))?;
    let kind = kind
        .parse()
        .map_err(|_unknown| damaged("its kind is unknown"))?;
    Ok((kind, name))
}

#[cfg(test)]
mod tests;

//! The embedded store: one file.

use std::path::Path;

use controller_api::{AuditEntry, Fields, SCHEMA};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::de::DeserializeOwned;

use super::{AUDIT_ENTRIES_MAX, Objects, Store, StoreError, Stored, key, object};

/// JSON of an object, by `kind/name`.
const OBJECTS: TableDefinition<&str, &[u8]> = TableDefinition::new("objects");
/// JSON of an entry, by revision.
const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("audit");
/// `schema` and `revision`.
const NUMBERS: TableDefinition<&str, u64> = TableDefinition::new("numbers");

/// Keeps a model in a file. A transaction is on the disk before it is answered.
#[derive(Debug)]
pub struct RedbStore {
    database: Database,
}

impl RedbStore {
    /// Opens the file at `path`, or makes it.
    ///
    /// # Errors
    /// [`StoreError::File`], also when another process has it open.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let database = Database::create(path)
            .map_err(|error| StoreError::File(format!("{}: {error}", path.display())))?;
        Ok(Self { database })
    }
}

fn file(error: impl Into<redb::Error>) -> StoreError {
    StoreError::File(error.into().to_string())
}

fn read<T: DeserializeOwned>(key: &str, json: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(json).map_err(|error| StoreError::Damaged {
        key: key.to_owned(),
        reason: error.to_string(),
    })
}

fn write(value: &impl serde::Serialize) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|error| StoreError::File(error.to_string()))
}

fn set_number(transaction: &WriteTransaction, name: &str, value: u64) -> Result<(), StoreError> {
    let mut numbers = transaction.open_table(NUMBERS).map_err(file)?;
    numbers.insert(name, value).map_err(file)?;
    Ok(())
}

fn revision(transaction: &WriteTransaction) -> Result<u64, StoreError> {
    let numbers = transaction.open_table(NUMBERS).map_err(file)?;
    let revision = numbers.get("revision").map_err(file)?;
    Ok(revision.map_or(0, |revision| revision.value()))
}

impl Store for RedbStore {
    fn load(&mut self) -> Result<Option<Stored>, StoreError> {
        let transaction = self.database.begin_read().map_err(file)?;
        let numbers = match transaction.open_table(NUMBERS) {
            Ok(numbers) => numbers,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(file(error)),
        };
        let number = |name| {
            numbers
                .get(name)
                .map(|number| number.map_or(0, |n| n.value()))
        };
        let schema = number("schema").map_err(file)?;
        let revision = number("revision").map_err(file)?;
        let mut objects = Objects::new();
        let table = transaction.open_table(OBJECTS).map_err(file)?;
        for row in table.iter().map_err(file)? {
            let (name, json) = row.map_err(file)?;
            let fields: Fields = read(name.value(), json.value())?;
            let (kind, name) = object(name.value())?;
            objects
                .entry(kind)
                .or_default()
                .insert(name.to_owned(), fields);
        }
        Ok(Some(Stored {
            schema: u32::try_from(schema).unwrap_or(u32::MAX),
            revision,
            objects,
        }))
    }

    fn commit(&mut self, entry: &AuditEntry) -> Result<(), StoreError> {
        let transaction = self.database.begin_write().map_err(file)?;
        let stored = revision(&transaction)?;
        if entry.revision != stored + 1 {
            return Err(StoreError::Revision {
                stored,
                wanted: entry.revision,
            });
        }
        {
            let mut objects = transaction.open_table(OBJECTS).map_err(file)?;
            for change in &entry.changes {
                let key = key(change.kind, &change.name);
                match &change.after {
                    Some(fields) => {
                        objects.insert(&*key, &*write(fields)?).map_err(file)?;
                    }
                    None => {
                        objects.remove(&*key).map_err(file)?;
                    }
                }
            }
            let mut log = transaction.open_table(LOG).map_err(file)?;
            log.insert(entry.revision, &*write(entry)?).map_err(file)?;
            let oldest = entry.revision.saturating_sub(AUDIT_ENTRIES_MAX);
            log.retain_in(..=oldest, |_, _| false).map_err(file)?;
        }
        set_number(&transaction, "revision", entry.revision)?;
        if stored == 0 {
            set_number(&transaction, "schema", SCHEMA.into())?;
        }
        transaction.commit().map_err(file)
    }

    fn migrate(&mut self, schema: u32, all: &Objects) -> Result<(), StoreError> {
        let transaction = self.database.begin_write().map_err(file)?;
        {
            let mut objects = transaction.open_table(OBJECTS).map_err(file)?;
            objects.retain(|_, _| false).map_err(file)?;
            for (kind, table) in all {
                for (name, fields) in table {
                    objects
                        .insert(&*key(*kind, name), &*write(fields)?)
                        .map_err(file)?;
                }
            }
        }
        set_number(&transaction, "schema", schema.into())?;
        transaction.commit().map_err(file)
    }

    fn log(&mut self, before: u64, most: usize) -> Result<Vec<AuditEntry>, StoreError> {
        let transaction = self.database.begin_read().map_err(file)?;
        let log = match transaction.open_table(LOG) {
            Ok(log) => log,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(error) => return Err(file(error)),
        };
        let rows = log.range(..before).map_err(file)?.rev().take(most);
        rows.map(|row| {
            let (revision, json) = row.map_err(file)?;
            read(&format!("entry {}", revision.value()), json.value())
        })
        .collect()
    }
}

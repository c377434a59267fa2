//! A store that is gone with its process, for tests and trials.

use controller_api::{AuditEntry, SCHEMA};

use super::{AUDIT_ENTRIES_MAX, Objects, Store, StoreError, Stored};

/// Keeps a model as long as the process lives.
#[derive(Debug, Default)]
pub struct MemoryStore {
    stored: Option<Stored>,
    log: Vec<AuditEntry>,
}

impl Store for MemoryStore {
    fn load(&mut self) -> Result<Option<Stored>, StoreError> {
        Ok(self.stored.clone())
    }

    fn commit(&mut self, entry: &AuditEntry) -> Result<(), StoreError> {
        let stored = self.stored.get_or_insert_with(|| Stored {
            schema: SCHEMA,
            revision: 0,
            objects: Objects::new(),
        });
        if entry.revision != stored.revision + 1 {
            return Err(StoreError::Revision {
                stored: stored.revision,
                wanted: entry.revision,
            });
        }
        for change in &entry.changes {
            let table = stored.objects.entry(change.kind).or_default();
            match &change.after {
                Some(fields) => drop(table.insert(change.name.clone(), fields.clone())),
                None => drop(table.remove(&change.name)),
            }
        }
        stored.objects.retain(|_, table| !table.is_empty());
        stored.revision = entry.revision;
        self.log.push(entry.clone());
        let oldest = entry.revision.saturating_sub(AUDIT_ENTRIES_MAX);
        self.log.retain(|entry| entry.revision > oldest);
        Ok(())
    }

    fn migrate(&mut self, schema: u32, objects: &Objects) -> Result<(), StoreError> {
        if let Some(stored) = &mut self.stored {
            stored.schema = schema;
            stored.objects.clone_from(objects);
        }
        Ok(())
    }

    fn log(&mut self, before: u64, most: usize) -> Result<Vec<AuditEntry>, StoreError> {
        let older = self
            .log
            .iter()
            .rev()
            .filter(|entry| entry.revision < before);
        Ok(older.take(most).cloned().collect())
    }
}

//! The same tests for every store.

use std::path::Path;

use controller_api::{AuditEntry, Change, Fields, Kind};
use serde_json::json;

use super::*;

fn change(name: &str, fields: Option<serde_json::Value>) -> Change {
    Change {
        kind: Kind::Vnic,
        name: name.to_owned(),
        before: None,
        after: fields.and_then(|fields| fields.as_object().cloned()),
    }
}

fn entry(revision: u64, changes: Vec<Change>) -> AuditEntry {
    AuditEntry {
        revision,
        time: "2026-01-01T00:00:00Z".to_owned(),
        user: "alice".to_owned(),
        note: String::new(),
        undoes: None,
        changes,
    }
}

/// Opens the store in a folder.
type Open = dyn Fn(&Path) -> Box<dyn Store>;

/// Opens a store again and again; what it holds is where the function says.
fn stores() -> Vec<(&'static str, Box<Open>)> {
    vec![(
        "redb",
        Box::new(|folder: &Path| {
            let store = RedbStore::open(&folder.join("store.redb")).unwrap();
            Box::new(store) as Box<dyn Store>
        }),
    )]
}

fn all(test: impl Fn(Box<dyn Store>)) {
    test(Box::new(MemoryStore::default()));
    for (_, open) in stores() {
        let folder = tempfile::tempdir().unwrap();
        test(open(folder.path()));
    }
}

#[test]
fn what_was_committed_is_there_after_a_restart() {
    for (name, open) in stores() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = open(folder.path());
        assert_eq!(store.load().unwrap(), None, "{name}");
        store
            .commit(&entry(1, vec![change("a.b", Some(json!({"mtu": 9000})))]))
            .unwrap();
        store
            .commit(&entry(2, vec![change("c.b", Some(json!({})))]))
            .unwrap();
        store.commit(&entry(3, vec![change("a.b", None)])).unwrap();
        drop(store);
        let stored = open(folder.path()).load().unwrap().unwrap();
        assert_eq!(stored.revision, 3);
        let objects = &stored.objects[&Kind::Vnic];
        assert_eq!(objects.len(), 1);
        assert_eq!(objects["c.b"], Fields::new());
    }
}

#[test]
fn a_revision_that_does_not_follow_is_refused_and_nothing_is_stored() {
    all(|mut store| {
        store.commit(&entry(1, vec![])).unwrap();
        let refused = store.commit(&entry(3, vec![change("a.b", Some(json!({})))]));
        assert!(matches!(
            refused,
            Err(StoreError::Revision {
                stored: 1,
                wanted: 3
            })
        ));
        assert!(store.load().unwrap().unwrap().objects.is_empty());
    });
}

#[test]
fn the_log_is_read_from_its_end_and_has_a_bound() {
    all(|mut store| {
        for revision in 1..=20 {
            store.commit(&entry(revision, vec![])).unwrap();
        }
        let revisions = |entries: Vec<AuditEntry>| {
            entries
                .iter()
                .map(|entry| entry.revision)
                .collect::<Vec<_>>()
        };
        assert_eq!(revisions(store.log(u64::MAX, 2).unwrap()), [20, 19]);
        assert_eq!(revisions(store.log(3, 9).unwrap()), [2, 1]);
    });
}

#[test]
fn a_migration_replaces_the_objects_and_keeps_the_revision() {
    all(|mut store| {
        store
            .commit(&entry(1, vec![change("a.b", Some(json!({})))]))
            .unwrap();
        let mut objects = Objects::new();
        objects
            .entry(Kind::Vnic)
            .or_default()
            .insert("x.b".to_owned(), Fields::new());
        store.migrate(2, &objects).unwrap();
        let stored = store.load().unwrap().unwrap();
        assert_eq!((stored.schema, stored.revision), (2, 1));
        assert_eq!(stored.objects, objects);
    });
}

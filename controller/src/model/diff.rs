//! What is different between two models.

use std::collections::BTreeSet;
use std::sync::Arc;

use controller_api::{Change, Kind};

use super::item::{self, HasTable, Item};
use super::{Model, with_kind};

/// How objects of `before` became those of `after`, by kind and name.
pub(crate) fn diff(before: &Model, after: &Model) -> Vec<Change> {
    let mut changes = Vec::new();
    for kind in Kind::ALL {
        with_kind!(*kind, T => tables::<T>(before, after, &mut changes));
    }
    changes
}

fn tables<T: Item>(before: &Model, after: &Model, changes: &mut Vec<Change>) {
    let (before, after) = (T::table(before), T::table(after));
    let gone = before.keys().filter(|name| !after.contains_key(*name));
    // What no command touched is shared.
    let same = |name: &String, item| before.get(name).is_some_and(|old| Arc::ptr_eq(old, item));
    let touched = after.iter().filter(|(name, item)| !same(name, item));
    let names: BTreeSet<_> = gone.chain(touched.map(|(name, _)| name)).collect();
    for name in names {
        let fields = |item: Option<&Arc<T>>| item.map(|item| item::fields(&**item));
        let (before, after) = (fields(before.get(name)), fields(after.get(name)));
        if before != after {
            changes.push(Change {
                kind: <T as HasTable>::KIND,
                name: name.clone(),
                before,
                after,
            });
        }
    }
}

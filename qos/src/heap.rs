//! A heap of ids whose keys can be changed and removed in O(log n): the order of the few devices of
//! a VM, and of what lies too far ahead for a calendar.
//!
//! Four children per node: fewer levels and fewer cache lines than two. Memory grows with the
//! highest id and with the number of entries, never with the number of operations.
#![expect(
    clippy::indexing_slicing,
    reason = "every index is a position the heap keeps itself, checked against its own length"
)]

use crate::order::{Order, index, make_room};

const CHILDREN: usize = 4;
const ABSENT: u32 = u32::MAX;

/// Ids ordered by key, least first; equal keys by id, so that the order is one order.
#[derive(Clone, Debug, Default)]
pub(crate) struct SlotHeap {
    entries: Vec<(u64, u32)>,
    /// Where each id stands in `entries`.
    positions: Vec<u32>,
}

impl SlotHeap {
    fn put(&mut self, id: u32, key: u64) {
        self.reserve(id);
        let known = self.positions[index(id)];
        let position = if known == ABSENT {
            self.entries.push((key, id));
            self.entries.len() - 1
        } else {
            self.entries[index(known)].0 = key;
            index(known)
        };
        self.settle(position);
    }

    fn take(&mut self, id: u32) {
        let known = self.positions.get(index(id)).copied();
        let Some(position) = known.filter(|known| *known != ABSENT).map(index) else {
            return;
        };
        self.entries.swap_remove(position);
        self.positions[index(id)] = ABSENT;
        if position < self.entries.len() {
            self.settle(position);
        }
    }

    /// Moves the entry at `position`, which may be at the wrong place, to the right one.
    fn settle(&mut self, position: usize) {
        let (key, id) = self.entries[position];
        let mut position = position;
        while position > 0 {
            let parent = (position - 1) / CHILDREN;
            if self.entries[parent] <= (key, id) {
                break;
            }
            self.write(position, self.entries[parent]);
            position = parent;
        }
        loop {
            let first = position * CHILDREN + 1;
            let last = (first + CHILDREN).min(self.entries.len());
            let least = (first..last).min_by_key(|child| self.entries[*child]);
            let Some(least) = least.filter(|least| self.entries[*least] < (key, id)) else {
                break;
            };
            self.write(position, self.entries[least]);
            position = least;
        }
        self.write(position, (key, id));
    }

    fn write(&mut self, position: usize, entry: (u64, u32)) {
        self.entries[position] = entry;
        // There are fewer entries than ids.
        self.positions[index(entry.1)] = u32::try_from(position).unwrap_or(ABSENT);
    }
}

impl Order for SlotHeap {
    fn reserve(&mut self, id: u32) {
        make_room(&mut self.positions, id, ABSENT);
    }

    fn set(&mut self, id: u32, tick: u64) {
        self.put(id, tick);
    }

    fn remove(&mut self, id: u32) {
        self.take(id);
    }

    fn least(&self) -> Option<(u64, u32)> {
        self.entries.first().copied()
    }

    fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// The oracle is a map searched from end to end.
        #[test]
        fn the_least_is_the_least_after_any_operations(
            operations in prop::collection::vec((0_u32..40, prop::option::of(0_u64..30)), 1..300),
        ) {
            let mut heap = SlotHeap::default();
            heap.reserve(39);
            let mut oracle = BTreeMap::new();
            for (slot, key) in operations {
                match key {
                    Some(key) => {
                        heap.set(slot, key);
                        oracle.insert(slot, key);
                    }
                    None => {
                        heap.remove(slot);
                        oracle.remove(&slot);
                    }
                }
                let least = oracle.iter().map(|(slot, key)| (*key, *slot)).min();
                prop_assert_eq!(heap.least(), least);
                prop_assert_eq!(heap.is_empty(), oracle.is_empty());
            }
        }
    }
}

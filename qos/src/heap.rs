//! A heap of device slots whose keys can be changed and removed in O(log n).
//!
//! Four children per node: fewer levels and fewer cache lines than two. Memory grows with the
//! highest slot and with the number of entries, never with the number of operations.
#![expect(
    clippy::indexing_slicing,
    reason = "every index is a position the heap keeps itself, checked against its own length"
)]

const CHILDREN: usize = 4;
const ABSENT: usize = usize::MAX;

/// Slots ordered by key, least first; equal keys by slot, so that the order is one order.
#[derive(Debug)]
pub(crate) struct SlotHeap<K> {
    entries: Vec<(K, usize)>,
    /// Where each slot stands in `entries`.
    positions: Vec<usize>,
}

impl<K> Default for SlotHeap<K> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            positions: Vec::new(),
        }
    }
}

impl<K: Copy + Ord> SlotHeap<K> {
    /// Makes room for `slot`, so that [`SlotHeap::set`] does not allocate while frames pass.
    pub(crate) fn reserve(&mut self, slot: usize) {
        if slot >= self.positions.len() {
            self.positions.resize(slot + 1, ABSENT);
            self.entries
                .reserve((slot + 1).saturating_sub(self.entries.len()));
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn least(&self) -> Option<(K, usize)> {
        self.entries.first().copied()
    }

    pub(crate) fn key(&self, slot: usize) -> Option<K> {
        let position = *self.positions.get(slot)?;
        self.entries.get(position).map(|(key, _)| *key)
    }

    /// Inserts `slot`, or moves it to its new key.
    pub(crate) fn set(&mut self, slot: usize, key: K) {
        self.reserve(slot);
        let mut position = self.positions[slot];
        if position == ABSENT {
            position = self.entries.len();
            self.entries.push((key, slot));
            self.positions[slot] = position;
        } else {
            self.entries[position].0 = key;
        }
        let position = self.rise(position);
        self.sink(position);
    }

    /// Removes `slot` if it is there.
    pub(crate) fn remove(&mut self, slot: usize) {
        let Some(position) = self.positions.get(slot).copied().filter(|p| *p != ABSENT) else {
            return;
        };
        self.entries.swap_remove(position);
        self.positions[slot] = ABSENT;
        if let Some((_, moved)) = self.entries.get(position) {
            self.positions[*moved] = position;
            let position = self.rise(position);
            self.sink(position);
        }
    }

    fn rise(&mut self, mut position: usize) -> usize {
        while position > 0 {
            let parent = (position - 1) / CHILDREN;
            if self.entries[parent] <= self.entries[position] {
                break;
            }
            self.swap(parent, position);
            position = parent;
        }
        position
    }

    fn sink(&mut self, mut position: usize) {
        loop {
            let first = position * CHILDREN + 1;
            let last = (first + CHILDREN).min(self.entries.len());
            let Some(least) = (first..last).min_by_key(|child| self.entries[*child]) else {
                break;
            };
            if self.entries[position] <= self.entries[least] {
                break;
            }
            self.swap(position, least);
            position = least;
        }
    }

    fn swap(&mut self, one: usize, other: usize) {
        self.entries.swap(one, other);
        self.positions[self.entries[one].1] = one;
        self.positions[self.entries[other].1] = other;
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
            operations in prop::collection::vec((0_usize..40, prop::option::of(0_u32..30)), 1..300),
        ) {
            let mut heap = SlotHeap::default();
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
                prop_assert_eq!(heap.key(slot), oracle.get(&slot).copied());
            }
        }
    }
}

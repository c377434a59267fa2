//! A table that never moves what is in it: growing costs the same however long it is.

use crate::order::index;

/// Entries that are made at once.
const CHUNK: usize = 64;

/// Entries by number, in chunks.
#[derive(Clone, Debug)]
pub(crate) struct Slots<V> {
    chunks: Vec<Box<[V]>>,
    len: usize,
}

impl<V> Default for Slots<V> {
    fn default() -> Self {
        Self {
            chunks: Vec::new(),
            len: 0,
        }
    }
}

impl<V: Default> Slots<V> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds an entry at the end.
    pub(crate) fn push(&mut self, value: V) {
        if self.len == self.chunks.len() * CHUNK {
            let chunk = std::iter::repeat_with(V::default).take(CHUNK);
            self.chunks.push(chunk.collect());
        }
        self.len += 1;
        if let Some(entry) = self.get_mut(u32::try_from(self.len - 1).unwrap_or(u32::MAX)) {
            *entry = value;
        }
    }

    pub(crate) fn get(&self, slot: u32) -> Option<&V> {
        let slot = index(slot);
        self.chunks.get(slot / CHUNK)?.get(slot % CHUNK)
    }

    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut V> {
        let slot = index(slot);
        self.chunks.get_mut(slot / CHUNK)?.get_mut(slot % CHUNK)
    }

    /// All entries, by number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &V> {
        self.chunks.iter().flatten().take(self.len)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.chunks.iter_mut().flatten().take(self.len)
    }
}

impl<V: Default> FromIterator<V> for Slots<V> {
    fn from_iter<I: IntoIterator<Item = V>>(values: I) -> Self {
        let mut slots = Self::default();
        for value in values {
            slots.push(value);
        }
        slots
    }
}

//! A bounded table of things in flight, under tags that are never used twice.
//!
//! A tag is made of the table's space bit (63), the slot's generation (bits 32 to 62) and the
//! slot's number (bits 0 to 31). Taking a thing out advances the generation: a reply that comes
//! after that finds nothing, until the slot was used 2^31 times.

use fabric_payload::scsi::Tag;

const GENERATION_SHIFT: u32 = 32;
const GENERATION_MASK: u32 = u32::MAX >> 1;

/// Distinguishes tables whose tags travel on the same device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    Commands,
    TaskManagement,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// Things in flight by [`Tag`].
#[derive(Debug)]
pub(crate) struct InFlight<T> {
    space: u64,
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    limit: usize,
}

impl<T> InFlight<T> {
    /// An empty table for `limit` things; memory grows with use.
    pub(crate) const fn new(space: Space, limit: usize) -> Self {
        let space = match space {
            Space::Commands => 0,
            Space::TaskManagement => 1 << 63,
        };
        Self {
            space,
            slots: Vec::new(),
            free: Vec::new(),
            limit,
        }
    }

    /// Takes `value` in; `Err` gives it back if the table is full.
    pub(crate) fn insert(&mut self, value: T) -> Result<Tag, T> {
        if let Some(number) = self.free.pop()
            && let Some(slot) = usize::try_from(number)
                .ok()
                .and_then(|n| self.slots.get_mut(n))
        {
            slot.value = Some(value);
            return Ok(tag(self.space, slot.generation, number));
        }
        match u32::try_from(self.slots.len()) {
            Ok(number) if self.slots.len() < self.limit => {
                self.slots.push(Slot {
                    generation: 0,
                    value: Some(value),
                });
                Ok(tag(self.space, 0, number))
            }
            _ => Err(value),
        }
    }

    pub(crate) fn get_mut(&mut self, tag: Tag) -> Option<&mut T> {
        self.slot(tag)?.value.as_mut()
    }

    /// Takes the thing out; its tag is dead from now on.
    pub(crate) fn remove(&mut self, tag: Tag) -> Option<T> {
        let slot = self.slot(tag)?;
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1) & GENERATION_MASK;
        self.free.push(number(tag));
        Some(value)
    }

    /// Takes out everything that `wanted` says, in no order.
    pub(crate) fn remove_where(&mut self, mut wanted: impl FnMut(&T) -> bool) -> Vec<T> {
        let tags: Vec<_> = self
            .iter()
            .filter_map(|(tag, value)| wanted(value).then_some(tag))
            .collect();
        tags.into_iter()
            .filter_map(|tag| self.remove(tag))
            .collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Tag, &T)> {
        (0_u32..).zip(&self.slots).filter_map(|(number, slot)| {
            Some((
                tag(self.space, slot.generation, number),
                slot.value.as_ref()?,
            ))
        })
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.slots.iter_mut().filter_map(|slot| slot.value.as_mut())
    }

    fn slot(&mut self, tag: Tag) -> Option<&mut Slot<T>> {
        if tag.0 & 1 << 63 != self.space {
            return None;
        }
        let generation =
            u32::try_from(tag.0 >> GENERATION_SHIFT & u64::from(GENERATION_MASK)).ok()?;
        let slot = self.slots.get_mut(usize::try_from(number(tag)).ok()?)?;
        (slot.generation == generation).then_some(slot)
    }
}

fn tag(space: u64, generation: u32, number: u32) -> Tag {
    Tag(space | u64::from(generation) << GENERATION_SHIFT | u64::from(number))
}

fn number(tag: Tag) -> u32 {
    let [_, _, _, _, a, b, c, d] = tag.0.to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{HashMap, HashSet};

    #[test]
    fn p04_tag_is_dead_once_its_command_is_done() {
        let mut table = InFlight::new(Space::Commands, 1);
        let first = table.insert('a').unwrap();
        assert_eq!(table.remove(first), Some('a'));
        let second = table.insert('b').unwrap();
        assert_ne!(first, second);
        assert_eq!((table.remove(first), table.get_mut(first)), (None, None));
        assert_eq!(table.remove(second), Some('b'));
        assert_eq!(table.remove(second), None);
    }

    #[test]
    fn full_table_gives_back_what_does_not_fit() {
        let mut table = InFlight::new(Space::Commands, 2);
        let first = table.insert(1).unwrap();
        assert!(table.insert(2).is_ok());
        assert_eq!(table.insert(3), Err(3));
        table.remove(first);
        assert!(table.insert(3).is_ok());
    }

    #[test]
    fn tags_of_the_other_space_are_strangers() {
        let mut commands = InFlight::new(Space::Commands, 4);
        let mut functions = InFlight::new(Space::TaskManagement, 4);
        let command = commands.insert(()).unwrap();
        let function = functions.insert(()).unwrap();
        assert_eq!(
            (functions.remove(command), commands.remove(function)),
            (None, None)
        );
    }

    #[test]
    fn generation_wraps_within_its_bits() {
        let mut table = InFlight::new(Space::TaskManagement, 1);
        let last = table.insert(0).unwrap();
        table.slots[0].generation = GENERATION_MASK;
        assert_eq!(table.get_mut(last), None);
        let (tag, _) = table.iter().next().unwrap();
        assert_eq!(table.remove(tag), Some(0));
        assert_eq!(table.insert(1), Ok(last));
    }

    proptest! {
        /// The oracle is a map; whatever was removed must never be found again.
        #[test]
        fn behaves_like_a_map_with_fresh_keys(steps in proptest::collection::vec((0..3, any::<u64>()), 0..300)) {
            let mut table = InFlight::new(Space::Commands, 8);
            let mut oracle = HashMap::new();
            let mut dead = HashSet::new();
            for (step, value) in steps {
                match step {
                    0 => match table.insert(value) {
                        Ok(tag) => {
                            prop_assert!(!dead.contains(&tag));
                            prop_assert_eq!(oracle.insert(tag, value), None);
                        }
                        Err(_) => prop_assert_eq!(oracle.len(), 8),
                    },
                    1 => if let Some(tag) = oracle.keys().next().copied() {
                        prop_assert_eq!(table.remove(tag), oracle.remove(&tag));
                        dead.insert(tag);
                    },
                    _ => prop_assert_eq!(table.remove(Tag(value)), None.or(oracle.remove(&Tag(value)))),
                }
                prop_assert!(dead.iter().all(|tag| table.get_mut(*tag).is_none()));
                prop_assert_eq!(table.iter().count(), oracle.len());
            }
        }
    }
}

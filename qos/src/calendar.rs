//! A calendar queue: a ring of ticks, each with the list of who is due in it, and bitmaps that find
//! the next tick that is not empty in three steps (find first set, as in Eiffel, NSDI 2019).
//!
//! ```text
//! base                                       base + slots
//!  |  .  .  [3,7]  .  .  .  [1]  .  .  .  .  |   far: a heap of what lies behind
//! ```
//!
//! Every operation takes a constant time for ticks within the ring. What lies farther ahead (a
//! frame at a rate so slow that it takes 134 ms) goes to a heap and enters the ring when time comes
//! near it. Whoever is behind `base` waits in the tick of `base`. Ids of one tick leave in the
//! order they came.
#![expect(
    clippy::indexing_slicing,
    reason = "every index is a tick masked to the ring, or an id that `reserve` made room for"
)]

use crate::heap::SlotHeap;
use crate::order::{Order, index, make_room};

/// Bits of a word.
const WORD: usize = 64;
const WORD_BITS: u32 = 6;
/// Ring sizes: 64^2 ticks (2 ms, 32 KiB) for few devices, 64^3 (134 ms, 2 MiB) for many.
const SLOTS_FEW: usize = WORD * WORD;
const SLOTS_MANY: usize = WORD * WORD * WORD;
/// With more devices than this a ring of 64^3 ticks costs less than the heap behind a short one.
const FEW_DEVICES: usize = 256;

/// No id.
const NONE: u32 = u32::MAX;
/// Stands in `previous` of an id that is in the heap.
const FAR: u32 = u32::MAX - 1;
/// The tick of an id that is nowhere.
const ABSENT: u64 = u64::MAX;

#[derive(Clone, Copy, Debug)]
struct Node {
    tick: u64,
    previous: u32,
    next: u32,
}

const VACANT: Node = Node {
    tick: ABSENT,
    previous: NONE,
    next: NONE,
};

#[derive(Clone, Copy, Debug)]
struct List {
    first: u32,
    last: u32,
}

const EMPTY: List = List {
    first: NONE,
    last: NONE,
};

/// Ids ordered by tick.
#[derive(Debug)]
pub(crate) struct Calendar {
    /// The earliest tick of the ring.
    base: u64,
    /// The earliest tick that is not empty, in the ring or behind it.
    earliest: u64,
    ring: Vec<List>,
    /// Which lists are not empty, which words of that are not zero, and which of those.
    bits: Vec<u64>,
    words: Vec<u64>,
    top: u64,
    nodes: Vec<Node>,
    far: SlotHeap,
}

impl Default for Calendar {
    fn default() -> Self {
        Self::with_slots(SLOTS_FEW)
    }
}

impl Calendar {
    fn with_slots(slots: usize) -> Self {
        Self {
            base: 0,
            earliest: ABSENT,
            ring: vec![EMPTY; slots],
            bits: vec![0; slots / WORD],
            words: vec![0; slots / WORD / WORD],
            top: 0,
            nodes: Vec::new(),
            far: SlotHeap::default(),
        }
    }

    /// Moves the beginning of the ring up to `base`. Whoever is behind it stays the first.
    pub(crate) fn advance(&mut self, base: u64) {
        // So that there is always a tick ahead of it.
        let base = base.min(ABSENT / 2);
        if base <= self.base {
            return;
        }
        let behind = self.earliest < base;
        while behind && let Some(position) = self.first() {
            let tick = self.tick_at(position);
            if tick >= base {
                break;
            }
            let list = std::mem::replace(&mut self.ring[position], EMPTY);
            self.unmark(position);
            self.base = tick + 1;
            // All ticks up to `base` are empty now but for the ones moved before: keep their order.
            self.append(list, base);
        }
        self.base = base;
        let end = self.end();
        while let Some((tick, id)) = self.far.least()
            && tick < end
        {
            self.far.remove(id);
            self.insert(id, tick.max(base));
        }
        if behind {
            self.find_earliest();
        }
    }

    fn find_earliest(&mut self) {
        self.earliest = match self.first() {
            Some(position) => self.tick_at(position),
            None => self.far.least().map_or(ABSENT, |(tick, _)| tick),
        };
    }

    /// Moves a whole list to the end of another tick's.
    fn append(&mut self, list: List, tick: u64) {
        let mut id = list.first;
        while id != NONE {
            let next = self.nodes[index(id)].next;
            self.insert(id, tick);
            id = next;
        }
    }

    fn mask(&self) -> usize {
        self.ring.len() - 1
    }

    /// The first tick behind the ring.
    fn end(&self) -> u64 {
        self.base
            .saturating_add(u64::try_from(self.ring.len()).unwrap_or(u64::MAX))
    }

    fn position(&self, tick: u64) -> usize {
        // The mask is at most 2^18 - 1, so the narrowing loses nothing.
        usize::try_from(tick & u64::try_from(self.mask()).unwrap_or(0)).unwrap_or(0)
    }

    fn tick_at(&self, position: usize) -> u64 {
        let ahead = position.wrapping_sub(self.position(self.base)) & self.mask();
        self.base
            .saturating_add(u64::try_from(ahead).unwrap_or(u64::MAX))
    }

    /// The position of the first list that is not empty, seen from `base` around the ring.
    fn first(&self) -> Option<usize> {
        if self.top == 0 {
            return None;
        }
        let start = self.position(self.base);
        self.first_from(start).or_else(|| self.first_from(0))
    }

    /// The first list at or after `start` that is not empty.
    fn first_from(&self, start: usize) -> Option<usize> {
        let word = start >> WORD_BITS;
        if let Some(bit) = first_bit(self.bits[word], start % WORD) {
            return Some((word << WORD_BITS) | bit);
        }
        let group = word >> WORD_BITS;
        let word = match first_bit(self.words[group], word % WORD + 1) {
            Some(bit) => (group << WORD_BITS) | bit,
            None => {
                let group = first_bit(self.top, group + 1)?;
                (group << WORD_BITS) | first_bit(self.words[group], 0)?
            }
        };
        Some((word << WORD_BITS) | first_bit(self.bits[word], 0)?)
    }

    fn mark(&mut self, position: usize) {
        let (word, group) = (position / WORD, position / WORD / WORD);
        self.bits[word] |= 1 << (position % WORD);
        self.words[group] |= 1 << (word % WORD);
        self.top |= 1 << group;
    }

    fn unmark(&mut self, position: usize) {
        let (word, group) = (position / WORD, position / WORD / WORD);
        self.bits[word] &= !(1 << (position % WORD));
        if self.bits[word] == 0 {
            self.words[group] &= !(1 << (word % WORD));
            if self.words[group] == 0 {
                self.top &= !(1 << group);
            }
        }
    }

    /// Puts `id`, which is nowhere, where `tick` says.
    fn insert(&mut self, id: u32, tick: u64) {
        let tick = tick.clamp(self.base, ABSENT - 1);
        self.earliest = self.earliest.min(tick);
        if tick >= self.end() {
            self.nodes[index(id)] = Node {
                tick,
                previous: FAR,
                next: NONE,
            };
            self.far.set(id, tick);
            return;
        }
        let position = self.position(tick);
        let list = &mut self.ring[position];
        let last = std::mem::replace(&mut list.last, id);
        self.nodes[index(id)] = Node {
            tick,
            previous: last,
            next: NONE,
        };
        if last == NONE {
            list.first = id;
            self.mark(position);
        } else {
            self.nodes[index(last)].next = id;
        }
    }

    /// Makes a ring of 64^3 ticks out of one of 64^2.
    fn lengthen(&mut self) {
        let mut long = Self::with_slots(SLOTS_MANY);
        long.base = self.base;
        long.nodes = vec![VACANT; self.nodes.len()];
        while let Some((tick, id)) = self.least() {
            self.remove(id);
            long.insert(id, tick);
        }
        *self = long;
    }
}

/// The lowest set bit of `word` that is not below `from`.
fn first_bit(word: u64, from: usize) -> Option<usize> {
    if from >= WORD {
        return None;
    }
    let rest = word & (u64::MAX << from);
    (rest != 0).then(|| usize::try_from(rest.trailing_zeros()).unwrap_or(0))
}

impl Order for Calendar {
    fn reserve(&mut self, id: u32) {
        make_room(&mut self.nodes, id, VACANT);
        if self.nodes.len() > FEW_DEVICES && self.ring.len() == SLOTS_FEW {
            self.lengthen();
        }
    }

    fn set(&mut self, id: u32, tick: u64) {
        // Whoever is behind the base stands in its tick: there it keeps its turn as in any other.
        let tick = tick.clamp(self.base, ABSENT - 1);
        let node = self.nodes[index(id)];
        if node.tick == tick {
            return;
        }
        self.remove(id);
        self.insert(id, tick);
    }

    fn remove(&mut self, id: u32) {
        let Node {
            tick,
            previous,
            next,
        } = std::mem::replace(&mut self.nodes[index(id)], VACANT);
        if tick == ABSENT {
            return;
        }
        if previous == FAR {
            self.far.remove(id);
            if tick == self.earliest {
                self.find_earliest();
            }
            return;
        }
        let position = self.position(tick);
        match previous {
            NONE => self.ring[position].first = next,
            previous => self.nodes[index(previous)].next = next,
        }
        match next {
            NONE => self.ring[position].last = previous,
            next => self.nodes[index(next)].previous = previous,
        }
        if self.ring[position].first == NONE {
            self.unmark(position);
            if tick == self.earliest {
                self.find_earliest();
            }
        }
    }

    fn least(&self) -> Option<(u64, u32)> {
        if self.earliest >= self.end() {
            return self.far.least();
        }
        Some((self.earliest, self.ring[self.position(self.earliest)].first))
    }

    fn is_empty(&self) -> bool {
        self.earliest == ABSENT
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a calendar is by definition: a list in the order of arrival, searched end to end.
    #[derive(Default)]
    struct Plain {
        base: u64,
        entries: Vec<(u64, u32)>,
    }

    impl Plain {
        fn set(&mut self, id: u32, tick: u64) {
            if self.entries.contains(&(tick, id)) {
                return;
            }
            self.remove(id);
            self.entries.push((tick.max(self.base), id));
        }

        fn remove(&mut self, id: u32) {
            self.entries.retain(|(_, known)| *known != id);
        }

        fn advance(&mut self, base: u64) {
            self.base = self.base.max(base);
            for (tick, _) in &mut self.entries {
                *tick = self.base.max(*tick);
            }
        }

        fn least_tick(&self) -> Option<u64> {
            self.entries.iter().map(|(tick, _)| *tick).min()
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set(u32, u64),
        Remove(u32),
        Advance(u64),
        Pop,
    }

    fn step(ids: u32) -> impl Strategy<Value = Step> {
        let ahead = prop_oneof![
            0_u64..20,
            0_u64..5_000,
            0_u64..400_000,
            0_u64..1_000_000_000
        ];
        prop_oneof![
            4 => (0..ids, ahead.clone()).prop_map(|(id, ahead)| Step::Set(id, ahead)),
            1 => (0..ids).prop_map(Step::Remove),
            1 => ahead.prop_map(Step::Advance),
            2 => Just(Step::Pop),
        ]
    }

    fn agrees(ids: u32, steps: Vec<Step>) -> Result<(), TestCaseError> {
        let mut calendar = Calendar::default();
        calendar.reserve(ids - 1);
        let mut plain = Plain::default();
        for step in steps {
            match step {
                Step::Set(id, ahead) => {
                    // Some are a little behind the base.
                    let tick = (plain.base + ahead).saturating_sub(7);
                    calendar.set(id, tick);
                    plain.set(id, tick);
                }
                Step::Remove(id) => {
                    calendar.remove(id);
                    plain.remove(id);
                }
                Step::Advance(ahead) => {
                    calendar.advance(plain.base + ahead);
                    plain.advance(plain.base + ahead);
                }
                Step::Pop => {
                    let Some((tick, id)) = calendar.least() else {
                        prop_assert!(plain.entries.is_empty());
                        continue;
                    };
                    prop_assert!(plain.entries.contains(&(tick, id)), "{tick} {id}");
                    calendar.remove(id);
                    plain.remove(id);
                }
            }
            prop_assert_eq!(calendar.least().map(|(tick, _)| tick), plain.least_tick());
            prop_assert_eq!(calendar.is_empty(), plain.entries.is_empty());
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn a_short_ring_agrees_with_a_list(steps in prop::collection::vec(step(40), 1..300)) {
            agrees(40, steps)?;
        }

        #[test]
        fn a_long_ring_agrees_with_a_list(steps in prop::collection::vec(step(600), 1..300)) {
            agrees(600, steps)?;
        }
    }

    #[test]
    fn one_tick_is_left_in_the_order_of_arrival() {
        let mut calendar = Calendar::default();
        calendar.reserve(9);
        for id in [4, 2, 9, 0] {
            calendar.set(id, 100);
        }
        calendar.set(2, 100);
        calendar.remove(9);
        calendar.set(9, 100);
        let mut order = Vec::new();
        while let Some((tick, id)) = calendar.least() {
            assert_eq!(tick, 100);
            order.push(id);
            calendar.remove(id);
        }
        assert_eq!(order, [4, 2, 0, 9]);
    }

    #[test]
    fn a_ring_that_is_lengthened_keeps_everybody() {
        let mut calendar = Calendar::default();
        calendar.reserve(3);
        for (id, tick) in [(0, 5), (1, 4_000), (2, 4_097), (3, 400_000)] {
            calendar.set(id, tick);
        }
        calendar.reserve(1_000);
        for (id, tick) in [(0, 5), (1, 4_000), (2, 4_097), (3, 400_000)] {
            assert_eq!(calendar.least(), Some((tick, id)));
            calendar.remove(id);
        }
        assert!(calendar.is_empty());
    }
}

//! Where queued frames are: one store for all devices of a scheduler, so that a device costs
//! nothing while it is idle.

use serde::{Deserialize, Serialize};

use crate::order::index;

const NONE: u32 = u32::MAX;

/// A frame in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame<T> {
    pub(crate) bytes: u32,
    /// How long it had waited for credit before it came, nanoseconds.
    pub(crate) credit_nanos: u32,
    pub(crate) arrived: u64,
    pub(crate) item: T,
}

/// The ends of a queue in a [`FrameStore`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Queue {
    first: u32,
    last: u32,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            first: NONE,
            last: NONE,
        }
    }
}

impl Queue {
    pub(crate) fn is_empty(self) -> bool {
        self.first == NONE
    }
}

#[derive(Debug)]
struct Place<T> {
    frame: Option<Frame<T>>,
    next: u32,
}

/// Frames, chained into queues. Grows to the most frames there ever were at once.
#[derive(Debug)]
pub(crate) struct FrameStore<T> {
    places: Vec<Place<T>>,
    vacant: u32,
}

impl<T> Default for FrameStore<T> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            vacant: NONE,
        }
    }
}

impl<T> FrameStore<T> {
    /// Makes room for `frames` at once, so that nothing is allocated before there are more.
    pub(crate) fn reserve(&mut self, frames: usize) {
        self.places
            .reserve(frames.saturating_sub(self.places.len()));
    }

    /// Puts `frame` at the end of `queue`.
    pub(crate) fn push(&mut self, queue: &mut Queue, frame: Frame<T>) {
        let filled = Place {
            frame: Some(frame),
            next: NONE,
        };
        let place = match self.places.get_mut(index(self.vacant)) {
            Some(vacant) => {
                let place = self.vacant;
                self.vacant = vacant.next;
                *vacant = filled;
                place
            }
            None => {
                self.places.push(filled);
                // 16,384 frames of each of 131,072 devices are fewer than 2^32.
                u32::try_from(self.places.len() - 1).unwrap_or(NONE)
            }
        };
        match self.places.get_mut(index(queue.last)) {
            Some(last) => last.next = place,
            None => queue.first = place,
        }
        queue.last = place;
    }

    /// The first frame of `queue`.
    pub(crate) fn first(&self, queue: Queue) -> Option<&Frame<T>> {
        self.places.get(index(queue.first))?.frame.as_ref()
    }

    /// Takes the first frame of `queue`.
    pub(crate) fn pop(&mut self, queue: &mut Queue) -> Option<Frame<T>> {
        let place = self.places.get_mut(index(queue.first))?;
        let frame = place.frame.take();
        let next = std::mem::replace(&mut place.next, self.vacant);
        self.vacant = std::mem::replace(&mut queue.first, next);
        if next == NONE {
            queue.last = NONE;
        }
        frame
    }

    /// All frames of `queue`, first to last.
    pub(crate) fn iter(&self, queue: Queue) -> impl Iterator<Item = &Frame<T>> {
        let mut next = queue.first;
        std::iter::from_fn(move || {
            let place = self.places.get(index(next))?;
            next = place.next;
            place.frame.as_ref()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        #[test]
        fn queues_in_one_store_are_queues(
            steps in prop::collection::vec((0_usize..4, any::<bool>()), 1..300),
        ) {
            let mut store = FrameStore::default();
            let mut queues = [Queue::default(); 4];
            let mut plain: [VecDeque<u32>; 4] = Default::default();
            let mut most = 0;
            for (number, (queue, push)) in (0..).zip(steps) {
                if push {
                    let frame = Frame { bytes: number, credit_nanos: 0, arrived: 0, item: number };
                    store.push(&mut queues[queue], frame);
                    plain[queue].push_back(number);
                } else {
                    let popped = store.pop(&mut queues[queue]).map(|frame| frame.item);
                    prop_assert_eq!(popped, plain[queue].pop_front());
                }
                most = most.max(plain.iter().map(VecDeque::len).sum());
                for (queue, plain) in queues.iter().zip(&plain) {
                    prop_assert_eq!(store.first(*queue).map(|frame| frame.item), plain.front().copied());
                    let items: Vec<_> = store.iter(*queue).map(|frame| frame.item).collect();
                    prop_assert_eq!(items, plain.iter().copied().collect::<Vec<_>>());
                }
            }
            prop_assert_eq!(store.places.len(), most);
        }
    }
}

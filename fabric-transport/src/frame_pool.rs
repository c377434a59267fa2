//! The memory of frames, used again instead of going back to the allocator.
//!
//! A frame is made by a ring's thread and ends on a session's thread when it is acknowledged: for an
//! allocator the dearest pattern there is, as it takes each page back and asks for it anew. Here
//! threads exchange whole magazines of buffers (Bonwick and Adams, "Magazines and Vmem", 2001),
//! so that one frame in [`MAGAZINE_BUFFERS`] meets a lock.

use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};

/// Buffers that threads exchange at once.
const MAGAZINE_BUFFERS: usize = 32;

/// Bytes of the buffers of a class: control and small frames, of which a queue holds many, an
/// Ethernet frame, a jumbo frame, the largest frame.
const CLASS_BYTES: [usize; 4] = [256, 2 * 1024, 10 * 1024, CLASS_BYTES_MAX];
const CLASS_BYTES_MAX: usize = 72 * 1024;
const _: () =
    assert!(CLASS_BYTES_MAX >= crate::frame::HEADER_BYTES + crate::frame::PAYLOAD_BYTES_MAX);

/// Bytes of each class that no thread uses, at most; what comes on top is freed.
const CLASS_IDLE_BYTES_MAX: usize = 16 * 1024 * 1024;

type Magazine = Vec<Vec<u8>>;

/// The magazines of a class that no thread has.
struct Depot {
    full: Vec<Magazine>,
    empty: Vec<Magazine>,
}

static DEPOTS: [Mutex<Depot>; CLASS_BYTES.len()] = [const {
    Mutex::new(Depot {
        full: Vec::new(),
        empty: Vec::new(),
    })
}; CLASS_BYTES.len()];

thread_local! {
    static LOADED: RefCell<[Magazine; CLASS_BYTES.len()]> = const {
        RefCell::new([const { Vec::new() }; CLASS_BYTES.len()])
    };
}

/// An empty buffer with room for `bytes`, with whatever an earlier frame left behind its end.
pub(crate) fn take(bytes: usize) -> Vec<u8> {
    let classes = CLASS_BYTES.iter().zip(&DEPOTS).enumerate();
    let mut classes = classes.filter(|(_, (class_bytes, _))| bytes <= **class_bytes);
    let Some((class, (class_bytes, depot))) = classes.next() else {
        return Vec::with_capacity(bytes);
    };
    let known = with_magazine(class, |magazine| {
        if magazine.is_empty() {
            let mut depot = depot.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(full) = depot.full.pop() {
                depot.empty.push(std::mem::replace(magazine, full));
            }
        }
        magazine.pop()
    });
    known
        .flatten()
        .unwrap_or_else(|| Vec::with_capacity(*class_bytes))
}

/// Takes back what [`take`] gave.
pub(crate) fn give(mut buffer: Vec<u8>) {
    let classes = CLASS_BYTES.iter().zip(&DEPOTS).enumerate();
    let mut classes = classes.filter(|(_, (class_bytes, _))| buffer.capacity() == **class_bytes);
    let Some((class, (class_bytes, depot))) = classes.next() else {
        return;
    };
    buffer.clear();
    // A thread that ends has no magazine any more; the buffer is freed then.
    with_magazine(class, |magazine| {
        if magazine.len() >= MAGAZINE_BUFFERS {
            let mut depot = depot.lock().unwrap_or_else(PoisonError::into_inner);
            let empty = depot.empty.pop();
            let full = std::mem::replace(
                magazine,
                empty.unwrap_or_else(|| Vec::with_capacity(MAGAZINE_BUFFERS)),
            );
            let idle_bytes = depot.full.len() * MAGAZINE_BUFFERS * class_bytes;
            if idle_bytes < CLASS_IDLE_BYTES_MAX {
                depot.full.push(full);
            }
        }
        magazine.push(buffer);
    });
}

fn with_magazine<T>(class: usize, used: impl FnOnce(&mut Magazine) -> T) -> Option<T> {
    let of_thread = LOADED.try_with(|loaded| {
        let mut loaded = loaded.borrow_mut();
        loaded.get_mut(class).map(used)
    });
    of_thread.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffer_of_one_thread_serves_another() {
        // A class that no other test uses much would not help: what counts is that enough of them
        // come back, whoever else takes some.
        let buffers: Vec<_> = (0..10 * MAGAZINE_BUFFERS).map(|_| take(60_000)).collect();
        let mut known: Vec<_> = buffers
            .iter()
            .map(|buffer| buffer.as_ptr().addr())
            .collect();
        known.sort_unstable();
        std::thread::spawn(move || buffers.into_iter().for_each(give))
            .join()
            .unwrap();
        let again: Vec<_> = (0..MAGAZINE_BUFFERS).map(|_| take(60_000)).collect();
        let of_before = again
            .iter()
            .filter(|buffer| known.binary_search(&buffer.as_ptr().addr()).is_ok());
        assert!(of_before.count() > 0);
    }

    #[test]
    fn what_is_idle_is_bounded_and_empty() {
        let count = 2 * CLASS_IDLE_BYTES_MAX / CLASS_BYTES_MAX;
        let mut buffers: Vec<_> = (0..count).map(|_| take(70_000)).collect();
        for buffer in &mut buffers {
            buffer.push(1);
        }
        buffers.into_iter().for_each(give);
        let depot = DEPOTS[3].lock().unwrap();
        let idle = depot.full.iter().flatten();
        assert!(idle.clone().all(Vec::is_empty));
        assert!(
            idle.count() * CLASS_BYTES_MAX
                <= CLASS_IDLE_BYTES_MAX + MAGAZINE_BUFFERS * CLASS_BYTES_MAX
        );
    }

    #[test]
    fn larger_ones_and_those_that_grew_are_not_kept() {
        let mut grown = take(100);
        grown.resize(CLASS_BYTES[0] + 1, 0);
        give(grown);
        assert_eq!(take(CLASS_BYTES_MAX + 1).capacity(), CLASS_BYTES_MAX + 1);
        assert_eq!(take(1).capacity(), CLASS_BYTES[0]);
    }
}

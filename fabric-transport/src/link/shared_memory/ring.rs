//! One direction of a shared-memory link: a ring of bytes with one producer and one consumer, who
//! do not trust each other.
//!
//! Positions count bytes from the start of the link, modulo 2^32. The producer owns [`Word::Head`],
//! the consumer [`Word::Tail`]; each keeps its own position in private memory and only publishes
//! it. What is read of the other's must lie between what was read last and one's own position (one
//! ring ahead of it for the head), or the link is broken: nothing that the peer writes leads
//! outside of the ring or gives bytes twice.
//!
//! # Why no wake-up is lost
//!
//! Whoever finds nothing to do sets its `Sleeps` word and then looks once more. Whoever publishes
//! a position then looks at the other's word, and takes it back and wakes the other if it is set:
//!
//! | sleeper | waker |
//! | --- | --- |
//! | forget wake-ups that have arrived | |
//! | swap 1 into `Sleeps` | store position |
//! | fence (sequentially consistent) | fence (sequentially consistent) |
//! | load position; sleep if it has not moved | load `Sleeps`; if it is 1, swap 0 into it, and wake if it still was 1 |
//!
//! The two fences have an order. If the sleeper's is first, the waker sees `Sleeps` and wakes; if
//! the waker's is first, the sleeper sees the new position and does not sleep. Both may happen: a
//! wake-up too many is only a look in vain. A waker that is late may take back a 1 that was set
//! after it looked. Its wake-up then comes after that 1, so it must not be forgotten: that is why
//! wake-ups are forgotten first.

use std::io::{self, IoSlice};

/// The words of a ring that both sides see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// Bytes written so far; the producer's.
    Head,
    /// Bytes read so far; the consumer's.
    Tail,
    /// 1: the consumer wants to be woken when there are bytes.
    ConsumerSleeps,
    /// 1: the producer wants to be woken when there is room.
    ProducerSleeps,
}

/// Memory that holds a ring.
pub(super) trait RingMemory {
    /// Bytes of the ring: a power of two, at most 2^31.
    fn ring_bytes(&self) -> u32;
    /// Reads a word, acquiring what was written before it was stored.
    fn load(&self, word: Word) -> io::Result<u32>;
    /// Writes a word, releasing what was written before.
    fn store(&self, word: Word, value: u32) -> io::Result<()>;
    /// Both at once.
    fn swap(&self, word: Word, value: u32) -> io::Result<u32>;
    /// A sequentially consistent fence.
    fn fence(&self);
    /// Copies `from` to byte `offset` of the ring; does not go past its end.
    fn write(&self, offset: usize, from: &[u8]) -> io::Result<()>;
    /// Copies from byte `offset` of the ring; does not go past its end.
    fn read(&self, offset: usize, into: &mut [u8]) -> io::Result<()>;
}

fn broken(word: &str, value: u32) -> io::Error {
    let text = format!("peer wrote {value} as the {word} of a ring, where it cannot be");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn saturating(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// The parts before and behind the end of the ring of `bytes` from `position` on: the offset of
/// the first, and its length.
fn wrap(ring_bytes: u32, position: u32, bytes: usize) -> (usize, usize) {
    let offset = position & (ring_bytes - 1);
    (offset as usize, bytes.min((ring_bytes - offset) as usize))
}

/// Takes the other side's `Sleeps` word back; whether it was set.
fn take_sleeper(memory: &impl RingMemory, word: Word) -> io::Result<bool> {
    memory.fence();
    Ok(memory.load(word)? != 0 && memory.swap(word, 0)? != 0)
}

/// The side that writes.
#[derive(Debug)]
pub(super) struct Producer<M> {
    memory: M,
    head: u32,
    /// The consumer's position when it was last looked at.
    tail: u32,
    sleeps: bool,
}

impl<M: RingMemory> Producer<M> {
    /// The producer of a ring that nobody has used yet.
    pub(super) fn new(memory: M) -> Self {
        Self {
            memory,
            head: 0,
            tail: 0,
            sleeps: false,
        }
    }

    fn room(&self) -> u32 {
        self.memory.ring_bytes() - self.head.wrapping_sub(self.tail)
    }

    fn look(&mut self) -> io::Result<()> {
        let tail = self.memory.load(Word::Tail)?;
        if tail.wrapping_sub(self.tail) > self.head.wrapping_sub(self.tail) {
            return Err(broken("tail", tail));
        }
        self.tail = tail;
        Ok(())
    }

    /// Writes what there is room for; 0 if there is none: then the consumer wakes this side when
    /// there is.
    ///
    /// # Errors
    /// The peer broke the ring.
    pub(super) fn push(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let wanted = slices.iter().fold(0_u32, |sum, slice| {
            sum.saturating_add(saturating(slice.len()))
        });
        if self.room() < wanted {
            self.look()?;
        }
        if self.room() == 0 {
            self.sleeps = true;
            self.memory.swap(Word::ProducerSleeps, 1)?;
            self.memory.fence();
            self.look()?;
            if self.room() == 0 {
                return Ok(0);
            }
        }
        if self.sleeps {
            self.sleeps = false;
            self.memory.store(Word::ProducerSleeps, 0)?;
        }
        let mut written = 0;
        for slice in slices {
            let room = (self.room() - written) as usize;
            let bytes = slice.get(..room).unwrap_or(slice);
            let position = self.head.wrapping_add(written);
            let (offset, before_end) = wrap(self.memory.ring_bytes(), position, bytes.len());
            let (first, second) = bytes.split_at_checked(before_end).unwrap_or((bytes, &[]));
            self.memory.write(offset, first)?;
            self.memory.write(0, second)?;
            written += saturating(bytes.len());
        }
        self.head = self.head.wrapping_add(written);
        self.memory.store(Word::Head, self.head)?;
        Ok(written as usize)
    }

    /// Whether the consumer must be woken, after [`Self::push`].
    ///
    /// # Errors
    /// None with memory that is there.
    pub(super) fn consumer_must_wake(&self) -> io::Result<bool> {
        take_sleeper(&self.memory, Word::ConsumerSleeps)
    }
}

/// The side that reads.
#[derive(Debug)]
pub(super) struct Consumer<M> {
    memory: M,
    tail: u32,
    /// The producer's position when it was last looked at.
    head: u32,
    sleeps: bool,
}

impl<M: RingMemory> Consumer<M> {
    /// The consumer of a ring that nobody has used yet.
    pub(super) fn new(memory: M) -> Self {
        Self {
            memory,
            tail: 0,
            head: 0,
            sleeps: false,
        }
    }

    fn look(&mut self) -> io::Result<()> {
        let head = self.memory.load(Word::Head)?;
        let readable = head.wrapping_sub(self.tail);
        if readable > self.memory.ring_bytes() || readable < self.head.wrapping_sub(self.tail) {
            return Err(broken("head", head));
        }
        self.head = head;
        Ok(())
    }

    /// Moves what is there to `buffer`; 0 if nothing is. Does not ask to be woken.
    ///
    /// # Errors
    /// The peer broke the ring.
    pub(super) fn pull(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.look()?;
        let readable = self.head.wrapping_sub(self.tail) as usize;
        if readable == 0 || buffer.is_empty() {
            return Ok(0);
        }
        if self.sleeps {
            self.sleeps = false;
            self.memory.store(Word::ConsumerSleeps, 0)?;
        }
        let into = match buffer.split_at_mut_checked(readable) {
            Some((into, _)) => into,
            None => buffer,
        };
        let bytes = into.len();
        let (offset, before_end) = wrap(self.memory.ring_bytes(), self.tail, bytes);
        // `wrap` gives no more than `bytes`.
        let (first, second) = into.split_at_mut_checked(before_end).unwrap_or_default();
        self.memory.read(offset, first)?;
        self.memory.read(0, second)?;
        self.tail = self.tail.wrapping_add(saturating(bytes));
        self.memory.store(Word::Tail, self.tail)?;
        Ok(bytes)
    }

    /// Whether the producer must be woken, after [`Self::pull`].
    ///
    /// # Errors
    /// None with memory that is there.
    pub(super) fn producer_must_wake(&self) -> io::Result<bool> {
        take_sleeper(&self.memory, Word::ProducerSleeps)
    }

    /// Asks to be woken for the next bytes, behind `forget`, which forgets the wake-ups that have
    /// arrived. Whoever calls this looks once more, by [`Self::pull`], before it sleeps.
    ///
    /// # Errors
    /// Those of `forget`.
    pub(super) fn ask_to_wake<T>(
        &mut self,
        forget: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let forgotten = forget()?;
        self.sleeps = true;
        self.memory.swap(Word::ConsumerSleeps, 1)?;
        self.memory.fence();
        Ok(forgotten)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::shared_memory::memory::{Direction, MappedRing, Mapping};
    use loom::sync::atomic::{AtomicU8, AtomicU32, Ordering, fence};
    use loom::sync::{Arc, Condvar, Mutex};
    use proptest::prelude::*;

    fn mapped(ring_bytes: u32) -> (Mapping, MappedRing) {
        let mapping = Mapping::create(ring_bytes).unwrap();
        let ring = mapping.ring(Direction::FromAcceptor);
        (mapping, ring)
    }

    /// Both sides of a ring that has moved `position` bytes already.
    fn both_sides(
        mapping: &Mapping,
        position: u32,
    ) -> (Producer<MappedRing>, Consumer<MappedRing>) {
        let ring = || mapping.ring(Direction::FromConnector);
        ring().store(Word::Head, position).unwrap();
        ring().store(Word::Tail, position).unwrap();
        let mut producer = Producer::new(ring());
        (producer.head, producer.tail) = (position, position);
        let mut consumer = Consumer::new(ring());
        (consumer.head, consumer.tail) = (position, position);
        (producer, consumer)
    }

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in(
            position in prop_oneof![any::<u32>(), u32::MAX - 200..=u32::MAX],
            steps in prop::collection::vec((prop::collection::vec(0_usize..40, 0..4), 0_usize..100), 1..100),
        ) {
            let (mapping, _) = mapped(64);
            let (mut producer, mut consumer) = both_sides(&mapping, position);
            let (mut sent, mut received) = (Vec::new(), Vec::new());
            let mut next = 0_u8;
            for (lengths, take) in steps {
                let pieces: Vec<Vec<u8>> = lengths.iter().map(|length| {
                    (0..*length).map(|_| { next = next.wrapping_add(1); next }).collect()
                }).collect();
                let slices: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
                let written = producer.push(&slices).unwrap();
                let bytes = pieces.concat();
                prop_assert!(written == bytes.len() || sent.len() + written == received.len() + 64);
                sent.extend_from_slice(&bytes[..written]);
                next = sent.last().copied().unwrap_or(0);
                let mut buffer = vec![0; take];
                let read = consumer.pull(&mut buffer).unwrap();
                prop_assert_eq!(read, take.min(sent.len() - received.len()));
                received.extend_from_slice(&buffer[..read]);
            }
            prop_assert_eq!(&received, &sent[..received.len()]);
        }

        #[test]
        fn p06_position_that_cannot_be_breaks_the_link(garbage: u32, filled in 0_u32..=64) {
            let (mapping, ring) = mapped(64);
            let position = 1000;
            let (mut producer, mut consumer) = both_sides(&mapping, position);
            let fill = vec![1; filled as usize];
            prop_assert_eq!(producer.push(&[IoSlice::new(&fill)]).unwrap(), fill.len());
            drop(ring);
            let ring = mapping.ring(Direction::FromConnector);

            ring.store(Word::Head, garbage).unwrap();
            let mut buffer = [0; 200];
            match consumer.pull(&mut buffer) {
                Ok(bytes) => prop_assert_eq!(bytes, (garbage - position) as usize),
                Err(_) => prop_assert!(!(position..=position + 64).contains(&garbage)),
            }
            ring.store(Word::Tail, garbage).unwrap();
            match producer.push(&[IoSlice::new(&[0; 65])]) {
                Ok(_) => prop_assert!((position..=position + filled).contains(&garbage)),
                Err(_) => prop_assert!(!(position..=position + filled).contains(&garbage)),
            }
        }
    }

    #[test]
    fn p06_position_that_goes_back_breaks_the_link() {
        let (mapping, _) = mapped(64);
        let (mut producer, mut consumer) = both_sides(&mapping, 0);
        let ring = mapping.ring(Direction::FromConnector);
        assert_eq!(producer.push(&[IoSlice::new(&[1; 64])]).unwrap(), 64);
        assert_eq!(consumer.pull(&mut [0; 10]).unwrap(), 10);
        assert_eq!(producer.push(&[IoSlice::new(&[1; 64])]).unwrap(), 10);
        ring.store(Word::Tail, 9).unwrap();
        assert!(producer.push(&[IoSlice::new(&[1; 64])]).is_err());
        // 20 of the bytes that were there are gone again.
        ring.store(Word::Head, 54).unwrap();
        assert!(consumer.pull(&mut [0; 10]).is_err());
    }

    #[test]
    fn who_sleeps_is_woken_once_and_who_does_not_is_left_alone() {
        let (mapping, _) = mapped(64);
        let (mut producer, mut consumer) = both_sides(&mapping, 0);
        let mut buffer = [0; 64];
        assert_eq!(consumer.pull(&mut buffer).unwrap(), 0);
        producer.push(&[IoSlice::new(&[1])]).unwrap();
        assert!(!producer.consumer_must_wake().unwrap(), "it did not ask");
        assert_eq!(consumer.pull(&mut buffer).unwrap(), 1);
        consumer.ask_to_wake(|| Ok(())).unwrap();
        producer.push(&[IoSlice::new(&[1])]).unwrap();
        assert!(producer.consumer_must_wake().unwrap());
        assert!(!producer.consumer_must_wake().unwrap());
        consumer.ask_to_wake(|| Ok(())).unwrap();
        assert_eq!(consumer.pull(&mut buffer).unwrap(), 1);
        assert!(!producer.consumer_must_wake().unwrap(), "it found them");

        assert_eq!(producer.push(&[IoSlice::new(&[1; 70])]).unwrap(), 64);
        assert!(!consumer.producer_must_wake().unwrap(), "it did not ask");
        assert_eq!(producer.push(&[IoSlice::new(&[1; 6])]).unwrap(), 0);
        assert_eq!(consumer.pull(&mut buffer[..8]).unwrap(), 8);
        assert!(consumer.producer_must_wake().unwrap());
        assert!(!consumer.producer_must_wake().unwrap());
    }

    /// A ring of two bytes in the memory of the model checker.
    #[derive(Debug, Clone)]
    struct Modelled(Arc<([AtomicU32; 4], [AtomicU8; 2])>);

    impl Modelled {
        fn new() -> Self {
            let words = std::array::from_fn(|_| AtomicU32::new(0));
            let bytes = std::array::from_fn(|_| AtomicU8::new(0));
            Self(Arc::new((words, bytes)))
        }
    }

    impl RingMemory for Modelled {
        fn ring_bytes(&self) -> u32 {
            2
        }
        fn load(&self, word: Word) -> io::Result<u32> {
            Ok(self.0.0[word as usize].load(Ordering::Acquire))
        }
        fn store(&self, word: Word, value: u32) -> io::Result<()> {
            self.0.0[word as usize].store(value, Ordering::Release);
            Ok(())
        }
        fn swap(&self, word: Word, value: u32) -> io::Result<u32> {
            Ok(self.0.0[word as usize].swap(value, Ordering::AcqRel))
        }
        fn fence(&self) {
            fence(Ordering::SeqCst);
        }
        fn write(&self, offset: usize, from: &[u8]) -> io::Result<()> {
            for (cell, byte) in self.0.1[offset..].iter().zip(from) {
                cell.store(*byte, Ordering::Relaxed);
            }
            Ok(())
        }
        fn read(&self, offset: usize, into: &mut [u8]) -> io::Result<()> {
            for (cell, byte) in self.0.1[offset..].iter().zip(into) {
                *byte = cell.load(Ordering::Relaxed);
            }
            Ok(())
        }
    }

    /// Wake-ups for one side, as the socket carries them.
    #[derive(Debug, Clone)]
    struct Wakes(Arc<(Mutex<bool>, Condvar)>);

    impl Wakes {
        fn new() -> Self {
            Self(Arc::new((Mutex::new(false), Condvar::new())))
        }
        fn wake(&self) {
            *self.0.0.lock().unwrap() = true;
            self.0.1.notify_one();
        }
        fn forget(&self) -> io::Result<()> {
            *self.0.0.lock().unwrap() = false;
            Ok(())
        }
        fn sleep(&self) {
            let mut woken = self.0.0.lock().unwrap();
            while !*woken {
                woken = self.0.1.wait(woken).unwrap();
            }
        }
    }

    fn model(check: impl Fn() + Sync + Send + 'static) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(check);
    }

    /// In every order that the memory model allows (up to a number of preemptions): a side that is
    /// not woken ends as a deadlock, bytes read too early as wrong ones.
    #[test]
    fn no_wake_up_is_lost_and_no_byte_is_read_early() {
        const BYTES: [u8; 3] = [1, 2, 3];
        model(|| {
            let memory = Modelled::new();
            let (for_consumer, for_producer) = (Wakes::new(), Wakes::new());
            let mut producer = Producer::new(memory.clone());
            let mut consumer = Consumer::new(memory);
            let (consumer_wakes, producer_wakes) = (for_consumer.clone(), for_producer.clone());
            let sender = loom::thread::spawn(move || {
                let mut sent = 0;
                while sent < BYTES.len() {
                    match producer.push(&[IoSlice::new(&BYTES[sent..])]).unwrap() {
                        0 => {
                            producer_wakes.sleep();
                            producer_wakes.forget().unwrap();
                        }
                        bytes => {
                            sent += bytes;
                            if producer.consumer_must_wake().unwrap() {
                                consumer_wakes.wake();
                            }
                        }
                    }
                }
            });
            let mut received = Vec::new();
            while received.len() < BYTES.len() {
                let mut buffer = [0; 3];
                let mut bytes = consumer.pull(&mut buffer).unwrap();
                if bytes == 0 {
                    consumer.ask_to_wake(|| for_consumer.forget()).unwrap();
                    bytes = consumer.pull(&mut buffer).unwrap();
                }
                if bytes == 0 {
                    for_consumer.sleep();
                } else if consumer.producer_must_wake().unwrap() {
                    for_producer.wake();
                }
                received.extend_from_slice(&buffer[..bytes]);
            }
            sender.join().unwrap();
            assert_eq!(received, BYTES);
        });
    }
}

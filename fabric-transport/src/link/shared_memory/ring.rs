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
//! | store `Sleeps` = 1 | store position |
//! | fence (sequentially consistent) | fence (sequentially consistent) |
//! | load position; sleep if it has not moved | load `Sleeps`; wake if it is 1 |
//!
//! The two fences have an order. If the sleeper's is first, the waker sees `Sleeps` and wakes; if
//! the waker's is first, the sleeper sees the new position and does not sleep. Both may happen: a
//! wake-up too many is only a look in vain.

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
        let wanted = slices
            .iter()
            .fold(0_u32, |sum, slice| sum.saturating_add(saturating(slice.len())));
        if self.room() < wanted {
            self.look()?;
        }
        if self.room() == 0 {
            self.sleeps = true;
            self.memory.store(Word::ProducerSleeps, 1)?;
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

    /// Asks to be woken for the next bytes. Whoever calls this looks once more, by
    /// [`Self::pull`], before it sleeps.
    ///
    /// # Errors
    /// None with memory that is there.
    pub(super) fn ask_to_wake(&mut self) -> io::Result<()> {
        self.sleeps = true;
        self.memory.store(Word::ConsumerSleeps, 1)?;
        self.memory.fence();
        Ok(())
    }
}

//! The memory of a link: one sealed memfd that both sides map.
//!
//! A peer that may cut a file short kills whoever has mapped it with SIGBUS. So the file must be
//! sealed against any change of its size before it is mapped, and must be of tmpfs: huge pages
//! may be missing when they are touched, whatever the seals.

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::libc::{MAP_POPULATE, MAP_SHARED, PROT_READ, PROT_WRITE};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use vm_memory::volatile_memory::Error as OutOfBounds;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

use super::ring::{RingMemory, Word};

/// Bytes of a ring at least.
pub(super) const RING_BYTES_MIN: u32 = 64 * 1024;
/// Bytes of a ring at most.
pub(super) const RING_BYTES_MAX: u32 = 4 * 1024 * 1024;

/// Bytes before the first ring: the words of both.
const WORDS_BYTES: usize = 4096;
/// Words stand two cache lines apart, since processors fetch lines in pairs.
const WORD_STRIDE: usize = 128;
/// Words of one ring.
const WORDS: usize = 4;

const SIZE_SEALS: SealFlag = SealFlag::F_SEAL_SHRINK
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_SEAL);

/// Which way a ring goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the side that connected.
    FromConnector = 0,
    /// From the side that accepted.
    FromAcceptor = 1,
}

/// The mapped memory of a link.
#[derive(Debug, Clone)]
pub(super) struct Mapping {
    region: Arc<MmapRegion>,
    file: Arc<File>,
    ring_bytes: u32,
}

impl Mapping {
    /// New memory with two rings of `ring_bytes` each.
    ///
    /// # Errors
    /// The kernel has no memory or descriptors left.
    pub(super) fn create(ring_bytes: u32) -> io::Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create("orimono-link", flags)?);
        file.set_len(file_bytes(ring_bytes))?;
        fcntl(&file, FcntlArg::F_ADD_SEALS(SIZE_SEALS))?;
        Self::map(file, ring_bytes)
    }

    /// The memory in `file`, which a peer made.
    ///
    /// # Errors
    /// It cannot be used, or not without danger; the error says why.
    pub(super) fn adopt(file: File, ring_bytes: u32) -> io::Result<Self> {
        if !ring_bytes.is_power_of_two() || !(RING_BYTES_MIN..=RING_BYTES_MAX).contains(&ring_bytes)
        {
            return Err(refused(format!(
                "rings have {ring_bytes} bytes, not a power of two from {RING_BYTES_MIN} to {RING_BYTES_MAX}"
            )));
        }
        // Only a memfd has seals; other files answer EINVAL.
        let seals = fcntl(&file, FcntlArg::F_GET_SEALS)
            .map_err(|error| refused(format!("descriptor is no memfd: {error}")))?;
        if !SealFlag::from_bits_retain(seals).contains(SIZE_SEALS) {
            return Err(refused(
                "memfd is not sealed against a change of size".to_owned(),
            ));
        }
        if fstatfs(&file)?.filesystem_type() != TMPFS_MAGIC {
            return Err(refused("memfd is not of tmpfs".to_owned()));
        }
        // Looked at behind the seals: it cannot change any more.
        let bytes = fstat(&file)?.st_size;
        if u64::try_from(bytes) != Ok(file_bytes(ring_bytes)) {
            return Err(refused(format!(
                "memfd has {bytes} bytes, not {}",
                file_bytes(ring_bytes)
            )));
        }
        Self::map(file, ring_bytes)
    }

    fn map(file: File, ring_bytes: u32) -> io::Result<Self> {
        let bytes = usize::try_from(file_bytes(ring_bytes)).map_err(io::Error::other)?;
        let file = Arc::new(file);
        let region = MmapRegion::build(
            Some(FileOffset::from_arc(file.clone(), 0)),
            bytes,
            PROT_READ | PROT_WRITE,
            // A page fault in the middle of a burst costs more than all of them at once.
            MAP_SHARED | MAP_POPULATE,
        )
        .map_err(|error| refused(format!("memory of the link cannot be mapped: {error}")))?;
        Ok(Self {
            region: Arc::new(region),
            file,
            ring_bytes,
        })
    }

    /// Bytes of each ring.
    pub(super) fn ring_bytes(&self) -> u32 {
        self.ring_bytes
    }

    /// One of the rings.
    pub(super) fn ring(&self, direction: Direction) -> MappedRing {
        let number = direction as usize;
        MappedRing {
            region: self.region.clone(),
            words: number * WORDS * WORD_STRIDE,
            data: WORDS_BYTES + number * self.ring_bytes as usize,
            ring_bytes: self.ring_bytes,
        }
    }
}

impl AsFd for Mapping {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn file_bytes(ring_bytes: u32) -> u64 {
    WORDS_BYTES as u64 + 2 * u64::from(ring_bytes)
}

fn refused(problem: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

/// One ring of the mapped memory.
#[derive(Debug)]
pub(super) struct MappedRing {
    region: Arc<MmapRegion>,
    /// Where its words start.
    words: usize,
    /// Where its bytes start.
    data: usize,
    ring_bytes: u32,
}

impl MappedRing {
    fn word(&self, word: Word) -> io::Result<&AtomicU32> {
        let number = match word {
            Word::Head => 0,
            Word::Tail => 1,
            Word::ConsumerSleeps => 2,
            Word::ProducerSleeps => 3,
        };
        self.region
            .get_atomic_ref(self.words + number * WORD_STRIDE)
            .map_err(outside)
    }

    fn slice(&self, offset: usize, bytes: usize) -> io::Result<VolatileSlice<'_>> {
        self.region
            .get_slice(self.data + offset, bytes)
            .map_err(outside)
    }
}

fn outside(error: OutOfBounds) -> io::Error {
    io::Error::other(error)
}

const _: () = assert!(2 * WORDS * WORD_STRIDE <= WORDS_BYTES);
const _: () = assert!(WORD_STRIDE.is_multiple_of(size_of::<AtomicU32>()));

impl RingMemory for MappedRing {
    fn ring_bytes(&self) -> u32 {
        self.ring_bytes
    }

    fn load(&self, word: Word) -> io::Result<u32> {
        Ok(self.word(word)?.load(Ordering::Acquire))
    }

    fn store(&self, word: Word, value: u32) -> io::Result<()> {
        self.word(word)?.store(value, Ordering::Release);
        Ok(())
    }

    fn swap(&self, word: Word, value: u32) -> io::Result<u32> {
        Ok(self.word(word)?.swap(value, Ordering::AcqRel))
    }

    fn fence(&self) {
        fence(Ordering::SeqCst);
    }

    fn write(&self, offset: usize, from: &[u8]) -> io::Result<()> {
        self.slice(offset, from.len())?.copy_from(from);
        Ok(())
    }

    fn read(&self, offset: usize, into: &mut [u8]) -> io::Result<()> {
        self.slice(offset, into.len())?.copy_to(into);
        Ok(())
    }
}

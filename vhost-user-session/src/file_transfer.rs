//! Between a file and a chain, without a copy in between: the kernel moves the bytes.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_int, iovec, off_t};
use smallvec::SmallVec;
use vm_memory::GuestMemoryBackend;
use vm_memory::bitmap::Bitmap;

use crate::chain::{Chain, ChainError, Pieces, Segment};
use crate::{DirtySlice, MemorySnapshot};

type Slice<'a> = vm_memory::VolatileSlice<'a, DirtySlice<'a>>;
type Slices<'a> = SmallVec<[Slice<'a>; 2]>;
type Vectors = SmallVec<[iovec; 2]>;

impl Chain {
    /// Reads `bytes` of `file`, from `position` on, into the writable part of the chain, from
    /// `offset` on; how many were read, which is less at the end of the file. With `wait` false
    /// what is not in memory is not waited for.
    ///
    /// # Errors
    /// [`ChainError`] as in [`Self::write_at`], and those of preadv2(2): without `wait`
    /// [`io::ErrorKind::WouldBlock`], and [`io::ErrorKind::Unsupported`] where the file system
    /// does not know whether it would wait. More than 1024 pieces of memory are refused with EINVAL.
    pub fn read_file(
        &self,
        offset: u64,
        file: BorrowedFd<'_>,
        position: u64,
        bytes: usize,
        wait: bool,
    ) -> io::Result<usize> {
        let _open = self.writing().ok_or(ChainError::Stopped)?;
        let slices = slices(self.memory(), self.writable_segments(), offset, bytes)?;
        let vectors = vectors(&slices);
        let flags = if wait { 0 } else { libc::RWF_NOWAIT };
        let read = read_vectors(file, &vectors, position, flags)?;
        let mut left = read;
        for slice in &slices {
            let written = left.min(slice.len());
            slice.bitmap().mark_dirty(0, written);
            left -= written;
        }
        Ok(read)
    }

    /// Writes `bytes` of the readable part of the chain, from `offset` on, into `file`, from
    /// `position` on; how many were written.
    ///
    /// # Errors
    /// [`ChainError`] as in [`Self::read_at`], and those of pwritev(2). More than 1024 pieces of
    /// memory are refused with EINVAL.
    pub fn write_file(
        &self,
        offset: u64,
        file: BorrowedFd<'_>,
        position: u64,
        bytes: usize,
    ) -> io::Result<usize> {
        let slices = slices(self.memory(), self.readable_segments(), offset, bytes)?;
        write_vectors(file, &vectors(&slices), position)
    }
}

/// The pieces of memory behind a part of a chain.
fn slices<'a>(
    memory: &'a MemorySnapshot,
    segments: &[Segment],
    offset: u64,
    bytes: usize,
) -> Result<Slices<'a>, ChainError> {
    let mut slices = Slices::new();
    for (address, bytes) in Pieces::new(segments, offset, bytes)? {
        for slice in memory.get_slices(address, bytes) {
            slices.push(slice.map_err(|_unmapped| ChainError::OutsideMemory)?);
        }
    }
    Ok(slices)
}

/// Good as long as the slices are: their memory is mapped until the snapshot is gone.
fn vectors(slices: &[Slice<'_>]) -> Vectors {
    let vector = |slice: &Slice<'_>| iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    };
    slices.iter().map(vector).collect()
}

fn count(vectors: &[iovec]) -> io::Result<c_int> {
    c_int::try_from(vectors.len()).map_err(io::Error::other)
}

fn at(position: u64) -> io::Result<off_t> {
    off_t::try_from(position).map_err(|_beyond| io::ErrorKind::UnexpectedEof.into())
}

fn read_vectors(
    file: BorrowedFd<'_>,
    vectors: &[iovec],
    position: u64,
    flags: c_int,
) -> io::Result<usize> {
    let (count, position) = (count(vectors)?, at(position)?);
    // SAFETY: `vectors` has `count` entries, each of memory that is mapped and writable while the
    // caller's slices live; it is guest memory, which no Rust reference points to, and the kernel
    // checks each access. `file` is open because it is borrowed.
    let read = unsafe { libc::preadv2(file.as_raw_fd(), vectors.as_ptr(), count, position, flags) };
    usize::try_from(read).map_err(|_negative| io::Error::last_os_error())
}

fn write_vectors(file: BorrowedFd<'_>, vectors: &[iovec], position: u64) -> io::Result<usize> {
    let (count, position) = (count(vectors)?, at(position)?);
    // SAFETY: `vectors` has `count` entries, each of memory that is mapped while the caller's
    // slices live; the kernel only reads it. `file` is open because it is borrowed.
    let written = unsafe { libc::pwritev(file.as_raw_fd(), vectors.as_ptr(), count, position) };
    usize::try_from(written).map_err(|_negative| io::Error::last_os_error())
}

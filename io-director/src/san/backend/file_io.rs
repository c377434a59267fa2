//! Blocks of a file or block device, with or without the host's page cache.
//!
//! Through the page cache (the default) a write is done when it is there: that is the write cache
//! that the unit announces, and `fdatasync` is what makes it durable. Past it (`direct`), the
//! kernel wants aligned memory: data goes through one of [`BOUNCE_BUFFERS_MAX`] buffers, for which
//! a call waits when all are in use. A file that cannot do so, or only in larger blocks than the
//! unit has, is used through the page cache, which is logged. `docs/adr/0014-lun-back-ends.md` has
//! what each costs.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};

use fabric_bypass::DataBuffers;
use nix::fcntl::{FallocateFlags, fallocate};
use scsi_target::{Allocation, Extent, MediumError, MediumErrorKind, Transfer};

use super::{BackendError, failed, offset};

/// Buffers of one file for `direct`.
const BOUNCE_BUFFERS_MAX: usize = 8;
/// Bytes of each; longer transfers are cut.
const BOUNCE_BYTES: usize = 128 * 1024;
/// `f_type` of tmpfs and ramfs (linux/magic.h).
const FILE_SYSTEMS_IN_MEMORY: [rustix::fs::FsWord; 2] = [0x0102_1994, 0x8584_58f6];
/// What memory has to be aligned to, at any block size.
const ALIGNMENT: usize = 4096;

/// See the module.
#[derive(Debug)]
pub(super) struct FileIo {
    file: File,
    block_bytes: u32,
    bounce: Option<BounceBuffers>,
    /// Its file system is memory: nothing of it waits for a device.
    in_memory: bool,
}

impl FileIo {
    /// Opens `path`.
    ///
    /// # Errors
    /// [`BackendError::Open`].
    pub(super) fn open(
        path: &Path,
        block_bytes: u32,
        read_only: bool,
        direct: bool,
    ) -> Result<Self, BackendError> {
        let open = |flags| {
            let mut options = OpenOptions::new();
            let options = options.read(true).write(!read_only).custom_flags(flags);
            options.open(path)
        };
        if direct {
            let opened = open(libc::O_DIRECT);
            match opened.and_then(|file| Self::direct(file, block_bytes)) {
                Ok(io) => return Ok(io),
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => tracing::warn!(
                    path = %path.display(),
                    block_bytes,
                    "no O_DIRECT in blocks of this size; page cache is used"
                ),
                // Without O_DIRECT it fails in the same way, or its reads will.
                Err(error) => tracing::debug!(%error, path = %path.display(), "O_DIRECT"),
            }
        }
        let file = open(0).map_err(|source| BackendError::Open {
            path: path.to_owned(),
            read_only,
            source,
        })?;
        let file_system = rustix::fs::fstatfs(&file);
        Ok(Self {
            in_memory: file_system
                .is_ok_and(|found| FILE_SYSTEMS_IN_MEMORY.contains(&found.f_type)),
            file,
            block_bytes,
            bounce: None,
        })
    }

    /// Tries whether `file` can be read in blocks of `block_bytes` without the page cache.
    fn direct(file: File, block_bytes: u32) -> io::Result<Self> {
        let bounce = BounceBuffers::default();
        let block = usize::try_from(block_bytes).unwrap_or(BOUNCE_BYTES);
        bounce.with(|buffer| file.read_at(buffer.get_mut(..block).unwrap_or_default(), 0))?;
        Ok(Self {
            file,
            block_bytes,
            bounce: Some(bounce),
            in_memory: false,
        })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    #[cfg(test)]
    pub(super) fn is_direct(&self) -> bool {
        self.bounce.is_some()
    }

    /// Bytes up to its end, which unlike its metadata is right for a block device too.
    pub(super) fn bytes(&self) -> io::Result<u64> {
        (&self.file).seek(SeekFrom::End(0))
    }

    pub(super) fn read(&self, lba: u64, buffer: &mut [u8]) -> Result<(), MediumError> {
        let at = offset(lba, self.block_bytes)?;
        let read = match &self.bounce {
            None => self.file.read_exact_at(buffer, at),
            Some(bounce) => bounce.with(|bounce| {
                let mut at = at;
                for piece in buffer.chunks_mut(BOUNCE_BYTES) {
                    let bounce = bounce.get_mut(..piece.len()).unwrap_or_default();
                    self.file.read_exact_at(bounce, at)?;
                    piece.copy_from_slice(bounce);
                    at += u64::try_from(piece.len()).unwrap_or(0);
                }
                Ok(())
            }),
        };
        read.map_err(|error| failed(&error, MediumErrorKind::Read, lba))
    }

    /// Moves blocks without waiting, or not: reads what the page cache has, and writes where there
    /// is nothing but memory. A write into the page cache of a disk may have to wait for it.
    pub(super) fn move_now(&self, transfer: Transfer, data: &dyn DataBuffers) -> bool {
        if self.bounce.is_some() {
            return false;
        }
        let file = self.file.as_fd();
        let (moved, bytes) = match transfer {
            Transfer::Read { lba, bytes } => {
                let Ok(at) = offset(lba, self.block_bytes) else {
                    return false;
                };
                (data.read_file(file, at, bytes, self.in_memory), bytes)
            }
            Transfer::Write { lba, bytes } => {
                let Ok(at) = offset(lba, self.block_bytes) else {
                    return false;
                };
                if !self.in_memory {
                    return false;
                }
                (data.write_file(file, at, bytes), bytes)
            }
        };
        moved.is_ok_and(|moved| moved == bytes)
    }

    pub(super) fn write(&self, lba: u64, data: &[u8]) -> Result<(), MediumError> {
        let at = offset(lba, self.block_bytes)?;
        let written = match &self.bounce {
            None => self.file.write_all_at(data, at),
            Some(bounce) => bounce.with(|bounce| {
                let mut at = at;
                for piece in data.chunks(BOUNCE_BYTES) {
                    let bounce = bounce.get_mut(..piece.len()).unwrap_or_default();
                    bounce.copy_from_slice(piece);
                    self.file.write_all_at(bounce, at)?;
                    at += u64::try_from(piece.len()).unwrap_or(0);
                }
                Ok(())
            }),
        };
        written.map_err(|error| failed(&error, MediumErrorKind::Write, lba))
    }

    pub(super) fn sync(&self) -> Result<(), MediumError> {
        let synced = self.file.sync_data();
        synced.map_err(|error| MediumError {
            lba: None,
            ..failed(&error, MediumErrorKind::Write, 0)
        })
    }

    /// Takes the store of a range, which reads as zeroes then; `None` if the file system or device
    /// has no such call.
    pub(super) fn punch(&self, lba: u64, blocks: u64) -> Option<Result<(), MediumError>> {
        self.allocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE, lba, blocks)
    }

    /// Zeroes a range that keeps its store; `None` as for [`Self::punch`].
    pub(super) fn zero(&self, lba: u64, blocks: u64) -> Option<Result<(), MediumError>> {
        self.allocate(FallocateFlags::FALLOC_FL_ZERO_RANGE, lba, blocks)
    }

    fn allocate(
        &self,
        mode: FallocateFlags,
        lba: u64,
        blocks: u64,
    ) -> Option<Result<(), MediumError>> {
        let at = i64::try_from(offset(lba, self.block_bytes).ok()?).ok()?;
        let bytes = blocks.checked_mul(self.block_bytes.into());
        let bytes = i64::try_from(bytes?).ok()?;
        let mode = mode | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match fallocate(&self.file, mode, at, bytes) {
            Ok(()) => Some(Ok(())),
            // EINVAL: less than a block of the device.
            Err(nix::Error::EOPNOTSUPP | nix::Error::ENOSYS | nix::Error::EINVAL) => None,
            Err(error) => Some(Err(failed(&error.into(), MediumErrorKind::Write, lba))),
        }
    }

    /// Whether the block at `lba` has a store, and how many after it are the same. A block of
    /// which only a part has one has it.
    pub(super) fn extent(&self, lba: u64) -> Result<Extent, MediumError> {
        let block_bytes = u64::from(self.block_bytes.max(1));
        let at = offset(lba, self.block_bytes)?;
        let find = |what| match rustix::fs::seek(&self.file, what) {
            Ok(found) => Ok(Some(found)),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            Err(error) => Err(failed(&error.into(), MediumErrorKind::Read, lba)),
        };
        let data = find(rustix::fs::SeekFrom::Data(at))?;
        // Without data the hole lasts to the end, wherever that is.
        let Some(data) = data else {
            return Ok(Extent {
                blocks: u64::MAX / block_bytes - lba,
                allocation: Allocation::Deallocated,
            });
        };
        let hole_blocks = data.saturating_sub(at) / block_bytes;
        if hole_blocks > 0 {
            return Ok(Extent {
                blocks: hole_blocks,
                allocation: Allocation::Deallocated,
            });
        }
        let end = find(rustix::fs::SeekFrom::Hole(data))?.unwrap_or(u64::MAX);
        Ok(Extent {
            blocks: end.saturating_sub(at).div_ceil(block_bytes),
            allocation: Allocation::MappedOrUnknown,
        })
    }
}

/// Aligned memory, made when it is needed and kept.
#[derive(Debug, Default)]
struct BounceBuffers {
    state: Mutex<Bounce>,
    returned: Condvar,
}

#[derive(Debug, Default)]
struct Bounce {
    free: Vec<Vec<u8>>,
    made: usize,
}

impl BounceBuffers {
    /// Calls `work` with a buffer of [`BOUNCE_BYTES`]; waits for one.
    fn with<T>(&self, work: impl FnOnce(&mut [u8]) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut memory = loop {
            if let Some(memory) = state.free.pop() {
                break memory;
            }
            if state.made < BOUNCE_BUFFERS_MAX {
                state.made += 1;
                break vec![0; BOUNCE_BYTES + ALIGNMENT];
            }
            let waited = self.returned.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        };
        drop(state);
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        let aligned = memory.get_mut(start..start.saturating_add(BOUNCE_BYTES));
        let result = work(aligned.unwrap_or_default());
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.free.push(memory);
        drop(state);
        self.returned.notify_one();
        result
    }
}

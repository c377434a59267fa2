//! A file or block device as the medium of a logical unit.
//!
//! Writes go to the page cache and count as done (write cache on); FUA and SYNCHRONIZE CACHE end
//! with `fdatasync`. A failed `fdatasync` is final: the kernel may have thrown the data away and
//! would report success the next time, so the medium refuses everything but reads from then on.
//!
//! An advisory lock (flock) keeps two directors from writing one file: exclusive for a writable
//! unit, shared for a read-only one. A director that shares its files with a standby holds it only
//! while somebody uses the unit; without it the medium refuses everything.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use nix::fcntl::{FallocateFlags, fallocate};
use scsi_target::{BlockDevice, MediumError, MediumErrorKind, Provisioning};

/// Why a file cannot be a logical unit; ends with the next step.
#[derive(Debug, thiserror::Error)]
pub enum FileLunError {
    /// It cannot be opened.
    #[error(
        "cannot open {} {}; make it (truncate -s 1G FILE) or correct its path and permissions",
        path.display(),
        if *read_only { "for reading" } else { "for reading and writing" }
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Whether only reading was tried.
        read_only: bool,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Neither a regular file nor a block device.
    #[error("{} is neither a regular file nor a block device; choose another", path.display())]
    Kind {
        /// The path.
        path: PathBuf,
    },
    /// Another process has it.
    #[error("{} is served by another process; stop that one or choose another file", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// Not one block long.
    #[error(
        "{} has {bytes} bytes, less than one block of {block_bytes}; enlarge it (truncate -s 1G FILE)",
        path.display()
    )]
    TooSmall {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// What a block takes.
        block_bytes: u32,
    },
    /// Size or lock cannot be had.
    #[error("cannot inspect {}; see dmesg, or choose another file", path.display())]
    Inspect {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A file or block device.
#[derive(Debug)]
pub struct FileLun {
    file: File,
    path: PathBuf,
    block_bytes: u32,
    block_count: u64,
    read_only: bool,
    thin: bool,
    /// Whether the file is locked; held for reading while the medium works.
    claimed: RwLock<bool>,
    /// A flush failed: what was written since the last one may be lost.
    lost_writes: AtomicBool,
}

impl FileLun {
    /// Opens and locks `path`. Bytes behind the last whole block are not used.
    ///
    /// # Errors
    /// [`FileLunError`].
    pub fn open(path: &Path, block_bytes: u32, read_only: bool) -> Result<Self, FileLunError> {
        let lun = Self::open_unclaimed(path, block_bytes, read_only)?;
        lun.claim()?;
        Ok(lun)
    }

    /// Opens `path` without locking it: it cannot be used before [`Self::claim`].
    ///
    /// # Errors
    /// [`FileLunError`].
    pub fn open_unclaimed(
        path: &Path,
        block_bytes: u32,
        read_only: bool,
    ) -> Result<Self, FileLunError> {
        let owned = || path.to_owned();
        let inspect = |source| FileLunError::Inspect {
            path: path.to_owned(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(path)
            .map_err(|source| FileLunError::Open {
                path: owned(),
                read_only,
                source,
            })?;
        let kind = file.metadata().map_err(inspect)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(FileLunError::Kind { path: owned() });
        }
        // Unlike its metadata, its end tells the size of a block device too.
        let bytes = file.seek(SeekFrom::End(0)).map_err(inspect)?;
        let block_count = bytes.checked_div(block_bytes.into()).unwrap_or(0);
        if block_count == 0 {
            return Err(FileLunError::TooSmall {
                path: owned(),
                bytes,
                block_bytes,
            });
        }
        Ok(Self {
            thin: kind.is_file() && !read_only,
            file,
            path: path.to_owned(),
            claimed: RwLock::new(false),
            block_bytes,
            block_count,
            read_only,
            lost_writes: AtomicBool::new(false),
        })
    }

    /// Locks the file, unless it is.
    ///
    /// # Errors
    /// Another process has it.
    pub fn claim(&self) -> Result<(), FileLunError> {
        let mut claimed = self.claimed.write().unwrap_or_else(PoisonError::into_inner);
        if *claimed {
            return Ok(());
        }
        let locked = if self.read_only {
            self.file.try_lock_shared()
        } else {
            self.file.try_lock()
        };
        let path = self.path.clone();
        match locked {
            Ok(()) => *claimed = true,
            Err(TryLockError::WouldBlock) => return Err(FileLunError::Locked { path }),
            Err(TryLockError::Error(source)) => return Err(FileLunError::Inspect { path, source }),
        }
        Ok(())
    }

    /// Waits for what the medium does, makes it durable, and lets another process have the file.
    pub fn give_up(&self) {
        let mut claimed = self.claimed.write().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut *claimed) {
            if !self.read_only
                && let Err(error) = self.sync()
            {
                tracing::error!(?error, path = %self.path.display(), "not flushed");
            }
            if let Err(error) = self.file.unlock() {
                tracing::error!(%error, path = %self.path.display(), "not unlocked");
            }
        }
    }

    /// Keeps the lock for an access.
    fn claimed(&self, lba: u64) -> Result<RwLockReadGuard<'_, bool>, MediumError> {
        let claimed = self.claimed.read().unwrap_or_else(PoisonError::into_inner);
        let unavailable = MediumError {
            kind: MediumErrorKind::Unavailable,
            lba: Some(lba),
        };
        if *claimed {
            Ok(claimed)
        } else {
            Err(unavailable)
        }
    }

    fn offset(&self, lba: u64) -> Result<u64, MediumError> {
        let out_of_range = MediumError {
            kind: MediumErrorKind::OutOfRange,
            lba: Some(lba),
        };
        lba.checked_mul(self.block_bytes.into()).ok_or(out_of_range)
    }

    fn sync(&self) -> Result<(), MediumError> {
        self.check_writes(None)?;
        self.file.sync_data().map_err(|error| {
            self.lost_writes.store(true, Ordering::SeqCst);
            tracing::error!(%error, "flush failed, medium takes no more writes");
            MediumError {
                kind: MediumErrorKind::Write,
                lba: None,
            }
        })
    }

    fn check_writes(&self, lba: Option<u64>) -> Result<(), MediumError> {
        if self.lost_writes.load(Ordering::SeqCst) {
            return Err(MediumError {
                kind: MediumErrorKind::Write,
                lba,
            });
        }
        Ok(())
    }

    /// Zeroes a range through the file system; `None` if it has no such call.
    fn punch(&self, lba: u64, blocks: u64) -> Option<Result<(), MediumError>> {
        let offset = self
            .offset(lba)
            .ok()
            .and_then(|offset| i64::try_from(offset).ok())?;
        let bytes = blocks.checked_mul(self.block_bytes.into());
        let bytes = i64::try_from(bytes?).ok()?;
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match fallocate(&self.file, flags, offset, bytes) {
            Ok(()) => Some(Ok(())),
            Err(nix::Error::EOPNOTSUPP | nix::Error::ENOSYS) => None,
            Err(error) => Some(Err(failed(&error.into(), MediumErrorKind::Write, lba))),
        }
    }
}

/// What an error of the kernel means to the initiator.
fn failed(error: &io::Error, medium: MediumErrorKind, lba: u64) -> MediumError {
    let kind = match error.raw_os_error() {
        Some(libc::EIO | libc::EBADMSG) => medium,
        Some(libc::ENOSPC | libc::EDQUOT) => MediumErrorKind::NoSpace,
        Some(libc::EROFS | libc::EPERM) => MediumErrorKind::WriteProtected,
        Some(libc::ENODEV | libc::ENXIO | libc::ESTALE | libc::ETIMEDOUT) => {
            MediumErrorKind::Unavailable
        }
        // The file shrank under us.
        _ if error.kind() == io::ErrorKind::UnexpectedEof => MediumErrorKind::OutOfRange,
        _ => MediumErrorKind::Internal,
    };
    MediumError {
        kind,
        lba: Some(lba),
    }
}

impl BlockDevice for FileLun {
    fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    fn block_count(&self) -> u64 {
        self.block_count
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn provisioning(&self) -> Provisioning {
        if self.thin {
            Provisioning::Thin
        } else {
            Provisioning::Full
        }
    }

    fn read(&self, lba: u64, buffer: &mut [u8]) -> Result<(), MediumError> {
        let _claimed = self.claimed(lba)?;
        let read = self.file.read_exact_at(buffer, self.offset(lba)?);
        read.map_err(|error| failed(&error, MediumErrorKind::Read, lba))
    }

    fn write(&self, lba: u64, data: &[u8], fua: bool) -> Result<(), MediumError> {
        let _claimed = self.claimed(lba)?;
        self.check_writes(Some(lba))?;
        let written = self.file.write_all_at(data, self.offset(lba)?);
        written.map_err(|error| failed(&error, MediumErrorKind::Write, lba))?;
        if fua { self.sync() } else { Ok(()) }
    }

    fn flush(&self) -> Result<(), MediumError> {
        let _claimed = self.claimed(0)?;
        if self.read_only { Ok(()) } else { self.sync() }
    }

    fn unmap(&self, lba: u64, blocks: u64) -> Result<(), MediumError> {
        let claimed = self.claimed(lba)?;
        self.check_writes(Some(lba))?;
        let punched = self.punch(lba, blocks);
        drop(claimed);
        punched.unwrap_or_else(|| self.write_zeroes(lba, blocks, false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn file(bytes: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(bytes).unwrap();
        file
    }

    #[test]
    fn blocks_are_read_as_they_were_written_and_the_rest_is_not_used() {
        let file = file(3 * 512 + 100);
        let lun = FileLun::open(file.path(), 512, false).unwrap();
        assert_eq!(lun.block_count(), 3);
        lun.write(1, &[7; 512], true).unwrap();
        let mut blocks = [1; 1024];
        lun.read(0, &mut blocks).unwrap();
        assert_eq!(
            (&blocks[..512], &blocks[512..]),
            (&[0; 512][..], &[7; 512][..])
        );
        let error = lun.read(4, &mut blocks).unwrap_err();
        assert_eq!(
            (error.kind, error.lba),
            (MediumErrorKind::OutOfRange, Some(4))
        );
        assert!(lun.write(u64::MAX, &[0; 512], false).is_err());
    }

    #[test]
    fn unmapped_blocks_read_as_zeroes_and_take_no_space() {
        let file = file(1 << 20);
        let lun = FileLun::open(file.path(), 4096, false).unwrap();
        lun.write(0, &vec![0xff; 1 << 20], true).unwrap();
        let before = file.as_file().metadata().unwrap().blocks();
        lun.unmap(16, 128).unwrap();
        lun.flush().unwrap();
        let mut block = [1; 4096];
        lun.read(100, &mut block).unwrap();
        assert_eq!(block, [0; 4096]);
        lun.read(15, &mut block).unwrap();
        assert_eq!(block, [0xff; 4096]);
        assert!(file.as_file().metadata().unwrap().blocks() < before);
    }

    #[test]
    fn one_file_has_one_writer() {
        let file = file(4096);
        let reader = FileLun::open(file.path(), 512, true).unwrap();
        assert!(FileLun::open(file.path(), 512, true).is_ok());
        let locked = FileLun::open(file.path(), 512, false);
        assert!(matches!(locked, Err(FileLunError::Locked { .. })));
        assert_eq!(reader.write(0, &[0; 512], false).unwrap_err().lba, Some(0));
        drop(reader);
        let _writer = FileLun::open(file.path(), 512, false).unwrap();
        assert!(matches!(
            FileLun::open(file.path(), 512, true),
            Err(FileLunError::Locked { .. })
        ));
    }

    #[test]
    fn shared_file_is_used_by_whoever_claimed_it() {
        let file = file(4096);
        let open = || FileLun::open_unclaimed(file.path(), 512, false).unwrap();
        let (first, second) = (open(), open());
        let mut block = [0; 512];
        let unavailable = first.read(0, &mut block).unwrap_err();
        assert_eq!(unavailable.kind, MediumErrorKind::Unavailable);
        first.claim().unwrap();
        first.claim().unwrap();
        assert!(matches!(second.claim(), Err(FileLunError::Locked { .. })));
        first.write(0, &[7; 512], false).unwrap();
        assert!(second.write(0, &[8; 512], false).is_err());
        first.give_up();
        second.claim().unwrap();
        second.read(0, &mut block).unwrap();
        assert_eq!(block, [7; 512]);
        assert!(first.write(0, &[9; 512], false).is_err());
    }

    #[test]
    fn unusable_files_are_named_with_the_next_step() {
        let missing = FileLun::open(Path::new("/nonexistent/lun.img"), 512, false).unwrap_err();
        assert_eq!(
            missing.to_string(),
            "cannot open /nonexistent/lun.img for reading and writing; \
             make it (truncate -s 1G FILE) or correct its path and permissions"
        );
        let small = file(511);
        let small = FileLun::open(small.path(), 512, false).unwrap_err();
        assert!(matches!(
            small,
            FileLunError::TooSmall {
                bytes: 511,
                block_bytes: 512,
                ..
            }
        ));
        let kind = FileLun::open(Path::new("/dev/null"), 512, true).unwrap_err();
        assert!(matches!(kind, FileLunError::Kind { .. }));
    }
}

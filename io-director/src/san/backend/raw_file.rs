//! A raw file: block n stands at n times the block size, whatever the first bytes look like.
//!
//! Discarded blocks become holes. The file may grow and shrink while it is served.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use fabric_bypass::DataBuffers;
use scsi_target::{BlockDevice, Extent, MediumError, Provisioning, Transfer};

use super::file_io::FileIo;
use super::{Backend, BackendError, lock_file, unlock_file, whole_blocks};

/// See the module.
#[derive(Debug)]
pub(super) struct RawFile {
    io: FileIo,
    path: PathBuf,
    block_bytes: u32,
    block_count: AtomicU64,
    read_only: bool,
}

impl RawFile {
    /// Opens `path` without locking it. Bytes behind the last whole block are not used.
    ///
    /// # Errors
    /// [`BackendError`].
    pub(super) fn open(
        path: &Path,
        block_bytes: u32,
        read_only: bool,
        direct: bool,
    ) -> Result<Self, BackendError> {
        let io = FileIo::open(path, block_bytes, read_only, direct)?;
        let metadata = io.file().metadata();
        let metadata = metadata.map_err(|source| BackendError::Inspect {
            path: path.to_owned(),
            source,
        })?;
        if !metadata.is_file() {
            return Err(BackendError::Kind {
                path: path.to_owned(),
            });
        }
        let block_count = whole_blocks(path, metadata.len(), block_bytes)?;
        Ok(Self {
            io,
            path: path.to_owned(),
            block_bytes,
            block_count: block_count.into(),
            read_only,
        })
    }
}

/// Keeps `block_count` unless the size now is one that can be served; whether it changed.
pub(super) fn remeasure(io: &FileIo, path: &Path, block_bytes: u32, count: &AtomicU64) -> bool {
    let known = count.load(Ordering::Relaxed);
    let blocks = io
        .bytes()
        .map(|bytes| bytes / u64::from(block_bytes.max(1)));
    match blocks {
        Ok(0) => {
            tracing::debug!(path = %path.display(), "medium is empty");
            false
        }
        Ok(blocks) => {
            count.store(blocks, Ordering::Relaxed);
            blocks != known
        }
        Err(error) => {
            tracing::debug!(%error, path = %path.display(), "size is not known");
            false
        }
    }
}

impl Backend for RawFile {
    fn lock(&self) -> Result<(), BackendError> {
        lock_file(self.io.file(), &self.path, self.read_only)
    }

    fn unlock(&self) {
        unlock_file(self.io.file(), &self.path);
    }

    fn measure(&self) -> bool {
        remeasure(&self.io, &self.path, self.block_bytes, &self.block_count)
    }

    fn move_now(&self, transfer: Transfer, data: &dyn DataBuffers) -> bool {
        self.io.move_now(transfer, data)
    }
}

impl BlockDevice for RawFile {
    fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    fn block_count(&self) -> u64 {
        self.block_count.load(Ordering::Relaxed)
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn provisioning(&self) -> Provisioning {
        // A read-only one too: UNMAP is write protected then, and not unknown.
        Provisioning::Thin
    }

    fn read(&self, lba: u64, buffer: &mut [u8]) -> Result<(), MediumError> {
        self.io.read(lba, buffer)
    }

    fn write(&self, lba: u64, data: &[u8], fua: bool) -> Result<(), MediumError> {
        self.io.write(lba, data)?;
        if fua { self.io.sync() } else { Ok(()) }
    }

    fn flush(&self) -> Result<(), MediumError> {
        self.io.sync()
    }

    fn unmap(&self, lba: u64, blocks: u64) -> Result<(), MediumError> {
        let punched = self.io.punch(lba, blocks);
        punched.unwrap_or_else(|| self.write_zeroes(lba, blocks, false))
    }

    fn write_zeroes(&self, lba: u64, blocks: u64, fua: bool) -> Result<(), MediumError> {
        let zeroed = self.io.zero(lba, blocks);
        zeroed.unwrap_or_else(|| write_zeroes(&self.io, self.block_bytes, lba, blocks))?;
        if fua { self.io.sync() } else { Ok(()) }
    }

    fn extent(&self, lba: u64) -> Result<Extent, MediumError> {
        self.io.extent(lba)
    }
}

/// For media that have no call for it.
pub(super) fn write_zeroes(
    io: &FileIo,
    block_bytes: u32,
    lba: u64,
    blocks: u64,
) -> Result<(), MediumError> {
    static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];
    let mut left = blocks.saturating_mul(block_bytes.into());
    let mut lba = lba;
    while left > 0 {
        let now = left.min(64 * 1024);
        let zeroes = usize::try_from(now).ok().and_then(|now| ZEROES.get(..now));
        io.write(lba, zeroes.unwrap_or_default())?;
        lba += now / u64::from(block_bytes.max(1));
        left -= now;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use scsi_target::{Allocation, MediumErrorKind};

    use super::*;

    fn file(bytes: u64) -> tempfile::NamedTempFile {
        // Not in memory: O_DIRECT and holes are the file system's.
        let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        file.as_file().set_len(bytes).unwrap();
        file
    }

    fn open(file: &tempfile::NamedTempFile, block_bytes: u32) -> RawFile {
        RawFile::open(file.path(), block_bytes, false, false).unwrap()
    }

    #[test]
    fn blocks_are_read_as_they_were_written_and_the_rest_is_not_used() {
        let file = file(3 * 512 + 100);
        let lun = open(&file, 512);
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
    fn unmapped_blocks_read_as_zeroes_take_no_space_and_are_seen_in_the_map() {
        let file = file(1 << 20);
        let lun = open(&file, 4096);
        let extent = |lba| {
            let extent = lun.extent(lba).unwrap();
            (extent.blocks, extent.allocation)
        };
        assert_eq!(extent(3).1, Allocation::Deallocated);
        assert!(extent(3).0 >= 253);
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
        assert_eq!(extent(10), (6, Allocation::MappedOrUnknown));
        assert_eq!(extent(20), (124, Allocation::Deallocated));
        lun.write_zeroes(15, 2, true).unwrap();
        lun.read(15, &mut block).unwrap();
        assert_eq!(block, [0; 4096]);
        assert_eq!(extent(144), (112, Allocation::MappedOrUnknown));
    }

    #[test]
    fn a_file_past_the_page_cache_is_the_same_file() {
        let file = file(1 << 20);
        let direct = RawFile::open(file.path(), 4096, false, true).unwrap();
        // Longer than a bounce buffer, and at an odd address.
        let data: Vec<u8> = (0..=200 * 4096_u32)
            .map(|at| (at % 251).to_le_bytes()[0])
            .collect();
        direct.write(7, &data[1..], false).unwrap();
        let mut back = vec![0; data.len()];
        direct.read(7, &mut back[1..]).unwrap();
        assert!(back[1..] == data[1..]);
        file.as_file()
            .read_exact_at(&mut back[1..], 7 * 4096)
            .unwrap();
        assert!(back[1..] == data[1..]);
        let kind = direct.read(255, &mut [0; 8192]).unwrap_err().kind;
        assert_eq!(kind, MediumErrorKind::OutOfRange);
    }

    #[test]
    fn size_follows_the_file_but_not_to_nothing() {
        let file = file(1 << 20);
        let lun = open(&file, 512);
        assert!(!lun.measure());
        file.as_file().set_len(2 << 20).unwrap();
        assert_eq!((lun.measure(), lun.measure()), (true, false));
        assert_eq!(lun.block_count(), 4096);
        file.as_file().set_len(1024).unwrap();
        assert!(lun.measure());
        assert_eq!(lun.block_count(), 2);
        file.as_file().set_len(0).unwrap();
        assert!(!lun.measure());
        assert_eq!(lun.block_count(), 2);
    }

    #[test]
    fn unusable_files_are_named_with_the_next_step() {
        let open = |path: &Path, read_only| RawFile::open(path, 512, read_only, false).unwrap_err();
        let missing = open(Path::new("/nonexistent/lun.img"), false);
        assert_eq!(
            missing.to_string(),
            "cannot open /nonexistent/lun.img for reading and writing; \
             make it (truncate -s 1G FILE) or correct its path and permissions"
        );
        let small = file(511);
        assert!(matches!(
            open(small.path(), false),
            BackendError::TooSmall {
                bytes: 511,
                block_bytes: 512,
                ..
            }
        ));
        let kind = open(Path::new("/dev/null"), true);
        assert!(matches!(kind, BackendError::Kind { .. }));
    }
}

//! A block device of the director's host.
//!
//! A writable one is opened exclusively (`O_EXCL`) while it is locked: not while it is mounted or
//! part of something else, and by one director at a time. Zeroing and discarding go through
//! `fallocate`, which unlike `BLKDISCARD` promises zeroes and keeps the page cache right.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use fabric_bypass::DataBuffers;
use scsi_target::{BlockDevice, MediumError, Provisioning, Transfer};

use super::file_io::FileIo;
use super::raw_file::{remeasure, write_zeroes};
use super::{Backend, BackendError, whole_blocks};

/// See the module.
#[derive(Debug)]
pub(super) struct HostBlockDevice {
    io: FileIo,
    path: PathBuf,
    block_bytes: u32,
    block_count: AtomicU64,
    read_only: bool,
    thin: bool,
    /// Keeps others out.
    exclusive: Mutex<Option<File>>,
}

impl HostBlockDevice {
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
        let owned = || path.to_owned();
        let inspect = |source| BackendError::Inspect {
            path: path.to_owned(),
            source,
        };
        // Asked for before it is opened: opening some devices does something.
        let metadata = std::fs::metadata(path).map_err(|source| BackendError::Open {
            path: owned(),
            read_only,
            source,
        })?;
        if !metadata.file_type().is_block_device() {
            return Err(BackendError::NoBlockDevice { path: owned() });
        }
        let queue = Queue::of(metadata.rdev());
        // Opening it for writing may succeed all the same.
        if !read_only && queue.is_read_only {
            return Err(BackendError::ReadOnly { path: owned() });
        }
        let io = FileIo::open(path, block_bytes, read_only, direct)?;
        let device_bytes = rustix::fs::ioctl_blksszget(io.file());
        let device_bytes = device_bytes.map_err(|error| inspect(error.into()))?;
        // A smaller block would be written by reading a larger one, which tears.
        if device_bytes > block_bytes {
            return Err(BackendError::BlockBytes {
                path: owned(),
                device_bytes,
            });
        }
        let block_count = whole_blocks(path, io.bytes().map_err(inspect)?, block_bytes)?;
        Ok(Self {
            io,
            path: owned(),
            block_bytes,
            block_count: block_count.into(),
            read_only,
            thin: queue.discards,
            exclusive: Mutex::default(),
        })
    }
}

/// What the kernel says about a device (Documentation/ABI/stable/sysfs-block).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Queue {
    is_read_only: bool,
    /// It can take the store of blocks, and zero them without a transfer.
    discards: bool,
}

impl Queue {
    fn of(device: u64) -> Self {
        let (major, minor) = (libc::major(device), libc::minor(device));
        let folder = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        let number = |name: &str| {
            let text = std::fs::read_to_string(folder.join(name)).ok()?;
            text.trim().parse::<u64>().ok()
        };
        // A partition has the queue of its disk.
        let queue = |name: &str| {
            let own = number(&format!("queue/{name}"));
            own.or_else(|| number(&format!("../queue/{name}")))
                .unwrap_or(0)
        };
        Self {
            is_read_only: number("ro") == Some(1),
            discards: queue("discard_max_bytes") > 0 && queue("write_zeroes_max_bytes") > 0,
        }
    }
}

impl Backend for HostBlockDevice {
    fn lock(&self) -> Result<(), BackendError> {
        if self.read_only {
            return Ok(());
        }
        let mut options = OpenOptions::new();
        let options = options.read(true).custom_flags(libc::O_EXCL);
        let opened = options.open(&self.path).map_err(|source| {
            let path = self.path.clone();
            if source.kind() == io::ErrorKind::ResourceBusy {
                BackendError::Locked { path }
            } else {
                BackendError::Inspect { path, source }
            }
        })?;
        *self
            .exclusive
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(opened);
        Ok(())
    }

    fn unlock(&self) {
        let mut exclusive = self
            .exclusive
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *exclusive = None;
    }

    fn measure(&self) -> bool {
        remeasure(&self.io, &self.path, self.block_bytes, &self.block_count)
    }

    fn move_now(&self, transfer: Transfer, data: &dyn DataBuffers) -> bool {
        self.io.move_now(transfer, data)
    }
}

impl BlockDevice for HostBlockDevice {
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
        if self.thin {
            Provisioning::Thin
        } else {
            Provisioning::Full
        }
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
        punched.unwrap_or_else(|| write_zeroes(&self.io, self.block_bytes, lba, blocks))
    }

    fn write_zeroes(&self, lba: u64, blocks: u64, fua: bool) -> Result<(), MediumError> {
        let zeroed = self.io.zero(lba, blocks);
        zeroed.unwrap_or_else(|| write_zeroes(&self.io, self.block_bytes, lba, blocks))?;
        if fua { self.io.sync() } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// A loop device; `None` where there are none.
    struct Loop {
        path: PathBuf,
        file: tempfile::NamedTempFile,
    }

    impl Loop {
        fn new(arguments: &[&str]) -> Option<Self> {
            let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
            file.as_file().set_len(8 << 20).unwrap();
            let losetup = Command::new("losetup")
                .args(["--find", "--show"])
                .args(arguments)
                .arg(file.path())
                .output();
            let output = losetup.ok().filter(|output| output.status.success())?;
            let path = String::from_utf8(output.stdout).unwrap();
            let path = PathBuf::from(path.trim());
            Some(Self { path, file })
        }

        fn open(&self, block_bytes: u32) -> Result<HostBlockDevice, BackendError> {
            HostBlockDevice::open(&self.path, block_bytes, false, false)
        }
    }

    impl Drop for Loop {
        fn drop(&mut self) {
            drop(Command::new("losetup").arg("-d").arg(&self.path).status());
        }
    }

    macro_rules! loop_device {
        ($arguments:expr) => {
            match Loop::new($arguments) {
                Some(device) => device,
                None => {
                    tracing::warn!("skipped: no loop device (losetup, as root)");
                    return;
                }
            }
        };
    }

    #[test]
    fn a_device_is_read_written_discarded_and_measured() {
        let device = loop_device!(&[]);
        let lun = device.open(512).unwrap();
        assert_eq!(lun.block_count(), (8 << 20) / 512);
        assert_eq!(lun.provisioning(), Provisioning::Thin);
        lun.write(8, &[7; 8192], true).unwrap();
        lun.unmap(8, 8).unwrap();
        lun.write_zeroes(17, 1, true).unwrap();
        let mut blocks = [1; 8192];
        lun.read(8, &mut blocks).unwrap();
        assert_eq!(blocks[..4096], [0; 4096]);
        assert_eq!(blocks[4096..4608], [7; 512]);
        assert_eq!(blocks[4608..5120], [0; 512]);
        assert!(!lun.measure());
        device.file.as_file().set_len(16 << 20).unwrap();
        let grown = Command::new("losetup").arg("-c").arg(&device.path).status();
        assert!(grown.unwrap().success());
        assert!(lun.measure());
        assert_eq!(lun.block_count(), (16 << 20) / 512);
    }

    #[test]
    fn a_device_has_one_user() {
        let device = loop_device!(&[]);
        let (first, second) = (device.open(512).unwrap(), device.open(512).unwrap());
        first.lock().unwrap();
        assert!(matches!(second.lock(), Err(BackendError::Locked { .. })));
        first.unlock();
        second.lock().unwrap();
    }

    #[test]
    fn what_the_device_cannot_is_said_with_the_next_step() {
        let device = loop_device!(&["--read-only"]);
        let path = device.path.display();
        assert_eq!(
            device.open(512).unwrap_err().to_string(),
            format!("{path} is read-only; write read-only = true, or blockdev --setrw")
        );
        HostBlockDevice::open(&device.path, 512, true, false).unwrap();
        drop(device);
        let device = loop_device!(&["--sector-size", "4096"]);
        let path = device.path.display();
        assert_eq!(
            device.open(512).unwrap_err().to_string(),
            format!("{path} has blocks of 4096 bytes; write block-bytes = 4096")
        );
        device.open(4096).unwrap();
        let direct = HostBlockDevice::open(&device.path, 4096, false, true).unwrap();
        direct.write(3, &[7; 4096], true).unwrap();
    }

    #[test]
    fn blocks_that_the_device_cannot_do_directly_go_through_the_page_cache() {
        let device = loop_device!(&["--sector-size", "4096"]);
        let open = |block_bytes| FileIo::open(&device.path, block_bytes, false, true).unwrap();
        assert!(open(4096).is_direct());
        let cached = open(512);
        assert!(!cached.is_direct());
        cached.write(1, &[7; 512]).unwrap();
    }

    #[test]
    fn a_file_is_no_device() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let opened = HostBlockDevice::open(file.path(), 512, false, false);
        assert!(matches!(opened, Err(BackendError::NoBlockDevice { .. })));
        let opened = HostBlockDevice::open(Path::new("/nonexistent"), 512, false, false);
        assert!(matches!(opened, Err(BackendError::Open { .. })));
    }
}

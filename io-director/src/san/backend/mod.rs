//! What logical units keep their blocks on, one module for each kind.
//!
//! | module | medium | size |
//! | --- | --- | --- |
//! | `raw_file` | a file, block n at n times its size | may change at any time |
//! | `block_device` | a device of the host | may change at any time |
//! | `qcow2` | an image, through imago | read at the start |
//! | `ram` | memory, taken as it is written | fixed |
//! | `null` | nothing | fixed |
//!
//! The operator names the kind; a file is never looked into to find out. Each is a
//! [`BlockDevice`] that may block: [`medium::Medium`] stands in front of it and knows what all
//! have in common, locks, lost writes and calls that do not come back.

mod block_device;
#[cfg(test)]
pub(super) mod faulty;
mod file_io;
pub(super) mod medium;
mod null;
mod qcow2;
mod ram;
mod raw_file;

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use fabric_bypass::DataBuffers;
use fabric_config::{LunConfig, MediumConfig};
use scsi_target::{BlockDevice, MediumError, MediumErrorKind, Transfer};

use block_device::HostBlockDevice;
use null::NullDevice;
use qcow2::Qcow2Image;
use ram::RamDisk;
use raw_file::RawFile;

/// Why a medium cannot be a logical unit; ends with the next step.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
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
    /// Named as a block device, and none.
    #[error("{} is no block device; write file = or qcow2 = for a file", path.display())]
    NoBlockDevice {
        /// The path.
        path: PathBuf,
    },
    /// The device has larger blocks.
    #[error(
        "{} has blocks of {device_bytes} bytes; write block-bytes = {device_bytes}",
        path.display()
    )]
    BlockBytes {
        /// The device.
        path: PathBuf,
        /// What a block of it takes.
        device_bytes: u32,
    },
    /// The device takes no writes.
    #[error("{} is read-only; write read-only = true, or blockdev --setrw", path.display())]
    ReadOnly {
        /// The device.
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
    /// No image of this format, or a damaged one.
    #[error("{} cannot be read as qcow2; see qemu-img check", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The image keeps its data elsewhere.
    #[error(
        "{} has an external data file; copy it into one file (qemu-img convert -O qcow2)",
        path.display()
    )]
    DataFile {
        /// The image.
        path: PathBuf,
    },
    /// The image stands on a file that it may not.
    #[error(
        "{} has the backing file {backing:?}, which is not allowed; add it to backing-files of \
        [director], or qemu-img rebase",
        path.display()
    )]
    BackingFile {
        /// The image.
        path: PathBuf,
        /// What its header says.
        backing: String,
    },
    /// The image does not say what its backing file is.
    #[error(
        "{} does not say whether its backing file is raw or qcow2; write it there \
        (qemu-img rebase -u -F FORMAT -b BACKING)",
        path.display()
    )]
    BackingFormat {
        /// The image.
        path: PathBuf,
    },
    /// Images that stand on each other, or too many.
    #[error(
        "{} stands on more than {} backing files; copy it into one file (qemu-img convert)",
        path.display(),
        qcow2::LAYERS_MAX
    )]
    Layers {
        /// The image where it was given up.
        path: PathBuf,
    },
    /// It does not answer.
    #[error("lun {lun} is unreachable; see dmesg for its medium")]
    Unreachable {
        /// The logical unit.
        lun: String,
    },
}

/// A medium, and what the director needs of it beside its blocks.
pub(super) trait Backend: BlockDevice + std::fmt::Debug {
    /// Keeps other processes from it. Called once before [`Self::unlock`].
    ///
    /// # Errors
    /// Another process has it.
    fn lock(&self) -> Result<(), BackendError> {
        Ok(())
    }

    /// Lets other processes have it.
    fn unlock(&self) {}

    /// Asks for the size, which is what [`BlockDevice::block_count`] says from then on; whether it
    /// changed. May block.
    fn measure(&self) -> bool {
        false
    }

    /// Moves blocks between the medium and the memory of a command, if that needs no waiting: the
    /// caller has a ring to look after. False: it is to be done by [`BlockDevice::read`] or
    /// [`BlockDevice::write`]; a part may have moved.
    fn move_now(&self, _transfer: Transfer, _data: &dyn DataBuffers) -> bool {
        false
    }
}

/// Zeroes for a command to read, from `offset` of its data on; false if they have no room.
fn read_zeroes(data: &dyn DataBuffers, offset: usize, bytes: usize) -> bool {
    static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];
    (0..bytes).step_by(ZEROES.len()).all(|done| {
        let zeroes = ZEROES.get(..bytes - done).unwrap_or(&ZEROES);
        data.write_at(offset + done, zeroes).is_ok()
    })
}

/// Opens the medium of `config`, without locking it; `None` if it is a unit of others.
///
/// # Errors
/// [`BackendError`].
pub(super) fn open(
    config: &LunConfig,
    backing_files: &[PathBuf],
) -> Result<Option<Box<dyn Backend>>, BackendError> {
    let (block_bytes, read_only) = (config.block_bytes, config.read_only);
    let backend: Box<dyn Backend> = match &config.medium {
        MediumConfig::File { path, direct } if !is_block_device(path) => {
            Box::new(RawFile::open(path, block_bytes, read_only, *direct)?)
        }
        MediumConfig::File { path, direct } | MediumConfig::BlockDevice { path, direct } => {
            let device = HostBlockDevice::open(path, block_bytes, read_only, *direct)?;
            Box::new(device)
        }
        MediumConfig::Qcow2 { path } => {
            let image = Qcow2Image::open(path, block_bytes, read_only, backing_files)?;
            Box::new(image)
        }
        MediumConfig::Ram { bytes } => Box::new(RamDisk::new(*bytes, block_bytes, read_only)),
        MediumConfig::Null { bytes } => Box::new(NullDevice::new(*bytes, block_bytes, read_only)),
        MediumConfig::Iscsi(_) | MediumConfig::Sg { .. } => return Ok(None),
    };
    #[cfg(test)]
    let backend = faulty::wrap(&config.medium, backend);
    Ok(Some(backend))
}

fn is_block_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device())
}

/// The advisory lock (flock) that keeps two directors from writing one file: exclusive for a
/// writable unit, shared for a read-only one.
fn lock_file(file: &File, path: &Path, read_only: bool) -> Result<(), BackendError> {
    let locked = if read_only {
        file.try_lock_shared()
    } else {
        file.try_lock()
    };
    let path = || path.to_owned();
    locked.map_err(|error| match error {
        TryLockError::WouldBlock => BackendError::Locked { path: path() },
        TryLockError::Error(source) => BackendError::Inspect {
            path: path(),
            source,
        },
    })
}

fn unlock_file(file: &File, path: &Path) {
    if let Err(error) = file.unlock() {
        tracing::error!(%error, path = %path.display(), "not unlocked");
    }
}

/// Whole blocks of `bytes`.
fn whole_blocks(path: &Path, bytes: u64, block_bytes: u32) -> Result<u64, BackendError> {
    match bytes.checked_div(block_bytes.into()) {
        Some(0) | None => Err(BackendError::TooSmall {
            path: path.to_owned(),
            bytes,
            block_bytes,
        }),
        Some(blocks) => Ok(blocks),
    }
}

/// Where a block begins.
fn offset(lba: u64, block_bytes: u32) -> Result<u64, MediumError> {
    let out_of_range = MediumError {
        kind: MediumErrorKind::OutOfRange,
        lba: Some(lba),
    };
    lba.checked_mul(block_bytes.into()).ok_or(out_of_range)
}

/// What an error of the system means to the initiator; `medium` is what a failure of the medium
/// itself does.
fn failed(error: &io::Error, medium: MediumErrorKind, lba: u64) -> MediumError {
    use io::ErrorKind as K;
    let kind = match (error.raw_os_error(), error.kind()) {
        (Some(libc::EIO | libc::EBADMSG), _) | (_, K::InvalidData) => medium,
        (Some(libc::ENODEV | libc::ENXIO), _) | (_, K::StaleNetworkFileHandle | K::TimedOut) => {
            MediumErrorKind::Unavailable
        }
        (_, K::StorageFull | K::QuotaExceeded) => MediumErrorKind::NoSpace,
        (_, K::ReadOnlyFilesystem | K::PermissionDenied) => MediumErrorKind::WriteProtected,
        // The file shrank under us.
        (_, K::UnexpectedEof) => MediumErrorKind::OutOfRange,
        _ => MediumErrorKind::Internal,
    };
    MediumError {
        kind,
        lba: Some(lba),
    }
}

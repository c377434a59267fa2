//! A qcow2 image, through imago.
//!
//! An image names files in its header that a guest may have written: a backing file is opened only
//! if the operator allows it by name, for reading, and only in the format that the header says;
//! an external data file never is. Writes and discards of one image exclude each other, as imago
//! demands. Its size is read once: `qemu-img resize` may not touch an image that is in use.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, Mapping, StorageOpenOptions};
use scsi_target::{Allocation, BlockDevice, Extent, MediumError, MediumErrorKind, Provisioning};

use super::{Backend, BackendError, failed, lock_file, offset, unlock_file, whole_blocks};

type Storage = imago::file::File;

/// An image and its backing files at most.
pub(super) const LAYERS_MAX: usize = 16;

/// See the module.
#[derive(Debug)]
pub(super) struct Qcow2Image {
    /// Only while it is locked: the tables that imago keeps of it are wrong once another writes.
    layers: RwLock<Option<Layers>>,
    file: File,
    path: PathBuf,
    block_bytes: u32,
    block_count: AtomicU64,
    read_only: bool,
    backing_files: Vec<PathBuf>,
}

/// An open image.
#[derive(Debug)]
struct Layers {
    image: FormatAccess<Storage>,
    /// Its backing files, for their locks.
    _backing: Vec<File>,
}

impl Qcow2Image {
    /// Checks `path` and its backing files, without locking it.
    ///
    /// # Errors
    /// [`BackendError`].
    pub(super) fn open(
        path: &Path,
        block_bytes: u32,
        read_only: bool,
        backing_files: &[PathBuf],
    ) -> Result<Self, BackendError> {
        let file = open_file(path, read_only)?;
        let this = Self {
            layers: RwLock::default(),
            file,
            path: path.to_owned(),
            block_bytes,
            block_count: AtomicU64::new(0),
            read_only,
            backing_files: backing_files.to_vec(),
        };
        // Not for writing, which another process may be at.
        drop(this.open_layers(false)?);
        Ok(this)
    }

    fn open_layers(&self, writable: bool) -> Result<Layers, BackendError> {
        // A file of the list that is not there is no image's backing file either.
        let allowed = self.backing_files.iter();
        let allowed = allowed.filter_map(|file| file.canonicalize().ok());
        let mut opener = Opener {
            allowed: allowed.collect(),
            locked: Vec::new(),
        };
        let image = opener.open(&self.file, &self.path, writable)?;
        let image = FormatAccess::new(image);
        let block_count = whole_blocks(&self.path, image.size(), self.block_bytes)?;
        self.block_count.store(block_count, Ordering::Relaxed);
        Ok(Layers {
            image,
            _backing: opener.locked,
        })
    }

    /// Calls `work` with the image, which others may use too.
    fn with<T>(
        &self,
        lba: u64,
        work: impl FnOnce(&FormatAccess<Storage>) -> Result<T, MediumError>,
    ) -> Result<T, MediumError> {
        let layers = self.layers.read().unwrap_or_else(PoisonError::into_inner);
        let layers = layers.as_ref().ok_or_else(|| unavailable(lba))?;
        work(&layers.image)
    }

    fn blocks_bytes(&self, blocks: u64) -> u64 {
        blocks.saturating_mul(self.block_bytes.into())
    }

    fn sync(image: &FormatAccess<Storage>) -> Result<(), MediumError> {
        // First the tables that imago keeps, then what the kernel does.
        let flushed = image.flush().and_then(|()| image.sync());
        flushed.map_err(|error| MediumError {
            lba: None,
            ..failed(&error, MediumErrorKind::Write, 0)
        })
    }
}

fn unavailable(lba: u64) -> MediumError {
    MediumError {
        kind: MediumErrorKind::Unavailable,
        lba: Some(lba),
    }
}

fn open_file(path: &Path, read_only: bool) -> Result<File, BackendError> {
    let opened = OpenOptions::new().read(true).write(!read_only).open(path);
    opened.map_err(|source| BackendError::Open {
        path: path.to_owned(),
        read_only,
        source,
    })
}

/// Opens an image and what it stands on.
struct Opener {
    allowed: Vec<PathBuf>,
    locked: Vec<File>,
}

impl Opener {
    fn open(
        &mut self,
        file: &File,
        path: &Path,
        writable: bool,
    ) -> Result<Qcow2<Storage>, BackendError> {
        let owned = || path.to_owned();
        let failed = |source| BackendError::Image {
            path: path.to_owned(),
            source,
        };
        let storage = storage(file, path, writable).map_err(failed)?;
        let mut image: Qcow2<Storage> = Qcow2::open_image(storage, writable).map_err(failed)?;
        if image.requires_external_data_file() {
            return Err(BackendError::DataFile { path: owned() });
        }
        image.set_data_file(None);
        let backing = match image.implicit_backing_file() {
            Some(backing) => {
                let format = image.implicit_backing_format().map(String::as_str);
                Some(self.backing(path, backing, format)?)
            }
            None => None,
        };
        image.set_backing(backing);
        // Both are set: nothing is left for a gate to deny.
        let dependencies = image.open_implicit_dependencies_gated(DenyImplicitOpenGate::default());
        dependencies.map_err(failed)?;
        Ok(image)
    }

    fn backing(
        &mut self,
        path: &Path,
        backing: &str,
        format: Option<&str>,
    ) -> Result<FormatAccess<Storage>, BackendError> {
        let owned = || path.to_owned();
        let refused = || BackendError::BackingFile {
            path: owned(),
            backing: backing.to_owned(),
        };
        let folder = path.parent().unwrap_or(Path::new("/"));
        let file = fs::canonicalize(folder.join(backing)).map_err(|_absent| refused())?;
        if !self.allowed.contains(&file) {
            return Err(refused());
        }
        if self.locked.len() + 1 >= LAYERS_MAX {
            return Err(BackendError::Layers { path: owned() });
        }
        let opened = open_file(&file, true)?;
        lock_file(&opened, &file, true)?;
        let layer = match format {
            Some("qcow2") => {
                self.locked
                    .push(opened.try_clone().map_err(|source| BackendError::Inspect {
                        path: file.clone(),
                        source,
                    })?);
                FormatAccess::new(self.open(&opened, &file, false)?)
            }
            Some("raw") => {
                let raw = storage(&opened, &file, false);
                let raw = raw.and_then(|storage| Raw::open_image(storage, false));
                let raw = raw.map_err(|source| BackendError::Inspect { path: file, source })?;
                self.locked.push(opened);
                FormatAccess::new(raw)
            }
            _ => return Err(BackendError::BackingFormat { path: owned() }),
        };
        Ok(layer)
    }
}

fn storage(file: &File, path: &Path, writable: bool) -> std::io::Result<Storage> {
    let options = StorageOpenOptions::new().filename(path).write(writable);
    Storage::from_open_file(file.try_clone()?, options)
}

impl Backend for Qcow2Image {
    fn lock(&self) -> Result<(), BackendError> {
        lock_file(&self.file, &self.path, self.read_only)?;
        let opened = self.open_layers(!self.read_only);
        let opened = opened.inspect_err(|_| unlock_file(&self.file, &self.path))?;
        *self.layers.write().unwrap_or_else(PoisonError::into_inner) = Some(opened);
        Ok(())
    }

    fn unlock(&self) {
        // Writes what imago keeps: before another has the file.
        *self.layers.write().unwrap_or_else(PoisonError::into_inner) = None;
        unlock_file(&self.file, &self.path);
    }
}

impl BlockDevice for Qcow2Image {
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
        // A read-only one too, as in `raw_file`.
        Provisioning::Thin
    }

    fn read(&self, lba: u64, buffer: &mut [u8]) -> Result<(), MediumError> {
        let at = offset(lba, self.block_bytes)?;
        self.with(lba, |image| {
            let read = image.read(buffer, at);
            read.map_err(|error| failed(&error, MediumErrorKind::Read, lba))
        })
    }

    fn write(&self, lba: u64, data: &[u8], fua: bool) -> Result<(), MediumError> {
        let at = offset(lba, self.block_bytes)?;
        self.with(lba, |image| {
            let written = image.write(data, at);
            written.map_err(|error| failed(&error, MediumErrorKind::Write, lba))?;
            if fua { Self::sync(image) } else { Ok(()) }
        })
    }

    fn flush(&self) -> Result<(), MediumError> {
        self.with(0, Self::sync)
    }

    fn unmap(&self, lba: u64, blocks: u64) -> Result<(), MediumError> {
        let at = offset(lba, self.block_bytes)?;
        let bytes = self.blocks_bytes(blocks);
        let mut layers = self.layers.write().unwrap_or_else(PoisonError::into_inner);
        let layers = layers.as_mut().ok_or_else(|| unavailable(lba))?;
        let discarded = layers.image.discard_to_zero(at, bytes);
        discarded.map_err(|error| failed(&error, MediumErrorKind::Write, lba))
    }

    fn write_zeroes(&self, lba: u64, blocks: u64, fua: bool) -> Result<(), MediumError> {
        let at = offset(lba, self.block_bytes)?;
        let bytes = self.blocks_bytes(blocks);
        self.with(lba, |image| {
            let zeroed = image.write_zeroes(at, bytes);
            zeroed.map_err(|error| failed(&error, MediumErrorKind::Write, lba))?;
            if fua { Self::sync(image) } else { Ok(()) }
        })
    }

    fn extent(&self, lba: u64) -> Result<Extent, MediumError> {
        let block_bytes = u64::from(self.block_bytes.max(1));
        let at = offset(lba, self.block_bytes)?;
        let rest = self.blocks_bytes(self.block_count().saturating_sub(lba));
        self.with(lba, |image| {
            let mapping = image.get_mapping(at, rest);
            let (mapping, bytes) =
                mapping.map_err(|error| failed(&error, MediumErrorKind::Read, lba))?;
            Ok(match mapping {
                // A part of a block that is zero makes no block.
                Mapping::Zero { .. } if bytes >= block_bytes => Extent {
                    blocks: bytes / block_bytes,
                    allocation: Allocation::Deallocated,
                },
                _ => Extent {
                    blocks: bytes.div_ceil(block_bytes),
                    allocation: Allocation::MappedOrUnknown,
                },
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const MIB: usize = 1 << 20;

    /// `qemu-img` in `folder`, the other author's tool; `None` where there is none.
    fn qemu_img(folder: &Path, arguments: &[&str]) -> Option<bool> {
        let output = Command::new("qemu-img")
            .args(arguments)
            .current_dir(folder)
            .output();
        let output = output.ok()?;
        tracing::info!(?arguments, ?output);
        Some(output.status.success())
    }

    /// A folder with `image.qcow2`, 64 MiB; `None` without qemu-img.
    fn folder(arguments: &[&str]) -> Option<tempfile::TempDir> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("base.raw"), vec![0x11; 64 * MIB]).unwrap();
        let create = ["create", "-q", "-f", "qcow2"].iter().chain(arguments);
        let create: Vec<_> = create.chain(&["image.qcow2", "64M"]).copied().collect();
        let created = qemu_img(folder.path(), &create);
        if created.is_none() {
            tracing::warn!("skipped: no qemu-img (apt-get install qemu-utils)");
        }
        created.map(|success| {
            assert!(success);
            folder
        })
    }

    fn open(folder: &Path, allowed: &[&str]) -> Result<Qcow2Image, BackendError> {
        let allowed: Vec<_> = allowed.iter().map(|name| folder.join(name)).collect();
        Qcow2Image::open(&folder.join("image.qcow2"), 512, false, &allowed)
    }

    fn fill(image: &Qcow2Image, model: &mut [u8]) {
        let mut random = 11_u64;
        for _ in 0..400 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let blocks = (random >> 50) % 500 + 1;
            let lba = (random >> 20) % (131_072 - blocks);
            let at = usize::try_from(lba * 512).unwrap();
            let range = at..at + usize::try_from(blocks * 512).unwrap();
            let [value, kind, ..] = random.to_be_bytes();
            match kind % 5 {
                0 => image.unmap(lba, blocks).unwrap(),
                1 => image.write_zeroes(lba, blocks, false).unwrap(),
                _ => image
                    .write(lba, &vec![value; range.len()], kind % 17 == 3)
                    .unwrap(),
            }
            model[range].fill(if kind % 5 < 2 { 0 } else { value });
        }
        let mut back = vec![0; model.len()];
        for (piece, lba) in back.chunks_mut(MIB).zip((0..).step_by(MIB / 512)) {
            image.read(lba, piece).unwrap();
        }
        assert!(back == model);
    }

    #[test]
    fn what_was_written_is_what_qemu_reads() {
        let Some(folder) = folder(&[]) else { return };
        let folder = folder.path();
        let image = open(folder, &[]).unwrap();
        assert_eq!(image.block_count(), 131_072);
        image.lock().unwrap();
        let extent = image.extent(7).unwrap();
        assert_eq!(extent.allocation, Allocation::Deallocated);
        let mut model = vec![0; 64 * MIB];
        fill(&image, &mut model);
        image.write(7, &[9; 512], true).unwrap();
        model[7 * 512..8 * 512].fill(9);
        assert_eq!(
            image.extent(7).unwrap().allocation,
            Allocation::MappedOrUnknown
        );
        // As after a kill: what was flushed is there.
        fs::copy(folder.join("image.qcow2"), folder.join("killed.qcow2")).unwrap();
        image.unlock();
        assert_eq!(
            image.read(0, &mut [0; 512]).unwrap_err().kind,
            MediumErrorKind::Unavailable
        );
        fs::write(folder.join("model.raw"), &model).unwrap();
        for name in ["image.qcow2", "killed.qcow2"] {
            assert_eq!(
                qemu_img(folder, &["check", "-q", name]),
                Some(true),
                "{name}"
            );
            let compare = [
                "compare",
                "-q",
                "-f",
                "qcow2",
                "-F",
                "raw",
                name,
                "model.raw",
            ];
            assert_eq!(qemu_img(folder, &compare), Some(true), "{name}");
        }
    }

    #[test]
    fn a_backing_file_is_read_if_the_operator_allows_it_and_never_written() {
        let Some(folder) = folder(&["-b", "base.raw", "-F", "raw"]) else {
            return;
        };
        let folder = folder.path();
        let refused = open(folder, &["other.raw"]).unwrap_err();
        assert_eq!(
            refused.to_string(),
            format!(
                "{} has the backing file \"base.raw\", which is not allowed; add it to \
                 backing-files of [director], or qemu-img rebase",
                folder.join("image.qcow2").display()
            )
        );
        let image = open(folder, &["base.raw"]).unwrap();
        image.lock().unwrap();
        let mut model = vec![0x11; 64 * MIB];
        fill(&image, &mut model);
        image.unlock();
        fs::write(folder.join("model.raw"), &model).unwrap();
        assert_eq!(
            qemu_img(folder, &["check", "-q", "image.qcow2"]),
            Some(true)
        );
        let compare = ["compare", "-q", "-F", "raw", "image.qcow2", "model.raw"];
        assert_eq!(qemu_img(folder, &compare), Some(true));
        assert!(fs::read(folder.join("base.raw")).unwrap() == vec![0x11; 64 * MIB]);
    }

    #[test]
    fn every_image_of_a_chain_has_to_be_allowed_and_keeps_writers_away() {
        let Some(folder) = folder(&["-b", "base.raw", "-F", "raw"]) else {
            return;
        };
        let folder = folder.path();
        fs::rename(folder.join("image.qcow2"), folder.join("middle.qcow2")).unwrap();
        let create = "create -q -f qcow2 -b middle.qcow2 -F qcow2 image.qcow2";
        let create: Vec<_> = create.split(' ').collect();
        assert_eq!(qemu_img(folder, &create), Some(true));
        for allowed in [&["base.raw"], &["middle.qcow2"]] {
            let opened = open(folder, allowed);
            assert!(matches!(opened, Err(BackendError::BackingFile { .. })));
        }
        let image = open(folder, &["base.raw", "middle.qcow2"]).unwrap();
        image.lock().unwrap();
        let mut block = [0; 512];
        image.read(131_071, &mut block).unwrap();
        assert_eq!(block, [0x11; 512]);
        for name in ["base.raw", "middle.qcow2"] {
            let path = folder.join(name);
            let writer = open_file(&path, false).unwrap();
            let locked = lock_file(&writer, &path, false);
            assert!(matches!(locked, Err(BackendError::Locked { .. })), "{name}");
        }
    }

    #[test]
    fn no_format_is_guessed_and_no_other_file_is_opened() {
        let Some(folder) = folder(&["-b", "base.raw", "-F", "raw"]) else {
            return;
        };
        let folder = folder.path();
        // A backing file without a format is one that would have to be looked into.
        let bytes = fs::read(folder.join("image.qcow2")).unwrap();
        let format = 0xe279_2aca_u32.to_be_bytes();
        let at = bytes
            .windows(4)
            .position(|window| window == format)
            .unwrap();
        let mut damaged = bytes.clone();
        damaged[at..at + 4].copy_from_slice(&0x1234_5678_u32.to_be_bytes());
        fs::write(folder.join("image.qcow2"), &damaged).unwrap();
        let opened = open(folder, &["base.raw"]);
        assert!(matches!(opened, Err(BackendError::BackingFormat { .. })));
        let create = "create -q -f qcow2 -o data_file=data.raw image.qcow2 1M";
        let create: Vec<_> = create.split(' ').collect();
        assert_eq!(qemu_img(folder, &create), Some(true));
        let opened = open(folder, &["data.raw"]);
        assert!(matches!(opened, Err(BackendError::DataFile { .. })));
        fs::write(folder.join("image.qcow2"), [0; 65536]).unwrap();
        assert!(matches!(open(folder, &[]), Err(BackendError::Image { .. })));
    }

    #[test]
    fn an_image_that_stands_on_itself_is_refused() {
        let Some(folder) = folder(&["-b", "base.raw", "-F", "raw"]) else {
            return;
        };
        let folder = folder.path();
        let rebase = "rebase -u -b image.qcow2 -F qcow2 image.qcow2";
        let rebase: Vec<_> = rebase.split(' ').collect();
        assert_eq!(qemu_img(folder, &rebase), Some(true));
        let opened = open(folder, &["image.qcow2"]);
        assert!(matches!(opened, Err(BackendError::Layers { .. })));
    }

    #[test]
    fn a_raw_file_that_looks_like_an_image_stays_raw() {
        use super::super::raw_file::RawFile;
        let Some(folder) = folder(&["-b", "/etc/passwd", "-F", "raw"]) else {
            return;
        };
        let path = folder.path().join("image.qcow2");
        let bytes = fs::read(&path).unwrap();
        let raw = RawFile::open(&path, 512, false, false).unwrap();
        assert_eq!(raw.block_count(), u64::try_from(bytes.len() / 512).unwrap());
        let mut block = [0; 512];
        raw.read(0, &mut block).unwrap();
        assert_eq!(block[..], bytes[..512]);
    }
}

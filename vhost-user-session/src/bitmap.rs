//! The dirty log of live migration, at one relaxed load per write when none is running.
//!
//! The front-end hands over one shared bitmap for all guest memory: bit `n` is the 4 KiB page at
//! guest physical address `n * 4096` (vhost-user protocol, "Migration"). Every write through
//! `vm-memory` marks its region's [`DirtyBitmap`], which passes it on while a log is set.
//!
//! The stock `BitmapMmapRegion` takes a lock and clones an `Arc` on every access even while no
//! migration runs, which makes ring processing about three times slower.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use vhost_user_backend::bitmap::{BitmapReplace, MemRegionBitmap, MmapLogReg};
use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};
use vm_memory::mmap::MmapRegionError;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion, MmapRegion,
    VolatileMemory,
};

use crate::GuestMemory;

/// Size of the pages that the log counts (VHOST_LOG_PAGE).
const PAGE_BYTES: u64 = 4096;

/// The front-end's log, mapped.
pub(crate) struct DirtyLog {
    mapping: MmapRegion<()>,
}

impl fmt::Debug for DirtyLog {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("DirtyLog")
            .field("bytes", &self.mapping.size())
            .finish()
    }
}

impl DirtyLog {
    /// Maps `bytes` of the log file from `offset`, which must be a multiple of the page size.
    pub(crate) fn map(file: OwnedFd, offset: u64, bytes: usize) -> Result<Self, MmapRegionError> {
        let mapping = MmapRegion::from_file(FileOffset::new(file.into(), offset), bytes)?;
        Ok(Self { mapping })
    }

    /// Bytes the log needs so that `end`, exclusive, is its last guest physical address.
    pub(crate) const fn bytes_needed(end: u64) -> u64 {
        end.div_ceil(PAGE_BYTES).div_ceil(8)
    }

    /// Marks the pages of `bytes` bytes at guest physical address `start`; beyond the log nothing.
    fn mark(&self, start: u64, bytes: u64) {
        let Some(last) = bytes.checked_sub(1).map(|more| start.saturating_add(more)) else {
            return;
        };
        for page in start / PAGE_BYTES..=last / PAGE_BYTES {
            let Ok(byte) = usize::try_from(page / 8) else {
                return;
            };
            let Ok(cell) = self.mapping.get_atomic_ref::<AtomicU8>(byte) else {
                return;
            };
            cell.fetch_or(1 << (page % 8), Ordering::Relaxed);
        }
    }

    fn is_marked(&self, address: u64) -> bool {
        let page = address / PAGE_BYTES;
        usize::try_from(page / 8)
            .ok()
            .and_then(|byte| self.mapping.get_atomic_ref::<AtomicU8>(byte).ok())
            .is_some_and(|cell| cell.load(Ordering::Relaxed) & (1 << (page % 8)) != 0)
    }
}

/// Where a region's writes are logged.
#[derive(Debug, Clone)]
struct Target {
    log: Arc<DirtyLog>,
    region_start: GuestAddress,
}

/// The dirty bitmap of one memory region; forwards to the front-end's log while one is set.
#[derive(Debug, Default)]
pub struct DirtyBitmap {
    logging: AtomicBool,
    target: RwLock<Option<Target>>,
}

impl Clone for DirtyBitmap {
    /// A bitmap with the same log, which is set and unset separately from now on.
    fn clone(&self) -> Self {
        let copy = Self::default();
        copy.set_target(self.with_target(Target::clone));
        copy
    }
}

impl DirtyBitmap {
    fn set_target(&self, target: Option<Target>) {
        let mut slot = self.target.write().unwrap_or_else(PoisonError::into_inner);
        // Ordered by the control path: the front-end counts on the log only after the reply.
        self.logging.store(target.is_some(), Ordering::Release);
        *slot = target;
    }

    fn with_target<T>(&self, act: impl FnOnce(&Target) -> T) -> Option<T> {
        if !self.logging.load(Ordering::Relaxed) {
            return None;
        }
        self.target
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .map(act)
    }
}

/// Sends the writes to every region of `memory` to `log`, or nowhere.
pub(crate) fn set_log(memory: &GuestMemory, log: Option<&Arc<DirtyLog>>) {
    for region in memory.iter() {
        let target = log.map(|log| Target {
            log: Arc::clone(log),
            region_start: region.start_addr(),
        });
        region.get_mmap().bitmap().set_target(target);
    }
}

impl Bitmap for DirtyBitmap {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.with_target(|target| {
            let offset = u64::try_from(offset).unwrap_or(u64::MAX);
            let start = target.region_start.0.saturating_add(offset);
            target
                .log
                .mark(start, u64::try_from(len).unwrap_or(u64::MAX));
        });
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.with_target(|target| {
            let offset = u64::try_from(offset).unwrap_or(u64::MAX);
            target
                .log
                .is_marked(target.region_start.0.saturating_add(offset))
        })
        .unwrap_or(false)
    }

    fn slice_at(&self, offset: usize) -> DirtySlice<'_> {
        DirtySlice {
            bitmap: self,
            offset,
        }
    }
}

impl NewBitmap for DirtyBitmap {
    fn with_len(_len: usize) -> Self {
        Self::default()
    }
}

impl<'a> WithBitmapSlice<'a> for DirtyBitmap {
    type S = DirtySlice<'a>;
}

/// A [`DirtyBitmap`] seen from an offset into its region.
#[derive(Debug, Clone, Copy)]
pub struct DirtySlice<'a> {
    bitmap: &'a DirtyBitmap,
    offset: usize,
}

impl WithBitmapSlice<'_> for DirtySlice<'_> {
    type S = Self;
}

impl BitmapSlice for DirtySlice<'_> {}

impl Bitmap for DirtySlice<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.bitmap
            .mark_dirty(self.offset.saturating_add(offset), len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.bitmap.dirty_at(self.offset.saturating_add(offset))
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self {
            bitmap: self.bitmap,
            offset: self.offset.saturating_add(offset),
        }
    }
}

/// What `vhost-user-backend` would put into the bitmap at SET_LOG_BASE.
///
/// Never made: the shim answers SET_LOG_BASE itself, because the stock handler checks neither
/// the file's size nor its seal, forgets regions that are mapped later, and never stops logging.
#[derive(Debug)]
pub enum NoStockLog {}

impl MemRegionBitmap for NoStockLog {
    fn new<R: GuestMemoryRegion>(_region: &R, _logmem: Arc<MmapLogReg>) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl BitmapReplace for DirtyBitmap {
    type InnerBitmap = NoStockLog;

    fn replace(&self, bitmap: NoStockLog) {
        match bitmap {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;
    use vm_memory::Bytes;

    fn log_file(bytes: u64) -> std::fs::File {
        let file = nix::sys::memfd::memfd_create("log", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
            .map(std::fs::File::from)
            .unwrap();
        file.set_len(bytes).unwrap();
        file
    }

    #[test]
    fn writes_mark_the_pages_they_touch_and_no_others() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0x10_0000), 0x10_0000)]).unwrap();
        let file = log_file(4096);
        let log = Arc::new(DirtyLog::map(file.try_clone().unwrap().into(), 0, 4096).unwrap());

        memory
            .write_slice(&[1; 16], GuestAddress(0x10_0000))
            .unwrap();
        set_log(&memory, Some(&log));
        // Two pages: the write begins one byte before a page boundary.
        memory
            .write_slice(&[1; 2], GuestAddress(0x10_4fff))
            .unwrap();
        set_log(&memory, None);
        memory
            .write_slice(&[1; 16], GuestAddress(0x10_8000))
            .unwrap();

        let mut bits = [0; 4096];
        file.read_exact_at(&mut bits, 0).unwrap();
        let dirty: Vec<usize> = (0..4096 * 8)
            .filter(|page| bits[page / 8] >> (page % 8) & 1 == 1)
            .collect();
        assert_eq!(dirty, [0x104, 0x105]);
    }

    #[test]
    fn writes_beyond_the_log_are_ignored() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000_0000)]).unwrap();
        let log = Arc::new(DirtyLog::map(log_file(4096).into(), 0, 4096).unwrap());
        set_log(&memory, Some(&log));
        memory
            .write_slice(&[1; 16], GuestAddress(0xfff_fff0))
            .unwrap();
        assert!(!log.is_marked(0xfff_fff0));
    }

    #[test]
    fn needed_log_size_counts_started_pages_and_bytes() {
        assert_eq!(DirtyLog::bytes_needed(1), 1);
        assert_eq!(DirtyLog::bytes_needed(8 * 4096), 1);
        assert_eq!(DirtyLog::bytes_needed(8 * 4096 + 1), 2);
    }
}

//! What stands in front of every medium: who may use it, whether it comes back, and what it lost.
//!
//! - **Locks.** A director that shares its files with a standby holds a medium only while somebody
//!   uses the unit; without it the medium refuses everything.
//! - **Calls that do not come back.** The nexus says which of its commands was given up
//!   ([`Medium::gave_up`]). Until the last of these calls returns the unit is unreachable and every
//!   access fails at once: so a write that was answered NOT READY cannot reach the medium after
//!   one that came later, and no more than a few threads wait for a dead medium.
//! - **Lost writes.** After a failed flush the kernel may have thrown the data away and would
//!   report success the next time. The unit is read-only from then on (DATA PROTECT), every flush
//!   fails, and the operator has to look: a restart of the director is what ends it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use fabric_bypass::DataBuffers;
use scsi_target::{BlockDevice, Extent, MediumError, MediumErrorKind, Provisioning, Transfer};

use super::{Backend, BackendError};
use crate::counters::{LunCounters, Snapshot};

/// See the module.
#[derive(Debug)]
pub(in crate::san) struct Medium {
    lun: String,
    backend: Box<dyn Backend>,
    /// Whether it is locked; held for reading while the medium works.
    claimed: RwLock<bool>,
    /// A flush failed: what was written since the last one may be lost.
    lost_writes: AtomicBool,
    /// Calls that were given up and have not returned.
    overdue: AtomicUsize,
    counters: LunCounters,
}

impl Medium {
    /// The medium of the unit called `lun`, which cannot be used before [`Self::claim`].
    pub(in crate::san) fn new(lun: &str, backend: Box<dyn Backend>) -> Self {
        Self {
            lun: lun.to_owned(),
            backend,
            claimed: RwLock::new(false),
            lost_writes: AtomicBool::new(false),
            overdue: AtomicUsize::new(0),
            counters: LunCounters::default(),
        }
    }

    /// Locks the medium, unless it is.
    ///
    /// # Errors
    /// Another process has it, or it does not answer.
    pub(in crate::san) fn claim(&self) -> Result<(), BackendError> {
        if self.is_unreachable() {
            let lun = self.lun.clone();
            return Err(BackendError::Unreachable { lun });
        }
        let mut claimed = self.claimed.write().unwrap_or_else(PoisonError::into_inner);
        if !*claimed {
            self.backend.lock()?;
            *claimed = true;
        }
        Ok(())
    }

    /// Waits for what the medium does, makes it durable, and lets another process have it.
    pub(in crate::san) fn give_up(&self) {
        let mut claimed = self.claimed.write().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut *claimed) {
            if !self.read_only()
                && let Err(error) = self.sync()
            {
                tracing::error!(%error, lun = self.lun, "not flushed");
            }
            self.backend.unlock();
        }
    }

    /// Asks for the size; whether it changed. May block.
    pub(in crate::san) fn measure(&self) -> bool {
        let changed = !self.is_unreachable() && self.backend.measure();
        if changed {
            self.counters.resizes.add(1);
            tracing::info!(lun = self.lun, blocks = self.block_count(), "size changed");
        }
        changed
    }

    /// A command was answered though its call to the medium has not returned.
    pub(in crate::san) fn gave_up(&self) {
        self.counters.timeouts.add(1);
        if self.overdue.fetch_add(1, Ordering::SeqCst) == 0 {
            tracing::error!(lun = self.lun, "unreachable: its medium does not answer");
        }
    }

    /// The call of such a command returned.
    pub(in crate::san) fn came_back(&self) {
        if self.overdue.fetch_sub(1, Ordering::SeqCst) == 1 {
            tracing::warn!(lun = self.lun, "reachable again");
        }
    }

    /// Whether a call that was given up has not returned.
    pub(in crate::san) fn is_unreachable(&self) -> bool {
        self.overdue.load(Ordering::SeqCst) > 0
    }

    /// Whether this process has it, as far as can be told without waiting.
    pub(in crate::san) fn is_claimed(&self) -> bool {
        // Whoever locks or gives up waits for the medium; meanwhile it stands by.
        self.claimed.try_read().is_ok_and(|claimed| *claimed)
    }

    /// Whether a flush failed: it takes no more writes.
    pub(in crate::san) fn has_lost_writes(&self) -> bool {
        self.lost_writes.load(Ordering::SeqCst)
    }

    /// Its counters, and its state: `unreachable` and `write_protected` are 0 or 1.
    pub(in crate::san) fn snapshot(&self) -> Snapshot {
        let mut snapshot = self.counters.snapshot(format!("lun {}", self.lun));
        snapshot.counts.extend([
            ("unreachable", u64::from(self.is_unreachable())),
            ("write_protected", u64::from(self.read_only())),
            ("blocks", self.block_count()),
        ]);
        snapshot
    }

    /// [`Backend::move_now`], as far as the medium may be used.
    pub(in crate::san) fn move_now(&self, transfer: Transfer, data: &dyn DataBuffers) -> bool {
        let writes = matches!(transfer, Transfer::Write { .. });
        if self.is_unreachable() || writes && self.has_lost_writes() {
            return false;
        }
        let claimed = self.claimed.try_read();
        claimed.is_ok_and(|claimed| *claimed && self.backend.move_now(transfer, data))
    }

    /// Keeps the lock for an access.
    fn access(&self, lba: u64) -> Result<RwLockReadGuard<'_, bool>, MediumError> {
        let unavailable = MediumError {
            kind: MediumErrorKind::Unavailable,
            lba: Some(lba),
        };
        if self.is_unreachable() {
            return Err(unavailable);
        }
        let claimed = self.claimed.read().unwrap_or_else(PoisonError::into_inner);
        if *claimed {
            Ok(claimed)
        } else {
            Err(unavailable)
        }
    }

    fn write_access(&self, lba: u64) -> Result<RwLockReadGuard<'_, bool>, MediumError> {
        if self.lost_writes.load(Ordering::SeqCst) {
            return Err(MediumError {
                kind: MediumErrorKind::WriteProtected,
                lba: Some(lba),
            });
        }
        self.access(lba)
    }

    fn sync(&self) -> Result<(), MediumError> {
        let lost = MediumError {
            kind: MediumErrorKind::Write,
            lba: None,
        };
        if self.lost_writes.load(Ordering::SeqCst) {
            return Err(lost);
        }
        self.backend.flush().map_err(|error| {
            self.lost_writes.store(true, Ordering::SeqCst);
            self.counters.flush_failures.add(1);
            tracing::error!(
                %error,
                lun = self.lun,
                "flush failed, written data may be lost: read-only until the director is restarted"
            );
            lost
        })
    }

    fn sync_if(&self, fua: bool) -> Result<(), MediumError> {
        if fua { self.sync() } else { Ok(()) }
    }

    fn counted<T>(&self, result: Result<T, MediumError>) -> Result<T, MediumError> {
        if let Err(error) = &result {
            match error.kind {
                MediumErrorKind::NoSpace => self.counters.no_space.add(1),
                MediumErrorKind::OutOfRange => {}
                _ => self.counters.medium_errors.add(1),
            }
        }
        result
    }
}

impl BlockDevice for Medium {
    fn block_bytes(&self) -> u32 {
        self.backend.block_bytes()
    }

    fn block_count(&self) -> u64 {
        self.backend.block_count()
    }

    fn read_only(&self) -> bool {
        self.backend.read_only() || self.lost_writes.load(Ordering::SeqCst)
    }

    fn provisioning(&self) -> Provisioning {
        self.backend.provisioning()
    }

    fn read(&self, lba: u64, buffer: &mut [u8]) -> Result<(), MediumError> {
        let _claimed = self.access(lba)?;
        self.counted(self.backend.read(lba, buffer))
    }

    // FUA is a flush of its own: only so a failure tells a block that cannot be written from
    // blocks that are lost.
    fn write(&self, lba: u64, data: &[u8], fua: bool) -> Result<(), MediumError> {
        let _claimed = self.write_access(lba)?;
        self.counted(self.backend.write(lba, data, false))?;
        self.sync_if(fua)
    }

    fn flush(&self) -> Result<(), MediumError> {
        let _claimed = self.access(0)?;
        if self.backend.read_only() {
            Ok(())
        } else {
            self.sync()
        }
    }

    fn unmap(&self, lba: u64, blocks: u64) -> Result<(), MediumError> {
        let _claimed = self.write_access(lba)?;
        self.counted(self.backend.unmap(lba, blocks))
    }

    fn write_zeroes(&self, lba: u64, blocks: u64, fua: bool) -> Result<(), MediumError> {
        let _claimed = self.write_access(lba)?;
        self.counted(self.backend.write_zeroes(lba, blocks, false))?;
        self.sync_if(fua)
    }

    fn extent(&self, lba: u64) -> Result<Extent, MediumError> {
        let _claimed = self.access(lba)?;
        self.counted(self.backend.extent(lba))
    }
}

#[cfg(test)]
mod tests {
    use fabric_config::{LunConfig, MediumConfig};
    use std::path::Path;

    use super::super::faulty;
    use super::*;

    fn file() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        file
    }

    fn open(path: &Path, read_only: bool) -> Medium {
        let config = LunConfig {
            name: "lun0".into(),
            port: "12/1".parse().unwrap(),
            medium: MediumConfig::File {
                path: path.to_owned(),
                direct: false,
            },
            block_bytes: 512,
            read_only,
            serial: "lun0".into(),
            delay: std::time::Duration::ZERO,
            timeout: std::time::Duration::from_secs(30),
        };
        Medium::new("lun0", super::super::open(&config, &[]).unwrap().unwrap())
    }

    #[test]
    fn one_file_has_one_writer() {
        let file = file();
        let reader = open(file.path(), true);
        reader.claim().unwrap();
        open(file.path(), true).claim().unwrap();
        let writer = open(file.path(), false);
        assert!(matches!(writer.claim(), Err(BackendError::Locked { .. })));
        assert_eq!(reader.write(0, &[0; 512], false).unwrap_err().lba, Some(0));
        drop(reader);
        writer.claim().unwrap();
        let reader = open(file.path(), true).claim();
        assert!(matches!(reader, Err(BackendError::Locked { .. })));
    }

    #[test]
    fn shared_file_is_used_by_whoever_claimed_it() {
        let file = file();
        let (first, second) = (open(file.path(), false), open(file.path(), false));
        let mut block = [0; 512];
        let unavailable = first.read(0, &mut block).unwrap_err();
        assert_eq!(unavailable.kind, MediumErrorKind::Unavailable);
        first.claim().unwrap();
        first.claim().unwrap();
        assert!(matches!(second.claim(), Err(BackendError::Locked { .. })));
        first.write(0, &[7; 512], false).unwrap();
        assert!(second.write(0, &[8; 512], false).is_err());
        first.give_up();
        second.claim().unwrap();
        second.read(0, &mut block).unwrap();
        assert_eq!(block, [7; 512]);
        assert!(first.write(0, &[9; 512], false).is_err());
    }

    #[test]
    fn after_a_failed_flush_there_are_no_writes_and_no_flushes() {
        let file = file();
        let faults = faulty::of(file.path());
        let medium = open(file.path(), false);
        medium.claim().unwrap();
        medium.write(0, &[7; 512], false).unwrap();
        faults.fail_flushes(Some(MediumErrorKind::Write));
        let error = medium.write(1, &[7; 512], true).unwrap_err();
        assert_eq!(error.kind, MediumErrorKind::Write);
        // The kernel would say now that all is well.
        faults.fail_flushes(None);
        assert_eq!(medium.flush().unwrap_err().kind, MediumErrorKind::Write);
        assert!(medium.read_only());
        for error in [
            medium.write(0, &[7; 512], false).unwrap_err(),
            medium.unmap(0, 1).unwrap_err(),
            medium.write_zeroes(0, 1, false).unwrap_err(),
        ] {
            assert_eq!(error.kind, MediumErrorKind::WriteProtected);
        }
        medium.read(0, &mut [0; 512]).unwrap();
        let snapshot = medium.snapshot();
        assert_eq!(snapshot.count("flush_failures"), Some(1));
        assert_eq!(snapshot.count("write_protected"), Some(1));
    }

    #[test]
    fn a_block_that_cannot_be_written_is_no_lost_write() {
        let file = file();
        let faults = faulty::of(file.path());
        let medium = open(file.path(), false);
        medium.claim().unwrap();
        for kind in [MediumErrorKind::Write, MediumErrorKind::NoSpace] {
            faults.fail_writes(Some(kind));
            assert_eq!(medium.write(0, &[7; 512], true).unwrap_err().kind, kind);
        }
        faults.fail_writes(None);
        medium.write(0, &[7; 512], true).unwrap();
        let snapshot = medium.snapshot();
        assert_eq!(snapshot.count("medium_errors"), Some(1));
        assert_eq!(snapshot.count("no_space"), Some(1));
    }

    #[test]
    fn nothing_gets_to_a_medium_that_has_not_come_back() {
        let file = file();
        let medium = open(file.path(), false);
        medium.claim().unwrap();
        medium.gave_up();
        medium.gave_up();
        medium.came_back();
        let error = medium.write(5, &[7; 512], false).unwrap_err();
        assert_eq!(
            (error.kind, error.lba),
            (MediumErrorKind::Unavailable, Some(5))
        );
        assert!(matches!(
            medium.claim(),
            Err(BackendError::Unreachable { .. })
        ));
        assert_eq!(medium.snapshot().count("unreachable"), Some(1));
        medium.came_back();
        medium.write(5, &[7; 512], false).unwrap();
        assert_eq!(medium.snapshot().count("unreachable"), Some(0));
    }
}

//! A medium that fails when a test says so.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard};

use fabric_config::MediumConfig;
use scsi_target::{BlockDevice, Extent, MediumError, MediumErrorKind, Provisioning};

use super::{Backend, BackendError};

#[derive(Debug, Default)]
struct State {
    /// Calls wait while this is so.
    stalled: bool,
    waiting: usize,
    waiting_peak: usize,
    read: Option<MediumErrorKind>,
    write: Option<MediumErrorKind>,
    flush: Option<MediumErrorKind>,
}

/// What a test does to the medium of one file.
#[derive(Debug, Default)]
pub(in crate::san) struct Faults {
    state: Mutex<State>,
    changed: Condvar,
}

static OF_FILES: LazyLock<Mutex<HashMap<PathBuf, Arc<Faults>>>> = LazyLock::new(Mutex::default);

/// The faults of a file that is opened after this.
pub(in crate::san) fn of(path: &Path) -> Arc<Faults> {
    let mut files = OF_FILES.lock().unwrap();
    files.entry(path.to_owned()).or_default().clone()
}

/// Puts the faults of its file, if a test has any, in front of a medium.
pub(super) fn wrap(medium: &MediumConfig, inner: Box<dyn Backend>) -> Box<dyn Backend> {
    let faults = medium
        .path()
        .and_then(|path| OF_FILES.lock().unwrap().get(path).cloned());
    match faults {
        Some(faults) => Box::new(Faulty { inner, faults }),
        None => inner,
    }
}

impl Faults {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Holds up every call, or lets all go on.
    pub(in crate::san) fn stall(&self, stalled: bool) {
        self.lock().stalled = stalled;
        self.changed.notify_all();
    }

    /// Returns when `calls` are held up.
    pub(in crate::san) fn wait_stalled(&self, calls: usize) {
        let waiting = |state: &mut State| state.waiting < calls;
        drop(self.changed.wait_while(self.lock(), waiting).unwrap());
    }

    /// The most calls that were held up at one time.
    pub(in crate::san) fn waiting_peak(&self) -> usize {
        self.lock().waiting_peak
    }

    pub(in crate::san) fn fail_reads(&self, kind: Option<MediumErrorKind>) {
        self.lock().read = kind;
    }

    pub(in crate::san) fn fail_writes(&self, kind: Option<MediumErrorKind>) {
        self.lock().write = kind;
    }

    pub(in crate::san) fn fail_flushes(&self, kind: Option<MediumErrorKind>) {
        self.lock().flush = kind;
    }

    fn pass(
        &self,
        lba: Option<u64>,
        fault: impl Fn(&State) -> Option<MediumErrorKind>,
    ) -> Result<(), MediumError> {
        let mut state = self.lock();
        state.waiting += 1;
        if state.stalled {
            state.waiting_peak = state.waiting_peak.max(state.waiting);
            self.changed.notify_all();
        }
        let mut state = self
            .changed
            .wait_while(state, |state| state.stalled)
            .unwrap();
        state.waiting -= 1;
        match fault(&state) {
            Some(kind) => Err(MediumError { kind, lba }),
            None => Ok(()),
        }
    }
}

#[derive(Debug)]
struct Faulty {
    inner: Box<dyn Backend>,
    faults: Arc<Faults>,
}

impl Backend for Faulty {
    fn lock(&self) -> Result<(), BackendError> {
        self.inner.lock()
    }

    fn unlock(&self) {
        self.inner.unlock();
    }

    fn measure(&self) -> bool {
        self.inner.measure()
    }
}

impl BlockDevice for Faulty {
    fn block_bytes(&self) -> u32 {
        self.inner.block_bytes()
    }

    fn block_count(&self) -> u64 {
        self.inner.block_count()
    }

    fn read_only(&self) -> bool {
        self.inner.read_only()
    }

    fn provisioning(&self) -> Provisioning {
        self.inner.provisioning()
    }

    fn read(&self, lba: u64, buffer: &mut [u8]) -> Result<(), MediumError> {
        self.faults.pass(Some(lba), |state| state.read)?;
        self.inner.read(lba, buffer)
    }

    fn write(&self, lba: u64, data: &[u8], fua: bool) -> Result<(), MediumError> {
        self.faults.pass(Some(lba), |state| state.write)?;
        self.inner.write(lba, data, fua)
    }

    fn flush(&self) -> Result<(), MediumError> {
        self.faults.pass(None, |state| state.flush)?;
        self.inner.flush()
    }

    fn unmap(&self, lba: u64, blocks: u64) -> Result<(), MediumError> {
        self.faults.pass(Some(lba), |state| state.write)?;
        self.inner.unmap(lba, blocks)
    }

    fn write_zeroes(&self, lba: u64, blocks: u64, fua: bool) -> Result<(), MediumError> {
        self.faults.pass(Some(lba), |state| state.write)?;
        self.inner.write_zeroes(lba, blocks, fua)
    }

    fn extent(&self, lba: u64) -> Result<Extent, MediumError> {
        self.faults.pass(Some(lba), |state| state.read)?;
        self.inner.extent(lba)
    }
}

//! A logical unit: identity, medium, and the state all its initiators share.
//!
//! Two locks:
//! - `state` (mode pages, stopped) is held for a copy in or out, never during medium I/O;
//! - `write_gate` is held during medium I/O by whoever changes the medium: shared by writes,
//!   alone by COMPARE AND WRITE, which is thereby atomic against them. Reads do without.
//!
//! Who needs both takes `write_gate` first.

use std::fmt;
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
};

use thiserror::Error;

use crate::block_device::{BLOCK_BYTES_ALLOWED, BlockDevice, Provisioning};
use crate::identity::Identity;
use crate::mode::ModeParameters;
use crate::sense::SenseFormat;
use crate::unit_attention::{PendingUnitAttentions, UnitAttention};

/// Most bytes a READ, WRITE, VERIFY or COMPARE AND WRITE may move, advertised as MAXIMUM
/// TRANSFER LENGTH. More is refused with 5/24/00.
pub const TRANSFER_BYTES_MAX: u32 = 1024 * 1024;

/// Why a block device cannot be a logical unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LogicalUnitError {
    /// Block size not in [`BLOCK_BYTES_ALLOWED`].
    #[error("block size of {block_bytes} bytes is neither 512 nor 4096")]
    BlockBytes {
        /// What the device said.
        block_bytes: u32,
    },
    /// The device has no blocks.
    #[error("block device has no blocks")]
    Empty,
}

/// State that commands and resets change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UnitState {
    pub(crate) mode: ModeParameters,
    pub(crate) stopped: bool,
}

impl UnitState {
    const POWER_ON: Self = Self {
        mode: ModeParameters::DEFAULT,
        stopped: false,
    };
}

/// A disk that any number of nexuses may share.
pub struct LogicalUnit {
    identity: Identity,
    device: Arc<dyn BlockDevice>,
    block_bytes: u32,
    thin: bool,
    state: Mutex<UnitState>,
    nexuses: Mutex<Vec<Weak<NexusState>>>,
    write_gate: RwLock<()>,
}

/// What a unit knows of one nexus: lives as long as the nexus' LUN.
#[derive(Debug)]
pub(crate) struct NexusState(Mutex<PendingUnitAttentions>);

impl NexusState {
    pub(crate) fn pending(&self) -> MutexGuard<'_, PendingUnitAttentions> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LogicalUnit {
    /// A unit in its power-on state: write cache on, started.
    ///
    /// # Errors
    /// [`LogicalUnitError`] for devices whose geometry cannot be served.
    pub fn new(identity: Identity, device: Arc<dyn BlockDevice>) -> Result<Self, LogicalUnitError> {
        let block_bytes = device.block_bytes();
        if !BLOCK_BYTES_ALLOWED.contains(&block_bytes) {
            return Err(LogicalUnitError::BlockBytes { block_bytes });
        }
        if device.block_count() == 0 {
            return Err(LogicalUnitError::Empty);
        }
        let thin = device.provisioning() == Provisioning::Thin;
        Ok(Self {
            identity,
            device,
            block_bytes,
            thin,
            state: Mutex::new(UnitState::POWER_ON),
            nexuses: Mutex::new(Vec::new()),
            write_gate: RwLock::new(()),
        })
    }

    /// Who it is.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Bytes in a logical block.
    #[must_use]
    pub const fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// Logical blocks at this moment.
    #[must_use]
    pub fn block_count(&self) -> u64 {
        self.device.block_count()
    }

    /// Tells every nexus that the capacity changed (2A/09). Call it after
    /// [`BlockDevice::block_count`] has its new value.
    pub fn capacity_changed(&self) {
        self.establish(UnitAttention::CapacityChanged, None);
    }

    pub(crate) fn device(&self) -> &dyn BlockDevice {
        &*self.device
    }

    /// Whether blocks may be unmapped.
    pub(crate) const fn thin(&self) -> bool {
        self.thin
    }

    /// A block size divides every transfer limit, so the quotients are exact.
    pub(crate) const fn blocks_in(&self, bytes: u32) -> u32 {
        bytes / self.block_bytes
    }

    pub(crate) fn state(&self) -> UnitState {
        *self.lock_state()
    }

    pub(crate) fn sense_format(&self) -> SenseFormat {
        self.state().mode.sense_format()
    }

    /// Held while the medium changes; whoever is [`Self::alone`] waits for all holders.
    pub(crate) fn writing(&self) -> RwLockReadGuard<'_, ()> {
        self.write_gate
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Held while nobody else may change the medium.
    pub(crate) fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.write_gate
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a write must be durable before its answer: asked for, or the cache is off.
    /// Asked under the write gate, so that turning the cache off misses no write.
    pub(crate) fn durable(&self, asked: bool) -> bool {
        asked || !self.state().mode.write_cache
    }

    /// Whether the unit or its medium refuses writes, software protection aside.
    pub(crate) fn read_only(&self) -> bool {
        self.identity.read_only() || self.device.read_only()
    }

    /// Changes the state and returns the previous one.
    pub(crate) fn update_state(&self, change: impl FnOnce(&mut UnitState)) -> UnitState {
        let mut state = self.lock_state();
        let before = *state;
        change(&mut state);
        before
    }

    /// Back to power-on state, told to every nexus as `condition`.
    pub(crate) fn reset(&self, condition: UnitAttention) {
        *self.lock_state() = UnitState::POWER_ON;
        self.establish(condition, None);
    }

    /// Registers a nexus, which finds 29/00 pending.
    pub(crate) fn join(&self) -> Arc<NexusState> {
        let mut pending = PendingUnitAttentions::default();
        pending.establish(UnitAttention::PowerOn);
        let nexus = Arc::new(NexusState(Mutex::new(pending)));
        let mut nexuses = self.lock_nexuses();
        nexuses.retain(|each| each.strong_count() > 0);
        nexuses.push(Arc::downgrade(&nexus));
        nexus
    }

    /// Makes `condition` pending on every nexus but `cause`.
    pub(crate) fn establish(&self, condition: UnitAttention, cause: Option<&Arc<NexusState>>) {
        for nexus in self.lock_nexuses().iter().filter_map(Weak::upgrade) {
            if cause.is_none_or(|cause| !Arc::ptr_eq(cause, &nexus)) {
                nexus.pending().establish(condition);
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn known_nexuses(&self) -> usize {
        self.lock_nexuses().len()
    }

    // A poisoned lock means that another thread failed while it copied; the plain values
    // behind these locks are whole at every point, so going on is safe.
    fn lock_state(&self) -> MutexGuard<'_, UnitState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_nexuses(&self) -> MutexGuard<'_, Vec<Weak<NexusState>>> {
        self.nexuses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for LogicalUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogicalUnit")
            .field("identity", &self.identity)
            .field("block_bytes", &self.block_bytes)
            .field("thin", &self.thin)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

//! A logical unit: identity, medium, and the state all its initiators share.
//!
//! Locks:
//! - `state` (mode pages, stopped) is held for a copy in or out, never during medium I/O;
//! - `reservations` is held while they change and are stored, never during medium I/O;
//! - `write_gate` is held during medium I/O by whoever changes the medium: shared by writes,
//!   alone by COMPARE AND WRITE, which is thereby atomic against them. Reads do without.
//!
//! `write_gate` is taken before `state`, `reservations` before what is pending on a nexus.

use std::fmt;
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
};

use thiserror::Error;

use crate::block_device::{BLOCK_BYTES_ALLOWED, BlockDevice, Provisioning};
use crate::extended_copy::CopyResult;
use crate::identity::Identity;
use crate::maintenance::Clock;
use crate::mode::ModeParameters;
use crate::port_groups::{AccessState, PortGroup, PortGroupError, PortGroups};
use crate::reservation::{NexusId, ReservationStore, Reservations, StoredReservationsError};
use crate::sanitize::Sanitize;
use crate::sense::{AdditionalSense, Sense, SenseFormat, SenseKey};
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
    /// Not changed by resets.
    pub(crate) sanitize: Sanitize,
}

impl UnitState {
    const POWER_ON: Self = Self {
        mode: ModeParameters::DEFAULT,
        stopped: false,
        sanitize: Sanitize::Idle,
    };
}

/// What a unit can do beyond what every unit can: decides which commands it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Features {
    /// Blocks may be unmapped.
    pub(crate) thin: bool,
    /// There are atomic writes.
    pub(crate) atomic: bool,
    /// There is a clock.
    pub(crate) clock: bool,
    /// Initiators may set access states.
    pub(crate) explicit_access: bool,
}

/// A disk that any number of nexuses may share.
pub struct LogicalUnit {
    identity: Identity,
    device: Arc<dyn BlockDevice>,
    block_bytes: u32,
    features: Features,
    atomic_blocks: u32,
    port_groups: PortGroups,
    clock: Option<Arc<dyn Clock>>,
    reservation_store: Option<Arc<dyn ReservationStore>>,
    state: Mutex<UnitState>,
    reservations: Mutex<Reservations>,
    nexuses: Mutex<Vec<Weak<NexusState>>>,
    write_gate: RwLock<()>,
}

/// What a unit knows of one nexus: lives as long as the nexus' LUN.
#[derive(Debug)]
pub(crate) struct NexusState {
    id: NexusId,
    pending: Mutex<PendingUnitAttentions>,
    copies: Mutex<Vec<CopyResult>>,
}

impl NexusState {
    pub(crate) fn pending(&self) -> MutexGuard<'_, PendingUnitAttentions> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Results of copies that RECEIVE COPY RESULTS may ask for, oldest first.
    pub(crate) fn copies(&self) -> MutexGuard<'_, Vec<CopyResult>> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
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
        // WRITE ATOMIC(16) has a length of 16 bits and moves no more than other commands.
        let atomic_blocks = device
            .atomic_write_blocks()
            .min(TRANSFER_BYTES_MAX / block_bytes);
        let features = Features {
            thin: device.provisioning() == Provisioning::Thin,
            atomic: atomic_blocks > 0,
            ..Features::default()
        };
        Ok(Self {
            identity,
            device,
            block_bytes,
            features,
            atomic_blocks,
            port_groups: PortGroups::default(),
            clock: None,
            reservation_store: None,
            state: Mutex::new(UnitState::POWER_ON),
            reservations: Mutex::default(),
            nexuses: Mutex::new(Vec::new()),
            write_gate: RwLock::new(()),
        })
    }

    /// With the target ports through which it is reached, in place of one group of one port, 1.
    /// With `explicit` initiators may set states (SET TARGET PORT GROUPS).
    ///
    /// # Errors
    /// [`PortGroupError`].
    pub fn with_port_groups(
        mut self,
        groups: Vec<PortGroup>,
        explicit: bool,
    ) -> Result<Self, PortGroupError> {
        self.port_groups = PortGroups::new(groups)?;
        self.features.explicit_access = explicit;
        Ok(self)
    }

    /// With persistent reservations that outlive restarts, where an initiator asks for it
    /// (APTPL). What `store` was given last goes to [`Self::load_reservations`].
    #[must_use]
    pub fn with_reservation_store(mut self, store: Arc<dyn ReservationStore>) -> Self {
        self.reservation_store = Some(store);
        self
    }

    /// Takes the persistent reservations that this target stored before a restart, or another one
    /// since; `stored` is empty if there are none. To be called while no initiator has a nexus in
    /// use. PRGENERATION goes on.
    ///
    /// # Errors
    /// [`StoredReservationsError`] when `stored` is damaged; nothing has changed.
    pub fn load_reservations(&self, stored: &[u8]) -> Result<(), StoredReservationsError> {
        let loaded = Reservations::decode(stored)?;
        let mut reservations = self.reservations();
        *reservations = Reservations {
            generation: reservations.generation,
            ..loaded
        };
        Ok(())
    }

    /// With a clock for REPORT TIMESTAMP.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self.features.clock = true;
        self
    }

    /// Its target port groups at this moment.
    #[must_use]
    pub fn target_port_groups(&self) -> Vec<PortGroup> {
        self.port_groups.all()
    }

    /// Changes the state of a target port group (implicitly, SPC-4 5.15.2.7); if that changes
    /// something, every nexus is told (2A/06).
    ///
    /// # Errors
    /// [`PortGroupError::NoSuchGroup`].
    pub fn set_access_state(&self, group: u16, state: AccessState) -> Result<(), PortGroupError> {
        if self.port_groups.set_implicit(group, state)? {
            self.establish(UnitAttention::AccessStateChanged, None);
        }
        Ok(())
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
        self.features.thin
    }

    pub(crate) const fn features(&self) -> Features {
        self.features
    }

    /// Most blocks of WRITE ATOMIC; 0 without it.
    pub(crate) const fn atomic_blocks(&self) -> u32 {
        self.atomic_blocks
    }

    pub(crate) const fn port_groups(&self) -> &PortGroups {
        &self.port_groups
    }

    /// Relative identifiers of all target ports.
    pub(crate) fn target_ports(&self) -> Vec<u16> {
        let groups = self.port_groups.all().into_iter();
        groups
            .flat_map(|group| group.ports)
            .map(|port| port.relative)
            .collect()
    }

    /// Zero without a clock, which no command finds.
    pub(crate) fn unix_milliseconds(&self) -> u64 {
        let clock = self.clock.as_ref();
        clock.map_or(0, |clock| clock.unix_milliseconds())
    }

    pub(crate) fn reservations(&self) -> MutexGuard<'_, Reservations> {
        // Replaced as a whole: going on after a failure elsewhere is safe.
        self.reservations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) const fn has_reservation_store(&self) -> bool {
        self.reservation_store.is_some()
    }

    /// Makes durable what a restart has to know of `after`.
    pub(crate) fn store_reservations(
        &self,
        before: &Reservations,
        after: &Reservations,
    ) -> Result<(), Sense> {
        let Some(store) = &self.reservation_store else {
            return Ok(());
        };
        let bytes = |reservations: &Reservations| {
            let kept = reservations.persists || store.keeps_all();
            if kept && !reservations.registrations.is_empty() {
                reservations.encode()
            } else {
                Vec::new()
            }
        };
        let stored = bytes(after);
        if bytes(before) == stored {
            return Ok(());
        }
        store.store(&stored).map_err(|_store| {
            Sense::new(
                SenseKey::HardwareError,
                AdditionalSense::INTERNAL_TARGET_FAILURE,
            )
        })
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

    /// Back to power-on state, told to every nexus as `condition`. Persistent reservations stay.
    pub(crate) fn reset(&self, condition: UnitAttention) {
        self.update_state(|state| {
            *state = UnitState {
                sanitize: state.sanitize,
                ..UnitState::POWER_ON
            };
        });
        self.reservations().reserved_by = None;
        for nexus in self.live_nexuses() {
            nexus.copies().clear();
        }
        self.establish(condition, None);
    }

    /// RESERVE of a nexus that is gone ends, and nobody will ask for the results of its copies.
    pub(crate) fn nexus_lost(&self, nexus: NexusId) {
        let mut reservations = self.reservations();
        if reservations.reserved_by == Some(nexus) {
            reservations.reserved_by = None;
        }
        for lost in self.live_nexuses().iter().filter(|each| each.id == nexus) {
            lost.copies().clear();
        }
    }

    /// Registers a nexus, which finds 29/00 pending.
    pub(crate) fn join(&self, id: NexusId) -> Arc<NexusState> {
        let mut pending = PendingUnitAttentions::default();
        pending.establish(UnitAttention::PowerOn);
        let nexus = Arc::new(NexusState {
            id,
            pending: Mutex::new(pending),
            copies: Mutex::default(),
        });
        let mut nexuses = self.lock_nexuses();
        nexuses.retain(|each| each.strong_count() > 0);
        nexuses.push(Arc::downgrade(&nexus));
        nexus
    }

    /// Makes `condition` pending on every nexus but `cause`.
    pub(crate) fn establish(&self, condition: UnitAttention, cause: Option<&Arc<NexusState>>) {
        for nexus in self.live_nexuses() {
            if cause.is_none_or(|cause| !Arc::ptr_eq(cause, &nexus)) {
                nexus.pending().establish(condition);
            }
        }
    }

    /// Makes `condition` pending on the LUNs of one nexus, but not on `cause`.
    pub(crate) fn establish_on(
        &self,
        id: NexusId,
        condition: UnitAttention,
        cause: &Arc<NexusState>,
    ) {
        for nexus in self.live_nexuses() {
            if nexus.id == id && !Arc::ptr_eq(cause, &nexus) {
                nexus.pending().establish(condition);
            }
        }
    }

    fn live_nexuses(&self) -> Vec<Arc<NexusState>> {
        let nexuses = self.lock_nexuses();
        nexuses.iter().filter_map(Weak::upgrade).collect()
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
            .field("features", &self.features)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

//! A vHBA: its LUN map, the nexus of each LUN, and the session that has it now.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use fabric_bypass::DirectSession;
use fabric_config::{DirectorConfig, LunConfig, LunMapping, MediumConfig, VhbaConfig};
use fabric_payload::scsi::{LunBytes, TRANSFER_BYTES_MAX};
use fabric_transport::{DeviceId, LaneClient};
use qos::{AdmissionError, DeviceRate};
use qos_monitor::storage::StorageState;
use scsi_target::{
    BlockDevice, Identity, IdentityError, ItNexus, LogicalUnit, LogicalUnitError, LunAddress,
    TaskAttribute, TaskManagementFunction,
};

use super::backend::medium::Medium;
use super::backend::{self, BackendError};
use super::command_queue::Charged;
use super::nexus::{Nexus, Share};
use super::observe::{Highest, InFlight, NexusStatistics, Tap};
use super::pass_through::{PassThrough, PassThroughError, PassThroughUnit, StandIn};
use super::port::{HeldCommand, SanPort, SanPortShared};
use super::reservation_file::ReservationFile;
use super::system_clock::SystemClock;
use super::task_set::TaskKey;
use super::vhba_session::VhbaSession;
use super::{COMMANDS_MAX, DATA_BLOCKS};
use crate::counters::{Snapshot, VhbaCounters};

/// Why a vHBA or its logical unit cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum VhbaError {
    /// What it keeps its blocks on.
    #[error(transparent)]
    Medium(#[from] BackendError),
    /// A unit of others.
    #[error(transparent)]
    PassThrough(#[from] PassThroughError),
    /// The serial number.
    #[error("serial number is not usable; choose another")]
    Identity(#[from] IdentityError),
    /// The geometry.
    #[error("geometry cannot be served; correct block-bytes or the medium")]
    Unit(#[from] LogicalUnitError),
    /// What it reserved before the director began.
    #[error(transparent)]
    Reservations(#[from] ReservationFileError),
    /// The LUN map names a unit that is not open.
    #[error("lun {name:?} is not open; add it to the lab file")]
    NoSuchLun {
        /// Its name.
        name: String,
    },
    /// The LUN map names a number twice or one that is too large.
    #[error("LUN {lun} cannot be mapped; choose another number")]
    Number {
        /// The number.
        lun: u16,
    },
    /// Its sessions cannot have a unit that is new to them.
    #[error(transparent)]
    Claim(Box<ClientError>),
    /// No thread.
    #[error("cannot start a thread; raise the process's limits")]
    Thread(#[source] io::Error),
}

/// Why a vHBA cannot be attached now.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Its port.
    #[error(transparent)]
    Admission(#[from] AdmissionError),
    /// One of its logical units.
    #[error(transparent)]
    Medium(#[from] BackendError),
    /// What a logical unit reserved under another director.
    #[error(transparent)]
    Reservations(#[from] ReservationFileError),
}

/// Why the stored reservations of a logical unit cannot be used; ends with the next step.
#[derive(Debug, thiserror::Error)]
pub enum ReservationFileError {
    /// They cannot be read.
    #[error("cannot read {} ({source}); correct its permissions", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// They are damaged.
    #[error(
        "{} is damaged; restore it, or remove it once no host uses the unit",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
    },
}

/// The medium that reservations are kept beside. A file beside a block device would not outlive the
/// machine.
fn reservations_beside(medium: &MediumConfig) -> Option<&Path> {
    match medium {
        MediumConfig::File { path, .. } | MediumConfig::Qcow2 { path } => {
            let is_device = std::fs::metadata(path)
                .is_ok_and(|metadata| metadata.file_type().is_block_device());
            (!is_device).then_some(path)
        }
        MediumConfig::BlockDevice { .. }
        | MediumConfig::Ram { .. }
        | MediumConfig::Null { .. }
        | MediumConfig::Iscsi(_)
        | MediumConfig::Sg { .. } => None,
    }
}

/// An open logical unit of a SAN port, shared by any number of vHBAs.
#[derive(Debug)]
pub struct Lun {
    unit: Arc<LogicalUnit>,
    /// `None`: it is a unit of others.
    medium: Option<Arc<Medium>>,
    /// Where its commands go, if not to `unit`.
    pass_through: Option<PassThroughUnit>,
    /// Only of a writable file: nothing beside a read-only one need be writable.
    reservations: Option<Arc<ReservationFile>>,
    /// Sessions that use it, if it is locked only for these; else `None`.
    users: Option<Mutex<usize>>,
    delay: Duration,
    timeout: Duration,
    /// Commands of all vHBAs.
    pub(super) in_flight: Arc<InFlight>,
    /// Of all vHBAs that see it: a reset of the unit ends the tasks of all, a change is told to all.
    mappings: Mutex<Vec<Mapping>>,
}

/// Who sees a unit, and as which LUN.
#[derive(Debug)]
struct Mapping {
    nexus: Weak<Nexus>,
    vhba: Weak<VhbaShared>,
    lun: u16,
}

impl Lun {
    /// Opens the medium of `config`. Where the director shares its LUNs, it is locked only while a
    /// session uses it, so that another director may have it at other times.
    ///
    /// # Errors
    /// [`VhbaError`].
    pub fn open(config: &LunConfig, director: &DirectorConfig) -> Result<Self, VhbaError> {
        let pass_through = PassThroughUnit::open(config)?;
        let backend = backend::open(config, &director.backing_files)?;
        let medium = backend.map(|backend| Arc::new(Medium::new(&config.name, backend)));
        if let Some(medium) = &medium
            && !director.shared_luns
        {
            medium.claim()?;
        }
        let device: Arc<dyn BlockDevice> = match &medium {
            Some(medium) => medium.clone(),
            None => Arc::new(StandIn),
        };
        let identity = Identity::from_serial(&config.serial)?.with_read_only(config.read_only);
        let mut unit = LogicalUnit::new(identity, device)?.with_clock(Arc::new(SystemClock));
        let mut reservations = None;
        if let Some(path) = reservations_beside(&config.medium)
            && !config.read_only
        {
            let store = Arc::new(ReservationFile::beside(path, director.shared_luns));
            unit = unit.with_reservation_store(store.clone());
            reservations = Some(store);
        }
        let lun = Self {
            unit: Arc::new(unit),
            medium,
            pass_through,
            reservations,
            users: (director.shared_luns && !config.medium.passes_through()).then(Mutex::default),
            delay: config.delay,
            timeout: config.timeout,
            in_flight: Arc::default(),
            mappings: Mutex::default(),
        };
        if !director.shared_luns {
            lun.load_reservations()?;
        }
        Ok(lun)
    }

    /// Takes what was stored; the file of the unit is locked.
    fn load_reservations(&self) -> Result<(), ReservationFileError> {
        let Some(store) = &self.reservations else {
            return Ok(());
        };
        let path = || store.path().to_owned();
        let stored = store.claim().map_err(|source| ReservationFileError::Read {
            path: path(),
            source,
        })?;
        let loaded = self.unit.load_reservations(&stored);
        loaded.map_err(|_damaged| ReservationFileError::Damaged { path: path() })
    }

    pub(super) fn unit(&self) -> &Arc<LogicalUnit> {
        &self.unit
    }

    /// `None` of a unit of others.
    pub(super) fn medium(&self) -> Option<&Medium> {
        self.medium.as_deref()
    }

    /// What may be done with it now.
    pub(super) fn state(&self) -> StorageState {
        let Some(medium) = &self.medium else {
            return self.state_elsewhere();
        };
        if medium.is_unreachable() {
            StorageState::Unreachable
        } else if !medium.is_claimed() {
            StorageState::Standby
        } else if medium.has_lost_writes() {
            StorageState::Failed
        } else if medium.read_only() {
            StorageState::ReadOnly
        } else {
            StorageState::Ready
        }
    }

    /// Of a unit of others: unreachable if one of those that see it does not reach it.
    fn state_elsewhere(&self) -> StorageState {
        let away = |nexus: &Arc<Nexus>| nexus.pass_through().is_some_and(|unit| unit.is_away());
        let read_only = self
            .pass_through
            .as_ref()
            .is_some_and(|unit| unit.read_only());
        if self.nexuses().iter().any(away) {
            StorageState::Unreachable
        } else if read_only {
            StorageState::ReadOnly
        } else {
            StorageState::Ready
        }
    }

    /// 0 of a unit of others, which only who asks the target knows.
    pub(super) fn bytes(&self) -> u64 {
        let medium = self.medium.as_ref();
        medium.map_or(0, |medium| {
            self.unit.block_count() * u64::from(medium.block_bytes())
        })
    }

    /// Its counters and state; those of a unit of others are [`Vhba::lun_snapshots`].
    #[must_use]
    pub fn snapshot(&self) -> Option<Snapshot> {
        self.medium.as_ref().map(|medium| medium.snapshot())
    }

    /// Answers the commands that have been at the medium too long, and forgets who does not see it
    /// any more and has nothing left to do.
    pub(super) fn expire(&self) {
        let now = Instant::now();
        for nexus in self.nexuses() {
            nexus.expire(now, self.timeout);
        }
        let mut mappings = self.lock();
        let vhbas: Vec<_> = mappings.iter().filter_map(|it| it.vhba.upgrade()).collect();
        mappings.retain(|mapping| mapping.nexus.strong_count() > 0);
        drop(mappings);
        for vhba in vhbas {
            vhba.forget_retired();
        }
    }

    /// Whether nobody sees it, and nothing of what those who did wanted is left.
    pub(super) fn is_unused(&self) -> bool {
        self.nexuses().is_empty()
    }

    /// Looks whether the size changed, and tells everybody. May block.
    pub(super) fn measure(&self) {
        let changed = self.medium.as_ref().is_some_and(|medium| medium.measure());
        if !changed {
            return;
        }
        self.unit.capacity_changed();
        let mappings = self.lock();
        let vhbas = mappings.iter().filter_map(|mapping| {
            let vhba = mapping.vhba.upgrade()?;
            let nexus = mapping.nexus.upgrade()?;
            let map = vhba.luns();
            let mapped = map.get(&mapping.lun)?;
            Arc::ptr_eq(&mapped.nexus, &nexus).then_some((vhba, mapping.lun))
        });
        let vhbas: Vec<_> = vhbas.collect();
        drop(mappings);
        for (vhba, lun) in vhbas {
            let session = vhba.lock_current().clone();
            if let Some(session) = session {
                session.capacity_changed(lun);
            }
        }
    }

    /// A session is about to use it.
    ///
    /// # Errors
    /// Another director has it, or what it reserved there cannot be read.
    fn claim(&self) -> Result<(), ClientError> {
        let (Some(users), Some(medium)) = (&self.users, &self.medium) else {
            return Ok(());
        };
        let mut users = users.lock().unwrap_or_else(PoisonError::into_inner);
        medium.claim()?;
        if *users == 0
            && let Err(error) = self.load_reservations()
        {
            self.release_claim();
            return Err(error.into());
        }
        *users += 1;
        Ok(())
    }

    /// A session uses it no more.
    fn give_up(self: &Arc<Self>) {
        let Some(users) = &self.users else { return };
        *users.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        // A slow medium is waited for, which no session may.
        let lun = self.clone();
        let waiting = std::thread::Builder::new().name("lun-release".to_owned());
        if let Err(error) = waiting.spawn(move || lun.release()) {
            tracing::warn!(%error, "no thread waits for a logical unit");
            self.release();
        }
    }

    fn release(&self) {
        let Some(users) = &self.users else { return };
        let users = users.lock().unwrap_or_else(PoisonError::into_inner);
        if *users == 0 {
            self.release_claim();
        }
    }

    fn release_claim(&self) {
        if let Some(store) = &self.reservations {
            store.give_up();
        }
        if let Some(medium) = &self.medium {
            medium.give_up();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Mapping>> {
        self.mappings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn nexuses(&self) -> Vec<Arc<Nexus>> {
        let mappings = self.lock();
        mappings
            .iter()
            .filter_map(|mapping| mapping.nexus.upgrade())
            .collect()
    }
}

/// What a vHBA sees.
pub(super) type LunMap = BTreeMap<u16, MappedLun>;

/// A LUN as one vHBA sees it.
#[derive(Debug, Clone)]
pub(super) struct MappedLun {
    pub(super) nexus: Arc<Nexus>,
    pub(super) lun: Arc<Lun>,
}

/// What the sessions of a vHBA share.
#[derive(Debug)]
pub(super) struct VhbaShared {
    pub(super) it_nexus: Arc<ItNexus>,
    /// Replaced as a whole, with `claims` locked.
    luns: RwLock<Arc<LunMap>>,
    /// Of LUNs that are no longer mapped, until their commands have ended.
    retired: Mutex<Vec<MappedLun>>,
    /// Answers commands to LUNs that are not there, and REPORT LUNS.
    pub(super) no_lun: Arc<Nexus>,
    pub(super) counters: VhbaCounters,
    pub(super) tap: Arc<Tap>,
    pub(super) in_flight_max: Highest,
    pub(super) current: Mutex<Option<Arc<VhbaSession>>>,
    /// It was removed: no session begins. Set with `current` locked.
    pub(super) removed: AtomicBool,
    /// Those of them that claimed the LUNs.
    claims: Mutex<HashSet<u64>>,
    device: DeviceId,
    port: Arc<SanPortShared>,
    /// Whether commands have to wait for the port; only ever becomes true.
    limited: AtomicBool,
}

/// A vHBA with its threads.
#[derive(Debug)]
pub struct Vhba {
    name: String,
    shared: Arc<VhbaShared>,
}

/// At most half of the credit is spread over all LUNs but one, so that these may all be slow and
/// the last still finds credit coming back: a receiver grants again when half of its window is
/// free. Of the data it is 3/8, because the headers of small units cost credit too.
fn share(luns: usize) -> Share {
    let data_bytes = usize::try_from(DATA_BLOCKS)
        .unwrap_or(usize::MAX)
        .saturating_mul(64);
    let commands = usize::try_from(COMMANDS_MAX).unwrap_or(usize::MAX);
    match luns {
        0 | 1 => Share {
            commands_max: commands,
            data_out_bytes_max: data_bytes,
        },
        luns => Share {
            commands_max: (commands / 2 / (luns - 1)).max(1),
            data_out_bytes_max: data_bytes / 8 * 3 / (luns - 1),
        },
    }
}

// The largest write fits into the window with its units' headers.
const _: () = assert!(TRANSFER_BYTES_MAX < 64 * 64 * 1024 / 2);

impl Vhba {
    /// Maps the LUNs of `config`, which are behind `port`, and starts a thread for each, and one
    /// for absent LUNs.
    ///
    /// # Errors
    /// [`VhbaError`]; nothing is left behind.
    pub fn start(
        config: &VhbaConfig,
        luns: &BTreeMap<String, Arc<Lun>>,
        port: &SanPort,
    ) -> Result<Self, VhbaError> {
        let it_nexus = Arc::new(ItNexus::new(config.wwpn.0));
        let name = config.name.clone();
        let absent = (it_nexus.clone(), None);
        let shared = Arc::new(VhbaShared {
            no_lun: Nexus::new(
                name,
                absent,
                share(config.luns.len()),
                Duration::ZERO,
                None,
                NexusStatistics::new(None),
            ),
            it_nexus,
            luns: RwLock::default(),
            retired: Mutex::default(),
            tap: Tap::new(&config.name, config.id, config.wwpn, config.port),
            in_flight_max: Highest::default(),
            counters: VhbaCounters::default(),
            current: Mutex::default(),
            removed: AtomicBool::new(false),
            claims: Mutex::default(),
            device: config.id,
            limited: AtomicBool::new(port.shared().is_limited(config.id)),
            port: port.shared(),
        });
        // From here on dropping the vHBA stops what was started.
        let vhba = Self {
            name: config.name.clone(),
            shared,
        };
        vhba.shared.no_lun.start().map_err(VhbaError::Thread)?;
        vhba.set_luns(config, luns)?;
        report_luns(&vhba.shared.it_nexus);
        Ok(vhba)
    }

    /// Has the guest see the LUNs of `config` from now on, and tells it what is new and what is gone.
    ///
    /// What it has in flight at a LUN that is gone, or is another unit now, ends: what runs with its
    /// result, what waits with LOGICAL UNIT NOT SUPPORTED.
    ///
    /// # Errors
    /// [`VhbaError`]; nothing has changed.
    pub fn set_luns(
        &self,
        config: &VhbaConfig,
        luns: &BTreeMap<String, Arc<Lun>>,
    ) -> Result<(), VhbaError> {
        let shared = &self.shared;
        let before = shared.luns();
        let mut after = LunMap::new();
        let mut added = Added::default();
        for mapping in &config.luns {
            let no_such = || VhbaError::NoSuchLun {
                name: mapping.name.clone(),
            };
            let lun = luns.get(&mapping.name).ok_or_else(no_such)?;
            let address = scsi_target::Lun::new(mapping.lun);
            let address = address.filter(|_| !after.contains_key(&mapping.lun));
            let address = address.ok_or(VhbaError::Number { lun: mapping.lun })?;
            let known = before.get(&mapping.lun);
            let known = known.filter(|known| Arc::ptr_eq(&known.lun, lun));
            let mapped = match known {
                Some(known) => known.clone(),
                None => {
                    let mapped = self.map(config, mapping, lun)?;
                    added.luns.push((address, mapped.clone()));
                    mapped
                }
            };
            after.insert(mapping.lun, mapped);
        }
        let stays = |number, mapped: &MappedLun| {
            let known = after.get(number);
            known.is_some_and(|known| Arc::ptr_eq(&known.nexus, &mapped.nexus))
        };
        let gone = before.iter().filter(|(number, it)| !stays(*number, it));
        let gone: Vec<_> = gone.map(|(number, it)| (*number, it.clone())).collect();
        // Sessions that come or go wait: each has the locks of the map that it sees.
        let claims = shared.lock_claims();
        added.claim(claims.len())?;
        let added = added.keep();
        let share = share(after.len());
        for (number, _) in &gone {
            if let Some(address) = scsi_target::Lun::new(*number) {
                shared.it_nexus.detach(address);
            }
        }
        for (address, mapped) in &added {
            // Whatever was at the number was let go above.
            let attached = shared.it_nexus.attach(*address, mapped.lun.unit.clone());
            debug_assert!(attached.is_ok(), "the number is free");
            if mapped.lun.pass_through.is_some() {
                PassThrough::power_on_is_told(&shared.it_nexus, *address);
            }
            let mut mappings = mapped.lun.lock();
            mappings.push(Mapping {
                nexus: Arc::downgrade(&mapped.nexus),
                vhba: Arc::downgrade(shared),
                lun: address.number(),
            });
        }
        for mapped in after.values() {
            mapped.nexus.set_share(share);
        }
        shared.no_lun.set_share(share);
        // Before they leave the map: a session that ends now finds them in one of both.
        let mut retired = shared.lock_retired();
        retired.extend(gone.iter().map(|(_, mapped)| mapped.clone()));
        drop(retired);
        let mut map = shared.luns.write().unwrap_or_else(PoisonError::into_inner);
        *map = Arc::new(after);
        drop(map);
        for (_, mapped) in &gone {
            mapped.nexus.retire();
            claims.iter().for_each(|_| mapped.lun.give_up());
        }
        drop(claims);
        shared.forget_retired();
        let session = shared.lock_current().clone();
        if let Some(session) = session {
            let gone = gone.iter().map(|(number, _)| *number);
            let added = added.iter().map(|(address, _)| address.number());
            session.luns_changed(gone, added);
        }
        Ok(())
    }

    /// Starts what executes the commands to a LUN.
    fn map(
        &self,
        config: &VhbaConfig,
        mapping: &LunMapping,
        lun: &Arc<Lun>,
    ) -> Result<MappedLun, VhbaError> {
        let nexus = Nexus::new(
            format!("{}:{}", mapping.lun, config.name),
            (self.shared.it_nexus.clone(), Some(lun.unit.clone())),
            share(config.luns.len()),
            lun.delay,
            lun.medium.clone(),
            NexusStatistics::new(Some(lun.in_flight.clone())),
        );
        if let Some(unit) = &lun.pass_through {
            let object = format!("lun {} of vhba {}", mapping.name, config.name);
            let port = (config.id.0, mapping.lun);
            nexus.pass_to(PassThrough::start(object, unit, (lun, &nexus), port)?);
        }
        nexus.start().map_err(VhbaError::Thread)?;
        let lun = lun.clone();
        Ok(MappedLun { nexus, lun })
    }

    /// The owner of the vHBA for one session, with what the vHBA reserved on its port, and the locks
    /// of its LUNs, until the session ends.
    ///
    /// # Errors
    /// The port cannot carry what the vHBA reserves, or another director has a LUN; nothing has
    /// changed.
    pub fn client(&self) -> Result<Arc<dyn LaneClient>, ClientError> {
        let shared = &self.shared;
        let number = shared.port.session_number();
        shared.port.attach(shared.device, number)?;
        // From here on dropping the session gives everything back.
        let session = VhbaSession::new(shared.clone(), number);
        shared.claim(number)?;
        Ok(session)
    }

    /// Gives the vHBA other words at its port, in force at once and kept for later sessions. What
    /// waits stays in its order.
    ///
    /// # Errors
    /// They do not fit; nothing has changed.
    pub fn set_rates(&self, ingress: DeviceRate, egress: DeviceRate) -> Result<(), AdmissionError> {
        let VhbaShared { device, port, .. } = &*self.shared;
        port.set_rates(*device, ingress, egress)?;
        if port.is_limited(*device) {
            self.shared.limited.store(true, Ordering::Relaxed);
        }
        // The timer stands at what the old words allowed.
        port.run();
        Ok(())
    }

    /// Its session of that epoch, if that is the one that has it, for a host agent in the same
    /// process.
    pub(crate) fn direct_session(&self, epoch: u16) -> Option<Arc<dyn DirectSession>> {
        let session = self.shared.lock_current().clone()?;
        (session.epoch() == Some(epoch)).then_some(session)
    }

    pub(super) fn shared(&self) -> Arc<VhbaShared> {
        self.shared.clone()
    }

    /// The counters of its LUNs that are units of others.
    pub fn lun_snapshots(&self) -> impl Iterator<Item = Snapshot> {
        let nexuses = self.shared.all_nexuses().into_iter();
        nexuses.filter_map(|nexus| Some(nexus.pass_through()?.snapshot()))
    }

    /// Its counters.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = self.shared.counters.snapshot(format!("vhba {}", self.name));
        if self.shared.is_limited() {
            let held = self.shared.port.held(self.shared.device);
            let commands = u64::try_from(held.commands).unwrap_or(u64::MAX);
            let micros = u64::try_from(held.waited.as_micros()).unwrap_or(u64::MAX);
            let held = [("port_held_commands", commands), ("port_held_us", micros)];
            snapshot.counts.extend(held);
        }
        snapshot
    }
}

/// LUNs that are about to be mapped; dropped before they are, it undoes what was done for them.
#[derive(Default)]
struct Added {
    luns: Vec<(scsi_target::Lun, MappedLun)>,
    /// One for each time that one was claimed.
    claimed: Vec<Arc<Lun>>,
}

impl Added {
    /// Claims each for so many sessions.
    fn claim(&mut self, sessions: usize) -> Result<(), VhbaError> {
        for (_, mapped) in &self.luns {
            for _ in 0..sessions {
                let claimed = mapped.lun.claim();
                claimed.map_err(|error| VhbaError::Claim(Box::new(error)))?;
                self.claimed.push(mapped.lun.clone());
            }
        }
        Ok(())
    }

    /// They are mapped.
    fn keep(mut self) -> Vec<(scsi_target::Lun, MappedLun)> {
        self.claimed.clear();
        std::mem::take(&mut self.luns)
    }
}

impl Drop for Added {
    fn drop(&mut self) {
        for (_, mapped) in &self.luns {
            mapped.nexus.stop();
        }
        self.claimed.iter().for_each(Lun::give_up);
    }
}

/// Takes the map as known: what it is at the start is no change that a guest has to hear of
/// (3F/0E), which each mapped unit established on those before.
fn report_luns(it_nexus: &ItNexus) {
    const REPORT_LUNS: [u8; 12] = [0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0];
    let mut data_in = Vec::new();
    let simple = TaskAttribute::Simple;
    let completion = it_nexus.execute(
        LunAddress::REPORT_LUNS_BYTES,
        &REPORT_LUNS,
        simple,
        &[],
        &mut data_in,
        16,
    );
    tracing::debug!(status = ?completion.status, luns = it_nexus.luns().len(), "luns mapped");
}

impl Drop for Vhba {
    fn drop(&mut self) {
        for nexus in self.shared.all_nexuses() {
            nexus.stop();
        }
        // A nexus may wait for credit: without its session it does not.
        let mut current = self.shared.lock_current();
        self.shared.removed.store(true, Ordering::Relaxed);
        let session = current.take();
        drop(current);
        if let Some(session) = session {
            session.kill();
        }
        for nexus in self.shared.all_nexuses() {
            nexus.join();
        }
    }
}

impl VhbaShared {
    pub(super) fn lock_current(&self) -> MutexGuard<'_, Option<Arc<VhbaSession>>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the guest sees now.
    pub(super) fn luns(&self) -> Arc<LunMap> {
        let luns = self.luns.read().unwrap_or_else(PoisonError::into_inner);
        luns.clone()
    }

    /// Also those whose LUNs are gone, until they have ended.
    pub(super) fn all_nexuses(&self) -> Vec<Arc<Nexus>> {
        let (luns, retired) = (self.luns(), self.lock_retired());
        let mapped = luns.values().chain(retired.iter());
        let mapped = mapped.map(|mapped| mapped.nexus.clone());
        mapped.chain([self.no_lun.clone()]).collect()
    }

    fn lock_retired(&self) -> MutexGuard<'_, Vec<MappedLun>> {
        self.retired.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of LUNs that are gone and whose commands have ended.
    fn forget_retired(&self) {
        self.lock_retired().retain(|mapped| !mapped.nexus.is_over());
    }

    /// The LUN that the eight bytes address, if it is mapped.
    pub(super) fn mapped(&self, lun: LunBytes) -> Option<MappedLun> {
        match LunAddress::parse(lun) {
            LunAddress::Unit(lun) => {
                let luns = self.luns.read().unwrap_or_else(PoisonError::into_inner);
                luns.get(&lun.number()).cloned()
            }
            LunAddress::ReportLunsWellKnown | LunAddress::Absent => None,
        }
    }

    /// Who executes commands to these eight bytes.
    pub(super) fn nexus(&self, lun: LunBytes) -> Arc<Nexus> {
        if let LunAddress::Unit(lun) = LunAddress::parse(lun) {
            let luns = self.luns.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(mapped) = luns.get(&lun.number()) {
                return mapped.nexus.clone();
            }
        }
        self.no_lun.clone()
    }

    /// The unit of one of its nexuses.
    pub(super) fn unit_of(&self, nexus: &Nexus) -> Option<Arc<Lun>> {
        let its = |mapped: &&MappedLun| std::ptr::eq(Arc::as_ptr(&mapped.nexus), nexus);
        let (luns, retired) = (self.luns(), self.lock_retired());
        let found = luns.values().chain(retired.iter()).find(its);
        found.map(|mapped| mapped.lun.clone())
    }

    /// Whether commands have to wait for the port.
    pub(super) fn is_limited(&self) -> bool {
        self.limited.load(Ordering::Relaxed)
    }

    /// Has a command wait for the port; [`Self::run_port`] lets it go.
    pub(super) fn submit(
        &self,
        (nexus, key): (&Arc<Nexus>, TaskKey),
        data_out_bytes: usize,
        data_in_bytes: usize,
    ) {
        let nexus = Arc::downgrade(nexus);
        let command = HeldCommand { nexus, key };
        let command = Charged::new(command, data_out_bytes, data_in_bytes);
        self.port.submit(self.device, command);
    }

    pub(super) fn run_port(&self) {
        if self.is_limited() {
            self.port.run();
        }
    }

    /// A command was taken away before it began.
    pub(super) fn withdraw(&self, key: TaskKey) {
        if self.is_limited() {
            self.port.withdraw(self.device, key);
        }
    }

    fn claim(&self, session: u64) -> Result<(), ClientError> {
        let mut claims = self.lock_claims();
        let luns = self.luns();
        let mut claimed = Vec::with_capacity(luns.len());
        for mapped in luns.values() {
            if let Err(error) = mapped.lun.claim() {
                claimed.into_iter().for_each(Lun::give_up);
                return Err(error);
            }
            claimed.push(&mapped.lun);
        }
        claims.insert(session);
        Ok(())
    }

    fn lock_claims(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives back what a session reserved on the port, and its LUNs.
    pub(super) fn leave(&self, session: u64) {
        self.port.detach(self.device, session);
        let mut claims = self.lock_claims();
        if claims.remove(&session) {
            for mapped in self.luns().values() {
                mapped.lun.give_up();
            }
        }
    }

    /// The session that had the vHBA is gone (SAM-5 section 6.3.4).
    pub(super) fn nexus_lost(&self) {
        let response = self
            .it_nexus
            .task_management(TaskManagementFunction::ItNexusReset, [0; 8]);
        tracing::debug!(
            ?response,
            initiator_port = self.it_nexus.initiator_port(),
            "nexus lost"
        );
    }
}

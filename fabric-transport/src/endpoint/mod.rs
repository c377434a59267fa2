//! One end of a session: the session, the scheduler of everything this end sends, its links, and the
//! thread that reads them.
//!
//! ```text
//! any thread:     LaneSet::try_send ─> scheduler ─┐
//!                                                 ├─> run_link ─> LinkSender (whoever finds it free)
//! session thread: acks, credits, timers ──────────┘
//! session thread: LinkReceiver ─> Session::handle_frame ─> LaneClient::receive
//! ```
//!
//! A sender that finds the links busy leaves its frames to whoever writes, as a Linux qdisc does.
//! Two locks: `writer` (the links' sending halves; data threads only ever try it) and, inside of it,
//! `core` (session and scheduler, never held across a system call or a client's code). A client may
//! therefore call any method of any [`LaneSet`] from its callbacks.

mod reassembly;
mod session_thread;
mod transmit;
mod watch;

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
use nix::time::clock_gettime;
use qos::{
    AdmissionError, DeviceHandle, DeviceRate, DeviceStatistics, LinkBudget, MonotonicTime,
    Profiles, QUEUE_FRAMES_MAX, Scheduler, VmRate,
};
use rustc_hash::FxHashMap;

use crate::control::Windows;
use crate::frame::{self, DeviceId, FrameBuffer, PAYLOAD_BYTES_MAX, VirtualLane};
use crate::link::{Link, ring};
use crate::session::{
    CloseReason, Established, PathCause, PathChange, PathStatus, Role, SendBlocked, Session,
    SessionConfig, SessionState, SwitchoverRefused,
};
pub use reassembly::piece_bytes;
use session_thread::SessionThread;
use transmit::Writer;

/// Bytes that wait in one device's queue at which [`LaneSet::try_send`] refuses more, at most.
///
/// One call may overshoot by what it brings: a SCSI write enters whole.
pub const QUEUE_BYTES_MAX: u64 = 256 * 1024;

/// The same for a device with a peak rate: 5 ms of it, but room for a largest frame. More would
/// only make what a full queue lets pass older.
fn queue_bytes_max(rate: &DeviceRate) -> u64 {
    const QUEUE_BYTES_MIN: u64 = 64 * 1024;
    rate.pir.map_or(QUEUE_BYTES_MAX, |pir| {
        (pir.bits_per_second() / 8 / 200).clamp(QUEUE_BYTES_MIN, QUEUE_BYTES_MAX)
    })
}

/// How much of its rate a link catches up that a busy machine let wait: two or three time slices of
/// others. What leaves at once is bounded by what the peer has not acknowledged.
const CATCH_UP: Duration = Duration::from_millis(10);

fn scheduler(budget: LinkBudget) -> Scheduler<Queued> {
    let mut scheduler = Scheduler::new(budget);
    scheduler.set_catch_up(CATCH_UP);
    scheduler
}

/// What the scheduler of a link is told of a device: without the limit of operations, which counts
/// commands and stands at the SAN port. A link carries frames, any number to a command.
fn link_rate(rate: DeviceRate) -> DeviceRate {
    DeviceRate {
        operations: None,
        ..rate
    }
}

/// What an end of a session is.
#[derive(Debug, Clone)]
pub struct EndpointConfig {
    /// Host or director.
    pub role: Role,
    /// Names and times.
    pub session: SessionConfig,
    /// Rate of this direction of the link, and how much of it may be reserved.
    pub budget: LinkBudget,
}

/// A link that was welcomed, on its way into its session.
#[derive(Debug)]
pub struct NewPath {
    /// The link.
    pub link: Link,
    /// Its number in the session, which the director gave it.
    pub path: u16,
    /// Its rank among the session's links; the lowest that is up carries the frames.
    pub priority: u8,
    /// Frames of the receiver's last fill that the handshake has dealt with.
    pub handled: usize,
    /// A director's WELCOME, which goes out first.
    pub first: Option<FrameBuffer>,
}

impl NewPath {
    /// The only link of a session, without a handshake before.
    #[must_use]
    pub fn only(link: Link) -> Self {
        Self {
            link,
            path: 1,
            priority: 0,
            handled: 0,
            first: None,
        }
    }
}

/// Changes of path that an endpoint remembers.
pub const PATH_CHANGES_MAX: usize = 64;

/// The last [`PATH_CHANGES_MAX`] changes of path of one session. Whoever has it still sees them when the
/// session is over.
#[derive(Debug, Clone, Default)]
pub struct PathLog(Arc<Mutex<VecDeque<PathChange>>>);

impl PathLog {
    fn lock(&self) -> MutexGuard<'_, VecDeque<PathChange>> {
        // Whole between any two statements: going on is safe.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The oldest first.
    #[must_use]
    pub fn to_vec(&self) -> Vec<PathChange> {
        self.lock().iter().cloned().collect()
    }

    /// Whether both are of one session.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn push(&self, change: PathChange) {
        let mut changes = self.lock();
        if changes.len() == PATH_CHANGES_MAX {
            changes.pop_front();
        }
        changes.push_back(change);
    }
}

/// DATA bytes that may be underway on one link: 5 ms of the session's rate, 256 KiB to 4 MiB.
///
/// What is underway stands in a FIFO behind the scheduler, so it bounds how late a guarantee
/// may be; below the peer's reaction time it would idle the link.
fn unacknowledged_bytes_max(budget: &LinkBudget) -> usize {
    let bytes = budget.rate().bits_per_second() / 8 / 200;
    usize::try_from(bytes)
        .unwrap_or(usize::MAX)
        .clamp(256 * 1024, 4 * 1024 * 1024)
}

/// Whether the buffers of a received frame are free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receipt {
    /// Yes: its credit goes back with the next batch.
    Consumed,
    /// No: the client calls [`LaneSet::release`] when they are.
    Held,
}

/// The owner of a device at this end: a back end, or an I/O module.
///
/// Called on the session's thread, except [`Self::writable`]. No method may wait: every device of the
/// session waits with it.
pub trait LaneClient: Send + Sync {
    /// The device is attached: `lanes` may be used until [`Self::down`] names the same epoch.
    fn up(&self, lanes: LaneSet);

    /// A frame arrived.
    fn receive(&self, lane: VirtualLane, payload: &[u8]) -> Receipt;

    /// The batch that [`Self::receive`] was called for is over: the place for one signal.
    fn batch_end(&self) {}

    /// A send that was refused as [`SendRefused::Blocked`] may succeed now. From any thread.
    fn writable(&self);

    /// The lanes of `epoch` are gone, with every frame that was underway.
    ///
    /// A session that replaces a dead one may be up before the dead one's `down` arrives: a client
    /// that holds lanes of another epoch ignores the call.
    fn down(&self, epoch: u16);
}

/// The server profile (VM) that a device belongs to, in one direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmGrant {
    /// Its name; the devices that name the same VM share it.
    pub name: String,
    /// Bandwidth of what this end sends for all of its devices together.
    pub rate: VmRate,
}

/// What this end allows a device.
#[derive(Clone)]
pub struct DeviceGrant {
    /// Bandwidth of what this end sends for it.
    pub rate: DeviceRate,
    /// Its VM, if it has one. The words that came with the VM's first device count.
    pub vm: Option<VmGrant>,
    /// What this end can receive for it, in blocks.
    pub windows: Windows,
    /// Its owner.
    pub client: Arc<dyn LaneClient>,
}

impl std::fmt::Debug for DeviceGrant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceGrant")
            .field("rate", &self.rate)
            .field("vm", &self.vm)
            .field("windows", &self.windows)
            .finish_non_exhaustive()
    }
}

/// Who knows the devices of this end. Called on the session's thread; no method may wait. A host
/// has no use for the director's methods, and the other way round.
pub trait Directory: Send + Sync + 'static {
    /// Host: the session has begun; the place to [`Endpoint::attach`] devices.
    fn active(&self, _endpoint: &Arc<Endpoint>) {}

    /// Director: `host` asks for a device.
    ///
    /// # Errors
    /// Why it is not served; the host is told.
    fn attach(
        &self,
        _host: &str,
        _device: DeviceId,
        _generation: u32,
    ) -> Result<DeviceGrant, String> {
        Err("this end is a host agent, not a director".to_owned())
    }

    /// Director: whether [`Self::attach`] would still say yes. Asked once more when the device is
    /// attached: one that was taken away meanwhile is let go again.
    fn serves(&self, _host: &str, _device: DeviceId, _generation: u32) -> bool {
        true
    }

    /// Host: the director serves a device.
    fn attached(&self, _device: DeviceId) {}

    /// Host: the director does not serve a device, or no longer.
    fn refused(&self, _device: DeviceId, _reason: &str) {}

    /// A link was given up; it is closed already.
    fn path_lost(&self, _endpoint: &Arc<Endpoint>, _path: u16, _cause: &PathCause) {}

    /// The session is over; every client was told [`LaneClient::down`] before.
    fn closed(&self, _endpoint: &Arc<Endpoint>, _reason: &CloseReason) {}
}

/// Why frames were not taken; they stay with the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendRefused {
    /// No credit, or the device's queue is full: [`LaneClient::writable`] will be called.
    #[error("lane is blocked")]
    Blocked,
    /// The lanes are gone.
    #[error("device is not attached")]
    Down,
    /// A payload is longer than a frame, or the call brings more than a queue holds.
    #[error("frames are larger than a lane carries")]
    TooLarge,
}

/// What is in the scheduler's queue.
#[derive(Debug)]
enum Queued {
    Frame(QueuedFrame),
    /// What went past the link already ([`LaneSet::charge`]).
    Charge,
}

/// A frame that was paid for.
#[derive(Debug)]
struct QueuedFrame {
    device: DeviceId,
    lane: VirtualLane,
    sequence: u32,
    /// Its payload goes on in the next frame of the lane.
    more: bool,
    buffer: FrameBuffer,
}

struct Device {
    handle: DeviceHandle,
    grant: DeviceGrant,
    queue_bytes_max: u64,
    /// Payload bytes of one frame; longer payloads are cut.
    piece_bytes: usize,
    /// A send was refused since the client was last told that it may go on.
    waits: bool,
    /// Since when what it has to send finds no buffers at the receiver.
    without_credit_since: Option<MonotonicTime>,
    /// How long that was, for the next frame that is sent.
    waited_for_credit: Duration,
    attached: bool,
    /// The last batch that brought something for it, and its client's place there.
    batch: u64,
    batch_client: usize,
}

impl Device {
    /// There are buffers again, if there were none.
    fn credit_came(&mut self) {
        if let Some(since) = self.without_credit_since.take() {
            let waited = now().saturating_duration_since(since);
            self.waited_for_credit = self.waited_for_credit.saturating_add(waited);
        }
    }
}

struct Core {
    session: Session,
    scheduler: Scheduler<Queued>,
    devices: FxHashMap<DeviceId, Device>,
    profiles: Profiles,
    unacknowledged_bytes_max: usize,
    /// When the timer rings, or rang last.
    timer_at: MonotonicTime,
    /// The newest last.
    path_changes: PathLog,
}

/// One end of a session.
pub struct Endpoint {
    core: Mutex<Core>,
    writer: Mutex<Writer>,
    /// Somebody found the writer busy: it must look again before it leaves.
    more: AtomicBool,
    /// Rings when the head of the scheduler becomes eligible.
    timer: TimerFd,
    /// Wakes the session thread for a close or a new link.
    wake: EventFd,
    new_paths: Mutex<Vec<NewPath>>,
    /// Links that could not be written, with the reason, for the session thread to look at.
    broken_paths: Mutex<Vec<(u16, String)>>,
    /// The peer's name.
    peer: String,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

/// The system's monotonic clock.
#[must_use]
pub fn now() -> MonotonicTime {
    // CLOCK_MONOTONIC cannot fail and is never negative (clock_gettime(2)).
    let time = clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map(Duration::from);
    MonotonicTime::ZERO.saturating_add(time.unwrap_or_default())
}

/// Names and times of a session as this code's programs use them: a random instance number, and
/// the times of [`SessionConfig::new`].
#[must_use]
pub fn session_config(name: &str) -> SessionConfig {
    use std::hash::{BuildHasher, Hasher};
    // The standard library keys each state from the system's random numbers.
    let instance = std::hash::RandomState::new().build_hasher().finish();
    SessionConfig::new(name, instance)
}

impl Endpoint {
    /// Starts a session that host and director have agreed on, with its first link and a thread
    /// named `thread_name` that lives as long as it.
    ///
    /// # Errors
    /// The kernel has no descriptors or threads left.
    pub fn start(
        config: EndpointConfig,
        established: Established,
        first: NewPath,
        directory: Arc<dyn Directory>,
        thread_name: &str,
    ) -> io::Result<(Arc<Self>, JoinHandle<()>)> {
        let peer = established.peer.clone();
        let busy_poll = config.session.busy_poll;
        let core = Core {
            session: Session::new(config.role, config.session, established, now()),
            unacknowledged_bytes_max: unacknowledged_bytes_max(&config.budget),
            scheduler: scheduler(config.budget),
            devices: FxHashMap::default(),
            profiles: Profiles::default(),
            timer_at: MonotonicTime::ZERO,
            path_changes: PathLog::default(),
        };
        let endpoint = Arc::new(Self {
            core: Mutex::new(core),
            writer: Mutex::default(),
            more: AtomicBool::new(false),
            timer: TimerFd::new(
                ClockId::CLOCK_MONOTONIC,
                TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
            )?,
            wake: EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
            new_paths: Mutex::new(vec![first]),
            broken_paths: Mutex::default(),
            peer,
        });
        let thread = SessionThread::new(endpoint.clone(), config.role, directory, busy_poll)?;
        let handle = std::thread::Builder::new()
            .name(thread_name.to_owned())
            .spawn(move || thread.run())?;
        Ok((endpoint, handle))
    }

    /// The peer's name.
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// What both ends agreed on.
    #[must_use]
    pub fn established(&self) -> Established {
        self.lock().session.established().clone()
    }

    /// Adds another link of the same session. One that the session does not take is closed.
    pub fn add_path(&self, path: NewPath) {
        let mut new_paths = self
            .new_paths
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        new_paths.push(path);
        drop(new_paths);
        ring(&self.wake);
    }

    /// The session's links.
    #[must_use]
    pub fn paths(&self) -> Vec<PathStatus> {
        self.lock().session.paths().collect()
    }

    /// The last changes of path.
    #[must_use]
    pub fn path_changes(&self) -> PathLog {
        self.lock().path_changes.clone()
    }

    /// Has the frames of both directions go by link `path`.
    ///
    /// # Errors
    /// [`SwitchoverRefused`] says why not; nothing has changed.
    pub fn switchover(&self, path: u16) -> Result<(), SwitchoverRefused> {
        self.lock().session.switchover(now(), path)?;
        self.run_link();
        ring(&self.wake);
        Ok(())
    }

    /// Host: asks the director to serve `device`.
    ///
    /// # Errors
    /// Its reservation does not fit on this end's link; nothing has changed.
    pub fn attach(
        &self,
        device: DeviceId,
        generation: u32,
        grant: DeviceGrant,
    ) -> Result<(), AdmissionError> {
        let mut core = self.lock();
        if core.devices.contains_key(&device) || core.session.state() == SessionState::Closed {
            return Ok(());
        }
        let windows = grant.windows;
        core.add_device(device, grant)?;
        core.session.attach(device, generation, windows);
        drop(core);
        self.run_link();
        Ok(())
    }

    /// Lets a device go; its client is told [`LaneClient::down`] before this returns.
    pub fn detach(&self, device: DeviceId) {
        let mut core = self.lock();
        let epoch = core.session.epoch();
        core.session.detach(device);
        let removed = core.remove_device(device);
        drop(core);
        if let Some(removed) = removed {
            removed.grant.client.down(epoch);
        }
        self.run_link();
    }

    /// Whether the director serves `device` in this session.
    #[must_use]
    pub fn is_attached(&self, device: DeviceId) -> bool {
        let core = self.lock();
        let device = core.devices.get(&device);
        device.is_some_and(|device| device.attached)
    }

    /// Ends the session; the peer is told `reason`. Idempotent.
    pub fn close(&self, reason: &str) {
        self.lock().session.close(reason);
        self.run_link();
        ring(&self.wake);
    }

    /// Where the session stands.
    #[must_use]
    pub fn state(&self) -> SessionState {
        self.lock().session.state()
    }

    /// Changes what a device may send, without loss or reordering.
    ///
    /// # Errors
    /// The new reservation does not fit; the old one stays.
    pub fn set_rate(&self, device: DeviceId, rate: DeviceRate) -> Result<(), AdmissionError> {
        let mut core = self.lock();
        let Some(handle) = core.devices.get(&device).map(|device| device.handle) else {
            return Ok(());
        };
        core.scheduler.set_rate(now(), handle, link_rate(rate))?;
        let piece_bytes = reassembly::piece_bytes(core.scheduler.budget().rate(), rate.cir);
        if let Some(device) = core.devices.get_mut(&device) {
            device.queue_bytes_max = queue_bytes_max(&rate);
            device.piece_bytes = piece_bytes;
        }
        drop(core);
        self.run_link();
        Ok(())
    }

    /// Changes what the devices of the VM called `vm` may send together, without loss or reordering.
    ///
    /// # Errors
    /// The new reservation does not fit; the old one stays.
    pub fn set_vm_rate(&self, vm: &str, rate: VmRate) -> Result<(), AdmissionError> {
        let mut guard = self.lock();
        let core = &mut *guard;
        core.profiles
            .set_rate(&mut core.scheduler, now(), vm, rate)?;
        drop(guard);
        self.run_link();
        Ok(())
    }

    /// Switches the scheduler's record of its decisions, which is on at first.
    pub fn set_recording(&self, on: bool) {
        self.lock().scheduler.set_recording(on);
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        // A panic while the lock is held is a bug of ours; the session goes on with what is there
        // rather than taking every other device down.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_send(
        &self,
        lanes: &LaneSet,
        frames: &mut Vec<(VirtualLane, FrameBuffer)>,
    ) -> Result<(), SendRefused> {
        let mut core = self.lock();
        let core = &mut *core;
        let device = core
            .devices
            .get_mut(&lanes.device)
            .filter(|device| device.attached && device.handle == lanes.handle);
        let device = device.ok_or(SendRefused::Down)?;
        let piece_bytes = device.piece_bytes;
        let mut blocks = [0_u32; VirtualLane::COUNT];
        let mut frame_count = 0_usize;
        for (lane, buffer) in frames.iter() {
            let payload_bytes = buffer.payload_bytes();
            if payload_bytes > PAYLOAD_BYTES_MAX {
                return Err(SendRefused::TooLarge);
            }
            frame_count += payload_bytes.div_ceil(piece_bytes).max(1);
            if let Some(sum) = blocks.get_mut(lane.index()) {
                *sum = sum.saturating_add(reassembly::blocks(payload_bytes, piece_bytes));
            }
        }
        let frame_count = u32::try_from(frame_count).unwrap_or(u32::MAX);
        if frame_count > QUEUE_FRAMES_MAX {
            return Err(SendRefused::TooLarge);
        }
        // A handle of ours is never stale: devices leave both tables together.
        let queued_frames = core
            .scheduler
            .queued_frames(lanes.handle)
            .unwrap_or(u32::MAX);
        let queued_bytes = core
            .scheduler
            .queued_bytes(lanes.handle)
            .unwrap_or(u64::MAX);
        let room = queued_bytes < device.queue_bytes_max
            && queued_frames.saturating_add(frame_count) <= QUEUE_FRAMES_MAX;
        match core.session.may_send(lanes.device, blocks) {
            Ok(()) if room => {}
            Ok(()) => {
                device.waits = true;
                return Err(SendRefused::Blocked);
            }
            Err(SendBlocked::NoCredit) => {
                device.waits = true;
                device.without_credit_since.get_or_insert_with(now);
                return Err(SendRefused::Blocked);
            }
            Err(SendBlocked::Down) => return Err(SendRefused::Down),
        }
        let now = now();
        device.credit_came();
        let waited = std::mem::take(&mut device.waited_for_credit);
        if !waited.is_zero() {
            core.scheduler.waited_for_credit(lanes.handle, waited);
        }
        let mut queue = |lane, buffer: FrameBuffer, more| {
            let sequence = core
                .session
                .take_credit(lanes.device, lane, buffer.payload_bytes());
            let bytes = u32::try_from(buffer.frame_bytes()).unwrap_or(u32::MAX);
            let frame = Queued::Frame(QueuedFrame {
                device: lanes.device,
                lane,
                sequence,
                more,
                buffer,
            });
            let class = u8::try_from(lane.index()).unwrap_or(u8::MAX);
            if let Err(refused) = core
                .scheduler
                .enqueue(now, lanes.handle, class, bytes, frame)
            {
                // Room was checked above: a refusal would tear a hole into the lane's sequence.
                unreachable!(
                    "scheduler refused a frame it has room for: {:?}",
                    refused.reason
                );
            }
        };
        for (lane, buffer) in frames.drain(..) {
            if buffer.payload_bytes() <= piece_bytes {
                queue(lane, buffer, false);
            } else {
                for (piece, more) in reassembly::cut(&buffer, piece_bytes) {
                    queue(lane, piece, more);
                }
            }
        }
        Ok(())
    }
}

impl Core {
    fn add_device(
        &mut self,
        device: DeviceId,
        grant: DeviceGrant,
    ) -> Result<DeviceHandle, AdmissionError> {
        let rate = link_rate(grant.rate);
        let handle = match &grant.vm {
            None => self.scheduler.add_device(now(), rate)?,
            Some(VmGrant {
                name,
                rate: vm_rate,
            }) => self
                .profiles
                .join(&mut self.scheduler, now(), (name, *vm_rate), rate)?,
        };
        self.devices.insert(
            device,
            Device {
                handle,
                queue_bytes_max: queue_bytes_max(&grant.rate),
                piece_bytes: reassembly::piece_bytes(self.scheduler.budget().rate(), rate.cir),
                grant,
                waits: false,
                without_credit_since: None,
                waited_for_credit: Duration::ZERO,
                attached: false,
                batch: 0,
                batch_client: 0,
            },
        );
        Ok(handle)
    }

    fn remove_device(&mut self, device: DeviceId) -> Option<Device> {
        let removed = self.devices.remove(&device)?;
        // Its frames go with it: what was underway is lost, which `down` tells the client.
        drop(match &removed.grant.vm {
            None => self.scheduler.remove_device(removed.handle),
            Some(vm) => self
                .profiles
                .leave(&mut self.scheduler, &vm.name, removed.handle),
        });
        Some(removed)
    }

    /// There are buffers for a device again. Its client, if it waits and may go on now.
    fn credited(&mut self, device: DeviceId) -> Option<Arc<dyn LaneClient>> {
        self.devices.get_mut(&device)?.credit_came();
        self.take_waiting(device)
    }

    /// The client of a device that waits and may go on now.
    fn take_waiting(&mut self, device: DeviceId) -> Option<Arc<dyn LaneClient>> {
        let device = self.devices.get_mut(&device)?;
        let queued_bytes = self
            .scheduler
            .queued_bytes(device.handle)
            .unwrap_or(u64::MAX);
        let low = queued_bytes <= device.queue_bytes_max / 2;
        (low && std::mem::take(&mut device.waits)).then(|| device.grant.client.clone())
    }
}

/// The lanes of one attached device: what a back end or module sends through. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LaneSet {
    endpoint: Arc<Endpoint>,
    device: DeviceId,
    epoch: u16,
    handle: DeviceHandle,
}

impl LaneSet {
    /// Whose lanes these are.
    #[must_use]
    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.endpoint.peer
    }

    /// Epoch of their session; see [`LaneClient::down`].
    #[must_use]
    pub fn epoch(&self) -> u16 {
        self.epoch
    }

    /// Sends all of `frames`, or none: on success the vector is empty afterwards.
    ///
    /// Order is kept inside a lane. Between lanes of the device the one of higher precedence may
    /// overtake, never the other way round.
    ///
    /// # Errors
    /// [`SendRefused`]; the frames are untouched.
    pub fn try_send(
        &self,
        frames: &mut Vec<(VirtualLane, FrameBuffer)>,
    ) -> Result<(), SendRefused> {
        self.endpoint.try_send(self, frames)?;
        self.endpoint.run_link();
        Ok(())
    }

    /// Puts frames on the link like [`Self::try_send`], but leaves writing them to a later
    /// [`Self::flush`]: for a ring's thread that takes a batch.
    ///
    /// # Errors
    /// [`SendRefused`]; the frames are untouched.
    pub fn queue(&self, frames: &mut Vec<(VirtualLane, FrameBuffer)>) -> Result<(), SendRefused> {
        self.endpoint.try_send(self, frames)
    }

    /// Writes what is queued, unless somebody is at it already. In a callback on the session's thread
    /// nothing has to be done: what is queued there goes out when the batch is over.
    pub fn flush(&self) {
        self.endpoint.run_link();
    }

    /// Whether nothing of the device waits at this end for its turn. What the device then moves
    /// without frames, within this process, it owes to the others on the link: see
    /// [`Self::charge`].
    #[must_use]
    pub fn is_clear(&self) -> bool {
        let core = self.endpoint.lock();
        let attached = core
            .devices
            .get(&self.device)
            .is_some_and(|device| device.attached && device.handle == self.handle);
        attached && core.scheduler.queued_frames(self.handle) == Ok(0)
    }

    /// Charges the device with `bytes` that went past the link: they stand in its queue of `lane`
    /// like a frame, until the scheduler lets them go. So the device gets no more than it would
    /// with frames, and the others no less; it is only served before it has paid, by as much as it
    /// moves between two looks at [`Self::is_clear`].
    pub fn charge(&self, lane: VirtualLane, bytes: u32) {
        if bytes == 0 {
            return;
        }
        let mut core = self.endpoint.lock();
        let class = u8::try_from(lane.index()).unwrap_or(u8::MAX);
        let charged = core
            .scheduler
            .enqueue(now(), self.handle, class, bytes, Queued::Charge);
        drop(core);
        // A device that is gone owes nothing.
        if charged.is_ok() {
            self.endpoint.run_link();
        }
    }

    /// Gives the credit of a frame back that was received as [`Receipt::Held`].
    pub fn release(&self, lane: VirtualLane, payload_bytes: usize) {
        let mut core = self.endpoint.lock();
        if core.session.epoch() == self.epoch
            && core
                .devices
                .get(&self.device)
                .is_some_and(|device| device.handle == self.handle)
        {
            core.session
                .release(self.device, lane, frame::blocks(payload_bytes));
        }
        drop(core);
        self.endpoint.run_link();
    }

    /// What the device was granted by this end's scheduler; `None` once it is detached.
    #[must_use]
    pub fn statistics(&self) -> Option<DeviceStatistics> {
        self.endpoint.lock().scheduler.statistics(self.handle).ok()
    }
}

#[cfg(test)]
mod tests;

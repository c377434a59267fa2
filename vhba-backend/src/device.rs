//! The device: rings on one side, lanes on the other.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use fabric_bypass::DirectTarget;
use fabric_payload::scsi::InformationUnit;
use fabric_transport::control::Windows;
use fabric_transport::frame::{BLOCK_BYTES, DeviceId};
use fabric_transport::{LaneClient, LaneSet, Receipt, VirtualLane};
use vhost_user_session::{Queue, StopReason, VirtioDevice, Waker};

use crate::control::{ControlQueue, Function};
use crate::data_path::{Commands, Done, RequestQueue};
use crate::event::{EventQueue, FEATURE_CHANGE, FEATURE_HOTPLUG};
use crate::in_flight::{InFlight, Space};
use crate::statistics::{Counters, VhbaStatistics, count};

/// Request queues of a device at most.
pub const REQUEST_QUEUES_MAX: usize = 16;
/// Largest ring, as QEMU's largest `virtqueue_size`.
const QUEUE_SIZE_MAX: u16 = 1024;
const CONTROL: usize = 0;
const EVENT: usize = 1;
/// Index of the first request queue.
const REQUESTS: usize = 2;
/// Bytes of responses and events that may be underway to the guest.
const TASK_MANAGEMENT_WINDOW_BYTES: usize = 4096;
/// Bytes of data and statuses that may be underway to the guest.
const DATA_WINDOW_BYTES: usize = 4 * 1024 * 1024;

/// What a vHBA is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VhbaConfig {
    /// Name for logs, "vhba0".
    pub name: String,
    /// Its number on the fabric.
    pub device: DeviceId,
    /// Request queues, 1 to [`REQUEST_QUEUES_MAX`]; QEMU's `num_queues` must not be more.
    pub request_queues: usize,
    /// How long the thread of a request ring looks at it before it sleeps, if the guest's commands
    /// follow each other that fast; zero: never.
    pub busy_poll: Duration,
}

impl VhbaConfig {
    /// One request queue, no polling.
    #[must_use]
    pub fn new(name: impl Into<String>, device: DeviceId) -> Self {
        Self {
            name: name.into(),
            device,
            request_queues: 1,
            busy_poll: Duration::ZERO,
        }
    }
}

/// Why a vHBA cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No request queue, or more than [`REQUEST_QUEUES_MAX`].
    #[error("vHBA {name} has {request_queues} request queues: choose 1 to {REQUEST_QUEUES_MAX}")]
    RequestQueues {
        /// The device's name.
        name: String,
        /// What was asked for.
        request_queues: usize,
    },
}

/// Receive windows of a vHBA for its [`DeviceGrant`](fabric_transport::endpoint::DeviceGrant): 4
/// KiB of task management and events, 4 MiB of data and statuses, no commands.
///
/// The director's window for storage data must hold the longest write at once, which is sent whole
/// or not at all: 16 units of 64 KiB with their headers, 16400 blocks.
#[must_use]
pub fn windows() -> Windows {
    let mut windows = [0; VirtualLane::COUNT];
    for (lane, window_bytes) in [
        (VirtualLane::TaskManagement, TASK_MANAGEMENT_WINDOW_BYTES),
        (VirtualLane::StorageData, DATA_WINDOW_BYTES),
    ] {
        if let Some(window) = windows.get_mut(lane.index()) {
            *window = u32::try_from(window_bytes / BLOCK_BYTES).unwrap_or(u32::MAX);
        }
    }
    windows
}

#[derive(Debug, Default)]
struct Lanes {
    current: Option<LaneSet>,
    /// A session has been up before: the next one follows an outage.
    seen: bool,
}

/// A vHBA: serve it with [`Session::start`](vhost_user_session::Session::start), and attach it to
/// an uplink as the client of its [`DeviceGrant`](fabric_transport::endpoint::DeviceGrant).
///
/// Both sides come and go independently; the crate's documentation says what happens to commands.
///
/// Locks, in the order in which they may be taken: a ring of this device (control before
/// requests), the ring in guest memory, then one of the others at a time.
pub struct VhbaDevice {
    pub(crate) config: VhbaConfig,
    pub(crate) control: Mutex<ControlQueue>,
    events: Mutex<EventQueue>,
    pub(crate) request_queues: Vec<Mutex<RequestQueue>>,
    pub(crate) commands: Mutex<Commands>,
    pub(crate) functions: Mutex<InFlight<Function>>,
    /// Chains to be returned when the link's batch ends.
    pub(crate) done: Mutex<Vec<Done>>,
    lanes: Mutex<Lanes>,
    /// The director, if it is in this process.
    direct: OnceLock<Arc<dyn DirectTarget>>,
    wakers: OnceLock<Vec<Waker>>,
    features: AtomicU64,
    /// A guest went away with commands underway.
    pub(crate) nexus_reset_due: AtomicBool,
    pub(crate) counters: Counters,
}

impl fmt::Debug for VhbaDevice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("VhbaDevice")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic inside was a bug of ours and ended that session; the state is whole between any two
    // statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VhbaDevice {
    /// A device with no guest and no fabric yet.
    ///
    /// # Errors
    /// [`ConfigError`] names what is out of range.
    pub fn new(config: VhbaConfig) -> Result<Arc<Self>, ConfigError> {
        let request_queues = config.request_queues;
        if !(1..=REQUEST_QUEUES_MAX).contains(&request_queues) {
            return Err(ConfigError::RequestQueues {
                name: config.name,
                request_queues,
            });
        }
        let busy_poll = config.busy_poll;
        let ring = usize::from(QUEUE_SIZE_MAX);
        let commands = InFlight::new(Space::Commands, request_queues * ring);
        Ok(Arc::new(Self {
            config,
            control: Mutex::default(),
            events: Mutex::default(),
            request_queues: std::iter::repeat_with(|| Mutex::new(RequestQueue::new(busy_poll)))
                .take(request_queues)
                .collect(),
            commands: Mutex::new(Commands {
                in_flight: commands,
                serial: 0,
            }),
            // Room for resets of our own besides a full control ring.
            functions: Mutex::new(InFlight::new(Space::TaskManagement, 2 * ring)),
            done: Mutex::default(),
            lanes: Mutex::default(),
            direct: OnceLock::new(),
            wakers: OnceLock::new(),
            features: AtomicU64::new(0),
            nexus_reset_due: AtomicBool::new(false),
            counters: Counters::default(),
        }))
    }

    /// Lets a director in this process execute commands on the threads of the rings. Called once.
    pub fn set_direct_target(&self, target: Arc<dyn DirectTarget>) {
        if self.direct.set(target).is_err() {
            tracing::error!(device = self.config.name, "device has a director already");
        }
    }

    pub(crate) fn direct_target(&self) -> Option<&Arc<dyn DirectTarget>> {
        self.direct.get()
    }

    /// What the device is.
    #[must_use]
    pub fn config(&self) -> &VhbaConfig {
        &self.config
    }

    /// Whether a director serves the device now.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        lock(&self.lanes).current.is_some()
    }

    /// Commands taken from the guest that are not answered.
    #[must_use]
    pub fn commands_in_flight(&self) -> usize {
        lock(&self.commands).in_flight.iter().count()
    }

    /// The counters now.
    #[must_use]
    pub fn statistics(&self) -> VhbaStatistics {
        self.counters.snapshot()
    }

    pub(crate) fn lanes(&self) -> Option<LaneSet> {
        lock(&self.lanes).current.clone()
    }

    pub(crate) fn wake(&self, thread: usize) {
        if let Some(waker) = self.wakers.get().and_then(|wakers| wakers.get(thread)) {
            waker.wake();
        }
    }

    fn wake_all(&self) {
        self.wakers
            .get()
            .into_iter()
            .flatten()
            .for_each(Waker::wake);
    }

    pub(crate) fn set_nexus_reset_due(&self) {
        self.nexus_reset_due.store(true, Ordering::Release);
    }

    fn features_chosen(&self) -> u64 {
        self.features.load(Ordering::Acquire)
    }
}

impl VirtioDevice for VhbaDevice {
    fn name(&self) -> String {
        self.config.name.clone()
    }

    fn queue_count(&self) -> usize {
        REQUESTS + self.config.request_queues
    }

    fn queue_size_max(&self) -> u16 {
        QUEUE_SIZE_MAX
    }

    /// HOTPLUG and CHANGE. QEMU passes CHANGE on to the guest whether it is offered or not.
    fn features(&self) -> u64 {
        FEATURE_HOTPLUG | FEATURE_CHANGE
    }

    /// One thread for the control and the event ring, one for each request ring.
    fn queues_per_thread(&self) -> Vec<u64> {
        let requests = (REQUESTS..self.queue_count()).map(|index| 1 << index);
        std::iter::once(1 << CONTROL | 1 << EVENT)
            .chain(requests)
            .collect()
    }

    fn attached(&self, wakers: Vec<Waker>) {
        // A second session for the same device would be a bug of the owner; the first one counts.
        if self.wakers.set(wakers).is_err() {
            tracing::error!(device = self.config.name, "device has a session already");
        }
    }

    fn features_acked(&self, features: u64) {
        self.features.store(features, Ordering::Release);
    }

    fn queue_started(&self, index: usize, queue: Queue) {
        match index {
            CONTROL => lock(&self.control).queue = Some(queue),
            EVENT => lock(&self.events).start(queue),
            _ => {
                if let Some(requests) = self.request_queues.get(index.saturating_sub(REQUESTS)) {
                    lock(requests).start(queue);
                }
            }
        }
    }

    fn queue_stopped(&self, index: usize, reason: StopReason) {
        match index {
            CONTROL => {
                lock(&self.control).queue = None;
                if reason == StopReason::Abandon {
                    // The functions themselves go on; nobody waits for their answers.
                    lock(&self.functions)
                        .values_mut()
                        .for_each(|function| function.asker = None);
                }
            }
            EVENT => lock(&self.events).stop(),
            _ => self.stop_requests(index.saturating_sub(REQUESTS), reason),
        }
    }

    fn kicked(&self, index: usize) {
        match index {
            CONTROL => self.serve_control(),
            EVENT => lock(&self.events).catch_up(&self.counters),
            _ => self.serve_requests(index.saturating_sub(REQUESTS), false),
        }
    }

    fn woken(&self, thread: usize) {
        match thread.checked_sub(1) {
            None => self.serve_control(),
            Some(number) => self.serve_requests(number, true),
        }
    }

    fn disconnected(&self) {
        self.features.store(0, Ordering::Release);
    }
}

impl LaneClient for VhbaDevice {
    fn up(&self, lanes: LaneSet) {
        let mut slot = lock(&self.lanes);
        let seen = std::mem::replace(&mut slot.seen, true);
        let replaced = slot.current.replace(lanes);
        drop(slot);
        if let Some(replaced) = replaced {
            self.lose(replaced.epoch());
        }
        if seen {
            lock(&self.events).miss(self.features_chosen(), &self.counters);
        }
        self.wake_all();
    }

    /// Always consumed at once: data goes straight into the guest's buffers.
    fn receive(&self, lane: VirtualLane, payload: &[u8]) -> Receipt {
        match (lane, InformationUnit::parse(payload)) {
            (VirtualLane::StorageData, Ok(InformationUnit::DataIn(data))) => self.data_in(&data),
            (VirtualLane::StorageData, Ok(InformationUnit::Status(status))) => self.status(&status),
            (
                VirtualLane::TaskManagement,
                Ok(InformationUnit::TaskManagementResponse { response, tag }),
            ) => self.function_done(response, tag),
            (VirtualLane::TaskManagement, Ok(InformationUnit::Event(event))) => {
                lock(&self.events).report(event, self.features_chosen(), &self.counters);
            }
            _ => count(&self.counters.bad_replies),
        }
        Receipt::Consumed
    }

    fn batch_end(&self) {
        let done = std::mem::take(&mut *lock(&self.done));
        self.complete(done);
    }

    fn writable(&self) {
        // Called from inside of a flush, perhaps our own: no lock may be taken here.
        self.wake_all();
    }

    fn down(&self, epoch: u16) {
        let mut slot = lock(&self.lanes);
        slot.current.take_if(|lanes| lanes.epoch() == epoch);
        drop(slot);
        // The session is over, and with it whatever its director had not finished.
        self.nexus_reset_due.store(false, Ordering::Release);
        self.lose(epoch);
        self.batch_end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fabric_payload::scsi::{
        Data, Event, ServiceResponse, Status, TRANSFER_BYTES_MAX, Tag, TaskResponse,
    };
    use fabric_transport::frame;

    fn device(request_queues: usize) -> Arc<VhbaDevice> {
        let config = VhbaConfig {
            request_queues,
            ..VhbaConfig::new("vhba0", DeviceId(7))
        };
        VhbaDevice::new(config).unwrap()
    }

    #[test]
    fn request_queues_out_of_range_are_refused() {
        for request_queues in [0, 17] {
            let config = VhbaConfig {
                request_queues,
                ..VhbaConfig::new("vhba0", DeviceId(7))
            };
            let error = VhbaDevice::new(config).unwrap_err();
            assert!(error.to_string().contains("choose 1 to 16"), "{error}");
        }
    }

    #[test]
    fn request_rings_have_threads_of_their_own() {
        assert_eq!(device(1).queues_per_thread(), [0b11, 0b100]);
        assert_eq!(
            device(3).queues_per_thread(),
            [0b11, 0b100, 0b1000, 0b1_0000]
        );
        assert_eq!(device(16).queue_count(), 18);
    }

    #[test]
    fn offers_hotplug_and_change_but_neither_inout_nor_t10_pi() {
        assert_eq!(device(1).features(), 0b110);
    }

    #[test]
    fn longest_write_fits_the_window_that_the_documentation_asks_for() {
        let units = TRANSFER_BYTES_MAX / (64 * 1024);
        let blocks = frame::blocks(64 * 1024 + 16) * u32::try_from(units).unwrap();
        assert_eq!(blocks, 16_400);
        assert_eq!(windows(), [64, 0, 65_536, 0]);
    }

    #[test]
    fn p04_replies_for_nothing_in_flight_are_counted_and_ignored() {
        let device = device(1);
        let send = |lane, unit: InformationUnit<'_>| {
            let mut bytes = Vec::new();
            unit.encode(&mut bytes);
            assert_eq!(device.receive(lane, &bytes), Receipt::Consumed);
        };
        let data = Data {
            tag: Tag(3),
            offset: 0,
            data: &[1; 512],
        };
        let status = Status {
            tag: Tag(u64::MAX),
            response: ServiceResponse::TaskComplete,
            status: 0,
            data_in_bytes: 0,
            sense: &[],
        };
        let response = TaskResponse::Complete;
        send(VirtualLane::StorageData, InformationUnit::DataIn(data));
        send(VirtualLane::StorageData, InformationUnit::Status(status));
        let function = InformationUnit::TaskManagementResponse {
            response,
            tag: Tag(1 << 63),
        };
        send(VirtualLane::TaskManagement, function);
        assert_eq!(device.statistics().unknown_replies, 3);
        // Right units on the wrong lane, units of the other direction, and noise.
        send(VirtualLane::TaskManagement, InformationUnit::Status(status));
        send(VirtualLane::StorageData, InformationUnit::DataOut(data));
        send(
            VirtualLane::Network,
            InformationUnit::Event(Event::LunAdded([0; 8])),
        );
        assert_eq!(
            device.receive(VirtualLane::StorageData, &[9; 3]),
            Receipt::Consumed
        );
        device.batch_end();
        let statistics = device.statistics();
        assert_eq!((statistics.bad_replies, statistics.unknown_replies), (4, 3));
    }
}

//! The device: rings on one side, lanes on the other.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use fabric_bypass::{DirectPort, DirectReceiver};
use fabric_payload::announcement::announcement;
use fabric_payload::ethernet::{
    ETHERNET_HEADER_BYTES, FRAME_BYTES_MAX, HEADER_BYTES, LinkState, Offloads,
};
use fabric_transport::control::Windows;
use fabric_transport::frame::{BLOCK_BYTES, DeviceId};
use fabric_transport::{FrameBuffer, LaneClient, LaneSet, Receipt, VirtualLane};
use vhost_user_session::{Queue, StopReason, VirtioDevice, Waker};

use crate::direct::Attached;
use crate::features::{self, Negotiated};
use crate::receive::{Receiver, prepare};
use crate::statistics::{Counters, ReceiveDrop, VnicStatistics};
use crate::steering;
use crate::transmit::{Context, Transmitter, Turn};

/// Queue pairs of a device at most.
pub const QUEUE_PAIRS_MAX: usize = 8;
/// Largest ring, as QEMU's largest `rx_queue_size` and `tx_queue_size`.
const QUEUE_SIZE_MAX: u16 = 1024;
/// The least MTU of virtio 1.2 section 5.1.4.1 is 68; below 1280 there is no IPv6.
const MTU_MIN: u16 = 68;
/// Bytes of frames that may be underway to the guest.
const RECEIVE_WINDOW_BYTES: usize = 1024 * 1024;
/// Link states that may be underway to this side; each takes a block.
const LINK_WINDOW_BLOCKS: u32 = 16;

/// What a vNIC is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VnicConfig {
    /// Name for logs, "vnic0".
    pub name: String,
    /// Its number on the fabric.
    pub device: DeviceId,
    /// Queue pairs, 1 to [`QUEUE_PAIRS_MAX`].
    pub queue_pairs: usize,
    /// Bytes of the longest packet inside of an Ethernet frame; at least 68.
    ///
    /// QEMU announces it to the guest with `host_mtu=`; longer frames from the guest are dropped
    /// unless they are to be segmented.
    pub mtu: u16,
    /// Station address, as in QEMU's `mac=`. Carried for the owner; frames are not filtered by it.
    pub mac: [u8; 6],
    /// What the director's port can do for the guest: a TAP with virtio-net headers everything, a
    /// plain one nothing.
    pub offloads: Offloads,
    /// How long the thread of a queue pair looks at its transmit ring before it sleeps, if the guest's
    /// frames follow each other that fast; zero: never.
    pub busy_poll: Duration,
}

impl VnicConfig {
    /// One queue pair, an MTU of 1500, no offloads, no polling.
    #[must_use]
    pub fn new(name: impl Into<String>, device: DeviceId, mac: [u8; 6]) -> Self {
        Self {
            name: name.into(),
            device,
            queue_pairs: 1,
            mtu: 1500,
            mac,
            offloads: Offloads::default(),
            busy_poll: Duration::ZERO,
        }
    }
}

/// Why a vNIC cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No queue pair, or more than [`QUEUE_PAIRS_MAX`].
    #[error("vNIC {name} has {queue_pairs} queue pairs: choose 1 to {QUEUE_PAIRS_MAX}")]
    QueuePairs {
        /// The device's name.
        name: String,
        /// What was asked for.
        queue_pairs: usize,
    },
    /// An MTU that no frame of the fabric has.
    #[error("vNIC {name} has an MTU of {mtu} bytes: choose 68 to 65535")]
    Mtu {
        /// The device's name.
        name: String,
        /// What was asked for.
        mtu: u16,
    },
    /// A group address, or none.
    #[error("vNIC {name} has a station address that is zero or a group address")]
    Mac {
        /// The device's name.
        name: String,
    },
}

/// Receive windows of a vNIC for its [`DeviceGrant`](fabric_transport::endpoint::DeviceGrant): 1
/// MiB of frames, a few link states, nothing on the storage lanes.
///
/// Credit comes back as soon as a frame stands in the guest's buffers or is dropped, so the window
/// only has to cover the link's round trip.
#[must_use]
pub fn windows() -> Windows {
    let mut windows = [0; VirtualLane::COUNT];
    if let Some(network) = windows.get_mut(VirtualLane::Network.index()) {
        *network = u32::try_from(RECEIVE_WINDOW_BYTES / BLOCK_BYTES).unwrap_or(u32::MAX);
    }
    if let Some(management) = windows.get_mut(VirtualLane::TaskManagement.index()) {
        *management = LINK_WINDOW_BLOCKS;
    }
    windows
}

/// The two rings of a queue pair, each with a lock of its own: they share nothing.
#[derive(Debug)]
struct Pair {
    receiver: Mutex<Receiver>,
    transmitter: Mutex<Transmitter>,
}

/// A vNIC: serve it with [`Session::start`](vhost_user_session::Session::start), and attach it to
/// an uplink as the client of its [`DeviceGrant`](fabric_transport::endpoint::DeviceGrant).
///
/// Both sides come and go independently. Without a front-end, frames from the fabric are dropped;
/// without a session, frames from the guest are; both are counted.
pub struct VnicDevice {
    config: VnicConfig,
    pairs: Vec<Pair>,
    attached: Mutex<Option<Arc<Attached>>>,
    /// The director, if it is in this process.
    director: OnceLock<Arc<dyn DirectPort>>,
    me: Weak<Self>,
    wakers: OnceLock<Vec<Waker>>,
    features: AtomicU64,
    mtu: AtomicU16,
    /// Bit n: the receive ring of pair n may be used. Changed under that receiver's lock.
    usable: AtomicU32,
    /// Bit n: pair n has filled buffers of this batch. Whose batch ends first tells of them all.
    touched: AtomicU32,
    /// Another host serves the same vNIC: it is announced where its rings start.
    moves: AtomicBool,
    /// An announcement has to be sent, and was not yet.
    announces: AtomicBool,
    counters: Counters,
    /// What the director of this session said last.
    port_is_up: AtomicBool,
    link_watcher: OnceLock<Box<dyn Fn(LinkNews) + Send + Sync>>,
}

/// What whoever tells the guest of its link has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkNews {
    /// [`VnicDevice::link_is_up`] may have changed.
    Changed,
    /// A driver starts: its QEMU may be another one, which takes every link for up.
    DriverStarts,
}

impl fmt::Debug for VnicDevice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("VnicDevice")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic inside was a bug of ours and ended that session; what the lock guards is a ring's
    // state, which the next start replaces.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Queue 2n receives, queue 2n+1 transmits (virtio 1.2 section 5.1.2).
const fn is_transmit(index: usize) -> bool {
    index % 2 == 1
}

const fn bit(pair: usize) -> u32 {
    1 << pair
}

impl VnicDevice {
    /// A device with no guest and no fabric yet.
    ///
    /// # Errors
    /// [`ConfigError`] names what is out of range.
    pub fn new(config: VnicConfig) -> Result<Arc<Self>, ConfigError> {
        let name = || config.name.clone();
        if !(1..=QUEUE_PAIRS_MAX).contains(&config.queue_pairs) {
            return Err(ConfigError::QueuePairs {
                name: name(),
                queue_pairs: config.queue_pairs,
            });
        }
        if config.mtu < MTU_MIN {
            return Err(ConfigError::Mtu {
                name: name(),
                mtu: config.mtu,
            });
        }
        let [first, ..] = config.mac;
        if config.mac == [0; 6] || first & 1 == 1 {
            return Err(ConfigError::Mac { name: name() });
        }
        let busy_poll = config.busy_poll;
        let pair = || Pair {
            receiver: Mutex::default(),
            transmitter: Mutex::new(Transmitter::new(busy_poll)),
        };
        Ok(Arc::new_cyclic(|me| Self {
            pairs: std::iter::repeat_with(pair)
                .take(config.queue_pairs)
                .collect(),
            attached: Mutex::new(None),
            director: OnceLock::new(),
            me: me.clone(),
            wakers: OnceLock::new(),
            features: AtomicU64::new(0),
            mtu: AtomicU16::new(config.mtu),
            usable: AtomicU32::new(0),
            touched: AtomicU32::new(0),
            moves: AtomicBool::new(false),
            announces: AtomicBool::new(false),
            counters: Counters::default(),
            port_is_up: AtomicBool::new(true),
            link_watcher: OnceLock::new(),
            config,
        }))
    }

    /// Lets frames go past the lanes of a director in this process. Called once, before the uplink
    /// starts.
    pub fn set_direct_port(&self, director: Arc<dyn DirectPort>) {
        if self.director.set(director).is_err() {
            tracing::error!(device = self.config.name, "device has a director already");
        }
    }

    /// Whether the guest has a link: a director serves the device, and has not said that the port or
    /// the vNIC is down.
    #[must_use]
    pub fn link_is_up(&self) -> bool {
        self.is_attached() && self.port_is_up.load(Ordering::Acquire)
    }

    /// Has `watcher` called with each [`LinkNews`] from now on, on the thread that brings it: it must
    /// not wait. The first watcher stays.
    ///
    /// The device itself cannot tell its guest: QEMU keeps the config space of a vhost-user network
    /// device and takes no change from the back end (`VHOST_USER_BACKEND_CONFIG_CHANGE_MSG` goes to
    /// block, GPU and other devices only). What works is QMP's `set_link`.
    pub fn watch_link(&self, watcher: Box<dyn Fn(LinkNews) + Send + Sync>) {
        if self.link_watcher.set(watcher).is_err() {
            tracing::error!(device = self.config.name, "link is watched already");
        }
    }

    fn link_news(&self, news: LinkNews) {
        if let Some(watcher) = self.link_watcher.get() {
            watcher(news);
        }
    }

    /// What the device is.
    #[must_use]
    pub fn config(&self) -> &VnicConfig {
        &self.config
    }

    /// Whether a director serves the device now.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        lock(&self.attached).is_some()
    }

    /// Receive queues that take frames now; 0 without a driver.
    #[must_use]
    pub fn receive_queues_running(&self) -> usize {
        usize::try_from(self.usable.load(Ordering::Acquire).count_ones()).unwrap_or(usize::MAX)
    }

    /// The counters now.
    #[must_use]
    pub fn statistics(&self) -> VnicStatistics {
        self.counters.snapshot()
    }

    /// Whether another host serves the same vNIC, as long as its guest moves: then the vNIC is
    /// announced to the director whenever its rings run here and were not known to.
    pub fn set_moves(&self, moves: bool) {
        self.moves.store(moves, Ordering::Release);
    }

    /// The guest is here, and whoever sends to it has to learn that.
    fn arrived(&self) {
        if self.moves.load(Ordering::Acquire) {
            self.announce();
        }
    }

    /// Sends an announcement that is due. One that the lane does not take is tried again when that
    /// changes.
    fn send_announcement(&self) {
        if !self.announces.load(Ordering::Acquire) {
            return;
        }
        let Some(attached) = lock(&self.attached).clone() else {
            return;
        };
        let frame = FrameBuffer::from_payload(&announcement(self.config.mac));
        let mut frames = vec![(VirtualLane::Network, frame)];
        if attached.queue(&mut frames).is_ok() {
            attached.lanes.flush();
            self.announces.store(false, Ordering::Release);
            self.counters.announced();
            tracing::info!(device = self.config.name, "vNIC is announced");
        }
    }

    fn negotiated(&self) -> Negotiated {
        Negotiated(self.features.load(Ordering::Acquire))
    }

    fn wake(&self, pair: usize) {
        if let Some(waker) = self.wakers.get().and_then(|wakers| wakers.get(pair)) {
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

    fn transmit(&self, pair: usize, even_if_stalled: bool) {
        let Some(rings) = self.pairs.get(pair) else {
            return;
        };
        loop {
            let mut transmitter = lock(&rings.transmitter);
            if transmitter.is_stalled() && !even_if_stalled {
                return;
            }
            let context = Context {
                counters: &self.counters,
                attached: lock(&self.attached).clone(),
                negotiated: self.negotiated(),
                mtu: self.mtu.load(Ordering::Relaxed),
            };
            match transmitter.run(&context) {
                Turn::Stalled => return,
                Turn::More => return self.wake(pair),
                Turn::Empty => {}
            }
            let polled = transmitter.emptied();
            drop(transmitter);
            if polled.is_some_and(|(queue, longest)| queue.poll(longest)) {
                continue;
            }
            if let Some(attached) = &context.attached {
                lock(&rings.transmitter).pay(attached);
            }
            return;
        }
    }

    /// Puts payloads into the guest's buffers, or drops and counts them.
    fn receive_all(&self, payloads: &mut dyn Iterator<Item = &[u8]>) {
        let negotiated = self.negotiated();
        let offloads = negotiated.receive_offloads();
        let mut next = || {
            for payload in &mut *payloads {
                match prepare(payload, offloads) {
                    Ok(incoming) => return Some(incoming),
                    Err(reason) => self.counters.receive_dropped(reason),
                }
            }
            None
        };
        let mut waiting = next();
        while let Some(incoming) = waiting.take() {
            let usable = self.usable.load(Ordering::Acquire);
            let pair = steering::pair_of(&incoming.frame, usable);
            let Some((pair, rings)) = pair.and_then(|pair| Some((pair, self.pairs.get(pair)?)))
            else {
                self.counters.receive_dropped(ReceiveDrop::NotRunning);
                waiting = next();
                continue;
            };
            let mut of_this_ring = || {
                let incoming = next()?;
                if steering::pair_of(&incoming.frame, usable) == Some(pair) {
                    return Some(incoming);
                }
                waiting = Some(incoming);
                None
            };
            let mut receiver = lock(&rings.receiver);
            let filled = receiver.fill(incoming, &mut of_this_ring, negotiated, &self.counters);
            match filled {
                Ok(()) => {
                    self.touched.fetch_or(bit(pair), Ordering::Relaxed);
                }
                Err(incoming) => {
                    // Each such round takes one away.
                    self.usable.fetch_and(!bit(pair), Ordering::Release);
                    waiting = Some(incoming);
                }
            }
        }
    }

    /// Tells the guest of what it got.
    fn tell(&self) {
        let touched = self.touched.swap(0, Ordering::Relaxed);
        for (pair, rings) in self.pairs.iter().enumerate() {
            if touched & bit(pair) != 0 {
                lock(&rings.receiver).tell();
            }
        }
    }
}

impl DirectReceiver for VnicDevice {
    fn lane_frames(&self, epoch: u16) -> Option<u64> {
        let attached = lock(&self.attached);
        let attached = attached.as_ref().filter(|it| it.lanes.epoch() == epoch)?;
        Some(attached.received.load(Ordering::Acquire))
    }

    fn take(&self, payloads: &mut dyn Iterator<Item = &[u8]>) {
        self.receive_all(payloads);
        self.tell();
    }
}

impl VirtioDevice for VnicDevice {
    fn name(&self) -> String {
        self.config.name.clone()
    }

    fn queue_count(&self) -> usize {
        2 * self.config.queue_pairs
    }

    fn queue_size_max(&self) -> u16 {
        QUEUE_SIZE_MAX
    }

    fn features(&self) -> u64 {
        features::offered(self.config.queue_pairs, self.config.offloads)
    }

    fn queue_count_reported(&self) -> u64 {
        u64::try_from(self.config.queue_pairs).unwrap_or(1)
    }

    fn mtu(&self) -> Option<u16> {
        Some(self.config.mtu)
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        (0..self.config.queue_pairs)
            .map(|pair| 0b11 << (2 * pair))
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
        self.link_news(LinkNews::DriverStarts);
    }

    fn mtu_set(&self, mtu: u16) {
        self.mtu.store(mtu.min(self.config.mtu), Ordering::Relaxed);
    }

    fn can_announce(&self) -> bool {
        true
    }

    fn announce(&self) {
        self.announces.store(true, Ordering::Release);
        self.wake(0);
    }

    fn queue_started(&self, index: usize, queue: Queue) {
        let Some(pair) = self.pairs.get(index / 2) else {
            return;
        };
        if is_transmit(index) {
            lock(&pair.transmitter).start(queue);
        } else {
            lock(&pair.receiver).start(queue);
        }
    }

    fn queue_stopped(&self, index: usize, _reason: StopReason) {
        let Some(pair) = self.pairs.get(index / 2) else {
            return;
        };
        if is_transmit(index) {
            lock(&pair.transmitter).stop();
        } else {
            let mut receiver = lock(&pair.receiver);
            receiver.stop();
            self.usable.fetch_and(!bit(index / 2), Ordering::Release);
        }
    }

    fn kicked(&self, index: usize) {
        if is_transmit(index) {
            self.transmit(index / 2, false);
        } else if let Some(pair) = self.pairs.get(index / 2) {
            // Comes when the ring starts or is enabled again; later kicks cost little.
            let receiver = lock(&pair.receiver);
            if receiver.is_usable() && self.usable.fetch_or(bit(index / 2), Ordering::AcqRel) == 0 {
                self.arrived();
            }
        }
    }

    fn woken(&self, thread: usize) {
        if thread == 0 {
            self.send_announcement();
        }
        self.transmit(thread, true);
    }

    fn disconnected(&self) {
        self.announces.store(false, Ordering::Release);
        self.features.store(0, Ordering::Release);
        self.mtu.store(self.config.mtu, Ordering::Relaxed);
    }
}

impl LaneClient for VnicDevice {
    fn up(&self, lanes: LaneSet) {
        self.port_is_up.store(true, Ordering::Release);
        let director = self.director.get().cloned();
        if let Some(director) = &director {
            director.attach(self.me.clone());
        }
        *lock(&self.attached) = Some(Arc::new(Attached::new(lanes, director)));
        if self.receive_queues_running() > 0 {
            self.arrived();
        }
        self.wake_all();
        self.link_news(LinkNews::Changed);
    }

    /// Always consumed at once: a guest that takes nothing must not hold the lane's credit.
    fn receive(&self, lane: VirtualLane, payload: &[u8]) -> Receipt {
        match lane {
            VirtualLane::Network => {
                self.receive_all(&mut std::iter::once(payload));
                if let Some(attached) = &*lock(&self.attached) {
                    attached.received.fetch_add(1, Ordering::Release);
                }
            }
            VirtualLane::TaskManagement if let Some(state) = LinkState::read(payload) => {
                self.port_is_up
                    .store(state == LinkState::Up, Ordering::Release);
                self.link_news(LinkNews::Changed);
            }
            _ => self.counters.receive_dropped(ReceiveDrop::Malformed),
        }
        Receipt::Consumed
    }

    fn batch_end(&self) {
        self.tell();
    }

    fn writable(&self) {
        // Called from inside of a flush, perhaps our own: no lock may be taken here.
        self.wake_all();
    }

    fn down(&self, epoch: u16) {
        let mut attached = lock(&self.attached);
        if attached
            .as_ref()
            .is_some_and(|it| it.lanes.epoch() == epoch)
        {
            *attached = None;
            drop(attached);
            // A stalled ring goes on, into the counter of frames without a session.
            self.wake_all();
            self.link_news(LinkNews::Changed);
        }
    }
}

const _: () = {
    // A frame must fit into the window whole, or it could never be sent.
    assert!(HEADER_BYTES + FRAME_BYTES_MAX < RECEIVE_WINDOW_BYTES);
    assert!(ETHERNET_HEADER_BYTES == 14);
    assert!(2 * QUEUE_PAIRS_MAX <= vhost_user_session::device::QUEUES_MAX);
};

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];

    #[test]
    fn configuration_out_of_range_is_refused_by_name() {
        let good = VnicConfig::new("vnic0", DeviceId(1), MAC);
        for queue_pairs in [0, 9] {
            let error = VnicDevice::new(VnicConfig {
                queue_pairs,
                ..good.clone()
            })
            .unwrap_err();
            assert!(matches!(error, ConfigError::QueuePairs { .. }), "{error}");
        }
        let error = VnicDevice::new(VnicConfig {
            mtu: 67,
            ..good.clone()
        })
        .unwrap_err();
        assert!(matches!(error, ConfigError::Mtu { mtu: 67, .. }), "{error}");
        for mac in [[0; 6], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
            let error = VnicDevice::new(VnicConfig {
                mac,
                ..good.clone()
            })
            .unwrap_err();
            assert!(matches!(error, ConfigError::Mac { .. }), "{error}");
        }
        assert!(VnicDevice::new(good).is_ok());
    }

    #[test]
    fn rings_of_a_pair_share_a_thread() {
        let config = VnicConfig {
            queue_pairs: 3,
            ..VnicConfig::new("vnic0", DeviceId(1), MAC)
        };
        let device = VnicDevice::new(config).unwrap();
        assert_eq!(device.queues_per_thread(), [0b11, 0b1100, 0b11_0000]);
        assert_eq!(
            (device.queue_count(), device.queue_count_reported()),
            (6, 3)
        );
    }

    #[test]
    fn frames_for_a_guest_that_is_not_there_are_consumed_and_counted() {
        let device = VnicDevice::new(VnicConfig::new("vnic0", DeviceId(1), MAC)).unwrap();
        assert_eq!(
            device.receive(VirtualLane::Network, &[0; 80]),
            Receipt::Consumed
        );
        assert_eq!(
            device.receive(VirtualLane::StorageData, &[0; 80]),
            Receipt::Consumed
        );
        device.batch_end();
        let receive = device.statistics().receive;
        assert_eq!(receive.dropped(ReceiveDrop::NotRunning), 1);
        assert_eq!(receive.dropped(ReceiveDrop::Malformed), 1);
    }

    #[test]
    fn link_states_are_told_to_whoever_watches() {
        let device = VnicDevice::new(VnicConfig::new("vnic0", DeviceId(1), MAC)).unwrap();
        let (sender, heard) = std::sync::mpsc::channel();
        device.watch_link(Box::new(move |news| sender.send(news).unwrap()));
        // Without lanes there is no link, whatever a director said.
        assert!(!device.link_is_up());
        let lane = VirtualLane::TaskManagement;
        for state in [LinkState::Down, LinkState::Up] {
            assert_eq!(device.receive(lane, &state.bytes()), Receipt::Consumed);
            assert_eq!(
                device.port_is_up.load(Ordering::Acquire),
                state == LinkState::Up
            );
        }
        assert_eq!(device.receive(lane, &[9; 8]), Receipt::Consumed);
        device.features_acked(0);
        let news: Vec<_> = heard.try_iter().collect();
        assert_eq!(
            news,
            [LinkNews::Changed, LinkNews::Changed, LinkNews::DriverStarts]
        );
        let receive = device.statistics().receive;
        assert_eq!(receive.dropped(ReceiveDrop::Malformed), 1);
    }

    #[test]
    fn windows_are_for_frames_and_link_states() {
        assert_eq!(windows(), [16, 0, 0, 16_384]);
    }
}

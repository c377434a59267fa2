//! Two endpoints joined by a link of any kind, and devices that only count.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use fabric_transport::endpoint::{DeviceGrant, Endpoint, NewPath};
use fabric_transport::link::{Link, LinkAddress, LinkOptions, Listener, connect};
use fabric_transport::session::{Established, Role, SessionConfig};
use fabric_transport::{
    DeviceId, Directory, EndpointConfig, FrameBuffer, LaneClient, LaneSet, Receipt, SendRefused,
    VirtualLane,
};
use qos::{DeviceRate, LinkBudget};

/// What the frames carry.
static PAYLOAD: [u8; 68 * 1024] = [0x5a; 68 * 1024];

pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Credit of a device: 1 MiB underway.
const WINDOW_BLOCKS: u32 = 16 * 1024;

/// A device of the sending end.
#[derive(Default)]
pub(super) struct Sender {
    told: AtomicU64,
    /// Of all senders of a run.
    waker: Arc<(Mutex<()>, Condvar)>,
    state: Mutex<(Option<LaneSet>, u64)>,
    changed: Condvar,
}

impl Sender {
    fn change(&self, change: impl FnOnce(&mut (Option<LaneSet>, u64))) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    fn wait(&self, ready: impl Fn(&(Option<LaneSet>, u64)) -> bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !ready(&state) {
            let waited = self.changed.wait_timeout(state, PATIENCE);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// How often each sender was told that it has room.
    pub(super) fn rooms(senders: &[Arc<Self>]) -> u64 {
        senders
            .iter()
            .map(|sender| sender.told.load(Ordering::SeqCst))
            .sum()
    }

    /// Waits until one of them is told so again.
    pub(super) fn wait_room(senders: &[Arc<Self>], before: u64) {
        let Some(waker) = senders.first().map(|sender| &sender.waker) else {
            return;
        };
        let mut guard = waker.0.lock().unwrap_or_else(PoisonError::into_inner);
        let patience = Duration::from_millis(50);
        while Self::rooms(senders) == before {
            let (next, timeout) = waker
                .1
                .wait_timeout(guard, patience)
                .unwrap_or_else(PoisonError::into_inner);
            guard = next;
            if timeout.timed_out() {
                return;
            }
        }
    }

    /// Queues one batch, if the lane takes it; returns the lanes, to be flushed.
    pub(super) fn queue_batch(&self, payload_bytes: usize) -> Option<LaneSet> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let lanes = state.0.clone()?;
        drop(state);
        // Copied, as a ring's thread copies it from guest memory.
        let payload = PAYLOAD.get(..payload_bytes).unwrap_or_default();
        let frame = || (VirtualLane::Network, FrameBuffer::from_payload(payload));
        let mut frames = std::iter::repeat_with(frame)
            .take(batch(payload_bytes))
            .collect();
        lanes.queue(&mut frames).ok().map(|()| lanes)
    }

    /// Sends frames of `payload_bytes` on `lane` as fast as they are taken, until `stop`.
    pub(super) fn saturate(&self, lane: VirtualLane, payload_bytes: usize, stop: &AtomicBool) {
        self.wait(|(lanes, _)| lanes.is_some());
        let lanes = self
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .clone();
        let Some(lanes) = lanes else { return };
        let mut frames = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            while frames.len() < batch(payload_bytes) {
                frames.push((lane, FrameBuffer::zeroed(payload_bytes)));
            }
            let writable = self.state.lock().unwrap_or_else(PoisonError::into_inner).1;
            match lanes.try_send(&mut frames) {
                Ok(()) => {}
                Err(SendRefused::Blocked) => {
                    self.wait(|(lanes, now)| *now != writable || lanes.is_none())
                }
                Err(SendRefused::Down | SendRefused::TooLarge) => return,
            }
        }
    }
}

/// Frames that a ring's thread would take at once.
fn batch(payload_bytes: usize) -> usize {
    (64 * 1024 / payload_bytes).clamp(1, 32)
}

impl LaneClient for Sender {
    fn up(&self, lanes: LaneSet) {
        self.change(|state| state.0 = Some(lanes));
    }
    fn receive(&self, _: VirtualLane, _: &[u8]) -> Receipt {
        Receipt::Consumed
    }
    fn writable(&self) {
        self.change(|state| state.1 += 1);
        self.told.fetch_add(1, Ordering::SeqCst);
        drop(self.waker.0.lock());
        self.waker.1.notify_all();
    }
    fn down(&self, _: u16) {
        self.change(|state| state.0 = None);
    }
}

/// A device of the receiving end.
#[derive(Default)]
pub(super) struct Counter {
    /// Frame bytes that arrived, headers included.
    pub(super) bytes: AtomicU64,
}

impl LaneClient for Counter {
    fn up(&self, _: LaneSet) {}
    fn receive(&self, _: VirtualLane, payload: &[u8]) -> Receipt {
        let bytes = fabric_transport::frame::HEADER_BYTES + payload.len();
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        Receipt::Consumed
    }
    fn writable(&self) {}
    fn down(&self, _: u16) {}
}

struct Fixed(HashMap<DeviceId, DeviceGrant>);

impl Fixed {
    /// Devices from 1 on.
    fn new(clients: impl Iterator<Item = (Arc<dyn LaneClient>, DeviceRate)>) -> Self {
        let grants = clients.map(|(client, rate)| DeviceGrant {
            vm: None,
            rate,
            windows: [0, 0, WINDOW_BLOCKS, WINDOW_BLOCKS],
            client,
        });
        Self((1..).map(DeviceId).zip(grants).collect())
    }
}

impl Directory for Fixed {
    fn active(&self, endpoint: &Arc<Endpoint>) {
        for (id, grant) in &self.0 {
            if let Err(error) = endpoint.attach(*id, 0, grant.clone()) {
                crate::say(&format!("device {id} cannot be attached: {error}"));
            }
        }
    }
    fn attach(&self, _: &str, device: DeviceId, _: u32) -> Result<DeviceGrant, String> {
        self.0
            .get(&device)
            .cloned()
            .ok_or_else(|| "unknown device".to_owned())
    }
    fn refused(&self, device: DeviceId, reason: &str) {
        crate::say(&format!("device {device} was refused: {reason}"));
    }
}

/// One end of a session; its thread ends when this is dropped.
struct End(Option<(Arc<Endpoint>, JoinHandle<()>)>);

impl End {
    fn start(role: Role, budget: &LinkBudget, link: Link, devices: Fixed) -> Result<Self> {
        let config = EndpointConfig {
            role,
            session: SessionConfig {
                silence_max: PATIENCE,
                ..SessionConfig::new("bench", 1)
            },
            budget: budget.clone(),
        };
        let name = format!("bench-{role:?}").to_lowercase();
        let established = Established::without_handshake("bench", 1);
        let path = NewPath::only(link);
        let running = Endpoint::start(config, established, path, Arc::new(devices), &name)?;
        Ok(Self(Some(running)))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if let Some((endpoint, thread)) = self.0.take() {
            endpoint.close("bench is over");
            // A panic there was reported by the thread itself.
            drop(thread.join());
        }
    }
}

/// The end that sends, as the host does.
pub(super) struct SendingEnd {
    pub(super) senders: Vec<Arc<Sender>>,
    end: End,
}

impl SendingEnd {
    /// Devices 1 to n, each with one of `rates`, on a link of `budget`.
    pub(super) fn start(link: Link, budget: &LinkBudget, rates: &[DeviceRate]) -> Result<Self> {
        let waker: Arc<(Mutex<()>, Condvar)> = Arc::default();
        let sender = || {
            Arc::new(Sender {
                waker: waker.clone(),
                ..Sender::default()
            })
        };
        let senders: Vec<_> = rates.iter().map(|_| sender()).collect();
        let clients = senders.iter().map(|sender| sender.clone() as _);
        let devices = Fixed::new(clients.zip(rates.iter().copied()));
        Ok(Self {
            senders,
            end: End::start(Role::Host, budget, link, devices)?,
        })
    }
}

/// The end that receives, as the director does.
pub(super) struct ReceivingEnd {
    counters: Vec<Arc<Counter>>,
    _end: End,
}

impl ReceivingEnd {
    /// Devices 1 to `devices`.
    pub(super) fn start(link: Link, budget: &LinkBudget, devices: usize) -> Result<Self> {
        let counters: Vec<_> = (0..devices).map(|_| Arc::new(Counter::default())).collect();
        let clients = counters.iter().map(|counter| counter.clone() as _);
        let devices = Fixed::new(clients.zip(std::iter::repeat(DeviceRate::best_effort())));
        Ok(Self {
            counters,
            _end: End::start(Role::Director, budget, link, devices)?,
        })
    }
}

/// What joins two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkKind {
    /// Loopback TCP, with or without CRC32C.
    Tcp { checksummed: bool },
    /// Shared memory.
    SharedMemory,
}

impl LinkKind {
    /// Both ends of a new link.
    pub(super) fn pair(self) -> Result<(Link, Link)> {
        let folder = tempfile::tempdir()?;
        let address = match self {
            Self::Tcp { .. } => "tcp:127.0.0.1:0".parse()?,
            Self::SharedMemory => LinkAddress::SharedMemory(folder.path().join("link")),
        };
        let options = LinkOptions::default();
        let listener = Listener::bind(&address, &options)?;
        let mut near = connect(&listener.address()?, PATIENCE, &options)?;
        let mut far = listener.accept()?.context("no connection arrived")?;
        if let Self::Tcp { checksummed } = self {
            (near.checksummed, far.checksummed) = (checksummed, checksummed);
        }
        Ok((near, far))
    }
}

/// Both ends in this process.
pub(super) struct Lanes {
    sending: SendingEnd,
    receiving: ReceivingEnd,
}

impl Lanes {
    /// Joins two ends by a link of `kind`; every device sends at most at its rate on a link of
    /// `budget`.
    pub(super) fn start(kind: LinkKind, budget: &LinkBudget, rates: &[DeviceRate]) -> Result<Self> {
        let (near, far) = kind.pair()?;
        let receiving = ReceivingEnd::start(far, budget, rates.len())?;
        Ok(Self {
            sending: SendingEnd::start(near, budget, rates)?,
            receiving,
        })
    }

    /// Switches the sending scheduler's record of decisions.
    pub(super) fn set_recording(&self, on: bool) {
        if let Some((endpoint, _)) = &self.sending.end.0 {
            endpoint.set_recording(on);
        }
    }

    pub(super) fn senders(&self) -> &[Arc<Sender>] {
        &self.sending.senders
    }

    /// Bytes that arrived so far, by device.
    pub(super) fn bytes(&self) -> Vec<u64> {
        let counters = self.receiving.counters.iter();
        counters
            .map(|counter| counter.bytes.load(Ordering::Relaxed))
            .collect()
    }
}

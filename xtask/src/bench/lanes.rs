//! Two endpoints joined by a link of any kind, and devices that only count.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use fabric_transport::endpoint::{DeviceGrant, Endpoint, NewPath};
use fabric_transport::link::{
    Link, LinkAddress, LinkOptions, Listener, TlsConfig, TlsFiles, connect,
};
use fabric_transport::session::{Established, Role, SessionConfig};
use fabric_transport::{
    DeviceId, Directory, EndpointConfig, FrameBuffer, LaneClient, LaneSet, Receipt, SendRefused,
    VirtualLane,
};
use qos::{DeviceRate, LinkBudget};

/// What the frames carry.
static PAYLOAD: [u8; 68 * 1024] = [0x5a; 68 * 1024];

pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Credit of all devices together, in blocks of 64 bytes: 8 MiB, twice what may be underway on a
/// link. More would only wait in queues, out of the caches.
const WINDOWS_BLOCKS: u32 = 128 * 1024;
/// And of one: 4 KiB to 1 MiB.
const WINDOW_BLOCKS: (u32, u32) = (64, 16 * 1024);

/// A device of the sending end.
#[derive(Default)]
pub(super) struct Sender {
    /// How many of them there are.
    devices: usize,
    feed: Mutex<Option<Feed>>,
    state: Mutex<SenderState>,
    changed: Condvar,
}

/// What a sender sends whenever its lane has room.
struct Feed {
    payload_bytes: usize,
    /// What the lane refused last.
    frames: Vec<(VirtualLane, FrameBuffer)>,
}

#[derive(Default)]
struct SenderState {
    lanes: Option<LaneSet>,
    /// How often it was told that it may go on.
    writable: u64,
    /// A thread waits for a change: to wake nobody is a system call too.
    waits: bool,
}

impl Sender {
    fn change(&self, change: impl FnOnce(&mut SenderState)) {
        let mut state = self.state();
        change(&mut state);
        if std::mem::take(&mut state.waits) {
            self.changed.notify_all();
        }
    }

    fn state(&self) -> MutexGuard<'_, SenderState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False if it never is.
    fn wait(&self, ready: impl Fn(&SenderState) -> bool) -> bool {
        let waited = self
            .changed
            .wait_timeout_while(self.state(), PATIENCE, |state| {
                state.waits = !ready(state);
                state.waits
            });
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// From now on sends frames of so many bytes whenever its lane has room, or no more. On the
    /// thread that makes the room: two processors are for the two ends.
    pub(super) fn feed(&self, payload_bytes: Option<usize>) {
        let feed = payload_bytes.map(|payload_bytes| Feed {
            payload_bytes,
            frames: Vec::new(),
        });
        *self.feed.lock().unwrap_or_else(PoisonError::into_inner) = feed;
        self.fill();
    }

    fn fill(&self) {
        let mut feed = self.feed.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Feed {
            payload_bytes,
            frames,
        }) = feed.as_mut()
        else {
            return;
        };
        let Some(lanes) = self.lanes() else { return };
        let payload = PAYLOAD.get(..*payload_bytes).unwrap_or_default();
        loop {
            while frames.len() < batch(*payload_bytes, self.devices) {
                // Copied, as a ring's thread copies it from guest memory.
                let frame = FrameBuffer::from_payload(payload);
                frames.push((VirtualLane::Network, frame));
            }
            if lanes.queue(frames).is_err() {
                break;
            }
        }
        drop(feed);
        lanes.flush();
    }

    fn lanes(&self) -> Option<LaneSet> {
        self.state().lanes.clone()
    }

    /// Sends frames of `payload_bytes` on `lane` as fast as they are taken, until `stop`.
    pub(super) fn saturate(&self, lane: VirtualLane, payload_bytes: usize, stop: &AtomicBool) {
        if !self.wait(|state| state.lanes.is_some()) {
            return;
        }
        let Some(lanes) = self.lanes() else { return };
        let mut frames = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            while frames.len() < batch(payload_bytes, self.devices) {
                frames.push((lane, FrameBuffer::zeroed(payload_bytes)));
            }
            let writable = self.state().writable;
            match lanes.try_send(&mut frames) {
                Ok(()) => {}
                Err(SendRefused::Blocked) => {
                    // One that waits long is offered its frames again.
                    let _in_time =
                        self.wait(|state| state.writable != writable || state.lanes.is_none());
                }
                Err(SendRefused::Down | SendRefused::TooLarge) => return,
            }
        }
    }
}

/// Credit of one of `devices`, in blocks.
fn window_blocks(devices: usize) -> u32 {
    let devices = u32::try_from(devices).unwrap_or(u32::MAX).max(1);
    (WINDOWS_BLOCKS / devices).clamp(WINDOW_BLOCKS.0, WINDOW_BLOCKS.1)
}

/// Frames that the ring's thread of one of `devices` takes at once: a quarter of its credit.
fn batch(payload_bytes: usize, devices: usize) -> usize {
    let bytes = usize::try_from(window_blocks(devices) * 64 / 4).unwrap_or(usize::MAX);
    (bytes / payload_bytes).clamp(1, 32)
}

impl LaneClient for Sender {
    fn up(&self, lanes: LaneSet) {
        self.change(|state| state.lanes = Some(lanes));
        self.fill();
    }
    fn receive(&self, _: VirtualLane, _: &[u8]) -> Receipt {
        Receipt::Consumed
    }
    fn writable(&self) {
        self.change(|state| state.writable += 1);
        self.fill();
    }
    fn down(&self, _: u16) {
        self.change(|state| state.lanes = None);
    }
}

/// A device of the receiving end.
#[derive(Default)]
pub(super) struct Counter {
    /// It reads nothing: its buffers stay taken.
    stalled: AtomicBool,
    /// Frame bytes that arrived, headers included.
    pub(super) bytes: AtomicU64,
}

impl LaneClient for Counter {
    fn up(&self, _: LaneSet) {}
    fn receive(&self, _: VirtualLane, payload: &[u8]) -> Receipt {
        let bytes = fabric_transport::frame::HEADER_BYTES + payload.len();
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if self.stalled.load(Ordering::Relaxed) {
            return Receipt::Held;
        }
        Receipt::Consumed
    }
    fn writable(&self) {}
    fn down(&self, _: u16) {}
}

struct Fixed(HashMap<DeviceId, DeviceGrant>);

impl Fixed {
    /// Devices from 1 on.
    fn new(clients: impl ExactSizeIterator<Item = (Arc<dyn LaneClient>, DeviceRate)>) -> Self {
        let window = window_blocks(clients.len());
        let grants = clients.map(|(client, rate)| DeviceGrant {
            vm: None,
            rate,
            windows: [0, 0, window, window],
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
        let sender = || {
            Arc::new(Sender {
                devices: rates.len(),
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
        let clients = counters
            .iter()
            .map(|counter| (counter.clone() as _, DeviceRate::best_effort()));
        let devices = Fixed::new(clients);
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
    /// TLS 1.3 with certificates at both ends, on loopback TCP.
    Tls,
    /// Shared memory.
    SharedMemory,
}

impl LinkKind {
    /// Both ends of a new link.
    pub(super) fn pair(self) -> Result<(Link, Link)> {
        let folder = tempfile::tempdir()?;
        let address = match self {
            Self::Tcp { .. } => "tcp:127.0.0.1:0".parse()?,
            Self::Tls => "tls:127.0.0.1:0".parse()?,
            Self::SharedMemory => LinkAddress::SharedMemory(folder.path().join("link")),
        };
        let options = match self {
            Self::Tls => certified(folder.path())?,
            _ => LinkOptions::default(),
        };
        let listener = Listener::bind(&address, &options)?;
        let mut near = connect(&listener.address()?, PATIENCE, &options)?;
        let mut far = listener.accept()?.context("no connection arrived")?;
        if let Self::Tcp { checksummed } = self {
            (near.checksummed, far.checksummed) = (checksummed, checksummed);
        }
        Ok((near, far))
    }
}

/// What both ends of a TLS link show, from a CA in `folder`.
fn certified(folder: &Path) -> Result<LinkOptions> {
    pki::init(folder)?;
    pki::issue(folder, &pki::Order::new("bench", 1))?;
    let config = TlsConfig::load(TlsFiles {
        ca: folder.join("ca.pem"),
        cert: folder.join("bench.pem"),
        key: folder.join("bench.key"),
    })?;
    Ok(LinkOptions {
        tls: Some(Arc::new(config)),
        ..LinkOptions::default()
    })
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

    /// Waits until every device is attached.
    ///
    /// # Errors
    /// One is not.
    pub(super) fn wait_up(&self) -> Result<()> {
        for sender in self.senders() {
            anyhow::ensure!(
                sender.wait(|state| state.lanes.is_some()),
                "a device is not up"
            );
        }
        Ok(())
    }

    /// From now on the last device reads nothing.
    pub(super) fn stall_the_last(&self) {
        if let Some(counter) = self.receiving.counters.last() {
            counter.stalled.store(true, Ordering::Relaxed);
        }
    }

    /// Bytes that arrived so far.
    pub(super) fn bytes_total(&self) -> u64 {
        self.bytes().iter().sum()
    }

    /// Bytes that arrived so far, by device.
    pub(super) fn bytes(&self) -> Vec<u64> {
        let counters = self.receiving.counters.iter();
        counters
            .map(|counter| counter.bytes.load(Ordering::Relaxed))
            .collect()
    }
}

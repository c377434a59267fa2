//! The two sides of a back end under test: a fabric session over an in-process link with a
//! director that records and answers, and a vhost-user session in a temporary directory.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fabric_transport::control::Windows;
use fabric_transport::endpoint::{DeviceGrant, Endpoint, NewPath};
use fabric_transport::frame::{DeviceId, FrameBuffer};
use fabric_transport::link::in_process_pair;
use fabric_transport::session::{Established, Role, SessionConfig as FabricSession};
use fabric_transport::{Directory, EndpointConfig, LaneClient, LaneSet, Receipt, VirtualLane};
use qos::{BitRate, DeviceRate, LinkBudget};
use vhost_user_session::{Session, SessionConfig, SessionHandle, SocketSource, VirtioDevice};

/// Longest wait for what should happen at once.
const PATIENCE: Duration = Duration::from_secs(20);

/// The number of the only device.
pub(crate) const DEVICE: DeviceId = DeviceId(0x2a);

/// Something that is waited for.
#[derive(Default)]
struct Watched<T> {
    value: Mutex<T>,
    changed: Condvar,
}

impl<T> Watched<T> {
    fn change<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let result = change(&mut self.value.lock().unwrap());
        self.changed.notify_all();
        result
    }

    fn wait<R>(&self, what: &str, mut ready: impl FnMut(&mut T) -> Option<R>) -> R {
        let end = Instant::now() + PATIENCE;
        let mut value = self.value.lock().unwrap();
        loop {
            if let Some(result) = ready(&mut value) {
                return result;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{what} did not happen in time");
            value = self.changed.wait_timeout(value, left).unwrap().0;
        }
    }
}

/// Passes everything on to the device, and tells the test when it is attached.
struct Host {
    client: Arc<dyn LaneClient>,
    up: Watched<bool>,
}

impl LaneClient for Host {
    fn up(&self, lanes: LaneSet) {
        self.client.up(lanes);
        self.up.change(|up| *up = true);
    }
    fn receive(&self, lane: VirtualLane, payload: &[u8]) -> Receipt {
        self.client.receive(lane, payload)
    }
    fn batch_end(&self) {
        self.client.batch_end();
    }
    fn writable(&self) {
        self.client.writable();
    }
    fn down(&self, epoch: u16) {
        self.client.down(epoch);
        self.up.change(|up| *up = false);
    }
}

/// The director's end of the device: records frames, sends what the test says.
#[derive(Default)]
struct Director {
    lanes: Watched<Option<LaneSet>>,
    received: Watched<VecDeque<(VirtualLane, Vec<u8>)>>,
    held: Mutex<Vec<(VirtualLane, usize)>>,
    holds: AtomicBool,
}

impl LaneClient for Director {
    fn up(&self, lanes: LaneSet) {
        self.lanes.change(|slot| *slot = Some(lanes));
    }
    fn receive(&self, lane: VirtualLane, payload: &[u8]) -> Receipt {
        self.received
            .change(|frames| frames.push_back((lane, payload.to_vec())));
        if self.holds.load(Ordering::SeqCst) {
            self.held.lock().unwrap().push((lane, payload.len()));
            return Receipt::Held;
        }
        Receipt::Consumed
    }
    fn writable(&self) {}
    fn down(&self, _epoch: u16) {
        self.lanes.change(|slot| *slot = None);
    }
}

struct OneDevice {
    grant: DeviceGrant,
}

impl Directory for OneDevice {
    fn active(&self, endpoint: &Arc<Endpoint>) {
        endpoint.attach(DEVICE, 1, self.grant.clone()).unwrap();
    }
    fn attach(&self, _: &str, device: DeviceId, _: u32) -> Result<DeviceGrant, String> {
        assert_eq!(device, DEVICE);
        Ok(self.grant.clone())
    }
    fn refused(&self, device: DeviceId, reason: &str) {
        panic!("{device} was refused: {reason}");
    }
}

/// A fabric session with one device attached.
pub(crate) struct Fabric {
    host: Arc<Host>,
    director: Arc<Director>,
    endpoints: [Arc<Endpoint>; 2],
    threads: Vec<JoinHandle<()>>,
}

impl Fabric {
    /// Brings a session up and attaches `client`; `director_windows` is what the director takes.
    pub(crate) fn up(
        epoch: u16,
        client: Arc<dyn LaneClient>,
        host_windows: Windows,
        director_windows: Windows,
    ) -> Self {
        let host = Arc::new(Host {
            client,
            up: Watched::default(),
        });
        let director = Arc::new(Director::default());
        let rate = DeviceRate::best_effort();
        let (near, far) = in_process_pair("test");
        let start = |role, name: &str, link, grant| {
            let session = FabricSession {
                silence_max: PATIENCE,
                ..FabricSession::new(name, 1)
            };
            let budget = LinkBudget::new(name, BitRate::from_bits_per_second(10_000_000_000));
            let config = EndpointConfig {
                role,
                session,
                budget,
            };
            let established = Established::without_handshake("peer", epoch);
            let directory = Arc::new(OneDevice { grant });
            Endpoint::start(config, established, NewPath::only(link), directory, name).unwrap()
        };
        let grant = DeviceGrant {
            vm: None,
            rate,
            windows: director_windows,
            client: director.clone(),
        };
        let (far, far_thread) = start(Role::Director, "director", far, grant);
        let grant = DeviceGrant {
            vm: None,
            rate,
            windows: host_windows,
            client: host.clone(),
        };
        let (near, near_thread) = start(Role::Host, "host", near, grant);
        host.up.wait("attaching", |up| up.then_some(()));
        director
            .lanes
            .wait("attaching", |lanes| lanes.as_ref().map(|_| ()));
        Self {
            host,
            director,
            endpoints: [near, far],
            threads: vec![near_thread, far_thread],
        }
    }

    /// The next frame that the director received.
    pub(crate) fn receive(&self) -> (VirtualLane, Vec<u8>) {
        self.director.received.wait("a frame", VecDeque::pop_front)
    }

    /// Frames that the director received and the test did not take yet.
    pub(crate) fn received_untaken(&self) -> usize {
        self.director.received.value.lock().unwrap().len()
    }

    /// Sends one frame from the director.
    pub(crate) fn send(&self, lane: VirtualLane, payload: &[u8]) {
        self.send_all([(lane, payload.to_vec())]);
    }

    /// Sends frames from the director as one batch.
    pub(crate) fn send_all(&self, frames: impl IntoIterator<Item = (VirtualLane, Vec<u8>)>) {
        let frames = frames.into_iter();
        let mut frames: Vec<_> = frames
            .map(|(lane, payload)| (lane, FrameBuffer::from_payload(&payload)))
            .collect();
        let lanes = self.director.lanes.value.lock().unwrap().clone().unwrap();
        lanes.try_send(&mut frames).unwrap();
    }

    /// From now on the director keeps the credit of what it receives.
    pub(crate) fn hold(&self) {
        self.director.holds.store(true, Ordering::SeqCst);
    }

    /// Gives all credit back, and keeps none from now on.
    pub(crate) fn release(&self) {
        self.director.holds.store(false, Ordering::SeqCst);
        let lanes = self.director.lanes.value.lock().unwrap().clone().unwrap();
        for (lane, payload_bytes) in self.director.held.lock().unwrap().drain(..) {
            lanes.release(lane, payload_bytes);
        }
    }

    /// Ends the session, as the director's end would; returns when the device knows.
    pub(crate) fn down(self) {
        let [_, director] = &self.endpoints;
        director.close("test ends it");
        for thread in self.threads {
            thread.join().unwrap();
        }
        assert!(!*self.host.up.value.lock().unwrap());
    }
}

/// A vhost-user session of a device; it ends when dropped.
pub(crate) struct Served {
    _session: SessionHandle,
    /// Where front-ends connect.
    pub(crate) path: PathBuf,
    _directory: tempfile::TempDir,
}

/// Serves `device` on a socket of its own.
pub(crate) fn serve(device: Arc<dyn VirtioDevice>) -> Served {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let session = Session::start(device, SessionConfig::new(SocketSource::path(&path))).unwrap();
    Served {
        _session: session,
        path,
        _directory: directory,
    }
}

/// Waits until `ready` says so, for what nothing announces.
pub(crate) fn until(what: &str, mut ready: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !ready() {
        assert!(Instant::now() < end, "{what} did not happen in time");
        std::thread::yield_now();
    }
}

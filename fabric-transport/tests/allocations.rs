//! A frame costs no allocation once a session has settled: its memory is that of an earlier one (F11).
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::alloc::System;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fabric_transport::endpoint::{DeviceGrant, Endpoint, EndpointConfig, NewPath, session_config};
use fabric_transport::link::{Link, LinkOptions, Listener, connect};
use fabric_transport::session::{Established, Role};
use fabric_transport::{
    DeviceId, Directory, FrameBuffer, LaneClient, LaneSet, Receipt, VirtualLane,
};
use qos::{DeviceRate, LinkBudget};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const PAYLOAD_BYTES: usize = 1_500;
const BATCH_FRAMES: usize = 16;
const FRAMES: u64 = 100_000;

/// Sends whenever its lane has room.
#[derive(Default)]
struct Greedy {
    lanes: Mutex<Option<LaneSet>>,
    frames: Mutex<Vec<(VirtualLane, FrameBuffer)>>,
}

impl LaneClient for Greedy {
    fn up(&self, lanes: LaneSet) {
        *self.lanes.lock().unwrap() = Some(lanes);
        self.writable();
    }
    fn receive(&self, _: VirtualLane, _: &[u8]) -> Receipt {
        Receipt::Consumed
    }
    fn writable(&self) {
        let Some(lanes) = self.lanes.lock().unwrap().clone() else {
            return;
        };
        let mut frames = self.frames.lock().unwrap();
        loop {
            while frames.len() < BATCH_FRAMES {
                frames.push((VirtualLane::Network, FrameBuffer::zeroed(PAYLOAD_BYTES)));
            }
            if lanes.queue(&mut frames).is_err() {
                break;
            }
        }
        drop(frames);
        lanes.flush();
    }
    fn down(&self, _: u16) {}
}

#[derive(Default)]
struct Counter {
    frames: AtomicU64,
    batches: AtomicU64,
}

impl Counter {
    fn counts(&self) -> (u64, u64) {
        let load = |count: &AtomicU64| count.load(Ordering::SeqCst);
        (load(&self.frames), load(&self.batches))
    }
}

impl LaneClient for Counter {
    fn up(&self, _: LaneSet) {}
    fn receive(&self, _: VirtualLane, _: &[u8]) -> Receipt {
        self.frames.fetch_add(1, Ordering::SeqCst);
        Receipt::Consumed
    }
    fn batch_end(&self) {
        self.batches.fetch_add(1, Ordering::SeqCst);
    }
    fn writable(&self) {}
    fn down(&self, _: u16) {}
}

struct Only(Arc<dyn LaneClient>);

impl Only {
    fn grant(&self) -> DeviceGrant {
        DeviceGrant {
            rate: DeviceRate::best_effort(),
            vm: None,
            windows: [0, 0, 0, 4096],
            client: self.0.clone(),
        }
    }
}

impl Directory for Only {
    fn active(&self, endpoint: &Arc<Endpoint>) {
        endpoint.attach(DeviceId(1), 0, self.grant()).unwrap();
    }
    fn attach(&self, _: &str, _: DeviceId, _: u32) -> Result<DeviceGrant, String> {
        Ok(self.grant())
    }
}

fn start(role: Role, link: Link, client: Arc<dyn LaneClient>) -> Arc<Endpoint> {
    let config = EndpointConfig {
        role,
        session: session_config("test"),
        budget: LinkBudget::new("test link", "400G".parse().unwrap()),
    };
    let established = Established::without_handshake("test", 1);
    let directory = Arc::new(Only(client));
    let (endpoint, _thread) =
        Endpoint::start(config, established, NewPath::only(link), directory, "test").unwrap();
    endpoint
}

#[test]
fn settled_session_allocates_for_batches_alone() {
    let options = LinkOptions::default();
    let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap(), &options).unwrap();
    let near = connect(
        &listener.address().unwrap(),
        Duration::from_secs(5),
        &options,
    )
    .unwrap();
    let far = listener.accept().unwrap().unwrap();
    let counter = Arc::new(Counter::default());
    let director = start(Role::Director, far, counter.clone());
    let host = start(Role::Host, near, Arc::new(Greedy::default()));
    let wait = |frames: u64| {
        while counter.counts().0 < frames {
            std::thread::yield_now();
        }
    };
    wait(FRAMES);
    let region = Region::new(ALLOCATOR);
    let before = counter.counts();
    wait(before.0 + FRAMES);
    let change = region.change();
    let after = counter.counts();
    let (frames, batches) = (after.0 - before.0, after.1 - before.1);
    host.close("test is over");
    director.close("test is over");
    let allocations = u64::try_from(change.allocations + change.reallocations).unwrap();
    // How many frames a batch has is the machine's: three lists for each at this end. The other has
    // them for what is acknowledged, 64 KiB at a time or more often.
    assert!(
        allocations <= 8 * batches + frames / 10,
        "{allocations} allocations for {frames} frames in {batches} batches: {change:?}"
    );
    // And none of them is a frame's memory.
    let bytes = u64::try_from(change.bytes_allocated).unwrap();
    assert!(
        bytes < frames * 300,
        "{bytes} bytes allocated for {frames} frames"
    );
    println!("{allocations} allocations, {bytes} bytes, {frames} frames, {batches} batches");
}

//! A small device that echoes, and what the tests do with it.
#![expect(dead_code, reason = "each test binary uses its part")]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a failed expectation is a failed test"
)]

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use orimono_tests::front_end::{Buffer, Guest, GuestOptions, PATIENCE};
use vhost_user_session::{
    Chain, ChainError, Queue, Session, SessionConfig, SessionHandle, SessionState, SocketSource,
    StopReason, VirtioDevice, Waker,
};

/// A feature bit of the echo device's own, so that negotiation has something to lose.
pub(crate) const ECHO_FEATURE: u64 = 1 << 5;

/// What the session told the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    Features(u64),
    Started(usize),
    Stopped(usize, StopReason),
    Reset,
    Disconnected,
}

/// Returns the readable bytes of each chain in its writable part.
pub(crate) struct Echo {
    pub(crate) queue_count: usize,
    pub(crate) queues: Mutex<Vec<Option<Queue>>>,
    pub(crate) told: Mutex<Vec<Told>>,
    told_more: Condvar,
    /// Keep chains instead of returning them.
    pub(crate) hold: AtomicBool,
    pub(crate) held: Mutex<Vec<Chain>>,
    pub(crate) held_more: Condvar,
    /// Leave the rings to the test.
    pub(crate) manual: AtomicBool,
    pub(crate) panic: AtomicBool,
    pub(crate) woken: AtomicU64,
    pub(crate) wakers: Mutex<Vec<Waker>>,
    /// Chains answered per turn.
    pub(crate) quota: usize,
}

impl Echo {
    pub(crate) fn new(queue_count: usize) -> Arc<Self> {
        Arc::new(Self {
            queue_count,
            queues: Mutex::new(vec![None; queue_count]),
            told: Mutex::default(),
            told_more: Condvar::new(),
            hold: AtomicBool::new(false),
            held: Mutex::default(),
            held_more: Condvar::new(),
            manual: AtomicBool::new(false),
            panic: AtomicBool::new(false),
            woken: AtomicU64::new(0),
            wakers: Mutex::default(),
            quota: 16,
        })
    }

    fn tell(&self, what: Told) {
        self.told.lock().unwrap().push(what);
        self.told_more.notify_all();
    }

    /// Waits until the device was told `what`, `times` times in all.
    pub(crate) fn wait_told(&self, what: Told, times: usize) {
        let told = self.told.lock().unwrap();
        let (told, _) = self
            .told_more
            .wait_timeout_while(told, PATIENCE, |told| {
                told.iter().filter(|one| **one == what).count() < times
            })
            .unwrap();
        let count = told.iter().filter(|one| **one == what).count();
        assert!(
            count >= times,
            "{what:?} came {count} times, not {times}: {told:?}"
        );
    }

    /// Waits until `count` chains are held.
    pub(crate) fn wait_held(&self, count: usize) {
        let held = self.held.lock().unwrap();
        let (held, _) = self
            .held_more
            .wait_timeout_while(held, PATIENCE, |held| held.len() < count)
            .unwrap();
        assert_eq!(held.len(), count);
    }

    /// Answers all chains held, from the caller's thread, as a fabric link would.
    pub(crate) fn release(&self) {
        for chain in std::mem::take(&mut *self.held.lock().unwrap()) {
            let written = echo(&chain);
            chain.complete(written);
        }
    }

    pub(crate) fn queue(&self, index: usize) -> Option<Queue> {
        self.queues.lock().unwrap().get(index).cloned().flatten()
    }

    fn serve(&self, index: usize) {
        let Some(queue) = self.queue(index) else {
            return;
        };
        let more = queue.process(self.quota, |ring, chain| {
            assert!(!self.panic.load(Ordering::Relaxed), "told to panic");
            if self.hold.load(Ordering::Relaxed) {
                self.held.lock().unwrap().push(chain);
                self.held_more.notify_all();
            } else {
                let written = echo(&chain);
                ring.add_used(chain, written);
            }
        });
        if more {
            self.wakers.lock().unwrap()[index].wake();
        }
    }
}

fn echo(chain: &Chain) -> u32 {
    let bytes = chain
        .readable_bytes()
        .min(chain.writable_bytes())
        .min(1 << 20);
    let mut data = vec![0; usize::try_from(bytes).unwrap()];
    chain.read_at(0, &mut data).unwrap();
    match chain.write_at(0, &data) {
        // The front end left meanwhile: nobody waits for the answer.
        Ok(()) | Err(ChainError::Stopped) => u32::try_from(bytes).unwrap(),
        Err(error) => panic!("{error}"),
    }
}

impl VirtioDevice for Echo {
    fn name(&self) -> String {
        "echo".to_owned()
    }

    fn queue_count(&self) -> usize {
        self.queue_count
    }

    fn queue_size_max(&self) -> u16 {
        256
    }

    fn features(&self) -> u64 {
        ECHO_FEATURE
    }

    fn mtu(&self) -> Option<u16> {
        Some(9000)
    }

    fn attached(&self, wakers: Vec<Waker>) {
        *self.wakers.lock().unwrap() = wakers;
    }

    fn features_acked(&self, features: u64) {
        self.tell(Told::Features(features));
    }

    fn queue_started(&self, index: usize, queue: Queue) {
        self.queues.lock().unwrap()[index] = Some(queue);
        self.tell(Told::Started(index));
    }

    fn queue_stopped(&self, index: usize, reason: StopReason) {
        self.queues.lock().unwrap()[index] = None;
        self.tell(Told::Stopped(index, reason));
    }

    fn kicked(&self, index: usize) {
        self.serve(index);
    }

    fn woken(&self, thread: usize) {
        self.woken.fetch_add(1, Ordering::Relaxed);
        // One thread per queue.
        self.serve(thread);
    }

    fn reset(&self) {
        self.tell(Told::Reset);
    }

    fn disconnected(&self) {
        self.tell(Told::Disconnected);
    }
}

/// A device on a socket of its own.
pub(crate) struct Lab {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) path: PathBuf,
    pub(crate) device: Arc<Echo>,
    pub(crate) session: SessionHandle,
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self::with(Echo::new(2), |_config| {})
    }

    pub(crate) fn with(device: Arc<Echo>, configure: impl FnOnce(&mut SessionConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("echo.sock");
        let mut config = SessionConfig::new(SocketSource::path(&path));
        configure(&mut config);
        let session = Session::start(Arc::clone(&device) as Arc<dyn VirtioDevice>, config).unwrap();
        Self {
            folder,
            path,
            device,
            session,
        }
    }

    /// A guest with both rings running.
    pub(crate) fn guest(&self) -> Guest {
        self.guest_with(|_options| {})
    }

    pub(crate) fn guest_with(&self, configure: impl FnOnce(&mut GuestOptions)) -> Guest {
        let mut options = GuestOptions {
            queues: self.device.queue_count,
            ..Default::default()
        };
        configure(&mut options);
        Guest::connect(&self.path, &options).expect("a well-behaved guest is served")
    }

    /// Waits until the session is over and says why it was refused.
    pub(crate) fn refusal(&self) -> String {
        assert!(
            self.session.wait_for(SessionState::Waiting, PATIENCE),
            "session goes on"
        );
        self.session.last_refusal().expect("a reason was recorded")
    }

    /// Shows that a new, well-behaved guest is served.
    pub(crate) fn assert_serves(&self) {
        let mut guest = self.guest();
        assert_echo(&mut guest, 0, b"still here");
        drop(guest);
        assert!(self.session.wait_for(SessionState::Waiting, PATIENCE));
    }
}

/// One request through ring `index` comes back echoed.
pub(crate) fn assert_echo(guest: &mut Guest, index: usize, data: &[u8]) {
    let bytes = u32::try_from(data.len()).unwrap();
    let source = guest.ram.allocate(u64::from(bytes), 8).unwrap();
    let target = guest.ram.allocate(u64::from(bytes), 8).unwrap();
    guest.ram.write(source, data).unwrap();
    let used = guest
        .queue(index)
        .unwrap()
        .transact(&[
            Buffer::readable(source, bytes),
            Buffer::writable(target, bytes),
        ])
        .unwrap();
    assert_eq!(used.bytes, bytes);
    assert_eq!(guest.ram.read(target, data.len()).unwrap(), data);
}

/// Open descriptors of this process.
pub(crate) fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Resident memory of this process, in KiB.
pub(crate) fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Runs `act` and fails if it takes longer than `limit`.
pub(crate) fn within<T>(limit: Duration, act: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = act();
    assert!(start.elapsed() <= limit, "took {:?}", start.elapsed());
    result
}

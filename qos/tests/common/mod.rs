//! A scheduler whose every grant is held against the definition of what was promised.
//!
//! The definitions are slow and plain: leaky buckets in bit-nanoseconds, sums of bytes, queues as
//! lists. Nothing here knows the scheduler's clocks or heaps.
#![allow(
    dead_code,
    clippy::allow_attributes,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "each test file uses another part of this; a failed expectation is a failed test"
)]

use std::collections::VecDeque;

use qos::{
    BitRate, CLASSES_MAX, DeviceHandle, DeviceRate, Grant, LinkBudget, MonotonicTime, Scheduler,
};

/// Rounding of clocks to whole nanoseconds, in the bounds.
const SLACK_NANOS: u64 = 2_000;

pub(crate) fn rate(text: &str) -> BitRate {
    text.parse().expect("tests write rates correctly")
}

pub(crate) fn at(nanos: u64) -> MonotonicTime {
    MonotonicTime::from_nanos(nanos)
}

pub(crate) fn budget(link: BitRate) -> LinkBudget {
    LinkBudget::with_reservable("link", link, link).expect("all of a link can be reservable")
}

/// A small generator (xorshift64*), so that a scenario is one number.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16) % bound.max(1)
    }
}

/// A bucket that leaks at a rate: its level is bits x 10^9.
struct Leaky {
    level: u128,
    seen: u64,
}

impl Leaky {
    fn leak(&mut self, now: u64, rate: BitRate) -> u128 {
        let leaked = u128::from(rate.bits_per_second()) * u128::from(now - self.seen);
        self.level = self.level.saturating_sub(leaked);
        self.seen = now;
        self.level
    }

    fn pour(&mut self, bytes: u32) {
        self.level += u128::from(bytes) * 8_000_000_000;
    }
}

pub(crate) struct Peer {
    pub(crate) handle: DeviceHandle,
    pub(crate) rate: DeviceRate,
    pub(crate) bytes_max: u32,
    classes_used: [bool; CLASSES_MAX],
    queues: [VecDeque<(u64, u32)>; CLASSES_MAX],
    backlogged_since: u64,
    bytes_since: u64,
    peak: Leaky,
    pub(crate) granted_bytes: u64,
    pub(crate) granted_frames: u64,
}

impl Peer {
    pub(crate) fn backlogged(&self) -> bool {
        self.queues.iter().any(|queue| !queue.is_empty())
    }

    /// The bound of the module's promises 1 and 2 for the frame that completes `bytes`.
    fn bound(&self, bytes: u64, link: BitRate, link_bytes_max: u32) -> u64 {
        let mixed = self.classes_used.iter().filter(|used| **used).count() > 1;
        let excess = u64::from(self.bytes_max) * if mixed { 2 } else { 1 };
        self.backlogged_since
            .saturating_add(self.rate.cir.transmission_nanos(bytes + excess))
            .saturating_add(link.transmission_nanos(link_bytes_max.into()))
            .saturating_add(SLACK_NANOS)
    }
}

/// Which promises hold in a scenario.
#[derive(Clone, Copy)]
pub(crate) struct Promises {
    /// Rates stay, and the caller is on time.
    pub(crate) guarantee: bool,
    /// The caller is on time: grants are paced at the link's rate frame by frame.
    pub(crate) pace: bool,
}

pub(crate) struct Checked {
    pub(crate) scheduler: Scheduler<u64>,
    pub(crate) peers: Vec<Peer>,
    pub(crate) now: u64,
    promises: Promises,
    link: BitRate,
    link_bytes_max: u32,
    link_bucket: Leaky,
    next_item: u64,
    pub(crate) departures: u64,
}

impl Checked {
    pub(crate) fn new(link: BitRate, promises: Promises) -> Self {
        Self {
            scheduler: Scheduler::new(budget(link)),
            peers: Vec::new(),
            now: 0,
            promises,
            link,
            link_bytes_max: 0,
            link_bucket: Leaky { level: 0, seen: 0 },
            next_item: 0,
            departures: 0,
        }
    }

    /// Adds a device; its PBS must be explicit where it has a peak, so that both know it.
    pub(crate) fn add(&mut self, rate: DeviceRate, bytes_max: u32) -> usize {
        assert!(rate.pir.is_none() || rate.pbs_bytes > 0);
        let handle = self
            .scheduler
            .add_device(at(self.now), rate)
            .expect("device fits");
        self.link_bytes_max = self.link_bytes_max.max(bytes_max);
        self.peers.push(Peer {
            handle,
            rate,
            bytes_max,
            classes_used: [false; CLASSES_MAX],
            queues: Default::default(),
            backlogged_since: 0,
            bytes_since: 0,
            peak: Leaky { level: 0, seen: 0 },
            granted_bytes: 0,
            granted_frames: 0,
        });
        self.peers.len() - 1
    }

    pub(crate) fn enqueue(&mut self, peer: usize, class: u8, bytes: u32) {
        let now = at(self.now);
        let item = self.next_item;
        self.next_item += 1;
        let peer = &mut self.peers[peer];
        assert!(bytes <= peer.bytes_max);
        if !peer.backlogged() {
            peer.backlogged_since = self.now;
            peer.bytes_since = 0;
            peer.classes_used = [false; CLASSES_MAX];
        }
        peer.classes_used[usize::from(class)] = true;
        peer.queues[usize::from(class)].push_back((item, bytes));
        self.scheduler
            .enqueue(now, peer.handle, class, bytes, item)
            .expect("queue has room");
    }

    /// Changes the device's rate in the scheduler and in the definition.
    pub(crate) fn set_rate(&mut self, peer: usize, rate: DeviceRate) {
        let now = self.now;
        let peer = &mut self.peers[peer];
        self.scheduler
            .set_rate(at(now), peer.handle, rate)
            .expect("rate fits");
        match peer.rate.pir {
            Some(old) => peer.peak.leak(now, old),
            None => {
                peer.peak.level = 0;
                0
            }
        };
        peer.peak.seen = now;
        peer.rate = rate;
    }

    /// One dequeue at the present time, checked.
    pub(crate) fn dequeue(&mut self) -> Option<Grant<u64>> {
        let grant = self.scheduler.dequeue(at(self.now));
        match &grant {
            Some(grant) => self.check_grant(grant),
            None => self.check_idle(),
        }
        grant
    }

    fn check_grant(&mut self, grant: &Grant<u64>) {
        let now = self.now;
        self.departures += 1;
        let level = self.link_bucket.leak(now, self.link);
        if self.promises.pace {
            // The exact end of a frame lies within the nanosecond it is rounded up to.
            assert!(
                level <= u128::from(self.link.bits_per_second()),
                "link exceeded at {now}"
            );
        }
        self.link_bucket.pour(grant.bytes);
        let peer = self
            .peers
            .iter_mut()
            .find(|peer| peer.handle == grant.device)
            .expect("granted devices exist");
        let (class, queue) = peer
            .queues
            .iter_mut()
            .enumerate()
            .find(|(_, queue)| !queue.is_empty())
            .expect("granted devices are backlogged");
        assert_eq!(usize::from(grant.class), class, "a lower class went first");
        assert_eq!(
            queue.pop_front(),
            Some((grant.item, grant.bytes)),
            "frames changed places"
        );
        peer.granted_bytes += u64::from(grant.bytes);
        peer.granted_frames += 1;
        peer.bytes_since += u64::from(grant.bytes);
        if let Some(pir) = peer.rate.pir {
            let level = peer.peak.leak(now, pir);
            let burst = u128::from(peer.rate.pbs_bytes) * 8_000_000_000;
            assert!(
                level <= burst,
                "peak exceeded by more than a frame at {now}"
            );
            peer.peak.pour(grant.bytes);
        }
        if self.promises.guarantee && !peer.rate.cir.is_zero() {
            let departed = now + self.link.transmission_nanos(grant.bytes.into());
            let bound = peer.bound(peer.bytes_since, self.link, self.link_bytes_max);
            assert!(departed <= bound, "{} ns late at {now}", departed - bound);
        }
    }

    /// Nothing was granted: the link is busy, or everybody with frames is over the peak.
    fn check_idle(&mut self) {
        let now = self.now;
        if self.link_bucket.leak(now, self.link) > 0 {
            return;
        }
        for (index, peer) in self.peers.iter_mut().enumerate() {
            if !peer.backlogged() {
                continue;
            }
            let pir = peer
                .rate
                .pir
                .unwrap_or_else(|| panic!("link idles before device {index}"));
            let level = peer.peak.leak(now, pir);
            let burst = u128::from(peer.rate.pbs_bytes) * 8_000_000_000;
            // The scheduler rounds to the safe side, by less than two nanoseconds of the peak.
            let rounding = 514 * u128::from(pir.bits_per_second());
            assert!(
                level + rounding > burst,
                "link idles before unlimited device {index}"
            );
        }
    }

    /// Dequeues at every wake, `lateness()` late, until `until`.
    pub(crate) fn run_until(&mut self, until: u64, mut lateness: impl FnMut() -> u64) {
        loop {
            while self.dequeue().is_some() {}
            let wake = self.scheduler.next_wake(at(self.now));
            assert_eq!(wake.is_some(), self.peers.iter().any(Peer::backlogged));
            let Some(wake) = wake
                .map(MonotonicTime::as_nanos)
                .filter(|wake| *wake <= until)
            else {
                break;
            };
            assert!(
                wake > self.now,
                "a dequeue that failed would have succeeded"
            );
            let late = lateness();
            self.now = (wake + late).min(until);
            if self.now >= wake {
                let granted = self.dequeue();
                assert!(granted.is_some(), "woke at {wake} for nothing");
            }
        }
        self.now = self.now.max(until);
    }

    /// Frames that should have left by now have.
    pub(crate) fn check_left(&self) {
        for peer in self
            .peers
            .iter()
            .filter(|peer| peer.backlogged() && !peer.rate.cir.is_zero())
        {
            let bytes = peer.bytes_since + u64::from(peer.bytes_max);
            let bound = peer.bound(bytes, self.link, self.link_bytes_max);
            assert!(
                self.now <= bound,
                "a frame is still here {} ns late",
                self.now - bound
            );
        }
    }
}

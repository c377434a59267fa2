//! What drives the schedulers of a port: a lock, a timer, and whoever comes by.
//!
//! ```text
//! any thread:     with(enqueue) ─> run ─> poll ... ─> carry out     (whoever finds nobody at it)
//! port's thread:  timer rings   ─> run
//! ```
//!
//! The same arrangement as that of a fabric link (`fabric_transport::endpoint`): who brings work
//! carries out what may leave, also that of others; what has to wait is granted by the port's
//! thread when the timer rings. One thread at a time carries out, so what leaves keeps the order
//! of the scheduler.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use fabric_transport::endpoint::now;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use qos::MonotonicTime;

/// How much later than a scheduler asks it may be asked again. It makes up for late callers, and
/// on a fast port a wake-up a frame would cost more than the frame.
pub(crate) const WAKE_SLACK: Duration = Duration::from_micros(50);

/// Grants that are taken under one lock.
const BATCH_GRANTS_MAX: usize = 64;
/// Batches that one thread carries out for all others; what is left is the port's thread's.
const RUN_BATCHES_MAX: usize = 8;
/// How often one thread looks again because others brought more: it has a link to look after.
const RUN_ROUNDS_MAX: usize = 4;

/// What lets things go over time. Pure: the time is an argument.
pub(crate) trait Paced {
    /// What may leave.
    type Granted;

    /// The next that may leave now.
    fn poll(&mut self, now: MonotonicTime) -> Option<Self::Granted>;

    /// When [`Self::poll`] will have something, if nothing else happens before.
    fn next_wake(&self, now: MonotonicTime) -> Option<MonotonicTime>;
}

/// A [`Paced`] queue with what drives it.
pub(crate) struct PortScheduler<Q> {
    state: Mutex<State<Q>>,
    /// Held while grants are carried out; only ever tried.
    carrying: Mutex<()>,
    /// Somebody found another one carrying: that one must look again before it leaves.
    more: AtomicBool,
    timer: TimerFd,
}

struct State<Q> {
    queue: Q,
    /// When the timer rings, or rang last.
    timer_at: MonotonicTime,
}

impl<Q> std::fmt::Debug for PortScheduler<Q> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PortScheduler").finish_non_exhaustive()
    }
}

impl<Q: Paced> PortScheduler<Q> {
    /// A driver of `queue`.
    ///
    /// # Errors
    /// The kernel has no descriptors left.
    pub(crate) fn new(queue: Q) -> nix::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let state = State {
            queue,
            timer_at: MonotonicTime::ZERO,
        };
        Ok(Self {
            state: Mutex::new(state),
            carrying: Mutex::default(),
            more: AtomicBool::new(false),
            timer: TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?,
        })
    }

    /// Calls `change` with the queue and the present time, under the lock. Whatever it makes
    /// eligible leaves with the next [`Self::run`].
    pub(crate) fn with<R>(&self, change: impl FnOnce(&mut Q, MonotonicTime) -> R) -> R {
        let mut state = self.lock();
        change(&mut state.queue, now())
    }

    /// Hands what may leave to `carry`, in batches, unless another thread is at it: then that one
    /// will. Every caller gives the same `carry`; no lock of the queue is held while it runs.
    pub(crate) fn run(&self, carry: impl Fn(Vec<Q::Granted>)) {
        self.more.store(true, Ordering::SeqCst);
        for _ in 0..RUN_ROUNDS_MAX {
            let carrying = match self.carrying.try_lock() {
                Ok(carrying) => carrying,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            if self.more.swap(false, Ordering::SeqCst) {
                self.carry_out(&carry);
            }
            drop(carrying);
            if !self.more.load(Ordering::SeqCst) {
                return;
            }
        }
        self.ring_now();
    }

    /// What the port's thread polls: readable when [`Self::run`] has something to do.
    pub(crate) fn timer(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    /// The port's thread was woken: the next ring is a new one.
    pub(crate) fn acknowledge_timer(&self) {
        // It does not block; without a ring there is nothing to take note of.
        if let Err(error) = self.timer.wait()
            && error != nix::Error::EAGAIN
        {
            tracing::error!(%error, "timer of a port cannot be read");
        }
    }

    fn carry_out(&self, carry: &impl Fn(Vec<Q::Granted>)) {
        for _ in 0..RUN_BATCHES_MAX {
            let granted = self.pick();
            if granted.is_empty() {
                return;
            }
            carry(granted);
        }
        self.ring_now();
    }

    /// Leaves what is left to the port's thread.
    fn ring_now(&self) {
        let now = now();
        self.ring_at(&mut self.lock(), now, now);
    }

    fn pick(&self) -> Vec<Q::Granted> {
        let now = now();
        let mut state = self.lock();
        let mut granted = Vec::new();
        while granted.len() < BATCH_GRANTS_MAX {
            match state.queue.poll(now) {
                Some(one) => granted.push(one),
                None => {
                    if let Some(time) = state.queue.next_wake(now) {
                        let time = time.max(now.saturating_add(WAKE_SLACK));
                        self.ring_at(&mut state, now, time);
                    }
                    break;
                }
            }
        }
        granted
    }

    fn ring_at(&self, state: &mut State<Q>, now: MonotonicTime, time: MonotonicTime) {
        if state.timer_at > now && state.timer_at <= time {
            return;
        }
        state.timer_at = time;
        // Time zero would stop the timer; the clock of a running machine is beyond it.
        let time = Duration::from_nanos(time.as_nanos().max(1));
        let expiration = Expiration::OneShot(TimeSpec::from_duration(time));
        let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME;
        if let Err(error) = self.timer.set(expiration, flags) {
            tracing::error!(%error, "timer of a port cannot be set");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<Q>> {
        // Whole between any two statements: going on is safe.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use qos::{DeviceHandle, DeviceRate, LinkBudget, Scheduler};

    struct Numbers {
        scheduler: Scheduler<u32>,
        device: DeviceHandle,
    }

    impl Paced for Numbers {
        type Granted = u32;
        fn poll(&mut self, now: MonotonicTime) -> Option<u32> {
            self.scheduler.dequeue(now).map(|grant| grant.item)
        }
        fn next_wake(&self, now: MonotonicTime) -> Option<MonotonicTime> {
            self.scheduler.next_wake(now)
        }
    }

    fn numbers(rate: &str) -> PortScheduler<Numbers> {
        let budget = LinkBudget::new("ethernet-port 10/1", rate.parse().unwrap());
        let mut scheduler = Scheduler::new(budget);
        let device = scheduler
            .add_device(now(), DeviceRate::best_effort())
            .unwrap();
        PortScheduler::new(Numbers { scheduler, device }).unwrap()
    }

    /// What has to wait is granted when the timer rings, all of it and in order.
    #[test]
    fn timer_rings_until_everything_has_left() {
        const COUNT: u32 = 40;
        let port = numbers("100M");
        let left = Mutex::new(Vec::new());
        let run = || port.run(|batch| left.lock().unwrap().extend(batch));
        for number in 0..COUNT {
            port.with(|numbers, now| {
                let device = numbers.device;
                numbers.scheduler.enqueue(now, device, 0, 10_000, number)
            })
            .unwrap();
        }
        run();
        let at_once = left.lock().unwrap().len();
        assert!(at_once < 40, "{at_once} of 400 kB at 100 Mb/s");
        while left.lock().unwrap().len() < 40 {
            let mut fds = [PollFd::new(port.timer(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut fds, PollTimeout::from(20_000_u16)), Ok(1));
            port.acknowledge_timer();
            run();
        }
        assert_eq!(left.into_inner().unwrap(), (0..COUNT).collect::<Vec<_>>());
    }

    /// Whoever carries out, nothing is lost, nothing leaves twice, and the order stays.
    #[test]
    fn many_threads_lose_and_reorder_nothing() {
        const THREADS: u32 = 4;
        const EACH: u32 = 3000;
        let port = numbers("20G");
        let left = Mutex::new(Vec::new());
        let run = || port.run(|batch| left.lock().unwrap().extend(batch));
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (port, run) = (&port, &run);
                scope.spawn(move || {
                    for number in 0..EACH {
                        port.with(|numbers, now| {
                            let device = numbers.device;
                            let number = thread * EACH + number;
                            numbers.scheduler.enqueue(now, device, 0, 1500, number)
                        })
                        .unwrap();
                        run();
                    }
                });
            }
            let all = usize::try_from(THREADS * EACH).unwrap();
            while left.lock().unwrap().len() < all {
                let mut fds = [PollFd::new(port.timer(), PollFlags::POLLIN)];
                // Whoever brought the last one may have carried it out: then nothing rings.
                poll(&mut fds, PollTimeout::from(10_u8)).unwrap();
                port.acknowledge_timer();
                run();
            }
        });
        let left = left.into_inner().unwrap();
        for thread in 0..THREADS {
            let own = thread * EACH..(thread + 1) * EACH;
            assert!(
                left.iter()
                    .copied()
                    .filter(|number| own.contains(number))
                    .eq(own.clone())
            );
        }
    }

    /// One thread does not work for all others without end: the rest is the port's thread's.
    #[test]
    fn rest_of_a_long_queue_is_left_to_the_ports_thread() {
        let port = numbers("1T");
        let count = u32::try_from(2 * RUN_BATCHES_MAX * BATCH_GRANTS_MAX).unwrap();
        for number in 0..count {
            port.with(|numbers, now| {
                let device = numbers.device;
                numbers.scheduler.enqueue(now, device, 0, 1, number)
            })
            .unwrap();
        }
        let left = Mutex::new(0);
        port.run(|batch| *left.lock().unwrap() += batch.len());
        assert_eq!(*left.lock().unwrap(), RUN_BATCHES_MAX * BATCH_GRANTS_MAX);
        let mut fds = [PollFd::new(port.timer(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(20_000_u16)), Ok(1));
    }
}

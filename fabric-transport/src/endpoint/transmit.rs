//! Running the link: from the scheduler's queue onto the wire.

use std::sync::{Arc, TryLockError};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{Expiration, TimerSetTimeFlags};

use qos::MonotonicTime;

use super::{Core, Endpoint, Ordering, now};
use crate::control::Control;
use crate::endpoint::LaneClient;
use crate::frame::{FrameBuffer, FrameHeader};
use crate::link::{BATCH_BYTES_MAX, BATCH_FRAMES_MAX, LinkSender, SendQueue, Sent, ring};

/// How much later than the scheduler asks a link may be run. The scheduler makes up for late
/// callers, and on a fast link a wake-up a frame would cost more than the frame.
const WAKE_SLACK: Duration = Duration::from_micros(50);

/// Batches that one thread sends for all others before it goes back to its own work.
const DRAIN_BATCHES_MAX: usize = 8;

/// The sending half of the link and what it could not take yet.
pub(super) struct Writer {
    /// `None` once the link is broken or the session over.
    sender: Option<Box<dyn LinkSender>>,
    queue: SendQueue,
}

impl Writer {
    pub(super) fn new(sender: Box<dyn LinkSender>) -> Self {
        Self {
            sender: Some(sender),
            queue: SendQueue::default(),
        }
    }

    pub(super) fn hang_up(&mut self) {
        self.sender = None;
        self.queue = SendQueue::default();
    }
}

/// What one look at the scheduler found.
#[derive(Default)]
struct Picked {
    frames: Vec<(FrameHeader, FrameBuffer)>,
    /// Clients whose queues have room again.
    writable: Vec<Arc<dyn LaneClient>>,
}

impl Endpoint {
    /// Sends whatever may be sent now, unless another thread is at it: then that one will.
    pub(super) fn run_link(&self) {
        self.more.store(true, Ordering::SeqCst);
        while self.more.load(Ordering::SeqCst) {
            let mut writer = match self.writer.try_lock() {
                Ok(writer) => writer,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            if self.more.swap(false, Ordering::SeqCst) {
                self.drain(&mut writer);
            }
        }
    }

    fn drain(&self, writer: &mut Writer) {
        for _ in 0..DRAIN_BATCHES_MAX {
            let Some(sender) = &mut writer.sender else {
                return;
            };
            match sender.send(&mut writer.queue) {
                Ok(Sent::All) => {}
                Ok(Sent::Blocked) => return,
                Err(error) => {
                    writer.hang_up();
                    self.fail_link(&error);
                    return;
                }
            }
            let picked = self.pick();
            for client in picked.writable {
                client.writable();
            }
            if picked.frames.is_empty() {
                return;
            }
            for (header, mut frame) in picked.frames {
                frame.seal(&header, self.checksummed);
                writer.queue.push(frame, false);
            }
        }
        // What is left is the link thread's: the ring's thread has a ring to look after.
        ring(&self.wake);
    }

    /// The next batch in the order of the scheduler, control frames first.
    fn pick(&self) -> Picked {
        let mut picked = Picked::default();
        let mut bytes = 0;
        let now = now();
        let mut core = self.lock();
        let core = &mut *core;
        while let Some((header, control)) = core.session.poll_transmit() {
            picked.frames.push((header, control_frame(&control)));
        }
        let mut devices = Vec::new();
        while picked.frames.len() < BATCH_FRAMES_MAX
            && bytes < BATCH_BYTES_MAX
            && core.session.unacknowledged_bytes() < core.unacknowledged_bytes_max
        {
            let Some(grant) = core.scheduler.dequeue(now) else {
                if let Some(wake_at) = core.scheduler.next_wake(now) {
                    self.wake_at(core, now, wake_at);
                }
                break;
            };
            let frame = grant.item;
            let payload_bytes = frame.buffer.payload_bytes();
            bytes += frame.buffer.frame_bytes();
            let mut header =
                core.session
                    .transmit_data(frame.device, frame.lane, frame.sequence, payload_bytes);
            header.more = frame.more;
            picked.frames.push((header, frame.buffer));
            if devices.last() != Some(&frame.device) {
                devices.push(frame.device);
            }
        }
        picked.writable.extend(
            devices
                .into_iter()
                .filter_map(|device| core.take_waiting(device)),
        );
        picked
    }
}

impl Endpoint {
    /// Has the link run again at `time`, or up to [`WAKE_SLACK`] later.
    fn wake_at(&self, core: &mut Core, now: MonotonicTime, time: MonotonicTime) {
        let time = time.max(now.saturating_add(WAKE_SLACK));
        if core.timer_at > now && core.timer_at <= time {
            return;
        }
        core.timer_at = time;
        let expiration = Expiration::OneShot(TimeSpec::from_duration(Duration::from_nanos(
            time.as_nanos(),
        )));
        if let Err(error) = self
            .timer
            .set(expiration, TimerSetTimeFlags::TFD_TIMER_ABSTIME)
        {
            tracing::error!(%error, "timer of a link cannot be set");
        }
    }
}

fn control_frame(control: &Control) -> FrameBuffer {
    let mut frame = FrameBuffer::with_capacity(64);
    frame.append_with(|bytes| control.encode(bytes));
    frame
}

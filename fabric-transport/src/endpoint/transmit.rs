//! Running the links: from the scheduler's queue onto the wire, and onto another one if that breaks.

use std::cell::Cell;
use std::sync::{Arc, PoisonError, TryLockError};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{Expiration, TimerSetTimeFlags};

use qos::MonotonicTime;

use super::{Core, Endpoint, LaneClient, Ordering, Queued, now};
use crate::control::Control;
use crate::frame::{DeviceId, FrameBuffer, FrameHeader};
use crate::link::{BATCH_BYTES_MAX, BATCH_FRAMES_MAX, LinkSender, SendQueue, ring};

/// How much later than the scheduler asks a link may be run. The scheduler makes up for late
/// callers, and on a fast link a wake-up a frame would cost more than the frame.
const WAKE_SLACK: Duration = Duration::from_micros(50);

/// Batches that one thread sends for all others before it goes back to its own work.
const DRAIN_BATCHES_MAX: usize = 8;

thread_local! {
    /// Address of the endpoint whose session's thread this is. A link that was written for each grant
    /// of credit that a batch brings would carry batches of one frame.
    static IN_ROUND: Cell<usize> = const { Cell::new(0) };
}

/// The sending half of one link.
pub(super) struct WritePath {
    id: u16,
    sender: Box<dyn LinkSender>,
    checksummed: bool,
    queue: SendQueue,
    /// It failed: the session's thread takes it away.
    broken: bool,
}

/// The sending halves of a session's links.
#[derive(Default)]
pub(super) struct Writer {
    paths: Vec<WritePath>,
    /// What lost links did not bring, for the next one.
    orphans: Vec<FrameBuffer>,
    /// How many lost links that is.
    orphaned: usize,
    /// The session is over.
    ended: bool,
    // Kept for their room.
    picked: Vec<(u16, FrameHeader, FrameBuffer)>,
    devices: Vec<DeviceId>,
    writable: Vec<Arc<dyn LaneClient>>,
}

impl Writer {
    fn add(&mut self, id: u16, sender: Box<dyn LinkSender>, checksummed: bool, queue: SendQueue) {
        self.paths.push(WritePath {
            id,
            sender,
            checksummed,
            queue,
            broken: false,
        });
    }

    fn push(&mut self, id: u16, header: &FrameHeader, mut frame: FrameBuffer) {
        let path = self.paths.iter_mut().find(|path| path.id == id);
        if let Some(path) = path {
            frame.seal(header, path.checksummed);
            let sequenced = header.kind.is_sequenced(header.version);
            path.queue.push(frame, sequenced);
        }
    }

    /// Writes what is queued, as far as the links take it.
    fn write(&mut self, mut failed: impl FnMut(u16, &std::io::Error)) {
        for path in &mut self.paths {
            if path.broken || path.queue.is_sent() {
                continue;
            }
            if let Err(error) = path.sender.send(&mut path.queue) {
                path.broken = true;
                failed(path.id, &error);
            }
        }
    }
}

impl Endpoint {
    /// Sends whatever may be sent now, unless another thread is at it: then that one will. What a
    /// client sends from a callback on the session's thread goes out with the rest of its round.
    pub(super) fn run_link(&self) {
        if IN_ROUND.get() != self.address() {
            self.end_round();
        }
    }

    /// From now on this thread sends by [`Self::end_round`] alone.
    pub(super) fn begin_rounds(&self) {
        IN_ROUND.set(self.address());
    }

    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Sends whatever may be sent now, unless another thread is at it.
    pub(super) fn end_round(&self) {
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
            if writer.ended {
                return;
            }
            writer.write(|path, error| self.fail_path(path, &error.to_string()));
            self.pick(writer);
            for client in std::mem::take(&mut writer.writable) {
                client.writable();
            }
            if writer.picked.is_empty() {
                return;
            }
            let mut picked = std::mem::take(&mut writer.picked);
            for (path, header, frame) in picked.drain(..) {
                writer.push(path, &header, frame);
            }
            writer.picked = picked;
        }
        // What is left is the session thread's: the ring's thread has a ring to look after.
        ring(&self.wake);
    }

    /// The next batch in the order of the scheduler, control frames first.
    fn pick(&self, writer: &mut Writer) {
        let mut bytes = 0;
        let now = now();
        let mut core = self.lock();
        let core = &mut *core;
        for path in &mut writer.paths {
            path.queue
                .acknowledge(core.session.poll_acknowledged(path.id));
            while path.queue.is_sent()
                && let Some((header, control)) = core.session.poll_transmit(now, path.id)
            {
                let frame = control_frame(&control);
                writer.picked.push((path.id, header, frame));
            }
        }
        let underway_bytes_max = core.unacknowledged_bytes_max;
        let paths = &writer.paths;
        let has_room = |id: u16, underway_bytes: usize| {
            let path = paths.iter().find(|path| path.id == id);
            underway_bytes < underway_bytes_max
                && path.is_some_and(|path| path.queue.is_sent() && !path.broken)
        };
        while writer.picked.len() < BATCH_FRAMES_MAX
            && bytes < BATCH_BYTES_MAX
            && core.session.may_transmit(has_room)
        {
            let Some(grant) = core.scheduler.dequeue(now) else {
                if let Some(wake_at) = core.scheduler.next_wake(now) {
                    self.wake_at(core, now, wake_at);
                }
                break;
            };
            let Queued::Frame(frame) = grant.item else {
                continue;
            };
            let payload_bytes = frame.buffer.payload_bytes();
            bytes += frame.buffer.frame_bytes();
            let sent = core.session.transmit_data(
                now,
                frame.device,
                frame.lane,
                frame.sequence,
                payload_bytes,
            );
            // A device leaves the session and the scheduler under one lock.
            let Some((path, mut header)) = sent else {
                continue;
            };
            header.more = frame.more;
            writer.picked.push((path, header, frame.buffer));
            if writer.devices.last() != Some(&frame.device) {
                writer.devices.push(frame.device);
            }
        }
        for device in writer.devices.drain(..) {
            writer.writable.extend(core.take_waiting(device));
        }
    }

    /// A link failed. What it brought before, a CLOSE perhaps, is read first.
    pub(crate) fn fail_path(&self, path: u16, reason: &str) {
        self.broken_paths
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((path, reason.to_owned()));
        ring(&self.wake);
    }

    /// Adds a link to the session, with `first` as its first frame. False if the session does not
    /// take it: then it is closed.
    pub(super) fn add_write_path(
        &self,
        (id, priority): (u16, u8),
        sender: Box<dyn LinkSender>,
        checksummed: bool,
        first: Option<FrameBuffer>,
    ) -> bool {
        let mut queue = SendQueue::default();
        if let Some(first) = first {
            queue.push(first, false);
        }
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.lock().session.add_path(now(), id, priority) {
            return false;
        }
        writer.add(id, sender, checksummed, queue);
        true
    }

    /// Takes a lost link away, and keeps what it has not brought.
    pub(super) fn remove_write_path(&self, id: u16, acknowledged: usize) {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.orphaned += 1;
        if let Some(at) = writer.paths.iter().position(|path| path.id == id) {
            let mut lost = writer.paths.remove(at);
            lost.queue.acknowledge(acknowledged);
            writer.orphans.extend(lost.queue.into_unacknowledged());
        }
    }

    /// Sends what lost links have not brought by those that are there.
    pub(super) fn replay(&self) {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let now = now();
        let mut core = self.lock();
        if !core.session.replay_is_pending() || core.session.paths().next().is_none() {
            return;
        }
        for frame in std::mem::take(&mut writer.orphans) {
            // It was sealed when it went out first.
            let Ok((header, payload)) = FrameHeader::parse(frame.frame(), false) else {
                continue;
            };
            if let Some((path, header)) = core.session.replay(now, &header, payload.len()) {
                writer.push(path, &header, frame);
            }
        }
        for _ in 0..std::mem::take(&mut writer.orphaned) {
            core.session.replayed();
        }
    }

    /// Closes this end of all links, so that the peer sees them end.
    pub(super) fn hang_up(&self) {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        *writer = Writer {
            ended: true,
            ..Writer::default()
        };
    }

    /// Has the links run again at `time`, or up to [`WAKE_SLACK`] later.
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
            tracing::error!(%error, "timer of a session cannot be set");
        }
    }
}

fn control_frame(control: &Control) -> FrameBuffer {
    let mut frame = FrameBuffer::with_capacity(64);
    frame.append_with(|bytes| control.encode(bytes));
    frame
}

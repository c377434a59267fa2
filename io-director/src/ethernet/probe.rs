//! Where frames of a vNIC or a port are seen by an operator: captures, and a mirror.
//!
//! While nobody looks, a frame costs one relaxed load. Who looks gets copies: a capture in a bounded
//! queue that its client empties, a mirror in a bounded one that a thread of its own empties. So
//! neither holds up whoever moves frames.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard};
use std::time::Duration;

use fabric_payload::checksum;
use fabric_payload::ethernet::{FLAG_NEEDS_CSUM, HEADER_BYTES, VirtioNetHeader};
use qos_monitor::frames::{Capture, CaptureInterface, Captured, FrameDirection, FrameKind};
use qos_monitor::network::FramesWanted;

use super::access_list::FrameFilter;
use super::mirror::{Mirror, MirrorTarget};
use crate::capture_queue::{CaptureQueue, Frame, Limits};

/// Bytes that are copied for captures in a tenth of a second.
const WINDOW_BYTES: usize = 4 << 20;
/// As much of a frame as a filter reads.
const FILTERED_BYTES: usize = 512;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Probe {
    /// Whether somebody looks.
    active: AtomicBool,
    /// Locked while a frame is on its way and was not shown yet, if somebody looks.
    order: Mutex<()>,
    watchers: RwLock<Watchers>,
}

/// A frame that is about to go its way and will be shown: what answers it is shown after it.
#[derive(Debug)]
pub(super) struct Showing<'a> {
    probe: &'a Probe,
    _order: Option<MutexGuard<'a, ()>>,
}

#[derive(Debug, Default)]
struct Watchers {
    captures: Vec<Arc<FrameCapture>>,
    mirror: Option<Mirror>,
}

/// A header and frame, in pieces, at a probe.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen<'a> {
    pub(super) direction: FrameDirection,
    pub(super) pieces: &'a [&'a [u8]],
    /// Why it goes no further; in the words of the counters.
    pub(super) dropped: Option<&'static str>,
    /// It is a mirror's copy, which is not mirrored again.
    pub(super) copy: bool,
}

/// One capture.
#[derive(Debug)]
struct FrameCapture {
    filters: Vec<FrameFilter>,
    queue: CaptureQueue,
}

struct RunningCapture {
    probe: Arc<Probe>,
    capture: Arc<FrameCapture>,
    interface: CaptureInterface,
}

impl Probe {
    /// Whether somebody looks: all that a frame costs if nobody does.
    #[inline]
    pub(super) fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Watchers> {
        // Whole between any two statements: going on is safe.
        self.watchers
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to show a frame; what is done with it meanwhile must not show another one here.
    #[inline]
    pub(super) fn begin(&self) -> Showing<'_> {
        let order = || self.order.lock().unwrap_or_else(PoisonError::into_inner);
        Showing {
            probe: self,
            _order: self.is_active().then(order),
        }
    }

    #[cold]
    fn show(&self, seen: Seen<'_>, vnic: &dyn Fn() -> Option<String>) {
        let watchers = self.watchers.read().unwrap_or_else(PoisonError::into_inner);
        for capture in &watchers.captures {
            capture.add(seen, vnic);
        }
        if let Some(mirror) = &watchers.mirror
            && seen.dropped.is_none()
            && !seen.copy
        {
            mirror.add(seen.pieces);
        }
    }

    /// Has copies of what is not dropped go there from now on, or nowhere.
    ///
    /// # Errors
    /// There is no thread for it; nothing has changed.
    pub(super) fn set_mirror(&self, target: Option<&MirrorTarget>) -> io::Result<()> {
        let mut watchers = self.write();
        let stays = match (&watchers.mirror, target) {
            (Some(mirror), Some(target)) => mirror.goes_to(target),
            (None, None) => true,
            _ => false,
        };
        if !stays {
            watchers.mirror = target.map(Mirror::start).transpose()?;
        }
        self.active.store(watchers.are_there(), Ordering::Relaxed);
        Ok(())
    }

    /// Begins a capture of what is called `name` and described so.
    pub(super) fn start_capture(
        self: &Arc<Self>,
        name: String,
        description: String,
        wanted: &FramesWanted,
    ) -> Box<dyn Capture> {
        let snap_bytes = usize::try_from(wanted.snap_bytes).unwrap_or(usize::MAX);
        let capture = Arc::new(FrameCapture {
            filters: wanted.filters.iter().map(FrameFilter::new).collect(),
            queue: CaptureQueue::new(limits(wanted.frames_per_second), snap_bytes),
        });
        let mut watchers = self.write();
        watchers.captures.push(capture.clone());
        self.active.store(true, Ordering::Relaxed);
        drop(watchers);
        Box::new(RunningCapture {
            probe: self.clone(),
            capture,
            interface: CaptureInterface {
                name,
                description,
                kind: FrameKind::Ethernet,
                snap_bytes: wanted.snap_bytes,
            },
        })
    }
}

impl Showing<'_> {
    /// Shows the frame to whoever looks; `vnic` says whose it is, if anybody's, and is asked only then.
    #[inline]
    pub(super) fn end(self, seen: Seen<'_>, vnic: impl Fn() -> Option<String>) {
        if self.probe.is_active() {
            self.probe.show(seen, &vnic);
        }
    }
}

impl Watchers {
    fn are_there(&self) -> bool {
        !self.captures.is_empty() || self.mirror.is_some()
    }
}

/// What so many frames a second mean: a tenth of them at a time, but one at least.
fn limits(frames_per_second: u32) -> Limits {
    let frames = usize::try_from(frames_per_second).unwrap_or(usize::MAX);
    let window = Duration::from_secs(1);
    match frames / 10 {
        0 => Limits {
            window,
            frames,
            bytes: WINDOW_BYTES,
        },
        frames => Limits {
            window: window / 10,
            frames,
            bytes: WINDOW_BYTES,
        },
    }
}

impl FrameCapture {
    fn add(&self, seen: Seen<'_>, vnic: &dyn Fn() -> Option<String>) {
        if !self.wants(seen.pieces) {
            return;
        }
        self.queue.add(|| {
            let words = [
                vnic().map(|vnic| format!("vnic {vnic}")),
                seen.copy.then(|| "mirrored".to_owned()),
                seen.dropped.map(|reason| format!("dropped: {reason}")),
            ];
            let words: Vec<_> = words.into_iter().flatten().collect();
            Frame {
                bytes: finished(seen.pieces),
                missing_bytes: 0,
                direction: Some(seen.direction),
                comment: (!words.is_empty()).then(|| words.join(", ")),
            }
        });
    }

    fn wants(&self, pieces: &[&[u8]]) -> bool {
        if self.filters.is_empty() {
            return true;
        }
        let bytes = pieces.iter().copied().flatten();
        let bytes = bytes.skip(HEADER_BYTES).take(FILTERED_BYTES);
        let frame: Vec<u8> = bytes.copied().collect();
        self.filters.iter().any(|filter| filter.may_meet(&frame))
    }
}

/// The frame of `pieces` without the header in front of it, and with the checksum that was still to be
/// written.
fn finished(pieces: &[&[u8]]) -> Vec<u8> {
    let mut payload = pieces.concat();
    let header = VirtioNetHeader::split(&payload).map(|(header, _)| header);
    let mut frame = payload.split_off(HEADER_BYTES.min(payload.len()));
    if let Some(mut header) = header
        && header.flags & FLAG_NEEDS_CSUM != 0
    {
        // One whose place is outside of the frame stays as it is.
        let _completed = checksum::complete(&mut header, &mut frame);
    }
    frame
}

impl Capture for RunningCapture {
    fn interface(&self) -> CaptureInterface {
        self.interface.clone()
    }

    fn take(&self) -> Captured {
        self.capture.queue.take()
    }
}

impl Drop for RunningCapture {
    fn drop(&mut self) {
        let mut watchers = self.probe.write();
        let captures = &mut watchers.captures;
        captures.retain(|known| !Arc::ptr_eq(known, &self.capture));
        let active = &self.probe.active;
        active.store(watchers.are_there(), Ordering::Relaxed);
        drop(watchers);
        self.capture.queue.end();
    }
}

#[cfg(test)]
mod tests;

//! What a capture has and its client did not fetch yet, of commands and of Ethernet frames.
//!
//! Bounded twice, so that it cannot hurt the data path: in a window of time only so many frames and
//! bytes are copied, and only so many wait to be fetched. What has no room is counted.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use qos_monitor::frames::{Captured, CapturedFrame, FrameDirection};

/// Frames that wait to be fetched at most.
pub(crate) const WAITING_FRAMES: usize = 8192;
/// What a frame takes beside its bytes.
const FRAME_OVERHEAD_BYTES: usize = size_of::<CapturedFrame>();

/// What is copied in a window of time at most; twice the bytes may wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) window: Duration,
    pub(crate) frames: usize,
    pub(crate) bytes: usize,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct CaptureQueue {
    limits: Limits,
    snap_bytes: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    over: bool,
    waiting: Captured,
    waiting_bytes: usize,
    dropped_before: u64,
    /// Which window this is, and what was taken in it.
    window: u128,
    window_frames: usize,
    window_bytes: usize,
}

/// A frame that is to be kept, before it is cut.
#[derive(Debug, Default)]
pub(crate) struct Frame {
    pub(crate) bytes: Vec<u8>,
    /// What it has beyond these.
    pub(crate) missing_bytes: usize,
    pub(crate) direction: Option<FrameDirection>,
    pub(crate) comment: Option<String>,
}

impl CaptureQueue {
    /// An empty one that keeps `snap_bytes` of each frame.
    pub(crate) fn new(limits: Limits, snap_bytes: usize) -> Self {
        Self {
            limits,
            snap_bytes,
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whole between any two statements: going on is safe.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of each frame that are kept.
    pub(crate) fn snap_bytes(&self) -> usize {
        self.snap_bytes
    }

    /// Adds a frame if there is room; whether there was. A frame that is counted only is not made.
    pub(crate) fn add(&self, frame: impl FnOnce() -> Frame) -> bool {
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let at = at.unwrap_or_default();
        let mut state = self.lock();
        if state.over {
            return false;
        }
        state.waiting.seen += 1;
        if !state.has_room(&self.limits, at) {
            state.count_dropped();
            return false;
        }
        let Frame {
            mut bytes,
            missing_bytes,
            direction,
            comment,
        } = frame();
        let original_bytes = u32::try_from(bytes.len() + missing_bytes).unwrap_or(u32::MAX);
        bytes.truncate(self.snap_bytes);
        bytes.shrink_to_fit();
        let taken = bytes.len() + FRAME_OVERHEAD_BYTES;
        state.waiting_bytes += taken;
        state.window_bytes += taken;
        state.window_frames += 1;
        let dropped_before = std::mem::take(&mut state.dropped_before);
        state.waiting.frames.push(CapturedFrame {
            at_nanos: u64::try_from(at.as_nanos()).unwrap_or(u64::MAX),
            original_bytes,
            dropped_before,
            direction,
            comment,
            bytes,
        });
        true
    }

    /// Counts a frame that is left out.
    pub(crate) fn count_dropped(&self) {
        let mut state = self.lock();
        if !state.over {
            state.waiting.seen += 1;
            state.count_dropped();
        }
    }

    /// What waits.
    pub(crate) fn take(&self) -> Captured {
        let mut state = self.lock();
        state.waiting_bytes = 0;
        let (seen, dropped) = (state.waiting.seen, state.waiting.dropped);
        let next = Captured {
            seen,
            dropped,
            ..Captured::default()
        };
        std::mem::replace(&mut state.waiting, next)
    }

    /// Takes nothing from now on, whoever still holds it.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.over = true;
        state.waiting = Captured::default();
    }
}

impl State {
    fn has_room(&mut self, limits: &Limits, at: Duration) -> bool {
        let window = at.as_nanos() / limits.window.as_nanos().max(1);
        if window != self.window {
            (self.window, self.window_frames, self.window_bytes) = (window, 0, 0);
        }
        self.window_frames < limits.frames
            && self.window_bytes < limits.bytes
            && self.waiting.frames.len() < WAITING_FRAMES
            && self.waiting_bytes < 2 * limits.bytes
    }

    fn count_dropped(&mut self) {
        self.waiting.dropped += 1;
        self.dropped_before += 1;
    }
}

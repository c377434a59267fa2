//! The link of an embedded director: frames move by ownership, nothing is copied.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{BATCH_BYTES_MAX, Filled, Link, LinkReceiver, LinkSender, SendQueue, Sent, ring};
use crate::frame::{FrameBuffer, FrameError};

/// Bytes that wait in one direction at which the sender must stop.
const WAITING_BYTES_MAX: usize = 4 * BATCH_BYTES_MAX;

/// One direction.
#[derive(Debug)]
struct Pipe {
    state: Mutex<PipeState>,
}

#[derive(Debug, Default)]
struct PipeState {
    frames: VecDeque<FrameBuffer>,
    bytes: usize,
    closed: bool,
    sender_waits: bool,
}

impl Pipe {
    fn lock(&self) -> MutexGuard<'_, PipeState> {
        // The state is consistent between any two statements: a panic elsewhere changes nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Two ends joined inside of one process. `name` stands in logs.
///
/// # Panics
/// If the kernel has no eventfd left; an embedded director cannot start without.
#[must_use]
#[expect(clippy::expect_used, reason = "documented: start-up cannot go on")]
pub fn in_process_pair(name: &str) -> (Link, Link) {
    let pipe = || {
        Arc::new(Pipe {
            state: Mutex::default(),
        })
    };
    let wake = || {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        Arc::new(
            EventFd::from_value_and_flags(0, flags).expect("an eventfd for an in-process link"),
        )
    };
    let (there, back) = (pipe(), pipe());
    let (near, far) = (wake(), wake());
    let end = |out: &Arc<Pipe>, inward: &Arc<Pipe>, own: &Arc<EventFd>, peer: &Arc<EventFd>| Link {
        sender: Box::new(InProcessSender {
            pipe: out.clone(),
            peer: peer.clone(),
        }),
        receiver: Box::new(InProcessReceiver {
            pipe: inward.clone(),
            own: own.clone(),
            peer: peer.clone(),
            frames: Vec::new(),
        }),
        checksummed: false,
        peer: format!("in-process:{name}"),
    };
    (
        end(&there, &back, &near, &far),
        end(&back, &there, &far, &near),
    )
}

#[derive(Debug)]
struct InProcessSender {
    pipe: Arc<Pipe>,
    peer: Arc<EventFd>,
}

impl LinkSender for InProcessSender {
    fn send(&mut self, queue: &mut SendQueue) -> io::Result<Sent> {
        let mut state = self.pipe.lock();
        if state.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let was_empty = state.frames.is_empty();
        while state.bytes < WAITING_BYTES_MAX
            && let Some(frame) = queue.take()
        {
            state.bytes += frame.frame_bytes();
            state.frames.push_back(frame);
        }
        state.sender_waits = !queue.is_sent();
        let filled = was_empty && !state.frames.is_empty();
        let blocked = state.sender_waits;
        drop(state);
        if filled {
            ring(&self.peer);
        }
        Ok(if blocked { Sent::Blocked } else { Sent::All })
    }
}

impl Drop for InProcessSender {
    fn drop(&mut self) {
        self.pipe.lock().closed = true;
        ring(&self.peer);
    }
}

#[derive(Debug)]
struct InProcessReceiver {
    pipe: Arc<Pipe>,
    own: Arc<EventFd>,
    peer: Arc<EventFd>,
    frames: Vec<FrameBuffer>,
}

impl LinkReceiver for InProcessReceiver {
    fn fill(&mut self) -> io::Result<Filled> {
        self.frames.clear();
        let mut state = self.pipe.lock();
        self.frames.extend(state.frames.drain(..));
        state.bytes = 0;
        let closed = state.closed;
        let sender_waits = std::mem::take(&mut state.sender_waits);
        drop(state);
        if sender_waits {
            ring(&self.peer);
        }
        Ok(match (self.frames.is_empty(), closed) {
            (false, _) => Filled::Some,
            (true, true) => Filled::End,
            (true, false) => Filled::Blocked,
        })
    }

    fn frames(&self) -> Result<Vec<&[u8]>, FrameError> {
        Ok(self.frames.iter().map(FrameBuffer::frame).collect())
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.own.as_fd()
    }
}

impl Drop for InProcessReceiver {
    fn drop(&mut self) {
        self.pipe.lock().closed = true;
        ring(&self.peer);
    }
}

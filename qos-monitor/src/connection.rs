//! One client of the control socket: bytes in, at most one answer underway.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use crate::protocol::REQUEST_BYTES_MAX;

/// How long the rest of a request may take, or the next bytes of an answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);
/// How long a client may be silent between requests; the longest trace takes as long.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(600);

/// How long an answer that is made elsewhere may take.
const ANSWER_MAX: Duration = Duration::from_secs(600);

/// A connected client.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Bytes of `output` that are sent.
    sent: usize,
    /// No more requests: it ends when `output` is sent.
    last: bool,
    /// An answer is being made elsewhere.
    waits: bool,
    deadline: Instant,
    /// Its number among all clients there ever were.
    pub(crate) number: u64,
}

/// What a client brought.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Incoming {
    /// A whole line.
    Request(Vec<u8>),
    /// A line that is too long.
    TooLong,
    /// Nothing whole.
    Nothing,
}

impl Connection {
    pub(crate) fn new(stream: UnixStream, number: u64, now: Instant) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            last: false,
            waits: false,
            deadline: now + SILENCE_MAX,
            number,
        })
    }

    /// What to poll for: its next request is read when the answer before it is sent.
    pub(crate) fn interest(&self) -> (BorrowedFd<'_>, PollFlags) {
        let flags = if self.waits {
            PollFlags::empty()
        } else if self.output.is_empty() {
            PollFlags::POLLIN
        } else {
            PollFlags::POLLOUT
        };
        (self.stream.as_fd(), flags)
    }

    /// When it is given up.
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Reads what is there, up to the length of a request.
    ///
    /// # Errors
    /// It ended.
    pub(crate) fn read(&mut self, now: Instant) -> io::Result<()> {
        let mut bytes = [0; REQUEST_BYTES_MAX];
        let room = REQUEST_BYTES_MAX.saturating_sub(self.input.len());
        let Some(buffer) = bytes.get_mut(..room) else {
            return Ok(());
        };
        match self.stream.read(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                let first = self.input.is_empty();
                self.input.extend(buffer.iter().take(count));
                if first {
                    self.deadline = now + PATIENCE;
                }
            }
            Err(error) if is_temporary(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The next request; call it when no answer is underway.
    pub(crate) fn take(&mut self) -> Incoming {
        match self.input.iter().position(|byte| *byte == b'\n') {
            Some(end) => Incoming::Request(self.input.drain(..=end).collect()),
            None if self.input.len() >= REQUEST_BYTES_MAX => Incoming::TooLong,
            None => Incoming::Nothing,
        }
    }

    /// Whether its answer is being made elsewhere: then it is announced only when it is gone.
    pub(crate) fn is_waiting(&self) -> bool {
        self.waits
    }

    /// Its answer comes later: until then nothing is read.
    pub(crate) fn wait(&mut self, now: Instant) {
        self.waits = true;
        self.deadline = now + ANSWER_MAX;
    }

    /// Whether the answer before is sent.
    pub(crate) fn is_idle(&self) -> bool {
        self.output.is_empty() && !self.last && !self.waits
    }

    /// Begins an answer; after the `last` one the connection ends.
    pub(crate) fn answer(&mut self, answer: Vec<u8>, last: bool, now: Instant) {
        (self.output, self.sent, self.last) = (answer, 0, last);
        self.waits = false;
        self.deadline = now + PATIENCE;
    }

    /// Sends on.
    ///
    /// # Errors
    /// It ended, or this was its last answer.
    pub(crate) fn write(&mut self, now: Instant) -> io::Result<()> {
        while let Some(rest) = self.output.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match self.stream.write(rest) {
                Ok(count) => {
                    self.sent += count;
                    self.deadline = now + PATIENCE;
                }
                Err(error) if is_temporary(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        // Not only emptied: an answer may have been large.
        self.output = Vec::new();
        if self.last {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let patience = if self.input.is_empty() {
            SILENCE_MAX
        } else {
            PATIENCE
        };
        self.deadline = now + patience;
        Ok(())
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

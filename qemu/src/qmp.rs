//! The least of a QMP client: one command at a time, events kept.
//!
//! docs/interop/qmp-spec.rst of QEMU: newline-terminated JSON objects; the server greets with
//! `QMP`, answers a command with `return` or `error`, and sends `event` whenever it likes.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use thiserror::Error;

use crate::emulator::Version;

/// Events kept for [`Qmp::event`]; the oldest are forgotten.
const EVENTS_MAX: usize = 256;
/// Longest line taken from QEMU, in bytes.
const LINE_BYTES_MAX: usize = 16 << 20;

/// Why QEMU's monitor gave no answer, or a bad one.
#[derive(Debug, Error)]
pub enum QmpError {
    /// The socket failed.
    #[error("monitor socket failed")]
    Socket(#[source] io::Error),
    /// QEMU closed the monitor, probably because it ended.
    #[error("QEMU closed the monitor")]
    Closed,
    /// Nothing came in time.
    #[error("monitor did not answer within {} ms", within.as_millis())]
    DeadlinePassed {
        /// The time it had.
        within: Duration,
    },
    /// The line is not JSON, or far too long.
    #[error("monitor sent a line that is not QMP")]
    NotQmp,
    /// QEMU refused the command.
    #[error("QEMU refused {command}: {reason}")]
    Refused {
        /// Name of the command.
        command: String,
        /// QEMU's words.
        reason: String,
    },
}

/// A connection to a monitor, past the handshake.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    received: Vec<u8>,
    events: VecDeque<Value>,
    version: Version,
}

impl Qmp {
    /// Waits for the greeting and leaves negotiation mode.
    ///
    /// # Errors
    ///
    /// [`QmpError`].
    pub fn handshake(stream: UnixStream, within: Duration) -> Result<Self, QmpError> {
        let mut qmp = Self {
            stream,
            received: Vec::new(),
            events: VecDeque::new(),
            version: Version::new(0, 0),
        };
        let deadline = Deadline::after(within);
        let greeting = qmp.line(deadline)?;
        if greeting.get("QMP").is_none() {
            return Err(QmpError::NotQmp);
        }
        let number = |which| {
            let path = format!("/QMP/version/qemu/{which}");
            let number = greeting.pointer(&path).and_then(Value::as_u64);
            number.and_then(|it| u32::try_from(it).ok()).unwrap_or(0)
        };
        qmp.version = Version::new(number("major"), number("minor"));
        qmp.execute(&json!({"execute": "qmp_capabilities"}), within)?;
        Ok(qmp)
    }

    /// What it serves.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// Sends a command (`{"execute": ..., "arguments": ...}`) and returns its `return` value.
    ///
    /// # Errors
    ///
    /// [`QmpError`]; after anything but [`QmpError::Refused`] the connection is of no use.
    pub fn execute(&mut self, command: &Value, within: Duration) -> Result<Value, QmpError> {
        let deadline = Deadline::after(within);
        let mut line = command.to_string();
        line.push('\n');
        self.stream
            .set_write_timeout(Some(deadline.left()?))
            .map_err(QmpError::Socket)?;
        self.stream
            .write_all(line.as_bytes())
            .map_err(QmpError::Socket)?;
        loop {
            let mut answer = self.line(deadline)?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                let text = |value: Option<&Value>| {
                    value
                        .and_then(Value::as_str)
                        .unwrap_or("unknown")
                        .to_owned()
                };
                return Err(QmpError::Refused {
                    command: text(command.get("execute")),
                    reason: text(error.get("desc")),
                });
            }
            self.keep_event(answer);
        }
    }

    /// The oldest event of that name, waiting for it if none is kept.
    ///
    /// # Errors
    ///
    /// [`QmpError`].
    pub fn event(&mut self, name: &str, within: Duration) -> Result<Value, QmpError> {
        let deadline = Deadline::after(within);
        let is_wanted = |event: &Value| event.get("event").and_then(Value::as_str) == Some(name);
        loop {
            if let Some(index) = self.events.iter().position(is_wanted)
                && let Some(event) = self.events.remove(index)
            {
                return Ok(event);
            }
            let line = self.line(deadline)?;
            self.keep_event(line);
        }
    }

    fn keep_event(&mut self, line: Value) {
        if line.get("event").is_some() {
            if self.events.len() == EVENTS_MAX {
                self.events.pop_front();
            }
            self.events.push_back(line);
        }
    }

    fn line(&mut self, deadline: Deadline) -> Result<Value, QmpError> {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return serde_json::from_slice(&line).map_err(|_not_json| QmpError::NotQmp);
            }
            if self.received.len() > LINE_BYTES_MAX {
                return Err(QmpError::NotQmp);
            }
            self.stream
                .set_read_timeout(Some(deadline.left()?))
                .map_err(QmpError::Socket)?;
            let mut bytes = [0; 4_096];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(QmpError::Closed),
                Ok(count) => self
                    .received
                    .extend_from_slice(bytes.get(..count).unwrap_or(&[])),
                // A peer that closes with our command unread resets the connection.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    return Err(QmpError::Closed);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(QmpError::Socket(error)),
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Deadline {
    start: Instant,
    within: Duration,
}

impl Deadline {
    fn after(within: Duration) -> Self {
        Self {
            start: Instant::now(),
            within,
        }
    }

    fn left(self) -> Result<Duration, QmpError> {
        self.within
            .checked_sub(self.start.elapsed())
            .filter(|left| !left.is_zero())
            .ok_or(QmpError::DeadlinePassed {
                within: self.within,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    #[test]
    fn answers_are_told_from_events_and_events_are_kept() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs
            .write_all(
                b"{\"QMP\": {}}\r\n{\"return\": {}}\r\n{\"event\": \"DEVICE_DELETED\", \"n\": 1}\r\n\
                  {\"return\": {\"running\": true}}\r\n{\"error\": {\"desc\": \"no\"}}\r\n",
            )
            .unwrap();
        let mut qmp = Qmp::handshake(ours, SOON).unwrap();
        let status = qmp
            .execute(&json!({"execute": "query-status"}), SOON)
            .unwrap();
        assert_eq!(status, json!({"running": true}));
        let error = qmp
            .execute(&json!({"execute": "device_del"}), SOON)
            .unwrap_err();
        assert_eq!(error.to_string(), "QEMU refused device_del: no");
        assert_eq!(
            qmp.event("DEVICE_DELETED", SOON).unwrap().get("n"),
            Some(&json!(1))
        );
        drop(theirs);
        assert!(matches!(qmp.event("SHUTDOWN", SOON), Err(QmpError::Closed)));
    }

    #[test]
    fn silence_ends_at_the_deadline() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let within = Duration::from_millis(20);
        let error = Qmp::handshake(ours, within).unwrap_err();
        assert!(matches!(error, QmpError::DeadlinePassed { .. }), "{error}");
    }
}

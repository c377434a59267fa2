//! Frames between the host and the guest's PID 1 on one virtio-serial port.
//!
//! The port is a reliable byte stream; both directions carry frames of the same layout. All
//! integers are big-endian.
//!
//! | offset | bytes | field | meaning |
//! | --- | --- | --- | --- |
//! | 0 | 1 | kind | see below; an unknown kind is an error, the stream cannot be trusted any more |
//! | 1 | 3 | zero | sent as 0, any other value is an error |
//! | 4 | 4 | id | command, chosen by the host, unique while the command runs; 0 where no command is meant |
//! | 8 | 4 | `payload_bytes` | at most [`PAYLOAD_BYTES_MAX`] |
//! | 12 | `payload_bytes` | payload | see below |
//!
//! Host to guest:
//!
//! | kind | name | payload |
//! | --- | --- | --- |
//! | 0x01 | run | rows u16, columns u16 (both 0: no terminal), then the command, UTF-8, for `sh -c` |
//! | 0x02 | stdin | bytes for the command; none means end of file |
//! | 0x03 | kill | signal number u8, sent to the command's process group |
//! | 0x04 | power-off | none |
//!
//! Guest to host:
//!
//! | kind | name | payload |
//! | --- | --- | --- |
//! | 0x81 | ready | protocol version u16, zero u16, uptime u64 in ms, then notes of the boot, UTF-8 |
//! | 0x82 | stdout | bytes |
//! | 0x83 | stderr | bytes |
//! | 0x84 | exit | how u8 (0 exited, 1 killed by a signal, 2 not started), code u8, then why, UTF-8 |
//!
//! The guest sends `ready` once for every host that connects. Frames of different commands
//! interleave; `exit` is the last frame of its command. Output of processes that outlive their
//! command's shell is thrown away.

use thiserror::Error;

/// Version this crate speaks; the first field of [`Message::Ready`].
pub const VERSION: u16 = 1;
/// Bytes of the fixed part of a frame.
pub const HEADER_BYTES: usize = 12;
/// Largest payload of one frame in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 65_536;
/// Longest command text of one [`Message::Run`] in bytes.
pub const COMMAND_BYTES_MAX: usize = PAYLOAD_BYTES_MAX - 4;

/// A number the host gives a command while it runs.
pub type CommandId = u32;

const RUN: u8 = 0x01;
const STDIN: u8 = 0x02;
const KILL: u8 = 0x03;
const POWER_OFF: u8 = 0x04;
const READY: u8 = 0x81;
const STDOUT: u8 = 0x82;
const STDERR: u8 = 0x83;
const EXIT: u8 = 0x84;

/// Size of a pseudo-terminal in characters; neither side is 0.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub columns: u16,
}

/// How a command ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ExitStatus {
    /// The shell returned this code.
    Exited(u8),
    /// This signal ended the shell.
    Signalled(u8),
    /// No process came to be; the text says why.
    NotStarted(String),
}

impl ExitStatus {
    /// Whether the command ended with code 0.
    #[must_use]
    pub const fn success(&self) -> bool {
        matches!(self, Self::Exited(0))
    }

    /// The code a shell would show in `$?`: 128 and the signal for a killed command, 127 for one
    /// that did not start.
    #[must_use]
    pub const fn shell_code(&self) -> u8 {
        match self {
            Self::Exited(code) => *code,
            Self::Signalled(signal) => 128_u8.saturating_add(*signal),
            Self::NotStarted(_) => 127,
        }
    }
}

impl std::fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit status {code}"),
            Self::Signalled(signal) => write!(f, "killed by signal {signal}"),
            Self::NotStarted(why) => write!(f, "not started: {why}"),
        }
    }
}

/// One frame.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Message {
    /// Run `command` under `sh -c`.
    Run {
        /// Names the command in every later frame.
        id: CommandId,
        /// Give it a pseudo-terminal of this size; its output is then all stdout.
        terminal: Option<TerminalSize>,
        /// Text for the shell.
        command: String,
    },
    /// Bytes for the standard input of a command; empty closes it.
    Stdin {
        /// Which command.
        id: CommandId,
        /// What it reads.
        bytes: Vec<u8>,
    },
    /// Send a signal to a command's process group.
    Kill {
        /// Which command.
        id: CommandId,
        /// Signal number, as in signal(7).
        signal: u8,
    },
    /// Power the guest off.
    PowerOff,
    /// The guest runs commands from now on.
    Ready {
        /// What the guest speaks.
        version: u16,
        /// Milliseconds since the kernel started (`CLOCK_BOOTTIME`).
        uptime_ms: u64,
        /// What went wrong on the way without ending it, one line each.
        notes: String,
    },
    /// Bytes a command wrote to its standard output.
    Stdout {
        /// Which command.
        id: CommandId,
        /// What it wrote.
        bytes: Vec<u8>,
    },
    /// Bytes a command wrote to its standard error.
    Stderr {
        /// Which command.
        id: CommandId,
        /// What it wrote.
        bytes: Vec<u8>,
    },
    /// A command ended; its id may be used again.
    Exit {
        /// Which command.
        id: CommandId,
        /// How it ended.
        status: ExitStatus,
    },
}

/// Why a byte stream is not a stream of frames. After any of these the stream is dead.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum ProtocolError {
    /// Kind the table above does not have.
    #[error("unknown frame kind {kind:#04x}")]
    UnknownKind {
        /// The first byte of the frame.
        kind: u8,
    },
    /// Bytes 1 to 3 of the header.
    #[error("reserved bytes of the frame header are not zero")]
    ReservedNotZero,
    /// Longer than [`PAYLOAD_BYTES_MAX`].
    #[error("frame payload of {payload_bytes} bytes is longer than {PAYLOAD_BYTES_MAX}")]
    PayloadTooLong {
        /// What the header says.
        payload_bytes: u32,
    },
    /// Payload does not have the fields of its kind.
    #[error("payload of frame kind {kind:#04x} is malformed")]
    MalformedPayload {
        /// The first byte of the frame.
        kind: u8,
    },
}

impl Message {
    /// Appends the frame's bytes to `out`.
    ///
    /// # Errors
    ///
    /// [`ProtocolError::PayloadTooLong`] when text or bytes do not fit one frame; `out` is
    /// unchanged then.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), ProtocolError> {
        match self {
            Self::Run {
                id,
                terminal,
                command,
            } => {
                let (rows, columns) = terminal.map_or((0, 0), |size| (size.rows, size.columns));
                let parts: [&[u8]; 3] = [
                    &rows.to_be_bytes(),
                    &columns.to_be_bytes(),
                    command.as_bytes(),
                ];
                append(out, RUN, *id, &parts)
            }
            Self::Stdin { id, bytes } => append(out, STDIN, *id, &[bytes]),
            Self::Kill { id, signal } => append(out, KILL, *id, &[&[*signal]]),
            Self::PowerOff => append(out, POWER_OFF, 0, &[]),
            Self::Ready {
                version,
                uptime_ms,
                notes,
            } => {
                let parts: [&[u8]; 4] = [
                    &version.to_be_bytes(),
                    &[0; 2],
                    &uptime_ms.to_be_bytes(),
                    notes.as_bytes(),
                ];
                append(out, READY, 0, &parts)
            }
            Self::Stdout { id, bytes } => append(out, STDOUT, *id, &[bytes]),
            Self::Stderr { id, bytes } => append(out, STDERR, *id, &[bytes]),
            Self::Exit { id, status } => {
                let (how, code, why) = match status {
                    ExitStatus::Exited(code) => (0, *code, ""),
                    ExitStatus::Signalled(signal) => (1, *signal, ""),
                    ExitStatus::NotStarted(why) => (2, 0, why.as_str()),
                };
                append(out, EXIT, *id, &[&[how, code], why.as_bytes()])
            }
        }
    }

    fn parse(kind: u8, id: CommandId, payload: &[u8]) -> Result<Self, ProtocolError> {
        let malformed = ProtocolError::MalformedPayload { kind };
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_utf8| malformed);
        match kind {
            RUN => {
                let (rows, rest) = payload.split_first_chunk().ok_or(malformed)?;
                let (columns, command) = rest.split_first_chunk().ok_or(malformed)?;
                let terminal = match (u16::from_be_bytes(*rows), u16::from_be_bytes(*columns)) {
                    (0, 0) => None,
                    (0, _) | (_, 0) => return Err(malformed),
                    (rows, columns) => Some(TerminalSize { rows, columns }),
                };
                Ok(Self::Run {
                    id,
                    terminal,
                    command: text(command)?,
                })
            }
            STDIN => Ok(Self::Stdin {
                id,
                bytes: payload.to_vec(),
            }),
            KILL => match payload {
                [signal] => Ok(Self::Kill {
                    id,
                    signal: *signal,
                }),
                _ => Err(malformed),
            },
            POWER_OFF => Ok(Self::PowerOff),
            READY => {
                let (version, rest) = payload.split_first_chunk().ok_or(malformed)?;
                let (_zero, rest) = rest.split_first_chunk::<2>().ok_or(malformed)?;
                let (uptime_ms, notes) = rest.split_first_chunk().ok_or(malformed)?;
                Ok(Self::Ready {
                    version: u16::from_be_bytes(*version),
                    uptime_ms: u64::from_be_bytes(*uptime_ms),
                    notes: text(notes)?,
                })
            }
            STDOUT => Ok(Self::Stdout {
                id,
                bytes: payload.to_vec(),
            }),
            STDERR => Ok(Self::Stderr {
                id,
                bytes: payload.to_vec(),
            }),
            EXIT => match payload {
                [0, code] => Ok(Self::Exit {
                    id,
                    status: ExitStatus::Exited(*code),
                }),
                [1, signal] => Ok(Self::Exit {
                    id,
                    status: ExitStatus::Signalled(*signal),
                }),
                [2, 0, why @ ..] => Ok(Self::Exit {
                    id,
                    status: ExitStatus::NotStarted(text(why)?),
                }),
                _ => Err(malformed),
            },
            kind => Err(ProtocolError::UnknownKind { kind }),
        }
    }
}

fn append(
    out: &mut Vec<u8>,
    kind: u8,
    id: CommandId,
    parts: &[&[u8]],
) -> Result<(), ProtocolError> {
    let bytes: usize = parts.iter().map(|part| part.len()).sum();
    let payload_bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    if bytes > PAYLOAD_BYTES_MAX {
        return Err(ProtocolError::PayloadTooLong { payload_bytes });
    }
    out.extend_from_slice(&[kind, 0, 0, 0]);
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&payload_bytes.to_be_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
    Ok(())
}

/// Cuts a byte stream into frames. Holds at most one frame and what was pushed with it.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// Takes bytes in the order they were received, cut anywhere.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.start);
        self.start = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame, or `None` until more bytes are pushed.
    ///
    /// # Errors
    ///
    /// See [`ProtocolError`]; every later call fails in the same way.
    pub fn next_message(&mut self) -> Result<Option<Message>, ProtocolError> {
        let Some((header, rest)) = self
            .bytes
            .get(self.start..)
            .and_then(|bytes| bytes.split_first_chunk())
        else {
            return Ok(None);
        };
        let [kind, reserved @ .., i0, i1, i2, i3, p0, p1, p2, p3]: [u8; HEADER_BYTES] = *header;
        if reserved != [0; 3] {
            return Err(ProtocolError::ReservedNotZero);
        }
        let payload_bytes = u32::from_be_bytes([p0, p1, p2, p3]);
        let length = match usize::try_from(payload_bytes) {
            Ok(length) if length <= PAYLOAD_BYTES_MAX => length,
            _ => return Err(ProtocolError::PayloadTooLong { payload_bytes }),
        };
        let Some(payload) = rest.get(..length) else {
            return Ok(None);
        };
        let message = Message::parse(kind, u32::from_be_bytes([i0, i1, i2, i3]), payload)?;
        self.start += HEADER_BYTES + length;
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(message: &Message) -> Vec<u8> {
        let mut bytes = Vec::new();
        message.encode(&mut bytes).unwrap();
        bytes
    }

    fn decode_one(bytes: &[u8]) -> Result<Option<Message>, ProtocolError> {
        let mut decoder = Decoder::default();
        decoder.push(bytes);
        decoder.next_message()
    }

    #[test]
    fn frames_have_the_documented_bytes() {
        let run = Message::Run {
            id: 0x0102_0304,
            terminal: Some(TerminalSize {
                rows: 24,
                columns: 80,
            }),
            command: "ls".to_owned(),
        };
        assert_eq!(
            encoded(&run),
            [
                0x01, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 6, 0, 24, 0, 80, b'l', b's'
            ]
        );
        let ready = Message::Ready {
            version: 1,
            uptime_ms: 2_345,
            notes: String::new(),
        };
        assert_eq!(
            encoded(&ready),
            [
                0x81, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 9, 41
            ]
        );
        let exit = Message::Exit {
            id: 7,
            status: ExitStatus::Signalled(9),
        };
        assert_eq!(
            encoded(&exit),
            [0x84, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 2, 1, 9]
        );
        assert_eq!(
            encoded(&Message::PowerOff),
            [0x04, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        );
    }

    #[test]
    fn a_frame_that_lies_is_refused() {
        let header = |kind, reserved, length: u32| {
            let [a, b, c, d] = length.to_be_bytes();
            vec![kind, 0, reserved, 0, 0, 0, 0, 1, a, b, c, d]
        };
        assert_eq!(
            decode_one(&header(0x55, 0, 0)),
            Err(ProtocolError::UnknownKind { kind: 0x55 })
        );
        assert_eq!(
            decode_one(&header(STDIN, 1, 0)),
            Err(ProtocolError::ReservedNotZero)
        );
        assert_eq!(
            decode_one(&header(STDIN, 0, 65_537)),
            Err(ProtocolError::PayloadTooLong {
                payload_bytes: 65_537
            })
        );
        for kind in [RUN, KILL, READY, EXIT] {
            assert_eq!(
                decode_one(&header(kind, 0, 0)),
                Err(ProtocolError::MalformedPayload { kind })
            );
        }
    }

    #[test]
    fn a_payload_too_long_is_refused_and_leaves_nothing_behind() {
        let mut bytes = vec![1];
        let message = Message::Stdout {
            id: 1,
            bytes: vec![0; PAYLOAD_BYTES_MAX + 1],
        };
        assert!(message.encode(&mut bytes).is_err());
        assert_eq!(bytes, [1]);
    }

    fn message() -> impl Strategy<Value = Message> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..300);
        let terminal = proptest::option::of(
            (1..=u16::MAX, 1..=u16::MAX).prop_map(|(rows, columns)| TerminalSize { rows, columns }),
        );
        let status = prop_oneof![
            any::<u8>().prop_map(ExitStatus::Exited),
            any::<u8>().prop_map(ExitStatus::Signalled),
            any::<String>().prop_map(ExitStatus::NotStarted),
        ];
        prop_oneof![
            (any::<u32>(), terminal, any::<String>()).prop_map(|(id, terminal, command)| {
                Message::Run {
                    id,
                    terminal,
                    command,
                }
            }),
            (any::<u32>(), bytes()).prop_map(|(id, bytes)| Message::Stdin { id, bytes }),
            (any::<u32>(), any::<u8>()).prop_map(|(id, signal)| Message::Kill { id, signal }),
            Just(Message::PowerOff),
            (any::<u16>(), any::<u64>(), any::<String>()).prop_map(
                |(version, uptime_ms, notes)| Message::Ready {
                    version,
                    uptime_ms,
                    notes
                }
            ),
            (any::<u32>(), bytes()).prop_map(|(id, bytes)| Message::Stdout { id, bytes }),
            (any::<u32>(), bytes()).prop_map(|(id, bytes)| Message::Stderr { id, bytes }),
            (any::<u32>(), status).prop_map(|(id, status)| Message::Exit { id, status }),
        ]
    }

    proptest! {
        #[test]
        fn any_messages_survive_any_cuts(
            messages in proptest::collection::vec(message(), 0..8),
            cut in 1_usize..50,
        ) {
            let stream: Vec<u8> = messages.iter().flat_map(encoded).collect();
            let mut decoder = Decoder::default();
            let mut received = Vec::new();
            for piece in stream.chunks(cut) {
                decoder.push(piece);
                while let Some(message) = decoder.next_message().unwrap() {
                    received.push(message);
                }
            }
            prop_assert_eq!(received, messages);
        }

        /// Whatever the bytes, the decoder answers; what it accepts encodes to the same bytes.
        #[test]
        fn noise_is_refused_or_is_a_frame(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(Some(message)) = decode_one(&bytes) {
                let again = encoded(&message);
                prop_assert_eq!(decode_one(&again), Ok(Some(message)));
            }
        }
    }
}

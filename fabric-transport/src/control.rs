//! Payloads of the frames that belong to the session itself.
//!
//! | frame | payload, little-endian |
//! | --- | --- |
//! | HELLO | lowest version u16, highest version u16, 0 u32, features u64, instance u64, name |
//! | WELCOME | version u16, epoch u16, 0 u32, features u64, instance u64, name |
//! | ATTACH, ATTACHED | generation u32, window u32 for each virtual lane (blocks) |
//! | REFUSED | generation u32, text |
//! | DETACH | generation u32 |
//! | CREDIT | for each lane: device u32, lane u8, 0 x 3, credit limit u32 |
//! | PING, PONG | 8 bytes of the asker's choice |
//! | CLOSE | text |
//!
//! Names are 1 to [`NAME_BYTES_MAX`] bytes, texts up to [`TEXT_BYTES_MAX`] bytes of UTF-8. The
//! device of ATTACH, ATTACHED, REFUSED and DETACH stands in the frame header.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::frame::{DeviceId, FrameKind, VirtualLane};

/// Bytes of a host's or director's name at most.
pub const NAME_BYTES_MAX: usize = 63;
/// Bytes of a reason at most; longer ones are cut.
pub const TEXT_BYTES_MAX: usize = 400;
/// Blocks of a receive window at most (64 MiB).
pub const WINDOW_BLOCKS_MAX: u32 = 1 << 20;
/// Lanes of one CREDIT frame at most.
pub const CREDITS_MAX: usize = 1024;

/// Receive windows of a device, in blocks, by [`VirtualLane::index`]. 0 closes a lane.
pub type Windows = [u32; VirtualLane::COUNT];

/// A control message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// The host introduces itself.
    Hello {
        /// Lowest protocol version that it speaks.
        version_min: u16,
        /// Highest protocol version that it speaks.
        version_max: u16,
        /// The session of this process that the link is for; a new number begins a new one.
        session: u16,
        /// Which of the session's links this is: the lowest that is up carries the frames.
        priority: u8,
        /// [`features`] that it offers.
        features: u64,
        /// Random for each start of the process.
        instance: u64,
        /// Its name.
        name: String,
    },
    /// The director accepts the session.
    Welcome {
        /// The protocol version of the session.
        version: u16,
        /// The session's epoch: greater than that of any session of this host before it.
        epoch: u16,
        /// The link's number in the session; 0 in version 1.
        path: u16,
        /// [`features`] of the session.
        features: u64,
        /// Random for each start of the process.
        instance: u64,
        /// Its name.
        name: String,
    },
    /// The host asks for a device to be served.
    Attach {
        /// The device's generation.
        generation: u32,
        /// What the host can receive.
        windows: Windows,
    },
    /// The director serves the device.
    Attached {
        /// The device's generation.
        generation: u32,
        /// What the director can receive.
        windows: Windows,
    },
    /// The director does not serve the device.
    Refused {
        /// The generation that was asked for.
        generation: u32,
        /// Why, and what to do.
        reason: String,
    },
    /// The device is gone.
    Detach {
        /// The device's generation.
        generation: u32,
    },
    /// New credit limits.
    Credit(Vec<Credit>),
    /// Only the header's acknowledge field counts.
    Acknowledge,
    /// Are you there?
    Ping(u64),
    /// Yes.
    Pong(u64),
    /// The session ends.
    Close(String),
    /// What the sender thinks of a link of the session.
    Path {
        /// The link's number.
        path: u16,
        /// What it thinks.
        state: PathState,
    },
}

/// What one end tells the other of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathState {
    /// It has given the link up and sent again elsewhere what was not acknowledged.
    Lost,
    /// Its operator wants the frames of both directions there.
    Preferred,
}

/// Bits of HELLO and WELCOME. Those that are not known are offered in vain.
pub mod features {
    /// The frames of a session are spread over all of its links.
    pub const SPREAD: u64 = 1;
}

/// The credit limit of one lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credit {
    /// Of which device.
    pub device: DeviceId,
    /// On which lane.
    pub lane: VirtualLane,
    /// FCCL in blocks, modulo 2^32.
    pub limit: u32,
}

/// A control payload that does not follow the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("payload of {kind:?} is malformed: {problem}")]
pub struct ControlError {
    /// Of which frame.
    pub kind: FrameKind,
    /// What is wrong with it.
    pub problem: &'static str,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct HelloPayload {
    version: U16,
    version_max_or_epoch: U16,
    session_or_path: U16,
    priority: u8,
    reserved: u8,
    features: U64,
    instance: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct AttachPayload {
    generation: U32,
    windows: [U32; VirtualLane::COUNT],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct PathPayload {
    path: U16,
    state: u8,
    reserved: u8,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct CreditPayload {
    device: U32,
    lane: u8,
    reserved: [u8; 3],
    limit: U32,
}

impl Control {
    /// Reads the payload of a frame of `kind`.
    ///
    /// # Errors
    /// [`ControlError`] says what is wrong. DATA frames have no control payload.
    pub fn parse(kind: FrameKind, payload: &[u8]) -> Result<Self, ControlError> {
        let error = |problem| ControlError { kind, problem };
        let length = |_size| error("wrong length");
        let reason = |bytes: &[u8]| -> Result<String, ControlError> {
            if bytes.len() > TEXT_BYTES_MAX {
                return Err(error("text too long"));
            }
            Ok(String::from_utf8_lossy(bytes).into_owned())
        };
        match kind {
            FrameKind::Hello | FrameKind::Welcome => {
                let (fixed, name) =
                    HelloPayload::ref_from_prefix(payload).map_err(|_size| error("too short"))?;
                if name.is_empty() || name.len() > NAME_BYTES_MAX {
                    return Err(error("name is empty or too long"));
                }
                let name = std::str::from_utf8(name)
                    .ok()
                    .filter(|name| name.chars().all(|c| c.is_ascii_graphic()))
                    .ok_or_else(|| error("name is not printable ASCII"))?
                    .to_owned();
                let (features, instance) = (fixed.features.get(), fixed.instance.get());
                Ok(if kind == FrameKind::Hello {
                    let version_max = fixed.version_max_or_epoch.get();
                    Self::Hello {
                        version_min: fixed.version.get(),
                        version_max,
                        session: fixed.session_or_path.get(),
                        priority: fixed.priority,
                        features,
                        instance,
                        name,
                    }
                } else {
                    let epoch = fixed.version_max_or_epoch.get();
                    Self::Welcome {
                        version: fixed.version.get(),
                        epoch,
                        path: fixed.session_or_path.get(),
                        features,
                        instance,
                        name,
                    }
                })
            }
            FrameKind::Attach | FrameKind::Attached => {
                let fixed = AttachPayload::ref_from_bytes(payload)
                    .map_err(|_size| error("wrong length"))?;
                let windows = fixed.windows.map(U32::get);
                if windows.iter().any(|window| *window > WINDOW_BLOCKS_MAX) {
                    return Err(error("window too large"));
                }
                let generation = fixed.generation.get();
                Ok(if kind == FrameKind::Attach {
                    Self::Attach {
                        generation,
                        windows,
                    }
                } else {
                    Self::Attached {
                        generation,
                        windows,
                    }
                })
            }
            FrameKind::Refused => {
                let (generation, text) =
                    U32::read_from_prefix(payload).map_err(|_size| error("too short"))?;
                Ok(Self::Refused {
                    generation: generation.get(),
                    reason: reason(text)?,
                })
            }
            FrameKind::Detach => {
                let generation =
                    U32::read_from_bytes(payload).map_err(|_size| error("wrong length"))?;
                Ok(Self::Detach {
                    generation: generation.get(),
                })
            }
            FrameKind::Credit => {
                let credits = <[CreditPayload]>::ref_from_bytes(payload)
                    .map_err(|_size| error("wrong length"))?;
                if credits.len() > CREDITS_MAX {
                    return Err(error("too many lanes"));
                }
                let credits = credits.iter().map(|credit| {
                    Some(Credit {
                        device: DeviceId(credit.device.get()),
                        lane: VirtualLane::from_number(credit.lane)?,
                        limit: credit.limit.get(),
                    })
                });
                let credits: Option<_> = credits.collect();
                credits
                    .map(Self::Credit)
                    .ok_or_else(|| error("unknown lane"))
            }
            FrameKind::Acknowledge if payload.is_empty() => Ok(Self::Acknowledge),
            FrameKind::Acknowledge => Err(error("wrong length")),
            FrameKind::Ping => U64::read_from_bytes(payload)
                .map(|nonce| Self::Ping(nonce.get()))
                .map_err(length),
            FrameKind::Pong => U64::read_from_bytes(payload)
                .map(|nonce| Self::Pong(nonce.get()))
                .map_err(length),
            FrameKind::Close => Ok(Self::Close(reason(payload)?)),
            FrameKind::Path => {
                let fixed =
                    PathPayload::ref_from_bytes(payload).map_err(|_size| error("wrong length"))?;
                let state = match fixed.state {
                    0 => PathState::Lost,
                    1 => PathState::Preferred,
                    _ => return Err(error("unknown state")),
                };
                Ok(Self::Path {
                    path: fixed.path.get(),
                    state,
                })
            }
            FrameKind::Data => Err(error("data is no control message")),
        }
    }

    /// The kind of frame that carries this message.
    #[must_use]
    pub fn kind(&self) -> FrameKind {
        match self {
            Self::Hello { .. } => FrameKind::Hello,
            Self::Welcome { .. } => FrameKind::Welcome,
            Self::Attach { .. } => FrameKind::Attach,
            Self::Attached { .. } => FrameKind::Attached,
            Self::Refused { .. } => FrameKind::Refused,
            Self::Detach { .. } => FrameKind::Detach,
            Self::Credit(_) => FrameKind::Credit,
            Self::Acknowledge => FrameKind::Acknowledge,
            Self::Ping(_) => FrameKind::Ping,
            Self::Pong(_) => FrameKind::Pong,
            Self::Close(_) => FrameKind::Close,
            Self::Path { .. } => FrameKind::Path,
        }
    }

    /// Appends the payload.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Hello {
                version_min,
                version_max,
                session,
                priority,
                features,
                instance,
                name,
            } => {
                let fixed = HelloPayload {
                    version: (*version_min).into(),
                    version_max_or_epoch: (*version_max).into(),
                    session_or_path: (*session).into(),
                    priority: *priority,
                    reserved: 0,
                    features: (*features).into(),
                    instance: (*instance).into(),
                };
                bytes.extend_from_slice(fixed.as_bytes());
                bytes.extend_from_slice(cut(name, NAME_BYTES_MAX));
            }
            Self::Welcome {
                version,
                epoch,
                path,
                features,
                instance,
                name,
            } => {
                let fixed = HelloPayload {
                    version: (*version).into(),
                    version_max_or_epoch: (*epoch).into(),
                    session_or_path: (*path).into(),
                    priority: 0,
                    reserved: 0,
                    features: (*features).into(),
                    instance: (*instance).into(),
                };
                bytes.extend_from_slice(fixed.as_bytes());
                bytes.extend_from_slice(cut(name, NAME_BYTES_MAX));
            }
            Self::Attach {
                generation,
                windows,
            }
            | Self::Attached {
                generation,
                windows,
            } => {
                let fixed = AttachPayload {
                    generation: (*generation).into(),
                    windows: windows.map(U32::new),
                };
                bytes.extend_from_slice(fixed.as_bytes());
            }
            Self::Refused { generation, reason } => {
                bytes.extend_from_slice(&generation.to_le_bytes());
                bytes.extend_from_slice(cut(reason, TEXT_BYTES_MAX));
            }
            Self::Detach { generation } => bytes.extend_from_slice(&generation.to_le_bytes()),
            Self::Credit(credits) => {
                for credit in credits {
                    let fixed = CreditPayload {
                        device: credit.device.0.into(),
                        lane: credit.lane.number(),
                        reserved: [0; 3],
                        limit: credit.limit.into(),
                    };
                    bytes.extend_from_slice(fixed.as_bytes());
                }
            }
            Self::Acknowledge => {}
            Self::Ping(nonce) | Self::Pong(nonce) => bytes.extend_from_slice(&nonce.to_le_bytes()),
            Self::Close(reason) => bytes.extend_from_slice(cut(reason, TEXT_BYTES_MAX)),
            Self::Path { path, state } => {
                let fixed = PathPayload {
                    path: (*path).into(),
                    state: match state {
                        PathState::Lost => 0,
                        PathState::Preferred => 1,
                    },
                    reserved: 0,
                };
                bytes.extend_from_slice(fixed.as_bytes());
            }
        }
    }
}

/// The longest prefix of whole characters with at most `bytes_max` bytes.
fn cut(text: &str, bytes_max: usize) -> &[u8] {
    let end = (0..=bytes_max.min(text.len()))
        .rev()
        .find(|end| text.is_char_boundary(*end));
    text.as_bytes().get(..end.unwrap_or(0)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn welcome_stands_where_the_table_says() {
        let welcome = Control::Welcome {
            version: 1,
            epoch: 0x0203,
            path: 0,
            features: 0,
            instance: 0x1112_1314_1516_1718,
            name: "d1".into(),
        };
        let mut bytes = Vec::new();
        welcome.encode(&mut bytes);
        #[rustfmt::skip]
        let golden = [
            1, 0, 3, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11, b'd', b'1',
        ];
        assert_eq!(bytes, golden);
        assert_eq!(Control::parse(FrameKind::Welcome, &golden), Ok(welcome));
    }

    #[test]
    fn hello_and_path_stand_where_the_table_says() {
        let hello = Control::Hello {
            version_min: 1,
            version_max: 2,
            session: 0x0405,
            priority: 3,
            features: features::SPREAD,
            instance: 9,
            name: "h1".into(),
        };
        let mut bytes = Vec::new();
        hello.encode(&mut bytes);
        #[rustfmt::skip]
        let golden = [
            1, 0, 2, 0, 5, 4, 3, 0, 1, 0, 0, 0, 0, 0, 0, 0,
            9, 0, 0, 0, 0, 0, 0, 0, b'h', b'1',
        ];
        assert_eq!(bytes, golden);
        assert_eq!(Control::parse(FrameKind::Hello, &golden), Ok(hello));
        let path = Control::Path {
            path: 0x0102,
            state: PathState::Preferred,
        };
        bytes.clear();
        path.encode(&mut bytes);
        assert_eq!(bytes, [2, 1, 1, 0]);
        assert!(Control::parse(FrameKind::Path, &[2, 1, 2, 0]).is_err());
    }

    #[test]
    fn attach_and_credit_stand_where_the_table_says() {
        let mut bytes = Vec::new();
        Control::Attach {
            generation: 3,
            windows: [1, 2, 0x0304, 5],
        }
        .encode(&mut bytes);
        assert_eq!(
            bytes,
            [3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 4, 3, 0, 0, 5, 0, 0, 0]
        );
        bytes.clear();
        let credit = Credit {
            device: DeviceId(7),
            lane: VirtualLane::StorageData,
            limit: 0x0809,
        };
        Control::Credit(vec![credit]).encode(&mut bytes);
        assert_eq!(bytes, [7, 0, 0, 0, 3, 0, 0, 0, 9, 8, 0, 0]);
    }

    #[test]
    fn p06_window_beyond_the_limit_is_refused() {
        let mut bytes = Vec::new();
        let windows = [0, 0, 0, WINDOW_BLOCKS_MAX + 1];
        Control::Attach {
            generation: 0,
            windows,
        }
        .encode(&mut bytes);
        assert!(Control::parse(FrameKind::Attach, &bytes).is_err());
    }

    #[test]
    fn long_reason_is_cut_between_characters() {
        let mut bytes = Vec::new();
        Control::Close("ä".repeat(TEXT_BYTES_MAX)).encode(&mut bytes);
        assert_eq!(bytes.len(), TEXT_BYTES_MAX);
        assert!(std::str::from_utf8(&bytes).is_ok());
    }

    proptest! {
        #[test]
        fn what_parses_encodes_to_the_same_message(number in 0u8..15, bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let Some(kind) = FrameKind::from_number(number) else { return Ok(()) };
            if let Ok(control) = Control::parse(kind, &bytes) {
                prop_assert_eq!(control.kind(), kind);
                let mut encoded = Vec::new();
                control.encode(&mut encoded);
                prop_assert_eq!(Control::parse(kind, &encoded), Ok(control));
            }
        }
    }
}

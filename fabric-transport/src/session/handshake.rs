//! HELLO and WELCOME: how a new link finds its session.
//!
//! ```text
//! host ── HELLO: versions, name, process instance, session number, priority ──> director
//! host <── WELCOME: version, epoch, number of the link ── director
//! ```
//!
//! The director knows a session by host name, instance and session number: a link with the same
//! three is another path of it, everything else is a new session. A host that is welcomed with
//! another epoch or by another director process than its session has knows that this one is lost.
//!
//! HELLO always is a frame of version 1 and has its length, so that a peer of version 1 answers it.

use crate::control::{Control, features};
use crate::frame::{DeviceId, FrameBuffer, FrameHeader, FrameKind, VERSION, VERSION_MIN};

use super::{ProtocolError, SessionConfig};

/// What a host says of itself and of the link that it greets on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// The host's name.
    pub host: String,
    /// Random for each start of its process.
    pub instance: u64,
    /// Its number of the session.
    pub session: u16,
    /// Which of the session's links this is, from 0.
    pub priority: u8,
    /// The version that both speak.
    pub version: u8,
    /// [`features`] that both know.
    pub features: u64,
}

/// What both ends know of a session once a link was welcomed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Established {
    /// The protocol version.
    pub version: u8,
    /// The session's epoch.
    pub epoch: u16,
    /// [`features`] in use.
    pub features: u64,
    /// The peer's name.
    pub peer: String,
    /// Of the peer's process.
    pub peer_instance: u64,
}

impl Established {
    /// What a handshake would have found with `peer`, for ends that need none.
    #[must_use]
    pub fn without_handshake(peer: &str, epoch: u16) -> Self {
        Self {
            version: VERSION,
            epoch,
            features: 0,
            peer: peer.to_owned(),
            peer_instance: 0,
        }
    }
}

fn frame(version: u8, epoch: u16, control: &Control, checksummed: bool) -> FrameBuffer {
    let mut buffer = FrameBuffer::with_capacity(96);
    buffer.append_with(|bytes| control.encode(bytes));
    let header = FrameHeader {
        version,
        kind: control.kind(),
        lane: None,
        more: false,
        epoch,
        device: DeviceId(0),
        payload_bytes: 0,
        attachment: 0,
        sequence: 0,
        credit_limit: 0,
        acknowledge: 0,
    };
    buffer.seal(&header, checksummed);
    buffer
}

fn known_features(spread: bool) -> u64 {
    if spread { features::SPREAD } else { 0 }
}

/// A host's HELLO on a new link of its session number `session`.
#[must_use]
pub fn hello(config: &SessionConfig, session: u16, priority: u8, checksummed: bool) -> FrameBuffer {
    let control = Control::Hello {
        version_min: VERSION_MIN.into(),
        version_max: VERSION.into(),
        session,
        priority,
        features: known_features(config.spread),
        instance: config.instance,
        name: config.name.clone(),
    };
    frame(VERSION_MIN, 0, &control, checksummed)
}

/// Reads a HELLO.
///
/// # Errors
/// It is none, or there is no common version.
pub fn greeting(header: &FrameHeader, payload: &[u8]) -> Result<Greeting, ProtocolError> {
    let Control::Hello {
        version_min,
        version_max,
        session,
        priority,
        features,
        instance,
        name,
    } = greeting_control(header, payload)?
    else {
        return Err(ProtocolError::Greeting { kind: header.kind });
    };
    let version = (VERSION_MIN..=VERSION)
        .rev()
        .find(|version| (version_min..=version_max).contains(&u16::from(*version)));
    let version = version.ok_or(ProtocolError::Version {
        version_min,
        version_max,
    })?;
    Ok(Greeting {
        host: name,
        instance,
        session,
        priority,
        version,
        // Whether frames are spread is the host's choice: a director can do either.
        features: if version == VERSION_MIN {
            0
        } else {
            features & known_features(true)
        },
    })
}

/// A director's WELCOME: the link is number `path` of the session with `epoch`.
#[must_use]
pub fn welcome(
    config: &SessionConfig,
    greeting: &Greeting,
    epoch: u16,
    path: u16,
    checksummed: bool,
) -> FrameBuffer {
    let control = Control::Welcome {
        version: greeting.version.into(),
        epoch,
        path: if greeting.version == VERSION_MIN {
            0
        } else {
            path
        },
        features: greeting.features,
        instance: config.instance,
        name: config.name.clone(),
    };
    frame(greeting.version, epoch, &control, checksummed)
}

/// A director's refusal of a link.
#[must_use]
pub fn refusal(reason: &str, checksummed: bool) -> FrameBuffer {
    frame(
        VERSION_MIN,
        0,
        &Control::Close(reason.to_owned()),
        checksummed,
    )
}

/// Reads the answer to a HELLO: the session, and the link's number in it.
///
/// # Errors
/// The director refuses ([`ProtocolError::Refused`]), or the answer is none.
pub fn welcomed(
    config: &SessionConfig,
    header: &FrameHeader,
    payload: &[u8],
) -> Result<(Established, u16), ProtocolError> {
    match greeting_control(header, payload)? {
        Control::Welcome {
            version,
            epoch,
            path,
            features,
            instance,
            name,
        } => {
            let common = u8::try_from(version)
                .ok()
                .filter(|version| (VERSION_MIN..=VERSION).contains(version));
            let version = common.ok_or(ProtocolError::Version {
                version_min: version,
                version_max: version,
            })?;
            let established = Established {
                version,
                epoch,
                features: features & known_features(config.spread),
                peer: name,
                peer_instance: instance,
            };
            Ok((established, path))
        }
        Control::Close(reason) => Err(ProtocolError::Refused { reason }),
        _ => Err(ProtocolError::Greeting { kind: header.kind }),
    }
}

fn greeting_control(header: &FrameHeader, payload: &[u8]) -> Result<Control, ProtocolError> {
    match header.kind {
        FrameKind::Hello | FrameKind::Welcome | FrameKind::Close => {
            Ok(Control::parse(header.kind, payload)?)
        }
        kind => Err(ProtocolError::Greeting { kind }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greet(frame: &FrameBuffer) -> Result<Greeting, ProtocolError> {
        let (header, payload) = FrameHeader::parse(frame.frame(), false)?;
        greeting(&header, payload)
    }

    #[test]
    fn host_and_director_agree() {
        let host = SessionConfig {
            spread: true,
            ..SessionConfig::new("h1", 7)
        };
        let greeting = greet(&hello(&host, 3, 1, false)).unwrap();
        let expected = Greeting {
            host: "h1".into(),
            instance: 7,
            session: 3,
            priority: 1,
            version: 2,
            features: features::SPREAD,
        };
        assert_eq!(greeting, expected);
        let director = SessionConfig::new("d1", 8);
        let welcome = welcome(&director, &greeting, 9, 4, false);
        let (header, payload) = FrameHeader::parse(welcome.frame(), false).unwrap();
        let established = Established {
            version: 2,
            epoch: 9,
            features: features::SPREAD,
            peer: "d1".into(),
            peer_instance: 8,
        };
        assert_eq!(welcomed(&host, &header, payload), Ok((established, 4)));
    }

    /// The bytes that a host of version 1 sent, and what it understands as an answer.
    #[test]
    fn p03_peers_of_version_1_are_served_in_version_1() {
        #[rustfmt::skip]
        let hello: [u8; 58] = [
            0x4f, 0x4d, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 26, 0, 0, 0,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            7, 0, 0, 0, 0, 0, 0, 0, b'h', b'1',
        ];
        let (header, payload) = FrameHeader::parse(&hello, false).unwrap();
        let greeting = greeting(&header, payload).unwrap();
        assert_eq!((greeting.version, greeting.features), (1, 0));
        let welcome = welcome(&SessionConfig::new("d1", 8), &greeting, 9, 4, false);
        #[rustfmt::skip]
        let golden: [u8; 58] = [
            0x4f, 0x4d, 1, 2, 0, 0, 9, 0, 0, 0, 0, 0, 26, 0, 0, 0,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            1, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            8, 0, 0, 0, 0, 0, 0, 0, b'd', b'1',
        ];
        assert_eq!(welcome.frame(), golden);
        let (header, payload) = FrameHeader::parse(&golden, false).unwrap();
        let host = SessionConfig::new("h1", 7);
        assert_eq!(welcomed(&host, &header, payload).unwrap().0.version, 1);
    }

    #[test]
    fn p03_no_common_version_is_named() {
        let control = Control::Hello {
            version_min: 3,
            version_max: 9,
            session: 0,
            priority: 0,
            features: 0,
            instance: 0,
            name: "h1".into(),
        };
        let expected = ProtocolError::Version {
            version_min: 3,
            version_max: 9,
        };
        assert_eq!(greet(&frame(1, 0, &control, false)), Err(expected));
    }

    #[test]
    fn a_refusal_is_understood() {
        let refusal = refusal("host is unknown", false);
        let (header, payload) = FrameHeader::parse(refusal.frame(), false).unwrap();
        let refused = ProtocolError::Refused {
            reason: "host is unknown".into(),
        };
        let host = SessionConfig::new("h1", 7);
        assert_eq!(welcomed(&host, &header, payload), Err(refused));
    }
}

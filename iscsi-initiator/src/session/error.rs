//! Why a session ended.

use super::frame::FrameError;

/// Longest part of a target's text that an error repeats.
const QUOTED_BYTES_MAX: usize = 120;

/// Why a session ended. At error recovery level 0 each of these costs the connection; the next
/// login takes the place of the old session.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// Bytes that are no PDU.
    #[error("target sent a damaged PDU")]
    Frame(#[from] FrameError),
    /// A PDU that may not come, or not now.
    #[error("target broke the protocol: {pdu} {rule}; the connection is made anew")]
    Protocol {
        /// What came.
        pdu: &'static str,
        /// What is wrong with it.
        rule: &'static str,
    },
    /// A header with an opcode that no target sends.
    #[error("target sent unknown opcode {opcode:#04x}; is this an iSCSI port?")]
    Opcode {
        /// What it sent.
        opcode: u8,
    },
    /// RFC 7143 section 11.13.5.
    #[error("target refused the login: {} ({class:#04x}{detail:02x})", login_status(*class, *detail))]
    LoginRefused {
        /// Status-Class.
        class: u8,
        /// Status-Detail.
        detail: u8,
    },
    /// Login status class 1.
    #[error("target has moved to {address}; give that address as its portal")]
    Moved {
        /// `host:port`, as the target writes it.
        address: String,
    },
    /// The login took too long.
    #[error("target did not finish the login in time; is it overloaded?")]
    LoginTimeout,
    /// A key has a value that cannot be.
    #[error("target answered {key}={value}, which cannot be agreed on; look into its set-up")]
    Negotiation {
        /// The key.
        key: String,
        /// The value.
        value: String,
    },
    /// It wants an authentication that we have no credentials for, or cannot do.
    #[error("target wants authentication by {method}; give CHAP credentials")]
    Authentication {
        /// What it asked for.
        method: String,
    },
    /// The target did not know its secret.
    #[error("target did not prove that it knows its CHAP secret; check name and secret")]
    TargetUnproven,
    /// No answer to a ping.
    #[error("target did not answer a ping in time; look at the network and the target")]
    Silent,
    /// RFC 7143 section 11.17.1.
    #[error("target rejected a PDU, reason {reason:#04x}; the connection is made anew")]
    Rejected {
        /// Its reason.
        reason: u8,
    },
    /// The target said so in an Asynchronous Message.
    #[error("target ends the connection (asynchronous event {event})")]
    TargetEnds {
        /// AsyncEvent.
        event: u8,
    },
    /// A logout was not answered, or refused.
    #[error("target did not answer the logout")]
    Logout,
}

fn login_status(class: u8, detail: u8) -> &'static str {
    match (class, detail) {
        (2, 0x01) => "authentication failed; check CHAP name and secret",
        (2, 0x02) => "this initiator may not use it; allow its name at the target",
        (2, 0x03) => "no such target there; check its name and portal",
        (2, 0x04) => "target was removed",
        (2, 0x05) => "target does not speak version 0",
        (2, 0x06) => "too many connections",
        (2, _) => "initiator error; look into the target's log",
        (3, 0x01) => "service unavailable; is the target busy or stopping?",
        (3, 0x02) => "target is out of resources",
        _ => "target error; look into the target's log",
    }
}

pub(crate) const fn violation(pdu: &'static str, rule: &'static str) -> SessionError {
    SessionError::Protocol { pdu, rule }
}

/// As much of a target's text as an error may repeat.
pub(crate) fn quoted(text: &str) -> String {
    text.chars()
        .filter(|character| !character.is_control())
        .take(QUOTED_BYTES_MAX)
        .collect()
}

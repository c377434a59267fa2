//! iSCSI initiator (RFC 7143): sessions that pass CDBs through to the logical units of a target.
//!
//! - [`Initiator`]: one session to one target, which makes itself anew when it is lost.
//! - [`discover`]: which targets a portal has.
//!
//! One connection a session, error recovery level 0: any error costs the connection, and commands
//! in flight go back to the caller, who alone knows which of them may be sent twice.
//!
//! The protocol itself, `session`, is pure: bytes and time in, bytes and events out.

#![forbid(unsafe_code)]

mod connection;
mod discovery;
mod initiator;
mod name;
mod options;
mod session;

pub use connection::ConnectionError;
pub use discovery::discover;
pub use initiator::{Initiator, Notice, Refused, State};
pub use name::{ChapCredential, Credentials, IscsiName, MutualChap, NameError};
pub use options::{Options, Target};
pub use session::{
    Answer, Command, DigestPolicy, DiscoveredTarget, FrameError, Offer, Outcome, Parameters,
    Residual, SessionError, SubmitError, TaskAttribute, TaskFunction, TaskFunctionOutcome, TaskTag,
    Transfer, lun_field,
};

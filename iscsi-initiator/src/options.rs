//! What an initiator is told when it starts.

use std::net::SocketAddr;
use std::time::Duration;

use crate::name::{Credentials, IscsiName};
use crate::session::{ENTROPY_BYTES, LoginConfig, Offer, SessionConfig};

/// Where the logical units are and who asks for them.
#[derive(Clone, Debug)]
pub struct Target {
    /// Address and port; 3260 is usual.
    pub portal: SocketAddr,
    /// The target's name.
    pub name: IscsiName,
    /// Our name.
    pub initiator: IscsiName,
    /// What each side proves.
    pub credentials: Credentials,
}

/// Limits and times of a session.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What is offered at login.
    pub offer: Offer,
    /// The ISID; a random one if `None`. Two sessions of one initiator name to one target must
    /// have different ones: the later would end the earlier.
    pub isid: Option<[u8; 6]>,
    /// Most commands in flight, 1 to 61,440; more are refused.
    pub commands_max: usize,
    /// Most data bytes of all commands in flight; more are refused.
    pub bytes_max: usize,
    /// How long a connection may take.
    pub connect_within: Duration,
    /// How long a login may take.
    pub login_within: Duration,
    /// After how long a silence the target is pinged.
    pub ping_after: Duration,
    /// How long the answer to a ping may take.
    pub pong_within: Duration,
    /// Shortest and longest pause before another login; it doubles as long as sessions do not
    /// outlast the longest. The target may want a longer one (DefaultTime2Wait).
    pub pause: (Duration, Duration),
}

impl Default for Options {
    /// 128 commands of 64 MiB together; seconds for everything.
    fn default() -> Self {
        Self {
            offer: Offer::default(),
            isid: None,
            commands_max: 128,
            bytes_max: 64 * 1024 * 1024,
            connect_within: Duration::from_secs(5),
            login_within: Duration::from_secs(10),
            ping_after: Duration::from_secs(5),
            pong_within: Duration::from_secs(5),
            pause: (Duration::from_millis(100), Duration::from_secs(10)),
        }
    }
}

impl Options {
    /// The core's configuration of one session; `name` is `None` for a discovery.
    pub(crate) fn session(
        &self,
        initiator: &IscsiName,
        name: Option<&IscsiName>,
        credentials: &Credentials,
        isid: [u8; 6],
        number: u64,
    ) -> Result<SessionConfig, rustix::io::Errno> {
        let mut entropy = [0; ENTROPY_BYTES];
        fill_random(&mut entropy)?;
        Ok(SessionConfig {
            login: LoginConfig {
                initiator: initiator.clone(),
                target: name.cloned(),
                credentials: credentials.clone(),
                offer: self.offer,
                entropy,
            },
            isid,
            number,
            tasks_max: self.commands_max,
            bytes_max: self.bytes_max,
            login_within: self.login_within,
            ping_after: self.ping_after,
            pong_within: self.pong_within,
        })
    }

    /// The ISID that was given, or a random one (RFC 7143 section 11.12.5, type 10b).
    pub(crate) fn isid(&self) -> Result<[u8; 6], rustix::io::Errno> {
        if let Some(isid) = self.isid {
            return Ok(isid);
        }
        let mut isid = [0; 6];
        fill_random(&mut isid)?;
        isid[0] = 0x80;
        Ok(isid)
    }
}

fn fill_random(bytes: &mut [u8]) -> Result<(), rustix::io::Errno> {
    // As few bytes as these come whole.
    rustix::rand::getrandom(bytes, rustix::rand::GetRandomFlags::empty()).map(drop)
}

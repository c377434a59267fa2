//! Which targets a portal has.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use crate::connection::{Connection, ConnectionError, Inbox, connect_to, wait};
use crate::name::{Credentials, IscsiName};
use crate::options::Options;
use crate::session::{DiscoveredTarget, Event, Session};

/// Asks a portal for all its targets (SendTargets, RFC 7143 appendix C). Takes at most the time
/// that a connection and two logins may take.
///
/// # Errors
/// [`ConnectionError`].
pub fn discover(
    portal: SocketAddr,
    initiator: &IscsiName,
    credentials: &Credentials,
    options: &Options,
) -> Result<Vec<DiscoveredTarget>, ConnectionError> {
    let set_up = |error: rustix::io::Errno| ConnectionError::SetUp(error.into());
    let failed = |source| ConnectionError::Session { portal, source };
    let lost = |source| ConnectionError::Lost { portal, source };
    let isid = options.isid().map_err(set_up)?;
    let config = options
        .session(initiator, None, credentials, isid, 0)
        .map_err(set_up)?;
    let patience = options
        .connect_within
        .saturating_add(options.login_within.saturating_mul(2));
    let start = Instant::now();
    let stream = connect_to(portal, options.connect_within, None)
        .map_err(|source| ConnectionError::Connect { portal, source })?
        .map(Arc::new)
        .ok_or(ConnectionError::Slow { portal })?;
    let session: Session<(), ()> = Session::new(config, start.elapsed());
    let mut inbox = Inbox::new(session.pdu_bytes_max());
    let mut connection = Connection::new(session, Arc::clone(&stream));
    let mut found = None;
    while !connection.session.has_ended() {
        connection.flush().map_err(lost)?;
        let now = start.elapsed();
        if now >= patience {
            return Err(ConnectionError::Slow { portal });
        }
        let next = connection.session.poll_timeout().unwrap_or(patience);
        let pause = next.min(patience).saturating_sub(now);
        let ready = wait(stream.as_fd(), connection.interest(), None, pause).map_err(lost)?;
        if ready.stream {
            inbox.fill(&stream).map_err(lost)?;
        }
        let now = start.elapsed();
        let session = &mut connection.session;
        inbox.feed(session, now).map_err(failed)?;
        session.handle_timeout(now).map_err(failed)?;
        while let Some(event) = session.poll_event() {
            match event {
                Event::Up(_) => session.send_targets(),
                Event::Targets(targets) => {
                    found = Some(targets);
                    session.log_out(now);
                }
                Event::Done(..) | Event::Managed(..) | Event::Sense { .. } => {}
            }
        }
    }
    found.ok_or(ConnectionError::LoggedOut { portal })
}

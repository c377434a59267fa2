//! Events of the connection manager, each given to the link that it is of.
//!
//! The links that one listener accepts share its event channel. So whoever reads the channel, the
//! listener or any of the links, gives each event to its owner and wakes it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};
use sideway::rdmacm::communication_manager::{
    EventChannel, EventType, GetEventErrorKind, Identifier, PortSpace,
};

use super::super::ring;
use super::{failed, sys};

/// Peers that wait to be accepted. The next one is refused.
const REQUESTS_MAX: usize = 64;
/// Events that one link may leave unread. A connection has fewer in all its life.
const NEWS_MAX: usize = 16;

/// An event of one connection: what happened, and the status (0, an errno or a reject reason).
pub(super) type News = (EventType, i32);

/// Where the events of one connection go.
pub(super) struct Mailbox {
    news: Mutex<VecDeque<News>>,
    pub(super) wake: EventFd,
}

impl Mailbox {
    fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            news: Mutex::default(),
            wake: event_fd()?,
        }))
    }

    /// The oldest event that is left.
    pub(super) fn take(&self) -> Option<News> {
        lock(&self.news).pop_front()
    }
}

/// An event channel and the requests that came by it.
pub(super) struct Manager {
    events: Arc<EventChannel>,
    requests: Mutex<VecDeque<Arc<Identifier>>>,
    /// Tells the listener of requests that somebody else has read.
    pub(super) wake: EventFd,
}

impl Manager {
    /// # Errors
    /// This machine has no RDMA: neither librdmacm nor the kernel's part of it.
    pub(super) fn new() -> io::Result<Arc<Self>> {
        let events = EventChannel::new().map_err(failed(
            "no RDMA here (are librdmacm, libibverbs and the module rdma_ucm there?)",
        ))?;
        events.set_nonblocking(true)?;
        Ok(Arc::new(Self {
            events,
            requests: Mutex::default(),
            wake: event_fd()?,
        }))
    }

    /// A new connection or listener.
    ///
    /// # Errors
    /// The kernel has no room.
    pub(super) fn identifier(&self) -> io::Result<(Arc<Identifier>, Arc<Mailbox>)> {
        let id = self
            .events
            .create_id(PortSpace::Tcp)
            .map_err(failed("no identifier of the connection manager"))?;
        let mailbox = give_mailbox(&id)?;
        Ok((id, mailbox))
    }

    /// Readable when [`Self::dispatch`] has something to do.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        sys::events_fd(&self.events)
    }

    /// The oldest peer that wants to connect.
    pub(super) fn request(&self) -> Option<Arc<Identifier>> {
        lock(&self.requests).pop_front()
    }

    /// Refuses the peers that wait.
    pub(super) fn refuse_all(&self) {
        let requests = std::mem::take(&mut *lock(&self.requests));
        // The kernel refuses whoever's identifier goes before it was accepted.
        drop(requests);
    }

    /// Gives out the events that are there.
    ///
    /// # Errors
    /// The channel is of no use.
    pub(super) fn dispatch(&self) -> io::Result<()> {
        // Held all the time, so that two who read at once keep the order of events.
        let mut requests = lock(&self.requests);
        let mut refused = Vec::new();
        loop {
            let event = match self.events.get_cm_event() {
                Ok(event) => event,
                Err(error) => match error.0 {
                    GetEventErrorKind::NoEvent => break,
                    GetEventErrorKind::Rdmacm(error)
                        if error.kind() == io::ErrorKind::Interrupted =>
                    {
                        continue;
                    }
                    _ => return Err(failed("no events of connections")(error)),
                },
            };
            let (id, kind, status) = (event.cm_id(), event.event_type(), event.status());
            // Before the identifier may go: that waits for its events.
            event.ack().map_err(failed("event is not acknowledged"))?;
            let Some(id) = id else { continue };
            if kind == EventType::ConnectRequest {
                if requests.len() < REQUESTS_MAX {
                    requests.push_back(id);
                    ring(&self.wake);
                } else {
                    refused.push(id);
                }
            } else if let Some(mailbox) = id.get_context::<Arc<Mailbox>>() {
                let mut news = lock(&mailbox.news);
                if news.len() < NEWS_MAX {
                    news.push_back((kind, status));
                }
                ring(&mailbox.wake);
            }
        }
        drop(requests);
        if !refused.is_empty() {
            tracing::warn!(peers = refused.len(), "too many RDMA peers wait, refused");
        }
        Ok(())
    }
}

/// Gives a connection its mailbox.
///
/// # Errors
/// The kernel has no descriptors left.
pub(super) fn give_mailbox(id: &Identifier) -> io::Result<Arc<Mailbox>> {
    let mailbox = Mailbox::new()?;
    id.setup_context(mailbox.clone());
    Ok(mailbox)
}

/// Forgets that `event` rang.
pub(super) fn forget(event: &EventFd) {
    if let Err(error) = event.read()
        && error != nix::Error::EAGAIN
    {
        tracing::error!(%error, "eventfd cannot be read");
    }
}

fn event_fd() -> nix::Result<EventFd> {
    EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whole between any two statements: a panic elsewhere changes nothing.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! The thread of a session: reads its links, delivers, keeps time, and ends with the session.

use std::borrow::Cow;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::reassembly::Reassembly;
use super::{Directory, Endpoint, LaneClient, LaneSet, NewPath, Receipt, now};
use crate::frame::{self, DeviceId, FrameError, FrameHeader, VirtualLane};
use crate::link::{Filled, LinkReceiver, fill_or_spin, spin_allowed};
use crate::session::{CloseReason, PathCause, Role, SessionEvent, SessionState};
use crate::told::Told;

/// Rounds of reading after which the links that had nothing are looked at too.
const ROUNDS_MAX: u32 = 16;
/// Reads of a link that cannot be written any more; a socket's buffer holds less.
const LAST_READS_MAX: usize = 64;
/// Tokens of the epoll instance; links have their number.
const TIMER: u64 = 1 << 16;
const WAKE: u64 = TIMER + 1;

/// The receiving half of one link.
struct ReadPath {
    id: u16,
    receiver: Box<dyn LinkReceiver>,
    checksummed: bool,
    /// Its far end, for logs.
    peer: String,
    /// There may be something to read.
    ready: bool,
    /// Frames of the last fill that the handshake has dealt with.
    handled: usize,
}

impl ReadPath {
    /// The frames of the last fill, and what is wrong with the one behind them.
    fn parse(&self) -> (Vec<(FrameHeader, &[u8])>, Option<FrameError>) {
        let frames = match self.receiver.frames() {
            Ok(frames) => frames,
            Err(error) => return (Vec::new(), Some(error)),
        };
        let mut parsed = Vec::with_capacity(frames.len());
        for frame in frames.into_iter().skip(self.handled) {
            match FrameHeader::parse(frame, self.checksummed) {
                Ok(frame) => parsed.push(frame),
                Err(error) => return (parsed, Some(error)),
            }
        }
        (parsed, None)
    }
}

pub(super) struct SessionThread {
    endpoint: Arc<Endpoint>,
    role: Role,
    busy_poll: Duration,
    /// The link that brought something last: the one to look at before sleeping.
    busy_path: Option<u16>,
    directory: Arc<dyn Directory>,
    epoll: Epoll,
    paths: Vec<ReadPath>,
    /// The link whose frames are being delivered, unless it is lost meanwhile.
    delivering: Option<u16>,
    reassembly: Reassembly,
    // Kept for their room.
    consumed: Vec<(DeviceId, VirtualLane, usize)>,
    /// The clients of a batch.
    touched: Vec<Arc<dyn LaneClient>>,
    /// Number of the batch.
    batch: u64,
    /// Why devices were refused.
    told: Told,
}

/// What a batch of frames asks for, in the order of the frames.
enum Action<'a> {
    Event(SessionEvent),
    Deliver {
        /// Which of the batch's clients.
        client: usize,
        device: DeviceId,
        lane: VirtualLane,
        payload: Cow<'a, [u8]>,
    },
}

impl SessionThread {
    pub(super) fn new(
        endpoint: Arc<Endpoint>,
        role: Role,
        directory: Arc<dyn Directory>,
        busy_poll: Duration,
    ) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let readable = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        epoll.add(endpoint.timer.as_fd(), EpollEvent::new(readable, TIMER))?;
        epoll.add(endpoint.wake.as_fd(), EpollEvent::new(readable, WAKE))?;
        Ok(Self {
            endpoint,
            role,
            busy_poll: if spin_allowed() {
                busy_poll
            } else {
                Duration::ZERO
            },
            busy_path: None,
            directory,
            epoll,
            paths: Vec::new(),
            delivering: None,
            reassembly: Reassembly::default(),
            consumed: Vec::new(),
            touched: Vec::new(),
            batch: 0,
            told: Told::default(),
        })
    }

    pub(super) fn run(mut self) {
        self.endpoint.begin_rounds();
        self.add_paths();
        if self.role == Role::Host {
            self.directory.active(&self.endpoint);
        }
        let mut rounds = 0;
        while self.endpoint.state() != SessionState::Closed {
            self.add_paths();
            let busy = self.read();
            self.end_broken();
            // Only after reading: what waits in the socket proves that the peer lives, however
            // late this thread was scheduled.
            self.endpoint.lock().session.handle_timeout(now());
            self.events();
            self.endpoint.end_round();
            rounds = if busy { rounds + 1 } else { 0 };
            if !busy {
                self.wait(false);
            } else if rounds % ROUNDS_MAX == 0 {
                self.wait(true);
            }
        }
        self.events();
        self.finish();
    }

    /// Takes in the links that were made since.
    fn add_paths(&mut self) {
        let new_paths = std::mem::take(
            &mut *self
                .endpoint
                .new_paths
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        for new_path in new_paths {
            let NewPath {
                link,
                path,
                priority,
                handled,
                first,
            } = new_path;
            let edges = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
            let event = EpollEvent::new(edges, path.into());
            if let Err(error) = self.epoll.add(link.receiver.poll_fd(), event) {
                tracing::warn!(link = link.peer, %error, "link cannot be watched");
                let cause = PathCause::Closed(error.to_string());
                self.directory.path_lost(&self.endpoint, path, &cause);
                continue;
            }
            let added = self.endpoint.add_write_path(
                (path, priority),
                link.sender,
                link.checksummed,
                first,
            );
            if !added {
                tracing::warn!(link = link.peer, path, "session does not take the link");
                let cause = PathCause::Closed("the session does not take it".to_owned());
                self.directory.path_lost(&self.endpoint, path, &cause);
                continue;
            }
            tracing::info!(
                peer = self.endpoint.peer,
                link = link.peer,
                path,
                priority,
                "link joined its session"
            );
            self.paths.push(ReadPath {
                id: path,
                receiver: link.receiver,
                checksummed: link.checksummed,
                peer: link.peer,
                ready: true,
                handled,
            });
            // The session may have given up another link for it.
            self.events();
            self.endpoint.replay();
            // Whatever came behind the greeting is in the receiver already.
            if let Some(index) = self.paths.iter().position(|known| known.id == path) {
                self.deliver(index);
            }
        }
        self.endpoint.end_round();
    }

    /// Reads each link that may have something. True if one had.
    fn read(&mut self) -> bool {
        let mut busy = false;
        for index in (0..self.paths.len()).rev() {
            // A link may be lost by what another one brings.
            let Some(path) = self.paths.get_mut(index) else {
                continue;
            };
            if !path.ready {
                continue;
            }
            let id = path.id;
            let longest = if self.busy_path == Some(id) {
                self.busy_poll
            } else {
                Duration::ZERO
            };
            let more = &self.endpoint.more;
            let filled = fill_or_spin(path.receiver.as_mut(), longest, || {
                more.load(Ordering::Relaxed)
            });
            path.handled = 0;
            match filled {
                Ok(Filled::Some) => {
                    busy = true;
                    self.busy_path = Some(id);
                    self.deliver(index);
                }
                Ok(Filled::Blocked) => path.ready = false,
                Ok(Filled::End) => self.end(id, "peer closed it"),
                Err(error) => self.end(id, &error.to_string()),
            }
        }
        busy
    }

    /// Gives up the links that could not be written, once what they brought is read.
    fn end_broken(&mut self) {
        let broken = std::mem::take(
            &mut *self
                .endpoint
                .broken_paths
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        for (id, reason) in broken {
            for _ in 0..LAST_READS_MAX {
                let Some(index) = self.paths.iter().position(|path| path.id == id) else {
                    break;
                };
                let path = self.paths.get_mut(index);
                let filled = path.map(|path| {
                    path.handled = 0;
                    path.receiver.fill()
                });
                match filled {
                    Some(Ok(Filled::Some)) => self.deliver(index),
                    _ => break,
                }
            }
            self.end(id, &reason);
        }
    }

    /// Waits until there is something to do, or only looks.
    fn wait(&mut self, only_look: bool) {
        let timeout = if only_look {
            EpollTimeout::ZERO
        } else {
            let deadline = self.endpoint.lock().session.poll_timeout();
            let wait = deadline.map(|deadline| deadline.saturating_duration_since(now()));
            // Rounded up, so that the deadline has passed when the wait ends.
            let millis = wait.map_or(0, |wait| wait.as_millis().saturating_add(1));
            EpollTimeout::from(u16::try_from(millis).unwrap_or(u16::MAX))
        };
        let mut events = [EpollEvent::empty(); 8];
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(nix::Error::EINTR) => 0,
            Err(error) => {
                tracing::error!(%error, "links of a session cannot be watched");
                self.endpoint
                    .lock()
                    .session
                    .close("links cannot be watched");
                return;
            }
        };
        for event in events.get(..count).unwrap_or_default() {
            let path = self
                .paths
                .iter_mut()
                .find(|path| u64::from(path.id) == event.data());
            if let Some(path) = path {
                path.ready = true;
            }
        }
    }

    fn end(&mut self, path: u16, reason: &str) {
        let mut core = self.endpoint.lock();
        core.session.handle_path_end(now(), path, reason.to_owned());
        drop(core);
        self.events();
    }

    fn events(&mut self) {
        loop {
            let event = self.endpoint.lock().session.poll_event();
            match event {
                Some(event) => self.apply_event(event),
                None => return,
            }
        }
    }

    /// Delivers what the link at `index` has brought.
    fn deliver(&mut self, index: usize) {
        // Out of the table for that time: what it brings may say that it is lost.
        let path = self.paths.swap_remove(index);
        self.delivering = Some(path.id);
        let (parsed, error) = path.parse();
        let actions = self.handle(path.id, &parsed);
        self.apply(actions);
        if let Some(error) = error {
            let mut core = self.endpoint.lock();
            core.session.handle_bad_frame(now(), path.id, error);
            drop(core);
            self.events();
        }
        if self.delivering.take().is_some() {
            self.paths.push(path);
        }
    }

    /// Passes the frames through the session, under one lock.
    fn handle<'a>(&mut self, path: u16, frames: &[(FrameHeader, &'a [u8])]) -> Vec<Action<'a>> {
        let now = now();
        self.batch += 1;
        let mut actions = Vec::with_capacity(frames.len());
        let mut core = self.endpoint.lock();
        let core = &mut *core;
        for (header, payload) in frames {
            // An error has closed the session, with its reason; what came before still counts.
            let deliver = core.session.handle_frame(now, path, header, payload);
            while let Some(event) = core.session.poll_event() {
                if let SessionEvent::Detached { device } = event {
                    self.reassembly.forget(device);
                }
                actions.push(Action::Event(event));
            }
            match deliver {
                Ok(true) => {
                    let device = core.devices.get_mut(&header.device);
                    if let (Some(device), Some(lane)) = (device, header.lane) {
                        let of = device.handle;
                        let whole = match self.reassembly.join(of, header, lane, payload) {
                            Ok(None) => continue,
                            Ok(Some(whole)) => whole,
                            Err(error) => {
                                core.session.handle_violation(error);
                                break;
                            }
                        };
                        if whole.spare_blocks > 0 {
                            core.session
                                .release(header.device, lane, whole.spare_blocks);
                        }
                        let payload = whole.payload;
                        if device.batch != self.batch {
                            device.batch = self.batch;
                            device.batch_client = self.touched.len();
                            self.touched.push(device.grant.client.clone());
                        }
                        actions.push(Action::Deliver {
                            client: device.batch_client,
                            device: header.device,
                            lane,
                            payload,
                        });
                    }
                }
                Ok(false) => {}
                Err(_closed) => break,
            }
        }
        actions
    }

    fn apply(&mut self, actions: Vec<Action<'_>>) {
        for action in actions {
            match action {
                Action::Event(event) => self.apply_event(event),
                Action::Deliver {
                    client,
                    device,
                    lane,
                    payload,
                } => {
                    let client = self.touched.get(client);
                    let receipt = client.map(|client| client.receive(lane, &payload));
                    if receipt == Some(Receipt::Consumed) {
                        self.consumed.push((device, lane, payload.len()));
                    }
                }
            }
        }
        for client in self.touched.drain(..) {
            client.batch_end();
        }
        let mut core = self.endpoint.lock();
        for (device, lane, payload_bytes) in self.consumed.drain(..) {
            core.session
                .release(device, lane, frame::blocks(payload_bytes));
        }
    }

    fn apply_event(&mut self, event: SessionEvent) {
        let endpoint = &self.endpoint;
        match event {
            SessionEvent::AttachRequested { device, generation } => {
                let host = &endpoint.peer;
                let granted = self.directory.attach(host, device, generation);
                let attached = granted.and_then(|grant| {
                    let windows = grant.windows;
                    let mut core = endpoint.lock();
                    core.add_device(device, grant)
                        .map_err(|error| error.with_source())?;
                    core.session.accept(device, windows);
                    Ok(())
                });
                match attached {
                    Ok(()) => {
                        self.attached(device);
                        if !self.directory.serves(host, device, generation) {
                            endpoint.detach(device);
                        }
                        self.told.forget(&device.to_string());
                    }
                    Err(reason) => {
                        // It is asked for again and again.
                        if self
                            .told
                            .is_news(Instant::now(), &device.to_string(), &reason)
                        {
                            tracing::warn!(host, %device, reason, "device refused");
                        } else {
                            tracing::debug!(host, %device, reason, "device refused again");
                        }
                        endpoint.lock().session.refuse(device, reason);
                    }
                }
            }
            SessionEvent::Attached { device } => {
                self.directory.attached(device);
                self.attached(device);
            }
            SessionEvent::Refused { device, reason } => {
                drop(endpoint.lock().remove_device(device));
                self.directory.refused(device, &reason);
            }
            SessionEvent::Detached { device } => {
                let mut core = endpoint.lock();
                let epoch = core.session.epoch();
                let removed = core.remove_device(device);
                drop(core);
                if let Some(removed) = removed {
                    removed.grant.client.down(epoch);
                }
                self.directory.refused(device, "the other end let it go");
            }
            SessionEvent::Credited { device } => {
                let client = endpoint.lock().credited(device);
                if let Some(client) = client {
                    client.writable();
                }
            }
            SessionEvent::PathLost {
                path,
                acknowledged,
                cause,
            } => self.lose_path(path, acknowledged, &cause),
            SessionEvent::PathChanged(change) => {
                tracing::warn!(
                    peer = endpoint.peer,
                    from = change.from,
                    to = change.to,
                    cause = %change.cause,
                    gap_us = change.gap.as_micros(),
                    "frames go by another link"
                );
                endpoint.lock().path_changes.push(change);
            }
        }
    }

    fn lose_path(&mut self, id: u16, acknowledged: usize, cause: &PathCause) {
        self.delivering.take_if(|delivering| *delivering == id);
        let lost = self.paths.iter().position(|path| path.id == id);
        let lost = lost.map(|at| self.paths.swap_remove(at));
        if let Some(path) = &lost
            && let Err(error) = self.epoll.delete(path.receiver.poll_fd())
        {
            tracing::debug!(%error, "link was not watched");
        }
        let endpoint = &self.endpoint;
        let link = lost.map_or_else(String::new, |path| path.peer);
        tracing::info!(peer = endpoint.peer, path = id, link, %cause, "link lost");
        endpoint.remove_write_path(id, acknowledged);
        endpoint.replay();
        self.directory.path_lost(endpoint, id, cause);
    }

    fn attached(&self, device: DeviceId) {
        let mut core = self.endpoint.lock();
        let epoch = core.session.epoch();
        let Some(slot) = core.devices.get_mut(&device) else {
            return;
        };
        slot.attached = true;
        let handle = slot.handle;
        let client = slot.grant.client.clone();
        drop(core);
        client.up(LaneSet {
            endpoint: self.endpoint.clone(),
            device,
            epoch,
            handle,
        });
    }

    fn finish(self) {
        // A last try to tell the peer why; a link that does not take it is closed without.
        self.endpoint.end_round();
        let mut core = self.endpoint.lock();
        let epoch = core.session.epoch();
        let reason = core.session.close_reason().cloned();
        let reason = reason.unwrap_or_else(|| CloseReason::Local("closed".to_owned()));
        let ids: Vec<_> = core.devices.keys().copied().collect();
        let devices: Vec<_> = ids
            .into_iter()
            .filter_map(|id| core.remove_device(id))
            .collect();
        drop(core);
        for device in devices {
            device.grant.client.down(epoch);
        }
        self.directory.closed(&self.endpoint, &reason);
        let peer = &self.endpoint.peer;
        match reason {
            CloseReason::Local(_) => tracing::info!(peer, %reason, "session closed"),
            _ => tracing::warn!(peer, %reason, "session closed"),
        }
        self.endpoint.hang_up();
    }
}

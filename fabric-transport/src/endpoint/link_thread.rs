//! The thread of a link: reads, delivers, keeps time, and ends with the session.

use std::borrow::Cow;
use std::sync::Arc;

use nix::sys::epoll::{Epoll, EpollEvent, EpollTimeout};

use super::reassembly::Reassembly;
use super::{Directory, Endpoint, LaneClient, LaneSet, Receipt, now};
use crate::frame::{self, DeviceId, FrameHeader, VirtualLane};
use crate::link::{Filled, LinkReceiver};
use crate::session::{CloseReason, ProtocolError, SessionEvent, SessionState};

pub(super) struct LinkThread {
    endpoint: Arc<Endpoint>,
    receiver: Box<dyn LinkReceiver>,
    directory: Arc<dyn Directory>,
    epoll: Epoll,
    reassembly: Reassembly,
}

/// What a batch of frames asks for, in the order of the frames.
enum Action<'a> {
    Event(SessionEvent),
    Deliver {
        client: Arc<dyn LaneClient>,
        device: DeviceId,
        lane: VirtualLane,
        payload: Cow<'a, [u8]>,
    },
}

impl LinkThread {
    pub(super) fn new(
        endpoint: Arc<Endpoint>,
        receiver: Box<dyn LinkReceiver>,
        directory: Arc<dyn Directory>,
        epoll: Epoll,
    ) -> Self {
        Self {
            endpoint,
            receiver,
            directory,
            epoll,
            reassembly: Reassembly::default(),
        }
    }

    pub(super) fn run(mut self) {
        self.endpoint.run_link();
        while self.endpoint.state() != SessionState::Closed {
            match self.receiver.fill() {
                Ok(Filled::Some) => self.deliver(),
                Ok(Filled::Blocked) => self.wait(),
                Ok(Filled::End) => self.end("peer closed it"),
                Err(error) => self.end(&error.to_string()),
            }
            // Only after reading: what waits in the socket proves that the peer lives, however
            // late this thread was scheduled.
            self.endpoint.lock().session.handle_timeout(now());
            self.endpoint.run_link();
        }
        self.finish();
    }

    fn wait(&self) {
        let deadline = self.endpoint.lock().session.poll_timeout();
        let wait = deadline.map(|deadline| deadline.saturating_duration_since(now()));
        // Rounded up, so that the deadline has passed when the wait ends.
        let millis = wait.map_or(0, |wait| wait.as_millis().saturating_add(1));
        let timeout = EpollTimeout::from(u16::try_from(millis).unwrap_or(u16::MAX));
        let mut events = [EpollEvent::empty(); 3];
        match self.epoll.wait(&mut events, timeout) {
            // Which of them rang does not matter: the loop looks at all.
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => self.end(&error.to_string()),
        }
    }

    fn end(&self, reason: &str) {
        let reason = CloseReason::Link(reason.to_owned());
        self.endpoint.lock().session.handle_link_end(reason);
    }

    fn deliver(&mut self) {
        let mut parsed = Vec::new();
        let mut error = None;
        match self.receiver.frames() {
            Ok(frames) => {
                for frame in frames {
                    match FrameHeader::parse(frame, self.endpoint.checksummed) {
                        Ok(frame) => parsed.push(frame),
                        Err(bad) => {
                            error = Some(ProtocolError::from(bad));
                            break;
                        }
                    }
                }
            }
            Err(bad) => error = Some(bad.into()),
        }
        let actions = Self::handle(&self.endpoint, &mut self.reassembly, &parsed);
        self.apply(actions);
        if let Some(error) = error {
            self.endpoint.lock().session.handle_link_end(error.into());
        }
    }

    /// Passes the frames through the session, under one lock.
    fn handle<'a>(
        endpoint: &Endpoint,
        reassembly: &mut Reassembly,
        frames: &[(FrameHeader, &'a [u8])],
    ) -> Vec<Action<'a>> {
        let now = now();
        let mut actions = Vec::with_capacity(frames.len());
        let mut core = endpoint.lock();
        let core = &mut *core;
        for (header, payload) in frames {
            // An error has closed the session, with its reason; what came before still counts.
            let deliver = core.session.handle_frame(now, header, payload);
            while let Some(event) = core.session.poll_event() {
                if let SessionEvent::Detached { device } = event {
                    reassembly.forget(device);
                }
                actions.push(Action::Event(event));
            }
            match deliver {
                Ok(true) => {
                    let device = core.devices.get(&header.device);
                    if let (Some(device), Some(lane)) = (device, header.lane) {
                        let client = device.grant.client.clone();
                        let whole = match reassembly.join(device.handle, header, lane, payload) {
                            Ok(None) => continue,
                            Ok(Some(whole)) => whole,
                            Err(error) => {
                                core.session.handle_link_end(error.into());
                                break;
                            }
                        };
                        if whole.spare_blocks > 0 {
                            core.session
                                .release(header.device, lane, whole.spare_blocks);
                        }
                        let payload = whole.payload;
                        actions.push(Action::Deliver {
                            client,
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

    fn apply(&self, actions: Vec<Action<'_>>) {
        let mut consumed = Vec::new();
        let mut touched: Vec<(DeviceId, Arc<dyn LaneClient>)> = Vec::new();
        for action in actions {
            match action {
                Action::Event(event) => self.apply_event(event),
                Action::Deliver {
                    client,
                    device,
                    lane,
                    payload,
                } => {
                    if client.receive(lane, &payload) == Receipt::Consumed {
                        consumed.push((device, lane, payload.len()));
                    }
                    if !touched.iter().any(|(known, _)| *known == device) {
                        touched.push((device, client));
                    }
                }
            }
        }
        for (_, client) in touched {
            client.batch_end();
        }
        let mut core = self.endpoint.lock();
        for (device, lane, payload_bytes) in consumed {
            core.session
                .release(device, lane, frame::blocks(payload_bytes));
        }
    }

    fn apply_event(&self, event: SessionEvent) {
        let endpoint = &self.endpoint;
        match event {
            SessionEvent::Greeted { host, instance } => {
                match self.directory.greeted(endpoint, &host, instance) {
                    Ok(epoch) => {
                        tracing::info!(
                            host,
                            epoch,
                            link = endpoint.link_peer,
                            "session became active"
                        );
                        let mut core = endpoint.lock();
                        core.session.welcome(epoch);
                        core.peer_name = host;
                    }
                    Err(reason) => endpoint.lock().session.close(&reason),
                }
            }
            SessionEvent::Active { director } => {
                let mut core = endpoint.lock();
                let epoch = core.session.epoch();
                core.peer_name.clone_from(&director);
                drop(core);
                tracing::info!(
                    director,
                    epoch,
                    link = endpoint.link_peer,
                    "session became active"
                );
                self.directory.active(endpoint, &director);
            }
            SessionEvent::AttachRequested { device, generation } => {
                let host = endpoint.lock().peer_name.clone();
                let granted = self.directory.attach(&host, device, generation);
                let attached = granted.and_then(|grant| {
                    let windows = grant.windows;
                    let mut core = endpoint.lock();
                    core.add_device(device, grant)
                        .map_err(|error| error.with_source())?;
                    core.session.accept(device, windows);
                    Ok(())
                });
                match attached {
                    Ok(()) => self.attached(device),
                    Err(reason) => {
                        tracing::warn!(host, %device, reason, "device refused");
                        endpoint.lock().session.refuse(device, reason);
                    }
                }
            }
            SessionEvent::Attached { device } => self.attached(device),
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
            }
            SessionEvent::Credited { device } => {
                let client = endpoint.lock().credited(device);
                if let Some(client) = client {
                    client.writable();
                }
            }
        }
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
        self.endpoint.run_link();
        let mut core = self.endpoint.lock();
        let epoch = core.session.epoch();
        let reason = core.session.close_reason().cloned();
        let reason = reason.unwrap_or_else(|| CloseReason::Local("closed".to_owned()));
        let host = core.peer_name.clone();
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
        match reason {
            CloseReason::Local(_) => tracing::info!(peer = host, %reason, "session closed"),
            _ => {
                let link = &self.endpoint.link_peer;
                tracing::warn!(peer = host, link, %reason, "session closed");
            }
        }
        self.endpoint.hang_up();
    }
}

//! One session: what may be sent, what may arrive, and when the peer is given up.
//!
//! ```text
//! host:      Greeting --WELCOME--> Active --CLOSE, error, silence--> Closed
//! director:  Awaiting --HELLO----> Active --CLOSE, error, silence--> Closed
//!            (either) --error, no greeting in time-----------------> Closed
//! ```
//!
//! A core: frames and time come in through `handle_*`, what to send and what happened go out
//! through `poll_*`. It holds no payload: a DATA frame is checked, counted and left to the caller.
//!
//! Memory is bounded by [`DEVICES_MAX`] and [`CONTROL_FRAMES_MAX`] whatever the peer sends.

mod lane;

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use qos::MonotonicTime;

use crate::control::{CREDITS_MAX, Control, ControlError, Credit, Windows};
use crate::frame::{self, DeviceId, FrameHeader, FrameKind, VERSION, VirtualLane};
use lane::{BadArrival, ReceiveLane, SendLane};

/// Devices of one session at most.
pub const DEVICES_MAX: usize = 4096;
/// Control frames that wait to be sent at most; a peer that makes us queue more does not read.
pub const CONTROL_FRAMES_MAX: usize = 2 * DEVICES_MAX + 16;

/// DATA bytes after which the peer is told what arrived even if nothing else is sent to it.
const ACKNOWLEDGE_BYTES: usize = 64 * 1024;

/// Which end of the session this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The host agent: greets, asks for devices.
    Host,
    /// The I/O director: assigns the epoch.
    Director,
}

/// Where the session stands; the module draws the transitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionState {
    /// Host: HELLO is sent.
    Greeting,
    /// Director: HELLO is expected.
    Awaiting,
    /// Devices may attach and send.
    Active,
    /// Over; nothing leads out.
    Closed,
}

impl SessionState {
    /// Whether the drawing has an arrow from here to `next`.
    #[must_use]
    pub const fn may_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Greeting | Self::Awaiting, Self::Active)
                | (Self::Greeting | Self::Awaiting | Self::Active, Self::Closed)
        )
    }
}

/// Names and times of a session.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// This end's name, 1 to 63 printable ASCII characters.
    pub name: String,
    /// Random for each start of the process.
    pub instance: u64,
    /// A PING goes out this often.
    pub heartbeat: Duration,
    /// A peer that sends nothing for this long is given up. Well above scheduling noise.
    pub silence_max: Duration,
    /// A greeting must be complete within this time.
    pub greeting_max: Duration,
}

/// What happened, for the owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionEvent {
    /// A host wants a session; answer with [`Session::welcome`] or [`Session::close`].
    Greeted {
        /// The host's name.
        host: String,
        /// Of its process.
        instance: u64,
    },
    /// The session is active (host side).
    Active {
        /// The director's name.
        director: String,
    },
    /// The host asks for a device; answer with [`Session::accept`] or [`Session::refuse`].
    AttachRequested {
        /// The device.
        device: DeviceId,
        /// Its generation.
        generation: u32,
    },
    /// The director serves a device: its lanes are open.
    Attached {
        /// The device.
        device: DeviceId,
    },
    /// The director does not serve a device.
    Refused {
        /// The device.
        device: DeviceId,
        /// Why.
        reason: String,
    },
    /// The peer let a device go: its lanes are closed.
    Detached {
        /// The device.
        device: DeviceId,
    },
    /// Credit came back to a device.
    Credited {
        /// The device.
        device: DeviceId,
    },
}

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// The owner closed it.
    #[error("{0}")]
    Local(String),
    /// The peer closed it.
    #[error("peer closed the session: {0}")]
    Peer(String),
    /// The link ended.
    #[error("link ended: {0}")]
    Link(String),
    /// Nothing arrived for too long.
    #[error("peer was silent for {silence_ms} ms")]
    Silent {
        /// For how long.
        silence_ms: u128,
    },
    /// The peer broke the protocol.
    #[error("peer broke the protocol: {0}")]
    Protocol(#[from] ProtocolError),
}

/// What a peer must not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// Bytes that are no frame.
    #[error(transparent)]
    Frame(#[from] frame::FrameError),
    /// A malformed control payload.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A frame that this state or role does not allow.
    #[error("{kind:?} frame is not allowed in state {state:?}")]
    Unexpected {
        /// Its kind.
        kind: FrameKind,
        /// Our state.
        state: SessionState,
    },
    /// A frame of another epoch.
    #[error("frame of epoch {epoch} in a session of epoch {session_epoch}")]
    Epoch {
        /// The frame's.
        epoch: u16,
        /// The session's.
        session_epoch: u16,
    },
    /// No common protocol version.
    #[error("no common protocol version: peer speaks {version_min} to {version_max}")]
    Version {
        /// Lowest of the peer.
        version_min: u16,
        /// Highest of the peer.
        version_max: u16,
    },
    /// A payload in pieces that is longer than one may be.
    #[error(
        "frames of {device} on lane {lane:?} make a payload longer than {} bytes",
        frame::PAYLOAD_BYTES_MAX
    )]
    LongPayload {
        /// The device.
        device: DeviceId,
        /// The lane.
        lane: VirtualLane,
    },
    /// A frame for a device that is not attached.
    #[error("frame for {device}, which is not attached")]
    UnknownDevice {
        /// The device.
        device: DeviceId,
    },
    /// A device attached twice, or more devices than fit.
    #[error("{device} cannot be attached: it is already, or the session is full")]
    Attach {
        /// The device.
        device: DeviceId,
    },
    /// DATA without credit.
    #[error("{device} sent on lane {lane:?} without credit")]
    NoCredit {
        /// The device.
        device: DeviceId,
        /// The lane.
        lane: VirtualLane,
    },
    /// A credit limit that goes back or too far ahead.
    #[error("credit limit of {device} on lane {lane:?} is not plausible")]
    Credit {
        /// The device.
        device: DeviceId,
        /// The lane.
        lane: VirtualLane,
    },
    /// DATA out of order.
    #[error("{device} sent sequence number {sequence} on lane {lane:?}, {expected} was next")]
    Sequence {
        /// The device.
        device: DeviceId,
        /// The lane.
        lane: VirtualLane,
        /// The next in order.
        expected: u32,
        /// What came.
        sequence: u32,
    },
    /// Acknowledges frames that were not sent.
    #[error("peer acknowledges frames that were not sent")]
    Acknowledge,
    /// Makes us queue more control frames than [`CONTROL_FRAMES_MAX`].
    #[error("peer does not read its control frames")]
    ControlQueue,
}

/// Why a device may not send now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendBlocked {
    /// The device has no open lanes: the session is not active or the device not attached.
    #[error("device is not attached")]
    Down,
    /// A lane has too little credit; [`SessionEvent::Credited`] tells when to try again.
    #[error("lane has no credit")]
    NoCredit,
}

/// Lanes of one device.
#[derive(Debug)]
struct DeviceLanes {
    state: LaneState,
    /// Generation and windows of an attach that waits for the detach to be answered.
    attach_again: Option<(u32, Windows)>,
    generation: u32,
    send: [SendLane; VirtualLane::COUNT],
    receive: [ReceiveLane; VirtualLane::COUNT],
}

/// ```text
/// Requested --ATTACHED, accept--> Open --detach--> Detaching --DETACH--> (gone)
///           --REFUSED, refuse--> (gone)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LaneState {
    /// ATTACH is sent (host) or was received (director).
    Requested,
    /// Frames flow.
    Open,
    /// DETACH is sent; what still arrives is thrown away until the peer says so too.
    Detaching,
}

/// The state machine of one session.
#[derive(Debug)]
pub struct Session {
    role: Role,
    config: SessionConfig,
    state: SessionState,
    close_reason: Option<CloseReason>,
    epoch: u16,
    devices: HashMap<DeviceId, DeviceLanes>,
    outbox: VecDeque<(DeviceId, Control)>,
    credits_due: Vec<(DeviceId, VirtualLane)>,
    events: VecDeque<SessionEvent>,
    /// DATA frames that arrived, and what the peer was told of them last.
    received: u32,
    received_told: u32,
    received_bytes_untold: usize,
    /// DATA frames that were sent, and the sizes of those not acknowledged.
    sent: u32,
    unacknowledged: VecDeque<usize>,
    unacknowledged_bytes: usize,
    heard_at: MonotonicTime,
    ping_at: MonotonicTime,
}

impl Session {
    /// A new session on a link that was just made. A host's HELLO waits to be polled.
    #[must_use]
    pub fn new(role: Role, config: SessionConfig, now: MonotonicTime) -> Self {
        let mut outbox = VecDeque::new();
        let state = match role {
            Role::Director => SessionState::Awaiting,
            Role::Host => {
                let hello = Control::Hello {
                    version_min: VERSION.into(),
                    version_max: VERSION.into(),
                    features: 0,
                    instance: config.instance,
                    name: config.name.clone(),
                };
                outbox.push_back((DeviceId(0), hello));
                SessionState::Greeting
            }
        };
        Self {
            role,
            state,
            close_reason: None,
            epoch: 0,
            devices: HashMap::new(),
            outbox,
            credits_due: Vec::new(),
            events: VecDeque::new(),
            received: 0,
            received_told: 0,
            received_bytes_untold: 0,
            sent: 0,
            unacknowledged: VecDeque::new(),
            unacknowledged_bytes: 0,
            heard_at: now,
            ping_at: now.saturating_add(config.heartbeat),
            config,
        }
    }

    /// Where the session stands.
    #[must_use]
    pub fn state(&self) -> SessionState {
        self.state
    }

    /// The session's epoch; 0 until it is active.
    #[must_use]
    pub fn epoch(&self) -> u16 {
        self.epoch
    }

    /// Why the session is closed.
    #[must_use]
    pub fn close_reason(&self) -> Option<&CloseReason> {
        self.close_reason.as_ref()
    }

    /// DATA bytes that were sent and not acknowledged.
    #[must_use]
    pub fn unacknowledged_bytes(&self) -> usize {
        self.unacknowledged_bytes
    }

    // Inputs.

    /// A frame arrived. True if it is DATA to be handed to its device.
    ///
    /// # Errors
    /// The peer broke the protocol: the session is closed, the link must be.
    pub fn handle_frame(
        &mut self,
        now: MonotonicTime,
        header: &FrameHeader,
        payload: &[u8],
    ) -> Result<bool, ProtocolError> {
        if self.state == SessionState::Closed {
            return Ok(false);
        }
        self.heard_at = self.heard_at.max(now);
        let result = match header.kind {
            FrameKind::Data => self.handle_data(header, payload.len()),
            _ => self.handle_control(header, payload).map(|()| false),
        };
        if let Err(error) = &result {
            self.fail(error.clone().into());
        }
        result
    }

    /// Time has passed: sends heartbeats, gives up a silent peer.
    pub fn handle_timeout(&mut self, now: MonotonicTime) {
        if self.state == SessionState::Closed {
            return;
        }
        if now >= self.silent_at() {
            let silence_ms = now.saturating_duration_since(self.heard_at).as_millis();
            self.fail(CloseReason::Silent { silence_ms });
        } else if now >= self.ping_at {
            self.ping_at = now.saturating_add(self.config.heartbeat);
            if self.state == SessionState::Active {
                self.queue_control(DeviceId(0), Control::Ping(now.as_nanos()));
                self.grant_the_rest();
            }
        }
    }

    /// The link below ended or lost its framing.
    pub fn handle_link_end(&mut self, reason: CloseReason) {
        self.fail(reason);
    }

    // Commands of the owner.

    /// Director: lets the greeted host in. `epoch` must exceed that of its sessions before.
    pub fn welcome(&mut self, epoch: u16) {
        if self.role == Role::Director && self.state == SessionState::Awaiting {
            self.epoch = epoch;
            let welcome = Control::Welcome {
                version: VERSION.into(),
                epoch,
                features: 0,
                instance: self.config.instance,
                name: self.config.name.clone(),
            };
            self.queue_control(DeviceId(0), welcome);
            self.become_state(SessionState::Active);
        }
    }

    /// Host: asks for `device`, offering `windows` blocks to be received. While the device is still
    /// being let go, the request waits for that.
    pub fn attach(&mut self, device: DeviceId, generation: u32, windows: Windows) {
        if let Some(lanes) = self.devices.get_mut(&device) {
            if lanes.state == LaneState::Detaching {
                lanes.attach_again = Some((generation, windows));
            }
        } else if self.state == SessionState::Active {
            self.devices
                .insert(device, DeviceLanes::new(generation, [0; _], windows));
            self.queue_control(
                device,
                Control::Attach {
                    generation,
                    windows,
                },
            );
        }
    }

    /// Director: serves a requested device, offering `windows` blocks to be received.
    pub fn accept(&mut self, device: DeviceId, windows: Windows) {
        if let Some(lanes) = self.devices.get_mut(&device)
            && lanes.state == LaneState::Requested
            && self.role == Role::Director
        {
            lanes.state = LaneState::Open;
            lanes.receive = windows.map(ReceiveLane::new);
            let generation = lanes.generation;
            self.queue_control(
                device,
                Control::Attached {
                    generation,
                    windows,
                },
            );
        }
    }

    /// Director: does not serve a requested device.
    pub fn refuse(&mut self, device: DeviceId, reason: String) {
        if let Some(lanes) = self.devices.remove(&device) {
            let generation = lanes.generation;
            self.queue_control(device, Control::Refused { generation, reason });
        }
    }

    /// Lets a device go: its lanes close at once.
    pub fn detach(&mut self, device: DeviceId) {
        let Some(lanes) = self.devices.get_mut(&device) else {
            return;
        };
        lanes.attach_again = None;
        if lanes.state != LaneState::Detaching {
            lanes.state = LaneState::Detaching;
            let generation = lanes.generation;
            self.queue_control(device, Control::Detach { generation });
        }
    }

    /// Whether `device` may send `blocks` on each lane now, all or none.
    ///
    /// # Errors
    /// [`SendBlocked`] says what is missing.
    pub fn may_send(
        &self,
        device: DeviceId,
        blocks: [u32; VirtualLane::COUNT],
    ) -> Result<(), SendBlocked> {
        let lanes = self
            .devices
            .get(&device)
            .filter(|lanes| lanes.state == LaneState::Open);
        let lanes = lanes.ok_or(SendBlocked::Down)?;
        if lanes
            .send
            .iter()
            .zip(blocks)
            .all(|(lane, blocks)| blocks <= lane.available())
        {
            Ok(())
        } else {
            Err(SendBlocked::NoCredit)
        }
    }

    /// Pays for a frame that [`Self::may_send`] allowed; returns its sequence number.
    pub fn take_credit(
        &mut self,
        device: DeviceId,
        lane: VirtualLane,
        payload_bytes: usize,
    ) -> u32 {
        let lanes = self.devices.get_mut(&device);
        let lane = lanes.and_then(|lanes| lanes.send.get_mut(lane.index()));
        lane.map_or(0, |lane| lane.take(frame::blocks(payload_bytes)))
    }

    /// The header of a DATA frame that goes on the link now, in the order of its lane.
    pub fn transmit_data(
        &mut self,
        device: DeviceId,
        lane: VirtualLane,
        sequence: u32,
        payload_bytes: usize,
    ) -> FrameHeader {
        let frame_bytes = frame::HEADER_BYTES + payload_bytes;
        self.sent = self.sent.wrapping_add(1);
        self.unacknowledged.push_back(frame_bytes);
        self.unacknowledged_bytes += frame_bytes;
        let lanes = self.devices.get_mut(&device);
        let receive = lanes.and_then(|lanes| lanes.receive.get_mut(lane.index()));
        let credit_limit = receive.map_or(0, ReceiveLane::grant);
        self.header(
            FrameKind::Data,
            device,
            Some(lane),
            payload_bytes,
            sequence,
            credit_limit,
        )
    }

    /// The buffers of received DATA frames are free: credit of `blocks` goes back to the peer.
    pub fn release(&mut self, device: DeviceId, lane: VirtualLane, blocks: u32) {
        let lanes = self.devices.get_mut(&device);
        if let Some(receive) = lanes.and_then(|lanes| lanes.receive.get_mut(lane.index()))
            && receive.release(blocks)
        {
            receive.due = true;
            self.credits_due.push((device, lane));
        }
    }

    /// Ends the session; the reason is sent to the peer.
    pub fn close(&mut self, reason: &str) {
        self.fail(CloseReason::Local(reason.to_owned()));
    }

    // Outputs.

    /// The next control frame to send: its header and message.
    pub fn poll_transmit(&mut self) -> Option<(FrameHeader, Control)> {
        let (device, control) = self
            .outbox
            .pop_front()
            .or_else(|| self.credit_message())
            .or_else(|| {
                (self.received_bytes_untold >= ACKNOWLEDGE_BYTES)
                    .then_some((DeviceId(0), Control::Acknowledge))
            })?;
        let header = self.header(control.kind(), device, None, 0, 0, 0);
        Some((header, control))
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<SessionEvent> {
        self.events.pop_front()
    }

    /// When [`Self::handle_timeout`] wants to be called; `None` once closed.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<MonotonicTime> {
        (self.state != SessionState::Closed).then(|| self.silent_at().min(self.ping_at))
    }

    fn handle_data(
        &mut self,
        header: &FrameHeader,
        payload_bytes: usize,
    ) -> Result<bool, ProtocolError> {
        let unexpected = ProtocolError::Unexpected {
            kind: header.kind,
            state: self.state,
        };
        let (SessionState::Active, Some(lane)) = (self.state, header.lane) else {
            return Err(unexpected);
        };
        self.check_epoch(header)?;
        self.handle_acknowledge(header.acknowledge)?;
        let device = header.device;
        let lanes = self
            .devices
            .get_mut(&device)
            .ok_or(ProtocolError::UnknownDevice { device })?;
        self.received = self.received.wrapping_add(1);
        self.received_bytes_untold += frame::HEADER_BYTES + payload_bytes;
        match lanes.state {
            LaneState::Requested => return Err(unexpected),
            LaneState::Detaching => return Ok(false),
            LaneState::Open => {}
        }
        if let Some(receive) = lanes.receive.get_mut(lane.index()) {
            receive
                .arrive(payload_bytes, header.sequence)
                .map_err(|bad| match bad {
                    BadArrival::NoCredit => ProtocolError::NoCredit { device, lane },
                    BadArrival::Sequence { expected } => ProtocolError::Sequence {
                        device,
                        lane,
                        expected,
                        sequence: header.sequence,
                    },
                })?;
        }
        self.raise_limit(device, lane, header.credit_limit)?;
        Ok(true)
    }

    fn handle_control(
        &mut self,
        header: &FrameHeader,
        payload: &[u8],
    ) -> Result<(), ProtocolError> {
        let control = Control::parse(header.kind, payload)?;
        let unexpected = ProtocolError::Unexpected {
            kind: header.kind,
            state: self.state,
        };
        match (self.role, self.state) {
            (Role::Director, SessionState::Awaiting) => {
                let Control::Hello {
                    version_min,
                    version_max,
                    instance,
                    name,
                    ..
                } = control
                else {
                    return Err(unexpected);
                };
                if !(version_min..=version_max).contains(&u16::from(VERSION)) {
                    return Err(ProtocolError::Version {
                        version_min,
                        version_max,
                    });
                }
                // A second HELLO is refused by the state once the owner has answered the first.
                if self.events.is_empty() {
                    self.events.push_back(SessionEvent::Greeted {
                        host: name,
                        instance,
                    });
                }
                return Ok(());
            }
            (Role::Host, SessionState::Greeting) => {
                return match control {
                    Control::Welcome {
                        version,
                        epoch,
                        name,
                        ..
                    } => {
                        if version != u16::from(VERSION) {
                            let (version_min, version_max) = (version, version);
                            return Err(ProtocolError::Version {
                                version_min,
                                version_max,
                            });
                        }
                        self.epoch = epoch;
                        self.become_state(SessionState::Active);
                        self.events
                            .push_back(SessionEvent::Active { director: name });
                        Ok(())
                    }
                    Control::Close(reason) => {
                        self.fail(CloseReason::Peer(reason));
                        Ok(())
                    }
                    _ => Err(unexpected),
                };
            }
            _ => {}
        }
        self.check_epoch(header)?;
        self.handle_acknowledge(header.acknowledge)?;
        let device = header.device;
        match (self.role, control) {
            (
                Role::Director,
                Control::Attach {
                    generation,
                    windows,
                },
            ) => {
                if self.devices.len() >= DEVICES_MAX || self.devices.contains_key(&device) {
                    return Err(ProtocolError::Attach { device });
                }
                self.devices
                    .insert(device, DeviceLanes::new(generation, windows, [0; _]));
                self.events
                    .push_back(SessionEvent::AttachRequested { device, generation });
            }
            (
                Role::Host,
                Control::Attached {
                    generation,
                    windows,
                },
            ) => {
                let lanes = self.requested(device, generation)?;
                // A detach may have crossed the answer; the lanes then stay closed.
                if lanes.state == LaneState::Requested {
                    lanes.state = LaneState::Open;
                    lanes.send = windows.map(SendLane::new);
                    self.events.push_back(SessionEvent::Attached { device });
                }
            }
            (Role::Host, Control::Refused { generation, reason }) => {
                self.requested(device, generation)?;
                let lanes = self.devices.remove(&device);
                match lanes.filter(|lanes| lanes.state == LaneState::Detaching) {
                    Some(DeviceLanes {
                        attach_again: Some((generation, windows)),
                        ..
                    }) => {
                        self.attach(device, generation, windows);
                    }
                    Some(_let_go) => {}
                    None => self
                        .events
                        .push_back(SessionEvent::Refused { device, reason }),
                }
            }
            (_, Control::Detach { generation }) => {
                // A refusal that crossed our detach leaves nothing to answer.
                let Some(lanes) = self.devices.get(&device) else {
                    return Ok(());
                };
                let ours = lanes.state == LaneState::Detaching;
                self.devices.remove(&device);
                if !ours {
                    self.queue_control(device, Control::Detach { generation });
                    self.events.push_back(SessionEvent::Detached { device });
                }
            }
            (_, Control::Credit(credits)) => {
                for Credit {
                    device,
                    lane,
                    limit,
                } in credits
                {
                    self.raise_limit(device, lane, limit)?;
                }
            }
            (_, Control::Acknowledge | Control::Pong(_)) => {}
            (_, Control::Ping(nonce)) => {
                // One answer is enough for a peer that asks faster than it reads.
                let waiting = |(_, control): &(_, Control)| matches!(control, Control::Pong(_));
                if !self.outbox.iter().rev().take(8).any(waiting) {
                    self.queue_control(DeviceId(0), Control::Pong(nonce));
                }
            }
            (_, Control::Close(reason)) => self.fail(CloseReason::Peer(reason)),
            _ => return Err(unexpected),
        }
        if self.outbox.len() > CONTROL_FRAMES_MAX {
            return Err(ProtocolError::ControlQueue);
        }
        Ok(())
    }

    fn requested(
        &mut self,
        device: DeviceId,
        generation: u32,
    ) -> Result<&mut DeviceLanes, ProtocolError> {
        let lanes = self.devices.get_mut(&device);
        lanes
            .filter(|lanes| lanes.generation == generation && lanes.state != LaneState::Open)
            .ok_or(ProtocolError::UnknownDevice { device })
    }

    fn check_epoch(&self, header: &FrameHeader) -> Result<(), ProtocolError> {
        if header.epoch == self.epoch {
            Ok(())
        } else {
            Err(ProtocolError::Epoch {
                epoch: header.epoch,
                session_epoch: self.epoch,
            })
        }
    }

    fn handle_acknowledge(&mut self, acknowledge: u32) -> Result<(), ProtocolError> {
        let pending = self.sent.wrapping_sub(acknowledge);
        let pending = usize::try_from(pending).unwrap_or(usize::MAX);
        let newly = self
            .unacknowledged
            .len()
            .checked_sub(pending)
            .ok_or(ProtocolError::Acknowledge)?;
        for frame_bytes in self.unacknowledged.drain(..newly) {
            self.unacknowledged_bytes -= frame_bytes;
        }
        Ok(())
    }

    fn raise_limit(
        &mut self,
        device: DeviceId,
        lane: VirtualLane,
        limit: u32,
    ) -> Result<(), ProtocolError> {
        // Credit for a device that was let go meanwhile is late, not wrong.
        let lanes = self.devices.get_mut(&device);
        let Some(lanes) = lanes.filter(|lanes| lanes.state == LaneState::Open) else {
            return Ok(());
        };
        if let Some(send) = lanes.send.get_mut(lane.index()) {
            let grants = send
                .raise_limit(limit)
                .map_err(|_bad| ProtocolError::Credit { device, lane })?;
            // Neighbouring grants of one device are one event.
            let event = SessionEvent::Credited { device };
            if grants && self.events.back() != Some(&event) {
                self.events.push_back(event);
            }
        }
        Ok(())
    }

    /// Lets no credit wait for ever for the grant that it is too small for.
    fn grant_the_rest(&mut self) {
        for (device, lanes) in &mut self.devices {
            for (lane, receive) in VirtualLane::ALL.into_iter().zip(&mut lanes.receive) {
                if !receive.due && receive.ungranted() > 0 {
                    receive.due = true;
                    self.credits_due.push((*device, lane));
                }
            }
        }
    }

    fn credit_message(&mut self) -> Option<(DeviceId, Control)> {
        let count = self.credits_due.len().min(CREDITS_MAX);
        let credits: Vec<_> = self
            .credits_due
            .drain(..count)
            .filter_map(|(device, lane)| {
                let receive = self
                    .devices
                    .get_mut(&device)?
                    .receive
                    .get_mut(lane.index())?;
                // A DATA frame may have carried the grant meanwhile.
                receive.due.then(|| Credit {
                    device,
                    lane,
                    limit: receive.grant(),
                })
            })
            .collect();
        (!credits.is_empty()).then_some((DeviceId(0), Control::Credit(credits)))
    }

    fn header(
        &mut self,
        kind: FrameKind,
        device: DeviceId,
        lane: Option<VirtualLane>,
        payload_bytes: usize,
        sequence: u32,
        credit_limit: u32,
    ) -> FrameHeader {
        self.received_told = self.received;
        self.received_bytes_untold = 0;
        FrameHeader {
            kind,
            lane,
            more: false,
            epoch: self.epoch,
            device,
            payload_bytes: u32::try_from(payload_bytes).unwrap_or(u32::MAX),
            sequence,
            credit_limit,
            acknowledge: self.received_told,
        }
    }

    fn queue_control(&mut self, device: DeviceId, control: Control) {
        self.outbox.push_back((device, control));
    }

    fn silent_at(&self) -> MonotonicTime {
        let patience = match self.state {
            SessionState::Active | SessionState::Closed => self.config.silence_max,
            SessionState::Greeting | SessionState::Awaiting => self.config.greeting_max,
        };
        self.heard_at.saturating_add(patience)
    }

    fn fail(&mut self, reason: CloseReason) {
        if self.state == SessionState::Closed {
            return;
        }
        self.outbox.clear();
        self.credits_due.clear();
        if !matches!(reason, CloseReason::Peer(_) | CloseReason::Link(_)) {
            self.queue_control(DeviceId(0), Control::Close(reason.to_string()));
        }
        self.close_reason = Some(reason);
        self.devices.clear();
        self.become_state(SessionState::Closed);
    }

    fn become_state(&mut self, next: SessionState) {
        debug_assert!(self.state.may_become(next), "{:?} to {next:?}", self.state);
        self.state = next;
    }
}

impl DeviceLanes {
    fn new(generation: u32, send: Windows, receive: Windows) -> Self {
        Self {
            state: LaneState::Requested,
            attach_again: None,
            generation,
            send: send.map(SendLane::new),
            receive: receive.map(ReceiveLane::new),
        }
    }
}

#[cfg(test)]
mod tests;

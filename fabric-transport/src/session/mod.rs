//! One session: what may be sent on which link, what may arrive, when a link or the peer is given up.
//!
//! ```text
//!  (handshake) ──> Interrupted ──link added──> Active ──CLOSE, error──> Closed
//!                       ^                         │                       ^
//!                       ├──── last link lost ─────┘                       │
//!                       └──── no link for resume_max, CLOSE ──────────────┘
//! ```
//!
//! A session outlives its links. What a lost link had not acknowledged is sent again on another, in
//! its order; the receiver takes the next frame of each lane and knows older ones again. So every
//! frame arrives exactly once and in order as long as one link can be made in time.
//!
//! A core: frames and time come in through `handle_*`, what to send and what happened go out
//! through `poll_*`. It holds no payload: a DATA frame is checked, counted and left to the caller,
//! who keeps those that were sent until [`Session::poll_acknowledged`] says that they arrived.
//!
//! Memory is bounded by [`DEVICES_MAX`], [`CONTROL_FRAMES_MAX`] and [`PATHS_MAX`] whatever the peer
//! sends. A session of protocol version 1 has one link and ends with it.

mod handshake;
mod lane;
mod path;

use std::collections::VecDeque;
use std::time::Duration;

use qos::MonotonicTime;
use rustc_hash::FxHashMap;

use crate::control::{CREDITS_MAX, Control, ControlError, Credit, PathState, Windows, features};
use crate::frame::{self, DeviceId, FrameHeader, FrameKind, VERSION_MIN, VirtualLane};
pub use handshake::{Established, Greeting, greeting, hello, refusal, welcome, welcomed};
use lane::{Arrival, BadArrival, ReceiveLane, SendLane, is_before};
use path::Path;

/// Devices of one session at most.
pub const DEVICES_MAX: usize = 4096;
/// Control frames that wait to be sent at most; a peer that makes us queue more does not read.
pub const CONTROL_FRAMES_MAX: usize = 2 * DEVICES_MAX + 16;

/// Links of one session at most; each has a priority of its own below this.
pub const PATHS_MAX: usize = 4;

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
    /// It has a link: devices may attach and send.
    Active,
    /// It has none for now: everything waits.
    Interrupted,
    /// Over; nothing leads out.
    Closed,
}

impl SessionState {
    /// Whether the drawing has an arrow from here to `next`.
    #[must_use]
    pub const fn may_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Active, Self::Interrupted)
                | (Self::Interrupted, Self::Active)
                | (Self::Active | Self::Interrupted, Self::Closed)
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
    /// A PING goes out this often on each link.
    pub heartbeat: Duration,
    /// A session's only link is given up when a PING is not answered for this long.
    pub silence_max: Duration,
    /// A greeting must be complete within this time.
    pub greeting_max: Duration,
    /// A link beside which there is another is given up after this, or after eight round trips if
    /// they take longer. Well above scheduling noise.
    pub path_silence_min: Duration,
    /// A session that has no link for this long is over.
    pub resume_max: Duration,
    /// Frames go back to a link of higher priority when it has been there for this long.
    pub hold_down: Duration,
    /// Host: frames are spread over all links, in place of using the one of highest priority.
    pub spread: bool,
    /// How long the session's thread looks for frames before it sleeps; zero: not at all. A wake-up
    /// costs tens of microseconds, so 50 us pay where frames come often.
    pub busy_poll: Duration,
}

impl SessionConfig {
    /// The usual times: a PING every 250 ms; a link that is silent for 100 ms is given up if there
    /// is another, else after 2 s; 5 s for the greeting and for finding a new link, 10 s before
    /// frames go back. Scheduling noise of a loaded machine reaches 40 ms.
    #[must_use]
    pub fn new(name: &str, instance: u64) -> Self {
        Self {
            name: name.to_owned(),
            instance,
            heartbeat: Duration::from_millis(250),
            silence_max: Duration::from_secs(2),
            greeting_max: Duration::from_secs(5),
            path_silence_min: Duration::from_millis(100),
            resume_max: Duration::from_secs(5),
            hold_down: Duration::from_secs(10),
            spread: false,
            busy_poll: Duration::ZERO,
        }
    }

    /// For how long a session that gave up a silent link is more patient with the next.
    #[must_use]
    pub fn more_patient_for(&self) -> Duration {
        4 * self.silence_max
    }
}

/// Why a link carries no more frames, or others do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathCause {
    /// It ended.
    #[error("link ended: {0}")]
    Closed(String),
    /// The peer did not answer on it.
    #[error("link was silent for {silence_ms} ms")]
    Silent {
        /// For how long.
        silence_ms: u128,
    },
    /// The peer gave it up.
    #[error("the peer gave the link up")]
    PeerGaveUp,
    /// The host made it anew.
    #[error("the host made the link anew")]
    Replaced,
    /// This end's or the peer's operator wants another.
    #[error("switched over by the operator")]
    Operator,
    /// A link of higher priority has been there for long enough.
    #[error("switched back to a link of higher priority")]
    FailBack,
}

/// Frames go another way than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathChange {
    /// When they could go on.
    pub at: MonotonicTime,
    /// The link that they went by.
    pub from: u16,
    /// The link that they go by.
    pub to: u16,
    /// Why.
    pub cause: PathCause,
    /// From the last sign of progress on the old link, if anything was underway, to the first on the
    /// new one.
    pub gap: Duration,
}

/// One link of a session, for its operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathStatus {
    /// Its number.
    pub path: u16,
    /// Lower ones are used first.
    pub priority: u8,
    /// Whether it carries this end's frames.
    pub carries: bool,
    /// How long the last PING took; `None` until the first is answered.
    pub round_trip: Option<Duration>,
    /// Bytes of frames that this end sent by it.
    pub sent_bytes: u64,
    /// Bytes of frames that the peer has not acknowledged.
    pub underway_bytes: usize,
}

/// What happened, for the owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionEvent {
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
    /// A link is given up: the owner closes it, hands what is not acknowledged to
    /// [`Session::replay`], and then calls [`Session::replayed`].
    PathLost {
        /// The link.
        path: u16,
        /// Frames of it that were acknowledged since [`Session::poll_acknowledged`] said so last.
        acknowledged: usize,
        /// Why.
        cause: PathCause,
    },
    /// Frames go another way.
    PathChanged(PathChange),
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
    /// A frame that this role does not allow.
    #[error("{kind:?} frame is not allowed here")]
    Unexpected {
        /// Its kind.
        kind: FrameKind,
    },
    /// Another frame than HELLO and its answer on a new link.
    #[error("{kind:?} frame in place of a greeting")]
    Greeting {
        /// Its kind.
        kind: FrameKind,
    },
    /// The director does not let the host in.
    #[error("director refuses: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// A frame of another version than the session's.
    #[error("frame of version {version} in a session of another")]
    FrameVersion {
        /// The frame's.
        version: u8,
    },
    /// A control frame out of order.
    #[error("control frame {sequence} arrived, {expected} was next")]
    ControlSequence {
        /// The next in order.
        expected: u32,
        /// What came.
        sequence: u32,
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

/// Why there is no switchover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SwitchoverRefused {
    /// The session has no such link.
    #[error("the session has no link {path}; list its links first")]
    NoPath {
        /// What was asked for.
        path: u16,
    },
    /// All links are in use.
    #[error("the session spreads its frames over all of its links")]
    Spread,
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
    /// Tells its frames from those of an attachment before, which a slow link may still carry.
    attachment: u8,
    /// Spread: the link of its last frame, and how many frames are underway there. All lanes of a
    /// device go the same way, and change it only between two frames, so that their order holds.
    path: u16,
    underway: usize,
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

/// A control frame that waits for its turn.
#[derive(Debug)]
struct Outgoing {
    device: DeviceId,
    attachment: u8,
    control: Control,
}

/// Frames that went by `from` and do not yet get through elsewhere.
#[derive(Debug)]
struct Interruption {
    since: MonotonicTime,
    from: u16,
    cause: PathCause,
}

/// The state machine of one session.
#[derive(Debug)]
pub struct Session {
    role: Role,
    config: SessionConfig,
    established: Established,
    state: SessionState,
    close_reason: Option<CloseReason>,
    devices: FxHashMap<DeviceId, DeviceLanes>,
    paths: Vec<Path>,
    /// The link that carries the frames; of a spread session, the control frames.
    carrier: Option<u16>,
    /// The carrier is about to change, as soon as what is underway on it has arrived.
    switch: Option<(u16, PathCause)>,
    /// The operator's choice, while it is there.
    preferred: Option<u16>,
    interruption: Option<Interruption>,
    interrupted_at: MonotonicTime,
    lost_a_path: bool,
    /// Lost links whose frames must go out before any new one.
    replay_pending: usize,
    /// How long a link beside another may be silent. Longer after each loss: what goes out again
    /// stands before the answer, and on slow links that alone may take as long as a silence.
    patience: Duration,
    silent_at: MonotonicTime,
    outbox: VecDeque<Outgoing>,
    notices: VecDeque<(u16, PathState)>,
    credits_due: Vec<(DeviceId, VirtualLane)>,
    events: VecDeque<SessionEvent>,
    /// Numbers of sequenced control frames, sent and expected.
    control_sent: u32,
    control_expected: u32,
    /// Attachments that this host asked for.
    attachments: u8,
    grant_at: MonotonicTime,
    /// Frames that arrived again or too late, and were ignored.
    ignored: u64,
}

impl Session {
    /// A session that host and director agreed on; it has no link yet.
    #[must_use]
    pub fn new(
        role: Role,
        config: SessionConfig,
        established: Established,
        now: MonotonicTime,
    ) -> Self {
        Self {
            role,
            established,
            state: SessionState::Interrupted,
            close_reason: None,
            devices: FxHashMap::default(),
            paths: Vec::new(),
            carrier: None,
            switch: None,
            preferred: None,
            interruption: None,
            interrupted_at: now,
            lost_a_path: false,
            replay_pending: 0,
            patience: config.path_silence_min,
            silent_at: now,
            outbox: VecDeque::new(),
            notices: VecDeque::new(),
            credits_due: Vec::new(),
            events: VecDeque::new(),
            control_sent: 0,
            control_expected: 0,
            attachments: 0,
            grant_at: now.saturating_add(config.heartbeat),
            ignored: 0,
            config,
        }
    }

    /// Where the session stands.
    #[must_use]
    pub fn state(&self) -> SessionState {
        self.state
    }

    /// The session's epoch.
    #[must_use]
    pub fn epoch(&self) -> u16 {
        self.established.epoch
    }

    /// What both ends agreed on.
    #[must_use]
    pub fn established(&self) -> &Established {
        &self.established
    }

    /// Frames that arrived a second time, or late for a device that was let go; they were ignored.
    #[must_use]
    pub fn ignored_frames(&self) -> u64 {
        self.ignored
    }

    /// The session's links.
    pub fn paths(&self) -> impl Iterator<Item = PathStatus> {
        self.paths.iter().map(|path| PathStatus {
            path: path.id,
            priority: path.priority,
            carries: self.is_spread() || self.carrier == Some(path.id),
            round_trip: path.round_trip,
            sent_bytes: path.sent_bytes,
            underway_bytes: path.underway_bytes,
        })
    }

    /// Why the session is closed.
    #[must_use]
    pub fn close_reason(&self) -> Option<&CloseReason> {
        self.close_reason.as_ref()
    }

    // Inputs.

    /// A frame arrived by link `path`. True if it is DATA to be handed to its device.
    ///
    /// # Errors
    /// The peer broke the protocol: the session is closed.
    pub fn handle_frame(
        &mut self,
        now: MonotonicTime,
        path: u16,
        header: &FrameHeader,
        payload: &[u8],
    ) -> Result<bool, ProtocolError> {
        // What a link still carries that was given up is on its way again by another.
        if self.state == SessionState::Closed || self.path(path).is_none() {
            return Ok(false);
        }
        let result = self.handle_checked(now, path, header, payload);
        if let Err(error) = &result {
            self.fail(error.clone().into());
        }
        result
    }

    /// Time has passed: sends heartbeats, gives up silent links and a peer that has none left.
    pub fn handle_timeout(&mut self, now: MonotonicTime) {
        match self.state {
            SessionState::Closed => return,
            SessionState::Interrupted if now >= self.resume_until() => {
                let reason = format!("none for {} ms", self.config.resume_max.as_millis());
                self.fail(CloseReason::Link(reason));
                return;
            }
            SessionState::Interrupted | SessionState::Active => {}
        }
        for path in &mut self.paths {
            path.handle_timeout(now, &self.config);
        }
        if now.saturating_duration_since(self.silent_at) >= self.config.more_patient_for() {
            self.patience = self.config.path_silence_min;
        }
        let patience = self.patience();
        let silent = self.paths.iter().find_map(|path| {
            let (dead_at, patience) = path.dead_at(patience, &self.config)?;
            (now >= dead_at).then_some((path.id, patience))
        });
        // One at a time: the next may then be the only one left.
        if let Some((path, patience)) = silent {
            self.silent_at = now;
            self.patience = (2 * self.patience).min(self.config.silence_max);
            let silence_ms = patience.as_millis();
            self.lose_path(now, path, PathCause::Silent { silence_ms });
        }
        if now >= self.grant_at {
            self.grant_at = now.saturating_add(self.config.heartbeat);
            self.grant_the_rest();
        }
        if let Some((better, since)) = self.fail_back()
            && now >= since
        {
            self.begin_switch(now, better, PathCause::FailBack);
        }
    }

    /// The link `path` ended or lost its framing.
    pub fn handle_path_end(&mut self, now: MonotonicTime, path: u16, reason: String) {
        if self.state != SessionState::Closed {
            self.lose_path(now, path, PathCause::Closed(reason));
        }
    }

    /// The bytes of link `path` are no frames. Whatever flipped them, another link may be good.
    pub fn handle_bad_frame(&mut self, now: MonotonicTime, path: u16, error: frame::FrameError) {
        if self.is_first_version() {
            self.handle_violation(error.into());
        } else {
            self.handle_path_end(now, path, error.to_string());
        }
    }

    /// The owner found that the peer broke the protocol.
    pub fn handle_violation(&mut self, error: ProtocolError) {
        self.fail(error.into());
    }

    // Commands of the owner.

    /// A link was welcomed as number `path` of the session. One of the same priority is given up
    /// for it. False if the session is over or there are too many links.
    pub fn add_path(&mut self, now: MonotonicTime, path: u16, priority: u8) -> bool {
        if self.state == SessionState::Closed || usize::from(priority) >= PATHS_MAX {
            return false;
        }
        let replaced = self.paths.iter().find(|known| known.priority == priority);
        if let Some(replaced) = replaced.map(|known| known.id) {
            self.lose_path(now, replaced, PathCause::Replaced);
            if self.state == SessionState::Closed {
                return false;
            }
        }
        self.paths.push(Path::new(path, priority, now));
        if self.carrier.is_none() {
            self.carrier = Some(path);
        }
        if self.state == SessionState::Interrupted {
            self.become_state(SessionState::Active);
        }
        true
    }

    /// Whether all frames of lost links went out again, and new ones may follow.
    #[must_use]
    pub fn replay_is_pending(&self) -> bool {
        self.replay_pending > 0
    }

    /// A frame that a lost link did not acknowledge, as its own header names it. Returns the link
    /// to send it by and its new header; `None` if there is no link, or nobody waits for it any
    /// more. The order of the lost link must be kept.
    pub fn replay(
        &mut self,
        now: MonotonicTime,
        header: &FrameHeader,
        payload_bytes: usize,
    ) -> Option<(u16, FrameHeader)> {
        let device = header.device;
        let carrier = self.carrier?;
        let (path, credit_limit) = match header.lane {
            Some(lane) => {
                let lanes = self.devices.get_mut(&device)?;
                if lanes.attachment != header.attachment || lanes.state != LaneState::Open {
                    return None;
                }
                let receive = lanes.receive.get_mut(lane.index())?;
                let credit_limit = receive.grant();
                (self.path_of(device)?, credit_limit)
            }
            None => (carrier, 0),
        };
        self.count_transmit(now, path, device, header.attachment, payload_bytes);
        let replayed = FrameHeader {
            credit_limit,
            acknowledge: self.path_mut(path)?.tell_received(),
            ..*header
        };
        Some((path, replayed))
    }

    /// Everything that one lost link had left went out again: to be called once for each
    /// [`SessionEvent::PathLost`], as two links may be lost before the owner has dealt with one.
    pub fn replayed(&mut self) {
        self.replay_pending = self.replay_pending.saturating_sub(1);
    }

    /// The operator wants the frames of both directions to go by link `path`. They do once what is
    /// underway has arrived.
    ///
    /// # Errors
    /// There is no such link, or the session uses all of its links.
    pub fn switchover(&mut self, now: MonotonicTime, path: u16) -> Result<(), SwitchoverRefused> {
        if self.path(path).is_none() {
            return Err(SwitchoverRefused::NoPath { path });
        }
        if self.is_spread() {
            return Err(SwitchoverRefused::Spread);
        }
        self.preferred = Some(path);
        self.notices.push_back((path, PathState::Preferred));
        self.begin_switch(now, path, PathCause::Operator);
        Ok(())
    }

    /// Host: asks for `device`, offering `windows` blocks to be received. While the device is still
    /// being let go, the request waits for that.
    pub fn attach(&mut self, device: DeviceId, generation: u32, windows: Windows) {
        if let Some(lanes) = self.devices.get_mut(&device) {
            if lanes.state == LaneState::Detaching {
                lanes.attach_again = Some((generation, windows));
            }
        } else if self.state != SessionState::Closed {
            if !self.is_first_version() {
                self.attachments = self.attachments.wrapping_add(1);
            }
            let attachment = self.attachments;
            self.devices.insert(
                device,
                DeviceLanes::new(generation, attachment, [0; _], windows),
            );
            self.queue_control(
                device,
                attachment,
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
            let (generation, attachment) = (lanes.generation, lanes.attachment);
            self.queue_control(
                device,
                attachment,
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
            let refused = Control::Refused { generation, reason };
            self.queue_control(device, lanes.attachment, refused);
        }
    }

    /// Lets a device go: its lanes close at once. A director answers a request first, by
    /// [`Self::accept`] or [`Self::refuse`]: until then there is nothing to let go.
    pub fn detach(&mut self, device: DeviceId) {
        let Some(lanes) = self.devices.get_mut(&device) else {
            return;
        };
        if self.role == Role::Director && lanes.state == LaneState::Requested {
            return;
        }
        lanes.attach_again = None;
        if lanes.state != LaneState::Detaching {
            lanes.state = LaneState::Detaching;
            let (generation, attachment) = (lanes.generation, lanes.attachment);
            self.queue_control(device, attachment, Control::Detach { generation });
        }
    }

    /// Whether a DATA frame may go out: there is a link that `has_room`, told its number and the
    /// bytes that are underway on it, and nothing must go out before.
    #[must_use]
    pub fn may_transmit(&self, has_room: impl Fn(u16, usize) -> bool) -> bool {
        let has_room = |path: &Path| has_room(path.id, path.underway_bytes);
        if self.replay_pending > 0 || self.switch.is_some() {
            false
        } else if self.is_spread() {
            // The scheduler says whose frame is next, and that says which link: all need room.
            !self.paths.is_empty() && self.paths.iter().all(has_room)
        } else {
            self.carrier
                .and_then(|carrier| self.path(carrier))
                .is_some_and(has_room)
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

    /// The link and the header of a DATA frame that goes out now, in the order of its lane.
    /// `None` unless [`Self::may_transmit`].
    pub fn transmit_data(
        &mut self,
        now: MonotonicTime,
        device: DeviceId,
        lane: VirtualLane,
        sequence: u32,
        payload_bytes: usize,
    ) -> Option<(u16, FrameHeader)> {
        let path = self.path_of(device)?;
        let lanes = self.devices.get_mut(&device)?;
        let attachment = lanes.attachment;
        let receive = lanes.receive.get_mut(lane.index());
        let credit_limit = receive.map_or(0, ReceiveLane::grant);
        self.count_transmit(now, path, device, attachment, payload_bytes);
        let mut header = self.header(path, FrameKind::Data, device, attachment)?;
        header.lane = Some(lane);
        header.payload_bytes = u32::try_from(payload_bytes).unwrap_or(u32::MAX);
        header.sequence = sequence;
        header.credit_limit = credit_limit;
        Some((path, header))
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

    /// The next control frame to send by link `path`: its header and message.
    pub fn poll_transmit(
        &mut self,
        now: MonotonicTime,
        path: u16,
    ) -> Option<(FrameHeader, Control)> {
        if self.state == SessionState::Closed {
            return self.last_words(path);
        }
        let own = self.path_mut(path)?;
        if let Some(nonce) = own.pong.take() {
            return self.unsequenced(path, Control::Pong(nonce));
        }
        if let Some(nonce) = own.ping.take() {
            return self.unsequenced(path, Control::Ping(nonce));
        }
        if self.carrier == Some(path) {
            if let Some((about, state)) = self.notices.pop_front() {
                return self.unsequenced(path, Control::Path { path: about, state });
            }
            if self.replay_pending == 0
                && self.switch.is_none()
                && let Some(outgoing) = self.outbox.pop_front()
            {
                return self.transmit_control(now, path, outgoing);
            }
            if let Some(credits) = self.credit_message() {
                return self.unsequenced(path, credits);
            }
        }
        self.path(path)?
            .acknowledge_is_due()
            .then(|| self.unsequenced(path, Control::Acknowledge))?
    }

    /// How many more of the frames that were sent by link `path` have arrived; the owner need not
    /// keep them.
    pub fn poll_acknowledged(&mut self, path: u16) -> usize {
        self.path_mut(path)
            .map_or(0, |path| std::mem::take(&mut path.acknowledged))
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<SessionEvent> {
        self.events.pop_front()
    }

    /// When [`Self::handle_timeout`] wants to be called; `None` once closed.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<MonotonicTime> {
        match self.state {
            SessionState::Closed => None,
            SessionState::Interrupted => Some(self.resume_until()),
            SessionState::Active => {
                let patience = self.patience();
                let dead = |path: &Path| path.dead_at(patience, &self.config).map(|(at, _)| at);
                let paths = self.paths.iter();
                let times = paths.flat_map(|path| [Some(path.ping_at), dead(path)]);
                let fail_back = self.fail_back().map(|(_, at)| at);
                times
                    .chain([Some(self.grant_at), fail_back])
                    .flatten()
                    .min()
            }
        }
    }

    fn handle_checked(
        &mut self,
        now: MonotonicTime,
        path: u16,
        header: &FrameHeader,
        payload: &[u8],
    ) -> Result<bool, ProtocolError> {
        if header.version != self.established.version {
            let version = header.version;
            return Err(ProtocolError::FrameVersion { version });
        }
        if header.epoch != self.established.epoch {
            return Err(ProtocolError::Epoch {
                epoch: header.epoch,
                session_epoch: self.established.epoch,
            });
        }
        self.handle_acknowledge(now, path, header.acknowledge)?;
        if header.kind.is_sequenced(self.established.version)
            && let Some(path) = self.path_mut(path)
        {
            path.receive(payload.len());
        }
        match header.kind {
            FrameKind::Data => self.handle_data(header, payload.len()),
            _ => self
                .handle_control(now, path, header, payload)
                .map(|()| false),
        }
    }

    fn handle_data(
        &mut self,
        header: &FrameHeader,
        payload_bytes: usize,
    ) -> Result<bool, ProtocolError> {
        let first_version = self.is_first_version();
        let unexpected = ProtocolError::Unexpected { kind: header.kind };
        let Some(lane) = header.lane else {
            return Err(unexpected);
        };
        let device = header.device;
        let lanes = self.devices.get_mut(&device);
        let Some(lanes) = lanes.filter(|lanes| lanes.attachment == header.attachment) else {
            if first_version {
                return Err(ProtocolError::UnknownDevice { device });
            }
            // It was let go while a link held this back.
            self.ignored += 1;
            return Ok(false);
        };
        match lanes.state {
            LaneState::Requested => return Err(unexpected),
            LaneState::Detaching => return Ok(false),
            LaneState::Open => {}
        }
        let out_of_order = |expected| ProtocolError::Sequence {
            device,
            lane,
            expected,
            sequence: header.sequence,
        };
        let mut arrival = Arrival::Next;
        if let Some(receive) = lanes.receive.get_mut(lane.index()) {
            let expected = receive.expected();
            arrival = receive
                .arrive(payload_bytes, header.sequence)
                .map_err(|bad| match bad {
                    BadArrival::NoCredit => ProtocolError::NoCredit { device, lane },
                    BadArrival::Sequence { expected } => out_of_order(expected),
                })?;
            if arrival == Arrival::Again {
                if first_version {
                    return Err(out_of_order(expected));
                }
                self.ignored += 1;
            }
        }
        self.raise_limit(device, lane, header.credit_limit)?;
        Ok(arrival == Arrival::Next)
    }

    fn handle_control(
        &mut self,
        now: MonotonicTime,
        path: u16,
        header: &FrameHeader,
        payload: &[u8],
    ) -> Result<(), ProtocolError> {
        let control = Control::parse(header.kind, payload)?;
        if !self.is_first_version() && header.kind.is_sequenced(self.established.version) {
            let (sequence, expected) = (header.sequence, self.control_expected);
            if is_before(sequence, expected) {
                self.ignored += 1;
                return Ok(());
            }
            if sequence != expected {
                return Err(ProtocolError::ControlSequence { expected, sequence });
            }
            self.control_expected = expected.wrapping_add(1);
        }
        let unexpected = ProtocolError::Unexpected { kind: header.kind };
        let (device, attachment) = (header.device, header.attachment);
        match (self.role, control) {
            (
                Role::Director,
                Control::Attach {
                    generation,
                    windows,
                },
            ) => {
                let known = self.devices.contains_key(&device);
                if known || self.devices.len() >= DEVICES_MAX {
                    return Err(ProtocolError::Attach { device });
                }
                self.devices.insert(
                    device,
                    DeviceLanes::new(generation, attachment, windows, [0; _]),
                );
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
                if lanes.state == LaneState::Requested {
                    lanes.state = LaneState::Open;
                    lanes.send = windows.map(SendLane::new);
                    self.events.push_back(SessionEvent::Attached { device });
                }
            }
            (Role::Host, Control::Refused { generation, reason }) => {
                self.requested(device, generation)?;
                let refused = self.devices.remove(&device);
                match refused.filter(|lanes| lanes.state == LaneState::Detaching) {
                    Some(let_go) => self.attach_again(device, let_go),
                    None => self
                        .events
                        .push_back(SessionEvent::Refused { device, reason }),
                }
            }
            (_, Control::Detach { generation }) => {
                // A refusal that crossed our detach leaves nothing to answer.
                let Some(lanes) = self.devices.remove(&device) else {
                    return Ok(());
                };
                if lanes.state == LaneState::Detaching {
                    self.attach_again(device, lanes);
                } else {
                    let detach = Control::Detach { generation };
                    self.queue_control(device, attachment, detach);
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
            (_, Control::Acknowledge) => {}
            (_, Control::Pong(nonce)) => {
                if let Some(path) = self.path_mut(path) {
                    path.handle_pong(now, nonce);
                }
            }
            (_, Control::Ping(nonce)) => {
                if let Some(path) = self.path_mut(path) {
                    path.pong = Some(nonce);
                }
            }
            (_, Control::Close(reason)) => self.fail(CloseReason::Peer(reason)),
            (_, Control::Path { path, state }) if !self.is_first_version() => {
                // A notice may be late: of a link that is gone there is nothing to say.
                if self.path(path).is_some() {
                    match state {
                        PathState::Lost => self.lose_path(now, path, PathCause::PeerGaveUp),
                        PathState::Preferred => {
                            self.preferred = Some(path);
                            self.begin_switch(now, path, PathCause::Operator);
                        }
                    }
                }
            }
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

    fn attach_again(&mut self, device: DeviceId, let_go: DeviceLanes) {
        if let Some((generation, windows)) = let_go.attach_again {
            self.attach(device, generation, windows);
        }
    }

    fn handle_acknowledge(
        &mut self,
        now: MonotonicTime,
        id: u16,
        acknowledge: u32,
    ) -> Result<(), ProtocolError> {
        let spread = self.is_spread();
        let devices = &mut self.devices;
        let Some(path) = self.paths.iter_mut().find(|path| path.id == id) else {
            return Ok(());
        };
        let newly = path.acknowledge(now, acknowledge, |frame| {
            if spread
                && let Some(lanes) = devices.get_mut(&frame.device)
                && lanes.attachment == frame.attachment
            {
                lanes.underway = lanes.underway.saturating_sub(1);
            }
        });
        let newly = newly.map_err(|_bad| ProtocolError::Acknowledge)?;
        let drained = path.underway.is_empty();
        if newly > 0 && self.carrier == Some(id) {
            self.end_interruption(now, id);
            if drained {
                self.finish_switch(now);
            }
        }
        Ok(())
    }

    /// A link is given up.
    fn lose_path(&mut self, now: MonotonicTime, id: u16, cause: PathCause) {
        let Some(at) = self.paths.iter().position(|path| path.id == id) else {
            return;
        };
        let path = self.paths.remove(at);
        self.lost_a_path = true;
        for frame in &path.underway {
            if let Some(lanes) = self.devices.get_mut(&frame.device)
                && lanes.attachment == frame.attachment
            {
                lanes.underway = lanes.underway.saturating_sub(1);
            }
        }
        self.events.push_back(SessionEvent::PathLost {
            path: id,
            acknowledged: path.acknowledged,
            cause: cause.clone(),
        });
        if self.is_first_version() {
            self.fail(CloseReason::Link(cause.to_string()));
            return;
        }
        // Also of frames that were picked for it and are not in its queue yet.
        self.replay_pending += 1;
        if self.preferred == Some(id) {
            self.preferred = None;
        }
        if cause != PathCause::PeerGaveUp {
            self.notices.push_back((id, PathState::Lost));
        }
        self.notices.truncate(2 * PATHS_MAX);
        if self.carrier == Some(id) || self.is_spread() {
            let idle = path.underway.is_empty();
            // The first loss counts, if the next link is lost before it carried anything.
            self.interruption.get_or_insert(Interruption {
                since: if idle { now } else { path.waits_since },
                from: id,
                cause,
            });
        }
        if self.carrier == Some(id) {
            self.carrier = self.best_path();
            self.switch = None;
            if let Some(carrier) = self.carrier
                && path.underway.is_empty()
            {
                // Nothing has to get through before the next frame may.
                self.end_interruption(now, carrier);
            }
        } else if self.switch.as_ref().is_some_and(|(to, _)| *to == id) {
            self.switch = None;
        }
        // The limits that were on their way are lost with it; they are absolute, so any link may
        // tell them again.
        for (device, lanes) in &mut self.devices {
            for (lane, receive) in VirtualLane::ALL.into_iter().zip(&mut lanes.receive) {
                if receive.was_used() && !receive.due {
                    receive.due = true;
                    self.credits_due.push((*device, lane));
                }
            }
        }
        if self.paths.is_empty() {
            self.interrupted_at = now;
            self.become_state(SessionState::Interrupted);
        }
    }

    fn begin_switch(&mut self, now: MonotonicTime, to: u16, cause: PathCause) {
        if self.carrier == Some(to) || self.is_spread() {
            self.switch = None;
            return;
        }
        self.switch = Some((to, cause));
        let carrier = self.carrier.and_then(|carrier| self.path(carrier));
        if carrier.is_none_or(|carrier| carrier.underway.is_empty()) {
            self.finish_switch(now);
        }
    }

    /// Everything that the old carrier had to bring has arrived.
    fn finish_switch(&mut self, now: MonotonicTime) {
        let Some((to, cause)) = self.switch.take() else {
            return;
        };
        if let Some(from) = self.carrier.replace(to) {
            self.events.push_back(SessionEvent::PathChanged(PathChange {
                at: now,
                from,
                to,
                cause,
                gap: Duration::ZERO,
            }));
        }
    }

    fn end_interruption(&mut self, now: MonotonicTime, to: u16) {
        if let Some(Interruption { since, from, cause }) = self.interruption.take() {
            let gap = now.saturating_duration_since(since);
            self.events.push_back(SessionEvent::PathChanged(PathChange {
                at: now,
                from,
                to,
                cause,
                gap,
            }));
        }
    }

    /// The link that should carry the frames.
    fn best_path(&self) -> Option<u16> {
        self.preferred.or_else(|| {
            let best = self.paths.iter().min_by_key(|path| path.priority);
            best.map(|path| path.id)
        })
    }

    /// A link that is better than the carrier, and from when on it may be used.
    fn fail_back(&self) -> Option<(u16, MonotonicTime)> {
        let best = self.best_path()?;
        if self.is_spread() || self.carrier == Some(best) || self.switch.is_some() {
            return None;
        }
        let path = self.path(best)?;
        // Only a link that comes back has to prove itself: the links of a new session come in any order.
        let hold_down = if self.lost_a_path {
            self.config.hold_down
        } else {
            Duration::ZERO
        };
        Some((best, path.up_at.saturating_add(hold_down)))
    }

    /// The link for the next frame of a device.
    fn path_of(&mut self, device: DeviceId) -> Option<u16> {
        if !self.is_spread() {
            return self.carrier;
        }
        let lanes = self.devices.get_mut(&device)?;
        let current = lanes.path;
        // Between two frames it may go to the link that has least to do, and had least.
        if lanes.underway == 0 || !self.paths.iter().any(|path| path.id == current) {
            let load = |path: &&Path| (path.underway_bytes, path.sent_bytes);
            lanes.path = self.paths.iter().min_by_key(load)?.id;
        }
        Some(lanes.path)
    }

    fn count_transmit(
        &mut self,
        now: MonotonicTime,
        path: u16,
        device: DeviceId,
        attachment: u8,
        payload_bytes: usize,
    ) {
        let alone = self.paths.len() == 1;
        if self.is_spread()
            && let Some(lanes) = self.devices.get_mut(&device)
            && lanes.attachment == attachment
        {
            lanes.underway += 1;
            lanes.path = path;
        }
        let config = &self.config;
        if let Some(path) = self.paths.iter_mut().find(|known| known.id == path) {
            path.transmit(now, payload_bytes, device, attachment);
            if !alone {
                path.ask_soon(now, config);
            }
        }
    }

    fn transmit_control(
        &mut self,
        now: MonotonicTime,
        path: u16,
        outgoing: Outgoing,
    ) -> Option<(FrameHeader, Control)> {
        let Outgoing {
            device,
            attachment,
            control,
        } = outgoing;
        let kind = control.kind();
        let mut header = self.header(path, kind, device, attachment)?;
        if kind.is_sequenced(self.established.version) {
            header.sequence = self.control_sent;
            self.control_sent = self.control_sent.wrapping_add(1);
            let mut payload = Vec::new();
            control.encode(&mut payload);
            self.count_transmit(now, path, device, attachment, payload.len());
        }
        Some((header, control))
    }

    fn unsequenced(&mut self, path: u16, control: Control) -> Option<(FrameHeader, Control)> {
        let header = self.header(path, control.kind(), DeviceId(0), 0)?;
        Some((header, control))
    }

    /// Tells the peer once on each link why the session is over, unless it knows.
    fn last_words(&mut self, path: u16) -> Option<(FrameHeader, Control)> {
        let reason = match &self.close_reason {
            None | Some(CloseReason::Peer(_) | CloseReason::Link(_)) => return None,
            Some(reason) => reason.to_string(),
        };
        let own = self.path_mut(path)?;
        if std::mem::replace(&mut own.close_told, true) {
            return None;
        }
        self.unsequenced(path, Control::Close(reason))
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

    fn credit_message(&mut self) -> Option<Control> {
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
        (!credits.is_empty()).then_some(Control::Credit(credits))
    }

    fn header(
        &mut self,
        path: u16,
        kind: FrameKind,
        device: DeviceId,
        attachment: u8,
    ) -> Option<FrameHeader> {
        let acknowledge = self.path_mut(path)?.tell_received();
        Some(FrameHeader {
            version: self.established.version,
            kind,
            lane: None,
            more: false,
            epoch: self.established.epoch,
            device,
            payload_bytes: 0,
            attachment,
            sequence: 0,
            credit_limit: 0,
            acknowledge,
        })
    }

    fn queue_control(&mut self, device: DeviceId, attachment: u8, control: Control) {
        self.outbox.push_back(Outgoing {
            device,
            attachment,
            control,
        });
    }

    fn path(&self, id: u16) -> Option<&Path> {
        self.paths.iter().find(|path| path.id == id)
    }

    fn path_mut(&mut self, id: u16) -> Option<&mut Path> {
        self.paths.iter_mut().find(|path| path.id == id)
    }

    /// How long a link may be silent; `None` if it is the only one.
    fn patience(&self) -> Option<Duration> {
        (self.paths.len() > 1).then_some(self.patience)
    }

    fn is_spread(&self) -> bool {
        self.established.features & features::SPREAD != 0
    }

    fn is_first_version(&self) -> bool {
        self.established.version == VERSION_MIN
    }

    fn resume_until(&self) -> MonotonicTime {
        self.interrupted_at.saturating_add(self.config.resume_max)
    }

    fn fail(&mut self, reason: CloseReason) {
        if self.state == SessionState::Closed {
            return;
        }
        self.outbox.clear();
        self.notices.clear();
        self.credits_due.clear();
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
    fn new(generation: u32, attachment: u8, send: Windows, receive: Windows) -> Self {
        Self {
            state: LaneState::Requested,
            attach_again: None,
            generation,
            attachment,
            path: 0,
            underway: 0,
            send: send.map(SendLane::new),
            receive: receive.map(ReceiveLane::new),
        }
    }
}

#[cfg(test)]
mod tests;

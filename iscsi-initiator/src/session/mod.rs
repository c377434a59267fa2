//! One session of one connection (RFC 7143), without sockets and clocks: bytes and time go in,
//! bytes and events come out.
//!
//! ```text
//! Login --> FullFeature --> Leaving --> LoggingOut --> Ended
//!                 \________________________^
//! ```
//!
//! Error recovery level 0: whatever is wrong, [`SessionError`] ends the session, and
//! [`Session::end`] gives its commands back. Memory is bounded by the session's limits, whatever
//! the target sends. `now` is the time since any fixed start.

mod chap;
mod error;
mod frame;
mod login;
mod negotiation;
mod pdu;
mod task;
mod text;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

pub use self::error::SessionError;
pub use self::frame::FrameError;
pub use self::negotiation::{DigestPolicy, Offer, Parameters};
pub use self::pdu::Residual;
pub use self::task::{Answer, Command, Outcome, TaskAttribute, TaskTag, Transfer, lun_field};

pub(crate) use self::chap::ENTROPY_BYTES;
pub(crate) use self::login::LoginConfig;

use self::error::violation;
use self::frame::{Digests, Frame};
use self::login::{Login, LoginRequest, LoginResponse, Step};
use self::negotiation::SEGMENT_BYTES_DEFAULT;
use self::pdu::{CDB_BYTES, NO_TAG, Request, Response};
use self::task::{CDB_BYTES_MAX, Task, TaskTable, command_bytes};

/// Most task management functions at a time.
const MANAGEMENTS_MAX: usize = 16;
/// Most small requests that wait to be sent.
const CONTROLS_MAX: usize = 64;
/// Once there is so much to send, more is made when it is gone.
const TRANSMIT_BYTES: usize = 64 * 1024;
/// Most text of a discovery.
const DISCOVERY_BYTES_MAX: usize = 1024 * 1024;
/// How long a logout may take.
const LOGOUT_WITHIN: Duration = Duration::from_secs(2);

// Tags of the session's own requests; the lower halves of tasks' tags are below 0xf000.
const MANAGEMENT_TAGS: u32 = 0xf000;
const PING_TAG: u32 = 0xf100;
const LOGIN_TAG: u32 = 0xf101;
const LOGOUT_TAG: u32 = 0xf102;
const TEXT_TAG: u32 = 0xf103;

/// What a session is to be.
#[derive(Clone, Debug)]
pub(crate) struct SessionConfig {
    pub(crate) login: LoginConfig,
    pub(crate) isid: [u8; 6],
    /// Of the sessions of one owner each has another.
    pub(crate) number: u64,
    pub(crate) tasks_max: usize,
    pub(crate) bytes_max: usize,
    pub(crate) login_within: Duration,
    pub(crate) ping_after: Duration,
    pub(crate) pong_within: Duration,
}

/// A task management function (RFC 7143 section 11.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskFunction {
    /// ABORT TASK.
    AbortTask(TaskTag),
    /// ABORT TASK SET of this initiator at a LUN.
    AbortTaskSet([u8; 8]),
    /// CLEAR TASK SET at a LUN.
    ClearTaskSet([u8; 8]),
    /// LOGICAL UNIT RESET.
    LogicalUnitReset([u8; 8]),
}

/// What became of a task management function (RFC 7143 section 11.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskFunctionOutcome {
    /// Done: the tasks that it concerned ended before this.
    Complete,
    /// No such task; it may have ended in the meantime.
    NoSuchTask,
    /// No such LUN.
    NoSuchLun,
    /// The target does not have this function.
    NotSupported,
    /// Any other response.
    Refused {
        /// The response.
        response: u8,
    },
    /// The session ended first.
    UnknownFate,
}

/// Why a command or function was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// No session.
    #[error("target is not logged in to; wait until it is")]
    Down,
    /// As many commands or bytes in flight as allowed.
    #[error("too many commands or bytes in flight; wait until one is done")]
    Full,
    /// Such a command cannot be sent.
    #[error(
        "CDB has not 1 to {CDB_BYTES_MAX} bytes, or the data are more than all commands may have; correct it"
    )]
    Invalid,
}

/// A target that a discovery found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveredTarget {
    /// TargetName, as it was sent.
    pub name: String,
    /// TargetAddress, each `host:port,group` as it was sent.
    pub addresses: Vec<String>,
}

/// What happened. `C` and `M` are what the owner gave with a command or function.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event<C, M> {
    /// Commands are taken from now on.
    Up(Parameters),
    Done(C, Outcome),
    Managed(M, TaskFunctionOutcome),
    /// Sense that no command asked for (AsyncEvent 0).
    Sense {
        lun: [u8; 8],
        sense: Vec<u8>,
    },
    Targets(Vec<DiscoveredTarget>),
}

#[derive(Debug)]
enum Phase {
    Login {
        login: Box<Login>,
        until: Duration,
    },
    FullFeature,
    /// The target wants a logout; what is in flight may still end.
    Leaving {
        until: Duration,
    },
    LoggingOut {
        until: Duration,
    },
    Ended,
}

/// A small request that waits to be sent.
#[derive(Debug)]
enum Control {
    Login(LoginRequest),
    Ping,
    Pong {
        lun: [u8; 8],
        transfer_tag: u32,
    },
    Manage {
        tag: u32,
    },
    Text {
        transfer_tag: u32,
        text: &'static str,
    },
    Logout,
}

/// A part of a command's data that is being sent.
#[derive(Debug)]
struct DataSequence {
    task_tag: u32,
    /// `None`: unsolicited.
    transfer_tag: Option<u32>,
    lun: [u8; 8],
    at: usize,
    end: usize,
    data_sn: u32,
}

#[derive(Debug)]
struct Management<M> {
    tag: u32,
    function: TaskFunction,
    lun: [u8; 8],
    referenced_cmd_sn: u32,
    context: M,
    /// CmdSN when it was sent.
    cmd_sn: Option<u32>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Session<C, M> {
    config: SessionConfig,
    phase: Phase,
    parameters: Parameters,
    /// Whether they were agreed on, and are not only assumed.
    agreed: bool,
    /// As long as login lasts there are none.
    digests: Digests,
    cmd_sn: u32,
    max_cmd_sn: u32,
    exp_stat_sn: u32,
    tasks: TaskTable<C>,
    /// Tags of tasks that wait for the target's window.
    waiting: VecDeque<u32>,
    sequences: VecDeque<DataSequence>,
    controls: VecDeque<Control>,
    managements: Vec<Management<M>>,
    management_count: u16,
    events: VecDeque<Event<C, M>>,
    /// When the last PDU came, and when a ping was sent that is not answered.
    heard: Duration,
    pinged: Option<Duration>,
    text: Vec<u8>,
}

impl<C, M> Session<C, M> {
    /// A session that begins to log in.
    pub(crate) fn new(mut config: SessionConfig, now: Duration) -> Self {
        config.login.offer = config.login.offer.bounded();
        let (login, request) = Login::new(config.login.clone());
        Self {
            phase: Phase::Login {
                login: Box::new(login),
                until: now.saturating_add(config.login_within),
            },
            parameters: Parameters::silent_target(&config.login.offer),
            agreed: false,
            digests: Digests::default(),
            cmd_sn: 1,
            max_cmd_sn: 0,
            exp_stat_sn: 0,
            tasks: TaskTable::new(config.tasks_max),
            waiting: VecDeque::new(),
            sequences: VecDeque::new(),
            controls: VecDeque::from([Control::Login(request)]),
            managements: Vec::new(),
            management_count: 0,
            events: VecDeque::new(),
            heard: now,
            pinged: None,
            text: Vec::new(),
            config,
        }
    }

    /// What the owner's receive buffer must hold.
    pub(crate) fn pdu_bytes_max(&self) -> usize {
        let declared = usize::try_from(self.config.login.offer.receive_segment_bytes);
        frame::pdu_bytes_max(declared.unwrap_or(usize::MAX).max(SEGMENT_BYTES_DEFAULT))
    }

    /// Whether commands are taken.
    pub(crate) const fn is_up(&self) -> bool {
        matches!(self.phase, Phase::FullFeature)
    }

    /// Whether the login is not through.
    pub(crate) const fn is_logging_in(&self) -> bool {
        matches!(self.phase, Phase::Login { .. })
    }

    /// Whether it logged out: nothing comes any more.
    pub(crate) const fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended)
    }

    /// DefaultTime2Wait, before the next login; nothing if there was no session.
    pub(crate) const fn time_to_wait(&self) -> Duration {
        if self.agreed {
            self.parameters.time_to_wait
        } else {
            Duration::ZERO
        }
    }

    /// Takes a command; it is sent when the target's window allows.
    pub(crate) fn submit(
        &mut self,
        command: Command,
        context: C,
    ) -> Result<TaskTag, (SubmitError, Command, C)> {
        let bytes = command_bytes(&command);
        let error = if command.cdb.is_empty()
            || command.cdb.len() > CDB_BYTES_MAX
            || bytes > self.config.bytes_max
            || u32::try_from(bytes).is_err()
        {
            SubmitError::Invalid
        } else if !self.is_up() {
            SubmitError::Down
        } else if !self.tasks.has_room() || bytes > self.config.bytes_max - self.tasks.bytes() {
            SubmitError::Full
        } else {
            let tag = self.tasks.insert(Task::new(command, context));
            // There is room, as was seen just now.
            let tag = tag.unwrap_or(NO_TAG);
            self.waiting.push_back(tag);
            let session = self.config.number;
            return Ok(TaskTag { session, tag });
        };
        Err((error, command, context))
    }

    /// Takes a task management function. Tasks that were not sent yet end at once.
    pub(crate) fn manage(
        &mut self,
        function: TaskFunction,
        context: M,
    ) -> Result<(), (SubmitError, M)> {
        if !self.is_up() {
            return Err((SubmitError::Down, context));
        }
        if self.managements.len() >= MANAGEMENTS_MAX {
            return Err((SubmitError::Full, context));
        }
        let (lun, referenced_cmd_sn) = match function {
            TaskFunction::AbortTask(TaskTag { session, tag }) => {
                let of_this = session == self.config.number;
                let task = self.tasks.get_mut(tag).filter(|_| of_this);
                let outcome = match task.map(|task| (task.command.lun, task.cmd_sn)) {
                    Some((lun, Some(cmd_sn))) => Ok((lun, cmd_sn)),
                    Some((_, None)) => Err(TaskFunctionOutcome::Complete),
                    None => Err(TaskFunctionOutcome::NoSuchTask),
                };
                match outcome {
                    Ok(sent) => sent,
                    Err(outcome) => {
                        if outcome == TaskFunctionOutcome::Complete {
                            self.abort([tag]);
                        }
                        self.events.push_back(Event::Managed(context, outcome));
                        return Ok(());
                    }
                }
            }
            TaskFunction::AbortTaskSet(lun)
            | TaskFunction::ClearTaskSet(lun)
            | TaskFunction::LogicalUnitReset(lun) => {
                let unsent = |task: &Task<C>| task.cmd_sn.is_none() && task.command.lun == lun;
                self.abort(self.tasks.tags(unsent));
                (lun, 0)
            }
        };
        // Used again after 65,536 others; at most 16 live at a time.
        self.management_count = self.management_count.wrapping_add(1);
        let tag = u32::from(self.management_count) << 16 | MANAGEMENT_TAGS;
        self.managements.push(Management {
            tag,
            function,
            lun,
            referenced_cmd_sn,
            context,
            cmd_sn: None,
        });
        self.controls.push_back(Control::Manage { tag });
        Ok(())
    }

    fn abort(&mut self, tags: impl IntoIterator<Item = u32>) {
        for tag in tags {
            if let Some(task) = self.tasks.remove(tag) {
                self.waiting.retain(|waiting| *waiting != tag);
                let event = Event::Done(task.context, Outcome::Aborted);
                self.events.push_back(event);
            }
        }
    }

    /// Asks a discovery session for all targets; the answer is [`Event::Targets`].
    pub(crate) fn send_targets(&mut self) {
        self.controls.push_back(Control::Text {
            transfer_tag: NO_TAG,
            text: "SendTargets=All\0",
        });
    }

    /// Begins to log out; what was not sent is given back.
    pub(crate) fn log_out(&mut self, now: Duration) {
        if !matches!(self.phase, Phase::FullFeature | Phase::Leaving { .. }) {
            return;
        }
        self.give_back_unsent();
        self.controls.push_back(Control::Logout);
        self.phase = Phase::LoggingOut {
            until: now + LOGOUT_WITHIN,
        };
    }

    fn give_back_unsent(&mut self) {
        for tag in std::mem::take(&mut self.waiting) {
            if let Some(task) = self.tasks.remove(tag) {
                let (context, outcome) = task.lose();
                self.events.push_back(Event::Done(context, outcome));
            }
        }
    }

    /// The end: gives everything back. [`Self::poll_event`] says what.
    pub(crate) fn end(&mut self) {
        self.phase = Phase::Ended;
        self.waiting.clear();
        self.sequences.clear();
        self.controls.clear();
        for tag in self.tasks.tags(|_| true) {
            if let Some(task) = self.tasks.remove(tag) {
                let (context, outcome) = task.lose();
                self.events.push_back(Event::Done(context, outcome));
            }
        }
        for management in std::mem::take(&mut self.managements) {
            let outcome = TaskFunctionOutcome::UnknownFate;
            self.events
                .push_back(Event::Managed(management.context, outcome));
        }
    }

    /// The next thing that happened. To be drained after every other call.
    pub(crate) fn poll_event(&mut self) -> Option<Event<C, M>> {
        self.events.pop_front()
    }

    /// When [`Self::handle_timeout`] is due.
    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        match self.phase {
            Phase::Login { until, .. } | Phase::LoggingOut { until } => Some(until),
            Phase::Leaving { until } => Some(until.min(self.silence_ends())),
            Phase::FullFeature => Some(self.silence_ends()),
            Phase::Ended => None,
        }
    }

    fn silence_ends(&self) -> Duration {
        match self.pinged {
            Some(pinged) => pinged.saturating_add(self.config.pong_within),
            None => self.heard.saturating_add(self.config.ping_after),
        }
    }

    /// Looks at the time.
    pub(crate) fn handle_timeout(&mut self, now: Duration) -> Result<(), SessionError> {
        match self.phase {
            Phase::Login { until, .. } if now >= until => return Err(SessionError::LoginTimeout),
            Phase::LoggingOut { until } if now >= until => return Err(SessionError::Logout),
            Phase::Leaving { until } if now >= until => self.log_out(now),
            Phase::FullFeature | Phase::Leaving { .. } if now >= self.silence_ends() => {
                if self.pinged.is_some() {
                    return Err(SessionError::Silent);
                }
                self.pinged = Some(now);
                self.controls.push_back(Control::Ping);
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes what came; returns how many bytes of it. The rest is the beginning of a PDU and is
    /// to be given again with more.
    ///
    /// # Errors
    /// [`SessionError`]; the owner calls [`Self::end`].
    pub(crate) fn handle_input(
        &mut self,
        now: Duration,
        input: &[u8],
    ) -> Result<usize, SessionError> {
        let mut rest = input;
        while !self.has_ended() {
            let Some((frame, used)) = frame::decode(rest, self.digests, self.receive_bytes_max())?
            else {
                break;
            };
            rest = rest.get(used..).unwrap_or_default();
            self.heard = now;
            self.handle_frame(now, &frame)?;
        }
        if matches!(self.phase, Phase::Leaving { .. })
            && self.tasks.is_empty()
            && self.managements.is_empty()
        {
            self.log_out(now);
        }
        Ok(input.len() - rest.len())
    }

    fn receive_bytes_max(&self) -> usize {
        match self.phase {
            Phase::Login { .. } => SEGMENT_BYTES_DEFAULT,
            _ => usize::try_from(self.config.login.offer.receive_segment_bytes)
                .unwrap_or(SEGMENT_BYTES_DEFAULT),
        }
    }

    fn handle_frame(&mut self, now: Duration, frame: &Frame<'_>) -> Result<(), SessionError> {
        let [opcode, ..] = frame.header;
        let (response, sequence) =
            Response::parse(frame.header).ok_or(SessionError::Opcode { opcode })?;
        let name = response.name();
        if matches!(self.phase, Phase::Login { .. }) {
            let Response::Login {
                transit,
                continues,
                stages,
                task_tag: LOGIN_TAG,
                class,
                detail,
                ..
            } = response
            else {
                return Err(violation(name, "came during the login"));
            };
            self.exp_stat_sn = sequence.stat_sn.wrapping_add(1);
            self.max_cmd_sn = sequence.max_cmd_sn;
            let response = LoginResponse {
                transit,
                continues,
                stages,
                class,
                detail,
            };
            return self.handle_login(response, frame.data);
        }
        if has_status(&response) {
            if sequence.stat_sn != self.exp_stat_sn {
                return Err(violation(name, "has another StatSN than the next"));
            }
            self.exp_stat_sn = self.exp_stat_sn.wrapping_add(1);
        }
        // Section 4.2.2.1: a MaxCmdSN below ExpCmdSN - 1 is void, and the window never shrinks.
        let impossible = serial_less(sequence.max_cmd_sn, sequence.exp_cmd_sn.wrapping_sub(1));
        if !impossible && serial_less(self.max_cmd_sn, sequence.max_cmd_sn) {
            self.max_cmd_sn = sequence.max_cmd_sn;
        }
        self.handle_response(now, response, frame.data)
    }

    fn handle_login(&mut self, response: LoginResponse, data: &[u8]) -> Result<(), SessionError> {
        let Phase::Login { login, .. } = &mut self.phase else {
            return Ok(());
        };
        match login.handle_response(response, data)? {
            Step::Send(request) => self.controls.push_back(Control::Login(request)),
            Step::Done(parameters) => {
                self.parameters = parameters;
                self.agreed = true;
                self.digests = parameters.digests;
                self.phase = Phase::FullFeature;
                self.events.push_back(Event::Up(parameters));
            }
        }
        Ok(())
    }

    fn handle_response(
        &mut self,
        now: Duration,
        response: Response,
        data: &[u8],
    ) -> Result<(), SessionError> {
        let name = response.name();
        match response {
            Response::NopIn {
                lun,
                task_tag,
                transfer_tag,
            } => self.handle_nop_in(lun, task_tag, transfer_tag)?,
            Response::Command {
                residual,
                response,
                status,
                task_tag,
            } => {
                let task = self.take_sent(name, task_tag)?;
                if response == 0 {
                    let (context, outcome) = task.answer(status, sense(data)?, residual);
                    self.events.push_back(Event::Done(context, outcome));
                } else {
                    let outcome = Outcome::TargetFailure { response };
                    self.events.push_back(Event::Done(task.context, outcome));
                }
            }
            Response::Task { response, task_tag } => self.handle_managed(response, task_tag)?,
            Response::Login { .. } => return Err(violation(name, "came after the login")),
            Response::Text {
                last,
                continues,
                task_tag,
                transfer_tag,
            } => self.handle_text(last && !continues, task_tag, transfer_tag, data)?,
            Response::DataIn {
                status,
                task_tag,
                data_sn,
                offset,
            } => {
                self.sent_task(name, task_tag)?
                    .take_data_in(data_sn, offset, data)?;
                if let Some((status, residual)) = status {
                    let task = self.take_sent(name, task_tag)?;
                    let (context, outcome) = task.answer(status, &[], residual);
                    self.events.push_back(Event::Done(context, outcome));
                }
            }
            Response::Logout { response, task_tag } => {
                let awaited = matches!(self.phase, Phase::LoggingOut { .. });
                if !awaited || task_tag != LOGOUT_TAG {
                    return Err(violation(name, "came without a request"));
                }
                if response != 0 {
                    return Err(SessionError::Logout);
                }
                self.phase = Phase::Ended;
            }
            Response::ReadyToTransfer {
                lun,
                task_tag,
                transfer_tag,
                r2t_sn,
                offset,
                desired_bytes,
            } => {
                if transfer_tag == NO_TAG {
                    return Err(violation(name, "has no transfer tag"));
                }
                let burst_bytes = self.parameters.burst_bytes;
                let task = self.sent_task(name, task_tag)?;
                let (at, end) = task.take_r2t(r2t_sn, offset, desired_bytes, burst_bytes)?;
                self.sequences.push_back(DataSequence {
                    task_tag,
                    transfer_tag: Some(transfer_tag),
                    lun,
                    at,
                    end,
                    data_sn: 0,
                });
            }
            Response::Async {
                lun,
                event,
                parameter2: _,
                parameter3,
            } => self.handle_async(now, lun, event, parameter3, data)?,
            Response::Reject { reason } => return Err(self.handle_reject(reason, data)),
        }
        Ok(())
    }

    fn sent_task(&mut self, name: &'static str, tag: u32) -> Result<&mut Task<C>, SessionError> {
        self.tasks
            .get_mut(tag)
            .filter(|task| task.cmd_sn.is_some())
            .ok_or_else(|| violation(name, "belongs to no command"))
    }

    fn take_sent(&mut self, name: &'static str, tag: u32) -> Result<Task<C>, SessionError> {
        self.sent_task(name, tag)?;
        let task = self.tasks.remove(tag);
        task.ok_or_else(|| violation(name, "belongs to no command"))
    }

    fn handle_nop_in(
        &mut self,
        lun: [u8; 8],
        task_tag: u32,
        transfer_tag: u32,
    ) -> Result<(), SessionError> {
        const NAME: &str = "NOP-In";
        match task_tag {
            PING_TAG if self.pinged.is_some() => self.pinged = None,
            // Without a transfer tag it wants no answer.
            NO_TAG if transfer_tag == NO_TAG => {}
            NO_TAG if self.controls.len() < CONTROLS_MAX => {
                self.controls.push_back(Control::Pong { lun, transfer_tag });
            }
            NO_TAG => return Err(violation(NAME, "comes faster than it can be answered")),
            _ => return Err(violation(NAME, "answers no ping")),
        }
        Ok(())
    }

    fn handle_managed(&mut self, response: u8, task_tag: u32) -> Result<(), SessionError> {
        const NAME: &str = "Task Management Function Response";
        let sent =
            |management: &Management<M>| management.tag == task_tag && management.cmd_sn.is_some();
        let Some(index) = self.managements.iter().position(sent) else {
            return Err(violation(NAME, "belongs to no function"));
        };
        let management = self.managements.swap_remove(index);
        let outcome = match response {
            0 => TaskFunctionOutcome::Complete,
            1 => TaskFunctionOutcome::NoSuchTask,
            2 => TaskFunctionOutcome::NoSuchLun,
            5 => TaskFunctionOutcome::NotSupported,
            response => TaskFunctionOutcome::Refused { response },
        };
        match (management.function, outcome) {
            // What the target does not know it will not answer any more.
            (
                TaskFunction::AbortTask(TaskTag { tag, .. }),
                TaskFunctionOutcome::Complete | TaskFunctionOutcome::NoSuchTask,
            ) => self.abort([tag]),
            (
                TaskFunction::AbortTaskSet(lun)
                | TaskFunction::ClearTaskSet(lun)
                | TaskFunction::LogicalUnitReset(lun),
                TaskFunctionOutcome::Complete,
            ) => {
                let function_sn = management.cmd_sn.unwrap_or(self.cmd_sn);
                let concerned = |task: &Task<C>| {
                    let earlier = task.cmd_sn.is_some_and(|sn| serial_less(sn, function_sn));
                    earlier && task.command.lun == lun
                };
                self.abort(self.tasks.tags(concerned));
            }
            _ => {}
        }
        self.events
            .push_back(Event::Managed(management.context, outcome));
        Ok(())
    }

    fn handle_text(
        &mut self,
        whole: bool,
        task_tag: u32,
        transfer_tag: u32,
        data: &[u8],
    ) -> Result<(), SessionError> {
        if self.config.login.target.is_some() || task_tag != TEXT_TAG {
            return Err(violation("Text Response", "answers no request"));
        }
        text::collect(&mut self.text, data, DISCOVERY_BYTES_MAX)?;
        if !whole {
            // The bound on controls is far: one answer, one request.
            self.controls.push_back(Control::Text {
                transfer_tag,
                text: "",
            });
            return Ok(());
        }
        let text = std::mem::take(&mut self.text);
        let mut targets: Vec<DiscoveredTarget> = Vec::new();
        for (key, value) in text::pairs(&text)? {
            match (key, targets.last_mut()) {
                ("TargetName", _) => targets.push(DiscoveredTarget {
                    name: value.to_owned(),
                    addresses: Vec::new(),
                }),
                ("TargetAddress", Some(target)) => target.addresses.push(value.to_owned()),
                _ => {}
            }
        }
        self.events.push_back(Event::Targets(targets));
        Ok(())
    }

    fn handle_async(
        &mut self,
        now: Duration,
        lun: [u8; 8],
        event: u8,
        seconds: u16,
        data: &[u8],
    ) -> Result<(), SessionError> {
        match event {
            0 => self.events.push_back(Event::Sense {
                lun,
                sense: sense(data)?.to_owned(),
            }),
            // A logout is wanted within some seconds, or a negotiation, which a logout avoids.
            1 | 4 if self.is_up() => {
                self.give_back_unsent();
                self.phase = Phase::Leaving {
                    until: now + Duration::from_secs(seconds.into()) / 2,
                };
            }
            2 | 3 => return Err(SessionError::TargetEnds { event }),
            _ => {}
        }
        Ok(())
    }

    /// The rejected command, if it is one, is not to be sent again with the rest.
    fn handle_reject(&mut self, reason: u8, data: &[u8]) -> SessionError {
        if let Some(header) = data.first_chunk()
            && let Some(task) = self.tasks.remove(pdu::task_tag_of(*header))
        {
            let outcome = Outcome::Rejected { reason };
            self.events.push_back(Event::Done(task.context, outcome));
        }
        SessionError::Rejected { reason }
    }

    /// Appends what is to be sent to `out`, until that has 64 KiB, give or take a PDU. To be
    /// called again when it is sent.
    pub(crate) fn poll_transmit(&mut self, out: &mut Vec<u8>) {
        while out.len() < TRANSMIT_BYTES {
            let more =
                self.transmit_control(out) || self.transmit_data(out) || self.transmit_command(out);
            if !more {
                break;
            }
        }
    }

    fn transmit_control(&mut self, out: &mut Vec<u8>) -> bool {
        let Some(control) = self.controls.pop_front() else {
            return false;
        };
        let (request, text) = match &control {
            Control::Login(request) => {
                let header = Request::Login {
                    transit: request.transit,
                    stages: request.stages,
                    isid: self.config.isid,
                    tsih: 0,
                    task_tag: LOGIN_TAG,
                };
                (header, request.text.as_slice())
            }
            Control::Ping => {
                let ping = Request::NopOut {
                    lun: [0; 8],
                    task_tag: PING_TAG,
                    transfer_tag: NO_TAG,
                };
                (ping, [].as_slice())
            }
            Control::Pong { lun, transfer_tag } => {
                let pong = Request::NopOut {
                    lun: *lun,
                    task_tag: NO_TAG,
                    transfer_tag: *transfer_tag,
                };
                (pong, [].as_slice())
            }
            Control::Manage { tag } => match self.management_request(*tag) {
                Some(request) => (request, [].as_slice()),
                None => return true,
            },
            Control::Text { transfer_tag, text } => {
                let request = Request::Text {
                    task_tag: TEXT_TAG,
                    transfer_tag: *transfer_tag,
                };
                (request, text.as_bytes())
            }
            Control::Logout => {
                let request = Request::Logout {
                    task_tag: LOGOUT_TAG,
                };
                (request, [].as_slice())
            }
        };
        let header = request.to_bytes(self.cmd_sn, self.exp_stat_sn);
        frame::encode(out, header, &[], text, self.digests);
        true
    }

    fn management_request(&mut self, tag: u32) -> Option<Request> {
        let of_tag = |management: &&mut Management<M>| management.tag == tag;
        let management = self.managements.iter_mut().find(of_tag)?;
        management.cmd_sn = Some(self.cmd_sn);
        let (function, referenced_tag) = match management.function {
            TaskFunction::AbortTask(TaskTag { tag, .. }) => (1, tag),
            TaskFunction::AbortTaskSet(_) => (2, NO_TAG),
            TaskFunction::ClearTaskSet(_) => (4, NO_TAG),
            TaskFunction::LogicalUnitReset(_) => (5, NO_TAG),
        };
        Some(Request::Task {
            function,
            lun: management.lun,
            task_tag: tag,
            referenced_tag,
            referenced_cmd_sn: management.referenced_cmd_sn,
        })
    }

    /// One Data-Out of the oldest sequence: first what was begun is ended, so that unsolicited
    /// data go in the order of their commands (section 4.2.5.2).
    fn transmit_data(&mut self, out: &mut Vec<u8>) -> bool {
        let Some(sequence) = self.sequences.front_mut() else {
            return false;
        };
        // A command that ended early wants no more data.
        let Some(task) = self.tasks.get_mut(sequence.task_tag) else {
            self.sequences.pop_front();
            return true;
        };
        let until = sequence
            .end
            .min(sequence.at + self.parameters.send_segment_bytes);
        let last = until == sequence.end;
        let data = task.data_out().get(sequence.at..until).unwrap_or_default();
        let request = Request::DataOut {
            last,
            lun: sequence.lun,
            task_tag: sequence.task_tag,
            transfer_tag: sequence.transfer_tag.unwrap_or(NO_TAG),
            data_sn: sequence.data_sn,
            // Lengths of commands have 32 bits.
            offset: u32::try_from(sequence.at).unwrap_or(u32::MAX),
        };
        let header = request.to_bytes(self.cmd_sn, self.exp_stat_sn);
        frame::encode(out, header, &[], data, self.digests);
        sequence.at = until;
        sequence.data_sn = sequence.data_sn.wrapping_add(1);
        if last {
            if sequence.transfer_tag.is_some() {
                task.r2t_answered();
            }
            self.sequences.pop_front();
        }
        true
    }

    /// One command, if the target's window is open.
    fn transmit_command(&mut self, out: &mut Vec<u8>) -> bool {
        if serial_less(self.max_cmd_sn, self.cmd_sn) {
            return false;
        }
        let Some(tag) = self.waiting.pop_front() else {
            return false;
        };
        let Some(task) = self.tasks.get_mut(tag) else {
            return true;
        };
        let data_bytes = task.data_out().len();
        let first_burst = usize::try_from(self.parameters.first_burst_bytes)
            .unwrap_or(usize::MAX)
            .min(data_bytes);
        let immediate_end = if self.parameters.immediate_data {
            first_burst.min(self.parameters.send_segment_bytes)
        } else {
            0
        };
        let unasked_end = if self.parameters.initial_r2t {
            immediate_end
        } else {
            first_burst
        };
        task.sent(self.cmd_sn, unasked_end);
        let command = &task.command;
        let (cdb, rest) = command
            .cdb
            .split_at_checked(CDB_BYTES)
            .unwrap_or((&command.cdb, &[]));
        let mut first_bytes = [0; CDB_BYTES];
        for (to, from) in first_bytes.iter_mut().zip(cdb) {
            *to = *from;
        }
        let request = Request::Command {
            last: unasked_end == immediate_end,
            read: matches!(command.transfer, Transfer::In(bytes) if bytes > 0),
            write: data_bytes > 0,
            attribute: command.attribute as u8,
            lun: command.lun,
            task_tag: tag,
            expected_bytes: u32::try_from(command_bytes(command)).unwrap_or(u32::MAX),
            cdb: first_bytes,
        };
        let header = request.to_bytes(self.cmd_sn, self.exp_stat_sn);
        let immediate = task.data_out().get(..immediate_end).unwrap_or_default();
        frame::encode(out, header, &extended_cdb(rest), immediate, self.digests);
        if unasked_end > immediate_end {
            self.sequences.push_back(DataSequence {
                task_tag: tag,
                transfer_tag: None,
                lun: command.lun,
                at: immediate_end,
                end: unasked_end,
                data_sn: 0,
            });
        }
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        true
    }
}

/// The additional header segment of a CDB's bytes after the sixteenth (section 11.2.2.3).
fn extended_cdb(rest: &[u8]) -> Vec<u8> {
    const TYPE: u8 = 1;
    if rest.is_empty() {
        return Vec::new();
    }
    // A reserved byte counts; at most 244 others, as no CDB is longer than 260 bytes.
    let [.., high, low] = (rest.len() + 1).to_be_bytes();
    let mut segment = vec![high, low, TYPE, 0];
    segment.extend_from_slice(rest);
    segment.resize(segment.len().next_multiple_of(4), 0);
    segment
}

/// Whether it carries a StatSN that counts.
const fn has_status(response: &Response) -> bool {
    match response {
        Response::NopIn { task_tag, .. } => *task_tag != NO_TAG,
        Response::DataIn { status, .. } => status.is_some(),
        Response::ReadyToTransfer { .. } => false,
        _ => true,
    }
}

/// The sense of a data segment: its length in two bytes, then the sense (section 11.4.7.2).
fn sense(data: &[u8]) -> Result<&[u8], SessionError> {
    let Some((length, rest)) = data.split_first_chunk() else {
        return Ok(&[]);
    };
    rest.get(..usize::from(u16::from_be_bytes(*length)))
        .ok_or_else(|| violation("sense", "is longer than its data segment"))
}

/// Serial number arithmetic (RFC 1982): whether `a` is before `b`.
const fn serial_less(a: u32, b: u32) -> bool {
    let distance = b.wrapping_sub(a);
    distance != 0 && distance < 1 << 31
}

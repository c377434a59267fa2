//! The control ring: task management functions and asynchronous notification (virtio 1.2 section
//! 5.6.6.2). Every request is answered.
//!
//! | request | readable | writable |
//! | --- | --- | --- |
//! | task management | type 0 u32, function u32, lun 8, id u64 | response u8 |
//! | notification query, subscribe | type 1 or 2 u32, lun 8, events u32 | events u32, response u8 |
//!
//! A function reaches past the guest's own rings: before one is looked at, everything the guest
//! made available earlier is read, so that no command overtakes its own abort. When the director
//! says that a function is complete, the commands it ended are completed here first, because their
//! statuses travel on a lane that the function's response may overtake.

use std::sync::atomic::Ordering;

use fabric_payload::scsi::{InformationUnit, LunBytes, Tag, TaskFunction, TaskResponse};
use fabric_transport::{FrameBuffer, LaneSet, SendRefused, VirtualLane};
use vhost_user_session::{Chain, Queue};

use crate::data_path::{Command, Done};
use crate::device::{VhbaDevice, lock};
use crate::lun;
use crate::request::{Response, ResponseCode};
use crate::statistics::{add, count};

const TASK_MANAGEMENT: u32 = 0;
const NOTIFICATION_QUERY: u32 = 1;
const NOTIFICATION_SUBSCRIBE: u32 = 2;
/// Bytes of the longest request, a task management function.
const REQUEST_BYTES_MAX: usize = 24;
/// No events are delivered asynchronously; OK.
const NOTIFICATION_ANSWER: [u8; 5] = [0; 5];

/// A request of the control ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ControlRequest {
    TaskManagement {
        function: TaskFunction,
        lun: LunBytes,
        id: u64,
    },
    Notification,
    /// CLEAR ACA, which needs NACA, and whatever the standard does not know.
    Unsupported,
}

fn parse(request: &[u8]) -> ControlRequest {
    let parsed = || {
        let (kind, rest) = request.split_first_chunk()?;
        match u32::from_le_bytes(*kind) {
            TASK_MANAGEMENT => {
                let (function, rest) = rest.split_first_chunk()?;
                let (lun, rest) = rest.split_first_chunk()?;
                let (id, _) = rest.split_first_chunk()?;
                let function = match u32::from_le_bytes(*function) {
                    0 => TaskFunction::AbortTask,
                    1 => TaskFunction::AbortTaskSet,
                    3 => TaskFunction::ClearTaskSet,
                    4 => TaskFunction::ItNexusReset,
                    5 => TaskFunction::LogicalUnitReset,
                    6 => TaskFunction::QueryTask,
                    7 => TaskFunction::QueryTaskSet,
                    _ => return None,
                };
                let id = u64::from_le_bytes(*id);
                Some(ControlRequest::TaskManagement {
                    function,
                    lun: *lun,
                    id,
                })
            }
            NOTIFICATION_QUERY | NOTIFICATION_SUBSCRIBE if rest.len() >= 12 => {
                Some(ControlRequest::Notification)
            }
            _ => None,
        }
    };
    parsed().unwrap_or(ControlRequest::Unsupported)
}

const fn code(response: TaskResponse) -> ResponseCode {
    match response {
        // FUNCTION COMPLETE and OK are the same number.
        TaskResponse::Complete => ResponseCode::Ok,
        TaskResponse::Succeeded => ResponseCode::FunctionSucceeded,
        TaskResponse::Rejected => ResponseCode::FunctionRejected,
        TaskResponse::IncorrectLun => ResponseCode::IncorrectLun,
    }
}

/// A function underway at the director.
#[derive(Debug)]
pub(crate) struct Function {
    function: TaskFunction,
    lun: LunBytes,
    managed: Tag,
    /// Commands taken before this serial number are concerned.
    serial: u64,
    pub(crate) epoch: u16,
    /// Who asked; `None` if it was this device, or if the guest went away.
    pub(crate) asker: Option<(Queue, Chain)>,
}

impl Function {
    /// How `command`, with its tag, ends when the function is complete.
    fn ends(&self, tag: Tag, command: &Command) -> Option<ResponseCode> {
        let concerned = match self.function {
            TaskFunction::AbortTask => tag == self.managed,
            TaskFunction::AbortTaskSet
            | TaskFunction::ClearTaskSet
            | TaskFunction::LogicalUnitReset => command.lun == self.lun,
            TaskFunction::ItNexusReset => true,
            TaskFunction::QueryTask | TaskFunction::QueryTaskSet => false,
        };
        let code = match self.function {
            TaskFunction::LogicalUnitReset | TaskFunction::ItNexusReset => ResponseCode::Reset,
            _ => ResponseCode::Aborted,
        };
        (concerned && command.serial < self.serial).then_some(code)
    }
}

/// The control ring; `None` while it is stopped.
#[derive(Debug, Default)]
pub(crate) struct ControlQueue {
    pub(crate) queue: Option<Queue>,
}

/// What becomes of a request.
enum Outcome {
    Answered(Chain, u32),
    Underway,
    /// The lane has no credit: the chain stays the guest's.
    Blocked(Chain),
}

impl VhbaDevice {
    /// Handles what is in the control ring, until it is empty or the lane is blocked.
    pub(crate) fn serve_control(&self) {
        let control = lock(&self.control);
        let Some(queue) = control.queue.as_ref() else {
            return;
        };
        // One request at a time: a function reads the request rings, which have locks of their own.
        // No more than the ring holds in a turn: the guest may refill it for ever.
        for _request in 0..=queue.size() {
            let chain = {
                let Some(mut ring) = queue.lock() else { return };
                let Some(chain) = ring.pop() else {
                    if ring.can_pop() && ring.enable_notification() {
                        continue;
                    }
                    return;
                };
                chain
            };
            match self.control_request(queue, chain) {
                Outcome::Answered(chain, written) => chain.complete(written),
                Outcome::Underway => {}
                Outcome::Blocked(chain) => {
                    if let Some(mut ring) = queue.lock() {
                        ring.unpop(chain);
                    }
                    return;
                }
            }
        }
        self.wake(0);
    }

    fn control_request(&self, queue: &Queue, chain: Chain) -> Outcome {
        let mut bytes = [0; REQUEST_BYTES_MAX];
        let length = usize::try_from(chain.readable_bytes()).unwrap_or(usize::MAX);
        let request = bytes
            .get_mut(..length.min(REQUEST_BYTES_MAX))
            .unwrap_or_default();
        let parsed = match chain.read_at(0, request) {
            Ok(()) => parse(request),
            Err(_unreadable) => ControlRequest::Unsupported,
        };
        let answer = |chain: Chain, bytes: &[u8]| {
            count(&self.counters.task_functions_answered_here);
            let written = chain.write_at(0, bytes).map_or(0, |()| bytes.len());
            if written == 0 {
                count(&self.counters.unanswerable_chains);
            }
            Outcome::Answered(chain, u32::try_from(written).unwrap_or(0))
        };
        match parsed {
            ControlRequest::TaskManagement { function, lun, id } if chain.writable_bytes() > 0 => {
                match self.plan(function, lun, id) {
                    Err(code) => answer(chain, &[code.byte()]),
                    Ok((lanes, function)) => {
                        self.send_function(&lanes, function, Some((queue.clone(), chain)))
                    }
                }
            }
            ControlRequest::Notification => answer(chain, &NOTIFICATION_ANSWER),
            ControlRequest::TaskManagement { .. } | ControlRequest::Unsupported => {
                answer(chain, &[ResponseCode::FunctionRejected.byte()])
            }
        }
    }

    /// The function to send, or the answer that needs no director.
    fn plan(
        &self,
        function: TaskFunction,
        lun: LunBytes,
        id: u64,
    ) -> Result<(LaneSet, Function), ResponseCode> {
        let lun = lun::from_guest(lun).ok_or(ResponseCode::BadTarget)?;
        let lanes = self.lanes().ok_or(ResponseCode::Failure)?;
        let all_read = self.read_request_rings();
        let mut managed = Tag(0);
        let mut commands = lock(&self.commands);
        if matches!(function, TaskFunction::AbortTask | TaskFunction::QueryTask) {
            let found = commands.in_flight.iter().find_map(|(tag, command)| {
                let same = command.id == id && command.lun == lun;
                same.then_some((tag, command.epoch.is_none()))
            });
            managed = match found {
                Some((tag, true)) if function == TaskFunction::AbortTask => {
                    // Not sent yet: it ends here.
                    let ended = commands.in_flight.remove(tag);
                    drop(commands);
                    add(&self.counters.aborted_commands, 1);
                    let response = |command: &Command| {
                        Response::new(ResponseCode::Aborted, command.residual_if_failed())
                    };
                    self.complete(ended.into_iter().map(|command| {
                        let response = response(&command);
                        command.finish(&response)
                    }));
                    return Err(ResponseCode::Ok);
                }
                Some((_, true)) => return Err(ResponseCode::FunctionSucceeded),
                Some((tag, false)) => tag,
                // A task that is not there is as good as aborted, and queried in vain (SAM-5
                // sections 7.2 and 7.8); but one may stand in a ring that is not being read.
                None if all_read || function == TaskFunction::QueryTask => {
                    return Err(ResponseCode::Ok);
                }
                None => return Err(ResponseCode::FunctionRejected),
            };
        }
        let serial = commands.serial;
        drop(commands);
        let epoch = lanes.epoch();
        Ok((
            lanes,
            Function {
                function,
                lun,
                managed,
                serial,
                epoch,
                asker: None,
            },
        ))
    }

    fn send_function(
        &self,
        lanes: &LaneSet,
        function: Function,
        asker: Option<(Queue, Chain)>,
    ) -> Outcome {
        match self.try_function(lanes, Function { asker, ..function }) {
            None => Outcome::Underway,
            Some((
                SendRefused::Blocked,
                Function {
                    asker: Some((_, chain)),
                    ..
                },
            )) => Outcome::Blocked(chain),
            Some((_, function)) => {
                count(&self.counters.task_functions_answered_here);
                match function.answer(ResponseCode::Failure) {
                    Some(done) => Outcome::Answered(done.chain, done.written),
                    None => Outcome::Underway,
                }
            }
        }
    }

    /// Sends a function, or gives it back with the reason.
    fn try_function(&self, lanes: &LaneSet, function: Function) -> Option<(SendRefused, Function)> {
        let (kind, managed, lun) = (function.function, function.managed, function.lun);
        let inserted = lock(&self.functions).insert(function);
        let tag = match inserted {
            Ok(tag) => tag,
            Err(function) => return Some((SendRefused::TooLarge, function)),
        };
        let mut frame = FrameBuffer::with_capacity(32);
        let unit = InformationUnit::TaskManagement {
            function: kind,
            tag,
            managed,
            lun,
        };
        frame.append_with(|bytes| unit.encode(bytes));
        let mut frames = vec![(VirtualLane::TaskManagement, frame)];
        match lanes.try_send(&mut frames) {
            Ok(()) => {
                count(&self.counters.task_functions);
                None
            }
            // Gone if the session ended meanwhile, which has answered it.
            Err(refused) => Some((refused, lock(&self.functions).remove(tag)?)),
        }
    }

    /// Ends at the director what a guest that went away had in flight. `false`: not yet, the lane
    /// is blocked.
    pub(crate) fn send_nexus_reset_if_due(&self, lanes: &LaneSet) -> bool {
        if !self.nexus_reset_due.swap(false, Ordering::AcqRel) {
            return true;
        }
        let function = Function {
            function: TaskFunction::ItNexusReset,
            lun: [0; 8],
            managed: Tag(0),
            serial: lock(&self.commands).serial,
            epoch: lanes.epoch(),
            asker: None,
        };
        let sent = self.try_function(lanes, function).is_none();
        if !sent {
            self.set_nexus_reset_due();
        }
        sent
    }

    /// The director's answer to a function.
    pub(crate) fn function_done(&self, response: TaskResponse, tag: Tag) {
        let Some(function) = lock(&self.functions).remove(tag) else {
            count(&self.counters.unknown_replies);
            return;
        };
        let mut done = Vec::new();
        if response == TaskResponse::Complete {
            let mut commands = lock(&self.commands);
            let ended: Vec<_> = commands
                .in_flight
                .iter()
                .filter_map(|(tag, command)| Some((tag, function.ends(tag, command)?)))
                .collect();
            for (tag, code) in ended {
                if let Some(command) = commands.in_flight.remove(tag) {
                    let response = Response::new(code, command.residual_if_failed());
                    done.push(command.finish(&response));
                }
            }
        }
        add(&self.counters.aborted_commands, done.len());
        done.extend(function.answer(code(response)));
        lock(&self.done).extend(done);
    }
}

impl Function {
    /// The answer to whoever asked.
    pub(crate) fn answer(self, code: ResponseCode) -> Option<Done> {
        let (queue, chain) = self.asker?;
        let written = chain.write_at(0, &[code.byte()]).map_or(0, |()| 1);
        Some(Done {
            queue,
            chain,
            written,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(kind: u32, function: u32) -> Vec<u8> {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend(function.to_le_bytes());
        bytes.extend([1, 0, 0x40, 1, 0, 0, 0, 0]);
        bytes.extend(7_u64.to_le_bytes());
        bytes
    }

    #[test]
    fn functions_have_the_numbers_of_the_standard() {
        let expected = [
            (0, TaskFunction::AbortTask),
            (1, TaskFunction::AbortTaskSet),
            (3, TaskFunction::ClearTaskSet),
            (4, TaskFunction::ItNexusReset),
            (5, TaskFunction::LogicalUnitReset),
            (6, TaskFunction::QueryTask),
            (7, TaskFunction::QueryTaskSet),
        ];
        for (number, function) in expected {
            let lun = [1, 0, 0x40, 1, 0, 0, 0, 0];
            let parsed = ControlRequest::TaskManagement {
                function,
                lun,
                id: 7,
            };
            assert_eq!(parse(&request(0, number)), parsed);
        }
        for unsupported in [2, 8, u32::MAX] {
            assert_eq!(parse(&request(0, unsupported)), ControlRequest::Unsupported);
        }
    }

    #[test]
    fn n08_short_and_unknown_requests_are_unsupported() {
        assert_eq!(parse(&request(0, 0)[..23]), ControlRequest::Unsupported);
        assert_eq!(parse(&request(3, 0)), ControlRequest::Unsupported);
        assert_eq!(parse(&[]), ControlRequest::Unsupported);
        for kind in [1, 2] {
            assert_eq!(parse(&request(kind, 0)[..16]), ControlRequest::Notification);
            assert_eq!(parse(&request(kind, 0)[..15]), ControlRequest::Unsupported);
        }
    }

    #[test]
    fn answers_have_the_numbers_of_the_standard() {
        let codes = [
            TaskResponse::Complete,
            TaskResponse::Succeeded,
            TaskResponse::Rejected,
            TaskResponse::IncorrectLun,
        ]
        .map(|response| code(response).byte());
        assert_eq!(codes, [0, 10, 11, 12]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let ControlRequest::TaskManagement { .. } = parse(&bytes) {
                prop_assert!(bytes.len() >= REQUEST_BYTES_MAX);
            }
        }
    }

    #[test]
    fn g12_any_damaged_control_request_is_answered() {
        let mut management = vec![0, 0, 0, 0, 5, 0, 0, 0];
        management.extend([1, 0, 0x40, 1, 0, 0, 0, 0]);
        management.extend(7_u64.to_le_bytes());
        let mut notification = vec![1, 0, 0, 0];
        notification.extend([0; 12]);
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/control");
        let inputs = orimono_fuzz::inputs(100_000, 1_000_000);
        let good = [management, notification];
        orimono_fuzz::fuzz(folder, &good, inputs, |bytes| match parse(bytes) {
            ControlRequest::TaskManagement { .. } => assert!(bytes.len() >= 24),
            ControlRequest::Notification => assert!(bytes.len() >= 16),
            ControlRequest::Unsupported => {}
        });
    }
}

//! What goes with a task besides its CDB: attributes, status, completion, task management.

use crate::sense::{Sense, SenseFormat};

/// Task attribute (SAM-5 8.9).
///
/// The core runs a task when [`ItNexus::execute`](crate::ItNexus::execute) is called and to its
/// end; whoever queues tasks honours the order that ORDERED and HEAD OF QUEUE ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TaskAttribute {
    /// May be reordered with other SIMPLE tasks.
    #[default]
    Simple,
    /// Runs after all older and before all newer tasks.
    Ordered,
    /// Runs before everything that waits.
    HeadOfQueue,
    /// Auto contingent allegiance; not supported here and refused with 5/24/00.
    Aca,
}

/// SCSI status (SAM-5 5.3.1); those the core produces and those its callers may need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Good,
    /// Failed; there is sense data.
    CheckCondition,
    /// Try again later.
    Busy,
    /// Another nexus holds a reservation.
    ReservationConflict,
    /// The task set has no room.
    TaskSetFull,
    /// Aborted through another nexus.
    TaskAborted,
}

impl Status {
    /// The status byte.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Good => 0x00,
            Self::CheckCondition => 0x02,
            Self::Busy => 0x08,
            Self::ReservationConflict => 0x18,
            Self::TaskSetFull => 0x28,
            Self::TaskAborted => 0x40,
        }
    }
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Completion {
    /// SCSI status.
    pub status: Status,
    /// Present exactly when `status` is [`Status::CheckCondition`].
    pub sense: Option<Sense>,
    /// How `sense` is encoded: as the logical unit is set to (D_SENSE).
    pub sense_format: SenseFormat,
    /// Bytes the command had for the initiator, before the cut to `data_in_max`. The underrun
    /// is `data_in_max - data_in.len()`, the overrun `data_in_offered_bytes - data_in.len()`.
    pub data_in_offered_bytes: usize,
    /// Bytes of `data_out` the command used; the residual is the rest.
    pub data_out_used_bytes: usize,
    /// Initiator ports whose tasks on this unit the caller ends before it answers, the task of
    /// this command aside: what PREEMPT AND ABORT preempted. Empty for everything else.
    pub preempted_ports: Vec<u64>,
}

impl Completion {
    /// The encoded sense data, at most [`SENSE_BYTES_MAX`](crate::SENSE_BYTES_MAX) bytes; empty
    /// unless the status is CHECK CONDITION.
    #[must_use]
    pub fn sense_bytes(&self) -> Vec<u8> {
        self.sense
            .map_or_else(Vec::new, |sense| sense.encode(self.sense_format))
    }
}

/// Task management functions (SAM-5 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskManagementFunction {
    /// Abort one task of this nexus.
    AbortTask,
    /// Abort all tasks of this nexus on the unit.
    AbortTaskSet,
    /// The same here: every nexus has its own task set (TST 001b).
    ClearTaskSet,
    /// Clear an ACA condition; there is none.
    ClearAca,
    /// Reset one unit for every nexus.
    LogicalUnitReset,
    /// This nexus was lost and is back.
    ItNexusReset,
    /// Reset every unit of this nexus for every nexus.
    TargetReset,
    /// Is the task there?
    QueryTask,
    /// Is any task there?
    QueryTaskSet,
    /// Is a unit attention pending?
    QueryAsynchronousEvent,
}

/// Service response to a task management function (SAM-5 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskManagementResponse {
    /// Done, or the answer to a query is no.
    FunctionComplete,
    /// The answer to a query is yes.
    FunctionSucceeded,
    /// The function is not supported.
    FunctionRejected,
    /// There is no unit at the LUN.
    IncorrectLogicalUnitNumber,
}

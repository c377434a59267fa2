//! Information units of a vHBA: SCSI commands, their data and status, task management, events.
//!
//! All integers little-endian; LUN and CDB bytes as SAM and SPC define them.
//!
//! | unit | lane | direction | layout |
//! | --- | --- | --- | --- |
//! | `COMMAND` | storage command | host to director | type 1, attribute, cdb bytes, 0, data-out bytes u32, data-in bytes u32, 0 u32, tag u64, LUN 8, CDB 32 |
//! | `DATA_OUT` | storage data | host to director | type 2, 0 x 3, offset u32, tag u64, data |
//! | `DATA_IN` | storage data | director to host | type 3, 0 x 3, offset u32, tag u64, data |
//! | `STATUS` | storage data | director to host | type 4, status, service response, sense bytes, data-in bytes u32, tag u64, sense |
//! | `TASK_MANAGEMENT` | task management | host to director | type 5, function, 0 x 6, tag u64, managed tag u64, LUN 8 |
//! | `TASK_MANAGEMENT_RESPONSE` | task management | director to host | type 6, response, 0 x 6, tag u64 |
//! | `EVENT` | task management | director to host | type 7, 0 x 3, event u32, LUN 8, reason u32 |
//!
//! The status stands on the data lane, behind the data it ends. A write command and all its
//! `DATA_OUT` units are sent together or not at all, so that the director never holds half a
//! write that waits for credit.

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of the longest CDB.
pub const CDB_BYTES_MAX: usize = 32;
/// Bytes of the longest sense data.
pub const SENSE_BYTES_MAX: usize = 96;
/// Data bytes of one `DATA_OUT` or `DATA_IN` unit at most, so that other devices interleave.
pub const DATA_BYTES_MAX: usize = 64 * 1024;
/// Data bytes of one command at most (MAXIMUM TRANSFER LENGTH of the Block Limits VPD page).
pub const TRANSFER_BYTES_MAX: usize = 1024 * 1024;
/// Bytes in front of the data of a `DATA_OUT` or `DATA_IN` unit.
pub const DATA_HEADER_BYTES: usize = size_of::<DataHeader>();

const COMMAND: u8 = 1;
const DATA_OUT: u8 = 2;
const DATA_IN: u8 = 3;
const STATUS: u8 = 4;
const TASK_MANAGEMENT: u8 = 5;
const TASK_MANAGEMENT_RESPONSE: u8 = 6;
const EVENT: u8 = 7;

/// A SAM logical unit number, 8 bytes.
pub type LunBytes = [u8; 8];

/// Names a command for its life: chosen by the host, unique among its commands in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(pub u64);

/// What became of a command, besides its SCSI status (SAM-5 service response).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceResponse {
    /// The status byte counts.
    TaskComplete,
    /// No such target for this vHBA.
    BadTarget,
    /// Ended by a task management function.
    Aborted,
    /// Ended by a reset of the logical unit, target or I_T nexus.
    Reset,
    /// The target failed; the command may or may not have been carried out.
    TargetFailure,
}

/// A task management function (SAM-5 section 7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskFunction {
    /// ABORT TASK.
    AbortTask,
    /// ABORT TASK SET.
    AbortTaskSet,
    /// CLEAR TASK SET.
    ClearTaskSet,
    /// LOGICAL UNIT RESET.
    LogicalUnitReset,
    /// I_T NEXUS RESET.
    ItNexusReset,
    /// QUERY TASK.
    QueryTask,
    /// QUERY TASK SET.
    QueryTaskSet,
}

/// Answer to a task management function (SAM-5 section 7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskResponse {
    /// FUNCTION COMPLETE.
    Complete,
    /// FUNCTION SUCCEEDED (a queried task is there).
    Succeeded,
    /// FUNCTION REJECTED.
    Rejected,
    /// INCORRECT LOGICAL UNIT NUMBER.
    IncorrectLun,
}

/// A change that the guest learns through the event queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A logical unit appeared.
    LunAdded(LunBytes),
    /// A logical unit went away.
    LunRemoved(LunBytes),
    /// A parameter changed; ASC and ASCQ as in a unit attention.
    ParameterChanged {
        /// Whose.
        lun: LunBytes,
        /// Additional sense code.
        asc: u8,
        /// Its qualifier.
        ascq: u8,
    },
}

/// A checked information unit, borrowing its variable part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InformationUnit<'a> {
    /// A command.
    Command(Command<'a>),
    /// A part of a command's data-out.
    DataOut(Data<'a>),
    /// A part of a command's data-in.
    DataIn(Data<'a>),
    /// The end of a command.
    Status(Status<'a>),
    /// A task management function.
    TaskManagement {
        /// What to do.
        function: TaskFunction,
        /// Names this request.
        tag: Tag,
        /// The task of ABORT TASK and QUERY TASK.
        managed: Tag,
        /// The logical unit.
        lun: LunBytes,
    },
    /// Its answer.
    TaskManagementResponse {
        /// How it ended.
        response: TaskResponse,
        /// The request's tag.
        tag: Tag,
    },
    /// A change to report to the guest.
    Event(Event),
}

/// A SCSI command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Command<'a> {
    /// Names the command.
    pub tag: Tag,
    /// Addressed logical unit.
    pub lun: LunBytes,
    /// Task attribute: 0 SIMPLE, 1 ORDERED, 2 HEAD OF QUEUE, 3 ACA (virtio-scsi's order).
    pub attribute: u8,
    /// 1 to [`CDB_BYTES_MAX`] bytes.
    pub cdb: &'a [u8],
    /// Bytes that follow in `DATA_OUT` units.
    pub data_out_bytes: u32,
    /// Bytes of the guest's data-in buffer.
    pub data_in_bytes: u32,
}

/// A piece of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Data<'a> {
    /// Of which command.
    pub tag: Tag,
    /// Offset in the command's data.
    pub offset: u32,
    /// 1 to [`DATA_BYTES_MAX`] bytes.
    pub data: &'a [u8],
}

/// The end of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status<'a> {
    /// Of which command.
    pub tag: Tag,
    /// Whether the status counts.
    pub response: ServiceResponse,
    /// SCSI status byte (SAM-5 table 41).
    pub status: u8,
    /// Bytes of data-in that were sent.
    pub data_in_bytes: u32,
    /// Sense data, up to [`SENSE_BYTES_MAX`].
    pub sense: &'a [u8],
}

/// Why bytes are not an information unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// The type byte is unknown.
    #[error("unknown information unit type {0}")]
    Type(u8),
    /// Shorter than its fixed part, or longer than its type allows.
    #[error("information unit of type {unit_type} has {unit_bytes} bytes")]
    Length {
        /// The type byte.
        unit_type: u8,
        /// What arrived.
        unit_bytes: usize,
    },
    /// A field holds a value outside of its range.
    #[error("field {field} of information unit type {unit_type} holds {value}")]
    Field {
        /// The type byte.
        unit_type: u8,
        /// Name of the field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct CommandHeader {
    unit_type: u8,
    attribute: u8,
    cdb_bytes: u8,
    reserved: u8,
    data_out_bytes: U32,
    data_in_bytes: U32,
    reserved2: U32,
    tag: U64,
    lun: [u8; 8],
    cdb: [u8; CDB_BYTES_MAX],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DataHeader {
    unit_type: u8,
    reserved: [u8; 3],
    offset: U32,
    tag: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct StatusHeader {
    unit_type: u8,
    status: u8,
    response: u8,
    sense_bytes: u8,
    data_in_bytes: U32,
    tag: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct TaskManagementUnit {
    unit_type: u8,
    function: u8,
    reserved: [u8; 6],
    tag: U64,
    managed: U64,
    lun: [u8; 8],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct TaskManagementResponseUnit {
    unit_type: u8,
    response: u8,
    reserved: [u8; 6],
    tag: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct EventUnit {
    unit_type: u8,
    reserved: [u8; 3],
    event: U32,
    lun: [u8; 8],
    reason: U32,
}

const EVENT_LUN_ADDED: u32 = 1;
const EVENT_LUN_REMOVED: u32 = 2;
const EVENT_PARAMETER_CHANGED: u32 = 3;

/// Writes the bytes in front of the data of a `DATA_OUT` (`out`) or `DATA_IN` unit.
///
/// For senders that fill the data in place; [`InformationUnit::encode`] copies it.
#[must_use]
pub fn data_header(out: bool, tag: Tag, offset: u32) -> [u8; DATA_HEADER_BYTES] {
    let header = DataHeader {
        unit_type: if out { DATA_OUT } else { DATA_IN },
        reserved: [0; 3],
        offset: U32::new(offset),
        tag: U64::new(tag.0),
    };
    zerocopy::transmute!(header)
}

impl<'a> InformationUnit<'a> {
    /// Reads one unit; every field is checked.
    ///
    /// # Errors
    /// [`UnitError`] names the field that is wrong.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, UnitError> {
        let unit_type = *bytes.first().ok_or(UnitError::Length {
            unit_type: 0,
            unit_bytes: 0,
        })?;
        let length = || UnitError::Length {
            unit_type,
            unit_bytes: bytes.len(),
        };
        let field = |field, value| UnitError::Field {
            unit_type,
            field,
            value,
        };
        match unit_type {
            COMMAND => {
                let header = CommandHeader::ref_from_bytes(bytes).map_err(|_size| length())?;
                let cdb = header
                    .cdb
                    .get(..usize::from(header.cdb_bytes))
                    .filter(|cdb| !cdb.is_empty())
                    .ok_or_else(|| field("cdb bytes", header.cdb_bytes.into()))?;
                if header.attribute > 3 {
                    return Err(field("attribute", header.attribute.into()));
                }
                for (name, value) in [
                    ("data-out bytes", header.data_out_bytes.get()),
                    ("data-in bytes", header.data_in_bytes.get()),
                ] {
                    if usize::try_from(value).is_ok_and(|bytes| bytes > TRANSFER_BYTES_MAX) {
                        return Err(field(name, value.into()));
                    }
                }
                Ok(Self::Command(Command {
                    tag: Tag(header.tag.get()),
                    lun: header.lun,
                    attribute: header.attribute,
                    cdb,
                    data_out_bytes: header.data_out_bytes.get(),
                    data_in_bytes: header.data_in_bytes.get(),
                }))
            }
            DATA_OUT | DATA_IN => {
                let (header, data) =
                    DataHeader::ref_from_prefix(bytes).map_err(|_size| length())?;
                if data.is_empty() || data.len() > DATA_BYTES_MAX {
                    return Err(length());
                }
                let data = Data {
                    tag: Tag(header.tag.get()),
                    offset: header.offset.get(),
                    data,
                };
                Ok(if unit_type == DATA_OUT {
                    Self::DataOut(data)
                } else {
                    Self::DataIn(data)
                })
            }
            STATUS => {
                let (header, sense) =
                    StatusHeader::ref_from_prefix(bytes).map_err(|_size| length())?;
                if sense.len() != usize::from(header.sense_bytes) || sense.len() > SENSE_BYTES_MAX {
                    return Err(field("sense bytes", header.sense_bytes.into()));
                }
                let response = match header.response {
                    0 => ServiceResponse::TaskComplete,
                    1 => ServiceResponse::BadTarget,
                    2 => ServiceResponse::Aborted,
                    3 => ServiceResponse::Reset,
                    4 => ServiceResponse::TargetFailure,
                    other => return Err(field("service response", other.into())),
                };
                Ok(Self::Status(Status {
                    tag: Tag(header.tag.get()),
                    response,
                    status: header.status,
                    data_in_bytes: header.data_in_bytes.get(),
                    sense,
                }))
            }
            TASK_MANAGEMENT => {
                let unit = TaskManagementUnit::ref_from_bytes(bytes).map_err(|_size| length())?;
                let function = match unit.function {
                    0 => TaskFunction::AbortTask,
                    1 => TaskFunction::AbortTaskSet,
                    2 => TaskFunction::ClearTaskSet,
                    3 => TaskFunction::LogicalUnitReset,
                    4 => TaskFunction::ItNexusReset,
                    5 => TaskFunction::QueryTask,
                    6 => TaskFunction::QueryTaskSet,
                    other => return Err(field("function", other.into())),
                };
                Ok(Self::TaskManagement {
                    function,
                    tag: Tag(unit.tag.get()),
                    managed: Tag(unit.managed.get()),
                    lun: unit.lun,
                })
            }
            TASK_MANAGEMENT_RESPONSE => {
                let unit =
                    TaskManagementResponseUnit::ref_from_bytes(bytes).map_err(|_size| length())?;
                let response = match unit.response {
                    0 => TaskResponse::Complete,
                    1 => TaskResponse::Succeeded,
                    2 => TaskResponse::Rejected,
                    3 => TaskResponse::IncorrectLun,
                    other => return Err(field("response", other.into())),
                };
                Ok(Self::TaskManagementResponse {
                    response,
                    tag: Tag(unit.tag.get()),
                })
            }
            EVENT => {
                let unit = EventUnit::ref_from_bytes(bytes).map_err(|_size| length())?;
                let [asc, ascq, 0, 0] = unit.reason.get().to_le_bytes() else {
                    return Err(field("reason", unit.reason.get().into()));
                };
                Ok(Self::Event(match unit.event.get() {
                    EVENT_LUN_ADDED => Event::LunAdded(unit.lun),
                    EVENT_LUN_REMOVED => Event::LunRemoved(unit.lun),
                    EVENT_PARAMETER_CHANGED => Event::ParameterChanged {
                        lun: unit.lun,
                        asc,
                        ascq,
                    },
                    other => return Err(field("event", other.into())),
                }))
            }
            other => Err(UnitError::Type(other)),
        }
    }

    /// Appends the unit's bytes.
    ///
    /// # Panics
    /// If a CDB, sense or data slice is longer than its limit: the caller built it, so that is an
    /// error of ours.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Command(command) => {
                let mut cdb = [0; CDB_BYTES_MAX];
                let Some(start) = cdb.get_mut(..command.cdb.len()) else {
                    panic!("CDB of {} bytes", command.cdb.len());
                };
                start.copy_from_slice(command.cdb);
                let header = CommandHeader {
                    unit_type: COMMAND,
                    attribute: command.attribute,
                    cdb_bytes: byte_count(command.cdb),
                    reserved: 0,
                    data_out_bytes: command.data_out_bytes.into(),
                    data_in_bytes: command.data_in_bytes.into(),
                    reserved2: U32::ZERO,
                    tag: command.tag.0.into(),
                    lun: command.lun,
                    cdb,
                };
                bytes.extend_from_slice(header.as_bytes());
            }
            Self::DataOut(data) | Self::DataIn(data) => {
                let out = matches!(self, Self::DataOut(_));
                bytes.extend_from_slice(&data_header(out, data.tag, data.offset));
                bytes.extend_from_slice(data.data);
            }
            Self::Status(status) => {
                let header = StatusHeader {
                    unit_type: STATUS,
                    status: status.status,
                    response: match status.response {
                        ServiceResponse::TaskComplete => 0,
                        ServiceResponse::BadTarget => 1,
                        ServiceResponse::Aborted => 2,
                        ServiceResponse::Reset => 3,
                        ServiceResponse::TargetFailure => 4,
                    },
                    sense_bytes: byte_count(status.sense),
                    data_in_bytes: status.data_in_bytes.into(),
                    tag: status.tag.0.into(),
                };
                bytes.extend_from_slice(header.as_bytes());
                bytes.extend_from_slice(status.sense);
            }
            Self::TaskManagement {
                function,
                tag,
                managed,
                lun,
            } => {
                let unit = TaskManagementUnit {
                    unit_type: TASK_MANAGEMENT,
                    function: match function {
                        TaskFunction::AbortTask => 0,
                        TaskFunction::AbortTaskSet => 1,
                        TaskFunction::ClearTaskSet => 2,
                        TaskFunction::LogicalUnitReset => 3,
                        TaskFunction::ItNexusReset => 4,
                        TaskFunction::QueryTask => 5,
                        TaskFunction::QueryTaskSet => 6,
                    },
                    reserved: [0; 6],
                    tag: tag.0.into(),
                    managed: managed.0.into(),
                    lun: *lun,
                };
                bytes.extend_from_slice(unit.as_bytes());
            }
            Self::TaskManagementResponse { response, tag } => {
                let unit = TaskManagementResponseUnit {
                    unit_type: TASK_MANAGEMENT_RESPONSE,
                    response: match response {
                        TaskResponse::Complete => 0,
                        TaskResponse::Succeeded => 1,
                        TaskResponse::Rejected => 2,
                        TaskResponse::IncorrectLun => 3,
                    },
                    reserved: [0; 6],
                    tag: tag.0.into(),
                };
                bytes.extend_from_slice(unit.as_bytes());
            }
            Self::Event(event) => {
                let (event, lun, reason) = match event {
                    Event::LunAdded(lun) => (EVENT_LUN_ADDED, lun, [0; 2]),
                    Event::LunRemoved(lun) => (EVENT_LUN_REMOVED, lun, [0; 2]),
                    Event::ParameterChanged { lun, asc, ascq } => {
                        (EVENT_PARAMETER_CHANGED, lun, [*asc, *ascq])
                    }
                };
                let unit = EventUnit {
                    unit_type: EVENT,
                    reserved: [0; 3],
                    event: event.into(),
                    lun: *lun,
                    reason: u32::from(u16::from_le_bytes(reason)).into(),
                };
                bytes.extend_from_slice(unit.as_bytes());
            }
        }
    }
}

fn byte_count(bytes: &[u8]) -> u8 {
    let Ok(count) = u8::try_from(bytes.len()) else {
        panic!("field of {} bytes", bytes.len())
    };
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn command_stands_where_the_table_says() {
        let cdb = [0x28, 0, 0, 0, 0, 5, 0, 0, 8, 0];
        let command = InformationUnit::Command(Command {
            tag: Tag(0x0102_0304_0506_0708),
            lun: [0x40, 1, 0, 0, 0, 0, 0, 0],
            attribute: 1,
            cdb: &cdb,
            data_out_bytes: 0,
            data_in_bytes: 4096,
        });
        let mut bytes = Vec::new();
        command.encode(&mut bytes);
        let mut golden = vec![1, 1, 10, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0];
        golden.extend([8, 7, 6, 5, 4, 3, 2, 1]);
        golden.extend([0x40, 1, 0, 0, 0, 0, 0, 0]);
        golden.extend(cdb);
        golden.resize(64, 0);
        assert_eq!(bytes, golden);
        assert_eq!(InformationUnit::parse(&bytes), Ok(command));
    }

    #[test]
    fn status_carries_its_sense() {
        let sense = [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0];
        let status = InformationUnit::Status(Status {
            tag: Tag(9),
            response: ServiceResponse::TaskComplete,
            status: 2,
            data_in_bytes: 7,
            sense: &sense,
        });
        let mut bytes = Vec::new();
        status.encode(&mut bytes);
        assert_eq!(
            bytes.get(..16),
            Some(&[4, 2, 0, 18, 7, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0][..])
        );
        assert_eq!(InformationUnit::parse(&bytes), Ok(status));
        bytes.pop();
        assert!(InformationUnit::parse(&bytes).is_err());
    }

    #[test]
    fn transfer_beyond_the_limit_is_refused() {
        let mut bytes = Vec::new();
        InformationUnit::Command(Command {
            tag: Tag(1),
            lun: [0; 8],
            attribute: 0,
            cdb: &[0x12, 0, 0, 0, 36, 0],
            data_out_bytes: 0,
            data_in_bytes: 1024 * 1024 + 1,
        })
        .encode(&mut bytes);
        let error = UnitError::Field {
            unit_type: 1,
            field: "data-in bytes",
            value: 1_048_577,
        };
        assert_eq!(InformationUnit::parse(&bytes), Err(error));
    }

    proptest! {
        #[test]
        fn what_parses_encodes_to_an_equal_unit(mut bytes in proptest::collection::vec(any::<u8>(), 1..200), unit_type in 0u8..9) {
            bytes[0] = unit_type;
            for length in [bytes.len(), 12, 16, 20, 24, 32, 64] {
                let Some(prefix) = bytes.get(..length) else { continue };
                if let Ok(unit) = InformationUnit::parse(prefix) {
                    let mut encoded = Vec::new();
                    unit.encode(&mut encoded);
                    prop_assert_eq!(InformationUnit::parse(&encoded), Ok(unit));
                }
            }
        }
    }
}

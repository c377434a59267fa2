//! A SCSI target without hardware: CDBs in, status, data and sense out, over a block device.
//!
//! Pure core: no files, threads, clocks or transports. A [`LogicalUnit`] is an [`Identity`] and
//! a [`BlockDevice`]; an [`ItNexus`] is one initiator port with its LUN map, and
//! [`ItNexus::execute`] runs one command to its end on the calling thread.
//!
//! Follows SAM-5, SPC-4 and SBC-3 and claims exactly these. One table (`command_table`) drives
//! dispatch, CDB checks and REPORT SUPPORTED OPERATION CODES: a bit set where the table has none
//! or a service action that it does not have is refused with 5/24/00, any other command with
//! 5/20/00.
//!
//! To read the code, begin with `nexus` (a command comes in), `command` (what all commands have
//! in common) and `command_table` (where it goes from there).
//!
//! Not here, hence answered 5/20/00: LOG SELECT, RECEIVE DIAGNOSTIC RESULTS, copies
//! by token. Protection information, ACA, NACA, saved mode pages, SPEC_I_PT, lists of
//! defects and cryptographic erasure are refused. A unit has WRITE ATOMIC, REPORT TIMESTAMP, APTPL or SET TARGET PORT GROUPS
//! if its device and its maker provide for it.
//!
//! ```
//! use scsi_target::{Identity, Status};
//! let identity = Identity::from_serial("lun-0001")?;
//! assert_eq!(identity.serial(), "lun-0001");
//! assert_eq!(Status::Good.code(), 0);
//! # Ok::<(), scsi_target::IdentityError>(())
//! ```

#![forbid(unsafe_code)]
#![deny(clippy::as_conversions)]

mod block_device;
mod capacity;
mod cdb;
mod command;
mod command_table;
mod extended_copy;
mod format_unit;
mod identity;
mod inquiry;
mod log;
mod logical_unit;
mod lun;
mod maintenance;
mod mode;
mod mode_select;
mod nexus;
mod opcode;
mod persistent_reserve;
mod port_groups;
mod provisioning;
mod read_write;
mod report_luns;
mod report_opcodes;
mod reservation;
mod reserve;
mod sanitize;
mod sense;
mod task;
mod transfer;
mod unit_attention;
mod unit_control;
mod verify;
mod vpd;

#[cfg(test)]
mod tests;

pub use block_device::{
    Allocation, BLOCK_BYTES_ALLOWED, BlockDevice, Extent, MediumError, MediumErrorKind,
    Provisioning,
};
pub use command::data_out_bytes;
pub use identity::{Designator, Identity, IdentityError, SERIAL_BYTES_MAX, VENDOR};
pub use logical_unit::{LogicalUnit, LogicalUnitError, TRANSFER_BYTES_MAX};
pub use lun::{Lun, LunAddress};
pub use maintenance::Clock;
pub use nexus::{AttachError, ItNexus};
pub use port_groups::{AccessState, PORT_GROUPS_MAX, PortGroup, PortGroupError, TargetPort};
pub use reservation::{ReservationStore, ReservationStoreError, StoredReservationsError};
pub use sense::{AdditionalSense, FieldPointer, SENSE_BYTES_MAX, Sense, SenseFormat, SenseKey};
pub use task::{Completion, Status, TaskAttribute, TaskManagementFunction, TaskManagementResponse};
pub use transfer::Transfer;
pub use unit_attention::UnitAttention;

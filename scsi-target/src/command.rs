//! From a CDB to its handler: checks that all commands share, in the order SAM-5 gives them.

use crate::cdb::Cdb;
use crate::command_table::{self, Access, Command};
use crate::logical_unit::{Features, LogicalUnit, UnitState};
use crate::nexus::{Attachment, ItNexus};
use crate::opcode;
use crate::port_groups::RunsIn;
use crate::read_write::BlockRange;
use crate::reservation::NexusId;
use crate::sanitize::Sanitize;
use crate::sense::{AdditionalSense, Sense, SenseKey};
use crate::task::{Status, TaskAttribute};
use crate::unit_attention::UnitAttention;

/// A command on its way: where it came from, its CDB and its data.
#[derive(Debug)]
pub(crate) struct CommandContext<'a> {
    pub(crate) nexus: &'a ItNexus,
    pub(crate) attachment: &'a Attachment,
    pub(crate) cdb: Cdb,
    pub(crate) data_out: &'a [u8],
    pub(crate) data_out_used_bytes: usize,
    pub(crate) data_in: &'a mut Vec<u8>,
    /// What a command ends with that does not fail: GOOD, or RESERVATION CONFLICT.
    pub(crate) status: Status,
    /// See [`Completion::preempted_ports`](crate::Completion::preempted_ports).
    pub(crate) preempted_ports: Vec<u64>,
}

impl<'a> CommandContext<'a> {
    pub(crate) fn unit(&self) -> &'a LogicalUnit {
        &self.attachment.unit
    }

    /// The data-out the CDB asks for, and no byte more.
    pub(crate) fn take_data_out(&mut self) -> Result<&'a [u8], Sense> {
        let needed = data_out_bytes(&self.cdb.bytes(), self.unit().block_bytes());
        let data = usize::try_from(needed)
            .ok()
            .and_then(|needed| self.data_out.get(..needed));
        let Some(data) = data else {
            return Err(Sense::illegal(match self.cdb.opcode() {
                opcode::MODE_SELECT_6
                | opcode::MODE_SELECT_10
                | opcode::UNMAP
                | opcode::FORMAT_UNIT
                | opcode::PERSISTENT_RESERVE_OUT
                | opcode::MAINTENANCE_OUT
                | opcode::EXTENDED_COPY => AdditionalSense::PARAMETER_LIST_LENGTH_ERROR,
                _ => AdditionalSense::INVALID_FIELD_IN_CDB,
            }));
        };
        self.data_out_used_bytes = data.len();
        Ok(data)
    }

    /// Answers with `bytes`, cut to the allocation length.
    pub(crate) fn reply(&mut self, bytes: &[u8], allocation_bytes: u64) {
        reply(self.data_in, bytes, allocation_bytes);
    }
}

/// Puts `bytes` into `data_in`, cut to the allocation length.
pub(crate) fn reply(data_in: &mut Vec<u8>, bytes: &[u8], allocation_bytes: u64) {
    let allocation = usize::try_from(allocation_bytes).unwrap_or(usize::MAX);
    data_in.clear();
    data_in.extend(bytes.iter().take(allocation));
}

/// Runs a command on a unit.
///
/// Order: unit attention, operation code, CDB bits, access state of the port, sanitizing,
/// reservations, readiness, write protection, the command.
pub(crate) fn execute(
    context: &mut CommandContext<'_>,
    cdb_bytes: usize,
    attribute: TaskAttribute,
) -> Result<(), Sense> {
    let opcode = context.cdb.opcode();
    let tells_unit_attention = !matches!(
        opcode,
        opcode::INQUIRY | opcode::REPORT_LUNS | opcode::REQUEST_SENSE
    );
    if tells_unit_attention && let Some(condition) = take_unit_attention(context) {
        return Err(condition.sense());
    }
    let admitted = admit(
        context.nexus.id(),
        context.unit(),
        &context.cdb,
        cdb_bytes,
        attribute,
    );
    let Some(command) = admitted? else {
        context.status = Status::ReservationConflict;
        return Ok(());
    };
    (command.run)(context)
}

/// The command that a CDB asks for, if the unit runs it now; `None` when a reservation conflicts.
pub(crate) fn admit(
    nexus: NexusId,
    unit: &LogicalUnit,
    cdb: &Cdb,
    cdb_bytes: usize,
    attribute: TaskAttribute,
) -> Result<Option<&'static Command>, Sense> {
    let command = check_cdb(cdb, cdb_bytes, unit.features())?;
    if attribute == TaskAttribute::Aca {
        return Err(Sense::illegal(AdditionalSense::INVALID_FIELD_IN_CDB));
    }
    let state = unit.state();
    if command.runs_in != RunsIn::Any {
        let access_state = unit.port_groups().state_of_port(nexus.target_port);
        command.runs_in.check(access_state)?;
        check_sanitize(state.sanitize, cdb.opcode())?;
    }
    if unit.reservations().conflict(nexus, command.reserved, cdb) {
        return Ok(None);
    }
    check_ready(unit, state, command.access)?;
    Ok(Some(command))
}

/// Refuses a command that the unit, sanitized or formatted at this moment or without success,
/// cannot run.
fn check_sanitize(sanitize: Sanitize, opcode: u8) -> Result<(), Sense> {
    match sanitize.sense() {
        Some(sense) if !sanitize.lets_run(opcode) => Err(sense),
        _ => Ok(()),
    }
}

/// Refuses what a stopped or write protected unit cannot do.
pub(crate) fn check_ready(
    unit: &LogicalUnit,
    state: UnitState,
    access: Access,
) -> Result<(), Sense> {
    if access == Access::None {
        return Ok(());
    }
    if state.stopped {
        return Err(stopped());
    }
    let additional = if access != Access::Write {
        None
    } else if unit.read_only() {
        Some(AdditionalSense::WRITE_PROTECTED)
    } else if state.mode.software_write_protect {
        Some(AdditionalSense::SOFTWARE_WRITE_PROTECTED)
    } else {
        None
    };
    match additional {
        Some(additional) => Err(Sense::new(SenseKey::DataProtect, additional)),
        None => Ok(()),
    }
}

/// NOT READY because of START STOP UNIT.
pub(crate) const fn stopped() -> Sense {
    Sense::new(
        SenseKey::NotReady,
        AdditionalSense::INITIALIZING_COMMAND_REQUIRED,
    )
}

/// Takes the pending unit attention. 3F/0E is told once for all units of the nexus.
pub(crate) fn take_unit_attention(context: &CommandContext<'_>) -> Option<UnitAttention> {
    let condition = context.attachment.nexus.pending().take()?;
    if condition == UnitAttention::ReportedLunsChanged {
        context.nexus.luns_known();
    }
    Some(condition)
}

/// Finds the command of a CDB, and refuses what the table does not allow.
pub(crate) fn check_cdb(
    cdb: &Cdb,
    cdb_bytes: usize,
    features: Features,
) -> Result<&'static Command, Sense> {
    if cdb_bytes == 0 {
        return Err(Sense::illegal(AdditionalSense::INVALID_OPERATION_CODE));
    }
    let mut of_opcode = command_table::of_opcode(cdb.opcode(), features).peekable();
    if of_opcode.peek().is_none() {
        return Err(Sense::illegal(AdditionalSense::INVALID_OPERATION_CODE));
    }
    let is_action = |value| value == cdb.service_action();
    let command = of_opcode
        .find(|command| command.service_action.is_none_or(is_action))
        .ok_or(Sense::cdb_field(1, Some(4)))?;
    if cdb_bytes < command.cdb_bytes() {
        return Err(Sense::illegal(AdditionalSense::INVALID_FIELD_IN_CDB));
    }
    for (at, allowed) in command.allowed(features.thin).enumerate().skip(1) {
        let wrong = cdb.byte(at) & !allowed;
        if let Some(bit) = highest_bit(wrong) {
            return Err(Sense::cdb_field(u16::try_from(at).unwrap_or(0), Some(bit)));
        }
    }
    Ok(command)
}

/// The number of the most significant bit set.
pub(crate) fn highest_bit(byte: u8) -> Option<u8> {
    (0..8).rev().find(|bit| byte & (1 << bit) != 0)
}

/// How many bytes of data-out a CDB asks for, on a unit of this block size.
///
/// Zero for commands without data-out and for commands that are not supported. May be far above
/// [`TRANSFER_BYTES_MAX`](crate::TRANSFER_BYTES_MAX): such a command will be refused, so never
/// allocate by this number.
#[must_use]
pub fn data_out_bytes(cdb: &[u8], block_bytes: u32) -> u64 {
    let cdb = Cdb::new(cdb);
    let block_bytes = u64::from(block_bytes);
    // At most 2^32 blocks of at most 2^32 bytes, doubled: only an absurd block size saturates.
    let all_blocks = || BlockRange::parse(&cdb).blocks.saturating_mul(block_bytes);
    match cdb.opcode() {
        opcode::WRITE_6
        | opcode::WRITE_10
        | opcode::WRITE_12
        | opcode::WRITE_16
        | opcode::WRITE_AND_VERIFY_10
        | opcode::WRITE_AND_VERIFY_12
        | opcode::WRITE_AND_VERIFY_16
        | opcode::WRITE_ATOMIC_16
        | opcode::OR_WRITE_16 => all_blocks(),
        opcode::COMPARE_AND_WRITE => all_blocks().saturating_mul(2),
        opcode::VERIFY_10 | opcode::VERIFY_12 | opcode::VERIFY_16 => {
            match (cdb.byte(1) >> 1) & 0x03 {
                1 => all_blocks(),
                3 if BlockRange::parse(&cdb).blocks > 0 => block_bytes,
                _ => 0,
            }
        }
        opcode::WRITE_SAME_10 => block_bytes,
        opcode::WRITE_SAME_16 if !cdb.has(1, 0x01) => block_bytes,
        // Its header, which alone is looked at: FMTDATA, and LONGLIST for the long one.
        opcode::FORMAT_UNIT if !cdb.has(1, 0x10) => 0,
        opcode::FORMAT_UNIT => {
            if cdb.has(1, 0x20) {
                8
            } else {
                4
            }
        }
        opcode::MODE_SELECT_6 => cdb.uint(4..5),
        opcode::MODE_SELECT_10 | opcode::UNMAP | opcode::SANITIZE => cdb.uint(7..9),
        opcode::PERSISTENT_RESERVE_OUT => cdb.uint(5..9),
        opcode::MAINTENANCE_OUT => cdb.uint(6..10),
        opcode::EXTENDED_COPY => cdb.uint(10..14),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_out_follows_the_cdb() {
        let bytes = |cdb: &[u8]| data_out_bytes(cdb, 512);
        assert_eq!(bytes(&[0x0A, 0, 0, 0, 0, 0]), 256 * 512);
        assert_eq!(bytes(&[0x2A, 0, 0, 0, 0, 0, 0, 0, 8, 0]), 4096);
        assert_eq!(bytes(&[0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0]), 0);
        assert_eq!(bytes(&[0x2F, 0x02, 0, 0, 0, 0, 0, 0, 8, 0]), 4096);
        assert_eq!(bytes(&[0x2F, 0x06, 0, 0, 0, 0, 0, 0, 8, 0]), 512);
        assert_eq!(bytes(&[0x2F, 0x00, 0, 0, 0, 0, 0, 0, 8, 0]), 0);
        assert_eq!(
            bytes(&[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0]),
            2048
        );
        assert_eq!(
            bytes(&[0x93, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0]),
            0
        );
        assert_eq!(
            bytes(&[0x93, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0]),
            512
        );
        assert_eq!(bytes(&[0x15, 0x10, 0, 0, 24, 0]), 24);
        assert_eq!(bytes(&[0x04, 0x20, 0, 0, 0, 0]), 0);
        assert_eq!(bytes(&[0x04, 0x18, 0, 0, 0, 0]), 4);
        assert_eq!(bytes(&[0x04, 0x30, 0, 0, 0, 0]), 8);
        assert_eq!(bytes(&[0x8A; 16]), 0x8A8A_8A8A * 512);
        assert_eq!(bytes(&[]), 0);
    }
}

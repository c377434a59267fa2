//! The commands this target has, in one table.
//!
//! A row is the CDB usage map of REPORT SUPPORTED OPERATION CODES (SPC-4 6.35.3): byte 0 the
//! operation code, a service action as its value, every other bit set that the target looks at.
//! Bits clear in the map must be zero in a CDB: reserved and obsolete fields, CONTROL (so NACA),
//! RDPROTECT, WRPROTECT and VRPROTECT, GROUP NUMBER, ANCHOR.

use crate::cdb::CDB_BYTES_MAX;
use crate::command::CommandContext;
use crate::opcode as op;
use crate::sense::Sense;
use crate::{
    capacity, inquiry, mode, mode_select, provisioning, read_write, report_luns, report_opcodes,
    unit_control, verify,
};

/// UNMAP bit of WRITE SAME, byte 1.
const WRITE_SAME_UNMAP: u8 = 0x08;

/// What a command needs of the unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Nothing: it answers from memory, also while the unit is stopped.
    None,
    /// A started unit.
    Medium,
    /// A started unit that is not write protected.
    Write,
}

type Run = for<'a, 'b> fn(&'a mut CommandContext<'b>) -> Result<(), Sense>;

/// A supported command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Command {
    usage: [u8; CDB_BYTES_MAX],
    cdb_bytes: usize,
    pub(crate) service_action: Option<u8>,
    pub(crate) access: Access,
    thin_only: bool,
    pub(crate) run: Run,
}

impl Command {
    /// A command whose CDB is as long as its usage map.
    const fn new<const N: usize>(map: [u8; N], access: Access, run: Run) -> Self {
        let mut usage = [0; CDB_BYTES_MAX];
        // A longer map would be empty here and fail the first test that runs the command.
        if let Some(head) = usage.first_chunk_mut::<N>() {
            *head = map;
        }
        Self {
            usage,
            cdb_bytes: N,
            service_action: None,
            access,
            thin_only: false,
            run,
        }
    }

    /// A 6-byte CDB with LBA and number of blocks.
    const fn blocks_6(opcode: u8, access: Access, run: Run) -> Self {
        Self::new([opcode, 0x1F, F, F, F, 0], access, run)
    }

    /// A 10-byte CDB with LBA, number of blocks, and the flags of byte 1.
    const fn blocks_10(opcode: u8, flags: u8, access: Access, run: Run) -> Self {
        Self::new([opcode, flags, F, F, F, F, 0, F, F, 0], access, run)
    }

    /// A 12-byte CDB with LBA, number of blocks, and the flags of byte 1.
    const fn blocks_12(opcode: u8, flags: u8, access: Access, run: Run) -> Self {
        Self::new([opcode, flags, F, F, F, F, F, F, F, F, 0, 0], access, run)
    }

    /// A 16-byte CDB with LBA, number of blocks (or allocation length), and the flags of byte 1.
    const fn blocks_16(opcode: u8, flags: u8, access: Access, run: Run) -> Self {
        Self::new(
            [opcode, flags, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0],
            access,
            run,
        )
    }

    const fn with_service_action(mut self, service_action: u8) -> Self {
        self.service_action = Some(service_action);
        self
    }

    const fn thin_only(mut self) -> Self {
        self.thin_only = true;
        self
    }

    pub(crate) const fn opcode(&self) -> u8 {
        self.usage[0]
    }

    /// Length of its CDB in bytes.
    pub(crate) const fn cdb_bytes(&self) -> usize {
        self.cdb_bytes
    }

    /// The usage map on a unit that can unmap or not.
    pub(crate) fn usage(&self, thin: bool) -> impl Iterator<Item = u8> + '_ {
        let write_same = matches!(self.opcode(), op::WRITE_SAME_10 | op::WRITE_SAME_16);
        self.usage
            .iter()
            .take(self.cdb_bytes)
            .enumerate()
            .map(move |(at, &mask)| {
                if at == 1 && write_same && !thin {
                    mask & !WRITE_SAME_UNMAP
                } else {
                    mask
                }
            })
    }

    /// The bits a CDB may have set: the usage map, and any service action.
    pub(crate) fn allowed(&self, thin: bool) -> impl Iterator<Item = u8> + '_ {
        let service_action = if self.service_action.is_some() {
            0x1F
        } else {
            0
        };
        self.usage(thin)
            .enumerate()
            .map(move |(at, mask)| if at == 1 { mask | service_action } else { mask })
    }
}

/// The commands of a unit, in table order.
pub(crate) fn supported(thin: bool) -> impl Iterator<Item = &'static Command> {
    COMMANDS
        .iter()
        .filter(move |command| thin || !command.thin_only)
}

/// The command of an operation code and, where it has them, a service action.
pub(crate) fn lookup(opcode: u8, service_action: u8, thin: bool) -> Option<&'static Command> {
    supported(thin).find(|command| {
        command.opcode() == opcode
            && command
                .service_action
                .is_none_or(|value| value == service_action)
    })
}

/// Every bit of a byte.
const F: u8 = 0xFF;

/// Byte 1 of READ and WRITE: DPO and FUA.
const DPO_FUA: u8 = 0x18;
/// Byte 1 of VERIFY: DPO and both bits of BYTCHK.
const DPO_BYTCHK: u8 = 0x16;
/// Byte 1 of WRITE AND VERIFY: DPO and the low bit of BYTCHK.
const DPO_BYTCHK_1: u8 = 0x12;
/// Byte 1 of SYNCHRONIZE CACHE: IMMED.
const IMMED: u8 = 0x02;
/// Byte 1 of WRITE SAME(16): UNMAP and NDOB.
const UNMAP_NDOB: u8 = WRITE_SAME_UNMAP | 0x01;

// Service actions stand as values in byte 1 of the maps.
const RC16: u8 = op::READ_CAPACITY_16;
const GLS: u8 = op::GET_LBA_STATUS;
const RSOC: u8 = op::REPORT_SUPPORTED_OPERATION_CODES;
const RSTMF: u8 = op::REPORT_SUPPORTED_TMFS;

// One row a command, in columns.
#[rustfmt::skip]
static COMMANDS: [Command; 35] = {
    use Access::{Medium, None, Write};
    use Command as C;
    [
        // 6-byte CDBs
        C::new([op::TEST_UNIT_READY, 0, 0, 0, 0, 0], Medium, unit_control::test_unit_ready),
        C::new([op::REQUEST_SENSE, 0x01, 0, 0, F, 0], None, unit_control::request_sense),
        C::blocks_6(op::READ_6, Medium, read_write::read),
        C::blocks_6(op::WRITE_6, Write, read_write::write),
        C::new([op::INQUIRY, 0x01, F, F, F, 0], None, inquiry::inquiry),
        C::new([op::MODE_SELECT_6, 0x10, 0, 0, F, 0], None, mode_select::mode_select),
        C::new([op::MODE_SENSE_6, 0x08, F, F, F, 0], None, mode::mode_sense),
        C::new([op::START_STOP_UNIT, 0x01, 0, 0, 0x05, 0], None, unit_control::start_stop_unit),
        C::new([op::PREVENT_ALLOW_MEDIUM_REMOVAL, 0, 0, 0, 0x01, 0], None, unit_control::prevent_allow),
        // 10-byte CDBs
        C::new([op::READ_CAPACITY_10, 0, 0, 0, 0, 0, 0, 0, 0, 0], Medium, capacity::read_capacity_10),
        C::blocks_10(op::READ_10, DPO_FUA, Medium, read_write::read),
        C::blocks_10(op::WRITE_10, DPO_FUA, Write, read_write::write),
        C::blocks_10(op::WRITE_AND_VERIFY_10, DPO_BYTCHK_1, Write, verify::write_and_verify),
        C::blocks_10(op::VERIFY_10, DPO_BYTCHK, Medium, verify::verify),
        C::blocks_10(op::SYNCHRONIZE_CACHE_10, IMMED, Medium, unit_control::synchronize_cache),
        C::blocks_10(op::WRITE_SAME_10, WRITE_SAME_UNMAP, Write, provisioning::write_same),
        C::new([op::UNMAP, 0, 0, 0, 0, 0, 0, F, F, 0], Write, provisioning::unmap).thin_only(),
        C::new([op::MODE_SELECT_10, 0x10, 0, 0, 0, 0, 0, F, F, 0], None, mode_select::mode_select),
        C::new([op::MODE_SENSE_10, 0x18, F, F, 0, 0, 0, F, F, 0], None, mode::mode_sense),
        // 16-byte CDBs
        C::blocks_16(op::READ_16, DPO_FUA, Medium, read_write::read),
        C::new([op::COMPARE_AND_WRITE, DPO_FUA, F, F, F, F, F, F, F, F, 0, 0, 0, F, 0, 0], Write, verify::compare_and_write),
        C::blocks_16(op::WRITE_16, DPO_FUA, Write, read_write::write),
        C::blocks_16(op::WRITE_AND_VERIFY_16, DPO_BYTCHK_1, Write, verify::write_and_verify),
        C::blocks_16(op::VERIFY_16, DPO_BYTCHK, Medium, verify::verify),
        C::blocks_16(op::SYNCHRONIZE_CACHE_16, IMMED, Medium, unit_control::synchronize_cache),
        C::blocks_16(op::WRITE_SAME_16, UNMAP_NDOB, Write, provisioning::write_same),
        C::new([op::SERVICE_ACTION_IN_16, RC16, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 0], Medium, capacity::read_capacity_16)
            .with_service_action(RC16),
        C::blocks_16(op::SERVICE_ACTION_IN_16, GLS, Medium, provisioning::get_lba_status)
            .with_service_action(GLS),
        // 12-byte CDBs
        C::new([op::REPORT_LUNS, 0, F, 0, 0, 0, F, F, F, F, 0, 0], None, report_luns::report_luns_of_unit),
        C::new([op::MAINTENANCE_IN, RSOC, 0x87, F, F, F, F, F, F, F, 0, 0], None, report_opcodes::report_opcodes)
            .with_service_action(RSOC),
        C::new([op::MAINTENANCE_IN, RSTMF, 0x80, 0, 0, 0, F, F, F, F, 0, 0], None, report_opcodes::report_tmfs)
            .with_service_action(RSTMF),
        C::blocks_12(op::READ_12, DPO_FUA, Medium, read_write::read),
        C::blocks_12(op::WRITE_12, DPO_FUA, Write, read_write::write),
        C::blocks_12(op::WRITE_AND_VERIFY_12, DPO_BYTCHK_1, Write, verify::write_and_verify),
        C::blocks_12(op::VERIFY_12, DPO_BYTCHK, Medium, verify::verify),
    ]
};

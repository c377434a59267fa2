//! The commands this target has, in one table.
//!
//! A row is the CDB usage map of REPORT SUPPORTED OPERATION CODES (SPC-4 6.35.3): byte 0 the
//! operation code, a service action as its value, every other bit set that the target looks at.
//! Bits clear in the map must be zero in a CDB: reserved and obsolete fields, CONTROL (so NACA),
//! RDPROTECT, WRPROTECT and VRPROTECT, GROUP NUMBER (but of PRE-FETCH, where nothing depends on
//! it), ANCHOR.
//!
//! Beside it a row says what the command needs of the unit, what it may do under a reservation,
//! and in which access states of the port it runs: active ones, if nothing is said.

use crate::cdb::CDB_BYTES_MAX;
use crate::command::CommandContext;
use crate::logical_unit::Features;
use crate::opcode as op;
use crate::port_groups::{self, RunsIn};
use crate::reservation::Reserved;
use crate::sense::Sense;
use crate::{
    capacity, extended_copy, format_unit, inquiry, log, maintenance, mode, mode_select,
    persistent_reserve, provisioning, read_write, report_luns, report_opcodes, reserve, sanitize,
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

/// What a unit must be able to do to have a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    Nothing,
    Thin,
    Atomic,
    Clock,
    ExplicitAccess,
}

type Run = for<'a, 'b> fn(&'a mut CommandContext<'b>) -> Result<(), Sense>;

/// A supported command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Command {
    usage: [u8; CDB_BYTES_MAX],
    cdb_bytes: usize,
    pub(crate) service_action: Option<u8>,
    pub(crate) access: Access,
    pub(crate) reserved: Reserved,
    pub(crate) runs_in: RunsIn,
    needs: Needs,
    pub(crate) run: Run,
}

impl Command {
    /// A command whose CDB is as long as its usage map.
    const fn new<const N: usize>(
        map: [u8; N],
        access: Access,
        reserved: Reserved,
        run: Run,
    ) -> Self {
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
            reserved,
            runs_in: RunsIn::Active,
            needs: Needs::Nothing,
            run,
        }
    }

    /// A 6-byte CDB with LBA and number of blocks.
    const fn blocks_6(opcode: u8, access: Access, reserved: Reserved, run: Run) -> Self {
        Self::new([opcode, 0x1F, F, F, F, 0], access, reserved, run)
    }

    /// A 10-byte CDB with LBA, number of blocks, and the flags of byte 1.
    const fn blocks_10(
        opcode: u8,
        flags: u8,
        access: Access,
        reserved: Reserved,
        run: Run,
    ) -> Self {
        Self::new(
            [opcode, flags, F, F, F, F, 0, F, F, 0],
            access,
            reserved,
            run,
        )
    }

    /// A 12-byte CDB with LBA, number of blocks, and the flags of byte 1.
    const fn blocks_12(
        opcode: u8,
        flags: u8,
        access: Access,
        reserved: Reserved,
        run: Run,
    ) -> Self {
        Self::new(
            [opcode, flags, F, F, F, F, F, F, F, F, 0, 0],
            access,
            reserved,
            run,
        )
    }

    /// A 16-byte CDB with LBA, number of blocks (or allocation length), and the flags of byte 1.
    const fn blocks_16(
        opcode: u8,
        flags: u8,
        access: Access,
        reserved: Reserved,
        run: Run,
    ) -> Self {
        Self::new(
            [opcode, flags, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0],
            access,
            reserved,
            run,
        )
    }

    const fn with_service_action(mut self, service_action: u8) -> Self {
        self.service_action = Some(service_action);
        self
    }

    const fn needs(mut self, needs: Needs) -> Self {
        self.needs = needs;
        self
    }

    const fn runs_in(mut self, runs_in: RunsIn) -> Self {
        self.runs_in = runs_in;
        self
    }

    const fn there(&self, features: Features) -> bool {
        match self.needs {
            Needs::Nothing => true,
            Needs::Thin => features.thin,
            Needs::Atomic => features.atomic,
            Needs::Clock => features.clock,
            Needs::ExplicitAccess => features.explicit_access,
        }
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
pub(crate) fn supported(features: Features) -> impl Iterator<Item = &'static Command> {
    let commands = COMMANDS.iter();
    commands.filter(move |command| command.there(features))
}

/// The commands of an operation code: one, or one for each service action.
pub(crate) fn of_opcode(opcode: u8, features: Features) -> impl Iterator<Item = &'static Command> {
    let commands = COMMANDS.iter();
    commands.filter(move |command| command.opcode() == opcode && command.there(features))
}

/// Every bit of a byte.
const F: u8 = 0xFF;

/// Byte 1 of READ and WRITE: DPO and FUA.
const DPO_FUA: u8 = 0x18;
/// Byte 1 of VERIFY: DPO and both bits of BYTCHK.
const DPO_BYTCHK: u8 = 0x16;
/// Byte 1 of WRITE AND VERIFY: DPO and the low bit of BYTCHK.
const DPO_BYTCHK_1: u8 = 0x12;
/// Byte 1 of SYNCHRONIZE CACHE and PRE-FETCH: IMMED.
const IMMED: u8 = 0x02;
/// Byte 1 of WRITE SAME(16): UNMAP and NDOB.
const UNMAP_NDOB: u8 = WRITE_SAME_UNMAP | 0x01;
/// GROUP NUMBER.
const GROUP: u8 = 0x1F;
/// Byte 1 of FORMAT UNIT: LONGLIST, FMTDATA and CMPLST.
const LONG_DATA_COMPLETE: u8 = 0x38;
/// Byte 1 of SANITIZE: IMMED and AUSE, beside the service action.
const IMMED_AUSE: u8 = 0xA0;

// Service actions stand as values in byte 1 of the maps.
const RC16: u8 = op::READ_CAPACITY_16;
const GLS: u8 = op::GET_LBA_STATUS;
const RII: u8 = op::REPORT_IDENTIFYING_INFORMATION;
const TPG: u8 = op::TARGET_PORT_GROUPS;
const RSOC: u8 = op::REPORT_SUPPORTED_OPERATION_CODES;
const RSTMF: u8 = op::REPORT_SUPPORTED_TMFS;
const RTS: u8 = op::REPORT_TIMESTAMP;
const XCOPY: u8 = extended_copy::EXTENDED_COPY_LID1;
const RCS: u8 = extended_copy::COPY_STATUS;
const RCOP: u8 = extended_copy::OPERATING_PARAMETERS;

/// PERSISTENT RESERVE IN.
const fn persistent_in(action: u8) -> Command {
    let map = [op::PERSISTENT_RESERVE_IN, action, 0, 0, 0, 0, 0, F, F, 0];
    let run: Run = persistent_reserve::persistent_reserve_in;
    Command::new(map, Access::None, Reserved::Persistent, run)
        .with_service_action(action)
        .runs_in(RunsIn::Standby)
}

/// PERSISTENT RESERVE OUT; SCOPE and TYPE are ignored where they mean nothing.
const fn persistent_out(action: u8) -> Command {
    let map = [op::PERSISTENT_RESERVE_OUT, action, F, 0, 0, F, F, F, F, 0];
    let run: Run = persistent_reserve::persistent_reserve_out;
    Command::new(map, Access::None, Reserved::Persistent, run)
        .with_service_action(action)
        .runs_in(RunsIn::Standby)
}

/// SANITIZE; a parameter list where there is none is refused by the command itself.
const fn sanitize(action: u8) -> Command {
    let map = [op::SANITIZE, IMMED_AUSE | action, 0, 0, 0, 0, 0, F, F, 0];
    Command::new(map, Access::Write, Reserved::Writes, sanitize::sanitize)
        .with_service_action(action)
}

// One row a command, in columns.
#[rustfmt::skip]
static COMMANDS: [Command; 68] = {
    use Access::{Medium, None, Write};
    use Command as C;
    use Reserved::{Free, FreeOfPersistent, Own, Prevents, Reads, Starts, Writes};
    use RunsIn::{Any, Settled, Standby};
    use persistent_reserve as pr;
    [
        // 6-byte CDBs
        C::new([op::TEST_UNIT_READY, 0, 0, 0, 0, 0], Medium, FreeOfPersistent, unit_control::test_unit_ready),
        C::new([op::REQUEST_SENSE, 0x01, 0, 0, F, 0], None, Free, unit_control::request_sense).runs_in(Any),
        C::new([op::FORMAT_UNIT, LONG_DATA_COMPLETE, 0, 0, 0, 0], Write, Writes, format_unit::format_unit),
        C::blocks_6(op::READ_6, Medium, Reads, read_write::read),
        C::blocks_6(op::WRITE_6, Write, Writes, read_write::write),
        C::new([op::INQUIRY, 0x01, F, F, F, 0], None, Free, inquiry::inquiry).runs_in(Any),
        C::new([op::MODE_SELECT_6, 0x10, 0, 0, F, 0], None, Writes, mode_select::mode_select).runs_in(Standby),
        C::new([op::RESERVE_6, 0, 0, 0, 0, 0], None, Own, reserve::reserve),
        C::new([op::RELEASE_6, 0, 0, 0, 0, 0], None, Own, reserve::release),
        C::new([op::MODE_SENSE_6, 0x08, F, F, F, 0], None, Reads, mode::mode_sense).runs_in(Standby),
        C::new([op::START_STOP_UNIT, 0x01, 0, 0, 0x05, 0], None, Starts, unit_control::start_stop_unit),
        C::new([op::SEND_DIAGNOSTIC, 0x17, 0, F, F, 0], Medium, Writes, maintenance::send_diagnostic).runs_in(Standby),
        C::new([op::PREVENT_ALLOW_MEDIUM_REMOVAL, 0, 0, 0, 0x01, 0], None, Prevents, unit_control::prevent_allow),
        // 10-byte CDBs
        C::new([op::READ_CAPACITY_10, 0, 0, 0, 0, 0, 0, 0, 0, 0], Medium, Free, capacity::read_capacity_10),
        C::blocks_10(op::READ_10, DPO_FUA, Medium, Reads, read_write::read),
        C::blocks_10(op::WRITE_10, DPO_FUA, Write, Writes, read_write::write),
        C::blocks_10(op::WRITE_AND_VERIFY_10, DPO_BYTCHK_1, Write, Writes, verify::write_and_verify),
        C::blocks_10(op::VERIFY_10, DPO_BYTCHK, Medium, Reads, verify::verify),
        C::new([op::PRE_FETCH_10, IMMED, F, F, F, F, GROUP, F, F, 0], Medium, Reads, read_write::pre_fetch),
        C::blocks_10(op::SYNCHRONIZE_CACHE_10, IMMED, Medium, Writes, unit_control::synchronize_cache),
        C::blocks_10(op::WRITE_SAME_10, WRITE_SAME_UNMAP, Write, Writes, provisioning::write_same),
        C::new([op::UNMAP, 0, 0, 0, 0, 0, 0, F, F, 0], Write, Writes, provisioning::unmap).needs(Needs::Thin),
        sanitize(sanitize::OVERWRITE),
        sanitize(sanitize::BLOCK_ERASE).needs(Needs::Thin),
        sanitize(sanitize::EXIT_FAILURE_MODE),
        C::new([op::LOG_SENSE, 0, F, F, 0, F, F, F, F, 0], None, Free, log::log_sense).runs_in(Standby),
        C::new([op::MODE_SELECT_10, 0x10, 0, 0, 0, 0, 0, F, F, 0], None, Writes, mode_select::mode_select).runs_in(Standby),
        C::new([op::RESERVE_10, 0, 0, 0, 0, 0, 0, 0, 0, 0], None, Own, reserve::reserve),
        C::new([op::RELEASE_10, 0, 0, 0, 0, 0, 0, 0, 0, 0], None, Own, reserve::release),
        C::new([op::MODE_SENSE_10, 0x18, F, F, 0, 0, 0, F, F, 0], None, Reads, mode::mode_sense).runs_in(Standby),
        persistent_in(pr::READ_KEYS),
        persistent_in(pr::READ_RESERVATION),
        persistent_in(pr::REPORT_CAPABILITIES),
        persistent_in(pr::READ_FULL_STATUS),
        persistent_out(pr::REGISTER),
        persistent_out(pr::RESERVE),
        persistent_out(pr::RELEASE),
        persistent_out(pr::CLEAR),
        persistent_out(pr::PREEMPT),
        persistent_out(pr::PREEMPT_AND_ABORT),
        persistent_out(pr::REGISTER_AND_IGNORE_EXISTING_KEY),
        persistent_out(pr::REGISTER_AND_MOVE),
        // 16-byte CDBs
        C::new([op::EXTENDED_COPY, XCOPY, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 0], None, Writes, extended_copy::extended_copy)
            .with_service_action(XCOPY),
        C::new([op::RECEIVE_COPY_RESULTS, RCS, F, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 0], None, Writes, extended_copy::copy_status)
            .with_service_action(RCS),
        C::new([op::RECEIVE_COPY_RESULTS, RCOP, F, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 0], None, Free, extended_copy::operating_parameters)
            .with_service_action(RCOP),
        C::blocks_16(op::READ_16, DPO_FUA, Medium, Reads, read_write::read),
        C::new([op::COMPARE_AND_WRITE, DPO_FUA, F, F, F, F, F, F, F, F, 0, 0, 0, F, 0, 0], Write, Writes, verify::compare_and_write),
        C::blocks_16(op::WRITE_16, DPO_FUA, Write, Writes, read_write::write),
        C::blocks_16(op::OR_WRITE_16, DPO_FUA, Write, Writes, verify::or_write),
        C::blocks_16(op::WRITE_AND_VERIFY_16, DPO_BYTCHK_1, Write, Writes, verify::write_and_verify),
        C::blocks_16(op::VERIFY_16, DPO_BYTCHK, Medium, Reads, verify::verify),
        C::new([op::PRE_FETCH_16, IMMED, F, F, F, F, F, F, F, F, F, F, F, F, GROUP, 0], Medium, Reads, read_write::pre_fetch),
        C::blocks_16(op::SYNCHRONIZE_CACHE_16, IMMED, Medium, Writes, unit_control::synchronize_cache),
        C::blocks_16(op::WRITE_SAME_16, UNMAP_NDOB, Write, Writes, provisioning::write_same),
        C::new([op::WRITE_ATOMIC_16, DPO_FUA, F, F, F, F, F, F, F, F, 0, 0, F, F, 0, 0], Write, Writes, read_write::write_atomic)
            .needs(Needs::Atomic),
        C::new([op::SERVICE_ACTION_IN_16, RC16, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 0], Medium, Free, capacity::read_capacity_16)
            .with_service_action(RC16),
        C::blocks_16(op::SERVICE_ACTION_IN_16, GLS, Medium, Reads, provisioning::get_lba_status)
            .with_service_action(GLS),
        // 12-byte CDBs
        C::new([op::REPORT_LUNS, 0, F, 0, 0, 0, F, F, F, F, 0, 0], None, Free, report_luns::report_luns_of_unit).runs_in(Any),
        C::new([op::MAINTENANCE_IN, RII, 0, 0, 0, 0, F, F, F, F, 0xFE, 0], None, Free, maintenance::report_identifying_information)
            .with_service_action(RII),
        C::new([op::MAINTENANCE_IN, 0xE0 | TPG, 0, 0, 0, 0, F, F, F, F, 0, 0], None, Free, port_groups::report)
            .with_service_action(TPG).runs_in(Any),
        C::new([op::MAINTENANCE_IN, RSOC, 0x87, F, F, F, F, F, F, F, 0, 0], None, Reads, report_opcodes::report_opcodes)
            .with_service_action(RSOC),
        C::new([op::MAINTENANCE_IN, RSTMF, 0x80, 0, 0, 0, F, F, F, F, 0, 0], None, Reads, report_opcodes::report_tmfs)
            .with_service_action(RSTMF),
        C::new([op::MAINTENANCE_IN, RTS, 0, 0, 0, 0, F, F, F, F, 0, 0], None, Free, maintenance::report_timestamp)
            .with_service_action(RTS).needs(Needs::Clock),
        C::new([op::MAINTENANCE_OUT, TPG, 0, 0, 0, 0, F, F, F, F, 0, 0], None, Writes, port_groups::set)
            .with_service_action(TPG).needs(Needs::ExplicitAccess).runs_in(Settled),
        C::blocks_12(op::READ_12, DPO_FUA, Medium, Reads, read_write::read),
        C::blocks_12(op::WRITE_12, DPO_FUA, Write, Writes, read_write::write),
        C::blocks_12(op::WRITE_AND_VERIFY_12, DPO_BYTCHK_1, Write, Writes, verify::write_and_verify),
        C::blocks_12(op::VERIFY_12, DPO_BYTCHK, Medium, Reads, verify::verify),
    ]
};

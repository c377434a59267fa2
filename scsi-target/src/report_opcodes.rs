//! REPORT SUPPORTED OPERATION CODES and TASK MANAGEMENT FUNCTIONS (SPC-4 6.35, 6.36), both out
//! of the command table.

use crate::command::CommandContext;
use crate::command_table::{self, Command};
use crate::logical_unit::Features;
use crate::sense::Sense;

/// SUPPORT field: not supported.
const NOT_SUPPORTED: u8 = 0x01;
/// SUPPORT field: supported as the standard says.
const SUPPORTED: u8 = 0x03;
/// CTDP in the one-command format.
const CTDP_ONE: u8 = 0x80;
/// CTDP in a descriptor of the all-commands format.
const CTDP_ALL: u8 = 0x02;
/// SERVACTV in a descriptor of the all-commands format.
const SERVACTV: u8 = 0x01;

/// Command timeouts descriptor: length 10, no nominal and no recommended timeout.
const TIMEOUTS: [u8; 12] = [0x00, 0x0A, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// REPORTING OPTIONS 0: all commands; 1: one by operation code; 2: one by operation code and
/// service action; 3: either. RCTD adds timeouts descriptors.
pub(crate) fn report_opcodes(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    let cdb = context.cdb;
    let features = context.unit().features();
    let timeouts = cdb.has(2, 0x80);
    let opcode = cdb.byte(3);
    let service_action = cdb.uint(4..6);
    let of_opcode = || command_table::of_opcode(opcode, features);
    let exact = || {
        of_opcode().find(|command| {
            command
                .service_action
                .is_some_and(|value| u64::from(value) == service_action)
        })
    };
    let plain = || of_opcode().find(|command| command.service_action.is_none());
    let has_service_actions = of_opcode().any(|command| command.service_action.is_some());
    let wrong_option = Sense::cdb_field(2, Some(2));
    let data = match cdb.byte(2) & 0x07 {
        0 => all_commands(features, timeouts),
        1 if has_service_actions => return Err(wrong_option),
        1 => one_command(plain(), features.thin, timeouts),
        2 if plain().is_some() => return Err(wrong_option),
        2 => one_command(exact(), features.thin, timeouts),
        3 if has_service_actions => one_command(exact(), features.thin, timeouts),
        3 => one_command(
            plain().filter(|_| service_action == 0),
            features.thin,
            timeouts,
        ),
        _ => return Err(wrong_option),
    };
    let allocation_bytes = cdb.uint(6..10);
    context.reply(&data, allocation_bytes);
    Ok(())
}

/// Header with the length, then for each command: operation code, reserved, service action (2),
/// reserved, CTDP and SERVACTV, CDB length (2), timeouts.
fn all_commands(features: Features, timeouts: bool) -> Vec<u8> {
    let mut list = Vec::new();
    for command in command_table::supported(features) {
        let service_action = u16::from(command.service_action.unwrap_or(0));
        let mut flags = 0;
        if command.service_action.is_some() {
            flags |= SERVACTV;
        }
        if timeouts {
            flags |= CTDP_ALL;
        }
        list.extend([command.opcode(), 0]);
        list.extend(service_action.to_be_bytes());
        list.extend([0, flags]);
        list.extend(cdb_length(command));
        if timeouts {
            list.extend(TIMEOUTS);
        }
    }
    let length = u32::try_from(list.len()).unwrap_or(u32::MAX);
    let mut data = length.to_be_bytes().to_vec();
    data.extend(list);
    data
}

/// Reserved, CTDP and SUPPORT, CDB length (2), CDB usage map, timeouts.
fn one_command(command: Option<&Command>, thin: bool, timeouts: bool) -> Vec<u8> {
    let Some(command) = command else {
        return vec![0, NOT_SUPPORTED, 0, 0];
    };
    let mut data = vec![0, SUPPORTED | if timeouts { CTDP_ONE } else { 0 }];
    data.extend(cdb_length(command));
    data.extend(command.usage(thin));
    if timeouts {
        data.extend(TIMEOUTS);
    }
    data
}

fn cdb_length(command: &Command) -> [u8; 2] {
    u16::try_from(command.cdb_bytes())
        .unwrap_or(u16::MAX)
        .to_be_bytes()
}

/// ABORT TASK, ABORT TASK SET, CLEAR TASK SET, LOGICAL UNIT RESET, QUERY TASK; QUERY
/// ASYNCHRONOUS EVENT, QUERY TASK SET, I_T NEXUS RESET. REPD asks for the 16-byte form, whose
/// timeouts say nothing.
pub(crate) fn report_tmfs(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    const ATS_ATSS_CTSS_LURS_QTS: u8 = 0x80 | 0x40 | 0x10 | 0x08 | 0x04;
    const QAES_QTSS_ITNRS: u8 = 0x04 | 0x02 | 0x01;
    let cdb = context.cdb;
    let allocation_bytes = cdb.uint(6..10);
    if allocation_bytes < 4 {
        return Err(Sense::cdb_field(6, None));
    }
    let mut data = vec![ATS_ATSS_CTSS_LURS_QTS, QAES_QTSS_ITNRS, 0, 0];
    if cdb.has(2, 0x80) {
        data = vec![ATS_ATSS_CTSS_LURS_QTS, QAES_QTSS_ITNRS, 0, 0x0C];
        data.resize(16, 0);
    }
    context.reply(&data, allocation_bytes);
    Ok(())
}

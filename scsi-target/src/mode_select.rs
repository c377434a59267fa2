//! MODE SELECT (SPC-4 6.11, 6.12): check the whole list, then apply it.

use crate::cdb::be_uint;
use crate::command::CommandContext;
use crate::logical_unit::LogicalUnit;
use crate::mode::{ModePage, ModeParameters, SHORT_DESCRIPTOR_BYTES, SPF, block_descriptor};
use crate::opcode;
use crate::sense::{AdditionalSense, Sense};
use crate::unit_attention::UnitAttention;

/// PF in byte 1: the list holds pages as in the standard.
const PF: u8 = 0x10;

/// The parameter list was cut off.
const TRUNCATED: Sense = Sense::illegal(AdditionalSense::PARAMETER_LIST_LENGTH_ERROR);

/// MODE SELECT, both lengths. Other nexuses find 2A/01 pending if something changed. Turning
/// the write cache off flushes it before the answer.
pub(crate) fn mode_select(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    let unit = context.unit();
    let list = context.take_data_out()?;
    if list.is_empty() {
        return Ok(());
    }
    if !context.cdb.has(1, PF) {
        return Err(Sense::cdb_field(1, Some(4)));
    }
    let ten = context.cdb.opcode() == opcode::MODE_SELECT_10;
    // Checked on a copy; applied to what the state is by then, bit by bit, so that two lists
    // at once do not undo each other's pages.
    let pages = checked_pages(unit, list, ten)?;
    let mut after = unit.state().mode;
    let before = unit.update_state(|state| {
        for &(page, bytes) in &pages {
            page.decode(bytes, &mut state.mode);
        }
        after = state.mode;
    });
    if before.mode != after {
        unit.establish(
            UnitAttention::ModeParametersChanged,
            Some(&context.attachment.nexus),
        );
    }
    if before.mode.write_cache && !after.write_cache {
        // Writes that found the cache on end before the flush begins.
        let _alone = unit.alone();
        unit.device().flush()?;
    }
    Ok(())
}

/// Splits the list and checks every byte of it.
fn checked_pages<'a>(
    unit: &LogicalUnit,
    list: &'a [u8],
    ten: bool,
) -> Result<Vec<(ModePage, &'a [u8])>, Sense> {
    let mut at = check_header(unit, list, ten)?;
    let parameters = unit.state().mode;
    let mut pages = Vec::new();
    while let Some(page) = list.get(at..).filter(|rest| !rest.is_empty()) {
        let (kind, bytes) = check_page(parameters, page, at)?;
        at += bytes.len();
        pages.push((kind, bytes));
    }
    Ok(pages)
}

/// Checks header and block descriptor; returns where the pages begin.
///
/// MODE DATA LENGTH and the device-specific parameter mean nothing in MODE SELECT and are
/// ignored, since initiators send back what MODE SENSE gave them.
fn check_header(unit: &LogicalUnit, list: &[u8], ten: bool) -> Result<usize, Sense> {
    let (header_bytes, medium_type_at, length_at) = if ten { (8, 2, 6..8) } else { (4, 1, 3..4) };
    if list.len() < header_bytes {
        return Err(TRUNCATED);
    }
    if be_uint(list, medium_type_at..medium_type_at + 1) != 0 {
        return Err(Sense::parameter_field(medium_type_at, Some(7)));
    }
    let long = ten && be_uint(list, 4..5) & 0x01 != 0;
    let expected_bytes = usize::from(SHORT_DESCRIPTOR_BYTES) * if long { 2 } else { 1 };
    let descriptor_bytes = usize::try_from(be_uint(list, length_at.clone())).unwrap_or(usize::MAX);
    if descriptor_bytes == 0 {
        return Ok(header_bytes);
    }
    if descriptor_bytes != expected_bytes {
        return Err(Sense::parameter_field(length_at.start, None));
    }
    let pages_at = header_bytes + descriptor_bytes;
    let descriptor = list.get(header_bytes..pages_at).ok_or(TRUNCATED)?;
    // Neither the number of blocks nor their length can be changed; 0 blocks means "as it is".
    let current = block_descriptor(unit, long);
    let (blocks, block_bytes) = descriptor.split_at(descriptor_bytes / 2);
    let (blocks_now, block_bytes_now) = current.split_at(descriptor_bytes / 2);
    if blocks != blocks_now && blocks.iter().any(|&byte| byte != 0) {
        return Err(Sense::parameter_field(header_bytes, None));
    }
    if block_bytes != block_bytes_now {
        return Err(Sense::parameter_field(
            header_bytes + descriptor_bytes / 2,
            None,
        ));
    }
    Ok(pages_at)
}

/// Checks the page at the head of `rest`, which stands at byte `at` of the list: known, whole,
/// and different from the current one in changeable bits only.
fn check_page(
    parameters: ModeParameters,
    rest: &[u8],
    at: usize,
) -> Result<(ModePage, &[u8]), Sense> {
    // PS must be zero in MODE SELECT.
    let (Some(&first), Some(&second)) = (rest.first(), rest.get(1)) else {
        return Err(TRUNCATED);
    };
    let subpage = if first & SPF == 0 { 0 } else { second };
    let page = ModePage::of_code(first & !SPF, subpage)
        .filter(|page| (page.header_bytes() == 4) == (first & SPF != 0))
        .ok_or(Sense::parameter_field(at, None))?;
    let current = page.encode(parameters);
    let length_at = page.header_bytes() / 2;
    let header = rest.get(..page.header_bytes()).ok_or(TRUNCATED)?;
    if current.get(length_at..page.header_bytes()) != header.get(length_at..) {
        return Err(Sense::parameter_field(at + length_at, None));
    }
    let bytes = rest.get(..current.len()).ok_or(TRUNCATED)?;
    let fixed_differs = bytes
        .iter()
        .zip(&current)
        .zip(page.changeable())
        .skip(page.header_bytes())
        .position(|((new, old), changeable)| (new ^ old) & !changeable != 0);
    match fixed_differs {
        Some(offset) => Err(Sense::parameter_field(
            at + page.header_bytes() + offset,
            None,
        )),
        None => Ok((page, bytes)),
    }
}

//! FORMAT UNIT (SBC-4 5.4): all blocks lose their backing, or become zeroes where they keep it.
//!
//! As with SANITIZE it is done before the answer also with IMMED; meanwhile other nexuses get 2/04/04
//! with the progress, afterwards 3/31/00 if it failed, until another one succeeds. There are no
//! defects and no protection information: a list that names some, a pattern or a fast format is
//! refused.

use crate::cdb::be_uint;
use crate::command::CommandContext;
use crate::logical_unit::LogicalUnit;
use crate::provisioning::UNMAP_BLOCKS_MAX;
use crate::sanitize::{Pieces, Sanitize, UNFORMATTED};
use crate::sense::Sense;

// Byte 1 of the CDB.
const LONGLIST: u8 = 0x20;
const FMTDATA: u8 = 0x10;

// Byte 1 of the parameter list.
const FOV: u64 = 0x80;
/// DPRY, DCRT, STPF: say nothing to a unit without defects, and mean something only with FOV.
const ABOUT_DEFECTS: u64 = 0x70;
const IMMED: u64 = 0x02;

/// Bytes written as zeroes at a time.
const PIECE_BYTES: u32 = 1024 * 1024;

pub(crate) fn format_unit(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    let unit = context.unit();
    let cdb = context.cdb;
    if cdb.has(1, FMTDATA) {
        let header = context.take_data_out()?;
        check_header(header, cdb.has(1, LONGLIST))?;
    } else if cdb.byte(1) != 0 {
        // They speak of a list that is not there.
        return Err(Sense::cdb_field(1, Some(5)));
    }
    // Nobody is in the middle of a write, and whoever waits here writes after the end.
    let _alone = unit.alone();
    unit.update_state(|state| state.sanitize = Sanitize::Formatting(0));
    let done = run(unit);
    let after = match done {
        Ok(()) => Sanitize::Idle,
        Err(_) => Sanitize::Unformatted,
    };
    unit.update_state(|state| state.sanitize = after);
    done.map_err(|_medium| UNFORMATTED)
}

/// | byte | field |
/// | --- | --- |
/// | 0 | PROTECTION FIELD USAGE, 0 here |
/// | 1 | FOV, DPRY, DCRT, STPF, IP (0 here), IMMED |
/// | long: 3 | protection information, 0 here |
/// | 2..4, long: 4..8 | length of the defect list, 0 here |
fn check_header(header: &[u8], long: bool) -> Result<(), Sense> {
    if be_uint(header, 0..1) != 0 {
        return Err(Sense::parameter_field(0, None));
    }
    let flags = be_uint(header, 1..2);
    let allowed = if flags & FOV == 0 {
        IMMED
    } else {
        FOV | ABOUT_DEFECTS | IMMED
    };
    if flags & !allowed != 0 {
        return Err(Sense::parameter_field(1, None));
    }
    // Reserved bytes as well.
    if be_uint(header, 2..4) != 0 {
        return Err(Sense::parameter_field(2, None));
    }
    if long && be_uint(header, 4..8) != 0 {
        return Err(Sense::parameter_field(4, None));
    }
    Ok(())
}

fn run(unit: &LogicalUnit) -> Result<(), Sense> {
    let piece_blocks = if unit.thin() {
        UNMAP_BLOCKS_MAX
    } else {
        unit.blocks_in(PIECE_BYTES)
    };
    for (lba, blocks, done) in Pieces::new(unit, u64::from(piece_blocks), 1) {
        if unit.thin() {
            unit.device().unmap(lba, blocks)?;
        } else {
            unit.device().write_zeroes(lba, blocks, false)?;
        }
        unit.update_state(|state| state.sanitize = Sanitize::Formatting(done));
    }
    Ok(unit.device().flush()?)
}

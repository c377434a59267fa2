//! READ and WRITE of all CDB lengths (SBC-3 5.11 ff, 5.37 ff), PRE-FETCH, and block ranges.

use crate::cdb::Cdb;
use crate::command::CommandContext;
use crate::logical_unit::{LogicalUnit, TRANSFER_BYTES_MAX};
use crate::opcode;
use crate::sense::{AdditionalSense, Sense};

/// FUA in byte 1.
const FUA: u8 = 0x08;

/// A run of logical blocks, unchecked until one of the `check` methods was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockRange {
    pub(crate) lba: u64,
    pub(crate) blocks: u64,
}

impl BlockRange {
    /// Where CDBs of each group (bits 7..5 of the operation code) keep LBA and length. 6-byte
    /// CDBs have no way to say 0: it means 256.
    pub(crate) fn parse(cdb: &Cdb) -> Self {
        let (lba, blocks) = match cdb.opcode() {
            opcode::COMPARE_AND_WRITE => (cdb.uint(2..10), cdb.uint(13..14)),
            opcode::WRITE_ATOMIC_16 => (cdb.uint(2..10), cdb.uint(12..14)),
            0x00..=0x1F => (
                cdb.uint(1..4) & 0x1F_FFFF,
                match cdb.uint(4..5) {
                    0 => 256,
                    blocks => blocks,
                },
            ),
            0x80..=0x9F => (cdb.uint(2..10), cdb.uint(10..14)),
            0xA0..=0xBF => (cdb.uint(2..6), cdb.uint(6..10)),
            _ => (cdb.uint(2..6), cdb.uint(7..9)),
        };
        Self { lba, blocks }
    }

    /// Refuses a range that does not end within the unit, with 21/00.
    pub(crate) fn check_capacity(self, unit: &LogicalUnit) -> Result<(), Sense> {
        match self.lba.checked_add(self.blocks) {
            Some(end) if end <= unit.block_count() => Ok(()),
            _ => Err(Sense::illegal(AdditionalSense::LBA_OUT_OF_RANGE)),
        }
    }

    /// Refuses a range beyond the unit, then one of more than [`TRANSFER_BYTES_MAX`]. Returns
    /// its length in bytes.
    pub(crate) fn check(self, unit: &LogicalUnit) -> Result<usize, Sense> {
        self.check_capacity(unit)?;
        let blocks = u32::try_from(self.blocks)
            .ok()
            .filter(|&blocks| blocks <= unit.blocks_in(TRANSFER_BYTES_MAX));
        blocks
            .and_then(|blocks| usize::try_from(blocks.checked_mul(unit.block_bytes())?).ok())
            .ok_or(Sense::illegal(AdditionalSense::INVALID_FIELD_IN_CDB))
    }
}

/// Whether a 10-, 12- or 16-byte CDB has FUA set. In READ(6) and WRITE(6) the bit is LBA.
pub(crate) fn fua(cdb: &Cdb) -> bool {
    !matches!(cdb.opcode(), opcode::READ_6 | opcode::WRITE_6) && cdb.has(1, FUA)
}

pub(crate) fn read(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    let unit = context.unit();
    let range = BlockRange::parse(&context.cdb);
    let bytes = range.check(unit)?;
    if bytes == 0 {
        return Ok(());
    }
    if fua(&context.cdb) {
        // What is read must be on the medium, not only in a cache (SBC-3 4.15).
        unit.device().flush()?;
    }
    context.data_in.resize(bytes, 0);
    unit.device().read(range.lba, context.data_in)?;
    Ok(())
}

pub(crate) fn write(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    let unit = context.unit();
    let range = BlockRange::parse(&context.cdb);
    range.check(unit)?;
    let data = context.take_data_out()?;
    if data.is_empty() {
        return Ok(());
    }
    let _writing = unit.writing();
    let durable = unit.durable(fua(&context.cdb));
    unit.device().write(range.lba, data, durable)?;
    Ok(())
}

/// WRITE ATOMIC (SBC-4 5.48): as WRITE, but no longer than the device can write at once.
pub(crate) fn write_atomic(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    let unit = context.unit();
    let range = BlockRange::parse(&context.cdb);
    range.check_capacity(unit)?;
    if range.blocks > u64::from(unit.atomic_blocks()) {
        return Err(Sense::cdb_field(12, Some(7)));
    }
    write(context)
}

/// PRE-FETCH (SBC-3 5.8, 5.9). There is no cache here that could hold the blocks, for which GOOD
/// stands; CONDITION MET would promise that it does.
pub(crate) fn pre_fetch(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    BlockRange::parse(&context.cdb).check_capacity(context.unit())
}

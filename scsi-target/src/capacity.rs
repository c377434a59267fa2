//! READ CAPACITY (SBC-3 5.15, 5.16).

use crate::command::CommandContext;
use crate::sense::Sense;

/// Last LBA (FFFFFFFFh: too large, use the 16-byte form) and block length.
pub(crate) fn read_capacity_10(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    let unit = context.unit();
    let last_lba = u32::try_from(unit.block_count().saturating_sub(1)).unwrap_or(u32::MAX);
    let mut data = last_lba.to_be_bytes().to_vec();
    data.extend(unit.block_bytes().to_be_bytes());
    context.reply(&data, 8);
    Ok(())
}

/// | byte | field |
/// | --- | --- |
/// | 0..8 | last LBA |
/// | 8..12 | block length |
/// | 12 | no protection information |
/// | 13 | one logical block per physical block |
/// | 14 | LBPME and LBPRZ on thin units |
pub(crate) fn read_capacity_16(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    let unit = context.unit();
    let mut data = unit.block_count().saturating_sub(1).to_be_bytes().to_vec();
    data.extend(unit.block_bytes().to_be_bytes());
    data.extend([0, 0, if unit.thin() { 0xC0 } else { 0 }]);
    data.resize(32, 0);
    let allocation_bytes = context.cdb.uint(10..14);
    context.reply(&data, allocation_bytes);
    Ok(())
}

//! Commands about the backing of blocks: WRITE SAME, UNMAP, GET LBA STATUS (SBC-3 4.7).

use crate::block_device::Allocation;
use crate::cdb::be_uint;
use crate::command::CommandContext;
use crate::logical_unit::LogicalUnit;
use crate::opcode;
use crate::read_write::BlockRange;
use crate::sense::{AdditionalSense, Sense};

/// MAXIMUM UNMAP LBA COUNT: most blocks of one UNMAP command, all descriptors together.
pub(crate) const UNMAP_BLOCKS_MAX: u32 = 1024 * 1024;

/// MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT.
pub(crate) const UNMAP_DESCRIPTORS_MAX: u32 = 256;

/// Most bytes one WRITE SAME may cover; bounds the time it takes.
const WRITE_SAME_BYTES_MAX: u32 = 32 * 1024 * 1024;

/// Bytes of repeated pattern written at a time.
const PATTERN_BYTES: u32 = 64 * 1024;

/// Most descriptors in one answer of GET LBA STATUS; the rest is asked for again.
const LBA_STATUS_DESCRIPTORS_MAX: u64 = 256;

const UNMAP_HEADER_BYTES: usize = 8;
const UNMAP_DESCRIPTOR_BYTES: usize = 16;

/// MAXIMUM WRITE SAME LENGTH in blocks.
pub(crate) const fn write_same_blocks_max(unit: &LogicalUnit) -> u32 {
    unit.blocks_in(WRITE_SAME_BYTES_MAX)
}

/// WRITE SAME (SBC-3 5.50, 5.51). With UNMAP, zeroes become unmapped blocks, which read as
/// zeroes; other patterns are written, since only that gives what the pattern promises.
pub(crate) fn write_same(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    let unit = context.unit();
    let cdb = context.cdb;
    let range = BlockRange::parse(&cdb);
    range.check_capacity(unit)?;
    if range.blocks == 0 || range.blocks > u64::from(write_same_blocks_max(unit)) {
        let length_byte = if cdb.opcode() == opcode::WRITE_SAME_10 {
            7
        } else {
            10
        };
        return Err(Sense::cdb_field(length_byte, None));
    }
    let pattern = context.take_data_out()?;
    let _writing = unit.writing();
    let durable = unit.durable(false);
    if pattern.iter().all(|&byte| byte == 0) {
        // Also NDOB, whose pattern is empty.
        if cdb.has(1, 0x08) {
            unit.device().unmap(range.lba, range.blocks)?;
        } else {
            unit.device()
                .write_zeroes(range.lba, range.blocks, durable)?;
        }
        return Ok(());
    }
    let piece_blocks = u64::from(unit.blocks_in(PATTERN_BYTES)).min(range.blocks);
    let piece = pattern.repeat(usize::try_from(piece_blocks).unwrap_or(1));
    let mut done = 0;
    while done < range.blocks {
        let blocks = piece_blocks.min(range.blocks - done);
        let bytes = usize::try_from(blocks)
            .unwrap_or(0)
            .saturating_mul(pattern.len());
        let data = piece.get(..bytes).unwrap_or_default();
        unit.device().write(range.lba + done, data, durable)?;
        done += blocks;
    }
    Ok(())
}

/// UNMAP (SBC-3 5.28). All descriptors are checked before the first block is unmapped.
///
/// | byte | field |
/// | --- | --- |
/// | 0..2 | UNMAP DATA LENGTH, what follows it |
/// | 2..4 | length of the descriptors; a part of one at the end is ignored |
/// | 8.. | descriptors: LBA (8), blocks (4), reserved (4) |
pub(crate) fn unmap(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    let unit = context.unit();
    let list = context.take_data_out()?;
    if list.is_empty() {
        return Ok(());
    }
    let truncated = Sense::illegal(AdditionalSense::PARAMETER_LIST_LENGTH_ERROR);
    let descriptors = list.get(UNMAP_HEADER_BYTES..).ok_or(truncated)?;
    let descriptor_bytes = usize::try_from(be_uint(list, 2..4)).unwrap_or(usize::MAX);
    if usize::try_from(be_uint(list, 0..2)).unwrap_or(0) < descriptor_bytes.saturating_add(6) {
        return Err(Sense::parameter_field(0, None));
    }
    let descriptors = descriptors.get(..descriptor_bytes).ok_or(truncated)?;
    let ranges: Vec<BlockRange> = descriptors
        .chunks_exact(UNMAP_DESCRIPTOR_BYTES)
        .map(|bytes| BlockRange {
            lba: be_uint(bytes, 0..8),
            blocks: be_uint(bytes, 8..12),
        })
        .collect();
    if u32::try_from(ranges.len()).is_ok_and(|count| count <= UNMAP_DESCRIPTORS_MAX) {
        for range in &ranges {
            range.check_capacity(unit)?;
        }
    } else {
        return Err(Sense::parameter_field(2, None));
    }
    // At most 256 descriptors of 32 bits: the sum cannot wrap.
    if ranges.iter().map(|range| range.blocks).sum::<u64>() > u64::from(UNMAP_BLOCKS_MAX) {
        return Err(Sense::parameter_field(UNMAP_HEADER_BYTES + 8, None));
    }
    let _writing = unit.writing();
    for range in ranges.iter().filter(|range| range.blocks > 0) {
        unit.device().unmap(range.lba, range.blocks)?;
    }
    Ok(())
}

/// GET LBA STATUS (SBC-3 5.6): runs of mapped (or unknown) and deallocated blocks from an LBA
/// on, as many as the allocation length holds.
pub(crate) fn get_lba_status(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    let unit = context.unit();
    let start = context.cdb.uint(2..10);
    let allocation_bytes = context.cdb.uint(10..14);
    let block_count = unit.block_count();
    if start >= block_count {
        return Err(Sense::illegal(AdditionalSense::LBA_OUT_OF_RANGE));
    }
    let room = (allocation_bytes.saturating_sub(8) / 16).clamp(1, LBA_STATUS_DESCRIPTORS_MAX);
    let mut descriptors = Vec::new();
    let mut lba = start;
    for _ in 0..room {
        if lba >= block_count {
            break;
        }
        let extent = unit.device().extent(lba)?;
        let left = block_count - lba;
        let (blocks, status) = match (extent.blocks, extent.allocation) {
            (0, _) => (left, 0),
            (blocks, Allocation::MappedOrUnknown) => (blocks.min(left), 0),
            (blocks, Allocation::Deallocated) => (blocks.min(left), 1),
        };
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
        descriptors.extend(lba.to_be_bytes());
        descriptors.extend(blocks.to_be_bytes());
        descriptors.extend([status, 0, 0, 0]);
        lba += u64::from(blocks);
    }
    let length = u32::try_from(descriptors.len())
        .unwrap_or(0)
        .saturating_add(4);
    let mut data = length.to_be_bytes().to_vec();
    data.extend([0; 4]);
    data.extend(descriptors);
    context.reply(&data, allocation_bytes);
    Ok(())
}

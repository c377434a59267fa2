//! Commands that compare or combine: VERIFY, WRITE AND VERIFY, COMPARE AND WRITE, ORWRITE (SBC-3
//! 5.31, 5.43, 5.2, 5.7).

use crate::command::CommandContext;
use crate::logical_unit::{LogicalUnit, TRANSFER_BYTES_MAX};
use crate::read_write::{BlockRange, fua};
use crate::sense::{AdditionalSense, Sense, SenseKey};

/// Bytes read at a time while verifying.
const PIECE_BYTES: u32 = 64 * 1024;

/// Most blocks of COMPARE AND WRITE: its data-out, twice the blocks, is one transfer, and its
/// count has eight bits.
pub(crate) fn compare_and_write_blocks_max(unit: &LogicalUnit) -> u8 {
    u8::try_from(unit.blocks_in(TRANSFER_BYTES_MAX / 2)).unwrap_or(u8::MAX)
}

/// BYTCHK of byte 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ByteCheck {
    /// 00b: blocks must be readable.
    Readable,
    /// 01b: blocks must equal the data-out.
    Equal,
    /// 11b: each block must equal the one block of data-out.
    EqualOneBlock,
}

pub(crate) fn verify(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    let check = match (context.cdb.byte(1) >> 1) & 0x03 {
        0 => ByteCheck::Readable,
        1 => ByteCheck::Equal,
        3 => ByteCheck::EqualOneBlock,
        _ => return Err(Sense::cdb_field(1, Some(2))),
    };
    let range = BlockRange::parse(&context.cdb);
    range.check(context.unit())?;
    let expected = context.take_data_out()?;
    compare_with_medium(context.unit(), range, check, expected)
}

pub(crate) fn write_and_verify(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    let unit = context.unit();
    let range = BlockRange::parse(&context.cdb);
    range.check(unit)?;
    let check = if context.cdb.has(1, 0x02) {
        ByteCheck::Equal
    } else {
        ByteCheck::Readable
    };
    let data = context.take_data_out()?;
    if data.is_empty() {
        return Ok(());
    }
    let _writing = unit.writing();
    unit.device().write(range.lba, data, true)?;
    compare_with_medium(unit, range, check, data)
}

/// Reads a checked range piece by piece and compares. A difference is MISCOMPARE 1D/00 with the
/// LBA of the first block that differs.
fn compare_with_medium(
    unit: &LogicalUnit,
    range: BlockRange,
    check: ByteCheck,
    expected: &[u8],
) -> Result<(), Sense> {
    let block_bytes = usize::try_from(unit.block_bytes()).unwrap_or(usize::MAX);
    let piece_blocks = u64::from(unit.blocks_in(PIECE_BYTES));
    let mut wanted: Box<dyn Iterator<Item = &[u8]>> = match check {
        ByteCheck::Readable => Box::new(std::iter::empty()),
        ByteCheck::Equal => Box::new(expected.chunks(block_bytes)),
        ByteCheck::EqualOneBlock => Box::new(std::iter::repeat(expected)),
    };
    let mut buffer = Vec::new();
    let mut done = 0;
    while done < range.blocks {
        let blocks = piece_blocks.min(range.blocks - done);
        let bytes = usize::try_from(blocks)
            .unwrap_or(0)
            .saturating_mul(block_bytes);
        buffer.resize(bytes, 0);
        unit.device().read(range.lba + done, &mut buffer)?;
        if check != ByteCheck::Readable {
            for (block, lba) in buffer.chunks(block_bytes).zip(range.lba + done..) {
                if wanted.next() != Some(block) {
                    return Err(miscompare().with_information(lba));
                }
            }
        }
        done += blocks;
    }
    Ok(())
}

/// COMPARE AND WRITE: the first half of the data-out is compared, the second half written if
/// all bytes are equal. INFORMATION is the offset of the first byte that differs.
pub(crate) fn compare_and_write(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    let unit = context.unit();
    let range = BlockRange::parse(&context.cdb);
    range.check_capacity(unit)?;
    if range.blocks > u64::from(compare_and_write_blocks_max(unit)) {
        return Err(Sense::cdb_field(13, Some(7)));
    }
    let data = context.take_data_out()?;
    if data.is_empty() {
        return Ok(());
    }
    let (expected, new) = data.split_at(data.len() / 2);
    let mut found = vec![0; expected.len()];
    let _alone = unit.alone();
    let durable = unit.durable(fua(&context.cdb));
    unit.device().read(range.lba, &mut found)?;
    let difference = found
        .iter()
        .zip(expected)
        .position(|(found, expected)| found != expected);
    if let Some(offset) = difference {
        return Err(miscompare().with_information(u64::try_from(offset).unwrap_or(u64::MAX)));
    }
    unit.device().write(range.lba, new, durable)?;
    Ok(())
}

/// ORWRITE(16): blocks become what they were, with the bits of the data-out set. Nobody writes
/// in between.
pub(crate) fn or_write(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    let unit = context.unit();
    let range = BlockRange::parse(&context.cdb);
    range.check(unit)?;
    let data = context.take_data_out()?;
    if data.is_empty() {
        return Ok(());
    }
    let mut blocks = vec![0; data.len()];
    let _alone = unit.alone();
    let durable = unit.durable(fua(&context.cdb));
    unit.device().read(range.lba, &mut blocks)?;
    for (block, bits) in blocks.iter_mut().zip(data) {
        *block |= bits;
    }
    unit.device().write(range.lba, &blocks, durable)?;
    Ok(())
}

const fn miscompare() -> Sense {
    Sense::new(
        SenseKey::Miscompare,
        AdditionalSense::MISCOMPARE_DURING_VERIFY,
    )
}

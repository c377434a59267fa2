//! Small commands that tell about the unit or check it: identifying information, timestamp,
//! self-test.

use std::fmt;

use crate::command::CommandContext;
use crate::sense::{AdditionalSense, Sense, SenseKey};

/// The time of day, for REPORT TIMESTAMP.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Milliseconds since 1970-01-01 00:00 UTC; 48 bits are reported.
    fn unix_milliseconds(&self) -> u64;
}

/// REPORT IDENTIFYING INFORMATION (SPC-4 6.32): none was ever set, and none can be.
pub(crate) fn report_identifying_information(
    context: &mut CommandContext<'_>,
) -> Result<(), Sense> {
    match context.cdb.byte(10) >> 1 {
        // Identifying information, text, and the list of types that can be set.
        0 | 2 | 0x7F => {
            let allocation_bytes = context.cdb.uint(6..10);
            context.reply(&[0; 4], allocation_bytes);
            Ok(())
        }
        _ => Err(Sense::cdb_field(10, Some(7))),
    }
}

/// REPORT TIMESTAMP (SPC-4 6.38). Length (2), origin 3 (set otherwise than by SET TIMESTAMP),
/// reserved, milliseconds (6), reserved (2).
pub(crate) fn report_timestamp(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    let [_, _, milliseconds @ ..] = context.unit().unix_milliseconds().to_be_bytes();
    let mut data = vec![0, 10, 0x03, 0];
    data.extend(milliseconds);
    data.extend([0, 0]);
    let allocation_bytes = context.cdb.uint(6..10);
    context.reply(&data, allocation_bytes);
    Ok(())
}

/// SEND DIAGNOSTIC (SPC-4 6.42): the default self-test reads the first and the last block. There
/// are no diagnostic pages, so a parameter list is refused.
pub(crate) fn send_diagnostic(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    let unit = context.unit();
    if context.cdb.uint(3..5) != 0 {
        return Err(Sense::cdb_field(3, None));
    }
    if context.cdb.has(1, 0x04) {
        let mut block = vec![0; usize::try_from(unit.block_bytes()).unwrap_or(0)];
        for lba in [0, unit.block_count().saturating_sub(1)] {
            let read = unit.device().read(lba, &mut block);
            read.map_err(|_medium| {
                Sense::new(SenseKey::HardwareError, AdditionalSense::FAILED_SELF_TEST)
            })?;
        }
    }
    Ok(())
}

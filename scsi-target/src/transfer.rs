//! READ and WRITE whose blocks the caller moves: for one that has both the medium and the
//! initiator's memory at hand, and so needs no copy in between.

use crate::cdb::Cdb;
use crate::command::admit;
use crate::nexus::Attachment;
use crate::opcode;
use crate::read_write::{BlockRange, fua};
use crate::reservation::NexusId;
use crate::task::TaskAttribute;

/// Blocks to move between the medium and the initiator's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// From the medium.
    Read {
        /// The first block.
        lba: u64,
        /// Bytes of all blocks, at least one block.
        bytes: usize,
    },
    /// To the medium, whose write cache may keep them.
    Write {
        /// The first block.
        lba: u64,
        /// Bytes of all blocks, at least one block.
        bytes: usize,
    },
}

/// What [`ItNexus::transfer`](crate::ItNexus::transfer) does, on a unit that is there.
pub(crate) fn transfer(
    nexus: NexusId,
    attachment: &Attachment,
    cdb: &[u8],
    data_bytes: usize,
    move_blocks: impl FnOnce(Transfer) -> bool,
) -> bool {
    let (cdb, cdb_bytes) = (Cdb::new(cdb), cdb.len());
    let writes = match cdb.opcode() {
        opcode::READ_6 | opcode::READ_10 | opcode::READ_12 | opcode::READ_16 => false,
        opcode::WRITE_6 | opcode::WRITE_10 | opcode::WRITE_12 | opcode::WRITE_16 => true,
        _ => return false,
    };
    let unit = &*attachment.unit;
    if fua(&cdb) || !attachment.nexus.pending().is_empty() {
        return false;
    }
    let admitted = admit(nexus, unit, &cdb, cdb_bytes, TaskAttribute::Simple);
    let Ok(Some(_read_or_write)) = admitted else {
        return false;
    };
    let range = BlockRange::parse(&cdb);
    let Ok(bytes) = range.check(unit) else {
        return false;
    };
    if bytes == 0 || bytes != data_bytes {
        return false;
    }
    let lba = range.lba;
    if !writes {
        return move_blocks(Transfer::Read { lba, bytes });
    }
    let _writing = unit.writing();
    !unit.durable(false) && move_blocks(Transfer::Write { lba, bytes })
}

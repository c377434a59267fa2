//! Blocks that say who wrote them, where and when, and the ledger that knows what must be found.
//!
//! A write is *submitted*, then *acknowledged*, and *durable* once it was acknowledged with FUA or a
//! later SYNCHRONIZE CACHE was. A block never has two writes in flight. So whatever happened to the
//! target, a block holds one whole write, of this very block, from the newest durable one on up to
//! the newest submitted one.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

/// Bytes that are written as a whole.
pub const BLOCK_BYTES: usize = 4096;
/// Bytes of a block of the LUN.
pub const SECTOR_BYTES: usize = 512;
/// Blocks of the LUN in one of ours.
pub const SECTORS: u64 = 8;

/// The content of a block: each sector of it names the write and its own place.
#[must_use]
pub fn stamp(lun: &str, block: u64, sequence: u64) -> Vec<u8> {
    let mut data = Vec::with_capacity(BLOCK_BYTES);
    for sector in block * SECTORS..(block + 1) * SECTORS {
        data.extend(sequence.to_le_bytes());
        data.extend(sector.to_le_bytes());
        let mut random = filler(lun, sector, sequence);
        data.extend(std::iter::repeat_with(|| random.u8(..)).take(SECTOR_BYTES - 16));
    }
    data
}

fn filler(lun: &str, sector: u64, sequence: u64) -> fastrand::Rng {
    let name = lun
        .bytes()
        .fold(0_u64, |sum, byte| sum.rotate_left(8) ^ u64::from(byte));
    fastrand::Rng::with_seed(name ^ sector.rotate_left(20) ^ sequence.rotate_left(40))
}

/// The number of the write that a block holds, 0 for a block of zeros.
///
/// # Errors
/// It is no block of ours, of another place or LUN, or parts are of different writes.
pub fn sequence(lun: &str, block: u64, data: &[u8]) -> Result<u64> {
    ensure!(data.len() == BLOCK_BYTES, "{} bytes", data.len());
    if data.iter().all(|byte| *byte == 0) {
        return Ok(0);
    }
    let first = u64::from_le_bytes(*data.first_chunk().context("a sector")?);
    if data == stamp(lun, block, first) {
        return Ok(first);
    }
    let words = data.chunks(SECTOR_BYTES).map(|sector| {
        let sequence = sector.first_chunk().copied().map(u64::from_le_bytes);
        let place = sector.get(8..).and_then(|rest| rest.first_chunk().copied());
        (sequence, place.map(u64::from_le_bytes))
    });
    let words: Vec<_> = words.collect();
    anyhow::bail!(
        "{lun} block {block} is torn or misplaced; its sectors say (write, place) {words:?}"
    )
}

/// What is known of one block: the newest write of each state.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    submitted: u64,
    acknowledged: u64,
    durable: u64,
}

/// What a LUN must hold.
#[derive(Clone, Debug)]
pub struct Ledger {
    lun: String,
    blocks: Vec<Known>,
}

impl Ledger {
    /// Of a LUN of so many blocks, all zeros.
    #[must_use]
    pub fn new(lun: &str, blocks: usize) -> Self {
        Self {
            lun: lun.to_owned(),
            blocks: vec![Known::default(); blocks],
        }
    }

    /// The LUN's name.
    #[must_use]
    pub fn lun(&self) -> &str {
        &self.lun
    }

    /// Write `sequence` of these blocks is going out. Sequences of a LUN only grow.
    pub fn submit(&mut self, blocks: &[u64], sequence: u64) {
        self.change(blocks, |known| known.submitted = sequence);
    }

    /// Write `sequence` of these blocks was acknowledged.
    pub fn acknowledge(&mut self, blocks: &[u64], sequence: u64, fua: bool) {
        self.change(blocks, |known| {
            known.acknowledged = sequence;
            if fua {
                known.durable = sequence;
            }
        });
    }

    /// What SYNCHRONIZE CACHE makes durable if it is sent now: for [`Self::synchronized`].
    #[must_use]
    pub fn acknowledged(&self) -> BTreeMap<u64, u64> {
        let blocks = (0_u64..).zip(&self.blocks);
        blocks
            .filter(|(_, known)| known.acknowledged > known.durable)
            .map(|(block, known)| (block, known.acknowledged))
            .collect()
    }

    /// That SYNCHRONIZE CACHE was acknowledged.
    pub fn synchronized(&mut self, writes: &BTreeMap<u64, u64>) {
        for (block, sequence) in writes {
            self.change(&[*block], |known| {
                known.durable = known.durable.max(*sequence);
            });
        }
    }

    /// The newest durable write of a block.
    #[must_use]
    pub fn durable(&self, block: u64) -> u64 {
        self.known(block).durable
    }

    /// The newest acknowledged write of a block, which every read that is sent from now on returns,
    /// or a newer one.
    #[must_use]
    pub fn newest(&self, block: u64) -> u64 {
        self.known(block).acknowledged
    }

    /// Whether nothing is in flight.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.blocks
            .iter()
            .all(|known| known.submitted == known.acknowledged)
    }

    /// Checks what a block holds: `oldest` or a newer write, none that was never sent.
    ///
    /// # Errors
    /// As [`sequence`], or it is the wrong write.
    pub fn check(&self, block: u64, oldest: u64, data: &[u8]) -> Result<()> {
        let found = sequence(&self.lun, block, data)?;
        let newest = self.known(block).submitted;
        ensure!(
            (oldest..=newest).contains(&found),
            "{} block {block} holds write {found}, not one of {oldest} to {newest}",
            self.lun
        );
        Ok(())
    }

    fn known(&self, block: u64) -> Known {
        let index = usize::try_from(block).unwrap_or(usize::MAX);
        self.blocks.get(index).copied().unwrap_or_default()
    }

    fn change(&mut self, blocks: &[u64], change: impl Fn(&mut Known)) {
        for block in blocks {
            let index = usize::try_from(*block).unwrap_or(usize::MAX);
            if let Some(known) = self.blocks.get_mut(index) {
                change(known);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_blocks_are_known_and_torn_and_misplaced_ones_are_noticed() {
        let block = stamp("a", 7, 3);
        assert_eq!(sequence("a", 7, &block).unwrap(), 3);
        assert_eq!(sequence("a", 7, &[0; BLOCK_BYTES]).unwrap(), 0);
        sequence("a", 8, &block).unwrap_err();
        sequence("b", 7, &block).unwrap_err();
        for torn_at in (SECTOR_BYTES..BLOCK_BYTES).step_by(SECTOR_BYTES) {
            let mut torn = stamp("a", 7, 4);
            torn[torn_at..].copy_from_slice(&block[torn_at..]);
            sequence("a", 7, &torn).unwrap_err();
        }
        let mut half_written = block;
        half_written[100..].fill(0);
        sequence("a", 7, &half_written).unwrap_err();
    }

    #[test]
    fn a_lost_write_is_noticed_once_it_was_durable() {
        let mut ledger = Ledger::new("a", 4);
        let holds = |ledger: &Ledger, sequence: u64| {
            let data = stamp("a", 2, sequence);
            ledger.check(2, ledger.durable(2), &data).is_ok()
        };
        ledger.submit(&[1, 2], 1);
        ledger.acknowledge(&[1, 2], 1, true);
        ledger.submit(&[2], 2);
        assert!(holds(&ledger, 1) && holds(&ledger, 2) && !holds(&ledger, 3));
        assert!(!ledger.is_settled());
        ledger.acknowledge(&[2], 2, false);
        assert!(ledger.is_settled() && holds(&ledger, 1));
        assert!(
            ledger
                .check(2, ledger.newest(2), &stamp("a", 2, 1))
                .is_err()
        );
        let sent = ledger.acknowledged();
        ledger.submit(&[2], 3);
        ledger.acknowledge(&[2], 3, false);
        ledger.synchronized(&sent);
        assert!(!holds(&ledger, 1) && holds(&ledger, 2) && holds(&ledger, 3));
        ledger.check(0, 0, &[0; BLOCK_BYTES]).unwrap();
        ledger.check(2, 2, &[0; BLOCK_BYTES]).unwrap_err();
    }
}

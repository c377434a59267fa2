//! A disk in the director's memory, empty at the start and gone at the end.
//!
//! Memory comes in pieces of [`PIECE_BYTES`] with the first write, and goes with the unmapping of
//! a whole piece: at most the size that the operator gave, and a table of 32 bytes a piece.

use std::sync::{PoisonError, RwLock};

use fabric_bypass::DataBuffers;
use scsi_target::{
    Allocation, BlockDevice, Extent, MediumError, MediumErrorKind, Provisioning, Transfer,
};

use super::{Backend, read_zeroes};

const PIECE_BYTES: usize = 64 * 1024;

/// A piece of the disk; empty: no memory, reads as zeroes.
type Piece = RwLock<Vec<u8>>;

/// See the module.
#[derive(Debug)]
pub(super) struct RamDisk {
    block_bytes: u32,
    block_count: u64,
    read_only: bool,
    pieces: Box<[Piece]>,
}

/// A part of one piece.
struct Part<'a> {
    piece: &'a Piece,
    /// Its first byte there.
    at: usize,
    bytes: usize,
}

impl RamDisk {
    /// Of `bytes`, at least one block.
    pub(super) fn new(bytes: u64, block_bytes: u32, read_only: bool) -> Self {
        let pieces = usize::try_from(bytes)
            .unwrap_or(usize::MAX)
            .div_ceil(PIECE_BYTES);
        Self {
            block_bytes,
            block_count: bytes / u64::from(block_bytes.max(1)),
            read_only,
            pieces: std::iter::repeat_with(Piece::default)
                .take(pieces)
                .collect(),
        }
    }

    /// Cuts a range of bytes at the borders of pieces.
    fn parts(&self, lba: u64, bytes: u64) -> Result<impl Iterator<Item = Part<'_>>, MediumError> {
        let out_of_range = || MediumError {
            kind: MediumErrorKind::OutOfRange,
            lba: Some(lba),
        };
        let start = super::offset(lba, self.block_bytes)?;
        let end = start.checked_add(bytes).ok_or_else(out_of_range)?;
        let as_index = |at: u64| usize::try_from(at).map_err(|_beyond| out_of_range());
        let (start, end) = (as_index(start)?, as_index(end)?);
        let pieces = self
            .pieces
            .get(start / PIECE_BYTES..end.div_ceil(PIECE_BYTES))
            .ok_or_else(out_of_range)?;
        let first = start - start % PIECE_BYTES;
        Ok(pieces.iter().zip(0..).map(move |(piece, index)| {
            let piece_start = first + index * PIECE_BYTES;
            let at = start.max(piece_start) - piece_start;
            let bytes = end.min(piece_start + PIECE_BYTES) - piece_start - at;
            Part { piece, at, bytes }
        }))
    }

    fn blocks_bytes(&self, blocks: u64) -> u64 {
        blocks.saturating_mul(self.block_bytes.into())
    }
}

impl Part<'_> {
    fn read(&self, to: &mut [u8]) {
        let piece = self.piece.read().unwrap_or_else(PoisonError::into_inner);
        match piece.get(self.at..self.at + self.bytes) {
            Some(from) => to.copy_from_slice(from),
            None => to.fill(0),
        }
    }

    fn read_to(&self, data: &dyn DataBuffers, offset: usize) -> bool {
        let piece = self.piece.read().unwrap_or_else(PoisonError::into_inner);
        match piece.get(self.at..self.at + self.bytes) {
            Some(from) => data.write_at(offset, from).is_ok(),
            None => read_zeroes(data, offset, self.bytes),
        }
    }

    /// Whether there was memory for it.
    fn write(&self, from: &[u8]) -> bool {
        self.change(|to| to.copy_from_slice(from)).is_some()
    }

    /// Whether there was memory for it, and data.
    fn write_from(&self, data: &dyn DataBuffers, offset: usize) -> bool {
        let written = self.change(|to| data.read_at(offset, to).is_ok());
        written.unwrap_or(false)
    }

    /// Has `write` write it; `None` without memory.
    fn change<T>(&self, write: impl FnOnce(&mut [u8]) -> T) -> Option<T> {
        let mut piece = self.piece.write().unwrap_or_else(PoisonError::into_inner);
        if piece.is_empty() {
            piece.try_reserve_exact(PIECE_BYTES).ok()?;
            piece.resize(PIECE_BYTES, 0);
        }
        piece.get_mut(self.at..self.at + self.bytes).map(write)
    }

    fn zero(&self) {
        let mut piece = self.piece.write().unwrap_or_else(PoisonError::into_inner);
        if self.bytes == PIECE_BYTES {
            *piece = Vec::new();
        } else if let Some(zeroed) = piece.get_mut(self.at..self.at + self.bytes) {
            zeroed.fill(0);
        }
    }
}

impl Backend for RamDisk {
    fn move_now(&self, transfer: Transfer, data: &dyn DataBuffers) -> bool {
        let (Transfer::Read { lba, bytes } | Transfer::Write { lba, bytes }) = transfer;
        let reads = matches!(transfer, Transfer::Read { .. });
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let Ok(mut parts) = self.parts(lba, bytes) else {
            return false;
        };
        let mut offset = 0;
        parts.all(|part| {
            let at = offset;
            offset += part.bytes;
            if reads {
                part.read_to(data, at)
            } else {
                part.write_from(data, at)
            }
        })
    }
}

impl BlockDevice for RamDisk {
    fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    fn block_count(&self) -> u64 {
        self.block_count
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn provisioning(&self) -> Provisioning {
        Provisioning::Thin
    }

    fn read(&self, lba: u64, mut buffer: &mut [u8]) -> Result<(), MediumError> {
        let bytes = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
        for part in self.parts(lba, bytes)? {
            let (now, later) = buffer.split_at_mut(part.bytes.min(buffer.len()));
            part.read(now);
            buffer = later;
        }
        Ok(())
    }

    fn write(&self, lba: u64, mut data: &[u8], _fua: bool) -> Result<(), MediumError> {
        let bytes = u64::try_from(data.len()).unwrap_or(u64::MAX);
        for part in self.parts(lba, bytes)? {
            let (now, later) = data.split_at(part.bytes.min(data.len()));
            if !part.write(now) {
                return Err(MediumError {
                    kind: MediumErrorKind::NoSpace,
                    lba: Some(lba),
                });
            }
            data = later;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), MediumError> {
        Ok(())
    }

    fn unmap(&self, lba: u64, blocks: u64) -> Result<(), MediumError> {
        let parts = self.parts(lba, self.blocks_bytes(blocks))?;
        parts.for_each(|part| part.zero());
        Ok(())
    }

    fn write_zeroes(&self, lba: u64, blocks: u64, _fua: bool) -> Result<(), MediumError> {
        self.unmap(lba, blocks)
    }

    fn extent(&self, lba: u64) -> Result<Extent, MediumError> {
        let bytes = self.blocks_bytes(self.block_count.saturating_sub(lba));
        let mut state = None;
        let mut same_bytes = 0;
        for part in self.parts(lba, bytes)? {
            let piece = part.piece.read().unwrap_or_else(PoisonError::into_inner);
            if *state.get_or_insert(piece.is_empty()) != piece.is_empty() {
                break;
            }
            same_bytes += part.bytes;
        }
        let same_bytes = u64::try_from(same_bytes).unwrap_or(u64::MAX);
        Ok(Extent {
            blocks: same_bytes / u64::from(self.block_bytes.max(1)),
            allocation: match state {
                Some(true) => Allocation::Deallocated,
                _ => Allocation::MappedOrUnknown,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(disk: &RamDisk) -> usize {
        let pieces = disk.pieces.iter();
        pieces.map(|piece| piece.read().unwrap().capacity()).sum()
    }

    #[test]
    fn a_model_of_bytes_agrees_across_pieces() {
        let disk = RamDisk::new(1 << 20, 512, false);
        let mut model = vec![0_u8; 1 << 20];
        let mut random = 7_u64;
        for _ in 0..2000 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let lba = random >> 33 & 2047;
            let blocks = ((random >> 50) % 300 + 1).min(2048 - lba);
            let [value, kind, ..] = random.to_be_bytes();
            let at = usize::try_from(lba * 512).unwrap();
            let range = at..at + usize::try_from(blocks * 512).unwrap();
            if kind % 3 == 0 {
                disk.unmap(lba, blocks).unwrap();
                model[range].fill(0);
            } else {
                disk.write(lba, &vec![value; range.len()], false).unwrap();
                model[range].fill(value);
            }
            let mut all = vec![1; 1 << 20];
            disk.read(0, &mut all).unwrap();
            assert!(all == model);
        }
        disk.unmap(0, 2048).unwrap();
        assert_eq!(memory(&disk), 0);
    }

    #[test]
    fn memory_is_taken_for_what_is_written_and_the_map_says_where() {
        let disk = RamDisk::new(1 << 30, 4096, false);
        assert_eq!(memory(&disk), 0);
        disk.write(40, &[7; 4096], false).unwrap();
        assert_eq!(memory(&disk), PIECE_BYTES);
        let extent = |lba| {
            let extent = disk.extent(lba).unwrap();
            (extent.blocks, extent.allocation)
        };
        assert_eq!(extent(1), (31, Allocation::Deallocated));
        assert_eq!(extent(33), (15, Allocation::MappedOrUnknown));
        assert_eq!(extent(48), ((1 << 18) - 48, Allocation::Deallocated));
        // A part of a piece is only zeroed.
        disk.unmap(40, 1).unwrap();
        assert_eq!(memory(&disk), PIECE_BYTES);
        disk.write_zeroes(32, 16, false).unwrap();
        assert_eq!(memory(&disk), 0);
    }

    #[test]
    fn nothing_is_beyond_the_end() {
        let disk = RamDisk::new(64 * 1024, 512, false);
        let mut block = [0; 512];
        for lba in [128, u64::MAX, u64::MAX / 512] {
            let kind = MediumErrorKind::OutOfRange;
            assert_eq!(disk.read(lba, &mut block).unwrap_err().kind, kind);
            assert_eq!(disk.write(lba, &block, false).unwrap_err().kind, kind);
            assert_eq!(disk.unmap(lba, 1).unwrap_err().kind, kind);
        }
    }
}

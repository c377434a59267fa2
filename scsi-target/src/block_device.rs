//! The medium behind a logical unit: what the core asks of a block device.
//!
//! The core does no I/O of its own. A file, a RAM disk or a remote volume implements
//! [`BlockDevice`]; every call names whole logical blocks that the core has already checked
//! against [`BlockDevice::block_count`].

use thiserror::Error;

/// Block sizes a logical unit may have, in bytes.
pub const BLOCK_BYTES_ALLOWED: [u32; 2] = [512, 4096];

/// How blocks get their backing store (SBC-3 4.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provisioning {
    /// Every block is backed from the start; UNMAP is not offered.
    Full,
    /// Blocks get their backing on the first write and may be unmapped. An unmapped block
    /// reads as zeroes (LBPRZ).
    Thin,
}

/// Whether a range of blocks has a backing store, as far as the device can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// The blocks are mapped, or the device cannot tell (SBC-3 5.6.2 uses one value for both).
    MappedOrUnknown,
    /// The blocks have no backing store and read as zeroes.
    Deallocated,
}

/// A run of blocks of one [`Allocation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length of the run in blocks, counted from the asked LBA. Zero is taken as "cannot tell".
    pub blocks: u64,
    /// State of all blocks of the run.
    pub allocation: Allocation,
}

/// A call to the medium failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("medium failed: {kind:?} at block {lba:?}")]
pub struct MediumError {
    /// What failed; decides the sense data.
    pub kind: MediumErrorKind,
    /// The first block that failed, if known. Blocks before it are done.
    pub lba: Option<u64>,
}

/// What went wrong on the medium, and the sense it becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MediumErrorKind {
    /// Unrecovered read error: MEDIUM ERROR 11/00.
    Read,
    /// Write error, also of a flush: MEDIUM ERROR 0C/00.
    Write,
    /// The store behind a thin device is full: DATA PROTECT 27/07.
    NoSpace,
    /// The medium refuses writes: DATA PROTECT 27/00.
    WriteProtected,
    /// The medium is away for now (path lost, being reopened): NOT READY 04/00.
    Unavailable,
    /// The range is beyond the device, for example after it shrank: ILLEGAL REQUEST 21/00.
    OutOfRange,
    /// Anything that is not the medium's fault: HARDWARE ERROR 44/00.
    Internal,
}

/// A random access array of logical blocks.
///
/// All methods take `&self` and are called from several threads at once; overlapping calls may
/// take effect in any order, as tasks of SIMPLE attribute may. Buffers are whole blocks.
pub trait BlockDevice: Send + Sync {
    /// Bytes in a logical block, one of [`BLOCK_BYTES_ALLOWED`]. Read once, at the creation of
    /// the logical unit.
    fn block_bytes(&self) -> u32;

    /// Number of logical blocks. May change; then call
    /// [`LogicalUnit::capacity_changed`](crate::LogicalUnit::capacity_changed).
    fn block_count(&self) -> u64;

    /// Whether the medium refuses every write.
    fn read_only(&self) -> bool;

    /// How blocks are backed. Read once, at the creation of the logical unit.
    fn provisioning(&self) -> Provisioning;

    /// Fills `buffer` with the blocks from `lba` on.
    ///
    /// # Errors
    /// [`MediumError`] with the first block that cannot be read.
    fn read(&self, lba: u64, buffer: &mut [u8]) -> Result<(), MediumError>;

    /// Writes `data` to the blocks from `lba` on; with `fua` it is durable on return.
    ///
    /// # Errors
    /// [`MediumError`] with the first block that was not written.
    fn write(&self, lba: u64, data: &[u8], fua: bool) -> Result<(), MediumError>;

    /// Makes every write durable that returned before this call.
    ///
    /// # Errors
    /// [`MediumError`] when some of them may be lost.
    fn flush(&self) -> Result<(), MediumError>;

    /// Takes the backing store from blocks, which read as zeroes from then on. Only called when
    /// [`Self::provisioning`] is [`Provisioning::Thin`].
    ///
    /// # Errors
    /// [`MediumError`] with the first block that still has its old content.
    fn unmap(&self, lba: u64, blocks: u64) -> Result<(), MediumError>;

    /// Makes blocks read as zeroes without taking their backing store.
    ///
    /// The default writes zeroes in pieces of at most 64 KiB.
    ///
    /// # Errors
    /// [`MediumError`] with the first block that was not written.
    fn write_zeroes(&self, lba: u64, blocks: u64, fua: bool) -> Result<(), MediumError> {
        static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];
        let block_bytes = u64::from(self.block_bytes()).max(1);
        let piece_blocks = (64 * 1024 / block_bytes).max(1);
        let mut done = 0;
        while done < blocks {
            let now = piece_blocks.min(blocks - done);
            let at = lba.checked_add(done);
            let zeroes = usize::try_from(now * block_bytes)
                .ok()
                .and_then(|n| ZEROES.get(..n));
            let (Some(at), Some(zeroes)) = (at, zeroes) else {
                return Err(MediumError {
                    kind: MediumErrorKind::Internal,
                    lba: at,
                });
            };
            self.write(at, zeroes, fua)?;
            done += now;
        }
        Ok(())
    }

    /// Most blocks that one [`Self::write`] changes wholly or not at all, wherever they are: also
    /// when the power fails, and as every read sees it. 0, the default: none. Read once, at the
    /// creation of the logical unit.
    fn atomic_write_blocks(&self) -> u32 {
        0
    }

    /// The state of the block at `lba` and of how many that follow it. The default cannot tell.
    ///
    /// # Errors
    /// [`MediumError`] when the map cannot be read.
    fn extent(&self, lba: u64) -> Result<Extent, MediumError> {
        let blocks = self.block_count().saturating_sub(lba);
        Ok(Extent {
            blocks,
            allocation: Allocation::MappedOrUnknown,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Implements only what it must, and notes the writes.
    struct Minimal(Mutex<Vec<(u64, usize, bool)>>);

    impl BlockDevice for Minimal {
        fn block_bytes(&self) -> u32 {
            4096
        }

        fn block_count(&self) -> u64 {
            100
        }

        fn read_only(&self) -> bool {
            false
        }

        fn provisioning(&self) -> Provisioning {
            Provisioning::Full
        }

        fn read(&self, _: u64, _: &mut [u8]) -> Result<(), MediumError> {
            Ok(())
        }

        fn write(&self, lba: u64, data: &[u8], fua: bool) -> Result<(), MediumError> {
            assert!(data.iter().all(|&byte| byte == 0));
            if lba == 26 {
                return Err(MediumError {
                    kind: MediumErrorKind::Write,
                    lba: Some(26),
                });
            }
            self.0.lock().unwrap().push((lba, data.len(), fua));
            Ok(())
        }

        fn flush(&self) -> Result<(), MediumError> {
            Ok(())
        }

        fn unmap(&self, _: u64, _: u64) -> Result<(), MediumError> {
            Ok(())
        }
    }

    #[test]
    fn default_write_zeroes_works_in_pieces_and_stops_at_an_error() {
        let device = Minimal(Mutex::new(Vec::new()));
        device.write_zeroes(3, 17, true).unwrap();
        assert_eq!(
            *device.0.lock().unwrap(),
            [(3, 65536, true), (19, 4096, true)]
        );
        let failed = device.write_zeroes(10, 40, false);
        assert_eq!(
            failed,
            Err(MediumError {
                kind: MediumErrorKind::Write,
                lba: Some(26)
            })
        );
        assert_eq!(device.0.lock().unwrap().last(), Some(&(10, 65536, false)));
    }

    #[test]
    fn default_extent_claims_nothing_about_the_rest_of_the_device() {
        let device = Minimal(Mutex::new(Vec::new()));
        let extent = device.extent(30).unwrap();
        assert_eq!(
            extent,
            Extent {
                blocks: 70,
                allocation: Allocation::MappedOrUnknown
            }
        );
    }
}

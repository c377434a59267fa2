//! Command descriptor blocks: reading big-endian fields without indexing.

use std::ops::Range;

/// Length of the longest CDB any supported command has, in bytes.
pub(crate) const CDB_BYTES_MAX: usize = 16;

/// The unsigned big-endian number in `range` of `bytes`; bytes that are not there read as zero
/// bytes in front, so callers check lengths first. At most eight bytes make sense.
pub(crate) fn be_uint(bytes: &[u8], range: Range<usize>) -> u64 {
    let field = bytes.get(range).unwrap_or_default();
    field
        .iter()
        .fold(0, |value, &byte| (value << 8) | u64::from(byte))
}

/// A CDB padded with zeroes to the longest supported length. What an initiator sends behind the
/// command's own length (virtio-scsi always carries 32 bytes) is cut off.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cdb([u8; CDB_BYTES_MAX]);

impl Cdb {
    /// Copies at most [`CDB_BYTES_MAX`] bytes.
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let mut cdb = [0; CDB_BYTES_MAX];
        for (to, from) in cdb.iter_mut().zip(bytes) {
            *to = *from;
        }
        Self(cdb)
    }

    /// All bytes.
    pub(crate) const fn bytes(&self) -> [u8; CDB_BYTES_MAX] {
        self.0
    }

    /// Byte 0.
    pub(crate) fn opcode(&self) -> u8 {
        self.0[0]
    }

    /// Bits 4..0 of byte 1, where commands with service actions keep them.
    pub(crate) fn service_action(&self) -> u8 {
        self.0[1] & 0x1F
    }

    /// One byte; zero beyond the end.
    pub(crate) fn byte(&self, at: usize) -> u8 {
        self.0.get(at).copied().unwrap_or(0)
    }

    /// Whether the bits of `mask` in byte `at` are not all zero.
    pub(crate) fn has(&self, at: usize, mask: u8) -> bool {
        self.byte(at) & mask != 0
    }

    /// A big-endian number.
    pub(crate) fn uint(&self, range: Range<usize>) -> u64 {
        be_uint(&self.0, range)
    }
}

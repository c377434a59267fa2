//! A device that reads zeroes and keeps nothing: what is left is the cost of everything else.

use fabric_bypass::DataBuffers;
use scsi_target::{BlockDevice, MediumError, Provisioning, Transfer};

use super::{Backend, read_zeroes};

/// See the module.
#[derive(Debug)]
pub(super) struct NullDevice {
    block_bytes: u32,
    block_count: u64,
    read_only: bool,
}

impl NullDevice {
    /// Of `bytes`, at least one block.
    pub(super) fn new(bytes: u64, block_bytes: u32, read_only: bool) -> Self {
        Self {
            block_bytes,
            block_count: bytes / u64::from(block_bytes.max(1)),
            read_only,
        }
    }
}

impl Backend for NullDevice {
    fn move_now(&self, transfer: Transfer, data: &dyn DataBuffers) -> bool {
        match transfer {
            Transfer::Read { bytes, .. } => read_zeroes(data, 0, bytes),
            Transfer::Write { .. } => true,
        }
    }
}

impl BlockDevice for NullDevice {
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
        Provisioning::Full
    }

    fn read(&self, _lba: u64, buffer: &mut [u8]) -> Result<(), MediumError> {
        buffer.fill(0);
        Ok(())
    }

    fn write(&self, _lba: u64, _data: &[u8], _fua: bool) -> Result<(), MediumError> {
        Ok(())
    }

    fn flush(&self) -> Result<(), MediumError> {
        Ok(())
    }

    fn unmap(&self, _lba: u64, _blocks: u64) -> Result<(), MediumError> {
        Ok(())
    }

    fn write_zeroes(&self, _lba: u64, _blocks: u64, _fua: bool) -> Result<(), MediumError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_zeroes_whatever_was_written() {
        let device = NullDevice::new(1 << 40, 4096, false);
        assert_eq!(
            (device.block_count(), device.block_bytes()),
            (1 << 28, 4096)
        );
        device.write((1 << 28) - 1, &[7; 4096], true).unwrap();
        let mut block = [1; 4096];
        device.read((1 << 28) - 1, &mut block).unwrap();
        assert_eq!(block, [0; 4096]);
    }
}

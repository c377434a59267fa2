//! Guest memory shared with the back end.

use std::fs::File;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

/// Added to guest physical addresses to get the "front-end virtual addresses" of the protocol.
///
/// The back end must never treat these as its own, so they are not ours either.
const FRONT_END_BASE: u64 = 0x7000_0000_0000;

/// A memfd of `bytes` that can shrink.
///
/// # Errors
/// If the kernel has none.
pub fn unsealed_memfd(bytes: u64) -> Result<File> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create("guest-ram", flags)?);
    file.set_len(bytes)?;
    Ok(file)
}

/// A memfd of `bytes` with the seals that QEMU's `memory-backend-memfd` sets.
///
/// # Errors
/// If the kernel has none.
pub fn sealed_memfd(bytes: u64) -> Result<File> {
    let file = unsealed_memfd(bytes)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file)
}

/// What the memory looks like.
#[derive(Debug, Clone)]
pub struct RamOptions {
    /// Guest physical address and size of each region, one file each.
    pub regions: Vec<(u64, u64)>,
    /// Seal the files against shrinking.
    pub sealed: bool,
}

impl Default for RamOptions {
    /// One sealed region of 4 MiB at 1 MiB.
    fn default() -> Self {
        Self {
            regions: vec![(0x10_0000, 0x40_0000)],
            sealed: true,
        }
    }
}

#[derive(Debug)]
struct Region {
    start: u64,
    bytes: u64,
    file: File,
}

/// Guest memory: files, our own mapping of them, and a simple allocator.
#[derive(Debug)]
pub struct GuestRam {
    regions: Vec<Region>,
    memory: GuestMemoryMmap,
    next: u64,
}

impl GuestRam {
    /// Makes the memory.
    ///
    /// # Errors
    /// If files or mappings cannot be had.
    pub fn new(options: &RamOptions) -> Result<Self> {
        let mut regions = Vec::new();
        let mut ranges = Vec::new();
        for &(start, bytes) in &options.regions {
            let file = if options.sealed {
                sealed_memfd(bytes)?
            } else {
                unsealed_memfd(bytes)?
            };
            let offset = FileOffset::new(file.try_clone()?, 0);
            ranges.push((GuestAddress(start), usize::try_from(bytes)?, Some(offset)));
            regions.push(Region { start, bytes, file });
        }
        let memory = GuestMemoryMmap::from_ranges_with_files(ranges)?;
        let next = regions.first().context("no region")?.start;
        Ok(Self {
            regions,
            memory,
            next,
        })
    }

    /// Takes `bytes` of the first region, aligned to `alignment`; never given back.
    ///
    /// # Errors
    /// If the region is used up.
    pub fn allocate(&mut self, bytes: u64, alignment: u64) -> Result<u64> {
        let address = self.next.next_multiple_of(alignment);
        let first = self.regions.first().context("no region")?;
        ensure!(
            address + bytes <= first.start + first.bytes,
            "guest memory is used up"
        );
        self.next = address + bytes;
        Ok(address)
    }

    /// Our mapping of the memory.
    #[must_use]
    pub const fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Copies `data` to guest physical address `address`.
    ///
    /// # Errors
    /// If that is no guest memory.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<()> {
        Ok(self.memory.write_slice(data, GuestAddress(address))?)
    }

    /// Copies `bytes` from guest physical address `address`.
    ///
    /// # Errors
    /// If that is no guest memory.
    pub fn read(&self, address: u64, bytes: usize) -> Result<Vec<u8>> {
        let mut data = vec![0; bytes];
        self.memory.read_slice(&mut data, GuestAddress(address))?;
        Ok(data)
    }

    /// Fills `data` from guest physical address `address`.
    ///
    /// # Errors
    /// If that is no guest memory.
    pub fn read_into(&self, address: u64, data: &mut [u8]) -> Result<()> {
        Ok(self.memory.read_slice(data, GuestAddress(address))?)
    }

    /// The front-end virtual address of a guest physical one.
    #[must_use]
    pub const fn front_end_address(address: u64) -> u64 {
        FRONT_END_BASE + address
    }

    /// The file of region `index`.
    #[must_use]
    pub fn file(&self, index: usize) -> Option<&File> {
        self.regions.get(index).map(|region| &region.file)
    }

    /// The memory table for SET_MEM_TABLE.
    #[must_use]
    pub fn table(&self) -> Vec<VhostUserMemoryRegionInfo> {
        self.regions
            .iter()
            .map(|region| VhostUserMemoryRegionInfo {
                guest_phys_addr: region.start,
                memory_size: region.bytes,
                userspace_addr: Self::front_end_address(region.start),
                mmap_offset: 0,
                mmap_handle: region.file.as_raw_fd(),
            })
            .collect()
    }
}

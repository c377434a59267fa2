//! The front-end's memory table: SET_MEM_TABLE and what ring addresses mean in it.
//!
//! Payload: `u32` number of regions, `u32` padding, then per region guest physical address, size,
//! front-end virtual address and offset into the file, each `u64`; one descriptor per region.

use std::os::fd::{AsFd, OwnedFd};

use super::descriptors::check_file;
use super::message::Payload;
use crate::Refusal;

/// Most regions of a table: what the daemon accepts. QEMU sends up to 8.
pub(super) const REGIONS_MAX: usize = 32;

const HEAD_BYTES: usize = 8;
const REGION_BYTES: usize = 32;

#[derive(Debug, Clone, Copy)]
struct Region {
    guest_address: u64,
    bytes: u64,
    front_end_address: u64,
}

/// The regions now in force.
#[derive(Debug)]
pub(super) struct MemoryTable {
    allow_unsealed: bool,
    regions: Vec<Region>,
}

/// A table that passed all checks.
#[derive(Debug)]
pub(super) struct CheckedTable {
    regions: Vec<Region>,
}

impl MemoryTable {
    pub(super) const fn new(allow_unsealed: bool) -> Self {
        Self {
            allow_unsealed,
            regions: Vec::new(),
        }
    }

    /// Checks a SET_MEM_TABLE message.
    pub(super) fn check(
        &self,
        body: &Payload<'_>,
        descriptors: &[OwnedFd],
    ) -> Result<CheckedTable, Refusal> {
        let count = body.u32_at(0)?;
        let length = usize::try_from(count).unwrap_or(usize::MAX);
        if length == 0 || length > REGIONS_MAX {
            let most = u32::try_from(REGIONS_MAX).unwrap_or(u32::MAX);
            return Err(Refusal::RegionCount { count, most });
        }
        if body.len() != HEAD_BYTES + length * REGION_BYTES {
            return Err(body.wrong_size());
        }
        if descriptors.len() != length {
            return Err(Refusal::DescriptorCount {
                request: body.request().name(),
                count: descriptors.len(),
                expected: length,
            });
        }
        let mut regions = Vec::with_capacity(length);
        for (number, file) in descriptors.iter().enumerate() {
            let at = HEAD_BYTES + number * REGION_BYTES;
            let region = Region {
                guest_address: body.u64_at(at)?,
                bytes: body.u64_at(at + 8)?,
                front_end_address: body.u64_at(at + 16)?,
            };
            let offset = body.u64_at(at + 24)?;
            let end = region.check(offset)?;
            check_file(file.as_fd(), region.guest_address, end, self.allow_unsealed)?;
            regions.push(region);
        }
        regions.sort_unstable_by_key(|region| region.guest_address);
        for pair in regions.array_windows() {
            let [first, second] = pair;
            // Ends were checked not to wrap.
            if first.guest_address + first.bytes > second.guest_address {
                return Err(Refusal::RegionsOverlap {
                    first: first.guest_address,
                    second: second.guest_address,
                });
            }
        }
        Ok(CheckedTable { regions })
    }

    /// Puts a table in force that the daemon has taken.
    pub(super) fn accept(&mut self, table: CheckedTable) {
        self.regions = table.regions;
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// First guest physical address beyond all regions; 0 without any.
    pub(super) fn end(&self) -> u64 {
        self.regions
            .iter()
            .map(|region| region.guest_address + region.bytes)
            .max()
            .unwrap_or(0)
    }

    /// Whether a front-end virtual address lies in a region.
    pub(super) fn contains(&self, address: u64) -> bool {
        self.regions.iter().any(|region| {
            address
                .checked_sub(region.front_end_address)
                .is_some_and(|offset| offset < region.bytes)
        })
    }
}

impl Region {
    /// Checks the numbers alone; returns the file size needed.
    fn check(&self, offset: u64) -> Result<u64, Refusal> {
        let refuse = |problem| Refusal::Region {
            guest_address: self.guest_address,
            problem,
        };
        if self.bytes == 0 {
            return Err(refuse("it is empty"));
        }
        if usize::try_from(self.bytes).is_err() {
            return Err(refuse("it does not fit into this process"));
        }
        for start in [self.guest_address, self.front_end_address] {
            if start.checked_add(self.bytes).is_none() {
                return Err(refuse("it wraps around the end of the address space"));
            }
        }
        offset
            .checked_add(self.bytes)
            .ok_or_else(|| refuse("its file offset wraps around"))
    }
}

//! The rings as the front-end has set them up, and what it may do with them when.
//!
//! ```text
//!          SET_VRING_NUM, _BASE, _ADDR            SET_VRING_KICK
//! stopped ────────────────────────────> set up ──────────────────> kicked ("running")
//!    ^                                                                |
//!    └──────────────── GET_VRING_BASE, RESET_DEVICE ──────────────────┘
//! ```
//! SET_VRING_ENABLE is independent of these; a ring is worked on while kicked and enabled.

use std::os::fd::OwnedFd;

use super::memory_table::MemoryTable;
use super::message::Payload;
use crate::Refusal;

/// SET_VRING_KICK, _CALL, _ERR: no descriptor comes with the message.
const NO_DESCRIPTOR: u64 = 1 << 8;

#[derive(Debug, Clone)]
struct Ring {
    size: u32,
    addresses: Option<[u64; 3]>,
    kicked: bool,
    enabled: bool,
}

/// What SET_VRING_ADDR means for a ring.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Addresses {
    /// To be set.
    New,
    /// The ring runs with exactly these.
    Unchanged,
}

/// All rings of the device.
#[derive(Debug)]
pub(super) struct Rings {
    rings: Vec<Ring>,
    size_max: u16,
}

impl Rings {
    pub(super) fn new(count: usize, size_max: u16) -> Self {
        let ring = Ring {
            size: u32::from(size_max),
            addresses: None,
            kicked: false,
            enabled: false,
        };
        Self {
            rings: vec![ring; count],
            size_max,
        }
    }

    /// The ring index of a message that begins with one of 32 bits.
    pub(super) fn index(&self, body: &Payload<'_>) -> Result<usize, Refusal> {
        self.in_range(body, u64::from(body.u32_at(0)?))
    }

    /// The ring index of a message with a descriptor, whose presence must be as announced.
    pub(super) fn descriptor_index(
        &self,
        body: &Payload<'_>,
        descriptors: &[OwnedFd],
    ) -> Result<usize, Refusal> {
        let value = body.u64_at(0)?;
        // Bits 9 and up are not defined; a front-end that sets them means another ring.
        let index = self.in_range(body, value & !NO_DESCRIPTOR)?;
        let expected = usize::from(value & NO_DESCRIPTOR == 0);
        if descriptors.len() != expected {
            return Err(Refusal::DescriptorCount {
                request: body.request().name(),
                count: descriptors.len(),
                expected,
            });
        }
        Ok(index)
    }

    fn in_range(&self, body: &Payload<'_>, index: u64) -> Result<usize, Refusal> {
        let count = self.rings.len();
        usize::try_from(index)
            .ok()
            .filter(|index| *index < count)
            .ok_or_else(|| Refusal::RingIndex {
                request: body.request().name(),
                index,
                count,
            })
    }

    fn ring(&mut self, body: &Payload<'_>) -> Result<(usize, &mut Ring), Refusal> {
        let index = self.index(body)?;
        let count = self.rings.len();
        let ring = self
            .rings
            .get_mut(index)
            .ok_or_else(|| Refusal::RingIndex {
                request: body.request().name(),
                index: u64::try_from(index).unwrap_or(u64::MAX),
                count,
            })?;
        Ok((index, ring))
    }

    /// SET_VRING_NUM.
    pub(super) fn set_size(&mut self, body: &Payload<'_>) -> Result<(), Refusal> {
        let most = self.size_max;
        let size = body.u32_at(4)?;
        let (index, ring) = self.ring(body)?;
        if !size.is_power_of_two() || size > u32::from(most) {
            return Err(Refusal::RingSize { index, size, most });
        }
        if ring.kicked && size != ring.size {
            return Err(running(body, index));
        }
        ring.size = size;
        Ok(())
    }

    /// SET_VRING_BASE.
    pub(super) fn check_base(&mut self, body: &Payload<'_>) -> Result<(), Refusal> {
        let base = body.u32_at(4)?;
        let (index, ring) = self.ring(body)?;
        if base > u32::from(u16::MAX) {
            return Err(Refusal::RingBase { index, base });
        }
        if ring.kicked {
            return Err(running(body, index));
        }
        Ok(())
    }

    /// SET_VRING_ADDR: `u32` index, `u32` flags, then descriptor table, used ring, available ring
    /// and log address, each `u64`.
    pub(super) fn set_addresses(
        &mut self,
        body: &Payload<'_>,
        table: &MemoryTable,
    ) -> Result<Addresses, Refusal> {
        let [descriptors, used, available] = [body.u64_at(8)?, body.u64_at(16)?, body.u64_at(24)?];
        let (index, ring) = self.ring(body)?;
        let parts = [
            ("descriptor table", descriptors, 16),
            ("used ring", used, 4),
            ("available ring", available, 2),
        ];
        for (part, address, alignment) in parts {
            let problem = if address % alignment != 0 {
                "it is not aligned"
            } else if table.is_empty() {
                "there is no memory table yet; is guest memory shared (share=on)?"
            } else if !table.contains(address) {
                "it is not in the memory table"
            } else {
                continue;
            };
            return Err(Refusal::RingAddress {
                index,
                part,
                address,
                problem,
            });
        }
        let addresses = Some([descriptors, used, available]);
        if ring.kicked {
            if ring.addresses == addresses {
                return Ok(Addresses::Unchanged);
            }
            return Err(running(body, index));
        }
        ring.addresses = addresses;
        Ok(Addresses::New)
    }

    /// SET_VRING_ENABLE.
    pub(super) fn enable(&mut self, body: &Payload<'_>) -> Result<(usize, bool), Refusal> {
        let value = body.u32_at(4)?;
        let (index, _ring) = self.ring(body)?;
        match value {
            0 => Ok((index, false)),
            1 => Ok((index, true)),
            _ => Err(Refusal::EnableValue { index, value }),
        }
    }

    /// SET_VRING_KICK: whether the ring may start.
    pub(super) fn check_start(&self, index: usize, polled: bool) -> Result<(), Refusal> {
        let problem = if polled {
            "polling without a kick event is not supported"
        } else if self
            .rings
            .get(index)
            .is_none_or(|ring| ring.addresses.is_none())
        {
            "the ring has no addresses yet"
        } else {
            return Ok(());
        };
        Err(Refusal::RingState {
            request: "SET_VRING_KICK",
            index,
            problem,
        })
    }

    pub(super) fn is_kicked(&self, index: usize) -> bool {
        self.rings.get(index).is_some_and(|ring| ring.kicked)
    }

    pub(super) fn is_enabled(&self, index: usize) -> bool {
        self.rings.get(index).is_some_and(|ring| ring.enabled)
    }

    pub(super) fn first_running(&self) -> Option<usize> {
        self.rings.iter().position(|ring| ring.kicked)
    }

    pub(super) fn started(&mut self, index: usize) {
        if let Some(ring) = self.rings.get_mut(index) {
            ring.kicked = true;
        }
    }

    pub(super) fn stopped(&mut self, index: usize) {
        if let Some(ring) = self.rings.get_mut(index) {
            ring.kicked = false;
        }
    }

    pub(super) fn set_enabled(&mut self, index: usize, enabled: bool) {
        if let Some(ring) = self.rings.get_mut(index) {
            ring.enabled = enabled;
        }
    }

    pub(super) fn enable_all(&mut self) {
        for ring in &mut self.rings {
            ring.enabled = true;
        }
    }

    /// RESET_DEVICE: every ring is stopped and disabled.
    pub(super) fn reset(&mut self) {
        for ring in &mut self.rings {
            ring.kicked = false;
            ring.enabled = false;
        }
    }
}

fn running(body: &Payload<'_>, index: usize) -> Refusal {
    Refusal::RingState {
        request: body.request().name(),
        index,
        problem: "the ring is running; it must be stopped by GET_VRING_BASE first",
    }
}

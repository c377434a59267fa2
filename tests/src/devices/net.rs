//! A virtio-net driver without a guest (virtio 1.2 section 5.1).

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use fabric_payload::ethernet::{HEADER_BYTES, VirtioNetHeader};

use crate::front_end::{Buffer, Guest, GuestOptions, RamOptions, Used};

/// Bytes of one receive buffer and of one transmit slot: header and a frame of 1514 bytes fit.
pub const SLOT_BYTES: u32 = 2048;
/// Slots of a guest.
const SLOTS: u64 = 1024;

/// A frame as the guest got it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// The header in front of it.
    pub header: VirtioNetHeader,
    /// The frame, destination MAC first.
    pub frame: Vec<u8>,
    /// Bytes that the device wrote into each buffer.
    pub lengths: Vec<u32>,
}

/// A guest with a network driver.
#[derive(Debug)]
pub struct NetGuest {
    /// Guest and rings: queue 2n receives, queue 2n+1 transmits.
    pub guest: Guest,
    free: Vec<u64>,
    /// Buffers in the device's hands, by queue and head.
    lent: BTreeMap<(usize, u16), Vec<Buffer>>,
}

impl NetGuest {
    /// Connects a driver with `pairs` queue pairs and rings of 256 entries.
    ///
    /// Returns when all rings run, so that frames find the receive rings from now on.
    ///
    /// # Errors
    /// The back end refuses something.
    pub fn connect(path: &Path, pairs: usize) -> Result<Self> {
        Self::connect_with(path, pairs, 0)
    }

    /// As [`connect`](Self::connect), but without some of the features.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn connect_with(path: &Path, pairs: usize, without_features: u64) -> Result<Self> {
        let default = GuestOptions::default();
        let options = GuestOptions {
            queues: 2 * pairs,
            queue_size: 256,
            without_features: default.without_features | without_features,
            ram: RamOptions {
                regions: vec![(0x10_0000, 0x80_0000)],
                sealed: true,
            },
        };
        let mut guest = Guest::connect(path, &options)?;
        let slots = guest.ram.allocate(SLOTS * u64::from(SLOT_BYTES), 4096)?;
        let free = (0..SLOTS)
            .map(|slot| slots + slot * u64::from(SLOT_BYTES))
            .collect();
        let mut net = Self {
            guest,
            free,
            lent: BTreeMap::new(),
        };
        for pair in 0..pairs {
            net.wait_running(pair)?;
        }
        Ok(net)
    }

    /// The rings of a pair share a worker, which takes their starts in order: when it returns a
    /// chain of the transmit ring (a runt, which goes nowhere), both run.
    ///
    /// # Errors
    /// The chain does not come back in time.
    pub fn wait_running(&mut self, pair: usize) -> Result<()> {
        let slot = self.slot()?;
        self.guest
            .queue(2 * pair + 1)?
            .transact(&[Buffer::readable(slot, 1)])?;
        self.free.push(slot);
        Ok(())
    }

    /// A free slot, [`SLOT_BYTES`] of guest memory.
    ///
    /// # Errors
    /// All are in use.
    pub fn slot(&mut self) -> Result<u64> {
        self.free.pop().context("all slots are in use")
    }

    /// Makes `count` receive buffers of [`SLOT_BYTES`] available.
    ///
    /// # Errors
    /// Ring or slots are used up.
    pub fn post(&mut self, pair: usize, count: usize) -> Result<()> {
        for _buffer in 0..count {
            let slot = self.slot()?;
            self.post_buffers(pair, &[Buffer::writable(slot, SLOT_BYTES)])?;
        }
        Ok(())
    }

    /// Makes one receive buffer of `buffers` available.
    ///
    /// # Errors
    /// The ring is used up.
    pub fn post_buffers(&mut self, pair: usize, buffers: &[Buffer]) -> Result<()> {
        let head = self.guest.queue(2 * pair)?.submit(buffers)?;
        self.lent.insert((2 * pair, head), buffers.to_vec());
        Ok(())
    }

    /// Waits for the next frame; its buffers become free.
    ///
    /// # Errors
    /// None comes in time, or the device's counts do not fit together.
    pub fn receive(&mut self, pair: usize) -> Result<Received> {
        let first = self.guest.queue(2 * pair)?.wait()?;
        self.received(pair, first)
    }

    /// The next frame, if it is there.
    ///
    /// # Errors
    /// As [`Self::receive`].
    pub fn poll(&mut self, pair: usize) -> Result<Option<Received>> {
        let first = self.guest.queue(2 * pair)?.poll()?;
        first.map(|first| self.received(pair, first)).transpose()
    }

    /// The frame whose first buffer is `used`.
    fn received(&mut self, pair: usize, mut used: Used) -> Result<Received> {
        let queue = 2 * pair;
        let mut bytes = Vec::new();
        let mut lengths = Vec::new();
        let mut buffers_left = 1;
        loop {
            let buffers = self
                .lent
                .remove(&(queue, used.head))
                .context("buffer was not lent")?;
            let mut left = used.bytes;
            for buffer in &buffers {
                let now = left.min(buffer.bytes);
                bytes.extend(self.guest.ram.read(buffer.address, usize::try_from(now)?)?);
                left -= now;
                if buffer.bytes == SLOT_BYTES {
                    self.free.push(buffer.address);
                }
            }
            ensure!(left == 0, "device wrote more than the buffer holds");
            if lengths.is_empty() {
                let (header, _) = VirtioNetHeader::split(&bytes).context("no header")?;
                buffers_left = usize::from(header.num_buffers.get());
                ensure!(buffers_left > 0, "num_buffers is 0");
            }
            lengths.push(used.bytes);
            buffers_left -= 1;
            if buffers_left == 0 {
                break;
            }
            used = self.guest.queue(queue)?.wait()?;
        }
        let (header, frame) = VirtioNetHeader::split(&bytes).context("no header")?;
        Ok(Received {
            header,
            frame: frame.to_vec(),
            lengths,
        })
    }

    /// Sends `header` and `frame` in one buffer; takes back what was sent before.
    ///
    /// # Errors
    /// Ring or slots are used up.
    pub fn transmit(&mut self, pair: usize, header: &[u8], frame: &[u8]) -> Result<()> {
        self.reclaim(pair)?;
        let slot = self.slot()?;
        let bytes = [header, frame].concat();
        ensure!(
            bytes.len() <= usize::try_from(SLOT_BYTES)?,
            "frame is too long for a slot"
        );
        self.guest.ram.write(slot, &bytes)?;
        let buffer = Buffer::readable(slot, u32::try_from(bytes.len())?);
        let queue = self.guest.queue(2 * pair + 1)?;
        let head = queue.submit(&[buffer])?;
        queue.kick()?;
        self.lent.insert((2 * pair + 1, head), vec![buffer]);
        Ok(())
    }

    /// Sends a frame that asks for nothing.
    ///
    /// # Errors
    /// As [`transmit`](Self::transmit).
    pub fn send(&mut self, pair: usize, frame: &[u8]) -> Result<()> {
        self.transmit(pair, &[0; HEADER_BYTES], frame)
    }

    /// Takes back the buffers of frames that have been sent; returns how many.
    ///
    /// # Errors
    /// The device returned nonsense.
    pub fn reclaim(&mut self, pair: usize) -> Result<usize> {
        let mut count = 0;
        while let Some(used) = self.guest.queue(2 * pair + 1)?.poll()? {
            self.returned(pair, used.head)?;
            count += 1;
        }
        Ok(count)
    }

    /// Waits until the buffer of one more frame comes back.
    ///
    /// # Errors
    /// None comes in time.
    pub fn wait_sent(&mut self, pair: usize) -> Result<()> {
        let used = self.guest.queue(2 * pair + 1)?.wait()?;
        ensure!(used.bytes == 0, "device wrote into a transmit buffer");
        self.returned(pair, used.head)
    }

    /// Frames that the device has not sent yet.
    #[must_use]
    pub fn unsent(&self, pair: usize) -> usize {
        self.lent
            .keys()
            .filter(|(queue, _)| *queue == 2 * pair + 1)
            .count()
    }

    fn returned(&mut self, pair: usize, head: u16) -> Result<()> {
        let buffers = self
            .lent
            .remove(&(2 * pair + 1, head))
            .context("buffer was not lent")?;
        self.free
            .extend(buffers.into_iter().map(|buffer| buffer.address));
        Ok(())
    }
}

/// A frame to `to`, from `from`, whose payload is `number` and a pattern, `bytes` in all.
#[must_use]
pub fn frame(to: [u8; 6], from: [u8; 6], number: u32, bytes: usize) -> Vec<u8> {
    let mut frame = [to, from].concat();
    // EtherType for local experiments (IEEE 802).
    frame.extend([0x88, 0xb5]);
    frame.extend(number.to_be_bytes());
    let pattern = number.to_le_bytes();
    frame.extend(
        pattern
            .iter()
            .cycle()
            .take(bytes.saturating_sub(frame.len())),
    );
    frame
}

/// The number in a frame made by [`frame`].
#[must_use]
pub fn number(frame: &[u8]) -> Option<u32> {
    frame
        .get(14..)?
        .first_chunk()
        .map(|bytes| u32::from_be_bytes(*bytes))
}

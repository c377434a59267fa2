//! A vNIC as a driver without a guest sees it: transmit chains that are laid out once and receive
//! buffers that go straight back, in batches, so that a frame costs the driver next to nothing and
//! the figure is the back end's.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use orimono_tests::front_end::{
    Buffer, DESC_WRITE, Guest, GuestOptions, PATIENCE, RamOptions, Used,
};

/// Entries of a ring.
const QUEUE_SIZE: u16 = 256;
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// What a ring holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// Of one buffer.
    pub(super) slot_bytes: u32,
    /// Buffers of each ring, at most [`QUEUE_SIZE`].
    pub(super) slots: u16,
}

/// A driver with one queue pair that looks at its rings all the time.
#[derive(Debug)]
pub(super) struct Port {
    guest: Guest,
    shape: Shape,
    /// The transmit slots; the receive slots are behind them.
    slots: u64,
    /// Transmit chains that the device does not have.
    idle: Vec<u16>,
    /// Bytes of header and frame, as sent and as expected.
    bytes: u32,
    used: Vec<Used>,
    heads: Vec<u16>,
}

impl Port {
    /// Connects to the back end at `path` with all receive buffers made available.
    ///
    /// # Errors
    /// The back end refuses something.
    pub(super) fn connect(path: &Path, shape: Shape) -> Result<Self> {
        let ring_bytes = u64::from(shape.slots) * u64::from(shape.slot_bytes);
        let options = GuestOptions {
            queues: 2,
            queue_size: QUEUE_SIZE,
            ram: RamOptions {
                regions: vec![(0x10_0000, 2 * ring_bytes + (1 << 20))],
                sealed: true,
            },
            ..GuestOptions::default()
        };
        let mut guest = Guest::connect(path, &options)?;
        let slots = guest.ram.allocate(2 * ring_bytes, 4096)?;
        // A runt, which goes nowhere: when it is back both rings run.
        let runt = [Buffer::readable(slots, 1)];
        guest.queue(TRANSMIT)?.transact(&runt)?;
        let receive = guest.queue(RECEIVE)?;
        for head in 0..shape.slots {
            let at = slots + ring_bytes + u64::from(head) * u64::from(shape.slot_bytes);
            receive.write_descriptor(head, at, shape.slot_bytes, DESC_WRITE, 0)?;
        }
        let heads: Vec<u16> = (0..shape.slots).collect();
        receive.publish_all(&heads)?;
        receive.kick()?;
        Ok(Self {
            guest,
            shape,
            slots,
            idle: heads,
            bytes: 0,
            used: Vec::new(),
            heads: Vec::new(),
        })
    }

    /// From now on every frame that is sent is `payload`, and those of its length are counted.
    ///
    /// # Errors
    /// The device keeps a frame, or `payload` does not fit into a slot.
    pub(super) fn lay_out(&mut self, payload: &[u8]) -> Result<()> {
        self.drain()?;
        self.bytes = u32::try_from(payload.len())?;
        ensure!(self.bytes <= self.shape.slot_bytes, "frame is too long");
        for head in 0..self.shape.slots {
            let at = self.slots + u64::from(head) * u64::from(self.shape.slot_bytes);
            self.guest.ram.write(at, payload)?;
            let ring = self.guest.queue(TRANSMIT)?;
            ring.write_descriptor(head, at, self.bytes, 0, 0)?;
        }
        Ok(())
    }

    fn reclaim(&mut self) -> Result<()> {
        self.used.clear();
        self.guest.queue(TRANSMIT)?.poll_all(&mut self.used)?;
        self.idle.extend(self.used.iter().map(|used| used.head));
        Ok(())
    }

    /// Sends as many frames as the ring takes, at most `most`; returns how many.
    ///
    /// # Errors
    /// The device returned nonsense.
    pub(super) fn send(&mut self, most: usize) -> Result<u64> {
        self.reclaim()?;
        let kept = self.idle.len().saturating_sub(most);
        let heads = self.idle.get(kept..).unwrap_or_default();
        if heads.is_empty() {
            return Ok(0);
        }
        let ring = self.guest.queue(TRANSMIT)?;
        if ring.publish_all(heads)? {
            ring.kick()?;
        }
        let sent = u64::try_from(heads.len())?;
        self.idle.truncate(kept);
        Ok(sent)
    }

    /// Takes what has arrived; returns how many frames have the length of those that are sent.
    ///
    /// # Errors
    /// The device returned nonsense.
    pub(super) fn receive(&mut self) -> Result<u64> {
        self.used.clear();
        let ring = self.guest.queue(RECEIVE)?;
        ring.poll_all(&mut self.used)?;
        if self.used.is_empty() {
            return Ok(0);
        }
        self.heads.clear();
        self.heads.extend(self.used.iter().map(|used| used.head));
        if ring.publish_all(&self.heads)? {
            ring.kick()?;
        }
        let expected = self.used.iter().filter(|used| used.bytes == self.bytes);
        Ok(u64::try_from(expected.count())?)
    }

    /// Waits until one frame at least has arrived.
    ///
    /// # Errors
    /// None does.
    pub(super) fn wait(&mut self) -> Result<()> {
        patiently("no frame arrives", || Ok(self.receive()? > 0))
    }

    /// Waits until the device has taken every frame.
    ///
    /// # Errors
    /// It does not.
    pub(super) fn drain(&mut self) -> Result<()> {
        patiently("the device keeps a frame", || {
            self.reclaim()?;
            Ok(self.idle.len() == usize::from(self.shape.slots))
        })
    }
}

/// Looks until `done`, with few looks at the clock.
fn patiently(otherwise: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    let mut looks = 0_u32;
    while !done().with_context(|| otherwise.to_owned())? {
        looks = looks.wrapping_add(1);
        if looks.is_multiple_of(1 << 12) {
            ensure!(Instant::now() < end, "{otherwise}");
        }
        std::hint::spin_loop();
    }
    Ok(())
}

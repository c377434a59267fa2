//! A disk as a driver without a guest sees it: chains that are laid out once, so that a command
//! costs the driver a few stores and the figure is the back end's.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use orimono_tests::devices::scsi::{LUN0, REQUEST_BYTES, REQUESTS, RESPONSE_BYTES};
use orimono_tests::front_end::{
    DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Guest, GuestOptions, PATIENCE, RamOptions,
};

use super::{BLOCK_BYTES, LUN_BYTES, Work};

/// Entries of a ring: no back end of the comparison takes less.
pub(super) const QUEUE_SIZE: u16 = 128;
/// Room for the data of one command.
const DATA_BYTES: u32 = 128 * 1024;
/// Of one command: a page for request, response and table, and its data.
const SLOT_BYTES: u64 = 4096 + DATA_BYTES as u64;
const RESPONSE_OFFSET: u64 = 1024;
const TABLE_OFFSET: u64 = 2048;
const DATA_OFFSET: u64 = 4096;
/// Where the LBA of READ(10) and WRITE(10) stands in a request.
const LBA_OFFSET: u64 = 19 + 2;
/// Where the response ends with status and response code.
const STATUS_OFFSET: u64 = 10;
/// Completions between two looks at the clock.
const CLOCK_EVERY: u64 = 64;

/// How the driver learns that a command has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notice {
    /// It looks all the time.
    Polled,
    /// It sleeps until the device signals.
    Interrupt,
}

/// What a slice of work came to.
#[derive(Debug, Default, Clone)]
pub(super) struct Slice {
    pub(super) commands: u64,
    pub(super) seconds: f64,
    /// Of each command, microseconds; only at queue depth 1.
    pub(super) latencies: Vec<f64>,
}

/// A driver with one request ring of [`QUEUE_SIZE`] entries.
#[derive(Debug)]
pub(super) struct Disk {
    guest: Guest,
    slots: u64,
    prepared: Option<Work>,
    next_block: u32,
}

impl Disk {
    /// Connects to the back end at `path` and gets unit attentions out of the way.
    ///
    /// # Errors
    /// The back end refuses something.
    pub(super) fn connect(path: &Path) -> Result<Self> {
        let slots_bytes = u64::from(QUEUE_SIZE) * SLOT_BYTES;
        let options = GuestOptions {
            queues: REQUESTS + 1,
            queue_size: QUEUE_SIZE,
            ram: RamOptions {
                regions: vec![(0x10_0000, slots_bytes + (1 << 20))],
                sealed: true,
            },
            ..GuestOptions::default()
        };
        let mut guest = Guest::connect(path, &options)?;
        let slots = guest.ram.allocate(slots_bytes, 4096)?;
        let mut disk = Self {
            guest,
            slots,
            prepared: None,
            next_block: 0,
        };
        for _attempt in 0..8 {
            if disk.is_ready()? {
                return Ok(disk);
            }
        }
        anyhow::bail!("the disk at {} does not become ready", path.display())
    }

    /// TEST UNIT READY.
    fn is_ready(&mut self) -> Result<bool> {
        self.lay_out(0, &[0; 6], 0, false)?;
        self.publish(0)?;
        let ring = self.guest.queue(REQUESTS)?;
        let end = Instant::now() + PATIENCE;
        // Back ends on old crates lose a kick that comes while the ring is being started.
        while ring.poll()?.is_none() {
            ensure!(Instant::now() < end, "TEST UNIT READY does not end");
            ring.kick()?;
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(self.status(0)? == 0)
    }

    fn slot(&self, head: u16) -> u64 {
        self.slots + u64::from(head) * SLOT_BYTES
    }

    /// Writes the request and the chain of `head`.
    fn lay_out(&mut self, head: u16, cdb: &[u8], bytes: u32, write: bool) -> Result<()> {
        let slot = self.slot(head);
        let mut request = vec![0; REQUEST_BYTES];
        let id = u64::from(head).to_le_bytes();
        let fields = LUN0.iter().chain(&id).chain(&[0; 3]).chain(cdb);
        for (room, byte) in request.iter_mut().zip(fields) {
            *room = *byte;
        }
        self.guest.ram.write(slot, &request)?;
        let request = (slot, u32::try_from(REQUEST_BYTES)?, 0);
        let response = (slot + RESPONSE_OFFSET, RESPONSE_BYTES, DESC_WRITE);
        let data = (
            slot + DATA_OFFSET,
            bytes,
            if write { 0 } else { DESC_WRITE },
        );
        let descriptors = match (bytes, write) {
            (0, _) => vec![request, response],
            (_, true) => vec![request, data, response],
            (_, false) => vec![request, response, data],
        };
        let mut table = Vec::new();
        for (number, (address, bytes, flags)) in (1_u16..).zip(&descriptors) {
            let more = usize::from(number) < descriptors.len();
            let flags = flags | (u16::from(more) * DESC_NEXT);
            table.extend(address.to_le_bytes());
            table.extend(bytes.to_le_bytes());
            table.extend(flags.to_le_bytes());
            table.extend(number.to_le_bytes());
        }
        self.guest.ram.write(slot + TABLE_OFFSET, &table)?;
        let table_bytes = u32::try_from(table.len())?;
        let ring = self.guest.queue(REQUESTS)?;
        ring.write_descriptor(head, slot + TABLE_OFFSET, table_bytes, DESC_INDIRECT, 0)
    }

    fn prepare(&mut self, work: Work) -> Result<()> {
        if self.prepared == Some(work) {
            return Ok(());
        }
        let [high, low] = u16::try_from(work.bytes / BLOCK_BYTES)?.to_be_bytes();
        let opcode = if work.write { 0x2a } else { 0x28 };
        let cdb = [opcode, 0, 0, 0, 0, 0, 0, high, low, 0];
        for head in 0..QUEUE_SIZE {
            self.lay_out(head, &cdb, work.bytes, work.write)?;
        }
        self.prepared = Some(work);
        Ok(())
    }

    fn status(&self, head: u16) -> Result<u16> {
        let at = self.slot(head) + RESPONSE_OFFSET + STATUS_OFFSET;
        let mut status = [0; 2];
        self.guest.ram.read_into(at, &mut status)?;
        Ok(u16::from_le_bytes(status))
    }

    fn publish(&mut self, head: u16) -> Result<()> {
        let ring = self.guest.queue(REQUESTS)?;
        ring.publish(head)?;
        if ring.device_wants_kick()? {
            ring.kick()?;
        }
        Ok(())
    }

    fn submit(&mut self, head: u16, work: Work) -> Result<()> {
        let blocks = work.bytes / BLOCK_BYTES;
        let block = if work.random {
            fastrand::u32(..LUN_BYTES / work.bytes) * blocks
        } else {
            self.next_block = (self.next_block + blocks) % (LUN_BYTES / BLOCK_BYTES);
            self.next_block
        };
        let at = self.slot(head) + LBA_OFFSET;
        self.guest.ram.write(at, &block.to_be_bytes())?;
        self.publish(head)
    }

    /// The head of the next command that has ended, all of them well.
    fn ended(&mut self, notice: Notice, longest: Instant) -> Result<u16> {
        let ring = self.guest.queue(REQUESTS)?;
        let used = match notice {
            Notice::Interrupt => ring.wait()?,
            Notice::Polled => {
                let mut looks = 0_u32;
                loop {
                    if let Some(used) = ring.poll()? {
                        break used;
                    }
                    looks = looks.wrapping_add(1);
                    if looks.is_multiple_of(1 << 16) {
                        ensure!(Instant::now() < longest, "no command ends");
                    }
                    std::hint::spin_loop();
                }
            }
        };
        let status = self.status(used.head)?;
        ensure!(
            status == 0,
            "command of {:?} ended with {status:#x}",
            self.prepared
        );
        Ok(used.head)
    }

    /// Keeps `work.depth` commands underway for `span`.
    ///
    /// # Errors
    /// One fails, or none ends.
    pub(super) fn run(&mut self, work: Work, span: Duration) -> Result<Slice> {
        self.prepare(work)?;
        let mut slice = Slice::default();
        let started = Instant::now();
        let longest = started + span + PATIENCE;
        if work.depth == 1 {
            while started.elapsed() < span {
                let submitted = Instant::now();
                self.submit(0, work)?;
                self.ended(work.notice, longest)?;
                slice
                    .latencies
                    .push(submitted.elapsed().as_secs_f64() * 1e6);
                slice.commands += 1;
            }
            slice.seconds = started.elapsed().as_secs_f64();
            return Ok(slice);
        }
        for head in 0..work.depth {
            self.submit(head, work)?;
        }
        loop {
            let head = self.ended(work.notice, longest)?;
            slice.commands += 1;
            if slice.commands.is_multiple_of(CLOCK_EVERY) && started.elapsed() >= span {
                break;
            }
            self.submit(head, work)?;
        }
        slice.seconds = started.elapsed().as_secs_f64();
        for _rest in 1..work.depth {
            self.ended(work.notice, longest)?;
        }
        Ok(slice)
    }

    /// Writes every block, so that none is a hole.
    ///
    /// # Errors
    /// A command fails.
    pub(super) fn fill(&mut self) -> Result<()> {
        let work = Work {
            bytes: DATA_BYTES,
            write: true,
            random: false,
            depth: 1,
            notice: Notice::Polled,
        };
        self.prepare(work)?;
        let slot = self.slot(0);
        let data: Vec<u8> = (0..DATA_BYTES).map(|byte| (byte % 251) as u8).collect();
        self.guest.ram.write(slot + DATA_OFFSET, &data)?;
        self.next_block = 0;
        let longest = Instant::now() + PATIENCE;
        for _command in 0..LUN_BYTES / DATA_BYTES {
            self.submit(0, work)?;
            self.ended(Notice::Polled, longest)
                .context("cannot fill the disk")?;
        }
        Ok(())
    }
}

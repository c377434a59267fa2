//! A virtio-scsi driver without a guest (virtio 1.2 section 5.6).

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::front_end::{Buffer, Guest, GuestOptions, RamOptions};

/// Queue of task management.
pub const CONTROL: usize = 0;
/// Queue of events.
pub const EVENT: usize = 1;
/// The first request queue.
pub const REQUESTS: usize = 2;
/// Bytes of a request without its data-out.
pub const REQUEST_BYTES: usize = 51;
/// Bytes of a response without its data-in.
pub const RESPONSE_BYTES: u32 = 108;
/// Bytes of data of one command that fit into its memory: the longest transfer and some more.
pub const DATA_BYTES_MAX: u64 = (1 << 20) + 0x1_0000;

/// Each command in flight has a page for header and response, and room for data.
const SLOT_BYTES: u64 = 4096 + DATA_BYTES_MAX;
const SLOTS: u64 = 70;
const RESPONSE_OFFSET: u64 = 2048;

/// LUN 0 of target 0, as Linux writes it.
pub const LUN0: [u8; 8] = [1, 0, 0x40, 0, 0, 0, 0, 0];

/// A command of the guest.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Addressed logical unit, in virtio-scsi's form.
    pub lun: [u8; 8],
    /// The guest's name for it.
    pub id: u64,
    /// Task attribute.
    pub attribute: u8,
    /// The CDB, padded with zeros.
    pub cdb: [u8; 32],
    /// Data to be written.
    pub data_out: &'a [u8],
    /// Room for data to be read.
    pub data_in_bytes: u32,
    /// Bytes of each descriptor at most.
    pub piece_bytes: u32,
}

impl Request<'_> {
    /// A SIMPLE command for LUN 0 without data, in as few descriptors as can be.
    #[must_use]
    pub fn new(cdb: &[u8]) -> Self {
        let mut padded = [0; 32];
        for (room, byte) in padded.iter_mut().zip(cdb) {
            *room = *byte;
        }
        Self {
            lun: LUN0,
            id: 1,
            attribute: 0,
            cdb: padded,
            data_out: &[],
            data_in_bytes: 0,
            piece_bytes: u32::MAX,
        }
    }

    /// Bytes in front of the data-out.
    #[must_use]
    pub fn header(&self) -> [u8; REQUEST_BYTES] {
        let mut header = [0; REQUEST_BYTES];
        let id = self.id.to_le_bytes();
        let fixed = [self.attribute, 0, 0];
        let bytes = self.lun.iter().chain(&id).chain(&fixed).chain(&self.cdb);
        for (room, byte) in header.iter_mut().zip(bytes) {
            *room = *byte;
        }
        header
    }
}

/// A command that came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Head of its chain.
    pub head: u16,
    /// Bytes that the device says it wrote.
    pub used_bytes: u32,
    /// Sense data.
    pub sense: Vec<u8>,
    /// Bytes not transferred.
    pub residual: u32,
    /// SCSI status.
    pub status: u8,
    /// virtio-scsi's response code.
    pub response: u8,
    /// The whole data-in buffer, written or not.
    pub data: Vec<u8>,
}

#[derive(Debug)]
struct Lent {
    slot: u64,
    data_in_bytes: u32,
}

/// A guest with a SCSI driver.
#[derive(Debug)]
pub struct ScsiGuest {
    /// Guest and rings.
    pub guest: Guest,
    free: Vec<u64>,
    lent: BTreeMap<(usize, u16), Lent>,
    control: u64,
    event: u64,
}

impl ScsiGuest {
    /// Connects a driver with `request_queues` rings of 256 entries.
    ///
    /// # Errors
    /// The back end refuses something.
    pub fn connect(path: &Path, request_queues: usize) -> Result<Self> {
        let options = GuestOptions {
            queues: REQUESTS + request_queues,
            queue_size: 256,
            ram: RamOptions {
                // Sparse: only what is touched is there.
                regions: vec![(0x10_0000, 96 << 20)],
                sealed: true,
            },
            ..GuestOptions::default()
        };
        let mut guest = Guest::connect(path, &options)?;
        let slots = guest.ram.allocate(SLOTS * SLOT_BYTES, 4096)?;
        let control = guest.ram.allocate(4096, 4096)?;
        let event = guest.ram.allocate(4096, 4096)?;
        let mut scsi = Self {
            guest,
            free: (0..SLOTS).map(|slot| slots + slot * SLOT_BYTES).collect(),
            lent: BTreeMap::new(),
            control,
            event,
        };
        // One worker has the control and the event ring and takes turns: when it has answered
        // twice, both run.
        for _turn in 0..2 {
            scsi.control(&[0xff; 8], 1)?;
        }
        Ok(scsi)
    }

    /// Guest memory for one command, [`DATA_BYTES_MAX`] and a page.
    ///
    /// # Errors
    /// All is in use.
    pub fn slot(&mut self) -> Result<u64> {
        self.free.pop().context("all slots are in use")
    }

    /// Makes a command available and kicks; returns the head of its chain.
    ///
    /// # Errors
    /// Ring or slots are used up.
    pub fn submit(&mut self, queue: usize, request: &Request<'_>) -> Result<u16> {
        let slot = self.slot()?;
        let header_at = slot + u64::from(!request.data_out.is_empty()) * (4096 - 51);
        self.guest.ram.write(header_at, &request.header())?;
        // Behind the header without a gap: descriptors may cut anywhere (VIRTIO_F_ANY_LAYOUT).
        self.guest.ram.write(slot + 4096, request.data_out)?;
        let response_at = slot + RESPONSE_OFFSET;
        self.guest
            .ram
            .write(response_at, &vec![0xee; usize::try_from(RESPONSE_BYTES)?])?;
        let mut buffers = Vec::new();
        let out_bytes = u32::try_from(REQUEST_BYTES + request.data_out.len())?;
        pieces(
            &mut buffers,
            header_at,
            out_bytes,
            request.piece_bytes,
            false,
        );
        pieces(
            &mut buffers,
            response_at,
            RESPONSE_BYTES,
            request.piece_bytes,
            true,
        );
        if request.data_in_bytes > 0 {
            pieces(
                &mut buffers,
                slot + 4096,
                request.data_in_bytes,
                request.piece_bytes,
                true,
            );
        }
        let ring = self.guest.queue(REQUESTS + queue)?;
        let head = ring.submit(&buffers)?;
        ring.kick()?;
        self.lent.insert(
            (queue, head),
            Lent {
                slot,
                data_in_bytes: request.data_in_bytes,
            },
        );
        Ok(head)
    }

    /// Waits for the next command that comes back.
    ///
    /// # Errors
    /// None comes in time.
    pub fn wait(&mut self, queue: usize) -> Result<Response> {
        let used = self.guest.queue(REQUESTS + queue)?.wait()?;
        self.response(queue, used)
    }

    /// The next command that has come back, if any.
    ///
    /// # Errors
    /// The device returned nonsense.
    pub fn poll(&mut self, queue: usize) -> Result<Option<Response>> {
        let used = self.guest.queue(REQUESTS + queue)?.poll()?;
        used.map(|used| self.response(queue, used)).transpose()
    }

    /// Commands in the device's hands.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.lent.len()
    }

    /// Sends a request of the control queue; returns the response's bytes, `None` if the device
    /// wrote none.
    ///
    /// # Errors
    /// It does not come back in time.
    pub fn control(&mut self, request: &[u8], response_bytes: u32) -> Result<Option<Vec<u8>>> {
        self.submit_control(request, response_bytes)?;
        self.wait_control(response_bytes)
    }

    /// Makes a request of the control queue available and kicks.
    ///
    /// # Errors
    /// The ring is used up.
    pub fn submit_control(&mut self, request: &[u8], response_bytes: u32) -> Result<u16> {
        self.guest.ram.write(self.control, request)?;
        let mut buffers = Vec::new();
        if !request.is_empty() {
            buffers.push(Buffer::readable(
                self.control,
                u32::try_from(request.len())?,
            ));
        }
        if response_bytes > 0 {
            buffers.push(Buffer::writable(self.control + 2048, response_bytes));
        }
        let ring = self.guest.queue(CONTROL)?;
        let head = ring.submit(&buffers)?;
        ring.kick()?;
        Ok(head)
    }

    /// Waits for a request of the control queue.
    ///
    /// # Errors
    /// None comes back in time.
    pub fn wait_control(&mut self, response_bytes: u32) -> Result<Option<Vec<u8>>> {
        let used = self.guest.queue(CONTROL)?.wait()?;
        let bytes = used.bytes.min(response_bytes);
        let response = self
            .guest
            .ram
            .read(self.control + 2048, usize::try_from(bytes)?)?;
        Ok((bytes > 0).then_some(response))
    }

    /// Makes an event buffer of `bytes` available and kicks.
    ///
    /// # Errors
    /// The ring is used up.
    pub fn post_event(&mut self, bytes: u32) -> Result<()> {
        let ring = self.guest.queue(EVENT)?;
        ring.submit(&[Buffer::writable(self.event, bytes)])?;
        ring.kick()
    }

    /// Waits for an event buffer: event, LUN, reason; `None` if it came back unused.
    ///
    /// # Errors
    /// None comes back in time.
    pub fn wait_event(&mut self) -> Result<Option<(u32, [u8; 8], u32)>> {
        let used = self.guest.queue(EVENT)?.wait()?;
        if used.bytes == 0 {
            return Ok(None);
        }
        ensure!(used.bytes == 16, "event of {} bytes", used.bytes);
        let bytes = self.guest.ram.read(self.event, 16)?;
        let (event, rest) = bytes.split_first_chunk().context("event")?;
        let (lun, rest) = rest.split_first_chunk().context("event")?;
        let reason = rest.first_chunk().context("event")?;
        Ok(Some((
            u32::from_le_bytes(*event),
            *lun,
            u32::from_le_bytes(*reason),
        )))
    }

    fn response(&mut self, queue: usize, used: crate::front_end::Used) -> Result<Response> {
        let lent = self
            .lent
            .remove(&(queue, used.head))
            .context("chain was not lent")?;
        let ram = &self.guest.ram;
        let bytes = ram.read(
            lent.slot + RESPONSE_OFFSET,
            usize::try_from(RESPONSE_BYTES)?,
        )?;
        let data = ram.read(lent.slot + 4096, usize::try_from(lent.data_in_bytes)?)?;
        self.free.push(lent.slot);
        let (sense_bytes, rest) = bytes.split_first_chunk().context("response")?;
        let (residual, rest) = rest.split_first_chunk().context("response")?;
        let (&[_, _, status, response], sense) = rest.split_first_chunk().context("response")?;
        let sense_bytes = usize::try_from(u32::from_le_bytes(*sense_bytes))?;
        Ok(Response {
            head: used.head,
            used_bytes: used.bytes,
            sense: sense.get(..sense_bytes).unwrap_or_default().to_vec(),
            residual: u32::from_le_bytes(*residual),
            status,
            response,
            data,
        })
    }
}

fn pieces(buffers: &mut Vec<Buffer>, start: u64, bytes: u32, piece_bytes: u32, writable: bool) {
    let mut done = 0;
    while done < bytes {
        let now = piece_bytes.min(bytes - done);
        buffers.push(Buffer {
            address: start + u64::from(done),
            bytes: now,
            writable,
        });
        done += now;
    }
}

/// The request of a task management function: `function` as virtio-scsi numbers it.
#[must_use]
pub fn task_management(function: u32, lun: [u8; 8], id: u64) -> Vec<u8> {
    let mut request = vec![0; 4];
    request.extend(function.to_le_bytes());
    request.extend(lun);
    request.extend(id.to_le_bytes());
    request
}

/// READ(10) or WRITE(10) of `blocks` at `lba`.
#[must_use]
pub fn transfer(write: bool, lba: u32, blocks: u16) -> [u8; 10] {
    let [a, b, c, d] = lba.to_be_bytes();
    let [e, f] = blocks.to_be_bytes();
    [if write { 0x2a } else { 0x28 }, 0, a, b, c, d, 0, e, f, 0]
}

//! Commands that a director in this process executes on the ring's own thread, without frames.
//!
//! ```text
//! turn of a ring ──begin──> DirectTurn ──execute──> (guest's buffers, used ring)
//!                                └── every TURN_BYTES, and at the end: charged to both links
//! ```
//!
//! **Order.** A command may overtake those that are underway on the lanes: they are SIMPLE, as it
//! is, or it is not executed here. Nor is it while a task management function is underway, which may
//! be the reset that ends what an earlier guest left behind. A ring is locked throughout, so whoever
//! reads all rings before a function (`control`) finds nothing half done.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use fabric_bypass::{DataBuffers, DirectSession};
use fabric_payload::scsi::{self, DATA_HEADER_BYTES, ServiceResponse, Tag};
use fabric_transport::frame::HEADER_BYTES;
use fabric_transport::{LaneSet, VirtualLane};
use vhost_user_session::Chain;

use crate::data_path::{Command, bytes, write_response};
use crate::device::{VhbaDevice, lock};
use crate::request::{REQUEST_BYTES, RESPONSE_BYTES, Request, Response, ResponseCode};
use crate::statistics::{add, count};

/// Task attribute SIMPLE (virtio 1.2 section 5.6.6.1).
const SIMPLE: u8 = 0;
/// What a device moves before it is charged for: half of what it may have queued on a link.
const TURN_BYTES: u32 = 128 * 1024;
/// A COMMAND unit in its frame, a STATUS unit in its, and what stands before data.
const COMMAND_FRAME_BYTES: usize = HEADER_BYTES + 64;
const STATUS_FRAME_BYTES: usize = HEADER_BYTES + 24;
const DATA_FRAME_HEADER_BYTES: usize = HEADER_BYTES + DATA_HEADER_BYTES;

/// A turn of a ring whose commands may be executed here.
pub(crate) struct DirectTurn {
    session: Arc<dyn DirectSession>,
    lanes: LaneSet,
    /// What it owes to the link to the director, and to the one back.
    to_director_bytes: u32,
    to_host_bytes: u32,
}

impl DirectTurn {
    fn is_clear(&self) -> bool {
        self.lanes.is_clear() && self.session.is_clear()
    }

    fn owe(&mut self, request: &Request) {
        let frames = |data_bytes: u32| match usize::try_from(data_bytes).unwrap_or(usize::MAX) {
            0 => 0,
            data_bytes => {
                let headers = data_bytes.div_ceil(scsi::DATA_BYTES_MAX) * DATA_FRAME_HEADER_BYTES;
                data_bytes + headers
            }
        };
        let owe = |sum: &mut u32, bytes: usize| {
            *sum = sum.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        };
        let written = COMMAND_FRAME_BYTES + frames(request.data_out_bytes);
        owe(&mut self.to_director_bytes, written);
        let read = STATUS_FRAME_BYTES + frames(request.data_in_bytes);
        owe(&mut self.to_host_bytes, read);
    }

    fn pay(&mut self) {
        let lane = VirtualLane::StorageData;
        self.lanes
            .charge(lane, std::mem::take(&mut self.to_director_bytes));
        self.session.charge(std::mem::take(&mut self.to_host_bytes));
    }
}

impl Drop for DirectTurn {
    fn drop(&mut self) {
        self.pay();
    }
}

/// The buffers of one request.
struct Buffers<'a>(&'a Chain);

fn behind(header_bytes: usize, offset: usize) -> u64 {
    bytes(header_bytes).saturating_add(bytes(offset))
}

impl DataBuffers for Buffers<'_> {
    fn read_at(&self, offset: usize, to: &mut [u8]) -> io::Result<()> {
        Ok(self.0.read_at(behind(REQUEST_BYTES, offset), to)?)
    }

    fn write_at(&self, offset: usize, from: &[u8]) -> io::Result<()> {
        Ok(self.0.write_at(behind(RESPONSE_BYTES, offset), from)?)
    }

    fn read_file(
        &self,
        file: BorrowedFd<'_>,
        position: u64,
        bytes: usize,
        wait: bool,
    ) -> io::Result<usize> {
        let offset = behind(RESPONSE_BYTES, 0);
        self.0.read_file(offset, file, position, bytes, wait)
    }

    fn write_file(&self, file: BorrowedFd<'_>, position: u64, bytes: usize) -> io::Result<usize> {
        let offset = behind(REQUEST_BYTES, 0);
        self.0.write_file(offset, file, position, bytes)
    }
}

impl VhbaDevice {
    /// A turn in which commands may be executed here; `None` if they have to go by the lanes.
    pub(crate) fn begin_direct_turn(&self, lanes: &LaneSet) -> Option<DirectTurn> {
        let session = self.direct_target()?.session(lanes.epoch())?;
        if !lock(&self.functions).is_empty() {
            return None;
        }
        let in_order = |(_, command): (_, &Command)| command.attribute != SIMPLE;
        if lock(&self.commands).in_flight.iter().any(in_order) {
            return None;
        }
        let turn = DirectTurn {
            session,
            lanes: lanes.clone(),
            to_director_bytes: 0,
            to_host_bytes: 0,
        };
        turn.is_clear().then_some(turn)
    }

    /// Executes a request here, and writes its response; the bytes written to the guest, or `None`
    /// if it has to go by the lanes. `turn` is over when others are to have the link.
    pub(crate) fn execute_here(
        &self,
        turn: &mut Option<DirectTurn>,
        request: &Request,
        chain: &Chain,
    ) -> Option<u32> {
        let here = turn.as_mut()?;
        let command = scsi::Command {
            tag: Tag(0),
            lun: request.lun,
            attribute: request.attribute,
            cdb: &request.cdb,
            data_out_bytes: request.data_out_bytes,
            data_in_bytes: request.data_in_bytes,
        };
        let ended = here.session.execute(&command, &Buffers(chain));
        let Some(ended) = ended else {
            if request.attribute != SIMPLE {
                *turn = None;
            }
            return None;
        };
        count(&self.counters.direct_commands);
        let (response, data_in_bytes) = if ended == ServiceResponse::TaskComplete {
            for (counter, bytes) in [
                (&self.counters.data_out_bytes, request.data_out_bytes),
                (&self.counters.data_in_bytes, request.data_in_bytes),
            ] {
                add(counter, usize::try_from(bytes).unwrap_or(0));
            }
            (Response::new(ResponseCode::Ok, 0), request.data_in_bytes)
        } else {
            let residual = request.data_out_bytes.saturating_add(request.data_in_bytes);
            (Response::new(ended.into(), residual), 0)
        };
        here.owe(request);
        if here.to_director_bytes.max(here.to_host_bytes) >= TURN_BYTES {
            here.pay();
            if !here.is_clear() {
                *turn = None;
            }
        }
        let written = write_response(chain, &response);
        Some(written.saturating_add(data_in_bytes))
    }
}

//! A SCSI target that the test plays behind the lanes of a vHBA.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use fabric_payload::scsi::{
    Command, DATA_BYTES_MAX, Data, Event, InformationUnit, LunBytes, ServiceResponse, Status, Tag,
    TaskFunction, TaskResponse,
};
use fabric_transport::VirtualLane;

use super::FarEnd;

/// CHECK CONDITION (SAM-5 section 5.3.1).
pub const CHECK_CONDITION: u8 = 2;

/// A command with all its data-out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedCommand {
    /// Its name on the fabric.
    pub tag: Tag,
    /// Addressed logical unit.
    pub lun: LunBytes,
    /// Task attribute.
    pub attribute: u8,
    /// The CDB with its padding.
    pub cdb: Vec<u8>,
    /// The data to be written.
    pub data_out: Vec<u8>,
    /// Room for data to be read.
    pub data_in_bytes: u32,
}

/// A task management function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceivedFunction {
    /// Its name on the fabric.
    pub tag: Tag,
    /// What to do.
    pub function: TaskFunction,
    /// To which task.
    pub managed: Tag,
    /// On which logical unit.
    pub lun: LunBytes,
}

#[derive(Debug, Default)]
struct Arrived {
    /// Commands whose data-out is not complete: what is missing.
    incomplete: Vec<(ReceivedCommand, usize)>,
    commands: VecDeque<ReceivedCommand>,
    functions: VecDeque<ReceivedFunction>,
}

/// Information units from and to one vHBA.
#[derive(Debug)]
pub struct Target {
    far: Arc<FarEnd>,
    arrived: Mutex<Arrived>,
}

impl Target {
    /// Plays the target at `far`.
    #[must_use]
    pub fn new(far: Arc<FarEnd>) -> Self {
        Self {
            far,
            arrived: Mutex::default(),
        }
    }

    /// The lanes themselves.
    #[must_use]
    pub const fn far(&self) -> &Arc<FarEnd> {
        &self.far
    }

    /// Waits for the next command with all its data.
    ///
    /// # Errors
    /// None comes in time, or a unit that a vHBA must not send.
    pub fn next_command(&self) -> Result<ReceivedCommand> {
        loop {
            if let Some(command) = self.lock().commands.pop_front() {
                return Ok(command);
            }
            self.take()?;
        }
    }

    /// Waits for the next task management function.
    ///
    /// # Errors
    /// As [`next_command`](Self::next_command).
    pub fn next_function(&self) -> Result<ReceivedFunction> {
        loop {
            if let Some(function) = self.lock().functions.pop_front() {
                return Ok(function);
            }
            self.take()?;
        }
    }

    /// Sends a piece of data-in, whatever it says.
    ///
    /// # Errors
    /// The lanes are down.
    pub fn data_in(&self, tag: Tag, offset: u32, data: &[u8]) -> Result<()> {
        self.send(&InformationUnit::DataIn(Data { tag, offset, data }))
    }

    /// Ends a command with a status, whatever it says.
    ///
    /// # Errors
    /// The lanes are down.
    pub fn status(&self, tag: Tag, status: u8, data_in_bytes: u32, sense: &[u8]) -> Result<()> {
        self.send(&InformationUnit::Status(Status {
            tag,
            response: ServiceResponse::TaskComplete,
            status,
            data_in_bytes,
            sense,
        }))
    }

    /// Ends a command without a status.
    ///
    /// # Errors
    /// The lanes are down.
    pub fn end(&self, tag: Tag, response: ServiceResponse) -> Result<()> {
        self.send(&InformationUnit::Status(Status {
            tag,
            response,
            status: 0,
            data_in_bytes: 0,
            sense: &[],
        }))
    }

    /// Ends a command with GOOD and `data`, no more than there is room for.
    ///
    /// # Errors
    /// The lanes are down.
    pub fn good(&self, command: &ReceivedCommand, data: &[u8]) -> Result<()> {
        let room = usize::try_from(command.data_in_bytes)?;
        let data = data.get(..room).unwrap_or(data);
        let mut offset = 0;
        for piece in data.chunks(DATA_BYTES_MAX) {
            self.data_in(command.tag, offset, piece)?;
            offset += u32::try_from(piece.len())?;
        }
        self.status(command.tag, 0, offset, &[])
    }

    /// Ends a function.
    ///
    /// # Errors
    /// The lanes are down.
    pub fn respond(&self, tag: Tag, response: TaskResponse) -> Result<()> {
        self.send(&InformationUnit::TaskManagementResponse { response, tag })
    }

    /// Reports a change.
    ///
    /// # Errors
    /// The lanes are down.
    pub fn event(&self, event: Event) -> Result<()> {
        self.send(&InformationUnit::Event(event))
    }

    /// Sends a unit on the lane where it belongs.
    ///
    /// # Errors
    /// The lanes are down.
    pub fn send(&self, unit: &InformationUnit<'_>) -> Result<()> {
        let lane = match unit {
            InformationUnit::Command(_) => VirtualLane::StorageCommand,
            InformationUnit::DataOut(_)
            | InformationUnit::DataIn(_)
            | InformationUnit::Status(_) => VirtualLane::StorageData,
            InformationUnit::TaskManagement { .. }
            | InformationUnit::TaskManagementResponse { .. }
            | InformationUnit::Event(_) => VirtualLane::TaskManagement,
        };
        let mut bytes = Vec::new();
        unit.encode(&mut bytes);
        self.far.send(lane, &bytes)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Arrived> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sorts one more unit in.
    fn take(&self) -> Result<()> {
        let (_, payload) = self.far.next()?;
        let mut arrived = self.lock();
        match InformationUnit::parse(&payload)? {
            InformationUnit::Command(Command {
                tag,
                lun,
                attribute,
                cdb,
                data_out_bytes,
                data_in_bytes,
            }) => {
                let command = ReceivedCommand {
                    tag,
                    lun,
                    attribute,
                    cdb: cdb.to_vec(),
                    data_out: Vec::new(),
                    data_in_bytes,
                };
                match usize::try_from(data_out_bytes)? {
                    0 => arrived.commands.push_back(command),
                    missing => arrived.incomplete.push((command, missing)),
                }
            }
            InformationUnit::DataOut(data) => {
                let mut incomplete = arrived.incomplete.iter();
                let at = incomplete
                    .position(|(command, _)| command.tag == data.tag)
                    .context("data-out for no command")?;
                let (command, missing) = arrived.incomplete.get_mut(at).context("command")?;
                if usize::try_from(data.offset)? != command.data_out.len() {
                    bail!("data-out at {} is out of order", data.offset);
                }
                command.data_out.extend_from_slice(data.data);
                *missing = missing
                    .checked_sub(data.data.len())
                    .context("more data-out than announced")?;
                if *missing == 0 {
                    let (command, _) = arrived.incomplete.remove(at);
                    arrived.commands.push_back(command);
                }
            }
            InformationUnit::TaskManagement {
                function,
                tag,
                managed,
                lun,
            } => arrived.functions.push_back(ReceivedFunction {
                tag,
                function,
                managed,
                lun,
            }),
            other => bail!("a vHBA must not send {other:?}"),
        }
        Ok(())
    }
}

/// Bytes of a block of a [`RamDisk`].
pub const BLOCK_BYTES: usize = 512;

/// A small disk in memory: INQUIRY, TEST UNIT READY, READ(10), WRITE(10).
#[derive(Debug)]
pub struct RamDisk {
    blocks: Vec<u8>,
}

impl RamDisk {
    /// A disk of `blocks` zeroed blocks.
    #[must_use]
    pub fn new(blocks: usize) -> Self {
        Self {
            blocks: vec![0; blocks * BLOCK_BYTES],
        }
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.blocks
    }

    /// Answers the next command.
    ///
    /// # Errors
    /// None comes, or the lanes are down.
    pub fn serve_one(&mut self, target: &Target) -> Result<()> {
        let command = target.next_command()?;
        let block = || -> Option<std::ops::Range<usize>> {
            let lba = u32::from_be_bytes(*command.cdb.get(2..)?.first_chunk()?);
            let count = u16::from_be_bytes(*command.cdb.get(7..)?.first_chunk()?);
            let start = usize::try_from(lba).ok()? * BLOCK_BYTES;
            Some(start..start + usize::from(count) * BLOCK_BYTES)
        };
        match command.cdb.first() {
            Some(0x00) => target.good(&command, &[]),
            Some(0x12) => {
                let wanted = u16::from_be_bytes(
                    *command
                        .cdb
                        .get(3..)
                        .and_then(|b| b.first_chunk())
                        .context("CDB")?,
                );
                target.good(
                    &command,
                    inquiry_data()
                        .get(..wanted.into())
                        .unwrap_or(&inquiry_data()),
                )
            }
            Some(0x28) if let Some(data) = block().and_then(|range| self.blocks.get(range)) => {
                target.good(&command, data)
            }
            Some(0x2a)
                if let Some(room) = block().and_then(|range| self.blocks.get_mut(range))
                    && room.len() == command.data_out.len() =>
            {
                room.copy_from_slice(&command.data_out);
                target.good(&command, &[])
            }
            // ILLEGAL REQUEST, INVALID COMMAND OPERATION CODE.
            _ => target.status(
                command.tag,
                CHECK_CONDITION,
                0,
                &[0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0],
            ),
        }
    }
}

/// What a [`RamDisk`] answers to INQUIRY (SPC-4 section 6.4.2).
#[must_use]
pub fn inquiry_data() -> [u8; 36] {
    let mut data = [0; 36];
    let text = b"ORIMONO RAM DISK        0001";
    let fixed = [0, 0, 6, 2, 31, 0, 0, 2];
    for (room, byte) in data.iter_mut().zip(fixed.iter().chain(text)) {
        *room = *byte;
    }
    data
}

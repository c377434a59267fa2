//! Commands in flight.

use super::error::{SessionError, violation};
use super::pdu::Residual;

/// Longest CDB (SPC: variable length).
pub(crate) const CDB_BYTES_MAX: usize = 260;
/// Most slots of a table; tags with higher low halves are the session's own.
pub(crate) const TASKS_MAX: usize = 0xf000;
/// Most sense that is kept; what SPC allows.
const SENSE_BYTES_MAX: usize = 252;

/// What a command moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// No data.
    None,
    /// At most this many bytes from the logical unit.
    In(u32),
    /// These bytes to it.
    Out(Vec<u8>),
}

/// Task attribute (SAM; the codes of RFC 7143 section 11.3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum TaskAttribute {
    /// SIMPLE.
    #[default]
    Simple = 1,
    /// ORDERED.
    Ordered = 2,
    /// HEAD OF QUEUE.
    HeadOfQueue = 3,
    /// ACA.
    Aca = 4,
}

/// A SCSI command. Commands that move data both ways are not supported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The LUN in the eight bytes of SAM; [`lun_field`] makes them of a number.
    pub lun: [u8; 8],
    /// 1 to 260 bytes.
    pub cdb: Vec<u8>,
    /// Its place among others.
    pub attribute: TaskAttribute,
    /// Its data.
    pub transfer: Transfer,
}

/// The eight bytes of a LUN: peripheral device addressing up to 255, flat space up to 16,383.
/// `None` above.
#[must_use]
pub fn lun_field(lun: u16) -> Option<[u8; 8]> {
    let [high, low] = lun.to_be_bytes();
    let method = match high {
        0 => 0,
        1..=0x3f => 0x40,
        _ => return None,
    };
    Some([high | method, low, 0, 0, 0, 0, 0, 0])
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The logical unit answered.
    Answered(Answer),
    /// The target could not deliver it: an iSCSI response other than "completed at target"
    /// (RFC 7143 section 11.4.3).
    TargetFailure {
        /// The response.
        response: u8,
    },
    /// The target rejected the command as such; sent again it would be rejected again.
    Rejected {
        /// RFC 7143 section 11.17.1.
        reason: u8,
    },
    /// A task management function ended it.
    Aborted,
    /// The session ended before it was sent. To send it again is safe.
    NotSent(Command),
    /// The session ended while it was on its way: it may have been executed, in whole, in part or
    /// not at all. Whether to send it again is the caller's to decide.
    UnknownFate(Command),
}

/// Status and data of a command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// SAM status.
    pub status: u8,
    /// Sense, up to 252 bytes.
    pub sense: Vec<u8>,
    /// What came of [`Transfer::In`]; shorter than asked for if the target sent less.
    pub data_in: Vec<u8>,
    /// What the target says was not moved.
    pub residual: Residual,
}

/// Names a command of one session. It comes again only after 65,536 others in the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaskTag {
    /// So that it names no command of the next session.
    pub(crate) session: u64,
    pub(crate) tag: u32,
}

/// A command and how far it got.
#[derive(Debug)]
pub(crate) struct Task<C> {
    pub(crate) command: Command,
    pub(crate) context: C,
    /// CmdSN; `None` while it waits for the target's window.
    pub(crate) cmd_sn: Option<u32>,
    data_in: Vec<u8>,
    /// Counts Data-In PDUs of a read and R2Ts of a write.
    counter: u32,
    /// Up to where a write was asked for or went unasked.
    asked_end: usize,
    /// An R2T is not answered in full; MaxOutstandingR2T is 1.
    r2t_open: bool,
}

impl<C> Task<C> {
    pub(crate) const fn new(command: Command, context: C) -> Self {
        Self {
            command,
            context,
            cmd_sn: None,
            data_in: Vec::new(),
            counter: 0,
            asked_end: 0,
            r2t_open: false,
        }
    }

    /// It was sent, and up to `asked_end` of its data goes unasked.
    pub(crate) const fn sent(&mut self, cmd_sn: u32, asked_end: usize) {
        self.cmd_sn = Some(cmd_sn);
        self.asked_end = asked_end;
    }

    /// The last R2T was answered in full.
    pub(crate) const fn r2t_answered(&mut self) {
        self.r2t_open = false;
    }

    pub(crate) const fn data_out(&self) -> &[u8] {
        match &self.command.transfer {
            Transfer::Out(data) => data.as_slice(),
            Transfer::None | Transfer::In(_) => &[],
        }
    }

    /// Bytes that it holds, or may come to hold.
    pub(crate) fn bytes(&self) -> usize {
        command_bytes(&self.command)
    }

    /// Takes a Data-In; DataPDUInOrder and DataSequenceInOrder are Yes, so there are no gaps.
    pub(crate) fn take_data_in(
        &mut self,
        data_sn: u32,
        offset: u32,
        data: &[u8],
    ) -> Result<(), SessionError> {
        const PDU: &str = "SCSI Data-In";
        let Transfer::In(bytes_max) = self.command.transfer else {
            return Err(violation(PDU, "belongs to no read"));
        };
        let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        if data_sn != self.counter {
            return Err(violation(PDU, "has another DataSN than the next"));
        }
        if usize::try_from(offset) != Ok(self.data_in.len()) {
            return Err(violation(PDU, "is out of order"));
        }
        if data.len() > bytes_max - self.data_in.len() {
            return Err(violation(PDU, "is outside of the buffer"));
        }
        if self.data_in.is_empty() {
            self.data_in.reserve_exact(bytes_max);
        }
        self.data_in.extend_from_slice(data);
        self.counter = self.counter.wrapping_add(1);
        Ok(())
    }

    /// Takes an R2T and returns the part of the data that it asks for.
    pub(crate) fn take_r2t(
        &mut self,
        r2t_sn: u32,
        offset: u32,
        desired_bytes: u32,
        burst_bytes: u32,
    ) -> Result<(usize, usize), SessionError> {
        const PDU: &str = "R2T";
        if r2t_sn != self.counter {
            return Err(violation(PDU, "has another R2TSN than the next"));
        }
        if self.r2t_open {
            return Err(violation(PDU, "comes before the last one is answered"));
        }
        if desired_bytes == 0 || desired_bytes > burst_bytes {
            return Err(violation(
                PDU,
                "asks for nothing, or more than MaxBurstLength",
            ));
        }
        let range = usize::try_from(offset).ok().and_then(|start| {
            let end = start.checked_add(usize::try_from(desired_bytes).ok()?)?;
            (end <= self.data_out().len()).then_some((start, end))
        });
        let Some((start, end)) = range else {
            return Err(violation(PDU, "asks for what is outside of the data"));
        };
        if start < self.asked_end {
            return Err(violation(PDU, "asks for data a second time"));
        }
        self.asked_end = end;
        self.r2t_open = true;
        self.counter = self.counter.wrapping_add(1);
        Ok((start, end))
    }

    /// The end of a command with an answer.
    pub(crate) fn answer(self, status: u8, sense: &[u8], residual: Residual) -> (C, Outcome) {
        let sense = sense.get(..SENSE_BYTES_MAX).unwrap_or(sense);
        let answer = Answer {
            status,
            sense: sense.to_owned(),
            data_in: self.data_in,
            residual,
        };
        (self.context, Outcome::Answered(answer))
    }

    /// The end of a command with its session.
    pub(crate) fn lose(self) -> (C, Outcome) {
        let outcome = match self.cmd_sn {
            Some(_) => Outcome::UnknownFate(self.command),
            None => Outcome::NotSent(self.command),
        };
        (self.context, outcome)
    }
}

/// Bytes that a command holds, or may come to hold.
pub(crate) fn command_bytes(command: &Command) -> usize {
    match &command.transfer {
        Transfer::None => 0,
        Transfer::In(bytes) => usize::try_from(*bytes).unwrap_or(usize::MAX),
        Transfer::Out(data) => data.len(),
    }
}

#[derive(Debug)]
struct Slot<C> {
    generation: u16,
    task: Option<Task<C>>,
}

/// Tasks by their tags: a slot in the lower half, how often it was used in the upper. So the tag
/// of an old task names no new one.
#[derive(Debug)]
pub(crate) struct TaskTable<C> {
    slots: Vec<Slot<C>>,
    free: Vec<u16>,
    tasks_max: usize,
    bytes: usize,
}

impl<C> TaskTable<C> {
    pub(crate) fn new(tasks_max: usize) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            tasks_max: tasks_max.clamp(1, TASKS_MAX),
            bytes: 0,
        }
    }

    pub(crate) fn has_room(&self) -> bool {
        !self.free.is_empty() || self.slots.len() < self.tasks_max
    }

    /// Bytes that all tasks hold.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Adds a task; `None`, and the task is lost, without [`Self::has_room`].
    pub(crate) fn insert(&mut self, task: Task<C>) -> Option<u32> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() < self.tasks_max => {
                let index = u16::try_from(self.slots.len()).ok()?;
                self.slots.push(Slot {
                    generation: 0,
                    task: None,
                });
                index
            }
            None => return None,
        };
        let slot = self.slots.get_mut(usize::from(index))?;
        slot.generation = slot.generation.wrapping_add(1);
        self.bytes = self.bytes.saturating_add(task.bytes());
        slot.task = Some(task);
        Some(u32::from(slot.generation) << 16 | u32::from(index))
    }

    fn slot_mut(&mut self, tag: u32) -> Option<&mut Slot<C>> {
        let [a, b, c, d] = tag.to_be_bytes();
        let slot = self
            .slots
            .get_mut(usize::from(u16::from_be_bytes([c, d])))?;
        (slot.generation == u16::from_be_bytes([a, b])).then_some(slot)
    }

    pub(crate) fn get_mut(&mut self, tag: u32) -> Option<&mut Task<C>> {
        self.slot_mut(tag)?.task.as_mut()
    }

    pub(crate) fn remove(&mut self, tag: u32) -> Option<Task<C>> {
        let task = self.slot_mut(tag)?.task.take()?;
        let [.., c, d] = tag.to_be_bytes();
        self.free.push(u16::from_be_bytes([c, d]));
        self.bytes -= task.bytes();
        Some(task)
    }

    /// The tags of the tasks that are meant.
    pub(crate) fn tags(&self, meant: impl Fn(&Task<C>) -> bool) -> Vec<u32> {
        let slots = (0u32..).zip(&self.slots);
        slots
            .filter(|(_, slot)| slot.task.as_ref().is_some_and(&meant))
            .map(|(index, slot)| u32::from(slot.generation) << 16 | index)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn luns_have_the_bytes_of_sam() {
        assert_eq!(lun_field(1), Some([0, 1, 0, 0, 0, 0, 0, 0]));
        assert_eq!(lun_field(256), Some([0x41, 0, 0, 0, 0, 0, 0, 0]));
        assert_eq!(lun_field(16_384), None);
    }

    #[test]
    fn the_tag_of_an_old_task_names_no_new_one() {
        let command = Command {
            lun: [0; 8],
            cdb: vec![0; 6],
            attribute: TaskAttribute::Simple,
            transfer: Transfer::In(10),
        };
        let mut tasks = TaskTable::new(2);
        let old = tasks.insert(Task::new(command.clone(), 1)).unwrap();
        let other = tasks.insert(Task::new(command.clone(), 2)).unwrap();
        assert_eq!(tasks.insert(Task::new(command.clone(), 3)), None);
        assert_eq!(tasks.bytes(), 20);
        assert_eq!(tasks.remove(old).unwrap().context, 1);
        assert!(tasks.remove(old).is_none());
        let new = tasks.insert(Task::new(command, 4)).unwrap();
        assert_ne!(new, old);
        assert!(tasks.get_mut(old).is_none());
        assert_eq!(tasks.tags(|_| true), [new, other]);
        tasks.remove(new);
        tasks.remove(other);
        assert!(tasks.is_empty() && tasks.bytes() == 0);
    }
}

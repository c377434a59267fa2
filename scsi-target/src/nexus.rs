//! One initiator port's view of the target: its LUN map, its commands, its resets.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use thiserror::Error;

use crate::command::{self, CommandContext};
use crate::inquiry;
use crate::logical_unit::{Features, LogicalUnit, NexusState};
use crate::lun::{Lun, LunAddress};
use crate::report_luns;
use crate::reservation::NexusId;
use crate::sense::{AdditionalSense, Sense, SenseFormat};
use crate::task::{
    Completion, Status, TaskAttribute, TaskManagementFunction, TaskManagementResponse,
};
use crate::transfer::{Transfer, transfer};
use crate::unit_attention::UnitAttention;
use crate::{cdb::Cdb, opcode, unit_control};

/// Why a LUN cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AttachError {
    /// The LUN already leads to a unit.
    #[error("LUN {lun} is already in use")]
    InUse {
        /// The number asked for.
        lun: Lun,
    },
}

/// A unit at a LUN, and what is pending for this nexus on it.
#[derive(Clone, Debug)]
pub(crate) struct Attachment {
    pub(crate) unit: Arc<LogicalUnit>,
    pub(crate) nexus: Arc<NexusState>,
}

/// The nexus of one initiator port with the target (SAM-5 4.3), and the LUNs it may use.
///
/// What is not in the map does not exist for this initiator. All methods take `&self`; commands
/// may run on several threads at once, also while LUNs come and go.
#[derive(Debug)]
pub struct ItNexus {
    id: NexusId,
    luns: RwLock<BTreeMap<Lun, Attachment>>,
}

impl ItNexus {
    /// A nexus without LUNs, through target port 1; `initiator_port` is the initiator's WWPN.
    /// Under it persistent reservations know the nexus, also the next one of the same name.
    #[must_use]
    pub const fn new(initiator_port: u64) -> Self {
        Self::through(initiator_port, 1)
    }

    /// As [`Self::new`], through the target port with this relative identifier.
    #[must_use]
    pub const fn through(initiator_port: u64, target_port: u16) -> Self {
        Self {
            id: NexusId {
                initiator_port,
                target_port,
            },
            luns: RwLock::new(BTreeMap::new()),
        }
    }

    /// The initiator's WWPN, as given to [`Self::new`].
    #[must_use]
    pub const fn initiator_port(&self) -> u64 {
        self.id.initiator_port
    }

    pub(crate) const fn id(&self) -> NexusId {
        self.id
    }

    /// Adds a LUN. The new unit has 29/00 pending, all others 3F/0E.
    ///
    /// # Errors
    /// [`AttachError::InUse`]; nothing has changed then.
    pub fn attach(&self, lun: Lun, unit: Arc<LogicalUnit>) -> Result<(), AttachError> {
        let mut luns = self.luns.write().unwrap_or_else(PoisonError::into_inner);
        if luns.contains_key(&lun) {
            return Err(AttachError::InUse { lun });
        }
        luns_changed(&luns);
        let nexus = unit.join(self.id);
        luns.insert(lun, Attachment { unit, nexus });
        Ok(())
    }

    /// Removes a LUN and returns its unit; the other units have 3F/0E pending. Commands already
    /// in [`Self::execute`] run to their end.
    pub fn detach(&self, lun: Lun) -> Option<Arc<LogicalUnit>> {
        let mut luns = self.luns.write().unwrap_or_else(PoisonError::into_inner);
        let removed = luns.remove(&lun)?;
        luns_changed(&luns);
        removed.unit.nexus_lost(self.id);
        Some(removed.unit)
    }

    /// The LUNs in use, ascending.
    #[must_use]
    pub fn luns(&self) -> Vec<Lun> {
        self.read_luns().keys().copied().collect()
    }

    /// The unit at a LUN.
    #[must_use]
    pub fn unit(&self, lun: Lun) -> Option<Arc<LogicalUnit>> {
        self.read_luns()
            .get(&lun)
            .map(|attachment| Arc::clone(&attachment.unit))
    }

    /// Runs one command to its end, medium I/O included.
    ///
    /// - `lun`: the 8-byte form of SAM-5 4.7.
    /// - `cdb`: as received; bytes behind the command's own length are ignored.
    /// - `data_out`: what the initiator sent. Shorter than the CDB asks for: refused with sense,
    ///   nothing is written. What is left over is ignored and seen in
    ///   [`Completion::data_out_used_bytes`].
    /// - `data_in`: replaced by what the initiator gets: at most the CDB's allocation or
    ///   transfer length, at most `data_in_max`, and at most
    ///   [`TRANSFER_BYTES_MAX`](crate::TRANSFER_BYTES_MAX). Its capacity is used again.
    ///
    /// Wrong commands end with CHECK CONDITION, never in a panic.
    pub fn execute(
        &self,
        lun: [u8; 8],
        cdb: &[u8],
        attribute: TaskAttribute,
        data_out: &[u8],
        data_in: &mut Vec<u8>,
        data_in_max: usize,
    ) -> Completion {
        let command = (lun, cdb, attribute);
        self.execute_for(None, command, data_out, data_in, data_in_max)
    }

    /// As [`Self::execute`], for a command that came when `unit` was at its LUN: if another is there
    /// by now, or none, it ends with LOGICAL UNIT NOT SUPPORTED.
    pub fn execute_for(
        &self,
        unit: Option<&Arc<LogicalUnit>>,
        (lun, cdb, attribute): ([u8; 8], &[u8], TaskAttribute),
        data_out: &[u8],
        data_in: &mut Vec<u8>,
        data_in_max: usize,
    ) -> Completion {
        data_in.clear();
        let (attachment, well_known) = match LunAddress::parse(lun) {
            LunAddress::Unit(lun) => (self.read_luns().get(&lun).cloned(), false),
            LunAddress::ReportLunsWellKnown => (None, true),
            LunAddress::Absent => (None, false),
        };
        let same = |there: &Attachment| unit.is_none_or(|unit| Arc::ptr_eq(unit, &there.unit));
        let attachment = attachment.filter(same);
        let mut data_out_used_bytes = 0;
        let mut good = Status::Good;
        let mut preempted_ports = Vec::new();
        let result = match &attachment {
            Some(attachment) => {
                let mut context = CommandContext {
                    nexus: self,
                    attachment,
                    cdb: Cdb::new(cdb),
                    data_out,
                    data_out_used_bytes: 0,
                    data_in,
                    status: Status::Good,
                    preempted_ports: Vec::new(),
                };
                let result = command::execute(&mut context, cdb.len(), attribute);
                data_out_used_bytes = context.data_out_used_bytes;
                good = context.status;
                preempted_ports = context.preempted_ports;
                result
            }
            None => self.execute_without_unit(cdb, data_in, well_known),
        };
        let (status, sense) = match result {
            Ok(()) => (good, None),
            Err(sense) => {
                data_in.clear();
                (Status::CheckCondition, Some(sense))
            }
        };
        let data_in_offered_bytes = data_in.len();
        data_in.truncate(data_in_max);
        let sense_format = match (&sense, &attachment) {
            (Some(_), Some(attachment)) => attachment.unit.sense_format(),
            _ => SenseFormat::Fixed,
        };
        Completion {
            status,
            sense,
            sense_format,
            data_in_offered_bytes,
            data_out_used_bytes,
            preempted_ports,
        }
    }

    /// Runs a READ or WRITE of any CDB length as a SIMPLE task, with `move_blocks` in the place of
    /// the unit's device: for a caller that moves the blocks straight to or from the initiator's
    /// memory, of which there are `data_bytes`. True: the command has ended with GOOD.
    ///
    /// It is for `unit`, which was at its LUN when it came.
    ///
    /// False: [`Self::execute_for`] that unit. Nothing has happened, but for what `move_blocks`, called at most
    /// once, did before it answered false. So everything is ended that is not plain: other
    /// commands, FUA, a pending unit attention, a reservation that conflicts, a unit that is not
    /// ready, lengths that do not agree, errors of the medium.
    pub fn transfer(
        &self,
        unit: &Arc<LogicalUnit>,
        (lun, cdb): ([u8; 8], &[u8]),
        data_bytes: usize,
        move_blocks: impl FnOnce(Transfer) -> bool,
    ) -> bool {
        let LunAddress::Unit(lun) = LunAddress::parse(lun) else {
            return false;
        };
        // Not held while blocks move: who changes the map does not wait for the medium.
        let attachment = self.read_luns().get(&lun).cloned();
        attachment.is_some_and(|attachment| {
            Arc::ptr_eq(unit, &attachment.unit)
                && transfer(self.id, &attachment, cdb, data_bytes, move_blocks)
        })
    }

    /// Runs a task management function on the units behind it.
    ///
    /// The core has no queue: the caller ends the tasks it holds for the LUN (of all nexuses
    /// after LOGICAL UNIT RESET and TARGET RESET, of this one otherwise) and answers QUERY TASK
    /// and QUERY TASK SET itself. What remains is done here: checking the LUN, putting mode
    /// pages and power state back, ending what RESERVE reserved, and unit attentions on the right
    /// nexuses.
    pub fn task_management(
        &self,
        function: TaskManagementFunction,
        lun: [u8; 8],
    ) -> TaskManagementResponse {
        use TaskManagementFunction as Function;
        use TaskManagementResponse as Response;
        match function {
            Function::TargetReset => {
                for unit in self.distinct_units() {
                    unit.reset(UnitAttention::TargetReset);
                }
                return Response::FunctionComplete;
            }
            Function::ItNexusReset => {
                for attachment in self.read_luns().values() {
                    attachment.unit.nexus_lost(self.id);
                    attachment
                        .nexus
                        .pending()
                        .establish(UnitAttention::NexusLoss);
                }
                return Response::FunctionComplete;
            }
            _ => {}
        }
        let attachment = match LunAddress::parse(lun) {
            LunAddress::Unit(lun) => self.read_luns().get(&lun).cloned(),
            LunAddress::ReportLunsWellKnown | LunAddress::Absent => None,
        };
        let Some(attachment) = attachment else {
            return Response::IncorrectLogicalUnitNumber;
        };
        match function {
            Function::LogicalUnitReset => {
                attachment.unit.reset(UnitAttention::LogicalUnitReset);
                Response::FunctionComplete
            }
            Function::QueryAsynchronousEvent if !attachment.nexus.pending().is_empty() => {
                Response::FunctionSucceeded
            }
            Function::ClearAca => Response::FunctionRejected,
            _ => Response::FunctionComplete,
        }
    }

    /// 3F/0E was told, or REPORT LUNS makes telling needless: gone from all units (LUICLR).
    pub(crate) fn luns_known(&self) {
        for attachment in self.read_luns().values() {
            attachment
                .nexus
                .pending()
                .withdraw(UnitAttention::ReportedLunsChanged);
        }
    }

    pub(crate) fn read_luns(&self) -> RwLockReadGuard<'_, BTreeMap<Lun, Attachment>> {
        self.luns.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// A unit at two LUNs is reset once.
    fn distinct_units(&self) -> Vec<Arc<LogicalUnit>> {
        let mut units: Vec<Arc<LogicalUnit>> = Vec::new();
        for attachment in self.read_luns().values() {
            if !units.iter().any(|unit| Arc::ptr_eq(unit, &attachment.unit)) {
                units.push(Arc::clone(&attachment.unit));
            }
        }
        units
    }

    /// Commands to a LUN without unit, and to the REPORT LUNS well known unit (SPC-4 6.4, 8.2).
    fn execute_without_unit(
        &self,
        cdb: &[u8],
        data_in: &mut Vec<u8>,
        well_known: bool,
    ) -> Result<(), Sense> {
        let length = cdb.len();
        let cdb = Cdb::new(cdb);
        let (nothing, inquiry_byte_0) = if well_known {
            (AdditionalSense::NONE, inquiry::WELL_KNOWN_UNIT)
        } else {
            (
                AdditionalSense::LOGICAL_UNIT_NOT_SUPPORTED,
                inquiry::NO_UNIT,
            )
        };
        match cdb.opcode() {
            opcode::INQUIRY | opcode::REPORT_LUNS | opcode::REQUEST_SENSE => {
                command::check_cdb(&cdb, length, Features::default())?;
            }
            opcode::TEST_UNIT_READY if well_known => {
                return command::check_cdb(&cdb, length, Features::default()).map(|_| ());
            }
            _ if well_known => {
                return Err(Sense::illegal(AdditionalSense::INVALID_OPERATION_CODE));
            }
            _ => return Err(Sense::illegal(AdditionalSense::LOGICAL_UNIT_NOT_SUPPORTED)),
        }
        match cdb.opcode() {
            opcode::INQUIRY => inquiry::without_unit(&cdb, inquiry_byte_0, data_in),
            opcode::REPORT_LUNS => report_luns::report_luns(self, &cdb, data_in),
            _ => {
                let sense = if well_known {
                    unit_control::NO_SENSE
                } else {
                    Sense::illegal(nothing)
                };
                unit_control::sense_as_data(&cdb, sense, data_in);
                Ok(())
            }
        }
    }
}

/// Called with the map locked, so that a REPORT LUNS cannot clear the condition before the
/// change it would report.
fn luns_changed(luns: &BTreeMap<Lun, Attachment>) {
    for attachment in luns.values() {
        attachment
            .nexus
            .pending()
            .establish(UnitAttention::ReportedLunsChanged);
    }
}

//! PERSISTENT RESERVE IN and OUT (SPC-4 6.15, 6.16, 5.13).
//!
//! PERSISTENT RESERVE OUT works on a copy of the unit's reservations under their lock: what is
//! refused, or cannot be stored, has changed nothing.

use crate::cdb::be_uint;
use crate::command::CommandContext;
use crate::logical_unit::LogicalUnit;
use crate::reservation::{
    Held, NexusId, REGISTRATIONS_MAX, Registration, ReservationType, Reservations,
};
use crate::sense::{AdditionalSense, Sense, SenseKey};
use crate::task::Status;
use crate::unit_attention::UnitAttention;

// Service actions of PERSISTENT RESERVE IN.
pub(crate) const READ_KEYS: u8 = 0;
pub(crate) const READ_RESERVATION: u8 = 1;
pub(crate) const REPORT_CAPABILITIES: u8 = 2;
pub(crate) const READ_FULL_STATUS: u8 = 3;

// Service actions of PERSISTENT RESERVE OUT.
pub(crate) const REGISTER: u8 = 0;
pub(crate) const RESERVE: u8 = 1;
pub(crate) const RELEASE: u8 = 2;
pub(crate) const CLEAR: u8 = 3;
pub(crate) const PREEMPT: u8 = 4;
pub(crate) const PREEMPT_AND_ABORT: u8 = 5;
pub(crate) const REGISTER_AND_IGNORE_EXISTING_KEY: u8 = 6;
pub(crate) const REGISTER_AND_MOVE: u8 = 7;

/// Every parameter list but that of REGISTER AND MOVE.
const LIST_BYTES: usize = 24;
/// REGISTER AND MOVE: header, then one `TransportID`.
const MOVE_LIST_BYTES: usize = 24 + TRANSPORT_ID_BYTES;
/// `TransportID` of a Fibre Channel port.
const TRANSPORT_ID_BYTES: usize = 24;

// Byte 20 of the parameter list.
const SPEC_I_PT: u64 = 0x08;
const ALL_TG_PT: u64 = 0x04;
const APTPL: u64 = 0x01;

/// Why a command changes nothing.
enum Refusal {
    Conflict,
    Sense(Sense),
}

impl From<Sense> for Refusal {
    fn from(sense: Sense) -> Self {
        Self::Sense(sense)
    }
}

/// Who has to hear of a change.
#[derive(Default)]
struct Told {
    attentions: Vec<(NexusId, UnitAttention)>,
    /// Their registrations were taken away by PREEMPT.
    preempted: Vec<NexusId>,
}

pub(crate) fn persistent_reserve_in(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    let unit = context.unit();
    let reservations = unit.reservations().clone();
    let body = match context.cdb.service_action() {
        READ_KEYS => {
            let keys = reservations.registrations.iter();
            keys.flat_map(|each| each.key.to_be_bytes()).collect()
        }
        READ_RESERVATION => reservation(&reservations),
        READ_FULL_STATUS => full_status(&reservations),
        _ => {
            let capabilities = capabilities(unit, &reservations);
            let allocation_bytes = context.cdb.uint(7..9);
            context.reply(&capabilities, allocation_bytes);
            return Ok(());
        }
    };
    let mut data = reservations.generation.to_be_bytes().to_vec();
    // At most REGISTRATIONS_MAX descriptors of 48 bytes.
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    data.extend(length.to_be_bytes());
    data.extend(body);
    let allocation_bytes = context.cdb.uint(7..9);
    context.reply(&data, allocation_bytes);
    Ok(())
}

/// READ RESERVATION: nothing, or key (8; 0 for "all registrants"), obsolete (4), reserved, scope
/// and type, obsolete (2).
fn reservation(reservations: &Reservations) -> Vec<u8> {
    let Some(held) = reservations.held else {
        return Vec::new();
    };
    let key = if held.kind.all_registrants() {
        0
    } else {
        reservations.key(held.holder).unwrap_or(0)
    };
    let mut body = key.to_be_bytes().to_vec();
    body.extend([0, 0, 0, 0, 0, held.kind.code(), 0, 0]);
    body
}

/// | byte | field |
/// | --- | --- |
/// | 2 | CRH, ATP_C, PTPL_C if there is a store |
/// | 3 | TMV, PTPL_A |
/// | 4, 5 | all six types |
fn capabilities(unit: &LogicalUnit, reservations: &Reservations) -> [u8; 8] {
    let persists = 0x80 | u8::from(reservations.persists);
    let can_persist = u8::from(unit.has_reservation_store());
    [0, 8, 0x14 | can_persist, persists, 0xEA, 0x01, 0, 0]
}

/// READ FULL STATUS. Each: key (8), reserved (4), R_HOLDER, scope and type, reserved (4),
/// relative target port (2), length of the `TransportID` (4), `TransportID`.
fn full_status(reservations: &Reservations) -> Vec<u8> {
    let mut body = Vec::new();
    for Registration { nexus, key } in &reservations.registrations {
        let held = reservations.held.filter(|_| reservations.holds(*nexus));
        body.extend(key.to_be_bytes());
        body.extend([0, 0, 0, 0, u8::from(held.is_some())]);
        body.extend([held.map_or(0, |held| held.kind.code()), 0, 0, 0, 0]);
        body.extend(nexus.target_port.to_be_bytes());
        body.extend([0, 0, 0, 24]);
        body.extend([0; 8]);
        body.extend(nexus.initiator_port.to_be_bytes());
        body.extend([0; 8]);
    }
    body
}

/// All service actions of PERSISTENT RESERVE OUT. The list is checked before the reservations
/// are looked at.
pub(crate) fn persistent_reserve_out(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    let unit = context.unit();
    let nexus = context.nexus.id();
    let action = context.cdb.service_action();
    let list_bytes = if action == REGISTER_AND_MOVE {
        MOVE_LIST_BYTES
    } else {
        LIST_BYTES
    };
    if context.cdb.uint(5..9) != u64::try_from(list_bytes).unwrap_or(u64::MAX) {
        return Err(Sense::illegal(AdditionalSense::PARAMETER_LIST_LENGTH_ERROR));
    }
    let list = context.take_data_out()?;
    let kind = reservation_type(context.cdb.byte(2), action)?;
    let request = Request {
        unit,
        nexus,
        key: be_uint(list, 0..8),
        action_key: be_uint(list, 8..16),
        list,
    };
    let mut reservations = unit.reservations();
    let mut after = reservations.clone();
    let mut told = Told::default();
    let changed = match (action, kind) {
        (REGISTER | REGISTER_AND_IGNORE_EXISTING_KEY, _) => {
            request.register(&mut after, &mut told, action == REGISTER)
        }
        (RESERVE, Some(kind)) => request.reserve(&mut after, kind),
        (RELEASE, Some(kind)) => request.release(&mut after, &mut told, kind),
        (CLEAR, _) => request.clear(&mut after, &mut told),
        (PREEMPT | PREEMPT_AND_ABORT, kind) => request.preempt(&mut after, &mut told, kind),
        _ => request.register_and_move(&mut after),
    };
    match changed {
        Ok(()) => {}
        Err(Refusal::Conflict) => {
            context.status = Status::ReservationConflict;
            return Ok(());
        }
        Err(Refusal::Sense(sense)) => return Err(sense),
    }
    unit.store_reservations(&reservations, &after)?;
    *reservations = after;
    // Under the lock: whoever finds the new reservations finds what it has to hear of, too.
    for (nexus, condition) in told.attentions {
        unit.establish_on(nexus, condition, &context.attachment.nexus);
    }
    if action == PREEMPT_AND_ABORT {
        let ports = told.preempted.into_iter();
        context.preempted_ports = ports.map(|nexus| nexus.initiator_port).collect();
    }
    Ok(())
}

/// Scope and type of byte 2, where the service action has them. PREEMPT may need none.
fn reservation_type(byte_2: u8, action: u8) -> Result<Option<ReservationType>, Sense> {
    let kind = ReservationType::of_code(byte_2 & 0x0F);
    match action {
        RESERVE | RELEASE if byte_2 & 0xF0 != 0 => Err(Sense::cdb_field(2, Some(7))),
        RESERVE | RELEASE if kind.is_none() => Err(Sense::cdb_field(2, Some(3))),
        PREEMPT | PREEMPT_AND_ABORT if byte_2 & 0xF0 != 0 => Ok(None),
        _ => Ok(kind),
    }
}

/// A PERSISTENT RESERVE OUT command.
struct Request<'a> {
    unit: &'a LogicalUnit,
    nexus: NexusId,
    /// RESERVATION KEY.
    key: u64,
    /// SERVICE ACTION RESERVATION KEY.
    action_key: u64,
    list: &'a [u8],
}

impl Request<'_> {
    /// The key must be the one that the nexus is registered with.
    fn check_key(&self, reservations: &Reservations) -> Result<(), Refusal> {
        if reservations.key(self.nexus) == Some(self.key) {
            Ok(())
        } else {
            Err(Refusal::Conflict)
        }
    }

    /// REGISTER and REGISTER AND IGNORE EXISTING KEY (SPC-4 5.13.7).
    fn register(
        &self,
        after: &mut Reservations,
        told: &mut Told,
        checks_key: bool,
    ) -> Result<(), Refusal> {
        let flags = be_uint(self.list, 20..21);
        if flags & SPEC_I_PT != 0 {
            return Err(Sense::parameter_field(20, Some(3)).into());
        }
        if flags & APTPL != 0 && !self.unit.has_reservation_store() {
            return Err(Sense::parameter_field(20, Some(0)).into());
        }
        if checks_key && after.key(self.nexus).unwrap_or(0) != self.key {
            return Err(Refusal::Conflict);
        }
        let all_ports = if flags & ALL_TG_PT != 0 {
            self.unit.target_ports()
        } else {
            Vec::new()
        };
        let mut ports = vec![self.nexus.target_port];
        ports.extend(
            all_ports
                .into_iter()
                .filter(|&port| port != self.nexus.target_port),
        );
        for target_port in ports {
            let nexus = NexusId {
                target_port,
                ..self.nexus
            };
            if self.action_key == 0 {
                unregister(after, told, nexus);
            } else {
                register(after, nexus, self.action_key)?;
            }
        }
        after.persists = flags & APTPL != 0;
        after.generation = after.generation.wrapping_add(1);
        Ok(())
    }

    /// RESERVE (SPC-4 5.13.9): again is no error.
    fn reserve(&self, after: &mut Reservations, kind: ReservationType) -> Result<(), Refusal> {
        self.check_key(after)?;
        match after.held {
            None => {
                let holder = self.nexus;
                after.held = Some(Held { kind, holder });
                Ok(())
            }
            Some(held) if after.holds(self.nexus) && held.kind == kind => Ok(()),
            Some(_) => Err(Refusal::Conflict),
        }
    }

    /// RELEASE (SPC-4 5.13.11.2).
    fn release(
        &self,
        after: &mut Reservations,
        told: &mut Told,
        kind: ReservationType,
    ) -> Result<(), Refusal> {
        self.check_key(after)?;
        let Some(held) = after.held.filter(|_| after.holds(self.nexus)) else {
            return Ok(());
        };
        if held.kind != kind {
            return Err(Sense::illegal(AdditionalSense::INVALID_RELEASE).into());
        }
        after.held = None;
        if kind.registrants_only() || kind.all_registrants() {
            tell_registered(after, told, UnitAttention::ReservationsReleased);
        }
        Ok(())
    }

    /// CLEAR (SPC-4 5.13.11.5).
    fn clear(&self, after: &mut Reservations, told: &mut Told) -> Result<(), Refusal> {
        self.check_key(after)?;
        tell_registered(after, told, UnitAttention::ReservationsPreempted);
        after.registrations.clear();
        after.held = None;
        after.generation = after.generation.wrapping_add(1);
        Ok(())
    }

    /// PREEMPT and what PREEMPT AND ABORT does first (SPC-4 5.13.11.3).
    fn preempt(
        &self,
        after: &mut Reservations,
        told: &mut Told,
        kind: Option<ReservationType>,
    ) -> Result<(), Refusal> {
        self.check_key(after)?;
        let takes_reservation = after.held.filter(|held| {
            if held.kind.all_registrants() {
                self.action_key == 0
            } else {
                after.key(held.holder) == Some(self.action_key)
            }
        });
        if let Some(before) = takes_reservation {
            let kind = kind.ok_or(Sense::cdb_field(2, None))?;
            let all = before.kind.all_registrants();
            self.remove(after, told, |each| {
                each.nexus != self.nexus && (all || each.key == self.action_key)
            });
            after.held = Some(Held {
                kind,
                holder: self.nexus,
            });
            if before.kind != kind {
                tell_registered(after, told, UnitAttention::ReservationsReleased);
            }
        } else if self.action_key == 0 {
            return Err(Sense::parameter_field(8, None).into());
        } else {
            let before = after.registrations.len();
            self.remove(after, told, |each| each.key == self.action_key);
            if after.registrations.len() == before {
                return Err(Refusal::Conflict);
            }
            rename_holder(after);
        }
        after.generation = after.generation.wrapping_add(1);
        Ok(())
    }

    fn remove(
        &self,
        after: &mut Reservations,
        told: &mut Told,
        wanted: impl Fn(&Registration) -> bool,
    ) {
        after.registrations.retain(|each| {
            if !wanted(each) {
                return true;
            }
            if each.nexus != self.nexus {
                let preempted = (each.nexus, UnitAttention::RegistrationsPreempted);
                told.attentions.push(preempted);
                told.preempted.push(each.nexus);
            }
            false
        });
    }

    /// REGISTER AND MOVE (SPC-4 5.13.8).
    ///
    /// | byte | field |
    /// | --- | --- |
    /// | 17 | UNREG, APTPL |
    /// | 18..20 | relative target port |
    /// | 20..24 | length of the `TransportID` |
    /// | 24.. | `TransportID`: format and protocol (0: Fibre Channel), then at 8 the port's name |
    fn register_and_move(&self, after: &mut Reservations) -> Result<(), Refusal> {
        if after.key(self.nexus).is_none() {
            return Err(Refusal::Conflict);
        }
        let Some(held) = after.held else {
            return Err(Sense::cdb_field(1, Some(4)).into());
        };
        if held.kind.all_registrants() || held.holder != self.nexus {
            return Err(Refusal::Conflict);
        }
        self.check_key(after)?;
        if self.action_key == 0 {
            return Err(Sense::parameter_field(8, None).into());
        }
        let flags = be_uint(self.list, 17..18);
        if flags & APTPL != 0 && !self.unit.has_reservation_store() {
            return Err(Sense::parameter_field(17, Some(0)).into());
        }
        let target_port = u16::try_from(be_uint(self.list, 18..20)).unwrap_or(0);
        if !self.unit.target_ports().contains(&target_port) {
            return Err(Sense::parameter_field(18, None).into());
        }
        let transport_id_bytes = usize::try_from(be_uint(self.list, 20..24));
        if transport_id_bytes != Ok(TRANSPORT_ID_BYTES) {
            return Err(Sense::parameter_field(20, None).into());
        }
        let to = NexusId {
            initiator_port: be_uint(self.list, 32..40),
            target_port,
        };
        if be_uint(self.list, 24..25) != 0 || to == self.nexus {
            return Err(Sense::parameter_field(24, None).into());
        }
        register(after, to, self.action_key)?;
        after.held = Some(Held { holder: to, ..held });
        if flags & 0x02 != 0 {
            after.registrations.retain(|each| each.nexus != self.nexus);
        }
        after.persists = flags & APTPL != 0;
        after.generation = after.generation.wrapping_add(1);
        Ok(())
    }
}

fn register(after: &mut Reservations, nexus: NexusId, key: u64) -> Result<(), Sense> {
    let mut registered = after.registrations.iter_mut();
    if let Some(registration) = registered.find(|each| each.nexus == nexus) {
        registration.key = key;
    } else if after.registrations.len() < REGISTRATIONS_MAX {
        after.registrations.push(Registration { nexus, key });
    } else {
        let full = AdditionalSense::INSUFFICIENT_REGISTRATION_RESOURCES;
        return Err(Sense::new(SenseKey::IllegalRequest, full));
    }
    Ok(())
}

/// Takes a registration away, and with the holder's the reservation (SPC-4 5.13.11.4).
fn unregister(after: &mut Reservations, told: &mut Told, nexus: NexusId) {
    after.registrations.retain(|each| each.nexus != nexus);
    let Some(held) = after.held else { return };
    let ends = if held.kind.all_registrants() {
        after.registrations.is_empty()
    } else {
        held.holder == nexus
    };
    if ends {
        after.held = None;
        if held.kind.registrants_only() {
            tell_registered(after, told, UnitAttention::ReservationsReleased);
        }
    } else {
        rename_holder(after);
    }
}

/// All registered nexuses hold an "all registrants" reservation: the one whose name stands for
/// them must be there, and with the last one the reservation ends.
fn rename_holder(after: &mut Reservations) {
    let Some(held) = after.held.filter(|held| held.kind.all_registrants()) else {
        return;
    };
    if after.key(held.holder).is_none() {
        let next = after.registrations.first();
        after.held = next.map(|next| Held {
            holder: next.nexus,
            ..held
        });
    }
}

/// Makes `condition` pending on every registered nexus; the one that causes it is left out where
/// it is established.
fn tell_registered(after: &Reservations, told: &mut Told, condition: UnitAttention) {
    let nexuses = after.registrations.iter().map(|each| each.nexus);
    told.attentions
        .extend(nexuses.map(|nexus| (nexus, condition)));
}

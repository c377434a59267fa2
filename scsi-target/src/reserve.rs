//! RESERVE and RELEASE of 6 and 10 bytes (SPC-2 7.21 ff), as SPC-4 5.13.3 has them beside
//! persistent reservations (CRH).

use crate::command::CommandContext;
use crate::sense::Sense;
use crate::task::Status;

/// RESERVE: the whole unit, until RELEASE, a reset, or the loss of the nexus. Whoever has the
/// rights of a persistent reservation is told GOOD and reserves nothing; any other registration
/// is a conflict.
pub(crate) fn reserve(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    let nexus = context.nexus.id();
    let mut reservations = context.unit().reservations();
    if reservations.shares(nexus) {
        return Ok(());
    }
    let free = reservations.reserved_by.is_none_or(|owner| owner == nexus);
    if free && reservations.registrations.is_empty() {
        reservations.reserved_by = Some(nexus);
    } else {
        context.status = Status::ReservationConflict;
    }
    Ok(())
}

/// RELEASE: of what another nexus reserved, it is GOOD and does nothing.
pub(crate) fn release(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    let nexus = context.nexus.id();
    let mut reservations = context.unit().reservations();
    if reservations.shares(nexus) {
        return Ok(());
    }
    if !reservations.registrations.is_empty() {
        context.status = Status::ReservationConflict;
    } else if reservations.reserved_by == Some(nexus) {
        reservations.reserved_by = None;
    }
    Ok(())
}

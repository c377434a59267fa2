//! Who may use a unit while others may not: persistent reservations (SPC-4 5.13) and those of
//! RESERVE(6) and RESERVE(10) (SPC-2 5.5), which exclude each other.
//!
//! This is the state and its rules. The commands that change it are in `persistent_reserve` and
//! `reserve`.

use std::fmt;

use thiserror::Error;

use crate::cdb::{Cdb, be_uint};

/// Most registrations of one unit; one more is refused with 5/55/04.
pub(crate) const REGISTRATIONS_MAX: usize = 128;

/// An initiator port and the target port that it uses. What is registered under it survives
/// sessions, resets and changes of the LUN map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NexusId {
    pub(crate) initiator_port: u64,
    pub(crate) target_port: u16,
}

/// Persistent reservation types (SPC-4 table 60).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReservationType {
    WriteExclusive,
    ExclusiveAccess,
    WriteExclusiveRegistrantsOnly,
    ExclusiveAccessRegistrantsOnly,
    WriteExclusiveAllRegistrants,
    ExclusiveAccessAllRegistrants,
}

impl ReservationType {
    /// The type of a TYPE field.
    pub(crate) const fn of_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::WriteExclusive,
            3 => Self::ExclusiveAccess,
            5 => Self::WriteExclusiveRegistrantsOnly,
            6 => Self::ExclusiveAccessRegistrantsOnly,
            7 => Self::WriteExclusiveAllRegistrants,
            8 => Self::ExclusiveAccessAllRegistrants,
            _ => return None,
        })
    }

    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::WriteExclusive => 1,
            Self::ExclusiveAccess => 3,
            Self::WriteExclusiveRegistrantsOnly => 5,
            Self::ExclusiveAccessRegistrantsOnly => 6,
            Self::WriteExclusiveAllRegistrants => 7,
            Self::ExclusiveAccessAllRegistrants => 8,
        }
    }

    /// Every registered nexus holds it.
    pub(crate) const fn all_registrants(self) -> bool {
        matches!(
            self,
            Self::WriteExclusiveAllRegistrants | Self::ExclusiveAccessAllRegistrants
        )
    }

    /// One holds it, all registered ones have its rights.
    pub(crate) const fn registrants_only(self) -> bool {
        matches!(
            self,
            Self::WriteExclusiveRegistrantsOnly | Self::ExclusiveAccessRegistrantsOnly
        )
    }

    const fn shuts_out_readers(self) -> bool {
        matches!(
            self,
            Self::ExclusiveAccess
                | Self::ExclusiveAccessRegistrantsOnly
                | Self::ExclusiveAccessAllRegistrants
        )
    }
}

/// What a command may do under the reservation of another nexus (SPC-4 table 62, SBC-3 table 13,
/// SPC-2 table 10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reserved {
    /// Run, always.
    Free,
    /// Run, except under RESERVE of another nexus.
    FreeOfPersistent,
    /// Run unless readers are shut out.
    Reads,
    /// Not run.
    Writes,
    /// START STOP UNIT: only starting is free.
    Starts,
    /// PREVENT ALLOW MEDIUM REMOVAL: only allowing is free.
    Prevents,
    /// PERSISTENT RESERVE IN and OUT: the command itself decides, but never beside RESERVE.
    Persistent,
    /// RESERVE and RELEASE: the command itself decides.
    Own,
}

impl Reserved {
    /// Resolves the rules that depend on the CDB.
    fn of(self, cdb: &Cdb) -> Self {
        let free = |free| if free { Self::Free } else { Self::Writes };
        match self {
            Self::Starts => free(cdb.has(4, 0x01) && !cdb.has(4, 0xF0)),
            Self::Prevents => free(!cdb.has(4, 0x03)),
            other => other,
        }
    }
}

/// A registered nexus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Registration {
    pub(crate) nexus: NexusId,
    /// Never zero.
    pub(crate) key: u64,
}

/// A persistent reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) kind: ReservationType,
    /// Who made it; with an "all registrants" type every registered nexus holds it.
    pub(crate) holder: NexusId,
}

/// Registrations and reservations of one unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reservations {
    /// In order of registration, at most [`REGISTRATIONS_MAX`].
    pub(crate) registrations: Vec<Registration>,
    pub(crate) held: Option<Held>,
    /// PRGENERATION.
    pub(crate) generation: u32,
    /// APTPL of the last registration: the above outlives a restart.
    pub(crate) persists: bool,
    /// The holder of RESERVE(6) or RESERVE(10).
    pub(crate) reserved_by: Option<NexusId>,
}

impl Reservations {
    /// The key of a nexus, if it is registered.
    pub(crate) fn key(&self, nexus: NexusId) -> Option<u64> {
        let mut found = self.registrations.iter();
        found.find(|each| each.nexus == nexus).map(|each| each.key)
    }

    /// Whether a nexus holds the persistent reservation.
    pub(crate) fn holds(&self, nexus: NexusId) -> bool {
        self.held.is_some_and(|held| {
            if held.kind.all_registrants() {
                self.key(nexus).is_some()
            } else {
                held.holder == nexus
            }
        })
    }

    /// Whether a nexus holds the persistent reservation or has the rights of its holder.
    pub(crate) fn shares(&self, nexus: NexusId) -> bool {
        let registrants = |held: Held| held.kind.registrants_only();
        self.holds(nexus) || (self.held.is_some_and(registrants) && self.key(nexus).is_some())
    }

    /// Whether a command has to end with RESERVATION CONFLICT.
    pub(crate) fn conflict(&self, nexus: NexusId, rule: Reserved, cdb: &Cdb) -> bool {
        let rule = rule.of(cdb);
        if rule == Reserved::Free || rule == Reserved::Own {
            return false;
        }
        if let Some(owner) = self.reserved_by {
            // Persistent reservations are refused to the owner too (SPC-2 5.5.1).
            return owner != nexus || rule == Reserved::Persistent;
        }
        let Some(held) = self.held else { return false };
        match rule {
            Reserved::Reads => held.kind.shuts_out_readers() && !self.shares(nexus),
            Reserved::Writes => !self.shares(nexus),
            _ => false,
        }
    }

    /// The bytes that [`Self::decode`] reads.
    ///
    /// | byte | field |
    /// | --- | --- |
    /// | 0..4 | `OPR1` |
    /// | 4 | type of the reservation, 0 for none |
    /// | 5..7 | number of registrations |
    /// | 7.. | each: initiator port (8), target port (2), key (8), whether it is the holder (1) |
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.push(self.held.map_or(0, |held| held.kind.code()));
        let count = u16::try_from(self.registrations.len()).unwrap_or(u16::MAX);
        bytes.extend(count.to_be_bytes());
        for Registration { nexus, key } in &self.registrations {
            bytes.extend(nexus.initiator_port.to_be_bytes());
            bytes.extend(nexus.target_port.to_be_bytes());
            bytes.extend(key.to_be_bytes());
            let holder = self.held.is_some_and(|held| held.holder == *nexus);
            bytes.push(u8::from(holder));
        }
        bytes
    }

    /// What was stored; nothing stored is no reservation.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, StoredReservationsError> {
        const WRONG: StoredReservationsError = StoredReservationsError;
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let (header, rest) = bytes.split_at_checked(7).ok_or(WRONG)?;
        let count = usize::try_from(be_uint(header, 5..7)).unwrap_or(usize::MAX);
        let whole = count <= REGISTRATIONS_MAX && rest.len() == count * REGISTRATION_BYTES;
        if !header.starts_with(&MAGIC) || !whole {
            return Err(WRONG);
        }
        let mut reservations = Self {
            persists: true,
            ..Self::default()
        };
        let mut holder = None;
        for bytes in rest.chunks_exact(REGISTRATION_BYTES) {
            let nexus = NexusId {
                initiator_port: be_uint(bytes, 0..8),
                target_port: u16::try_from(be_uint(bytes, 8..10)).map_err(|_large| WRONG)?,
            };
            let key = be_uint(bytes, 10..18);
            if key == 0 || reservations.key(nexus).is_some() {
                return Err(WRONG);
            }
            if be_uint(bytes, 18..19) != 0 {
                holder = Some(nexus);
            }
            let registration = Registration { nexus, key };
            reservations.registrations.push(registration);
        }
        reservations.held = match u8::try_from(be_uint(header, 4..5)).unwrap_or(0) {
            0 => None,
            code => Some(Held {
                kind: ReservationType::of_code(code).ok_or(WRONG)?,
                holder: holder.ok_or(WRONG)?,
            }),
        };
        Ok(reservations)
    }
}

const MAGIC: [u8; 4] = *b"OPR1";
const REGISTRATION_BYTES: usize = 19;

/// Bytes that no [`ReservationStore`] was given, or damaged ones. Who goes on without them gives
/// up what a cluster relies on to keep two hosts from writing at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("stored reservations are damaged; restore them, or remove them once no host uses the unit")]
pub struct StoredReservationsError;

/// The store cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("reservations cannot be stored")]
pub struct ReservationStoreError;

/// Keeps the persistent reservations of one unit across restarts (APTPL, SPC-4 5.13.5).
///
/// Give what was stored last to
/// [`LogicalUnit::load_reservations`](crate::LogicalUnit::load_reservations).
pub trait ReservationStore: Send + Sync + fmt::Debug {
    /// Replaces what is stored, at most 3 KiB; durable on return. Empty means that nothing need
    /// be kept. Called with a lock of the unit held: must not call the unit.
    ///
    /// # Errors
    /// [`ReservationStoreError`]; what was stored before must still be there. The command that
    /// wanted the change fails with 4/44/00 and changes nothing.
    fn store(&self, reservations: &[u8]) -> Result<(), ReservationStoreError>;

    /// Whether it is to be given also what no initiator asked to keep (APTPL 0), because another
    /// target may go on with the unit. The default is not.
    fn keeps_all(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nexus(initiator_port: u64) -> NexusId {
        NexusId {
            initiator_port,
            target_port: 1,
        }
    }

    fn reservations(code: u8) -> Reservations {
        Reservations {
            registrations: [1, 2]
                .map(|n| Registration {
                    nexus: nexus(n),
                    key: n,
                })
                .to_vec(),
            held: ReservationType::of_code(code).map(|kind| Held {
                kind,
                holder: nexus(1),
            }),
            persists: true,
            ..Reservations::default()
        }
    }

    #[test]
    fn conflicts_are_those_of_spc_4() {
        // Columns: reads and writes of the holder, a registered nexus and a stranger.
        for (code, table) in [
            (1, [true, true, true, false, true, false]),
            (3, [true, true, false, false, false, false]),
            (5, [true, true, true, true, true, false]),
            (6, [true, true, true, true, false, false]),
            (7, [true, true, true, true, true, false]),
            (8, [true, true, true, true, false, false]),
        ] {
            let reservations = reservations(code);
            let mut column = table.into_iter();
            for who in [1, 2, 3].map(nexus) {
                for rule in [Reserved::Reads, Reserved::Writes] {
                    let allowed = !reservations.conflict(who, rule, &Cdb::new(&[]));
                    assert_eq!(Some(allowed), column.next(), "{code} {who:?} {rule:?}");
                }
                for rule in [Reserved::Free, Reserved::FreeOfPersistent, Reserved::Own] {
                    assert!(!reservations.conflict(who, rule, &Cdb::new(&[])));
                }
            }
        }
    }

    #[test]
    fn starting_and_allowing_removal_are_free() {
        let reservations = reservations(1);
        let conflict = |rule, byte_4| {
            let cdb = Cdb::new(&[0, 0, 0, 0, byte_4, 0]);
            reservations.conflict(nexus(3), rule, &cdb)
        };
        assert!(!conflict(Reserved::Starts, 1) && conflict(Reserved::Starts, 0));
        assert!(!conflict(Reserved::Prevents, 0) && conflict(Reserved::Prevents, 1));
    }

    #[test]
    fn stored_bytes_give_back_what_was_stored() {
        for code in [0, 1, 3, 5, 6, 7, 8] {
            let before = reservations(code);
            assert_eq!(Reservations::decode(&before.encode()), Ok(before));
        }
        assert_eq!(Reservations::decode(&[]), Ok(Reservations::default()));
    }

    #[test]
    fn damaged_bytes_are_refused() {
        let good = reservations(5).encode();
        for end in 1..good.len() {
            assert!(Reservations::decode(&good[..end]).is_err(), "{end}");
        }
        for (at, value) in [(0, 0), (4, 2), (5, 1), (25, 0), (24, 0)] {
            let mut bad = good.clone();
            bad[at] = value;
            // Byte 24 is the key of the first, byte 25 makes it the holder.
            assert!(Reservations::decode(&bad).is_err(), "{at}");
        }
        let twice = [&good[..7], &good[7..26], &good[7..26]].concat();
        assert!(Reservations::decode(&twice).is_err());
    }
}

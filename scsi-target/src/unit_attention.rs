//! Unit attention conditions pending on one nexus (SAM-5 5.14).
//!
//! ```text
//! establish(x): x joins the pending set; a reset clears what it makes obsolete
//! take():       the pending condition of the highest precedence leaves the set
//! ```
//! The set is a bit for each kind, so it is bounded whatever happens.

use crate::sense::{AdditionalSense, Sense, SenseKey};

/// Something a nexus has not been told yet, in the order of precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum UnitAttention {
    /// 29/00: the unit is new to this nexus.
    PowerOn,
    /// 29/02: hard reset of the target.
    TargetReset,
    /// 29/03: logical unit reset.
    LogicalUnitReset,
    /// 29/07: I_T nexus loss.
    NexusLoss,
    /// 3F/0E: the LUN map changed.
    ReportedLunsChanged,
    /// 2A/09: the capacity changed.
    CapacityChanged,
    /// 2A/01: another nexus changed mode parameters.
    ModeParametersChanged,
    /// 2A/03: a persistent reservation this nexus shared in was taken away.
    ReservationsPreempted,
    /// 2A/04: a persistent reservation this nexus shared in was released.
    ReservationsReleased,
    /// 2A/05: the registration of this nexus was taken away.
    RegistrationsPreempted,
    /// 2A/06: the asymmetric access state of a target port changed.
    AccessStateChanged,
}

impl UnitAttention {
    const ALL: [Self; 11] = [
        Self::PowerOn,
        Self::TargetReset,
        Self::LogicalUnitReset,
        Self::NexusLoss,
        Self::ReportedLunsChanged,
        Self::CapacityChanged,
        Self::ModeParametersChanged,
        Self::ReservationsPreempted,
        Self::ReservationsReleased,
        Self::RegistrationsPreempted,
        Self::AccessStateChanged,
    ];

    /// ASC and ASCQ.
    #[must_use]
    pub const fn additional(self) -> AdditionalSense {
        let (asc, ascq) = match self {
            Self::PowerOn => (0x29, 0x00),
            Self::TargetReset => (0x29, 0x02),
            Self::LogicalUnitReset => (0x29, 0x03),
            Self::NexusLoss => (0x29, 0x07),
            Self::ReportedLunsChanged => (0x3F, 0x0E),
            Self::CapacityChanged => (0x2A, 0x09),
            Self::ModeParametersChanged => (0x2A, 0x01),
            Self::ReservationsPreempted => (0x2A, 0x03),
            Self::ReservationsReleased => (0x2A, 0x04),
            Self::RegistrationsPreempted => (0x2A, 0x05),
            Self::AccessStateChanged => (0x2A, 0x06),
        };
        AdditionalSense { asc, ascq }
    }

    /// UNIT ATTENTION sense.
    #[must_use]
    pub const fn sense(self) -> Sense {
        Sense::new(SenseKey::UnitAttention, self.additional())
    }

    const fn bit(self) -> u16 {
        match self {
            Self::PowerOn => 1 << 0,
            Self::TargetReset => 1 << 1,
            Self::LogicalUnitReset => 1 << 2,
            Self::NexusLoss => 1 << 3,
            Self::ReportedLunsChanged => 1 << 4,
            Self::CapacityChanged => 1 << 5,
            Self::ModeParametersChanged => 1 << 6,
            Self::ReservationsPreempted => 1 << 7,
            Self::ReservationsReleased => 1 << 8,
            Self::RegistrationsPreempted => 1 << 9,
            Self::AccessStateChanged => 1 << 10,
        }
    }

    /// What is not worth telling any more after this one: 29/xx makes the initiator read
    /// everything again that a change of mode parameters or of the nexus would.
    const fn makes_obsolete(self) -> u16 {
        match self {
            Self::PowerOn | Self::TargetReset | Self::LogicalUnitReset => {
                Self::TargetReset.bit()
                    | Self::LogicalUnitReset.bit()
                    | Self::NexusLoss.bit()
                    | Self::ModeParametersChanged.bit()
            }
            _ => 0,
        }
    }

    const fn made_obsolete_by(self) -> u16 {
        match self {
            Self::TargetReset => Self::PowerOn.bit(),
            Self::LogicalUnitReset => Self::PowerOn.bit() | Self::TargetReset.bit(),
            Self::NexusLoss => {
                Self::PowerOn.bit() | Self::TargetReset.bit() | Self::LogicalUnitReset.bit()
            }
            _ => 0,
        }
    }
}

/// The conditions pending on one nexus for one unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PendingUnitAttentions(u16);

impl PendingUnitAttentions {
    pub(crate) const fn establish(&mut self, condition: UnitAttention) {
        if self.0 & condition.made_obsolete_by() != 0 {
            // The initiator will hear of the stronger one, but what came in between is done.
            self.0 &= !condition.makes_obsolete() | condition.made_obsolete_by();
            return;
        }
        self.0 &= !condition.makes_obsolete();
        self.0 |= condition.bit();
    }

    pub(crate) const fn withdraw(&mut self, condition: UnitAttention) {
        self.0 &= !condition.bit();
    }

    pub(crate) fn take(&mut self) -> Option<UnitAttention> {
        let first = UnitAttention::ALL
            .into_iter()
            .find(|each| self.0 & each.bit() != 0)?;
        self.withdraw(first);
        Some(first)
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(mut pending: PendingUnitAttentions) -> Vec<UnitAttention> {
        std::iter::from_fn(|| pending.take()).collect()
    }

    #[test]
    fn conditions_leave_in_order_of_precedence_and_once() {
        let mut pending = PendingUnitAttentions::default();
        for condition in UnitAttention::ALL
            .into_iter()
            .rev()
            .skip_while(|c| c.bit() > 1 << 5)
        {
            pending.establish(condition);
            pending.establish(condition);
        }
        assert_eq!(
            drain(pending),
            [
                UnitAttention::PowerOn,
                UnitAttention::ReportedLunsChanged,
                UnitAttention::CapacityChanged
            ]
        );
    }

    #[test]
    fn reset_makes_mode_changes_before_it_obsolete_and_not_those_after() {
        let mut pending = PendingUnitAttentions::default();
        pending.establish(UnitAttention::ModeParametersChanged);
        pending.establish(UnitAttention::LogicalUnitReset);
        assert_eq!(drain(pending), [UnitAttention::LogicalUnitReset]);
        pending.establish(UnitAttention::ModeParametersChanged);
        assert_eq!(
            drain(pending),
            [
                UnitAttention::LogicalUnitReset,
                UnitAttention::ModeParametersChanged
            ]
        );
    }

    #[test]
    fn weaker_reset_disappears_behind_a_pending_stronger_one() {
        let mut pending = PendingUnitAttentions::default();
        pending.establish(UnitAttention::PowerOn);
        pending.establish(UnitAttention::ModeParametersChanged);
        pending.establish(UnitAttention::LogicalUnitReset);
        pending.establish(UnitAttention::NexusLoss);
        assert_eq!(drain(pending), [UnitAttention::PowerOn]);
    }
}

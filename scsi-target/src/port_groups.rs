//! Asymmetric logical unit access (SPC-4 5.15): target port groups, their states, and the
//! commands that report and set them.

use std::sync::{PoisonError, RwLock};

use thiserror::Error;

use crate::cdb::be_uint;
use crate::command::CommandContext;
use crate::sense::{AdditionalSense, Sense, SenseKey};
use crate::unit_attention::UnitAttention;

/// Most target port groups of a unit, and most ports of a group.
pub const PORT_GROUPS_MAX: usize = 32;

/// How a unit can be used through the ports of a group (SPC-4 5.15.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessState {
    /// As fast as it gets.
    ActiveOptimized,
    /// All commands, slower.
    ActiveNonOptimized,
    /// Only commands about the unit; the medium answers 2/04/0B.
    Standby,
    /// Only commands about ports and LUNs; the rest answers 2/04/0C.
    Unavailable,
    /// On its way to another state: as unavailable, with 2/04/0A.
    Transitioning,
}

impl AccessState {
    const fn code(self) -> u8 {
        match self {
            Self::ActiveOptimized => 0x0,
            Self::ActiveNonOptimized => 0x1,
            Self::Standby => 0x2,
            Self::Unavailable => 0x3,
            Self::Transitioning => 0xF,
        }
    }

    /// The states that an initiator may ask for.
    const fn of_code(code: u64) -> Option<Self> {
        Some(match code {
            0x0 => Self::ActiveOptimized,
            0x1 => Self::ActiveNonOptimized,
            0x2 => Self::Standby,
            0x3 => Self::Unavailable,
            _ => return None,
        })
    }
}

/// In which access states a command runs (SPC-4 5.15.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunsIn {
    /// Active ones.
    Active,
    /// Active and standby.
    Standby,
    /// All but transitioning.
    Settled,
    /// All.
    Any,
}

impl RunsIn {
    /// Refuses a command that does not run in `state`.
    pub(crate) const fn check(self, state: AccessState) -> Result<(), Sense> {
        let additional = match (state, self) {
            (AccessState::ActiveOptimized | AccessState::ActiveNonOptimized, _)
            | (_, Self::Any)
            | (AccessState::Standby, Self::Standby | Self::Settled)
            | (AccessState::Unavailable, Self::Settled) => return Ok(()),
            (AccessState::Standby, _) => AdditionalSense::TARGET_PORT_STANDBY,
            (AccessState::Unavailable, _) => AdditionalSense::TARGET_PORT_UNAVAILABLE,
            (AccessState::Transitioning, _) => AdditionalSense::ACCESS_STATE_TRANSITION,
        };
        Err(Sense::new(SenseKey::NotReady, additional))
    }
}

/// A target port of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetPort {
    /// Relative target port identifier, from 1.
    pub relative: u16,
    /// Its WWPN: an NAA name of eight bytes, if it has one.
    pub name: Option<u64>,
}

/// Target ports through which a unit is equally well reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortGroup {
    /// TARGET PORT GROUP, unique for the unit.
    pub id: u16,
    /// Its ports, each in one group only.
    pub ports: Vec<TargetPort>,
    /// How the unit can be used through them.
    pub state: AccessState,
    /// PREF: initiators should prefer this group.
    pub preferred: bool,
}

impl PortGroup {
    /// An active/optimized group of one port without a name.
    #[must_use]
    pub fn of_port(id: u16, relative: u16) -> Self {
        Self {
            id,
            ports: vec![TargetPort {
                relative,
                name: None,
            }],
            state: AccessState::ActiveOptimized,
            preferred: false,
        }
    }
}

/// Why port groups cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PortGroupError {
    /// There is none, or more than [`PORT_GROUPS_MAX`], or as many ports in one.
    #[error("1 to {PORT_GROUPS_MAX} groups of 1 to {PORT_GROUPS_MAX} ports are possible")]
    Number,
    /// Two groups have one identifier, or a port is named twice or 0.
    #[error("target port group {id} is not unique, or one of its ports is 0 or not")]
    NotUnique {
        /// The group.
        id: u16,
    },
    /// There is no such group.
    #[error("there is no target port group {id}")]
    NoSuchGroup {
        /// The group.
        id: u16,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    None,
    Command,
    Implicit,
}

/// The groups of a unit.
#[derive(Debug)]
pub(crate) struct PortGroups {
    /// With what the state came from: STATUS CODE.
    groups: RwLock<Vec<(PortGroup, Cause)>>,
}

impl Default for PortGroups {
    fn default() -> Self {
        Self {
            groups: RwLock::new(vec![(PortGroup::of_port(1, 1), Cause::None)]),
        }
    }
}

impl PortGroups {
    pub(crate) fn new(groups: Vec<PortGroup>) -> Result<Self, PortGroupError> {
        let number = |number: usize| (1..=PORT_GROUPS_MAX).contains(&number);
        if !number(groups.len()) || !groups.iter().all(|group| number(group.ports.len())) {
            return Err(PortGroupError::Number);
        }
        let mut ids = Vec::new();
        let mut ports = Vec::new();
        for group in &groups {
            let id = group.id;
            if ids.contains(&id) {
                return Err(PortGroupError::NotUnique { id });
            }
            ids.push(id);
            for port in &group.ports {
                if port.relative == 0 || ports.contains(&port.relative) {
                    return Err(PortGroupError::NotUnique { id });
                }
                ports.push(port.relative);
            }
        }
        let groups = groups.into_iter().map(|group| (group, Cause::None));
        Ok(Self {
            groups: RwLock::new(groups.collect()),
        })
    }

    pub(crate) fn all(&self) -> Vec<PortGroup> {
        self.with(|groups| groups.iter().map(|(group, _)| group.clone()).collect())
    }

    /// The state of the group of a port; a port of no group is as good as any.
    pub(crate) fn state_of_port(&self, relative: u16) -> AccessState {
        let has = |group: &PortGroup| group.ports.iter().any(|port| port.relative == relative);
        self.with(|groups| {
            let found = groups.iter().find(|(group, _)| has(group));
            found.map_or(AccessState::ActiveOptimized, |(group, _)| group.state)
        })
    }

    pub(crate) fn set_implicit(&self, id: u16, state: AccessState) -> Result<bool, PortGroupError> {
        self.set(&[(id, state)], Cause::Implicit)
    }

    /// All or none; whether a state changed.
    fn set(&self, states: &[(u16, AccessState)], cause: Cause) -> Result<bool, PortGroupError> {
        let mut groups = self.groups.write().unwrap_or_else(PoisonError::into_inner);
        for &(id, _) in states {
            if !groups.iter().any(|(group, _)| group.id == id) {
                return Err(PortGroupError::NoSuchGroup { id });
            }
        }
        let mut changed = false;
        for &(id, state) in states {
            for (group, status) in groups.iter_mut().filter(|(group, _)| group.id == id) {
                if group.state != state {
                    (group.state, *status) = (state, cause);
                    changed = true;
                }
            }
        }
        Ok(changed)
    }

    fn with<T>(&self, read: impl FnOnce(&[(PortGroup, Cause)]) -> T) -> T {
        read(&self.groups.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// REPORT TARGET PORT GROUPS (SPC-4 6.37), with a short and with an extended header. Each group:
///
/// | byte | field |
/// | --- | --- |
/// | 0 | PREF, state |
/// | 1 | the five states that there may be |
/// | 2..4 | group |
/// | 5 | status code: set by command (1), implicitly (2) |
/// | 7 | number of ports |
/// | 8.. | ports: reserved (2), relative identifier (2) |
pub(crate) fn report(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    const T_U_S_AN_AO_SUP: u8 = 0x8F;
    let extended = match context.cdb.byte(1) >> 5 {
        0 => false,
        1 => true,
        _ => return Err(Sense::cdb_field(1, Some(7))),
    };
    let mut body = if extended {
        vec![0x10, 0, 0, 0]
    } else {
        Vec::new()
    };
    context.unit().port_groups().with(|groups| {
        for (group, cause) in groups {
            let preferred = if group.preferred { 0x80 } else { 0 };
            let status = match cause {
                Cause::None => 0,
                Cause::Command => 1,
                Cause::Implicit => 2,
            };
            body.extend([preferred | group.state.code(), T_U_S_AN_AO_SUP]);
            body.extend(group.id.to_be_bytes());
            let ports = u8::try_from(group.ports.len()).unwrap_or(u8::MAX);
            body.extend([0, status, 0, ports]);
            for port in &group.ports {
                body.extend([0, 0]);
                body.extend(port.relative.to_be_bytes());
            }
        }
    });
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut data = length.to_be_bytes().to_vec();
    data.extend(body);
    let allocation_bytes = context.cdb.uint(6..10);
    context.reply(&data, allocation_bytes);
    Ok(())
}

/// SET TARGET PORT GROUPS (SPC-4 6.45): all groups of the list or none. Takes effect at once.
/// Each: reserved and state, reserved, group (2), behind four reserved bytes.
pub(crate) fn set(context: &mut CommandContext<'_>) -> Result<(), Sense> {
    let unit = context.unit();
    let list = context.take_data_out()?;
    if list.is_empty() {
        return Ok(());
    }
    let truncated = Sense::illegal(AdditionalSense::PARAMETER_LIST_LENGTH_ERROR);
    let descriptors = list.get(4..).ok_or(truncated)?.chunks_exact(4);
    if !descriptors.remainder().is_empty() {
        return Err(truncated);
    }
    let known = unit.port_groups().all();
    let mut states = Vec::new();
    for (descriptor, at) in descriptors.zip((4..).step_by(4)) {
        let state = AccessState::of_code(be_uint(descriptor, 0..1) & 0x0F)
            .ok_or(Sense::parameter_field(at, Some(3)))?;
        let id = u16::try_from(be_uint(descriptor, 2..4)).unwrap_or(0);
        if !known.iter().any(|group| group.id == id) {
            return Err(Sense::parameter_field(at + 2, None));
        }
        states.push((id, state));
    }
    let changed = unit.port_groups().set(&states, Cause::Command);
    if changed.map_err(|_absent| Sense::parameter_field(6, None))? {
        let cause = Some(&context.attachment.nexus);
        unit.establish(UnitAttention::AccessStateChanged, cause);
    }
    Ok(())
}

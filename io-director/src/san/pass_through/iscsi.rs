//! A unit of an iSCSI target, reached by a session of its own.

use std::sync::Arc;

use iscsi_initiator::{
    Command, Initiator, Notice, Options, TaskFunction, TaskFunctionOutcome, TaskTag,
};

use super::{Done, PassThrough, PassThroughError, Resetting, Target};

/// Most commands that the session carries: more than a nexus may have.
const COMMANDS_MAX: usize = 128;
/// Most bytes of them: more than a nexus may have.
const BYTES_MAX: usize = 16 * 1024 * 1024;

/// A session to a unit.
#[derive(Debug)]
pub(super) struct IscsiTarget {
    initiator: Initiator,
    lun: [u8; 8],
}

impl IscsiTarget {
    /// Starts a session and returns at once. `port` makes its ISID: the target knows the vHBA again
    /// after a restart, with what it reserved.
    pub(super) fn start(
        target: iscsi_initiator::Target,
        options: Options,
        lun: [u8; 8],
        pass_through: &Arc<PassThrough>,
        port: (u32, u16),
    ) -> Result<Self, PassThroughError> {
        let options = Options {
            isid: Some(isid(port)?),
            commands_max: COMMANDS_MAX,
            bytes_max: BYTES_MAX,
            ..options
        };
        let pass_through = Arc::downgrade(pass_through);
        let notify = move |notice: &Notice<'_>| {
            let Some(pass_through) = pass_through.upgrade() else {
                return;
            };
            match notice {
                Notice::Up(_) => pass_through.reachable(),
                Notice::Down(_) => pass_through.unreachable(),
                // It comes again as a unit attention.
                Notice::Sense { .. } => {}
            }
        };
        let initiator =
            Initiator::start(target, options, notify).map_err(PassThroughError::Session)?;
        Ok(Self { initiator, lun })
    }
}

/// RFC 7143 section 11.12.5, type 10b: 24 bits of the vHBA's id, and its LUN. An initiator port has
/// one session to a target; so each LUN of a vHBA is one.
fn isid((device, lun): (u32, u16)) -> Result<[u8; 6], PassThroughError> {
    let [0, a, b, c] = device.to_be_bytes() else {
        return Err(PassThroughError::DeviceId { id: device });
    };
    let [d, e] = lun.to_be_bytes();
    Ok([0x80, a, b, c, d, e])
}

impl Target for IscsiTarget {
    fn submit(&self, mut command: Command, done: Done) -> Result<Option<TaskTag>, Command> {
        command.lun = self.lun;
        let submitted = self.initiator.submit(command, done);
        submitted.map(Some).map_err(|refused| refused.command)
    }

    fn abort(&self, handles: &[TaskTag], all: bool) {
        let functions: Vec<_> = if all {
            vec![TaskFunction::AbortTaskSet(self.lun)]
        } else {
            handles
                .iter()
                .copied()
                .map(TaskFunction::AbortTask)
                .collect()
        };
        for function in functions {
            // Without a session it has no commands either; past what the target takes at a time the
            // commands end by themselves, and only later.
            if let Err(reason) = self.initiator.manage(function, |_| {}) {
                tracing::debug!(%reason, "task management not sent");
            }
        }
    }

    fn reset(&self, resetting: Resetting) {
        let function = TaskFunction::LogicalUnitReset(self.lun);
        let told = move |outcome| {
            if outcome == TaskFunctionOutcome::Complete {
                resetting.complete();
            }
        };
        if let Err(reason) = self.initiator.manage(function, told) {
            tracing::debug!(%reason, "reset not sent");
        }
    }

    fn has_own_nexus(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lun_of_a_vhba_is_a_port_of_its_own() {
        assert_eq!(isid((11, 0)).unwrap(), [0x80, 0, 0, 11, 0, 0]);
        assert_eq!(isid((11, 258)).unwrap(), [0x80, 0, 0, 11, 1, 2]);
        assert!(isid((1 << 24, 0)).is_err());
    }
}

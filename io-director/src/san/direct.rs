//! Commands of a host agent in this process: executed on the thread of their ring, without frames.
//!
//! Only READ and WRITE that end with GOOD and wait for nothing. They stand in the task set of their
//! nexus while they run, so that task management, preemption and ORDERED tasks find them as they
//! find any other. Everything else comes by the lanes, as from a host elsewhere
//! (`docs/adr/0018-commands-without-frames.md`).

use std::time::Instant;

use fabric_bypass::{DataBuffers, DirectSession};
use fabric_payload::scsi::{Command, ServiceResponse, Tag};
use fabric_transport::VirtualLane;

use super::observe::Observed;
use super::vhba_session::VhbaSession;

/// Task attribute SIMPLE in a COMMAND unit.
const SIMPLE: u8 = 0;
/// In the space of task management, so that no function names it as a command.
const TAG: Tag = Tag(u64::MAX);

impl DirectSession for VhbaSession {
    fn is_clear(&self) -> bool {
        let vhba = self.vhba();
        // Frames are what a capture is made of, and the port has its own queue.
        let plain = !vhba.is_limited() && !vhba.tap.is_active();
        plain && self.lanes().is_some_and(|lanes| lanes.is_clear())
    }

    fn execute(&self, command: &Command<'_>, data: &dyn DataBuffers) -> Option<ServiceResponse> {
        if command.attribute != SIMPLE {
            return None;
        }
        let vhba = self.vhba();
        let mapped = vhba.mapped(command.lun)?;
        let medium = mapped.lun.medium()?;
        let bytes = |bytes: u32| usize::try_from(bytes).unwrap_or(usize::MAX);
        let moved = (bytes(command.data_in_bytes), bytes(command.data_out_bytes));
        let since = Instant::now();
        let run = || {
            let what = (command.lun, command.cdb);
            vhba.it_nexus
                .transfer(mapped.lun.unit(), what, moved.0 + moved.1, |transfer| {
                    medium.move_now(transfer, data)
                })
        };
        let response = mapped.nexus.run_now(&self.me()?, self.key(TAG), run)?;
        let counters = &vhba.counters;
        if response == ServiceResponse::TaskComplete {
            counters.commands.add(1);
            counters.data_in_bytes.add_bytes(moved.0);
            counters.data_out_bytes.add_bytes(moved.1);
            Observed::moved(mapped.nexus.statistics(), (since, command.cdb), moved);
        } else {
            counters.aborted.add(1);
            mapped.nexus.statistics().aborted();
        }
        Some(response)
    }

    fn charge(&self, bytes: u32) {
        if let Some(lanes) = self.lanes() {
            lanes.charge(VirtualLane::StorageData, bytes);
        }
    }
}

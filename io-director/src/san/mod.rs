//! SAN module: vHBAs whose logical units are files, block devices, images, memory, or units of
//! others (`pass_through`).
//!
//! ```text
//! link thread:   Vhba session ─ commands, write data ─> nexus queue
//! nexus thread:  queue ─> scsi_target::ItNexus::execute ─> medium ─> DATA_IN, STATUS ─> lanes
//! watch threads: commands that take too long, media that change their size
//! ring's thread: READ and WRITE of a host in this process that wait for nothing (`direct`)
//! ```
//!
//! Threads of its own for each (vHBA, LUN), one while the medium is fast and up to eight while it
//! is slow: a LUN that takes seconds holds up its own commands and no other, and one that does
//! not answer at all is answered for after its timeout. A unit of others has one thread, which waits
//! for no command. What a host can make wait here is bounded by [`WINDOWS`]: commands and write data
//! keep their credit until the command has ended. So that one slow LUN cannot take all of a vHBA's
//! credit, each LUN of a vHBA with several gets a share and answers TASK SET FULL above it.
//!
//! A port with a rate, or a vHBA with a limit of operations, has its commands wait for their turn
//! ([`SanPort`]): they stand in the task set of their nexus as any other that has not begun, so
//! task management finds them, and are executed in their order once they are granted. Nothing more
//! can wait than without it.
//!
//! A LUN map is replaced as a whole while commands run ([`Vhba::set_luns`]). What was at a LUN that is
//! gone ends by itself in its nexus, which nobody finds any more.

mod backend;
mod command_queue;
mod direct;
mod nexus;
mod observe;
mod pass_through;
mod port;
mod reservation_file;
mod system_clock;
mod task_set;
#[cfg(test)]
mod tests;
mod vhba;
mod vhba_session;
mod watch;

use fabric_transport::control::Windows;

pub use backend::BackendError;
pub(crate) use observe::{SanObjects, SanView};
pub use pass_through::PassThroughError;
pub use port::SanPort;
pub use vhba::{ClientError, Lun, ReservationFileError, Vhba, VhbaError};
pub use watch::LunWatch;

/// Commands of one vHBA that may wait or run here.
pub const COMMANDS_MAX: u32 = 64;
/// Blocks of a COMMAND unit: 64 bytes and the frame's header.
const COMMAND_BLOCKS: u32 = 2;
/// Blocks of write data of one vHBA that may wait here: 4 MiB.
const DATA_BLOCKS: u32 = 64 * 1024;

/// What the director can receive for a vHBA: 16 KiB of task management, [`COMMANDS_MAX`]
/// commands, 4 MiB of write data.
pub const WINDOWS: Windows = [256, COMMANDS_MAX * COMMAND_BLOCKS, DATA_BLOCKS, 0];

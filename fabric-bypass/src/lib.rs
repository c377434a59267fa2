//! Past the lanes: where host agent and I/O director are one process, what waits for nothing is done on
//! the thread that has it, a command ([`DirectTarget`]) or a frame of Ethernet ([`DirectPort`]).
//!
//! What went so is charged to the schedulers of both ends, like the frames that it would have taken
//! (`docs/adr/0018-commands-without-frames.md`).
#![forbid(unsafe_code)]

mod ethernet;
mod scsi;

pub use ethernet::{DirectPort, DirectReceiver, DirectVnic};
pub use scsi::{DataBuffers, DirectSession, DirectTarget};

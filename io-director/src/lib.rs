//! I/O director: host sessions, switching, Ethernet ports on TAP interfaces, SAN ports on files, devices,
//! images and memory.
//!
//! ```text
//! host agent ══ fabric link ══> director (Directory) ─> ethernet::port ─> switch ─> TAP
//!                                                    └> san::vhba ─> san::nexus ─> scsi-target ─> san::backend
//! ```
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`director`] | who may attach what, the order of start and stop, and another lab file meanwhile |
//! | [`ethernet`] | ports, the switch behind each, TAP interfaces |
//! | [`san`] | vHBAs, threads for each of their LUNs, what LUNs keep their blocks on |
//! | [`counters`] | what was done and what was dropped, by device and reason |
//!
//! **A port with a rate has a scheduler** for each direction (`port_scheduler`, `port_direction`):
//! `ethernet::wire` for frames, `san::command_queue` for commands. What it does not let go yet
//! keeps its fabric credit, so guests are slowed down and nothing is dropped.
//!
//! **Memory is bounded by the windows** that the director offers: a host can have at most
//! [`san::WINDOWS`] of commands and write data of one vHBA waiting here, and of a vNIC
//! [`ethernet::WINDOWS`] of frames on a port with a rate and nothing at all on another. It does
//! not know QEMU, virtqueues or profiles. `unsafe` is in `ethernet::sys` and
//! `san::pass_through::sg::sys`.

mod capture_queue;
pub mod counters;
mod credit;
pub mod director;
pub mod ethernet;
mod port_direction;
mod port_hop;
mod port_scheduler;
pub mod san;

pub use director::{Director, DirectorError};

#[cfg(test)]
mod testing;

//! The host agent: every vNIC and vHBA of one host, behind one fabric session.
//!
//! ```text
//! QEMU ──vhost-user socket──> device (vnic-backend, vhba-backend) ──lanes──> uplink ──> director
//!        one a device                                             one session a host
//! ```
//!
//! The sockets stand in the host's `run-dir`, one a device: `vn01.vm1.sock`. Devices are there
//! whether or not a director is: their lanes come up when the uplink does.
//!
//! What is deliberately absent: what a port or a LUN is. The director knows.
#![forbid(unsafe_code)]

mod agent;
mod counters;
mod embedded;
mod guest_link;
mod plug;
pub mod qemu_args;

pub use agent::HostAgent;

//! The fabric between a host agent and an I/O director.
//!
//! A **session** joins one host to one director. It runs over one to four **links** (in-process,
//! shared memory, Unix, TCP or RDMA), outlives each of them, and carries **lanes**: one flow-controlled, ordered stream of frames for each device,
//! direction and [virtual lane](frame::VirtualLane). No frame is ever dropped inside: a sender
//! that has no credit waits, and only its own device waits with it.
//!
//! - [`frame`] and [`control`]: the bytes, as docs/fabric-protocol.md writes them down. Core.
//! - [`session`]: who may send what, when. Core: no socket, no clock, no thread.
//! - [`link`]: moves whole frames; knows only their length.
//! - [`endpoint`]: one end of a session with its links, its scheduler and its thread.
//! - [`told`]: what was reported, so that it is not again.
//! - [`uplink`] and [`acceptor`]: keep sessions up, from the host's and the director's side.
//! - [`standby`]: two directors for one host.
//! - [`discovery`]: how a host finds its director.
//!
//! Read first: InfiniBand Architecture Specification volume 1 section 7.9 (link flow control),
//! from which blocks, FCTBS and FCCL are taken.
#![cfg_attr(not(test), warn(clippy::indexing_slicing))]
#![cfg_attr(not(feature = "rdma"), forbid(unsafe_code))]
#![cfg_attr(feature = "rdma", deny(unsafe_code))]

pub mod acceptor;
pub mod control;
pub mod discovery;
pub mod endpoint;
pub mod frame;
mod frame_pool;
pub mod link;
#[cfg(test)]
mod reporter;
pub mod session;
pub mod standby;
pub mod told;
pub mod uplink;

pub use endpoint::{Directory, EndpointConfig, LaneClient, LaneSet, Receipt, SendRefused};
pub use frame::{DeviceId, FrameBuffer, VirtualLane};

//! One vhost-user device towards QEMU: connection after connection, and their rules.
//!
//! A device (a vNIC, a vHBA) implements [`VirtioDevice`] and is given rings as [`Queue`] handles.
//! [`Session::start`] owns the socket and the threads, and serves one front-end at a time; the
//! device's own state outlives every connection. What a ring carries is unknown here.
//!
//! ```text
//!  QEMU ──unix socket──> session thread: shim ──private socket──> vhost-user-backend daemon
//!                         checks each message,                     one worker thread per mask of
//!                         each descriptor, the memory table        VirtioDevice::queues_per_thread
//! ```
//!
//! Read next: [`device`] (what to implement), [`queue`] and [`chain`] (what to call), then `shim`
//! for the control path and the reasons behind it. The standard is "vhost-user protocol" of the
//! QEMU manual (interop section) and virtio 1.2, sections 2.6 and 2.7.
//!
//! # What holds whatever the guest or the front-end does
//! * No call of [`Queue`], [`QueueGuard`] or [`Chain`] panics or blocks on the guest. A ring that
//!   breaks the rules is marked broken ([`Queue::fail`]) and stays silent until it is restarted.
//! * A front-end that breaks the rules loses its session, with one warning that names the device,
//!   the rule and what to change ([`Refusal`]). The next connection is served.
//! * Guest memory must be sealed against shrinking, so that touching it can never raise SIGBUS.
//!
//! # Known limit
//! The front-end shares the open file description of the eventfds it sends, and could clear
//! `O_NONBLOCK` after the check and fill the counter, so that a signal blocks. The kernel has no
//! per-call non-blocking write for an eventfd. Whoever must withstand a taken-over QEMU that does
//! this runs the device in a process of its own.

mod backend;
mod batch;
mod bitmap;
mod busy_poll;
pub mod chain;
pub mod device;
mod file_transfer;
pub mod queue;
mod refusal;
mod session;
mod shim;
mod socket;
mod vring;

pub use batch::{BatchChain, RingBatch};
pub use bitmap::{DirtyBitmap, DirtySlice};
pub use busy_poll::BusyPoll;
pub use chain::{Chain, ChainError, ChainReader, ChainWriter};
pub use device::{StopReason, VirtioDevice, Waker};
pub use queue::{Queue, QueueCounters, QueueError, QueueGuard};
pub use refusal::Refusal;
pub use session::{Session, SessionConfig, SessionError, SessionHandle, SessionState};
pub use socket::{SocketError, SocketSource};

/// Guest memory as mapped from the front-end's table, with the dirty log of live migration.
pub type GuestMemory = vm_memory::GuestMemoryMmap<DirtyBitmap>;

/// A snapshot of guest memory; the mappings live as long as the snapshot does.
pub type MemorySnapshot = std::sync::Arc<GuestMemory>;

//! A virtual NIC: a virtio-net device towards QEMU, Ethernet frames on a network lane towards the
//! fabric.
//!
//! ```text
//! guest TX ring ──> worker thread of the pair ──> LaneSet (waits for credit: the ring fills up)
//! guest RX ring <── thread of the fabric link <── Network lane (no buffers: dropped, counted)
//! ```
//!
//! * **Guest to fabric.** A frame is copied once, from guest memory into the buffer that goes on
//!   the link, and checked there, where the guest can no longer change it. A lane without credit
//!   stops the ring: the guest's own queue fills and its senders wait. Nothing is dropped, which is
//!   how the device's rate is shaped.
//! * **Fabric to guest.** A frame is written into the guest's buffers by the thread that received
//!   it; the driver is signalled once a batch. A guest without buffers loses the frame, as on any
//!   Ethernet, so it holds up nobody else.
//!
//! Read next: [`VnicDevice`], then `transmit` and `receive`. The standard is virtio 1.2 section
//! 5.1. The crate knows nothing of switches, ports, or what a frame is for.
//!
//! The control virtqueue, link status and MAC filters are QEMU's: it answers them by itself and
//! never forwards them. What the link of the vNIC is, [`VnicDevice::link_is_up`] says; whoever has
//! QEMU's monitor tells the guest.
#![forbid(unsafe_code)]

mod device;
mod direct;
mod features;
mod receive;
mod statistics;
mod steering;
mod transmit;

pub use device::{ConfigError, LinkNews, QUEUE_PAIRS_MAX, VnicConfig, VnicDevice, windows};
pub use statistics::{DirectionStatistics, ReceiveDrop, TransmitDrop, VnicStatistics};

//! What the lanes of the fabric carry, byte by byte: the only thing a device back end and an
//! I/O module have in common.
//!
//! Read first: virtio 1.2 section 5.1.6 (`virtio_net_hdr`) for [`ethernet`], SAM-5 section 5 (the
//! *Execute Command* procedure call) and section 7 (task management) for [`scsi`].
//!
//! The crate knows neither virtqueues nor LUNs nor lanes; it turns bytes into checked values and
//! back. Everything is little-endian unless a SCSI standard says otherwise.
#![forbid(unsafe_code)]

pub mod announcement;
pub mod checksum;
pub mod ethernet;
pub mod scsi;

//! A virtual HBA: a virtio-scsi device towards QEMU, SCSI commands on storage lanes towards the
//! fabric.
//!
//! ```text
//! request rings ──> worker threads ──> COMMAND, DATA_OUT ──> director
//! request rings <── thread of the fabric link <── DATA_IN, STATUS
//! control ring  <─> TASK_MANAGEMENT and its response;   event ring <── EVENT
//! ```
//!
//! The device has one target port, target 0, whose logical units are the director's business; what
//! a CDB means is unknown here. Every command in flight stands in a bounded table under a tag that
//! is never used twice, so late, foreign or repeated replies find nothing.
//!
//! # A director in the same process
//! A READ or WRITE that waits for nothing is executed on the ring's thread (`direct`), past the
//! lanes and at their cost to the schedulers. The table above does not know it: it has begun and
//! ended while the ring was locked.
//!
//! # When the lane is blocked
//! A command and all its data are sent together or not at all. Without credit one request is kept
//! at hand and the ring is not read: the guest's queue fills up. No command is dropped.
//!
//! # When the session ends
//! Every command in flight is answered with `VIRTIO_SCSI_S_TRANSPORT_FAILURE`: it was lost in
//! transit and may or may not have been carried out. Linux makes that `DID_TRANSPORT_DISRUPTED`,
//! which its mid layer retries. From then on no request is read until a session is up again: the
//! guest stalls instead of seeing errors, for as long as it takes, since Linux's virtio_scsi never
//! lets a command time out. Task management is answered at once with FAILURE meanwhile. After the
//! outage the guest is told that events were missed, so it looks at its logical units again.
//!
//! # When the guest goes away
//! What it had in flight is forgotten, and an I_T NEXUS RESET ends it at the director before the
//! next command is sent.
//!
//! Read next: [`VhbaDevice`], then `request` (the formats) and `in_flight`. The standards are
//! virtio 1.2 section 5.6 and SAM-5 sections 5 and 7.
#![forbid(unsafe_code)]

mod control;
mod data_path;
mod device;
mod direct;
mod event;
mod in_flight;
mod lun;
mod request;
mod statistics;

pub use device::{ConfigError, REQUEST_QUEUES_MAX, VhbaConfig, VhbaDevice, windows};
pub use statistics::VhbaStatistics;

//! The driver's side of the two device types, over [`crate::front_end`].

pub mod net;
pub mod scsi;

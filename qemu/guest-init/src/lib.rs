//! What the test guest's PID 1 and its host must agree on.
//!
//! The binary of this crate is the guest's end; package `orimono-qemu` is the host's end. Both
//! use [`protocol`]; the paths below are where the initramfs keeps what PID 1 reads at boot.

#![forbid(unsafe_code)]

pub mod protocol;

/// File in the initramfs that names the kernel modules to load, one absolute path a line, in
/// load order. Empty lines are skipped.
pub const MODULES_FILE: &str = "/etc/orimono/modules";

/// Name of the virtio-serial port (`virtserialport,name=...`) that carries [`protocol`].
pub const PORT_NAME: &str = "orimono.guest.0";

/// Word on the kernel command line that keeps the guest running when the host's end of the
/// channel goes away. Without it the guest powers off, so that no guest outlives a killed test.
pub const STAY_PARAMETER: &str = "orimono.stay";

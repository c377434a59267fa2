//! What a host agent tells of its devices: whether its director serves each, and whether its guest has
//! it.
//!
//! The control socket of a process is here, so the question is; a host agent answers it as [`Devices`].

use serde::{Deserialize, Serialize};

/// A process's devices of guests. Called on the monitor's thread, which it may not hold up.
pub trait Devices: Send + Sync {
    /// All of them, by name.
    fn devices(&self) -> Vec<DeviceState>;
}

/// A vNIC or vHBA of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    /// Its name, like `vn01.vm1`.
    pub name: String,
    /// Which life of it.
    pub generation: u32,
    /// Whether the director serves it now.
    pub attached: bool,
    /// Why not, if the director or this end said so.
    pub refused: Option<String>,
    /// Where it is in the guest; `None`: nobody looks, since the VM has no `qmp`.
    pub guest: Option<GuestState>,
}

/// Where a device is in its guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestState {
    /// Nowhere: no QEMU answers.
    NotRunning,
    /// There.
    Plugged,
    /// On its way.
    Waiting,
    /// Not there, and why.
    Failed(String),
}

//! The frames of a process with vNICs and Ethernet ports, for the control socket.
//!
//! As for logical units ([`crate::storage`]): who has the frames captures them as a [`Network`].

use fabric_config::AccessRule;
use serde::{Deserialize, Serialize};

use crate::frames::Capture;

/// A process's vNICs and Ethernet ports. Called on the monitor's thread, which it may not hold up.
pub trait Network: Send + Sync {
    /// Begins to capture frames; it ends when the capture is dropped.
    ///
    /// # Errors
    /// In one line: there is no such vNIC or port.
    fn start_capture(&self, wanted: &FramesWanted) -> Result<Box<dyn Capture>, String>;
}

/// Where frames are captured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FramesOf {
    /// At the vNIC of this name: what its guest sends, with what is dropped of it, and what is sent to
    /// it.
    Vnic(String),
    /// At the interface of the Ethernet port of this name; of a private network, what its vNICs send.
    Port(String),
}

/// What to capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FramesWanted {
    /// Where.
    pub of: FramesOf,
    /// Only frames that meet one of these, whatever their actions are; all if there are none. A frame
    /// of which it cannot be said is captured.
    pub filters: Vec<AccessRule>,
    /// Bytes of each frame to keep.
    pub snap_bytes: u32,
    /// Frames a second at most; what is more is counted. At least 1.
    pub frames_per_second: u32,
}

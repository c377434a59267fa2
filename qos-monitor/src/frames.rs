//! Captured frames, whoever captures them: SCSI commands as Fibre Channel frames, and Ethernet frames.

use serde::{Deserialize, Serialize};

/// A capture that runs; it ends when it is dropped. Called on the monitor's thread, which it may not
/// hold up.
pub trait Capture: Send {
    /// Where the frames are seen.
    fn interface(&self) -> CaptureInterface;

    /// What was captured since it was last asked, oldest first: bounded, whoever asks how rarely.
    fn take(&self) -> Captured;
}

/// Where captured frames are seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureInterface {
    /// The vHBA, vNIC or port.
    pub name: String,
    /// What it is, in words.
    pub description: String,
    /// What its frames begin with.
    pub kind: FrameKind,
    /// Bytes of each frame that are kept.
    pub snap_bytes: u32,
}

/// What frames begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FrameKind {
    /// A Fibre Channel header (LINKTYPE_FC_2).
    FibreChannel,
    /// A destination MAC address (LINKTYPE_ETHERNET).
    Ethernet,
}

/// Which way a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FrameDirection {
    /// To the guest of a vNIC; from the LAN into a port; from a vNIC into a private network.
    Inbound,
    /// From the guest of a vNIC; from a port to the LAN.
    Outbound,
}

/// What was captured in a while.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Captured {
    /// Oldest first.
    pub frames: Vec<CapturedFrame>,
    /// Frames since the beginning, with those that are not here.
    pub seen: u64,
    /// Frames since the beginning that had no room.
    pub dropped: u64,
}

/// A frame, from its header on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapturedFrame {
    /// Nanoseconds since 1970.
    pub at_nanos: u64,
    /// What it had before it was cut.
    pub original_bytes: u32,
    /// Frames that had no room since the one before.
    pub dropped_before: u64,
    /// Which way it goes, if its own addresses do not say it.
    pub direction: Option<FrameDirection>,
    /// What the frame has no words for.
    pub comment: Option<String>,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

//! Frames of Ethernet past the lanes.
//!
//! ```text
//! transmit ring ──> DirectVnic::transmit ──> TAP
//!                          └──> DirectReceiver::take ──> receive ring of another guest
//!           TAP ──> DirectReceiver::take ──> receive ring
//! ```
//!
//! A payload is a virtio-net header and a frame, as on the network lane.
//!
//! **Order.** Nothing overtakes what went by the lanes before: each end counts what it has sent and
//! taken there, and frames go past only while both counts are the same.

use std::fmt::Debug;
use std::sync::{Arc, Weak};

/// What a vNIC of this process knows of its director.
pub trait DirectPort: Debug + Send + Sync {
    /// Has frames for the guest go to `receiver`, from the session on that it has then.
    fn attach(&self, receiver: Weak<dyn DirectReceiver>);

    /// The session of that epoch, if it is the one that has the vNIC and its frames need not wait at
    /// the port.
    fn session(&self, epoch: u16) -> Option<Arc<dyn DirectVnic>>;
}

/// A session of a vNIC, as its host agent sees it from within the same process.
pub trait DirectVnic: Send + Sync {
    /// Frames that came by its lanes and are on their way, or dropped.
    fn lane_frames(&self) -> u64;

    /// Sends payloads of the guest on their way, in their order, now. They are checked like those that
    /// come by the lanes.
    fn transmit(&self, payloads: &mut dyn Iterator<Item = &[u8]>);
}

/// The guest's side of a vNIC, as the director sees it from within the same process.
pub trait DirectReceiver: Debug + Send + Sync {
    /// Frames that came by the lanes of the session of that epoch and are in the guest's buffers, or
    /// dropped; `None` if the vNIC has another session or none.
    fn lane_frames(&self, epoch: u16) -> Option<u64>;

    /// Puts payloads into the guest's buffers, or drops and counts them, and then tells the guest.
    fn take(&self, payloads: &mut dyn Iterator<Item = &[u8]>);
}

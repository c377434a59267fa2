//! Giving back the credit of many frames in one call.

use fabric_transport::frame::{BLOCK_BYTES, HEADER_BYTES};
use fabric_transport::{LaneSet, VirtualLane};

/// Gives `blocks` of received frames back that were held.
pub(crate) fn release(lanes: &LaneSet, lane: VirtualLane, blocks: u32) {
    if blocks > 0 {
        // Many frames at once: the payload of the one frame that costs as much.
        let frame_bytes = usize::try_from(blocks).unwrap_or(usize::MAX) * BLOCK_BYTES;
        lanes.release(lane, frame_bytes - HEADER_BYTES);
    }
}

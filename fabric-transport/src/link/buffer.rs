//! The bytes that a link has read, and the frames in them.

use crate::frame::{FrameError, FrameHeader, HEADER_BYTES, PAYLOAD_BYTES_MAX};

/// Bytes that one `fill` reads at most; room for several frames of any length.
const RECEIVE_BYTES: usize = 512 * 1024;
const _: () = assert!(RECEIVE_BYTES >= 2 * (HEADER_BYTES + PAYLOAD_BYTES_MAX));

#[derive(Debug)]
pub(super) struct ReceiveBuffer {
    bytes: Vec<u8>,
    /// Bytes of `bytes` that were read.
    filled: usize,
}

impl Default for ReceiveBuffer {
    fn default() -> Self {
        Self {
            bytes: vec![0; RECEIVE_BYTES],
            filled: 0,
        }
    }
}

impl ReceiveBuffer {
    /// Makes room: the whole frames at the start go. What is left is part of one frame, so that
    /// there is room.
    pub(super) fn forget_frames(&mut self) {
        let whole = self.whole_bytes();
        if whole > 0 {
            self.bytes.copy_within(whole..self.filled, 0);
            self.filled -= whole;
        }
    }

    /// Where the next bytes go.
    pub(super) fn room(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.filled..).unwrap_or_default()
    }

    /// `bytes` of the room were read.
    pub(super) fn extend(&mut self, bytes: usize) {
        self.filled = (self.filled + bytes).min(self.bytes.len());
    }

    /// Bytes of the whole frames at the start of the buffer.
    fn whole_bytes(&self) -> usize {
        let mut whole = 0;
        let filled = self.bytes.get(..self.filled).unwrap_or_default();
        while let Some(rest) = filled.get(whole..)
            && let Ok(Some(bytes)) = FrameHeader::frame_bytes(rest)
            && bytes <= rest.len()
        {
            whole += bytes;
        }
        whole
    }

    /// The whole frames, in order.
    pub(super) fn frames(&self) -> Result<Vec<&[u8]>, FrameError> {
        let mut frames = Vec::new();
        let mut rest = self.bytes.get(..self.filled).unwrap_or_default();
        while let Some(bytes) = FrameHeader::frame_bytes(rest)?
            && let Some((frame, behind)) = rest.split_at_checked(bytes)
        {
            frames.push(frame);
            rest = behind;
        }
        Ok(frames)
    }
}

//! The bytes that a link has read, and the frames in them.

use crate::frame::{FrameError, FrameHeader, HEADER_BYTES, PAYLOAD_BYTES_MAX};

/// Bytes that one `fill` reads at most; room for several frames of any length.
const RECEIVE_BYTES_MAX: usize = 512 * 1024;
const _: () = assert!(RECEIVE_BYTES_MAX >= 2 * (HEADER_BYTES + PAYLOAD_BYTES_MAX));

/// And at first: a link that carries little needs no more, and a director has many.
const RECEIVE_BYTES_MIN: usize = 8 * 1024;

#[derive(Debug)]
pub(super) struct ReceiveBuffer {
    bytes: Vec<u8>,
    /// Bytes of `bytes` that were read.
    filled: usize,
    /// Bytes of the whole frames among them.
    whole: usize,
    /// How many those are.
    frames: usize,
}

impl Default for ReceiveBuffer {
    fn default() -> Self {
        Self {
            bytes: vec![0; RECEIVE_BYTES_MIN],
            filled: 0,
            whole: 0,
            frames: 0,
        }
    }
}

impl ReceiveBuffer {
    /// Makes room: the whole frames at the start go. What is left is part of one frame, so that
    /// there is room.
    pub(super) fn forget_frames(&mut self) {
        let was_full = self.filled == self.bytes.len();
        if self.whole > 0 {
            self.bytes.copy_within(self.whole..self.filled, 0);
            self.filled -= self.whole;
            self.whole = 0;
            self.frames = 0;
        }
        if was_full && self.bytes.len() < RECEIVE_BYTES_MAX {
            self.bytes.resize(2 * self.bytes.len(), 0);
        }
    }

    /// Where the next bytes go.
    pub(super) fn room(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.filled..).unwrap_or_default()
    }

    /// `bytes` of the room were read.
    pub(super) fn extend(&mut self, bytes: usize) {
        self.filled = (self.filled + bytes).min(self.bytes.len());
        let filled = self.bytes.get(..self.filled).unwrap_or_default();
        while let Some(rest) = filled.get(self.whole..)
            && let Ok(Some(bytes)) = FrameHeader::frame_bytes(rest)
            && bytes <= rest.len()
        {
            self.whole += bytes;
            self.frames += 1;
        }
    }

    /// The whole frames, in order.
    pub(super) fn frames(&self) -> Result<Vec<&[u8]>, FrameError> {
        let mut frames = Vec::with_capacity(self.frames);
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

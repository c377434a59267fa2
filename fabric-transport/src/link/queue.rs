//! Frames on their way over one link: those that the link has yet to take, and those that it took
//! and the peer has not acknowledged.
//!
//! ```text
//! push ─> [ waiting ] ──link──> [ kept until acknowledged ] ──acknowledge──> (freed)
//!                └──── into_unacknowledged: all of them, for another link ────┘
//! ```
//!
//! A frame is moved, never copied: what would have to be sent again if the link broke is the very
//! buffer that was written.

use std::collections::VecDeque;
use std::io::IoSlice;

use crate::frame::FrameBuffer;

#[derive(Debug)]
struct Entry {
    buffer: FrameBuffer,
    /// Whether the peer acknowledges it.
    sequenced: bool,
}

/// The frames of one direction of a link.
#[derive(Debug, Default)]
pub struct SendQueue {
    /// Taken by the link and kept until the peer acknowledges them; the oldest first.
    kept: VecDeque<Entry>,
    waiting: VecDeque<Entry>,
    /// Bytes of the first waiting frame that are out already.
    written: usize,
}

impl SendQueue {
    /// Appends a sealed frame. A `sequenced` one is kept until it is acknowledged.
    pub fn push(&mut self, buffer: FrameBuffer, sequenced: bool) {
        self.waiting.push_back(Entry { buffer, sequenced });
    }

    /// Whether the link has taken everything.
    #[must_use]
    pub fn is_sent(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Frames that the link has yet to take.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Points `slices` to the bytes that go out next, in order. Returns how many are used.
    pub fn gather<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut skip = self.written;
        let mut count = 0;
        for (slice, entry) in slices.iter_mut().zip(&self.waiting) {
            *slice = IoSlice::new(entry.buffer.frame().get(skip..).unwrap_or_default());
            skip = 0;
            count += 1;
        }
        count
    }

    /// The link took the next `bytes`.
    pub fn advance(&mut self, bytes: usize) {
        self.written += bytes;
        while let Some(entry) = self.waiting.front()
            && entry.buffer.frame_bytes() <= self.written
        {
            self.written -= entry.buffer.frame_bytes();
            if let Some(entry) = self.waiting.pop_front()
                && entry.sequenced
            {
                self.kept.push_back(entry);
            }
        }
    }

    /// Gives the next frame to a link that takes buffers over: it cannot be sent again.
    pub fn take(&mut self) -> Option<FrameBuffer> {
        self.waiting.pop_front().map(|entry| entry.buffer)
    }

    /// The peer has the first `frames` of those that are kept.
    pub fn acknowledge(&mut self, frames: usize) {
        self.kept.drain(..frames.min(self.kept.len()));
    }

    /// Everything that the peer may not have, in the order in which it was to be sent.
    #[must_use]
    pub fn into_unacknowledged(self) -> Vec<FrameBuffer> {
        let entries = self.kept.into_iter().chain(self.waiting);
        entries
            .filter(|entry| entry.sequenced)
            .map(|entry| entry.buffer)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::HEADER_BYTES;
    use proptest::prelude::*;

    fn payloads(frames: &[FrameBuffer]) -> Vec<u8> {
        frames.iter().map(|frame| frame.payload()[0]).collect()
    }

    #[test]
    fn what_is_not_acknowledged_comes_back_in_order() {
        let mut queue = SendQueue::default();
        for number in 0..6 {
            // 2 and 4 are of the kind that is not sent again.
            queue.push(
                FrameBuffer::from_payload(&[number]),
                number % 2 == 1 || number == 0,
            );
        }
        let bytes = HEADER_BYTES + 1;
        queue.advance(4 * bytes + 3);
        queue.acknowledge(1);
        let mut slices = [IoSlice::new(&[]); 4];
        assert_eq!(queue.gather(&mut slices), 2);
        assert_eq!(slices[0].len(), bytes - 3);
        assert_eq!(payloads(&queue.into_unacknowledged()), [1, 3, 5]);
    }

    proptest! {
        #[test]
        fn bytes_go_out_once_however_they_are_taken(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..30),
            steps in prop::collection::vec(1_usize..90, 400),
        ) {
            let mut queue = SendQueue::default();
            let mut expected = Vec::new();
            for payload in &payloads {
                let frame = FrameBuffer::from_payload(payload);
                expected.extend_from_slice(frame.frame());
                queue.push(frame, true);
            }
            let mut out = Vec::new();
            for step in steps {
                let mut slices = [IoSlice::new(&[]); 3];
                let count = queue.gather(&mut slices);
                let bytes: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
                let taken = step.min(bytes.len());
                out.extend_from_slice(&bytes[..taken]);
                queue.advance(taken);
            }
            prop_assert!(queue.is_sent());
            prop_assert_eq!(out, expected);
            prop_assert_eq!(queue.into_unacknowledged().len(), payloads.len());
        }
    }
}

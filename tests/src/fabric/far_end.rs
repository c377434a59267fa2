//! The other end of a device's lanes, played by the test.

use std::collections::VecDeque;
use std::sync::Arc;

use anyhow::{Result, bail};
use fabric_transport::{FrameBuffer, LaneClient, LaneSet, Receipt, SendRefused, VirtualLane};

use super::Shared;

#[derive(Debug, Default)]
struct Log {
    lanes: Option<LaneSet>,
    received: VecDeque<(VirtualLane, Vec<u8>)>,
    /// Credit is kept; these frames' is.
    hold: bool,
    held: Vec<(VirtualLane, usize)>,
    writable: u64,
}

/// Keeps what arrives until the test takes it, and sends what the test wants.
#[derive(Debug, Default)]
pub struct FarEnd {
    log: Shared<Log>,
}

impl FarEnd {
    /// Nothing has arrived yet; credit goes back at once.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Whether the credit of what arrives from now on is kept until [`release`](Self::release).
    pub fn hold(&self, hold: bool) {
        self.log.change(|log| log.hold = hold);
    }

    /// Gives all kept credit back.
    ///
    /// # Errors
    /// The lanes are down.
    pub fn release(&self) -> Result<()> {
        let lanes = self.lanes()?;
        for (lane, payload_bytes) in self.log.change(|log| std::mem::take(&mut log.held)) {
            lanes.release(lane, payload_bytes);
        }
        Ok(())
    }

    /// Waits for the lanes.
    ///
    /// # Errors
    /// They do not come in time.
    pub fn lanes(&self) -> Result<LaneSet> {
        self.log.wait("lanes", |log| log.lanes.clone())
    }

    /// Frames that arrived and were not taken yet.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.log.lock().received.len()
    }

    /// Waits until `count` frames have arrived and were not taken yet.
    ///
    /// # Errors
    /// They do not come in time.
    pub fn wait_waiting(&self, count: usize) -> Result<()> {
        self.log
            .wait("frames", |log| (log.received.len() >= count).then_some(()))
    }

    /// Waits for the next frame.
    ///
    /// # Errors
    /// None comes in time.
    pub fn next(&self) -> Result<(VirtualLane, Vec<u8>)> {
        self.log.wait("a frame", |log| log.received.pop_front())
    }

    /// The next frame, if there is one.
    #[must_use]
    pub fn try_next(&self) -> Option<(VirtualLane, Vec<u8>)> {
        self.log.lock().received.pop_front()
    }

    /// Sends one frame, waiting for credit and room.
    ///
    /// # Errors
    /// The lanes are down, or no room comes in time.
    pub fn send(&self, lane: VirtualLane, payload: &[u8]) -> Result<()> {
        self.send_all(vec![(lane, FrameBuffer::from_payload(payload))])
    }

    /// Sends frames together, waiting for credit and room.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn send_all(&self, mut frames: Vec<(VirtualLane, FrameBuffer)>) -> Result<()> {
        let lanes = self.lanes()?;
        loop {
            let seen = self.log.lock().writable;
            match lanes.try_send(&mut frames) {
                Ok(()) => return Ok(()),
                Err(SendRefused::Blocked) => {
                    let changed =
                        |log: &mut Log| (log.writable > seen || log.lanes.is_none()).then_some(());
                    self.log.wait("room", changed)?;
                }
                Err(refused) => bail!("far end cannot send: {refused}"),
            }
        }
    }
}

impl LaneClient for FarEnd {
    fn up(&self, lanes: LaneSet) {
        self.log.change(|log| log.lanes = Some(lanes));
    }

    fn receive(&self, lane: VirtualLane, payload: &[u8]) -> Receipt {
        self.log.change(|log| {
            log.received.push_back((lane, payload.to_vec()));
            if log.hold {
                log.held.push((lane, payload.len()));
                Receipt::Held
            } else {
                Receipt::Consumed
            }
        })
    }

    fn writable(&self) {
        self.log.change(|log| log.writable += 1);
    }

    fn down(&self, _: u16) {
        self.log.change(|log| {
            log.lanes = None;
            log.held.clear();
        });
    }
}

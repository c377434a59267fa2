//! A device of tests that reports what it sees.

use std::sync::{Arc, Mutex, mpsc};

use crate::endpoint::{LaneClient, LaneSet, Receipt};
use crate::frame::VirtualLane;

/// What happened to a [`Reporter`].
pub(crate) enum Seen {
    Up(LaneSet),
    Down,
    Frame(Vec<u8>),
}

/// The owner of a device, who only tells.
pub(crate) struct Reporter(Mutex<mpsc::Sender<Seen>>);

impl Reporter {
    pub(crate) fn new() -> (Arc<Self>, mpsc::Receiver<Seen>) {
        let (sender, receiver) = mpsc::channel();
        (Arc::new(Self(Mutex::new(sender))), receiver)
    }

    fn report(&self, seen: Seen) {
        // The test may have ended before the last report.
        drop(self.0.lock().unwrap().send(seen));
    }
}

impl LaneClient for Reporter {
    fn up(&self, lanes: LaneSet) {
        self.report(Seen::Up(lanes));
    }
    fn receive(&self, _: VirtualLane, payload: &[u8]) -> Receipt {
        self.report(Seen::Frame(payload.to_vec()));
        Receipt::Consumed
    }
    fn writable(&self) {}
    fn down(&self, _: u16) {
        self.report(Seen::Down);
    }
}

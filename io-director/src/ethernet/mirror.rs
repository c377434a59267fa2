//! A mirror: what a vNIC or a port sends and receives goes, as copies, to another vNIC too.
//!
//! Copies wait in a queue of bounded frames and bytes for a thread that sends them, so whoever moves the
//! frames that are copied waits for nothing. They are charged to the vNIC that gets them, pass none of
//! its checks, and are not mirrored again. What has no room, there or in its lane, is counted there.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Weak};

use fabric_payload::ethernet::HEADER_BYTES;

use super::delivery::Delivery;
use super::port::Vnic;

/// Copies that may wait, and their bytes.
const WAITING_FRAMES: usize = 4096;
const WAITING_BYTES: usize = 4 << 20;
/// Copies that are sent before they are flushed.
const BATCH_FRAMES_MAX: usize = 64;

/// The vNIC that gets copies, as long as there is one.
#[derive(Debug, Clone)]
pub struct MirrorTarget(pub(super) Weak<Vnic>);

/// See the module. Dropped, its thread sends what waits and ends.
#[derive(Debug)]
pub(super) struct Mirror {
    target: MirrorTarget,
    copies: SyncSender<Vec<u8>>,
    waiting_bytes: Arc<AtomicUsize>,
}

impl Mirror {
    /// Starts its thread.
    pub(super) fn start(target: &MirrorTarget) -> io::Result<Self> {
        let (copies, waiting) = sync_channel(WAITING_FRAMES);
        let waiting_bytes = Arc::default();
        let mirror = Self {
            target: target.clone(),
            copies,
            waiting_bytes: Arc::clone(&waiting_bytes),
        };
        let target = target.clone();
        let thread = std::thread::Builder::new().name("mirror".to_owned());
        thread.spawn(move || serve(&target, &waiting, &waiting_bytes))?;
        Ok(mirror)
    }

    /// Whether the copies go there.
    pub(super) fn goes_to(&self, target: &MirrorTarget) -> bool {
        self.target.0.ptr_eq(&target.0)
    }

    /// Copies a header and frame in pieces, unless it is the target's own.
    pub(super) fn add(&self, pieces: &[&[u8]]) {
        let Some(target) = self.target.0.upgrade() else {
            return;
        };
        let payload = pieces.concat();
        let source = payload.get(HEADER_BYTES + 6..);
        if source.is_some_and(|source| source.starts_with(&target.config.mac.0)) {
            return;
        }
        let bytes = payload.len();
        let before = self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > WAITING_BYTES || self.copies.try_send(payload).is_err() {
            self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            target.counters.dropped_copies.add(1);
        }
    }
}

fn serve(target: &MirrorTarget, copies: &Receiver<Vec<u8>>, waiting_bytes: &AtomicUsize) {
    while let Ok(first) = copies.recv() {
        let batch = std::iter::once(first).chain(copies.try_iter());
        let batch: Vec<_> = batch.take(BATCH_FRAMES_MAX).collect();
        let Some(target) = target.0.upgrade() else {
            return;
        };
        let mut delivery = Delivery::new(target);
        for payload in &batch {
            waiting_bytes.fetch_sub(payload.len(), Ordering::Relaxed);
            delivery.deliver_copy(payload);
        }
    }
}

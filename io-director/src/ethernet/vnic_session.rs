//! A vNIC as one session sees it: frames from the guest, checked and switched.
//!
//! While a VM moves, the sessions of two hosts have its vNIC. One of them is its current one:
//!
//! ```text
//! up, alone ──────────────────> current ──another host's announces the vNIC──> waiting
//! up, another host's is there ─> waiting ──announces the vNIC, or the other's is down──> current
//! ```
//!
//! What comes by a session that waits is dropped, and nothing is sent by it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, Weak};

use fabric_bypass::DirectVnic;
use fabric_payload::announcement::is_announcement;
use fabric_payload::ethernet::{ETHERNET_HEADER_BYTES, VirtioNetHeader};
use fabric_transport::{DeviceId, LaneClient, LaneSet, Receipt, VirtualLane};

use super::delivery::Batch;
use super::port::{Current, HeldFrame, PortShared, Vnic, charge_bytes};
use super::switch::{Destination, DropReason, Forward, Source};
use fabric_transport::acceptor::epoch_is_later;

/// Two VLAN tags may stand between the addresses and what the MTU counts.
const VLAN_BYTES_MAX: usize = 8;

fn is_same(one: &LaneSet, other: &LaneSet) -> bool {
    (one.peer(), one.epoch()) == (other.peer(), other.epoch())
}

/// See the module.
#[derive(Debug)]
pub(super) struct VnicSession {
    shared: Arc<PortShared>,
    vnic: Arc<Vnic>,
    device: DeviceId,
    /// Unique among the sessions of the port.
    session: u64,
    lanes: OnceLock<LaneSet>,
    /// Another session has the vNIC.
    stale: Arc<AtomicBool>,
    me: Weak<Self>,
    /// Frames that came by the lanes and are on their way, or dropped.
    lane_frames: AtomicU64,
}

impl VnicSession {
    /// The owner of `vnic`, which is attached to the port for `session`.
    pub(super) fn new(shared: Arc<PortShared>, vnic: Arc<Vnic>, session: u64) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            shared,
            device: vnic.config.id,
            vnic,
            session,
            lanes: OnceLock::new(),
            stale: Arc::default(),
            me: me.clone(),
            lane_frames: AtomicU64::new(0),
        })
    }

    fn receive_guest<'a>(&'a self, batch: &mut Batch<'a>, payload: &'a [u8]) -> Receipt {
        let vnic = &self.vnic;
        if self.stale.load(Ordering::Relaxed) && !self.claim(payload) {
            vnic.counters.dropped_stale.add(1);
            return Receipt::Consumed;
        }
        match self.switch_guest(batch, payload) {
            Some(forward) if !matches!(forward.to, Destination::Vnic(_)) => {
                self.transmit(vnic, payload, &forward)
            }
            Some(_) | None => Receipt::Consumed,
        }
    }

    /// Sends a frame to the LAN, now or when it is its turn.
    fn transmit(&self, vnic: &Vnic, payload: &[u8], forward: &Forward) -> Receipt {
        let Some(outgoing) = self.shared.outgoing(payload, forward) else {
            return Receipt::Consumed;
        };
        let pieces = outgoing.pieces();
        let (Some(wire), Some(lanes)) = (&self.shared.wire, self.lanes.get()) else {
            self.shared.write(pieces);
            return Receipt::Consumed;
        };
        let payload = pieces.concat();
        let bytes = charge_bytes(&payload);
        let frame = HeldFrame {
            device: self.device,
            payload,
            lanes: lanes.clone(),
            stale: self.stale.clone(),
        };
        match wire.with(|wire, now| wire.enqueue(now, self.device, bytes, frame)) {
            Ok(()) => Receipt::Held,
            Err(_frame) => {
                // Beyond the window, or after the end: neither happens to a session that is up.
                vnic.counters.dropped_session_ended.add(1);
                Receipt::Consumed
            }
        }
    }

    /// Checks a frame, sends it to other vNICs, and returns where it goes.
    fn switch_guest<'a>(&'a self, batch: &mut Batch<'a>, payload: &'a [u8]) -> Option<Forward> {
        let vnic = &self.vnic;
        let counters = &vnic.counters;
        let valid = VirtioNetHeader::split(payload)
            .filter(|(header, frame)| header.check(frame.len(), self.shared.offloads()).is_ok());
        let Some((header, frame)) = valid else {
            counters.dropped_malformed.add(1);
            vnic.outbound(payload, Some("malformed"));
            return None;
        };
        let mtu = usize::from(vnic.config.mtu);
        // A super-frame is as long as it likes; its segments are not.
        let segment_bytes = match usize::from(header.gso_size.get()) {
            0 => frame
                .len()
                .saturating_sub(ETHERNET_HEADER_BYTES + VLAN_BYTES_MAX),
            gso_size if header.gso_type != 0 => gso_size,
            _ => frame
                .len()
                .saturating_sub(ETHERNET_HEADER_BYTES + VLAN_BYTES_MAX),
        };
        if segment_bytes > mtu {
            counters.dropped_oversize.add(1);
            vnic.outbound(payload, Some("oversize"));
            return None;
        }
        if let Some(addresses) = vnic.addresses()
            && addresses.takes(vnic, payload)
        {
            return None;
        }
        let source = Source::Vnic(self.device);
        let forward = self.shared.forward(source, &header, frame);
        vnic.outbound(payload, forward.err().map(DropReason::name));
        match forward {
            Ok(forward) => {
                counters.ingress_frames.add(1);
                counters.ingress_bytes.add_bytes(frame.len());
                batch.send(source, &forward, payload);
                return Some(forward);
            }
            Err(reason) => counters.dropped(reason),
        }
        None
    }

    /// Makes this session, which waits, the current one, if `payload` announces the vNIC.
    fn claim(&self, payload: &[u8]) -> bool {
        let vnic = &self.vnic;
        let announces = VirtioNetHeader::split(payload)
            .is_some_and(|(_, frame)| is_announcement(frame, vnic.config.mac.0));
        let Some(lanes) = self.lanes.get().filter(|_| announces) else {
            return false;
        };
        let mut current = vnic.current.write().unwrap_or_else(PoisonError::into_inner);
        let mut waiting = vnic.waiting();
        let own = |waiting: &Current| is_same(&waiting.lanes, lanes);
        let Some(own) = waiting.iter().position(own) else {
            return false;
        };
        let own = waiting.remove(own);
        own.stale.store(false, Ordering::Relaxed);
        let before = current.replace(own);
        let from = before.as_ref().map(|it| it.lanes.peer().to_owned());
        if let Some(before) = before {
            before.stale.store(true, Ordering::Relaxed);
            waiting.push(before);
        }
        drop((current, waiting));
        vnic.tell_link_anew();
        tracing::info!(
            vnic = vnic.config.name,
            from,
            to = lanes.peer(),
            "vNIC moved"
        );
        true
    }

    /// Gives back what the vNIC reserved on the port, and drops what it has queued there.
    fn leave(&self) {
        self.stale.store(true, Ordering::Relaxed);
        if let Some(wire) = &self.shared.wire {
            let frames = wire.with(|wire, _| wire.detach(self.device, self.session));
            self.shared.dropped_with_session(self.device, frames.len());
        }
    }
}

impl Drop for VnicSession {
    fn drop(&mut self) {
        // A session that was granted the vNIC and never came up has reserved as well.
        self.leave();
    }
}

impl DirectVnic for VnicSession {
    fn lane_frames(&self) -> u64 {
        self.lane_frames.load(Ordering::Acquire)
    }

    fn transmit(&self, payloads: &mut dyn Iterator<Item = &[u8]>) {
        let mut batch = Batch::new(&self.shared);
        for payload in payloads {
            // The port has no rate: nothing is held.
            let _consumed = self.receive_guest(&mut batch, payload);
        }
    }
}

impl LaneClient for VnicSession {
    fn up(&self, lanes: LaneSet) {
        let vnic = &self.vnic;
        // A client has one session.
        let _first = self.lanes.set(lanes.clone());
        let mut current = vnic.current.write().unwrap_or_else(PoisonError::into_inner);
        if vnic.removed.load(Ordering::Relaxed) {
            self.stale.store(true, Ordering::Relaxed);
            return;
        }
        // A session of this host before this one is over.
        vnic.waiting()
            .retain(|known| known.lanes.peer() != lanes.peer());
        let session = Current {
            lanes: lanes.clone(),
            stale: self.stale.clone(),
            sent: Arc::default(),
            client: self.me.clone(),
        };
        if let Some(other) = &*current
            && other.lanes.peer() != lanes.peer()
        {
            self.stale.store(true, Ordering::Relaxed);
            vnic.waiting().push(session);
            return;
        }
        let stale = match &*current {
            Some(newer) if epoch_is_later(newer.lanes.epoch(), lanes.epoch()) => Some(&self.stale),
            Some(older) => Some(&older.stale),
            None => None,
        };
        if let Some(stale) = stale {
            stale.store(true, Ordering::Relaxed);
        }
        if !self.stale.load(Ordering::Relaxed) {
            *current = Some(session);
            drop(current);
            vnic.tell_link_anew();
        }
    }

    fn receive(&self, lane: VirtualLane, payload: &[u8]) -> Receipt {
        if lane != VirtualLane::Network {
            self.vnic.counters.dropped_malformed.add(1);
            return Receipt::Consumed;
        }
        let receipt = self.receive_guest(&mut Batch::new(&self.shared), payload);
        self.lane_frames.fetch_add(1, Ordering::Release);
        receipt
    }

    fn batch_end(&self) {
        self.shared.run_wire();
    }

    /// No frame waits: what found the lane blocked was dropped. A link state may.
    fn writable(&self) {
        if !self.stale.load(Ordering::Relaxed) {
            self.vnic.tell_link(None);
        }
    }

    fn down(&self, epoch: u16) {
        self.leave();
        let vnic = &self.vnic;
        let mut current = vnic.current.write().unwrap_or_else(PoisonError::into_inner);
        let Some(own) = self.lanes.get().filter(|own| own.epoch() == epoch) else {
            return;
        };
        let mut waiting = vnic.waiting();
        waiting.retain(|known| !is_same(&known.lanes, own));
        if current
            .as_ref()
            .is_some_and(|current| is_same(&current.lanes, own))
        {
            *current = waiting.pop();
            if let Some(next) = &*current {
                next.stale.store(false, Ordering::Relaxed);
                drop((current, waiting));
                vnic.tell_link_anew();
            }
        }
    }
}

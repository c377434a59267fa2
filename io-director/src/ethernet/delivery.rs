//! Frames on their way to vNICs, a batch at a time: who gets them is looked up, charged and told of once
//! for all of its frames.
//!
//! A vNIC whose host agent is this process gets them past the lanes, on the thread that brought them
//! (`docs/adr/0022-frames-past-the-lanes.md`), unless frames wait for its link or are still on their way
//! there.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use fabric_bypass::DirectReceiver;
use fabric_payload::ethernet::HEADER_BYTES;
use fabric_transport::{DeviceId, FrameBuffer, SendRefused, VirtualLane, frame};
use qos_monitor::frames::FrameDirection;
use smallvec::SmallVec;

use super::address_service::AddressService;
use super::policy::Policy;
use super::port::{Current, PortShared, Vnic};
use super::probe::Seen;
use super::rewrite::Outgoing;
use super::switch::{Destination, DropReason, Forward, Source};

/// What a vNIC gets past the lanes before that is charged: half of what it may have queued on a link.
const CHARGE_BYTES: u32 = 128 * 1024;

/// What a payload past the lanes is charged with: what its frame would have been.
fn charged_bytes(payload_bytes: usize) -> u32 {
    let bytes = payload_bytes.saturating_add(frame::HEADER_BYTES);
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Frames for any vNICs of a port. What it has for them goes out when it is dropped.
pub(super) struct Batch<'a> {
    port: &'a PortShared,
    /// By device.
    deliveries: SmallVec<[(DeviceId, Delivery<'a>); 2]>,
}

impl<'a> Batch<'a> {
    pub(super) fn new(port: &'a PortShared) -> Self {
        let deliveries = SmallVec::new();
        Self { port, deliveries }
    }

    /// Sends header and frame to the vNICs that `forward` names.
    pub(super) fn send(&mut self, source: Source, forward: &Forward, payload: &'a [u8]) {
        match forward.to {
            Destination::Uplink => {}
            Destination::Vnic(device) => {
                if let Some(delivery) = self.delivery(device) {
                    delivery.send(source, forward, payload);
                }
            }
            Destination::Flood => {
                let all: Vec<_> = {
                    let vnics = self.port.read_vnics();
                    let others = vnics.keys().copied();
                    let others = others.filter(|device| source != Source::Vnic(*device));
                    self.port.listeners(forward, others)
                };
                for device in all {
                    if let Some(delivery) = self.delivery(device) {
                        delivery.send(source, forward, payload);
                    }
                }
            }
        }
    }

    fn delivery(&mut self, device: DeviceId) -> Option<&mut Delivery<'a>> {
        let known = |(known, _): &(DeviceId, _)| known.cmp(&device);
        let at = match self.deliveries.binary_search_by(known) {
            Ok(at) => at,
            Err(at) => {
                let vnic = self.port.read_vnics().get(&device).cloned()?;
                self.deliveries.insert(at, (device, Delivery::new(vnic)));
                at
            }
        };
        let delivery = self.deliveries.get_mut(at);
        delivery.map(|(_, delivery)| delivery)
    }
}

/// Frames for one vNIC. What it has for it goes out when it is dropped.
pub(super) struct Delivery<'a> {
    vnic: Arc<Vnic>,
    policy: Arc<Policy>,
    addresses: Option<Arc<AddressService>>,
    session: Option<Current>,
    /// Its guest, if it is reached past the lanes, with what is for it.
    receiver: Option<Arc<dyn DirectReceiver>>,
    payloads: Vec<Cow<'a, [u8]>>,
    /// For what went past them.
    owed_bytes: u32,
    /// Of those that went either way, not counted yet.
    frames: u64,
    frame_bytes: u64,
}

impl<'a> Delivery<'a> {
    pub(super) fn new(vnic: Arc<Vnic>) -> Self {
        let session = vnic.current();
        let receiver = session.as_ref().and_then(|Current { lanes, sent, .. }| {
            let receiver = vnic.receiver(lanes)?;
            let arrived = receiver.lane_frames(lanes.epoch())?;
            let in_order = arrived == sent.load(Ordering::Acquire);
            (in_order && lanes.is_clear()).then_some(receiver)
        });
        Self {
            policy: vnic.policy(),
            addresses: vnic.addresses(),
            vnic,
            session,
            receiver,
            payloads: Vec::new(),
            owed_bytes: 0,
            frames: 0,
            frame_bytes: 0,
        }
    }

    /// Sends a header and frame of another station, if it is for the vNIC.
    fn send(&mut self, source: Source, forward: &Forward, payload: &'a [u8]) {
        if let Some(addresses) = &self.addresses
            && let Some(frame) = payload.get(HEADER_BYTES..)
            && addresses.refuses(frame)
        {
            self.vnic.not_delivered(payload, "foreign_answer");
            return;
        }
        let Some(rewrite) = self.policy.receives(source, forward, payload) else {
            return;
        };
        let outgoing =
            rewrite.and_then(|rewrite| Outgoing::new(payload, rewrite).ok_or(DropReason::Oversize));
        match outgoing {
            Ok(outgoing) => self.deliver(outgoing),
            Err(reason) => {
                self.vnic.counters.dropped_to_guest(reason);
                self.vnic.not_delivered(payload, reason.name());
            }
        }
    }

    /// Sends a header and frame as they are.
    pub(super) fn deliver(&mut self, outgoing: Outgoing<'a>) {
        let vnic = self.vnic.clone();
        let showing = vnic.probe.begin();
        let sent = self.stage(&outgoing);
        let counters = &vnic.counters;
        let dropped = sent.err().map(|refused| match refused {
            SendRefused::Down => {
                counters.dropped_down.add(1);
                "down"
            }
            SendRefused::Blocked | SendRefused::TooLarge => {
                counters.dropped_blocked.add(1);
                "blocked"
            }
        });
        vnic.show(
            showing,
            FrameDirection::Inbound,
            &outgoing.pieces(),
            dropped,
        );
        if sent.is_ok() {
            self.sent(outgoing);
        }
    }

    /// Sends a mirror's copy.
    pub(super) fn deliver_copy(&mut self, payload: &'a [u8]) {
        let outgoing = Outgoing::unchanged(payload);
        let vnic = self.vnic.clone();
        let showing = vnic.probe.begin();
        let sent = self.stage(&outgoing);
        let counted = match sent {
            Ok(()) => &vnic.counters.egress_copies,
            Err(_refused) => &vnic.counters.dropped_copies,
        };
        counted.add(1);
        let seen = Seen {
            direction: FrameDirection::Inbound,
            pieces: &[payload],
            dropped: sent.is_err().then_some("copies"),
            copy: true,
        };
        showing.end(seen, || Some(vnic.config.name.clone()));
        if sent.is_ok() {
            self.sent(outgoing);
        }
    }

    /// Queues a frame on the lane, unless it goes past it.
    fn stage(&self, outgoing: &Outgoing<'_>) -> Result<(), SendRefused> {
        match self.receiver {
            Some(_) => Ok(()),
            None => self.queue(outgoing.pieces(), outgoing.bytes()),
        }
    }

    /// Counts a frame that was staged, and keeps it if it goes past the lanes. It was shown before, as
    /// the guest's answer to it may be seen at once.
    fn sent(&mut self, outgoing: Outgoing<'a>) {
        let bytes = outgoing.bytes();
        self.frames += 1;
        let frame_bytes = u64::try_from(bytes.saturating_sub(HEADER_BYTES)).unwrap_or(0);
        self.frame_bytes = self.frame_bytes.saturating_add(frame_bytes);
        if self.receiver.is_some() {
            self.payloads.push(outgoing.into_payload());
            self.owed_bytes = self.owed_bytes.saturating_add(charged_bytes(bytes));
            if self.owed_bytes >= CHARGE_BYTES {
                self.hand_over();
            }
        }
    }

    fn queue(&self, pieces: [&[u8]; 2], bytes: usize) -> Result<(), SendRefused> {
        let Current { lanes, sent, .. } = self.session.as_ref().ok_or(SendRefused::Down)?;
        let mut buffer = FrameBuffer::with_capacity(bytes);
        for piece in pieces {
            buffer.extend_from_slice(piece);
        }
        // Counted before it can arrive.
        sent.fetch_add(1, Ordering::AcqRel);
        let queued = lanes.queue(&mut vec![(VirtualLane::Network, buffer)]);
        if queued.is_err() {
            sent.fetch_sub(1, Ordering::AcqRel);
        }
        queued
    }

    /// Gives the guest what is for it, and charges the link to the host with it. If that has to wait the
    /// next frames go by the lanes, behind it.
    fn hand_over(&mut self) {
        let (Some(receiver), Some(Current { lanes, .. })) = (&self.receiver, &self.session) else {
            return;
        };
        receiver.take(&mut self.payloads.iter().map(|payload| &**payload));
        self.payloads.clear();
        lanes.charge(VirtualLane::Network, std::mem::take(&mut self.owed_bytes));
        if !lanes.is_clear() {
            self.receiver = None;
        }
    }
}

impl Drop for Delivery<'_> {
    fn drop(&mut self) {
        if !self.payloads.is_empty() {
            self.hand_over();
        } else if let Some(Current { lanes, .. }) = &self.session {
            lanes.flush();
        }
        let counters = &self.vnic.counters;
        counters.egress_frames.add(self.frames);
        counters.egress_bytes.add(self.frame_bytes);
    }
}

//! The shell of an Ethernet port: moves frames between the TAP and the lanes of vNICs.
//!
//! Frames from guests are switched on their link's thread; one thread per port reads the TAP.
//! Nothing waits here: a TAP or lane that does not take a frame loses it, counted by reason, so no
//! guest can hold up another. Frames of one lane are always [`Receipt::Consumed`].

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;

use fabric_config::{EthernetPortConfig, PortName, VnicConfig};
use fabric_payload::ethernet::{
    ETHERNET_HEADER_BYTES, Offloads, PAYLOAD_BYTES_MAX, VirtioNetHeader,
};
use fabric_transport::control::Windows;
use fabric_transport::endpoint::now;
use fabric_transport::{
    DeviceId, FrameBuffer, LaneClient, LaneSet, Receipt, SendRefused, VirtualLane,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::switch::{Destination, DropReason, Source, Switch};
use super::tap::{Tap, TapError};
use crate::counters::{PortCounters, Snapshot, VnicCounters};
use crate::director::epoch_is_later;

/// What the director can receive for a vNIC: 1 MiB of frames.
pub const WINDOWS: Windows = [0, 0, 0, 16 * 1024];

/// Frames that are read from the TAP before what they queued is flushed.
const BATCH_FRAMES_MAX: usize = 64;
/// Two VLAN tags may stand between the addresses and what the MTU counts.
const VLAN_BYTES_MAX: usize = 8;

/// An open Ethernet port with its vNICs.
#[derive(Debug)]
pub struct EthernetPort {
    shared: Arc<PortShared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct PortShared {
    config: EthernetPortConfig,
    tap: Tap,
    switch: Mutex<Switch>,
    vnics: BTreeMap<DeviceId, Vnic>,
    counters: PortCounters,
    stop: EventFd,
}

#[derive(Debug)]
struct Vnic {
    config: VnicConfig,
    /// Of the newest session, with the flag that tells its client when it no longer is.
    current: RwLock<Option<(LaneSet, Arc<AtomicBool>)>>,
    counters: VnicCounters,
}

impl EthernetPort {
    /// Opens the TAP of `config` and starts its thread.
    ///
    /// # Errors
    /// [`TapError`]; nothing is left behind.
    pub fn start<'a>(
        config: &EthernetPortConfig,
        vnics: impl Iterator<Item = &'a VnicConfig>,
    ) -> Result<Self, TapError> {
        let step = |step, source| TapError::Step {
            name: config.tap.clone(),
            step,
            source,
        };
        let tap = Tap::open(&config.tap, config.offloads, config.mtu)?;
        let vnics: BTreeMap<_, _> = vnics
            .map(|vnic| {
                let (current, counters) = Default::default();
                (
                    vnic.id,
                    Vnic {
                        config: vnic.clone(),
                        current,
                        counters,
                    },
                )
            })
            .collect();
        let stop = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .map_err(|error| step("make the stop event", error.into()))?;
        let shared = Arc::new(PortShared {
            config: config.clone(),
            tap,
            switch: Mutex::new(Switch::new(
                vnics
                    .iter()
                    .map(|(device, vnic)| (*device, vnic.config.mac)),
            )),
            vnics,
            counters: PortCounters::default(),
            stop,
        });
        let reader = shared.clone();
        let thread = std::thread::Builder::new()
            .name(config.tap.clone())
            .spawn(move || reader.read_frames())
            .map_err(|source| step("start the thread", source))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> PortName {
        self.shared.config.port
    }

    /// The owner of `device` for one session; `None` if it is no vNIC of this port.
    #[must_use]
    pub fn client(&self, device: DeviceId) -> Option<Arc<dyn LaneClient>> {
        self.shared.vnics.contains_key(&device).then(|| {
            let (shared, stale) = (self.shared.clone(), Arc::default());
            let client: Arc<dyn LaneClient> = Arc::new(VnicSession {
                shared,
                device,
                stale,
            });
            client
        })
    }

    /// The counters of the port and of its vNICs.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Snapshot> {
        let port = self
            .shared
            .counters
            .snapshot(format!("ethernet-port {}", self.name()));
        let vnics = self.shared.vnics.values();
        let vnics = vnics.map(|vnic| vnic.counters.snapshot(format!("vnic {}", vnic.config.name)));
        std::iter::once(port).chain(vnics).collect()
    }
}

impl Drop for EthernetPort {
    fn drop(&mut self) {
        if let Err(error) = self.shared.stop.write(1) {
            // A counter at its maximum is a stop that is pending already.
            tracing::debug!(%error, "port's thread was told to stop before");
        }
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by the thread itself.
            drop(thread.join());
        }
    }
}

impl Vnic {
    fn lanes(&self) -> Option<LaneSet> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().map(|(lanes, _)| lanes.clone())
    }

    /// Queues a header and frame for the guest; returns the lanes to be flushed.
    fn send(&self, payload: &[u8]) -> Option<LaneSet> {
        let Some(lanes) = self.lanes() else {
            self.counters.dropped_down.add(1);
            return None;
        };
        let mut frames = vec![(VirtualLane::Network, FrameBuffer::from_payload(payload))];
        match lanes.queue(&mut frames) {
            Ok(()) => {
                self.counters.egress_frames.add(1);
                let header_bytes = fabric_payload::ethernet::HEADER_BYTES;
                self.counters
                    .egress_bytes
                    .add_bytes(payload.len().saturating_sub(header_bytes));
                Some(lanes)
            }
            Err(SendRefused::Down) => {
                self.counters.dropped_down.add(1);
                None
            }
            Err(SendRefused::Blocked | SendRefused::TooLarge) => {
                self.counters.dropped_blocked.add(1);
                None
            }
        }
    }
}

impl PortShared {
    fn forward(&self, source: Source, frame: &[u8]) -> Result<Destination, DropReason> {
        let mut switch = self.switch.lock().unwrap_or_else(PoisonError::into_inner);
        switch.forward(now(), source, frame)
    }

    /// Sends to everybody whom `destination` names; returns the lanes to be flushed.
    fn send(&self, source: Source, destination: Destination, payload: &[u8]) -> Vec<LaneSet> {
        match destination {
            Destination::Vnic(device) => self
                .vnics
                .get(&device)
                .and_then(|vnic| vnic.send(payload))
                .into_iter()
                .collect(),
            Destination::Uplink => {
                self.write(payload);
                Vec::new()
            }
            Destination::Flood => {
                if source != Source::Uplink {
                    self.write(payload);
                }
                let others = self.vnics.iter();
                let others = others.filter(|(device, _)| source != Source::Vnic(**device));
                others.filter_map(|(_, vnic)| vnic.send(payload)).collect()
            }
        }
    }

    fn write(&self, payload: &[u8]) {
        match self.tap.write(payload) {
            Ok(()) => self.counters.sent_frames.add(1),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.counters.dropped_full.add(1);
            }
            Err(error) => {
                self.counters.dropped_refused.add(1);
                tracing::trace!(%error, tap = self.config.tap, "frame refused");
            }
        }
    }

    /// The port's thread.
    fn read_frames(&self) {
        let mut payload = vec![0; PAYLOAD_BYTES_MAX];
        loop {
            let mut fds = [
                PollFd::new(self.tap.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return self.failed(&error.into()),
            }
            let [_, stop] = fds;
            if stop.revents().is_some_and(|events| !events.is_empty()) {
                return;
            }
            if let Err(error) = self.read_batch(&mut payload) {
                return self.failed(&error);
            }
        }
    }

    /// The interface was deleted, or the kernel is out of resources: the port is down, its vNICs
    /// still reach each other.
    fn failed(&self, error: &io::Error) {
        let (port, tap) = (self.config.port, &self.config.tap);
        tracing::error!(%port, tap, %error, "ethernet port failed, restart the director");
    }

    fn read_batch(&self, payload: &mut [u8]) -> io::Result<()> {
        let mut touched: BTreeMap<DeviceId, LaneSet> = BTreeMap::new();
        for _ in 0..BATCH_FRAMES_MAX {
            let bytes = match self.tap.read(payload) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let payload = payload.get(..bytes).unwrap_or_default();
            let sent_to = self.receive_outside(payload);
            touched.extend(sent_to.into_iter().map(|lanes| (lanes.device(), lanes)));
        }
        for lanes in touched.values() {
            lanes.flush();
        }
        Ok(())
    }

    fn receive_outside(&self, payload: &[u8]) -> Vec<LaneSet> {
        let counters = &self.counters;
        counters.received_frames.add(1);
        let valid = VirtioNetHeader::split(payload)
            .filter(|(header, frame)| header.check(frame.len(), Offloads::ALL).is_ok());
        let Some((_, frame)) = valid else {
            counters.dropped_malformed.add(1);
            return Vec::new();
        };
        match self.forward(Source::Uplink, frame) {
            Ok(destination) => return self.send(Source::Uplink, destination, payload),
            Err(DropReason::OwnSource) => counters.dropped_own_source.add(1),
            Err(DropReason::GroupSource) => counters.dropped_group_source.add(1),
            Err(DropReason::NotHere) => counters.dropped_not_here.add(1),
            Err(DropReason::Runt | DropReason::ForeignSource | DropReason::OwnDestination) => {
                counters.dropped_malformed.add(1);
            }
        }
        Vec::new()
    }
}

/// A vNIC as one session sees it.
struct VnicSession {
    shared: Arc<PortShared>,
    device: DeviceId,
    /// A newer session has the vNIC.
    stale: Arc<AtomicBool>,
}

impl VnicSession {
    fn vnic(&self) -> Option<&Vnic> {
        self.shared.vnics.get(&self.device)
    }

    fn receive_guest(&self, vnic: &Vnic, payload: &[u8]) {
        let counters = &vnic.counters;
        let valid = VirtioNetHeader::split(payload).filter(|(header, frame)| {
            header
                .check(frame.len(), self.shared.tap.offloads())
                .is_ok()
        });
        let Some((header, frame)) = valid else {
            return counters.dropped_malformed.add(1);
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
            return counters.dropped_oversize.add(1);
        }
        let source = Source::Vnic(self.device);
        match self.shared.forward(source, frame) {
            Ok(destination) => {
                counters.ingress_frames.add(1);
                counters.ingress_bytes.add_bytes(frame.len());
                for lanes in self.shared.send(source, destination, payload) {
                    lanes.flush();
                }
            }
            Err(DropReason::ForeignSource) => counters.dropped_foreign_source.add(1),
            Err(DropReason::OwnDestination) => counters.dropped_own_destination.add(1),
            Err(
                DropReason::Runt
                | DropReason::OwnSource
                | DropReason::GroupSource
                | DropReason::NotHere,
            ) => counters.dropped_malformed.add(1),
        }
    }
}

impl LaneClient for VnicSession {
    fn up(&self, lanes: LaneSet) {
        let Some(vnic) = self.vnic() else { return };
        let mut current = vnic.current.write().unwrap_or_else(PoisonError::into_inner);
        let stale = match &*current {
            Some((newer, _)) if epoch_is_later(newer.epoch(), lanes.epoch()) => Some(&self.stale),
            Some((_, older)) => Some(older),
            None => None,
        };
        if let Some(stale) = stale {
            stale.store(true, Ordering::Relaxed);
        }
        if !self.stale.load(Ordering::Relaxed) {
            *current = Some((lanes, self.stale.clone()));
        }
    }

    fn receive(&self, lane: VirtualLane, payload: &[u8]) -> Receipt {
        if let Some(vnic) = self.vnic() {
            if lane != VirtualLane::Network {
                vnic.counters.dropped_malformed.add(1);
            } else if self.stale.load(Ordering::Relaxed) {
                vnic.counters.dropped_stale.add(1);
            } else {
                self.receive_guest(vnic, payload);
            }
        }
        Receipt::Consumed
    }

    /// Nothing waits: what found the lane blocked was dropped.
    fn writable(&self) {}

    fn down(&self, epoch: u16) {
        self.stale.store(true, Ordering::Relaxed);
        let Some(vnic) = self.vnic() else { return };
        let mut current = vnic.current.write().unwrap_or_else(PoisonError::into_inner);
        if current
            .as_ref()
            .is_some_and(|(lanes, _)| lanes.epoch() == epoch)
        {
            *current = None;
        }
    }
}

#[cfg(test)]
mod tests;

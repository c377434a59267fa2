//! One direction of the switch: frames of many links wait here for their turn on the uplink.
//!
//! ```text
//! link ─push─> [ waiting ] ─window─> [ scheduler ] ─poll─> the other link of the port
//!                  └── has_room: false, the link is not read on
//! ```
//!
//! Frames of one port leave in the order they came, whatever they are. The acknowledge field of a
//! frame counts what arrived on its link, and a credit limit never goes back: a frame that overtook
//! another one would make both lies. So a port has one queue and one class; what is shared by
//! reservation and weight is the uplink, between hosts. Between the devices of a host its own
//! scheduler has decided before.
//!
//! A host is a VM of the scheduler, with the sum of what its devices reserve. Its links (one for
//! each path of its session) are the devices of that VM: whichever carries the frames has it all.
//!
//! Only a window of each port stands in the scheduler, so that a port whose far end does not read
//! takes no more of the uplink than that, and the others have the rest.
//!
//! A core: no sockets, and time is an argument.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use fabric_transport::FrameBuffer;
use qos::{
    AdmissionError, BitRate, DeviceHandle, DeviceRate, LinkBudget, MonotonicTime, Scheduler,
    VmHandle, VmRate,
};

/// Bytes of frames of one port and direction at which its link is not read on.
pub const QUEUE_BYTES_MAX: usize = 1024 * 1024;
/// The same as a number of frames: short ones cost more than their bytes.
pub const QUEUE_FRAMES_MAX: usize = 4096;
/// Bytes of one port that stand in the scheduler: two of the largest frames, so that one is left
/// when one leaves.
const WINDOW_BYTES: usize = 2 * (fabric_transport::frame::PAYLOAD_BYTES_MAX + 256);
/// How much of the uplink's rate a busy machine catches up, as at the ends of a session.
const CATCH_UP: Duration = Duration::from_millis(10);

/// Why a port is not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The host is none of those that the relay was made for.
    #[error("host {host:?} is not behind this switch")]
    NoSuchHost {
        /// Its name.
        host: String,
    },
    /// The port is open already.
    #[error("port {port} is in use")]
    InUse {
        /// Its number.
        port: usize,
    },
    /// The scheduler does not take it.
    #[error(transparent)]
    Admission(#[from] AdmissionError),
}

/// A link of a host, as the operator's tools show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenPort {
    /// The host.
    pub host: String,
    /// Which of the host's links it is, from 0.
    pub link: u8,
    /// What the scheduler calls it.
    pub handle: DeviceHandle,
}

#[derive(Debug)]
struct Host {
    vm: VmHandle,
    cir: BitRate,
}

#[derive(Debug)]
struct Port {
    open: OpenPort,
    /// It stands for its host's reservation where that is shown.
    reserves: bool,
    waiting: VecDeque<FrameBuffer>,
    scheduled_bytes: usize,
    /// Of both.
    bytes: usize,
    frames: usize,
    /// Its far end takes nothing now.
    blocked: bool,
    /// It was full, and has not become half empty since: reading on for each frame that leaves
    /// would cost a system call a frame.
    full: bool,
}

/// What the scheduler holds.
#[derive(Debug)]
pub(crate) struct Queued {
    port: usize,
    frame: FrameBuffer,
}

/// See the module.
#[derive(Debug)]
pub struct Relay {
    scheduler: Scheduler<Queued>,
    hosts: BTreeMap<String, Host>,
    ports: BTreeMap<usize, Port>,
}

impl Relay {
    /// A relay over a link that `budget` describes, on which each of `hosts` reserves its share.
    ///
    /// # Errors
    /// The first host whose share does not fit, and why.
    pub fn new<'a>(
        budget: LinkBudget,
        hosts: impl IntoIterator<Item = (&'a str, VmRate)>,
    ) -> Result<Self, (String, AdmissionError)> {
        let mut scheduler = Scheduler::new(budget);
        scheduler.set_catch_up(CATCH_UP);
        let mut known = BTreeMap::new();
        for (host, share) in hosts {
            let vm = scheduler
                .add_vm(MonotonicTime::ZERO, host, share)
                .map_err(|error| (host.to_owned(), error))?;
            let cir = share.cir;
            known.insert(host.to_owned(), Host { vm, cir });
        }
        Ok(Self {
            scheduler,
            hosts: known,
            ports: BTreeMap::new(),
        })
    }

    /// Opens `port` for link number `link` of `host`.
    ///
    /// # Errors
    /// [`OpenError`]; nothing has changed.
    pub fn open(
        &mut self,
        now: MonotonicTime,
        port: usize,
        host: &str,
        link: u8,
    ) -> Result<(), OpenError> {
        if self.ports.contains_key(&port) {
            return Err(OpenError::InUse { port });
        }
        let no_such_host = || OpenError::NoSuchHost {
            host: host.to_owned(),
        };
        let known = self.hosts.get(host).ok_or_else(no_such_host)?;
        let mut others = self.ports.values();
        let reserves = !others.any(|other| other.reserves && other.open.host == host);
        let rate = DeviceRate {
            cir: if reserves { known.cir } else { BitRate::ZERO },
            ..DeviceRate::default()
        };
        let handle = self.scheduler.add_device_to(now, known.vm, rate)?;
        let opened = Port {
            open: OpenPort {
                host: host.to_owned(),
                link,
                handle,
            },
            reserves,
            waiting: VecDeque::new(),
            scheduled_bytes: 0,
            bytes: 0,
            frames: 0,
            blocked: false,
            full: false,
        };
        self.ports.insert(port, opened);
        Ok(())
    }

    /// Gives a host another share, in force at once; what waits stays in its order. A host that is not
    /// known has none.
    ///
    /// # Errors
    /// It does not fit; nothing has changed.
    pub fn set_share(
        &mut self,
        now: MonotonicTime,
        host: &str,
        share: VmRate,
    ) -> Result<(), AdmissionError> {
        let Some(known) = self.hosts.get_mut(host) else {
            return Ok(());
        };
        let mut ports = self.ports.values();
        let reserving = ports.find(|port| port.reserves && port.open.host == host);
        let reserving = reserving.map(|port| port.open.handle);
        let rate = DeviceRate {
            cir: share.cir,
            ..DeviceRate::default()
        };
        // The port's reservation is a part of its host's: it falls first and rises last.
        let falls = share.cir <= known.cir;
        if let Some(port) = reserving.filter(|_| falls) {
            self.scheduler.set_rate(now, port, rate)?;
        }
        self.scheduler.set_vm_rate(now, known.vm, share)?;
        if let Some(port) = reserving.filter(|_| !falls) {
            self.scheduler.set_rate(now, port, rate)?;
        }
        known.cir = share.cir;
        Ok(())
    }

    /// Closes a port and throws away what waits there.
    pub fn close(&mut self, port: usize) {
        if let Some(closed) = self.ports.remove(&port) {
            drop(self.scheduler.remove_device(closed.open.handle));
        }
    }

    /// Whether more may be read for the port. One that is not open has none.
    #[must_use]
    pub fn has_room(&self, port: usize) -> bool {
        self.ports.get(&port).is_some_and(|port| !port.full)
    }

    /// Whether nothing of the port waits.
    #[must_use]
    pub fn is_empty(&self, port: usize) -> bool {
        self.ports.get(&port).is_none_or(|port| port.frames == 0)
    }

    /// Queues a frame behind the others of its port. The caller asks [`Self::has_room`] before; a
    /// port that is not open takes nothing.
    pub fn push(&mut self, now: MonotonicTime, port: usize, frame: FrameBuffer) {
        let Some(queue) = self.ports.get_mut(&port) else {
            return;
        };
        queue.bytes += frame.frame_bytes();
        queue.frames += 1;
        queue.full |= queue.bytes >= QUEUE_BYTES_MAX || queue.frames >= QUEUE_FRAMES_MAX;
        queue.waiting.push_back(frame);
        self.refill(now, port);
    }

    /// Says whether the far end of the port takes frames. Until it does, no more of them than the
    /// window come out of [`Self::poll`].
    pub fn set_blocked(&mut self, now: MonotonicTime, port: usize, blocked: bool) {
        if let Some(queue) = self.ports.get_mut(&port) {
            queue.blocked = blocked;
            self.refill(now, port);
        }
    }

    /// The frame that may leave now, and its port.
    pub fn poll(&mut self, now: MonotonicTime) -> Option<(usize, FrameBuffer)> {
        let Queued { port, frame } = self.scheduler.dequeue(now)?.item;
        if let Some(queue) = self.ports.get_mut(&port) {
            let bytes = frame.frame_bytes();
            queue.scheduled_bytes -= bytes;
            queue.bytes -= bytes;
            queue.frames -= 1;
            queue.full &= queue.bytes > QUEUE_BYTES_MAX / 2 || queue.frames > QUEUE_FRAMES_MAX / 2;
            self.refill(now, port);
        }
        Some((port, frame))
    }

    /// When [`Self::poll`] will have a frame, if nothing else happens before.
    #[must_use]
    pub fn next_wake(&self, now: MonotonicTime) -> Option<MonotonicTime> {
        self.scheduler.next_wake(now)
    }

    /// The open ports, by number.
    pub fn ports(&self) -> impl ExactSizeIterator<Item = (usize, &OpenPort)> {
        self.ports
            .iter()
            .map(|(number, port)| (*number, &port.open))
    }

    pub(crate) fn scheduler(&self) -> &Scheduler<Queued> {
        &self.scheduler
    }

    pub(crate) fn scheduler_mut(&mut self) -> &mut Scheduler<Queued> {
        &mut self.scheduler
    }

    /// Fills the port's window.
    fn refill(&mut self, now: MonotonicTime, port: usize) {
        let Some(queue) = self.ports.get_mut(&port) else {
            return;
        };
        while !queue.blocked
            && queue.scheduled_bytes < WINDOW_BYTES
            && let Some(frame) = queue.waiting.pop_front()
        {
            let bytes = frame.frame_bytes();
            // A frame is at most 65,824 bytes long.
            let charged = u32::try_from(bytes).unwrap_or(u32::MAX);
            let queued = Queued { port, frame };
            let queued = self
                .scheduler
                .enqueue(now, queue.open.handle, 0, charged, queued);
            if let Err(refused) = queued {
                // Never: the device is there, and a window has far fewer frames than it may have.
                debug_assert!(false, "scheduler refused a frame: {:?}", refused.reason);
                queue.waiting.push_front(refused.item.frame);
                return;
            }
            queue.scheduled_bytes += bytes;
        }
    }
}

#[cfg(test)]
mod tests;

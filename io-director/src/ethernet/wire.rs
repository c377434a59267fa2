//! The wire of an Ethernet port as a thing of limited rate: who may use it next, each way.
//!
//! - **Ingress** (guest to LAN): each vNIC is a device of a scheduler, with its ingress words. Its
//!   frames keep their order.
//! - **Egress** (LAN to guests): frames come in the order of the wire, so nothing can be preferred
//!   here. The port's rate paces how fast they are taken; what each vNIC reserved is admitted
//!   against it. Shaping one by one is the business of the link behind.
//!
//! What passes between two vNICs of the port does not use the wire.
//!
//! Pure: `T` is whatever is queued, and the time is an argument.

use std::collections::BTreeMap;
use std::time::Duration;

use fabric_transport::DeviceId;
use qos::{AdmissionError, DeviceHandle, DeviceRate, LinkBudget, MonotonicTime};

use crate::port_direction::{PortDevice, PortDirection, PortVm, join_both, set_vm_both};
use crate::port_hop::Watch;
use crate::port_scheduler::Paced;

/// The only class of a vNIC's frames.
const CLASS: u8 = 0;

/// Both directions of a wire.
pub(super) struct Wire<T> {
    ingress: PortDirection<T>,
    egress: PortDirection<()>,
    /// In whose name frames from the LAN are taken.
    arrivals: Option<DeviceHandle>,
    vnics: BTreeMap<DeviceId, Vnic>,
}

struct Vnic {
    words: PortDevice,
    attached: Option<Attached>,
}

/// The schedulers of a wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// To the LAN.
    Ingress,
    /// From the LAN.
    Egress,
}

/// A vNIC that has its reservation.
struct Attached {
    ingress: DeviceHandle,
    egress: DeviceHandle,
    /// More than one while a session replaces another; the reservation is the same.
    sessions: Vec<u64>,
}

/// What a vNIC has queued and how long its frames waited, since it was attached.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Queued {
    pub(super) frames: u32,
    pub(super) bytes: u64,
    pub(super) waited: Duration,
}

impl<T> Wire<T> {
    /// A wire that carries `budget` each way, with these vNICs.
    pub(super) fn new(
        budget: &LinkBudget,
        now: MonotonicTime,
        vnics: impl IntoIterator<Item = PortDevice>,
    ) -> Self {
        let mut egress = PortDirection::new(budget, "egress");
        // Each decision would be that the wire was busy.
        egress.scheduler.set_recording(false);
        // An empty scheduler always has room for a device that reserves nothing.
        let arrivals = egress.scheduler.add_device(now, DeviceRate::best_effort());
        let vnics = vnics.into_iter().map(|words| {
            let (device, attached) = (words.device, None);
            (device, Vnic { words, attached })
        });
        Self {
            ingress: PortDirection::new(budget, "ingress"),
            arrivals: arrivals.ok(),
            egress,
            vnics: vnics.collect(),
        }
    }

    /// Adds a vNIC, in the place of any other of its number that has no reservation.
    pub(super) fn insert(&mut self, words: PortDevice) {
        let (device, attached) = (words.device, None);
        self.vnics.insert(device, Vnic { words, attached });
    }

    /// Removes a vNIC and frees its reservation; what it had queued comes back.
    pub(super) fn remove(&mut self, device: DeviceId) -> Vec<T> {
        let Some(Vnic { words, attached }) = self.vnics.remove(&device) else {
            return Vec::new();
        };
        let Some(attached) = attached else {
            return Vec::new();
        };
        drop(self.egress.leave(&words.vm, attached.egress));
        self.ingress.leave(&words.vm, attached.ingress)
    }

    /// Gives a VM other words, in force at once; what is queued stays in its order.
    ///
    /// # Errors
    /// They do not fit; nothing has changed.
    pub(super) fn set_vm(&mut self, now: MonotonicTime, vm: &PortVm) -> Result<(), AdmissionError> {
        let vnics = self.vnics.values_mut().map(|vnic| &mut vnic.words.vm);
        let mut members: Vec<_> = vnics.filter(|known| known.name() == vm.name()).collect();
        if let Some(before) = members.first() {
            set_vm_both((&mut self.ingress, &mut self.egress), now, before, vm)?;
        }
        for member in &mut members {
            **member = vm.clone();
        }
        Ok(())
    }

    /// Reserves what `device` was promised, for the session numbered `session`.
    ///
    /// # Errors
    /// It does not fit; nothing has changed.
    pub(super) fn attach(
        &mut self,
        now: MonotonicTime,
        device: DeviceId,
        session: u64,
    ) -> Result<(), AdmissionError> {
        let Some(vnic) = self.vnics.get_mut(&device) else {
            return Ok(());
        };
        if let Some(attached) = &mut vnic.attached {
            attached.sessions.push(session);
            return Ok(());
        }
        let words = &vnic.words;
        let both = (&mut self.ingress, &mut self.egress);
        let rates = (words.ingress, words.egress);
        let (ingress, egress) = join_both(both, now, &words.vm, rates)?;
        vnic.attached = Some(Attached {
            ingress,
            egress,
            sessions: vec![session],
        });
        Ok(())
    }

    /// Ends what [`Self::attach`] began. With the last session of a device its reservation is free
    /// and what it had queued comes back. A session that is not attached is none.
    pub(super) fn detach(&mut self, device: DeviceId, session: u64) -> Vec<T> {
        let Some(vnic) = self.vnics.get_mut(&device) else {
            return Vec::new();
        };
        let Some(attached) = &mut vnic.attached else {
            return Vec::new();
        };
        attached.sessions.retain(|known| *known != session);
        if !attached.sessions.is_empty() {
            return Vec::new();
        }
        let (ingress, egress) = (attached.ingress, attached.egress);
        vnic.attached = None;
        // Nothing of a single vNIC is ever queued in this direction.
        drop(self.egress.leave(&vnic.words.vm, egress));
        self.ingress.leave(&vnic.words.vm, ingress)
    }

    /// Queues a frame to the LAN that takes `bytes` on the wire.
    ///
    /// # Errors
    /// The vNIC is not attached, or has as many frames queued as a scheduler takes: the frame is
    /// given back.
    pub(super) fn enqueue(
        &mut self,
        now: MonotonicTime,
        device: DeviceId,
        bytes: u32,
        frame: T,
    ) -> Result<(), T> {
        let vnic = self.vnics.get(&device);
        let Some(attached) = vnic.and_then(|vnic| vnic.attached.as_ref()) else {
            return Err(frame);
        };
        let queued =
            self.ingress
                .scheduler
                .enqueue(now, attached.ingress, CLASS, bytes.max(1), frame);
        queued.map_err(|refused| refused.item)
    }

    /// A frame of `bytes` arrived from the LAN and waits for [`Self::may_pass`].
    pub(super) fn arrive(&mut self, now: MonotonicTime, bytes: u32) {
        if let Some(arrivals) = self.arrivals {
            let queued = self
                .egress
                .scheduler
                .enqueue(now, arrivals, CLASS, bytes.max(1), ());
            debug_assert!(queued.is_ok(), "one frame at a time arrives");
        }
    }

    /// Whether the frame that arrived may pass now.
    ///
    /// # Errors
    /// When to ask again.
    pub(super) fn may_pass(&mut self, now: MonotonicTime) -> Result<(), MonotonicTime> {
        if self.egress.scheduler.dequeue(now).is_some() {
            return Ok(());
        }
        // Nothing waits: then there is nothing to hold up.
        self.egress.scheduler.next_wake(now).map_or(Ok(()), Err)
    }

    /// Gives a vNIC other words, in force at once; what is queued stays in its order.
    ///
    /// # Errors
    /// They do not fit; nothing has changed.
    pub(super) fn set_rates(
        &mut self,
        now: MonotonicTime,
        device: DeviceId,
        ingress: DeviceRate,
        egress: DeviceRate,
    ) -> Result<(), AdmissionError> {
        let Some(vnic) = self.vnics.get_mut(&device) else {
            return Ok(());
        };
        let (toward_lan, toward_guest) = (&mut self.ingress.scheduler, &mut self.egress.scheduler);
        match &vnic.attached {
            Some(attached) => {
                toward_lan.set_rate(now, attached.ingress, ingress)?;
                let changed = toward_guest.set_rate(now, attached.egress, egress);
                if let Err(error) = changed {
                    let back = toward_lan.set_rate(now, attached.ingress, vnic.words.ingress);
                    debug_assert!(back.is_ok(), "nobody took what was free for a moment");
                    return Err(error);
                }
            }
            None => {
                toward_lan.admit(None, &ingress)?;
                toward_guest.admit(None, &egress)?;
            }
        }
        (vnic.words.ingress, vnic.words.egress) = (ingress, egress);
        Ok(())
    }

    /// One direction as its monitor sees it, whose frames are charged with `frame_bytes_max` at
    /// most. Of the egress nothing can be said by device: there are only arrivals.
    pub(super) fn watch(&mut self, direction: Direction, frame_bytes_max: u32) -> Watch<'_> {
        let vnics = self.vnics.iter().filter_map(|(device, vnic)| {
            let attached = vnic.attached.as_ref()?;
            Some((*device, vnic.words.vm.name(), attached.ingress))
        });
        match direction {
            Direction::Ingress => Watch {
                scheduler: &mut self.ingress.scheduler,
                frame_bytes_max,
                devices: vnics.collect(),
            },
            Direction::Egress => Watch {
                scheduler: &mut self.egress.scheduler,
                frame_bytes_max,
                devices: Vec::new(),
            },
        }
    }

    /// What `device` has queued towards the LAN.
    pub(super) fn queued(&self, device: DeviceId) -> Queued {
        let vnic = self.vnics.get(&device);
        let attached = vnic.and_then(|vnic| vnic.attached.as_ref());
        let statistics =
            attached.and_then(|attached| self.ingress.scheduler.statistics(attached.ingress).ok());
        statistics.map_or_else(Queued::default, |statistics| Queued {
            frames: statistics.queued_frames,
            bytes: statistics.queued_bytes,
            waited: statistics.waited_total,
        })
    }
}

impl<T> Paced for Wire<T> {
    type Granted = T;

    fn poll(&mut self, now: MonotonicTime) -> Option<T> {
        self.ingress.scheduler.dequeue(now).map(|grant| grant.item)
    }

    fn next_wake(&self, now: MonotonicTime) -> Option<MonotonicTime> {
        self.ingress.scheduler.next_wake(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port_direction::PortVm;
    use qos::BitRate;

    const A: DeviceId = DeviceId(1);
    const B: DeviceId = DeviceId(2);
    const FRAME_BYTES: u32 = 1500;

    fn rate(text: &str) -> BitRate {
        text.parse().unwrap()
    }

    fn words(cir: &str, pir: Option<&str>) -> DeviceRate {
        DeviceRate {
            // Nothing but the rate: a burst would hide it.
            pbs_bytes: 1,
            ..DeviceRate::new(rate(cir), pir.map(rate)).unwrap()
        }
    }

    fn wire(a: DeviceRate, b: DeviceRate) -> Wire<u32> {
        let budget = LinkBudget::new("ethernet-port 10/1", rate("1G"));
        let vnic = |(device, rate)| PortDevice {
            device,
            vm: PortVm::named("vm1"),
            ingress: rate,
            egress: rate,
        };
        Wire::new(&budget, MonotonicTime::ZERO, [(A, a), (B, b)].map(vnic))
    }

    fn at(micros: u64) -> MonotonicTime {
        MonotonicTime::from_nanos(micros * 1000)
    }

    /// Polls as the port's thread does and returns what left, with the time of each.
    fn run(wire: &mut Wire<u32>, from: MonotonicTime, until: MonotonicTime) -> Vec<(u64, u32)> {
        let mut left = Vec::new();
        let mut now = from;
        loop {
            while let Some(frame) = wire.poll(now) {
                left.push((now.as_nanos() / 1000, frame));
            }
            match wire.next_wake(now) {
                Some(next) if next <= until => now = next,
                _ => return left,
            }
        }
    }

    #[test]
    fn burst_leaves_in_order_at_the_rate_of_the_port_and_none_is_lost() {
        let best_effort = DeviceRate::best_effort();
        let mut wire = wire(best_effort, best_effort);
        wire.attach(at(0), A, 1).unwrap();
        for frame in 0..1000 {
            assert_eq!(wire.enqueue(at(0), A, FRAME_BYTES, frame), Ok(()));
        }
        assert_eq!(wire.queued(A).frames, 1000);
        let left = run(&mut wire, at(0), at(1_000_000));
        assert_eq!(
            left.iter().map(|(_, frame)| *frame).collect::<Vec<_>>(),
            (0..1000).collect::<Vec<_>>()
        );
        // 999 frames of 12 us before the last one.
        let last = left.last().unwrap().0;
        assert!((11_900..=11_988).contains(&last), "{last} us");
        assert_eq!(wire.queued(A).frames, 0);
    }

    #[test]
    fn reservation_holds_beside_a_vnic_that_floods() {
        let mut wire = wire(
            words("300M", None),
            DeviceRate {
                weight: 10_000,
                ..DeviceRate::best_effort()
            },
        );
        wire.attach(at(0), A, 1).unwrap();
        wire.attach(at(0), B, 2).unwrap();
        for frame in 0..2000 {
            wire.enqueue(at(0), A, FRAME_BYTES, frame).unwrap();
            wire.enqueue(at(0), B, FRAME_BYTES, 10_000 + frame).unwrap();
        }
        let of_a = run(&mut wire, at(0), at(10_000));
        let of_a = of_a.iter().filter(|(_, frame)| *frame < 10_000).count();
        // 250 frames are 300 Mb/s in 10 ms.
        assert!((248..=300).contains(&of_a), "{of_a}");
    }

    /// In force at once: within 1 ms and one frame, with every frame still there and in order.
    #[test]
    fn changed_rate_is_in_force_within_a_millisecond_without_loss_or_reordering() {
        let slow = words("0", Some("1M"));
        let mut wire = wire(slow, slow);
        wire.attach(at(0), A, 1).unwrap();
        for frame in 0..500 {
            wire.enqueue(at(0), A, FRAME_BYTES, frame).unwrap();
        }
        let mut left = run(&mut wire, at(0), at(50_000));
        assert!(
            left.len() <= 6,
            "{} frames of 12 ms each in 50 ms",
            left.len()
        );
        let fast = words("0", Some("100M"));
        wire.set_rates(at(50_000), A, fast, fast).unwrap();
        let after = run(&mut wire, at(50_000), at(60_000));
        let (first, count) = (after[0].0, after.len());
        assert!(first <= 51_120, "first frame at {first} us");
        // 10 ms at 120 us each, less what 1 ms and a frame may cost.
        assert!((74..=85).contains(&count), "{count} frames");
        left.extend(after);
        wire.set_rates(at(60_000), A, slow, slow).unwrap();
        let after = run(&mut wire, at(61_000), at(73_000));
        assert!(after.len() <= 2, "{} frames at 1 Mb/s again", after.len());
        left.extend(after);
        wire.set_rates(at(73_000), A, fast, fast).unwrap();
        left.extend(run(&mut wire, at(73_000), at(10_000_000)));
        assert_eq!(
            left.iter().map(|(_, frame)| *frame).collect::<Vec<_>>(),
            (0..500).collect::<Vec<_>>()
        );
    }

    #[test]
    fn arrivals_pass_at_the_rate_of_the_port_whoever_they_are_for() {
        let best_effort = DeviceRate::best_effort();
        let mut wire = wire(best_effort, best_effort);
        let mut now = at(0);
        for _ in 0..1000 {
            wire.arrive(now, FRAME_BYTES);
            while let Err(next) = wire.may_pass(now) {
                assert!(next > now);
                now = next;
            }
        }
        let micros = now.as_nanos() / 1000;
        assert!((11_900..=11_988).contains(&micros), "{micros} us");
        // The other direction of the wire was free meanwhile.
        wire.attach(now, A, 1).unwrap();
        wire.enqueue(now, A, FRAME_BYTES, 1).unwrap();
        assert_eq!(wire.poll(now), Some(1));
    }

    #[test]
    fn reservation_that_does_not_fit_is_refused_and_changes_nothing() {
        let mut wire = wire(words("600M", None), words("400M", None));
        wire.attach(at(0), A, 1).unwrap();
        let refused = wire.attach(at(0), B, 2).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "ethernet-port 10/1 ingress: 400 Mb/s asked, 350 Mb/s free of 950 Mb/s reservable; \
             50 Mb/s missing"
        );
        assert_eq!(wire.enqueue(at(0), B, FRAME_BYTES, 7), Err(7));
        // Room in one direction only: that of the other is free again.
        let (a, b) = (words("500M", None), words("600M", None));
        wire.set_rates(at(0), A, a, a).unwrap();
        let refused = wire.set_rates(at(0), A, words("100M", None), words("960M", None));
        assert!(
            refused
                .unwrap_err()
                .to_string()
                .starts_with("ethernet-port 10/1 egress: 960 Mb/s asked, 950 Mb/s free")
        );
        assert_eq!(wire.ingress.scheduler.reserved(), rate("500M"));
        assert!(wire.set_rates(at(0), B, b, b).is_err());
        assert!(wire.attach(at(0), B, 2).is_ok());
        assert_eq!(wire.egress.scheduler.reserved(), rate("900M"));
    }

    #[test]
    fn last_session_to_go_takes_the_frames_and_the_reservation_with_it() {
        let mut wire = wire(words("600M", Some("601M")), words("600M", None));
        wire.attach(at(0), A, 1).unwrap();
        for frame in 0..3 {
            wire.enqueue(at(0), A, FRAME_BYTES, frame).unwrap();
        }
        // A newer session of the same vNIC reserves nothing twice.
        wire.attach(at(0), A, 2).unwrap();
        assert_eq!(wire.detach(A, 1), [0; 0]);
        assert_eq!(wire.detach(A, 1), [0; 0]);
        wire.enqueue(at(0), A, FRAME_BYTES, 3).unwrap();
        assert!(wire.attach(at(0), B, 3).is_err());
        assert_eq!(wire.detach(A, 2), [0, 1, 2, 3]);
        assert_eq!(wire.detach(A, 2), [0; 0]);
        assert_eq!(wire.poll(at(10_000)), None);
        assert!(wire.attach(at(0), B, 3).is_ok());
    }
}

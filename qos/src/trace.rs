//! A trace: the whole state of a scheduler at one moment, and every call after it with what came
//! of it. Replayed, it makes the same decisions, or says which one differs.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::rate::{BitRate, DeviceRate, VmRate};
use crate::scheduler::{DeviceHandle, Grant, GrantReason, Scheduler, VmHandle};
use crate::time::MonotonicTime;

pub use crate::scheduler::Image;

/// Calls that one trace holds, about 40 MB; later ones are not written down.
pub const TRACE_EVENTS_MAX: usize = 1 << 20;

/// A frame that was let go, without what it carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Departure {
    /// Whose frame.
    pub device: DeviceHandle,
    /// Its class.
    pub class: u8,
    /// What it was charged with.
    pub bytes: u32,
    /// Why it might leave.
    pub reason: GrantReason,
}

impl<T> From<&Grant<T>> for Departure {
    fn from(grant: &Grant<T>) -> Self {
        Self {
            device: grant.device,
            class: grant.class,
            bytes: grant.bytes,
            reason: grant.reason,
        }
    }
}

/// A call of a scheduler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Event {
    // Rates are in boxes: nearly all calls are the last two, and each takes the room of the largest.
    AddDevice(MonotonicTime, Option<VmHandle>, Box<DeviceRate>),
    SetRate(MonotonicTime, DeviceHandle, Box<DeviceRate>),
    RemoveDevice(DeviceHandle),
    AddVm(MonotonicTime, Box<(Box<str>, VmRate)>),
    SetVmRate(MonotonicTime, VmHandle, Box<VmRate>),
    RemoveVm(VmHandle),
    SetLinkRate(MonotonicTime, BitRate),
    WaitedForCredit(DeviceHandle, u32),
    Enqueue(MonotonicTime, DeviceHandle, u8, u32),
    Dequeue(MonotonicTime, Option<Departure>),
}

/// What a scheduler did for a while.
#[derive(Debug, Serialize, Deserialize)]
pub struct Trace {
    image: Image,
    events: Vec<Event>,
    /// Calls that did not fit.
    missed: u64,
}

/// What a replay found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReplaySummary {
    /// Calls replayed.
    pub calls: u64,
    /// Frames that left, all as recorded.
    pub departures: u64,
    /// Their bytes.
    pub bytes: u64,
    /// From the first to the last call, nanoseconds.
    pub nanos: u64,
    /// Calls that the trace had no room for.
    pub missed: u64,
}

/// A replay that did not do what was recorded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("call {call} at {} ns: recorded {recorded:?}, replayed {replayed:?}", at.as_nanos())]
pub struct Divergence {
    /// The number of the call, from 0.
    pub call: u64,
    /// When it was.
    pub at: MonotonicTime,
    /// What left then.
    pub recorded: Option<Departure>,
    /// What left in the replay.
    pub replayed: Option<Departure>,
}

impl Trace {
    pub(crate) fn new(image: Image) -> Self {
        Self {
            image,
            events: Vec::new(),
            missed: 0,
        }
    }

    pub(crate) fn write(&mut self, event: Event) {
        if self.events.len() < TRACE_EVENTS_MAX {
            self.events.push(event);
        } else {
            self.missed = self.missed.saturating_add(1);
        }
    }

    /// Calls it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether nothing was called.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Bytes of each frame that was brought for `device`, in their order.
    pub fn arrivals_of(&self, device: DeviceHandle) -> impl Iterator<Item = u32> {
        self.events.iter().filter_map(move |event| match event {
            Event::Enqueue(_, to, _, bytes) if *to == device => Some(*bytes),
            _ => None,
        })
    }

    /// Does everything again, and compares.
    ///
    /// # Errors
    /// [`Divergence`] at the first frame that left otherwise than recorded.
    pub fn replay(&self) -> Result<ReplaySummary, Divergence> {
        self.replay_with(|_, _| {})
    }

    /// The same; `seen` is given the scheduler after each frame that left, with its grant.
    ///
    /// # Errors
    /// As [`Trace::replay`].
    pub fn replay_with(
        &self,
        mut seen: impl FnMut(&Scheduler<()>, &Grant<()>),
    ) -> Result<ReplaySummary, Divergence> {
        let mut scheduler = Scheduler::restore(&self.image);
        let mut summary = ReplaySummary {
            missed: self.missed,
            ..ReplaySummary::default()
        };
        let mut first = None;
        for event in &self.events {
            let at = event.time();
            if let Some(at) = at {
                let first = *first.get_or_insert(at);
                let nanos = at.saturating_duration_since(first).as_nanos();
                summary.nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
            }
            if let Event::Dequeue(at, recorded) = event {
                let grant = scheduler.dequeue(*at);
                let replayed = grant.as_ref().map(Departure::from);
                if replayed != *recorded {
                    return Err(Divergence {
                        call: summary.calls,
                        at: *at,
                        recorded: *recorded,
                        replayed,
                    });
                }
                if let Some(grant) = &grant {
                    summary.departures += 1;
                    summary.bytes = summary.bytes.saturating_add(grant.bytes.into());
                    seen(&scheduler, grant);
                }
            } else {
                event.apply(&mut scheduler);
            }
            summary.calls += 1;
        }
        Ok(summary)
    }
}

impl Event {
    fn time(&self) -> Option<MonotonicTime> {
        match self {
            Self::AddDevice(at, ..)
            | Self::SetRate(at, ..)
            | Self::AddVm(at, ..)
            | Self::SetVmRate(at, ..)
            | Self::SetLinkRate(at, _)
            | Self::Enqueue(at, ..)
            | Self::Dequeue(at, _) => Some(*at),
            Self::RemoveDevice(_) | Self::RemoveVm(_) | Self::WaitedForCredit(..) => None,
        }
    }

    /// Calls it again. What was refused then is refused now; handles come out the same.
    fn apply(&self, scheduler: &mut Scheduler<()>) {
        match self {
            Self::AddDevice(at, None, rate) => drop(scheduler.add_device(*at, **rate)),
            Self::AddDevice(at, Some(vm), rate) => drop(scheduler.add_device_to(*at, *vm, **rate)),
            Self::SetRate(at, device, rate) => drop(scheduler.set_rate(*at, *device, **rate)),
            Self::RemoveDevice(device) => drop(scheduler.remove_device(*device)),
            Self::AddVm(at, named) => drop(scheduler.add_vm(*at, &named.0, named.1)),
            Self::SetVmRate(at, vm, rate) => drop(scheduler.set_vm_rate(*at, *vm, **rate)),
            Self::RemoveVm(vm) => {
                let _removed: bool = scheduler.remove_vm(*vm);
            }
            Self::SetLinkRate(at, rate) => {
                let _commitment = scheduler.set_link_rate(*at, *rate);
            }
            Self::WaitedForCredit(device, nanos) => {
                scheduler.waited_for_credit(*device, Duration::from_nanos((*nanos).into()));
            }
            Self::Enqueue(at, device, class, bytes) => {
                let _refused = scheduler.enqueue(*at, *device, *class, *bytes, ());
            }
            Self::Dequeue(at, _) => drop(scheduler.dequeue(*at)),
        }
    }
}

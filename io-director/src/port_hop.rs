//! The schedulers of a port as hops of the monitor.

use std::collections::BTreeMap;

use fabric_transport::DeviceId;
use qos::{Decision, DeviceHandle, HopSnapshot, MonotonicTime, Scheduler, Trace};
use qos_monitor::Hop;

/// A scheduler, whatever it queues.
pub(crate) trait Observed {
    /// See [`HopSnapshot::new`].
    fn snapshot(
        &self,
        now: MonotonicTime,
        frame_bytes_max: u32,
        devices: Vec<(String, Option<String>, DeviceHandle)>,
    ) -> HopSnapshot;
    /// See [`Scheduler::decisions`].
    fn decisions(&self) -> Vec<Decision>;
    /// See [`Scheduler::start_trace`].
    fn start_trace(&mut self, now: MonotonicTime);
    /// See [`Scheduler::take_trace`].
    fn take_trace(&mut self) -> Option<Trace>;
}

impl<T> Observed for Scheduler<T> {
    fn snapshot(
        &self,
        now: MonotonicTime,
        frame_bytes_max: u32,
        devices: Vec<(String, Option<String>, DeviceHandle)>,
    ) -> HopSnapshot {
        HopSnapshot::new(self, now, frame_bytes_max, devices)
    }

    fn decisions(&self) -> Vec<Decision> {
        Self::decisions(self).copied().collect()
    }

    fn start_trace(&mut self, now: MonotonicTime) {
        Self::start_trace(self, now);
    }

    fn take_trace(&mut self) -> Option<Trace> {
        Self::take_trace(self)
    }
}

/// One scheduler of a port, under the port's lock.
pub(crate) struct Watch<'a> {
    pub(crate) scheduler: &'a mut dyn Observed,
    /// The most that one of its frames or commands is charged with.
    pub(crate) frame_bytes_max: u32,
    /// Its devices and their VMs.
    pub(crate) devices: Vec<(DeviceId, &'a str, DeviceHandle)>,
}

/// Calls what it is given with a scheduler and the time, under the port's lock.
type With = Box<dyn Fn(&mut dyn FnMut(Watch<'_>, MonotonicTime)) + Send + Sync>;

/// See the module.
pub(crate) struct PortHop {
    name: String,
    devices: BTreeMap<DeviceId, String>,
    with: With,
}

impl PortHop {
    /// The hop that its scheduler's budget calls `name`.
    pub(crate) fn new(
        name: String,
        devices: BTreeMap<DeviceId, String>,
        with: impl Fn(&mut dyn FnMut(Watch<'_>, MonotonicTime)) + Send + Sync + 'static,
    ) -> Self {
        Self {
            name,
            devices,
            with: Box::new(with),
        }
    }

    fn look<R>(&self, mut look: impl FnMut(Watch<'_>, MonotonicTime) -> R) -> Option<R> {
        let mut seen = None;
        (self.with)(&mut |watch, now| seen = Some(look(watch, now)));
        seen
    }
}

impl Hop for PortHop {
    fn name(&self) -> &str {
        &self.name
    }

    fn snapshot(&self) -> Option<HopSnapshot> {
        self.look(|watch, now| {
            let devices = watch.devices.iter().map(|(id, vm, handle)| {
                let name = self.devices.get(id).cloned();
                let name = name.unwrap_or_else(|| id.to_string());
                (name, Some((*vm).to_owned()), *handle)
            });
            let devices = devices.collect();
            watch
                .scheduler
                .snapshot(now, watch.frame_bytes_max, devices)
        })
    }

    fn decisions(&self) -> Vec<Decision> {
        let decisions = self.look(|watch, _| watch.scheduler.decisions());
        decisions.unwrap_or_default()
    }

    fn start_trace(&self) -> bool {
        self.look(|watch, now| watch.scheduler.start_trace(now))
            .is_some()
    }

    fn take_trace(&self) -> Option<Trace> {
        self.look(|watch, _| watch.scheduler.take_trace()).flatten()
    }
}

//! What a scheduler promised and did so far, as data that can leave the process.

use serde::{Deserialize, Serialize};

use crate::admission::Commitment;
use crate::rate::{BitRate, DeviceRate};
use crate::scheduler::{DeviceHandle, DeviceStatistics, Scheduler};
use crate::time::MonotonicTime;

/// One hop, at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HopSnapshot {
    /// The name of its budget.
    pub hop: String,
    /// The moment.
    pub at: MonotonicTime,
    /// What the link is sold as.
    pub nominal: BitRate,
    /// What it is paced at now.
    pub rate: BitRate,
    /// What of that may be reserved.
    pub reservable: BitRate,
    /// The sum of all committed rates.
    pub reserved: BitRate,
    /// Committed rates are scaled down: the link does not carry them all.
    pub degraded: bool,
    /// More was taken than the budget as configured holds.
    pub oversubscribed: bool,
    /// The largest frame that passes here, in bytes as they are charged.
    pub frame_bytes_max: u32,
    /// Its devices.
    pub devices: Vec<DeviceSnapshot>,
}

/// One device of a hop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSnapshot {
    /// The name that the operator gave it.
    pub name: String,
    /// Its VM, if it has one here.
    pub vm: Option<String>,
    /// What decisions and traces call it.
    pub handle: DeviceHandle,
    /// Its rate words.
    pub rate: DeviceRate,
    /// What it asked for, got and waited since it was added.
    pub statistics: DeviceStatistics,
}

impl HopSnapshot {
    /// The present state of `scheduler`, with those of `devices` that it has: name, VM and handle
    /// of each.
    pub fn new<T>(
        scheduler: &Scheduler<T>,
        now: MonotonicTime,
        frame_bytes_max: u32,
        devices: impl IntoIterator<Item = (String, Option<String>, DeviceHandle)>,
    ) -> Self {
        let devices = devices.into_iter().filter_map(|(name, vm, handle)| {
            Some(DeviceSnapshot {
                name,
                vm,
                handle,
                rate: scheduler.rate(handle).ok()?,
                statistics: scheduler.statistics(handle).ok()?,
            })
        });
        let budget = scheduler.budget();
        Self {
            hop: budget.hop().to_owned(),
            at: now,
            nominal: budget.nominal(),
            rate: scheduler.link_rate(),
            reservable: scheduler.reservable(),
            reserved: scheduler.reserved(),
            degraded: matches!(scheduler.commitment(), Commitment::Degraded { .. }),
            oversubscribed: scheduler.reserved() > budget.reservable(),
            frame_bytes_max,
            devices: devices.collect(),
        }
    }

    /// The device called `name`.
    #[must_use]
    pub fn device(&self, name: &str) -> Option<&DeviceSnapshot> {
        self.devices.iter().find(|device| device.name == name)
    }

    /// The name of a device; `None` if it is not there any more.
    #[must_use]
    pub fn name_of(&self, handle: DeviceHandle) -> Option<&str> {
        let device = self.devices.iter().find(|device| device.handle == handle)?;
        Some(&device.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LinkBudget;

    #[test]
    fn hop_that_promised_too_much_says_so() {
        let rate = |text: &str| text.parse::<BitRate>().unwrap();
        let budget = LinkBudget::new("host1 uplink", rate("100M")).oversubscribed();
        let mut scheduler = Scheduler::<()>::new(budget);
        let now = MonotonicTime::from_nanos(5);
        let words = DeviceRate::new(rate("60M"), None).unwrap();
        let first = scheduler.add_device(now, words).unwrap();
        let named = || [("vn01.vm1".to_owned(), None, first)];
        let snapshot = HopSnapshot::new(&scheduler, now, 4096, named());
        assert!(!snapshot.degraded && !snapshot.oversubscribed);
        let second = scheduler.add_device(now, words).unwrap();
        let snapshot = HopSnapshot::new(&scheduler, now, 4096, named());
        assert!(snapshot.degraded && snapshot.oversubscribed);
        assert_eq!(snapshot.reserved, rate("120M"));
        assert_eq!(snapshot.name_of(first), Some("vn01.vm1"));
        assert_eq!(snapshot.name_of(second), None);
        drop(scheduler.remove_device(first));
        let snapshot = HopSnapshot::new(&scheduler, now, 4096, named());
        assert_eq!(snapshot.device("vn01.vm1"), None);
    }
}

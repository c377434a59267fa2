//! What the vNICs of a host counted, for the monitor.

use std::sync::{Arc, Weak};

use qos_monitor::counters::{Counters, CountingEnd, ObjectCounters};
use vnic_backend::{DirectionStatistics, VnicDevice, VnicStatistics};

/// The vNICs that a host has now.
pub(crate) struct HostCounters(Vec<Weak<VnicDevice>>);

impl HostCounters {
    pub(crate) fn new<'a>(vnics: impl Iterator<Item = &'a Arc<VnicDevice>>) -> Self {
        Self(vnics.map(Arc::downgrade).collect())
    }
}

impl Counters for HostCounters {
    fn counters(&self) -> Vec<ObjectCounters> {
        let vnics = self.0.iter().filter_map(Weak::upgrade);
        vnics.map(|vnic| of(&vnic)).collect()
    }
}

fn of(vnic: &VnicDevice) -> ObjectCounters {
    let VnicStatistics {
        transmit,
        receive,
        transmit_stalls,
        bad_receive_buffers,
        checksums_completed,
        announcements,
    } = vnic.statistics();
    let queues = vnic.receive_queues_running();
    let mut counts = vec![
        ("link_up".to_owned(), u64::from(vnic.link_is_up())),
        (
            "rx_queues_running".to_owned(),
            u64::try_from(queues).unwrap_or(u64::MAX),
        ),
        ("rx_bad_buffers".to_owned(), bad_receive_buffers),
        ("rx_checksums_completed".to_owned(), checksums_completed),
        ("tx_stalls".to_owned(), transmit_stalls),
        ("tx_announcements".to_owned(), announcements),
    ];
    direction(&mut counts, "tx", &transmit, |reason| reason.name());
    direction(&mut counts, "rx", &receive, |reason| reason.name());
    ObjectCounters {
        object: format!("vnic {}", vnic.config().name),
        end: CountingEnd::Host,
        counts: counts.into_iter().collect(),
    }
}

fn direction<Reason>(
    counts: &mut Vec<(String, u64)>,
    way: &str,
    of: &DirectionStatistics<Reason>,
    name: impl Fn(&Reason) -> &'static str,
) {
    counts.push((format!("{way}_packets"), of.frames));
    counts.push((format!("{way}_bytes"), of.bytes));
    let drops = of.drops.iter();
    counts.extend(drops.map(|(reason, count)| (format!("{way}_dropped_{}", name(reason)), *count)));
}

#[cfg(test)]
mod tests {
    use fabric_transport::DeviceId;
    use vnic_backend::VnicConfig;

    use super::*;

    #[test]
    fn every_counter_has_a_name_of_ethtool_and_goes_with_its_vnic() {
        let config = VnicConfig::new("vn01.vm1", DeviceId(1), [2, 0, 0, 0, 0, 1]);
        let vnic = VnicDevice::new(config).unwrap();
        let counters = HostCounters::new([&vnic].into_iter());
        let told = counters.counters();
        assert_eq!(told[0].object, "vnic vn01.vm1");
        for name in [
            "rx_packets",
            "tx_bytes",
            "tx_dropped_no_session",
            "rx_dropped_no_rx_buffers",
            "link_up",
        ] {
            assert_eq!(told[0].counts.get(name), Some(&0), "{name}");
        }
        drop(vnic);
        assert!(counters.counters().is_empty());
    }
}

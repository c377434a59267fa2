//! Where a frame goes: a pure function of addresses and time.
//!
//! The stations of a port are its vNICs, whose addresses are configured, and whatever is outside,
//! behind the uplink. A vNIC is therefore never learned and never flooded to by mistake: a unicast
//! address that is no vNIC's can only be outside. What is learned is who is outside, for people
//! who look, bounded and aged.
//!
//! | from | destination | goes to |
//! | --- | --- | --- |
//! | vNIC | another vNIC | it |
//! | vNIC | any other station | uplink |
//! | vNIC | group | uplink and all other vNICs |
//! | uplink | vNIC | it |
//! | uplink | any other station | nobody |
//! | uplink | group | all vNICs |
//!
//! Dropped: a vNIC with another's source address, the uplink with a vNIC's source address (a
//! reflection, or a stolen address), group source addresses, frames to their own sender.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use fabric_config::MacAddress;
use fabric_transport::DeviceId;
use qos::MonotonicTime;

/// Outside stations that are remembered at most; the oldest half goes when there are more.
pub const LEARNED_MAX: usize = 4096;
/// An outside station is forgotten when it was silent for this long (IEEE 802.1Q default).
pub const AGE_MAX: Duration = Duration::from_secs(300);

/// Where a frame comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A vNIC.
    Vnic(DeviceId),
    /// Outside.
    Uplink,
}

/// Where a frame goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// One vNIC.
    Vnic(DeviceId),
    /// Outside.
    Uplink,
    /// Everybody but its source.
    Flood,
}

/// Why a frame goes nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// Shorter than two addresses.
    Runt,
    /// A vNIC with a source address that is not its own.
    ForeignSource,
    /// From outside with the source address of a vNIC.
    OwnSource,
    /// A group address as source.
    GroupSource,
    /// To the sender itself.
    OwnDestination,
    /// From outside, to a station that is not here.
    NotHere,
}

/// The addresses of one port.
#[derive(Debug, Default)]
pub struct Switch {
    vnics: BTreeMap<DeviceId, MacAddress>,
    by_address: HashMap<MacAddress, DeviceId>,
    outside: HashMap<MacAddress, MonotonicTime>,
}

impl Switch {
    /// A switch with these vNICs.
    #[must_use]
    pub fn new(vnics: impl IntoIterator<Item = (DeviceId, MacAddress)>) -> Self {
        let vnics: BTreeMap<_, _> = vnics.into_iter().collect();
        let by_address = vnics.iter().map(|(device, mac)| (*mac, *device)).collect();
        Self {
            vnics,
            by_address,
            outside: HashMap::new(),
        }
    }

    /// Adds a vNIC.
    pub fn insert(&mut self, device: DeviceId, mac: MacAddress) {
        self.remove(device);
        self.vnics.insert(device, mac);
        self.by_address.insert(mac, device);
    }

    /// Removes a vNIC: its address may be anybody's.
    pub fn remove(&mut self, device: DeviceId) {
        if let Some(mac) = self.vnics.remove(&device) {
            self.by_address.remove(&mac);
        }
    }

    /// Where `frame` goes, which begins with its destination address.
    ///
    /// # Errors
    /// Why it is dropped.
    pub fn forward(
        &mut self,
        now: MonotonicTime,
        source: Source,
        frame: &[u8],
    ) -> Result<Destination, DropReason> {
        let (to, rest) = frame.split_first_chunk::<6>().ok_or(DropReason::Runt)?;
        let (from, _) = rest.split_first_chunk::<6>().ok_or(DropReason::Runt)?;
        let (to, from) = (MacAddress(*to), MacAddress(*from));
        match source {
            Source::Vnic(device) => {
                if self.vnics.get(&device) != Some(&from) {
                    return Err(DropReason::ForeignSource);
                }
            }
            Source::Uplink => {
                if !from.is_unicast() {
                    return Err(DropReason::GroupSource);
                }
                if self.by_address.contains_key(&from) {
                    return Err(DropReason::OwnSource);
                }
                self.learn(now, from);
            }
        }
        let [first, ..] = to.0;
        if first & 1 != 0 {
            return Ok(Destination::Flood);
        }
        match (self.by_address.get(&to), source) {
            (Some(device), Source::Vnic(own)) if *device == own => Err(DropReason::OwnDestination),
            (Some(device), _) => Ok(Destination::Vnic(*device)),
            (None, Source::Vnic(_)) => Ok(Destination::Uplink),
            (None, Source::Uplink) => Err(DropReason::NotHere),
        }
    }

    /// The outside stations that were heard within [`AGE_MAX`].
    #[must_use]
    pub fn outside(&self, now: MonotonicTime) -> Vec<MacAddress> {
        let heard = |at: &MonotonicTime| now.saturating_duration_since(*at) <= AGE_MAX;
        let mut stations: Vec<_> = self
            .outside
            .iter()
            .filter(|(_, at)| heard(at))
            .map(|(mac, _)| *mac)
            .collect();
        stations.sort();
        stations
    }

    fn learn(&mut self, now: MonotonicTime, mac: MacAddress) {
        if self.outside.len() >= LEARNED_MAX && !self.outside.contains_key(&mac) {
            // Dropping half at once keeps a flood of invented addresses at a constant cost each.
            let mut heard: Vec<_> = self.outside.values().copied().collect();
            let (_, median, _) = heard.select_nth_unstable(LEARNED_MAX / 2);
            let median = *median;
            self.outside.retain(|_, at| *at > median);
            if self.outside.len() >= LEARNED_MAX {
                self.outside.clear();
            }
        }
        self.outside.insert(mac, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: DeviceId = DeviceId(1);
    const B: DeviceId = DeviceId(2);
    const NOW: MonotonicTime = MonotonicTime::ZERO;

    fn mac(last: u8) -> MacAddress {
        MacAddress([2, 0, 0, 0, 0, last])
    }

    fn frame(to: MacAddress, from: MacAddress) -> Vec<u8> {
        [&to.0[..], &from.0, &[8, 0]].concat()
    }

    fn switch() -> Switch {
        Switch::new([(A, mac(1)), (B, mac(2))])
    }

    #[test]
    fn frames_go_where_the_table_says() {
        let mut switch = switch();
        let mut go = |source, to, from| switch.forward(NOW, source, &frame(to, from));
        let group = MacAddress([0x33, 0x33, 0, 0, 0, 1]);
        assert_eq!(
            go(Source::Vnic(A), mac(2), mac(1)),
            Ok(Destination::Vnic(B))
        );
        assert_eq!(go(Source::Vnic(A), mac(9), mac(1)), Ok(Destination::Uplink));
        assert_eq!(
            go(Source::Vnic(A), MacAddress::BROADCAST, mac(1)),
            Ok(Destination::Flood)
        );
        assert_eq!(go(Source::Uplink, mac(1), mac(9)), Ok(Destination::Vnic(A)));
        assert_eq!(go(Source::Uplink, mac(8), mac(9)), Err(DropReason::NotHere));
        assert_eq!(go(Source::Uplink, group, mac(9)), Ok(Destination::Flood));
        assert_eq!(switch.outside(NOW), [mac(9)]);
    }

    #[test]
    fn n09_addresses_of_others_are_dropped() {
        let mut switch = switch();
        let mut go = |source, to, from| switch.forward(NOW, source, &frame(to, from));
        assert_eq!(
            go(Source::Vnic(A), mac(9), mac(2)),
            Err(DropReason::ForeignSource)
        );
        assert_eq!(
            go(Source::Vnic(DeviceId(7)), mac(1), mac(7)),
            Err(DropReason::ForeignSource)
        );
        assert_eq!(
            go(Source::Vnic(A), mac(1), mac(1)),
            Err(DropReason::OwnDestination)
        );
        assert_eq!(
            go(Source::Uplink, mac(1), mac(2)),
            Err(DropReason::OwnSource)
        );
        assert_eq!(
            go(Source::Uplink, mac(1), MacAddress::BROADCAST),
            Err(DropReason::GroupSource)
        );
        assert_eq!(
            switch.forward(NOW, Source::Uplink, &[2; 11]),
            Err(DropReason::Runt)
        );
        assert!(switch.outside(NOW).is_empty());
    }

    #[test]
    fn a_vnic_that_is_removed_is_nobody_and_its_address_free() {
        let mut switch = switch();
        switch.remove(A);
        let from_b = frame(mac(1), mac(2));
        let forwarded = switch.forward(NOW, Source::Vnic(B), &from_b);
        assert_eq!(forwarded, Ok(Destination::Uplink));
        let forwarded = switch.forward(NOW, Source::Vnic(A), &frame(mac(2), mac(1)));
        assert_eq!(forwarded, Err(DropReason::ForeignSource));
        let other = DeviceId(7);
        switch.insert(other, mac(1));
        let forwarded = switch.forward(NOW, Source::Vnic(B), &from_b);
        assert_eq!(forwarded, Ok(Destination::Vnic(other)));
    }

    #[test]
    fn outside_stations_age() {
        let mut switch = switch();
        switch
            .forward(NOW, Source::Uplink, &frame(mac(1), mac(9)))
            .unwrap();
        let at_age = NOW.saturating_add(AGE_MAX);
        assert_eq!(switch.outside(at_age), [mac(9)]);
        assert!(
            switch
                .outside(at_age.saturating_add(Duration::from_nanos(1)))
                .is_empty()
        );
    }

    #[test]
    fn invented_addresses_cannot_grow_the_table() {
        let mut switch = switch();
        for number in 0..3 * u32::try_from(LEARNED_MAX).unwrap() {
            let [a, b, c, d] = number.to_be_bytes();
            let from = MacAddress([6, 0, a, b, c, d]);
            let now = MonotonicTime::from_nanos(u64::from(number) / 3);
            switch
                .forward(now, Source::Uplink, &frame(mac(1), from))
                .unwrap();
            assert!(switch.outside.len() <= LEARNED_MAX);
        }
        assert!(switch.outside.len() >= LEARNED_MAX / 4);
    }

    proptest! {
        /// Never back to the sender, never to a vNIC that has another address.
        #[test]
        fn no_frame_reaches_whom_it_is_not_for(to in 0u8..4, from in 0u8..4, source in 0u8..3, group: bool) {
            let to = MacAddress([if group { 3 } else { 2 }, 0, 0, 0, 0, to]);
            let source = match source { 0 => Source::Uplink, n => Source::Vnic(DeviceId(n.into())) };
            let mut switch = switch();
            match switch.forward(NOW, source, &frame(to, mac(from))) {
                Ok(Destination::Vnic(device)) => {
                    prop_assert!(source != Source::Vnic(device));
                    prop_assert_eq!(switch.vnics.get(&device), Some(&to));
                }
                Ok(Destination::Uplink) => prop_assert!(source != Source::Uplink),
                Ok(Destination::Flood) => prop_assert!(group),
                Err(_) => {}
            }
        }
    }
}

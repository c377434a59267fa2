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
//!
//! On a private port there is no uplink: what would go there only is dropped. An isolated vNIC
//! reaches only the uplink, and of the vNICs of its port none reaches it.
//!
//! Of the vNICs that a group would be flooded to, only those get it that want it, as far as that is
//! known ([`super::snoop`]).
//!
//! Once a vNIC names VLANs the table holds within each VLAN ([`super::vlan`]): who is not in a
//! frame's VLAN does not get it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use fabric_config::{EthernetPortConfig, MacAddress};
use fabric_payload::ethernet::VirtioNetHeader;
use fabric_transport::DeviceId;
use qos::MonotonicTime;

use super::access_list::Mark;
use super::policy::Policy;
use super::rewrite::DscpEdit;
use super::snoop::{Listeners, Snooping};
use super::storm::Storm;
use super::vlan::{InVlan, Membership, named};

/// Outside stations that are remembered at most; the oldest half goes when there are more.
pub const LEARNED_MAX: usize = 4096;
/// An outside station is forgotten when it was silent for this long (IEEE 802.1Q default).
pub const AGE_MAX: Duration = Duration::from_secs(300);

/// Where a frame comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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

/// A frame that goes somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// Where to, as far as its VLAN goes there.
    pub to: Destination,
    /// `None` on a port of which no vNIC names VLANs.
    pub vlan: Option<InVlan>,
    /// What the sender's access list makes of it.
    pub dscp: Option<DscpEdit>,
    /// Of the vNICs that a flooded frame goes to, only these; `None`: all.
    pub listeners: Option<Listeners>,
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
    /// In a VLAN that does not go there.
    Vlan,
    /// With a second tag where one must go.
    DoubleTag,
    /// The checksum would be written into the frame's header.
    ChecksumInHeader,
    /// With its tag longer than a frame may be.
    Oversize,
    /// A check would have to read what it cannot.
    Unreadable,
    /// From an address that is not the vNIC's.
    Address,
    /// What only DHCP servers and routers say.
    Server,
    /// Between vNICs of which one is isolated.
    Isolated,
    /// The access list of its sender, or of its receiver.
    Access,
    /// More to all stations than the limit allows.
    Broadcast,
    /// More to groups than the limit allows.
    Multicast,
    /// From or to a vNIC that the operator wants down.
    Down,
}

impl DropReason {
    /// In one word, as counters and captures have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Runt => "runt",
            Self::ForeignSource => "foreign_source",
            Self::OwnSource => "own_source",
            Self::GroupSource => "group_source",
            Self::OwnDestination => "own_destination",
            Self::NotHere => "not_here",
            Self::Vlan => "vlan",
            Self::DoubleTag => "double_tag",
            Self::ChecksumInHeader => "checksum_in_header",
            Self::Oversize => "oversize",
            Self::Unreadable => "unreadable",
            Self::Address => "address",
            Self::Server => "server",
            Self::Isolated => "isolated",
            Self::Access => "access",
            Self::Broadcast => "broadcast",
            Self::Multicast => "multicast",
        }
    }
}

/// A vNIC.
#[derive(Debug)]
struct Station {
    policy: Arc<Policy>,
    storm: Storm,
}

/// The addresses of one port.
#[derive(Debug)]
pub struct Switch {
    vnics: BTreeMap<DeviceId, Station>,
    by_address: HashMap<MacAddress, DeviceId>,
    /// A vNIC names VLANs.
    knows_vlans: bool,
    uplink: Membership,
    /// Of what comes from the uplink.
    storm: Storm,
    is_private: bool,
    /// Which vNICs want which groups.
    snooping: Snooping,
    outside: HashMap<MacAddress, MonotonicTime>,
}

impl Switch {
    /// The switch of this port, without vNICs.
    #[must_use]
    pub fn new(port: &EthernetPortConfig) -> Self {
        Self {
            vnics: BTreeMap::new(),
            by_address: HashMap::new(),
            knows_vlans: false,
            uplink: Membership::uplink(port.native_vlan),
            outside: HashMap::new(),
            storm: Storm::new(port.storm),
            is_private: port.is_private(),
            snooping: Snooping::default(),
        }
    }

    /// Adds a vNIC. The switch knows VLANs from the first one that names some.
    pub fn insert(&mut self, device: DeviceId, policy: Arc<Policy>) {
        self.forget(device);
        self.by_address.insert(policy.mac, device);
        let storm = Storm::new(policy.storm);
        self.vnics.insert(device, Station { policy, storm });
        self.look_for_vlans();
    }

    /// Removes a vNIC: its address may be anybody's.
    pub fn remove(&mut self, device: DeviceId) {
        self.forget(device);
        self.snooping.remove(device);
    }

    fn forget(&mut self, device: DeviceId) {
        if let Some(vnic) = self.vnics.remove(&device) {
            self.by_address.remove(&vnic.policy.mac);
            self.look_for_vlans();
        }
    }

    fn look_for_vlans(&mut self) {
        self.knows_vlans = self.vnics.values().any(|vnic| vnic.policy.names_vlans);
    }

    /// Where `frame` goes, which begins with its destination address and has `header` in front.
    ///
    /// # Errors
    /// Why it is dropped.
    pub fn forward(
        &mut self,
        now: MonotonicTime,
        source: Source,
        header: &VirtioNetHeader,
        frame: &[u8],
    ) -> Result<Forward, DropReason> {
        let (to, rest) = frame.split_first_chunk::<6>().ok_or(DropReason::Runt)?;
        let (from, _) = rest.split_first_chunk::<6>().ok_or(DropReason::Runt)?;
        let (to, from) = (MacAddress(*to), MacAddress(*from));
        let (membership, access) = match source {
            Source::Vnic(device) => {
                let vnic = self.vnics.get(&device).map(|vnic| &vnic.policy);
                let vnic = vnic.filter(|vnic| vnic.mac == from);
                let vnic = vnic.ok_or(DropReason::ForeignSource)?;
                if !vnic.up {
                    return Err(DropReason::Down);
                }
                vnic.guard.check(header, frame)?;
                (&vnic.membership, vnic.access_in.as_ref())
            }
            Source::Uplink => {
                if !from.is_unicast() {
                    return Err(DropReason::GroupSource);
                }
                if self.by_address.contains_key(&from) {
                    return Err(DropReason::OwnSource);
                }
                (&self.uplink, None)
            }
        };
        let mut vlan = match self.knows_vlans {
            true => Some(membership.admit(header, frame)?),
            false => None,
        };
        let mark = match access {
            Some(list) => list.judge(header, frame, vlan)?,
            None => Mark::default(),
        };
        if let (Some(vlan), Some(priority)) = (&mut vlan, mark.priority) {
            *vlan = vlan.with_priority(priority);
        }
        if source == Source::Uplink {
            self.learn(now, from);
        }
        let [first, ..] = to.0;
        let mut listeners = None;
        let to = if first & 1 == 0 {
            self.station(source, to, vlan)?
        } else {
            let group = to;
            let to = self.group(now, source, group)?;
            if group != MacAddress::BROADCAST {
                let vlan = vlan.map_or_else(|| named(frame), |vlan| vlan.vlan);
                let heard_by_all = to == Destination::Flood;
                let look = self.snooping.look(now, source, vlan, frame, heard_by_all);
                listeners = look.filter(|_| heard_by_all);
            }
            to
        };
        Ok(Forward {
            to,
            vlan,
            dscp: mark.dscp,
            listeners,
        })
    }

    /// Whether a vNIC is one of those that a frame goes to.
    pub(super) fn hears(&self, now: MonotonicTime, device: DeviceId, who: Listeners) -> bool {
        self.snooping.hears(now, device, who)
    }

    fn group(
        &mut self,
        now: MonotonicTime,
        source: Source,
        to: MacAddress,
    ) -> Result<Destination, DropReason> {
        let Source::Vnic(device) = source else {
            self.storm.pass(now, to)?;
            return Ok(Destination::Flood);
        };
        let vnic = self.vnics.get_mut(&device);
        let vnic = vnic.ok_or(DropReason::ForeignSource)?;
        vnic.storm.pass(now, to)?;
        Ok(match vnic.policy.isolated {
            true => Destination::Uplink,
            false => Destination::Flood,
        })
    }

    fn station(
        &self,
        source: Source,
        to: MacAddress,
        vlan: Option<InVlan>,
    ) -> Result<Destination, DropReason> {
        let Some(device) = self.by_address.get(&to) else {
            return match source {
                Source::Vnic(_) if !self.is_private => Ok(Destination::Uplink),
                _ => Err(DropReason::NotHere),
            };
        };
        if source == Source::Vnic(*device) {
            return Err(DropReason::OwnDestination);
        }
        let policy = |device| self.vnics.get(device).map(|vnic: &Station| &vnic.policy);
        let receiver = policy(device).ok_or(DropReason::NotHere)?;
        if let Source::Vnic(sender) = &source
            && (receiver.isolated || policy(sender).is_some_and(|sender| sender.isolated))
        {
            return Err(DropReason::Isolated);
        }
        // A known address is nowhere else: outside nobody would take the frame.
        if vlan.is_some_and(|vlan| receiver.membership.egress(vlan).is_none()) {
            return Err(DropReason::Vlan);
        }
        Ok(Destination::Vnic(*device))
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
    use fabric_config::{InterfaceConfig, InterfaceKind, LagMode, StormLimits};
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

    fn port() -> EthernetPortConfig {
        EthernetPortConfig {
            port: "10/1".parse().unwrap(),
            interfaces: vec![InterfaceConfig {
                port: "10/1".parse().unwrap(),
                kind: InterfaceKind::Tap,
                name: "tap0".to_owned(),
                namespace: None,
                bridge: None,
                up: true,
            }],
            mode: LagMode::default(),
            up: true,
            offloads: true,
            mtu: 1500,
            budget: None,
            native_vlan: None,
            storm: StormLimits::default(),
            mirror_to: None,
        }
    }

    fn switch() -> Switch {
        let mut switch = Switch::new(&port());
        switch.insert(A, Arc::new(Policy::plain(mac(1))));
        switch.insert(B, Arc::new(Policy::plain(mac(2))));
        switch
    }

    impl Switch {
        fn to(&mut self, source: Source, frame: &[u8]) -> Result<Destination, DropReason> {
            self.at(NOW, source, frame)
        }

        fn at(
            &mut self,
            now: MonotonicTime,
            source: Source,
            frame: &[u8],
        ) -> Result<Destination, DropReason> {
            let forward = self.forward(now, source, &VirtioNetHeader::default(), frame);
            forward.map(|forward| forward.to)
        }
    }

    #[test]
    fn frames_go_where_the_table_says() {
        let mut switch = switch();
        let mut go = |source, to, from| switch.to(source, &frame(to, from));
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
        let mut go = |source, to, from| switch.to(source, &frame(to, from));
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
        assert_eq!(switch.to(Source::Uplink, &[2; 11]), Err(DropReason::Runt));
        assert!(switch.outside(NOW).is_empty());
    }

    #[test]
    fn a_vnic_that_is_removed_is_nobody_and_its_address_free() {
        let mut switch = switch();
        switch.remove(A);
        let from_b = frame(mac(1), mac(2));
        let forwarded = switch.to(Source::Vnic(B), &from_b);
        assert_eq!(forwarded, Ok(Destination::Uplink));
        let forwarded = switch.to(Source::Vnic(A), &frame(mac(2), mac(1)));
        assert_eq!(forwarded, Err(DropReason::ForeignSource));
        let other = DeviceId(7);
        switch.insert(other, Arc::new(Policy::plain(mac(1))));
        let forwarded = switch.to(Source::Vnic(B), &from_b);
        assert_eq!(forwarded, Ok(Destination::Vnic(other)));
    }

    #[test]
    fn outside_stations_age() {
        let mut switch = switch();
        switch.to(Source::Uplink, &frame(mac(1), mac(9))).unwrap();
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
                .at(now, Source::Uplink, &frame(mac(1), from))
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
            match switch.to(source, &frame(to, mac(from))) {
                Ok(Destination::Vnic(device)) => {
                    prop_assert!(source != Source::Vnic(device));
                    prop_assert_eq!(switch.vnics.get(&device).map(|vnic| vnic.policy.mac), Some(to));
                }
                Ok(Destination::Uplink) => prop_assert!(source != Source::Uplink),
                Ok(Destination::Flood) => prop_assert!(group),
                Err(_) => {}
            }
        }
    }
}

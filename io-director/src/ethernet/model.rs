//! A slow and obvious model of a port's switch, and what the real one has to do with it.
//!
//! The model takes a frame apart, asks of every station whether it must get it, and puts a frame
//! together for each that must. It knows a port from the lab file alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use fabric_config::{LabConfig, MacAddress, VlanMembership, VnicConfig};
use fabric_payload::ethernet::{FLAG_NEEDS_CSUM, HEADER_BYTES, Offloads, VirtioNetHeader};
use fabric_transport::DeviceId;
use proptest::prelude::*;
use qos::MonotonicTime;
use zerocopy::IntoBytes;
use zerocopy::byteorder::little_endian::U16;

use super::policy::Policy;
use super::rewrite::{Outgoing, Rewrite, TagEdit};
use super::switch::{Destination, DropReason, Source, Switch};
use super::vlan::Membership;

const OUTSIDE: MacAddress = MacAddress([2, 0xaa, 0, 0, 0, 9]);
const GROUP: MacAddress = MacAddress([1, 0, 0x5e, 1, 2, 3]);

/// The port of a lab file with these words for itself and for each vNIC.
fn lab(port: &str, vnics: &[&str]) -> LabConfig {
    let mut text = format!(
        "[director]\nname = \"d\"\n[[ethernet-port]]\nport = \"10/1\"\n{port}\n\
         [[host]]\nname = \"h\"\nembedded = true\nrun-dir = \"/x\"\nrate = \"10G\"\n\
         [[host.vm]]\nname = \"vm\"\n"
    );
    for (index, words) in vnics.iter().enumerate() {
        let number = index + 1;
        text += &format!(
            "[[host.vm.vnic]]\nname = \"v{number}\"\nid = {number}\nport = \"10/1\"\n\
             mac = \"02:00:00:00:00:0{number}\"\n{words}\n"
        );
    }
    text.parse()
        .unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// The switch under test with what a port does around it.
struct Real {
    switch: Switch,
    policies: BTreeMap<DeviceId, Arc<Policy>>,
    /// `None`: the port is private.
    uplink: Option<Membership>,
}

/// A frame that was sent, by who got it.
type Deliveries = BTreeMap<Source, Vec<u8>>;

impl Real {
    fn new(lab: &LabConfig) -> Self {
        let port = &lab.ethernet_ports[0];
        let native = port.native_vlan;
        let vnics = lab.hosts[0].vnics();
        let policy = |vnic: &VnicConfig| (vnic.id, Arc::new(Policy::new(vnic, native)));
        let policies: BTreeMap<_, _> = vnics.map(policy).collect();
        let mut switch = Switch::new(port);
        for (device, policy) in &policies {
            switch.insert(*device, policy.clone());
        }
        Self {
            switch,
            policies,
            uplink: (!port.is_private()).then(|| Membership::uplink(native)),
        }
    }

    /// Who gets what, as header and frame, or the first reason why somebody does not.
    fn send(&mut self, source: Source, payload: &[u8]) -> (Deliveries, Option<DropReason>) {
        let (mut deliveries, mut dropped) = (Deliveries::new(), None);
        let (header, frame) = VirtioNetHeader::split(payload).unwrap();
        let forward = match self
            .switch
            .forward(MonotonicTime::ZERO, source, &header, frame)
        {
            Ok(forward) => forward,
            Err(reason) => return (deliveries, Some(reason)),
        };
        let mut deliver = |to, rewrite: Result<Rewrite, DropReason>| {
            let outgoing = rewrite
                .and_then(|rewrite| Outgoing::new(payload, rewrite).ok_or(DropReason::Oversize));
            match outgoing {
                Ok(outgoing) => {
                    assert_eq!(outgoing.pieces().concat().len(), outgoing.bytes());
                    deliveries.insert(to, outgoing.pieces().concat());
                }
                Err(reason) => dropped = Some(reason),
            }
        };
        for (device, policy) in &self.policies {
            let meant = match forward.to {
                Destination::Vnic(to) => to == *device,
                Destination::Uplink => false,
                Destination::Flood => source != Source::Vnic(*device),
            };
            if let Some(edit) = policy.receives(source, &forward, payload).filter(|_| meant) {
                deliver(Source::Vnic(*device), edit);
            }
        }
        if let Some(uplink) = &self.uplink
            && source != Source::Uplink
            && !matches!(forward.to, Destination::Vnic(_))
        {
            let edit = match forward.vlan {
                None => Some(Ok(TagEdit::Keep)),
                Some(vlan) => uplink.egress(vlan),
            };
            let dscp = forward.dscp;
            if let Some(edit) = edit {
                deliver(Source::Uplink, edit.map(|tag| Rewrite { tag, dscp }));
            }
        }
        (deliveries, dropped)
    }

    /// As [`Self::send`], of a frame without offloads.
    fn frames(&mut self, source: Source, frame: &[u8]) -> (Deliveries, Option<DropReason>) {
        let (mut deliveries, dropped) = self.send(source, &with_header(frame));
        for payload in deliveries.values_mut() {
            assert_eq!(payload.drain(..HEADER_BYTES).as_slice(), [0; HEADER_BYTES]);
        }
        (deliveries, dropped)
    }
}

fn with_header(frame: &[u8]) -> Vec<u8> {
    [&[0; HEADER_BYTES][..], frame].concat()
}

/// A frame, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Parts {
    to: MacAddress,
    from: MacAddress,
    /// TPID and control information, the outermost first.
    tags: Vec<(u16, u16)>,
    /// From the EtherType on.
    rest: Vec<u8>,
}

impl Parts {
    fn frame(&self) -> Vec<u8> {
        let mut frame = [self.to.0, self.from.0].concat();
        for (tpid, tci) in &self.tags {
            frame.extend(tpid.to_be_bytes());
            frame.extend(tci.to_be_bytes());
        }
        frame.extend(&self.rest);
        frame
    }
}

/// How a station has a VLAN: not at all, without a tag, or with one.
fn tagged_at(vlans: &VlanMembership, native: u16, vlan: u16) -> Option<bool> {
    match vlans {
        VlanMembership::Native => (vlan == native).then_some(false),
        VlanMembership::Access(own) => (vlan == own.number()).then_some(false),
        VlanMembership::Trunk { allowed, native } => {
            if native.is_some_and(|native| native.number() == vlan) {
                return Some(false);
            }
            let id = fabric_config::VlanId::new(vlan)?;
            allowed.contains(id).then_some(true)
        }
    }
}

/// Who must get which frame.
fn expected(lab: &LabConfig, source: Source, parts: &Parts) -> BTreeMap<Source, Parts> {
    let nobody = BTreeMap::new();
    let vnics: Vec<_> = lab.hosts[0].vnics().collect();
    let port = &lab.ethernet_ports[0];
    let port_native = port.native_vlan.map_or(0, |vlan| vlan.number());
    let sender = vnics.iter().find(|vnic| source == Source::Vnic(vnic.id));
    match sender {
        Some(sender) if sender.mac != parts.from => return nobody,
        None if !parts.from.is_unicast() => return nobody,
        None if vnics.iter().any(|vnic| vnic.mac == parts.from) => return nobody,
        _ => {}
    }
    let aware = vnics
        .iter()
        .any(|vnic| vnic.vlans != VlanMembership::Native);
    let is_group = parts.to.0[0] & 1 != 0;
    let mut vlan = None;
    if aware {
        let outermost = parts.tags.first();
        if outermost.is_some_and(|(tpid, _)| *tpid != 0x8100) {
            return nobody;
        }
        let vid = outermost.map_or(0, |(_, tci)| tci & 0xfff);
        let found = if vid == 0 {
            if parts.tags.len() > 1 {
                return nobody;
            }
            match sender.map(|vnic| &vnic.vlans) {
                None | Some(VlanMembership::Native) => Some(port_native),
                Some(VlanMembership::Access(vlan)) => Some(vlan.number()),
                Some(VlanMembership::Trunk { native, .. }) => native.map(|vlan| vlan.number()),
            }
        } else {
            match sender.map(|vnic| &vnic.vlans) {
                None => (vid <= 4094).then_some(vid),
                Some(VlanMembership::Trunk { allowed, .. }) => fabric_config::VlanId::new(vid)
                    .filter(|vlan| allowed.contains(*vlan))
                    .map(|vlan| vlan.number()),
                Some(_) => None,
            }
        };
        let Some(found) = found else { return nobody };
        vlan = Some(found);
    }
    let leaving = |tagged: bool| {
        let mut parts = parts.clone();
        let Some(vlan) = vlan else { return Some(parts) };
        let priority = parts.tags.first().map_or(0, |(_, tci)| tci & 0xf000);
        if !parts.tags.is_empty() {
            parts.tags.remove(0);
        }
        if tagged {
            parts.tags.insert(0, (0x8100, priority | vlan));
        } else if !parts.tags.is_empty() {
            return None;
        }
        Some(parts)
    };
    let mut all = BTreeMap::new();
    for vnic in &vnics {
        let is_sender = source == Source::Vnic(vnic.id);
        if is_sender || !(is_group || vnic.mac == parts.to) {
            continue;
        }
        if sender.is_some_and(|sender| sender.isolated || vnic.isolated) {
            continue;
        }
        let tagged = vlan.map_or(Some(false), |vlan| {
            tagged_at(&vnic.vlans, port_native, vlan)
        });
        if let Some(parts) = tagged.and_then(leaving) {
            all.insert(Source::Vnic(vnic.id), parts);
        }
    }
    let is_here = vnics.iter().any(|vnic| vnic.mac == parts.to);
    if source != Source::Uplink
        && !port.is_private()
        && !is_here
        && let Some(parts) = leaving(vlan.is_some_and(|vlan| vlan != port_native))
    {
        all.insert(Source::Uplink, parts);
    }
    all
}

const MEMBERSHIPS: [&str; 6] = [
    "",
    "vlan = 10",
    "vlan = 20",
    "vlans = [\"10\", \"20-25\"]",
    "vlans = [\"20\"]\nnative-vlan = 10",
    "vlans = [\"1-4094\"]\nnative-vlan = 25",
];

fn any_vnic() -> impl Strategy<Value = (&'static str, bool)> {
    let words = prop::sample::select(MEMBERSHIPS.to_vec());
    (words, prop::bool::weighted(0.2))
}

prop_compose! {
    fn any_tag()(
        tpid in prop::sample::select(vec![0x8100_u16, 0x8100, 0x8100, 0x88a8, 0x9100]),
        vid in prop::sample::select(vec![0_u16, 10, 10, 20, 25, 40, 4095]),
        priority in 0_u16..16,
    ) -> (u16, u16) {
        (tpid, priority << 12 | vid)
    }
}

prop_compose! {
    fn any_parts()(
        to in 0_usize..6,
        from in 1_u8..5,
        tags in prop::collection::vec(any_tag(), 0..3),
        body in prop::collection::vec(any::<u8>(), 0..30),
    ) -> Parts {
        let vnic = |last| MacAddress([2, 0, 0, 0, 0, last]);
        let to = [vnic(1), vnic(2), vnic(3), OUTSIDE, MacAddress::BROADCAST, GROUP][to];
        let from = if from == 4 { OUTSIDE } else { vnic(from) };
        Parts { to, from, tags, rest: [&[0x88, 0xb5][..], &body].concat() }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    /// Who gets a frame, and with which tags, is what the model says.
    #[test]
    fn frames_go_where_the_model_says(
        native in prop::sample::select(vec!["", "native-vlan = 10", "native-vlan = 40"]),
        private in prop::bool::weighted(0.2),
        vnics in prop::collection::vec(any_vnic(), 3),
        source in 0_u32..4,
        honest in prop::bool::weighted(0.9),
        mut parts in any_parts(),
    ) {
        prop_assume!(!private || source != 0);
        let vnics = vnics.iter().map(|(words, isolated)| {
            let isolated = *isolated && !private;
            format!("{words}\nisolated = {isolated}")
        });
        let vnics: Vec<_> = vnics.collect();
        let vnics: Vec<_> = vnics.iter().map(String::as_str).collect();
        let tap = if private { "private = true" } else { "tap = \"t\"" };
        let lab = lab(&format!("{tap}\n{native}"), &vnics);
        let source = match source { 0 => Source::Uplink, n => Source::Vnic(DeviceId(n)) };
        if honest {
            parts.from = match source {
                Source::Uplink => OUTSIDE,
                Source::Vnic(device) => MacAddress([2, 0, 0, 0, 0, device.0.to_be_bytes()[3]]),
            };
        }
        let expected = expected(&lab, source, &parts);
        let expected: Deliveries =
            expected.into_iter().map(|(to, parts)| (to, parts.frame())).collect();
        let (deliveries, _) = Real::new(&lab).frames(source, &parts.frame());
        prop_assert_eq!(deliveries, expected);
    }

    /// What is to be summed, and where the sum goes, stay at the same bytes of the frame, and the
    /// header stays one that a TAP or a guest may be given. N-04: whatever the header says.
    #[test]
    fn n04_checksums_move_with_the_tag(
        vnics in prop::collection::vec(prop::sample::select(MEMBERSHIPS.to_vec()), 3),
        csum_start in 14_u16..40,
        csum_offset in 0_u16..8,
        header_len in 0_u16..60,
        parts in any_parts(),
    ) {
        let source = Source::Vnic(DeviceId(1));
        let mut frame = Parts { from: MacAddress([2, 0, 0, 0, 0, 1]), ..parts }.frame();
        frame.resize(frame.len() + 40, 0x5a);
        let header = VirtioNetHeader {
            flags: FLAG_NEEDS_CSUM,
            csum_start: U16::new(csum_start),
            csum_offset: U16::new(csum_offset),
            header_len: U16::new(header_len),
            ..VirtioNetHeader::default()
        };
        prop_assert_eq!(header.check(frame.len(), Offloads::ALL), Ok(()));
        let payload = [header.as_bytes(), &frame].concat();
        let (deliveries, _) = Real::new(&lab("tap = \"t\"", &vnics)).send(source, &payload);
        for delivery in deliveries.values() {
            let (new, frame_now) = VirtioNetHeader::split(delivery).unwrap();
            prop_assert_eq!(new.check(frame_now.len(), Offloads::ALL), Ok(()));
            let behind = |frame: &[u8], header: VirtioNetHeader| {
                frame[usize::from(header.csum_start.get())..].to_vec()
            };
            prop_assert_eq!(behind(frame_now, new), behind(&frame, header));
            prop_assert_eq!(new.csum_offset, header.csum_offset);
        }
    }

    /// N-12: any bytes behind two addresses are answered.
    #[test]
    fn n12_any_frame_is_answered(
        vnics in prop::collection::vec(prop::sample::select(MEMBERSHIPS.to_vec()), 3),
        bytes in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        let frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &bytes].concat();
        let mut real = Real::new(&lab("tap = \"t\"", &vnics));
        let _answer = real.send(Source::Vnic(DeviceId(1)), &with_header(&frame));
    }
}

const V1: Source = Source::Vnic(DeviceId(1));
const V2: Source = Source::Vnic(DeviceId(2));

fn parts(to: MacAddress, from: Source, tags: &[(u16, u16)]) -> Parts {
    let from = match from {
        Source::Uplink => OUTSIDE,
        Source::Vnic(device) => MacAddress([2, 0, 0, 0, 0, device.0.to_be_bytes()[3]]),
    };
    Parts {
        to,
        from,
        tags: tags.to_vec(),
        rest: vec![0x88, 0xb5, 1, 2, 3],
    }
}

#[test]
fn n09_double_tag_does_not_hop_into_another_vlan() {
    // The port's native VLAN is 10: on the wire, its tag goes, and the next one would be the first.
    let lab = lab(
        "tap = \"t\"\nnative-vlan = 10",
        &["vlans = [\"10\", \"30\"]", "vlan = 20", "vlan = 10"],
    );
    let mut real = Real::new(&lab);
    for inner in [0x8100, 0x88a8, 0x9100] {
        let frame = parts(MacAddress::BROADCAST, V1, &[(0x8100, 10), (inner, 20)]).frame();
        let (deliveries, dropped) = real.frames(V1, &frame);
        assert_eq!(deliveries, Deliveries::new());
        assert_eq!(dropped, Some(DropReason::DoubleTag));
        // An access vNIC may not even begin.
        for outer in [0, 20, 10] {
            let frame = parts(OUTSIDE, V2, &[(0x8100, outer), (inner, 10)]).frame();
            let (deliveries, dropped) = real.frames(V2, &frame);
            assert_eq!(deliveries, Deliveries::new());
            assert_eq!(dropped, Some(DropReason::DoubleTag));
        }
    }
    // Where the first tag stays, the second is the trunk's own business.
    let frame = parts(OUTSIDE, V1, &[(0x8100, 30), (0x8100, 20)]).frame();
    let (deliveries, _) = real.frames(V1, &frame);
    assert_eq!(deliveries, Deliveries::from([(Source::Uplink, frame)]));
}

#[test]
fn n04_checksum_does_not_write_a_vlan() {
    let lab = lab("tap = \"t\"", &["vlans = [\"10\"]", "vlan = 20"]);
    let frame = parts(OUTSIDE, V1, &[(0x8100, 10)]).frame();
    for (csum_start, dropped) in [
        (14, Some(DropReason::ChecksumInHeader)),
        (17, Some(DropReason::ChecksumInHeader)),
        (18, None),
    ] {
        let header = VirtioNetHeader {
            flags: FLAG_NEEDS_CSUM,
            csum_start: U16::new(csum_start),
            ..VirtioNetHeader::default()
        };
        let payload = [header.as_bytes(), &frame].concat();
        assert_eq!(
            Real::new(&lab).send(V1, &payload).1,
            dropped,
            "{csum_start}"
        );
    }
}

#[test]
fn n06_cut_tags_are_runts() {
    let lab = lab("tap = \"t\"", &["vlans = [\"10\"]", "vlan = 10"]);
    let mut real = Real::new(&lab);
    let frame = parts(MacAddress::BROADCAST, V1, &[(0x8100, 10)]).frame();
    for bytes in 0..18 {
        let (deliveries, dropped) = real.frames(V1, &frame[..bytes]);
        assert_eq!(
            (deliveries.len(), dropped),
            (0, Some(DropReason::Runt)),
            "{bytes}"
        );
    }
    assert_eq!(real.frames(V1, &frame[..18]).0.len(), 2);
}

#[test]
fn priority_goes_from_tag_to_tag() {
    let lab = lab("tap = \"t\"", &["vlan = 10", "vlans = [\"10\"]"]);
    let frame = parts(MacAddress::BROADCAST, V1, &[(0x8100, 5 << 13)]).frame();
    let tagged = parts(MacAddress::BROADCAST, V1, &[(0x8100, 5 << 13 | 10)]).frame();
    let (deliveries, _) = Real::new(&lab).frames(V1, &frame);
    let expected = [(V2, tagged.clone()), (Source::Uplink, tagged)];
    assert_eq!(deliveries, Deliveries::from(expected));
}

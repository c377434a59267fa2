//! Access lists: rules that a frame meets or not, compiled, without memory of other frames.
//!
//! A rule that would decide and of which it cannot be said whether the frame meets it drops the
//! frame: one that cannot be read, a later fragment where ports are asked, a routing header where the
//! destination is.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use fabric_config::{
    AccessAction, AccessListConfig, AccessProtocol, AccessRule, IpNet, MacAddress,
};
use fabric_payload::ethernet::VirtioNetHeader;

use super::packet::{Ip, Packet, Unreadable, Upper, needs_checksum};
use super::rewrite::DscpEdit;
use super::switch::DropReason;
use super::vlan::{InVlan, named};
use crate::counters::{AccessCounters, Snapshot};

/// What a list makes of a frame that passes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) dscp: Option<DscpEdit>,
    pub(super) priority: Option<u8>,
}

/// A list of one vNIC, one way.
#[derive(Debug)]
pub(super) struct AccessList {
    name: String,
    rules: Vec<Rule>,
    passes: bool,
    undecided: AccessCounters,
    unreadable: AccessCounters,
}

#[derive(Debug)]
struct Rule {
    config: AccessRule,
    source: Option<Prefix>,
    destination: Option<Prefix>,
    counters: AccessCounters,
}

/// Bits that an address must have, and which.
#[derive(Debug, Clone, Copy)]
enum Prefix {
    V4 { bits: u32, mask: u32 },
    V6 { bits: u128, mask: u128 },
}

impl Prefix {
    fn new(prefix: IpNet) -> Self {
        match prefix {
            IpNet::V4(prefix) => Self::V4 {
                bits: prefix.network().to_bits(),
                mask: prefix.netmask().to_bits(),
            },
            IpNet::V6(prefix) => Self::V6 {
                bits: prefix.network().to_bits(),
                mask: prefix.netmask().to_bits(),
            },
        }
    }

    fn contains(self, address: IpAddr) -> bool {
        match (self, address) {
            (Self::V4 { bits, mask }, IpAddr::V4(address)) => address.to_bits() & mask == bits,
            (Self::V6 { bits, mask }, IpAddr::V6(address)) => address.to_bits() & mask == bits,
            _ => false,
        }
    }
}

/// A frame as rules see it.
struct Seen<'a> {
    to: MacAddress,
    from: MacAddress,
    vlan: u16,
    packet: Result<Packet<'a>, Unreadable>,
}

/// Whether a frame meets a condition; `None`: that cannot be said.
type Met = Option<bool>;

impl AccessList {
    pub(super) fn new(config: &AccessListConfig) -> Self {
        let rules = config.rules.iter().map(Rule::new);
        Self {
            name: config.name.clone(),
            rules: rules.collect(),
            passes: config.passes,
            undecided: AccessCounters::default(),
            unreadable: AccessCounters::default(),
        }
    }

    /// Whether the frame passes, in this VLAN, and how it is marked.
    ///
    /// # Errors
    /// It does not.
    pub(super) fn judge(
        &self,
        header: &VirtioNetHeader,
        frame: &[u8],
        vlan: Option<InVlan>,
    ) -> Result<Mark, DropReason> {
        let seen = Seen::read(header, frame, vlan)?;
        let mut mark = Mark::default();
        for rule in &self.rules {
            let met = rule.is_met(&seen);
            let decides = match rule.config.action {
                AccessAction::Allow => Some(true),
                AccessAction::Deny => Some(false),
                AccessAction::Mark { .. } | AccessAction::Count => None,
            };
            if met.is_none() && decides.is_some() {
                self.unreadable.count(frame.len());
                return Err(DropReason::Unreadable);
            }
            if met != Some(true) {
                continue;
            }
            rule.counters.count(frame.len());
            if let AccessAction::Mark { dscp, priority } = rule.config.action {
                mark.priority = priority.or(mark.priority);
                mark.dscp = seen.dscp(dscp).or(mark.dscp);
            }
            if let Some(passes) = decides {
                return passes.then_some(mark).ok_or(DropReason::Access);
            }
        }
        self.undecided.count(frame.len());
        self.passes.then_some(mark).ok_or(DropReason::Access)
    }

    /// What each rule counted, of the list of `object`: `vnic vn01.vm1 access-in`.
    pub(super) fn snapshots(&self, object: &str) -> Vec<Snapshot> {
        let object = |what: String| format!("{object} {} {what}", self.name);
        let rules = self.rules.iter().enumerate();
        let rules = rules.map(|(index, rule)| {
            let number = index + 1;
            rule.counters.snapshot(object(format!("rule {number}")))
        });
        let rest = [
            self.undecided.snapshot(object("default".to_owned())),
            self.unreadable.snapshot(object("unreadable".to_owned())),
        ];
        rules.chain(rest).collect()
    }
}

/// What an operator wants to see, in the words of a rule.
#[derive(Debug)]
pub(super) struct FrameFilter(Rule);

impl FrameFilter {
    pub(super) fn new(config: &AccessRule) -> Self {
        Self(Rule::new(config))
    }

    /// Whether a frame, or its beginning, meets it, or may: its VLAN is that of its first tag.
    pub(super) fn may_meet(&self, frame: &[u8]) -> bool {
        let (Some(to), Some(from)) = (address(frame, 0), address(frame, 6)) else {
            return true;
        };
        let seen = Seen {
            to,
            from,
            vlan: named(frame),
            packet: Packet::read(frame),
        };
        self.0.is_met(&seen) != Some(false)
    }
}

/// The address at this place.
fn address(frame: &[u8], at: usize) -> Option<MacAddress> {
    let bytes = frame.get(at..)?.first_chunk::<6>()?;
    Some(MacAddress(*bytes))
}

impl<'a> Seen<'a> {
    fn read(
        header: &VirtioNetHeader,
        frame: &'a [u8],
        vlan: Option<InVlan>,
    ) -> Result<Self, DropReason> {
        let to = address(frame, 0).ok_or(DropReason::Runt)?;
        let from = address(frame, 6).ok_or(DropReason::Runt)?;
        let packet = Packet::read(frame);
        match &packet {
            Ok(packet) if packet.is_overwritten_by(header) => {
                return Err(DropReason::ChecksumInHeader);
            }
            // It could still become another frame.
            Err(_) if needs_checksum(header) => return Err(DropReason::Unreadable),
            _ => {}
        }
        Ok(Self {
            to,
            from,
            vlan: vlan.map_or_else(|| named(frame), |vlan| vlan.vlan),
            packet,
        })
    }

    fn dscp(&self, dscp: Option<u8>) -> Option<DscpEdit> {
        let packet = self.packet.as_ref().ok()?;
        packet.ip?;
        Some(DscpEdit {
            dscp: dscp?,
            at: packet.network_at,
        })
    }
}

impl Rule {
    fn new(config: &AccessRule) -> Self {
        Self {
            config: config.clone(),
            source: config.source.map(Prefix::new),
            destination: config.destination.map(Prefix::new),
            counters: AccessCounters::default(),
        }
    }

    fn is_met(&self, seen: &Seen<'_>) -> Met {
        let config = &self.config;
        let differs = |wanted: Option<MacAddress>, there| wanted.is_some_and(|mac| mac != there);
        if differs(config.destination_mac, seen.to)
            || differs(config.source_mac, seen.from)
            || config.vlan.is_some_and(|vlan| vlan.number() != seen.vlan)
        {
            return Some(false);
        }
        let asks_packet =
            config.protocol.is_some() || self.source.is_some() || self.destination.is_some();
        if !asks_packet {
            return Some(true);
        }
        let packet = seen.packet.as_ref().ok()?;
        if let Some(AccessProtocol::Ethernet(wanted)) = config.protocol
            && packet.ether_type != wanted
        {
            return Some(false);
        }
        match &packet.ip {
            Some(ip) => self.is_met_by_ip(ip),
            None => Some(
                self.source.is_none()
                    && self.destination.is_none()
                    && !matches!(config.protocol, Some(AccessProtocol::Ip(_))),
            ),
        }
    }

    fn is_met_by_ip(&self, ip: &Ip<'_>) -> Met {
        let config = &self.config;
        if let Some(AccessProtocol::Ip(wanted)) = config.protocol
            && ip.protocol != wanted
        {
            return Some(false);
        }
        let differs = |wanted: Option<Prefix>, there| {
            wanted.is_some_and(|prefix: Prefix| !prefix.contains(there))
        };
        if differs(self.source, ip.source) {
            return Some(false);
        }
        if self.destination.is_some() && ip.routed {
            return None;
        }
        if differs(self.destination, ip.destination) {
            return Some(false);
        }
        let (from, to) = (&config.source_port, &config.destination_port);
        if from.is_none() && to.is_none() {
            return Some(true);
        }
        if ip.upper == Upper::LaterFragment {
            return None;
        }
        let there = ip.ports()?;
        let meets = |wanted: &Option<RangeInclusive<u16>>, port| {
            wanted.as_ref().is_none_or(|range| range.contains(&port))
        };
        Some(meets(from, there.0) && meets(to, there.1))
    }
}

#[cfg(test)]
mod tests;

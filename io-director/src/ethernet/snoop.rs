//! IGMP and MLD snooping (RFC 4541): which vNICs want the frames of a multicast group.
//!
//! What vNICs report is remembered, by vNIC; what is outside is the LAN's business: everything that a
//! vNIC sends to a group still goes to the uplink.
//!
//! | frame | goes to |
//! | --- | --- |
//! | query | everybody |
//! | report, leave | uplink, and vNICs that ask |
//! | link-local group, or not IP | everybody |
//! | group that no vNIC has joined | everybody |
//! | any other group | uplink, vNICs that have joined or ask |
//!
//! Groups are told apart only while somebody asks in the VLAN ([`QUERIER_AGE`]), and not before all
//! have had the time to answer: without questions nobody repeats what it wants. A question that leaves
//! more time than [`ANSWER_MAX`] counts for nothing, so that no guest can have the others forgotten by
//! asking slowly.
//!
//! A vNIC that joins more than [`GROUPS_MAX`] groups gets all of them, and no other vNIC notices.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use fabric_transport::DeviceId;
use qos::MonotonicTime;

use super::packet::{Ip, Packet, Upper};
use super::switch::Source;
use super::vlan::be16;

/// Groups that are remembered of a vNIC.
pub(super) const GROUPS_MAX: usize = 256;
/// A membership that is not reported again ends (RFC 3376 section 8.4, RFC 3810 section 9.4).
pub(super) const MEMBERSHIP_AGE: Duration = Duration::from_secs(260);
/// Whoever has not asked for this long does not ask any more (RFC 3376 section 8.5).
pub(super) const QUERIER_AGE: Duration = Duration::from_secs(255);
/// What leaves a group gets its frames for as long: others behind the vNIC may answer the router's
/// question (RFC 3376 section 8.8, twice).
pub(super) const LEAVE_DELAY: Duration = Duration::from_secs(2);
/// The longest time for an answer that counts: that of IGMPv2 (RFC 2236 section 2.2).
pub(super) const ANSWER_MAX: Duration = Duration::from_millis(25_500);
/// VLANs and protocols of which it is remembered who asks.
const QUERIERS_MAX: usize = 256;

const IGMP: u8 = 2;
const ICMPV6: u8 = 58;

/// Who gets a frame to a group, beside the uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listeners {
    /// Who has joined, and who asks.
    Of(Group),
    /// Who asks.
    Queriers(Domain),
}

/// A group of a VLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Group {
    vlan: u16,
    address: IpAddr,
}

/// A VLAN, and which of the two protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Domain {
    vlan: u16,
    is_v6: bool,
}

impl Group {
    const fn domain(self) -> Domain {
        Domain {
            vlan: self.vlan,
            is_v6: self.address.is_ipv6(),
        }
    }
}

/// Who asks in a VLAN.
#[derive(Debug, Clone, Copy)]
struct Querier {
    /// From then on all have had the time to answer.
    ready: MonotonicTime,
    until: MonotonicTime,
}

/// What is known of one vNIC.
#[derive(Debug, Default)]
struct Member {
    /// By when each membership ends.
    groups: HashMap<Group, MonotonicTime>,
    /// Until when it asks.
    asks: HashMap<Domain, MonotonicTime>,
    /// Until when it gets all groups: it has joined too many.
    all_until: Option<MonotonicTime>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Snooping {
    members: HashMap<DeviceId, Member>,
    queriers: HashMap<Domain, Querier>,
}

impl Snooping {
    /// Forgets a vNIC.
    pub(super) fn remove(&mut self, device: DeviceId) {
        self.members.remove(&device);
    }

    /// Learns from a frame to a group, in this VLAN; who gets it, or everybody. What not all hear is no
    /// question.
    pub(super) fn look(
        &mut self,
        now: MonotonicTime,
        source: Source,
        vlan: u16,
        frame: &[u8],
        heard_by_all: bool,
    ) -> Option<Listeners> {
        let ip = Packet::read(frame).ok()?.ip?;
        let is_v6 = ip.destination.is_ipv6();
        let domain = Domain { vlan, is_v6 };
        match Message::read(&ip) {
            Some(Message::Query { answer_within }) => {
                if heard_by_all {
                    self.ask(now, source, domain, answer_within);
                }
                return None;
            }
            Some(Message::Reports(reports)) => {
                if let Source::Vnic(device) = source {
                    let member = self.members.entry(device).or_default();
                    for (address, wants) in reports.take(GROUPS_MAX + 1) {
                        if address.is_ipv6() == is_v6 && is_told_apart(address) {
                            member.report(now, Group { vlan, address }, wants);
                        }
                    }
                }
                return self
                    .is_asked(now, domain)
                    .then_some(Listeners::Queriers(domain));
            }
            None => {}
        }
        let group = Group {
            vlan,
            address: ip.destination,
        };
        let joined = |member: &Member| member.groups.get(&group).is_some_and(|at| *at > now);
        let told_apart = is_told_apart(ip.destination)
            && self.is_asked(now, domain)
            && self.members.values().any(joined);
        told_apart.then_some(Listeners::Of(group))
    }

    /// Whether a vNIC is one of them.
    pub(super) fn hears(&self, now: MonotonicTime, device: DeviceId, who: Listeners) -> bool {
        let Some(member) = self.members.get(&device) else {
            return false;
        };
        let later = |at: Option<&MonotonicTime>| at.is_some_and(|at| *at > now);
        match who {
            Listeners::Queriers(domain) => later(member.asks.get(&domain)),
            Listeners::Of(group) => {
                later(member.groups.get(&group))
                    || later(member.all_until.as_ref())
                    || later(member.asks.get(&group.domain()))
            }
        }
    }

    fn is_asked(&self, now: MonotonicTime, domain: Domain) -> bool {
        let querier = self.queriers.get(&domain);
        querier.is_some_and(|querier| querier.ready <= now && now < querier.until)
    }

    fn ask(&mut self, now: MonotonicTime, source: Source, domain: Domain, answer_within: Duration) {
        if answer_within > ANSWER_MAX {
            return;
        }
        let until = now.saturating_add(QUERIER_AGE);
        if let Source::Vnic(device) = source {
            let asks = &mut self.members.entry(device).or_default().asks;
            asks.retain(|_, at| *at > now);
            if asks.len() < QUERIERS_MAX {
                asks.insert(domain, until);
            }
        }
        self.queriers.retain(|_, querier| querier.until > now);
        if let Some(querier) = self.queriers.get_mut(&domain) {
            querier.until = until;
        } else if self.queriers.len() < QUERIERS_MAX {
            let ready = now.saturating_add(answer_within);
            self.queriers.insert(domain, Querier { ready, until });
        }
    }
}

impl Member {
    fn report(&mut self, now: MonotonicTime, group: Group, wants: bool) {
        let until = now.saturating_add(MEMBERSHIP_AGE);
        if !wants {
            if let Some(at) = self.groups.get_mut(&group) {
                *at = (*at).min(now.saturating_add(LEAVE_DELAY));
            }
        } else if let Some(at) = self.groups.get_mut(&group) {
            *at = until;
        } else {
            if self.groups.len() >= GROUPS_MAX {
                self.groups.retain(|_, at| *at > now);
            }
            if self.groups.len() >= GROUPS_MAX {
                self.all_until = Some(until);
            } else {
                self.groups.insert(group, until);
            }
        }
    }
}

/// Whether a group is one that is not flooded in any case: neither of this link only (RFC 4541
/// sections 2.1.2 and 3) nor of no group at all.
fn is_told_apart(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [.., third, _] = address.octets();
            address.is_multicast() && !(address.octets().starts_with(&[224, 0]) && third == 0)
        }
        IpAddr::V6(address) => {
            let [_, second, ..] = address.octets();
            address.is_multicast() && second & 0xf > 2
        }
    }
}

/// A message of IGMP (RFC 1112, 2236, 3376) or MLD (RFC 2710, 3810).
enum Message<'a> {
    /// Who wants what?
    Query { answer_within: Duration },
    /// Groups, and whether they are wanted.
    Reports(Box<dyn Iterator<Item = (IpAddr, bool)> + 'a>),
}

impl<'a> Message<'a> {
    /// `None`: it is another packet, or malformed.
    fn read(ip: &Ip<'a>) -> Option<Self> {
        let Upper::Whole(message) = ip.upper else {
            return None;
        };
        match (ip.protocol, ip.source) {
            (IGMP, IpAddr::V4(source)) => Self::igmp(source, message),
            (ICMPV6, IpAddr::V6(source)) => Self::mld(source, message),
            _ => None,
        }
    }

    fn igmp(source: Ipv4Addr, message: &'a [u8]) -> Option<Self> {
        let (&[kind, code, _, _], body) = message.split_first_chunk::<4>()?;
        let group = body.first_chunk::<4>().copied().map(Ipv4Addr::from)?;
        let one = |wants| Some(Self::Reports(Box::new([(group.into(), wants)].into_iter())));
        match kind {
            // A switch that asks in place of a router does so from no address (RFC 4541 section 2.1.1);
            // a question about one group says nothing of the others.
            0x11 if source.is_unspecified() || !group.is_unspecified() => None,
            0x11 => {
                let tenths = match code {
                    // IGMPv1 gave ten seconds.
                    0 => 100,
                    _ if message.len() >= 12 => time(code.into(), 8, 4),
                    _ => code.into(),
                };
                Some(Self::Query {
                    answer_within: Duration::from_millis(100 * tenths),
                })
            }
            0x12 | 0x16 => one(true),
            0x17 => one(false),
            0x22 => Some(Self::Reports(Box::new(Records::<4>::new(message)))),
            _ => None,
        }
    }

    fn mld(source: Ipv6Addr, message: &'a [u8]) -> Option<Self> {
        let (&[kind, ..], body) = message.split_first_chunk::<8>()?;
        if kind == 143 {
            return Some(Self::Reports(Box::new(Records::<16>::new(message))));
        }
        let group = body.first_chunk::<16>().copied().map(Ipv6Addr::from)?;
        let one = |wants| Some(Self::Reports(Box::new([(group.into(), wants)].into_iter())));
        match kind {
            130 if !source.is_unicast_link_local() || !group.is_unspecified() => None,
            130 => {
                let code = be16(message, 4)?;
                let millis = if message.len() >= 28 {
                    time(code.into(), 16, 12)
                } else {
                    code.into()
                };
                Some(Self::Query {
                    answer_within: Duration::from_millis(millis),
                })
            }
            131 => one(true),
            132 => one(false),
            _ => None,
        }
    }
}

/// A time code of `bits` with a mantissa of `mantissa_bits` behind a hidden one, if its first bit is
/// set (RFC 3376 section 4.1.1, RFC 3810 section 5.1.3).
fn time(code: u64, bits: u32, mantissa_bits: u32) -> u64 {
    if code >> (bits - 1) == 0 {
        return code;
    }
    let mantissa = code & ((1 << mantissa_bits) - 1) | 1 << mantissa_bits;
    let exponent = code >> mantissa_bits & 7;
    mantissa << (exponent + 3)
}

/// The group records of an IGMPv3 or MLDv2 report, whose addresses have `N` bytes.
struct Records<'a, const N: usize> {
    left: u16,
    rest: &'a [u8],
}

impl<'a, const N: usize> Records<'a, N> {
    fn new(message: &'a [u8]) -> Self {
        Self {
            left: be16(message, 6).unwrap_or_default(),
            rest: message.get(8..).unwrap_or_default(),
        }
    }
}

impl<const N: usize> Iterator for Records<'_, N> {
    type Item = (IpAddr, bool);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            self.left = self.left.checked_sub(1)?;
            let (&[kind, auxiliary_words, _, _], rest) = self.rest.split_first_chunk::<4>()?;
            let sources = be16(self.rest, 2)?;
            let (address, rest) = rest.split_at_checked(N)?;
            let skipped = N * usize::from(sources) + 4 * usize::from(auxiliary_words);
            self.rest = rest.get(skipped..)?;
            let address = match <[u8; 4]>::try_from(address) {
                Ok(address) => IpAddr::from(address),
                Err(_longer) => IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
            };
            match kind {
                // Include, and change to include: nothing, if from nobody.
                1 | 3 => return Some((address, sources > 0)),
                // Exclude, change to exclude, allow.
                2 | 4 | 5 => return Some((address, true)),
                // Block says nothing of the group; others are unknown.
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;

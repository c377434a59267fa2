//! What a vNIC may say: its own addresses, and nothing that servers and routers say.
//!
//! | frame | passes if |
//! | --- | --- |
//! | UDP to port 68 (IPv4) or 546 (IPv6) | trusted: nobody else answers as a DHCP server |
//! | ICMPv6 router advertisement, redirect | trusted |
//! | with a list of addresses: | |
//! | IPv4 | source in the list; 0.0.0.0 to UDP port 67 |
//! | IPv6 | source in the list or link-local by the MAC address; `::` for what needs no address yet |
//! | ARP, RARP | the sender is the vNIC's MAC address, with an address of the list or none |
//! | Neighbour Discovery | also: link-layer options are the MAC address, and what is advertised is its own |
//! | any other | no |
//!
//! A frame that a receiver could read and this cannot is dropped (`dropped_unreadable`), and so is
//! one whose checksum would be written over what was looked at.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{Ipv6HeaderSlice, ip_number};
use fabric_config::{IpNet, MacAddress, VnicConfig};
use fabric_payload::ethernet::VirtioNetHeader;

use super::packet::{
    ARP, IPV4, IPV6, Ip, Packet, RARP, Unreadable, Upper, checksum_at, needs_checksum,
};
use super::switch::DropReason;
use super::vlan::{be16, is_tag};

/// Where DHCP clients listen (RFC 2131 section 4.1, RFC 8415 section 7.2), and servers of IPv4.
const DHCP_CLIENT: u16 = 68;
const DHCPV6_CLIENT: u16 = 546;
const DHCP_SERVER: u16 = 67;

/// Types of ICMPv6 (RFC 4861 section 4, RFC 2710, RFC 3810).
mod icmpv6 {
    pub(super) const ROUTER_SOLICITATION: u8 = 133;
    pub(super) const ROUTER_ADVERTISEMENT: u8 = 134;
    pub(super) const NEIGHBOUR_SOLICITATION: u8 = 135;
    pub(super) const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    pub(super) const REDIRECT: u8 = 137;
    pub(super) const LISTENER_REPORT: u8 = 131;
    pub(super) const LISTENER_DONE: u8 = 132;
    pub(super) const LISTENER_REPORT_V2: u8 = 143;
}

/// What a vNIC may say.
#[derive(Debug)]
pub(super) struct Guard {
    mac: MacAddress,
    trusted: bool,
    own: Vec<IpNet>,
    /// Comes from the MAC address (RFC 4291 appendix A).
    link_local: Ipv6Addr,
}

impl Guard {
    pub(super) fn new(config: &VnicConfig) -> Self {
        Self::of(config.mac, config.trusted, config.addresses.clone())
    }

    pub(super) fn of(mac: MacAddress, trusted: bool, own: Vec<IpNet>) -> Self {
        let [a, b, c, d, e, f] = mac.0;
        let interface = [a ^ 2, b, c, 0xff, 0xfe, d, e, f];
        let mut link_local = [0; 16];
        let prefix = [0xfe, 0x80, 0, 0, 0, 0, 0, 0];
        let bytes = prefix.into_iter().chain(interface);
        link_local
            .iter_mut()
            .zip(bytes)
            .for_each(|(to, byte)| *to = byte);
        Self {
            mac,
            trusted,
            own,
            link_local: link_local.into(),
        }
    }

    /// Whether a frame from the guest may pass.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn check(&self, header: &VirtioNetHeader, frame: &[u8]) -> Result<(), DropReason> {
        let lists = !self.own.is_empty();
        if !lists && (self.trusted || !may_be_of_server(header, frame)) {
            return Ok(());
        }
        let packet = match Packet::read(frame) {
            Ok(packet) => packet,
            // Nobody takes an answer from what nobody can read.
            Err(Unreadable::Cut) if !lists && !needs_checksum(header) => return Ok(()),
            Err(_unreadable) => return Err(DropReason::Unreadable),
        };
        if packet.is_overwritten_by(header) {
            return Err(DropReason::ChecksumInHeader);
        }
        if let Some(ip) = &packet.ip
            && !self.trusted
            && is_of_server(ip)
        {
            return Err(DropReason::Server);
        }
        if lists && !self.is_own(&packet)? {
            return Err(DropReason::Address);
        }
        Ok(())
    }

    fn has(&self, address: IpAddr) -> bool {
        let listed = |own: &IpNet| own.contains(&address);
        address == IpAddr::V6(self.link_local) && self.own.iter().any(|own| own.addr().is_ipv6())
            || self.own.iter().any(listed)
    }

    /// Whether the frame says nothing that is not the vNIC's to say.
    fn is_own(&self, packet: &Packet<'_>) -> Result<bool, DropReason> {
        // Behind a tag that a guest made itself, as on a port without VLANs, it is the same.
        match (packet.ether_type, &packet.ip) {
            (IPV4, Some(ip)) => Ok(self.has(ip.source) || is_dhcp_request(ip)),
            (IPV6, Some(ip)) => self.is_own_ipv6(packet, ip),
            (ARP | RARP, _) => Ok(self.is_own_arp(packet).ok_or(DropReason::Unreadable)?),
            _ => Ok(false),
        }
    }

    /// `None`: not ARP of IPv4 on Ethernet (RFC 826).
    fn is_own_arp(&self, packet: &Packet<'_>) -> Option<bool> {
        let (kinds, rest) = packet.network.split_first_chunk::<8>()?;
        let (hardware, rest) = rest.split_first_chunk::<6>()?;
        let (address, rest) = rest.split_first_chunk::<4>()?;
        let _target = rest.get(..10)?;
        let [0, 1, 8, 0, 6, 4, ..] = kinds else {
            return None;
        };
        let address = Ipv4Addr::from(*address);
        let address_is_own = address.is_unspecified() || self.has(address.into());
        Some(*hardware == self.mac.0 && address_is_own)
    }

    fn is_own_ipv6(&self, packet: &Packet<'_>, ip: &Ip<'_>) -> Result<bool, DropReason> {
        let source_is_own = self.has(ip.source);
        let Some(message) = ip.icmpv6() else {
            return Ok(source_is_own);
        };
        let kind = *message.first().ok_or(DropReason::Unreadable)?;
        let without_address = matches!(
            kind,
            icmpv6::ROUTER_SOLICITATION
                | icmpv6::NEIGHBOUR_SOLICITATION
                | icmpv6::LISTENER_REPORT
                | icmpv6::LISTENER_DONE
                | icmpv6::LISTENER_REPORT_V2
        );
        let unspecified = ip.source == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        if !(source_is_own || unspecified && without_address) {
            return Ok(false);
        }
        // Bytes before the options (RFC 4861 section 4).
        let body_bytes = match kind {
            icmpv6::ROUTER_SOLICITATION => 8,
            icmpv6::ROUTER_ADVERTISEMENT => 16,
            icmpv6::NEIGHBOUR_SOLICITATION | icmpv6::NEIGHBOUR_ADVERTISEMENT => 24,
            icmpv6::REDIRECT => 40,
            _ => return Ok(true),
        };
        // Nobody takes it in fragments (RFC 6980), but for those who do.
        let Upper::Whole(_) = ip.upper else {
            return Err(DropReason::Unreadable);
        };
        let message = without_padding(packet, ip, message).ok_or(DropReason::Unreadable)?;
        let (body, options) = message
            .split_at_checked(body_bytes)
            .ok_or(DropReason::Unreadable)?;
        let target = body.get(8..24).and_then(|bytes| bytes.first_chunk::<16>());
        let target_is_own = target.is_some_and(|target| self.has(Ipv6Addr::from(*target).into()));
        let claims = match kind {
            icmpv6::NEIGHBOUR_ADVERTISEMENT => true,
            // Who has no address yet asks for the one it wants.
            icmpv6::NEIGHBOUR_SOLICITATION => unspecified,
            _ => false,
        };
        Ok((!claims || target_is_own) && self.has_own_link_layer(options)?)
    }

    /// Whether all source and target link-layer address options are the vNIC's MAC address.
    fn has_own_link_layer(&self, mut options: &[u8]) -> Result<bool, DropReason> {
        const SOURCE: u8 = 1;
        const TARGET: u8 = 2;
        while let [kind, units, ..] = options {
            // A length of 0 ends the message for everybody (RFC 4861 section 4.6).
            let bytes = usize::from(*units) * 8;
            let option = options.get(..bytes).filter(|option| !option.is_empty());
            let option = option.ok_or(DropReason::Unreadable)?;
            let is_link_layer = matches!(*kind, SOURCE | TARGET);
            if is_link_layer && option.get(2..) != Some(&self.mac.0) {
                return Ok(false);
            }
            options = options.get(bytes..).unwrap_or_default();
        }
        match options {
            [] => Ok(true),
            _ => Err(DropReason::Unreadable),
        }
    }
}

/// A quick look, for vNICs that have nothing else to be checked: a frame of which this says no is
/// neither DHCP nor ICMPv6, however a receiver reads it.
fn may_be_of_server(header: &VirtioNetHeader, frame: &[u8]) -> bool {
    const PROTOCOL_AT: usize = 14 + 9;
    match be16(frame, 12) {
        // The checksum could still become another protocol.
        Some(IPV4) if needs_checksum(header) && checksum_at(header) < 14 + 20 => true,
        Some(IPV4) => frame.get(PROTOCOL_AT) == Some(&ip_number::UDP.0),
        Some(other) => other < 0x600 || other == IPV6 || is_tag(other),
        None => false,
    }
}

fn is_of_server(ip: &Ip<'_>) -> bool {
    let is_udp = ip.protocol == ip_number::UDP.0;
    let client = match ip.source {
        IpAddr::V4(_) => DHCP_CLIENT,
        IpAddr::V6(_) => DHCPV6_CLIENT,
    };
    let answers = is_udp && ip.ports().is_some_and(|(_, to)| to == client);
    let kind = ip.icmpv6().and_then(<[u8]>::first);
    answers
        || matches!(
            kind,
            Some(&(icmpv6::ROUTER_ADVERTISEMENT | icmpv6::REDIRECT))
        )
}

/// A client that has no address yet.
fn is_dhcp_request(ip: &Ip<'_>) -> bool {
    ip.source == IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        && ip.protocol == ip_number::UDP.0
        && matches!(ip.upper, Upper::Whole(_))
        && ip.ports() == Some((DHCP_CLIENT, DHCP_SERVER))
}

/// The message as long as the IPv6 header says. `None`: it is not there.
fn without_padding<'a>(packet: &Packet<'_>, ip: &Ip<'_>, message: &'a [u8]) -> Option<&'a [u8]> {
    let header = Ipv6HeaderSlice::from_slice(packet.network).ok()?;
    let payload_bytes = usize::from(header.payload_length());
    if payload_bytes == 0 {
        // A jumbogram, or none: then receivers differ, and all that there is counts.
        return Some(message);
    }
    let end = packet.network_at + header.slice().len() + payload_bytes;
    message.get(..end.checked_sub(ip.upper_at)?)
}

#[cfg(test)]
mod tests;

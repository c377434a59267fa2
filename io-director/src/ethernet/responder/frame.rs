//! Frames taken apart and put together; what is cut off or wrong in length is still looked into.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{
    ArpEthIpv4Packet, ArpPacket, ArpPacketSlice, EtherType, Icmpv6Type, IpNumber, Ipv4HeaderSlice,
    Ipv6HeaderSlice, PacketBuilder,
};
use fabric_config::MacAddress;

/// Hops of what the director sends; of neighbour discovery it must be this (RFC 4861 section 6.1).
const HOPS: u8 = 255;
const UDP_HEADER_BYTES: usize = 8;
/// VLAN tags that are taken off; Linux as well takes off two.
const TAGS_MAX: usize = 2;
/// Extension headers of IPv6 that are looked behind.
const EXTENSIONS_MAX: usize = 8;

/// A UDP datagram, or the first fragment of one.
#[derive(Debug)]
pub(super) struct Datagram<'a> {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) source_port: u16,
    pub(super) destination_port: u16,
    /// No more than the frame holds.
    pub(super) payload: &'a [u8],
    /// It is in a VLAN.
    pub(super) tagged: bool,
    whole: bool,
}

impl Datagram<'_> {
    /// Whether it is all there.
    pub(super) fn whole(&self) -> bool {
        self.whole
    }
}

/// A message of ICMPv6 that is whole and in no VLAN.
#[derive(Debug)]
pub(super) struct Icmpv6<'a> {
    pub(super) source: Ipv6Addr,
    pub(super) hops: u8,
    pub(super) kind: u8,
    /// Behind type, code and checksum.
    pub(super) body: &'a [u8],
}

/// What a responder looks at.
#[derive(Debug)]
pub(super) enum Packet<'a> {
    Arp(ArpEthIpv4Packet),
    Icmpv6(Icmpv6<'a>),
    Udp(Datagram<'a>),
}

/// Whether it is worth to [`read`] a frame: said without looking at most of it, as frames of TCP need
/// not be taken apart.
pub(super) fn may_concern(frame: &[u8]) -> bool {
    let byte = |at| frame.get(at).copied().map(IpNumber);
    let Some(kind) = frame.get(12..).and_then(|rest| rest.first_chunk()) else {
        return false;
    };
    match EtherType(u16::from_be_bytes(*kind)) {
        EtherType::IPV4 => byte(23) == Some(IpNumber::UDP),
        // Others stand for headers in between.
        EtherType::IPV6 => byte(20).is_some_and(|next| next != IpNumber::TCP),
        // Its own and those of VLANs.
        _ => true,
    }
}

/// Takes off the addresses and up to [`TAGS_MAX`] tags: the EtherType, what follows it, and whether
/// there were tags.
fn untag(frame: &[u8]) -> Option<(EtherType, &[u8], bool)> {
    let mut rest = frame.get(12..)?;
    for tags in 0..=TAGS_MAX {
        let (kind, behind) = rest.split_first_chunk()?;
        let kind = EtherType(u16::from_be_bytes(*kind));
        if !matches!(
            kind,
            EtherType::VLAN_TAGGED_FRAME
                | EtherType::PROVIDER_BRIDGING
                | EtherType::VLAN_DOUBLE_TAGGED_FRAME
        ) {
            return Some((kind, behind, tags > 0));
        }
        rest = behind.get(2..)?;
    }
    None
}

/// A packet of either IP without its headers.
#[derive(Debug)]
struct Ip<'a> {
    source: IpAddr,
    destination: IpAddr,
    hops: u8,
    protocol: IpNumber,
    /// No more than the frame holds.
    payload: &'a [u8],
    /// It is all there.
    whole: bool,
    /// It begins with the header of its protocol.
    first: bool,
}

fn ipv4(bytes: &[u8]) -> Option<Ip<'_>> {
    let header = Ipv4HeaderSlice::from_slice(bytes).ok()?;
    let header_bytes = header.slice().len();
    let cut = bytes.get(header_bytes..usize::from(header.total_len()));
    Some(Ip {
        source: header.source_addr().into(),
        destination: header.destination_addr().into(),
        hops: header.ttl(),
        protocol: header.protocol(),
        payload: cut.or_else(|| bytes.get(header_bytes..))?,
        whole: cut.is_some() && !header.is_fragmenting_payload(),
        first: header.fragments_offset().value() == 0,
    })
}

/// The chain of extension headers is walked here: etherparse 0.20.3 reads past its end when it is
/// told to go on behind an error.
fn ipv6(bytes: &[u8]) -> Option<Ip<'_>> {
    let header = Ipv6HeaderSlice::from_slice(bytes).ok()?;
    let rest = bytes.get(header.slice().len()..)?;
    let cut = rest.get(..usize::from(header.payload_length()));
    let mut ip = Ip {
        source: header.source_addr().into(),
        destination: header.destination_addr().into(),
        hops: header.hop_limit(),
        protocol: header.next_header(),
        payload: cut.unwrap_or(rest),
        whole: cut.is_some(),
        first: true,
    };
    for _ in 0..EXTENSIONS_MAX {
        let Some(([next, length, a, b, ..], _)) = ip.payload.split_first_chunk::<8>() else {
            break;
        };
        let length = usize::from(*length);
        let header_bytes = match ip.protocol {
            IpNumber::IPV6_FRAGMENTATION_HEADER => {
                let place = u16::from_be_bytes([*a, *b]);
                // Its last bit: more follow.
                ip.whole &= place & !6 == 0;
                ip.first &= place >> 3 == 0;
                8
            }
            IpNumber::AUTHENTICATION_HEADER => (length + 2) * 4,
            IpNumber::IPV6_HEADER_HOP_BY_HOP
            | IpNumber::IPV6_ROUTE_HEADER
            | IpNumber::IPV6_DESTINATION_OPTIONS
            | IpNumber::MOBILITY_HEADER
            | IpNumber::HIP
            | IpNumber::SHIM6 => (length + 1) * 8,
            _ => return Some(ip),
        };
        ip.protocol = IpNumber(*next);
        ip.payload = ip.payload.get(header_bytes..)?;
        if !ip.first {
            break;
        }
    }
    Some(ip)
}

/// What `frame` is; `None` if it is nothing for a responder.
pub(super) fn read(frame: &[u8]) -> Option<Packet<'_>> {
    let (kind, bytes, tagged) = untag(frame)?;
    let ip = match kind {
        EtherType::ARP if !tagged => {
            let arp = ArpPacketSlice::from_slice(bytes).ok()?;
            return Some(Packet::Arp(arp.to_packet().try_eth_ipv4().ok()?));
        }
        EtherType::IPV4 => ipv4(bytes)?,
        EtherType::IPV6 => ipv6(bytes)?,
        _ => return None,
    };
    match (ip.protocol, ip.source) {
        (IpNumber::UDP, _) if ip.first => {
            let (header, rest) = ip.payload.split_first_chunk::<UDP_HEADER_BYTES>()?;
            let [a, b, c, d, e, f, ..] = *header;
            let bytes = usize::from(u16::from_be_bytes([e, f])).checked_sub(UDP_HEADER_BYTES);
            let cut = bytes.and_then(|bytes| rest.get(..bytes));
            Some(Packet::Udp(Datagram {
                source: ip.source,
                destination: ip.destination,
                source_port: u16::from_be_bytes([a, b]),
                destination_port: u16::from_be_bytes([c, d]),
                payload: cut.unwrap_or(rest),
                tagged,
                whole: ip.whole && cut.is_some(),
            }))
        }
        (IpNumber::IPV6_ICMP, IpAddr::V6(source)) if ip.whole && !tagged => {
            let ([kind, _code, _, _], body) = ip.payload.split_first_chunk()?;
            Some(Packet::Icmpv6(Icmpv6 {
                source,
                hops: ip.hops,
                kind: *kind,
                body,
            }))
        }
        _ => None,
    }
}

/// A datagram of the director's station, with both checksums; `None` if it is too long.
pub(super) fn udp(
    to: MacAddress,
    addresses: (IpAddr, IpAddr),
    ports: (u16, u16),
    payload: &[u8],
) -> Option<Vec<u8>> {
    let ethernet = PacketBuilder::ethernet2(super::SERVER_MAC.0, to.0);
    let ip = match addresses {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), HOPS),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), HOPS),
        _ => return None,
    };
    let packet = ip.udp(ports.0, ports.1);
    let mut frame = Vec::with_capacity(packet.size(payload.len()));
    packet.write_to_vec(&mut frame, payload).ok()?;
    Some(frame)
}

/// A message of ICMPv6 of the director's station.
pub(super) fn icmpv6(
    to: MacAddress,
    destination: Ipv6Addr,
    kind: Icmpv6Type,
    body: &[u8],
) -> Option<Vec<u8>> {
    let packet = PacketBuilder::ethernet2(super::SERVER_MAC.0, to.0)
        .ipv6(super::SERVER_IPV6.octets(), destination.octets(), HOPS)
        .icmpv6(kind);
    let mut frame = Vec::with_capacity(packet.size(body.len()));
    packet.write_to_vec(&mut frame, body).ok()?;
    Some(frame)
}

/// An ARP reply of the director's station.
pub(super) fn arp(to: MacAddress, own: Ipv4Addr, target: [u8; 4]) -> Option<Vec<u8>> {
    let reply = ArpPacket::from(ArpEthIpv4Packet {
        operation: etherparse::ArpOperation::REPLY,
        sender_mac: super::SERVER_MAC.0,
        sender_ipv4: own.octets(),
        target_mac: to.0,
        target_ipv4: target,
    });
    let packet = PacketBuilder::ethernet2(super::SERVER_MAC.0, to.0).arp(reply);
    let mut frame = Vec::with_capacity(packet.size());
    packet.write_to_vec(&mut frame).ok()?;
    Some(frame)
}

//! What a frame says of itself as far as a port may have to know: tags, addresses, protocol, ports.
//!
//! Headers are read by `etherparse`, one at a time: which of them a receiver believes is decided here.
//! Nothing is allocated, and no frame makes it read more than two tags and eight extension headers.

use std::net::IpAddr;

use etherparse::{
    IpAuthHeaderSlice, IpNumber, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice, Ipv6HeaderSlice,
    Ipv6RawExtHeaderSlice, ip_number,
};
use fabric_payload::ethernet::{ETHERNET_HEADER_BYTES, FLAG_NEEDS_CSUM, VirtioNetHeader};

use super::vlan::{TAG_BYTES, be16, is_tag};

pub(super) const IPV4: u16 = 0x0800;
pub(super) const ARP: u16 = 0x0806;
pub(super) const RARP: u16 = 0x8035;
pub(super) const IPV6: u16 = 0x86dd;
/// Below it the field is a length, and LLC follows (IEEE 802.3 section 3.2.6).
const ETHER_TYPE_MIN: u16 = 0x600;
/// LLC and SNAP header with the organisation codes that have an EtherType behind them (RFC 1042,
/// IEEE 802.1H).
const SNAP: [[u8; 6]; 2] = [[0xaa, 0xaa, 3, 0, 0, 0], [0xaa, 0xaa, 3, 0, 0, 0xf8]];

const TAGS_MAX: usize = 2;
const EXTENSIONS_MAX: usize = 8;
/// Bytes of the upper header that a first fragment must have: fragments are of 8 bytes.
const FRAGMENT_BYTES: usize = 8;
/// Bytes of both ports.
const PORTS_BYTES: usize = 4;

/// Why a frame cannot be read to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// A header is cut or malformed: a receiver cannot read it either.
    Cut,
    /// A receiver may read what is not read here.
    Hidden,
}

/// A frame, read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packet<'a> {
    /// Behind the tags.
    pub(super) ether_type: u16,
    /// What is behind the EtherType.
    pub(super) network: &'a [u8],
    /// Where that begins in the frame.
    pub(super) network_at: usize,
    pub(super) ip: Option<Ip<'a>>,
}

/// The IP header of a frame, and what is behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ip<'a> {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    /// Of the upper header, behind all extensions.
    pub(super) protocol: u8,
    /// A routing header names another destination.
    pub(super) routed: bool,
    pub(super) upper: Upper<'a>,
    /// Where the upper header begins in the frame.
    pub(super) upper_at: usize,
}

/// What is behind an IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Upper<'a> {
    /// All of it.
    Whole(&'a [u8]),
    /// Its beginning.
    FirstFragment(&'a [u8]),
    /// A part without its header.
    LaterFragment,
}

impl<'a> Ip<'a> {
    /// Source and destination port; `None` without any, or if they are in another fragment.
    pub(super) fn ports(&self) -> Option<(u16, u16)> {
        let (Upper::Whole(upper) | Upper::FirstFragment(upper)) = self.upper else {
            return None;
        };
        let has_ports = matches!(
            IpNumber(self.protocol),
            ip_number::TCP | ip_number::UDP | ip_number::UDP_LITE | ip_number::SCTP
        );
        has_ports.then_some((be16(upper, 0)?, be16(upper, 2)?))
    }

    /// The ICMPv6 message, from its type on; of a first fragment what it has.
    pub(super) fn icmpv6(&self) -> Option<&'a [u8]> {
        match self.upper {
            Upper::Whole(upper) | Upper::FirstFragment(upper)
                if self.protocol == ip_number::IPV6_ICMP.0 && self.source.is_ipv6() =>
            {
                Some(upper)
            }
            _ => None,
        }
    }
}

impl<'a> Packet<'a> {
    /// Reads a frame, which begins with its destination address.
    pub(super) fn read(frame: &'a [u8]) -> Result<Self, Unreadable> {
        let mut network_at = ETHERNET_HEADER_BYTES;
        let mut ether_type = be16(frame, network_at - 2).ok_or(Unreadable::Cut)?;
        for tags in 0.. {
            if !is_tag(ether_type) {
                break;
            }
            if tags == TAGS_MAX {
                return Err(Unreadable::Hidden);
            }
            network_at += TAG_BYTES;
            ether_type = be16(frame, network_at - 2).ok_or(Unreadable::Cut)?;
        }
        let network = frame.get(network_at..).ok_or(Unreadable::Cut)?;
        if ether_type < ETHER_TYPE_MIN && SNAP.iter().any(|snap| network.starts_with(snap)) {
            return Err(Unreadable::Hidden);
        }
        let ip = match ether_type {
            IPV4 => Some(ipv4(network, network_at)?),
            IPV6 => Some(ipv6(network, network_at)?),
            _ => None,
        };
        Ok(Self {
            ether_type,
            network,
            network_at,
            ip,
        })
    }

    /// Whether whoever completes the checksum would change what was read here.
    pub(super) fn is_overwritten_by(&self, header: &VirtioNetHeader) -> bool {
        if !needs_checksum(header) {
            return false;
        }
        let field = checksum_at(header);
        match self.ip {
            // Of Neighbour Discovery everything is read, but for its own checksum.
            Some(ip) if ip.icmpv6().is_some() => field != ip.upper_at + 2,
            Some(ip) => field < ip.upper_at + PORTS_BYTES,
            None if matches!(self.ether_type, ARP | RARP) => true,
            None => field < self.network_at,
        }
    }
}

/// Whether a checksum is still to be written into the frame.
pub(super) fn needs_checksum(header: &VirtioNetHeader) -> bool {
    header.flags & FLAG_NEEDS_CSUM != 0
}

/// Where.
pub(super) fn checksum_at(header: &VirtioNetHeader) -> usize {
    usize::from(header.csum_start.get()) + usize::from(header.csum_offset.get())
}

fn ipv4(network: &[u8], network_at: usize) -> Result<Ip<'_>, Unreadable> {
    let header = Ipv4HeaderSlice::from_slice(network).map_err(|_cut| Unreadable::Cut)?;
    let header_bytes = header.slice().len();
    let rest = network.get(header_bytes..).unwrap_or_default();
    let upper = match (header.fragments_offset().value(), header.more_fragments()) {
        (0, false) => Upper::Whole(rest),
        (0, true) if rest.len() < FRAGMENT_BYTES => return Err(Unreadable::Hidden),
        (0, true) => Upper::FirstFragment(rest),
        _ => Upper::LaterFragment,
    };
    Ok(Ip {
        source: header.source_addr().into(),
        destination: header.destination_addr().into(),
        protocol: header.protocol().0,
        routed: false,
        upper,
        upper_at: network_at + header_bytes,
    })
}

fn is_extension(next: IpNumber) -> bool {
    matches!(
        next,
        ip_number::IPV6_HOP_BY_HOP
            | ip_number::IPV6_DEST_OPTIONS
            | ip_number::IPV6_ROUTE
            | ip_number::IPV6_FRAG
            | ip_number::AUTH
    )
}

fn ipv6(network: &[u8], network_at: usize) -> Result<Ip<'_>, Unreadable> {
    let header = Ipv6HeaderSlice::from_slice(network).map_err(|_cut| Unreadable::Cut)?;
    let mut at = header.slice().len();
    let mut next = header.next_header();
    let (mut first_fragment, mut routed) = (false, false);
    let ip = |protocol: IpNumber, routed, upper, at| Ip {
        source: header.source_addr().into(),
        destination: header.destination_addr().into(),
        protocol: protocol.0,
        routed,
        upper,
        upper_at: network_at + at,
    };
    for extensions in 0.. {
        let rest = network.get(at..).unwrap_or_default();
        if !is_extension(next) {
            let upper = match first_fragment {
                false => Upper::Whole(rest),
                true if rest.len() < FRAGMENT_BYTES => return Err(Unreadable::Hidden),
                true => Upper::FirstFragment(rest),
            };
            return Ok(ip(next, routed, upper, at));
        }
        if extensions == EXTENSIONS_MAX {
            break;
        }
        // Of a fragment the next one has what is missing here.
        let cut = if first_fragment {
            Unreadable::Hidden
        } else {
            Unreadable::Cut
        };
        let bytes = match next {
            ip_number::IPV6_FRAG => {
                let fragment = Ipv6FragmentHeaderSlice::from_slice(rest).map_err(|_cut| cut)?;
                next = fragment.next_header();
                if fragment.fragment_offset().value() != 0 {
                    // What the upper header is, only the first fragment says.
                    if is_extension(next) {
                        return Err(Unreadable::Hidden);
                    }
                    return Ok(ip(next, routed, Upper::LaterFragment, at));
                }
                first_fragment |= fragment.more_fragments();
                fragment.slice().len()
            }
            ip_number::AUTH => {
                let auth = IpAuthHeaderSlice::from_slice(rest).map_err(|_cut| cut)?;
                next = auth.next_header();
                auth.slice().len()
            }
            _ => {
                let extension = Ipv6RawExtHeaderSlice::from_slice(rest).map_err(|_cut| cut)?;
                // Segments left (RFC 8200 section 4.4).
                let segments_left = extension.slice().get(3).is_some_and(|left| *left > 0);
                routed |= next == ip_number::IPV6_ROUTE && segments_left;
                next = extension.next_header();
                extension.slice().len()
            }
        };
        at += bytes;
    }
    Err(Unreadable::Hidden)
}

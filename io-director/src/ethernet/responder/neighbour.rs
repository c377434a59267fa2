//! Where the director's station is: ARP (RFC 826) and neighbour discovery (RFC 4861).
//!
//! The router advertisement is a hint to ask DHCPv6 and says which addresses are on the link. It makes
//! the director nobody's router (router lifetime 0), so real routers of the LAN stay in charge.

use core::net::Ipv6Addr;

use etherparse::icmpv6::{NeighborAdvertisementHeader, RouterAdvertisementHeader};
use etherparse::{ArpEthIpv4Packet, ArpOperation, Icmpv6Type};

use super::frame::{self, Icmpv6};
use super::{Event, Own, SERVER_IPV6, SERVER_MAC, Verdict};

const ROUTER_SOLICITATION: u8 = 133;
const NEIGHBOUR_SOLICITATION: u8 = 135;
/// Options (RFC 4861 section 4.6), with their length in units of 8 bytes.
const SOURCE_ADDRESS: [u8; 2] = [1, 1];
const TARGET_ADDRESS: [u8; 2] = [2, 1];
const PREFIX: [u8; 2] = [3, 4];
const MTU: [u8; 4] = [5, 1, 0, 0];
/// On-link, and not to make addresses from.
const PREFIX_FLAGS: u8 = 0x80;
const FOREVER: [u8; 4] = [0xff; 4];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

fn answer(frame: Option<Vec<u8>>) -> Verdict {
    match frame {
        Some(frame) => Verdict::Taken(Event::Neighbour, Some(frame)),
        None => Verdict::PassesOn,
    }
}

pub(super) fn arp(own: &Own, arp: &ArpEthIpv4Packet) -> Verdict {
    let server = own.server();
    let ours = own.address.ipv4.is_some()
        && own.server_is_ours()
        && arp.operation == ArpOperation::REQUEST
        && arp.target_ipv4 == server.octets();
    if ours {
        answer(frame::arp(own.guest, server, arp.sender_ipv4))
    } else {
        Verdict::PassesOn
    }
}

pub(super) fn icmpv6(own: &Own, message: &Icmpv6<'_>) -> Verdict {
    // A router lets no message of these through (RFC 4861 sections 6.1.1 and 7.1.1).
    if own.address.ipv6.is_none() || message.hops != 255 {
        return Verdict::PassesOn;
    }
    match message.kind {
        ROUTER_SOLICITATION => match router_advertisement(own, message.source) {
            Some(frame) => Verdict::Both(Event::Neighbour, frame),
            None => Verdict::PassesOn,
        },
        NEIGHBOUR_SOLICITATION => {
            let target = message.body.get(4..20);
            if target != Some(&SERVER_IPV6.octets()[..]) || message.source.is_unspecified() {
                return Verdict::PassesOn;
            }
            let header = NeighborAdvertisementHeader {
                router: false,
                solicited: true,
                r#override: true,
            };
            let mut body = SERVER_IPV6.octets().to_vec();
            body.extend(TARGET_ADDRESS);
            body.extend(SERVER_MAC.0);
            let kind = Icmpv6Type::NeighborAdvertisement(header);
            answer(frame::icmpv6(own.guest, message.source, kind, &body))
        }
        _ => Verdict::PassesOn,
    }
}

fn router_advertisement(own: &Own, to: Ipv6Addr) -> Option<Vec<u8>> {
    let address = own.address.ipv6?;
    let header = RouterAdvertisementHeader {
        cur_hop_limit: 64,
        managed_address_config: true,
        other_config: true,
        router_lifetime: 0,
    };
    // Reachable time and retransmission timer: no opinion.
    let mut body = vec![0; 8];
    body.extend(SOURCE_ADDRESS);
    body.extend(SERVER_MAC.0);
    body.extend(MTU);
    body.extend(u32::from(own.mtu).to_be_bytes());
    body.extend(PREFIX);
    body.extend([address.prefix_bits, PREFIX_FLAGS]);
    body.extend(FOREVER);
    body.extend(FOREVER);
    body.extend([0; 4]);
    body.extend(address.network().octets());
    // Who has no address yet hears the group's; the frame goes to this guest in both cases.
    let destination = if to.is_unspecified() { ALL_NODES } else { to };
    let kind = Icmpv6Type::RouterAdvertisement(header);
    frame::icmpv6(own.guest, destination, kind, &body)
}

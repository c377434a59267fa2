//! Answers to the guest of a vNIC with `addr-type = "static"`: frames and time in, frames out.
//!
//! The guest asks as it would ask any network; the director answers in the network's place, with the
//! addresses of the lab file and to this guest alone. Nothing is leased: what a guest is told depends
//! on the question and the lab file only, so an answer that is lost is given again when it asks again.
//!
//! | from the guest | answer | goes on to the LAN |
//! | --- | --- | --- |
//! | DHCPv4 ([`dhcp4`]), if it has an IPv4 address | the address, a refusal, or none | no |
//! | ARP for the director's own address ([`neighbour`]), if that is no router's | [`SERVER_MAC`] | no |
//! | DHCPv6 ([`dhcp6`]), if it has an IPv6 address | the address, or none | no |
//! | router solicitation, if it has an IPv6 address | "ask DHCPv6"; routers answer as well | yes |
//! | TFTP to the director's address ([`tftp`]), if it has boot files | blocks of a file | no |
//! | another frame to [`SERVER_MAC`] | none | no |
//! | anything else | | yes |
//!
//! To such a guest nobody else may speak DHCP: [`Responder::refuses`]. The director's address is that of
//! the router, if there is no other: then the router owns it, the guest has its MAC address from it, and
//! what is for the director is told by its ports.
//!
//! Checksums of UDP are not looked at: a guest may leave them to the other end, and the fabric has its
//! own.

mod dhcp4;
mod dhcp6;
mod frame;
mod neighbour;
pub(super) mod tftp;

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use dhcproto::{v4, v6};
use fabric_config::{MacAddress, StaticAddress, VnicConfig};
use qos::MonotonicTime;

use frame::Packet;

/// The director's station towards every guest; no frame to or from it leaves for a LAN.
const SERVER_MAC: MacAddress = MacAddress([0x0a, 0x13, 0x97, 0, 0, 1]);
/// The director's IPv4 address where none is given and there is no router: of the part of
/// 169.254.0.0/16 that no station takes by itself (RFC 3927 section 2.1).
const SERVER_LINK_LOCAL: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 67);
/// The director's IPv6 address, of [`SERVER_MAC`] (RFC 4291 appendix A).
const SERVER_IPV6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x0813, 0x97ff, 0xfe00, 1);
/// Seconds for which an address is good. A changed lab file reaches a guest after half of it.
const LEASE_SECONDS: u32 = 3600;
/// Bytes of a message of DHCP that is looked at: a guest's interface has no reason for more.
const MESSAGE_BYTES_MAX: usize = 1500;
/// Answers at once, and per second: a guest that boots needs ten or so.
const ANSWERS: (u32, u32) = (40, 20);

/// What happened, to be counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// DHCPOFFER.
    Offered,
    /// DHCPACK.
    Acknowledged,
    /// DHCPNAK: the guest wanted another's address.
    Refused,
    /// The guest gave its address back.
    Released,
    /// The guest found somebody else with its address.
    Declined,
    /// Advertise or Reply of DHCPv6.
    Answered6,
    /// ARP, neighbour and router advertisements.
    Neighbour,
    /// A file was opened.
    BootFile,
    /// Blocks of a file, for one request.
    BootBlocks,
    /// A transfer is complete.
    BootDone,
    /// An error to the guest: no such file, or nothing that is served.
    BootRefused,
    /// Not what it claims to be, or nothing that a client sends.
    Malformed,
    /// For another server, or of another client.
    Foreign,
    /// Longer than [`MESSAGE_BYTES_MAX`], or in fragments.
    TooLong,
    /// More than is answered in this time.
    TooMany,
    /// In a VLAN, where this address is of no use.
    Tagged,
    /// To the director's station and nothing that it answers.
    NotServed,
}

/// What becomes of a frame from the guest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is not for the director.
    PassesOn,
    /// It is for the director, and others.
    Both(Event, Vec<u8>),
    /// It ends here, with an answer or without.
    Taken(Event, Option<Vec<u8>>),
    /// It ends here and is for [`tftp`].
    Tftp,
}

/// Whether a responder may have something to say to `frame`, from or to its guest: most are told by a
/// look at a few bytes, without a responder.
pub(super) fn may_concern(frame: &[u8]) -> bool {
    frame.starts_with(&SERVER_MAC.0) || frame::may_concern(frame)
}

/// What the director tells one guest.
#[derive(Debug)]
pub(super) struct Own {
    guest: MacAddress,
    mtu: u16,
    address: StaticAddress,
}

impl Own {
    /// Of `vnic`; `None` if it has no static address.
    fn of(vnic: &VnicConfig) -> Option<Self> {
        Some(Self {
            guest: vnic.mac,
            mtu: vnic.mtu,
            address: vnic.static_address.as_deref()?.clone(),
        })
    }

    /// The director's IPv4 address towards the guest.
    fn server(&self) -> Ipv4Addr {
        let given = self.address.server.or(self.address.gateway);
        given.unwrap_or(SERVER_LINK_LOCAL)
    }

    /// Whether the director has to say where its address is.
    fn server_is_ours(&self) -> bool {
        self.address.server.is_some() || self.address.gateway.is_none()
    }
}

/// So many at once, and so many per second.
#[derive(Debug)]
struct Bucket {
    most: u32,
    per_second: u32,
    left: u32,
    /// What is before was counted.
    counted: MonotonicTime,
}

impl Bucket {
    fn new((most, per_second): (u32, u32)) -> Self {
        Self {
            most,
            per_second,
            left: most,
            counted: MonotonicTime::ZERO,
        }
    }

    fn take(&mut self, now: MonotonicTime) -> bool {
        let step = Duration::from_secs(1) / self.per_second;
        let passed = now.saturating_duration_since(self.counted).as_nanos();
        let new = passed.checked_div(step.as_nanos()).unwrap_or(0);
        match u32::try_from(new) {
            Ok(new) if new < self.most => {
                self.left = self.left.saturating_add(new).min(self.most);
                self.counted = self.counted.saturating_add(step.saturating_mul(new));
            }
            _ => (self.left, self.counted) = (self.most, now),
        }
        let taken = self.left.checked_sub(1);
        self.left = taken.unwrap_or(0);
        taken.is_some()
    }
}

/// The responder of one vNIC.
#[derive(Debug)]
pub(super) struct Responder {
    own: Own,
    answers: Bucket,
}

impl Responder {
    /// Of `vnic`; `None` if it has no static address.
    pub(super) fn new(vnic: &VnicConfig) -> Option<Self> {
        Some(Self {
            own: Own::of(vnic)?,
            answers: Bucket::new(ANSWERS),
        })
    }

    /// What becomes of `frame`, which the guest sent.
    pub(super) fn receive(&mut self, now: MonotonicTime, frame: &[u8]) -> Verdict {
        let to_server = frame.starts_with(&SERVER_MAC.0);
        // The switch has its own word for frames of others.
        if !frame
            .get(6..)
            .is_some_and(|rest| rest.starts_with(&self.own.guest.0))
        {
            return Verdict::PassesOn;
        }
        let verdict = match self.look(frame) {
            Verdict::PassesOn if to_server => Verdict::Taken(Event::NotServed, None),
            verdict => verdict,
        };
        match verdict {
            Verdict::Both(_, _) if !self.answers.take(now) => Verdict::PassesOn,
            Verdict::Taken(_, Some(_)) if !self.answers.take(now) => {
                Verdict::Taken(Event::TooMany, None)
            }
            verdict => verdict,
        }
    }

    fn look(&self, frame: &[u8]) -> Verdict {
        let own = &self.own;
        match frame::read(frame) {
            None => Verdict::PassesOn,
            Some(Packet::Arp(arp)) => neighbour::arp(own, &arp),
            Some(Packet::Icmpv6(message)) => neighbour::icmpv6(own, &message),
            Some(Packet::Udp(datagram)) => {
                let ipv4 = datagram.destination.is_ipv4();
                let is_dhcp = match datagram.destination_port {
                    v4::SERVER_PORT => ipv4 && own.address.ipv4.is_some(),
                    v6::SERVER_PORT => !ipv4 && own.address.ipv6.is_some(),
                    tftp::PORT => {
                        let ours = datagram.destination == IpAddr::from(own.server());
                        let boots = own.address.boot.is_some() && datagram.whole();
                        return if ours && boots {
                            Verdict::Tftp
                        } else {
                            Verdict::PassesOn
                        };
                    }
                    _ => return Verdict::PassesOn,
                };
                if !is_dhcp {
                    return Verdict::PassesOn;
                }
                if datagram.tagged {
                    return Verdict::Taken(Event::Tagged, None);
                }
                if !datagram.whole() || datagram.payload.len() > MESSAGE_BYTES_MAX {
                    return Verdict::Taken(Event::TooLong, None);
                }
                let answer = if ipv4 {
                    dhcp4::receive(own, datagram.payload)
                } else {
                    dhcp6::receive(own, &datagram)
                };
                match answer {
                    Ok((event, frame)) => Verdict::Taken(event, Some(frame)),
                    Err(event) => Verdict::Taken(event, None),
                }
            }
        }
    }

    /// Whether `frame`, which is on its way to the guest, is another's word about its address.
    ///
    /// VLANs and fragments make no difference: some clients look at neither.
    pub(super) fn refuses(&self, frame: &[u8]) -> bool {
        let Some(Packet::Udp(datagram)) = frame::read(frame) else {
            return false;
        };
        let address = &self.own.address;
        match datagram.destination_port {
            v4::CLIENT_PORT => datagram.destination.is_ipv4() && address.ipv4.is_some(),
            v6::CLIENT_PORT => datagram.destination.is_ipv6() && address.ipv6.is_some(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests;

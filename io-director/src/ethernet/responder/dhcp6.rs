//! DHCPv6 (RFC 8415) with one address: stateful and stateless, with rapid commit.
//!
//! | message | answer |
//! | --- | --- |
//! | SOLICIT | ADVERTISE; with the option of rapid commit REPLY |
//! | REQUEST, RENEW, REBIND | REPLY with the address; others that it names are over |
//! | CONFIRM | REPLY: on the link if all are the address of the lab file |
//! | INFORMATION-REQUEST | REPLY without addresses |
//! | RELEASE, DECLINE | REPLY; counted |
//!
//! The first IA_NA gets the address, a second one and IA_TA none, IA_PD no prefix. Questions are not
//! decoded by the codec that writes the answers: it computes lengths of options that a guest can make
//! negative, and follows nested ones as deep as they go.

use core::net::{IpAddr, Ipv6Addr};

use dhcproto::Encodable;
use dhcproto::v6::{
    CLIENT_PORT, DhcpOption, DhcpOptions, IAAddr, IANA, IAPD, IATA, Message, MessageType,
    OptionCode, Status, StatusCode,
};
use fabric_config::InterfaceAddress;

use super::frame::{self, Datagram};
use super::{Event, LEASE_SECONDS, Own, SERVER_IPV6, SERVER_MAC};

/// DUID-LL (RFC 8415 section 11.4) of hardware type Ethernet.
const DUID_PREFIX: [u8; 4] = [0, 3, 0, 1];
/// Bytes of a DUID at most (RFC 8415 section 11.1).
const DUID_BYTES_MAX: usize = 130;
/// Identity associations of one message that are looked at; a client has one for each interface.
const ASSOCIATIONS_MAX: usize = 8;
/// Addresses of an association that are looked at.
const ADDRESSES_MAX: usize = 8;
/// Bytes of an IA_NA in front of its options, of an IA_TA, and of an address.
const IA_NA_BYTES: usize = 12;
const IA_TA_BYTES: usize = 4;

/// The director, towards every guest.
fn server_duid() -> Vec<u8> {
    [&DUID_PREFIX[..], &SERVER_MAC.0].concat()
}

/// Options as they follow one another: code and content. Ends at one that is cut off.
fn options(mut bytes: &[u8]) -> impl Iterator<Item = (OptionCode, &[u8])> {
    std::iter::from_fn(move || {
        let ([a, b, c, d], rest) = bytes.split_first_chunk()?;
        let length = usize::from(u16::from_be_bytes([*c, *d]));
        let (content, rest) = rest.split_at_checked(length)?;
        bytes = rest;
        Some((u16::from_be_bytes([*a, *b]).into(), content))
    })
}

/// A question for addresses.
#[derive(Debug, PartialEq, Eq)]
struct Association {
    kind: OptionCode,
    id: u32,
    named: Vec<Ipv6Addr>,
}

impl Association {
    fn read(kind: OptionCode, content: &[u8]) -> Option<Self> {
        let (id, _) = content.split_first_chunk()?;
        let header_bytes = if kind == OptionCode::IATA {
            IA_TA_BYTES
        } else {
            IA_NA_BYTES
        };
        let inner = options(content.get(header_bytes..)?);
        let address = |(code, content): (_, &[u8])| {
            let bytes: &[u8; 16] = content
                .first_chunk()
                .filter(|_| code == OptionCode::IAAddr)?;
            Some(Ipv6Addr::from(*bytes))
        };
        Some(Self {
            kind,
            id: u32::from_be_bytes(*id),
            named: inner.filter_map(address).take(ADDRESSES_MAX).collect(),
        })
    }
}

#[derive(Debug, Default)]
struct Query {
    client: Option<Vec<u8>>,
    server: Option<Vec<u8>>,
    rapid_commit: bool,
    associations: Vec<Association>,
}

impl Query {
    fn read(bytes: &[u8]) -> Result<Self, Event> {
        let mut query = Self::default();
        for (code, content) in options(bytes) {
            match code {
                OptionCode::ClientId if content.len() <= DUID_BYTES_MAX => {
                    query.client = Some(content.to_vec());
                }
                OptionCode::ServerId => query.server = Some(content.to_vec()),
                OptionCode::RapidCommit => query.rapid_commit = true,
                OptionCode::IANA | OptionCode::IATA | OptionCode::IAPD
                    if query.associations.len() < ASSOCIATIONS_MAX =>
                {
                    let association = Association::read(code, content);
                    query
                        .associations
                        .push(association.ok_or(Event::Malformed)?);
                }
                _ => {}
            }
        }
        Ok(query)
    }
}

fn status(status: Status, text: &str) -> DhcpOption {
    let msg = text.to_owned();
    DhcpOption::StatusCode(StatusCode { status, msg })
}

/// What a message of the guest is answered with, as a frame.
///
/// # Errors
/// Why it is not answered.
pub(super) fn receive(own: &Own, datagram: &Datagram<'_>) -> Result<(Event, Vec<u8>), Event> {
    let IpAddr::V6(source) = datagram.source else {
        return Err(Event::Malformed);
    };
    let ipv6 = own.address.ipv6.ok_or(Event::Malformed)?;
    let Some(([kind, xid @ ..], rest)) = datagram.payload.split_first_chunk::<4>() else {
        return Err(Event::Malformed);
    };
    let kind = MessageType::from(*kind);
    let query = Query::read(rest)?;
    let ours = query.server.as_ref().map(|server| *server == server_duid());
    // RFC 8415 section 16.
    match kind {
        MessageType::Solicit | MessageType::Confirm | MessageType::Rebind if ours.is_some() => {
            return Err(Event::Malformed);
        }
        MessageType::Request | MessageType::Renew | MessageType::Release | MessageType::Decline
            if ours.is_none() =>
        {
            return Err(Event::Malformed);
        }
        _ if ours == Some(false) => return Err(Event::Foreign),
        MessageType::InformationRequest => {}
        _ if query.client.is_none() => return Err(Event::Malformed),
        _ => {}
    }
    let mut reply = MessageType::Reply;
    let mut event = Event::Answered6;
    let mut answers = DhcpOptions::new();
    match kind {
        MessageType::Solicit => {
            if query.rapid_commit {
                answers.insert(DhcpOption::RapidCommit);
            } else {
                reply = MessageType::Advertise;
                // There is no better one to wait for.
                answers.insert(DhcpOption::Preference(255));
            }
            associate(ipv6, &query, &mut answers);
            configure(own, &mut answers);
        }
        MessageType::Request | MessageType::Renew | MessageType::Rebind => {
            associate(ipv6, &query, &mut answers);
            configure(own, &mut answers);
        }
        MessageType::Confirm => {
            let mut named = query
                .associations
                .iter()
                .flat_map(|it| &it.named)
                .peekable();
            if named.peek().is_none() {
                return Err(Event::Malformed);
            }
            answers.insert(if named.all(|named| *named == ipv6.address) {
                status(Status::Success, "the address is that of this vNIC")
            } else {
                status(Status::NotOnLink, "the address is not that of this vNIC")
            });
        }
        MessageType::InformationRequest => configure(own, &mut answers),
        MessageType::Release | MessageType::Decline => {
            event = if kind == MessageType::Release {
                Event::Released
            } else {
                Event::Declined
            };
            answers.insert(status(Status::Success, "noted"));
        }
        _ => return Err(Event::Malformed),
    }
    answers.insert(DhcpOption::ServerId(server_duid()));
    if let Some(client) = query.client {
        answers.insert(DhcpOption::ClientId(client));
    }
    let mut message = Message::new_with_id(reply, *xid);
    message.set_opts(answers);
    let bytes = message.to_vec().map_err(|_never| Event::Malformed)?;
    let ends = (SERVER_IPV6.into(), source.into());
    let ports = (dhcproto::v6::SERVER_PORT, CLIENT_PORT);
    let frame = frame::udp(own.guest, ends, ports, &bytes);
    Ok((event, frame.ok_or(Event::TooLong)?))
}

/// An address of an IA_NA for so long, or no longer.
fn address(addr: Ipv6Addr, seconds: u32) -> DhcpOption {
    DhcpOption::IAAddr(IAAddr {
        addr,
        preferred_life: seconds,
        valid_life: seconds,
        opts: DhcpOptions::new(),
    })
}

fn associate(ipv6: InterfaceAddress<Ipv6Addr>, query: &Query, answers: &mut DhcpOptions) {
    let mut free = true;
    for association in &query.associations {
        let id = association.id;
        let mut opts = DhcpOptions::new();
        let none = || status(Status::NoAddrsAvail, "the vNIC has one address");
        answers.insert(match association.kind {
            OptionCode::IANA => {
                let others = association
                    .named
                    .iter()
                    .filter(|named| **named != ipv6.address);
                others.for_each(|other| opts.insert(address(*other, 0)));
                opts.insert(if free {
                    address(ipv6.address, LEASE_SECONDS)
                } else {
                    none()
                });
                free = false;
                let (t1, t2) = (LEASE_SECONDS / 2, LEASE_SECONDS / 5 * 4);
                DhcpOption::IANA(IANA { id, t1, t2, opts })
            }
            OptionCode::IATA => {
                opts.insert(none());
                DhcpOption::IATA(IATA { id, opts })
            }
            _ => {
                opts.insert(status(Status::NoPrefixAvail, "the vNIC has no prefix"));
                let (t1, t2) = (0, 0);
                DhcpOption::IAPD(IAPD { id, t1, t2, opts })
            }
        });
    }
}

/// What does not depend on the message.
fn configure(own: &Own, answers: &mut DhcpOptions) {
    let dns = own.address.dns.iter().filter_map(|server| match server {
        IpAddr::V6(server) => Some(*server),
        IpAddr::V4(_) => None,
    });
    let dns: Vec<_> = dns.collect();
    if !dns.is_empty() {
        answers.insert(DhcpOption::DomainNameServers(dns));
    }
    // With the dot it is no name below another.
    let domain = own.address.domain.as_ref();
    if let Some(domain) = domain.and_then(|domain| format!("{domain}.").parse().ok()) {
        answers.insert(DhcpOption::DomainSearchList(vec![domain]));
    }
}

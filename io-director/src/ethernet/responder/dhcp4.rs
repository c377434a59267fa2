//! DHCPv4 (RFC 2131, options RFC 2132), with boot files by architecture (RFC 4578).
//!
//! | message | answer |
//! | --- | --- |
//! | DISCOVER | OFFER |
//! | REQUEST for the address of the lab file | ACK |
//! | REQUEST for another | NAK |
//! | REQUEST of an offer of another server | none |
//! | INFORM | ACK without address and times |
//! | RELEASE, DECLINE | none; counted |
//!
//! Questions are read through the codec's borrowed form, which keeps to the bounds of the message
//! whatever it says; its owned form asserts what a guest can break, and stops at an option that it
//! does not like.

use core::net::{IpAddr, Ipv4Addr};

use dhcproto::Encodable;
use dhcproto::v4::borrowed;
use dhcproto::v4::{
    CLIENT_PORT, DhcpOption, DhcpOptions, HType, MAGIC, MIN_PACKET_SIZE, Message, MessageType,
    Opcode, OptionCode, SERVER_PORT, UnknownOption,
};
use fabric_config::{BootFiles, InterfaceAddress, MacAddress};

use super::{Event, LEASE_SECONDS, Own, SERVER_LINK_LOCAL, frame};

/// Bytes in front of the options.
const FIXED_BYTES: usize = 240;
/// Bytes of a message that every client takes (RFC 2131 section 2), less the headers of IP and UDP.
const MESSAGE_BYTES: usize = 576 - HEADER_BYTES;
const HEADER_BYTES: usize = 28;
const HARDWARE_ADDRESS_BYTES: u8 = 6;
/// What is left out of an answer that is too long for the client, in this order.
const DISPENSABLE: [OptionCode; 6] = [
    OptionCode::ClientIdentifier,
    OptionCode::DomainName,
    OptionCode::Hostname,
    OptionCode::TFTPServerName,
    OptionCode::BootfileName,
    OptionCode::DomainNameServer,
];

/// What a client says that matters here.
#[derive(Debug)]
struct Query<'a> {
    message: borrowed::Message<'a>,
    kind: MessageType,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    client_identifier: Option<Vec<u8>>,
    message_bytes_max: usize,
    wants_routes: bool,
    client: Client,
}

/// What a client that boots is.
#[derive(Debug, Default)]
struct Client {
    architecture: Option<u16>,
    ipxe: bool,
    http: bool,
}

impl Client {
    /// The file that it is to load. Architectures are those of the IANA registry "Processor
    /// Architecture Types".
    fn boot_file<'a>(&self, files: &'a BootFiles) -> Option<&'a String> {
        if self.http {
            // It would load it by HTTP.
            return None;
        }
        let own = match self.architecture {
            _ if self.ipxe => &files.ipxe,
            Some(0) => &files.bios,
            // 9 was the one of UEFI on x86-64 in the errata of RFC 4578, and is still sent.
            Some(7 | 9) => &files.efi_x64,
            Some(11) => &files.efi_arm64,
            _ => &None,
        };
        own.as_ref().or(files.other.as_ref())
    }
}

fn address(data: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(data).ok().map(Ipv4Addr::from)
}

fn number(data: &[u8]) -> Option<u16> {
    data.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

impl<'a> Query<'a> {
    fn read(own: &Own, bytes: &'a [u8]) -> Result<Self, Event> {
        let message = borrowed::Message::new(bytes).map_err(|_short| Event::Malformed)?;
        let usable = bytes.get(FIXED_BYTES - MAGIC.len()..FIXED_BYTES) == Some(&MAGIC[..])
            && message.opcode() == Opcode::BootRequest
            && message.htype() == HType::Eth
            && message.hlen() == HARDWARE_ADDRESS_BYTES;
        if !usable {
            return Err(Event::Malformed);
        }
        // There is no relay between a guest and its vNIC.
        if message.chaddr() != own.guest.0 || !message.giaddr().is_unspecified() {
            return Err(Event::Foreign);
        }
        let mut kind = None;
        let mut query = Self {
            kind: MessageType::Inform,
            requested: None,
            server: None,
            client_identifier: None,
            message_bytes_max: MESSAGE_BYTES,
            wants_routes: false,
            client: Client::default(),
            message,
        };
        for option in query.message.opts() {
            let data = option.data();
            match option.code() {
                OptionCode::MessageType => {
                    let [byte] = data else {
                        return Err(Event::Malformed);
                    };
                    kind = Some(MessageType::from(*byte));
                }
                OptionCode::RequestedIpAddress => query.requested = address(data),
                OptionCode::ServerIdentifier => query.server = address(data),
                OptionCode::ClientIdentifier => query.client_identifier = Some(data.to_vec()),
                OptionCode::MaxMessageSize => {
                    let bytes = number(data).map_or(0, usize::from);
                    query.message_bytes_max = bytes
                        .saturating_sub(HEADER_BYTES)
                        .clamp(MESSAGE_BYTES, usize::from(own.mtu).max(MESSAGE_BYTES));
                }
                OptionCode::ParameterRequestList => {
                    query.wants_routes = data.contains(&OptionCode::ClasslessStaticRoute.into());
                }
                OptionCode::ClassIdentifier => query.client.http = data.starts_with(b"HTTPClient"),
                // As it is, or behind a length (RFC 3004).
                OptionCode::UserClass => {
                    query.client.ipxe = data.windows(4).any(|it| it == b"iPXE")
                }
                OptionCode::ClientSystemArchitecture => query.client.architecture = number(data),
                _ => {}
            }
        }
        query.kind = kind.ok_or(Event::Malformed)?;
        Ok(query)
    }
}

/// What a message of the guest is answered with, as a frame.
///
/// # Errors
/// Why it is not answered.
pub(super) fn receive(own: &Own, bytes: &[u8]) -> Result<(Event, Vec<u8>), Event> {
    let query = Query::read(own, bytes)?;
    let ipv4 = own.address.ipv4.ok_or(Event::Malformed)?;
    let server = own.server();
    let other_server = query.server.is_some_and(|asked| asked != server);
    let current = query.message.ciaddr();
    match query.kind {
        MessageType::Discover => reply(own, &query, ipv4, MessageType::Offer),
        MessageType::Request => {
            if other_server {
                return Err(Event::Foreign);
            }
            // Without one it asks for the address that it has.
            let wanted = query.requested.unwrap_or(current);
            if wanted == ipv4.address {
                reply(own, &query, ipv4, MessageType::Ack)
            } else {
                refusal(own, &query)
            }
        }
        MessageType::Inform => reply(own, &query, ipv4, MessageType::Ack),
        MessageType::Decline if !other_server => Err(Event::Declined),
        MessageType::Release if !other_server => Err(Event::Released),
        MessageType::Decline | MessageType::Release => Err(Event::Foreign),
        _ => Err(Event::Malformed),
    }
}

/// The fields that all answers have.
fn answer(own: &Own, query: &Query<'_>, kind: MessageType) -> Message {
    let none = Ipv4Addr::UNSPECIFIED;
    let xid = query.message.xid();
    let mut message = Message::new_with_id(xid, none, none, none, none, &own.guest.0);
    message.set_opcode(Opcode::BootReply);
    message.set_flags(query.message.flags());
    let options = message.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(own.server()));
    // RFC 6842.
    if let Some(identifier) = query.client_identifier.clone() {
        options.insert(DhcpOption::ClientIdentifier(identifier));
    }
    message
}

fn refusal(own: &Own, query: &Query<'_>) -> Result<(Event, Vec<u8>), Event> {
    let mut message = answer(own, query, MessageType::Nak);
    let why = "the address is not that of this vNIC".to_owned();
    message.opts_mut().insert(DhcpOption::Message(why));
    // The client may not use any address now (RFC 2131 section 4.1).
    let frame = send(own, query, message, Ipv4Addr::BROADCAST)?;
    Ok((Event::Refused, frame))
}

fn reply(
    own: &Own,
    query: &Query<'_>,
    ipv4: InterfaceAddress<Ipv4Addr>,
    kind: MessageType,
) -> Result<(Event, Vec<u8>), Event> {
    let informs = query.kind == MessageType::Inform;
    let current = query.message.ciaddr();
    let mut message = answer(own, query, kind);
    message.set_siaddr(own.server());
    message.set_ciaddr(if kind == MessageType::Ack {
        current
    } else {
        Ipv4Addr::UNSPECIFIED
    });
    if !informs {
        message.set_yiaddr(ipv4.address);
        let options = message.opts_mut();
        options.insert(DhcpOption::AddressLeaseTime(LEASE_SECONDS));
        options.insert(DhcpOption::Renewal(LEASE_SECONDS / 2));
        options.insert(DhcpOption::Rebinding(LEASE_SECONDS / 8 * 7));
    }
    configure(own, query, ipv4, message.opts_mut());
    let file = own.address.boot.as_ref();
    if let Some(file) = file.and_then(|files| query.client.boot_file(files)) {
        message.set_fname_str(file);
        let options = message.opts_mut();
        options.insert(DhcpOption::BootfileName(file.as_bytes().to_vec()));
        let server = own.server().to_string().into_bytes();
        options.insert(DhcpOption::TFTPServerName(server));
    }
    // RFC 2131 section 4.1.
    let destination = match (current, query.message.flags().broadcast()) {
        (current, _) if !current.is_unspecified() => current,
        (_, true) => Ipv4Addr::BROADCAST,
        (_, false) => ipv4.address,
    };
    let frame = send(own, query, message, destination)?;
    let event = if kind == MessageType::Offer {
        Event::Offered
    } else {
        Event::Acknowledged
    };
    Ok((event, frame))
}

/// What does not depend on the message.
fn configure(
    own: &Own,
    query: &Query<'_>,
    ipv4: InterfaceAddress<Ipv4Addr>,
    options: &mut DhcpOptions,
) {
    let address = &own.address;
    options.insert(DhcpOption::SubnetMask(ipv4.mask()));
    options.insert(DhcpOption::BroadcastAddr(ipv4.broadcast()));
    options.insert(DhcpOption::InterfaceMtu(own.mtu));
    if let Some(gateway) = address.gateway {
        options.insert(DhcpOption::Router(vec![gateway]));
    }
    let dns = address.dns.iter().filter_map(|server| match server {
        IpAddr::V4(server) => Some(*server),
        IpAddr::V6(_) => None,
    });
    let dns: Vec<_> = dns.collect();
    if !dns.is_empty() {
        options.insert(DhcpOption::DomainNameServer(dns));
    }
    if let Some(name) = &address.host_name {
        options.insert(DhcpOption::Hostname(name.clone()));
    }
    if let Some(domain) = &address.domain {
        options.insert(DhcpOption::DomainName(domain.clone()));
    }
    // A client that renews needs a way to a server outside of its network: on the link, without a
    // router (RFC 3442).
    if own.server() == SERVER_LINK_LOCAL && query.wants_routes {
        let route = [&[32][..], &SERVER_LINK_LOCAL.octets(), &[0; 4]].concat();
        let option = UnknownOption::new(OptionCode::ClasslessStaticRoute, route);
        options.insert(DhcpOption::Unknown(option));
    }
}

/// Encodes `message`, which is made as short as the client wants it.
fn send(
    own: &Own,
    query: &Query<'_>,
    mut message: Message,
    destination: Ipv4Addr,
) -> Result<Vec<u8>, Event> {
    let encode = |message: &Message| message.to_vec().map_err(|_never| Event::Malformed);
    let mut bytes = encode(&message)?;
    for code in DISPENSABLE {
        if bytes.len() <= query.message_bytes_max {
            break;
        }
        message.opts_mut().remove(code);
        bytes = encode(&message)?;
    }
    // What BOOTP had (RFC 1542 section 2.1).
    bytes.resize(bytes.len().max(MIN_PACKET_SIZE), 0);
    let to = if destination.is_broadcast() {
        MacAddress::BROADCAST
    } else {
        own.guest
    };
    let ends = (own.server().into(), destination.into());
    frame::udp(to, ends, (SERVER_PORT, CLIENT_PORT), &bytes).ok_or(Event::TooLong)
}

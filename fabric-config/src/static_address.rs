//! `addr-type = "static"`: what the director tells the guest of a vNIC about its addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use crate::address::PortName;
use crate::raw;
use crate::validate::{Result, Validator};

/// Bytes of a boot file's name at most: the field of a BOOTP message less its NUL (RFC 951).
pub const BOOT_FILE_BYTES_MAX: usize = 127;
/// Name servers of a vNIC at most.
pub const NAME_SERVERS_MAX: usize = 8;
/// Bytes of a domain name at most (RFC 1035 section 2.3.4, without the length bytes).
const DOMAIN_BYTES_MAX: usize = 253;
/// Bytes of a label of it at most.
const LABEL_BYTES_MAX: usize = 63;
/// A datagram that every host of IPv4 takes (RFC 791): room for a block of TFTP.
const BOOT_MTU_MIN: u16 = 576;
/// Smallest MTU of IPv6 (RFC 8200 section 5).
const IPV6_MTU_MIN: u16 = 1280;

/// What the guest of a vNIC with `addr-type = "static"` is told. It has an IPv4 address, an IPv6
/// address, or both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticAddress {
    /// Its IPv4 address: one that a host can have.
    pub ipv4: Option<InterfaceAddress<Ipv4Addr>>,
    /// Its IPv6 address: unicast and not link-local.
    pub ipv6: Option<InterfaceAddress<Ipv6Addr>>,
    /// Its router, in its subnet and not itself.
    pub gateway: Option<Ipv4Addr>,
    /// The director's own address towards this guest: in its subnet, neither itself nor the router.
    pub server: Option<Ipv4Addr>,
    /// Name servers, [`NAME_SERVERS_MAX`] at most.
    pub dns: Vec<IpAddr>,
    /// Domain of the host: labels of letters, digits, `-` and `_`.
    pub domain: Option<String>,
    /// Name of the host: one such label.
    pub host_name: Option<String>,
    /// What a diskless guest loads; only with an IPv4 address and a router or [`Self::server`].
    pub boot: Option<BootFiles>,
}

/// An address and how much of it names the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterfaceAddress<A> {
    /// The address.
    pub address: A,
    /// Leading bits that all stations of the network share; at least 1.
    pub prefix_bits: u8,
}

/// Names of boot files below a folder, by the kind of client; there is one at least. None is
/// absolute or has `..` in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFiles {
    /// `boot-dir` of the director; absolute.
    pub folder: PathBuf,
    /// For clients without a name of their own here.
    pub other: Option<String>,
    /// For a PC's BIOS.
    pub bios: Option<String>,
    /// For UEFI on x86-64.
    pub efi_x64: Option<String>,
    /// For UEFI on 64-bit Arm.
    pub efi_arm64: Option<String>,
    /// For iPXE, whatever it runs on: it also takes scripts.
    pub ipxe: Option<String>,
}

impl InterfaceAddress<Ipv4Addr> {
    /// The mask, like 255.255.255.0.
    #[must_use]
    pub fn mask(self) -> Ipv4Addr {
        let host_bits = u32::BITS.saturating_sub(self.prefix_bits.into());
        Ipv4Addr::from_bits(u32::MAX.checked_shl(host_bits).unwrap_or(0))
    }

    /// The address of all stations of the network.
    #[must_use]
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() | !self.mask().to_bits())
    }

    /// Whether `other` is in the network.
    #[must_use]
    pub fn contains(self, other: Ipv4Addr) -> bool {
        let mask = self.mask().to_bits();
        self.address.to_bits() & mask == other.to_bits() & mask
    }

    fn is_host(self) -> bool {
        let address = self.address;
        let [first, ..] = address.octets();
        // RFC 3021: a network of two has neither address.
        let reserved = self.prefix_bits < 31
            && (address == self.broadcast() || address.to_bits() & !self.mask().to_bits() == 0);
        !reserved && (1..224).contains(&first) && !address.is_loopback()
    }
}

impl InterfaceAddress<Ipv6Addr> {
    /// The address with all bits behind the prefix zero.
    #[must_use]
    pub fn network(self) -> Ipv6Addr {
        let host_bits = u128::BITS.saturating_sub(self.prefix_bits.into());
        let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
        Ipv6Addr::from_bits(self.address.to_bits() & mask)
    }
}

/// What is wrong with the addresses of a vNIC, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StaticAddressProblem {
    /// Neither of the two.
    #[error("addr-type {text:?} is not known; write static or dhcp")]
    Type {
        /// What was given.
        text: String,
    },
    /// A key of a static address without one.
    #[error("{key} belongs to addr-type = \"static\"; write that too, or leave {key} out")]
    NotStatic {
        /// The key.
        key: &'static str,
    },
    /// Nothing to tell.
    #[error("addr-type = \"static\" needs an address; write ip-addr, like 192.168.10.201/24")]
    NoAddress,
    /// Something else than an address with the bits of its network.
    #[error("{key} {text:?} is no address of a host; write one like {example}")]
    Address {
        /// The key.
        key: &'static str,
        /// What was given.
        text: String,
        /// A valid one.
        example: &'static str,
    },
    /// Both or none.
    #[error(
        "the network of ip-addr is not clear; write ip-addr = \"192.168.10.201/24\", or netmask \
         beside an address without /24"
    )]
    Netmask,
    /// A key of IPv4 without an IPv4 address.
    #[error("{key} is of no use without ip-addr; write ip-addr, or leave {key} out")]
    NeedsIpv4 {
        /// The key.
        key: &'static str,
    },
    /// An address that the guest does not reach, or that is the guest.
    #[error(
        "{key} {address} is not another station of the vNIC's network; choose one in {network}/{bits}"
    )]
    NotNeighbour {
        /// The key.
        key: &'static str,
        /// What was given.
        address: Ipv4Addr,
        /// The vNIC's address.
        network: Ipv4Addr,
        /// The bits of its network.
        bits: u8,
    },
    /// The director would take the router's frames.
    #[error("server-addr is the gateway; choose an address that nobody has, or leave it out")]
    ServerIsGateway,
    /// More than an answer has room for.
    #[error("has more than {NAME_SERVERS_MAX} name servers; take some out of dns")]
    NameServers,
    /// No name of a host or domain.
    #[error("{key} {text:?} is not usable; write letters, digits and '-', like {example}")]
    HostName {
        /// The key.
        key: &'static str,
        /// What was given.
        text: String,
        /// A valid one.
        example: &'static str,
    },
    /// A file that is not served, or has no room in an answer.
    #[error(
        "boot file {text:?} is not usable; write a path below boot-dir of 1 to \
         {BOOT_FILE_BYTES_MAX} bytes, like pxe/boot.ipxe"
    )]
    BootFile {
        /// What was given.
        text: String,
    },
    /// Nowhere to read it.
    #[error("has a boot file but the director no folder for it; write boot-dir in [director]")]
    NoBootDir,
    /// Firmware has no way to the director.
    #[error(
        "has a boot file that its firmware cannot reach; write server-addr with an address of its \
         network that nobody has, or a gateway"
    )]
    NoBootServer,
    /// Too small for what is to be told.
    #[error("mtu {mtu} is too small for {key}; use {mtu_min} or above, or leave {key} out")]
    Mtu {
        /// The MTU.
        mtu: u16,
        /// The key.
        key: &'static str,
        /// The least.
        mtu_min: u16,
    },
}

use StaticAddressProblem as Wrong;

/// An address on one port, which has it once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PortAddress {
    port: PortName,
    address: IpAddr,
}

impl std::fmt::Display for PortAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} on port {}", self.address, self.port)
    }
}

/// `address/bits`; the bits are within `bits_max`.
fn interface_address<A: FromStr>(text: &str, bits_max: u8) -> Option<InterfaceAddress<A>> {
    let (address, bits) = text.split_once('/')?;
    let digits = bits.bytes().all(|byte| byte.is_ascii_digit());
    let prefix_bits = bits
        .parse()
        .ok()
        .filter(|bits| digits && *bits <= bits_max)?;
    Some(InterfaceAddress {
        address: address.parse().ok()?,
        prefix_bits,
    })
    .filter(|_| prefix_bits > 0)
}

/// The bits of a mask that are ones in front of zeroes.
fn mask_bits(text: &str) -> Option<u8> {
    let mask = text.parse::<Ipv4Addr>().ok()?.to_bits();
    let bits = mask.leading_ones();
    (mask.count_ones() == bits && bits > 0).then(|| u8::try_from(bits).ok())?
}

fn is_label(text: &str) -> bool {
    (1..=LABEL_BYTES_MAX).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

fn is_ipv6_host(address: Ipv6Addr) -> bool {
    !(address.is_multicast()
        || address.is_unspecified()
        || address.is_loopback()
        || address.is_unicast_link_local())
}

impl Validator<'_> {
    /// The addresses of vNIC `object`, which are then taken on its port; `None` if it asks others.
    pub(crate) fn static_address(
        &mut self,
        object: &str,
        port: PortName,
        mtu: u16,
        raw: &raw::Vnic,
    ) -> Result<Option<Box<StaticAddress>>> {
        let is_static = match &raw.addr_type {
            None => false,
            Some(text) => match text.get_ref().as_str() {
                "static" => true,
                "dhcp" => false,
                other => {
                    let text_of = other.to_owned();
                    return self.at(object, text, Err(Wrong::Type { text: text_of }));
                }
            },
        };
        let Some(anchor) = raw.addr_type.as_ref().filter(|_| is_static) else {
            return self.no_static_keys(object, raw).map(|()| None);
        };
        let ipv4 = self.ipv4(object, raw)?;
        let ipv6 = self.ipv6(object, raw, mtu)?;
        let some = ipv4.is_some() || ipv6.is_some();
        self.require(object, anchor, some, || Wrong::NoAddress.into())?;
        let gateway = self.neighbour(object, "gateway", raw.gateway.as_ref(), ipv4)?;
        let server = self.neighbour(object, "server-addr", raw.server_addr.as_ref(), ipv4)?;
        if let Some(text) = &raw.server_addr {
            let other = server != gateway;
            self.require(object, text, other, || Wrong::ServerIsGateway.into())?;
        }
        let boot = self.boot_files(object, anchor, raw)?;
        if boot.is_some() {
            self.require(object, anchor, ipv4.is_some(), || {
                Wrong::NeedsIpv4 { key: "boot-file" }.into()
            })?;
            let reachable = gateway.or(server).is_some();
            self.require(object, anchor, reachable, || Wrong::NoBootServer.into())?;
            self.mtu_for(object, anchor, "boot-file", mtu, BOOT_MTU_MIN)?;
        }
        let address = StaticAddress {
            ipv4,
            ipv6,
            gateway,
            server,
            dns: self.name_servers(object, &raw.dns)?,
            domain: self.domain(object, raw.domain.as_ref())?,
            host_name: self.host_name(object, raw.host_name.as_ref())?,
            boot,
        };
        let four = ipv4.map(|ipv4| IpAddr::from(ipv4.address));
        let six = ipv6.map(|ipv6| IpAddr::from(ipv6.address));
        for (address, text) in [(four, &raw.ip_addr), (six, &raw.ip6_addr)] {
            if let (Some(address), Some(text)) = (address, text) {
                let claimed = self.addresses.claim(&PortAddress { port, address }, object);
                self.at(object, text, claimed)?;
            }
        }
        Ok(Some(Box::new(address)))
    }

    fn no_static_keys(&self, object: &str, raw: &raw::Vnic) -> Result<()> {
        let texts = [
            ("ip-addr", raw.ip_addr.as_ref()),
            ("netmask", raw.netmask.as_ref()),
            ("gateway", raw.gateway.as_ref()),
            ("server-addr", raw.server_addr.as_ref()),
            ("ip6-addr", raw.ip6_addr.as_ref()),
            ("dns", raw.dns.first()),
            ("domain", raw.domain.as_ref()),
            ("host-name", raw.host_name.as_ref()),
            ("boot-file", raw.boot_file.as_ref()),
            (
                "boot-files",
                raw.boot_files.as_ref().and_then(|files| files.any()),
            ),
        ];
        for (key, text) in texts {
            if let Some(text) = text {
                return self.at(object, text, Err(Wrong::NotStatic { key }));
            }
        }
        Ok(())
    }

    fn mtu_for(
        &self,
        object: &str,
        text: &raw::Text,
        key: &'static str,
        mtu: u16,
        mtu_min: u16,
    ) -> Result<()> {
        self.require(object, text, mtu >= mtu_min, || {
            Wrong::Mtu { mtu, key, mtu_min }.into()
        })
    }

    fn ipv4(&self, object: &str, raw: &raw::Vnic) -> Result<Option<InterfaceAddress<Ipv4Addr>>> {
        let Some(text) = &raw.ip_addr else {
            let netmask = raw.netmask.as_ref();
            let problem = Wrong::NeedsIpv4 { key: "netmask" };
            return netmask.map_or(Ok(None), |text| self.at(object, text, Err(problem)));
        };
        let wrong = |key, text: &raw::Text, example| Wrong::Address {
            key,
            text: text.get_ref().clone(),
            example,
        };
        let has_bits = text.get_ref().contains('/');
        let clear = has_bits == raw.netmask.is_none();
        self.require(object, text, clear, || Wrong::Netmask.into())?;
        let written = match &raw.netmask {
            None => text.get_ref().clone(),
            Some(mask) => {
                let bits = mask_bits(mask.get_ref());
                let bits = bits.ok_or_else(|| wrong("netmask", mask, "255.255.255.0"));
                format!("{}/{}", text.get_ref(), self.at(object, mask, bits)?)
            }
        };
        let parsed = interface_address(&written, 32).filter(|it| it.is_host());
        let parsed = parsed.ok_or_else(|| wrong("ip-addr", text, "192.168.10.201/24"));
        self.at(object, text, parsed).map(Some)
    }

    fn ipv6(
        &self,
        object: &str,
        raw: &raw::Vnic,
        mtu: u16,
    ) -> Result<Option<InterfaceAddress<Ipv6Addr>>> {
        let Some(text) = &raw.ip6_addr else {
            return Ok(None);
        };
        let parsed: Option<InterfaceAddress<_>> = interface_address(text.get_ref(), 128);
        let parsed = parsed.filter(|it| is_ipv6_host(it.address));
        let parsed = parsed.ok_or_else(|| Wrong::Address {
            key: "ip6-addr",
            text: text.get_ref().clone(),
            example: "2001:db8::201/64",
        });
        self.mtu_for(object, text, "ip6-addr", mtu, IPV6_MTU_MIN)?;
        self.at(object, text, parsed).map(Some)
    }

    /// An address of another station in the network of `own`.
    fn neighbour(
        &self,
        object: &str,
        key: &'static str,
        text: Option<&raw::Text>,
        own: Option<InterfaceAddress<Ipv4Addr>>,
    ) -> Result<Option<Ipv4Addr>> {
        let Some(text) = text else { return Ok(None) };
        let own = self.at(object, text, own.ok_or(Wrong::NeedsIpv4 { key }))?;
        let address = text.get_ref().parse().map_err(|_parse| Wrong::Address {
            key,
            text: text.get_ref().clone(),
            example: "192.168.10.1",
        });
        let address: Ipv4Addr = self.at(object, text, address)?;
        let other = InterfaceAddress { address, ..own }.is_host()
            && own.contains(address)
            && address != own.address;
        self.require(object, text, other, || {
            let (network, bits) = (own.address, own.prefix_bits);
            Wrong::NotNeighbour {
                key,
                address,
                network,
                bits,
            }
            .into()
        })?;
        Ok(Some(address))
    }

    fn name_servers(&self, object: &str, texts: &[raw::Text]) -> Result<Vec<IpAddr>> {
        if let Some(text) = texts.get(NAME_SERVERS_MAX) {
            return self.at(object, text, Err(Wrong::NameServers));
        }
        let parse = |text: &raw::Text| {
            let address = text.get_ref().parse().map_err(|_parse| Wrong::Address {
                key: "dns",
                text: text.get_ref().clone(),
                example: "192.168.10.2",
            });
            self.at(object, text, address)
        };
        texts.iter().map(parse).collect()
    }

    fn domain(&self, object: &str, text: Option<&raw::Text>) -> Result<Option<String>> {
        let usable = |text: &str| text.len() <= DOMAIN_BYTES_MAX && text.split('.').all(is_label);
        self.host_text(object, ("domain", "example.com"), text, usable)
    }

    fn host_name(&self, object: &str, text: Option<&raw::Text>) -> Result<Option<String>> {
        self.host_text(object, ("host-name", "web1"), text, is_label)
    }

    fn host_text(
        &self,
        object: &str,
        (key, example): (&'static str, &'static str),
        text: Option<&raw::Text>,
        usable: impl Fn(&str) -> bool,
    ) -> Result<Option<String>> {
        let Some(text) = text else { return Ok(None) };
        self.require(object, text, usable(text.get_ref()), || {
            let text = text.get_ref().clone();
            Wrong::HostName { key, text, example }.into()
        })?;
        Ok(Some(text.get_ref().clone()))
    }

    fn boot_files(
        &self,
        object: &str,
        anchor: &raw::Text,
        raw: &raw::Vnic,
    ) -> Result<Option<BootFiles>> {
        let files = raw.boot_files.as_ref();
        let any = raw.boot_file.is_some() || files.is_some_and(|files| files.any().is_some());
        if !any {
            return Ok(None);
        }
        let folder = self.boot_dir.clone().ok_or(Wrong::NoBootDir);
        let of = |pick: fn(&raw::BootFiles) -> &Option<raw::Text>| {
            let file = files.and_then(|files| pick(files).as_ref());
            self.boot_file(object, file)
        };
        Ok(Some(BootFiles {
            folder: self.at(object, anchor, folder)?,
            other: self.boot_file(object, raw.boot_file.as_ref())?,
            bios: of(|files| &files.bios)?,
            efi_x64: of(|files| &files.efi_x64)?,
            efi_arm64: of(|files| &files.efi_arm64)?,
            ipxe: of(|files| &files.ipxe)?,
        }))
    }

    fn boot_file(&self, object: &str, text: Option<&raw::Text>) -> Result<Option<String>> {
        let Some(text) = text else { return Ok(None) };
        let name = text.get_ref();
        let inside = |part| matches!(part, Component::Normal(_));
        let usable = (1..=BOOT_FILE_BYTES_MAX).contains(&name.len())
            && name.bytes().all(|byte| (0x20..0x7f).contains(&byte))
            && Path::new(name).components().all(inside);
        self.require(object, text, usable, || {
            let text = name.clone();
            Wrong::BootFile { text }.into()
        })?;
        Ok(Some(name.clone()))
    }
}

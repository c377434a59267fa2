//! Access lists: what may pass a vNIC, by what a frame says of itself.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::IpNet;
use toml::Spanned;

use crate::address::MacAddress;
use crate::error::{ConfigError, Problem};
use crate::raw;
use crate::switching::VlanId;
use crate::validate::{Result, Validator};

/// Rules that are tried in their order, and what becomes of a frame that none decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessListConfig {
    /// Its name.
    pub name: String,
    /// Tried in this order.
    pub rules: Vec<AccessRule>,
    /// Whether a frame passes that no rule allows or denies.
    pub passes: bool,
}

/// A condition and what becomes of the frames that meet it. What is `None` is not asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessRule {
    /// What becomes of them.
    pub action: AccessAction,
    /// Source address.
    pub source_mac: Option<MacAddress>,
    /// Destination address.
    pub destination_mac: Option<MacAddress>,
    /// VLAN.
    pub vlan: Option<VlanId>,
    /// Protocol.
    pub protocol: Option<AccessProtocol>,
    /// IP source; a frame of the other IP version does not meet it.
    pub source: Option<IpNet>,
    /// IP destination; as the source.
    pub destination: Option<IpNet>,
    /// Source port; only with a protocol that has ports.
    pub source_port: Option<RangeInclusive<u16>>,
    /// Destination port; as the source port.
    pub destination_port: Option<RangeInclusive<u16>>,
}

impl AccessRule {
    /// The condition that `text` says in the words of a rule, `protocol=tcp destination-port=80`; its
    /// action counts.
    ///
    /// # Errors
    /// What is wrong with it, on one line.
    pub fn of_filter(text: &str) -> std::result::Result<Self, String> {
        let wrong = |problem: &dyn fmt::Display| format!("filter {text:?}: {problem}");
        let mut words = toml::Table::new();
        for word in text.split_whitespace() {
            let next = "write conditions like protocol=tcp destination-port=80";
            let (key, value) = word.split_once('=').ok_or_else(|| wrong(&next))?;
            let number = value.parse().ok().filter(|_| key == "vlan");
            let value = number.map_or_else(|| value.into(), toml::Value::Integer);
            words.insert(key.to_owned(), value);
        }
        words.insert("action".to_owned(), "count".into());
        let file = toml::to_string(&words).map_err(|error| wrong(&error))?;
        let rule: Spanned<raw::AccessRule> =
            toml::from_str(&file).map_err(|error| wrong(&error.message().replace('\n', ", ")))?;
        let rule = Validator::new(&file).access_rule("filter", &rule);
        rule.map_err(|error| match error {
            ConfigError::Invalid { problem, .. } => wrong(&problem),
            other => wrong(&other),
        })
    }
}

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessAction {
    /// It passes, and no more rules are tried.
    Allow,
    /// It is dropped.
    Deny,
    /// It gets another priority, and the next rule is tried. One of both is there.
    Mark {
        /// In its IP header, 0 to 63 (RFC 2474).
        dscp: Option<u8>,
        /// In its VLAN tag, if it leaves with one, 0 to 7 (PCP).
        priority: Option<u8>,
    },
    /// The next rule is tried.
    Count,
}

/// A protocol of Ethernet or of IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessProtocol {
    /// EtherType.
    Ethernet(u16),
    /// Protocol of IPv4, or of the header behind the extensions of IPv6.
    Ip(u8),
}

impl AccessProtocol {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "ipv4" => Self::Ethernet(0x0800),
            "ipv6" => Self::Ethernet(0x86dd),
            "arp" => Self::Ethernet(0x0806),
            "icmp" => Self::Ip(1),
            "tcp" => Self::Ip(6),
            "udp" => Self::Ip(17),
            "icmp6" => Self::Ip(58),
            "sctp" => Self::Ip(132),
            digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                Self::Ip(digits.parse().ok()?)
            }
            hexadecimal => Self::Ethernet(ether_type(hexadecimal)?),
        })
    }

    const fn has_ports(self) -> bool {
        matches!(self, Self::Ip(6 | 17 | 132))
    }
}

/// The lists of a file by name.
pub(crate) type AccessLists = BTreeMap<String, Arc<AccessListConfig>>;

impl Validator<'_> {
    pub(crate) fn access_lists(&self, raw: &[raw::AccessList]) -> Result<AccessLists> {
        let mut lists = AccessLists::new();
        for raw in raw {
            let name = self.name("access-list", &raw.name)?;
            let object = format!("access-list {name}");
            let passes = match raw.default.get_ref().as_str() {
                "allow" => true,
                "deny" => false,
                _ => return self.at(&object, &raw.default, Err(Problem::AccessDefault)),
            };
            let rules = raw.rules.iter().map(|rule| self.access_rule(&object, rule));
            let list = AccessListConfig {
                rules: rules.collect::<Result<_>>()?,
                passes,
                name: name.clone(),
            };
            let taken = lists.insert(name.clone(), Arc::new(list)).is_some();
            self.require(&object, &raw.name, !taken, || Problem::Taken {
                what: "name",
                value: name,
                owner: object.clone(),
            })?;
        }
        Ok(lists)
    }

    pub(crate) fn access_list(
        &self,
        object: &str,
        raw: Option<&raw::Text>,
        lists: &AccessLists,
    ) -> Result<Option<Arc<AccessListConfig>>> {
        let list = raw.map(|raw| {
            let name = raw.get_ref();
            let list = lists.get(name).cloned();
            let list = list.ok_or_else(|| Problem::NoSuchAccessList { name: name.clone() });
            self.at(object, raw, list)
        });
        list.transpose()
    }

    fn access_rule(&self, object: &str, rule: &Spanned<raw::AccessRule>) -> Result<AccessRule> {
        let raw = rule.get_ref();
        let mac = |text: Option<&raw::Text>| {
            let mac = text.map(|text| self.at(object, text, text.get_ref().parse::<MacAddress>()));
            mac.transpose()
        };
        let prefix = |text: Option<&raw::Text>| {
            let prefix = text.map(|text| self.prefix(object, text));
            prefix.transpose()
        };
        let protocol = raw.protocol.as_ref().map(|text| {
            let problem = || Problem::AccessProtocol {
                text: text.get_ref().clone(),
            };
            let protocol = AccessProtocol::parse(text.get_ref());
            self.at(object, text, protocol.ok_or_else(problem))
        });
        let protocol = protocol.transpose()?;
        let port = |text: Option<&raw::Text>| {
            let Some(text) = text else { return Ok(None) };
            self.require(
                object,
                text,
                protocol.is_some_and(AccessProtocol::has_ports),
                || Problem::PortsWithoutProtocol,
            )?;
            let problem = || Problem::AccessPort {
                text: text.get_ref().clone(),
            };
            let range = port_range(text.get_ref()).ok_or_else(problem);
            self.at(object, text, range).map(Some)
        };
        let rule = AccessRule {
            action: self.access_action(object, rule)?,
            source_mac: mac(raw.source_mac.as_ref())?,
            destination_mac: mac(raw.destination_mac.as_ref())?,
            vlan: self.vlan_id(object, "vlan", raw.vlan.as_ref())?,
            protocol,
            source: prefix(raw.source.as_ref())?,
            destination: prefix(raw.destination.as_ref())?,
            source_port: port(raw.source_port.as_ref())?,
            destination_port: port(raw.destination_port.as_ref())?,
        };
        let families = [
            rule.source.map(|prefix| prefix.addr().is_ipv6()),
            rule.destination.map(|prefix| prefix.addr().is_ipv6()),
            match protocol {
                Some(AccessProtocol::Ethernet(0x0800) | AccessProtocol::Ip(1)) => Some(false),
                Some(AccessProtocol::Ethernet(0x86dd) | AccessProtocol::Ip(58)) => Some(true),
                _ => None,
            },
        ];
        let mut families = families.into_iter().flatten();
        let first = families.next();
        let of_one = families.all(|family| Some(family) == first);
        let of_arp = protocol == Some(AccessProtocol::Ethernet(0x0806));
        let never = !of_one || of_arp && first.is_some();
        self.require(object, &raw.action, !never, || Problem::AccessNever)?;
        Ok(rule)
    }

    fn access_action(&self, object: &str, rule: &Spanned<raw::AccessRule>) -> Result<AccessAction> {
        let raw = rule.get_ref();
        let value = |key, value: Option<&Spanned<u8>>, value_max| {
            let Some(raw) = value else { return Ok(None) };
            let value = *raw.get_ref();
            let problem = || Problem::AccessMark { key, value_max };
            self.require(object, raw, value <= value_max, problem)?;
            Ok(Some(value))
        };
        let dscp = value("dscp", raw.dscp.as_ref(), 63)?;
        let priority = value("priority", raw.priority.as_ref(), 7)?;
        let action = match raw.action.get_ref().as_str() {
            "allow" => AccessAction::Allow,
            "deny" => AccessAction::Deny,
            "mark" => AccessAction::Mark { dscp, priority },
            "count" => AccessAction::Count,
            _ => return self.at(object, &raw.action, Err(Problem::AccessAction)),
        };
        let marks = matches!(action, AccessAction::Mark { .. });
        let fits = marks == (dscp.is_some() || priority.is_some());
        self.require(object, &raw.action, fits, || Problem::AccessMarkWords)?;
        Ok(action)
    }
}

/// `0x88cc`: below 0x600 it would be a length (IEEE 802.3 section 3.2.6).
fn ether_type(text: &str) -> Option<u16> {
    let digits = text.strip_prefix("0x")?;
    let digits = (digits.len() == 4 && !digits.starts_with('+')).then_some(digits)?;
    let number = u16::from_str_radix(digits, 16).ok()?;
    (number >= 0x600).then_some(number)
}

fn port_range(text: &str) -> Option<RangeInclusive<u16>> {
    let number = |text: &str| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>().ok().filter(|_| digits)
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = number(first)?..=number(last)?;
    (!range.is_empty()).then_some(range)
}

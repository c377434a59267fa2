//! Ethernet ports: what is behind them, and LAGs of several.

use std::collections::BTreeMap;

use qos::{BitRate, LinkBudget};

use crate::address::PortName;
use crate::error::Problem;
use crate::raw;
use crate::switching::{StormLimits, VlanId};
use crate::validate::{MTU_DEFAULT, Owners, Result, Validator, usable_name};
use crate::{INTERFACE_NAME_BYTES_MAX, NAME_BYTES_MAX};

/// Ports of a LAG at most.
pub const LAG_PORTS_MAX: usize = 8;

/// An Ethernet port: an interface, a LAG of several, or vNICs among themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EthernetPortConfig {
    /// Its name.
    pub port: PortName,
    /// What leads outside: one, of a LAG one or more; empty: the port is a private network.
    pub interfaces: Vec<InterfaceConfig>,
    /// How a LAG uses its interfaces.
    pub mode: LagMode,
    /// Whether it is up, as far as the operator is concerned.
    pub up: bool,
    /// Whether checksums and super-frames cross the interfaces unfinished (a virtio-net header).
    pub offloads: bool,
    /// MTU of the interfaces.
    pub mtu: u16,
    /// What the port carries, the same in each direction; `None`: it is not scheduled.
    pub budget: Option<LinkBudget>,
    /// The VLAN of frames without a tag; `None`: one of their own, without a number.
    pub native_vlan: Option<VlanId>,
    /// What passes from outside.
    pub storm: StormLimits,
    /// Name of the vNIC that gets copies of what is at the interface, or, of a private network, of what
    /// its vNICs send.
    pub mirror_to: Option<String>,
}

/// An interface of the machine behind an Ethernet port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceConfig {
    /// The port; of a LAG the member.
    pub port: PortName,
    /// What it is.
    pub kind: InterfaceKind,
    /// Its name.
    pub name: String,
    /// The network namespace that it is in, by its name in `/run/netns`; `None`: the director's.
    pub namespace: Option<String>,
    /// The Linux bridge that a TAP is a port of, in the same namespace.
    pub bridge: Option<String>,
    /// Whether a member of a LAG is up, as far as the operator is concerned; otherwise true.
    pub up: bool,
}

/// What an interface is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InterfaceKind {
    /// A TAP interface, made for the port.
    Tap,
    /// One that is there: a NIC, or an end of a veth pair.
    Present,
}

/// How a LAG uses its interfaces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LagMode {
    /// The first that is up carries everything.
    #[default]
    ActiveBackup,
    /// Each flow has one of those that are up.
    Hash,
}

impl EthernetPortConfig {
    /// Whether nothing leads outside.
    #[must_use]
    pub fn is_private(&self) -> bool {
        self.interfaces.is_empty()
    }

    /// Whether `port` is its name, or that of a member.
    pub(crate) fn has(&self, port: PortName) -> bool {
        self.port == port || self.interfaces.iter().any(|it| it.port == port)
    }
}

/// A port as it is written, before LAGs take theirs.
struct Port<'a> {
    raw: &'a raw::EthernetPort,
    config: EthernetPortConfig,
    rate: Option<BitRate>,
}

impl Validator<'_> {
    /// `state`: whether it is up.
    pub(crate) fn state(&self, object: &str, raw: Option<&raw::Text>) -> Result<bool> {
        let Some(raw) = raw else { return Ok(true) };
        let state = match raw.get_ref().as_str() {
            "up" => Ok(true),
            "down" => Ok(false),
            other => Err(Problem::State {
                text: other.to_owned(),
            }),
        };
        self.at(object, raw, state)
    }

    pub(crate) fn ethernet_ports(
        &mut self,
        ports: &[raw::EthernetPort],
        lags: &[raw::Lag],
    ) -> Result<()> {
        let (mut names, mut interfaces) = (Owners::default(), Owners::default());
        let mut found = BTreeMap::new();
        let mut order = Vec::new();
        for raw in ports {
            let port = self.port("ethernet-port", &raw.port)?;
            let object = format!("ethernet-port {port}");
            self.require(&object, &raw.port, !port.is_lag(), || Problem::LagAsPort {
                port,
            })?;
            self.at(&object, &raw.port, names.claim(&port, &object))?;
            let config = self.ethernet_port(&object, port, raw, &mut interfaces)?;
            let rate = self.bits(&object, raw.rate.as_ref())?;
            found.insert(port, Port { raw, config, rate });
            order.push(port);
        }
        let mut joined = Vec::new();
        for raw in lags {
            let lag = self.port("lag", &raw.lag)?;
            let object = format!("lag {lag}");
            self.require(&object, &raw.lag, lag.is_lag(), || Problem::PortAsLag {
                port: lag,
            })?;
            self.at(&object, &raw.lag, names.claim(&lag, &object))?;
            joined.push(self.lag(&object, lag, raw, &mut found)?);
        }
        let alone = order.iter().filter_map(|port| found.remove(port));
        self.ethernet_ports.extend(alone.map(|port| port.config));
        self.ethernet_ports.append(&mut joined);
        Ok(())
    }

    fn ethernet_port(
        &self,
        object: &str,
        port: PortName,
        raw: &raw::EthernetPort,
        interfaces: &mut Owners<String>,
    ) -> Result<EthernetPortConfig> {
        let interface = self.interface(object, port, raw, interfaces)?;
        let offloads = raw.offloads.as_ref();
        Ok(EthernetPortConfig {
            port,
            interfaces: interface.into_iter().collect(),
            mode: LagMode::default(),
            up: self.state(object, raw.state.as_ref())?,
            offloads: offloads.is_none_or(|offloads| *offloads.get_ref()),
            mtu: self.mtu(object, raw.mtu.as_ref(), MTU_DEFAULT)?,
            budget: self.port_budget(object, raw.rate.as_ref(), raw.reservable.as_ref())?,
            native_vlan: self.vlan_id(object, "native-vlan", raw.native_vlan.as_ref())?,
            storm: self.storm_limits(
                object,
                raw.broadcast_limit.as_ref(),
                raw.multicast_limit.as_ref(),
            )?,
            mirror_to: raw.mirror_to.as_ref().map(|to| to.get_ref().clone()),
        })
    }

    /// Takes the ports of a LAG out of `found`.
    fn lag(
        &self,
        object: &str,
        lag: PortName,
        raw: &raw::Lag,
        found: &mut BTreeMap<PortName, Port<'_>>,
    ) -> Result<EthernetPortConfig> {
        let mode = match raw.mode.as_ref().map(|mode| mode.get_ref().as_str()) {
            None | Some("active-backup") => Ok(LagMode::ActiveBackup),
            Some("hash") => Ok(LagMode::Hash),
            Some(other) => Err(Problem::LagMode {
                text: other.to_owned(),
            }),
        };
        let mode = self.at(object, raw.mode.as_ref().unwrap_or(&raw.lag), mode)?;
        let count = raw.ports.len();
        self.require(
            object,
            &raw.lag,
            (1..=LAG_PORTS_MAX).contains(&count),
            || Problem::LagPorts { count },
        )?;
        let mut members: Vec<Port<'_>> = Vec::new();
        for text in &raw.ports {
            let port = self.port(object, text)?;
            self.require(object, text, port.slot() == lag.slot(), || {
                Problem::LagModule { port, lag }
            })?;
            let member = found.remove(&port);
            let member = member.ok_or(Problem::LagMember { port });
            let member = self.at(object, text, member)?;
            self.member(&format!("ethernet-port {port}"), &member, lag)?;
            if let Some(first) = members.first() {
                let words = |port: &Port<'_>| (port.config.mtu, port.config.offloads, port.rate);
                self.require(object, text, words(first) == words(&member), || {
                    Problem::LagSpeeds { port }
                })?;
            }
            members.push(member);
        }
        let Some(first) = members.first() else {
            return self.at(object, &raw.lag, Err(Problem::LagPorts { count }));
        };
        let (offloads, mtu) = (first.config.offloads, first.config.mtu);
        let carriers = match mode {
            LagMode::ActiveBackup => 1,
            LagMode::Hash => members.len(),
        };
        let rates = members.iter().take(carriers).filter_map(|it| it.rate);
        let rate = rates.reduce(BitRate::saturating_add);
        let budget = match (rate, &raw.reservable) {
            (Some(rate), None) => Some(LinkBudget::new(object, rate)),
            (Some(rate), Some(raw)) => {
                let reservable = self.at(object, raw, raw.get_ref().parse::<BitRate>())?;
                let budget = LinkBudget::with_reservable(object, rate, reservable);
                Some(self.at(object, raw, budget.map_err(Problem::Budget))?)
            }
            (None, Some(raw)) => self.at(object, raw, Err(Problem::ReservableWithoutRate))?,
            (None, None) => None,
        };
        let members = members.into_iter().map(|member| member.config);
        let interfaces = members.flat_map(|port| {
            let up = port.up;
            let interfaces = port.interfaces.into_iter();
            interfaces.map(move |it| InterfaceConfig { up, ..it })
        });
        Ok(EthernetPortConfig {
            port: lag,
            interfaces: interfaces.collect(),
            mode,
            up: self.state(object, raw.state.as_ref())?,
            offloads,
            mtu,
            budget,
            native_vlan: self.vlan_id(object, "native-vlan", raw.native_vlan.as_ref())?,
            storm: self.storm_limits(
                object,
                raw.broadcast_limit.as_ref(),
                raw.multicast_limit.as_ref(),
            )?,
            mirror_to: None,
        })
    }

    /// Refuses words of a member that are its LAG's.
    fn member(&self, object: &str, member: &Port<'_>, lag: PortName) -> Result<()> {
        let raw = member.raw;
        self.require(object, &raw.port, !raw.private, || Problem::MemberWith {
            key: "private",
            lag,
        })?;
        let words = [
            ("reservable", raw.reservable.is_some()),
            ("native-vlan", raw.native_vlan.is_some()),
            ("broadcast-limit", raw.broadcast_limit.is_some()),
            ("multicast-limit", raw.multicast_limit.is_some()),
            ("mirror-to", raw.mirror_to.is_some()),
        ];
        for (key, there) in words {
            let problem = || Problem::MemberWith { key, lag };
            self.require(object, &raw.port, !there, problem)?;
        }
        Ok(())
    }

    /// The interface of a port; `None`: it is private.
    fn interface(
        &self,
        object: &str,
        port: PortName,
        raw: &raw::EthernetPort,
        interfaces: &mut Owners<String>,
    ) -> Result<Option<InterfaceConfig>> {
        if raw.private {
            let refuse = |key| Problem::PrivateWith { key };
            for (key, text) in [
                ("tap", &raw.tap),
                ("interface", &raw.interface),
                ("namespace", &raw.namespace),
                ("bridge", &raw.bridge),
                ("rate", &raw.rate),
                ("reservable", &raw.reservable),
            ] {
                if let Some(text) = text {
                    self.at(object, text, Err(refuse(key)))?;
                }
            }
            if let Some(offloads) = &raw.offloads {
                self.at(object, offloads, Err(refuse("offloads")))?;
            }
            for (key, limit) in [
                ("broadcast-limit", &raw.broadcast_limit),
                ("multicast-limit", &raw.multicast_limit),
            ] {
                if let Some(limit) = limit {
                    self.at(object, limit, Err(refuse(key)))?;
                }
            }
            return Ok(None);
        }
        let (kind, text) = match (&raw.tap, &raw.interface) {
            (Some(tap), None) => (InterfaceKind::Tap, tap),
            (None, Some(present)) => (InterfaceKind::Present, present),
            (None, None) => return self.at(object, &raw.port, Err(Problem::NoTap)),
            (Some(_), Some(present)) => {
                return self.at(object, present, Err(Problem::TapAndInterface));
            }
        };
        let namespace = raw.namespace.as_ref();
        let namespace = namespace.map(|text| {
            let name = text.get_ref();
            let usable =
                usable_name(name, NAME_BYTES_MAX, "-_.") && !matches!(name.as_str(), "." | "..");
            self.require(object, text, usable, || Problem::NamespaceName {
                name: name.clone(),
            })?;
            Ok(name.clone())
        });
        let namespace = namespace.transpose()?;
        let name = self.interface_name(object, text)?;
        let owned = match &namespace {
            Some(namespace) => format!("{namespace}/{name}"),
            None => name.clone(),
        };
        self.at(object, text, interfaces.claim(&owned, object))?;
        let bridge = raw.bridge.as_ref().map(|text| {
            self.require(object, text, kind == InterfaceKind::Tap, || {
                Problem::BridgeOfPresent
            })?;
            self.interface_name(object, text)
        });
        Ok(Some(InterfaceConfig {
            port,
            kind,
            name,
            namespace,
            bridge: bridge.transpose()?,
            up: true,
        }))
    }

    fn interface_name(&self, object: &str, text: &raw::Text) -> Result<String> {
        let name = text.get_ref();
        let usable = usable_name(name, INTERFACE_NAME_BYTES_MAX, "-_.")
            && !matches!(name.as_str(), "." | "..");
        self.require(object, text, usable, || Problem::InterfaceName {
            name: name.clone(),
        })?;
        Ok(name.clone())
    }
}

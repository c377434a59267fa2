//! What the switch of an Ethernet port does for a vNIC: its VLANs, and what it may send.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use toml::Spanned;

use crate::HostConfig;
use crate::address::PortName;
use crate::error::Problem;
use crate::raw;
use crate::validate::{Result, Validator};

/// The number of a VLAN, 1 to 4094 (IEEE 802.1Q table 9-2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VlanId(u16);

impl VlanId {
    /// The largest.
    pub const MAX: u16 = 4094;

    /// `None` for 0, which is no VLAN, and above [`Self::MAX`].
    #[must_use]
    pub const fn new(number: u16) -> Option<Self> {
        if number >= 1 && number <= Self::MAX {
            Some(Self(number))
        } else {
            None
        }
    }

    /// The number, as it stands in a tag.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for VlanId {
    type Err = ();

    /// Digits only: `u16::from_str` would take a sign too.
    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|_| digits);
        number.and_then(Self::new).ok_or(())
    }
}

const WORDS: usize = 64;

/// A set of VLANs, one bit each.
#[derive(Clone, PartialEq, Eq)]
pub struct VlanSet(Box<[u64; WORDS]>);

impl VlanSet {
    /// No VLAN.
    #[must_use]
    pub fn empty() -> Self {
        Self(Box::new([0; WORDS]))
    }

    /// Adds one.
    pub fn insert(&mut self, vlan: VlanId) {
        if let Some(word) = self.0.get_mut(usize::from(vlan.0 / 64)) {
            *word |= 1 << (vlan.0 % 64);
        }
    }

    /// Whether it is in the set.
    #[must_use]
    pub fn contains(&self, vlan: VlanId) -> bool {
        let word = self.0.get(usize::from(vlan.0 / 64));
        word.is_some_and(|word| word & 1 << (vlan.0 % 64) != 0)
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }
}

impl fmt::Debug for VlanSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = (1..=VlanId::MAX).filter_map(VlanId::new);
        f.debug_set()
            .entries(all.filter(|vlan| self.contains(*vlan)))
            .finish()
    }
}

/// The VLANs of a vNIC, on a port of which at least one vNIC names some.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VlanMembership {
    /// It names none: it is in the port's native VLAN, without a tag.
    Native,
    /// It is in this one and knows nothing of tags.
    Access(VlanId),
    /// Its guest makes and reads tags.
    Trunk {
        /// The VLANs it may use, the native one among them.
        allowed: VlanSet,
        /// The VLAN of frames without a tag; `None`: they are dropped.
        native: Option<VlanId>,
    },
}

/// How many frames to groups pass in a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StormLimits {
    /// Frames to all stations.
    pub broadcast: u32,
    /// Frames to other groups.
    pub multicast: u32,
}

impl Default for StormLimits {
    fn default() -> Self {
        Self {
            broadcast: 10_000,
            multicast: 100_000,
        }
    }
}

impl Validator<'_> {
    pub(crate) fn storm_limits(
        &self,
        object: &str,
        broadcast: Option<&Spanned<u32>>,
        multicast: Option<&Spanned<u32>>,
    ) -> Result<StormLimits> {
        let default = StormLimits::default();
        let limit = |key, raw: Option<&Spanned<u32>>, default| {
            let Some(raw) = raw else { return Ok(default) };
            let limit = *raw.get_ref();
            self.require(object, raw, limit > 0, || Problem::LimitIsZero { key })?;
            Ok(limit)
        };
        Ok(StormLimits {
            broadcast: limit("broadcast-limit", broadcast, default.broadcast)?,
            multicast: limit("multicast-limit", multicast, default.multicast)?,
        })
    }

    /// Refuses mirrors to vNICs that are not there, and to the mirrored vNIC itself.
    pub(crate) fn mirrors(&self, raw: &raw::Lab, hosts: &[HostConfig]) -> Result<()> {
        let known = |to: &str| {
            let mut vnics = hosts.iter().flat_map(HostConfig::vnics);
            vnics.any(|vnic| vnic.name == to)
        };
        let no_such = |to: &raw::Text| Problem::NoSuchVnic {
            name: to.get_ref().clone(),
        };
        for port in &raw.ethernet_port {
            if let Some(to) = &port.mirror_to {
                let object = format!("ethernet-port {}", port.port.get_ref());
                self.require(&object, to, known(to.get_ref()), || no_such(to))?;
            }
        }
        for vm in raw.host.iter().flat_map(|host| &host.vm) {
            for vnic in &vm.vnic {
                let Some(to) = &vnic.mirror_to else { continue };
                let name = format!("{}.{}", vnic.name.get_ref(), vm.name.get_ref());
                let object = format!("vnic {name}");
                self.require(&object, to, known(to.get_ref()), || no_such(to))?;
                let itself = *to.get_ref() == name;
                self.require(&object, to, !itself, || Problem::MirrorToItself)?;
            }
        }
        Ok(())
    }

    pub(crate) fn isolated(
        &self,
        object: &str,
        raw: &raw::Vnic,
        on_private: bool,
        port: PortName,
    ) -> Result<bool> {
        let Some(raw) = &raw.isolated else {
            return Ok(false);
        };
        let isolated = *raw.get_ref();
        self.require(object, raw, !(isolated && on_private), || {
            Problem::IsolatedOnPrivate { port }
        })?;
        Ok(isolated)
    }

    pub(crate) fn prefix(&self, object: &str, raw: &raw::Text) -> Result<IpNet> {
        let text = raw.get_ref();
        let address = || text.parse::<IpAddr>().map(IpNet::from);
        let prefix = text.parse::<IpNet>().or_else(|_prefix| address());
        let prefix = prefix.map_err(|_address| Problem::IpPrefix { text: text.clone() });
        self.at(object, raw, prefix)
    }

    pub(crate) fn prefixes(&self, object: &str, raw: &[raw::Text]) -> Result<Vec<IpNet>> {
        raw.iter().map(|raw| self.prefix(object, raw)).collect()
    }

    pub(crate) fn vlan_id(
        &self,
        object: &str,
        key: &'static str,
        raw: Option<&Spanned<u16>>,
    ) -> Result<Option<VlanId>> {
        let id = raw.map(|raw| {
            let number = *raw.get_ref();
            let id = VlanId::new(number).ok_or(Problem::Vlan { key, number });
            self.at(object, raw, id)
        });
        id.transpose()
    }

    fn vlan_set(&self, object: &str, texts: &[raw::Text]) -> Result<VlanSet> {
        let mut allowed = VlanSet::empty();
        for raw in texts {
            let text = raw.get_ref();
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let range = match (first.parse::<VlanId>(), last.parse::<VlanId>()) {
                (Ok(first), Ok(last)) if first <= last => Ok((first, last)),
                _ => Err(Problem::VlanRange { text: text.clone() }),
            };
            let (first, last) = self.at(object, raw, range)?;
            let vlans = (first.number()..=last.number()).filter_map(VlanId::new);
            vlans.for_each(|vlan| allowed.insert(vlan));
        }
        Ok(allowed)
    }

    pub(crate) fn vlan_membership(&self, object: &str, raw: &raw::Vnic) -> Result<VlanMembership> {
        let access = self.vlan_id(object, "vlan", raw.vlan.as_ref())?;
        let native = self.vlan_id(object, "native-vlan", raw.native_vlan.as_ref())?;
        match (access, &raw.vlans) {
            (None, None) => {
                if let Some(native) = &raw.native_vlan {
                    self.at(object, native, Err(Problem::NativeWithoutTrunk))?;
                }
                Ok(VlanMembership::Native)
            }
            (Some(vlan), None) if native.is_none() => Ok(VlanMembership::Access(vlan)),
            (None, Some(texts)) => {
                let mut allowed = self.vlan_set(object, texts)?;
                if let Some(native) = native {
                    allowed.insert(native);
                }
                self.require(object, &raw.name, !allowed.is_empty(), || Problem::NoVlans)?;
                Ok(VlanMembership::Trunk { allowed, native })
            }
            (Some(_), _) => self.at(object, &raw.name, Err(Problem::AccessAndTrunk)),
        }
    }
}

//! From the file as written to values that fit together.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use fabric_transport::DeviceId;
use fabric_transport::discovery::Meeting;
use fabric_transport::link::{LinkAddress, LinkRefused};
use fabric_transport::session::PATHS_MAX;
use qos::{LinkBudget, PolicyCatalog, PolicyKind, VmRate};
use toml::Spanned;

use crate::access::AccessLists;
use crate::address::{MacAddress, PortName, Wwpn};
use crate::admit::Direction;
use crate::error::{ConfigError, Problem, Unique};
use crate::links::{LinkSecurity, TlsPaths};
use crate::raw;
use crate::static_address::PortAddress;
use crate::{
    DirectorConfig, EDGE_SWITCH_PORTS_MAX, EdgeSwitchConfig, EthernetPortConfig, HostConfig,
    LUN_MAX, LabConfig, LunConfig, LunMapping, MTU_MAX, MTU_MIN, MediumConfig, NAME_BYTES_MAX,
    PCI_SLOTS, RAM_BYTES_MAX, SanPortConfig, Uplink, VHBA_QUEUES_MAX, VNIC_QUEUES_MAX, VhbaConfig,
    VmConfig, VnicConfig,
};

pub(crate) const MTU_DEFAULT: u16 = 1500;
const SERIAL_BYTES_MAX: usize = 64;
const DELAY_MS_MAX: u64 = 600_000;
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// As open-iscsi and dm-multipath wait a while for a target that is away.
const TIMEOUT_PASS_THROUGH_DEFAULT: Duration = Duration::from_secs(60);
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);

pub(crate) type Result<T> = std::result::Result<T, ConfigError>;

/// Who has which value of one kind.
pub(crate) struct Owners<T>(BTreeMap<T, String>);

impl<T> Default for Owners<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Unique> Owners<T> {
    pub(crate) fn claim(&mut self, value: &T, owner: &str) -> std::result::Result<(), Problem> {
        match self.0.insert(value.clone(), owner.to_owned()) {
            None => Ok(()),
            Some(owner) => Err(Problem::Taken {
                what: T::WHAT,
                value: value.to_string(),
                owner,
            }),
        }
    }
}

pub(crate) struct Validator<'a> {
    text: &'a str,
    links: LinkSecurity,
    pub(crate) policies: PolicyCatalog,
    pub(crate) ethernet_ports: Vec<EthernetPortConfig>,
    access_lists: AccessLists,
    san_ports: Vec<SanPortConfig>,
    luns: Vec<LunConfig>,
    device_ids: Owners<DeviceId>,
    macs: Owners<MacAddress>,
    wwpns: Owners<Wwpn>,
    vm_names: Owners<String>,
    pub(crate) addresses: Owners<PortAddress>,
    pub(crate) boot_dir: Option<PathBuf>,
}

impl<'a> Validator<'a> {
    /// Of a `text` of which nothing is known yet.
    pub(crate) fn new(text: &'a str) -> Self {
        Self {
            text,
            links: LinkSecurity::default(),
            policies: PolicyCatalog::default(),
            ethernet_ports: Vec::new(),
            access_lists: AccessLists::new(),
            san_ports: Vec::new(),
            luns: Vec::new(),
            device_ids: Owners::default(),
            macs: Owners::default(),
            wwpns: Owners::default(),
            vm_names: Owners::default(),
            addresses: Owners::default(),
            boot_dir: None,
        }
    }
}

pub(crate) fn validate(text: &str, raw: raw::Lab) -> Result<LabConfig> {
    let mut validator = Validator::new(text);
    validator.links = validator.link_security(raw.insecure, raw.tls.as_ref())?;
    let director_name = validator.name("director", &raw.director.name)?;
    let object = format!("director {director_name}");
    let listen = validator.addresses(&object, &raw.director.listen)?;
    let discoverable = validator.discoverable(&object, &raw.director, &listen)?;
    let boot_dir = raw.director.boot_dir.as_ref();
    let boot_dir = boot_dir.map(|path| validator.absolute(&object, path));
    validator.boot_dir = boot_dir.transpose()?;
    let director = DirectorConfig {
        listen,
        name: director_name,
        shared_luns: raw.director.shared_luns,
        backing_files: validator.backing_files(&object, &raw.director.backing_files)?,
        busy_poll: Duration::from_micros(raw.director.busy_poll_us.into()),
        discoverable,
    };
    validator.policies(&raw.qos_policy)?;
    validator.ethernet_ports(&raw.ethernet_port, &raw.lag)?;
    validator.access_lists = validator.access_lists(&raw.access_list)?;
    validator.san_ports(&raw.san_port)?;
    validator.luns(&raw.lun, raw.director.shared_luns)?;
    let downlinks = validator.downlinks(&raw)?;
    let mut host_names = Owners::default();
    let mut hosts = Vec::new();
    for host in &raw.host {
        hosts.push(validator.host(host, &downlinks, &mut host_names)?);
    }
    validator.mirrors(&raw, &hosts)?;
    validator.moves(&raw.host, &hosts)?;
    let edge_switches = validator.edge_switches(&raw.edge_switch, &hosts)?;
    let Validator {
        links,
        policies,
        ethernet_ports,
        san_ports,
        luns,
        ..
    } = validator;
    Ok(LabConfig {
        links,
        director,
        policies,
        ethernet_ports,
        san_ports,
        luns,
        hosts,
        edge_switches,
    })
}

/// A number of KiB, MiB, GiB or TiB, of whole blocks of both sizes that there are.
fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let shift = match unit {
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    let bytes = parse_digits(number)?.checked_mul(1 << shift)?;
    (bytes > 0 && bytes.is_multiple_of(4096) && i64::try_from(bytes).is_ok()).then_some(bytes)
}

fn parse_timeout(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_lowercase());
    let number = parse_digits(digits)?;
    let millis = match text.get(digits.len()..)? {
        "ms" => Some(number),
        "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        _ => None,
    };
    let timeout = Duration::from_millis(millis?);
    TIMEOUTS.contains(&timeout).then_some(timeout)
}

/// As `parse`, without a sign.
fn parse_digits(text: &str) -> Option<u64> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then_some(())?;
    text.parse().ok()
}

pub(crate) fn usable_name(name: &str, bytes_max: usize, also: &str) -> bool {
    (1..=bytes_max).contains(&name.len())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || also.contains(c))
}

impl Validator<'_> {
    /// Adds the place of `value` and its `object` to a problem.
    pub(crate) fn at<S, T>(
        &self,
        object: &str,
        value: &Spanned<S>,
        result: std::result::Result<T, impl Into<Problem>>,
    ) -> Result<T> {
        result.map_err(|problem| ConfigError::Invalid {
            line: raw::line(self.text, value.span().start),
            object: object.to_owned(),
            problem: problem.into(),
        })
    }

    /// As [`Self::at`], for a condition.
    pub(crate) fn require<S>(
        &self,
        object: &str,
        value: &Spanned<S>,
        holds: bool,
        problem: impl FnOnce() -> Problem,
    ) -> Result<()> {
        self.at(object, value, if holds { Ok(()) } else { Err(problem()) })
    }

    pub(crate) fn name(&self, object: &str, name: &raw::Text) -> Result<String> {
        let text = name.get_ref();
        self.require(
            object,
            name,
            usable_name(text, NAME_BYTES_MAX, "-_"),
            || Problem::Name { name: text.clone() },
        )?;
        Ok(text.clone())
    }

    fn link_security(&self, insecure: bool, raw: Option<&raw::Tls>) -> Result<LinkSecurity> {
        let path = |text: &raw::Text| {
            let path = text.get_ref();
            self.require("tls", text, path.starts_with('/'), || {
                Problem::RelativePath { path: path.clone() }
            })?;
            Ok(path.clone())
        };
        let tls = match raw {
            Some(tls) => Some(TlsPaths {
                ca: path(&tls.ca)?,
                cert: path(&tls.cert)?,
                key: path(&tls.key)?,
            }),
            None => None,
        };
        Ok(LinkSecurity { tls, insecure })
    }

    fn addresses(&self, object: &str, texts: &[raw::Text]) -> Result<Vec<LinkAddress>> {
        let LinkSecurity { tls, insecure } = &self.links;
        texts
            .iter()
            .map(|text| {
                let address = self.at(object, text, text.get_ref().parse())?;
                let allowed = LinkRefused::check(&address, tls.is_some(), *insecure);
                self.at(object, text, allowed)?;
                Ok(address)
            })
            .collect()
    }

    fn meeting(
        &self,
        object: &str,
        group: &raw::Text,
        interface: Option<&raw::Text>,
    ) -> Result<Meeting> {
        let text = group.get_ref();
        let parsed: Option<SocketAddrV4> = text.parse().ok();
        let parsed = parsed.filter(|it| it.ip().is_multicast() && it.port() != 0);
        let parsed = parsed.ok_or_else(|| Problem::Group { text: text.clone() });
        let interface = interface.map(|interface| {
            let text = interface.get_ref();
            let parsed = text.parse::<Ipv4Addr>();
            let parsed = parsed.map_err(|_parse| Problem::Interface { text: text.clone() });
            self.at(object, interface, parsed)
        });
        Ok(Meeting {
            group: self.at(object, group, parsed)?,
            interface: interface.transpose()?,
        })
    }

    /// Refuses a key that says more about a discovery that there is not.
    fn without(
        &self,
        object: &str,
        key: &'static str,
        value: Option<&raw::Text>,
        needs: &'static str,
    ) -> Result<()> {
        let problem = Err(Problem::NotDiscovered { key, needs });
        value.map_or(Ok(()), |value| self.at(object, value, problem))
    }

    fn discoverable(
        &self,
        object: &str,
        raw: &raw::Director,
        listen: &[LinkAddress],
    ) -> Result<Option<Meeting>> {
        let interface = raw.discovery_interface.as_ref();
        let Some(group) = &raw.discoverable else {
            self.without(object, "discovery-interface", interface, "discoverable")?;
            return Ok(None);
        };
        let meeting = self.meeting(object, group, interface)?;
        let is_kept =
            |address: &LinkAddress| !matches!(address, LinkAddress::Tcp(_) | LinkAddress::Tls(_));
        let offers = !listen.iter().all(is_kept);
        self.require(object, group, offers, || Problem::NothingToOffer)?;
        Ok(Some(meeting))
    }

    fn uplink(&self, object: &str, raw: &raw::Host) -> Result<Uplink> {
        let ways = [
            raw.embedded,
            !raw.director.is_empty(),
            raw.discover.is_some(),
        ];
        let clear = ways.into_iter().filter(|way| *way).count() == 1;
        self.require(object, &raw.name, clear, || Problem::Uplink)?;
        let (interface, director) = (&raw.discovery_interface, &raw.director_name);
        if let Some(group) = &raw.discover {
            let director = director.as_ref();
            let director = director.map(|director| self.name(object, director));
            return Ok(Uplink::Discovered {
                meeting: self.meeting(object, group, interface.as_ref())?,
                director: director.transpose()?,
            });
        }
        self.without(
            object,
            "discovery-interface",
            interface.as_ref(),
            "discover",
        )?;
        self.without(object, "director-name", director.as_ref(), "discover")?;
        if raw.embedded {
            return Ok(Uplink::Embedded);
        }
        let addresses = self.addresses(object, &raw.director)?;
        self.require(object, &raw.name, addresses.len() <= PATHS_MAX, || {
            Problem::Links
        })?;
        Ok(Uplink::Director(addresses))
    }

    pub(crate) fn port(&self, object: &str, port: &raw::Text) -> Result<PortName> {
        self.at(object, port, port.get_ref().parse::<PortName>())
    }

    pub(crate) fn mtu(
        &self,
        object: &str,
        mtu: Option<&Spanned<u16>>,
        default: u16,
    ) -> Result<u16> {
        let Some(spanned) = mtu else {
            return Ok(default);
        };
        let mtu = *spanned.get_ref();
        self.require(object, spanned, (MTU_MIN..=MTU_MAX).contains(&mtu), || {
            Problem::Mtu { mtu }
        })?;
        Ok(mtu)
    }

    fn queues(&self, object: &str, queues: Option<&Spanned<u16>>, queues_max: u16) -> Result<u16> {
        let Some(spanned) = queues else { return Ok(1) };
        let queues = *spanned.get_ref();
        self.require(object, spanned, (1..=queues_max).contains(&queues), || {
            Problem::Queues { queues, queues_max }
        })?;
        Ok(queues)
    }

    fn san_ports(&mut self, ports: &[raw::SanPort]) -> Result<()> {
        let mut names = Owners::default();
        for raw in ports {
            let port = self.port("san-port", &raw.port)?;
            let object = format!("san-port {port}");
            self.at(&object, &raw.port, names.claim(&port, &object))?;
            self.require_san(&object, &raw.port, port)?;
            let budget = self.port_budget(&object, raw.rate.as_ref(), raw.reservable.as_ref())?;
            self.san_ports.push(SanPortConfig { port, budget });
        }
        Ok(())
    }

    /// Refuses an Ethernet port where a SAN port is meant.
    fn require_san(&self, object: &str, raw: &raw::Text, port: PortName) -> Result<()> {
        let ethernet = self
            .ethernet_ports
            .iter()
            .any(|ethernet| ethernet.has(port));
        self.require(object, raw, !ethernet && !port.is_lag(), || {
            Problem::NoSuchPort {
                kind: "SAN",
                port,
                next_step: "it is an Ethernet port, choose another",
            }
        })
    }

    fn luns(&mut self, luns: &[raw::Lun], shared: bool) -> Result<()> {
        let mut names = Owners::default();
        for raw in luns {
            let name = self.name("lun", &raw.name)?;
            let object = format!("lun {name}");
            self.at(&object, &raw.name, names.claim(&name, &object))?;
            let port = self.port(&object, &raw.port)?;
            self.require_san(&object, &raw.port, port)?;
            let block_bytes = raw
                .block_bytes
                .as_ref()
                .map_or(512, |bytes| *bytes.get_ref());
            if let Some(spanned) = &raw.block_bytes {
                let served = matches!(block_bytes, 512 | 4096);
                self.require(&object, spanned, served, || Problem::BlockBytes {
                    block_bytes,
                })?;
            }
            if let Some(serial) = &raw.serial {
                let text = serial.get_ref();
                let usable = (1..=SERIAL_BYTES_MAX).contains(&text.len())
                    && text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
                self.require(&object, serial, usable, || Problem::Serial {
                    serial: text.clone(),
                })?;
            }
            let delay_ms = raw.delay_ms.as_ref().map_or(0, |delay| *delay.get_ref());
            if let Some(spanned) = &raw.delay_ms {
                self.require(&object, spanned, delay_ms <= DELAY_MS_MAX, || {
                    Problem::Delay {
                        delay_ms,
                        delay_ms_max: DELAY_MS_MAX,
                    }
                })?;
            }
            if let Some(ram) = &raw.ram {
                self.require(&object, ram, !shared, || Problem::SharedRam)?;
            }
            let medium = self.medium(&object, raw)?;
            self.require(
                &object,
                &raw.name,
                !(shared && medium.passes_through()),
                || Problem::SharedPassThrough,
            )?;
            let timeout_default = if medium.passes_through() {
                TIMEOUT_PASS_THROUGH_DEFAULT
            } else {
                TIMEOUT_DEFAULT
            };
            let timeout = self.timeout(&object, raw.timeout.as_ref())?;
            self.luns.push(LunConfig {
                serial: raw.serial.as_ref().map_or(&name, Spanned::get_ref).clone(),
                medium,
                timeout: timeout.unwrap_or(timeout_default),
                name,
                port,
                block_bytes,
                read_only: raw.read_only,
                delay: Duration::from_millis(delay_ms),
            });
        }
        Ok(())
    }

    fn medium(&self, object: &str, raw: &raw::Lun) -> Result<MediumConfig> {
        let direct = raw.direct.as_ref().is_some_and(|direct| *direct.get_ref());
        let media = [
            raw.file
                .clone()
                .map(|path| MediumConfig::File { path, direct }),
            raw.block_device
                .clone()
                .map(|path| MediumConfig::BlockDevice { path, direct }),
            raw.qcow2.clone().map(|path| MediumConfig::Qcow2 { path }),
            self.size(object, raw.ram.as_ref())?
                .map(|bytes| MediumConfig::Ram { bytes }),
            self.size(object, raw.null.as_ref())?
                .map(|bytes| MediumConfig::Null { bytes }),
            self.iscsi(object, raw)?
                .map(|iscsi| MediumConfig::Iscsi(Box::new(iscsi))),
            raw.sg.clone().map(|path| MediumConfig::Sg { path }),
        ];
        let mut media = media.into_iter().flatten();
        let (Some(medium), None) = (media.next(), media.next()) else {
            return self.at(object, &raw.name, Err(Problem::Medium));
        };
        if let (Some(text), MediumConfig::Ram { bytes }) = (&raw.ram, &medium) {
            let too_large = || Problem::RamTooLarge {
                text: text.get_ref().clone(),
            };
            self.require(object, text, *bytes <= RAM_BYTES_MAX, too_large)?;
        }
        if let Some(direct) = &raw.direct {
            let has_file = matches!(
                medium,
                MediumConfig::File { .. } | MediumConfig::BlockDevice { .. }
            );
            self.require(object, direct, has_file, || Problem::DirectWithoutFile)?;
        }
        if medium.passes_through() {
            self.require_no_words_of_blocks(object, raw)?;
        }
        Ok(medium)
    }

    fn size(&self, object: &str, text: Option<&raw::Text>) -> Result<Option<u64>> {
        let size = text.map(|text| {
            let problem = || Problem::Size {
                text: text.get_ref().clone(),
            };
            self.at(object, text, parse_size(text.get_ref()).ok_or_else(problem))
        });
        size.transpose()
    }

    fn timeout(&self, object: &str, text: Option<&raw::Text>) -> Result<Option<Duration>> {
        let Some(text) = text else { return Ok(None) };
        let problem = || Problem::Timeout {
            text: text.get_ref().clone(),
        };
        self.at(
            object,
            text,
            parse_timeout(text.get_ref()).ok_or_else(problem),
        )
        .map(Some)
    }

    fn backing_files(&self, object: &str, files: &[raw::Text]) -> Result<Vec<PathBuf>> {
        let absolute = |text| self.absolute(object, text);
        files.iter().map(absolute).collect()
    }

    fn absolute(&self, object: &str, text: &raw::Text) -> Result<PathBuf> {
        let path = text.get_ref();
        self.require(object, text, path.starts_with('/'), || {
            Problem::RelativePath { path: path.clone() }
        })?;
        Ok(PathBuf::from(path))
    }

    fn downlinks(&self, raw: &raw::Lab) -> Result<BTreeMap<String, LinkBudget>> {
        let mut names = Owners::default();
        let mut downlinks = BTreeMap::new();
        for link in &raw.director.link {
            let host = link.host.get_ref();
            let object = format!("director link to {host}");
            let known = raw.host.iter().any(|known| known.name.get_ref() == host);
            self.require(&object, &link.host, known, || Problem::NoSuchHost {
                host: host.clone(),
            })?;
            self.at(&object, &link.host, names.claim(host, &object))?;
            let hop = format!("{host} downlink");
            let budget = self.link_budget(&object, hop, link.words())?;
            downlinks.insert(host.clone(), budget);
        }
        Ok(downlinks)
    }

    fn host(
        &mut self,
        raw: &raw::Host,
        downlinks: &BTreeMap<String, LinkBudget>,
        names: &mut Owners<String>,
    ) -> Result<HostConfig> {
        let name = self.name("host", &raw.name)?;
        let object = format!("host {name}");
        self.at(&object, &raw.name, names.claim(&name, &object))?;
        let uplink = self.uplink(&object, raw)?;
        let standby_director = self.addresses(&object, &raw.standby_director)?;
        let few = standby_director.len() <= PATHS_MAX;
        self.require(&object, &raw.name, few, || Problem::Links)?;
        let clear = standby_director.is_empty() || !raw.embedded;
        self.require(&object, &raw.name, clear, || Problem::StandbyOfEmbedded)?;
        let path_silence = raw.path_silence_ms.as_ref();
        if let Some(millis) = path_silence {
            let in_range = (10..=2000).contains(millis.get_ref());
            self.require(&object, millis, in_range, || Problem::PathSilence)?;
        }
        let path_silence =
            path_silence.map(|millis| Duration::from_millis((*millis.get_ref()).into()));
        let budget = self.link_budget(&object, format!("{name} uplink"), raw.words())?;
        let downlink = match downlinks.get(&name) {
            Some(downlink) => downlink.clone(),
            None => self.link_budget(&object, format!("{name} downlink"), raw.words())?,
        };
        let vms = raw.vm.iter().map(|vm| self.vm(vm)).collect::<Result<_>>()?;
        Ok(HostConfig {
            name,
            uplink,
            standby_director,
            spread: raw.spread,
            path_silence,
            busy_poll: Duration::from_micros(raw.busy_poll_us.into()),
            hold_down: raw
                .hold_down_ms
                .map(|millis| Duration::from_millis(millis.into())),
            run_dir: raw.run_dir.clone(),
            budget,
            downlink,
            vms,
        })
    }

    fn edge_switches(
        &self,
        switches: &[raw::EdgeSwitch],
        hosts: &[HostConfig],
    ) -> Result<Vec<EdgeSwitchConfig>> {
        let mut names = Owners::default();
        let mut configs = Vec::new();
        for raw in switches {
            let name = self.name("edge-switch", &raw.name)?;
            let object = format!("edge-switch {name}");
            self.at(&object, &raw.name, names.claim(&name, &object))?;
            for (key, addresses) in [("listen", &raw.listen), ("director", &raw.director)] {
                self.require(&object, &raw.name, !addresses.is_empty(), || {
                    Problem::NoAddress { key }
                })?;
            }
            let ports = raw.ports.as_ref();
            let count = ports.map_or(EDGE_SWITCH_PORTS_MAX, |ports| *ports.get_ref());
            if let Some(spanned) = ports {
                let there = (1..=EDGE_SWITCH_PORTS_MAX).contains(&count);
                self.require(&object, spanned, there, || Problem::Ports { ports: count })?;
            }
            let mut behind = Owners::default();
            for host in &raw.hosts {
                let name = host.get_ref();
                self.at(&object, host, behind.claim(name, &object))?;
                let known = hosts.iter().find(|known| known.name == *name);
                let known = known.ok_or_else(|| Problem::NoSuchHost { host: name.clone() });
                let known = self.at(&object, host, known)?;
                let linked = known.uplink != Uplink::Embedded;
                self.require(&object, host, linked, || Problem::EmbeddedHost {
                    host: name.clone(),
                })?;
            }
            configs.push(EdgeSwitchConfig {
                listen: self.addresses(&object, &raw.listen)?,
                director: self.addresses(&object, &raw.director)?,
                budget: self.link_budget(&object, object.clone(), raw.words())?,
                hosts: raw
                    .hosts
                    .iter()
                    .map(|host| host.get_ref().clone())
                    .collect(),
                ports: count,
                name,
            });
        }
        Ok(configs)
    }

    /// Where VMs move to.
    fn moves(&self, raw: &[raw::Host], hosts: &[HostConfig]) -> Result<()> {
        let vms = raw.iter().zip(hosts);
        let vms = vms.flat_map(|(raw, host)| {
            let vms = raw.vm.iter().zip(&host.vms);
            vms.map(move |(raw, vm)| (raw, host, vm))
        });
        for (raw, host, vm) in vms {
            let Some(target) = &raw.moves_to else {
                continue;
            };
            let object = format!("vm {}", vm.name);
            let name = target.get_ref();
            self.require(&object, target, *name != host.name, || {
                Problem::MovesNowhere
            })?;
            let known = hosts.iter().any(|host| host.name == *name);
            self.require(&object, target, known, || Problem::NoSuchHost {
                host: name.clone(),
            })?;
            self.require(&object, target, vm.vhbas.is_empty(), || {
                Problem::MovesWithVhba
            })?;
        }
        Ok(())
    }

    fn vm(&mut self, raw: &raw::Vm) -> Result<VmConfig> {
        let name = self.name("vm", &raw.name)?;
        let object = format!("vm {name}");
        let claimed = self.vm_names.claim(&name, &object);
        self.at(&object, &raw.name, claimed)?;
        let mut devices = Owners::default();
        let vnics = raw
            .vnic
            .iter()
            .map(|vnic| self.vnic(vnic, &name, &mut devices));
        let vnics: Vec<VnicConfig> = vnics.collect::<Result<_>>()?;
        let vhbas = raw
            .vhba
            .iter()
            .map(|vhba| self.vhba(vhba, &name, &mut devices));
        let vhbas: Vec<VhbaConfig> = vhbas.collect::<Result<_>>()?;
        let mut slots = Owners::default();
        let of_vnics = vnics.iter().zip(&raw.vnic);
        let of_vnics = of_vnics.map(|(it, raw)| ("vnic", &it.name, &raw.pci_slot));
        let of_vhbas = vhbas.iter().zip(&raw.vhba);
        let of_vhbas = of_vhbas.map(|(it, raw)| ("vhba", &it.name, &raw.pci_slot));
        for (kind, name, slot) in of_vnics.chain(of_vhbas) {
            if let Some(spanned) = slot {
                let (object, slot) = (format!("{kind} {name}"), *spanned.get_ref());
                self.require(&object, spanned, slot < PCI_SLOTS, || Problem::PciSlot {
                    slot,
                })?;
                let claimed = slots.claim(&slot, &object);
                self.at(&object, spanned, claimed)?;
            }
        }
        let mut vm = VmConfig {
            vhbas,
            moves_to: raw.moves_to.as_ref().map(|host| host.get_ref().clone()),
            name,
            qmp: raw.qmp.clone(),
            vnics,
            ingress: VmRate::default(),
            egress: VmRate::default(),
        };
        vm.ingress = self.vm_rate(&vm, Direction::Ingress, raw.ingress.as_ref())?;
        vm.egress = self.vm_rate(&vm, Direction::Egress, raw.egress.as_ref())?;
        Ok(vm)
    }

    /// Name and id of a device, checked and claimed.
    fn device(
        &mut self,
        kind: &str,
        raw: (&raw::Text, &Spanned<u32>),
        vm: &str,
        devices: &mut Owners<String>,
    ) -> Result<(String, String, DeviceId)> {
        let (raw_name, raw_id) = raw;
        let name = format!(
            "{}.{vm}",
            self.name(&format!("{kind} of vm {vm}"), raw_name)?
        );
        let object = format!("{kind} {name}");
        self.at(&object, raw_name, devices.claim(&name, &object))?;
        let id = DeviceId(*raw_id.get_ref());
        self.require(&object, raw_id, id.0 != 0, || Problem::DeviceIdIsZero)?;
        let claimed = self.device_ids.claim(&id, &object);
        self.at(&object, raw_id, claimed)?;
        Ok((name, object, id))
    }

    fn vnic(
        &mut self,
        raw: &raw::Vnic,
        vm: &str,
        devices: &mut Owners<String>,
    ) -> Result<VnicConfig> {
        let (name, object, id) = self.device("vnic", (&raw.name, &raw.id), vm, devices)?;
        let port = self.port(&object, &raw.port)?;
        let ethernet = self
            .ethernet_ports
            .iter()
            .find(|ethernet| ethernet.port == port);
        let ethernet_is_private = ethernet.is_some_and(EthernetPortConfig::is_private);
        let san = self.luns.iter().any(|lun| lun.port == port);
        let port_mtu = self.at(
            &object,
            &raw.port,
            ethernet
                .map(|ethernet| ethernet.mtu)
                .ok_or(Problem::NoSuchPort {
                    kind: "Ethernet",
                    port,
                    next_step: if san {
                        "it is a SAN port, choose another"
                    } else {
                        "add an [[ethernet-port]]"
                    },
                }),
        )?;
        let mac = self.at(&object, &raw.mac, raw.mac.get_ref().parse::<MacAddress>())?;
        self.require(&object, &raw.mac, mac.is_unicast(), || {
            Problem::NotUnicast { mac }
        })?;
        let claimed = self.macs.claim(&mac, &object);
        self.at(&object, &raw.mac, claimed)?;
        let mtu = self.mtu(&object, raw.mtu.as_ref(), port_mtu)?;
        if let Some(spanned) = &raw.mtu {
            self.require(&object, spanned, mtu <= port_mtu, || {
                Problem::MtuAbovePort {
                    mtu,
                    port,
                    port_mtu,
                }
            })?;
        }
        let static_address = self.static_address(&object, port, mtu, raw)?;
        let kind = PolicyKind::Network;
        let (ingress, ingress_policy) =
            self.rate(&object, kind, Direction::Ingress, raw.ingress.as_ref())?;
        let (egress, egress_policy) =
            self.rate(&object, kind, Direction::Egress, raw.egress.as_ref())?;
        Ok(VnicConfig {
            name,
            id,
            generation: raw.generation,
            port,
            up: self.state(&object, raw.state.as_ref())?,
            mac,
            mtu,
            queues: self.queues(&object, raw.queues.as_ref(), VNIC_QUEUES_MAX)?,
            pci_slot: raw.pci_slot.as_ref().map(|slot| *slot.get_ref()),
            vlans: self.vlan_membership(&object, raw)?,
            isolated: self.isolated(&object, raw, ethernet_is_private, port)?,
            addresses: self.prefixes(&object, &raw.addresses)?,
            trusted: raw.trusted,
            access_in: self.access_list(&object, raw.access_in.as_ref(), &self.access_lists)?,
            access_out: self.access_list(&object, raw.access_out.as_ref(), &self.access_lists)?,
            storm: self.storm_limits(
                &object,
                raw.broadcast_limit.as_ref(),
                raw.multicast_limit.as_ref(),
            )?,
            mirror_to: raw.mirror_to.as_ref().map(|to| to.get_ref().clone()),
            ingress,
            ingress_policy,
            egress,
            egress_policy,
            static_address,
        })
    }

    fn vhba(
        &mut self,
        raw: &raw::Vhba,
        vm: &str,
        devices: &mut Owners<String>,
    ) -> Result<VhbaConfig> {
        let (name, object, id) = self.device("vhba", (&raw.name, &raw.id), vm, devices)?;
        let port = self.port(&object, &raw.port)?;
        self.require_san(&object, &raw.port, port)?;
        let known = self.luns.iter().any(|lun| lun.port == port);
        self.require(&object, &raw.port, known, || Problem::NoSuchPort {
            kind: "SAN",
            port,
            next_step: "add a [[lun]] behind it",
        })?;
        let wwpn = match &raw.wwpn {
            Some(text) => self.at(&object, text, text.get_ref().parse::<Wwpn>())?,
            None => Wwpn::of_device(id.0),
        };
        let claimed = self.wwpns.claim(&wwpn, &object);
        match &raw.wwpn {
            Some(text) => self.at(&object, text, claimed)?,
            None => self.at(&object, &raw.id, claimed)?,
        }
        let mut numbers = Owners::default();
        let mut luns = Vec::new();
        for mapping in &raw.luns {
            luns.push(self.lun_mapping(&object, port, mapping, &mut numbers)?);
        }
        let kind = PolicyKind::San;
        let (ingress, ingress_policy) =
            self.rate(&object, kind, Direction::Ingress, raw.ingress.as_ref())?;
        let (egress, egress_policy) =
            self.rate(&object, kind, Direction::Egress, raw.egress.as_ref())?;
        Ok(VhbaConfig {
            name,
            id,
            generation: raw.generation,
            port,
            wwpn,
            queues: self.queues(&object, raw.queues.as_ref(), VHBA_QUEUES_MAX)?,
            pci_slot: raw.pci_slot.as_ref().map(|slot| *slot.get_ref()),
            luns,
            ingress,
            ingress_policy,
            egress,
            egress_policy,
        })
    }

    fn lun_mapping(
        &self,
        object: &str,
        port: PortName,
        raw: &raw::LunMapping,
        numbers: &mut Owners<u16>,
    ) -> Result<LunMapping> {
        let lun = *raw.lun.get_ref();
        self.require(object, &raw.lun, lun <= LUN_MAX, || Problem::Lun { lun })?;
        let name = raw.name.get_ref();
        self.at(
            object,
            &raw.lun,
            numbers.claim(&lun, &format!("lun {name}")),
        )?;
        let unit = self.luns.iter().find(|unit| unit.name == *name);
        let no_such = || Problem::NoSuchLun { name: name.clone() };
        let lun_port = self.at(
            object,
            &raw.name,
            unit.map(|unit| unit.port).ok_or_else(no_such),
        )?;
        self.require(object, &raw.name, lun_port == port, || {
            Problem::LunBehindOtherPort {
                name: name.clone(),
                lun_port,
                port,
            }
        })?;
        Ok(LunMapping {
            lun,
            name: name.clone(),
        })
    }
}

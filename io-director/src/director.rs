//! Who may attach what: hosts, their sessions and devices; opening and closing in order.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use fabric_config::{HostConfig, LabConfig, PortName};
use fabric_transport::acceptor::Acceptor;
use fabric_transport::control::Windows;
use fabric_transport::endpoint::{DeviceGrant, Endpoint, VmGrant, session_config};
use fabric_transport::link::LinkAddress;
use fabric_transport::session::{CloseReason, Role};
use fabric_transport::{DeviceId, Directory, EndpointConfig, LaneClient};
use qos::{AdmissionError, DeviceRate, LinkBudget};
use qos_monitor::{Hop, LinkHop};

use crate::counters::Snapshot;
use crate::ethernet::{self, EthernetPort, TapError};
use crate::san::{self, Lun, SanPort, Vhba, VhbaError};

/// Why a director cannot start; everything that was opened is closed again.
#[derive(Debug, thiserror::Error)]
pub enum DirectorError {
    /// An Ethernet port.
    #[error("ethernet-port {port}")]
    EthernetPort {
        /// Its name.
        port: PortName,
        /// Why.
        #[source]
        source: TapError,
    },
    /// A logical unit.
    #[error("lun {name}")]
    Lun {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: VhbaError,
    },
    /// A vHBA.
    #[error("vhba {name}")]
    Vhba {
        /// Its object name.
        name: String,
        /// Why.
        #[source]
        source: VhbaError,
    },
    /// An address.
    #[error("director cannot listen on {address}; stop what uses it or correct listen")]
    Listen {
        /// The address.
        address: LinkAddress,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// An I/O director: its ports, its logical units and the sessions of its hosts.
///
/// Dropped, it closes sessions, then ports and files.
#[derive(Debug)]
pub struct Director {
    // Fields are dropped in this order.
    acceptors: Vec<Acceptor>,
    books: Arc<Books>,
    listen: Vec<LinkAddress>,
    endpoint: EndpointConfig,
}

/// What sessions ask for: fixed at the start, but for the sessions themselves.
#[derive(Debug)]
struct Books {
    hosts: HashMap<String, Host>,
    devices: HashMap<DeviceId, Device>,
    ethernet_ports: BTreeMap<PortName, EthernetPort>,
    vhbas: BTreeMap<DeviceId, Vhba>,
    /// Their threads end after the vHBAs that wait for them.
    san_ports: BTreeMap<PortName, SanPort>,
}

#[derive(Debug)]
struct Host {
    downlink: LinkBudget,
    session: Mutex<HostSession>,
}

#[derive(Debug, Default)]
struct HostSession {
    endpoint: Option<Arc<Endpoint>>,
    epoch: u16,
}

#[derive(Debug)]
struct Device {
    name: String,
    host: String,
    generation: u32,
    vm: VmGrant,
    egress: DeviceRate,
    kind: DeviceKind,
}

#[derive(Debug, Clone, Copy)]
enum DeviceKind {
    Vnic(PortName),
    Vhba,
}

impl Director {
    /// Opens files, then TAP interfaces. Hosts are served through [`Self::listen`] or
    /// [`Self::directory`].
    ///
    /// # Errors
    /// [`DirectorError`]; what was opened is closed again.
    pub fn start(config: &LabConfig) -> Result<Self, DirectorError> {
        let mut luns = BTreeMap::new();
        for lun in &config.luns {
            let open = Lun::open(lun).map_err(|source| DirectorError::Lun {
                name: lun.name.clone(),
                source,
            })?;
            luns.insert(lun.name.clone(), Arc::new(open));
        }
        let mut san_ports = BTreeMap::new();
        let mut vhbas = BTreeMap::new();
        for vhba in config.hosts.iter().flat_map(HostConfig::vhbas) {
            let failed = |source| DirectorError::Vhba {
                name: vhba.name.clone(),
                source,
            };
            let port = san_port(config, vhba.port, &mut san_ports).map_err(failed)?;
            let started = Vhba::start(vhba, &luns, port).map_err(failed)?;
            vhbas.insert(vhba.id, started);
        }
        let mut ethernet_ports = BTreeMap::new();
        for port in &config.ethernet_ports {
            let vms = config.hosts.iter().flat_map(|host| &host.vms);
            let vnics = vms.flat_map(|vm| vm.vnics.iter().map(move |vnic| (vm, vnic)));
            let vnics = vnics.filter(|(_, vnic)| vnic.port == port.port);
            let started =
                EthernetPort::start(port, vnics).map_err(|source| DirectorError::EthernetPort {
                    port: port.port,
                    source,
                })?;
            tracing::info!(port = %port.port, tap = port.tap, mtu = port.mtu, "ethernet port opened");
            ethernet_ports.insert(port.port, started);
        }
        let hosts = config.hosts.iter().map(|host| {
            let (downlink, session) = (host.downlink.clone(), Mutex::default());
            (host.name.clone(), Host { downlink, session })
        });
        let books = Books {
            hosts: hosts.collect(),
            devices: devices(config).collect(),
            ethernet_ports,
            vhbas,
            san_ports,
        };
        tracing::info!(
            director = config.director.name,
            luns = luns.len(),
            vhbas = books.vhbas.len(),
            ethernet_ports = books.ethernet_ports.len(),
            "director started"
        );
        let endpoint = EndpointConfig {
            role: Role::Director,
            session: session_config(&config.director.name),
            // Until the host has said who it is; nothing can be attached before.
            budget: LinkBudget::new("unknown host downlink", qos::BitRate::ZERO),
        };
        Ok(Self {
            acceptors: Vec::new(),
            books: Arc::new(books),
            listen: config.director.listen.clone(),
            endpoint,
        })
    }

    /// Opens the files and interfaces that `config` needs and closes them again.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn check(config: &LabConfig) -> Result<(), DirectorError> {
        Self::start(config).map(drop)
    }

    /// Who answers the sessions of hosts: for an endpoint with an in-process link.
    #[must_use]
    pub fn directory(&self) -> Arc<dyn Directory> {
        self.books.clone()
    }

    /// What an endpoint of this director is; the budget is set when the host has greeted.
    #[must_use]
    pub fn endpoint_config(&self) -> EndpointConfig {
        self.endpoint.clone()
    }

    /// Listens on all addresses of the configuration.
    ///
    /// # Errors
    /// [`DirectorError::Listen`]; then none is listened on.
    pub fn listen(&mut self) -> Result<(), DirectorError> {
        let mut acceptors = Vec::new();
        for address in &self.listen {
            let endpoint = self.endpoint.clone();
            let factory = Box::new(move || endpoint.clone());
            let acceptor =
                Acceptor::start(address, factory, self.directory()).map_err(|source| {
                    DirectorError::Listen {
                        address: address.clone(),
                        source,
                    }
                })?;
            tracing::info!(address = %acceptor.address(), "director listens");
            acceptors.push(acceptor);
        }
        self.acceptors = acceptors;
        Ok(())
    }

    /// Where it listens, with the ports that the kernel chose for port 0.
    pub fn addresses(&self) -> impl Iterator<Item = &LinkAddress> {
        self.acceptors.iter().map(Acceptor::address)
    }

    /// Gives a device other words at its port, in force at once; what waits there stays, in its
    /// order. The links of its host have schedulers of their own. A port without a rate, or a
    /// device that is not there, has nothing to change.
    ///
    /// # Errors
    /// The port cannot carry them; nothing has changed.
    pub fn set_port_rates(
        &self,
        device: DeviceId,
        ingress: DeviceRate,
        egress: DeviceRate,
    ) -> Result<(), AdmissionError> {
        match self.books.devices.get(&device).map(|device| device.kind) {
            Some(DeviceKind::Vnic(port)) => match self.books.ethernet_ports.get(&port) {
                Some(port) => port.set_rates(device, ingress, egress),
                None => Ok(()),
            },
            Some(DeviceKind::Vhba) => match self.books.vhbas.get(&device) {
                Some(vhba) => vhba.set_rates(ingress, egress),
                None => Ok(()),
            },
            None => Ok(()),
        }
    }

    /// Every scheduler of the director: the link to each host, and those of its ports.
    #[must_use]
    pub fn hops(&self) -> Vec<Arc<dyn Hop>> {
        let mut names: Vec<_> = self.books.hosts.keys().collect();
        names.sort();
        let links = names.into_iter().filter_map(|name| self.link_hop(name));
        let ethernet_ports = self.books.ethernet_ports.values();
        let san_ports = self.books.san_ports.values();
        links
            .chain(ethernet_ports.flat_map(EthernetPort::hops))
            .chain(san_ports.flat_map(SanPort::hops))
            .collect()
    }

    fn link_hop(&self, host: &str) -> Option<Arc<dyn Hop>> {
        let devices = self.books.devices.iter();
        let devices = devices.filter(|(_, device)| device.host == host);
        let devices = devices.map(|(id, device)| (*id, device.name.clone()));
        let hop = self.books.hosts.get(host)?.downlink.hop();
        let (books, host) = (Arc::downgrade(&self.books), host.to_owned());
        let present = move || books.upgrade()?.hosts.get(&host)?.lock().endpoint.clone();
        Some(Arc::new(LinkHop::new(hop, devices.collect(), present)))
    }

    /// The counters of all ports and devices.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Snapshot> {
        let ports = self
            .books
            .ethernet_ports
            .values()
            .flat_map(EthernetPort::snapshot);
        ports
            .chain(self.books.vhbas.values().map(Vhba::snapshot))
            .collect()
    }
}

impl Drop for Director {
    fn drop(&mut self) {
        self.acceptors.clear();
        // Sessions of an embedded director have no acceptor that would close them.
        for host in self.books.hosts.values() {
            if let Some(endpoint) = host.lock().endpoint.take() {
                endpoint.close("director stops");
            }
        }
    }
}

/// The SAN port of a vHBA, started for the first of them.
fn san_port<'a>(
    config: &LabConfig,
    port: PortName,
    started: &'a mut BTreeMap<PortName, SanPort>,
) -> Result<&'a SanPort, VhbaError> {
    match started.entry(port) {
        Entry::Occupied(known) => Ok(known.into_mut()),
        Entry::Vacant(vacant) => {
            let budget = config.san_port(port).and_then(|port| port.budget.as_ref());
            let vms = config.hosts.iter().flat_map(|host| &host.vms);
            let vhbas = vms.flat_map(|vm| vm.vhbas.iter().map(move |vhba| (vm, vhba)));
            let vhbas = vhbas.filter(|(_, vhba)| vhba.port == port);
            let started = SanPort::start(port, budget, vhbas).map_err(VhbaError::Thread)?;
            Ok(vacant.insert(started))
        }
    }
}

fn devices(config: &LabConfig) -> impl Iterator<Item = (DeviceId, Device)> {
    let vms = config
        .hosts
        .iter()
        .flat_map(|host| host.vms.iter().map(move |vm| (host, vm)));
    vms.flat_map(|(host, vm)| {
        let vnics = vm.vnics.iter().map(|vnic| {
            let kind = DeviceKind::Vnic(vnic.port);
            (&vnic.name, vnic.id, vnic.generation, vnic.egress, kind)
        });
        let vhbas = vm.vhbas.iter();
        let vhbas = vhbas.map(|vhba| {
            let kind = DeviceKind::Vhba;
            (&vhba.name, vhba.id, vhba.generation, vhba.egress, kind)
        });
        vnics
            .chain(vhbas)
            .map(|(name, id, generation, egress, kind)| {
                let device = Device {
                    name: name.clone(),
                    host: host.name.clone(),
                    generation,
                    vm: VmGrant {
                        name: vm.name.clone(),
                        rate: vm.egress,
                    },
                    egress,
                    kind,
                };
                (id, device)
            })
    })
}

/// Whether `epoch` came after `other` (serial numbers, RFC 1982: within half of the circle).
pub(crate) fn epoch_is_later(epoch: u16, other: u16) -> bool {
    (1..0x8000).contains(&epoch.wrapping_sub(other))
}

/// The epoch of the session after one with `last`.
///
/// Epochs are serial numbers: they go around, and order is that of [`epoch_is_later`]. Inside of a
/// process each is later than the one before. Nothing is kept over a restart; instead an epoch is
/// at least the seconds of the clock modulo 2^16, so the first one after a restart is later than
/// all before unless a host began more than one session each second, the clock was set back, or
/// the director was away for more than nine hours. Then nothing of the old sessions is left: each
/// had a link of its own, which died with the process, and the instance number of WELCOME differs.
fn next_epoch(last: u16, unix_seconds: u64) -> u16 {
    // 0 is no epoch: it stands in frames before WELCOME.
    let next = last.wrapping_add(1).max(1);
    let [.., high, low] = unix_seconds.to_be_bytes();
    let clock = u16::from_be_bytes([high, low]).max(1);
    // Later than `next` alone could be half of the circle away from `last`, which is not later.
    let ahead = epoch_is_later(clock, next) && epoch_is_later(clock, last);
    if last == 0 || ahead { clock } else { next }
}

/// What the operator reads when a port cannot carry a device.
fn refusal(error: &AdmissionError) -> String {
    let next_step = match error {
        AdmissionError::InvalidRate { .. } => "correct cir and pir",
        AdmissionError::Oversubscribed { .. } => "lower a cir on this port or detach a device",
        AdmissionError::TooManyDevices { .. } => "detach a device first",
        // These say it themselves.
        _ => return error.to_string(),
    };
    format!("{}; {next_step}", error.with_source())
}

impl Host {
    fn lock(&self) -> MutexGuard<'_, HostSession> {
        // Whole between any two statements: going on is safe.
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Directory for Books {
    fn greeted(&self, endpoint: &Arc<Endpoint>, host: &str, instance: u64) -> Result<u16, String> {
        let Some(known) = self.hosts.get(host) else {
            return Err(format!(
                "host {host:?} is unknown; add a [[host]] to the lab file"
            ));
        };
        endpoint.set_budget(known.downlink.clone());
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let mut session = known.lock();
        session.epoch = next_epoch(session.epoch, unix.as_secs());
        let epoch = session.epoch;
        let older = session.endpoint.replace(endpoint.clone());
        drop(session);
        if let Some(older) = older {
            tracing::warn!(
                host,
                instance,
                "session replaced by a newer one of the same host"
            );
            older.close("replaced by a newer session of this host");
        }
        Ok(epoch)
    }

    fn active(&self, _endpoint: &Arc<Endpoint>, _director: &str) {
        // The host's side of a session; a director has none.
    }

    fn attach(&self, host: &str, device: DeviceId, generation: u32) -> Result<DeviceGrant, String> {
        // One answer for a device that is not there and one that is another host's: a host learns
        // nothing about others.
        let known = self.devices.get(&device).filter(|known| known.host == host);
        let Some(known) = known else {
            return Err(format!(
                "{device} is no device of host {host}; correct the lab file"
            ));
        };
        if known.generation != generation {
            return Err(format!(
                "{device} has generation {}, not {generation}; both sides need the same lab file",
                known.generation
            ));
        }
        let granted: Option<(Windows, Arc<dyn LaneClient>)> = match known.kind {
            DeviceKind::Vnic(port) => {
                let port = self.ethernet_ports.get(&port);
                let client = port.map(|port| port.client(device)).transpose();
                let client = client.map_err(|error| refusal(&error))?.flatten();
                client.map(|client| (ethernet::WINDOWS, client))
            }
            DeviceKind::Vhba => {
                let client = self.vhbas.get(&device).map(Vhba::client).transpose();
                let client = client.map_err(|error| refusal(&error))?;
                client.map(|client| (san::WINDOWS, client))
            }
        };
        let (windows, client) = granted.ok_or_else(|| format!("{device} has no port"))?;
        Ok(DeviceGrant {
            rate: known.egress,
            vm: Some(known.vm.clone()),
            windows,
            client,
        })
    }

    fn refused(&self, _device: DeviceId, _reason: &str) {
        // The host's side of a session; a director has none.
    }

    fn closed(&self, endpoint: &Arc<Endpoint>, _reason: &CloseReason) {
        for host in self.hosts.values() {
            let mut session = host.lock();
            if session
                .endpoint
                .as_ref()
                .is_some_and(|known| Arc::ptr_eq(known, endpoint))
            {
                session.endpoint = None;
            }
        }
    }
}

#[cfg(test)]
mod tests;

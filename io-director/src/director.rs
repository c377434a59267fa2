//! Who may attach what: hosts, their sessions and devices; opening and closing in order.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use fabric_bypass::DirectTarget;
use fabric_config::{EdgeSwitchConfig, HostConfig, LabConfig, LinkSecurity, PortName};
use fabric_transport::acceptor::{Acceptor, Admission};
use fabric_transport::control::Windows;
use fabric_transport::discovery::Meeting;
use fabric_transport::discovery::responder::{Responder, ResponderConfig};
use fabric_transport::endpoint::{DeviceGrant, VmGrant, session_config};
use fabric_transport::link::{Link, LinkAddress, LinkOptions, TlsError};
use fabric_transport::{DeviceId, Directory, LaneClient};
use qos::{AdmissionError, DeviceRate, LinkBudget};
use qos_monitor::{Hop, LinkHop, Watched};

use crate::counters::Snapshot;
use crate::ethernet::{self, EthernetPort, TapError};
use crate::san::{self, ClientError, Lun, LunWatch, SanPort, SanView, Vhba, VhbaError};

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
    /// Its certificate.
    #[error("certificate of director {name} cannot be used")]
    Certificate {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: TlsError,
    },
    /// The sessions of hosts.
    #[error("director cannot serve hosts")]
    Sessions(#[source] io::Error),
    /// An address.
    #[error("director cannot listen on {address}; stop what uses it or correct listen")]
    Listen {
        /// The address.
        address: LinkAddress,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The group that hosts ask.
    #[error(
        "director cannot be discovered on {meeting}; write an address of an interface as \
        discovery-interface, or stop what uses the port"
    )]
    Discovery {
        /// The group.
        meeting: Meeting,
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
    responder: Option<Responder>,
    acceptor: Acceptor,
    _watch: LunWatch,
    books: Arc<Books>,
    name: String,
    links: LinkSecurity,
    instance: u64,
    listen: Vec<LinkAddress>,
    discoverable: Option<Meeting>,
    addresses: Vec<LinkAddress>,
}

/// What sessions ask for, fixed at the start.
#[derive(Debug)]
struct Books {
    downlinks: HashMap<String, LinkBudget>,
    edge_switches: Vec<EdgeSwitchConfig>,
    devices: HashMap<DeviceId, Device>,
    ethernet_ports: BTreeMap<PortName, EthernetPort>,
    luns: BTreeMap<String, Arc<Lun>>,
    vhbas: BTreeMap<DeviceId, Vhba>,
    /// Their threads end after the vHBAs that wait for them.
    san_ports: BTreeMap<PortName, SanPort>,
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
    /// [`Self::link_receiver`].
    ///
    /// # Errors
    /// [`DirectorError`]; what was opened is closed again.
    pub fn start(config: &LabConfig) -> Result<Self, DirectorError> {
        let mut luns = BTreeMap::new();
        for lun in &config.luns {
            let open = Lun::open(lun, &config.director).map_err(|source| DirectorError::Lun {
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
        let hosts = config.hosts.iter();
        let downlinks = hosts.map(|host| (host.name.clone(), host.downlink.clone()));
        let books = Books {
            downlinks: downlinks.collect(),
            edge_switches: config.edge_switches.clone(),
            devices: devices(config).collect(),
            ethernet_ports,
            luns,
            vhbas,
            san_ports,
        };
        tracing::info!(
            director = config.director.name,
            luns = books.luns.len(),
            vhbas = books.vhbas.len(),
            ethernet_ports = books.ethernet_ports.len(),
            "director started"
        );
        let books = Arc::new(books);
        let mut session = session_config(&config.director.name);
        session.busy_poll = config.director.busy_poll;
        if config.director.shared_luns {
            // The other director gets the LUNs of a host that is gone after this.
            session.resume_max = Duration::from_secs(1);
        }
        let instance = session.instance;
        let watch =
            LunWatch::start(books.luns.values().cloned()).map_err(DirectorError::Sessions)?;
        let acceptor = Acceptor::start(session, books.clone(), books.clone())
            .map_err(DirectorError::Sessions)?;
        Ok(Self {
            responder: None,
            acceptor,
            _watch: watch,
            books,
            name: config.director.name.clone(),
            links: config.links.clone(),
            instance,
            discoverable: config.director.discoverable,
            listen: config.director.listen.clone(),
            addresses: Vec::new(),
        })
    }

    /// Opens the files and interfaces that `config` needs and closes them again, and reads the
    /// certificate.
    ///
    /// # Errors
    /// As [`Self::start`], and [`DirectorError::Certificate`].
    pub fn check(config: &LabConfig) -> Result<(), DirectorError> {
        Self::start(config)?.link_options().map(drop)
    }

    /// Takes the links of a host in the same process.
    #[must_use]
    pub fn link_receiver(&self) -> Box<dyn Fn(Link) + Send + Sync> {
        self.acceptor.receiver()
    }

    /// The vHBA of that number, for a host agent in the same process; `None` if there is none.
    #[must_use]
    pub fn direct_target(&self, device: DeviceId) -> Option<Arc<dyn DirectTarget>> {
        self.books.vhbas.get(&device).map(Vhba::direct_target)
    }

    /// Who answers for the devices, for sessions without a handshake.
    #[cfg(test)]
    pub(crate) fn books(&self) -> Arc<dyn Directory> {
        self.books.clone()
    }

    /// Listens on all addresses of the configuration, and then lets hosts find it if it says so.
    ///
    /// # Errors
    /// [`DirectorError::Certificate`]; [`DirectorError::Listen`] for the first that is not free;
    /// [`DirectorError::Discovery`].
    pub fn listen(&mut self) -> Result<(), DirectorError> {
        let options = self.link_options()?;
        for address in &self.listen {
            let bound = self.acceptor.listen(address, &options).map_err(|source| {
                DirectorError::Listen {
                    address: address.clone(),
                    source,
                }
            })?;
            tracing::info!(address = %bound, "director listens");
            self.addresses.push(bound);
        }
        if let Some(meeting) = self.discoverable {
            let config = ResponderConfig {
                meeting,
                director: self.name.clone(),
                instance: self.instance,
                addresses: self.addresses.clone(),
            };
            let books = self.books.clone();
            let knows = Box::new(move |host: &str| books.downlinks.contains_key(host));
            let responder = Responder::start(config, knows)
                .map_err(|source| DirectorError::Discovery { meeting, source })?;
            tracing::info!(%meeting, "director can be discovered");
            self.responder = Some(responder);
        }
        Ok(())
    }

    fn link_options(&self) -> Result<LinkOptions, DirectorError> {
        let options = self.links.options(&self.name, &self.listen);
        options.map_err(|source| DirectorError::Certificate {
            name: self.name.clone(),
            source,
        })
    }

    /// Where it listens, with the ports that the kernel chose for port 0.
    pub fn addresses(&self) -> impl Iterator<Item = &LinkAddress> {
        self.addresses.iter()
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
        let mut names: Vec<_> = self.books.downlinks.keys().collect();
        names.sort();
        let links = names.into_iter().filter_map(|name| self.link_hop(name));
        let ethernet_ports = self.books.ethernet_ports.values();
        let san_ports = self.books.san_ports.values();
        links
            .chain(ethernet_ports.flat_map(EthernetPort::hops))
            .chain(san_ports.flat_map(SanPort::hops))
            .collect()
    }

    /// What a monitor answers for: [`Self::hops`], and the logical units. Dropped before the
    /// director, whose files it holds.
    #[must_use]
    pub fn watched(&self) -> Watched {
        Watched {
            hops: self.hops(),
            storage: Some(Arc::new(self.san_view())),
        }
    }

    pub(crate) fn san_view(&self) -> SanView {
        SanView::new(self.books.luns.clone(), self.books.vhbas.values())
    }

    fn link_hop(&self, host: &str) -> Option<Arc<dyn Hop>> {
        let devices = self.books.devices.iter();
        let devices = devices.filter(|(_, device)| device.host == host);
        let devices = devices.map(|(id, device)| (*id, device.name.clone()));
        let hop = self.books.downlinks.get(host)?.hop();
        let present = self.acceptor.endpoint_of(host);
        Some(Arc::new(LinkHop::new(hop, devices.collect(), present)))
    }

    /// The counters of all ports, logical units and devices.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Snapshot> {
        let ports = self
            .books
            .ethernet_ports
            .values()
            .flat_map(EthernetPort::snapshot);
        ports
            .chain(self.books.luns.values().filter_map(|lun| lun.snapshot()))
            .chain(self.books.vhbas.values().map(Vhba::snapshot))
            .chain(self.books.vhbas.values().flat_map(Vhba::lun_snapshots))
            .collect()
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

impl Admission for Books {
    fn admit(&self, host: &str) -> Result<LinkBudget, String> {
        let downlink = self.downlinks.get(host).cloned();
        downlink.ok_or_else(|| format!("host {host:?} is unknown; add a [[host]] to the lab file"))
    }

    fn may_carry(&self, certified: &str, host: &str) -> bool {
        let carries = |switch: &EdgeSwitchConfig| {
            switch.name == certified && switch.hosts.iter().any(|behind| behind == host)
        };
        certified == host || self.edge_switches.iter().any(carries)
    }
}

impl Directory for Books {
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
                let client = client.map_err(|error| match error {
                    ClientError::Admission(error) => refusal(&error),
                    ClientError::Medium(error) => error.to_string(),
                    ClientError::Reservations(error) => error.to_string(),
                })?;
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
}

#[cfg(test)]
mod tests;

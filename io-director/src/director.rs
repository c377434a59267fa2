//! Who may attach what: hosts, their sessions and devices; opening and closing in order.

mod apply;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::time::Duration;

use fabric_bypass::{DirectPort, DirectReceiver, DirectSession, DirectTarget, DirectVnic};
use fabric_config::{
    EdgeSwitchConfig, HostConfig, LabConfig, LinkSecurity, ObjectId, PortName, VhbaConfig,
    VmConfig, VnicConfig,
};
use fabric_transport::acceptor::{Acceptor, Admission};
use fabric_transport::control::Windows;
use fabric_transport::discovery::Meeting;
use fabric_transport::discovery::responder::{Responder, ResponderConfig};
use fabric_transport::endpoint::{DeviceGrant, VmGrant, session_config};
use fabric_transport::link::{Link, LinkAddress, LinkOptions, TlsError};
use fabric_transport::{DeviceId, Directory, LaneClient};
use qos::{AdmissionError, DeviceRate, LinkBudget};
use qos_monitor::counters::{Counters, ObjectCounters};
use qos_monitor::frames::Capture;
use qos_monitor::network::{FramesOf, FramesWanted, Network};
use qos_monitor::{Hop, LinkHop, Watched};

use crate::counters::Snapshot;
use crate::ethernet::{self, EthernetPort, MirrorTarget, TapError};
use crate::san::{self, ClientError, Lun, LunWatch, SanObjects, SanPort, SanView, Vhba, VhbaError};

pub use apply::Prepared;

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
    watch: LunWatch,
    books: Arc<Books>,
    /// The lab file in force; locked while another is applied.
    lab: Mutex<LabConfig>,
    links_of_hosts: Mutex<BTreeMap<String, Arc<LinkHop>>>,
    name: String,
    links: LinkSecurity,
    instance: u64,
    listen: Vec<LinkAddress>,
    discoverable: Option<Meeting>,
    addresses: Vec<LinkAddress>,
}

/// What sessions ask for.
#[derive(Debug, Default)]
struct Books(RwLock<State>);

/// Everything that a director serves.
#[derive(Debug, Default)]
struct State {
    downlinks: HashMap<String, LinkBudget>,
    edge_switches: Vec<EdgeSwitchConfig>,
    devices: HashMap<DeviceId, Device>,
    ethernet_ports: BTreeMap<PortName, Arc<EthernetPort>>,
    luns: BTreeMap<String, Arc<Lun>>,
    vhbas: BTreeMap<DeviceId, Arc<Vhba>>,
    /// Their threads end after the vHBAs that wait for them.
    san_ports: BTreeMap<PortName, Arc<SanPort>>,
}

impl State {
    /// The port of a vNIC.
    fn ethernet_port(&self, device: DeviceId) -> Option<&Arc<EthernetPort>> {
        match self.devices.get(&device)?.kind {
            DeviceKind::Vnic(port) => self.ethernet_ports.get(&port),
            DeviceKind::Vhba => None,
        }
    }
}

impl Books {
    fn read(&self) -> RwLockReadGuard<'_, State> {
        // Whole between any two statements: going on is safe.
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Device {
    name: String,
    host: String,
    /// While its VM moves: the host that has it too.
    moves_to: Option<String>,
    generation: u32,
    vm: VmGrant,
    egress: DeviceRate,
    kind: DeviceKind,
}

impl Device {
    /// Who may attach it.
    fn hosts(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.host).chain(&self.moves_to)
    }

    fn is_of(&self, host: &str) -> bool {
        self.hosts().any(|known| known == host)
    }
}

#[derive(Debug, Clone, Copy)]
enum DeviceKind {
    Vnic(PortName),
    Vhba,
}

/// A vHBA of a host in this process.
#[derive(Debug)]
struct LocalVhba {
    books: Arc<Books>,
    device: DeviceId,
}

impl DirectTarget for LocalVhba {
    fn session(&self, epoch: u16) -> Option<Arc<dyn DirectSession>> {
        // While the books are changed the lanes will do: a ring's thread does not wait.
        let state = self.books.0.try_read().ok()?;
        state.vhbas.get(&self.device)?.direct_session(epoch)
    }
}

/// A vNIC of a host in this process.
#[derive(Debug)]
struct LocalVnic {
    books: Arc<Books>,
    device: DeviceId,
    host: String,
}

impl DirectPort for LocalVnic {
    fn attach(&self, receiver: Weak<dyn DirectReceiver>) {
        let state = self.books.read();
        if let Some(port) = state.ethernet_port(self.device) {
            port.attach_receiver(self.device, &self.host, receiver);
        }
    }

    fn session(&self, epoch: u16) -> Option<Arc<dyn DirectVnic>> {
        // While the books are changed the lanes will do: a ring's thread does not wait.
        let state = self.books.0.try_read().ok()?;
        state
            .ethernet_port(self.device)?
            .direct_vnic(self.device, &self.host, epoch)
    }
}

impl Director {
    /// Opens files, then TAP interfaces. Hosts are served through [`Self::listen`] or
    /// [`Self::link_receiver`].
    ///
    /// # Errors
    /// [`DirectorError`]; what was opened is closed again.
    pub fn start(config: &LabConfig) -> Result<Self, DirectorError> {
        let mut state = State {
            edge_switches: config.edge_switches.clone(),
            ..State::default()
        };
        for lun in &config.luns {
            let open = Lun::open(lun, &config.director).map_err(|source| DirectorError::Lun {
                name: lun.name.clone(),
                source,
            })?;
            state.luns.insert(lun.name.clone(), Arc::new(open));
        }
        for (_, vm, vhba) in vhbas(config) {
            let failed = |source| DirectorError::Vhba {
                name: vhba.name.clone(),
                source,
            };
            let port = san_port(config, vhba.port, &mut state.san_ports).map_err(failed)?;
            port.add(vm, vhba);
            let started = Vhba::start(vhba, &state.luns, &port).map_err(failed)?;
            state.vhbas.insert(vhba.id, Arc::new(started));
        }
        for port in &config.ethernet_ports {
            let started =
                EthernetPort::start(port).map_err(|source| DirectorError::EthernetPort {
                    port: port.port,
                    source,
                })?;
            tracing::info!(port = %port.port, mtu = port.mtu, "ethernet port opened");
            state.ethernet_ports.insert(port.port, Arc::new(started));
        }
        for (_, vm, vnic) in vnics(config) {
            if let Some(port) = state.ethernet_ports.get(&vnic.port) {
                port.add(vm, vnic);
            }
        }
        for (object, error) in state.set_mirrors(config) {
            tracing::error!(?object, %error, "nothing is mirrored");
        }
        let hosts = config.hosts.iter();
        let downlinks = hosts.map(|host| (host.name.clone(), host.downlink.clone()));
        state.downlinks.extend(downlinks);
        state.devices.extend(devices(config));
        tracing::info!(
            director = config.director.name,
            luns = state.luns.len(),
            vhbas = state.vhbas.len(),
            ethernet_ports = state.ethernet_ports.len(),
            "director started"
        );
        let luns: Vec<_> = state.luns.values().cloned().collect();
        let books = Arc::new(Books(RwLock::new(state)));
        let mut session = session_config(&config.director.name);
        session.busy_poll = config.director.busy_poll;
        if config.director.shared_luns {
            // The other director gets the LUNs of a host that is gone after this.
            session.resume_max = Duration::from_secs(1);
        }
        let instance = session.instance;
        let watch = LunWatch::start(luns.into_iter()).map_err(DirectorError::Sessions)?;
        let acceptor = Acceptor::start(session, books.clone(), books.clone())
            .map_err(DirectorError::Sessions)?;
        Ok(Self {
            responder: None,
            acceptor,
            watch,
            books,
            lab: Mutex::new(config.clone()),
            links_of_hosts: Mutex::default(),
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

    /// The vHBA of that number, whenever there is one, for a host agent in the same process.
    #[must_use]
    pub fn direct_target(&self, device: DeviceId) -> Arc<dyn DirectTarget> {
        let books = self.books.clone();
        Arc::new(LocalVhba { books, device })
    }

    /// The vNIC of that number, whenever there is one, for the agent of `host` in the same process.
    #[must_use]
    pub fn direct_port(&self, device: DeviceId, host: &str) -> Arc<dyn DirectPort> {
        let (books, host) = (self.books.clone(), host.to_owned());
        Arc::new(LocalVnic {
            books,
            device,
            host,
        })
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
            let knows = Box::new(move |host: &str| books.read().downlinks.contains_key(host));
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
        let state = self.books.read();
        match state.devices.get(&device).map(|device| device.kind) {
            Some(DeviceKind::Vnic(port)) => match state.ethernet_ports.get(&port) {
                Some(port) => port.set_rates(device, ingress, egress),
                None => Ok(()),
            },
            Some(DeviceKind::Vhba) => match state.vhbas.get(&device) {
                Some(vhba) => vhba.set_rates(ingress, egress),
                None => Ok(()),
            },
            None => Ok(()),
        }
    }

    /// Every scheduler of the director: the link to each host, and those of its ports.
    #[must_use]
    pub fn hops(&self) -> Vec<Arc<dyn Hop>> {
        let state = self.books.read();
        let mut links = self
            .links_of_hosts
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Kept from one call to the next, with the changes of path that they remember.
        links.retain(|host, _| state.downlinks.contains_key(host));
        for (host, budget) in &state.downlinks {
            let devices = state.devices.iter();
            let devices = devices.filter(|(_, device)| device.is_of(host));
            let devices = devices.map(|(id, device)| (*id, device.name.clone()));
            let devices = devices.collect();
            match links.entry(host.clone()) {
                Entry::Occupied(known) => known.get().set_devices(devices),
                Entry::Vacant(vacant) => {
                    let present = self.acceptor.endpoint_of(host);
                    vacant.insert(Arc::new(LinkHop::new(budget.hop(), devices, present)));
                }
            }
        }
        let links = links.values().map(|hop| hop.clone() as Arc<dyn Hop>);
        let ethernet_ports = state.ethernet_ports.values();
        let san_ports = state.san_ports.values();
        links
            .chain(ethernet_ports.flat_map(|port| port.hops()))
            .chain(san_ports.flat_map(|port| port.hops()))
            .collect()
    }

    /// What a monitor answers for: [`Self::hops`], and the logical units. Dropped before the
    /// director, whose files it holds.
    #[must_use]
    pub fn watched(&self) -> Watched {
        let view = Arc::new(DirectorView(Arc::downgrade(&self.books)));
        Watched {
            hops: self.hops(),
            storage: Some(Arc::new(self.san_view())),
            network: Some(view.clone()),
            counters: vec![view],
            ..Watched::default()
        }
    }

    pub(crate) fn san_view(&self) -> SanView {
        let books = Arc::downgrade(&self.books);
        SanView::new(move || match books.upgrade() {
            Some(books) => {
                let state = books.read();
                SanObjects::new(state.luns.clone(), state.vhbas.values().map(|vhba| &**vhba))
            }
            None => SanObjects::default(),
        })
    }

    /// The counters of all ports, logical units and devices.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Snapshot> {
        self.books.read().snapshot()
    }
}

/// What the operator is told of a director, as long as there is one.
struct DirectorView(Weak<Books>);

impl Network for DirectorView {
    fn start_capture(&self, wanted: &FramesWanted) -> Result<Box<dyn Capture>, String> {
        let books = self.0.upgrade();
        let books = books.ok_or_else(|| "the director stops".to_owned())?;
        let state = books.read();
        let ports = &state.ethernet_ports;
        match &wanted.of {
            FramesOf::Port(name) => {
                let mut named = ports.iter();
                let port = named.find(|(port, _)| port.to_string() == *name);
                let port = port.ok_or_else(|| {
                    let known: Vec<_> = ports.keys().map(PortName::to_string).collect();
                    format!("no ethernet-port is named {name:?}: there are {known:?}")
                })?;
                Ok(port.1.start_capture(wanted))
            }
            FramesOf::Vnic(name) => {
                let mut ports = ports.values();
                let capture = ports.find_map(|port| port.start_vnic_capture(name, wanted));
                capture.ok_or_else(|| {
                    let ports = state.ethernet_ports.values();
                    let known: Vec<_> = ports.flat_map(|port| port.vnic_names()).collect();
                    format!("no vnic is named {name:?}: there are {known:?}")
                })
            }
        }
    }
}

impl Counters for DirectorView {
    fn counters(&self) -> Vec<ObjectCounters> {
        let books = self.0.upgrade();
        let snapshots = books.map(|books| books.read().snapshot());
        let snapshots = snapshots.into_iter().flatten();
        snapshots.map(Snapshot::for_operator).collect()
    }
}

impl State {
    /// Has copies go where `config` says. Returns what cannot be, by object.
    fn set_mirrors(&self, config: &LabConfig) -> Vec<(ObjectId, io::Error)> {
        let target = |name: &Option<String>| -> Option<MirrorTarget> {
            let name = name.as_ref()?;
            let mut ports = self.ethernet_ports.values();
            ports.find_map(|port| port.mirror_target(name))
        };
        let of_ports = config.ethernet_ports.iter().map(|port| {
            let id = ObjectId::EthernetPort(port.port);
            (id, port.port, None, &port.mirror_to)
        });
        let of_vnics = vnics(config).map(|(_, _, vnic)| {
            let id = ObjectId::Vnic(vnic.id);
            (id, vnic.port, Some(vnic.id), &vnic.mirror_to)
        });
        let failed = of_ports.chain(of_vnics).filter_map(|(id, port, vnic, to)| {
            let port = self.ethernet_ports.get(&port)?;
            let set = port.set_mirror(vnic, target(to).as_ref());
            Some((id, set.err()?))
        });
        failed.collect()
    }

    fn snapshot(&self) -> Vec<Snapshot> {
        let ports = self.ethernet_ports.values();
        ports
            .flat_map(|port| port.snapshot())
            .chain(self.luns.values().filter_map(|lun| lun.snapshot()))
            .chain(self.vhbas.values().map(|vhba| vhba.snapshot()))
            .chain(self.vhbas.values().flat_map(|vhba| vhba.lun_snapshots()))
            .collect()
    }
}

/// The SAN port of a vHBA, started for the first of them.
fn san_port(
    config: &LabConfig,
    port: PortName,
    started: &mut BTreeMap<PortName, Arc<SanPort>>,
) -> Result<Arc<SanPort>, VhbaError> {
    match started.entry(port) {
        Entry::Occupied(known) => Ok(known.get().clone()),
        Entry::Vacant(vacant) => {
            let budget = config.san_port(port).and_then(|port| port.budget.as_ref());
            let started = SanPort::start(port, budget).map_err(VhbaError::Thread)?;
            Ok(vacant.insert(Arc::new(started)).clone())
        }
    }
}

fn vms(config: &LabConfig) -> impl Iterator<Item = (&HostConfig, &VmConfig)> {
    let hosts = config.hosts.iter();
    hosts.flat_map(|host| host.vms.iter().map(move |vm| (host, vm)))
}

fn vnics(config: &LabConfig) -> impl Iterator<Item = (&HostConfig, &VmConfig, &VnicConfig)> {
    vms(config).flat_map(|(host, vm)| vm.vnics.iter().map(move |vnic| (host, vm, vnic)))
}

fn vhbas(config: &LabConfig) -> impl Iterator<Item = (&HostConfig, &VmConfig, &VhbaConfig)> {
    vms(config).flat_map(|(host, vm)| vm.vhbas.iter().map(move |vhba| (host, vm, vhba)))
}

fn devices(config: &LabConfig) -> impl Iterator<Item = (DeviceId, Device)> {
    let device = |(host, vm): (&HostConfig, &VmConfig), (name, generation, egress, kind)| Device {
        name,
        host: host.name.clone(),
        moves_to: vm.moves_to.clone(),
        generation,
        vm: VmGrant {
            name: vm.name.clone(),
            rate: vm.egress,
        },
        egress,
        kind,
    };
    let vnics = vnics(config).map(move |(host, vm, vnic)| {
        let kind = DeviceKind::Vnic(vnic.port);
        let words = (vnic.name.clone(), vnic.generation, vnic.egress, kind);
        (vnic.id, device((host, vm), words))
    });
    let vhbas = vhbas(config).map(move |(host, vm, vhba)| {
        let kind = DeviceKind::Vhba;
        let words = (vhba.name.clone(), vhba.generation, vhba.egress, kind);
        (vhba.id, device((host, vm), words))
    });
    vnics.chain(vhbas)
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
        let downlink = self.read().downlinks.get(host).cloned();
        downlink.ok_or_else(|| format!("host {host:?} is unknown; add a [[host]] to the lab file"))
    }

    fn may_carry(&self, certified: &str, host: &str) -> bool {
        let carries = |switch: &EdgeSwitchConfig| {
            switch.name == certified && switch.hosts.iter().any(|behind| behind == host)
        };
        certified == host || self.read().edge_switches.iter().any(carries)
    }
}

impl Directory for Books {
    fn attach(&self, host: &str, device: DeviceId, generation: u32) -> Result<DeviceGrant, String> {
        // One answer for a device that is not there and one that is another host's: a host learns
        // nothing about others.
        // Locked throughout: what is taken away meanwhile is not granted.
        let state = self.read();
        let known = state.devices.get(&device);
        let known = known.filter(|known| known.is_of(host));
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
                let port = state.ethernet_ports.get(&port);
                let client = port.map(|port| port.client(device)).transpose();
                let client = client.map_err(|error| refusal(&error))?.flatten();
                client.map(|client| (ethernet::WINDOWS, client))
            }
            DeviceKind::Vhba => {
                let vhba = state.vhbas.get(&device);
                let client = vhba.map(|vhba| vhba.client()).transpose();
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

    fn serves(&self, host: &str, device: DeviceId, generation: u32) -> bool {
        let state = self.read();
        let known = state.devices.get(&device);
        known.is_some_and(|known| known.is_of(host) && known.generation == generation)
    }
}

#[cfg(test)]
mod tests;

//! Starting and stopping everything that a host has, and changing it meanwhile.

mod apply;
mod view;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};
use fabric_config::{HostConfig, LabConfig, VhbaConfig, VmConfig, VnicConfig};
use fabric_payload::ethernet::Offloads;
use fabric_transport::discovery::seeker::{self, Seeker, SeekerConfig};
use fabric_transport::endpoint::{DeviceGrant, VmGrant, session_config};
use fabric_transport::link::{LinkAddress, LinkOptions};
use fabric_transport::standby::StandbyUplink;
use fabric_transport::uplink::{Connector, Uplink, UplinkConfig, UplinkDevice, connectors};
use fabric_transport::{DeviceId, LaneClient};
use io_director::Director;
use qos::{AdmissionError, DeviceRate, VmRate};
use qos_monitor::{LinkHop, Watched};
use vhba_backend::VhbaDevice;
use vhost_user_session::{Session, SessionConfig, SessionHandle, SocketSource, VirtioDevice};
use vnic_backend::VnicDevice;

use crate::counters::HostCounters;
use crate::embedded::EmbeddedDirector;
use crate::guest_link::{GuestLink, monitor_path};
use crate::plug::Plugs;
use view::View;

/// A running host agent; dropped, it ends its devices, its session and an embedded director.
pub struct HostAgent {
    // Dropped in this order: guests lose their back ends first, so that nothing they still send
    // is taken for lost.
    served: Mutex<BTreeMap<DeviceId, Served>>,
    uplink: Arc<HostUplink>,
    director: Option<Director>,
    link: Arc<LinkHop>,
    plugs: Arc<Plugs>,
    view: Arc<View>,
    name: String,
    allow_unsealed_memory: bool,
    /// The lab file in force; locked while another is applied.
    lab: Mutex<LabConfig>,
}

/// A device with its socket.
struct Served {
    session: SessionHandle,
    /// If it is one, with what tells its guest of its link.
    vnic: Option<(Arc<VnicDevice>, GuestLink)>,
}

impl std::fmt::Debug for HostAgent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostAgent")
            .field("devices", &self.served().len())
            .finish_non_exhaustive()
    }
}

/// How a host is joined to its director, or to one of two.
#[derive(Debug)]
pub enum HostUplink {
    /// There is one.
    Single(Uplink),
    /// There are two.
    Standby(StandbyUplink),
}

impl HostUplink {
    /// The uplink that has the devices.
    #[must_use]
    pub fn active(&self) -> &Uplink {
        match self {
            Self::Single(uplink) => uplink,
            Self::Standby(uplinks) => uplinks.active(),
        }
    }

    fn add(&self, device: UplinkDevice) {
        match self {
            Self::Single(uplink) => uplink.add(device),
            Self::Standby(uplinks) => uplinks.add(device),
        }
    }

    fn remove(&self, id: DeviceId) {
        match self {
            Self::Single(uplink) => uplink.remove(id),
            Self::Standby(uplinks) => uplinks.remove(id),
        }
    }

    fn set_rate(&self, id: DeviceId, rate: DeviceRate) -> Result<(), AdmissionError> {
        match self {
            Self::Single(uplink) => uplink.set_rate(id, rate),
            Self::Standby(uplinks) => uplinks.set_rate(id, rate),
        }
    }

    fn set_vm_rate(&self, vm: &str, rate: VmRate) -> Result<(), AdmissionError> {
        match self {
            Self::Single(uplink) => uplink.set_vm_rate(vm, rate),
            Self::Standby(uplinks) => uplinks.set_vm_rate(vm, rate),
        }
    }

    /// The one that has none, if there is one.
    #[must_use]
    pub fn standby(&self) -> Option<&Uplink> {
        match self {
            Self::Single(_) => None,
            Self::Standby(uplinks) => Some(uplinks.standby()),
        }
    }
}

/// A device before it is served: both of its faces, and where its socket goes.
struct Device {
    name: String,
    virtio: Arc<dyn VirtioDevice>,
    fabric: UplinkDevice,
    kind: Kind,
}

enum Kind {
    /// With the monitor of its VM.
    Vnic(Arc<VnicDevice>, PathBuf),
    Vhba(Arc<VhbaDevice>),
}

impl Device {
    /// Binds its socket; `director` is one in this process.
    fn serve(
        self,
        host: &HostConfig,
        director: Option<&Director>,
        allow_unsealed_memory: bool,
    ) -> Result<(Served, UplinkDevice)> {
        if let Some(director) = director {
            match &self.kind {
                Kind::Vnic(vnic, _) => {
                    vnic.set_direct_port(director.direct_port(self.fabric.id, &host.name))
                }
                Kind::Vhba(vhba) => vhba.set_direct_target(director.direct_target(self.fabric.id)),
            }
        }
        let vnic = match self.kind {
            Kind::Vnic(vnic, monitor) => {
                Some(GuestLink::start(vnic.clone(), monitor).map(|link| (vnic, link)))
            }
            Kind::Vhba(_) => None,
        };
        let vnic = vnic
            .transpose()
            .with_context(|| format!("{} cannot start a thread", self.name))?;
        let socket = socket_path(host, &self.name);
        let mut config = SessionConfig::new(SocketSource::path(&socket));
        config.allow_unsealed_memory = allow_unsealed_memory;
        let session = Session::start(self.virtio, config)
            .with_context(|| format!("{} cannot be served on {}", self.name, socket.display()))?;
        Ok((Served { session, vnic }, self.fabric))
    }
}

impl HostAgent {
    /// Starts the host called `name`: checks everything, then binds the sockets, then connects.
    ///
    /// # Errors
    /// In one line: the object, what is wrong with it, and what to do. Nothing is left behind.
    pub fn start(lab: &LabConfig, name: &str, allow_unsealed_memory: bool) -> Result<Self> {
        let host = lab.serving_host(name).with_context(|| {
            let known: Vec<_> = lab.hosts.iter().map(|host| host.name.as_str()).collect();
            format!(
                "no host is named {name}: the lab file has {}",
                known.join(", ")
            )
        })?;
        let host = &host;
        let mut devices = Vec::new();
        for vm in &host.vms {
            let grant = VmGrant {
                name: vm.name.clone(),
                rate: vm.ingress,
            };
            for vnic in &vm.vnics {
                devices.push(vnic_device(lab, host, vnic, (vm, &grant))?);
            }
            for vhba in &vm.vhbas {
                devices.push(vhba_device(host, vhba, &grant)?);
            }
        }
        prepare_run_dir(&host.run_dir)?;
        let mut session = session_config(&host.name);
        let (to_director, director) = host_connectors(lab, host, session.instance)?;
        let mut served = BTreeMap::new();
        let mut attached = Vec::with_capacity(devices.len());
        for device in devices {
            let (device, fabric) = device.serve(host, director.as_ref(), allow_unsealed_memory)?;
            served.insert(fabric.id, device);
            attached.push(fabric);
        }
        session.spread = host.spread;
        session.busy_poll = host.busy_poll;
        if let Some(silence) = host.path_silence {
            session.path_silence_min = silence;
        }
        if let Some(hold_down) = host.hold_down {
            session.hold_down = hold_down;
        }
        let config = UplinkConfig {
            session,
            budget: host.budget.clone(),
        };
        let standby_options = link_options(lab, host, &host.standby_director)?;
        let standby = connectors(&host.standby_director, &standby_options);
        let uplink = if standby.is_empty() {
            Uplink::start(config, to_director, attached).map(HostUplink::Single)
        } else {
            StandbyUplink::start(&config, [to_director, standby], attached).map(HostUplink::Standby)
        };
        let uplink = Arc::new(uplink.context("uplink cannot be started")?);
        let watched = Arc::downgrade(&uplink);
        let present = move || watched.upgrade()?.active().endpoint();
        let watched = Arc::downgrade(&uplink);
        let standby = move || watched.upgrade()?.standby()?.endpoint();
        let link = LinkHop::new(host.budget.hop(), names(host), present).with_standby(standby);
        let plugs = Arc::new(Plugs::default());
        plugs.set(host);
        let view = View::new(&uplink, &plugs, host);
        Ok(Self {
            served: Mutex::new(served),
            uplink,
            director,
            link: Arc::new(link),
            plugs,
            view: Arc::new(view),
            name: host.name.clone(),
            allow_unsealed_memory,
            lab: Mutex::new(lab.clone()),
        })
    }

    /// What a monitor answers for: the scheduler of the uplink, the counters of its vNICs, and what an embedded director has.
    /// Dropped before the agent.
    #[must_use]
    pub fn watched(&self) -> Watched {
        let director = self.director.as_ref();
        let mut watched = director.map(Director::watched).unwrap_or_default();
        watched.hops.insert(0, self.link.clone());
        watched.devices = Some(self.view.clone());
        let served = self.served();
        let vnics = served.values().filter_map(|device| device.vnic.as_ref());
        let counters = Arc::new(HostCounters::new(vnics.map(|(vnic, _)| vnic)));
        watched.counters.insert(0, counters);
        watched
    }

    fn served(&self) -> MutexGuard<'_, BTreeMap<DeviceId, Served>> {
        // Whole between any two statements: going on is safe.
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The way to the director.
    #[must_use]
    pub fn uplink(&self) -> &HostUplink {
        &self.uplink
    }
}

impl Drop for HostAgent {
    fn drop(&mut self) {
        // Each end waits for its threads: together they end as fast as the slowest.
        let served = self.served();
        std::thread::scope(|scope| {
            for device in served.values() {
                scope.spawn(|| device.session.stop());
            }
        });
    }
}

/// The socket of a device in the host's folder.
#[must_use]
pub(crate) fn socket_path(host: &HostConfig, device: &str) -> PathBuf {
    host.run_dir.join(format!("{device}.sock"))
}

/// What the lab file calls the devices of a host.
fn names(host: &HostConfig) -> HashMap<DeviceId, String> {
    let vnics = host.vnics().map(|vnic| (vnic.id, vnic.name.clone()));
    let vhbas = host.vhbas().map(|vhba| (vhba.id, vhba.name.clone()));
    vnics.chain(vhbas).collect()
}

fn vnic_device(
    lab: &LabConfig,
    host: &HostConfig,
    config: &VnicConfig,
    (vm, grant): (&VmConfig, &VmGrant),
) -> Result<Device> {
    let port = lab.ethernet_port(config.port);
    let offloads = port.is_some_and(|port| port.offloads);
    let device = VnicDevice::new(vnic_backend::VnicConfig {
        name: config.name.clone(),
        device: config.id,
        queue_pairs: config.queues.into(),
        mtu: config.mtu,
        mac: config.mac.0,
        offloads: if offloads {
            Offloads {
                uso: false,
                ..Offloads::ALL
            }
        } else {
            Offloads::default()
        },
        busy_poll: host.busy_poll,
    })?;
    device.set_moves(vm.moves_to.is_some());
    let fabric = UplinkDevice {
        id: config.id,
        generation: config.generation,
        grant: DeviceGrant {
            rate: config.ingress,
            vm: Some(grant.clone()),
            windows: vnic_backend::windows(),
            client: device.clone() as Arc<dyn LaneClient>,
        },
    };
    Ok(Device {
        name: config.name.clone(),
        virtio: device.clone(),
        fabric,
        kind: Kind::Vnic(device, monitor_path(host, &vm.name)),
    })
}

fn vhba_device(host: &HostConfig, config: &VhbaConfig, vm: &VmGrant) -> Result<Device> {
    let device = VhbaDevice::new(vhba_backend::VhbaConfig {
        name: config.name.clone(),
        device: config.id,
        request_queues: config.queues.into(),
        busy_poll: host.busy_poll,
    })?;
    let fabric = UplinkDevice {
        id: config.id,
        generation: config.generation,
        grant: DeviceGrant {
            rate: config.ingress,
            vm: Some(vm.clone()),
            windows: vhba_backend::windows(),
            client: device.clone() as Arc<dyn LaneClient>,
        },
    };
    Ok(Device {
        name: config.name.clone(),
        virtio: device.clone(),
        fabric,
        kind: Kind::Vhba(device),
    })
}

/// How the host reaches its director, which may be in this process.
type Connectors = Vec<Box<dyn Connector>>;

fn link_options(
    lab: &LabConfig,
    host: &HostConfig,
    addresses: &[LinkAddress],
) -> Result<LinkOptions> {
    let options = lab.links.options(&host.name, addresses);
    options.with_context(|| format!("certificate of host {} cannot be used", host.name))
}

fn host_connectors(
    lab: &LabConfig,
    host: &HostConfig,
    instance: u64,
) -> Result<(Connectors, Option<Director>)> {
    match &host.uplink {
        fabric_config::Uplink::Discovered { meeting, director } => {
            let links = lab.links.options_for_any(&host.name);
            let mut links = links
                .with_context(|| format!("certificate of host {} cannot be used", host.name))?;
            links.director.clone_from(director);
            let seeker = Seeker::start(SeekerConfig {
                meeting: *meeting,
                host: host.name.clone(),
                instance,
                director: director.clone(),
                links,
            });
            let seeker = seeker.context("discovery cannot be started")?;
            Ok((seeker::connectors(&Arc::new(seeker)), None))
        }
        fabric_config::Uplink::Director(addresses) => {
            let mut options = link_options(lab, host, addresses)?;
            options.director = Some(lab.director.name.clone());
            Ok((connectors(addresses, &options), None))
        }
        fabric_config::Uplink::Embedded => {
            let director = Director::start(lab).context("embedded director cannot be started")?;
            let embedded = EmbeddedDirector {
                host: host.name.clone(),
                receive: director.link_receiver(),
            };
            Ok((vec![Box::new(embedded)], Some(director)))
        }
    }
}

/// Makes the folder for the sockets and proves that sockets can be made there.
fn prepare_run_dir(folder: &Path) -> Result<()> {
    let next = "make it writable for this user, or choose another run-dir in the lab file";
    fs::create_dir_all(folder)
        .with_context(|| format!("run-dir {} cannot be made: {next}", folder.display()))?;
    let mode = fs::metadata(folder)
        .with_context(|| format!("run-dir {} cannot be read: {next}", folder.display()))?
        .permissions()
        .mode();
    if mode & 0o002 != 0 && mode & 0o1000 == 0 {
        bail!(
            "run-dir {} may be written by everybody, who could replace a device's socket: chmod o-w it",
            folder.display()
        );
    }
    let probe = folder.join(".probe");
    fs::write(&probe, [])
        .and_then(|()| fs::remove_file(&probe))
        .with_context(|| format!("run-dir {} cannot be written: {next}", folder.display()))?;
    remove_abandoned(folder)
        .with_context(|| format!("run-dir {} cannot be read: {next}", folder.display()))
}

/// Removes the sockets of an agent that was killed: at those of devices that are gone since, somebody
/// would wait for ever.
fn remove_abandoned(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        let is_ours = path.extension().is_some_and(|it| it == "sock");
        if !is_ours || !entry.file_type()?.is_socket() {
            continue;
        }
        let refused = UnixStream::connect(&path).err();
        if refused.is_some_and(|error| error.kind() == ErrorKind::ConnectionRefused) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

//! What differs between two lab files, object by object, and what of it a running process cannot
//! take.
//!
//! ```text
//! before, after ──Difference::between──> {object: added | removed | changed}
//!                                              │
//!                         Difference::cannot_change(side): refused before anything is done
//! ```
//!
//! A device whose generation grows is removed and added again, so all of its words may change then;
//! with its generation unchanged only its rates and LUNs may. The order of objects in the file is no
//! difference. Pure.

use std::collections::BTreeMap;
use std::fmt;

use fabric_transport::DeviceId;
use qos::{BitRate, PolicyCatalog, VmRate};
use serde::{Deserialize, Serialize};

use crate::admit::{NotAdmitted, Refusal};
use crate::{
    DirectorConfig, EdgeSwitchConfig, EthernetPortConfig, HostConfig, InterfaceConfig, LabConfig,
    LinkSecurity, LunConfig, PortName, SanPortConfig, VhbaConfig, VmConfig, VnicConfig,
};

/// What an object is known by, in both files.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectId {
    /// What the file has once.
    Settings,
    /// An Ethernet port.
    EthernetPort(PortName),
    /// A SAN port with an entry of its own.
    SanPort(PortName),
    /// A logical unit.
    Lun(String),
    /// An edge switch.
    EdgeSwitch(String),
    /// A host.
    Host(String),
    /// A VM.
    Vm(String),
    /// A vNIC.
    Vnic(DeviceId),
    /// A vHBA.
    Vhba(DeviceId),
}

/// What the file has once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `insecure` and `[tls]`.
    pub links: LinkSecurity,
    /// `[director]`.
    pub director: DirectorConfig,
    /// `[[qos-policy]]`: devices carry the words that follow from it.
    pub policies: PolicyCatalog,
}

/// An object of a lab file, without the objects in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// What the file has once.
    Settings(Box<Settings>),
    /// An Ethernet port.
    EthernetPort(EthernetPortConfig),
    /// A SAN port with an entry of its own.
    SanPort(SanPortConfig),
    /// A logical unit.
    Lun(LunConfig),
    /// An edge switch.
    EdgeSwitch(EdgeSwitchConfig),
    /// A host; its VMs stand for themselves.
    Host(Box<HostConfig>),
    /// A VM and its host; its devices stand for themselves.
    Vm(String, VmConfig),
    /// A vNIC and its VM.
    Vnic(Place, VnicConfig),
    /// A vHBA and its VM.
    Vhba(Place, VhbaConfig),
}

/// Where a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Name of the host.
    pub host: String,
    /// Name of the VM.
    pub vm: String,
    /// The host that serves it too, if it moves.
    pub moves_to: Option<String>,
}

impl Place {
    fn has(&self, host: &str) -> bool {
        self.host == host || self.moves_to.as_deref() == Some(host)
    }
}

impl fmt::Display for Object {
    /// As the operator knows it: `vnic vn01.vm1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Settings(settings) => write!(f, "director {}", settings.director.name),
            Self::EthernetPort(port) if port.port.is_lag() => write!(f, "lag {}", port.port),
            Self::EthernetPort(port) => write!(f, "ethernet-port {}", port.port),
            Self::SanPort(port) => write!(f, "san-port {}", port.port),
            Self::Lun(lun) => write!(f, "lun {}", lun.name),
            Self::EdgeSwitch(switch) => write!(f, "edge-switch {}", switch.name),
            Self::Host(host) => write!(f, "host {}", host.name),
            Self::Vm(_, vm) => write!(f, "vm {}", vm.name),
            Self::Vnic(_, vnic) => write!(f, "vnic {}", vnic.name),
            Self::Vhba(_, vhba) => write!(f, "vhba {}", vhba.name),
        }
    }
}

/// What happened to an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It was not there before.
    Added(Object),
    /// It is not there after.
    Removed(Object),
    /// It has other words.
    Changed {
        /// Those before.
        before: Box<Object>,
        /// Those after.
        after: Box<Object>,
    },
}

/// Whom a process serves: what others do with their words is not for it to refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side<'a> {
    /// An I/O director.
    Director,
    /// The agent of this host.
    Host(&'a str),
    /// This edge switch.
    EdgeSwitch(&'a str),
}

/// Words that a running process cannot take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {field} cannot change while it runs; {next_step}")]
pub struct CannotChange {
    /// The object, as the operator knows it.
    pub object: String,
    /// The word of the lab file.
    pub field: &'static str,
    /// What to do.
    pub next_step: &'static str,
}

/// Why a lab file is not applied. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum ApplyRefused {
    /// Words that cannot change; never empty.
    #[error("{}", listed(.0))]
    CannotChange(Vec<CannotChange>),
    /// Reservations that would not fit.
    #[error(transparent)]
    NotAdmitted(#[from] NotAdmitted),
    /// Something that an added object needs cannot be had.
    #[error("{object}: {reason}")]
    Unavailable {
        /// The object, as the operator knows it.
        object: String,
        /// What is wrong and what to do.
        reason: String,
    },
}

fn listed(refusals: &[CannotChange]) -> String {
    let texts: Vec<_> = refusals.iter().map(CannotChange::to_string).collect();
    texts.join("; ")
}

/// What became of a lab file that was applied: of each object that differs and that the process has
/// a part of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// By object.
    pub objects: Vec<ObjectReport>,
    /// Why nothing has changed, if nothing has: then no object is as the file says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// What became of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectReport {
    /// The object, as the operator knows it: `vnic vn01.vm1`.
    pub object: String,
    /// What differed.
    pub change: ChangeKind,
    /// Words of the lab file that differ; of an object that is added or removed none.
    pub fields: Vec<String>,
    /// Whether the change is in force.
    pub outcome: Outcome,
}

/// What differed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeKind {
    /// The object is new.
    Added,
    /// It is gone.
    Removed,
    /// It has other words.
    Changed,
    /// It is gone and there again, with a higher generation.
    Replaced,
}

impl fmt::Display for ChangeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Changed => "changed",
            Self::Replaced => "replaced",
        })
    }
}

/// Whether a change is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It is.
    Done,
    /// It is not, or not everywhere; the other objects are not concerned.
    Failed(String),
}

/// Who of an object's owners keeps a word as it was at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeper {
    Director,
    Host,
    EdgeSwitch,
    Both,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// May change at any time.
    Live,
    /// Only with a higher generation.
    Again,
    /// Not while the keeper runs.
    Fixed(Keeper, &'static str),
}

#[derive(Debug, Clone, Copy)]
struct Field {
    name: &'static str,
    rule: Rule,
}

const RAISE: &str = "raise its generation, which removes it and adds it again";
const RESTART_DIRECTOR: &str = "undo it, or restart the director with this file";
const RESTART_HOST: &str = "undo it, or restart the host agent with this file";
const RESTART_BOTH: &str = "undo it, or restart the director and the host agents with this file";
const RESTART_SWITCH: &str = "undo it, or restart the edge switch with this file";
const ANOTHER_LUN: &str = "add a LUN of another name, map that one, and remove this one";
const EMPTY_PORT: &str =
    "remove the port with its devices, apply, and add them again; or restart the director";
const NEW_VM: &str = "remove the VM, apply, and add it again with these words";
const GENERATION: &str = "a generation only grows; choose a higher one";

/// The words of an object that differ.
struct Compared(Vec<Field>);

impl Compared {
    fn word<T: PartialEq>(&mut self, name: &'static str, (before, after): (&T, &T), rule: Rule) {
        if before != after {
            self.0.push(Field { name, rule });
        }
    }
}

impl Change {
    /// What it is called, after the change if it is there then.
    #[must_use]
    pub fn object(&self) -> &Object {
        match self {
            Self::Added(object) | Self::Removed(object) => object,
            Self::Changed { after, .. } => after,
        }
    }

    /// In one word.
    #[must_use]
    pub fn kind(&self) -> ChangeKind {
        match self {
            Self::Added(_) => ChangeKind::Added,
            Self::Removed(_) => ChangeKind::Removed,
            Self::Changed { before, after } if after.generation() > before.generation() => {
                ChangeKind::Replaced
            }
            Self::Changed { .. } => ChangeKind::Changed,
        }
    }

    /// Words of the lab file that differ.
    #[must_use]
    pub fn fields(&self) -> Vec<&'static str> {
        let fields = self.compare();
        fields.iter().map(|field| field.name).collect()
    }

    /// The report of the change.
    #[must_use]
    pub fn report(&self, outcome: Outcome) -> ObjectReport {
        let fields = self.fields();
        ObjectReport {
            object: self.object().to_string(),
            change: self.kind(),
            fields: fields.into_iter().map(str::to_owned).collect(),
            outcome,
        }
    }

    fn compare(&self) -> Vec<Field> {
        let Self::Changed { before, after } = self else {
            return Vec::new();
        };
        let mut compared = Compared(Vec::new());
        match (&**before, &**after) {
            (Object::Settings(before), Object::Settings(after)) => {
                settings(&mut compared, before, after);
            }
            (Object::EthernetPort(before), Object::EthernetPort(after)) => {
                let fixed = Rule::Fixed(Keeper::Director, EMPTY_PORT);
                let [was, is] = [before, after].map(|port| {
                    let all = port.interfaces.iter().cloned();
                    let made = all.map(|it| InterfaceConfig { up: true, ..it });
                    (made.collect::<Vec<_>>(), port.mode)
                });
                let word = if before.port.is_lag() { "ports" } else { "tap" };
                compared.word(word, (&was, &is), fixed);
                let [was, is] = [before, after].map(|port| {
                    let members = port.interfaces.iter().map(|it| it.up);
                    (port.up, members.collect::<Vec<_>>())
                });
                compared.word("state", (&was, &is), Rule::Live);
                let both = Rule::Fixed(Keeper::Both, EMPTY_PORT);
                compared.word("offloads", (&before.offloads, &after.offloads), both);
                compared.word("mtu", (&before.mtu, &after.mtu), fixed);
                compared.word("rate", (&before.budget, &after.budget), fixed);
                let native = (&before.native_vlan, &after.native_vlan);
                compared.word("native-vlan", native, fixed);
                compared.word("limits", (&before.storm, &after.storm), fixed);
                let mirrors = (&before.mirror_to, &after.mirror_to);
                compared.word("mirror-to", mirrors, Rule::Live);
            }
            (Object::SanPort(before), Object::SanPort(after)) => {
                let fixed = Rule::Fixed(Keeper::Director, EMPTY_PORT);
                compared.word("rate", (&before.budget, &after.budget), fixed);
            }
            (Object::Lun(before), Object::Lun(after)) => lun(&mut compared, before, after),
            (Object::EdgeSwitch(before), Object::EdgeSwitch(after)) => {
                edge_switch(&mut compared, before, after);
            }
            (Object::Host(before), Object::Host(after)) => host(&mut compared, before, after),
            (Object::Vm(host_before, before), Object::Vm(host_after, after)) => {
                // Its devices say whether they may move.
                compared.word("host", (host_before, host_after), Rule::Live);
                compared.word("qmp", (&before.qmp, &after.qmp), Rule::Live);
                let moves = (&before.moves_to, &after.moves_to);
                compared.word("moves-to", moves, Rule::Live);
                for (name, before, after) in [
                    ("ingress", before.ingress, after.ingress),
                    ("egress", before.egress, after.egress),
                ] {
                    // Ports know no cir of a VM; where one has no words, its devices stand alone.
                    let wordless = |rate: VmRate| {
                        let at_port = VmRate {
                            cir: BitRate::ZERO,
                            ..rate
                        };
                        [rate, at_port].map(|rate| rate == VmRate::default())
                    };
                    let stays = host_before == host_after;
                    let rule = if stays && wordless(before) != wordless(after) {
                        Rule::Fixed(Keeper::Both, NEW_VM)
                    } else {
                        Rule::Live
                    };
                    compared.word(name, (&before, &after), rule);
                }
            }
            (Object::Vnic(place_before, before), Object::Vnic(place_after, after)) => {
                let (vm, vm_after) = (&place_before.vm, &place_after.vm);
                compared.word("vm", (vm, vm_after), Rule::Again);
                // Who already serves it may be its host.
                let rule = match place_before.has(&place_after.host) {
                    true => Rule::Live,
                    false => Rule::Again,
                };
                compared.word("host", (&place_before.host, &place_after.host), rule);
                let moves = (&place_before.moves_to, &place_after.moves_to);
                compared.word("moves-to", moves, Rule::Live);
                compared.word("name", (&before.name, &after.name), Rule::Again);
                generation(&mut compared, before.generation, after.generation);
                compared.word("port", (&before.port, &after.port), Rule::Again);
                compared.word("mac", (&before.mac, &after.mac), Rule::Again);
                compared.word("mtu", (&before.mtu, &after.mtu), Rule::Again);
                compared.word("queues", (&before.queues, &after.queues), Rule::Again);
                let slots = (&before.pci_slot, &after.pci_slot);
                compared.word("pci-slot", slots, Rule::Again);
                let addresses = (&before.static_address, &after.static_address);
                compared.word("addr-type", addresses, Rule::Live);
                vnic_policy(&mut compared, before, after);
                let mirrors = (&before.mirror_to, &after.mirror_to);
                compared.word("mirror-to", mirrors, Rule::Live);
                let (was, is) = (
                    (&before.ingress, &before.ingress_policy),
                    (&after.ingress, &after.ingress_policy),
                );
                compared.word("ingress", (&was, &is), Rule::Live);
                let (was, is) = (
                    (&before.egress, &before.egress_policy),
                    (&after.egress, &after.egress_policy),
                );
                compared.word("egress", (&was, &is), Rule::Live);
            }
            (Object::Vhba(place_before, before), Object::Vhba(place_after, after)) => {
                compared.word("vm", (place_before, place_after), Rule::Again);
                compared.word("name", (&before.name, &after.name), Rule::Again);
                generation(&mut compared, before.generation, after.generation);
                compared.word("port", (&before.port, &after.port), Rule::Again);
                compared.word("wwpn", (&before.wwpn, &after.wwpn), Rule::Again);
                compared.word("queues", (&before.queues, &after.queues), Rule::Again);
                let slots = (&before.pci_slot, &after.pci_slot);
                compared.word("pci-slot", slots, Rule::Again);
                compared.word("luns", (&before.luns, &after.luns), Rule::Live);
                let (was, is) = (
                    (&before.ingress, &before.ingress_policy),
                    (&after.ingress, &after.ingress_policy),
                );
                compared.word("ingress", (&was, &is), Rule::Live);
                let (was, is) = (
                    (&before.egress, &before.egress_policy),
                    (&after.egress, &after.egress_policy),
                );
                compared.word("egress", (&was, &is), Rule::Live);
            }
            // An id names one kind.
            _ => {}
        }
        compared.0
    }

    /// Whether `side` has a part of the object, before or after.
    #[must_use]
    pub fn concerns(&self, side: Side<'_>) -> bool {
        match self {
            Self::Added(object) | Self::Removed(object) => object.concerns(side),
            Self::Changed { before, after } => before.concerns(side) || after.concerns(side),
        }
    }
}

/// What the port watches of a vNIC ([`VnicConfig::has_policy_of`]).
fn vnic_policy(compared: &mut Compared, before: &VnicConfig, after: &VnicConfig) {
    let live = Rule::Live;
    compared.word("state", (&before.up, &after.up), live);
    compared.word("vlan", (&before.vlans, &after.vlans), live);
    compared.word("isolated", (&before.isolated, &after.isolated), live);
    compared.word("addresses", (&before.addresses, &after.addresses), live);
    compared.word("trusted", (&before.trusted, &after.trusted), live);
    compared.word("access-in", (&before.access_in, &after.access_in), live);
    let lists = (&before.access_out, &after.access_out);
    compared.word("access-out", lists, live);
    compared.word("limits", (&before.storm, &after.storm), live);
}

fn generation(compared: &mut Compared, before: u32, after: u32) {
    let rule = if after > before {
        Rule::Live
    } else {
        Rule::Fixed(Keeper::Both, GENERATION)
    };
    compared.word("generation", (&before, &after), rule);
}

fn settings(compared: &mut Compared, before: &Settings, after: &Settings) {
    let both = Rule::Fixed(Keeper::Both, RESTART_BOTH);
    let director = Rule::Fixed(Keeper::Director, RESTART_DIRECTOR);
    compared.word(
        "insecure",
        (&before.links.insecure, &after.links.insecure),
        both,
    );
    compared.word("tls", (&before.links.tls, &after.links.tls), both);
    let DirectorConfig {
        name,
        listen,
        shared_luns,
        backing_files,
        busy_poll,
        discoverable,
    } = &before.director;
    let after_director = &after.director;
    compared.word("name", (name, &after_director.name), both);
    compared.word("listen", (listen, &after_director.listen), director);
    compared.word(
        "shared-luns",
        (shared_luns, &after_director.shared_luns),
        director,
    );
    // Of images that are opened from now on.
    compared.word(
        "backing-files",
        (backing_files, &after_director.backing_files),
        Rule::Live,
    );
    compared.word(
        "busy-poll-us",
        (busy_poll, &after_director.busy_poll),
        director,
    );
    compared.word(
        "discoverable",
        (discoverable, &after_director.discoverable),
        director,
    );
    compared.word(
        "qos-policy",
        (&before.policies, &after.policies),
        Rule::Live,
    );
}

fn lun(compared: &mut Compared, before: &LunConfig, after: &LunConfig) {
    let fixed = Rule::Fixed(Keeper::Director, ANOTHER_LUN);
    let LunConfig {
        name: _,
        port,
        medium,
        block_bytes,
        read_only,
        serial,
        delay,
        timeout,
    } = before;
    compared.word("port", (port, &after.port), fixed);
    compared.word("medium", (medium, &after.medium), fixed);
    compared.word("block-bytes", (block_bytes, &after.block_bytes), fixed);
    compared.word("read-only", (read_only, &after.read_only), fixed);
    compared.word("serial", (serial, &after.serial), fixed);
    compared.word("delay-ms", (delay, &after.delay), fixed);
    compared.word("timeout", (timeout, &after.timeout), fixed);
}

fn edge_switch(compared: &mut Compared, before: &EdgeSwitchConfig, after: &EdgeSwitchConfig) {
    let EdgeSwitchConfig {
        name: _,
        listen,
        director,
        budget,
        hosts,
        ports,
    } = before;
    // The director takes its hosts.
    let fixed = Rule::Fixed(Keeper::EdgeSwitch, RESTART_SWITCH);
    compared.word("listen", (listen, &after.listen), fixed);
    compared.word("director", (director, &after.director), fixed);
    compared.word("rate", (budget, &after.budget), fixed);
    compared.word("hosts", (hosts, &after.hosts), fixed);
    compared.word("ports", (ports, &after.ports), fixed);
}

fn host(compared: &mut Compared, before: &HostConfig, after: &HostConfig) {
    let agent = Rule::Fixed(Keeper::Host, RESTART_HOST);
    let HostConfig {
        name: _,
        uplink,
        standby_director,
        spread,
        path_silence,
        hold_down,
        busy_poll,
        run_dir,
        budget,
        downlink,
        vms: _,
    } = before;
    compared.word("director", (uplink, &after.uplink), agent);
    compared.word(
        "standby-director",
        (standby_director, &after.standby_director),
        agent,
    );
    compared.word("spread", (spread, &after.spread), agent);
    compared.word("path-silence", (path_silence, &after.path_silence), agent);
    compared.word("hold-down", (hold_down, &after.hold_down), agent);
    compared.word("busy-poll-us", (busy_poll, &after.busy_poll), agent);
    compared.word("run-dir", (run_dir, &after.run_dir), agent);
    compared.word("rate", (budget, &after.budget), agent);
    let director = Rule::Fixed(Keeper::Director, RESTART_DIRECTOR);
    compared.word("director.link", (downlink, &after.downlink), director);
}

impl Object {
    fn generation(&self) -> Option<u32> {
        match self {
            Self::Vnic(_, vnic) => Some(vnic.generation),
            Self::Vhba(_, vhba) => Some(vhba.generation),
            _ => None,
        }
    }

    fn concerns(&self, side: Side<'_>) -> bool {
        match side {
            Side::Director => true,
            Side::EdgeSwitch(name) => match self {
                Self::Settings(_) => true,
                Self::EdgeSwitch(switch) => switch.name == name,
                _ => false,
            },
            Side::Host(name) => match self {
                Self::Settings(_) | Self::EthernetPort(_) => true,
                Self::SanPort(_) | Self::Lun(_) | Self::EdgeSwitch(_) => false,
                Self::Host(host) => host.name == name,
                Self::Vm(host, vm) => host == name || vm.moves_to.as_deref() == Some(name),
                Self::Vnic(place, _) | Self::Vhba(place, _) => place.has(name),
            },
        }
    }
}

/// The objects of a lab file.
pub(crate) fn objects(lab: &LabConfig) -> BTreeMap<ObjectId, Object> {
    let LabConfig {
        links,
        director,
        policies,
        ethernet_ports,
        san_ports,
        luns,
        hosts,
        edge_switches,
    } = lab;
    let settings = Settings {
        links: links.clone(),
        director: director.clone(),
        policies: policies.clone(),
    };
    let mut objects = BTreeMap::from([(ObjectId::Settings, Object::Settings(Box::new(settings)))]);
    objects.extend(ethernet_ports.iter().map(|port| {
        let id = ObjectId::EthernetPort(port.port);
        (id, Object::EthernetPort(port.clone()))
    }));
    objects.extend(san_ports.iter().map(|port| {
        let id = ObjectId::SanPort(port.port);
        (id, Object::SanPort(port.clone()))
    }));
    objects.extend(luns.iter().map(|lun| {
        let id = ObjectId::Lun(lun.name.clone());
        (id, Object::Lun(lun.clone()))
    }));
    objects.extend(edge_switches.iter().map(|switch| {
        let id = ObjectId::EdgeSwitch(switch.name.clone());
        (id, Object::EdgeSwitch(switch.clone()))
    }));
    for host in hosts {
        for vm in &host.vms {
            let place = Place {
                host: host.name.clone(),
                vm: vm.name.clone(),
                moves_to: vm.moves_to.clone(),
            };
            objects.extend(vm.vnics.iter().map(|vnic| {
                let object = Object::Vnic(place.clone(), vnic.clone());
                (ObjectId::Vnic(vnic.id), object)
            }));
            objects.extend(vm.vhbas.iter().map(|vhba| {
                let object = Object::Vhba(place.clone(), vhba.clone());
                (ObjectId::Vhba(vhba.id), object)
            }));
            let bare = VmConfig {
                name: vm.name.clone(),
                qmp: vm.qmp.clone(),
                moves_to: vm.moves_to.clone(),
                vnics: Vec::new(),
                vhbas: Vec::new(),
                ingress: vm.ingress,
                egress: vm.egress,
            };
            let object = Object::Vm(host.name.clone(), bare);
            objects.insert(ObjectId::Vm(vm.name.clone()), object);
        }
        let mut bare = host.clone();
        bare.vms.clear();
        let object = Object::Host(Box::new(bare));
        objects.insert(ObjectId::Host(host.name.clone()), object);
    }
    objects
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Difference {
    changes: BTreeMap<ObjectId, Change>,
    /// SAN ports whose vHBAs stay, though the port comes, goes or changes.
    kept_san_ports: Vec<PortName>,
}

impl Difference {
    /// What makes `after` of `before`.
    #[must_use]
    pub fn between(before: &LabConfig, after: &LabConfig) -> Self {
        let mut was = objects(before);
        let mut changes = BTreeMap::new();
        for (id, after) in objects(after) {
            let change = match was.remove(&id) {
                Some(before) if before == after => continue,
                Some(before) => Change::Changed {
                    before: Box::new(before),
                    after: Box::new(after),
                },
                None => Change::Added(after),
            };
            changes.insert(id, change);
        }
        changes.extend(
            was.into_iter()
                .map(|(id, gone)| (id, Change::Removed(gone))),
        );
        let mut difference = Self {
            changes,
            kept_san_ports: Vec::new(),
        };
        let vhbas = before.hosts.iter().flat_map(HostConfig::vhbas);
        let staying = vhbas.filter(|vhba| !difference.ends(vhba.id));
        let mut kept: Vec<_> = staying.map(|vhba| vhba.port).collect();
        kept.sort();
        kept.dedup();
        let budget = |lab: &LabConfig, port| lab.san_port(port).and_then(|it| it.budget.clone());
        kept.retain(|port| budget(before, *port) != budget(after, *port));
        difference.kept_san_ports = kept;
        difference
    }

    /// The report of a process of `side` that refuses the file: each object that differs is as it was,
    /// for a reason of its own or since it came in a file with one.
    #[must_use]
    pub fn refused(&self, side: Side<'_>, why: &ApplyRefused) -> Report {
        let reasons: Vec<(&str, String)> = match why {
            ApplyRefused::CannotChange(all) => {
                let said = |it: &CannotChange| {
                    format!("{} cannot change while it runs; {}", it.field, it.next_step)
                };
                all.iter()
                    .map(|it| (it.object.as_str(), said(it)))
                    .collect()
            }
            ApplyRefused::NotAdmitted(over) => {
                let refusals = over.refusals.iter();
                let said = |it: &Refusal| format!("{}: {}", it.direction, it.error.with_source());
                refusals.map(|it| (it.object.as_str(), said(it))).collect()
            }
            ApplyRefused::Unavailable { object, reason } => vec![(object, reason.clone())],
        };
        let concerned = self.changes.values().filter(|it| it.concerns(side));
        let objects = concerned.map(|change| {
            let object = change.object().to_string();
            let own = reasons.iter().find(|(of, _)| *of == object);
            let reason = match own {
                Some((_, reason)) => reason.clone(),
                None => format!("nothing of the lab file is in force: {why}"),
            };
            change.report(Outcome::Failed(reason))
        });
        Report {
            objects: objects.collect(),
            refused: Some(why.to_string()),
        }
    }

    /// Whether the files say the same.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// What happened, by object.
    pub fn changes(&self) -> impl Iterator<Item = (&ObjectId, &Change)> {
        self.changes.iter()
    }

    /// Whether the life of a device that is there before ends: it is removed, or replaced.
    #[must_use]
    pub fn ends(&self, device: DeviceId) -> bool {
        let ends = |id| {
            let kind = self.changes.get(&id).map(Change::kind);
            matches!(kind, Some(ChangeKind::Removed | ChangeKind::Replaced))
        };
        ends(ObjectId::Vnic(device)) || ends(ObjectId::Vhba(device))
    }

    /// Whether a device that is there after begins a life: it is added, or replaced.
    #[must_use]
    pub fn begins(&self, device: DeviceId) -> bool {
        let begins = |id| {
            let kind = self.changes.get(&id).map(Change::kind);
            matches!(kind, Some(ChangeKind::Added | ChangeKind::Replaced))
        };
        begins(ObjectId::Vnic(device)) || begins(ObjectId::Vhba(device))
    }

    /// What a running process of `side` cannot take, by object and word.
    #[must_use]
    pub fn cannot_change(&self, side: Side<'_>) -> Vec<CannotChange> {
        let mut refusals = Vec::new();
        for (id, change) in &self.changes {
            if !change.concerns(side) {
                continue;
            }
            // Said below, and only if somebody stays there.
            if matches!(id, ObjectId::SanPort(_)) {
                continue;
            }
            let object = change.object().to_string();
            let again = change.kind() == ChangeKind::Replaced;
            for field in change.compare() {
                let next_step = match field.rule {
                    Rule::Live => continue,
                    Rule::Again if again => continue,
                    Rule::Again => RAISE,
                    Rule::Fixed(keeper, next_step) => {
                        let kept = match side {
                            Side::Director => matches!(keeper, Keeper::Both | Keeper::Director),
                            Side::Host(_) => matches!(keeper, Keeper::Both | Keeper::Host),
                            Side::EdgeSwitch(_) => {
                                matches!(keeper, Keeper::Both | Keeper::EdgeSwitch)
                            }
                        };
                        if !kept {
                            continue;
                        }
                        next_step
                    }
                };
                refusals.push(CannotChange {
                    object: object.clone(),
                    field: field.name,
                    next_step,
                });
            }
            let own = match (side, id) {
                (Side::Host(name), ObjectId::Host(host)) => name == host,
                (Side::EdgeSwitch(name), ObjectId::EdgeSwitch(switch)) => name == switch,
                _ => false,
            };
            if own && change.kind() == ChangeKind::Removed {
                refusals.push(CannotChange {
                    object,
                    field: "name",
                    next_step: "stop the process that serves it",
                });
            }
        }
        if side == Side::Director {
            refusals.extend(self.kept_san_ports.iter().map(|port| CannotChange {
                object: format!("san-port {port}"),
                field: "rate",
                next_step: EMPTY_PORT,
            }));
        }
        refusals
    }
}

/// Whether the reservations of `after` fit at every hop. What did not fit before either, and is
/// the same, is no reason to refuse.
///
/// # Errors
/// [`NotAdmitted`] names what would not fit, and where.
pub fn require_admitted_anew(before: &LabConfig, after: &LabConfig) -> Result<(), NotAdmitted> {
    let refusals = |lab: &LabConfig| -> Vec<Refusal> {
        let admissions = lab.admit();
        let refused = admissions.into_iter().flat_map(|hop| hop.refusals);
        refused.collect()
    };
    let known = refusals(before);
    let mut new = refusals(after);
    new.retain(|refusal| {
        let same = |it: &Refusal| it.object == refusal.object && it.direction == refusal.direction;
        !known.iter().any(same)
    });
    if new.is_empty() {
        Ok(())
    } else {
        Err(NotAdmitted { refusals: new })
    }
}

#[cfg(test)]
mod tests;

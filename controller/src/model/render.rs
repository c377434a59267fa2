//! What a director and its hosts are told: their lab file.
//!
//! Only what can work stands in it: devices whose server is on a known host, that are up and whose port
//! is there. `fabric-config` then says whether the values are right and whether every hop keeps what was
//! promised.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use controller_api::objects::{AddrType, Attachment, Host, ServerProfile, Vhba, Vnic, VnicMode};
use controller_api::{AdminState, Kind, Refusal, RefusalCode};
use fabric_config::{ConfigError, LabConfig, PortName, require_admitted};
use toml::{Table, Value};

use super::place::{Place, Resolved};
use super::{Model, Problem, SYSTEM, names, policy, ranges};

/// Where the sockets of hosts are unless their `run-dir` says otherwise.
const RUN_DIR: &str = "/run/orimono";
/// What a link is sold as unless a host's `rate` says otherwise.
const HOST_RATE: &str = "10g";

/// The lab files of a director, unless a host embeds it, and its hosts, by node.
pub(crate) type Rendered = BTreeMap<String, Arc<NodeFile>>;

/// What one node is told.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct NodeFile {
    /// Its lab file.
    pub(crate) text: String,
    /// The node's director.
    pub(crate) director: String,
    /// The words of each device in it, by the device's name.
    pub(crate) devices: BTreeMap<String, Table>,
}

impl NodeFile {
    /// Whether a device of this file is not in `after`, or begins another life there.
    pub(crate) fn ends_some(&self, after: &Self) -> bool {
        let generation = |table: &Table| table.get("generation").cloned();
        self.devices.iter().any(|(name, table)| {
            let after = after.devices.get(name);
            after.is_none_or(|after| generation(after) != generation(table))
        })
    }
}

impl Model {
    /// The lab file of each director; one that does not hold is refused.
    pub(crate) fn render_all(&self) -> Result<BTreeMap<String, Rendered>, Refusal> {
        let directors = self.directors.keys();
        directors
            .map(|name| Ok((name.clone(), self.render(name)?)))
            .collect()
    }

    fn render(&self, director: &str) -> Result<Rendered, Refusal> {
        let file = self
            .lab_file(director)
            .map_err(|problem| problem.of(Kind::Director, director))?;
        let text = toml::to_string(&file)
            .map_err(|error| Problem::invalid(error, "report this").of(Kind::Director, director))?;
        let lab: LabConfig = text.parse().map_err(|error| refused(director, &error))?;
        require_admitted(&lab.admit()).map_err(|over| {
            let first = over.refusals.first();
            Refusal {
                code: RefusalCode::NotAdmitted,
                object: first.map_or_else(|| director.to_owned(), |first| first.object.clone()),
                problem: over.refusals.iter().fold(String::new(), |mut all, one| {
                    let separator = if all.is_empty() { "" } else { ", and " };
                    all += &format!("{separator}{}: {}", one.direction, one.error.with_source());
                    all
                }),
                next: "ask for less, raise reservable, or oversubscribe the hop".to_owned(),
                command: None,
            }
        })?;
        let mut nodes = Rendered::new();
        let remote = |host: &&Table| !host.contains_key("embedded");
        for host in tables(&file, "host").filter(remote) {
            let file = of_host(&file, host);
            let lab = toml::to_string(&file).map_err(|error| {
                Problem::invalid(error, "report this").of(Kind::Director, director)
            })?;
            let name = text_of(host, "name").to_owned();
            nodes.insert(name, node_file(lab, director, &file));
        }
        // Who has the director has to know everything.
        let whole = node_file(text, director, &file);
        let mut embedding = self.hosts_of(director).filter(|(_, host)| host.embedded);
        let with_all = embedding.next().map_or(director, |(name, _)| name);
        nodes.insert(with_all.to_owned(), whole);
        Ok(nodes)
    }

    pub(crate) fn hosts_of<'a>(
        &'a self,
        director: &'a str,
    ) -> impl Iterator<Item = (&'a String, &'a Arc<Host>)> {
        self.hosts
            .iter()
            .filter(move |(_, host)| self.director_of(host) == Some(director))
    }

    fn lab_file(&self, director: &str) -> Result<Table, Problem> {
        let mut file = Table::new();
        let system = self.system.get(SYSTEM);
        if let Some(system) = system {
            put_true(&mut file, "insecure", system.insecure);
            if !system.tls_ca.is_empty() {
                let mut tls = Table::new();
                put(&mut tls, "ca", &system.tls_ca);
                put(&mut tls, "cert", &system.tls_cert);
                put(&mut tls, "key", &system.tls_key);
                file.insert("tls".to_owned(), Value::Table(tls));
            }
        }
        file.insert(
            "director".to_owned(),
            Value::Table(self.director_table(director)),
        );
        put_all(&mut file, "qos-policy", self.policy_tables()?);
        let mut used = BTreeSet::new();
        let hosts = self.host_tables(director, &mut used)?;
        put_all(
            &mut file,
            "ethernet-port",
            self.ethernet_port_tables(director, &used)?,
        );
        put_all(&mut file, "san-port", self.san_port_tables(director)?);
        put_all(&mut file, "lun", self.lun_tables(director));
        put_all(&mut file, "host", hosts);
        Ok(file)
    }

    fn director_table(&self, name: &str) -> Table {
        let mut table = Table::new();
        put(&mut table, "name", name);
        if let Some(director) = self.directors.get(name) {
            put_texts(&mut table, "listen", &director.listen);
            put_true(&mut table, "shared-luns", director.shared_luns);
            put_texts(&mut table, "backing-files", &director.backing_files);
            put(&mut table, "discoverable", &director.discoverable);
        }
        table
    }

    fn policy_tables(&self) -> Result<Vec<Table>, Problem> {
        let network = self
            .qos_network
            .iter()
            .map(|(name, policy)| ("network", name, &policy.0));
        let san = self
            .qos_san
            .iter()
            .map(|(name, policy)| ("san", name, &policy.0));
        let mut tables = Vec::new();
        for (kind, name, policy) in network.chain(san) {
            let mut table = Table::new();
            let name = names::policy(name)?;
            put(&mut table, "kind", kind);
            put(&mut table, "set", name.set());
            put(&mut table, "name", name.policy());
            put_rate(&mut table, "cir", &policy.cir)?;
            put_rate(&mut table, "pir", &policy.pir)?;
            put_number(&mut table, "cbs-bytes", policy::burst(&policy.cbs)?);
            put_number(&mut table, "pbs-bytes", policy::burst(&policy.pbs)?);
            put_number(&mut table, "weight", policy.weight);
            tables.push(table);
        }
        Ok(tables)
    }

    /// Ports that are used, or have settings, and are there.
    fn ethernet_port_tables(
        &self,
        director: &str,
        used: &BTreeSet<PortName>,
    ) -> Result<Vec<Table>, Problem> {
        let set = self.ethernet_ports.iter().filter_map(|(name, port)| {
            match self.resolve_port(director, name) {
                Resolved::Port(at) => Some((at, port)),
                _ => None,
            }
        });
        let set: BTreeMap<_, _> = set.collect();
        let ports: BTreeSet<_> = set.keys().copied().chain(used.iter().copied()).collect();
        let mut tables = Vec::new();
        for at in ports {
            let Some(card) = self.iocard(Some(director), at.slot()) else {
                continue;
            };
            if !card.kind.is_ethernet() {
                continue;
            }
            let settings = set
                .get(&at)
                .map(|port| (***port).clone())
                .unwrap_or_default();
            let mut table = Table::new();
            put(&mut table, "port", &at.to_string());
            let tap = match settings.tap.as_str() {
                "" => format!("orimono{}p{}", at.slot(), at.port()),
                tap => tap.to_owned(),
            };
            put(&mut table, "tap", &tap);
            put_some(&mut table, "mtu", settings.mtu.map(u32::from));
            let rate = match settings.rate.as_str() {
                "" => card.kind.rate().unwrap_or_default(),
                rate => rate,
            };
            put_rate(&mut table, "rate", rate)?;
            put_rate(&mut table, "reservable", &settings.reservable)?;
            if let Some(offloads) = settings.offloads {
                table.insert("offloads".to_owned(), Value::Boolean(offloads));
            }
            tables.push(table);
        }
        Ok(tables)
    }

    /// Ports of SAN modules that have a rate.
    fn san_port_tables(&self, director: &str) -> Result<Vec<Table>, Problem> {
        let mut tables = Vec::new();
        for slot in 1..=15 {
            let Some(card) = self.iocard(Some(director), slot) else {
                continue;
            };
            if !card.kind.is_san() || card.admin == AdminState::Down {
                continue;
            }
            for number in 1..=card.kind.ports() {
                let at = format!("{slot}/{number}");
                let named = self.fc_ports.get(&format!("{director}:{at}"));
                let settings = named.or_else(|| self.fc_ports.get(&at));
                let settings = settings.map(|port| (**port).clone()).unwrap_or_default();
                let rate = match settings.rate.as_str() {
                    "" => card.kind.rate().unwrap_or_default(),
                    rate => rate,
                };
                if rate.is_empty() {
                    continue;
                }
                let mut table = Table::new();
                put(&mut table, "port", &at);
                put_rate(&mut table, "rate", rate)?;
                put_rate(&mut table, "reservable", &settings.reservable)?;
                tables.push(table);
            }
        }
        Ok(tables)
    }

    fn lun_tables(&self, director: &str) -> Vec<Table> {
        let mut tables = Vec::new();
        for (name, lun) in &self.luns {
            let Resolved::Port(at) = self.resolve_port(director, &lun.port) else {
                continue;
            };
            let mut table = Table::new();
            put(&mut table, "name", name);
            put(&mut table, "port", &at.to_string());
            for (key, value) in [
                ("file", &lun.file),
                ("block-device", &lun.block_device),
                ("qcow2", &lun.qcow2),
                ("ram", &lun.ram),
                ("null", &lun.null),
                ("sg", &lun.sg),
                ("iscsi", &lun.iscsi),
                ("portal", &lun.portal),
                ("initiator", &lun.initiator),
                ("user", &lun.user),
                ("secret-file", &lun.secret_file),
                ("serial", &lun.serial),
            ] {
                put(&mut table, key, value);
            }
            put_some(&mut table, "target-lun", lun.target_lun.map(u32::from));
            put_some(&mut table, "block-bytes", lun.block_bytes);
            put_true(&mut table, "direct", lun.direct);
            put_true(&mut table, "read-only", lun.read_only);
            tables.push(table);
        }
        tables
    }

    fn host_tables(
        &self,
        director: &str,
        used: &mut BTreeSet<PortName>,
    ) -> Result<Vec<Table>, Problem> {
        let mut vms: BTreeMap<&str, Vec<Table>> = BTreeMap::new();
        let mut devices = self.device_tables(director, used);
        for (name, profile) in &self.server_profiles {
            let Place::Host { host, director: of } = self.place(profile) else {
                continue;
            };
            if of != director || profile.admin == AdminState::Down {
                continue;
            }
            let mut vm = Table::new();
            put(&mut vm, "name", name);
            put(&mut vm, "qmp", &self.qmp(name, profile, host));
            for (key, pir) in [
                ("ingress", &profile.ingress_pir),
                ("egress", &profile.egress_pir),
            ] {
                if !pir.is_empty() {
                    let mut rate = Table::new();
                    put_rate(&mut rate, "pir", pir)?;
                    vm.insert(key.to_owned(), Value::Table(rate));
                }
            }
            let (vnics, vhbas) = devices.remove(name.as_str()).unwrap_or_default();
            put_all(&mut vm, "vnic", vnics);
            put_all(&mut vm, "vhba", vhbas);
            vms.entry(host).or_default().push(vm);
        }
        let mut tables = Vec::new();
        for (name, host) in self.hosts_of(director) {
            let mut table = Table::new();
            put(&mut table, "name", name);
            put_true(&mut table, "embedded", host.embedded);
            if !host.embedded {
                let listen = self
                    .directors
                    .get(director)
                    .map(|director| &director.listen);
                let own = &host.director_addresses;
                let addresses = if own.is_empty() {
                    listen.unwrap_or(own)
                } else {
                    own
                };
                put_texts(&mut table, "director", addresses);
            }
            put(&mut table, "run-dir", &self.run_dir(name));
            let rate = if host.rate.is_empty() {
                HOST_RATE
            } else {
                &host.rate
            };
            put_rate(&mut table, "rate", rate)?;
            put_rate(&mut table, "payload", &host.payload)?;
            put_rate(&mut table, "reservable", &host.reservable)?;
            put_rate(&mut table, "protected", &host.protected)?;
            put_true(&mut table, "oversubscribe", host.oversubscribe);
            put_all(
                &mut table,
                "vm",
                vms.remove(name.as_str()).unwrap_or_default(),
            );
            tables.push(table);
        }
        Ok(tables)
    }

    fn run_dir(&self, host: &str) -> String {
        let said = self.hosts.get(host).map(|host| host.run_dir.as_str());
        match said.unwrap_or_default() {
            "" => format!("{RUN_DIR}/{host}"),
            run_dir => run_dir.to_owned(),
        }
    }

    /// Where the server of a profile has its monitor.
    fn qmp(&self, name: &str, profile: &ServerProfile, host: &str) -> String {
        let server = self.physical_servers.get(&profile.server);
        match server.map(|server| server.qmp.as_str()).unwrap_or_default() {
            "" => format!("{}/{name}.qmp", self.run_dir(host)),
            said => said.to_owned(),
        }
    }

    /// The vNICs and vHBAs that end at a port of `director`, by profile.
    fn device_tables(
        &self,
        director: &str,
        used: &mut BTreeSet<PortName>,
    ) -> BTreeMap<&str, (Vec<Table>, Vec<Table>)> {
        let mut tables: BTreeMap<&str, (Vec<Table>, Vec<Table>)> = BTreeMap::new();
        for (name, vnic) in &self.vnics {
            if vnic.admin == AdminState::Down {
                continue;
            }
            let Resolved::Port(port) = self.resolve_vnic(director, vnic) else {
                continue;
            };
            let profile = names::profile_of(name);
            if !self.is_served(profile, director) {
                continue;
            }
            used.insert(port);
            let table = self.vnic_table(name, vnic, port);
            tables.entry(profile).or_default().0.push(table);
        }
        for (name, vhba) in &self.vhbas {
            if vhba.admin == AdminState::Down {
                continue;
            }
            let Resolved::Port(port) = self.resolve_vhba(director, vhba) else {
                continue;
            };
            let table = self.vhba_table(name, vhba, port);
            tables
                .entry(names::profile_of(name))
                .or_default()
                .1
                .push(table);
        }
        tables
    }

    fn is_served(&self, profile: &str, director: &str) -> bool {
        let profile = self.server_profiles.get(profile);
        profile.is_some_and(|profile| {
            let place = self.place(profile);
            matches!(place, Place::Host { director: of, .. } if of == director)
        })
    }

    fn generation(&self, device: &str) -> u32 {
        let profile = self.server_profiles.get(names::profile_of(device));
        profile.map_or(0, |profile| profile.generation)
    }

    fn vnic_table(&self, name: &str, vnic: &Vnic, port: PortName) -> Table {
        let mut table = Table::new();
        put(&mut table, "name", device_name(name));
        put_number(&mut table, "id", vnic.id);
        put_number(&mut table, "generation", self.generation(name));
        put(&mut table, "port", &port.to_string());
        put(&mut table, "mac", &vnic.mac);
        put_some(&mut table, "mtu", vnic.mtu.map(u32::from));
        put_some(&mut table, "queues", vnic.queues.map(u32::from));
        put_some(&mut table, "pci-slot", vnic.pci_slot.map(u32::from));
        put_attachment(&mut table, "ingress", &vnic.ingress_qos);
        put_attachment(&mut table, "egress", &vnic.egress_qos);
        self.put_address(&mut table, name, vnic);
        self.put_vlans(&mut table, vnic);
        put_true(&mut table, "isolated", vnic.private);
        table
    }

    fn put_address(&self, table: &mut Table, name: &str, vnic: &Vnic) {
        match vnic.addr_type {
            AddrType::Default => {}
            AddrType::Dhcp => put(table, "addr-type", "dhcp"),
            AddrType::Static => {
                put(table, "addr-type", "static");
                put(table, "ip-addr", &vnic.ip_addr);
                let mask = match vnic.netmask.as_str() {
                    "" => "255.255.255.0",
                    mask => mask,
                };
                put(table, "netmask", mask);
                let profile = self.server_profiles.get(names::profile_of(name));
                put(
                    table,
                    "gateway",
                    profile.map_or("", |profile| &profile.default_gateway),
                );
            }
        }
    }

    fn put_vlans(&self, table: &mut Table, vnic: &Vnic) {
        let network = self.public_networks.get(&vnic.termination);
        let access = vnic
            .access_vlan
            .or_else(|| network.and_then(|network| network.vlan));
        match vnic.mode {
            VnicMode::Access => put_some(table, "vlan", access.map(u32::from)),
            VnicMode::Trunk => {
                let text = match vnic.allowed_vlans.as_str() {
                    "" => "1-4094",
                    text => text,
                };
                // It was read before it was kept.
                let vlans = ranges::parse(text, 1, 4094).unwrap_or_default();
                let parts = ranges::text(&vlans);
                let parts: Vec<_> = parts.split(',').map(str::to_owned).collect();
                put_texts(table, "vlans", &parts);
            }
        }
    }

    fn vhba_table(&self, name: &str, vhba: &Vhba, port: PortName) -> Table {
        let mut table = Table::new();
        put(&mut table, "name", device_name(name));
        put_number(&mut table, "id", vhba.id);
        put_number(&mut table, "generation", self.generation(name));
        put(&mut table, "port", &port.to_string());
        put(&mut table, "wwpn", &vhba.wwpn);
        put_some(&mut table, "queues", vhba.queues.map(u32::from));
        put_some(&mut table, "pci-slot", vhba.pci_slot.map(u32::from));
        let luns = self.luns_seen(vhba).into_iter().map(|(number, name)| {
            let mut lun = Table::new();
            lun.insert("lun".to_owned(), Value::Integer(number.into()));
            put(&mut lun, "name", &name);
            lun
        });
        put_all(&mut table, "luns", luns.collect());
        put_attachment(&mut table, "ingress", &vhba.ingress_qos);
        put_attachment(&mut table, "egress", &vhba.egress_qos);
        table
    }
}

fn tables<'a>(file: &'a Table, key: &str) -> impl Iterator<Item = &'a Table> {
    let all = file
        .get(key)
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    all.filter_map(Value::as_table)
}

fn text_of<'a>(table: &'a Table, key: &str) -> &'a str {
    table.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The devices of a file with the names of their profiles.
fn devices(file: &Table) -> impl Iterator<Item = (&Table, &Table)> {
    let vms = tables(file, "host").flat_map(|host| tables(host, "vm"));
    vms.flat_map(|vm| {
        let devices = tables(vm, "vnic").chain(tables(vm, "vhba"));
        devices.map(move |device| (vm, device))
    })
}

fn node_file(lab: String, director: &str, file: &Table) -> Arc<NodeFile> {
    let named = devices(file).map(|(vm, device)| {
        let name = format!("{}.{}", text_of(device, "name"), text_of(vm, "name"));
        (name, device.clone())
    });
    Arc::new(NodeFile {
        text: lab,
        director: director.to_owned(),
        devices: named.collect(),
    })
}

/// What a host has to know of its director's file: its own devices and what they end at. What others
/// change is then no change of its file.
fn of_host(file: &Table, host: &Table) -> Table {
    let vms = || tables(host, "vm");
    let devices = vms().flat_map(|vm| tables(vm, "vnic").chain(tables(vm, "vhba")));
    let ports: BTreeSet<&str> = devices.map(|device| text_of(device, "port")).collect();
    let mut own = Table::new();
    for (key, value) in file {
        let value = match key.as_str() {
            "host" => Value::Array(vec![Value::Table(host.clone())]),
            "ethernet-port" | "san-port" | "lun" => {
                let used = tables(file, key).filter(|one| ports.contains(text_of(one, "port")));
                Value::Array(used.cloned().map(Value::Table).collect())
            }
            _ => value.clone(),
        };
        own.insert(key.clone(), value);
    }
    own
}

fn refused(director: &str, error: &ConfigError) -> Refusal {
    match error {
        ConfigError::Invalid {
            object, problem, ..
        } => {
            let problem = Problem::from_text(problem);
            Refusal {
                object: object.clone(),
                ..problem.of(Kind::Director, director)
            }
        }
        error => Problem::from_text(error).of(Kind::Director, director),
    }
}

/// The name of a device without its profile.
fn device_name(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

fn put(table: &mut Table, key: &str, text: &str) {
    if !text.is_empty() {
        table.insert(key.to_owned(), Value::String(text.to_owned()));
    }
}

fn put_true(table: &mut Table, key: &str, value: bool) {
    if value {
        table.insert(key.to_owned(), Value::Boolean(true));
    }
}

fn put_number(table: &mut Table, key: &str, number: u32) {
    if number > 0 {
        table.insert(key.to_owned(), Value::Integer(number.into()));
    }
}

fn put_some(table: &mut Table, key: &str, number: Option<u32>) {
    if let Some(number) = number {
        table.insert(key.to_owned(), Value::Integer(number.into()));
    }
}

/// The language's bare number is kilobits, the lab file's is bits.
fn put_rate(table: &mut Table, key: &str, text: &str) -> Result<(), Problem> {
    if let Some(rate) = policy::rate(text)? {
        put(table, key, &rate.to_string());
    }
    Ok(())
}

fn put_texts(table: &mut Table, key: &str, texts: &[String]) {
    if !texts.is_empty() {
        let texts = texts.iter().cloned().map(Value::String).collect();
        table.insert(key.to_owned(), Value::Array(texts));
    }
}

fn put_all(table: &mut Table, key: &str, tables: Vec<Table>) {
    if !tables.is_empty() {
        let tables = tables.into_iter().map(Value::Table).collect();
        table.insert(key.to_owned(), Value::Array(tables));
    }
}

fn put_attachment(table: &mut Table, key: &str, attachment: &Attachment) {
    if attachment.policer.is_empty() {
        return;
    }
    let mut words = Table::new();
    put(&mut words, "policy", &attachment.policer);
    if attachment.disabled {
        words.insert("enabled".to_owned(), Value::Boolean(false));
    }
    table.insert(key.to_owned(), Value::Table(words));
}

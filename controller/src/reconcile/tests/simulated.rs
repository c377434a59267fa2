//! Many hosts: each answers at its control socket for what its lab file says.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use controller_api::{Command, Fields, Kind, Transaction};
use fabric_config::{LabConfig, Report};
use qos_monitor::{ApplyJob, DeviceState, Devices, Monitor, Watched};
use serde_json::{Value, json};

use super::*;
use crate::Caller;
use crate::store::MemoryStore;

const HOSTS: usize = 120;

/// Devices that a host has, all of them at their director.
struct Own(Vec<DeviceState>);

impl Devices for Own {
    fn devices(&self) -> Vec<DeviceState> {
        self.0.clone()
    }
}

/// A director or host agent, as far as the controller sees it.
fn node(folder: &Path, name: &str) -> Monitor {
    let folder = folder.join(name);
    let lab = LabConfig::read(&folder.join("lab.toml")).unwrap();
    let host = lab.host(name);
    let vnics = host
        .iter()
        .flat_map(|host| host.vnics())
        .map(|it| (&it.name, it.generation));
    let vhbas = host
        .iter()
        .flat_map(|host| host.vhbas())
        .map(|it| (&it.name, it.generation));
    let devices = vnics.chain(vhbas).map(|(name, generation)| DeviceState {
        name: name.clone(),
        generation,
        attached: true,
        refused: None,
        guest: None,
    });
    let (applies, jobs) = sync_channel(1);
    std::thread::spawn(move || {
        // It has what its file says already.
        for job in jobs {
            if let ApplyJob::Apply(done) = job {
                done.tell(Ok(Report::default()));
            }
        }
    });
    let watched = Watched {
        devices: Some(Arc::new(Own(devices.collect()))),
        applies: Some(applies),
        ..Watched::default()
    };
    Monitor::start(watched, Some(&folder.join("control.sock"))).unwrap()
}

/// Visits everyone.
fn round(controller: &Controller, folder: &Path, known: &mut BTreeMap<String, Node>) {
    let desired = controller.desired().borrow().clone();
    for (name, file) in desired.nodes() {
        let before = known.remove(name).unwrap_or_default();
        let after = before.visited(name, &folder.join(name), file);
        controller.report(name, after.clone());
        known.insert(name.clone(), after);
    }
}

fn put(kind: Kind, name: &str, value: Value) -> Command {
    let fields: Fields = value.as_object().cloned().unwrap();
    Command::Put {
        kind,
        name: name.to_owned(),
        fields,
    }
}

/// 4 vNICs and 2 vHBAs for each of 120 hosts on two directors, in one transaction.
fn site() -> Transaction {
    let mut commands = Vec::new();
    for (director, prefix) in [("d1", ""), ("d2", "d2:")] {
        let listen = json!({"listen": ["tcp:127.0.0.1:7471"]});
        commands.push(put(Kind::Director, director, listen));
        commands.push(put(
            Kind::Iocard,
            &format!("{prefix}10"),
            json!({"kind": "ethernet"}),
        ));
        commands.push(put(
            Kind::Iocard,
            &format!("{prefix}4"),
            json!({"kind": "san"}),
        ));
    }
    commands.push(put(Kind::Lun, "data", json!({"port": "4/1", "null": "1G"})));
    let vnic = |port| json!({"if": format!("10/{port}")});
    let vhba = json!({"if": "4/1", "luns": {"0": "data"}});
    commands.push(put(
        Kind::Template,
        "web",
        json!({
            "vnics": {"vn0": vnic(1), "vn1": vnic(2), "vn2": vnic(3), "vn3": vnic(4)},
            "vhbas": {"hb0": vhba, "hb1": vhba},
        }),
    ));
    for number in 0..HOSTS {
        let director = ["d1", "d2"][number % 2];
        commands.push(put(
            Kind::Host,
            &format!("h{number}"),
            json!({"director": director}),
        ));
        let profile = json!({"server": format!("vm@h{number}"), "template": "web"});
        commands.push(put(Kind::ServerProfile, &format!("s{number}"), profile));
    }
    Transaction {
        commands,
        ..Transaction::default()
    }
}

#[test]
fn h1_120_hosts_with_six_devices_each_are_up_from_one_transaction() {
    let folder = tempfile::tempdir().unwrap();
    let controller = Controller::start(Box::new(MemoryStore::default())).unwrap();
    let root = Caller::administrator("root");
    controller.transact(&root, &site()).unwrap();
    let servers = controller.list(&root, Kind::PhysicalServer, "*").unwrap();
    assert_eq!(servers.len(), HOSTS);

    let mut known = BTreeMap::new();
    round(&controller, folder.path(), &mut known);
    let up = |controller: &Controller, kind| {
        let up = |view: &&controller_api::View| view.status.state.as_deref() == Some("up/up");
        controller
            .list(&root, kind, "*")
            .unwrap()
            .iter()
            .filter(up)
            .count()
    };
    assert_eq!(up(&controller, Kind::Vnic), 0);
    let directors = ["d1", "d2"].map(str::to_owned);
    let nodes = (0..HOSTS)
        .map(|number| format!("h{number}"))
        .chain(directors);
    let nodes: Vec<_> = nodes.map(|name| node(folder.path(), &name)).collect();
    round(&controller, folder.path(), &mut known);
    assert_eq!(controller.alarms(&root).unwrap(), []);
    let devices =
        |controller: &Controller| (up(controller, Kind::Vnic), up(controller, Kind::Vhba));
    assert_eq!(devices(&controller), (4 * HOSTS, 2 * HOSTS));
    let (hosts, profiles) = (
        up(&controller, Kind::Host),
        up(&controller, Kind::ServerProfile),
    );
    assert_eq!((hosts, profiles), (HOSTS, HOSTS));

    // The controller is away and comes back: hosts go on, and are found as they are.
    drop(controller);
    let controller = Controller::start(Box::new(MemoryStore::default())).unwrap();
    controller.transact(&root, &site()).unwrap();
    round(&controller, folder.path(), &mut BTreeMap::new());
    assert_eq!(devices(&controller), (4 * HOSTS, 2 * HOSTS));
    drop(nodes);
}

//! Many hosts: each answers at its control socket for what its lab file says.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use controller_api::{Command, Fields, Kind, Transaction};
use fabric_config::{LabConfig, Report};
use qos::{Decision, DeviceRate, HopSnapshot, MonotonicTime, Scheduler, Trace};
use qos_monitor::{ApplyJob, Hop, Monitor, Watched};
use serde_json::{Value, json};

use super::*;
use crate::Caller;
use crate::store::MemoryStore;

const HOSTS: usize = 120;

/// The uplink of a host that has all its devices.
struct Uplink(HopSnapshot);

impl Hop for Uplink {
    fn name(&self) -> &str {
        &self.0.hop
    }
    fn snapshot(&self) -> Option<HopSnapshot> {
        Some(self.0.clone())
    }
    fn decisions(&self) -> Vec<Decision> {
        Vec::new()
    }
    fn start_trace(&self) -> bool {
        false
    }
    fn take_trace(&self) -> Option<Trace> {
        None
    }
}

/// A host agent, as far as the controller sees it.
fn host(folder: &Path, name: &str) -> Monitor {
    let folder = folder.join(name);
    let lab = LabConfig::read(&folder.join("lab.toml")).unwrap();
    let host = lab.host(name).unwrap();
    let vnics = host.vnics().map(|vnic| vnic.name.clone());
    let names = vnics.chain(host.vhbas().map(|vhba| vhba.name.clone()));
    let mut scheduler = Scheduler::<()>::new(host.budget.clone());
    let now = MonotonicTime::from_nanos(0);
    let devices: Vec<_> = names
        .map(|name| {
            (
                name,
                None,
                scheduler.add_device(now, DeviceRate::default()).unwrap(),
            )
        })
        .collect();
    let uplink = Uplink(HopSnapshot::new(&scheduler, now, 4096, devices));
    let hops: Vec<Arc<dyn Hop>> = vec![Arc::new(uplink)];
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
        applies: Some(applies),
        ..Watched::from(hops)
    };
    Monitor::start(watched, Some(&folder.join("control.sock"))).unwrap()
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
    let rows = |kind| controller.list(&root, kind, "*").unwrap();
    assert_eq!(rows(Kind::PhysicalServer).len(), HOSTS);

    let desired = controller.desired().borrow().clone();
    let silent = round(&desired, folder.path(), &Reports::default());
    controller.report(silent.clone());
    let up = |kind| {
        let up = |view: &&controller_api::View| view.status.state.as_deref() == Some("up/up");
        rows(kind).iter().filter(up).count()
    };
    assert_eq!(up(Kind::Vnic), 0);
    let hosts: Vec<_> = (0..HOSTS)
        .map(|number| host(folder.path(), &format!("h{number}")))
        .collect();
    let reports = round(&desired, folder.path(), &silent);
    assert!(reports.alarms().is_empty(), "{:?}", reports.alarms());
    controller.report(reports.clone());
    assert_eq!((up(Kind::Vnic), up(Kind::Vhba)), (4 * HOSTS, 2 * HOSTS));
    assert_eq!((up(Kind::Host), up(Kind::ServerProfile)), (HOSTS, HOSTS));

    // The controller is away and comes back: hosts go on, and are found as they are.
    drop(controller);
    let again = round(&desired, folder.path(), &Reports::default());
    assert_eq!(again.has_device("h7", "vn0.s7"), Some(true));
    drop(hosts);
}

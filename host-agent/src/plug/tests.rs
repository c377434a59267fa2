//! A monitor that answers as QEMU's does, as far as devices go.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;

use fabric_config::LabConfig;

use super::*;

/// How long something may take. A guard, not a figure.
const PATIENCE: Duration = Duration::from_secs(20);

/// Devices by id: their MAC addresses and buses.
type Devices = Arc<Mutex<BTreeMap<String, (String, String)>>>;

/// Serves monitors at `path`, one after the other. A device called `stuck...` is never let go.
fn qemu(path: &Path, devices: &Devices) {
    let (listener, devices) = (UnixListener::bind(path).unwrap(), devices.clone());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            serve(stream, &devices);
        }
    });
}

fn serve(stream: UnixStream, devices: &Devices) {
    let mut out = stream.try_clone().unwrap();
    let greeting = json!({"QMP": {"version": {"qemu": {"major": 7, "minor": 2}}}});
    writeln!(out, "{greeting}").unwrap();
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { return };
        let command: Value = serde_json::from_str(&line).unwrap();
        let word = |path: &str| {
            let word = command.pointer(&format!("/arguments/{path}"));
            word.and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let mut devices = devices.lock().unwrap();
        let mut event = None;
        let answer = match command["execute"].as_str().unwrap() {
            "query-kvm" => json!({"return": {"enabled": false}}),
            "qom-list" => {
                let child = |id| json!({"name": id, "type": "child<virtio-net-pci>"});
                json!({"return": devices.keys().map(child).collect::<Vec<_>>()})
            }
            "qom-get" => {
                let path = word("path");
                let id = path.rsplit('/').next().unwrap();
                json!({"return": devices[id].0})
            }
            "device_add" => {
                let device = (word("mac"), word("bus"));
                devices.insert(word("id"), device);
                json!({"return": {}})
            }
            "device_del" => {
                let id = word("id");
                if !id.starts_with("stuck") && devices.remove(&id).is_some() {
                    event = Some(json!({"event": "DEVICE_DELETED", "data": {"device": id}}));
                }
                json!({"return": {}})
            }
            "netdev_del" | "chardev-remove" => json!({"error": {"desc": "it is not there"}}),
            _ => json!({"return": {}}),
        };
        drop(devices);
        if writeln!(out, "{answer}").is_err() {
            return;
        }
        if let Some(event) = event {
            writeln!(out, "{event}").unwrap();
        }
    }
}

/// A host with these vNICs: name, last byte of its MAC address, slot.
fn host(folder: &Path, vnics: &[(&str, u8, Option<u8>)]) -> HostConfig {
    let folder = folder.display();
    let mut text = format!(
        "[director]\nname = \"d1\"\n[[ethernet-port]]\nport = \"10/1\"\ntap = \"t0\"\n\
         [[host]]\nname = \"h1\"\nembedded = true\nrun-dir = \"{folder}\"\nrate = \"10G\"\n\
         [[host.vm]]\nname = \"vm1\"\nqmp = \"{folder}/qmp\"\n"
    );
    for (name, mac, slot) in vnics {
        let slot = slot.map(|slot| format!("pci-slot = {slot}\n"));
        text += &format!(
            "[[host.vm.vnic]]\nname = \"{name}\"\nid = {mac}\nport = \"10/1\"\n\
             mac = \"02:00:00:00:00:{mac:02x}\"\n{}",
            slot.unwrap_or_default()
        );
    }
    let lab: LabConfig = text.parse().unwrap();
    lab.hosts[0].clone()
}

/// Waits until a device is where it should be.
fn wait(plugs: &Plugs, device: &str, is: impl Fn(&GuestState) -> bool) {
    let shared = plugs.vms()["vm1"].1.clone();
    let deadline = Instant::now() + PATIENCE;
    let mut state = shared.lock();
    while !state.guest.get(device).is_some_and(&is) {
        assert!(Instant::now() < deadline, "{device}: {:?}", state.guest);
        state = shared.wait(state, Duration::from_secs(1));
    }
}

fn plugged(state: &GuestState) -> bool {
    *state == GuestState::Plugged
}

#[test]
fn devices_come_at_their_ports_and_go_and_an_absent_vm_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let plugs = Plugs::default();
    plugs.set(&host(
        folder.path(),
        &[("a", 1, Some(0)), ("b", 2, Some(5)), ("c", 3, None)],
    ));
    wait(&plugs, "a.vm1", |state| *state == GuestState::NotRunning);
    let devices = Devices::default();
    qemu(&folder.path().join("qmp"), &devices);
    wait(&plugs, "a.vm1", plugged);
    wait(&plugs, "b.vm1", plugged);
    wait(
        &plugs,
        "c.vm1",
        |state| matches!(state, GuestState::Failed(why) if why.contains("pci-slot")),
    );
    let bus = |id: &str| devices.lock().unwrap().get(id).map(|(_, bus)| bus.clone());
    assert_eq!(bus("a.vm1").as_deref(), Some("orimono-rp0"));
    assert_eq!(bus("b.vm1").as_deref(), Some("orimono-rp5"));
    plugs.release(["b.vm1"].into_iter());
    assert_eq!(bus("b.vm1"), None);
    assert!(bus("a.vm1").is_some());
}

#[test]
fn what_is_there_is_adopted_and_what_is_another_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let devices = Devices::default();
    let there = |mac: &str| (mac.to_owned(), "from before".to_owned());
    let before = [
        ("a.vm1", "02:00:00:00:00:01"),
        ("b.vm1", "02:00:00:00:00:99"),
        ("old.vm1", "02:00:00:00:00:77"),
        ("other.vm2", "02:00:00:00:00:78"),
    ];
    for (id, mac) in before {
        devices.lock().unwrap().insert(id.to_owned(), there(mac));
    }
    qemu(&folder.path().join("qmp"), &devices);
    let plugs = Plugs::default();
    plugs.set(&host(
        folder.path(),
        &[("a", 1, Some(0)), ("b", 2, Some(1))],
    ));
    wait(&plugs, "a.vm1", plugged);
    wait(&plugs, "b.vm1", plugged);
    let devices = devices.lock().unwrap();
    assert_eq!(devices["a.vm1"].1, "from before");
    assert_eq!(
        devices["b.vm1"],
        ("02:00:00:00:00:02".to_owned(), "orimono-rp1".to_owned())
    );
    let ids: Vec<_> = devices.keys().map(String::as_str).collect();
    assert_eq!(ids, ["a.vm1", "b.vm1", "other.vm2"]);
}

#[test]
fn a_guest_that_lets_nothing_go_holds_up_only_for_a_while() {
    let folder = tempfile::tempdir().unwrap();
    let devices = Devices::default();
    qemu(&folder.path().join("qmp"), &devices);
    let plugs = Plugs::default();
    plugs.set(&host(folder.path(), &[("stuck", 1, Some(0))]));
    wait(&plugs, "stuck.vm1", plugged);
    plugs.release(["stuck.vm1"].into_iter());
    wait(&plugs, "stuck.vm1", |state| {
        matches!(state, GuestState::Failed(_))
    });
    assert!(devices.lock().unwrap().contains_key("stuck.vm1"));
}

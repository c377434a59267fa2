//! `orimono-qos` against the real director and host agent, with guests that flood one slow link.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use fabric_config::HostConfig;
use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::Signal;
use orimono_tests::devices::net::{NetGuest, frame};
use orimono_tests::lab::{Lab, PATIENCE, program};
use serde_json::Value;

/// 100 Mb/s from host to director, of which `greedy` has most. `limited` would get much of the rest, but
/// for its peak.
const LAB: &str = r#"
[director]
name = "director1"
listen = ["tcp:127.0.0.1:7471"]
[[ethernet-port]]
port = "10/1"
tap = "orimono0"
rate = "1G"
[[host]]
name = "host1"
director = ["tcp:127.0.0.1:7471"]
run-dir = "@DIR@/host1"
rate = "100M"
[[host.vm]]
name = "greedy"
[[host.vm.vnic]]
name = "vn01"
id = 1
port = "10/1"
mac = "02:15:97:00:00:01"
ingress = { cir = "80M" }
[[host.vm]]
name = "best"
[[host.vm.vnic]]
name = "vn01"
id = 2
port = "10/1"
mac = "02:15:97:00:00:02"
[[host.vm]]
name = "limited"
[[host.vm.vnic]]
name = "vn01"
id = 3
port = "10/1"
mac = "02:15:97:00:00:03"
ingress = { cir = "4M", pir = "5M", pbs-bytes = 3000, weight = 1000 }
"#;

const DEVICES: [&str; 3] = ["vn01.greedy", "vn01.best", "vn01.limited"];

fn socket(lab: &Lab, device: &str) -> PathBuf {
    lab.folder().join("host1").join(format!("{device}.sock"))
}

fn orimono_qos(socket: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(program("orimono-qos").unwrap());
    command.arg("--socket").arg(socket).args(arguments);
    command.output().unwrap()
}

/// What it prints as JSON.
fn ask(socket: &Path, arguments: &[&str]) -> Value {
    let output = orimono_qos(socket, &[arguments, &["--json"]].concat());
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Expects exit code 1 and one line with all `words`.
fn refuses(socket: &Path, arguments: &[&str], words: &[&str]) {
    let output = orimono_qos(socket, arguments);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    for word in words {
        assert!(errors.contains(word), "{word:?} is not in: {errors}");
    }
}

/// Runs `work` while every device of `devices` sends as fast as it may, to nobody on the LAN.
fn flooded(lab: &Lab, devices: &[&str], work: impl FnOnce()) {
    let floods = AtomicBool::new(true);
    let (started, all_started) = mpsc::channel();
    std::thread::scope(|scope| {
        for device in devices {
            let (floods, started) = (&floods, started.clone());
            let path = socket(lab, device);
            let mut vnics = lab.config.hosts.iter().flat_map(HostConfig::vnics);
            let mac = vnics.find(|vnic| vnic.name == *device).unwrap().mac.0;
            scope.spawn(move || {
                let mut guest = NetGuest::connect(&path, 1).unwrap();
                let sent = frame([2, 0, 0, 0, 0, 9], mac, 1, 1500);
                for count in 0_u64.. {
                    guest.send(0, &sent).unwrap();
                    while guest.unsent(0) > 128 {
                        guest.wait_sent(0).unwrap();
                    }
                    if count == 150 {
                        started.send(()).unwrap();
                    }
                    if !floods.load(Ordering::Acquire) {
                        break;
                    }
                }
            });
        }
        for _device in devices {
            all_started.recv().unwrap();
        }
        // A failed expectation ends the floods too, or the scope would wait for ever.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        floods.store(false, Ordering::Release);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

#[test]
fn explain_names_what_held_a_device_and_who_used_the_rest() {
    let lab = Lab::start(LAB).unwrap();
    let agent = lab.control("host1");
    flooded(&lab, &DEVICES, || {
        let explained = ask(&agent, &["explain", "vn01.limited", "--for", "500ms"]);
        assert_eq!(explained[0]["hop"], "host1 uplink", "{explained}");
        assert_eq!(explained[0]["main_cause"], "own-limit", "{explained}");
        let explained = ask(&agent, &["explain", "vn01.best", "--for", "500ms"]);
        assert_eq!(explained[0]["main_cause"], "others-reserved", "{explained}");
        assert_eq!(explained[0]["others"][0][0], "vn01.greedy", "{explained}");
        // The ring of decisions says the same, at once.
        let explained = ask(&agent, &["explain", "vn01.limited", "--last"]);
        assert_eq!(explained[0]["main_cause"], "own-limit", "{explained}");
        let text = orimono_qos(
            &agent,
            &["explain", "vn01.best", "--hop", "uplink", "--last"],
        );
        let text = String::from_utf8(text.stdout).unwrap();
        assert!(
            text.contains("others-reserved: frames that others had"),
            "{text}"
        );
        // What the director sees of it: frames of the guests at the port.
        let director = lab.control("director");
        let explained = ask(&director, &["explain", "vn01.greedy", "--for", "300ms"]);
        let hops = explained.as_array().unwrap().iter();
        let port = hops
            .clone()
            .find(|hop| hop["hop"] == "ethernet-port 10/1 ingress");
        let frames = &port.unwrap()["report"]["offered"]["frames"];
        assert!(frames.as_u64().unwrap() > 0, "{explained}");
    });
}

#[test]
fn recording_replays_and_a_changed_one_is_refused() {
    let lab = Lab::start(LAB).unwrap();
    let agent = lab.control("host1");
    let file = lab.folder().join("trace");
    let path = file.to_str().unwrap();
    flooded(&lab, &DEVICES, || {
        let record = ["record", "uplink", "--for", "400ms", "-o", path];
        let recorded = ask(&agent, &record);
        assert!(recorded["calls"].as_u64().unwrap() > 100, "{recorded}");
        refuses(&agent, &record, &[path, "choose another -o"]);
    });
    let replayed = ask(&agent, &["replay", path]);
    assert!(replayed["departures"].as_u64().unwrap() > 50, "{replayed}");
    let explained = ask(&agent, &["replay", path, "--device", "vn01.limited"]);
    assert_eq!(explained["main_cause"], "own-limit", "{explained}");
    let whole = std::fs::read(&file).unwrap();
    let mut changed = whole.clone();
    *changed.get_mut(whole.len() / 2).unwrap() ^= 1;
    std::fs::write(&file, &changed).unwrap();
    refuses(
        &agent,
        &["replay", path],
        &[path, "checksum", "record it again"],
    );
    let half = whole.get(..whole.len() / 2).unwrap();
    std::fs::write(&file, half).unwrap();
    refuses(&agent, &["replay", path], &[path, "checksum"]);
    std::fs::write(&file, "no trace").unwrap();
    refuses(&agent, &["replay", path], &[path, "is no recording"]);
}

#[test]
fn broken_promise_raises_an_alarm_which_clears_again() {
    let lab = LAB
        .replace("rate = \"100M\"", "rate = \"20M\"\noversubscribe = true")
        .replace("cir = \"80M\"", "cir = \"15M\"")
        .replace(
            "cir = \"4M\", pir = \"5M\", pbs-bytes = 3000, weight = 1000",
            "cir = \"15M\"",
        );
    let mut lab = Lab::start(&lab).unwrap();
    let agent = lab.control("host1");
    let alarm = "device gets less than it was promised";
    flooded(&lab, &["vn01.greedy", "vn01.limited"], || {
        let log = lab.agents.first().unwrap().as_ref().unwrap();
        log.wait_line(alarm, 2, PATIENCE).unwrap();
        let hops = ask(&agent, &["hops"]);
        let hop = &hops[0]["snapshot"];
        assert_eq!(
            (&hops[0]["name"], &hop["oversubscribed"]),
            (&"host1 uplink".into(), &true.into())
        );
        assert_eq!(hop["degraded"], true);
        let sla = ask(&agent, &["sla"]);
        let sla = sla.as_array().unwrap().iter();
        let sla = sla
            .clone()
            .find(|sla| sla["device"] == "vn01.greedy")
            .unwrap();
        assert_eq!(sla["promised"], 15_000_000);
        assert_eq!(sla["report"]["alarmed"], true);
        assert!(sla["report"]["violations"].as_u64().unwrap() >= 2, "{sla}");
        let least = sla["report"]["achieved_min"].as_u64().unwrap();
        assert!(least < 15_000_000, "{sla}");
    });
    let agent_process = lab.agents.first_mut().unwrap().take().unwrap();
    agent_process
        .wait_line("device gets what it was promised again", 2, PATIENCE)
        .unwrap();
    // One line a change of state, however many intervals were violated.
    assert_eq!(agent_process.count_lines(alarm), 2);
    agent_process.end(Signal::SIGTERM).unwrap();
    assert!(!agent.exists(), "the control socket is left");
    refuses(
        &agent,
        &["sla"],
        &["nobody answers on", "start io-director or host-agent"],
    );
}

#[test]
fn top_shows_the_devices_until_it_is_told_to_quit() {
    let lab = Lab::start(LAB).unwrap();
    let size = Winsize {
        ws_row: 12,
        ws_col: 150,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let OpenptyResult { master, slave } = openpty(&size, None).unwrap();
    let mut top = Command::new(program("orimono-qos").unwrap());
    top.arg("--socket").arg(lab.control("host1")).arg("top");
    top.stdin(slave.try_clone().unwrap());
    top.stdout(slave.try_clone().unwrap());
    let mut child = top.stderr(slave).spawn().unwrap();
    // The last descriptors of the terminal's other end are the child's: its end is seen.
    drop(top);
    let mut terminal = File::from(master);
    let mut seen = Vec::new();
    let mut bytes = [0; 4096];
    while !String::from_utf8_lossy(&seen).contains("vn01.limited") {
        let count = terminal.read(&mut bytes).unwrap();
        seen.extend(bytes.iter().take(count));
    }
    terminal.write_all(b"q").unwrap();
    // It is read to its end, so that nothing it still draws waits; a closed terminal is EIO.
    while terminal.read(&mut bytes).is_ok() {}
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn tables_are_for_people_and_what_is_wrong_is_said_in_one_line() {
    let lab = Lab::start(LAB).unwrap();
    let (agent, director) = (lab.control("host1"), lab.control("director"));
    let text = |socket: &Path, arguments: &[&str]| {
        let output = orimono_qos(socket, arguments);
        assert!(output.status.success(), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let hops = text(&director, &["hops"]);
    for word in [
        "host1 downlink",
        "ethernet-port 10/1 ingress",
        "950 Mb/s",
        "kept",
    ] {
        assert!(hops.contains(word), "{word} is not in\n{hops}");
    }
    let devices = text(&agent, &["devices", "--for", "50ms"]);
    for word in ["vn01.greedy", "80 Mb/s", "best effort", "5 Mb/s"] {
        assert!(devices.contains(word), "{word} is not in\n{devices}");
    }
    let devices = text(&agent, &["devices"]);
    assert_eq!(devices.lines().count(), 4, "{devices}");
    refuses(
        &agent,
        &["explain", "vn09.best"],
        &["vn09.best", "vn01.best, vn01.greedy"],
    );
    refuses(
        &agent,
        &["explain", "vn01.best", "--hop", "lan"],
        &["\"lan\"", "host1 uplink"],
    );
    let output = orimono_qos(&agent, &["top"]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "wrong usage: {errors}");
    assert!(errors.contains("devices --for 1s"), "{errors}");
    for wrong in [["devices", "--for", "1h"], ["explain", "--for", "2s"]] {
        assert_eq!(orimono_qos(&agent, &wrong).status.code(), Some(2));
    }
    let mut without = Command::new(program("orimono-qos").unwrap());
    assert_eq!(without.arg("hops").output().unwrap().status.code(), Some(2));
}

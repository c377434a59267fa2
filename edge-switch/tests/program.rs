//! The program `edge-switch`: what it answers to its operator.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LAB: &str = r#"
[director]
name = "director1"
listen = ["unix:@DIR@/director"]
[[ethernet-port]]
port = "10/1"
tap = "orimono0"
[[host]]
name = "host1"
director = ["unix:@DIR@/switch"]
run-dir = "/run/orimono/host1"
rate = "1G"
[[host.vm]]
name = "vm1"
[[host.vm.vnic]]
name = "vn01"
id = 1
port = "10/1"
mac = "02:00:00:00:00:01"
ingress = { cir = "300M" }
[[edge-switch]]
name = "switch1"
listen = ["unix:@DIR@/switch"]
director = ["unix:@DIR@/director"]
rate = "400M"
hosts = ["host1"]
"#;

fn command(folder: &Path, change: (&str, &str), arguments: &[&str]) -> Command {
    let file = folder.join("lab.toml");
    let text = LAB.replace(change.0, change.1);
    fs::write(&file, text.replace("@DIR@", folder.to_str().unwrap())).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_edge-switch"));
    command.arg("--config").arg(file).args(arguments);
    command
}

fn run(change: (&str, &str), arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    command(folder.path(), change, arguments).output().unwrap()
}

fn refusal(change: (&str, &str), arguments: &[&str]) -> String {
    let output = run(change, arguments);
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn check_shows_the_uplink_in_both_directions() {
    let output = run(("", ""), &["--check"]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    for line in [
        "edge-switch switch1 ingress: nominal 400 Mb/s, payload 400 Mb/s, reservable 380 Mb/s, \
         reserved 300 Mb/s, free 80 Mb/s",
        "edge-switch switch1 egress: nominal 400 Mb/s, payload 400 Mb/s, reservable 380 Mb/s, \
         reserved 0 bit/s, free 380 Mb/s",
    ] {
        assert!(text.lines().any(|known| known == line), "{text}");
    }
}

#[test]
fn what_does_not_fit_is_refused_unless_it_may_be_oversubscribed() {
    let small = ("rate = \"400M\"", "rate = \"200M\"");
    let checked = refusal(small, &["--check"]);
    assert!(
        checked.contains("edge-switch switch1: 300 Mb/s asked, 190 Mb/s free of 190 Mb/s reservable; 110 Mb/s missing"),
        "{checked}"
    );
    let started = refusal(small, &[]);
    assert!(started.contains("host host1; ask for less"), "{started}");
    assert!(
        started.contains("edge-switch switch1 ingress: 300 Mb/s asked"),
        "{started}"
    );
    let output = run(small, &["--check", "--oversubscribe"]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_switch_that_is_not_in_the_file_is_named() {
    let error = refusal(("", ""), &["--check", "--name", "switch2"]);
    assert!(
        error.contains("there is no edge switch \"switch2\""),
        "{error}"
    );
    let (none, _) = LAB.split_once("[[edge-switch]]").unwrap();
    let error = refusal((LAB, none), &[]);
    assert!(error.contains("the lab file has no edge switch"), "{error}");
}

#[test]
fn it_listens_until_it_is_told_to_stop() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = command(folder.path(), ("", ""), &["--name", "switch1"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("edge switch listens")));
    assert!(folder.path().join("switch").exists());
    kill(
        Pid::from_raw(child.id().try_into().unwrap()),
        Signal::SIGTERM,
    )
    .unwrap();
    assert!(child.wait().unwrap().success());
    assert!(lines.any(|line| line.unwrap().contains("edge switch stops")));
    assert!(!folder.path().join("switch").exists());
}

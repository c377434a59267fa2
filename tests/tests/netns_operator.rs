//! What an operator gets wrong: one clear line, exit code 1 (2 for wrong usage), nothing left.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use orimono_tests::lab::{Namespace, program};

const LAB: &str = r#"
[director]
name = "director1"
listen = ["tcp:127.0.0.1:7471"]
[[ethernet-port]]
port = "10/1"
tap = "orimono0"
[[lun]]
name = "lun1"
port = "12/1"
file = "@DIR@/lun1"
[[host]]
name = "host1"
director = ["tcp:127.0.0.1:7471"]
run-dir = "@DIR@/host1"
rate = "10G"
[[host.vm]]
name = "vm1"
[[host.vm.vnic]]
name = "vn01"
id = 1
port = "10/1"
mac = "02:15:97:00:00:01"
[[host.vm.vhba]]
name = "vh01"
id = 11
port = "12/1"
luns = [ { lun = 0, name = "lun1" } ]
"#;

struct Site {
    folder: tempfile::TempDir,
    namespace: Namespace,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::File::create(folder.path().join("lun1"))
            .unwrap()
            .set_len(1 << 20)
            .unwrap();
        Self {
            folder,
            namespace: Namespace::new().unwrap(),
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Runs a program that is expected to end by itself, on a lab file with one thing replaced.
    fn run(&self, name: &str, replace: (&str, &str), arguments: &[&str]) -> Output {
        let (from, to) = replace;
        assert!(LAB.contains(from));
        let text = LAB
            .replace(from, to)
            .replace("@DIR@", &self.path().display().to_string());
        let file = self.path().join("lab.toml");
        fs::write(&file, text).unwrap();
        let mut command = Command::new(program(name).unwrap());
        command.arg("--config").arg(file).args(arguments);
        self.namespace.run(|| Ok(command.output()?)).unwrap()
    }

    /// Expects exit code 1 and one line on standard error that contains all `words`.
    fn refuses(&self, name: &str, replace: (&str, &str), arguments: &[&str], words: &[&str]) {
        let output = self.run(name, replace, arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        // Log lines of what went well may stand before.
        let last = text.lines().last().unwrap();
        assert!(last.starts_with(name), "{text}");
        for word in words {
            assert!(last.contains(word), "{word:?} is not in: {last}");
        }
        assert!(
            self.namespace.ip("-br link").unwrap().lines().count() == 1,
            "an interface is left"
        );
        assert!(
            !self.path().join("host1/vn01.vm1.sock").exists(),
            "a socket is left"
        );
    }
}

#[test]
fn missing_lun_file_is_named() {
    let site = Site::new();
    fs::remove_file(site.path().join("lun1")).unwrap();
    site.refuses(
        "io-director",
        ("lun1", "lun1"),
        &[],
        &["lun1", "/lun1", "No such file"],
    );
}

#[test]
fn busy_tap_is_named() {
    let site = Site::new();
    site.namespace
        .ip("link add orimono0 type veth peer name other0")
        .unwrap();
    let output = site.run("io-director", ("lun1", "lun1"), &[]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.lines().last().unwrap().contains("orimono0"), "{text}");
}

#[test]
fn busy_address_is_named() {
    let site = Site::new();
    let taken = site
        .namespace
        .run(|| Ok(std::net::TcpListener::bind("127.0.0.1:7471")?))
        .unwrap();
    site.refuses(
        "io-director",
        ("lun1", "lun1"),
        &[],
        &["tcp:127.0.0.1:7471"],
    );
    drop(taken);
}

#[test]
fn run_dir_that_cannot_be_made_is_named() {
    let site = Site::new();
    let in_a_file = ("@DIR@/host1", "@DIR@/lun1/host1");
    site.refuses(
        "host-agent",
        in_a_file,
        &[],
        &["run-dir", "/lun1/host1", "choose another run-dir"],
    );
}

#[test]
fn control_socket_that_would_replace_a_file_is_refused() {
    let site = Site::new();
    let file = site.path().join("lun1");
    let file = file.to_str().unwrap();
    for name in ["io-director", "host-agent"] {
        let words = [file, "is not a socket", "give --control another path"];
        site.refuses(name, ("lun1", "lun1"), &["--control", file], &words);
    }
    assert_eq!(fs::metadata(file).unwrap().len(), 1 << 20);
}

#[test]
fn unknown_host_and_vm_are_answered_with_those_there_are() {
    let site = Site::new();
    let same = ("lun1", "lun1");
    site.refuses(
        "host-agent",
        same,
        &["--host", "host9"],
        &["host9", "the lab file has host1"],
    );
    let words = ["vm9", "the lab file has vm1"];
    site.refuses("host-agent", same, &["--print-qemu-args", "vm9"], &words);
}

#[test]
fn wrong_lab_file_is_refused_by_both_with_place_and_object() {
    let site = Site::new();
    for name in ["io-director", "host-agent"] {
        let words = ["line", "vn01.vm1", "10/9"];
        let port = ("id = 1\nport = \"10/1\"", "id = 1\nport = \"10/9\"");
        let output = site.run(name, port, &["--check"]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        let found = words.iter().all(|word| text.contains(word));
        assert!(found, "{text}");
    }
}

#[test]
fn right_lab_file_passes_the_check_and_wrong_usage_is_exit_code_2() {
    let site = Site::new();
    for name in ["io-director", "host-agent"] {
        assert_eq!(
            site.run(name, ("lun1", "lun1"), &["--check"]).status.code(),
            Some(0)
        );
        assert_eq!(
            site.run(name, ("lun1", "lun1"), &["--no-such-option"])
                .status
                .code(),
            Some(2)
        );
    }
}

#[test]
fn reservations_that_do_not_fit_fail_the_check_unless_oversubscribed() {
    let site = Site::new();
    let too_much = (
        "mac = \"02:15:97:00:00:01\"",
        "mac = \"02:15:97:00:00:01\"\negress = { cir = \"9.6G\" }",
    );
    let hop = "host1 downlink egress: nominal 10 Gb/s, payload 10 Gb/s, reservable 9.5 Gb/s, ";
    for name in ["io-director", "host-agent"] {
        let words = ["vnic vn01.vm1", "host1 downlink", "100 Mb/s missing"];
        site.refuses(name, too_much, &["--check"], &words);
        let output = site.run(name, too_much, &["--check", "--oversubscribe"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(0), "{text}");
        let line = format!("{hop}reserved 9.6 Gb/s, free 0 bit/s, oversubscribed by 100 Mb/s");
        assert!(text.lines().any(|found| found == line), "{text}");
        let warnings = String::from_utf8_lossy(&output.stderr).into_owned();
        let warned = warnings
            .lines()
            .filter(|line| line.contains("hop is oversubscribed"));
        let warned: Vec<_> = warned.collect();
        assert_eq!(warned.len(), 1, "{warnings}");
        assert!(
            warned.iter().all(|line| line.contains("host1 downlink")),
            "{warnings}"
        );
    }
}

#[test]
fn printed_arguments_are_what_qemu_needs() {
    let site = Site::new();
    let output = site.run(
        "host-agent",
        ("lun1", "lun1"),
        &["--print-qemu-args", "vm1"],
    );
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for word in [
        "memory-backend-memfd",
        "share=on",
        "host1/vn01.vm1.sock",
        "mac=02:15:97:00:00:01",
        "vhost-user-scsi-pci",
    ] {
        assert!(text.contains(word), "{word} is not in: {text}");
    }
}

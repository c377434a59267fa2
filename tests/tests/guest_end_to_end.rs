//! One guest, ten vNICs and three vHBAs over one TCP link.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::fmt::Write;
use std::time::Duration;

use orimono_tests::lab::{self, Lab};
use serde_json::Value;

const VNICS: usize = 10;
const VHBAS: usize = 3;

fn lab_file() -> String {
    let mut text = String::from(
        r#"
[director]
name = "director1"
listen = ["tcp:127.0.0.1:7471"]
[[ethernet-port]]
port = "10/1"
tap = "orimono0"
[[ethernet-port]]
port = "10/2"
tap = "orimono1"
offloads = false
[[host]]
name = "host1"
director = ["tcp:127.0.0.1:7471"]
run-dir = "@DIR@/host1"
rate = "10G"
[[host.vm]]
name = "vm1"
"#,
    );
    for vnic in 0..VNICS {
        let port = 1 + vnic % 2;
        writeln!(
            text,
            "[[host.vm.vnic]]\nname = \"vn{vnic:02}\"\nid = {}\nport = \"10/{port}\"\n\
             mac = \"02:15:97:00:00:{vnic:02x}\"",
            100 + vnic
        )
        .unwrap();
    }
    for vhba in 0..VHBAS {
        // Two LUNs each, so that "sees only its own" can fail.
        writeln!(
            text,
            "[[host.vm.vhba]]\nname = \"vh{vhba:02}\"\nid = {}\nport = \"12/1\"\nqueues = 2\n\
             luns = [ {{ lun = 0, name = \"lun{vhba}a\" }}, {{ lun = 5, name = \"lun{vhba}b\" }} ]",
            200 + vhba
        )
        .unwrap();
    }
    for vhba in 0..VHBAS {
        for lun in ["a", "b"] {
            writeln!(
                text,
                "[[lun]]\nname = \"lun{vhba}{lun}\"\nport = \"12/1\"\nfile = \"@DIR@/lun{vhba}{lun}\""
            )
            .unwrap();
        }
    }
    text
}

#[test]
fn d1_d2_ten_vnics_and_three_vhbas_work_at_once_over_one_link() {
    let lab = Lab::start(&lab_file()).unwrap();
    for vnic in 0..VNICS {
        let port = vnic % 2;
        lab.namespace
            .ip(&format!("addr add 10.{vnic}.0.1/24 dev orimono{port}"))
            .unwrap();
    }
    let guest = lab.machine("vm1").unwrap().cpus(2).boot().unwrap();

    // One TCP connection carries everything.
    let director = lab.director.as_ref().unwrap();
    assert_eq!(director.count_lines("session became active"), 1);

    for vnic in 0..VNICS {
        lab::address(&guest, vnic, &format!("10.{vnic}.0.2/24")).unwrap();
    }
    for vnic in 0..VNICS {
        lab::run(
            &guest,
            &format!("ping -c 2 -i 0.2 -w 20 -I eth{vnic} 10.{vnic}.0.1"),
        )
        .unwrap();
    }

    // Each SCSI host sees its two LUNs and nothing else.
    let listing = lab::run(
        &guest,
        "for d in /sys/class/scsi_device/*/device; do \
         echo $(basename $(readlink $d)) $(tail -c +5 $d/vpd_pg80); done",
    )
    .unwrap();
    let mut seen: Vec<_> = listing
        .lines()
        .filter_map(|line| line.split_once(' '))
        .collect();
    seen.sort_unstable();
    assert_eq!(seen.len(), 2 * VHBAS, "{listing}");
    for (vhba, pair) in seen.chunks(2).enumerate() {
        let [(first, first_serial), (second, second_serial)] = pair else {
            panic!("{listing}")
        };
        assert_eq!(
            [first_serial.trim(), second_serial.trim()],
            [format!("lun{vhba}a"), format!("lun{vhba}b")]
        );
        let host = |address: &str| address.split(':').next().unwrap().to_owned();
        assert_eq!(host(first), host(second));
        assert!(
            first.ends_with(":0:0:0") && second.ends_with(":0:0:5"),
            "{listing}"
        );
    }

    let server = lab
        .serve(
            "iperf3",
            &["-s", "--forceflush", "--logfile", "/dev/stderr"],
        )
        .unwrap();
    server
        .wait_line("Server listening", 1, lab::PATIENCE)
        .unwrap();
    let traffic = guest.spawn("iperf3 -c 10.0.0.1 -t 12 -J").unwrap();
    let mut disks = Vec::new();
    for vhba in 0..VHBAS {
        let disk = lab::disk(&guest, &format!("lun{vhba}a")).unwrap();
        let command = format!(
            "fio --name=verify --filename=/dev/{disk} --rw=randrw --bsrange=512-256k --size=6m \
             --direct=1 --ioengine=libaio --iodepth=16 --verify=crc32c --verify_fatal=1"
        );
        disks.push((guest.spawn(&command).unwrap(), command));
    }
    for (id, command) in disks {
        let output = guest.wait(id, Duration::from_secs(120)).unwrap();
        lab::succeeded(&command, &output).unwrap();
    }
    let output = guest.wait(traffic, lab::PATIENCE).unwrap();
    let report: Value = serde_json::from_str(&lab::succeeded("iperf3", &output).unwrap()).unwrap();
    let bytes = report
        .pointer("/end/sum_received/bytes")
        .and_then(Value::as_u64)
        .unwrap();
    assert!(bytes > 1_000_000, "iperf3 moved only {bytes} bytes");
    assert_eq!(
        director.count_lines("session became active"),
        1,
        "the link never failed"
    );
    guest.poweroff(lab::PATIENCE).unwrap();
}

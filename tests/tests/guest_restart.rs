//! kill -9 of each part while a guest works: the others live, and serve again after a restart.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use orimono_qemu::Guest;
use orimono_tests::lab::{self, Lab};

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
[[lun]]
name = "lun2"
port = "12/1"
file = "@DIR@/lun2"
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
[[host.vm]]
name = "vm2"
[[host.vm.vnic]]
name = "vn01"
id = 2
port = "10/1"
mac = "02:15:97:00:00:02"
[[host.vm.vhba]]
name = "vh01"
id = 12
port = "12/1"
luns = [ { lun = 0, name = "lun2" } ]
"#;

/// Pings until an answer comes; the guest waits, nobody sleeps here.
fn reaches(guest: &Guest, target: &str) {
    lab::run(
        guest,
        &format!("for i in $(seq 60); do ping -c 1 -W 1 {target} && exit 0; done; exit 1"),
    )
    .unwrap();
}

fn writes_and_reads(guest: &Guest, disk: &str) {
    let script = format!(
        "dd if=/dev/urandom of=/tmp/pattern bs=64k count=8 2>&1 && \
         dd if=/tmp/pattern of=/dev/{disk} bs=64k oflag=direct 2>&1 && \
         dd if=/dev/{disk} of=/tmp/back bs=64k count=8 iflag=direct 2>&1 && cmp /tmp/pattern /tmp/back"
    );
    lab::run(guest, &script).unwrap();
}

fn prepare(lab: &Lab, address: &str, vm: &str) -> Guest {
    let guest = lab.boot(vm).unwrap();
    lab::address(&guest, 0, address).unwrap();
    reaches(&guest, "10.1.0.1");
    guest
}

/// The longest fio run of these tests: it must survive whatever happens meanwhile.
fn start_verified_io(guest: &Guest, disk: &str) -> (orimono_qemu::CommandId, String) {
    let command = format!(
        "fio --name=verify --filename=/dev/{disk} --rw=randrw --bs=16k --size=8m --loops=3 --direct=1 \
         --ioengine=libaio --iodepth=8 --verify=crc32c --verify_fatal=1 --rate_iops=150"
    );
    (guest.spawn(&command).unwrap(), command)
}

#[test]
fn director_may_be_killed_and_restarted_under_verified_io() {
    let mut lab = Lab::start(LAB).unwrap();
    lab.namespace
        .ip("addr add 10.1.0.1/24 dev orimono0")
        .unwrap();
    let guest = prepare(&lab, "10.1.0.11/24", "vm1");
    let disk = lab::disk(&guest, "lun1").unwrap();
    let (io, command) = start_verified_io(&guest, &disk);
    lab::run(&guest, "sleep 1").unwrap();
    for round in 2..4 {
        lab.kill_director().unwrap();
        let agent = lab.agents.first().unwrap().as_ref().unwrap();
        agent
            .wait_line("session closed", round - 1, lab::PATIENCE)
            .unwrap();
        lab.start_director().unwrap();
        lab.wait_sessions(round).unwrap();
        lab.namespace
            .ip("addr add 10.1.0.1/24 dev orimono0")
            .unwrap();
        // The vNIC works again by itself.
        reaches(&guest, "10.1.0.1");
    }
    // Each outage was reported once.
    let agent = lab.agents.first().unwrap().as_ref().unwrap();
    assert_eq!(agent.count_lines("session closed"), 2);
    assert!(agent.count_lines("director cannot be reached") <= 2);
    let output = guest.wait(io, lab::PATIENCE * 3).unwrap();
    lab::succeeded(&command, &output).unwrap();
    // Linux retried what was lost in transit; nothing reached the file system layer as an error.
    let errors = lab::run(&guest, "dmesg | grep -c 'I/O error' || true").unwrap();
    assert_eq!(errors.trim(), "0");
}

#[test]
fn guest_or_qemu_may_be_killed_and_nobody_else_notices() {
    let lab = Lab::start(LAB).unwrap();
    lab.namespace
        .ip("addr add 10.1.0.1/24 dev orimono0")
        .unwrap();
    let victim = prepare(&lab, "10.1.0.11/24", "vm1");
    let other = prepare(&lab, "10.1.0.12/24", "vm2");
    let disk = lab::disk(&other, "lun2").unwrap();
    let (io, command) = start_verified_io(&other, &disk);
    let disk = lab::disk(&victim, "lun1").unwrap();
    start_verified_io(&victim, &disk);
    victim.kill().unwrap();
    lab::succeeded(&command, &other.wait(io, lab::PATIENCE * 3).unwrap()).unwrap();
    reaches(&other, "10.1.0.1");
    // The same devices serve a new guest.
    let again = prepare(&lab, "10.1.0.11/24", "vm1");
    let disk = lab::disk(&again, "lun1").unwrap();
    writes_and_reads(&again, &disk);
    reaches(&again, "10.1.0.12");
}

#[test]
fn host_agent_may_be_killed_and_the_vnic_reconnects_by_itself() {
    let mut lab = Lab::start(LAB).unwrap();
    lab.namespace
        .ip("addr add 10.1.0.1/24 dev orimono0")
        .unwrap();
    let guest = prepare(&lab, "10.1.0.11/24", "vm1");
    lab.kill_agent(0).unwrap();
    let director = lab.director.as_ref().unwrap();
    director
        .wait_line("session closed", 1, lab::PATIENCE)
        .unwrap();
    lab.start_agent(0).unwrap();
    lab.wait_sessions(1).unwrap();
    reaches(&guest, "10.1.0.1");
    assert_eq!(
        lab.director.as_ref().unwrap().count_lines("session closed"),
        1
    );
}

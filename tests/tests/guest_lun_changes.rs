//! What happens to LUNs reaches a guest by itself: nobody asks it to rescan anything.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use orimono_qemu::Guest;
use orimono_tests::lab::{self, LUN_BYTES, Lab, Namespace, PATIENCE};
use orimono_tests::tgt::{TARGET, Tgt};

const LAB: &str = r#"
[director]
name = "director1"
listen = ["tcp:127.0.0.1:7471"]
[[lun]]
name = "first"
port = "12/1"
file = "@DIR@/first"
[[lun]]
name = "second"
port = "12/1"
file = "@DIR@/second"
[[lun]]
name = "third"
port = "12/1"
file = "@DIR@/third"
[[host]]
name = "host1"
director = ["tcp:127.0.0.1:7471"]
run-dir = "@DIR@/host1"
rate = "10G"
[[host.vm]]
name = "vm1"
[[host.vm.vhba]]
name = "vh01"
id = 11
port = "12/1"
luns = [ { lun = 0, name = "first" }, { lun = 1, name = "second" } ]
"#;

/// The guest waits until its shell finds `condition` true.
fn wait_until(guest: &Guest, condition: &str) {
    let script = format!(
        "for i in $(seq 1000); do {condition} && exit 0; sleep 0.02; done; \
         echo 'never: {}'; dmesg | tail -20; exit 1",
        condition.replace('\'', "")
    );
    lab::run(guest, &script).unwrap();
}

fn resize(file: &Path, bytes: u64) {
    let file = File::options().write(true).open(file).unwrap();
    file.set_len(bytes).unwrap();
}

/// Whether a disk with this serial number is there, as a condition.
fn has(serial: &str) -> String {
    format!("grep -q -s {serial} /sys/block/sd*/device/vpd_pg80")
}

#[test]
fn a_guest_sees_a_new_size_without_a_rescan() {
    let lab = Lab::start(LAB).unwrap();
    let guest = lab.boot("vm1").unwrap();
    let disk = lab::disk(&guest, "second").unwrap();
    let file = lab.folder().join("second");
    for bytes in [2 * LUN_BYTES, LUN_BYTES / 2, 3 * LUN_BYTES] {
        let began = Instant::now();
        resize(&file, bytes);
        let sectors = bytes / 512;
        wait_until(
            &guest,
            &format!("[ $(cat /sys/block/{disk}/size) = {sectors} ]"),
        );
        println!("seen after {} ms", began.elapsed().as_millis());
    }
    // What was added works.
    let last = 3 * LUN_BYTES / 4096 - 1;
    let write = format!("dd if=/dev/urandom of=/dev/{disk} bs=4k seek={last} count=1 oflag=direct");
    lab::run(&guest, &write).unwrap();
    let other = lab::disk(&guest, "first").unwrap();
    let size = lab::run(&guest, &format!("cat /sys/block/{other}/size")).unwrap();
    assert_eq!(size.trim(), (LUN_BYTES / 512).to_string());
}

/// The director takes the lab files while it runs, and says so itself.
#[test]
fn a_guest_sees_luns_that_are_added_removed_and_exchanged_while_it_runs() {
    let mut lab = Lab::start(LAB).unwrap();
    let guest = lab.boot("vm1").unwrap();
    let kept = lab::disk(&guest, "first").unwrap();
    let mut map = |luns: &str, condition: &str| {
        let second = "{ lun = 1, name = \"second\" }";
        lab.rewrite(&LAB.replace(second, luns)).unwrap();
        let began = Instant::now();
        lab.apply("director").unwrap();
        wait_until(&guest, condition);
        println!("{luns:?} seen after {} ms", began.elapsed().as_millis());
    };
    let both = "{ lun = 1, name = \"second\" }, { lun = 5, name = \"third\" }";
    map(both, &format!("{} && {}", has("second"), has("third")));
    map(
        "{ lun = 5, name = \"third\" }",
        &format!("! {} && {}", has("second"), has("third")),
    );
    // The number stays, the unit behind it is another.
    map(
        "{ lun = 5, name = \"second\" }",
        &format!("{} && ! {}", has("second"), has("third")),
    );
    assert_eq!(lab::disk(&guest, "first").unwrap(), kept);
    let exchanged = lab::disk(&guest, "second").unwrap();
    for disk in [kept, exchanged] {
        let write = format!("dd if=/dev/urandom of=/dev/{disk} bs=64k count=4 oflag=direct");
        lab::run(&guest, &write).unwrap();
    }
}

/// A director that starts with another lab file says nothing of what differs: the guest hears that it
/// missed events, and looks at everything.
#[test]
fn a_guest_finds_what_another_lab_file_added_and_removed() {
    let mut lab = Lab::start(LAB).unwrap();
    let guest = lab.boot("vm1").unwrap();
    let kept = lab::disk(&guest, "first").unwrap();
    lab::disk(&guest, "second").unwrap();
    lab.kill_director().unwrap();
    let other = (
        "{ lun = 1, name = \"second\" }",
        "{ lun = 5, name = \"third\" }",
    );
    let _director = lab.start_other_director(&[other]).unwrap();
    let began = Instant::now();
    wait_until(&guest, &format!("! {} && {}", has("second"), has("third")));
    println!("seen after {} ms", began.elapsed().as_millis());
    assert_eq!(lab::disk(&guest, "first").unwrap(), kept);
    let added = lab::disk(&guest, "third").unwrap();
    for disk in [kept, added] {
        let write = format!("dd if=/dev/urandom of=/dev/{disk} bs=64k count=4 oflag=direct");
        lab::run(&guest, &write).unwrap();
    }
}

#[test]
fn a_guest_sees_a_size_that_changed_while_no_director_was_there() {
    let mut lab = Lab::start(LAB).unwrap();
    let guest = lab.boot("vm1").unwrap();
    let disk = lab::disk(&guest, "second").unwrap();
    lab.kill_director().unwrap();
    resize(&lab.folder().join("second"), 2 * LUN_BYTES);
    lab.start_director().unwrap();
    let sectors = 2 * LUN_BYTES / 512;
    wait_until(
        &guest,
        &format!("[ $(cat /sys/block/{disk}/size) = {sectors} ]"),
    );
}

#[test]
fn a_guest_waits_for_a_lun_that_stalls_and_goes_on() {
    let namespace = Namespace::new().unwrap();
    let tgt = namespace.run(Tgt::new).unwrap();
    let second = "file = \"@DIR@/second\"";
    let unit = format!(
        "iscsi = \"{TARGET}\"\nportal = \"{}\"\ntarget-lun = 1\ninitiator = \"iqn.2026-01.org.orimono:director1\"",
        tgt.portal()
    );
    let lab = Lab::start_in(namespace, &LAB.replace(second, &unit)).unwrap();
    let guest = lab.boot("vm1").unwrap();
    let local = lab::disk(&guest, "first").unwrap();
    let listed = lab::run(&guest, "ls /sys/block | grep sd").unwrap();
    let far = listed.lines().find(|disk| *disk != local).unwrap();

    let command = format!(
        "fio --name=verify --filename=/dev/{far} --rw=randwrite --bs=16k --size=16m --direct=1 \
         --ioengine=libaio --iodepth=8 --verify=crc32c --verify_fatal=1 --rate_iops=300"
    );
    let io = guest.spawn(&command).unwrap();
    let written = format!("$(set -- $(cat /sys/block/{far}/stat); echo $5)");
    wait_until(&guest, &format!("[ {written} -gt 20 ]"));
    tgt.pause().unwrap();
    // What fio has in flight is stuck, and the other LUN does not care.
    wait_until(
        &guest,
        &format!("[ $(set -- $(cat /sys/block/{far}/stat); echo $9) -gt 0 ]"),
    );
    let before = lab::run(&guest, &format!("echo {written}")).unwrap();
    let write = format!("dd if=/dev/urandom of=/dev/{local} bs=64k count=64 oflag=direct");
    lab::run(&guest, &write).unwrap();
    lab::run(&guest, "sleep 3").unwrap();
    assert_eq!(
        lab::run(&guest, &format!("echo {written}")).unwrap(),
        before
    );
    tgt.resume().unwrap();
    let output = guest.wait(io, PATIENCE * 2).unwrap();
    lab::succeeded(&command, &output).unwrap();
    let errors = lab::run(&guest, "dmesg | grep -c 'I/O error' || true").unwrap();
    assert_eq!(errors.trim(), "0");
}

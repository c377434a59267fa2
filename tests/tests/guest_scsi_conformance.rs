//! What other people's tools say about a LUN of ours, in a guest: libiscsi's `iscsi-test-cu`,
//! sg3-utils, fio, and the kernel's cache types.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]
#![expect(
    clippy::print_stdout,
    reason = "the numbers are what the suite is run for"
)]

mod scsi_conformance;

use std::fs::File;
use std::time::Duration;

use orimono_qemu::{ExitStatus, Guest, Output};
use orimono_tests::lab::{self, Lab};
use scsi_conformance::{Count, Exception, Sheet, Verdict};
use tempfile::TempDir;

const LAB: &str = r#"
[director]
name = "director1"
listen = ["tcp:127.0.0.1:7471"]
[[lun]]
name = "scratch"
port = "12/1"
file = "@LUNS@/scratch"
[[lun]]
name = "shared"
port = "12/1"
file = "@LUNS@/shared"
[[lun]]
name = "readonly"
port = "12/1"
file = "@LUNS@/readonly"
read-only = true
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
luns = [
    { lun = 0, name = "scratch" },
    { lun = 1, name = "shared" },
    { lun = 2, name = "readonly" },
]
[[host.vm.vhba]]
name = "vh02"
id = 12
port = "12/1"
luns = [ { lun = 0, name = "shared" } ]
"#;

/// Most time for one test of iscsi-test-cu; a guard, not a figure.
const TEST_SECONDS: u64 = 120;

/// Bytes of a LUN: less than 65536 blocks, because WriteSame16.Unmap reads that many at once, which
/// is above the MAXIMUM TRANSFER LENGTH of ours and above what /dev/sg takes.
const LUN_BYTES: u64 = 24 << 20;

const fn skipped(names: &'static [&'static str], reason: &'static str) -> Exception {
    Exception {
        names,
        verdict: Verdict::Skipped,
        reason,
    }
}

const ISCSI_TEST_CU: &[Exception] = &[
    skipped(
        &["NoMedia.NoMediaSBC", "PreventAllow.*", "StartStopUnit.*"],
        "of removable media; a LUN is none",
    ),
    skipped(
        &[
            "ProutPreempt.RemoveRegistration",
            "ProutReserve.Access*",
            "ProutReserve.Ownership*",
            "Reserve6.2Initiators",
            "Reserve6.ITNexusLoss",
            "Reserve6.LUNReset",
            "Reserve6.Logout",
            "Reserve6.Target*",
        ],
        "of two initiators, which the tool has only over iSCSI; \
         scsi-target/src/tests/reservations.rs tries the same",
    ),
    skipped(
        &[
            "MultipathIO.CompareAndWriteAsync",
            "MultipathIO.Reset",
            "Read10.Async",
            "Sanitize.BlockEraseReserved",
            "Sanitize.CryptoEraseReserved",
            "Sanitize.Readonly",
            "Sanitize.Reservations",
            "Sanitize.Reset",
            "Write10.Async",
        ],
        "the tool has it only over iSCSI, not on /dev/sg",
    ),
    skipped(
        &[
            "CompareAndWrite.InvalidDataOutSize",
            "WriteSame10.InvalidDataOutSize",
            "WriteSame10.UnmapUnaligned",
            "WriteSame16.InvalidDataOutSize",
            "WriteSame16.UnmapUnaligned",
        ],
        "of physical blocks that are larger than logical ones; here they are the same",
    ),
    skipped(
        &["WriteSame10.ZeroBlocks", "WriteSame16.ZeroBlocks"],
        "WSNZ is set: 0 blocks do not mean the rest of the LUN",
    ),
    skipped(
        &["WriteAtomic16.*"],
        "a file is not written atomically, so there is no WRITE ATOMIC",
    ),
    skipped(
        &["ReadDefectData10.Simple", "ReadDefectData12.Simple"],
        "optional, and a file has no defect list",
    ),
    skipped(
        &["Sanitize.CryptoErase"],
        "nothing is encrypted, so there is no cryptographic erasure",
    ),
    Exception {
        names: &["Sanitize.OverwriteReserved"],
        verdict: Verdict::Failed,
        reason: "the tool ends with a segmentation fault before it sends the command",
    },
];

const SG3: &[Exception] = &[skipped(
    &["write_atomic"],
    "a file is not written atomically, so there is no WRITE ATOMIC",
)];
/// Exit status of sg3-utils for INVALID COMMAND OPERATION CODE.
const SG3_INVALID_OPCODE: u8 = 9;
/// Exit status of sg3-utils for UNIT ATTENTION.
const SG3_UNIT_ATTENTION: u8 = 6;

/// The sg devices of the disk with this serial number, one for each path to it.
fn sg_devices(guest: &Guest, serial: &str) -> Vec<String> {
    let script = "for d in /sys/block/sd*; do \
        echo $(basename $d/device/scsi_generic/*) $(tail -c +5 $d/device/vpd_pg80); done";
    let listed = lab::run(guest, script).unwrap();
    let of_serial = listed.lines().filter_map(|line| {
        let (sg, known) = line.split_once(' ')?;
        (known.trim() == serial).then(|| format!("/dev/{sg}"))
    });
    let found: Vec<_> = of_serial.collect();
    assert!(!found.is_empty(), "no disk {serial}:\n{listed}");
    found
}

/// The verdict of one test in what CUnit prints: `tests TOTAL RAN PASSED FAILED INACTIVE`.
fn cunit_verdict(output: &str) -> Verdict {
    let summary = output.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("tests")).then(|| words.collect::<Vec<_>>())
    });
    match summary.as_deref() {
        Some([_total, _ran, "1", "0", ..])
            if output.contains("[SKIPPED]") || !sends_commands(output) =>
        {
            Verdict::Skipped
        }
        Some([_total, _ran, "1", "0", ..]) => Verdict::Passed,
        // None: it crashed or hung.
        _ => Verdict::Failed,
    }
}

/// Runs a command that itself ends in time, unless the kernel holds it up: then the kernel is asked
/// what with.
fn run(guest: &Guest, command: &str) -> Output {
    let within = Duration::from_secs(TEST_SECONDS) + lab::PATIENCE;
    guest.run(command, within).unwrap_or_else(|error| {
        let held_up = "dmesg | tail -40; for p in /proc/[0-9]*; do \
            grep -q 'State:.D' $p/status && cat $p/comm $p/stack; done; \
            grep . /sys/class/scsi_host/*/state; true";
        panic!("{error}\n{}", lab::run(guest, held_up).unwrap())
    })
}

/// Whether the test itself, behind what the tool asks of every device, sends a command: some skip
/// without a word.
fn sends_commands(output: &str) -> bool {
    let test = output.split_once("  Test: ");
    test.is_some_and(|(_before, test)| test.contains(" Send ") || test.contains("[SUCCESS]"))
}

fn iscsi_test_cu(guest: &Guest) -> Sheet {
    let mut sheet = Sheet::new("iscsi-test-cu", ISCSI_TEST_CU);
    let [scratch, shared, read_only] =
        ["scratch", "shared", "readonly"].map(|serial| sg_devices(guest, serial).join(" "));
    let listed = lab::run(guest, "iscsi-test-cu --list").unwrap();
    let tests = listed
        .lines()
        .filter_map(|line| line.trim().strip_prefix("SCSI."))
        .filter(|name| name.contains('.'));
    let mut suite = "";
    for name in tests {
        let (begins, _test) = name.split_once('.').unwrap();
        let device = match begins {
            "MultipathIO" => &shared,
            "ReadOnly" => &read_only,
            _ => &scratch,
        };
        if begins != suite {
            // What earlier suites left behind, such as results of copies, ends with a reset.
            let reset = format!(
                "for d in {device}; do sg_reset --no-esc --device $d; sg_turs -n 2 $d; done"
            );
            lab::run(guest, &reset).unwrap();
            suite = begins;
        }
        let command = format!(
            "timeout {TEST_SECONDS} iscsi-test-cu --dataloss --allow-sanitize --Verbose-scsi \
             --test=SCSI.{name} {device} 2>&1"
        );
        let text = run(guest, &command).stdout_text();
        sheet.enter(name, cunit_verdict(&text), &text);
    }
    sheet
}

/// The commands of `sg3-checks.txt`, in order, each with the exit status that it wants.
fn sg3_checks() -> impl Iterator<Item = (&'static str, u8, &'static str)> {
    let lines = include_str!("scsi_conformance/sg3-checks.txt").lines();
    lines.filter(|line| !line.starts_with('#')).map(|line| {
        let mut columns = line.split('\t');
        let mut next = || columns.next().unwrap();
        (next(), next().parse().unwrap(), next())
    })
}

fn sg3_utils(guest: &Guest) -> Sheet {
    let mut sheet = Sheet::new("sg3-utils", SG3);
    let device = sg_devices(guest, "scratch").join(" ");
    lab::run(
        guest,
        "mkdir /tmp/sg3 && cd /tmp/sg3 && \
         dd if=/dev/urandom of=blk bs=512 count=1 2>&1 && \
         dd if=/dev/urandom of=blk2 bs=512 count=1 2>&1 && \
         cat blk blk2 > caw && cat blk2 blk2 > caw2",
    )
    .unwrap();
    for (name, wanted, command) in sg3_checks() {
        let command = format!("cd /tmp/sg3; SG={device}; timeout {TEST_SECONDS} {command} 2>&1");
        let output = run(guest, &command);
        let verdict = match output.status {
            ExitStatus::Exited(status) if status == wanted => Verdict::Passed,
            ExitStatus::Exited(SG3_INVALID_OPCODE) => Verdict::Skipped,
            _ => Verdict::Failed,
        };
        let text = format!("{command}\n{:?}\n{}", output.status, output.stdout_text());
        sheet.enter(name, verdict, &text);
    }
    sheet
}

/// Verified load in the ways that file systems and databases do it.
const FIO: [(&str, &str); 4] = [
    (
        "fio-random-4k",
        "--rw=randrw --bs=4k --ioengine=libaio --iodepth=16 --direct=1 --verify=crc32c",
    ),
    (
        "fio-mixed-sizes",
        "--rw=randrw --bsrange=512-256k --ioengine=libaio --iodepth=16 --direct=1 --verify=crc32c",
    ),
    (
        "fio-fsync",
        "--rw=randwrite --bs=16k --ioengine=psync --fsync=8 --verify=sha1",
    ),
    (
        "fio-trim",
        "--rw=randtrimwrite --bs=16k --ioengine=psync --direct=1",
    ),
];

/// Each with the bits WCE and RCD of the caching page.
const CACHE_TYPES: [(&str, u8); 4] = [
    ("write through", 0x00),
    ("none", 0x01),
    ("write back", 0x04),
    ("write back, no read (daft)", 0x05),
];

fn fio_and_cache_types(guest: &Guest) -> Sheet {
    let mut sheet = Sheet::new("fio and cache types", &[]);
    let disk = lab::disk(guest, "scratch").unwrap();
    for (name, options) in FIO {
        let command = format!(
            "timeout {TEST_SECONDS} fio --name={name} --filename=/dev/{disk} --size=8m --verify_fatal=1 {options} 2>&1"
        );
        let output = run(guest, &command);
        let verdict = if output.status.success() {
            Verdict::Passed
        } else {
            Verdict::Failed
        };
        sheet.enter(name, verdict, &output.stdout_text());
    }
    // blktests scsi/006, and that the unit was told: the kernel asks the unit again at each write.
    for (cache_type, bits) in CACHE_TYPES {
        let script = format!(
            "cd /sys/block/{disk}/device/scsi_disk/*/ && echo '{cache_type}' > cache_type && \
             cat cache_type && sg_modes --raw --page=8 /dev/{disk} | od -An -tx1 -v | tr -d '\n'"
        );
        let output = run(guest, &script);
        let text = output.stdout_text();
        let (set, page) = text.split_once('\n').unwrap_or_default();
        let page: Vec<u8> = page
            .split_whitespace()
            .filter_map(|byte| u8::from_str_radix(byte, 16).ok())
            .collect();
        // Behind header and block descriptor: page code, length, flags.
        let as_told = page.windows(3).any(|bytes| match bytes {
            [0x08, 0x12, flags] => flags & 0x05 == bits,
            _ => false,
        });
        let verdict = if set == cache_type && as_told {
            Verdict::Passed
        } else {
            Verdict::Failed
        };
        let seen = format!("{:?}\n{text}{}", output.status, output.stderr_text());
        sheet.enter(&format!("cache type {cache_type:?}"), verdict, &seen);
    }
    sheet
}

fn start() -> (Lab, TempDir) {
    let luns = tempfile::tempdir().unwrap();
    for name in ["scratch", "shared", "readonly"] {
        let file = File::create(luns.path().join(name)).unwrap();
        file.set_len(LUN_BYTES).unwrap();
    }
    let text = LAB.replace("@LUNS@", &luns.path().display().to_string());
    (Lab::start(&text).unwrap(), luns)
}

#[test]
fn a_lun_is_what_the_standards_say() {
    let (lab, _luns) = start();
    let guest = lab.boot("vm1").unwrap();
    let sheets = [
        iscsi_test_cu(&guest),
        sg3_utils(&guest),
        fio_and_cache_types(&guest),
    ];
    let mut total = Count::default();
    for sheet in &sheets {
        total += sheet.print();
    }
    println!("in total: {total}");
    for sheet in &sheets {
        sheet.assert_as_expected();
    }
    guest.poweroff(lab::PATIENCE).unwrap();
}

#[test]
fn s10_sg_reset_under_io_is_told_and_loses_nothing() {
    let (lab, _luns) = start();
    let guest = lab.boot("vm1").unwrap();
    // An idle disk: nobody else takes the unit attention.
    let idle = &sg_devices(&guest, "shared")[0];
    lab::run(
        &guest,
        &format!("sg_turs -n 2 {idle}; sg_reset --no-esc --device {idle}"),
    )
    .unwrap();
    let told = guest
        .run(&format!("sg_turs {idle}"), lab::PATIENCE)
        .unwrap();
    assert_eq!(
        told.status,
        ExitStatus::Exited(SG3_UNIT_ATTENTION),
        "{}",
        told.stderr_text()
    );
    lab::run(&guest, &format!("sg_turs {idle}")).unwrap();

    let disk = lab::disk(&guest, "scratch").unwrap();
    let busy = sg_devices(&guest, "scratch").remove(0);
    let command = format!(
        "fio --name=reset --filename=/dev/{disk} --rw=randrw --bs=4k --size=8m --loops=2 --direct=1 \
         --ioengine=libaio --iodepth=16 --verify=crc32c --verify_fatal=1"
    );
    let io = guest.spawn(&command).unwrap();
    let resets = format!(
        "n=0; while pidof fio >/dev/null || [ $n = 0 ]; do \
         sg_reset --no-esc --device {busy} || exit; n=$((n+1)); [ $n = 200 ] && break; done; echo $n"
    );
    let count = lab::run_within(&guest, &resets, lab::PATIENCE * 3).unwrap();
    println!("{} resets under I/O", count.trim());
    let output = guest.wait(io, lab::PATIENCE * 3).unwrap();
    lab::succeeded(&command, &output).unwrap();
    let errors = lab::run(&guest, "dmesg | grep -c 'I/O error' || true").unwrap();
    assert_eq!(errors.trim(), "0");
    guest.poweroff(lab::PATIENCE).unwrap();
}

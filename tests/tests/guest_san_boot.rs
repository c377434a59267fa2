//! A guest without a local disk: firmware, boot loader, kernel and Debian's root file system are
//! all on a LUN.
//!
//! Making the disk takes a minute or two, so nothing is tried without `ORIMONO_TEST_FULL=1`, which
//! `cargo xtask test guest --full` sets.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use orimono_qemu::image::debian::{self, Booted};
use orimono_qemu::{AcceleratorChoice, Firmware, GuestImage, Machine, Qemu, Vhba, image};
use orimono_tests::lab::Lab;

/// Under TCG a start takes 25 s on an idle machine. A guard, not a figure.
const START_WITHIN: Duration = Duration::from_secs(300);

const LAB: &str = r#"
[director]
name = "director1"
listen = ["tcp:127.0.0.1:7471"]
[[lun]]
name = "system"
port = "12/1"
file = "@DISK@"
[[lun]]
name = "blank"
port = "12/1"
file = "@DIR@/blank"
[[host]]
name = "host1"
director = ["tcp:127.0.0.1:7471"]
run-dir = "@DIR@/host1"
rate = "10G"
[[host.vm]]
name = "vm1"
[[host.vm.vhba]]
name = "vh00"
id = 10
port = "12/1"
luns = [ { lun = 0, name = "blank" } ]
[[host.vm.vhba]]
name = "vh01"
id = 11
port = "12/1"
queues = 2
luns = [ { lun = 0, name = "system" } ]
"#;

/// All disks are on the vHBAs of the lab's VM; SeaBIOS would take the first if nobody named another.
fn machine(lab: &Lab) -> Machine {
    let cache = image::default_cache();
    let (guest_image, qemu) = (GuestImage::ensure(&cache).unwrap(), Qemu::find().unwrap());
    let accelerator = AcceleratorChoice::Auto
        .resolve(&qemu, &guest_image, &cache)
        .unwrap();
    let vhba = |name| Vhba::new(name, lab.folder().join(format!("host1/{name}.vm1.sock")));
    Machine::new(qemu, guest_image, accelerator)
        .vhba(vhba("vh00"))
        .vhba(Vhba {
            queues: 2,
            boot_index: Some(1),
            ..vhba("vh01")
        })
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}{errors}");
    text
}

#[test]
fn d5_debian_starts_from_a_lun_by_seabios_and_by_ovmf() {
    if std::env::var_os("ORIMONO_TEST_FULL").is_none() {
        return;
    }
    let made = debian::ensure(&image::default_cache(), &mut |_line| {}).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    output(
        Command::new("cp")
            .arg("--sparse=always")
            .arg(made)
            .arg(&disk),
    );
    let lab = Lab::start(&LAB.replace("@DISK@", &disk.to_string_lossy())).unwrap();

    let starts = [
        (Firmware::SeaBios, "bios"),
        (Firmware::Ovmf, "efi"),
        // What the other firmware left in the device must not matter.
        (Firmware::SeaBios, "bios"),
    ];
    for (earlier, (firmware, name)) in starts.into_iter().enumerate() {
        let began = Instant::now();
        let console = machine(&lab).run_from_disk(firmware, START_WITHIN).unwrap();
        println!("{firmware:?}: {:.0} s", began.elapsed().as_secs_f64());
        let expected = Booted {
            firmware: name.to_owned(),
            serial: "system".to_owned(),
            driver: "virtio_scsi".to_owned(),
            disks: "2".to_owned(),
            starts: earlier.to_string(),
        };
        let booted = Booted::find(&console);
        assert_eq!(booted.as_ref(), Some(&expected), "{console}");
        for complaint in ["I/O error", "EXT4-fs error", "recovering journal"] {
            assert!(!console.contains(complaint), "{console}");
        }
    }
    drop(lab);
    is_whole(&disk);
}

/// Looks at the file system from outside: nothing is left to repair, and all that was written is
/// there.
fn is_whole(disk: &Path) {
    let root = format!("{}?offset={}", disk.display(), debian::root_offset());
    output(Command::new("/sbin/e2fsck").args(["-f", "-n", &root]));
    let read = format!("cat {}", debian::LOG_FILE);
    let log = output(Command::new("/sbin/debugfs").args(["-R", &read, &root]));
    assert_eq!(log, "start 1 by bios\nstart 2 by efi\nstart 3 by bios\n");
}

//! ext4, XFS and btrfs in a guest, on a LUN each, while the director is killed with -9 again and
//! again: what a program was told is on the disk is there, and their own checkers find no fault.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};

use orimono_qemu::Guest;
use orimono_tests::lab::{self, Lab, PATIENCE};

/// XFS wants 300 MB at least. Sparse.
const LUN_BYTES: u64 = 320 << 20;
/// Files that a writer keeps; older ones it removes.
const FILES: usize = 40;

/// A file system, and what makes and checks it.
struct Kind {
    name: &'static str,
    make: &'static [&'static str],
    check: &'static [&'static str],
}

const KINDS: [Kind; 3] = [
    Kind {
        name: "ext4",
        make: &["mkfs.ext4", "-q", "-F"],
        check: &["e2fsck", "-f", "-n"],
    },
    Kind {
        name: "xfs",
        make: &["mkfs.xfs", "-q"],
        check: &["xfs_repair", "-n"],
    },
    Kind {
        name: "btrfs",
        make: &["mkfs.btrfs", "-q"],
        check: &["btrfs", "check", "--readonly"],
    },
];

fn lab_file(folder: &Path) -> String {
    let mut text = String::from(
        r#"
[director]
name = "director1"
listen = ["tcp:127.0.0.1:7471"]
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
queues = 2
luns = [ { lun = 0, name = "ext4" }, { lun = 1, name = "xfs" }, { lun = 2, name = "btrfs" } ]
"#,
    );
    for Kind { name, .. } in KINDS {
        text.push_str(&format!(
            "[[lun]]\nname = \"{name}\"\nport = \"12/1\"\nfile = \"{}\"\n",
            folder.join(name).display()
        ));
    }
    text
}

/// Runs one of the programs above on a LUN's file; they are the administrator's.
fn run_on(words: &[&str], file: &Path) {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let mut command = Command::new("env");
    command.arg(format!("PATH={path}")).args(words).arg(file);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}{errors}");
}

/// What the writers say: a line for each file that is on the disk, its number and its MD5.
#[derive(Clone, Default)]
struct Said(Arc<(Mutex<Vec<u8>>, Condvar)>);

impl Said {
    fn lines(&self) -> usize {
        let text = self.0.0.lock().unwrap();
        text.iter().filter(|byte| **byte == b'\n').count()
    }

    fn wait_for_more(&self, more: usize) {
        let wanted = self.lines() + more;
        let text = self.0.0.lock().unwrap();
        let few = |text: &mut Vec<u8>| text.iter().filter(|byte| **byte == b'\n').count() < wanted;
        let waited = self.0.1.wait_timeout_while(text, PATIENCE, few).unwrap();
        let said = String::from_utf8_lossy(&waited.0).into_owned();
        assert!(!waited.1.timed_out(), "the guest does not go on:\n{said}");
    }

    /// The MD5 of each file by its number. The last line may not be whole.
    fn files(&self) -> BTreeMap<usize, String> {
        let text = String::from_utf8(self.0.0.lock().unwrap().clone()).unwrap();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _cut)| whole);
        let words = whole.lines().map(|line| line.split_once(' ').unwrap());
        words
            .map(|(number, md5)| (number.parse().unwrap(), md5.to_owned()))
            .collect()
    }
}

impl io::Write for Said {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.0.lock().unwrap().extend_from_slice(bytes);
        self.0.1.notify_all();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Boots, and mounts all of them.
fn boot(lab: &Lab) -> Guest {
    let guest = lab.boot("vm1").unwrap();
    // Unpacks the tools, among them modules.
    lab::run(&guest, "fio --version && modprobe xfs && modprobe btrfs").unwrap();
    for Kind { name, .. } in KINDS {
        let disk = lab::disk(&guest, name).unwrap();
        let mount = format!("mkdir /mnt/{name} && mount -t {name} /dev/{disk} /mnt/{name}");
        lab::run(&guest, &mount).unwrap();
    }
    guest
}

fn start_writer(guest: &Guest, name: &str) -> Said {
    let said = Said::default();
    let script = format!(
        "set -e; i=0; while :; do i=$((i + 1)); f=/mnt/{name}/f$i
         dd if=/dev/urandom of=/tmp/{name} bs=4096 count=$((1 + i * 7 % 64)) 2>/dev/null
         dd if=/tmp/{name} of=$f bs=64k conv=fsync 2>/dev/null
         echo $i $(md5sum < /tmp/{name} | cut -c 1-32)
         rm -f /mnt/{name}/f$((i - {FILES})); done"
    );
    guest
        .spawn_streaming(&script, Box::new(said.clone()), Box::new(io::stderr()))
        .unwrap();
    said
}

#[test]
fn file_systems_survive_a_director_that_is_killed_again_and_again() {
    let full = std::env::var_os("ORIMONO_TEST_FULL").is_some();
    let kills = if full { 100 } else { 15 };
    let seed = std::env::var("ORIMONO_SEED").ok();
    let seed = seed.map_or_else(|| fastrand::u64(..1 << 32), |seed| seed.parse().unwrap());
    println!("ORIMONO_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);

    let folder = tempfile::tempdir().unwrap();
    for kind in KINDS {
        let file = folder.path().join(kind.name);
        File::create(&file).unwrap().set_len(LUN_BYTES).unwrap();
        run_on(kind.make, &file);
    }
    let mut lab = Lab::start(&lab_file(folder.path())).unwrap();
    let guest = boot(&lab);
    let writers = KINDS.map(|kind| start_writer(&guest, kind.name));
    for kill in 1..=kills {
        // One is waited for after each kill, and which changes: so all of them go on.
        writers[kill % writers.len()].wait_for_more(random.usize(1..6));
        lab.kill_director().unwrap();
        lab.start_director().unwrap();
        lab.wait_sessions(kill + 1).unwrap();
    }
    for writer in &writers {
        writer.wait_for_more(2);
    }
    let errors = lab::run(
        &guest,
        "dmesg | grep -i -E 'i/o error|corrupt|aborted journal' || true",
    );
    assert_eq!(errors.unwrap(), "");

    // Both at once: what was not yet on the disk is gone with the guest.
    guest.kill().unwrap();
    lab.kill_director().unwrap();
    lab.start_director().unwrap();
    lab.wait_sessions(kills + 2).unwrap();
    let guest = boot(&lab);
    for (kind, said) in KINDS.iter().zip(&writers) {
        let files = said.files();
        println!("{}: {} files", kind.name, files.len());
        // The writer may have removed one more before it told of the next.
        let newest = files.iter().rev().take(FILES - 1);
        let sums = newest.map(|(number, md5)| format!("{md5}  /mnt/{}/f{number}\n", kind.name));
        let check = format!("md5sum -c << END\n{}END\n", sums.collect::<String>());
        lab::run(&guest, &check).unwrap();
    }
    lab::run(&guest, "umount /mnt/ext4 /mnt/xfs /mnt/btrfs").unwrap();
    guest.poweroff(PATIENCE).unwrap();
    drop(lab);
    for kind in KINDS {
        run_on(kind.check, &folder.path().join(kind.name));
    }
}

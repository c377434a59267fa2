//! A running director and host agent take one changed lab file after the other. Whom the changes do
//! not name notices nothing, and whoever comes is served.
//!
//! `ORIMONO_SEED` chooses the random changes; the seed is printed when the test fails.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]
#![expect(
    clippy::indexing_slicing,
    reason = "a failed expectation is a failed test"
)]

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};

use nix::sys::signal::Signal;
use orimono_tests::devices::net::{NetGuest, frame};
use orimono_tests::devices::scsi::{Request, ScsiGuest, transfer};
use orimono_tests::lab::{Lab, PATIENCE, program};

const APPLIES: usize = 100;
/// Frames of a pair of vNICs that are underway.
const WINDOW: u32 = 8;

/// What no change names: two vNICs, a vHBA and their LUN; and two vNICs whose rates change.
const BASE: &str = r#"
[director]
name = "director1"
listen = ["tcp:127.0.0.1:7471"]
[[ethernet-port]]
port = "10/1"
tap = "orimono0"
rate = "10G"
[[san-port]]
port = "12/1"
rate = "8G"
[[lun]]
name = "still"
port = "12/1"
file = "@DIR@/still"
[[host]]
name = "host1"
director = ["tcp:127.0.0.1:7471"]
run-dir = "@DIR@/host1"
rate = "10G"
[[host.vm]]
name = "still"
[[host.vm.vnic]]
name = "vn01"
id = 1
port = "10/1"
mac = "02:15:97:00:00:01"
[[host.vm.vnic]]
name = "vn02"
id = 2
port = "10/1"
mac = "02:15:97:00:00:02"
ingress = { cir = "100M" }
[[host.vm.vhba]]
name = "vh01"
id = 101
port = "12/1"
luns = [ { lun = 0, name = "still" } ]
"#;

fn mac(vnic: u8) -> [u8; 6] {
    [2, 0x15, 0x97, 0, 0, vnic]
}

/// Counts what was carried, and lets others wait for more.
#[derive(Default)]
struct Progress {
    count: Mutex<u64>,
    changed: Condvar,
}

impl Progress {
    fn add(&self) {
        *self.count.lock().unwrap() += 1;
        self.changed.notify_all();
    }

    fn wait_for_more(&self, more: u64) {
        let count = self.count.lock().unwrap();
        let wanted = *count + more;
        let waited = self
            .changed
            .wait_timeout_while(count, PATIENCE, |count| *count < wanted)
            .unwrap();
        assert!(!waited.1.timed_out(), "traffic has stopped");
    }
}

/// Frames from one vNIC to another: every one arrives, in order and as it was.
struct Frames {
    from: NetGuest,
    to: NetGuest,
    macs: [u8; 2],
}

impl Frames {
    fn new(lab: &Lab, vm: &str, macs: [u8; 2]) -> Self {
        let connect = |vnic: &str| {
            let path = socket(lab, &format!("{vnic}.{vm}"));
            let mut guest = NetGuest::connect(&path, 1).unwrap();
            guest.post(0, 200).unwrap();
            guest
        };
        let (from, to) = (connect("vn01"), connect("vn02"));
        let mut frames = Self { from, to, macs };
        frames.wait_lanes();
        frames
    }

    fn frame(&self, number: u32) -> Vec<u8> {
        frame(mac(self.macs[1]), mac(self.macs[0]), number, 600)
    }

    /// Both have lanes once a frame gets through.
    fn wait_lanes(&mut self) {
        let number = u32::MAX;
        loop {
            self.from.send(0, &self.frame(number)).unwrap();
            self.from.wait_sent(0).unwrap();
            for _ in 0..1000 {
                match self.to.poll(0).unwrap() {
                    Some(received) if received.frame == self.frame(number) => return,
                    Some(_) => self.to.post(0, 1).unwrap(),
                    None => std::thread::yield_now(),
                }
            }
        }
    }

    fn run(mut self, stop: &AtomicBool, progress: &Progress) {
        let (mut sent, mut received) = (0, 0);
        while received < sent || !stop.load(Ordering::SeqCst) {
            if sent < received + WINDOW && !stop.load(Ordering::SeqCst) {
                self.from.send(0, &self.frame(sent)).unwrap();
                sent += 1;
                continue;
            }
            let got = self.to.receive(0).unwrap().frame;
            self.to.post(0, 1).unwrap();
            // Those of the interface, and of the beginning, are others' business.
            let own = got[6..12] == mac(self.macs[0]) && got[14..18] != [0xff; 4];
            if own {
                assert!(got == self.frame(received), "frame {received} is lost");
                received += 1;
                progress.add();
            }
        }
    }
}

/// Writes and reads of a LUN: each is done, and what is read was written.
fn commands(mut guest: ScsiGuest, stop: &AtomicBool, progress: &Progress) {
    let mut number = 0_u8;
    while !stop.load(Ordering::SeqCst) {
        number = number.wrapping_add(1);
        let lba = u32::from(number) * 8;
        let data = [number; 4096];
        let write = Request {
            data_out: &data,
            ..Request::new(&transfer(true, lba, 8))
        };
        let read = Request {
            data_in_bytes: 4096,
            ..Request::new(&transfer(false, lba, 8))
        };
        for request in [write, read] {
            guest.submit(0, &request).unwrap();
            let response = guest.wait(0).unwrap();
            let done = (response.response, response.status, response.residual);
            assert_eq!(done, (0, 0, 0), "{response:?}");
            if request.data_out.is_empty() {
                assert!(response.data == data, "what was written is read");
            }
        }
        progress.add();
    }
}

fn socket(lab: &Lab, device: &str) -> PathBuf {
    lab.folder().join(format!("host1/{device}.sock"))
}

/// The sockets in the host's folder.
fn sockets(lab: &Lab) -> BTreeSet<String> {
    let files = std::fs::read_dir(lab.folder().join("host1")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".sock")).collect()
}

/// Those that the lab file says should be there.
fn wanted(lab: &Lab) -> BTreeSet<String> {
    let host = lab.config.host("host1").unwrap();
    let vnics = host.vnics().map(|vnic| format!("{}.sock", vnic.name));
    let vhbas = host.vhbas().map(|vhba| format!("{}.sock", vhba.name));
    vnics.chain(vhbas).collect()
}

/// A guest whose LUN 0 answers.
fn scsi_guest(lab: &Lab, device: &str) -> ScsiGuest {
    let mut guest = ScsiGuest::connect(&socket(lab, device), 1).unwrap();
    loop {
        guest.submit(0, &Request::new(&[0; 6])).unwrap();
        let response = guest.wait(0).unwrap();
        if (response.response, response.status) == (0, 0) {
            return guest;
        }
    }
}

/// A lab file in which everything but what [`BASE`] has is drawn.
fn draw(random: &mut fastrand::Rng, round: usize) -> String {
    let mut text = BASE.to_owned();
    let rate = |random: &mut fastrand::Rng| {
        let cir = random.u32(0..200);
        let pir = 300 + random.u32(0..3000);
        format!("{{ cir = \"{cir}M\", pir = \"{pir}M\" }}")
    };
    write!(
        text,
        "[[host.vm]]\nname = \"rated\"\ningress = {{ cir = \"{}M\", pir = \"9G\" }}\n",
        400 + random.u32(0..400)
    )
    .unwrap();
    for vnic in [3, 4] {
        write!(
            text,
            "[[host.vm.vnic]]\nname = \"vn0{}\"\nid = {vnic}\nport = \"10/1\"\n\
             mac = \"02:15:97:00:00:0{vnic}\"\ningress = {}\negress = {}\n",
            vnic - 2,
            rate(random),
            rate(random)
        )
        .unwrap();
    }
    let luns: Vec<_> = (0..4).filter(|_| random.bool()).collect();
    let ports: Vec<_> = [2, 3].into_iter().filter(|_| random.bool()).collect();
    for vm in 0..3 {
        if random.bool() {
            continue;
        }
        writeln!(text, "[[host.vm]]\nname = \"vm{vm}\"").unwrap();
        for device in 0..2 {
            let id = 10 + 2 * vm + device;
            // Replaced in every round that it is there in: its port may be another.
            if random.bool() {
                let on = ports.get(random.usize(0..3)).unwrap_or(&1);
                write!(
                    text,
                    "[[host.vm.vnic]]\nname = \"vn{device}\"\nid = {id}\ngeneration = {round}\n\
                     port = \"10/{on}\"\nmac = \"02:15:97:00:00:{id}\"\negress = {}\n",
                    rate(random)
                )
                .unwrap();
            }
            // Stays if it is there in the round before: its rates and LUNs are others.
            if random.bool() {
                let mapped = luns.iter().filter(|_| random.bool());
                let mapped = mapped.map(|lun| {
                    let number = (lun + vm) % 4;
                    format!("{{ lun = {number}, name = \"lun{lun}\" }}")
                });
                let mapped: Vec<_> = mapped.collect();
                write!(
                    text,
                    "[[host.vm.vhba]]\nname = \"vh{device}\"\nid = {}\n\
                     port = \"12/1\"\nluns = [{}]\ningress = {}\n",
                    100 + id,
                    mapped.join(", "),
                    rate(random)
                )
                .unwrap();
            }
        }
    }
    for lun in luns {
        write!(
            text,
            "[[lun]]\nname = \"lun{lun}\"\nport = \"12/1\"\nram = \"1M\"\n"
        )
        .unwrap();
    }
    for port in ports {
        write!(
            text,
            "[[ethernet-port]]\nport = \"10/{port}\"\ntap = \"live{port}\"\n"
        )
        .unwrap();
    }
    if random.bool() {
        text.push_str(
            "[[host]]\nname = \"host2\"\ndirector = [\"tcp:127.0.0.1:7471\"]\n\
             run-dir = \"@DIR@/host2\"\nrate = \"10G\"\n[[host.vm]]\nname = \"away\"\n\
             [[host.vm.vnic]]\nname = \"vn01\"\nid = 50\nport = \"10/1\"\n\
             mac = \"02:15:97:00:00:50\"\n",
        );
    }
    text
}

#[test]
fn random_lab_files_disturb_nobody_whom_they_do_not_name() {
    let seed = std::env::var("ORIMONO_SEED").map_or(1, |seed| seed.parse().unwrap());
    println!("ORIMONO_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut lab = Lab::start(&draw(&mut random, 0)).unwrap();
    let still = Frames::new(&lab, "still", [1, 2]);
    let rated = Frames::new(&lab, "rated", [3, 4]);
    let scsi = scsi_guest(&lab, "vh01.still");
    let stop = AtomicBool::new(false);
    let progress: [Progress; 3] = Default::default();
    let changes = std::thread::scope(|scope| {
        scope.spawn(|| still.run(&stop, &progress[0]));
        scope.spawn(|| rated.run(&stop, &progress[1]));
        scope.spawn(|| commands(scsi, &stop, &progress[2]));
        // The threads end also if an expectation here fails.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut changes = 0;
            for round in 1..=APPLIES {
                lab.rewrite(&draw(&mut random, round)).unwrap();
                let mut who = ["director", "host1"];
                if random.bool() {
                    who.reverse();
                }
                for name in who {
                    changes += lab.apply(name).unwrap().len();
                }
                assert_eq!(sockets(&lab), wanted(&lab), "round {round}");
                for progress in &progress {
                    progress.wait_for_more(3);
                }
            }
            changes
        }));
        stop.store(true, Ordering::SeqCst);
        done
    });
    let changes = changes.unwrap();
    println!("{changes} objects changed");
    for progress in &progress {
        assert!(*progress.count.lock().unwrap() >= 3 * APPLIES as u64);
    }
    // The session has not ended meanwhile. That of the other host may, which comes and goes.
    let director = lab.director.as_ref().unwrap();
    let closed = "session closed peer=\"host1\"";
    assert_eq!(director.count_lines(closed), 0);
}

#[test]
fn devices_come_and_go_and_come_again_on_a_signal() {
    let mut lab = Lab::start(BASE).unwrap();
    let more = |generation: u32| {
        format!(
            "{BASE}[[host.vm]]\nname = \"new\"\n\
             [[host.vm.vnic]]\nname = \"vn01\"\nid = 7\ngeneration = {generation}\nport = \"10/1\"\n\
             mac = \"02:15:97:00:00:07\"\n\
             [[host.vm.vnic]]\nname = \"vn02\"\nid = 8\nport = \"10/1\"\n\
             mac = \"02:15:97:00:00:08\"\n\
             [[host.vm.vhba]]\nname = \"vh01\"\nid = 9\ngeneration = {generation}\nport = \"12/1\"\n\
             luns = [ {{ lun = 0, name = \"still\" }} ]\n"
        )
    };
    let in_force = |lab: &Lab, count: usize| {
        for process in [lab.director.as_ref(), lab.agents[0].as_ref()] {
            let process = process.unwrap();
            process.signal(Signal::SIGHUP).unwrap();
            process
                .wait_line("lab file is in force", count, PATIENCE)
                .unwrap();
        }
    };
    for round in 1..=3 {
        lab.rewrite(&more(round)).unwrap();
        in_force(&lab, 2 * usize::try_from(round).unwrap() - 1);
        assert_eq!(sockets(&lab), wanted(&lab));
        let frames = Frames::new(&lab, "new", [7, 8]);
        let stop = AtomicBool::new(true);
        frames.run(&stop, &Progress::default());
        drop(scsi_guest(&lab, "vh01.new"));
        lab.rewrite(BASE).unwrap();
        in_force(&lab, 2 * usize::try_from(round).unwrap());
        assert_eq!(sockets(&lab), wanted(&lab));
    }
    // Replaced where it stands: the guest's socket is a new one.
    lab.rewrite(&more(5)).unwrap();
    in_force(&lab, 7);
    lab.rewrite(&more(6)).unwrap();
    in_force(&lab, 8);
    drop(scsi_guest(&lab, "vh01.new"));
}

#[test]
fn a_file_that_cannot_be_applied_is_refused_as_a_whole() {
    let mut lab = Lab::start(BASE).unwrap();
    let refusal = |lab: &mut Lab, words: (&str, &str), who: &str| {
        assert!(BASE.contains(words.0));
        let text = BASE.replacen(words.0, words.1, 1);
        lab.rewrite(&text).unwrap();
        lab.apply(who).unwrap_err().to_string()
    };
    let mac = ("02:15:97:00:00:02", "02:15:97:00:00:09");
    for who in ["director", "host1"] {
        let text = refusal(&mut lab, mac, who);
        assert!(
            text.contains("vnic vn02.still: mac cannot change while it runs; raise its generation"),
            "{text}"
        );
    }
    let much = ("cir = \"100M\"", "cir = \"9.9G\"");
    let text = refusal(&mut lab, much, "director");
    assert!(text.contains("vnic vn02.still: ingress"), "{text}");
    let medium = ("file = \"@DIR@/still\"", "ram = \"1M\"");
    let text = refusal(&mut lab, medium, "director");
    assert!(text.contains("lun still: medium cannot change"), "{text}");
    // The agent has no part of it.
    lab.apply("host1").unwrap();
    std::fs::write(lab.folder().join("lab.toml"), "[director").unwrap();
    let text = lab.apply("director").unwrap_err().to_string();
    assert!(text.contains("lab.toml: line 1"), "{text}");
    lab.rewrite(BASE).unwrap();
    assert!(lab.apply("director").unwrap().is_empty());
    drop(scsi_guest(&lab, "vh01.still"));
}

#[test]
fn the_operators_command_says_what_became_of_each_object() {
    let mut lab = Lab::start(BASE).unwrap();
    let ask = |lab: &Lab| {
        let mut command = Command::new(program("orimono-qos").unwrap());
        command.arg("--socket").arg(lab.control("director"));
        command.args(["apply", "--json"]).output().unwrap()
    };
    let text = BASE.replacen("cir = \"100M\"", "cir = \"200M\"", 1);
    lab.rewrite(&text.replacen("lun = 0,", "lun = 3,", 1))
        .unwrap();
    let output = ask(&lab);
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = serde_json::json!({ "objects": [
        { "object": "vnic vn02.still", "change": "changed", "fields": ["ingress"], "outcome": "done" },
        { "object": "vhba vh01.still", "change": "changed", "fields": ["luns"], "outcome": "done" },
    ] });
    assert_eq!(report, expected);
    lab.rewrite(&text.replacen("rate = \"8G\"", "rate = \"4G\"", 1))
        .unwrap();
    let output = ask(&lab);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("san-port 12/1: rate cannot change while it runs; remove the port"),
        "{said}"
    );
}

#[test]
fn a_host_agent_has_its_embedded_director_take_the_file_too() {
    let base = BASE
        .replace("listen = [\"tcp:127.0.0.1:7471\"]\n", "")
        .replace("director = [\"tcp:127.0.0.1:7471\"]", "embedded = true");
    let mut lab = Lab::start(&base).unwrap();
    let more = format!(
        "{base}[[host.vm]]\nname = \"new\"\n[[host.vm.vhba]]\nname = \"vh01\"\nid = 9\n\
         port = \"12/1\"\nluns = [ {{ lun = 0, name = \"ram\" }} ]\n\
         [[lun]]\nname = \"ram\"\nport = \"12/1\"\nram = \"1M\"\n"
    );
    lab.rewrite(&more).unwrap();
    let objects = lab.apply("host1").unwrap();
    let names: Vec<_> = objects.iter().map(|it| it["object"].as_str()).collect();
    let expected = ["lun ram", "vm new", "vhba vh01.new"].map(Some);
    assert_eq!(names, expected);
    drop(scsi_guest(&lab, "vh01.new"));
    lab.rewrite(&base).unwrap();
    assert_eq!(lab.apply("host1").unwrap().len(), 3);
    assert_eq!(sockets(&lab), wanted(&lab));
    drop(scsi_guest(&lab, "vh01.still"));
}

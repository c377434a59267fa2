//! A consumer that stands still, with the real director and host agent over TCP: a guest that
//! takes no frames, and LUNs that answer after 5 s with their vHBA's queue full. The devices
//! beside them go on, and every slow command is carried out in the end.
//!
//! What is asserted is work done meanwhile, not time; throughput before and during is printed
//! (`cargo test --test netns_slow_consumer -- --nocapture`).
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]
#![expect(clippy::print_stdout, reason = "figures for the reader of the run")]

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use orimono_tests::devices::net::{NetGuest, frame};
use orimono_tests::devices::scsi::{Request, ScsiGuest, transfer};
use orimono_tests::lab::Lab;

/// Commands of a vHBA that the director takes at once; the next ones wait in the guest's ring.
const SLOW_COMMANDS: usize = 64;
/// Commands that wait there.
const WAITING_COMMANDS: usize = 6;
const ROUND_TRIPS: usize = 2000;
const READS: usize = 500;
const BLOCKS: u16 = 8;

const LAB: &str = r#"
[director]
name = "director1"
listen = ["tcp:127.0.0.1:7471"]
[[ethernet-port]]
port = "10/1"
tap = "orimono0"
[[lun]]
name = "fast"
port = "12/1"
file = "@DIR@/fast"
"#;

const HOST: &str = r#"
[[host]]
name = "host1"
director = ["tcp:127.0.0.1:7471"]
run-dir = "@DIR@/host1"
rate = "10G"
[[host.vm]]
name = "flood"
[[host.vm.vnic]]
name = "vn01"
id = 4
port = "10/1"
mac = "02:15:97:00:00:04"
ingress = { pir = "100M" }
[[host.vm]]
name = "other"
[[host.vm.vnic]]
name = "vn01"
id = 2
port = "10/1"
mac = "02:15:97:00:00:02"
[[host.vm.vnic]]
name = "vn02"
id = 3
port = "10/1"
mac = "02:15:97:00:00:03"
[[host.vm.vhba]]
name = "vh01"
id = 12
port = "12/1"
luns = [ { lun = 0, name = "fast" } ]
[[host.vm]]
name = "slow"
[[host.vm.vnic]]
name = "vn01"
id = 1
port = "10/1"
mac = "02:15:97:00:00:01"
"#;

/// The lab, with one slow LUN for each slow command: a LUN serves one after the other.
fn lab() -> String {
    let mut text = LAB.to_owned();
    let mut luns = String::new();
    for lun in 0..SLOW_COMMANDS + WAITING_COMMANDS {
        write!(
            text,
            "[[lun]]\nname = \"slow{lun}\"\nport = \"12/1\"\nfile = \"@DIR@/slow{lun}\"\n\
             delay-ms = 5000\n"
        )
        .unwrap();
        write!(luns, "{{ lun = {lun}, name = \"slow{lun}\" }}, ").unwrap();
    }
    text.push_str(HOST);
    write!(
        text,
        "[[host.vm.vhba]]\nname = \"vh01\"\nid = 11\nport = \"12/1\"\nluns = [ {luns} ]\n"
    )
    .unwrap();
    text
}

fn mac(vnic: u8) -> [u8; 6] {
    [2, 0x15, 0x97, 0, 0, vnic]
}

/// A frame from one vNIC to the other and one back, by way of the director.
fn round_trip(guests: &mut [NetGuest; 2], count: usize) {
    let count = u32::try_from(count).unwrap();
    let [first, second] = guests;
    let there = frame(mac(3), mac(2), count, 200);
    let back = frame(mac(2), mac(3), count, 200);
    carry(first, second, &there);
    carry(second, first, &back);
}

fn carry(from: &mut NetGuest, to: &mut NetGuest, sent: &[u8]) {
    from.send(0, sent).unwrap();
    loop {
        let received = to.receive(0).unwrap();
        to.post(0, 1).unwrap();
        // The interface's own multicasts arrive too.
        if received.frame == sent {
            break;
        }
    }
}

fn read(guest: &mut ScsiGuest, count: usize) {
    let lba = u32::try_from(count % 1024).unwrap();
    let read = Request {
        data_in_bytes: u32::from(BLOCKS) * 512,
        ..Request::new(&transfer(false, lba, BLOCKS))
    };
    guest.submit(0, &read).unwrap();
    let response = guest.wait(0).unwrap();
    assert_eq!(
        (response.response, response.status, response.residual),
        (0, 0, 0)
    );
}

/// A device has unit attentions for a new initiator: asks until it is ready.
fn wait_ready(guest: &mut ScsiGuest, lun: [u8; 8]) {
    loop {
        let ready = Request {
            lun,
            ..Request::new(&[0; 6])
        };
        guest.submit(0, &ready).unwrap();
        let response = guest.wait(0).unwrap();
        assert_eq!(response.response, 0);
        match response.status {
            0 => return,
            2 => assert_eq!(response.sense.get(2), Some(&6), "{response:?}"),
            other => panic!("status {other}"),
        }
    }
}

/// How often per second something is done.
fn rate(times: usize, mut work: impl FnMut(usize)) -> u64 {
    let start = Instant::now();
    (0..times).for_each(&mut work);
    per_second(times, start.elapsed())
}

fn per_second(times: usize, elapsed: Duration) -> u64 {
    let nanos = elapsed.as_nanos().max(1);
    u64::try_from(u128::try_from(times).unwrap() * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
}

struct Guests {
    nics: [NetGuest; 2],
    hba: ScsiGuest,
}

fn socket(lab: &Lab, device: &str) -> PathBuf {
    lab.folder().join("host1").join(format!("{device}.sock"))
}

impl Guests {
    fn connect(lab: &Lab) -> Self {
        let nics = ["vn01.other", "vn02.other"].map(|device| {
            let mut guest = NetGuest::connect(&socket(lab, device), 1).unwrap();
            guest.post(0, 64).unwrap();
            guest
        });
        let mut hba = ScsiGuest::connect(&socket(lab, "vh01.other"), 1).unwrap();
        wait_ready(&mut hba, [1, 0, 0x40, 0, 0, 0, 0, 0]);
        Self { nics, hba }
    }

    /// Both at once, each until it has done its work.
    fn work(&mut self) -> [u64; 2] {
        let Self { nics, hba } = self;
        std::thread::scope(|scope| {
            let reads = scope.spawn(|| rate(READS, |count| read(hba, count)));
            let trips = rate(ROUND_TRIPS, |count| round_trip(nics, count));
            [trips, reads.join().unwrap()]
        })
    }
}

fn report(what: &str, before: [u64; 2], during: [u64; 2]) {
    let [trips, reads] = before;
    let [trips_during, reads_during] = during;
    println!("{what}: round trips/s {trips} before, {trips_during} during");
    println!("{what}: reads/s {reads} before, {reads_during} during");
}

#[test]
fn guest_that_takes_no_frames_slows_nobody() {
    const BUFFERS: usize = 128;
    let lab = Lab::start(&lab()).unwrap();
    let mut guests = Guests::connect(&lab);
    let mut slow = NetGuest::connect(&socket(&lab, "vn01.slow"), 1).unwrap();
    slow.post(0, BUFFERS).unwrap();
    let mut flood = NetGuest::connect(&socket(&lab, "vn01.flood"), 1).unwrap();
    let (takes, floods) = (AtomicBool::new(true), AtomicBool::new(true));
    let frames = AtomicU64::new(0);
    // The same flood all the time, so that only the slow guest makes the difference.
    let (before, taken, during, sent) = std::thread::scope(|scope| {
        scope.spawn(|| {
            let sent = frame(mac(1), mac(4), 1, 1500);
            while floods.load(Ordering::Acquire) {
                flood.send(0, &sent).unwrap();
                frames.fetch_add(1, Ordering::Relaxed);
                // The device takes them at its peak rate: this waits for it.
                while flood.unsent(0) > 128 {
                    flood.wait_sent(0).unwrap();
                }
            }
        });
        let taker = scope.spawn(|| {
            let mut taken = 0_u64;
            while takes.load(Ordering::Acquire) {
                slow.receive(0).unwrap();
                slow.post(0, 1).unwrap();
                taken += 1;
            }
            taken
        });
        let before = guests.work();
        takes.store(false, Ordering::Release);
        let taken = taker.join().unwrap();
        let sent = frames.load(Ordering::Relaxed);
        // From here on it gives nothing back; the buffers that are left are soon full.
        let during = guests.work();
        floods.store(false, Ordering::Release);
        (before, taken, during, frames.load(Ordering::Relaxed) - sent)
    });
    println!("guest took {taken} frames, then none of {sent}");
    report("guest without buffers", before, during);
    assert!(taken > 0);
    let buffers = u64::try_from(BUFFERS).unwrap();
    // More was sent to it than its buffers and its window (16,384 blocks, 25 for each frame) hold:
    // the fabric has not kept a frame for it.
    assert!(sent > buffers + 16_384 / 25, "only {sent} frames");
    // It has missed the rest, and works as soon as it wants to.
    for _frame in 0..BUFFERS {
        slow.receive(0).unwrap();
    }
    slow.post(0, BUFFERS).unwrap();
    let sent = frame(mac(1), mac(4), 2, 300);
    flood.send(0, &sent).unwrap();
    while slow.receive(0).unwrap().frame != sent {
        slow.post(0, 1).unwrap();
    }
}

#[test]
fn slow_luns_with_a_full_queue_slow_nobody_and_lose_nothing() {
    let lab = Lab::start(&lab()).unwrap();
    let mut guests = Guests::connect(&lab);
    let before = guests.work();
    let mut slow = ScsiGuest::connect(&socket(&lab, "vh01.slow"), 1).unwrap();
    for number in 0..SLOW_COMMANDS + WAITING_COMMANDS {
        let lun = u8::try_from(number).unwrap();
        // INQUIRY: no unit attention stands in its way.
        let inquiry = Request {
            lun: [1, 0, 0x40, lun, 0, 0, 0, 0],
            id: u64::from(lun),
            data_in_bytes: 36,
            ..Request::new(&[0x12, 0, 0, 0, 36, 0])
        };
        slow.submit(0, &inquiry).unwrap();
    }
    let during = guests.work();
    assert!(
        slow.poll(0).unwrap().is_none(),
        "a slow LUN answered before {ROUND_TRIPS} round trips and {READS} reads were done"
    );
    report("slow LUNs", before, during);
    while slow.in_flight() > 0 {
        let response = slow.wait(0).unwrap();
        assert_eq!(
            (response.response, response.status, response.residual),
            (0, 0, 0),
            "{response:?}"
        );
    }
    // The others go on as before.
    guests.work();
}

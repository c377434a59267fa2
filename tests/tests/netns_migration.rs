//! A vNIC that two host agents serve while its VM moves: it is where it was announced last.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use fabric_payload::announcement::{announcement, is_announcement};
use fabric_payload::ethernet::HEADER_BYTES;
use nix::sys::signal::Signal;
use orimono_tests::devices::net::{NetGuest, frame};
use orimono_tests::lab::{Lab, PATIENCE};

const LAB: &str = r#"
[director]
name = "director1"
listen = ["tcp:127.0.0.1:7471"]
[[ethernet-port]]
port = "10/1"
tap = "orimono0"
rate = "1G"
[[host]]
name = "host1"
director = ["tcp:127.0.0.1:7471"]
run-dir = "@DIR@/host1"
rate = "10G"
[[host.vm]]
name = "peer"
[[host.vm.vnic]]
name = "vn01"
id = 2
port = "10/1"
mac = "02:15:97:00:00:02"
@HOST1@
[[host]]
name = "host2"
director = ["tcp:127.0.0.1:7471"]
run-dir = "@DIR@/host2"
rate = "10G"
@HOST2@
"#;

const VM: &str = r#"
[[host.vm]]
name = "vm1"
@MOVES@
[[host.vm.vnic]]
name = "vn01"
id = 1
port = "10/1"
mac = "02:15:97:00:00:01"
ingress = { cir = "400M" }
egress = { cir = "400M" }
"#;

const OWN: [u8; 6] = [2, 0x15, 0x97, 0, 0, 1];
const PEER: [u8; 6] = [2, 0x15, 0x97, 0, 0, 2];

fn moving() -> String {
    let vm = VM.replace("@MOVES@", "moves-to = \"host2\"");
    LAB.replace("@HOST1@", &vm).replace("@HOST2@", "")
}

fn moved() -> String {
    let vm = VM.replace("@MOVES@", "");
    LAB.replace("@HOST1@", "").replace("@HOST2@", &vm)
}

fn connect(lab: &Lab, socket: &str) -> NetGuest {
    let mut guest = NetGuest::connect(&lab.folder().join(socket), 1).unwrap();
    guest.post(0, 200).unwrap();
    guest
}

/// The next frame that is wanted. The interface of the port says things of its own.
fn next(guest: &mut NetGuest, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    loop {
        let frame = guest.receive(0).unwrap().frame;
        guest.post(0, 1).unwrap();
        if wanted(&frame) {
            return frame;
        }
    }
}

/// The next frame of [`frame`].
fn next_frame(guest: &mut NetGuest) -> Vec<u8> {
    next(guest, |frame| frame.get(12..14) == Some(&[0x88, 0xb5]))
}

/// A frame each way.
fn talk(peer: &mut NetGuest, here: &mut NetGuest, number: u32) {
    let out = frame(PEER, OWN, number, 200);
    here.send(0, &out).unwrap();
    assert!(next_frame(peer) == out, "frame {number} is another");
    let back = frame(OWN, PEER, number, 300);
    peer.send(0, &back).unwrap();
    assert!(next_frame(here) == back, "frame {number} is another");
}

fn wait_moves(lab: &Lab, count: usize) {
    let director = lab.director.as_ref().unwrap();
    director.wait_line("vNIC moved", count, PATIENCE).unwrap();
}

#[test]
fn vnic_is_at_the_host_where_it_was_announced_last() {
    let mut lab = Lab::start(&moving()).unwrap();
    let mut peer = connect(&lab, "host1/vn01.peer.sock");
    let mut first = connect(&lab, "host1/vn01.vm1.sock");
    // Both hosts have it; which came first does not matter.
    for agent in lab.agents.iter().flatten() {
        agent
            .wait_line("session became active", 1, PATIENCE)
            .unwrap();
    }
    talk(&mut peer, &mut first, 1);

    let mut second = connect(&lab, "host2/vn01.vm1.sock");
    // Whoever sends to it learns of it.
    let announced = announcement(OWN);
    let told = next(&mut peer, |frame| is_announcement(frame, OWN));
    assert_eq!(told, announced[HEADER_BYTES..]);
    talk(&mut peer, &mut second, 2);
    // What the first still sends is not the vNIC's.
    first.send(0, &frame(PEER, OWN, 3, 200)).unwrap();
    first.wait_sent(0).unwrap();
    talk(&mut peer, &mut second, 4);

    // The move failed after all: the rings start again where they were.
    drop(first);
    let mut first = connect(&lab, "host1/vn01.vm1.sock");
    talk(&mut peer, &mut first, 5);
    drop((first, second));
    let mut second = connect(&lab, "host2/vn01.vm1.sock");
    talk(&mut peer, &mut second, 6);
    wait_moves(&lab, 3);

    // The file says so too: nothing happens to the vNIC where it is.
    lab.rewrite(&moved()).unwrap();
    for (name, number) in [("host2", 7), ("director", 8), ("host1", 9)] {
        lab.apply(name).unwrap();
        talk(&mut peer, &mut second, number);
    }
    assert!(!lab.folder().join("host1/vn01.vm1.sock").exists());
    let host2 = lab.agents.get(1).and_then(Option::as_ref).unwrap();
    assert_eq!(
        host2.count_lines("front-end left"),
        1,
        "that of the first time"
    );
    // A new session there is as good.
    lab.kill_director().unwrap();
    lab.start_director().unwrap();
    lab.wait_sessions(2).unwrap();
    loop {
        second.send(0, &frame(PEER, OWN, 10, 200)).unwrap();
        second.wait_sent(0).unwrap();
        if peer.poll(0).unwrap().is_some() {
            break;
        }
        std::thread::yield_now();
    }
    let director = lab.director.take().unwrap();
    director.end(Signal::SIGTERM).unwrap();
}

#[test]
fn host_without_the_running_guest_may_go_and_come() {
    let mut lab = Lab::start(&moving()).unwrap();
    let mut peer = connect(&lab, "host1/vn01.peer.sock");
    let mut first = connect(&lab, "host1/vn01.vm1.sock");
    talk(&mut peer, &mut first, 1);
    for round in 2..5 {
        lab.kill_agent(1).unwrap();
        let director = lab.director.as_ref().unwrap();
        let closed = usize::try_from(round - 1).unwrap();
        director
            .wait_line("session closed", closed, PATIENCE)
            .unwrap();
        talk(&mut peer, &mut first, round);
        lab.start_agent(1).unwrap();
        lab.wait_sessions(1).unwrap();
        talk(&mut peer, &mut first, round);
    }
}

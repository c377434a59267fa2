//! The real programs with an edge switch between two hosts and the director.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::process::Command;
use std::time::{Duration, Instant};

use orimono_tests::devices::net::{NetGuest, frame, number};
use orimono_tests::lab::{Lab, PATIENCE, program};

const LAB: &str = r#"
[director]
name = "director1"
listen = ["tcp:127.0.0.1:7471"]
[[ethernet-port]]
port = "10/1"
tap = "orimono0"
[[host]]
name = "host1"
director = ["tcp:127.0.0.1:7481"]
run-dir = "@DIR@/host1"
rate = "1G"
[[host.vm]]
name = "vm1"
[[host.vm.vnic]]
name = "vn01"
id = 1
port = "10/1"
mac = "02:15:97:00:00:01"
ingress = { cir = "100M" }
[[host]]
name = "host2"
director = ["tcp:127.0.0.1:7481"]
run-dir = "@DIR@/host2"
rate = "1G"
[[host.vm]]
name = "vm2"
[[host.vm.vnic]]
name = "vn01"
id = 2
port = "10/1"
mac = "02:15:97:00:00:02"
egress = { cir = "200M" }
[[edge-switch]]
name = "switch1"
listen = ["tcp:127.0.0.1:7481"]
director = ["tcp:127.0.0.1:7471"]
rate = "1G"
hosts = ["host1", "host2"]
"#;

const FIRST: [u8; 6] = [2, 0x15, 0x97, 0, 0, 1];
const SECOND: [u8; 6] = [2, 0x15, 0x97, 0, 0, 2];
const FRAMES: u32 = 60;
/// Number of the frames that only try whether the other can be reached.
const REACHED: u32 = u32::MAX;

fn guest(lab: &Lab, host: &str, device: &str) -> NetGuest {
    let socket = lab.folder().join(host).join(format!("{device}.sock"));
    let mut guest = NetGuest::connect(&socket, 1).unwrap();
    guest.post(0, 200).unwrap();
    guest
}

/// Receives the frames that [`frame`] made with `numbers` and nothing else of that kind; what the
/// kernel says on the TAP is none of them.
fn receives(guest: &mut NetGuest, to: [u8; 6], numbers: std::ops::Range<u32>) {
    for expected in numbers {
        let received = loop {
            let frame = guest.receive(0).unwrap().frame;
            guest.post(0, 1).unwrap();
            if frame.starts_with(&to) && number(&frame) != Some(REACHED) {
                break frame;
            }
        };
        assert_eq!(number(&received), Some(expected));
    }
}

/// Sends until the other has it: as long as one of them has no lanes, frames are lost.
fn reach(from: &mut NetGuest, to: &mut NetGuest, sent: &[u8]) {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        from.send(0, sent).unwrap();
        // One at a time: frames that are not waited for take the buffers of those that are.
        let again = Instant::now() + Duration::from_millis(100);
        while Instant::now() < again {
            let Some(received) = to.poll(0).unwrap() else {
                std::thread::yield_now();
                continue;
            };
            to.post(0, 1).unwrap();
            if received.frame == sent {
                return;
            }
        }
    }
    panic!("nothing arrives");
}

fn orimono_qos(lab: &Lab, arguments: &[&str]) -> String {
    let mut command = Command::new(program("orimono-qos").unwrap());
    command.arg("--socket").arg(lab.control("switch1"));
    let output = command.args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn frames_pass_the_switch_and_wait_for_it_when_it_was_killed() {
    let mut lab = Lab::start(LAB).unwrap();
    let mut first = guest(&lab, "host1", "vn01.vm1");
    let mut second = guest(&lab, "host2", "vn01.vm2");
    reach(
        &mut first,
        &mut second,
        &frame(SECOND, FIRST, REACHED, 1000),
    );
    reach(
        &mut second,
        &mut first,
        &frame(FIRST, SECOND, REACHED, 1000),
    );
    for number in 0..FRAMES {
        first.send(0, &frame(SECOND, FIRST, number, 1000)).unwrap();
        second.send(0, &frame(FIRST, SECOND, number, 1000)).unwrap();
    }
    receives(&mut second, SECOND, 0..FRAMES);
    receives(&mut first, FIRST, 0..FRAMES);

    let hops = orimono_qos(&lab, &["hops"]);
    for hop in ["edge-switch switch1 ingress", "edge-switch switch1 egress"] {
        assert!(hops.contains(hop), "{hops}");
    }
    let devices = orimono_qos(&lab, &["devices", "--for", "100ms"]);
    for link in ["link0.host1", "link0.host2"] {
        assert!(devices.contains(link), "{devices}");
    }

    // What a device reserves changes here too, and its frames go on.
    let other = LAB.replace("100M", "150M").replace("200M", "50M");
    lab.rewrite(&other).unwrap();
    let objects = lab.apply("switch1").unwrap();
    let objects: Vec<_> = objects
        .iter()
        .map(|it| (it["object"].clone(), it["fields"][0].clone()))
        .collect();
    let expected = [("host host2", "egress"), ("host host1", "ingress")];
    assert_eq!(
        objects,
        expected.map(|(host, way)| (host.into(), way.into()))
    );
    let hops = orimono_qos(&lab, &["hops"]);
    for promised in ["  150 Mb/s  2", "  50 Mb/s   2"] {
        assert!(hops.contains(promised), "{hops}");
    }

    lab.kill_switch(0).unwrap();
    for number in FRAMES..2 * FRAMES {
        first.send(0, &frame(SECOND, FIRST, number, 1000)).unwrap();
    }
    lab.start_switch(0).unwrap();
    receives(&mut second, SECOND, FRAMES..2 * FRAMES);
    for agent in lab.agents.iter().flatten() {
        agent
            .wait_line("link joined its session", 2, PATIENCE)
            .unwrap();
    }
}

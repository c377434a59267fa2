//! Frames between two guests of a host with an embedded director go past the lanes while nothing waits
//! there, and by the lanes while something does: no frame overtakes another, none is lost and none comes
//! twice.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use orimono_tests::devices::net::NetGuest;
use orimono_tests::lab::Lab;

/// The sender is above its peak rate, so that it changes between both ways all the time.
const LAB: &str = r#"
[director]
name = "director1"
[[ethernet-port]]
port = "10/1"
private = true
[[host]]
name = "host1"
embedded = true
run-dir = "@DIR@/host1"
rate = "10G"
[[host.vm]]
name = "vm"
[[host.vm.vnic]]
name = "vn1"
id = 1
port = "10/1"
mac = "02:15:97:00:00:01"
ingress = { cir = "100M", pir = "400M" }
[[host.vm.vnic]]
name = "vn2"
id = 2
port = "10/1"
mac = "02:15:97:00:00:02"
ingress = { cir = "100M" }
egress = { cir = "100M", pir = "300M" }
"#;
const FRAMES: u64 = 20_000;
/// Underway at most: the receiver has as many buffers.
const WINDOW: u64 = 200;

fn frame(number: u64) -> Vec<u8> {
    // Of all lengths, in no order.
    let bytes = usize::try_from(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54).unwrap();
    let mut frame = vec![
        0x02, 0x15, 0x97, 0, 0, 2, 0x02, 0x15, 0x97, 0, 0, 1, 0x88, 0xb5,
    ];
    frame.extend(number.to_be_bytes());
    frame.resize(60 + bytes, u8::try_from(number % 251).unwrap());
    frame
}

#[test]
fn frames_past_the_lanes_and_on_them_keep_their_order() {
    let lab = Lab::start(LAB).unwrap();
    lab.wait_sessions(1).unwrap();
    let connect = |name: &str| {
        let path = lab.folder().join(format!("host1/{name}.vm.sock"));
        NetGuest::connect(&path, 1).unwrap()
    };
    let (mut sender, mut receiver) = (connect("vn1"), connect("vn2"));
    receiver.post(0, usize::try_from(WINDOW).unwrap()).unwrap();
    let mut sent = 0;
    for number in 0..FRAMES {
        while sent < FRAMES.min(number + WINDOW) {
            sender.send(0, &frame(sent)).unwrap();
            sent += 1;
        }
        let received = receiver.receive(0).unwrap();
        assert_eq!(received.frame, frame(number), "frame {number}");
        receiver.post(0, 1).unwrap();
    }
    assert_eq!(receiver.poll(0).unwrap(), None);
}

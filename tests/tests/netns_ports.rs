//! What is behind Ethernet ports, with the real programs: the carrier of an interface reaches QEMU's
//! monitor, and a LAG loses a port without losing its vNICs.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]
#![expect(
    clippy::indexing_slicing,
    reason = "a failed expectation is a failed test"
)]

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};
use orimono_tests::devices::net::{NetGuest, frame, number};
use orimono_tests::lab::{Lab, Namespace, PATIENCE};

const OUTSIDE: [u8; 6] = [2, 0xaa, 0, 0, 0, 9];
const VNIC: [u8; 6] = [2, 0x15, 0x97, 0, 0, 1];

/// A lab with these ports, and a vNIC on `port` with more words.
fn lab(ports: &str, port: &str, words: &str) -> String {
    format!(
        r#"
[director]
name = "director1"
listen = ["tcp:127.0.0.1:7471"]
{ports}
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
port = "{port}"
mac = "02:15:97:00:00:01"
{words}
"#
    )
}

const TAP: &str = "[[ethernet-port]]\nport = \"10/1\"\ntap = \"orimono0\"\n";

/// Stands for QEMU's monitor; tells when it was told to set the link, and how.
fn monitor(path: &Path) -> Receiver<(Instant, bool)> {
    let listener = UnixListener::bind(path).unwrap();
    let (sender, told) = channel();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            stream.write_all(b"{\"QMP\": {}}\n").unwrap();
            while let Some(Ok(line)) = lines.next() {
                stream.write_all(b"{\"return\": {}}\n").unwrap();
                let command: serde_json::Value = serde_json::from_str(&line).unwrap();
                if command["execute"] == "set_link" {
                    assert_eq!(command["arguments"]["name"], "vn01.vm1");
                    let up = command["arguments"]["up"].as_bool().unwrap();
                    if sender.send((Instant::now(), up)).is_err() {
                        return;
                    }
                }
            }
        }
    });
    told
}

fn guest(lab: &Lab) -> NetGuest {
    let socket = lab.folder().join("host1/vn01.vm1.sock");
    let mut guest = NetGuest::connect(&socket, 1).unwrap();
    guest.post(0, 200).unwrap();
    guest
}

#[test]
fn the_state_of_a_port_reaches_the_monitor_of_the_guest() {
    const ROUNDS: usize = 20;
    let mut lab = Lab::start(&lab(TAP, "10/1", "")).unwrap();
    let told = monitor(&lab.folder().join("host1/vm1.link.qmp"));
    let next = || told.recv_timeout(PATIENCE).unwrap();
    // A driver that starts before there are lanes is told of that.
    lab.wait_sessions(1).unwrap();
    let _guest = guest(&lab);
    let mut took: Vec<Duration> = Vec::new();
    for _ in 0..ROUNDS {
        for (word, up) in [("down", false), ("up", true)] {
            let start = Instant::now();
            lab.namespace
                .ip(&format!("link set orimono0 {word}"))
                .unwrap();
            let (at, told) = next();
            assert_eq!(told, up);
            took.push(at - start);
        }
    }
    took.sort_unstable();
    println!(
        "from ip to set_link, ip's own start included: median {:?}, most {:?}",
        took[took.len() / 2],
        took[took.len() - 1]
    );
    // What the operator wants.
    for (port, vnic, up) in [
        ("", "state = \"down\"", false),
        ("", "", true),
        ("state = \"down\"\n", "", false),
        ("state = \"up\"\n", "", true),
    ] {
        lab.rewrite(&self::lab(&format!("{TAP}{port}"), "10/1", vnic))
            .unwrap();
        for who in ["director", "host1"] {
            lab.apply(who).unwrap();
        }
        assert_eq!(next().1, up);
    }
    // No director, no link.
    lab.kill_director().unwrap();
    assert!(!next().1);
    lab.start_director().unwrap();
    assert!(next().1);
}

/// A socket on an interface.
fn wire(namespace: &Namespace, interface: &str) -> OwnedFd {
    let made = namespace.run(|| {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (family, kind) = (AddressFamily::Packet, SockType::Raw);
        let socket = socket(family, kind, flags, SockProtocol::EthAll)?;
        let mut interfaces = nix::ifaddrs::getifaddrs()?;
        let address: LinkAddr = interfaces
            .find_map(|known| {
                let address = known.address?.as_link_addr().copied()?;
                (known.interface_name == interface).then_some(address)
            })
            .unwrap();
        bind(socket.as_raw_fd(), &address)?;
        Ok(socket)
    });
    made.unwrap()
}

/// The number of the next of our frames that came out there.
fn heard(wire: &OwnedFd) -> Option<u32> {
    let mut bytes = [0; 2048];
    while let Ok(length) = recv(wire.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
        if bytes[..6] == OUTSIDE && bytes[12..14] == [0x88, 0xb5] {
            return number(&bytes[..length]);
        }
    }
    None
}

#[test]
fn a_lag_that_loses_a_port_keeps_its_vnics() {
    let namespace = Namespace::new().unwrap();
    for number in [1, 2] {
        for words in [
            format!("link add near{number} type veth peer name far{number}"),
            format!("link set far{number} up"),
        ] {
            namespace.ip(&words).unwrap();
        }
    }
    let ports = "[[ethernet-port]]\nport = \"10/1\"\ninterface = \"near1\"\n\
                 [[ethernet-port]]\nport = \"10/2\"\ninterface = \"near2\"\n\
                 [[lag]]\nlag = \"10.1\"\nports = [\"10/1\", \"10/2\"]\n";
    let lab = Lab::start_in(namespace, &lab(ports, "10.1", "")).unwrap();
    let told = monitor(&lab.folder().join("host1/vm1.link.qmp"));
    lab.wait_sessions(1).unwrap();
    let mut guest = guest(&lab);
    let wires = ["far1", "far2"].map(|name| wire(&lab.namespace, name));
    let mut sent = 0;
    let mut lost = Vec::new();
    for round in 0..6 {
        let (stays, goes) = if round % 2 == 0 { (0, 1) } else { (1, 0) };
        // As long as it takes: frames are lost until the other port has taken over.
        let end = Instant::now() + PATIENCE;
        let before = sent;
        loop {
            guest.send(0, &frame(OUTSIDE, VNIC, sent, 100)).unwrap();
            guest.wait_sent(0).unwrap();
            sent += 1;
            if heard(&wires[stays]).is_some() {
                break;
            }
            assert!(
                Instant::now() < end,
                "round {round}: the other port is silent"
            );
        }
        lost.push(sent - before - 1);
        if round == 0 {
            // Frames pass: whatever was told before the lanes were up is old.
            while told.try_recv().is_ok() {}
        }
        // And the way in.
        let number = 1 << 31 | round;
        let inwards = frame(VNIC, OUTSIDE, number, 100);
        send(wires[stays].as_raw_fd(), &inwards, MsgFlags::empty()).unwrap();
        while guest.poll(0).unwrap().is_none_or(|it| it.frame != inwards) {
            assert!(Instant::now() < end, "round {round}: nothing comes in");
        }
        guest.post(0, 1).unwrap();
        let names = ["far1", "far2"];
        lab.namespace
            .ip(&format!("link set {} up", names[goes]))
            .unwrap();
        lab.namespace
            .ip(&format!("link set {} down", names[stays]))
            .unwrap();
        while heard(&wires[goes]).is_some() || heard(&wires[stays]).is_some() {}
    }
    println!("frames until the other port had taken over: {lost:?}");
    assert!(told.try_recv().is_err(), "the guest has lost its carrier");
}

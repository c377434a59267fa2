//! Ports on real TAP interfaces, each test in a network namespace of its own.

use std::io::Read;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use fabric_config::{LabConfig, MacAddress};
use fabric_payload::ethernet::{ETHERNET_HEADER_BYTES, HEADER_BYTES};
use fabric_transport::endpoint::{DeviceGrant, Endpoint};
use fabric_transport::{Directory, FrameBuffer, Receipt, SendRefused};
use nix::sched::{CloneFlags, unshare};
use qos::DeviceRate;

use super::super::tap::Tap;
use super::*;
use crate::Director;

mod addresses;
mod direct;
mod interfaces;
mod link;
mod seeing;
mod shaping;
mod switching;

/// A failed expectation, not a measure.
const PATIENCE: Duration = Duration::from_secs(20);
const A: DeviceId = DeviceId(1);
const B: DeviceId = DeviceId(2);

/// Runs `test` on a thread in a network namespace of its own, which ends with it.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET)
            .expect("this test makes a network namespace: run it as root");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// What the kernel knows of an interface, in the words of `ip`.
fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .expect("package iproute2");
    String::from_utf8(output.stdout).unwrap()
}

fn lab(offloads: bool) -> LabConfig {
    let text = format!(
        r#"
        [director]
        name = "director1"
        [[ethernet-port]]
        port = "10/1"
        tap = "ori-test0"
        offloads = {offloads}
        mtu = 1600
        [[host]]
        name = "host1"
        embedded = true
        run-dir = "/nonexistent"
        rate = "10G"
        [[host.vm]]
        name = "vm1"
        [[host.vm.vnic]]
        name = "vn01"
        id = 1
        port = "10/1"
        mac = "02:00:00:00:00:01"
        [[host.vm.vnic]]
        name = "vn02"
        id = 2
        port = "10/1"
        mac = "02:00:00:00:00:02"
        mtu = 1000
        "#
    );
    text.parse().unwrap()
}

enum Seen {
    Up(LaneSet),
    Frame(Vec<u8>),
    Link(LinkState),
}

struct Guest {
    device: DeviceId,
    seen: Mutex<mpsc::Sender<(DeviceId, Seen)>>,
}

impl Guest {
    fn report(&self, seen: Seen) {
        // The test may have ended before the last report.
        let _gone = self.seen.lock().unwrap().send((self.device, seen));
    }
}

impl LaneClient for Guest {
    fn up(&self, lanes: LaneSet) {
        self.report(Seen::Up(lanes));
    }
    fn receive(&self, lane: VirtualLane, payload: &[u8]) -> Receipt {
        self.report(match lane {
            VirtualLane::TaskManagement => Seen::Link(LinkState::read(payload).unwrap()),
            _ => Seen::Frame(payload.to_vec()),
        });
        Receipt::Consumed
    }
    fn writable(&self) {}
    fn down(&self, _: u16) {}
}

struct HostDirectory(Mutex<Vec<(DeviceId, DeviceGrant)>>);

impl Directory for HostDirectory {
    fn active(&self, endpoint: &Arc<Endpoint>) {
        for (device, grant) in self.0.lock().unwrap().drain(..) {
            endpoint.attach(device, 0, grant).unwrap();
        }
    }
    fn refused(&self, device: DeviceId, reason: &str) {
        panic!("{device}: {reason}");
    }
}

struct Host {
    director: Director,
    endpoint: Arc<Endpoint>,
    seen: mpsc::Receiver<(DeviceId, Seen)>,
    lanes: BTreeMap<DeviceId, LaneSet>,
}

impl Host {
    fn new(offloads: bool) -> Self {
        Self::of(&lab(offloads))
    }

    fn of(lab: &LabConfig) -> Self {
        Self::with_windows(lab, WINDOWS)
    }

    /// A host that can receive this much.
    fn with_windows(lab: &LabConfig, windows: Windows) -> Self {
        let director = Director::start(lab).unwrap();
        let (sender, seen) = mpsc::channel();
        let devices = [A, B].map(|device| {
            let client = Arc::new(Guest {
                device,
                seen: Mutex::new(sender.clone()),
            });
            (
                device,
                DeviceGrant {
                    vm: None,
                    rate: DeviceRate::best_effort(),
                    windows,
                    client,
                },
            )
        });
        let directory = Arc::new(HostDirectory(Mutex::new(devices.into())));
        let endpoint = crate::testing::session(&director, directory);
        let mut lanes = BTreeMap::new();
        while lanes.len() < 2 {
            // The kernel's own multicast (IPv6 router solicitation) may come between.
            if let (device, Seen::Up(up)) = seen.recv_timeout(PATIENCE).unwrap() {
                lanes.insert(device, up);
            }
        }
        Self {
            director,
            endpoint,
            seen,
            lanes,
        }
    }

    /// Ends the session, so that nothing holds the port any more.
    fn end(self) {
        self.endpoint.close("test is over");
    }

    fn send(&self, from: DeviceId, payload: &[u8]) {
        let mut frames = vec![(VirtualLane::Network, FrameBuffer::from_payload(payload))];
        // The director may take its time; the lane has room for what it has taken.
        let end = Instant::now() + PATIENCE;
        while let Err(refused) = self.lanes[&from].try_send(&mut frames) {
            assert!(
                refused == SendRefused::Blocked && Instant::now() < end,
                "{refused}"
            );
            std::thread::yield_now();
        }
    }

    /// The next frame with our test EtherType.
    fn receive(&self) -> (DeviceId, Vec<u8>) {
        loop {
            if let (device, Seen::Frame(frame)) = self.seen.recv_timeout(PATIENCE).unwrap()
                && frame.get(HEADER_BYTES + 12..HEADER_BYTES + 14) == Some(&ETHERTYPE)
            {
                return (device, frame);
            }
        }
    }

    /// The next frame that is a test's: the kernel's own are of other stations.
    fn seen_frame(&self) -> (DeviceId, Vec<u8>) {
        loop {
            if let (device, Seen::Frame(frame)) = self.seen.recv_timeout(PATIENCE).unwrap()
                && let Some(from) = frame.get(HEADER_BYTES + 6..HEADER_BYTES + 12)
                && [OUTSIDE, mac(A), mac(B)]
                    .iter()
                    .any(|known| known.0 == *from)
            {
                return (device, frame);
            }
        }
    }

    fn counter(&self, object: &str, name: &str) -> u64 {
        let snapshots = self.director.snapshot();
        let snapshot = snapshots.iter().find(|snapshot| snapshot.object == object);
        snapshot.unwrap().count(name).unwrap()
    }
}

/// Local experimental EtherType 1 (IEEE 802): nothing in the kernel sends it.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
const OUTSIDE: MacAddress = MacAddress([2, 0xaa, 0, 0, 0, 9]);

fn mac(device: DeviceId) -> MacAddress {
    let [.., last] = device.0.to_be_bytes();
    MacAddress([2, 0, 0, 0, 0, last])
}

fn payload(to: MacAddress, from: MacAddress, data_bytes: usize) -> Vec<u8> {
    let mut payload = vec![0; HEADER_BYTES];
    payload.extend([&to.0[..], &from.0, &ETHERTYPE].concat());
    payload.resize(payload.len() + data_bytes, 0x5a);
    payload
}

/// A socket behind the TAP: what a bridge or the host's stack would see.
fn packet_socket() -> std::fs::File {
    // Room for all that a test sends.
    const BUFFER_BYTES: usize = 64 << 20;
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType};
    use nix::sys::socket::{setsockopt, socket, sockopt};
    use nix::sys::time::{TimeVal, TimeValLike};
    let (family, kind) = (AddressFamily::Packet, SockType::Raw);
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll).unwrap();
    let patience = TimeVal::seconds(PATIENCE.as_secs().try_into().unwrap());
    setsockopt(&socket, sockopt::ReceiveTimeout, &patience).unwrap();
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES).unwrap();
    socket.into()
}

#[test]
fn interface_is_as_configured_and_gone_afterwards() {
    in_namespace(|| {
        for offloads in [true, false] {
            let director = Director::start(&lab(offloads)).unwrap();
            let shown = ip(&["link", "show", "ori-test0"]);
            assert!(
                shown.contains("mtu 1600") && shown.contains(",UP"),
                "{shown}"
            );
            let busy = Director::start(&lab(offloads)).unwrap_err();
            let busy = format!("{:#}", anyhow::Error::from(busy));
            assert!(
                busy.contains("ethernet-port 10/1: interface ori-test0 is in use"),
                "{busy}"
            );
            drop(director);
            assert_eq!(ip(&["link", "show", "ori-test0"]), "");
        }
        let other = Tap::open("lo", true, 1500).unwrap_err();
        assert!(
            matches!(other, TapError::OtherKind { .. } | TapError::Step { .. }),
            "{other}"
        );
    });
}

#[test]
fn frames_cross_between_vnics_and_the_tap() {
    for offloads in [true, false] {
        in_namespace(move || {
            let host = Host::new(offloads);
            host.send(A, &payload(mac(B), mac(A), 100));
            assert_eq!(host.receive(), (B, payload(mac(B), mac(A), 100)));
            // Out through the TAP, seen by the kernel.
            let mut kernel = packet_socket();
            host.send(B, &payload(OUTSIDE, mac(B), 60));
            let mut frame = [0; 2048];
            let bytes = loop {
                let bytes = kernel.read(&mut frame).unwrap();
                if frame.get(12..14) == Some(&ETHERTYPE) {
                    break bytes;
                }
            };
            assert_eq!(
                frame.get(..bytes),
                payload(OUTSIDE, mac(B), 60).get(HEADER_BYTES..)
            );
            // In through the TAP, to both.
            send_from_kernel(&payload(MacAddress::BROADCAST, OUTSIDE, 80));
            let mut received = [host.receive(), host.receive()];
            received.sort();
            let broadcast = payload(MacAddress::BROADCAST, OUTSIDE, 80);
            assert_eq!(received, [(A, broadcast.clone()), (B, broadcast)]);
        });
    }
}

/// Sends a frame out of the TAP interface, towards the port.
fn send_from_kernel(payload: &[u8]) {
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};
    use nix::sys::socket::{LinkAddr, SockaddrLike, sendto, socket};
    use std::os::fd::AsRawFd;
    let (family, kind) = (AddressFamily::Packet, SockType::Raw);
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll).unwrap();
    let interfaces = nix::ifaddrs::getifaddrs().unwrap();
    let address: LinkAddr = interfaces
        .filter(|interface| interface.interface_name == "ori-test0")
        .find_map(|interface| interface.address?.as_link_addr().copied())
        .unwrap();
    assert!(address.len() > 0);
    let frame = payload.get(HEADER_BYTES..).unwrap();
    sendto(socket.as_raw_fd(), frame, &address, MsgFlags::empty()).unwrap();
}

#[test]
fn n05_n06_n09_wrong_frames_are_dropped_by_reason() {
    in_namespace(|| {
        let host = Host::new(false);
        host.send(A, &payload(mac(B), OUTSIDE, 100));
        host.send(A, &payload(mac(A), mac(A), 100));
        host.send(A, &[0; 20]);
        // A partial checksum, which a port without offloads cannot carry.
        let mut partial = payload(mac(B), mac(A), 100);
        partial[0] = 1;
        host.send(A, &partial);
        // The MTU is that of the vNIC: 1000, with room for two VLAN tags.
        host.send(B, &payload(mac(A), mac(B), 1009));
        // Frames of a lane keep their order: when these arrive, the others were seen.
        host.send(A, &payload(mac(B), mac(A), 1));
        host.send(B, &payload(mac(A), mac(B), 1008));
        let mut received = [host.receive(), host.receive()];
        received.sort();
        assert_eq!(received[0], (A, payload(mac(A), mac(B), 1008)));
        assert_eq!(received[1], (B, payload(mac(B), mac(A), 1)));
        let vnic = "vnic vn01.vm1";
        let reasons = [
            "dropped_foreign_source",
            "dropped_own_destination",
            "dropped_malformed",
        ];
        assert_eq!(reasons.map(|reason| host.counter(vnic, reason)), [1, 1, 2]);
        assert_eq!(host.counter("vnic vn02.vm1", "dropped_oversize"), 1);
    });
}

#[test]
fn o09_deleted_interface_fails_the_port_and_not_the_vnics() {
    in_namespace(|| {
        let host = Host::new(true);
        ip(&["link", "delete", "ori-test0"]);
        host.send(A, &payload(OUTSIDE, mac(A), 100));
        host.send(A, &payload(mac(B), mac(A), 100));
        assert_eq!(host.receive(), (B, payload(mac(B), mac(A), 100)));
        assert_eq!(host.counter("ethernet-port 10/1", "dropped_refused"), 1);
    });
}

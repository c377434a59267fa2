//! A hostile host agent against the real director: raw bytes on its TCP and Unix sockets (cases
//! P-01 to P-08).
//!
//! After each case a well-behaved host, connected all the time, still moves a frame between its
//! vNICs and gets its INQUIRY answered. [`p_nothing_is_left_behind`] repeats all of them and
//! watches the director's descriptors and memory.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]
#![expect(
    clippy::indexing_slicing,
    reason = "a failed expectation is a failed test"
)]

use std::cell::RefCell;
use std::fs;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use fabric_payload::scsi::{
    self, Data, Event, InformationUnit, ServiceResponse, Status, Tag, TaskFunction, TaskResponse,
};
use fabric_transport::acceptor::GREETINGS_MAX;
use fabric_transport::control::{Control, Credit, WINDOW_BLOCKS_MAX};
use fabric_transport::endpoint::DeviceGrant;
use fabric_transport::frame::{DeviceId, FrameHeader, FrameKind, VirtualLane};
use fabric_transport::link::{LinkOptions, connect};
use orimono_tests::devices::net::{frame, number};
use orimono_tests::fabric::{FarEnd, PATIENCE, RawPeer, RawStream, TestHost, client};
use orimono_tests::lab::{self, Namespace, Process, program};
use qos::DeviceRate;

const ADDRESS: &str = "127.0.0.1:7471";
const LAB: &str = r#"
[director]
name = "director1"
listen = ["tcp:127.0.0.1:7471", "unix:@DIR@/fabric"]
[[ethernet-port]]
port = "10/1"
tap = "orimono0"
[[lun]]
name = "lun1"
port = "12/1"
file = "@DIR@/lun1"
[[lun]]
name = "lun2"
port = "12/1"
file = "@DIR@/lun2"
[[host]]
name = "hostile"
director = ["tcp:127.0.0.1:7471"]
run-dir = "@DIR@/hostile"
rate = "10G"
[[host.vm]]
name = "vm1"
[[host.vm.vnic]]
name = "vn01"
id = 1
generation = 3
port = "10/1"
mac = "02:15:97:00:00:01"
[[host.vm.vhba]]
name = "vh01"
id = 11
port = "12/1"
luns = [ { lun = 0, name = "lun1" } ]
[[host]]
name = "good"
director = ["tcp:127.0.0.1:7471"]
run-dir = "@DIR@/good"
rate = "10G"
[[host.vm]]
name = "vm2"
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
luns = [ { lun = 0, name = "lun2" } ]
"#;

const VNIC: u32 = 1;
const VNIC_GENERATION: u32 = 3;
const VHBA: u32 = 11;
const VNIC_WINDOWS: [u32; 4] = [0, 0, 0, 4096];
const VHBA_WINDOWS: [u32; 4] = [64, 0, 65_536, 0];
const LUN0: [u8; 8] = [0x40, 0, 0, 0, 0, 0, 0, 0];
const INQUIRY: [u8; 6] = [0x12, 0, 0, 0, 36, 0];
const NETWORK: VirtualLane = VirtualLane::Network;
const COMMANDS: VirtualLane = VirtualLane::StorageCommand;
const DATA: VirtualLane = VirtualLane::StorageData;
const TASKS: VirtualLane = VirtualLane::TaskManagement;

/// The host that behaves: two vNICs and a vHBA, played by the test.
struct Good {
    vnics: [Arc<FarEnd>; 2],
    vhba: Arc<FarEnd>,
    count: u32,
    _host: TestHost,
}

impl Good {
    fn start(namespace: &Namespace) -> Self {
        let address = format!("tcp:{ADDRESS}").parse().unwrap();
        let options = LinkOptions::default();
        let link = namespace
            .run(|| Ok(connect(&address, PATIENCE, &options)?))
            .unwrap();
        let vnics = [FarEnd::new(), FarEnd::new()];
        let vhba = FarEnd::new();
        let grant = |far: &Arc<FarEnd>, windows| DeviceGrant {
            vm: None,
            rate: DeviceRate::best_effort(),
            windows,
            client: client(far),
        };
        let devices = vec![
            (DeviceId(2), grant(&vnics[0], VNIC_WINDOWS)),
            (DeviceId(3), grant(&vnics[1], VNIC_WINDOWS)),
            (DeviceId(12), grant(&vhba, VHBA_WINDOWS)),
        ];
        let host = TestHost::start("good", link, devices).unwrap();
        Self {
            vnics,
            vhba,
            count: 0,
            _host: host,
        }
    }

    /// A frame from one vNIC to the other through the switch, and an INQUIRY.
    fn round_trip(&mut self) {
        self.count += 1;
        let mac = |vnic| [2, 0x15, 0x97, 0, 0, vnic];
        let sent = frame(mac(3), mac(2), self.count, 300);
        let payload = [&[0; 12][..], &sent].concat();
        self.vnics[0].send(NETWORK, &payload).unwrap();
        loop {
            // The interface's own neighbour discovery and floods arrive too.
            let (_, payload) = self.vnics[1].next().unwrap();
            if payload[12..] == sent {
                break;
            }
        }
        while self.vnics[0].try_next().is_some() {}
        let tag = Tag(self.count.into());
        self.vhba
            .send(COMMANDS, &command(tag, &INQUIRY, 0, 36))
            .unwrap();
        let mut payload = self.vhba.next().unwrap().1;
        // A session begins with what the director says of sizes.
        while matches!(
            InformationUnit::parse(&payload),
            Ok(InformationUnit::Event(_))
        ) {
            payload = self.vhba.next().unwrap().1;
        }
        let InformationUnit::DataIn(data) = InformationUnit::parse(&payload).unwrap() else {
            panic!("no data: {payload:02x?}")
        };
        assert_eq!((data.tag, data.data.len()), (tag, 36));
        assert_eq!(status_of(&self.vhba.next().unwrap().1), (tag, 0));
    }
}

fn encode(unit: &InformationUnit<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    unit.encode(&mut bytes);
    bytes
}

fn command(tag: Tag, cdb: &[u8], data_out_bytes: u32, data_in_bytes: u32) -> Vec<u8> {
    encode(&InformationUnit::Command(scsi::Command {
        tag,
        lun: LUN0,
        attribute: 0,
        cdb,
        data_out_bytes,
        data_in_bytes,
    }))
}

fn status_of(payload: &[u8]) -> (Tag, u8) {
    match InformationUnit::parse(payload).unwrap() {
        InformationUnit::Status(status) => (status.tag, status.status),
        other => panic!("no status: {other:?}"),
    }
}

/// A director with one good host, in a namespace of its own.
struct Site {
    namespace: Namespace,
    folder: tempfile::TempDir,
    director: Process,
    good: RefCell<Good>,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("orimono-")
            .tempdir()
            .unwrap();
        for lun in ["lun1", "lun2"] {
            let file = fs::File::create(folder.path().join(lun)).unwrap();
            file.set_len(1 << 20).unwrap();
        }
        let file = folder.path().join("lab.toml");
        let text = LAB.replace("@DIR@", &folder.path().display().to_string());
        fs::write(&file, text).unwrap();
        let namespace = Namespace::new().unwrap();
        let mut command = Command::new(program("io-director").unwrap());
        command.arg("--config").arg(file);
        let director = Process::start("io-director", &namespace, &mut command).unwrap();
        director
            .wait_line("director listens", 2, lab::PATIENCE)
            .unwrap();
        let good = RefCell::new(Good::start(&namespace));
        let site = Self {
            namespace,
            folder,
            director,
            good,
        };
        site.assert_good();
        site
    }

    fn tcp(&self) -> RawPeer {
        let stream = self
            .namespace
            .run(|| Ok(TcpStream::connect(ADDRESS)?))
            .unwrap();
        stream.set_nodelay(true).unwrap();
        RawPeer::new(RawStream::Tcp(stream))
    }

    fn unix(&self) -> RawPeer {
        let path = self.folder.path().join("fabric");
        RawPeer::new(RawStream::Unix(UnixStream::connect(path).unwrap()))
    }

    /// Both kinds of socket.
    fn peers(&self) -> [RawPeer; 2] {
        [self.tcp(), self.unix()]
    }

    /// A peer that is host `hostile`.
    fn greeted(&self) -> RawPeer {
        let mut peer = self.tcp();
        peer.greet("hostile").unwrap();
        peer
    }

    /// The same with its vNIC attached.
    fn with_vnic(&self) -> RawPeer {
        let mut peer = self.greeted();
        let answer = peer.attach(VNIC, VNIC_GENERATION, VNIC_WINDOWS).unwrap();
        assert!(matches!(answer, Control::Attached { .. }), "{answer:?}");
        peer
    }

    /// The same with its vHBA attached.
    fn with_vhba(&self) -> RawPeer {
        let mut peer = self.greeted();
        let answer = peer.attach(VHBA, 0, VHBA_WINDOWS).unwrap();
        assert!(matches!(answer, Control::Attached { .. }), "{answer:?}");
        peer
    }

    fn assert_good(&self) {
        self.good.borrow_mut().round_trip();
    }

    /// The director closes the session and says something with `words` in it.
    fn assert_closed(&self, mut peer: RawPeer, words: &str) {
        let reason = peer.wait_closed().unwrap().unwrap_or_default();
        assert!(reason.contains(words), "{words:?} is not in {reason:?}");
        drop(peer);
        self.assert_good();
    }
}

/// The bytes of a HELLO in an unchecked frame, to be spoilt.
fn hello(peer: &RawPeer) -> Vec<u8> {
    let mut payload = Vec::new();
    RawPeer::hello("hostile").encode(&mut payload);
    peer.frame(&peer.header(FrameKind::Hello, DeviceId(0)), &payload)
}

fn p01_lengths(site: &Site) {
    for length in [0, 1, 65_793, 0x10_0000, u32::MAX] {
        for peer in site.peers() {
            let mut bytes = hello(&peer);
            bytes[12..16].copy_from_slice(&length.to_le_bytes());
            peer.send_bytes(&bytes);
            site.assert_closed(peer, "");
        }
    }
    // The longest that may be: well-framed, but no HELLO.
    for peer in site.peers() {
        let header = peer.header(FrameKind::Hello, DeviceId(0));
        peer.send_bytes(&peer.frame(&header, &vec![b'a'; 65_792]));
        site.assert_closed(peer, "name");
    }
}

fn p02_truncated(site: &Site) {
    for cut in [1, 31, 32, 40] {
        for peer in site.peers() {
            peer.send_bytes(&hello(&peer)[..cut]);
            peer.finish();
            site.assert_closed(peer, "");
            let peer = site.tcp();
            peer.send_bytes(&hello(&peer)[..cut]);
            peer.reset().unwrap();
        }
        // In the middle of a frame of an attached device.
        let mut peer = site.with_vnic();
        let header = peer.data_header(VNIC, NETWORK);
        let bytes = peer.frame(&header, &[0; 100]);
        peer.send_bytes(&bytes[..cut]);
        peer.reset().unwrap();
        site.assert_good();
    }
}

fn p03_versions_and_reserved_bits(site: &Site) {
    // Offsets of magic, version, kind, lane and flags.
    for (offset, value) in [
        (0, 0),
        (1, 0xff),
        (2, 0),
        (2, 3),
        (3, 0),
        (3, 14),
        (3, 255),
        (4, 5),
        (4, 255),
        (5, 2),
        (5, 0x80),
    ] {
        // Without a checksum on this kind of link: the field itself is looked at.
        let peer = site.unix();
        let mut bytes = hello(&peer);
        bytes[offset] = value;
        peer.send_bytes(&bytes);
        site.assert_closed(peer, "");
        // With one that is wrong.
        let peer = site.tcp();
        let mut bytes = hello(&peer);
        bytes[offset] = value;
        peer.send_bytes(&bytes);
        site.assert_closed(peer, "");
    }
    // A checksum that is not there.
    let peer = site.tcp();
    peer.send_bytes(&hello(&site.unix()));
    site.assert_closed(peer, "checksum");
    for (version_min, version_max) in [(0, 0), (3, 9), (2, 0)] {
        let mut peer = site.tcp();
        let control = Control::Hello {
            version_min,
            version_max,
            session: u16::MAX,
            priority: 0,
            features: u64::MAX,
            instance: 0,
            name: "hostile".to_owned(),
        };
        peer.control(DeviceId(0), &control);
        site.assert_closed(peer, "version");
    }
}

fn p03_frames_out_of_place(site: &Site) {
    let windows = VNIC_WINDOWS;
    let before_hello = [
        Control::Attach {
            generation: VNIC_GENERATION,
            windows,
        },
        Control::Detach { generation: 0 },
        Control::Acknowledge,
        Control::Ping(1),
        Control::Welcome {
            version: 1,
            epoch: 1,
            path: 1,
            features: 0,
            instance: 0,
            name: "hostile".to_owned(),
        },
    ];
    for control in before_hello {
        let mut peer = site.tcp();
        peer.control(DeviceId(VNIC), &control);
        site.assert_closed(peer, "in place of a greeting");
    }
    let mut peer = site.tcp();
    peer.data(VNIC, NETWORK, &[0; 80]);
    site.assert_closed(peer, "in place of a greeting");
    let a_directors = [
        RawPeer::hello("hostile"),
        Control::Welcome {
            version: 1,
            epoch: 1,
            path: 1,
            features: 0,
            instance: 0,
            name: "hostile".to_owned(),
        },
        Control::Attached {
            generation: 0,
            windows,
        },
        Control::Refused {
            generation: 0,
            reason: "no".to_owned(),
        },
    ];
    for control in a_directors {
        let mut peer = site.greeted();
        peer.control(DeviceId(0), &control);
        site.assert_closed(peer, "");
    }
    for name in ["", "two words", "nul\0", &"x".repeat(64)] {
        let peer = site.tcp();
        let mut payload = Vec::new();
        RawPeer::hello("h").encode(&mut payload);
        payload.truncate(24);
        payload.extend_from_slice(name.as_bytes());
        let header = peer.header(FrameKind::Hello, DeviceId(0));
        peer.send_bytes(&peer.frame(&header, &payload));
        site.assert_closed(peer, "name");
    }
}

fn p05_devices_of_others(site: &Site) {
    let mut peer = site.tcp();
    peer.control(DeviceId(0), &RawPeer::hello("nobody"));
    site.assert_closed(peer, "unknown");
    let mut peer = site.greeted();
    for (device, generation) in [
        (2, 0),
        (12, 0),
        (999, 0),
        (0, 0),
        (u32::MAX, 0),
        (VNIC, 0),
        (VNIC, VNIC_GENERATION + 1),
    ] {
        let answer = peer.attach(device, generation, VNIC_WINDOWS).unwrap();
        assert!(
            matches!(answer, Control::Refused { .. }),
            "{device}: {answer:?}"
        );
    }
    // Letting others' devices go does nothing.
    for device in [2, 3, 12] {
        peer.control(DeviceId(device), &Control::Detach { generation: 0 });
    }
    peer.ping().unwrap();
    site.assert_good();
    // Frames for them reach nobody.
    peer.data(2, NETWORK, &[0; 80]);
    peer.ping().unwrap();
    site.assert_good();
    let mut peer = site.with_vnic();
    let again = Control::Attach {
        generation: VNIC_GENERATION,
        windows: VNIC_WINDOWS,
    };
    peer.control(DeviceId(VNIC), &again);
    site.assert_closed(peer, "already");
}

fn p06_credit(site: &Site) {
    // A closed lane, and one that is used up: commands whose data never comes keep their credit.
    let mut peer = site.with_vnic();
    peer.data(VNIC, DATA, &[0; 80]);
    site.assert_closed(peer, "without credit");
    let mut peer = site.with_vhba();
    for tag in 0..65 {
        let write = command(Tag(tag), &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], 512, 0);
        peer.data(VHBA, COMMANDS, &write);
    }
    site.assert_closed(peer, "without credit");
    // Sequence numbers that leave a gap, and one of a frame that came by another link.
    let wrong_sequence = |sequence| {
        let mut peer = site.with_vnic();
        let header = FrameHeader {
            sequence,
            ..peer.data_header(VNIC, NETWORK)
        };
        peer.send_bytes(&peer.frame(&header, &[0; 80]));
        peer
    };
    site.assert_closed(wrong_sequence(1), "sequence number 1");
    wrong_sequence(u32::MAX).ping().unwrap();
    // Limits far ahead; those going back are old, and credit for others is late.
    for (limit, closes) in [
        (VNIC_WINDOWS[3] + WINDOW_BLOCKS_MAX + 1, true),
        (u32::MAX, false),
        (0, false),
    ] {
        let mut peer = site.with_vnic();
        let credit = |device, limit| Credit {
            device: DeviceId(device),
            lane: NETWORK,
            limit,
        };
        let control = Control::Credit(vec![
            credit(2, u32::MAX),
            credit(999, 1),
            credit(VNIC, limit),
        ]);
        peer.control(DeviceId(0), &control);
        if closes {
            site.assert_closed(peer, "credit");
        } else {
            peer.ping().unwrap();
        }
        let mut peer = site.with_vnic();
        let header = FrameHeader {
            credit_limit: limit,
            ..peer.data_header(VNIC, NETWORK)
        };
        peer.send_bytes(&peer.frame(&header, &[0; 80]));
        if closes {
            site.assert_closed(peer, "credit");
        } else {
            peer.ping().unwrap();
        }
    }
    let mut peer = site.greeted();
    let control = Control::Attach {
        generation: VNIC_GENERATION,
        windows: [0, 0, 0, WINDOW_BLOCKS_MAX + 1],
    };
    peer.control(DeviceId(VNIC), &control);
    site.assert_closed(peer, "window");
    // Acknowledging what was never sent.
    let mut peer = site.with_vnic();
    peer.received = peer.received.wrapping_add(1000);
    peer.control(DeviceId(0), &Control::Acknowledge);
    site.assert_closed(peer, "acknowledge");
}

fn p07_old_sessions(site: &Site) {
    let mut old = site.with_vnic();
    // A newer session of the same host ends the old one, whose device is free at once.
    let mut new = site.with_vnic();
    assert_ne!(old.epoch, new.epoch);
    old.data(VNIC, NETWORK, &[0; 80]);
    site.assert_closed(old, "newer session");
    new.ping().unwrap();
    // A frame of the old epoch on the new link.
    let current = new.epoch;
    new.epoch = current.wrapping_sub(1);
    new.data(VNIC, NETWORK, &[0; 80]);
    site.assert_closed(new, "epoch");
    let mut peer = site.greeted();
    peer.epoch = 0;
    peer.control(DeviceId(0), &Control::Ping(1));
    site.assert_closed(peer, "epoch");
}

/// The hostile host's own vHBA still answers, so nothing of what it sent has confused the director.
fn assert_inquiry(peer: &mut RawPeer, tag: u64) {
    peer.data(VHBA, COMMANDS, &command(Tag(tag), &INQUIRY, 0, 36));
    loop {
        let (_, payload) = peer.next_data().unwrap();
        if let InformationUnit::Status(status) = InformationUnit::parse(&payload).unwrap()
            && status.tag == Tag(tag)
        {
            assert_eq!(status.status, 0);
            assert_eq!(status.data_in_bytes, 36);
            return;
        }
    }
}

fn p04_scsi_units(site: &Site) {
    let mut peer = site.with_vhba();
    let data = |tag, offset, data| {
        let data = Data {
            tag: Tag(tag),
            offset,
            data,
        };
        encode(&InformationUnit::DataOut(data))
    };
    // For tags that name nothing; then a write of one block with too much, in the wrong place,
    // twice the same tag, and at last its data.
    peer.data(VHBA, DATA, &data(77, 0, &[1; 512]));
    let write = command(Tag(1), &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], 512, 0);
    peer.data(VHBA, COMMANDS, &write);
    peer.data(VHBA, COMMANDS, &write);
    peer.data(VHBA, DATA, &data(1, 0, &[1; 513]));
    peer.data(VHBA, DATA, &data(1, 1, &[1; 16]));
    peer.data(VHBA, DATA, &data(1, u32::MAX, &[1; 512]));
    peer.data(VHBA, DATA, &data(1, 0, &[1; 512]));
    peer.data(VHBA, DATA, &data(1, 512, &[1; 1]));
    // What only a director may send.
    let tag = Tag(1);
    for (lane, unit) in [
        (
            DATA,
            InformationUnit::DataIn(Data {
                tag,
                offset: 0,
                data: &[1; 16],
            }),
        ),
        (
            DATA,
            InformationUnit::Status(Status {
                tag,
                response: ServiceResponse::TaskComplete,
                status: 0,
                data_in_bytes: 0,
                sense: &[],
            }),
        ),
        (
            TASKS,
            InformationUnit::TaskManagementResponse {
                response: TaskResponse::Complete,
                tag,
            },
        ),
        (TASKS, InformationUnit::Event(Event::LunAdded(LUN0))),
        // On lanes where they do not belong.
        (
            COMMANDS,
            InformationUnit::TaskManagement {
                function: TaskFunction::AbortTask,
                tag,
                managed: tag,
                lun: LUN0,
            },
        ),
    ] {
        peer.data(VHBA, lane, &encode(&unit));
    }
    peer.data(VHBA, TASKS, &command(Tag(2), &INQUIRY, 0, 36));
    // Of no type, of types cut short, of lengths beyond the limit.
    for lane in [TASKS, COMMANDS, DATA] {
        peer.data(VHBA, lane, &[]);
        peer.data(VHBA, lane, &[0; 16]);
        peer.data(VHBA, lane, &[99; 64]);
    }
    peer.data(VHBA, COMMANDS, &command(Tag(3), &INQUIRY, 0, 36)[..63]);
    peer.data(VHBA, COMMANDS, &command(Tag(4), &INQUIRY, 1 << 21, 0));
    peer.data(VHBA, COMMANDS, &command(Tag(5), &INQUIRY, 0, u32::MAX));
    peer.data(VHBA, DATA, &data(1, 0, &[]));
    assert_inquiry(&mut peer, 6);
    site.assert_good();
    // A function on a task that does not exist is answered; then the session goes, with a write
    // that never got its data.
    let function = InformationUnit::TaskManagement {
        function: TaskFunction::AbortTask,
        tag: Tag(9),
        managed: Tag(1234),
        lun: LUN0,
    };
    peer.data(VHBA, TASKS, &encode(&function));
    loop {
        let (_, payload) = peer.next_data().unwrap();
        if let InformationUnit::TaskManagementResponse { tag, .. } =
            InformationUnit::parse(&payload).unwrap()
        {
            assert_eq!(tag, Tag(9));
            break;
        }
    }
    peer.data(VHBA, COMMANDS, &command(Tag(10), &[0x2a; 10], 512, 0));
    peer.reset().unwrap();
    let mut peer = site.with_vhba();
    assert_inquiry(&mut peer, 1);
    site.assert_good();
}

fn p04_network_payloads(site: &Site) {
    let mut peer = site.with_vnic();
    let mac = |vnic| [2, 0x15, 0x97, 0, 0, vnic];
    for bytes in [0, 1, 11, 12, 25, 65_792] {
        peer.data(VNIC, NETWORK, &vec![0; bytes]);
    }
    // Headers that make no sense, and somebody else's source address.
    let good_frame = frame(mac(3), mac(1), 5, 100);
    for header in [
        [0xff; 12],
        [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0x7f, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
    ] {
        peer.data(VNIC, NETWORK, &[&header[..], &good_frame].concat());
    }
    let spoofed = frame(mac(3), mac(2), 0xbad, 100);
    peer.data(VNIC, NETWORK, &[&[0; 12][..], &spoofed].concat());
    // A good one behind them.
    let last = frame(mac(3), mac(1), 0x600d, 100);
    peer.data(VNIC, NETWORK, &[&[0; 12][..], &last].concat());
    let good = site.good.borrow();
    loop {
        let (_, payload) = good.vnics[1].next().unwrap();
        let count = number(&payload[12..]);
        assert_ne!(count, Some(0xbad), "a foreign source address got through");
        if count == Some(0x600d) {
            break;
        }
    }
    drop(good);
    site.assert_good();
}

/// Never returns credit and never reads: only its own frames are lost.
fn p06_never_reads(site: &Site) {
    let peer = site.with_vnic();
    let mac = |vnic| [2, 0x15, 0x97, 0, 0, vnic];
    let flood = [&[0; 12][..], &frame(mac(1), mac(2), 1, 1500)].concat();
    for _frame in 0..500 {
        site.good.borrow().vnics[0].send(NETWORK, &flood).unwrap();
    }
    site.assert_good();
    drop(peer);
    site.assert_good();
}

const CASES: [fn(&Site); 10] = [
    p01_lengths,
    p02_truncated,
    p03_versions_and_reserved_bits,
    p03_frames_out_of_place,
    p04_scsi_units,
    p04_network_payloads,
    p05_devices_of_others,
    p06_credit,
    p06_never_reads,
    p07_old_sessions,
];

#[test]
fn p01_lengths_are_checked_before_anything_is_kept() {
    p01_lengths(&Site::new());
}

#[test]
fn p02_truncated_frames_end_with_their_link() {
    p02_truncated(&Site::new());
}

#[test]
fn p03_other_versions_and_reserved_bits_are_turned_away() {
    p03_versions_and_reserved_bits(&Site::new());
}

#[test]
fn p03_frames_out_of_place_close_the_session() {
    p03_frames_out_of_place(&Site::new());
}

#[test]
fn p04_scsi_units_that_make_no_sense_are_counted() {
    p04_scsi_units(&Site::new());
}

#[test]
fn p04_frames_that_make_no_sense_are_dropped() {
    p04_network_payloads(&Site::new());
}

#[test]
fn p05_host_reaches_its_own_devices_only() {
    p05_devices_of_others(&Site::new());
}

#[test]
fn p06_credit_cannot_be_forged() {
    p06_credit(&Site::new());
}

#[test]
fn p06_host_that_never_reads_stalls_only_itself() {
    p06_never_reads(&Site::new());
}

#[test]
fn p07_old_sessions_are_fenced_off() {
    p07_old_sessions(&Site::new());
}

/// The greeting's deadline of 5 s makes this the one slow case.
#[test]
fn p08_slow_greetings_are_bounded_in_number_and_time() {
    let site = Site::new();
    let mut silent: Vec<_> = (0..GREETINGS_MAX - 1).map(|_| site.tcp()).collect();
    let mut half = site.tcp();
    half.send_bytes(&hello(&half)[..16]);
    let drip = site.unix();
    // The limit is that of one address: one more there ends the oldest. Who has greeted does not
    // notice.
    let newest = site.tcp();
    let mut oldest = silent.remove(0);
    let reason = oldest.wait_closed().unwrap();
    assert!(reason.is_some_and(|reason| reason.contains("have not greeted")));
    site.assert_good();
    // Byte by byte, one for each round trip of the good host: the deadline does not move.
    let bytes = hello(&drip);
    let end = Instant::now() + PATIENCE;
    let opened = Instant::now();
    let mut sent = 0;
    while site.director.count_lines("no greeting in time") < 2 {
        assert!(Instant::now() < end, "no greeting was given up");
        if sent + 1 < bytes.len() {
            drip.send_bytes(&bytes[sent..=sent]);
            sent += 1;
        }
        site.assert_good();
    }
    assert!(
        sent > 8,
        "only {sent} bytes were dripped in {:?}",
        opened.elapsed()
    );
    for peer in silent.iter_mut().chain([&mut half]) {
        peer.wait_closed().unwrap();
    }
    for mut peer in [drip, newest] {
        peer.wait_closed().unwrap();
    }
    drop(site.with_vnic());
    site.assert_good();
}

/// Every case again and again: descriptors and memory of the director stay what they were.
#[test]
fn p_nothing_is_left_behind() {
    let site = Site::new();
    for case in CASES {
        case(&site);
    }
    let (_, resident_kib) = site.director.resources().unwrap();
    // Each round of ten cases has some 150 sessions.
    for case in CASES.iter().cycle().take(200) {
        case(&site);
    }
    let (_, resident_after_kib) = site.director.resources().unwrap();
    assert!(
        resident_after_kib < resident_kib + 8 * 1024,
        "{resident_kib} KiB grew to {resident_after_kib} KiB"
    );
    // Sessions end a little after their peers: as many round trips as it takes.
    let end = Instant::now() + PATIENCE;
    let fresh = Site::new();
    let (descriptors, _) = fresh.director.resources().unwrap();
    while site.director.resources().unwrap().0 > descriptors {
        assert!(
            Instant::now() < end,
            "{} descriptors, a fresh director has {descriptors}",
            site.director.resources().unwrap().0
        );
        site.assert_good();
    }
}

//! What an operator sees of frames: captures, live pipes, mirrors and counters of the real director and
//! host agent, beside what the namespace at the other end of the interface sees.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]
#![expect(
    clippy::indexing_slicing,
    reason = "a failed expectation is a failed test"
)]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use fabric_payload::ethernet::{HEADER_BYTES, PAYLOAD_BYTES_MAX};
use io_director::ethernet::Tap;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, setsockopt,
    socket, sockopt,
};
use nix::unistd::Pid;
use orimono_tests::devices::net::{NetGuest, frame, number};
use orimono_tests::lab::{Lab, Namespace, PATIENCE, program};
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
use pcap_file::pcapng::{Block, PcapNgReader};
use serde_json::Value;

const TAP: &str = "orimono0";
const OUTSIDE: [u8; 6] = [2, 0xaa, 0, 0, 0, 9];
const FRAME_BYTES: usize = 100;
const HEADER: [u8; HEADER_BYTES] = [0; HEADER_BYTES];

const LAB: &str = r#"
[director]
name = "director1"
listen = ["tcp:127.0.0.1:7471"]
[[ethernet-port]]
port = "10/1"
tap = "orimono0"
offloads = false
[[access-list]]
name = "no-discard"
default = "allow"
rules = [ { action = "deny", protocol = "udp", destination-port = "9" } ]
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
port = "10/1"
mac = "02:15:97:00:00:01"
access-in = "no-discard"
#@MIRROR@
[[host.vm.vnic]]
name = "vn02"
id = 2
port = "10/1"
mac = "02:15:97:00:00:02"
"#;

fn mac(vnic: u8) -> [u8; 6] {
    [2, 0x15, 0x97, 0, 0, vnic]
}

fn guest(lab: &Lab, vnic: u8) -> NetGuest {
    let socket = lab.folder().join(format!("host1/vn0{vnic}.vm1.sock"));
    let mut guest = NetGuest::connect(&socket, 1).unwrap();
    guest.post(0, 200).unwrap();
    guest
}

fn send(guest: &mut NetGuest, frame: &[u8]) {
    guest.send(0, frame).unwrap();
    guest.wait_sent(0).unwrap();
}

/// The number of a frame of a test; those of the interface's own kernel have none.
fn ours(frame: &[u8]) -> Option<u32> {
    number(frame).filter(|_| frame[12..14] == [0x88, 0xb5])
}

/// To UDP port 9 of a station outside.
fn discard() -> Vec<u8> {
    let mut frame = [OUTSIDE, mac(1)].concat();
    frame.extend([8, 0, 0x45, 0, 0, 30, 0, 0, 0, 0, 64, 17, 0, 0]);
    frame.extend([10, 9, 0, 2, 10, 9, 0, 1, 0, 1, 0, 9, 0, 10, 0, 0]);
    frame.extend(b"hi");
    frame
}

/// A socket that sees what is at the interface.
struct Sniffer(OwnedFd);

impl Sniffer {
    fn new(namespace: &Namespace) -> Self {
        let made = namespace.run(|| {
            let (family, kind) = (AddressFamily::Packet, SockType::Raw);
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = socket(family, kind, flags, SockProtocol::EthAll)?;
            setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20))?;
            let mut interfaces = nix::ifaddrs::getifaddrs()?;
            let address: LinkAddr = interfaces
                .find_map(|known| {
                    let address = known.address?.as_link_addr().copied()?;
                    (known.interface_name == TAP).then_some(address)
                })
                .unwrap();
            bind(socket.as_raw_fd(), &address)?;
            Ok(socket)
        });
        Self(made.unwrap())
    }

    fn send(&self, frame: &[u8]) {
        nix::sys::socket::send(self.0.as_raw_fd(), frame, MsgFlags::empty()).unwrap();
    }

    fn next(&self) -> Vec<u8> {
        let mut bytes = vec![0; 70_000];
        let end = Instant::now() + PATIENCE;
        loop {
            match recv(self.0.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
                Ok(count) => {
                    bytes.truncate(count);
                    return bytes;
                }
                Err(nix::Error::EAGAIN) => {
                    assert!(Instant::now() < end, "nothing came");
                    let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
                    poll(&mut fds, 100_u16).unwrap();
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// What came before the frame with this number.
    fn until(&self, marker: u32) -> Vec<Vec<u8>> {
        let frames = std::iter::repeat_with(|| self.next());
        let before = |frame: &Vec<u8>| ours(frame) != Some(marker);
        frames.take_while(before).collect()
    }
}

fn qos(lab: &Lab, process: &str) -> Command {
    let mut command = Command::new(program("orimono-qos").unwrap());
    command.arg("--socket").arg(lab.control(process));
    command
}

fn succeeded(output: Output) -> Vec<u8> {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    output.stdout
}

/// A capture into a file.
struct Capture {
    child: Child,
    file: PathBuf,
}

impl Capture {
    /// It runs when this returns.
    fn start(lab: &Lab, name: &str, words: &[&str]) -> Self {
        let file = lab.folder().join(name);
        let mut command = qos(lab, "director");
        command.arg("capture-frames").args(words).arg("-w");
        let child = command.arg(&file).stdout(Stdio::null()).spawn().unwrap();
        let end = Instant::now() + PATIENCE;
        while file.metadata().map_or(0, |data| data.len()) == 0 {
            assert!(Instant::now() < end, "capture {name} does not begin");
            std::thread::yield_now();
        }
        Self { child, file }
    }

    /// Interrupted, as by Ctrl-C.
    fn end(mut self) -> PathBuf {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap());
        kill(pid, Signal::SIGINT).unwrap();
        assert!(self.child.wait().unwrap().success());
        self.file
    }
}

/// A frame in a file.
struct Packet {
    bytes: Vec<u8>,
    comment: String,
    flags: u32,
}

fn read(file: &Path) -> Vec<Packet> {
    let mut reader = PcapNgReader::new(File::open(file).unwrap()).unwrap();
    let mut packets = Vec::new();
    while let Some(block) = reader.next_block() {
        let Block::EnhancedPacket(packet) = block.unwrap() else {
            continue;
        };
        let (mut comment, mut flags) = (String::new(), 0);
        for option in &packet.options {
            match option {
                EnhancedPacketOption::Comment(text) => comment = text.to_string(),
                EnhancedPacketOption::Flags(word) => flags = *word,
                EnhancedPacketOption::DropCount(count) => panic!("{count} frames are missing"),
                _ => {}
            }
        }
        packets.push(Packet {
            bytes: packet.data.to_vec(),
            comment,
            flags,
        });
    }
    packets
}

const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

fn is_tcp(frame: &[u8]) -> bool {
    frame.len() > 34 && frame[12..14] == [8, 0] && frame[23] == 6
}

fn tshark(file: &Path, words: &[&str]) -> String {
    let mut command = Command::new("tshark");
    command.arg("-r").arg(file).args(words);
    String::from_utf8(succeeded(command.output().unwrap())).unwrap()
}

fn tcpdump(file: &Path) -> String {
    let mut command = Command::new("tcpdump");
    command.arg("-nn").arg("-r").arg(file);
    String::from_utf8(succeeded(command.output().unwrap())).unwrap()
}

/// A kernel in a namespace of its own that uses a vNIC: what it sends goes to the guest's rings, and
/// back, and between it what `said` has, until that ends.
fn pump(tap: &Tap, guest: &mut NetGuest, said: &mpsc::Receiver<Vec<u8>>, stop: &AtomicBool) {
    let mut payload = vec![0; PAYLOAD_BYTES_MAX];
    while !stop.load(Ordering::Relaxed) {
        let mut fds = [PollFd::new(tap.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, 1_u16).unwrap();
        while let Ok(bytes) = tap.read(&mut payload) {
            send(guest, &payload[HEADER_BYTES..bytes]);
        }
        if let Ok(frame) = said.try_recv() {
            send(guest, &frame);
        }
        while let Some(received) = guest.poll(0).unwrap() {
            guest.post(0, 1).unwrap();
            let frame = [&HEADER[..], &received.frame].concat();
            tap.write([&[], &frame]).unwrap();
        }
    }
}

/// Sends `own` and closes that half, while it reads what the other sends.
fn exchange(mut stream: TcpStream, own: &[u8]) -> Vec<u8> {
    let mut reader = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        let heard = scope.spawn(move || {
            let mut heard = Vec::new();
            reader.read_to_end(&mut heard).unwrap();
            heard
        });
        stream.write_all(own).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        heard.join().unwrap()
    })
}

#[test]
fn captures_of_a_tcp_stream_equal_what_the_namespace_sees() {
    const STREAM_BYTES: usize = 200_000;
    let lab = Lab::start(LAB).unwrap();
    lab.namespace
        .ip("addr add 10.9.0.1/24 dev orimono0")
        .unwrap();
    let station = Namespace::new().unwrap();
    let tap = station
        .run(|| Ok(Tap::open("guest0", false, 1500)?))
        .unwrap();
    for words in [
        "link set guest0 address 02:15:97:00:00:01",
        "addr add 10.9.0.2/24 dev guest0",
    ] {
        station.ip(words).unwrap();
    }
    let mut guest = guest(&lab, 1);
    let sniffer = Sniffer::new(&lab.namespace);
    let words = ["--filter", "protocol=tcp", "--rate", "40000"];
    let of_port = [&["--port", "10/1"][..], &words].concat();
    let of_port = Capture::start(&lab, "port.pcapng", &of_port);
    let of_vnic = [&["--vnic", "vn01.vm1"][..], &words].concat();
    let of_vnic = Capture::start(&lab, "vnic.pcapng", &of_vnic);
    let (say, said) = mpsc::channel();
    let stop = AtomicBool::new(false);
    let [to_server, to_client] = [1, 2].map(|seed| {
        let mut random = fastrand::Rng::with_seed(seed);
        std::iter::repeat_with(|| random.u8(..))
            .take(STREAM_BYTES)
            .collect::<Vec<u8>>()
    });
    let listener = lab
        .namespace
        .run(|| Ok(TcpListener::bind("10.9.0.1:7000")?));
    let listener = listener.unwrap();
    let seen = std::thread::scope(|scope| {
        let (tap, guest, stopped) = (&tap, &mut guest, &stop);
        scope.spawn(move || pump(tap, guest, &said, stopped));
        let server = scope.spawn(|| exchange(listener.accept().unwrap().0, &to_client));
        let client = station.run(|| Ok(TcpStream::connect("10.9.0.1:7000")?));
        assert!(exchange(client.unwrap(), &to_server) == to_client);
        assert!(server.join().unwrap() == to_server);
        // Behind the last frame of the stream.
        say.send(frame(OUTSIDE, mac(1), 1, FRAME_BYTES)).unwrap();
        let seen = sniffer.until(1);
        stop.store(true, Ordering::Relaxed);
        seen
    });
    let files = [of_port.end(), of_vnic.end()];
    let seen: Vec<_> = seen.into_iter().filter(|frame| is_tcp(frame)).collect();
    assert!(seen.len() > 2 * STREAM_BYTES / 1500, "{}", seen.len());
    for file in &files {
        let packets = read(file);
        for (guest, way) in [(true, OUTBOUND), (false, INBOUND)] {
            let is_from = |frame: &[u8]| (frame[6..12] == mac(1)) == guest;
            let expected: Vec<_> = seen.iter().filter(|frame| is_from(frame)).collect();
            let captured = packets.iter().filter(|packet| is_from(&packet.bytes));
            let captured: Vec<_> = captured.collect();
            assert_eq!(captured.len(), expected.len(), "{}", file.display());
            for (captured, expected) in captured.iter().zip(expected) {
                assert!(captured.bytes == *expected, "{}", file.display());
                assert_eq!(captured.flags, way);
                assert_eq!(captured.comment, "vnic vn01.vm1");
            }
        }
        // Each is as long, so nothing else is there.
        assert_eq!(packets.len(), seen.len());
        assert_eq!(tcpdump(file).lines().count(), seen.len());
        let bad = "tcp.checksum.status == \"Bad\" || ip.checksum.status == \"Bad\"";
        let check = [
            "-o",
            "tcp.check_checksum:TRUE",
            "-o",
            "ip.check_checksum:TRUE",
        ];
        assert_eq!(tshark(file, &[&check[..], &["-Y", bad]].concat()), "");
        let followed = tshark(file, &["-q", "-z", "follow,tcp,raw,0"]);
        let (mut client, mut server) = (String::new(), String::new());
        for line in followed.lines() {
            let hexadecimal = line.trim();
            if hexadecimal.is_empty() || hexadecimal.bytes().any(|byte| !byte.is_ascii_hexdigit()) {
                continue;
            }
            match line.starts_with('\t') {
                true => server += hexadecimal,
                false => client += hexadecimal,
            }
        }
        let hexadecimal = |bytes: &[u8]| {
            let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
            digits.collect::<String>()
        };
        assert!(client == hexadecimal(&to_server), "{}", file.display());
        assert!(server == hexadecimal(&to_client), "{}", file.display());
    }
}

#[test]
fn dropped_frames_have_their_reason_and_a_pipe_shows_frames_while_they_come() {
    let lab = Lab::start(LAB).unwrap();
    let (mut guest, mut neighbour) = (guest(&lab, 1), guest(&lab, 2));
    let sniffer = Sniffer::new(&lab.namespace);
    reach(&mut guest, &sniffer);
    let all = Capture::start(&lab, "all.pcapng", &["--vnic", "vn01.vm1"]);
    let filter = [
        "--vnic",
        "vn01.vm1",
        "--filter",
        "protocol=0x88b5",
        "--count",
        "2",
    ];
    let mut live = qos(&lab, "director")
        .arg("capture-frames")
        .args(filter)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut shown = Command::new("tcpdump")
        .args(["-nn", "-e", "-l", "-r", "-"])
        .stdin(live.stdout.take().unwrap())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It says what it reads when the header is there: the capture runs.
    let mut said = BufReader::new(shown.stderr.take().unwrap());
    said.read_line(&mut String::new()).unwrap();
    // Beside each frame it shows bytes, indented.
    let lines = BufReader::new(shown.stdout.take().unwrap()).lines();
    let mut lines = lines
        .map_while(Result::ok)
        .filter(|line| !line.starts_with('\t'));
    let mut other = frame(OUTSIDE, mac(2), 3, FRAME_BYTES);
    send(&mut neighbour, &other);
    send(&mut guest, &discard());
    send(&mut guest, &frame(OUTSIDE, mac(1), 4, FRAME_BYTES));
    // The second is not sent yet.
    let line = lines.next().unwrap();
    assert!(
        line.contains("02:15:97:00:00:01 > 02:aa:00:00:00:09"),
        "{line}"
    );
    other = frame(OUTSIDE, mac(2), 5, FRAME_BYTES);
    send(&mut guest, &other);
    let line = lines.next().unwrap();
    assert!(
        line.contains("02:15:97:00:00:02 > 02:aa:00:00:00:09"),
        "{line}"
    );
    assert!(lines.next().is_none(), "two are all");
    assert!(live.wait().unwrap().success() && shown.wait().unwrap().success());
    let file = all.end();
    let mut packets = read(&file);
    // The interface's own kernel may have said something.
    packets.retain(|packet| packet.bytes.starts_with(&OUTSIDE));
    let comments: Vec<_> = packets
        .iter()
        .map(|packet| packet.comment.as_str())
        .collect();
    assert_eq!(
        comments,
        [
            "vnic vn01.vm1, dropped: access",
            "vnic vn01.vm1",
            "vnic vn01.vm1, dropped: foreign_source"
        ]
    );
    assert_eq!(packets[0].bytes, discard());
    let told = tshark(
        &file,
        &[
            "-Y",
            "udp.dstport == 9",
            "-T",
            "fields",
            "-e",
            "frame.comment",
        ],
    );
    assert_eq!(told, "vnic vn01.vm1, dropped: access\n");
    // What was captured was counted, too, at both ends.
    let counters = |process: &str| -> Value {
        let mut command = qos(&lab, process);
        command.args(["counters", "vnic vn01.vm1", "--json"]);
        serde_json::from_slice(&succeeded(command.output().unwrap())).unwrap()
    };
    let count = |objects: &Value, object: &str, name: &str| {
        let mut objects = objects.as_array().unwrap().iter();
        let found = objects.find(|it| it["object"] == object).unwrap();
        found["counts"][name].as_u64().unwrap()
    };
    let (host, director) = (counters("host1"), counters("director"));
    let vnic = "vnic vn01.vm1";
    assert_eq!(count(&director, vnic, "tx_dropped_access"), 1);
    assert_eq!(count(&director, vnic, "tx_dropped_foreign_source"), 1);
    let passed = count(&director, vnic, "tx_packets");
    assert_eq!(count(&host, vnic, "tx_packets"), passed + 2);
    assert_eq!(count(&director, vnic, "link_up"), 1);
    let rule = "vnic vn01.vm1 access-in no-discard rule 1";
    assert_eq!(count(&director, rule, "packets"), 1);
    let table = qos(&lab, "director")
        .args(["counters", "ethernet-port"])
        .output();
    let table = String::from_utf8(succeeded(table.unwrap())).unwrap();
    assert!(
        table.starts_with("ethernet-port 10/1 (director):\n"),
        "{table}"
    );
    assert!(table.contains("     tx_packets: "), "{table}");
}

/// Returns when frames of the guest get through to the interface.
fn reach(guest: &mut NetGuest, sniffer: &Sniffer) {
    let end = Instant::now() + PATIENCE;
    let hello = frame(OUTSIDE, mac(1), 0, FRAME_BYTES);
    let mut bytes = vec![0; 2000];
    loop {
        assert!(Instant::now() < end, "guest has no lanes");
        send(guest, &hello);
        while let Ok(count) = recv(sniffer.0.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
            if bytes[..count] == hello {
                return;
            }
        }
        std::thread::yield_now();
    }
}

#[test]
fn mirror_shows_a_vnic_to_another_from_the_next_lab_file_on() {
    let mut lab = Lab::start(LAB).unwrap();
    let (mut guest, mut watcher) = (guest(&lab, 1), guest(&lab, 2));
    let sniffer = Sniffer::new(&lab.namespace);
    reach(&mut guest, &sniffer);
    lab.rewrite(&LAB.replace("#@MIRROR@", "mirror-to = \"vn02.vm1\""))
        .unwrap();
    let report = lab.apply("director").unwrap();
    assert_eq!(report[0]["fields"], serde_json::json!(["mirror-to"]));
    let sent = frame(OUTSIDE, mac(1), 7, FRAME_BYTES);
    send(&mut guest, &sent);
    let answer = frame(mac(1), OUTSIDE, 8, FRAME_BYTES);
    sniffer.send(&answer);
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let received = watcher.receive(0).unwrap().frame;
        watcher.post(0, 1).unwrap();
        // Neighbours of the interface may ask who is there.
        seen.extend(Some(received).filter(|frame| ours(frame).is_some_and(|it| it > 0)));
    }
    // The answer did not wait for what it answers.
    let mut both = [sent, answer.clone()];
    seen.sort();
    both.sort();
    assert_eq!(seen, both);
    let received = std::iter::repeat_with(|| guest.receive(0).unwrap().frame);
    assert_eq!(
        received.take(9).find(|frame| ours(frame) == Some(8)),
        Some(answer)
    );
    // Without the word nothing comes any more.
    lab.rewrite(LAB).unwrap();
    lab.apply("director").unwrap();
    send(&mut guest, &frame(OUTSIDE, mac(1), 9, FRAME_BYTES));
    let last = frame(mac(2), mac(1), 10, FRAME_BYTES);
    send(&mut guest, &last);
    let received = std::iter::repeat_with(|| watcher.receive(0).unwrap().frame);
    let of_ours = |frame: &Vec<u8>| ours(frame).is_some_and(|it| it > 0);
    assert_eq!(received.take(99).find(of_ours), Some(last));
}

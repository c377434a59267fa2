//! VLANs, private ports, guards, isolation and access lists of the real director, between guests
//! of a real host agent and a real interface.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]
#![expect(
    clippy::indexing_slicing,
    reason = "a failed expectation is a failed test"
)]

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::socket::sockopt::SetBool;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind,
    recvmsg, send, setsockopt, socket, sockopt,
};
use orimono_tests::devices::net::{NetGuest, frame, number};
use orimono_tests::lab::{Lab, Namespace, PATIENCE};

const TAP: &str = "orimono0";
const OUTSIDE: [u8; 6] = [2, 0xaa, 0, 0, 0, 9];
const BROADCAST: [u8; 6] = [0xff; 6];
/// Frames with such numbers say only that all before them have been seen.
const MARKERS: u32 = 1 << 31;
const FRAME_BYTES: usize = 100;

const BASE: &str = r#"
[director]
name = "director1"
listen = ["tcp:127.0.0.1:7471"]
[[ethernet-port]]
port = "10/1"
tap = "orimono0"
[[ethernet-port]]
port = "10/2"
private = true
[[access-list]]
name = "not-2"
default = "allow"
rules = [ { action = "deny", destination-mac = "02:15:97:00:00:02" } ]
[[host]]
name = "host1"
director = ["tcp:127.0.0.1:7471"]
run-dir = "@DIR@/host1"
rate = "10G"
[[host.vm]]
name = "vm1"
"#;

/// A lab whose vNICs are numbered from 1, each with a port and more words.
fn lab(vnics: &[(&str, &str)]) -> String {
    let vnics = (1..).zip(vnics).map(|(number, (port, words))| {
        format!(
            "[[host.vm.vnic]]\nname = \"vn0{number}\"\nid = {number}\nport = \"{port}\"\n\
             mac = \"02:15:97:00:00:0{number}\"\n{words}\n"
        )
    });
    BASE.to_owned() + &vnics.collect::<String>()
}

fn mac(vnic: usize) -> [u8; 6] {
    [2, 0x15, 0x97, 0, 0, u8::try_from(vnic).unwrap()]
}

fn guest(lab: &Lab, vnic: usize) -> NetGuest {
    let socket = lab.folder().join(format!("host1/vn0{vnic}.vm1.sock"));
    let mut guest = NetGuest::connect(&socket, 1).unwrap();
    guest.post(0, 200).unwrap();
    guest
}

fn tagged(mut frame: Vec<u8>, tags: &[u16]) -> Vec<u8> {
    for tag in tags.iter().rev() {
        let [high, low] = tag.to_be_bytes();
        frame.splice(12..12, [0x81, 0, high, low]);
    }
    frame
}

/// Control information of its tag and number, if it is one of [`frame`].
fn read(mut frame: Vec<u8>) -> Option<Heard> {
    let tag = match frame[12..14] {
        [0x81, 0] => {
            let removed: Vec<u8> = frame.splice(12..16, []).collect();
            Some(u16::from_be_bytes([removed[2], removed[3]]))
        }
        _ => None,
    };
    (frame[12..14] == [0x88, 0xb5]).then(|| (tag, number(&frame).unwrap()))
}

type Heard = (Option<u16>, u32);

#[derive(Clone, Copy)]
struct AuxiliaryData;
nix::setsockopt_impl!(
    AuxiliaryData,
    libc::SOL_PACKET,
    libc::PACKET_AUXDATA,
    bool,
    SetBool
);

/// The outside: a socket behind the TAP.
struct Wire(OwnedFd);

impl Wire {
    fn new(namespace: &Namespace) -> Self {
        let made = namespace.run(|| {
            let (family, kind) = (AddressFamily::Packet, SockType::Raw);
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = socket(family, kind, flags, SockProtocol::EthAll)?;
            setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20))?;
            setsockopt(&socket, AuxiliaryData, &true)?;
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
        send(self.0.as_raw_fd(), frame, MsgFlags::empty()).unwrap();
    }

    /// The next frame of ours that is there. The kernel takes its tag off and tells it beside it.
    #[expect(clippy::host_endian_bytes, reason = "the kernel writes them so")]
    fn poll(&self) -> Option<Heard> {
        let mut frame = [0; 2048];
        loop {
            let mut control = nix::cmsg_space!([u8; 64]);
            let mut pieces = [IoSliceMut::new(&mut frame)];
            let fd = self.0.as_raw_fd();
            let message =
                match recvmsg::<()>(fd, &mut pieces, Some(&mut control), MsgFlags::empty()) {
                    Ok(message) => message,
                    Err(nix::Error::EAGAIN) => return None,
                    Err(error) => panic!("{error}"),
                };
            let bytes = message.bytes;
            let mut tag = None;
            for message in message.cmsgs().unwrap() {
                // struct tpacket_auxdata: a status at 0, the tag's control information at 16.
                if let ControlMessageOwned::Unknown(auxiliary) = message {
                    let data = auxiliary.data_bytes;
                    let status = u32::from_ne_bytes(data[..4].try_into().unwrap());
                    let tci = u16::from_ne_bytes(data[16..18].try_into().unwrap());
                    tag = (status & libc::TP_STATUS_VLAN_VALID != 0).then_some(tci);
                }
            }
            if let Some((None, number)) = read(frame[..bytes].to_vec()) {
                return Some((tag, number));
            }
        }
    }
}

/// Guests and the outside. Station 0 is the outside, the others are vNICs.
struct Site {
    guests: BTreeMap<usize, NetGuest>,
    /// The tag with which each guest's marker is sent and the outside reaches it.
    tags: BTreeMap<usize, [&'static [u16]; 2]>,
    wire: Wire,
    marker: u32,
}

impl Site {
    /// Connects guests, with the tags that they send with and that the outside reaches them with.
    fn new(lab: &Lab, tags: &[(usize, [&'static [u16]; 2])]) -> Self {
        let mut site = Self {
            guests: tags
                .iter()
                .map(|(vnic, _)| (*vnic, guest(lab, *vnic)))
                .collect(),
            tags: tags.iter().copied().collect(),
            wire: Wire::new(&lab.namespace),
            marker: MARKERS,
        };
        // As long as it has no lanes its frames are lost.
        for (vnic, _) in tags {
            let end = Instant::now() + PATIENCE;
            while !site.reaches(*vnic) {
                assert!(Instant::now() < end, "vn0{vnic} has no lanes");
            }
        }
        site
    }

    fn next_marker(&mut self, to: [u8; 6], from: [u8; 6]) -> (u32, Vec<u8>) {
        self.marker += 1;
        (self.marker, frame(to, from, self.marker, FRAME_BYTES))
    }

    /// Whether a frame gets to the guest in a while.
    fn reaches(&mut self, vnic: usize) -> bool {
        let (marker, sent) = self.next_marker(mac(vnic), OUTSIDE);
        self.wire.send(&tagged(sent, self.tags[&vnic][1]));
        let again = Instant::now() + Duration::from_millis(100);
        let guest = self.guests.get_mut(&vnic).unwrap();
        while Instant::now() < again {
            let Some(received) = guest.poll(0).unwrap() else {
                std::thread::yield_now();
                continue;
            };
            guest.post(0, 1).unwrap();
            if read(received.frame).is_some_and(|(_, number)| number == marker) {
                return true;
            }
        }
        false
    }

    /// What the outside hears up to `marker`.
    fn heard_outside(&self, marker: u32) -> Vec<Heard> {
        let end = Instant::now() + PATIENCE;
        let mut heard = Vec::new();
        loop {
            match self.wire.poll() {
                Some((_, number)) if number == marker => return heard,
                Some(one) => heard.push(one),
                None => std::thread::yield_now(),
            }
            assert!(Instant::now() < end, "no marker outside: {heard:?}");
        }
    }

    /// What a guest hears up to `marker`.
    fn heard(&mut self, vnic: usize, marker: u32) -> Vec<Heard> {
        let guest = self.guests.get_mut(&vnic).unwrap();
        let mut heard = Vec::new();
        loop {
            let received = guest.receive(0).unwrap().frame;
            guest.post(0, 1).unwrap();
            match read(received) {
                Some((_, number)) if number == marker => return heard,
                Some(one) => heard.push(one),
                None => {}
            }
        }
    }

    /// Sends frames from a station; who hears which of them, and with which tag.
    fn send(&mut self, from: usize, frames: &[Vec<u8>]) -> BTreeMap<usize, Vec<Heard>> {
        let mut heard = BTreeMap::new();
        if from == 0 {
            frames.iter().for_each(|frame| self.wire.send(frame));
        } else {
            let (marker, sent) = self.next_marker(OUTSIDE, mac(from));
            let sent = tagged(sent, self.tags[&from][0]);
            let guest = self.guests.get_mut(&from).unwrap();
            for frame in frames.iter().chain([&sent]) {
                guest.send(0, frame).unwrap();
            }
            heard.insert(0, self.heard_outside(marker));
        }
        // The director has seen to all of them: what is for a guest is before its marker.
        let vnics: Vec<_> = self.guests.keys().copied().collect();
        for vnic in vnics {
            let (marker, sent) = self.next_marker(mac(vnic), OUTSIDE);
            self.wire.send(&tagged(sent, self.tags[&vnic][1]));
            heard.insert(vnic, self.heard(vnic, marker));
        }
        for one in heard.values_mut() {
            one.retain(|(_, number)| *number < MARKERS);
        }
        heard.retain(|_, one| !one.is_empty());
        heard
    }
}

/// Two guests that exchange numbered frames: each arrives, in order, until `stop`.
fn exchange(mut pair: [NetGuest; 2], macs: [[u8; 6]; 2], stop: &AtomicBool, done: &AtomicU64) {
    const WINDOW: u32 = 8;
    let mut next = 0;
    let end = Instant::now() + PATIENCE;
    let mut tries = MARKERS;
    // Both have lanes once a frame gets through, each way.
    for to in [1, 0] {
        'reached: loop {
            assert!(Instant::now() < end, "a pair has no lanes");
            tries += 1;
            let sent = frame(macs[to], macs[1 - to], tries, FRAME_BYTES);
            pair[1 - to].send(0, &sent).unwrap();
            pair[1 - to].wait_sent(0).unwrap();
            for _ in 0..1000 {
                match pair[to].poll(0).unwrap() {
                    Some(received) => {
                        pair[to].post(0, 1).unwrap();
                        if received.frame == sent {
                            break 'reached;
                        }
                    }
                    None => std::thread::yield_now(),
                }
            }
        }
    }
    while !stop.load(Ordering::SeqCst) {
        for number in next..next + WINDOW {
            for to in [0, 1] {
                let sent = frame(macs[to], macs[1 - to], number, FRAME_BYTES);
                pair[1 - to].send(0, &sent).unwrap();
            }
        }
        for to in [0, 1] {
            let mut expected = next;
            while expected < next + WINDOW {
                let received = pair[to].receive(0).unwrap().frame;
                pair[to].post(0, 1).unwrap();
                assert!(!has(&received, ATTACK), "an attack reaches a neighbour");
                let own = received[6..14] == [&macs[1 - to][..], &[0x88, 0xb5]].concat();
                if own && number(&received).unwrap() < MARKERS {
                    let wanted = frame(macs[to], macs[1 - to], expected, FRAME_BYTES);
                    assert!(received == wanted, "frame {expected} is lost");
                    expected += 1;
                }
            }
        }
        next += WINDOW;
        done.fetch_add(1, Ordering::SeqCst);
    }
}

/// Waits until the pair has exchanged frames some more times.
fn wait_for_more(done: &AtomicU64) {
    let (wanted, end) = (done.load(Ordering::SeqCst) + 3, Instant::now() + PATIENCE);
    while done.load(Ordering::SeqCst) < wanted {
        assert!(Instant::now() < end, "the pair's traffic has stopped");
        std::thread::yield_now();
    }
}

/// Runs `work` while a pair exchanges frames, of which none is lost.
fn beside_a_pair(lab: &mut Lab, vnics: [usize; 2], work: impl FnOnce(&mut Lab, &AtomicU64)) {
    let pair = vnics.map(|vnic| guest(lab, vnic));
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let result = std::thread::scope(|scope| {
        scope.spawn(|| exchange(pair, vnics.map(mac), &stop, &done));
        // The thread ends also if an expectation here fails.
        let result = catch_unwind(AssertUnwindSafe(|| {
            wait_for_more(&done);
            work(lab, &done);
            wait_for_more(&done);
        }));
        stop.store(true, Ordering::SeqCst);
        result
    });
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

fn heard<const N: usize>(all: [(usize, &[Heard]); N]) -> BTreeMap<usize, Vec<Heard>> {
    all.map(|(station, heard)| (station, heard.to_vec())).into()
}

#[test]
fn frames_reach_their_vlan_and_nobody_else() {
    let (port, private) = ("10/1", "10/2");
    let trunk = "vlans = [\"100\", \"200\"]";
    let vnics = [
        (port, "vlan = 100"),
        (port, "vlan = 100"),
        (port, "vlan = 200"),
        (port, trunk),
        (private, ""),
        (private, ""),
    ];
    let lab = Lab::start(&lab(&vnics)).unwrap();
    let [a, b, c, d] = [1, 2, 3, 4];
    let tags: [(usize, [&[u16]; 2]); 4] = [
        (a, [&[], &[100]]),
        (b, [&[], &[100]]),
        (c, [&[], &[200]]),
        (d, [&[100], &[200]]),
    ];
    let mut site = Site::new(&lab, &tags);
    let all = |from: usize, number| frame(BROADCAST, mac(from), number, FRAME_BYTES);
    let one = |to: usize, from, number| frame(mac(to), mac(from), number, FRAME_BYTES);
    let out = |from, number| frame(OUTSIDE, mac(from), number, FRAME_BYTES);

    // Number 2 is to its own VLAN, 3 to another; 5 has a tag that is not its guest's to make.
    let sent = [
        all(a, 1),
        one(b, a, 2),
        one(c, a, 3),
        out(a, 4),
        tagged(all(a, 5), &[200]),
    ];
    let in_100: &[Heard] = &[(Some(100), 1), (Some(100), 4)];
    let expected = [
        (0, in_100),
        (b, &[(None, 1), (None, 2)]),
        (d, &[(Some(100), 1)]),
    ];
    assert_eq!(site.send(a, &sent), heard(expected));

    let sent = [all(c, 11), one(a, c, 12), one(d, c, 13)];
    let expected: [(usize, &[Heard]); 2] = [
        (0, &[(Some(200), 11)]),
        (d, &[(Some(200), 11), (Some(200), 13)]),
    ];
    assert_eq!(site.send(c, &sent), heard(expected));

    // A trunk without a native VLAN; 24 is in none of its own; the priority of 25 goes along.
    let sent = [
        tagged(all(d, 21), &[200]),
        tagged(one(a, d, 22), &[100]),
        all(d, 23),
        tagged(all(d, 24), &[300]),
        tagged(out(d, 25), &[0xa000 | 100]),
        tagged(one(a, d, 26), &[200]),
        tagged(all(d, 27), &[100, 200]),
    ];
    // The second tag of 27 is payload outside; for a guest without tags it would be the first.
    let expected: [(usize, &[Heard]); 3] = [
        (0, &[(Some(200), 21), (Some(0xa000 | 100), 25)]),
        (a, &[(None, 22)]),
        (c, &[(None, 21)]),
    ];
    assert_eq!(site.send(d, &sent), heard(expected));

    let outside = |to, number| frame(to, OUTSIDE, number, FRAME_BYTES);
    let sent = [
        tagged(outside(BROADCAST, 31), &[100]),
        tagged(outside(mac(c), 32), &[200]),
        tagged(outside(mac(c), 33), &[100]),
        outside(BROADCAST, 34),
        tagged(outside(mac(d), 35), &[0x6000 | 200]),
    ];
    let expected: [(usize, &[Heard]); 4] = [
        (a, &[(None, 31)]),
        (b, &[(None, 31)]),
        (c, &[(None, 32)]),
        (d, &[(Some(100), 31), (Some(0x6000 | 200), 35)]),
    ];
    assert_eq!(site.send(0, &sent), heard(expected));

    // Of a private port nothing is heard outside, nor at the other port.
    let mut lab = lab;
    beside_a_pair(&mut lab, [5, 6], |_, _| {});
    assert_eq!(
        site.send(a, &[one(5, a, 41)]),
        heard([(0, &[(Some(100), 41)])])
    );
}

const ATTACK: &[u8] = b"attack on a neighbour";
const FLOOD: &[u8] = b"flood of a neighbour";

fn has(frame: &[u8], words: &[u8]) -> bool {
    frame.windows(words.len()).any(|window| window == words)
}

const OWN: [u8; 4] = [10, 0, 0, 5];
const OWN_V6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5];
const OTHER: [u8; 4] = [10, 0, 0, 6];
const OTHER_V6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6];

fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16, pieces: &[&[u8]]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), &pieces.concat()].concat()
}

fn udp(to: [u8; 6], source: [u8; 4], ports: [u16; 2], words: &[u8]) -> Vec<u8> {
    let bytes = u8::try_from(28 + words.len()).unwrap();
    let header = [0x45, 0, 0, bytes, 0, 0, 0, 0, 64, 17, 0, 0];
    let [from_port, to_port] = ports.map(u16::to_be_bytes);
    let length = [0, bytes - 20, 0, 0];
    let pieces: &[&[u8]] = &[
        &header, &source, &OTHER, &from_port, &to_port, &length, words,
    ];
    ethernet(to, mac(1), 0x0800, pieces)
}

fn arp(sender: [u8; 6], address: [u8; 4], words: &[u8]) -> Vec<u8> {
    let kinds = [0, 1, 8, 0, 6, 4, 0, 2];
    let pieces: &[&[u8]] = &[&kinds, &sender, &address, &[0; 6], &OTHER, words];
    ethernet(BROADCAST, mac(1), 0x0806, pieces)
}

/// ICMPv6 to all nodes.
fn icmpv6(message: &[u8]) -> Vec<u8> {
    let mut all_nodes = [0; 16];
    (all_nodes[0], all_nodes[1], all_nodes[15]) = (0xff, 2, 1);
    let header = [
        0x60,
        0,
        0,
        0,
        0,
        u8::try_from(message.len()).unwrap(),
        58,
        255,
    ];
    let pieces: &[&[u8]] = &[&header, &OWN_V6, &all_nodes, message, ATTACK];
    ethernet([0x33, 0x33, 0, 0, 0, 1], mac(1), 0x86dd, pieces)
}

/// A Neighbour Advertisement with a target link-layer address.
fn advertisement(target: [u8; 16], link_layer: [u8; 6]) -> Vec<u8> {
    let kind = [136, 0, 0, 0, 0x20, 0, 0, 0];
    icmpv6(&[&kind[..], &target, &[2, 1], &link_layer].concat())
}

/// What the director says last of an object: the counters that are not 0.
fn final_counters(lab: &Lab, object: &str) -> BTreeMap<String, u64> {
    let director = lab.director.as_ref().unwrap();
    let line = format!("final counters object=\"{object}\"");
    let line = director.wait_line(&line, 1, PATIENCE).unwrap();
    let counts = line.split_once("counts=").unwrap().1;
    let counts = counts.split('(').skip(1).map(|count| {
        let (name, count) = count.split_once("\", ").unwrap();
        let digits: String = count.chars().take_while(char::is_ascii_digit).collect();
        (name[1..].to_owned(), digits.parse().unwrap())
    });
    counts.collect()
}

#[test]
fn attacks_reach_no_neighbour_and_are_counted_by_reason() {
    const FLOOD_FRAMES: usize = 5000;
    let attacker = "vlan = 100\naddresses = [\"10.0.0.5\", \"fd00::5\"]\nbroadcast-limit = 1";
    let neighbour = ("10/1", "vlan = 100");
    let vnics = [("10/1", attacker), neighbour, neighbour, neighbour];
    let filter = "info,io_director=debug";
    let mut lab = Lab::start_logging(&lab(&vnics), filter).unwrap();
    let tags: [(usize, [&[u16]; 2]); 2] = [(1, [&[], &[100]]), (2, [&[], &[100]])];
    let mut site = Site::new(&lab, &tags);
    let attack = |source, ports| udp(mac(2), source, ports, ATTACK);
    let mut own_mac_of_other = attack(OWN, [7, 7]);
    own_mac_of_other[6..12].copy_from_slice(&mac(3));
    let router = [&[134, 0, 0, 0, 64, 0, 7, 8][..], &[0; 8]].concat();
    let attacks: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("dropped_foreign_source", vec![own_mac_of_other]),
        (
            "dropped_address",
            vec![
                arp(mac(3), OWN, ATTACK),
                arp(mac(1), OTHER, ATTACK),
                advertisement(OTHER_V6, mac(1)),
                advertisement(OWN_V6, mac(3)),
                attack(OTHER, [7, 7]),
                frame(mac(2), mac(1), 1, FRAME_BYTES),
            ],
        ),
        (
            "dropped_server",
            vec![attack(OWN, [67, 68]), icmpv6(&router)],
        ),
        (
            "dropped_double_tag",
            vec![
                tagged(attack(OWN, [7, 7]), &[0, 200]),
                tagged(attack(OWN, [7, 7]), &[100, 200]),
            ],
        ),
        ("dropped_vlan", vec![tagged(attack(OWN, [7, 7]), &[200])]),
        // Nothing but an Ethernet header.
        (
            "dropped_unreadable",
            vec![attack(OWN, [7, 7])[..14].to_vec()],
        ),
    ];
    let mut flood_heard = 0;
    let mut said = 0;
    beside_a_pair(&mut lab, [3, 4], |_, done| {
        let say = |site: &mut Site, frame: &[u8]| {
            let attacker = site.guests.get_mut(&1).unwrap();
            attacker.send(0, frame).unwrap();
            attacker.wait_sent(0).unwrap();
        };
        for (_, frames) in &attacks {
            frames.iter().for_each(|frame| say(&mut site, frame));
            wait_for_more(done);
        }
        // Runts end at the host agent.
        for bytes in [0, 1, 11, 13] {
            say(&mut site, &mac(2).repeat(3)[..bytes]);
        }
        for _ in 0..FLOOD_FRAMES {
            say(&mut site, &arp(mac(1), OWN, FLOOD));
        }
        let marker = udp(mac(2), OWN, [7, 7], b"all is seen");
        say(&mut site, &marker);
        said += 1;
        let neighbour = site.guests.get_mut(&2).unwrap();
        loop {
            let received = neighbour.receive(0).unwrap().frame;
            neighbour.post(0, 1).unwrap();
            if received == marker {
                break;
            }
            let floods = has(&received, FLOOD);
            let attacks = has(&received, ATTACK) || received[6..12] == mac(1);
            assert!(floods || !attacks, "{received:02x?}");
            flood_heard += u64::from(floods);
        }
    });
    lab.director
        .as_ref()
        .unwrap()
        .signal(Signal::SIGTERM)
        .unwrap();
    let mut counts = final_counters(&lab, "vnic vn01.vm1");
    let flood_dropped = counts.remove("dropped_broadcast").unwrap();
    let flood = u64::try_from(FLOOD_FRAMES).unwrap();
    assert_eq!(
        flood_heard + flood_dropped,
        flood,
        "every frame is heard or counted"
    );
    assert!(flood_heard < flood / 2, "{flood_heard} frames of a flood");
    assert_eq!(counts.remove("ingress_frames"), Some(flood_heard + said));
    counts.retain(|name, _| name.starts_with("dropped_"));
    let expected = attacks
        .iter()
        .map(|(reason, frames)| ((*reason).to_owned(), u64::try_from(frames.len()).unwrap()));
    assert_eq!(counts, expected.collect());
}

#[test]
fn words_of_a_vnic_are_in_force_for_what_is_sent_after_the_answer() {
    let file = |first: &str, second: &str| {
        let pair = ("10/1", "vlan = 300");
        lab(&[("10/1", first), ("10/1", second), pair, pair])
    };
    let in_100 = "vlan = 100";
    let mut lab = Lab::start(&file(in_100, in_100)).unwrap();
    let (a, b) = (1, 2);
    let tags: [(usize, [&[u16]; 2]); 2] = [(a, [&[], &[100]]), (b, [&[], &[100]])];
    let mut site = Site::new(&lab, &tags);
    let mut number = 0;
    beside_a_pair(&mut lab, [3, 4], |lab, done| {
        for round in 0..10 {
            let steps: [(&str, &str, u16, [bool; 2]); 5] = [
                // What each has, the VLAN of the first, and whether unicast and broadcast arrive.
                ("vlan = 200", in_100, 200, [false, false]),
                (in_100, in_100, 100, [true, true]),
                (in_100, "vlan = 100\nisolated = true", 100, [false, false]),
                (
                    "vlan = 100\naccess-in = \"not-2\"",
                    in_100,
                    100,
                    [false, true],
                ),
                (in_100, in_100, 100, [true, true]),
            ];
            for (first, second, vlan, arrives) in steps {
                lab.rewrite(&file(first, second)).unwrap();
                let mut who = ["director", "host1"];
                if round % 2 == 0 {
                    who.reverse();
                }
                for name in who {
                    lab.apply(name).unwrap();
                }
                let reached: &'static [u16] = if vlan == 200 { &[200] } else { &[100] };
                site.tags.insert(a, [&[], reached]);
                let sent = [
                    frame(mac(b), mac(a), number, FRAME_BYTES),
                    frame(BROADCAST, mac(a), number + 1, FRAME_BYTES),
                ];
                let got = site.send(a, &sent);
                let numbers = [number, number + 1].into_iter().zip(arrives);
                let numbers = numbers.filter_map(|(number, arrives)| arrives.then_some(number));
                let at_b: Vec<Heard> = numbers.map(|number| (None, number)).collect();
                let outside = vec![(Some(vlan), number + 1)];
                let mut expected = BTreeMap::from([(0, outside), (b, at_b)]);
                expected.retain(|_, heard| !heard.is_empty());
                assert_eq!(got, expected, "round {round}: {first}, {second}");
                number += 2;
                wait_for_more(done);
            }
        }
    });
    let director = lab.director.as_ref().unwrap();
    assert_eq!(director.count_lines("session closed"), 0);
}

//! A vNIC between a guest without QEMU and a fabric whose other end the test plays: what must
//! arrive, what must wait, and what a hostile guest or director gets (cases G-03 to G-17, N-01 to
//! N-07).
//!
//! Every hostile case ends with [`Case::assert_unharmed`]: the device serves a new connection, and
//! the device beside it on the same session has noticed nothing.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fabric_payload::ethernet::{FLAG_NEEDS_CSUM, HEADER_BYTES, Offloads, VirtioNetHeader};
use fabric_transport::{DeviceId, VirtualLane};
use orimono_tests::devices::net::{NetGuest, SLOT_BYTES, frame, number};
use orimono_tests::fabric::{FabricDevice, FarEnd, TestFabric, Watched};
use orimono_tests::front_end::request;
use orimono_tests::front_end::{Buffer, DESC_INDIRECT, DESC_NEXT, DESC_WRITE};
use qos::{BitRate, DeviceRate};
use vhost_user_session::{Session, SessionConfig, SessionHandle, SocketSource};
use vnic_backend::{ReceiveDrop, TransmitDrop, VnicConfig, VnicDevice};

const NETWORK: VirtualLane = VirtualLane::Network;
const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// What the test's end can receive for a vNIC: 81 frames of 1500 bytes, at 25 blocks each.
const FAR_WINDOWS: [u32; 4] = [0, 0, 0, 2048];
const FAR_FRAMES: usize = 81;
const RAM_START: u64 = 0x10_0000;
const RAM_END: u64 = RAM_START + 0x80_0000;
const RX: usize = 0;
const TX: usize = 1;

const F_CSUM: u64 = 1;
const F_MRG_RXBUF: u64 = 1 << 15;
const F_VERSION_1: u64 = 1 << 32;

/// A device with its socket, and what the test plays behind it.
struct Nic {
    device: Arc<VnicDevice>,
    watched: Arc<Watched>,
    far: Arc<FarEnd>,
    session: SessionHandle,
    socket: PathBuf,
    /// Frames that went to it.
    sent: AtomicU64,
}

impl Nic {
    fn transmit_drops(&self, reason: TransmitDrop) -> u64 {
        self.device.statistics().transmit.dropped(reason)
    }

    fn receive_drops(&self, reason: ReceiveDrop) -> u64 {
        self.device.statistics().receive.dropped(reason)
    }

    fn chains_rejected(&self, queue: usize) -> u64 {
        let counters = self.session.queue_counters(queue).unwrap();
        counters.chains_rejected.load(Ordering::Relaxed)
    }

    /// A frame from guest to fabric and one back, both whole.
    fn round_trip(&self, guest: &mut NetGuest) {
        let out = frame(OTHER_MAC, GUEST_MAC, 77, 600);
        guest.send(0, &out).unwrap();
        assert_eq!(self.next_frame(), out);
        let back = frame(GUEST_MAC, OTHER_MAC, 78, 700);
        guest.post(0, 1).unwrap();
        self.send(&back);
        assert_eq!(guest.receive(0).unwrap().frame, back);
    }

    /// The next frame on the fabric, whose header must ask for nothing.
    fn next_frame(&self) -> Vec<u8> {
        let (lane, payload) = self.far.next().unwrap();
        assert_eq!(lane, NETWORK);
        let (header, frame) = VirtioNetHeader::split(&payload).unwrap();
        assert_eq!(header, VirtioNetHeader::default());
        frame.to_vec()
    }

    fn send(&self, frame: &[u8]) {
        self.send_payload(&[&[0; HEADER_BYTES], frame].concat());
    }

    fn send_payload(&self, payload: &[u8]) {
        self.far.send(NETWORK, payload).unwrap();
        self.sent.fetch_add(1, Ordering::Relaxed);
    }

    /// Sends something to the guest and waits until the device has dealt with it. What was sent
    /// before may have reached the guest and not be counted yet.
    fn send_and_wait(&self, payload: &[u8]) {
        self.send_payload(payload);
        let sent = self.sent.load(Ordering::Relaxed);
        self.watched.wait_delivered(sent).unwrap();
    }
}

/// Two vNICs on one session: the first is under test, the second has a guest that works.
struct Case {
    nics: [Nic; 2],
    fabric: TestFabric,
    neighbour: NetGuest,
    _folder: tempfile::TempDir,
}

impl Case {
    fn new() -> Self {
        Self::with(1, DeviceRate::best_effort())
    }

    fn with(queue_pairs: usize, rate: DeviceRate) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let nics = [1, 2].map(|id| {
            let config = VnicConfig {
                queue_pairs,
                offloads: Offloads {
                    uso: false,
                    ..Offloads::ALL
                },
                ..VnicConfig::new(format!("vnic{id}"), DeviceId(id), GUEST_MAC)
            };
            let device = VnicDevice::new(config).unwrap();
            let socket = folder.path().join(format!("vnic{id}"));
            let config = SessionConfig::new(SocketSource::path(&socket));
            Nic {
                session: Session::start(device.clone(), config).unwrap(),
                watched: Watched::new(device.clone()),
                far: FarEnd::new(),
                device,
                socket,
                sent: AtomicU64::new(0),
            }
        });
        let devices = nics.each_ref().map(|nic| {
            let near = (nic.watched.clone(), vnic_backend::windows());
            let far = (nic.far.clone(), FAR_WINDOWS);
            let mut device = FabricDevice::new(nic.device.config().device, near, far);
            device.near.rate = rate;
            device
        });
        let watched = nics.iter().map(|nic| nic.watched.clone()).collect();
        let mut fabric = TestFabric::new("100G", devices.into(), watched);
        fabric.up().unwrap();
        let neighbour = NetGuest::connect(&nics[1].socket, 1).unwrap();
        Self {
            nics,
            fabric,
            neighbour,
            _folder: folder,
        }
    }

    fn guest(&self) -> NetGuest {
        NetGuest::connect(
            &self.nics[0].socket,
            self.nics[0].device.config().queue_pairs,
        )
        .unwrap()
    }

    fn assert_neighbour_works(&mut self) {
        self.nics[1].round_trip(&mut self.neighbour);
    }

    /// The device serves a new connection, the other device its old one.
    fn assert_unharmed(&mut self, hostile: NetGuest) {
        drop(hostile);
        self.assert_neighbour_works();
        let mut guest = self.guest();
        self.nics[0].round_trip(&mut guest);
        self.assert_neighbour_works();
        let counters = self.nics[0].session.queue_counters(TX).unwrap();
        assert_eq!(counters.chains_dropped.load(Ordering::Relaxed), 0);
    }
}

/// Puts descriptors written by hand at the head of a ring, makes them available and kicks.
fn publish(guest: &mut NetGuest, queue: usize, descriptors: &[(u64, u32, u16, u16)]) {
    let ring = guest.guest.queue(queue).unwrap();
    for (index, (address, bytes, flags, next)) in (0..).zip(descriptors) {
        ring.write_descriptor(index, *address, *bytes, *flags, *next)
            .unwrap();
    }
    ring.publish(0).unwrap();
    ring.kick().unwrap();
}

fn header(change: impl FnOnce(&mut VirtioNetHeader)) -> Vec<u8> {
    let mut header = VirtioNetHeader::default();
    change(&mut header);
    header_bytes_of(&header)
}

/// The header as the table of virtio 1.2 section 5.1.6 lays it out.
fn header_bytes_of(header: &VirtioNetHeader) -> Vec<u8> {
    let words = [
        header.header_len,
        header.gso_size,
        header.csum_start,
        header.csum_offset,
        header.num_buffers,
    ];
    let mut bytes = vec![header.flags, header.gso_type];
    bytes.extend(words.iter().flat_map(|word| word.get().to_le_bytes()));
    bytes
}

// What must work.

#[test]
fn frame_and_header_arrive_as_they_were_sent() {
    let case = Case::new();
    let [nic, _] = &case.nics;
    let mut guest = case.guest();
    let out = frame(OTHER_MAC, GUEST_MAC, 1, 1514);
    let asks = |header: &mut VirtioNetHeader| {
        header.flags = FLAG_NEEDS_CSUM;
        header.csum_start = 34.into();
        header.csum_offset = 6.into();
    };
    // num_buffers is the guest's to leave undefined, and 0 on the fabric.
    let sent = header(|header| {
        asks(header);
        header.num_buffers = 9.into();
    });
    guest.transmit(0, &sent, &out).unwrap();
    let expected = [header(asks), out.clone()].concat();
    assert_eq!(nic.far.next().unwrap(), (NETWORK, expected.clone()));
    guest.wait_sent(0).unwrap();
    guest.post(0, 1).unwrap();
    nic.send_payload(&expected);
    let received = guest.receive(0).unwrap();
    let mut wanted = VirtioNetHeader::default();
    asks(&mut wanted);
    wanted.num_buffers = 1.into();
    assert_eq!((received.header, received.frame), (wanted, out));
}

#[test]
fn long_frame_is_spread_over_mergeable_buffers() {
    let case = Case::new();
    let [nic, _] = &case.nics;
    let mut guest = case.guest();
    let slot = guest.slot().unwrap();
    guest
        .post_buffers(0, &[Buffer::writable(slot, 100)])
        .unwrap();
    let split = [
        Buffer::writable(slot + 100, 150),
        Buffer::writable(slot + 300, 50),
    ];
    guest.post_buffers(0, &split).unwrap();
    guest.post(0, 1).unwrap();
    let sent = frame(GUEST_MAC, OTHER_MAC, 2, 1000);
    nic.send(&sent);
    let received = guest.receive(0).unwrap();
    assert_eq!(received.header.num_buffers.get(), 3);
    assert_eq!(received.lengths, [100, 200, 12 + 1000 - 300]);
    assert_eq!(received.frame, sent);
}

#[test]
fn every_queue_pair_sends_and_flows_are_spread_over_all() {
    const PAIRS: usize = 4;
    const FLOWS: usize = 64;
    let case = Case::with(PAIRS, DeviceRate::best_effort());
    let [nic, _] = &case.nics;
    let mut guest = case.guest();
    let mut seen = Vec::new();
    for pair in 0..PAIRS {
        let sent = frame(OTHER_MAC, GUEST_MAC, u32::try_from(pair).unwrap(), 100);
        guest.send(pair, &sent).unwrap();
        seen.push(number(&nic.next_frame()).unwrap());
        guest.post(pair, FLOWS).unwrap();
    }
    assert_eq!(seen, [0, 1, 2, 3]);
    let before = nic.watched.delivered();
    for flow in 0..FLOWS {
        // UDP from different ports.
        let mut sent = [GUEST_MAC, OTHER_MAC].concat();
        sent.extend([
            8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ]);
        sent.extend(u16::try_from(1000 + flow).unwrap().to_be_bytes());
        sent.extend([0, 53, 0, 8, 0, 0]);
        nic.send(&sent);
    }
    let all = u64::try_from(FLOWS).unwrap();
    nic.watched.wait_delivered(before + all).unwrap();
    let used = |pair: usize| guest.guest.queues[2 * pair].used_index().unwrap();
    let counts: Vec<_> = (0..PAIRS).map(used).collect();
    assert_eq!(
        counts.iter().map(|count| u64::from(*count)).sum::<u64>(),
        all
    );
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
}

#[test]
fn without_credit_the_ring_waits_and_nothing_is_lost() {
    let mut case = Case::new();
    let mut guest = case.guest();
    case.nics[0].far.hold(true);
    for count in 0..200 {
        guest
            .send(0, &frame(OTHER_MAC, GUEST_MAC, count, 1500))
            .unwrap();
    }
    // `send` has taken back what was done meanwhile; the credit covers this many and not one more.
    while guest.unsent(0) > 200 - FAR_FRAMES {
        guest.wait_sent(0).unwrap();
    }
    case.nics[0].far.wait_waiting(FAR_FRAMES).unwrap();
    // Kicks do not help, and the others do not wait with it.
    guest.guest.queue(TX).unwrap().kick().unwrap();
    case.assert_neighbour_works();
    assert_eq!(guest.reclaim(0).unwrap(), 0);
    assert_eq!(case.nics[0].far.waiting(), FAR_FRAMES);
    assert!(case.nics[0].device.statistics().transmit_stalls >= 1);
    case.nics[0].far.hold(false);
    case.nics[0].far.release().unwrap();
    for count in 0..200 {
        assert_eq!(number(&case.nics[0].next_frame()), Some(count));
    }
    while guest.unsent(0) > 0 {
        guest.wait_sent(0).unwrap();
    }
}

#[test]
fn peak_rate_is_held_by_waiting_and_nothing_is_lost() {
    let rate = "50M".parse().unwrap();
    let rate = DeviceRate::new(BitRate::ZERO, Some(rate)).unwrap();
    let case = Case::with(1, rate);
    let [nic, _] = &case.nics;
    let mut guest = case.guest();
    // More than the queue of a device holds (256 KiB).
    for count in 0..240 {
        guest
            .send(0, &frame(OTHER_MAC, GUEST_MAC, count, 1500))
            .unwrap();
    }
    for count in 0..240 {
        assert_eq!(number(&nic.next_frame()), Some(count));
    }
    let statistics = nic.device.statistics();
    assert!(
        statistics.transmit_stalls >= 1,
        "the ring was never stopped"
    );
    assert_eq!(statistics.transmit.frames, 240);
}

#[test]
fn guest_without_receive_buffers_loses_its_frames_and_blocks_nobody() {
    let mut case = Case::new();
    let mut guest = case.guest();
    let before = case.nics[0].watched.delivered();
    // Three times the device's window: its credit must come back although nobody takes a frame.
    let sent = frame(GUEST_MAC, OTHER_MAC, 3, 1500);
    for _frame in 0..2000 {
        case.nics[0].send(&sent);
    }
    case.nics[0].watched.wait_delivered(before + 2000).unwrap();
    assert_eq!(case.nics[0].receive_drops(ReceiveDrop::NoBuffers), 2000);
    case.assert_neighbour_works();
    case.nics[0].round_trip(&mut guest);
}

#[test]
fn session_may_go_and_come_under_a_running_guest() {
    let mut case = Case::new();
    let mut guest = case.guest();
    // Frames that wait for credit when the session ends.
    case.nics[0].far.hold(true);
    for count in 0..100 {
        guest
            .send(0, &frame(OTHER_MAC, GUEST_MAC, count, 1500))
            .unwrap();
    }
    case.nics[0].far.wait_waiting(FAR_FRAMES).unwrap();
    case.fabric.down();
    for count in 100..110 {
        guest
            .send(0, &frame(OTHER_MAC, GUEST_MAC, count, 100))
            .unwrap();
    }
    while guest.unsent(0) > 0 {
        guest.wait_sent(0).unwrap();
    }
    let lost = u64::try_from(110 - FAR_FRAMES).unwrap();
    assert_eq!(case.nics[0].transmit_drops(TransmitDrop::NoSession), lost);
    assert!(!case.nics[0].device.is_attached());
    while case.nics[0].far.try_next().is_some() {}
    case.nics[0].far.hold(false);
    case.fabric.up().unwrap();
    case.nics[0].round_trip(&mut guest);
    case.assert_neighbour_works();
}

#[test]
fn guest_may_go_and_come_under_a_running_session() {
    let case = Case::new();
    let [nic, _] = &case.nics;
    for _round in 0..5 {
        let mut guest = case.guest();
        nic.round_trip(&mut guest);
        drop(guest);
    }
}

// What a hostile guest gets.

#[test]
fn g03_available_index_too_far_ahead_breaks_that_ring_until_it_is_reset() {
    let mut case = Case::new();
    let mut guest = case.guest();
    let ring = guest.guest.queue(TX).unwrap();
    ring.set_available_index(ring.next_available().wrapping_add(257))
        .unwrap();
    ring.kick().unwrap();
    ring.wait_error().unwrap();
    // The receive ring goes on.
    let sent = frame(GUEST_MAC, OTHER_MAC, 4, 100);
    guest.post(0, 1).unwrap();
    case.nics[0].send(&sent);
    assert_eq!(guest.receive(0).unwrap().frame, sent);
    guest.guest.stop_queue(TX).unwrap();
    guest.guest.queue(TX).unwrap().reset().unwrap();
    guest.guest.start_queue(TX, 0).unwrap();
    case.nics[0].round_trip(&mut guest);
    case.assert_unharmed(guest);
}

#[test]
fn g03_broken_receive_ring_drops_frames_and_the_other_ring_sends_on() {
    let mut case = Case::new();
    let mut guest = case.guest();
    let ring = guest.guest.queue(RX).unwrap();
    ring.set_available_index(1000).unwrap();
    let payload = [&[0; HEADER_BYTES][..], &frame(GUEST_MAC, OTHER_MAC, 5, 100)].concat();
    for _frame in 0..3 {
        case.nics[0].send_and_wait(&payload);
    }
    guest.guest.queue(RX).unwrap().wait_error().unwrap();
    let counters = case.nics[0].session.queue_counters(RX).unwrap();
    assert_eq!(counters.failures.load(Ordering::Relaxed), 1);
    let statistics = case.nics[0].device.statistics().receive;
    let dropped: u64 = statistics.drops.iter().map(|(_, count)| count).sum();
    assert_eq!((statistics.frames, dropped), (0, 3));
    let out = frame(OTHER_MAC, GUEST_MAC, 6, 100);
    guest.send(0, &out).unwrap();
    assert_eq!(case.nics[0].next_frame(), out);
    case.assert_unharmed(guest);
}

/// Makes hand-written chains available in both rings; each must come back unused, and no frame
/// may come of it.
fn assert_rejected(descriptors: &[(u64, u32, u16, u16)]) {
    let mut case = Case::new();
    for queue in [TX, RX] {
        let mut guest = case.guest();
        let before = case.nics[0].chains_rejected(queue);
        let write = if queue == RX { DESC_WRITE } else { 0 };
        let descriptors: Vec<_> = descriptors
            .iter()
            .map(|(address, bytes, flags, next)| {
                let direct = flags & DESC_INDIRECT == 0;
                let flags = if direct { flags | write } else { *flags };
                (*address, *bytes, flags, *next)
            })
            .collect();
        publish(&mut guest, queue, &descriptors);
        if queue == RX {
            // Looked at when a frame comes, which finds no buffer.
            let payload = [&[0; HEADER_BYTES][..], &frame(GUEST_MAC, OTHER_MAC, 7, 100)].concat();
            case.nics[0].send_and_wait(&payload);
            assert_eq!(case.nics[0].receive_drops(ReceiveDrop::NoBuffers), 1);
        }
        let used = guest.guest.queue(queue).unwrap().wait().unwrap();
        assert_eq!((used.head, used.bytes), (0, 0));
        assert_eq!(case.nics[0].chains_rejected(queue), before + 1);
        assert_eq!(case.nics[0].far.waiting(), 0);
        case.assert_unharmed(guest);
    }
}

#[test]
fn g04_chain_that_points_to_itself_comes_back_unused() {
    assert_rejected(&[(RAM_START, 64, DESC_NEXT, 0)]);
}

#[test]
fn g04_chain_of_two_that_never_ends_comes_back_unused() {
    assert_rejected(&[(RAM_START, 64, DESC_NEXT, 1), (RAM_START, 64, DESC_NEXT, 0)]);
}

#[test]
fn g04_long_loop_comes_back_unused() {
    let long: Vec<_> = (0..256)
        .map(|index: u16| (RAM_START, 64, DESC_NEXT, (index + 1) % 256))
        .collect();
    assert_rejected(&long);
}

#[test]
fn g06_chain_of_empty_descriptors_is_a_runt_and_empty_ones_between_do_no_harm() {
    let mut case = Case::new();
    let mut guest = case.guest();
    let runts = case.nics[0].transmit_drops(TransmitDrop::Runt);
    let empty = Buffer::readable(RAM_START, 0);
    let queue = guest.guest.queue(TX).unwrap();
    assert_eq!(queue.transact(&[empty; 3]).unwrap().bytes, 0);
    assert_eq!(case.nics[0].transmit_drops(TransmitDrop::Runt), runts + 1);
    let out = frame(OTHER_MAC, GUEST_MAC, 8, 100);
    let slot = guest.slot().unwrap();
    let bytes = [&[0; HEADER_BYTES][..], &out].concat();
    guest.guest.ram.write(slot, &bytes).unwrap();
    let parts = [
        empty,
        Buffer::readable(slot, 5),
        // An empty range touches no memory: its address means nothing.
        Buffer::readable(u64::MAX, 0),
        Buffer::readable(slot + 5, 107),
        empty,
    ];
    guest.guest.queue(TX).unwrap().transact(&parts).unwrap();
    assert_eq!(case.nics[0].next_frame(), out);
    // A receive buffer without room comes back empty, the next one is used.
    guest
        .post_buffers(0, &[Buffer::writable(slot, 0), Buffer::writable(slot, 0)])
        .unwrap();
    let back = frame(GUEST_MAC, OTHER_MAC, 9, 100);
    guest.post(0, 1).unwrap();
    case.nics[0].send(&back);
    let used = guest.guest.queue(RX).unwrap().wait().unwrap();
    assert_eq!(used.bytes, 0);
    assert_eq!(guest.receive(0).unwrap().frame, back);
    assert_eq!(case.nics[0].device.statistics().bad_receive_buffers, 1);
    case.assert_unharmed(guest);
}

#[test]
fn g07_buffer_beyond_memory_comes_back_unused() {
    assert_rejected(&[(RAM_END - 64, 128, 0, 0)]);
}

#[test]
fn g07_buffer_outside_of_memory_comes_back_unused() {
    assert_rejected(&[(RAM_START, 64, DESC_NEXT, 1), (0x1000, 64, 0, 0)]);
}

#[test]
fn g07_buffer_whose_end_wraps_comes_back_unused() {
    assert_rejected(&[(u64::MAX - 15, u32::MAX, 0, 0)]);
}

#[test]
fn g10_bad_indirect_tables_come_back_unused() {
    for (address, bytes) in [
        (RAM_START, 0),
        (RAM_START, 24),
        (0x1000, 16),
        (RAM_END - 8, 16),
        (u64::MAX - 15, 16),
    ] {
        assert_rejected(&[(address, bytes, DESC_INDIRECT, 0)]);
    }
}

#[test]
fn g10_indirect_table_of_a_mebibyte_of_loops_comes_back_unused() {
    let mut case = Case::new();
    let mut guest = case.guest();
    let table = guest.guest.ram.allocate(1 << 20, 4096).unwrap();
    let entries: Vec<u8> = (0..1_u32 << 16)
        .flat_map(|index| {
            let next = u16::try_from((index + 1) & 0xffff).unwrap();
            let mut entry = RAM_START.to_le_bytes().to_vec();
            entry.extend(64_u32.to_le_bytes());
            entry.extend(DESC_NEXT.to_le_bytes());
            entry.extend(next.to_le_bytes());
            entry
        })
        .collect();
    guest.guest.ram.write(table, &entries).unwrap();
    publish(&mut guest, TX, &[(table, 1 << 20, DESC_INDIRECT, 0)]);
    let used = guest.guest.queue(TX).unwrap().wait().unwrap();
    assert_eq!((used.head, used.bytes), (0, 0));
    assert_eq!(case.nics[0].chains_rejected(TX), 1);
    case.assert_unharmed(guest);
}

#[test]
fn g10_indirect_table_inside_an_indirect_table_comes_back_unused() {
    let mut case = Case::new();
    let mut guest = case.guest();
    let table = guest.guest.ram.allocate(32, 16).unwrap();
    let mut entry = table.to_le_bytes().to_vec();
    entry.extend(16_u32.to_le_bytes());
    entry.extend(DESC_INDIRECT.to_le_bytes());
    entry.extend([0; 2]);
    guest.guest.ram.write(table, &entry).unwrap();
    publish(&mut guest, TX, &[(table, 16, DESC_INDIRECT, 0)]);
    let used = guest.guest.queue(TX).unwrap().wait().unwrap();
    assert_eq!((used.head, used.bytes), (0, 0));
    assert_eq!(case.nics[0].far.waiting(), 0);
    case.assert_unharmed(guest);
}

#[test]
fn g11_descriptors_of_the_wrong_direction_carry_no_frame() {
    let mut case = Case::new();
    let mut guest = case.guest();
    let slot = guest.slot().unwrap();
    let runts = case.nics[0].transmit_drops(TransmitDrop::Runt);
    // All writable in the transmit ring: nothing to send, nothing written.
    guest.guest.ram.write(slot, &[0x5a; 128]).unwrap();
    let queue = guest.guest.queue(TX).unwrap();
    let used = queue.transact(&[Buffer::writable(slot, 128)]).unwrap();
    assert_eq!(used.bytes, 0);
    assert_eq!(guest.guest.ram.read(slot, 128).unwrap(), [0x5a; 128]);
    assert_eq!(case.nics[0].transmit_drops(TransmitDrop::Runt), runts + 1);
    // Writable in front of readable: no chain at all.
    let queue = guest.guest.queue(TX).unwrap();
    let mixed = [Buffer::writable(slot, 64), Buffer::readable(slot, 64)];
    assert_eq!(queue.transact(&mixed).unwrap().bytes, 0);
    assert_eq!(case.nics[0].chains_rejected(TX), 1);
    // All readable in the receive ring: comes back empty, the next one is used.
    guest
        .post_buffers(0, &[Buffer::readable(slot, 128)])
        .unwrap();
    guest.post(0, 1).unwrap();
    let back = frame(GUEST_MAC, OTHER_MAC, 10, 60);
    case.nics[0].send(&back);
    assert_eq!(guest.guest.queue(RX).unwrap().wait().unwrap().bytes, 0);
    assert_eq!(guest.receive(0).unwrap().frame, back);
    assert_eq!(guest.guest.ram.read(slot, 128).unwrap(), [0x5a; 128]);
    case.assert_unharmed(guest);
}

#[test]
fn g13_head_made_available_twice_is_served_twice() {
    let mut case = Case::new();
    let mut guest = case.guest();
    let slot = guest.slot().unwrap();
    let out = frame(OTHER_MAC, GUEST_MAC, 11, 100);
    let bytes = [&[0; HEADER_BYTES][..], &out].concat();
    guest.guest.ram.write(slot, &bytes).unwrap();
    let ring = guest.guest.queue(TX).unwrap();
    ring.write_descriptor(0, slot, 112, 0, 0).unwrap();
    for _time in 0..2 {
        ring.publish(0).unwrap();
    }
    ring.kick().unwrap();
    for _time in 0..2 {
        assert_eq!(guest.guest.queue(TX).unwrap().wait().unwrap().head, 0);
        assert_eq!(case.nics[0].next_frame(), out);
    }
    // Two frames into the same buffer: only the guest's own memory suffers.
    let ring = guest.guest.queue(RX).unwrap();
    ring.write_descriptor(0, slot, SLOT_BYTES, DESC_WRITE, 0)
        .unwrap();
    for _time in 0..2 {
        ring.publish(0).unwrap();
    }
    for _time in 0..2 {
        case.nics[0].send(&out);
        assert_eq!(guest.guest.queue(RX).unwrap().wait().unwrap().head, 0);
    }
    case.assert_unharmed(guest);
}

#[test]
fn g14_header_of_one_byte_descriptors_is_as_good_as_any() {
    let mut case = Case::new();
    let mut guest = case.guest();
    let slot = guest.slot().unwrap();
    let out = frame(OTHER_MAC, GUEST_MAC, 12, 200);
    let bytes = [&[0; HEADER_BYTES][..], &out].concat();
    guest.guest.ram.write(slot, &bytes).unwrap();
    let bytewise = |writable| -> Vec<Buffer> {
        let byte = |at| Buffer {
            address: slot + at,
            bytes: 1,
            writable,
        };
        let rest = Buffer {
            address: slot + 20,
            bytes: 192,
            writable,
        };
        (0..20).map(byte).chain([rest]).collect()
    };
    let queue = guest.guest.queue(TX).unwrap();
    queue.transact(&bytewise(false)).unwrap();
    assert_eq!(case.nics[0].next_frame(), out);
    guest.post_buffers(0, &bytewise(true)).unwrap();
    let back = frame(GUEST_MAC, OTHER_MAC, 13, 200);
    case.nics[0].send(&back);
    let received = guest.receive(0).unwrap();
    assert_eq!((received.frame, received.lengths), (back, vec![212]));
    assert_eq!(received.header.num_buffers.get(), 1);
    case.assert_unharmed(guest);
}

#[test]
fn g17_kicks_without_work_do_no_harm() {
    let mut case = Case::new();
    let mut guest = case.guest();
    for count in 0..100_000 {
        guest.guest.queue(count % 2).unwrap().kick().unwrap();
    }
    case.nics[0].round_trip(&mut guest);
    case.assert_unharmed(guest);
}

// What a virtio-net header may say.

#[test]
fn n01_header_length_follows_the_negotiated_features() {
    for (without, header_bytes) in [
        (0, 12),
        (F_MRG_RXBUF, 12),
        (F_VERSION_1, 12),
        (F_VERSION_1 | F_MRG_RXBUF, 10),
    ] {
        let mut case = Case::new();
        let mut guest = NetGuest::connect_with(&case.nics[0].socket, 1, without).unwrap();
        let out = frame(OTHER_MAC, GUEST_MAC, 14, 90);
        guest.transmit(0, &vec![0; header_bytes], &out).unwrap();
        assert_eq!(case.nics[0].next_frame(), out, "without {without:#x}");
        let slot = guest.slot().unwrap();
        let buffers = [Buffer::writable(slot, SLOT_BYTES)];
        guest.guest.queue(RX).unwrap().submit(&buffers).unwrap();
        case.nics[0].send(&out);
        let used = guest.guest.queue(RX).unwrap().wait().unwrap();
        let bytes = usize::try_from(used.bytes).unwrap();
        assert_eq!(bytes, header_bytes + out.len(), "without {without:#x}");
        let written = guest.guest.ram.read(slot, bytes).unwrap();
        assert_eq!(written[header_bytes..], out);
        case.assert_unharmed(guest);
    }
}

/// Sends headers that must be refused, each in front of a frame of 100 bytes; what arrives is the
/// good frame behind each.
fn assert_headers_dropped(without_features: u64, headers: &[Vec<u8>]) {
    let mut case = Case::new();
    let mut guest = NetGuest::connect_with(&case.nics[0].socket, 1, without_features).unwrap();
    for (count, bad) in (0_u32..).zip(headers) {
        let refused = frame(OTHER_MAC, GUEST_MAC, 1000 + count, 100);
        guest.transmit(0, bad, &refused).unwrap();
        let good = frame(OTHER_MAC, GUEST_MAC, count, 100);
        guest.send(0, &good).unwrap();
        assert_eq!(case.nics[0].next_frame(), good, "behind {bad:02x?}");
    }
    while guest.unsent(0) > 0 {
        guest.wait_sent(0).unwrap();
    }
    let dropped = case.nics[0].transmit_drops(TransmitDrop::BadHeader);
    assert_eq!(dropped, u64::try_from(headers.len()).unwrap());
    case.assert_unharmed(guest);
}

fn super_frame(change: impl FnOnce(&mut VirtioNetHeader)) -> Vec<u8> {
    header(|header| {
        header.flags = FLAG_NEEDS_CSUM;
        header.gso_type = 1;
        header.gso_size = 40.into();
        header.csum_start = 34.into();
        header.csum_offset = 16.into();
        change(header);
    })
}

#[test]
fn n02_unknown_segmentation_types_are_dropped() {
    // ECN alone, two types at once, UDP (not offered), types that do not exist.
    let types = [0x80, 5, 2, 3, 6, 0x7f, 0xff, 0x85];
    let headers: Vec<_> = types
        .iter()
        .map(|gso_type| super_frame(|header| header.gso_type = *gso_type))
        .collect();
    assert_headers_dropped(0, &headers);
}

#[test]
fn n03_segment_size_0_is_dropped_and_header_length_is_only_a_hint() {
    assert_headers_dropped(
        0,
        &[
            super_frame(|header| header.gso_size = 0.into()),
            // A super-frame whose checksum nobody completes.
            super_frame(|header| header.flags = 0),
        ],
    );
    let mut case = Case::new();
    let mut guest = case.guest();
    let out = frame(OTHER_MAC, GUEST_MAC, 15, 100);
    for (header_len, gso_size) in [(0, 1), (u16::MAX, u16::MAX)] {
        let odd = super_frame(|header| {
            header.header_len = header_len.into();
            header.gso_size = gso_size.into();
        });
        guest.transmit(0, &odd, &out).unwrap();
        let expected = [odd, out.clone()].concat();
        assert_eq!(case.nics[0].far.next().unwrap(), (NETWORK, expected));
    }
    case.assert_unharmed(guest);
}

#[test]
fn n04_checksum_outside_of_the_frame_is_dropped() {
    let places = [
        (34, 65),
        (99, 0),
        (100, 0),
        (u16::MAX, 0),
        (u16::MAX, u16::MAX),
        (34, u16::MAX - 33),
        // Inside of the Ethernet header.
        (0, 0),
        (13, 2),
    ];
    let headers: Vec<_> = places
        .iter()
        .map(|(start, offset)| {
            header(|header| {
                header.flags = FLAG_NEEDS_CSUM;
                header.csum_start = (*start).into();
                header.csum_offset = (*offset).into();
            })
        })
        .collect();
    assert_headers_dropped(0, &headers);
}

#[test]
fn n05_offloads_that_were_not_negotiated_are_dropped() {
    let checksum = header(|header| {
        header.flags = FLAG_NEEDS_CSUM;
        header.csum_start = 34.into();
        header.csum_offset = 6.into();
    });
    assert_headers_dropped(F_CSUM, &[checksum]);
    const HOST_TSO4: u64 = 1 << 11;
    assert_headers_dropped(HOST_TSO4, &[super_frame(|_| {})]);
}

#[test]
fn n06_runts_and_giants_are_dropped_and_counted() {
    let mut case = Case::new();
    let mut guest = case.guest();
    let runts = case.nics[0].transmit_drops(TransmitDrop::Runt);
    let zeros = guest.guest.ram.allocate(0x2_0000, 4096).unwrap();
    let lengths = [1, 11, 12, 13, 25];
    for bytes in lengths {
        let queue = guest.guest.queue(TX).unwrap();
        queue.transact(&[Buffer::readable(zeros, bytes)]).unwrap();
    }
    assert_eq!(
        case.nics[0].transmit_drops(TransmitDrop::Runt),
        runts + u64::try_from(lengths.len()).unwrap()
    );
    // One byte above the MTU with two VLAN tags; one above any frame; a gigabyte.
    for (bytes, times) in [(12 + 1523, 1), (12 + 65_558, 1), (0x40_0000, 256)] {
        let buffer = Buffer::readable(RAM_START, bytes);
        let queue = guest.guest.queue(TX).unwrap();
        queue.transact(&vec![buffer; times]).unwrap();
    }
    assert_eq!(case.nics[0].transmit_drops(TransmitDrop::Giant), 3);
    assert_eq!(case.nics[0].far.waiting(), 0);
    case.assert_unharmed(guest);
}

#[test]
fn n06_payloads_of_the_fabric_that_are_no_frames_are_dropped() {
    let mut case = Case::new();
    let mut guest = case.guest();
    guest.post(0, 4).unwrap();
    for bytes in [0, 1, 11, 12, 25, 65_792] {
        case.nics[0].send_and_wait(&vec![0; bytes]);
    }
    assert_eq!(case.nics[0].receive_drops(ReceiveDrop::Malformed), 6);
    // On lanes that a vNIC does not have there is no credit: its windows are closed.
    let mut frames = vec![(
        VirtualLane::StorageData,
        fabric_transport::FrameBuffer::zeroed(64),
    )];
    let lanes = case.nics[0].far.lanes().unwrap();
    assert!(lanes.try_send(&mut frames).is_err());
    case.nics[0].round_trip(&mut guest);
    case.assert_unharmed(guest);
}

#[test]
fn n07_buffers_that_cannot_hold_a_header_come_back_empty() {
    let mut case = Case::new();
    let mut guest = case.guest();
    let slot = guest.slot().unwrap();
    for bytes in [1, 11] {
        guest
            .post_buffers(0, &[Buffer::writable(slot, bytes)])
            .unwrap();
    }
    // Exactly a header: the frame stands in the buffers behind it.
    guest
        .post_buffers(0, &[Buffer::writable(slot, 12)])
        .unwrap();
    guest
        .post_buffers(0, &[Buffer::writable(slot + 64, 13)])
        .unwrap();
    guest.post(0, 1).unwrap();
    let sent = frame(GUEST_MAC, OTHER_MAC, 16, 100);
    case.nics[0].send(&sent);
    for _bad in 0..2 {
        assert_eq!(guest.guest.queue(RX).unwrap().wait().unwrap().bytes, 0);
    }
    let received = guest.receive(0).unwrap();
    assert_eq!((received.frame, received.lengths), (sent, vec![12, 13, 87]));
    assert_eq!(case.nics[0].device.statistics().bad_receive_buffers, 2);
    case.assert_unharmed(guest);
}

#[test]
fn n07_frame_that_does_not_fit_leaves_the_buffers_for_the_next() {
    let mut case = Case::new();
    let mut guest = case.guest();
    let slot = guest.slot().unwrap();
    for at in 0..3 {
        let buffer = Buffer::writable(slot + at * 100, 100);
        guest.post_buffers(0, &[buffer]).unwrap();
    }
    let long = frame(GUEST_MAC, OTHER_MAC, 17, 1000);
    let payload = [&[0; HEADER_BYTES][..], &long].concat();
    case.nics[0].send_and_wait(&payload);
    assert_eq!(case.nics[0].receive_drops(ReceiveDrop::NoBuffers), 1);
    assert_eq!(guest.guest.queue(RX).unwrap().used_index().unwrap(), 0);
    guest.post(0, 1).unwrap();
    case.nics[0].send(&long);
    let received = guest.receive(0).unwrap();
    assert_eq!(received.frame, long);
    assert_eq!(received.lengths, [100, 100, 100, 12 + 1000 - 300]);
    // Without mergeable buffers one must do.
    drop(guest);
    let mut guest = NetGuest::connect_with(&case.nics[0].socket, 1, F_MRG_RXBUF).unwrap();
    guest
        .post_buffers(0, &[Buffer::writable(slot, 100)])
        .unwrap();
    case.nics[0].send_and_wait(&payload);
    assert_eq!(case.nics[0].receive_drops(ReceiveDrop::BufferTooSmall), 1);
    case.assert_unharmed(guest);
}

// Guests that move.

/// SEND_RARP with the address that QEMU puts there; the answer if the back end was to acknowledge it.
fn send_rarp(guest: &NetGuest) -> u64 {
    let mut address = [0; 8];
    address[..6].copy_from_slice(&GUEST_MAC);
    let raw = &guest.guest.raw;
    raw.ask(request::SEND_RARP, &address, &[])
        .unwrap()
        .value()
        .unwrap()
}

fn announced() -> Vec<u8> {
    fabric_payload::announcement::announcement(GUEST_MAC).split_off(HEADER_BYTES)
}

#[test]
fn front_end_has_the_vnic_announced_whenever_it_asks() {
    let mut case = Case::new();
    let mut guest = case.guest();
    assert_eq!(send_rarp(&guest), 0);
    assert_eq!(case.nics[0].next_frame(), announced());
    // Without a director it waits for one.
    case.fabric.down();
    assert_eq!(send_rarp(&guest), 0);
    case.fabric.up().unwrap();
    assert_eq!(case.nics[0].next_frame(), announced());
    // Nothing else was sent, and the rings are as they were.
    case.nics[0].round_trip(&mut guest);
    assert_eq!(case.nics[0].device.statistics().announcements, 2);
    case.assert_unharmed(guest);
}

#[test]
fn vnic_that_two_hosts_serve_is_announced_where_its_rings_start() {
    let mut case = Case::new();
    case.nics[0].device.set_moves(true);
    let guest = case.guest();
    assert_eq!(case.nics[0].next_frame(), announced());
    // The director may have taken the other host's for the right one meanwhile.
    case.fabric.down();
    case.fabric.up().unwrap();
    assert_eq!(case.nics[0].next_frame(), announced());
    drop(guest);
    case.nics[0].device.set_moves(false);
    let mut guest = case.guest();
    case.nics[0].round_trip(&mut guest);
}

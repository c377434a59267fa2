//! A guest's Ethernet frames against a director that the test plays.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]
#![expect(clippy::panic, reason = "a failed expectation is a failed test")]
#![expect(
    clippy::indexing_slicing,
    reason = "a failed expectation is a failed test"
)]

mod support;

use std::sync::{Arc, Mutex, Weak};

use fabric_bypass::{DirectPort, DirectReceiver, DirectVnic};
use fabric_payload::ethernet::Offloads;
use fabric_transport::VirtualLane::Network;
use orimono_tests::front_end::{Buffer, Guest, GuestOptions, Used};
use support::{DEVICE, Fabric, Served, serve, until};
use vnic_backend::{ReceiveDrop, TransmitDrop, VnicConfig, VnicDevice, VnicStatistics, windows};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const MERGEABLE: u64 = 1 << 15;
/// Of a director: 1 MiB of frames.
const DIRECTOR: [u32; 4] = [0, 0, 0, 16_384];

struct World {
    device: Arc<VnicDevice>,
    guest: Guest,
    _served: Served,
}

impl World {
    fn new() -> Self {
        Self::with(1, Offloads::default(), 0)
    }

    fn with(queue_pairs: usize, offloads: Offloads, without_features: u64) -> Self {
        let config = VnicConfig::new("vnic0", DEVICE, [2, 0, 0, 0, 0, 1]);
        let device = VnicDevice::new(VnicConfig {
            queue_pairs,
            offloads,
            ..config
        })
        .unwrap();
        let served = serve(device.clone());
        let defaults = GuestOptions::default();
        let options = GuestOptions {
            queues: 2 * queue_pairs,
            without_features: defaults.without_features | without_features,
            ..defaults
        };
        let guest = Guest::connect(&served.path, &options).unwrap();
        // Rings start on their own threads, behind the front-end's back.
        until("the start of all rings", || {
            device.receive_queues_running() == queue_pairs
        });
        Self {
            device,
            guest,
            _served: served,
        }
    }

    fn fabric(&self) -> Fabric {
        Fabric::up(1, self.device.clone(), windows(), DIRECTOR)
    }

    fn statistics(&self) -> VnicStatistics {
        self.device.statistics()
    }

    /// Makes a packet available for transmission: virtio-net header and frame.
    fn submit(&mut self, packet: &[u8]) -> u16 {
        let at = self
            .guest
            .ram
            .allocate(u64::try_from(packet.len()).unwrap(), 16)
            .unwrap();
        self.guest.ram.write(at, packet).unwrap();
        let bytes = u32::try_from(packet.len()).unwrap();
        let queue = self.guest.queue(TRANSMIT).unwrap();
        // Split at an odd place: nothing may depend on where the header ends.
        queue
            .submit(&[Buffer::readable(at, 7), Buffer::readable(at + 7, bytes - 7)])
            .unwrap()
    }

    fn kick(&mut self) {
        self.guest.queue(TRANSMIT).unwrap().kick().unwrap();
    }

    fn wait(&mut self, queue: usize) -> Used {
        self.guest.queue(queue).unwrap().wait().unwrap()
    }

    /// Makes receive buffers of these sizes available; returns their addresses.
    fn post(&mut self, queue: usize, sizes: &[u32]) -> Vec<u64> {
        let mut addresses = Vec::new();
        for bytes in sizes {
            let at = self.guest.ram.allocate((*bytes).into(), 16).unwrap();
            self.guest
                .queue(queue)
                .unwrap()
                .submit(&[Buffer::writable(at, *bytes)])
                .unwrap();
            addresses.push(at);
        }
        addresses
    }
}

fn frame(bytes: usize, seed: u8) -> Vec<u8> {
    let mut frame = vec![seed; bytes];
    frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
    frame
}

fn packet(header: [u8; 12], frame: &[u8]) -> Vec<u8> {
    [&header[..], frame].concat()
}

#[test]
fn frame_from_the_guest_is_on_the_lane_with_a_clean_header() {
    let mut world = World::new();
    let fabric = world.fabric();
    let mut header = [0; 12];
    // num_buffers and a claim of verified checksums, neither of which a driver may make.
    header[10] = 3;
    header[0] = 2;
    let head = world.submit(&packet(header, &frame(1514, 7)));
    world.kick();
    assert_eq!(
        fabric.receive(),
        (Network, packet([0; 12], &frame(1514, 7)))
    );
    assert_eq!(world.wait(TRANSMIT), Used { head, bytes: 0 });
    let transmit = world.statistics().transmit;
    assert_eq!((transmit.frames, transmit.bytes), (1, 1514));
}

#[test]
fn bad_frames_are_returned_counted_and_do_not_stop_the_ring() {
    let mut world = World::new();
    let fabric = world.fabric();
    let mut needs_checksum = [0; 12];
    needs_checksum[0] = 1;
    let mut super_frame = [0; 12];
    super_frame[1] = 1;
    let bad = [
        packet([0; 12], &[0; 13]),
        packet([0; 12], &frame(1523, 1)),
        packet([0; 12], &frame(65_558, 1)),
        packet(needs_checksum, &frame(100, 1)),
        packet(super_frame, &frame(100, 1)),
        vec![0; 11],
    ];
    for packet in &bad {
        world.submit(packet);
    }
    world.submit(&packet([0; 12], &frame(60, 2)));
    world.kick();
    for _ in 0..=bad.len() {
        world.wait(TRANSMIT);
    }
    assert_eq!(fabric.receive().1, packet([0; 12], &frame(60, 2)));
    let transmit = world.statistics().transmit;
    assert_eq!(transmit.dropped(TransmitDrop::Runt), 2);
    assert_eq!(transmit.dropped(TransmitDrop::Giant), 2);
    assert_eq!(transmit.dropped(TransmitDrop::BadHeader), 2);
    assert_eq!((transmit.frames, fabric.received_untaken()), (1, 0));
}

#[test]
fn frames_without_a_session_are_dropped_and_counted() {
    let mut world = World::new();
    world.submit(&packet([0; 12], &frame(60, 1)));
    world.kick();
    world.wait(TRANSMIT);
    let fabric = world.fabric();
    world.submit(&packet([0; 12], &frame(60, 2)));
    world.kick();
    assert_eq!(fabric.receive().1, packet([0; 12], &frame(60, 2)));
    world.wait(TRANSMIT);
    fabric.down();
    world.submit(&packet([0; 12], &frame(60, 3)));
    world.kick();
    world.wait(TRANSMIT);
    let transmit = world.statistics().transmit;
    assert_eq!(
        (transmit.frames, transmit.dropped(TransmitDrop::NoSession)),
        (1, 2)
    );
}

/// 20 frames of 1 KiB against a window for four of them.
fn stalled() -> (World, Fabric) {
    let mut world = World::new();
    let window = 4 * fabric_transport::frame::blocks(12 + 1024);
    let fabric = Fabric::up(1, world.device.clone(), windows(), [0, 0, 0, window]);
    fabric.hold();
    for seed in 0..20 {
        world.submit(&packet([0; 12], &frame(1024, seed)));
    }
    world.kick();
    for seed in 0..4 {
        assert_eq!(fabric.receive().1, packet([0; 12], &frame(1024, seed)));
        world.wait(TRANSMIT);
    }
    until("the ring's stop", || {
        world.statistics().transmit_stalls == 1
    });
    (world, fabric)
}

#[test]
fn blocked_lane_stops_the_ring_and_loses_nothing() {
    let (mut world, fabric) = stalled();
    // More kicks change nothing.
    world.kick();
    assert_eq!(fabric.received_untaken(), 0);
    fabric.release();
    for seed in 4..20 {
        assert_eq!(fabric.receive().1, packet([0; 12], &frame(1024, seed)));
        world.wait(TRANSMIT);
    }
    let transmit = world.statistics().transmit;
    assert_eq!(transmit.frames, 20);
    assert!(
        transmit.drops.iter().all(|(_, count)| *count == 0),
        "{transmit:?}"
    );
}

#[test]
fn ring_that_stops_while_blocked_sends_each_frame_once() {
    let (mut world, fabric) = stalled();
    // The fifth frame was taken but not sent: it is still the guest's.
    assert_eq!(world.guest.stop_queue(TRANSMIT).unwrap(), 4);
    world.guest.start_queue(TRANSMIT, 4).unwrap();
    fabric.release();
    for seed in 4..20 {
        assert_eq!(fabric.receive().1, packet([0; 12], &frame(1024, seed)));
    }
    assert_eq!(world.statistics().transmit.frames, 20);
}

#[test]
fn flood_longer_than_a_turn_goes_through_with_one_kick() {
    let mut world = World::new();
    let fabric = world.fabric();
    // A ring of 64 with two descriptors a frame: refilled from behind while it is emptied.
    let mut sent = 0_u32;
    while sent < 200 {
        for _ in 0..25 {
            world.submit(&packet([0; 12], &frame(100, sent.to_le_bytes()[0])));
            sent += 1;
        }
        world.kick();
        for _ in 0..25 {
            world.wait(TRANSMIT);
        }
    }
    for number in 0..200_u32 {
        assert_eq!(fabric.receive().1[12 + 20], number.to_le_bytes()[0]);
    }
}

#[test]
fn n07_frame_is_spread_over_mergeable_buffers() {
    let mut world = World::new();
    let fabric = world.fabric();
    let addresses = world.post(RECEIVE, &[1000, 12, 1000, 2000]);
    let sent = frame(2000, 9);
    fabric.send(Network, &packet([0; 12], &sent));
    let mut received = Vec::new();
    for (at, bytes) in addresses.iter().zip([1000, 12, 1000]) {
        assert_eq!(world.wait(RECEIVE).bytes, bytes);
        received.extend(
            world
                .guest
                .ram
                .read(*at, usize::try_from(bytes).unwrap())
                .unwrap(),
        );
    }
    let mut header = [0; 12];
    header[10] = 3;
    assert!(received == packet(header, &sent));
    // The fourth buffer is for the next frame.
    fabric.send(Network, &packet([0; 12], &frame(60, 1)));
    assert_eq!(world.wait(RECEIVE).bytes, 72);
    let receive = world.statistics().receive;
    assert_eq!((receive.frames, receive.bytes), (2, 2060));
}

#[test]
fn n07_frame_without_enough_buffers_is_dropped_whole() {
    let mut world = World::new();
    let fabric = world.fabric();
    let addresses = world.post(RECEIVE, &[500, 500]);
    fabric.send(Network, &packet([0; 12], &frame(1514, 1)));
    fabric.send(Network, &packet([0; 12], &frame(400, 2)));
    // The buffers went back, and the first one takes the frame that fits.
    assert_eq!(world.wait(RECEIVE).bytes, 412);
    let mut header = [0; 12];
    header[10] = 1;
    let received = world.guest.ram.read(addresses[0], 412).unwrap();
    assert_eq!(received, packet(header, &frame(400, 2)));
    let receive = world.statistics().receive;
    assert_eq!(
        (receive.frames, receive.dropped(ReceiveDrop::NoBuffers)),
        (1, 1)
    );
}

#[test]
fn n07_buffer_smaller_than_a_header_is_returned_empty() {
    let mut world = World::new();
    let fabric = world.fabric();
    world.post(RECEIVE, &[11, 100]);
    fabric.send(Network, &packet([0; 12], &frame(60, 1)));
    assert_eq!(world.wait(RECEIVE).bytes, 0);
    assert_eq!(world.wait(RECEIVE).bytes, 72);
    assert_eq!(world.statistics().bad_receive_buffers, 1);
}

#[test]
fn without_mergeable_buffers_a_frame_needs_one_that_holds_it() {
    let mut world = World::with(1, Offloads::default(), MERGEABLE);
    let fabric = world.fabric();
    world.post(RECEIVE, &[200, 2000]);
    fabric.send(Network, &packet([0; 12], &frame(189, 1)));
    fabric.send(Network, &packet([0; 12], &frame(188, 2)));
    fabric.send(Network, &packet([0; 12], &frame(1514, 3)));
    assert_eq!(
        (world.wait(RECEIVE).bytes, world.wait(RECEIVE).bytes),
        (200, 1526)
    );
    assert_eq!(
        world
            .statistics()
            .receive
            .dropped(ReceiveDrop::BufferTooSmall),
        1
    );
}

#[test]
fn n11_guest_without_offloads_gets_finished_checksums_and_no_super_frames() {
    let mut world = World::with(1, Offloads::ALL, 0b11 | 0b111 << 7);
    let fabric = world.fabric();
    let addresses = world.post(RECEIVE, &[2000]);
    let mut super_frame = [0; 12];
    super_frame[..10].copy_from_slice(&[1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0]);
    fabric.send(Network, &packet(super_frame, &frame(5000, 1)));
    let mut partial = [0; 12];
    partial[0] = 1;
    partial[6..10].copy_from_slice(&[34, 0, 6, 0]);
    let mut datagram = frame(34, 0);
    // The words sum to 7c94 with the pseudo-header in the checksum field.
    datagram.extend([0, 1, 0, 2, 0, 10, 0x14, 0x1e, b'h', b'i']);
    fabric.send(Network, &packet(partial, &datagram));
    world.wait(RECEIVE);
    let received = world.guest.ram.read(addresses[0], 12 + 44).unwrap();
    assert_eq!(received[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(received[12 + 40..][..2], (!0x7c94_u16).to_be_bytes());
    let statistics = world.statistics();
    assert_eq!(statistics.receive.dropped(ReceiveDrop::NotNegotiated), 1);
    assert_eq!(statistics.checksums_completed, 1);
}

#[test]
fn stopped_receive_queue_hands_its_flows_to_the_others() {
    let mut world = World::with(2, Offloads::default(), 0);
    let fabric = world.fabric();
    world.post(0, &[100; 30]);
    world.post(2, &[100; 30]);
    let flow = |seed: u8| {
        let mut frame = frame(60, 0);
        frame[6] = 2 + 2 * seed;
        packet([0; 12], &frame)
    };
    let used = |world: &World| [0, 2].map(|queue| world.guest.queues[queue].used_index().unwrap());
    let until_used = |world: &World, sum| {
        until("delivery", || used(world).iter().sum::<u16>() == sum);
        used(world)
    };
    fabric.send_all((0..8).map(|seed| (Network, flow(seed))));
    let once = until_used(&world, 8);
    assert!(once.iter().all(|count| *count > 0), "{once:?}");
    // The same flows go the same way again.
    fabric.send_all((0..8).map(|seed| (Network, flow(seed))));
    assert_eq!(until_used(&world, 16), once.map(|count| 2 * count));
    world.guest.stop_queue(2).unwrap();
    fabric.send_all((0..8).map(|seed| (Network, flow(seed))));
    assert_eq!(until_used(&world, 24), [2 * once[0] + 8, 2 * once[1]]);
    world.guest.stop_queue(0).unwrap();
    fabric.send(Network, &flow(0));
    let dropped = || world.statistics().receive.dropped(ReceiveDrop::NotRunning);
    until("the drop", || dropped() == 1);
}

/// A director beside the vNIC that keeps what goes past the lanes.
#[derive(Debug, Default)]
struct Beside(Mutex<Vec<Vec<u8>>>);

impl DirectVnic for Beside {
    fn lane_frames(&self) -> u64 {
        0
    }
    fn transmit(&self, payloads: &mut dyn Iterator<Item = &[u8]>) {
        let mut taken = self.0.lock().unwrap();
        taken.extend(payloads.map(<[u8]>::to_vec));
    }
}

#[derive(Debug)]
struct BesidePort(Arc<Beside>);

impl DirectPort for BesidePort {
    fn attach(&self, _: Weak<dyn DirectReceiver>) {}
    fn session(&self, _: u16) -> Option<Arc<dyn DirectVnic>> {
        Some(self.0.clone())
    }
}

/// A vNIC whose frames go past the lanes.
fn beside() -> (World, Arc<Beside>, Fabric) {
    let world = World::new();
    let beside = Arc::new(Beside::default());
    world
        .device
        .set_direct_port(Arc::new(BesidePort(beside.clone())));
    let fabric = world.fabric();
    (world, beside, fabric)
}

#[test]
fn frames_past_the_lanes_are_whole_in_order_and_all_of_them() {
    let (mut world, beside, fabric) = beside();
    let mut sent = Vec::new();
    for round in 0..40 {
        for place in 0..25_u8 {
            let bytes = 60 + usize::from(place) * 50 + round;
            let payload = packet([0; 12], &frame(bytes, place));
            world.submit(&payload);
            sent.push(payload);
        }
        world.kick();
        for _ in 0..25 {
            assert_eq!(world.wait(TRANSMIT).bytes, 0);
        }
    }
    // What is owed for those that went past may wait, and frames with it: they go by the lanes.
    let past = beside.0.lock().unwrap().clone();
    assert!(!past.is_empty());
    let mut past = past.into_iter().peekable();
    for (number, payload) in sent.iter().enumerate() {
        if past.next_if_eq(payload).is_none() {
            assert!(fabric.receive().1 == *payload, "frame {number} differs");
        }
    }
    assert_eq!((past.next(), fabric.received_untaken()), (None, 0));
    let transmit = world.statistics().transmit;
    assert_eq!(transmit.frames, 1000);
    let bytes: usize = sent.iter().map(|payload| payload.len() - 12).sum();
    assert_eq!(transmit.bytes, u64::try_from(bytes).unwrap());
}

#[test]
fn bad_frames_past_the_lanes_are_returned_and_counted() {
    let (mut world, beside, _fabric) = beside();
    let good = packet([0; 12], &frame(100, 1));
    let runt = packet([0; 12], &frame(13, 2));
    let too_long = packet([0; 12], &frame(1523, 3));
    // Segmentation that was not agreed on.
    let segmented = packet([1, 1, 54, 0, 100, 0, 34, 0, 16, 0, 0, 0], &frame(400, 4));
    for payload in [&runt, &good, &too_long, &segmented, &good] {
        world.submit(payload);
    }
    // Outside of the guest's memory.
    let nowhere = Buffer::readable(u64::MAX - 100, 80);
    let queue = world.guest.queue(TRANSMIT).unwrap();
    queue.submit(&[nowhere]).unwrap();
    world.kick();
    for _ in 0..6 {
        world.wait(TRANSMIT);
    }
    assert_eq!(*beside.0.lock().unwrap(), [good.clone(), good]);
    let transmit = world.statistics().transmit;
    let dropped = |reason| transmit.dropped(reason);
    assert_eq!(transmit.frames, 2);
    assert_eq!(dropped(TransmitDrop::Runt), 1);
    assert_eq!(dropped(TransmitDrop::Giant), 1);
    assert_eq!(dropped(TransmitDrop::BadHeader), 1);
}

#[test]
fn a_malformed_chain_alone_is_returned_with_a_signal_past_the_lanes() {
    let (mut world, beside, _fabric) = beside();
    let nowhere = Buffer::readable(u64::MAX - 100, 80);
    let queue = world.guest.queue(TRANSMIT).unwrap();
    // Often enough that it is waited for asleep.
    for _round in 0..50 {
        queue.submit(&[nowhere]).unwrap();
        queue.kick().unwrap();
        assert_eq!(queue.wait().unwrap().bytes, 0);
    }
    assert!(beside.0.lock().unwrap().is_empty());
}

#[test]
fn ring_that_makes_no_sense_is_left_alone_past_the_lanes() {
    let (mut world, beside, _fabric) = beside();
    let queue = world.guest.queue(TRANSMIT).unwrap();
    let far = queue.next_available().wrapping_add(10_000);
    queue.set_available_index(far).unwrap();
    queue.kick().unwrap();
    queue.wait_error().unwrap();
    assert!(beside.0.lock().unwrap().is_empty());
    // A driver that starts again is served again.
    world.guest.stop_queue(TRANSMIT).unwrap();
    world.guest.queue(TRANSMIT).unwrap().reset().unwrap();
    world.guest.start_queue(TRANSMIT, 0).unwrap();
    world.submit(&packet([0; 12], &frame(100, 1)));
    world.kick();
    world.wait(TRANSMIT);
    assert_eq!(beside.0.lock().unwrap().len(), 1);
}

//! G: a guest that breaks the rules of the rings (adversarial cases G-01 to G-19).
//!
//! Default outcome: the request or the ring fails, is counted, and a driver that resets the ring
//! is served again; the session goes on and other devices do not notice.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use orimono_tests::front_end::{
    Buffer, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, DriverQueue, Guest, RamOptions,
};
use support::{Lab, Told, assert_echo};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost_user_session::QueueCounters;

const RAM_START: u64 = 0x10_0000;
const RAM_BYTES: u64 = 0x40_0000;
const RAM_END: u64 = RAM_START + RAM_BYTES;

struct Case {
    lab: Lab,
    guest: Guest,
    counters: Arc<QueueCounters>,
    neighbour: (Lab, Guest),
}

impl Case {
    fn new() -> Self {
        Self::with_ram(RamOptions::default())
    }

    fn with_ram(ram: RamOptions) -> Self {
        let lab = Lab::new();
        let other = Lab::new();
        let neighbour = other.guest();
        let guest = lab.guest_with(|options| options.ram = ram);
        let counters = lab.session.queue_counters(0).unwrap();
        Self {
            lab,
            guest,
            counters,
            neighbour: (other, neighbour),
        }
    }

    fn queue(&mut self) -> &mut DriverQueue {
        self.guest.queue(0).unwrap()
    }

    /// A chain whose head is descriptor 0, written by hand.
    fn publish_and_kick(&mut self, head: u16) {
        let queue = self.queue();
        queue.publish(head).unwrap();
        queue.kick().unwrap();
    }

    /// The chain comes back unused and counted, and the ring goes on.
    fn assert_rejected(mut self) {
        let before = self.counters.chains_rejected.load(Ordering::Relaxed);
        let used = self.queue().wait().unwrap();
        assert_eq!(used.bytes, 0);
        assert_eq!(
            self.counters.chains_rejected.load(Ordering::Relaxed),
            before.max(1)
        );
        assert_eq!(self.counters.failures.load(Ordering::Relaxed), 0);
        self.assert_unharmed();
    }

    /// The ring is broken, said so, and works again after the driver has reset it.
    fn assert_broken_until_reset(mut self) {
        self.queue().wait_error().unwrap();
        assert_eq!(self.counters.failures.load(Ordering::Relaxed), 1);
        // The session and the other ring go on meanwhile.
        assert_echo(&mut self.guest, 1, b"other ring");
        self.guest.stop_queue(0).unwrap();
        self.queue().reset().unwrap();
        self.guest.start_queue(0, 0).unwrap();
        self.assert_unharmed();
    }

    /// Ring, session and neighbour work.
    fn assert_unharmed(mut self) {
        assert_echo(&mut self.guest, 0, b"this ring");
        assert_echo(&mut self.neighbour.1, 0, b"neighbour");
        assert_eq!(self.lab.session.refusals(), 0);
        drop(self.guest);
        self.lab.device.wait_told(Told::Disconnected, 1);
        self.lab.assert_serves();
    }
}

#[test]
fn g01_head_beyond_the_table_breaks_the_ring() {
    for head in [64, 65, 0x8000, 0xffff] {
        let mut case = Case::new();
        case.publish_and_kick(head);
        case.assert_broken_until_reset();
    }
}

#[test]
fn g02_next_beyond_the_table_returns_the_chain_unused() {
    let mut case = Case::new();
    case.queue()
        .write_descriptor(0, RAM_START, 16, DESC_NEXT, 64)
        .unwrap();
    case.publish_and_kick(0);
    case.assert_rejected();
}

#[test]
fn g03_available_index_too_far_ahead_breaks_the_ring() {
    let mut case = Case::new();
    case.queue().set_available_index(65).unwrap();
    case.queue().kick().unwrap();
    case.assert_broken_until_reset();
}

#[test]
fn g03_available_index_going_backwards_breaks_the_ring() {
    let mut case = Case::new();
    assert_echo(&mut case.guest, 0, b"one");
    case.queue().set_available_index(0).unwrap();
    case.queue().kick().unwrap();
    case.assert_broken_until_reset();
}

#[test]
fn g03_indexes_wrap_around_65535() {
    let mut case = Case::new();
    for round in 0..66_000_u32 {
        // Long-lived buffers: the allocator never takes any back.
        if round == 0 {
            assert_echo(&mut case.guest, 0, b"first");
        }
        let used = case
            .queue()
            .transact(&[Buffer::writable(RAM_END - 64, 8)])
            .unwrap();
        assert_eq!(used.bytes, 0);
    }
    case.assert_unharmed();
}

#[test]
fn g04_loops_end_and_return_the_chain_unused() {
    for next in [[0, 0, 0], [1, 0, 0], [1, 2, 0]] {
        let mut case = Case::new();
        for (index, next) in (0_u16..).zip(next) {
            case.queue()
                .write_descriptor(index, RAM_START, 16, DESC_NEXT, next)
                .unwrap();
        }
        case.publish_and_kick(0);
        case.assert_rejected();
    }
}

#[test]
fn g05_more_chains_than_descriptors_in_flight_breaks_the_ring() {
    let mut case = Case::new();
    case.lab.device.hold.store(true, Ordering::Relaxed);
    case.queue()
        .write_descriptor(0, RAM_END - 64, 8, DESC_WRITE, 0)
        .unwrap();
    // The same head over and over, the index never more than a ring ahead of the device.
    for held in [32, 64] {
        for _ in 0..32 {
            case.queue().publish(0).unwrap();
        }
        case.queue().kick().unwrap();
        case.lab.device.wait_held(held);
    }
    case.publish_and_kick(0);
    case.queue().wait_error().unwrap();
    case.lab.device.hold.store(false, Ordering::Relaxed);
    case.lab.device.release();
    case.assert_broken_until_reset();
}

#[test]
fn g06_empty_descriptors_are_harmless() {
    let mut case = Case::new();
    let used = case
        .queue()
        .transact(&[
            Buffer::readable(0, 0),
            Buffer::readable(u64::MAX, 0),
            Buffer::writable(RAM_END - 64, 0),
        ])
        .unwrap();
    assert_eq!(used.bytes, 0);
    case.assert_unharmed();
}

#[test]
fn g07_buffers_outside_memory_return_the_chain_unused() {
    for (address, bytes) in [
        (RAM_END - 8, 16),
        (RAM_END, 1),
        (0, 16),
        (RAM_START - 1, 2),
        (u64::MAX - 15, u32::MAX),
        (u64::MAX - 15, 16),
        (RAM_START, u32::MAX),
    ] {
        for writable in [false, true] {
            let mut case = Case::new();
            case.queue()
                .submit(&[Buffer {
                    address,
                    bytes,
                    writable,
                }])
                .unwrap();
            case.queue().kick().unwrap();
            case.assert_rejected();
        }
    }
}

#[test]
fn g07_a_buffer_across_two_adjacent_regions_is_one_buffer() {
    let second = RAM_END + 0x1_0000;
    let mut case = Case::with_ram(RamOptions {
        regions: vec![
            (RAM_START, RAM_BYTES),
            (RAM_END, 0x1_0000),
            (second + 0x1000, 0x1000),
        ],
        sealed: true,
    });
    let at = RAM_END - 8;
    case.guest.ram.write(at, b"0123456789abcdef").unwrap();
    let target = RAM_END - 0x100;
    let used = case
        .queue()
        .transact(&[Buffer::readable(at, 16), Buffer::writable(target, 16)])
        .unwrap();
    assert_eq!(used.bytes, 16);
    assert_eq!(
        case.guest.ram.read(target, 16).unwrap(),
        b"0123456789abcdef"
    );
    // A gap is a gap.
    case.queue()
        .submit(&[Buffer::readable(second - 8, 0x1010)])
        .unwrap();
    case.queue().kick().unwrap();
    case.assert_rejected();
}

#[test]
fn g08_rings_beyond_the_end_of_memory_or_on_top_of_each_other() {
    // Descriptor table, available ring, used ring.
    for rings in [
        [RAM_END - 16, RAM_START, RAM_START + 0x1000],
        [RAM_START, RAM_END - 2, RAM_START + 0x1000],
        [RAM_START, RAM_START + 0x1000, RAM_END - 4],
    ] {
        let mut case = Case::new();
        case.guest.stop_queue(0).unwrap();
        case.guest.raw.send_addresses(0, rings).unwrap();
        let queue = case.guest.queues.first().unwrap();
        case.guest.control.set_vring_kick(0, &queue.kick).unwrap();
        case.assert_broken_until_reset();
    }
    // All three at the same place: whatever it does to this ring, it does to no other.
    let mut case = Case::new();
    case.guest.stop_queue(0).unwrap();
    case.guest
        .raw
        .send_addresses(0, [RAM_START + 0x10_0000; 3])
        .unwrap();
    let queue = case.guest.queues.first().unwrap();
    case.guest.control.set_vring_kick(0, &queue.kick).unwrap();
    for _ in 0..100 {
        case.publish_and_kick(0);
    }
    assert_echo(&mut case.guest, 1, b"other ring");
    assert_echo(&mut case.neighbour.1, 0, b"neighbour");
    drop(case.guest);
    case.lab.assert_serves();
}

#[test]
fn g09_four_gigabytes_and_more_in_one_chain_are_refused() {
    // 60 * 128 MiB, each within a (sparse) region that is large enough.
    let mut case = Case::with_ram(RamOptions {
        regions: vec![(RAM_START, RAM_BYTES), (0x1_0000_0000, 0x800_0000)],
        sealed: true,
    });
    let buffers = [Buffer::readable(0x1_0000_0000, 0x800_0000); 60];
    case.queue().submit(&buffers).unwrap();
    case.queue().kick().unwrap();
    case.assert_rejected();
}

#[test]
fn g10_bad_indirect_tables_return_the_chain_unused() {
    // Address and length of the table.
    for (address, bytes) in [
        (RAM_END - 0x1000, 0),
        (RAM_END - 0x1000, 8),
        (RAM_END - 0x1000, 17),
        (RAM_START, 1 << 20 | 16),
        (RAM_END, 16),
        (u64::MAX - 15, 16),
        (0, 16),
    ] {
        let mut case = Case::new();
        case.queue()
            .write_descriptor(0, address, bytes, DESC_INDIRECT, 0)
            .unwrap();
        case.publish_and_kick(0);
        case.assert_rejected();
    }
}

#[test]
fn g10_an_indirect_table_inside_an_indirect_table_returns_the_chain_unused() {
    let mut case = Case::new();
    let table = RAM_END - 0x1000;
    // The table's only entry refers to the table itself: flags at byte 12.
    let mut entry = [0; 16];
    entry[..8].copy_from_slice(&table.to_le_bytes());
    entry[8] = 16;
    entry[12] = u8::try_from(DESC_INDIRECT).unwrap();
    case.guest.ram.write(table, &entry).unwrap();
    case.queue()
        .write_descriptor(0, table, 16, DESC_INDIRECT, 0)
        .unwrap();
    case.publish_and_kick(0);
    case.assert_rejected();
}

#[test]
fn g10_an_indirect_chain_longer_than_any_driver_makes_is_refused() {
    let mut case = Case::new();
    let table = RAM_END - 0x20_0000;
    let buffers = [Buffer::readable(RAM_START, 1); 1025];
    let queue = case.queue();
    queue.submit_indirect(table, &buffers).unwrap();
    queue.kick().unwrap();
    case.assert_rejected();

    let mut case = Case::new();
    let queue = case.queue();
    queue.submit_indirect(table, &buffers[..1024]).unwrap();
    queue.kick().unwrap();
    queue.wait().unwrap();
    assert_eq!(case.counters.chains_rejected.load(Ordering::Relaxed), 0);
    case.assert_unharmed();
}

#[test]
fn g11_readable_after_writable_returns_the_chain_unused() {
    let mut case = Case::new();
    case.queue()
        .submit(&[
            Buffer::writable(RAM_END - 64, 8),
            Buffer::readable(RAM_END - 32, 8),
        ])
        .unwrap();
    case.queue().kick().unwrap();
    case.assert_rejected();
}

#[test]
fn g12_a_missing_part_of_a_request_reads_as_zero_bytes() {
    let mut case = Case::new();
    for buffers in [
        [Buffer::readable(RAM_END - 64, 8)],
        [Buffer::writable(RAM_END - 64, 8)],
    ] {
        assert_eq!(case.queue().transact(&buffers).unwrap().bytes, 0);
    }
    case.assert_unharmed();
}

#[test]
fn g13_one_head_made_available_twice_comes_back_twice() {
    let mut case = Case::new();
    case.queue()
        .write_descriptor(0, RAM_END - 64, 8, DESC_WRITE, 0)
        .unwrap();
    case.queue().publish(0).unwrap();
    case.publish_and_kick(0);
    assert_eq!(case.queue().wait().unwrap().head, 0);
    assert_eq!(case.queue().wait().unwrap().head, 0);
    case.assert_unharmed();
}

#[test]
fn g14_a_request_of_one_byte_descriptors_is_read_whole() {
    let mut case = Case::new();
    let (source, target) = (RAM_END - 0x200, RAM_END - 0x100);
    let data = *b"one byte each, backwards";
    let length = u64::try_from(data.len()).unwrap();
    for (at, byte) in (0..length).rev().zip(data) {
        case.guest.ram.write(source + at, &[byte]).unwrap();
    }
    let mut buffers: Vec<Buffer> = (0..length)
        .rev()
        .map(|at| Buffer::readable(source + at, 1))
        .collect();
    buffers.extend((0..length).map(|at| Buffer::writable(target + at, 1)));
    case.queue().transact(&buffers).unwrap();
    assert_eq!(case.guest.ram.read(target, data.len()).unwrap(), data);
    case.assert_unharmed();
}

#[test]
fn g15_buffers_on_top_of_each_other_and_of_the_ring() {
    let mut case = Case::new();
    let [descriptors, available, used] = case.queue().addresses();
    let same = RAM_END - 64;
    let echoed = case
        .queue()
        .transact(&[Buffer::readable(same, 32), Buffer::writable(same, 32)])
        .unwrap();
    assert_eq!(echoed.bytes, 32);
    // The device writes where the ring is; only this ring may suffer.
    for at in [descriptors, available, used] {
        let queue = case.queue();
        if queue
            .submit(&[Buffer::readable(same, 512), Buffer::writable(at, 512)])
            .is_err()
        {
            break;
        }
        queue.kick().unwrap();
        assert_echo(&mut case.guest, 1, b"other ring");
    }
    assert_echo(&mut case.neighbour.1, 0, b"neighbour");
    assert_eq!(case.lab.session.refusals(), 0);
    drop(case.guest);
    case.lab.assert_serves();
}

#[test]
fn g17_ten_thousand_kicks_without_work_change_nothing() {
    let mut case = Case::new();
    for _ in 0..10_000 {
        case.queue().kick().unwrap();
    }
    case.assert_unharmed();
}

#[test]
fn g18_reset_and_start_over_and_over_during_requests() {
    let mut case = Case::new();
    for round in 0..50_u16 {
        for _ in 0..8 {
            case.queue()
                .submit(&[Buffer::writable(RAM_END - 64, 8)])
                .unwrap();
        }
        case.queue().kick().unwrap();
        if round % 2 == 0 {
            case.guest.stop_queue(0).unwrap();
        } else {
            case.guest.control.reset_device().unwrap();
            case.guest
                .control
                .set_features(case.guest.features)
                .unwrap();
            case.guest
                .start_queue(1, case.guest.queues[1].next_available())
                .unwrap();
        }
        case.queue().reset().unwrap();
        case.guest.start_queue(0, 0).unwrap();
    }
    case.lab.device.wait_told(Told::Reset, 25);
    case.assert_unharmed();
}

#[test]
fn g19_disable_and_enable_in_the_middle_of_bursts_loses_nothing() {
    let mut case = Case::new();
    for _ in 0..50 {
        for _ in 0..8 {
            case.queue()
                .submit(&[Buffer::writable(RAM_END - 64, 8)])
                .unwrap();
        }
        case.queue().kick().unwrap();
        case.guest.control.set_vring_enable(0, false).unwrap();
        case.guest.control.set_vring_enable(0, true).unwrap();
        for _ in 0..8 {
            case.queue().wait().unwrap();
        }
    }
    case.assert_unharmed();
}

#[test]
fn a_device_that_fails_its_ring_is_left_alone_until_the_driver_resets_it() {
    let case = Case::new();
    case.lab.device.wait_told(Told::Started(0), 1);
    let ring = case.lab.device.queue(0).unwrap();
    ring.fail(&std::io::Error::other(
        "the driver broke the device's own rules",
    ));
    ring.fail(&std::io::Error::other("again"));
    assert!(ring.lock().is_none());
    case.assert_broken_until_reset();
}

//! QEMU's message order, as recorded (QEMU 7.2, network device with two rings).
//!
//! At realize: features, protocol features, queue number, owner, call events, and the early
//! SET_VRING_ENABLE before any SET_FEATURES. Then the firmware's driver starts and stops, the
//! device is reset, and the kernel's driver starts.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

mod support;

use std::os::fd::AsRawFd;

use orimono_tests::front_end::{Guest, GuestOptions, GuestRam, RawFrontEnd, request};
use support::{Lab, Told, assert_echo};
use vhost_user_session::StopReason;

const FIRMWARE_FEATURES: u64 = 1 << 32 | 1 << 30;
const KERNEL_FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28 | 1 << 5;

fn index(ring: usize) -> u64 {
    u64::try_from(ring).unwrap()
}

/// What QEMU does until the guest's driver comes.
fn realize(raw: &RawFrontEnd, guest: &GuestParts) {
    let features = raw
        .ask(request::GET_FEATURES, &[], &[])
        .unwrap()
        .value()
        .unwrap();
    assert_ne!(features & 1 << 30, 0);
    let protocol = raw
        .ask(request::GET_PROTOCOL_FEATURES, &[], &[])
        .unwrap()
        .value()
        .unwrap();
    raw.send(request::SET_PROTOCOL_FEATURES, &protocol.to_le_bytes(), &[])
        .unwrap();
    assert_eq!(
        raw.ask(request::GET_QUEUE_NUM, &[], &[])
            .unwrap()
            .value()
            .unwrap(),
        2
    );
    raw.send(request::SET_OWNER, &[], &[]).unwrap();
    assert_eq!(
        raw.ask(request::GET_FEATURES, &[], &[])
            .unwrap()
            .value()
            .unwrap(),
        features
    );
    for (ring, queue) in guest.queues.iter().enumerate() {
        raw.send(
            request::SET_VRING_CALL,
            &index(ring).to_le_bytes(),
            &[queue.call.as_raw_fd()],
        )
        .unwrap();
        raw.send(
            request::SET_VRING_ERR,
            &index(ring).to_le_bytes(),
            &[queue.error.as_raw_fd()],
        )
        .unwrap();
    }
    for ring in 0..2 {
        let state = (ring | 1_u64 << 32).to_le_bytes();
        let ack = raw.ask(request::SET_VRING_ENABLE, &state, &[]).unwrap();
        assert_eq!(ack.value().unwrap(), 0);
    }
}

struct GuestParts {
    ram: GuestRam,
    queues: Vec<orimono_tests::front_end::DriverQueue>,
}

/// A driver sets DRIVER_OK.
fn start(raw: &RawFrontEnd, guest: &GuestParts, features: u64) {
    let table: Vec<[u64; 4]> = guest
        .ram
        .table()
        .iter()
        .map(|region| {
            [
                region.guest_phys_addr,
                region.memory_size,
                region.userspace_addr,
                region.mmap_offset,
            ]
        })
        .collect();
    raw.send(request::SET_FEATURES, &features.to_le_bytes(), &[])
        .unwrap();
    raw.send_table(&table, &[guest.ram.file(0).unwrap().as_raw_fd()])
        .unwrap();
    for (ring, queue) in guest.queues.iter().enumerate() {
        let number = u32::try_from(ring).unwrap();
        raw.send_state(request::SET_VRING_NUM, number, u32::from(queue.size()))
            .unwrap();
        raw.send_state(
            request::SET_VRING_BASE,
            number,
            u32::from(queue.next_available()),
        )
        .unwrap();
        raw.send_addresses(number, queue.addresses()).unwrap();
        raw.send(
            request::SET_VRING_KICK,
            &index(ring).to_le_bytes(),
            &[queue.kick.as_raw_fd()],
        )
        .unwrap();
        raw.send(
            request::SET_VRING_CALL,
            &index(ring).to_le_bytes(),
            &[queue.call.as_raw_fd()],
        )
        .unwrap();
    }
}

/// A driver resets the device.
fn stop(raw: &RawFrontEnd) {
    for ring in 0..2_u64 {
        let reply = raw
            .ask(request::GET_VRING_BASE, &ring.to_le_bytes(), &[])
            .unwrap();
        assert_eq!(reply.request, request::GET_VRING_BASE);
        assert_eq!(reply.flags, 5);
    }
}

#[test]
fn a_boot_of_qemu_with_firmware_reset_and_kernel_is_served() {
    let lab = Lab::new();
    // Only its memory, rings and connection are used.
    let Guest {
        raw,
        mut ram,
        control,
        ..
    } = Guest::negotiate_nothing(
        &lab.path,
        &GuestOptions {
            queues: 2,
            ..Default::default()
        },
    )
    .unwrap();
    let queues = (0..2)
        .map(|_ring| orimono_tests::front_end::DriverQueue::new(&mut ram, 64, true).unwrap())
        .collect();
    let mut parts = GuestParts { ram, queues };
    realize(&raw, &parts);
    for round in 1..=3 {
        // Firmware polls, without EVENT_IDX.
        start(&raw, &parts, FIRMWARE_FEATURES);
        lab.device.wait_told(Told::Started(0), round);
        stop(&raw);
        lab.device
            .wait_told(Told::Stopped(0, StopReason::Drain), round);
    }
    assert_eq!(
        raw.ask(request::RESET_DEVICE, &[], &[])
            .unwrap()
            .value()
            .unwrap(),
        0
    );
    lab.device.wait_told(Told::Reset, 1);
    for ring in 0..2 {
        // QEMU enables the rings again, still before SET_FEATURES.
        raw.send_state(request::SET_VRING_ENABLE, ring, 1).unwrap();
    }
    for queue in &mut parts.queues {
        queue.reset().unwrap();
    }
    start(&raw, &parts, KERNEL_FEATURES);
    let mut guest = Guest {
        control,
        raw,
        ram: parts.ram,
        queues: parts.queues,
        features: KERNEL_FEATURES,
    };
    for _ in 0..100 {
        assert_echo(&mut guest, 0, b"kernel");
        assert_echo(&mut guest, 1, b"kernel");
    }
    let told = lab.device.told.lock().unwrap().clone();
    let features: Vec<Told> = told
        .into_iter()
        .filter(|one| matches!(one, Told::Features(_)))
        .collect();
    // The bit that was acknowledged for QEMU is not the driver's choice.
    let expected = [
        FIRMWARE_FEATURES,
        FIRMWARE_FEATURES,
        FIRMWARE_FEATURES,
        KERNEL_FEATURES,
    ]
    .map(|bits| Told::Features(bits & !(1 << 30)));
    assert_eq!(features, expected);
    assert_eq!(lab.session.refusals(), 0);
    drop(guest);
    lab.assert_serves();
}

//! F: a front end that breaks the rules of the protocol (adversarial cases F-01 to F-14).
//!
//! Outcome of each: the session is closed with a reason that names the rule, no other device
//! notices, and the next front end is served.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

mod support;

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
use orimono_tests::front_end::{
    Buffer, Guest, GuestOptions, GuestRam, PATIENCE, RamOptions, RawFrontEnd, request,
    sealed_memfd, unsealed_memfd,
};
use support::{Lab, Told, assert_echo};
use vhost::VhostBackend;
use vhost_user_session::SessionState;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EFD_SEMAPHORE, EventFd};

const PAGE: u64 = 4096;

/// A front end that has come as far as SET_OWNER, features and memory.
fn negotiated(lab: &Lab) -> Guest {
    let options = GuestOptions {
        queues: 2,
        ..Default::default()
    };
    Guest::negotiate(&lab.path, &options).unwrap()
}

/// The session is closed, and its reason contains `words`.
fn assert_closed(lab: &Lab, raw: &RawFrontEnd, words: &str) {
    raw.wait_closed().unwrap();
    let reason = lab.refusal();
    assert!(
        reason.contains(words),
        "reason {reason:?} does not contain {words:?}"
    );
}

/// `hostile` is refused with `words`, on a device and beside a neighbour that are both unharmed.
fn check(words: &str, hostile: impl Fn(&mut Guest)) {
    let lab = Lab::new();
    let other = Lab::new();
    let mut neighbour = other.guest();
    let mut guest = negotiated(&lab);
    hostile(&mut guest);
    assert_closed(&lab, &guest.raw, words);
    drop(guest);
    assert_echo(&mut neighbour, 0, b"neighbour");
    lab.assert_serves();
}

/// As [`check`], with both rings running.
fn check_running(words: &str, hostile: impl Fn(&mut Guest)) {
    check(words, |guest| {
        guest.start_queue(0, 0).unwrap();
        guest.start_queue(1, 0).unwrap();
        assert_echo(guest, 0, b"running");
        hostile(guest);
    });
}

#[test]
fn f01_bad_headers_close_the_session_with_a_reason() {
    for (header, words) in [
        ([1, 1, 4097], "payload"),
        ([1, 1, u32::MAX - 15], "payload"),
        ([1, 1, 8], "payload"),
        ([2, 1, 0], "payload"),
        ([5, 1, 0], "payload"),
        ([1, 0, 0], "flags"),
        ([1, 2, 0], "flags"),
        ([1, 5, 0], "flags"),
        ([1, 0x101, 0], "flags"),
        ([0, 1, 0], "unknown"),
        ([45, 1, 0], "unknown"),
        ([u32::MAX, 1, 0], "unknown"),
        ([24, 1, 0], "GET_CONFIG"),
    ] {
        check(words, |guest| {
            guest.raw.send_with_header(header, &[], &[]).unwrap()
        });
    }
}

#[test]
fn f02_features_that_were_not_offered_close_the_session_without_effect() {
    for bit in [0, 2, 34, 63] {
        check("not offered", |guest| {
            let features = guest.features | 1_u64 << bit;
            guest
                .raw
                .send(request::SET_FEATURES, &features.to_le_bytes(), &[])
                .unwrap();
        });
        check("not offered", |guest| {
            let features = 1_u64 << 12 | 1_u64 << bit.max(15);
            guest
                .raw
                .send(request::SET_PROTOCOL_FEATURES, &features.to_le_bytes(), &[])
                .unwrap();
        });
    }
    let lab = Lab::new();
    let guest = negotiated(&lab);
    let told = lab.device.told.lock().unwrap().clone();
    guest
        .raw
        .send(request::SET_FEATURES, &u64::MAX.to_le_bytes(), &[])
        .unwrap();
    guest.raw.wait_closed().unwrap();
    lab.device.wait_told(Told::Disconnected, 1);
    assert_eq!(lab.device.told.lock().unwrap().len(), told.len() + 1);
}

#[test]
fn f02_features_that_change_under_a_running_ring_close_the_session() {
    check_running("while ring 0 is running", |guest| {
        let features = guest.features & !(1 << 29);
        guest
            .raw
            .send(request::SET_FEATURES, &features.to_le_bytes(), &[])
            .unwrap();
    });
}

#[test]
fn f03_ring_indexes_out_of_range_close_the_session_with_a_reason() {
    let numbers = [
        request::SET_VRING_NUM,
        request::SET_VRING_BASE,
        request::GET_VRING_BASE,
        request::SET_VRING_ENABLE,
        request::SET_VRING_ADDR,
        request::SET_VRING_KICK,
        request::SET_VRING_CALL,
        request::SET_VRING_ERR,
    ];
    for number in numbers {
        // 0x100 is the flag "no descriptor" for the last three.
        for index in [2_u32, 255, 0x200, 0x1_0000, u32::MAX] {
            check("for ring", |guest| {
                let event = EventFd::new(EFD_NONBLOCK).unwrap();
                let mut payload = u64::from(index).to_le_bytes().to_vec();
                let mut descriptors: Vec<RawFd> = Vec::new();
                match number {
                    request::SET_VRING_ADDR => payload.resize(40, 0),
                    request::SET_VRING_KICK | request::SET_VRING_CALL | request::SET_VRING_ERR => {
                        descriptors.push(event.as_raw_fd())
                    }
                    request::SET_VRING_NUM => payload[4] = 64,
                    _ => {}
                }
                guest.raw.send(number, &payload, &descriptors).unwrap();
            });
        }
    }
}

#[test]
fn f04_vring_num_zero_or_odd_closes_the_session_with_a_reason() {
    for size in [0, 3, 63, 512, 32769, 0x1_0000, 0x1_0040, u32::MAX] {
        check("power of two up to 256", |guest| {
            guest
                .raw
                .send_state(request::SET_VRING_NUM, 0, size)
                .unwrap();
        });
    }
}

#[test]
fn f04_misplaced_ring_addresses_close_the_session_with_a_reason() {
    let ram = RamOptions::default().regions[0];
    let (start, end) = (ram.0, ram.0 + ram.1);
    for (addresses, words) in [
        ([start + 8, start, start], "descriptor table"),
        ([start, start + 1, start], "available ring"),
        ([start, start, start + 2], "used ring"),
        ([end, start, start], "not in the memory table"),
        ([start, start - 2, start], "not in the memory table"),
        (
            [start, start, u64::MAX - 0x7000_0000_0003],
            "not in the memory table",
        ),
    ] {
        check(words, |guest| {
            guest.raw.send_addresses(0, addresses).unwrap()
        });
    }
    check("base 65536", |guest| {
        guest
            .raw
            .send_state(request::SET_VRING_BASE, 0, 65536)
            .unwrap();
    });
    check("with value 2", |guest| {
        guest
            .raw
            .send_state(request::SET_VRING_ENABLE, 0, 2)
            .unwrap();
    });
}

#[test]
fn f04_addresses_before_memory_and_kicks_before_addresses_close_the_session() {
    let lab = Lab::new();
    let raw = RawFrontEnd::connect(&lab.path).unwrap();
    raw.send_addresses(0, [PAGE; 3]).unwrap();
    assert_closed(&lab, &raw, "share=on");
    check("no addresses", |guest| {
        let kick = guest.queues[0].kick.as_raw_fd();
        guest
            .raw
            .send(request::SET_VRING_KICK, &0_u64.to_le_bytes(), &[kick])
            .unwrap();
    });
    check("polling", |guest| {
        guest
            .raw
            .send(request::SET_VRING_KICK, &0x100_u64.to_le_bytes(), &[])
            .unwrap();
    });
}

#[test]
fn f05_messages_in_any_order_never_harm_the_next_session() {
    // A small generator is enough: every sequence must leave the device usable.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |limit: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % limit
    };
    let lab = Lab::new();
    for _ in 0..300 {
        let ram = GuestRam::new(&RamOptions::default()).unwrap();
        let start = RamOptions::default().regions[0].0;
        let raw = RawFrontEnd::connect(&lab.path).unwrap();
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        for _ in 0..40 {
            let ring = u32::try_from(random(3)).unwrap();
            let sent = match random(13) {
                0 => raw.send(
                    request::SET_FEATURES,
                    &(1_u64 << 30 | 1 << 32).to_le_bytes(),
                    &[],
                ),
                1 => raw.send(request::SET_OWNER, &[], &[]),
                2 => raw.send_table(
                    &[[start, ram_bytes(), GuestRam::front_end_address(start), 0]],
                    &[ram.file(0).unwrap().as_raw_fd()],
                ),
                3 => raw.send_state(request::SET_VRING_NUM, ring, 1 << random(9)),
                4 => raw.send_addresses(ring, [start + random(64) * 16; 3]),
                5 => raw.send_state(
                    request::SET_VRING_BASE,
                    ring,
                    u32::try_from(random(70_000)).unwrap(),
                ),
                6 => raw.send_state(request::GET_VRING_BASE, ring, 0),
                7 | 8 => raw.send(
                    request::SET_VRING_KICK,
                    &u64::from(ring).to_le_bytes(),
                    &[event.as_raw_fd()],
                ),
                9 => raw.send(
                    request::SET_VRING_CALL,
                    &u64::from(ring).to_le_bytes(),
                    &[event.as_raw_fd()],
                ),
                10 => raw.send_state(
                    request::SET_VRING_ENABLE,
                    ring,
                    u32::try_from(random(2)).unwrap(),
                ),
                11 => raw.send(request::RESET_DEVICE, &[], &[]),
                _ => raw.send(request::GET_FEATURES, &[], &[]),
            };
            drop(event.write(1));
            if sent.is_err() {
                break;
            }
        }
        drop(raw);
    }
    lab.assert_serves();
}

fn ram_bytes() -> u64 {
    RamOptions::default().regions.first().unwrap().1
}

#[test]
fn f06_unexpected_and_missing_descriptors_close_the_session() {
    for number in [1, 2, 3, 8, 9, 10, 11, 15, 16, 17, 18, 20, 34] {
        for count in [1, 32, 253] {
            check("file descriptors", |guest| {
                let payload = match number {
                    9 => 40,
                    2 | 8 | 10 | 11 | 16 | 18 | 20 => 8,
                    _ => 0,
                };
                let event = EventFd::new(EFD_NONBLOCK).unwrap();
                let descriptors = vec![event.as_raw_fd(); count];
                guest
                    .raw
                    .send(number, &vec![0; payload], &descriptors)
                    .unwrap();
            });
        }
    }
    for number in [
        request::SET_VRING_KICK,
        request::SET_VRING_CALL,
        request::SET_VRING_ERR,
    ] {
        check("came with 0 file descriptors, 1", |guest| {
            guest.raw.send(number, &0_u64.to_le_bytes(), &[]).unwrap();
        });
        check("came with 2 file descriptors, 1", |guest| {
            let fd = guest.queues[0].kick.as_raw_fd();
            guest
                .raw
                .send(number, &0_u64.to_le_bytes(), &[fd, fd])
                .unwrap();
        });
        check("came with 1 file descriptors, 0", |guest| {
            let fd = guest.queues[0].kick.as_raw_fd();
            guest
                .raw
                .send(number, &0x100_u64.to_le_bytes(), &[fd])
                .unwrap();
        });
    }
}

#[test]
fn f07_inflight_requests_were_not_offered() {
    for number in [
        request::GET_INFLIGHT_FD,
        request::GET_INFLIGHT_FD + 1,
        request::ADD_MEM_REG,
    ] {
        check("not negotiated", |guest| {
            guest.raw.send(number, &[0xff; 24], &[]).unwrap()
        });
    }
}

#[test]
fn f08_parameters_of_a_running_ring_do_not_change() {
    check_running("is running", |guest| {
        guest
            .raw
            .send_state(request::SET_VRING_NUM, 0, 128)
            .unwrap();
    });
    check_running("is running", |guest| {
        guest.raw.send_state(request::SET_VRING_BASE, 0, 7).unwrap();
    });
    check_running("is running", |guest| {
        let [descriptors, available, used] = guest.queues[0].addresses();
        guest
            .raw
            .send_addresses(0, [descriptors + 16, available, used])
            .unwrap();
    });
}

#[test]
fn f08_the_same_addresses_and_a_new_kick_are_fine_on_a_running_ring() {
    let lab = Lab::new();
    let mut guest = lab.guest();
    assert_echo(&mut guest, 0, b"before");
    guest
        .raw
        .send_addresses(0, guest.queues[0].addresses())
        .unwrap();
    let kick = EventFd::new(0).unwrap();
    guest.control.set_vring_kick(0, &kick).unwrap();
    let old = std::mem::replace(&mut guest.queues[0].kick, kick);
    // First with the old eventfd silent: the new one alone has to wake the ring.
    assert_echo(&mut guest, 0, b"new kick");
    // The old eventfd must wake nobody any more.
    old.write(1).unwrap();
    assert_echo(&mut guest, 0, b"after");
    assert_eq!(old.read().unwrap(), 1);
    assert_eq!(lab.session.refusals(), 0);
}

#[test]
fn f09_dirty_logs_that_do_not_fit_close_the_session() {
    let end = RamOptions::default().regions[0].0 + ram_bytes();
    let needed = end.div_ceil(PAGE).div_ceil(8);
    for (bytes, offset, words) in [
        (0, 0, "smaller"),
        (needed - 1, 0, "smaller"),
        (PAGE, PAGE, "file of 8192 bytes"),
        (PAGE, u64::MAX - 100, "wraps"),
        (u64::MAX, 1, "wraps"),
        (1 << 62, 0, "needs a file"),
        (needed, 1, "cannot be mapped"),
    ] {
        check(words, |guest| {
            let log = sealed_memfd(PAGE).unwrap();
            let mut payload = u64::to_le_bytes(bytes).to_vec();
            payload.extend_from_slice(&u64::to_le_bytes(offset));
            guest
                .raw
                .send(request::SET_LOG_BASE, &payload, &[log.as_raw_fd()])
                .unwrap();
        });
    }
    check("not sealed", |guest| {
        let log = unsealed_memfd(PAGE).unwrap();
        let mut payload = PAGE.to_le_bytes().to_vec();
        payload.extend_from_slice(&[0; 8]);
        guest
            .raw
            .send(request::SET_LOG_BASE, &payload, &[log.as_raw_fd()])
            .unwrap();
    });
}

#[test]
fn f10_bad_memory_tables_close_the_session_with_a_reason() {
    let uva = GuestRam::front_end_address(0);
    let table: &[(&[[u64; 4]], &str)] = &[
        (&[[0, 0, uva, 0]], "empty"),
        (&[[u64::MAX - PAGE + 2, PAGE, uva, 0]], "wraps"),
        (&[[0, PAGE, u64::MAX - 1, 0]], "wraps"),
        (&[[0, PAGE, uva, u64::MAX - 1]], "wraps"),
        (&[[0, 1 << 63, uva, 0]], "needs a file"),
        (&[[0, 5 * PAGE, uva, 0]], "needs a file"),
        (&[[0, PAGE, uva, 4 * PAGE]], "needs a file"),
        (&[[0, PAGE, uva, 1]], "back end"),
        (&[[0, 2 * PAGE, uva, 0], [PAGE, PAGE, uva, 0]], "overlap"),
        (&[[PAGE, PAGE, uva, 0], [0, 4 * PAGE, uva, 0]], "overlap"),
    ];
    for (regions, words) in table {
        check(words, |guest| {
            let file = sealed_memfd(4 * PAGE).unwrap();
            let descriptors = vec![file.as_raw_fd(); regions.len()];
            guest.raw.send_table(regions, &descriptors).unwrap();
        });
    }
    check("33 regions", |guest| {
        let file = sealed_memfd(PAGE).unwrap();
        let regions: Vec<[u64; 4]> = (0..33).map(|n| [n * PAGE, PAGE, uva, 0]).collect();
        guest
            .raw
            .send_table(&regions, &[file.as_raw_fd(); 32])
            .unwrap();
    });
    check("0 regions", |guest| guest.raw.send_table(&[], &[]).unwrap());
    check("2 file descriptors, 1", |guest| {
        let file = sealed_memfd(PAGE).unwrap();
        guest
            .raw
            .send_table(&[[0, PAGE, uva, 0]], &[file.as_raw_fd(); 2])
            .unwrap();
    });
    check("not a file", |guest| {
        let (socket, _other) = UnixStream::pair().unwrap();
        guest
            .raw
            .send_table(&[[0, PAGE, uva, 0]], &[socket.as_raw_fd()])
            .unwrap();
    });
}

#[test]
fn f10_a_new_memory_table_under_io_keeps_old_requests_alive() {
    let lab = Lab::new();
    lab.device
        .hold
        .store(true, std::sync::atomic::Ordering::Relaxed);
    let mut guest = lab.guest();
    let target = guest.ram.allocate(64, 8).unwrap();
    guest.ram.write(target, b"old data").unwrap();
    let buffers = [Buffer::readable(target, 8), Buffer::writable(target + 8, 8)];
    guest.queue(0).unwrap().submit(&buffers).unwrap();
    guest.queue(0).unwrap().kick().unwrap();
    lab.device.wait_held(1);
    for _ in 0..20 {
        guest.control.set_mem_table(&guest.ram.table()).unwrap();
    }
    // Memory that does not hold the request at all.
    let start = RamOptions::default().regions[0].0;
    let file = sealed_memfd(PAGE).unwrap();
    let region = [start, PAGE, GuestRam::front_end_address(start), 0];
    guest
        .raw
        .send_table(&[region], &[file.as_raw_fd()])
        .unwrap();
    assert!(guest.raw.ask(request::GET_FEATURES, &[], &[]).is_ok());
    lab.device.release();
    assert_eq!(guest.ram.read(target + 8, 8).unwrap(), b"old data");
    drop(guest);
    lab.device
        .hold
        .store(false, std::sync::atomic::Ordering::Relaxed);
    lab.assert_serves();
}

#[test]
fn f11_memory_that_could_shrink_is_refused_unless_allowed() {
    let lab = Lab::new();
    let options = GuestOptions {
        ram: RamOptions {
            sealed: false,
            ..Default::default()
        },
        ..Default::default()
    };
    assert!(Guest::connect(&lab.path, &options).is_err());
    let reason = lab.refusal();
    assert!(
        reason.contains("seal=on") && reason.contains("--allow-unsealed-memory"),
        "{reason}"
    );
    lab.assert_serves();

    let lab = Lab::with(support::Echo::new(2), |config| {
        config.allow_unsealed_memory = true
    });
    let mut guest = Guest::connect(&lab.path, &options).unwrap();
    assert_echo(&mut guest, 0, b"trusted");
}

#[test]
fn f11_a_file_on_disk_is_refused() {
    check("not sealed", |guest| {
        let file = tempfile::tempfile().unwrap();
        file.set_len(PAGE).unwrap();
        guest
            .raw
            .send_table(&[[0, PAGE, 0, 0]], &[file.as_raw_fd()])
            .unwrap();
    });
}

#[test]
fn f12_events_of_every_other_kind_close_the_session_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let (socket, peer) = UnixStream::pair().unwrap();
    drop(peer);
    let kinds: Vec<OwnedFd> = vec![
        reader.into(),
        writer.into(),
        socket.into(),
        UnixListener::bind(folder.path().join("l")).unwrap().into(),
        File::create(folder.path().join("f")).unwrap().into(),
        File::open("/dev/null").unwrap().into(),
        Epoll::new(EpollCreateFlags::empty()).unwrap().0,
        TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::empty())
            .unwrap()
            .into(),
        sealed_memfd(PAGE).unwrap().into(),
    ];
    for number in [
        request::SET_VRING_KICK,
        request::SET_VRING_CALL,
        request::SET_VRING_ERR,
    ] {
        for kind in &kinds {
            check("not with an eventfd", |guest| {
                guest
                    .raw
                    .send(number, &0_u64.to_le_bytes(), &[kind.as_raw_fd()])
                    .unwrap();
            });
        }
    }
}

#[test]
fn f12_a_semaphore_is_refused_where_the_kernel_tells() {
    let event = EventFd::new(EFD_SEMAPHORE).unwrap();
    let details = format!("/proc/self/fdinfo/{}", event.as_raw_fd());
    let known = std::fs::read_to_string(details)
        .unwrap()
        .contains("eventfd-semaphore: 1");
    let lab = Lab::new();
    let guest = negotiated(&lab);
    let sent = guest.raw.ask(
        request::SET_VRING_CALL,
        &0_u64.to_le_bytes(),
        &[event.as_raw_fd()],
    );
    assert_eq!(sent.unwrap().value().unwrap(), u64::from(known));
}

#[test]
fn f12_a_full_call_event_blocks_nobody() {
    let lab = Lab::new();
    let mut guest = lab.guest();
    // Blocking on our side, and full.
    let call = EventFd::new(0).unwrap();
    call.write(u64::MAX - 1).unwrap();
    guest.control.set_vring_call(0, &call).unwrap();
    let target = guest.ram.allocate(64, 8).unwrap();
    for _ in 0..32 {
        guest
            .queue(0)
            .unwrap()
            .submit(&[Buffer::writable(target, 8)])
            .unwrap();
    }
    guest.queue(0).unwrap().kick().unwrap();
    assert_eq!(
        guest.stop_queue(0).unwrap(),
        guest.queue(0).unwrap().used_index().unwrap()
    );
    assert_echo(&mut guest, 1, b"other ring");
}

#[test]
fn f12_a_kick_that_the_front_end_takes_back_ends_no_thread() {
    let lab = Lab::new();
    let mut guest = lab.guest();
    for round in 0..2000_u32 {
        guest.queues[0].kick.write(1).unwrap();
        drop(guest.queues[0].kick.read());
        if round % 500 == 0 {
            assert_echo(&mut guest, 0, b"alive");
        }
    }
    assert_echo(&mut guest, 0, b"alive");
    assert_eq!(lab.session.refusals(), 0);
}

#[test]
fn f13_half_a_message_and_silence_give_the_next_connection_a_turn() {
    let quick = |config: &mut vhost_user_session::SessionConfig| {
        config.handshake_max = Duration::from_millis(60);
    };
    let lab = Lab::with(support::Echo::new(2), quick);
    for bytes in [
        &[][..],
        &[1, 0, 0],
        &[2, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 1],
    ] {
        let raw = RawFrontEnd::connect(&lab.path).unwrap();
        raw.send_bytes(bytes, &[]).unwrap();
        assert_closed(&lab, &raw, "not complete after 60 ms");
    }
    // Idle after SET_OWNER is no fault: a guest may sleep for ever.
    let raw = RawFrontEnd::connect(&lab.path).unwrap();
    raw.send(request::SET_OWNER, &[], &[]).unwrap();
    raw.ask(request::GET_FEATURES, &[], &[]).unwrap();
    assert!(
        !lab.session
            .wait_for(SessionState::Waiting, Duration::from_millis(150))
    );
    raw.ask(request::GET_FEATURES, &[], &[]).unwrap();
    // But half a message is.
    raw.send_bytes(&[1], &[]).unwrap();
    assert_closed(&lab, &raw, "a message was not complete");
}

#[test]
fn f13_replies_that_nobody_reads_end_the_session() {
    let quick = |config: &mut vhost_user_session::SessionConfig| {
        config.handshake_max = Duration::from_millis(60);
    };
    let lab = Lab::with(support::Echo::new(2), quick);
    let raw = RawFrontEnd::connect(&lab.path).unwrap();
    raw.send(request::SET_OWNER, &[], &[]).unwrap();
    while raw.send(request::GET_FEATURES, &[], &[]).is_ok() {}
    assert!(lab.session.wait_for(SessionState::Waiting, PATIENCE));
    assert!(
        lab.refusal().contains("replies are not read"),
        "{}",
        lab.refusal()
    );
}

#[test]
fn f14_connect_and_disconnect_in_quick_succession() {
    let lab = Lab::new();
    for round in 0..200 {
        let raw = RawFrontEnd::connect(&lab.path).unwrap();
        if round % 2 == 0 {
            raw.send(request::GET_FEATURES, &[], &[]).unwrap();
        }
    }
    lab.assert_serves();
}

#[test]
fn f14_disconnect_between_kick_and_completion() {
    let lab = Lab::new();
    for _ in 0..20 {
        lab.device
            .hold
            .store(true, std::sync::atomic::Ordering::Relaxed);
        let mut guest = lab.guest();
        let target = guest.ram.allocate(64, 8).unwrap();
        guest
            .queue(0)
            .unwrap()
            .submit(&[Buffer::writable(target, 8)])
            .unwrap();
        guest.queue(0).unwrap().kick().unwrap();
        lab.device.wait_held(1);
        drop(guest);
        // Completed from another thread, before, while or after the session ends.
        lab.device.release();
        assert!(lab.session.wait_for(SessionState::Waiting, PATIENCE));
        lab.device
            .hold
            .store(false, std::sync::atomic::Ordering::Relaxed);
    }
    lab.assert_serves();
}

//! What a well-behaved guest gets: I/O, restarts, and a device that outlives every connection.

mod support;

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use orimono_tests::front_end::{Buffer, GuestOptions, PATIENCE, request};
use support::{ECHO_FEATURE, Echo, Lab, Told, assert_echo, within};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost_user_session::{
    ChainError, Session, SessionConfig, SessionError, SessionState, SocketError, SocketSource,
    StopReason, VirtioDevice,
};

const EVENT_IDX: u64 = 1 << 29;
const INDIRECT: u64 = 1 << 28;
const LOG_ALL: u64 = 1 << 26;

#[test]
fn requests_come_back_on_every_queue_with_and_without_event_idx() {
    let lab = Lab::new();
    for without in [0, EVENT_IDX] {
        let mut guest = lab.guest_with(|options| options.without_features |= without);
        for round in 0..200_u32 {
            assert_echo(&mut guest, 0, format!("first {round}").as_bytes());
            assert_echo(&mut guest, 1, format!("second {round}").as_bytes());
        }
        drop(guest);
        assert!(lab.session.wait_for(SessionState::Waiting, PATIENCE));
    }
    assert_eq!(lab.session.refusals(), 0);
}

#[test]
fn indirect_chains_of_many_buffers_come_back_whole() {
    let lab = Lab::new();
    let mut guest = lab.guest();
    assert_ne!(guest.features & INDIRECT, 0);
    let table = guest.ram.allocate(16 * 128, 16).unwrap();
    let source = guest.ram.allocate(64 * 7, 8).unwrap();
    let target = guest.ram.allocate(64 * 7, 8).unwrap();
    let data: Vec<u8> = (0..64 * 7_u32)
        .map(|n| u8::try_from(n % 251).unwrap())
        .collect();
    guest.ram.write(source, &data).unwrap();
    let mut buffers: Vec<Buffer> = (0..64)
        .map(|n| Buffer::readable(source + n * 7, 7))
        .collect();
    buffers.extend((0..64).map(|n| Buffer::writable(target + n * 7, 7)));
    let queue = guest.queue(0).unwrap();
    let head = queue.submit_indirect(table, &buffers).unwrap();
    queue.kick().unwrap();
    let used = queue.wait().unwrap();
    assert_eq!((used.head, used.bytes), (head, 64 * 7));
    assert_eq!(guest.ram.read(target, data.len()).unwrap(), data);
}

#[test]
fn a_batch_is_signalled_once_and_only_when_the_driver_wants_it() {
    let lab = Lab::new();
    lab.device.manual.store(true, Ordering::Relaxed);
    let mut guest = lab.guest();
    let target = guest.ram.allocate(64, 8).unwrap();
    let counters = lab.session.queue_counters(0).unwrap();
    lab.device.wait_told(Told::Started(0), 1);
    let ring = lab.device.queue(0).unwrap();

    // The driver wants to hear of the fifth chain only.
    let queue = guest.queue(0).unwrap();
    queue.set_used_event(4).unwrap();
    let before = counters.signals.load(Ordering::Relaxed);
    for _ in 0..4 {
        queue.submit(&[Buffer::writable(target, 8)]).unwrap();
    }
    let mut chains = Vec::new();
    let mut guard = ring.lock().unwrap();
    assert_eq!(guard.pop_batch(&mut chains, 16), 4);
    for chain in chains.drain(..) {
        guard.add_used(chain, 0);
    }
    drop(guard);
    assert_eq!(counters.signals.load(Ordering::Relaxed), before);

    for _ in 0..3 {
        queue.submit(&[Buffer::writable(target, 8)]).unwrap();
    }
    let mut guard = ring.lock().unwrap();
    assert_eq!(guard.pop_batch(&mut chains, 16), 3);
    for chain in chains.drain(..) {
        guard.add_used(chain, 0);
    }
    drop(guard);
    assert_eq!(counters.signals.load(Ordering::Relaxed), before + 1);
}

#[test]
fn the_no_interrupt_flag_is_honoured_without_event_idx() {
    let lab = Lab::new();
    lab.device.manual.store(true, Ordering::Relaxed);
    let mut guest = lab.guest_with(|options| options.without_features |= EVENT_IDX);
    let target = guest.ram.allocate(64, 8).unwrap();
    lab.device.wait_told(Told::Started(0), 1);
    let ring = lab.device.queue(0).unwrap();
    let counters = lab.session.queue_counters(0).unwrap();
    let queue = guest.queue(0).unwrap();
    let mut return_one = |expected: u64| {
        let before = counters.signals.load(Ordering::Relaxed);
        queue.submit(&[Buffer::writable(target, 8)]).unwrap();
        let mut guard = ring.lock().unwrap();
        let chain = guard.pop().unwrap();
        guard.add_used(chain, 8);
        drop(guard);
        assert_eq!(counters.signals.load(Ordering::Relaxed) - before, expected);
        queue.set_flags(u16::from(expected == 1)).unwrap();
    };
    return_one(1);
    return_one(0);
    return_one(1);
}

#[test]
fn unpop_gives_chains_back_in_order() {
    let lab = Lab::new();
    lab.device.manual.store(true, Ordering::Relaxed);
    let mut guest = lab.guest();
    let target = guest.ram.allocate(64, 8).unwrap();
    lab.device.wait_told(Told::Started(0), 1);
    let ring = lab.device.queue(0).unwrap();
    let queue = guest.queue(0).unwrap();
    let heads = [(); 3].map(|()| queue.submit(&[Buffer::writable(target, 8)]).unwrap());
    let mut guard = ring.lock().unwrap();
    let mut taken: Vec<_> = std::iter::from_fn(|| guard.pop()).collect();
    while taken.len() > 1 {
        guard.unpop(taken.pop().unwrap());
    }
    assert_eq!(guard.pop().unwrap().head(), heads[1]);
    assert_eq!(guard.pop().unwrap().head(), heads[2]);
}

#[test]
fn stop_is_quick_with_requests_in_flight_and_removes_the_socket() {
    let lab = Lab::new();
    lab.device.hold.store(true, Ordering::Relaxed);
    let mut guest = lab.guest();
    let target = guest.ram.allocate(64, 8).unwrap();
    for _ in 0..10 {
        guest
            .queue(0)
            .unwrap()
            .submit(&[Buffer::writable(target, 8)])
            .unwrap();
    }
    guest.queue(0).unwrap().kick().unwrap();
    lab.device.wait_held(10);
    within(Duration::from_millis(200), || lab.session.stop());
    assert_eq!(lab.session.state(), SessionState::Stopped);
    assert!(!lab.path.exists());
    lab.device
        .wait_told(Told::Stopped(0, StopReason::Abandon), 1);
    // Late completions go nowhere.
    let before = guest.queue(0).unwrap().used_index().unwrap();
    lab.device.release();
    assert_eq!(guest.queue(0).unwrap().used_index().unwrap(), before);
    guest.raw.wait_closed().unwrap();
}

#[test]
fn stop_is_quick_while_a_ring_drains() {
    let lab = Lab::new();
    lab.device.hold.store(true, Ordering::Relaxed);
    let mut guest = lab.guest();
    let target = guest.ram.allocate(64, 8).unwrap();
    guest
        .queue(0)
        .unwrap()
        .submit(&[Buffer::writable(target, 8)])
        .unwrap();
    guest.queue(0).unwrap().kick().unwrap();
    lab.device.wait_held(1);
    guest.raw.send_state(request::GET_VRING_BASE, 0, 0).unwrap();
    lab.device.wait_told(Told::Stopped(0, StopReason::Drain), 1);
    within(Duration::from_millis(200), || lab.session.stop());
}

#[test]
fn a_front_end_that_leaves_while_a_ring_drains_does_not_block_the_next() {
    let lab = Lab::new();
    lab.device.hold.store(true, Ordering::Relaxed);
    let mut guest = lab.guest();
    let target = guest.ram.allocate(64, 8).unwrap();
    guest
        .queue(0)
        .unwrap()
        .submit(&[Buffer::writable(target, 8)])
        .unwrap();
    guest.queue(0).unwrap().kick().unwrap();
    lab.device.wait_held(1);
    guest.raw.send_state(request::GET_VRING_BASE, 0, 0).unwrap();
    lab.device.wait_told(Told::Stopped(0, StopReason::Drain), 1);
    drop(guest);
    lab.device.wait_told(Told::Disconnected, 1);
    lab.device.hold.store(false, Ordering::Relaxed);
    lab.device.held.lock().unwrap().clear();
    lab.assert_serves();
}

#[test]
fn a_request_that_outlives_its_ring_writes_nothing_to_guest_memory() {
    let lab = Lab::new();
    lab.device.hold.store(true, Ordering::Relaxed);
    let mut guest = lab.guest();
    let target = guest.ram.allocate(64, 8).unwrap();
    guest
        .queue(0)
        .unwrap()
        .submit(&[Buffer::writable(target, 8)])
        .unwrap();
    guest.queue(0).unwrap().kick().unwrap();
    lab.device.wait_held(1);
    let write = |data: [u8; 8]| lab.device.held.lock().unwrap()[0].write_at(0, &data);
    assert_eq!(write([1; 8]), Ok(()));
    assert_eq!(guest.ram.read(target, 8).unwrap(), [1; 8]);
    drop(guest);
    lab.device.wait_told(Told::Disconnected, 1);
    assert_eq!(write([2; 8]), Err(ChainError::Stopped));
    lab.device.held.lock().unwrap().clear();
}

#[test]
fn get_vring_base_waits_for_requests_in_flight_and_names_the_next() {
    let lab = Lab::new();
    lab.device.hold.store(true, Ordering::Relaxed);
    let mut guest = lab.guest();
    let target = guest.ram.allocate(64, 8).unwrap();
    for _ in 0..3 {
        guest
            .queue(0)
            .unwrap()
            .submit(&[Buffer::writable(target, 8)])
            .unwrap();
    }
    guest.queue(0).unwrap().kick().unwrap();
    lab.device.wait_held(3);
    let device = Arc::clone(&lab.device);
    let answering = std::thread::spawn(move || {
        device.wait_told(Told::Stopped(0, StopReason::Drain), 1);
        device.release();
    });
    assert_eq!(guest.stop_queue(0).unwrap(), 3);
    assert_eq!(guest.queue(0).unwrap().used_index().unwrap(), 3);
    answering.join().unwrap();

    // Started again where it stopped, the ring goes on.
    lab.device.hold.store(false, Ordering::Relaxed);
    guest.start_queue(0, 3).unwrap();
    for _ in 0..3 {
        guest.queue(0).unwrap().wait().unwrap();
    }
    assert_echo(&mut guest, 0, b"again");
}

#[test]
fn wakes_run_on_the_worker_and_quotas_leave_nothing_behind() {
    let lab = Lab::new();
    let mut guest = lab.guest();
    let target = guest.ram.allocate(64, 8).unwrap();
    // More than the device's quota of 16, with a single kick.
    for _ in 0..60 {
        guest
            .queue(0)
            .unwrap()
            .submit(&[Buffer::writable(target, 8)])
            .unwrap();
    }
    guest.queue(0).unwrap().kick().unwrap();
    for _ in 0..60 {
        guest.queue(0).unwrap().wait().unwrap();
    }
    assert!(lab.device.woken.load(Ordering::Relaxed) >= 3);
}

#[test]
fn a_disabled_ring_is_left_alone_until_it_is_enabled() {
    let lab = Lab::new();
    let mut guest = lab.guest();
    assert_echo(&mut guest, 0, b"one");
    guest.control.set_vring_enable(0, false).unwrap();
    let target = guest.ram.allocate(64, 8).unwrap();
    let head = guest
        .queue(0)
        .unwrap()
        .submit(&[Buffer::writable(target, 8)])
        .unwrap();
    guest.queue(0).unwrap().kick().unwrap();
    // Another thread, as a link that has a frame for the ring, gets nothing either.
    assert!(lab.device.queue(0).unwrap().lock().unwrap().pop().is_none());
    guest.control.set_vring_enable(0, true).unwrap();
    assert_eq!(guest.queue(0).unwrap().wait().unwrap().head, head);
}

#[test]
fn features_and_mtu_reach_the_device() {
    let lab = Lab::new();
    let guest = lab.guest();
    lab.device.wait_told(
        Told::Features(1 << 32 | EVENT_IDX | INDIRECT | ECHO_FEATURE),
        1,
    );
    assert_eq!(
        guest
            .raw
            .ask(request::NET_SET_MTU, &9000_u64.to_le_bytes(), &[])
            .unwrap()
            .value()
            .unwrap(),
        0
    );
    assert_eq!(
        guest
            .raw
            .ask(request::NET_SET_MTU, &9001_u64.to_le_bytes(), &[])
            .unwrap()
            .value()
            .unwrap(),
        1
    );
    assert_eq!(
        guest
            .raw
            .ask(request::GET_QUEUE_NUM, &[], &[])
            .unwrap()
            .value()
            .unwrap(),
        2
    );
    assert!(lab.session.wait_for(SessionState::Running, PATIENCE));
}

#[test]
fn writes_are_logged_while_a_migration_runs_also_in_a_new_memory_table() {
    let lab = Lab::new();
    let mut guest = lab.guest_with(|options| options.without_features = 0);
    let log = orimono_tests::front_end::sealed_memfd(4096).unwrap();
    let bits = |page: u64| -> bool {
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_exact_at(&log, &mut byte, page / 8).unwrap();
        byte[0] >> (page % 8) & 1 == 1
    };
    let target = guest.ram.allocate(4096 * 2, 4096).unwrap();
    let write = |guest: &mut orimono_tests::front_end::Guest, at: u64| {
        let buffers = [Buffer::readable(at, 8), Buffer::writable(at, 8)];
        guest.queue(0).unwrap().transact(&buffers).unwrap();
    };
    write(&mut guest, target);
    guest
        .control
        .set_log_base(
            0,
            Some(vhost::VhostUserDirtyLogRegion {
                mmap_size: 4096,
                mmap_offset: 0,
                mmap_handle: std::os::fd::AsRawFd::as_raw_fd(&log),
            }),
        )
        .unwrap();
    assert!(!bits(target / 4096));
    write(&mut guest, target);
    assert!(bits(target / 4096));
    // The used ring was written, too.
    assert!(bits(guest.queue(0).unwrap().addresses()[2] / 4096));

    guest.control.set_mem_table(&guest.ram.table()).unwrap();
    assert!(!bits(target / 4096 + 1));
    write(&mut guest, target + 4096);
    assert!(bits(target / 4096 + 1));

    // Migration cancelled: nothing is logged any more.
    guest
        .control
        .set_features(guest.features & !LOG_ALL)
        .unwrap();
    let later = guest.ram.allocate(4096, 4096).unwrap();
    write(&mut guest, later);
    assert!(!bits(later / 4096));
}

#[test]
fn a_panic_of_the_device_ends_its_session_only() {
    let lab = Lab::new();
    let other = Lab::new();
    let mut neighbour = other.guest();
    let mut guest = lab.guest();
    let target = guest.ram.allocate(64, 8).unwrap();
    lab.device.panic.store(true, Ordering::Relaxed);
    guest
        .queue(0)
        .unwrap()
        .submit(&[Buffer::writable(target, 8)])
        .unwrap();
    guest.queue(0).unwrap().kick().unwrap();
    guest.raw.wait_closed().unwrap();
    assert!(lab.refusal().contains("panicked"));
    lab.device.panic.store(false, Ordering::Relaxed);
    lab.assert_serves();
    assert_echo(&mut neighbour, 0, b"unaffected");
}

#[test]
fn threads_are_named_after_the_device() {
    let lab = Lab::new();
    let _guest = lab.guest();
    let names: Vec<String> = fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok())
        .map(|name| name.trim().to_owned())
        .collect();
    for name in ["echo", "echo/ctl", "echo/q0", "echo/q1"] {
        assert!(
            names.iter().any(|found| found == name),
            "{name} not in {names:?}"
        );
    }
}

#[test]
fn the_socket_file_has_its_mode_and_replaces_a_stale_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    // What a process leaves that was killed.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let source = SocketSource::Path {
        path: path.clone(),
        mode: 0o620,
        owner: None,
        group: None,
    };
    let session = Session::start(Echo::new(1), SessionConfig::new(source)).unwrap();
    let found = fs::symlink_metadata(&path).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o620);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

    // Somebody listens now.
    let second = SessionConfig::new(SocketSource::path(&path));
    let error = Session::start(Echo::new(1), second).unwrap_err();
    assert!(
        matches!(
            error,
            SessionError::Socket {
                source: SocketError::InUse { .. },
                ..
            }
        ),
        "{error}"
    );
    drop(session);
    assert!(!path.exists());
}

#[test]
fn a_file_that_is_no_socket_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("precious");
    fs::write(&path, "data").unwrap();
    let error =
        Session::start(Echo::new(1), SessionConfig::new(SocketSource::path(&path))).unwrap_err();
    assert!(matches!(
        error,
        SessionError::Socket {
            source: SocketError::NotASocket { .. },
            ..
        }
    ));
    assert_eq!(fs::read_to_string(&path).unwrap(), "data");
}

#[test]
fn inherited_sockets_are_served() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let config = SessionConfig::new(SocketSource::Listening(listener.into()));
    let session = Session::start(Echo::new(1), config).unwrap();
    let mut guest =
        orimono_tests::front_end::Guest::connect(&path, &GuestOptions::default()).unwrap();
    assert_echo(&mut guest, 0, b"inherited");
    // An inherited socket's file is not ours to remove.
    session.stop();
    assert!(path.exists());
}

#[test]
fn inconsistent_devices_are_refused() {
    struct TwoThreadsOneQueue;
    impl VirtioDevice for TwoThreadsOneQueue {
        fn name(&self) -> String {
            "odd".into()
        }
        fn queue_count(&self) -> usize {
            1
        }
        fn queue_size_max(&self) -> u16 {
            64
        }
        fn features(&self) -> u64 {
            0
        }
        fn queues_per_thread(&self) -> Vec<u64> {
            vec![1, 1]
        }
        fn queue_started(&self, _index: usize, _queue: vhost_user_session::Queue) {}
        fn queue_stopped(&self, _index: usize, _reason: StopReason) {}
        fn kicked(&self, _index: usize) {}
    }
    let folder = tempfile::tempdir().unwrap();
    let config = SessionConfig::new(SocketSource::path(folder.path().join("s")));
    let error = Session::start(Arc::new(TwoThreadsOneQueue), config).unwrap_err();
    assert!(matches!(error, SessionError::Device { .. }), "{error}");
}

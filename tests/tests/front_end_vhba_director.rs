//! A guest's SCSI commands against a director that the test plays.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]
#![expect(clippy::panic, reason = "a failed expectation is a failed test")]
#![expect(
    clippy::indexing_slicing,
    reason = "a failed expectation is a failed test"
)]

mod support;

use std::sync::Arc;

use fabric_payload::scsi::{
    self, Data, Event, InformationUnit, ServiceResponse, Status, Tag, TaskFunction, TaskResponse,
};
use fabric_transport::VirtualLane::{StorageCommand, StorageData, TaskManagement};
use orimono_tests::front_end::{Buffer, Guest, GuestOptions, Used};
use support::{DEVICE, Fabric, Served, serve};
use vhba_backend::{VhbaConfig, VhbaDevice, windows};

const CONTROL: usize = 0;
const EVENT: usize = 1;
const REQUEST: usize = 2;
const LUN: [u8; 8] = [1, 0, 0x40, 5, 0, 0, 0, 0];
const SAM_LUN: [u8; 8] = [0x40, 5, 0, 0, 0, 0, 0, 0];
/// Of a director: 64 commands, 2 MiB of data.
const DIRECTOR: [u32; 4] = [64, 256, 2 * 16_384, 0];

struct World {
    device: Arc<VhbaDevice>,
    guest: Guest,
    _served: Served,
}

impl World {
    fn new() -> Self {
        let device = VhbaDevice::new(VhbaConfig::new("vhba0", DEVICE)).unwrap();
        let served = serve(device.clone());
        let options = GuestOptions {
            queues: 3,
            ..GuestOptions::default()
        };
        let guest = Guest::connect(&served.path, &options).unwrap();
        Self {
            device,
            guest,
            _served: served,
        }
    }

    fn fabric(&self, epoch: u16) -> Fabric {
        Fabric::up(epoch, self.device.clone(), windows(), DIRECTOR)
    }

    fn allocate(&mut self, bytes: usize) -> u64 {
        self.guest
            .ram
            .allocate(u64::try_from(bytes).unwrap(), 16)
            .unwrap()
    }

    /// Submits a command; its response and data-in stand at the address returned.
    fn submit(&mut self, id: u64, lun: [u8; 8], data_out: &[u8], data_in: usize) -> (u16, u64) {
        let mut request = lun.to_vec();
        request.extend(id.to_le_bytes());
        request.extend([0; 3]);
        request.extend([0x5a; 32]);
        request.extend(data_out);
        let (from, to) = (self.allocate(request.len()), self.allocate(108 + data_in));
        self.guest.ram.write(from, &request).unwrap();
        self.guest
            .ram
            .write(to, &vec![0xee; 108 + data_in])
            .unwrap();
        let size = |bytes: usize| u32::try_from(bytes).unwrap();
        // Header and data in descriptors of their own, as Linux does.
        let mut buffers = vec![Buffer::readable(from, 51)];
        if !data_out.is_empty() {
            buffers.push(Buffer::readable(from + 51, size(data_out.len())));
        }
        buffers.push(Buffer::writable(to, 108));
        if data_in > 0 {
            buffers.push(Buffer::writable(to + 108, size(data_in)));
        }
        let queue = self.guest.queue(REQUEST).unwrap();
        let head = queue.submit(&buffers).unwrap();
        queue.kick().unwrap();
        (head, to)
    }

    fn wait(&mut self, queue: usize) -> Used {
        self.guest.queue(queue).unwrap().wait().unwrap()
    }

    fn response(&self, at: u64) -> Response {
        let bytes = self.guest.ram.read(at, 108).unwrap();
        let word = |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().unwrap());
        Response {
            sense: bytes[12..][..usize::try_from(word(0)).unwrap()].to_vec(),
            residual: word(4),
            status: bytes[10],
            code: bytes[11],
        }
    }

    fn task_management(&mut self, function: u32, id: u64) -> (u16, u64) {
        let mut request = 0_u32.to_le_bytes().to_vec();
        request.extend(function.to_le_bytes());
        request.extend(LUN);
        request.extend(id.to_le_bytes());
        let (from, to) = (self.allocate(24), self.allocate(1));
        self.guest.ram.write(from, &request).unwrap();
        let queue = self.guest.queue(CONTROL).unwrap();
        let head = queue
            .submit(&[Buffer::readable(from, 24), Buffer::writable(to, 1)])
            .unwrap();
        queue.kick().unwrap();
        (head, to)
    }

    fn byte(&self, at: u64) -> u8 {
        self.guest.ram.read(at, 1).unwrap()[0]
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Response {
    sense: Vec<u8>,
    residual: u32,
    status: u8,
    code: u8,
}

impl Response {
    fn code(code: u8, residual: u32) -> Self {
        Self {
            sense: Vec::new(),
            residual,
            status: 0,
            code,
        }
    }
}

fn bytes(unit: InformationUnit<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    unit.encode(&mut bytes);
    bytes
}

fn good(tag: Tag, data_in_bytes: u32) -> Vec<u8> {
    let response = ServiceResponse::TaskComplete;
    bytes(InformationUnit::Status(Status {
        tag,
        response,
        status: 0,
        data_in_bytes,
        sense: &[],
    }))
}

fn data_in(tag: Tag, offset: u32, data: &[u8]) -> Vec<u8> {
    bytes(InformationUnit::DataIn(Data { tag, offset, data }))
}

/// The tag of the command that the director received.
fn command(fabric: &Fabric) -> Tag {
    let (lane, payload) = fabric.receive();
    match InformationUnit::parse(&payload).unwrap() {
        InformationUnit::Command(command) if lane == StorageCommand => command.tag,
        other => panic!("{other:?} on {lane:?}"),
    }
}

#[test]
fn read_delivers_its_data_and_the_exact_residual() {
    let mut world = World::new();
    let fabric = world.fabric(1);
    let (head, at) = world.submit(77, LUN, &[], 8192);
    let (lane, payload) = fabric.receive();
    let InformationUnit::Command(command) = InformationUnit::parse(&payload).unwrap() else {
        panic!("{payload:02x?}");
    };
    let expected = scsi::Command {
        tag: command.tag,
        lun: SAM_LUN,
        attribute: 0,
        cdb: &[0x5a; 32],
        data_out_bytes: 0,
        data_in_bytes: 8192,
    };
    assert_eq!((lane, command), (StorageCommand, expected));
    fabric.send_all([
        (StorageData, data_in(command.tag, 0, &[1; 4096])),
        (StorageData, data_in(command.tag, 4096, &[2; 1000])),
        (StorageData, good(command.tag, 5096)),
    ]);
    let used = world.wait(REQUEST);
    assert_eq!(
        used,
        Used {
            head,
            bytes: 108 + 5096
        }
    );
    assert_eq!(world.response(at), Response::code(0, 8192 - 5096));
    let data = world.guest.ram.read(at + 108, 8192).unwrap();
    assert_eq!(
        data,
        [vec![1; 4096], vec![2; 1000], vec![0xee; 3096]].concat()
    );
    assert_eq!(world.device.commands_in_flight(), 0);
}

#[test]
fn write_is_sent_with_all_its_data_behind_the_command() {
    let mut world = World::new();
    let fabric = world.fabric(1);
    let written: Vec<u8> = (0..150_000_u32).map(|at| at.to_le_bytes()[0]).collect();
    let (_, at) = world.submit(1, LUN, &written, 0);
    let tag = command(&fabric);
    let mut arrived: Vec<u8> = Vec::new();
    while arrived.len() < written.len() {
        let (_, payload) = fabric.receive();
        let InformationUnit::DataOut(data) = InformationUnit::parse(&payload).unwrap() else {
            panic!("{payload:02x?}");
        };
        assert_eq!(
            (data.tag, usize::try_from(data.offset).unwrap()),
            (tag, arrived.len())
        );
        arrived.extend(data.data);
    }
    assert!(arrived == written);
    fabric.send(StorageData, &good(tag, 0));
    assert_eq!(world.wait(REQUEST).bytes, 108);
    assert_eq!(world.response(at), Response::code(0, 0));
}

#[test]
fn check_condition_brings_its_sense() {
    let mut world = World::new();
    let fabric = world.fabric(1);
    let (_, at) = world.submit(1, LUN, &[], 36);
    let sense = [0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x29, 0, 0, 0, 0, 0];
    let status = Status {
        tag: command(&fabric),
        response: ServiceResponse::TaskComplete,
        status: 2,
        data_in_bytes: 0,
        sense: &sense,
    };
    fabric.send(StorageData, &bytes(InformationUnit::Status(status)));
    world.wait(REQUEST);
    let expected = Response {
        sense: sense.to_vec(),
        residual: 36,
        status: 2,
        code: 0,
    };
    assert_eq!(world.response(at), expected);
}

#[test]
fn refused_requests_never_reach_the_fabric() {
    let mut world = World::new();
    let fabric = world.fabric(1);
    let (_, at) = world.submit(1, [1, 9, 0x40, 0, 0, 0, 0, 0], &[], 36);
    world.wait(REQUEST);
    assert_eq!(world.response(at), Response::code(3, 36));
    let (_, at) = world.submit(2, LUN, &[1], 1);
    world.wait(REQUEST);
    assert_eq!(world.response(at), Response::code(9, 1));
    let (_, at) = world.submit(3, LUN, &vec![0; (1 << 20) + 1], 0);
    world.wait(REQUEST);
    let response = world.response(at);
    assert_eq!(
        (response.code, response.status, response.residual),
        (0, 2, (1 << 20) + 1)
    );
    // No room for a response: returned empty, and the ring goes on.
    let address = world.allocate(64);
    let used = world
        .guest
        .queue(REQUEST)
        .unwrap()
        .transact(&[Buffer::writable(address, 50)]);
    assert_eq!(used.unwrap().bytes, 0);
    world.submit(4, LUN, &[], 0);
    fabric.send(StorageData, &good(command(&fabric), 0));
    world.wait(REQUEST);
    let statistics = world.device.statistics();
    assert_eq!(
        (statistics.refused_requests, statistics.unanswerable_chains),
        (3, 1)
    );
    assert_eq!((statistics.commands, fabric.received_untaken()), (1, 0));
}

#[test]
fn p04_late_repeated_and_overlong_replies_change_nothing() {
    let mut world = World::new();
    let fabric = world.fabric(1);
    let (_, at) = world.submit(1, LUN, &[], 512);
    let tag = command(&fabric);
    fabric.send_all([
        (StorageData, data_in(tag, 0, &[1; 513])),
        (StorageData, data_in(tag, u32::MAX, &[1; 512])),
        (StorageData, data_in(tag, 256, &[1; 16])),
        (StorageData, data_in(tag, 0, &[2; 512])),
        (StorageData, data_in(tag, 0, &[3; 512])),
        (StorageData, good(tag, 512)),
        (StorageData, good(tag, 512)),
        (StorageData, data_in(tag, 0, &[4; 512])),
    ]);
    world.wait(REQUEST);
    assert_eq!(world.response(at), Response::code(0, 0));
    assert_eq!(world.guest.ram.read(at + 108, 512).unwrap(), [2; 512]);
    // Behind the next command's reply nothing of the last one can be underway.
    world.submit(2, LUN, &[], 0);
    let next = command(&fabric);
    assert_ne!(next, tag);
    fabric.send(StorageData, &good(next, 0));
    world.wait(REQUEST);
    let statistics = world.device.statistics();
    assert_eq!((statistics.bad_replies, statistics.unknown_replies), (4, 2));
    assert_eq!(statistics.completions, 2);
}

#[test]
fn missing_data_is_a_failure_and_not_a_short_read() {
    let mut world = World::new();
    let fabric = world.fabric(1);
    let (_, at) = world.submit(1, LUN, &[], 512);
    fabric.send(StorageData, &good(command(&fabric), 512));
    world.wait(REQUEST);
    assert_eq!(world.response(at), Response::code(7, 512));
}

#[test]
fn lost_session_fails_what_was_underway_and_the_next_one_goes_on() {
    let mut world = World::new();
    let fabric = world.fabric(1);
    let (_, lost) = world.submit(1, LUN, &[], 512);
    command(&fabric);
    let (_, function) = world.task_management(5, 0);
    fabric.receive();
    fabric.down();
    world.wait(REQUEST);
    assert_eq!(world.response(lost), Response::code(6, 512));
    world.wait(CONTROL);
    assert_eq!(world.byte(function), 9);
    // Without a session requests wait, and task management is answered.
    let (_, waiting) = world.submit(2, LUN, &[], 0);
    let (_, function) = world.task_management(5, 0);
    world.wait(CONTROL);
    assert_eq!(world.byte(function), 9);
    assert_eq!(world.device.commands_in_flight(), 0);
    let fabric = world.fabric(2);
    fabric.send(StorageData, &good(command(&fabric), 0));
    world.wait(REQUEST);
    assert_eq!(world.response(waiting), Response::code(0, 0));
    assert_eq!(world.device.statistics().lost_commands, 1);
}

#[test]
fn blocked_lane_stops_the_ring_and_loses_nothing() {
    let mut world = World::new();
    // Two commands of two blocks each.
    let fabric = Fabric::up(1, world.device.clone(), windows(), [64, 4, 16_400, 0]);
    fabric.hold();
    for id in 0..5 {
        world.submit(id, LUN, &[], 0);
    }
    let mut tags = vec![command(&fabric), command(&fabric)];
    support::until("the ring's stop", || world.device.statistics().stalls == 1);
    assert_eq!(
        (fabric.received_untaken(), world.device.commands_in_flight()),
        (0, 3)
    );
    fabric.release();
    tags.extend([command(&fabric), command(&fabric), command(&fabric)]);
    fabric.send_all(tags.iter().map(|tag| (StorageData, good(*tag, 0))));
    for _ in 0..5 {
        world.wait(REQUEST);
    }
    assert_eq!(world.device.statistics().completions, 5);
}

#[test]
fn ring_that_stops_while_blocked_gives_its_request_back() {
    let mut world = World::new();
    let fabric = Fabric::up(1, world.device.clone(), windows(), [64, 2, 16_400, 0]);
    fabric.hold();
    world.submit(0, LUN, &[], 0);
    world.submit(1, LUN, &[], 0);
    let tag = command(&fabric);
    support::until("the ring's stop", || world.device.statistics().stalls == 1);
    fabric.send(StorageData, &good(tag, 0));
    world.wait(REQUEST);
    // The first was answered, the second is still the guest's.
    assert_eq!(world.guest.stop_queue(REQUEST).unwrap(), 1);
    assert_eq!(world.device.commands_in_flight(), 0);
    world.guest.start_queue(REQUEST, 1).unwrap();
    fabric.release();
    fabric.send(StorageData, &good(command(&fabric), 0));
    world.wait(REQUEST);
}

#[test]
fn s10_aborted_command_is_completed_before_the_function() {
    let mut world = World::new();
    let fabric = world.fabric(1);
    let (_, first) = world.submit(11, LUN, &[], 0);
    let (_, second) = world.submit(12, LUN, &[], 0);
    let (tag, other) = (command(&fabric), command(&fabric));
    let (_, answer) = world.task_management(0, 11);
    let (lane, payload) = fabric.receive();
    let InformationUnit::TaskManagement {
        function,
        tag: name,
        managed,
        lun,
    } = InformationUnit::parse(&payload).unwrap()
    else {
        panic!("{payload:02x?}");
    };
    assert_eq!((lane, function), (TaskManagement, TaskFunction::AbortTask));
    assert_eq!((managed, lun), (tag, SAM_LUN));
    let response = TaskResponse::Complete;
    let response = bytes(InformationUnit::TaskManagementResponse {
        response,
        tag: name,
    });
    // The command's own status comes late, and finds nothing.
    fabric.send_all([(TaskManagement, response), (StorageData, good(tag, 0))]);
    world.wait(CONTROL);
    assert_eq!(world.byte(answer), 0);
    // It is there already.
    assert_eq!(world.guest.queue(REQUEST).unwrap().used_index().unwrap(), 1);
    world.wait(REQUEST);
    assert_eq!(world.response(first), Response::code(2, 0));
    fabric.send(StorageData, &good(other, 0));
    world.wait(REQUEST);
    assert_eq!(world.response(second), Response::code(0, 0));
    assert_eq!(world.device.statistics().unknown_replies, 1);
    // Aborting what is not there succeeds without the director; CLEAR ACA is rejected.
    let (_, answer) = world.task_management(0, 11);
    world.wait(CONTROL);
    assert_eq!(world.byte(answer), 0);
    let (_, answer) = world.task_management(2, 0);
    world.wait(CONTROL);
    assert_eq!(world.byte(answer), 11);
    assert_eq!(fabric.received_untaken(), 0);
}

#[test]
fn guest_that_goes_away_leaves_a_nexus_reset_behind() {
    let mut world = World::new();
    let fabric = world.fabric(1);
    world.submit(1, LUN, &[], 4096);
    let tag = command(&fabric);
    let World {
        device,
        guest,
        _served: served,
    } = world;
    drop(guest);
    support::until("the end of the connection", || {
        device.commands_in_flight() == 0
    });
    // Data for a guest that is gone is thrown away.
    fabric.send(StorageData, &data_in(tag, 0, &[9; 4096]));
    let options = GuestOptions {
        queues: 3,
        ..GuestOptions::default()
    };
    let guest = Guest::connect(&served.path, &options).unwrap();
    let mut world = World {
        device,
        guest,
        _served: served,
    };
    world.submit(1, LUN, &[], 0);
    let (lane, payload) = fabric.receive();
    let unit = InformationUnit::parse(&payload).unwrap();
    let InformationUnit::TaskManagement {
        function,
        tag: name,
        ..
    } = unit
    else {
        panic!("{unit:?}");
    };
    assert_eq!(
        (lane, function),
        (TaskManagement, TaskFunction::ItNexusReset)
    );
    let next = command(&fabric);
    // What was taken after the reset was sent is none of its business.
    let response = TaskResponse::Complete;
    let response = bytes(InformationUnit::TaskManagementResponse {
        response,
        tag: name,
    });
    fabric.send(TaskManagement, &response);
    fabric.send(StorageData, &good(next, 0));
    world.wait(REQUEST);
    let statistics = world.device.statistics();
    assert_eq!(
        (statistics.abandoned_commands, statistics.aborted_commands),
        (1, 0)
    );
}

#[test]
fn s15_events_reach_the_guest_or_are_reported_as_missed() {
    let mut world = World::new();
    let fabric = world.fabric(1);
    let added = bytes(InformationUnit::Event(Event::LunAdded(SAM_LUN)));
    let changed = bytes(InformationUnit::Event(Event::ParameterChanged {
        lun: SAM_LUN,
        asc: 0x2a,
        ascq: 9,
    }));
    // No buffer: the next buffer tells so at once.
    fabric.send(TaskManagement, &added);
    support::until("the missed event", || {
        world.device.statistics().missed_events == 1
    });
    let at = world.allocate(16);
    let event = |world: &World| world.guest.ram.read(at, 16).unwrap();
    let buffer = [Buffer::writable(at, 16)];
    let used = world.guest.queue(EVENT).unwrap().transact(&buffer).unwrap();
    assert_eq!(used.bytes, 16);
    assert_eq!(
        event(&world),
        [0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    );
    // A buffer that is too small is passed over.
    let queue = world.guest.queue(EVENT).unwrap();
    queue.submit(&[Buffer::writable(at, 15)]).unwrap();
    queue.submit(&buffer).unwrap();
    queue.kick().unwrap();
    fabric.send(TaskManagement, &changed);
    assert_eq!(world.wait(EVENT).bytes, 0);
    assert_eq!(world.wait(EVENT).bytes, 16);
    assert_eq!(
        event(&world),
        [3, 0, 0, 0, 1, 0, 0, 5, 0, 0, 0, 0, 0x2a, 9, 0, 0]
    );
    assert_eq!(world.device.statistics().bad_event_buffers, 1);
}

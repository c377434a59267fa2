//! A vHBA between a guest without QEMU and a fabric whose other end the test plays: what must be
//! carried out, what must wait, and what a hostile guest or director gets (cases G-03 to G-17,
//! S-03 to S-15, P-04).
//!
//! Every hostile case ends with [`Case::assert_unharmed`]: the device serves a new connection, and
//! the device beside it on the same session has noticed nothing.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use fabric_payload::scsi::{
    Command, Data, Event, InformationUnit, ServiceResponse, TRANSFER_BYTES_MAX, Tag, TaskFunction,
    TaskResponse,
};
use fabric_transport::{DeviceId, VirtualLane};
use orimono_tests::devices::scsi::{
    CONTROL, EVENT, LUN0, REQUESTS, Request, Response, ScsiGuest, task_management, transfer,
};
use orimono_tests::fabric::target::{BLOCK_BYTES, CHECK_CONDITION, RamDisk, Target, inquiry_data};
use orimono_tests::fabric::{FabricDevice, FarEnd, TestFabric, Watched};
use orimono_tests::front_end::{Buffer, DESC_INDIRECT, DESC_NEXT};
use vhba_backend::{VhbaConfig, VhbaDevice};
use vhost_user_session::{Session, SessionConfig, SessionHandle, SocketSource};

/// What the test's end can receive for a vHBA: 64 commands, 4 MiB of write data.
const FAR_WINDOWS: [u32; 4] = [256, 128, 65_536, 0];
const FAR_COMMANDS: usize = 64;
const RAM_START: u64 = 0x10_0000;
const RAM_BYTES: u64 = 96 << 20;

// Response codes (virtio 1.2 sections 5.6.6.1 and 5.6.6.2).
const OK: u8 = 0;
const ABORTED: u8 = 2;
const BAD_TARGET: u8 = 3;
const RESET: u8 = 4;
const TRANSPORT_FAILURE: u8 = 6;
const TARGET_FAILURE: u8 = 7;
const FAILURE: u8 = 9;
const FUNCTION_SUCCEEDED: u8 = 10;
const FUNCTION_REJECTED: u8 = 11;
const INCORRECT_LUN: u8 = 12;

const TEST_UNIT_READY: [u8; 6] = [0; 6];
const EVENTS_MISSED: u32 = 1 << 31;

/// A device with its socket, and the target that the test plays behind it.
struct Hba {
    device: Arc<VhbaDevice>,
    watched: Arc<Watched>,
    target: Target,
    session: SessionHandle,
    socket: PathBuf,
}

impl Hba {
    /// INQUIRY, a write and its reading.
    fn round_trip(&self, guest: &mut ScsiGuest) {
        let mut disk = RamDisk::new(8);
        let inquiry = Request {
            data_in_bytes: 36,
            ..Request::new(&[0x12, 0, 0, 0, 36, 0])
        };
        let response = self.serve(guest, &mut disk, &inquiry);
        assert_eq!(response.data, inquiry_data());
        let data: Vec<u8> = (0..=255).cycle().take(2 * BLOCK_BYTES).collect();
        let write = Request {
            data_out: &data,
            ..Request::new(&transfer(true, 3, 2))
        };
        assert_good(&self.serve(guest, &mut disk, &write), 0);
        let read = Request {
            data_in_bytes: 1024,
            ..Request::new(&transfer(false, 3, 2))
        };
        let response = self.serve(guest, &mut disk, &read);
        assert_good(&response, 0);
        assert_eq!(response.data, data);
    }

    /// One command from the guest through the disk and back.
    fn serve(&self, guest: &mut ScsiGuest, disk: &mut RamDisk, request: &Request<'_>) -> Response {
        let head = guest.submit(0, request).unwrap();
        disk.serve_one(&self.target).unwrap();
        let response = guest.wait(0).unwrap();
        assert_eq!(response.head, head);
        response
    }

    fn chains_rejected(&self, queue: usize) -> u64 {
        let counters = self.session.queue_counters(queue).unwrap();
        counters.chains_rejected.load(Ordering::Relaxed)
    }

    /// Does something at the far end and waits until the device has dealt with the `frames` that
    /// it sent.
    fn delivered(&self, frames: u64, act: impl FnOnce(&Target)) {
        let before = self.watched.delivered();
        act(&self.target);
        self.watched.wait_delivered(before + frames).unwrap();
    }
}

fn assert_good(response: &Response, residual: u32) {
    assert_eq!(
        (response.response, response.status, response.residual),
        (OK, 0, residual),
        "{response:?}"
    );
}

/// Two vHBAs on one session: the first is under test, the second has a guest that works.
struct Case {
    hbas: [Hba; 2],
    fabric: TestFabric,
    neighbour: ScsiGuest,
    _folder: tempfile::TempDir,
}

impl Case {
    fn new() -> Self {
        Self::with(1)
    }

    fn with(request_queues: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let hbas = [1, 2].map(|id| {
            let config = VhbaConfig {
                request_queues,
                ..VhbaConfig::new(format!("vhba{id}"), DeviceId(id))
            };
            let device = VhbaDevice::new(config).unwrap();
            let socket = folder.path().join(format!("vhba{id}"));
            let config = SessionConfig::new(SocketSource::path(&socket));
            Hba {
                session: Session::start(device.clone(), config).unwrap(),
                watched: Watched::new(device.clone()),
                target: Target::new(FarEnd::new()),
                device,
                socket,
            }
        });
        let devices = hbas.each_ref().map(|hba| {
            let near = (hba.watched.clone(), vhba_backend::windows());
            let far = (hba.target.far().clone(), FAR_WINDOWS);
            FabricDevice::new(hba.device.config().device, near, far)
        });
        let watched = hbas.iter().map(|hba| hba.watched.clone()).collect();
        let mut fabric = TestFabric::new("100G", devices.into(), watched);
        fabric.up().unwrap();
        let neighbour = ScsiGuest::connect(&hbas[1].socket, 1).unwrap();
        Self {
            hbas,
            fabric,
            neighbour,
            _folder: folder,
        }
    }

    fn guest(&self) -> ScsiGuest {
        let queues = self.hbas[0].device.config().request_queues;
        ScsiGuest::connect(&self.hbas[0].socket, queues).unwrap()
    }

    fn assert_neighbour_works(&mut self) {
        self.hbas[1].round_trip(&mut self.neighbour);
    }

    /// The device serves a new connection, the other device its old one.
    fn assert_unharmed(&mut self, hostile: ScsiGuest) {
        drop(hostile);
        self.assert_neighbour_works();
        let mut guest = self.guest();
        self.hbas[0].round_trip(&mut guest);
        self.assert_neighbour_works();
        assert_eq!(self.hbas[0].device.commands_in_flight(), 0);
    }
}

// What must work.

#[test]
fn data_is_carried_whatever_the_descriptors_are() {
    let case = Case::new();
    let [hba, _] = &case.hbas;
    let mut guest = case.guest();
    let mut disk = RamDisk::new(2048);
    let bytes = |blocks: u16| usize::from(blocks) * BLOCK_BYTES;
    for (blocks, piece_bytes) in [
        (2, 7),
        (2, 13),
        (3, 50),
        (3, 51),
        (8, 52),
        (8, 107),
        (8, 108),
        (8, 109),
        (64, 513),
        (256, 4096),
        (2048, 0x1_0001),
        (2048, u32::MAX),
    ] {
        let pattern =
            |index: usize| u8::try_from((index * 31 + usize::from(blocks)) % 253).unwrap();
        let data: Vec<u8> = (0..bytes(blocks)).map(pattern).collect();
        let write = Request {
            data_out: &data,
            piece_bytes,
            ..Request::new(&transfer(true, 0, blocks))
        };
        assert_good(&hba.serve(&mut guest, &mut disk, &write), 0);
        assert_eq!(disk.bytes()[..data.len()], data, "pieces of {piece_bytes}");
        let read = Request {
            data_in_bytes: u32::try_from(data.len()).unwrap(),
            piece_bytes,
            ..Request::new(&transfer(false, 0, blocks))
        };
        let response = hba.serve(&mut guest, &mut disk, &read);
        assert_good(&response, 0);
        assert_eq!(response.used_bytes, 108 + read.data_in_bytes);
        assert!(response.data == data, "pieces of {piece_bytes}");
    }
    // Header and response of one byte per descriptor.
    let ready = Request {
        piece_bytes: 1,
        ..Request::new(&TEST_UNIT_READY)
    };
    assert_good(&hba.serve(&mut guest, &mut disk, &ready), 0);
}

#[test]
fn s03_residual_says_what_was_not_transferred() {
    let case = Case::new();
    let [hba, _] = &case.hbas;
    let mut guest = case.guest();
    let mut disk = RamDisk::new(1);
    for (allocation, room, residual) in [
        (36, 36, 0),
        (36, 20, 0),
        (36, 255, 219),
        (5, 36, 31),
        (0, 36, 36),
        (96, 96, 60),
    ] {
        let inquiry = Request {
            data_in_bytes: room,
            ..Request::new(&[0x12, 0, 0, 0, allocation, 0])
        };
        let response = hba.serve(&mut guest, &mut disk, &inquiry);
        assert_good(&response, residual);
        let moved = room - residual;
        assert_eq!(response.used_bytes, 108 + moved);
        let moved = usize::try_from(moved).unwrap();
        assert_eq!(response.data[..moved], inquiry_data()[..moved]);
    }
}

#[test]
fn status_and_sense_arrive_as_the_target_sent_them() {
    let case = Case::new();
    let [hba, _] = &case.hbas;
    let mut guest = case.guest();
    for (status, sense_bytes) in [(0x02, 18), (0x08, 0), (0x18, 0), (0x28, 0), (0x02, 96)] {
        guest.submit(0, &Request::new(&TEST_UNIT_READY)).unwrap();
        let command = hba.target.next_command().unwrap();
        let sense: Vec<u8> = (1..=sense_bytes).collect();
        hba.target.status(command.tag, status, 0, &sense).unwrap();
        let response = guest.wait(0).unwrap();
        assert_eq!((response.response, response.status), (OK, status));
        assert_eq!(response.sense, sense);
    }
    for (end, code) in [
        (ServiceResponse::BadTarget, BAD_TARGET),
        (ServiceResponse::Aborted, ABORTED),
        (ServiceResponse::Reset, RESET),
        (ServiceResponse::TargetFailure, TARGET_FAILURE),
    ] {
        let read = Request {
            data_in_bytes: 512,
            ..Request::new(&transfer(false, 0, 1))
        };
        guest.submit(0, &read).unwrap();
        let command = hba.target.next_command().unwrap();
        hba.target.end(command.tag, end).unwrap();
        let response = guest.wait(0).unwrap();
        assert_eq!((response.response, response.residual), (code, 512));
    }
}

#[test]
fn every_request_queue_completes_its_own_commands() {
    const QUEUES: usize = 4;
    let case = Case::with(QUEUES);
    let [hba, _] = &case.hbas;
    let mut guest = case.guest();
    let mut commands = Vec::new();
    for queue in 0..QUEUES {
        let id = u64::try_from(queue).unwrap();
        // Queues have threads of their own: the marker tells which command is which.
        let cdb = [0, 0, 0, 0, u8::try_from(queue).unwrap(), 0];
        guest
            .submit(
                queue,
                &Request {
                    id,
                    ..Request::new(&cdb)
                },
            )
            .unwrap();
        commands.push(hba.target.next_command().unwrap());
    }
    for (queue, command) in commands.iter().enumerate().rev() {
        assert_eq!(usize::from(command.cdb[4]), queue);
        let status = 0x40 + u8::try_from(queue).unwrap();
        hba.target.status(command.tag, status, 0, &[]).unwrap();
        assert_eq!(guest.wait(queue).unwrap().status, status);
        assert!((0..QUEUES).all(|queue| guest.poll(queue).unwrap().is_none()));
    }
}

#[test]
fn without_credit_the_ring_waits_and_no_command_is_lost() {
    let mut case = Case::new();
    let mut guest = case.guest();
    case.hbas[0].target.far().hold(true);
    for number in 0..70_u8 {
        let cdb = [0, 0, 0, 0, number, 0];
        guest.submit(0, &Request::new(&cdb)).unwrap();
    }
    case.hbas[0]
        .target
        .far()
        .wait_waiting(FAR_COMMANDS)
        .unwrap();
    // A kick does not help, and the other device does not wait with it.
    guest.guest.queue(REQUESTS).unwrap().kick().unwrap();
    case.assert_neighbour_works();
    assert_eq!(case.hbas[0].target.far().waiting(), FAR_COMMANDS);
    case.hbas[0].target.far().hold(false);
    case.hbas[0].target.far().release().unwrap();
    for number in 0..70 {
        let command = case.hbas[0].target.next_command().unwrap();
        assert_eq!(command.cdb[4], number, "order of the ring");
        case.hbas[0].target.good(&command, &[]).unwrap();
    }
    for _command in 0..70 {
        assert_good(&guest.wait(0).unwrap(), 0);
    }
    assert!(case.hbas[0].device.statistics().stalls >= 1);
    case.assert_unharmed(guest);
}

// Sessions that end.

#[test]
fn lost_session_answers_what_was_underway_and_holds_what_comes_later() {
    let mut case = Case::new();
    let mut guest = case.guest();
    let data = [0x5a; BLOCK_BYTES];
    for number in 0..32 {
        let request = Request {
            id: number,
            data_out: &data,
            ..Request::new(&transfer(true, 0, 1))
        };
        guest.submit(0, &request).unwrap();
        case.hbas[0].target.next_command().unwrap();
    }
    case.fabric.down();
    for _command in 0..32 {
        let response = guest.wait(0).unwrap();
        // Nothing is known of the write: all of it may be missing.
        assert_eq!(
            (response.response, response.residual),
            (TRANSPORT_FAILURE, 512)
        );
    }
    assert_eq!(case.hbas[0].device.statistics().lost_commands, 32);
    for number in 0..8_u8 {
        let cdb = [0, 0, 0, 0, number, 0];
        guest.submit(0, &Request::new(&cdb)).unwrap();
    }
    // Task management is answered meanwhile, so a guest's error handler is not stuck.
    let reset = task_management(5, LUN0, 0);
    assert_eq!(guest.control(&reset, 1).unwrap(), Some(vec![FAILURE]));
    assert!(guest.poll(0).unwrap().is_none());
    case.fabric.up().unwrap();
    for number in 0..8 {
        let command = case.hbas[0].target.next_command().unwrap();
        assert_eq!(command.cdb[4], number);
        case.hbas[0].target.good(&command, &[]).unwrap();
        assert_good(&guest.wait(0).unwrap(), 0);
    }
    case.assert_neighbour_works();
}

#[test]
fn events_are_reported_as_missed_after_an_outage() {
    let mut case = Case::new();
    let mut guest = case.guest();
    guest.post_event(16).unwrap();
    case.fabric.down();
    case.fabric.up().unwrap();
    assert_eq!(
        guest.wait_event().unwrap(),
        Some((EVENTS_MISSED, [0; 8], 0))
    );
}

#[test]
fn commands_of_a_guest_that_went_away_are_ended_before_the_next_ones() {
    let mut case = Case::new();
    let mut guest = case.guest();
    let mut old = Vec::new();
    for _command in 0..4 {
        let read = Request {
            data_in_bytes: 512,
            ..Request::new(&transfer(false, 0, 1))
        };
        guest.submit(0, &read).unwrap();
        old.push(case.hbas[0].target.next_command().unwrap());
    }
    drop(guest);
    let mut guest = case.guest();
    guest.submit(0, &Request::new(&TEST_UNIT_READY)).unwrap();
    let function = case.hbas[0].target.next_function().unwrap();
    assert_eq!(function.function, TaskFunction::ItNexusReset);
    // What the old guest had asked for comes late and must reach nobody.
    case.hbas[0].delivered(8, |target| {
        for command in &old {
            target.good(command, &[0xbb; 512]).unwrap();
        }
    });
    assert!(guest.poll(0).unwrap().is_none());
    assert_eq!(case.hbas[0].device.statistics().unknown_replies, 8);
    case.hbas[0]
        .target
        .respond(function.tag, TaskResponse::Complete)
        .unwrap();
    let command = case.hbas[0].target.next_command().unwrap();
    case.hbas[0].target.good(&command, &[]).unwrap();
    assert_good(&guest.wait(0).unwrap(), 0);
    assert_eq!(case.hbas[0].device.statistics().abandoned_commands, 4);
    case.assert_neighbour_works();
}

// A hostile director (P-04).

/// A read of one block, underway at the target.
fn underway(case: &Case, guest: &mut ScsiGuest) -> orimono_tests::fabric::target::ReceivedCommand {
    let read = Request {
        data_in_bytes: 512,
        ..Request::new(&transfer(false, 0, 1))
    };
    guest.submit(0, &read).unwrap();
    case.hbas[0].target.next_command().unwrap()
}

/// Replies for tags that name nothing of this device are counted and complete nothing.
#[test]
fn p04_unknown_foreign_and_finished_tags_complete_nothing() {
    let mut case = Case::new();
    let mut guest = case.guest();
    // A command of the other device on the same session.
    let neighbour = Request::new(&TEST_UNIT_READY);
    case.neighbour.submit(0, &neighbour).unwrap();
    let foreign = case.hbas[1].target.next_command().unwrap();
    let finished = underway(&case, &mut guest);
    case.hbas[0].target.good(&finished, &[1; 512]).unwrap();
    assert_good(&guest.wait(0).unwrap(), 0);
    let command = underway(&case, &mut guest);
    // The first command of each device has the same tag, which must mean nothing.
    let tags = [
        Tag(u64::MAX),
        Tag(command.tag.0 ^ 1 << 32),
        Tag(command.tag.0 ^ 1 << 63),
        Tag(command.tag.0 + 1),
        finished.tag,
    ];
    case.hbas[0].delivered(3 * 5, |target| {
        for tag in tags {
            target.data_in(tag, 0, &[0xbb; 512]).unwrap();
            target.status(tag, 0, 512, &[]).unwrap();
            target.respond(tag, TaskResponse::Complete).unwrap();
        }
    });
    assert!(guest.poll(0).unwrap().is_none());
    assert_eq!(case.hbas[0].device.statistics().unknown_replies, 15);
    case.hbas[0].target.good(&command, &[7; 512]).unwrap();
    let response = guest.wait(0).unwrap();
    assert_good(&response, 0);
    assert_eq!(response.data, [7; 512]);
    assert!(case.neighbour.poll(0).unwrap().is_none());
    case.hbas[1].target.good(&foreign, &[]).unwrap();
    assert_good(&case.neighbour.wait(0).unwrap(), 0);
    case.assert_unharmed(guest);
}

#[test]
fn p04_second_status_completes_nothing() {
    let mut case = Case::new();
    let mut guest = case.guest();
    let command = underway(&case, &mut guest);
    case.hbas[0].delivered(4, |target| {
        target.good(&command, &[1; 512]).unwrap();
        target.status(command.tag, CHECK_CONDITION, 0, &[]).unwrap();
        target.data_in(command.tag, 0, &[2; 512]).unwrap();
    });
    assert_good(&guest.wait(0).unwrap(), 0);
    assert!(guest.poll(0).unwrap().is_none());
    assert_eq!(case.hbas[0].device.statistics().unknown_replies, 2);
    case.assert_unharmed(guest);
}

/// Data that does not continue what is there is refused, and a status that counts it is found out.
#[test]
fn p04_data_at_the_wrong_place_or_too_much_fails_the_command() {
    let mut case = Case::new();
    let mut guest = case.guest();
    let pieces: [&[(u32, usize)]; 6] = [
        &[(1, 16)],
        &[(0, 513)],
        &[(512, 1)],
        &[(u32::MAX, 512)],
        &[(0, 256), (0, 256)],
        &[(0, 256), (300, 212)],
    ];
    let count = u64::try_from(pieces.len()).unwrap();
    for pieces in pieces {
        let command = underway(&case, &mut guest);
        for (offset, bytes) in pieces {
            let data = vec![0xbb; *bytes];
            case.hbas[0]
                .target
                .data_in(command.tag, *offset, &data)
                .unwrap();
        }
        case.hbas[0]
            .target
            .status(command.tag, 0, 512, &[])
            .unwrap();
        let response = guest.wait(0).unwrap();
        assert_eq!(response.response, TARGET_FAILURE, "{pieces:?}");
        let kept = u32::try_from(if pieces.len() == 2 { pieces[0].1 } else { 0 }).unwrap();
        assert_eq!(
            (response.residual, response.used_bytes),
            (512 - kept, 108 + kept)
        );
    }
    let statistics = case.hbas[0].device.statistics();
    assert_eq!(
        (statistics.bad_replies, statistics.incomplete_data),
        (count, count)
    );
    case.assert_unharmed(guest);
}

#[test]
fn p04_status_that_counts_other_data_than_was_sent_fails_the_command() {
    let mut case = Case::new();
    let mut guest = case.guest();
    for counted in [0, 511, 513, u32::MAX] {
        let command = underway(&case, &mut guest);
        case.hbas[0]
            .target
            .data_in(command.tag, 0, &[1; 512])
            .unwrap();
        case.hbas[0]
            .target
            .status(command.tag, 0, counted, &[])
            .unwrap();
        assert_eq!(guest.wait(0).unwrap().response, TARGET_FAILURE);
    }
    assert_eq!(case.hbas[0].device.statistics().incomplete_data, 4);
    case.assert_unharmed(guest);
}

#[test]
fn p04_units_that_a_director_must_not_send_are_counted() {
    let mut case = Case::new();
    let mut guest = case.guest();
    let command = underway(&case, &mut guest);
    let tag = command.tag;
    let units = [
        InformationUnit::DataOut(Data {
            tag,
            offset: 0,
            data: &[1; 512],
        }),
        InformationUnit::TaskManagement {
            function: TaskFunction::AbortTask,
            tag,
            managed: tag,
            lun: [0; 8],
        },
    ];
    case.hbas[0].delivered(2, |target| {
        for unit in &units {
            target.send(unit).unwrap();
        }
    });
    // A command's lane is closed in this direction: it cannot even be sent.
    let mut bytes = Vec::new();
    InformationUnit::Command(Command {
        tag,
        lun: [0; 8],
        attribute: 0,
        cdb: &TEST_UNIT_READY,
        data_out_bytes: 0,
        data_in_bytes: 0,
    })
    .encode(&mut bytes);
    let far = case.hbas[0].target.far();
    let buffer = fabric_transport::FrameBuffer::from_payload(&bytes);
    let mut frames = vec![(VirtualLane::StorageCommand, buffer)];
    assert!(far.lanes().unwrap().try_send(&mut frames).is_err());
    // On the wrong lane, truncated, of an unknown type, empty.
    case.hbas[0].delivered(6, |target| {
        let far = target.far();
        let mut status = Vec::new();
        InformationUnit::TaskManagementResponse {
            response: TaskResponse::Complete,
            tag,
        }
        .encode(&mut status);
        far.send(VirtualLane::StorageData, &status).unwrap();
        far.send(VirtualLane::StorageData, &status[..3]).unwrap();
        for lane in [VirtualLane::StorageData, VirtualLane::TaskManagement] {
            far.send(lane, &[]).unwrap();
            far.send(lane, &[99; 64]).unwrap();
        }
    });
    assert_eq!(case.hbas[0].device.statistics().bad_replies, 8);
    assert!(guest.poll(0).unwrap().is_none());
    case.hbas[0].target.good(&command, &[3; 512]).unwrap();
    assert_good(&guest.wait(0).unwrap(), 0);
    case.assert_unharmed(guest);
}

#[test]
fn p04_replies_that_come_after_the_session_was_lost_complete_nothing() {
    let mut case = Case::new();
    let mut guest = case.guest();
    let old = underway(&case, &mut guest);
    case.fabric.down();
    assert_eq!(guest.wait(0).unwrap().response, TRANSPORT_FAILURE);
    case.fabric.up().unwrap();
    let new = underway(&case, &mut guest);
    assert_ne!(new.tag, old.tag);
    case.hbas[0].delivered(2, |target| target.good(&old, &[1; 512]).unwrap());
    assert!(guest.poll(0).unwrap().is_none());
    assert_eq!(case.hbas[0].device.statistics().unknown_replies, 2);
    case.hbas[0].target.good(&new, &[2; 512]).unwrap();
    assert_eq!(guest.wait(0).unwrap().data, [2; 512]);
    case.assert_unharmed(guest);
}

// Task management and events.

#[test]
fn s10_every_function_is_answered_with_what_the_director_said() {
    let mut case = Case::new();
    let mut guest = case.guest();
    let functions = [
        (1, TaskFunction::AbortTaskSet),
        (3, TaskFunction::ClearTaskSet),
        (4, TaskFunction::ItNexusReset),
        (5, TaskFunction::LogicalUnitReset),
        (7, TaskFunction::QueryTaskSet),
    ];
    let responses = [
        (TaskResponse::Complete, OK),
        (TaskResponse::Succeeded, FUNCTION_SUCCEEDED),
        (TaskResponse::Rejected, FUNCTION_REJECTED),
        (TaskResponse::IncorrectLun, INCORRECT_LUN),
    ];
    for (number, function) in functions {
        for (response, code) in responses {
            guest
                .submit_control(&task_management(number, LUN0, 0), 1)
                .unwrap();
            let received = case.hbas[0].target.next_function().unwrap();
            assert_eq!(received.function, function);
            assert_eq!(received.lun[..2], [0x40, 0]);
            case.hbas[0].target.respond(received.tag, response).unwrap();
            assert_eq!(guest.wait_control(1).unwrap(), Some(vec![code]));
        }
    }
    // Of a task that is not there, and of those that do not exist: answered here.
    for (number, code) in [
        (0, OK),
        (6, OK),
        (2, FUNCTION_REJECTED),
        (8, FUNCTION_REJECTED),
        (u32::MAX, FUNCTION_REJECTED),
    ] {
        let answer = guest
            .control(&task_management(number, LUN0, 99), 1)
            .unwrap();
        assert_eq!(answer, Some(vec![code]), "function {number}");
    }
    let elsewhere = task_management(5, [1, 3, 0x40, 0, 0, 0, 0, 0], 0);
    assert_eq!(
        guest.control(&elsewhere, 1).unwrap(),
        Some(vec![BAD_TARGET])
    );
    case.assert_unharmed(guest);
}

#[test]
fn s10_functions_end_commands_before_they_are_complete_themselves() {
    let mut case = Case::new();
    let mut guest = case.guest();
    let hba = &case.hbas[0];
    for (number, ended, code) in [(0, 1, ABORTED), (1, 4, ABORTED), (5, 4, RESET)] {
        let mut commands = Vec::new();
        for id in 0..4 {
            let request = Request {
                id,
                ..Request::new(&TEST_UNIT_READY)
            };
            guest.submit(0, &request).unwrap();
            commands.push(hba.target.next_command().unwrap());
        }
        guest
            .submit_control(&task_management(number, LUN0, 2), 1)
            .unwrap();
        let function = hba.target.next_function().unwrap();
        if number == 0 {
            assert_eq!(function.managed, commands[2].tag);
        }
        hba.target
            .respond(function.tag, TaskResponse::Complete)
            .unwrap();
        assert_eq!(guest.wait_control(1).unwrap(), Some(vec![OK]));
        // Completed already: nothing is waited for here.
        for _command in 0..ended {
            assert_eq!(guest.poll(0).unwrap().unwrap().response, code);
        }
        assert!(guest.poll(0).unwrap().is_none());
        // Statuses that were on their way find nothing.
        let before = hba.device.statistics().unknown_replies;
        hba.delivered(5, |target| {
            for command in &commands {
                target.good(command, &[]).unwrap();
            }
            target.respond(Tag(5), TaskResponse::Complete).unwrap();
        });
        for _command in ended..4 {
            assert_good(&guest.wait(0).unwrap(), 0);
        }
        let late = u64::try_from(ended).unwrap() + 1;
        assert_eq!(hba.device.statistics().unknown_replies, before + late);
    }
    case.assert_unharmed(guest);
}

#[test]
fn s10_thousands_of_functions_are_all_answered() {
    let mut case = Case::new();
    let mut guest = case.guest();
    for round in 0..100 {
        for _function in 0..100 {
            guest
                .submit_control(&task_management(1, LUN0, round), 1)
                .unwrap();
        }
        for _function in 0..100 {
            let function = case.hbas[0].target.next_function().unwrap();
            case.hbas[0]
                .target
                .respond(function.tag, TaskResponse::Complete)
                .unwrap();
        }
        for _function in 0..100 {
            assert_eq!(guest.wait_control(1).unwrap(), Some(vec![OK]));
        }
    }
    case.assert_unharmed(guest);
}

#[test]
fn s10_malformed_control_requests_are_answered_or_come_back_empty() {
    let mut case = Case::new();
    let mut guest = case.guest();
    let reset = task_management(5, LUN0, 0);
    for bytes in [0, 1, 3, 4, 7, 8, 15, 23] {
        let answer = guest.control(&reset[..bytes], 1).unwrap();
        assert_eq!(answer, Some(vec![FUNCTION_REJECTED]), "{bytes} bytes");
    }
    // No room for an answer.
    assert_eq!(guest.control(&reset, 0).unwrap(), None);
    // Asynchronous notification: nothing is reported that way.
    let subscribe = [&[2, 0, 0, 0][..], &LUN0, &[0xff; 4]].concat();
    assert_eq!(guest.control(&subscribe, 5).unwrap(), Some(vec![0; 5]));
    assert_eq!(case.hbas[0].target.far().waiting(), 0);
    case.assert_unharmed(guest);
}

#[test]
fn s15_events_reach_the_guest_and_say_what_was_missed() {
    let mut case = Case::new();
    let mut guest = case.guest();
    let hba = &case.hbas[0];
    let lun = [0x40, 5, 0, 0, 0, 0, 0, 0];
    let guest_lun = [1, 0, 0, 5, 0, 0, 0, 0];
    let capacity_changed = Event::ParameterChanged {
        lun,
        asc: 0x2a,
        ascq: 9,
    };
    for (event, expected) in [
        (Event::LunAdded(lun), (1, guest_lun, 1)),
        (Event::LunRemoved(lun), (1, guest_lun, 2)),
        (capacity_changed, (3, guest_lun, 0x092a)),
    ] {
        guest.post_event(16).unwrap();
        // The guest has its event before the batch is counted.
        hba.delivered(1, |target| target.event(event).unwrap());
        assert_eq!(guest.wait_event().unwrap(), Some(expected));
    }
    // No buffers: whatever happened, the next buffer says that something did.
    hba.delivered(1000, |target| {
        for _event in 0..1000 {
            target.event(Event::LunAdded(lun)).unwrap();
        }
    });
    assert_eq!(hba.device.statistics().missed_events, 1000);
    guest.post_event(16).unwrap();
    assert_eq!(
        guest.wait_event().unwrap(),
        Some((EVENTS_MISSED, [0; 8], 0))
    );
    // Buffers that are too small come back empty, the next one is used.
    guest.post_event(15).unwrap();
    guest.post_event(1).unwrap();
    guest.post_event(16).unwrap();
    hba.target.event(Event::LunRemoved(lun)).unwrap();
    assert_eq!(guest.wait_event().unwrap(), None);
    assert_eq!(guest.wait_event().unwrap(), None);
    assert_eq!(guest.wait_event().unwrap(), Some((1, guest_lun, 2)));
    assert_eq!(hba.device.statistics().bad_event_buffers, 2);
    case.assert_unharmed(guest);
}

// A hostile guest.

#[test]
fn s04_address_forms() {
    let mut case = Case::new();
    let mut guest = case.guest();
    let flat = |high: u8, low: u8| [0x40 | high, low, 0, 0, 0, 0, 0, 0];
    for (lun, expected) in [
        ([1, 0, 0x40, 1, 0, 0, 0, 0], flat(0, 1)),
        ([1, 0, 0, 1, 0, 0, 0, 0], flat(0, 1)),
        ([1, 0, 0x41, 2, 0, 0, 0, 0], flat(1, 2)),
        ([1, 0, 0x7f, 0xff, 0, 0, 0, 0], flat(0x3f, 0xff)),
        ([0xc1, 1, 0, 0, 0, 0, 0, 0], [0xc1, 1, 0, 0, 0, 0, 0, 0]),
    ] {
        let request = Request {
            lun,
            ..Request::new(&TEST_UNIT_READY)
        };
        guest.submit(0, &request).unwrap();
        let command = case.hbas[0].target.next_command().unwrap();
        assert_eq!(command.lun, expected, "{lun:02x?}");
        case.hbas[0].target.good(&command, &[]).unwrap();
        assert_good(&guest.wait(0).unwrap(), 0);
    }
    for lun in [
        [1, 1, 0x40, 0, 0, 0, 0, 0],
        [1, 255, 0x40, 0, 0, 0, 0, 0],
        [0, 0, 0x40, 0, 0, 0, 0, 0],
        [1, 0, 0x80, 0, 0, 0, 0, 0],
        [0xff; 8],
        [0; 8],
    ] {
        let request = Request {
            lun,
            ..Request::new(&TEST_UNIT_READY)
        };
        guest.submit(0, &request).unwrap();
        assert_eq!(guest.wait(0).unwrap().response, BAD_TARGET, "{lun:02x?}");
    }
    assert_eq!(case.hbas[0].target.far().waiting(), 0);
    case.assert_unharmed(guest);
}

#[test]
fn s11_ids_that_are_used_twice_are_the_guests_own_problem() {
    let mut case = Case::new();
    let mut guest = case.guest();
    let mut tags = Vec::new();
    for attribute in [0, 1, 2, 0, 1, 2] {
        let request = Request {
            attribute,
            ..Request::new(&TEST_UNIT_READY)
        };
        guest.submit(0, &request).unwrap();
        let command = case.hbas[0].target.next_command().unwrap();
        assert_eq!(command.attribute, attribute);
        tags.push(command);
    }
    for command in tags.iter().rev() {
        case.hbas[0].target.good(command, &[]).unwrap();
        assert_good(&guest.wait(0).unwrap(), 0);
    }
    let unknown = Request {
        attribute: 4,
        ..Request::new(&TEST_UNIT_READY)
    };
    guest.submit(0, &unknown).unwrap();
    assert_eq!(guest.wait(0).unwrap().response, FAILURE);
    case.assert_unharmed(guest);
}

#[test]
fn g09_transfers_beyond_the_limit_are_refused_with_sense() {
    let mut case = Case::new();
    let mut guest = case.guest();
    let beyond = TRANSFER_BYTES_MAX + 1;
    let data = vec![0; beyond];
    let cdb = transfer(true, 0, 2049);
    let requests = [
        Request {
            data_out: &data,
            ..Request::new(&cdb)
        },
        Request {
            data_in_bytes: u32::try_from(beyond).unwrap(),
            ..Request::new(&cdb)
        },
    ];
    for request in requests {
        guest.submit(0, &request).unwrap();
        let response = guest.wait(0).unwrap();
        assert_eq!((response.response, response.status), (OK, CHECK_CONDITION));
        // ILLEGAL REQUEST, INVALID FIELD IN CDB.
        assert_eq!((response.sense[2], response.sense[12]), (5, 0x24));
        assert_eq!(response.residual, u32::try_from(beyond).unwrap());
    }
    // 3 GiB, made of the same megabytes again and again: nothing may be allocated for it.
    let slot = guest.slot().unwrap();
    let header = Request::new(&TEST_UNIT_READY).header();
    guest.guest.ram.write(slot, &header).unwrap();
    let mut buffers = vec![
        Buffer::readable(slot, 51),
        Buffer::writable(slot + 2048, 108),
    ];
    buffers.extend([Buffer::writable(RAM_START, 64 << 20); 48]);
    let ring = guest.guest.queue(REQUESTS).unwrap();
    assert_eq!(ring.transact(&buffers).unwrap().bytes, 108);
    assert_eq!(
        guest.guest.ram.read(slot + 2048, 108).unwrap()[10],
        CHECK_CONDITION
    );
    assert_eq!(case.hbas[0].target.far().waiting(), 0);
    case.assert_unharmed(guest);
}

/// Buffers that hold a TEST UNIT READY.
fn ready(guest: &mut ScsiGuest) -> u64 {
    let slot = guest.slot().unwrap();
    let header = Request::new(&TEST_UNIT_READY).header();
    guest.guest.ram.write(slot, &header).unwrap();
    slot
}

#[test]
fn g12_request_without_room_for_a_response_comes_back_empty() {
    let mut case = Case::new();
    let mut guest = case.guest();
    let slot = ready(&mut guest);
    let ring = guest.guest.queue(REQUESTS).unwrap();
    for room in [None, Some(0), Some(1), Some(107)] {
        let mut buffers = vec![Buffer::readable(slot, 51)];
        buffers.extend(room.map(|bytes| Buffer::writable(slot + 2048, bytes)));
        assert_eq!(ring.transact(&buffers).unwrap().bytes, 0, "room {room:?}");
    }
    assert_eq!(case.hbas[0].device.statistics().unanswerable_chains, 4);
    assert_eq!(case.hbas[0].target.far().waiting(), 0);
    case.assert_unharmed(guest);
}

#[test]
fn g11_request_of_the_wrong_direction_fails_or_comes_back() {
    let mut case = Case::new();
    let mut guest = case.guest();
    let slot = ready(&mut guest);
    // No request at all, and one that ends too early: there is room to say so.
    for bytes in [0, 1, 50] {
        let ring = guest.guest.queue(REQUESTS).unwrap();
        let buffers = [
            Buffer::readable(slot, bytes),
            Buffer::writable(slot + 2048, 108),
        ];
        assert_eq!(ring.transact(&buffers).unwrap().bytes, 108);
        let response = guest.guest.ram.read(slot + 2048, 108).unwrap();
        assert_eq!(response[11], FAILURE);
    }
    let ring = guest.guest.queue(REQUESTS).unwrap();
    let all_writable = [Buffer::writable(slot + 2048, 200)];
    assert_eq!(ring.transact(&all_writable).unwrap().bytes, 108);
    // Response in front of the request: no chain at all.
    let turned = [
        Buffer::writable(slot + 2048, 108),
        Buffer::readable(slot, 51),
    ];
    assert_eq!(ring.transact(&turned).unwrap().bytes, 0);
    assert_eq!(case.hbas[0].chains_rejected(REQUESTS), 1);
    // Both directions at once need a feature that is not offered.
    let both = [
        Buffer::readable(slot, 51 + 16),
        Buffer::writable(slot + 2048, 108 + 16),
    ];
    assert_eq!(ring.transact(&both).unwrap().bytes, 108);
    assert_eq!(guest.guest.ram.read(slot + 2048, 108).unwrap()[11], FAILURE);
    assert_eq!(case.hbas[0].target.far().waiting(), 0);
    case.assert_unharmed(guest);
}

#[test]
fn g13_head_made_available_twice_is_two_commands() {
    let mut case = Case::new();
    let mut guest = case.guest();
    let slot = ready(&mut guest);
    let ring = guest.guest.queue(REQUESTS).unwrap();
    ring.write_descriptor(0, slot, 51, DESC_NEXT, 1).unwrap();
    ring.write_descriptor(1, slot + 2048, 108, 2, 0).unwrap();
    for _time in 0..2 {
        ring.publish(0).unwrap();
    }
    ring.kick().unwrap();
    for _time in 0..2 {
        let command = case.hbas[0].target.next_command().unwrap();
        case.hbas[0].target.good(&command, &[]).unwrap();
        assert_eq!(guest.guest.queue(REQUESTS).unwrap().wait().unwrap().head, 0);
    }
    case.assert_unharmed(guest);
}

#[test]
fn g15_data_over_the_response_spoils_only_the_guests_own_memory() {
    let mut case = Case::new();
    let mut guest = case.guest();
    let slot = ready(&mut guest);
    let buffers = [
        Buffer::readable(slot, 51),
        Buffer::writable(slot + 2048, 108),
        Buffer::writable(slot + 2048, 108),
        Buffer::writable(slot, 51),
    ];
    let ring = guest.guest.queue(REQUESTS).unwrap();
    let head = ring.submit(&buffers).unwrap();
    ring.kick().unwrap();
    let command = case.hbas[0].target.next_command().unwrap();
    assert_eq!(command.data_in_bytes, 159);
    case.hbas[0].target.good(&command, &[0xff; 159]).unwrap();
    let used = guest.guest.queue(REQUESTS).unwrap().wait().unwrap();
    assert_eq!((used.head, used.bytes), (head, 108 + 159));
    case.assert_unharmed(guest);
}

/// A hand-written chain comes back unused from each ring, and nothing reaches the fabric.
fn assert_rejected(descriptors: &[(u64, u32, u16, u16)]) {
    let mut case = Case::new();
    for queue in [CONTROL, REQUESTS] {
        let mut guest = case.guest();
        let before = case.hbas[0].chains_rejected(queue);
        let ring = guest.guest.queue(queue).unwrap();
        for (index, (address, bytes, flags, next)) in (0..).zip(descriptors) {
            ring.write_descriptor(index, *address, *bytes, *flags, *next)
                .unwrap();
        }
        ring.publish(0).unwrap();
        ring.kick().unwrap();
        let used = ring.wait().unwrap();
        assert_eq!((used.head, used.bytes), (0, 0));
        assert_eq!(case.hbas[0].chains_rejected(queue), before + 1);
        assert_eq!(case.hbas[0].target.far().waiting(), 0);
        case.assert_unharmed(guest);
    }
}

#[test]
fn g04_chains_that_never_end_come_back_unused() {
    assert_rejected(&[(RAM_START, 64, DESC_NEXT, 0)]);
    assert_rejected(&[(RAM_START, 64, DESC_NEXT, 1), (RAM_START, 64, DESC_NEXT, 0)]);
}

#[test]
fn g07_buffers_outside_of_memory_come_back_unused() {
    for (address, bytes) in [
        (RAM_START + RAM_BYTES - 64, 128),
        (0x1000, 64),
        (u64::MAX - 15, u32::MAX),
    ] {
        assert_rejected(&[(RAM_START, 51, DESC_NEXT, 1), (address, bytes, 2, 0)]);
    }
}

#[test]
fn g10_bad_indirect_tables_come_back_unused() {
    for (address, bytes) in [
        (RAM_START, 0),
        (RAM_START, 24),
        (0x1000, 16),
        (u64::MAX - 15, 16),
    ] {
        assert_rejected(&[(address, bytes, DESC_INDIRECT, 0)]);
    }
}

#[test]
fn g03_available_index_too_far_ahead_breaks_that_ring_until_it_is_reset() {
    let mut case = Case::new();
    let mut guest = case.guest();
    let ring = guest.guest.queue(REQUESTS).unwrap();
    ring.set_available_index(257).unwrap();
    ring.kick().unwrap();
    ring.wait_error().unwrap();
    // The other rings go on.
    assert_eq!(
        guest.control(&[9; 4], 1).unwrap(),
        Some(vec![FUNCTION_REJECTED])
    );
    guest.guest.stop_queue(REQUESTS).unwrap();
    guest.guest.queue(REQUESTS).unwrap().reset().unwrap();
    guest.guest.start_queue(REQUESTS, 0).unwrap();
    case.hbas[0].round_trip(&mut guest);
    case.assert_unharmed(guest);
}

#[test]
fn g17_kicks_without_work_do_no_harm() {
    let mut case = Case::new();
    let mut guest = case.guest();
    for count in 0..100_000 {
        let queue = [CONTROL, EVENT, REQUESTS][count % 3];
        guest.guest.queue(queue).unwrap().kick().unwrap();
    }
    case.hbas[0].round_trip(&mut guest);
    case.assert_unharmed(guest);
}

#[test]
fn s10_reset_of_an_absent_target_after_one_of_a_present_one_is_answered() {
    let mut case = Case::new();
    let mut guest = case.guest();
    for _round in 0..3 {
        guest
            .submit_control(&task_management(5, LUN0, 0), 1)
            .unwrap();
        let reset = case.hbas[0].target.next_function().unwrap();
        case.hbas[0]
            .target
            .respond(reset.tag, TaskResponse::Complete)
            .unwrap();
        assert_eq!(guest.wait_control(1).unwrap(), Some(vec![OK]));
        let absent = task_management(5, [1, 200, 0x40, 0, 0, 0, 0, 0], 0);
        assert_eq!(guest.control(&absent, 1).unwrap(), Some(vec![BAD_TARGET]));
    }
    assert_eq!(case.hbas[0].target.far().waiting(), 0);
    case.assert_unharmed(guest);
}

/// What peers were measured with, and more: each is answered, or its chain comes back unused where
/// there is no room for an answer, and the device serves the next guest.
#[test]
fn g12_thirty_malformed_requests_are_answered_and_served_on() {
    type Chain = fn(u64) -> Vec<Buffer>;
    const EMPTY: Option<u8> = None;
    let mut case = Case::new();
    let mut tried = 0;

    let chains: [(Chain, Option<u8>); 11] = [
        (|at| vec![Buffer::readable(at, 51)], EMPTY),
        (
            |at| vec![Buffer::readable(at, 51), Buffer::writable(at + 2048, 0)],
            EMPTY,
        ),
        (
            |at| vec![Buffer::readable(at, 51), Buffer::writable(at + 2048, 1)],
            EMPTY,
        ),
        (
            |at| vec![Buffer::readable(at, 51), Buffer::writable(at + 2048, 107)],
            EMPTY,
        ),
        (
            |at| vec![Buffer::writable(at + 2048, 108), Buffer::readable(at, 51)],
            EMPTY,
        ),
        (
            |at| vec![Buffer::readable(at, 0), Buffer::writable(at + 2048, 108)],
            Some(FAILURE),
        ),
        (
            |at| vec![Buffer::readable(at, 1), Buffer::writable(at + 2048, 108)],
            Some(FAILURE),
        ),
        (
            |at| vec![Buffer::readable(at, 50), Buffer::writable(at + 2048, 108)],
            Some(FAILURE),
        ),
        (|at| vec![Buffer::writable(at + 2048, 200)], Some(FAILURE)),
        (
            |at| vec![Buffer::readable(at, 67), Buffer::writable(at + 2048, 124)],
            Some(FAILURE),
        ),
        // 64 MiB to be read: OK, with CHECK CONDITION.
        (
            |at| {
                vec![
                    Buffer::readable(at, 51),
                    Buffer::writable(at + 2048, 108),
                    Buffer::writable(RAM_START, 64 << 20),
                ]
            },
            Some(OK),
        ),
    ];
    for (chain, code) in chains {
        let mut guest = case.guest();
        let slot = ready(&mut guest);
        let ring = guest.guest.queue(REQUESTS).unwrap();
        let used = ring.transact(&chain(slot)).unwrap().bytes;
        assert_eq!(used > 0, code.is_some(), "chain {tried}");
        if let Some(code) = code {
            let response = guest.guest.ram.read(slot + 2048, 108).unwrap();
            assert_eq!(response[11], code, "chain {tried}");
        }
        case.assert_unharmed(guest);
        tried += 1;
    }

    for (lun, attribute, code) in [
        ([1, 200, 0x40, 0, 0, 0, 0, 0], 0, BAD_TARGET),
        ([1, 0, 0x80, 0, 0, 0, 0, 0], 0, BAD_TARGET),
        ([0xff; 8], 0, BAD_TARGET),
        ([0; 8], 0, BAD_TARGET),
        (LUN0, 4, FAILURE),
        (LUN0, 0xff, FAILURE),
    ] {
        let mut guest = case.guest();
        let request = Request {
            lun,
            attribute,
            ..Request::new(&TEST_UNIT_READY)
        };
        guest.submit(0, &request).unwrap();
        assert_eq!(guest.wait(0).unwrap().response, code, "{request:?}");
        case.assert_unharmed(guest);
        tried += 1;
    }

    let reset = task_management(5, LUN0, 0);
    for (bytes, room, answer) in [
        (&reset[..0], 1, Some(vec![FUNCTION_REJECTED])),
        (&reset[..3], 1, Some(vec![FUNCTION_REJECTED])),
        (&reset[..23], 1, Some(vec![FUNCTION_REJECTED])),
        (&[9; 24], 1, Some(vec![FUNCTION_REJECTED])),
        (
            &task_management(99, LUN0, 0),
            1,
            Some(vec![FUNCTION_REJECTED]),
        ),
        (&reset[..], 0, None),
    ] {
        let mut guest = case.guest();
        assert_eq!(guest.control(bytes, room).unwrap(), answer, "{bytes:02x?}");
        case.assert_unharmed(guest);
        tried += 1;
    }

    let beyond = RAM_START + RAM_BYTES - 64;
    let rejected: [&[(u64, u32, u16, u16)]; 7] = [
        &[(RAM_START, 64, DESC_NEXT, 0)],
        &[(RAM_START, 51, DESC_NEXT, 1), (beyond, 128, 2, 0)],
        &[(RAM_START, 51, DESC_NEXT, 1), (0x1000, 64, 2, 0)],
        &[
            (RAM_START, 51, DESC_NEXT, 1),
            (u64::MAX - 15, u32::MAX, 2, 0),
        ],
        &[(RAM_START, 0, DESC_INDIRECT, 0)],
        &[(RAM_START, 24, DESC_INDIRECT, 0)],
        &[(0x1000, 16, DESC_INDIRECT, 0)],
    ];
    for descriptors in rejected {
        assert_rejected(descriptors);
        tried += 1;
    }
    assert_eq!(tried, 30);
    assert_eq!(case.hbas[0].target.far().waiting(), 0);
}

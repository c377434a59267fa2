//! A host that speaks to a director's vHBAs through two real endpoints over an in-process link.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use fabric_config::LabConfig;
use fabric_payload::scsi::{
    Command, Data, Event, InformationUnit, ServiceResponse, Tag, TaskFunction, TaskResponse,
};
use fabric_transport::endpoint::{DeviceGrant, Endpoint};
use fabric_transport::{
    DeviceId, Directory, FrameBuffer, LaneClient, LaneSet, Receipt, SendRefused, VirtualLane,
};
use qos::DeviceRate;

use crate::Director;

mod direct;
mod lun_map;
mod medium;
mod model;
mod operator;
mod shaping;

/// A failed expectation, not a measure: nothing here takes this long.
const PATIENCE: Duration = Duration::from_secs(20);
const SLOW_MS: u64 = 3000;
/// vHBA with a fast LUN 0 and a slow LUN 1.
const MIXED: DeviceId = DeviceId(11);
/// vHBA that shares the slow unit as its LUN 0.
const SHARING: DeviceId = DeviceId(12);

#[derive(Debug)]
enum Seen {
    Up(LaneSet),
    Down,
    Status {
        tag: u64,
        response: ServiceResponse,
        status: u8,
        sense: Vec<u8>,
        data: Vec<u8>,
    },
    Management {
        tag: u64,
        response: TaskResponse,
    },
    Event(Event),
}

/// The vHBA at the host's end: puts data-in together, reports what ends.
struct HostVhba {
    seen: Mutex<mpsc::Sender<(DeviceId, Seen)>>,
    writable: Mutex<mpsc::Sender<()>>,
    device: DeviceId,
    data: Mutex<HashMap<u64, Vec<u8>>>,
}

impl HostVhba {
    fn report(&self, seen: Seen) {
        // The test may have ended before the last report.
        drop(self.seen.lock().unwrap().send((self.device, seen)));
    }
}

impl LaneClient for HostVhba {
    fn up(&self, lanes: LaneSet) {
        self.report(Seen::Up(lanes));
    }

    fn receive(&self, _lane: VirtualLane, payload: &[u8]) -> Receipt {
        let mut data = self.data.lock().unwrap();
        match InformationUnit::parse(payload).unwrap() {
            InformationUnit::DataIn(piece) => {
                let data = data.entry(piece.tag.0).or_default();
                assert_eq!(usize::try_from(piece.offset).unwrap(), data.len());
                data.extend_from_slice(piece.data);
            }
            InformationUnit::Status(status) => {
                let data = data.remove(&status.tag.0).unwrap_or_default();
                if status.response == ServiceResponse::TaskComplete {
                    assert_eq!(usize::try_from(status.data_in_bytes).unwrap(), data.len());
                }
                self.report(Seen::Status {
                    tag: status.tag.0,
                    response: status.response,
                    status: status.status,
                    sense: status.sense.to_vec(),
                    data,
                });
            }
            InformationUnit::TaskManagementResponse { response, tag } => {
                self.report(Seen::Management {
                    tag: tag.0,
                    response,
                });
            }
            InformationUnit::Event(event) => self.report(Seen::Event(event)),
            other => panic!("a director does not send {other:?}"),
        }
        Receipt::Consumed
    }

    fn writable(&self) {
        // As above.
        let _gone = self.writable.lock().unwrap().send(());
    }

    fn down(&self, _epoch: u16) {
        self.report(Seen::Down);
    }
}

struct HostDirectory(Mutex<Vec<(DeviceId, DeviceGrant)>>);

impl Directory for HostDirectory {
    fn active(&self, endpoint: &Arc<Endpoint>) {
        for (device, grant) in self.0.lock().unwrap().drain(..) {
            endpoint.attach(device, 0, grant).unwrap();
        }
    }
    fn refused(&self, device: DeviceId, reason: &str) {
        panic!("{device}: {reason}");
    }
}

/// A director with its files, and one host's session.
struct Lab {
    folder: tempfile::TempDir,
    config: LabConfig,
    director: Director,
    endpoint: Arc<Endpoint>,
    lanes: HashMap<DeviceId, LaneSet>,
    seen: mpsc::Receiver<(DeviceId, Seen)>,
    writable: mpsc::Receiver<()>,
}

fn config(folder: &Path) -> LabConfig {
    for name in ["fast.img", "slow.img"] {
        File::create(folder.join(name))
            .unwrap()
            .set_len(4 << 20)
            .unwrap();
    }
    let text = format!(
        r#"
        [director]
        name = "director1"
        [[lun]]
        name = "fast"
        port = "12/1"
        file = "{folder}/fast.img"
        [[lun]]
        name = "slow"
        port = "12/1"
        file = "{folder}/slow.img"
        delay-ms = {SLOW_MS}
        [[host]]
        name = "host1"
        embedded = true
        run-dir = "{folder}"
        rate = "10G"
        [[host.vm]]
        name = "vm1"
        [[host.vm.vhba]]
        name = "vh01"
        id = 11
        port = "12/1"
        luns = [ {{ lun = 0, name = "fast" }}, {{ lun = 1, name = "slow" }} ]
        [[host.vm.vhba]]
        name = "vh02"
        id = 12
        port = "12/1"
        luns = [ {{ lun = 0, name = "slow" }} ]
        "#,
        folder = folder.display(),
    );
    text.parse().unwrap()
}

impl Lab {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut LabConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        change(&mut config);
        let director = Director::start(&config).unwrap();
        let (endpoint, seen, writable) = connect(&director);
        let lanes = HashMap::new();
        let mut lab = Self {
            folder,
            config,
            director,
            endpoint,
            lanes,
            seen,
            writable,
        };
        lab.wait_up();
        lab
    }

    /// Waits for the lanes of both vHBAs, and for what the director says of the size of their LUNs
    /// at the start of a session.
    fn wait_lanes(&mut self) {
        let mut sizes = Vec::new();
        let mut up = 0;
        while up < 2 || sizes.len() < 3 {
            match self.seen.recv_timeout(PATIENCE).unwrap() {
                (device, Seen::Up(lanes)) => {
                    self.lanes.insert(device, lanes);
                    up += 1;
                }
                (device, Seen::Event(Event::ParameterChanged { lun, asc, ascq })) => {
                    assert_eq!((asc, ascq), (0x2a, 9));
                    sizes.push((device, lun[1]));
                }
                other => panic!("{other:?} before the lanes are up"),
            }
        }
        sizes.sort_unstable();
        assert_eq!(sizes, [(MIXED, 0), (MIXED, 1), (SHARING, 0)]);
    }

    fn wait_up(&mut self) {
        self.wait_lanes();
        // 29/00 of a new nexus is told to the first command, whatever it is.
        self.send(MIXED, [command(9000, 0, &[0; 6], 0, 0)]);
        let (_, _, sense, _) = self.status(9000);
        assert_eq!((sense[2] & 0xf, sense[12], sense[13]), (6, 0x29, 0));
    }

    fn send(&self, device: DeviceId, frames: impl IntoIterator<Item = (VirtualLane, FrameBuffer)>) {
        let mut frames: Vec<_> = frames.into_iter().collect();
        loop {
            match self.lanes[&device].try_send(&mut frames) {
                Ok(()) => return,
                Err(SendRefused::Blocked) => self.writable.recv_timeout(PATIENCE).unwrap(),
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn next(&self) -> Seen {
        self.seen.recv_timeout(PATIENCE).unwrap().1
    }

    /// The end of the command `wanted`, which must be the next thing that happens.
    fn status(&self, wanted: u64) -> (ServiceResponse, u8, Vec<u8>, Vec<u8>) {
        match self.next() {
            Seen::Status {
                tag,
                response,
                status,
                sense,
                data,
            } if tag == wanted => (response, status, sense, data),
            other => panic!("{other:?} instead of the status of {wanted}"),
        }
    }

    /// Returns when the director has the command `tag`: task management may overtake it.
    fn wait_queued(&self, device: DeviceId, tag: u64, lun: u8) {
        loop {
            self.send(device, [manage(TaskFunction::QueryTask, 7000, tag, lun)]);
            match self.next() {
                Seen::Management {
                    tag: 7000,
                    response: TaskResponse::Succeeded,
                } => return,
                Seen::Management {
                    tag: 7000,
                    response: TaskResponse::Complete,
                } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn counter(&self, name: &str) -> u64 {
        let snapshots = self.director.snapshot();
        let snapshot = snapshots
            .iter()
            .find(|snapshot| snapshot.object == "vhba vh01.vm1");
        snapshot.unwrap().count(name).unwrap()
    }
}

fn connect(
    director: &Director,
) -> (
    Arc<Endpoint>,
    mpsc::Receiver<(DeviceId, Seen)>,
    mpsc::Receiver<()>,
) {
    let (seen_sender, seen) = mpsc::channel();
    let (writable_sender, writable) = mpsc::channel();
    let devices = [MIXED, SHARING].map(|device| {
        let client = Arc::new(HostVhba {
            seen: Mutex::new(seen_sender.clone()),
            writable: Mutex::new(writable_sender.clone()),
            device,
            data: Mutex::default(),
        });
        let windows = [256, 0, 64 * 1024, 0];
        (
            device,
            DeviceGrant {
                vm: None,
                rate: DeviceRate::best_effort(),
                windows,
                client,
            },
        )
    });
    let directory = Arc::new(HostDirectory(Mutex::new(devices.into())));
    let endpoint = crate::testing::session(director, directory);
    (endpoint, seen, writable)
}

fn frame(lane: VirtualLane, unit: &InformationUnit<'_>) -> (VirtualLane, FrameBuffer) {
    let mut buffer = FrameBuffer::with_capacity(128);
    buffer.append_with(|bytes| unit.encode(bytes));
    (lane, buffer)
}

fn command(tag: u64, lun: u8, cdb: &[u8], out: u32, data_in: u32) -> (VirtualLane, FrameBuffer) {
    command_of(0, tag, (lun, cdb), out, data_in)
}

fn command_of(
    attribute: u8,
    tag: u64,
    (lun, cdb): (u8, &[u8]),
    out: u32,
    data_in: u32,
) -> (VirtualLane, FrameBuffer) {
    let unit = InformationUnit::Command(Command {
        tag: Tag(tag),
        lun: [0x40, lun, 0, 0, 0, 0, 0, 0],
        attribute,
        cdb,
        data_out_bytes: out,
        data_in_bytes: data_in,
    });
    frame(VirtualLane::StorageCommand, &unit)
}

fn data_out(tag: u64, offset: usize, data: &[u8]) -> (VirtualLane, FrameBuffer) {
    let offset = u32::try_from(offset).unwrap();
    let unit = InformationUnit::DataOut(Data {
        tag: Tag(tag),
        offset,
        data,
    });
    frame(VirtualLane::StorageData, &unit)
}

fn read(tag: u64, lun: u8, lba: u8, blocks: u16) -> (VirtualLane, FrameBuffer) {
    let [high, low] = blocks.to_be_bytes();
    let cdb = [0x28, 0, 0, 0, 0, lba, 0, high, low, 0];
    command(tag, lun, &cdb, 0, u32::from(blocks) * 512)
}

fn write(tag: u64, lun: u8, lba: u8, data: &[u8]) -> Vec<(VirtualLane, FrameBuffer)> {
    let [high, low] = u16::try_from(data.len() / 512).unwrap().to_be_bytes();
    let cdb = [0x2a, 0, 0, 0, 0, lba, 0, high, low, 0];
    let mut frames = vec![command(
        tag,
        lun,
        &cdb,
        u32::try_from(data.len()).unwrap(),
        0,
    )];
    for (at, piece) in data.chunks(64 * 1024).enumerate() {
        frames.push(data_out(tag, at * 64 * 1024, piece));
    }
    frames
}

fn manage(function: TaskFunction, tag: u64, managed: u64, lun: u8) -> (VirtualLane, FrameBuffer) {
    let unit = InformationUnit::TaskManagement {
        function,
        tag: Tag(tag),
        managed: Tag(managed),
        lun: [0x40, lun, 0, 0, 0, 0, 0, 0],
    };
    frame(VirtualLane::TaskManagement, &unit)
}

const GOOD: (ServiceResponse, u8) = (ServiceResponse::TaskComplete, 0);

#[test]
fn inquiry_write_and_read_reach_the_file() {
    let lab = Lab::new();
    lab.send(MIXED, [command(1, 0, &[0x12, 0, 0, 0, 96, 0], 0, 96)]);
    let (response, status, _, inquiry) = lab.status(1);
    assert_eq!((response, status), GOOD);
    assert_eq!(&inquiry[8..16], b"ORIMONO ");
    let data: Vec<u8> = (0..1024 * 1024_u32)
        .map(|at| (at % 251).to_le_bytes()[0])
        .collect();
    lab.send(MIXED, write(2, 0, 8, &data));
    let (response, status, ..) = lab.status(2);
    assert_eq!((response, status), GOOD);
    let mut on_disk = vec![0; data.len()];
    let file = File::open(lab.folder.path().join("fast.img")).unwrap();
    file.read_exact_at(&mut on_disk, 8 * 512).unwrap();
    assert!(on_disk == data, "the file holds what was written");
    lab.send(MIXED, [read(3, 0, 8, 2048)]);
    let (response, status, _, back) = lab.status(3);
    assert_eq!((response, status), GOOD);
    assert!(back == data, "what was written is read");
    assert_eq!(lab.counter("data_in_bytes"), 96 + data.len() as u64);
}

#[test]
fn absent_lun_is_answered_and_reports_the_others() {
    let lab = Lab::new();
    lab.send(MIXED, [command(1, 7, &[0; 6], 0, 0)]);
    let (_, status, sense, _) = lab.status(1);
    assert_eq!((status, sense[12]), (2, 0x25), "LOGICAL UNIT NOT SUPPORTED");
    let report = [0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0];
    lab.send(MIXED, [command(2, 7, &report, 0, 64)]);
    let (_, status, _, luns) = lab.status(2);
    assert_eq!(
        (status, &luns[..4], luns.len()),
        (0, &[0, 0, 0, 16][..], 24)
    );
}

#[test]
fn slow_lun_holds_up_nobody_and_its_share_of_the_queue_is_bounded() {
    let lab = Lab::new();
    let start = Instant::now();
    // More than the share of one of two LUNs: the rest is refused at once.
    for tag in 100..140 {
        lab.send(MIXED, [read(tag, 1, 0, 8)]);
    }
    let mut full = 0;
    for tag in 1000..1300 {
        lab.send(MIXED, [read(tag, 0, 0, 8)]);
        loop {
            match lab.next() {
                Seen::Status {
                    tag: ended,
                    status: 0,
                    ..
                } if ended == tag => break,
                Seen::Status {
                    tag: 100..140,
                    status: 0x28,
                    ..
                } => full += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(
        start.elapsed() < Duration::from_millis(SLOW_MS),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(
        full, 8,
        "32 of the 64 commands are the share of one of two LUNs"
    );
    assert_eq!(lab.counter("task_set_full"), full);
}

#[test]
fn aborted_tasks_end_once_and_before_the_function_is_over() {
    let lab = Lab::new();
    let start = Instant::now();
    lab.send(MIXED, (1..=3).map(|tag| read(tag, 1, 0, 8)));
    lab.wait_queued(MIXED, 3, 1);
    lab.send(MIXED, [manage(TaskFunction::AbortTask, 51, 3, 1)]);
    let mut ended = Vec::new();
    for _ in 0..2 {
        match lab.next() {
            Seen::Status {
                tag: 3,
                response: ServiceResponse::Aborted,
                ..
            } => ended.push(3),
            Seen::Management {
                tag: 51,
                response: TaskResponse::Complete,
            } => ended.push(51),
            other => panic!("{other:?}"),
        }
    }
    ended.sort_unstable();
    assert_eq!(ended, [3, 51]);
    // One that runs and one that waits.
    lab.send(MIXED, [manage(TaskFunction::AbortTaskSet, 52, 0, 1)]);
    let mut ended = Vec::new();
    for _ in 0..3 {
        match lab.next() {
            Seen::Status {
                tag,
                response: ServiceResponse::Aborted,
                ..
            } => ended.push(tag),
            Seen::Management {
                tag,
                response: TaskResponse::Complete,
            } => ended.push(tag),
            other => panic!("{other:?}"),
        }
    }
    ended.sort_unstable();
    assert_eq!(ended, [1, 2, 52]);
    lab.send(MIXED, [manage(TaskFunction::QueryTaskSet, 53, 0, 1)]);
    assert!(matches!(
        lab.next(),
        Seen::Management {
            tag: 53,
            response: TaskResponse::Complete
        }
    ));
    lab.send(MIXED, [manage(TaskFunction::AbortTask, 54, 0, 7)]);
    let missing = lab.next();
    assert!(matches!(
        missing,
        Seen::Management {
            tag: 54,
            response: TaskResponse::IncorrectLun
        }
    ));
    assert!(
        start.elapsed() < Duration::from_millis(SLOW_MS),
        "no delay is waited out"
    );
}

#[test]
fn unit_reset_ends_the_tasks_of_every_vhba_and_tells_them() {
    let lab = Lab::new();
    lab.send(MIXED, [read(1, 1, 0, 8)]);
    lab.send(SHARING, [read(2, 0, 0, 8)]);
    // Both are there before the reset: another lane could overtake them.
    lab.wait_queued(MIXED, 1, 1);
    lab.wait_queued(SHARING, 2, 0);
    lab.send(MIXED, [manage(TaskFunction::LogicalUnitReset, 52, 0, 1)]);
    let mut ended = Vec::new();
    for _ in 0..3 {
        match lab.next() {
            Seen::Status {
                tag,
                response: ServiceResponse::Reset,
                ..
            } => ended.push(tag),
            Seen::Management {
                tag,
                response: TaskResponse::Complete,
            } => ended.push(tag),
            other => panic!("{other:?}"),
        }
    }
    ended.sort_unstable();
    assert_eq!(ended, [1, 2, 52]);
}

#[test]
fn p04_units_that_cannot_be_are_counted_and_nothing_else_happens() {
    let lab = Lab::new();
    let zeroes = [0; 512];
    // A write whose first data is out of order, then of another command, then too long, then
    // right: its tag is used by a second command meanwhile.
    let mut whole = write(1, 0, 0, &[0xaa; 512]);
    let data = whole.pop().unwrap();
    lab.send(MIXED, whole);
    lab.send(
        MIXED,
        [data_out(1, 1, &zeroes[..100]), data_out(77, 0, &zeroes)],
    );
    lab.send(
        MIXED,
        [data_out(1, 0, &[0; 513]), command(1, 0, &[0; 6], 0, 0)],
    );
    let garbage = |lane, payload: &[u8]| (lane, FrameBuffer::from_payload(payload));
    lab.send(MIXED, [garbage(VirtualLane::StorageData, &[99, 1, 2, 3])]);
    lab.send(MIXED, [garbage(VirtualLane::StorageCommand, &[])]);
    // A unit that only a director sends, and one on a lane that is not its own.
    let response = TaskResponse::Complete;
    let response = InformationUnit::TaskManagementResponse {
        response,
        tag: Tag(1),
    };
    lab.send(MIXED, [frame(VirtualLane::TaskManagement, &response)]);
    let (_, stray) = data_out(1, 0, &zeroes);
    lab.send(MIXED, [(VirtualLane::TaskManagement, stray)]);
    lab.send(MIXED, [data]);
    let (response, status, ..) = lab.status(1);
    assert_eq!((response, status), GOOD);
    let mut block = [0; 512];
    let file = File::open(lab.folder.path().join("fast.img")).unwrap();
    file.read_exact_at(&mut block, 0).unwrap();
    assert_eq!(block, [0xaa; 512]);
    // A second command of the same lanes comes after all of them.
    lab.send(MIXED, [read(2, 0, 0, 1)]);
    assert_eq!(lab.status(2).3, [0xaa; 512]);
    let counts = [
        "excess_data",
        "unknown_tag",
        "duplicate_tag",
        "malformed",
        "wrong_lane",
    ];
    assert_eq!(counts.map(|name| lab.counter(name)), [2, 1, 1, 3, 1]);
}

/// Credit comes back exactly: many times the window passes, aborted and refused commands too.
#[test]
fn credit_never_leaks() {
    let lab = Lab::new();
    let data = vec![5; 128 * 1024];
    for round in 0..100 {
        lab.send(MIXED, write(round, 0, 0, &data));
        let (response, status, ..) = lab.status(round);
        assert_eq!((response, status), GOOD);
        lab.send(MIXED, write(5000, 1, 0, &data));
        lab.wait_queued(MIXED, 5000, 1);
        lab.send(MIXED, [manage(TaskFunction::AbortTaskSet, 6000, 0, 1)]);
        for _ in 0..2 {
            match lab.next() {
                Seen::Status {
                    tag: 5000,
                    response: ServiceResponse::Aborted,
                    ..
                }
                | Seen::Management {
                    tag: 6000,
                    response: TaskResponse::Complete,
                } => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn next_session_starts_clean_and_hears_of_the_loss() {
    let mut lab = Lab::new();
    lab.send(MIXED, (1..=3).map(|tag| read(tag, 1, 0, 8)));
    // The half of a write.
    let mut half = write(4, 0, 0, &[1; 512]);
    half.pop();
    lab.send(MIXED, half);
    lab.wait_queued(MIXED, 4, 0);
    lab.endpoint.close("test");
    for _ in 0..2 {
        assert!(matches!(lab.next(), Seen::Down));
    }
    let (endpoint, seen, writable) = connect(&lab.director);
    (lab.endpoint, lab.seen, lab.writable) = (endpoint, seen, writable);
    lab.wait_lanes();
    // The same tags are free, and I_T NEXUS LOSS OCCURRED (29/07) is told.
    lab.send(MIXED, [command(4, 0, &[0; 6], 0, 0)]);
    let (_, status, sense, _) = lab.status(4);
    assert_eq!((status, sense[12], sense[13]), (2, 0x29, 7));
    lab.send(MIXED, [read(3, 0, 0, 1)]);
    assert_eq!(lab.status(3).1, 0);
    assert_eq!(lab.counter("lost"), 4);
}

/// PERSISTENT RESERVE OUT with its parameter list.
fn persistent_reserve(
    (tag, lun): (u64, u8),
    (action, kind): (u8, u8),
    (key, action_key): (u64, u64),
) -> Vec<(VirtualLane, FrameBuffer)> {
    let cdb = [0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0];
    let mut list = [key.to_be_bytes(), action_key.to_be_bytes()].concat();
    list.resize(24, 0);
    vec![command(tag, lun, &cdb, 24, 0), data_out(tag, 0, &list)]
}

#[test]
fn preempt_and_abort_ends_the_tasks_of_the_preempted_vhba_alone() {
    const REGISTER: (u8, u8) = (0, 0);
    const PREEMPT_AND_ABORT: (u8, u8) = (5, 1);
    let lab = Lab::with(|config| {
        for lun in &mut config.luns {
            lun.delay = Duration::from_millis(100);
        }
    });
    // The first command hears of the new nexus.
    lab.send(MIXED, [command(1, 1, &[0; 6], 0, 0)]);
    assert_eq!(lab.status(1).1, 2);
    lab.send(SHARING, [command(1, 0, &[0; 6], 0, 0)]);
    assert_eq!(lab.status(1).1, 2);
    lab.send(MIXED, persistent_reserve((2, 1), REGISTER, (0, 0xa)));
    assert_eq!(lab.status(2).1, 0);
    lab.send(SHARING, persistent_reserve((2, 0), REGISTER, (0, 0xb)));
    assert_eq!(lab.status(2).1, 0);
    // More than can run while the other vHBA's command waits out its delay.
    lab.send(SHARING, (100..140).map(|tag| read(tag, 0, 0, 1)));
    lab.wait_queued(SHARING, 139, 0);
    let preempt = persistent_reserve((3, 1), PREEMPT_AND_ABORT, (0xa, 0xb));
    lab.send(MIXED, preempt);
    // Its own other tasks are not touched.
    lab.send(MIXED, [read(4, 1, 0, 1)]);
    let (mut good, mut aborted) = (Vec::new(), Vec::new());
    for _ in 0..42 {
        match lab.next() {
            Seen::Status {
                tag,
                response: ServiceResponse::Aborted,
                ..
            } => aborted.push(tag),
            Seen::Status {
                tag,
                response: ServiceResponse::TaskComplete,
                status: 0,
                ..
            } => good.push(tag),
            other => panic!("{other:?}"),
        }
    }
    assert!(good.contains(&3) && good.contains(&4));
    assert!(aborted.contains(&139), "{aborted:?}");
    aborted.retain(|tag| good.contains(tag) || !(100..140).contains(tag));
    assert_eq!(aborted, [0; 0]);
    // REGISTRATIONS PREEMPTED.
    lab.send(SHARING, [read(200, 0, 0, 1)]);
    let (_, status, sense, _) = lab.status(200);
    assert_eq!((status, sense[12], sense[13]), (2, 0x2a, 5));
}

#[test]
fn s12_reservations_outlive_the_director_that_was_asked_to_keep_them() {
    // With shared LUNs another director may go on, so these are kept without being asked.
    for (shared, aptpl, kept) in [(false, 1, true), (false, 0, false), (true, 0, true)] {
        let set = |config: &mut LabConfig| config.director.shared_luns = shared;
        let lab = Lab::with(set);
        let mut register = persistent_reserve((1, 0), (0, 0), (0, 0xa));
        let mut list = [0; 24];
        list[15] = 0xa;
        list[20] = aptpl;
        register[1] = data_out(1, 0, &list);
        lab.send(MIXED, register);
        assert_eq!(lab.status(1).1, 0);
        lab.send(MIXED, persistent_reserve((2, 0), (1, 1), (0xa, 0)));
        assert_eq!(lab.status(2).1, 0);
        let file = lab.folder.path().join("fast.img.reservations");
        assert_eq!(file.exists(), kept);

        lab.endpoint.close("test");
        for _ in 0..2 {
            assert!(matches!(lab.next(), Seen::Down));
        }
        let mut config = config(lab.folder.path());
        set(&mut config);
        let Lab {
            folder, director, ..
        } = lab;
        drop(director);
        // The last user of a shared LUN gives it up on a thread of its own.
        for name in ["fast.img", "slow.img"] {
            let medium = File::open(folder.path().join(name)).unwrap();
            medium.lock().unwrap();
        }
        let director = Director::start(&config).unwrap();
        let (endpoint, seen, writable) = connect(&director);
        let mut lab = Lab {
            folder,
            config,
            director,
            endpoint,
            lanes: HashMap::new(),
            seen,
            writable,
        };
        lab.wait_up();
        let read_keys = [0x5e, 0, 0, 0, 0, 0, 0, 0, 64, 0];
        lab.send(MIXED, [command(3, 0, &read_keys, 0, 64)]);
        let (_, status, _, data) = lab.status(3);
        assert_eq!((status, data.len()), (0, if kept { 16 } else { 8 }));
        if kept {
            assert_eq!(data[8..], 0xa_u64.to_be_bytes());
            lab.send(MIXED, persistent_reserve((4, 0), (3, 0), (0xa, 0)));
            assert_eq!(lab.status(4).1, 0);
        }
        assert!(!file.exists());
    }
}

#[test]
fn damaged_reservations_keep_a_lun_from_being_served() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    std::fs::write(folder.path().join("fast.img.reservations"), "OPR").unwrap();
    let error = Director::start(&config).unwrap_err();
    let text = format!("{:#}", anyhow::Error::from(error));
    assert!(
        text.contains("fast.img.reservations is damaged; restore it"),
        "{text}"
    );
    // A read-only unit cannot be written by anybody: nothing is stored for it.
    config.luns[0].read_only = true;
    Director::start(&config).unwrap();
}

//! A guest's disk that is a unit of an iSCSI target by others: front end, host agent, director, `tgt`.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::fs::{File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use fabric_config::LabConfig;
use host_agent::HostAgent;
use io_director::Director;
use orimono_tests::devices::scsi::{Request, Response, ScsiGuest};
use orimono_tests::tgt::{DISK_BYTES, TARGET, Tgt};

const BLOCK_BYTES: usize = 512;
/// How long anything may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(60);
/// Request queues: one for each LUN.
const ISCSI: usize = 0;
const LOCAL: usize = 1;
const UNIT_ATTENTION: u8 = 6;
const ABORTED_COMMAND: u8 = 0xb;
const LUN: &str = "lun disk of vhba vh01.vm1";

/// A guest with a unit of `tgt` as LUN 0 and a file as LUN 1, through all of ours.
struct World {
    guest: ScsiGuest,
    // Dropped in this order.
    _host: HostAgent,
    director: Director,
    folder: tempfile::TempDir,
}

impl World {
    fn new(tgt: &Tgt, words: &str) -> Self {
        Self::with(tgt, words, "")
    }

    /// With more in the VM.
    fn with(tgt: &Tgt, words: &str, vm: &str) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("orimono-")
            .tempdir_in("/tmp")
            .unwrap();
        let file = File::create(folder.path().join("local.img")).unwrap();
        file.set_len(1 << 20).unwrap();
        let config: LabConfig = format!("{}{vm}", lab(tgt, words, folder.path()))
            .parse()
            .unwrap();
        let mut director = Director::start(&config).unwrap();
        director.listen().unwrap();
        let host = HostAgent::start(&config, "host1", false).unwrap();
        assert!(host.uplink().active().wait_active(PATIENCE));
        let guest = connect(folder.path(), "vh01");
        Self {
            guest,
            _host: host,
            director,
            folder,
        }
    }

    fn count(&self, name: &str) -> u64 {
        let snapshots = self.director.snapshot();
        let snapshot = snapshots.iter().find(|snapshot| snapshot.object == LUN);
        snapshot.unwrap().count(name).unwrap()
    }

    /// What an operator sees of the unit: its state, and commands that ended NOT READY.
    fn seen(&self) -> (&'static str, u64) {
        let luns = self.director.watched().storage.unwrap().luns();
        let disk = luns.iter().find(|lun| lun.name == "disk").unwrap();
        let errors = disk.commands.errors.get("not-ready");
        (disk.state.name(), errors.copied().unwrap_or_default())
    }

    fn submit(&mut self, lun: usize, command: &Command) -> u16 {
        let mut request = Request::new(&command.cdb);
        request.lun = [1, 0, 0x40, u8::try_from(lun).unwrap(), 0, 0, 0, 0];
        request.data_out = &command.data_out;
        request.data_in_bytes = command.data_in_bytes;
        self.guest.submit(lun, &request).unwrap()
    }

    fn poll(&mut self, lun: usize) -> Response {
        let start = Instant::now();
        loop {
            if let Some(response) = self.guest.poll(lun).unwrap() {
                return response;
            }
            assert!(start.elapsed() < PATIENCE, "LUN {lun} does not answer");
            std::thread::yield_now();
        }
    }

    fn execute(&mut self, lun: usize, command: &Command) -> Response {
        self.submit(lun, command);
        self.poll(lun)
    }

    /// As [`Self::execute`], again after each unit attention.
    fn answer(&mut self, lun: usize, command: &Command) -> Response {
        loop {
            let response = self.execute(lun, command);
            if sense(&response).0 != UNIT_ATTENTION {
                return response;
            }
        }
    }

    fn good(&mut self, lun: usize, command: &Command) -> Vec<u8> {
        let response = self.answer(lun, command);
        assert_eq!((response.response, response.status), (0, 0), "{response:?}");
        response.data
    }
}

fn connect(folder: &Path, vhba: &str) -> ScsiGuest {
    let socket = folder.join(format!("host1/{vhba}.vm1.sock"));
    ScsiGuest::connect(&socket, 2).unwrap()
}

fn lab(tgt: &Tgt, words: &str, folder: &Path) -> String {
    format!(
        r#"
        [director]
        name = "director1"
        listen = ["unix:{folder}/director"]
        [[lun]]
        name = "disk"
        port = "12/1"
        iscsi = "{TARGET}"
        portal = "{portal}"
        target-lun = 1
        initiator = "iqn.2026-01.org.orimono:director1"
        {words}
        [[lun]]
        name = "local"
        port = "12/1"
        file = "{folder}/local.img"
        [[host]]
        name = "host1"
        director = ["unix:{folder}/director"]
        run-dir = "{folder}/host1"
        rate = "10G"
        [[host.vm]]
        name = "vm1"
        [[host.vm.vhba]]
        name = "vh01"
        id = 11
        port = "12/1"
        queues = 2
        luns = [ {{ lun = 0, name = "disk" }}, {{ lun = 1, name = "local" }} ]
        "#,
        folder = folder.display(),
        portal = tgt.portal(),
    )
}

struct Command {
    cdb: Vec<u8>,
    data_out: Vec<u8>,
    data_in_bytes: u32,
}

fn command(cdb: &[u8], data_in_bytes: u32) -> Command {
    Command {
        cdb: cdb.to_vec(),
        data_out: Vec::new(),
        data_in_bytes,
    }
}

fn block_cdb(opcode: u8, offset_bytes: usize, bytes: usize) -> Vec<u8> {
    let lba = u32::try_from(offset_bytes / BLOCK_BYTES).unwrap();
    let blocks = u16::try_from(bytes / BLOCK_BYTES).unwrap();
    let (lba, blocks) = (lba.to_be_bytes(), blocks.to_be_bytes());
    [&[opcode, 0][..], &lba, &[0], &blocks, &[0]].concat()
}

fn read(offset_bytes: usize, bytes: usize) -> Command {
    let cdb = block_cdb(0x28, offset_bytes, bytes);
    command(&cdb, u32::try_from(bytes).unwrap())
}

fn write(offset_bytes: usize, data: Vec<u8>) -> Command {
    Command {
        cdb: block_cdb(0x2a, offset_bytes, data.len()),
        data_out: data,
        data_in_bytes: 0,
    }
}

/// Bytes that differ from block to block and from seed to seed.
fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..))
        .take(bytes)
        .collect()
}

/// Sense key, ASC and ASCQ; zeroes without.
fn sense(response: &Response) -> (u8, u8, u8) {
    let byte = |at: usize| response.sense.get(at).copied().unwrap_or(0);
    (byte(2) & 15, byte(12), byte(13))
}

#[test]
fn commands_and_answers_are_those_of_the_target() {
    let tgt = Tgt::new().unwrap();
    tgt.admin("--mode account --op new --user director --password s3cr3t-of-director")
        .unwrap();
    tgt.admin("--mode account --op bind --tid 1 --user director")
        .unwrap();
    let mut secret = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut secret, b"s3cr3t-of-director\n").unwrap();
    std::fs::set_permissions(secret.path(), Permissions::from_mode(0o600)).unwrap();
    let words = format!(
        "user = \"director\"\nsecret-file = \"{}\"",
        secret.path().display()
    );
    let mut world = World::new(&tgt, &words);
    let disk = File::open(tgt.disk()).unwrap();

    // The target's identity, sense and residual.
    let inquiry = world.answer(ISCSI, &command(&[0x12, 0, 0, 0, 96, 0], 96));
    assert_eq!(inquiry.data.get(8..24).unwrap(), b"IET     VIRTUAL-");
    let allocated = inquiry.data.get(4).unwrap() + 5;
    assert_eq!(inquiry.residual, 96 - u32::from(allocated.min(96)));
    let beyond = read(usize::try_from(DISK_BYTES).unwrap(), 4096);
    let beyond = world.answer(ISCSI, &beyond);
    assert_eq!((beyond.status, sense(&beyond)), (2, (5, 0x21, 0)));
    assert_eq!(beyond.residual, 4096);

    for kib in [4, 7, 64, 65, 256, 1024] {
        let data = pattern(u64::try_from(kib).unwrap(), kib * 1024);
        let at = kib * 4096;
        world.good(ISCSI, &write(at, data.clone()));
        let mut in_file = vec![0; data.len()];
        let offset = u64::try_from(at).unwrap();
        disk.read_exact_at(&mut in_file, offset).unwrap();
        assert!(in_file == data, "{kib} KiB written");
        assert!(
            world.good(ISCSI, &read(at, data.len())) == data,
            "{kib} KiB read"
        );
    }

    // The map is ours, and what is not listed goes nowhere.
    let luns = world.good(
        ISCSI,
        &command(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0], 64),
    );
    assert_eq!(luns.get(..4).unwrap(), [0, 0, 0, 16]);
    let format_unit = world.answer(ISCSI, &command(&[0x04, 0, 0, 0, 0, 0], 0));
    assert_eq!((format_unit.status, sense(&format_unit)), (2, (5, 0x20, 0)));
    assert_eq!(world.count("refused"), 1);
    // Not to anybody who knows the target's number either.
    let masked = command(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], 512);
    let mut request = Request::new(&masked.cdb);
    request.lun = [1, 0, 0x40, 2, 0, 0, 0, 0];
    request.data_in_bytes = masked.data_in_bytes;
    world.guest.submit(ISCSI, &request).unwrap();
    let masked = world.poll(ISCSI);
    assert_eq!((masked.status, sense(&masked)), (2, (5, 0x25, 0)));

    // LOGICAL UNIT RESET is carried out there: the target itself tells of it.
    let mut reset = [0; 24];
    reset
        .get_mut(..16)
        .unwrap()
        .copy_from_slice(&[0, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0x40, 0, 0, 0, 0, 0]);
    assert_eq!(world.guest.control(&reset, 1).unwrap(), Some(vec![0]));
    let attention = world.execute(ISCSI, &command(&[0; 6], 0));
    assert_eq!(sense(&attention).0, UNIT_ATTENTION);
    world.good(ISCSI, &read(0, 4096));
}

/// The guest repeats what ends with UNIT ATTENTION, as Linux does; all else is the director's. Each
/// writer reads what was acknowledged before it writes again.
#[test]
fn target_killed_under_load_loses_no_write_and_holds_up_no_other_lun() {
    const WRITERS: usize = 16;
    const BYTES: usize = 16 * 1024;
    let mut tgt = Tgt::new().unwrap();
    let mut world = World::new(&tgt, "");
    // Steps of each: 2n writes what 2n + 1 reads.
    let mut steps = [0_u64; WRITERS];
    let data = |writer: usize, step: u64| {
        pattern(((step / 2) << 8) + u64::try_from(writer).unwrap(), BYTES)
    };
    let next = |writer: usize, step: u64| match step % 2 {
        0 => write(writer * BYTES, data(writer, step)),
        _ => read(writer * BYTES, BYTES),
    };
    let mut heads = std::collections::HashMap::new();
    for writer in 0..WRITERS {
        heads.insert(world.submit(ISCSI, &next(writer, 0)), writer);
    }
    let mut done = 0;
    let mut next_kill = 400;
    while !heads.is_empty() {
        if done == next_kill && (done <= 1600 || world.count("repeated") < 20) {
            next_kill += 400;
            tgt.kill().unwrap();
            // The other LUN is served as if nothing had happened.
            for _ in 0..20 {
                world.good(LOCAL, &read(0, 4096));
            }
            tgt.restart().unwrap();
        }
        let response = world.poll(ISCSI);
        let writer = heads.remove(&response.head).unwrap();
        let step = steps.get_mut(writer).unwrap();
        match (response.response, response.status, sense(&response).0) {
            (0, 0, _) => {
                let written = *step % 2 == 0 || response.data == data(writer, *step);
                assert!(
                    written,
                    "writer {writer} reads something else in step {step}"
                );
                *step += 1;
                done += 1;
                if done >= 2000 && step.is_multiple_of(2) && world.count("repeated") >= 20 {
                    continue;
                }
            }
            (0, 2, UNIT_ATTENTION) => {}
            _ => panic!("{response:?}"),
        }
        let command = next(writer, *step);
        heads.insert(world.submit(ISCSI, &command), writer);
    }
    let counts = ["unknown", "reachable", "unreachable"].map(|name| world.count(name));
    assert_eq!(counts, [0, 1, 0]);
}

#[test]
fn target_that_stays_away_ends_commands_and_is_found_again() {
    let mut tgt = Tgt::new().unwrap();
    let mut world = World::new(&tgt, "timeout = \"1s\"");
    world.good(ISCSI, &write(0, vec![7; 4096]));
    tgt.kill().unwrap();
    let start = Instant::now();
    let mut response = world.execute(ISCSI, &read(0, 4096));
    if response.status == 0 {
        response = world.execute(ISCSI, &read(0, 4096));
    }
    assert_eq!((response.status, sense(&response)), (2, (2, 0x04, 0x0c)));
    assert!(start.elapsed() >= Duration::from_millis(900));
    world.good(LOCAL, &read(0, 4096));
    // From now on nobody waits a second time; REPORT LUNS is ours and is answered.
    let next = world.execute(ISCSI, &write(0, vec![8; 4096]));
    assert_eq!(sense(&next), (2, 0x04, 0x0c));
    world.good(
        ISCSI,
        &command(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0], 64),
    );
    assert_eq!(
        (world.count("reachable"), world.count("unreachable")),
        (0, 2)
    );
    assert!(world.count("unreachable_ms") >= 1000);
    assert_eq!(world.seen().0, "unreachable");
    // A command is counted once its status is sent.
    let start = Instant::now();
    while world.seen().1 < 2 {
        assert!(start.elapsed() < PATIENCE, "NOT READY is not counted");
        std::thread::yield_now();
    }
    tgt.restart().unwrap();
    let start = Instant::now();
    while world.count("reachable") == 0 {
        assert!(start.elapsed() < PATIENCE, "the target is not found again");
        std::thread::yield_now();
    }
    assert_eq!(world.count("unreachable_ms"), 0);
    assert_eq!(world.seen(), ("ready", 2));
    assert_eq!(world.good(ISCSI, &read(0, 4096)), vec![7; 4096]);
}

#[test]
fn vhbas_that_share_a_unit_are_ports_of_their_own_to_the_target() {
    const CONFLICT: u8 = 0x18;
    /// WRITE EXCLUSIVE.
    const RESERVE: [u8; 10] = [0x5f, 1, 1, 0, 0, 0, 0, 0, 24, 0];
    const REGISTER: [u8; 10] = [0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0];
    let reserve_out = |cdb: &[u8], key: u64, action_key: u64| {
        let mut list = [key.to_be_bytes(), action_key.to_be_bytes()].concat();
        list.resize(24, 0);
        Command {
            cdb: cdb.to_vec(),
            data_out: list,
            data_in_bytes: 0,
        }
    };
    let mut tgt = Tgt::new().unwrap();
    let other = r#"
        [[host.vm.vhba]]
        name = "vh02"
        id = 12
        port = "12/1"
        queues = 2
        luns = [ { lun = 0, name = "disk" } ]
        "#;
    let mut world = World::with(&tgt, "", other);
    let first = connect(world.folder.path(), "vh02");
    let first = std::mem::replace(&mut world.guest, first);
    // The second vHBA is the guest now.
    world.good(ISCSI, &write(0, vec![1; 4096]));
    let second = std::mem::replace(&mut world.guest, first);
    world.good(ISCSI, &reserve_out(&REGISTER, 0, 0xa));
    world.good(ISCSI, &reserve_out(&RESERVE, 0xa, 0));
    world.good(ISCSI, &write(0, vec![2; 4096]));
    // MODE SELECT would change the unit for both.
    let mode_select = world.answer(ISCSI, &command(&[0x15, 0x10, 0, 0, 0, 0], 0));
    assert_eq!(sense(&mode_select), (5, 0x20, 0));
    let first = std::mem::replace(&mut world.guest, second);
    let refused = world.answer(ISCSI, &write(0, vec![3; 4096]));
    assert_eq!(refused.status, CONFLICT, "{refused:?}");
    assert_eq!(world.good(ISCSI, &read(0, 4096)), vec![2; 4096]);
    // A write of a shared unit is not repeated: the guest is asked.
    world.guest = first;
    let mut unsettled = 0;
    let start = Instant::now();
    // Until one is in flight when the target dies.
    while unsettled == 0 {
        assert!(start.elapsed() < PATIENCE, "nothing was in flight");
        for writer in 0..16 {
            world.submit(ISCSI, &write(writer << 20, pattern(7, 1 << 16)));
        }
        tgt.kill().unwrap();
        tgt.restart().unwrap();
        for _ in 0..16 {
            let response = world.poll(ISCSI);
            let key = sense(&response).0;
            let known = response.status == 0 || matches!(key, UNIT_ATTENTION | ABORTED_COMMAND);
            assert!(known, "{response:?}");
            unsettled += u64::from(key == ABORTED_COMMAND);
        }
    }
    assert_eq!(
        (world.count("repeated"), world.count("unknown")),
        (0, unsettled)
    );
}

//! Three guests write to a LUN that they share and to one each, and the director is killed with -9
//! again and again at points that a seed decides. What was acknowledged is there. So it is when the
//! director is in the host agent, where commands run without frames, and the guests reset the LUNs
//! under each other.
//!
//! `ORIMONO_SEED` chooses the seed, which is printed when the test fails. The same seed makes the
//! same writes; which of them a kill meets depends on the machine.
#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]
#![expect(
    clippy::indexing_slicing,
    reason = "a failed expectation is a failed test"
)]

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use orimono_tests::devices::scsi::{LUN0, Request, Response, ScsiGuest, task_management, transfer};
use orimono_tests::integrity::{BLOCK_BYTES, Ledger, SECTORS, stamp};
use orimono_tests::lab::{LUN_BYTES, Lab, PATIENCE};

const GUESTS: u64 = 3;
/// Blocks of a LUN that are written; the others must stay zeros.
const BLOCKS: u64 = 1024;
/// Blocks of one guest in a row, and of the longest write. On the shared LUN the guests take turns.
const RUN: u64 = 16;
/// Commands of a guest in flight.
const DEPTH: usize = 8;

const GOOD: u8 = 0;
const CHECK_CONDITION: u8 = 2;
const BUSY: u8 = 8;
const TASK_SET_FULL: u8 = 0x28;
const UNIT_ATTENTION: u8 = 6;
const RESET: u8 = 4;
const TRANSPORT_FAILURE: u8 = 6;
const LOGICAL_UNIT_RESET: u32 = 5;
const FUNCTION_COMPLETE: u8 = 0;
const SYNCHRONIZE_CACHE: [u8; 10] = [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const FUA: u8 = 8;

/// Where the director is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Director {
    Apart,
    Embedded,
}

/// The LUNs are files in `files`.
fn lab_file(director: Director, files: &str) -> String {
    let (listen, uplink) = match director {
        Director::Apart => (
            "listen = [\"tcp:127.0.0.1:7471\"]",
            "director = [\"tcp:127.0.0.1:7471\"]",
        ),
        Director::Embedded => ("", "embedded = true"),
    };
    let mut text = format!(
        r#"
[director]
name = "director1"
{listen}
[[lun]]
name = "shared"
port = "12/1"
file = "{files}/shared"
[[host]]
name = "host1"
{uplink}
run-dir = "@DIR@/host1"
rate = "10G"
"#,
    );
    for guest in 0..GUESTS {
        write!(
            text,
            "[[host.vm]]\nname = \"vm{guest}\"\n[[host.vm.vhba]]\nname = \"vh01\"\nid = {}\n\
             port = \"12/1\"\nluns = [ {{ lun = 0, name = \"shared\" }}, \
             {{ lun = 1, name = \"own{guest}\" }} ]\n\
             [[lun]]\nname = \"own{guest}\"\nport = \"12/1\"\nfile = \"{files}/own{guest}\"\n",
            11 + guest
        )
        .unwrap();
    }
    text
}

/// Counts acknowledged writes, and lets a thread wait for more.
#[derive(Default)]
struct Progress {
    writes: Mutex<u64>,
    changed: Condvar,
}

impl Progress {
    fn add(&self) {
        *self.writes.lock().unwrap() += 1;
        self.changed.notify_all();
    }

    fn wait_for_more(&self, more: u64) -> u64 {
        let writes = self.writes.lock().unwrap();
        let wanted = *writes + more;
        let enough = |writes: &mut u64| *writes < wanted;
        let waited = self
            .changed
            .wait_timeout_while(writes, PATIENCE, enough)
            .unwrap();
        assert!(!waited.1.timed_out(), "the guests do not go on");
        *waited.0
    }
}

/// A command that is sent until it is done.
#[derive(Clone)]
enum Command {
    Write {
        blocks: Vec<u64>,
        sequence: u64,
        fua: bool,
    },
    Read {
        block: u64,
        oldest: u64,
    },
    Synchronize {
        writes: BTreeMap<u64, u64>,
    },
}

struct Writer {
    scsi: ScsiGuest,
    index: u64,
    luns: [Arc<Mutex<Ledger>>; 2],
    random: fastrand::Rng,
    /// The next write is this one times [`GUESTS`], and the guest's index.
    writes: u64,
    in_flight: HashMap<u16, (usize, Command)>,
    progress: Arc<Progress>,
    retries: u64,
    /// It resets LUNs now and then.
    resets: bool,
}

impl Writer {
    /// Writes until `stop`, and then makes all of it durable; returns the number of commands that
    /// had to be sent again.
    fn run(mut self, stop: &AtomicBool) -> u64 {
        while !stop.load(Ordering::SeqCst) {
            while self.in_flight.len() < DEPTH
                && let Some((lun, command)) = self.invent()
            {
                self.send(lun, command);
            }
            if self.resets && self.random.u8(..) == 0 {
                self.reset();
            }
            self.finish_one();
        }
        while !self.in_flight.is_empty() {
            self.finish_one();
        }
        for lun in 0..2 {
            let writes = self.luns[lun].lock().unwrap().acknowledged();
            self.send(lun, Command::Synchronize { writes });
        }
        while !self.in_flight.is_empty() {
            self.finish_one();
        }
        self.retries
    }

    /// The next command; `None` if it would be a second write of a block that has one in flight.
    fn invent(&mut self) -> Option<(usize, Command)> {
        let lun = self.random.usize(..2);
        let mut ledger = self.luns[lun].lock().unwrap();
        match self.random.u8(..10) {
            0 => {
                let writes = ledger.acknowledged();
                Some((lun, Command::Synchronize { writes }))
            }
            1..=3 => {
                let block = self.random.u64(..BLOCKS);
                let oldest = ledger.newest(block);
                Some((lun, Command::Read { block, oldest }))
            }
            _ => {
                let mut run = self.random.u64(..BLOCKS / RUN / GUESTS);
                if lun == 0 {
                    run = run * GUESTS + self.index;
                }
                let first = self.random.u64(..RUN);
                let last = self.random.u64(first..RUN);
                let blocks: Vec<_> = (run * RUN + first..=run * RUN + last).collect();
                let busy = self.in_flight.values().any(|(other, command)| {
                    matches!(command, Command::Write { blocks: others, .. }
                        if *other == lun && others.iter().any(|block| blocks.contains(block)))
                });
                if busy {
                    return None;
                }
                self.writes += 1;
                let sequence = self.writes * GUESTS + self.index;
                ledger.submit(&blocks, sequence);
                let fua = self.random.bool();
                Some((
                    lun,
                    Command::Write {
                        blocks,
                        sequence,
                        fua,
                    },
                ))
            }
        }
    }

    fn send(&mut self, lun: usize, command: Command) {
        let name = self.luns[lun].lock().unwrap().lun().to_owned();
        let lba = |block: u64| u32::try_from(block * SECTORS).unwrap();
        let mut data = Vec::new();
        let mut request = match &command {
            Command::Write {
                blocks,
                sequence,
                fua,
            } => {
                for block in blocks {
                    data.extend(stamp(&name, *block, *sequence));
                }
                let sectors = u16::try_from(blocks.len() as u64 * SECTORS).unwrap();
                let mut cdb = transfer(true, lba(blocks[0]), sectors);
                cdb[1] |= if *fua { FUA } else { 0 };
                Request {
                    data_out: &data,
                    ..Request::new(&cdb)
                }
            }
            Command::Read { block, .. } => {
                let sectors = u16::try_from(SECTORS).unwrap();
                let cdb = transfer(false, lba(*block), sectors);
                Request {
                    data_in_bytes: u32::try_from(BLOCK_BYTES).unwrap(),
                    ..Request::new(&cdb)
                }
            }
            Command::Synchronize { .. } => Request::new(&SYNCHRONIZE_CACHE),
        };
        request.lun[3] = u8::try_from(lun).unwrap();
        let head = self.scsi.submit(0, &request).unwrap();
        self.in_flight.insert(head, (lun, command));
    }

    fn reset(&mut self) {
        let mut lun = LUN0;
        lun[3] = self.random.u8(..2);
        let request = task_management(LOGICAL_UNIT_RESET, lun, 0);
        let answer = self.scsi.control(&request, 1).unwrap();
        assert_eq!(answer, Some(vec![FUNCTION_COMPLETE]));
    }

    fn finish_one(&mut self) {
        let response = self.scsi.wait(0).unwrap();
        let (lun, command) = self.in_flight.remove(&response.head).unwrap();
        if must_be_sent_again(&response) {
            self.retries += 1;
            self.send(lun, command);
            return;
        }
        assert_eq!(
            (response.response, response.status),
            (0, GOOD),
            "{response:?}"
        );
        let mut ledger = self.luns[lun].lock().unwrap();
        match command {
            Command::Write {
                blocks,
                sequence,
                fua,
            } => {
                ledger.acknowledge(&blocks, sequence, fua);
                self.progress.add();
            }
            Command::Read { block, oldest } => {
                ledger.check(block, oldest, &response.data).unwrap();
            }
            Command::Synchronize { writes } => ledger.synchronized(&writes),
        }
    }
}

/// As Linux decides: lost on the way, ended by a reset, or the target has news or is busy.
fn must_be_sent_again(response: &Response) -> bool {
    let key = response.sense.get(2).map_or(0, |byte| byte & 0xf);
    match (response.response, response.status) {
        (TRANSPORT_FAILURE | RESET, _) | (0, BUSY | TASK_SET_FULL) => true,
        (0, CHECK_CONDITION) => key == UNIT_ATTENTION,
        _ => false,
    }
}

/// A new seed, or the one that is to be repeated.
fn seed() -> u64 {
    let seed = std::env::var("ORIMONO_SEED").ok();
    seed.map_or_else(|| fastrand::u64(..1 << 32), |seed| seed.parse().unwrap())
}

struct World {
    lab: Lab,
    files: PathBuf,
    ledgers: Vec<Arc<Mutex<Ledger>>>,
    progress: Arc<Progress>,
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<u64>>,
}

impl World {
    fn new(seed: u64, director: Director, files: Option<&Path>) -> Self {
        let place = files.map_or("@DIR@".to_owned(), |files| files.display().to_string());
        let lab = Lab::start(&lab_file(director, &place)).unwrap();
        let files = files.map_or_else(|| lab.folder().to_owned(), Path::to_owned);
        let ledger = |name: &str| {
            let blocks = usize::try_from(BLOCKS).unwrap();
            Arc::new(Mutex::new(Ledger::new(name, blocks)))
        };
        let shared = ledger("shared");
        let mut world = Self {
            lab,
            files,
            ledgers: vec![shared.clone()],
            progress: Arc::default(),
            stop: Arc::default(),
            writers: Vec::new(),
        };
        for index in 0..GUESTS {
            let own = ledger(&format!("own{index}"));
            world.ledgers.push(own.clone());
            let socket = format!("host1/vh01.vm{index}.sock");
            let writer = Writer {
                scsi: ScsiGuest::connect(&world.lab.folder().join(socket), 1).unwrap(),
                index,
                luns: [shared.clone(), own],
                random: fastrand::Rng::with_seed(seed + index),
                writes: 0,
                in_flight: HashMap::new(),
                progress: world.progress.clone(),
                retries: 0,
                resets: director == Director::Embedded,
            };
            let stop = world.stop.clone();
            let writer = std::thread::spawn(move || writer.run(&stop));
            world.writers.push(writer);
        }
        world
    }

    /// Lets all writers end; how many commands each had to send again.
    fn finish(&mut self) -> Vec<u64> {
        self.stop.store(true, Ordering::SeqCst);
        let writers = std::mem::take(&mut self.writers).into_iter();
        let retries = writers.map(|writer| writer.join().unwrap()).collect();
        for ledger in &self.ledgers {
            assert!(ledger.lock().unwrap().is_settled());
        }
        retries
    }

    /// What the LUNs' files hold while no director runs.
    fn check(&self) {
        for ledger in &self.ledgers {
            // What is acknowledged from now on came from the director while it lived.
            let before = ledger.lock().unwrap().clone();
            let file = std::fs::read(self.files.join(before.lun())).unwrap();
            assert_eq!(file.len() as u64, LUN_BYTES);
            let ledger = ledger.lock().unwrap();
            for (block, data) in (0..).zip(file.chunks(BLOCK_BYTES)) {
                ledger.check(block, before.durable(block), data).unwrap();
            }
        }
    }
}

#[test]
fn acknowledged_writes_survive_a_director_that_is_killed_again_and_again() {
    let full = std::env::var_os("ORIMONO_TEST_FULL").is_some();
    let kills = if full { 400 } else { 40 };
    let seed = seed();
    println!("ORIMONO_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);

    let mut world = World::new(seed, Director::Apart, None);
    for kill in 1..=kills {
        world.progress.wait_for_more(random.u64(20..600));
        // Between the answers of two commands, too.
        for _ in 0..random.u32(..200_000) {
            std::hint::spin_loop();
        }
        world.lab.kill_director().unwrap();
        world.check();
        world.lab.start_director().unwrap();
        world.lab.wait_sessions(kill + 1).unwrap();
    }
    let writes = world.progress.wait_for_more(100);
    let retries = world.finish();
    println!("{writes} writes; sent again: {retries:?}");
    // Else no kill has met a command.
    assert!(retries.iter().all(|retries| *retries > 0), "{retries:?}");
    world.lab.kill_director().unwrap();
    world.check();
}

#[test]
fn resets_beside_an_embedded_director_lose_no_acknowledged_write() {
    // In memory, so that reads and writes run on the rings' threads; FUA and SYNCHRONIZE CACHE
    // beside them go by the lanes.
    let files = tempfile::tempdir_in("/dev/shm").unwrap();
    let seed = seed();
    println!("ORIMONO_SEED={seed}");
    let mut world = World::new(seed, Director::Embedded, Some(files.path()));
    let writes = world.progress.wait_for_more(20_000);
    let retries = world.finish();
    println!("{writes} writes; sent again: {retries:?}");
    // Else no reset has met a command.
    assert!(retries.iter().all(|retries| *retries > 0), "{retries:?}");
    world.lab.kill_agent(0).unwrap();
    world.check();
}

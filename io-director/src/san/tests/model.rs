//! Random batches of commands in flight at one unit, from two vHBAs, against a model that is slow
//! and obvious: blocks, a list of tasks, reservations, lists of unit attentions.
//!
//! The medium stands still while a batch is queued and managed, so that what waits and what runs is
//! known; each nexus has one thread (its LUN has a delay), so that what ends first is known. What
//! every command does to blocks and reservations is the business of
//! `scsi-target/src/tests/cluster_model.rs`; here it is which commands run, in which order, and what
//! the others end with.
//!
//! `ORIMONO_TEST_FULL=1` runs about a million commands.

use proptest::prelude::*;
use proptest::test_runner::{TestCaseResult, TestRunner};

use super::medium::Faulty;
use super::*;
use crate::san::backend::faulty;

/// The two vHBAs, and the LUN by which each sees the unit.
const NEXUSES: [(DeviceId, u8); 2] = [(MIXED, 1), (SHARING, 0)];
const BLOCKS: usize = 64;
/// Blocks of its own that each vHBA has for what runs beside commands of the other.
const OWN_BLOCKS: u8 = 32;
const BLOCK_BYTES: usize = 512;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Ready,
    Read {
        lba: u8,
        blocks: u8,
    },
    Write {
        lba: u8,
        blocks: u8,
        fill: u8,
    },
    Reserve,
    Release,
    /// REGISTER AND IGNORE EXISTING KEY; 0 unregisters.
    Register(u8),
    PersistentReserve(u8),
    PersistentRelease(u8),
    Clear(u8),
}

impl Kind {
    /// The CDB, what goes out, and how much comes in.
    fn parts(self) -> (Vec<u8>, Vec<u8>, u32) {
        let persistent = |action: u8, kind: u8, keys: [u8; 2]| {
            let mut list = vec![0; 24];
            (list[7], list[15]) = (keys[0], keys[1]);
            (vec![0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0], list, 0)
        };
        match self {
            Self::Ready => (vec![0; 6], vec![], 0),
            Self::Read { lba, blocks } => {
                let cdb = vec![0x28, 0, 0, 0, 0, lba, 0, 0, blocks, 0];
                (cdb, vec![], u32::from(blocks) * 512)
            }
            Self::Write { lba, blocks, fill } => {
                let cdb = vec![0x2a, 0, 0, 0, 0, lba, 0, 0, blocks, 0];
                (cdb, vec![fill; usize::from(blocks) * BLOCK_BYTES], 0)
            }
            Self::Reserve => (vec![0x16, 0, 0, 0, 0, 0], vec![], 0),
            Self::Release => (vec![0x17, 0, 0, 0, 0, 0], vec![], 0),
            Self::Register(key) => persistent(6, 0, [0, key]),
            // Each vHBA has one key.
            Self::PersistentReserve(kind) => persistent(1, kind, [7, 0]),
            Self::PersistentRelease(kind) => persistent(2, kind, [7, 0]),
            Self::Clear(key) => persistent(3, 0, [key, 0]),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Planned {
    attribute: u8,
    kind: Kind,
    /// Its data comes only when nothing else can run.
    late: bool,
}

/// A function of the vHBA that queued the batch, or of the other one.
#[derive(Clone, Copy, Debug)]
struct Managed {
    by_other: bool,
    function: TaskFunction,
    /// Which of the commands so far.
    at: prop::sample::Index,
}

/// What is queued while the medium stands still.
#[derive(Clone, Debug)]
struct Batch {
    who: usize,
    /// The other vHBA has commands there as well.
    beside: Vec<Planned>,
    /// Each with the functions that come when it is queued.
    tasks: Vec<(Planned, Option<Managed>)>,
}

fn medium_kind() -> impl Strategy<Value = Kind> {
    let lba = || 0..OWN_BLOCKS - 4;
    prop_oneof![
        1 => Just(Kind::Ready),
        2 => (lba(), 1..4_u8).prop_map(|(lba, blocks)| Kind::Read { lba, blocks }),
        3 => (lba(), 1..4_u8, 1..9_u8)
            .prop_map(|(lba, blocks, fill)| Kind::Write { lba, blocks, fill }),
    ]
}

fn any_kind() -> impl Strategy<Value = Kind> {
    let kind = || prop::sample::select(&[1_u8, 3, 5, 6, 7, 8][..]);
    prop_oneof![
        12 => medium_kind(),
        1 => Just(Kind::Reserve),
        1 => Just(Kind::Release),
        2 => prop::sample::select(&[7_u8, 7, 7, 0][..]).prop_map(Kind::Register),
        2 => kind().prop_map(Kind::PersistentReserve),
        1 => kind().prop_map(Kind::PersistentRelease),
        1 => prop::sample::select(&[7_u8, 3][..]).prop_map(Kind::Clear),
    ]
}

fn planned(kind: impl Strategy<Value = Kind>) -> impl Strategy<Value = Planned> {
    let attribute = prop::sample::select(&[0_u8, 0, 0, 0, 1, 2][..]);
    let parts = (attribute, kind, prop::bool::weighted(0.15));
    parts.prop_map(|(attribute, kind, late)| Planned {
        attribute,
        kind,
        late,
    })
}

fn managed() -> impl Strategy<Value = Managed> {
    use TaskFunction as F;
    let function = prop::sample::select(
        &[
            F::AbortTask,
            F::AbortTask,
            F::AbortTask,
            F::QueryTask,
            F::QueryTask,
            F::QueryTaskSet,
            F::AbortTaskSet,
            F::ClearTaskSet,
            F::LogicalUnitReset,
            F::ItNexusReset,
        ][..],
    );
    let parts = (
        prop::bool::weighted(0.3),
        function,
        any::<prop::sample::Index>(),
    );
    parts.prop_map(|(by_other, function, at)| Managed {
        by_other,
        function,
        at,
    })
}

fn batch() -> impl Strategy<Value = Batch> {
    let tasks = |kind: BoxedStrategy<Kind>| {
        let managed = prop::option::weighted(0.2, managed());
        prop::collection::vec((planned(kind), managed), 1..10)
    };
    let alone = tasks(any_kind().boxed()).prop_map(|tasks| (Vec::new(), tasks));
    let beside = prop::collection::vec(planned(medium_kind()), 1..5);
    let both = (beside, tasks(medium_kind().boxed()));
    (0..2_usize, prop_oneof![alone, both]).prop_map(|(who, (beside, tasks))| Batch {
        who,
        beside,
        tasks,
    })
}

/// How a command ends.
#[derive(Clone, Debug, PartialEq)]
enum End {
    Good(Vec<u8>),
    Conflict,
    Sense(u8, u8, u8),
    Ended(ServiceResponse),
}

const DONE: End = End::Good(Vec::new());

/// The disk, as all see it.
struct Disk {
    blocks: [u8; BLOCKS],
    pending: [Vec<u16>; 2],
    reserved: Option<usize>,
    registered: [bool; 2],
    held: Option<(u8, usize)>,
}

impl Disk {
    fn tell(&mut self, who: usize, what: u16) {
        // A reset says all that a weaker one would.
        const RESETS: [u16; 3] = [0x2900, 0x2903, 0x2907];
        let pending = &mut self.pending[who];
        if let Some(rank) = RESETS.iter().position(|reset| *reset == what) {
            if pending.iter().any(|each| RESETS[..rank].contains(each)) {
                return;
            }
            pending.retain(|each| !RESETS.contains(each));
        }
        if !pending.contains(&what) {
            pending.push(what);
        }
    }

    fn holds(&self, who: usize) -> bool {
        match self.held {
            Some((7 | 8, _)) => self.registered[who],
            Some((_, holder)) => holder == who,
            None => false,
        }
    }

    fn shares(&self, who: usize) -> bool {
        let registrants = matches!(self.held, Some((5..=8, _)));
        self.holds(who) || (registrants && self.registered[who])
    }

    fn conflicts(&self, who: usize, kind: Kind) -> bool {
        let shut_out = |readers: bool| {
            let all = matches!(self.held, Some((3 | 6 | 8, _)));
            self.held.is_some() && !self.shares(who) && (all || !readers)
        };
        let owner = self.reserved;
        match kind {
            Kind::Ready => owner.is_some_and(|owner| owner != who),
            Kind::Read { .. } | Kind::Write { .. } if owner.is_some() => owner != Some(who),
            Kind::Read { .. } => shut_out(true),
            Kind::Write { .. } => shut_out(false),
            Kind::Reserve | Kind::Release => false,
            _ => owner.is_some(),
        }
    }

    fn execute(&mut self, who: usize, kind: Kind) -> End {
        let first = self.pending[who]
            .iter()
            .copied()
            .min_by_key(|what| (what >> 8 != 0x29, *what));
        if let Some(first) = first {
            self.pending[who].retain(|each| *each != first);
            let [asc, ascq] = first.to_be_bytes();
            return End::Sense(6, asc, ascq);
        }
        if self.conflicts(who, kind) {
            return End::Conflict;
        }
        match kind {
            Kind::Ready => DONE,
            Kind::Read { lba, blocks } => {
                let range = usize::from(lba)..usize::from(lba + blocks);
                let fills = self.blocks[range].iter();
                End::Good(fills.flat_map(|fill| [*fill; BLOCK_BYTES]).collect())
            }
            Kind::Write { lba, blocks, fill } => {
                self.blocks[usize::from(lba)..usize::from(lba + blocks)].fill(fill);
                DONE
            }
            Kind::Reserve | Kind::Release if self.shares(who) => DONE,
            Kind::Reserve | Kind::Release if self.registered.contains(&true) => End::Conflict,
            Kind::Reserve if self.reserved.is_some_and(|owner| owner != who) => End::Conflict,
            Kind::Reserve => {
                self.reserved = Some(who);
                DONE
            }
            Kind::Release => {
                self.lose(who);
                DONE
            }
            Kind::Register(0) => {
                self.unregister(who);
                DONE
            }
            Kind::Register(_) => {
                self.registered[who] = true;
                DONE
            }
            _ if !self.registered[who] => End::Conflict,
            Kind::PersistentReserve(kind) => match self.held {
                None => {
                    self.held = Some((kind, who));
                    DONE
                }
                Some((held, _)) if self.holds(who) && held == kind => DONE,
                Some(_) => End::Conflict,
            },
            Kind::PersistentRelease(kind) => match self.held {
                Some((held, _)) if self.holds(who) && held != kind => End::Sense(5, 0x26, 4),
                Some(_) if self.holds(who) => {
                    self.free(who, kind);
                    DONE
                }
                _ => DONE,
            },
            Kind::Clear(7) => {
                if self.registered[1 - who] {
                    self.tell(1 - who, 0x2a03);
                }
                self.registered = [false; 2];
                self.held = None;
                DONE
            }
            Kind::Clear(_) => End::Conflict,
        }
    }

    /// The reservation of this type ends by what `who` does.
    fn free(&mut self, who: usize, kind: u8) {
        self.held = None;
        if kind >= 5 && self.registered[1 - who] {
            self.tell(1 - who, 0x2a04);
        }
    }

    fn unregister(&mut self, who: usize) {
        if !std::mem::take(&mut self.registered[who]) {
            return;
        }
        match self.held {
            Some((7 | 8, _)) if !self.registered.contains(&true) => self.held = None,
            Some((kind @ 1..=6, holder)) if holder == who => self.free(who, kind),
            _ => {}
        }
    }

    fn lose(&mut self, who: usize) {
        if self.reserved == Some(who) {
            self.reserved = None;
        }
    }
}

#[derive(Clone, Debug)]
struct Queued {
    tag: u64,
    who: usize,
    plan: Planned,
    /// All of its data is there.
    complete: bool,
    /// What a function has made of it.
    ended: Option<ServiceResponse>,
}

/// Which of the tasks of a nexus runs next: one whose data is there, with nothing before it that it
/// must not overtake.
fn next_of(tasks: &[Queued], who: usize) -> Option<usize> {
    const ORDERED: u8 = 1;
    const HEAD_OF_QUEUE: u8 = 2;
    let may_run = |at: &usize| {
        let task = &tasks[*at];
        let others = tasks.iter().enumerate();
        let mut others = others.filter(|(other, task)| other != at && task.who == who);
        let blocked = match task.plan.attribute {
            HEAD_OF_QUEUE => false,
            ORDERED => {
                others.any(|(other, task)| other < *at || task.plan.attribute == HEAD_OF_QUEUE)
            }
            _ => others.any(|(other, task)| other < *at && task.plan.attribute == ORDERED),
        };
        task.who == who && task.complete && !blocked
    };
    let able = (0..tasks.len()).filter(may_run);
    able.min_by_key(|at| (tasks[*at].plan.attribute != HEAD_OF_QUEUE, *at))
}

/// The director with its medium, and the model of both.
struct World {
    lab: Lab,
    faults: Faulty,
    disk: Disk,
    tags: u64,
    commands: u64,
    /// The task of each nexus that is at the medium.
    running: [Option<Queued>; 2],
    waiting: Vec<Queued>,
    /// Ended by functions, but not before their data is there.
    dead: Vec<Queued>,
    /// Statuses to come now, of each nexus in order.
    due: [Vec<(u64, End)>; 2],
    /// In any order: those of tasks that a function ended, and answers of functions.
    any_order: Vec<(u64, End)>,
    responses: Vec<(u64, TaskResponse)>,
    /// Of functions that are over when what runs is.
    deferred: Vec<(u64, TaskResponse)>,
}

impl Drop for World {
    fn drop(&mut self) {
        // The director waits for its media, and both ends of the session for each other.
        self.faults.stall(false);
        self.lab.endpoint.close("test");
    }
}

impl World {
    fn new() -> Self {
        let mut faults = None;
        let lab = Lab::with(|config| {
            let [_, slow] = &mut config.luns[..] else {
                panic!("two LUNs")
            };
            // No time, and one command at a time.
            slow.delay = Duration::from_nanos(1);
            slow.timeout = Duration::from_secs(3600);
            faults = slow.medium.path().map(faulty::of);
        });
        Self {
            lab,
            faults: Faulty(faults.unwrap()),
            disk: Disk {
                blocks: [0; BLOCKS],
                pending: [0; 2].map(|_| vec![0x2900]),
                reserved: None,
                registered: [false; 2],
                held: None,
            },
            tags: 0,
            commands: 0,
            running: [None, None],
            waiting: Vec::new(),
            dead: Vec::new(),
            due: [Vec::new(), Vec::new()],
            any_order: Vec::new(),
            responses: Vec::new(),
            deferred: Vec::new(),
        }
    }

    fn tag(&mut self) -> u64 {
        self.tags += 1;
        self.tags
    }

    /// Sends a command, with its data unless that is late.
    fn queue(&mut self, who: usize, plan: Planned) -> Queued {
        let tag = self.tag();
        self.commands += 1;
        let (device, lun) = NEXUSES[who];
        let (cdb, out, data_in) = plan.kind.parts();
        let out_bytes = u32::try_from(out.len()).unwrap();
        let (lun, cdb) = (lun, &cdb[..]);
        let complete = out.is_empty() || !plan.late;
        let unit = command_of(plan.attribute, tag, (lun, cdb), out_bytes, data_in);
        self.lab.send(device, [unit]);
        if complete && !out.is_empty() {
            self.lab.send(device, [data_out(tag, 0, &out)]);
        }
        Queued {
            tag,
            who,
            plan,
            complete,
            ended: None,
        }
    }

    /// Has a task at the medium stand for the time until [`Self::go`], if the unit lets it get there.
    fn plug(&mut self, who: usize, kind: Kind) {
        let simple = |kind| Planned {
            attribute: 0,
            kind,
            late: false,
        };
        // The unit attention goes to another.
        while !self.disk.pending[who].is_empty() {
            self.at_once(who, simple(Kind::Ready));
        }
        if self.disk.conflicts(who, kind) {
            self.at_once(who, simple(kind));
            return;
        }
        self.faults.stall(true);
        let task = self.queue(who, simple(kind));
        self.running[who] = Some(task);
        let stalled = self.running.iter().flatten().count();
        self.faults.wait_stalled(stalled);
    }

    /// A command alone.
    fn at_once(&mut self, who: usize, plan: Planned) {
        let task = self.queue(who, plan);
        let end = self.disk.execute(who, plan.kind);
        self.due[who].push((task.tag, end));
        self.settle();
    }

    /// Returns when the director has all the data that was sent so far.
    fn data_is_there(&self) {
        for (who, (device, _)) in NEXUSES.into_iter().enumerate() {
            let object = ["vhba vh01.vm1", "vhba vh02.vm1"][who];
            let count = || {
                let snapshots = self.lab.director.snapshot();
                let snapshot = snapshots.iter().find(|each| each.object == object);
                snapshot.unwrap().count("unknown_tag").unwrap()
            };
            let before = count();
            self.lab.send(device, [data_out(u64::MAX, 0, &[0])]);
            while count() == before {
                std::thread::yield_now();
            }
        }
    }

    fn manage(&mut self, by: usize, function: TaskFunction, managed: u64) {
        let tag = self.tag();
        let (device, lun) = NEXUSES[by];
        let mut waits = false;
        let ended = match function {
            TaskFunction::LogicalUnitReset | TaskFunction::ItNexusReset => ServiceResponse::Reset,
            _ => ServiceResponse::Aborted,
        };
        let named = |task: &Queued| match function {
            TaskFunction::LogicalUnitReset => true,
            TaskFunction::AbortTask | TaskFunction::QueryTask => {
                task.who == by && task.tag == managed
            }
            _ => task.who == by,
        };
        let mut response = TaskResponse::Complete;
        if matches!(
            function,
            TaskFunction::QueryTask | TaskFunction::QueryTaskSet
        ) {
            let mut there = self.running.iter().flatten().chain(&self.waiting);
            if there.any(named) {
                response = TaskResponse::Succeeded;
            }
        } else {
            for running in self.running.iter_mut().flatten().filter(|task| named(task)) {
                waits = true;
                running.ended.get_or_insert(ended);
            }
            let (gone, kept): (Vec<_>, _) = self.waiting.drain(..).partition(named);
            self.waiting = kept;
            for task in gone {
                if task.complete {
                    self.any_order.push((task.tag, End::Ended(ended)));
                } else {
                    let ended = Some(ended);
                    self.dead.push(Queued { ended, ..task });
                }
            }
            match function {
                TaskFunction::LogicalUnitReset => {
                    self.disk.reserved = None;
                    self.disk.tell(0, 0x2903);
                    self.disk.tell(1, 0x2903);
                }
                TaskFunction::ItNexusReset => {
                    self.disk.lose(by);
                    self.disk.tell(by, 0x2907);
                }
                _ => {}
            }
        }
        self.lab.send(device, [manage(function, tag, managed, lun)]);
        let answers = if waits {
            &mut self.deferred
        } else {
            &mut self.responses
        };
        answers.push((tag, response));
        self.settle();
    }

    /// Lets the medium go on: what ran ends, then what can run.
    fn go(&mut self) {
        for who in 0..2 {
            if let Some(task) = self.running[who].take() {
                let pending = std::mem::take(&mut self.disk.pending[who]);
                let reserved = self.disk.reserved.take();
                let held = self.disk.held.take();
                // It was let through before any of these.
                let end = self.disk.execute(who, task.plan.kind);
                (self.disk.pending[who], self.disk.reserved) = (pending, reserved);
                self.disk.held = held;
                let end = task.ended.map_or(end, End::Ended);
                self.due[who].push((task.tag, end));
            }
        }
        self.run_waiting();
        self.responses.append(&mut self.deferred);
        self.faults.stall(false);
        self.settle();
        // What was late comes, one after the other.
        for task in std::mem::take(&mut self.dead) {
            self.send_late(&task);
            self.any_order
                .push((task.tag, End::Ended(task.ended.unwrap())));
            self.settle();
        }
        while let Some(at) = self.waiting.iter().position(|task| !task.complete) {
            self.waiting[at].complete = true;
            let task = self.waiting[at].clone();
            self.run_waiting();
            self.send_late(&task);
            self.settle();
        }
        assert_eq!(self.waiting.len(), 0);
    }

    fn send_late(&self, task: &Queued) {
        let (_, out, _) = task.plan.kind.parts();
        let (device, _) = NEXUSES[task.who];
        self.lab.send(device, [data_out(task.tag, 0, &out)]);
    }

    fn run_waiting(&mut self) {
        for who in 0..2 {
            while let Some(at) = next_of(&self.waiting, who) {
                let task = self.waiting.remove(at);
                let end = self.disk.execute(who, task.plan.kind);
                self.due[who].push((task.tag, end));
            }
        }
    }

    /// Takes what is to come, and checks it.
    fn settle(&mut self) {
        while self.due.iter().any(|due| !due.is_empty())
            || !self.any_order.is_empty()
            || !self.responses.is_empty()
        {
            let (device, seen) = self.lab.seen.recv_timeout(PATIENCE).unwrap();
            match seen {
                Seen::Status {
                    tag,
                    response,
                    status,
                    sense,
                    data,
                } => {
                    let end = match (response, status) {
                        (ServiceResponse::TaskComplete, 0) => End::Good(data),
                        (ServiceResponse::TaskComplete, 0x18) => End::Conflict,
                        (ServiceResponse::TaskComplete, 2) => {
                            End::Sense(sense[2] & 0xf, sense[12], sense[13])
                        }
                        (ServiceResponse::TaskComplete, status) => panic!("status {status:#x}"),
                        (response, _) => End::Ended(response),
                    };
                    self.ended(device, (tag, end));
                }
                Seen::Management { tag, response } => {
                    let answer = (tag, response);
                    let at = self.responses.iter().position(|each| *each == answer);
                    let at = at.unwrap_or_else(|| {
                        panic!("{answer:?} instead of one of {:?}", self.responses)
                    });
                    self.responses.remove(at);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn ended(&mut self, device: DeviceId, end: (u64, End)) {
        if let Some(at) = self.any_order.iter().position(|each| *each == end) {
            self.any_order.remove(at);
            return;
        }
        let who = usize::from(device == NEXUSES[1].0);
        assert!(!self.due[who].is_empty(), "{end:x?} is not due");
        assert_eq!(end, self.due[who].remove(0), "of nexus {who}");
    }

    fn run(&mut self, batch: &Batch) {
        let who = batch.who;
        let alone = batch.beside.is_empty();
        // Beside commands of the other vHBA each stays in its own half.
        let place = |who: usize, plan: Planned| {
            let base = if who == 0 { 0 } else { OWN_BLOCKS };
            let kind = match plan.kind {
                Kind::Read { lba, blocks } => Kind::Read {
                    lba: lba + base,
                    blocks,
                },
                Kind::Write { lba, blocks, fill } => Kind::Write {
                    lba: lba + base,
                    blocks,
                    fill,
                },
                other => other,
            };
            Planned { kind, ..plan }
        };
        let mut tags = Vec::new();
        let first = place(
            who,
            Planned {
                attribute: 0,
                late: false,
                ..batch.tasks[0].0
            },
        );
        let first = match first.kind {
            kind @ (Kind::Read { .. } | Kind::Write { .. }) => kind,
            _ => Kind::Read { lba: 62, blocks: 1 },
        };
        if !alone {
            self.plug(1 - who, Kind::Read { lba: 62, blocks: 2 });
        }
        self.plug(who, first);
        let plugged =
            self.running.iter().all(Option::is_some) || (alone && self.running[who].is_some());
        if !plugged {
            // A reservation keeps one of them from the medium: nothing stands still.
            self.go();
            for (plan, _) in &batch.tasks {
                let late = false;
                self.at_once(
                    who,
                    Planned {
                        late,
                        ..place(who, *plan)
                    },
                );
            }
            return;
        }
        tags.extend(self.running.iter().flatten().map(|task| task.tag));
        for plan in &batch.beside {
            let task = self.queue(1 - who, place(1 - who, *plan));
            let (device, lun) = NEXUSES[1 - who];
            self.wait_queued(device, task.tag, lun);
            tags.push(task.tag);
            self.waiting.push(task);
        }
        for (plan, managed) in &batch.tasks {
            let task = self.queue(who, place(who, *plan));
            let (device, lun) = NEXUSES[who];
            self.wait_queued(device, task.tag, lun);
            tags.push(task.tag);
            self.waiting.push(task);
            if let Some(managed) = managed {
                let by = if managed.by_other { 1 - who } else { who };
                self.manage(by, managed.function, *managed.at.get(&tags));
            }
        }
        self.data_is_there();
        self.go();
    }

    /// Returns when the director has a command: functions overtake commands.
    fn wait_queued(&mut self, device: DeviceId, tag: u64, lun: u8) {
        loop {
            let query = self.tag();
            self.lab
                .send(device, [manage(TaskFunction::QueryTask, query, tag, lun)]);
            match self.lab.next() {
                Seen::Management { tag, response } if tag == query => {
                    if response == TaskResponse::Succeeded {
                        return;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

fn cases() -> u32 {
    if std::env::var_os("ORIMONO_TEST_FULL").is_some() {
        12_000
    } else {
        150
    }
}

#[test]
fn tasks_in_flight_agree_with_the_model() {
    let config = ProptestConfig {
        cases: cases(),
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let batches = prop::collection::vec(batch(), 1..24);
    let commands = std::cell::Cell::new(0_u64);
    let run = |batches: Vec<Batch>| -> TestCaseResult {
        let mut world = World::new();
        for batch in &batches {
            world.run(batch);
        }
        commands.set(commands.get() + world.commands);
        Ok(())
    };
    TestRunner::new(config).run(&batches, run).unwrap();
    println!("{} commands", commands.get());
}

//! Random commands of three nexuses on one unit, with reservations, resets, losses and restarts,
//! against a model that is slow and obvious: blocks, keys, one reservation, lists of unit
//! attentions. Commands in flight are the task set's: `io-director/src/san/tests/model.rs`.
//!
//! `ORIMONO_TEST_FULL=1` runs more than a million commands.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::model::{self, Model, Operation};
use super::ram_device::{LUN_0, RamDevice, run_at, second_nexus};
use super::reservations::Store;
use crate::{
    Identity, ItNexus, LogicalUnit, Status, TaskManagementFunction, TaskManagementResponse,
};

const NEXUSES: usize = 3;
/// Stands for the key that the nexus is registered with.
const OWN_KEY: u64 = 9;

/// Mostly the right one; few others, so that nexuses have the same ones.
fn key() -> impl Strategy<Value = u64> {
    prop_oneof![3 => Just(OWN_KEY), 1 => 0..4_u64]
}

#[derive(Clone, Debug)]
enum Step {
    Blocks(Operation),
    Ready,
    Start(bool),
    /// MODE SELECT of SWP.
    Protect(bool),
    Reserve,
    Release,
    /// PERSISTENT RESERVE OUT.
    Out {
        action: u8,
        kind: u8,
        key: u64,
        action_key: u64,
        aptpl: bool,
    },
    /// REGISTER AND MOVE to a nexus.
    Move {
        key: u64,
        action_key: u64,
        unregister: bool,
        to: usize,
    },
    ReadKeys,
    ReadReservation,
    ReadFullStatus,
    TaskManagement(TaskManagementFunction),
    /// The nexus is lost and comes again.
    Reconnect,
    /// The unit is made anew from what was stored.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    use TaskManagementFunction as Function;
    let out = (
        prop::sample::select(&[0_u8, 0, 0, 1, 1, 2, 3, 4, 4, 5, 5, 6][..]),
        prop::sample::select(&[1_u8, 3, 5, 6, 7, 8, 2][..]),
        key(),
        0..4_u64,
        any::<bool>(),
    );
    let out = out.prop_map(|(action, kind, key, action_key, aptpl)| Step::Out {
        action,
        kind,
        key,
        action_key,
        aptpl,
    });
    let moved = (key(), 0..4_u64, any::<bool>(), 0..NEXUSES);
    let moved = moved.prop_map(|(key, action_key, unregister, to)| Step::Move {
        key,
        action_key,
        unregister,
        to,
    });
    let function = prop::sample::select(
        &[
            Function::LogicalUnitReset,
            Function::TargetReset,
            Function::ItNexusReset,
            Function::AbortTask,
            Function::AbortTaskSet,
            Function::ClearTaskSet,
            Function::ClearAca,
            Function::QueryAsynchronousEvent,
        ][..],
    );
    prop_oneof![
        20 => model::operation().prop_map(Step::Blocks),
        6 => Just(Step::Ready),
        1 => any::<bool>().prop_map(Step::Start),
        2 => any::<bool>().prop_map(Step::Protect),
        2 => Just(Step::Reserve),
        2 => Just(Step::Release),
        24 => out,
        2 => moved,
        3 => Just(Step::ReadKeys),
        3 => Just(Step::ReadReservation),
        3 => Just(Step::ReadFullStatus),
        2 => function.prop_map(Step::TaskManagement),
        1 => Just(Step::Reconnect),
        1 => Just(Step::Restart),
    ]
}

/// How a command ends: sense is key, ASC, ASCQ and INFORMATION.
#[derive(Debug, PartialEq)]
enum End {
    Good(Vec<u8>),
    Conflict,
    Sense(u8, u8, u8, Option<u64>),
}

const DONE: End = End::Good(Vec::new());

const fn illegal(asc: u8, ascq: u8) -> End {
    End::Sense(5, asc, ascq, None)
}

/// What is done under the reservation of another.
#[derive(Clone, Copy, PartialEq)]
enum Rule {
    Always,
    NotBesideReserve,
    Read,
    Write,
}

/// What a command needs of the unit.
#[derive(Clone, Copy, PartialEq)]
enum Needs {
    Nothing,
    Medium,
    Writable,
}

struct Cluster {
    blocks: Model,
    stopped: bool,
    protected: bool,
    keys: BTreeMap<usize, u64>,
    /// Type, and who made it.
    reservation: Option<(u8, usize)>,
    generation: u32,
    persists: bool,
    reserved: Option<usize>,
    /// ASC and ASCQ, in any order.
    pending: [Vec<u16>; NEXUSES],
    /// Initiator ports that a PREEMPT AND ABORT must name.
    preempted: Vec<u64>,
}

/// Resets and losses, the strongest first.
const RESETS: [u16; 4] = [0x2900, 0x2902, 0x2903, 0x2907];

impl Cluster {
    fn tell(&mut self, who: usize, what: u16) {
        let pending = &mut self.pending[who];
        if RESETS[..3].contains(&what) {
            // Told by a reset as well.
            pending.retain(|each| *each != 0x2A01);
        }
        if let Some(rank) = RESETS.iter().position(|reset| *reset == what) {
            if pending.iter().any(|each| RESETS[..rank].contains(each)) {
                return;
            }
            if what != 0x2907 {
                pending.retain(|each| !RESETS.contains(each));
            }
        }
        if !pending.contains(&what) {
            pending.push(what);
        }
    }

    fn tell_registered(&mut self, but: usize, what: u16) {
        for who in self.keys.clone().into_keys().filter(|who| *who != but) {
            self.tell(who, what);
        }
    }

    fn take_pending(&mut self, who: usize) -> Option<u16> {
        let order = |what: &u16| (what >> 8 != 0x29, *what);
        let first = self.pending[who].iter().copied().min_by_key(order)?;
        self.pending[who].retain(|each| *each != first);
        Some(first)
    }

    fn holds(&self, who: usize) -> bool {
        match self.reservation {
            None => false,
            Some((7 | 8, _)) => self.keys.contains_key(&who),
            Some((_, holder)) => holder == who,
        }
    }

    fn shares(&self, who: usize) -> bool {
        let registrants = matches!(self.reservation, Some((5..=8, _)));
        self.holds(who) || (registrants && self.keys.contains_key(&who))
    }

    fn conflicts(&self, who: usize, rule: Rule) -> bool {
        if rule == Rule::Always {
            return false;
        }
        if let Some(owner) = self.reserved {
            return owner != who;
        }
        let readers_too = matches!(self.reservation, Some((3 | 6 | 8, _)));
        self.reservation.is_some()
            && !self.shares(who)
            && (rule == Rule::Write || (rule == Rule::Read && readers_too))
    }

    fn unregister(&mut self, who: usize) {
        if self.keys.remove(&who).is_none() {
            return;
        }
        match self.reservation {
            Some((7 | 8, _)) if self.keys.is_empty() => self.reservation = None,
            Some((kind @ 1..=6, holder)) if holder == who => {
                self.reservation = None;
                if kind >= 5 {
                    self.tell_registered(who, 0x2A04);
                }
            }
            _ => {}
        }
    }

    fn out(&mut self, who: usize, (action, kind): (u8, u8), keys: (u64, u64), aptpl: bool) -> End {
        let (key, action_key) = keys;
        if self.reserved.is_some() {
            return End::Conflict;
        }
        if [1, 2].contains(&action) && kind == 2 {
            return illegal(0x24, 0);
        }
        let registered = self.keys.get(&who).copied();
        let known = match action {
            0 => registered.unwrap_or(0) == key,
            6 => true,
            _ => registered == Some(key),
        };
        if !known {
            return End::Conflict;
        }
        match action {
            0 | 6 => {
                if action_key == 0 {
                    self.unregister(who);
                } else {
                    self.keys.insert(who, action_key);
                }
                self.persists = aptpl;
            }
            1 => match self.reservation {
                None => self.reservation = Some((kind, who)),
                Some((held, _)) if self.holds(who) && held == kind => {}
                Some(_) => return End::Conflict,
            },
            2 => {
                if self.holds(who) {
                    if self.reservation.unwrap().0 != kind {
                        return illegal(0x26, 4);
                    }
                    self.reservation = None;
                    if kind >= 5 {
                        self.tell_registered(who, 0x2A04);
                    }
                }
            }
            3 => {
                self.tell_registered(who, 0x2A03);
                self.keys.clear();
                self.reservation = None;
            }
            _ => return self.preempt(who, (action, kind), action_key),
        }
        if ![1, 2].contains(&action) {
            self.generation += 1;
        }
        DONE
    }

    fn preempt(&mut self, who: usize, (action, kind): (u8, u8), action_key: u64) -> End {
        let takes = match self.reservation {
            None => false,
            Some((7 | 8, _)) => action_key == 0,
            Some((_, holder)) => self.keys[&holder] == action_key,
        };
        let goes: Vec<usize> = self
            .keys
            .iter()
            .filter(|(each, key)| match self.reservation {
                Some((7 | 8, _)) if takes => **each != who,
                _ if takes => **each != who && **key == action_key,
                _ => **key == action_key,
            })
            .map(|(each, _)| *each)
            .collect();
        if takes && kind == 2 {
            return illegal(0x24, 0);
        }
        if !takes && action_key == 0 {
            return illegal(0x26, 0);
        }
        if !takes && goes.is_empty() {
            return End::Conflict;
        }
        for each in &goes {
            self.keys.remove(each);
            if *each != who {
                self.tell(*each, 0x2A05);
                if action == 5 {
                    self.preempted.push(u64::try_from(*each).unwrap());
                }
            }
        }
        if takes {
            let before = self.reservation.replace((kind, who));
            if before.unwrap().0 != kind {
                self.tell_registered(who, 0x2A04);
            }
        } else if self.keys.is_empty() {
            self.reservation = None;
        }
        self.generation += 1;
        DONE
    }

    fn register_and_move(
        &mut self,
        who: usize,
        keys: (u64, u64),
        unregister: bool,
        to: usize,
    ) -> End {
        let (key, action_key) = keys;
        if self.reserved.is_some() || !self.keys.contains_key(&who) {
            return End::Conflict;
        }
        let Some((kind, holder)) = self.reservation else {
            return illegal(0x24, 0);
        };
        if kind >= 7 || holder != who || self.keys[&who] != key {
            return End::Conflict;
        }
        if action_key == 0 || to == who {
            return illegal(0x26, 0);
        }
        self.keys.insert(to, action_key);
        self.reservation = Some((kind, to));
        if unregister {
            self.keys.remove(&who);
        }
        self.persists = false;
        self.generation += 1;
        DONE
    }

    /// With the key that stands for the nexus' own.
    fn with_key(&self, who: usize, step: &Step) -> Step {
        let mut step = step.clone();
        if let Step::Out { key, .. } | Step::Move { key, .. } = &mut step
            && *key == OWN_KEY
        {
            *key = self.keys.get(&who).copied().unwrap_or(0);
        }
        step
    }

    /// The whole of a command: CDB, data-out, how it ends.
    fn command(&mut self, who: usize, step: &Step) -> Option<(Vec<u8>, Vec<u8>, End)> {
        let mut after = self.blocks.clone();
        let (cdb, data_out, rule, needs) = match step {
            Step::Blocks(operation) => {
                let (cdb, data_out, _) = after.apply(operation);
                let reads = matches!(
                    operation,
                    Operation::Read { .. }
                        | Operation::Verify { .. }
                        | Operation::VerifySame { .. }
                        | Operation::LbaStatus { .. }
                );
                let rule = if reads { Rule::Read } else { Rule::Write };
                let needs = match operation {
                    // It needs what its READ and its WRITE need.
                    Operation::Copy { .. } => Needs::Nothing,
                    _ if reads => Needs::Medium,
                    _ => Needs::Writable,
                };
                (cdb, data_out, rule, needs)
            }
            Step::Protect(protect) => {
                let page = [0x0A, 0x0A, 0x22, 0x10, u8::from(*protect) << 3, 0];
                let list = [[0; 4].as_slice(), &page, &[0; 6]].concat();
                (
                    vec![0x15, 0x10, 0, 0, 16, 0],
                    list,
                    Rule::Write,
                    Needs::Nothing,
                )
            }
            Step::Ready => (vec![0; 6], vec![], Rule::NotBesideReserve, Needs::Medium),
            Step::Start(start) => {
                let rule = if *start { Rule::Always } else { Rule::Write };
                (
                    vec![0x1B, 0, 0, 0, u8::from(*start), 0],
                    vec![],
                    rule,
                    Needs::Nothing,
                )
            }
            Step::Reserve => (
                vec![0x16, 0, 0, 0, 0, 0],
                vec![],
                Rule::Always,
                Needs::Nothing,
            ),
            Step::Release => (
                vec![0x17, 0, 0, 0, 0, 0],
                vec![],
                Rule::Always,
                Needs::Nothing,
            ),
            Step::Out {
                action,
                kind,
                key,
                action_key,
                aptpl,
            } => {
                let mut list = [key.to_be_bytes(), action_key.to_be_bytes()].concat();
                list.extend([0, 0, 0, 0, u8::from(*aptpl), 0, 0, 0]);
                let cdb = vec![0x5F, *action, *kind, 0, 0, 0, 0, 0, 24, 0];
                (cdb, list, Rule::Always, Needs::Nothing)
            }
            Step::Move {
                key,
                action_key,
                unregister,
                to,
            } => {
                let mut list = [key.to_be_bytes(), action_key.to_be_bytes()].concat();
                list.extend([0, u8::from(*unregister) << 1, 0, 1, 0, 0, 0, 24]);
                list.extend([0; 8]);
                list.extend(u64::try_from(*to).unwrap().to_be_bytes());
                list.extend([0; 8]);
                (
                    vec![0x5F, 7, 1, 0, 0, 0, 0, 0, 48, 0],
                    list,
                    Rule::Always,
                    Needs::Nothing,
                )
            }
            Step::ReadKeys | Step::ReadReservation | Step::ReadFullStatus => {
                let action = match step {
                    Step::ReadKeys => 0,
                    Step::ReadReservation => 1,
                    _ => 3,
                };
                let cdb = vec![0x5E, action, 0, 0, 0, 0, 0, 1, 0, 0];
                (cdb, vec![], Rule::Always, Needs::Nothing)
            }
            Step::TaskManagement(_) | Step::Reconnect | Step::Restart => return None,
        };
        self.preempted.clear();
        let end = if let Some(what) = self.take_pending(who) {
            let [asc, ascq] = what.to_be_bytes();
            End::Sense(6, asc, ascq, None)
        } else if self.conflicts(who, rule) {
            End::Conflict
        } else if needs != Needs::Nothing && self.stopped {
            End::Sense(2, 4, 2, None)
        } else if needs == Needs::Writable && self.protected {
            End::Sense(7, 0x27, 2, None)
        } else {
            self.run(who, step)
        };
        Some((cdb, data_out, end))
    }

    fn run(&mut self, who: usize, step: &Step) -> End {
        match step {
            Step::Blocks(operation @ Operation::Copy { .. })
                if (self.stopped || self.protected) && self.blocks.in_range(operation) =>
            {
                // THIRD PARTY DEVICE FAILURE.
                End::Sense(0xA, 0x0D, 1, None)
            }
            Step::Blocks(operation) => match self.blocks.apply(operation).2 {
                Ok(data) => End::Good(data),
                Err((key, asc, information)) => End::Sense(key, asc, 0, information),
            },
            Step::Start(start) => {
                self.stopped = !start;
                DONE
            }
            Step::Protect(protect) => {
                if self.protected != *protect {
                    for each in (0..NEXUSES).filter(|each| *each != who) {
                        self.tell(each, 0x2A01);
                    }
                }
                self.protected = *protect;
                DONE
            }
            Step::Reserve | Step::Release if self.shares(who) => DONE,
            Step::Reserve | Step::Release if !self.keys.is_empty() => End::Conflict,
            Step::Reserve if self.reserved.is_some_and(|owner| owner != who) => End::Conflict,
            Step::Reserve => {
                self.reserved = Some(who);
                DONE
            }
            Step::Release => {
                self.lose(who);
                DONE
            }
            Step::Out {
                action,
                kind,
                key,
                action_key,
                aptpl,
            } => self.out(who, (*action, *kind), (*key, *action_key), *aptpl),
            Step::Move {
                key,
                action_key,
                unregister,
                to,
            } => self.register_and_move(who, (*key, *action_key), *unregister, *to),
            Step::ReadKeys | Step::ReadReservation | Step::ReadFullStatus
                if self.reserved.is_some() =>
            {
                End::Conflict
            }
            Step::ReadKeys => {
                let mut keys: Vec<u64> = self.keys.values().copied().collect();
                keys.sort_unstable();
                End::Good(
                    self.answer(
                        &keys
                            .iter()
                            .flat_map(|key| key.to_be_bytes())
                            .collect::<Vec<_>>(),
                    ),
                )
            }
            Step::ReadReservation => match self.reservation {
                None => End::Good(self.answer(&[])),
                Some((kind, holder)) => {
                    let key = if kind >= 7 { 0 } else { self.keys[&holder] };
                    let mut body = key.to_be_bytes().to_vec();
                    body.extend([0, 0, 0, 0, 0, kind, 0, 0]);
                    End::Good(self.answer(&body))
                }
            },
            Step::ReadFullStatus => {
                // Ascending by port, as `World::command` sorts them.
                let mut body = Vec::new();
                for (each, key) in &self.keys {
                    let kind = self.reservation.filter(|_| self.holds(*each));
                    body.extend(key.to_be_bytes());
                    body.extend([0, 0, 0, 0, u8::from(kind.is_some())]);
                    body.extend([kind.map_or(0, |(kind, _)| kind), 0, 0, 0, 0]);
                    body.extend([0, 1, 0, 0, 0, 24]);
                    body.extend([0; 8]);
                    body.extend(u64::try_from(*each).unwrap().to_be_bytes());
                    body.extend([0; 8]);
                }
                End::Good(self.answer(&body))
            }
            _ => DONE,
        }
    }

    fn answer(&self, body: &[u8]) -> Vec<u8> {
        let mut data = self.generation.to_be_bytes().to_vec();
        data.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
        data.extend(body);
        data
    }

    /// What RESERVE of a nexus reserved is free.
    fn lose(&mut self, who: usize) {
        if self.reserved == Some(who) {
            self.reserved = None;
        }
    }

    /// What a function is answered.
    fn event(&mut self, who: usize, step: &Step) -> Option<TaskManagementResponse> {
        use TaskManagementFunction as Function;
        use TaskManagementResponse as Response;
        let mut response = Response::FunctionComplete;
        match step {
            Step::TaskManagement(Function::ClearAca) => response = Response::FunctionRejected,
            Step::TaskManagement(Function::QueryAsynchronousEvent)
                if !self.pending[who].is_empty() =>
            {
                response = Response::FunctionSucceeded;
            }
            Step::TaskManagement(Function::LogicalUnitReset | Function::TargetReset) => {
                let lun = matches!(step, Step::TaskManagement(Function::LogicalUnitReset));
                for each in 0..NEXUSES {
                    self.tell(each, if lun { 0x2903 } else { 0x2902 });
                }
                self.reserved = None;
                (self.stopped, self.protected) = (false, false);
            }
            Step::TaskManagement(Function::ItNexusReset) => {
                self.lose(who);
                self.tell(who, 0x2907);
            }
            Step::Reconnect => {
                self.lose(who);
                self.pending[who] = vec![0x2900];
            }
            Step::Restart => {
                if !self.persists {
                    self.keys.clear();
                    self.reservation = None;
                }
                self.generation = 0;
                self.reserved = None;
                (self.stopped, self.protected) = (false, false);
                self.pending = std::array::from_fn(|_| vec![0x2900]);
            }
            _ => {}
        }
        matches!(step, Step::TaskManagement(_)).then_some(response)
    }
}

/// The unit under test with its nexuses.
struct World {
    device: Arc<RamDevice>,
    store: Arc<Store>,
    unit: Arc<LogicalUnit>,
    nexuses: [ItNexus; NEXUSES],
}

impl World {
    fn new(device: Arc<RamDevice>, store: Arc<Store>) -> Self {
        let identity = Identity::from_serial("lun-0001").unwrap();
        let unit = LogicalUnit::new(identity, device.clone()).unwrap();
        let unit = Arc::new(unit.with_reservation_store(store.clone()));
        unit.load_reservations(&store.bytes()).unwrap();
        let nexuses = [0, 1, 2].map(|port| second_nexus(&unit, port));
        Self {
            device,
            store,
            unit,
            nexuses,
        }
    }

    fn event(&mut self, who: usize, step: &Step) -> Option<TaskManagementResponse> {
        match step {
            Step::TaskManagement(function) => {
                return Some(self.nexuses[who].task_management(*function, LUN_0));
            }
            Step::Reconnect => {
                let lost = TaskManagementFunction::ItNexusReset;
                let _complete = self.nexuses[who].task_management(lost, LUN_0);
                let port = self.nexuses[who].initiator_port();
                self.nexuses[who] = second_nexus(&self.unit, port);
            }
            Step::Restart => *self = Self::new(self.device.clone(), self.store.clone()),
            _ => {}
        }
        None
    }

    fn command(&self, who: usize, cdb: &[u8], data_out: &[u8]) -> (End, Vec<u64>) {
        let (completion, mut data) = run_at(&self.nexuses[who], LUN_0, cdb, data_out);
        let end = match (completion.status, completion.sense) {
            (Status::ReservationConflict, None) => End::Conflict,
            (Status::Good, None) => {
                // In order of registration.
                match cdb[..2] {
                    [0x5E, 0] => data[8..].as_chunks_mut::<8>().0.sort_unstable(),
                    [0x5E, 3] => {
                        let registrations = data[8..].as_chunks_mut::<48>().0;
                        registrations.sort_unstable_by_key(|each| each[39]);
                    }
                    _ => {}
                }
                End::Good(data)
            }
            (_, Some(sense)) => End::Sense(
                sense.key.code(),
                sense.additional.asc,
                sense.additional.ascq,
                sense.information,
            ),
            (status, None) => panic!("{status:?}"),
        };
        let mut ports = completion.preempted_ports;
        ports.sort_unstable();
        (end, ports)
    }
}

fn cases() -> u32 {
    if std::env::var_os("ORIMONO_TEST_FULL").is_some() {
        // Of 60 steps on average, nine of ten commands.
        20_000
    } else {
        500
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn three_nexuses_agree_with_the_model(
        steps in prop::collection::vec((0..NEXUSES, step()), 1..120),
    ) {
        let mut world = World::new(Arc::new(model::device()), Arc::default());
        let mut cluster = Cluster {
            blocks: Model::new(),
            stopped: false,
            protected: false,
            keys: BTreeMap::new(),
            reservation: None,
            generation: 0,
            persists: false,
            reserved: None,
            pending: std::array::from_fn(|_| vec![0x2900]),
            preempted: Vec::new(),
        };
        for (at, (who, step)) in steps.iter().enumerate() {
            let step = &cluster.with_key(*who, step);
            if let Some((cdb, data_out, expected)) = cluster.command(*who, step) {
                let (end, ports) = world.command(*who, &cdb, &data_out);
                prop_assert_eq!(end, expected, "step {} of nexus {}: {:?}", at, who, step);
                prop_assert_eq!(&ports, &cluster.preempted, "step {}", at);
            } else {
                let response = world.event(*who, step);
                prop_assert_eq!(response, cluster.event(*who, step), "step {}", at);
            }
            prop_assert_eq!(world.device.contents(), cluster.blocks.contents());
        }
    }
}

//! A target that is killed under load and comes again, in virtual time, against a model of its disk:
//! no write that was acknowledged is lost, and nobody reads what was overwritten.
//!
//! The target is a model too: at its death it has done some of what it was sent, in any order, and
//! nobody hears of it. A session does no more than say so (`iscsi-initiator/src/session/tests.rs`).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use iscsi_initiator::{Answer, Command, Outcome, TaskAttribute, Transfer};

use super::command::Effect;
use super::flights::{End, Flights};

const BLOCKS: u64 = 32;
const IN_FLIGHT_MAX: usize = 16;
/// `timeout-ms` of the LUN.
const TIMEOUT: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(20);
/// A session tries again after this.
const LOGIN_AFTER: Duration = Duration::from_secs(2);

/// What the guest wants, and knows it by.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Request {
    id: u64,
    lba: u64,
    /// Of a write.
    stamp: Option<u64>,
    began: Instant,
}

/// Of one block, as the guest may find it.
#[derive(Default)]
struct Known {
    acknowledged: u64,
    /// Writes since whose fate nobody told.
    perhaps: Vec<u64>,
    busy: bool,
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

struct World {
    random: Random,
    now: Instant,
    flights: Flights<Request>,
    known: BTreeMap<u64, Known>,
    open: usize,
    next: u64,
    /// The target's: its blocks, and what it was sent.
    disk: BTreeMap<u64, u64>,
    at_target: Vec<(u64, Command)>,
    alive: bool,
    session_up: bool,
    ends: BTreeMap<&'static str, u64>,
    /// When the target went away.
    away: Instant,
    /// The longest that a command waited for it.
    slowest: Duration,
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().unwrap())
}

impl World {
    fn new(seed: u64) -> Self {
        let now = Instant::now();
        Self {
            random: Random(seed * 2 + 1),
            now,
            flights: Flights::new(TIMEOUT, now),
            known: (0..BLOCKS).map(|lba| (lba, Known::default())).collect(),
            open: 0,
            next: 1,
            disk: BTreeMap::new(),
            at_target: Vec::new(),
            alive: true,
            session_up: false,
            ends: BTreeMap::new(),
            away: now,
            slowest: Duration::ZERO,
        }
    }

    /// The guest keeps its queue full; a block has one command at a time.
    fn load(&mut self) {
        while self.open < IN_FLIGHT_MAX {
            let lba = self.random.below(BLOCKS);
            let known = self.known.get_mut(&lba).unwrap();
            if known.busy {
                continue;
            }
            known.busy = true;
            let id = self.next;
            self.next += 1;
            let stamp = (self.random.below(3) > 0).then_some(id);
            let (transfer, effect) = match stamp {
                Some(stamp) => {
                    known.perhaps.push(stamp);
                    let data = stamp.to_be_bytes().to_vec();
                    (Transfer::Out(data), Effect::Writes(lba..lba + 1))
                }
                None => (Transfer::In(8), Effect::Reads),
            };
            let command = Command {
                lun: [0; 8],
                cdb: lba.to_be_bytes().to_vec(),
                attribute: TaskAttribute::Simple,
                transfer,
            };
            let request = Request {
                id,
                lba,
                stamp,
                began: self.now,
            };
            self.flights.add(request, command, effect);
            self.open += 1;
        }
    }

    fn execute(&mut self, command: &Command) -> Answer {
        let lba = number(&command.cdb);
        let mut answer = Answer::default();
        match &command.transfer {
            Transfer::Out(data) => {
                self.disk.insert(lba, number(data));
            }
            _ => {
                let stamp = self.disk.get(&lba).copied().unwrap_or(0);
                answer.data_in = stamp.to_be_bytes().to_vec();
            }
        }
        answer
    }

    fn outcome(&mut self, number: u64, outcome: Outcome) {
        if let Some((request, end)) = self.flights.outcome(number, outcome, true) {
            self.ended(request, end);
        }
    }

    fn ended(&mut self, request: Request, end: End) {
        self.open -= 1;
        self.slowest = self.slowest.max(self.now - request.began.max(self.away));
        let known = self.known.get_mut(&request.lba).unwrap();
        known.busy = false;
        let name = match (end, request.stamp) {
            (End::Answered(_), Some(stamp)) => {
                known.acknowledged = stamp;
                // It came after all of them.
                known.perhaps.clear();
                "answered"
            }
            (End::Answered(answer), None) => {
                let found = number(&answer.data_in);
                assert!(
                    found == known.acknowledged || known.perhaps.contains(&found),
                    "block {} holds {found}, not {} or one of {:?}",
                    request.lba,
                    known.acknowledged,
                    known.perhaps
                );
                // Whatever was to be done by now is seen; nothing comes later.
                known.acknowledged = found;
                known.perhaps.clear();
                "answered"
            }
            (End::Unreachable, stamp) => {
                // It never was at the target, or is there no more: it may have been done.
                assert!(stamp.is_none() || known.perhaps.contains(&request.id));
                "unreachable"
            }
            (End::Unknown, _) => "unknown",
            (end @ (End::TimedOut | End::Failed), _) => panic!("{end:?} of {request:?}"),
        };
        *self.ends.entry(name).or_default() += 1;
    }

    fn step(&mut self) {
        self.now += STEP;
        let (ended, late) = self.flights.expire(self.now);
        assert_eq!(late, []);
        for (request, end) in ended {
            self.ended(request, end);
        }
        self.load();
        while let Some((number, command)) = self.flights.next_to_send(self.now) {
            self.flights.sent(number, None);
            self.at_target.push((number, command));
        }
        if self.alive && self.session_up {
            // Some of what it has, in any order.
            for _ in 0..self.random.below(8) {
                let count = u64::try_from(self.at_target.len()).unwrap();
                if count == 0 {
                    break;
                }
                let at = usize::try_from(self.random.below(count)).unwrap();
                let (number, command) = self.at_target.swap_remove(at);
                let answer = self.execute(&command);
                self.outcome(number, Outcome::Answered(answer));
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    fn kill(&mut self) {
        self.alive = false;
        self.session_up = false;
        self.away = self.now;
        self.flights.unreachable(self.now);
        for (number, command) in std::mem::take(&mut self.at_target) {
            let outcome = match self.random.below(3) {
                0 => {
                    self.execute(&command);
                    Outcome::UnknownFate(command)
                }
                1 => Outcome::UnknownFate(command),
                _ => Outcome::NotSent(command),
            };
            self.outcome(number, outcome);
        }
    }

    /// It is there again; a session comes when it tries next.
    fn revive(&mut self) {
        self.alive = true;
        self.run(LOGIN_AFTER);
        self.session_up = true;
        self.flights.reachable();
    }

    fn count(&self, name: &str) -> u64 {
        self.ends.get(name).copied().unwrap_or(0)
    }
}

fn outage(seconds: u64) {
    for seed in 0..20 {
        let mut world = World::new(seed);
        world.revive();
        world.run(Duration::from_secs(5));
        assert_eq!(world.count("unreachable"), 0);
        let before = world.count("answered");
        assert!(before > 500);
        world.kill();
        world.run(Duration::from_secs(seconds));
        assert_eq!(world.count("answered"), before);
        world.revive();
        // Whatever waited for it, waited no longer than it may.
        assert!(world.slowest <= TIMEOUT + STEP, "{:?}", world.slowest);
        let patient = Duration::from_secs(seconds) + LOGIN_AFTER < TIMEOUT;
        assert_eq!(world.count("unreachable") == 0, patient);
        assert_eq!(world.count("unknown"), 0, "nobody else has the unit");
        let unreachable = world.count("unreachable");
        world.run(Duration::from_secs(5));
        assert!(world.count("answered") > before + 500);
        assert_eq!(world.count("unreachable"), unreachable);
        for (lba, known) in &world.known {
            let found = world.disk.get(lba).copied().unwrap_or(0);
            assert!(
                found == known.acknowledged || known.perhaps.contains(&found),
                "block {lba} holds {found}, not {}",
                known.acknowledged
            );
        }
    }
}

#[test]
fn o12_a_target_that_is_away_for_5_seconds_costs_no_command() {
    outage(5);
}

#[test]
fn o12_a_target_that_is_away_for_60_seconds_costs_no_acknowledged_write() {
    outage(60);
}

#[test]
fn o12_a_target_that_is_away_for_600_seconds_costs_no_acknowledged_write() {
    outage(600);
}

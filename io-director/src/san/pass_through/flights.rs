//! The commands of one nexus at a target: which may go, which are lost, which go again.
//!
//! ```text
//! Waiting --target is there--> Sent --answer--> ended
//!    ^______may be repeated______|
//!    |                           |__anything else__> ended with ABORTED COMMAND
//!    |__target away too long____________________________> ended with NOT READY
//! ```
//!
//! Pure: time is an argument. What a command is called by its owner is `T`.
//!
//! **A lost command is sent again** if it only reads, or if it is a write of its data to its blocks
//! and no other command that changes any of them was sent after it, and nobody else uses the unit
//! (`docs/adr/0015-commands-of-unknown-fate.md`).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use iscsi_initiator::{Answer, Command, Outcome, TaskAttribute, TaskTag};

use super::command::Effect;

/// How a command ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The unit answered.
    Answered(Answer),
    /// It may have been executed, or not.
    Unknown,
    /// The target was away for too long; it was not executed, or changes nothing.
    Unreachable,
    /// It took too long and was called back; it may have been executed.
    TimedOut,
    /// The target refused to carry it.
    Failed,
}

#[derive(Debug)]
enum Place {
    Waiting(Command),
    Sent {
        handle: Option<TaskTag>,
        since: Instant,
    },
}

#[derive(Debug)]
struct Flight<T> {
    owner: T,
    place: Place,
    /// ORDERED is kept here and not at the target, where it would be lost with the session.
    ordered: bool,
    head: bool,
    effect: Effect,
    /// Another that changes its blocks was sent after it.
    overtaken: bool,
    /// Its owner gave it up.
    taken: bool,
    timed_out: bool,
}

impl<T> Flight<T> {
    const fn is_sent(&self) -> bool {
        matches!(self.place, Place::Sent { .. })
    }
}

/// What becomes of those that their owners gave up.
#[derive(Debug, Default)]
pub(super) struct Taken<T> {
    /// They never left.
    pub(super) unsent: Vec<T>,
    /// To be called back at the target.
    pub(super) handles: Vec<TaskTag>,
    /// These are all that the target has.
    pub(super) all: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Flights<T> {
    flights: BTreeMap<u64, Flight<T>>,
    next: u64,
    timeout: Duration,
    unreachable_since: Option<Instant>,
}

impl<T> Flights<T> {
    /// None yet; the target is not there before [`Self::reachable`].
    pub(super) const fn new(timeout: Duration, now: Instant) -> Self {
        Self {
            flights: BTreeMap::new(),
            next: 0,
            timeout,
            unreachable_since: Some(now),
        }
    }

    pub(super) const fn unreachable_since(&self) -> Option<Instant> {
        self.unreachable_since
    }

    pub(super) const fn reachable(&mut self) {
        self.unreachable_since = None;
    }

    pub(super) fn unreachable(&mut self, now: Instant) {
        self.unreachable_since.get_or_insert(now);
    }

    /// A command begins.
    pub(super) fn add(&mut self, owner: T, mut command: Command, effect: Effect) {
        let ordered = command.attribute == TaskAttribute::Ordered;
        let head = command.attribute == TaskAttribute::HeadOfQueue;
        if ordered {
            command.attribute = TaskAttribute::Simple;
        }
        let flight = Flight {
            owner,
            place: Place::Waiting(command),
            ordered,
            head,
            effect,
            overtaken: false,
            taken: false,
            timed_out: false,
        };
        self.flights.insert(self.next, flight);
        self.next += 1;
    }

    /// The next that may go: as they came, none past an ORDERED one but HEAD OF QUEUE, and none while
    /// the target has one that was given up: what its owner does now must not be overtaken by it.
    /// [`Self::sent`] or [`Self::not_sent`] follows before anything else.
    pub(super) fn next_to_send(&mut self, now: Instant) -> Option<(u64, Command)> {
        if self.unreachable_since.is_some() {
            return None;
        }
        let left_over = |flight: &Flight<T>| flight.taken && flight.is_sent();
        if self.flights.values().any(left_over) {
            return None;
        }
        let mut first = true;
        let mut behind_ordered = false;
        for (number, flight) in &mut self.flights {
            let its_turn = flight.head || !behind_ordered && (first || !flight.ordered);
            if its_turn && !flight.is_sent() {
                let (handle, since) = (None, now);
                let place = std::mem::replace(&mut flight.place, Place::Sent { handle, since });
                if let Place::Waiting(command) = place {
                    return Some((*number, command));
                }
            }
            first = false;
            behind_ordered |= flight.ordered;
        }
        None
    }

    /// The target took it, and calls it `handle`.
    pub(super) fn sent(&mut self, number: u64, handle: Option<TaskTag>) {
        let Some(flight) = self.flights.get_mut(&number) else {
            return;
        };
        if let Place::Sent { handle: known, .. } = &mut flight.place {
            *known = handle;
        }
        let effect = flight.effect.clone();
        for (_, older) in self.flights.range_mut(..number) {
            older.overtaken |= older.is_sent() && older.effect.touches(&effect);
        }
        // It may go a second time, behind newer ones.
        let mut newer = self.flights.range(number.saturating_add(1)..);
        let overtaken = newer.any(|(_, newer)| newer.is_sent() && newer.effect.touches(&effect));
        if let Some(flight) = self.flights.get_mut(&number) {
            flight.overtaken |= overtaken;
        }
    }

    /// The target took it not; it waits on.
    pub(super) fn not_sent(&mut self, number: u64, command: Command) {
        if let Some(flight) = self.flights.get_mut(&number) {
            flight.place = Place::Waiting(command);
        }
    }

    /// What a target says of one that was sent; who it was and how it ended, if it has.
    /// `repeats_writes`: nobody else uses the unit.
    pub(super) fn outcome(
        &mut self,
        number: u64,
        outcome: Outcome,
        repeats_writes: bool,
    ) -> Option<(T, End)> {
        let flight = self.flights.get_mut(&number)?;
        let end = match outcome {
            Outcome::Answered(answer) => End::Answered(answer),
            Outcome::TargetFailure { .. } | Outcome::Rejected { .. } => End::Failed,
            Outcome::Aborted if flight.timed_out => End::TimedOut,
            Outcome::Aborted => End::Unknown,
            Outcome::NotSent(command) if !flight.taken => {
                flight.place = Place::Waiting(command);
                return None;
            }
            Outcome::UnknownFate(command) if !flight.taken && !flight.timed_out => {
                let repeats = match flight.effect {
                    Effect::Reads => true,
                    Effect::Writes(_) => repeats_writes && !flight.overtaken,
                    Effect::Changes => false,
                };
                if repeats {
                    flight.place = Place::Waiting(command);
                    return None;
                }
                End::Unknown
            }
            Outcome::NotSent(_) | Outcome::UnknownFate(_) => End::Unknown,
        };
        let flight = self.flights.remove(&number)?;
        Some((flight.owner, end))
    }

    /// The owners of these gave them up. Those that were sent end by [`Self::outcome`].
    pub(super) fn take(&mut self, wanted: impl Fn(&T) -> bool) -> Taken<T> {
        let mut taken = Taken {
            unsent: Vec::new(),
            handles: Vec::new(),
            all: true,
        };
        let unsent = |_: &u64, flight: &mut Flight<T>| {
            let is_wanted = wanted(&flight.owner);
            match &flight.place {
                Place::Sent { handle, .. } if is_wanted => {
                    taken.handles.extend(handle);
                    flight.taken = true;
                    false
                }
                Place::Sent { .. } => {
                    taken.all = false;
                    false
                }
                Place::Waiting(_) => is_wanted,
            }
        };
        let unsent: Vec<_> = self.flights.extract_if(.., unsent).collect();
        taken.unsent = unsent.into_iter().map(|(_, flight)| flight.owner).collect();
        taken
    }

    /// Ends what waited too long, and names what is to be called back.
    pub(super) fn expire(&mut self, now: Instant) -> (Vec<(T, End)>, Vec<TaskTag>) {
        let timeout = self.timeout;
        let given_up = self
            .unreachable_since
            .is_some_and(|since| now >= since + timeout);
        let mut late = Vec::new();
        let mut ended = Vec::new();
        let waiting = |_: &u64, flight: &mut Flight<T>| match flight.place {
            Place::Waiting(_) => given_up,
            Place::Sent { handle, since } => {
                if now >= since + timeout && !flight.timed_out {
                    flight.timed_out = true;
                    late.extend(handle);
                }
                false
            }
        };
        for (_, flight) in self.flights.extract_if(.., waiting) {
            ended.push((flight.owner, End::Unreachable));
        }
        (ended, late)
    }

    /// Forgets all of them; nobody is answered. Their owners.
    pub(super) fn clear(&mut self) -> Vec<T> {
        let flights = std::mem::take(&mut self.flights);
        flights.into_values().map(|flight| flight.owner).collect()
    }

    /// When [`Self::expire`] is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let due = |flight: &Flight<T>| match flight.place {
            Place::Waiting(_) => self.unreachable_since,
            Place::Sent { since, .. } if !flight.timed_out => Some(since),
            Place::Sent { .. } => None,
        };
        let since = self.flights.values().filter_map(due).min()?;
        Some(since + self.timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iscsi_initiator::Transfer;

    const TIMEOUT: Duration = Duration::from_secs(60);

    struct World {
        flights: Flights<char>,
        now: Instant,
    }

    impl World {
        fn new() -> Self {
            let now = Instant::now();
            let mut flights = Flights::new(TIMEOUT, now);
            flights.reachable();
            Self { flights, now }
        }

        fn add(&mut self, name: char, attribute: TaskAttribute, effect: Effect) {
            self.flights.add(name, command(attribute), effect);
        }

        fn simple(&mut self, name: char, effect: Effect) {
            self.add(name, TaskAttribute::Simple, effect);
        }

        /// Sends all that may go; their numbers.
        fn send(&mut self) -> Vec<u64> {
            let mut numbers = Vec::new();
            while let Some((number, _)) = self.flights.next_to_send(self.now) {
                self.flights.sent(number, None);
                numbers.push(number);
            }
            numbers
        }

        fn lose(&mut self, number: u64, repeats_writes: bool) -> Option<(char, End)> {
            let command = command(TaskAttribute::Simple);
            let outcome = Outcome::UnknownFate(command);
            self.flights.outcome(number, outcome, repeats_writes)
        }

        fn answer(&mut self, number: u64) {
            let outcome = Outcome::Answered(Answer::default());
            let ended = self.flights.outcome(number, outcome, true);
            assert_eq!(ended.unwrap().1, End::Answered(Answer::default()));
        }
    }

    fn command(attribute: TaskAttribute) -> Command {
        Command {
            lun: [0; 8],
            cdb: vec![0; 6],
            attribute,
            transfer: Transfer::None,
        }
    }

    #[test]
    fn reads_and_writes_that_nobody_overtook_go_again_in_their_order() {
        let mut world = World::new();
        world.simple('a', Effect::Writes(0..8));
        world.simple('b', Effect::Reads);
        world.simple('c', Effect::Writes(8..16));
        assert_eq!(world.send(), [0, 1, 2]);
        world.flights.unreachable(world.now);
        for number in [2, 0, 1] {
            assert_eq!(world.lose(number, true), None);
        }
        assert_eq!(world.send(), [0; 0], "the target is away");
        world.flights.reachable();
        assert_eq!(world.send(), [0, 1, 2]);
    }

    #[test]
    fn what_may_do_harm_a_second_time_ends() {
        let unknown = |name| Some((name, End::Unknown));
        let mut world = World::new();
        world.simple('a', Effect::Changes);
        world.simple('b', Effect::Writes(0..8));
        world.send();
        assert_eq!(world.lose(0, true), unknown('a'));
        // Somebody else uses the unit.
        assert_eq!(world.lose(1, false), unknown('b'));
        // A newer one has its blocks, and may have been there before: also if it is over.
        for newer in [Effect::Writes(7..9), Effect::Changes] {
            let mut world = World::new();
            world.simple('a', Effect::Writes(0..8));
            world.simple('b', newer);
            world.send();
            world.answer(1);
            assert_eq!(world.lose(0, true), unknown('a'));
        }
        // A read of its blocks is no harm.
        let mut world = World::new();
        world.simple('a', Effect::Writes(0..8));
        world.simple('b', Effect::Reads);
        world.send();
        world.answer(1);
        assert_eq!(world.lose(0, true), None);
    }

    #[test]
    fn second_loss_goes_by_what_was_sent_since() {
        let mut world = World::new();
        world.simple('a', Effect::Writes(0..8));
        world.send();
        assert_eq!(world.lose(0, true), None);
        world.simple('b', Effect::Writes(0..8));
        assert_eq!(world.send(), [0, 1]);
        assert_eq!(world.lose(0, true), Some(('a', End::Unknown)));
        assert_eq!(world.lose(1, true), None);
    }

    #[test]
    fn attributes_decide_what_goes() {
        use TaskAttribute::{HeadOfQueue, Ordered};
        let mut world = World::new();
        world.simple('a', Effect::Reads);
        world.add('b', Ordered, Effect::Reads);
        world.simple('c', Effect::Reads);
        world.add('d', HeadOfQueue, Effect::Reads);
        assert_eq!(world.send(), [0, 3]);
        world.answer(0);
        assert_eq!(world.send(), [1]);
        assert_eq!(world.send(), [0; 0]);
        world.answer(1);
        world.answer(3);
        assert_eq!(world.send(), [2]);
    }

    #[test]
    fn nothing_goes_while_the_target_has_what_was_given_up() {
        let mut world = World::new();
        world.simple('a', Effect::Writes(0..8));
        world.simple('b', Effect::Reads);
        assert_eq!(world.send(), [0, 1]);
        world.simple('c', Effect::Reads);
        world.simple('d', Effect::Reads);
        let taken = world.flights.take(|name| matches!(name, 'a' | 'd'));
        assert_eq!((taken.unsent, taken.all), (vec!['d'], false));
        assert_eq!(world.send(), [0; 0]);
        assert_eq!(world.lose(0, true), Some(('a', End::Unknown)), "not again");
        assert_eq!(world.send(), [2]);
        assert!(world.flights.take(|_| true).all);
    }

    #[test]
    fn who_waits_for_a_target_that_is_away_does_not_wait_for_ever() {
        let mut world = World::new();
        world.simple('a', Effect::Reads);
        world.send();
        world.flights.unreachable(world.now);
        assert_eq!(world.lose(0, true), None);
        assert_eq!(world.flights.deadline(), Some(world.now + TIMEOUT));
        let later = world.now + TIMEOUT - Duration::from_millis(1);
        assert_eq!(world.flights.expire(later).0, []);
        // Another failed login is not another outage.
        world.flights.unreachable(later);
        let ended = world.flights.expire(world.now + TIMEOUT).0;
        assert_eq!(ended, [('a', End::Unreachable)]);
        assert_eq!(world.flights.deadline(), None);
        world.simple('b', Effect::Reads);
        let ended = world.flights.expire(world.now + TIMEOUT).0;
        assert_eq!(ended, [('b', End::Unreachable)], "at once");
        world.flights.reachable();
        world.simple('c', Effect::Reads);
        assert_eq!(world.send().len(), 1);
    }

    #[test]
    fn what_the_target_never_answers_is_called_back_once() {
        let mut world = World::new();
        world.simple('a', Effect::Writes(0..8));
        world.send();
        assert_eq!(world.flights.deadline(), Some(world.now + TIMEOUT));
        assert_eq!(world.flights.expire(world.now + TIMEOUT).0, []);
        assert_eq!(world.flights.deadline(), None);
        let ended = world.flights.outcome(0, Outcome::Aborted, true);
        assert_eq!(ended, Some(('a', End::TimedOut)));
    }
}

//! The commands of a SAN port that wait for their turn: limits of operations and of bandwidth.
//!
//! ```text
//!               ┌─ operations ─┐      ┌─ ingress (writes) ─┐
//!  submit ────> │ IOPS limit   │ ───> │ egress  (reads)    │ ───> ready: may be executed
//!               └──────────────┘      └────────────────────┘
//!   only vHBAs with a limit              only ports with a rate
//! ```
//!
//! A command is charged with the data it moves, at least [`CHARGE_BYTES_MIN`]: with its write data
//! in the ingress direction if it has any, else with its read data in the egress direction. The
//! operations of a vHBA are limited **once for all its commands**, by `operations` of its ingress
//! words; those of the egress words count if the ingress words have none.
//!
//! **Commands leave in the order of arrival**, in each direction. Whoever wants order between
//! reads and writes keeps it himself (`super::task_set`).
//!
//! **A command that is taken away costs nothing.** What stands in a scheduler is therefore not the
//! command but a *payment* of so many bytes; the commands stand in a line beside it, and a granted
//! payment lets go as many of them as it covers. Payments that are still queued when their command
//! is aborted pay for the next ones: a guest that aborts and tries again is not punished with
//! waiting twice, and gains nothing either, because no command leaves unpaid and what is paid
//! ahead is less than one command.
//!
//! Pure: `K` names a command, and the time is an argument.

mod watch;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use fabric_transport::DeviceId;
use qos::{
    AdmissionError, BitRate, DeviceHandle, DeviceRate, LinkBudget, MonotonicTime, Scheduler,
};

use crate::port_direction::{PortDevice, PortDirection, PortVm, join_both, set_vm_both};
use crate::port_scheduler::Paced;

pub(super) use watch::Limit;

/// The least a command is charged with, and what an operation is charged with where only the
/// number counts.
pub(super) const CHARGE_BYTES_MIN: u32 = 512;
/// The only class of a vHBA's commands.
const CLASS: u8 = 0;
/// The rate at which operations are paced where only their limit counts: more than can be.
const OPERATIONS_RATE: BitRate = BitRate::from_bits_per_second(1_000_000_000_000);

/// Which way the data of a command goes, seen from the fabric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// Written by the guest.
    Ingress,
    /// Read by the guest, or none.
    Egress,
}

/// A command and what it costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Charged<K> {
    pub(super) key: K,
    pub(super) direction: Direction,
    bytes: u32,
}

impl<K> Charged<K> {
    /// The command `key` that announces so much data.
    pub(super) fn new(key: K, data_out_bytes: usize, data_in_bytes: usize) -> Self {
        let (direction, bytes) = if data_out_bytes > 0 {
            (Direction::Ingress, data_out_bytes)
        } else {
            (Direction::Egress, data_in_bytes)
        };
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        Self {
            key,
            direction,
            bytes: bytes.max(CHARGE_BYTES_MIN),
        }
    }
}

/// See the module.
pub(super) struct CommandQueue<K> {
    operations: Scheduler<DeviceId>,
    /// Of a port with a rate.
    directions: Option<Directions>,
    vhbas: BTreeMap<DeviceId, Vhba<K>>,
    /// Left all schedulers.
    ready: VecDeque<K>,
}

struct Directions {
    ingress: PortDirection<DeviceId>,
    egress: PortDirection<DeviceId>,
}

struct Vhba<K> {
    words: PortDevice,
    attached: Option<Attached<K>>,
}

/// A vHBA that has its reservation.
struct Attached<K> {
    operations: Option<Line<K>>,
    /// Ingress and egress, of a port with a rate.
    directions: Option<(Line<K>, Line<K>)>,
    /// More than one while a session replaces another; the reservation is the same.
    sessions: Vec<u64>,
}

/// Commands of a vHBA that wait at one scheduler, in order.
struct Line<K> {
    handle: DeviceHandle,
    waiting: VecDeque<Charged<K>>,
    /// What those cost here.
    owed_bytes: u64,
    /// Payments in the scheduler's queue.
    queued_bytes: u64,
    /// Granted, and less than the first of them costs.
    paid_bytes: u64,
    charge: Charge,
}

/// What a scheduler counts.
#[derive(Debug, Clone, Copy)]
enum Charge {
    Bytes,
    Operations,
}

/// Commands of a vHBA that wait, and how long its commands waited since it was attached.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) commands: usize,
    pub(super) waited: Duration,
}

impl Charge {
    fn of<K>(self, command: &Charged<K>) -> u64 {
        match self {
            Self::Bytes => command.bytes.into(),
            Self::Operations => CHARGE_BYTES_MIN.into(),
        }
    }
}

impl<K> Line<K> {
    fn new(handle: DeviceHandle, charge: Charge) -> Self {
        Self {
            handle,
            waiting: VecDeque::new(),
            owed_bytes: 0,
            queued_bytes: 0,
            paid_bytes: 0,
            charge,
        }
    }

    fn push(
        &mut self,
        now: MonotonicTime,
        device: DeviceId,
        scheduler: &mut Scheduler<DeviceId>,
        command: Charged<K>,
    ) {
        self.owed_bytes += self.charge.of(&command);
        self.waiting.push_back(command);
        self.pay(now, device, scheduler);
    }

    /// Queues a payment for what is not covered yet.
    fn pay(&mut self, now: MonotonicTime, device: DeviceId, scheduler: &mut Scheduler<DeviceId>) {
        let missing = self
            .owed_bytes
            .saturating_sub(self.queued_bytes + self.paid_bytes);
        if missing == 0 {
            return;
        }
        let bytes = u32::try_from(missing).unwrap_or(u32::MAX);
        let bytes = bytes.max(CHARGE_BYTES_MIN);
        let queued = scheduler.enqueue(now, self.handle, CLASS, bytes, device);
        // A full queue is one of payments, each of which comes by here again when it is granted.
        if queued.is_ok() {
            self.queued_bytes += u64::from(bytes);
        }
    }

    /// A payment was granted: the commands that it lets go.
    fn granted(
        &mut self,
        now: MonotonicTime,
        device: DeviceId,
        scheduler: &mut Scheduler<DeviceId>,
        bytes: u32,
    ) -> Vec<Charged<K>> {
        self.queued_bytes = self.queued_bytes.saturating_sub(bytes.into());
        self.paid_bytes += u64::from(bytes);
        let mut free = Vec::new();
        while let Some(first) = self.waiting.front() {
            let cost = self.charge.of(first);
            if cost > self.paid_bytes {
                break;
            }
            self.paid_bytes -= cost;
            self.owed_bytes = self.owed_bytes.saturating_sub(cost);
            free.extend(self.waiting.pop_front());
        }
        if self.waiting.is_empty() {
            // Nothing is saved up for later.
            self.paid_bytes = 0;
        }
        self.pay(now, device, scheduler);
        free
    }

    fn withdraw(&mut self, wanted: impl Fn(&K) -> bool) {
        self.waiting.retain(|command| !wanted(&command.key));
        self.owed_bytes = self
            .waiting
            .iter()
            .map(|command| self.charge.of(command))
            .sum();
        if self.waiting.is_empty() {
            self.paid_bytes = 0;
        }
    }
}

impl Directions {
    fn of(&mut self, direction: Direction) -> &mut Scheduler<DeviceId> {
        match direction {
            Direction::Ingress => &mut self.ingress.scheduler,
            Direction::Egress => &mut self.egress.scheduler,
        }
    }
}

/// The words of a direction: the limit of operations stands elsewhere.
fn bandwidth(rate: DeviceRate) -> DeviceRate {
    DeviceRate {
        operations: None,
        ..rate
    }
}

/// The words of the limit of operations.
fn operations(ingress: &DeviceRate, egress: &DeviceRate) -> DeviceRate {
    DeviceRate {
        operations: ingress.operations.or(egress.operations),
        ..DeviceRate::best_effort()
    }
}

impl<K> CommandQueue<K> {
    /// The queue of the port called `name` (`san-port 12/1`), which carries `budget` each way if
    /// it has a rate, with these vHBAs.
    pub(super) fn new(
        name: &str,
        budget: Option<&LinkBudget>,
        vhbas: impl IntoIterator<Item = PortDevice>,
    ) -> Self {
        let vhbas = vhbas.into_iter().map(|words| {
            let (device, attached) = (words.device, None);
            (device, Vhba { words, attached })
        });
        let operations = LinkBudget::new(format!("{name} operations"), OPERATIONS_RATE);
        Self {
            operations: Scheduler::new(operations),
            directions: budget.map(|budget| Directions {
                ingress: PortDirection::new(budget, "ingress"),
                egress: PortDirection::new(budget, "egress"),
            }),
            vhbas: vhbas.collect(),
            ready: VecDeque::new(),
        }
    }

    /// Adds a vHBA, in the place of any other of its number that has no reservation.
    pub(super) fn insert(&mut self, words: PortDevice) {
        let (device, attached) = (words.device, None);
        self.vhbas.insert(device, Vhba { words, attached });
    }

    /// Removes a vHBA and frees its reservation; its commands are forgotten.
    pub(super) fn remove(&mut self, device: DeviceId) {
        self.let_go(device);
        self.vhbas.remove(&device);
    }

    /// Gives a VM other words, in force at once; what waits stays in its order.
    ///
    /// # Errors
    /// They do not fit; nothing has changed.
    pub(super) fn set_vm(&mut self, now: MonotonicTime, vm: &PortVm) -> Result<(), AdmissionError> {
        let vhbas = self.vhbas.values_mut().map(|vhba| &mut vhba.words.vm);
        let mut members: Vec<_> = vhbas.filter(|known| known.name() == vm.name()).collect();
        if let (Some(before), Some(Directions { ingress, egress })) =
            (members.first(), &mut self.directions)
        {
            set_vm_both((ingress, egress), now, before, vm)?;
        }
        for member in &mut members {
            **member = vm.clone();
        }
        Ok(())
    }

    /// Reserves what `device` was promised, for the session numbered `session`.
    ///
    /// # Errors
    /// It does not fit; nothing has changed.
    pub(super) fn attach(
        &mut self,
        now: MonotonicTime,
        device: DeviceId,
        session: u64,
    ) -> Result<(), AdmissionError> {
        let Some(vhba) = self.vhbas.get_mut(&device) else {
            return Ok(());
        };
        if let Some(attached) = &mut vhba.attached {
            attached.sessions.push(session);
            return Ok(());
        }
        let words = &vhba.words;
        let vm = &words.vm;
        let directions = match &mut self.directions {
            Some(Directions { ingress, egress }) => {
                let rates = (bandwidth(words.ingress), bandwidth(words.egress));
                Some(join_both((ingress, egress), now, vm, rates)?)
            }
            None => None,
        };
        let limit = operations(&words.ingress, &words.egress);
        let limited = limit.operations.is_some();
        let limited = limited.then(|| self.operations.add_device(now, limit));
        let limited = limited.transpose().inspect_err(|_| {
            if let (Some(schedulers), Some((written, read))) = (&mut self.directions, directions) {
                drop(schedulers.ingress.leave(vm, written));
                drop(schedulers.egress.leave(vm, read));
            }
        })?;
        vhba.attached = Some(Attached {
            operations: limited.map(|handle| Line::new(handle, Charge::Operations)),
            directions: directions.map(|(written, read)| {
                let line = |handle| Line::new(handle, Charge::Bytes);
                (line(written), line(read))
            }),
            sessions: vec![session],
        });
        Ok(())
    }

    /// Ends what [`Self::attach`] began. With the last session of a vHBA its reservation is free
    /// and its commands are forgotten. A session that is not attached is none.
    pub(super) fn detach(&mut self, device: DeviceId, session: u64) {
        let Some(vhba) = self.vhbas.get_mut(&device) else {
            return;
        };
        let Some(attached) = &mut vhba.attached else {
            return;
        };
        attached.sessions.retain(|known| *known != session);
        if attached.sessions.is_empty() {
            self.let_go(device);
        }
    }

    /// Frees the reservation of a vHBA and forgets its commands.
    fn let_go(&mut self, device: DeviceId) {
        let Some(vhba) = self.vhbas.get_mut(&device) else {
            return;
        };
        let Some(attached) = vhba.attached.take() else {
            return;
        };
        if let Some(line) = &attached.operations {
            drop(self.operations.remove_device(line.handle));
        }
        if let (Some(schedulers), Some((written, read))) =
            (&mut self.directions, &attached.directions)
        {
            drop(schedulers.ingress.leave(&vhba.words.vm, written.handle));
            drop(schedulers.egress.leave(&vhba.words.vm, read.handle));
        }
    }

    /// Whether commands of `device` have to be submitted.
    pub(super) fn is_limited(&self, device: DeviceId) -> bool {
        let limited = |vhba: &Vhba<K>| {
            let PortDevice {
                ingress, egress, ..
            } = &vhba.words;
            operations(ingress, egress).operations.is_some()
        };
        self.directions.is_some() || self.vhbas.get(&device).is_some_and(limited)
    }

    /// Queues a command: [`Paced::poll`] gives it back when it may be executed.
    pub(super) fn submit(&mut self, now: MonotonicTime, device: DeviceId, command: Charged<K>) {
        let vhba = self.vhbas.get_mut(&device);
        let attached = vhba.and_then(|vhba| vhba.attached.as_mut());
        match attached.and_then(|attached| attached.operations.as_mut()) {
            Some(line) => line.push(now, device, &mut self.operations, command),
            None => self.submit_bandwidth(now, device, command),
        }
    }

    fn submit_bandwidth(&mut self, now: MonotonicTime, device: DeviceId, command: Charged<K>) {
        let direction = command.direction;
        match (
            self.directions.as_mut(),
            direction_line(&mut self.vhbas, device, direction),
        ) {
            (Some(schedulers), Some(line)) => {
                line.push(now, device, schedulers.of(direction), command);
            }
            _ => self.ready.push_back(command.key),
        }
    }

    /// Takes the commands that `wanted` names out: they cost nothing.
    pub(super) fn withdraw(&mut self, device: DeviceId, wanted: impl Fn(&K) -> bool) {
        let vhba = self.vhbas.get_mut(&device);
        let Some(attached) = vhba.and_then(|vhba| vhba.attached.as_mut()) else {
            return;
        };
        let Attached {
            operations,
            directions,
            ..
        } = attached;
        let lines = directions
            .iter_mut()
            .flat_map(|(written, read)| [written, read]);
        for line in operations.iter_mut().chain(lines) {
            line.withdraw(&wanted);
        }
    }

    /// Gives a vHBA other words, in force at once; what waits stays in its order.
    ///
    /// # Errors
    /// They do not fit; nothing has changed.
    pub(super) fn set_rates(
        &mut self,
        now: MonotonicTime,
        device: DeviceId,
        ingress: DeviceRate,
        egress: DeviceRate,
    ) -> Result<(), AdmissionError> {
        let Some(vhba) = self.vhbas.get_mut(&device) else {
            return Ok(());
        };
        let lines = vhba.attached.as_ref().and_then(|attached| {
            let (written, read) = attached.directions.as_ref()?;
            Some((written.handle, read.handle))
        });
        let limit = operations(&ingress, &egress);
        match (&mut self.directions, lines) {
            (Some(schedulers), Some((written, read))) => {
                let before = (bandwidth(vhba.words.ingress), bandwidth(vhba.words.egress));
                let (writes, reads) = (
                    &mut schedulers.ingress.scheduler,
                    &mut schedulers.egress.scheduler,
                );
                writes.set_rate(now, written, bandwidth(ingress))?;
                let mut changed = reads.set_rate(now, read, bandwidth(egress));
                if changed.is_ok() {
                    changed = set_operations(&mut self.operations, now, vhba, limit);
                    if changed.is_err() {
                        let back = reads.set_rate(now, read, before.1);
                        debug_assert!(back.is_ok(), "nobody took what was free for a moment");
                    }
                }
                if let Err(error) = changed {
                    let back = writes.set_rate(now, written, before.0);
                    debug_assert!(back.is_ok(), "nobody took what was free for a moment");
                    return Err(error);
                }
            }
            (Some(schedulers), None) => {
                let (writes, reads) = (&schedulers.ingress, &schedulers.egress);
                writes.scheduler.admit(None, &bandwidth(ingress))?;
                reads.scheduler.admit(None, &bandwidth(egress))?;
                self.operations.admit(None, &limit)?;
            }
            (None, _) => set_operations(&mut self.operations, now, vhba, limit)?,
        }
        (vhba.words.ingress, vhba.words.egress) = (ingress, egress);
        Ok(())
    }

    /// What `device` has waiting.
    pub(super) fn held(&self, device: DeviceId) -> Held {
        let vhba = self.vhbas.get(&device);
        let Some(attached) = vhba.and_then(|vhba| vhba.attached.as_ref()) else {
            return Held::default();
        };
        let mut held = Held::default();
        let mut add = |scheduler: &Scheduler<DeviceId>, line: &Line<K>| {
            held.commands += line.waiting.len();
            if let Ok(statistics) = scheduler.statistics(line.handle) {
                held.waited += statistics.waited_total;
            }
        };
        if let Some(line) = &attached.operations {
            add(&self.operations, line);
        }
        if let (Some(schedulers), Some((written, read))) = (&self.directions, &attached.directions)
        {
            add(&schedulers.ingress.scheduler, written);
            add(&schedulers.egress.scheduler, read);
        }
        held
    }
}

/// Changes the limit of operations; one that had none joins, one that needs none any more stays
/// without a limit, so that nothing overtakes what waits.
fn set_operations<K>(
    scheduler: &mut Scheduler<DeviceId>,
    now: MonotonicTime,
    vhba: &mut Vhba<K>,
    words: DeviceRate,
) -> Result<(), AdmissionError> {
    match &mut vhba.attached {
        Some(attached) => match &attached.operations {
            Some(line) => scheduler.set_rate(now, line.handle, words),
            None if words.operations.is_some() => {
                let handle = scheduler.add_device(now, words)?;
                attached.operations = Some(Line::new(handle, Charge::Operations));
                Ok(())
            }
            None => Ok(()),
        },
        None => scheduler.admit(None, &words),
    }
}

fn direction_line<K>(
    vhbas: &mut BTreeMap<DeviceId, Vhba<K>>,
    device: DeviceId,
    direction: Direction,
) -> Option<&mut Line<K>> {
    let attached = vhbas.get_mut(&device)?.attached.as_mut()?;
    let (written, read) = attached.directions.as_mut()?;
    Some(match direction {
        Direction::Ingress => written,
        Direction::Egress => read,
    })
}

impl<K> Paced for CommandQueue<K> {
    type Granted = K;

    fn poll(&mut self, now: MonotonicTime) -> Option<K> {
        loop {
            if let Some(key) = self.ready.pop_front() {
                return Some(key);
            }
            if let Some(grant) = self.operations.dequeue(now) {
                let device = grant.item;
                let vhba = self.vhbas.get_mut(&device);
                let attached = vhba.and_then(|vhba| vhba.attached.as_mut());
                let line = attached.and_then(|attached| attached.operations.as_mut());
                let free =
                    line.map(|line| line.granted(now, device, &mut self.operations, grant.bytes));
                for command in free.unwrap_or_default() {
                    self.submit_bandwidth(now, device, command);
                }
                continue;
            }
            let schedulers = self.directions.as_mut()?;
            let direction = [Direction::Ingress, Direction::Egress]
                .into_iter()
                .find_map(|direction| Some((direction, schedulers.of(direction).dequeue(now)?)));
            let (direction, grant) = direction?;
            if let Some(line) = direction_line(&mut self.vhbas, grant.item, direction) {
                let scheduler = schedulers.of(direction);
                let free = line.granted(now, grant.item, scheduler, grant.bytes);
                self.ready
                    .extend(free.into_iter().map(|command| command.key));
            }
        }
    }

    fn next_wake(&self, now: MonotonicTime) -> Option<MonotonicTime> {
        let directions = self.directions.iter();
        let directions =
            directions.flat_map(|both| [&both.ingress.scheduler, &both.egress.scheduler]);
        directions
            .chain([&self.operations])
            .filter_map(|scheduler| scheduler.next_wake(now))
            .min()
    }
}

#[cfg(test)]
mod tests;

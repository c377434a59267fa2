//! The tasks of one I_T_L nexus that wait: which one runs next (SAM-5 section 8).
//!
//! - HEAD OF QUEUE enters in front of all that wait, behind others of its kind.
//! - ORDERED runs when all older tasks have, and nothing newer runs before it.
//! - SIMPLE tasks run in order of arrival, except that one whose write data is underway does not
//!   hold up those behind it.
//! - What runs counts as older than all that waits: beside an ORDERED or HEAD OF QUEUE task only
//!   HEAD OF QUEUE begins, and ORDERED begins alone.
//! - A task that the port does not let go yet holds up those behind it: a vHBA above its rate is
//!   slower, and its tasks keep their order.

use std::collections::VecDeque;

use fabric_payload::scsi::{LunBytes, Tag};
use scsi_target::TaskAttribute;

/// Names a task among all that a nexus ever had: tags are used again by the next session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TaskKey {
    pub(super) session: u64,
    pub(super) tag: Tag,
}

/// A command with as much of its data-out as has arrived.
#[derive(Debug)]
pub(super) struct Task<S> {
    pub(super) key: TaskKey,
    pub(super) attribute: TaskAttribute,
    pub(super) lun: LunBytes,
    pub(super) cdb: Vec<u8>,
    pub(super) data_out: Vec<u8>,
    /// What the host announced.
    pub(super) data_out_bytes: usize,
    pub(super) data_in_bytes: usize,
    /// The port lets it be executed.
    pub(super) granted: bool,
    /// Whom to answer.
    pub(super) session: S,
}

impl<S> Task<S> {
    fn is_complete(&self) -> bool {
        self.data_out.len() >= self.data_out_bytes
    }
}

/// What runs, as far as it decides what may begin.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Running {
    pub(super) any: bool,
    /// One that is ORDERED or HEAD OF QUEUE.
    pub(super) barrier: bool,
}

impl Running {
    pub(super) fn add(&mut self, attribute: TaskAttribute) {
        self.any = true;
        self.barrier |= matches!(
            attribute,
            TaskAttribute::Ordered | TaskAttribute::HeadOfQueue
        );
    }
}

/// The waiting tasks.
#[derive(Debug)]
pub(super) struct TaskSet<S> {
    waiting: VecDeque<Task<S>>,
}

impl<S> Default for TaskSet<S> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
        }
    }
}

impl<S> TaskSet<S> {
    /// Waiting tasks and the bytes of write data they have or announced.
    pub(super) fn load(&self) -> (usize, usize) {
        (
            self.waiting.len(),
            self.waiting.iter().map(|task| task.data_out_bytes).sum(),
        )
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether one waits that is ORDERED or HEAD OF QUEUE.
    pub(super) fn has_barrier(&self) -> bool {
        let mut waiting = Running::default();
        self.waiting
            .iter()
            .for_each(|task| waiting.add(task.attribute));
        waiting.barrier
    }

    pub(super) fn push(&mut self, task: Task<S>) {
        if task.attribute == TaskAttribute::HeadOfQueue {
            let head = |task: &Task<S>| task.attribute == TaskAttribute::HeadOfQueue;
            let at = self.waiting.iter().take_while(|task| head(task)).count();
            self.waiting.insert(at, task);
        } else {
            self.waiting.push_back(task);
        }
    }

    /// Appends write data to a task; whether it is there.
    pub(super) fn append(&mut self, key: TaskKey, data: &[u8]) -> bool {
        // Data follows its command: the task is among the last.
        let task = self.waiting.iter_mut().rfind(|task| task.key == key);
        task.map(|task| task.data_out.extend_from_slice(data))
            .is_some()
    }

    /// Lets a task be executed when it is its turn; whether it is there.
    pub(super) fn grant(&mut self, key: TaskKey) -> bool {
        let task = self.waiting.iter_mut().find(|task| task.key == key);
        task.map(|task| task.granted = true).is_some()
    }

    pub(super) fn contains(&self, mut wanted: impl FnMut(TaskKey) -> bool) -> bool {
        self.waiting.iter().any(|task| wanted(task.key))
    }

    /// Takes out the tasks that `wanted` names, in order.
    pub(super) fn remove(&mut self, mut wanted: impl FnMut(TaskKey) -> bool) -> Vec<Task<S>> {
        let (removed, kept) = self.waiting.drain(..).partition(|task| wanted(task.key));
        self.waiting = kept;
        Vec::from(removed as VecDeque<_>)
    }

    /// Takes out the task that may begin next beside what runs.
    pub(super) fn pick(&mut self, running: Running) -> Option<Task<S>> {
        for at in 0..self.waiting.len() {
            let task = self.waiting.get(at)?;
            if running.barrier && task.attribute != TaskAttribute::HeadOfQueue {
                return None;
            }
            let ordered = task.attribute == TaskAttribute::Ordered;
            if ordered && (at > 0 || running.any) {
                return None;
            }
            if task.is_complete() {
                return if task.granted {
                    self.waiting.remove(at)
                } else {
                    None
                };
            }
            if ordered {
                return None;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use TaskAttribute::{HeadOfQueue, Ordered, Simple};

    fn task(tag: u64, attribute: TaskAttribute, missing_bytes: usize) -> Task<()> {
        Task {
            key: TaskKey {
                session: 1,
                tag: Tag(tag),
            },
            attribute,
            lun: [0; 8],
            cdb: Vec::new(),
            data_out: Vec::new(),
            data_out_bytes: missing_bytes,
            data_in_bytes: 0,
            granted: true,
            session: (),
        }
    }

    /// The tags in the order in which they run.
    fn run(set: &mut TaskSet<()>) -> Vec<u64> {
        std::iter::from_fn(|| set.pick(Running::default()))
            .map(|task| task.key.tag.0)
            .collect()
    }

    fn set(tasks: impl IntoIterator<Item = (u64, TaskAttribute, usize)>) -> TaskSet<()> {
        let mut set = TaskSet::default();
        for (tag, attribute, missing_bytes) in tasks {
            set.push(task(tag, attribute, missing_bytes));
        }
        set
    }

    #[test]
    fn attributes_decide_the_order() {
        let mut all = set([
            (1, Simple, 0),
            (2, Ordered, 0),
            (3, Simple, 0),
            (4, HeadOfQueue, 0),
            (5, HeadOfQueue, 0),
        ]);
        assert_eq!(run(&mut all), [4, 5, 1, 2, 3]);
    }

    #[test]
    fn task_that_is_not_granted_holds_up_those_behind_it() {
        let mut all = set([(1, Simple, 0), (2, Simple, 0), (3, HeadOfQueue, 0)]);
        for task in &mut all.waiting {
            task.granted = false;
        }
        let key = |tag| TaskKey {
            session: 1,
            tag: Tag(tag),
        };
        assert_eq!(run(&mut all), [0; 0]);
        assert!(all.grant(key(1)));
        assert_eq!(run(&mut all), [0; 0], "3 stands before it");
        assert!(all.grant(key(3)) && all.grant(key(2)) && !all.grant(key(4)));
        assert_eq!(run(&mut all), [3, 1, 2]);
        // Its data is not here: it holds up nobody, granted or not.
        let mut all = set([(1, Simple, 1), (2, Simple, 0)]);
        all.waiting[0].granted = false;
        assert_eq!(run(&mut all), [2]);
    }

    #[test]
    fn task_without_its_data_holds_up_only_ordered_tasks() {
        let mut all = set([
            (1, Simple, 2),
            (2, Simple, 0),
            (3, Ordered, 0),
            (4, Simple, 0),
        ]);
        assert_eq!(run(&mut all), [2]);
        assert!(all.append(
            TaskKey {
                session: 1,
                tag: Tag(1)
            },
            &[0; 2]
        ));
        assert!(!all.append(
            TaskKey {
                session: 2,
                tag: Tag(1)
            },
            &[0; 2]
        ));
        assert_eq!(run(&mut all), [1, 3, 4]);
        let mut all = set([(1, Ordered, 1), (2, Simple, 0)]);
        assert_eq!(run(&mut all), [0; 0]);
        assert_eq!(all.load(), (2, 1));
        let removed = all.remove(|key| key.tag == Tag(1));
        assert_eq!(removed.len(), 1);
        assert_eq!(run(&mut all), [2]);
    }

    #[test]
    fn what_runs_decides_what_begins_beside_it() {
        let beside = |attributes: &[TaskAttribute], waiting: &[TaskAttribute]| {
            let mut running = Running::default();
            attributes.iter().for_each(|each| running.add(*each));
            let mut set = set((1..).zip(waiting).map(|(tag, each)| (tag, *each, 0)));
            set.pick(running).map(|task| task.attribute)
        };
        assert_eq!(beside(&[Simple], &[Simple]), Some(Simple));
        assert_eq!(beside(&[Simple], &[Ordered, Simple]), None);
        assert_eq!(beside(&[Ordered], &[Simple]), None);
        assert_eq!(beside(&[HeadOfQueue], &[Simple]), None);
        assert_eq!(beside(&[HeadOfQueue, Simple], &[Ordered]), None);
        assert_eq!(
            beside(&[Ordered], &[Simple, HeadOfQueue]),
            Some(HeadOfQueue)
        );
        assert_eq!(beside(&[], &[Ordered]), Some(Ordered));
    }
}

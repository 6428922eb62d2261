//! The table: tasks that have not ended, by id, and ended ones, by age. Pure.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::state::TaskState;

/// Names a task of one manager: its number in the order in which tasks were accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TaskId(u64);

impl TaskId {
    pub(super) fn from_u64(id: u64) -> Self {
        Self(id)
    }

    /// As a number.
    pub fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What the table knows of a task that waits or runs.
#[derive(Debug)]
pub(super) struct OpenTask<J> {
    pub(super) task: J,
    /// Pending or running.
    pub(super) state: TaskState,
    /// When the present or last attempt began.
    pub(super) started: Option<Instant>,
    /// Attempts begun.
    pub(super) attempts: u32,
    /// Which worker has it.
    pub(super) worker: Option<usize>,
    /// Entries among the deadlines.
    pub(super) armed: usize,
    /// Its time has not come.
    pub(super) delayed: bool,
}

/// What is left of a task that can tell more than its name.
#[derive(Debug)]
pub(super) enum RecordSubject<J> {
    Name(&'static str),
    Task(J),
}

/// What is kept of a task that has ended.
#[derive(Debug)]
pub(super) struct Record<J> {
    pub(super) id: TaskId,
    pub(super) what: RecordSubject<J>,
    /// A terminal one.
    pub(super) state: TaskState,
    /// In nanoseconds since the manager's start.
    pub(super) submitted: u64,
    pub(super) started: Option<Instant>,
    pub(super) ended: Instant,
    pub(super) attempts: u32,
    /// It did not end when it was cancelled, and still runs; its worker was written off.
    pub(super) unresponsive: bool,
    /// Why it has no result.
    pub(super) error: Option<Box<str>>,
}

/// For ids, which are numbers in a row and nobody's to choose: neighbours are kept together, because they come and go
/// together.
#[derive(Debug, Default)]
pub(super) struct SequentialHasher(u64);

impl Hasher for SequentialHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(self.0 ^ u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        // The map takes the place from the lower bits, and from the upper 7 what tells those of one place apart: these
        // are mixed, by 2^64 over the golden ratio.
        const UPPER: u64 = !(u64::MAX >> 7);
        self.0 = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) & UPPER | number & !UPPER;
    }
}

type ById<V> = HashMap<TaskId, V, BuildHasherDefault<SequentialHasher>>;

/// All tasks.
#[derive(Debug)]
pub(super) struct Store<J> {
    open: ById<OpenTask<J>>,
    /// The oldest first.
    ended: VecDeque<Record<J>>,
    /// Records that were forgotten, so the serial number of the oldest that was not.
    forgotten: u64,
    /// The serial numbers of records, of those before `indexed`: it grows when somebody asks, and most programs never
    /// do.
    index: ById<u64>,
    indexed: u64,
    counts: [usize; 5],
    keep: Duration,
    keep_max: usize,
}

impl<J> Store<J> {
    /// Forgets ended tasks after `keep`, and the oldest when there are more than `keep_max`.
    pub(super) fn new(keep: Duration, keep_max: usize) -> Self {
        Self {
            open: ById::default(),
            ended: VecDeque::new(),
            forgotten: 0,
            index: ById::default(),
            indexed: 0,
            counts: [0; 5],
            keep,
            keep_max,
        }
    }

    /// Adds a pending task.
    pub(super) fn insert(&mut self, id: TaskId, task: J) {
        let state = TaskState::Pending;
        let entry = OpenTask { task, state, started: None, attempts: 0, worker: None, armed: 0, delayed: false };
        self.open.insert(id, entry);
        self.counts[state as usize] += 1;
    }

    /// A task that has not ended.
    pub(super) fn get(&self, id: TaskId) -> Option<&OpenTask<J>> {
        self.open.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: TaskId) -> Option<&mut OpenTask<J>> {
        self.open.get_mut(&id)
    }

    /// A worker begins an attempt.
    pub(super) fn start(&mut self, id: TaskId, worker: usize, now: Instant) {
        if let Some(entry) = self.step(id, TaskState::Running) {
            (entry.started, entry.worker) = (Some(now), Some(worker));
            entry.attempts += 1;
        }
    }

    /// An attempt has ended, and another follows.
    pub(super) fn wait_again(&mut self, id: TaskId) {
        if let Some(entry) = self.step(id, TaskState::Pending) {
            entry.worker = None;
        }
    }

    /// Takes a legal step; one that is not is a bug of the caller, and changes nothing.
    fn step(&mut self, id: TaskId, to: TaskState) -> Option<&mut OpenTask<J>> {
        let entry = self.open.get_mut(&id)?;
        if !entry.state.may_become(to) {
            debug_assert!(false, "task {id} cannot go from {} to {to}", entry.state);
            return None;
        }
        self.counts[entry.state as usize] -= 1;
        self.counts[to as usize] += 1;
        entry.state = to;
        Some(entry)
    }

    /// The task has ended; its entry, if it was not taken out before.
    pub(super) fn take_out(&mut self, id: TaskId) -> Option<OpenTask<J>> {
        let entry = self.open.remove(&id)?;
        self.counts[entry.state as usize] -= 1;
        Some(entry)
    }

    /// Keeps what is left of a task that has ended, and forgets the oldest if there are too many. What this gives back
    /// is to be dropped outside of any lock.
    pub(super) fn keep(&mut self, record: Record<J>) -> Option<J> {
        self.counts[record.state as usize] += 1;
        self.ended.push_back(record);
        if self.ended.len() > self.keep_max { self.forget_oldest() } else { None }
    }

    /// What is kept of a task that has ended.
    pub(super) fn record(&mut self, id: TaskId) -> Option<&mut Record<J>> {
        let new = self.ended.iter().zip(self.forgotten..).skip(self.indexed.saturating_sub(self.forgotten) as usize);
        self.index.extend(new.map(|(record, serial)| (record.id, serial)));
        self.indexed = self.forgotten + self.ended.len() as u64;
        let place = self.index.get(&id)? - self.forgotten;
        self.ended.get_mut(place as usize)
    }

    /// How many tasks are in this state.
    pub(super) fn count(&self, state: TaskState) -> usize {
        self.counts[state as usize]
    }

    /// When the oldest of the ended is to be forgotten.
    pub(super) fn next_forgotten(&self) -> Option<Instant> {
        self.ended.front()?.ended.checked_add(self.keep)
    }

    /// Forgets one ended task that is too old, if there is one; what it gives back is to be dropped outside of any
    /// lock.
    pub(super) fn forget(&mut self, now: Instant) -> Option<Option<J>> {
        self.next_forgotten().is_some_and(|at| at <= now).then(|| self.forget_oldest())
    }

    fn forget_oldest(&mut self) -> Option<J> {
        let record = self.ended.pop_front()?;
        if self.forgotten < self.indexed {
            self.index.remove(&record.id);
        }
        self.forgotten += 1;
        self.counts[record.state as usize] -= 1;
        match record.what {
            RecordSubject::Name(_) => None,
            RecordSubject::Task(task) => Some(task),
        }
    }

    /// All tasks that have not ended, in no order.
    pub(super) fn open(&self) -> impl Iterator<Item = (TaskId, &OpenTask<J>)> {
        self.open.iter().map(|(id, entry)| (*id, entry))
    }

    /// What is kept of ended tasks, the oldest first.
    pub(super) fn ended(&self) -> impl Iterator<Item = &Record<J>> {
        self.ended.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;
    use TaskState::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn counts(store: &Store<u32>) -> [usize; 5] {
        TaskState::ALL.map(|state| store.count(state))
    }

    fn id(n: u64) -> TaskId {
        TaskId::from_u64(n)
    }

    /// What was forgotten for this one.
    fn end(store: &mut Store<u32>, id: TaskId, state: TaskState, now: Instant) -> Option<u32> {
        let entry = store.take_out(id).expect("it has not ended");
        assert!(entry.state.may_become(state));
        store.keep(Record {
            id,
            what: RecordSubject::Task(entry.task),
            state,
            submitted: 0,
            started: entry.started,
            ended: now,
            attempts: entry.attempts,
            unresponsive: false,
            error: None,
        })
    }

    #[test]
    fn an_ended_task_is_known_for_its_time() {
        let now = Instant::now();
        let mut store = Store::new(HOUR, 10);
        store.insert(id(1), 7);
        store.start(id(1), 3, now);
        assert_eq!(counts(&store), [0, 1, 0, 0, 0]);
        assert_eq!(end(&mut store, id(1), Completed, now), None);
        assert!(store.get(id(1)).is_none() && store.take_out(id(1)).is_none());
        assert_eq!(store.record(id(1)).map(|record| (record.state, record.attempts)), Some((Completed, 1)));
        assert_eq!(store.next_forgotten(), Some(now + HOUR));
        assert_eq!(store.forget(now + HOUR - Duration::from_nanos(1)), None);
        assert_eq!(store.forget(now + HOUR), Some(Some(7)));
        assert!(store.record(id(1)).is_none());
        assert_eq!(counts(&store), [0; 5]);
    }

    #[test]
    fn the_oldest_of_too_many_is_forgotten_first() {
        let now = Instant::now();
        let mut store = Store::new(HOUR, 3);
        let forgotten = [0, 1, 2, 3, 4].map(|n| {
            store.insert(id(n), n as u32);
            // Asked for in between, so that some are indexed when they are forgotten and some are not.
            assert_eq!(store.record(id(1)).is_some(), (2..5).contains(&n));
            end(&mut store, id(n), Cancelled, now)
        });
        assert_eq!(forgotten, [None, None, None, Some(0), Some(1)]);
        let known = [0, 1, 2, 3, 4].map(|n| store.record(id(n)).map(|record| record.id));
        assert_eq!(known, [None, None, Some(id(2)), Some(id(3)), Some(id(4))]);
        assert_eq!(store.index.len(), 3);
    }

    #[cfg(debug_assertions)]
    #[test]
    #[should_panic(expected = "cannot go from RUNNING to RUNNING")]
    fn a_step_that_is_not_legal_is_a_bug() {
        let now = Instant::now();
        let mut store = Store::new(HOUR, 3);
        store.insert(id(1), 1);
        store.start(id(1), 0, now);
        store.start(id(1), 0, now);
    }

    #[test]
    fn counts_are_what_a_count_gives_after_any_sequence_of_legal_steps() {
        let seed = Rng::from_entropy().next_u64();
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        let mut now = Instant::now();
        let mut store = Store::new(HOUR, 50);
        let mut ids = Vec::new();
        for n in 0..20_000 {
            now += Duration::from_secs(rng.next_u64() % 100);
            if ids.is_empty() || rng.one_in(3) {
                store.insert(id(n), n as u32);
                ids.push(id(n));
            } else {
                let at = (rng.next_u64() as usize) % ids.len();
                let id: TaskId = ids[at];
                let from = store.get(id).expect("it has not ended").state;
                let to = TaskState::ALL[(rng.next_u64() % 5) as usize];
                match to {
                    _ if !from.may_become(to) => {}
                    Running => store.start(id, 0, now),
                    Pending => store.wait_again(id),
                    _ => {
                        end(&mut store, id, to, now);
                        ids.swap_remove(at);
                    }
                }
            }
            while store.forget(now).is_some() {}
            let open = store.open().map(|(_, entry)| entry.state);
            let all: Vec<TaskState> = open.chain(store.ended().map(|record| record.state)).collect();
            if n % 97 == 0 {
                assert_eq!(counts(&store), TaskState::ALL.map(|state| all.iter().filter(|s| **s == state).count()));
                assert_eq!(store.open().count(), ids.len());
            }
            assert!(store.ended.len() <= 50);
        }
    }
}

//! What can be seen of tasks: one, many, all in numbers. Serialized times are seconds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::options::Extras;
use super::queue::Priority;
use super::shared::{Sched, Shared};
use super::state::TaskState;
use super::store::{Entry, Record, TaskId, What};
use super::task::{Job, Progress};

/// Running and unresponsive tasks that a [`TasksStatus`] lists of each: a page, not the table.
const LISTED: usize = 100;

/// One task at a moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskInfo {
    /// Its id.
    pub id: TaskId,
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub state: TaskState,
    /// How urgent it is.
    pub priority: Priority,
    /// The key whose limit it shares.
    pub key: Option<String>,
    /// What the submitter noted.
    pub metadata: BTreeMap<String, String>,
    /// Attempts begun.
    pub attempts: u32,
    /// How far it has come.
    pub progress: Option<Progress>,
    /// Why it has no result.
    pub error: Option<String>,
    /// It did not end when it was told to, and still runs.
    pub unresponsive: bool,
    /// Since it was accepted.
    #[serde(with = "seconds")]
    pub age: Option<Duration>,
    /// Since its present or last attempt began.
    #[serde(with = "seconds")]
    pub started: Option<Duration>,
    /// Since it ended.
    #[serde(with = "seconds")]
    pub ended: Option<Duration>,
}

mod seconds {
    use super::{Deserialize, Duration, Serialize};

    pub(super) fn serialize<S: serde::Serializer>(time: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        time.map(|time| time.as_secs_f64()).serialize(to)
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        let seconds = Option::<f64>::deserialize(from)?;
        seconds.map(Duration::try_from_secs_f64).transpose().map_err(serde::de::Error::custom)
    }
}

/// Which tasks a list has; all by default.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// In this state.
    pub state: Option<TaskState>,
    /// Of this name.
    pub name: Option<String>,
    /// With this key.
    pub key: Option<String>,
    /// With this metadata.
    pub metadata: Option<(String, String)>,
    /// At most so many.
    pub most: Option<usize>,
}

impl Filter {
    /// All tasks in this state.
    pub fn state(state: TaskState) -> Self {
        Self { state: Some(state), ..Self::default() }
    }

    fn takes(&self, seen: &Seen<'_>) -> bool {
        let key = || seen.extras.and_then(|extras| extras.key.as_ref()).map(|key| &*key.name);
        let value = |name: &String| seen.extras.and_then(|extras| extras.metadata.get(name));
        self.state.is_none_or(|state| state == seen.state)
            && self.name.as_ref().is_none_or(|name| name == seen.name)
            && self.key.as_ref().is_none_or(|wanted| key() == Some(wanted))
            && self.metadata.as_ref().is_none_or(|(name, wanted)| value(name) == Some(wanted))
    }
}

/// All tasks in numbers, and those at work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TasksStatus {
    /// The manager's name.
    pub name: String,
    /// Tasks by state; the ended ones as long as they are kept.
    pub counts: Counts,
    /// Of the pending, those whose time has not come.
    pub delayed: usize,
    /// How many may wait for a worker.
    pub queue: usize,
    /// Threads that take tasks now, and how many there may be.
    pub workers: usize,
    /// How many there may be.
    pub workers_max: usize,
    /// Of those, the ones that sleep.
    pub idle: usize,
    /// Threads whose task did not end when it was told to; they were replaced.
    pub written_off: usize,
    /// Tasks that run, at most 100.
    pub running: Vec<TaskInfo>,
    /// Tasks that did not end when they were told to, and still run, at most 100.
    pub unresponsive: Vec<TaskInfo>,
}

/// How many tasks are in each state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Pending.
    pub pending: usize,
    /// Running.
    pub running: usize,
    /// Completed, and kept.
    pub completed: usize,
    /// Failed, and kept.
    pub failed: usize,
    /// Cancelled, and kept.
    pub cancelled: usize,
}

/// A task in the table, ended or not.
struct Seen<'a> {
    id: TaskId,
    name: &'a str,
    extras: Option<&'a Extras>,
    job: Option<&'a Arc<dyn Job>>,
    state: TaskState,
    attempts: u32,
    error: Option<&'a str>,
    unresponsive: bool,
    /// In nanoseconds since the manager's start.
    submitted: u64,
    started: Option<Instant>,
    ended: Option<Instant>,
}

impl<'a> Seen<'a> {
    fn open(id: TaskId, entry: &'a Entry<Arc<dyn Job>>) -> Self {
        let head = entry.job.head();
        Self {
            id,
            name: head.name(),
            extras: head.extras(),
            job: Some(&entry.job),
            state: entry.state,
            attempts: entry.attempts,
            error: None,
            unresponsive: false,
            submitted: head.submitted(),
            started: entry.started,
            ended: None,
        }
    }

    fn ended(record: &'a Record<Arc<dyn Job>>) -> Self {
        let (name, job) = match &record.what {
            What::Name(name) => (*name, None),
            What::Job(job) => (job.head().name(), Some(job)),
        };
        Self {
            id: record.id,
            name,
            extras: job.and_then(|job| job.head().extras()),
            job,
            state: record.state,
            attempts: record.attempts,
            error: record.error.as_deref(),
            unresponsive: record.unresponsive,
            submitted: record.submitted,
            started: record.started,
            ended: Some(record.ended),
        }
    }

    /// `start` is the manager's.
    fn info(&self, start: Instant, now: Instant) -> TaskInfo {
        let since = |at: Instant| now.saturating_duration_since(at);
        TaskInfo {
            id: self.id,
            name: self.name.to_owned(),
            state: self.state,
            priority: self.extras.map_or_else(Priority::default, |extras| extras.priority),
            key: self.extras.and_then(|extras| extras.key.as_ref()).map(|key| key.name.to_string()),
            metadata: self.extras.map(|extras| extras.metadata.clone()).unwrap_or_default(),
            attempts: self.attempts,
            progress: self.job.and_then(|job| job.head().progress()),
            error: self.error.map(str::to_owned),
            unresponsive: self.unresponsive,
            age: Some(since(start + Duration::from_nanos(self.submitted))),
            started: self.started.map(since),
            ended: self.ended.map(since),
        }
    }
}

/// Of all tasks those that are `wanted`, in the order in which they were accepted, `most` at most.
fn listed(
    sched: &Sched,
    start: Instant,
    now: Instant,
    most: usize,
    wanted: impl Fn(&Seen<'_>) -> bool,
) -> Vec<TaskInfo> {
    let ended = sched.store.ended().map(Seen::ended);
    let all = sched.store.open().map(|(id, entry)| Seen::open(id, entry)).chain(ended);
    let mut seen: Vec<Seen<'_>> = all.filter(wanted).collect();
    seen.sort_unstable_by_key(|seen| seen.id);
    seen.iter().take(most).map(|seen| seen.info(start, now)).collect()
}

impl From<[usize; 5]> for Counts {
    fn from(counts: [usize; 5]) -> Self {
        let count = |state: TaskState| counts[state as usize];
        Self {
            pending: count(TaskState::Pending),
            running: count(TaskState::Running),
            completed: count(TaskState::Completed),
            failed: count(TaskState::Failed),
            cancelled: count(TaskState::Cancelled),
        }
    }
}

impl Shared {
    pub(super) fn info(&self, id: TaskId) -> Option<TaskInfo> {
        let now = self.config.clock.now();
        let mut sched = self.lock();
        if let Some(entry) = sched.store.get(id) {
            return Some(Seen::open(id, entry).info(self.since, now));
        }
        sched.store.record(id).map(|record| Seen::ended(record).info(self.since, now))
    }

    pub(super) fn list(&self, filter: &Filter) -> Vec<TaskInfo> {
        let now = self.config.clock.now();
        listed(&self.lock(), self.since, now, filter.most.unwrap_or(usize::MAX), |seen| filter.takes(seen))
    }

    pub(super) fn counts(&self) -> Counts {
        self.count().into()
    }

    pub(super) fn status(&self) -> TasksStatus {
        let now = self.config.clock.now();
        let sched = self.lock();
        TasksStatus {
            name: self.config.name.to_owned(),
            counts: TaskState::ALL.map(|state| sched.store.count(state)).into(),
            delayed: sched.delayed,
            queue: self.config.queue,
            workers: sched.workers,
            workers_max: self.config.workers,
            idle: sched.idle(),
            written_off: sched.written_off,
            running: listed(&sched, self.since, now, LISTED, |seen| seen.state == TaskState::Running),
            unresponsive: listed(&sched, self.since, now, LISTED, |seen| seen.unresponsive),
        }
    }
}

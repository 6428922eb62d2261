//! What can be seen of tasks: one, many, all in numbers. Serialized times are seconds. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::queue::Priority;
use super::state::{Progress, TaskState};
use super::store::TaskId;

/// Running and unresponsive tasks that a [`TasksStatus`] lists of each: a page, not the table.
pub(super) const LISTED: usize = 100;

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
    /// It did not end when it was cancelled, and still runs.
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

    pub(super) fn takes(&self, task: &TaskView<'_>) -> bool {
        let value = |name: &String| task.metadata.and_then(|metadata| metadata.get(name));
        self.state.is_none_or(|state| state == task.state)
            && self.name.as_ref().is_none_or(|name| name == task.name)
            && self.key.as_deref().is_none_or(|wanted| task.key == Some(wanted))
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
    /// Threads whose task did not end when it was cancelled; they were replaced.
    pub written_off: usize,
    /// Tasks that run, at most 100.
    pub running: Vec<TaskInfo>,
    /// Tasks that did not end when they were cancelled, and still run, at most 100.
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

/// What the table shows of a task, ended or not.
pub(super) struct TaskView<'a> {
    pub(super) id: TaskId,
    pub(super) name: &'a str,
    pub(super) priority: Priority,
    pub(super) key: Option<&'a str>,
    pub(super) metadata: Option<&'a BTreeMap<String, String>>,
    pub(super) state: TaskState,
    pub(super) attempts: u32,
    pub(super) error: Option<&'a str>,
    pub(super) unresponsive: bool,
    /// Since the manager's start.
    pub(super) submitted: Duration,
    pub(super) started: Option<Instant>,
    pub(super) ended: Option<Instant>,
}

impl TaskView<'_> {
    /// `start` is the manager's.
    pub(super) fn info(&self, start: Instant, now: Instant, progress: Option<Progress>) -> TaskInfo {
        let since = |at: Instant| now.saturating_duration_since(at);
        TaskInfo {
            id: self.id,
            name: self.name.to_owned(),
            state: self.state,
            priority: self.priority,
            key: self.key.map(str::to_owned),
            metadata: self.metadata.cloned().unwrap_or_default(),
            attempts: self.attempts,
            progress,
            error: self.error.map(str::to_owned),
            unresponsive: self.unresponsive,
            age: Some(since(start + self.submitted)),
            started: self.started.map(since),
            ended: self.ended.map(since),
        }
    }
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

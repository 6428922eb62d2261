//! What a task may be given beside its work, and the numbers of a manager.

use std::any::{Any, TypeId};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::queue::{Key, Priority};
use super::state::{Limit, Progress, TaskState};
use super::store::TaskId;
use crate::base::clock::Clock;
use crate::base::shutdown::Shutdown;

/// What to do with a task for which the queue has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// Wait for room, until the manager stops.
    Block,
    /// Wait for room so long.
    Timeout(Duration),
    /// Hand the work back at once.
    Refuse,
}

/// The numbers of a [`super::TaskManager`].
#[derive(Debug, Clone)]
pub struct TaskConfig {
    /// Its threads are named `name-0`, `name-1`, …, and `name-time`; at most 10 bytes.
    pub name: &'static str,
    /// Tasks that run at a time; a thread is started when a task finds none idle.
    pub workers: usize,
    /// Tasks that wait for a worker or for their key.
    pub queue: usize,
    /// Tasks that wait for their time: delayed ones, and those between two attempts.
    pub delayed: usize,
    /// What to do with one more; a task may decide for itself.
    pub when_full: WhenFull,
    /// How long an ended task can be looked up.
    pub keep: Duration,
    /// How many ended tasks can be looked up.
    pub keep_max: usize,
    /// Bytes of a result that is weighed, see [`TaskOptions::weigh`].
    pub result_bytes: usize,
    /// How long a cancelled task may go on before it is marked unresponsive and its worker replaced.
    pub cancel_grace: Duration,
    /// Unresponsive tasks whose workers are replaced; further ones do cost their worker.
    pub unresponsive: usize,
    /// Where the time comes from: the system, or a test.
    pub clock: Clock,
}

impl TaskConfig {
    /// As many workers as the machine has processors; room for 8,192 waiting and 100,000 delayed tasks, one more waits
    /// for room; 10,000 ended tasks are kept for an hour; results of up to 16 MiB; 5 s to end when cancelled, then at
    /// most 64 workers are replaced.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            // Enough that neither side stands still while the other has lost the processor: some milliseconds of short
            // tasks.
            queue: 8192,
            delayed: 100_000,
            when_full: WhenFull::Block,
            keep: Duration::from_secs(3600),
            keep_max: 10_000,
            result_bytes: 16 << 20,
            cancel_grace: Duration::from_secs(5),
            unresponsive: 64,
            clock: Clock::system(),
        }
    }

    /// With so many workers.
    pub fn workers(self, workers: usize) -> Self {
        Self { workers, ..self }
    }

    /// All problems of the numbers, in words.
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.name.is_empty() || self.name.len() > 10 {
            problems.push(format!("the name {:?} should have 1 to 10 bytes", self.name));
        }
        for (what, number) in [("workers", self.workers), ("queue", self.queue)] {
            if number == 0 {
                problems.push(format!("{what} is 0; it should be at least 1"));
            }
        }
        problems
    }
}

type OnProgress = Box<dyn Fn(TaskId, &Progress) + Send + Sync>;
type OnEnd = Box<dyn FnOnce(TaskId, TaskState) + Send>;
type Weigh = (TypeId, Box<dyn Fn(&dyn Any) -> usize + Send + Sync>);

/// Limits in time; none by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// From being due to the first start.
    pub queue: Option<Duration>,
    /// Of one attempt.
    pub run: Option<Duration>,
    /// From being accepted to the end.
    pub total: Option<Duration>,
    /// Without progress or heartbeat while it runs.
    pub silence: Option<Duration>,
}

impl Limits {
    pub(super) fn of(&self, limit: Limit) -> Option<Duration> {
        match limit {
            Limit::Queue => self.queue,
            Limit::Run => self.run,
            Limit::Total => self.total,
            Limit::Silence => self.silence,
        }
    }
}

/// What a task is given beside its work.
///
/// A task with a `&'static str` for a name and nothing else is the cheapest, several times: it needs no allocation but
/// its own, and goes to the workers by the batch.
pub struct TaskOptions {
    pub(super) name: &'static str,
    pub(super) extras: Option<Box<Extras>>,
}

#[derive(Default)]
pub(super) struct Extras {
    /// A name that was made for the task.
    pub(super) name: Option<String>,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) priority: Priority,
    pub(super) key: Option<Key>,
    pub(super) delay: Option<Duration>,
    pub(super) limits: Limits,
    pub(super) when_full: Option<WhenFull>,
    pub(super) on_progress: Option<OnProgress>,
    pub(super) on_end: Mutex<Option<OnEnd>>,
    pub(super) weigh: Option<Weigh>,
    pub(super) keep_result: bool,
    pub(super) grown: Grown,
}

/// What comes to a task while it runs.
#[derive(Default)]
pub(super) struct Grown {
    pub(super) signal: OnceLock<Shutdown>,
    /// The words with which it was cancelled.
    pub(super) reason: OnceLock<String>,
    /// Of the last sign of life, in nanoseconds since the manager's start; kept only with a silence limit.
    pub(super) alive: AtomicU64,
    pub(super) progress: Mutex<Option<Progress>>,
}

impl fmt::Debug for TaskOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskOptions").field("name", &self.name()).finish_non_exhaustive()
    }
}

impl From<&'static str> for TaskOptions {
    fn from(name: &'static str) -> Self {
        Self::new(name)
    }
}

impl TaskOptions {
    /// A task of this name: normal priority, no limits, due now.
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        match name.into() {
            Cow::Borrowed(name) => Self { name, extras: None },
            Cow::Owned(name) => Self { name: "", extras: None }.with(|extras| extras.name = Some(name)),
        }
    }

    pub(super) fn name(&self) -> &str {
        self.extras.as_ref().and_then(|extras| extras.name.as_deref()).unwrap_or(self.name)
    }

    /// Of a task that is more than its name, and so known to the table from the start.
    pub(super) fn in_table(self) -> Self {
        self.with(|_| {})
    }

    fn with(mut self, set: impl FnOnce(&mut Extras)) -> Self {
        set(self.extras.get_or_insert_default());
        self
    }

    /// Something to know about the task; shown in lists, and to the task itself.
    pub fn metadata(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.with(|extras| drop(extras.metadata.insert(name.into(), value.into())))
    }

    /// How urgent it is.
    pub fn priority(self, priority: Priority) -> Self {
        self.with(|extras| extras.priority = priority)
    }

    /// At most `limit` (at least one) tasks of this key run at a time; the others wait, and hold up nobody else.
    pub fn key(self, name: impl Into<Arc<str>>, limit: usize) -> Self {
        self.with(|extras| extras.key = Some(Key { name: name.into(), limit: limit.max(1), unique: false }))
    }

    /// One task of this key runs and one more may wait to run after it; a further one is refused as
    /// [`super::Refusal::Duplicate`]: what it would do, the waiting one will.
    pub fn unique(self, name: impl Into<Arc<str>>) -> Self {
        self.with(|extras| extras.key = Some(Key { name: name.into(), limit: 1, unique: true }))
    }

    /// Not before so much time has passed.
    pub fn delay(self, delay: Duration) -> Self {
        self.with(|extras| extras.delay = Some(delay))
    }

    /// All limits in time at once.
    pub fn limits(self, limits: Limits) -> Self {
        self.with(|extras| extras.limits = limits)
    }

    /// How long one attempt may take.
    pub fn run_limit(self, limit: Duration) -> Self {
        self.with(|extras| extras.limits.run = Some(limit))
    }

    /// How long it may wait for a worker, once it is due.
    pub fn queue_limit(self, limit: Duration) -> Self {
        self.with(|extras| extras.limits.queue = Some(limit))
    }

    /// How long it may take in all.
    pub fn total_limit(self, limit: Duration) -> Self {
        self.with(|extras| extras.limits.total = Some(limit))
    }

    /// How long it may run without progress or heartbeat.
    pub fn silence_limit(self, limit: Duration) -> Self {
        self.with(|extras| extras.limits.silence = Some(limit))
    }

    /// What to do if the queue has no room; the manager's rule if not set.
    pub fn when_full(self, when_full: WhenFull) -> Self {
        self.with(|extras| extras.when_full = Some(when_full))
    }

    /// Called on the task's thread with each progress; must not block for long. A panic of it is logged and costs
    /// nothing.
    pub fn on_progress(self, f: impl Fn(TaskId, &Progress) + Send + Sync + 'static) -> Self {
        self.with(|extras| extras.on_progress = Some(Box::new(f)))
    }

    /// Called once when the task has ended, after its waiters were woken, on the thread that ended it; must not block.
    /// A panic of it is logged and costs nothing.
    pub fn on_end(self, f: impl FnOnce(TaskId, TaskState) + Send + 'static) -> Self {
        self.with(|extras| extras.on_end = Mutex::new(Some(Box::new(f))))
    }

    /// As [`TaskOptions::on_end`], before what is there already.
    pub(super) fn and_on_end(self, f: impl FnOnce(TaskId, TaskState) + Send + 'static) -> Self {
        self.with(|extras| {
            let then = extras.on_end.get_mut().unwrap_or_else(PoisonError::into_inner);
            let before = then.take();
            *then = Some(Box::new(move |id, state| {
                f(id, state);
                if let Some(before) = before {
                    before(id, state);
                }
            }));
        })
    }

    /// Keeps the result, as long as the ended task can be looked up, for [`super::Tasks::result`]: it is had by the
    /// task's id, whoever has dropped its handle. As many results are in memory as ended tasks are kept.
    pub fn keep_result(self) -> Self {
        self.with(|extras| extras.keep_result = true)
    }

    /// How many bytes a result has; one of more than [`TaskConfig::result_bytes`] ends the task as failed.
    ///
    /// `T` is the result's type; [`super::Tasks::submit`] panics if it is another.
    pub fn weigh<T: 'static>(self, weigh: impl Fn(&T) -> usize + Send + Sync + 'static) -> Self {
        let any = move |result: &dyn Any| result.downcast_ref::<T>().map_or(0, &weigh);
        self.with(|extras| extras.weigh = Some((TypeId::of::<T>(), Box::new(any))))
    }
}

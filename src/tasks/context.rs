//! What a task is given while it runs.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::error::Interrupted;
use super::guard::tolerated;
use super::head::Head;
use super::options::TaskConfig;
use super::state::{CancelReason, MESSAGE_BYTES, Progress};
use super::store::TaskId;
use crate::base::clock::Clock;
use crate::base::lock::lock;
use crate::base::rng::Rng;
use crate::base::shutdown::{Level, Shutdown};
use crate::base::text::truncate;

/// What all running tasks of a manager share: the time, the manager's stop, a source of chance.
pub(super) struct TaskEnv {
    clock: Clock,
    /// When the manager was started.
    pub(super) start: Instant,
    /// Drain when the manager stops; cancel when it cannot wait any longer.
    pub(super) stop: Shutdown,
    pub(super) result_bytes: usize,
    rng: Mutex<Rng>,
}

impl TaskEnv {
    pub(super) fn new(config: &TaskConfig) -> Self {
        Self {
            clock: config.clock.clone(),
            start: config.clock.now(),
            stop: Shutdown::new(),
            result_bytes: config.result_bytes,
            rng: Mutex::new(Rng::from_entropy()),
        }
    }

    // Here and below: called once a task from the crates of users, where a call costs some percent of a short task.
    #[inline]
    pub(super) fn now(&self) -> Instant {
        self.clock.now()
    }

    /// In nanoseconds since the manager's start.
    #[inline]
    pub(super) fn nanos(&self, at: Instant) -> u64 {
        nanos_since(self.start, at)
    }

    /// In `0.0..1.0`.
    pub(super) fn random(&self) -> f64 {
        lock(&self.rng).unit()
    }
}

/// In nanoseconds, as moments are kept in a task.
#[inline]
pub(super) fn nanos_since(start: Instant, at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(start).as_nanos()).unwrap_or(u64::MAX)
}

/// One attempt at a task.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempt {
    /// The first is 1.
    pub(super) number: u32,
    pub(super) started: Instant,
}

/// A task's view of itself, while it runs.
pub struct TaskContext<'a> {
    env: &'a TaskEnv,
    head: &'a Head,
    attempt: Attempt,
    /// Wakes those who follow the task's progress.
    changed: &'a (dyn Fn() + Sync),
}

impl std::fmt::Debug for TaskContext<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskContext").field("id", &self.id()).finish_non_exhaustive()
    }
}

impl<'a> TaskContext<'a> {
    pub(super) fn new(env: &'a TaskEnv, head: &'a Head, attempt: Attempt, changed: &'a (dyn Fn() + Sync)) -> Self {
        Self { env, head, attempt, changed }
    }

    /// The task's id.
    pub fn id(&self) -> TaskId {
        self.head.id()
    }

    /// The task's name.
    pub fn name(&self) -> &str {
        self.head.name()
    }

    /// What the submitter noted under this name.
    pub fn metadata(&self, name: &str) -> Option<&str> {
        let extras = self.head.extras()?;
        extras.metadata.get(name).map(String::as_str)
    }

    /// Which attempt this is; the first is 1.
    pub fn attempt(&self) -> u32 {
        self.attempt.number
    }

    /// The signal that reaches waits and I/O: drain when the manager stops and the task should come to its end, cancel
    /// when the task is cancelled. For [`Shutdown::wait_for`], `select!`, and kicks ([`Shutdown::on`]).
    pub fn signal(&self) -> &Shutdown {
        self.head.signal(&self.env.stop)
    }

    /// Whether the task is cancelled. One that goes on is marked unresponsive after
    /// [`super::TaskConfig::cancel_grace`].
    pub fn is_cancelled(&self) -> bool {
        self.head.is_cancelled()
    }

    /// Why the task is cancelled, if it is.
    pub fn cancelled(&self) -> Option<CancelReason> {
        self.head.cancelled()
    }

    /// Whether the manager stops: the task may finish, but should not begin anything long.
    pub fn is_stopping(&self) -> bool {
        self.env.stop.is_set()
    }

    /// For loops: `cx.check()?` ends the task when it is cancelled.
    ///
    /// # Errors
    /// [`Interrupted`], with the reason.
    pub fn check(&self) -> Result<(), Interrupted> {
        self.cancelled().map_or(Ok(()), |reason| Err(Interrupted(reason)))
    }

    /// Sleeps so long, on the manager's clock, or until the task is cancelled.
    ///
    /// # Errors
    /// [`Interrupted`], with the reason.
    pub fn sleep(&self, duration: Duration) -> Result<(), Interrupted> {
        self.env.clock.wait(self.signal(), Level::Cancel, duration);
        self.check()
    }

    /// Says how far the task has come; more than 100 percent is 100, and a message is truncated after 1 KiB. A sign of
    /// life.
    pub fn progress(&self, percent: u8, message: impl Into<String>) {
        let mut message: String = message.into();
        truncate(&mut message, MESSAGE_BYTES);
        let progress = Progress { percent: percent.min(100), message };
        self.head.set_progress(progress.clone());
        self.heartbeat();
        (self.changed)();
        if let Some(on_progress) = self.head.extras().and_then(|extras| extras.on_progress.as_ref()) {
            tolerated("what follows a task's progress", || on_progress(self.id(), &progress));
        }
    }

    /// A sign of life, for a task with a silence limit.
    pub fn heartbeat(&self) {
        if self.head.extras().is_some_and(|extras| extras.limits.silence.is_some()) {
            self.head.heartbeat(self.env.nanos(self.env.now()));
        }
    }

    /// When the first of its limits ends, in running and in all.
    pub fn deadline(&self) -> Option<Instant> {
        let limits = self.head.extras()?.limits;
        let run = limits.run.and_then(|limit| self.attempt.started.checked_add(limit));
        let submitted = self.env.start + Duration::from_nanos(self.head.submitted());
        let total = limits.total.and_then(|limit| submitted.checked_add(limit));
        run.into_iter().chain(total).min()
    }
}

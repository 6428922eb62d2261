//! A task as whoever submitted it holds it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::TaskError;
use super::info::TaskInfo;
use super::scheduler::Scheduler;
use super::state::{CancelReason, Progress};
use super::store::TaskId;
use super::task::{TaskRef, TypedTask};

/// How often a waiter gives the processor away before it sleeps: a short task ends within the time that a sleep and a
/// wake-up take. Without it, a call takes 1.2 times the processor time.
const YIELDS: usize = 8;

/// Waits for a task and takes its result. Dropping it leaves the task to itself: its result is then dropped when it
/// comes, unless it is kept ([`super::TaskOptions::keep_result`]).
#[must_use = "without its handle nobody sees a task's result"]
pub struct TaskHandle<T, E> {
    scheduler: Arc<Scheduler>,
    task: Arc<dyn TypedTask<T, E>>,
}

impl<T, E> fmt::Debug for TaskHandle<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TaskHandle({})", self.task.head().id())
    }
}

impl<T: 'static, E: 'static> TaskHandle<T, E> {
    pub(super) fn new(scheduler: Arc<Scheduler>, task: Arc<dyn TypedTask<T, E>>) -> Self {
        Self { scheduler, task }
    }

    /// The task's id, for [`super::Tasks`].
    pub fn id(&self) -> TaskId {
        self.task.head().id()
    }

    /// Blocks until the task has ended and gives its result. A stop of the manager ends every task, and so this.
    ///
    /// # Errors
    /// [`TaskError`], never [`TaskError::StillRunning`].
    pub fn wait(self) -> Result<T, TaskError<E>> {
        self.wait_until(None)
    }

    /// Blocks until the task has ended, `timeout` at most, and takes its result.
    ///
    /// # Errors
    /// [`TaskError`]; with [`TaskError::StillRunning`] one may wait again.
    pub fn wait_for(&self, timeout: Duration) -> Result<T, TaskError<E>> {
        self.wait_until(Instant::now().checked_add(timeout))
    }

    fn wait_until(&self, deadline: Option<Instant>) -> Result<T, TaskError<E>> {
        for _ in 0..YIELDS {
            if self.task.has_ended() || deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                break;
            }
            std::thread::yield_now();
        }
        self.task.wait(deadline).into_result(self.task.head(), self.scheduler.config.result_bytes)
    }

    /// Tells the task to end, and why: one that waits ends at once, one that runs sees its signal. The reason, which
    /// may be empty, is in its error and its [`TaskInfo`]. False if it has ended already.
    pub fn cancel(&self, reason: impl Into<String>) -> bool {
        self.cancel_for(&CancelReason::requested(reason))
    }

    pub(super) fn cancel_for(&self, reason: &CancelReason) -> bool {
        let task: TaskRef = self.task.clone();
        self.scheduler.cancel(self.id(), &task, reason)
    }

    /// Whether the task has ended.
    pub fn has_ended(&self) -> bool {
        self.task.has_ended()
    }

    /// How far it has come; nothing before its first word.
    pub fn progress(&self) -> Option<Progress> {
        self.task.head().progress()
    }

    /// What the manager knows of it; `None` once it is forgotten.
    pub fn info(&self) -> Option<TaskInfo> {
        self.scheduler.info(self.id())
    }

    /// Follows its progress: each call of the watch gives the newest, none twice.
    pub fn watch(&self) -> ProgressWatch {
        ProgressWatch { task: self.task.clone(), seen: 0 }
    }
}

impl<T, E> Drop for TaskHandle<T, E> {
    fn drop(&mut self) {
        if self.task.head().keeps_result() {
            return;
        }
        // Dropped here, on the thread of whoever did not want it.
        drop(self.task.abandon());
    }
}

/// The progress of one task, the newest at a time, so that a slow watcher costs nothing.
pub struct ProgressWatch {
    task: TaskRef,
    seen: u32,
}

impl fmt::Debug for ProgressWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProgressWatch({})", self.task.head().id())
    }
}

/// The answer of a [`ProgressWatch`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Watched {
    /// The newest progress.
    Progress(Progress),
    /// The task has ended.
    Ended,
    /// Nothing new within the time.
    Nothing,
}

impl ProgressWatch {
    /// Blocks until there is news or the task has ended, `timeout` at most.
    pub fn next(&mut self, timeout: Duration) -> Watched {
        let deadline = Instant::now() + timeout;
        let before = self.seen;
        let (seen, ended) = self.task.watch(before, deadline);
        self.seen = seen;
        let news = self.task.head().progress();
        match news {
            Some(progress) if seen != before && !ended => Watched::Progress(progress),
            _ if ended => Watched::Ended,
            _ => Watched::Nothing,
        }
    }
}

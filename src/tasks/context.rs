//! What a task is given while it runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::manager::Tasks;
use super::shared::Shared;
use super::state::CancelReason;
use super::store::TaskId;
use super::task::{Job, Progress, tolerated};
use crate::base::shutdown::{Level, Shutdown};

/// Bytes of a progress message that are kept: a line or a few.
const MESSAGE_BYTES: usize = 1024;

/// The task was told to end while it waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("told to end {0}")]
pub struct Interrupted(pub CancelReason);

/// A task's view of itself, while it runs.
pub struct TaskContext<'a> {
    shared: &'a Arc<Shared>,
    job: &'a dyn Job,
}

impl std::fmt::Debug for TaskContext<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskContext").field("id", &self.id()).finish_non_exhaustive()
    }
}

impl<'a> TaskContext<'a> {
    pub(super) fn new(shared: &'a Arc<Shared>, job: &'a dyn Job) -> Self {
        Self { shared, job }
    }

    pub(super) fn now(&self) -> Instant {
        self.shared.config.clock.now()
    }

    pub(super) fn random(&self) -> f64 {
        self.shared.random()
    }

    pub(super) fn result_bytes(&self) -> usize {
        self.shared.config.result_bytes
    }

    /// The task's id.
    pub fn id(&self) -> TaskId {
        self.job.head().id()
    }

    /// The task's name.
    pub fn name(&self) -> &str {
        self.job.head().name()
    }

    /// What the submitter noted under this name.
    pub fn metadata(&self, name: &str) -> Option<&str> {
        let extras = self.job.head().extras()?;
        extras.metadata.get(name).map(String::as_str)
    }

    /// Which attempt this is; the first is 1.
    pub fn attempt(&self) -> u32 {
        self.shared.attempt(self.job)
    }

    /// The signal that reaches waits and I/O: drain when the manager stops and the task should come to its end, cancel when
    /// the task is told to end now. For [`Shutdown::wait_for`], `select!`, and kicks ([`Shutdown::on`]).
    pub fn signal(&self) -> &Shutdown {
        self.job.head().signal(&self.shared.stop)
    }

    /// Whether the task is told to end now. One that goes on is marked unresponsive after
    /// [`super::TaskConfig::cancel_grace`].
    pub fn is_cancelled(&self) -> bool {
        self.job.head().cancelled().is_some()
    }

    /// Why the task is told to end now, if it is.
    pub fn cancelled(&self) -> Option<CancelReason> {
        self.job.head().cancelled()
    }

    /// Whether the manager stops: the task may finish, but should not begin anything long.
    pub fn is_stopping(&self) -> bool {
        self.shared.stop.is_set()
    }

    /// For loops: `cx.check()?` ends the task when it is told to.
    ///
    /// # Errors
    /// [`Interrupted`], with the reason.
    pub fn check(&self) -> Result<(), Interrupted> {
        self.cancelled().map_or(Ok(()), |reason| Err(Interrupted(reason)))
    }

    /// Sleeps so long, on the system's clock, or until the task is told to end.
    ///
    /// # Errors
    /// [`Interrupted`], with the reason.
    pub fn sleep(&self, duration: Duration) -> Result<(), Interrupted> {
        self.signal().wait_for(Level::Cancel, duration);
        self.check()
    }

    /// Says how far the task has come; more than 100 percent is 100, and a message is cut after 1 KiB. A sign of life.
    pub fn progress(&self, percent: u8, message: impl Into<String>) {
        let mut message: String = message.into();
        if message.len() > MESSAGE_BYTES {
            let end = (0..=MESSAGE_BYTES).rev().find(|end| message.is_char_boundary(*end));
            message.truncate(end.unwrap_or_default());
        }
        let head = self.job.head();
        let progress = Progress { percent: percent.min(100), message };
        head.set_progress(progress.clone());
        self.heartbeat();
        self.job.note();
        if let Some(on_progress) = head.extras().and_then(|extras| extras.on_progress.as_ref()) {
            tolerated("what follows a task's progress", || on_progress(self.id(), &progress));
        }
    }

    /// A sign of life, for a task with a silence limit.
    pub fn heartbeat(&self) {
        let head = self.job.head();
        if head.extras().is_some_and(|extras| extras.limits.silence.is_some()) {
            head.show_life(self.shared.nanos(self.now()));
        }
    }

    /// When the first of its limits ends, in running and in all.
    pub fn deadline(&self) -> Option<Instant> {
        self.shared.deadline(self.job)
    }

    /// For work that this task brings about.
    pub fn tasks(&self) -> Tasks {
        Tasks::new(self.shared.clone())
    }
}

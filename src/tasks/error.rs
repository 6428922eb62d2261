//! Why a task was not accepted, was interrupted, or has no result. Pure.

use std::backtrace::Backtrace;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::state::{CancelReason, Limit};

/// Why a task was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The queue is full, and stayed so for as long as the submitter would wait.
    #[error("the queue is full")]
    Full,
    /// The manager stops.
    #[error("the task manager takes no more tasks: it stops")]
    Stopping,
    /// A task with the same unique key waits already; it will do what this one would.
    #[error("a task with the same unique key waits already")]
    Duplicate,
}

/// The task was cancelled while it waited.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cancelled {0}")]
pub struct Interrupted(pub CancelReason);

/// A panic of a task's work.
#[derive(Clone)]
pub struct Panic(Arc<(String, Option<Backtrace>)>);

impl Panic {
    pub(super) fn new(message: String, backtrace: Option<Backtrace>) -> Self {
        Self(Arc::new((message, backtrace)))
    }

    /// The message of the panic.
    pub fn message(&self) -> &str {
        &self.0.0
    }

    /// From where; showing it looks the symbols up, which takes milliseconds. `None` unless the program has called
    /// [`super::keep_backtraces`].
    pub fn backtrace(&self) -> Option<&Backtrace> {
        self.0.1.as_ref()
    }
}

impl fmt::Display for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())
    }
}

impl fmt::Debug for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Panic").field("message", &self.message()).finish_non_exhaustive()
    }
}

/// Why there is no result (yet).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError<E> {
    /// It has not ended within the time that the caller would wait; it goes on.
    #[error("the task has not ended yet")]
    StillRunning,
    /// Its work returned this error.
    #[error("the task failed: {0}")]
    Failed(E),
    /// Its work panicked.
    #[error("the task panicked: {0}")]
    Panicked(Panic),
    /// It exceeded a limit.
    #[error("the task took too long {limit}: more than {after:.1?}")]
    TimedOut {
        /// Which.
        limit: Limit,
        /// The limit itself.
        after: Duration,
    },
    /// It was cancelled.
    #[error("the task was cancelled {0}")]
    Cancelled(CancelReason),
    /// Its result is larger than results may be.
    #[error("the task's result has {bytes} bytes; at most {limit} are kept")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The manager's limit.
        limit: usize,
    },
    /// The result was taken by an earlier wait.
    #[error("the task's result was taken before")]
    Taken,
    /// No task of this id is known: there was none, or it is forgotten.
    #[error("no task of this id is known")]
    Unknown,
    /// The result of this task is not kept for whoever has its id: it was submitted without
    /// [`super::TaskOptions::keep_result`].
    #[error("the task's result is not kept; keep_result() among its options keeps it")]
    NotKept,
    /// The task's result or error is of another type than was asked for; it stays where it is.
    #[error("the task's result is of another type")]
    OtherType,
}

impl<E> TaskError<E> {
    /// Whether the task has ended or is unknown, so that no wait is of use.
    pub fn has_ended(&self) -> bool {
        !matches!(self, Self::StillRunning)
    }
}

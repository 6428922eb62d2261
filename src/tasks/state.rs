//! What a task can be, and which steps are legal. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::base::text::truncate;

/// Bytes of words that are kept of a task, a progress or the reason of a cancel: a line or a few.
pub(super) const MESSAGE_BYTES: usize = 1024;

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum TaskState {
    /// Accepted, and waiting: for its time, for its key, for a worker, or for its next attempt.
    Pending,
    /// On a worker.
    Running,
    /// Ended with a result.
    Completed,
    /// Ended with an error, a panic, or over a limit; [`super::TaskError`] says which.
    Failed,
    /// Ended because somebody asked for it.
    Cancelled,
}

impl TaskState {
    /// All states, in the order of a task's life.
    pub const ALL: [Self; 5] = [Self::Pending, Self::Running, Self::Completed, Self::Failed, Self::Cancelled];

    /// Whether the task has ended; such a state is final.
    pub fn is_terminal(self) -> bool {
        !matches!(self, Self::Pending | Self::Running)
    }

    /// Whether a task in this state may step into that one: forward, or from running back to pending for another
    /// attempt.
    pub fn may_become(self, next: Self) -> bool {
        match self {
            Self::Pending => matches!(next, Self::Running | Self::Failed | Self::Cancelled),
            Self::Running => next != Self::Running,
            Self::Completed | Self::Failed | Self::Cancelled => false,
        }
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pending => "PENDING",
            Self::Running => "RUNNING",
            Self::Completed => "COMPLETED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
        })
    }
}

/// A limit in time that a task can exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Limit {
    /// From being due to the first start.
    Queue,
    /// Of one attempt.
    Run,
    /// From being accepted to the end, with all waits and attempts.
    Total,
    /// Without a sign of life while it runs: progress or a heartbeat.
    Silence,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Queue => "waiting for a worker",
            Self::Run => "running",
            Self::Total => "in all",
            Self::Silence => "without a sign of life",
        })
    }
}

/// Why a task was cancelled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CancelReason {
    /// Somebody asked for it, for this reason; it may be empty.
    Requested(String),
    /// Another task of its group has failed.
    Group,
    /// The manager stops, and the time to finish is over.
    Stopping,
    /// It has exceeded this limit; its end is then [`super::TaskError::TimedOut`].
    Limit(Limit),
}

impl CancelReason {
    /// On request; of the reason 1 KiB is kept.
    pub(super) fn requested(reason: impl Into<String>) -> Self {
        let mut reason = reason.into();
        truncate(&mut reason, MESSAGE_BYTES);
        Self::Requested(reason)
    }

    /// The state in which a task ends for this reason.
    pub(super) fn end_state(&self) -> TaskState {
        match self {
            Self::Limit(_) => TaskState::Failed,
            _ => TaskState::Cancelled,
        }
    }

    /// What is noted as the error of a task that ended for this reason.
    pub(super) fn error_text(&self) -> String {
        match self {
            Self::Limit(limit) => format!("took too long {limit}"),
            reason => format!("cancelled {reason}"),
        }
    }
}

impl fmt::Display for CancelReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requested(reason) if reason.is_empty() => f.write_str("on request"),
            Self::Requested(reason) => write!(f, "on request: {reason}"),
            Self::Group => f.write_str("because another task of its group failed"),
            Self::Stopping => f.write_str("because the task manager stopped"),
            Self::Limit(limit) => write!(f, "because it took too long {limit}"),
        }
    }
}

/// How far a task has come.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// 0 to 100.
    pub percent: u8,
    /// What it does just now.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn only_legal_steps_are_taken_and_a_terminal_state_is_final() {
        use TaskState::*;
        let legal: Vec<_> = TaskState::ALL
            .into_iter()
            .flat_map(|from| {
                TaskState::ALL.into_iter().filter(move |to| from.may_become(*to)).map(move |to| (from, to))
            })
            .collect();
        assert_eq!(
            legal,
            [
                (Pending, Running),
                (Pending, Failed),
                (Pending, Cancelled),
                (Running, Pending),
                (Running, Completed),
                (Running, Failed),
                (Running, Cancelled),
            ]
        );
        // The picture shows the same.
        let picture = include_str!("../../docs/states.md").lines().filter_map(|line| line.trim().split_once(" --> "));
        let state = |name: &str| TaskState::ALL.into_iter().find(|state| state.to_string() == name);
        let shown: BTreeSet<_> =
            picture.filter_map(|(from, to)| Some((state(from)?, state(to.split(':').next().unwrap_or(to))?))).collect();
        assert_eq!(shown, legal.iter().copied().collect());
        assert!(
            TaskState::ALL
                .into_iter()
                .filter(|state| state.is_terminal())
                .all(|state| !legal.iter().any(|(from, _)| *from == state))
        );
    }
}

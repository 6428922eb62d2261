//! The results of a canvas, for whoever waits for them.

use std::time::{Duration, Instant};

use super::entry::Outcome;
use super::results::PendingResult;
use crate::celery::canvas::Frozen;

/// The result of a canvas: of a chain's last task, of a chord's body, or those of a group.
#[derive(Debug, Clone)]
pub enum CanvasResult {
    /// Of one task.
    One(PendingResult),
    /// Of a group.
    Group(GroupResult),
}

/// The results of a group, in its order; clones are the same.
#[derive(Debug, Clone)]
pub struct GroupResult {
    pub(super) id: String,
    pub(super) parts: Vec<CanvasResult>,
}

impl CanvasResult {
    /// The id of the task or the group.
    pub fn id(&self) -> &str {
        match self {
            Self::One(pending) => pending.id(),
            Self::Group(group) => group.id(),
        }
    }

    /// Waits for its end, and gives its value; of a group the list of all.
    ///
    /// Blocks for `time` at most; a stop of the client ends the wait.
    ///
    /// # Errors
    /// [`TaskError`](super::error::TaskError): of a group that of the first in its order that has one.
    pub fn wait(&self, time: Duration) -> Outcome {
        self.wait_by(Instant::now() + time)
    }

    /// As [`CanvasResult::wait`], until a moment.
    ///
    /// # Errors
    /// [`TaskError`](super::error::TaskError).
    pub fn wait_by(&self, deadline: Instant) -> Outcome {
        match self {
            Self::One(pending) => pending.wait_by(deadline),
            Self::Group(group) => group.parts.iter().map(|part| part.wait_by(deadline)).collect(),
        }
    }

    /// How many of its tasks have ended, as far as we know, and how many there are. Asks nobody.
    pub fn ended(&self) -> (usize, usize) {
        match self {
            Self::One(pending) => (usize::from(pending.outcome().is_some()), 1),
            Self::Group(group) => {
                let all = group.parts.iter().map(Self::ended);
                all.fold((0, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1))
            }
        }
    }

    fn frozen(&self) -> Frozen {
        match self {
            Self::One(pending) => Frozen::One(pending.id().to_owned()),
            Self::Group(group) => group.frozen(),
        }
    }
}

impl GroupResult {
    /// The id of the group.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The results of its tasks.
    pub fn parts(&self) -> &[CanvasResult] {
        &self.parts
    }

    pub(super) fn frozen(&self) -> Frozen {
        Frozen::Many(self.id.clone(), self.parts.iter().map(CanvasResult::frozen).collect())
    }
}

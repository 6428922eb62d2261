//! Why there is no value of a task.

use std::time::Duration;

use crate::celery::meta::{Exception, MetaError, ResultState};
use crate::ops::errors::ErrorClass;

/// Why there is no value of a task.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// It raised an exception.
    #[error("{}: {}", exception.exc_type, exception.message())]
    Failed {
        /// The exception.
        exception: Box<Exception>,
        /// Its stack, as Python shows it.
        traceback: Option<String>,
    },
    /// It was revoked, or came too late.
    #[error("it was revoked: {reason}")]
    Revoked {
        /// `revoked`, `terminated` or `expired`.
        reason: String,
    },
    /// It has not ended in time. It can be waited for again.
    #[error("it has not ended within {waited:.1?}; it is {state}")]
    TimedOut {
        /// For how long it was waited.
        waited: Duration,
        /// The last that was received. [`ResultState::Pending`] also means that nothing is known of it.
        state: ResultState,
    },
    /// It has not ended in time, and what had been known of it is gone from Redis: expired, forgotten or lost.
    #[error("nothing is known of it any more; it was {state}")]
    Expired {
        /// The last that was received.
        state: ResultState,
    },
    /// It was sent with `ignore_result`, so there never will be one.
    #[error("it was sent without a wish for its result")]
    Ignored,
    /// It was never sent.
    #[error("it was not sent: {0}")]
    NotSent(String),
    /// What is stored is no result.
    #[error("{0}")]
    Unreadable(#[from] MetaError),
    /// The client was stopped. The task goes on; another client can wait for it by its id.
    #[error("the Celery client was stopped")]
    Stopped,
}

impl TaskError {
    /// What a loop does about it.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Failed { .. } | Self::Expired { .. } | Self::Ignored | Self::Unreadable(_) => ErrorClass::Rejected,
            Self::TimedOut { .. } | Self::NotSent(_) => ErrorClass::Retry,
            Self::Revoked { .. } | Self::Stopped => ErrorClass::Cancelled,
        }
    }
}

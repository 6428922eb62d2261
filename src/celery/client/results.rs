//! The result of a task, for whoever waits for it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::entry::{OnUpdate, Outcome, ResultEntry};
use super::error::TaskError;
use super::shared::ClientShared;
use crate::base::lock::{lock, wait_timeout};
use crate::base::waits::waiting_unless_noted;
use crate::celery::meta::{Meta, ResultState};
use crate::redis::RedisError;

/// The result of a task, now or later; clones are the same. When the last one is dropped, nobody looks for it any more,
/// unless somebody asked to be notified.
pub struct PendingResult {
    pub(super) entry: Arc<ResultEntry>,
    pub(super) client: Arc<ClientShared>,
}

impl PendingResult {
    /// The task's id.
    pub fn id(&self) -> &str {
        &self.entry.id
    }

    /// Waits for the end of the task, through all its retries, and gives its value.
    ///
    /// Blocks for `time` at most; a stop of the client ends the wait.
    ///
    /// # Errors
    /// [`TaskError`].
    pub fn wait(&self, time: Duration) -> Outcome {
        self.wait_by(Instant::now() + time)
    }

    /// As [`PendingResult::wait`], until a moment.
    ///
    /// # Errors
    /// [`TaskError`].
    pub fn wait_by(&self, deadline: Instant) -> Outcome {
        let start = Instant::now();
        let mut known = lock(&self.entry.known);
        loop {
            if let Some(outcome) = &known.outcome {
                let outcome = outcome.clone();
                drop(known);
                // A large value is not copied under the lock.
                return (*outcome).clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let state = known.last.as_ref().map_or(ResultState::Pending, |meta| meta.state.clone());
                return Err(match known.gone {
                    true => TaskError::Expired { state },
                    false => TaskError::TimedOut { waited: start.elapsed(), state },
                });
            }
            let _waiting = waiting_unless_noted("the end of a Celery task", Some(deadline));
            known = wait_timeout(&self.entry.changed, known, left);
        }
    }

    /// What became of it, if it has ended as far as we know.
    pub fn outcome(&self) -> Option<Outcome> {
        let outcome = lock(&self.entry.known).outcome.clone();
        outcome.map(|outcome| (*outcome).clone())
    }

    /// The last known state; asks nobody.
    pub fn state(&self) -> ResultState {
        self.entry.state()
    }

    /// What was received last while it had not ended, as the progress that it reported.
    pub fn news(&self) -> Option<Meta> {
        lock(&self.entry.known).last.clone()
    }

    /// Asks Redis for what is stored now; `None` if nothing is.
    ///
    /// Blocks until `deadline` at most.
    ///
    /// # Errors
    /// [`RedisError`]; [`RedisError::Reply`] if what is stored is no result.
    pub fn fetch(&self, deadline: Instant) -> Result<Option<Meta>, RedisError> {
        self.client.fetch(self.id(), deadline)
    }

    /// Calls `notify` with the outcome once it is there; at once if it is. It runs on a thread of the client, so it
    /// must be quick and must not panic.
    pub fn on_end(&self, notify: impl FnOnce(&Outcome) + Send + 'static) {
        let outcome = {
            let mut known = lock(&self.entry.known);
            match known.outcome.clone() {
                Some(outcome) => outcome,
                None => {
                    known.on_end.push(Box::new(notify));
                    return;
                }
            }
        };
        notify(&outcome);
    }

    /// Calls `notify` with each state that is no end (`STARTED`, `PROGRESS`, `RETRY`), also the last one that there
    /// was. As for [`PendingResult::on_end`]; states that follow each other quickly may be missed, as those while there
    /// is no connection.
    pub fn on_update(&self, notify: impl Fn(&Meta) + Send + Sync + 'static) {
        let notify: OnUpdate = Arc::new(notify);
        let last = {
            let mut known = lock(&self.entry.known);
            if known.outcome.is_some() {
                return;
            }
            known.on_update.push(notify.clone());
            known.last.clone()
        };
        if let Some(meta) = last {
            notify(&meta);
        }
    }

    /// Removes what is stored of it; whoever waits for it finds nothing. The task itself goes on.
    ///
    /// Blocks until `deadline` at most.
    ///
    /// # Errors
    /// [`RedisError`].
    pub fn forget(&self, deadline: Instant) -> Result<(), RedisError> {
        self.client.forget(self.id(), deadline)
    }

    /// Nobody is notified of it any more; what was stored stays.
    pub fn unfollow(self) {
        {
            let mut known = lock(&self.entry.known);
            known.on_end.clear();
            known.on_update.clear();
        }
        drop(self);
    }
}

impl Clone for PendingResult {
    fn clone(&self) -> Self {
        self.client.use_again(&self.entry);
        Self { entry: self.entry.clone(), client: self.client.clone() }
    }
}

impl Drop for PendingResult {
    fn drop(&mut self) {
        self.client.unused(&self.entry);
    }
}

impl fmt::Debug for PendingResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PendingResult({} {})", self.id(), self.state())
    }
}

//! What is known of a task that is waited for.

use std::sync::{Arc, Condvar, Mutex};

use serde_json::Value;

use super::error::TaskError;
use crate::base::lock::lock;
use crate::celery::meta::{Exception, Meta, ResultState};

/// What became of a task.
pub type Outcome = Result<Value, TaskError>;

pub(super) type OnEnd = Box<dyn FnOnce(&Outcome) + Send>;
pub(super) type OnUpdate = Arc<dyn Fn(&Meta) + Send + Sync>;

/// One task that is waited for.
pub(super) struct ResultEntry {
    pub id: String,
    pub known: Mutex<KnownResult>,
    pub changed: Condvar,
}

#[derive(Default)]
pub(super) struct KnownResult {
    pub last: Option<Meta>,
    /// What the last look found: news if the next one finds the same, for until then its notification may be on the
    /// way, and older ones before it.
    pub looked: Option<Meta>,
    /// What was known is gone from Redis.
    pub gone: bool,
    /// Counts what was received, so that what was looked up before does not overwrite it.
    pub received: u64,
    pub outcome: Option<Arc<Outcome>>,
    pub on_end: Vec<OnEnd>,
    pub on_update: Vec<OnUpdate>,
}

impl ResultEntry {
    pub(super) fn new(id: &str) -> Self {
        Self { id: id.to_owned(), known: Mutex::default(), changed: Condvar::new() }
    }

    /// How much was received so far.
    pub(super) fn received(&self) -> u64 {
        lock(&self.known).received
    }

    /// Takes news in; those that were looked up when `since` was received are older than what was received later. Says
    /// whether the task has ended.
    pub(super) fn learn(&self, meta: Meta, since: Option<u64>) -> bool {
        if meta.state.is_ready() {
            self.end(outcome_of(meta));
            return true;
        }
        let notified = {
            let mut known = lock(&self.known);
            if known.outcome.is_some() {
                return true;
            }
            let looked = known.looked.take();
            if since.is_some_and(|since| since != known.received) || known.last.as_ref() == Some(&meta) {
                return false;
            }
            if since.is_some() && looked.as_ref() != Some(&meta) {
                known.looked = Some(meta);
                return false;
            }
            known.received += 1;
            known.gone = false;
            known.last = Some(meta.clone());
            known.on_update.clone()
        };
        self.changed.notify_all();
        for notify in notified {
            notify(&meta);
        }
        false
    }

    /// Whether a look found what only another look makes news.
    pub(super) fn wants_second_look(&self) -> bool {
        let known = lock(&self.known);
        known.looked.is_some() && known.outcome.is_none()
    }

    /// Nothing is stored, as a look says that began when `since` was received.
    pub(super) fn absent(&self, since: u64) {
        let mut known = lock(&self.known);
        known.looked = None;
        known.gone = known.last.is_some() && known.received == since;
    }

    /// Its end, unless there was one.
    pub(super) fn end(&self, outcome: Outcome) {
        let (outcome, notified) = {
            let mut known = lock(&self.known);
            if known.outcome.is_some() {
                return;
            }
            let outcome = Arc::new(outcome);
            known.outcome = Some(outcome.clone());
            known.on_update.clear();
            (outcome, std::mem::take(&mut known.on_end))
        };
        self.changed.notify_all();
        for notify in notified {
            notify(&outcome);
        }
    }

    pub(super) fn has_hooks(&self) -> bool {
        let known = lock(&self.known);
        !known.on_end.is_empty() || !known.on_update.is_empty()
    }

    pub(super) fn state(&self) -> ResultState {
        let known = lock(&self.known);
        match known.outcome.as_deref() {
            Some(Ok(_)) => ResultState::Success,
            Some(Err(TaskError::Failed { .. })) => ResultState::Failure,
            Some(Err(TaskError::Revoked { .. })) => ResultState::Revoked,
            _ => known.last.as_ref().map_or(ResultState::Pending, |meta| meta.state.clone()),
        }
    }
}

fn outcome_of(meta: Meta) -> Outcome {
    match (&meta.state, meta.exception()) {
        (ResultState::Success, _) => Ok(meta.result),
        (ResultState::Revoked, exception) => {
            Err(TaskError::Revoked { reason: exception.map_or_else(String::new, |e| e.message()) })
        }
        (_, exception) => {
            let exception = exception.unwrap_or_else(|| Exception::new("builtins", "Exception", ""));
            Err(TaskError::Failed { exception: Box::new(exception), traceback: meta.traceback })
        }
    }
}

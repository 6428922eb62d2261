//! What is known of the tasks that are waited for.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::CeleryHandle;
use super::error::TaskError;
use crate::base::lock::{lock, wait_timeout};
use crate::base::waits::waiting_unless_said;
use crate::celery::meta::{Exception, Meta, State};
use crate::redis::RedisError;

/// What became of a task.
pub type Outcome = Result<Value, TaskError>;

type OnEnd = Box<dyn FnOnce(&Outcome) + Send>;
type OnUpdate = Arc<dyn Fn(&Meta) + Send + Sync>;

/// One task that is waited for.
pub(super) struct Entry {
    pub id: String,
    known: Mutex<Known>,
    changed: Condvar,
}

#[derive(Default)]
struct Known {
    last: Option<Meta>,
    /// What the last look found: news if the next one finds the same, for until then its notification may be on the way, and
    /// older ones before it.
    looked: Option<Meta>,
    /// What was known is gone from Redis.
    gone: bool,
    /// Counts what was heard, so that what was looked up before does not overwrite it.
    heard: u64,
    outcome: Option<Arc<Outcome>>,
    on_end: Vec<OnEnd>,
    on_update: Vec<OnUpdate>,
}

impl Entry {
    pub fn new(id: &str) -> Self {
        Self { id: id.to_owned(), known: Mutex::default(), changed: Condvar::new() }
    }

    /// How much was heard so far.
    pub fn heard(&self) -> u64 {
        lock(&self.known).heard
    }

    /// Takes news in; those that were looked up when `since` was heard are older than what was heard later. Says whether the
    /// task has ended.
    pub fn learn(&self, meta: Meta, since: Option<u64>) -> bool {
        if meta.state.is_ready() {
            self.end(outcome_of(meta));
            return true;
        }
        let told = {
            let mut known = lock(&self.known);
            if known.outcome.is_some() {
                return true;
            }
            let looked = known.looked.take();
            if since.is_some_and(|since| since != known.heard) || known.last.as_ref() == Some(&meta) {
                return false;
            }
            if since.is_some() && looked.as_ref() != Some(&meta) {
                known.looked = Some(meta);
                return false;
            }
            known.heard += 1;
            known.gone = false;
            known.last = Some(meta.clone());
            known.on_update.clone()
        };
        self.changed.notify_all();
        for tell in told {
            tell(&meta);
        }
        false
    }

    /// Whether a look found what only another look makes news.
    pub fn wants_second_look(&self) -> bool {
        let known = lock(&self.known);
        known.looked.is_some() && known.outcome.is_none()
    }

    /// Nothing is stored, as a look says that began when `since` was heard.
    pub fn absent(&self, since: u64) {
        let mut known = lock(&self.known);
        known.looked = None;
        known.gone = known.last.is_some() && known.heard == since;
    }

    /// Its end, unless there was one.
    pub fn end(&self, outcome: Outcome) {
        let (outcome, told) = {
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
        for tell in told {
            tell(&outcome);
        }
    }

    fn has_hooks(&self) -> bool {
        let known = lock(&self.known);
        !known.on_end.is_empty() || !known.on_update.is_empty()
    }

    fn state(&self) -> State {
        let known = lock(&self.known);
        match known.outcome.as_deref() {
            Some(Ok(_)) => State::Success,
            Some(Err(TaskError::Failed { .. })) => State::Failure,
            Some(Err(TaskError::Revoked { .. })) => State::Revoked,
            _ => known.last.as_ref().map_or(State::Pending, |meta| meta.state.clone()),
        }
    }
}

fn outcome_of(meta: Meta) -> Outcome {
    match (&meta.state, meta.exception()) {
        (State::Success, _) => Ok(meta.result),
        (State::Revoked, exception) => {
            Err(TaskError::Revoked { reason: exception.map_or_else(String::new, |e| e.message()) })
        }
        (_, exception) => {
            let exception = exception.unwrap_or_else(|| Exception::new("builtins", "Exception", ""));
            Err(TaskError::Failed { exception: Box::new(exception), traceback: meta.traceback })
        }
    }
}

/// The result of a task, now or later; clones are the same. When the last one is dropped, nobody looks for it any more,
/// unless somebody asked to be told.
pub struct PendingResult {
    pub(super) entry: Arc<Entry>,
    pub(super) client: CeleryHandle,
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
                let state = known.last.as_ref().map_or(State::Pending, |meta| meta.state.clone());
                return Err(match known.gone {
                    true => TaskError::Expired { state },
                    false => TaskError::TimedOut { waited: start.elapsed(), state },
                });
            }
            let _waiting = waiting_unless_said("the end of a Celery task", Some(deadline));
            known = wait_timeout(&self.entry.changed, known, left);
        }
    }

    /// What became of it, if it has ended as far as we know.
    pub fn outcome(&self) -> Option<Outcome> {
        let outcome = lock(&self.entry.known).outcome.clone();
        outcome.map(|outcome| (*outcome).clone())
    }

    /// The state that was heard of last; asks nobody.
    pub fn state(&self) -> State {
        self.entry.state()
    }

    /// What was heard last while it had not ended, as the progress that it told.
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

    /// Calls `tell` with the outcome once it is there; at once if it is. It runs on a thread of the client, so it must be quick
    /// and must not panic.
    pub fn on_end(&self, tell: impl FnOnce(&Outcome) + Send + 'static) {
        let outcome = {
            let mut known = lock(&self.entry.known);
            match known.outcome.clone() {
                Some(outcome) => outcome,
                None => {
                    known.on_end.push(Box::new(tell));
                    return;
                }
            }
        };
        tell(&outcome);
    }

    /// Calls `tell` with each state that is no end (`STARTED`, `PROGRESS`, `RETRY`), also the last one that there was. As for
    /// [`PendingResult::on_end`]; states that follow each other quickly may be missed, as those while there is no connection.
    pub fn on_update(&self, tell: impl Fn(&Meta) + Send + Sync + 'static) {
        let tell: OnUpdate = Arc::new(tell);
        let last = {
            let mut known = lock(&self.entry.known);
            if known.outcome.is_some() {
                return;
            }
            known.on_update.push(tell.clone());
            known.last.clone()
        };
        if let Some(meta) = last {
            tell(&meta);
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

    /// Nobody is told of it any more; what was stored stays.
    pub fn let_go(self) {
        {
            let mut known = lock(&self.entry.known);
            known.on_end.clear();
            known.on_update.clear();
        }
        drop(self);
    }

    pub(super) fn has_hooks(&self) -> bool {
        self.entry.has_hooks()
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
        self.client.unused(self);
    }
}

impl fmt::Debug for PendingResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PendingResult({} {})", self.id(), self.state())
    }
}

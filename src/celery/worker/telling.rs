//! What a worker tells those who watch: that it is there, and what becomes of its tasks. On the threads of its callers
//! and of the timer; nothing blocks.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::core::Core;
use super::outcome::{self, Op, Outcome};
use crate::base::lock::lock;
use crate::celery::envelope::Envelope;
use crate::celery::event::{Event, Vitals};
use crate::celery::message::TaskMessage;
use crate::celery::meta::{Exception, ResultState};
use crate::celery::repr;

/// What is told of the end of a task, kept while its outcome is settled: that decides what the end is.
pub(super) enum End {
    /// It has returned this, as it is shown.
    Value(String),
    /// It has failed with this and its traceback, for good or not.
    Thrown(Exception, Option<String>),
    /// It was called off, for this reason.
    Revoked(&'static str),
    /// Celery tells nothing of it.
    Untold,
}

impl End {
    /// What `outcome` of a task of this name may become.
    pub(super) fn of(outcome: &Outcome, task: &str) -> Self {
        match outcome {
            Outcome::Success(value) | Outcome::Calls(value, _) => Self::Value(repr::value(value)),
            Outcome::Failure(exception, traceback) => Self::Thrown(exception.clone(), traceback.clone()),
            Outcome::Retry { exception, .. } => Self::Thrown(exception.clone(), None),
            Outcome::Unknown => Self::Thrown(Exception::new("celery.exceptions", "NotRegistered", task), None),
            Outcome::Revoked(reason) => Self::Revoked(reason),
            Outcome::Ignored | Outcome::Replaced(_) => Self::Untold,
        }
    }

    /// The event of a task that is in this state now, for this reason.
    pub(super) fn event(self, id: &str, state: &ResultState, why: &str, runtime: Option<f64>) -> Option<Event> {
        Some(match self {
            Self::Untold => return None,
            Self::Revoked(reason) => Event::revoked(id, reason),
            Self::Value(value) if *state == ResultState::Success => Event::succeeded(id, &value, runtime),
            // There is a value, but it could not be stored.
            Self::Value(_) => Event::failed(id, &Exception::new("builtins", "OverflowError", why), None),
            Self::Thrown(exception, _) if *state == ResultState::Retry => Event::retried(id, &exception),
            Self::Thrown(exception, _) if exception == outcome::rejection() => Event::rejected(id, false),
            Self::Thrown(exception, traceback) => Event::failed(id, &exception, traceback.as_deref()),
        })
    }
}

impl Core {
    /// Tells what became of a task of this name, if somebody wants to know.
    pub(super) fn tell(&self, task: &str, event: impl FnOnce() -> Event) {
        if self.task_events.load(Ordering::Relaxed) && self.policies.of(task).options().send_events {
            self.events.put(event());
        }
    }

    /// What is told of the tasks that are sent with these operations, if the application wants it.
    pub(super) fn events_of_sent<'a>(&self, ops: impl Iterator<Item = &'a Op>) -> Vec<Event> {
        if !self.config.app.task_send_sent_event {
            return Vec::new();
        }
        let sent = |text: &str| {
            let message = Envelope::read(text.as_bytes()).and_then(|sent| TaskMessage::read_in(&sent, &self.zone));
            // It was written here a moment ago.
            Some(Event::sent(&message.ok()?))
        };
        ops.flat_map(Op::messages).filter_map(sent).collect()
    }

    /// Tells of the worker: `worker-online`, `worker-heartbeat` or `worker-offline`.
    pub(super) fn tell_of_itself(&self, kind: &'static str) {
        let freq = self.config.heartbeat_interval.as_secs_f64();
        if freq == 0.0 {
            return;
        }
        // In parts of 65,536.
        let load = rustix::system::sysinfo().loads.map(|load| load as f64 / 65_536.0);
        let (active, processed) = (self.busy.load(Ordering::Relaxed), self.totals.all_begun());
        self.events.publish(Event::worker(kind, &Vitals { freq, active, processed, load }));
    }
}

/// Publishes a heartbeat now and each interval later, until the worker ends; none while it is not connected.
pub(super) fn heartbeats(core: &Arc<Core>) {
    if core.ending.is_set() || core.config.heartbeat_interval.is_zero() {
        return;
    }
    let next = core.at(Instant::now() + core.config.heartbeat_interval, heartbeats);
    let old = lock(&core.heartbeat).replace(next);
    drop(old);
    if core.consuming.load(Ordering::SeqCst) {
        core.tell_of_itself("worker-heartbeat");
    }
}

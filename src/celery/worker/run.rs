//! One run of a handler: what it is given, and what ends it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::core::Core;
use super::held::Stage;
use super::outcome::{self, Outcome, complete};
use super::registry::{Args, TaskError, exception};
use super::scripts::STATE;
use crate::base::lock::lock;
use crate::base::shutdown::{Level, Shutdown};
use crate::base::thread::panic_message;
use crate::base::timer::Alarm;
use crate::celery::{Exception, Meta, TaskMessage, meta_key};
use crate::redis::{Repeat, Request};

/// Why a run was told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Its soft time limit is over: it should end by itself.
    SoftLimit,
    /// Its time limit is over: its failure is stored already.
    HardLimit,
    /// It was revoked: that is stored already.
    Revoked,
    /// The worker stops: the task goes back to its queue.
    Stopping,
}

/// One run.
pub struct Run {
    core: Weak<Core>,
    pub tag: String,
    pub message: Arc<TaskMessage>,
    /// Drain: end soon (the soft time limit). Cancel: end now.
    pub signal: Shutdown,
    pub why: Mutex<Option<Why>>,
    /// When it was handed to a thread.
    pub since: Instant,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    last: Option<Value>,
    /// Is on its way to Redis.
    sent: bool,
    /// A newer one is to follow.
    newer: bool,
}

impl Run {
    pub fn new(core: &Arc<Core>, tag: &str, message: Arc<TaskMessage>) -> Arc<Self> {
        Arc::new(Self {
            core: Arc::downgrade(core),
            tag: tag.to_owned(),
            message,
            signal: Shutdown::new(),
            why: Mutex::default(),
            since: Instant::now(),
            progress: Mutex::default(),
        })
    }

    /// Tells the handler to end. The first reason counts, but a soft limit gives way to all others.
    pub fn end(&self, why: Why) {
        {
            let mut reason = lock(&self.why);
            if reason.is_none() || *reason == Some(Why::SoftLimit) {
                *reason = Some(why);
            }
        }
        self.signal.raise(if why == Why::SoftLimit { Level::Drain } else { Level::Cancel });
    }

    /// What it has told of its progress.
    pub fn told(&self) -> Option<Value> {
        lock(&self.progress).last.clone()
    }

    /// Runs the handler on the calling thread and settles the message.
    pub fn execute(self: Arc<Self>) {
        let Some(core) = self.core.upgrade() else { return };
        let message = self.message.clone();
        if message.expires.is_some_and(|expires| expires < Core::now()) {
            core.conclude(&self.tag, Outcome::Revoked("expired"));
            return;
        }
        // A stop that finds a task running finds it counted as well.
        core.busy.fetch_add(1, Ordering::SeqCst);
        let _busy = Busy(core.clone());
        {
            let mut held = lock(&core.held);
            // It was settled or given back while it waited.
            if !held.advance(&self.tag, Stage::Waiting, Stage::Running) {
                return;
            }
            if let Some(entry) = held.get_mut(&self.tag) {
                entry.item.run = Some(self.clone());
            }
        }
        core.totals.begun(&message.task);
        let _limits = self.limits(&core);
        if core.config.track_started && message.ignore_result != Some(true) {
            let meta = Meta::started(&message.id, std::process::id(), &core.config.hostname);
            self.store_state(&core, meta, |_| {});
        }
        let cx = TaskCx { run: self.clone() };
        let args = Args { positional: message.args.clone(), named: message.kwargs.clone() };
        let begun = Instant::now();
        let result = match core.registry.get(&message.task) {
            Some(handler) => catch_unwind(AssertUnwindSafe(|| handler(&cx, args))),
            None => Ok(Err(Exception::new("celery.exceptions", "NotRegistered", &*message.task).into())),
        };
        let outcome = match result {
            Ok(Ok(value)) => Some(Outcome::Success(value)),
            Ok(Err(TaskError::Cancelled)) => self.cancelled(),
            Ok(Err(TaskError::Reject { requeue: true })) => {
                core.give_back(&self.tag, false);
                return;
            }
            Ok(Err(error)) => outcome::of_error(error, &message, &core.config.hostname),
            Err(payload) => {
                let text = panic_message(payload.as_ref());
                let traceback = format!("the handler panicked: {text}\n  in {}[{}]\n", message.task, message.id);
                Some(Outcome::Failure(exception("Panicked", text), Some(traceback)))
            }
        };
        log::debug!("task {}[{}] ended after {:.3?}", message.task, message.id, begun.elapsed());
        match outcome {
            Some(outcome) => core.conclude(&self.tag, outcome),
            None => {
                core.give_back(&self.tag, true);
            }
        }
    }

    /// What it means that the handler ended because it was told to; `None` if the task goes back to its queue.
    fn cancelled(&self) -> Option<Outcome> {
        match *lock(&self.why) {
            Some(Why::Stopping) => None,
            Some(Why::SoftLimit) => {
                let seconds = self.message.soft_time_limit.unwrap_or(0.0);
                let exception = Exception::new("billiard.exceptions", "SoftTimeLimitExceeded", seconds.to_string());
                Some(Outcome::Failure(exception, None))
            }
            // Settled already; this comes too late.
            Some(Why::HardLimit | Why::Revoked) => Some(Outcome::Ignored),
            None => {
                Some(Outcome::Failure(exception("Cancelled", "the handler says it was cancelled, but was not"), None))
            }
        }
    }

    fn limits(self: &Arc<Self>, core: &Arc<Core>) -> Vec<Alarm> {
        let at = |seconds: Option<f64>| {
            let limit = Duration::try_from_secs_f64(seconds?).ok().filter(|limit| !limit.is_zero())?;
            Instant::now().checked_add(limit)
        };
        let mut alarms = Vec::new();
        if let Some(when) = at(self.message.soft_time_limit) {
            let run = Arc::downgrade(self);
            alarms.push(core.timer.at(when, move || {
                if let Some(run) = run.upgrade() {
                    log::warn!("task {}[{}] is over its soft time limit", run.message.task, run.message.id);
                    run.end(Why::SoftLimit);
                }
            }));
        }
        if let Some(when) = at(self.message.time_limit) {
            let (run, core) = (Arc::downgrade(self), Arc::downgrade(core));
            alarms.push(core_timer(&core, when, move |core| {
                if let Some(run) = run.upgrade() {
                    let limit = run.message.time_limit.unwrap_or(0.0);
                    log::error!("task {}[{}] is over its time limit of {limit} s", run.message.task, run.message.id);
                    let exception = Exception::new("billiard.exceptions", "TimeLimitExceeded", limit.to_string());
                    core.conclude(&run.tag, Outcome::Failure(exception, None));
                    run.end(Why::HardLimit);
                }
            }));
        }
        alarms
    }

    /// Stores a state on the way, as long as the message is ours.
    fn store_state(&self, core: &Arc<Core>, mut meta: Meta, then: impl FnOnce(&Arc<Core>) + Send + 'static) {
        complete(&self.message, &mut meta);
        let keys = [core.keys.held.as_str(), &meta_key(&self.message.id)];
        let args = (self.tag.as_str(), meta.write(), core.config.expires_seconds());
        let request = Request::new(Repeat::Idempotent, core.patience()).script(&STATE, &keys, &args);
        let (weak, id) = (Arc::downgrade(core), self.message.id.clone());
        let sent = core.commands.submit(request, move |answer| {
            if let Err(error) = answer {
                log::warn!("the state of task {id} is not stored: {error}");
            }
            if let Some(core) = weak.upgrade() {
                then(&core);
            }
        });
        if let Err(error) = sent {
            log::warn!("the state of task {} is not stored: {error}", self.message.id);
        }
    }

    /// Sends the newest progress, one at a time: a handler that tells a thousand a second costs Redis no more than it can take.
    fn send_progress(self: &Arc<Self>, core: &Arc<Core>) {
        let value = {
            let mut progress = lock(&self.progress);
            if progress.sent {
                progress.newer = true;
                return;
            }
            (progress.sent, progress.newer) = (true, false);
            progress.last.clone().unwrap_or(Value::Null)
        };
        let run = Arc::downgrade(self);
        self.store_state(core, Meta::progress(&self.message.id, value), move |core| {
            let Some(run) = run.upgrade() else { return };
            let newer = {
                let mut progress = lock(&run.progress);
                progress.sent = false;
                progress.newer
            };
            if newer {
                run.send_progress(core);
            }
        });
    }
}

/// An action on the timer's thread, unless the worker has gone.
pub fn core_timer(core: &Weak<Core>, when: Instant, action: impl FnOnce(&Arc<Core>) + Send + 'static) -> Alarm {
    let weak = core.clone();
    let timer = core.upgrade().expect("its caller holds the core").timer.clone();
    timer.at(when, move || {
        if let Some(core) = weak.upgrade() {
            action(&core);
        }
    })
}

struct Busy(Arc<Core>);

impl Drop for Busy {
    fn drop(&mut self) {
        // The stop waits for the last one.
        if self.0.busy.fetch_sub(1, Ordering::SeqCst) == 1 && self.0.waited_for.load(Ordering::SeqCst) {
            self.0.idle.drain();
        }
    }
}

/// What a handler knows of its task, and what it can tell.
pub struct TaskCx {
    run: Arc<Run>,
}

impl std::fmt::Debug for TaskCx {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskCx").field("id", &self.run.message.id).finish_non_exhaustive()
    }
}

impl TaskCx {
    /// The task's id.
    pub fn id(&self) -> &str {
        &self.run.message.id
    }

    /// The name it was called by.
    pub fn name(&self) -> &str {
        &self.run.message.task
    }

    /// How often it was retried already.
    pub fn retries(&self) -> u32 {
        self.run.message.retries
    }

    /// Whether it was delivered before and may have run, as a whole or in part.
    pub fn redelivered(&self) -> bool {
        self.run.message.redelivered
    }

    /// The first task of the tree that it belongs to.
    pub fn root_id(&self) -> &str {
        &self.run.message.root_id
    }

    /// The task that sent it.
    pub fn parent_id(&self) -> Option<&str> {
        self.run.message.parent_id.as_deref()
    }

    /// The whole message.
    pub fn message(&self) -> &TaskMessage {
        &self.run.message
    }

    /// Reaches [`Level::Drain`] when the soft time limit is over, and [`Level::Cancel`] when the task is to end now: its time
    /// limit is over, it was revoked, or the worker ends.
    pub fn cancel(&self) -> &Shutdown {
        &self.run.signal
    }

    /// Whether the worker takes no more tasks; the task may go on to its end.
    pub fn is_stopping(&self) -> bool {
        self.run.core.upgrade().is_none_or(|core| core.intake.is_set())
    }

    /// Waits. Ends early when the task is told to end.
    ///
    /// # Errors
    /// [`TaskError::Cancelled`], to be returned by the handler.
    pub fn sleep(&self, duration: Duration) -> Result<(), TaskError> {
        if self.run.signal.wait(duration) { Err(TaskError::Cancelled) } else { Ok(()) }
    }

    /// For a handler that computes: whether to go on.
    ///
    /// # Errors
    /// [`TaskError::Cancelled`], to be returned by the handler.
    pub fn check(&self) -> Result<(), TaskError> {
        if self.run.signal.is_set() { Err(TaskError::Cancelled) } else { Ok(()) }
    }

    /// When the time limit is over.
    pub fn deadline(&self) -> Option<Instant> {
        let limit = Duration::try_from_secs_f64(self.run.message.time_limit?).ok()?;
        self.run.since.checked_add(limit)
    }

    /// Tells how far it is: the state `PROGRESS` with `{current, total, percent, message}` and what `more` has. Never blocks;
    /// of those that come faster than Redis takes them, the newest is stored.
    pub fn progress(&self, percent: f64, message: &str, more: &Value) {
        let percent = percent.clamp(0.0, 100.0);
        let mut value = json!({"current": percent, "total": 100, "percent": percent, "message": message});
        if let (Some(map), Some(more)) = (value.as_object_mut(), more.as_object()) {
            map.extend(more.clone());
        }
        lock(&self.run.progress).last = Some(value);
        if let Some(core) = self.run.core.upgrade()
            && self.run.message.ignore_result != Some(true)
        {
            self.run.send_progress(&core);
        }
    }
}

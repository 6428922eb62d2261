//! What a handler knows of its task, and what it can report.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::call::TaskError;
use super::core::Core;
use super::run::Run;
use crate::base::limits::CELERY_CALLS;
#[cfg(doc)]
use crate::base::shutdown::Level;
use crate::base::shutdown::Shutdown;
use crate::celery::canvas::{Canvas, Frozen, Place, Signature, freeze};
use crate::celery::message::TaskMessage;
use crate::celery::meta::Meta;

/// What a handler knows of its task, and what it can tell.
pub struct TaskCx {
    run: Arc<Run>,
    core: Weak<Core>,
}

impl std::fmt::Debug for TaskCx {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskCx").field("id", &self.run.message.id).finish_non_exhaustive()
    }
}

impl TaskCx {
    pub(super) fn new(run: Arc<Run>, core: &Arc<Core>) -> Self {
        Self { run, core: Arc::downgrade(core) }
    }

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

    /// Reaches [`Level::Drain`] when the soft time limit is over, and [`Level::Cancel`] when the task is to end now:
    /// its time limit is over, it was revoked, or the worker ends.
    pub fn cancel(&self) -> &Shutdown {
        &self.run.signal
    }

    /// Whether the worker takes no more tasks; the task may go on to its end.
    pub fn is_stopping(&self) -> bool {
        self.core.upgrade().is_none_or(|core| core.intake.is_set())
    }

    /// Waits. Ends early when the task is cancelled.
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

    /// The soft and the hard time limit that hold for it, whoever has set them.
    pub fn time_limits(&self) -> (Option<Duration>, Option<Duration>) {
        let duration = |limit: Option<f64>| Duration::try_from_secs_f64(limit?).ok();
        (duration(self.run.limits.0), duration(self.run.limits.1))
    }

    /// When the time limit is over.
    pub fn deadline(&self) -> Option<Instant> {
        self.run.begun.get()?.checked_add(self.time_limits().1?)
    }

    /// Puts another one in the place of this task, as Celery's `Task.replace`: under this task's id, before what
    /// follows it, as its part of a chord. To be returned: `return Err(cx.replace(…))`. A group's result is a list, so
    /// that something can follow it. It has the stamps of this task.
    pub fn replace(&self, canvas: impl Into<Canvas>) -> TaskError {
        TaskError::Replaced(Box::new(canvas.into()))
    }

    /// Calls a canvas when this task succeeds, in one piece with its end: once, however often the task is begun, and
    /// not at all if it fails. It has this task as its parent, and its stamps. Gives the id of its result: that of a
    /// chain's last task, of a chord's body, of a group. Does not block.
    ///
    /// # Errors
    /// To be returned by the handler: the canvas cannot be sent, or too many were called.
    pub fn call(&self, canvas: impl Into<Canvas>) -> Result<String, TaskError> {
        Ok(self.called(canvas.into().into_signature())?.id().to_owned())
    }

    pub(super) fn called(&self, mut signature: Signature) -> Result<Frozen, TaskError> {
        let message = &self.run.message;
        if let Some(stamps) = message.stamps.as_object().filter(|stamps| !stamps.is_empty()) {
            signature.spend_stamps(stamps, &mut 0).map_err(|why| TaskError::new("ValueError", why))?;
            signature.stamp(stamps);
        }
        let frozen = freeze(&mut signature, None, &Place::default(), Some(&message.root_id), &mut Core::fresh);
        let frozen = frozen.map_err(|why| TaskError::new("ValueError", why))?;
        match self.run.call(signature.into()) {
            true => Ok(frozen),
            false => Err(TaskError::new("OverflowError", format!("more than {CELERY_CALLS} canvases are called"))),
        }
    }

    /// Tells how far it is: the state `PROGRESS` with `{current, total, percent, message}` and what `more` has. Never
    /// blocks; of those that come faster than Redis takes them, the newest is stored.
    pub fn progress(&self, percent: f64, message: &str, more: &Value) {
        let percent = percent.clamp(0.0, 100.0);
        let mut value = json!({"current": percent, "total": 100, "percent": percent, "message": message});
        if let (Some(map), Some(more)) = (value.as_object_mut(), more.as_object()) {
            map.extend(more.clone());
        }
        self.run.set_progress(value);
        if let Some(core) = self.core.upgrade()
            && self.run.message.ignore_result != Some(true)
        {
            send_progress(&self.run, &core);
        }
    }
}

/// Sends the newest progress, one at a time: a handler that reports a thousand a second costs Redis no more than it can
/// take.
fn send_progress(run: &Arc<Run>, core: &Arc<Core>) {
    let Some(value) = run.progress_to_send() else { return };
    let weak = Arc::downgrade(run);
    core.store_state(run, Meta::progress(&run.message.id, value), move |core| {
        if let Some(run) = weak.upgrade()
            && run.progress_sent()
        {
            send_progress(&run, core);
        }
    });
}

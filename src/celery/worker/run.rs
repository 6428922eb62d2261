//! One run of a handler as data: its message, what ends it and why, and the progress that it reports.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use serde_json::Value;

use super::call::exception;
use super::outcome::Outcome;
use crate::base::limits::CELERY_CALLS;
use crate::base::lock::lock;
use crate::base::shutdown::{Level, Shutdown};
use crate::celery::canvas::Canvas;
use crate::celery::message::TaskMessage;
use crate::celery::meta::Exception;

/// Why a run was cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CancelCause {
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
pub(super) struct Run {
    pub tag: String,
    pub message: Arc<TaskMessage>,
    /// Drain: end soon (the soft time limit). Cancel: end now.
    pub signal: Shutdown,
    /// Its message was acknowledged before it began.
    pub acknowledged: AtomicBool,
    /// Seconds after which it is asked to end, and after which it is ended.
    pub limits: (Option<f64>, Option<f64>),
    /// Its handler has returned.
    pub returned: AtomicBool,
    /// When its handler was called.
    pub begun: OnceLock<Instant>,
    why: Mutex<Option<CancelCause>>,
    progress: Mutex<Progress>,
    /// What it calls when it succeeds.
    calls: Mutex<Vec<Canvas>>,
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
    pub(super) fn new(tag: &str, message: Arc<TaskMessage>, limits: (Option<f64>, Option<f64>)) -> Arc<Self> {
        Arc::new(Self {
            limits,
            tag: tag.to_owned(),
            message,
            signal: Shutdown::new(),
            acknowledged: AtomicBool::new(false),
            returned: AtomicBool::new(false),
            begun: OnceLock::new(),
            why: Mutex::default(),
            progress: Mutex::default(),
            calls: Mutex::default(),
        })
    }

    /// Notes what is to be called when it succeeds; false if that is too much.
    pub(super) fn call(&self, canvas: Canvas) -> bool {
        let mut calls = lock(&self.calls);
        let has_room = calls.len() < CELERY_CALLS;
        if has_room {
            calls.push(canvas);
        }
        has_room
    }

    /// Its end, if it has returned this.
    pub(super) fn succeeded(&self, value: Value) -> Outcome {
        let calls = std::mem::take(&mut *lock(&self.calls));
        if calls.is_empty() { Outcome::Success(value) } else { Outcome::Calls(value, calls) }
    }

    /// Tells the handler to end. The first reason counts, but a soft limit gives way to all others.
    pub(super) fn end(&self, why: CancelCause) {
        {
            let mut reason = lock(&self.why);
            if reason.is_none() || *reason == Some(CancelCause::SoftLimit) {
                *reason = Some(why);
            }
        }
        self.signal.raise(if why == CancelCause::SoftLimit { Level::Drain } else { Level::Cancel });
    }

    /// What it means that the handler ended because it was cancelled; `None` if the task goes back to its queue.
    pub(super) fn cancelled(&self) -> Option<Outcome> {
        match *lock(&self.why) {
            Some(CancelCause::Stopping) => None,
            Some(CancelCause::SoftLimit) => {
                let seconds = self.limits.0.unwrap_or(0.0);
                let exception = Exception::new("billiard.exceptions", "SoftTimeLimitExceeded", seconds.to_string());
                Some(Outcome::Failure(exception, None))
            }
            // Settled already; this comes too late.
            Some(CancelCause::HardLimit | CancelCause::Revoked) => Some(Outcome::Ignored),
            None => {
                Some(Outcome::Failure(exception("Cancelled", "the handler says it was cancelled, but was not"), None))
            }
        }
    }

    /// The progress that it has reported last.
    pub(super) fn progress(&self) -> Option<Value> {
        lock(&self.progress).last.clone()
    }

    /// Notes new progress.
    pub(super) fn set_progress(&self, value: Value) {
        lock(&self.progress).last = Some(value);
    }

    /// The progress to send now; `None` while another is on its way, which [`Run::progress_sent`] ends.
    pub(super) fn progress_to_send(&self) -> Option<Value> {
        let mut progress = lock(&self.progress);
        if progress.sent {
            progress.newer = true;
            return None;
        }
        (progress.sent, progress.newer) = (true, false);
        progress.last.clone()
    }

    /// Redis has answered; says whether there is newer progress to send.
    pub(super) fn progress_sent(&self) -> bool {
        let mut progress = lock(&self.progress);
        progress.sent = false;
        progress.newer
    }
}

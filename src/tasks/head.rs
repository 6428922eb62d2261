//! The head of a task: what everybody may know of it, whatever its types.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::options::{Extras, Grown, TaskOptions};
use super::state::{CancelReason, Limit, Progress};
use super::store::TaskId;
use crate::base::lock::lock;
use crate::base::shutdown::Shutdown;

/// What everybody may know of a task.
pub(super) struct Head {
    name: &'static str,
    /// Given with the task, or made when something first grows.
    extras: OnceLock<Box<Extras>>,
    id: AtomicU64,
    /// In nanoseconds since the manager's start.
    submitted: AtomicU64,
    cancel: AtomicU8,
    /// Its name is all that it was given.
    inline: bool,
}

/// A reason as a number other than 0, without its words.
fn code(reason: &CancelReason) -> u8 {
    match reason {
        CancelReason::Requested(_) => 1,
        CancelReason::Group => 2,
        CancelReason::Stopping => 3,
        CancelReason::Limit(Limit::Queue) => 4,
        CancelReason::Limit(Limit::Run) => 5,
        CancelReason::Limit(Limit::Total) => 6,
        CancelReason::Limit(Limit::Silence) => 7,
    }
}

impl Head {
    pub(super) fn new(options: TaskOptions) -> Self {
        let TaskOptions { name, extras } = options;
        let inline = extras.is_none();
        let extras = extras.map_or_else(OnceLock::new, OnceLock::from);
        let (id, submitted, cancel) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU8::new(0));
        Self { name, extras, id, submitted, cancel, inline }
    }

    /// What it was given beside its name; nothing for an inline task.
    pub(super) fn extras(&self) -> Option<&Extras> {
        if self.inline { None } else { self.extras.get().map(Box::as_ref) }
    }

    pub(super) fn name(&self) -> &str {
        self.extras().and_then(|extras| extras.name.as_deref()).unwrap_or(self.name)
    }

    /// The name, if that is all there is to tell.
    pub(super) fn only_name(&self) -> Option<&'static str> {
        (self.inline && self.progress().is_none()).then_some(self.name)
    }

    /// Whether it has more than its name, from the start or since.
    pub(super) fn has_grown(&self) -> bool {
        self.extras.get().is_some()
    }

    /// Whether its result is kept for whoever has its id.
    pub(super) fn keeps_result(&self) -> bool {
        self.extras().is_some_and(|extras| extras.keep_result)
    }

    fn grown(&self) -> &Grown {
        &self.extras.get_or_init(Box::default).grown
    }

    /// How far the task has come; nothing before its first word.
    pub(super) fn progress(&self) -> Option<Progress> {
        lock(&self.extras.get()?.grown.progress).clone()
    }

    pub(super) fn set_progress(&self, progress: Progress) {
        *lock(&self.grown().progress) = Some(progress);
    }

    /// A sign of life, in nanoseconds since the manager's start.
    pub(super) fn heartbeat(&self, at: u64) {
        self.grown().alive.store(at, Ordering::Relaxed);
    }

    /// The last sign of life.
    pub(super) fn alive(&self) -> u64 {
        self.grown().alive.load(Ordering::Relaxed)
    }

    pub(super) fn id(&self) -> TaskId {
        TaskId::from_u64(self.id.load(Ordering::Relaxed))
    }

    /// In nanoseconds since the manager's start.
    pub(super) fn submitted(&self) -> u64 {
        self.submitted.load(Ordering::Relaxed)
    }

    /// It is accepted; before others can see it.
    pub(super) fn accept(&self, id: TaskId, submitted: u64) {
        self.id.store(id.as_u64(), Ordering::Relaxed);
        self.submitted.store(submitted, Ordering::Relaxed);
    }

    /// Whether it was cancelled.
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::SeqCst) != 0
    }

    /// Why it was cancelled, if it was.
    pub(super) fn cancelled(&self) -> Option<CancelReason> {
        let words = || self.extras.get().and_then(|extras| extras.grown.reason.get());
        match self.cancel.load(Ordering::SeqCst) {
            0 => None,
            2 => Some(CancelReason::Group),
            3 => Some(CancelReason::Stopping),
            4 => Some(CancelReason::Limit(Limit::Queue)),
            5 => Some(CancelReason::Limit(Limit::Run)),
            6 => Some(CancelReason::Limit(Limit::Total)),
            7 => Some(CancelReason::Limit(Limit::Silence)),
            _ => Some(CancelReason::Requested(words().cloned().unwrap_or_default())),
        }
    }

    /// Notes why it is cancelled; the first reason stays.
    pub(super) fn note_cancel(&self, reason: &CancelReason) {
        if let CancelReason::Requested(words) = reason
            && !words.is_empty()
        {
            // Before whoever sees that it is cancelled asks why.
            let _first = self.grown().reason.set(words.clone());
        }
        // A second reason changes nothing, so its failure is of no interest.
        let _ = self.cancel.compare_exchange(0, code(reason), Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Tells it to end.
    pub(super) fn cancel(&self, reason: &CancelReason) {
        self.note_cancel(reason);
        if let Some(signal) = self.extras.get().and_then(|extras| extras.grown.signal.get()) {
            signal.cancel();
        }
    }

    /// Made when first asked for, because most tasks never do.
    pub(super) fn signal(&self, parent: &Shutdown) -> &Shutdown {
        let signal = self.grown().signal.get_or_init(|| parent.child());
        // Whoever cancelled before the signal was there could not raise it.
        if self.is_cancelled() {
            signal.cancel();
        }
        signal
    }

    /// Makes this the head of another inline task, in the same memory.
    pub(super) fn reuse(&mut self, name: &'static str, id: TaskId, submitted: u64) {
        debug_assert!(self.inline && !self.has_grown(), "it is as small as a new one");
        self.name = name;
        self.cancel = AtomicU8::new(0);
        self.accept(id, submitted);
    }
}

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

const REASONS: [CancelReason; 7] = [
    CancelReason::Requested,
    CancelReason::Group,
    CancelReason::Stopping,
    CancelReason::Limit(Limit::Queue),
    CancelReason::Limit(Limit::Run),
    CancelReason::Limit(Limit::Total),
    CancelReason::Limit(Limit::Silence),
];

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

    /// Why it was cancelled, if it was.
    pub(super) fn cancelled(&self) -> Option<CancelReason> {
        match self.cancel.load(Ordering::SeqCst) {
            0 => None,
            n => REASONS.get(usize::from(n) - 1).copied(),
        }
    }

    /// Tells it to end; the first reason stays.
    pub(super) fn cancel(&self, reason: CancelReason) {
        let code = REASONS.iter().position(|r| *r == reason).map_or(1, |n| n as u8 + 1);
        // A second reason changes nothing, so its failure is of no interest.
        let _ = self.cancel.compare_exchange(0, code, Ordering::SeqCst, Ordering::SeqCst);
        if let Some(signal) = self.extras.get().and_then(|extras| extras.grown.signal.get()) {
            signal.cancel();
        }
    }

    /// Made when first asked for, because most tasks never do.
    pub(super) fn signal(&self, parent: &Shutdown) -> &Shutdown {
        let signal = self.grown().signal.get_or_init(|| parent.child());
        // Whoever cancelled before the signal was there could not raise it.
        if self.cancelled().is_some() {
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

//! The end of one task: settled once, seen by every waiter. The only place where a task and its waiters meet.
//!
//! A task is *settled* by whoever ends it first (its worker, a cancel, a limit) and *published* when the table knows of
//! it, so that a waiter that returns finds the table up to date. Modelled in `tests/model/`.

use std::time::{Duration, Instant};

use crate::base::lock::{lock, wait, wait_timeout};
use crate::base::sync::{AtomicU8, Condvar, Mutex, MutexGuard, Ordering};
use crate::base::waits::waiting_unless_noted;

const PENDING: u8 = 0;
const RUNNING: u8 = 1;
/// Somebody is publishing its end.
const SETTLED: u8 = 2;

/// A task's work until it begins, and what its waiters see: an outcome of type `O`.
///
/// Small, because it is most of a task, and a task of more than 120 bytes costs the allocator's lock.
#[derive(Debug)]
pub(super) struct Cell<W, O> {
    phase: AtomicU8,
    changed: Condvar,
    shown: Mutex<Shown<W, O>>,
}

#[derive(Debug)]
struct Shown<W, O> {
    stage: Stage<W, O>,
    /// Grows with each note, so that a watcher knows what it has seen.
    version: u32,
    /// Somebody may sleep; if nobody does, a wake-up, which costs a system call, is spared.
    awaited: bool,
    /// Nobody is left who could take the outcome.
    unwanted: bool,
}

#[derive(Debug)]
enum Stage<W, O> {
    Work(W),
    /// The work is with its worker, or dropped.
    Begun,
    Ended(O),
    Taken,
}

/// The answer of a wait.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Waited<O> {
    /// The outcome, which is now the caller's.
    Ended(O),
    /// The outcome was taken before.
    Taken,
    /// The deadline came first.
    Still,
}

impl<W, O> Cell<W, O> {
    /// Of a task that waits; its outcome may be `unwanted` from the start.
    pub(super) fn new(work: W, unwanted: bool) -> Self {
        let shown = Shown { stage: Stage::Work(work), version: 0, awaited: false, unwanted };
        Self { phase: AtomicU8::new(PENDING), shown: Mutex::new(shown), changed: Condvar::new() }
    }

    /// Of a task that waits for its worker, who has the work; nobody wants its outcome.
    pub(super) fn lent() -> Self {
        let shown = Shown { stage: Stage::Begun, version: 0, awaited: false, unwanted: true };
        Self { phase: AtomicU8::new(PENDING), shown: Mutex::new(shown), changed: Condvar::new() }
    }

    /// The work, for whoever runs it or drops it; `None` if it was taken.
    pub(super) fn take_work(&self) -> Option<W> {
        let mut shown = lock(&self.shown);
        if !matches!(shown.stage, Stage::Work(_)) {
            return None;
        }
        match std::mem::replace(&mut shown.stage, Stage::Begun) {
            Stage::Work(work) => Some(work),
            _ => None,
        }
    }

    /// The work of an attempt that another follows.
    pub(super) fn put_work_back(&self, work: W) {
        lock(&self.shown).stage = Stage::Work(work);
    }

    fn move_on(&self, from: u8, to: u8) -> bool {
        self.phase.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// A worker starts it; false if it was settled before.
    pub(super) fn begin(&self) -> bool {
        self.move_on(PENDING, RUNNING)
    }

    /// Its attempt has ended, another follows; false if it was settled meanwhile.
    pub(super) fn again(&self) -> bool {
        self.move_on(RUNNING, PENDING)
    }

    /// Its worker ends it; true for exactly one caller of this and the next two, who is to publish.
    pub(super) fn settle_running(&self) -> bool {
        self.move_on(RUNNING, SETTLED)
    }

    /// Somebody ends it before it starts.
    pub(super) fn settle_pending(&self) -> bool {
        self.move_on(PENDING, SETTLED)
    }

    /// Shows the end to all waiters; the work was taken. What it gives back nobody wants; drop it outside of any lock.
    pub(super) fn publish(&self, outcome: O) -> Option<O> {
        let mut shown = lock(&self.shown);
        let (stage, unwanted) =
            if shown.unwanted { (Stage::Taken, Some(outcome)) } else { (Stage::Ended(outcome), None) };
        shown.stage = stage;
        self.changed(shown);
        unwanted
    }

    fn changed(&self, mut shown: MutexGuard<'_, Shown<W, O>>) {
        shown.version = shown.version.wrapping_add(1);
        let awaited = std::mem::take(&mut shown.awaited);
        drop(shown);
        if awaited {
            self.changed.notify_all();
        }
    }

    /// Nobody will wait any more; gives the outcome that nobody took.
    pub(super) fn abandon(&self) -> Option<O> {
        let mut shown = lock(&self.shown);
        shown.unwanted = true;
        shown.take()
    }

    /// Whether the end is published.
    pub(super) fn has_ended(&self) -> bool {
        lock(&self.shown).has_ended()
    }

    /// Waits for the end, for ever without a deadline, and takes the outcome.
    pub(super) fn wait(&self, deadline: Option<Instant>) -> Waited<O> {
        let mut shown = lock(&self.shown);
        loop {
            if let Some(outcome) = shown.take() {
                return Waited::Ended(outcome);
            }
            if shown.has_ended() {
                return Waited::Taken;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Waited::Still;
            }
            shown = self.sleep(shown, left);
        }
    }

    /// Something about the task has changed that watchers want to see.
    pub(super) fn note(&self) {
        self.changed(lock(&self.shown));
    }

    /// Waits until there is something newer than `seen`, or the deadline: gives the version, and whether the task has
    /// ended.
    pub(super) fn watch(&self, seen: u32, deadline: Instant) -> (u32, bool) {
        let mut shown = lock(&self.shown);
        loop {
            let ended = shown.has_ended();
            let left = deadline.saturating_duration_since(Instant::now());
            if shown.version != seen || ended || left.is_zero() {
                return (shown.version, ended);
            }
            shown = self.sleep(shown, Some(left));
        }
    }

    fn sleep<'a>(&self, mut shown: MutexGuard<'a, Shown<W, O>>, left: Option<Duration>) -> MutexGuard<'a, Shown<W, O>> {
        shown.awaited = true;
        let _waiting = waiting_unless_noted("a task", left.and_then(|left| Instant::now().checked_add(left)));
        match left {
            None => wait(&self.changed, shown),
            Some(left) => wait_timeout(&self.changed, shown, left),
        }
    }
}

impl<W, O> Shown<W, O> {
    fn has_ended(&self) -> bool {
        matches!(self.stage, Stage::Ended(_) | Stage::Taken)
    }

    fn take(&mut self) -> Option<O> {
        if !matches!(self.stage, Stage::Ended(_)) {
            return None;
        }
        match std::mem::replace(&mut self.stage, Stage::Taken) {
            Stage::Ended(outcome) => Some(outcome),
            _ => None,
        }
    }
}

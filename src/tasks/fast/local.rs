//! The local queue of one worker: inline tasks that it has taken and not begun, the one it runs, and those that have
//! ended since its last visit to the table.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use crossbeam_utils::CachePadded;

use super::detached::{Begun, Detached, LocalFreeList, waiting};
use crate::base::lock::lock;
use crate::tasks::context::Attempt;
use crate::tasks::state::TaskState;
use crate::tasks::store::{Record, TaskId};
use crate::tasks::table::record_of;
use crate::tasks::task::TaskRef;

/// Tasks in a local queue: so many share what a visit to the table and the intake costs, some microseconds.
pub(super) const BATCH: usize = 64;

/// An inline task that has not begun.
pub(super) enum InlineTask {
    /// Somebody has a handle of it.
    Held(TaskRef),
    /// Nobody has.
    Detached(Detached),
}

impl InlineTask {
    pub(super) fn id(&self) -> TaskId {
        match self {
            Self::Held(task) => task.head().id(),
            Self::Detached(detached) => detached.id,
        }
    }

    /// For the table.
    pub(super) fn into_task(self) -> TaskRef {
        match self {
            Self::Held(task) => task,
            Self::Detached(detached) => waiting(detached),
        }
    }
}

/// The local queue of one worker.
pub(in crate::tasks) struct LocalQueue {
    held: CachePadded<Mutex<Held>>,
    /// Tasks that it has begun and whose places in the queue were not given back.
    begun: CachePadded<AtomicUsize>,
}

pub(super) struct Held {
    /// Not begun.
    pub(super) reserve: VecDeque<InlineTask>,
    pub(super) running: Option<Running>,
    /// When it took the batch, or its last task ended.
    pub(super) since: Instant,
    /// Ended ones that the table does not know of.
    pub(super) ended: Vec<Record<TaskRef>>,
}

pub(super) struct Running {
    pub(super) task: TaskRef,
    pub(super) started: Instant,
    /// The table knows of it, and is to know of its end at once.
    pub(super) entered: bool,
}

impl LocalQueue {
    pub(super) fn new(since: Instant) -> Arc<Self> {
        let (reserve, ended) = (VecDeque::with_capacity(BATCH), Vec::with_capacity(BATCH));
        let held = CachePadded::new(Mutex::new(Held { reserve, running: None, since, ended }));
        Arc::new(Self { held, begun: CachePadded::new(AtomicUsize::new(0)) })
    }

    #[inline]
    pub(super) fn lock(&self) -> MutexGuard<'_, Held> {
        lock(&self.held)
    }

    /// The next task; it begins now.
    #[inline]
    pub(super) fn begin(&self, free: &mut LocalFreeList) -> Option<Begun> {
        let mut held = self.lock();
        let attempt = Attempt { number: 1, started: held.since };
        let (task, begun): (TaskRef, _) = match held.reserve.pop_front()? {
            InlineTask::Held(task) => (task.clone(), Begun::Task(task, attempt)),
            InlineTask::Detached(detached) => {
                let (task, work) = free.task(detached);
                (task.clone(), Begun::Detached(task, work, attempt))
            }
        };
        held.running = Some(Running { task, started: attempt.started, entered: false });
        drop(held);
        self.begun.fetch_add(1, Ordering::SeqCst);
        Some(begun)
    }

    #[inline]
    pub(super) fn take_begun(&self) -> usize {
        self.begun.swap(0, Ordering::SeqCst)
    }

    /// Its task has ended: true if that is all there is to it, because the table does not know of the task.
    #[inline]
    pub(in crate::tasks) fn note_end(&self, state: TaskState, error: &mut Option<String>, now: Instant) -> bool {
        let mut held = self.lock();
        let Some(Running { task, started, entered: false }) = held.running.take() else { return false };
        held.since = now;
        let record = record_of(&task, state, Some(started), 1, error.take(), now);
        held.ended.push(record);
        drop(held);
        // The worker still holds it, so nothing of the user's is dropped here.
        drop(task);
        true
    }

    /// Its task was ended by others.
    pub(in crate::tasks) fn clear(&self) {
        self.lock().running = None;
    }

    /// The worker leaves with nothing in it.
    pub(in crate::tasks) fn leave(&self) {
        let mut held = self.lock();
        debug_assert!(held.reserve.is_empty() && held.ended.is_empty(), "it was collected");
        (held.reserve, held.ended) = (VecDeque::new(), Vec::new());
    }
}

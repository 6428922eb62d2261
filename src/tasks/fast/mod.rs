//! The fast path: *inline* tasks, those that have a name and nothing else, go to the workers, and out of the table
//! again, by the batch.
//!
//! A task that each side takes through the table by itself makes the table's cache lines go to and fro between the
//! processors, and that costs more than all the rest of a short task. So a submitter puts an inline task into the
//! *intake*, a worker takes a batch of them into its *local queue*, begins one after the other, and notes there which
//! have ended; the table gets the ended ones with the next batch. Whoever needs the table itself first *collects*
//! ([`FastPath::collect`]): it enters in the table what is in the intake and in the local queues. So nothing else need
//! know of inline tasks, and while others wait in the table, inline tasks go through it, too, which keeps the order of
//! all.
//!
//! No task waits in the local queue of a worker that is stuck while another could have it: there is more than the next
//! task in a local queue only while no worker is idle, a worker that finds nothing takes from the local queues of
//! others, and one whose local queue is empty looks first for what has been in another's for too long.
//!
//! The local queue is no lock-free one (`crossbeam-deque`): whoever collects has to see each task exactly once,
//! waiting, running or ended, and a task that was popped and is not yet shown as running would be nowhere.
//!
//! Locks are taken in this order: the table, the intake, a local queue.

mod detached;
mod local;
mod places;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::hint::black_box;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::yield_now;
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;

use super::context::TaskContext;
use super::error::Refusal;
use super::options::{TaskConfig, WhenFull};
use super::sleepers::Sleepers;
use super::state::TaskState;
use super::store::TaskId;
use super::table::TaskTable;
use super::task::TaskRef;
use crate::base::lock::{lock, wait, wait_timeout};
use crate::base::waits::waiting;
use detached::{Detached, FreeList};
use local::{BATCH, Held, InlineTask, Running};
use places::Places;

pub(super) use detached::{Begun, LocalFreeList};
pub(super) use local::LocalQueue;
pub(super) use places::Queue;

/// How often a submitter that finds no room gives the processor away before it sleeps: about the time of a batch.
const ROOM_YIELDS: usize = 64;

/// What has been in a local queue for so long is taken by a worker that has room: by then a batch of short tasks has
/// ended.
const STRANDED: Duration = Duration::from_millis(1);

/// All that lies past the table, each part in cache lines of its own, because those who use it are not those who use
/// its neighbours.
pub(super) struct FastPath {
    workers: usize,
    intake: CachePadded<Mutex<Intake>>,
    places: Places,
    free: CachePadded<FreeList>,
}

/// What lies past the table and is guarded by its lock.
pub(super) struct Backlog {
    /// Inline tasks that were taken from the intake, the oldest first; none while something can start from the table.
    batch: VecDeque<InlineTask>,
    /// There may be inline tasks in local queues that the table does not know of.
    in_local_queues: bool,
    /// By worker: since when there may be more than the next task in its local queue.
    filled: Vec<Option<Instant>>,
    /// By [`Queue`]: what is counted as used by the table.
    shown: [usize; 2],
}

/// Where tasks are accepted.
pub(super) struct Intake {
    /// Until the manager stops.
    open: bool,
    /// Tasks that were accepted so far.
    accepted: u64,
    /// Inline tasks, the oldest first.
    queue: VecDeque<InlineTask>,
    /// By [`Queue`]: submitters that sleep until there is room.
    submitters: [Sleepers; 2],
    /// A worker can be woken or started for the next task.
    pub(super) wake: bool,
    /// Of each worker, by its number.
    local_queues: Vec<Arc<LocalQueue>>,
}

impl Backlog {
    pub(super) fn new() -> Self {
        Self { batch: VecDeque::new(), in_local_queues: false, filled: Vec::new(), shown: [0; 2] }
    }

    /// Tasks that were taken from the intake.
    pub(super) fn waiting(&self) -> usize {
        self.batch.len()
    }

    /// A place that [`FastPath::admit`] gave counts as the table's from here on, and goes back with it.
    pub(super) fn count_for_table(&mut self, queue: Queue) {
        self.shown[queue as usize] += 1;
    }

    fn set_filled(&mut self, worker: usize, since: Option<Instant>) {
        if self.filled.len() <= worker {
            self.filled.resize(worker + 1, None);
        }
        self.filled[worker] = since;
    }

    /// Of the others, the worker whose local queue has been filled for longest.
    fn oldest_filled(&self, me: usize) -> Option<(usize, Instant)> {
        let others = self.filled.iter().enumerate().filter(|(worker, _)| *worker != me);
        others.filter_map(|(worker, filled)| Some((worker, (*filled)?))).min_by_key(|(_, since)| *since)
    }
}

impl Intake {
    pub(super) fn add_local_queue(&mut self, now: Instant) -> Arc<LocalQueue> {
        let local = LocalQueue::new(now);
        self.local_queues.push(local.clone());
        local
    }

    /// Inline tasks that wait here.
    pub(super) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Places that became free in the local queues.
    fn begun(&self) -> usize {
        self.local_queues.iter().map(|local| local.take_begun()).sum()
    }
}

/// A submitter's wait for room.
struct Patience {
    when_full: WhenFull,
    until: Option<Instant>,
    yielded: bool,
}

impl FastPath {
    pub(super) fn new(config: &TaskConfig) -> Self {
        let intake = Intake {
            open: true,
            accepted: 0,
            queue: VecDeque::new(),
            submitters: Default::default(),
            wake: true,
            local_queues: Vec::new(),
        };
        Self {
            workers: config.workers,
            intake: CachePadded::new(Mutex::new(intake)),
            places: Places::new(config),
            free: CachePadded::new(FreeList::default()),
        }
    }

    #[inline]
    pub(super) fn intake(&self) -> MutexGuard<'_, Intake> {
        lock(&self.intake)
    }

    // ---- submitting ----

    /// Gives a task of the table its number and a place in a queue; blocks for room as `when_full` says.
    pub(super) fn admit(&self, queue: Queue, when_full: WhenFull) -> Result<TaskId, Refusal> {
        self.enter(queue, when_full).map(|(id, _)| id)
    }

    /// Takes an inline task, submitted at `submitted`: its number, and whether a worker is to be woken for it.
    pub(super) fn submit(&self, task: TaskRef, submitted: u64, when_full: WhenFull) -> Result<(TaskId, bool), Refusal> {
        let (id, intake) = self.enter(Queue::Waiting, when_full)?;
        task.head().accept(id, submitted);
        Ok((id, push(intake, InlineTask::Held(task))))
    }

    /// As [`FastPath::submit`], of a task that nobody has a handle of.
    pub(super) fn submit_detached<T, E, F>(
        &self,
        name: &'static str,
        work: F,
        submitted: u64,
        when_full: WhenFull,
    ) -> Result<(TaskId, bool), (Refusal, F)>
    where
        F: FnOnce(&TaskContext<'_>) -> Result<T, E> + Send + 'static,
        T: 'static,
        E: fmt::Display + 'static,
    {
        let work = self.free.fill::<F, T, E>(work);
        match self.enter(Queue::Waiting, when_full) {
            Ok((id, intake)) => Ok((id, push(intake, InlineTask::Detached(Detached { id, submitted, name, work })))),
            Err(refusal) => Err((refusal, work.into_inner())),
        }
    }

    #[inline]
    fn enter(&self, queue: Queue, when_full: WhenFull) -> Result<(TaskId, MutexGuard<'_, Intake>), Refusal> {
        let mut intake = self.intake();
        let mut patience = Patience { when_full, until: None, yielded: false };
        loop {
            if !intake.open {
                return Err(Refusal::Stopping);
            }
            if self.has_room(&intake, queue) {
                break;
            }
            intake = self.wait_for_room(intake, queue, &mut patience)?;
        }
        self.places.take(queue);
        intake.accepted += 1;
        // Whoever was woken for the first of several places wakes the next one.
        self.show_room(&mut intake, queue);
        Ok((TaskId::from_u64(intake.accepted), intake))
    }

    fn wait_for_room<'a>(
        &'a self,
        mut intake: MutexGuard<'a, Intake>,
        queue: Queue,
        patience: &mut Patience,
    ) -> Result<MutexGuard<'a, Intake>, Refusal> {
        let left = match patience.when_full {
            WhenFull::Refuse => return Err(Refusal::Full),
            WhenFull::Block => None,
            WhenFull::Timeout(timeout) => {
                let until = *patience.until.get_or_insert_with(|| Instant::now() + timeout);
                Some(until.saturating_duration_since(Instant::now()))
            }
        };
        if left == Some(Duration::ZERO) {
            return Err(Refusal::Full);
        }
        if !patience.yielded {
            patience.yielded = true;
            drop(intake);
            // Without a look into the local queues, which would disturb the workers: soon one gives the places of a
            // batch back.
            for _ in 0..ROOM_YIELDS {
                yield_now();
                if self.places.has_room(queue) {
                    break;
                }
            }
            return Ok(self.intake());
        }
        // Whoever makes room after this look at it sees the mark.
        self.places.wanted.store(true, Ordering::SeqCst);
        if self.has_room(&intake, queue) {
            return Ok(intake);
        }
        intake.submitters[queue as usize].asleep += 1;
        let _waiting = waiting("room in the task queue", left.and_then(|left| Instant::now().checked_add(left)));
        let freed = &self.places.freed[queue as usize];
        intake = match left {
            None => wait(freed, intake),
            Some(left) => wait_timeout(freed, intake, left),
        };
        intake.submitters[queue as usize].has_slept();
        Ok(intake)
    }

    /// Takes no more tasks: from now on every submitter is refused.
    pub(super) fn close(&self) {
        self.intake().open = false;
    }

    /// Has the submitters that wait for room see that it is closed.
    pub(super) fn wake_submitters(&self) {
        self.places.freed.iter().for_each(std::sync::Condvar::notify_all);
    }

    // ---- room ----

    /// Whether there is a place; nobody else takes one while the caller has the intake.
    #[inline]
    fn has_room(&self, intake: &Intake, queue: Queue) -> bool {
        self.places.has_room(queue) || {
            self.places.give_back(Queue::Waiting, intake.begun());
            self.places.has_room(queue)
        }
    }

    /// Wakes a submitter if there is room for it.
    #[inline]
    fn show_room(&self, intake: &mut Intake, queue: Queue) {
        if self.places.has_room(queue) && intake.submitters[queue as usize].wake_one() {
            self.places.freed[queue as usize].notify_one();
        }
    }

    /// Wakes those who have waited for the room that there may be now.
    #[inline]
    fn answer_submitters(&self) {
        if self.places.wanted.load(Ordering::SeqCst) {
            self.wake_submitters_with_room();
        }
    }

    fn wake_submitters_with_room(&self) {
        let mut intake = self.intake();
        self.places.give_back(Queue::Waiting, intake.begun());
        Queue::ALL.into_iter().for_each(|queue| self.show_room(&mut intake, queue));
        let wanted = intake.submitters.iter().any(|submitters| submitters.asleep > 0);
        self.places.wanted.store(wanted, Ordering::SeqCst);
    }

    /// Reports how many places of the queues the table uses.
    pub(super) fn show_places(&self, backlog: &mut Backlog, table: &TaskTable) {
        let places = [table.queued(), table.delayed];
        if places != backlog.shown {
            self.places.change(backlog.shown, places);
            backlog.shown = places;
            self.answer_submitters();
        }
    }

    // ---- working ----

    /// The next task in the worker's local queue; it begins now.
    #[inline]
    pub(super) fn begin(&self, local: &LocalQueue, free: &mut LocalFreeList) -> Option<Begun> {
        let begun = local.begin(free)?;
        self.answer_submitters();
        Some(begun)
    }

    /// Between two batches: passes the boxes of the last one on to the submitters.
    pub(super) fn recycle(&self, free: &mut LocalFreeList) {
        free.pass_on(&self.free);
    }

    /// Fills the empty local queue of worker `me` with inline tasks, of which it takes `several` only if nobody is
    /// idle, and enters in the table which of its last ones have ended; false if there are no tasks.
    pub(super) fn refill(
        &self,
        backlog: &mut Backlog,
        table: &mut TaskTable,
        me: usize,
        local: &LocalQueue,
        several: bool,
        now: Instant,
    ) -> bool {
        self.places.give_back(Queue::Waiting, local.take_begun());
        self.answer_submitters();
        if backlog.batch.is_empty() {
            std::mem::swap(&mut backlog.batch, &mut self.intake().queue);
        }
        let real = Instant::now();
        let stolen = self.steal(backlog, me, real);
        let mut held = local.lock();
        held.since = now;
        keep_ended(table, &mut held, now);
        if stolen.is_empty() {
            let fair = if several { backlog.batch.len().div_ceil(self.workers).min(BATCH) } else { 1 };
            let count = fair.min(backlog.batch.len());
            held.reserve.extend(backlog.batch.drain(..count));
        } else {
            held.reserve.extend(stolen);
        }
        // The submitters have just written the boxes: to fetch them side by side is cheaper than one after the other,
        // by 3 % of the processor time of a detached task, 11 % with one worker.
        for task in &held.reserve {
            if let InlineTask::Detached(detached) = task {
                black_box(detached.work.is_full());
            }
        }
        let filled = !held.reserve.is_empty();
        backlog.in_local_queues |= filled;
        backlog.set_filled(me, (held.reserve.len() > 1).then_some(real));
        filled
    }

    /// The older half of what waits in the local queue of another worker, if it has been there for too long or there is
    /// nothing else.
    fn steal(&self, backlog: &mut Backlog, me: usize, now: Instant) -> Vec<InlineTask> {
        while let Some((other, since)) = backlog.oldest_filled(me) {
            if !backlog.batch.is_empty() && now.saturating_duration_since(since) < STRANDED {
                break;
            }
            let local = self.intake().local_queues[other].clone();
            let mut held = local.lock();
            let half = held.reserve.len().div_ceil(2);
            let stolen: Vec<_> = held.reserve.drain(..half).collect();
            if held.reserve.is_empty() {
                backlog.set_filled(other, None);
            }
            if !stolen.is_empty() {
                return stolen;
            }
        }
        Vec::new()
    }

    /// Whether a worker that finds nothing may sleep: from now on it is woken for what comes.
    pub(super) fn may_sleep(&self) -> bool {
        let mut intake = self.intake();
        intake.wake = true;
        intake.queue.is_empty()
    }

    // ---- the table ----

    /// Enters in the table whatever is on its way past it.
    pub(super) fn collect(&self, backlog: &mut Backlog, table: &mut TaskTable, now: impl FnOnce() -> Instant) {
        let mut intake = self.intake();
        let mut waiting: Vec<InlineTask> = Vec::new();
        if std::mem::take(&mut backlog.in_local_queues) {
            self.places.give_back(Queue::Waiting, intake.begun());
            let now = now();
            for (worker, local) in intake.local_queues.iter().enumerate() {
                let mut held = local.lock();
                keep_ended(table, &mut held, now);
                waiting.extend(held.reserve.drain(..));
                backlog.set_filled(worker, None);
                if let Some(Running { task, started, entered }) = &mut held.running
                    && !std::mem::replace(entered, true)
                {
                    table.enter_running(task.clone(), worker, *started);
                }
            }
            waiting.sort_unstable_by_key(InlineTask::id);
            self.show_room(&mut intake, Queue::Waiting);
        }
        waiting.extend(backlog.batch.drain(..));
        waiting.extend(intake.queue.drain(..));
        // Their places go with them.
        backlog.shown[Queue::Waiting as usize] += waiting.len();
        waiting.into_iter().for_each(|task| table.enter_waiting(task.into_task()));
    }

    /// Adds to `counts` the tasks, by their state, that the table does not know of.
    pub(super) fn count(&self, backlog: &Backlog, counts: &mut [usize; 5]) {
        let mut count = |state: TaskState, more: usize| counts[state as usize] += more;
        count(TaskState::Pending, backlog.batch.len());
        let intake = self.intake();
        count(TaskState::Pending, intake.queue.len());
        for local in &intake.local_queues {
            let held = local.lock();
            count(TaskState::Pending, held.reserve.len());
            count(TaskState::Running, usize::from(held.running.as_ref().is_some_and(|running| !running.entered)));
            held.ended.iter().for_each(|record| count(record.state, 1));
        }
    }
}

/// Puts a task that was admitted into the intake; whether a worker is to be woken for it.
#[inline]
fn push(mut intake: MutexGuard<'_, Intake>, task: InlineTask) -> bool {
    intake.queue.push_back(task);
    intake.wake
}

fn keep_ended(table: &mut TaskTable, held: &mut Held, now: Instant) {
    held.ended.drain(..).for_each(|record| table.keep(record));
    table.forget(now);
}

//! The table of a manager: its tasks, what may start, what is due. One lock guards all three, because each move touches
//! all.
//!
//! The moves of a task are here, as plain changes of the data; the threads, and what they wait for, are in
//! [`super::scheduler`]. No code of a user runs here, and nothing is dropped here that could run some: it goes to
//! `gone`.

use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::context::{Attempt, nanos_since};
use super::deadlines::Deadlines;
use super::guard::tolerated;
use super::head::Head;
use super::info::{TaskInfo, TaskView};
use super::options::{Extras, TaskConfig};
use super::queue::{Priority, Ready};
use super::state::{CancelReason, Limit, TaskState};
use super::store::{OpenTask, Record, RecordSubject, Store, TaskId};
use super::task::TaskRef;
use crate::base::drained::Drained;

/// Ended tasks whose time is over that one move takes out of the table.
const FORGOTTEN_AT_ONCE: usize = 64;

/// Something that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Alarm {
    /// A delayed task may start.
    Start(TaskId),
    /// A task has exceeded a limit, unless it has moved on.
    Limit(TaskId, Limit),
    /// A cancelled task should have ended.
    Grace(TaskId),
    /// A periodic task is due.
    Period(u64),
    /// The oldest ended task is to be forgotten.
    Forget,
}

impl Alarm {
    fn task(&self) -> Option<TaskId> {
        match *self {
            Self::Start(id) | Self::Limit(id, _) | Self::Grace(id) => Some(id),
            Self::Period(_) | Self::Forget => None,
        }
    }
}

/// What is there of a task.
pub(super) enum Kept {
    Task(TaskRef),
    Name,
    /// It is not known.
    Nothing,
}

pub(super) struct TaskTable {
    /// When the manager was started.
    start: Instant,
    pub(super) store: Store<TaskRef>,
    pub(super) ready: Ready<TaskRef>,
    due: Deadlines<Alarm>,
    /// Something is due earlier than all before, and the thread that waits for it does not know yet.
    earlier: bool,
    forget_armed: bool,
    /// Pending tasks whose time has not come.
    pub(super) delayed: usize,
    /// To be dropped outside the lock, by [`drop_all`].
    pub(super) gone: Vec<TaskRef>,
    drained: Drained,
}

/// What the submitter gave a task beside its name.
pub(super) fn extras(task: &TaskRef) -> Option<&Extras> {
    task.head().extras()
}

/// Drops what the lock was not to see dropped.
pub(super) fn drop_all(tasks: impl IntoIterator<Item = TaskRef>) {
    for task in tasks {
        tolerated("dropping a task", || drop(task));
    }
}

/// What is kept of a task that has ended: of most only the name.
pub(super) fn record_of(
    task: &TaskRef,
    state: TaskState,
    started: Option<Instant>,
    attempts: u32,
    error: Option<String>,
    ended: Instant,
) -> Record<TaskRef> {
    let head = task.head();
    let what = head.only_name().map_or_else(|| RecordSubject::Task(task.clone()), RecordSubject::Name);
    let error = error.map(String::into_boxed_str);
    let (id, submitted) = (head.id(), head.submitted());
    Record { id, what, state, submitted, started, ended, attempts, unresponsive: false, error }
}

impl TaskTable {
    pub(super) fn new(config: &TaskConfig, start: Instant) -> Self {
        Self {
            start,
            store: Store::new(config.keep, config.keep_max),
            ready: Ready::new(),
            due: Deadlines::new(),
            earlier: false,
            forget_armed: false,
            delayed: 0,
            gone: Vec::new(),
            drained: Drained::default(),
        }
    }

    // ---- looking ----

    fn pending(&self) -> usize {
        self.store.count(TaskState::Pending)
    }

    /// Tasks that wait for a worker or for their key.
    pub(super) fn queued(&self) -> usize {
        self.pending() - self.delayed
    }

    fn is_empty(&self) -> bool {
        self.pending() + self.store.count(TaskState::Running) == 0
    }

    pub(super) fn is_in(&self, id: TaskId, state: TaskState) -> bool {
        self.store.get(id).is_some_and(|open| open.state == state)
    }

    /// A task that has not ended.
    pub(super) fn task(&self, id: TaskId) -> Option<TaskRef> {
        self.store.get(id).map(|open| open.task.clone())
    }

    /// What is there of a task, ended or not.
    pub(super) fn kept(&mut self, id: TaskId) -> Kept {
        match (self.task(id), self.store.record(id).map(|record| &record.what)) {
            (Some(task), _) => Kept::Task(task),
            (None, Some(RecordSubject::Task(task))) => Kept::Task(task.clone()),
            (None, Some(RecordSubject::Name(_))) => Kept::Name,
            (None, None) => Kept::Nothing,
        }
    }

    /// The tasks that have not ended, of those `which` is true for.
    pub(super) fn open(&self, which: impl Fn(&OpenTask<TaskRef>) -> bool) -> Vec<(TaskId, TaskRef)> {
        self.store.open().filter(|(_, open)| which(open)).map(|(id, open)| (id, open.task.clone())).collect()
    }

    /// A receiver that disconnects when no task is left.
    pub(super) fn drained(&mut self) -> Receiver<()> {
        let empty = self.is_empty();
        self.drained.watch(empty)
    }

    pub(super) fn counts(&self) -> [usize; 5] {
        TaskState::ALL.map(|state| self.store.count(state))
    }

    pub(super) fn info(&mut self, id: TaskId, now: Instant) -> Option<TaskInfo> {
        if let Some(open) = self.store.get(id) {
            return Some(Seen::open(id, open).info(self.start, now));
        }
        self.store.record(id).map(|record| Seen::ended(record).info(self.start, now))
    }

    /// Of all tasks those that are `wanted`, in the order in which they were accepted, `most` at most.
    pub(super) fn list(&self, now: Instant, most: usize, wanted: impl Fn(&TaskView<'_>) -> bool) -> Vec<TaskInfo> {
        let ended = self.store.ended().map(Seen::ended);
        let all = self.store.open().map(|(id, open)| Seen::open(id, open)).chain(ended);
        let mut seen: Vec<Seen<'_>> = all.filter(|seen| wanted(&seen.view)).collect();
        seen.sort_unstable_by_key(|seen| seen.view.id);
        seen.iter().take(most).map(|seen| seen.info(self.start, now)).collect()
    }

    // ---- waiting ----

    /// Enters an inline task that waits.
    pub(super) fn enter_waiting(&mut self, task: TaskRef) {
        self.store.insert(task.head().id(), task.clone());
        self.ready.push(task, Priority::default(), None);
    }

    /// Enters an inline task that a worker has begun.
    pub(super) fn enter_running(&mut self, task: TaskRef, worker: usize, started: Instant) {
        let id = task.head().id();
        self.store.insert(id, task);
        self.store.start(id, worker, started);
    }

    /// Enters a task that was just accepted.
    pub(super) fn enter(&mut self, id: TaskId, task: &TaskRef, extras: &Extras, now: Instant) {
        if let Some(key) = &extras.key {
            self.ready.note_unique(key);
        }
        self.store.insert(id, task.clone());
        if let Some(limit) = extras.limits.total {
            self.arm(now, limit, Alarm::Limit(id, Limit::Total));
        }
        match extras.delay {
            Some(delay) => self.start_later(id, delay, now),
            None => self.enqueue(task.clone(), true, now),
        }
    }

    /// The task may start from now on; `first` unless an attempt was made before.
    fn enqueue(&mut self, task: TaskRef, first: bool, now: Instant) {
        let Some(extras) = extras(&task) else { return self.ready.push(task, Priority::default(), None) };
        if first && let Some(limit) = extras.limits.queue {
            self.arm(now, limit, Alarm::Limit(task.head().id(), Limit::Queue));
        }
        // A task between two attempts has kept its place among those of its key.
        let (priority, key) = (extras.priority, extras.key.clone().filter(|_| first));
        self.ready.push(task, priority, key.as_ref());
    }

    fn start_later(&mut self, id: TaskId, delay: Duration, now: Instant) {
        self.delayed += 1;
        if let Some(open) = self.store.get_mut(id) {
            open.delayed = true;
        }
        self.arm(now, delay, Alarm::Start(id));
    }

    /// The time of a delayed task has come.
    pub(super) fn start_now(&mut self, id: TaskId, now: Instant) {
        let Some(open) = self.store.get_mut(id) else { return };
        open.delayed = false;
        let (task, first) = (open.task.clone(), open.attempts == 0);
        self.delayed -= 1;
        self.enqueue(task, first, now);
    }

    // ---- running ----

    /// The next task for worker `worker`, which begins it now.
    pub(super) fn pop(&mut self, worker: usize, now: Instant) -> Option<(TaskRef, Attempt)> {
        loop {
            let task = self.ready.pop()?;
            let id = task.head().id();
            if !self.is_in(id, TaskState::Pending) {
                // It was cancelled in the queue; with it goes its place among those of its key.
                self.ready.popped_stale();
                self.release_key(task.head());
                self.gone.push(task);
                continue;
            }
            self.store.start(id, worker, now);
            let number = self.store.get(id).map_or(1, |open| open.attempts);
            if let Some(extras) = extras(&task) {
                if let Some(key) = extras.key.as_ref().filter(|_| number == 1) {
                    self.ready.clear_unique(key);
                }
                if let Some(limit) = extras.limits.run {
                    self.arm(now, limit, Alarm::Limit(id, Limit::Run));
                }
                if let Some(limit) = extras.limits.silence {
                    task.head().heartbeat(nanos_since(self.start, now));
                    self.arm(now, limit, Alarm::Limit(id, Limit::Silence));
                }
            }
            return Some((task, Attempt { number, started: now }));
        }
    }

    /// An attempt has failed and another follows after `delay`; false if the task was ended meanwhile.
    pub(super) fn wait_again(&mut self, id: TaskId, delay: Duration, now: Instant) -> bool {
        let running = self.is_in(id, TaskState::Running);
        if running {
            self.store.wait_again(id);
            self.start_later(id, delay, now);
        }
        running
    }

    /// Another task of this one's key may start.
    pub(super) fn release_key(&mut self, head: &Head) {
        if let Some(key) = head.extras().and_then(|extras| extras.key.as_ref()) {
            self.ready.release(key);
        }
    }

    // ---- ending ----

    /// The task is in its terminal state from now on; the caller has settled its cell.
    pub(super) fn end(
        &mut self,
        id: TaskId,
        state: TaskState,
        error: Option<String>,
        now: Instant,
        unresponsive: bool,
    ) {
        let Some(open) = self.store.take_out(id) else { return };
        let record = record_of(&open.task, state, open.started, open.attempts, error, now);
        self.keep(Record { unresponsive, ..record });
        self.gone.push(open.task);
        if open.armed > 0 {
            let Self { due, store, .. } = self;
            due.disarm(open.armed, |alarm| alarm.task().is_none_or(|id| store.get(id).is_some()));
        }
        if self.is_empty() {
            self.drained.notify();
        }
    }

    /// As [`TaskTable::end`], for a task that no worker has begun, or of which one has just taken an attempt that it
    /// will not make.
    pub(super) fn end_pending(&mut self, id: TaskId, task: &TaskRef, reason: &CancelReason, now: Instant) {
        let Some(open) = self.store.get(id) else { return };
        let (state, delayed, first) = (open.state, open.delayed, open.attempts == 0);
        self.end(id, reason.end_state(), Some(reason.error_text()), now, false);
        // A worker that has just taken it gives it back unbegun, with its key.
        if state != TaskState::Pending {
            return;
        }
        if first && let Some(key) = extras(task).and_then(|extras| extras.key.as_ref()) {
            self.ready.clear_unique(key);
        }
        if delayed {
            self.delayed -= 1;
            // Between two attempts it has a place among those of its key.
            if !first {
                self.release_key(task.head());
            }
        } else if self.ready.note_stale() {
            let Self { ready, store, .. } = self;
            let pending = |id| store.get(id).is_some_and(|open| open.state == TaskState::Pending);
            let (held_places, waited) = ready.purge(|task| pending(task.head().id()));
            held_places.iter().for_each(|task| self.release_key(task.head()));
            self.gone.extend(held_places.into_iter().chain(waited));
        }
    }

    /// Keeps what is left of a task that has ended.
    pub(super) fn keep(&mut self, record: Record<TaskRef>) {
        let forgotten = self.store.keep(record);
        self.gone.extend(forgotten);
    }

    /// A task that was marked unresponsive has ended after all.
    pub(super) fn has_ended_late(&mut self, id: TaskId) {
        if let Some(record) = self.store.record(id) {
            record.unresponsive = false;
        }
    }

    /// Forgets ended tasks whose time is over, and sees to it that the next one is forgotten, too.
    pub(super) fn forget(&mut self, now: Instant) {
        for _ in 0..FORGOTTEN_AT_ONCE {
            let Some(forgotten) = self.store.forget(now) else { break };
            self.gone.extend(forgotten);
        }
        if !self.forget_armed
            && let Some(at) = self.store.next_forgotten()
        {
            self.forget_armed = true;
            self.arm(now, at.saturating_duration_since(now), Alarm::Forget);
        }
    }

    /// As [`TaskTable::forget`], because [`Alarm::Forget`] was due.
    pub(super) fn forget_due(&mut self, now: Instant) {
        self.forget_armed = false;
        self.forget(now);
    }

    // ---- what is due ----

    pub(super) fn arm(&mut self, now: Instant, after: Duration, alarm: Alarm) {
        // What is due after the end of time is never due.
        let Some(at) = now.checked_add(after) else { return };
        if let Some(open) = alarm.task().and_then(|id| self.store.get_mut(id)) {
            open.armed += 1;
        }
        self.earlier |= self.due.arm(at, alarm);
    }

    /// When the earliest is due.
    pub(super) fn next_due(&mut self) -> Option<Instant> {
        self.earlier = false;
        self.due.next()
    }

    /// Whether something is due earlier than [`TaskTable::next_due`] returned; returns true once.
    pub(super) fn take_earlier(&mut self) -> bool {
        std::mem::take(&mut self.earlier)
    }

    /// The earliest, if it is due; it may have become pointless since.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Alarm> {
        self.due.pop_due(now)
    }

    /// The task of an alarm that was popped; `None` if the task has ended since.
    pub(super) fn task_of_alarm(&mut self, id: TaskId) -> Option<TaskRef> {
        let Some(open) = self.store.get_mut(id) else {
            self.due.popped_stale();
            return None;
        };
        open.armed -= 1;
        Some(open.task.clone())
    }

    /// Whether a task whose alarm for this limit was due has exceeded it; a limit that was put off is armed again.
    pub(super) fn exceeds(&mut self, id: TaskId, limit: Limit, now: Instant) -> bool {
        let Some(open) = self.store.get(id) else { return false };
        let limits = extras(&open.task).map(|extras| extras.limits).unwrap_or_default();
        match (limit, open.state) {
            (Limit::Total, _) => true,
            (Limit::Queue, state) => state == TaskState::Pending && open.attempts == 0,
            // A later attempt has a limit of its own.
            (Limit::Run, TaskState::Running) => {
                open.started.zip(limits.run).is_some_and(|(started, limit)| started + limit <= now)
            }
            (Limit::Silence, TaskState::Running) => {
                let Some(allowed) = limits.silence else { return false };
                let silent = nanos_since(self.start, now).saturating_sub(open.task.head().alive());
                let left = allowed.saturating_sub(Duration::from_nanos(silent));
                if !left.is_zero() {
                    self.arm(now, left, Alarm::Limit(id, limit));
                }
                left.is_zero()
            }
            _ => false,
        }
    }
}

/// A task as it is shown, ended or not.
struct Seen<'a> {
    view: TaskView<'a>,
    /// Nothing of one of which only the name is left.
    task: Option<&'a TaskRef>,
}

impl<'a> Seen<'a> {
    fn open(id: TaskId, open: &'a OpenTask<TaskRef>) -> Self {
        let head = open.task.head();
        let view = TaskView {
            state: open.state,
            attempts: open.attempts,
            submitted: Duration::from_nanos(head.submitted()),
            started: open.started,
            ..view_of(id, head.name(), head.extras())
        };
        Self { view, task: Some(&open.task) }
    }

    fn ended(record: &'a Record<TaskRef>) -> Self {
        let (name, task) = match &record.what {
            RecordSubject::Name(name) => (*name, None),
            RecordSubject::Task(task) => (task.head().name(), Some(task)),
        };
        let view = TaskView {
            state: record.state,
            attempts: record.attempts,
            error: record.error.as_deref(),
            unresponsive: record.unresponsive,
            submitted: Duration::from_nanos(record.submitted),
            started: record.started,
            ended: Some(record.ended),
            ..view_of(record.id, name, task.and_then(extras))
        };
        Self { view, task }
    }

    /// `start` is the manager's.
    fn info(&self, start: Instant, now: Instant) -> TaskInfo {
        self.view.info(start, now, self.task.and_then(|task| task.head().progress()))
    }
}

fn view_of<'a>(id: TaskId, name: &'a str, extras: Option<&'a Extras>) -> TaskView<'a> {
    TaskView {
        id,
        name,
        priority: extras.map_or_else(Priority::default, |extras| extras.priority),
        key: extras.and_then(|extras| extras.key.as_ref()).map(|key| &*key.name),
        metadata: extras.map(|extras| &extras.metadata),
        state: TaskState::Pending,
        attempts: 0,
        error: None,
        unresponsive: false,
        submitted: Duration::ZERO,
        started: None,
        ended: None,
    }
}

//! What the threads of a manager share: the table and the workers under one lock, beside it the fast path.
//!
//! Nobody blocks while holding the lock, no code of a user runs under it, and nothing is dropped under it that could
//! run some. Here is how the lock is taken, how a task is accepted, and what can be seen; [`workers`] runs the tasks,
//! [`cancel`] ends them early, [`reaper`] sees to what is due.

mod cancel;
mod crew;
mod periods;
mod reaper;
mod workers;

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use crossbeam_utils::CachePadded;

use super::context::TaskEnv;
use super::error::Refusal;
use super::fast::{Backlog, FastPath, Queue};
use super::info::{Counts, Filter, LISTED, TaskInfo, TasksStatus};
use super::options::{Extras, TaskConfig, WhenFull};
use super::state::TaskState;
use super::store::TaskId;
use super::table::{Kept, TaskTable, drop_all, extras};
use super::task::TaskRef;
use crate::base::lock::lock;
use crew::WorkerSet;
use periods::Periods;

pub(super) use periods::MakeTask;

/// How far the manager's stop has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Open,
    /// Takes no more tasks.
    Draining,
    /// Its threads end when they have nothing to run.
    Closed,
}

pub(super) struct Scheduler {
    pub(super) config: TaskConfig,
    pub(super) env: TaskEnv,
    pub(super) fast: FastPath,
    state: CachePadded<Mutex<SchedulerState>>,
    /// There is a task for an idle worker.
    work: Condvar,
    /// Something is due earlier than the reaper knows.
    time: Condvar,
}

pub(super) struct SchedulerState {
    pub(super) table: TaskTable,
    backlog: Backlog,
    crew: WorkerSet,
    periods: Periods,
    phase: Phase,
    reaper_sleeps: bool,
}

/// The state under its lock, with all tasks in the table; what was changed is made known when this is dropped.
pub(super) struct Locked<'a> {
    scheduler: &'a Scheduler,
    /// There until it is dropped.
    state: Option<MutexGuard<'a, SchedulerState>>,
}

impl Deref for Locked<'_> {
    type Target = SchedulerState;

    fn deref(&self) -> &SchedulerState {
        self.state.as_ref().expect("the lock is held")
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut SchedulerState {
        self.state.as_mut().expect("the lock is held")
    }
}

impl<'a> Locked<'a> {
    /// The lock alone; what is gone stays to be dropped.
    fn into_guard(mut self) -> MutexGuard<'a, SchedulerState> {
        let mut state = self.state.take().expect("the lock is held");
        self.scheduler.make_known(&mut state);
        state
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let Some(mut state) = self.state.take() else { return };
        self.scheduler.make_known(&mut state);
        let gone = std::mem::take(&mut state.table.gone);
        drop(state);
        drop_all(gone);
    }
}

impl Scheduler {
    pub(super) fn new(config: TaskConfig) -> Self {
        let env = TaskEnv::new(&config);
        let state = SchedulerState {
            table: TaskTable::new(&config, env.start),
            backlog: Backlog::new(),
            crew: WorkerSet::default(),
            periods: Periods::default(),
            phase: Phase::Open,
            reaper_sleeps: false,
        };
        Self {
            env,
            fast: FastPath::new(&config),
            state: CachePadded::new(Mutex::new(state)),
            work: Condvar::new(),
            time: Condvar::new(),
            config,
        }
    }

    /// The state with all tasks in the table.
    pub(super) fn lock(&self) -> Locked<'_> {
        self.collected(self.lock_only())
    }

    /// The state, with inline tasks wherever they are.
    fn lock_only(&self) -> MutexGuard<'_, SchedulerState> {
        lock(&self.state)
    }

    fn collected<'a>(&'a self, mut guard: MutexGuard<'a, SchedulerState>) -> Locked<'a> {
        let state = &mut *guard;
        self.fast.collect(&mut state.backlog, &mut state.table, || self.env.now());
        Locked { scheduler: self, state: Some(guard) }
    }

    /// Tells submitters of room in the queues, and the reaper of what is due earlier than it knows.
    fn make_known(&self, state: &mut SchedulerState) {
        self.fast.show_places(&mut state.backlog, &state.table);
        self.notify_reaper(state);
    }

    fn notify_reaper(&self, state: &mut SchedulerState) {
        if state.table.take_earlier() && state.reaper_sleeps {
            self.time.notify_one();
        }
    }

    // ---- submitting ----

    /// Has a task done; blocks for room as its options, or else the configuration, say.
    pub(super) fn accept(self: &Arc<Self>, task: TaskRef) -> Result<TaskId, Refusal> {
        let when_full = self.config.when_full;
        match extras(&task) {
            None => self.accept_inline(task, when_full),
            Some(extras) => self.accept_in_table(&task, extras, extras.when_full.unwrap_or(when_full)),
        }
    }

    /// As [`Scheduler::accept`], but never blocks.
    fn accept_now(self: &Arc<Self>, task: TaskRef) -> Result<TaskId, Refusal> {
        match extras(&task) {
            None => self.accept_inline(task, WhenFull::Refuse),
            Some(extras) => self.accept_in_table(&task, extras, WhenFull::Refuse),
        }
    }

    fn accept_inline(self: &Arc<Self>, task: TaskRef, when_full: WhenFull) -> Result<TaskId, Refusal> {
        let submitted = self.env.nanos(self.env.now());
        let (id, wake) = self.fast.submit(task, submitted, when_full)?;
        self.wake_worker_if(wake);
        Ok(id)
    }

    /// As [`Scheduler::accept`], of work that nobody wants a handle of; an error hands the work back.
    pub(super) fn accept_detached<T, E, F>(
        self: &Arc<Self>,
        name: &'static str,
        work: F,
    ) -> Result<TaskId, (Refusal, F)>
    where
        F: FnOnce(&super::context::TaskContext<'_>) -> Result<T, E> + Send + 'static,
        T: 'static,
        E: std::fmt::Display + 'static,
    {
        let submitted = self.env.nanos(self.env.now());
        let (id, wake) = self.fast.submit_detached(name, work, submitted, self.config.when_full)?;
        self.wake_worker_if(wake);
        Ok(id)
    }

    fn accept_in_table(
        self: &Arc<Self>,
        task: &TaskRef,
        extras: &Extras,
        when_full: WhenFull,
    ) -> Result<TaskId, Refusal> {
        let is_duplicate =
            |state: &SchedulerState| extras.key.as_ref().is_some_and(|key| state.table.ready.is_duplicate(key));
        // Before a wait for room that it does not need, and once more when it has it.
        if extras.key.is_some() && is_duplicate(&self.lock_only()) {
            return Err(Refusal::Duplicate);
        }
        let queue = if extras.delay.is_some() { Queue::Delayed } else { Queue::Waiting };
        let now = self.env.now();
        let id = self.fast.admit(queue, when_full)?;
        task.head().accept(id, self.env.nanos(now));
        let mut state = self.lock();
        state.backlog.count_for_table(queue);
        if state.phase != Phase::Open {
            return Err(Refusal::Stopping);
        }
        if is_duplicate(&state) {
            return Err(Refusal::Duplicate);
        }
        state.table.enter(id, task, extras, now);
        self.wake_worker_for(state);
        Ok(id)
    }

    // ---- looking ----

    /// A task that has not ended.
    pub(super) fn task(&self, id: TaskId) -> Option<TaskRef> {
        self.lock().table.task(id)
    }

    /// What is there of a task, ended or not.
    pub(super) fn kept(&self, id: TaskId) -> Kept {
        self.lock().table.kept(id)
    }

    pub(super) fn info(&self, id: TaskId) -> Option<TaskInfo> {
        let now = self.env.now();
        self.lock().table.info(id, now)
    }

    pub(super) fn list(&self, filter: &Filter) -> Vec<TaskInfo> {
        let now = self.env.now();
        self.lock().table.list(now, filter.most.unwrap_or(usize::MAX), |task| filter.takes(task))
    }

    /// How many tasks are in each state, wherever they are.
    pub(super) fn counts(&self) -> Counts {
        let state = self.lock_only();
        let mut counts = state.table.counts();
        self.fast.count(&state.backlog, &mut counts);
        counts.into()
    }

    pub(super) fn status(&self) -> TasksStatus {
        let now = self.env.now();
        let state = self.lock();
        TasksStatus {
            name: self.config.name.to_owned(),
            counts: state.table.counts().into(),
            delayed: state.table.delayed,
            queue: self.config.queue,
            workers: state.crew.active,
            workers_max: self.config.workers,
            idle: state.crew.idle.asleep,
            written_off: state.crew.written_off,
            running: state.table.list(now, LISTED, |task| task.state == TaskState::Running),
            unresponsive: state.table.list(now, LISTED, |task| task.unresponsive),
        }
    }
}

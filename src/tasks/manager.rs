//! The manager: starts the threads, takes tasks, stops.
//!
//! Owner: whoever holds the [`TaskManager`]. Its workers (`name-0`, …) block in the task queue, then in whatever a task
//! does; its reaper (`name-time`) blocks until the next moment at which something is due. Kick: closing the manager, which
//! raises the signal of every task. Ends: the workers with nothing in hand, the reaper at once, when it is closed.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::context::TaskContext;
use super::handle::TaskHandle;
use super::info::{Counts, Filter, TaskInfo, TasksStatus};
use super::options::{TaskConfig, TaskOptions};
use super::retry::{Retries, RetryPolicy};
use super::shared::{Refusal, Shared};
use super::state::CancelReason;
use super::store::TaskId;
use super::task::{Job, OnceWork, RetriedWork, Task, Work, keep_backtraces};
use crate::base::stop::Step;
use crate::base::thread::{Kick, Thread, spawn};

/// A manager cannot be started.
#[derive(Debug, thiserror::Error)]
#[error("task manager: {}", .0.join("; "))]
pub struct ConfigError(pub Vec<String>);

/// A task was not accepted; here is its work back.
#[derive(thiserror::Error)]
#[error("{refusal}")]
pub struct SubmitError<F> {
    /// Why.
    pub refusal: Refusal,
    /// What it would have done.
    pub work: F,
}

impl<F> fmt::Debug for SubmitError<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SubmitError").field(&self.refusal).finish()
    }
}

/// The answer of [`Tasks::wait_ended`].
#[derive(Debug, Clone, PartialEq)]
pub enum Ended {
    /// The task has ended.
    Yes(TaskInfo),
    /// It has not, within the time.
    StillRunning,
    /// No task of this id is known: there was none, or it is forgotten.
    Unknown,
}

/// The account of a stop.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TasksReport {
    /// Tasks that were cancelled because the time to finish was over.
    pub cancelled: usize,
    /// Tasks that did not end although they were told to; their threads are stragglers of the step.
    pub unresponsive: Vec<TaskInfo>,
}

/// Owns the threads on which tasks run. Dropping it cancels every task and blocks until all have ended;
/// [`TaskManager::stop`] does so in order and with a budget.
#[must_use = "dropping the manager stops it"]
pub struct TaskManager {
    tasks: Tasks,
    reaper: Option<Thread<()>>,
}

impl fmt::Debug for TaskManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TaskManager").field(&self.tasks).finish()
    }
}

impl TaskManager {
    /// Starts the reaper; workers are started as tasks need them.
    ///
    /// The first manager of a process puts a panic hook before the one that is there, which keeps the backtraces of panicking
    /// tasks and then calls the one that was there.
    ///
    /// # Errors
    /// [`ConfigError`] with every problem of the numbers; then nothing was started.
    pub fn start(config: TaskConfig) -> Result<Self, ConfigError> {
        let problems = config.validate();
        if !problems.is_empty() {
            return Err(ConfigError(problems));
        }
        keep_backtraces();
        let clock = config.clock.clone();
        let shared = Arc::new(Shared::new(config));
        let weak = Arc::downgrade(&shared);
        clock.on_advance(move || weak.upgrade().inspect(|shared| shared.tick()).is_some());
        let (reaping, kicked) = (shared.clone(), shared.clone());
        let kick = Kick::new("the next deadline of a task", move || kicked.close());
        let reaper = spawn(format!("{}-time", shared.config.name), kick, move || reaping.reap());
        Ok(Self { tasks: Tasks { shared }, reaper: Some(reaper) })
    }

    /// What tasks are submitted with; may outlive the manager.
    pub fn handle(&self) -> Tasks {
        self.tasks.clone()
    }

    /// Takes no more tasks; returns at once. Those whose time has not come are cancelled, all others go on.
    pub fn close(&self) {
        drop(self.tasks.shared.drain());
        self.tasks.shared.stop.drain();
    }

    /// Stops in order: takes no more tasks, lets those that wait and run end within the step's budget, cancels the rest and
    /// gives it [`crate::base::stop::CANCEL_BUDGET`], joins every thread. What does not end even then is named in the report,
    /// its waiters are woken, and its thread is a straggler of the step.
    pub fn stop(mut self, step: &mut Step) -> TasksReport {
        let shared = self.tasks.shared.clone();
        let emptied = shared.drain();
        shared.stop.drain();
        let mut report = TasksReport::default();
        if !step.wait(&emptied) {
            report.cancelled = shared.cancel_all();
            step.extend_for_cancel();
            let grace = shared.config.cancel_grace.min(step.deadline().saturating_duration_since(Instant::now()));
            // Whoever waits for a disconnect and sees none goes on to give up what is left.
            let _ended = emptied.recv_timeout(grace);
        }
        shared.give_up_all();
        let unresponsive = |info: &TaskInfo| info.unresponsive;
        report.unresponsive = shared.list(&Filter::default()).into_iter().filter(unresponsive).collect();
        shared.close();
        for thread in shared.crew() {
            step.join(thread);
        }
        if let Some(reaper) = self.reaper.take() {
            step.join(reaper);
        }
        for task in &report.unresponsive {
            log::error!("task {} ({}) did not end", task.id, task.name);
        }
        report
    }
}

impl Drop for TaskManager {
    fn drop(&mut self) {
        if let Some(reaper) = self.reaper.take() {
            self.tasks.shared.close();
            drop(reaper);
            drop(self.tasks.shared.crew());
        }
    }
}

/// Submits tasks and looks at them; cheap to clone.
#[derive(Clone)]
pub struct Tasks {
    shared: Arc<Shared>,
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tasks({}, {:?})", self.shared.config.name, self.counts())
    }
}

fn once<F>(error: SubmitError<OnceWork<F>>) -> SubmitError<F> {
    let work = error.work.0.expect("work that nobody has begun is there");
    SubmitError { refusal: error.refusal, work }
}

impl Tasks {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Has `work` done by a worker. Blocks for room as the options, or else the configuration, say; a stop ends that.
    ///
    /// # Errors
    /// [`SubmitError`], with the work.
    pub fn submit<T, E, F>(&self, options: impl Into<TaskOptions>, work: F) -> Result<TaskHandle<T, E>, SubmitError<F>>
    where
        F: FnOnce(&TaskContext<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: fmt::Display + Send + 'static,
    {
        let task = self.accept(options.into(), OnceWork(Some(work)), false).map_err(once)?;
        Ok(TaskHandle::new(self.shared.clone(), task))
    }

    /// As [`Tasks::submit`], for work that is tried again when it fails.
    ///
    /// # Errors
    /// [`SubmitError`], with the work.
    pub fn submit_retried<T, E, F>(
        &self,
        options: impl Into<TaskOptions>,
        policy: RetryPolicy<E>,
        work: F,
    ) -> Result<TaskHandle<T, E>, SubmitError<F>>
    where
        F: FnMut(&TaskContext<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: fmt::Display + Send + 'static,
    {
        let task = self
            .accept(options.into().heavy(), RetriedWork(work, Retries::new(policy)), false)
            .map_err(|error| SubmitError { refusal: error.refusal, work: error.work.0 })?;
        Ok(TaskHandle::new(self.shared.clone(), task))
    }

    /// Has `work` done as [`Tasks::submit`] does, for whoever does not want its result and needs no handle: it is found by its
    /// id, and its failure is seen there.
    ///
    /// # Errors
    /// [`SubmitError`], with the work.
    pub fn spawn<T, E, F>(&self, options: impl Into<TaskOptions>, work: F) -> Result<TaskId, SubmitError<F>>
    where
        F: FnOnce(&TaskContext<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: fmt::Display + Send + 'static,
    {
        let options = options.into();
        if options.extras.is_some() {
            return self.accept(options, OnceWork(Some(work)), true).map(|task| task.head().id()).map_err(once);
        }
        let work = self.shared.empties.0.fill::<F, T, E>(work);
        let accepted = self.shared.accept_bare(options.name, work, self.shared.config.when_full);
        accepted.map_err(|(refusal, work)| SubmitError { refusal, work: work.into_inner() })
    }

    fn accept<T, E, W>(
        &self,
        options: TaskOptions,
        work: W,
        unwanted: bool,
    ) -> Result<Arc<Task<W, T, E>>, SubmitError<W>>
    where
        W: Work<T, E> + 'static,
        T: Send + 'static,
        E: fmt::Display + Send + 'static,
    {
        let task = Arc::new(Task::new(options, work, unwanted));
        match self.shared.accept(task.clone(), self.shared.config.when_full) {
            Ok(_) => Ok(task),
            Err(refusal) => {
                let work = task.into_work().expect("work that nobody has accepted is there");
                Err(SubmitError { refusal, work })
            }
        }
    }

    /// Does `work` once every `period` until the value that this gives is dropped; for the first time after one period. Each
    /// time is a task of its own, with these options. A time at which the one before still runs, or the queue has no room,
    /// is left out.
    ///
    /// # Errors
    /// [`Refusal::Stopping`].
    ///
    /// # Panics
    /// If `period` is zero.
    pub fn every<E, F>(
        &self,
        period: Duration,
        options: impl Fn() -> TaskOptions + Send + Sync + 'static,
        work: F,
    ) -> Result<Periodic, Refusal>
    where
        F: Fn(&TaskContext<'_>) -> Result<(), E> + Send + Sync + 'static,
        E: fmt::Display + Send + 'static,
    {
        assert!(!period.is_zero(), "a period of zero is no period");
        let work = Arc::new(work);
        let make = move || -> Arc<dyn Job> {
            let work = work.clone();
            let mut options = options();
            if let Some(extras) = &mut options.extras {
                // The thread that sees to all deadlines does not wait for room.
                extras.when_full = None;
            }
            Arc::new(Task::new(options, OnceWork(Some(move |cx: &TaskContext<'_>| work(cx))), true))
        };
        let number = self.shared.add_period(period, Arc::new(make))?;
        Ok(Periodic { shared: self.shared.clone(), number })
    }

    /// Tells a task to end; see [`TaskHandle::cancel`]. False if it has ended, or is unknown.
    pub fn cancel(&self, id: TaskId) -> bool {
        let job = self.shared.lock().store.get(id).map(|entry| entry.job.clone());
        job.is_some_and(|job| self.shared.cut(id, &job, CancelReason::Requested))
    }

    pub(super) fn cancel_for(&self, id: TaskId, reason: CancelReason) {
        let job = self.shared.lock().store.get(id).map(|entry| entry.job.clone());
        if let Some(job) = job {
            self.shared.cut(id, &job, reason);
        }
    }

    /// Blocks until a task has ended, `timeout` at most. Its result stays with its handle.
    pub fn wait_ended(&self, id: TaskId, timeout: Duration) -> Ended {
        let job = self.shared.lock().store.get(id).map(|entry| entry.job.clone());
        let Some(job) = job else { return self.info(id).map_or(Ended::Unknown, Ended::Yes) };
        let deadline = Instant::now() + timeout;
        let mut seen = 0;
        loop {
            let (version, ended) = job.watch(seen, deadline);
            if ended {
                return self.info(id).map_or(Ended::Unknown, Ended::Yes);
            }
            if version == seen || Instant::now() >= deadline {
                return Ended::StillRunning;
            }
            seen = version;
        }
    }

    /// What is known of a task; `None` if it is unknown or forgotten.
    pub fn info(&self, id: TaskId) -> Option<TaskInfo> {
        self.shared.info(id)
    }

    /// The known tasks that `filter` takes, in the order in which they were accepted. Looks at the whole table under its lock: for people, not for every task.
    pub fn list(&self, filter: &Filter) -> Vec<TaskInfo> {
        self.shared.list(filter)
    }

    /// How many known tasks are in each state; takes the same time however many there are.
    pub fn counts(&self) -> Counts {
        self.shared.counts()
    }

    /// How many tasks wait or run.
    pub fn open(&self) -> usize {
        let counts = self.counts();
        counts.pending + counts.running
    }

    /// All of it in numbers, with the tasks at work.
    pub fn status(&self) -> TasksStatus {
        self.shared.status()
    }
}

/// A periodic task; dropping it ends the repetition, not a run that has begun.
#[must_use = "dropping it ends the repetition"]
pub struct Periodic {
    shared: Arc<Shared>,
    number: u64,
}

impl fmt::Debug for Periodic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Periodic({})", self.number)
    }
}

impl Periodic {
    /// Times that were left out.
    pub fn skipped(&self) -> u64 {
        self.shared.lock().periods.get(&self.number).map_or(0, |period| period.skipped)
    }
}

impl Drop for Periodic {
    fn drop(&mut self) {
        self.shared.remove_period(self.number);
    }
}

#[cfg(test)]
impl Tasks {
    /// Whether a task was told to end.
    pub(super) fn shared_cancelled(&self, id: TaskId) -> bool {
        self.shared.lock().store.get(id).is_some_and(|entry| entry.job.head().cancelled().is_some())
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Entries of the queue, with those that were cancelled in place.
    pub(super) fn queue_len(&self) -> usize {
        self.shared.lock().ready.len()
    }
}

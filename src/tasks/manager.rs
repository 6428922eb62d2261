//! The manager: starts the threads, takes tasks, stops.
//!
//! Owner: whoever holds the [`TaskManager`]. Its workers (`name-0`, …) block in the task queue, then in whatever a task
//! does; its reaper (`name-time`) blocks until the next moment at which something is due. Kick: closing the manager,
//! which raises the signal of every task. Ends: the workers with nothing to run, the reaper at once, when it is
//! closed.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cell::Waited;
use super::context::TaskContext;
use super::error::{Refusal, TaskError};
use super::handle::TaskHandle;
use super::info::{Counts, Filter, TaskInfo, TasksStatus};
use super::options::{TaskConfig, TaskOptions};
use super::retry::{Retries, RetryPolicy};
use super::scheduler::{MakeTask, Scheduler};
use super::state::CancelReason;
use super::store::TaskId;
use super::table::Kept;
use super::task::{AnyTask, OnceWork, Outcome, RetriedWork, Task, TaskRef, Work};
use crate::base::stop::{Step, StopReport, Stopping, stop_dropped};
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

/// The answer of [`Tasks::wait_for`].
#[derive(Debug, Clone, PartialEq)]
pub enum WaitEnd {
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
    /// Tasks that did not end although they were cancelled; their threads are stragglers of the step.
    pub unresponsive: Vec<TaskInfo>,
}

/// Owns the threads on which tasks run; [`TaskManager::stop`] ends them in order and with a budget.
///
/// Dropping it cancels every task and blocks until all have ended, within [`crate::base::stop::CANCEL_BUDGET`]: what
/// does not end is left behind with its thread.
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
    /// # Errors
    /// [`ConfigError`] with every problem of the numbers; then nothing was started.
    pub fn start(config: TaskConfig) -> Result<Self, ConfigError> {
        let problems = config.validate();
        if !problems.is_empty() {
            return Err(ConfigError(problems));
        }
        let clock = config.clock.clone();
        let scheduler = Arc::new(Scheduler::new(config));
        let weak = Arc::downgrade(&scheduler);
        clock.on_advance(move || weak.upgrade().inspect(|scheduler| scheduler.tick()).is_some());
        let (reaping, kicked) = (scheduler.clone(), scheduler.clone());
        let kick = Kick::new("the next deadline of a task", move || kicked.close());
        let reaper = spawn(format!("{}-time", scheduler.config.name), kick, move || reaping.reap());
        Ok(Self { tasks: Tasks { scheduler }, reaper: Some(reaper) })
    }

    /// What tasks are submitted with; may outlive the manager.
    pub fn handle(&self) -> Tasks {
        self.tasks.clone()
    }

    /// Takes no more tasks; returns at once. Those whose time has not come are cancelled, all others go on.
    pub fn close(&self) {
        drop(self.tasks.scheduler.drain());
        self.tasks.scheduler.env.stop.drain();
    }

    /// Stops it alone, within `budget`, as [`TaskManager::stop_in`] does; tasks that do not end are
    /// among the stragglers of the report.
    pub fn stop(self, budget: Duration) -> StopReport {
        let mut stopping = Stopping::within(budget);
        let report = stopping.step("tasks", budget, |step| self.stop_in(step));
        stopping.cancelled_jobs(report.cancelled);
        stopping.finish()
    }

    /// Stops in order: takes no more tasks, lets those that wait and run end within the step's budget, cancels the rest
    /// and gives it [`crate::base::stop::CANCEL_BUDGET`], joins every thread. What does not end even then is named in
    /// the report, its waiters are woken, and its thread is a straggler of the step.
    pub fn stop_in(mut self, step: &mut Step) -> TasksReport {
        self.end(step)
    }

    fn end(&mut self, step: &mut Step) -> TasksReport {
        let mut report = TasksReport::default();
        let scheduler = &self.tasks.scheduler;
        let drained = scheduler.drain();
        scheduler.env.stop.drain();
        if !step.wait(&drained) {
            report.cancelled = scheduler.cancel_all();
            step.extend_for_cancel();
            let left = step.deadline().saturating_duration_since(Instant::now());
            // Whoever waits for a disconnect and sees none goes on to give up what is left.
            let _drained = drained.recv_timeout(scheduler.config.cancel_grace.min(left));
        }
        scheduler.give_up_all();
        let unresponsive = |info: &TaskInfo| info.unresponsive;
        report.unresponsive = scheduler.list(&Filter::default()).into_iter().filter(unresponsive).collect();
        scheduler.close();
        step.join_all(scheduler.take_workers().into_iter().chain(self.reaper.take()));
        for task in &report.unresponsive {
            log::error!("task {} ({}) did not end", task.id, task.name);
            step.name_straggler(format!("task {} ({})", task.id, task.name));
        }
        report
    }
}

/// What a manager's handle does, the manager does.
impl Deref for TaskManager {
    type Target = Tasks;

    fn deref(&self) -> &Tasks {
        &self.tasks
    }
}

impl Drop for TaskManager {
    fn drop(&mut self) {
        if self.reaper.is_some() {
            stop_dropped(|step| drop(self.end(step)));
        }
    }
}

/// Submits tasks and looks at them; cheap to clone.
#[derive(Clone)]
pub struct Tasks {
    scheduler: Arc<Scheduler>,
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tasks({}, {:?})", self.scheduler.config.name, self.counts())
    }
}

fn once<F>(error: SubmitError<OnceWork<F>>) -> SubmitError<F> {
    let work = error.work.0.expect("work that nobody has begun is there");
    SubmitError { refusal: error.refusal, work }
}

impl Tasks {
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
        Ok(TaskHandle::new(self.scheduler.clone(), task))
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
            .accept(options.into().in_table(), RetriedWork(work, Retries::new(policy)), false)
            .map_err(|error| SubmitError { refusal: error.refusal, work: error.work.0 })?;
        Ok(TaskHandle::new(self.scheduler.clone(), task))
    }

    /// Has `work` done as [`Tasks::submit`] does, for whoever does not want its result and needs no handle: it is found
    /// by its id, and its failure is seen there.
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
        let accepted = self.scheduler.accept_detached(options.name, work);
        accepted.map_err(|(refusal, work)| SubmitError { refusal, work })
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
        match self.scheduler.accept(task.clone()) {
            Ok(_) => Ok(task),
            Err(refusal) => {
                let work = task.into_work().expect("work that nobody has accepted is there");
                Err(SubmitError { refusal, work })
            }
        }
    }

    /// Does `work` once every `period` until the value that this gives is dropped; for the first time after one period.
    /// Each time is a task of its own, with these options. A time at which the one before still runs, or the queue has
    /// no room, is left out.
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
        let make: MakeTask = Arc::new(move || -> TaskRef {
            let work = work.clone();
            Arc::new(Task::new(options(), OnceWork(Some(move |cx: &TaskContext<'_>| work(cx))), true))
        });
        let number = self.scheduler.add_period(period, make)?;
        Ok(Periodic { scheduler: self.scheduler.clone(), number })
    }

    /// Tells a task to end, and why; see [`TaskHandle::cancel`]. False if it has ended, or is unknown.
    pub fn cancel(&self, id: TaskId, reason: impl Into<String>) -> bool {
        self.cancel_for(id, &CancelReason::requested(reason))
    }

    pub(super) fn cancel_for(&self, id: TaskId, reason: &CancelReason) -> bool {
        self.scheduler.task(id).is_some_and(|task| self.scheduler.cancel(id, &task, reason))
    }

    /// Blocks until a task has ended, `timeout` at most. Its result stays with its handle, or for [`Tasks::result`].
    pub fn wait_for(&self, id: TaskId, timeout: Duration) -> WaitEnd {
        let Some(task) = self.scheduler.task(id) else { return self.info(id).map_or(WaitEnd::Unknown, WaitEnd::Yes) };
        let deadline = Instant::now() + timeout;
        let mut seen = 0;
        loop {
            let (version, ended) = task.watch(seen, deadline);
            if ended {
                return self.info(id).map_or(WaitEnd::Unknown, WaitEnd::Yes);
            }
            if version == seen || Instant::now() >= deadline {
                return WaitEnd::StillRunning;
            }
            seen = version;
        }
    }

    /// Takes the result of a task that was submitted with [`TaskOptions::keep_result`], once: it is then the caller's.
    /// Never blocks; [`Tasks::wait_for`] waits for the task's end.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use phalanx::tasks::{TaskConfig, TaskError, TaskManager, TaskOptions, WaitEnd};
    ///
    /// let manager = TaskManager::start(TaskConfig::new("example"))?;
    /// let id = manager.spawn(TaskOptions::new("sum").keep_result(), |_| Ok::<i32, String>(1 + 1))?;
    /// assert!(matches!(manager.wait_for(id, Duration::from_secs(60)), WaitEnd::Yes(_)));
    /// assert_eq!(manager.result::<i32, String>(id)?, 2);
    /// assert!(matches!(manager.result::<i32, String>(id), Err(TaskError::Taken)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Why there is none: [`TaskError`].
    pub fn result<T: 'static, E: 'static>(&self, id: TaskId) -> Result<T, TaskError<E>> {
        let task = match self.scheduler.kept(id) {
            Kept::Task(task) if task.head().keeps_result() => task,
            Kept::Task(_) | Kept::Name => return Err(TaskError::NotKept),
            Kept::Nothing => return Err(TaskError::Unknown),
        };
        let mut waited: Option<Waited<Outcome<T, E>>> = None;
        task.take_outcome(&mut waited);
        waited.map_or(Err(TaskError::OtherType), |waited| {
            waited.into_result(task.head(), self.scheduler.config.result_bytes)
        })
    }

    /// What is known of a task; `None` if it is unknown or forgotten.
    pub fn info(&self, id: TaskId) -> Option<TaskInfo> {
        self.scheduler.info(id)
    }

    /// The known tasks that `filter` takes, in the order in which they were accepted. Looks at the whole table under
    /// its lock: for people, not for every task.
    pub fn list(&self, filter: &Filter) -> Vec<TaskInfo> {
        self.scheduler.list(filter)
    }

    /// How many known tasks are in each state; takes the same time however many there are.
    pub fn counts(&self) -> Counts {
        self.scheduler.counts()
    }

    /// How many tasks wait or run.
    pub fn open(&self) -> usize {
        let counts = self.counts();
        counts.pending + counts.running
    }

    /// All of it in numbers, with the tasks at work.
    pub fn status(&self) -> TasksStatus {
        self.scheduler.status()
    }
}

/// A periodic task; dropping it ends the repetition, not a run that has begun.
#[must_use = "dropping it ends the repetition"]
pub struct Periodic {
    scheduler: Arc<Scheduler>,
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
        self.scheduler.skipped(self.number)
    }
}

impl Drop for Periodic {
    fn drop(&mut self) {
        self.scheduler.remove_period(self.number);
    }
}

#[cfg(test)]
impl Tasks {
    /// Whether a task was cancelled.
    pub(super) fn is_cancelled(&self, id: TaskId) -> bool {
        self.scheduler.task(id).is_some_and(|task| task.head().is_cancelled())
    }

    pub(super) fn scheduler(&self) -> &Arc<Scheduler> {
        &self.scheduler
    }

    /// Entries of the queue, with those that were cancelled in place.
    pub(super) fn queue_len(&self) -> usize {
        self.scheduler.lock().table.ready.len()
    }
}

//! Our process as a worker of Celery: takes tasks from Celery's queues in Redis, runs them, and stores what came of
//! them.
//!
//! Real Celery producers feed it, real Celery tools see it and call tasks off. What it does differently, on purpose:
//!
//! * A message is acknowledged in one piece with the storing of its result, after the task (Celery's `acks_late`).
//! * What a worker holds comes back because the worker is dead, not because it has taken long: each worker says that it
//!   lives, and keeps what it holds fresh, so that workers of Celery, who go by age, leave it alone. What comes back is
//!   marked.
//! * Unknown tasks and messages that cannot be read are answered and put aside in the list `phalanx.aside`, not
//!   dropped.
//! * A part of a chord is counted in one piece with the acknowledgement of its message, and so is the body called.
//! * Not supported, and reported in the log or in the answer when it is asked for: other serializers than JSON,
//!   protocol 1, Redis Cluster.
//!
//! Owner of the threads `cel-take` and `cel-control`: [`CeleryWorker`]. They block in: an answer of Redis, or a wait
//! for something to do. Kick: the stop signal and their wakes. They end with the worker's stop, in its order.
//!
//! Threads: `cel-take` takes messages, `cel-work-n` run handlers, `cel-cmd` (a commander) settles messages,
//! `cel-results` stores results that are in another Redis, `cel-control` listens to remote control, and a timer.

mod adjust;
mod answers;
mod builtin;
mod call;
mod changes;
mod config;
mod context;
mod control;
mod core;
mod held;
mod lifecycle;
mod limits;
mod liveness;
mod lost;
mod mailbox;
mod namesakes;
mod node;
mod outcome;
mod policy;
mod pool;
mod queue;
mod rate;
mod registry;
mod restore;
mod revoked;
mod run;
mod scripts;
mod siblings;
mod take;
mod telling;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::select;
use serde::Serialize;

pub use call::{Args, TaskError};
pub use config::WorkerConfig;
pub use context::TaskCx;
pub use held::Counts;
pub use outcome::ASIDE;
pub use registry::Registry;

pub use super::options::TaskOptions;

use self::core::{Core, CoreParts, Overdue, TAKE_PART};
use self::held::Stage;
use self::policy::Policies;
use self::pool::Pool;
use self::queue::RunQueue;
use self::run::CancelCause;
use self::scripts::LEAVE;
use crate::base::lock::lock;
use crate::base::shutdown::Shutdown;
use crate::base::stop::{CANCEL_BUDGET, Step, StopReport, Stopping, stop_dropped};
use crate::base::thread::{Kick, Thread, spawn};
use crate::base::timer::Timer;
use crate::base::waits::waiting_unless_noted;
use crate::ops::errors::ErrorClass;
use crate::ops::status::Board;
use crate::redis::{Commander, RedisError, Repeat, Request, Wake};

/// How long the thread that takes may finish a request at a stop before its connection is ended.
const INTAKE_GRACE: Duration = Duration::from_secs(1);

/// How long a worker that holds nothing waits until Redis knows that it ends.
const SIGN_OFF_TIME: Duration = Duration::from_secs(1);

/// Why a worker cannot be started.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// The settings are of no use.
    #[error("{0}")]
    Config(String),
    /// The system has no file descriptor left.
    #[error(transparent)]
    Redis(#[from] RedisError),
}

impl WorkerError {
    /// Always [`ErrorClass::Fatal`].
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Fatal
    }
}

/// A worker that runs. [`CeleryWorker::stop`] ends it; so does dropping it, as a stop that is cancelled at once.
#[derive(Debug)]
#[must_use = "dropping the worker cancels its tasks; stop lets them end"]
pub struct CeleryWorker {
    core: Arc<Core>,
    /// Taken by the stop.
    threads: Option<WorkerThreads>,
}

#[derive(Debug)]
struct WorkerThreads {
    commander: Commander,
    /// Where results are elsewhere.
    results: Option<Commander>,
    timer: Timer,
    pool: Arc<Pool>,
    take: Thread<()>,
    control: Thread<()>,
    control_wake: Wake,
}

/// What others see of a worker; clones are the same. It may outlive its worker.
#[derive(Clone)]
pub struct WorkerHandle(Arc<Core>);

/// How a worker is.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WorkerState {
    /// Whether it takes messages now.
    pub consuming: bool,
    /// Why it last did not.
    pub last_error: Option<RedisError>,
    /// What it holds.
    pub counts: Counts,
    /// Messages that it has taken.
    pub taken: u64,
    /// Messages of dead workers that it has put back.
    pub restored: u64,
    /// Messages that it has put aside.
    pub aside: u64,
    /// Keys beside its queues that tell of producers with other settings, in words.
    pub siblings: Vec<String>,
    /// Ids of other workers that have the same name.
    pub namesakes: Vec<String>,
    /// Tasks that have failed by their time limit and whose handlers run on all the same; each has a thread.
    pub overdue: Vec<OverdueTask>,
}

/// A task whose handler has not ended at its time limit.
#[derive(Debug, Clone, Serialize)]
pub struct OverdueTask {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Seconds since its time limit.
    pub seconds: f64,
}

/// One task that a worker holds.
#[derive(Debug, Clone, Serialize)]
pub struct HeldTask {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `scheduled`, `waiting`, `running` or `settling`.
    pub stage: &'static str,
    /// Seconds since it was taken.
    pub held_seconds: f64,
    /// How often it was retried.
    pub retries: u32,
    /// The progress that it last reported.
    pub progress: Option<serde_json::Value>,
}

/// What a stop left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WorkerReport {
    /// Tasks whose handler was cancelled.
    pub cancelled: usize,
    /// Tasks that were not run, or not to their end, and went back to their queue.
    pub given_back: usize,
    /// Messages that are still recorded in the worker's name, because Redis was away: other workers put them back.
    pub left: usize,
}

impl WorkerReport {
    /// Adds it to the account of a stop.
    pub(crate) fn add_to(self, stopping: &mut Stopping) {
        stopping.cancelled_jobs(self.cancelled);
        stopping.unsent(self.left);
    }
}

impl CeleryWorker {
    /// Starts a worker. A Redis that is away is not an error: it connects for ever.
    ///
    /// # Errors
    /// [`WorkerError`].
    pub fn start(config: WorkerConfig, registry: Registry, board: &Board) -> Result<Self, WorkerError> {
        if let Some(problem) = config.problem() {
            return Err(WorkerError::Config(problem));
        }
        let policies = Policies::new(registry.tasks(), &config.app).map_err(WorkerError::Config)?;
        config.app.tell_of_idle();
        let wake = || Wake::new().map_err(|error| RedisError::System(format!("no event descriptor: {error}")));
        let (take_wake, control_wake) = (wake()?, wake()?);
        let (broker, elsewhere) = (config.app.broker(&config.redis), config.app.results(&config.redis));
        let config = WorkerConfig { redis: broker.clone(), ..config };
        let commander = Commander::start("cel-cmd", broker.named("cel-cmd"), board)?;
        let results = elsewhere.map(|redis| Commander::start("cel-results", redis.named("cel-results"), board));
        let results = results.transpose()?;
        let timer = Timer::start();
        let (queue, runs) = RunQueue::new();
        board.health.down(TAKE_PART, "not connected yet");
        let core = Core::new(CoreParts {
            config,
            policies,
            commands: commander.handle(),
            results: results.as_ref().map(Commander::handle),
            timer: timer.handle(),
            queue,
            wake: take_wake,
            board: board.clone(),
        });
        let pool = Pool::start(&core, registry, runs);
        liveness::beat(&core);
        telling::heartbeats(&core);
        let (taking, kicked) = (core.clone(), core.clone());
        let kick = Kick::new("its wake and the end of its connection", move || {
            kicked.intake.cancel();
            kicked.wake.raise();
        });
        let take = spawn("cel-take", kick, move || take::run(&taking));
        let (listening, kicked, woken, wake) = (core.clone(), core.clone(), control_wake.clone(), control_wake.clone());
        let changed = pool.clone();
        let kick = Kick::new("its wake and the end of its connection", move || {
            kicked.ending.drain();
            woken.raise();
        });
        let control = spawn("cel-control", kick, move || mailbox::run(&listening, &changed, &wake));
        Ok(Self { core, threads: Some(WorkerThreads { commander, results, timer, pool, take, control, control_wake }) })
    }

    /// What others see of it.
    pub fn handle(&self) -> WorkerHandle {
        WorkerHandle(self.core.clone())
    }

    /// Stops it alone, within `budget`, as [`CeleryWorker::stop_in`] does.
    pub fn stop(self, budget: Duration) -> StopReport {
        let mut stopping = Stopping::within(budget);
        let report = stopping.step("celery worker", budget, |step| self.stop_in(step));
        report.add_to(&mut stopping);
        stopping.finish()
    }

    /// Takes no more, gives back what has not begun, lets run what has until the step's budget is spent but for what
    /// the rest needs, cancels then, gives back what does not end, and joins every thread.
    ///
    /// With Redis away it ends as soon as nothing runs any more and, unless it holds nothing, the budget is spent; what
    /// it could not give back stays recorded in its name, and other workers put it back.
    pub fn stop_in(mut self, step: &mut Step) -> WorkerReport {
        self.end(step)
    }

    fn end(&mut self, step: &mut Step) -> WorkerReport {
        let core = &self.core;
        let mut report = WorkerReport::default();
        let Some(threads) = self.threads.take() else { return report };
        let WorkerThreads { commander, results, timer, pool, take, control, control_wake } = threads;
        let before = core.given_back.load(Ordering::SeqCst);
        core.intake.drain();
        core.wake.raise();
        let grace = step.deadline().min(Instant::now() + INTAKE_GRACE);
        if !wait_until(take.done_receiver(), grace) {
            core.intake.cancel();
        }
        step.join(take);
        give_back(core, |stage| matches!(stage, Stage::Scheduled | Stage::Waiting));
        core.queue.close();
        wait_for_handlers(core, step);
        let running: Vec<_> = {
            let held = lock(&core.held);
            held.iter().filter(|(_, e)| e.stage == Stage::Running).filter_map(|(_, e)| e.item.run.clone()).collect()
        };
        if core.busy.load(Ordering::SeqCst) > 0 {
            report.cancelled = running.len();
            running.iter().for_each(|run| run.end(CancelCause::Stopping));
            step.extend_for_cancel();
            let half = Instant::now() + step.deadline().saturating_duration_since(Instant::now()) / 2;
            wait_until(core.idle.drain_receiver(), half);
            // A handler that does not listen: its task is somebody else's now.
            give_back(core, |stage| stage == Stage::Running);
        }
        core.ending.drain();
        control_wake.raise();
        core.events.finish();
        core.tell_of_itself("worker-offline");
        leave(core);
        if lock(&core.held).counts().total() == 0 {
            // Others find out by themselves.
            step.shorten(SIGN_OFF_TIME);
        }
        // What is stored there is acknowledged by the other one.
        if let Some(results) = results {
            results.stop_in(step);
        }
        commander.stop_in(step);
        pool.stop_in(step);
        step.join(control);
        drop(lock(&core.beat).take());
        drop(lock(&core.heartbeat).take());
        lock(&core.turns).clear();
        timer.stop_in(step);
        report.given_back = core.given_back.load(Ordering::SeqCst) - before;
        report.left = lock(&core.held).counts().total();
        report
    }
}

impl Drop for CeleryWorker {
    fn drop(&mut self) {
        if self.threads.is_some() {
            stop_dropped(|step| {
                self.end(step);
            });
        }
    }
}

fn wait_until<T>(done: &crossbeam_channel::Receiver<T>, deadline: Instant) -> bool {
    let _waiting = waiting_unless_noted("a part of the worker to end", Some(deadline));
    matches!(done.recv_deadline(deadline), Err(crossbeam_channel::RecvTimeoutError::Disconnected))
}

/// Gives back what is in these stages.
fn give_back(core: &Arc<Core>, which: impl Fn(Stage) -> bool) {
    let tags: Vec<String> = {
        let held = lock(&core.held);
        held.iter().filter(|(_, entry)| which(entry.stage)).map(|(tag, _)| tag.clone()).collect()
    };
    for tag in tags {
        core.give_back(&tag, None, true);
    }
}

/// Until no handler runs, a cancel is asked for, or only the time that the rest of the stop needs is left.
fn wait_for_handlers(core: &Arc<Core>, step: &Step) {
    core.idle_wanted();
    let left = step.deadline().saturating_duration_since(Instant::now());
    let rest = left.saturating_sub(CANCEL_BUDGET.min(left / 3));
    let _waiting = waiting_unless_noted("its tasks to end", Some(Instant::now() + rest));
    select! {
        recv(core.idle.drain_receiver()) -> _ => {}
        recv(step.shutdown().cancel_receiver()) -> _ => {}
        default(rest) => {}
    }
}

/// Takes the worker off the lists in Redis, behind everything that was sent before.
fn leave(core: &Arc<Core>) {
    let request = Request::new(Repeat::Idempotent, core.patience()).script(
        &LEAVE,
        &[core.keys.alive.as_str(), &core.keys.held, &core.keys.workers],
        core.id.as_str(),
    );
    let errors = core.board.errors.clone();
    let tell = move |error: &RedisError| {
        errors.report(error.class(), "cel-live", &format_args!("Redis was not notified that the worker ends: {error}"));
    };
    let told = tell.clone();
    let sent = core.commands.submit(request, move |answer| drop(answer.inspect_err(told)));
    drop(sent.inspect_err(tell));
}

impl WorkerHandle {
    /// How it is.
    pub fn state(&self) -> WorkerState {
        let core = &self.0;
        WorkerState {
            consuming: core.consuming.load(Ordering::SeqCst),
            last_error: lock(&core.take_error).clone(),
            counts: lock(&core.held).counts(),
            taken: core.totals.taken.get(),
            restored: core.totals.restored.get(),
            aside: core.totals.aside.get(),
            siblings: lock(&core.siblings).told(),
            namesakes: lock(&core.namesakes).told(),
            overdue: lock(&core.overdue).values().map(OverdueTask::from).collect(),
        }
    }

    /// Waits until the worker takes messages for the first time, at most for `limit`; says whether it does.
    pub fn wait_ready(&self, limit: Duration) -> bool {
        self.0.ready.wait(limit)
    }

    /// The name that Celery's tools see.
    pub fn hostname(&self) -> &str {
        &self.0.config.hostname
    }

    /// The id under which Redis knows it: a new one for each start.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// Each task that it holds, the oldest first.
    pub fn tasks(&self) -> Vec<HeldTask> {
        let held = lock(&self.0.held);
        let line = |entry: &held::HeldMessage<core::Taken>| HeldTask {
            id: entry.task_id.clone(),
            name: entry.item.message.as_ref().map_or_else(String::new, |message| message.task.clone()),
            stage: match entry.stage {
                Stage::Scheduled => "scheduled",
                Stage::Waiting => "waiting",
                Stage::Running => "running",
                Stage::Settling => "settling",
            },
            held_seconds: entry.item.since.elapsed().as_secs_f64(),
            retries: entry.item.message.as_ref().map_or(0, |message| message.retries),
            progress: entry.item.run.as_ref().and_then(|run| run.progress()),
        };
        let mut tasks: Vec<_> = held.iter().map(|(_, entry)| line(entry)).collect();
        drop(held);
        tasks.sort_by(|a, b| b.held_seconds.total_cmp(&a.held_seconds));
        tasks
    }

    /// Raised when somebody asks for a stop by remote control (`celery control shutdown`). The owner decides.
    pub fn asked_to_stop(&self) -> &Shutdown {
        &self.0.asked
    }

    /// Calls tasks off, as `celery control revoke` does for all workers.
    pub fn revoke(&self, ids: &[String], terminate: bool) {
        self.0.revoke(ids, terminate);
    }
}

impl From<&Overdue> for OverdueTask {
    fn from(overdue: &Overdue) -> Self {
        let Overdue { id, name, since } = overdue.clone();
        Self { id, name, seconds: since.elapsed().as_secs_f64() }
    }
}

impl fmt::Debug for WorkerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WorkerHandle({})", self.0.id)
    }
}

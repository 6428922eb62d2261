//! The threads that run handlers.
//!
//! Owner: the [`Pool`], of the worker. Blocks in: the queue, then in whatever a handler does. Kick: the worker cancels
//! the signal of each run; the queue is closed. Ends: when the queue is closed and empty, or when the pool shrinks.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};

use super::builtin;
use super::call::{Args, TaskError, exception};
use super::context::TaskCx;
use super::core::{Core, Overdue};
use super::held::Stage;
use super::outcome::{self, Outcome};
use super::registry::Registry;
use super::run::{CancelCause, Run};
use crate::base::limits::CELERY_THREADS;
use crate::base::lock::lock;
use crate::base::stop::Step;
use crate::base::thread::{Kick, Thread, panic_message, spawn};
use crate::base::timer::Alarm;
use crate::base::waits::waiting;
use crate::celery::event::Event;
use crate::celery::meta::{Exception, Meta};
use crate::celery::options::PANICKED;
use crate::ops::errors::ErrorClass;

/// Owns the threads.
pub(super) struct Pool {
    core: Arc<Core>,
    registry: Arc<Registry>,
    runs: Receiver<Arc<Run>>,
    /// Each message ends one thread.
    leave: (Sender<()>, Receiver<()>),
    threads: Mutex<PoolThreads>,
}

#[derive(Debug, Default)]
struct PoolThreads {
    /// Those that run, and those that were told to leave and may still run a task.
    all: Vec<Thread<()>>,
    /// The number of the next one.
    next: usize,
    /// How many take tasks.
    size: usize,
    stopped: bool,
}

impl Pool {
    pub(super) fn start(core: &Arc<Core>, registry: Registry, runs: Receiver<Arc<Run>>) -> Arc<Self> {
        let (size, threads) = (core.concurrency.load(Ordering::SeqCst), Mutex::default());
        let leave = bounded(CELERY_THREADS.max(size));
        let pool = Arc::new(Self { core: core.clone(), registry: Arc::new(registry), runs, leave, threads });
        pool.resize(size);
        pool
    }

    /// Has so many threads from now on. One that is too many ends behind the task that it runs.
    pub(super) fn resize(&self, size: usize) {
        let mut threads = lock(&self.threads);
        if threads.stopped {
            return;
        }
        threads.all.retain(|thread| !thread.is_finished());
        while threads.size < size {
            // One that was told to leave and has not noticed stays.
            if self.leave.1.try_recv().is_err() {
                let thread = self.thread(threads.next);
                threads.all.push(thread);
                threads.next += 1;
            }
            threads.size += 1;
        }
        while threads.size > size && self.leave.0.try_send(()).is_ok() {
            threads.size -= 1;
        }
    }

    fn thread(&self, n: usize) -> Thread<()> {
        let (core, registry) = (self.core.clone(), self.registry.clone());
        let (runs, leave) = (self.runs.clone(), self.leave.1.clone());
        spawn(format!("cel-work-{n}"), Kick::dropped("the queue and the signal of the run"), move || {
            while let Some(run) = next(&runs, &leave) {
                execute(&core, &registry, &run);
            }
        })
    }

    /// Joins the threads; the queue was closed and the runs were cancelled before.
    pub(super) fn stop_in(&self, step: &mut Step) {
        let all = {
            let mut threads = lock(&self.threads);
            threads.stopped = true;
            std::mem::take(&mut threads.all)
        };
        step.join_all(all);
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({:?})", lock(&self.threads))
    }
}

/// The next run; `None` when the thread is to end.
fn next(runs: &Receiver<Arc<Run>>, leave: &Receiver<()>) -> Option<Arc<Run>> {
    if leave.try_recv().is_ok() {
        return None;
    }
    if let Ok(run) = runs.try_recv() {
        return Some(run);
    }
    let _waiting = waiting("a task", None);
    select! {
        recv(runs) -> run => run.ok(),
        recv(leave) -> _ => None,
    }
}

/// Runs the handler on the calling thread and settles the message.
fn execute(core: &Arc<Core>, registry: &Registry, run: &Arc<Run>) {
    let message = &run.message;
    if message.expires.is_some_and(|expires| expires < Core::now()) {
        core.conclude(&run.tag, None, Outcome::Revoked("expired"));
        return;
    }
    // A stop that finds a task running finds it counted as well.
    core.busy.fetch_add(1, Ordering::SeqCst);
    let _busy = Busy(core.clone(), run.clone());
    {
        let mut held = lock(&core.held);
        // It was settled or given back while it waited.
        if !held.advance(&run.tag, Stage::Waiting, Stage::Running) {
            return;
        }
        if let Some(entry) = held.get_mut(&run.tag) {
            entry.item.run = Some(run.clone());
        }
    }
    if !core.tell_of_begin(run) {
        return;
    }
    let begun = *run.begun.get_or_init(Instant::now);
    core.totals.begun(&message.task);
    core.tell(&message.task, || Event::started(&message.id));
    let policy = core.policies.of(&message.task);
    let _limits = time_limits(core, run);
    if policy.tracks_started() && message.ignore_result != Some(true) {
        let meta = Meta::started(&message.id, std::process::id(), &core.config.hostname);
        core.store_state(run, meta, |_| {});
    }
    let cx = TaskCx::new(run.clone(), core);
    let args = Args { positional: message.args.clone(), named: message.kwargs.clone() };
    let result = match registry.get(&message.task) {
        Some(handler) => catch_unwind(AssertUnwindSafe(|| handler(&cx, args))),
        None => catch_unwind(AssertUnwindSafe(|| builtin::run(registry, &cx, args))),
    };
    let outcome = match result {
        Ok(Ok(value)) => Some(run.succeeded(value)),
        Ok(Err(TaskError::Cancelled)) => run.cancelled(),
        Ok(Err(TaskError::Reject { requeue: true })) => {
            if core.give_back(&run.tag, Some(run), false) {
                core.tell(&message.task, || Event::rejected(&message.id, true));
            }
            return;
        }
        Ok(Err(error)) => outcome::of_error(error, message, policy, &core.config.hostname),
        Err(payload) => {
            let text = panic_message(payload.as_ref());
            let traceback = format!("the handler panicked: {text}\n  in {}[{}]\n", message.task, message.id);
            Some(Outcome::Failure(exception(PANICKED, text), Some(traceback)))
        }
    };
    let below = |n| lock(&core.rng).below(n);
    let outcome = outcome.map(|outcome| outcome::retried(outcome, policy, message.retries, below));
    log::debug!("task {}[{}] ended after {:.3?}", message.task, message.id, begun.elapsed());
    // If it went back at its time limit it may have come again, under the same tag: that is not this run's to end.
    match outcome {
        Some(outcome) => core.conclude(&run.tag, Some(run), outcome),
        None => {
            core.give_back(&run.tag, Some(run), true);
        }
    }
}

/// What ends the run at its time limits.
fn time_limits(core: &Arc<Core>, run: &Arc<Run>) -> Vec<Alarm> {
    let at = |seconds: Option<f64>| {
        let limit = Duration::try_from_secs_f64(seconds?).ok().filter(|limit| !limit.is_zero())?;
        Instant::now().checked_add(limit)
    };
    let mut alarms = Vec::new();
    if let Some(when) = at(run.limits.0) {
        let run = Arc::downgrade(run);
        alarms.push(core.at(when, move |core| {
            if let Some(run) = run.upgrade() {
                core.task_trouble(&run.message, &"is over its soft time limit");
                run.end(CancelCause::SoftLimit);
            }
        }));
    }
    if let Some(when) = at(run.limits.1) {
        let run = Arc::downgrade(run);
        alarms.push(core.at(when, move |core| {
            if let Some(run) = run.upgrade() {
                let limit = run.limits.1.unwrap_or(0.0);
                core.task_trouble(&run.message, &format_args!("is over its time limit of {limit} s"));
                let exception = Exception::new("billiard.exceptions", "TimeLimitExceeded", limit.to_string());
                if core.policies.of(&run.message.task).returns_late() {
                    core.give_back(&run.tag, Some(&run), false);
                } else {
                    core.conclude(&run.tag, Some(&run), Outcome::Failure(exception, None));
                }
                note_overdue(core, &run);
                run.end(CancelCause::HardLimit);
            }
        }));
    }
    alarms
}

/// What tells a run from all others while it is there; another one may have its tag.
fn place_of(run: &Arc<Run>) -> usize {
    Arc::as_ptr(run).addr()
}

/// The end of a task is settled, and its handler is still to notice it.
fn note_overdue(core: &Core, run: &Arc<Run>) {
    let mut overdue = lock(&core.overdue);
    if !run.returned.load(Ordering::SeqCst) {
        let (id, name) = (run.message.id.clone(), run.message.task.clone());
        overdue.insert(place_of(run), Overdue { id, name, since: Instant::now() });
    }
}

/// A handler runs.
struct Busy(Arc<Core>, Arc<Run>);

impl Drop for Busy {
    fn drop(&mut self) {
        let overdue = {
            let mut overdue = lock(&self.0.overdue);
            self.1.returned.store(true, Ordering::SeqCst);
            overdue.remove(&place_of(&self.1))
        };
        if let Some(Overdue { id, name, since }) = overdue {
            let what = format_args!("task {name}[{id}] went on for {:.1?} after its time limit", since.elapsed());
            self.0.board.errors.report(ErrorClass::Rejected, "task", &what);
        }
        // The stop waits for the last one.
        if self.0.busy.fetch_sub(1, Ordering::SeqCst) == 1 && self.0.waited_for.load(Ordering::SeqCst) {
            self.0.idle.drain();
        }
    }
}

//! Sends tasks again and again: what `celery beat` is for Celery. Real workers and ours run them.
//!
//! Owner of the thread `cel-beat`: [`Beat`]. It blocks in the wait until the next task is due. Kick: the stop signal.
//! It ends with that.
//!
//! As with `celery beat`, one of them is to run for each set of entries: two send everything twice. Nothing is kept
//! over a restart, so an interval counts from the start, and a time that passes while none runs is missed.

mod crontab;
mod plan;

use std::fmt;
use std::time::{Duration, Instant, SystemTime};

pub use crontab::{Crontab, CrontabError};
pub use plan::Schedule;

use self::plan::{Now, Plan};
use super::client::CeleryHandle;
use super::moment::Moment;
use super::task::Task;
use crate::base::shutdown::Shutdown;
use crate::base::stop::{Step, StopReport, stop_alone, stop_dropped};
use crate::base::thread::{Kick, Thread, spawn};
use crate::base::waits::waiting;
use crate::ops::errors::{ErrorClass, ErrorHandler};
use crate::ops::metrics::Counter;
use crate::ops::status::Board;

/// Where a task that is not sent is reported.
const PLACE: &str = "celery-beat";

/// The shortest interval: what comes more often is no matter of a queue.
const SHORTEST: Duration = Duration::from_millis(100);

/// Entries of one beat: each is looked at whenever one is due.
const ENTRIES: usize = 10_000;

/// How long a task may wait for a Redis that is away, unless it is due again before: as long as a client allows.
const PATIENCE: Duration = Duration::from_secs(1800);

/// The longest that is slept when nothing is due.
const IDLE: Duration = Duration::from_secs(3600);

/// One periodic task.
#[derive(Debug, Clone)]
pub struct BeatEntry {
    /// What the log calls it.
    pub name: String,
    /// When it is sent.
    pub schedule: Schedule,
    /// What is sent: each time with a new id, unless it has one of its own.
    pub task: Task,
}

/// Why a beat cannot be started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BeatError {
    /// An interval is too short.
    #[error("the interval of {name:?} is {interval:?}; the shortest is {SHORTEST:?}")]
    TooOften {
        /// The entry's name.
        name: String,
        /// Its interval.
        interval: Duration,
    },
    /// There are too many entries.
    #[error("{0} entries are too many; one beat sends at most {ENTRIES}")]
    TooMany(usize),
}

impl BeatError {
    /// Always [`ErrorClass::Fatal`].
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Fatal
    }
}

/// Owns the thread. Dropping it ends it at once, as a stop does; what was handed to the client is still sent.
#[must_use = "dropping it ends the thread"]
pub struct Beat {
    shutdown: Shutdown,
    /// Taken by the stop.
    thread: Option<Thread<()>>,
}

impl Beat {
    /// Starts the thread. Each entry is due for the first time after its interval, or at the next time of its crontab.
    /// It is sent through `client`, which may be stopped before; what cannot be sent until it is due again (at most
    /// half an hour) is logged and counted.
    ///
    /// # Errors
    /// [`BeatError`].
    pub fn start(client: CeleryHandle, entries: Vec<BeatEntry>, board: &Board) -> Result<Self, BeatError> {
        if entries.len() > ENTRIES {
            return Err(BeatError::TooMany(entries.len()));
        }
        for entry in &entries {
            if let Schedule::Every(interval) = entry.schedule
                && interval < SHORTEST
            {
                return Err(BeatError::TooOften { name: entry.name.clone(), interval });
            }
        }
        let count = |result| {
            let help = "Periodic Celery tasks by what became of them.";
            board.metrics.counter("phalanx_celery_beat_total", help, &[("result", result)])
        };
        let shutdown = Shutdown::new();
        let (kicked, ended) = (shutdown.clone(), shutdown.clone());
        let sender =
            Sender { client, entries, sent: count("sent"), failed: count("failed"), errors: board.errors.clone() };
        let kick = Kick::new("its stop signal", move || kicked.cancel());
        let thread = spawn("cel-beat", kick, move || sender.run(&ended));
        Ok(Self { shutdown, thread: Some(thread) })
    }

    /// Stops it alone, within `budget`, as [`Beat::stop_in`] does.
    pub fn stop(self, budget: Duration) -> StopReport {
        stop_alone("celery beat", budget, |step| self.stop_in(step))
    }

    /// Sends nothing more, and joins the thread.
    pub fn stop_in(mut self, step: &mut Step) {
        self.end(step);
    }

    fn end(&mut self, step: &mut Step) {
        self.shutdown.cancel();
        if let Some(thread) = self.thread.take() {
            step.join(thread);
        }
    }
}

impl Drop for Beat {
    fn drop(&mut self) {
        if self.thread.is_some() {
            stop_dropped(|step| self.end(step));
        }
    }
}

impl fmt::Debug for Beat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Beat").field("thread", &self.thread).finish_non_exhaustive()
    }
}

struct Sender {
    client: CeleryHandle,
    entries: Vec<BeatEntry>,
    sent: Counter,
    failed: Counter,
    errors: ErrorHandler,
}

impl Sender {
    fn run(&self, shutdown: &Shutdown) {
        let now = || Now { steady: Instant::now(), calendar: Moment::from(SystemTime::now()) };
        let mut plan = Plan::new(self.entries.iter().map(|entry| entry.schedule.clone()), now());
        loop {
            let at = now();
            for (number, entry) in self.entries.iter().enumerate() {
                if plan.take(number, at) {
                    self.send(entry, plan.left(number, at));
                }
            }
            let wait = plan.wait(now()).unwrap_or(IDLE).min(IDLE);
            let _waiting = waiting("the next periodic task", Some(Instant::now() + wait));
            if shutdown.wait(wait) {
                return;
            }
        }
    }

    /// Hands a task to the client, to be sent before it is due again.
    fn send(&self, entry: &BeatEntry, again: Duration) {
        let (sent, failed, name) = (self.sent.clone(), self.failed.clone(), entry.name.clone());
        let errors = self.errors.clone();
        let handed =
            self.client.submit(entry.task.clone(), Instant::now() + again.min(PATIENCE), move |result| match result {
                Ok(()) => sent.inc(),
                Err(error) => {
                    failed.inc();
                    errors.report(error.class(), PLACE, &format_args!("task {name:?} was not sent: {error}"));
                }
            });
        match handed {
            // Nobody here waits for its result.
            Ok(pending) => drop(pending),
            Err(error) => {
                self.failed.inc();
                let what = format_args!("task {:?} was not sent: {error}", entry.name);
                self.errors.report(error.class(), PLACE, &what);
            }
        }
    }
}

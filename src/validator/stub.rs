//! Jobs that nobody runs, for load tests: each is answered with the statuses of a good one.
//!
//! No thread of its own: with no time between the statuses they are said at once by whoever brings the job, otherwise by
//! the timer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::job::{Job, RunningJob};
use super::organic::stopping;
use super::status::Outcome;
use crate::base::lock::lock;
use crate::base::stop::Step;
use crate::base::timer::{Alarm, TimerHandle};
use crate::protocol::JobStatus;

/// What a good job goes through before its end.
const STEPS: [JobStatus; 4] =
    [JobStatus::Accepted, JobStatus::ExecutorReady, JobStatus::VolumesReady, JobStatus::ExecutionDone];

/// The jobs that pretend to run.
#[derive(Clone)]
pub(super) struct Stub(Arc<Inner>);

struct Inner {
    stage_time: Duration,
    limit: usize,
    timer: TimerHandle,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    jobs: HashMap<u64, Running>,
    /// Dropped when no job is left.
    ended: Vec<Sender<()>>,
}

struct Running {
    job: RunningJob,
    steps: usize,
    /// Of the next status; kept, because a dropped alarm does not ring.
    _alarm: Alarm,
}

impl Stub {
    /// At most `limit` jobs at a time, each status after `stage_time`.
    pub(super) fn new(stage_time: Duration, limit: usize, timer: TimerHandle) -> Self {
        Self(Arc::new(Inner { stage_time, limit, timer, state: Mutex::default() }))
    }

    /// Begins a job; one too many is turned away as busy.
    pub(super) fn run(&self, job: Job) {
        if self.0.stage_time.is_zero() {
            let job = job.receive();
            STEPS.into_iter().for_each(|status| job.report(status));
            return end(job, Outcome::completed("", ""));
        }
        let mut state = lock(&self.0.state);
        if state.jobs.len() >= self.0.limit {
            return;
        }
        state.next += 1;
        let number = state.next;
        let running = Running { job: job.receive(), steps: 0, _alarm: self.alarm(number) };
        state.jobs.insert(number, running);
    }

    fn alarm(&self, number: u64) -> Alarm {
        let weak = Arc::downgrade(&self.0);
        self.0.timer.at(Instant::now() + self.0.stage_time, move || advance(&weak, number))
    }

    /// Jobs under way.
    pub(super) fn running(&self) -> usize {
        lock(&self.0.state).jobs.len()
    }

    /// Lets the jobs end within the step's budget, ends the rest, and gives their number.
    pub(super) fn stop(&self, step: &mut Step) -> usize {
        step.wait(&self.ended());
        let rest = std::mem::take(&mut lock(&self.0.state).jobs);
        let cancelled = rest.len();
        rest.into_values().for_each(|running| end(running.job, stopping()));
        cancelled
    }

    fn ended(&self) -> Receiver<()> {
        let (sender, receiver) = bounded(0);
        let mut state = lock(&self.0.state);
        if !state.jobs.is_empty() {
            state.ended.push(sender);
        }
        receiver
    }
}

fn advance(inner: &Weak<Inner>, number: u64) {
    let Some(stub) = inner.upgrade().map(Stub) else { return };
    // Made before the lock is taken: the old alarm is dropped after it is free again.
    let alarm = stub.alarm(number);
    let mut state = lock(&stub.0.state);
    let Some(mut running) = state.jobs.remove(&number) else { return };
    match STEPS.get(running.steps) {
        Some(status) => {
            running.job.report(*status);
            running.steps += 1;
            running._alarm = alarm;
            state.jobs.insert(number, running);
        }
        None => {
            let ended = if state.jobs.is_empty() { std::mem::take(&mut state.ended) } else { Vec::new() };
            drop(state);
            end(running.job, Outcome::completed("", ""));
            drop(ended);
        }
    }
}

fn end(job: RunningJob, outcome: Outcome) {
    if let Err(error) = job.end(outcome) {
        log::error!("{error}");
    }
}

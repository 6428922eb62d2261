//! Jobs that nobody runs, for load tests: each is answered with the statuses of a good one.
//!
//! No thread of its own: with no time between the statuses they are reported at once by whoever brings the job,
//! otherwise by the timer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use super::JobRunner;
use crate::base::drained::Drained;
use crate::base::lock::lock;
use crate::base::stop::Stopping;
use crate::base::timer::{Alarm, TimerHandle};
use crate::identity::PublicKey;
use crate::protocol::JobStatus;
use crate::validator::client::{Job, RunningJob};
use crate::validator::status::Outcome;

/// What a good job goes through before its end.
pub(super) const STEPS: [JobStatus; 4] =
    [JobStatus::Accepted, JobStatus::ExecutorReady, JobStatus::VolumesReady, JobStatus::ExecutionDone];

/// The jobs that pretend to run.
#[derive(Clone)]
pub(in crate::validator) struct Stub(Arc<StubShared>);

struct StubShared {
    stage_time: Duration,
    limit: usize,
    timer: TimerHandle,
    state: Mutex<StubState>,
}

#[derive(Default)]
struct StubState {
    next: u64,
    /// Jobs under way, also those whose status is just being reported.
    running: usize,
    jobs: HashMap<u64, Waiting>,
    stopped: bool,
    /// Notified when no job is left.
    drained: Drained,
}

/// A job between two statuses.
struct Waiting {
    job: RunningJob,
    steps: usize,
    /// Of the next status; kept, because a dropped alarm does not ring.
    _alarm: Alarm,
}

impl Stub {
    /// At most `limit` jobs at a time, each status after `stage_time`.
    pub(in crate::validator) fn new(stage_time: Duration, limit: usize, timer: TimerHandle) -> Self {
        Self(Arc::new(StubShared { stage_time, limit, timer, state: Mutex::default() }))
    }

    /// Has a job wait for its next status; nothing is reported while the lock is held.
    fn put(&self, job: RunningJob, steps: usize) {
        let mut state = lock(&self.0.state);
        if state.stopped {
            drop(state);
            return self.finish(job, Outcome::stopping());
        }
        state.next += 1;
        let number = state.next;
        let weak = Arc::downgrade(&self.0);
        let alarm = self.0.timer.at(Instant::now() + self.0.stage_time, move || advance(&weak, number));
        state.jobs.insert(number, Waiting { job, steps, _alarm: alarm });
    }

    fn finish(&self, job: RunningJob, outcome: Outcome) {
        end(job, outcome);
        let mut state = lock(&self.0.state);
        state.running -= 1;
        if state.running == 0 {
            state.drained.notify();
        }
    }
}

impl JobRunner for Stub {
    fn run(&self, job: Job) {
        if self.0.stage_time.is_zero() {
            let job = job.receive();
            STEPS.into_iter().for_each(|status| job.report(status));
            return end(job, Outcome::completed("", ""));
        }
        {
            let mut state = lock(&self.0.state);
            if state.running >= self.0.limit || state.stopped {
                return;
            }
            state.running += 1;
        }
        self.put(job.receive(), 0);
    }

    fn blacklist(&self, _: PublicKey, _: Duration) {
        // No miner gets a job.
    }

    fn running(&self) -> usize {
        lock(&self.0.state).running
    }

    fn stop_in(&self, stopping_all: &mut Stopping, drain: Duration) -> usize {
        let drained = || {
            let mut state = lock(&self.0.state);
            let empty = state.running == 0;
            state.drained.watch(empty)
        };
        stopping_all.step("validator jobs", drain, |step| {
            step.wait(&drained());
            let (rest, cancelled) = {
                let mut state = lock(&self.0.state);
                state.stopped = true;
                (std::mem::take(&mut state.jobs), state.running)
            };
            rest.into_values().for_each(|waiting| self.finish(waiting.job, Outcome::stopping()));
            if cancelled > 0 {
                // For the one whose status the timer is just reporting.
                step.extend_for_cancel();
                step.wait(&drained());
            }
            cancelled
        })
    }
}

fn advance(inner: &Weak<StubShared>, number: u64) {
    let Some(stub) = inner.upgrade().map(Stub) else { return };
    let waiting = lock(&stub.0.state).jobs.remove(&number);
    let Some(Waiting { job, steps, .. }) = waiting else { return };
    match STEPS.get(steps) {
        Some(status) => {
            job.report(*status);
            stub.put(job, steps + 1);
        }
        None => stub.finish(job, Outcome::completed("", "")),
    }
}

fn end(job: RunningJob, outcome: Outcome) {
    job.end_anyway(outcome);
}

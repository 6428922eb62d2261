//! All decisions of an executor: one job, from the miner's initial request to its last message. Pure: no thread,
//! channel, socket or clock; it takes what happened and says what to do.
//!
//! The order of the actions is the order in which they must be done. Every way out of a job sends exactly one last
//! message.
//!
//! * `io`: what goes in and comes out.
//! * `job`: the order of a job's stages and their deadlines.
//! * `report`: its last message.
//! * `timeline`: how long each part of it took.

mod io;
mod job;
mod report;
mod timeline;

use std::time::{Duration, Instant};

pub use self::io::{Action, ExecutorError, Input, JobEnd, Outcome, Problem, Results, Work};
use self::job::StagedJob;
pub use self::timeline::Part;
use crate::ops::errors::ErrorClass;
use crate::protocol::{JsonMap, MinerToExecutor, answer};

/// The state of an executor.
#[derive(Debug)]
pub struct Stages {
    startup: Duration,
    gone_after: Duration,
    max_job_time: Option<Duration>,
    state: ExecutorState,
    /// The machine, once it is described.
    machine: Option<JsonMap>,
}

#[derive(Debug)]
enum ExecutorState {
    /// No job has come.
    Waiting { until: Instant, connected: bool },
    /// There is a job.
    Job(Box<StagedJob>),
    /// The job, or the wait for one, is over.
    Over,
}

impl Stages {
    /// The state at the start. The wait for a job, and then the preparation of its image, may each take `startup`; a
    /// job is cancelled when the miner is gone for `gone_after`.
    pub fn new(startup: Duration, gone_after: Duration, now: Instant) -> Self {
        let state = ExecutorState::Waiting { until: now + startup, connected: false };
        Self { startup, gone_after, max_job_time: None, state, machine: None }
    }

    /// The same, for a job that may take at most `max_job_time` in all, whatever its limits are.
    #[must_use]
    pub fn within(self, max_job_time: Option<Duration>) -> Self {
        Self { max_job_time, ..self }
    }

    /// Takes in what happened and says what to do.
    pub fn handle(&mut self, input: Input, now: Instant) -> Vec<Action> {
        let mut out = Vec::new();
        let input = match input {
            Input::Specs(machine) => {
                self.machine = Some(machine);
                return out;
            }
            input => input,
        };
        match &mut self.state {
            ExecutorState::Waiting { .. } => self.wait(input, now, &mut out),
            ExecutorState::Job(job) => {
                job.now = now;
                if matches!(input, Input::Done(_)) {
                    job.machine = job.machine.take().or(self.machine.take());
                }
                job.take(input, now);
                job.check_time(self.gone_after, now);
                out.append(&mut job.out);
            }
            ExecutorState::Over => {}
        }
        if matches!(out.last(), Some(Action::End(_))) {
            self.state = ExecutorState::Over;
        }
        out
    }

    /// When [`Input::Tick`] is due next.
    pub fn next_wake(&self) -> Option<Instant> {
        match &self.state {
            ExecutorState::Waiting { until, .. } => Some(*until),
            ExecutorState::Job(job) => job.next_wake(self.gone_after),
            ExecutorState::Over => None,
        }
    }

    fn wait(&mut self, input: Input, now: Instant, out: &mut Vec<Action>) {
        let ExecutorState::Waiting { until, connected } = &mut self.state else { return };
        let error = match input {
            Input::Connected => {
                *connected = true;
                return;
            }
            Input::Disconnected { cut, .. } if *connected || cut => return,
            // At once, so that a miner's operator notices a wrong address.
            Input::Disconnected { why, .. } => ExecutorError::Unreachable(why),
            Input::ClosedForGood => ExecutorError::Refused("it closed the connection before a job came".to_owned()),
            Input::FromMiner(message) => match *message {
                MinerToExecutor::V0InitialJobRequest(initial) => {
                    let mut job = StagedJob::begin(initial, (self.startup, self.max_job_time), now);
                    out.append(&mut job.out);
                    self.state = ExecutorState::Job(Box::new(job));
                    return;
                }
                MinerToExecutor::GenericError(error) => ExecutorError::Refused(error.details.unwrap_or_default()),
                MinerToExecutor::V0JobRequest(request) => {
                    let answer = answer::early_job_request(&request.job_uuid);
                    let what = answer.details.clone().unwrap_or_default();
                    out.push(Action::Error(ErrorClass::Rejected, "miner-message", what));
                    return out.push(Action::Send(Box::new(answer.into())));
                }
            },
            Input::Drain | Input::Cancel => ExecutorError::Stopped,
            Input::Tick if now >= *until => ExecutorError::NoJob(self.startup),
            Input::Tick | Input::Done(_) | Input::Crashed(_) | Input::Specs(_) => return,
        };
        out.push(Action::End(Err(error)));
    }
}

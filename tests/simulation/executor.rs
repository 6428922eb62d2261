//! An executor as its miner sees it: a process that outlives the miner's, dials in, and says how far its job is.
//! Scripted; the executor's own state machine is not in this.

use std::time::Duration;

use phalanx::base::backoff::BackoffConfig;
use phalanx::link::Outgoing;
use phalanx::miner::executor_manager::ExecutorSpec;
use phalanx::miner::executor_pool::Lease;
use phalanx::protocol::{
    ExecutorToMiner, JobFailureReason, JobStage, MinerToExecutor, V0ExecutionDoneRequest, V0ExecutorReadyRequest,
    V0JobFailedRequest, V0JobFinishedRequest, V0VolumesReadyRequest,
};
use phalanx::transport::Utf8Bytes;

use super::book::number_of;
use super::clock::{End, Event, MS, Node, Process, SECOND, Shared};
use super::link::Link;
use super::network::{Ending, Side};

const TO_MINER: BackoffConfig = BackoffConfig {
    base: Duration::from_millis(200),
    cap: Duration::from_secs(3),
    stable_after: Duration::from_secs(10),
};

/// How long it does without its miner.
const ALONE: u64 = 60 * SECOND;

/// What it does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It is started, and dials.
    Boot,
    VolumesReady,
    ExecutionDone,
    Result,
    /// It has waited for its miner for so long.
    Alone(u64),
    /// It is ended from outside.
    Killed,
    /// Its process has ended; its miner sees that.
    Ended,
    /// What it has left is removed.
    Removed,
}

pub struct Executor {
    pub spec: ExecutorSpec,
    /// As long as the miner that waits for it lives.
    pub lease: Option<Lease>,
    pub link: Option<Link>,
    is_ready: bool,
    has_begun: bool,
    /// Its process has ended, so.
    pub exit: Option<i32>,
    /// Losses of its connection so far.
    losses: u64,
}

impl Executor {
    pub fn new(spec: ExecutorSpec, lease: Lease) -> Self {
        Self { spec, lease: Some(lease), link: None, is_ready: false, has_begun: false, exit: None, losses: 0 }
    }

    fn end(miner: u32, id: u32) -> End {
        End { of: Process { node: Node::Executor(miner, id), life: 0 }, link: 0 }
    }

    fn say(&mut self, message: impl Into<ExecutorToMiner>, shared: &mut Shared) {
        if let Some(link) = &mut self.link {
            link.push(Outgoing::repeated(message.into().encode()), shared).expect("it says little");
        }
    }

    /// It goes on; says whether it is for its miner to know.
    pub fn step(&mut self, (miner, id): (u32, u32), step: Step, shared: &mut Shared) {
        if self.exit.is_some() {
            return;
        }
        let (uuid, plan) = (self.spec.job_uuid.clone(), |step| Event::Step(miner, id, step));
        match step {
            Step::Boot => self.link = Some(Link::dial(Self::end(miner, id), Node::Miner(miner), TO_MINER, shared)),
            Step::VolumesReady => {
                self.say(V0VolumesReadyRequest { job_uuid: uuid }, shared);
                // One in a hundred does not keep to its limit of a minute.
                let slow = if shared.rng.one_in(100) { 10 } else { 1 };
                let time = shared.between(2 * SECOND, 40 * SECOND) * slow;
                shared.after(time, plan(Step::ExecutionDone));
            }
            Step::ExecutionDone => {
                self.say(V0ExecutionDoneRequest { job_uuid: uuid }, shared);
                let time = shared.between(50 * MS, SECOND);
                shared.after(time, plan(Step::Result));
            }
            Step::Result => {
                if shared.rng.one_in(50) {
                    self.say(failed(uuid), shared);
                } else {
                    shared.book.jobs[number_of(&uuid)].finished += 1;
                    self.say(finished(uuid), shared);
                }
                if let Some(link) = &mut self.link {
                    link.close(shared);
                }
            }
            Step::Alone(losses) if losses != self.losses || self.link.as_ref().is_some_and(Link::is_ready) => {}
            Step::Alone(_) | Step::Killed => self.exits(9, (miner, id), shared),
            Step::Ended | Step::Removed => unreachable!("the miner's machine does these"),
        }
    }

    /// Its process ends.
    pub fn exits(&mut self, code: i32, (miner, id): (u32, u32), shared: &mut Shared) {
        if self.exit.replace(code).is_none() {
            // A process has one connection, but for one that is on its way to it.
            self.link.as_ref().and_then(Link::connection).into_iter().for_each(|number| shared.dropped(number));
            let time = shared.between(MS, 20 * MS);
            shared.after(time, Event::Step(miner, id, Step::Ended));
        }
    }

    pub fn dialled(&mut self, connection: Option<u64>, me: (u32, u32), shared: &mut Shared) {
        let Some(link) = &mut self.link else { return };
        match connection {
            Some(connection) if self.exit.is_some() => shared.close(connection, Side::Client),
            Some(connection) => link.connected(connection, None, shared),
            None => self.lost(None, Ending::Cut, me, shared),
        }
    }

    /// A connection has ended, or there was none.
    pub fn lost(&mut self, connection: Option<u64>, ending: Ending, (miner, id): (u32, u32), shared: &mut Shared) {
        if let (Some(connection), Ending::Close) = (connection, ending) {
            shared.answer_close(connection, Side::Server);
        }
        let Some(link) = self.link.as_mut().filter(|_| self.exit.is_none()) else { return };
        if !link.ended(connection, ending, shared) {
            return;
        }
        if link.is_over() {
            return self.exits(0, (miner, id), shared);
        }
        if ending == Ending::Close {
            // It is turned away: nobody waits for it.
            return self.exits(1, (miner, id), shared);
        }
        if connection.is_some() {
            self.losses += 1;
            shared.after(ALONE, Event::Step(miner, id, Step::Alone(self.losses)));
        }
    }

    pub fn text(&mut self, text: &Utf8Bytes, (miner, id): (u32, u32), shared: &mut Shared) {
        if self.exit.is_some() {
            return;
        }
        let (uuid, plan) = (self.spec.job_uuid.clone(), |step| Event::Step(miner, id, step));
        match MinerToExecutor::decode(text).expect("a miner keeps to the protocol") {
            MinerToExecutor::V0InitialJobRequest(_) if !self.is_ready => {
                self.is_ready = true;
                self.say(V0ExecutorReadyRequest { job_uuid: uuid, executor_token: None }, shared);
            }
            MinerToExecutor::V0JobRequest(_) if !self.has_begun => {
                self.has_begun = true;
                shared.book.jobs[number_of(&uuid)].begun += 1;
                let time = shared.between(100 * MS, 3 * SECOND);
                shared.after(time, plan(Step::VolumesReady));
            }
            // A repeat after a reconnect, or a word about what it said before.
            _ => {}
        }
    }
}

fn finished(job_uuid: String) -> V0JobFinishedRequest {
    V0JobFinishedRequest {
        job_uuid,
        docker_process_stdout: "hi\n".to_owned(),
        docker_process_stderr: String::new(),
        artifacts: None,
        upload_results: None,
    }
}

fn failed(job_uuid: String) -> V0JobFailedRequest {
    V0JobFailedRequest {
        job_uuid,
        message: "exit 3".to_owned(),
        reason: JobFailureReason::NonzeroReturnCode,
        stage: JobStage::Execution,
        docker_process_exit_status: Some(3.into()),
        docker_process_stdout: None,
        docker_process_stderr: None,
        context: None,
    }
}

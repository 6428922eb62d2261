//! A batch on a bench: a clock that is moved by hand, what it says kept, and what must always hold checked.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::now::Now;
use crate::base::rng::Rng;
use crate::identity::{KeyPair, PublicKey};
use crate::protocol::{
    ExecutorClass, FacilitatorToValidator, HordeFailureReason, Int, JobFailureReason, JobParticipantType,
    JobRejectionReason, JobResultDetails, MinerToValidator, V0AcceptJobRequest, V0DeclineJobRequest,
    V0ExecutionDoneRequest, V0ExecutorManifestRequest, V0ExecutorReadyRequest, V0HordeFailedRequest,
    V0JobFailedRequest, V0JobFinishedRequest, V0VolumesReadyRequest, V2JobRequest, ValidatorToMiner,
};
use crate::validator::batch::config::BatchConfig;
use crate::validator::batch::job::Verdict;
use crate::validator::batch::kept::{KeptJob, Place, PlannedRow};
use crate::validator::batch::line::{BatchOutcome, JobLine};
use crate::validator::batch::state::{Action, Batch, Ending, Input, MinerInput};
use crate::validator::routing::MinerAddress;

pub(super) const CLASS: ExecutorClass = ExecutorClass::AlwaysOnTest;

/// A job with limits of a minute each, as the integration tests have it.
pub(in super::super) fn request() -> V2JobRequest {
    let text = include_str!("../../../../tests/fixtures/job_request.json");
    match FacilitatorToValidator::decode(text) {
        Ok(FacilitatorToValidator::V2JobRequest(request)) => request,
        other => panic!("no job: {other:?}"),
    }
}

pub(super) fn hotkey(n: usize) -> PublicKey {
    let mut bytes = [0; 32];
    let mut rng = Rng::new(n as u64);
    bytes.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&rng.next_u64().to_be_bytes()));
    PublicKey::from_bytes(bytes)
}

pub(super) fn addresses(miners: usize) -> Vec<MinerAddress> {
    let address = |n| {
        let address = "127.0.0.1".to_owned();
        MinerAddress { hotkey: hotkey(n), address, port: 1, trusted: false, tls: false }
    };
    (0..miners).map(address).collect()
}

/// The judge's right answer.
pub(super) const RIGHT: &str = "42\n";

pub(super) fn config(seed: u64) -> BatchConfig {
    BatchConfig::new(KeyPair::from_uri("//Alice").unwrap(), seed)
}

/// A batch, its clock, and all that it has said.
pub(super) struct Bench {
    pub(super) batch: Batch,
    pub(super) now: Now,
    pub(super) miners: usize,
    pub(super) lines: Vec<JobLine>,
    /// Lines of a dry run, or that were kept before.
    pub(super) shown: Vec<JobLine>,
    pub(super) planned: Vec<PlannedRow>,
    pub(super) sent: Vec<(usize, ValidatorToMiner)>,
    pub(super) connected: Vec<usize>,
    pub(super) ending: Option<Ending>,
    pub(super) gates: usize,
    kept_gates: usize,
    /// Whether the disk takes its time with who leaves.
    pub(super) keeps_long: bool,
    /// The miner whose connection takes no request at the gate.
    pub(super) takes_nothing: Option<usize>,
    left: HashSet<Place>,
    closed: HashSet<usize>,
    ended: HashMap<Place, JobLine>,
    /// Between two sends at the gate.
    pub(super) send_time: Duration,
}

impl Bench {
    pub(super) fn new(config: BatchConfig, miners: usize, kept: Vec<KeptJob>) -> Self {
        let job = Arc::new(request());
        let maker = move |_: &PublicKey, class: ExecutorClass, _: &mut Rng| {
            let job = V2JobRequest { executor_class: class, ..V2JobRequest::clone(&job) };
            (class != ExecutorClass::AlwaysOnGpu24gb).then(|| Arc::new(job))
        };
        Self::with_maker(config, addresses(miners), Box::new(maker), kept)
    }

    pub(super) fn with_maker(
        config: BatchConfig,
        miners: Vec<MinerAddress>,
        maker: Box<dyn crate::validator::batch::plan::JobMaker>,
        kept: Vec<KeptJob>,
    ) -> Self {
        let judge = |_: &V2JobRequest, answer: &JobResultDetails| match answer.docker_process_stdout.as_str() {
            RIGHT => Verdict::Right,
            other => Verdict::Wrong(format!("{other:?}")),
        };
        let count = miners.len();
        Self {
            batch: Batch::new(config, 99, miners, (maker, Box::new(judge)), kept),
            // Some days in, so that nothing is before the beginning of the clock.
            now: Now { mono: Instant::now(), wall: Duration::from_secs(1_800_000_000) },
            miners: count,
            lines: Vec::new(),
            shown: Vec::new(),
            planned: Vec::new(),
            sent: Vec::new(),
            connected: Vec::new(),
            ending: None,
            gates: 0,
            kept_gates: 0,
            keeps_long: false,
            takes_nothing: None,
            left: HashSet::new(),
            closed: HashSet::new(),
            ended: HashMap::new(),
            send_time: Duration::from_micros(20),
        }
    }

    pub(super) fn wait(&mut self, millis: u64) {
        self.now = self.now + Duration::from_millis(millis);
        self.feed(Input::Tick);
    }

    pub(super) fn says(&mut self, miner: usize, message: impl Into<MinerToValidator>) {
        self.feed(Input::Miner(miner, MinerInput::Message(Box::new(message.into()))));
    }

    /// Hands it over, then what the clock says, as the thread does; gives what was sent for it at the gate.
    pub(super) fn feed(&mut self, input: Input) -> Vec<(usize, ValidatorToMiner)> {
        let mut at_gate = self.hand_over(input);
        while self.ending.is_none() && self.batch.next_wake().is_some_and(|wake| wake <= self.now.mono) {
            at_gate.extend(self.hand_over(Input::Tick));
        }
        at_gate
    }

    fn hand_over(&mut self, input: Input) -> Vec<(usize, ValidatorToMiner)> {
        let mut at_gate = Vec::new();
        let mut actions = std::collections::VecDeque::from(self.batch.handle(input, self.now));
        while let Some(action) = actions.pop_front() {
            assert!(self.ending.is_none(), "{action:?} after the end");
            match action {
                Action::Connect(miner) => {
                    assert!(!self.connected.contains(&miner), "connected twice");
                    self.connected.push(miner);
                }
                Action::Send(miner, message) => {
                    assert!(!self.closed.contains(&miner), "{message:?} to a closed connection");
                    self.sent.push((miner, *message));
                }
                Action::Plan(rows) | Action::PlanAnew(rows) => self.planned.extend(rows),
                Action::KeepGate(leaving) => {
                    self.kept_gates += 1;
                    self.left = leaving.into_iter().map(|(place, _)| place).collect();
                    if !self.keeps_long {
                        actions.extend(self.batch.handle(Input::GateKept, self.now));
                    }
                }
                Action::OpenGate(sends) => {
                    self.gates += 1;
                    assert!(self.gates == 1 && self.kept_gates == 1, "the gate opens once, and is kept before");
                    for send in sends {
                        let text = ValidatorToMiner::decode(&send.text).unwrap();
                        at_gate.push((send.miner, text));
                        let before = self.now;
                        self.now = self.now + self.send_time;
                        let error = (self.takes_nothing == Some(send.miner)).then(|| "full".to_owned());
                        let sent = Input::Sent { job: send.job, before, after: self.now, error };
                        actions.extend(self.batch.handle(sent, self.now));
                    }
                }
                Action::End(place, line, _) => {
                    assert!(place.miner < self.miners);
                    if line.sent_at.is_some() {
                        assert!(self.left.contains(&place), "it left without being kept: {line:?}");
                    }
                    assert!(!line.scored || (line.outcome == Some(BatchOutcome::Completed) && !line.late), "{line:?}");
                    let old = self.ended.insert(place, JobLine::clone(&line));
                    assert_eq!(old, None, "a second end of {place:?}: {line:?}");
                    self.lines.push(*line);
                }
                Action::Show(line) => self.shown.push(*line),
                Action::Close(miner) => assert!(self.closed.insert(miner), "closed twice"),
                Action::Done(ending) => self.ending = Some(ending),
            }
        }
        if self.ending.is_some() {
            assert_eq!(self.closed.len(), self.miners, "not all are closed");
        }
        let progress = self.batch.progress();
        assert!(progress.ready + progress.sent <= progress.jobs, "{progress:?}");
        assert_eq!(progress.ended, self.lines.len() + self.shown.len(), "{progress:?}");
        let known = (progress.answered, progress.lines.saturating_sub(progress.ended));
        assert!(known.0 <= progress.miners && progress.ended <= progress.lines, "{progress:?}");
        if self.ending == Some(Ending::Complete) {
            assert_eq!(known, (progress.miners, 0), "{progress:?}");
        }
        at_gate
    }

    /// Moves the clock from deadline to deadline until it has ended.
    pub(super) fn run_to_its_end(&mut self) {
        while self.ending.is_none() {
            let wake = self.batch.next_wake().expect("something is due until the end");
            self.now = self.now + wake.saturating_duration_since(self.now.mono);
            self.feed(Input::Tick);
        }
    }

    /// The uuid of a job.
    pub(super) fn uuid(&self, miner: usize, job: usize) -> String {
        let place = Place { miner, job };
        self.planned.iter().rev().find(|row| row.place == place).expect("it was planned").uuid.clone()
    }
}

pub(super) fn manifest(counts: &[(ExecutorClass, i64)]) -> V0ExecutorManifestRequest {
    V0ExecutorManifestRequest { manifest: counts.iter().map(|(class, count)| (*class, Int::from(*count))).collect() }
}

pub(super) fn accept(uuid: &str) -> V0AcceptJobRequest {
    V0AcceptJobRequest { job_uuid: uuid.to_owned() }
}

pub(super) fn ready(uuid: &str) -> V0ExecutorReadyRequest {
    V0ExecutorReadyRequest { job_uuid: uuid.to_owned(), executor_token: None }
}

pub(super) fn volumes(uuid: &str) -> V0VolumesReadyRequest {
    V0VolumesReadyRequest { job_uuid: uuid.to_owned() }
}

pub(super) fn execution_done(uuid: &str) -> V0ExecutionDoneRequest {
    V0ExecutionDoneRequest { job_uuid: uuid.to_owned() }
}

pub(super) fn finished(uuid: &str, stdout: &str) -> V0JobFinishedRequest {
    V0JobFinishedRequest {
        job_uuid: uuid.to_owned(),
        docker_process_stdout: stdout.to_owned(),
        docker_process_stderr: String::new(),
        artifacts: None,
        upload_results: None,
    }
}

pub(super) fn decline(uuid: &str) -> V0DeclineJobRequest {
    V0DeclineJobRequest {
        job_uuid: uuid.to_owned(),
        reason: JobRejectionReason::Busy,
        message: "all executors are at work".to_owned(),
        receipts: Vec::new(),
        context: None,
    }
}

pub(super) fn failed(uuid: &str) -> V0JobFailedRequest {
    V0JobFailedRequest {
        job_uuid: uuid.to_owned(),
        reason: JobFailureReason::NonzeroReturnCode,
        stage: crate::protocol::JobStage::Execution,
        message: "exit 1".to_owned(),
        docker_process_exit_status: Some(Int::from(1)),
        docker_process_stdout: None,
        docker_process_stderr: None,
        context: None,
    }
}

pub(super) fn horde_failed(uuid: &str) -> V0HordeFailedRequest {
    V0HordeFailedRequest {
        job_uuid: uuid.to_owned(),
        reported_by: JobParticipantType::Executor,
        reason: HordeFailureReason::ExecutorSpinupFailed,
        message: "no engine".to_owned(),
        context: None,
    }
}

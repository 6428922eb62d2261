//! All decisions of an executor: one job, from the miner's initial request to its last message. Pure: no thread,
//! channel, socket or clock; it takes what happened and says what to do.
//!
//! The order of the actions is the order in which they must be done. Every way out of a job sends exactly one last
//! message.

use std::time::{Duration, Instant};

use super::runner::{RunEnd, RunOutcome, RunSpec};
use super::streaming::{Serving, StreamingLimits};
use crate::base::text;
use crate::protocol::executor::{FAULT, FAULT_OF_OPERATOR};
use crate::protocol::stages::{Stage, StageClock, Timing};
use crate::protocol::{
    ExecutorToMiner, GenericError, HordeFailureReason, Int, JobFailureReason, JobParticipantType, JobStage, JsonMap,
    MachineSpecs, MinerToExecutor, OutputUpload, StrMap, StreamingDetails, V0ExecutionDoneRequest,
    V0ExecutorReadyRequest, V0HordeFailedRequest, V0InitialJobRequest, V0JobFailedRequest, V0JobFinishedRequest,
    V0JobRequest, V0MachineSpecsRequest, V0StreamingJobReadyRequest, V0VolumesReadyRequest, Volume, answer,
};

/// Without any timing in the initial request, how long a job may take in all.
const DEFAULT_TOTAL: Duration = Duration::from_secs(3600);

/// How long what a job has left may be looked for after its time is over; its report must not be late.
const COLLECT_TIME: Duration = Duration::from_secs(1);

/// Bytes of a failure's message: more than any sentence of ours, and a tool may have said very much.
const MESSAGE_BYTES: usize = 8 << 10;

/// Sentences about what is left out; each has a name of at most 255 bytes, so that all are below 100 KB when escaped.
const TOLD: usize = 20;

/// Characters of base64 of the artifacts that a failure carries. They go into its context, which is kept by databases
/// and shown to people, so they are far fewer than those of a result.
const FAILED_ARTIFACTS_CHARS: usize = 512 << 10;

/// How a job ended, as its last message reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobEnd {
    /// The results were sent.
    Finished,
    /// The job itself failed.
    Failed,
    /// This side failed the job.
    HordeFailed,
}

/// Why an executor ended before it had a job.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecutorError {
    /// The configuration is wrong; nothing was started.
    #[error("executor: {}", .0.join("; "))]
    Config(Vec<String>),
    /// The first attempt to reach the miner failed: a wrong address, port or token.
    #[error("cannot reach the miner: {0}")]
    Unreachable(String),
    /// The miner does not know our token, or says something else is wrong.
    #[error("the miner refused this executor: {0}")]
    Refused(String),
    /// No initial request came within the start-up time limit.
    #[error("no initial job request within {0:?}")]
    NoJob(Duration),
    /// The shutdown signal came first.
    #[error("a signal stopped this executor before a job came")]
    Stopped,
}

/// Something that happened.
#[derive(Debug)]
pub enum Input {
    /// The miner is there, for the first time or again.
    Connected,
    /// The miner is not there; another attempt will follow.
    Disconnected {
        /// Why.
        why: String,
        /// Whether a connection was there and broke, rather than that there is none to be had.
        cut: bool,
    },
    /// The miner has closed the connection for good.
    ClosedForGood,
    /// A message of the miner.
    FromMiner(Box<MinerToExecutor>),
    /// The present work is done, or cannot be.
    Done(Result<Outcome, Problem>),
    /// The machine is described.
    Specs(JsonMap),
    /// The thread that works has panicked.
    Crashed(String),
    /// Stop before there is a job; one that has begun is left to its miner.
    Drain,
    /// Stop now.
    Cancel,
    /// Time has passed.
    Tick,
}

/// What work has brought about.
#[derive(Debug)]
pub enum Outcome {
    /// The job's folder is there.
    Prepared,
    /// The image is here, and the volume in its place.
    Loaded,
    /// The server of a streaming job is ready for clients; the job goes on.
    Serving(Serving),
    /// The job has run.
    Ran(Box<RunOutcome>),
    /// A streaming job was ended because its server was not ready in time, and why.
    NotServed(Box<RunOutcome>, String),
    /// The output is where it belongs.
    Uploaded(Box<Results>),
}

/// What a job leaves, apart from what it printed.
#[derive(Debug, Default)]
pub struct Results {
    /// Path to base64.
    pub artifacts: StrMap,
    /// A sentence for each thing that the job has left and that is not carried.
    pub left_out: Vec<String>,
    /// What the servers of its uploads answered.
    pub uploads: StrMap,
}

/// Why work cannot be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// It was cancelled.
    Cancelled,
    /// Its deadline has passed.
    TimedOut(String),
    /// What the job asks for cannot be had.
    OfJob(String),
    /// This side cannot serve a streaming job to its clients.
    OfStreaming(String),
    /// A server or the way to it, or this side, cannot do its part.
    OfHorde(String),
    /// This machine cannot do its part until its operator has seen to it.
    OfOperator(String),
}

/// Work of one stage.
#[derive(Debug)]
pub enum Work {
    /// Make the job's folder.
    Prepare {
        /// Who may connect to it, if it is a streaming job.
        streaming: Option<Box<StreamingDetails>>,
        /// By when.
        deadline: Instant,
    },
    /// See that the image can be run, and load the volume.
    Load {
        /// The image.
        image: String,
        /// Which volume.
        volume: Option<Box<Volume>>,
        /// By when.
        deadline: Instant,
    },
    /// Run the job.
    Run {
        /// What is to be run.
        spec: Box<RunSpec>,
        /// The further limits of a streaming job.
        streaming: Option<StreamingLimits>,
        /// By when.
        deadline: Instant,
    },
    /// Collect the artifacts, upload the output.
    Upload {
        /// Where the job has left its artifacts.
        artifacts_dir: Option<String>,
        /// Where its output goes.
        upload: Option<Box<OutputUpload>>,
        /// By when.
        deadline: Instant,
    },
}

/// Something to do.
#[derive(Debug)]
pub enum Action {
    /// A job has come, by its uuid: start whatever does its work.
    Begin(String),
    /// Do this, and report it as [`Input::Done`]; nothing else is being done.
    Work(Work),
    /// Cancel the work that is being done.
    CancelWork,
    /// No work will follow: remove what is left of the job.
    Finish,
    /// Send a message to the miner.
    Send(Box<ExecutorToMiner>),
    /// The executor has ended.
    End(Result<JobEnd, ExecutorError>),
}

/// The state of an executor.
#[derive(Debug)]
pub struct Stages {
    startup: Duration,
    gone_after: Duration,
    state: ExecutorState,
    /// The machine, once it is described.
    machine: Option<JsonMap>,
}

/// Adds to the job's standard error what is not carried of what it has left: a result has no other place that its user
/// reads, and `completed` must not hide it.
fn tell(stderr: &mut String, left_out: &[String]) {
    if !left_out.is_empty() && !stderr.is_empty() && !stderr.ends_with('\n') {
        stderr.push('\n');
    }
    for sentence in left_out.iter().take(TOLD) {
        stderr.push_str(&format!("[phalanx: {sentence}]\n"));
    }
    if let Some(more @ 1..) = left_out.len().checked_sub(TOLD) {
        stderr.push_str(&format!("[phalanx: {more} more are left out]\n"));
    }
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
        Self { startup, gone_after, state, machine: None }
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
            Input::Disconnected { why, cut } if *connected || cut => {
                return log::warn!("no connection before the job came: {why}");
            }
            // At once, so that a miner's operator notices a wrong address.
            Input::Disconnected { why, .. } => ExecutorError::Unreachable(why),
            Input::ClosedForGood => ExecutorError::Refused("it closed the connection before a job came".to_owned()),
            Input::FromMiner(message) => match *message {
                MinerToExecutor::V0InitialJobRequest(initial) => {
                    let mut job = StagedJob::begin(initial, self.startup, now);
                    out.append(&mut job.out);
                    self.state = ExecutorState::Job(Box::new(job));
                    return;
                }
                MinerToExecutor::GenericError(error) => ExecutorError::Refused(error.details.unwrap_or_default()),
                MinerToExecutor::V0JobRequest(request) => {
                    let answer = answer::early_job_request(&request.job_uuid);
                    log::warn!("{}", answer.details.as_deref().unwrap_or_default());
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

/// What a job waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Prepare,
    /// The full request, until then.
    Request(Instant),
    Load,
    /// It runs, and its server is not ready yet.
    Start,
    Run,
    Upload,
}

impl Phase {
    fn stage(self) -> JobStage {
        match self {
            Phase::Prepare | Phase::Request(_) => JobStage::ExecutorStartup,
            Phase::Load => JobStage::VolumeDownload,
            Phase::Start => JobStage::StreamingStartup,
            Phase::Run => JobStage::Execution,
            Phase::Upload => JobStage::ResultUpload,
        }
    }
}

#[derive(Debug)]
struct StagedJob {
    uuid: String,
    phase: Phase,
    timing: Timing,
    /// From the moment when the executor is ready.
    clock: Option<StageClock>,
    streaming: bool,
    /// Of the initial request.
    volume: Option<Volume>,
    /// The first full request is the one that counts.
    request: Option<Box<V0JobRequest>>,
    /// How the run ended, if it has.
    ran: Option<Box<RunOutcome>>,
    /// The machine, as far as it is described.
    machine: Option<JsonMap>,
    /// When the present stage began.
    stage_began: Instant,
    /// When what is being handled happened.
    now: Instant,
    alone_since: Option<Instant>,
    /// On each new connection a miner may say once more what it does not know to have arrived.
    initial_again: bool,
    request_again: bool,
    cancelled: bool,
    out: Vec<Action>,
}

impl StagedJob {
    fn begin(initial: V0InitialJobRequest, startup: Duration, now: Instant) -> Self {
        let timing = match (&initial.executor_timing, &initial.timeout_seconds) {
            (Some(details), _) => Timing::from(details),
            (None, Some(total)) => Timing::Total(total.saturating_seconds()),
            (None, None) => Timing::Total(DEFAULT_TOTAL),
        };
        let mut job = Self {
            out: vec![Action::Begin(initial.job_uuid.clone())],
            uuid: initial.job_uuid,
            phase: Phase::Prepare,
            timing: timing.of_executor(),
            clock: None,
            streaming: initial.streaming_details.is_some(),
            volume: initial.volume,
            request: None,
            ran: None,
            machine: None,
            stage_began: now,
            now,
            alone_since: None,
            initial_again: false,
            request_again: false,
            cancelled: false,
        };
        let streaming = initial.streaming_details.map(Box::new);
        job.work(Work::Prepare { streaming, deadline: now + startup });
        job
    }

    fn take(&mut self, input: Input, now: Instant) {
        match input {
            Input::Connected => {
                self.alone_since = None;
                (self.initial_again, self.request_again) = (true, self.request.is_some());
            }
            Input::Disconnected { why, .. } => {
                log::warn!("job {}: no miner: {why}", self.uuid);
                self.alone_since.get_or_insert(now);
            }
            Input::ClosedForGood => {
                log::info!("job {}: the miner has closed, so the job is over for it", self.uuid);
                self.cancel();
            }
            Input::FromMiner(message) => self.take_message(*message, now),
            Input::Done(Ok(outcome)) => self.done(outcome, now),
            Input::Done(Err(problem)) => self.fail(problem),
            Input::Crashed(why) => {
                let message = format!("the executor crashed: {why}");
                self.end_horde_failed(HordeFailureReason::UnhandledException, message, None);
            }
            Input::Cancel => self.cancel(),
            // A service manager signals miner, executors and jobs at once, and the miner may want its jobs to end. It
            // closes the connection when it does not, and a miner that is gone is not waited for for ever.
            Input::Drain => log::info!("job {}: goes on, its miner decides; a second signal cancels it", self.uuid),
            Input::Tick | Input::Specs(_) => {}
        }
    }

    fn take_message(&mut self, message: MinerToExecutor, now: Instant) {
        match message {
            MinerToExecutor::V0JobRequest(request) if self.request.is_none() && request.job_uuid != self.uuid => {
                let details = format!("this executor runs job {}, not {}", self.uuid, request.job_uuid);
                self.complain(GenericError { details: Some(details) });
            }
            MinerToExecutor::V0JobRequest(request) if self.request.is_some() => {
                if !std::mem::take(&mut self.request_again) {
                    self.complain(answer::second_job_request(&self.uuid, &request.job_uuid));
                }
            }
            MinerToExecutor::V0JobRequest(request) => {
                self.request = Some(Box::new(request));
                if matches!(self.phase, Phase::Request(_)) {
                    self.load(now);
                }
            }
            MinerToExecutor::V0InitialJobRequest(initial) => {
                let again = std::mem::take(&mut self.initial_again);
                if !again || initial.job_uuid != self.uuid {
                    self.complain(answer::second_initial_request(&self.uuid, &initial.job_uuid));
                }
            }
            MinerToExecutor::GenericError(error) => {
                log::warn!("job {}: the miner reports: {}", self.uuid, error.details.unwrap_or_default());
            }
        }
    }

    fn done(&mut self, outcome: Outcome, now: Instant) {
        match outcome {
            Outcome::Prepared if self.cancelled => self.fail(Problem::Cancelled),
            Outcome::Prepared => {
                self.send(V0ExecutorReadyRequest { job_uuid: self.uuid.clone(), executor_token: None });
                let clock = self.clock.insert(StageClock::new(self.timing, now));
                // The volumes' limit counts from here on, so that the wait for the request is within leeway and
                // download.
                self.phase = Phase::Request(clock.clone().begin(Stage::Download));
                self.stage_began = now;
                if self.request.is_some() {
                    self.load(now);
                }
            }
            Outcome::Loaded => self.run(now),
            Outcome::Serving(serving) => self.serving(serving, now),
            Outcome::Ran(ran) => self.ran(ran, now),
            Outcome::NotServed(ran, why) => {
                self.ran = Some(ran);
                let message = format!("Streaming job health check failed: {why}");
                self.job_failed(JobFailureReason::Timeout, JobStage::StreamingStartup, message, None);
            }
            Outcome::Uploaded(results) => self.finish(*results),
        }
    }

    /// The clock of the stages; a stage begins.
    fn begin_stage(&mut self, now: Instant) -> &mut StageClock {
        self.stage_began = now;
        self.clock.get_or_insert_with(|| StageClock::new(self.timing, now))
    }

    fn load(&mut self, now: Instant) {
        // The stage began when the executor was ready.
        let deadline = self.clock.get_or_insert_with(|| StageClock::new(self.timing, now)).begin(Stage::Download);
        self.phase = Phase::Load;
        let Some(request) = &mut self.request else { return };
        let volume = request.volume.take().or(self.volume.take()).map(Box::new);
        let image = request.docker_image.clone();
        self.work(Work::Load { image, volume, deadline });
    }

    fn run(&mut self, now: Instant) {
        self.send(V0VolumesReadyRequest { job_uuid: self.uuid.clone() });
        let run_time = self.timing.run_time();
        let (streaming, deadline) = if self.streaming {
            let clock = self.begin_stage(now);
            let start_by = clock.begin(Stage::StreamingStart);
            // The run's own limit counts from the moment at which clients can connect.
            (Some(StreamingLimits { start_by, run_time }), clock.clone().begin(Stage::Execution))
        } else {
            (None, self.begin_stage(now).begin_run(now))
        };
        self.phase = if self.streaming { Phase::Start } else { Phase::Run };
        let Some(request) = &self.request else { return };
        let spec = Box::new(RunSpec::from_request(self.uuid.as_str(), request));
        self.work(Work::Run { spec, streaming, deadline });
    }

    fn serving(&mut self, serving: Serving, now: Instant) {
        self.phase = Phase::Run;
        self.begin_stage(now).begin(Stage::Execution);
        self.send(V0StreamingJobReadyRequest {
            job_uuid: self.uuid.clone(),
            executor_token: None,
            public_key: serving.certificate,
            // The miner knows it, and signs it.
            ip: None,
            port: i64::from(serving.port).into(),
            miner_signature: None,
        });
    }

    fn ran(&mut self, ran: Box<RunOutcome>, now: Instant) {
        let end = ran.end;
        self.ran = Some(ran);
        match end {
            RunEnd::Exited(0) if self.phase == Phase::Start => {
                let message = "Streaming job health check failed: the job ended before its server was ready".to_owned();
                return self.job_failed(JobFailureReason::Timeout, self.phase.stage(), message, Some(0.into()));
            }
            RunEnd::Exited(0) => {}
            RunEnd::Exited(code) => {
                return self.job_exited(format!("Job container exited with non-zero exit code: {code}"));
            }
            RunEnd::Signalled(signal) => {
                let message = format!("the job was ended by signal {signal} (exit code {})", 128 + signal);
                return self.job_exited(message);
            }
            RunEnd::OutOfMemory => return self.job_exited("the job used more memory than it may".to_owned()),
            // What it has left is of use; its validator still waits for the end of the execution.
            RunEnd::OverQuota { limit, used, unit } => {
                let message = format!("the job used {used} {unit} of disk, more than the {limit} that it may");
                return self.job_exited(message);
            }
            RunEnd::TimedOut => {
                let deadline = self.clock.as_ref().map_or(now, StageClock::deadline).max(now + COLLECT_TIME);
                return self.collect(None, deadline);
            }
            RunEnd::Cancelled => return self.fail(Problem::Cancelled),
        }
        self.send(V0ExecutionDoneRequest { job_uuid: self.uuid.clone() });
        let deadline = self.begin_stage(now).begin(Stage::Upload);
        let upload = self.request.as_mut().and_then(|request| request.output_upload.take()).map(Box::new);
        self.collect(upload, deadline);
    }

    fn collect(&mut self, upload: Option<Box<OutputUpload>>, deadline: Instant) {
        self.phase = Phase::Upload;
        let artifacts_dir = self.request.as_mut().and_then(|request| request.artifacts_dir.take());
        self.work(Work::Upload { artifacts_dir, upload, deadline });
    }

    fn finish(&mut self, results: Results) {
        if self.run_timed_out() {
            return self.timed_out(results.artifacts);
        }
        let Results { artifacts, left_out, uploads } = results;
        let (stdout, mut stderr) = self.ran.take().map(|ran| (ran.stdout.text, ran.stderr.text)).unwrap_or_default();
        tell(&mut stderr, &left_out);
        let job_uuid = self.uuid.clone();
        if let Some(machine) = self.machine.take() {
            self.send(V0MachineSpecsRequest { job_uuid: job_uuid.clone(), specs: MachineSpecs { specs: machine } });
        }
        let finished = V0JobFinishedRequest {
            job_uuid,
            docker_process_stdout: stdout,
            docker_process_stderr: stderr,
            artifacts: Some(artifacts),
            upload_results: Some(uploads),
        };
        self.end(finished, JobEnd::Finished);
    }

    fn cancel(&mut self) {
        if std::mem::replace(&mut self.cancelled, true) {
            return;
        }
        match self.phase {
            Phase::Request(_) => self.fail(Problem::Cancelled),
            // Whatever is being done ends soon, and is reported.
            _ => self.out.push(Action::CancelWork),
        }
    }

    fn check_time(&mut self, gone_after: Duration, now: Instant) {
        if matches!(self.out.last(), Some(Action::End(_))) {
            return;
        }
        if let Phase::Request(until) = self.phase
            && now >= until
        {
            let message = "no full job request came in time".to_owned();
            return self.job_failed(JobFailureReason::Timeout, JobStage::VolumeDownload, message, None);
        }
        if !self.cancelled && self.alone_since.is_some_and(|since| now >= since + gone_after) {
            log::error!("job {}: no miner for {gone_after:?}, the job is cancelled", self.uuid);
            self.cancel();
        }
    }

    fn next_wake(&self, gone_after: Duration) -> Option<Instant> {
        let request = match self.phase {
            Phase::Request(until) => Some(until),
            // The work has its own deadline.
            _ => None,
        };
        let gone = self.alone_since.filter(|_| !self.cancelled).map(|since| since + gone_after);
        request.into_iter().chain(gone).min()
    }

    /// Whether the run was stopped at its limit.
    fn run_timed_out(&self) -> bool {
        self.ran.as_ref().is_some_and(|ran| ran.end == RunEnd::TimedOut)
    }

    /// The end of a job that ran for too long, with what it has left.
    fn timed_out(&mut self, artifacts: StrMap) {
        let (mut chars, mut left_out) = (0, 0);
        let mut kept = JsonMap::new();
        for (name, content) in artifacts {
            if chars + name.len() + content.len() > FAILED_ARTIFACTS_CHARS {
                left_out += 1;
                continue;
            }
            chars += name.len() + content.len();
            kept.insert(name, content.into());
        }
        let mut context = self.context(JobStage::Execution);
        if !kept.is_empty() {
            context.insert("artifacts".to_owned(), kept.into());
        }
        if left_out > 0 {
            context.insert("artifacts_left_out".to_owned(), left_out.into());
        }
        let message = "Job container timed out during execution".to_owned();
        self.send_job_failed(JobFailureReason::Timeout, JobStage::Execution, message, None, context);
    }

    /// Where a failure happened, in all kinds of failures alike.
    fn context(&self, stage: JobStage) -> JsonMap {
        let took = self.now.saturating_duration_since(self.stage_began);
        // Milliseconds tell more than anybody needs.
        let seconds = took.as_millis() as f64 / 1000.0;
        JsonMap::from_iter([
            ("stage".to_owned(), stage.as_str().into()),
            ("stage_seconds".to_owned(), seconds.into()),
            ("executor".to_owned(), concat!("phalanx ", env!("CARGO_PKG_VERSION")).into()),
        ])
    }

    /// The end of a job whose work cannot be done.
    fn fail(&mut self, problem: Problem) {
        if self.run_timed_out() {
            log::warn!("job {}: nothing of what it has left is reported: {problem:?}", self.uuid);
            return self.timed_out(StrMap::new());
        }
        let stage = self.phase.stage();
        let (reason, message) = match problem {
            Problem::Cancelled => {
                let message = "the executor was stopped before the job had ended".to_owned();
                return self.horde_failed(HordeFailureReason::GenericError, message);
            }
            Problem::OfHorde(message) => return self.horde_failed(HordeFailureReason::GenericError, message),
            Problem::OfStreaming(message) => return self.horde_failed(HordeFailureReason::StreamingFailed, message),
            Problem::OfOperator(message) => {
                // Its miner shows that.
                let mut context = self.context(stage);
                context.insert(FAULT.to_owned(), FAULT_OF_OPERATOR.into());
                return self.end_with(HordeFailureReason::GenericError, message, Some(context));
            }
            Problem::TimedOut(message) => (JobFailureReason::Timeout, message),
            Problem::OfJob(message) if self.phase == Phase::Upload => (JobFailureReason::UploadFailed, message),
            Problem::OfJob(message) => (JobFailureReason::DownloadFailed, message),
        };
        self.job_failed(reason, stage, message, None);
    }

    /// The end of a job that did not end well.
    fn job_exited(&mut self, message: String) {
        let code = self.ran.as_ref().and_then(|ran| ran.exit_code()).map(|code| Int::from(i64::from(code)));
        self.job_failed(JobFailureReason::NonzeroReturnCode, self.phase.stage(), message, code);
    }

    fn job_failed(&mut self, reason: JobFailureReason, stage: JobStage, message: String, exit_code: Option<Int>) {
        self.send_job_failed(reason, stage, message, exit_code, self.context(stage));
    }

    fn send_job_failed(
        &mut self,
        reason: JobFailureReason,
        stage: JobStage,
        message: String,
        exit_code: Option<Int>,
        context: JsonMap,
    ) {
        log::info!("job {}: failed: {message}", self.uuid);
        let (stdout, stderr) = self.ran.take().map(|ran| (ran.stdout.text, ran.stderr.text)).unzip();
        let failed = V0JobFailedRequest {
            job_uuid: self.uuid.clone(),
            message: bounded(message),
            reason,
            stage,
            docker_process_exit_status: exit_code,
            docker_process_stdout: stdout,
            docker_process_stderr: stderr,
            context: Some(context),
        };
        self.end(failed, JobEnd::Failed);
    }

    fn horde_failed(&mut self, reason: HordeFailureReason, message: String) {
        self.end_horde_failed(reason, message, Some(self.phase.stage()));
    }

    fn end_horde_failed(&mut self, reason: HordeFailureReason, message: String, stage: Option<JobStage>) {
        let context = stage.map(|stage| self.context(stage));
        self.end_with(reason, message, context);
    }

    fn end_with(&mut self, reason: HordeFailureReason, message: String, context: Option<JsonMap>) {
        log::warn!("job {}: horde failed: {message}", self.uuid);
        let failed = V0HordeFailedRequest {
            job_uuid: self.uuid.clone(),
            reported_by: JobParticipantType::Executor,
            message: bounded(message),
            reason,
            context,
        };
        self.end(failed, JobEnd::HordeFailed);
    }

    fn end(&mut self, last: impl Into<ExecutorToMiner>, end: JobEnd) {
        // The validator waits for the message, nobody for the clean-up: where the miner ends this process in the midst
        // of it, it removes the rest itself.
        self.send(last);
        self.out.push(Action::Finish);
        self.out.push(Action::End(Ok(end)));
    }

    fn complain(&mut self, answer: GenericError) {
        log::warn!("job {}: {}", self.uuid, answer.details.as_deref().unwrap_or_default());
        self.send(answer);
    }

    fn work(&mut self, work: Work) {
        self.out.push(Action::Work(work));
    }

    fn send(&mut self, message: impl Into<ExecutorToMiner>) {
        self.out.push(Action::Send(Box::new(message.into())));
    }
}

fn bounded(mut message: String) -> String {
    text::truncate(&mut message, MESSAGE_BYTES);
    message
}

//! One job: the order of its stages, and their deadlines. Pure.

use std::time::{Duration, Instant};

use super::io::{Action, Input, Outcome, Problem, Work};
use super::timeline::{Part, Timeline};
use crate::executor::runner::{RunEnd, RunOutcome, RunSpec};
use crate::executor::sandbox::bytes;
use crate::executor::streaming::{Serving, StreamingLimits};
use crate::ops::errors::ErrorClass;
use crate::protocol::stages::{Stage, StageClock, Timing};
use crate::protocol::{
    ExecutorToMiner, GenericError, HordeFailureReason, JobFailureReason, JobStage, JsonMap, MinerToExecutor,
    OutputUpload, V0ExecutionDoneRequest, V0ExecutorReadyRequest, V0InitialJobRequest, V0JobRequest,
    V0StreamingJobReadyRequest, V0VolumesReadyRequest, Volume, answer,
};

/// Without any timing in the initial request, how long a job may take in all.
const DEFAULT_TOTAL: Duration = Duration::from_secs(3600);

/// How long what a job has left may be looked for after its time is over; its report must not be late.
const COLLECT_TIME: Duration = Duration::from_secs(1);

/// What a job waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
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
    pub(super) fn stage(self) -> JobStage {
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
pub(super) struct StagedJob {
    pub(super) uuid: String,
    pub(super) phase: Phase,
    timing: Timing,
    pub(super) max_time: Option<Duration>,
    /// From the moment when the executor is ready.
    pub(super) clock: Option<StageClock>,
    streaming: bool,
    /// Of the initial request.
    volume: Option<Volume>,
    /// The first full request is the one that counts.
    request: Option<Box<V0JobRequest>>,
    /// How the run ended, if it has.
    pub(super) ran: Option<Box<RunOutcome>>,
    /// The machine, as far as it is described.
    pub(super) machine: Option<JsonMap>,
    /// When the present stage began.
    pub(super) stage_began: Instant,
    pub(super) timeline: Timeline,
    /// When what is being handled happened.
    pub(super) now: Instant,
    alone_since: Option<Instant>,
    /// On each new connection a miner may say once more what it does not know to have arrived.
    initial_again: bool,
    request_again: bool,
    pub(super) cancelled: bool,
    pub(super) out: Vec<Action>,
}

impl StagedJob {
    pub(super) fn begin(
        initial: V0InitialJobRequest,
        (startup, max_time): (Duration, Option<Duration>),
        now: Instant,
    ) -> Self {
        let timing = Timing::of(&initial, DEFAULT_TOTAL);
        let mut job = Self {
            out: vec![Action::Begin(initial.job_uuid.clone())],
            uuid: initial.job_uuid,
            phase: Phase::Prepare,
            timing: timing.of_executor(),
            max_time,
            clock: None,
            streaming: initial.streaming_details.is_some(),
            volume: initial.volume,
            request: None,
            ran: None,
            machine: None,
            stage_began: now,
            timeline: Timeline::new(Part::Prepare, now),
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

    pub(super) fn take(&mut self, input: Input, now: Instant) {
        match input {
            Input::Connected => {
                self.alone_since = None;
                (self.initial_again, self.request_again) = (true, self.request.is_some());
            }
            Input::Disconnected { .. } => drop(self.alone_since.get_or_insert(now)),
            Input::ClosedForGood => {
                log::info!("job {}: the miner has closed, so the job is over for it", self.uuid);
                self.cancel();
            }
            Input::FromMiner(message) => self.take_message(*message, now),
            Input::Done(Ok(outcome)) => self.done(outcome, now),
            Input::Done(Err(problem)) => self.fail(problem),
            Input::Crashed(why) => {
                let message = format!("the executor crashed: {why}");
                self.horde_failed(HordeFailureReason::UnhandledException, message);
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
            // It is told of when it comes.
            MinerToExecutor::GenericError(_) => {}
        }
    }

    fn done(&mut self, outcome: Outcome, now: Instant) {
        match outcome {
            Outcome::Prepared if self.cancelled => self.fail(Problem::Cancelled),
            Outcome::Prepared => {
                self.send(V0ExecutorReadyRequest { job_uuid: self.uuid.clone(), executor_token: None });
                let clock = self.clock(now);
                // The volumes' limit counts from here on, so that the wait for the request is within leeway and
                // download.
                self.phase = Phase::Request(clock.clone().begin(Stage::Download));
                self.stage_began = now;
                self.timeline.begin(Part::Request, now);
                if self.request.is_some() {
                    self.load(now);
                }
            }
            Outcome::Begun(part) => self.timeline.begin(part, now),
            Outcome::Loaded(volumes) => {
                volumes.into_iter().for_each(|bytes| self.timeline.moved(bytes));
                self.run(now);
            }
            Outcome::Serving(serving) => self.serving(serving, now),
            Outcome::Ran(ran) => self.ran(ran, now),
            Outcome::NotServed(ran, why) => {
                self.timeline.moved(ran.stdout.bytes + ran.stderr.bytes);
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
        self.clock(now)
    }

    fn clock(&mut self, now: Instant) -> &mut StageClock {
        self.clock.get_or_insert_with(|| StageClock::new(self.timing, now).within(self.max_time, now))
    }

    fn load(&mut self, now: Instant) {
        // The stage began when the executor was ready.
        let deadline = self.clock(now).begin(Stage::Download);
        self.phase = Phase::Load;
        self.timeline.begin(Part::Image, now);
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
        self.timeline.begin(if self.streaming { Part::Start } else { Part::Run }, now);
        let Some(request) = &self.request else { return };
        let spec = Box::new(RunSpec::from_request(self.uuid.as_str(), request));
        self.work(Work::Run { spec, streaming, deadline });
    }

    fn serving(&mut self, serving: Serving, now: Instant) {
        self.phase = Phase::Run;
        self.timeline.begin(Part::Run, now);
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
        self.timeline.moved(ran.stdout.bytes + ran.stderr.bytes);
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
            RunEnd::OutOfMemory { limit } => {
                let limit = limit.map(|limit| format!(", which is {}", bytes(limit))).unwrap_or_default();
                return self.job_exited(format!("the job used more memory than it may{limit}"));
            }
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
        self.timeline.begin(Part::Artifacts, self.now);
        let artifacts_dir = self.request.as_mut().and_then(|request| request.artifacts_dir.take());
        self.work(Work::Upload { artifacts_dir, upload, deadline });
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

    pub(super) fn check_time(&mut self, gone_after: Duration, now: Instant) {
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
            let what = format!("no miner for {gone_after:?}, the job is cancelled");
            self.error(ErrorClass::Fatal, "miner-link", &what);
            self.cancel();
        }
    }

    pub(super) fn next_wake(&self, gone_after: Duration) -> Option<Instant> {
        let request = match self.phase {
            Phase::Request(until) => Some(until),
            // The work has its own deadline.
            _ => None,
        };
        let gone = self.alone_since.filter(|_| !self.cancelled).map(|since| since + gone_after);
        request.into_iter().chain(gone).min()
    }

    fn complain(&mut self, answer: GenericError) {
        self.error(ErrorClass::Rejected, "miner-message", answer.details.as_deref().unwrap_or_default());
        self.send(answer);
    }

    pub(super) fn error(&mut self, class: ErrorClass, place: &'static str, what: &str) {
        self.out.push(Action::Error(class, place, format!("job {}: {what}", self.uuid)));
    }

    fn work(&mut self, work: Work) {
        self.out.push(Action::Work(work));
    }

    pub(super) fn send(&mut self, message: impl Into<ExecutorToMiner>) {
        self.out.push(Action::Send(Box::new(message.into())));
    }
}

//! One job of a user, from its request to its terminal status: runs on a worker of the dispatch back end.
//!
//! Blocks in: [`MinerClient::next`], always with the deadline of the present stage. Kick: the job's cancel signal.
//! Every way out reports exactly one terminal status; [`RunningJob`] sees to it.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant, SystemTime};

use super::job::RunningJob;
use super::miner_client::{MinerClient, MinerEvent, NoEvent};
use super::role::Shared;
use super::routing::{MinerAddress, NoMiner};
use super::status::Outcome;
use crate::base::limits::DIAL_TIME;
use crate::base::lock::lock;
use crate::base::scope;
use crate::base::shutdown::Shutdown;
use crate::base::stop::Stopping;
use crate::identity::PublicKey;
use crate::protocol::stages::{Stage, StageClock, Timing};
use crate::protocol::{
    DateTime, DockerRunOptionsPreset, ExecutorClass, ExecutorTimingDetails, HordeFailureDetails, HordeFailureReason,
    Int, JobAcceptedReceiptPayload, JobFinishedReceiptPayload, JobParticipantType, JobRejectionDetails,
    JobRejectionReason, JobStartedReceiptPayload, JobStatus, MinerToValidator, StreamingServerDetails,
    V0DeclineJobRequest, V0HordeFailedRequest, V0InitialJobRequest, V0JobAcceptedReceiptRequest,
    V0JobFinishedReceiptRequest, V0JobRequest, V0MachineSpecsUpdate, V2JobRequest,
};

/// What a miner and an executor may take beside the limits that the job itself has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobTimes {
    /// For the connection to a miner and its answer to our authentication.
    pub connect: Duration,
    /// For the reservation of an executor.
    pub reservation: Duration,
    /// For the start of an executor, beyond the spin-up time of its class.
    pub executor_startup: Duration,
    /// For all stages together, beyond their limits; whole seconds, because executors are told.
    pub leeway: Duration,
}

impl Default for JobTimes {
    /// 15 s, 7 s, 5 s, 5 s: as the Python validator, which names no limit for the connection.
    fn default() -> Self {
        Self {
            connect: DIAL_TIME,
            reservation: Duration::from_secs(7),
            executor_startup: Duration::from_secs(5),
            leeway: Duration::from_secs(5),
        }
    }
}

/// Miners that may decline one job, or be out of reach, before it is given up; those without its class do not count.
const MINERS_PER_JOB: usize = 3;

/// How long the link to the miner may take to close after the job.
const CLOSE_TIME: Duration = Duration::from_secs(2);

/// How long a started-receipt counts: reservation, start-up, and what a slow network adds.
const STARTED_RECEIPT_TTL: i64 = 30;

/// How long a job waits until it is known on disk, before a miner hears of it.
const DISK_TIME: Duration = Duration::from_secs(5);

/// Runs the job and reports it.
pub(super) fn run(shared: &Shared, job: RunningJob, cancel: &Shutdown) {
    let request = job.request();
    let _job = scope::job(request.uuid.as_str());
    if uuid::Uuid::try_parse(&request.uuid).map(|uuid| uuid.to_string()).ok().as_deref() != Some(&request.uuid) {
        let message = format!("job uuid {:?} is not a UUID in canonical form, which receipts need", request.uuid);
        return report_end(job, Outcome::rejected(JobRejectionReason::Unknown, message));
    }
    if let Err(error) = job.wait_until_known(Instant::now() + DISK_TIME) {
        log::warn!("job {}: {error}", request.uuid);
    }
    on_some_miner(shared, job, cancel);
}

fn report_end(job: RunningJob, outcome: Outcome) {
    let uuid = job.request().uuid.clone();
    if let Err(error) = job.end_and_wait(outcome) {
        log::error!("job {uuid}: {error}");
    }
}

/// The outcome of a job that a stop has cut short.
pub(super) fn stopping() -> Outcome {
    Outcome::horde_failed(HordeFailureReason::GenericError, "the validator was stopped before the job had ended")
}

/// Asks one miner after the other until one takes the job, and reports how it ended.
fn on_some_miner(shared: &Shared, job: RunningJob, cancel: &Shutdown) {
    let request = job.shared_request();
    let request = &*request;
    let class = request.executor_class;
    let mut tried: Vec<PublicKey> = Vec::new();
    let mut last: Option<Outcome> = None;
    let mut refusals = 0;
    while refusals < MINERS_PER_JOB {
        let miner = lock(&shared.routing).reserve(class, request.on_trusted_miner, &tried, Instant::now());
        let miner = match miner {
            Ok(miner) => miner,
            Err(why) => {
                return report_end(job, last.unwrap_or_else(|| nobody(why, class)));
            }
        };
        let slot = Slot { shared, hotkey: miner.hotkey, request };
        let (attempt, client) = Attempting::new(shared, &job, &miner, cancel).run();
        match attempt {
            Attempt::Ended(outcome) => {
                // Before the report, so that whoever hears of the end finds the executor free.
                drop(slot);
                report_end(job, outcome);
                return close(client, request, cancel);
            }
            Attempt::NotTaken(outcome) => {
                log::info!("job {}: miner {} did not take it", request.uuid, miner.hotkey);
                lock(&shared.routing).cool_down(&miner.hotkey, Instant::now());
                refusals += 1;
                last = Some(outcome);
            }
            Attempt::NoSuchClass => {}
        }
        close(client, request, cancel);
        drop(slot);
        tried.push(miner.hotkey);
    }
    report_end(job, last.unwrap_or_else(|| nobody(NoMiner::None, class)));
}

fn nobody(why: NoMiner, class: ExecutorClass) -> Outcome {
    match why {
        NoMiner::None => Outcome::rejected(
            JobRejectionReason::NoMinerForJob,
            format!("no miner that can be asked has executors of class {class}"),
        ),
        NoMiner::Busy => {
            Outcome::rejected(JobRejectionReason::Busy, format!("all executors of class {class} are at work"))
        }
    }
}

/// Sends what is left for the miner and ends the link; a miner that does not close in time is not the job's trouble.
fn close(client: MinerClient, request: &V2JobRequest, cancel: &Shutdown) {
    let mut stopping = Stopping::new(cancel);
    stopping.step("miner link", CLOSE_TIME, |step| client.stop(step));
    let report = stopping.finish();
    if !report.is_clean() {
        log::warn!("job {}: the link to its miner: {report}", request.uuid);
    }
}

/// A job counts against its miner until this is dropped, also by a panic.
struct Slot<'a> {
    shared: &'a Shared,
    hotkey: PublicKey,
    request: &'a V2JobRequest,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        lock(&self.shared.routing).release(&self.hotkey, self.request.executor_class);
    }
}

enum Attempt {
    /// The job has its outcome.
    Ended(Outcome),
    /// The miner declined or could not be reached; the outcome if nobody else takes it either.
    NotTaken(Outcome),
    /// The miner's manifest does not name the class.
    NoSuchClass,
}

/// Where one job on one miner stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    Reserving,
    Starting,
    Running(Stage),
}

struct Attempting<'a> {
    shared: &'a Shared,
    request: &'a V2JobRequest,
    job: &'a RunningJob,
    miner: &'a MinerAddress,
    cancel: &'a Shutdown,
    client: MinerClient,
    phase: Phase,
    deadline: Instant,
    stages: Option<StageClock>,
    started: SystemTime,
    asked_at: Instant,
    last_trouble: Option<String>,
}

type Step = ControlFlow<Attempt>;

const ON: Step = ControlFlow::Continue(());

fn end(outcome: impl Into<Outcome>) -> Step {
    ControlFlow::Break(Attempt::Ended(outcome.into()))
}

impl<'a> Attempting<'a> {
    fn new(shared: &'a Shared, job: &'a RunningJob, miner: &'a MinerAddress, cancel: &'a Shutdown) -> Self {
        let number = shared.next_link.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (key, dialer) = (&shared.config.key, shared.dialer.clone());
        let client = MinerClient::start(miner, key, dialer, shared.timer.clone(), number);
        Self {
            shared,
            request: job.request(),
            job,
            miner,
            cancel,
            client,
            phase: Phase::Connecting,
            deadline: Instant::now() + shared.config.job_times.connect,
            stages: None,
            started: SystemTime::now(),
            asked_at: Instant::now(),
            last_trouble: None,
        }
    }

    fn run(mut self) -> (Attempt, MinerClient) {
        let attempt = loop {
            let step = match self.client.next(self.deadline, self.cancel) {
                Ok(event) => self.event(event),
                Err(NoEvent::Deadline) => ControlFlow::Break(self.expired()),
                Err(NoEvent::Cancelled) => end(stopping()),
            };
            if let ControlFlow::Break(attempt) = step {
                break attempt;
            }
        };
        if self.phase != Phase::Connecting {
            self.send_finished_receipt(matches!(&attempt, Attempt::Ended(Outcome::Completed(_))));
        }
        (attempt, self.client)
    }

    fn event(&mut self, event: MinerEvent) -> Step {
        match event {
            // The manifest follows at once, and the phase decides what it means.
            MinerEvent::Ready => ON,
            MinerEvent::Message(message) => self.message(*message),
            MinerEvent::Lost { why } => {
                log::warn!("job {}: miner {}: connection lost: {why}", self.request.uuid, self.miner.hotkey);
                self.last_trouble = Some(why);
                ON
            }
            MinerEvent::Failed { why, refused } => {
                log::debug!("job {}: miner {}: {why}", self.request.uuid, self.miner.hotkey);
                if self.phase == Phase::Connecting {
                    return ControlFlow::Break(Attempt::NotTaken(self.not_connected(&why)));
                }
                if refused {
                    return end(self.not_connected(&why));
                }
                self.last_trouble = Some(why);
                ON
            }
        }
    }

    fn message(&mut self, message: MinerToValidator) -> Step {
        if let Some(uuid) = job_uuid(&message)
            && uuid != self.request.uuid
        {
            log::warn!("job {}: miner {} speaks of job {uuid}", self.request.uuid, self.miner.hotkey);
            return ON;
        }
        use MinerToValidator as M;
        match (message, self.phase) {
            (M::V0ExecutorManifestRequest(manifest), phase) => {
                let manifest: HashMap<_, _> =
                    manifest.manifest.iter().map(|(class, count)| (*class, count.saturating_i64())).collect();
                let offers = manifest.get(&self.request.executor_class).copied().unwrap_or(0) > 0;
                lock(&self.shared.routing).manifest(&self.miner.hotkey, manifest);
                match phase {
                    Phase::Connecting if !offers => ControlFlow::Break(Attempt::NoSuchClass),
                    // Asked again after a reconnect, because the request may have been lost; a miner takes a job once.
                    Phase::Connecting | Phase::Reserving => self.ask(),
                    _ => ON,
                }
            }
            (M::V0AcceptJobRequest(_), Phase::Reserving) => self.accepted(),
            (M::V0DeclineJobRequest(decline), Phase::Reserving | Phase::Connecting) => {
                ControlFlow::Break(Attempt::NotTaken(self.declined(decline)))
            }
            (M::V0ExecutorReadyRequest(_), Phase::Starting) => self.executor_ready(),
            (M::V0VolumesReadyRequest(_), Phase::Running(Stage::Download)) => {
                self.job.report(JobStatus::VolumesReady);
                let next =
                    if self.request.streaming_details.is_some() { Stage::StreamingStart } else { Stage::Execution };
                self.begin(next)
            }
            (M::V0StreamingJobReadyRequest(ready), Phase::Running(Stage::StreamingStart)) => {
                self.streaming_ready(StreamingServerDetails {
                    streaming_server_cert: Some(ready.public_key),
                    streaming_server_address: ready.ip,
                    streaming_server_port: Some(ready.port),
                });
                self.begin(Stage::Execution)
            }
            (M::V0ExecutionDoneRequest(_), Phase::Running(Stage::Execution)) => {
                self.job.report(JobStatus::ExecutionDone);
                self.begin(Stage::Upload)
            }
            (M::V0JobFinishedRequest(finished), Phase::Running(_)) => end(finished),
            (M::V0JobFailedRequest(failed), Phase::Starting | Phase::Running(_)) => end(failed),
            (M::V0HordeFailedRequest(failed), _) => end(Outcome::HordeFailed(details(failed))),
            (M::V0ExecutorFailedRequest(_), _) => end(Outcome::HordeFailed(HordeFailureDetails {
                reported_by: JobParticipantType::Miner,
                reason: HordeFailureReason::ExecutorSpinupFailed,
                message: "the executor failed to start".to_owned(),
                context: None,
            })),
            (M::V0StreamingJobNotReadyRequest(_), _) => end(Outcome::HordeFailed(HordeFailureDetails {
                reported_by: JobParticipantType::Miner,
                reason: HordeFailureReason::StreamingFailed,
                message: "the streaming server failed to start".to_owned(),
                context: None,
            })),
            (M::V0MachineSpecsRequest(found), _) => {
                self.job.machine_specs(V0MachineSpecsUpdate {
                    miner_hotkey: self.miner.hotkey.to_ss58(),
                    validator_hotkey: self.shared.config.key.ss58(),
                    specs: found.specs.specs,
                    batch_id: self.request.uuid.clone(),
                });
                ON
            }
            (M::V0MainHotkeyMessage(_), _) => ON,
            (M::GenericError(error), _) => {
                let text = error.details.unwrap_or_default();
                log::warn!("job {}: miner {} reports: {text}", self.request.uuid, self.miner.hotkey);
                self.last_trouble = Some(text);
                ON
            }
            (M::UnauthorizedError(error), _) => {
                let why = format!("{} {}", error.code, error.details.unwrap_or_default());
                end(self.not_connected(why.trim_end()))
            }
            (message, phase) => {
                // A repeat after a reconnect, or a miner out of step; the stage's deadline bounds what it can do.
                log::warn!("job {}: ignored {} while {phase:?}", self.request.uuid, kind(&message));
                ON
            }
        }
    }

    fn ask(&mut self) -> Step {
        if self.phase == Phase::Connecting {
            self.phase = Phase::Reserving;
            self.asked_at = Instant::now();
            self.deadline = Instant::now() + self.shared.config.job_times.reservation;
        }
        let request = initial_request(self.shared, self.request, self.miner, self.started);
        self.send(request)
    }

    fn accepted(&mut self) -> Step {
        self.job.report(JobStatus::Accepted);
        self.job.runs_on(self.miner.hotkey);
        self.phase = Phase::Starting;
        let startup = self.shared.config.job_times.executor_startup;
        self.deadline = Instant::now() + self.request.executor_class.spin_up_time() + startup;
        let now = DateTime::from(SystemTime::now());
        let payload = JobAcceptedReceiptPayload {
            job_uuid: self.request.uuid.clone(),
            miner_hotkey: self.miner.hotkey.to_ss58(),
            validator_hotkey: self.shared.config.key.ss58(),
            timestamp: now,
            time_accepted: now,
            ttl: total_seconds(self.shared, self.request),
        };
        let signature = payload.sign(&self.shared.config.key);
        self.send(V0JobAcceptedReceiptRequest { payload, signature })
    }

    fn streaming_ready(&self, details: StreamingServerDetails) {
        if let Err(error) = self.job.streaming_ready(details) {
            log::error!("job {}: {error}", self.request.uuid);
        }
    }

    fn executor_ready(&mut self) -> Step {
        self.job.report(JobStatus::ExecutorReady);
        self.stages = Some(StageClock::new(Timing::from(&timing(self.shared, self.request)), Instant::now()));
        let step = self.begin(Stage::Download);
        if step.is_break() {
            return step;
        }
        self.send(job_request(self.shared, self.request))
    }

    fn begin(&mut self, stage: Stage) -> Step {
        let clock = self.stages.as_mut().expect("stages begin after executor_ready, which makes the clock");
        self.deadline = clock.begin(stage);
        self.phase = Phase::Running(stage);
        ON
    }

    fn send(&self, message: impl Into<crate::protocol::ValidatorToMiner>) -> Step {
        match self.client.send(message) {
            Ok(()) => ON,
            Err(full) => end(Outcome::horde_failed(HordeFailureReason::MinerConnectionFailed, full.to_string())),
        }
    }

    fn send_finished_receipt(&self, completed: bool) {
        let payload = JobFinishedReceiptPayload {
            job_uuid: self.request.uuid.clone(),
            miner_hotkey: self.miner.hotkey.to_ss58(),
            validator_hotkey: self.shared.config.key.ss58(),
            timestamp: DateTime::from(SystemTime::now()),
            time_started: DateTime::from(self.started),
            time_took_us: i64::try_from(self.asked_at.elapsed().as_micros()).unwrap_or(i64::MAX),
            score_str: if completed { "1.000000" } else { "0.000000" }.to_owned(),
            block_numbers: Vec::new(),
        };
        let signature = payload.sign(&self.shared.config.key);
        if let Err(full) = self.client.send(V0JobFinishedReceiptRequest { payload, signature }) {
            log::warn!("job {}: the miner gets no finished-receipt: {full}", self.request.uuid);
        }
    }

    fn declined(&self, decline: V0DeclineJobRequest) -> Outcome {
        Outcome::Rejected(JobRejectionDetails {
            rejected_by: JobParticipantType::Miner,
            reason: decline.reason,
            message: decline.message,
            context: decline.context,
        })
    }

    fn not_connected(&self, why: &str) -> Outcome {
        let message = format!("miner {}: {why}", self.miner.hotkey);
        Outcome::horde_failed(HordeFailureReason::MinerConnectionFailed, message)
    }

    /// The present stage has used up its time.
    fn expired(&self) -> Attempt {
        let (reason, what) = match self.phase {
            Phase::Connecting => {
                let why = self.last_trouble.as_deref().unwrap_or("no connection in time");
                return Attempt::NotTaken(self.not_connected(why));
            }
            Phase::Reserving => (HordeFailureReason::InitialResponseTimedOut, "the answer to the initial request"),
            Phase::Starting => (HordeFailureReason::ExecutorReadinessResponseTimedOut, "the executor's readiness"),
            Phase::Running(stage) => (stage.timed_out(), stage.waits_for()),
        };
        let trouble = self.last_trouble.as_ref().map_or_else(String::new, |t| format!(" (last trouble: {t})"));
        let message = format!("waiting for {what} took too long{trouble}");
        Attempt::Ended(Outcome::horde_failed(reason, message))
    }
}

fn details(failed: V0HordeFailedRequest) -> HordeFailureDetails {
    HordeFailureDetails {
        reported_by: failed.reported_by,
        reason: failed.reason,
        message: failed.message,
        context: failed.context,
    }
}

fn timing(shared: &Shared, request: &V2JobRequest) -> ExecutorTimingDetails {
    ExecutorTimingDetails {
        allowed_leeway: Int::from(leeway_seconds(shared)),
        download_time_limit: request.download_time_limit.clone(),
        execution_time_limit: request.execution_time_limit.clone(),
        upload_time_limit: request.upload_time_limit.clone(),
        streaming_start_time_limit: request.streaming_start_time_limit.clone(),
    }
}

fn leeway_seconds(shared: &Shared) -> i64 {
    i64::try_from(shared.config.job_times.leeway.as_secs()).unwrap_or(i64::MAX)
}

/// All limits of the job together, as whole seconds within what a receipt can say.
fn total_seconds(shared: &Shared, request: &V2JobRequest) -> i64 {
    [
        &request.download_time_limit,
        &request.execution_time_limit,
        &request.upload_time_limit,
        &request.streaming_start_time_limit,
    ]
    .iter()
    .map(|limit| limit.saturating_i64().max(0))
    .fold(leeway_seconds(shared), i64::saturating_add)
    .min(crate::protocol::MAX_TTL_SECONDS)
}

fn initial_request(
    shared: &Shared,
    request: &V2JobRequest,
    miner: &MinerAddress,
    started: SystemTime,
) -> V0InitialJobRequest {
    let key = &shared.config.key;
    let payload = JobStartedReceiptPayload {
        job_uuid: request.uuid.clone(),
        miner_hotkey: miner.hotkey.to_ss58(),
        validator_hotkey: key.ss58(),
        timestamp: DateTime::from(started),
        executor_class: request.executor_class,
        is_organic: true,
        ttl: STARTED_RECEIPT_TTL,
    };
    let signature = payload.sign(key);
    let mut initial = V0InitialJobRequest {
        validator_signature: None,
        job_uuid: request.uuid.clone(),
        executor_class: request.executor_class,
        docker_image: Some(request.docker_image.clone()),
        timeout_seconds: Some(Int::from(total_seconds(shared, request))),
        volume: request.volume.clone(),
        job_started_receipt_payload: payload,
        job_started_receipt_signature: signature,
        streaming_details: request.streaming_details.clone(),
        executor_timing: Some(timing(shared, request)),
    };
    initial.sign(key);
    initial
}

fn job_request(shared: &Shared, request: &V2JobRequest) -> V0JobRequest {
    let mut job = V0JobRequest {
        validator_signature: None,
        job_uuid: request.uuid.clone(),
        executor_class: request.executor_class,
        docker_image: request.docker_image.clone(),
        raw_script: None,
        docker_run_options_preset: if request.executor_class.has_gpu() {
            DockerRunOptionsPreset::NvidiaAll
        } else {
            DockerRunOptionsPreset::None
        },
        docker_run_cmd: request.args.clone(),
        env: request.env.clone(),
        // It went with the initial request.
        volume: None,
        output_upload: request.output_upload.clone(),
        artifacts_dir: request.artifacts_dir.clone(),
    };
    job.sign(&shared.config.key);
    job
}

fn job_uuid(message: &MinerToValidator) -> Option<&str> {
    use MinerToValidator as M;
    match message {
        M::GenericError(_) | M::UnauthorizedError(_) | M::V0ExecutorManifestRequest(_) | M::V0MainHotkeyMessage(_) => {
            None
        }
        M::V0DeclineJobRequest(m) => Some(&m.job_uuid),
        M::V0AcceptJobRequest(m) => Some(&m.job_uuid),
        M::V0ExecutorFailedRequest(m) => Some(&m.job_uuid),
        M::V0StreamingJobNotReadyRequest(m) => Some(&m.job_uuid),
        M::V0ExecutorReadyRequest(m) => Some(&m.job_uuid),
        M::V0StreamingJobReadyRequest(m) => Some(&m.job_uuid),
        M::V0JobFailedRequest(m) => Some(&m.job_uuid),
        M::V0VolumesReadyRequest(m) => Some(&m.job_uuid),
        M::V0ExecutionDoneRequest(m) => Some(&m.job_uuid),
        M::V0JobFinishedRequest(m) => Some(&m.job_uuid),
        M::V0MachineSpecsRequest(m) => Some(&m.job_uuid),
        M::V0HordeFailedRequest(m) => Some(&m.job_uuid),
    }
}

fn kind(message: &MinerToValidator) -> &'static str {
    use MinerToValidator as M;
    match message {
        M::V0DeclineJobRequest(_) => "V0DeclineJobRequest",
        M::V0AcceptJobRequest(_) => "V0AcceptJobRequest",
        M::V0ExecutorReadyRequest(_) => "V0ExecutorReadyRequest",
        M::V0StreamingJobReadyRequest(_) => "V0StreamingJobReadyRequest",
        M::V0JobFailedRequest(_) => "V0JobFailedRequest",
        M::V0VolumesReadyRequest(_) => "V0VolumesReadyRequest",
        M::V0ExecutionDoneRequest(_) => "V0ExecutionDoneRequest",
        M::V0JobFinishedRequest(_) => "V0JobFinishedRequest",
        _ => "a message",
    }
}

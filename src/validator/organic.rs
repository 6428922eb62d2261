//! One job of a user, from its request to its terminal status: runs on a worker of the dispatch back end.
//!
//! Blocks in: [`MinerClient::next`], always with the deadline of the present stage. Kick: the job's cancel signal.
//! Every way out reports exactly one terminal status, but for a job that others go on with.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use super::ledger::NotOnDisk;
use super::miner_client::{MinerClient, MinerEvent, NoEvent};
use super::routing::{MinerAddress, NoMiner, Routing};
use super::status::Outcome;
use crate::base::limits::DIAL_TIME;
use crate::base::lock::lock;
use crate::base::scope;
use crate::base::shutdown::Shutdown;
use crate::base::stop::Stopping;
use crate::base::timer::TimerHandle;
use crate::identity::{KeyPair, PublicKey};
use crate::protocol::stages::{Stage, StageClock, Timing};
use crate::protocol::{
    DateTime, DockerRunOptionsPreset, ExecutorClass, ExecutorTimingDetails, HordeFailureDetails, HordeFailureReason,
    Int, JobAcceptedReceiptPayload, JobFinishedReceiptPayload, JobParticipantType, JobRejectionDetails,
    JobRejectionReason, JobStartedReceiptPayload, JobStatus, MinerToValidator, StreamingServerDetails,
    V0DeclineJobRequest, V0HordeFailedRequest, V0InitialJobRequest, V0JobAcceptedReceiptRequest,
    V0JobFinishedReceiptRequest, V0JobRequest, V0MachineSpecsUpdate, V2JobRequest,
};
use crate::transport::Dialer;

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

/// The miners, and what it takes to talk to them.
pub(super) struct Miners {
    /// The validator's hotkey.
    pub(super) key: KeyPair,
    pub(super) job_times: JobTimes,
    pub(super) routing: Mutex<Routing>,
    pub(super) dialer: Arc<dyn Dialer>,
    pub(super) timer: TimerHandle,
    /// Tells the threads of several jobs apart.
    next_link: AtomicU64,
}

impl Miners {
    pub(super) fn new(
        addresses: Vec<MinerAddress>,
        key: KeyPair,
        job_times: JobTimes,
        dialer: Arc<dyn Dialer>,
        timer: TimerHandle,
    ) -> Self {
        let routing = Mutex::new(Routing::new(addresses));
        Self { key, job_times, routing, dialer, timer, next_link: AtomicU64::new(0) }
    }
}

/// What hears how a job goes on; whoever runs it never waits for the one who asked, but for its end.
pub(super) trait Reports {
    /// What is asked for.
    fn request(&self) -> &Arc<V2JobRequest>;
    /// Miners that are not to have it.
    fn avoid(&self) -> &[PublicKey];
    /// The miner that had it when it was begun before: it has it still, if it is what we think.
    fn begun_on(&self) -> Option<PublicKey>;
    /// Blocks until the job is known whatever happens, 5 seconds at most.
    fn wait_until_known(&self) -> Result<(), NotOnDisk>;
    /// A step on the way.
    fn report(&self, status: JobStatus);
    fn streaming_ready(&self, details: StreamingServerDetails);
    fn runs_on(&self, miner: PublicKey);
    fn machine_specs(&self, specs: V0MachineSpecsUpdate);
    /// Its end; blocks until it is kept.
    fn end(self, outcome: Outcome);
    /// It was told to end before it had ended.
    fn cancelled(self);
    /// Whether others go on with it, on the same miner, when it was told to end.
    fn goes_on(&self) -> bool;
}

/// Miners that may decline one job, or be out of reach, before it is given up; those without its class do not count.
const MINERS_PER_JOB: usize = 3;

/// How long the link to the miner may take to close after the job.
const CLOSE_TIME: Duration = Duration::from_secs(2);

/// How long a started-receipt counts: reservation, start-up, and what a slow network adds.
const STARTED_RECEIPT_TTL: i64 = 30;

/// Runs the job and reports it.
pub(super) fn run(miners: &Miners, job: impl Reports, cancel: &Shutdown) {
    let request = job.request().clone();
    let _job = scope::job(request.uuid.as_str());
    if uuid::Uuid::try_parse(&request.uuid).map(|uuid| uuid.to_string()).ok().as_deref() != Some(&request.uuid) {
        let message = format!("job uuid {:?} is not a UUID in canonical form, which receipts need", request.uuid);
        return job.end(Outcome::rejected(JobRejectionReason::Unknown, message));
    }
    if let Err(error) = job.wait_until_known() {
        log::warn!("job {}: {error}", request.uuid);
    }
    on_some_miner(miners, job, &request, cancel);
}

/// The outcome of a job that a stop has cut short.
pub(super) fn stopping() -> Outcome {
    Outcome::horde_failed(HordeFailureReason::GenericError, "the validator was stopped before the job had ended")
}

/// Asks one miner after the other until one takes the job, and reports how it ended.
fn on_some_miner(miners: &Miners, job: impl Reports, request: &V2JobRequest, cancel: &Shutdown) {
    let class = request.executor_class;
    let mut tried: Vec<PublicKey> = job.avoid().to_vec();
    let mut begun_on = job.begun_on();
    let mut last: Option<Outcome> = None;
    let mut refusals = 0;
    while refusals < MINERS_PER_JOB {
        let has_it = begun_on.take();
        let miner = {
            let mut routing = lock(&miners.routing);
            let same = has_it.and_then(|miner| routing.reserve_again(&miner, class));
            same.map_or_else(|| routing.reserve(class, request.on_trusted_miner, &tried, Instant::now()), Ok)
        };
        let miner = match miner {
            Ok(miner) => miner,
            Err(why) => return job.end(last.unwrap_or_else(|| nobody(why, class))),
        };
        let slot = Slot { miners, hotkey: miner.hotkey, request };
        let (attempt, client) = Attempting::new(miners, &job, &miner, cancel).run();
        match attempt {
            Attempt::Ended(outcome) => {
                // Before the report, so that whoever hears of the end finds the executor free.
                drop(slot);
                job.end(outcome);
                return close(client, request, cancel);
            }
            Attempt::Cancelled => {
                drop(slot);
                job.cancelled();
                return close(client, request, cancel);
            }
            Attempt::NotTaken(outcome) => {
                log::info!("job {}: miner {} did not take it", request.uuid, miner.hotkey);
                lock(&miners.routing).cool_down(&miner.hotkey, Instant::now());
                refusals += 1;
                last = Some(outcome);
            }
            Attempt::NoSuchClass => {}
        }
        close(client, request, cancel);
        drop(slot);
        tried.push(miner.hotkey);
    }
    job.end(last.unwrap_or_else(|| nobody(NoMiner::None, class)));
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
    miners: &'a Miners,
    hotkey: PublicKey,
    request: &'a V2JobRequest,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        lock(&self.miners.routing).release(&self.hotkey, self.request.executor_class);
    }
}

enum Attempt {
    /// The job has its outcome.
    Ended(Outcome),
    /// The miner declined or could not be reached; the outcome if nobody else takes it either.
    NotTaken(Outcome),
    /// The miner's manifest does not name the class.
    NoSuchClass,
    /// It was told to end.
    Cancelled,
}

/// Where one job on one miner stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    Reserving,
    Starting,
    /// The miner has had the job since before; it tells again what its validator has not shown to know.
    Resuming,
    Running(Stage),
}

struct Attempting<'a, R> {
    miners: &'a Miners,
    request: &'a V2JobRequest,
    job: &'a R,
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

impl<'a, R: Reports> Attempting<'a, R> {
    fn new(miners: &'a Miners, job: &'a R, miner: &'a MinerAddress, cancel: &'a Shutdown) -> Self {
        let number = miners.next_link.fetch_add(1, Ordering::Relaxed);
        let (key, dialer) = (&miners.key, miners.dialer.clone());
        let client = MinerClient::start(miner, key, dialer, miners.timer.clone(), number);
        Self {
            miners,
            request: job.request(),
            job,
            miner,
            cancel,
            client,
            phase: Phase::Connecting,
            deadline: Instant::now() + miners.job_times.connect,
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
                Err(NoEvent::Cancelled) => ControlFlow::Break(Attempt::Cancelled),
            };
            if let ControlFlow::Break(attempt) = step {
                break attempt;
            }
        };
        let goes_on = matches!(attempt, Attempt::Cancelled) && self.job.goes_on();
        if self.phase != Phase::Connecting && !goes_on {
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
                lock(&self.miners.routing).manifest(&self.miner.hotkey, manifest);
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
            (M::V0ExecutorReadyRequest(_), Phase::Starting | Phase::Resuming) => self.executor_ready(),
            (M::V0VolumesReadyRequest(_), Phase::Running(Stage::Download) | Phase::Resuming) => {
                self.job.report(JobStatus::VolumesReady);
                let next =
                    if self.request.streaming_details.is_some() { Stage::StreamingStart } else { Stage::Execution };
                self.begin(next)
            }
            (M::V0StreamingJobReadyRequest(ready), Phase::Running(Stage::StreamingStart) | Phase::Resuming) => {
                self.job.streaming_ready(StreamingServerDetails {
                    streaming_server_cert: Some(ready.public_key),
                    streaming_server_address: ready.ip,
                    streaming_server_port: Some(ready.port),
                });
                self.begin(Stage::Execution)
            }
            (M::V0ExecutionDoneRequest(_), Phase::Running(Stage::Execution) | Phase::Resuming) => {
                self.job.report(JobStatus::ExecutionDone);
                self.begin(Stage::Upload)
            }
            (M::V0JobFinishedRequest(finished), Phase::Running(_) | Phase::Resuming) => end(finished),
            (M::V0JobFailedRequest(failed), Phase::Starting | Phase::Running(_) | Phase::Resuming) => end(failed),
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
                    validator_hotkey: self.miners.key.ss58(),
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
            self.deadline = Instant::now() + self.miners.job_times.reservation;
        }
        let request = initial_request(self.miners, self.request, self.miner, self.started);
        self.send(request)
    }

    fn accepted(&mut self) -> Step {
        self.job.report(JobStatus::Accepted);
        self.job.runs_on(self.miner.hotkey);
        let startup = self.request.executor_class.spin_up_time() + self.miners.job_times.executor_startup;
        (self.phase, self.deadline) = match self.job.begun_on() == Some(self.miner.hotkey) {
            // Nobody here knows how far it is, so all its stages count.
            true => {
                let stages = total_seconds(&self.miners.job_times, self.request).unsigned_abs();
                (Phase::Resuming, Instant::now() + startup + Duration::from_secs(stages))
            }
            false => (Phase::Starting, Instant::now() + startup),
        };
        let now = DateTime::from(SystemTime::now());
        let payload = JobAcceptedReceiptPayload {
            job_uuid: self.request.uuid.clone(),
            miner_hotkey: self.miner.hotkey.to_ss58(),
            validator_hotkey: self.miners.key.ss58(),
            timestamp: now,
            time_accepted: now,
            ttl: total_seconds(&self.miners.job_times, self.request),
        };
        let signature = payload.sign(&self.miners.key);
        self.send(V0JobAcceptedReceiptRequest { payload, signature })
    }

    fn executor_ready(&mut self) -> Step {
        self.job.report(JobStatus::ExecutorReady);
        let step = self.begin(Stage::Download);
        if step.is_break() {
            return step;
        }
        self.send(job_request(self.miners, self.request))
    }

    fn begin(&mut self, stage: Stage) -> Step {
        let timing = || StageClock::new(Timing::from(&timing(self.miners, self.request)), Instant::now());
        let clock = self.stages.get_or_insert_with(timing);
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
            validator_hotkey: self.miners.key.ss58(),
            timestamp: DateTime::from(SystemTime::now()),
            time_started: DateTime::from(self.started),
            time_took_us: i64::try_from(self.asked_at.elapsed().as_micros()).unwrap_or(i64::MAX),
            score_str: if completed { "1.000000" } else { "0.000000" }.to_owned(),
            block_numbers: Vec::new(),
        };
        let signature = payload.sign(&self.miners.key);
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
            Phase::Resuming => (HordeFailureReason::ExecutionTimedOut, "the end of the job"),
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

fn timing(miners: &Miners, request: &V2JobRequest) -> ExecutorTimingDetails {
    ExecutorTimingDetails {
        allowed_leeway: Int::from(leeway_seconds(&miners.job_times)),
        download_time_limit: request.download_time_limit.clone(),
        execution_time_limit: request.execution_time_limit.clone(),
        upload_time_limit: request.upload_time_limit.clone(),
        streaming_start_time_limit: request.streaming_start_time_limit.clone(),
    }
}

fn leeway_seconds(times: &JobTimes) -> i64 {
    i64::try_from(times.leeway.as_secs()).unwrap_or(i64::MAX)
}

/// The longest that [`run`] can take, on all miners that it asks.
pub(super) fn longest(times: &JobTimes, request: &V2JobRequest) -> Duration {
    let asking = (times.connect + times.reservation) * u32::try_from(MINERS_PER_JOB).unwrap_or(u32::MAX);
    let stages = Duration::from_secs(total_seconds(times, request).unsigned_abs());
    asking + request.executor_class.spin_up_time() + times.executor_startup + stages
}

/// All limits of the job together, as whole seconds within what a receipt can say.
fn total_seconds(times: &JobTimes, request: &V2JobRequest) -> i64 {
    [
        &request.download_time_limit,
        &request.execution_time_limit,
        &request.upload_time_limit,
        &request.streaming_start_time_limit,
    ]
    .iter()
    .map(|limit| limit.saturating_i64().max(0))
    .fold(leeway_seconds(times), i64::saturating_add)
    .min(crate::protocol::MAX_TTL_SECONDS)
}

fn initial_request(
    miners: &Miners,
    request: &V2JobRequest,
    miner: &MinerAddress,
    started: SystemTime,
) -> V0InitialJobRequest {
    let key = &miners.key;
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
        timeout_seconds: Some(Int::from(total_seconds(&miners.job_times, request))),
        volume: request.volume.clone(),
        job_started_receipt_payload: payload,
        job_started_receipt_signature: signature,
        streaming_details: request.streaming_details.clone(),
        executor_timing: Some(timing(miners, request)),
    };
    initial.sign(key);
    initial
}

fn job_request(miners: &Miners, request: &V2JobRequest) -> V0JobRequest {
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
    job.sign(&miners.key);
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

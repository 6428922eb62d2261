//! A job worker: runs the jobs of fronts, and of any other Celery producer.
//!
//! Owner: [`JobWorker`]. Its threads are those of a Celery worker, of which each `cel-work-n` runs a job at a time, and
//! a commander `job-cmd` for the events of the fronts.

use std::fmt::Display;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::select;
use serde_json::{Value, json};

use super::call::{Call, DEFAULT_QUEUE, EXECUTE_JOB, Event, LONGEST_QUEUE_TIME, News, on_one_worker, under_way};
use super::claim::{self, Claim, Known};
use super::outbox::Outbox;
use crate::base::clock::now;
use crate::base::lock::lock;
use crate::base::stop::{CANCEL_BUDGET, StopReport, Stopping};
use crate::base::timer::TimerHandle;
use crate::base::waits::waiting;
use crate::celery::AppConfig;
use crate::celery::worker::{
    Args, CeleryWorker, Registry, TaskCx, TaskError, WorkerConfig, WorkerError, WorkerHandle, WorkerReport,
};
use crate::identity::{KeyPair, PublicKey};
use crate::ops::errors::{ErrorClass, ErrorHandler};
use crate::ops::jobs::{JobFacts, JobMetrics, Jobs};
use crate::ops::status::Board;
use crate::protocol::{
    JobRejectionReason, JobStatus, JobStatusMetadata, StreamingServerDetails, V0JobStatusUpdate, V0MachineSpecsUpdate,
    ValidatorToFacilitator,
};
use crate::redis::{Commander, CommanderHandle, RedisConfig, RedisError};
use crate::transport::Dialer;
use crate::validator::authorization::{Authorized, MAX_SIGNATURE_AGE, Signers, problem_of_age};
use crate::validator::client::job::{Reports, end_message};
use crate::validator::connections::KeptConnections;
use crate::validator::job_messages::JobTimes;
use crate::validator::jobs::asking::{Asked, Asking};
use crate::validator::jobs::stub::STEPS;
use crate::validator::jobs::{AskedStatus, DISPATCH_CLOSE_TIME};
use crate::validator::ledger::NotOnDisk;
use crate::validator::organic::{self, Miners};
use crate::validator::routing::{ExplainedMiner, HALF_LIFE, MinerAddress, MinerView};
use crate::validator::status::{EndMessage, Outcome, empty};

/// A pause after trouble with Redis.
const PAUSE: Duration = Duration::from_secs(1);

/// Jobs at a time; each has up to three threads.
const MOST_WORKERS: usize = 1000;

/// What the last events get at a stop.
const EVENTS_TIME: Duration = Duration::from_secs(2);

/// What a job worker needs.
#[derive(Debug, Clone)]
pub struct JobWorkerConfig {
    /// The Redis that the fronts use.
    pub redis: RedisConfig,
    /// The settings of the Celery application, as on the fronts.
    pub celery: AppConfig,
    /// The queue of jobs: `phalanx`, unless set.
    pub queue: String,
    /// The validator's hotkey, which miners know.
    pub key: KeyPair,
    /// Who may sign jobs besides the validator itself, as on its front.
    pub trusted_signers: Vec<PublicKey>,
    /// How old the signature of a job may be when it is put into the queue, as on the front. While the job waits for a
    /// worker, half an hour at most, and runs on one after the other, its signature may grow older.
    pub max_signature_age: Duration,
    /// Validators whose jobs excuse a miner that declines one as busy, besides the validator itself.
    pub known_validators: Vec<PublicKey>,
    /// The miners that we know.
    pub miners: Vec<MinerAddress>,
    /// No miner: every job is answered with the statuses of a good one, each after this time. For load tests.
    pub stub: Option<Duration>,
    /// Jobs at a time, each with up to three threads: 64, unless set.
    pub workers: usize,
    /// The name that Celery's tools see, which no other worker is to have: `phalanx@<host>`, unless set.
    pub name: String,
    /// How long the worker may be silent before others go on with its jobs: 30 s, unless set.
    pub liveness: Duration,
    /// How long a stop lets running jobs go on; then other workers go on with them.
    pub drain_time: Duration,
    /// What a miner and an executor may take beside the limits of the job.
    pub job_times: JobTimes,
    /// How long until a miner's incidents and completed jobs count half in the choice of miners: 30 min, unless set.
    pub incident_half_life: Duration,
    /// How often miners are asked for their manifests; never if it is zero, as it is unless set.
    pub manifest_interval: Duration,
}

impl JobWorkerConfig {
    /// The default numbers: 64 jobs at a time, 60 s to drain.
    pub fn new(redis: RedisConfig, key: KeyPair, miners: Vec<MinerAddress>) -> Self {
        let WorkerConfig { hostname, liveness, .. } = WorkerConfig::new(redis.clone());
        Self {
            redis,
            celery: AppConfig::default(),
            queue: DEFAULT_QUEUE.to_owned(),
            key,
            trusted_signers: Vec::new(),
            max_signature_age: MAX_SIGNATURE_AGE,
            known_validators: Vec::new(),
            miners,
            stub: None,
            workers: 64,
            name: hostname,
            liveness,
            drain_time: Duration::from_secs(60),
            job_times: JobTimes::default(),
            incident_half_life: HALF_LIFE,
            manifest_interval: Duration::ZERO,
        }
    }

    /// All problems of the configuration, in words.
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.workers == 0 || self.workers > MOST_WORKERS {
            problems.push(format!("workers is {}; it should be from 1 to {MOST_WORKERS}", self.workers));
        }
        problems.extend(problem_of_age(self.max_signature_age));
        if self.miners.is_empty() && self.stub.is_none() {
            problems.push("there is no miner; name at least one in the miners file".to_owned());
        }
        if problems.is_empty() {
            problems.extend(self.of_celery().problem());
        }
        problems
    }

    fn of_celery(&self) -> WorkerConfig {
        WorkerConfig {
            queues: vec![self.queue.clone()],
            concurrency: self.workers,
            // A job that waits here could be begun elsewhere.
            prefetch_multiplier: 1,
            hostname: self.name.clone(),
            liveness: self.liveness,
            app: AppConfig {
                task_default_queue: self.queue.clone(),
                task_track_started: true,
                worker_prefetch_multiplier: None,
                // A job has its own time, and goes on elsewhere if its worker is lost.
                task_acks_late: true,
                task_reject_on_worker_lost: true,
                task_soft_time_limit: None,
                task_time_limit: None,
                ..self.celery.clone()
            },
            ..WorkerConfig::new(self.redis.clone())
        }
    }
}

/// What is counted of jobs.
const JOB_METRICS: JobMetrics =
    JobMetrics { ended: Some("phalanx_worker_jobs_ended_total"), stages: Some("phalanx_worker_job_stage_seconds") };

/// What becomes of a job that its worker does not bring to an end.
const GIVEN_BACK: &str = "given_back";

/// How jobs end on a worker.
const OUTCOMES: [&str; 5] = ["completed", "failed", "rejected", "horde_failed", GIVEN_BACK];

/// Why a job worker cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JobWorkerError {
    /// The configuration has problems.
    #[error("{}", .0.join("; "))]
    Config(Vec<String>),
    /// The Celery worker has.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The system has no file descriptor left.
    #[error(transparent)]
    Redis(#[from] RedisError),
}

/// A running job worker.
#[derive(Debug)]
#[must_use = "stop joins its threads"]
pub struct JobWorker {
    /// Dropped first: its rounds use the connections.
    asking: Asking,
    worker: CeleryWorker,
    commander: Commander,
    kept: KeptConnections,
    shared: Arc<WorkerShared>,
    drain_time: Duration,
}

/// What looks at a job worker and changes its settings; clones are the same. It may outlive its worker.
#[derive(Debug, Clone)]
pub struct JobWorkerHandle {
    worker: WorkerHandle,
    asked: Asked,
    shared: Arc<WorkerShared>,
}

struct WorkerShared {
    signers: Signers,
    max_signature_age: Duration,
    miners: Arc<Miners>,
    stub: Option<Duration>,
    name: String,
    commands: CommanderHandle,
    operation_time: Duration,
    outbox: Outbox,
    jobs: Jobs,
    errors: ErrorHandler,
}

impl std::fmt::Debug for WorkerShared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerShared").field("name", &self.name).finish_non_exhaustive()
    }
}

impl JobWorker {
    /// Starts a worker; a Redis that is away is not an error: it connects for ever.
    ///
    /// # Errors
    /// [`JobWorkerError`]; then nothing was started.
    pub fn start(
        config: JobWorkerConfig,
        dialer: Arc<dyn Dialer>,
        timer: TimerHandle,
        board: &Board,
    ) -> Result<Self, JobWorkerError> {
        let problems = config.validate();
        if !problems.is_empty() {
            return Err(JobWorkerError::Config(problems));
        }
        let celery = config.of_celery();
        let broker = config.celery.broker(&config.redis);
        let JobWorkerConfig {
            redis,
            key,
            trusted_signers,
            max_signature_age,
            miners,
            stub,
            name,
            drain_time,
            job_times,
            incident_half_life,
            manifest_interval,
            ..
        } = config;
        let known: Arc<[PublicKey]> = config.known_validators.into();
        let commander = Commander::start("job-cmd", broker.named("phalanx-events"), board)?;
        let patience = 2 * redis.operation_time;
        let signers = Signers::new(key.public(), trusted_signers, max_signature_age);
        let (mut miners, kept) = Miners::new(miners, key, job_times, dialer, timer.clone(), incident_half_life, board);
        miners.known = known;
        let miners = Arc::new(miners);
        let asking = Asking::new(miners.clone(), manifest_interval, board);
        board.jobs.measure(&board.metrics, JOB_METRICS, &OUTCOMES);
        let shared = Arc::new(WorkerShared {
            signers,
            max_signature_age,
            miners,
            stub,
            name,
            commands: commander.handle(),
            operation_time: redis.operation_time,
            outbox: Outbox::new(commander.handle(), timer, board.clone(), patience),
            jobs: board.jobs.clone(),
            errors: board.errors.clone(),
        });
        let running = shared.clone();
        let registry = Registry::new().register(EXECUTE_JOB, move |cx, args| execute(&running, cx, args));
        let worker = match CeleryWorker::start(celery, registry, board) {
            Ok(worker) => worker,
            Err(error) => {
                let mut stopping = Stopping::alone();
                stopping.step("events", EVENTS_TIME, |step| commander.stop_in(step));
                return Err(error.into());
            }
        };
        asking.begin();
        Ok(Self { asking, worker, commander, kept, shared, drain_time })
    }

    /// The longest that [`JobWorker::stop`] takes, the sum of its steps.
    pub fn stop_budget(config: &JobWorkerConfig) -> Duration {
        config.drain_time + CANCEL_BUDGET + 2 * DISPATCH_CLOSE_TIME + EVENTS_TIME
    }

    /// What looks at it.
    pub fn handle(&self) -> JobWorkerHandle {
        JobWorkerHandle {
            worker: self.worker.handle(),
            asked: self.asking.asked().clone(),
            shared: self.shared.clone(),
        }
    }

    /// Stops it alone, within `budget`, as [`JobWorker::stop_in`] does; what is left then is cancelled.
    pub fn stop(self, budget: Duration) -> StopReport {
        let mut stopping = Stopping::within(budget);
        let report = self.stop_in(&mut stopping);
        report.add_to(&mut stopping);
        stopping.finish()
    }

    /// Takes no more jobs, lets those that run end within the drain time, gives the rest back for other workers to go
    /// on with, tells the fronts what there is to tell, and joins the threads.
    pub fn stop_in(self, stopping: &mut Stopping) -> WorkerReport {
        let Self { worker, commander, kept, asking, drain_time, .. } = self;
        asking.stop_in(stopping);
        let report = stopping.step("jobs", drain_time, |step| worker.stop_in(step));
        stopping.step("miner connections", DISPATCH_CLOSE_TIME, |step| kept.stop_in(step));
        stopping.step("events", EVENTS_TIME, |step| commander.stop_in(step));
        report
    }
}

impl JobWorkerHandle {
    /// The Celery worker.
    pub fn worker(&self) -> &WorkerHandle {
        &self.worker
    }

    /// Events that the fronts cannot know of yet.
    pub fn unreported(&self) -> usize {
        self.shared.outbox.waiting()
    }

    /// The miners that its jobs are driven on.
    pub fn miners(&self) -> Vec<MinerView> {
        self.shared.miners.views()
    }

    /// What was asked of miners, and the connections to them.
    pub fn asked(&self) -> AskedStatus {
        self.asked.status()
    }

    /// One miner, with all that decides about it; `None` if it is not known here.
    pub fn explain_miner(&self, hotkey: &PublicKey) -> Option<ExplainedMiner> {
        self.shared.miners.explain(hotkey)
    }

    /// New jobs go to these miners; see [`crate::validator::Reloader::miners`].
    pub fn set_miners(&self, miners: Vec<MinerAddress>) {
        self.shared.miners.replace(miners);
    }
}

/// The handler of the task.
fn execute(shared: &WorkerShared, cx: &TaskCx, args: Args) -> Result<Value, TaskError> {
    let Call { request, front, avoid } = Call::read(args)?;
    let uuid = request.uuid.clone();
    let held = under_way(LONGEST_QUEUE_TIME, on_one_worker(&shared.miners.job_times, &request));
    // What is in Redis may come from anybody who writes there.
    let authorized = shared.signers.authorize_held(request, held, now().wall).map_err(|refused| refused.why);
    let Known { wanted, miner: begun_on, claim } = shared.known(cx, &uuid, authorized.as_ref().ok(), held)?;
    if front.is_some() && !wanted {
        log::info!("job {uuid} is not wanted any more");
        return Ok(json!({"uuid": uuid, "status": null}));
    }
    let authorized = match (authorized, claim) {
        (Ok(_), Some(Claim::Ended)) => {
            shared.trouble(ErrorClass::Rejected, &uuid, &"not run, it has ended");
            return match front {
                Some(_) => Ok(json!({"uuid": uuid, "status": null})),
                // A worker may have died before Celery had the result, and a producer has no other news of the job.
                None => Err(TaskError::new("RuntimeError", format!("job {uuid} has ended, its result is lost"))),
            };
        }
        (Ok(_), Some(Claim::Anothers(other))) => Err(format!("its signature came with job {other} before")),
        (authorized, _) => authorized,
    };
    let request = match authorized {
        Ok(authorized) => authorized,
        Err(why) => {
            shared.trouble(ErrorClass::Rejected, &uuid, &format_args!("not run, by its signature: {why}"));
            let outcome = Outcome::rejected(JobRejectionReason::InvalidSignature, why);
            return end_job(shared, cx, front.as_deref(), &uuid, outcome).ok_or(TaskError::Cancelled);
        }
    };
    let (class, tag) = (request.executor_class.as_str(), request.job_namespace.as_deref().unwrap_or_default());
    shared.jobs.begin(uuid.as_str(), JobFacts { class, tag, ..JobFacts::default() }, "taken");
    let begun_on = begun_on.filter(|_| front.is_some());
    let (authorized, end) = (request.clone(), Mutex::new(None));
    let job = RemoteJob { request, front: front.as_deref(), avoid, begun_on, shared, cx, end: &end };
    job.emit(News::Begun { worker: shared.name.clone(), redelivered: cx.redelivered() });
    match shared.stub {
        Some(stage_time) => stub(job, stage_time),
        None => organic::run(&shared.miners, job, cx.cancel()),
    }
    let end = end.into_inner().ok().flatten();
    // One that is revoked has ended as well; one of a worker that stops has not.
    if end.is_some() || !cx.is_stopping() {
        shared.ended(&authorized);
    }
    if let Some(end) = end {
        return Ok(end);
    }
    shared.jobs.end(uuid.as_str(), GIVEN_BACK, None);
    // It was cancelled, and its worker knows why.
    if let Some(front) = front.filter(|_| cx.is_stopping()) {
        let number = shared.outbox.append(&front, &Event { job: uuid, news: News::GivenBack });
        let delivered = shared.outbox.delivered(number);
        let _waiting = waiting("Redis to have that the job is given back", Some(Instant::now() + PAUSE));
        // Before the next worker says that it has begun; without Redis nothing is given back anyway.
        select! {
            recv(delivered) -> _ => {}
            default(PAUSE) => {}
        }
    }
    Err(TaskError::Cancelled)
}

/// Tells the end of a job to its front, and gives the result of its task; `None` if a cancel came before Redis had it.
fn end_job(shared: &WorkerShared, cx: &TaskCx, front: Option<&str>, uuid: &str, outcome: Outcome) -> Option<Value> {
    let EndMessage { status, reason, text } =
        end_message(uuid, outcome, |what| shared.trouble(ErrorClass::Rejected, uuid, what));
    log::info!("job {uuid}: ended as {status}, reason {}", reason.unwrap_or("none"));
    shared.jobs.end(uuid, status.as_str(), reason);
    let Some(front) = front else {
        return Some(serde_json::from_str(&text).expect("what is written is JSON"));
    };
    let news = News::Message { text: text.to_string() };
    let number = shared.outbox.append(front, &Event { job: uuid.to_owned(), news });
    let _waiting = waiting("Redis to have the job's end", None);
    select! {
        recv(shared.outbox.delivered(number)) -> _ => Some(json!({"uuid": uuid, "status": status.as_str()})),
        recv(cx.cancel().cancel_receiver()) -> _ => {
            // The front may not know of it, so the task has not ended either.
            shared.trouble(ErrorClass::Reconnect, uuid, &"its end is not in Redis, another worker finds it again");
            None
        }
    }
}

/// Every job ends well, each status after `stage_time`.
fn stub(job: RemoteJob<'_>, stage_time: Duration) {
    for status in STEPS {
        if job.cx.sleep(stage_time).is_err() {
            return;
        }
        job.report(status);
    }
    if job.cx.sleep(stage_time).is_ok() {
        job.end(Outcome::completed("", ""));
    }
}

impl WorkerShared {
    fn trouble(&self, class: ErrorClass, uuid: &str, what: &dyn Display) {
        self.errors.report_of(class, "job", uuid, &format_args!("job {uuid}: {what}"));
    }

    /// What Redis knows of the job; with a good signature, that is claimed for the job. Blocks until Redis says so, or
    /// the task is cancelled.
    fn known(
        &self,
        cx: &TaskCx,
        uuid: &str,
        authorized: Option<&Authorized>,
        held: Duration,
    ) -> Result<Known, TaskError> {
        let signed = authorized.map(|job| (job, self.max_signature_age.saturating_add(held)));
        loop {
            let ask = claim::begin(uuid, signed, now(), Instant::now() + self.operation_time);
            match self.commands.call(ask).and_then(|answer| claim::known(uuid, answer)) {
                Ok(known) => return Ok(known),
                Err(error) => {
                    let what = format_args!("Redis does not say whether it is to run: {error}");
                    self.trouble(error.class(), uuid, &what);
                }
            }
            cx.sleep(PAUSE)?;
        }
    }

    /// Notes in Redis that the job has ended; blocks until it has that, for the time of an operation at most.
    fn ended(&self, job: &Authorized) {
        if let Err(error) = self.commands.call(claim::end(job, Instant::now() + self.operation_time)) {
            let what = format_args!("Redis does not know that it has ended, it could be begun again: {error}");
            self.trouble(error.class(), &job.uuid, &what);
        }
    }
}

/// A job of a front's, or of another producer's.
struct RemoteJob<'a> {
    request: Authorized,
    front: Option<&'a str>,
    avoid: Vec<PublicKey>,
    begun_on: Option<PublicKey>,
    shared: &'a WorkerShared,
    cx: &'a TaskCx,
    /// The task's result.
    end: &'a Mutex<Option<Value>>,
}

impl RemoteJob<'_> {
    fn emit(&self, news: News) {
        if let Some(front) = self.front {
            self.shared.outbox.append(front, &Event { job: self.request.uuid.clone(), news });
        }
    }

    fn report_status(&self, status: JobStatus, metadata: Option<JobStatusMetadata>) {
        log::debug!("job {}: {status}", self.request.uuid);
        self.shared.jobs.step(self.request.uuid.as_str(), status.as_str());
        let update = V0JobStatusUpdate { uuid: self.request.uuid.clone(), status, metadata };
        self.emit(News::Message { text: ValidatorToFacilitator::from(update).encode() });
        // For Celery's tools.
        let steps = STEPS.iter().position(|step| *step == status);
        let percent = steps.map_or(50.0, |step| 20.0 * (step + 1) as f64);
        self.cx.progress(percent, status.as_str(), &json!({"status": status.as_str()}));
    }
}

impl Reports for RemoteJob<'_> {
    fn authorized(&self) -> &Authorized {
        &self.request
    }

    fn avoid(&self) -> &[PublicKey] {
        &self.avoid
    }

    fn begun_on(&self) -> Option<PublicKey> {
        self.begun_on
    }

    fn wait_until_known(&self) -> Result<(), NotOnDisk> {
        // Its task is in Redis.
        Ok(())
    }

    fn report(&self, status: JobStatus) {
        self.report_status(status, None);
    }

    fn streaming_ready(&self, details: StreamingServerDetails) {
        self.report_status(
            JobStatus::StreamingReady,
            Some(JobStatusMetadata { streaming_details: Some(details), ..empty() }),
        );
    }

    fn runs_on(&self, miner: PublicKey) {
        self.shared.jobs.peer(self.request.uuid.as_str(), &miner.to_ss58());
        self.emit(News::RunsOn { miner: miner.to_ss58() });
    }

    fn machine_specs(&self, specs: V0MachineSpecsUpdate) {
        if !self.shared.outbox.is_crowded() {
            self.emit(News::Message { text: ValidatorToFacilitator::from(specs).encode() });
        }
    }

    fn end(self, outcome: Outcome) {
        *lock(self.end) = end_job(self.shared, self.cx, self.front, &self.request.uuid, outcome);
    }

    fn cancelled(self) {
        log::info!("job {}: cancelled before it had ended", self.request.uuid);
    }

    fn goes_on(&self) -> bool {
        self.cx.is_stopping()
    }
}

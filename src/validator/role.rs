//! The validator as a whole: a facilitator client, and what runs its jobs.
//!
//! Owner: whoever holds the [`Validator`]; it has no thread of its own beside those of its client and its workers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::authorization::MAX_SIGNATURE_AGE;
use super::client::running::DISK_TIME;
use super::client::{
    ClientConfig, ClientError, ClientHandle, FacilitatorClient, Job, JobHandler, LeftJob, RunningClient,
};
use super::job_messages::JobTimes;
use super::jobs::here::Here;
#[cfg(feature = "celery")]
use super::jobs::remote::{DEFAULT_QUEUE, Front, FrontConfig, LONGEST_QUEUE_TIME};
use super::jobs::stub::Stub;
use super::jobs::{AskedStatus, DISPATCH_CLOSE_TIME, FrontStatus, JobRunner};
use super::organic::Miners;
use super::receipt_store::KeptReceipts;
use super::routing::{ExplainedMiner, HALF_LIFE, MinerAddress, MinerView};
use crate::base::backoff::BackoffConfig;
use crate::base::stop::{CANCEL_BUDGET, StopReport, Stopping, drop_role};
use crate::base::timer::TimerHandle;
#[cfg(feature = "celery")]
use crate::celery::AppConfig;
use crate::identity::{KeyPair, PublicKey};
use crate::ops::errors::{ErrorClass, ErrorHandler};
use crate::ops::status::Board;
use crate::pool::Breakers;
#[cfg(feature = "celery")]
use crate::redis::{RedisConfig, RedisError};
use crate::tasks::TasksStatus;
use crate::transport::Dialer;

/// Stub jobs, or jobs on other machines, at a time, unless the configuration says otherwise: what the queue has room
/// for, 8 updates each.
const STUB_JOBS: usize = 8192;

/// Jobs at a time on workers, unless the configuration says otherwise.
const WORKERS: usize = 64;

/// What runs a job.
#[derive(Debug, Clone)]
pub enum Dispatch {
    /// A worker of this process drives a miner.
    Workers,
    /// Workers on other machines drive miners: each job is a Celery task in a Redis, see [`super::remote`].
    #[cfg(feature = "celery")]
    Celery {
        /// Where that Redis is.
        redis: Box<RedisConfig>,
        /// The settings of the Celery application, as on the workers.
        celery: Box<AppConfig>,
        /// The Celery queue of the jobs.
        queue: String,
        /// How long a job waits for a worker before it is rejected as busy.
        queue_time: Duration,
    },
    /// No miner: every job is answered with the statuses of a good one, each after this time. For load tests.
    Stub {
        /// The time before each status.
        stage_time: Duration,
    },
}

#[cfg(feature = "celery")]
impl Dispatch {
    /// [`Dispatch::Celery`] with the queue `phalanx`, in which a job waits for a minute at most.
    pub fn celery(redis: RedisConfig) -> Self {
        Self::Celery {
            redis: Box::new(redis),
            celery: Box::default(),
            queue: DEFAULT_QUEUE.to_owned(),
            queue_time: Duration::from_secs(60),
        }
    }
}

/// What a validator needs.
#[derive(Debug, Clone)]
pub struct ValidatorConfig {
    /// The facilitator's `ws://` or `wss://` URL, as `wss://host/ws/v0/`.
    pub facilitator_url: String,
    /// Other addresses of the same facilitator, see [`ClientConfig::fallbacks`].
    pub facilitator_fallbacks: Vec<String>,
    /// Our hotkey.
    pub key: KeyPair,
    /// The miners that we know.
    pub miners: Vec<MinerAddress>,
    /// Who may sign jobs besides ourselves.
    pub trusted_signers: Vec<PublicKey>,
    /// Validators whose jobs excuse a miner that declines one as busy, besides this one.
    pub known_validators: Vec<PublicKey>,
    /// How old the signature of a job may be; an hour, unless set.
    pub max_signature_age: Duration,
    /// Where updates and jobs are kept over a restart; in memory only if `None`.
    pub state_dir: Option<PathBuf>,
    /// What runs a job.
    pub dispatch: Dispatch,
    /// Jobs at a time; on workers each costs up to three threads. By default 64 on workers, 8,192 for stub jobs and on
    /// other machines.
    pub workers: Option<usize>,
    /// How long a miner that cheated gets no job.
    pub blacklist_time: Duration,
    /// How long until a miner's incidents and completed jobs count half in the choice of miners.
    pub incident_half_life: Duration,
    /// How long a stop lets running jobs go on.
    pub drain_time: Duration,
    /// How long a stop lets the last updates be acknowledged.
    pub flush_time: Duration,
    /// When to connect again.
    pub backoff: BackoffConfig,
    /// What a miner and an executor may take beside the limits of the job.
    pub job_times: JobTimes,
    /// How often miners are asked for their manifests; never if it is zero: then jobs alone learn them.
    pub manifest_interval: Duration,
    /// What its threads report to.
    pub board: Board,
}

impl ValidatorConfig {
    /// The default numbers: 24 h of blacklist, 60 s to drain, 10 s to flush; nothing is kept on disk.
    pub fn new(facilitator_url: impl Into<String>, key: KeyPair, miners: Vec<MinerAddress>) -> Self {
        Self {
            facilitator_url: facilitator_url.into(),
            facilitator_fallbacks: Vec::new(),
            key,
            miners,
            trusted_signers: Vec::new(),
            known_validators: Vec::new(),
            max_signature_age: MAX_SIGNATURE_AGE,
            state_dir: None,
            dispatch: Dispatch::Workers,
            workers: None,
            blacklist_time: Duration::from_secs(24 * 3600),
            incident_half_life: HALF_LIFE,
            drain_time: Duration::from_secs(60),
            flush_time: Duration::from_secs(10),
            backoff: BackoffConfig::default(),
            job_times: JobTimes::default(),
            manifest_interval: Duration::ZERO,
            board: Board::new(),
        }
    }

    /// All problems of the configuration, in words.
    pub fn validate(&self) -> Vec<String> {
        let mut problems = ClientConfig {
            fallbacks: self.facilitator_fallbacks.clone(),
            max_signature_age: self.max_signature_age,
            ..ClientConfig::new(&self.facilitator_url, self.key.clone())
        }
        .validate();
        let here = matches!(self.dispatch, Dispatch::Workers);
        let most = if here { 1000 } else { STUB_JOBS };
        if let Some(workers) = self.workers.filter(|workers| *workers == 0 || *workers > most) {
            problems.push(format!("workers is {workers}; it should be from 1 to {most}"));
        }
        #[cfg(feature = "celery")]
        if let Dispatch::Celery { queue_time, .. } = &self.dispatch
            && *queue_time > LONGEST_QUEUE_TIME
        {
            problems.push(format!("queue_time is {queue_time:?}; it should be at most {LONGEST_QUEUE_TIME:?}"));
        }
        if self.miners.is_empty() && here {
            problems.push("there is no miner; name at least one in the miners file".to_owned());
        }
        problems
    }
}

/// The validator cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ValidatorError {
    /// The facilitator client cannot.
    #[error("validator: {0}")]
    Client(#[from] ClientError),
    /// The connections to Redis cannot be set up.
    #[cfg(feature = "celery")]
    #[error("validator: {0}")]
    Redis(#[from] RedisError),
}

impl ValidatorError {
    /// Whether the same start may succeed later without a change of the settings.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Client(ClientError::State(error)) if error.may_pass())
    }
}

/// A running validator. Dropping it stops it as a stop that is cancelled at once.
pub struct Validator {
    /// Taken by the stop.
    client: Option<RunningClient>,
    jobs: Arc<dyn JobRunner>,
    drain_time: Duration,
    flush_time: Duration,
}

impl std::fmt::Debug for Validator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Validator").field("client", &self.client).finish_non_exhaustive()
    }
}

impl Validator {
    /// Starts what runs the jobs, then the link; returns at once, connected or not.
    ///
    /// # Errors
    /// [`ValidatorError`] with every problem of the configuration, or of the state folder; then nothing was started.
    pub fn start(config: ValidatorConfig, dialer: Arc<dyn Dialer>, timer: TimerHandle) -> Result<Self, ValidatorError> {
        let problems = config.validate();
        if !problems.is_empty() {
            return Err(ClientError::Config(problems).into());
        }
        let ValidatorConfig { blacklist_time, drain_time, flush_time, .. } = config;
        let board = config.board.clone();
        let client = FacilitatorClient::new(ClientConfig {
            board: board.clone(),
            fallbacks: config.facilitator_fallbacks.clone(),
            trusted_signers: config.trusted_signers.clone(),
            max_signature_age: config.max_signature_age,
            state_dir: config.state_dir.clone(),
            backoff: config.backoff,
            dialer: dialer.clone(),
            ..ClientConfig::new(&config.facilitator_url, config.key.clone())
        })?;
        let jobs = runner(config, dialer, timer.clone(), &board)?;
        let errors = board.errors.clone();
        let handler = Arc::new(Handler { jobs: jobs.clone(), blacklist_time, errors });
        let client = match client.start_with(handler.clone(), timer) {
            Ok(client) => client,
            Err(error) => {
                jobs.stop_in(&mut Stopping::alone(), Duration::ZERO);
                return Err(error.into());
            }
        };
        jobs.begin();
        for (miner, age) in client.handle().delivery().cheaters() {
            handler.blacklist(miner, blacklist_time.saturating_sub(age));
        }
        Ok(Self { client: Some(client), jobs, drain_time, flush_time })
    }

    /// The longest that [`Validator::stop`] takes, the sum of its steps.
    pub fn stop_budget(config: &ValidatorConfig) -> Duration {
        config.drain_time + CANCEL_BUDGET + 2 * DISPATCH_CLOSE_TIME + config.flush_time + DISK_TIME
    }

    /// What looks at this validator; may outlive it.
    pub fn observer(&self) -> Observer {
        let client = self.client.as_ref().expect("only the stop takes it, which consumes the validator");
        Observer { client: client.handle(), jobs: self.jobs.clone() }
    }

    /// What changes its settings while it runs; may outlive it.
    pub fn reloader(&self) -> Reloader {
        Reloader(self.jobs.clone())
    }

    /// Stops it alone, within `budget`, as [`Validator::stop_in`] does; what is left then is cancelled.
    pub fn stop(self, budget: Duration) -> StopReport {
        let mut stopping = Stopping::within(budget);
        self.stop_in(&mut stopping);
        stopping.finish()
    }

    /// Stops in order: no new jobs, running jobs end (or are cancelled when their time is up), the last updates are
    /// acknowledged, the link closes. Blocks for at most [`Validator::stop_budget`] and the kicks' grace.
    pub fn stop_in(mut self, stopping: &mut Stopping) {
        self.end(stopping);
    }

    fn end(&mut self, stopping: &mut Stopping) {
        let Some(mut client) = self.client.take() else { return };
        // No new jobs.
        client.drain();
        // Jobs end or are cancelled, and report it; then the threads that run them.
        let cancelled = self.jobs.stop_in(stopping, self.drain_time);
        stopping.cancelled_jobs(cancelled);
        // Signature checks, the last updates, the link, the state folder.
        client.stop_link(stopping, self.flush_time);
    }
}

impl Drop for Validator {
    fn drop(&mut self) {
        if self.client.is_some() {
            drop_role("a validator", |stopping| self.end(stopping));
        }
    }
}

/// What runs the jobs.
fn runner(
    config: ValidatorConfig,
    dialer: Arc<dyn Dialer>,
    timer: TimerHandle,
    board: &Board,
) -> Result<Arc<dyn JobRunner>, ValidatorError> {
    let (half_life, manifest_interval) = (config.incident_half_life, config.manifest_interval);
    let ValidatorConfig { key, miners, dispatch, workers, job_times, known_validators, state_dir, .. } = config;
    let limit = workers.unwrap_or(STUB_JOBS);
    Ok(match dispatch {
        Dispatch::Workers => {
            let (mut miners, connections) = Miners::new(miners, key, job_times, dialer, timer, half_life, board);
            miners.known = known_validators.into();
            let mut receipts = None;
            if let Some(folder) = state_dir {
                let (kept, take) = KeptReceipts::open(&folder, board).map_err(ClientError::State)?;
                (receipts, miners.on_excused) = (Some(kept), Some(take));
            }
            let parts = (miners, connections, receipts);
            Arc::new(Here::new(workers.unwrap_or(WORKERS), parts, manifest_interval, board))
        }
        Dispatch::Stub { stage_time } => Arc::new(Stub::new(stage_time, limit, timer)),
        #[cfg(feature = "celery")]
        Dispatch::Celery { redis, celery, queue, queue_time } => {
            let name = key.ss58();
            let config = FrontConfig { redis: *redis, celery: *celery, queue, queue_time, limit, name, job_times };
            Arc::new(Front::start(config, timer, board)?)
        }
    })
}

/// Changes the settings of a running validator; cheap to clone.
#[derive(Clone)]
pub struct Reloader(Arc<dyn JobRunner>);

impl std::fmt::Debug for Reloader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reloader")
    }
}

impl Reloader {
    /// New jobs go to these miners. What is known of those that stay is kept, and of those that go while it counts;
    /// jobs on those end as they would.
    pub fn miners(&self, miners: Vec<MinerAddress>) {
        self.0.set_miners(miners);
    }
}

/// Looks at a validator, also after it has stopped; cheap to clone.
#[derive(Clone)]
pub struct Observer {
    client: ClientHandle,
    jobs: Arc<dyn JobRunner>,
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observer").field("client", &self.client).finish_non_exhaustive()
    }
}

impl Observer {
    /// The facilitator client.
    pub fn client(&self) -> &ClientHandle {
        &self.client
    }

    /// Updates that the facilitator has not acknowledged.
    pub fn unsent(&self) -> usize {
        self.client.counts().unsent
    }

    /// Jobs that run now.
    pub fn running_jobs(&self) -> usize {
        self.jobs.running()
    }

    /// The jobs on workers as tasks; `None` if they run elsewhere.
    pub fn tasks(&self) -> Option<TasksStatus> {
        self.jobs.tasks()
    }

    /// What was asked of miners, and the connections to them; `None` if jobs do not run here.
    pub fn asked(&self) -> Option<AskedStatus> {
        self.jobs.asked()
    }

    /// The jobs on other machines; `None` if jobs run here.
    pub fn front(&self) -> Option<FrontStatus> {
        self.jobs.front()
    }

    /// The miners that jobs are driven on from here; `None` if jobs run elsewhere.
    pub fn miners(&self) -> Option<Vec<MinerView>> {
        Some(self.jobs.miners()?.views())
    }

    /// One miner, with all that decides about it; `None` if it is not known here.
    pub fn explain_miner(&self, hotkey: &PublicKey) -> Option<ExplainedMiner> {
        self.jobs.miners()?.explain(hotkey)
    }

    /// The breakers of these miners, to be forced or reset by hand; `None` if jobs run elsewhere. A miner that is held
    /// open gets jobs only where there is no other, and is not asked for its manifest.
    pub fn breakers(&self) -> Option<Breakers<PublicKey>> {
        Some(self.jobs.miners()?.breakers.clone())
    }

    /// Breaks the link to the facilitator; it comes back by itself.
    pub fn kick_link(&self) {
        self.client.kick_link();
    }
}

/// Gives the client's jobs to what runs them.
struct Handler {
    jobs: Arc<dyn JobRunner>,
    blacklist_time: Duration,
    errors: ErrorHandler,
}

impl Handler {
    fn blacklist(&self, miner: PublicKey, time: Duration) {
        if !time.is_zero() {
            self.jobs.blacklist(miner, time);
        }
    }
}

impl JobHandler for Handler {
    fn job(&self, job: Job) {
        self.jobs.run(job);
    }

    fn cheated(&self, uuid: &str, miner: PublicKey) {
        let what = format_args!("job {uuid}: miner {miner} cheated, it gets no jobs for a while");
        self.errors.report_of(ErrorClass::Rejected, "cheating", &miner.to_ss58(), &what);
        self.blacklist(miner, self.blacklist_time);
    }

    fn left(&self, job: LeftJob) {
        self.jobs.left(job);
    }
}

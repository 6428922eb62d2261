//! The validator as a whole: a facilitator client, and what runs its jobs.
//!
//! Owner: whoever holds the [`Validator`]; it has no thread of its own beside those of its client and its workers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::client::{
    ClientConfig, ClientError, ClientHandle, FacilitatorClient, Job, JobHandler, LeftJob, RunningClient,
};
use super::organic::{self, JobTimes, Miners};
use super::remote::{DEFAULT_QUEUE, Front, FrontConfig, FrontStatus};
use super::routing::MinerAddress;
use super::stub::Stub;
use crate::base::backoff::BackoffConfig;
use crate::base::lock::lock;
use crate::base::shutdown::Shutdown;
use crate::base::stop::Stopping;
use crate::base::timer::TimerHandle;
use crate::dispatch::Backend;
use crate::dispatch::workers::Workers;
use crate::identity::{KeyPair, PublicKey};
use crate::ops::status::Board;
use crate::redis::{RedisConfig, RedisError};
use crate::tasks::TasksStatus;
use crate::transport::Dialer;

/// Stub jobs, or jobs on other machines, at a time, unless the configuration says otherwise: what the queue has room for, 8 updates each.
const STUB_JOBS: usize = 8192;

/// Jobs at a time on workers, unless the configuration says otherwise.
const WORKERS: usize = 64;

/// What runs a job.
#[derive(Debug, Clone)]
pub enum Dispatch {
    /// A worker of this process drives a miner.
    Workers,
    /// Workers on other machines drive miners: each job is a Celery task in a Redis, see [`super::remote`].
    Celery {
        /// Where that Redis is.
        redis: Box<RedisConfig>,
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

impl Dispatch {
    /// [`Dispatch::Celery`] with the queue `phalanx`, in which a job waits for a minute at most.
    pub fn celery(redis: RedisConfig) -> Self {
        Self::Celery { redis: Box::new(redis), queue: DEFAULT_QUEUE.to_owned(), queue_time: Duration::from_secs(60) }
    }
}

/// What a validator needs.
#[derive(Debug, Clone)]
pub struct ValidatorConfig {
    /// The facilitator's `ws://` or `wss://` URL, as `wss://host/ws/v0/`.
    pub facilitator_url: String,
    /// Our hotkey.
    pub key: KeyPair,
    /// The miners that we know.
    pub miners: Vec<MinerAddress>,
    /// Who may sign jobs besides ourselves.
    pub trusted_signers: Vec<PublicKey>,
    /// Where updates and jobs are kept over a restart; in memory only if `None`.
    pub state_dir: Option<PathBuf>,
    /// What runs a job.
    pub dispatch: Dispatch,
    /// Jobs at a time; on workers each costs up to three threads. By default 64 on workers, 8,192 for stub jobs and on other
    /// machines.
    pub workers: Option<usize>,
    /// How long a miner that cheated gets no job.
    pub blacklist_time: Duration,
    /// How long a stop lets running jobs go on.
    pub drain_time: Duration,
    /// How long a stop lets the last updates be acknowledged.
    pub flush_time: Duration,
    /// When to connect again.
    pub backoff: BackoffConfig,
    /// What a miner and an executor may take beside the limits of the job.
    pub job_times: JobTimes,
}

impl ValidatorConfig {
    /// The default numbers: 24 h of blacklist, 60 s to drain, 10 s to flush; nothing is kept on disk.
    pub fn new(facilitator_url: impl Into<String>, key: KeyPair, miners: Vec<MinerAddress>) -> Self {
        Self {
            facilitator_url: facilitator_url.into(),
            key,
            miners,
            trusted_signers: Vec::new(),
            state_dir: None,
            dispatch: Dispatch::Workers,
            workers: None,
            blacklist_time: Duration::from_secs(24 * 3600),
            drain_time: Duration::from_secs(60),
            flush_time: Duration::from_secs(10),
            backoff: BackoffConfig::default(),
            job_times: JobTimes::default(),
        }
    }

    /// All problems of the configuration, in words.
    pub fn validate(&self) -> Vec<String> {
        let mut problems = ClientConfig::new(&self.facilitator_url, self.key.clone()).validate();
        let here = matches!(self.dispatch, Dispatch::Workers);
        let most = if here { 1000 } else { STUB_JOBS };
        if let Some(workers) = self.workers.filter(|workers| *workers == 0 || *workers > most) {
            problems.push(format!("workers is {workers}; it should be from 1 to {most}"));
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
    #[error("validator: {0}")]
    Redis(#[from] RedisError),
}

/// What the workers share.
pub(super) struct Shared {
    pub(super) config: ValidatorConfig,
    pub(super) miners: Miners,
}

/// What runs the jobs.
#[derive(Clone)]
enum Runs {
    Workers(Arc<Workers>),
    Stub(Stub),
    Celery(Front),
}

impl Runs {
    fn running(&self) -> usize {
        match self {
            Runs::Workers(workers) => workers.running(),
            Runs::Stub(stub) => stub.running(),
            Runs::Celery(front) => front.running(),
        }
    }

    fn stop(&self, stopping: &mut Stopping, drain: Duration) -> usize {
        match self {
            Runs::Workers(workers) => stopping.step("validator jobs", drain, |step| workers.stop(step)),
            Runs::Stub(stub) => stopping.step("validator jobs", drain, |step| stub.stop(step)),
            Runs::Celery(front) => front.stop(stopping, drain),
        }
    }
}

/// A running validator.
pub struct Validator {
    shared: Arc<Shared>,
    client: RunningClient,
    runs: Runs,
}

impl std::fmt::Debug for Validator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Validator").field("client", &self.client).finish_non_exhaustive()
    }
}

impl Validator {
    /// Starts the link and the workers; returns at once, connected or not.
    ///
    /// # Errors
    /// [`ValidatorError`] with every problem of the configuration, or of the state folder; then nothing was started.
    pub fn start(config: ValidatorConfig, dialer: Arc<dyn Dialer>, timer: TimerHandle) -> Result<Self, ValidatorError> {
        let problems = config.validate();
        if !problems.is_empty() {
            return Err(ClientError::Config(problems).into());
        }
        let board = Board::new();
        let client = FacilitatorClient::new(ClientConfig {
            board: board.clone(),
            trusted_signers: config.trusted_signers.clone(),
            state_dir: config.state_dir.clone(),
            backoff: config.backoff,
            dialer: dialer.clone(),
            ..ClientConfig::new(&config.facilitator_url, config.key.clone())
        })?;
        let limit = config.workers.unwrap_or(STUB_JOBS);
        let mut events = None;
        let runs = match &config.dispatch {
            Dispatch::Workers => Runs::Workers(Arc::new(Workers::new("val-work", config.workers.unwrap_or(WORKERS)))),
            Dispatch::Stub { stage_time } => Runs::Stub(Stub::new(*stage_time, limit, timer.clone())),
            Dispatch::Celery { redis, queue, queue_time } => {
                let config = FrontConfig {
                    redis: (**redis).clone(),
                    queue: queue.clone(),
                    queue_time: *queue_time,
                    limit,
                    name: config.key.ss58(),
                    job_times: config.job_times,
                };
                let (front, receiver) = Front::start(config, timer.clone(), &board)?;
                events = Some((front.clone(), receiver));
                Runs::Celery(front)
            }
        };
        let (key, times) = (config.key.clone(), config.job_times);
        let miners = Miners::new(config.miners.clone(), key, times, dialer, timer.clone());
        let shared = Arc::new(Shared { miners, config });
        let handler = Arc::new(Handler { shared: shared.clone(), runs: runs.clone() });
        let client = match client.start_with(handler.clone(), timer) {
            Ok(client) => client,
            Err(error) => {
                runs.stop(&mut Stopping::new(&Shutdown::new()), Duration::ZERO);
                return Err(error.into());
            }
        };
        if let Some((front, receiver)) = events {
            front.hear(receiver);
        }
        for (miner, age) in client.handle().delivery().cheaters() {
            handler.blacklist(&miner, shared.config.blacklist_time.saturating_sub(age));
        }
        Ok(Self { shared, client, runs })
    }

    /// What looks at this validator; may outlive it.
    pub fn observer(&self) -> Observer {
        Observer { client: self.client.handle(), runs: self.runs.clone() }
    }

    /// What changes its settings while it runs; may outlive it.
    pub fn reloader(&self) -> Reloader {
        Reloader(self.shared.clone())
    }

    /// Stops in order: no new jobs, running jobs end (or are cancelled when their time is up), the last updates are
    /// acknowledged, the link closes. Blocks for at most the configured drain and flush times and the kicks' grace.
    pub fn stop(self, stopping: &mut Stopping) {
        let Self { shared, mut client, runs } = self;
        client.drain();
        let cancelled = runs.stop(stopping, shared.config.drain_time);
        stopping.cancelled_jobs(cancelled);
        client.stop_link(stopping, shared.config.flush_time);
    }
}

/// Changes the settings of a running validator; cheap to clone.
#[derive(Clone)]
pub struct Reloader(Arc<Shared>);

impl std::fmt::Debug for Reloader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reloader")
    }
}

impl Reloader {
    /// New jobs go to these miners. What is known of those that stay is kept; jobs on those that go end as they would.
    pub fn miners(&self, miners: Vec<MinerAddress>) {
        lock(&self.0.miners.routing).replace(miners);
    }
}

/// Looks at a validator, also after it has stopped; cheap to clone.
#[derive(Clone)]
pub struct Observer {
    client: ClientHandle,
    runs: Runs,
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
        self.runs.running()
    }

    /// The jobs on workers as tasks; `None` for stub jobs.
    pub fn tasks(&self) -> Option<TasksStatus> {
        match &self.runs {
            Runs::Workers(workers) => Some(workers.status()),
            Runs::Stub(_) | Runs::Celery(_) => None,
        }
    }

    /// The jobs on other machines; `None` if jobs run here.
    pub fn front(&self) -> Option<FrontStatus> {
        match &self.runs {
            Runs::Celery(front) => Some(front.status()),
            Runs::Workers(_) | Runs::Stub(_) => None,
        }
    }

    /// Breaks the link to the facilitator; it comes back by itself.
    pub fn kick_link(&self) {
        self.client.kick_link();
    }
}

struct Handler {
    shared: Arc<Shared>,
    runs: Runs,
}

impl Handler {
    fn blacklist(&self, miner: &PublicKey, time: Duration) {
        if time.is_zero() {
            return;
        }
        match &self.runs {
            Runs::Celery(front) => front.blacklist(*miner, time),
            Runs::Workers(_) | Runs::Stub(_) => {
                lock(&self.shared.miners.routing).blacklist(miner, Instant::now(), time);
            }
        }
    }
}

impl JobHandler for Handler {
    fn job(&self, job: Job) {
        match &self.runs {
            Runs::Stub(stub) => stub.run(job),
            Runs::Celery(front) => front.run(job),
            Runs::Workers(workers) => {
                let shared = self.shared.clone();
                // A job that the workers do not take is turned away as busy when it is dropped.
                let uuid = job.request().uuid.clone();
                drop(
                    workers.submit(&uuid, Box::new(move |cancel| organic::run(&shared.miners, job.receive(), cancel))),
                );
            }
        }
    }

    fn cheated(&self, uuid: &str, miner: PublicKey) {
        log::warn!("job {uuid}: miner {miner} cheated, it gets no jobs for a while");
        self.blacklist(&miner, self.shared.config.blacklist_time);
    }

    fn left(&self, job: LeftJob) {
        match &self.runs {
            Runs::Celery(front) => front.adopt(job),
            Runs::Workers(_) | Runs::Stub(_) => drop(job),
        }
    }
}

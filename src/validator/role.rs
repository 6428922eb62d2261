//! The validator as a whole: a facilitator client, and what runs its jobs.
//!
//! Owner: whoever holds the [`Validator`]; it has no thread of its own beside those of its client and its workers.

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::facilitator_client::{
    ClientConfig, ClientError, ClientHandle, FacilitatorClient, JobHandler, RunningClient,
};
use super::job::Job;
use super::organic::{self, JobTimes};
use super::routing::{MinerAddress, Routing};
use super::stub::Stub;
use crate::base::backoff::BackoffConfig;
use crate::base::lock::lock;
use crate::base::stop::Stopping;
use crate::base::timer::TimerHandle;
use crate::dispatch::Backend;
use crate::dispatch::workers::Workers;
use crate::identity::{KeyPair, PublicKey};
use crate::transport::Dialer;

/// Stub jobs at a time, unless the configuration says otherwise: what the queue has room for, 8 updates each.
const STUB_JOBS: usize = 8192;

/// Jobs at a time on workers, unless the configuration says otherwise.
const WORKERS: usize = 64;

/// What runs a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dispatch {
    /// A worker of this process drives a miner.
    Workers,
    /// No miner: every job is answered with the statuses of a good one, each after this time. For load tests.
    Stub {
        /// The time before each status.
        stage_time: Duration,
    },
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
    /// Jobs at a time; on workers each costs up to three threads. By default 64 on workers, 8,192 for stub jobs.
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
        let most = if self.dispatch == Dispatch::Workers { 1000 } else { STUB_JOBS };
        if let Some(workers) = self.workers.filter(|workers| *workers == 0 || *workers > most) {
            problems.push(format!("workers is {workers}; it should be from 1 to {most}"));
        }
        if self.miners.is_empty() && self.dispatch == Dispatch::Workers {
            problems.push("there is no miner; name at least one in the miners file".to_owned());
        }
        problems
    }
}

/// The validator cannot start.
#[derive(Debug, thiserror::Error)]
#[error("validator: {0}")]
pub struct ValidatorError(#[from] ClientError);

/// What the workers share.
pub(super) struct Shared {
    pub(super) config: ValidatorConfig,
    pub(super) routing: Mutex<Routing>,
    pub(super) dialer: Arc<dyn Dialer>,
    pub(super) timer: TimerHandle,
    pub(super) next_link: AtomicU64,
}

/// What runs the jobs.
#[derive(Clone)]
enum Runs {
    Workers(Arc<Workers>),
    Stub(Stub),
}

impl Runs {
    fn running(&self) -> usize {
        match self {
            Runs::Workers(workers) => workers.running(),
            Runs::Stub(stub) => stub.running(),
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
        let client = FacilitatorClient::new(ClientConfig {
            trusted_signers: config.trusted_signers.clone(),
            state_dir: config.state_dir.clone(),
            backoff: config.backoff,
            dialer: dialer.clone(),
            ..ClientConfig::new(&config.facilitator_url, config.key.clone())
        })?;
        let runs = match config.dispatch {
            Dispatch::Workers => Runs::Workers(Arc::new(Workers::new("val-work", config.workers.unwrap_or(WORKERS)))),
            Dispatch::Stub { stage_time } => {
                Runs::Stub(Stub::new(stage_time, config.workers.unwrap_or(STUB_JOBS), timer.clone()))
            }
        };
        let shared = Arc::new(Shared {
            routing: Mutex::new(Routing::new(config.miners.clone())),
            dialer,
            timer: timer.clone(),
            next_link: AtomicU64::new(0),
            config,
        });
        let handler = Arc::new(Handler { shared: shared.clone(), runs: runs.clone() });
        let client = client.start_with(handler, timer)?;
        for (miner, age) in client.handle().delivery().cheaters() {
            let left = shared.config.blacklist_time.saturating_sub(age);
            if !left.is_zero() {
                lock(&shared.routing).blacklist(&miner, Instant::now(), left);
            }
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
        let cancelled = stopping.step("validator jobs", shared.config.drain_time, |step| match &runs {
            Runs::Workers(workers) => workers.stop(step),
            Runs::Stub(stub) => stub.stop(step),
        });
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
        lock(&self.0.routing).replace(miners);
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

    /// Breaks the link to the facilitator; it comes back by itself.
    pub fn kick_link(&self) {
        self.client.kick_link();
    }
}

struct Handler {
    shared: Arc<Shared>,
    runs: Runs,
}

impl JobHandler for Handler {
    fn job(&self, job: Job) {
        match &self.runs {
            Runs::Stub(stub) => stub.run(job),
            Runs::Workers(workers) => {
                let shared = self.shared.clone();
                // A job that the workers do not take is turned away as busy when it is dropped.
                drop(workers.submit(Box::new(move |cancel| organic::run(&shared, job.receive(), cancel))));
            }
        }
    }

    fn cheated(&self, uuid: &str, miner: PublicKey) {
        log::warn!("job {uuid}: miner {miner} cheated, it gets no jobs for a while");
        lock(&self.shared.routing).blacklist(&miner, Instant::now(), self.shared.config.blacklist_time);
    }
}

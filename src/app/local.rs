//! All four roles in one process, on loopback, with keys of their own: what the demo runs, and a start for embedders.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::shutdown::{Level, Shutdown};
use crate::base::stop::{StopReport, Stopping};
use crate::base::timer::TimerHandle;
use crate::executor::{self, ExecutorConfig, JobEnd, RunnerKind};
use crate::facilitator::{Facilitator, FacilitatorConfig};
use crate::identity::{KeyPair, PublicKey};
use crate::miner::executor_manager::check_runner;
use crate::miner::{ExecutorBackend, ExecutorError, ExecutorExit, ExecutorSpec, Miner, MinerConfig, MinerLimits};
use crate::net::reach::Reach;
use crate::proc::docker::Docker;
use crate::protocol::ExecutorClass;
use crate::transport::ws::{WsDialer, WsListener};
use crate::transport::{ClientTls, Dialer};
use crate::validator::{MinerAddress, Validator, ValidatorConfig};

/// What a local network needs.
pub struct LocalConfig {
    /// Folder for the roles' databases.
    pub state_dir: PathBuf,
    /// Executors of the one miner, all of class `always_on.test`.
    pub executors: u32,
    /// Where executors run.
    pub backend: Arc<dyn ExecutorBackend>,
    /// How long a stop lets running jobs go on.
    pub drain_time: Duration,
}

/// A facilitator, a validator and a miner; executors come with the jobs.
#[derive(Debug)]
pub struct LocalNetwork {
    // Dropped in the order of the stop.
    validator: Validator,
    miner: Miner,
    facilitator: Facilitator,
    user: KeyPair,
    target: PublicKey,
    stop_budget: Duration,
}

impl LocalNetwork {
    /// Starts facilitator, miner and validator on ports that the system chooses. Blocks on the disk only; jobs may be
    /// submitted at once, and wait until the validator has connected.
    ///
    /// # Errors
    /// What a role says, in one line; then nothing is left running.
    pub fn start(config: LocalConfig, timer: &TimerHandle) -> Result<Self, String> {
        let LocalConfig { state_dir, executors, backend, drain_time } = config;
        let key = || KeyPair::generate().0;
        let (user, validator_key, miner_key) = (key(), key(), key());
        let target = validator_key.public();
        let listen = || WsListener::bind("127.0.0.1:0", None).map_err(|e| e.to_string());

        let http = TcpListener::bind("127.0.0.1:0").map_err(|e| format!("cannot listen on 127.0.0.1: {e}"))?;
        let facilitator = FacilitatorConfig {
            validators: vec![target],
            users: vec![user.public()],
            hold_jobs: true,
            ..FacilitatorConfig::new(state_dir.join("facilitator"))
        };
        let facilitator =
            Facilitator::start(facilitator, Box::new(listen()?), http, timer.clone()).map_err(|e| e.to_string())?;

        let limits = MinerLimits { drain_time, ..MinerLimits::default() };
        let listener = listen()?;
        let miner_address = listener.local_addr();
        let miner = MinerConfig {
            validators: vec![target],
            executors: vec![(ExecutorClass::AlwaysOnTest, executors)],
            limits,
            ..MinerConfig::new(miner_key.clone(), state_dir.join("miner"), backend)
        };
        let miner = Miner::start(miner, Box::new(listener), timer.clone()).map_err(|e| e.to_string())?;

        let miners = vec![MinerAddress {
            hotkey: miner_key.public(),
            address: miner_address.ip().to_string(),
            port: miner_address.port(),
            trusted: false,
            tls: false,
        }];
        let validator = ValidatorConfig {
            trusted_signers: vec![user.public()],
            drain_time,
            ..ValidatorConfig::new(format!("{}/ws/v0/", facilitator.ws_url()), validator_key, miners)
        };
        let stop_budget = Validator::stop_budget(&validator) + Miner::stop_budget(&limits) + Facilitator::STOP_BUDGET;
        let dialer = Arc::new(WsDialer::new(ClientTls::default()));
        let validator = Validator::start(validator, dialer, timer.clone()).map_err(|e| e.to_string())?;
        Ok(Self { facilitator, validator, miner, user, target, stop_budget })
    }

    /// Where users submit jobs.
    pub fn http_addr(&self) -> SocketAddr {
        self.facilitator.http_addr()
    }

    /// Who may submit jobs.
    pub fn user(&self) -> &KeyPair {
        &self.user
    }

    /// The validator, which jobs are for.
    pub fn target(&self) -> PublicKey {
        self.target
    }

    /// The longest that [`LocalNetwork::stop`] takes, the sum of its steps.
    pub fn stop_budget(&self) -> Duration {
        self.stop_budget
    }

    /// Stops it alone, within `budget`, as [`LocalNetwork::stop_in`] does; what is left then is cancelled.
    pub fn stop(self, budget: Duration) -> StopReport {
        let mut stopping = Stopping::within(budget);
        self.stop_in(&mut stopping);
        stopping.finish()
    }

    /// Stops in the order of the work: the validator lets its jobs end or gives them up, and reports them; the miner
    /// ends its executors; then the facilitator.
    pub fn stop_in(self, stopping: &mut Stopping) {
        let Self { facilitator, validator, miner, .. } = self;
        validator.stop_in(stopping);
        miner.stop_in(stopping);
        facilitator.stop_in(stopping);
    }
}

/// Executors as threads of this process instead of processes of their own: for embedders and tests.
pub struct ThreadBackend {
    /// What the addresses that a job names may lead to; by default global unicast only.
    pub reach: Reach,
    runner: RunnerKind,
    dialer: Arc<dyn Dialer>,
    timer: TimerHandle,
}

impl ThreadBackend {
    /// A back end whose executors dial by TCP and run their jobs' commands with `runner`.
    pub fn new(runner: RunnerKind, timer: TimerHandle) -> Self {
        Self { reach: Reach::default(), runner, dialer: Arc::new(WsDialer::new(ClientTls::default())), timer }
    }
}

impl ExecutorBackend for ThreadBackend {
    fn run(&self, spec: &ExecutorSpec, stop: &Shutdown) -> Result<ExecutorExit, ExecutorError> {
        let config = ExecutorConfig {
            startup_time_limit: spec.startup_time_limit,
            runner: self.runner,
            reach: self.reach.clone(),
            ..ExecutorConfig::new(&spec.miner_address, &spec.token)
        };
        // Whoever tells an executor to end wants its job ended, and reported.
        let shutdown = stop.child();
        let cancel = shutdown.clone();
        let _at_once = stop.on(Level::Drain, move || cancel.cancel());
        match executor::run(config, self.dialer.clone(), self.timer.clone(), &shutdown) {
            Ok(report) if report.end == JobEnd::HordeFailed => Ok(ExecutorExit::Code(1)),
            Ok(_) => Ok(ExecutorExit::Code(0)),
            Err(error) => Err(ExecutorError::Other(error.to_string())),
        }
    }

    fn check(&self, stop: &Shutdown, deadline: Instant) -> Result<String, String> {
        check_runner(self.runner.name(), &Docker::default(), stop, deadline)
    }
}

/// A folder for a run that leaves nothing behind: removed when dropped.
///
/// # Errors
/// What the system says, in one line.
pub fn scratch_dir() -> Result<tempfile::TempDir, String> {
    tempfile::Builder::new().prefix("phalanx-").tempdir().map_err(|e| format!("cannot make a temporary folder: {e}"))
}

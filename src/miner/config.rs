//! What a miner is configured with at its start.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::check::CheckPolicy;
use super::executor_manager::{END_GRACE, ExecutorBackend};
use super::host::HostName;
use super::images::ImageCare;
use super::placement::Strategy;
use crate::base::limits::{
    EXECUTORS_MAX, MINER_KEPT_BYTES, MINER_KEPT_JOBS, OUTBOX_BYTES, OUTBOX_MESSAGES, SERVER_CONNECTIONS, STRANGER_TIME,
};
use crate::identity::{KeyPair, PublicKey};
use crate::link::server::StrangerLimits;
use crate::link::{OutboxLimits, PeerRates, ServerConfig};
use crate::ops::status::Board;
use crate::proc::docker::EngineAddress;
use crate::protocol::stages::{MINER_BEHIND, Timing};
use crate::protocol::{ExecutorClass, V0InitialJobRequest};
use crate::transport::check_url;

/// Connections of a miner: as many executors as it may offer, beside as many others as any server has.
const CONNECTIONS: usize = SERVER_CONNECTIONS + EXECUTORS_MAX as usize;

/// News that may be kept of one job.
const NEWS: usize = 7;

/// What may wait for one peer that does not read: a validator that comes back is told at once all that is kept for it,
/// and beside that there is room for what is said to any peer. What is kept is in memory once.
const OUTBOX: OutboxLimits = OutboxLimits {
    messages: (MINER_KEPT_JOBS + EXECUTORS_MAX as usize) * NEWS + OUTBOX_MESSAGES,
    bytes: MINER_KEPT_BYTES + OUTBOX_BYTES,
    window: OUTBOX_MESSAGES,
};

/// Hosts that one miner may have beside its own machine: each has two threads of its own.
pub(super) const HOSTS_MAX: usize = 32;

/// A host that executors run on.
#[derive(Clone)]
pub struct HostConfig {
    /// Its name in logs, metrics, and the rows of jobs: what runs there is found again by it.
    pub name: HostName,
    /// What it is, for people; nothing is dialled by it.
    pub address: String,
    /// Where its engine is. A host of the same name with another engine is another host, of which nothing is known.
    pub engine: EngineAddress,
    /// How many executors of which class.
    pub executors: Vec<(ExecutorClass, u32)>,
    /// What starts them there.
    pub backend: Arc<dyn ExecutorBackend>,
}

impl fmt::Debug for HostConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.name, self.executors)
    }
}

/// The times of a miner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MinerLimits {
    /// A connection of a validator has to be authenticated by then.
    pub auth_time: Duration,
    /// How far from our clock an authentication's time may be, either way (10 s in the Python miner, for the past).
    pub auth_age: Duration,
    /// How long a job waits for a slot whose executor is about to end; well within the validator's 7 s.
    pub reservation_wait: Duration,
    /// Time for an executor's start, beyond the spin-up time of its class (5 s on the validator's side).
    pub startup_time_limit: Duration,
    /// Time from the executor's readiness to the validator's job request.
    pub request_time: Duration,
    /// What the miner grants a job beyond its own limits, see [`protocol::stages`](crate::protocol::stages).
    pub leeway: Duration,
    /// The longest job that is taken, by its limits together without the leeway.
    pub max_job_time: Option<Duration>,
    /// Limit of a job that names none, if `max_job_time` is not less.
    pub default_job_time: Duration,
    /// How long an executor may be disconnected before its job counts as failed.
    pub reconnect_grace: Duration,
    /// Time for an executor to end by itself once its job is over.
    pub exit_time: Duration,
    /// Time from telling an executor to end to its slot's quarantine.
    pub end_time: Duration,
    /// How long the outcome of a job is kept for a validator that has not confirmed it.
    pub result_time: Duration,
    /// How long a stop lets running jobs go on.
    pub drain_time: Duration,
    /// How often it is asked whether jobs can run.
    pub checks: CheckPolicy,
}

impl MinerLimits {
    /// The limits of a job.
    pub(super) fn timing(&self, initial: &V0InitialJobRequest) -> Timing {
        let default = self.max_job_time.map_or(self.default_job_time, |most| most.min(self.default_job_time));
        Timing::of(initial, default)
    }
}

impl Default for MinerLimits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            auth_time: STRANGER_TIME,
            auth_age: seconds(10),
            reservation_wait: seconds(3),
            startup_time_limit: seconds(5),
            request_time: seconds(60),
            leeway: MINER_BEHIND,
            max_job_time: None,
            default_job_time: seconds(3600),
            reconnect_grace: seconds(30),
            exit_time: seconds(5),
            end_time: END_GRACE + seconds(5),
            result_time: seconds(600),
            drain_time: seconds(60),
            checks: CheckPolicy::default(),
        }
    }
}

/// How a miner starts its watcher: this program and its arguments, to which `--watch INSTANCE:EPOCH` is added. It has
/// to start one more process, which calls [`watch`](super::watch()), and end.
#[derive(Debug, Clone)]
pub struct WatchCommand {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

/// What a miner needs besides its listener and a timer.
#[derive(Clone)]
pub struct MinerConfig {
    /// Who the miner is.
    pub key: KeyPair,
    /// Whose jobs it takes.
    pub validators: Vec<PublicKey>,
    /// Validators among those whose jobs are declined as `validator_blacklisted`.
    pub blacklist: Vec<PublicKey>,
    /// How many executors of which class there are on the host `local`; none, if others have all.
    pub executors: Vec<(ExecutorClass, u32)>,
    /// Other hosts.
    pub hosts: Vec<HostConfig>,
    /// On which of them a job runs.
    pub placement: Strategy,
    /// Folder of the miner's database, `miner.db`.
    pub state_dir: PathBuf,
    /// What executors dial, `ws://host:port`; by default the listener's own address.
    pub executor_address: Option<String>,
    /// Address under which clients of streaming jobs reach the executors; by default the one an executor dials from.
    pub streaming_address: Option<String>,
    /// Where executors of the host `local` come from.
    pub backend: Arc<dyn ExecutorBackend>,
    /// What that is, for people.
    pub address: String,
    /// The times.
    pub limits: MinerLimits,
    /// Limits of the connections.
    pub server: ServerConfig,
    /// What is done about the images of jobs, if they have any.
    pub images: Option<ImageCare>,
    /// How much one peer may say.
    pub rates: PeerRates,
    /// The reaper only says what it would remove.
    pub reap_dry_run: bool,
    /// How it starts the process that cleans up when it is killed; `None` for none.
    pub watch: Option<WatchCommand>,
    /// What its threads report to.
    pub board: Board,
}

impl MinerConfig {
    /// A configuration with the default times and limits.
    pub fn new(key: KeyPair, state_dir: impl Into<PathBuf>, backend: Arc<dyn ExecutorBackend>) -> Self {
        Self {
            key,
            validators: Vec::new(),
            blacklist: Vec::new(),
            executors: Vec::new(),
            hosts: Vec::new(),
            placement: Strategy::default(),
            state_dir: state_dir.into(),
            executor_address: None,
            streaming_address: None,
            backend,
            address: "this machine".to_owned(),
            limits: MinerLimits::default(),
            server: server_config(),
            rates: PeerRates::default(),
            images: None,
            reap_dry_run: false,
            watch: None,
            board: Board::new(),
        }
    }

    /// All hosts that have executors, `local` among them.
    pub fn all_hosts(&self) -> Vec<HostConfig> {
        let local = HostConfig {
            name: HostName::LOCAL,
            address: self.address.clone(),
            engine: EngineAddress::local(),
            executors: self.executors.clone(),
            backend: self.backend.clone(),
        };
        let all = [local].into_iter().chain(self.hosts.iter().cloned());
        all.filter(|host| host.executors.iter().any(|(_, count)| *count > 0)).collect()
    }

    /// All that is wrong with the configuration, a sentence each; empty if nothing is.
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.validators.is_empty() {
            problems.push("validators is empty: a miner needs the hotkey of at least one validator".to_owned());
        }
        let known: HashSet<_> = self.validators.iter().collect();
        for stranger in self.blacklist.iter().filter(|key| !known.contains(key)) {
            let stranger = stranger.to_ss58();
            problems.push(format!("blacklist: {stranger} is none of the validators, so it is turned away anyway"));
        }
        let declared = self.executors.iter().chain(self.hosts.iter().flat_map(|host| &host.executors));
        let executors: u64 = declared.map(|(_, count)| u64::from(*count)).sum();
        if executors == 0 {
            problems.push("executors is empty: a miner needs at least one, as always_on.test=1".to_owned());
        }
        if executors > u64::from(EXECUTORS_MAX) {
            problems.push(format!("executors: {executors} in all, one miner offers at most {EXECUTORS_MAX}"));
        }
        if self.hosts.len() > HOSTS_MAX {
            problems.push(format!("hosts: there are {}, one miner has at most {HOSTS_MAX}", self.hosts.len()));
        }
        let mut names = HashSet::from([HostName::LOCAL]);
        for HostConfig { name, .. } in self.hosts.iter().filter(|host| !names.insert(host.name)) {
            problems.push(format!("hosts: {name} is the name of two"));
        }
        if let Some(address) = &self.executor_address
            && !address.starts_with("ws://")
            && !address.starts_with("wss://")
        {
            problems.push(format!("executor_address is {address:?}: it should be like ws://10.0.0.5:9101"));
        } else if let Some(Err(error)) = self.executor_address.as_deref().map(check_url) {
            problems.push(format!("executor_address: {error}"));
        }
        if self.limits.max_job_time.is_some_and(|time| time.is_zero()) {
            problems.push("max_job_time is 0: no job would be taken".to_owned());
        }
        if self.server.name.len() > 3 {
            problems.push(format!("server.name is {:?}: it should have at most 3 bytes", self.server.name));
        }
        problems
    }
}

fn server_config() -> ServerConfig {
    let strangers = Some(StrangerLimits::default());
    let mut config = ServerConfig { outbox: OUTBOX, strangers, ..ServerConfig::new("min") };
    config.places.total = CONNECTIONS;
    config
}

impl fmt::Debug for MinerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MinerConfig")
            .field("hotkey", &self.key.ss58())
            .field("validators", &self.validators.len())
            .field("executors", &self.executors)
            .field("hosts", &self.hosts)
            .field("state_dir", &self.state_dir)
            .field("executor_address", &self.executor_address)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

//! What an executor is started with.

use std::time::Duration;

use super::hooks::Hooks;
use super::runner::{ImageSettings, RunnerKind};
use super::sandbox::Sandbox;
use super::streaming::PortRange;
use crate::net::http::client::{HttpSettings, Redirects};
use crate::net::proxy::Proxies;
use crate::net::reach::Reach;
use crate::net::tls::ClientTls;
use crate::ops::status::Board;
use crate::store::spool::Spool;

/// What an executor is started with.
#[derive(Clone)]
pub struct ExecutorConfig {
    /// `ws://host:port` of the miner (`MINER_ADDRESS`).
    pub miner_address: String,
    /// Our token (`EXECUTOR_TOKEN`); a secret.
    pub token: String,
    /// How long the part before the initial request may take, and then the preparation for the job.
    pub startup_time_limit: Duration,
    /// How long a job may take in all, whatever its limits are; `None` for those.
    pub max_job_time: Option<Duration>,
    /// How the job's command is run.
    pub runner: RunnerKind,
    /// What the job may do.
    pub sandbox: Sandbox,
    /// Which images jobs may have, and how those get here.
    pub images: ImageSettings,
    /// What the addresses that a job names may lead to: volumes, uploads, the registry of its image.
    pub reach: Reach,
    /// Whose certificates are good where volumes come from and uploads go to.
    pub transfer_tls: ClientTls,
    /// Which proxies are used for volumes and uploads.
    pub transfer_proxies: Proxies,
    /// Whether a job without a Hugging Face token of its own is given the one in our environment.
    pub hugging_face_token_for_jobs: bool,
    /// The operator's programs around the job.
    pub hooks: Hooks,
    /// Ports of which a streaming job takes one for its clients.
    pub streaming_ports: PortRange,
    /// Without a connection for this long, the miner is given up and the job is cancelled.
    pub miner_gone_after: Duration,
    /// How long the last messages may take to leave.
    pub flush_time: Duration,
    /// Where they are kept for the miner if they do not.
    pub spool: Option<Spool>,
    /// Labels of what is made in the engine for the job: whose it is.
    pub labels: Vec<(String, String)>,
    /// What its threads report to.
    pub board: Board,
}

/// Without the token.
impl std::fmt::Debug for ExecutorConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { miner_address, runner, .. } = self;
        let mut shown = f.debug_struct("ExecutorConfig");
        shown.field("miner_address", miner_address).field("runner", runner).finish_non_exhaustive()
    }
}

impl ExecutorConfig {
    /// The default numbers: 30 s for the start, 30 s without the miner, 30 s to flush, ports 6000
    /// to 6999.
    pub fn new(miner_address: impl Into<String>, token: impl Into<String>) -> Self {
        Self {
            miner_address: miner_address.into(),
            token: token.into(),
            startup_time_limit: Duration::from_secs(30),
            max_job_time: None,
            runner: RunnerKind::default(),
            sandbox: Sandbox::default(),
            images: ImageSettings::default(),
            reach: Reach::default(),
            transfer_tls: ClientTls::default(),
            transfer_proxies: Proxies::none(),
            hugging_face_token_for_jobs: false,
            hooks: Hooks::default(),
            streaming_ports: PortRange::DEFAULT,
            miner_gone_after: Duration::from_secs(30),
            flush_time: Duration::from_secs(30),
            spool: None,
            labels: Vec::new(),
            board: Board::new(),
        }
    }

    /// What volumes and uploads use.
    pub(super) fn http(&self) -> HttpSettings {
        let Self { reach, transfer_tls, transfer_proxies, .. } = self;
        HttpSettings {
            reach: reach.clone(),
            tls: transfer_tls.clone(),
            proxies: transfer_proxies.clone(),
            redirects: Redirects::Follow,
        }
    }

    /// All problems of the configuration, in words.
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.miner_address.starts_with("ws://") && !self.miner_address.starts_with("wss://") {
            problems.push(format!(
                "MINER_ADDRESS is {:?}; it should be a URL like ws://127.0.0.1:9101",
                self.miner_address
            ));
        }
        if self.token.is_empty() || self.token.contains(['/', '?', '#', ' ']) {
            problems.push("EXECUTOR_TOKEN should be the token that the miner made for this executor".to_owned());
        }
        if self.startup_time_limit.is_zero() {
            problems.push("the startup time limit is 0; it should be some seconds".to_owned());
        }
        if self.max_job_time.is_some_and(|time| time.is_zero()) {
            problems.push("the longest time of a job is 0; it should be some minutes".to_owned());
        }
        problems
    }
}

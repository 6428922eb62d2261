//! What a facilitator needs to know.

use std::path::PathBuf;
use std::time::Duration;

use super::operators::Operators;
use super::router::RouterConfig;
use crate::base::limits::{HANDSHAKES, SERVER_CONNECTIONS, STRANGER_TIME};
use crate::identity::PublicKey;
use crate::link::{PeerRates, Rate};
use crate::net::http::{HostNames, HttpLimits};
use crate::ops::status::Board;
use crate::store::jobs::{Keep, Quota};

/// Where validators connect.
pub const VALIDATOR_PATH: &str = "/ws/v0/";

/// What a facilitator needs besides its listeners.
#[derive(Debug, Clone)]
pub struct FacilitatorConfig {
    /// Who may connect as a validator.
    pub validators: Vec<PublicKey>,
    /// Who may submit jobs.
    pub users: Vec<PublicKey>,
    /// Where the database (`facilitator.db`) and the secret of the tokens (`jwt.secret`) are.
    pub state_dir: PathBuf,
    /// A session without a heartbeat for longer gets no jobs, by default 3 minutes.
    pub heartbeat_limit: Duration,
    /// A session without a heartbeat for so long is closed, by default 10 minutes.
    pub ghost_limit: Duration,
    /// A job of which its validator has reported nothing for so long ends as `horde_failed`.
    pub received_limit: Duration,
    /// A job that was received ends as `horde_failed` when nothing was heard of it for so long beyond its own limits
    /// and the start of its executor.
    pub silence_margin: Duration,
    /// A validator connection that has not authenticated so long after it was accepted is closed.
    pub auth_limit: Duration,
    /// How much one validator may say from one address, and each address whose connections are not known yet.
    pub rates: PeerRates,
    /// How often one address may connect as a validator.
    pub connects: Rate,
    /// How long a user's token is good.
    pub token_time: Duration,
    /// Connections of validators at a time; more are refused.
    pub connections: usize,
    /// HTTP requests in work at a time; three quarters of them may wait for news of a job.
    pub http_connections: usize,
    /// Whether jobs are taken for validators that are not connected; they wait for `received_limit` then. Otherwise
    /// they are refused at once.
    pub hold_jobs: bool,
    /// How much of one user may be open at a time; more is answered with 429.
    pub user_quota: Quota,
    /// How often one user may ask; more is answered with 429.
    pub user_rate: Rate,
    /// How many of the jobs that have ended are kept.
    pub keep: Keep,
    /// HTTP requests of one address.
    pub http_requests: Rate,
    /// By which names users may ask besides IP addresses and loopback names, and whose web pages may.
    pub http_names: HostNames,
    /// From where operators ask, who see the jobs of all users on the pages.
    pub operators: Operators,
    /// What its threads report to.
    pub board: Board,
}

/// What is wrong with lists in which there is nobody.
pub(super) fn nobody(validators: &[PublicKey], users: &[PublicKey]) -> Vec<String> {
    let nobody = |who: &str, keys: &[PublicKey]| {
        keys.is_empty().then(|| format!("there is no {who}; name at least one by its SS58 address"))
    };
    nobody("validator", validators).into_iter().chain(nobody("user", users)).collect()
}

impl FacilitatorConfig {
    /// The default numbers: 3 min, 10 min, 60 s, 5 min, 10 s, 1 h, 10,000 connections, 256 requests in work,
    /// 1,000 of an address in a second; of a user 2,048 open jobs with 128 MiB, half of what may wait for all
    /// validators, and 2,000 requests in 10 s; 100,000 ended jobs, 30 days and 8 GiB. Operators ask from this machine.
    /// Nobody may do anything yet.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            validators: Vec::new(),
            users: Vec::new(),
            state_dir: state_dir.into(),
            heartbeat_limit: Duration::from_secs(180),
            ghost_limit: Duration::from_secs(600),
            received_limit: Duration::from_secs(60),
            silence_margin: Duration::from_secs(300),
            auth_limit: STRANGER_TIME,
            rates: PeerRates::default(),
            connects: Rate::new(HANDSHAKES.0, HANDSHAKES.1),
            token_time: Duration::from_secs(3600),
            connections: SERVER_CONNECTIONS,
            http_connections: 256,
            hold_jobs: false,
            user_quota: Quota { jobs: 2048, bytes: 128 << 20 },
            user_rate: Rate::new(2000, Duration::from_secs(10)),
            keep: Keep { jobs: 100_000, time: Duration::from_secs(30 * 24 * 3600), bytes: 8 << 30 },
            http_requests: HttpLimits::default().requests,
            http_names: HostNames::default(),
            operators: Operators::default(),
            board: Board::new(),
        }
    }

    /// All problems of the configuration, in words.
    pub fn validate(&self) -> Vec<String> {
        let mut problems = nobody(&self.validators, &self.users);
        if self.connections == 0 {
            problems.push("connections is 0; it should be at least 1".to_owned());
        }
        if !(4..=1000).contains(&self.http_connections) {
            problems.push(format!("http_connections is {}; it should be from 4 to 1000", self.http_connections));
        }
        for (name, limit) in [("user_jobs", self.user_quota.jobs), ("user_size", self.user_quota.bytes)] {
            if limit == 0 {
                problems.push(format!("{name} is 0, so nobody could submit a job"));
            }
        }
        for (name, limit) in [
            ("heartbeat_limit", self.heartbeat_limit),
            ("ghost_limit", self.ghost_limit),
            ("received_limit", self.received_limit),
            ("silence_margin", self.silence_margin),
            ("auth_limit", self.auth_limit),
            ("user_rate", self.user_rate.period),
        ] {
            if limit.is_zero() {
                problems.push(format!("{name} is 0; it should be some seconds"));
            }
        }
        problems
    }

    pub(super) fn router(&self) -> RouterConfig {
        RouterConfig {
            heartbeat_limit: self.heartbeat_limit,
            received_limit: self.received_limit,
            silence_margin: self.silence_margin,
            auth_limit: self.auth_limit,
            ghost_limit: self.ghost_limit,
        }
    }
}

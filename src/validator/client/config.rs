//! The settings of a facilitator client, and its errors.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::base::backoff::BackoffConfig;
use crate::base::limits::DIAL_TIME;
use crate::identity::{KeyPair, PublicKey};
use crate::ops::errors::ErrorClass;
use crate::ops::status::Board;
use crate::store::StoreError;
use crate::transport::ws::WsDialer;
use crate::transport::{ClientTls, Dialer, check_url};
use crate::validator::authorization::{MAX_SIGNATURE_AGE, problem_of_age};
use crate::validator::ledger::{LedgerLimits, RetryPolicies};

/// How often the facilitator gets a message from us, unless the configuration says otherwise; it counts us as connected
/// for three minutes after each.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(60);

/// What a client needs.
#[derive(Clone)]
pub struct ClientConfig {
    /// The facilitator's `ws://` or `wss://` URL, as `wss://host/ws/v0/`.
    pub url: String,
    /// Other addresses of the same facilitator, with the same database behind them: when one fails, the next in order
    /// is dialled, and after the last the first.
    pub fallbacks: Vec<String>,
    /// Our hotkey.
    pub key: KeyPair,
    /// Who may sign jobs besides ourselves.
    pub trusted_signers: Vec<PublicKey>,
    /// How old the signature of a job may be. As long as it may be used, it is remembered that it ran a job; over a
    /// restart only with a state folder.
    pub max_signature_age: Duration,
    /// Where updates are kept over a restart; in memory only if `None`.
    pub state_dir: Option<PathBuf>,
    /// Threads that check signatures.
    pub check_threads: usize,
    /// One deadline over look-up, TCP, TLS, upgrade and authentication.
    pub dial_time: Duration,
    /// How often the facilitator gets a message from us when there is nothing to say; the network demands 60 s.
    pub heartbeat_every: Duration,
    /// When to connect again.
    pub backoff: BackoffConfig,
    /// The pause after a refusal that needs a person: a bad signature, HTTP 4xx.
    pub refused_pause: Duration,
    /// When a refused update is tried again, and when it is given up.
    pub retries: RetryPolicies,
    /// How much may wait for the facilitator.
    pub limits: LedgerLimits,
    /// Where the client counts and reports errors; several clients may share one.
    pub board: Board,
    /// How connections are made; by default WebSocket with public certificate roots.
    pub dialer: Arc<dyn Dialer>,
}

impl fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientConfig").field("url", &self.url).field("hotkey", &self.key.ss58()).finish_non_exhaustive()
    }
}

impl ClientConfig {
    /// The default numbers: one check thread a core, signatures of the last hour, 15 s to connect, 5 min after a
    /// refusal; nothing is kept on disk.
    pub fn new(url: impl Into<String>, key: KeyPair) -> Self {
        Self {
            url: url.into(),
            fallbacks: Vec::new(),
            key,
            trusted_signers: Vec::new(),
            max_signature_age: MAX_SIGNATURE_AGE,
            state_dir: None,
            check_threads: std::thread::available_parallelism().map_or(1, |n| n.get()).min(16),
            dial_time: DIAL_TIME,
            heartbeat_every: HEARTBEAT_EVERY,
            backoff: BackoffConfig::default(),
            refused_pause: Duration::from_secs(300),
            retries: RetryPolicies::default(),
            limits: LedgerLimits::default(),
            board: Board::new(),
            dialer: Arc::new(WsDialer::new(ClientTls::default())),
        }
    }

    /// All problems of the configuration, in words.
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for url in std::iter::once(&self.url).chain(&self.fallbacks) {
            if !url.starts_with("ws://") && !url.starts_with("wss://") {
                let right = "it should be a URL like wss://facilitator.example/ws/v0/";
                problems.push(format!("facilitator is {url:?}; {right}"));
            } else if let Err(error) = check_url(url) {
                problems.push(format!("facilitator: {error}"));
            }
        }
        problems.extend(problem_of_age(self.max_signature_age));
        if self.check_threads == 0 || self.check_threads > 64 {
            problems.push(format!("check_threads is {}; it should be from 1 to 64", self.check_threads));
        }
        problems
    }
}

/// What went wrong with a client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The configuration has problems; nothing was started. Mend them and make a new client.
    #[error("{}", .0.join("; "))]
    Config(Vec<String>),
    /// The state folder cannot be used; nothing was started.
    #[error("state folder: {0}")]
    State(#[from] StoreError),
    /// The client has stopped; a handle that outlived it can only look.
    #[error("the client has stopped")]
    Stopped,
    /// Updates still wait for the facilitator; they go on waiting.
    #[error("{0} updates still wait for the facilitator")]
    Unsent(usize),
}

impl ClientError {
    /// What a loop does about it.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Config(_) | Self::State(_) => ErrorClass::Fatal,
            Self::Stopped => ErrorClass::Cancelled,
            Self::Unsent(_) => ErrorClass::Retry,
        }
    }

    /// What a person does about it.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Config(_) => "correct the named settings and call FacilitatorClient::new again",
            Self::State(_) => "free or repair the state folder, or name another, then start again",
            Self::Stopped => "make a new client with FacilitatorClient::new and call start",
            Self::Unsent(_) => {
                "wait longer, or look at the state of the connection; with a state folder nothing is lost"
            }
        }
    }
}

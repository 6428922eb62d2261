//! All decisions of a miner. Pure: no thread, channel, socket or clock; it takes what happened and says what to do.
//!
//! * `job`: one job, what is kept of it for its validator, and its deadlines.
//! * `validators`: who is connected, authentication, what validators say.
//! * `executors`: whose executor is connected, what executors say, how they end.
//! * `jobs`: a job from its request to its end.
//!
//! The order of the actions is the order in which they must be done.

mod executors;
mod job;
mod jobs;
mod validators;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Instant;

use crate::base::ids::SessionId;
use crate::base::now::Now;
use crate::base::shutdown::Level;
use crate::identity::{KeyPair, PublicKey};
use crate::protocol::signing::verify_validator_signature;
use crate::protocol::{
    DecodeError, ExecutorClass, ExecutorToMiner, GenericError, MinerToValidator, Receipt, ReceiptPayload,
    ValidatorToMiner,
};
use crate::transport::Utf8Bytes;

use super::config::{MinerConfig, MinerLimits};
use super::executor_manager::{ExecutorEnd, ExecutorSpec};
use super::executor_pool::ExecutorPool;
use executors::Connected;
pub use job::JobKey;
use job::MinerJob;
use jobs::Waiting;
use validators::Validator;

/// Close code of everything that the Python miner ends, whatever the reason.
pub const CLOSE_NORMAL: u16 = 1000;
/// Close code for a peer that did not keep to our limits before it was authenticated.
pub const CLOSE_POLICY: u16 = 1008;

/// What a path stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// A validator, by the hotkey in its path.
    Validator(String),
    /// An executor, by the token in its path.
    Executor(String),
}

impl Peer {
    /// Reads the path of an upgrade request; `None` for one that is not ours.
    pub fn from_path(path: &str) -> Option<Self> {
        let path = path.split_once('?').map_or(path, |(path, _)| path);
        let (kind, name) = path.strip_prefix("/v0.1/")?.trim_end_matches('/').split_once('/')?;
        if name.is_empty() || name.contains('/') {
            return None;
        }
        match kind {
            "validator_interface" => Some(Peer::Validator(name.to_owned())),
            "executor_interface" => Some(Peer::Executor(name.to_owned())),
            _ => None,
        }
    }
}

/// A text from a validator, read on its connection's thread.
#[derive(Debug)]
pub struct ValidatorFrame {
    /// What it says.
    pub message: Result<ValidatorToMiner, DecodeError>,
    /// Its length, which counts against what may wait for authentication.
    pub bytes: usize,
    /// Whether its `validator_signature` is right; `None` if it has none.
    pub signed: Option<bool>,
    /// The message as it is passed on to an executor; empty if it is not.
    pub relay: Utf8Bytes,
}

/// A text from an executor, read on its connection's thread.
#[derive(Debug)]
pub struct ExecutorFrame {
    /// What it says.
    pub message: Result<ExecutorToMiner, DecodeError>,
    /// The message as it is passed on to the validator.
    pub relay: Utf8Bytes,
}

impl ValidatorFrame {
    /// Reads a text from the validator whose key this is; `None` if its name is no address, so that nothing it signs
    /// counts.
    pub fn read(text: &str, validator: Option<PublicKey>) -> Self {
        let message = ValidatorToMiner::decode(text);
        let signed = match &message {
            Ok(ValidatorToMiner::V0InitialJobRequest(request)) => Some(request.validator_signature.is_some()),
            Ok(ValidatorToMiner::V0JobRequest(request)) => Some(request.validator_signature.is_some()),
            _ => None,
        };
        let relay = match (&message, signed) {
            (Ok(message), Some(_)) => message.encode().into(),
            _ => Utf8Bytes::default(),
        };
        // The only error is about a text that is no JSON object, and this one was just read as one.
        let verify = |key: PublicKey| verify_validator_signature(text, &key).unwrap_or(false);
        let signed = signed.filter(|signed| *signed).map(|_| validator.is_some_and(verify));
        Self { message, bytes: text.len(), signed, relay }
    }
}

impl ExecutorFrame {
    /// Reads a text from an executor.
    pub fn read(text: &str) -> Self {
        let message = ExecutorToMiner::decode(text);
        let relay = message.as_ref().map(|message| message.encode().into()).unwrap_or_default();
        Self { message, relay }
    }
}

/// Something that happened.
#[derive(Debug)]
pub enum Input {
    /// A connection was opened.
    Opened {
        /// Its number.
        id: SessionId,
        /// Who it says it is.
        peer: Peer,
        /// The address it came from, without a port.
        address: Option<String>,
    },
    /// A validator said something.
    FromValidator(SessionId, Box<ValidatorFrame>),
    /// An executor said something.
    FromExecutor(SessionId, Box<ExecutorFrame>),
    /// A connection has ended.
    Closed(SessionId),
    /// A receipt was stored, or could not be.
    Stored {
        /// Which job of which validator it is about.
        job: JobKey,
        /// The countersigned receipt and whether it is new, or why it could not be stored.
        result: Result<(Box<Receipt>, bool), String>,
    },
    /// An executor has ended, or was never started.
    ExecutorEnded {
        /// Its token.
        token: String,
        /// How.
        end: ExecutorEnd,
    },
    /// Stop at this level: drain declines new jobs, cancel ends those that run.
    Stop(Level),
    /// Time has passed.
    Tick,
}

/// Something to do.
#[derive(Debug)]
pub enum Action {
    /// Send a text.
    Send(SessionId, Utf8Bytes),
    /// Close a connection after what was sent.
    Close(SessionId, u16, &'static str),
    /// Countersign and store a receipt, and report it as [`Input::Stored`].
    Store {
        /// Which job of which validator it is about.
        job: JobKey,
        /// What it says.
        payload: ReceiptPayload,
        /// The validator's signature, already checked.
        validator_signature: String,
    },
    /// Start an executor, and report its end as [`Input::ExecutorEnded`].
    Start(ExecutorSpec),
    /// Tell an executor to end.
    End(String),
    /// The executor has ended: let go of what is left of it here.
    Reap(String),
}

/// The state of a miner.
#[derive(Debug)]
pub struct Router {
    key: KeyPair,
    hotkey: String,
    allowed: HashSet<String>,
    blacklist: HashSet<String>,
    limits: MinerLimits,
    executor_address: String,
    streaming_address: Option<String>,
    pool: ExecutorPool,
    validators: BTreeMap<SessionId, Validator>,
    /// The connections of executors.
    executors: HashMap<SessionId, Connected>,
    jobs: BTreeMap<JobKey, MinerJob>,
    /// The job of each executor that has not ended.
    tokens: HashMap<String, JobKey>,
    waiting: VecDeque<Waiting>,
    level: Level,
    out: Vec<Action>,
}

/// Numbers for people and for tests.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MinerStatus {
    /// How the slots of each class are used.
    pub executors: Vec<(ExecutorClass, super::executor_pool::SlotCounts)>,
    /// Jobs that have not ended.
    pub jobs: usize,
    /// Jobs that have ended, with an outcome that the validator has not confirmed or an executor that is not gone.
    pub ended: usize,
    /// Authenticated connections of validators.
    pub validators: usize,
    /// Connected executors.
    pub connected_executors: usize,
}

impl Router {
    /// The state at the start; executors are told to dial `executor_address`.
    pub fn new(config: &MinerConfig, executor_address: String) -> Self {
        let ss58 = |keys: &[PublicKey]| keys.iter().map(|key| key.to_ss58()).collect();
        Self {
            hotkey: config.key.ss58(),
            key: config.key.clone(),
            allowed: ss58(&config.validators),
            blacklist: ss58(&config.blacklist),
            limits: config.limits,
            executor_address,
            streaming_address: config.streaming_address.clone(),
            pool: ExecutorPool::new(config.executors.iter().copied()),
            validators: BTreeMap::new(),
            executors: HashMap::new(),
            jobs: BTreeMap::new(),
            tokens: HashMap::new(),
            waiting: VecDeque::new(),
            level: Level::Run,
            out: Vec::new(),
        }
    }

    /// Takes in what happened and says what to do.
    pub fn handle(&mut self, input: Input, now: Now) -> Vec<Action> {
        match input {
            Input::Opened { id, peer: Peer::Validator(hotkey), .. } => self.validator_opened(id, hotkey, now),
            Input::Opened { id, peer: Peer::Executor(token), address } => self.executor_opened(id, token, address),
            Input::FromValidator(id, frame) => self.validator_said(id, *frame, now),
            Input::FromExecutor(id, frame) => self.executor_said(id, *frame, now),
            Input::Closed(id) => self.closed(id, now),
            Input::Stored { job, result } => self.stored(job, result),
            Input::ExecutorEnded { token, end } => self.executor_ended(token, end, now),
            Input::Stop(level) => self.stop(level, now),
            Input::Tick => {}
        }
        self.tick(now);
        std::mem::take(&mut self.out)
    }

    /// When [`Input::Tick`] is due next.
    pub fn next_wake(&self) -> Option<Instant> {
        let jobs = self.jobs.values().filter_map(|job| job.next_wake(self.limits.leeway));
        let auth = self.validators.values().filter_map(|v| v.auth_by());
        jobs.chain(auth).chain(self.waiting.iter().map(|w| w.until)).chain(self.pool.next_deadline()).min()
    }

    /// Whether every job has ended.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.jobs.values().all(MinerJob::is_over)
    }

    /// Numbers for people.
    pub fn status(&self) -> MinerStatus {
        let over = self.jobs.values().filter(|job| job.is_over()).count();
        MinerStatus {
            executors: self.pool.manifest().map(|(class, _)| (class, self.pool.counts(class))).collect(),
            jobs: self.jobs.len() - over + self.waiting.len(),
            ended: over,
            validators: self.validators.values().filter(|v| v.is_authenticated()).count(),
            connected_executors: self.executors.values().filter(|connected| !connected.replaced).count(),
        }
    }

    fn tick(&mut self, now: Now) {
        for class in self.pool.quarantine_overdue(now.mono) {
            log::error!("an executor of class {class} did not end when it was told to: its slot is in quarantine");
        }
        self.expire_validators(now);
        self.expire_waiting(now);
        self.expire_jobs(now);
    }

    fn closed(&mut self, id: SessionId, now: Now) {
        if self.validators.remove(&id).is_some() {
            self.validator_gone(id);
        } else if let Some(connected) = self.executors.remove(&id)
            && !connected.replaced
        {
            self.executor_gone(&connected.token, now);
        }
    }

    fn send(&mut self, to: SessionId, message: impl Into<MinerToValidator>) {
        let message: MinerToValidator = message.into();
        self.out.push(Action::Send(to, message.encode().into()));
    }

    /// A `GenericError`, which is the same to validators and executors.
    fn complain(&mut self, to: SessionId, details: impl Into<String>) {
        self.send(to, GenericError { details: Some(details.into()) });
    }
}

//! What goes into the router and what comes out of it. Pure: frames are read from their text, by the thread of their
//! connection.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::base::ids::SessionId;
use crate::base::shutdown::Level;
use crate::identity::PublicKey;
use crate::link::said::OverRate;
use crate::miner::config::{HostConfig, MinerLimits};
use crate::miner::executor_manager::{ExecutorEnd, ExecutorSpec, Leftover};
use crate::miner::executor_pool::Lease;
use crate::miner::host::HostName;
use crate::miner::placement::Strategy;
use crate::ops::errors::ErrorClass;
use crate::proc::docker::EngineAddress;
use crate::protocol::signing::verify_validator_signature;
use crate::protocol::{DecodeError, ExecutorClass, ExecutorToMiner, Receipt, ReceiptPayload, ValidatorToMiner};
use crate::store::miner::{JobChange, JobRow};
use crate::transport::Utf8Bytes;

use super::job::JobKey;

/// Close code of everything that the Python miner ends, whatever the reason.
pub const CLOSE_NORMAL: u16 = 1000;
/// Close code for a peer that did not keep to our limits before it was authenticated.
pub const CLOSE_POLICY: u16 = 1008;

/// What a path stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Peer {
    /// A validator, by the hotkey in its path.
    Validator(String),
    /// An executor, by the token in its path.
    Executor(String),
}

impl Peer {
    /// Whether a path is that of an executor.
    pub fn is_executor(path: &str) -> bool {
        matches!(Self::from_path(path), Some(Self::Executor(_)))
    }

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
    /// A message of a validator.
    FromValidator(SessionId, Box<ValidatorFrame>),
    /// A message of an executor.
    FromExecutor(SessionId, Box<ExecutorFrame>),
    /// What an executor had to say in the end and could not, by its token.
    Spooled {
        /// Its token.
        token: String,
        /// All that it said of its job, in order.
        frames: Vec<ExecutorFrame>,
    },
    /// A peer says more than it may; nothing that it says on this connection comes any more.
    OverRate(SessionId, OverRate),
    /// A connection has ended.
    Closed(SessionId),
    /// A receipt was stored, or could not be.
    Stored {
        /// Which job of which validator it is about.
        job: JobKey,
        /// Of the order, see [`Action::Store`].
        number: u64,
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
    /// A check of a host has ended.
    Checked {
        /// The host.
        host: HostName,
        /// How jobs run there, or why none can.
        found: Result<String, String>,
        /// The images that are there, if anybody wants to know.
        images: Vec<String>,
        /// When the next check has ended at the latest.
        due: Instant,
    },
    /// A look at what executors have left on a host has ended.
    Reaped {
        /// The host.
        host: HostName,
        /// Why it is not known what they have left.
        trouble: Option<String>,
        /// When the next look has ended at the latest.
        due: Instant,
    },
    /// Something of an executor that has ended could not be removed; it is tried again.
    ExecutorLeft {
        /// Its token.
        token: String,
        /// What.
        left: Leftover,
    },
    /// Whoever ran an executor has dropped its lease.
    SlotReturned {
        /// Its token.
        token: String,
        /// Whether nothing of the executor is left.
        clean: bool,
    },
    /// Stop at this level: drain declines new jobs, cancel ends those that run.
    Stop(Level),
    /// From now on no new job is taken, for this reason; or jobs are taken again.
    Paused(Option<String>),
    /// From now on these settings count.
    Settings(Box<Settings>),
    /// Time has passed.
    Tick,
}

/// What happened to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceEvent {
    /// The validator has asked for it.
    Asked,
    /// It was not taken.
    Declined,
    /// The executor has connected, for the first time or again.
    ExecutorConnected,
    /// It has lost its connection.
    ExecutorDisconnected,
    /// The executor was sent the initial request.
    InitialSent,
    /// The validator's job request has come.
    Requested,
    /// The executor was sent it.
    RequestSent,
    /// The validator is notified that the job is accepted. The detail of this and the next says whether that was sent,
    /// or kept until the validator is here.
    Accepted,
    /// The same, that the executor is ready.
    ExecutorReady,
    /// That the volumes are there.
    VolumesReady,
    /// That the streaming server is up.
    StreamingReady,
    /// That the command has ended.
    ExecutionDone,
    /// Of the executor's machine.
    MachineSpecs,
    /// That the job has ended.
    Ended,
    /// The validator has shown that it knows the news up to these.
    Confirmed,
    /// News that were not confirmed were sent to a newer connection.
    SentAgain,
    /// The miner has failed it.
    Failed,
    /// The executor has ended, and its slot is free.
    ExecutorEnded,
}

/// A host by the settings.
#[derive(Debug, Clone)]
pub struct HostPlan {
    /// Its name.
    pub name: HostName,
    /// What it is, for people.
    pub address: String,
    /// Where its engine is.
    pub engine: EngineAddress,
    /// How many executors of which class.
    pub executors: Vec<(ExecutorClass, u32)>,
}

impl From<HostConfig> for HostPlan {
    fn from(host: HostConfig) -> Self {
        let HostConfig { name, address, engine, executors, backend: _ } = host;
        Self { name, address, engine, executors }
    }
}

/// What may change while a miner runs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whose jobs it takes.
    pub validators: Vec<PublicKey>,
    /// Validators among those whose jobs are declined.
    pub blacklist: Vec<PublicKey>,
    /// The times, for what begins from now on.
    pub limits: MinerLimits,
    /// The hosts. What runs on one that is not among them goes on.
    pub hosts: Vec<HostPlan>,
    /// On which of them a job runs.
    pub placement: Strategy,
}

/// Something to do.
#[derive(Debug)]
pub enum Action {
    /// It is known whose a connection is: it is no stranger any more.
    Known(SessionId),
    /// Send a text.
    Send(SessionId, Utf8Bytes),
    /// Close a connection after what was sent.
    Close(SessionId, u16, &'static str),
    /// Countersign and store a receipt, and report it as [`Input::Stored`].
    Store {
        /// Which job of which validator it is about.
        job: JobKey,
        /// No other order has it.
        number: u64,
        /// With a started-receipt: the job, which is stored in the same transaction if the receipt is new.
        row: Option<Box<JobRow>>,
        /// What it says.
        payload: ReceiptPayload,
        /// The validator's signature, already checked.
        validator_signature: String,
    },
    /// Start an executor, report its end as [`Input::ExecutorEnded`], remove what it leaves, drop the lease, and report
    /// that as [`Input::SlotReturned`].
    Start(ExecutorSpec, Lease),
    /// Find the executor that an earlier process has started, and then do as for [`Action::Start`]; one that is gone
    /// has ended.
    Adopt(ExecutorSpec, Lease),
    /// Write what has changed of a job, with or before whatever is stored later.
    Save(JobChange),
    /// Tell an executor to end.
    End(String),
    /// The slot of an executor has come back: let go of the thread that had it.
    Reap(String),
    /// A host that is not in the settings any more has nothing left of this miner.
    Release(HostName),
    /// Remember what happened to a job.
    Note(JobKey, Option<ExecutorClass>, TraceEvent, String),
    /// A job has ended, with this outcome, and why if not well; remember and count it.
    Ended(JobKey, &'static str, Option<&'static str>),
    /// Count it.
    Count(Counted),
    /// Report an error of the outside: what is done about it, where it happened, of which host if it is one's, what it
    /// is.
    Error(ErrorClass, &'static str, Option<HostName>, String),
}

/// What is counted in the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// A job was accepted, so long after it was asked for.
    Accepted(Duration),
    /// An executor did not come to be ready, for this reason.
    StartFailed(&'static str),
    /// A slot went into quarantine, because of this.
    Quarantined(&'static str),
    /// A peer was over its rate of these.
    OverRate(&'static str),
    /// The numbers of slots do not add up.
    SlotBreach,
}

//! What the router is told, what it says is to be done, and what others see of it. Pure.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::base::ids::SessionId;
use crate::facilitator::answers;
use crate::identity::PublicKey;
use crate::protocol::{
    Response, V0JobStatusUpdate, V0MachineSpecsUpdate, V2JobRequest, ValidatorToFacilitator, answer,
};
use crate::store::jobs::{NewStatus, SpecsRow, StatusOutcome};

/// The time limits of a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouterConfig {
    /// A session without a heartbeat for longer gets no jobs.
    pub heartbeat_limit: Duration,
    /// A job of which the validator has reported nothing for so long has failed.
    pub received_limit: Duration,
    /// A job that was received has failed when nothing was heard of it for so long beyond its own limits.
    pub silence_margin: Duration,
    /// A session that has not authenticated for so long is closed.
    pub auth_limit: Duration,
    /// A session without a heartbeat for so long is closed; [`Duration::MAX`] for never.
    pub ghost_limit: Duration,
}

/// What kind of message a validator has sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageKind {
    /// An authentication.
    Authentication,
    /// A status of a job.
    Status,
    /// A miner's machine.
    Specs,
    /// A heartbeat.
    Heartbeat,
    /// One that cannot be read.
    Unread,
}

impl MessageKind {
    /// As a label of a metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Authentication => "authentication",
            Self::Status => "status",
            Self::Specs => "specs",
            Self::Heartbeat => "heartbeat",
            Self::Unread => "bad",
        }
    }
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handled {
    /// It was taken.
    Taken,
    /// It was answered with an error.
    Refused,
    /// It could not be handled, through a fault here.
    Failed,
    /// It came when its session was being closed, or at a stop, and was not looked at.
    Ignored,
}

impl Handled {
    /// As a label of a metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Ignored => "ignored",
        }
    }
}

/// A text from a validator, read on its connection's thread.
#[derive(Debug)]
pub enum Frame {
    /// An authentication: whose it is, or why it is not good.
    Authentication(Result<PublicKey, String>),
    /// A status of a job.
    Status(Box<V0JobStatusUpdate>),
    /// A miner's machine.
    Specs(Box<V0MachineSpecsUpdate>),
    /// A heartbeat.
    Heartbeat,
    /// Something that cannot be read, with its answer.
    Bad(Response),
    /// Something at which the reading itself failed: why.
    Poison(String),
}

impl Frame {
    /// Reads a text and checks its signature, if it has one.
    pub fn read(text: &str) -> Self {
        use ValidatorToFacilitator as M;
        match M::decode(text) {
            Ok(M::V0AuthenticationRequest(request)) => {
                Self::Authentication(request.verify().map_err(|error| error.to_string()))
            }
            Ok(M::V0JobStatusUpdate(update)) => Self::Status(Box::new(update)),
            Ok(M::V0MachineSpecsUpdate(update)) => Self::Specs(Box::new(update)),
            Ok(M::V0Heartbeat(_)) => Self::Heartbeat,
            Err(error) => Self::Bad(answer::by_facilitator(&error)),
        }
    }

    /// Its kind.
    pub fn kind(&self) -> MessageKind {
        match self {
            Self::Authentication(_) => MessageKind::Authentication,
            Self::Status(_) => MessageKind::Status,
            Self::Specs(_) => MessageKind::Specs,
            Self::Heartbeat => MessageKind::Heartbeat,
            Self::Bad(_) | Self::Poison(_) => MessageKind::Unread,
        }
    }
}

/// A job on its way to its validator.
#[derive(Debug)]
pub struct Dispatch<T> {
    /// The job.
    pub uuid: String,
    /// Its validator.
    pub validator: PublicKey,
    /// The message, as it is sent.
    pub text: String,
    /// What [`job_time`] says of it.
    pub job_time: Duration,
    /// Kept until the validator has reported anything of the job: the place it takes among the waiting jobs.
    pub ticket: T,
}

/// How long a job may take by its own limits, the start of its executor included.
pub fn job_time(request: &V2JobRequest) -> Duration {
    let limits = [
        &request.download_time_limit,
        &request.streaming_start_time_limit,
        &request.execution_time_limit,
        &request.upload_time_limit,
    ];
    let spin_up = request.executor_class.spin_up_time();
    limits.iter().fold(spin_up, |sum, limit| sum.saturating_add(limit.saturating_seconds()))
}

/// Something that happened.
#[derive(Debug)]
pub enum Input<T> {
    /// A connection was opened.
    Opened {
        /// Its number.
        id: SessionId,
        /// Its address.
        peer: String,
        /// What it says of its release.
        version: String,
    },
    /// A text has come.
    Frame(SessionId, Frame),
    /// A connection has ended.
    Closed(SessionId),
    /// A job is stored and may go out.
    Dispatch(Dispatch<T>),
    /// A job that was received before a restart.
    Resume {
        /// The job.
        uuid: String,
        /// Its validator.
        validator: PublicKey,
        /// What [`job_time`] says of it.
        job_time: Duration,
        /// How long ago it was last heard of.
        silent_for: Duration,
    },
    /// What became of a status.
    Stored {
        /// The session whose oldest waiting answer this is; none if the facilitator itself ended the job.
        session: Option<SessionId>,
        /// What the store did; none if it failed.
        outcome: Option<StatusOutcome>,
        /// The job, if the store knows that it has ended.
        ended: Option<String>,
    },
    /// A status that cannot be stored whatever is tried: why.
    Unstorable {
        /// The session whose oldest waiting answer this is; none if the facilitator itself ended the job.
        session: Option<SessionId>,
        /// The job.
        uuid: String,
        /// What is wrong with it.
        why: String,
    },
    /// Send a text to the live session of a validator, once, if there is one (see
    /// [`Router::reaches`](super::Router::reaches)).
    SendOnce {
        /// To whom.
        validator: PublicKey,
        /// What.
        text: String,
    },
    /// From now on these validators are known; sessions of others are closed with 3001.
    SetValidators(Vec<PublicKey>),
    /// Take no more frames: what is not taken is not answered, so its validator sends it again to the next start.
    Stop,
    /// Time has passed.
    Tick,
}

/// A change to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A status; what became of it is reported as [`Input::Stored`].
    Status {
        /// The session that waits for the answer; none if the facilitator itself ended the job.
        session: Option<SessionId>,
        /// The status.
        status: NewStatus,
    },
    /// A miner's machine.
    Specs(SpecsRow),
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// A connection is a validator's: it is no stranger any more.
    Known(SessionId),
    /// Send a text.
    Send(SessionId, String),
    /// Send what is queued, then close.
    Close(SessionId, CloseWhy),
    /// Store something.
    Store(Change),
    /// Count what became of a message.
    Handled(MessageKind, Handled),
    /// Tell of a message that could not be handled: its session, its kind, and why.
    Poison(SessionId, MessageKind, String),
    /// Tell of a piece of work that is given up, with its place.
    Error(&'static str, String),
    /// Write a line of the audit log.
    Note(Note),
}

/// Why the facilitator closes a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseWhy {
    /// The signature of its authentication is bad.
    BadSignature,
    /// It has not authenticated in time.
    NoAuthentication,
    /// Its validator is not known.
    UnknownValidator,
    /// Its validator is not known any more.
    Removed,
    /// Its validator has authenticated on a newer session.
    TakenOver,
    /// It sends no heartbeats.
    NoHeartbeat,
    /// An update cannot be stored now.
    NotStored,
}

impl CloseWhy {
    /// The close code.
    pub fn code(self) -> u16 {
        match self {
            Self::BadSignature | Self::NoAuthentication => answers::CLOSE_SIGNATURE,
            Self::UnknownValidator | Self::Removed => answers::CLOSE_UNKNOWN,
            Self::TakenOver => answers::CLOSE_TAKEN_OVER,
            Self::NoHeartbeat => answers::CLOSE_NO_HEARTBEAT,
            Self::NotStored => answers::CLOSE_NOT_STORED,
        }
    }

    /// The reason that goes with the code; empty where the Python facilitator gives none.
    pub fn reason(self) -> &'static str {
        match self {
            Self::BadSignature | Self::UnknownValidator | Self::Removed => "",
            Self::NoAuthentication => "no authentication in time",
            Self::TakenOver => "this validator has authenticated on a newer connection",
            Self::NoHeartbeat => "no heartbeat for too long",
            Self::NotStored => "the update cannot be stored now",
        }
    }

    /// As a label of a metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadSignature => "bad_signature",
            Self::NoAuthentication => "no_authentication",
            Self::UnknownValidator => "unknown_validator",
            Self::Removed => "removed",
            Self::TakenOver => "taken_over",
            Self::NoHeartbeat => "no_heartbeat",
            Self::NotStored => "not_stored",
        }
    }
}

/// What a line of the audit log is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum), value(rename_all = "snake_case"))]
#[serde(rename_all = "snake_case")]
pub enum AuditEvent {
    /// The facilitator has started.
    Started,
    /// It stops.
    Stopping,
    /// A validator has authenticated.
    Authenticated,
    /// An authentication was refused.
    AuthenticationFailed,
    /// The facilitator closes a session; `why` has the label of [`CloseWhy`].
    Closed,
    /// The connection of an authenticated session has ended.
    Disconnected,
    /// The lists of validators and users were read again.
    Reloaded,
    /// A job was put into the outbox of a session.
    JobSent,
    /// So it was, after it was sent on another session.
    JobSentAgain,
    /// The validator has reported the first status of a job; `why` has it.
    JobTakenUp,
    /// The facilitator ends a job, because of its validator.
    JobGivenUp,
    /// A message could not be handled, through a fault here.
    MessageFailed,
    /// Lines are missing here: `more` of them.
    Lost,
}

/// A line of the audit log: what happened, and to whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Note {
    /// What happened.
    pub event: AuditEvent,
    /// The validator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validator: Option<String>,
    /// The number of the connection since the facilitator's start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<u64>,
    /// The address of its peer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// The job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// More of it, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// How many like it were left out before it.
    #[serde(skip_serializing_if = "is_none_more")]
    pub more: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // As serde calls it.
fn is_none_more(more: &u64) -> bool {
    *more == 0
}

impl Note {
    /// A line that says only what happened.
    pub fn new(event: AuditEvent) -> Self {
        Self { event, validator: None, session: None, peer: None, job: None, why: None, more: 0 }
    }

    /// About a validator.
    pub fn of(self, validator: PublicKey) -> Self {
        Self { validator: Some(validator.to_ss58()), ..self }
    }

    /// About a session.
    pub fn on(self, id: SessionId) -> Self {
        Self { session: Some(id.0), ..self }
    }

    /// About the session of that address.
    pub fn from(self, peer: &str) -> Self {
        Self { peer: Some(peer.to_owned()), ..self }
    }

    /// About a job.
    pub fn job(self, uuid: &str) -> Self {
        Self { job: Some(uuid.to_owned()), ..self }
    }

    /// With more of it, in words.
    pub fn why(self, why: impl Into<String>) -> Self {
        Self { why: Some(why.into()), ..self }
    }
}

/// What others may see of the router, as of its last input.
#[derive(Debug, Clone)]
pub struct RouterStatus {
    /// Who may connect as a validator.
    pub validators: Arc<HashSet<PublicKey>>,
    /// All sessions, the oldest first.
    pub sessions: Vec<SessionInfo>,
    /// When each validator that has no session now, and had one since the start, was last heard of.
    pub seen: Arc<HashMap<PublicKey, Instant>>,
    /// Jobs of which the validator has reported nothing yet.
    pub waiting_jobs: usize,
}

impl RouterStatus {
    /// Whether a job for that validator would leave at once.
    pub fn reaches(&self, validator: &PublicKey, now: Instant) -> bool {
        self.sessions.iter().any(|session| session.validator.as_ref() == Some(validator) && session.is_live(now))
    }
}

/// One session, for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionInfo {
    /// Its number.
    pub id: SessionId,
    /// Who it is, once authenticated.
    pub validator: Option<PublicKey>,
    /// Its address.
    pub peer: Arc<str>,
    /// What it says of its release.
    pub version: Arc<str>,
    /// When its handshake was done.
    pub opened: Instant,
    /// Its last heartbeat.
    pub heartbeat: Instant,
    /// Until when it gets jobs; none if it gets none.
    pub live_until: Option<Instant>,
}

impl SessionInfo {
    /// Whether it would get jobs.
    pub fn is_live(&self, now: Instant) -> bool {
        self.live_until.is_some_and(|until| now <= until)
    }
}

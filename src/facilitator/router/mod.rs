//! Who is connected, which job goes to which session, and what is answered in which order. Pure: no thread, no socket,
//! no clock; it takes what happened and the moment, and says what to do.
//!
//! * A session's answers leave in the order of what they answer, each status update's only after it is stored.
//! * A job goes to the newest live session of its validator. Until the validator has reported anything about it, it
//!   goes again to the next session when that one ends, and to every session that authenticates anew; validators
//!   recognise the uuid. A validator that says nothing within [`RouterConfig::received_limit`] has the job ended as
//!   `horde_failed`.
//! * From then on a job ends as `horde_failed` once nothing was heard of it for all that its limits, the start of its
//!   executor and [`RouterConfig::silence_margin`] together allow.
//! * A session is live while its last heartbeat (or its authentication) is at most [`RouterConfig::heartbeat_limit`]
//!   old.
//!
//! The order of the actions is the order in which they must be done.

mod open;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::open::OpenJobs;
use super::answers;
use crate::base::ids::SessionId;
use crate::base::limits::LONGEST_TIME;
use crate::base::now::Now;
use crate::identity::PublicKey;
use crate::protocol::{
    HordeFailureDetails, HordeFailureReason, JobParticipantType, JobStatus, JobStatusMetadata, Response,
    V0JobStatusUpdate, V0MachineSpecsUpdate, V2JobRequest, ValidatorToFacilitator, answer,
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
    /// Send a text to the newest live session of a validator, once, if there is one (see [`Router::reaches`]).
    SendOnce {
        /// To whom.
        validator: PublicKey,
        /// What.
        text: String,
    },
    /// From now on these validators are known; sessions of others are closed with `answers::CLOSE_UNKNOWN`.
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
    Close(SessionId, u16, &'static str),
    /// Store something.
    Store(Change),
}

/// What others may see of the router, as of its last input. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RouterStatus {
    /// Who may connect as a validator.
    pub validators: Arc<HashSet<PublicKey>>,
    /// All sessions, the oldest first.
    pub sessions: Arc<[SessionInfo]>,
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
    pub peer: String,
    /// What it says of its release.
    pub version: String,
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

#[derive(Debug)]
struct Session {
    peer: String,
    version: String,
    opened: Instant,
    /// The validator and the rank among all authentications: the highest is the newest.
    authenticated: Option<(PublicKey, u64)>,
    heartbeat: Instant,
    /// A close was asked for: what still comes is not looked at, and nothing more is sent.
    closing: bool,
    /// Answers in their order; `None` waits for the store.
    answers: VecDeque<Option<String>>,
}

/// A job of which its validator has reported nothing yet.
#[derive(Debug)]
struct WaitingJob<T> {
    dispatch: Dispatch<T>,
    /// Jobs that are sent together are sent in the order in which they came.
    rank: u64,
    sent_to: Option<SessionId>,
}

/// The state. `T` is what a waiting job keeps (see [`Dispatch::ticket`]).
#[derive(Debug)]
pub struct Router<T> {
    config: RouterConfig,
    validators: Arc<HashSet<PublicKey>>,
    sessions: HashMap<SessionId, Session>,
    authentications: u64,
    /// Jobs of which the validator has reported nothing yet.
    jobs: HashMap<String, WaitingJob<T>>,
    dispatches: u64,
    /// Jobs of which it has reported something, until their end is stored.
    open: OpenJobs,
    /// In the order of their deadlines, as all have the same limit; those that are done with are skipped when due.
    job_deadlines: VecDeque<(Instant, String)>,
    auth_deadlines: VecDeque<(Instant, SessionId)>,
    /// Whether frames are taken no more.
    stopping: bool,
    /// [`RouterStatus::sessions`], until a session changes.
    shown: Option<Arc<[SessionInfo]>>,
    actions: Vec<Action>,
}

impl<T> Router<T> {
    /// A router without sessions or jobs.
    pub fn new(config: RouterConfig, validators: impl IntoIterator<Item = PublicKey>) -> Self {
        Self {
            config,
            validators: Arc::new(validators.into_iter().collect()),
            sessions: HashMap::new(),
            authentications: 0,
            jobs: HashMap::new(),
            dispatches: 0,
            open: OpenJobs::default(),
            job_deadlines: VecDeque::new(),
            auth_deadlines: VecDeque::new(),
            stopping: false,
            shown: None,
            actions: Vec::new(),
        }
    }

    /// Takes in what happened and says what to do.
    pub fn handle(&mut self, input: Input<T>, now: Now) -> Vec<Action> {
        match input {
            Input::Opened { id, peer, version } => self.opened(now.mono, id, peer, version),
            Input::Frame(..) if self.stopping => {}
            Input::Frame(id, frame) => self.frame(now, id, frame),
            Input::Closed(id) => self.closed(now.mono, id),
            Input::Dispatch(dispatch) => self.dispatch(now.mono, dispatch),
            Input::Resume { uuid, validator, job_time, silent_for } => {
                self.resume(now.mono, uuid, validator, job_time, silent_for);
            }
            Input::Stored { session, outcome, ended } => {
                if let Some(session) = session {
                    self.stored(session, outcome);
                }
                if let Some(uuid) = ended {
                    self.open.ended(&uuid);
                }
            }
            Input::SendOnce { validator, text } => {
                let session = self.newest_live(now.mono, validator);
                self.actions.extend(session.map(|id| Action::Send(id, text)));
            }
            Input::SetValidators(validators) => self.set_validators(validators),
            Input::Stop => self.stopping = true,
            Input::Tick => {}
        }
        self.tick(now);
        std::mem::take(&mut self.actions)
    }

    /// When [`Input::Tick`] is due next.
    pub fn next_wake(&self) -> Option<Instant> {
        let job = self.job_deadlines.front().map(|(when, _)| *when);
        let auth = self.auth_deadlines.front().map(|(when, _)| *when);
        job.into_iter().chain(auth).chain(self.open.next_deadline()).min()
    }

    /// Whether no answer waits for the store any more.
    pub fn is_settled(&self) -> bool {
        self.sessions.values().all(|session| session.answers.is_empty())
    }

    /// Whether an [`Input::SendOnce`] to that validator would reach a session.
    pub fn reaches(&self, validator: PublicKey, now: Instant) -> bool {
        self.newest_live(now, validator).is_some()
    }

    /// What others may see.
    pub fn status(&mut self) -> RouterStatus {
        let sessions = self.shown.take().unwrap_or_else(|| self.infos());
        self.shown = Some(sessions.clone());
        RouterStatus { validators: self.validators.clone(), sessions, waiting_jobs: self.jobs.len() }
    }

    fn infos(&self) -> Arc<[SessionInfo]> {
        let info = |(id, session): (&SessionId, &Session)| SessionInfo {
            id: *id,
            validator: session.authenticated.map(|(validator, _)| validator),
            peer: session.peer.clone(),
            version: session.version.clone(),
            opened: session.opened,
            heartbeat: session.heartbeat,
            live_until: session.authenticated.and_then(|_| self.live_until(session)),
        };
        let mut infos: Vec<SessionInfo> = self.sessions.iter().map(info).collect();
        infos.sort_by_key(|info| info.id);
        infos.into()
    }

    fn opened(&mut self, now: Instant, id: SessionId, peer: String, version: String) {
        let session = Session {
            peer,
            version,
            opened: now,
            authenticated: None,
            heartbeat: now,
            closing: false,
            answers: VecDeque::new(),
        };
        self.sessions.insert(id, session);
        self.shown = None;
        self.auth_deadlines.push_back((now + self.config.auth_limit, id));
    }

    /// A connection has gone: its jobs that were not received go to the next session.
    fn closed(&mut self, now: Instant, id: SessionId) {
        self.sessions.remove(&id);
        self.shown = None;
        let orphans: Vec<String> = self.jobs_where(|job| job.sent_to == Some(id));
        for uuid in orphans {
            self.send_job(now, &uuid);
        }
    }

    fn frame(&mut self, now: Now, id: SessionId, frame: Frame) {
        let Some(session) = self.sessions.get(&id).filter(|session| !session.closing) else { return };
        let validator = session.authenticated.map(|(validator, _)| validator);
        match (frame, validator) {
            (Frame::Bad(response), _) => self.answer(id, response),
            (Frame::Authentication(_), Some(_)) => self.answer(id, answers::already_authenticated()),
            (Frame::Authentication(verified), None) => self.authenticate(now.mono, id, verified),
            (_, None) => self.answer(id, answers::not_authenticated()),
            (Frame::Heartbeat, Some(validator)) => self.heartbeat(now.mono, id, validator),
            (Frame::Specs(update), Some(validator)) => self.specs(now, validator, *update),
            (Frame::Status(update), Some(validator)) => self.status_update(now, id, validator, *update),
        }
    }

    fn dispatch(&mut self, now: Instant, dispatch: Dispatch<T>) {
        let uuid = dispatch.uuid.clone();
        self.job_deadlines.push_back((now + self.config.received_limit, uuid.clone()));
        self.dispatches += 1;
        self.jobs.insert(uuid.clone(), WaitingJob { dispatch, rank: self.dispatches, sent_to: None });
        self.send_job(now, &uuid);
    }

    /// The validator of a job of before a restart has at least the margin to come back.
    fn resume(&mut self, now: Instant, uuid: String, validator: PublicKey, job_time: Duration, silent_for: Duration) {
        let limit = self.silence_limit(job_time);
        let left = limit.saturating_sub(silent_for).max(self.config.silence_margin);
        self.open.insert(uuid, validator, limit, now + left.min(LONGEST_TIME));
    }

    /// What became of the oldest status of that session which waits for the store.
    ///
    /// A status that could not be stored is not answered: the session is closed, and the validator sends it again.
    fn stored(&mut self, id: SessionId, outcome: Option<StatusOutcome>) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let answer = match outcome {
            Some(StatusOutcome::Stored | StatusOutcome::StoredLate) => answers::success(),
            Some(StatusOutcome::Duplicate) => answers::integrity_error(),
            Some(StatusOutcome::NotFound) => answers::job_not_found(),
            None => {
                session.answers.clear();
                self.close(id, 1011, "the update cannot be stored now");
                return;
            }
        };
        if let Some(waiting) = session.answers.iter_mut().find(|answer| answer.is_none()) {
            *waiting = Some(answers::frame(answer));
        }
        self.flush(id);
    }

    fn set_validators(&mut self, validators: Vec<PublicKey>) {
        self.validators = Arc::new(validators.into_iter().collect());
        let unknown: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.authenticated.is_some_and(|(key, _)| !self.validators.contains(&key)))
            .map(|(id, _)| *id)
            .collect();
        for id in unknown {
            self.close(id, answers::CLOSE_UNKNOWN, "");
        }
    }

    /// Does what is due.
    fn tick(&mut self, now: Now) {
        while let Some(uuid) = pop_due(&mut self.job_deadlines, now.mono) {
            self.give_up(now, &uuid);
        }
        for (uuid, validator, limit) in self.open.take_silent(now.mono) {
            let message = format!("validator {validator} has reported nothing of the job for {limit:.0?}");
            self.fail(now, uuid, validator, message);
        }
        while let Some(id) = pop_due(&mut self.auth_deadlines, now.mono) {
            if self.sessions.get(&id).is_some_and(|session| session.authenticated.is_none() && !session.closing) {
                self.answer(id, answers::not_authenticated());
                self.close(id, answers::CLOSE_SIGNATURE, "no authentication in time");
            }
        }
    }

    fn authenticate(&mut self, now: Instant, id: SessionId, verified: Result<PublicKey, String>) {
        let validator = match verified {
            Ok(validator) => validator,
            Err(error) => {
                log::info!("{id}: bad authentication: {error}");
                self.answer(id, answers::signature_invalid());
                return self.close(id, answers::CLOSE_SIGNATURE, "");
            }
        };
        if !self.validators.contains(&validator) {
            log::info!("{id}: unknown validator {validator}");
            self.answer(id, answers::validator_not_found(&validator));
            return self.close(id, answers::CLOSE_UNKNOWN, "");
        }
        self.authentications += 1;
        if let Some(session) = self.sessions.get_mut(&id) {
            session.authenticated = Some((validator, self.authentications));
            session.heartbeat = now;
        }
        self.shown = None;
        self.actions.push(Action::Known(id));
        self.answer(id, answers::success());
        // An older session that got them may be dead without our knowing, so the new one gets them as well.
        for uuid in self.jobs_where(|job| job.dispatch.validator == validator) {
            self.send_job(now, &uuid);
        }
    }

    fn heartbeat(&mut self, now: Instant, id: SessionId, validator: PublicKey) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.heartbeat = now;
        }
        self.shown = None;
        for uuid in self.jobs_where(|job| job.dispatch.validator == validator && job.sent_to.is_none()) {
            self.send_job(now, &uuid);
        }
    }

    fn specs(&mut self, now: Now, validator: PublicKey, update: V0MachineSpecsUpdate) {
        // Filed under who says it, not under whom the message names.
        self.actions.push(Action::Store(Change::Specs(SpecsRow {
            validator: validator.to_ss58(),
            miner: update.miner_hotkey,
            specs: serde_json::Value::Object(update.specs).to_string(),
            batch: update.batch_id,
            at: now.unix_micros(),
        })));
    }

    fn status_update(&mut self, now: Now, id: SessionId, validator: PublicKey, update: V0JobStatusUpdate) {
        if self.jobs.get(&update.uuid).is_some_and(|job| job.dispatch.validator == validator) {
            self.now_open(now.mono, &update.uuid);
        }
        self.open.reported_on(now.mono, &update.uuid, validator);
        if let Some(session) = self.sessions.get_mut(&id) {
            session.answers.push_back(None);
        }
        self.store_status(now, Some(id), validator, update);
    }

    fn store_status(&mut self, now: Now, session: Option<SessionId>, validator: PublicKey, update: V0JobStatusUpdate) {
        let status = NewStatus {
            uuid: update.uuid,
            validator: validator.to_ss58(),
            status: update.status.as_str().to_owned(),
            metadata: update.metadata.map(|metadata| metadata.encode()),
            terminal: update.status.is_terminal(),
            at: now.unix_micros(),
        };
        self.actions.push(Action::Store(Change::Status { session, status }));
    }

    /// A job waits for its validator no more; it is watched until its end is stored.
    fn now_open(&mut self, now: Instant, uuid: &str) -> Option<WaitingJob<T>> {
        let job = self.jobs.remove(uuid)?;
        let limit = self.silence_limit(job.dispatch.job_time);
        self.open.insert(uuid.to_owned(), job.dispatch.validator, limit, now + limit);
        Some(job)
    }

    fn silence_limit(&self, job_time: Duration) -> Duration {
        job_time.saturating_add(self.config.silence_margin).min(LONGEST_TIME)
    }

    /// Ends a job that no validator has taken up.
    fn give_up(&mut self, now: Now, uuid: &str) {
        let Some(WaitingJob { dispatch: Dispatch { uuid, validator, .. }, sent_to, .. }) =
            self.now_open(now.mono, uuid)
        else {
            return;
        };
        let within = self.config.received_limit;
        let message = match sent_to {
            Some(_) => format!("validator {validator} got the job but did not acknowledge it within {within:.0?}"),
            None => format!("validator {validator} was not connected within {within:.0?}"),
        };
        self.fail(now, uuid, validator, message);
    }

    /// Ends a job ourselves, because of its validator.
    fn fail(&mut self, now: Now, uuid: String, validator: PublicKey, message: String) {
        log::warn!("job {uuid}: {message}");
        let details = HordeFailureDetails {
            reported_by: JobParticipantType::Facilitator,
            reason: HordeFailureReason::GenericError,
            message,
            context: None,
        };
        let metadata = JobStatusMetadata {
            miner_response: None,
            job_rejection_details: None,
            job_failure_details: None,
            horde_failure_details: Some(details),
            streaming_details: None,
            extra: Default::default(),
        };
        let update = V0JobStatusUpdate { uuid, status: JobStatus::HordeFailed, metadata: Some(metadata) };
        self.store_status(now, None, validator, update);
    }

    fn jobs_where(&self, wanted: impl Fn(&WaitingJob<T>) -> bool) -> Vec<String> {
        let mut found: Vec<_> = self.jobs.iter().filter(|(_, job)| wanted(job)).collect();
        found.sort_by_key(|(_, job)| job.rank);
        found.into_iter().map(|(uuid, _)| uuid.clone()).collect()
    }

    fn send_job(&mut self, now: Instant, uuid: &str) {
        let Some(validator) = self.jobs.get(uuid).map(|job| job.dispatch.validator) else { return };
        let session = self.newest_live(now, validator);
        if let Some(job) = self.jobs.get_mut(uuid) {
            job.sent_to = session;
            self.actions.extend(session.map(|id| Action::Send(id, job.dispatch.text.clone())));
        }
    }

    fn newest_live(&self, now: Instant, validator: PublicKey) -> Option<SessionId> {
        let of_validator = self.sessions.iter().filter_map(|(id, session)| match session.authenticated {
            Some((key, rank)) if key == validator && self.is_live(now, session) => Some((rank, *id)),
            _ => None,
        });
        of_validator.max().map(|(_, id)| id)
    }

    fn live_until(&self, session: &Session) -> Option<Instant> {
        (!session.closing).then(|| session.heartbeat + self.config.heartbeat_limit.min(LONGEST_TIME))
    }

    fn is_live(&self, now: Instant, session: &Session) -> bool {
        self.live_until(session).is_some_and(|until| now <= until)
    }

    fn answer(&mut self, id: SessionId, response: Response) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.answers.push_back(Some(answers::frame(response)));
        }
        self.flush(id);
    }

    fn flush(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        while let Some(Some(_)) = session.answers.front() {
            let text = session.answers.pop_front().flatten();
            self.actions.extend(text.map(|text| Action::Send(id, text)));
        }
    }

    fn close(&mut self, id: SessionId, code: u16, reason: &'static str) {
        if let Some(session) = self.sessions.get_mut(&id)
            && !session.closing
        {
            session.closing = true;
            session.answers.clear();
            self.shown = None;
            self.actions.push(Action::Close(id, code, reason));
        }
    }
}

fn pop_due<K>(deadlines: &mut VecDeque<(Instant, K)>, now: Instant) -> Option<K> {
    if deadlines.front()?.0 > now {
        return None;
    }
    deadlines.pop_front().map(|(_, what)| what)
}

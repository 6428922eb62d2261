//! Who is connected, which job goes to which session, and what is answered in which order. Pure: no thread, no socket, no
//! clock; it takes the moment and says what to do.
//!
//! * A session's answers leave in the order of what they answer, each status update's only after it is stored.
//! * A job goes to the newest live session of its validator (D-21). Until the validator has said anything about it, it goes
//!   again to the next session when that one ends, and to every session that authenticates anew; validators recognise the
//!   uuid. A validator that says nothing within [`RouterConfig::received_limit`] has the job ended as `horde_failed`.
//! * From then on a job ends as `horde_failed` once nothing was heard of it for all that its limits, the start of its
//!   executor and [`RouterConfig::silence_margin`] together allow.
//! * A session is live while its last heartbeat (or its authentication) is at most [`RouterConfig::heartbeat_limit`] old.

mod open;

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use self::open::OpenJobs;
use super::answers;
use crate::base::ids::SessionId;
use crate::identity::PublicKey;
use crate::protocol::{
    HordeFailureDetails, HordeFailureReason, JobParticipantType, JobStatus, JobStatusMetadata, Response,
    V0AuthenticationRequest, V0JobStatusUpdate, V0MachineSpecsUpdate, V2JobRequest, ValidatorToFacilitator,
};
use crate::store::jobs::{NewStatus, SpecsRow, StatusOutcome};

/// The time limits of a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouterConfig {
    /// A session without a heartbeat for longer gets no jobs.
    pub heartbeat_limit: Duration,
    /// A job of which the validator has said nothing for so long has failed.
    pub received_limit: Duration,
    /// A job that was received has failed when nothing was heard of it for so long beyond its own limits.
    pub silence_margin: Duration,
    /// A session that has not authenticated for so long is closed.
    pub auth_limit: Duration,
}

/// A point in time on both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// For limits.
    pub now: Instant,
    /// For the records: microseconds since 1970.
    pub unix_micros: i64,
}

/// A text from a validator.
#[derive(Debug)]
pub enum Frame {
    /// A message.
    Message(Box<ValidatorToFacilitator>),
    /// Something that cannot be read, with its answer.
    Bad(Response),
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
    /// Kept until the validator has said anything of the job: the place it takes among the waiting jobs.
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

/// A hundred years, for limits that no clock can hold.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A change to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A status; [`Router::stored`] is told what became of it.
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
    /// Send a text.
    Send(SessionId, String),
    /// Send what is queued, then close.
    Close(SessionId, u16, &'static str),
    /// Store something.
    Store(Change),
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
    /// Time since the handshake.
    pub age: Duration,
    /// Time since the last heartbeat.
    pub since_heartbeat: Duration,
    /// Whether it would get jobs.
    pub live: bool,
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

#[derive(Debug)]
struct Job<T> {
    dispatch: Dispatch<T>,
    /// Jobs that are sent together are sent in the order in which they came.
    rank: u64,
    sent_to: Option<SessionId>,
}

/// The state. `T` is what a waiting job keeps (see [`Dispatch::ticket`]).
#[derive(Debug)]
pub struct Router<T> {
    config: RouterConfig,
    validators: HashSet<PublicKey>,
    sessions: HashMap<SessionId, Session>,
    authentications: u64,
    /// Jobs of which the validator has said nothing yet.
    jobs: HashMap<String, Job<T>>,
    dispatches: u64,
    /// Jobs of which it has said something, until their end is stored.
    open: OpenJobs,
    /// In the order of their deadlines, as all have the same limit; those that are done with are skipped when due.
    job_deadlines: VecDeque<(Instant, String)>,
    auth_deadlines: VecDeque<(Instant, SessionId)>,
    actions: Vec<Action>,
}

impl<T> Router<T> {
    /// A router without sessions or jobs.
    pub fn new(config: RouterConfig, validators: impl IntoIterator<Item = PublicKey>) -> Self {
        Self {
            config,
            validators: validators.into_iter().collect(),
            sessions: HashMap::new(),
            authentications: 0,
            jobs: HashMap::new(),
            dispatches: 0,
            open: OpenJobs::default(),
            job_deadlines: VecDeque::new(),
            auth_deadlines: VecDeque::new(),
            actions: Vec::new(),
        }
    }

    /// What the calls since the last time ask for, in order.
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// A connection has come.
    pub fn opened(&mut self, now: Instant, id: SessionId, peer: String, version: String) {
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
        self.auth_deadlines.push_back((now + self.config.auth_limit, id));
    }

    /// A connection has gone: its jobs that were not received go to the next session.
    pub fn closed(&mut self, now: Instant, id: SessionId) {
        self.sessions.remove(&id);
        let orphans: Vec<String> = self.jobs_where(|job| job.sent_to == Some(id));
        for uuid in orphans {
            self.send_job(now, &uuid);
        }
    }

    /// A text has come.
    pub fn frame(&mut self, at: Moment, id: SessionId, frame: Frame) {
        let Some(session) = self.sessions.get(&id).filter(|session| !session.closing) else { return };
        let validator = session.authenticated.map(|(validator, _)| validator);
        let message = match frame {
            Frame::Bad(response) => return self.answer(id, response),
            Frame::Message(message) => *message,
        };
        match (message, validator) {
            (ValidatorToFacilitator::V0AuthenticationRequest(_), Some(_)) => {
                self.answer(id, answers::already_authenticated());
            }
            (ValidatorToFacilitator::V0AuthenticationRequest(request), None) => {
                self.authenticate(at.now, id, &request);
            }
            (_, None) => self.answer(id, answers::not_authenticated()),
            (ValidatorToFacilitator::V0Heartbeat(_), Some(validator)) => self.heartbeat(at.now, id, validator),
            (ValidatorToFacilitator::V0MachineSpecsUpdate(update), Some(validator)) => {
                self.specs(at, validator, update);
            }
            (ValidatorToFacilitator::V0JobStatusUpdate(update), Some(validator)) => {
                self.status(at, id, validator, update);
            }
        }
    }

    /// A job is stored and may go out.
    pub fn dispatch(&mut self, now: Instant, dispatch: Dispatch<T>) {
        let uuid = dispatch.uuid.clone();
        self.job_deadlines.push_back((now + self.config.received_limit, uuid.clone()));
        self.dispatches += 1;
        self.jobs.insert(uuid.clone(), Job { dispatch, rank: self.dispatches, sent_to: None });
        self.send_job(now, &uuid);
    }

    /// A job that was received before a restart, `silent_for` after it was last heard of; `job_time` is what [`job_time`]
    /// says. Its validator has at least the margin to come back.
    pub fn resume(
        &mut self,
        now: Instant,
        uuid: String,
        validator: PublicKey,
        job_time: Duration,
        silent_for: Duration,
    ) {
        let limit = self.silence_limit(job_time);
        let left = limit.saturating_sub(silent_for).max(self.config.silence_margin);
        self.open.insert(uuid, validator, limit, now + left.min(FOREVER));
    }

    /// Sends a text to the newest live session of a validator, once; false if there is none.
    pub fn send_once(&mut self, now: Instant, validator: PublicKey, text: String) -> bool {
        let session = self.newest_live(now, validator);
        self.actions.extend(session.map(|id| Action::Send(id, text)));
        session.is_some()
    }

    /// What became of the oldest status of that session which waits for the store.
    ///
    /// A status that could not be stored is not answered: the session is closed, and the validator sends it again.
    pub fn stored(&mut self, id: SessionId, outcome: Option<StatusOutcome>) {
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

    /// The store knows that a job has ended.
    pub fn ended(&mut self, uuid: &str) {
        self.open.ended(uuid);
    }

    /// From now on these validators are known; sessions of others are closed with [`answers::CLOSE_UNKNOWN`].
    pub fn set_validators(&mut self, validators: impl IntoIterator<Item = PublicKey>) {
        self.validators = validators.into_iter().collect();
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

    /// Whether that validator may connect.
    pub fn knows(&self, validator: &PublicKey) -> bool {
        self.validators.contains(validator)
    }

    /// Does what is due.
    pub fn tick(&mut self, at: Moment) {
        while let Some(uuid) = pop_due(&mut self.job_deadlines, at.now) {
            self.give_up(at, &uuid);
        }
        for (uuid, validator, limit) in self.open.take_silent(at.now) {
            self.fail(
                at,
                uuid,
                validator,
                format!("validator {validator} has said nothing of the job for {limit:.0?}"),
            );
        }
        while let Some(id) = pop_due(&mut self.auth_deadlines, at.now) {
            if self.sessions.get(&id).is_some_and(|session| session.authenticated.is_none() && !session.closing) {
                self.answer(id, answers::not_authenticated());
                self.close(id, answers::CLOSE_SIGNATURE, "no authentication in time");
            }
        }
    }

    /// When [`Router::tick`] has something to do next.
    pub fn next_deadline(&self) -> Option<Instant> {
        let job = self.job_deadlines.front().map(|(when, _)| *when);
        let auth = self.auth_deadlines.front().map(|(when, _)| *when);
        job.into_iter().chain(auth).chain(self.open.next_deadline()).min()
    }

    /// Whether any answer still waits for the store.
    pub fn is_settled(&self) -> bool {
        self.sessions.values().all(|session| session.answers.is_empty())
    }

    /// Jobs of which the validator has said nothing yet.
    pub fn waiting_jobs(&self) -> usize {
        self.jobs.len()
    }

    /// All sessions, the oldest first.
    pub fn sessions(&self, now: Instant) -> Vec<SessionInfo> {
        let mut sessions: Vec<SessionInfo> = self
            .sessions
            .iter()
            .map(|(id, session)| SessionInfo {
                id: *id,
                validator: session.authenticated.map(|(validator, _)| validator),
                peer: session.peer.clone(),
                version: session.version.clone(),
                age: now.saturating_duration_since(session.opened),
                since_heartbeat: now.saturating_duration_since(session.heartbeat),
                live: session.authenticated.is_some() && self.is_live(now, session),
            })
            .collect();
        sessions.sort_by_key(|session| session.id);
        sessions
    }

    fn authenticate(&mut self, now: Instant, id: SessionId, request: &V0AuthenticationRequest) {
        let validator = match request.verify() {
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
        self.answer(id, answers::success());
        // An older session that got them may be a ghost, so the new one gets them as well (D-21).
        for uuid in self.jobs_where(|job| job.dispatch.validator == validator) {
            self.send_job(now, &uuid);
        }
    }

    fn heartbeat(&mut self, now: Instant, id: SessionId, validator: PublicKey) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.heartbeat = now;
        }
        for uuid in self.jobs_where(|job| job.dispatch.validator == validator && job.sent_to.is_none()) {
            self.send_job(now, &uuid);
        }
    }

    fn specs(&mut self, at: Moment, validator: PublicKey, update: V0MachineSpecsUpdate) {
        // Filed under who says it, not under whom the message names.
        self.actions.push(Action::Store(Change::Specs(SpecsRow {
            validator: validator.to_ss58(),
            miner: update.miner_hotkey,
            specs: serde_json::Value::Object(update.specs).to_string(),
            batch: update.batch_id,
            at: at.unix_micros,
        })));
    }

    fn status(&mut self, at: Moment, id: SessionId, validator: PublicKey, update: V0JobStatusUpdate) {
        if self.jobs.get(&update.uuid).is_some_and(|job| job.dispatch.validator == validator) {
            self.now_open(at.now, &update.uuid);
        }
        self.open.heard_of(at.now, &update.uuid, validator);
        if let Some(session) = self.sessions.get_mut(&id) {
            session.answers.push_back(None);
        }
        self.store_status(at, Some(id), validator, update);
    }

    fn store_status(
        &mut self,
        at: Moment,
        session: Option<SessionId>,
        validator: PublicKey,
        update: V0JobStatusUpdate,
    ) {
        let status = NewStatus {
            uuid: update.uuid,
            validator: validator.to_ss58(),
            status: update.status.as_str().to_owned(),
            metadata: update.metadata.map(|metadata| metadata.encode()),
            terminal: update.status.is_terminal(),
            at: at.unix_micros,
        };
        self.actions.push(Action::Store(Change::Status { session, status }));
    }

    /// A job waits for its validator no more; it is watched until its end is stored.
    fn now_open(&mut self, now: Instant, uuid: &str) -> Option<Job<T>> {
        let job = self.jobs.remove(uuid)?;
        let limit = self.silence_limit(job.dispatch.job_time);
        self.open.insert(uuid.to_owned(), job.dispatch.validator, limit, now + limit);
        Some(job)
    }

    fn silence_limit(&self, job_time: Duration) -> Duration {
        job_time.saturating_add(self.config.silence_margin).min(FOREVER)
    }

    /// Ends a job that no validator has taken up.
    fn give_up(&mut self, at: Moment, uuid: &str) {
        let Some(Job { dispatch: Dispatch { uuid, validator, .. }, sent_to, .. }) = self.now_open(at.now, uuid) else {
            return;
        };
        let within = self.config.received_limit;
        let message = match sent_to {
            Some(_) => format!("validator {validator} got the job but did not acknowledge it within {within:.0?}"),
            None => format!("validator {validator} was not connected within {within:.0?}"),
        };
        self.fail(at, uuid, validator, message);
    }

    /// Ends a job ourselves, because of its validator.
    fn fail(&mut self, at: Moment, uuid: String, validator: PublicKey, message: String) {
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
        self.store_status(at, None, validator, update);
    }

    fn jobs_where(&self, wanted: impl Fn(&Job<T>) -> bool) -> Vec<String> {
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

    fn is_live(&self, now: Instant, session: &Session) -> bool {
        !session.closing && now.saturating_duration_since(session.heartbeat) <= self.config.heartbeat_limit
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

#[cfg(test)]
mod tests;

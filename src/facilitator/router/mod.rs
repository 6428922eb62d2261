//! Who is connected, which job goes to which session, and what is answered in which order. Pure: no thread, no socket,
//! no clock; it takes what happened and the moment, and says what to do.
//!
//! * A session's answers leave in the order of what they answer, each status update's only after it is stored.
//! * A validator has one session: when it authenticates on a new one, the older one is closed.
//! * A job goes to the session of its validator if that is live. Until the validator has reported anything about it, it
//!   goes again to every session that takes the place of that one; validators recognise the uuid. A validator that says
//!   nothing within [`RouterConfig::received_limit`] has the job ended as `horde_failed`.
//! * From then on a job ends as `horde_failed` once nothing was heard of it for all that its limits, the start of its
//!   executor and [`RouterConfig::silence_margin`] together allow.
//! * A session is live while its last heartbeat (or its authentication) is at most [`RouterConfig::heartbeat_limit`]
//!   old, and is closed when that is [`RouterConfig::ghost_limit`] old.
//! * A message that cannot be handled, through a fault here, costs that message: it is answered with an error.
//!
//! The order of the actions is the order in which they must be done.

mod open;
mod sessions;
mod types;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::open::OpenJobs;
use self::sessions::Sessions;
pub use self::types::{
    Action, AuditEvent, Change, CloseWhy, Dispatch, Frame, Handled, Input, MessageKind, Note, RouterConfig,
    RouterStatus, SessionInfo, job_time,
};
use super::answers;
use crate::base::ids::SessionId;
use crate::base::limits::LONGEST_TIME;
use crate::base::now::Now;
use crate::base::panics::contained;
use crate::identity::PublicKey;
use crate::protocol::{
    HordeFailureDetails, HordeFailureReason, JobParticipantType, JobStatus, JobStatusMetadata, Response,
    V0JobStatusUpdate, V0MachineSpecsUpdate,
};
use crate::store::jobs::{NewStatus, SpecsRow, StatusOutcome};

/// A job of which its validator has reported nothing yet.
#[derive(Debug)]
struct WaitingJob<T> {
    dispatch: Dispatch<T>,
    /// Jobs that are sent together are sent in the order in which they came.
    rank: u64,
    sent_to: Option<SessionId>,
    was_sent: bool,
}

/// The state. `T` is what a waiting job keeps (see [`Dispatch::ticket`]).
#[derive(Debug)]
pub struct Router<T> {
    config: RouterConfig,
    validators: Arc<HashSet<PublicKey>>,
    sessions: Sessions,
    /// Jobs of which the validator has reported nothing yet.
    jobs: HashMap<String, WaitingJob<T>>,
    /// The same by validator, by their ranks: what happens to one validator costs nothing for the jobs of others.
    jobs_of: HashMap<PublicKey, BTreeMap<u64, String>>,
    dispatches: u64,
    /// Jobs of which it has reported something, until their end is stored.
    open: OpenJobs,
    /// In the order of their deadlines, as all have the same limit; those that are done with are skipped when due.
    job_deadlines: VecDeque<(Instant, String)>,
    /// Whether frames are taken no more.
    stopping: bool,
    actions: Vec<Action>,
}

impl<T> Router<T> {
    /// A router without sessions or jobs.
    pub fn new(config: RouterConfig, validators: impl IntoIterator<Item = PublicKey>) -> Self {
        Self {
            config,
            validators: Arc::new(validators.into_iter().collect()),
            sessions: Sessions::new(config.heartbeat_limit, config.auth_limit, config.ghost_limit),
            jobs: HashMap::new(),
            jobs_of: HashMap::new(),
            dispatches: 0,
            open: OpenJobs::default(),
            job_deadlines: VecDeque::new(),
            stopping: false,
            actions: Vec::new(),
        }
    }

    /// Takes in what happened and says what to do.
    pub fn handle(&mut self, input: Input<T>, now: Now) -> Vec<Action> {
        match input {
            Input::Opened { id, peer, version } => self.sessions.open(now.mono, id, peer, version),
            Input::Frame(_, frame) if self.stopping => self.handled(frame.kind(), Handled::Ignored),
            Input::Frame(id, frame) => self.contain(now, id, frame),
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
            Input::Unstorable { session, uuid, why } => self.unstorable(session, &uuid, why),
            Input::SendOnce { validator, text } => {
                let session = self.sessions.live(now.mono, validator);
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
        job.into_iter().chain(self.sessions.next_deadline()).chain(self.open.next_deadline()).min()
    }

    /// Whether no answer waits for the store any more.
    pub fn is_settled(&self) -> bool {
        self.sessions.is_settled()
    }

    /// Whether an [`Input::SendOnce`] to that validator would reach a session.
    pub fn reaches(&self, validator: PublicKey, now: Instant) -> bool {
        self.sessions.live(now, validator).is_some()
    }

    /// Brings an earlier [`Router::status`] up to date. It costs what has changed since, however many sessions there
    /// are.
    pub fn show(&mut self, shown: &mut RouterStatus) {
        self.sessions.show(&mut shown.sessions);
        shown.validators = self.validators.clone();
        self.sessions.show_seen(&mut shown.seen);
        shown.waiting_jobs = self.jobs.len();
    }

    /// What others may see.
    pub fn status(&self) -> RouterStatus {
        RouterStatus {
            validators: self.validators.clone(),
            sessions: self.sessions.infos(),
            seen: Arc::new(self.sessions.seen()),
            waiting_jobs: self.jobs.len(),
        }
    }

    /// A connection has gone: its jobs that were not received go to the session that has taken its place.
    fn closed(&mut self, now: Instant, id: SessionId) {
        if let Some(session) = self.sessions.remove(id)
            && let Some(validator) = session.validator
        {
            self.note(Note::new(AuditEvent::Disconnected).of(validator).on(id).from(&session.peer));
            for orphan in self.jobs_of(validator, |job| job.sent_to == Some(id)) {
                self.send_job(now, &orphan);
            }
        }
    }

    /// Takes a message; one at which this fails costs that message alone.
    fn contain(&mut self, now: Now, id: SessionId, frame: Frame) {
        let kind = frame.kind();
        let (owed, asked) = (self.sessions.owed(id), self.actions.len());
        let authenticated = self.sessions.get(id).is_some_and(|session| session.validator.is_some());
        let Err(why) = contained(|| self.frame(now, id, frame)) else { return };
        // As if it had not come: what was to be done is not, but for jobs that were found to be taken up.
        let undone = self.actions.split_off(asked);
        self.actions.extend(undone.into_iter().filter(|action| matches!(action, Action::Close(..))));
        self.sessions.truncate_answers(id, owed);
        if !authenticated {
            self.sessions.forget(id);
        }
        self.failed(id, kind, why);
    }

    fn failed(&mut self, id: SessionId, kind: MessageKind, why: String) {
        match kind {
            MessageKind::Status => self.answer(id, answers::internal_error("job.internal_error")),
            MessageKind::Authentication => self.answer(id, answers::internal_error("auth.internal_error")),
            MessageKind::Unread => self.answer(id, answers::internal_error("internal_error")),
            // Nobody waits for an answer to these, so one would be taken for that of a status.
            MessageKind::Specs | MessageKind::Heartbeat => {}
        }
        self.handled(kind, Handled::Failed);
        self.actions.push(Action::Poison(id, kind, why));
    }

    fn frame(&mut self, now: Now, id: SessionId, frame: Frame) {
        let kind = frame.kind();
        let Some(session) = self.sessions.get(id).filter(|session| !session.closing) else {
            return self.handled(kind, Handled::Ignored);
        };
        let handled = match (frame, session.validator) {
            (Frame::Poison(why), _) => return self.failed(id, kind, why),
            (Frame::Bad(response), _) => self.refuse(id, response),
            (Frame::Authentication(_), Some(_)) => self.refuse(id, answers::already_authenticated()),
            (Frame::Authentication(verified), None) => self.authenticate(now.mono, id, verified),
            (_, None) => self.refuse(id, answers::not_authenticated()),
            (Frame::Heartbeat, Some(validator)) => self.heartbeat(now.mono, id, validator),
            (Frame::Specs(update), Some(validator)) => self.specs(now, validator, *update),
            // Counted once it is stored.
            (Frame::Status(update), Some(validator)) => return self.status_update(now, id, validator, *update),
        };
        self.handled(kind, handled);
    }

    fn handled(&mut self, kind: MessageKind, handled: Handled) {
        self.actions.push(Action::Handled(kind, handled));
    }

    fn note(&mut self, note: Note) {
        self.actions.push(Action::Note(note));
    }

    fn dispatch(&mut self, now: Instant, dispatch: Dispatch<T>) {
        let uuid = dispatch.uuid.clone();
        self.job_deadlines.push_back((now + self.config.received_limit, uuid.clone()));
        self.dispatches += 1;
        let rank = self.dispatches;
        self.no_longer_waits(&uuid);
        self.jobs_of.entry(dispatch.validator).or_default().insert(rank, uuid.clone());
        self.jobs.insert(uuid.clone(), WaitingJob { dispatch, rank, sent_to: None, was_sent: false });
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
        let (handled, answer) = match outcome {
            Some(StatusOutcome::Stored | StatusOutcome::StoredLate) => (Handled::Taken, answers::success()),
            Some(StatusOutcome::Duplicate) => (Handled::Refused, answers::integrity_error()),
            Some(StatusOutcome::NotFound) => (Handled::Refused, answers::job_not_found()),
            None => {
                self.handled(MessageKind::Status, Handled::Failed);
                return self.close(id, CloseWhy::NotStored);
            }
        };
        self.handled(MessageKind::Status, handled);
        self.sessions.fill_answer(id, answers::frame(answer));
        self.flush(id);
    }

    /// A status that the store cannot take, which is no reason to send it again on another connection.
    fn unstorable(&mut self, session: Option<SessionId>, uuid: &str, why: String) {
        let Some(id) = session else {
            // Tried again when the job is due once more.
            let what = format!("job {uuid}: its end cannot be stored: {why}");
            return self.actions.push(Action::Error("database", what));
        };
        self.sessions.fill_answer(id, answers::frame(answers::internal_error("job.internal_error")));
        self.flush(id);
        self.handled(MessageKind::Status, Handled::Failed);
        self.actions.push(Action::Poison(id, MessageKind::Status, format!("job {uuid}: {why}")));
    }

    fn set_validators(&mut self, validators: Vec<PublicKey>) {
        self.validators = Arc::new(validators.into_iter().collect());
        for id in self.sessions.keep(&self.validators) {
            self.close(id, CloseWhy::Removed);
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
        for (id, why) in self.sessions.take_overdue(now.mono) {
            if why == CloseWhy::NoAuthentication {
                self.answer(id, answers::not_authenticated());
            }
            self.close(id, why);
        }
    }

    fn authenticate(&mut self, now: Instant, id: SessionId, verified: Result<PublicKey, String>) -> Handled {
        let validator = match verified {
            Ok(validator) => validator,
            Err(error) => {
                log::info!("{id}: bad authentication: {error}");
                self.answer(id, answers::signature_invalid());
                self.close(id, CloseWhy::BadSignature);
                return Handled::Refused;
            }
        };
        if !self.validators.contains(&validator) {
            log::info!("{id}: unknown validator {validator}");
            self.answer(id, answers::validator_not_found(&validator));
            self.close_of(id, Some(validator), CloseWhy::UnknownValidator);
            return Handled::Refused;
        }
        let older = self.sessions.authenticate(now, id, validator);
        if let Some(session) = self.sessions.get(id) {
            let peer = session.peer.clone();
            self.note(Note::new(AuditEvent::Authenticated).of(validator).on(id).from(&peer));
        }
        if let Some(older) = older {
            self.close(older, CloseWhy::TakenOver);
        }
        self.actions.push(Action::Known(id));
        self.answer(id, answers::success());
        // An older session that got them may be dead without our knowing, so the new one gets them as well.
        for uuid in self.jobs_of(validator, |_| true) {
            self.send_job(now, &uuid);
        }
        Handled::Taken
    }

    fn heartbeat(&mut self, now: Instant, id: SessionId, validator: PublicKey) -> Handled {
        self.sessions.beat(now, id);
        for uuid in self.jobs_of(validator, |job| job.sent_to.is_none()) {
            self.send_job(now, &uuid);
        }
        Handled::Taken
    }

    fn specs(&mut self, now: Now, validator: PublicKey, update: V0MachineSpecsUpdate) -> Handled {
        // Filed under who says it, not under whom the message names.
        self.actions.push(Action::Store(Change::Specs(SpecsRow {
            validator: validator.to_ss58(),
            miner: update.miner_hotkey,
            specs: serde_json::Value::Object(update.specs).to_string(),
            batch: update.batch_id,
            at: now.unix_micros(),
        })));
        Handled::Taken
    }

    fn status_update(&mut self, now: Now, id: SessionId, validator: PublicKey, update: V0JobStatusUpdate) {
        if self.jobs.get(&update.uuid).is_some_and(|job| job.dispatch.validator == validator) {
            let note = Note::new(AuditEvent::JobTakenUp).of(validator).on(id).job(&update.uuid);
            self.note(note.why(update.status.as_str()));
            self.now_open(now.mono, &update.uuid);
        }
        self.open.reported_on(now.mono, &update.uuid, validator);
        self.sessions.push_answer(id, None);
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
        let job = self.no_longer_waits(uuid)?;
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
        self.actions.push(Action::Error("job", format!("job {uuid}: {message}")));
        self.note(Note::new(AuditEvent::JobGivenUp).of(validator).job(&uuid).why(message.as_str()));
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

    fn no_longer_waits(&mut self, uuid: &str) -> Option<WaitingJob<T>> {
        let job = self.jobs.remove(uuid)?;
        if let Entry::Occupied(mut of) = self.jobs_of.entry(job.dispatch.validator) {
            of.get_mut().remove(&job.rank);
            if of.get().is_empty() {
                of.remove();
            }
        }
        Some(job)
    }

    /// The waiting jobs of a validator for which this is true, in the order in which they came.
    fn jobs_of(&self, validator: PublicKey, wanted: impl Fn(&WaitingJob<T>) -> bool) -> Vec<String> {
        let all = self.jobs_of.get(&validator).into_iter().flat_map(BTreeMap::values);
        all.filter(|uuid| self.jobs.get(*uuid).is_some_and(&wanted)).cloned().collect()
    }

    fn send_job(&mut self, now: Instant, uuid: &str) {
        let Some(job) = self.jobs.get_mut(uuid) else { return };
        let validator = job.dispatch.validator;
        let Some(id) = self.sessions.live(now, validator) else {
            job.sent_to = None;
            return;
        };
        let event = if job.was_sent { AuditEvent::JobSentAgain } else { AuditEvent::JobSent };
        (job.sent_to, job.was_sent) = (Some(id), true);
        self.actions.push(Action::Send(id, job.dispatch.text.clone()));
        self.note(Note::new(event).of(validator).on(id).job(uuid));
    }

    fn answer(&mut self, id: SessionId, response: Response) {
        self.sessions.push_answer(id, Some(answers::frame(response)));
        self.flush(id);
    }

    fn refuse(&mut self, id: SessionId, response: Response) -> Handled {
        self.answer(id, response);
        Handled::Refused
    }

    fn flush(&mut self, id: SessionId) {
        while let Some(text) = self.sessions.pop_answer(id) {
            self.actions.push(Action::Send(id, text));
        }
    }

    fn close(&mut self, id: SessionId, why: CloseWhy) {
        self.close_of(id, None, why);
    }

    /// Closes a session, which says that it is that validator's if it has not authenticated.
    fn close_of(&mut self, id: SessionId, claimed: Option<PublicKey>, why: CloseWhy) {
        if !self.sessions.close(id) {
            return;
        }
        self.actions.push(Action::Close(id, why));
        let Some(session) = self.sessions.get(id) else { return };
        let event = if session.validator.is_some() { AuditEvent::Closed } else { AuditEvent::AuthenticationFailed };
        let note = Note { validator: session.validator.or(claimed).map(|key| key.to_ss58()), ..Note::new(event) };
        let note = note.on(id).from(&session.peer).why(why.as_str());
        self.note(note);
    }
}

fn pop_due<K>(deadlines: &mut VecDeque<(Instant, K)>, now: Instant) -> Option<K> {
    if deadlines.front()?.0 > now {
        return None;
    }
    deadlines.pop_front().map(|(_, what)| what)
}

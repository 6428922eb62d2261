//! One organic job, from the choice of a miner to its end: what is asked of which miner, what is reported, and by when
//! each stage must be over. Pure: no thread, channel, socket or clock; it takes what happened and says what to do.
//!
//! Miners are asked one after the other until one takes the job and has an executor ready for it; until then nothing of
//! it has run, so what fails is the attempt and not the job. Every way ends with exactly one [`Action::End`] or
//! [`Action::Cancelled`]. The order of the actions is the order in which they must be done; an [`Action::Send`] is the
//! last of its batch, or nothing depends on it.

mod attempt;
mod failures;
mod inputs;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::attempt::{Attempt, AttemptEnd, Phase, ended};
pub use self::inputs::{Action, Input};
use super::excuses::{self, Declined, Verdict};
use super::job_messages::{
    JobMessages, JobTimes, by_miner, declined, is_end, job_uuid, kind, outcome_of, total_seconds,
};
use super::routing::reliability::Incident;
use super::routing::{MinerAddress, NoMiner};
use super::status::Outcome;
use super::streaming::server_details;
use crate::base::now::Now;
use crate::identity::{KeyPair, PublicKey};
use crate::protocol::stages::{Stage, StageClock, Timing};
use crate::protocol::{
    DateTime, HordeFailureReason, JobRejectionReason, JobStatus, MinerToValidator, V0DeclineJobRequest,
    V0MachineSpecsUpdate, V2JobRequest, ValidatorToMiner,
};

/// Miners that may decline one job, fail before it begins, or be out of reach, before it is given up; those without its
/// class do not count.
const MINERS_PER_JOB: usize = 3;

/// How often an accepted-receipt is sent again after a reconnect. A Python miner breaks the connection at the second
/// one, so not on each.
const RECEIPT_REPEATS: u32 = 2;

/// The state of one job.
#[derive(Debug)]
pub struct Drive {
    /// The validator's hotkey.
    key: KeyPair,
    times: JobTimes,
    request: Arc<V2JobRequest>,
    /// Validators whose jobs excuse a miner, besides ours.
    known: Arc<[PublicKey]>,
    /// Jobs that are known not to run on the miner of the attempt.
    not_running: Vec<String>,
    /// The miner that had the job when it was begun before.
    begun_on: Option<PublicKey>,
    tried: Vec<PublicKey>,
    refusals: usize,
    /// A miner has accepted it.
    accepted: bool,
    /// The answer of the last miner that did not take it; of one that had accepted it, if there is one.
    last: Option<Outcome>,
    /// Miners that say that it failed before it began, by its own fault.
    doubted: Vec<(PublicKey, Outcome)>,
    attempt: Option<Attempt>,
    out: Vec<Action>,
}

impl Drive {
    /// A job that has not begun. `avoid` are miners not to ask; `begun_on` has it still, if it is what we think.
    pub fn new(
        key: KeyPair,
        times: JobTimes,
        request: Arc<V2JobRequest>,
        avoid: &[PublicKey],
        begun_on: Option<PublicKey>,
    ) -> Self {
        Self {
            key,
            times,
            request,
            known: Arc::default(),
            not_running: Vec::new(),
            begun_on,
            tried: avoid.to_vec(),
            refusals: 0,
            accepted: false,
            last: None,
            doubted: Vec::new(),
            attempt: None,
            out: Vec::new(),
        }
    }

    /// Jobs of these validators excuse a miner that is busy, as those of this one do.
    pub fn knowing(self, known: Arc<[PublicKey]>) -> Self {
        Self { known, ..self }
    }

    /// These jobs do not run on the miner of the attempt: it has declined them, or they have ended there. So their
    /// receipts excuse nothing. To be said before the refusal that shows them.
    pub fn not_running(&mut self, jobs: Vec<String>) {
        self.not_running = jobs;
    }

    /// Whether the miner of the attempt may still decline the job: one that has accepted it keeps it, whatever it says.
    pub fn may_be_declined(&self) -> bool {
        self.attempt.as_ref().is_some_and(Attempt::may_be_declined)
    }

    /// Takes in what happened and says what to do.
    pub fn handle(&mut self, input: Input, now: Now) -> Vec<Action> {
        match (input, self.attempt.take()) {
            (Input::Start, attempt) => {
                self.attempt = attempt;
                self.start();
            }
            (Input::Reserved(Ok(miner)), None) => self.connect(miner, now),
            (Input::Reserved(Err(why)), None) => self.nobody(why),
            (Input::NotSent(why), None) => {
                let what = format!("job {}: the miner does not get it: {why}", self.request.uuid);
                self.out.push(Action::Error("finished-receipt", what));
            }
            // What comes after the end of an attempt concerns nobody.
            (_, None) => {}
            (input, Some(mut attempt)) => match self.step(&mut attempt, input, now) {
                None => self.attempt = Some(attempt),
                Some(end) => self.finish(&attempt, end, now),
            },
        }
        std::mem::take(&mut self.out)
    }

    /// When [`Input::Tick`] is due next; `None` once the job has ended.
    pub fn next_wake(&self) -> Option<Instant> {
        self.attempt.as_ref().map(Attempt::expires_at)
    }

    fn start(&mut self) {
        let uuid = &self.request.uuid;
        if uuid::Uuid::try_parse(uuid).map(|uuid| uuid.to_string()).ok().as_ref() != Some(uuid) {
            let message = format!("job uuid {uuid:?} is not a UUID in canonical form, which receipts need");
            return self.end(Outcome::rejected(JobRejectionReason::Unknown, message));
        }
        self.out.push(Action::WaitUntilKnown);
        self.choose(self.begun_on);
    }

    /// Asks for the next miner, unless enough have refused.
    fn choose(&mut self, same: Option<PublicKey>) {
        if self.refusals < MINERS_PER_JOB {
            self.out.push(Action::Reserve { same, avoid: self.tried.clone() });
        } else {
            self.nobody(NoMiner::None);
        }
    }

    /// No miner is left to ask.
    fn nobody(&mut self, why: NoMiner) {
        let class = self.request.executor_class;
        let kind = if self.request.on_trusted_miner { "trusted miner" } else { "miner" };
        let outcome = self.last.take().unwrap_or_else(|| match why {
            NoMiner::None => Outcome::rejected(
                JobRejectionReason::NoMinerForJob,
                format!("no {kind} that can be asked has executors of class {class}"),
            ),
            NoMiner::NoTrusted => Outcome::rejected(
                JobRejectionReason::NoMinerForJob,
                "the job asks for a trusted miner, and this validator knows none",
            ),
            NoMiner::Busy => {
                let message = format!("all executors of class {class} of the {kind}s that can be asked are at work");
                Outcome::rejected(JobRejectionReason::Busy, message)
            }
        });
        self.end(outcome);
    }

    fn end(&mut self, outcome: Outcome) {
        self.out.push(Action::End(Box::new(outcome)));
    }

    fn connect(&mut self, miner: MinerAddress, now: Now) {
        let deadline = now.mono + self.times.connect;
        self.attempt = Some(Attempt::new(miner.hotkey, deadline, now));
        self.out.push(Action::Connect(miner));
    }

    fn finish(&mut self, attempt: &Attempt, end: AttemptEnd, now: Now) {
        let goes_on = matches!(end, AttemptEnd::Cancelled { goes_on: true });
        if attempt.phase != Phase::Connecting && !goes_on {
            self.send_finished_receipt(attempt, matches!(&end, AttemptEnd::Ended(Outcome::Completed(_), _)), now);
        }
        match end {
            AttemptEnd::Ended(outcome, incident) => {
                match &outcome {
                    Outcome::Completed(_) => self.completed(attempt.miner),
                    outcome => self.blame(attempt.miner, incident, outcome),
                }
                // Before the report, so that whoever learns of the end finds the executor free.
                self.out.push(Action::Release);
                self.end(outcome);
                self.out.push(Action::Close);
            }
            AttemptEnd::Cancelled { .. } => {
                self.out.extend([Action::Release, Action::Cancelled, Action::Close]);
            }
            AttemptEnd::NotTaken(outcome, incident) => {
                log::info!("job {}: miner {} did not take it", self.request.uuid, attempt.miner);
                self.refusals += 1;
                self.blame(attempt.miner, incident, &outcome);
                if incident.is_none() && matches!(outcome, Outcome::Failed(_)) {
                    self.doubted.push((attempt.miner, outcome.clone()));
                }
                // A job that was accepted is not rejected after that.
                if !self.accepted || !matches!(outcome, Outcome::Rejected(_)) || self.last.is_none() {
                    self.last = Some(outcome);
                }
                self.out.push(Action::CoolDown(attempt.miner));
                self.next_miner(attempt);
            }
            AttemptEnd::NoSuchClass => self.next_miner(attempt),
        }
    }

    fn blame(&mut self, miner: PublicKey, incident: Option<Incident>, outcome: &Outcome) {
        if let Some(incident) = incident {
            self.out.push(Action::Incident(miner, incident, outcome.to_string()));
        }
    }

    /// It can run after all: who said that it fails by its own fault before it begins was wrong.
    fn completed(&mut self, miner: PublicKey) {
        self.out.push(Action::Completed(miner));
        for (other, said) in std::mem::take(&mut self.doubted) {
            let why = format!("another miner completed the job of which it said: {said}");
            self.out.push(Action::Incident(other, Incident::Failed, why));
        }
    }

    fn next_miner(&mut self, attempt: &Attempt) {
        self.out.extend([Action::Close, Action::Release]);
        self.tried.push(attempt.miner);
        self.choose(None);
    }

    /// What happens to a job on a miner; gives the end of the attempt.
    fn step(&mut self, attempt: &mut Attempt, input: Input, now: Now) -> Option<AttemptEnd> {
        match input {
            Input::Message(message) => self.message(attempt, *message, now),
            Input::Lost { why } => {
                attempt.last_trouble = Some(why);
                attempt.lost_since.get_or_insert(now.mono);
                None
            }
            Input::ConnectFailed { why, refused, cut } => {
                if attempt.phase == Phase::Connecting && !cut {
                    let incident = if refused { Incident::Refused } else { Incident::Unreachable };
                    return Some(AttemptEnd::NotTaken(attempt.not_connected(&why), Some(incident)));
                }
                if refused {
                    return ended(attempt.not_connected(&why));
                }
                attempt.last_trouble = Some(why);
                None
            }
            Input::NotSent(why) => {
                // Which is not the miner's fault.
                let reason = HordeFailureReason::MinerConnectionFailed;
                Some(AttemptEnd::Ended(Outcome::horde_failed(reason, why), None))
            }
            Input::Cancel { goes_on } => Some(AttemptEnd::Cancelled { goes_on }),
            Input::Tick => {
                if attempt.expires_at() <= now.mono {
                    attempt.expired()
                } else {
                    None
                }
            }
            // There is a miner already.
            Input::Start | Input::Reserved(_) => None,
        }
    }

    fn message(&mut self, attempt: &mut Attempt, message: MinerToValidator, now: Now) -> Option<AttemptEnd> {
        let uuid = &self.request.uuid;
        if let Some(other) = job_uuid(&message)
            && other != uuid
        {
            log::debug!("job {uuid}: miner {} speaks of job {other}", attempt.miner);
            let other = other.to_owned();
            if is_end(&message) {
                self.out.push(Action::Confirm(attempt.miner, other));
            }
            return None;
        }
        use MinerToValidator as M;
        match (message, attempt.phase) {
            (M::V0ExecutorManifestRequest(manifest), phase) => {
                let manifest: HashMap<_, _> =
                    manifest.manifest.iter().map(|(class, count)| (*class, count.saturating_i64())).collect();
                let offers = manifest.get(&self.request.executor_class).copied().unwrap_or(0) > 0;
                let is_empty = manifest.is_empty();
                attempt.executors.get_or_insert(manifest.get(&self.request.executor_class).copied().unwrap_or(0));
                self.out.push(Action::Manifest(attempt.miner, manifest));
                match phase {
                    Phase::Connecting if !offers && !is_empty => return Some(AttemptEnd::NoSuchClass),
                    Phase::Connecting => {
                        attempt.offers_nothing = is_empty;
                        attempt.is_back(now);
                        self.ask(attempt, now);
                    }
                    // Asked again after a reconnect, because the request may have been lost; a miner takes a job once.
                    Phase::Reserving if attempt.is_back(now) => self.ask(attempt, now),
                    _ if attempt.is_back(now) => self.repeat(attempt),
                    _ => {}
                }
            }
            (M::V0AcceptJobRequest(_), Phase::Reserving) => self.accepted(attempt, now),
            (M::V0DeclineJobRequest(decline), _) if attempt.may_be_declined() => {
                let verdict = self.judge(attempt, &decline);
                log::info!("job {uuid}: miner {} declined it: {verdict}", attempt.miner);
                if let Verdict::Excused { receipts } = &verdict {
                    let receipts = receipts.iter().filter_map(|n| decline.receipts.get(*n).cloned());
                    self.out.push(Action::Excused(attempt.miner, receipts.collect()));
                }
                // It cannot run jobs at present: another may, and if there is none, it is not the job's fault. Nor is
                // it a fault of the miner, which has offered nothing.
                let is_idle = attempt.offers_nothing;
                let outcome = match is_idle && !decline.is_of_a_pause() {
                    true => attempt.without_executors(&decline.message),
                    false => declined(decline),
                };
                let incident = Incident::of(&outcome).filter(|_| !verdict.is_excused() && !is_idle);
                return Some(AttemptEnd::NotTaken(outcome, incident));
            }
            (M::V0ExecutorReadyRequest(_), Phase::Starting | Phase::Resuming) => {
                self.out.push(Action::Report(JobStatus::ExecutorReady));
                self.begin(attempt, Stage::Download, now);
                self.send(self.messages(attempt).job_request());
            }
            (M::V0VolumesReadyRequest(_), Phase::Running(Stage::Download) | Phase::Resuming) => {
                self.out.push(Action::Report(JobStatus::VolumesReady));
                let streaming = self.request.streaming_details.is_some();
                self.begin(attempt, if streaming { Stage::StreamingStart } else { Stage::Execution }, now);
            }
            (M::V0StreamingJobReadyRequest(ready), Phase::Running(Stage::StreamingStart) | Phase::Resuming) => {
                match server_details(ready, attempt.miner) {
                    Ok(details) => self.out.push(Action::StreamingReady(details)),
                    Err(why) => return ended(by_miner(HordeFailureReason::StreamingFailed, &why)),
                }
                self.begin(attempt, Stage::Execution, now);
            }
            (M::V0ExecutionDoneRequest(_), Phase::Running(Stage::Execution) | Phase::Resuming) => {
                self.out.push(Action::Report(JobStatus::ExecutionDone));
                self.begin(attempt, Stage::Upload, now);
            }
            (message @ M::V0JobFinishedRequest(_), Phase::Running(_) | Phase::Resuming)
            | (message @ M::V0JobFailedRequest(_), Phase::Starting | Phase::Running(_) | Phase::Resuming)
            | (
                message @ (M::V0HordeFailedRequest(_)
                | M::V0ExecutorFailedRequest(_)
                | M::V0StreamingJobNotReadyRequest(_)),
                _,
            ) => return self.is_over(attempt, message, now),
            (M::V0MachineSpecsRequest(found), _) => {
                self.out.push(Action::MachineSpecs(Box::new(V0MachineSpecsUpdate {
                    miner_hotkey: attempt.miner.to_ss58(),
                    validator_hotkey: self.key.ss58(),
                    specs: found.specs.specs,
                    batch_id: uuid.clone(),
                })));
            }
            (M::V0MainHotkeyMessage(_), _) => {}
            (M::GenericError(error), _) => {
                let text = error.details.unwrap_or_default();
                let what = format!("job {uuid}: miner {} reports: {text}", attempt.miner);
                self.out.push(Action::Error("miner-report", what));
                attempt.last_trouble = Some(text);
            }
            (M::UnauthorizedError(error), _) => {
                let why = format!("{} {}", error.code, error.details.unwrap_or_default());
                return ended(attempt.not_connected(why.trim_end()));
            }
            (message, phase) => {
                // A repeat after a reconnect, or a miner out of step; the stage's deadline bounds what it can do.
                log::debug!("job {uuid}: ignored {} while {phase:?}", kind(&message));
            }
        }
        None
    }

    /// The miner says that the job is over. Before the job request was sent nothing of it has run there, so that
    /// another miner may have it.
    fn is_over(&self, attempt: &Attempt, message: MinerToValidator, now: Now) -> Option<AttemptEnd> {
        let had_it_before = self.begun_on == Some(attempt.miner);
        let outcome = outcome_of(message)?;
        if !had_it_before && attempt.requested_at.is_none() {
            let waited = now.mono.saturating_duration_since(attempt.asked_at);
            let incident = failures::before_it_began(&outcome, waited, self.start_up());
            return Some(AttemptEnd::NotTaken(outcome, incident));
        }
        let requested_at = attempt.requested_at.filter(|_| !had_it_before);
        let ran = requested_at.map(|at| now.mono.saturating_duration_since(at));
        let incident = failures::after_it_began(&outcome, &self.request, ran);
        Some(AttemptEnd::Ended(outcome, incident))
    }

    /// How long the start of an executor may take.
    fn start_up(&self) -> Duration {
        self.request.executor_class.spin_up_time() + self.times.executor_startup
    }

    /// Whether a refusal is excused, by this validator's own jobs and those of the validators that it knows.
    fn judge(&self, attempt: &Attempt, decline: &V0DeclineJobRequest) -> Verdict {
        let declined = Declined {
            job_uuid: &self.request.uuid,
            class: self.request.executor_class,
            miner: attempt.miner,
            asked_at: DateTime::from_unix_micros(attempt.started.unix_micros()),
            is_organic: true,
            executors: attempt.executors.unwrap_or(0),
        };
        let own = self.key.public();
        let is_known = |validator: &PublicKey| *validator == own || self.known.contains(validator);
        excuses::judge_knowing(decline, &declined, is_known, |uuid| self.not_running.iter().any(|other| other == uuid))
    }

    fn ask(&mut self, attempt: &mut Attempt, now: Now) {
        if attempt.phase == Phase::Connecting {
            attempt.phase = Phase::Reserving;
            attempt.asked_at = now.mono;
            attempt.deadline = now.mono + self.times.reservation;
        }
        self.send(self.messages(attempt).initial_request(attempt.started));
    }

    fn accepted(&mut self, attempt: &mut Attempt, now: Now) {
        if !std::mem::replace(&mut self.accepted, true) {
            self.out.push(Action::Report(JobStatus::Accepted));
        }
        self.out.push(Action::RunsOn(attempt.miner));
        let startup = self.start_up();
        let ttl = total_seconds(&self.times, &self.request);
        (attempt.phase, attempt.deadline) = match self.begun_on == Some(attempt.miner) {
            // Nobody here knows how far it is, so all its stages count.
            true => (Phase::Resuming, now.mono + startup + Duration::from_secs(ttl.unsigned_abs()) + self.times.margin),
            false => (Phase::Starting, now.mono + startup),
        };
        let receipt = self.messages(attempt).accepted_receipt(now);
        attempt.accepted_receipt = Some((receipt.clone(), RECEIPT_REPEATS));
        self.send(receipt);
    }

    /// The connection is back: what may have been lost with the old one is sent again. What the miner has said since
    /// shows what it has. The job request is sent in any case, because by it the miner knows which connection wants the
    /// news of the job; it takes the first one only.
    fn repeat(&mut self, attempt: &mut Attempt) {
        let (wants_receipt, wants_request) = match attempt.phase {
            Phase::Connecting | Phase::Reserving => (false, false),
            Phase::Starting | Phase::Resuming => (true, false),
            Phase::Running(stage) => (stage == Stage::Download, true),
        };
        if let Some((receipt, left @ 1..)) = &mut attempt.accepted_receipt
            && wants_receipt
        {
            *left -= 1;
            let receipt = receipt.clone();
            self.send(receipt);
        }
        if wants_request {
            self.send(self.messages(attempt).job_request());
        }
    }

    fn begin(&self, attempt: &mut Attempt, stage: Stage, now: Now) {
        let timing = Timing::from(&self.messages(attempt).timing());
        attempt.requested_at.get_or_insert(now.mono);
        let stages = attempt.stages.get_or_insert_with(|| StageClock::new(timing, now.mono));
        attempt.deadline = stages.begin(stage) + self.times.margin;
        attempt.phase = Phase::Running(stage);
    }

    fn send(&mut self, message: impl Into<ValidatorToMiner>) {
        self.out.push(Action::Send(Box::new(message.into())));
    }

    fn send_finished_receipt(&mut self, attempt: &Attempt, completed: bool, now: Now) {
        let took = now.mono.saturating_duration_since(attempt.asked_at);
        let receipt = self.messages(attempt).finished_receipt(attempt.started, took, completed, now);
        self.send(receipt);
    }

    /// What is written to the miner of an attempt.
    fn messages(&self, attempt: &Attempt) -> JobMessages<'_> {
        let Self { key, times, request, .. } = self;
        JobMessages { key, times, request, uuid: &request.uuid, miner: attempt.miner, is_organic: true }
    }
}

/// The longest that one job can take, on all miners that it asks.
pub(super) fn longest(times: &JobTimes, request: &V2JobRequest) -> Duration {
    let start_up = request.executor_class.spin_up_time() + times.executor_startup;
    let asking = (times.connect + times.reservation + start_up) * u32::try_from(MINERS_PER_JOB).unwrap_or(u32::MAX);
    let stages = Duration::from_secs(total_seconds(times, request).unsigned_abs());
    asking + stages + times.margin
}

//! One job of a batch on one miner: how far it is, what its messages mean, and the line that it ends as. Pure.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::kept::PlannedRow;
use super::line::{BatchOutcome, JobLine, in_words, one_line, stamp};
use crate::base::now::Now;
use crate::protocol::stages::{Stage, StageClock, Timing};
use crate::protocol::{
    ExecutorClass, JobRejectionDetails, JobRejectionReason, JobResultDetails, MinerToValidator, V2JobRequest,
};
use crate::validator::job_messages::{declined, is_end, outcome_of};
use crate::validator::status::Outcome;

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// An executor was asked for.
    Asked,
    /// The miner has accepted; its executor starts.
    Starting,
    /// The executor is ready and waits at the gate.
    Ready,
    /// The job request has been sent.
    Sent(Stage),
    /// Its time is over; what still comes is late.
    Over(Stage),
    /// It has its outcome.
    Ended,
}

/// What a message of the miner means for its job.
#[derive(Debug)]
pub(super) enum Step {
    /// Nothing: a repeat, or out of step.
    None,
    /// The miner has accepted.
    Accepted,
    /// The executor is ready.
    Ready,
    /// A stage has begun.
    Stage,
    /// The last message came.
    Answer(Box<Outcome>),
    /// The miner does not keep to the protocol.
    Broken(&'static str),
}

/// One job.
#[derive(Debug)]
pub(super) struct Job {
    /// The miner's number in the batch, and the job's place among those of the miner.
    pub(super) miner: usize,
    pub(super) place: usize,
    pub(super) uuid: String,
    pub(super) class: ExecutorClass,
    pub(super) request: Arc<V2JobRequest>,
    pub(super) phase: Phase,
    /// When the present stage is over.
    pub(super) deadline: Option<Instant>,
    pub(super) asked: Option<Now>,
    pub(super) accepted: Option<Now>,
    pub(super) ready: Option<Now>,
    /// Right before and right after the job request was sent.
    pub(super) sent: Option<(Now, Now)>,
    pub(super) answered: Option<Now>,
    /// From the opening of the gate to the end of the sending.
    pub(super) sent_after: Option<Duration>,
    stages: Option<StageClock>,
    /// How often it was asked for, and why it was asked for again.
    pub(super) attempts: u32,
    pub(super) first_trouble: Option<String>,
    /// How often it was asked for again since the batch has begun or gone on, because the horde failed it.
    pub(super) retried: u32,
    /// Its miner may have had it under this uuid before the batch was killed.
    pub(super) is_kept: bool,
    /// The miner did not take it, and has shown with what it is busy.
    pub(super) excused: bool,
    /// How often the accepted-receipt was sent again.
    pub(super) receipt_repeats: u32,
}

impl Job {
    pub(super) fn new(
        miner: usize,
        place: usize,
        uuid: String,
        class: ExecutorClass,
        request: Arc<V2JobRequest>,
    ) -> Self {
        Self {
            miner,
            place,
            uuid,
            class,
            request,
            phase: Phase::Asked,
            deadline: None,
            asked: None,
            accepted: None,
            ready: None,
            sent: None,
            answered: None,
            sent_after: None,
            stages: None,
            attempts: 1,
            first_trouble: None,
            retried: 0,
            is_kept: false,
            excused: false,
            receipt_repeats: 0,
        }
    }

    /// One that was planned before a restart.
    pub(super) fn kept(planned: PlannedRow) -> Self {
        let PlannedRow { place, uuid, class, request, attempts } = planned;
        Self { attempts, is_kept: true, ..Self::new(place.miner, place.job, uuid, class, request) }
    }

    /// Whether the gate waits for it.
    pub(super) fn is_before_gate(&self) -> bool {
        matches!(self.phase, Phase::Asked | Phase::Starting)
    }

    /// Whether its miner, by this answer, has had it before and knows no more of it: a miner takes a uuid once.
    pub(super) fn is_forgotten(&self, outcome: &Outcome) -> bool {
        let is_unknown = |refusal: &JobRejectionDetails| refusal.reason == JobRejectionReason::Unknown;
        self.is_kept && matches!(outcome, Outcome::Rejected(refusal) if is_unknown(refusal))
    }

    /// It is asked for once more, under another uuid; after trouble of the horde, or without.
    pub(super) fn again(&mut self, uuid: String, trouble: Option<String>) {
        let (miner, place, class) = (self.miner, self.place, self.class);
        let (attempts, retried) = (self.attempts + 1, self.retried + u32::from(trouble.is_some()));
        let first_trouble = self.first_trouble.take().or(trouble);
        *self = Self { attempts, retried, first_trouble, ..Self::new(miner, place, uuid, class, self.request.clone()) };
    }

    /// The job request has left; its stages begin.
    pub(super) fn sent(&mut self, (before, after): (Now, Now), since_gate: Duration, timing: Timing, margin: Duration) {
        self.sent = Some((before, after));
        self.sent_after = Some(since_gate);
        self.stages = Some(StageClock::new(timing, after.mono));
        self.begin(Stage::Download, margin);
    }

    fn begin(&mut self, stage: Stage, margin: Duration) {
        if let Some(stages) = &mut self.stages {
            self.deadline = Some(stages.begin(stage) + margin);
        }
        self.phase = Phase::Sent(stage);
    }

    /// Takes in a message about it that came at `at`. The first of a kind counts: each is good for one phase only.
    pub(super) fn message(&mut self, message: MinerToValidator, at: Now, margin: Duration) -> Step {
        use MinerToValidator as M;
        // A message that had come in time, and waited behind the look at the clock.
        if let Phase::Over(stage) = self.phase
            && self.deadline.is_some_and(|deadline| at.mono <= deadline)
        {
            self.phase = Phase::Sent(stage);
        }
        let streaming = self.request.streaming_details.is_some();
        match (message, self.phase) {
            (_, Phase::Ended) => Step::None,
            (M::V0AcceptJobRequest(_), Phase::Asked) => {
                self.phase = Phase::Starting;
                self.accepted = Some(at);
                Step::Accepted
            }
            (M::V0DeclineJobRequest(decline), Phase::Asked) => self.answer(at, declined(decline)),
            (M::V0ExecutorReadyRequest(_), Phase::Starting) => {
                self.phase = Phase::Ready;
                self.ready = Some(at);
                self.deadline = None;
                Step::Ready
            }
            (M::V0VolumesReadyRequest(_), Phase::Sent(Stage::Download)) => {
                self.begin(if streaming { Stage::StreamingStart } else { Stage::Execution }, margin);
                Step::Stage
            }
            (M::V0StreamingJobReadyRequest(_), Phase::Sent(Stage::StreamingStart)) => {
                self.begin(Stage::Execution, margin);
                Step::Stage
            }
            (M::V0ExecutionDoneRequest(_), Phase::Sent(Stage::Execution)) => {
                self.begin(Stage::Upload, margin);
                Step::Stage
            }
            (M::V0JobFinishedRequest(_), Phase::Asked | Phase::Starting | Phase::Ready) => {
                Step::Broken("it finished a job that it had not been given yet")
            }
            (message, _) if is_end(&message) => match outcome_of(message) {
                Some(outcome) => self.answer(at, outcome),
                None => Step::None,
            },
            _ => Step::None,
        }
    }

    fn answer(&mut self, at: Now, outcome: Outcome) -> Step {
        self.answered = Some(at);
        Step::Answer(Box::new(outcome))
    }

    /// What the miner was waited for, in words.
    pub(super) fn waits_for(&self) -> &'static str {
        match self.phase {
            Phase::Asked if self.asked.is_none() => "its turn to be asked",
            Phase::Asked => "the answer to the initial request",
            Phase::Starting => "the executor's readiness",
            Phase::Ready => "the gate",
            Phase::Sent(stage) | Phase::Over(stage) => stage.waits_for(),
            Phase::Ended => "nothing",
        }
    }

    /// How long the miner had it, for its receipt.
    pub(super) fn took(&self, now: Now) -> Duration {
        self.asked.map_or(Duration::ZERO, |asked| now.mono.saturating_duration_since(asked.mono))
    }

    /// Its line with this outcome.
    pub(super) fn line(&self, miner: String, outcome: BatchOutcome, reason: Option<&str>) -> JobLine {
        let flaky = self.first_trouble.as_ref().map(|first| format!("flaky: attempt {}, {first}", self.attempts));
        let reason = match (reason, flaky) {
            (Some(reason), Some(flaky)) => Some(format!("{reason} ({flaky})")),
            (reason, flaky) => reason.map(str::to_owned).or(flaky),
        };
        let seconds = self
            .sent
            .zip(self.answered)
            .map(|((before, _), answered)| answered.mono.saturating_duration_since(before.mono).as_secs_f64());
        let late = matches!(self.phase, Phase::Over(_)) && self.answered.is_some();
        JobLine {
            miner,
            job_uuid: Some(self.uuid.clone()),
            class: Some(self.class.to_string()),
            outcome: Some(outcome),
            reason: reason.as_deref().map(one_line),
            accepted_at: self.accepted.map(stamp),
            ready_at: self.ready.map(stamp),
            sent_at: self.sent.map(|(before, _)| stamp(before)),
            answered_at: self.answered.map(stamp),
            seconds,
            late,
            scored: outcome == BatchOutcome::Completed && !late,
            excused: self.excused,
            sent_after_us: self.sent_after.map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
        }
    }
}

/// What a judge says of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is right, and counts.
    Right,
    /// It is wrong, and why.
    Wrong(String),
}

/// Judges the answers of a batch.
pub trait Judge: Send {
    /// Judges one answer, as a miner gave it. Runs on the batch's thread, so it must be quick: what it takes shows as
    /// the batch's own lag.
    fn judge(&mut self, request: &V2JobRequest, answer: &JobResultDetails) -> Verdict;

    /// Whether it can judge the answers to a job of a recorded batch.
    fn knows(&self, _request: &V2JobRequest) -> bool {
        true
    }
}

impl<F> Judge for F
where
    F: FnMut(&V2JobRequest, &JobResultDetails) -> Verdict + Send,
{
    fn judge(&mut self, request: &V2JobRequest, answer: &JobResultDetails) -> Verdict {
        self(request, answer)
    }
}

/// The outcome and the reason of an answer that came in time.
pub(super) fn judged(
    outcome: &Outcome,
    request: &V2JobRequest,
    judge: &mut dyn Judge,
) -> (BatchOutcome, Option<String>) {
    match outcome {
        Outcome::Completed(result) => match judge.judge(request, result) {
            Verdict::Right => (BatchOutcome::Completed, None),
            Verdict::Wrong(why) => (BatchOutcome::Failed, Some(one_line(&format!("wrong answer: {why}")))),
        },
        outcome => in_words(outcome),
    }
}

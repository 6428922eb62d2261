//! One job on a miner: who asked, who runs it, of what its validator still has to be notified. Pure: `now` is an
//! argument.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::base::ids::SessionId;
use crate::miner::executor_pool::{Lease, SlotId};
use crate::miner::host::HostName;
use crate::protocol::stages::{Stage, StageClock, Timing};
use crate::protocol::{HordeFailureReason, MinerToExecutor, Receipt, V0InitialJobRequest};
use crate::transport::Utf8Bytes;

/// A job is known by its uuid and its validator, so that no validator can touch another's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobKey {
    /// The validator (SS58).
    pub validator: String,
    /// The job's uuid.
    pub uuid: String,
}

/// Where a job is.
#[derive(Debug)]
pub(super) enum Phase {
    /// The slot is reserved; the started-receipt and the job are on their way to the disk, in the order of this number.
    Storing(u64),
    /// Accepted: the executor is starting, until the pool says that its reservation has expired.
    Starting,
    /// The executor is ready and waits for the job request, until then.
    Ready(Instant),
    /// The validator has sent the job request.
    Running(Stage, StageClock),
    /// The executor has ended, in this way, but its last messages may still come, until then.
    FinalMessages(Instant, String),
    /// Over; what is kept for the validator is kept until then.
    Over(Instant),
}

impl Phase {
    /// The time in which the executor had no connection does not count.
    pub(super) fn postpone(&mut self, by: Duration) {
        match self {
            Phase::Ready(until) => *until += by,
            Phase::Running(_, clock) => clock.postpone(by),
            _ => {}
        }
    }
}

/// What a validator is notified of, one of each at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum News {
    /// Accepted.
    Accepted,
    /// The executor is ready.
    ExecutorReady,
    /// The volumes are there.
    VolumesReady,
    /// The streaming server is up.
    StreamingReady,
    /// The command has ended.
    ExecutionDone,
    /// The machine of the executor.
    Specs,
    /// Finished or failed.
    End,
}

/// The executor of a job, until it is gone.
#[derive(Debug)]
pub(super) struct Executor {
    /// The slot it has.
    pub slot: SlotId,
    /// The right to it, until the executor is started: whoever runs it has the lease from then on.
    pub lease: Option<Lease>,
    /// By which it introduces itself.
    pub token: String,
    /// Its connection.
    pub session: Option<SessionId>,
    /// Without a connection: when it counts as lost; until its first connection the reservation decides.
    pub back_by: Option<Instant>,
    /// Since when it has none: that time does not count against the limits of its job.
    pub gone_since: Option<Instant>,
    /// Its last message has come.
    pub reported: bool,
    /// The job is over: when it is cancelled.
    pub end_at: Option<Instant>,
    /// The address it was connected from.
    pub address: Option<String>,
}

impl Executor {
    /// An executor that is not connected; whoever runs it has its lease.
    pub(super) fn new(slot: SlotId, token: String) -> Self {
        Self {
            slot,
            lease: None,
            token,
            session: None,
            back_by: None,
            gone_since: None,
            reported: false,
            end_at: None,
            address: None,
        }
    }

    /// Whether it has had no connection yet.
    pub(super) fn has_never_connected(&self) -> bool {
        self.session.is_none() && self.gone_since.is_none()
    }
}

/// What is worth another write when it has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    phase: u8,
    until: Option<Instant>,
    request: bool,
    executor: bool,
    /// Grows with all that is kept or confirmed.
    news: u32,
}

/// What is decided with a job's slot.
#[derive(Debug)]
pub(super) struct Placed {
    /// By which its executor introduces itself.
    pub token: String,
    /// Marks what is made for its executor.
    pub run: String,
    /// Where the executor runs.
    pub host: HostName,
    /// Of the miner's process that has started the executor.
    pub epoch: u64,
    /// When the validator asked for it.
    pub asked: Instant,
    /// Until when its executor has to be ready.
    pub ready_by: Instant,
}

/// A job.
#[derive(Debug)]
pub(super) struct MinerJob {
    /// What the validator asked for.
    pub initial: V0InitialJobRequest,
    /// The same as it is passed on; empty once the executor is known to have it.
    pub(super) initial_text: Utf8Bytes,
    /// The started-receipt, once it is stored.
    pub receipt: Option<Receipt>,
    /// Where the job is.
    pub phase: Phase,
    /// The executor, until it is gone.
    pub executor: Option<Executor>,
    /// What was decided with its slot.
    pub placed: Placed,
    /// The executor has ended, and what is left of it is being removed; its slot until then.
    pub unclean: Option<SlotId>,
    /// The second half of the job, as it is passed on.
    pub request: Option<Utf8Bytes>,
    /// Connections that are notified. More than one only after the one that asked was lost: the wire does not say
    /// for which job a connection is, so all that may be meant are notified, until one of them speaks of the job.
    pub audience: Vec<SessionId>,
    /// Whether the audience is one connection that has spoken of the job.
    pub claimed: bool,
    /// The validator has sent its finished-receipt: it wants no more news.
    pub answered: bool,
    pub(super) kept: Vec<(News, Utf8Bytes)>,
    pub(super) notified: Option<News>,
    /// The validator was notified of the specs.
    described: bool,
    /// Grows with all that is kept or confirmed.
    pub(super) news_version: u32,
    /// What of it was saved last.
    pub(super) saved: Option<Mark>,
}

impl MinerJob {
    /// A job that was asked for on `session` and has a slot; its receipt is to be stored, by the order of this number.
    pub(super) fn new(
        (initial, initial_text): (V0InitialJobRequest, Utf8Bytes),
        lease: Lease,
        placed: Placed,
        session: SessionId,
        number: u64,
    ) -> Self {
        let mut executor = Executor::new(lease.slot(), placed.token.clone());
        executor.lease = Some(lease);
        Self {
            phase: Phase::Storing(number),
            executor: Some(executor),
            audience: vec![session],
            claimed: true,
            ..Self::without_slot((initial, initial_text), placed)
        }
    }

    /// A job that has no slot and nobody to notify.
    pub(super) fn without_slot((initial, initial_text): (V0InitialJobRequest, Utf8Bytes), placed: Placed) -> Self {
        Self {
            initial,
            initial_text,
            receipt: None,
            phase: Phase::Starting,
            executor: None,
            placed,
            unclean: None,
            request: None,
            audience: Vec::new(),
            claimed: false,
            answered: false,
            kept: Vec::new(),
            notified: None,
            described: false,
            news_version: 0,
            saved: None,
        }
    }

    /// Whether the job has ended, whatever is left of its executor.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over(_))
    }

    /// Whether its executor has been ready.
    pub(super) fn was_ready(&self) -> bool {
        self.notified.is_some_and(|last| last >= News::ExecutorReady)
    }

    /// The session speaks of the job; true if it did not listen to it yet.
    pub(super) fn claim(&mut self, session: SessionId) -> bool {
        let is_new = !self.audience.contains(&session);
        (self.audience, self.claimed) = (vec![session], true);
        is_new
    }

    /// Differs when there is something to save.
    pub(super) fn mark(&self) -> Mark {
        let (phase, until) = match &self.phase {
            Phase::Storing(_) | Phase::Starting => (0, None),
            Phase::Ready(until) => (1, Some(*until)),
            Phase::Running(stage, clock) => (2 + *stage as u8, Some(clock.deadline())),
            Phase::FinalMessages(until, _) => (6, Some(*until)),
            Phase::Over(until) => (7, Some(*until)),
        };
        let executor = self.executor.is_some() || self.unclean.is_some();
        Mark { phase, until, request: self.request.is_some(), executor, news: self.news_version }
    }

    /// Keeps news until the validator has confirmed them; false if they are old, as a repeat after a reconnect.
    pub(super) fn keep(&mut self, news: News, text: Utf8Bytes) -> bool {
        if news == News::Specs {
            if std::mem::replace(&mut self.described, true) {
                return false;
            }
        } else if self.notified.is_some_and(|last| last >= news) {
            return false;
        } else {
            self.notified = Some(news);
        }
        self.kept.push((news, text));
        self.news_version += 1;
        true
    }

    /// The validator has shown that it knows all news up to this one.
    pub(super) fn confirmed(&mut self, up_to: News) {
        let before = self.kept.len();
        self.kept.retain(|(news, _)| *news > up_to);
        self.news_version += u32::from(self.kept.len() != before);
    }

    /// What the validator has not confirmed, in the order in which it was notified.
    pub(super) fn kept(&self) -> Vec<Utf8Bytes> {
        self.kept.iter().map(|(_, text)| text.clone()).collect()
    }

    /// The oldest news that the validator has not confirmed.
    pub(super) fn first_kept(&self) -> Option<News> {
        self.kept.first().map(|(news, _)| *news)
    }

    /// Bytes of what is kept.
    pub(super) fn kept_bytes(&self) -> usize {
        self.kept.iter().map(|(_, text)| text.len()).sum()
    }

    /// Whether nothing of its executor is left.
    fn is_clean(&self) -> bool {
        self.executor.is_none() && self.unclean.is_none()
    }

    /// Whether nothing is left that anybody could still want.
    pub(super) fn is_done_with(&self, now: Option<Instant>) -> bool {
        match self.phase {
            Phase::Over(kept_until) => {
                self.is_clean() && (self.kept.is_empty() || now.is_some_and(|now| kept_until <= now))
            }
            _ => false,
        }
    }

    /// The initial request as its executor gets it: for a streaming job with the executor's address, which the
    /// validator did not sign.
    pub(super) fn initial_for(&self, address: Option<&str>) -> Utf8Bytes {
        let mut initial = match (&self.initial.streaming_details, address) {
            (Some(_), Some(_)) => self.initial.clone(),
            _ => return self.initial_text.clone(),
        };
        initial.validator_signature = None;
        if let Some(details) = &mut initial.streaming_details {
            details.executor_ip = address.map(str::to_owned);
        }
        MinerToExecutor::from(initial).encode().into()
    }

    /// The executor is ready, so it has the initial request, whose volume may be large.
    pub(super) fn ready(&mut self, request_by: Instant) {
        self.phase = Phase::Ready(request_by);
        self.initial.volume = None;
        self.initial_text = Utf8Bytes::default();
    }

    /// The executor is ready and the request is there.
    pub(super) fn run(&mut self, timing: Timing, now: Instant) {
        let mut clock = StageClock::new(timing, now);
        clock.begin(Stage::Download);
        self.phase = Phase::Running(Stage::Download, clock);
    }

    /// What the loss of the executor means.
    pub(super) fn loss(&self) -> HordeFailureReason {
        match self.was_ready() {
            true => HordeFailureReason::ExecutorDisconnected,
            false => HordeFailureReason::ExecutorSpinupFailed,
        }
    }

    /// The stage of a running job is over; the next begins.
    pub(super) fn stage_over(&mut self, done: Stage) {
        if let Phase::Running(stage, clock) = &mut self.phase
            && *stage <= done
        {
            // Whatever comes after the download shows that the executor has it.
            self.request = None;
            *stage = match done {
                Stage::Download if self.initial.streaming_details.is_some() => Stage::StreamingStart,
                Stage::Download | Stage::StreamingStart => Stage::Execution,
                Stage::Execution | Stage::Upload => Stage::Upload,
            };
            clock.begin(*stage);
        }
    }

    /// Whether its executor is there, but for its connection.
    fn is_cut_off(&self) -> bool {
        self.executor.as_ref().is_some_and(|executor| executor.gone_since.is_some())
    }

    /// Why the job has failed by now, if it has: its executor was lost, or a limit has passed by `leeway`.
    pub(super) fn failure(&self, leeway: Duration, now: Instant) -> Option<(HordeFailureReason, String)> {
        let executor = self.executor.as_ref();
        if !self.is_over() && executor.and_then(|e| e.back_by).is_some_and(|back_by| back_by <= now) {
            return Some((self.loss(), "the executor disconnected and did not come back".into()));
        }
        match &self.phase {
            Phase::FinalMessages(until, how) if *until <= now => Some((self.loss(), how.clone())),
            Phase::Ready(until) if !self.is_cut_off() && *until <= now => {
                Some((HordeFailureReason::UnhandledTimeout, "the validator sent no job request in time".into()))
            }
            // What an executor has to report or to get waits for its connection; how long that may take is another
            // limit.
            Phase::Running(stage, clock) if !self.is_cut_off() && clock.deadline() + leeway <= now => {
                Some((stage.timed_out(), format!("the executor did not report {} in time", stage.waits_for())))
            }
            _ => None,
        }
    }

    /// When to look at this job again; reservations are the pool's.
    pub(super) fn next_wake(&self, leeway: Duration) -> Option<Instant> {
        let phase = match &self.phase {
            Phase::Storing(_) | Phase::Starting => None,
            Phase::FinalMessages(until, _) => Some(*until),
            Phase::Ready(until) => (!self.is_cut_off()).then_some(*until),
            Phase::Running(_, clock) => (!self.is_cut_off()).then(|| clock.deadline() + leeway),
            // Without an executor and with everything confirmed the job is gone already.
            Phase::Over(kept_until) => self.is_clean().then_some(*kept_until),
        };
        let executor = self.executor.as_ref().and_then(|e| e.end_at.or(e.back_by));
        [phase, executor].into_iter().flatten().min()
    }
}

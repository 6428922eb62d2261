//! One job on one miner: how far it is, and how that can end. Pure.

use std::time::{Duration, Instant};

use crate::base::now::Now;
use crate::identity::PublicKey;
use crate::protocol::stages::{Stage, StageClock};
use crate::protocol::{HordeFailureReason, V0JobAcceptedReceiptRequest};
use crate::validator::routing::reliability::Incident;
use crate::validator::status::Outcome;

/// How long the connection to a miner may be away in all, during which no limit of the job runs: as long as the miner
/// waits for its executors.
const AWAY_TIME: Duration = Duration::from_secs(30);

/// How far one job is on one miner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Connecting,
    Reserving,
    Starting,
    /// The miner has had the job since before; it says again what its validator has not shown to know.
    Resuming,
    Running(Stage),
}

/// One job on one miner.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) miner: PublicKey,
    pub(super) phase: Phase,
    pub(super) deadline: Instant,
    pub(super) stages: Option<StageClock>,
    pub(super) started: Now,
    pub(super) asked_at: Instant,
    /// When the job request was sent.
    pub(super) requested_at: Option<Instant>,
    pub(super) last_trouble: Option<String>,
    /// Its executors of the class, by its first manifest: a later one is not to make an excuse of fewer receipts.
    pub(super) executors: Option<i64>,
    /// Its manifest was empty: it cannot, or will not, run jobs at present. It is asked all the same, because only its
    /// refusal says why.
    pub(super) offers_nothing: bool,
    /// Since when there is no connection.
    pub(super) lost_since: Option<Instant>,
    /// How long there may still be none.
    pub(super) away_left: Duration,
    /// What the miner may not have got, and how often it may be sent again.
    pub(super) accepted_receipt: Option<(V0JobAcceptedReceiptRequest, u32)>,
}

/// How an [`Attempt`] ended.
#[derive(Debug)]
pub(super) enum AttemptEnd {
    /// The job has its outcome, and what is the miner's fault in that.
    Ended(Outcome, Option<Incident>),
    /// The miner declined, could not be reached, or failed before the job request; the outcome if nobody else takes it
    /// either, and what is the miner's fault in that.
    NotTaken(Outcome, Option<Incident>),
    /// The miner's manifest does not name the class.
    NoSuchClass,
    /// The job was cancelled.
    Cancelled { goes_on: bool },
}

pub(super) fn ended(outcome: Outcome) -> Option<AttemptEnd> {
    let incident = Incident::of(&outcome);
    Some(AttemptEnd::Ended(outcome, incident))
}

impl Attempt {
    /// An attempt that begins, on a miner that is to be connected until `deadline`.
    pub(super) fn new(miner: PublicKey, deadline: Instant, now: Now) -> Self {
        Self {
            miner,
            phase: Phase::Connecting,
            deadline,
            stages: None,
            started: now,
            asked_at: now.mono,
            requested_at: None,
            last_trouble: None,
            executors: None,
            offers_nothing: false,
            lost_since: None,
            away_left: AWAY_TIME,
            accepted_receipt: None,
        }
    }

    /// Whether the miner has not taken the job yet.
    pub(super) fn may_be_declined(&self) -> bool {
        matches!(self.phase, Phase::Connecting | Phase::Reserving)
    }

    /// When the present stage has used up its time.
    pub(super) fn expires_at(&self) -> Instant {
        match self.lost_since {
            Some(_) => self.deadline + self.away_left,
            None => self.deadline,
        }
    }

    /// The miner is connected; true if it was lost before. What that took is taken off no limit.
    pub(super) fn is_back(&mut self, now: Now) -> bool {
        let Some(since) = self.lost_since.take() else { return false };
        let away = now.mono.saturating_duration_since(since).min(self.away_left);
        self.away_left -= away;
        self.deadline += away;
        if let Some(stages) = &mut self.stages {
            stages.postpone(away);
        }
        true
    }

    pub(super) fn not_connected(&self, why: &str) -> Outcome {
        Outcome::horde_failed(HordeFailureReason::MinerConnectionFailed, format!("miner {}: {why}", self.miner))
    }

    /// It offers nothing, and what it says to that, if it says anything.
    pub(super) fn without_executors(&self, says: &str) -> Outcome {
        let says = says.trim_end_matches('.');
        let says = if says.is_empty() { String::new() } else { format!(": {says}") };
        self.not_connected(&format!("it offers no executors at present{says}"))
    }

    /// The present stage has used up its time.
    pub(super) fn expired(&self) -> Option<AttemptEnd> {
        let (reason, what) = match self.phase {
            Phase::Connecting => {
                let why = self.last_trouble.as_deref().unwrap_or("no connection in time");
                return Some(AttemptEnd::NotTaken(self.not_connected(why), Some(Incident::Unreachable)));
            }
            Phase::Reserving if self.offers_nothing => {
                return Some(AttemptEnd::NotTaken(self.without_executors(""), None));
            }
            Phase::Reserving => (HordeFailureReason::InitialResponseTimedOut, "the answer to the initial request"),
            Phase::Starting => (HordeFailureReason::ExecutorReadinessResponseTimedOut, "the executor's readiness"),
            Phase::Resuming => (HordeFailureReason::ExecutionTimedOut, "the end of the job"),
            Phase::Running(stage) => (stage.timed_out(), stage.waits_for()),
        };
        let trouble = self.last_trouble.as_ref().map_or_else(String::new, |t| format!(" (last trouble: {t})"));
        let message = format!("waiting for {what} took too long{trouble}");
        ended(Outcome::horde_failed(reason, message))
    }
}

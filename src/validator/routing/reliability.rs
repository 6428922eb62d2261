//! How dependable a miner has been with our jobs. Pure.
//!
//! What it did counts with a weight that is halved after each half-life: a completed job for it, an [`Incident`]
//! against it. With nothing against it a miner is worth 1; its claims, as the number of its executors, do not count.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::base::text::truncated;
use crate::protocol::{HordeFailureReason, JobParticipantType, JobRejectionReason};
use crate::validator::status::Outcome;

/// How long until what a miner did counts half, unless the configuration says otherwise: as long as most troubles of a
/// machine take to be seen to.
pub const HALF_LIFE: Duration = Duration::from_secs(1800);

/// What every miner has for it from the beginning: one bad job is not to make a new miner as bad as can be.
const PRIOR: f64 = 2.0;

/// The last incidents of each miner that are shown.
const SHOWN: usize = 8;

/// Bytes of what is shown of an incident; some of it the miner wrote.
const WHY_BYTES: usize = 200;

/// Something that a miner did wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Incident {
    /// It declined a job as busy, without an excuse.
    Declined,
    /// It could not be reached.
    Unreachable,
    /// It does not want our jobs.
    Refused,
    /// It was lost while it had a job.
    Lost,
    /// It had a job and did not say in time how far it is.
    TimedOut,
    /// It gave a job up.
    Failed,
}

impl Incident {
    /// All of them, for a metric of each.
    pub const ALL: [Self; 6] =
        [Self::Declined, Self::Unreachable, Self::Refused, Self::Lost, Self::TimedOut, Self::Failed];

    /// Its name, as of a label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Declined => "declined",
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
            Self::Lost => "lost",
            Self::TimedOut => "timed_out",
            Self::Failed => "failed",
        }
    }

    /// How much it counts against the miner at first; a completed job counts 1 for it. A job that was begun has cost
    /// its user more time than one that another miner takes at once.
    pub fn weight(self) -> f64 {
        match self {
            Self::Declined => 0.5,
            Self::Unreachable | Self::Refused => 1.0,
            Self::Lost | Self::TimedOut | Self::Failed => 2.0,
        }
    }

    /// Whether a failure of our own network looks the same.
    pub fn may_be_us(self) -> bool {
        matches!(self, Self::Unreachable | Self::Lost | Self::TimedOut)
    }

    /// What the end of a job says against the miner that was asked for it. Nothing, where the job or this validator may
    /// be to blame: the job's own failure, or a limit of the job that others say is over.
    pub fn of(outcome: &Outcome) -> Option<Self> {
        use HordeFailureReason as H;
        match outcome {
            Outcome::Completed(_) | Outcome::Failed(_) => None,
            Outcome::Rejected(details) if details.rejected_by == JobParticipantType::Validator => None,
            Outcome::Rejected(details) => Some(match details.reason {
                JobRejectionReason::Busy => Self::Declined,
                _ => Self::Refused,
            }),
            Outcome::HordeFailed(details) => {
                let ours = details.reported_by == JobParticipantType::Validator;
                match details.reason {
                    H::MinerConnectionFailed => Some(Self::Lost),
                    H::InitialResponseTimedOut | H::ExecutorReadinessResponseTimedOut => Some(Self::TimedOut),
                    H::VolumesTimedOut
                    | H::StreamingJobReadyTimedOut
                    | H::ExecutionTimedOut
                    | H::FinalResponseTimedOut => ours.then_some(Self::TimedOut),
                    H::ExecutorSpinupFailed | H::ExecutorDisconnected | H::SecurityCheckFailed => Some(Self::Failed),
                    // The job's own streaming server may not have come up.
                    H::StreamingFailed => None,
                    H::Unknown | H::GenericError | H::UnhandledException | H::UnhandledTimeout => {
                        (!ours).then_some(Self::Failed)
                    }
                }
            }
        }
    }
}

/// A sum whose parts are halved after each half-life; with the moment of the last one.
#[derive(Debug, Clone, Copy, Default)]
struct Fading(Option<(f64, Instant)>);

impl Fading {
    fn at(&self, now: Instant, half_life: Duration) -> f64 {
        self.0.map_or(0.0, |(sum, at)| sum * faded(now.saturating_duration_since(at), half_life))
    }

    fn add(&mut self, weight: f64, now: Instant, half_life: Duration) {
        self.0 = Some((self.at(now, half_life) + weight, now));
    }
}

/// What is left of 1 after this time: a half after each half-life.
pub(super) fn faded(age: Duration, half_life: Duration) -> f64 {
    match half_life.is_zero() {
        true => 0.0,
        false => (-age.as_secs_f64() / half_life.as_secs_f64()).exp2(),
    }
}

/// What one miner has for it and against it.
#[derive(Debug, Clone, Default)]
pub(super) struct Reliability {
    completed: Fading,
    incidents: Fading,
    /// The last ones, oldest first.
    last: VecDeque<(Incident, Instant, String)>,
}

/// How dependable a miner is at a moment, with the numbers that it is made of:
/// `(2 + completed) / (2 + completed + incidents)`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ReliabilityNumbers {
    /// From 0 to 1.
    pub reliability: f64,
    /// The faded sum of its completed jobs.
    pub completed: f64,
    /// The faded sum of the weights of its incidents.
    pub incidents: f64,
}

impl ReliabilityNumbers {
    /// In tenths, by which miners are compared: a difference below that says little.
    pub(super) fn tenths(&self) -> u8 {
        // It is between 0 and 1.
        (self.reliability * 10.0).round() as u8
    }
}

/// An incident as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ShownIncident {
    /// What.
    pub kind: &'static str,
    /// How long ago.
    pub seconds_ago: u64,
    /// How much it still counts.
    pub weight: f64,
    /// In words, cut.
    pub why: String,
}

impl Reliability {
    pub(super) fn completed(&mut self, now: Instant, half_life: Duration) {
        self.completed.add(1.0, now, half_life);
    }

    pub(super) fn incident(&mut self, incident: Incident, why: &str, now: Instant, half_life: Duration) {
        self.incidents.add(incident.weight(), now, half_life);
        if self.last.len() == SHOWN {
            self.last.pop_front();
        }
        self.last.push_back((incident, now, truncated(why, WHY_BYTES).to_owned()));
    }

    pub(super) fn numbers(&self, now: Instant, half_life: Duration) -> ReliabilityNumbers {
        let (completed, incidents) = (self.completed.at(now, half_life), self.incidents.at(now, half_life));
        let good = PRIOR + completed;
        ReliabilityNumbers { reliability: good / (good + incidents), completed, incidents }
    }

    /// The last incidents, the newest first.
    pub(super) fn shown(&self, now: Instant, half_life: Duration) -> Vec<ShownIncident> {
        let shown = |(incident, at, why): &(Incident, Instant, String)| {
            let age = now.saturating_duration_since(*at);
            let weight = incident.weight() * faded(age, half_life);
            ShownIncident { kind: incident.name(), seconds_ago: age.as_secs(), weight, why: why.clone() }
        };
        self.last.iter().rev().map(shown).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;
    use crate::protocol::{HordeFailureDetails, JobRejectionDetails};

    fn horde(reason: HordeFailureReason, reported_by: JobParticipantType) -> Outcome {
        Outcome::HordeFailed(HordeFailureDetails { reported_by, reason, message: "m".to_owned(), context: None })
    }

    fn rejected(reason: JobRejectionReason, rejected_by: JobParticipantType) -> Outcome {
        Outcome::Rejected(JobRejectionDetails { rejected_by, reason, message: "m".to_owned(), context: None })
    }

    #[test]
    fn an_outcome_is_an_incident_where_the_miner_is_to_blame() {
        use HordeFailureReason as H;
        use JobParticipantType::{Executor, Miner, Validator};
        for (outcome, expected) in [
            (Outcome::completed("", ""), None),
            (rejected(JobRejectionReason::Busy, Miner), Some(Incident::Declined)),
            (rejected(JobRejectionReason::ValidatorBlacklisted, Miner), Some(Incident::Refused)),
            (rejected(JobRejectionReason::Busy, Validator), None),
            (horde(H::MinerConnectionFailed, Validator), Some(Incident::Lost)),
            (horde(H::InitialResponseTimedOut, Validator), Some(Incident::TimedOut)),
            (horde(H::ExecutionTimedOut, Validator), Some(Incident::TimedOut)),
            (horde(H::ExecutionTimedOut, Executor), None),
            (horde(H::VolumesTimedOut, Miner), None),
            (horde(H::FinalResponseTimedOut, Validator), Some(Incident::TimedOut)),
            (horde(H::ExecutorSpinupFailed, Miner), Some(Incident::Failed)),
            (horde(H::ExecutorDisconnected, Miner), Some(Incident::Failed)),
            (horde(H::GenericError, Miner), Some(Incident::Failed)),
            (horde(H::GenericError, Validator), None),
            (horde(H::StreamingFailed, Miner), None),
        ] {
            assert_eq!(Incident::of(&outcome), expected, "{outcome:?}");
        }
    }

    #[test]
    fn what_a_miner_did_counts_half_after_each_half_life() {
        let start = Instant::now();
        let after = |times: u32| start + HALF_LIFE * times;
        let mut miner = Reliability::default();
        let shown = |miner: &Reliability, times| miner.numbers(after(times), HALF_LIFE).reliability;
        assert_eq!(shown(&miner, 0), 1.0);
        miner.incident(Incident::Failed, "lost its executor", start, HALF_LIFE);
        assert_eq!([shown(&miner, 0), shown(&miner, 1), shown(&miner, 2)], [2.0 / 4.0, 2.0 / 3.0, 2.0 / 2.5]);
        miner.completed(after(1), HALF_LIFE);
        assert_eq!(shown(&miner, 1), 3.0 / 4.0);
        let [incident] = miner.shown(after(1), HALF_LIFE).try_into().unwrap();
        assert_eq!((incident.kind, incident.seconds_ago, incident.weight), ("failed", HALF_LIFE.as_secs(), 1.0));
    }

    #[test]
    fn the_shown_incidents_are_the_last_ones_and_their_words_are_cut() {
        let now = Instant::now();
        let mut miner = Reliability::default();
        for n in 0..20 {
            miner.incident(Incident::Declined, &format!("{n} {}", "ä".repeat(500)), now, HALF_LIFE);
        }
        let shown = miner.shown(now, HALF_LIFE);
        assert_eq!(shown.len(), SHOWN);
        assert!(shown[0].why.starts_with("19 ") && shown.iter().all(|incident| incident.why.len() <= WHY_BYTES));
    }

    /// Whatever happens in whatever order: reliability is above 0 and at most 1, an incident lowers it, a completed job
    /// does not, and time alone brings it back.
    #[test]
    fn reliability_moves_in_the_right_direction() {
        let seed = Rng::from_entropy().next_u64();
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        let start = Instant::now();
        for _ in 0..200 {
            let (mut miner, mut now) = (Reliability::default(), start);
            for _ in 0..100 {
                let before = miner.numbers(now, HALF_LIFE).reliability;
                match rng.next_u64() % 3 {
                    0 => {
                        miner.completed(now, HALF_LIFE);
                        assert!(miner.numbers(now, HALF_LIFE).reliability >= before, "seed {seed}");
                    }
                    1 => {
                        let incident = Incident::ALL[(rng.next_u64() % 6) as usize];
                        miner.incident(incident, "", now, HALF_LIFE);
                        assert!(miner.numbers(now, HALF_LIFE).reliability < before, "seed {seed}");
                    }
                    _ => now += Duration::from_secs(rng.next_u64() % 7200),
                }
                let reliability = miner.numbers(now, HALF_LIFE).reliability;
                assert!(reliability > 0.0 && reliability <= 1.0, "seed {seed}: {reliability}");
            }
            assert!(miner.numbers(now + HALF_LIFE * 40, HALF_LIFE).reliability > 0.999, "seed {seed}");
        }
    }
}

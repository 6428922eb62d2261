//! What a miner says, and what that means for its jobs. Pure.

use super::super::job::{Job, Phase, Step, judged};
use super::super::line::{BatchOutcome, in_words};
use super::{Batch, Gate, MinerPhase};
use crate::base::now::Now;
use crate::protocol::{DateTime, JobRejectionReason, MinerToValidator, V0DeclineJobRequest, ValidatorToMiner};
use crate::validator::excuses::{self, Declined, Verdict};
use crate::validator::job_messages::{job_uuid, kind};
use crate::validator::status::Outcome;

impl Batch {
    pub(super) fn message(&mut self, miner: usize, message: MinerToValidator, now: Now) {
        use MinerToValidator as M;
        match (message, self.miners[miner].phase) {
            (M::V0ExecutorManifestRequest(manifest), MinerPhase::Connecting) => {
                let manifest: Vec<_> =
                    manifest.manifest.iter().map(|(class, count)| (*class, count.saturating_i64())).collect();
                self.plan(miner, manifest);
            }
            (M::V0ExecutorManifestRequest(_), _) => self.is_back(miner),
            (M::GenericError(error), _) => self.miners[miner].trouble = error.details,
            (M::UnauthorizedError(error), _) => {
                let why = format!("{} {}", error.code, error.details.unwrap_or_default());
                self.end_jobs(miner, BatchOutcome::Unauthorized, why.trim_end(), now);
            }
            (message, _) => {
                let uuid = job_uuid(&message);
                let job = uuid.and_then(|uuid| self.by_uuid.get(uuid)).copied();
                // One that was asked for again has another uuid now; of one that was not asked for it knows nothing.
                let is_its = |job: &Job| job.miner == miner && Some(job.uuid.as_str()) == uuid && job.asked.is_some();
                match job.filter(|job| is_its(&self.jobs[*job])) {
                    Some(job) => self.job_message(job, message, now),
                    None => log::debug!("miner {}: {} of no job of its", self.name(miner), kind(&message)),
                }
            }
        }
    }

    pub(super) fn job_message(&mut self, number: usize, message: MinerToValidator, now: Now) {
        let what = kind(&message);
        let verdict = match &message {
            MinerToValidator::V0DeclineJobRequest(decline) if self.jobs[number].phase == Phase::Asked => {
                Some(self.judge_refusal(number, decline))
            }
            _ => None,
        };
        let (job, gate_closed) = (&mut self.jobs[number], self.gate == Gate::Closed);
        match job.message(message, now, self.config.times.margin) {
            Step::None => {
                self.progress.repeats += 1;
                let what = format_args!("job {}: {what} counts for nothing, as a repeat or out of step", job.uuid);
                self.repeats.info(now.mono, &what);
            }
            Step::Accepted => {
                job.deadline = Some(now.mono + job.class.spin_up_time() + self.config.times.executor_startup);
                let miner = job.miner;
                let receipt = self.messages(number).accepted_receipt(now);
                self.send(miner, receipt);
                self.set_deadline(number);
            }
            Step::Ready => {
                self.before_gate -= 1;
                self.progress.ready += 1;
                self.set_deadline(number);
                let request = self.messages(number).job_request();
                self.prepared.insert(number, ValidatorToMiner::from(request).encode());
            }
            Step::Stage => self.set_deadline(number),
            Step::Broken(why) => self.end_job(number, BatchOutcome::ProtocolError, Some(why), None, now),
            Step::Answer(outcome) => {
                let (retried, is_early) = (job.retried, job.is_before_gate() || job.phase == Phase::Ready);
                let is_tried_again = match &*outcome {
                    Outcome::HordeFailed(_) => retried < self.config.retries,
                    outcome => job.is_forgotten(outcome),
                };
                if is_tried_again && is_early && gate_closed {
                    return self.ask_again(number, &outcome, now);
                }
                let (end, reason) = match (job.phase, job.deadline) {
                    (Phase::Over(_), Some(deadline)) => {
                        let late = now.mono.saturating_duration_since(deadline);
                        let word = in_words(&outcome).0.as_str();
                        (BatchOutcome::Timeout, Some(format!("late by {:.3} s: {word}", late.as_secs_f64())))
                    }
                    _ => judged(&outcome, &job.request, &mut *self.judge),
                };
                let excuse = verdict.filter(|verdict| *verdict != Verdict::NotBusy);
                job.excused = excuse.as_ref().is_some_and(Verdict::is_excused);
                let reason =
                    excuse.map_or(reason.clone(), |excuse| Some(format!("{excuse}: {}", reason.unwrap_or_default())));
                self.end_job(number, end, reason.as_deref(), Some(outcome), now);
            }
        }
    }

    /// Whether the refusal of a job is excused, by organic jobs of this validator and of those that it knows.
    fn judge_refusal(&mut self, number: usize, decline: &V0DeclineJobRequest) -> Verdict {
        let job = &self.jobs[number];
        let miner = &self.miners[job.miner];
        let (Some(asked), JobRejectionReason::Busy) = (job.asked, decline.reason) else { return Verdict::NotBusy };
        if let Some(verdict) = miner.excuses.get(&job.class) {
            return verdict.clone();
        }
        let executors = miner.executors.iter().find(|(class, _)| *class == job.class).map_or(0, |(_, count)| *count);
        let declined = Declined {
            job_uuid: &job.uuid,
            class: job.class,
            miner: miner.address.hotkey,
            asked_at: DateTime::from_unix_micros(asked.unix_micros()),
            is_organic: false,
            executors,
        };
        let (own, known) = (self.config.key.public(), &self.config.known);
        let verdict = excuses::judge(decline, &declined, |validator| *validator == own || known.contains(validator));
        let (miner, class) = (job.miner, job.class);
        self.miners[miner].excuses.insert(class, verdict.clone());
        verdict
    }
}

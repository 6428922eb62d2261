//! What a miner says, and what that means for its jobs. Pure.

use super::super::job::{Job, Phase, Step, judged};
use super::super::line::{BatchOutcome, in_words};
use super::{Batch, Due, Gate, MinerPhase};
use crate::base::now::Now;
use crate::protocol::{MinerToValidator, ValidatorToMiner};
use crate::validator::job_messages::{job_uuid, kind};
use crate::validator::status::Outcome;

impl Batch {
    pub(super) fn message(&mut self, miner: usize, message: MinerToValidator, now: Now) {
        use MinerToValidator as M;
        match (message, self.miners[miner].phase) {
            (M::V0ExecutorManifestRequest(manifest), MinerPhase::Connecting) => {
                let manifest: Vec<_> =
                    manifest.manifest.iter().map(|(class, count)| (*class, count.saturating_i64())).collect();
                self.plan(miner, manifest, now);
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
                // One that was asked for again has another uuid now.
                let is_its = |job: &Job| job.miner == miner && Some(job.uuid.as_str()) == uuid;
                match job.filter(|job| is_its(&self.jobs[*job])) {
                    Some(job) => self.job_message(job, message, now),
                    None => log::debug!("miner {}: {} of no job of its", self.name(miner), kind(&message)),
                }
            }
        }
    }

    pub(super) fn job_message(&mut self, number: usize, message: MinerToValidator, now: Now) {
        let what = kind(&message);
        let (job, gate_closed) = (&mut self.jobs[number], self.gate == Gate::Closed);
        match job.message(message, now, self.config.times.margin) {
            Step::None => {
                self.progress.repeats += 1;
                log::info!("job {}: {what} counts for nothing, as a repeat or out of step", job.uuid);
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
                if self.progress.ready == 1 {
                    self.deadlines.set(Due::Gate, Some(now.mono + self.config.gate));
                }
            }
            Step::Stage => self.set_deadline(number),
            Step::Broken(why) => self.end_job(number, BatchOutcome::ProtocolError, Some(why), None, now),
            Step::Answer(outcome) => {
                let (attempts, is_early) = (job.attempts, job.is_before_gate() || job.phase == Phase::Ready);
                if let Outcome::HordeFailed(_) = &*outcome
                    && is_early
                    && gate_closed
                    && attempts <= self.config.retries
                {
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
                self.end_job(number, end, reason.as_deref(), Some(outcome), now);
            }
        }
    }
}

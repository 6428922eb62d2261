//! What outlives the miner's process: jobs go to the disk as they change, and come back at the next start. Pure.

use super::io::Action;
use super::job::{Executor, JobKey, MinerJob, News, Phase};
use super::saved::{self, Restored};
use super::state::Router;
use crate::base::now::Now;
use crate::miner::executor_manager::{ExecutorSpec, Owner};
use crate::ops::errors::ErrorClass;
use crate::protocol::{ExecutorClass, HordeFailureReason, MinerToValidator, V0AcceptJobRequest};
use crate::store::miner::{JobChange, JobRow};

/// What is reported to a validator of a job on a host that is not there after a restart; which is the operator's
/// business.
const LOST_HOST: &str = "the miner was started again without the host of the executor";

impl Router {
    /// What has changed of jobs since the last call. It is to be written before anything else is done.
    pub(super) fn changes(&mut self, now: Now) -> Vec<Action> {
        let forgotten = std::mem::take(&mut self.forgotten).into_iter();
        let mut changes: Vec<_> =
            forgotten.map(|JobKey { validator, uuid }| Action::Save(JobChange::Forget { validator, uuid })).collect();
        for (key, job) in &mut self.jobs {
            if matches!(job.phase, Phase::Storing(_)) {
                // Its row is written with its receipt.
                continue;
            }
            let mark = job.mark();
            if job.saved != Some(mark) {
                job.saved = Some(mark);
                changes.push(Action::Save(JobChange::Put(job.row(key, now))));
            }
        }
        changes
    }

    /// Takes back the jobs that an earlier process has left, and says what to do: their executors may live and come
    /// back by themselves, or be gone, which whoever adopts them finds out. To be called once, before anything else.
    pub fn restore(&mut self, rows: Vec<JobRow>, now: Now) -> Vec<Action> {
        for row in rows {
            let (validator, uuid) = (row.validator.clone(), row.uuid.clone());
            match saved::read(row, &self.limits, now) {
                Ok(restored) => self.take_back(restored, now),
                Err(why) => {
                    let what = format!("job {uuid}: what was saved of it cannot be read, so it is forgotten: {why}");
                    self.trouble(ErrorClass::Fatal, "earlier-jobs", what);
                    self.forgotten.push(JobKey { validator, uuid });
                }
            }
        }
        let mut out = self.changes(now);
        out.append(&mut self.out);
        out
    }

    fn take_back(&mut self, restored: Restored, now: Now) {
        let Restored { key, mut job, executor, address } = restored;
        let class = job.initial.executor_class;
        if job.notified.is_none() {
            // Its receipt is on disk, so it was accepted, whether or not the validator was told.
            let accepted: MinerToValidator = V0AcceptJobRequest { job_uuid: key.uuid.clone() }.into();
            job.keep(News::Accepted, accepted.encode().into());
        }
        self.tokens.insert(job.placed.token.clone(), key.clone());
        if !executor {
            self.jobs.insert(key, job);
            return;
        }
        let host = job.placed.host;
        let lease = match self.pool.reserve(host, class, job.placed.ready_by) {
            Ok(lease) => lease,
            Err(_) if !self.hosts.contains_key(&host) => {
                let what = format!(
                    "job {}: its executor is lost, because host {host} is not in the settings any more; what there is \
                     of it there has the label phalanx.executor={}",
                    key.uuid, job.placed.run
                );
                self.trouble(ErrorClass::Fatal, "earlier-jobs", what);
                let loss = job.loss();
                self.jobs.insert(key.clone(), job);
                return self.fail_once(&key, loss, LOST_HOST.to_owned(), now);
            }
            Err(busy) => {
                self.jobs.insert(key.clone(), job);
                let why = format!("the miner was started again with fewer executors: {busy}");
                return self.fail_once(&key, HordeFailureReason::GenericError, why, now);
            }
        };
        let slot = lease.slot();
        let mut executor = Executor::new(slot, job.placed.token.clone());
        executor.address = address;
        match job.phase {
            Phase::Over(_) => {
                executor.end_at = Some(now.mono + self.limits.exit_time);
                self.pool.ending(slot, now.mono + self.limits.exit_time + self.limits.end_time);
            }
            // Until its first connection the reservation decides.
            Phase::Storing(_) | Phase::Starting => {}
            Phase::Ready(_) | Phase::Running(..) | Phase::FinalMessages(..) => {
                executor.back_by = Some(now.mono + self.limits.reconnect_grace);
                executor.gone_since = Some(now.mono);
                self.pool.ready(slot);
            }
        }
        // Nobody's limits ran while there was no miner. When it was killed nobody knows, but an executor that lives has
        // not waited for longer.
        job.phase.postpone(self.limits.reconnect_grace);
        job.executor = Some(executor);
        let spec = self.spec(&key, class, &job);
        log::info!("job {}: was left by an earlier process of this miner; its executor is looked for", key.uuid);
        self.jobs.insert(key, job);
        self.out.push(Action::Adopt(spec, lease));
    }

    fn fail_once(&mut self, key: &JobKey, reason: HordeFailureReason, why: String, now: Now) {
        if self.jobs.get(key).is_some_and(|job| !job.is_over()) {
            self.fail(key, reason, why, now);
        }
    }

    /// What there is to know of a job's executor.
    pub(super) fn spec(&self, key: &JobKey, class: ExecutorClass, job: &MinerJob) -> ExecutorSpec {
        ExecutorSpec {
            run: job.placed.run.clone(),
            owner: Owner { epoch: job.placed.epoch, ..self.owner.clone() },
            token: job.placed.token.clone(),
            job_uuid: key.uuid.clone(),
            miner_address: self.executor_address.clone(),
            class,
            startup_time_limit: self.limits.startup_time_limit,
        }
    }
}

//! What is remembered of jobs beside their updates, and for how long: their uuids, their signatures, and on which of
//! them a miner cheated. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::cheats::{self, ReportSigned};
use super::super::record::{JobRecord, Signed};
use super::{JobEntry, Ledger, NotAdmitted};
use crate::base::now::Now;
use crate::identity::PublicKey;
use crate::protocol::JobStatus;
use crate::validator::authorization::{Authorized, counts_until, latest_signed_at};

impl Ledger {
    /// Notes by which signature a job runs. It is on disk with the job's next update. What would run a second job by a
    /// signature is refused, also where nobody can tell any more: nothing is forgotten for it to get in.
    ///
    /// # Errors
    /// [`NotAdmitted`]; then nothing has changed.
    pub fn admit(&mut self, job: u64, authorized: &Authorized, now: Now) -> Result<(), NotAdmitted> {
        let signature = *authorized.signature();
        if let Some(other) = self.by_signature.get(&signature).filter(|other| **other != job) {
            let uuid =
                self.jobs.get(other).map_or_else(|| Arc::from("that is not known"), |entry| entry.record.uuid.clone());
            return Err(NotAdmitted::SignatureUsed(uuid));
        }
        if authorized.signed_at() <= self.signatures_lost_until {
            return Err(NotAdmitted::SignedBefore);
        }
        if self.by_signature.len() >= self.limits.signed {
            self.forget_old(now);
        }
        if self.by_signature.len() >= self.limits.signed {
            return Err(NotAdmitted::Full(self.by_signature.len()));
        }
        if let Some(entry) = self.jobs.get_mut(&job) {
            entry.record.signed =
                Some(Signed { by: authorized.signer(), signature, signed_at: authorized.signed_at() });
            self.by_signature.insert(signature, job);
            self.touch(job);
        }
        Ok(())
    }

    /// A report that the miner of a job cheated, as the comparison with a job on a trusted miner shows: the miner, if
    /// the report counts, see `cheats`. It counts once for a job: whoever has seen it could send it again for as long
    /// as its signature counts, and punish the miner each time.
    ///
    /// # Errors
    /// Why the report changes nothing, in words.
    pub fn cheated(
        &mut self,
        uuid: &str,
        trusted: &str,
        report: ReportSigned,
        now: Now,
    ) -> Result<PublicKey, &'static str> {
        let since = now.unix_millis().saturating_sub(cheats::DAY_MS);
        let counts = |record: &JobRecord| {
            record.cheated_at.is_some_and(|at| at > since) && record.signed.is_some_and(|signed| signed.by == report.by)
        };
        let counted = self.jobs.values().filter(|entry| counts(&entry.record)).count();
        let record = |uuid: &str| Some(&self.jobs.get(self.by_uuid.get(uuid)?)?.record);
        let miner = cheats::judge(record(uuid), record(trusted), report, counted)?;
        let job = self.by_uuid[uuid];
        if let Some(entry) = self.jobs.get_mut(&job) {
            entry.record.cheated_at = Some(now.unix_millis());
        }
        self.touch(job);
        Ok(miner)
    }

    /// The miners that were reported, each with the time of its newest report.
    pub fn cheaters(&self) -> HashMap<PublicKey, u64> {
        let mut cheaters = HashMap::new();
        for record in self.jobs.values().map(|entry| &entry.record) {
            if let (Some(miner), Some(at)) = (record.miner, record.cheated_at) {
                let newest = cheaters.entry(miner).or_insert(at);
                *newest = at.max(*newest);
            }
        }
        cheaters
    }

    /// Whether a job came here, and is known not to have run on this miner: another took it, or nobody did before it
    /// was rejected.
    pub fn did_not_run_on(&self, uuid: &str, miner: &PublicKey) -> bool {
        let record = self.by_uuid.get(uuid).and_then(|job| self.jobs.get(job)).map(|entry| &entry.record);
        record.is_some_and(|record| match record.miner {
            Some(took) => took != *miner,
            None => record.last == Some(JobStatus::Rejected),
        })
    }

    /// Forgets the jobs that were over first; those with dead letters go when their letters have gone, those whose
    /// signature could be used again when that is too old, those on which a miner cheated later still.
    pub(super) fn forget_old(&mut self, now: Now) {
        while let Some(job) = self.over_signed.front().copied()
            && !self.is_signature_live(job, now)
        {
            self.over_signed.pop_front();
            self.over.push_front(job);
        }
        while let Some(job) = self.over_cheated.front().copied()
            && !self.is_cheat_kept(job, now)
        {
            self.over_cheated.pop_front();
            self.over.push_front(job);
        }
        while self.over.len() > self.limits.remembered {
            let Some(job) = self.over.pop_front() else { return };
            let Some(entry) = self.jobs.get(&job) else { continue };
            if !entry.record.dead.is_empty() {
                self.over.push_back(job);
                return;
            }
            if self.is_signature_live(job, now) {
                self.over_signed.push_back(job);
                continue;
            }
            if self.is_cheat_kept(job, now) {
                self.over_cheated.push_back(job);
                continue;
            }
            if let Some(signed) = entry.record.signed {
                self.by_signature.remove(&signed.signature);
            }
            self.by_uuid.remove(&entry.record.uuid);
            self.jobs.remove(&job);
            if self.is_durable() {
                self.forgotten.push(job);
            }
        }
    }

    /// Whether the miner of a job cheated on it, not too long ago.
    fn is_cheat_kept(&self, job: u64, now: Now) -> bool {
        let cheated_at = self.jobs.get(&job).and_then(|entry| entry.record.cheated_at);
        cheated_at.is_some_and(|at| now.unix_millis().saturating_sub(at) < cheats::KEPT_MS)
    }

    /// Whether the signature of a job could be used again.
    fn is_signature_live(&self, job: u64, now: Now) -> bool {
        let Some(JobEntry { record, .. }) = self.jobs.get(&job) else { return false };
        let lost = record.signature_lost.then(|| latest_signed_at(record.taken_at));
        let signed_at = record.signed.map(|signed| signed.signed_at).or(lost);
        signed_at.is_some_and(|at| counts_until(at, self.signature_age) >= now.unix_millis())
    }
}

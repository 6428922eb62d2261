//! Whether a report that a miner cheated at a job counts. Pure.
//!
//! A report names the job, and the one on a trusted miner that it was compared with; whether both ask for the same, is
//! the signer's word. It counts once for a job, and
//! only if both have completed here: the one on an ordinary miner, the other on a trusted one. So no report reaches a
//! trusted miner, and none counts that nobody can have had a reason for. Both jobs have to be of the report's signer,
//! who has signed them before it, and only so many reports of one signer count in a day.

use super::record::JobRecord;
use crate::identity::PublicKey;
use crate::protocol::JobStatus;

/// Reports of one signer that count in a day: who has more to complain of should look at what it compares.
pub(super) const REPORTS_PER_DAY: usize = 20;

/// How long a job is remembered on which its miner cheated, in milliseconds: 31 days, at most 620 jobs of each signer.
/// No blacklist is wanted for longer.
pub(super) const KEPT_MS: u64 = 31 * DAY_MS;

/// A day, in milliseconds.
pub(super) const DAY_MS: u64 = 24 * 3600 * 1000;

/// By whom a report is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportSigned {
    /// Who signed it.
    pub by: PublicKey,
    /// When, in milliseconds since 1970.
    pub signed_at: u64,
}

/// The miner that a report is about; `job` and `trusted` are what is known of the two jobs, and `counted` of its
/// signer's reports have counted in the day before.
///
/// # Errors
/// Why the report changes nothing, in words.
pub(super) fn judge(
    job: Option<&JobRecord>,
    trusted: Option<&JobRecord>,
    report: ReportSigned,
    counted: usize,
) -> Result<PublicKey, &'static str> {
    let is_signers = |record: &JobRecord| record.signed.is_some_and(|signed| signed.by == report.by);
    let is_older = |record: &JobRecord| record.signed.is_some_and(|signed| report.signed_at < signed.signed_at);
    let job = job.ok_or("the job is not known")?;
    if !is_signers(job) {
        return Err("the signer of the report has not signed the job");
    }
    if job.on_trusted {
        return Err("the job was for a trusted miner");
    }
    let miner = job.miner.ok_or("no miner took the job")?;
    if job.cheated_at.is_some() {
        return Err("the job was reported before");
    }
    if job.last != Some(JobStatus::Completed) {
        return Err("the job has not completed");
    }
    let trusted = trusted.ok_or("the trusted job that it is compared with is not known")?;
    if !trusted.on_trusted {
        return Err("the job that it is compared with was not for a trusted miner");
    }
    if !is_signers(trusted) {
        return Err("the signer of the report has not signed the trusted job");
    }
    if is_older(job) || is_older(trusted) {
        return Err("the report was signed before its jobs");
    }
    let compared = trusted.miner.ok_or("no miner took the trusted job that it is compared with")?;
    if trusted.last != Some(JobStatus::Completed) {
        return Err("the trusted job that it is compared with has not completed");
    }
    if compared == miner {
        return Err("both jobs ran on the same miner");
    }
    if counted >= REPORTS_PER_DAY {
        return Err("as many reports of its signer as count in a day have counted");
    }
    Ok(miner)
}

#[cfg(test)]
mod tests {
    use super::super::record::Signed;
    use super::*;

    fn report() -> ReportSigned {
        ReportSigned { by: PublicKey::from_bytes([7; 32]), signed_at: 5 }
    }

    fn ran(on_trusted: bool, miner: u8) -> JobRecord {
        JobRecord {
            on_trusted,
            signed: Some(Signed { by: report().by, signature: [0; 64], signed_at: 5 }),
            miner: Some(PublicKey::from_bytes([miner; 32])),
            last: Some(JobStatus::Completed),
            ended: true,
            ..JobRecord::new("u".into(), 1)
        }
    }

    #[test]
    fn a_report_counts_when_both_jobs_completed_each_on_its_kind_of_miner() {
        let judge =
            |job: Option<&JobRecord>, trusted: Option<&JobRecord>| judge(job, trusted, report(), REPORTS_PER_DAY - 1);
        let (job, trusted) = (ran(false, 1), ran(true, 2));
        assert_eq!(judge(Some(&job), Some(&trusted)), Ok(PublicKey::from_bytes([1; 32])));
        type Change = fn(&mut JobRecord);
        let change = |record: &JobRecord, change: Change| {
            let mut record = record.clone();
            change(&mut record);
            Some(record)
        };
        let no_miner: Change = |record| record.miner = None;
        let signed_later: Change = |record| record.signed.as_mut().unwrap().signed_at = 6;
        let failed: Change = |record| record.last = Some(JobStatus::Failed);
        let (good, of_trusted) = (|| Some(job.clone()), || Some(trusted.clone()));
        for (job, trusted, why) in [
            (None, of_trusted(), "the job is not known"),
            (of_trusted(), of_trusted(), "the job was for a trusted miner"),
            (change(&job, no_miner), of_trusted(), "no miner took the job"),
            (change(&job, |r| r.cheated_at = Some(3)), of_trusted(), "reported before"),
            (change(&job, failed), of_trusted(), "the job has not completed"),
            (change(&job, |r| r.last = Some(JobStatus::ExecutionDone)), of_trusted(), "the job has not completed"),
            (good(), None, "compared with is not known"),
            (good(), good(), "was not for a trusted miner"),
            (good(), change(&trusted, no_miner), "no miner took the trusted job"),
            (good(), change(&trusted, failed), "compared with has not completed"),
            (good(), Some(ran(true, 1)), "the same miner"),
            (change(&job, signed_later), of_trusted(), "signed before its jobs"),
            (good(), change(&trusted, signed_later), "signed before its jobs"),
        ] {
            let refused = judge(job.as_ref(), trusted.as_ref()).unwrap_err();
            assert!(refused.contains(why), "{refused:?} should say {why:?}");
        }
    }

    #[test]
    fn a_report_counts_for_its_signers_own_jobs_and_only_so_many_do_in_a_day() {
        let other = PublicKey::from_bytes([8; 32]);
        let (job, trusted) = (ran(false, 1), ran(true, 2));
        let of_other = |record: &JobRecord| JobRecord {
            signed: record.signed.map(|s| Signed { by: other, ..s }),
            ..record.clone()
        };
        let unsigned = JobRecord { signed: None, ..job.clone() };
        let why = |job: &JobRecord, trusted: &JobRecord, counted| {
            judge(Some(job), Some(trusted), report(), counted).unwrap_err()
        };
        assert_eq!(why(&of_other(&job), &trusted, 0), "the signer of the report has not signed the job");
        assert_eq!(why(&unsigned, &trusted, 0), "the signer of the report has not signed the job");
        assert_eq!(why(&job, &of_other(&trusted), 0), "the signer of the report has not signed the trusted job");
        let most = "as many reports of its signer as count in a day have counted";
        assert_eq!(why(&job, &trusted, REPORTS_PER_DAY), most);
    }
}

//! Whether a report that a miner cheated at a job counts. Pure.
//!
//! A report names the job, and the same job on a trusted miner that it was compared with. It counts once for a job, and
//! only if both have completed here: the one on an ordinary miner, the other on a trusted one. So no report reaches a
//! trusted miner, and none counts that nobody can have had a reason for.

use super::record::JobRecord;
use crate::identity::PublicKey;
use crate::protocol::JobStatus;

/// The miner that a report is about; `job` and `trusted` are what is known of the two jobs.
///
/// # Errors
/// Why the report changes nothing, in words.
pub(super) fn judge(job: Option<&JobRecord>, trusted: Option<&JobRecord>) -> Result<PublicKey, &'static str> {
    let job = job.ok_or("the job is not known")?;
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
    let compared = trusted.miner.ok_or("no miner took the trusted job that it is compared with")?;
    if trusted.last != Some(JobStatus::Completed) {
        return Err("the trusted job that it is compared with has not completed");
    }
    if compared == miner {
        return Err("both jobs ran on the same miner");
    }
    Ok(miner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(on_trusted: bool, miner: u8) -> JobRecord {
        JobRecord {
            on_trusted,
            miner: Some(PublicKey::from_bytes([miner; 32])),
            last: Some(JobStatus::Completed),
            ended: true,
            ..JobRecord::new("u".into(), 1)
        }
    }

    #[test]
    fn a_report_counts_when_both_jobs_completed_each_on_its_kind_of_miner() {
        let (job, trusted) = (ran(false, 1), ran(true, 2));
        assert_eq!(judge(Some(&job), Some(&trusted)), Ok(PublicKey::from_bytes([1; 32])));
        type Change = fn(&mut JobRecord);
        let change = |record: &JobRecord, change: Change| {
            let mut record = record.clone();
            change(&mut record);
            Some(record)
        };
        let no_miner: Change = |record| record.miner = None;
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
        ] {
            let refused = judge(job.as_ref(), trusted.as_ref()).unwrap_err();
            assert!(refused.contains(why), "{refused:?} should say {why:?}");
        }
    }
}

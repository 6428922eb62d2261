//! What runs on the threads of [`checks`](super::checks): a good signature makes a job of a request.

use std::sync::Arc;

use crossbeam_channel::Sender;

use super::job::{Job, JobHandler, guarded};
use crate::base::scope;
use crate::base::shutdown::Shutdown;
use crate::identity::PublicKey;
use crate::protocol::signing::verify_job_requests;
use crate::protocol::{JobRejectionReason, SignedRequest, V0JobCheated, V2JobRequest};
use crate::validator::ledger::Delivery;

/// Something signed that waits for its check.
pub(super) enum Check {
    Job { number: u64, request: Box<V2JobRequest>, alive: Sender<()> },
    Cheated(Box<V0JobCheated>),
}

/// Who may sign for us.
pub(super) struct Signers {
    pub(super) key: PublicKey,
    pub(super) trusted: Vec<PublicKey>,
}

impl Signers {
    fn check(&self, signer: PublicKey, what: &str) -> Result<PublicKey, String> {
        match signer == self.key || self.trusted.contains(&signer) {
            true => Ok(signer),
            false => Err(format!("{signer} may not sign {what} for this validator")),
        }
    }
}

/// What runs on the threads that check signatures.
pub(super) struct Checker {
    pub(super) delivery: Delivery,
    pub(super) handler: Arc<dyn JobHandler>,
    pub(super) signers: Signers,
    /// That of the jobs.
    pub(super) stop: Shutdown,
}

impl Checker {
    pub(super) fn check(&self, batch: Vec<Check>) {
        let mut jobs = Vec::with_capacity(batch.len());
        for check in batch {
            match check {
                Check::Job { number, request, alive } => jobs.push((number, request, alive)),
                Check::Cheated(report) => self.cheated(&report),
            }
        }
        let signers = verify_job_requests(jobs.iter().map(|(_, request, _)| &**request));
        for ((number, request, alive), signer) in jobs.into_iter().zip(signers) {
            let _job = scope::job(request.uuid.as_str());
            let signer = signer.map_err(|e| e.to_string()).and_then(|signer| self.signers.check(signer, "jobs"));
            let job = Job::new(*request, number, self.delivery.clone(), self.stop.clone(), alive);
            match signer {
                Ok(_) => guarded("job", || self.handler.job(job)),
                Err(why) => job.reject(JobRejectionReason::InvalidSignature, why),
            }
        }
    }

    fn cheated(&self, report: &V0JobCheated) {
        let (uuid, trusted) = (&report.job_uuid, &report.trusted_job_uuid);
        let signer = report.verify().map_err(|e| e.to_string());
        let signer = signer.and_then(|signer| self.signers.check(signer, "reports of cheating"));
        match signer.and_then(|_| self.delivery.cheated(uuid, trusted).map_err(str::to_owned)) {
            Ok(miner) => guarded("report of cheating", || self.handler.cheated(uuid, miner)),
            Err(why) => log::warn!("job {uuid}: a report of cheating is ignored: {why}"),
        }
    }
}

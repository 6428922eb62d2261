//! What runs on the threads of [`checks`](super::checks): a good signature makes a job of a request.

use std::sync::Arc;

use crossbeam_channel::Sender;

use super::job::{Job, JobHandler, guarded, turn_away};
use crate::base::clock::now;
use crate::base::scope;
use crate::base::shutdown::Shutdown;
use crate::ops::errors::{ErrorClass, ErrorHandler};
use crate::protocol::{JobRejectionReason, SignedRequest, V0JobCheated, V2JobRequest};
use crate::validator::authorization::{Signers, Unauthorized};
use crate::validator::ledger::{Delivery, NotAdmitted, ReportSigned};

/// Something signed that waits for its check.
pub(super) enum Check {
    Job { number: u64, request: Box<V2JobRequest>, alive: Sender<()> },
    Cheated(Box<V0JobCheated>),
}

/// What runs on the threads that check signatures.
pub(super) struct Checker {
    pub(super) delivery: Delivery,
    pub(super) handler: Arc<dyn JobHandler>,
    pub(super) signers: Signers,
    /// That of the jobs.
    pub(super) stop: Shutdown,
    pub(super) errors: ErrorHandler,
}

impl Checker {
    pub(super) fn check(&self, batch: Vec<Check>) {
        let (mut places, mut requests) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
        for check in batch {
            match check {
                Check::Job { number, request, alive } => {
                    places.push((number, alive));
                    requests.push(*request);
                }
                Check::Cheated(report) => self.cheated(&report),
            }
        }
        let judged = self.signers.authorize(requests, now().wall);
        for ((number, alive), judged) in places.into_iter().zip(judged) {
            let refused = match judged {
                Ok(authorized) => match self.delivery.admit(number, &authorized) {
                    Ok(()) => {
                        let _job = scope::job(authorized.uuid.as_str());
                        let job = Job::new(authorized, number, self.delivery.clone(), self.stop.clone(), alive);
                        guarded("job", || self.handler.job(job));
                        continue;
                    }
                    Err(why) => (authorized.uuid.clone(), reason(&why), why.to_string()),
                },
                Err(Unauthorized { uuid, why }) => (uuid, JobRejectionReason::InvalidSignature, why),
            };
            let (uuid, reason, why) = refused;
            turn_away(&self.delivery, number, &uuid, reason, why);
            // Only now may a stop think that the job is gone.
            drop(alive);
        }
    }

    fn cheated(&self, report: &V0JobCheated) {
        let (uuid, trusted) = (&report.job_uuid, &report.trusted_job_uuid);
        let signer = report.verify().map_err(|e| e.to_string());
        let signer = signer.and_then(|signer| self.signers.check(signer, "reports of cheating"));
        let judged = signer.and_then(|by| {
            let (_, signed_at) = self.signers.times(report, now().wall)?;
            self.delivery.cheated(uuid, trusted, ReportSigned { by, signed_at }).map_err(str::to_owned)
        });
        match judged {
            Ok(miner) => guarded("report of cheating", || self.handler.cheated(uuid, miner)),
            Err(why) => {
                let what = format_args!("job {uuid}: it is ignored: {why}");
                self.errors.report(ErrorClass::Rejected, "cheating-report", &what);
            }
        }
    }
}

fn reason(why: &NotAdmitted) -> JobRejectionReason {
    match why {
        NotAdmitted::SignatureUsed(_) | NotAdmitted::SignedBefore => JobRejectionReason::InvalidSignature,
        NotAdmitted::Full(_) => JobRejectionReason::Busy,
    }
}

//! How a job ended, as it is reported to the facilitator.

use std::fmt;

use crate::protocol::{
    HordeFailureDetails, HordeFailureReason, JobFailureDetails, JobParticipantType, JobRejectionDetails,
    JobRejectionReason, JobResultDetails, JobStatus, JobStatusMetadata, V0JobFailedRequest, V0JobFinishedRequest,
    V0JobStatusUpdate, ValidatorToFacilitator,
};
use crate::transport::Utf8Bytes;

/// How a job ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The results are in.
    Completed(JobResultDetails),
    /// Nobody took it.
    Rejected(JobRejectionDetails),
    /// The job itself failed.
    Failed(JobFailureDetails),
    /// The horde failed the job.
    HordeFailed(HordeFailureDetails),
}

impl Outcome {
    /// Turned away by this validator.
    pub fn rejected(reason: JobRejectionReason, message: impl Into<String>) -> Self {
        Self::Rejected(JobRejectionDetails {
            rejected_by: JobParticipantType::Validator,
            reason,
            message: message.into(),
            context: None,
        })
    }

    /// A stop has cancelled the job.
    pub(super) fn stopping() -> Self {
        let message = "the validator was stopped before the job had ended";
        Self::horde_failed(HordeFailureReason::GenericError, message)
    }

    /// A good end with what the job wrote.
    pub fn completed(stdout: impl Into<String>, stderr: impl Into<String>) -> Self {
        Self::Completed(JobResultDetails {
            docker_process_stderr: stderr.into(),
            docker_process_stdout: stdout.into(),
            artifacts: None,
            upload_results: None,
            extra: Default::default(),
        })
    }

    /// Failed by the horde, as seen by this validator.
    pub fn horde_failed(reason: HordeFailureReason, message: impl Into<String>) -> Self {
        Self::HordeFailed(HordeFailureDetails {
            reported_by: JobParticipantType::Validator,
            reason,
            message: message.into(),
            context: None,
        })
    }

    /// The message that tells how the job ended.
    pub fn into_message(self, uuid: &str) -> EndMessage {
        let (status, metadata) = self.into_update();
        let reason = reason_of(&metadata);
        let update = V0JobStatusUpdate { uuid: uuid.to_owned(), status, metadata: Some(metadata) };
        EndMessage { status, reason, text: ValidatorToFacilitator::from(update).encode().into() }
    }

    fn into_update(self) -> (JobStatus, JobStatusMetadata) {
        let mut metadata = empty();
        let status = match self {
            Outcome::Completed(result) => {
                metadata.miner_response = Some(result);
                JobStatus::Completed
            }
            Outcome::Rejected(details) => {
                metadata.job_rejection_details = Some(details);
                JobStatus::Rejected
            }
            Outcome::Failed(details) => {
                metadata.job_failure_details = Some(details);
                JobStatus::Failed
            }
            Outcome::HordeFailed(details) => {
                metadata.horde_failure_details = Some(details);
                JobStatus::HordeFailed
            }
        };
        (status, metadata)
    }
}

/// For logs and pages: the status, whose word it is, the reason and the message.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Completed(_) => f.write_str("completed"),
            Self::Rejected(JobRejectionDetails { rejected_by, reason, message, .. }) => {
                write!(f, "rejected by {}: {}: {message}", rejected_by, reason)
            }
            Self::Failed(JobFailureDetails { reason, message, .. }) => {
                write!(f, "failed: {}: {message}", reason)
            }
            Self::HordeFailed(HordeFailureDetails { reported_by, reason, message, .. }) => {
                write!(f, "horde failed, says {}: {}: {message}", reported_by, reason)
            }
        }
    }
}

impl From<V0JobFinishedRequest> for Outcome {
    fn from(finished: V0JobFinishedRequest) -> Self {
        Outcome::Completed(JobResultDetails {
            docker_process_stderr: finished.docker_process_stderr,
            docker_process_stdout: finished.docker_process_stdout,
            artifacts: finished.artifacts,
            upload_results: finished.upload_results,
            extra: Default::default(),
        })
    }
}

impl From<V0JobFailedRequest> for Outcome {
    fn from(failed: V0JobFailedRequest) -> Self {
        Outcome::Failed(JobFailureDetails {
            reason: failed.reason,
            stage: failed.stage,
            message: failed.message,
            context: failed.context,
            docker_process_exit_status: failed.docker_process_exit_status,
            docker_process_stdout: failed.docker_process_stdout,
            docker_process_stderr: failed.docker_process_stderr,
        })
    }
}

/// An update of a job on its way to the facilitator: its end, unless a worker elsewhere has written it.
#[derive(Debug, Clone, PartialEq)]
pub struct EndMessage {
    /// How it ended.
    pub status: JobStatus,
    /// Why, unless it completed.
    pub reason: Option<&'static str>,
    /// The message.
    pub text: Utf8Bytes,
}

/// Why a job ended as it did, in the word of the wire.
pub(super) fn reason_of(metadata: &JobStatusMetadata) -> Option<&'static str> {
    let rejected = metadata.job_rejection_details.as_ref().map(|details| details.reason.as_str());
    let failed = || metadata.job_failure_details.as_ref().map(|details| details.reason.as_str());
    let horde_failed = || metadata.horde_failure_details.as_ref().map(|details| details.reason.as_str());
    rejected.or_else(failed).or_else(horde_failed)
}

pub(super) fn empty() -> JobStatusMetadata {
    JobStatusMetadata {
        miner_response: None,
        job_rejection_details: None,
        job_failure_details: None,
        horde_failure_details: None,
        streaming_details: None,
        extra: Default::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{JobFailureReason, JobStage};

    /// The Python validator reports its own horde failures as `failed`.
    #[test]
    fn each_outcome_has_the_status_of_its_family_with_its_details_and_no_others() {
        let failed = V0JobFailedRequest {
            job_uuid: "u".to_owned(),
            message: "exit 3".to_owned(),
            reason: JobFailureReason::NonzeroReturnCode,
            stage: JobStage::Execution,
            docker_process_exit_status: Some(3.into()),
            docker_process_stdout: None,
            docker_process_stderr: None,
            context: None,
        };
        let declined = JobRejectionDetails {
            rejected_by: JobParticipantType::Miner,
            reason: JobRejectionReason::Busy,
            message: "busy".to_owned(),
            context: None,
        };
        let by_miner = HordeFailureDetails {
            reported_by: JobParticipantType::Miner,
            reason: HordeFailureReason::ExecutorDisconnected,
            message: "gone".to_owned(),
            context: None,
        };
        let (busy, stops) = (JobRejectionReason::NoMinerForJob, HordeFailureReason::MinerConnectionFailed);
        let mut cases = vec![
            (Outcome::completed("o", "e"), "completed", None, "miner_response"),
            (Outcome::rejected(busy, "none"), "rejected", Some("no_miner_for_job"), "job_rejection_details"),
            (Outcome::Rejected(declined), "rejected", Some("busy"), "job_rejection_details"),
            (Outcome::from(failed), "failed", Some("nonzero_return_code"), "job_failure_details"),
            (Outcome::HordeFailed(by_miner), "horde_failed", Some("executor_disconnected"), "horde_failure_details"),
            (
                Outcome::horde_failed(stops, "w"),
                "horde_failed",
                Some("miner_connection_failed"),
                "horde_failure_details",
            ),
        ];
        for reason in HordeFailureReason::ALL {
            let outcome = Outcome::horde_failed(*reason, "w");
            cases.push((outcome, "horde_failed", Some(reason.as_str()), "horde_failure_details"));
        }
        for (outcome, status, reason, details) in cases {
            let end = outcome.into_message("u");
            assert_eq!((end.status.as_str(), end.reason), (status, reason));
            let message: serde_json::Value = serde_json::from_str(&end.text).unwrap();
            assert_eq!((&message["status"], &message["uuid"]), (&status.into(), &"u".into()));
            let metadata = message["metadata"].as_object().unwrap();
            let given: Vec<_> = metadata.iter().filter(|(_, value)| !value.is_null()).map(|(key, _)| key).collect();
            assert_eq!(given, [details], "{message}");
        }
    }
}

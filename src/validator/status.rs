//! Status updates: what the facilitator is told of a job, in order, ending in exactly one terminal status.

use serde_json::json;

use crate::base::limits::FACILITATOR_LINK_MESSAGE_BYTES;
use crate::link::{LinkHandle, Outgoing};
use crate::protocol::{
    HordeFailureDetails, HordeFailureReason, JobFailureDetails, JobParticipantType, JobRejectionDetails,
    JobRejectionReason, JobResultDetails, JobStatus, JobStatusMetadata, V0JobFailedRequest, V0JobFinishedRequest,
    V0JobStatusUpdate, ValidatorToFacilitator,
};

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

    /// Failed by the horde, as seen by this validator.
    pub fn horde_failed(reason: HordeFailureReason, message: impl Into<String>) -> Self {
        Self::HordeFailed(HordeFailureDetails {
            reported_by: JobParticipantType::Validator,
            reason,
            message: message.into(),
            context: None,
        })
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

fn empty() -> JobStatusMetadata {
    JobStatusMetadata {
        miner_response: None,
        job_rejection_details: None,
        job_failure_details: None,
        horde_failure_details: None,
        streaming_details: None,
        extra: Default::default(),
    }
}

/// Reports one job's statuses. Dropping it without [`Reporter::end`] reports `horde_failed`, so that no job ends in
/// silence, not even one whose code panicked.
#[derive(Debug)]
pub struct Reporter {
    uuid: String,
    link: LinkHandle,
    ended: bool,
}

impl Reporter {
    /// A reporter for a job about which nothing has been said yet.
    pub fn new(uuid: String, link: LinkHandle) -> Self {
        Self { uuid, link, ended: false }
    }

    /// Reports a step on the way.
    pub fn step(&self, status: JobStatus) {
        self.send(status, None);
    }

    /// Reports a streaming server.
    pub fn streaming_ready(&self, details: crate::protocol::StreamingServerDetails) {
        self.send(JobStatus::StreamingReady, Some(JobStatusMetadata { streaming_details: Some(details), ..empty() }));
    }

    /// Reports the end.
    pub fn end(mut self, outcome: Outcome) {
        self.finish(outcome);
    }

    fn finish(&mut self, outcome: Outcome) {
        self.ended = true;
        let (status, metadata) = outcome.into_update();
        self.send(status, Some(metadata));
    }

    fn send(&self, status: JobStatus, metadata: Option<JobStatusMetadata>) {
        log::debug!("job {}: {status}", self.uuid);
        let update = V0JobStatusUpdate { uuid: self.uuid.clone(), status, metadata };
        let text = ValidatorToFacilitator::from(update).encode();
        let full = if text.len() <= FACILITATOR_LINK_MESSAGE_BYTES {
            match self.link.send(Outgoing::acked(text)) {
                Ok(()) => return,
                Err(full) => full.to_string(),
            }
        } else {
            format!("a message has at most {FACILITATOR_LINK_MESSAGE_BYTES} bytes, this one has {}", text.len())
        };
        log::error!("job {}: {status} cannot be reported: {full}", self.uuid);
        if status.is_terminal() {
            self.send_small_end(&full);
        }
    }

    /// A terminal status that always fits: what is lost is the result, not the end of the job.
    fn send_small_end(&self, why: &str) {
        let message = format!("the job ended, but its result cannot be passed on: {why}");
        let (status, metadata) = Outcome::horde_failed(HordeFailureReason::GenericError, message).into_update();
        let update = V0JobStatusUpdate { uuid: self.uuid.clone(), status, metadata: Some(metadata) };
        if let Err(full) = self.link.send(Outgoing::acked(ValidatorToFacilitator::from(update).encode())) {
            log::error!("job {}: its end is lost: {full}", self.uuid);
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        if !self.ended {
            self.finish(Outcome::HordeFailed(HordeFailureDetails {
                reported_by: JobParticipantType::Validator,
                reason: HordeFailureReason::UnhandledException,
                message: "the validator's job driver ended without an outcome".to_owned(),
                context: json!({"panicking": std::thread::panicking()}).as_object().cloned(),
            }));
        }
    }
}

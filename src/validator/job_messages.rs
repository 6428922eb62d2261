//! What is written to a miner about one job, organic or synthetic, and what its answers mean. Pure.

use std::time::Duration;

use super::status::Outcome;
use crate::base::limits::DIAL_TIME;
use crate::base::now::Now;
use crate::identity::{KeyPair, PublicKey};
use crate::protocol::stages::VALIDATOR_BEHIND;
use crate::protocol::{
    DateTime, DockerRunOptionsPreset, ExecutorTimingDetails, HordeFailureDetails, HordeFailureReason, Int,
    JobAcceptedReceiptPayload, JobFinishedReceiptPayload, JobParticipantType, JobRejectionDetails,
    JobStartedReceiptPayload, MinerToValidator, V0DeclineJobRequest, V0HordeFailedRequest, V0InitialJobRequest,
    V0JobAcceptedReceiptRequest, V0JobFinishedReceiptRequest, V0JobRequest, V2JobRequest,
};

/// What a miner and an executor may take beside the limits that the job itself has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobTimes {
    /// For the connection to a miner and its answer to our authentication.
    pub connect: Duration,
    /// For the reservation of an executor.
    pub reservation: Duration,
    /// For the start of an executor, beyond the spin-up time of its class.
    pub executor_startup: Duration,
    /// For all stages together, beyond their limits; whole seconds, because executors get it.
    pub leeway: Duration,
    /// How long after the deadline of a stage a miner that says nothing is given up, see
    /// [`protocol::stages`](crate::protocol::stages).
    pub margin: Duration,
}

impl Default for JobTimes {
    /// 15 s, 7 s, 5 s, 5 s: as the Python validator, which names no limit for the connection. 10 s: behind all others.
    fn default() -> Self {
        Self {
            connect: DIAL_TIME,
            reservation: Duration::from_secs(7),
            executor_startup: Duration::from_secs(5),
            leeway: Duration::from_secs(5),
            margin: VALIDATOR_BEHIND,
        }
    }
}

/// How long a started-receipt counts: reservation, start-up, and what a slow network adds.
const STARTED_RECEIPT_TTL: i64 = 30;

/// One job on one miner, and who writes to it.
#[derive(Debug, Clone, Copy)]
pub(super) struct JobMessages<'a> {
    /// The validator's hotkey.
    pub(super) key: &'a KeyPair,
    pub(super) times: &'a JobTimes,
    /// What is asked for; its uuid does not count.
    pub(super) request: &'a V2JobRequest,
    pub(super) uuid: &'a str,
    pub(super) miner: PublicKey,
    /// Whether a user has asked for it.
    pub(super) is_organic: bool,
}

impl JobMessages<'_> {
    /// The limits of its stages.
    pub(super) fn timing(&self) -> ExecutorTimingDetails {
        let request = self.request;
        ExecutorTimingDetails {
            allowed_leeway: Int::from(leeway_seconds(self.times)),
            download_time_limit: request.download_time_limit.clone(),
            execution_time_limit: request.execution_time_limit.clone(),
            upload_time_limit: request.upload_time_limit.clone(),
            streaming_start_time_limit: request.streaming_start_time_limit.clone(),
        }
    }

    /// The first request, with the receipt for the start in it.
    pub(super) fn initial_request(&self, started: Now) -> V0InitialJobRequest {
        let request = self.request;
        let payload = JobStartedReceiptPayload {
            job_uuid: self.uuid.to_owned(),
            miner_hotkey: self.miner.to_ss58(),
            validator_hotkey: self.key.ss58(),
            timestamp: stamp(started),
            executor_class: request.executor_class,
            is_organic: self.is_organic,
            ttl: STARTED_RECEIPT_TTL,
        };
        let signature = payload.sign(self.key);
        let mut initial = V0InitialJobRequest {
            validator_signature: None,
            job_uuid: self.uuid.to_owned(),
            executor_class: request.executor_class,
            docker_image: Some(request.docker_image.clone()),
            timeout_seconds: Some(Int::from(total_seconds(self.times, request))),
            volume: request.volume.clone(),
            job_started_receipt_payload: payload,
            job_started_receipt_signature: signature,
            streaming_details: request.streaming_details.clone(),
            executor_timing: Some(self.timing()),
        };
        initial.sign(self.key);
        initial
    }

    /// The request itself, once the executor is ready.
    pub(super) fn job_request(&self) -> V0JobRequest {
        let request = self.request;
        let mut job = V0JobRequest {
            validator_signature: None,
            job_uuid: self.uuid.to_owned(),
            executor_class: request.executor_class,
            docker_image: request.docker_image.clone(),
            raw_script: None,
            docker_run_options_preset: if request.executor_class.has_gpu() {
                DockerRunOptionsPreset::NvidiaAll
            } else {
                DockerRunOptionsPreset::None
            },
            docker_run_cmd: request.args.clone(),
            env: request.env.clone(),
            // It went with the initial request.
            volume: None,
            output_upload: request.output_upload.clone(),
            artifacts_dir: request.artifacts_dir.clone(),
        };
        job.sign(self.key);
        job
    }

    /// The receipt for the acceptance.
    pub(super) fn accepted_receipt(&self, now: Now) -> V0JobAcceptedReceiptRequest {
        let payload = JobAcceptedReceiptPayload {
            job_uuid: self.uuid.to_owned(),
            miner_hotkey: self.miner.to_ss58(),
            validator_hotkey: self.key.ss58(),
            timestamp: stamp(now),
            time_accepted: stamp(now),
            ttl: total_seconds(self.times, self.request),
        };
        let signature = payload.sign(self.key);
        V0JobAcceptedReceiptRequest { payload, signature }
    }

    /// The receipt for the end, which pays for the job if it was completed.
    pub(super) fn finished_receipt(
        &self,
        started: Now,
        took: Duration,
        completed: bool,
        now: Now,
    ) -> V0JobFinishedReceiptRequest {
        let payload = JobFinishedReceiptPayload {
            job_uuid: self.uuid.to_owned(),
            miner_hotkey: self.miner.to_ss58(),
            validator_hotkey: self.key.ss58(),
            timestamp: stamp(now),
            time_started: stamp(started),
            time_took_us: i64::try_from(took.as_micros()).unwrap_or(i64::MAX),
            score_str: if completed { "1.000000" } else { "0.000000" }.to_owned(),
            block_numbers: Vec::new(),
        };
        let signature = payload.sign(self.key);
        V0JobFinishedReceiptRequest { payload, signature }
    }
}

fn stamp(now: Now) -> DateTime {
    DateTime::from_unix_micros(now.unix_micros())
}

/// How a job ended by the last message about it; `None` for another message.
pub(super) fn outcome_of(message: MinerToValidator) -> Option<Outcome> {
    use MinerToValidator as M;
    let spin_up = HordeFailureReason::ExecutorSpinupFailed;
    Some(match message {
        M::V0JobFinishedRequest(finished) => finished.into(),
        M::V0JobFailedRequest(failed) => failed.into(),
        M::V0HordeFailedRequest(failed) => Outcome::HordeFailed(details(failed)),
        M::V0ExecutorFailedRequest(_) => by_miner(spin_up, "the executor failed to start"),
        M::V0StreamingJobNotReadyRequest(_) => {
            by_miner(HordeFailureReason::StreamingFailed, "the streaming server failed to start")
        }
        _ => return None,
    })
}

/// What a miner says that does not take a job.
pub(super) fn declined(decline: V0DeclineJobRequest) -> Outcome {
    Outcome::Rejected(JobRejectionDetails {
        rejected_by: JobParticipantType::Miner,
        reason: decline.reason,
        message: decline.message,
        context: decline.context,
    })
}

/// A failure of the horde, as reported by the miner.
pub(super) fn by_miner(reason: HordeFailureReason, message: &str) -> Outcome {
    Outcome::HordeFailed(HordeFailureDetails {
        reported_by: JobParticipantType::Miner,
        reason,
        message: message.to_owned(),
        context: None,
    })
}

fn details(failed: V0HordeFailedRequest) -> HordeFailureDetails {
    HordeFailureDetails {
        // A miner speaks for itself and for its executor, and not for us.
        reported_by: match failed.reported_by {
            by @ (JobParticipantType::Miner | JobParticipantType::Executor) => by,
            _ => JobParticipantType::Miner,
        },
        reason: failed.reason,
        message: failed.message,
        context: failed.context,
    }
}

fn leeway_seconds(times: &JobTimes) -> i64 {
    i64::try_from(times.leeway.as_secs()).unwrap_or(i64::MAX)
}

/// All limits of the job together, as whole seconds within what a receipt can say.
pub(super) fn total_seconds(times: &JobTimes, request: &V2JobRequest) -> i64 {
    [
        &request.download_time_limit,
        &request.execution_time_limit,
        &request.upload_time_limit,
        &request.streaming_start_time_limit,
    ]
    .iter()
    .map(|limit| limit.saturating_i64().max(0))
    .fold(leeway_seconds(times), i64::saturating_add)
    .min(crate::protocol::MAX_TTL_SECONDS)
}

/// Whether it is the last message about a job.
pub(super) fn is_end(message: &MinerToValidator) -> bool {
    use MinerToValidator as M;
    matches!(
        message,
        M::V0JobFinishedRequest(_)
            | M::V0JobFailedRequest(_)
            | M::V0HordeFailedRequest(_)
            | M::V0ExecutorFailedRequest(_)
            | M::V0StreamingJobNotReadyRequest(_)
    )
}

/// The job that it is about, if it is about one.
pub(super) fn job_uuid(message: &MinerToValidator) -> Option<&str> {
    use MinerToValidator as M;
    match message {
        M::GenericError(_) | M::UnauthorizedError(_) | M::V0ExecutorManifestRequest(_) | M::V0MainHotkeyMessage(_) => {
            None
        }
        M::V0DeclineJobRequest(m) => Some(&m.job_uuid),
        M::V0AcceptJobRequest(m) => Some(&m.job_uuid),
        M::V0ExecutorFailedRequest(m) => Some(&m.job_uuid),
        M::V0StreamingJobNotReadyRequest(m) => Some(&m.job_uuid),
        M::V0ExecutorReadyRequest(m) => Some(&m.job_uuid),
        M::V0StreamingJobReadyRequest(m) => Some(&m.job_uuid),
        M::V0JobFailedRequest(m) => Some(&m.job_uuid),
        M::V0VolumesReadyRequest(m) => Some(&m.job_uuid),
        M::V0ExecutionDoneRequest(m) => Some(&m.job_uuid),
        M::V0JobFinishedRequest(m) => Some(&m.job_uuid),
        M::V0MachineSpecsRequest(m) => Some(&m.job_uuid),
        M::V0HordeFailedRequest(m) => Some(&m.job_uuid),
    }
}

/// Its type, for the log.
pub(super) fn kind(message: &MinerToValidator) -> &'static str {
    use MinerToValidator as M;
    match message {
        M::V0DeclineJobRequest(_) => "V0DeclineJobRequest",
        M::V0AcceptJobRequest(_) => "V0AcceptJobRequest",
        M::V0ExecutorReadyRequest(_) => "V0ExecutorReadyRequest",
        M::V0StreamingJobReadyRequest(_) => "V0StreamingJobReadyRequest",
        M::V0JobFailedRequest(_) => "V0JobFailedRequest",
        M::V0VolumesReadyRequest(_) => "V0VolumesReadyRequest",
        M::V0ExecutionDoneRequest(_) => "V0ExecutionDoneRequest",
        M::V0JobFinishedRequest(_) => "V0JobFinishedRequest",
        _ => "a message",
    }
}

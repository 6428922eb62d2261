//! What the end of a job says against its miner, by when it comes: a miner can say of any job that it has failed, but
//! not of a job that has not begun, nor that a limit is over long before it can be. Pure.

use std::time::Duration;

use crate::protocol::{HordeFailureReason, JobFailureReason, JobStage, V2JobRequest};
use crate::validator::routing::reliability::Incident;
use crate::validator::status::Outcome;

/// What is the miner's fault in a failure before the job request was sent to it, `waited` after it was asked, when an
/// executor may take `start_up`. An executor prepares the job's image before it is ready, so the job itself may fail:
/// then it is none, as far as anybody can tell.
pub(super) fn before_it_began(outcome: &Outcome, waited: Duration, start_up: Duration) -> Option<Incident> {
    let Outcome::Failed(failed) = outcome else { return Incident::of(outcome).or(Some(Incident::Failed)) };
    let may_be = match failed.reason {
        JobFailureReason::Timeout => !is_early(waited, start_up),
        JobFailureReason::NonzeroReturnCode | JobFailureReason::UploadFailed => false,
        JobFailureReason::Unknown | JobFailureReason::DownloadFailed => true,
    };
    let is_startup = matches!(failed.stage, JobStage::ExecutorStartup | JobStage::Unknown);
    (!may_be || !is_startup).then_some(Incident::Failed)
}

/// What is the miner's fault in the end of a job that was requested of it `ran` before, or is not known when.
pub(super) fn after_it_began(outcome: &Outcome, request: &V2JobRequest, ran: Option<Duration>) -> Option<Incident> {
    match (limit_that_is_over(outcome, request), ran) {
        (Some(limit), Some(ran)) if is_early(ran, limit) => Some(Incident::Failed),
        _ => Incident::of(outcome),
    }
}

/// Less than half of the limit: clocks start apart by the way of some messages, and nothing else makes them differ.
fn is_early(ran: Duration, limit: Duration) -> bool {
    ran < limit / 2
}

/// The limit of the job that its miner or executor says is over, as far as that is the limit of a stage. The limits of
/// all stages before may be used up as well, so it is the least that it has taken since the job request.
fn limit_that_is_over(outcome: &Outcome, request: &V2JobRequest) -> Option<Duration> {
    use HordeFailureReason as H;
    let limit = match outcome {
        Outcome::HordeFailed(failed) => match failed.reason {
            H::VolumesTimedOut => &request.download_time_limit,
            H::StreamingJobReadyTimedOut => &request.streaming_start_time_limit,
            H::ExecutionTimedOut => &request.execution_time_limit,
            H::FinalResponseTimedOut => &request.upload_time_limit,
            _ => return None,
        },
        // In the other stages a peer of the job's own choice, or its own server, may be what has taken too long.
        Outcome::Failed(failed)
            if failed.reason == JobFailureReason::Timeout
                && matches!(failed.stage, JobStage::ExecutorStartup | JobStage::Execution | JobStage::Unknown) =>
        {
            &request.execution_time_limit
        }
        _ => return None,
    };
    Some(limit.saturating_seconds())
}

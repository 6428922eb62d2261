//! What a validator and a miner say to each other, as far as the miner does not merely pass it on.

use super::enums::{Code, JobRejectionReason};
use super::executor::{
    GenericError, V0ExecutionDoneRequest, V0ExecutorFailedRequest, V0ExecutorReadyRequest, V0HordeFailedRequest,
    V0InitialJobRequest, V0JobFailedRequest, V0JobFinishedRequest, V0JobRequest, V0MachineSpecsRequest,
    V0StreamingJobNotReadyRequest, V0StreamingJobReadyRequest, V0VolumesReadyRequest,
};
use super::int::Int;
use super::json::JsonMap;
use super::receipt::{JobAcceptedReceiptPayload, JobFinishedReceiptPayload, Receipt};
use super::scalars::Manifest;
use super::schema::{direction, message};

direction! {
    /// What a validator says to a miner.
    pub enum ValidatorToMiner {
        GenericError,
        ValidatorAuthForMiner,
        V0InitialJobRequest,
        V0JobRequest,
        V0JobAcceptedReceiptRequest,
        V0JobFinishedReceiptRequest,
        V0MainHotkeyMessage,
    }
}

direction! {
    /// What a miner says to a validator.
    pub enum MinerToValidator {
        GenericError,
        UnauthorizedError,
        V0ExecutorManifestRequest,
        V0MainHotkeyMessage,
        V0DeclineJobRequest,
        V0AcceptJobRequest,
        V0ExecutorFailedRequest,
        V0StreamingJobNotReadyRequest,
        V0ExecutorReadyRequest,
        V0StreamingJobReadyRequest,
        V0JobFailedRequest,
        V0VolumesReadyRequest,
        V0ExecutionDoneRequest,
        V0JobFinishedRequest,
        V0MachineSpecsRequest,
        V0HordeFailedRequest,
    }
}

message! {
    /// The validator's first frame; good for seconds only.
    Ignore struct ValidatorAuthForMiner {
        @"message_type" = "ValidatorAuthForMiner",
        /// Who authenticates (SS58).
        validator_hotkey: String,
        /// To whom (SS58).
        miner_hotkey: String,
        /// When, in seconds of Unix time.
        timestamp: Int,
        /// The validator's signature (`0x` hex); see [`super::signing`].
        signature: String,
    }
}

message! {
    /// The miner turns the validator away.
    Ignore struct UnauthorizedError {
        @"message_type" = "UnauthorizedError",
        /// Why.
        code: Code,
        /// Why, as a sentence.
        details: Option<String> = None,
    }
}

message! {
    /// How many executors of each class the miner offers; the miner's first frame.
    Ignore struct V0ExecutorManifestRequest {
        @"message_type" = "V0ExecutorManifestRequest",
        /// How many of which class.
        manifest: Manifest,
    }
}

message! {
    /// Asks for the miner's main hotkey, and answers that.
    Ignore struct V0MainHotkeyMessage {
        @"message_type" = "V0MainHotkeyMessage",
        /// The hotkey (SS58); none in the question.
        main_hotkey: Option<String> = None,
    }
}

message! {
    /// The miner does not take the job: an end.
    Ignore struct V0DeclineJobRequest {
        @"message_type" = "V0DeclineJobRequest",
        /// The job.
        job_uuid: String,
        /// Why, as a sentence.
        message: String = String::new(),
        /// Why.
        reason: JobRejectionReason = JobRejectionReason::Unknown,
        /// The receipts of the jobs that keep the miner busy, as an excuse.
        receipts: Vec<Receipt> = Vec::new(),
        /// More about it.
        context: Option<JsonMap> = None,
    }
}

/// In the context of a [`V0DeclineJobRequest`]: the miner takes no work for a while, because its operator wants so.
const PAUSED: &str = "paused";

impl V0DeclineJobRequest {
    /// The context that tells of a pause.
    pub fn pause_context() -> JsonMap {
        [(PAUSED.to_owned(), true.into())].into_iter().collect()
    }

    /// Whether it tells of a pause.
    pub fn is_of_a_pause(&self) -> bool {
        self.context.as_ref().and_then(|context| context.get(PAUSED)).is_some_and(|paused| *paused == true)
    }
}

message! {
    /// The miner takes the job: an executor is reserved.
    Ignore struct V0AcceptJobRequest {
        @"message_type" = "V0AcceptJobRequest",
        /// The job.
        job_uuid: String,
    }
}

message! {
    /// The validator's receipt for an accepted job.
    Ignore struct V0JobAcceptedReceiptRequest {
        @"message_type" = "V0JobAcceptedReceiptRequest",
        /// What it says.
        payload: JobAcceptedReceiptPayload,
        /// The validator's signature over it (`0x` hex).
        signature: String,
    }
}

message! {
    /// The validator's receipt for a finished job.
    Ignore struct V0JobFinishedReceiptRequest {
        @"message_type" = "V0JobFinishedReceiptRequest",
        /// What it says.
        payload: JobFinishedReceiptPayload,
        /// The validator's signature over it (`0x` hex).
        signature: String,
    }
}

//! What a miner and its executors say to each other; the miner passes most of it on, so the validators see it too.

use super::enums::{
    DockerRunOptionsPreset, ExecutorClass, HordeFailureReason, JobFailureReason, JobParticipantType, JobStage,
};
use super::int::Int;
use super::json::JsonMap;
use super::receipt::JobStartedReceiptPayload;
use super::scalars::StrMap;
use super::schema::{direction, message};
use super::upload::OutputUpload;
use super::volume::Volume;

/// Key of the context of our own executor's `V0HordeFailedRequest` that says whose fault the failure is…
pub const FAULT: &str = "fault";

/// …with this value: that of the machine, which its operator has to see to.
pub const FAULT_OF_OPERATOR: &str = "operator";

direction! {
    /// What a miner says to an executor.
    pub enum MinerToExecutor {
        GenericError,
        V0InitialJobRequest,
        V0JobRequest,
    }
}

direction! {
    /// What an executor says to its miner.
    pub enum ExecutorToMiner {
        GenericError,
        V0ExecutorFailedRequest,
        V0StreamingJobNotReadyRequest,
        V0ExecutorReadyRequest,
        V0StreamingJobReadyRequest,
        V0VolumesReadyRequest,
        V0ExecutionDoneRequest,
        V0JobFailedRequest,
        V0JobFinishedRequest,
        V0MachineSpecsRequest,
        V0HordeFailedRequest,
    }
}

message! {
    /// Something is wrong; the details are for people.
    Ignore struct GenericError {
        @"message_type" = "GenericError",
        /// What.
        details: Option<String> = None,
    }
}

message! {
    /// Who may connect to the streaming server of a job.
    Ignore struct StreamingDetails {
        /// The certificate of the client (PEM).
        public_key: String,
        /// The address of the executor; filled in by the miner.
        executor_ip: Option<String> = None,
    }
}

message! {
    /// The time limits of the stages of a job, in seconds.
    Ignore struct ExecutorTimingDetails {
        /// What a job may take longer than its limits in all.
        allowed_leeway: Int,
        /// For the volumes.
        download_time_limit: Int,
        /// For the command.
        execution_time_limit: Int,
        /// For the output.
        upload_time_limit: Int,
        /// For the streaming server.
        streaming_start_time_limit: Int,
    }
}

message! {
    /// The first half of a job: what it takes to reserve an executor and to prepare it.
    ///
    /// Peers of January 2026 know no `validator_signature`: theirs is read as none, and we write `null`, which they
    /// ignore.
    Ignore struct V0InitialJobRequest {
        /// The validator's signature over the rest of the message (`0x` hex); see [`super::signing`].
        validator_signature: Option<String> = None,
        @"message_type" = "V0InitialJobRequest",
        /// The job.
        job_uuid: String,
        /// On what it runs.
        executor_class: ExecutorClass,
        /// The image of its container.
        docker_image: Option<String> = None,
        /// One limit for all, in seconds; of use only without `executor_timing`.
        timeout_seconds: Option<Int> = None,
        /// What it finds under `/volume/`; may come with [`V0JobRequest`] instead.
        volume: Option<Volume> = None,
        /// The receipt for the start.
        job_started_receipt_payload: JobStartedReceiptPayload,
        /// The validator's signature over the receipt (`0x` hex).
        job_started_receipt_signature: String,
        /// Who may connect to the streaming server; set for streaming jobs.
        streaming_details: Option<StreamingDetails> = None,
        /// The limits of each stage.
        executor_timing: Option<ExecutorTimingDetails> = None,
    }
}

message! {
    /// The second half of a job: what to run.
    ///
    /// Peers of January 2026 know no `validator_signature`: theirs is read as none, and we write `null`, which they
    /// ignore.
    Ignore struct V0JobRequest {
        /// The validator's signature over the rest of the message (`0x` hex); see [`super::signing`].
        validator_signature: Option<String> = None,
        @"message_type" = "V0JobRequest",
        /// The job.
        job_uuid: String,
        /// On what it runs.
        executor_class: ExecutorClass,
        /// The image of its container.
        docker_image: String,
        /// A script to be found in the container.
        raw_script: Option<String> = None,
        /// The options of the container.
        docker_run_options_preset: DockerRunOptionsPreset,
        /// The command in the container.
        docker_run_cmd: Vec<String>,
        /// The container's environment.
        env: StrMap = StrMap::new(),
        /// What it finds under `/volume/`, if that did not come before.
        volume: Option<Volume> = None,
        /// Where its output goes.
        output_upload: Option<OutputUpload> = None,
        /// A folder of the container whose files come back in the result.
        artifacts_dir: Option<String> = None,
    }
}

message! {
    /// The executor could not be started (older peers; read as a failure of the horde).
    Ignore struct V0ExecutorFailedRequest {
        @"message_type" = "V0ExecutorFailedRequest",
        /// The job.
        job_uuid: String,
        /// The executor.
        executor_token: Option<String> = None,
    }
}

message! {
    /// The streaming server could not be started (older peers; read as a failure of the horde).
    Ignore struct V0StreamingJobNotReadyRequest {
        @"message_type" = "V0StreamingJobNotReadyRequest",
        /// The job.
        job_uuid: String,
        /// The executor.
        executor_token: Option<String> = None,
    }
}

message! {
    /// The executor is up.
    Ignore struct V0ExecutorReadyRequest {
        @"message_type" = "V0ExecutorReadyRequest",
        /// The job.
        job_uuid: String,
        /// The executor.
        executor_token: Option<String> = None,
    }
}

message! {
    /// The streaming server is up.
    Ignore struct V0StreamingJobReadyRequest {
        @"message_type" = "V0StreamingJobReadyRequest",
        /// The job.
        job_uuid: String,
        /// The executor.
        executor_token: Option<String> = None,
        /// The server's certificate (PEM).
        public_key: String,
        /// The server's address; filled in by the miner.
        ip: Option<String> = None,
        /// The server's port.
        port: Int,
        /// The miner's signature over it (`0x` hex); see [`super::signing`].
        miner_signature: Option<String> = None,
    }
}

message! {
    /// The volumes are downloaded.
    Ignore struct V0VolumesReadyRequest {
        @"message_type" = "V0VolumesReadyRequest",
        /// The job.
        job_uuid: String,
    }
}

message! {
    /// The command has ended.
    Ignore struct V0ExecutionDoneRequest {
        @"message_type" = "V0ExecutionDoneRequest",
        /// The job.
        job_uuid: String,
    }
}

message! {
    /// The job itself failed: an end.
    Ignore struct V0JobFailedRequest {
        @"message_type" = "V0JobFailedRequest",
        /// The job.
        job_uuid: String,
        /// Why, as a sentence.
        message | error_detail: String = String::new(),
        /// Why.
        reason | error_type: JobFailureReason = JobFailureReason::Unknown,
        /// When.
        stage: JobStage = JobStage::Unknown,
        /// The exit status of the container.
        docker_process_exit_status: Option<Int> = None,
        /// What it wrote to stdout, perhaps truncated.
        docker_process_stdout: Option<String> = None,
        /// What it wrote to stderr, perhaps truncated.
        docker_process_stderr: Option<String> = None,
        /// More about it.
        context: Option<JsonMap> = None,
    }
}

message! {
    /// The results are in: the good end.
    Ignore struct V0JobFinishedRequest {
        @"message_type" = "V0JobFinishedRequest",
        /// The job.
        job_uuid: String,
        /// What it wrote to stdout, perhaps truncated.
        docker_process_stdout: String,
        /// What it wrote to stderr, perhaps truncated.
        docker_process_stderr: String,
        /// Its artifacts: path to base64.
        artifacts: Option<StrMap> = None,
        /// What the servers of its uploads answered: name to JSON text.
        upload_results: Option<StrMap> = None,
    }
}

message! {
    /// A machine.
    Ignore struct MachineSpecs {
        /// Anything.
        specs: JsonMap,
    }
}

message! {
    /// The machine that the executor runs on.
    Ignore struct V0MachineSpecsRequest {
        @"message_type" = "V0MachineSpecsRequest",
        /// The job.
        job_uuid: String,
        /// The machine.
        specs: MachineSpecs,
    }
}

message! {
    /// The horde failed the job: an end.
    Ignore struct V0HordeFailedRequest {
        @"message_type" = "V0HordeFailedRequest",
        /// The job.
        job_uuid: String,
        /// Who says so.
        reported_by: JobParticipantType,
        /// Why, as a sentence.
        message: String,
        /// Why.
        reason: HordeFailureReason,
        /// More about it.
        context: Option<JsonMap> = None,
    }
}

//! The sets of strings that messages choose from.

use std::time::Duration;

use super::schema::{Literal, wire_enum};

wire_enum! {
    /// Who takes part in a job. Unknown texts are read as `Unknown`.
    Lenient enum JobParticipantType {
        /// Anything else.
        Unknown = "unknown",
        /// The user's client.
        Sdk = "sdk",
        /// The facilitator.
        Facilitator = "facilitator",
        /// The validator.
        Validator = "validator",
        /// The miner.
        Miner = "miner",
        /// The executor.
        Executor = "executor",
    }
}

wire_enum! {
    /// How far a job has come, as reported to the facilitator. Unknown texts are read as `Unknown`.
    Lenient enum JobStatus {
        /// Anything else.
        Unknown = "unknown",
        /// Sent to a validator.
        Sent = "sent",
        /// The validator has it.
        Received = "received",
        /// A miner has reserved an executor.
        Accepted = "accepted",
        /// The executor is up.
        ExecutorReady = "executor_ready",
        /// The streaming server of the job is up.
        StreamingReady = "streaming_ready",
        /// The volumes are downloaded.
        VolumesReady = "volumes_ready",
        /// The job's container has ended.
        ExecutionDone = "execution_done",
        /// The results are in: the good end.
        Completed = "completed",
        /// Nobody took it: an end.
        Rejected = "rejected",
        /// The job itself failed: an end.
        Failed = "failed",
        /// The horde failed the job: an end.
        HordeFailed = "horde_failed",
    }
}

impl JobStatus {
    /// Whether no other status follows this one.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Completed) || self.is_failure()
    }

    /// Whether the job ended without a result.
    pub const fn is_failure(self) -> bool {
        matches!(self, Self::Rejected | Self::Failed | Self::HordeFailed)
    }

    /// How far a job with this status has come. All ends are equally far.
    pub const fn rank(self) -> u8 {
        match self {
            Self::Unknown | Self::Sent => 0,
            Self::Received => 1,
            Self::Accepted => 2,
            Self::ExecutorReady => 3,
            Self::VolumesReady => 4,
            // After the volumes, although the list of statuses has it before them.
            Self::StreamingReady => 5,
            Self::ExecutionDone => 6,
            Self::Completed | Self::Rejected | Self::Failed | Self::HordeFailed => 7,
        }
    }

    /// Whether a job may go from this status to `next`: it may leave out statuses, but not go back, and it ends once.
    pub const fn may_become(self, next: Self) -> bool {
        self.rank() < next.rank()
    }
}

wire_enum! {
    /// The stage of a job in which something happened. Unknown texts are read as `Unknown`.
    Lenient enum JobStage {
        /// Anything else.
        Unknown = "unknown",
        /// The executor comes up.
        ExecutorStartup = "executor_startup",
        /// Volumes are downloaded.
        VolumeDownload = "volume_download",
        /// The streaming server comes up.
        StreamingStartup = "streaming_startup",
        /// The job's container runs.
        Execution = "execution",
        /// Results are uploaded.
        ResultUpload = "result_upload",
    }
}

wire_enum! {
    /// Why the horde failed a job. Unknown texts are read as `Unknown`.
    Lenient enum HordeFailureReason {
        /// Anything else.
        Unknown = "unknown",
        /// The miner sent a `GenericError`.
        GenericError = "generic_error",
        /// An error nobody foresaw.
        UnhandledException = "unhandled_exception",
        /// A time-out nobody foresaw.
        UnhandledTimeout = "unhandled_timeout",
        /// The streaming server did not come up.
        StreamingFailed = "streaming_failed",
        /// The miner could not be reached or was lost.
        MinerConnectionFailed = "miner_connection_failed",
        /// The miner neither accepted nor declined in time.
        InitialResponseTimedOut = "initial_response_timed_out",
        /// The executor was not ready in time.
        ExecutorReadinessResponseTimedOut = "executor_readiness_response_timed_out",
        /// The volumes were not ready in time.
        VolumesTimedOut = "volumes_timed_out",
        /// The streaming server was not ready in time.
        StreamingJobReadyTimedOut = "streaming_job_ready_timed_out",
        /// The execution did not end in time.
        ExecutionTimedOut = "execution_timed_out",
        /// The results did not come in time.
        FinalResponseTimedOut = "final_response_timed_out",
        /// The executor could not be started.
        ExecutorSpinupFailed = "executor_spinup_failed",
        /// The executor was lost.
        ExecutorDisconnected = "executor_disconnected",
        /// The executor's machine failed the security check.
        SecurityCheckFailed = "security_check_failed",
    }
}

wire_enum! {
    /// Why a job itself failed. Unknown texts are read as `Unknown`.
    Lenient enum JobFailureReason {
        /// Anything else.
        Unknown = "unknown",
        /// It took too long.
        Timeout = "timeout",
        /// Its container ended with an error.
        NonzeroReturnCode = "nonzero_return_code",
        /// A volume could not be downloaded.
        DownloadFailed = "download_failed",
        /// A result could not be uploaded.
        UploadFailed = "upload_failed",
    }
}

wire_enum! {
    /// Why nobody took a job. Unknown texts are read as `Unknown`.
    Lenient enum JobRejectionReason {
        /// Anything else.
        Unknown = "unknown",
        /// No executor is free.
        Busy = "busy",
        /// The user's signature is wrong, or of a user who may not send jobs.
        InvalidSignature = "invalid_signature",
        /// The receipt that comes with the request is wrong; the public source of January 2026 does not know this one.
        InvalidReceipt = "invalid_receipt",
        /// The validator knows no miner for it.
        NoMinerForJob = "no_miner_for_job",
        /// The miner does not serve this validator.
        ValidatorBlacklisted = "validator_blacklisted",
    }
}

wire_enum! {
    /// A kind of executor.
    Enum enum ExecutorClass {
        /// Started on demand, with a 24 GB GPU.
        SpinUp4minGpu24gb = "spin_up-4min.gpu-24gb",
        /// Always on, with a 24 GB GPU.
        AlwaysOnGpu24gb = "always_on.gpu-24gb",
        /// Always on, with an A6000 for language models.
        AlwaysOnLlmA6000 = "always_on.llm.a6000",
        /// Always on, for tests.
        AlwaysOnTest = "always_on.test",
        /// Always on, with 8 cores and 16 GB but without a GPU.
        AlwaysOnCpu8c16gb = "always_on.cpu.8c.16gb",
    }
}

impl ExecutorClass {
    /// How long an executor of this class may take until it is up.
    pub const fn spin_up_time(self) -> Duration {
        Duration::from_secs(match self {
            Self::SpinUp4minGpu24gb => 240,
            Self::AlwaysOnGpu24gb | Self::AlwaysOnTest => 3,
            Self::AlwaysOnLlmA6000 | Self::AlwaysOnCpu8c16gb => 30,
        })
    }

    /// Whether it has a GPU.
    pub const fn has_gpu(self) -> bool {
        !matches!(self, Self::AlwaysOnTest | Self::AlwaysOnCpu8c16gb)
    }
}

wire_enum! {
    /// Why a miner turns a validator away.
    Enum enum Code {
        /// The authentication was signed too long ago.
        TokenTooOld = "TOKEN_TOO_OLD",
        /// The miner does not know the validator.
        UnknownValidator = "UNKNOWN_VALIDATOR",
        /// The miner knows the validator as inactive.
        ValidatorInactive = "VALIDATOR_INACTIVE",
    }
}

wire_enum! {
    /// What a signature in HTTP headers or in a job request covers.
    Enum enum SignatureScope {
        /// The fields that `SignedFields` lists.
        SignedFields = "SignedFields",
        /// The whole HTTP request.
        FullRequest = "FullRequest",
    }
}

wire_enum! {
    /// The kind of a receipt.
    Enum enum ReceiptType {
        /// A job was started.
        JobStartedReceipt = "JobStartedReceipt",
        /// A job was accepted.
        JobAcceptedReceipt = "JobAcceptedReceipt",
        /// A job was finished.
        JobFinishedReceipt = "JobFinishedReceipt",
    }
}

wire_enum! {
    /// The kind of a volume.
    Enum enum VolumeType {
        /// A zip inside the message.
        Inline = "inline",
        /// A zip by its address.
        ZipUrl = "zip_url",
        /// One file by its address.
        SingleFile = "single_file",
        /// Several of the others.
        MultiVolume = "multi_volume",
        /// A repository of Hugging Face.
        HuggingfaceVolume = "huggingface_volume",
    }
}

wire_enum! {
    /// The kind of an upload.
    Enum enum OutputUploadType {
        /// All output as a zip, by POST.
        ZipAndHttpPost = "zip_and_http_post",
        /// All output as a zip, by PUT.
        ZipAndHttpPut = "zip_and_http_put",
        /// Several files.
        MultiUpload = "multi_upload",
        /// One file, by POST.
        SingleFilePost = "single_file_post",
        /// One file, by PUT.
        SingleFilePut = "single_file_put",
    }
}

wire_enum! {
    /// Whether the facilitator took a message.
    Literal enum ResponseStatus {
        /// It did not; the errors say why.
        Error = "error",
        /// It did.
        Success = "success",
    }
}

wire_enum! {
    /// The set of options that the job's container is run with.
    Literal enum DockerRunOptionsPreset {
        /// With all GPUs.
        NvidiaAll = "nvidia_all",
        /// With none.
        None = "none",
    }
}

/// The tags that are members of a string enum in Python are shown as such in errors.
macro_rules! enum_literal {
    ($($name:ident),*) => {$(
        impl Literal for $name {
            fn text(&self) -> &'static str {
                self.as_str()
            }

            fn shown(&self) -> String {
                format!("<{}.{1}: '{1}'>", stringify!($name), self.as_str())
            }
        }
    )*};
}
enum_literal!(ReceiptType, VolumeType, OutputUploadType);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_of_a_job_shows_steps_that_it_may_take_and_every_status() {
        let picture = include_str!("../../docs/states.md").lines().filter_map(|line| line.trim().split_once(" --> "));
        let status = |name: &str| JobStatus::ALL.iter().copied().find(|status| status.as_str() == name);
        let steps = picture.filter_map(|(from, to)| Some((status(from)?, status(to.split(':').next().unwrap_or(to))?)));
        let steps: Vec<_> = steps.collect();
        assert!(steps.iter().all(|(from, to)| from.may_become(*to)), "{steps:?}");
        let missing = |status: &JobStatus| !steps.iter().any(|(from, to)| from == status || to == status);
        assert_eq!(JobStatus::ALL.iter().copied().filter(missing).collect::<Vec<_>>(), [JobStatus::Unknown]);
    }

    #[test]
    fn a_job_moves_forward_and_ends_once() {
        use JobStatus as S;
        let way = [S::Sent, S::Received, S::Accepted, S::ExecutorReady, S::VolumesReady, S::StreamingReady];
        let way = [&way[..], &[S::ExecutionDone, S::Completed]].concat();
        for (at, from) in way.iter().enumerate() {
            assert!(way[at + 1..].iter().all(|next| from.may_become(*next)), "on from {from}");
            assert!(!way[..=at].iter().any(|next| from.may_become(*next)), "back from {from}");
        }
        for status in S::ALL {
            let is_last = !S::ALL.iter().any(|next| status.may_become(*next));
            assert_eq!(status.is_terminal(), is_last, "{status}");
        }
    }
}

//! The deadline of a job, stage by stage: one rule for the validator and the executor. Pure: `now` is an argument.
//!
//! With timing details the deadline starts with the leeway and is moved on by each stage's limit as the stage begins, so
//! what one stage does not use is left for the next. Without them one limit holds for all.

use std::time::{Duration, Instant};

use super::{ExecutorTimingDetails, HordeFailureReason, Int, JobStage};

/// The stages that have a limit, in their order. A streaming start, where there is one, is counted with the execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Volumes are downloaded.
    Download,
    /// The streaming server comes up.
    StreamingStart,
    /// The job runs.
    Execution,
    /// Results are uploaded.
    Upload,
}

impl Stage {
    /// What a validator reports when the deadline passes in this stage.
    pub fn timeout_reason(self) -> HordeFailureReason {
        match self {
            Self::Download => HordeFailureReason::VolumesTimedOut,
            Self::StreamingStart => HordeFailureReason::StreamingJobReadyTimedOut,
            Self::Execution => HordeFailureReason::ExecutionTimedOut,
            Self::Upload => HordeFailureReason::FinalResponseTimedOut,
        }
    }

    /// What an executor reports (as a `timeout` of the job) when the deadline passes in this stage; the Python
    /// executor's words.
    pub fn timeout_message(self) -> &'static str {
        match self {
            Self::Download => "Download time exceeded",
            Self::StreamingStart | Self::Execution => "Execution time exceeded",
            Self::Upload => "Upload time exceeded",
        }
    }

    /// The name of the stage in messages.
    pub fn job_stage(self) -> JobStage {
        match self {
            Self::Download => JobStage::VolumeDownload,
            Self::StreamingStart => JobStage::StreamingStartup,
            Self::Execution => JobStage::Execution,
            Self::Upload => JobStage::ResultUpload,
        }
    }
}

/// How long a job may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeLimits {
    /// A limit for each stage.
    Stages {
        /// What all stages together may take longer.
        leeway: Duration,
        /// For [`Stage::Download`].
        download: Duration,
        /// For [`Stage::StreamingStart`].
        streaming_start: Duration,
        /// For [`Stage::Execution`].
        execution: Duration,
        /// For [`Stage::Upload`].
        upload: Duration,
    },
    /// One limit for all of it.
    Total(Duration),
}

impl TimeLimits {
    /// The limits of an initial job request: its timing details, else its `timeout_seconds`; none if it has neither.
    pub fn of_request(timing: Option<&ExecutorTimingDetails>, timeout_seconds: Option<&Int>) -> Option<Self> {
        timing.map(Self::from).or_else(|| timeout_seconds.map(|seconds| Self::Total(seconds.saturating_seconds())))
    }

    fn of_stage(&self, stage: Stage) -> Duration {
        match (self, stage) {
            (Self::Total(_), _) => Duration::ZERO,
            (Self::Stages { download, .. }, Stage::Download) => *download,
            (Self::Stages { streaming_start, .. }, Stage::StreamingStart) => *streaming_start,
            (Self::Stages { execution, .. }, Stage::Execution) => *execution,
            (Self::Stages { upload, .. }, Stage::Upload) => *upload,
        }
    }
}

impl From<&ExecutorTimingDetails> for TimeLimits {
    fn from(timing: &ExecutorTimingDetails) -> Self {
        Self::Stages {
            leeway: timing.allowed_leeway.saturating_seconds(),
            download: timing.download_time_limit.saturating_seconds(),
            streaming_start: timing.streaming_start_time_limit.saturating_seconds(),
            execution: timing.execution_time_limit.saturating_seconds(),
            upload: timing.upload_time_limit.saturating_seconds(),
        }
    }
}

/// No job may take longer; the wire allows limits that no clock can count to.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// The running deadline of one job.
#[derive(Debug, Clone)]
pub struct StageClock {
    limits: TimeLimits,
    start: Instant,
    /// How long after `start` the deadline is.
    allowed: Duration,
    begun: Option<Stage>,
}

impl StageClock {
    /// Starts when the executor is ready: with the leeway, or with the one limit.
    pub fn new(limits: TimeLimits, now: Instant) -> Self {
        let allowed = match limits {
            TimeLimits::Stages { leeway, .. } => leeway,
            TimeLimits::Total(total) => total,
        };
        Self { limits, start: now, allowed: allowed.min(LONGEST), begun: None }
    }

    /// A stage begins: adds its limit, once, and gives the deadline.
    ///
    /// A stage that has begun already, or one before it, changes nothing: a repeated message does not buy time.
    pub fn begin(&mut self, stage: Stage) -> Instant {
        if self.begun < Some(stage) {
            self.begun = Some(stage);
            self.allowed = self.allowed.saturating_add(self.limits.of_stage(stage)).min(LONGEST);
        }
        self.deadline()
    }

    /// The present deadline.
    pub fn deadline(&self) -> Instant {
        self.start + self.allowed
    }

    /// What is left; nothing if the deadline has passed.
    pub fn left(&self, now: Instant) -> Duration {
        self.deadline().saturating_duration_since(now)
    }

    /// The last stage that has begun.
    pub fn stage(&self) -> Option<Stage> {
        self.begun
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn limits() -> TimeLimits {
        TimeLimits::Stages {
            leeway: seconds(5),
            download: seconds(10),
            streaming_start: seconds(20),
            execution: seconds(40),
            upload: seconds(80),
        }
    }

    #[test]
    fn each_stage_adds_its_limit_and_what_is_not_used_is_carried_over() {
        let start = Instant::now();
        let mut clock = StageClock::new(limits(), start);
        let rows = [
            (None, 5),
            (Some(Stage::Download), 15),
            (Some(Stage::StreamingStart), 35),
            (Some(Stage::Execution), 75),
            (Some(Stage::Upload), 155),
        ];
        for (stage, total) in rows {
            if let Some(stage) = stage {
                assert_eq!(clock.begin(stage), start + seconds(total));
            }
            assert_eq!(clock.deadline(), start + seconds(total), "{stage:?}");
            assert_eq!(clock.stage(), stage);
        }
        assert_eq!(clock.left(start + seconds(100)), seconds(55));
        assert_eq!(clock.left(start + seconds(156)), Duration::ZERO);
    }

    #[test]
    fn a_stage_that_is_left_out_adds_nothing_and_a_repeated_one_neither() {
        let start = Instant::now();
        let mut clock = StageClock::new(limits(), start);
        clock.begin(Stage::Download);
        clock.begin(Stage::Download);
        assert_eq!(clock.begin(Stage::Execution), start + seconds(55));
        assert_eq!(clock.begin(Stage::StreamingStart), start + seconds(55));
        assert_eq!(clock.begin(Stage::Upload), start + seconds(135));
    }

    #[test]
    fn a_single_limit_holds_for_all_stages() {
        let start = Instant::now();
        let mut clock = StageClock::new(TimeLimits::Total(seconds(300)), start);
        for stage in [Stage::Download, Stage::StreamingStart, Stage::Execution, Stage::Upload] {
            assert_eq!(clock.begin(stage), start + seconds(300));
        }
    }

    #[test]
    fn limits_of_the_wire_are_read_without_overflow() {
        let timing = ExecutorTimingDetails {
            allowed_leeway: Int::from(0),
            download_time_limit: Int::from(-1),
            execution_time_limit: Int::from(i64::MAX),
            upload_time_limit: "18446744073709551617".parse().unwrap(),
            streaming_start_time_limit: Int::from(0),
        };
        let start = Instant::now();
        let limits = TimeLimits::of_request(Some(&timing), Some(&Int::from(1))).unwrap();
        let mut clock = StageClock::new(limits, start);
        assert_eq!(clock.begin(Stage::Download), start);
        assert_eq!(clock.begin(Stage::Execution), start + LONGEST);
        assert_eq!(clock.begin(Stage::Upload), start + LONGEST);
        assert_eq!(TimeLimits::of_request(None, Some(&Int::from(7))), Some(TimeLimits::Total(seconds(7))));
        assert_eq!(TimeLimits::of_request(None, None), None);
    }

    #[test]
    fn every_stage_has_a_reason_of_its_own() {
        let rows = [
            (Stage::Download, "volumes_timed_out", "volume_download"),
            (Stage::StreamingStart, "streaming_job_ready_timed_out", "streaming_startup"),
            (Stage::Execution, "execution_timed_out", "execution"),
            (Stage::Upload, "final_response_timed_out", "result_upload"),
        ];
        for (stage, reason, name) in rows {
            assert_eq!((stage.timeout_reason().as_str(), stage.job_stage().as_str()), (reason, name));
        }
    }
}

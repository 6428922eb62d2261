//! How long each stage of a job may take: one rule for the validator, the miner and the executor. Pure: `now` is given.
//!
//! The deadline starts with the leeway and is extended by each stage's limit as the stage begins, so that time saved in
//! one stage is there for the next. Without timing details one total applies to all stages.

use std::time::{Duration, Instant};

use super::{ExecutorTimingDetails, HordeFailureReason};
use crate::base::limits::LONGEST_TIME;

/// A stage of a job after its executor is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// The volumes are downloaded.
    Download,
    /// The streaming server starts; streaming jobs only.
    StreamingStart,
    /// The command runs.
    Execution,
    /// The output is uploaded.
    Upload,
}

impl Stage {
    /// What a validator reports when the stage takes too long.
    pub fn timed_out(self) -> HordeFailureReason {
        match self {
            Stage::Download => HordeFailureReason::VolumesTimedOut,
            Stage::StreamingStart => HordeFailureReason::StreamingJobReadyTimedOut,
            Stage::Execution => HordeFailureReason::ExecutionTimedOut,
            Stage::Upload => HordeFailureReason::FinalResponseTimedOut,
        }
    }

    /// What somebody waits for during the stage, for people.
    pub fn waits_for(self) -> &'static str {
        match self {
            Stage::Download => "the volumes",
            Stage::StreamingStart => "the streaming server",
            Stage::Execution => "the end of the execution",
            Stage::Upload => "the results",
        }
    }
}

/// The limits of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timing {
    /// A limit for each stage, and what all together may take beyond them.
    PerStage {
        /// For all together.
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
    /// One limit for all.
    Total(Duration),
}

impl Timing {
    /// All limits together.
    pub fn total(&self) -> Duration {
        match *self {
            Timing::Total(total) => total,
            Timing::PerStage { leeway, download, streaming_start, execution, upload } => leeway
                .saturating_add(download)
                .saturating_add(streaming_start)
                .saturating_add(execution)
                .saturating_add(upload),
        }
    }
}

impl From<&ExecutorTimingDetails> for Timing {
    fn from(details: &ExecutorTimingDetails) -> Self {
        Timing::PerStage {
            leeway: details.allowed_leeway.saturating_seconds(),
            download: details.download_time_limit.saturating_seconds(),
            streaming_start: details.streaming_start_time_limit.saturating_seconds(),
            execution: details.execution_time_limit.saturating_seconds(),
            upload: details.upload_time_limit.saturating_seconds(),
        }
    }
}

/// The deadline of a job as its stages begin.
#[derive(Debug, Clone)]
pub struct StageClock {
    timing: Timing,
    deadline: Instant,
}

impl StageClock {
    /// A clock that starts now, before the first stage.
    pub fn new(timing: Timing, now: Instant) -> Self {
        let first = match timing {
            Timing::PerStage { leeway, .. } => leeway,
            Timing::Total(total) => total,
        };
        Self { timing, deadline: now + first.min(LONGEST_TIME) }
    }

    /// A stage begins; gives the new deadline.
    pub fn begin(&mut self, stage: Stage) -> Instant {
        if let Timing::PerStage { download, streaming_start, execution, upload, .. } = self.timing {
            let limit = match stage {
                Stage::Download => download,
                Stage::StreamingStart => streaming_start,
                Stage::Execution => execution,
                Stage::Upload => upload,
            };
            self.deadline += limit.min(LONGEST_TIME);
        }
        self.deadline
    }

    /// The present deadline.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn timing() -> Timing {
        Timing::PerStage { leeway: 5 * S, download: 10 * S, streaming_start: 3 * S, execution: 20 * S, upload: 7 * S }
    }

    #[test]
    fn each_stage_adds_its_limit_and_saved_time_is_carried_over() {
        let t = Instant::now();
        let mut clock = StageClock::new(timing(), t);
        assert_eq!(clock.deadline(), t + 5 * S);
        assert_eq!(clock.begin(Stage::Download), t + 15 * S);
        assert_eq!(clock.begin(Stage::Execution), t + 35 * S);
        assert_eq!(clock.begin(Stage::Upload), t + 42 * S);
        assert_eq!(timing().total(), 45 * S);
    }

    #[test]
    fn one_total_is_not_extended() {
        let t = Instant::now();
        let mut clock = StageClock::new(Timing::Total(9 * S), t);
        assert_eq!([clock.begin(Stage::Download), clock.begin(Stage::Upload)], [t + 9 * S; 2]);
    }

    #[test]
    fn limits_beyond_every_clock_do_not_overflow() {
        let mut clock = StageClock::new(Timing::Total(Duration::MAX), Instant::now());
        clock.begin(Stage::Execution);
        let max = Duration::MAX;
        let timing = Timing::PerStage { leeway: max, download: max, streaming_start: max, execution: max, upload: max };
        let mut clock = StageClock::new(timing, Instant::now());
        for stage in [Stage::Download, Stage::StreamingStart, Stage::Execution, Stage::Upload] {
            clock.begin(stage);
        }
        assert_eq!(timing.total(), max);
    }
}

//! How long each stage of a job may take: one rule for the validator, the miner and the executor. Pure: `now` is given.
//!
//! The deadline starts with the leeway and is extended by each stage's limit as the stage begins, so that time saved in
//! one stage is there for the next. Without timing details one total applies to all stages. This is the bound of the
//! network. Before it, the executor stops a run that has lasted for the execution limit itself.
//!
//! All sides count from the executor's readiness. A Python validator gives a stage up at the deadline itself, so the
//! others keep away from it, in this order:
//!
//! ```text
//! run + execution limit                   the executor stops the run, whatever time earlier stages have saved
//! deadline - up to EXECUTOR_AHEAD         the executor gives a stage up, while its report can still arrive
//! deadline                                a Python validator gives the stage up, as the network's fault
//! deadline + MINER_BEHIND                 the miner reports an executor that has not
//! deadline + VALIDATOR_BEHIND             our validator reports a miner that has not
//! ```

use std::time::{Duration, Instant};

use super::{ExecutorTimingDetails, HordeFailureReason, V0InitialJobRequest};
use crate::base::limits::LONGEST_TIME;

/// How long before the deadline an executor gives a stage up, at most: for the end of the job's processes, what can be
/// read of its artifacts, and the way to the validator.
pub const EXECUTOR_AHEAD: Duration = Duration::from_secs(2);

/// How long after the deadline a miner gives up an executor that reports nothing: more than a report takes.
pub const MINER_BEHIND: Duration = Duration::from_secs(5);

/// How long after the deadline a validator gives up a miner that reports nothing: twice the miner's, whose clock starts
/// later by the way of the job request.
pub const VALIDATOR_BEHIND: Duration = Duration::from_secs(10);

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
    /// The limits that a job has been given, or `default` in all for one without.
    pub fn of(initial: &V0InitialJobRequest, default: Duration) -> Self {
        match (&initial.executor_timing, &initial.timeout_seconds) {
            (Some(details), _) => Timing::from(details),
            (None, Some(total)) => Timing::Total(total.saturating_seconds()),
            (None, None) => Timing::Total(default),
        }
    }

    /// The limits as an executor keeps them, ahead of whoever waits for it: by half of the leeway or a tenth of the
    /// total, and by [`EXECUTOR_AHEAD`] at most. The limits of the stages themselves stay as they are.
    pub fn of_executor(self) -> Self {
        match self {
            Timing::PerStage { leeway, download, streaming_start, execution, upload } => {
                let leeway = leeway - EXECUTOR_AHEAD.min(leeway / 2);
                Timing::PerStage { leeway, download, streaming_start, execution, upload }
            }
            Timing::Total(total) => Timing::Total(total - EXECUTOR_AHEAD.min(total / 10)),
        }
    }

    /// How long the command itself may run, whatever time earlier stages have saved.
    pub fn run_time(&self) -> Duration {
        match *self {
            Timing::Total(_) => LONGEST_TIME,
            Timing::PerStage { execution, .. } => execution.min(LONGEST_TIME),
        }
    }

    /// What the job asks for: its limits together, without the leeway, which is the network's. Only a `streaming` job
    /// has a server that starts.
    pub fn asked(&self, streaming: bool) -> Duration {
        match *self {
            Timing::Total(total) => total,
            Timing::PerStage { download, streaming_start, execution, upload, .. } => {
                let start = if streaming { streaming_start } else { Duration::ZERO };
                download.saturating_add(start).saturating_add(execution).saturating_add(upload)
            }
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
    /// No deadline is later.
    latest: Option<Instant>,
    cut: bool,
}

impl StageClock {
    /// A clock that starts now, before the first stage.
    pub fn new(timing: Timing, now: Instant) -> Self {
        let first = match timing {
            Timing::PerStage { leeway, .. } => leeway,
            Timing::Total(total) => total,
        };
        Self { timing, deadline: now + first.min(LONGEST_TIME), latest: None, cut: false }
    }

    /// The same, for a job that may ask for at most `most` in all, whatever its limits are. The leeway is beside that.
    #[must_use]
    pub fn within(mut self, most: Option<Duration>, now: Instant) -> Self {
        let from = if let Timing::PerStage { .. } = self.timing { self.deadline } else { now };
        self.latest = most.map(|most| from + most.min(LONGEST_TIME));
        self.bound();
        self
    }

    /// Whether the present deadline is earlier than the job's limits say.
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    fn bound(&mut self) {
        if let Some(latest) = self.latest.filter(|latest| *latest < self.deadline) {
            (self.deadline, self.cut) = (latest, true);
        }
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
            self.bound();
        }
        self.deadline
    }

    /// The execution begins at an executor; gives when the run is stopped. That is the execution limit from now on, or
    /// the deadline, where that is earlier.
    pub fn begin_run(&mut self, now: Instant) -> Instant {
        self.begin(Stage::Execution).min(now + self.timing.run_time())
    }

    /// Moves the deadline, for a time that counts against nobody.
    pub fn postpone(&mut self, by: Duration) {
        self.deadline += by.min(LONGEST_TIME);
    }

    /// A clock of a job that is in some stage already, with this deadline.
    pub fn resumed(timing: Timing, deadline: Instant) -> Self {
        Self { timing, deadline, latest: None, cut: false }
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
        assert_eq!((timing().asked(false), timing().asked(true)), (37 * S, 40 * S));
    }

    /// What each side does with a job that never ends, for each pairing: who says first that it is over?
    #[test]
    fn a_run_without_end_is_the_job_s_timeout_at_every_pairing() {
        let millis = Duration::from_millis;
        // The way of one message, twice as long as between continents.
        let way = millis(500);
        // The grace of the job's processes, their end and the artifacts.
        let end = millis(1_500);
        let per_stage = |leeway: u64, download: u64, execution: u64| Timing::PerStage {
            leeway: Duration::from_secs(leeway),
            download: Duration::from_secs(download),
            streaming_start: Duration::ZERO,
            execution: Duration::from_secs(execution),
            upload: 5 * S,
        };
        // The limits, and how long the volumes take.
        for (timing, loaded) in [
            (per_stage(5, 5, 2), Duration::ZERO),
            (per_stage(5, 5, 2), 7 * S),
            (per_stage(5, 0, 2), Duration::ZERO),
            (per_stage(5, 60, 3600), 62 * S),
            (per_stage(5, 0, 0), Duration::ZERO),
            (Timing::Total(20 * S), 3 * S),
            (Timing::Total(3600 * S), 60 * S),
        ] {
            let ready = Instant::now();
            let mut executor = StageClock::new(timing.of_executor(), ready);
            let request_comes = ready + 2 * way;
            let loaded = request_comes + loaded;
            assert!(loaded <= executor.begin(Stage::Download), "{timing:?}: the volumes are in time");
            let ours = executor.begin_run(loaded);
            // It stops a run at its limit, and reports that by the accumulated deadline only.
            let theirs = match timing {
                Timing::PerStage { execution, .. } => loaded + execution,
                Timing::Total(total) => ready + total,
            };
            assert!(ours <= theirs, "{timing:?}");
            let python_validator = {
                let mut clock = StageClock::new(timing, ready + way);
                clock.begin(Stage::Download);
                clock.begin(Stage::Execution)
            };
            let miner = {
                let mut clock = StageClock::new(timing, request_comes);
                clock.begin(Stage::Download);
                clock.begin(Stage::Execution) + MINER_BEHIND
            };
            let validator = python_validator + VALIDATOR_BEHIND;
            let reported = ours + end + way;
            assert!(reported < python_validator, "{timing:?}: {:?} late", reported - python_validator);
            assert!(ours + end < miner && miner + way < validator, "{timing:?}");
            assert!(theirs + end < miner, "{timing:?}: a Python executor reports before our miner does");
        }
    }

    #[test]
    fn a_run_is_stopped_at_its_own_limit_or_the_deadline() {
        let t = Instant::now();
        let mut clock = StageClock::new(timing(), t);
        clock.begin(Stage::Download);
        assert_eq!(clock.clone().begin_run(t + S), t + 21 * S, "what was saved is not for the run");
        assert_eq!(clock.begin_run(t + 30 * S), t + 35 * S);
        assert_eq!(clock.begin(Stage::Upload), t + 42 * S);
        assert_eq!(StageClock::new(Timing::Total(9 * S), t).begin_run(t + S), t + 9 * S);
    }

    #[test]
    fn an_executor_is_ahead_by_a_part_of_what_it_has() {
        let leeway = |timing: Timing| match timing {
            Timing::PerStage { leeway, .. } => leeway,
            Timing::Total(total) => total,
        };
        assert_eq!(leeway(timing().of_executor()), 3 * S);
        for (total, left) in [(100, 98), (10, 9), (0, 0)] {
            assert_eq!(Timing::Total(total * S).of_executor(), Timing::Total(left * S));
        }
        let Timing::PerStage { download, streaming_start, execution, upload, .. } = timing() else { unreachable!() };
        let small = Timing::PerStage { leeway: S, download, streaming_start, execution, upload };
        assert_eq!(leeway(small.of_executor()), S / 2);
    }

    #[test]
    fn a_job_has_at_most_what_it_may_have_in_all_beside_the_leeway() {
        let t = Instant::now();
        let clock = |timing, most: u64| StageClock::new(timing, t).within(Some(S * most as u32), t);
        let mut enough = clock(timing(), 37);
        for (stage, deadline) in [(Stage::Download, 15), (Stage::Execution, 35), (Stage::Upload, 42)] {
            assert_eq!((enough.begin(stage), enough.is_cut()), (t + S * deadline, false));
        }
        let mut less = clock(timing(), 12);
        for (stage, deadline, cut) in
            [(Stage::Download, 15, false), (Stage::Execution, 17, true), (Stage::Upload, 17, true)]
        {
            assert_eq!((less.begin(stage), less.is_cut()), (t + S * deadline, cut));
        }
        let total = clock(Timing::Total(9 * S), 5);
        assert_eq!((total.deadline(), total.is_cut()), (t + 5 * S, true));
    }

    #[test]
    fn one_total_is_not_extended() {
        let t = Instant::now();
        let mut clock = StageClock::new(Timing::Total(9 * S), t);
        assert_eq!([clock.begin(Stage::Download), clock.begin(Stage::Upload)], [t + 9 * S; 2]);
    }

    #[test]
    fn limits_beyond_every_clock_do_not_overflow() {
        let mut clock = StageClock::new(Timing::Total(Duration::MAX).of_executor(), Instant::now());
        clock.begin(Stage::Execution);
        clock.begin_run(Instant::now());
        let max = Duration::MAX;
        let timing = Timing::PerStage { leeway: max, download: max, streaming_start: max, execution: max, upload: max };
        let mut clock = StageClock::new(timing, Instant::now());
        for stage in [Stage::Download, Stage::StreamingStart, Stage::Execution, Stage::Upload] {
            clock.begin(stage);
        }
        clock.begin_run(Instant::now());
        assert_eq!(timing.asked(true), max);
        let mut clock = StageClock::new(timing, Instant::now()).within(Some(max), Instant::now());
        clock.begin(Stage::Execution);
    }
}

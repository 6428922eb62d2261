//! Flags of roles that may stop by themselves.

use std::time::Duration;

use super::values::duration;
use crate::app::ending::Ending;

/// When a role stops by itself; it drains then as at a first signal.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct EndingArgs {
    /// Take one job at a time, and stop when one has ended; one that is turned away does not count
    #[arg(long, env = "PHALANX_RUN_ONE_JOB")]
    run_one_job: bool,
    /// Stop when no job was there for this time
    #[arg(long, value_name = "DUR", value_parser = duration, env = "PHALANX_STOP_WHEN_IDLE")]
    stop_when_idle: Option<Duration>,
    /// Stop this long after the start; jobs that run then have --drain-time
    #[arg(long, value_name = "DUR", value_parser = duration, env = "PHALANX_STOP_AFTER_UPTIME")]
    stop_after_uptime: Option<Duration>,
}

impl EndingArgs {
    /// Those that take a restart, with what they say.
    pub(super) fn flags(&self) -> [(&'static str, String); 3] {
        let Self { run_one_job, stop_when_idle, stop_after_uptime } = self;
        [
            ("--run-one-job", run_one_job.to_string()),
            ("--stop-when-idle", format!("{stop_when_idle:?}")),
            ("--stop-after-uptime", format!("{stop_after_uptime:?}")),
        ]
    }

    /// What they say.
    ///
    /// # Errors
    /// One line that names the flag.
    pub(super) fn ending(&self) -> Result<Ending, String> {
        let Self { run_one_job, stop_when_idle, stop_after_uptime } = *self;
        for (flag, time) in [("--stop-when-idle", stop_when_idle), ("--stop-after-uptime", stop_after_uptime)] {
            if time.is_some_and(|time| time < Duration::from_secs(1)) {
                return Err(format!("{flag}: it should be 1s or more"));
            }
        }
        Ok(Ending { one_job: run_one_job, idle: stop_when_idle, uptime: stop_after_uptime })
    }
}

//! The operator's own programs around each job.
//!
//! A hook runs beside the executor, as its user, in a process group of its own. It has the executor's environment
//! without the token, and `PHALANX_JOB_UUID` and `PHALANX_JOB_FOLDER` (with `volume/`, `output/`, `artifacts/`); the
//! one after the job also `PHALANX_JOB_EXIT`, the exit code of the job's command, if it has one.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::base::shutdown::Shutdown;
use crate::proc::tool::{self, ToolError};

/// How long the hook after the job may take: the miner ends an executor some seconds after its last message.
pub(super) const AFTER_TIME: Duration = Duration::from_secs(5);

/// The hooks, each a program and its arguments; an empty one is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hooks {
    /// Runs before anything is fetched for a job, within the executor's start-up time. Where it fails, the job ends as
    /// the horde's failure.
    pub before_job: Vec<String>,
    /// Runs once the job is over, whatever its end, after its last message and before its folder is removed; for at
    /// most 5 s. Where it fails, a warning says so.
    pub after_job: Vec<String>,
}

impl Hooks {
    /// Runs the hook before the job. Blocks until it has ended, `deadline` or a cancel.
    ///
    /// # Errors
    /// What the hook said on stderr, or why it has not run to its end.
    pub(super) fn before(
        &self,
        uuid: &str,
        folder: &Path,
        stop: &Shutdown,
        deadline: Instant,
    ) -> Result<(), ToolError> {
        match command(&self.before_job, uuid, folder) {
            Some(hook) => tool::output(hook, "run the hook before the job", stop, deadline).map(drop),
            None => Ok(()),
        }
    }

    /// Runs the hook after the job; also for a cancelled one. Blocks until it has ended, `deadline` or a cancel.
    ///
    /// # Errors
    /// As [`Hooks::before`].
    pub(super) fn after(
        &self,
        uuid: &str,
        folder: &Path,
        exit: Option<i32>,
        stop: &Shutdown,
        deadline: Instant,
    ) -> Result<(), ToolError> {
        let Some(mut hook) = command(&self.after_job, uuid, folder) else { return Ok(()) };
        if let Some(code) = exit {
            hook.env("PHALANX_JOB_EXIT", code.to_string());
        }
        tool::output(hook, "run the hook after the job", stop, deadline).map(drop)
    }
}

fn command(words: &[String], uuid: &str, folder: &Path) -> Option<Command> {
    let (program, arguments) = words.split_first()?;
    let mut command = Command::new(program);
    command.args(arguments).env_remove("EXECUTOR_TOKEN");
    command.env("PHALANX_JOB_UUID", uuid).env("PHALANX_JOB_FOLDER", folder);
    Some(command)
}

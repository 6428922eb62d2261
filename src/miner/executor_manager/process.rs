//! Executors as processes of this machine: `phalanx executor`, each in a process group that is ended as a whole.

use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use super::backend::{END_GRACE, ExecutorBackend, ExecutorError, ExecutorExit, ExecutorSpec, check_runner};
use super::docker::DOCKER_TIME;
use super::folder::ExecutorFolder;
use super::program;
use super::settings::ExecutorSettings;
use crate::base::shutdown::Shutdown;
use crate::proc::docker::{Docker, labels};

/// Runs `<program> executor --startup-time-limit S --runner R` with `MINER_ADDRESS` and `EXECUTOR_TOKEN`.
///
/// Its environment is the miner's, without the miner's own `PHALANX_…` variables but `PHALANX_TLS_CA`, with its
/// settings, and with a `TMPDIR` of its own that is removed after the run. What a killed executor leaves of its job is
/// ended as well: its processes, and the container, which nobody else would remove.
#[derive(Debug, Clone)]
pub struct ProcessBackend {
    /// The program, by default this one.
    pub program: PathBuf,
    /// The value of `--runner`.
    pub runner: String,
    /// Another executor's arguments, instead of ours; `{startup_seconds}` in them is replaced.
    pub arguments: Option<Vec<String>>,
    /// What its executors are told.
    pub settings: ExecutorSettings,
    /// Time from the first SIGTERM to SIGKILL.
    pub end_grace: Duration,
}

impl ProcessBackend {
    /// A back end that runs this program.
    ///
    /// # Errors
    /// What the system says when it cannot tell which program this is.
    pub fn new(runner: impl Into<String>) -> io::Result<Self> {
        let program = std::env::current_exe()?;
        Ok(Self {
            program,
            runner: runner.into(),
            arguments: None,
            settings: ExecutorSettings::default(),
            end_grace: END_GRACE,
        })
    }

    fn end_leftovers(&self, job_uuid: &str, folder: &ExecutorFolder) {
        if let Err(error) = folder.end_processes() {
            log::error!("executor of job {job_uuid}: what is left of its job may still run: {error}");
        }
        if self.runner == "process" {
            return;
        }
        let docker = Docker { time: DOCKER_TIME, ..Docker::default() };
        if let Err(error) = docker.remove_labelled(labels::JOB, job_uuid) {
            log::warn!("job {job_uuid}: its container may still be there: {error}");
        }
    }
}

impl ExecutorBackend for ProcessBackend {
    fn run(&self, spec: &ExecutorSpec, stop: &Shutdown) -> Result<ExecutorExit, ExecutorError> {
        if stop.is_set() {
            return Ok(ExecutorExit::Unknown);
        }
        let folder = ExecutorFolder::create().map_err(ExecutorError::Folder)?;
        let mut command = Command::new(&self.program);
        command.args(program::arguments(spec, &self.runner, self.arguments.as_deref()));
        program::environment(&mut command, spec, &self.settings);
        command.env("TMPDIR", folder.path());
        let end = program::run(command, spec, stop, self.end_grace);
        // One that exits by itself has ended its job before.
        if !matches!(end, Ok(ExecutorExit::Code(_)) | Err(ExecutorError::Start { .. })) {
            self.end_leftovers(&spec.job_uuid, &folder);
        }
        end
    }

    fn check(&self, stop: &Shutdown, deadline: Instant) -> Result<String, String> {
        // What another executor needs is not known here.
        if self.arguments.is_some() {
            return Ok(format!("as {} runs them", self.program.display()));
        }
        check_runner(&self.runner, &Docker::default(), stop, deadline)
    }
}

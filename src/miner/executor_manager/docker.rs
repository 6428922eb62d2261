//! Executors as containers: `docker run --rm --network host` of an image whose entry point is this program.
//!
//! A container is ours by its labels only, never by its name. Whatever way a run ends, its container is removed; those that
//! an earlier process of the same miner left behind are removed before the first run of this one.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Once;
use std::time::{Duration, Instant};

use super::process::{GroupRun, executor_arguments};
use super::{END_GRACE, ExecutorBackend, ExecutorError, ExecutorExit, ExecutorSpec};
use crate::base::shutdown::Shutdown;

/// Label with the hotkey of the miner that a container belongs to.
pub const MINER_LABEL: &str = "phalanx.miner";
/// Label with the number of the miner process that started a container.
pub const INSTANCE_LABEL: &str = "phalanx.instance";
/// Label with the job that a container is for.
pub const JOB_LABEL: &str = "phalanx.job";

/// Time for `docker` to list or remove containers.
const DOCKER_TIME: Duration = Duration::from_secs(30);

/// `docker run` ends with this code when there was no container to run.
const DOCKER_FAILED: i32 = 125;

/// Runs executors through the `docker` command line; `DOCKER_HOST` counts.
#[derive(Debug)]
pub struct DockerBackend {
    /// The program, by default `docker` on the `PATH`.
    pub program: PathBuf,
    /// The image, whose entry point takes the arguments of `phalanx`.
    pub image: String,
    /// The value of `--runner`.
    pub runner: String,
    /// Further arguments of `docker run`, as the mounts that the executor's own runner needs.
    pub options: Vec<String>,
    /// Time from the first SIGTERM to SIGKILL.
    pub end_grace: Duration,
    miner: String,
    instance: String,
    reaped: Once,
}

impl DockerBackend {
    /// A back end for the miner with this hotkey.
    pub fn new(miner_hotkey: impl Into<String>, image: impl Into<String>, runner: impl Into<String>) -> Self {
        Self {
            program: PathBuf::from("docker"),
            image: image.into(),
            runner: runner.into(),
            options: Vec::new(),
            end_grace: END_GRACE,
            miner: miner_hotkey.into(),
            instance: uuid::Uuid::new_v4().to_string(),
            reaped: Once::new(),
        }
    }

    /// Removes the containers that earlier processes of this miner have left.
    fn reap_orphans(&self, stop: &Shutdown) {
        let ours = format!("label={MINER_LABEL}={}", self.miner);
        let format = format!("{{{{.ID}}}} {{{{.Label \"{INSTANCE_LABEL}\"}}}}");
        let mut list = Command::new(&self.program);
        list.args(["ps", "--all", "--no-trunc", "--filter", &ours, "--format", &format]);
        let mut listed = Vec::new();
        match self.docker(list, "docker ps", stop, Some(&mut listed)) {
            Ok(ExecutorExit::Code(0)) => {}
            Ok(exit) => return log::warn!("docker cannot list containers: {exit}"),
            Err(error) => return log::warn!("docker cannot list containers: {error}"),
        }
        for line in listed {
            if let Some((id, instance)) = line.split_once(' ')
                && instance != self.instance
            {
                log::info!("removing container {id}, which an earlier process of this miner left behind");
                self.remove(id);
            }
        }
    }

    /// Removes a container, running or not; fine if there is none. No stop signal counts here: a run that was cancelled has
    /// its container removed as well.
    fn remove(&self, container: &str) {
        let mut command = Command::new(&self.program);
        command.args(["rm", "--force", "--volumes", container]);
        match self.docker(command, "docker rm", &Shutdown::new(), None) {
            Ok(ExecutorExit::Code(0)) => {}
            Ok(exit) => log::debug!("docker rm {container}: {exit}"),
            Err(error) => log::warn!("container {container} may still be there: {error}"),
        }
    }

    /// Runs a short `docker` command.
    fn docker(
        &self,
        command: Command,
        who: &str,
        stop: &Shutdown,
        stdout: Option<&mut Vec<String>>,
    ) -> Result<ExecutorExit, ExecutorError> {
        let deadline = Some(Instant::now() + DOCKER_TIME);
        GroupRun { command, who, stop, end_grace: Duration::from_secs(1), deadline, stdout }.run()
    }
}

/// Removes the container when the run is over, in whatever way.
struct Guard<'a> {
    backend: &'a DockerBackend,
    name: String,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.backend.remove(&self.name);
    }
}

impl ExecutorBackend for DockerBackend {
    fn run(&self, spec: &ExecutorSpec, stop: &Shutdown) -> Result<ExecutorExit, ExecutorError> {
        // Other runs that begin meanwhile wait for it, each at most for `DOCKER_TIME` a container.
        self.reaped.call_once(|| self.reap_orphans(stop));
        let name = format!("phalanx-executor-{}", spec.token);
        let mut command = Command::new(&self.program);
        command.args(["run", "--rm", "--network", "host", "--name", &name]);
        for (label, value) in
            [(MINER_LABEL, &self.miner), (INSTANCE_LABEL, &self.instance), (JOB_LABEL, &spec.job_uuid)]
        {
            command.arg("--label").arg(format!("{label}={value}"));
        }
        // By name only: the values come from the environment of `docker`, so no process list shows the token.
        command.args(["--env", "MINER_ADDRESS", "--env", "EXECUTOR_TOKEN"]);
        command.env("MINER_ADDRESS", &spec.miner_address).env("EXECUTOR_TOKEN", &spec.token);
        if spec.class.has_gpu() {
            command.args(["--gpus", "all"]);
        }
        command.args(&self.options).arg(&self.image).args(executor_arguments(spec, &self.runner));
        let _guard = Guard { backend: self, name };
        let who = format!("executor of job {}", spec.job_uuid);
        match (GroupRun { command, who: &who, stop, end_grace: self.end_grace, deadline: None, stdout: None }).run()? {
            failed @ ExecutorExit::Code(DOCKER_FAILED) => Err(ExecutorError::Docker(failed)),
            exit => Ok(exit),
        }
    }
}

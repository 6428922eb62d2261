//! Executors as containers: on the host's network, of an image whose entry point is this program.
//!
//! A container is created, started and removed by three commands, not run by one with `--rm`: one that is interrupted while
//! the container is being made would leave it behind. A container is ours by its labels only, never by its name. Whatever way a run ends, its container is removed; those that
//! an earlier process of the same miner left behind are removed before the first run of this one.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Once;
use std::time::{Duration, Instant};

use super::process::{GroupRun, executor_arguments};
use super::{END_GRACE, ExecutorBackend, ExecutorError, ExecutorExit, ExecutorSpec};
use crate::base::shutdown::{Level, Shutdown};

/// Label with the hotkey of the miner that a container belongs to.
pub const MINER_LABEL: &str = "phalanx.miner";
/// Label with the number of the miner process that started a container.
pub const INSTANCE_LABEL: &str = "phalanx.instance";
/// Label with the job that a container is for.
pub const JOB_LABEL: &str = "phalanx.job";

/// Time for `docker` to list or remove containers.
const DOCKER_TIME: Duration = Duration::from_secs(30);

/// Runs executors through the `docker` command line; `DOCKER_HOST` counts.
#[derive(Debug)]
pub struct DockerBackend {
    /// The program, by default `docker` on the `PATH`.
    pub program: PathBuf,
    /// The image, whose entry point takes the arguments of `phalanx`. It is not pulled: a job has no time for that.
    pub image: String,
    /// The value of `--runner`.
    pub runner: String,
    /// Further arguments of `docker create`, as the mounts that the executor's own runner needs.
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
    fn reap_orphans(&self) {
        let ours = format!("label={MINER_LABEL}={}", self.miner);
        let format = format!("{{{{.ID}}}} {{{{.Label \"{INSTANCE_LABEL}\"}}}}");
        let mut list = Command::new(&self.program);
        list.args(["ps", "--all", "--no-trunc", "--filter", &ours, "--format", &format]);
        let mut listed = Vec::new();
        match self.docker(list, "docker ps", Some(&mut listed)) {
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

    /// Tells a container to end and waits for it, unless `stop` is cancelled. `docker start` hands our signals on, but does
    /// not always wait for what they do.
    fn end(&self, container: &str, stop: &Shutdown) {
        let at_once = Shutdown::new();
        let cancel = at_once.clone();
        let _cancelled = stop.on(Level::Cancel, move || cancel.cancel());
        let mut command = Command::new(&self.program);
        command.args(["stop", "--time", &self.end_grace.as_secs().to_string(), container]);
        let (end_grace, deadline) = (Duration::from_secs(1), Some(Instant::now() + self.end_grace + DOCKER_TIME));
        let run = GroupRun {
            command,
            who: "docker stop",
            stop: &at_once,
            end_grace,
            deadline,
            stdout: Some(&mut Vec::new()),
        };
        if let Err(error) = run.run() {
            log::warn!("container {container} could not be told to end: {error}");
        }
    }

    /// How a container ended. `docker start` is not asked: it ends with 0 when it was signalled itself.
    fn exit_code(&self, container: &str) -> Result<ExecutorExit, ExecutorError> {
        let mut command = Command::new(&self.program);
        command.args(["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", container]);
        let mut lines = Vec::new();
        self.docker(command, "docker inspect", Some(&mut lines))?;
        // Still running, or removed by somebody else: then nobody knows.
        let code = lines.first().and_then(|line| line.strip_prefix("exited ")).and_then(|code| code.parse().ok());
        Ok(code.map_or(ExecutorExit::Unknown, ExecutorExit::Code))
    }

    /// Removes a container, running or not.
    fn remove(&self, container: &str) {
        let mut command = Command::new(&self.program);
        command.args(["rm", "--force", "--volumes", container]);
        match self.docker(command, "docker rm", None) {
            Ok(ExecutorExit::Code(0)) => {}
            Ok(exit) => log::warn!("container {container} may still be there: docker rm ended with {exit}"),
            Err(error) => log::warn!("container {container} may still be there: {error}"),
        }
    }

    fn docker(
        &self,
        command: Command,
        who: &str,
        stdout: Option<&mut Vec<String>>,
    ) -> Result<ExecutorExit, ExecutorError> {
        docker(command, who, stdout)
    }
}

/// Runs a short `docker` command. No stop signal ends it: what it makes or removes is to be known.
fn docker(command: Command, who: &str, stdout: Option<&mut Vec<String>>) -> Result<ExecutorExit, ExecutorError> {
    let deadline = Some(Instant::now() + DOCKER_TIME);
    let stop = &Shutdown::new();
    GroupRun { command, who, stop, end_grace: Duration::from_secs(1), deadline, stdout }.run()
}

/// Removes what an executor that was killed has left of its job: the container, which nobody else would end.
pub(super) fn remove_containers_of(job_uuid: &str) {
    let remove = || {
        let mut list = Command::new("docker");
        list.args(["ps", "--all", "--quiet", "--filter", &format!("label={JOB_LABEL}={job_uuid}")]);
        let mut ids = Vec::new();
        docker(list, "docker ps", Some(&mut ids))?;
        if ids.is_empty() {
            return Ok(ExecutorExit::Code(0));
        }
        let mut remove = Command::new("docker");
        remove.args(["rm", "--force", "--volumes"]).args(&ids);
        docker(remove, "docker rm", Some(&mut Vec::new()))
    };
    match remove() {
        Ok(ExecutorExit::Code(0)) => {}
        Ok(exit) => log::warn!("job {job_uuid}: its container may still be there: docker ended with {exit}"),
        Err(error) => log::warn!("job {job_uuid}: its container may still be there: {error}"),
    }
}

/// A name for people, without the token, because names are for everybody to see. The job's uuid comes from a validator, so
/// only what Docker takes is left of it.
fn container_name(job_uuid: &str) -> String {
    let uuid: String = job_uuid.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(64).collect();
    format!("phalanx-executor-{uuid}-{}", uuid::Uuid::new_v4().simple())
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
        self.reaped.call_once(|| self.reap_orphans());
        let name = container_name(&spec.job_uuid);
        if stop.is_set() {
            return Ok(ExecutorExit::Unknown);
        }
        let mut command = Command::new(&self.program);
        command.args(["create", "--pull", "never", "--network", "host", "--name", &name]);
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
        let who = format!("executor of job {}", spec.job_uuid);
        let _guard = Guard { backend: self, name: name.clone() };
        match self.docker(command, &who, None)? {
            ExecutorExit::Code(0) => {}
            failed => return Err(ExecutorError::Docker(failed)),
        }
        let mut command = Command::new(&self.program);
        command.args(["start", "--attach", &name]);
        GroupRun { command, who: &who, stop, end_grace: self.end_grace, deadline: None, stdout: None }.run()?;
        if stop.is_set() {
            self.end(&name, stop);
        }
        self.exit_code(&name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_s_name_is_of_its_job_and_unique_and_one_that_docker_takes() {
        let names = [(); 2].map(|()| container_name("3f2504e0-4f89"));
        assert!(names.iter().all(|name| name.starts_with("phalanx-executor-3f2504e0-4f89-")), "{names:?}");
        assert_ne!(names[0], names[1]);
        let odd = container_name(&format!("../ä {}", "x".repeat(1000)));
        assert!(odd.len() < 128 && odd.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "{odd}");
    }
}

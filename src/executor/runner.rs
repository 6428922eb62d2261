//! Running a job: what a runner is told and what it tells. The runners are `process` and `docker`.

mod child;
pub mod docker;
pub mod process;

use std::io;
use std::process::Command;
use std::time::{Duration, Instant};

use super::output::{Captured, OUTPUT_FILE_BYTES, STDERR_FILE, STDOUT_FILE};
use super::workspace::Workspace;
use crate::base::shutdown::Shutdown;
use crate::protocol::{DockerRunOptionsPreset, V0JobRequest};

/// What is to be run, from the initial and the full job request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunSpec {
    /// Goes into the container's name, `ch-ID-job`; must be unique on the host and may hold `[a-zA-Z0-9_.-]` only.
    pub id: String,
    /// The container image; the process runner ignores it.
    pub image: String,
    /// The command with its arguments; empty for the image's own, or for `python /script.py` if there is a script.
    pub command: Vec<String>,
    /// Environment variables, in order.
    pub env: Vec<(String, String)>,
    /// Text of a Python program that the job finds at `/script.py`.
    pub raw_script: Option<String>,
    /// Where a container sees the artifacts folder; absolute. Nothing is mounted for `None` and for an empty text.
    pub artifacts_dir: Option<String>,
    /// Whether the job gets all GPUs (the preset `nvidia_all`).
    pub gpus: bool,
    /// The container network; `None` cuts the job off. The process runner does not cut anything off.
    pub network: Option<String>,
    /// Memory that a container may use, in bytes; `None` for no limit. The process runner does not limit anything.
    pub memory_bytes: Option<u64>,
    /// More labels for the container, for instance of the miner that owns it.
    pub labels: Vec<(String, String)>,
}

impl RunSpec {
    /// What a job request asks for, to be run under `id`: without network, memory limit and further labels.
    pub fn from_request(id: impl Into<String>, request: &V0JobRequest) -> Self {
        Self {
            id: id.into(),
            image: request.docker_image.clone(),
            command: request.docker_run_cmd.clone(),
            env: request.env.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
            raw_script: request.raw_script.clone(),
            artifacts_dir: request.artifacts_dir.clone(),
            gpus: request.docker_run_options_preset == DockerRunOptionsPreset::NvidiaAll,
            ..Self::default()
        }
    }

    /// The command that a job with a script and no command of its own runs, as on the Python executor.
    fn command_or_script(&self) -> Vec<String> {
        if self.command.is_empty() && self.raw_script.is_some() {
            return vec!["python".into(), SCRIPT_PATH.into()];
        }
        self.command.clone()
    }

    fn artifacts_dir(&self) -> Option<&str> {
        self.artifacts_dir.as_deref().filter(|dir| !dir.is_empty())
    }

    /// Checks what every runner needs; each message names the field and the rule.
    fn check(&self) -> Result<(), RunError> {
        let bad = |what: String| Err(RunError::Spec(what));
        for (key, value) in &self.env {
            if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
                return bad(format!(
                    "env {key:?}: a name must not be empty nor hold = or NUL, a value must not hold NUL"
                ));
            }
        }
        if let Some(arg) = self.command.iter().find(|arg| arg.contains('\0')) {
            return bad(format!("command argument {arg:?} must not hold NUL"));
        }
        Ok(())
    }
}

/// Where a job sees its `raw_script`.
const SCRIPT_PATH: &str = "/script.py";

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunEnd {
    /// It exited by itself; 126 and 127 also stand for a command that cannot be run or was not found.
    Exited(i32),
    /// A signal ended it (process runner; a container's exit code is then 128 + the signal).
    Signalled(i32),
    /// The system killed it because it used more memory than it may (docker runner).
    OutOfMemory,
    /// The deadline passed and it was killed.
    TimedOut,
    /// It was killed because the token was cancelled.
    Cancelled,
}

/// A finished run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunOutcome {
    /// How it ended.
    pub end: RunEnd,
    /// Standard output, also of a run that was killed.
    pub stdout: Captured,
    /// Standard error.
    pub stderr: Captured,
    /// From start to end.
    pub took: Duration,
}

impl RunOutcome {
    /// The exit code for `docker_process_exit_status`; 128 + N for signal N and none for a run that we ended.
    pub fn exit_code(&self) -> Option<i32> {
        match self.end {
            RunEnd::Exited(code) => Some(code),
            RunEnd::Signalled(signal) => Some(128 + signal),
            RunEnd::OutOfMemory => Some(137),
            RunEnd::TimedOut | RunEnd::Cancelled => None,
        }
    }
}

/// Why a job could not be run, or why it is not known how it ended. None of these is the job's own failure, except
/// [`RunError::Spec`] and [`RunError::Image`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The request cannot be run as it is.
    #[error("bad job request: {0}")]
    Spec(String),
    /// The image is not here and cannot be pulled.
    #[error("cannot pull image {image}: {text}")]
    Image {
        /// The image.
        image: String,
        /// What docker said.
        text: String,
    },
    /// A command of docker, or of another tool, failed.
    #[error("cannot {doing}: {text}")]
    Tool {
        /// What was to be done.
        doing: &'static str,
        /// What the tool said.
        text: String,
    },
    /// The container disappeared while it ran, so nobody knows its exit code.
    #[error("container {name} was lost while it ran: {text}")]
    Lost {
        /// The container's name.
        name: String,
        /// What docker said.
        text: String,
    },
    /// A program could not be started.
    #[error("cannot start {program}: {source}")]
    Start {
        /// The program.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// The workspace or the streams could not be written or read.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was to be done.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The deadline passed before the job could start.
    #[error("deadline passed while trying to {0}")]
    TimedOut(&'static str),
    /// The token was cancelled before the job could start.
    #[error("cancelled while trying to {0}")]
    Cancelled(&'static str),
}

fn io_error(doing: &'static str) -> impl FnOnce(io::Error) -> RunError {
    move |source| RunError::Io { doing, source }
}

/// Something that runs jobs. Both methods block; they end at the deadline and when `token` is cancelled.
pub trait Runner: Send + Sync {
    /// For logs: `docker` or `process`.
    fn name(&self) -> &'static str;

    /// Makes sure that `image` can be run, pulling it if it is not here.
    ///
    /// # Errors
    /// [`RunError::Image`] with docker's text, or what kept it from asking.
    fn prepare(&self, image: &str, token: &Shutdown, deadline: Instant) -> Result<(), RunError>;

    /// Runs the job in `workspace` and leaves nothing of it running. The whole streams are in the output folder then.
    ///
    /// A run that was ended by deadline or token is a [`RunOutcome`], with what it had printed.
    ///
    /// # Errors
    /// If it could not be started, or if its end is not known.
    fn run(
        &self,
        spec: &RunSpec,
        workspace: &Workspace,
        token: &Shutdown,
        deadline: Instant,
    ) -> Result<RunOutcome, RunError>;
}

/// Which runner an operator asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum RunnerKind {
    /// Docker if its engine answers, else processes.
    #[default]
    Auto,
    /// Containers.
    Docker,
    /// Plain processes, for development and trusted work.
    Process,
}

impl RunnerKind {
    /// Opens the runner. Blocks for at most [`docker::PROBE_TIME`] while it asks for the engine; `token` ends that.
    ///
    /// # Errors
    /// If docker was asked for by name and does not answer.
    pub fn open(self, token: &Shutdown) -> Result<Box<dyn Runner>, RunError> {
        let probe = || docker::docker_available(token, Instant::now() + docker::PROBE_TIME);
        match self {
            RunnerKind::Process => Ok(Box::new(process::ProcessRunner)),
            RunnerKind::Docker => probe().map(|_| Box::new(docker::DockerRunner) as Box<dyn Runner>),
            RunnerKind::Auto => match probe() {
                Ok(version) => {
                    log::info!("docker engine {version} answers, jobs run in containers");
                    Ok(Box::new(docker::DockerRunner))
                }
                Err(error @ RunError::Cancelled(_)) => Err(error),
                Err(error) => {
                    log::warn!("jobs run as plain processes: {error}");
                    Ok(Box::new(process::ProcessRunner))
                }
            },
        }
    }
}

/// The two captures of a job's run, written to files beside the job's folder.
fn captures(workspace: &Workspace) -> Result<child::Streams, RunError> {
    let open = |name| child::Capture::to_file(&workspace.stream(name), OUTPUT_FILE_BYTES);
    let streams = || Ok(child::Streams { stdout: open(STDOUT_FILE)?, stderr: open(STDERR_FILE)? });
    streams().map_err(io_error("create the files for the job's output"))
}

fn publish(workspace: &Workspace) -> Result<(), RunError> {
    workspace.publish_streams().map_err(io_error("put the job's output into its folder"))
}

/// Runs a program whose output is only looked at, and gives what it prints, trimmed; its own failure is
/// [`RunError::Tool`] with what it says.
pub(crate) fn tool(
    program: &str,
    doing: &'static str,
    args: &[&str],
    token: &Shutdown,
    deadline: Instant,
) -> Result<String, RunError> {
    let mut command = Command::new(program);
    command.args(args);
    tool_command(command, doing, token, deadline)
}

/// [`tool`] for a command with an environment of its own.
fn tool_command(
    mut command: Command,
    doing: &'static str,
    token: &Shutdown,
    deadline: Instant,
) -> Result<String, RunError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let ended = child::run(&mut command, child::Streams::in_memory(), token, deadline, || {})
        .map_err(|error| child_error(&program, doing, error))?;
    match ended.end {
        RunEnd::Exited(0) => Ok(ended.stdout.text.trim().to_owned()),
        RunEnd::TimedOut => Err(RunError::TimedOut(doing)),
        RunEnd::Cancelled => Err(RunError::Cancelled(doing)),
        _ => {
            let text = ended.stderr.text.trim();
            let text = if text.is_empty() { format!("{program} ended with {:?}", ended.end) } else { text.to_owned() };
            Err(RunError::Tool { doing, text })
        }
    }
}

fn child_error(program: &str, doing: &'static str, error: child::ChildError) -> RunError {
    match error {
        child::ChildError::Spawn(source) => RunError::Start { program: program.to_owned(), source },
        child::ChildError::Streams(source) | child::ChildError::Stuck(source) => RunError::Io { doing, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::MinerToExecutor;

    #[test]
    fn a_request_s_fields_become_the_spec_s() {
        let text = r#"{"message_type":"V0JobRequest","job_uuid":"u","executor_class":"always_on.test",
            "docker_image":"ubuntu:latest","raw_script":"print(1)","docker_run_options_preset":"nvidia_all",
            "docker_run_cmd":["python","/script.py"],"env":{"B":"2","A":"1"},"artifacts_dir":"/artifacts"}"#;
        let Ok(MinerToExecutor::V0JobRequest(request)) = MinerToExecutor::decode(text) else { panic!("not decoded") };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let expected = RunSpec {
            id: "token".into(),
            image: "ubuntu:latest".into(),
            command: vec!["python".into(), "/script.py".into()],
            env: vec![pair("B", "2"), pair("A", "1")],
            raw_script: Some("print(1)".into()),
            artifacts_dir: Some("/artifacts".into()),
            gpus: true,
            network: None,
            memory_bytes: None,
            labels: vec![],
        };
        assert_eq!(RunSpec::from_request("token", &request), expected);
    }
}

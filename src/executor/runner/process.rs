//! Runs the command as a plain process group: for development and trusted work, because nothing confines it.

use std::env;
use std::ffi::OsString;
use std::io;
use std::process::Command;
use std::time::Instant;

use super::common::{Prepared, RunError, Runner, Streams, io_error, open_to_job, publish};
use super::quota::DiskWatch;
use super::run::{Captured, RunEnd, RunOutcome, RunSpec, SCRIPT_PATH};
use crate::base::shutdown::Shutdown;
use crate::executor::output::STDERR_FILE;
use crate::executor::sandbox::Sandbox;
use crate::executor::workspace::Workspace;
use crate::ops::errors::ErrorHandler;
use crate::proc::tool::ToolError;

/// Where a program is looked for if the executor itself has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The process runner.
///
/// The command runs in the workspace's job folder, which holds `volume/`, `output/` and `artifacts/` (their full paths
/// are in `PHALANX_VOLUME_DIR`, `PHALANX_OUTPUT_DIR` and `PHALANX_ARTIFACTS_DIR`), with `PATH` and the request's
/// variables and nothing else. A `raw_script` is the file `script.py` there; an argument `/script.py` is replaced by
/// its full path, and without a command `python` (or `python3`, where there is no `python`) runs it.
#[derive(Debug, Clone, Default)]
pub struct ProcessRunner {
    /// Of all that it says, the disk that a job may use counts here.
    pub sandbox: Sandbox,
    /// Is told of what a job lives on after.
    pub errors: ErrorHandler,
}

impl Runner for ProcessRunner {
    fn name(&self) -> &'static str {
        "process"
    }

    fn prepare(&self, _image: &str, _token: &Shutdown, _deadline: Instant) -> Result<Prepared, RunError> {
        Ok(Prepared::default())
    }

    fn run(
        &self,
        spec: &RunSpec,
        workspace: &Workspace,
        token: &Shutdown,
        deadline: Instant,
    ) -> Result<RunOutcome, RunError> {
        if let Some(problem) = spec.problem() {
            return Err(RunError::Spec(problem));
        }
        open_to_job(workspace, token, deadline)?;
        let mut command = spec.command_or_script();
        if let Some(script) = &spec.raw_script {
            let path = workspace.job().join("script.py");
            std::fs::write(&path, script).map_err(io_error("write the job's script"))?;
            let path = path.to_string_lossy();
            command.iter_mut().filter(|arg| *arg == SCRIPT_PATH).for_each(|arg| *arg = path.clone().into_owned());
        }
        // An image brings its `python`; a host often has only `python3`.
        if spec.command.is_empty() && !command.is_empty() && !is_in_path("python") {
            command[0] = "python3".into();
        }
        let Some((program, args)) = command.split_first() else {
            return Err(RunError::Spec("the command is empty; a process needs at least a program".into()));
        };
        let mut child = Command::new(program);
        child
            .args(args)
            .current_dir(workspace.job())
            .env_clear()
            .env("PATH", path())
            .envs(spec.env.iter().map(|(key, value)| (key, value)))
            .env("PHALANX_VOLUME_DIR", workspace.volume())
            .env("PHALANX_OUTPUT_DIR", workspace.output())
            .env("PHALANX_ARTIFACTS_DIR", workspace.artifacts());
        let watch = DiskWatch::start(&self.sandbox, workspace.private(), (token, &self.errors), Box::new(|_, _| 0));
        let ran = run_job(child, workspace, &watch.run, deadline);
        let over = watch.finish(&self.errors);
        match ran {
            Ok(outcome) => {
                publish(workspace)?;
                Ok(outcome.or_over(over))
            }
            Err(RunError::Tool(ToolError::Start { source, .. })) => not_started(program, source, workspace),
            Err(error) => Err(error),
        }
    }
}

fn run_job(child: Command, workspace: &Workspace, token: &Shutdown, deadline: Instant) -> Result<RunOutcome, RunError> {
    let mut streams = Streams::create(workspace)?;
    let end = streams.run(child, token, deadline, None)?;
    streams.finish(end)
}

fn path() -> OsString {
    env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into())
}

fn is_in_path(program: &str) -> bool {
    env::split_paths(&path()).any(|folder| folder.join(program).is_file())
}

/// A command that cannot be run is the job's failure, with the exit codes of a shell, as in a container.
fn not_started(program: &str, error: io::Error, workspace: &Workspace) -> Result<RunOutcome, RunError> {
    let (code, why) = match error.kind() {
        io::ErrorKind::NotFound => (127, "command not found".to_owned()),
        io::ErrorKind::PermissionDenied => (126, "permission denied".to_owned()),
        _ if error.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error()) => {
            (126, "not a program".to_owned())
        }
        _ if error.raw_os_error() == Some(rustix::io::Errno::TOOBIG.raw_os_error()) => (126, error.to_string()),
        _ => return Err(ToolError::Start { program: program.to_owned(), source: error }.into()),
    };
    let text = format!("phalanx: {program}: {why}\n");
    std::fs::write(workspace.stream(STDERR_FILE), &text).map_err(io_error("write the job's output"))?;
    publish(workspace)?;
    let stderr = Captured { bytes: text.len() as u64, text, ..Captured::default() };
    Ok(RunOutcome { end: RunEnd::Exited(code), stdout: Captured::default(), stderr })
}

//! What the runners share: the trait, its error, and the job's program with its two streams.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

use super::run::{RunEnd, RunOutcome, RunSpec};
use crate::base::shutdown::{Level, Shutdown};
use crate::base::tree::TreeError;
use crate::executor::output::{Capture, OUTPUT_FILE_BYTES, STDERR_FILE, STDOUT_FILE};
use crate::executor::workspace::Workspace;
use crate::ops::cause::Cause;
use crate::proc::docker::Docker;
use crate::proc::group::{Cause as EndCause, GroupEnd, GroupRun};
use crate::proc::image_store::InUse;
use crate::proc::ladder::Ladder;
use crate::proc::tool::ToolError;

/// Why a job could not be run, or why it is not known how it ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The request cannot be run as it is.
    #[error("bad job request: {0}")]
    Spec(String),
    /// The engine refused, or what it asked did; whose fault that is, `cause` says.
    #[error("cannot {doing}: {text}")]
    Engine {
        /// What was to be done.
        doing: String,
        /// What the engine said.
        text: String,
        /// What follows from it.
        cause: Cause,
    },
    /// The image had not come by the deadline.
    #[error("image {0} did not come in time")]
    PullTimedOut(String),
    /// The job's own deadline passed before this was done.
    #[error("cannot {0} before the job's deadline")]
    Late(&'static str),
    /// Docker, or another tool, did not do what it was to do.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// Somebody on the engine's machine has removed the container, so nobody knows how the job ended.
    #[error("container {name} was removed while it ran, by somebody else on its machine")]
    Removed {
        /// The container's name.
        name: String,
    },
    /// The engine went away with the container, or did not come back in time to say how the job ended.
    #[error("the engine was lost while container {name} ran: {text}")]
    EngineLost {
        /// The container's name.
        name: String,
        /// What is known.
        text: String,
    },
    /// The workspace or the streams could not be written or read.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was to be done.
        doing: &'static str,
        /// The error of the system.
        source: io::Error,
    },
}

pub(super) fn io_error(doing: &'static str) -> impl FnOnce(io::Error) -> RunError {
    move |source| RunError::Io { doing, source }
}

/// What an engine says while it makes and starts a container. What is not known may come of what the job asks for, so
/// it is not the operator's trouble.
pub(super) fn of_engine(error: ToolError) -> RunError {
    match error {
        ToolError::Failed { doing, text } => {
            let cause = Cause::of_engine(&text);
            RunError::Engine { doing: doing.to_owned(), text, cause }
        }
        error => error.into(),
    }
}

/// Opens the job's folders to whatever user it runs as.
pub(super) fn open_to_job(workspace: &Workspace, token: &Shutdown, deadline: Instant) -> Result<(), RunError> {
    const DOING: &str = "open the job's folders";
    workspace.open_to_job(token, deadline).map_err(|error| match error {
        TreeError::Stopped => ToolError::Cancelled(DOING).into(),
        TreeError::Late => RunError::Late(DOING),
        error => io_error(DOING)(error.into()),
    })
}

/// An image that can be run; it does not go as long as this lives.
#[derive(Debug, Default)]
pub struct Prepared(#[allow(dead_code)] pub(super) Option<InUse>); // Held for its lock.

/// Something that runs jobs. Both methods block; they end at the deadline and when `token` is cancelled.
pub trait Runner: Send + Sync {
    /// For logs: `docker` or `process`.
    fn name(&self) -> &'static str;

    /// The engine whose containers are the jobs, if it is one.
    fn docker(&self) -> Option<&Docker> {
        None
    }

    /// Makes sure that `image` can be run. What this gives is kept until the job has ended.
    ///
    /// # Errors
    /// [`RunError::Engine`] with the engine's text, or what kept us from asking.
    fn prepare(&self, image: &str, token: &Shutdown, deadline: Instant) -> Result<Prepared, RunError>;

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

/// How a job is ended. What it does with the signal, the removal of its container and the collection of its artifacts
/// are within [`EXECUTOR_AHEAD`](crate::protocol::stages::EXECUTOR_AHEAD) for a job at its limit, and a cancelled one
/// within the grace that its miner gives a cancelled executor, with its last message.
const LADDER: Ladder = Ladder {
    terms: 1,
    grace: Duration::from_secs(1),
    forced_grace: Duration::from_millis(500),
    kill_time: Some(Duration::from_secs(10)),
};

/// What a job writes, by however many programs that stand for it.
pub(super) struct Streams {
    stdout: Capture,
    stderr: Capture,
}

impl Streams {
    pub(super) fn create(workspace: &Workspace) -> Result<Self, RunError> {
        let capture = |name| Capture::to_file(&workspace.stream(name), OUTPUT_FILE_BYTES);
        let capture = |name| capture(name).map_err(io_error("create the files for the job's output"));
        Ok(Self { stdout: capture(STDOUT_FILE)?, stderr: capture(STDERR_FILE)? })
    }

    /// Forgets what was written, for a job that has not begun.
    pub(super) fn again(workspace: &Workspace) -> Result<Self, RunError> {
        for name in [STDOUT_FILE, STDERR_FILE] {
            std::fs::remove_file(workspace.stream(name)).map_err(io_error("remove the files of a failed start"))?;
        }
        Self::create(workspace)
    }

    /// Runs the program that is the job, or that stands for it, and keeps what it writes; gives the program's end.
    ///
    /// `terminate` is called in place of SIGTERM when token or deadline ends it.
    pub(super) fn run(
        &mut self,
        command: Command,
        token: &Shutdown,
        deadline: Instant,
        terminate: Option<&dyn Fn()>,
    ) -> Result<RunEnd, RunError> {
        let program = command.get_program().to_string_lossy().into_owned();
        let run = GroupRun {
            command,
            stop: token,
            stop_at: Level::Cancel,
            deadline: Some(deadline),
            silence: None,
            ladder: LADDER,
            stdout: Some(&mut |bytes| self.stdout.push(bytes)),
            stderr: Some(&mut |bytes| self.stderr.push(bytes)),
            terminate,
        };
        let GroupEnd { status, cause } = run.run().map_err(|error| ToolError::of(&program, "run the job", error))?;
        Ok(match cause {
            Some(EndCause::Stop) => RunEnd::Cancelled,
            Some(EndCause::Deadline | EndCause::Silence) => RunEnd::TimedOut,
            None => status.code().map_or_else(|| RunEnd::Signalled(status.signal().unwrap_or(0)), RunEnd::Exited),
        })
    }

    /// Tells whoever reads the job's standard error.
    pub(super) fn note(&mut self, text: &str) {
        self.stderr.push(format!("phalanx: {text}\n").as_bytes());
    }

    pub(super) fn finish(self, end: RunEnd) -> Result<RunOutcome, RunError> {
        let captured = |capture: Capture| capture.finish().map_err(io_error("keep the job's output"));
        Ok(RunOutcome { end, stdout: captured(self.stdout)?, stderr: captured(self.stderr)? })
    }
}

pub(super) fn publish(workspace: &Workspace) -> Result<(), RunError> {
    workspace.publish_streams().map_err(io_error("put the job's output into its folder"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_that_are_not_opened_by_the_job_s_deadline_are_late_and_a_cancel_is_a_cancel() {
        let workspace = Workspace::create().unwrap();
        std::fs::write(workspace.volume().join("file"), "x").unwrap();
        let token = Shutdown::new();
        let late = open_to_job(&workspace, &token, Instant::now()).unwrap_err();
        assert!(matches!(late, RunError::Late(_)), "{late}");
        assert_eq!(late.to_string(), "cannot open the job's folders before the job's deadline");
        token.cancel();
        let cancelled = open_to_job(&workspace, &token, Instant::now()).unwrap_err();
        assert!(matches!(cancelled, RunError::Tool(ToolError::Cancelled(_))), "{cancelled}");
    }
}

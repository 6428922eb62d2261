//! What the runners share: the trait, its error, and the job's program with its two streams.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Instant;

use super::run::{RunEnd, RunOutcome, RunSpec};
use crate::base::shutdown::{Level, Shutdown};
use crate::base::tree::TreeError;
use crate::executor::output::{Capture, OUTPUT_FILE_BYTES, STDERR_FILE, STDOUT_FILE};
use crate::executor::workspace::Workspace;
use crate::ops::cause::Cause;
use crate::proc::docker::Docker;
use crate::proc::group::{Cause as EndCause, GroupEnd, GroupRun};
use crate::proc::image_store::InUse;
use crate::proc::tool::{LADDER, ToolError};

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
    /// Docker, or another tool, did not do what it was to do.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The container disappeared while it ran, so nobody knows its exit code.
    #[error("container {name} was lost while it ran: {text}")]
    Lost {
        /// The container's name.
        name: String,
        /// The stderr of docker.
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

/// Opens the job's folders to whatever user it runs as.
pub(super) fn open_to_job(workspace: &Workspace, token: &Shutdown, deadline: Instant) -> Result<(), RunError> {
    const DOING: &str = "open the job's folders";
    workspace.open_to_job(token, deadline).map_err(|error| match error {
        TreeError::Stopped => ToolError::Cancelled(DOING).into(),
        TreeError::Late => ToolError::TimedOut(DOING).into(),
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

/// Runs the program that is the job, or that stands for it, and keeps what it writes. Its end is the program's.
///
/// `before_end` is called first when token or deadline ends it.
pub(super) fn run_job(
    command: Command,
    workspace: &Workspace,
    token: &Shutdown,
    deadline: Instant,
    before_end: &mut dyn FnMut(),
) -> Result<RunOutcome, RunError> {
    let capture = |name| Capture::to_file(&workspace.stream(name), OUTPUT_FILE_BYTES);
    let capture = |name| capture(name).map_err(io_error("create the files for the job's output"));
    let (mut stdout, mut stderr) = (capture(STDOUT_FILE)?, capture(STDERR_FILE)?);
    let program = command.get_program().to_string_lossy().into_owned();
    let run = GroupRun {
        command,
        stop: token,
        stop_at: Level::Cancel,
        deadline: Some(deadline),
        silence: None,
        ladder: LADDER,
        stdout: Some(&mut |bytes| stdout.push(bytes)),
        stderr: Some(&mut |bytes| stderr.push(bytes)),
        before_end,
    };
    let GroupEnd { status, cause } = run.run().map_err(|error| ToolError::of(&program, "run the job", error))?;
    let end = match cause {
        Some(EndCause::Stop) => RunEnd::Cancelled,
        Some(EndCause::Deadline | EndCause::Silence) => RunEnd::TimedOut,
        None => status.code().map_or_else(|| RunEnd::Signalled(status.signal().unwrap_or(0)), RunEnd::Exited),
    };
    let captured = |capture: Capture| capture.finish().map_err(io_error("keep the job's output"));
    Ok(RunOutcome { end, stdout: captured(stdout)?, stderr: captured(stderr)? })
}

pub(super) fn publish(workspace: &Workspace) -> Result<(), RunError> {
    workspace.publish_streams().map_err(io_error("put the job's output into its folder"))
}

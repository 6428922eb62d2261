//! What the miner asks of an executor, and of whatever starts one.

use std::collections::BTreeSet;
use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use super::owner::Owner;
use super::security::SecurityChecks;
use crate::base::shutdown::Shutdown;
use crate::proc::docker::Docker;
use crate::proc::group::GroupError;
use crate::proc::tool::ToolError;
use crate::protocol::ExecutorClass;

/// How long an executor has from the first SIGTERM to SIGKILL. It gets a second SIGTERM half-way, for programs that
/// finish their work on the first and give it up on the second, as ours do.
pub const END_GRACE: Duration = Duration::from_secs(10);

/// The same when the miner cancels; within the budget of a cancelled stop.
pub const FORCED_GRACE: Duration = Duration::from_secs(3);

/// One executor to be started, for one job.
#[derive(Clone, PartialEq, Eq)]
pub struct ExecutorSpec {
    /// Marks all that is made for this executor, and nothing else. No secret.
    pub run: String,
    /// Whose it is.
    pub owner: Owner,
    /// By which it introduces itself to the miner: the last part of the URL it dials.
    pub token: String,
    /// The job it is for, to name it in logs.
    pub job_uuid: String,
    /// Where it dials, `ws://host:port` without a path.
    pub miner_address: String,
    /// What the job asked for.
    pub class: ExecutorClass,
    /// Time that it has between its start and the job's initial request.
    pub startup_time_limit: Duration,
}

/// Without the token.
impl fmt::Debug for ExecutorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { run, job_uuid, class, .. } = self;
        let mut shown = f.debug_struct("ExecutorSpec");
        shown.field("run", run).field("job_uuid", job_uuid).field("class", class).finish_non_exhaustive()
    }
}

impl ExecutorSpec {
    /// The labels of every container and network that is made for it; whoever makes one adds its job and its stage.
    pub(super) fn labels(&self) -> [(&'static str, String); 4] {
        self.owner.labels(&self.run)
    }
}

/// How an executor ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecutorExit {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// The system did not say: it was removed by somebody else, for example. Never to be read as success.
    Unknown,
}

impl From<ExitStatus> for ExecutorExit {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => ExecutorExit::Code(code),
            (None, Some(signal)) => ExecutorExit::Signal(signal),
            (None, None) => ExecutorExit::Unknown,
        }
    }
}

impl fmt::Display for ExecutorExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExecutorExit::Code(code) => write!(f, "exit code {code}"),
            ExecutorExit::Signal(signal) => write!(f, "signal {signal}"),
            ExecutorExit::Unknown => f.write_str("an unknown exit"),
        }
    }
}

/// An executor could not be started, or not be watched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecutorError {
    /// The program could not be started.
    #[error("cannot start {}: {source}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// There is no temporary folder for it, so it was not started.
    #[error("cannot make a temporary folder for the executor: {0}")]
    Folder(#[source] std::io::Error),
    /// It was started but could not be watched, and was ended.
    #[error("cannot watch the executor: {0}")]
    Watch(#[source] GroupError),
    /// Docker did not make the container.
    #[error("docker did not make the container: {0}")]
    Docker(#[source] ToolError),
    /// It is gone, and nobody saw how: it ended while no miner ran.
    #[error("the executor was lost: it ended while its miner did not run")]
    Lost,
    /// The back end of the embedding program failed.
    #[error("{0}")]
    Other(String),
}

impl ExecutorError {
    /// In a word, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Start { .. } => "program",
            Self::Folder(_) => "folder",
            Self::Watch(_) => "watch",
            Self::Docker(_) => "docker",
            Self::Lost => "lost",
            Self::Other(_) => "other",
        }
    }
}

/// What kind of thing is left of an executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeftoverKind {
    /// A container, or the engine does not say whether there is one.
    Container,
    /// A network of containers.
    Network,
    /// Processes.
    Processes,
    /// A folder of temporary files.
    Folder,
}

impl LeftoverKind {
    /// In a word, for metrics and status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Network => "network",
            Self::Processes => "processes",
            Self::Folder => "folder",
        }
    }
}

/// Something of an executor that could not be removed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Leftover {
    /// What it is.
    pub kind: LeftoverKind,
    /// Which, and why it is still there.
    pub text: String,
}

/// A thing that carries the marks of one of a miner's executors.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Marked {
    /// What it is; containers come before their networks, processes before their folders.
    pub kind: LeftoverKind,
    /// Which of its kind.
    pub id: String,
    /// The executor that it was made for.
    pub run: String,
    /// The miner's process that started the executor.
    pub epoch: u64,
}

/// Where executors come from.
pub trait ExecutorBackend: Send + Sync {
    /// Starts one executor and waits until it has ended. Blocks for all of its life; `stop` ends it: at `Drain`
    /// with some grace, at `Cancel` at once. [`ExecutorBackend::clean`] follows, whatever this returns.
    ///
    /// # Errors
    /// [`ExecutorError`], if it could not be started or watched.
    fn run(&self, spec: &ExecutorSpec, stop: &Shutdown) -> ExecutorEnd;

    /// Finds an executor that [`ExecutorBackend::run`] of an earlier process has started, and waits until it has ended,
    /// as that would have done. It reconnects by itself.
    ///
    /// # Errors
    /// [`ExecutorError::Lost`], if it is gone; the default finds none.
    fn adopt(&self, spec: &ExecutorSpec, stop: &Shutdown) -> ExecutorEnd {
        let _ = (spec, stop);
        Err(ExecutorError::Lost)
    }

    /// Removes whatever is left of an executor that has ended: its job's containers and processes, its folder. Its slot
    /// is given to the next job when this has succeeded; until then it is called again and again. An executor that has
    /// exited `by_itself`, or was not started, has no processes left. Blocks for a bounded time; `stop` cancels it.
    ///
    /// # Errors
    /// What is still there, and why. The default has nothing to remove.
    fn clean(&self, spec: &ExecutorSpec, by_itself: bool, stop: &Shutdown) -> Result<(), Leftover> {
        let _ = (spec, by_itself, stop);
        Ok(())
    }

    /// All that carries the marks of this miner's executors, of whichever of its processes. Blocks for a bounded time;
    /// a cancel of `stop` may end it.
    ///
    /// # Errors
    /// Why it is not known. The default finds nothing.
    fn find(&self, owner: &Owner, stop: &Shutdown) -> Result<Vec<Marked>, String> {
        let _ = (owner, stop);
        Ok(Vec::new())
    }

    /// The executors of this miner that live, whoever runs them, by their [`ExecutorSpec::run`]. Blocks for a bounded
    /// time; a cancel of `stop` may end it.
    ///
    /// # Errors
    /// Why it is not known. The default knows of none.
    fn living(&self, owner: &Owner, stop: &Shutdown) -> Result<BTreeSet<String>, String> {
        let _ = (owner, stop);
        Ok(BTreeSet::new())
    }

    /// Removes what [`ExecutorBackend::find`] has found. Blocks for a bounded time; a cancel of `stop` may end it.
    ///
    /// # Errors
    /// Why it is still there.
    fn remove(&self, marked: &Marked, stop: &Shutdown) -> Result<(), Leftover> {
        let (Marked { kind, id, .. }, _) = (marked, stop);
        Err(Leftover { kind: *kind, text: format!("this back end does not know how to remove {id}") })
    }

    /// What is checked of the host beside [`ExecutorBackend::check`], every few hours; by default nothing.
    fn security(&self) -> Option<&SecurityChecks> {
        None
    }

    /// How much longer than its caller's limit each check may take, because the host is far away.
    fn more_time(&self) -> Duration {
        Duration::ZERO
    }

    /// How jobs run here, to be read after "jobs run", if they can at present. Blocks until that is known, `deadline`
    /// passes or `stop` is cancelled.
    ///
    /// # Errors
    /// Why no job can run at present, in one line.
    fn check(&self, stop: &Shutdown, deadline: Instant) -> Result<String, String> {
        let _ = (stop, deadline);
        Ok("as the back end runs them".to_owned())
    }

    /// The images that jobs find there without a pull, by their names and tags, as `busybox:latest`. Blocks until that
    /// is known, `deadline` passes or `stop` is cancelled.
    ///
    /// # Errors
    /// Why it is not known. The default names none.
    fn images(&self, stop: &Shutdown, deadline: Instant) -> Result<Vec<String>, String> {
        let _ = (stop, deadline);
        Ok(Vec::new())
    }
}

/// [`ExecutorBackend::check`] for executors with our runner of this name.
pub(crate) fn check_runner(
    runner: &str,
    docker: &Docker,
    stop: &Shutdown,
    deadline: Instant,
) -> Result<String, String> {
    if runner == "process" {
        return Ok("as plain processes of this host, which confine nothing".to_owned());
    }
    match docker.version(stop, deadline) {
        Ok(version) => Ok(format!("in containers of engine {version}")),
        Err(error) => Err(error.to_string()),
    }
}

/// How an executor's run ended.
pub type ExecutorEnd = Result<ExecutorExit, ExecutorError>;

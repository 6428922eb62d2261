//! Starts executors and sees them end: one thread each, through a back end.
//!
//! Owner: the miner's router thread, which holds the [`ExecutorManager`]. Blocks in: [`ExecutorBackend::run`], for the life
//! of one executor. Kick: that executor's stop signal. Ends: when the executor and all it started are gone.

mod docker;
mod leftovers;
mod process;

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use docker::{DockerBackend, INSTANCE_LABEL, JOB_LABEL, MINER_LABEL};
pub use process::ProcessBackend;

use crate::base::scope;
use crate::base::shutdown::Shutdown;
use crate::base::stop::KICK_GRACE;
use crate::base::thread::{JoinError, Kick, Thread, spawn};
use crate::protocol::ExecutorClass;

/// How long an executor has from the first SIGTERM to SIGKILL. It gets a second SIGTERM half-way, for programs that finish
/// their work on the first and give it up on the second, as ours do.
pub const END_GRACE: Duration = Duration::from_secs(10);

/// The same when the miner is told to stop at once; within the budget of a cancelled stop.
pub const FORCED_GRACE: Duration = Duration::from_secs(3);

/// One executor to be started, for one job.
#[derive(Clone, PartialEq, Eq)]
pub struct ExecutorSpec {
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
        let Self { job_uuid, class, .. } = self;
        f.debug_struct("ExecutorSpec").field("job_uuid", job_uuid).field("class", class).finish_non_exhaustive()
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
        /// What the system said.
        source: std::io::Error,
    },
    /// There is no temporary folder for it, so it was not started.
    #[error("cannot make a temporary folder for the executor: {0}")]
    Folder(#[source] std::io::Error),
    /// It was started but could not be watched, and was ended.
    #[error("cannot watch the executor: {0}")]
    Watch(#[source] std::io::Error),
    /// Docker did not make the container; what it said is in the log.
    #[error("docker did not make the container: {0}; its message is in the log")]
    Docker(ExecutorExit),
    /// The back end of the embedding program failed.
    #[error("{0}")]
    Other(String),
}

/// Where executors come from.
pub trait ExecutorBackend: Send + Sync {
    /// Starts one executor and waits until it has ended. Blocks for all of its life; `stop` ends it: at `Drain`
    /// with some grace, at `Cancel` at once.
    ///
    /// When this returns, whatever it returns, nothing of the executor is left running: its slot is given to the next job.
    ///
    /// # Errors
    /// [`ExecutorError`], if it could not be started or watched.
    fn run(&self, spec: &ExecutorSpec, stop: &Shutdown) -> Result<ExecutorExit, ExecutorError>;
}

/// How an executor's run ended.
pub type ExecutorEnd = Result<ExecutorExit, ExecutorError>;

struct Running {
    stop: Shutdown,
    thread: Thread<()>,
}

/// The executors of one miner, by token. Dropping it ends them all.
pub struct ExecutorManager {
    backend: Arc<dyn ExecutorBackend>,
    stop: Shutdown,
    running: HashMap<String, Running>,
    number: u64,
}

impl fmt::Debug for ExecutorManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExecutorManager({} running)", self.running.len())
    }
}

impl ExecutorManager {
    /// A manager with nothing running; all that it starts ends with `stop`.
    pub fn new(backend: Arc<dyn ExecutorBackend>, stop: Shutdown) -> Self {
        Self { backend, stop, running: HashMap::new(), number: 0 }
    }

    /// Starts an executor on a thread of its own, which calls `ended` as its last act. Does not block.
    pub fn start(&mut self, spec: ExecutorSpec, ended: impl FnOnce(String, ExecutorEnd) + Send + 'static) {
        self.number = (self.number + 1) % 100_000;
        let stop = self.stop.child();
        let (backend, running, token) = (self.backend.clone(), stop.clone(), spec.token.clone());
        let kicked = stop.clone();
        let kick = Kick::new("stop signal of the executor", move || kicked.cancel());
        let thread = spawn(format!("min-ex-{}", self.number), kick, move || {
            let _job = scope::job(spec.job_uuid.as_str());
            // A panic of the back end must not leave its job waiting: it is an end like any other.
            let run = std::panic::AssertUnwindSafe(|| backend.run(&spec, &running));
            let end = std::panic::catch_unwind(run).unwrap_or_else(|payload| {
                let message = crate::base::thread::panic_message(payload.as_ref());
                Err(ExecutorError::Other(format!("the executor back end panicked: {message}")))
            });
            ended(spec.token, end);
        });
        self.running.insert(token, Running { stop, thread });
    }

    /// Tells an executor to end; whether it has, its `ended` says. Does not block.
    pub fn end(&self, token: &str) {
        if let Some(running) = self.running.get(token) {
            running.stop.drain();
        }
    }

    /// Joins the thread of an executor that has called `ended`.
    pub fn reap(&mut self, token: &str) {
        let Some(running) = self.running.remove(token) else { return };
        match running.thread.join_by(std::time::Instant::now() + KICK_GRACE) {
            Ok(()) | Err(JoinError::Panicked(_)) => {}
            Err(JoinError::Late(thread)) => thread.abandon("it reported its executor's end and did not return"),
        }
    }

    /// Executors whose threads have not been reaped.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Hands the threads of all executors to whoever joins them.
    pub fn into_threads(self) -> Vec<Thread<()>> {
        self.running.into_values().map(|running| running.thread).collect()
    }
}

//! Starts executors and sees them end: one thread each, through a back end.
//!
//! Owner: the miner's router thread, which holds the [`ExecutorManager`]. Blocks in: [`ExecutorBackend::run`], for the
//! life of one executor. Kick: that executor's stop signal. Ends: when the executor and all it started are gone.

mod backend;
mod docker;
mod folder;
mod process;
mod program;
mod settings;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

pub(crate) use backend::check_runner;
pub use backend::{END_GRACE, ExecutorBackend, ExecutorEnd, ExecutorError, ExecutorExit, ExecutorSpec, FORCED_GRACE};
pub use docker::DockerBackend;
pub use process::ProcessBackend;
pub use settings::ExecutorSettings;

use crate::base::scope;
use crate::base::shutdown::Shutdown;
use crate::base::stop::KICK_GRACE;
use crate::base::thread::{JoinError, Kick, Thread, spawn};

struct RunningExecutor {
    stop: Shutdown,
    thread: Thread<()>,
}

/// The executors of one miner, by token. Dropping it ends them all at once.
pub struct ExecutorManager {
    backend: Arc<dyn ExecutorBackend>,
    stop: Shutdown,
    running: HashMap<String, RunningExecutor>,
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

    /// From now on executors come from here; those that run are not touched.
    pub fn set_backend(&mut self, backend: Arc<dyn ExecutorBackend>) {
        self.backend = backend;
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
        self.running.insert(token, RunningExecutor { stop, thread });
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
        match running.thread.join_by(Instant::now() + KICK_GRACE) {
            Ok(()) | Err(JoinError::Panicked(_)) => {}
            Err(JoinError::Late(thread)) => thread.abandon("it reported its executor's end and did not return"),
        }
    }

    /// Executors whose threads have not been reaped.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Hands the threads of all executors to whoever joins them.
    pub fn into_threads(mut self) -> Vec<Thread<()>> {
        std::mem::take(&mut self.running).into_values().map(|running| running.thread).collect()
    }
}

impl Drop for ExecutorManager {
    fn drop(&mut self) {
        // All before the first is joined, so that they end side by side.
        self.running.values().for_each(|running| running.stop.cancel());
    }
}

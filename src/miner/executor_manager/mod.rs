//! Starts executors, sees them end, and removes what they leave: one thread each, through a back end.
//!
//! Owner: the miner's router thread, which holds the [`ExecutorManager`]. Blocks in: [`ExecutorBackend::run`], for the
//! life of one executor, then in [`ExecutorBackend::clean`] and the pauses between its attempts. Kick: that executor's
//! stop signal for both, and the miner's for the pauses. Ends: when the executor and all it started are gone, or the
//! miner stops.
//!
//! The thread has the executor's lease, so the slot comes back when nothing of the executor is left, or when the thread
//! ends in whatever other way.

mod backend;
mod docker;
mod folder;
pub mod orphans;
mod owner;
mod ports;
mod process;
mod program;
mod said;
mod security;
mod settings;
mod toolkit;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) use backend::check_runner;
pub use backend::{
    END_GRACE, ExecutorBackend, ExecutorEnd, ExecutorError, ExecutorExit, ExecutorSpec, FORCED_GRACE, Leftover,
    LeftoverKind, Marked,
};
pub use docker::{ByMachine, DockerBackend};
pub use owner::{Answered, Owner};
pub use ports::ClientPorts;
pub use process::ProcessBackend;
pub use security::{PROBE_TIME, Probe, SecurityChecks, Verdict};
pub use settings::ExecutorSettings;
pub(super) use toolkit::Remembered;
pub use toolkit::{BadVersion, RareChecks, ToolkitVersion};

use super::executor_pool::Lease;
use super::host::HostName;
use crate::base::backoff::exponential;
use crate::base::scope;
use crate::base::shutdown::Shutdown;
use crate::base::stop::KICK_GRACE;
use crate::base::thread::{JoinError, Kick, Thread, spawn};

/// How an executor goes on, once it is started.
#[derive(Debug)]
pub enum Report {
    /// It has ended, or was not started.
    Ended(ExecutorEnd),
    /// Something of it could not be removed; it is tried again.
    Left(Leftover),
    /// Its lease is dropped, and its thread ends.
    Returned {
        /// Whether nothing of it is left; the miner is stopping if not.
        clean: bool,
    },
}

/// Pauses between attempts to remove what an executor has left: the first soon, because most things are only slow to
/// go, and for ever, because an engine or a disk comes back some day.
const CLEAN_PAUSE: Duration = Duration::from_secs(1);
const CLEAN_PAUSE_MAX: Duration = Duration::from_secs(60);

/// Removes what an executor has left, until nothing is or the miner stops; says which. Each new obstacle is reported.
/// A cancel of `running`, the executor's own signal, ends an attempt.
fn clean_up(
    backend: &dyn ExecutorBackend,
    spec: &ExecutorSpec,
    by_itself: bool,
    (stop, running): (&Shutdown, &Shutdown),
    report: impl Fn(Leftover),
) -> bool {
    let (mut known, mut attempt) = (None, 0);
    loop {
        let cleaned = caught(|| backend.clean(spec, by_itself && known.is_none(), running));
        let left = match cleaned {
            Ok(Ok(())) => {
                if known.is_some() {
                    log::info!("job {}: what its executor had left is gone", spec.job_uuid);
                }
                return true;
            }
            Ok(Err(left)) => left,
            Err(text) => Leftover { kind: LeftoverKind::Processes, text },
        };
        if known.as_ref() != Some(&left) {
            report(left.clone());
            known = Some(left);
        }
        if stop.wait(exponential(CLEAN_PAUSE, CLEAN_PAUSE_MAX, attempt)) {
            return false;
        }
        attempt += 1;
    }
}

/// What `work` gives, or the text of its panic.
fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).map_err(|payload| {
        format!("the executor back end panicked: {}", crate::base::thread::panic_message(payload.as_ref()))
    })
}

/// The executors of this miner that live as processes of this machine, by their [`ExecutorSpec::run`].
///
/// # Errors
/// Why it is not known.
pub(super) fn living_processes(owner: &Owner) -> Result<BTreeSet<String>, String> {
    folder::living(owner).map_err(|error| format!("the processes of this machine: {error}"))
}

/// In place of the back end of a host that there is not. Nothing has a lease there, so nothing is started.
struct NoBackend(HostName);

impl ExecutorBackend for NoBackend {
    fn run(&self, _: &ExecutorSpec, _: &Shutdown) -> ExecutorEnd {
        Err(ExecutorError::Other(format!("there is no host {}", self.0)))
    }
}

struct RunningExecutor {
    stop: Shutdown,
    thread: Thread<()>,
}

/// Where the executors of each host come from.
pub type Backends = BTreeMap<HostName, Arc<dyn ExecutorBackend>>;

/// The executors of one miner, by token. Dropping it ends them all at once.
pub struct ExecutorManager {
    answered: Answered,
    backends: Backends,
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
    pub fn new(backends: Backends, stop: Shutdown) -> Self {
        Self { answered: Answered::default(), backends, stop, running: HashMap::new(), number: 0 }
    }

    /// For which executors somebody answers.
    pub fn answered(&self) -> Answered {
        self.answered.clone()
    }

    /// From now on executors of these hosts come from here; those that run are not touched. Other hosts stay as they
    /// are: what was reserved there may still be started.
    pub fn set_backends(&mut self, backends: Backends) {
        self.backends.extend(backends);
    }

    /// Nothing is started on this host any more.
    pub fn release(&mut self, host: HostName) {
        self.backends.remove(&host);
    }

    /// Starts an executor on the host of its slot, on a thread of its own, which has the lease for as long as anything
    /// of the executor is left, and tells `report` how it goes on; [`Report::Returned`] is the last. Does not block.
    pub fn start(&mut self, spec: ExecutorSpec, lease: Lease, report: impl Fn(Report) + Send + 'static) {
        self.spawn(spec, lease, |backend, spec, stop| backend.run(spec, stop), report);
    }

    /// As [`ExecutorManager::start`], for an executor that an earlier process of this miner has started.
    pub fn adopt(&mut self, spec: ExecutorSpec, lease: Lease, report: impl Fn(Report) + Send + 'static) {
        self.spawn(spec, lease, |backend, spec, stop| backend.adopt(spec, stop), report);
    }

    fn spawn(
        &mut self,
        spec: ExecutorSpec,
        lease: Lease,
        run: fn(&dyn ExecutorBackend, &ExecutorSpec, &Shutdown) -> ExecutorEnd,
        report: impl Fn(Report) + Send + 'static,
    ) {
        self.number = (self.number + 1) % 100_000;
        let stop = self.stop.child();
        let (all, token) = (self.stop.clone(), spec.token.clone());
        let host = lease.slot().host();
        let backend = self.backends.get(&host).cloned().unwrap_or_else(|| Arc::new(NoBackend(host)));
        let (kicked, running) = (stop.clone(), stop.clone());
        let kick = Kick::new("stop signal of the executor", move || kicked.cancel());
        self.answered.answer_for(&spec.run);
        let answered = self.answered.clone();
        let thread = spawn(format!("min-ex-{}", self.number), kick, move || {
            let _job = scope::job(spec.job_uuid.as_str());
            log::debug!("job {}: its executor is on host {host}", spec.job_uuid);
            // A panic of the back end must not leave its job waiting: it is an end like any other.
            let end = caught(|| run(backend.as_ref(), &spec, &running))
                .unwrap_or_else(|text| Err(ExecutorError::Other(text)));
            let by_itself = matches!(end, Ok(ExecutorExit::Code(_)) | Err(ExecutorError::Start { .. }));
            report(Report::Ended(end));
            let stops = (&all, &running);
            let clean = clean_up(backend.as_ref(), &spec, by_itself, stops, |left| report(Report::Left(left)));
            if clean {
                answered.forget(&spec.run);
            }
            // First, so that whoever hears of it finds the slot free.
            drop(lease);
            report(Report::Returned { clean });
        });
        self.running.insert(token, RunningExecutor { stop, thread });
    }

    /// Tells an executor to end; whether it has, its reports say. Does not block.
    pub fn end(&self, token: &str) {
        if let Some(running) = self.running.get(token) {
            running.stop.drain();
        }
    }

    /// Joins the thread of an executor that has reported its return.
    pub fn reap(&mut self, token: &str) {
        let Some(running) = self.running.remove(token) else { return };
        match running.thread.join_by(Instant::now() + KICK_GRACE) {
            Ok(()) | Err(JoinError::Panicked(_)) => {}
            Err(JoinError::Late(thread)) => thread.abandon("it reported its lease's return and did not end"),
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

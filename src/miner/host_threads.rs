//! The threads of each host, two each: one that checks it and one that reaps there. So a host that hangs holds up no
//! other.
//!
//! Owner: the miner's router thread, which holds the [`HostThreads`]. Blocks in: what [`super::engine`] and
//! [`super::reaper`] say. Kick: the thread's own stop signal. Ends: when the host is released, its back end is another
//! one, or the miner stops; dropping the owner ends all.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::check::CheckPolicy;
use super::engine::HostCheck;
use super::executor_manager::{Backends, ExecutorBackend};
use super::host::HostName;
use super::images::Floor;
use super::reaper::Reaper;
use super::router::Input;
use crate::base::shutdown::Shutdown;
use crate::base::thread::{Kick, Thread, spawn};

/// Takes what executors and hosts report to the router.
pub(super) type Reports = Arc<dyn Fn(Input) + Send + Sync>;

/// Takes what a check has found, with the stop signal of its thread: once that is set, it was a check of other
/// settings.
pub(super) type CheckReports = Arc<dyn Fn(Input, Shutdown) + Send + Sync>;

/// What the checks of all hosts have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Checks {
    pub policy: CheckPolicy,
    /// Whether the images of hosts are to be known.
    pub images: bool,
}

/// The threads of one host.
struct OneHost {
    stop: Shutdown,
    threads: Vec<Thread<()>>,
}

/// All of them.
pub(super) struct HostThreads {
    stop: Shutdown,
    report: Reports,
    checked: CheckReports,
    reaper: Reaper,
    /// Of the engine of this machine.
    floor: Option<Arc<Floor>>,
    running: BTreeMap<HostName, OneHost>,
    /// Told to end; each does within the limit of what it asks.
    ended: Vec<Thread<()>>,
    number: u16,
}

impl fmt::Debug for HostThreads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostThreads({} hosts)", self.running.len())
    }
}

impl HostThreads {
    /// None yet; all end with `stop`. `checked` gets what checks find, `report` what is found else.
    pub(super) fn new(
        reaper: Reaper,
        floor: Option<Floor>,
        stop: Shutdown,
        (report, checked): (Reports, CheckReports),
    ) -> Self {
        let floor = floor.map(Arc::new);
        Self { stop, report, checked, reaper, floor, running: BTreeMap::new(), ended: Vec::new(), number: 0 }
    }

    /// Checks this host from now on; how jobs run there may be known from earlier checks of the same engine.
    pub(super) fn check(
        &mut self,
        host: HostName,
        backend: Arc<dyn ExecutorBackend>,
        checks: Checks,
        known: Option<String>,
    ) {
        let (report, Checks { policy, images }) = (self.checked.clone(), checks);
        let floor = self.floor.clone().filter(|_| host == HostName::LOCAL);
        let Reaper { owner, answered, board, .. } = self.reaper.clone();
        let errors = board.errors;
        let check = HostCheck { host, backend, policy, known, images, floor, owner, answered, errors };
        self.spawn("min-engine", host, move |stop| check.run(stop, |found| report(found, stop.clone())));
    }

    /// Looks at this host from now on for what executors have left there.
    pub(super) fn reap(&mut self, host: HostName, backend: Arc<dyn ExecutorBackend>) {
        let (report, reaper) = (self.report.clone(), self.reaper.clone());
        self.spawn("min-reap", host, move |stop| reaper.run(host, backend.as_ref(), stop, |found| report(found)));
    }

    fn spawn(&mut self, name: &str, host: HostName, run: impl FnOnce(&Shutdown) + Send + 'static) {
        self.number = (self.number + 1) % 10_000;
        let of_host = self.running.entry(host).or_insert_with(|| OneHost { stop: self.stop.child(), threads: vec![] });
        let (stop, kicked) = (of_host.stop.clone(), of_host.stop.clone());
        let kick = Kick::new("stop signal of the host", move || kicked.cancel());
        of_host.threads.push(spawn(format!("{name}-{}", self.number), kick, move || run(&stop)));
    }

    /// Checks and reaps these hosts by these back ends from now on, those that have answered as is `known`; others go
    /// on as they were. Does not block.
    pub(super) fn renew(&mut self, backends: &Backends, checks: Checks, mut known: BTreeMap<HostName, String>) {
        for (host, backend) in backends {
            self.release(*host);
            self.check(*host, backend.clone(), checks, known.remove(host));
            self.reap(*host, backend.clone());
        }
    }

    /// Tells the threads of a host to end. Does not block.
    pub(super) fn release(&mut self, host: HostName) {
        // Those that have ended are joined at once.
        self.ended.retain(|thread| !thread.is_finished());
        if let Some(OneHost { stop, threads }) = self.running.remove(&host) {
            stop.cancel();
            self.ended.extend(threads);
        }
    }

    /// Hands all threads to whoever joins them.
    pub(super) fn into_threads(mut self) -> Vec<Thread<()>> {
        let running = std::mem::take(&mut self.running).into_values().flat_map(|host| host.threads);
        std::mem::take(&mut self.ended).into_iter().chain(running).collect()
    }
}

impl Drop for HostThreads {
    fn drop(&mut self) {
        // All before the first is joined, so that they end side by side.
        self.running.values().for_each(|host| host.stop.cancel());
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::bounded;

    use super::*;
    use crate::base::wait::LONG;
    use crate::miner::executor_manager::{ExecutorEnd, ExecutorError, ExecutorSpec, Owner};
    use crate::ops::status::Board;

    struct Well;

    impl ExecutorBackend for Well {
        fn run(&self, _: &ExecutorSpec, _: &Shutdown) -> ExecutorEnd {
            Err(ExecutorError::Lost)
        }
    }

    #[test]
    fn what_a_check_of_earlier_settings_has_found_is_known_as_that() {
        let (tell, told) = bounded(10);
        let stop = Shutdown::new();
        let owner = Owner { miner: "5M".to_owned(), instance: "i".to_owned(), epoch: 1 };
        let reaper =
            Reaper { answered: Default::default(), owner, dry_run: false, watcher: None, board: Board::default() };
        let checked: CheckReports = Arc::new(move |found, of| tell.send((found, of)).unwrap());
        let mut hosts = HostThreads::new(reaper, None, stop, (Arc::new(|_| {}), checked));
        let checks = Checks { policy: CheckPolicy::default(), images: false };
        let next = || told.recv_timeout(LONG).unwrap();
        hosts.check(HostName::LOCAL, Arc::new(Well), checks, None);
        let (_, first) = next();
        assert!(!first.is_set());
        // Its host has another engine now.
        hosts.release(HostName::LOCAL);
        hosts.check(HostName::LOCAL, Arc::new(Well), checks, None);
        let (_, second) = next();
        assert_eq!((first.is_set(), second.is_set()), (true, false));
    }
}

//! The threads that ask each host whether jobs can run there, so that the miner offers executors only where they can.
//!
//! Owner: the miner's router thread, by [`HostThreads`](super::host_threads::HostThreads). Blocks in: a check of one
//! host, with a limit of its own, or the wait for the next. Kick: the thread's stop signal. Ends: with the kick.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::check::{CheckPolicy, Gate};
use super::executor_manager::ExecutorBackend;
use super::host::HostName;
use super::images::Floor;
use super::router::Input;
use crate::base::shutdown::{Level, Shutdown};
use crate::base::waits::waiting;

/// What a busy machine may take longer than a limit.
pub(super) const LATE: Duration = Duration::from_secs(5);

/// One host to ask.
pub(super) struct HostCheck {
    pub host: HostName,
    pub backend: Arc<dyn ExecutorBackend>,
    pub policy: CheckPolicy,
    /// Whether its images are to be known.
    pub images: bool,
    /// What its disk must have free for any job, if that is looked at.
    pub floor: Option<Arc<Floor>>,
}

impl HostCheck {
    /// Asks until `stop`, and reports each outcome.
    pub(super) fn run(self, stop: &Shutdown, report: impl Fn(Input)) {
        // A stop of any level ends what is being asked.
        let asking = stop.child();
        let cancel = asking.clone();
        let _at_once = stop.on(Level::Drain, move || cancel.cancel());
        let mut gate = Gate::new(self.policy, Instant::now());
        let mut images = Vec::new();
        loop {
            self.ask(&mut gate, &asking);
            if self.images && gate.verdict().is_ok() {
                match self.backend.images(&asking, gate.limit(Instant::now())) {
                    Ok(found) => images = found,
                    Err(why) => log::debug!("host {}: its images are not known: {why}", self.host),
                }
            }
            if asking.is_cancelled() {
                return;
            }
            // The next asks for the images too.
            let due = gate.next_check() + 2 * self.policy.limit + LATE + self.backend.more_time();
            report(Input::Checked { host: self.host, found: gate.verdict(), images: images.clone(), due });
            let waits = waiting("the next check of the host", Some(gate.next_check()));
            let stopped = stop.wait(gate.next_check().saturating_duration_since(Instant::now()));
            drop(waits);
            if stopped {
                return;
            }
        }
    }

    /// Asks once.
    fn ask(&self, gate: &mut Gate, stop: &Shutdown) {
        let Self { host, backend, .. } = self;
        let (limit, more) = (gate.limit(Instant::now()), backend.more_time());
        let has_room = || self.floor.as_ref().map_or(Ok(()), |floor| floor.check(stop, gate.limit(Instant::now())));
        let found = backend.check(stop, limit).and_then(|what| has_room().map(|()| what));
        let now = Instant::now();
        if stop.is_cancelled() {
            return;
        }
        let late = || format!("a check took longer than {} s", self.policy.limit.as_secs_f64());
        let found = if now > limit + more + LATE { Err(late()) } else { found };
        match gate.checked(found, now) {
            Some(Ok(what)) => log::info!("host {host}: jobs run {what}"),
            Some(Err(why)) => {
                log::error!("host {host}: no job can run, and none is taken until that is over: {why}");
            }
            None => {}
        }
    }
}

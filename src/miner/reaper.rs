//! The reaper's thread: it looks for what executors have left that nobody answers for, and removes it. Whoever runs an
//! executor removes what that leaves; this is for what came into being behind its back, and for executors that nobody
//! remembers.
//!
//! Owner: the [`Miner`](super::Miner). Blocks in: the tools of the back end, each with a deadline of its own, and the
//! pause between two looks. Kick: the miner's stop signal, for the pause. Ends: when that is raised.

use std::time::{Duration, Instant};

use super::executor_manager::orphans::Orphans;
use super::executor_manager::{Answered, Marked, Owner};
use crate::base::shutdown::Shutdown;
use crate::ops::health::Health;
use crate::ops::metrics::Metrics;

/// Between two looks; what is of this process must be an orphan at two of them, so it is at least this old.
const PERIOD: Duration = Duration::from_secs(30);

/// Longest that one look may take, with all that is to be removed.
const LOOK_TIME: Duration = Duration::from_secs(300);

/// The part of health that is this thread.
const REAPER: &str = "reaper";

/// What the thread works with.
pub(super) struct Reaper {
    pub answered: Answered,
    pub owner: Owner,
    /// Only say what would be removed.
    pub dry_run: bool,
    pub health: Health,
    pub metrics: Metrics,
}

impl Reaper {
    /// Looks at once, and then every [`PERIOD`], until `stop` is raised.
    pub(super) fn run(self, stop: &Shutdown) {
        let pulse = self.health.pulse(REAPER);
        let mut orphans = Orphans::new(self.owner.epoch);
        loop {
            pulse.begin(Instant::now() + LOOK_TIME);
            match self.answered.backend().find(&self.owner) {
                Ok(found) => {
                    self.health.up(REAPER);
                    for orphan in orphans.of(found, &self.answered.living()) {
                        if stop.is_set() {
                            break;
                        }
                        self.remove(&orphan, stop);
                    }
                }
                Err(why) => self.health.down(REAPER, format!("what executors have left is not known: {why}")),
            }
            pulse.done();
            if stop.wait(PERIOD) {
                return;
            }
        }
    }

    fn remove(&self, orphan: &Marked, stop: &Shutdown) {
        let Marked { kind, id, run, epoch } = orphan;
        let what = format!("{} {id} of executor {run}, which process {epoch} of this miner has started", kind.as_str());
        if self.dry_run {
            return log::info!("nobody answers for {what}; it would be removed");
        }
        match self.answered.backend().remove(orphan, stop) {
            Ok(()) => {
                log::info!("nobody answered for {what}: removed");
                let help = "What executors have left and nobody answered for, removed, by what it was.";
                self.metrics.counter("phalanx_miner_reaped_total", help, &[("kind", kind.as_str())]).inc();
            }
            Err(left) => log::warn!("nobody answers for {what}, and it cannot be removed: {left}"),
        }
    }
}

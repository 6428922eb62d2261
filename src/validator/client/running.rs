//! A client that runs, and the order in which it stops.

use std::fmt;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::checker::Check;
use super::handle::ClientHandle;
use super::work_queue::WorkQueue;
use crate::base::lock::lock;
use crate::base::shutdown::Shutdown;
use crate::base::stop::{StopReport, Stopping};
use crate::base::timer::Timer;
use crate::link::Link;
use crate::validator::ledger::StoreThread;

/// The budget of a stop by drop.
const DROP_BUDGET: Duration = Duration::from_secs(5);

/// What the disk gets at a stop, whatever the facilitator has left of the budget: what it has is what is not lost.
pub(in crate::validator) const DISK_TIME: Duration = Duration::from_secs(5);

/// The least time that the last updates have when the jobs have used up theirs: part of every stop's budget.
const FLUSH_SHARE: f64 = 0.25;

/// A running client. Dropping it stops it with a budget of 5 seconds.
#[must_use = "dropping a running client stops it"]
pub struct RunningClient {
    /// `None` once stopped.
    pub(super) parts: Option<ClientParts>,
    pub(super) handle: ClientHandle,
    /// `None` if the timer is somebody else's.
    pub(super) timer: Option<Timer>,
}

/// What a stop ends, in the order of the start.
pub(super) struct ClientParts {
    pub(super) store: StoreThread,
    pub(super) checks: WorkQueue<Check>,
    pub(super) link: Link,
    /// Reaches cancel when running jobs are to end.
    pub(super) stop: Shutdown,
    /// Disconnects when nobody holds a job any more.
    pub(super) all_gone: Receiver<()>,
}

impl fmt::Debug for RunningClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningClient").field("handle", &self.handle).finish_non_exhaustive()
    }
}

impl RunningClient {
    /// What may be cloned, shared, and kept longer than the client.
    pub fn handle(&self) -> ClientHandle {
        self.handle.clone()
    }

    /// Takes no more jobs from now on: the facilitator gets `rejected`, `busy`. Returns at once.
    pub fn drain(&self) {
        self.handle.shared.draining.drain();
        drop(lock(&self.handle.shared.alive).take());
    }

    /// Stops in order: no new jobs, running jobs end (at three quarters of the budget their stop signal is raised), the
    /// last updates are answered, the connection closes, all threads are joined. Blocks for the budget, the kicks'
    /// grace and 5 s for a slow disk at most. Updates that nobody answered are counted, and with a state folder kept
    /// for the next start.
    pub fn stop(mut self, budget: Duration) -> StopReport {
        let mut stopping = Stopping::alone();
        self.stop_all(&mut stopping, budget);
        stopping.finish()
    }

    fn stop_all(&mut self, stopping: &mut Stopping, budget: Duration) {
        let until = Instant::now() + budget;
        self.stop_jobs(stopping, budget);
        self.stop_link(stopping, until.saturating_duration_since(Instant::now()));
        if let Some(timer) = self.timer.take() {
            stopping.step("timer", DROP_BUDGET, |step| timer.stop_in(step));
        }
    }

    /// Waits for the jobs that the handler holds.
    fn stop_jobs(&self, stopping: &mut Stopping, budget: Duration) {
        let share = budget.mul_f64(1.0 - FLUSH_SHARE);
        self.drain();
        let Some(parts) = &self.parts else { return };
        let ended = stopping.step("jobs", share, |step| step.wait(&parts.all_gone));
        let running = self.handle.counts().open_jobs;
        parts.stop.cancel();
        self.handle.shared.delivery.cancel_waits();
        if !ended {
            stopping.cancelled_jobs(running);
            stopping.step("cancelled jobs", (budget - share) / 2, |step| step.wait(&parts.all_gone));
        }
    }

    /// The rest of a stop, when the jobs have ended.
    pub(in crate::validator) fn stop_link(&mut self, stopping: &mut Stopping, flush: Duration) {
        self.drain();
        let Some(ClientParts { link, checks, store, stop, .. }) = self.parts.take() else { return };
        let until = Instant::now() + flush;
        let left = || until.saturating_duration_since(Instant::now());
        stopping.step("signature checks", left(), |step| checks.stop_in(step));
        stop.cancel();
        self.handle.shared.delivery.cancel_waits();
        let drained = self.handle.shared.delivery.drained();
        stopping.step("updates", left(), |step| step.wait(&drained));
        stopping.step("facilitator link", left(), |step| link.stop_in(step));
        stopping.step("state folder", DISK_TIME, |step| store.stop_in(step));
        stopping.unsent(self.handle.counts().unsent);
    }
}

impl Drop for RunningClient {
    fn drop(&mut self) {
        if self.parts.is_some() {
            let mut stopping = Stopping::alone();
            self.stop_all(&mut stopping, DROP_BUDGET);
            log::info!("facilitator: {}", stopping.finish());
        }
    }
}

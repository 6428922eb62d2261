//! Ending tasks early: on request, over a limit, and all of them when the manager stops.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Receiver;

use super::{Locked, Phase, Scheduler};
use crate::tasks::guard::tolerated;
use crate::tasks::state::{CancelReason, TaskState};
use crate::tasks::store::TaskId;
use crate::tasks::table::{Alarm, drop_all};
use crate::tasks::task::TaskRef;

impl Scheduler {
    /// Tells a task to end; false if it has ended already, or is just about to.
    pub(in crate::tasks) fn cancel(self: &Arc<Self>, id: TaskId, task: &TaskRef, reason: &CancelReason) -> bool {
        let now = self.env.now();
        if self.cancel_pending(id, task, reason, now) {
            return true;
        }
        {
            let mut state = self.lock();
            if !state.table.is_in(id, TaskState::Running) {
                return false;
            }
            if !task.head().is_cancelled() {
                state.table.arm(now, self.config.cancel_grace, Alarm::Grace(id));
            }
        }
        // Outside the lock, because a kick of the user's may hang on the signal.
        tolerated("the kick of a task's signal", || task.head().cancel(reason));
        // It may have gone to wait for its next attempt before it could see the reason.
        self.cancel_pending(id, task, reason, now);
        true
    }

    /// Ends a task that no worker has begun; false if one has, or if it has ended.
    fn cancel_pending(self: &Arc<Self>, id: TaskId, task: &TaskRef, reason: &CancelReason, now: Instant) -> bool {
        if !task.settle_pending() {
            return false;
        }
        task.head().note_cancel(reason);
        let mut state = self.lock();
        state.table.end_pending(id, task, reason, now);
        self.wake_worker_for(state);
        task.publish_cancelled(reason);
        true
    }

    /// The task has not ended although it was cancelled: its waiters are woken, and its worker is replaced.
    pub(super) fn give_up(self: &Arc<Self>, mut state: Locked<'_>, id: TaskId, task: &TaskRef, now: Instant) {
        let Some(reason) = task.head().cancelled() else { return };
        if !task.settle_running() {
            return;
        }
        let error = format!("{}, and goes on although it was cancelled", reason.error_text());
        let worker = state.table.store.get(id).and_then(|open| open.worker);
        state.table.end(id, reason.end_state(), Some(error), now, true);
        if state.crew.written_off < self.config.unresponsive
            && let Some(worker) = worker
        {
            state.crew.write_off(worker);
        }
        self.wake_worker_for(state);
        let name = task.head().name();
        log::warn!("task {id} ({name}) does not end although it was cancelled: {}", reason.error_text());
        task.publish_cancelled(&reason);
    }

    // ---- stopping ----

    /// Takes no more tasks; those whose time has not come are cancelled. `Receiver` disconnects when no task is left.
    pub(in crate::tasks) fn drain(self: &Arc<Self>) -> Receiver<()> {
        let (periods, later) = {
            let mut state = self.lock_only();
            state.phase = state.phase.max(Phase::Draining);
            // Nothing comes in any more, so that what is collected now is all.
            self.fast.close();
            let mut state = self.collected(state);
            let later = state.table.open(|open| open.delayed);
            (std::mem::take(&mut state.periods), later)
        };
        self.fast.wake_submitters();
        periods.drop_all();
        for (id, task) in later {
            self.cancel(id, &task, &CancelReason::Stopping);
            drop_all([task]);
        }
        self.lock().table.drained()
    }

    /// Tells every task to end; gives how many there were.
    pub(in crate::tasks) fn cancel_all(self: &Arc<Self>) -> usize {
        // First what waits, so that it does not start on the workers that become free.
        let (waiting, running) = {
            let state = self.lock();
            let in_state = |wanted| state.table.open(move |open| open.state == wanted);
            (in_state(TaskState::Pending), in_state(TaskState::Running))
        };
        let count = waiting.len() + running.len();
        for (id, task) in waiting.into_iter().chain(running) {
            self.cancel(id, &task, &CancelReason::Stopping);
            drop_all([task]);
        }
        self.env.stop.cancel();
        count
    }

    /// The threads end as soon as they have nothing to run; what still waits is cancelled.
    pub(in crate::tasks) fn close(self: &Arc<Self>) {
        self.drain();
        self.cancel_all();
        self.lock().phase = Phase::Closed;
        self.work.notify_all();
        self.time.notify_all();
    }

    /// Ends what does not end by itself, for its waiters.
    pub(in crate::tasks) fn give_up_all(self: &Arc<Self>) {
        let now = self.env.now();
        let running = self.lock().table.open(|open| open.state == TaskState::Running);
        for (id, task) in running {
            self.give_up(self.lock(), id, &task, now);
            drop_all([task]);
        }
    }
}

//! The reaper: sees to what is due, as limits in time, delayed and periodic tasks, and what is to be forgotten.
//!
//! Owner: [`TaskManager`](crate::tasks::TaskManager). Blocks in: a condition variable, until the next moment at which
//! something is due. Kick: closing the scheduler. Ends: when that is closed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::periods::{MakeTask, drop_make};
use super::{Locked, Phase, Scheduler, SchedulerState};
use crate::base::lock::{wait, wait_timeout};
use crate::base::waits::waiting;
use crate::tasks::error::Refusal;
use crate::tasks::guard::guarded;
use crate::tasks::state::CancelReason;
use crate::tasks::table::{Alarm, drop_all};

impl Scheduler {
    /// The body of the reaper.
    pub(in crate::tasks) fn reap(self: &Arc<Self>) {
        let mut state = self.lock_only();
        while state.phase != Phase::Closed {
            let now = self.env.now();
            if let Some(alarm) = state.table.pop_due(now) {
                self.ring(self.collected(state), alarm, now);
                state = self.lock_only();
                continue;
            }
            let clock = &self.config.clock;
            let next = state.table.next_due();
            let _planned = next.map(|next| clock.plan(next));
            let left = next.filter(|_| !clock.is_manual());
            state.reaper_sleeps = true;
            let _waiting = waiting("its next deadline", left);
            state = match left {
                None => wait(&self.time, state),
                Some(at) => wait_timeout(&self.time, state, at - now),
            };
            state.reaper_sleeps = false;
        }
    }

    /// Has the reaper look at the clock.
    pub(in crate::tasks) fn tick(&self) {
        // Under the lock, so that it is not between its look at the clock and its sleep.
        let _state = self.lock_only();
        self.time.notify_one();
    }

    fn ring(self: &Arc<Self>, mut state: Locked<'_>, alarm: Alarm, now: Instant) {
        let id = match alarm {
            Alarm::Forget => return state.table.forget_due(now),
            Alarm::Period(number) => return self.repeat(state, number, now),
            Alarm::Start(id) | Alarm::Limit(id, _) | Alarm::Grace(id) => id,
        };
        let Some(task) = state.table.task_of_alarm(id) else { return };
        match alarm {
            Alarm::Start(_) => {
                state.table.start_now(id, now);
                self.wake_worker_for(state);
            }
            Alarm::Limit(_, limit) => {
                let exceeded = state.table.exceeds(id, limit, now);
                drop(state);
                if exceeded {
                    self.cancel(id, &task, &CancelReason::Limit(limit));
                }
            }
            Alarm::Grace(_) => self.give_up(state, id, &task, now),
            Alarm::Forget | Alarm::Period(_) => {}
        }
        drop_all([task]);
    }

    // ---- again and again ----

    pub(in crate::tasks) fn add_period(&self, every: Duration, make: MakeTask) -> Result<u64, Refusal> {
        let now = self.env.now();
        let mut state = self.lock();
        if state.phase != Phase::Open {
            return Err(Refusal::Stopping);
        }
        let number = state.periods.add(every, make, now);
        arm_next(&mut state, number, now);
        Ok(number)
    }

    fn repeat(self: &Arc<Self>, mut state: Locked<'_>, number: u64, now: Instant) {
        let Some(period) = state.periods.get(number) else { return };
        let (make, last) = (period.make.clone(), period.last);
        let runs = last.is_some_and(|id| state.table.store.get(id).is_some());
        arm_next(&mut state, number, now);
        drop(state);
        let report = |panic: &_| log::error!("the options of a periodic task panicked: {panic}");
        let task = if runs { None } else { guarded(|| make()).inspect_err(report).ok() };
        let accepted = task.and_then(|task| {
            // The thread that sees to all deadlines does not wait for room.
            let accepted = self.accept_now(task.clone()).ok();
            drop_all([task]);
            accepted
        });
        drop_make(make);
        if let Some(period) = self.lock_only().periods.get_mut(number) {
            match accepted {
                Some(id) => period.last = Some(id),
                None => period.skipped += 1,
            }
        }
    }

    /// Times at which this periodic task was left out.
    pub(in crate::tasks) fn skipped(&self, number: u64) -> u64 {
        self.lock_only().periods.get(number).map_or(0, |period| period.skipped)
    }

    pub(in crate::tasks) fn remove_period(&self, number: u64) {
        let period = self.lock_only().periods.remove(number);
        if let Some(period) = period {
            drop_make(period.make);
        }
    }
}

fn arm_next(state: &mut SchedulerState, number: u64, now: Instant) {
    if let Some(after) = state.periods.next_after(number, now) {
        state.table.arm(now, after, Alarm::Period(number));
    }
}

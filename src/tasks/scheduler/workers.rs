//! The workers: woken or started when a task finds none, they run one task after the other.
//!
//! Owner: the scheduler, and at its end whoever takes them from [`Scheduler::take_workers`]. Blocks in: the task queue,
//! then whatever a task does. Kick: closing the scheduler, which raises the signal of every task. Ends: with nothing to
//! run when the scheduler is closed, or after the task for which it was written off.

use std::sync::{Arc, MutexGuard};
use std::time::Instant;

use super::{Locked, Phase, Scheduler, SchedulerState};
use crate::base::lock::wait;
use crate::base::scope;
use crate::base::thread::{Kick, Thread, spawn};
use crate::base::waits::waiting;
use crate::tasks::fast::{Begun, Intake, LocalFreeList, LocalQueue};
use crate::tasks::store::TaskId;
use crate::tasks::table::drop_all;
use crate::tasks::task::{AnyTask, AttemptEnd};

/// How often a worker that finds nothing gives the processor away before it sleeps: under load something comes within
/// that time. Without it, and without that of a submitter that finds no room, short tasks take 1.1 to 1.9 times the
/// processor time, for sleeps and wake-ups.
const YIELDS: usize = 8;

impl Scheduler {
    /// Lets go of the state, and wakes or starts a worker if a task waits and one can be had.
    pub(super) fn wake_worker_for(self: &Arc<Self>, mut state: Locked<'_>) {
        let wake = self.find_worker(&mut state);
        drop(state);
        if wake {
            self.work.notify_one();
        }
    }

    /// The same for whoever has only the lock.
    fn wake_worker(self: &Arc<Self>, mut state: MutexGuard<'_, SchedulerState>) {
        let wake = self.find_worker(&mut state);
        self.notify_reaper(&mut state);
        drop(state);
        if wake {
            self.work.notify_one();
        }
    }

    /// The same for whoever has put an inline task into the intake, and was asked to.
    #[inline]
    pub(super) fn wake_worker_if(self: &Arc<Self>, asked: bool) {
        if asked {
            self.wake_worker(self.lock_only());
        }
    }

    /// Whether a worker is to be woken for a task; starts one if none is there to be woken.
    fn find_worker(self: &Arc<Self>, state: &mut SchedulerState) -> bool {
        if state.crew.is_busy(self.config.workers) {
            return false;
        }
        let mut intake = self.fast.intake();
        let waiting = state.table.ready.startable() + state.backlog.waiting() + intake.waiting();
        let needed = waiting > state.crew.coming();
        let wake = needed && state.crew.idle.wake_one();
        if needed && !wake && state.crew.active < self.config.workers && state.phase != Phase::Closed {
            self.start_worker(state, &mut intake);
        }
        // Who is coming sees to it that the next one comes, too.
        intake.wake = state.crew.coming() == 0 && !state.crew.is_busy(self.config.workers);
        wake
    }

    fn start_worker(self: &Arc<Self>, state: &mut SchedulerState, intake: &mut Intake) {
        let number = state.crew.next_number();
        let local = intake.add_local_queue(self.env.now());
        let scheduler = self.clone();
        let weak = Arc::downgrade(self);
        let kick = Kick::new("the task queue, and the signals of its tasks", move || {
            if let Some(scheduler) = weak.upgrade() {
                scheduler.close();
            }
        });
        let name = format!("{}-{number}", self.config.name);
        state.crew.add(spawn(name, kick, move || scheduler.work(number, &local)));
    }

    /// The body of a worker.
    fn work(self: &Arc<Self>, me: usize, local: &LocalQueue) {
        // It works for whoever comes, not only for the submitter whose task it was started for.
        let _nobody = scope::enter(None);
        let (mut next, mut free) = (None, LocalFreeList::default());
        loop {
            let begun = match next.take().or_else(|| self.fast.begin(local, &mut free)) {
                Some(begun) => begun,
                None => match self.take(me, local, &mut free) {
                    Some(begun) => begun,
                    None => break,
                },
            };
            free.run(begun, &self.env, |task, end| next = self.returned(me, local, task, end));
        }
        local.leave();
        self.lock_only().crew.leave(me);
    }

    /// Blocks until there is a task for this worker; `None` when it is to end.
    fn take(self: &Arc<Self>, me: usize, local: &LocalQueue, free: &mut LocalFreeList) -> Option<Begun> {
        self.fast.recycle(free);
        let mut state = self.lock_only();
        if state.crew.is_written_off(me) {
            return None;
        }
        state.crew.looking += 1;
        let mut yields = 0;
        loop {
            let mut filled = false;
            if state.phase == Phase::Open && state.table.ready.startable() == 0 {
                filled = self.refill(&mut state, me, local);
            } else {
                let mut locked = self.collected(state);
                let next = pop(&mut locked, me, self.env.now());
                if next.is_some() || locked.phase == Phase::Closed {
                    locked.crew.looking -= 1;
                    self.wake_worker_for(locked);
                    return next;
                }
                state = locked.into_guard();
            }
            if filled || !state.table.gone.is_empty() {
                let gone = std::mem::take(&mut state.table.gone);
                state.crew.looking -= 1;
                self.wake_worker(state);
                drop_all(gone);
                if let Some(next) = self.fast.begin(local, free) {
                    return Some(next);
                }
                state = self.lock_only();
                state.crew.looking += 1;
            } else if yields < YIELDS {
                yields += 1;
                drop(state);
                std::thread::yield_now();
                state = self.lock_only();
            } else if self.fast.may_sleep() {
                // Still under the lock of the look at the local queues, so that nobody has filled one since.
                state.crew.looking -= 1;
                state.crew.idle.asleep += 1;
                let _waiting = waiting("a task to run", None);
                state = wait(&self.work, state);
                state.crew.idle.has_slept();
                state.crew.looking += 1;
            }
        }
    }

    fn refill(&self, state: &mut SchedulerState, me: usize, local: &LocalQueue) -> bool {
        let several = state.crew.is_busy(self.config.workers);
        let SchedulerState { backlog, table, .. } = state;
        let filled = self.fast.refill(backlog, table, me, local, several, self.env.now());
        self.notify_reaper(state);
        filled
    }

    /// An attempt has ended: moves the task on, and gives the worker its next one if the table has any.
    fn returned(
        self: &Arc<Self>,
        me: usize,
        local: &LocalQueue,
        task: &dyn AnyTask,
        mut end: AttemptEnd,
    ) -> Option<Begun> {
        let now = self.env.now();
        if let AttemptEnd::Ended(state, error) = &mut end
            && local.note_end(*state, error, now)
        {
            return None;
        }
        let id: TaskId = task.head().id();
        let mut state = self.lock();
        let mut again = false;
        match end {
            AttemptEnd::Again(delay) => again = state.table.wait_again(id, delay, now),
            AttemptEnd::Ended(end, error) => state.table.end(id, end, error, now, false),
            AttemptEnd::Late => {
                local.clear();
                state.table.has_ended_late(id);
            }
        }
        if !again {
            state.table.release_key(task.head());
        }
        state.table.forget(now);
        let next = if state.crew.is_written_off(me) { None } else { pop(&mut state, me, now) };
        // A worker that was written off leaves; what its task's key lets start now is for another.
        self.wake_worker_for(state);
        next
    }

    /// The workers, for whoever joins them.
    pub(in crate::tasks) fn take_workers(&self) -> Vec<Thread<()>> {
        self.lock_only().crew.take()
    }
}

/// The next task of the table for worker `me`.
fn pop(state: &mut SchedulerState, me: usize, now: Instant) -> Option<Begun> {
    state.table.pop(me, now).map(|(task, attempt)| Begun::Task(task, attempt))
}

//! One thread that runs short actions at given moments: kicks at deadlines, liveness checks, heartbeats.
//!
//! Owner: whoever holds the [`Timer`]. Blocks in: a condition variable, until the earliest deadline or for ever. Kick:
//! stopping or dropping the owner's value, which latches `stopped`. Ends: when stopped; what was still due is dropped
//! unrun.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fmt;
use std::time::{Duration, Instant};

use super::clock::Clock;
use super::lock::{lock, wait, wait_timeout};
use super::stop::{Step, StopReport, stop_alone};
use super::sync::{Arc, Condvar, Mutex};
use super::thread::{Kick, Thread, spawn};
use super::waits::waiting;

type Action = Box<dyn FnOnce() + Send>;

/// The handle of the timer thread; clones are the same timer.
#[derive(Clone)]
pub struct TimerHandle(Arc<TimerShared>);

/// Owns the timer thread.
#[derive(Debug)]
pub struct Timer {
    handle: TimerHandle,
    thread: Thread<()>,
}

struct TimerShared {
    clock: Clock,
    state: Mutex<TimerState>,
    changed: Condvar,
}

#[derive(Default)]
struct TimerState {
    due: BinaryHeap<Reverse<(Instant, u64)>>,
    actions: HashMap<u64, Action>,
    next_id: u64,
    stopped: bool,
}

/// A planned action; dropping it cancels the action if it has not begun.
#[must_use = "dropping the alarm cancels it"]
pub struct Alarm {
    id: u64,
    shared: Arc<TimerShared>,
}

impl fmt::Debug for TimerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TimerHandle({} planned)", lock(&self.0.state).actions.len())
    }
}

impl fmt::Debug for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Alarm({})", self.id)
    }
}

impl Timer {
    /// Starts the timer thread.
    pub fn start() -> Self {
        Self::start_with(Clock::system())
    }

    /// As [`Timer::start`]; its moments, and those of all that are given its handle, are of that clock.
    pub fn start_with(clock: Clock) -> Self {
        let shared = Arc::new(TimerShared { clock, state: Mutex::default(), changed: Condvar::new() });
        let told = Arc::downgrade(&shared);
        shared.clock.on_advance(move || {
            // With the lock, so that the thread is not between its look at the clock and its wait.
            let told = told.upgrade().inspect(|shared| drop(lock(&shared.state)));
            told.inspect(|shared| shared.changed.notify_one()).is_some()
        });
        let running = shared.clone();
        let handle = TimerHandle(shared);
        let stop = handle.clone();
        let thread = spawn("timer", Kick::new("stopped flag", move || stop.stop()), move || run(&running));
        Self { handle, thread }
    }

    /// What others plan with.
    pub fn handle(&self) -> TimerHandle {
        self.handle.clone()
    }

    /// Stops it alone, within `budget`, as [`Timer::stop_in`] does.
    pub fn stop(self, budget: Duration) -> StopReport {
        stop_alone("timer", budget, |step| self.stop_in(step))
    }

    /// Stops and joins the thread.
    pub fn stop_in(self, step: &mut Step) {
        self.handle.stop();
        step.join(self.thread);
    }
}

impl TimerHandle {
    /// The clock whose moments these are.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// Runs `action` on the timer thread at `when`, unless the alarm is dropped first or the timer has stopped.
    /// `action` must be quick and must not block.
    pub fn at(&self, when: Instant, action: impl FnOnce() + Send + 'static) -> Alarm {
        let id = {
            let mut state = lock(&self.0.state);
            let id = state.next_id;
            state.next_id += 1;
            if !state.stopped {
                state.actions.insert(id, Box::new(action));
                state.due.push(Reverse((when, id)));
            }
            id
        };
        self.0.changed.notify_one();
        Alarm { id, shared: self.0.clone() }
    }

    fn stop(&self) {
        lock(&self.0.state).stopped = true;
        self.0.changed.notify_one();
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        let action = state.actions.remove(&self.id);
        // Cancelled entries stay in the heap until due; compacted when they outnumber the live ones.
        if state.due.len() > 64 && state.due.len() > 2 * state.actions.len() {
            let TimerState { due, actions, .. } = &mut *state;
            due.retain(|Reverse((_, id))| actions.contains_key(id));
        }
        drop(state);
        // Dropped outside the lock, because what it captured may own other alarms.
        drop(action);
    }
}

fn run(shared: &TimerShared) {
    let mut state = lock(&shared.state);
    while !state.stopped {
        let now = shared.clock.now();
        match state.due.peek() {
            Some(Reverse((when, id))) if *when <= now => {
                let id = *id;
                state.due.pop();
                if let Some(action) = state.actions.remove(&id) {
                    drop(state);
                    action();
                    state = lock(&shared.state);
                }
            }
            Some(Reverse((when, _))) if shared.clock.is_manual() => {
                let (_planned, _waiting) = (shared.clock.plan(*when), waiting("its next alarm", Some(*when)));
                state = wait(&shared.changed, state);
            }
            Some(Reverse((when, _))) => {
                let (left, _waiting) = (*when - now, waiting("its next alarm", Some(*when)));
                state = wait_timeout(&shared.changed, state, left);
            }
            None => {
                let _waiting = waiting("an alarm", None);
                state = wait(&shared.changed, state);
            }
        }
    }
    let left = std::mem::take(&mut state.actions);
    drop(state);
    drop(left);
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::base::stop::Stopping;
    use crate::base::thread::Group;
    use crossbeam_channel::bounded;

    #[test]
    fn alarms_run_in_order_and_cancelled_ones_do_not() {
        let timer = Timer::start();
        let (tx, rx) = bounded(8);
        let now = Instant::now();
        let say = |what: u32| {
            let tx = tx.clone();
            move || tx.send(what).unwrap()
        };
        let _late = timer.handle().at(now + Duration::from_millis(20), say(2));
        let _early = timer.handle().at(now + Duration::from_millis(5), say(1));
        drop(timer.handle().at(now + Duration::from_millis(1), say(9)));
        let _never = timer.handle().at(now + Duration::from_secs(3600), say(8));
        let wait = Duration::from_secs(30);
        assert_eq!([rx.recv_timeout(wait).unwrap(), rx.recv_timeout(wait).unwrap()], [1, 2]);
        let mut stopping = Stopping::alone();
        stopping.step("timer", wait, |step| timer.stop_in(step));
        assert!(stopping.finish().is_clean());
    }

    #[test]
    fn dropping_a_timer_stops_it() {
        let group = Group::enter();
        let timer = Timer::start();
        let (tx, rx) = bounded::<()>(0);
        let _alarm = timer.handle().at(Instant::now() + Duration::from_secs(3600), move || drop(tx));
        drop(timer);
        assert!(group.live().is_empty(), "{:?}", group.live());
        assert!(rx.try_recv().is_err_and(|error| error.is_disconnected()), "what was due is dropped unrun");
    }

    #[test]
    fn cancelled_alarms_do_not_pile_up() {
        let timer = Timer::start();
        let far = Instant::now() + Duration::from_secs(3600);
        for _ in 0..10_000 {
            drop(timer.handle().at(far, || {}));
        }
        assert!(lock(&timer.handle.0.state).due.len() <= 65);
    }
}

//! The queue of connections that have something for a worker. Each connection is in it once at most, so it has as many
//! places as the server has connections.

use std::collections::VecDeque;

use crate::base::lock::{lock, wait};
use crate::base::sync::{Condvar, Mutex};
use crate::base::waits::waiting;

/// The queue.
pub(crate) struct Runs<T> {
    state: Mutex<RunsState<T>>,
    changed: Condvar,
}

struct RunsState<T> {
    queue: VecDeque<T>,
    /// Workers that wait and were not woken yet; most often some are at work, and need no system call.
    waiting: usize,
    closed: bool,
}

impl<T> Runs<T> {
    /// Empty.
    pub(crate) fn new() -> Self {
        let state = RunsState { queue: VecDeque::new(), waiting: 0, closed: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Puts one in, and wakes a worker if one waits.
    pub(crate) fn push(&self, run: T) {
        let mut state = lock(&self.state);
        state.queue.push_back(run);
        let wake = state.waiting > 0;
        if wake {
            state.waiting -= 1;
        }
        drop(state);
        if wake {
            self.changed.notify_one();
        }
    }

    /// The next one; blocks until there is one. `None` once the queue is closed and nothing is left in it.
    /// Each time that the worker has come round, `alive` is called, also by [`Runs::wake_all`].
    pub(crate) fn next(&self, alive: impl Fn()) -> Option<T> {
        let mut state = lock(&self.state);
        loop {
            alive();
            if let Some(run) = state.queue.pop_front() {
                return Some(run);
            }
            if state.closed {
                return None;
            }
            state.waiting += 1;
            let _waiting = waiting("a connection with something to do", None);
            state = wait(&self.changed, state);
            // Woken by nobody, it still counts as waiting; then one notification too many is sent.
        }
    }

    /// Has the workers that wait come round.
    pub(crate) fn wake_all(&self) {
        // With the lock, so that none is between its look and its wait.
        drop(lock(&self.state));
        self.changed.notify_all();
    }

    /// Workers end when nothing is left; one that puts its connection back takes it again itself.
    pub(crate) fn close(&self) {
        lock(&self.state).closed = true;
        self.changed.notify_all();
    }
}

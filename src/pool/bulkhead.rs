//! A number of calls at a time, so that one slow peer, or one kind of work, does not take every thread.
//!
//! Whoever waits is served in the order of coming. Blocks in: a condition variable, until a place is free, the
//! deadline, or the shutdown signal, whose kick notifies it.

use std::collections::VecDeque;
use std::fmt;

use super::until::Until;
use crate::base::lock::{lock, wait_timeout};
use crate::base::sync::{Arc, Condvar, Mutex};
use crate::base::waits::waiting_unless_noted;

/// So many places, and so many callers who may wait for one; clones are the same bulkhead.
///
/// ```
/// use std::time::{Duration, Instant};
///
/// use phalanx::base::shutdown::Shutdown;
/// use phalanx::pool::{Bulkhead, BulkheadError, Until};
///
/// let shutdown = Shutdown::new();
/// let bulkhead = Bulkhead::new(1, 10);
/// let until = || Until::new(Instant::now() + Duration::from_millis(1), &shutdown);
/// let place = bulkhead.acquire(until())?;
/// assert!(matches!(bulkhead.acquire(until()), Err(BulkheadError::TimedOut { .. })));
/// drop(place);
/// let _place = bulkhead.acquire(until())?;
/// # Ok::<(), BulkheadError>(())
/// ```
#[derive(Clone)]
pub struct Bulkhead(Arc<Places>);

struct Places {
    all: usize,
    waiting_max: usize,
    state: Mutex<PlacesState>,
    changed: Condvar,
}

#[derive(Default)]
struct PlacesState {
    taken: usize,
    /// Numbers of those who wait, the first to come first.
    waiting: VecDeque<u64>,
    next: u64,
}

/// What a [`Bulkhead`] has at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BulkheadNumbers {
    /// Places in all.
    pub places: usize,
    /// Places that are taken.
    pub taken: usize,
    /// Callers who wait for one.
    pub waiting: usize,
}

impl fmt::Display for BulkheadNumbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} places taken, {} waiting", self.taken, self.places, self.waiting)
    }
}

/// Why there is no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BulkheadError {
    /// As many wait as may. The caller has not waited; it may try again later.
    #[error("no place, and no room to wait for one: {0}")]
    Full(BulkheadNumbers),
    /// None was free by the deadline.
    #[error("no place in time: {numbers}")]
    TimedOut {
        /// As it was at the deadline.
        numbers: BulkheadNumbers,
    },
    /// A stop was asked for.
    #[error("stopped while waiting for a place")]
    Stopped,
}

/// One place; dropping it, also in a panic, gives it back.
#[must_use = "the place is free again when this is dropped"]
pub struct BulkheadPermit(Arc<Places>);

impl fmt::Debug for Bulkhead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Bulkhead").field(&self.numbers()).finish()
    }
}

impl fmt::Debug for BulkheadPermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BulkheadPermit")
    }
}

impl Bulkhead {
    /// A bulkhead of `places` (at least one); at most `waiting_max` callers wait for one, each a thread.
    pub fn new(places: usize, waiting_max: usize) -> Self {
        let state = Mutex::new(PlacesState::default());
        Self(Arc::new(Places { all: places.max(1), waiting_max, state, changed: Condvar::new() }))
    }

    /// Takes a place. Blocks until one is free and all who came before have theirs, the deadline, or the signal.
    ///
    /// # Errors
    /// See [`BulkheadError`].
    pub fn acquire(&self, until: Until<'_>) -> Result<BulkheadPermit, BulkheadError> {
        let mut state = lock(&self.0.state);
        if until.is_stopped() {
            return Err(BulkheadError::Stopped);
        }
        if let Some(permit) = self.take_free(&mut state) {
            return Ok(permit);
        }
        if state.waiting.len() >= self.0.waiting_max {
            return Err(BulkheadError::Full(self.0.numbers(&state)));
        }
        let me = state.next;
        state.next += 1;
        state.waiting.push_back(me);
        drop(state);

        // Outside the lock, because a signal that is at its level already kicks at once.
        let kicked = self.0.clone();
        let _kick = until.shutdown.on(until.level, move || {
            // With the lock, so that nobody is between the look at the signal and the wait.
            drop(lock(&kicked.state));
            kicked.changed.notify_all();
        });
        let _waiting = waiting_unless_noted("a place of a bulkhead", Some(until.deadline));
        let mut state = lock(&self.0.state);
        loop {
            if state.waiting.front() == Some(&me) && state.taken < self.0.all {
                state.waiting.pop_front();
                state.taken += 1;
                drop(state);
                // The next one may have a place too.
                self.0.changed.notify_all();
                return Ok(BulkheadPermit(self.0.clone()));
            }
            let left = until.left();
            let error = match (until.is_stopped(), left.is_zero()) {
                (true, _) => BulkheadError::Stopped,
                (false, true) => BulkheadError::TimedOut { numbers: self.0.numbers(&state) },
                (false, false) => {
                    state = wait_timeout(&self.0.changed, state, left);
                    continue;
                }
            };
            state.waiting.retain(|other| *other != me);
            drop(state);
            // Who was behind this one may be the first now.
            self.0.changed.notify_all();
            return Err(error);
        }
    }

    /// Takes a place if one is free and nobody waits. Never blocks.
    pub fn try_acquire(&self) -> Option<BulkheadPermit> {
        self.take_free(&mut lock(&self.0.state))
    }

    fn take_free(&self, state: &mut PlacesState) -> Option<BulkheadPermit> {
        let is_free = state.waiting.is_empty() && state.taken < self.0.all;
        is_free.then(|| {
            state.taken += 1;
            BulkheadPermit(self.0.clone())
        })
    }

    /// How things are now.
    pub fn numbers(&self) -> BulkheadNumbers {
        self.0.numbers(&lock(&self.0.state))
    }
}

impl Places {
    fn numbers(&self, state: &PlacesState) -> BulkheadNumbers {
        BulkheadNumbers { places: self.all, taken: state.taken, waiting: state.waiting.len() }
    }
}

impl Drop for BulkheadPermit {
    fn drop(&mut self) {
        lock(&self.0.state).taken -= 1;
        self.0.changed.notify_all();
    }
}

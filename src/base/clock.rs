//! Time as an argument: policies take `now`, and the thread around them asks a [`Clock`].

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::lock::lock;
use super::now::Now;

/// The present moment on both of the system's clocks.
pub fn now() -> Now {
    Now { mono: Instant::now(), wall: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() }
}

/// Where a thread gets its `now` from: the system, or a test's hand.
#[derive(Debug, Clone, Default)]
pub struct Clock(Option<Arc<Manual>>);

struct Manual {
    now: Mutex<Instant>,
    /// Each returns whether it still wants to be notified.
    listeners: Mutex<Vec<Listener>>,
}

type Listener = Box<dyn Fn() -> bool + Send>;

impl fmt::Debug for Manual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Manual").field(&*lock(&self.now)).finish()
    }
}

impl Clock {
    /// The monotonic clock of the system.
    pub fn system() -> Self {
        Self(None)
    }

    /// A clock that stands still until [`Clock::advance`]; clones share it.
    pub fn manual() -> Self {
        Self(Some(Arc::new(Manual { now: Mutex::new(Instant::now()), listeners: Mutex::default() })))
    }

    /// The present moment of this clock.
    pub fn now(&self) -> Instant {
        match &self.0 {
            None => Instant::now(),
            Some(manual) => *lock(&manual.now),
        }
    }

    /// Whether time passes only by [`Clock::advance`]; a thread that waits for a moment of such a clock waits for
    /// [`Clock::on_advance`].
    pub fn is_manual(&self) -> bool {
        self.0.is_some()
    }

    /// Moves a manual clock forward and tells its listeners.
    ///
    /// # Panics
    /// On the system's clock, which nobody can move.
    pub fn advance(&self, by: Duration) {
        let manual = self.0.as_ref().expect("only a manual clock can be advanced");
        *lock(&manual.now) += by;
        lock(&manual.listeners).retain(|listener| listener());
    }

    /// Has `listener` called after each [`Clock::advance`] until it says false; nothing on the system's clock. It must
    /// not block, nor advance the clock.
    pub fn on_advance(&self, listener: impl Fn() -> bool + Send + 'static) {
        if let Some(manual) = &self.0 {
            lock(&manual.listeners).push(Box::new(listener));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_by_hand_and_is_shared() {
        let clock = Clock::manual();
        let twin = clock.clone();
        let start = clock.now();
        assert_eq!(twin.now(), start);
        twin.advance(Duration::from_secs(60));
        assert_eq!(clock.now() - start, Duration::from_secs(60));
    }
}

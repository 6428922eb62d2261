//! Time as an argument: policies take `now`, and the thread around them asks a [`Clock`].

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::lock::lock;

/// Where a thread gets its `now` from: the system, or a test's hand.
#[derive(Debug, Clone, Default)]
pub struct Clock(Option<Arc<Mutex<Instant>>>);

impl Clock {
    /// The monotonic clock of the system.
    pub fn system() -> Self {
        Self(None)
    }

    /// A clock that stands still until [`Clock::advance`]; clones share it.
    pub fn manual() -> Self {
        Self(Some(Arc::new(Mutex::new(Instant::now()))))
    }

    /// The present moment of this clock.
    pub fn now(&self) -> Instant {
        match &self.0 {
            None => Instant::now(),
            Some(now) => *lock(now),
        }
    }

    /// Moves a manual clock forward.
    ///
    /// # Panics
    /// On the system's clock, which nobody can move.
    pub fn advance(&self, by: Duration) {
        let now = self.0.as_ref().expect("only a manual clock can be advanced");
        *lock(now) += by;
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

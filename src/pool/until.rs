//! How long a call may block: a deadline, and a shutdown signal that ends it before.

use std::time::{Duration, Instant};

use crate::base::shutdown::{Level, Shutdown};

/// A call blocks at most until the deadline, and no longer than until the signal is raised.
///
/// ```
/// use std::time::{Duration, Instant};
///
/// use phalanx::base::shutdown::{Level, Shutdown};
/// use phalanx::pool::Until;
///
/// let shutdown = Shutdown::new();
/// let until = Until::new(Instant::now() + Duration::from_secs(5), &shutdown);
/// let at_cancel = until.at_level(Level::Cancel);
/// shutdown.drain();
/// assert!(until.is_stopped() && !at_cancel.is_stopped());
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Until<'a> {
    /// When the call gives up.
    pub deadline: Instant,
    /// What ends it before.
    pub shutdown: &'a Shutdown,
    /// At which level of the signal it ends.
    pub level: Level,
}

impl<'a> Until<'a> {
    /// At most until `deadline`; ends as soon as `shutdown` asks for a stop of any level.
    pub fn new(deadline: Instant, shutdown: &'a Shutdown) -> Self {
        Self { deadline, shutdown, level: Level::Drain }
    }

    /// The same, but it ends only at that level: work that runs may go on while its program drains.
    pub fn at_level(self, level: Level) -> Self {
        Self { level, ..self }
    }

    /// The same, by `deadline` if that is earlier.
    pub fn or_by(self, deadline: Instant) -> Self {
        Self { deadline: self.deadline.min(deadline), ..self }
    }

    /// What is left of the time; nothing once it is over.
    pub fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Whether the signal is at the level.
    pub fn is_stopped(&self) -> bool {
        self.shutdown.level() >= self.level
    }
}

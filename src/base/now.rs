//! One moment on both clocks, as an argument of policies. Pure; [`clock::now`](super::clock::now) reads it.

use std::time::{Duration, Instant};

/// A moment on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// The monotonic clock: for deadlines and pauses.
    pub mono: Instant,
    /// The wall clock, since 1970: for stamps that outlive the process or that others compare. Zero if it stands before
    /// 1970.
    pub wall: Duration,
}

impl Now {
    /// The wall clock in whole seconds since 1970.
    pub fn unix_seconds(&self) -> i64 {
        i64::try_from(self.wall.as_secs()).unwrap_or(i64::MAX)
    }

    /// The wall clock in milliseconds since 1970.
    pub fn unix_millis(&self) -> u64 {
        u64::try_from(self.wall.as_millis()).unwrap_or(u64::MAX)
    }

    /// The wall clock in microseconds since 1970.
    pub fn unix_micros(&self) -> i64 {
        i64::try_from(self.wall.as_micros()).unwrap_or(i64::MAX)
    }
}

impl std::ops::Add<Duration> for Now {
    type Output = Self;

    /// The moment `later`, on both clocks.
    fn add(self, later: Duration) -> Self {
        Self { mono: self.mono + later, wall: self.wall.saturating_add(later) }
    }
}

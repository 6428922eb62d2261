//! How often one kind of trouble is logged. Pure.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// At most one line in this time for each kind: an operator sees within seconds that it goes on, and no flood of one
/// kind hides the others.
pub const QUIET_TIME: Duration = Duration::from_secs(10);

/// Lets the first one through at once, then at most one each [`QUIET_TIME`]. Those held back have no timer: they are
/// counted, and reported with the next one that is let through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Throttle {
    quiet_until: Option<Instant>,
    held_back: u64,
}

impl Throttle {
    /// Whether to log one that happens `now`: how many were held back since the last line, or `None` to be quiet.
    pub fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.quiet_until.is_some_and(|until| now < until) {
            self.held_back += 1;
            return None;
        }
        self.quiet_until = Some(now + QUIET_TIME);
        Some(std::mem::take(&mut self.held_back))
    }

    /// The line to log, if it is time for one: with how many were held back.
    pub fn line(&mut self, now: Instant, text: &dyn Display) -> Option<String> {
        self.admit(now).map(|held_back| match held_back {
            0 => text.to_string(),
            more => format!("{text} (and {more} more like it)"),
        })
    }

    /// Tells of it, if it is time for a line.
    pub fn info(&mut self, now: Instant, text: &dyn Display) {
        if let Some(line) = self.line(now, text) {
            log::info!("{line}");
        }
    }

    /// Warns of it, if it is time for a line.
    pub fn warn(&mut self, now: Instant, text: &dyn Display) {
        if let Some(line) = self.line(now, text) {
            log::warn!("{line}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_at_once_then_one_in_ten_seconds() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut throttle = Throttle::default();
        assert_eq!(throttle.admit(at(0)), Some(0));
        assert_eq!([1, 5_000, 9_999].map(|ms| throttle.admit(at(ms))), [None; 3]);
        assert_eq!(throttle.admit(at(10_000)), Some(3));
        assert_eq!(throttle.admit(at(19_999)), None);
        // However long the pause, the one held back is reported.
        assert_eq!(throttle.admit(at(1_000_000)), Some(1));
        assert_eq!(throttle.admit(at(1_010_000)), Some(0));
    }
}

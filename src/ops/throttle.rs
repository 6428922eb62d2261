//! How often one kind of trouble is logged. Pure.

use std::collections::HashMap;
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
        if self.is_quiet(now) {
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

    /// Whether one that happens `now` would be held back.
    pub fn is_quiet(&self, now: Instant) -> bool {
        self.quiet_until.is_some_and(|until| now < until)
    }

    /// Takes over what another has held back: it is reported with the next one that is let through here.
    pub fn take_over(&mut self, other: &Self) {
        self.held_back += other.held_back;
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

/// Lines of one place of the source within [`QUIET_TIME`]: more than any that tells of one job each, at a hundred jobs
/// a second.
pub const LINES_OF_A_PLACE: u64 = 1000;

/// Places of the source that log, at most; the program has fewer. Those beyond share one.
const PLACES: usize = 4096;

/// Holds back what one place of the source logs beyond [`LINES_OF_A_PLACE`]: the last bound on what a peer can have
/// written into a log, for places without a [`Throttle`] of their own.
#[derive(Debug, Default)]
pub struct PlaceThrottle(HashMap<(&'static str, u32), PlaceLines>);

#[derive(Debug)]
struct PlaceLines {
    since: Instant,
    lines: u64,
    held_back: u64,
}

impl PlaceThrottle {
    /// Whether to log a line of this file and number that comes `now`: how many were held back before it, or `None` to
    /// be quiet.
    pub fn admit(&mut self, place: (&'static str, u32), now: Instant) -> Option<u64> {
        let place = if self.0.len() < PLACES || self.0.contains_key(&place) { place } else { ("", 0) };
        let seen = self.0.entry(place).or_insert(PlaceLines { since: now, lines: 0, held_back: 0 });
        if now.saturating_duration_since(seen.since) >= QUIET_TIME {
            (seen.since, seen.lines) = (now, 0);
        }
        if seen.lines >= LINES_OF_A_PLACE {
            seen.held_back += 1;
            return None;
        }
        seen.lines += 1;
        Some(std::mem::take(&mut seen.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_has_a_thousand_lines_in_ten_seconds_and_others_as_many() {
        let (start, mut places) = (Instant::now(), PlaceThrottle::default());
        let mut admitted = |place, seconds, lines: u64| {
            let now = start + Duration::from_secs(seconds);
            (0..lines).filter_map(|_| places.admit(place, now)).collect::<Vec<_>>()
        };
        assert_eq!(admitted(("a.rs", 1), 0, 1500).len(), 1000);
        assert_eq!(admitted(("a.rs", 2), 0, 3), [0; 3]);
        assert_eq!(admitted(("a.rs", 1), 9, 5), [0; 0]);
        assert_eq!(admitted(("a.rs", 1), 10, 2), [505, 0]);
        for line in 0..2 * PLACES as u32 {
            admitted(("b.rs", line), 0, 1);
        }
        assert!(places.0.len() <= PLACES + 1);
    }

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

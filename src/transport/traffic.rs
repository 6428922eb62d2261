//! What is measured of one connection: the bytes that it has moved, so that liveness can tell a slow peer from a dead
//! one, how long a ping takes, and how the peer's clock goes.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::base::clock::now;
use crate::base::lock::lock;
use crate::base::now::Now;

/// The bytes that one connection has moved since its handshake, as they are on the wire: with frames, and sealed if by
/// TLS; and the times that go with them.
///
/// They are counted as they move, not when a message is whole. The counts only grow; no memory order comes with them,
/// so they tell of progress and of nothing else.
#[derive(Debug, Default)]
pub struct Traffic {
    read: AtomicU64,
    written: AtomicU64,
    times: Mutex<Times>,
}

#[derive(Debug, Default)]
struct Times {
    /// When the ping was sent that is not answered yet.
    pinged: Option<Instant>,
    round_trip: Option<Duration>,
    /// And when it was measured.
    clock_skew: Option<(i64, Now)>,
}

impl Traffic {
    /// Bytes received from the system.
    pub fn read_bytes(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Bytes that the system took for sending, which may still wait there; counted in parts of at most 256 KiB (over
    /// `memory` whole messages).
    pub fn written_bytes(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// How long the last ping took that was answered: the way there and back, and what waited before it on both.
    pub fn round_trip(&self) -> Option<Duration> {
        lock(&self.times).round_trip
    }

    /// Seconds by which the peer's clock is ahead of ours, less than 0 if it is behind; `None` if the peer did not say
    /// what time it is at the handshake. Below a second nothing is known, and it is 0. If our clock was set since, that
    /// counts; what the peer did with its own is not known.
    pub fn clock_skew(&self) -> Option<i64> {
        let (skew, then) = lock(&self.times).clock_skew?;
        Some(skew.saturating_sub(steps(then, now())))
    }

    pub(super) fn count_read(&self, bytes: usize) {
        self.read.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn count_written(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A ping leaves. One that is not answered yet goes on counting: which of two a pong answers is not known.
    pub(crate) fn pinged(&self, now: Instant) {
        lock(&self.times).pinged.get_or_insert(now);
    }

    /// A pong has come; one that nobody has asked for tells nothing.
    pub(crate) fn ponged(&self, now: Instant) {
        let mut times = lock(&self.times);
        if let Some(pinged) = times.pinged.take() {
            times.round_trip = Some(now.saturating_duration_since(pinged));
        }
    }

    pub(super) fn set_clock_skew(&self, seconds: Option<i64>) {
        lock(&self.times).clock_skew = seconds.map(|seconds| (seconds, now()));
    }
}

/// By how much a clock is ahead of ours that said `theirs`, in whole seconds, at some moment between `asked` and
/// `answered` of ours. Seconds are cut off, so of a difference below one nothing is known.
pub(super) fn clock_skew(theirs: u64, asked: Duration, answered: Duration) -> i64 {
    let signed = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX);
    let (theirs, asked, answered) = (signed(theirs), signed(asked.as_secs()), signed(answered.as_secs()));
    match (theirs.saturating_sub(answered), theirs.saturating_sub(asked)) {
        (ahead, _) if ahead > 0 => ahead,
        (_, behind) if behind < 0 => behind,
        _ => 0,
    }
}

/// By how many whole seconds our clock was set forward between two moments, less than 0 if back.
fn steps(then: Now, now: Now) -> i64 {
    let passed = now.mono.saturating_duration_since(then.mono).as_secs_f64();
    (now.wall.as_secs_f64() - then.wall.as_secs_f64() - passed) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pong_answers_the_oldest_ping_and_no_ping_nothing() {
        let (traffic, start) = (Traffic::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        traffic.ponged(start);
        assert_eq!(traffic.round_trip(), None);
        traffic.pinged(at(1));
        traffic.pinged(at(3));
        traffic.ponged(at(4));
        assert_eq!(traffic.round_trip(), Some(Duration::from_secs(3)));
        traffic.ponged(at(9));
        assert_eq!(traffic.round_trip(), Some(Duration::from_secs(3)));
    }

    #[test]
    fn a_clock_is_off_by_what_the_way_to_it_cannot_explain() {
        let ms = Duration::from_millis;
        for (theirs, asked, answered, skew) in [
            (100, 100_000, 100_900, 0),
            (100, 100_900, 101_100, 0),
            (101, 100_900, 101_100, 0),
            (105, 100_000, 102_000, 3),
            (90, 100_000, 102_000, -10),
            (0, 100_000, 100_000, -100),
        ] {
            assert_eq!(clock_skew(theirs, ms(asked), ms(answered)), skew, "{theirs} in {asked}..{answered}");
        }
    }

    #[test]
    fn a_clock_that_is_set_counts_from_then_on() {
        let start = now();
        let moment = |mono: u64, wall: i64| Now {
            mono: start.mono + Duration::from_secs(mono),
            wall: Duration::from_secs(start.wall.as_secs().saturating_add_signed(wall)),
        };
        let then = moment(0, 0);
        for (mono, wall, set) in [(0, 0, 0), (60, 60, 0), (60, 90, 30), (60, -60, -120)] {
            assert_eq!(steps(then, moment(mono, wall)), set);
        }
    }
}

//! What is measured of one connection: the bytes that it has moved, so that liveness can tell a slow peer from a dead
//! one, how long a ping takes, and how the peer's clock goes.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::base::lock::lock;

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
    clock_skew: Option<i64>,
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

    /// Seconds by which the peer's clock was ahead of ours at the handshake, less than 0 if it was behind; `None` if
    /// the peer did not say what time it is. Below a second nothing is known, and it is 0.
    pub fn clock_skew(&self) -> Option<i64> {
        lock(&self.times).clock_skew
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
        lock(&self.times).clock_skew = seconds;
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
}

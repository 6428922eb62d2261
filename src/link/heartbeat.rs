//! When to ping, and when a connection counts as dead. Pure: `now` is an argument.
//!
//! Liveness is ours, because a peer that vanishes without a FIN gives the reader no error. Any byte counts, not only
//! pongs and whole messages, so that neither a busy peer is given up for a late pong nor a slow one for a large
//! message.
//!
//! Bytes are only counted as they move; [`Progress`] looks at the counts now and then, so a verdict comes up to two
//! [`LivenessConfig::ping_after`] later than its limit, and never earlier.

use std::time::{Duration, Instant};

/// The numbers of [`judge`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LivenessConfig {
    /// Silence after which the peer is pinged.
    pub ping_after: Duration,
    /// Silence after which the connection is given up.
    pub dead_after: Duration,
    /// How long a write may move nothing before the connection is given up. What moves is seen when the system has
    /// taken it, in parts of up to 256 KiB, so this is also the time that each part has.
    pub stuck_after: Duration,
}

impl Default for LivenessConfig {
    /// 30 s, 90 s, 60 s: two pings without any answer.
    fn default() -> Self {
        Self {
            ping_after: Duration::from_secs(30),
            dead_after: Duration::from_secs(90),
            stuck_after: Duration::from_secs(60),
        }
    }
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing; look again then.
    Wait(Instant),
    /// Send one ping, and look again then.
    Ping(Instant),
    /// The peer was silent for too long: kick, without a polite close.
    Silent,
    /// A write makes no progress: kick.
    Stuck,
}

/// What the looks at the byte counts of one connection have found so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    read: u64,
    written: u64,
    /// When the last received byte was noticed.
    pub last_read: Instant,
    /// When the last written byte was noticed.
    pub last_written: Instant,
}

impl Progress {
    /// A connection that begins `now`, with the bytes that it has `read` and `written` before.
    pub fn new(now: Instant, read: u64, written: u64) -> Self {
        Self { read, written, last_read: now, last_written: now }
    }

    /// Notes what has moved since the last look; `read` and `written` are the present counts.
    pub fn look(&mut self, now: Instant, read: u64, written: u64) {
        if read != self.read {
            (self.read, self.last_read) = (read, now);
        }
        if written != self.written {
            (self.written, self.last_written) = (written, now);
        }
    }
}

/// Judges one connection from when the peer was last heard and since when a write has moved nothing, if one is
/// under way.
pub fn judge(config: &LivenessConfig, now: Instant, last_read: Instant, writing_since: Option<Instant>) -> Verdict {
    let silence = now.saturating_duration_since(last_read);
    if silence >= config.dead_after {
        return Verdict::Silent;
    }
    let stuck_at = writing_since.map(|since| since + config.stuck_after);
    if stuck_at.is_some_and(|at| at <= now) {
        return Verdict::Stuck;
    }
    let dead_at = last_read + config.dead_after;
    if silence >= config.ping_after {
        // The next look comes a ping interval later, or when the verdict may become final.
        return Verdict::Ping(dead_at.min(now + config.ping_after));
    }
    Verdict::Wait((last_read + config.ping_after).min(dead_at))
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_silent_peer_is_pinged_and_then_given_up() {
        let config = LivenessConfig::default();
        let t = Instant::now();
        assert_eq!(judge(&config, t, t, None), Verdict::Wait(t + 30 * S));
        assert_eq!(judge(&config, t + 30 * S, t, None), Verdict::Ping(t + 60 * S));
        assert_eq!(judge(&config, t + 60 * S, t, None), Verdict::Ping(t + 90 * S));
        assert_eq!(judge(&config, t + 90 * S, t, None), Verdict::Silent);
    }

    #[test]
    fn each_count_that_grows_restarts_its_own_clock() {
        let t = Instant::now();
        let mut progress = Progress::new(t, 7, 9);
        let seen = |progress: &Progress| (progress.last_read - t, progress.last_written - t);
        progress.look(t + S, 7, 9);
        assert_eq!(seen(&progress), (Duration::ZERO, Duration::ZERO));
        progress.look(t + 2 * S, 8, 9);
        assert_eq!(seen(&progress), (2 * S, Duration::ZERO));
        progress.look(t + 3 * S, 8, 1000);
        assert_eq!(seen(&progress), (2 * S, 3 * S));
        progress.look(t + 4 * S, 8, 1000);
        assert_eq!(seen(&progress), (2 * S, 3 * S));
    }

    #[test]
    fn any_traffic_counts_as_life() {
        let config = LivenessConfig::default();
        let t = Instant::now();
        assert_eq!(judge(&config, t + 1000 * S, t + 999 * S, None), Verdict::Wait(t + 1029 * S));
    }

    #[test]
    fn a_write_without_progress_is_given_up_although_the_peer_talks() {
        let config = LivenessConfig::default();
        let t = Instant::now();
        assert_eq!(judge(&config, t + 61 * S, t + 61 * S, Some(t)), Verdict::Stuck);
        assert_eq!(judge(&config, t + 10 * S, t + 10 * S, Some(t)), Verdict::Wait(t + 40 * S));
    }
}

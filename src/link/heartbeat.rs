//! When to ping, and when a connection counts as dead. Pure: `now` is an argument.
//!
//! Liveness is ours, because a peer that vanishes without a FIN gives the reader no error. Any traffic counts, not only
//! pongs, so that a busy peer is never cut off for a late pong.

use std::time::{Duration, Instant};

/// The numbers of [`judge`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LivenessConfig {
    /// Silence after which the peer is pinged.
    pub ping_after: Duration,
    /// Silence after which the connection is given up.
    pub dead_after: Duration,
    /// How long one write may make no progress before the connection is given up.
    pub stuck_after: Duration,
}

impl Default for LivenessConfig {
    /// 30 s, 90 s, 60 s: three pings without any answer.
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
    /// The peer said nothing for too long: kick, without a polite close.
    Silent,
    /// A write makes no progress: kick.
    Stuck,
}

/// Judges one connection from when the peer was last heard and since when a write has been under way.
pub fn judge(config: &LivenessConfig, now: Instant, heard: Instant, writing_since: Option<Instant>) -> Verdict {
    let silence = now.saturating_duration_since(heard);
    if silence >= config.dead_after {
        return Verdict::Silent;
    }
    let stuck_at = writing_since.map(|since| since + config.stuck_after);
    if stuck_at.is_some_and(|at| at <= now) {
        return Verdict::Stuck;
    }
    let dead_at = heard + config.dead_after;
    if silence >= config.ping_after {
        // The next look comes a ping interval later, or when the verdict may become final.
        return Verdict::Ping(dead_at.min(now + config.ping_after));
    }
    Verdict::Wait((heard + config.ping_after).min(dead_at))
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

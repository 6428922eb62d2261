//! When to try again: exponential backoff with full jitter. Pure: time and randomness are arguments.

use std::time::{Duration, Instant};

/// `base`, doubled `attempt` times, and at most `cap`.
pub fn exponential(base: Duration, cap: Duration, attempt: u32) -> Duration {
    base.saturating_mul(2u32.saturating_pow(attempt.min(31))).min(cap)
}

/// The numbers of a [`Backoff`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BackoffConfig {
    /// Ceiling of the first delay.
    pub base: Duration,
    /// Ceiling of every delay.
    pub cap: Duration,
    /// A connection that lived this long makes the next delay start from `base` again.
    pub stable_after: Duration,
}

impl Default for BackoffConfig {
    /// 0.5 s, 30 s, 60 s.
    fn default() -> Self {
        Self { base: Duration::from_millis(500), cap: Duration::from_secs(30), stable_after: Duration::from_secs(60) }
    }
}

/// Counts failed attempts and says how long to wait before the next. It never gives up.
#[derive(Debug, Clone)]
pub struct Backoff {
    config: BackoffConfig,
    attempt: u32,
    up_since: Option<Instant>,
}

impl Backoff {
    /// A schedule at its beginning.
    pub fn new(config: BackoffConfig) -> Self {
        Self { config, attempt: 0, up_since: None }
    }

    /// How many delays were given since the last reset.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// A connection is up; whether that resets the schedule is decided when it is lost.
    pub fn connected(&mut self, now: Instant) {
        self.up_since = Some(now);
    }

    /// The connection was lost or the attempt failed: the delay before the next attempt.
    ///
    /// Full jitter: uniform between nothing and the ceiling, which doubles with each attempt up to the cap, so that
    /// many clients that lost one server do not come back at once. `unit` is a random number in `0.0..1.0`.
    pub fn next_delay(&mut self, now: Instant, unit: f64) -> Duration {
        if let Some(up_since) = self.up_since.take()
            && now.saturating_duration_since(up_since) >= self.config.stable_after
        {
            self.attempt = 0;
        }
        let ceiling = exponential(self.config.base, self.config.cap, self.attempt);
        self.attempt = self.attempt.saturating_add(1);
        ceiling.mul_f64(unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALMOST_ONE: f64 = 1.0 - f64::EPSILON;

    fn ceilings(backoff: &mut Backoff, now: Instant, n: usize) -> Vec<u128> {
        (0..n).map(|_| backoff.next_delay(now, ALMOST_ONE).as_millis().div_ceil(100) * 100).collect()
    }

    #[test]
    fn ceilings_double_up_to_the_cap_for_ever() {
        let mut backoff = Backoff::new(BackoffConfig::default());
        let now = Instant::now();
        assert_eq!(ceilings(&mut backoff, now, 8), [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
        for _ in 0..10_000 {
            assert!(backoff.next_delay(now, ALMOST_ONE) <= Duration::from_secs(30));
        }
    }

    #[test]
    fn jitter_is_full() {
        let mut backoff = Backoff::new(BackoffConfig::default());
        assert_eq!(backoff.next_delay(Instant::now(), 0.0), Duration::ZERO);
        assert_eq!(backoff.next_delay(Instant::now(), 0.5), Duration::from_millis(500));
    }

    #[test]
    fn only_a_stable_connection_resets() {
        let mut backoff = Backoff::new(BackoffConfig::default());
        let now = Instant::now();
        ceilings(&mut backoff, now, 5);
        backoff.connected(now);
        assert_eq!(ceilings(&mut backoff, now + Duration::from_secs(59), 1), [16000]);
        backoff.connected(now);
        assert_eq!(ceilings(&mut backoff, now + Duration::from_secs(60), 1), [500]);
    }
}

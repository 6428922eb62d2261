//! Whether a transfer is tried again, and when. Pure: time and randomness are arguments.

use std::time::{Duration, Instant};

use crate::base::backoff::{Backoff, BackoffConfig};
use crate::ops::cause::Cause;

/// How often a transfer is tried: with full jitter the waits between five attempts are under 8 s together.
pub(super) const ATTEMPTS: u32 = 5;

/// Counts the tries of one transfer.
#[derive(Debug)]
pub(super) struct Tries {
    failed: u32,
    backoff: Backoff,
}

impl Tries {
    pub(super) fn new() -> Self {
        Self { failed: 0, backoff: Backoff::new(BackoffConfig::default()) }
    }

    /// The last try has brought some of what is wanted, so the next goes on from there: those before do not count.
    pub(super) fn progress(&mut self) {
        *self = Self::new();
    }

    /// How long to wait before the next try; `None` if there is none, because it would fail again, there were enough,
    /// or it would not begin in the time that is left.
    ///
    /// A server that asks to come again later is obeyed, to the second, and such tries are not counted: its word and
    /// the deadline bound them. `unit` is a random number in `0.0..1.0`.
    pub(super) fn wait(
        &mut self,
        cause: Cause,
        asked: Option<Duration>,
        left: Duration,
        (now, unit): (Instant, f64),
    ) -> Option<Duration> {
        if !cause.passing {
            return None;
        }
        if asked.is_none() {
            self.failed += 1;
            if self.failed >= ATTEMPTS {
                return None;
            }
        }
        let wait = self.backoff.next_delay(now, unit).max(asked.unwrap_or_default());
        (wait < left).then_some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn wait(tries: &mut Tries, cause: Cause, asked: Option<u64>, left: Duration) -> Option<Duration> {
        tries.wait(cause, asked.map(Duration::from_secs), left, (Instant::now(), 0.5))
    }

    #[test]
    fn only_what_passes_is_tried_again_and_a_few_times() {
        let mut tries = Tries::new();
        let waits: Vec<_> = std::iter::from_fn(|| wait(&mut tries, Cause::NETWORK_PASSING, None, MINUTE)).collect();
        assert_eq!(waits, [250, 500, 1000, 2000].map(Duration::from_millis));
        for cause in [Cause::JOB, Cause::NETWORK, Cause::OPERATOR] {
            assert_eq!(wait(&mut Tries::new(), cause, None, MINUTE), None);
            assert_eq!(wait(&mut Tries::new(), cause, Some(1), MINUTE), None);
        }
    }

    #[test]
    fn tries_that_brought_something_do_not_count() {
        let mut tries = Tries::new();
        for _ in 0..20 {
            tries.progress();
            assert_eq!(wait(&mut tries, Cause::NETWORK_PASSING, None, MINUTE), Some(Duration::from_millis(250)));
        }
    }

    #[test]
    fn a_server_s_time_is_kept_and_never_goes_past_the_deadline() {
        let mut tries = Tries::new();
        for _ in 0..20 {
            assert_eq!(wait(&mut tries, Cause::NETWORK_PASSING, Some(59), MINUTE), Some(Duration::from_secs(59)));
        }
        assert_eq!(wait(&mut tries, Cause::NETWORK_PASSING, Some(60), MINUTE), None);
        assert_eq!(wait(&mut tries, Cause::NETWORK_PASSING, Some(u64::MAX), MINUTE), None);
        // Zero means that we choose, and then as without.
        assert_eq!(wait(&mut Tries::new(), Cause::NETWORK_PASSING, Some(0), MINUTE), Some(Duration::from_millis(250)));
        assert_eq!(wait(&mut Tries::new(), Cause::NETWORK_PASSING, None, Duration::ZERO), None);
    }
}

//! When a failed task is tried again. Pure.

use std::fmt;
use std::time::{Duration, Instant};

use crate::base::backoff::{Backoff, BackoffConfig};

type Predicate<E> = Box<dyn Fn(&E) -> bool + Send + Sync>;

/// How often, after which delays, and for which errors a task is tried again: exponential with full jitter.
///
/// A panic is not tried again unless [`RetryPolicy::also_panics`] says so; a cancel or an exceeded total limit never
/// is.
pub struct RetryPolicy<E> {
    attempts: u32,
    delays: BackoffConfig,
    retryable: Option<Predicate<E>>,
    panics: bool,
}

impl<E> fmt::Debug for RetryPolicy<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryPolicy")
            .field("attempts", &self.attempts)
            .field("delays", &self.delays)
            .finish_non_exhaustive()
    }
}

impl<E> RetryPolicy<E> {
    /// At most so many attempts in all; delays of up to 0.5 s that double up to 30 s; every error.
    pub fn new(attempts: u32) -> Self {
        Self { attempts, delays: BackoffConfig::default(), retryable: None, panics: false }
    }

    /// The ceiling of the first delay, and of all.
    pub fn delays(mut self, first: Duration, most: Duration) -> Self {
        self.delays = BackoffConfig { base: first, cap: most, ..self.delays };
        self
    }

    /// Only errors for which this is true; a panic of it counts as false.
    pub fn only_if(mut self, retryable: impl Fn(&E) -> bool + Send + Sync + 'static) -> Self {
        self.retryable = Some(Box::new(retryable));
        self
    }

    /// A panic is tried again, too.
    pub fn also_panics(mut self) -> Self {
        self.panics = true;
        self
    }
}

/// The policy of one task, and how far it has come.
#[derive(Debug)]
pub(super) struct Retries<E> {
    policy: RetryPolicy<E>,
    backoff: Backoff,
    begun: u32,
}

impl<E> Retries<E> {
    pub(super) fn new(policy: RetryPolicy<E>) -> Self {
        Self { backoff: Backoff::new(policy.delays), policy, begun: 1 }
    }

    /// An attempt failed, with this error or by a panic: the delay before the next, if there is one. `unit` is a random
    /// number in `0.0..1.0`.
    pub(super) fn next(&mut self, error: Option<&E>, now: Instant, unit: f64) -> Option<Duration> {
        let wanted = match error {
            Some(error) => self.policy.retryable.as_ref().is_none_or(|retryable| retryable(error)),
            None => self.policy.panics,
        };
        if !wanted || self.begun >= self.policy.attempts {
            return None;
        }
        self.begun += 1;
        Some(self.backoff.next_delay(now, unit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_gives_up_after_the_last_attempt_and_doubles_in_between() {
        let now = Instant::now();
        let mut retries: Retries<&str> =
            Retries::new(RetryPolicy::new(4).delays(Duration::from_secs(1), Duration::from_secs(3)));
        let delays: Vec<_> = std::iter::from_fn(|| retries.next(Some(&"e"), now, 0.5)).collect();
        assert_eq!(delays, [500, 1000, 1500].map(Duration::from_millis));
    }

    #[test]
    fn the_predicate_decides_and_a_panic_is_another_matter() {
        let now = Instant::now();
        let mut picky = Retries::new(RetryPolicy::new(9).only_if(|error: &u32| *error > 5));
        assert!(picky.next(Some(&6), now, 0.0).is_some());
        assert!(picky.next(Some(&5), now, 0.0).is_none());
        assert!(picky.next(None, now, 0.0).is_none());
        assert!(Retries::<u32>::new(RetryPolicy::new(2).also_panics()).next(None, now, 0.0).is_some());
    }
}

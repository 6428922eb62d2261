//! Tries a call again: exponential backoff with full jitter, only after errors that the caller says may go away, inside
//! one deadline for all tries and a budget for all calls.
//!
//! Blocks in: the caller's call, which must end by itself at the deadline and at a stop, and between two calls in
//! [`Shutdown::wait_for`](crate::base::shutdown::Shutdown::wait_for).

use std::fmt;
use std::time::{Duration, Instant};

use super::budget::RetryBudget;
use super::until::Until;
use crate::base::backoff::{Backoff, BackoffConfig};
use crate::base::rng::Rng;
use crate::base::waits::waiting_unless_noted;

/// The numbers of a [`Retry`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryConfig {
    /// Tries in all, with the first.
    pub attempts: u32,
    /// Ceiling of the first delay; it doubles with each.
    pub base: Duration,
    /// Ceiling of every delay.
    pub cap: Duration,
}

impl Default for RetryConfig {
    /// 3 tries; 0.2 s, up to 5 s.
    fn default() -> Self {
        Self { attempts: 3, base: Duration::from_millis(200), cap: Duration::from_secs(5) }
    }
}

/// One call with its tries.
///
/// ```
/// use std::time::{Duration, Instant};
///
/// use phalanx::base::shutdown::Shutdown;
/// use phalanx::pool::{GaveUp, Retry, RetryConfig, Until};
///
/// let shutdown = Shutdown::new();
/// let until = Until::new(Instant::now() + Duration::from_secs(5), &shutdown);
/// let config = RetryConfig { base: Duration::from_millis(1), ..RetryConfig::default() };
/// let third = Retry::new(config, until).run(|attempt| if attempt < 3 { Err("busy") } else { Ok(attempt) }, |_| true);
/// assert_eq!(third.unwrap(), 3);
///
/// let refused = Retry::new(config, until).run(|_| Err::<(), _>("unauthorised"), |error| *error != "unauthorised");
/// let error = refused.unwrap_err();
/// assert_eq!((error.attempts, error.why), (1, GaveUp::NotRetryable));
/// ```
#[derive(Debug)]
pub struct Retry<'a> {
    config: RetryConfig,
    until: Until<'a>,
    budget: Option<&'a RetryBudget>,
    rng: Rng,
}

/// Why there was no other try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum GaveUp {
    /// The caller said that this error does not go away.
    NotRetryable,
    /// All tries were made.
    Attempts,
    /// The next one would begin after the deadline.
    Deadline,
    /// Second tries are used up, because too many calls fail.
    Budget,
    /// A stop was asked for.
    Stopped,
}

impl fmt::Display for GaveUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotRetryable => "trying again would not help",
            Self::Attempts => "that was the last try",
            Self::Deadline => "no time for another try",
            Self::Budget => "too many calls fail to try again",
            Self::Stopped => "stopped",
        })
    }
}

/// The last error, and why it was the last.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{error} (try {attempts}: {why})")]
pub struct RetryError<E> {
    /// What the last try ended with.
    pub error: E,
    /// How many tries were made, at least one.
    pub attempts: u32,
    /// Why there was no other.
    pub why: GaveUp,
}

impl<'a> Retry<'a> {
    /// A call that has until then for all its tries.
    pub fn new(config: RetryConfig, until: Until<'a>) -> Self {
        Self { config, until, budget: None, rng: Rng::from_entropy() }
    }

    /// Each try but the first takes one from `budget`, and a success pays into it.
    pub fn budget(self, budget: &'a RetryBudget) -> Self {
        Self { budget: Some(budget), ..self }
    }

    /// Takes the jitter from `rng`, for a run that can be repeated.
    pub fn rng(self, rng: Rng) -> Self {
        Self { rng, ..self }
    }

    /// Runs `call` with the number of the try, from 1, until it succeeds or there is no other try. `retryable` says
    /// which errors may go away.
    ///
    /// Blocks as long as the calls do, and between them until the delay is over or a stop is asked for. A delay that
    /// would not end before the deadline is not begun. The first try is always made.
    ///
    /// # Errors
    /// The last error of `call`, with why it was the last.
    pub fn run<T, E>(
        mut self,
        mut call: impl FnMut(u32) -> Result<T, E>,
        retryable: impl Fn(&E) -> bool,
    ) -> Result<T, RetryError<E>> {
        // Nothing is ever up here for so long that the delays begin anew.
        let config = BackoffConfig { base: self.config.base, cap: self.config.cap, stable_after: Duration::MAX };
        let mut backoff = Backoff::new(config);
        let mut attempts = 0;
        loop {
            attempts += 1;
            let error = match call(attempts) {
                Ok(value) => {
                    self.budget.into_iter().for_each(|budget| budget.succeeded(Instant::now()));
                    return Ok(value);
                }
                Err(error) => error,
            };
            let next = if retryable(&error) { self.next(attempts, &mut backoff) } else { Err(GaveUp::NotRetryable) };
            if let Err(why) = next {
                return Err(RetryError { error, attempts, why });
            }
        }
    }

    /// Waits for the next try, if there is one. The budget is asked last: a try that is not made costs nothing.
    fn next(&mut self, attempts: u32, backoff: &mut Backoff) -> Result<(), GaveUp> {
        let Until { deadline, shutdown, level } = self.until;
        if self.until.is_stopped() {
            return Err(GaveUp::Stopped);
        }
        if attempts >= self.config.attempts {
            return Err(GaveUp::Attempts);
        }
        let now = Instant::now();
        let delay = backoff.next_delay(now, self.rng.unit());
        if delay >= deadline.saturating_duration_since(now) {
            return Err(GaveUp::Deadline);
        }
        if self.budget.is_some_and(|budget| !budget.withdraw(now)) {
            return Err(GaveUp::Budget);
        }
        let _waiting = waiting_unless_noted("the next try", now.checked_add(delay));
        if shutdown.wait_for(level, delay) { Err(GaveUp::Stopped) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::shutdown::{Level, Shutdown};
    use crate::base::thread::{Kick, spawn};
    use crate::base::wait::far;
    use crate::pool::BudgetConfig;

    const QUICK: RetryConfig =
        RetryConfig { attempts: 5, base: Duration::from_millis(1), cap: Duration::from_millis(2) };

    /// Slower than any test waits.
    const SLOW: RetryConfig =
        RetryConfig { attempts: 5, base: Duration::from_secs(7200), cap: Duration::from_secs(7200) };

    fn fails(retry: Retry<'_>) -> RetryError<&'static str> {
        retry.run(|_| Err::<(), _>("refused"), |_| true).unwrap_err()
    }

    #[test]
    fn it_tries_so_often_and_keeps_the_last_error() {
        let shutdown = Shutdown::new();
        let until = Until::new(far(), &shutdown);
        let error = Retry::new(QUICK, until).run(Err::<(), u32>, |_| true).unwrap_err();
        assert_eq!(error, RetryError { error: 5, attempts: 5, why: GaveUp::Attempts });
        assert_eq!(error.to_string(), "5 (try 5: that was the last try)");
        let error = Retry::new(QUICK, until).run(Err::<(), u32>, |error| *error < 2).unwrap_err();
        assert_eq!(error, RetryError { error: 2, attempts: 2, why: GaveUp::NotRetryable });
    }

    #[test]
    fn a_delay_that_ends_after_the_deadline_is_not_begun() {
        let shutdown = Shutdown::new();
        // Of a delay below two hours, one in 120 is below a minute; this seed's is not.
        let error = fails(Retry::new(SLOW, Until::new(far(), &shutdown)).rng(Rng::new(1)));
        assert_eq!((error.attempts, error.why), (1, GaveUp::Deadline));
    }

    #[test]
    fn a_stop_ends_the_wait() {
        let shutdown = Shutdown::new();
        let stopped = shutdown.clone();
        let (tx, rx) = crossbeam_channel::bounded(1);
        let thread = spawn("t-retry", Kick::dropped("the signal"), move || {
            let day = Instant::now() + Duration::from_secs(24 * 3600);
            let until = Until::new(day, &stopped).at_level(Level::Cancel);
            let fail = |attempt| {
                tx.send(attempt).unwrap();
                Err::<(), _>(())
            };
            Retry::new(SLOW, until).rng(Rng::new(1)).run(fail, |()| true).unwrap_err()
        });
        assert_eq!(rx.recv_deadline(far()), Ok(1));
        shutdown.drain();
        shutdown.cancel();
        let error = thread.join_by(far()).unwrap();
        assert_eq!((error.attempts, error.why), (1, GaveUp::Stopped));
    }

    #[test]
    fn a_spent_budget_leaves_only_first_tries() {
        let (shutdown, now) = (Shutdown::new(), Instant::now());
        let until = Until::new(far(), &shutdown);
        let budget = RetryBudget::new(BudgetConfig { per_success: 1.0, per_second: 0.0, most: 6.0 }, now);
        let fail = || fails(Retry::new(QUICK, until).budget(&budget));
        let tries: Vec<_> = (0..4).map(|_| fail()).map(|error| (error.attempts, error.why)).collect();
        assert_eq!(tries, [(5, GaveUp::Attempts), (3, GaveUp::Budget), (1, GaveUp::Budget), (1, GaveUp::Budget)]);
        Retry::new(QUICK, until).budget(&budget).run(|_| Ok::<_, ()>(()), |()| true).unwrap();
        assert_eq!(fail().attempts, 2, "the success has paid for one");
    }
}

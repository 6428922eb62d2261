//! What downloads and uploads share: trying again, and copying that ends at the deadline and on cancel.

use std::io::{self, Read, Write};
use std::time::Instant;

use crate::base::backoff::{Backoff, BackoffConfig};
use crate::base::rng::Rng;
use crate::base::shutdown::{Level, Shutdown};
use crate::net::http::client::HttpError;

/// How often a transfer is tried: with full jitter the waits between five attempts are under 8 s together.
pub(super) const ATTEMPTS: u32 = 5;

/// Bytes copied between two looks at the clock.
const COPY_BYTES: usize = 256 << 10;

/// The token and the deadline that bound a piece of work.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds<'a> {
    pub(super) token: &'a Shutdown,
    pub(super) deadline: Instant,
}

impl Bounds<'_> {
    /// # Errors
    /// [`io::ErrorKind::Interrupted`] after a cancel, [`io::ErrorKind::TimedOut`] after the deadline.
    pub(super) fn check(&self) -> io::Result<()> {
        if self.token.is_cancelled() {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "cancelled"));
        }
        if Instant::now() >= self.deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the deadline passed"));
        }
        Ok(())
    }

    /// Copies at most `max` bytes and gives how many; the caller sees from `max` being reached that there are more.
    pub(super) fn copy(&self, from: &mut impl Read, to: &mut impl Write, max: u64) -> io::Result<u64> {
        let mut from = from.take(max);
        let mut buffer = vec![0; COPY_BYTES];
        let mut total = 0;
        loop {
            self.check()?;
            match from.read(&mut buffer)? {
                0 => return Ok(total),
                n => to.write_all(&buffer[..n])?,
            }
            total = max - from.limit();
        }
    }

    /// Makes a request until it succeeds, fails for good, or [`ATTEMPTS`] or the deadline are used up.
    ///
    /// # Errors
    /// That of the last attempt.
    pub(super) fn retry<T>(&self, mut attempt: impl FnMut() -> Result<T, HttpError>) -> Result<T, HttpError> {
        let mut backoff = Backoff::new(BackoffConfig::default());
        let mut rng = Rng::from_entropy();
        loop {
            let error = match attempt() {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let delay = backoff.next_delay(Instant::now(), rng.unit());
            if !error.is_transient() || backoff.attempt() >= ATTEMPTS || Instant::now() + delay >= self.deadline {
                return Err(error);
            }
            log::warn!("attempt {} of {ATTEMPTS}: {error}; again in {delay:.1?}", backoff.attempt());
            // After a cancel the next attempt says so itself.
            self.token.wait_for(Level::Cancel, delay);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn busy() -> HttpError {
        HttpError::Status { url: "http://h/".into(), status: 503, excerpt: String::new() }
    }

    fn cancelled() -> HttpError {
        HttpError::Cancelled { url: "http://h/".into() }
    }

    #[test]
    fn a_cancel_ends_the_wait_and_the_next_attempt_says_so() {
        let token = Shutdown::new();
        let bounds = Bounds { token: &token, deadline: Instant::now() + Duration::from_secs(60) };
        let mut attempts = 0;
        let error = bounds.retry(|| -> Result<(), _> {
            attempts += 1;
            if token.is_cancelled() {
                return Err(cancelled());
            }
            token.cancel();
            Err(busy())
        });
        assert!(matches!(error, Err(HttpError::Cancelled { .. })));
        assert_eq!(attempts, 2);
    }

    #[test]
    fn nothing_is_tried_again_past_the_deadline_or_for_a_permanent_error() {
        let token = Shutdown::new();
        for (deadline, error) in [(Instant::now(), busy()), (Instant::now() + Duration::from_secs(60), cancelled())] {
            let mut once = Some(error);
            let result: Result<(), _> = Bounds { token: &token, deadline }.retry(|| Err(once.take().unwrap()));
            assert!(result.is_err());
        }
    }

    #[test]
    fn a_copy_stops_at_its_limit() {
        let token = Shutdown::new();
        let bounds = Bounds { token: &token, deadline: Instant::now() + Duration::from_secs(60) };
        for (len, max, copied) in [(10, 20, 10), (20, 20, 20), (1_000_000, 300_000, 300_000)] {
            let mut to = Vec::new();
            assert_eq!(bounds.copy(&mut vec![7u8; len].as_slice(), &mut to, max).unwrap(), copied);
            assert_eq!(to.len() as u64, copied);
        }
    }
}

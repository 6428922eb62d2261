//! What downloads and uploads share: trying again, and copying that ends at the deadline and on cancel.

use std::io::{self, Read, Write};
use std::time::Instant;

use crate::base::backoff::{Backoff, BackoffConfig};
use crate::base::rng::Rng;
use crate::base::shutdown::{Level, Shutdown};
use crate::transport::http::HttpError;

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

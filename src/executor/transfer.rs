//! What downloads and uploads share: trying again, and copying that ends at the deadline and on cancel.

use std::io::{self, Read, Write};
use std::time::Instant;

use super::tries::Tries;
use crate::base::rng::Rng;
use crate::base::shutdown::{Level, Shutdown};
use crate::net::http::client::HttpError;
use crate::ops::cause::{Cause, Fault};
use crate::ops::errors::{ErrorClass, ErrorHandler};

/// Bytes copied between two looks at the clock.
const COPY_BYTES: usize = 256 << 10;

/// What an error of a file of the job says: of this machine if it is full or locked, else of what the job asks for.
pub(super) fn of_file(error: &io::Error) -> Cause {
    match Cause::of_io(error) {
        cause if cause.fault == Fault::Operator => cause,
        _ => Cause::JOB,
    }
}

/// The token and the deadline that bound a piece of work, and who is told of what it tries again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds<'a> {
    pub(super) token: &'a Shutdown,
    pub(super) deadline: Instant,
    pub(super) errors: &'a ErrorHandler,
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

    /// Makes a request until it succeeds, fails for good, or its tries or the deadline are used up.
    ///
    /// # Errors
    /// That of the last attempt.
    pub(super) fn retry<T>(&self, mut attempt: impl FnMut(&mut Tries) -> Result<T, HttpError>) -> Result<T, HttpError> {
        let mut tries = Tries::new();
        let mut rng = Rng::from_entropy();
        loop {
            let error = match attempt(&mut tries) {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let now = Instant::now();
            let left = self.deadline.saturating_duration_since(now);
            let Some(wait) = tries.wait(error.cause(), error.retry_after(), left, (now, rng.unit())) else {
                return Err(error);
            };
            self.errors.report(ErrorClass::Retry, "transfer", &format_args!("{error}; again in {wait:.1?}"));
            // After a cancel the next attempt says so itself.
            self.token.wait_for(Level::Cancel, wait);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn busy() -> HttpError {
        HttpError::Status { url: "http://h/".into(), status: 503, excerpt: String::new(), retry_after: None }
    }

    fn cancelled() -> HttpError {
        HttpError::Cancelled { url: "http://h/".into() }
    }

    #[test]
    fn a_cancel_ends_the_wait_and_the_next_attempt_says_so() {
        let token = Shutdown::new();
        let bounds = Bounds {
            token: &token,
            deadline: Instant::now() + Duration::from_secs(60),
            errors: &ErrorHandler::default(),
        };
        let mut attempts = 0;
        let error = bounds.retry(|_| -> Result<(), _> {
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
            let result: Result<(), _> = Bounds { token: &token, deadline, errors: &ErrorHandler::default() }
                .retry(|_| Err(once.take().unwrap()));
            assert!(result.is_err());
        }
    }

    #[test]
    fn a_copy_stops_at_its_limit() {
        let token = Shutdown::new();
        let bounds = Bounds {
            token: &token,
            deadline: Instant::now() + Duration::from_secs(60),
            errors: &ErrorHandler::default(),
        };
        for (len, max, copied) in [(10, 20, 10), (20, 20, 20), (1_000_000, 300_000, 300_000)] {
            let mut to = Vec::new();
            assert_eq!(bounds.copy(&mut vec![7u8; len].as_slice(), &mut to, max).unwrap(), copied);
            assert_eq!(to.len() as u64, copied);
        }
    }
}

//! Socket calls that end by a deadline.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

/// Runs a socket call with the time that is left, which the caller gives to the system as the socket's time-out; again
/// after a signal, which the system does not do itself on a socket with a time-out.
///
/// # Errors
/// Those of the call; [`ErrorKind::TimedOut`] at the deadline, for which the system has two words.
pub(crate) fn by(deadline: Instant, mut call: impl FnMut(Duration) -> io::Result<usize>) -> io::Result<usize> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        match call(left) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(ErrorKind::TimedOut.into()),
            outcome => return outcome,
        }
    }
}

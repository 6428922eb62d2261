//! Results on stdout that a stop can interrupt: a reader that has stopped reading (a pager) must not hold the process.

use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};

use crate::base::shutdown::{KickRegistration, Level, Shutdown};
use crate::base::waits::waiting;

/// A pipe that can be written to takes at least so many bytes without blocking (`PIPE_BUF`).
const CHUNK_BYTES: usize = 4096;

/// Standard output. Each write waits until the reader has room or the stop signal is at its level, which is an error.
pub struct Output {
    wake: UnixStream,
    _kick: KickRegistration,
}

impl Output {
    /// Standard output, interrupted by `stop` at cancel.
    ///
    /// # Errors
    /// If the system has no descriptors left.
    pub fn new(stop: &Shutdown) -> io::Result<Self> {
        Self::until(stop, Level::Cancel)
    }

    /// Standard output, interrupted by `stop` at `level`.
    ///
    /// # Errors
    /// If the system has no descriptors left.
    pub fn until(stop: &Shutdown, level: Level) -> io::Result<Self> {
        let (wake, kick) = UnixStream::pair()?;
        let kick = stop.on(level, move || {
            // It fails only if the output has gone already.
            let _ = kick.shutdown(std::net::Shutdown::Both);
        });
        Ok(Self { wake, _kick: kick })
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let some = &bytes[..bytes.len().min(CHUNK_BYTES)];
        write_when_ready(&io::stdout(), &self.wake, "a reader of the output", some)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits until `to` can be written to, and writes as many of the bytes as it takes; an error once `woken` is at its
/// end. Of at most `PIPE_BUF` bytes the write itself does not block. `what` says what is waited for.
pub(super) fn write_when_ready(
    to: &impl AsFd,
    woken: &UnixStream,
    what: &'static str,
    bytes: &[u8],
) -> io::Result<usize> {
    let mut ready = [PollFd::new(to, PollFlags::OUT), PollFd::new(woken, PollFlags::IN)];
    let waits = waiting(what, None);
    poll(&mut ready, None)?;
    drop(waits);
    if !ready[1].revents().is_empty() {
        return Err(io::Error::new(ErrorKind::BrokenPipe, "stopped while nobody read the output"));
    }
    rustix::io::write(to.as_fd(), bytes).map_err(io::Error::from)
}

//! Results on stdout that a stop can interrupt: a reader that has stopped reading (a pager) must not hold the process.

use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};

use crate::base::shutdown::{KickRegistration, Level, Shutdown};
use crate::base::waits::waiting;

/// A pipe that can be written to takes at least so many bytes without blocking (`PIPE_BUF`).
const CHUNK_BYTES: usize = 4096;

/// Standard output. Each write waits until the reader has room or the stop signal is at cancel, which is an error.
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
        let (wake, kick) = UnixStream::pair()?;
        let kick = stop.on(Level::Cancel, move || {
            // It fails only if the output has gone already.
            let _ = kick.shutdown(std::net::Shutdown::Both);
        });
        Ok(Self { wake, _kick: kick })
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stdout = io::stdout();
        let mut ready = [PollFd::new(&stdout, PollFlags::OUT), PollFd::new(&self.wake, PollFlags::IN)];
        let waits = waiting("a reader of the output", None);
        poll(&mut ready, None)?;
        drop(waits);
        if !ready[1].revents().is_empty() {
            return Err(io::Error::new(ErrorKind::BrokenPipe, "stopped while nobody read the output"));
        }
        let some = &bytes[..bytes.len().min(CHUNK_BYTES)];
        rustix::io::write(stdout.as_fd(), some).map_err(io::Error::from)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

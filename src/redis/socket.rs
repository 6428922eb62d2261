//! A wait for a socket and a [`Wake`], and what has arrived and is not parsed.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::base::limits::REDIS_READ_BYTES;
use crate::net::wake::Wake;

/// What a wait found.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ready {
    /// There is something to read, or the stream has ended.
    pub readable: bool,
    /// The wake is raised.
    pub woken: bool,
}

/// Waits for a socket, a wake, or a moment; an interruption by a signal counts as nothing found.
pub(super) fn poll(
    socket: Option<(&TcpStream, PollFlags)>,
    wake: Option<&Wake>,
    until: Option<Instant>,
) -> io::Result<Ready> {
    let timeout = match until {
        // Rounded up, so that the moment has come when the wait is over.
        Some(until) => {
            let left = until.saturating_duration_since(Instant::now());
            Some(Timespec::try_from(left).map_err(io::Error::other)?)
        }
        None => None,
    };
    let ask = |fds: &mut [PollFd<'_>]| match rustix::event::poll(fds, timeout.as_ref()) {
        Err(Errno::INTR) | Ok(_) => Ok(()),
        Err(error) => Err(io::Error::from(error)),
    };
    let found = |fd: &PollFd<'_>| fd.revents().intersects(!PollFlags::OUT);
    let socket = socket.map(|(socket, events)| PollFd::from_borrowed_fd(socket.as_fd(), events));
    let wake = wake.map(|wake| PollFd::from_borrowed_fd(wake.as_fd(), PollFlags::IN));
    // No allocation: this is done for each request of a lone caller.
    match (socket, wake) {
        (Some(socket), Some(wake)) => {
            let mut fds = [socket, wake];
            ask(&mut fds)?;
            Ok(Ready { readable: found(&fds[0]), woken: found(&fds[1]) })
        }
        (Some(socket), None) => {
            let mut fds = [socket];
            ask(&mut fds)?;
            Ok(Ready { readable: found(&fds[0]), woken: false })
        }
        (None, Some(wake)) => {
            let mut fds = [wake];
            ask(&mut fds)?;
            Ok(Ready { readable: false, woken: found(&fds[0]) })
        }
        (None, None) => ask(&mut []).map(|()| Ready::default()),
    }
}

/// Bytes that have arrived and were not parsed.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Inbox {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    pub(super) fn used(&mut self, n: usize) {
        self.start += n;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            // After a large reply.
            if self.buffer.len() > 4 * REDIS_READ_BYTES {
                self.buffer.truncate(REDIS_READ_BYTES);
                self.buffer.shrink_to_fit();
            }
        }
    }

    /// Free space of a good size behind what is there; the parser's limits bound how much that can be.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.buffer.len() - self.end < REDIS_READ_BYTES / 4 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            if self.buffer.len() - self.end < REDIS_READ_BYTES / 2 {
                self.buffer.resize((2 * self.buffer.len()).max(REDIS_READ_BYTES), 0);
            }
        }
        &mut self.buffer[self.end..]
    }

    pub(super) fn filled(&mut self, n: usize) {
        self.end += n;
    }
}

//! Waits for many sockets at once, and for an event by which other threads end the wait.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;

use super::wake::Wake;
use crate::base::waits::waiting;

/// Sockets that one wait gives, at 12 bytes each.
const READY: usize = 256;

/// The number of the event; no socket has it.
const WAKE: u64 = u64::MAX;

/// What a socket is watched for. That its connection has broken is told in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Interest {
    /// The peer has sent something, or has ended.
    pub(crate) read: bool,
    /// The system takes more.
    pub(crate) write: bool,
    /// Until it was told once; then not even a broken connection is told, until the interest is changed.
    pub(crate) once: bool,
}

impl Interest {
    fn flags(self) -> EventFlags {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, self.read);
        flags.set(EventFlags::OUT, self.write);
        flags.set(EventFlags::ONESHOT, self.once);
        flags
    }
}

/// A socket that can go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ready {
    /// Its number.
    pub(crate) number: u64,
    /// Reading gives something, be it the end or an error.
    pub(crate) read: bool,
    /// Writing does.
    pub(crate) write: bool,
    /// Both directions are over; this is told again and again.
    pub(crate) broken: bool,
}

/// The sockets that one thread waits for. It owns one file descriptor, beside that of its event.
pub(crate) struct Poller {
    epoll: OwnedFd,
    wake: Wake,
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Poller")
    }
}

impl Poller {
    /// Without sockets.
    ///
    /// # Errors
    /// What the system says when it has no file descriptor left.
    pub(crate) fn new(wake: Wake) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        Ok(Self { epoll, wake })
    }

    /// Watches a socket from now on.
    ///
    /// # Errors
    /// When the system has no memory for it, or it is watched already.
    pub(crate) fn watch(&self, socket: impl AsFd, number: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(number), interest.flags())?)
    }

    /// Watches a socket for something else.
    ///
    /// # Errors
    /// When it is not watched.
    pub(crate) fn change(&self, socket: impl AsFd, number: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, socket, EventData::new_u64(number), interest.flags())?)
    }

    /// Watches a socket no more.
    pub(crate) fn forget(&self, socket: impl AsFd) {
        // It can only fail when the socket is not watched.
        let _ = epoll::delete(&self.epoll, socket);
    }

    /// The sockets that can go on. Blocks until there is one, or until the event is raised, which is lowered then; does
    /// not block if not `patient`.
    ///
    /// # Errors
    /// None that a program without faults meets.
    pub(crate) fn wait(&self, patient: bool, into: &mut Vec<Ready>) -> io::Result<()> {
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut events = [const { MaybeUninit::<Event>::uninit() }; READY];
        let waits = patient.then(|| waiting("a socket that can go on", None));
        let found = epoll::wait(&self.epoll, &mut events, (!patient).then_some(&at_once));
        drop(waits);
        let found = match found {
            Ok((found, _)) => found,
            Err(Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        for event in found {
            let (number, flags) = (event.data.u64(), event.flags);
            if number == WAKE {
                self.wake.lower();
                continue;
            }
            let broken = flags.intersects(EventFlags::HUP | EventFlags::ERR);
            let read = broken || flags.contains(EventFlags::IN);
            into.push(Ready { number, read, write: broken || flags.contains(EventFlags::OUT), broken });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn found(poller: &Poller, patient: bool) -> Vec<Ready> {
        let mut found = Vec::new();
        poller.wait(patient, &mut found).unwrap();
        found
    }

    #[test]
    fn a_socket_is_told_for_what_it_is_watched_for_until_it_is_forgotten() {
        let wake = Wake::new().unwrap();
        let poller = Poller::new(wake.clone()).unwrap();
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let reads = Interest { read: true, ..Interest::default() };
        poller.watch(&ours, 7, reads).unwrap();
        assert_eq!(found(&poller, false), []);
        theirs.write_all(b"x").unwrap();
        let readable = Ready { number: 7, read: true, write: false, broken: false };
        assert_eq!([found(&poller, true), found(&poller, true)].concat(), [readable; 2], "while it lasts");
        poller.change(&ours, 7, Interest { once: true, ..reads }).unwrap();
        assert_eq!([found(&poller, true), found(&poller, false)].concat(), [readable], "once");
        poller.change(&ours, 7, Interest { write: true, ..reads }).unwrap();
        assert_eq!(found(&poller, true), [Ready { write: true, ..readable }]);
        ours.read_exact(&mut [0]).unwrap();
        poller.change(&ours, 7, Interest::default()).unwrap();
        wake.raise();
        assert_eq!(found(&poller, true), [], "the event has ended the wait");
        drop(theirs);
        assert!(found(&poller, true)[0].broken, "that is told in any case");
        poller.forget(&ours);
        assert_eq!(found(&poller, false), []);
    }
}

//! A lock between processes, on a file: it is held as long as the file is open, and ends with its holder, however that
//! ends.
//!
//! Whoever waits is woken by the system when somebody closes the file (inotify), because a call that waits for a lock
//! itself cannot be interrupted. Each waiter takes one of the instances of inotify that a user may have, 128 by default
//! and for all programs; whoever gets none looks at the lock every second until it gets one.

use std::fs::{File, OpenOptions};
use std::io::{self, PipeReader, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{FlockOperation, flock, inotify};
use rustix::io::Errno;

use super::group::poll_until;
use crate::base::shutdown::{Level, Shutdown};
use crate::base::waits::waiting;

/// How a lock is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    /// Beside other shared ones.
    Shared,
    /// Alone.
    Alone,
}

/// Between two looks of one who is not woken.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// Bytes of news of closed files that are read at once: some dozens.
const NEWS_BYTES: usize = 1024;

/// Takes the lock if that is possible now. The file is made if it is not there.
pub(super) fn try_lock(path: &Path, hold: Hold) -> io::Result<Option<File>> {
    let mut file = open(path)?;
    loop {
        match try_file(&file, hold)? {
            Found::Taken => return Ok(Some(file)),
            Found::Held => return Ok(None),
            Found::Removed => file = open(path)?,
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// How it went with the lock of an open file.
enum Found {
    Taken,
    /// Somebody has it.
    Held,
    /// Somebody has removed the file: nobody else will find it.
    Removed,
}

fn try_file(file: &File, hold: Hold) -> io::Result<Found> {
    let operation = match hold {
        Hold::Shared => FlockOperation::NonBlockingLockShared,
        Hold::Alone => FlockOperation::NonBlockingLockExclusive,
    };
    let taken = match flock(file, operation) {
        Ok(()) => Found::Taken,
        Err(Errno::WOULDBLOCK) => Found::Held,
        Err(error) => return Err(error.into()),
    };
    // After the lock: whoever removes the file holds it.
    Ok(if file.metadata()?.nlink() == 0 { Found::Removed } else { taken })
}

/// Takes the lock; says whether it had to be waited for. Blocks until it is free.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] after `deadline`, [`io::ErrorKind::Interrupted`] after a cancel, or what the system
/// says.
pub(super) fn lock(path: &Path, hold: Hold, stop: &Shutdown, deadline: Instant) -> io::Result<(File, bool)> {
    lock_by(news, path, hold, stop, deadline)
}

fn news() -> Result<OwnedFd, Errno> {
    inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
}

fn lock_by(
    mut news: impl FnMut() -> Result<OwnedFd, Errno>,
    path: &Path,
    hold: Hold,
    stop: &Shutdown,
    deadline: Instant,
) -> io::Result<(File, bool)> {
    if let Some(file) = try_lock(path, hold)? {
        return Ok((file, false));
    }
    let closed = loop {
        match news() {
            Ok(closed) => break closed,
            Err(Errno::MFILE) => {}
            Err(error) => return Err(error.into()),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late());
        }
        let waits = waiting("another process to be done with a file", Some(deadline));
        if stop.wait_for(Level::Cancel, left.min(LOOK_PERIOD)) {
            return Err(cancelled());
        }
        drop(waits);
        if let Some(file) = try_lock(path, hold)? {
            return Ok((file, true));
        }
    };
    let (mut woken, wake) = io::pipe()?;
    let wake = Arc::new(wake);
    let _kick = stop.on(Level::Cancel, move || drop(wake.as_ref().write(&[1])));
    // It stays open: its closing would be news to ourselves.
    let mut file = open(path)?;
    loop {
        // Each time, because it may be another file by now. None is there for a moment while it is replaced.
        match inotify::add_watch(&closed, path, inotify::WatchFlags::CLOSE | inotify::WatchFlags::DELETE_SELF) {
            Ok(_) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        // After the watch has begun, so that nobody's close is missed.
        match try_file(&file, hold)? {
            Found::Taken => return Ok((file, true)),
            Found::Held => {}
            Found::Removed => {
                file = open(path)?;
                continue;
            }
        }
        let waits = waiting("another process to be done with a file", Some(deadline));
        let mut fds = [PollFd::new(&closed, PollFlags::IN), PollFd::new(&woken, PollFlags::IN)];
        let in_time = poll_until(&mut fds, Some(deadline))?;
        let stopped = !fds[1].revents().is_empty();
        drop(waits);
        if stopped {
            woken.read_exact(&mut [0])?;
            return Err(cancelled());
        }
        if !in_time {
            return Err(late());
        }
        let mut news = [MaybeUninit::uninit(); NEWS_BYTES];
        let mut news = inotify::Reader::new(&closed, &mut news);
        while news.next().is_ok() {}
    }
}

fn cancelled() -> io::Error {
    io::Error::new(io::ErrorKind::Interrupted, "cancelled")
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "another process did not let go of it in time")
}

/// Waits for somebody to write a file.
#[derive(Debug)]
pub(crate) struct FileNews(OwnedFd);

impl FileNews {
    /// Of this file, which has to be there, from now on.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let written = news()?;
        inotify::add_watch(&written, path, inotify::WatchFlags::MODIFY)?;
        Ok(Self(written))
    }

    /// Whether it is written before the other end of this pipe, in which nothing is written, is closed. Waits for one
    /// of the two.
    pub(crate) fn before(&self, closed: &PipeReader) -> io::Result<bool> {
        let waits = waiting("somebody to write a file", None);
        let written = || PollFd::new(&self.0, PollFlags::IN);
        poll_until(&mut [written(), PollFd::new(closed, PollFlags::IN)], None)?;
        drop(waits);
        poll_until(&mut [written()], Some(Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::base::thread::{Kick, spawn};

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn a_lock_is_held_until_its_file_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let (stop, first) = (Shutdown::new(), try_lock(&path, Hold::Alone).unwrap().unwrap());
        assert!(try_lock(&path, Hold::Shared).unwrap().is_none());
        let late = lock(&path, Hold::Alone, &stop, Instant::now()).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        let (other, token) = (path.clone(), stop.clone());
        let kicked = stop.clone();
        let waiter = spawn("t-lock", Kick::new("cancel", move || kicked.cancel()), move || {
            lock(&other, Hold::Alone, &token, far()).unwrap().1
        });
        // Whoever holds it has removed it, so the other one locks a new file.
        std::fs::remove_file(&path).unwrap();
        drop(first);
        waiter.join_by(far()).unwrap();
        let shared = [Hold::Shared; 2].map(|hold| lock(&path, hold, &stop, far()).unwrap());
        assert!(try_lock(&path, Hold::Alone).unwrap().is_none());
        drop(shared);
        assert!(try_lock(&path, Hold::Alone).unwrap().is_some());
    }

    #[test]
    fn a_file_that_is_written_is_news_and_one_that_is_read_or_locked_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        std::fs::write(&path, "1").unwrap();
        let news = FileNews::of(&path).unwrap();
        drop(try_lock(&path, Hold::Alone).unwrap().unwrap());
        std::fs::read(&path).unwrap();
        let (closed, other_end) = io::pipe().unwrap();
        drop(other_end);
        assert!(!news.before(&closed).unwrap());
        let (open, _other_end) = io::pipe().unwrap();
        std::fs::write(&path, "2").unwrap();
        assert!(news.before(&open).unwrap());
        assert!(FileNews::of(&folder.path().join("none")).is_err());
    }

    #[test]
    fn who_gets_no_instance_of_inotify_waits_without() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let (stop, mut held) = (Shutdown::new(), try_lock(&path, Hold::Alone).unwrap());
        let none = || Err(Errno::MFILE);
        let late = lock_by(none, &path, Hold::Alone, &stop, Instant::now() + Duration::from_millis(1)).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        // It is free when it looks again, or there is an instance then.
        let mut asked = 0;
        let letting_go = || {
            asked += 1;
            held = None;
            Err(Errno::MFILE)
        };
        assert!(lock_by(letting_go, &path, Hold::Alone, &stop, far()).unwrap().1);
        assert_eq!(asked, 1);
        let mut held = try_lock(&path, Hold::Alone).unwrap();
        let mut asked = 0;
        let soon = || {
            asked += 1;
            match asked {
                1 => Err(Errno::MFILE),
                _ => {
                    held = None;
                    news()
                }
            }
        };
        assert!(lock_by(soon, &path, Hold::Alone, &stop, far()).unwrap().1);
        let _held = try_lock(&path, Hold::Alone).unwrap().unwrap();
        stop.cancel();
        let cancelled = lock_by(none, &path, Hold::Alone, &stop, far()).unwrap_err();
        assert_eq!(cancelled.kind(), io::ErrorKind::Interrupted);
    }

    #[test]
    fn a_cancel_ends_the_wait() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let _held = try_lock(&path, Hold::Alone).unwrap().unwrap();
        let stop = Shutdown::new();
        stop.cancel();
        let cancelled = lock(&path, Hold::Alone, &stop, far()).unwrap_err();
        assert_eq!(cancelled.kind(), io::ErrorKind::Interrupted);
    }
}

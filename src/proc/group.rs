//! A program in a process group of its own, ended as a whole.
//!
//! No thread: the caller of [`GroupRun::run`] blocks in one `poll` over the program (a pidfd), its streams, and a pipe
//! that the stop signal writes to. So nothing is signalled after it was reaped. Linux only, for the pidfd.
//!
//! A descendant that left the group (`setsid`) is out of reach: it survives, but it delays nothing.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::ladder::{Climb, Ladder, Step};
use crate::base::shutdown::{Level, Shutdown};
use crate::base::waits::waiting;

/// Bytes read from a stream at once: a pipe's usual capacity.
const READ_BYTES: usize = 64 << 10;

/// How long what is in the pipes may take to be read once the program has ended; a process outside the group may hold
/// them and go on writing.
const DRAIN_TIME: Duration = Duration::from_millis(500);

/// Takes what a program writes, in pieces as they come. Blocks nothing: the program waits meanwhile.
pub type Sink<'a> = &'a mut dyn FnMut(&[u8]);

/// One run of a program. Its standard input is empty.
pub struct GroupRun<'a> {
    /// What to run.
    pub command: Command,
    /// Ends it…
    pub stop: &'a Shutdown,
    /// …at this level; at cancel with the ladder's forced grace.
    pub stop_at: Level,
    /// Ends it too.
    pub deadline: Option<Instant>,
    /// So does writing nothing for this long.
    pub silence: Option<Duration>,
    /// How it is ended.
    pub ladder: Ladder,
    /// Takes its standard output; `None`: it is not kept.
    pub stdout: Option<Sink<'a>>,
    /// Takes its standard error.
    pub stderr: Option<Sink<'a>>,
    /// Is called in place of SIGTERM, for a program that stands for what is to end; what it blocks for is not counted.
    pub terminate: Option<&'a dyn Fn()>,
}

impl fmt::Debug for GroupRun<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupRun").field("program", &self.command.get_program()).finish_non_exhaustive()
    }
}

/// Why a program was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Its deadline had passed.
    Deadline,
    /// It had written nothing for too long.
    Silence,
    /// The stop signal.
    Stop,
}

/// A program that has ended, with all of its group.
#[derive(Debug, Clone, Copy)]
pub struct GroupEnd {
    /// What the system says of it.
    pub status: ExitStatus,
    /// Why it was ended; `None` if it ended by itself.
    pub cause: Option<Cause>,
}

/// Why there is no [`GroupEnd`].
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// It could not be started.
    #[error("cannot start it: {0}")]
    Start(#[source] io::Error),
    /// It could not be watched, and was ended.
    #[error("cannot watch it: {0}")]
    Watch(#[from] io::Error),
    /// It did not end when it was killed: the system holds it in a call. Nobody waits for it any more.
    #[error("it did not end within {0:?} of SIGKILL, perhaps because of a dead disk; it is left behind")]
    Stuck(Duration),
}

impl GroupRun<'_> {
    /// Waits until the program has ended, and then ends whatever is left of its group.
    ///
    /// # Errors
    /// [`GroupError`].
    pub fn run(mut self) -> Result<GroupEnd, GroupError> {
        let pipe = |sink: &Option<Sink>| if sink.is_some() { Stdio::piped() } else { Stdio::null() };
        let (stdout, stderr) = (pipe(&self.stdout), pipe(&self.stderr));
        self.command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).process_group(0);
        let mut group = Group { child: self.command.spawn().map_err(GroupError::Start)?, given_up: false };
        log::debug!("{:?} is process {}", self.command.get_program(), group.child.id());
        let cause = self.watch(&mut group)?;
        Ok(GroupEnd { status: group.child.wait()?, cause })
    }

    fn watch(self, group: &mut Group) -> Result<Option<Cause>, GroupError> {
        let Self { stop, stop_at, deadline, silence, ladder, stdout, stderr, terminate, .. } = self;
        let leader = pidfd_open(group.pid(), PidfdFlags::empty()).map_err(io::Error::from)?;
        let (mut woken, wake) = io::pipe()?;
        let wake = Arc::new(wake);
        let _kicks = [stop_at, Level::Cancel].map(|level| {
            let wake = wake.clone();
            // Only fails when the reading end is gone, and then nobody waits any more.
            stop.on(level, move || drop(wake.as_ref().write(&[1])))
        });
        let out = group.child.stdout.take().map(OwnedFd::from).zip(stdout);
        let err = group.child.stderr.take().map(OwnedFd::from).zip(stderr);
        let streams = [out, err].into_iter().flatten();
        let mut streams: Vec<Stream> = streams.map(|(fd, sink)| Stream { from: fd.into(), sink }).collect();
        let mut buffer = vec![0; READ_BYTES];
        let (mut cause, mut climb) = (None, Climb::new(ladder));
        // One that is longer than the clock goes is none.
        let silent_from_now = || silence.and_then(|silence| Instant::now().checked_add(silence));
        let mut silent_at = silent_from_now();
        loop {
            let wake_at = match cause {
                None => [deadline, silent_at].into_iter().flatten().min(),
                Some(_) => climb.next(),
            };
            let mut fds = vec![PollFd::new(&leader, PollFlags::IN), PollFd::new(&woken, PollFlags::IN)];
            fds.extend(streams.iter().map(|stream| PollFd::new(&stream.from, PollFlags::IN)));
            let waits = waiting("a program to write or to end", wake_at);
            poll_until(&mut fds, wake_at)?;
            drop(waits);
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            let mut open = Vec::with_capacity(streams.len());
            for (mut stream, ready) in streams.into_iter().zip(&ready[2..]) {
                if *ready {
                    silent_at = silent_from_now();
                }
                if !ready || stream.read(&mut buffer)? {
                    open.push(stream);
                }
            }
            streams = open;
            if ready[0] {
                break;
            }
            if ready[1] {
                // One byte a kick; which kick it was, the level says.
                woken.read_exact(&mut [0])?;
            }
            if cause.is_none() {
                cause = match deadline {
                    _ if stop.level() >= stop_at => Some(Cause::Stop),
                    Some(at) if at <= Instant::now() => Some(Cause::Deadline),
                    _ if silent_at.is_some_and(|at| at <= Instant::now()) => Some(Cause::Silence),
                    _ => continue,
                };
                climb.begin(Instant::now());
            }
            let now = Instant::now();
            if stop.is_cancelled() {
                climb.hurry(now);
            }
            match climb.due(now) {
                Some(Step::Terminate) => match terminate {
                    Some(terminate) => {
                        terminate();
                        climb.postpone(now.elapsed());
                    }
                    None => group.signal(Signal::TERM),
                },
                Some(Step::Kill) => group.signal(Signal::KILL),
                Some(Step::GiveUp) => {
                    group.given_up = true;
                    return Err(GroupError::Stuck(ladder.kill_time.unwrap_or_default()));
                }
                None => {}
            }
        }
        // Also after an exit by itself, for children that the program left behind.
        group.signal(Signal::KILL);
        let drain_by = Instant::now() + DRAIN_TIME;
        for stream in &mut streams {
            // The end is not waited for, because somebody outside the group may hold the other end.
            while Instant::now() < drain_by
                && poll_until(&mut [PollFd::new(&stream.from, PollFlags::IN)], Some(Instant::now()))?
                && stream.read(&mut buffer)?
            {}
        }
        Ok(cause)
    }
}

/// Waits until one of `fds` is ready, at most until `deadline`; says whether one is.
pub(crate) fn poll_until(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        // A wait that no timespec holds is one without an end.
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(fds, left.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// One of the program's streams and who takes it.
struct Stream<'a> {
    from: File,
    sink: Sink<'a>,
}

impl Stream<'_> {
    /// Reads once, which does not block after a poll; says whether there may be more.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        match self.from.read(buffer) {
            Ok(0) => Ok(false),
            Ok(count) => {
                (self.sink)(&buffer[..count]);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error),
        }
    }
}

/// A process group whose leader is our child; dropping it (also in a panic) kills the group and reaps the leader.
struct Group {
    child: Child,
    /// Nobody waits for the leader any more: reaping it would block.
    given_up: bool,
}

impl Group {
    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn signal(&self, signal: Signal) {
        // The leader is not reaped before its status is asked for, so the number cannot belong to another group.
        match kill_process_group(self.pid(), signal) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => log::warn!("cannot send {signal:?} to process group {}: {error}", self.child.id()),
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // After a wait this finds no child to kill, and the status is known.
        if !self.given_up && matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::KILL);
            if let Err(error) = self.child.wait() {
                log::warn!("cannot reap process {}: {error}", self.child.id());
            }
        }
    }
}

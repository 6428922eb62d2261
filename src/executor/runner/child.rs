//! A child process in a group of its own, ended as a whole.
//!
//! Owner: the thread that calls [`run`]. Threads: `job-wait`, blocked in `waitid`, kicked by SIGKILL to the group;
//! `job-out` and `job-err`, blocked in `poll` on the child's pipe, kicked by closing their stop pipe. All three end with
//! the child and are joined before `run` returns.
//!
//! A descendant that left the group (`setsid`) is out of reach: it survives, but it delays nothing.

use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crossbeam_channel::{at, select};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

pub(super) use crate::executor::output::{Capture, Captured};

use super::RunEnd;
use crate::base::lock::lock;
use crate::base::shutdown::Shutdown;
use crate::base::stop::KICK_GRACE;
use crate::base::thread::{JoinError, Kick, Thread, spawn};
use crate::base::waits::waiting;

/// Between SIGTERM and SIGKILL: enough to close files, short enough that a cancelled job ends within a second.
const TERM_GRACE: Duration = Duration::from_millis(500);

/// How long the pipes may take to run dry once the group is dead; longer only if a process outside the group holds them.
const DRAIN_GRACE: Duration = Duration::from_millis(500);

/// A killed process ends at once, unless the system holds it in a call that cannot be interrupted (a dead disk).
const KILL_TIME: Duration = Duration::from_secs(10);

/// Bytes read from a pipe at once: its usual capacity.
const READ_BYTES: usize = 64 << 10;

/// Where the child's streams go.
pub(super) struct Streams {
    pub(super) stdout: Capture,
    pub(super) stderr: Capture,
}

impl Streams {
    /// Short output that is only looked at.
    pub(super) fn in_memory() -> Self {
        Self { stdout: Capture::in_memory(), stderr: Capture::in_memory() }
    }
}

/// A child that has ended, with all of its group.
pub(super) struct Ended {
    pub(super) end: RunEnd,
    pub(super) stdout: Captured,
    pub(super) stderr: Captured,
    pub(super) took: Duration,
}

/// Why there is no [`Ended`].
#[derive(Debug)]
pub(super) enum ChildError {
    /// It could not be started.
    Spawn(io::Error),
    /// It ran, but its streams could not be kept.
    Streams(io::Error),
    /// It did not end when it was killed: the system holds it in a call. Nobody waits for it any more.
    Stuck(io::Error),
}

/// Runs `command` until it exits, `token` is cancelled or `deadline` passes; the group is then ended as a whole.
///
/// `before_kill` runs first when token or deadline ends the child. Standard input is empty.
pub(super) fn run(
    command: &mut Command,
    streams: Streams,
    token: &Shutdown,
    deadline: Instant,
    before_kill: impl FnOnce(),
) -> Result<Ended, ChildError> {
    let start = Instant::now();
    let mut group = Group::spawn(command).map_err(ChildError::Spawn)?;
    let stdout = group.child.stdout.take().expect("the child was spawned with a pipe for stdout");
    let stderr = group.child.stderr.take().expect("the child was spawned with a pipe for stderr");
    let stdout = pump("job-out", stdout, streams.stdout).map_err(ChildError::Streams)?;
    let stderr = pump("job-err", stderr, streams.stderr).map_err(ChildError::Streams)?;
    let pid = group.pid;
    let waiter = spawn("job-wait", Kick::new("SIGKILL to the group", move || signal(pid, Signal::KILL)), move || {
        let _waiting = waiting("the job's process to end", None);
        // Without reaping, so that the group's number stays taken until nobody signals it any more.
        while matches!(waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT), Err(Errno::INTR)) {}
    });

    let waits = waiting("the job's process to end", Some(deadline));
    let killed = select! {
        recv(waiter.done_receiver()) -> _ => None,
        recv(token.cancel_receiver()) -> _ => Some(RunEnd::Cancelled),
        recv(at(deadline)) -> _ => Some(RunEnd::TimedOut),
    };
    drop(waits);
    if killed.is_some() {
        before_kill();
        signal(pid, Signal::TERM);
        let _waiting = waiting("the job's process to heed SIGTERM", Some(Instant::now() + TERM_GRACE));
        select! {
            recv(waiter.done_receiver()) -> _ => {}
            default(TERM_GRACE) => {}
        }
    }
    // Also after a normal exit, for children that the command left behind.
    signal(pid, Signal::KILL);
    if let Err(error) = killed_by(waiter, KILL_TIME) {
        group.abandon();
        return Err(error);
    }
    let status = group.reap().map_err(ChildError::Streams)?;
    let drain_by = Instant::now() + DRAIN_GRACE;
    Ok(Ended {
        end: killed.unwrap_or_else(|| end_of(status)),
        stdout: drained(stdout, drain_by).map_err(ChildError::Streams)?,
        stderr: drained(stderr, drain_by).map_err(ChildError::Streams)?,
        took: start.elapsed(),
    })
}

/// Waits until the killed child has ended. A thread that waits for one that does not end is left behind, because a join
/// would hang as well.
fn killed_by(waiter: Thread<()>, within: Duration) -> Result<(), ChildError> {
    let stuck = |text: String| ChildError::Stuck(io::Error::new(io::ErrorKind::TimedOut, text));
    waiter.join_by(Instant::now() + within).map_err(|error| match error {
        JoinError::Late(thread) => {
            thread.abandon("it waits for a process that does not end");
            stuck(format!(
                "it did not end within {within:?} of SIGKILL, perhaps because of a dead disk; it is left behind"
            ))
        }
        JoinError::Panicked(message) => stuck(message),
    })
}

fn end_of(status: ExitStatus) -> RunEnd {
    match (status.code(), status.signal()) {
        (Some(code), _) => RunEnd::Exited(code),
        (None, signal) => RunEnd::Signalled(signal.unwrap_or(0)),
    }
}

fn signal(group: Pid, signal: Signal) {
    match kill_process_group(group, signal) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => log::warn!("cannot send {signal:?} to process group {group:?}: {error}"),
    }
}

/// The child as leader of its group; dropping it (also in a panic) kills the group and reaps the child.
struct Group {
    child: Child,
    pid: Pid,
    /// Nothing is left to do: it is reaped, or given up.
    reaped: bool,
}

impl Group {
    fn spawn(command: &mut Command) -> io::Result<Self> {
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn()?;
        let pid = Pid::from_child(&child);
        Ok(Self { child, pid, reaped: false })
    }

    /// Gives up waiting for a child that cannot be ended: reaping it would block.
    fn abandon(&mut self) {
        self.reaped = true;
    }

    fn reap(&mut self) -> io::Result<ExitStatus> {
        self.reaped = true;
        self.child.wait()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.reaped {
            signal(self.pid, Signal::KILL);
            if let Err(error) = self.reap() {
                log::warn!("cannot reap process {:?}: {error}", self.pid);
            }
        }
    }
}

fn pump<R: Read + AsFd + Send + 'static>(
    name: &'static str,
    mut from: R,
    mut to: Capture,
) -> io::Result<Thread<io::Result<Captured>>> {
    let (stop, stopper) = io::pipe()?;
    let stopper: Mutex<Option<PipeWriter>> = Mutex::new(Some(stopper));
    Ok(spawn(name, Kick::new("its stop pipe", move || drop(lock(&stopper).take())), move || {
        let mut buffer = vec![0; READ_BYTES];
        while readable(&from, &stop)? {
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => to.push(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        to.finish()
    }))
}

/// Waits for the next bytes or the end of `from`; false if `stop` was closed first.
fn readable(from: &impl AsFd, stop: &PipeReader) -> io::Result<bool> {
    let _waiting = waiting("the job's output", None);
    let mut fds = [PollFd::new(stop, PollFlags::IN), PollFd::new(from, PollFlags::IN)];
    loop {
        match poll(&mut fds, None) {
            Ok(_) => return Ok(fds[0].revents().is_empty()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn drained(pump: Thread<io::Result<Captured>>, by: Instant) -> io::Result<Captured> {
    match pump.join_or_kick(by, KICK_GRACE) {
        Ok(captured) => captured,
        Err(JoinError::Panicked(message)) => Err(io::Error::other(message)),
        Err(JoinError::Late(thread)) => {
            thread.abandon("it outlived its kick");
            Err(io::Error::other("the thread that reads the output hangs, perhaps on a dead disk"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::bounded;

    #[test]
    fn a_child_that_does_not_end_is_reported_and_not_waited_for() {
        // Stands for a process that the system holds: the thread ends only when the test lets it, its kick does nothing.
        let (release, held) = bounded::<()>(0);
        let (gone, wait) = bounded::<()>(0);
        let waiter = spawn("t-stuck", Kick::dropped("nothing"), move || {
            let _gone = gone;
            assert!(held.recv().is_err());
        });
        let error = killed_by(waiter, Duration::ZERO).unwrap_err();
        assert!(matches!(&error, ChildError::Stuck(why) if why.to_string().contains("did not end")), "{error:?}");
        drop(release);
        assert!(wait.recv().is_err());
        let waiter = spawn("t-ended", Kick::dropped("nothing"), || {});
        killed_by(waiter, Duration::from_secs(60)).unwrap();
    }
}

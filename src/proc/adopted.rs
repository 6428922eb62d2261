//! A program that an earlier process of ours has started and that has outlived it: found by its environment, watched
//! and ended without being its parent.
//!
//! No thread: the caller of [`Adopted::wait`] blocks in one `poll` over the program (a pidfd) and a pipe that the stop
//! signal writes to. What the program ended with, only its parent is told.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};

use super::group::poll_until;
use super::ladder::{Climb, Ladder, Step};
use super::leftovers::{leads_a_group, processes_with, stat};
use crate::base::shutdown::{Level, Shutdown};
use crate::base::waits::waiting;

/// The leader of a process group that is not our child.
#[derive(Debug)]
pub(crate) struct Adopted {
    pid: Pid,
    process: OwnedFd,
}

impl Adopted {
    /// The oldest group leader that has the variable `marker`, `NAME=value`, which nobody else can have.
    ///
    /// # Errors
    /// If the system does not list its processes.
    pub(crate) fn find(marker: &[u8]) -> io::Result<Option<Self>> {
        let leaders = processes_with(|variable| variable == marker)?.into_iter().filter(|(pid, _)| leads_a_group(*pid));
        // One that has ended meanwhile has no start time.
        let by_age = leaders.filter_map(|(pid, process)| Some((started(pid)?, pid, process)));
        let oldest = by_age.min_by_key(|(started, pid, _)| (*started, pid.as_raw_nonzero()));
        Ok(oldest.map(|(_, pid, process)| Self { pid, process }))
    }

    /// Waits until it has ended. At `stop_at` its group is told to end by the ladder.
    ///
    /// # Errors
    /// If it cannot be watched.
    pub(crate) fn wait(self, stop: &Shutdown, stop_at: Level, ladder: Ladder) -> io::Result<()> {
        let (mut woken, wake) = io::pipe()?;
        let wake = Arc::new(wake);
        let _kicks = [stop_at, Level::Cancel].map(|level| {
            let wake = wake.clone();
            // Only fails when the reading end is gone, and then nobody waits any more.
            stop.on(level, move || drop(wake.as_ref().write(&[1])))
        });
        let (mut climb, mut ending) = (Climb::new(ladder), false);
        loop {
            let mut fds = [PollFd::new(&self.process, PollFlags::IN), PollFd::new(&woken, PollFlags::IN)];
            let waits = waiting("a program to end", climb.next());
            poll_until(&mut fds, climb.next())?;
            drop(waits);
            let [ended, kicked] = fds.map(|fd| !fd.revents().is_empty());
            if ended {
                return Ok(());
            }
            if kicked {
                woken.read_exact(&mut [0])?;
            }
            let now = Instant::now();
            if !ending && stop.level() >= stop_at {
                ending = true;
                climb.begin(now);
            }
            if ending && stop.is_cancelled() {
                climb.hurry(now);
            }
            match climb.due(now) {
                Some(Step::Terminate) => self.signal(Signal::TERM),
                Some(Step::Kill) => self.signal(Signal::KILL),
                Some(Step::GiveUp) | None => {}
            }
        }
    }

    /// The leader lived a moment ago, so the group's number is still its own.
    fn signal(&self, signal: Signal) {
        match kill_process_group(self.pid, signal) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => log::warn!("cannot send {signal:?} to process group {}: {error}", self.pid.as_raw_nonzero()),
        }
    }
}

/// When a process was started, in ticks since the machine was.
fn started(pid: Pid) -> Option<u64> {
    stat(pid, 22)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;
    use crate::base::wait::until;

    #[test]
    fn the_oldest_leader_is_found_and_ended_as_a_group() {
        let marker = format!("PHALANX_T_ADOPTED={}", uuid::Uuid::new_v4());
        let (name, value) = marker.split_once('=').unwrap();
        let sleeper = |group: bool| {
            let mut command = Command::new("sh");
            command.args(["-c", "sleep 1000 & echo; wait"]).env(name, value).stdout(Stdio::piped());
            if group {
                command.process_group(0);
            }
            let mut child = command.spawn().unwrap();
            // It has started its own child by then.
            child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
            child
        };
        assert!(Adopted::find(marker.as_bytes()).unwrap().is_none());
        let mut leader = sleeper(true);
        let found = Adopted::find(marker.as_bytes()).unwrap().unwrap();
        assert_eq!(found.pid, Pid::from_child(&leader));
        let stop = Shutdown::new();
        stop.drain();
        let hour = Duration::from_secs(3600);
        let ladder = Ladder { terms: 1, grace: hour, forced_grace: hour, kill_time: None };
        found.wait(&stop, Level::Drain, ladder).unwrap();
        assert!(!leader.wait().unwrap().success());
        // Its child, which would sleep on for long, may take a moment to be gone.
        until("the group went as a whole", || {
            processes_with(|variable| variable == marker.as_bytes()).unwrap().is_empty()
        });
    }
}

//! Processes that have outlived whoever started them and watched their group: they are found by their environment.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, getpgid, pidfd_open, pidfd_send_signal};

use super::group::poll_until;
use crate::base::waits::waiting;

/// Kills every process whose environment holds `marker`, until there is none; says how many there were. Blocks for at
/// most `within`; longer only if the system holds one in a call on a dead disk.
pub(crate) fn kill_by_environment(marker: &[u8], within: Duration) -> io::Result<usize> {
    let deadline = Instant::now() + within;
    let mut killed = 0;
    loop {
        // Once more after each round, for children that were started while their parent was looked for.
        let found = processes_with(marker)?;
        if found.is_empty() {
            return Ok(killed);
        }
        if Instant::now() >= deadline {
            let numbers: Vec<i32> = found.iter().map(|(pid, _)| pid.as_raw_nonzero().get()).collect();
            let text = format!("processes {numbers:?} did not end within {within:?} of SIGKILL");
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        for (pid, process) in &found {
            log::info!("process {} has outlived whoever started it; it is killed", pid.as_raw_nonzero());
            match pidfd_send_signal(process, Signal::KILL) {
                Ok(()) => killed += 1,
                Err(Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let _waiting = waiting("processes that were left over to end", Some(deadline));
        for (_, process) in &found {
            poll_until(&mut [PollFd::new(process, PollFlags::IN)], Some(deadline))?;
        }
    }
}

/// The processes whose environment holds `marker`, each with a descriptor, so that no later one of its number is meant.
pub(super) fn processes_with(marker: &[u8]) -> io::Result<Vec<(Pid, OwnedFd)>> {
    let mut found = Vec::new();
    each_process(|pid, process, environ| {
        if environ.windows(marker.len()).any(|window| window == marker) {
            found.push((pid, process));
        }
    })?;
    Ok(found)
}

/// What follows `beginning` in the environments of processes, with it, up to the end of the variable: each once.
pub(crate) fn names_in_environments(beginning: &[u8]) -> io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    each_process(|_, _, environ| {
        for variable in environ.split(|byte| *byte == 0) {
            if let Some(at) = variable.windows(beginning.len()).position(|window| window == beginning) {
                names.insert(String::from_utf8_lossy(&variable[at..]).into_owned());
            }
        }
    })?;
    Ok(names)
}

/// Shows every process whose environment we may read: its number, a descriptor of it, its environment.
fn each_process(mut show: impl FnMut(Pid, OwnedFd, &[u8])) -> io::Result<()> {
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else { continue };
        // Before its environment is read: if the number changes hands in between, the signal finds nobody.
        let process = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => process,
            Err(Errno::SRCH) => continue,
            Err(error) => return Err(error.into()),
        };
        // Unreadable are the processes of others, which are none of ours, and those that have just ended.
        let Ok(environ) = fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())) else { continue };
        show(pid, process, &environ);
    }
    Ok(())
}

/// The values of `variable` in the environments of the leaders of process groups that have the variable `beside`, too.
pub(crate) fn values_of_leaders(variable: &str, beside: &str) -> io::Result<BTreeSet<OsString>> {
    let [variable, beside] = [variable, beside].map(|name| format!("{name}=").into_bytes());
    let mut values = BTreeSet::new();
    each_process(|pid, _, environ| {
        let mut variables = environ.split(|byte| *byte == 0);
        // A group of this number is asked for last: the system's own processes have none.
        if variables.clone().any(|other| other.starts_with(&beside)) && getpgid(Some(pid)) == Ok(pid) {
            let value = variables.find_map(|other| other.strip_prefix(&variable[..]));
            values.extend(value.map(|value| OsString::from_vec(value.to_owned())));
        }
    })?;
    Ok(values)
}

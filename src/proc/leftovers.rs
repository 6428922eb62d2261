//! Processes that have outlived whoever started them and watched their group: they are found by their environment, by
//! the variables that we set alone. Others, as `PWD`, name whatever folder a program of the operator's is in.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::group::poll_until;
use crate::base::waits::waiting;

/// What is set to a folder for whom we start, or to one below it.
const FOLDERS: [&[u8]; 4] = [b"TMPDIR=", b"PHALANX_VOLUME_DIR=", b"PHALANX_OUTPUT_DIR=", b"PHALANX_ARTIFACTS_DIR="];

/// The names in the path that a variable has, if it is one of [`FOLDERS`].
fn folders(variable: &[u8]) -> impl Iterator<Item = &[u8]> {
    let path = FOLDERS.iter().find_map(|name| variable.strip_prefix(*name)).unwrap_or_default();
    path.split(|byte| *byte == b'/')
}

/// Kills every process that is told a folder of this name, or one below it, until there is none; says how many there
/// were. Blocks for at most `within`; longer only if the system holds one in a call on a dead disk.
pub(crate) fn kill_by_folder(name: &[u8], within: Duration) -> io::Result<usize> {
    let deadline = Instant::now() + within;
    let mut killed = 0;
    loop {
        // Once more after each round, for children that were started while their parent was looked for.
        let found = processes_with(|variable| folders(variable).any(|folder| folder == name))?;
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

/// The processes that have such a variable, `NAME=value`, each with a descriptor, so that no later one of its number is
/// meant.
pub(super) fn processes_with(is_it: impl Fn(&[u8]) -> bool) -> io::Result<Vec<(Pid, OwnedFd)>> {
    let mut found = Vec::new();
    each_process(|pid, process, environ| {
        if environ.split(|byte| *byte == 0).any(&is_it) {
            found.push((pid, process));
        }
    })?;
    Ok(found)
}

/// The folders whose names begin so and that processes are told, or ones below them: each name once.
pub(crate) fn folders_of_processes(beginning: &[u8]) -> io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    each_process(|_, _, environ| {
        let folders = environ.split(|byte| *byte == 0).flat_map(folders).filter(|name| name.starts_with(beginning));
        names.extend(folders.map(|name| String::from_utf8_lossy(name).into_owned()));
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
        if variables.clone().any(|other| other.starts_with(&beside)) && leads_a_group(pid) {
            let value = variables.find_map(|other| other.strip_prefix(&variable[..]));
            values.extend(value.map(|value| OsString::from_vec(value.to_owned())));
        }
    })?;
    Ok(values)
}

/// Whether a process leads a process group. A group whose leader is in another PID namespace has the number 0, which
/// the library's `getpgid` takes for impossible.
pub(super) fn leads_a_group(pid: Pid) -> bool {
    stat(pid, 5) == Some(u64::from(pid.as_raw_nonzero().get().unsigned_abs()))
}

/// A field of `/proc/PID/stat` after the name, by its number in proc(5): 3 is the state.
pub(super) fn stat(pid: Pid, field: usize) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The name, in parentheses, may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(field - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    #[test]
    fn whoever_is_told_a_folder_is_ended_and_nobody_who_is_only_in_it() {
        let place = tempfile::tempdir().unwrap();
        let name = format!("phalanx-t-left-{}", uuid::Uuid::new_v4().simple());
        let folder = place.path().join(&name);
        fs::create_dir(&folder).unwrap();
        let sleeper = |variable: &str, value: &std::path::Path| {
            Command::new("sleep").arg("1000").current_dir(&folder).env(variable, value).spawn().unwrap()
        };
        let longer = folder.with_file_name(format!("{name}0"));
        let others: [Child; 4] = [
            sleeper("PWD", &folder),
            sleeper("OLDPWD", &folder.join("job")),
            sleeper("MY_TMPDIR", &folder),
            sleeper("TMPDIR", &longer),
        ];
        let mut ours = [
            sleeper("TMPDIR", &folder),
            sleeper("TMPDIR", &folder.join("a")),
            sleeper("PHALANX_VOLUME_DIR", &folder.join("job/volume")),
        ];
        let known = folders_of_processes(name.as_bytes()).unwrap();
        assert_eq!(known, BTreeSet::from([name.clone(), format!("{name}0")]));
        // They are gone once somebody waits for them, as init does for those that are left over.
        let ended = kill_by_folder(name.as_bytes(), Duration::from_secs(60)).unwrap();
        assert_eq!(ended, ours.len());
        for child in &mut ours {
            assert!(!child.wait().unwrap().success());
        }
        for mut child in others {
            let lives = child.try_wait().unwrap().is_none();
            child.kill().unwrap();
            child.wait().unwrap();
            assert!(lives);
        }
    }
}

//! The temporary folder of one executor, and what a killed executor leaves behind: the folder's files, and the processes
//! of its job, which are in a group of their own and know the folder by their environment (`PHALANX_VOLUME_DIR` and others).

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tempfile::TempDir;

use crate::base::waits::waiting;

/// How long killed processes may take to end; longer only if the system holds them in a call on a dead disk.
const KILL_TIME: Duration = Duration::from_secs(2);

/// The `TMPDIR` of one executor, `0700`, removed when the value is dropped.
#[derive(Debug)]
pub(super) struct ExecutorFolder(Option<TempDir>);

impl ExecutorFolder {
    /// A new folder in our own folder for temporary files.
    pub fn create() -> io::Result<Self> {
        let folder =
            tempfile::Builder::new().prefix("phalanx-exec-").permissions(Permissions::from_mode(0o700)).tempdir()?;
        Ok(Self(Some(folder)))
    }

    pub fn path(&self) -> &Path {
        self.0.as_ref().expect("the folder is taken only by drop").path()
    }

    /// Kills every process whose environment names the folder, until there is none. Blocks for at most [`KILL_TIME`].
    pub fn end_processes(&self) -> io::Result<()> {
        let deadline = Instant::now() + KILL_TIME;
        loop {
            // Once more after each round, for children that were started while their parent was looked for.
            let found = processes_of(self.path())?;
            if found.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let numbers: Vec<i32> = found.iter().map(|(pid, _)| pid.as_raw_nonzero().get()).collect();
                let text = format!("processes {numbers:?} did not end within {KILL_TIME:?} of SIGKILL");
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            for (pid, process) in &found {
                log::info!(
                    "process {} is left of a job whose executor was killed; it is killed too",
                    pid.as_raw_nonzero()
                );
                match pidfd_send_signal(process, Signal::KILL) {
                    Ok(()) | Err(Errno::SRCH) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            for (_, process) in &found {
                wait(process, deadline)?;
            }
        }
    }
}

impl Drop for ExecutorFolder {
    fn drop(&mut self) {
        let Some(folder) = self.0.take() else { return };
        // From here on it is ours to remove; TempDir would try only once and swallow the error.
        let path = folder.keep();
        let removed = fs::remove_dir_all(&path).or_else(|_| {
            // A job may leave folders that even their owner cannot list or change.
            open_folders(&path)?;
            fs::remove_dir_all(&path)
        });
        if let Err(error) = removed {
            log::warn!("temporary folder {} of an executor is left behind: {error}", path.display());
        }
    }
}

fn open_folders(folder: &Path) -> io::Result<()> {
    fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        // The type of the entry itself, so that no link is followed.
        if entry.file_type()?.is_dir() {
            open_folders(&entry.path())?;
        }
    }
    Ok(())
}

/// Waits until the process has ended, at most until `deadline`.
fn wait(process: &OwnedFd, deadline: Instant) -> io::Result<()> {
    let _waiting = waiting("an executor that was left over to end", Some(deadline));
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&left)) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The processes whose environment names `folder`, each with a descriptor, so that no later one of its number is meant.
fn processes_of(folder: &Path) -> io::Result<Vec<(Pid, OwnedFd)>> {
    let wanted = folder.as_os_str().as_bytes();
    let mut found = Vec::new();
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
        if environ.windows(wanted.len()).any(|window| window == wanted) {
            found.push((pid, process));
        }
    }
    Ok(found)
}

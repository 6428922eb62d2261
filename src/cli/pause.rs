//! `phalanx pause` and `phalanx resume`: whether a running validator, worker or miner takes new work. Both write in its
//! state folder, so only who may do that can, and tell the role by SIGHUP.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::values::duration;
use crate::app::{exit, pause};
use crate::base::clock::now;
use crate::ops::pause::{NOTE_CHARS, Paused};
use crate::store::look::look;
use crate::store::{self, StoreError};

/// The arguments of `phalanx pause`.
#[derive(Debug, clap::Args)]
pub struct PauseArgs {
    /// The state folder of the validator, worker or miner
    #[arg(long, value_name = "DIR", env = "PHALANX_STATE_DIR")]
    state_dir: PathBuf,
    /// Why, in one line of at most 200 characters; users and validators whose jobs are refused are told it
    #[arg(long, value_name = "TEXT", default_value = "", env = "PHALANX_NOTE")]
    note: String,
    /// When it ends by itself [default: when it is resumed]
    #[arg(long = "for", value_name = "DUR", value_parser = duration, env = "PHALANX_FOR")]
    time: Option<Duration>,
}

/// The arguments of `phalanx resume`.
#[derive(Debug, clap::Args)]
pub struct ResumeArgs {
    /// The state folder of the validator, worker or miner
    #[arg(long, value_name = "DIR", env = "PHALANX_STATE_DIR")]
    state_dir: PathBuf,
}

/// Pauses a role. Exit 0 if that is done, 1 if it cannot be, 2 if a flag is wrong.
pub fn pause(args: PauseArgs) -> ExitCode {
    let PauseArgs { state_dir, note, time } = args;
    if note.chars().count() > NOTE_CHARS || note.contains(char::is_control) {
        return exit::usage(format!("--note: it should be one line of at most {NOTE_CHARS} characters"));
    }
    if time.is_some_and(|time| time < Duration::from_secs(1)) {
        return exit::usage("--for: it should be 1s or more");
    }
    let role = match running(&state_dir) {
        Ok(role) => role,
        Err(code) => return code,
    };
    let since = now().wall;
    let until = time.map(|time| since.saturating_add(time).as_secs());
    let paused = Paused { note, since: since.as_secs(), until };
    if let Err((path, error)) = pause::write(&state_dir, &paused) {
        return exit::failed(format!("{}: {error}", path.display()));
    }
    told(role, &paused.shown(since))
}

/// Resumes a role. Exit codes as for [`pause()`].
pub fn resume(ResumeArgs { state_dir }: ResumeArgs) -> ExitCode {
    let role = match running(&state_dir) {
        Ok(role) => role,
        Err(code) => return code,
    };
    match pause::remove(&state_dir) {
        Ok(was_paused) => told(role, if was_paused { "resumed" } else { "it was not paused" }),
        Err((path, error)) => exit::failed(format!("{}: {error}", path.display())),
    }
}

/// The process that uses the state folder, if one does. It has the lock, so it is that one, and no later one of its
/// number.
fn running(state_dir: &Path) -> Result<Option<Pid>, ExitCode> {
    let locks = [store::journal::LOCK, store::WORKER_LOCK, store::miner::LOCK];
    if !locks.iter().any(|lock| state_dir.join(lock).is_file()) {
        let right = "name the --state-dir of one of those, which has been started before";
        return Err(exit::usage(format!(
            "--state-dir {}: no validator, worker or miner: {right}",
            state_dir.display()
        )));
    }
    for lock in locks {
        match look(state_dir, lock) {
            Ok(_) => {}
            Err(StoreError::InUse { pid, .. }) => {
                let number = pid.parse().ok().and_then(Pid::from_raw);
                return number.map(Some).ok_or_else(|| exit::failed(format!("{lock} names no process: {pid:?}")));
            }
            Err(error) => return Err(exit::failed(error)),
        }
    }
    Ok(None)
}

/// Has the role read it.
fn told(role: Option<Pid>, what: &str) -> ExitCode {
    let Some(pid) = role else {
        println!("{what}; no role runs there now, so it counts from the next start");
        return ExitCode::from(exit::DONE);
    };
    match kill_process(pid, Signal::HUP) {
        Ok(()) => {
            println!("{what}; process {pid} is told");
            ExitCode::from(exit::DONE)
        }
        Err(error) => exit::failed(format!("{what}, but process {pid} cannot be told by SIGHUP: {error}")),
    }
}

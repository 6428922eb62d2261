//! The pause of a role as a file in its state folder: who may write there may pause the role, and nobody else. It is
//! read at the start and at SIGHUP, so a pause outlives a restart.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::supervise::Env;
use crate::base::clock::now;
use crate::base::small_file;
use crate::ops::pause::{Pause, Paused};

/// The file.
const FILE: &str = "paused.json";

/// Bytes of the file: the note is a line.
const FILE_BYTES: u64 = 64 << 10;

/// Pauses the role of this state folder as the file says, now and at each SIGHUP.
pub fn follow(env: &Env, pause: &Pause, state_dir: &Path) {
    let (pause, path) = (pause.clone(), state_dir.join(FILE));
    let look = move || {
        let (before, paused) = (pause.paused(now().wall), read(&path, now().wall.as_secs()));
        match (&before, &paused) {
            (before, Some(paused)) if before.as_ref() != Some(paused) => {
                log::info!("{}; what runs goes on", paused.shown(now().wall));
            }
            (Some(_), None) => log::info!("resumed: new work is taken"),
            _ => {}
        }
        pause.set(paused);
    };
    look();
    env.reload.also(look);
}

/// What the file says, if it is not over. One that cannot be read pauses all the same: somebody wanted that.
fn read(path: &Path, now: u64) -> Option<Paused> {
    let text = match small_file::read(path, FILE_BYTES) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => return Some(unreadable(path, &error, now)),
    };
    let paused = serde_json::from_slice(&text).unwrap_or_else(|error| unreadable(path, &error, now));
    Some(paused).filter(|paused| paused.until.is_none_or(|until| until > now))
}

fn unreadable(path: &Path, why: &dyn std::fmt::Display, since: u64) -> Paused {
    let note = format!("{} cannot be read ({why}); phalanx resume removes it", path.display());
    log::error!("{note}");
    Paused { note, since, until: None }
}

/// Writes the file anew, for its owner alone. Blocks on the disk.
///
/// # Errors
/// The system's, with the path.
pub fn write(state_dir: &Path, paused: &Paused) -> Result<(), (PathBuf, io::Error)> {
    let (path, new) = (state_dir.join(FILE), state_dir.join("paused.json.new"));
    let text = serde_json::to_vec(paused).map_err(|error| (path.clone(), error.into()))?;
    let written = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new);
    let written = written.and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()));
    written.and_then(|()| fs::rename(&new, &path)).map_err(|error| (path, error))
}

/// Removes the file; says whether there was one. Blocks on the disk.
///
/// # Errors
/// The system's, with the path.
pub fn remove(state_dir: &Path) -> Result<bool, (PathBuf, io::Error)> {
    let path = state_dir.join(FILE);
    match fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err((path, error)),
    }
}

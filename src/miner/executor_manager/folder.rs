//! The temporary folder of one executor, and what a killed executor leaves behind: the folder's files, and the
//! processes of its job, which are in a group of their own and know the folder by their environment
//! (`PHALANX_VOLUME_DIR` and others).

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::backend::{ExecutorSpec, Leftover, LeftoverKind};
use crate::proc::leftovers::kill_by_environment;

/// How long killed processes may take to end.
const KILL_TIME: Duration = Duration::from_secs(2);

/// The `TMPDIR` of an executor, in our own folder for temporary files. Its name says whose it is.
pub(super) fn of(spec: &ExecutorSpec) -> PathBuf {
    std::env::temp_dir().join(format!("phalanx-exec-{}-{}-{}", spec.owner.instance, spec.owner.epoch, spec.run))
}

/// Makes the folder, `0700`.
pub(super) fn create(folder: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(folder)
}

/// Kills every process whose environment names the folder, until there is none. Blocks for at most [`KILL_TIME`].
pub(super) fn end_processes(folder: &Path) -> Result<(), Leftover> {
    let left = |error: io::Error| Leftover { kind: LeftoverKind::Processes, text: error.to_string() };
    kill_by_environment(folder.as_os_str().as_bytes(), KILL_TIME).map(drop).map_err(left)
}

/// Removes the folder, if it is there.
pub(super) fn remove(folder: &Path) -> Result<(), Leftover> {
    let gone = |error: io::Error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) };
    let removed = fs::remove_dir_all(folder).or_else(gone).or_else(|_| {
        // A job may leave folders that even their owner cannot list or change.
        open_folders(folder)?;
        fs::remove_dir_all(folder)
    });
    removed.map_err(|error| Leftover {
        kind: LeftoverKind::Folder,
        text: format!("temporary folder {} cannot be removed: {error}", folder.display()),
    })
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

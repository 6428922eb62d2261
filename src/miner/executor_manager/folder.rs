//! The temporary folder of one executor, and what a killed executor leaves behind: the folder's files, and the
//! processes of its job, which are in a group of their own and know the folder by their environment
//! (`PHALANX_VOLUME_DIR` and others).

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use crate::proc::leftovers::kill_by_environment;

/// How long killed processes may take to end.
const KILL_TIME: Duration = Duration::from_secs(2);

/// The `TMPDIR` of one executor, `0700`, removed when the value is dropped.
#[derive(Debug)]
pub(super) struct ExecutorFolder(Option<TempDir>);

impl ExecutorFolder {
    /// A new folder in our own folder for temporary files.
    pub(super) fn create() -> io::Result<Self> {
        let folder =
            tempfile::Builder::new().prefix("phalanx-exec-").permissions(Permissions::from_mode(0o700)).tempdir()?;
        Ok(Self(Some(folder)))
    }

    pub(super) fn path(&self) -> &Path {
        self.0.as_ref().expect("the folder is taken only by drop").path()
    }

    /// Kills every process whose environment names the folder, until there is none. Blocks for at most [`KILL_TIME`].
    pub(super) fn end_processes(&self) -> io::Result<()> {
        kill_by_environment(self.path().as_os_str().as_bytes(), KILL_TIME)
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

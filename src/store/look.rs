//! A look at a state folder that changes nothing.

use std::path::Path;
use std::{fs, io};

use rustix::fs::{Access, access};

use super::StoreError;
use super::lock::FolderLock;

/// What is known of a state folder before it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FolderState {
    /// It is there.
    There,
    /// It is not there, and can be made.
    Absent,
}

/// The locks of the roles that have a state folder, and of a batch.
const LOCKS: [&str; 5] =
    [super::jobs::LOCK, super::journal::LOCK, super::miner::LOCK, super::WORKER_LOCK, super::batch::LOCK];

/// The lock of another than who takes the lock `own`, if the folder has one: it is another's, whether that runs or not.
/// Changes nothing. Blocks on the disk.
pub fn others(folder: &Path, own: &str) -> Option<&'static str> {
    LOCKS.into_iter().find(|lock| *lock != own && folder.join(lock).exists())
}

/// Whether a state folder could be used by who takes the lock of this name; changes nothing. Blocks on the disk.
///
/// # Errors
/// What taking it would say.
pub fn look(folder: &Path, lock: &str) -> Result<FolderState, StoreError> {
    let failed = |source: io::Error| StoreError::Folder { path: folder.to_owned(), source };
    let is_there = match fs::metadata(folder) {
        Ok(found) if found.is_dir() => true,
        Ok(_) => return Err(failed(io::ErrorKind::NotADirectory.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(failed(error)),
    };
    let absolute = std::path::absolute(folder).map_err(failed)?;
    let nearest = absolute.ancestors().find(|at| at.exists()).unwrap_or(Path::new("/"));
    if !nearest.is_dir() {
        return Err(failed(io::ErrorKind::NotADirectory.into()));
    }
    access(nearest, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| failed(error.into()))?;
    if !is_there {
        return Ok(FolderState::Absent);
    }
    FolderLock::look(folder, lock).map(|()| FolderState::There)
}

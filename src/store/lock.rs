//! The lock of a state folder: one process has it, and says which.

use std::fs::{File, TryLockError};
#[cfg(feature = "cli")]
use std::io::ErrorKind;
use std::io::{Read, Write};
use std::path::Path;

use super::{StoreError, make_folder, private};

/// The lock of a facilitator's state folder.
pub(super) const FACILITATOR: &str = "facilitator.lock";
/// That of a validator's.
pub(super) const VALIDATOR: &str = "journal.lock";
/// That of a miner's.
pub(super) const MINER: &str = "miner.lock";
/// That of a worker's, where its pause is.
pub(crate) const WORKER: &str = "worker.lock";
/// That of a batch's.
pub(super) const BATCH: &str = "batch.lock";

/// The locks of all that have a state folder: of each folder one.
const LOCKS: [&str; 5] = [FACILITATOR, VALIDATOR, MINER, WORKER, BATCH];

/// The lock, held until it is dropped or the process ends in whatever way. It is on the file, which says who has it,
/// and on the folder itself, so that it holds also when somebody removes the file.
#[derive(Debug)]
pub(crate) struct FolderLock {
    file: File,
    folder: File,
}

impl FolderLock {
    /// Makes the folder if it is not there, takes the lock that is its file `name`, and closes the folder to others
    /// than its owner. Blocks on the disk.
    ///
    /// # Errors
    /// [`StoreError::Another`] if the folder is of another role; [`StoreError::InUse`] with the process id of whoever
    /// has it; the system's.
    pub(crate) fn take(folder: &Path, name: &str) -> Result<Self, StoreError> {
        Self::look_for_others(folder, name)?;
        make_folder(folder)?;
        let lock = Self::lock(folder, name)?;
        private::close(folder);
        Ok(lock)
    }

    /// Whether the folder is free of the locks of other roles, whether those run or not; changes nothing. Blocks on the
    /// disk.
    ///
    /// # Errors
    /// [`StoreError::Another`].
    pub(crate) fn look_for_others(folder: &Path, name: &str) -> Result<(), StoreError> {
        match LOCKS.into_iter().find(|lock| *lock != name && folder.join(lock).exists()) {
            Some(lock) => Err(StoreError::Another { folder: folder.to_owned(), lock }),
            None => Ok(()),
        }
    }

    /// Whether a process could take the lock now, whoever else may have the folder; changes nothing. Blocks on the
    /// disk.
    ///
    /// # Errors
    /// As [`FolderLock::take`].
    #[cfg(feature = "cli")]
    pub(super) fn look(folder: &Path, name: &str) -> Result<(), StoreError> {
        let path = folder.join(name);
        let failed = |source| StoreError::File { path: path.clone(), source };
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        match file.try_lock_shared() {
            // It is closed at once.
            Ok(()) => Ok(()),
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid).map_err(failed)?;
                Err(StoreError::InUse { folder: folder.to_owned(), pid: pid.trim().to_owned() })
            }
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    fn lock(folder: &Path, name: &str) -> Result<Self, StoreError> {
        let path = folder.join(name);
        let failed = |source| StoreError::File { path: path.clone(), source };
        let of_folder = |source| StoreError::Folder { path: folder.to_owned(), source };
        let whole = File::open(folder).map_err(of_folder)?;
        let mut file = private::open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {
                match whole.try_lock() {
                    Ok(()) => {}
                    Err(TryLockError::WouldBlock) => {
                        let pid = format!("unknown, since its {name} was removed");
                        return Err(StoreError::InUse { folder: folder.to_owned(), pid });
                    }
                    // Some file systems, as NFS, lock no folders.
                    Err(TryLockError::Error(error)) => {
                        log::warn!("{}: {error}: only its {name} is locked, keep that", folder.display());
                    }
                }
                let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
                written.map_err(failed)?;
                Ok(Self { file, folder: whole })
            }
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid).map_err(failed)?;
                Err(StoreError::InUse { folder: folder.to_owned(), pid: pid.trim().to_owned() })
            }
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // Closing is not enough: a process that another thread is just starting has the descriptor, too, for a moment.
        let _ = self.folder.unlock(); // Closing follows in any case.
        let _ = self.file.unlock(); // As above.
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_stays_locked_when_its_file_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let take = || FolderLock::take(folder.path(), WORKER);
        let first = take().unwrap();
        let error = take().unwrap_err().to_string();
        assert!(error.contains(&format!("in use by process {}", std::process::id())), "{error}");
        for _ in 0..2 {
            std::fs::remove_file(folder.path().join(WORKER)).unwrap();
            let error = take().unwrap_err().to_string();
            assert!(error.contains("in use by process unknown, since its worker.lock was removed"), "{error}");
        }
        drop(first);
        take().unwrap();
    }

    #[test]
    fn a_folder_is_of_the_role_that_took_it_first_also_when_that_does_not_run() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("state");
        let held = FolderLock::take(&folder, WORKER).unwrap();
        for held in [Some(held), None] {
            for other in [VALIDATOR, MINER, FACILITATOR, BATCH] {
                let error = FolderLock::take(&folder, other).unwrap_err();
                assert!(matches!(error, StoreError::Another { lock: WORKER, .. }), "{error}");
                assert!(error.to_string().contains("another has it (worker.lock)"), "{error}");
                assert!(!folder.join(other).exists(), "nothing is changed");
            }
            let again = FolderLock::take(&folder, WORKER);
            assert_eq!(again.is_err(), held.is_some());
        }
    }
}

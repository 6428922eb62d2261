//! A look at a state folder that changes nothing.

use std::path::Path;
use std::{fs, io};

use rustix::fs::{Access, Mode, OFlags, access};

use super::lock::FolderLock;
use super::{LEAST_FREE, StoreError, free};

/// What is known of a state folder before it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FolderState {
    /// It is there.
    There,
    /// It is not there, and can be made.
    Absent,
}

/// Whether a state folder could be used by who takes the lock of this name, if it is of no other role; changes nothing.
/// Blocks on the disk.
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

/// Tries to write where a state folder is, or is to be made, and says how many bytes are free there. Nothing is left:
/// what is written has no name. Blocks on the disk.
///
/// # Errors
/// [`StoreError::Full`] if there is no room for a start, or what the system says.
pub fn room(folder: &Path) -> Result<u64, StoreError> {
    let failed = |source: io::Error| StoreError::Folder { path: folder.to_owned(), source };
    let absolute = std::path::absolute(folder).map_err(failed)?;
    let nearest = absolute.ancestors().find(|at| at.is_dir()).unwrap_or(Path::new("/"));
    let free = free(nearest).map_err(failed)?;
    if free < LEAST_FREE {
        let problem = format!("a start needs {LEAST_FREE}");
        return Err(StoreError::Full { path: folder.to_owned(), free, problem });
    }
    write_nameless(nearest).map_err(failed)?;
    Ok(free)
}

/// Writes a block to a file without a name; where the file system has none, makes and removes a folder.
fn write_nameless(folder: &Path) -> io::Result<()> {
    match rustix::fs::open(folder, OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR) {
        Ok(file) => io::Write::write_all(&mut fs::File::from(file), &[0; 4096]),
        Err(_) => {
            let made = folder.join(format!(".phalanx-check-{}", std::process::id()));
            fs::create_dir(&made)?;
            fs::remove_dir(&made)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_finds_what_cannot_be_written_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        for there in [folder.path().to_owned(), folder.path().join("a/b")] {
            assert!(room(&there).unwrap() >= LEAST_FREE);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        // A file system of the kernel's: it has no room, and nothing can be made there.
        let error = room(Path::new("/proc/x")).unwrap_err();
        assert!(error.to_string().contains("/proc/x"), "{error}");
    }
}

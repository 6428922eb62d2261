//! Removal of a tree at any depth: a folder's folders are moved up beside it, so that nothing that is opened is ever
//! deeper than two levels.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, RawMode, fchmod, fstat, renameat, statat, unlinkat};
use rustix::io::Errno;

use super::open::{open_dir_at, set_mode};
use super::{Bounds, TreeError};

/// What the owner needs to list and empty a folder.
const OWNER: RawMode = 0o700;

/// Removes `path` and all below it; a link is removed, never followed. What is not there is removed already.
///
/// # Errors
/// [`TreeError`] with what is left; everything else is removed all the same.
pub fn remove(path: &Path, bounds: &Bounds<'_>) -> Result<(), TreeError> {
    remove_entry(CWD, path.as_os_str(), bounds)
}

/// As [`remove`], of what has the name in `dir`.
///
/// # Errors
/// As [`remove`].
pub fn remove_at(dir: impl AsFd, name: &OsStr, bounds: &Bounds<'_>) -> Result<(), TreeError> {
    remove_entry(dir, name, bounds)
}

fn remove_entry(dir: impl AsFd, name: &OsStr, bounds: &Bounds<'_>) -> Result<(), TreeError> {
    let failed = |error: Errno| failed(Path::new(name), error);
    if unlink(&dir, name).map_err(failed)? {
        return Ok(());
    }
    let root = open(&dir, name).map_err(failed)?;
    Clearing { root, bounds, next: 0, left: None }.run(Path::new(name))?;
    unlinkat(&dir, name, AtFlags::REMOVEDIR).map_err(failed)
}

/// Removes what has the name in `dir`, if it is no folder; says whether it has gone.
fn unlink(dir: impl AsFd, name: &OsStr) -> Result<bool, Errno> {
    match unlinkat(&dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        // Linux says the first of a folder, POSIX the second.
        Err(error @ (Errno::ISDIR | Errno::PERM)) => {
            let stat = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory { Ok(false) } else { Err(error) }
        }
        Err(error) => Err(error),
    }
}

fn failed(path: &Path, error: Errno) -> TreeError {
    TreeError::Io { path: path.to_owned(), source: error.into() }
}

/// Opens a folder so that it can be emptied; a job may leave folders that even their owner cannot list or change.
fn open(dir: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let folder = match open_dir_at(&dir, name) {
        Err(Errno::ACCESS) => {
            set_mode(&dir, name, OWNER)?;
            open_dir_at(&dir, name)
        }
        opened => opened,
    }?;
    if fstat(&folder)?.st_mode & OWNER != OWNER {
        // Whoever is not the owner is told by the removal itself.
        let _refused = fchmod(&folder, Mode::from_raw_mode(OWNER));
    }
    Ok(folder)
}

/// The removal of all that is in a folder.
struct Clearing<'a> {
    root: OwnedFd,
    bounds: &'a Bounds<'a>,
    /// The number in the name of the next folder that is moved up.
    next: u64,
    /// The first thing that could not be removed in this pass.
    left: Option<(PathBuf, Errno)>,
}

impl Clearing<'_> {
    fn run(mut self, path: &Path) -> Result<(), TreeError> {
        // Each pass sees what the one before has moved up.
        loop {
            let (mut seen, mut gone) = (false, false);
            self.left = None;
            for entry in Dir::read_from(&self.root).map_err(|error| failed(path, error))? {
                self.bounds.check()?;
                let entry = entry.map_err(|error| failed(path, error))?;
                let name = OsStr::from_bytes(entry.file_name().to_bytes());
                if matches!(name.as_bytes(), b"." | b"..") {
                    continue;
                }
                seen = true;
                gone |= self.clear(name)?;
            }
            match self.left.take() {
                _ if !seen => return Ok(()),
                Some((at, error)) if !gone => return Err(failed(&path.join(at), error)),
                _ => {}
            }
        }
    }

    /// Removes an entry of the root; says whether it, or anything in it, has gone from there.
    fn clear(&mut self, name: &OsStr) -> Result<bool, TreeError> {
        match unlink(&self.root, name) {
            Ok(true) => return Ok(true),
            Ok(false) => {}
            Err(error) => return Ok(self.keep(name.into(), error)),
        }
        let folder = match open(&self.root, name) {
            Ok(folder) => folder,
            Err(error) => return Ok(self.keep(name.into(), error)),
        };
        let mut gone = false;
        loop {
            let mut more = false;
            let entries = match Dir::read_from(&folder) {
                Ok(entries) => entries,
                Err(error) => {
                    self.keep(name.into(), error);
                    return Ok(gone);
                }
            };
            for entry in entries {
                self.bounds.check()?;
                let entry = entry.map_err(|error| failed(Path::new(name), error))?;
                let inner = OsStr::from_bytes(entry.file_name().to_bytes());
                if matches!(inner.as_bytes(), b"." | b"..") {
                    continue;
                }
                match self.empty(&folder, inner) {
                    Ok(()) => more = true,
                    Err(error) => {
                        self.keep(Path::new(name).join(inner), error);
                    }
                }
            }
            gone |= more;
            if !more {
                break;
            }
        }
        match unlinkat(&self.root, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(true),
            Err(error) => {
                self.keep(name.into(), error);
                Ok(gone)
            }
        }
    }

    /// Removes an entry of a folder of the root, or moves it up into the root.
    fn empty(&mut self, folder: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
        if unlink(folder, name)? {
            return Ok(());
        }
        // Many are empty, and then they need not move.
        match unlinkat(folder, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        let mut opened = false;
        loop {
            let to = format!(".phalanx-{}", self.next);
            self.next += 1;
            match renameat(folder, name, &self.root, &to) {
                Ok(()) => return Ok(()),
                // Something has that name.
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
                // A folder that is moved is written to: its `..` changes.
                Err(Errno::ACCESS) if !opened => {
                    opened = true;
                    set_mode(folder, name, OWNER)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Notes what is left, for the message; gives `false` for its callers.
    fn keep(&mut self, path: PathBuf, error: Errno) -> bool {
        self.left.get_or_insert((path, error));
        false
    }
}

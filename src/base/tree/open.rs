//! One folder or one file, opened from its parent's descriptor, so that a process which still runs cannot swap a folder
//! for a link between a check and the use.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, RawMode, chmod, fstat, openat, statat};
use rustix::io::Errno;

const DIR_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Without blocking, in case a FIFO takes a file's place after it was looked at.
const FILE_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);
/// Names a file without opening it.
const PATH_FLAGS: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens a folder that must not be a link itself.
///
/// # Errors
/// What the system says; a link gives "not a directory".
pub fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(open_dir_at(CWD, path.as_os_str())?)
}

pub(super) fn open_dir_at(dir: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    openat(dir, name, DIR_FLAGS, Mode::empty())
}

/// Opens the regular file at `path`, a relative path without `..`, below `dir`; gives it with its size in bytes.
///
/// # Errors
/// If it is missing, a link or another special file, or lies behind a link.
pub fn open_file(dir: impl AsFd, path: &Path) -> io::Result<(File, u64)> {
    let mut parents = path.components();
    let name = parents.next_back().ok_or_else(|| io::Error::other("the path is empty"))?.as_os_str();
    let mut folder = dir.as_fd().try_clone_to_owned()?;
    for parent in parents {
        folder = open_dir_at(&folder, parent.as_os_str())?;
    }
    regular(kind_at(&folder, name)?)?;
    let file = openat(&folder, name, FILE_FLAGS, Mode::empty())?;
    let stat = fstat(&file)?;
    // Once more, because it may have been swapped.
    regular(FileType::from_raw_mode(stat.st_mode))?;
    Ok((File::from(file), u64::try_from(stat.st_size).unwrap_or(0)))
}

fn kind_at(dir: impl AsFd, name: &OsStr) -> io::Result<FileType> {
    Ok(FileType::from_raw_mode(statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode))
}

fn regular(kind: FileType) -> io::Result<()> {
    let what = match kind {
        FileType::RegularFile => return Ok(()),
        FileType::Symlink => "it is a symbolic link",
        FileType::Directory => "it is a folder, not a regular file",
        _ => "it is not a regular file",
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, what))
}

/// The names of what is in `dir`, whatever it is, sorted.
///
/// # Errors
/// If there are more than `max`, or what the system says.
pub fn names(dir: impl AsFd, max: usize) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        match entry.file_name().to_bytes() {
            b"." | b".." => {}
            _ if names.len() == max => return Err(super::TreeError::TooMany(max as u64, "entries").into()),
            name => names.push(OsStr::from_bytes(name).to_owned()),
        }
    }
    names.sort();
    Ok(names)
}

/// Sets the mode of a regular file or folder, which need not be readable for that.
pub(super) fn set_mode(dir: impl AsFd, name: &OsStr, mode: RawMode) -> Result<(), Errno> {
    let path = openat(dir, name, PATH_FLAGS, Mode::empty())?;
    if !matches!(FileType::from_raw_mode(fstat(&path)?.st_mode), FileType::RegularFile | FileType::Directory) {
        return Err(Errno::LOOP);
    }
    // There is no call that takes such a descriptor; through this link of the system it is no path of anybody else.
    use std::os::fd::AsRawFd;
    chmod(format!("/proc/self/fd/{}", path.as_raw_fd()), Mode::from_raw_mode(mode))
}

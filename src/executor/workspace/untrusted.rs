//! Reading a folder that a job has written: no link is followed, only regular files are opened.
//!
//! Every component of a path is opened from its parent's descriptor, so that a process which still runs cannot swap a
//! folder for a link between a check and the use.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, openat, renameat, statat, unlinkat};

/// Folders inside folders that are walked; each level holds a descriptor.
const DEPTH_MAX: usize = 100;

const DIR_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Without blocking, because a FIFO that takes a file's place would otherwise hang the open.
const FILE_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

/// Opens a folder that must not be a link itself.
///
/// # Errors
/// What the system says; a link gives "not a directory".
pub fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, DIR_FLAGS, Mode::empty())?)
}

/// Opens the regular file at `path`, a relative path without `..`, below `dir`; gives it with its size in bytes.
///
/// # Errors
/// If it is missing, a link or another special file, or lies behind a link.
pub fn open_file(dir: impl AsFd, path: &Path) -> io::Result<(File, u64)> {
    let mut parents = path.components();
    let name = parents.next_back().ok_or_else(|| io::Error::other("the path is empty"))?;
    let mut folder = dir.as_fd().try_clone_to_owned()?;
    for parent in parents {
        folder = openat(&folder, parent.as_os_str(), DIR_FLAGS, Mode::empty())?;
    }
    let file = openat(&folder, name.as_os_str(), FILE_FLAGS, Mode::empty()).map_err(|error| match error {
        rustix::io::Errno::LOOP => io::Error::other("it is a symbolic link"),
        error => error.into(),
    })?;
    let stat = fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok((File::from(file), u64::try_from(stat.st_size).unwrap_or(0)))
}

/// The regular files below `dir`, as paths relative to it, sorted; links and other special files are left out.
///
/// # Errors
/// If there are more than `files_max`, if folders are nested more than 100 deep, or what the system says.
pub fn walk(dir: impl AsFd, files_max: usize) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    walk_into(dir.as_fd().try_clone_to_owned()?, Path::new(""), files_max, &mut found)?;
    found.sort();
    Ok(found)
}

fn walk_into(dir: OwnedFd, prefix: &Path, files_max: usize, found: &mut Vec<PathBuf>) -> io::Result<()> {
    if prefix.components().count() > DEPTH_MAX {
        return Err(io::Error::other(format!("folders are nested more than {DEPTH_MAX} deep")));
    }
    for name in names(&dir, usize::MAX)? {
        // Not the type that the folder's listing gives: some file systems leave it out.
        match FileType::from_raw_mode(statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode) {
            FileType::RegularFile if found.len() == files_max => {
                return Err(io::Error::other(format!("there are more than {files_max} files")));
            }
            FileType::RegularFile => found.push(prefix.join(name)),
            FileType::Directory => {
                let folder = openat(&dir, &name, DIR_FLAGS, Mode::empty())?;
                walk_into(folder, &prefix.join(name), files_max, found)?;
            }
            _ => log::debug!("{} is neither file nor folder, left out", prefix.join(name).display()),
        }
    }
    Ok(())
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
            _ if names.len() == max => return Err(io::Error::other(format!("there are more than {max} entries"))),
            name => names.push(OsStr::from_bytes(name).to_owned()),
        }
    }
    names.sort();
    Ok(names)
}

/// Moves the file `from` to `name` in `dir`, in place of whatever is there; a folder there is removed with its content.
pub(super) fn replace(from: &Path, dir: &OwnedFd, name: &str) -> io::Result<()> {
    match renameat(CWD, from, dir, name) {
        Err(rustix::io::Errno::ISDIR) => {
            remove_dir(dir, name.as_ref())?;
            Ok(renameat(CWD, from, dir, name)?)
        }
        result => Ok(result?),
    }
}

fn remove_dir(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    // The descriptor's own path, so that the standard library's removal, which follows no links, starts from there.
    use std::os::fd::AsRawFd;
    let path = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd())).join(name);
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(unlinkat(parent, name, AtFlags::empty())?),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    #[test]
    fn only_regular_files_are_listed_and_opened() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "s").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        fs::create_dir_all(path.join("a/b")).unwrap();
        fs::write(path.join("a/b/deep.txt"), "deep").unwrap();
        fs::write(path.join("top.txt"), "top!").unwrap();
        symlink(outside.path().join("secret"), path.join("link")).unwrap();
        symlink(outside.path(), path.join("folder-link")).unwrap();
        let _socket = UnixListener::bind(path.join("socket")).unwrap();
        let dir = open_dir(path).unwrap();
        assert_eq!(walk(&dir, 2).unwrap(), [Path::new("a/b/deep.txt"), Path::new("top.txt")]);
        assert!(walk(&dir, 1).unwrap_err().to_string().contains("more than 1 files"));
        let (mut file, size) = open_file(&dir, Path::new("a/b/deep.txt")).unwrap();
        assert_eq!((io::read_to_string(&mut file).unwrap().as_str(), size), ("deep", 4));
        for bad in ["link", "folder-link/secret", "socket", "a", "missing", ""] {
            assert!(open_file(&dir, Path::new(bad)).is_err(), "{bad} was opened");
        }
        assert!(open_dir(&path.join("folder-link")).is_err());
    }
}

//! The walk over a tree: down by name, up by `..`.
//!
//! On the way down names are kept, not descriptors. On the way up it is checked that `..` is the folder that it came
//! from: who moves a folder meanwhile makes the walk lose that folder, never leave the tree.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, Dir, FileType, Gid, RawMode, Stat, Uid, chownat, fstat, statat};
use rustix::io::Errno;

use super::open::{open_dir_at, set_mode};
use super::{Bounds, TreeError};

/// Bytes of the names that a walk keeps: those of the folders above, and of those that it has still to enter. A quarter
/// of a million longest names are 64 MiB.
const NAMES_BYTES: usize = 64 << 20;

/// An entry of a folder.
pub struct Entry<'a> {
    /// The folder that it is in.
    pub dir: BorrowedFd<'a>,
    /// Its name there.
    pub name: &'a OsStr,
    /// What the system says of it, or of the link that it is.
    pub stat: Stat,
    above: &'a [Frame],
}

impl Entry<'_> {
    /// What it is.
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Its path from the root of the walk.
    pub fn path(&self) -> PathBuf {
        self.above.iter().skip(1).map(|frame| frame.name.as_os_str()).chain([self.name]).collect()
    }
}

/// How a walk went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Walked {
    /// Entries that were looked at.
    pub entries: u64,
    /// Folders that may not be entered.
    pub closed: u64,
}

/// A folder on the way from the root to where the walk is.
struct Frame {
    name: OsString,
    id: (u64, u64),
    /// Its folders that have still to be entered.
    folders: Vec<OsString>,
}

fn id(dir: impl AsFd) -> Result<(u64, u64), Errno> {
    let stat = fstat(dir)?;
    Ok((stat.st_dev, stat.st_ino))
}

struct Walk<'a, 'v> {
    root: BorrowedFd<'a>,
    bounds: &'a Bounds<'a>,
    visit: &'v mut dyn FnMut(&Entry<'_>) -> Result<(), TreeError>,
    stack: Vec<Frame>,
    names: usize,
    walked: Walked,
}

/// Calls `visit` for each entry below `root`, for that of a folder before the folder is entered. What vanishes
/// meanwhile is left out. A folder that may not be entered is counted in the result.
///
/// # Errors
/// [`TreeError`], also that of `visit`.
pub fn walk(
    root: impl AsFd,
    bounds: &Bounds<'_>,
    visit: &mut dyn FnMut(&Entry<'_>) -> Result<(), TreeError>,
) -> Result<Walked, TreeError> {
    let root = root.as_fd();
    let walk = Walk { root, bounds, visit, stack: Vec::new(), names: 0, walked: Walked::default() };
    walk.run()
}

impl Walk<'_, '_> {
    fn run(mut self) -> Result<Walked, TreeError> {
        let mut here = self.root.try_clone_to_owned().map_err(|source| self.failed("".as_ref(), source))?;
        self.enter(OsString::new(), &here)?;
        while let Some(top) = self.stack.last_mut() {
            let Some(name) = top.folders.pop() else {
                let left = self.stack.pop().map_or(0, |frame| frame.name.len());
                self.names -= left;
                match self.climb(&here) {
                    Some(parent) => here = parent,
                    None => break,
                }
                continue;
            };
            match open_dir_at(&here, &name) {
                Ok(folder) => {
                    self.enter(name, &folder)?;
                    here = folder;
                }
                Err(error) => {
                    self.names -= name.len();
                    match error {
                        Errno::ACCESS | Errno::PERM => self.walked.closed += 1,
                        // It has gone, or is something else by now.
                        Errno::NOENT | Errno::NOTDIR | Errno::LOOP => {}
                        error => return Err(self.failed(&name, error)),
                    }
                }
            }
        }
        Ok(self.walked)
    }

    fn failed(&self, name: &OsStr, source: impl Into<std::io::Error>) -> TreeError {
        let path = self.stack.iter().skip(1).map(|frame| frame.name.as_os_str()).chain([name]).collect();
        TreeError::Io { path, source: source.into() }
    }

    /// Looks at all entries of a folder.
    fn enter(&mut self, name: OsString, folder: &OwnedFd) -> Result<(), TreeError> {
        if self.stack.len() > self.bounds.depth {
            return Err(TreeError::TooDeep(self.bounds.depth));
        }
        let id = id(folder).map_err(|error| self.failed(&name, error))?;
        self.stack.push(Frame { name, id, folders: Vec::new() });
        let entries = match Dir::read_from(folder) {
            Ok(entries) => entries,
            // Whoever may read a folder and not search it may open it, and no more.
            Err(Errno::ACCESS | Errno::PERM) => {
                self.walked.closed += 1;
                return Ok(());
            }
            Err(error) => return Err(self.failed("".as_ref(), error)),
        };
        for entry in entries {
            self.bounds.check()?;
            let entry = entry.map_err(|error| self.failed("".as_ref(), error))?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if matches!(name.as_bytes(), b"." | b"..") {
                continue;
            }
            if self.walked.entries == self.bounds.entries {
                return Err(TreeError::TooMany(self.bounds.entries, "files and folders"));
            }
            self.walked.entries += 1;
            // Not the type that the folder's listing gives: some file systems leave it out.
            let stat = match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(Errno::ACCESS) => {
                    // The folder may be listed and not entered.
                    self.walked.closed += 1;
                    break;
                }
                Err(error) => return Err(self.failed(name, error)),
            };
            let entry = Entry { dir: folder.as_fd(), name, stat, above: &self.stack };
            (self.visit)(&entry)?;
            if entry.kind() == FileType::Directory {
                self.names += name.len();
                if self.names > NAMES_BYTES {
                    return Err(TreeError::TooMany(NAMES_BYTES as u64, "bytes of names of folders"));
                }
                let name = name.to_owned();
                self.stack.last_mut().expect("it was pushed above").folders.push(name);
            }
        }
        Ok(())
    }

    /// The folder of the last frame, coming from one below it. If that was moved, the deepest of the frames that still
    /// is where it was; the others are given up. `None` at the end of the walk.
    fn climb(&mut self, below: &OwnedFd) -> Option<OwnedFd> {
        let parent = self.stack.last()?;
        if let Ok(up) = open_dir_at(below, "..".as_ref())
            && id(&up).ok() == Some(parent.id)
        {
            return Some(up);
        }
        let mut here = self.root.try_clone_to_owned().ok()?;
        for depth in 1..self.stack.len() {
            let frame = &self.stack[depth];
            match open_dir_at(&here, &frame.name) {
                Ok(folder) if id(&folder).ok() == Some(frame.id) => here = folder,
                _ => {
                    for frame in self.stack.drain(depth..) {
                        self.walked.closed += 1;
                        self.names -= frame.name.len() + frame.folders.iter().map(|name| name.len()).sum::<usize>();
                    }
                    break;
                }
            }
        }
        Some(here)
    }
}

/// What [`files`] finds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The regular files, as paths relative to the root, sorted.
    pub files: Vec<PathBuf>,
    /// What is neither file nor folder, as links and devices, at most [`Found::OTHERS`] of it, sorted.
    pub others: Vec<PathBuf>,
}

impl Found {
    /// Paths of others that are kept: enough for a message.
    pub const OTHERS: usize = 100;
}

/// The regular files below `root`.
///
/// # Errors
/// [`TreeError`], also if there are more than `max` files, or a folder that may not be entered.
pub fn files(root: impl AsFd, max: usize, bounds: &Bounds<'_>) -> Result<Found, TreeError> {
    let mut found = Found::default();
    let walked = walk(root, bounds, &mut |entry| {
        match entry.kind() {
            FileType::RegularFile if found.files.len() == max => return Err(TreeError::TooMany(max as u64, "files")),
            FileType::RegularFile => found.files.push(entry.path()),
            FileType::Directory => {}
            _ if found.others.len() < Found::OTHERS => found.others.push(entry.path()),
            _ => {}
        }
        Ok(())
    })?;
    if walked.closed > 0 {
        let source = std::io::Error::new(
            std::io::ErrorKind::PermissionDenied,
            format!("{} folders cannot be read", walked.closed),
        );
        return Err(TreeError::Io { path: PathBuf::from("."), source });
    }
    found.files.sort();
    found.others.sort();
    Ok(found)
}

/// What a tree takes on its disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Bytes of its blocks; a file with several names counts once.
    pub bytes: u64,
    /// Files, folders and all else.
    pub entries: u64,
    /// Folders that could not be looked into, so that it may be more.
    pub closed: u64,
}

/// Bytes of one of `st_blocks`, whatever the blocks of the file system are.
const BLOCK_BYTES: u64 = 512;

/// Measures a tree; on an error together with what was seen until then.
///
/// # Errors
/// [`TreeError`].
pub fn measure(root: impl AsFd, bounds: &Bounds<'_>) -> (Size, Result<(), TreeError>) {
    let mut size = Size::default();
    let mut linked = HashSet::new();
    let walked = walk(root, bounds, &mut |entry| {
        let stat = &entry.stat;
        let counts =
            entry.kind() == FileType::Directory || stat.st_nlink <= 1 || linked.insert((stat.st_dev, stat.st_ino));
        size.entries += 1;
        if counts {
            size.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK_BYTES;
        }
        Ok(())
    });
    let ended = match walked {
        Ok(walked) => {
            size.closed = walked.closed;
            Ok(())
        }
        Err(error) => {
            // What is behind an error of the system was not looked into.
            size.closed = u64::from(matches!(error, TreeError::Io { .. }));
            Err(error)
        }
    };
    (size, ended)
}

/// Whether everything below `root` belongs to `user` and can be looked into; ends at the first that does not.
///
/// # Errors
/// [`TreeError`].
pub fn is_all_of(root: impl AsFd, user: Uid, bounds: &Bounds<'_>) -> Result<bool, TreeError> {
    let mut foreign = false;
    let walked = walk(root, bounds, &mut |entry| {
        foreign = entry.stat.st_uid != user.as_raw();
        if foreign { Err(TreeError::Stopped) } else { Ok(()) }
    });
    match walked {
        Err(TreeError::Stopped) if foreign => Ok(false),
        walked => Ok(walked?.closed == 0),
    }
}

/// What [`give`] gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody may do everything: for a container, whose user may be anyone.
    Everybody,
    /// The owner may read and write, and enter folders. The bits that lend an owner's rights to whoever runs a file go.
    Owner(Uid, Gid),
}

impl Access {
    fn mode(self, mode: RawMode, folder: bool) -> RawMode {
        match (self, folder) {
            (Access::Everybody, _) => 0o777,
            (Access::Owner(..), true) => mode & 0o777 | 0o700,
            (Access::Owner(..), false) => mode & 0o777 | 0o600,
        }
    }
}

/// Gives everything below `root` its access, and with [`Access::Owner`] its owner. Of what is neither file nor folder
/// the owner alone is changed.
///
/// # Errors
/// [`TreeError`]; the first entry that the system refuses ends it.
pub fn give(root: impl AsFd, access: Access, bounds: &Bounds<'_>) -> Result<Walked, TreeError> {
    walk(root, bounds, &mut |entry| {
        let failed = |error: Errno| TreeError::Io { path: entry.path(), source: error.into() };
        if let Access::Owner(user, group) = access
            && (entry.stat.st_uid, entry.stat.st_gid) != (user.as_raw(), group.as_raw())
        {
            chownat(entry.dir, entry.name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        }
        let folder = match entry.kind() {
            FileType::Directory => true,
            FileType::RegularFile => false,
            _ => return Ok(()),
        };
        let mode = access.mode(entry.stat.st_mode, folder);
        if mode != entry.stat.st_mode & 0o7777 {
            set_mode(entry.dir, entry.name, mode).map_err(failed)?;
        }
        Ok(())
    })
}

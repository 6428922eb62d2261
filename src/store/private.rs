//! Folders and files that are their owner's alone: they hold tokens of executors, secrets of jobs, and answers.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;

/// What others than the owner may do.
const OTHERS: u32 = 0o077;

/// What marks a folder that everybody shares, as that of temporary files.
const STICKY: u32 = 0o1000;

/// Files and folders of a state folder that are looked at: of a miner the spool has 2,000, images some hundreds.
const ENTRIES: usize = 100_000;

/// Makes a folder that is its owner's alone, whatever the umask; one that is there stays as it is.
pub(super) fn make(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Opens a file of a state folder to read and write it, and makes it if it is not there; it is its owner's alone from
/// then on. Blocks on the disk, and waits for nobody.
///
/// # Errors
/// The system's; that it is a link, which others may have laid while the folder was open to them, or no regular file.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
    let file = options.open(path).map_err(|error| {
        let is_link = error.raw_os_error() == Some(Errno::LOOP.raw_os_error());
        if is_link { is_a_link() } else { error }
    })?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

/// Makes a file its owner's alone, if it is there, without opening it: to close it again would drop the locks that
/// SQLite has on it in this process. Blocks on the disk.
///
/// # Errors
/// As [`open`].
pub(super) fn close_file(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_symlink() => Err(is_a_link()),
        Ok(_) => fs::set_permissions(path, Permissions::from_mode(0o600)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn is_a_link() -> io::Error {
    io::Error::other("it is a symbolic link, which is not followed there")
}

/// Takes from others what they may do with a folder that an older release or somebody else has made, and with what is
/// in it; says in one line of the log what it was. Links are not followed. What cannot be changed is told, too, and no
/// error: it worked before. Blocks on the disk.
pub(super) fn close(folder: &Path) {
    let mut open = Open::default();
    let closed = close_entry(folder, &mut open).and_then(|()| close_below(folder, &mut open));
    if let Some((path, mode)) = &open.first {
        log::warn!(
            "{} of the files and folders of {} were open to other users, the first {} (mode {mode:04o}): they are \
             closed; change what secrets they hold if others may have read them",
            open.count,
            folder.display(),
            path.display(),
        );
    }
    if let Err((path, error)) = closed {
        log::warn!("{} may be open to other users: {error}; chmod -R go= {}", path.display(), folder.display());
    }
}

/// What was open to others.
#[derive(Default)]
struct Open {
    count: usize,
    first: Option<(PathBuf, u32)>,
}

type Failed = (PathBuf, io::Error);

fn close_below(folder: &Path, open: &mut Open) -> Result<(), Failed> {
    let (mut folders, mut seen) = (vec![folder.to_owned()], 0);
    while let Some(folder) = folders.pop() {
        let failed = |error| (folder.clone(), error);
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            seen += 1;
            if seen > ENTRIES {
                let why = format!("there is more in it than the {ENTRIES} files and folders that were looked at");
                return Err(failed(io::Error::other(why)));
            }
            let (path, kind) = (entry.path(), entry.file_type().map_err(failed)?);
            if kind.is_symlink() {
                continue;
            }
            close_entry(&path, open)?;
            if kind.is_dir() {
                folders.push(path);
            }
        }
    }
    Ok(())
}

fn close_entry(path: &Path, open: &mut Open) -> Result<(), Failed> {
    let closed = fs::metadata(path).and_then(|metadata| {
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & OTHERS == 0 {
            return Ok(());
        }
        if mode & STICKY != 0 {
            return Err(io::Error::other("everybody has files there, so it stays as it is: give a folder of its own"));
        }
        fs::set_permissions(path, Permissions::from_mode(mode & !OTHERS))?;
        open.count += 1;
        open.first.get_or_insert((path.to_owned(), mode));
        Ok(())
    });
    match closed {
        // It has gone meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        closed => closed.map_err(|error| (path.to_owned(), error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn what_is_there_is_closed_and_links_are_not_followed() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let within = |name: &str| folder.path().join(name);
        make(&within("deep/spool")).unwrap();
        let outside = other.path().join("outside");
        for (path, mode) in [(within("role.db"), 0o644), (within("deep/spool/1"), 0o666), (within("deep/ssh"), 0o755)] {
            fs::write(&path, "x").unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        }
        fs::write(&outside, "x").unwrap();
        fs::set_permissions(&outside, Permissions::from_mode(0o644)).unwrap();
        symlink(&outside, within("link")).unwrap();
        for (path, mode) in [(folder.path().to_owned(), 0o755), (within("deep"), 0o777)] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        }
        close(folder.path());
        let found = ["", "deep", "deep/spool", "role.db", "deep/spool/1", "deep/ssh"].map(|name| mode(&within(name)));
        assert_eq!(found, [0o700, 0o700, 0o700, 0o600, 0o600, 0o700]);
        assert_eq!(mode(&outside), 0o644);
    }

    #[test]
    fn a_link_or_a_pipe_in_place_of_a_file_is_refused_and_nothing_is_changed() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let outside = other.path().join("outside");
        fs::write(&outside, "precious").unwrap();
        fs::set_permissions(&outside, Permissions::from_mode(0o644)).unwrap();
        for name in ["worker.lock", "role.db"] {
            symlink(&outside, folder.path().join(name)).unwrap();
        }
        let locked = super::super::lock::FolderLock::take(folder.path(), "worker.lock").unwrap_err().to_string();
        let opened = super::super::open(&folder.path().join("role.db"), &[]).unwrap_err().to_string();
        for (name, error) in [("worker.lock", locked), ("role.db", opened)] {
            assert!(error.contains(name) && error.contains("it is a symbolic link"), "{error}");
        }
        assert_eq!((mode(&outside), fs::read_to_string(&outside).unwrap().as_str()), (0o644, "precious"));
        let pipe = folder.path().join("pipe.db");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        let error = super::super::open(&pipe, &[]).unwrap_err().to_string();
        assert!(error.contains("pipe.db: "), "{error}");
        symlink(&outside, folder.path().join("other.db-wal")).unwrap();
        let error = super::super::open(&folder.path().join("other.db"), &[]).unwrap_err().to_string();
        assert!(error.contains("it is a symbolic link"), "{error}");
        assert_eq!(mode(&outside), 0o644);
    }

    #[test]
    fn a_folder_that_everybody_shares_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("of-another"), "x").unwrap();
        fs::set_permissions(folder.path().join("of-another"), Permissions::from_mode(0o644)).unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o1777)).unwrap();
        close(folder.path());
        assert_eq!((mode(folder.path()), mode(&folder.path().join("of-another"))), (0o1777, 0o644));
    }
}

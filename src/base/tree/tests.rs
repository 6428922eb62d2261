//! Trees as hostile jobs leave them, on a real disk.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, mkdirat, mknodat};

use super::*;
use crate::base::wait::far;

/// On a disk that takes milliseconds for each folder this many would take minutes.
const DEEP: usize = 100_000;
const DEEP_ON_DISK: usize = 500;

/// A folder in memory, where that is a file system, with the levels that are made there.
fn places() -> Vec<(tempfile::TempDir, usize)> {
    let mut places = vec![(tempfile::tempdir().unwrap(), DEEP_ON_DISK)];
    if let Ok(memory) = tempfile::tempdir_in("/dev/shm") {
        places.push((memory, DEEP));
    }
    places
}

/// Folders in folders, each with a file and a long name; gives the innermost.
fn deep(path: &Path, levels: usize) -> OwnedFd {
    let mut folder = open_dir(path).unwrap();
    let name = "d".repeat(100);
    for _ in 0..levels {
        mkdirat(&folder, &name, Mode::RWXU).unwrap();
        folder = open::open_dir_at(&folder, name.as_ref()).unwrap();
        let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
        rustix::fs::openat(&folder, "f", flags, Mode::RUSR).unwrap();
    }
    folder
}

#[test]
fn a_tree_of_100_000_levels_is_measured_given_and_removed() {
    for (parent, levels) in places() {
        // A recursive removal, as that of the temporary folder after a failure, would overflow the stack.
        let kept = parent.keep();
        let path = kept.join("deep");
        fs::create_dir(&path).unwrap();
        drop(deep(&path, levels));
        let stop = Shutdown::new();
        let bounds = Bounds::until(far(), &stop);
        let root = open_dir(&path).unwrap();
        let (size, ended) = measure(&root, &bounds);
        ended.unwrap();
        assert_eq!((size.entries, size.closed), (2 * levels as u64, 0));
        assert_eq!(give(&root, Access::Everybody, &bounds).unwrap().entries, 2 * levels as u64);
        let error = files(&root, 10, &Bounds { depth: 100, ..bounds }).unwrap_err();
        assert!(matches!(error, TreeError::TooMany(10, _) | TreeError::TooDeep(100)), "{error}");
        let few = Bounds { entries: 100, ..bounds };
        assert!(matches!(measure(&root, &few), (Size { entries: 100, .. }, Err(TreeError::TooMany(100, _)))));
        remove(&path, &bounds).unwrap();
        fs::remove_dir(&kept).expect("nothing is left");
    }
}

#[test]
fn a_walk_ends_at_its_deadline_and_at_a_stop() {
    let parent = tempfile::tempdir().unwrap();
    let stop = Shutdown::new();
    let path = parent.path().join("tree");
    fs::create_dir_all(path.join("a/b")).unwrap();
    let root = open_dir(&path).unwrap();
    let late = Bounds::until(Instant::now().checked_sub(Duration::from_secs(1)).unwrap(), &stop);
    assert!(matches!(measure(&root, &late).1, Err(TreeError::Late)));
    assert!(matches!(remove(&path, &late), Err(TreeError::Late)));
    stop.cancel();
    let stopped = Bounds::until(far(), &stop);
    assert!(matches!(measure(&root, &stopped).1, Err(TreeError::Stopped)));
    assert!(matches!(remove(&path, &stopped), Err(TreeError::Stopped)));
    assert!(path.join("a/b").exists());
}

#[test]
fn only_regular_files_are_listed_and_opened() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "s").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::create_dir_all(path.join("a/b")).unwrap();
    fs::write(path.join("a/b/deep.txt"), "deep").unwrap();
    fs::write(path.join("top.txt"), "top!").unwrap();
    let odd = OsStr::from_bytes(&[b'a'; 250]).to_owned();
    let odd = OsStr::from_bytes(&[odd.as_bytes(), b"\xff\xfe\n\x1b\x80"].concat()).to_owned();
    fs::write(path.join(&odd), "odd").unwrap();
    symlink(outside.path().join("secret"), path.join("link")).unwrap();
    symlink(outside.path(), path.join("folder-link")).unwrap();
    let _socket = UnixListener::bind(path.join("socket")).unwrap();
    mknodat(CWD, path.join("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    let mut special = vec!["fifo", "folder-link", "link", "socket"];
    // Of the system's null device; needs root.
    if mknodat(CWD, path.join("device"), FileType::CharacterDevice, Mode::RWXU, rustix::fs::makedev(1, 3)).is_ok() {
        special.insert(0, "device");
    }
    let dir = open_dir(path).unwrap();
    let stop = Shutdown::new();
    let bounds = Bounds::until(far(), &stop);
    let found = files(&dir, 3, &bounds).unwrap();
    assert_eq!(found.files, [Path::new("a/b/deep.txt"), odd.as_ref(), Path::new("top.txt")]);
    assert_eq!(found.others, special.iter().map(Path::new).collect::<Vec<_>>());
    assert!(files(&dir, 2, &bounds).unwrap_err().to_string().contains("more than 2 files"));
    let (mut file, size) = open_file(&dir, Path::new("a/b/deep.txt")).unwrap();
    assert_eq!((io::read_to_string(&mut file).unwrap().as_str(), size), ("deep", 4));
    for bad in special.iter().copied().chain(["folder-link/secret", "a", "missing", ""]) {
        assert!(open_file(&dir, Path::new(bad)).is_err(), "{bad} was opened");
    }
    assert!(open_dir(&path.join("folder-link")).is_err());
    assert_eq!(names(&dir, 100).unwrap().len(), 3 + special.len());
    assert!(names(&dir, 2).unwrap_err().to_string().contains("more than 2 entries"));
    // Removal and modes touch the links themselves, never what they lead to.
    give(&dir, Access::Everybody, &bounds).unwrap();
    assert_eq!(fs::metadata(path.join("top.txt")).unwrap().permissions().mode() & 0o777, 0o777);
    remove(path, &bounds).unwrap();
    assert!(!path.exists());
    assert_eq!(fs::metadata(outside.path().join("secret")).unwrap().permissions().mode() & 0o777, 0o644);
    fs::create_dir(path).unwrap();
}

#[test]
fn many_entries_locked_folders_and_taken_names_are_removed() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("tree");
    for n in 0..50 {
        let locked = path.join(format!("{n}/locked/in"));
        fs::create_dir_all(&locked).unwrap();
        // The names that a removal uses itself.
        fs::create_dir_all(path.join(format!(".phalanx-{n}/x"))).unwrap();
        fs::write(path.join(format!("{n}/.phalanx-{n}")), "x").unwrap();
        for m in 0..40 {
            fs::write(locked.join(m.to_string()), "x").unwrap();
        }
        for folder in [&locked, locked.parent().unwrap()] {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o000)).unwrap();
        }
    }
    let stop = Shutdown::new();
    let bounds = Bounds::until(far(), &stop);
    remove(&path, &bounds).unwrap();
    assert!(!path.exists());
    remove(&path, &bounds).expect("what is not there is removed");
    fs::write(&path, "a file").unwrap();
    remove(&path, &bounds).unwrap();
    assert!(!path.exists());
}

#[test]
fn a_file_with_many_names_is_measured_once_and_a_sparse_one_by_its_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("0");
    fs::write(&file, vec![7; 1 << 20]).unwrap();
    for n in 1..10 {
        fs::hard_link(&file, folder.path().join(n.to_string())).unwrap();
    }
    let sparse = fs::File::create(folder.path().join("sparse")).unwrap();
    sparse.set_len(1 << 40).unwrap();
    let stop = Shutdown::new();
    let (size, ended) = measure(open_dir(folder.path()).unwrap(), &Bounds::until(far(), &stop));
    ended.unwrap();
    assert_eq!(size.entries, 11);
    assert!((1 << 20..2 << 20).contains(&size.bytes), "{size:?}");
}

#[test]
fn a_folder_that_is_moved_away_in_mid_walk_leads_nowhere() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "s").unwrap();
    let folder = tempfile::tempdir().unwrap();
    for name in ["a/b/c", "z"] {
        fs::create_dir_all(folder.path().join(name)).unwrap();
    }
    fs::write(folder.path().join("a/b/c/file"), "x").unwrap();
    let stop = Shutdown::new();
    let mut seen = Vec::new();
    let walked = walk(open_dir(folder.path()).unwrap(), &Bounds::until(far(), &stop), &mut |entry| {
        if entry.name == "file" {
            // From below c the way up leads to another folder now.
            fs::rename(folder.path().join("a/b/c"), outside.path().join("c")).unwrap();
        }
        seen.push(entry.path());
        Ok(())
    })
    .unwrap();
    seen.sort();
    assert_eq!(seen, ["a", "a/b", "a/b/c", "a/b/c/file", "z"].map(PathBuf::from));
    assert_eq!(walked.entries, 5);
}

#[test]
fn messages_show_the_end_of_a_long_path() {
    let path = PathBuf::from("ä/".repeat(1000)).join("name");
    let text = TreeError::Io { path, source: io::Error::other("no") }.to_string();
    assert!(text.starts_with('…') && text.ends_with("name: no") && text.chars().count() < 220, "{text}");
}

#[test]
fn an_owner_s_access_is_added_and_the_owner_is_changed_where_that_is_possible() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("f"), "x").unwrap();
    let stop = Shutdown::new();
    let bounds = Bounds::until(far(), &stop);
    fs::set_permissions(path.join("f"), fs::Permissions::from_mode(0o040)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o001)).unwrap();
    let ours = fs::metadata(folder.path()).unwrap();
    let root = open_dir(folder.path()).unwrap();
    let owner = |uid, gid| Access::Owner(rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
    give(&root, owner(ours.uid(), ours.gid()), &bounds).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&path.join("f"))), (0o701, 0o640));
    // A file that is given to another user lends nobody that user's rights.
    fs::set_permissions(path.join("f"), fs::Permissions::from_mode(0o6755)).unwrap();
    give(&root, owner(ours.uid(), ours.gid()), &bounds).unwrap();
    assert_eq!(fs::metadata(path.join("f")).unwrap().mode() & 0o7777, 0o755);
    let given = give(&root, owner(12345, 12345), &bounds);
    match rustix::process::geteuid().is_root() {
        true => assert_eq!(fs::metadata(path.join("f")).unwrap().uid(), 12345),
        false => assert!(matches!(given, Err(TreeError::Io { .. }))),
    }
}

//! Unpacking a zip from the wire: nothing may leave its folder, replace a folder, be a link, or explode.

use std::cell::Cell;
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use zip::ZipArchive;
use zip::result::ZipError;

use crate::executor::transfer::Bounds;
use crate::executor::workspace::relative;

/// What an archive may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchiveLimits {
    /// Bytes of all files together when unpacked.
    pub bytes: u64,
    /// Files and folders.
    pub entries: usize,
    /// How many times the archive's own size the unpacked files may be, once they are more than `ratio_from` bytes.
    pub ratio: u64,
    /// See `ratio`: a small archive of zeros is no bomb.
    pub ratio_from: u64,
}

impl Default for ArchiveLimits {
    /// 16 GiB, eight times the largest archive; 100,000 entries; 200 times (text packs to a tenth, a bomb to a
    /// thousandth) from 256 MiB on.
    fn default() -> Self {
        Self { bytes: 16 << 30, entries: 100_000, ratio: 200, ratio_from: 256 << 20 }
    }
}

/// Bytes of an archive's directory that are read: 100,000 entries of about 300 bytes. It is kept in memory, so an
/// archive that is nothing but directory must end early.
const DIRECTORY_BYTES: u64 = 32 << 20;

/// Why an archive was not unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// It cannot be read at all.
    #[error("not a readable zip archive: {0}")]
    Unreadable(String),
    /// One entry is refused; nothing of the archive is unpacked then, unless the entry lied about its size.
    #[error("zip entry {entry:?}: {why}")]
    Entry {
        /// The entry's name as it stands in the archive.
        entry: String,
        /// What is wrong with it.
        why: String,
    },
    /// It holds too much.
    #[error("zip archive is too large: {0}")]
    TooLarge(String),
    /// Cancelled, timed out, or the disk refused.
    #[error("cannot unpack zip entry {entry:?}: {source}")]
    Io {
        /// The entry's name.
        entry: String,
        /// The error of the system.
        source: io::Error,
    },
}

/// Unpacks `archive`, which is `size` bytes long, below the folder `into`, which is made if need be.
pub(super) fn unpack(
    archive: impl Read + Seek,
    size: u64,
    into: &Path,
    limits: ArchiveLimits,
    bounds: Bounds,
) -> Result<(), ArchiveError> {
    let budget = Rc::new(Cell::new(DIRECTORY_BYTES));
    let mut archive = ZipArchive::new(Metered { inner: archive, left: budget.clone() })
        .map_err(|error| ArchiveError::Unreadable(error.to_string()))?;
    budget.set(u64::MAX);
    let plan = plan(&mut archive, size, limits)?;
    let allowed = limits.bytes.min(limits.ratio_from.max(size.saturating_mul(limits.ratio)));
    let mut left = allowed;
    let io_error = |entry: &str, source| ArchiveError::Io { entry: entry.to_owned(), source };
    fs::create_dir_all(into).map_err(|error| io_error("", error))?;
    for Planned { index, name, path, is_dir } in plan {
        let path = into.join(path);
        let folder = if is_dir { &path } else { path.parent().expect("a file's path has a parent, at least `into`") };
        fs::create_dir_all(folder).map_err(|error| io_error(&name, error))?;
        if is_dir {
            continue;
        }
        let mut entry = archive.by_index(index).map_err(|error| refused(&name, &error))?;
        let mut file = create(&path).map_err(|error| io_error(&name, error))?;
        // Its true size counts, not the one that it announces.
        let written =
            bounds.copy(&mut entry, &mut file, left.saturating_add(1)).map_err(|error| match error.kind() {
                // So the zip reader tells of broken data, as a wrong checksum.
                io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
                    ArchiveError::Entry { entry: name.clone(), why: error.to_string() }
                }
                _ => io_error(&name, error),
            })?;
        left = left.checked_sub(written).ok_or_else(|| too_large(allowed))?;
    }
    Ok(())
}

struct Planned {
    index: usize,
    name: String,
    path: PathBuf,
    is_dir: bool,
}

/// Looks at every entry before anything is written.
fn plan<R: Read + Seek>(
    archive: &mut ZipArchive<R>,
    size: u64,
    limits: ArchiveLimits,
) -> Result<Vec<Planned>, ArchiveError> {
    if archive.len() > limits.entries {
        return Err(ArchiveError::TooLarge(format!(
            "it has {} entries, more than the allowed {}",
            archive.len(),
            limits.entries
        )));
    }
    let mut plan = Vec::with_capacity(archive.len());
    let mut files = HashSet::new();
    let mut announced = 0u64;
    for index in 0..archive.len() {
        let name = archive.name_for_index(index).unwrap_or_default().to_owned();
        let bad = |why: &str| ArchiveError::Entry { entry: name.clone(), why: why.to_owned() };
        let entry = archive.by_index_raw(index).map_err(|error| refused(&name, &error))?;
        let path = relative(&name).map_err(|error| bad(error.why))?;
        let is_dir = entry.is_dir();
        match entry.unix_mode().unwrap_or(0) & 0o170_000 {
            0 | 0o100_000 | 0o040_000 => {}
            0o120_000 => return Err(bad("it is a symbolic link; only files and folders are unpacked")),
            _ => return Err(bad("it is a special file; only files and folders are unpacked")),
        }
        announced = announced.saturating_add(entry.size());
        drop(entry);
        if path.as_os_str().is_empty() {
            if is_dir {
                continue;
            }
            return Err(bad("it has no file name"));
        }
        if !is_dir && !files.insert(path.clone()) {
            return Err(bad("it is there twice"));
        }
        plan.push(Planned { index, name, path, is_dir });
    }
    for Planned { name, path, is_dir, .. } in &plan {
        // A folder that is also a file, or a file below a file; whatever comes first in the archive.
        if let Some(file) = path.ancestors().skip(usize::from(!is_dir)).find(|folder| files.contains(*folder)) {
            let why = format!("it needs a folder where {file:?} is a file");
            return Err(ArchiveError::Entry { entry: name.clone(), why });
        }
    }
    let allowed = limits.bytes.min(limits.ratio_from.max(size.saturating_mul(limits.ratio)));
    if announced > allowed { Err(too_large(allowed)) } else { Ok(plan) }
}

fn too_large(allowed: u64) -> ArchiveError {
    ArchiveError::TooLarge(format!("its files have more than the {allowed} bytes that an archive of its size may have"))
}

fn refused(entry: &str, error: &ZipError) -> ArchiveError {
    ArchiveError::Entry { entry: entry.to_owned(), why: error.to_string() }
}

/// Creates a file anew; one that an earlier volume has left there is replaced, as on the Python executor.
fn create(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    File::create_new(path)
}

/// A reader that fails once its budget is used up.
struct Metered<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        let Some(left) = self.left.get().checked_sub(n as u64) else {
            return Err(io::Error::other(format!("its directory has more than {DIRECTORY_BYTES} bytes")));
        };
        self.left.set(left);
        Ok(n)
    }
}

impl<R: Seek> Seek for Metered<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::shutdown::Shutdown;
    use std::io::{Cursor, Write};
    use std::time::{Duration, Instant};
    use zip::write::SimpleFileOptions;
    use zip::{CompressionMethod, ZipWriter};

    /// Makes an archive; a name that ends with `/` is a folder.
    fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        for (name, content) in entries {
            zip.start_file(*name, SimpleFileOptions::default()).unwrap();
            zip.write_all(content).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    fn unpack_with(bytes: &[u8], limits: ArchiveLimits) -> (Result<(), ArchiveError>, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let token = Shutdown::new();
        let bounds = Bounds { token: &token, deadline: Instant::now() + Duration::from_secs(60) };
        let into = folder.path().join("in");
        let result = unpack(Cursor::new(bytes), bytes.len() as u64, &into, limits, bounds);
        (result, folder)
    }

    fn refusal(bytes: &[u8], limits: ArchiveLimits) -> String {
        let (result, folder) = unpack_with(bytes, limits);
        let error = result.unwrap_err().to_string();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "something was written: {error}");
        error
    }

    #[test]
    fn files_and_folders_come_out() {
        let bytes = archive(&[("a.txt", b"a"), ("d/e/b.bin", b"\0\xff"), ("empty/", b""), ("./c", b"c")]);
        let (result, folder) = unpack_with(&bytes, ArchiveLimits::default());
        result.unwrap();
        let into = folder.path().join("in");
        assert_eq!(fs::read(into.join("a.txt")).unwrap(), b"a");
        assert_eq!(fs::read(into.join("d/e/b.bin")).unwrap(), b"\0\xff");
        assert_eq!(fs::read(into.join("c")).unwrap(), b"c");
        assert!(into.join("empty").is_dir());
    }

    #[test]
    fn what_would_leave_its_folder_is_refused_by_name() {
        for name in ["../x", "a/../../x", "/etc/x", "C:\\x", "a\\..\\..\\x", "c:x", "..", "a/.."] {
            let error = refusal(&archive(&[("fine", b""), (name, b"x")]), ArchiveLimits::default());
            assert!(error.contains(&format!("{name:?}")), "{error}");
        }
    }

    #[test]
    fn links_and_special_files_are_refused() {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        zip.add_symlink("link", "/etc/passwd", SimpleFileOptions::default()).unwrap();
        let error = refusal(&zip.finish().unwrap().into_inner(), ArchiveLimits::default());
        assert!(error.contains("\"link\"") && error.contains("symbolic link"), "{error}");

        for (kind, name) in [(0o010_000u32, "fifo"), (0o020_000, "device"), (0o140_000, "socket")] {
            let mut bytes = archive(&[(name, b"")]);
            // The upper half of the external attributes in the central directory, whose signature is PK 1 2.
            let at = bytes.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
            bytes[at + 40..at + 42].copy_from_slice(&((kind | 0o644) as u16).to_le_bytes());
            let error = refusal(&bytes, ArchiveLimits::default());
            assert!(error.contains(&format!("{name:?}")) && error.contains("special file"), "{error}");
        }
    }

    #[test]
    fn a_path_cannot_be_file_and_folder_nor_be_there_twice() {
        for (entries, bad) in [
            ([("a", b"1".as_slice()), ("a/b", b"2")], "a/b"),
            ([("a/b", b"2"), ("a", b"1")], "a/b"),
            ([("a", b"1"), ("a/", b"")], "a/"),
            ([("a/b/", b""), ("a", b"1")], "a/b/"),
            ([("a", b"1"), ("./a", b"2")], "./a"),
        ] {
            let error = refusal(&archive(&entries), ArchiveLimits::default());
            assert!(error.contains(&format!("zip entry {bad:?}")), "{error}");
        }
    }

    #[test]
    fn bombs_are_refused_before_anything_is_written() {
        let limits = ArchiveLimits { bytes: 1_000_000, entries: 3, ratio: 100, ratio_from: 10_000 };
        let zeros = vec![0; 900_000];
        let error = refusal(&archive(&[("zeros", &zeros)]), limits);
        assert!(error.contains("too large"), "ratio: {error}");
        let noise: Vec<u8> = (0..600_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let error = refusal(&archive(&[("a", &noise), ("b", &noise)]), limits);
        assert!(error.contains("1000000 bytes"), "total: {error}");
        let error = refusal(&archive(&[("a", b""), ("b", b""), ("c", b""), ("d", b"")]), limits);
        assert!(error.contains("4 entries"), "entries: {error}");
        assert!(unpack_with(&archive(&[("zeros", &zeros[..9_000])]), limits).0.is_ok(), "a few zeros are no bomb");
    }

    #[test]
    fn a_size_that_is_a_lie_does_not_help() {
        let limits = ArchiveLimits { bytes: 100_000, entries: 3, ratio: 1_000, ratio_from: 1_000 };
        let mut bytes = archive(&[("zeros", &vec![0; 900_000])]);
        for (signature, offset) in [(b"PK\x01\x02", 24), (b"PK\x03\x04", 22)] {
            let at = bytes.windows(4).position(|window| window == signature).unwrap() + offset;
            bytes[at..at + 4].copy_from_slice(&10u32.to_le_bytes());
        }
        let (result, folder) = unpack_with(&bytes, limits);
        assert!(result.is_err());
        let written = fs::metadata(folder.path().join("in/zeros")).map_or(0, |file| file.len());
        assert!(written <= 100_001, "{written}");
    }

    #[test]
    fn an_archive_that_is_nothing_but_directory_ends_early() {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        let long = "x".repeat(60_000);
        let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        for n in 0..600 {
            zip.start_file(format!("{n}-{long}"), stored).unwrap();
        }
        let error = refusal(&zip.finish().unwrap().into_inner(), ArchiveLimits::default());
        assert!(error.starts_with("not a readable zip"), "{error}");
    }

    #[test]
    fn broken_archives_are_told() {
        let error = refusal(b"UEsFBg==", ArchiveLimits::default());
        assert!(error.starts_with("not a readable zip archive"), "{error}");
        let mut bytes = archive(&[("a", b"some content that is stored and then changed")]);
        bytes[40] ^= 0xff;
        let (result, _folder) = unpack_with(&bytes, ArchiveLimits::default());
        assert!(result.unwrap_err().to_string().contains("\"a\""));
    }

    #[test]
    fn deadline_and_cancel_end_it() {
        let bytes = archive(&[("a", b"a")]);
        let folder = tempfile::tempdir().unwrap();
        let token = Shutdown::new();
        let run = |deadline| {
            let bounds = Bounds { token: &token, deadline };
            unpack(Cursor::new(&bytes), 100, folder.path(), ArchiveLimits::default(), bounds).unwrap_err()
        };
        let error = run(Instant::now());
        assert!(
            matches!(&error, ArchiveError::Io { source, .. } if source.kind() == io::ErrorKind::TimedOut),
            "{error}"
        );
        token.cancel();
        let error = run(Instant::now() + Duration::from_secs(60));
        assert!(
            matches!(&error, ArchiveError::Io { source, .. } if source.kind() == io::ErrorKind::Interrupted),
            "{error}"
        );
    }
}

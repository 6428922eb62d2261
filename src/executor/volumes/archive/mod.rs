//! Unpacking a zip from the wire: nothing may leave its folder, replace a folder, be a link, or explode.
//!
//! Names are taken as Python's `zipfile` takes them. All entries are looked at before the first is written.

mod error;
mod plan;

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use zip::ZipArchive;
use zip::result::ZipError;

pub use self::error::ArchiveError;
use self::plan::{Planned, plan, refused};
use super::space::Space;
use crate::executor::transfer::Bounds;

/// What an archive may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchiveLimits {
    /// Bytes of all files together when unpacked.
    pub bytes: u64,
    /// Files and folders, also those that are only in the names of others.
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

/// Reads of the directory between two looks at the clock.
const READS: u32 = 256;

/// Unpacks `archive`, which is `size` bytes long, below the folder `into`, which is made if need be; its files count as
/// `space`.
pub(super) fn unpack(
    archive: impl Read + Seek,
    size: u64,
    into: &Path,
    (limits, space): (ArchiveLimits, &mut Space),
    bounds: Bounds,
) -> Result<(), ArchiveError> {
    let budget = Rc::new(Cell::new(DIRECTORY_BYTES));
    let directory = Metered { inner: archive, left: budget.clone(), reads: 0, bounds };
    let mut archive = ZipArchive::new(directory).map_err(|error| match error {
        ZipError::Io(source) if is_end(&source) => ArchiveError::Io { entry: String::new(), source },
        error => ArchiveError::Unreadable(error.to_string()),
    })?;
    budget.set(u64::MAX);
    let most = limits.bytes.min(limits.ratio_from.max(size.saturating_mul(limits.ratio)));
    let allowed = most.min(space.left());
    let too_large = |space: &Space| if most > space.left() { space.exceeded().into() } else { too_large(most) };
    let (plan, announced) = plan(&mut archive, limits.entries, bounds)?;
    if announced > allowed {
        return Err(too_large(space));
    }
    let mut left = allowed;
    let io_error = |entry: &str, source| ArchiveError::Io { entry: entry.to_owned(), source };
    fs::create_dir_all(into).map_err(|error| io_error("", error))?;
    // The folder of most files is that of the one before.
    let mut made: Option<PathBuf> = None;
    for Planned { index, path, is_dir } in plan {
        let name = archive.name_for_index(index).unwrap_or_default().to_owned();
        bounds.check().map_err(|error| io_error(&name, error))?;
        let path = into.join(path);
        let folder = if is_dir { &path } else { path.parent().expect("a file's path has a parent, at least `into`") };
        if made.as_deref() != Some(folder) {
            fs::create_dir_all(folder).map_err(|error| io_error(&name, error))?;
            made = Some(folder.to_owned());
        }
        if is_dir {
            continue;
        }
        let entry = archive.by_index(index).map_err(|error| refused(&name, &error))?;
        let mut file = create(&path).map_err(|error| io_error(&name, error))?;
        // Its true size counts, not the one that it announces.
        let written = bounds.copy(&mut Content(entry), &mut file, left.saturating_add(1));
        let written = written.map_err(|error| match error.downcast::<Broken>() {
            Ok(Broken(error)) => ArchiveError::Entry { entry: name.clone(), why: error.to_string() },
            Err(error) => io_error(&name, error),
        })?;
        left = left.checked_sub(written).ok_or_else(|| too_large(space))?;
    }
    space.take(allowed - left);
    Ok(())
}

fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

/// The content of an entry; its errors are told from those of the disk.
struct Content<R>(R);

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Broken(io::Error);

impl<R: Read> Read for Content<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| if is_end(&error) { error } else { io::Error::other(Broken(error)) })
    }
}

fn too_large(allowed: u64) -> ArchiveError {
    ArchiveError::TooLarge(format!("its files have more than the {allowed} bytes that an archive of its size may have"))
}

/// Creates a file anew; one that an earlier volume has left there is replaced, as on the Python executor.
fn create(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    File::create_new(path)
}

/// A reader that fails once its budget is used up, and at the end of its bounds.
struct Metered<'b, R> {
    inner: R,
    left: Rc<Cell<u64>>,
    reads: u32,
    bounds: Bounds<'b>,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reads = self.reads.wrapping_add(1);
        if self.reads.is_multiple_of(READS) {
            self.bounds.check()?;
        }
        let n = self.inner.read(buffer)?;
        let Some(left) = self.left.get().checked_sub(n as u64) else {
            return Err(io::Error::other(format!("its directory has more than {DIRECTORY_BYTES} bytes")));
        };
        self.left.set(left);
        Ok(n)
    }
}

impl<R: Seek> Seek for Metered<'_, R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

#[cfg(test)]
mod tests;

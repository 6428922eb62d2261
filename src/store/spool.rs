//! What an executor could not tell its miner, in a folder that the miner owns: a file for each executor, for the next
//! contact.
//!
//! Files are written beside their name and renamed, so that nobody reads half of one. They are for their owner alone:
//! the executor's token and the job's output are in them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::private;
use crate::base::limits::{SPOOL_BYTES, SPOOL_FILE_BYTES, SPOOL_FILES};

/// Of a file that is whole.
const EXTENSION: &str = "spool";

/// Of a file that is being written.
const PART: &str = "part";

/// A part this old has no writer any more: one writes for seconds, at most.
const PART_AGE: Duration = Duration::from_secs(600);

/// Why something was not kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpoolError {
    /// The folder holds what it may hold.
    #[error("spool folder {} is full: {files} files, {bytes} bytes", folder.display())]
    Full {
        /// The folder.
        folder: PathBuf,
        /// Files in it.
        files: usize,
        /// Their bytes.
        bytes: u64,
    },
    /// The system does not do it.
    #[error("spool folder {}: {source}", folder.display())]
    Io {
        /// The folder.
        folder: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// What one executor had to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spooled {
    /// By which the miner knows it.
    pub token: String,
    /// Its messages about its job, in order.
    pub messages: Vec<String>,
}

/// The folder.
#[derive(Debug, Clone)]
pub struct Spool {
    folder: PathBuf,
}

impl Spool {
    /// The spool in `folder`, which is made when it is first written to.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Keeps what an executor had to say, on the disk.
    ///
    /// # Errors
    /// [`SpoolError`]; then nothing is kept.
    pub fn keep(&self, spooled: &Spooled) -> Result<(), SpoolError> {
        let text = serde_json::to_vec(spooled).map_err(|error| self.io(error.into()))?;
        self.write(&text)
    }

    fn write(&self, text: &[u8]) -> Result<(), SpoolError> {
        let io = |source| self.io(source);
        private::make(&self.folder).map_err(io)?;
        let (mut files, mut bytes) = (0, 0);
        for entry in fs::read_dir(&self.folder).map_err(io)? {
            files += 1;
            bytes += entry.and_then(|entry| entry.metadata()).map_or(0, |metadata| metadata.len());
        }
        let more = text.len() as u64;
        if files >= SPOOL_FILES || bytes + more > SPOOL_BYTES || more > SPOOL_FILE_BYTES {
            return Err(SpoolError::Full { folder: self.folder.clone(), files, bytes });
        }
        let part = self.folder.join(uuid::Uuid::new_v4().to_string()).with_extension(PART);
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&part)
            .and_then(|mut file| file.write_all(text).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&part, part.with_extension(EXTENSION)))
            .and_then(|()| File::open(&self.folder)?.sync_all());
        if written.is_err() {
            // What there is of it helps nobody; that it cannot be written is the error that counts.
            let _ = fs::remove_file(&part);
        }
        written.map_err(io)
    }

    /// Gives what is kept to `take`, one after the other, and removes each once that has returned. A file that was not
    /// written here is removed with a line in the log, and a part that its writer has left. What cannot be read now
    /// stays, and the others are taken all the same. A folder that is not there holds nothing.
    ///
    /// # Errors
    /// The first, if the folder cannot be read or a file not read or removed.
    pub fn take(&self, mut take: impl FnMut(Spooled)) -> Result<(), SpoolError> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(|error| self.io(error))?,
        };
        let mut first = Ok(());
        for entry in entries {
            let taken = entry.and_then(|entry| take_file(&entry.path(), &mut take));
            // Another thread may have taken it.
            let taken =
                taken.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) });
            first = first.and(taken);
        }
        first.map_err(|error| self.io(error))
    }

    fn io(&self, source: io::Error) -> SpoolError {
        SpoolError::Io { folder: self.folder.clone(), source }
    }
}

fn take_file(path: &Path, take: &mut impl FnMut(Spooled)) -> io::Result<()> {
    let extension = path.extension().unwrap_or_default();
    if extension == PART {
        // One from the future is being written.
        let age = fs::symlink_metadata(path)?.modified()?.elapsed().unwrap_or_default();
        return if age < PART_AGE { Ok(()) } else { fs::remove_file(path) };
    }
    if extension != EXTENSION {
        return Ok(());
    }
    match read(path) {
        Ok(spooled) => take(spooled),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            log::warn!("spooled file {} is dropped: {error}", path.display());
        }
        Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
    }
    fs::remove_file(path)
}

/// Reads a file; `InvalidData` says that it will never be readable.
fn read(path: &Path) -> io::Result<Spooled> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let bytes = fs::symlink_metadata(path)?.len();
    if bytes > SPOOL_FILE_BYTES {
        return Err(invalid(format!("it has {bytes} bytes, at most {SPOOL_FILE_BYTES} are written")));
    }
    serde_json::from_slice(&fs::read(path)?).map_err(|error| invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn spooled(n: usize) -> Spooled {
        Spooled { token: format!("token-{n}"), messages: vec![r#"{"a":"ä\n"}"#.to_owned(), n.to_string()] }
    }

    fn taken(spool: &Spool) -> Vec<Spooled> {
        let mut taken = Vec::new();
        spool.take(|spooled| taken.push(spooled)).unwrap();
        taken.sort_by(|a, b| a.token.cmp(&b.token));
        taken
    }

    #[test]
    fn what_is_kept_is_private_and_taken_once() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::new(folder.path().join("spool"));
        assert_eq!(taken(&spool), []);
        spool.keep(&spooled(1)).unwrap();
        spool.keep(&spooled(2)).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder.path().join("spool")), 0o700);
        for entry in fs::read_dir(folder.path().join("spool")).unwrap() {
            assert_eq!(mode(&entry.unwrap().path()), 0o600);
        }
        assert_eq!(taken(&spool), [spooled(1), spooled(2)]);
        assert_eq!(taken(&spool), []);
    }

    #[test]
    fn files_and_bytes_are_bounded_and_what_cannot_be_read_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::new(folder.path());
        fs::write(folder.path().join("torn.spool"), "{").unwrap();
        fs::write(folder.path().join("half.part"), "{").unwrap();
        (4..SPOOL_FILES).for_each(|n| drop(File::create(folder.path().join(format!("{n}.part"))).unwrap()));
        (0..2).for_each(|n| spool.keep(&spooled(n)).unwrap());
        assert!(matches!(spool.keep(&spooled(0)), Err(SpoolError::Full { files: SPOOL_FILES, .. })));
        assert_eq!(taken(&spool).len(), 2);
        File::create(folder.path().join("large.part")).unwrap().set_len(SPOOL_BYTES - 1).unwrap();
        assert!(matches!(spool.keep(&spooled(0)), Err(SpoolError::Full { files, .. }) if files < SPOOL_FILES));
        let nowhere = Spool::new("/dev/null/spool");
        assert!(matches!(nowhere.keep(&spooled(0)), Err(SpoolError::Io { .. })));
    }

    #[test]
    fn what_cannot_be_read_now_stays_and_parts_without_a_writer_go() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::new(folder.path());
        let [endless, old, young] = ["endless.spool", "old.part", "young.part"].map(|name| folder.path().join(name));
        std::os::unix::fs::symlink(&endless, &endless).unwrap();
        for (part, age) in [(&old, PART_AGE * 2), (&young, Duration::ZERO)] {
            File::create(part).unwrap().set_modified(std::time::SystemTime::now() - age).unwrap();
        }
        spool.keep(&spooled(1)).unwrap();
        let mut taken = Vec::new();
        let error = spool.take(|spooled| taken.push(spooled)).unwrap_err();
        assert!(error.to_string().contains("endless.spool"), "{error}");
        assert_eq!(taken, [spooled(1)]);
        let is_there = |path: &Path| fs::symlink_metadata(path).is_ok();
        assert_eq!([&endless, &old, &young].map(|path| is_there(path)), [true, false, true]);
    }
}

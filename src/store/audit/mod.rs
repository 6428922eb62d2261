//! A log of lines in files of a folder of its own, `audit` in the state folder, bounded in bytes and age.
//!
//! A file is named by the second in which it was begun, `1764585600.jsonl`; the last one is written. A line is one JSON
//! object. What is written is in the system's hands at once, so the end of the process loses none; a power cut may lose
//! the last ones. Which files are begun and removed when is in `rotation` (pure).

mod rotation;

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

pub use self::rotation::{AGE, BYTES};
use self::rotation::{LINE_BYTES, begins_anew, number_after, outdated};
use super::{StoreError, private};

/// Name of the folder in the state folder.
const FOLDER: &str = "audit";

/// Of each file.
const EXTENSION: &str = "jsonl";

/// The log as whoever writes it has it.
#[derive(Debug)]
pub struct AuditLog {
    folder: PathBuf,
    file: Option<Present>,
}

/// The file that is written.
#[derive(Debug)]
struct Present {
    /// The second in which it was begun.
    begun: u64,
    bytes: u64,
    file: File,
}

impl AuditLog {
    /// The log in that state folder, which nobody else writes: whoever opens it has the lock of the folder. Blocks on
    /// the disk.
    ///
    /// # Errors
    /// [`StoreError::File`].
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        let folder = state_dir.join(FOLDER);
        private::make(&folder).map_err(|source| StoreError::Folder { path: folder.clone(), source })?;
        let mut log = Self { folder, file: None };
        if let Some((begun, path)) = log.files()?.pop() {
            log.file = Some(Present::open(begun, &path).map_err(|source| StoreError::File { path, source })?);
        }
        Ok(log)
    }

    /// Appends whole lines, each with its line end, at `now` (since 1970); first it begins a new file, and removes old
    /// ones, if it is time for that. Blocks on the disk.
    ///
    /// # Errors
    /// [`StoreError::File`]; a part of the lines may be there.
    pub fn write(&mut self, lines: &str, now: Duration) -> Result<(), StoreError> {
        let more = lines.len() as u64;
        let full = self.file.as_ref().is_none_or(|file| begins_anew(file.begun, file.bytes + more, now.as_secs()));
        if full {
            let begun = number_after(self.file.as_ref().map(|file| file.begun), now.as_secs());
            let path = self.folder.join(format!("{begun}.{EXTENSION}"));
            self.file = Some(Present::open(begun, &path).map_err(|source| StoreError::File { path, source })?);
            self.tidy(now)?;
        }
        let Some(present) = &mut self.file else { return Ok(()) };
        let path = || self.folder.join(format!("{}.{EXTENSION}", present.begun));
        present.bytes += more;
        present.file.write_all(lines.as_bytes()).map_err(|source| StoreError::File { path: path(), source })
    }

    /// Removes what is beyond the bounds.
    fn tidy(&self, now: Duration) -> Result<(), StoreError> {
        let files = self.files()?;
        let numbers: Vec<u64> = files.iter().map(|(begun, _)| *begun).collect();
        for (_, path) in &files[..outdated(&numbers, now.as_secs())] {
            match fs::remove_file(path) {
                Err(source) if source.kind() != ErrorKind::NotFound => {
                    return Err(StoreError::File { path: path.clone(), source });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn files(&self) -> Result<Vec<(u64, PathBuf)>, StoreError> {
        files(&self.folder).map_err(|source| StoreError::File { path: self.folder.clone(), source })
    }
}

impl Present {
    /// Opens or makes a file. A line of which a process has written only a part is ended.
    fn open(begun: u64, path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
        let mut bytes = file.seek(SeekFrom::End(0))?;
        if bytes > 0 {
            file.seek(SeekFrom::End(-1))?;
            let mut last = [0];
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
                bytes += 1;
            }
        }
        Ok(Self { begun, bytes, file })
    }
}

/// The files of a folder by their numbers, the oldest first; others are left alone.
fn files(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
        if let Some(number) = number
            && path.extension().is_some_and(|extension| extension == EXTENSION)
        {
            files.push((number, path));
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// Reads the log of a state folder, also beside the process that writes it: each line that is whole to `take`, the
/// oldest first, until that says to stop. Files that were last written before `since` (since 1970) are left out. A line
/// that is longer than any that is written is left out, too. Blocks on the disk.
///
/// # Errors
/// [`StoreError::File`], also if there is no log.
pub fn read(state_dir: &Path, since: Duration, mut take: impl FnMut(&str) -> bool) -> Result<(), StoreError> {
    let folder = state_dir.join(FOLDER);
    let files = files(&folder).map_err(|source| StoreError::File { path: folder, source })?;
    for (_, path) in files {
        match read_file(&path, since, &mut take) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            // Its writer has removed it meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(source) => return Err(StoreError::File { path, source }),
        }
    }
    Ok(())
}

/// Says whether to go on.
fn read_file(path: &Path, since: Duration, take: &mut impl FnMut(&str) -> bool) -> io::Result<bool> {
    let file = File::open(path)?;
    if file.metadata()?.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default() < since {
        return Ok(true);
    }
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    let mut whole = true;
    loop {
        line.clear();
        let read = reader.by_ref().take(LINE_BYTES).read_until(b'\n', &mut line)?;
        let ended = line.last() == Some(&b'\n');
        if read == 0 {
            return Ok(true);
        }
        if ended
            && whole
            && let Ok(text) = str::from_utf8(&line[..read - 1])
            && !take(text)
        {
            return Ok(false);
        }
        // The rest of one that is too long is no line.
        whole = ended;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::rotation::FILE_BYTES;
    use super::*;

    fn lines(folder: &Path, since: Duration) -> Vec<String> {
        let mut lines = Vec::new();
        read(folder, since, |line| {
            lines.push(line.to_owned());
            true
        })
        .unwrap();
        lines
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn lines_are_kept_in_order_over_files_and_restarts() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = AuditLog::open(folder.path()).unwrap();
        log.write("{\"n\":1}\n{\"n\":2}\n", at(1_000_000)).unwrap();
        drop(log);
        // A process that was killed while it wrote.
        let file = folder.path().join("audit/1000000.jsonl");
        OpenOptions::new().append(true).open(&file).unwrap().write_all(b"{\"n\":").unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(lines(folder.path(), at(0)).len(), 2, "half a line is none");
        let mut log = AuditLog::open(folder.path()).unwrap();
        log.write("{\"n\":3}\n", at(1_000_001)).unwrap();
        // As old as a file may be.
        log.write("{\"n\":4}\n", at(1_000_000 + rotation::FILE_AGE.as_secs())).unwrap();
        assert_eq!(files(&folder.path().join("audit")).unwrap().len(), 2);
        fs::write(folder.path().join("audit/notes.txt"), "of somebody").unwrap();
        let all = lines(folder.path(), at(0));
        assert_eq!(all, ["{\"n\":1}", "{\"n\":2}", "{\"n\":", "{\"n\":3}", "{\"n\":4}"]);
        let far = Duration::from_secs(1 << 40);
        assert!(lines(folder.path(), far).is_empty(), "all of it is older");
        let mut first = Vec::new();
        read(folder.path(), at(0), |line| {
            first.push(line.to_owned());
            false
        })
        .unwrap();
        assert_eq!(first.len(), 1);
    }

    #[test]
    fn it_never_has_more_bytes_than_its_bound() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = AuditLog::open(folder.path()).unwrap();
        let lines = "x".repeat(FILE_BYTES as usize / 2 - 1) + "\n";
        for n in 0..40 {
            // Also when several files are begun in one second.
            log.write(&lines, at(1_000_000 + n / 4)).unwrap();
            let bytes: u64 = fs::read_dir(folder.path().join("audit"))
                .unwrap()
                .map(|entry| entry.unwrap().metadata().unwrap().len())
                .sum();
            assert!(bytes <= BYTES, "{bytes}");
        }
    }

    #[test]
    fn a_folder_without_a_log_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = read(folder.path(), at(0), |_| true).unwrap_err().to_string();
        assert!(error.contains("/audit: "), "{error}");
    }
}

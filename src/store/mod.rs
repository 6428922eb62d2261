//! The embedded database (SQLite) under a role's `--state-dir`.
//!
//! Each role has one file and one connection, owned by one thread. A commit is on disk when it returns (write-ahead
//! log, `synchronous = FULL`), so what was promised to a peer after a commit survives `kill -9` and a power cut.

pub mod audit;
pub mod batch;
pub mod jobs;
pub mod journal;
mod lock;
#[cfg(feature = "cli")]
pub mod look;
pub mod miner;
mod private;
pub mod receipts;
pub mod spool;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;

#[cfg(feature = "cli")]
pub(crate) use self::lock::{FolderLock, WORKER as WORKER_LOCK};
use crate::base::io::may_pass;
use crate::base::limits::JOURNAL_BODY_BYTES;

/// How long a statement waits for another process that uses the same file, as a backup.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The database could not be opened or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The folder of the file could not be made.
    #[error("cannot create {path}: {source}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// SQLite could not open or prepare the file.
    #[error("cannot open the database {path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// The error of SQLite.
        source: rusqlite::Error,
    },
    /// The disk of a file is full.
    #[error("the disk of {path} is full, {free} bytes are left: {problem}")]
    Full {
        /// The file, or the folder.
        path: PathBuf,
        /// Bytes that are free there.
        free: u64,
        /// What could not be done.
        problem: String,
    },
    /// The file was written by a newer release, whose tables this one does not know.
    #[error("the database {path} is of schema {found}, this release knows {known}: use the release that wrote it")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema number.
        found: usize,
        /// The newest schema number known here.
        known: usize,
    },
    /// A file could not be read, written or synced.
    #[error("cannot use {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// Another process has the folder.
    #[error(
        "the state folder {folder} is in use by process {pid}: stop that one, or give this one a folder of its own"
    )]
    InUse {
        /// The folder.
        folder: PathBuf,
        /// The process.
        pid: String,
    },
    /// The folder is of another role, whether that runs or not.
    #[error(
        "the state folder {folder}: another has it ({lock}); give this one a folder of its own (also if \
         PHALANX_STATE_DIR names it)"
    )]
    Another {
        /// The folder.
        folder: PathBuf,
        /// The file that says so.
        lock: &'static str,
    },
    /// A file changed all the time while it was read.
    #[error("{path} changes faster than it can be read: try again")]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// The number of a record is too high.
    #[error("record {id} of the journal: the highest number is {}", journal::ID_MAX)]
    Id {
        /// The number.
        id: u64,
    },
    /// A record is too large.
    #[error("record {id} of the journal has {bytes} bytes: at most {JOURNAL_BODY_BYTES} are kept")]
    Body {
        /// Its number.
        id: u64,
        /// Its size.
        bytes: usize,
    },
    /// A statement failed.
    #[error("database: {0}")]
    Sql(#[from] rusqlite::Error),
}

impl StoreError {
    /// Whether what was to be changed is wrong, rather than the database or the disk: it breaks a rule of the tables,
    /// or is too large for them. Trying again does not help, and other changes are not concerned.
    pub fn is_of_the_change(&self) -> bool {
        use rusqlite::ErrorCode as Code;
        let Self::Sql(rusqlite::Error::SqliteFailure(error, _)) = self else { return false };
        matches!(error.code, Code::ConstraintViolation | Code::TooBig | Code::TypeMismatch | Code::ParameterOutOfRange)
    }

    /// Whether the same may succeed later without a change of the settings: the disk is full, or somebody else is at
    /// work there.
    pub fn may_pass(&self) -> bool {
        use rusqlite::ErrorCode as Code;
        match self {
            Self::Full { .. } | Self::InUse { .. } | Self::Busy { .. } => true,
            Self::Folder { source, .. } | Self::File { source, .. } => may_pass(source),
            Self::Open { source, .. } | Self::Sql(source) => matches!(
                source.sqlite_error_code(),
                Some(
                    Code::DatabaseBusy
                        | Code::DatabaseLocked
                        | Code::DiskFull
                        | Code::SystemIoFailure
                        | Code::OutOfMemory
                )
            ),
            Self::Newer { .. } | Self::Another { .. } | Self::Id { .. } | Self::Body { .. } => false,
        }
    }
}

/// Makes a state folder, which is its owner's alone; one that is there stays as it is until a role takes it, which
/// closes it and all in it to others. Blocks on the disk.
///
/// # Errors
/// [`StoreError::Folder`].
pub fn make_folder(folder: &Path) -> Result<(), StoreError> {
    private::make(folder).map_err(|source| StoreError::Folder { path: folder.to_owned(), source })
}

/// Makes a database its owner's alone before anything is written: SQLite gives the files beside it its mode. They hold
/// tokens of executors, secrets of jobs, and answers.
fn make_private(database: &Path) -> io::Result<()> {
    private::open(database)?;
    for suffix in ["-wal", "-shm"] {
        let mut path = database.as_os_str().to_owned();
        path.push(suffix);
        private::close_file(path.as_ref())?;
    }
    Ok(())
}

/// Opens (or makes) a database file, its owner's alone, and brings its tables up to date.
///
/// `migrations[n]` is the SQL that leads from schema `n` to `n + 1`; the list only grows. Blocks on the disk.
///
/// # Errors
/// [`StoreError`], naming the file.
pub fn open(path: &Path, migrations: &[&str]) -> Result<Connection, StoreError> {
    if let Some(folder) = path.parent() {
        make_folder(folder)?;
    }
    make_private(path).map_err(|source| StoreError::File { path: path.to_owned(), source })?;
    let opening = |source| full(path, &source).unwrap_or_else(|| StoreError::Open { path: path.to_owned(), source });
    let mut connection = Connection::open(path).map_err(opening)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(opening)?;
    connection.pragma_update(None, "journal_mode", "WAL").map_err(opening)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(opening)?;
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(opening)?;
    let found = usize::try_from(found).unwrap_or(usize::MAX);
    if found > migrations.len() {
        return Err(StoreError::Newer { path: path.to_owned(), found, known: migrations.len() });
    }
    let transaction = connection.transaction().map_err(opening)?;
    for migration in &migrations[found..] {
        transaction.execute_batch(migration).map_err(opening)?;
    }
    transaction.pragma_update(None, "user_version", migrations.len() as i64).map_err(opening)?;
    transaction.commit().map_err(opening)?;
    Ok(connection)
}

/// Bytes that a start needs at least: a new database with its log has some 200 KiB.
#[cfg(feature = "net")]
const LEAST_FREE: u64 = 1 << 20;

/// What SQLite calls an I/O error, where it is that the disk is full: it says so only of files that it grows itself.
#[cfg(feature = "net")]
fn full(path: &Path, source: &rusqlite::Error) -> Option<StoreError> {
    use rusqlite::ErrorCode as Code;
    let code = source.sqlite_error_code()?;
    let free = free(path.parent()?).ok()?;
    let is_full = code == Code::DiskFull || code == Code::SystemIoFailure && free < LEAST_FREE;
    is_full.then(|| StoreError::Full { path: path.to_owned(), free, problem: source.to_string() })
}

/// SQLite's own word for it has to do.
#[cfg(not(feature = "net"))]
fn full(_: &Path, _: &rusqlite::Error) -> Option<StoreError> {
    None
}

/// Bytes that are free where a folder is. Blocks on the disk.
#[cfg(feature = "net")]
fn free(folder: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(folder)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "CREATE TABLE a (x INTEGER);";
    const SECOND: &str = "ALTER TABLE a ADD COLUMN y TEXT;";

    #[test]
    fn it_migrates_keeps_data_and_refuses_a_newer_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/role.db");
        open(&path, &[FIRST]).unwrap().execute("INSERT INTO a VALUES (1)", []).unwrap();
        let connection = open(&path, &[FIRST, SECOND]).unwrap();
        let row: (i64, Option<String>) =
            connection.query_row("SELECT x, y FROM a", [], |r| Ok((r.get(0)?, r.get(1)?))).unwrap();
        assert_eq!(row, (1, None));
        drop(connection);
        let error = open(&path, &[FIRST]).unwrap_err().to_string();
        assert!(error.contains("is of schema 2, this release knows 1"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_database_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("role.db");
        std::fs::write(&path, "this is not a database, but long enough to be looked at").unwrap();
        let error = open(&path, &[FIRST]).unwrap_err().to_string();
        assert!(error.contains("role.db"), "{error}");
    }
}

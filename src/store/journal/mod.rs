//! A durable map from numbers to bytes, in which damage to the files costs at most the records that it hits.
//!
//! The map is a SQLite database, `journal.db`, in WAL mode. Each body is kept as frames with a checksum, none of which
//! is ever split over pages. At every start the files are read and checked as raw bytes, before SQLite may touch them;
//! if anything is wrong, all whole frames are taken out of the raw bytes into a new database, and the damaged files are
//! kept aside. Fsync policy: [`Journal::write`] hands the changes to the operating system, so they survive the death of
//! the process, and [`Journal::sync`] waits until all that was written before is on the disk, so it survives a power
//! cut.
//!
//! After damage a record may be gone ([`Damage::lost`]), and one that was overwritten or deleted shortly before may be
//! back as it was; what is returned was always written under its id, byte for byte.

mod frame;
mod image;
mod rows;
mod salvage;

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rusqlite::{Connection, params};

use super::lock::{self, FolderLock};
use super::{StoreError, make_private};
use crate::base::limits::JOURNAL_BODY_BYTES;
use crate::base::rng::Rng;
use crate::base::waits::waiting;
use frame::{DATA_BYTES_MAX, Frame, PAGE_BYTES};
pub use rows::ID_MAX;
use rows::{PART_MAX, SCHEMA, key_of};

const _: () = assert!(JOURNAL_BODY_BYTES.div_ceil(DATA_BYTES_MAX) < PART_MAX as usize);

/// Size of the log from which it is moved into the database: 1,000 pages of 4 KiB.
const LOG_BYTES: u64 = 4 << 20;

/// How often a reader begins again because the owner began its log again meanwhile: every 4 MiB of log, which takes the
/// owner longer than the reader takes for files of some 10 MiB.
const READ_ATTEMPTS: usize = 100;

/// How often a reader must find damage to believe it: once may be a page that the owner was writing.
const READINGS_OF_DAMAGE: usize = 3;

/// A file of the state folder.
const DATABASE: &str = "journal.db";
const LOG: &str = "journal.db-wal";
pub(crate) const LOCK: &str = lock::VALIDATOR;
/// A database that is being built.
const BUILDING: &str = "journal.db.building";
/// A database that is built and on the disk, and takes the place of [`DATABASE`] next.
const BUILT: &str = "journal.db.new";

/// A change of the map.
#[derive(Debug, Clone, Copy)]
pub enum Change<'a> {
    /// Sets a record, in place of what it was.
    Put {
        /// The record, at most [`ID_MAX`].
        id: u64,
        /// Its bytes, at most [`JOURNAL_BODY_BYTES`].
        body: &'a [u8],
    },
    /// Removes a record, if it is there.
    Delete {
        /// The record.
        id: u64,
    },
}

/// What a journal holds.
#[derive(Debug, Default)]
pub struct Recovered {
    /// All records, by id.
    pub records: Vec<(u64, Vec<u8>)>,
    /// What was wrong with the files, if anything.
    pub damage: Option<Damage>,
}

/// Something was wrong with the files.
#[derive(Debug)]
pub struct Damage {
    /// Records of which something was found, but not all of their newest version. Some of them may have been deleted
    /// shortly before, and others may be gone without a trace, as when a file is cut.
    pub lost: usize,
    /// The damaged database as it was found (its log beside it, with `-wal`): to be looked at, or removed.
    pub kept_aside: PathBuf,
    /// What is wrong, the first finding, one line.
    pub what: String,
}

/// The map, open for writing. Owned by one thread; every method blocks on the disk and cannot be interrupted.
///
/// Memory: SQLite's cache of at most 512 KiB, and the id of each record larger than a page.
#[derive(Debug)]
pub struct Journal {
    // The order matters: the database is closed before the lock is let go.
    database: Database,
    /// Only to sync it: SQLite keeps the one file from open to close.
    log: File,
    log_path: PathBuf,
    _lock: FolderLock,
}

impl Journal {
    /// Whether a folder has a journal.
    pub fn is_in(folder: &Path) -> bool {
        [DATABASE, LOG, BUILT].iter().any(|name| folder.join(name).exists())
    }

    /// Opens or makes the journal of a folder, and gives its records. Takes the folder's lock, until the journal is
    /// dropped or the process ends. Reads both files into memory, for a time about three times their size.
    ///
    /// # Errors
    /// [`StoreError::InUse`] with the owner's process id; the system's and SQLite's. Damage is no error.
    pub fn open(folder: &Path) -> Result<(Self, Recovered), StoreError> {
        let lock = FolderLock::take(folder, LOCK)?;
        install(folder)?;
        let (database, log) = (contents(&folder.join(DATABASE))?, contents(&folder.join(LOG))?);
        let is_new = database.is_none() && log.is_none();
        let mut found = salvage::Found { salt: Rng::from_entropy().next_u64() as u32, ..Default::default() };
        if !is_new {
            found = salvage::read(database.unwrap_or_default(), &log.unwrap_or_default());
        }
        let damage = found.damage.take();
        let kept_aside = if is_new || damage.is_some() {
            build(folder, &found)?;
            install(folder)?
        } else {
            None
        };
        let path = folder.join(DATABASE);
        let damage = damage.map(|(lost, what)| Damage { lost, kept_aside: kept_aside.unwrap_or(path.clone()), what });
        let database = Database::open(&path, &found)?;
        // What a kill left at the log's end must go before something is written over it.
        database.checkpoint()?;
        let log_path = folder.join(LOG);
        let log = File::open(&log_path).map_err(file_error(&log_path))?;
        sync_folder(folder)?;
        let records = found.records.into_iter().map(|(id, record)| (id, record.body)).collect();
        Ok((Self { database, log, log_path, _lock: lock }, Recovered { records, damage }))
    }

    /// Reads what is there, also beside a running owner, without the lock and without changing anything. With damage,
    /// [`Damage::kept_aside`] is the journal itself.
    ///
    /// # Errors
    /// The system's; [`StoreError::Busy`] if the owner writes so fast that the files cannot be read in between.
    pub fn read(folder: &Path) -> Result<Recovered, StoreError> {
        let (mut found, mut readings) = (None, 0);
        for _ in 0..READ_ATTEMPTS {
            let round = log_header(folder)?;
            // First the database: of a page that changes meanwhile, the log that is read later has the new content.
            let (database, log) = match contents(&folder.join(BUILT))? {
                None => (contents(&folder.join(DATABASE))?, contents(&folder.join(LOG))?),
                built => (built, None),
            };
            if log_header(folder)? != round {
                continue; // The log began again in between, so its pages and the database's may not fit.
            }
            if database.is_none() && log.is_none() {
                return Ok(Recovered::default());
            }
            let read = found.insert(salvage::read(database.unwrap_or_default(), &log.unwrap_or_default()));
            readings += 1;
            if read.damage.is_none() || readings == READINGS_OF_DAMAGE {
                break;
            }
        }
        let found = found.ok_or_else(|| StoreError::Busy { path: folder.join(DATABASE) })?;
        let kept_aside = folder.join(DATABASE);
        let damage = found.damage.map(|(lost, what)| Damage { lost, kept_aside, what });
        Ok(Recovered { records: found.records.into_iter().map(|(id, record)| (id, record.body)).collect(), damage })
    }

    /// Makes the changes in their order, all or none. When it returns, they survive the death of this process, not yet
    /// a power cut. Now and then it waits for the disk, when SQLite moves the log's pages into the database.
    ///
    /// # Errors
    /// [`StoreError::Id`], [`StoreError::Body`], SQLite's; then nothing was changed.
    pub fn write<'a>(&mut self, changes: impl IntoIterator<Item = Change<'a>>) -> Result<(), StoreError> {
        // SQLite's own checkpoint would have the log written over from its beginning, where an interrupted write looks
        // like damage. Before the changes, so that its failure leaves nothing half done.
        if self.log.metadata().map_err(file_error(&self.log_path))?.len() >= LOG_BYTES {
            self.database.checkpoint()?;
        }
        self.database.write(changes)
    }

    /// When it returns, everything that was written before survives a power cut.
    ///
    /// # Errors
    /// The system's. Then some of it may never get to the disk, also if a later call succeeds: reopen the journal.
    pub fn sync(&mut self) -> Result<(), StoreError> {
        // Pages that are no longer in the log were synced by SQLite before it began the log again.
        let _waiting = waiting("the disk", None);
        self.log.sync_data().map_err(file_error(&self.log_path))
    }

    /// Moves the log into the database, removes it, and lets the lock go. Dropping a journal does the same, but cannot
    /// tell of errors.
    ///
    /// # Errors
    /// SQLite's; nothing is lost then, the log stays.
    pub fn close(self) -> Result<(), StoreError> {
        self.database.close()
    }
}

/// The database, with what of it is kept in memory.
#[derive(Debug)]
struct Database {
    connection: Connection,
    salt: u32,
    /// The version of the last frame.
    version: u64,
    /// Records that may have more than one part.
    long: HashSet<u64>,
    buffer: Vec<u8>,
}

impl Database {
    /// Opens or makes a file; `found` is what it holds.
    fn open(path: &Path, found: &salvage::Found) -> Result<Self, StoreError> {
        let opening = |source| StoreError::Open { path: path.to_owned(), source };
        make_private(path).map_err(file_error(path))?;
        let connection = Connection::open(path).map_err(opening)?;
        for (pragma, value) in [
            ("page_size", PAGE_BYTES.to_string()),
            // No other process is let in, which saves the locking of each commit and a file of shared memory.
            ("locking_mode", "EXCLUSIVE".to_owned()),
            ("journal_mode", "WAL".to_owned()),
            ("synchronous", "NORMAL".to_owned()),
            // Deleted frames are overwritten, so that they do not come back when raw bytes are searched.
            ("secure_delete", "ON".to_owned()),
            ("cache_size", "-512".to_owned()),
            // See `Journal::write`.
            ("wal_autocheckpoint", "0".to_owned()),
        ] {
            connection.pragma_update(None, pragma, value).map_err(opening)?;
        }
        // The first query makes the log's file, if it is not there.
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())).map_err(opening)?;
        // From the clock, so that it is also higher than that of records which were deleted since.
        let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_micros() as u64);
        let long = found.records.iter().filter(|(_, record)| record.parts > 1).map(|(id, _)| *id).collect();
        Ok(Self { connection, salt: found.salt, version: now.max(found.version), long, buffer: Vec::new() })
    }

    fn write<'a>(&mut self, changes: impl IntoIterator<Item = Change<'a>>) -> Result<(), StoreError> {
        self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute(())?;
        let mut shortened = Vec::new();
        let result = self.make(changes, &mut shortened);
        if result.is_err() {
            self.long.extend(shortened);
            if !self.connection.is_autocommit() {
                self.connection.execute_batch("ROLLBACK")?;
            }
        }
        result
    }

    /// Makes the changes and commits. `shortened` gets the records that no longer have more than one part.
    fn make<'a>(
        &mut self,
        changes: impl IntoIterator<Item = Change<'a>>,
        shortened: &mut Vec<u64>,
    ) -> Result<(), StoreError> {
        let mut put = self.connection.prepare_cached("INSERT OR REPLACE INTO frames VALUES (?, ?)")?;
        let mut delete = self.connection.prepare_cached("DELETE FROM frames WHERE key = ?")?;
        for change in changes {
            let (Change::Put { id, .. } | Change::Delete { id }) = change;
            if id > ID_MAX {
                return Err(StoreError::Id { id });
            }
            if self.long.remove(&id) {
                shortened.push(id);
                self.connection
                    .prepare_cached("DELETE FROM frames WHERE key BETWEEN ? AND ?")?
                    .execute(params![key_of(id, 1), key_of(id, PART_MAX)])?;
            }
            let Change::Put { body, .. } = change else {
                delete.execute([key_of(id, 0)])?;
                continue;
            };
            if body.len() > JOURNAL_BODY_BYTES {
                return Err(StoreError::Body { id, bytes: body.len() });
            }
            self.version += 1;
            let parts = body.len().div_ceil(DATA_BYTES_MAX).max(1) as u16;
            if parts > 1 {
                self.long.insert(id);
            }
            for part in 0..parts {
                let from = usize::from(part) * DATA_BYTES_MAX;
                let data = &body[from..body.len().min(from + DATA_BYTES_MAX)];
                Frame { salt: self.salt, id, version: self.version, part, parts, data }.encode(&mut self.buffer);
                put.execute(params![key_of(id, part), self.buffer])?;
            }
        }
        self.connection.prepare_cached("COMMIT")?.execute(())?;
        Ok(())
    }

    /// Moves the log's pages into the database, syncs both, and cuts the log to nothing.
    fn checkpoint(&self) -> Result<(), StoreError> {
        Ok(self.connection.prepare_cached("PRAGMA wal_checkpoint(TRUNCATE)")?.query_row([], |_| Ok(()))?)
    }

    fn close(self) -> Result<(), StoreError> {
        self.checkpoint()?;
        self.connection.close().map_err(|(_, error)| error.into())
    }
}

/// Makes a database of what was found, on the disk, ready for [`install`].
fn build(folder: &Path, found: &salvage::Found) -> Result<(), StoreError> {
    let path = folder.join(BUILDING);
    for name in [BUILDING.to_owned(), format!("{BUILDING}-wal")] {
        let path = folder.join(name); // Of a start that was interrupted here.
        if path.exists() {
            fs::remove_file(&path).map_err(file_error(&path))?;
        }
    }
    let mut database = Database::open(&path, found)?;
    database.connection.pragma_update(None, "application_id", found.salt as i32)?;
    database.connection.execute_batch(SCHEMA)?;
    database.write(found.records.iter().map(|(&id, record)| Change::Put { id, body: &record.body }))?;
    database.close()?;
    File::open(&path).and_then(|file| file.sync_all()).map_err(file_error(&path))?;
    fs::rename(&path, folder.join(BUILT)).map_err(file_error(&path))?;
    sync_folder(folder)
}

/// Puts a built database in its place and keeps aside what was there, which it names. Begins again where it was
/// interrupted.
fn install(folder: &Path) -> Result<Option<PathBuf>, StoreError> {
    let (built, database) = (folder.join(BUILT), folder.join(DATABASE));
    if !built.exists() {
        return Ok(None);
    }
    let free = |name: &String| !folder.join(name).exists() && !folder.join(format!("{name}-wal")).exists();
    let aside = (1..).map(|n| format!("{DATABASE}.damaged-{n}")).find(free).unwrap_or_default();
    // The log first: it must never lie beside a database that it is not of.
    for (from, to) in [(folder.join(LOG), folder.join(format!("{aside}-wal"))), (database.clone(), folder.join(&aside))]
    {
        match fs::rename(&from, to) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(file_error(&from)(error)),
            _ => {}
        }
    }
    fs::rename(&built, &database).map_err(file_error(&built))?;
    sync_folder(folder)?;
    Ok(Some(folder.join(aside)))
}

/// A file's bytes, if there is one.
fn contents(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file_error(path)(error)),
    }
}

/// The header of the log, which is another one each time that the log begins again.
fn log_header(folder: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    let path = folder.join(LOG);
    let mut header = Vec::new();
    match File::open(&path).and_then(|file| file.take(32).read_to_end(&mut header)) {
        Ok(_) => Ok(Some(header)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file_error(&path)(error)),
    }
}

/// Puts names on the disk that were made or changed in a folder.
fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    File::open(folder).and_then(|file| file.sync_all()).map_err(file_error(folder))
}

fn file_error(path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    let path = path.to_owned();
    |source| StoreError::File { path, source }
}

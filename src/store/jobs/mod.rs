//! The facilitator's jobs: what users asked for, what validators reported, and the machines they found.
//!
//! * A job's statuses are unique: the same one again is [`StatusOutcome::Duplicate`] (the wire's
//!   `job.integrity_error`).
//! * A job that has ended stays ended: a status that comes later is kept, but marked late and no part of its history.
//! * `list`: what users ask of them. `keep`: quotas, and what is forgotten.

mod keep;
mod list;

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

pub use self::keep::{Forgotten, InsertOutcome, Keep, Quota};
pub use self::list::{JobHead, JobList, JobQuery};
use super::lock::{self, FolderLock};
use super::{StoreError, open};
use crate::base::panics::contained;
use crate::base::waits::waiting;

/// Name of the database in the state folder.
const DATABASE: &str = "facilitator.db";

pub(crate) const LOCK: &str = lock::FACILITATOR;

/// Bytes that the write-ahead log keeps on the disk once all of it is in the database.
const LOG_BYTES: i64 = 4 << 20;

const MIGRATIONS: &[&str] = &[FIRST, SECOND];

const FIRST: &str = "
CREATE TABLE jobs (
    uuid TEXT PRIMARY KEY,
    user TEXT NOT NULL,
    validator TEXT NOT NULL,
    request TEXT NOT NULL,          -- the message to the validator, as it is sent
    created_at INTEGER NOT NULL,    -- microseconds since 1970, as all times here
    ended TEXT                      -- the terminal status
);
CREATE INDEX jobs_of_user ON jobs (user, created_at);
CREATE INDEX jobs_open ON jobs (created_at) WHERE ended IS NULL;
CREATE TABLE statuses (
    job TEXT NOT NULL REFERENCES jobs (uuid),
    status TEXT NOT NULL,
    metadata TEXT,                  -- JSON as the validator sent it
    at INTEGER NOT NULL,
    late INTEGER NOT NULL,          -- came after the job had ended
    UNIQUE (job, status)
);
CREATE TABLE specs (
    validator TEXT NOT NULL,
    miner TEXT NOT NULL,
    specs TEXT NOT NULL,            -- JSON
    batch TEXT NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (validator, miner)
);
";

/// Tags, reports of cheating, what quotas count, and what is kept.
const SECOND: &str = "
ALTER TABLE jobs ADD COLUMN tag TEXT NOT NULL DEFAULT '';
DROP INDEX jobs_of_user;
CREATE INDEX jobs_of_user ON jobs (user, created_at, ended, tag);
CREATE TABLE cheats (
    job TEXT PRIMARY KEY,           -- reported by its user
    trusted_job TEXT NOT NULL,
    at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE ended (
    job TEXT PRIMARY KEY,
    at INTEGER NOT NULL,            -- when the end was reported
    bytes INTEGER NOT NULL          -- of the message and of what was reported
) WITHOUT ROWID;
CREATE INDEX ended_at ON ended (at, job);
INSERT INTO ended SELECT uuid, max(at), octet_length(request) + total(octet_length(metadata))
    FROM jobs JOIN statuses ON job = uuid WHERE ended IS NOT NULL GROUP BY uuid;
CREATE TABLE open_jobs (            -- kept by the triggers below
    user TEXT PRIMARY KEY,
    jobs INTEGER NOT NULL,
    bytes INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO open_jobs SELECT user, count(*), total(octet_length(request)) FROM jobs WHERE ended IS NULL GROUP BY user;
CREATE TRIGGER job_opened AFTER INSERT ON jobs BEGIN
    INSERT INTO open_jobs VALUES (NEW.user, 1, octet_length(NEW.request))
        ON CONFLICT DO UPDATE SET jobs = jobs + 1, bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER job_ended AFTER UPDATE OF ended ON jobs WHEN OLD.ended IS NULL AND NEW.ended IS NOT NULL BEGIN
    UPDATE open_jobs SET jobs = jobs - 1, bytes = bytes - octet_length(NEW.request) WHERE user = NEW.user;
    DELETE FROM open_jobs WHERE user = NEW.user AND jobs = 0;
END;
";

/// The mode of SQLite's `auto_vacuum` in which free pages are given back when they are asked for.
const INCREMENTAL: i64 = 2;

/// The status that a job has from its submission on.
pub const SENT: &str = "sent";

/// A job as it is submitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewJob {
    /// Its number.
    pub uuid: String,
    /// Who submitted it (SS58).
    pub user: String,
    /// The validator it is for (SS58).
    pub validator: String,
    /// The message to the validator, as it is sent.
    pub request: String,
    /// What the user calls it; several may have the same, and most have an empty one.
    pub tag: String,
    /// When it came, in microseconds since 1970.
    pub created_at: i64,
}

/// One status of a job, as reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewStatus {
    /// The job.
    pub uuid: String,
    /// Who reports it (SS58): a job of another validator is not found.
    pub validator: String,
    /// The status as on the wire.
    pub status: String,
    /// Its details, JSON.
    pub metadata: Option<String>,
    /// Whether it ends the job.
    pub terminal: bool,
    /// When it came, in microseconds since 1970.
    pub at: i64,
}

/// What became of a reported status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusOutcome {
    /// It is part of the job's history.
    Stored,
    /// It is kept, but came after the job had ended.
    StoredLate,
    /// The job has that status already.
    Duplicate,
    /// That validator has no such job.
    NotFound,
}

/// One status of a job, as kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusRow {
    /// The status as on the wire.
    pub status: String,
    /// Its details, JSON.
    pub metadata: Option<String>,
    /// When it came, in microseconds since 1970.
    pub at: i64,
    /// Whether it came after the job had ended.
    pub late: bool,
}

/// A job as kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobRow {
    /// The job as it was submitted.
    pub job: NewJob,
    /// Its statuses in the order in which they came; the first is [`SENT`].
    pub statuses: Vec<StatusRow>,
    /// The details of its statuses were left out.
    pub details_omitted: bool,
}

/// What a validator found out about a miner's machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecsRow {
    /// Who reports it (SS58).
    pub validator: String,
    /// The miner (SS58).
    pub miner: String,
    /// The machine, JSON.
    pub specs: String,
    /// The batch of jobs that found it out.
    pub batch: String,
    /// When it came, in microseconds since 1970.
    pub at: i64,
}

/// The database. Every method blocks on the disk. Dropping it lets the folder go.
#[derive(Debug)]
pub struct JobStore {
    // The order matters: the database is closed before the lock is let go.
    connection: Connection,
    _lock: FolderLock,
}

/// Changes that become durable together. Dropping it undoes them.
#[derive(Debug)]
pub struct Batch<'a>(Transaction<'a>);

impl JobStore {
    /// Takes the folder, and opens or makes its database. Blocks on the disk.
    ///
    /// # Errors
    /// As [`super::open`]; [`StoreError::InUse`] if another process has the folder.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let lock = FolderLock::take(folder, LOCK)?;
        let path = folder.join(DATABASE);
        let connection = open(&path, MIGRATIONS)?;
        let prepare = || -> rusqlite::Result<()> {
            connection.pragma_update(None, "journal_size_limit", LOG_BYTES)?;
            if connection.pragma_query_value(None, "auto_vacuum", |row| row.get::<_, i64>(0))? != INCREMENTAL {
                // Once for each file: from here on it can shrink.
                connection.pragma_update(None, "auto_vacuum", INCREMENTAL)?;
                connection.execute_batch("VACUUM")?;
            }
            Ok(())
        };
        prepare().map_err(|source| StoreError::Open { path, source })?;
        Ok(Self { connection, _lock: lock })
    }

    /// Begins a batch.
    ///
    /// # Errors
    /// SQLite's.
    pub fn begin(&mut self) -> Result<Batch<'_>, StoreError> {
        Ok(Batch(self.connection.transaction()?))
    }

    /// Jobs that were submitted and of which no validator has reported anything, the oldest first.
    ///
    /// # Errors
    /// SQLite's.
    pub fn unreceived(&self) -> Result<Vec<NewJob>, StoreError> {
        let mut statement = self.connection.prepare(
            "SELECT uuid, user, validator, request, created_at, tag FROM jobs WHERE ended IS NULL
             AND (SELECT count(*) FROM statuses WHERE job = uuid) = 1 ORDER BY created_at, rowid",
        )?;
        let rows = statement.query_map([], job)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Jobs of which a validator has reported something, but not their end, each with the time of the last status.
    ///
    /// # Errors
    /// SQLite's.
    pub fn received(&self) -> Result<Vec<(NewJob, i64)>, StoreError> {
        let mut statement = self.connection.prepare(
            "SELECT uuid, user, validator, request, created_at, tag, max(at) FROM jobs JOIN statuses ON job = uuid
             WHERE ended IS NULL GROUP BY uuid HAVING count(*) > 1 ORDER BY created_at, jobs.rowid",
        )?;
        let rows = statement.query_map([], |row| Ok((job(row)?, row.get(6)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

impl Batch<'_> {
    /// Makes the changes durable: they are on the disk when this returns.
    ///
    /// # Errors
    /// SQLite's; then nothing of the batch has happened.
    pub fn commit(self) -> Result<(), StoreError> {
        let _waiting = waiting("the disk", None);
        Ok(self.0.commit()?)
    }

    /// Makes one change of the batch by itself: one that cannot be made, or panics, is undone and says why; the rest of
    /// the batch goes on.
    ///
    /// # Errors
    /// SQLite's, where the change is not to blame (see [`StoreError::is_of_the_change`]): the batch is lost.
    pub fn alone<T>(
        &self,
        change: impl FnOnce(&Self) -> Result<T, StoreError>,
    ) -> Result<Result<T, String>, StoreError> {
        let run = |sql: &str| self.0.prepare_cached(sql).and_then(|mut statement| statement.execute([]));
        run("SAVEPOINT alone")?;
        let why = match contained(|| change(self)) {
            Ok(Ok(made)) => {
                run("RELEASE alone")?;
                return Ok(Ok(made));
            }
            Ok(Err(error)) if error.is_of_the_change() => error.to_string(),
            Ok(Err(error)) => return Err(error),
            Err(panic) => format!("it panicked: {panic}"),
        };
        run("ROLLBACK TO alone")?;
        run("RELEASE alone")?;
        Ok(Err(why))
    }

    /// Adds a status to a job.
    ///
    /// # Errors
    /// SQLite's.
    pub fn add_status(&self, new: &NewStatus) -> Result<StatusOutcome, StoreError> {
        let ended: Option<Option<String>> = self
            .0
            .prepare_cached("SELECT ended FROM jobs WHERE uuid = ? AND validator = ?")?
            .query_row(params![new.uuid, new.validator], |row| row.get(0))
            .optional()?;
        let Some(ended) = ended else { return Ok(StatusOutcome::NotFound) };
        let late = ended.is_some();
        let added = self
            .0
            .prepare_cached(
                "INSERT INTO statuses (job, status, metadata, at, late) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            )?
            .execute(params![new.uuid, new.status, new.metadata, new.at, late])?;
        if added == 0 {
            return Ok(StatusOutcome::Duplicate);
        }
        if new.terminal && !late {
            self.0
                .prepare_cached("UPDATE jobs SET ended = ? WHERE uuid = ?")?
                .execute(params![new.status, new.uuid])?;
            self.0
                .prepare_cached(
                    "INSERT INTO ended SELECT uuid, ?, octet_length(request)
                     + (SELECT total(octet_length(metadata)) FROM statuses WHERE job = uuid) FROM jobs WHERE uuid = ?",
                )?
                .execute(params![new.at, new.uuid])?;
        } else if late {
            self.0
                .prepare_cached("UPDATE ended SET bytes = bytes + ? WHERE job = ?")?
                .execute(params![new.metadata.as_ref().map_or(0, String::len) as i64, new.uuid])?;
        }
        Ok(if late { StatusOutcome::StoredLate } else { StatusOutcome::Stored })
    }

    /// Keeps the newest specs of a miner.
    ///
    /// # Errors
    /// SQLite's.
    pub fn put_specs(&self, specs: &SpecsRow) -> Result<(), StoreError> {
        let SpecsRow { validator, miner, specs, batch, at } = specs;
        self.0
            .prepare_cached("INSERT OR REPLACE INTO specs (validator, miner, specs, batch, at) VALUES (?, ?, ?, ?, ?)")?
            .execute(params![validator, miner, specs, batch, at])?;
        Ok(())
    }

    /// All specs, by validator and miner.
    ///
    /// # Errors
    /// SQLite's.
    pub fn specs(&self) -> Result<Vec<SpecsRow>, StoreError> {
        let mut statement =
            self.0.prepare_cached("SELECT validator, miner, specs, batch, at FROM specs ORDER BY validator, miner")?;
        let rows = statement.query_map([], |row| {
            Ok(SpecsRow {
                validator: row.get(0)?,
                miner: row.get(1)?,
                specs: row.get(2)?,
                batch: row.get(3)?,
                at: row.get(4)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

fn job(row: &Row<'_>) -> rusqlite::Result<NewJob> {
    Ok(NewJob {
        uuid: row.get(0)?,
        user: row.get(1)?,
        validator: row.get(2)?,
        request: row.get(3)?,
        created_at: row.get(4)?,
        tag: row.get(5)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn new_job(uuid: &str, user: &str, created_at: i64) -> NewJob {
        let text = |s: &str| s.to_owned();
        NewJob {
            uuid: text(uuid),
            user: text(user),
            validator: text("val"),
            request: text("{}"),
            tag: text(""),
            created_at,
        }
    }

    pub(super) fn status(uuid: &str, status: &str, terminal: bool) -> NewStatus {
        let metadata = Some("{\"x\":\"\\u0000\"}".to_owned());
        let (uuid, status) = (uuid.to_owned(), status.to_owned());
        NewStatus { uuid, validator: "val".to_owned(), status, metadata, terminal, at: 5 }
    }

    fn seen(store: &mut JobStore, uuid: &str) -> Vec<(String, bool)> {
        let job = store.begin().unwrap().job("user", uuid, true).unwrap().unwrap();
        job.statuses.into_iter().map(|s| (s.status, s.late)).collect()
    }

    #[test]
    fn statuses_are_unique_and_an_end_is_final_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = JobStore::open(folder.path()).unwrap();
        let batch = store.begin().unwrap();
        batch.insert(&new_job("a", "user", 1), Quota::NONE).unwrap();
        let add = |new| batch.add_status(&new).unwrap();
        assert_eq!(add(status("a", "received", false)), StatusOutcome::Stored);
        assert_eq!(add(status("a", "received", false)), StatusOutcome::Duplicate);
        assert_eq!(add(status("a", "sent", false)), StatusOutcome::Duplicate);
        assert_eq!(add(status("a", "completed", true)), StatusOutcome::Stored);
        assert_eq!(add(status("a", "failed", true)), StatusOutcome::StoredLate);
        assert_eq!(add(status("a", "failed", true)), StatusOutcome::Duplicate);
        assert_eq!(add(status("b", "received", false)), StatusOutcome::NotFound);
        assert_eq!(
            add(NewStatus { validator: "other".to_owned(), ..status("a", "accepted", false) }),
            StatusOutcome::NotFound
        );
        batch.commit().unwrap();
        let error = JobStore::open(folder.path()).unwrap_err();
        assert!(matches!(&error, StoreError::InUse { pid, .. } if *pid == std::process::id().to_string()), "{error}");
        drop(store);
        let mut store = JobStore::open(folder.path()).unwrap();
        let expected = [("sent", false), ("received", false), ("completed", false), ("failed", true)];
        assert_eq!(seen(&mut store, "a"), expected.map(|(s, late)| (s.to_owned(), late)));
    }

    #[test]
    fn a_batch_without_commit_never_happened() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = JobStore::open(folder.path()).unwrap();
        store.begin().unwrap().insert(&new_job("a", "user", 1), Quota::NONE).unwrap();
        assert_eq!(store.begin().unwrap().job("user", "a", true).unwrap(), None);
    }

    #[test]
    fn a_change_that_cannot_be_made_is_undone_alone() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = JobStore::open(folder.path()).unwrap();
        let poison = "CREATE TRIGGER poison BEFORE INSERT ON statuses WHEN NEW.status = 'bad' BEGIN
             SELECT RAISE(ABORT, 'poisoned'); END;";
        store.connection.execute_batch(poison).unwrap();
        let batch = store.begin().unwrap();
        assert_eq!(
            batch.alone(|batch| batch.insert(&new_job("a", "user", 1), Quota::NONE)).unwrap(),
            Ok(InsertOutcome::Stored)
        );
        let again = batch.alone(|batch| batch.insert(&new_job("a", "user", 1), Quota::NONE)).unwrap().unwrap_err();
        assert!(again.contains("UNIQUE"), "{again}");
        let panicked = batch.alone(|batch| {
            batch.add_status(&status("a", "accepted", false))?;
            panic!("boom");
            #[allow(unreachable_code)]
            Ok(())
        });
        assert_eq!(panicked.unwrap(), Err("it panicked: boom".to_owned()));
        let bad = batch.alone(|batch| batch.add_status(&status("a", "bad", false))).unwrap().unwrap_err();
        assert!(bad.contains("poisoned"), "{bad}");
        let good = batch.alone(|batch| batch.add_status(&status("a", "received", false)));
        assert_eq!(good.unwrap(), Ok(StatusOutcome::Stored));
        batch.commit().unwrap();
        assert_eq!(seen(&mut store, "a"), [("sent".to_owned(), false), ("received".to_owned(), false)]);
        let sick = "CREATE TRIGGER sick BEFORE INSERT ON statuses BEGIN INSERT INTO nowhere VALUES (1); END;";
        store.connection.execute_batch(sick).unwrap();
        let batch = store.begin().unwrap();
        let sick = batch.alone(|batch| batch.add_status(&status("a", "accepted", false))).unwrap_err();
        assert!(sick.to_string().contains("nowhere"), "the database is to blame: {sick}");
    }

    #[test]
    fn what_was_received_and_what_was_not_is_known_and_specs_are_the_newest() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = JobStore::open(folder.path()).unwrap();
        let batch = store.begin().unwrap();
        for uuid in ["a", "b", "c"] {
            batch.insert(&new_job(uuid, "user", 1), Quota::NONE).unwrap();
        }
        batch.add_status(&NewStatus { at: 9, ..status("a", "accepted", false) }).unwrap();
        batch.add_status(&status("a", "received", false)).unwrap();
        batch.add_status(&status("b", "rejected", true)).unwrap();
        let specs = |text: &str| SpecsRow {
            validator: "val".to_owned(),
            miner: "m".to_owned(),
            specs: text.to_owned(),
            batch: "1".to_owned(),
            at: 1,
        };
        batch.put_specs(&specs("{}")).unwrap();
        batch.put_specs(&specs("{\"new\":1}")).unwrap();
        assert_eq!(batch.specs().unwrap(), [specs("{\"new\":1}")]);
        batch.commit().unwrap();
        assert_eq!(store.unreceived().unwrap(), [new_job("c", "user", 1)]);
        assert_eq!(store.received().unwrap(), [(new_job("a", "user", 1), 9)]);
    }

    #[test]
    fn jobs_of_an_earlier_release_are_counted_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let old = open(&folder.path().join(DATABASE), &[FIRST]).unwrap();
        for (uuid, ended) in [("a", Some("completed")), ("b", None), ("c", None)] {
            let insert =
                "INSERT INTO jobs (uuid, user, validator, request, created_at, ended) VALUES (?, 'u', 'val', ?, 1, ?)";
            old.execute(insert, params![uuid, "{}", ended]).unwrap();
            old.execute("INSERT INTO statuses VALUES (?, 'sent', NULL, 1, 0)", params![uuid]).unwrap();
        }
        old.execute("INSERT INTO statuses VALUES ('a', 'completed', 'null', 7, 0)", []).unwrap();
        drop(old);
        let mut store = JobStore::open(folder.path()).unwrap();
        let batch = store.begin().unwrap();
        let outcome = batch.insert(&new_job("d", "u", 1), Quota { jobs: 2, bytes: 100 }).unwrap();
        assert_eq!(outcome, InsertOutcome::OverQuota { jobs: 2, bytes: 4 });
        assert_eq!(batch.job("u", "a", true).unwrap().unwrap().job.tag, "");
        let keep = Keep { jobs: 9, time: std::time::Duration::from_micros(10), bytes: 9 };
        assert_eq!(batch.forget(&keep, 10).unwrap(), Forgotten { jobs: 0, next: Some(17) });
        assert_eq!(batch.forget(&keep, 17).unwrap(), Forgotten { jobs: 1, next: None });
    }
}

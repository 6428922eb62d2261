//! A validator's batch: what was planned, what has left, how each job ended, and what the miners answered.
//!
//! One folder holds one batch, and one process has the folder. What the texts say is the batch's business; this file
//! keeps them, each write of several rows in one transaction.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, params};

use super::lock::{self, FolderLock};
use super::{StoreError, open};

const DATABASE: &str = "batch.db";

/// Taken by whoever has the folder.
pub(crate) const LOCK: &str = lock::BATCH;

const MIGRATIONS: &[&str] = &["
    CREATE TABLE batch (
        one     INTEGER PRIMARY KEY CHECK (one = 1),
        number  TEXT NOT NULL,
        seed    TEXT NOT NULL,
        made_of TEXT NOT NULL,
        lag_us  INTEGER NOT NULL DEFAULT 0,
        took_us INTEGER NOT NULL DEFAULT 0,
        ended   INTEGER NOT NULL DEFAULT 0
    );
    CREATE TABLE requests (id INTEGER PRIMARY KEY, body TEXT NOT NULL);
    CREATE TABLE jobs (
        miner    TEXT NOT NULL,
        place    INTEGER NOT NULL,
        uuid     TEXT NOT NULL,
        class    TEXT NOT NULL,
        request  INTEGER NOT NULL,
        attempts INTEGER NOT NULL,
        state    INTEGER NOT NULL,
        line     TEXT NOT NULL,
        answer   TEXT NOT NULL,
        PRIMARY KEY (miner, place)
    ) WITHOUT ROWID;
"];

/// The place of a miner that got no job.
pub const NO_JOB: i64 = -1;

/// The batch of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchRow {
    /// Tells it from others.
    pub number: u64,
    /// Its seed.
    pub seed: u64,
    /// What it is made of: whoever goes on with it must have the same.
    pub made_of: String,
    /// How late it was at most, in microseconds.
    pub lag_us: i64,
    /// How long it took so far, in microseconds.
    pub took_us: i64,
    /// Whether nothing of it is left to do.
    pub ended: bool,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchJobState {
    /// It is to be asked for.
    Planned,
    /// Its request was about to leave.
    Sent,
    /// It has ended.
    Ended,
}

impl BatchJobState {
    fn number(self) -> i64 {
        match self {
            Self::Planned => 0,
            Self::Sent => 1,
            Self::Ended => 2,
        }
    }

    fn of(number: i64) -> Self {
        match number {
            0 => Self::Planned,
            1 => Self::Sent,
            _ => Self::Ended,
        }
    }
}

/// One job, or a miner that got none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchJobRow {
    /// The miner (SS58).
    pub miner: String,
    /// Its number among the miner's jobs, or [`NO_JOB`].
    pub place: i64,
    /// Its uuid.
    pub uuid: String,
    /// Its class.
    pub class: String,
    /// The number of its request.
    pub request: i64,
    /// How often it was asked for.
    pub attempts: u32,
    /// How far it is.
    pub state: BatchJobState,
    /// What it ends as, once that can be said.
    pub line: String,
    /// What the miner answered; empty if that is not kept.
    pub answer: String,
}

/// One write.
#[derive(Debug)]
pub enum BatchWrite {
    /// A request that jobs name.
    Request {
        /// Its number.
        id: i64,
        /// Its text.
        body: String,
    },
    /// A job is planned, for the first time or anew.
    Planned(Box<BatchJobRow>),
    /// As [`BatchWrite::Planned`], of a job that was about to leave and has not.
    NotSent(Box<BatchJobRow>),
    /// A job is about to leave.
    Sent {
        /// The miner.
        miner: String,
        /// The job's number there.
        place: i64,
        /// What it ends as if nothing more is heard of it.
        line: String,
    },
    /// A job has ended, or a miner that gets none.
    Ended {
        /// The miner.
        miner: String,
        /// The job's number there.
        place: i64,
        /// What it ends as.
        line: String,
        /// What the miner answered; empty if that is not kept.
        answer: String,
    },
    /// The batch goes on.
    Time {
        /// How late it was at most, in microseconds.
        lag_us: i64,
        /// How long it took so far, in microseconds.
        took_us: i64,
    },
    /// The batch is over, or stopped for now.
    Over {
        /// How late it was at most, in microseconds.
        lag_us: i64,
        /// How long it took in all, in microseconds.
        took_us: i64,
        /// Whether nothing of it is left to do.
        ended: bool,
    },
}

/// The batch of one folder, for one thread.
#[derive(Debug)]
pub struct BatchStore {
    connection: Connection,
    _lock: FolderLock,
}

impl BatchStore {
    /// Opens (or makes) `batch.db` in the folder. Blocks on the disk.
    ///
    /// # Errors
    /// [`StoreError`]; [`StoreError::InUse`] if another process has the folder.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let lock = FolderLock::take(folder, LOCK)?;
        Ok(Self { connection: open(&folder.join(DATABASE), MIGRATIONS)?, _lock: lock })
    }

    /// As [`BatchStore::open`], but `None` if there is no `batch.db`; then nothing is made.
    ///
    /// # Errors
    /// As [`BatchStore::open`].
    pub fn open_there(folder: &Path) -> Result<Option<Self>, StoreError> {
        if folder.join(DATABASE).exists() { Self::open(folder).map(Some) } else { Ok(None) }
    }

    /// The batch that is there. Blocks on the disk.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn batch(&self) -> Result<Option<BatchRow>, StoreError> {
        let sql = "SELECT number, seed, made_of, lag_us, took_us, ended FROM batch";
        let row = self.connection.query_row(sql, [], |row| {
            // Written by us as texts, because SQLite's numbers are signed.
            let number = |text: String| text.parse().unwrap_or(0);
            Ok(BatchRow {
                number: number(row.get(0)?),
                seed: number(row.get(1)?),
                made_of: row.get(2)?,
                lag_us: row.get(3)?,
                took_us: row.get(4)?,
                ended: row.get(5)?,
            })
        });
        Ok(row.optional()?)
    }

    /// Begins a batch in the place of what is there. Blocks on the disk.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn begin(&mut self, batch: &BatchRow) -> Result<(), StoreError> {
        let transaction = self.connection.transaction()?;
        transaction.execute_batch("DELETE FROM batch; DELETE FROM requests; DELETE FROM jobs;")?;
        transaction.execute(
            "INSERT INTO batch (one, number, seed, made_of) VALUES (1, ?1, ?2, ?3)",
            params![batch.number.to_string(), batch.seed.to_string(), batch.made_of],
        )?;
        Ok(transaction.commit()?)
    }

    /// All requests by their numbers. Blocks on the disk.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn requests(&self) -> Result<Vec<(i64, String)>, StoreError> {
        let mut select = self.connection.prepare("SELECT id, body FROM requests ORDER BY id")?;
        let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Gives every job, by miner and place, to `each`; with the answers only if they are wanted. Blocks on the disk.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn jobs(&self, with_answers: bool, mut each: impl FnMut(BatchJobRow)) -> Result<(), StoreError> {
        let answer = if with_answers { "answer" } else { "''" };
        let sql = format!(
            "SELECT miner, place, uuid, class, request, attempts, state, line, {answer} FROM jobs ORDER BY miner, place"
        );
        let mut select = self.connection.prepare(&sql)?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            each(BatchJobRow {
                miner: row.get(0)?,
                place: row.get(1)?,
                uuid: row.get(2)?,
                class: row.get(3)?,
                request: row.get(4)?,
                attempts: row.get(5)?,
                state: BatchJobState::of(row.get(6)?),
                line: row.get(7)?,
                answer: row.get(8)?,
            });
        }
        Ok(())
    }

    /// Writes all of it, or nothing. An end that is there already stays as it is. Blocks on the disk.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn write<'a>(&mut self, writes: impl IntoIterator<Item = &'a BatchWrite>) -> Result<(), StoreError> {
        let transaction = self.connection.transaction()?;
        for write in writes {
            match write {
                BatchWrite::Request { id, body } => {
                    let sql = "INSERT OR IGNORE INTO requests (id, body) VALUES (?1, ?2)";
                    transaction.prepare_cached(sql)?.execute(params![id, body])?;
                }
                BatchWrite::Planned(job) => {
                    let sql = "INSERT INTO jobs (miner, place, uuid, class, request, attempts, state, line, answer)
                        VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, '', '')
                        ON CONFLICT DO UPDATE SET uuid = ?3, attempts = ?6 WHERE state = 0";
                    let row = params![job.miner, job.place, job.uuid, job.class, job.request, job.attempts];
                    transaction.prepare_cached(sql)?.execute(row)?;
                }
                BatchWrite::NotSent(job) => {
                    let sql = "UPDATE jobs SET uuid = ?3, attempts = ?4, state = 0, line = ''
                        WHERE miner = ?1 AND place = ?2 AND state < 2";
                    let row = params![job.miner, job.place, job.uuid, job.attempts];
                    transaction.prepare_cached(sql)?.execute(row)?;
                }
                BatchWrite::Sent { miner, place, line } => {
                    let sql = "UPDATE jobs SET state = ?1, line = ?2 WHERE miner = ?3 AND place = ?4 AND state = 0";
                    let state = BatchJobState::Sent.number();
                    transaction.prepare_cached(sql)?.execute(params![state, line, miner, place])?;
                }
                BatchWrite::Ended { miner, place, line, answer } => {
                    let sql = "INSERT INTO jobs (miner, place, uuid, class, request, attempts, state, line, answer)
                        VALUES (?3, ?4, '', '', 0, 0, ?1, ?2, ?5)
                        ON CONFLICT DO UPDATE SET state = ?1, line = ?2, answer = ?5 WHERE state < ?1";
                    let state = BatchJobState::Ended.number();
                    transaction.prepare_cached(sql)?.execute(params![state, line, miner, place, answer])?;
                }
                BatchWrite::Time { lag_us, took_us } => {
                    let sql = "UPDATE batch SET lag_us = max(lag_us, ?1), took_us = max(took_us, ?2)";
                    transaction.prepare_cached(sql)?.execute(params![lag_us, took_us])?;
                }
                BatchWrite::Over { lag_us, took_us, ended } => {
                    let sql = "UPDATE batch SET lag_us = max(lag_us, ?1), took_us = max(took_us, ?2), ended = ?3";
                    transaction.execute(sql, params![lag_us, took_us, ended])?;
                }
            }
        }
        Ok(transaction.commit()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(place: i64, uuid: &str) -> BatchWrite {
        BatchWrite::Planned(Box::new(BatchJobRow {
            miner: "5M".to_owned(),
            place,
            uuid: uuid.to_owned(),
            class: "always_on.test".to_owned(),
            request: 1,
            attempts: 1,
            state: BatchJobState::Planned,
            line: String::new(),
            answer: String::new(),
        }))
    }

    fn ended(place: i64, line: &str) -> BatchWrite {
        BatchWrite::Ended { miner: "5M".to_owned(), place, line: line.to_owned(), answer: "a".to_owned() }
    }

    fn sent(place: i64) -> BatchWrite {
        BatchWrite::Sent { miner: "5M".to_owned(), place, line: "lost".to_owned() }
    }

    fn states(store: &BatchStore) -> Vec<(i64, BatchJobState, String, String)> {
        let mut all = Vec::new();
        store.jobs(false, |row| all.push((row.place, row.state, row.uuid, row.line))).unwrap();
        all
    }

    #[test]
    fn the_first_end_stays_and_nothing_that_has_left_is_planned_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = BatchStore::open(&folder.path().join("deep")).unwrap();
        let batch = BatchRow {
            number: u64::MAX,
            seed: u64::MAX - 1,
            made_of: "x".to_owned(),
            lag_us: 0,
            took_us: 0,
            ended: false,
        };
        assert_eq!(store.batch().unwrap(), None);
        store.begin(&batch).unwrap();
        assert_eq!(store.batch().unwrap().as_ref(), Some(&batch));
        let request = BatchWrite::Request { id: 1, body: "r".to_owned() };
        store.write(&[request, planned(0, "a"), planned(1, "b"), planned(2, "c")]).unwrap();
        store.write(&[planned(0, "a2"), sent(1), ended(NO_JOB, "none"), ended(2, "first")]).unwrap();
        store.write(&[planned(1, "b2"), ended(2, "second"), sent(2), planned(2, "c2")]).unwrap();
        use BatchJobState as S;
        let owned = |(place, state, uuid, line): (i64, S, &str, &str)| (place, state, uuid.into(), line.into());
        let expected = [
            (NO_JOB, S::Ended, "", "none"),
            (0, S::Planned, "a2", ""),
            (1, S::Sent, "b", "lost"),
            (2, S::Ended, "c", "first"),
        ];
        assert_eq!(states(&store), expected.map(owned));
        // None of them has left after all; an end stays nevertheless.
        let not_sent = |place, uuid| match planned(place, uuid) {
            BatchWrite::Planned(row) => BatchWrite::NotSent(row),
            other => other,
        };
        store.write(&[not_sent(0, "a3"), not_sent(1, "b3"), not_sent(2, "c3")]).unwrap();
        let expected = [
            (NO_JOB, S::Ended, "", "none"),
            (0, S::Planned, "a3", ""),
            (1, S::Planned, "b3", ""),
            (2, S::Ended, "c", "first"),
        ];
        assert_eq!(states(&store), expected.map(owned));
        let over = |ended| BatchWrite::Over { lag_us: 3, took_us: 5, ended };
        let time = |lag_us, took_us| BatchWrite::Time { lag_us, took_us };
        store.write(&[over(false), time(9, 4), over(true), time(8, 10)]).unwrap();
        assert_eq!(store.batch().unwrap(), Some(BatchRow { lag_us: 9, took_us: 10, ended: true, ..batch.clone() }));
        assert_eq!(store.requests().unwrap(), [(1, "r".to_owned())]);
        store.begin(&batch).unwrap();
        assert_eq!(states(&store), []);
    }

    #[test]
    fn one_process_has_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let store = BatchStore::open(folder.path()).unwrap();
        let error = BatchStore::open(folder.path()).unwrap_err();
        assert!(matches!(error, StoreError::InUse { .. }), "{error}");
        drop(store);
        BatchStore::open(folder.path()).unwrap();
    }
}

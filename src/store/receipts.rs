//! The miner's receipts: the signed word of validators, countersigned, kept until it no longer counts.
//!
//! A receipt is stored as the texts that were signed and the signatures over them, so that it can be shown later
//! exactly as it was agreed on. One validator has at most one receipt of each kind for a job.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::{StoreError, open};

/// Receipts are kept this long after they were written, in microseconds: the longest time that one may count for
/// (30 days, the bound of the published package), and a day more for clocks that disagree.
pub const RECEIPT_RETENTION_US: i64 = 31 * 24 * 60 * 60 * 1_000_000;

/// Of the miner's whole database: see [`super::miner`].
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE receipts (
        validator_hotkey    TEXT NOT NULL,
        job_uuid            TEXT NOT NULL,
        kind                TEXT NOT NULL,
        written_us          INTEGER NOT NULL,
        payload             TEXT NOT NULL,
        validator_signature TEXT NOT NULL,
        miner_signature     TEXT NOT NULL,
        PRIMARY KEY (validator_hotkey, job_uuid, kind)
    ) WITHOUT ROWID;
    CREATE INDEX receipts_by_time ON receipts (written_us);
",
    "
    CREATE TABLE miner (one INTEGER PRIMARY KEY CHECK (one = 1), instance TEXT NOT NULL, epoch INTEGER NOT NULL);
    CREATE TABLE jobs (
        validator TEXT NOT NULL,
        uuid      TEXT NOT NULL,
        state     TEXT NOT NULL,
        initial   TEXT NOT NULL,
        request   TEXT,
        news      TEXT NOT NULL,
        PRIMARY KEY (validator, uuid)
    ) WITHOUT ROWID;
",
];

const COLUMNS: &str = "validator_hotkey, job_uuid, kind, written_us, payload, validator_signature, miner_signature";

/// One receipt as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiptRow {
    /// Who wrote it (SS58).
    pub validator_hotkey: String,
    /// The job it tells of.
    pub job_uuid: String,
    /// What it tells, as `JobStartedReceipt`.
    pub kind: String,
    /// When it was written, in microseconds of Unix time.
    pub written_us: i64,
    /// Its payload as JSON.
    pub payload: String,
    /// The validator's signature (`0x` hex).
    pub validator_signature: String,
    /// The miner's signature (`0x` hex).
    pub miner_signature: String,
}

impl ReceiptRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            validator_hotkey: row.get(0)?,
            job_uuid: row.get(1)?,
            kind: row.get(2)?,
            written_us: row.get(3)?,
            payload: row.get(4)?,
            validator_signature: row.get(5)?,
            miner_signature: row.get(6)?,
        })
    }
}

/// The table of receipts in one database file, for one thread.
#[derive(Debug)]
pub struct ReceiptStore {
    pub(super) connection: Connection,
    /// Receipts that are in it.
    pub(super) stored: usize,
}

impl ReceiptStore {
    /// Opens (or makes) the file, and deletes receipts written more than [`RECEIPT_RETENTION_US`] before `now_us`.
    /// Blocks on the disk.
    ///
    /// # Errors
    /// [`StoreError`], naming the file.
    pub fn open(path: &Path, now_us: i64) -> Result<Self, StoreError> {
        let connection = open(path, MIGRATIONS)?;
        let oldest = now_us.saturating_sub(RECEIPT_RETENTION_US);
        connection.execute("DELETE FROM receipts WHERE written_us < ?1", [oldest])?;
        let stored = connection.query_row("SELECT count(*) FROM receipts", [], |row| row.get::<_, i64>(0))?;
        Ok(Self { connection, stored: usize::try_from(stored).unwrap_or(0) })
    }

    /// Whether the validator has a receipt for the job here.
    pub(super) fn has(transaction: &Transaction<'_>, validator_hotkey: &str, job_uuid: &str) -> rusqlite::Result<bool> {
        let sql = "SELECT 1 FROM receipts WHERE validator_hotkey = ?1 AND job_uuid = ?2";
        transaction.prepare_cached(sql)?.exists([validator_hotkey, job_uuid])
    }

    /// Deletes the receipts that were written first, as many as `stored` is more than `most`; says how many it was.
    pub(super) fn delete_beyond(transaction: &Transaction<'_>, stored: usize, most: usize) -> rusqlite::Result<usize> {
        let Some(beyond) = stored.checked_sub(most).filter(|beyond| *beyond > 0) else { return Ok(0) };
        let sql = "DELETE FROM receipts WHERE (validator_hotkey, job_uuid, kind) IN \
                   (SELECT validator_hotkey, job_uuid, kind FROM receipts ORDER BY written_us LIMIT ?1)";
        transaction.prepare_cached(sql)?.execute([i64::try_from(beyond).unwrap_or(i64::MAX)])
    }

    /// Stores a receipt as part of the caller's transaction; says whether it is new (`false`: that validator's receipt
    /// of that kind for that job is already there, and stays).
    pub(super) fn insert_into(transaction: &Transaction<'_>, row: &ReceiptRow) -> rusqlite::Result<bool> {
        let sql = format!("INSERT OR IGNORE INTO receipts ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)");
        let stored = transaction.prepare_cached(&sql)?.execute(params![
            row.validator_hotkey,
            row.job_uuid,
            row.kind,
            row.written_us,
            row.payload,
            row.validator_signature,
            row.miner_signature
        ])?;
        Ok(stored == 1)
    }

    /// Stores receipts, each once, and keeps only the newest `most`, and none written more than
    /// [`RECEIPT_RETENTION_US`] before `now_us`. Blocks on the disk.
    ///
    /// # Errors
    /// [`StoreError::Sql`]; then nothing was stored.
    pub fn keep(&mut self, rows: &[ReceiptRow], most: usize, now_us: i64) -> Result<(), StoreError> {
        let (mut stored, transaction) = (self.stored, self.connection.transaction()?);
        for row in rows {
            stored += usize::from(Self::insert_into(&transaction, row)?);
        }
        let oldest = now_us.saturating_sub(RECEIPT_RETENTION_US);
        stored -= transaction.execute("DELETE FROM receipts WHERE written_us < ?1", [oldest])?;
        stored -= Self::delete_beyond(&transaction, stored, most)?;
        transaction.commit()?;
        self.stored = stored;
        Ok(())
    }

    /// One receipt. Blocks on the disk.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn get(&self, validator_hotkey: &str, job_uuid: &str, kind: &str) -> Result<Option<ReceiptRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM receipts WHERE validator_hotkey = ?1 AND job_uuid = ?2 AND kind = ?3");
        let mut select = self.connection.prepare_cached(&sql)?;
        Ok(select.query_row([validator_hotkey, job_uuid, kind], ReceiptRow::read).optional()?)
    }

    /// All receipts written at or after `since_us`, oldest first, at most `limit`. Blocks on the disk.
    ///
    /// # Errors
    /// [`StoreError::Sql`].
    pub fn since(&self, since_us: i64, limit: usize) -> Result<Vec<ReceiptRow>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM receipts WHERE written_us >= ?1 ORDER BY written_us LIMIT ?2");
        let mut select = self.connection.prepare_cached(&sql)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = select.query_map([since_us, limit], ReceiptRow::read)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(job: &str, kind: &str, written_us: i64) -> ReceiptRow {
        ReceiptRow {
            validator_hotkey: "5V".into(),
            job_uuid: job.into(),
            kind: kind.into(),
            written_us,
            payload: format!("{{\"at\":{written_us}}}"),
            validator_signature: "0xaa".into(),
            miner_signature: "0xbb".into(),
        }
    }

    fn insert(store: &mut ReceiptStore, rows: &[ReceiptRow]) -> Vec<bool> {
        let transaction = store.connection.transaction().unwrap();
        let new = rows.iter().map(|row| ReceiptStore::insert_into(&transaction, row).unwrap()).collect();
        transaction.commit().unwrap();
        new
    }

    #[test]
    fn receipts_survive_a_reopen_and_the_first_of_a_kind_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("miner.db");
        let mut store = ReceiptStore::open(&path, 0).unwrap();
        let rows =
            [row("a", "JobStartedReceipt", 5), row("a", "JobFinishedReceipt", 9), row("b", "JobStartedReceipt", 7)];
        assert_eq!(insert(&mut store, &rows), [true, true, true]);
        assert_eq!(insert(&mut store, &[row("a", "JobStartedReceipt", 6)]), [false]);
        drop(store);
        let store = ReceiptStore::open(&path, 0).unwrap();
        assert_eq!(store.get("5V", "a", "JobStartedReceipt").unwrap().as_ref(), Some(&rows[0]));
        assert_eq!(store.get("5V", "a", "JobAcceptedReceipt").unwrap(), None);
        assert_eq!(store.get("5W", "a", "JobStartedReceipt").unwrap(), None);
        let times = |rows: Vec<ReceiptRow>| rows.iter().map(|row| row.written_us).collect::<Vec<_>>();
        assert_eq!(times(store.since(6, 10).unwrap()), [7, 9]);
        assert_eq!(times(store.since(0, 2).unwrap()), [5, 7]);
    }

    #[test]
    fn only_the_newest_are_kept_and_none_that_is_too_old() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = ReceiptStore::open(&folder.path().join("r.db"), 0).unwrap();
        let rows: Vec<_> = (1..=5).map(|n| row(&n.to_string(), "JobStartedReceipt", n)).collect();
        store.keep(&rows, 3, 5).unwrap();
        let times = |store: &ReceiptStore| store.since(0, 9).unwrap().iter().map(|r| r.written_us).collect::<Vec<_>>();
        assert_eq!(times(&store), [3, 4, 5]);
        store.keep(&rows[4..], 3, RECEIPT_RETENTION_US + 5).unwrap();
        assert_eq!(times(&store), [5]);
        // Written at one moment, as their writer says.
        let rows: Vec<_> = (6..=9).map(|n| row(&n.to_string(), "JobStartedReceipt", 5)).collect();
        store.keep(&rows, 3, 5).unwrap();
        assert_eq!((times(&store), store.stored), (vec![5; 3], 3));
    }

    #[test]
    fn receipts_that_no_longer_count_are_deleted_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("miner.db");
        let mut store = ReceiptStore::open(&path, 0).unwrap();
        insert(&mut store, &[row("old", "JobStartedReceipt", 10), row("young", "JobStartedReceipt", 20)]);
        drop(store);
        let store = ReceiptStore::open(&path, RECEIPT_RETENTION_US + 15).unwrap();
        assert_eq!(store.get("5V", "old", "JobStartedReceipt").unwrap(), None);
        assert!(store.get("5V", "young", "JobStartedReceipt").unwrap().is_some());
    }
}

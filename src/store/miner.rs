//! A miner's database: its receipts, the jobs that its executors run, and whose turn it is.
//!
//! One process has the folder. Each takes the next epoch, so that what an earlier one has left (containers, processes,
//! folders, all marked with the instance and the epoch) is told from its own.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rusqlite::{TransactionBehavior, params};

use super::StoreError;
use super::lock::{self, FolderLock};
use super::receipts::{ReceiptRow, ReceiptStore};
use crate::base::waits::waiting;

/// Name of the database in the state folder.
pub const DATABASE: &str = "miner.db";

pub(crate) const LOCK: &str = lock::MINER;

/// Receipts that are kept, the newest: three for each of 100,000 jobs, of some 1 KiB each, are 300 MiB.
const RECEIPTS: usize = 300_000;

/// Whose turn it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Names this state folder, and no copy of it: a number of its own, and the folder's in its file system.
    pub instance: String,
    /// Grows with each process that opens the folder.
    pub epoch: u64,
}

/// A job as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobRow {
    /// Who asked for it (SS58).
    pub validator: String,
    /// Its uuid.
    pub uuid: String,
    /// Where it is, JSON.
    pub state: String,
    /// The initial request as it is passed on.
    pub initial: String,
    /// The job request as it is passed on, as long as its executor may lack it.
    pub request: Option<String>,
    /// What its validator has not confirmed, JSON.
    pub news: String,
}

/// A change of what is kept of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobChange {
    /// It is so now.
    Put(JobRow),
    /// Nothing is left of it.
    Forget {
        /// Who asked for it (SS58).
        validator: String,
        /// Its uuid.
        uuid: String,
    },
}

/// A receipt to store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewReceipt {
    /// The receipt.
    pub receipt: ReceiptRow,
    /// The job that it starts: it is there only with its receipt, and only if that is new. Without one the receipt is
    /// of a job that was started before.
    pub job: Option<JobRow>,
}

/// The database, for one thread. Dropping it lets the folder go.
#[derive(Debug)]
pub struct MinerStore {
    // The order matters: the database is closed before the lock is let go.
    receipts: ReceiptStore,
    /// Receipts that are kept at most.
    most: usize,
    turn: Turn,
    _lock: FolderLock,
}

/// The file of the lock of a state folder; whoever takes the folder writes it.
pub(crate) fn lock_file(folder: &Path) -> PathBuf {
    folder.join(LOCK)
}

impl MinerStore {
    /// Takes the folder, opens (or makes) its database, deletes receipts that no longer count at `now_us`, and gives
    /// the jobs that were left. Blocks on the disk.
    ///
    /// # Errors
    /// [`StoreError`]; [`StoreError::InUse`] if another process has the folder.
    pub fn open(folder: &Path, now_us: i64) -> Result<(Self, Vec<JobRow>), StoreError> {
        let lock = FolderLock::take(folder, LOCK)?;
        let path = folder.join(DATABASE);
        let file_error = |source| StoreError::File { path: path.clone(), source };
        let mut receipts = ReceiptStore::open(&path, now_us)?;
        let inode = fs::metadata(folder).map_err(file_error)?.ino();
        let transaction = receipts.connection.transaction()?;
        let fresh = uuid::Uuid::new_v4().simple().to_string();
        transaction.execute("INSERT OR IGNORE INTO miner VALUES (1, ?1, 0)", [&fresh[..16]])?;
        transaction.execute("UPDATE miner SET epoch = epoch + 1", [])?;
        let (number, epoch) = transaction.query_row("SELECT instance, epoch FROM miner", [], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?))
        })?;
        let jobs = {
            let mut select = transaction.prepare("SELECT validator, uuid, state, initial, request, news FROM jobs")?;
            let rows = select.query_map([], |row| {
                Ok(JobRow {
                    validator: row.get(0)?,
                    uuid: row.get(1)?,
                    state: row.get(2)?,
                    initial: row.get(3)?,
                    request: row.get(4)?,
                    news: row.get(5)?,
                })
            })?;
            rows.collect::<rusqlite::Result<_>>()?
        };
        transaction.commit()?;
        let turn = Turn { instance: format!("{number}-{inode:x}"), epoch: epoch.unsigned_abs() };
        Ok((Self { receipts, most: RECEIPTS, turn, _lock: lock }, jobs))
    }

    /// Whose turn it is, for as long as this lives.
    pub fn turn(&self) -> &Turn {
        &self.turn
    }

    /// Makes changes of jobs and then stores receipts, in one transaction; says for each receipt whether it is new
    /// (`false`: that validator's receipt of that kind for that job is already there, and stays; or no receipt has
    /// started the job, so it did not run here, and nothing is kept of it). The newest 300,000 are kept, by what they
    /// say of when they were written. Blocks on the disk; on it when this returns.
    ///
    /// # Errors
    /// [`StoreError::Sql`]; then nothing was changed.
    pub fn write(&mut self, jobs: &[JobChange], receipts: &[NewReceipt]) -> Result<Vec<bool>, StoreError> {
        // It reads before it writes: begun as a reader it would fail if somebody else wrote in between.
        let transaction = self.receipts.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut stored = self.receipts.stored;
        let mut new = Vec::with_capacity(receipts.len());
        {
            let mut put = transaction.prepare_cached("INSERT OR REPLACE INTO jobs VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
            let mut put = |JobRow { validator, uuid, state, initial, request, news }: &JobRow| {
                put.execute(params![validator, uuid, state, initial, request, news])
            };
            let mut forget = transaction.prepare_cached("DELETE FROM jobs WHERE validator = ?1 AND uuid = ?2")?;
            for job in jobs {
                match job {
                    JobChange::Put(row) => put(row)?,
                    JobChange::Forget { validator, uuid } => forget.execute([validator, uuid])?,
                };
            }
            for NewReceipt { receipt, job } in receipts {
                let ran_here =
                    job.is_some() || ReceiptStore::has(&transaction, &receipt.validator_hotkey, &receipt.job_uuid)?;
                let is_new = ran_here && ReceiptStore::insert_into(&transaction, receipt)?;
                stored += usize::from(is_new);
                if let Some(row) = job.as_ref().filter(|_| is_new) {
                    put(row)?;
                }
                new.push(is_new);
            }
        }
        stored -= ReceiptStore::delete_beyond(&transaction, stored, self.most)?;
        let _waiting = waiting("the disk", None);
        transaction.commit()?;
        self.receipts.stored = stored;
        Ok(new)
    }

    /// Whether anything can be written: writes a job and forgets it.
    ///
    /// # Errors
    /// As [`MinerStore::write`].
    pub fn try_writing(&mut self) -> Result<(), StoreError> {
        let nobody = String::new;
        let job = JobRow {
            validator: nobody(),
            uuid: nobody(),
            state: nobody(),
            initial: nobody(),
            request: None,
            news: nobody(),
        };
        let forget = JobChange::Forget { validator: nobody(), uuid: nobody() };
        self.write(&[JobChange::Put(job), forget], &[]).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn job(uuid: &str, state: &str) -> JobRow {
        JobRow {
            validator: "5V".into(),
            uuid: uuid.into(),
            state: state.into(),
            initial: "{}".into(),
            request: None,
            news: "[]".into(),
        }
    }

    fn forget(uuid: &str) -> JobChange {
        JobChange::Forget { validator: "5V".into(), uuid: uuid.into() }
    }

    fn receipt(uuid: &str) -> ReceiptRow {
        ReceiptRow {
            validator_hotkey: "5V".into(),
            job_uuid: uuid.into(),
            kind: "JobStartedReceipt".into(),
            written_us: 5,
            payload: "{}".into(),
            validator_signature: "0xaa".into(),
            miner_signature: "0xbb".into(),
        }
    }

    #[test]
    fn a_try_to_write_leaves_nothing_and_fails_where_nothing_can_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = MinerStore::open(folder.path(), 0).unwrap();
        store.try_writing().unwrap();
        store.receipts.connection.pragma_update(None, "query_only", true).unwrap();
        store.try_writing().unwrap_err();
        drop(store);
        assert_eq!(MinerStore::open(folder.path(), 0).unwrap().1, []);
    }

    #[test]
    fn jobs_survive_and_each_process_has_an_epoch_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, jobs) = MinerStore::open(folder.path(), 0).unwrap();
        assert_eq!((jobs, store.turn().epoch), (vec![], 1));
        let instance = store.turn().instance.clone();
        let put = |uuid, state| JobChange::Put(job(uuid, state));
        store.write(&[put("a", "new"), put("b", "new")], &[]).unwrap();
        store.write(&[put("a", "runs"), forget("b")], &[]).unwrap();
        drop(store);
        let (store, jobs) = MinerStore::open(folder.path(), 0).unwrap();
        assert_eq!(jobs, [job("a", "runs")]);
        assert_eq!((&store.turn().instance, store.turn().epoch), (&instance, 2));
    }

    #[test]
    fn a_job_is_there_only_with_the_new_receipt_that_starts_it() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = MinerStore::open(folder.path(), 0).unwrap();
        let starts = |uuid, state| NewReceipt { receipt: receipt(uuid), job: Some(job(uuid, state)) };
        // What was to be forgotten of an earlier job of this uuid is older than the receipt.
        assert_eq!(store.write(&[forget("a")], &[starts("a", "new")]).unwrap(), [true]);
        assert_eq!(store.write(&[forget("a")], &[starts("a", "again"), starts("b", "new")]).unwrap(), [false, true]);
        // A receipt that cannot be stored leaves no job either.
        store.receipts.connection.execute("ALTER TABLE receipts RENAME TO away", []).unwrap();
        store.write(&[], &[starts("c", "new")]).unwrap_err();
        store.receipts.connection.execute("ALTER TABLE away RENAME TO receipts", []).unwrap();
        drop(store);
        let (_store, jobs) = MinerStore::open(folder.path(), 0).unwrap();
        assert_eq!(jobs, [job("b", "new")]);
    }

    #[test]
    fn receipts_are_kept_of_jobs_that_were_started_here_and_only_so_many() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = MinerStore::open(folder.path(), 0).unwrap();
        store.most = 3;
        let starts = |uuid| NewReceipt { receipt: receipt(uuid), job: Some(job(uuid, "new")) };
        let finishes = |uuid: &str, validator: &str| NewReceipt {
            receipt: ReceiptRow {
                validator_hotkey: validator.into(),
                kind: "JobFinishedReceipt".into(),
                written_us: 9,
                ..receipt(uuid)
            },
            job: None,
        };
        let told = [finishes("a", "5V"), starts("a"), finishes("a", "5V"), finishes("a", "5W"), finishes("b", "5V")];
        assert_eq!(store.write(&[], &told).unwrap(), [false, true, true, false, false]);
        // Also once the job itself is forgotten.
        store.write(&[forget("a")], &[starts("b")]).unwrap();
        assert_eq!(store.write(&[], &[finishes("b", "5V"), finishes("a", "5V")]).unwrap(), [true, false]);
        let kept = |store: &MinerStore| {
            let rows = store.receipts.since(0, 10).unwrap();
            assert_eq!(rows.len(), store.receipts.stored);
            rows.into_iter().map(|row| (row.job_uuid, row.written_us)).collect::<Vec<_>>()
        };
        // One of four had to go: of those that were written first, the first by name.
        let rest = [("b", 5), ("a", 9), ("b", 9)].map(|(uuid, at)| (uuid.to_owned(), at));
        assert_eq!(kept(&store), rest);
        drop(store);
        let (mut store, _) = MinerStore::open(folder.path(), 0).unwrap();
        assert_eq!(kept(&store), rest);
        // A folder that has more than may be there.
        store.most = 1;
        store.write(&[], &[]).unwrap();
        assert_eq!(kept(&store), rest[2..]);
    }

    fn assert_private(folder: &Path) {
        for name in ["miner.db", "miner.db-wal", "miner.db-shm"] {
            let mode = fs::metadata(folder.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name} holds tokens");
        }
    }

    #[test]
    fn all_files_of_the_database_are_their_owner_s_alone_also_those_of_an_older_release() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = MinerStore::open(folder.path(), 0).unwrap();
        assert_private(folder.path());
        store.write(&[JobChange::Put(job("a", "new"))], &[]).unwrap();
        // As they are after a kill, with the modes that they had.
        let older = tempfile::tempdir().unwrap();
        for name in ["miner.db", "miner.db-wal", "miner.db-shm"] {
            fs::copy(folder.path().join(name), older.path().join(name)).unwrap();
            fs::set_permissions(older.path().join(name), Permissions::from_mode(0o644)).unwrap();
        }
        let (_store, jobs) = MinerStore::open(older.path(), 0).unwrap();
        assert_eq!(jobs, [job("a", "new")]);
        assert_private(older.path());
    }

    #[test]
    fn a_folder_is_one_process_s_and_a_copy_of_it_is_another_instance() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = MinerStore::open(folder.path(), 0).unwrap();
        let error = MinerStore::open(folder.path(), 0).unwrap_err();
        assert!(matches!(&error, StoreError::InUse { pid, .. } if *pid == std::process::id().to_string()), "{error}");
        let instance = store.turn().instance.clone();
        drop(store);
        let copy = tempfile::tempdir().unwrap();
        fs::copy(folder.path().join(DATABASE), copy.path().join(DATABASE)).unwrap();
        let (copied, _) = MinerStore::open(copy.path(), 0).unwrap();
        assert_ne!(copied.turn().instance, instance);
    }
}
